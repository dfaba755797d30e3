-- Ends the unknown outcome of a call, as a look or an operator has found.
-- ARGV[4..10] as for `settle`, with any claim of the call; then who says so (`look`, `word`), how long after `until` an
-- open record is unknown, how long after `until` CAMS may execute the call, the epoch that this replica has published, the
-- members' lease, the least age of an epoch.
-- Ends: d (done), absent (not found after CAMS can no longer execute it), not_created.
-- Returns {epoch, 'settled'}; 'owned': the flow is another call's; or what the store has, as `claim` does: the outcome of
-- the call is not unknown there any more, or it is too early.

local CALL, PRINT, END, REMAINING, LIFETIME = call_of(ARGV[4]), ARGV[5], ARGV[6], tonumber(ARGV[7]), ARGV[8]
local REQUEST_ID, FLOW_ID, BY, OVERDUE, SETTLE = ARGV[9], ARGV[10], ARGV[11], tonumber(ARGV[12]), tonumber(ARGV[13])
local PUBLISHED, LEASE, LEAST_AGE = ARGV[14], tonumber(ARGV[15]), tonumber(ARGV[16])

local id, since = epoch(false)
local record = read(KEYS[3])
local is_same = record and is_of_order(record, PRINT, CALL)
local is_done = is_same and record.state == 'd'
if PUBLISHED ~= id and not is_done then
  return answer(id, 'gated')
end
-- CAMS shows the flow, whatever was recorded before.
local is_shown = not record and END == 'd' and BY == 'look'
if not record and not is_shown then
  return answer(id, is_gated(id, since, PUBLISHED, LEASE, LEAST_AGE) and 'gated' or 'absent')
end
if record and not is_same then
  return answer(id, 'mismatch')
end
local state = record and state_for_readers(record, OVERDUE) or 'u'
local claim = record and claim_of(record.owner, CALL) or is_shown and ARGV[4]
if state ~= 'u' or not claim then
  return answer(id, state, record)
end

if END == 'd' then
  local owner = KEYS[4] ~= KEYS[3] and redis.call('GET', KEYS[4])
  if owner and owner ~= string.sub(KEYS[3], -32) then
    return answer(id, 'owned')
  end
  if BY == 'word' and not owner and is_gated(id, since, PUBLISHED, LEASE, LEAST_AGE) then
    return answer(id, 'gated')
  end
  local ends = math.max(NOW + REMAINING, record and record.ends or 0, 0)
  local done = { state = 'd', owner = claim, print = PRINT, ends = ends, request_id = REQUEST_ID, flow_id = FLOW_ID }
  write(KEYS[3], done, LIFETIME)
  note_flow(3, done, LIFETIME)
  return answer(id, 'settled')
end
if END == 'absent' and NOW < record.ends + SETTLE then
  return answer(id, state, record)
end
-- Other calls of the key may have other parameters: each ends for itself.
remove_claim(record, claim, LIFETIME)
return answer(id, 'settled')
