-- Which replicas share this store? Each says every now and then that it is there, and through which connection; who has
-- been silent for a lease, or was seen to be dead, is forgotten. Answers each one's name, its connection, and for how many
-- microseconds it has been silent.

local op, me, connection, lease, name, heard = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6]
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])

if op == 'beat' then
  redis.call('HSET', KEYS[1], me, string.format('%s:%.0f', connection, now))
elseif op == 'leave' then
  redis.call('HDEL', KEYS[1], me)
elseif op == 'bury' then
  -- Not if it has come back through another connection.
  local kept = redis.call('HGET', KEYS[1], name)
  if kept and string.match(kept, '^%d+') == heard then redis.call('HDEL', KEYS[1], name) end
end
redis.call('PEXPIRE', KEYS[1], math.ceil(lease / 1000))

local answer = {}
local all = redis.call('HGETALL', KEYS[1])
for index = 1, #all, 2 do
  local through, at = string.match(all[index + 1], '^(%d+):(%d+)$')
  local silent = math.max(now - tonumber(at), 0)
  if silent > lease then
    redis.call('HDEL', KEYS[1], all[index])
  else
    for _, value in ipairs({ all[index], tonumber(through), silent }) do answer[#answer + 1] = value end
  end
end
return answer
