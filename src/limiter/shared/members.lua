-- Which replicas share this store? Each says every now and then that it is there, and through which connection. One that
-- has been silent for a lease is forgotten. One that has left, or was seen to be dead, is listed as such for a lease, so
-- that the others learn of it. Answers each one's name, its connection, for how many microseconds it has been silent,
-- whether it has left, and the server's run that the connection is of.

local op, me, connection, run, lease, name, heard = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]), ARGV[6], ARGV[7]
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])

local function keep(replica, through, left)
  redis.call('HSET', KEYS[1], replica, string.format('%s:%.0f:%d:%s', through, now, left, run))
end

if op == 'beat' then
  keep(me, connection, 0)
elseif op == 'leave' then
  keep(me, connection, 1)
elseif op == 'bury' then
  -- Not if it has come back through another connection.
  local kept = redis.call('HGET', KEYS[1], name)
  if kept and string.match(kept, '^(%d+):%d+:0:') == heard then keep(name, heard, 1) end
end
redis.call('PEXPIRE', KEYS[1], math.ceil(lease / 1000))

local answer = {}
local all = redis.call('HGETALL', KEYS[1])
for index = 1, #all, 2 do
  local through, at, left, of = string.match(all[index + 1], '^(%d+):(%d+):(%d):(%w*)$')
  local silent = through and math.max(now - tonumber(at), 0)
  if not through or silent > lease then
    redis.call('HDEL', KEYS[1], all[index])
  else
    for _, value in ipairs({ all[index], tonumber(through), silent, tonumber(left), of }) do answer[#answer + 1] = value end
  end
end
return answer
