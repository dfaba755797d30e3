-- Marks a claim open: an attempt that is signed already may leave. Also extends `until` of an open record.
-- ARGV[4..]: the claim, the milliseconds in which further attempts of the call may be signed, the lifetime.
-- Returns {epoch, 'open' | 'lost'}. A claim of an earlier epoch is lost: a failover may have brought it back.

local CLAIM, REMAINING, LIFETIME = ARGV[4], tonumber(ARGV[5]), ARGV[6]

local id = epoch(false)
local record = read(KEYS[3])
if not record or record.claimed_in ~= id or record.owner ~= CLAIM or RANK[record.state] > RANK.o then
  return { id, 'lost' }
end
record.state = 'o'
record.ends = math.max(record.ends, NOW + REMAINING)
write(KEYS[3], record, LIFETIME)
note_flow(3, record, LIFETIME)
return { id, 'open' }
