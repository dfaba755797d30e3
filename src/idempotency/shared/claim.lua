-- Claims a key, or reads its record.
-- ARGV[4..]: the claim, the fingerprint, the claim's lifetime (0: read only), how long after `until` an open record is
-- unknown, the epoch that this replica has published, the members' lease, the least age of an epoch.
-- Returns {epoch, what, owner, milliseconds until `until`, request id, flow id}. To a reader that has not published its own
-- records only a flow that was created is certain.

local CLAIM, PRINT, LIFETIME, OVERDUE = ARGV[4], ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
local PUBLISHED, LEASE, LEAST_AGE = ARGV[8], tonumber(ARGV[9]), tonumber(ARGV[10])

local id, since = epoch(false)
local record = read(KEYS[3])
local is_same = record and is_of_order(record, PRINT, call_of(CLAIM))
if LIFETIME == 0 and PUBLISHED ~= id and not (is_same and record.state == 'd') then
  return answer(id, 'gated')
end
if record and not is_same then
  return answer(id, 'mismatch')
end
if record then
  local is_mine = record.state == 'c' and record.owner == CLAIM and record.claimed_in == id
  if not is_mine then
    return answer(id, state_for_readers(record, OVERDUE), record)
  end
elseif is_gated(id, since, PUBLISHED, LEASE, LEAST_AGE) then
  return answer(id, 'gated')
elseif LIFETIME == 0 then
  return answer(id, 'absent')
end
if LIFETIME > 0 then
  local claim = { state = 'c', owner = CLAIM, print = PRINT, ends = NOW, claimed_in = id, request_id = '', flow_id = '' }
  write(KEYS[3], claim, LIFETIME)
end
return answer(id, 'mine')
