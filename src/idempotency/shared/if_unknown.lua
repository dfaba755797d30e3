-- Goes between `prelude.lua` and `settle.lua`, for an operator's word that a flow was created: it holds only while the
-- outcome of this owner is unknown. Another word or a look may have ended it since it was read.

local unknown = read(KEYS[3])
if not unknown or unknown.owner ~= ARGV[4] or state_for_readers(unknown, tonumber(ARGV[11])) ~= 'u' then
  return { (epoch(false)), 'kept' }
end
