-- Records how a call has ended, or that its unknown outcome is resolved.
-- ARGV[4..]: the owner, the fingerprint, the end, milliseconds from now to `until` (negative: it has passed), the
-- lifetime, CAMS's request id, the flow id, how long after `until` an open record is unknown, how long after `until` CAMS
-- may execute the call.
-- Ends: d (done), u (unknown), released (by its owner: CAMS has executed nothing), absent (unknown, and not found after
-- CAMS can no longer execute it), not_created (unknown, and an operator says so).
-- Returns {epoch, 'settled' | 'kept', state of the record that is kept, its flow id}.

local OWNER, PRINT, END, REMAINING, LIFETIME = ARGV[4], ARGV[5], ARGV[6], tonumber(ARGV[7]), ARGV[8]
local REQUEST_ID, FLOW_ID, OVERDUE, SETTLE = ARGV[9], ARGV[10], tonumber(ARGV[11]), tonumber(ARGV[12])

local id = epoch(false)
local record = read(KEYS[3])

local function may_be_freed()
  if record.owner ~= OWNER then
    return false
  end
  if END == 'released' then
    return RANK[record.state] <= RANK.o
  end
  local is_unknown = state_for_readers(record, OVERDUE) == 'u'
  return is_unknown and (END == 'not_created' or NOW >= record.ends + SETTLE)
end

if RANK[END] then
  if record and RANK[record.state] > RANK[END] or record and record.state == 'd' and record.flow_id ~= FLOW_ID then
    return { id, 'kept', record.state, record.flow_id }
  end
  local ends = math.max(NOW + REMAINING, record and record.ends or 0, 0)
  local owner = record and record.state == END and record.owner or OWNER
  local ended = { state = END, owner = owner, print = PRINT, ends = ends, request_id = REQUEST_ID, flow_id = FLOW_ID }
  write(KEYS[3], ended, LIFETIME)
  note_flow(3, ended, LIFETIME)
elseif record then
  if not may_be_freed() then
    return { id, 'kept', record.state, record.flow_id }
  end
  redis.call('DEL', KEYS[3])
  note_flow(3, { state = 'c' }, LIFETIME)
end
return { id, 'settled' }
