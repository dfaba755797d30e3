-- A replica's heartbeat. A replica that has published nothing yet is not a member.
-- ARGV[4..]: the operation (`beat`, `greet`: the first one over a connection, `leave`), the epoch that this replica has
-- published, the epoch that it knows, the members' lease, then name and silence in milliseconds of each member that it
-- knows. Returns {epoch, name, silence of each member ...}.

local OP, PUBLISHED, KNOWN, LEASE = ARGV[4], ARGV[5], ARGV[6], tonumber(ARGV[7])
local FIRST = 8

local id = epoch(OP == 'greet')
if OP == 'leave' then
  redis.call('HDEL', KEYS[2], REPLICA)
  return { id }
end
if id ~= KNOWN then
  -- The store may have lost its list, or have an old one: a member that is cut off from the store keeps the gate closed
  -- all the same.
  for i = FIRST, #ARGV, 2 do
    local seen = math.max(NOW - tonumber(ARGV[i + 1]), 0)
    local listed = redis.call('HGET', KEYS[2], ARGV[i])
    if not listed or tonumber(string.match(listed, '^%d+')) < seen then
      redis.call('HSET', KEYS[2], ARGV[i], int(seen) .. '|')
    end
  end
end
if PUBLISHED ~= '' then
  redis.call('HSET', KEYS[2], REPLICA, int(NOW) .. '|' .. PUBLISHED)
end
local answer = { id }
local members = redis.call('HGETALL', KEYS[2])
for i = 1, #members, 2 do
  local seen, published = string.match(members[i + 1], '^(%d+)(|.*)$')
  seen = tonumber(seen)
  if seen and seen > NOW then
    -- Seen before the server's clock was set back: the lease begins again.
    seen = NOW
    redis.call('HSET', KEYS[2], members[i], int(seen) .. published)
  end
  if not seen or NOW >= seen + LEASE then
    redis.call('HDEL', KEYS[2], members[i])
  elseif members[i] ~= REPLICA then
    answer[#answer + 1] = members[i]
    answer[#answer + 1] = int(NOW - seen)
  end
end
return answer
