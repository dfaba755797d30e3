-- The replicas that share this store. Each sends heartbeats with its connection's id. A replica
-- that is silent for a lease is removed. One that has left or is dead is listed as such for a
-- lease, so that the others learn of it. Returns for each: name, connection id, microseconds since
-- its last heartbeat, whether it has left, and the run id of the server that assigned the
-- connection id.

local op, me, connection, run, lease = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local dead, dead_connection = ARGV[6], ARGV[7]
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])

local function keep(replica, connection_id, left)
  redis.call('HSET', KEYS[1], replica, string.format('%s:%.0f:%d:%s', connection_id, now, left, run))
end

if op == 'beat' then
  keep(me, connection, 0)
elseif op == 'leave' then
  keep(me, connection, 1)
elseif op == 'bury' then
  -- Not if it has returned with another connection.
  local kept = redis.call('HGET', KEYS[1], dead)
  if kept and string.match(kept, '^(%d+):%d+:0:') == dead_connection then keep(dead, dead_connection, 1) end
end
redis.call('PEXPIRE', KEYS[1], math.ceil(lease / 1000))

local answer = {}
local all = redis.call('HGETALL', KEYS[1])
for index = 1, #all, 2 do
  local connection_id, at, left, of = string.match(all[index + 1], '^(%d+):(%d+):(%d):(%w*)$')
  local silent = connection_id and math.max(now - tonumber(at), 0)
  if not connection_id or silent > lease then
    redis.call('HDEL', KEYS[1], all[index])
  else
    for _, value in ipairs({ all[index], tonumber(connection_id), silent, tonumber(left), of }) do answer[#answer + 1] = value end
  end
end
return answer
