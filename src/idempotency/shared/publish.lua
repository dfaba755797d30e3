-- Publishes records that a replica knows, because the store may have lost them.
-- ARGV[4..], for each record: state, claim, fingerprint, milliseconds from now to `until`, lifetime, CAMS's request id,
-- flow id. Returns {epoch, the state of each record afterwards}.

local FIRST, FIELDS = 4, 7
local KEYS_EACH = 3

-- What both records say of a key. Each may be of another call: a failover has brought an earlier one back.
local function merged(record, known)
  if not record or record.state == 'c' then
    return known
  elseif record.state == 'd' or known.state == 'd' then
    return record.state == 'd' and record or known
  end
  local owner = with(record.owner, known.owner)
  -- None of several calls may send another attempt, and the outcome is that of all.
  local is_open = record.state == 'o' and known.state == 'o' and not string.find(owner, ' ')
  record.state = is_open and 'o' or 'u'
  record.owner = owner
  return record
end

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
  record = merged(record, known)
  record.ends = ends
  write(KEYS[i], record, ARGV[at + 4])
  note_flow(i, record, ARGV[at + 4])
  states[#states + 1] = record.state
end
return { id, table.concat(states) }
