-- Publishes records that a replica knows, because the store may have lost them. The stronger state wins.
-- ARGV[4..], for each record: state, owner, fingerprint, milliseconds from now to `until`, lifetime, CAMS's request id,
-- flow id. Returns {epoch, the state of each record afterwards}.

local FIRST, FIELDS = 4, 7
local KEYS_EACH = 3

local id = epoch(false)
local states = {}
for i = 3, #KEYS, KEYS_EACH do
  local at = FIRST + (i - 3) / KEYS_EACH * FIELDS
  local known = {
    state = ARGV[at],
    owner = ARGV[at + 1],
    print = ARGV[at + 2],
    ends = math.max(NOW + tonumber(ARGV[at + 3]), 0),
    request_id = ARGV[at + 5],
    flow_id = ARGV[at + 6],
  }
  local record = read(KEYS[i])
  local ends = math.max(known.ends, record and record.ends or 0)
  if not record or RANK[record.state] < RANK[known.state] then
    record = known
  elseif record.state == 'o' and known.state == 'o' and record.owner ~= known.owner then
    -- A failover has brought an earlier call back. Neither may send another attempt, and the outcome is that of both.
    record.state = 'u'
    record.owner = ''
  end
  record.ends = ends
  write(KEYS[i], record, ARGV[at + 4])
  note_flow(i, record, ARGV[at + 4])
  states[#states + 1] = record.state
end
return { id, table.concat(states) }
