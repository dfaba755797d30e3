-- Goes between `prelude.lua` and `settle.lua`, for an operator's word that a flow was created: it holds only while the
-- outcome of this owner is unknown, and the flow belongs to no other call. Another word or a look may have ended it, or
-- taken the flow, since they were read.

local unknown = read(KEYS[3])
if not unknown or unknown.owner ~= ARGV[4] or state_for_readers(unknown, tonumber(ARGV[11])) ~= 'u' then
  return { (epoch(false)), 'kept' }
end
local taken_by = KEYS[4] ~= KEYS[3] and redis.call('GET', KEYS[4])
if taken_by and taken_by ~= string.sub(KEYS[3], -32) then
  return { (epoch(false)), 'kept' }
end
