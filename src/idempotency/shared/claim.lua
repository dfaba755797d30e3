-- Claims a key, or reads its record.
-- ARGV[4..]: the claim's owner, the fingerprint, the claim's lifetime (0: read only), how long after `until` an open
-- record is unknown, the epoch that this replica has published, the members' lease, the least age of an epoch.
-- Returns {epoch, what, owner, milliseconds until `until`, request id, flow id}.

local OWNER, PRINT, LIFETIME, OVERDUE = ARGV[4], ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
local PUBLISHED, LEASE, LEAST_AGE = ARGV[8], tonumber(ARGV[9]), tonumber(ARGV[10])

local id, since = epoch(false)
local record = read(KEYS[3])
if record then
  if record.print ~= PRINT then
    return { id, 'mismatch' }
  end
  local is_mine = record.state == 'c' and record.owner == OWNER and record.claimed_in == id
  if not is_mine then
    local state = state_for_readers(record, OVERDUE)
    return { id, state, record.owner, int(record.ends - NOW), record.request_id, record.flow_id }
  end
elseif LIFETIME == 0 then
  return { id, is_gated(id, since, PUBLISHED, LEASE, LEAST_AGE) and 'gated' or 'absent' }
elseif is_gated(id, since, PUBLISHED, LEASE, LEAST_AGE) then
  return { id, 'gated' }
end
if LIFETIME > 0 then
  local claim = { state = 'c', owner = OWNER, print = PRINT, ends = NOW, claimed_in = id, request_id = '', flow_id = '' }
  write(KEYS[3], claim, LIFETIME)
end
return { id, 'mine' }
