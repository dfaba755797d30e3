-- Records how a call has ended.
-- ARGV[4..]: the claim, the fingerprint, the end, milliseconds from now to `until` (negative: it has passed), the lifetime,
-- CAMS's request id, the flow id.
-- Ends: d (done), u (unknown), released (CAMS has executed nothing).
-- Returns {epoch, 'settled'}, or what the store has, as `claim` does.

local CLAIM, PRINT, END, REMAINING, LIFETIME = ARGV[4], ARGV[5], ARGV[6], tonumber(ARGV[7]), ARGV[8]
local REQUEST_ID, FLOW_ID = ARGV[9], ARGV[10]

local id = epoch(false)
local record = read(KEYS[3])

if END == 'released' then
  if not record then
    return answer(id, 'settled')
  end
  -- Another process may have published the call without the number of its claim. A later claim stays.
  local call, number = call_of(CLAIM)
  local known = claim_of(record.owner, call)
  local _, known_number = call_of(known or '')
  if record.state == 'd' or not known or known_number > number then
    return answer(id, record.state, record)
  end
  remove_claim(record, known, LIFETIME)
  return answer(id, 'settled')
end

if record and record.state == 'd' and (END == 'u' or record.flow_id ~= FLOW_ID) then
  return answer(id, record.state, record)
end
local owner = CLAIM
if END == 'u' and record and record.state ~= 'c' then
  owner = with(record.owner, CLAIM)
end
local ends = math.max(NOW + REMAINING, record and record.ends or 0, 0)
local ended = { state = END, owner = owner, print = PRINT, ends = ends, request_id = REQUEST_ID, flow_id = FLOW_ID }
write(KEYS[3], ended, LIFETIME)
note_flow(3, ended, LIFETIME)
return answer(id, 'settled')
