-- Takes a flow for a call whose outcome is unknown, unless it may be the flow of another call.
-- KEYS[3..5] as for a record. ARGV[4..]: the name under which the flow is taken, the lifetime, how the flow was learned
-- (`look`, `answer`; `word`: nothing is written), how long after `until` an open record is unknown, the epoch that this
-- replica has published, the members' lease, the least age of an epoch.
-- Returns {epoch, what}: 'taken'; 'owned' by another record; another call of the name is 'open' or 'unknown'; 'gated'.

local NAME, LIFETIME, HOW, OVERDUE = ARGV[4], ARGV[5], ARGV[6], tonumber(ARGV[7])
local PUBLISHED, LEASE, LEAST_AGE = ARGV[8], tonumber(ARGV[9]), tonumber(ARGV[10])

-- The state of the other calls of the flow's name: nil, 'open' or 'unknown'.
local function others()
  local found = nil
  local calls = KEYS[5] == KEYS[3] and {} or redis.call('HGETALL', KEYS[5])
  for i = 1, #calls, 2 do
    local state, ends = string.match(calls[i + 1], '^(%a)|(%d+)$')
    if state and calls[i] ~= NAME then
      local seen = state_for_readers({ state = state, ends = tonumber(ends) }, OVERDUE)
      found = (seen == 'u' or found == 'unknown') and 'unknown' or 'open'
    end
  end
  return found
end

local id, since = epoch(false)
local owner = redis.call('GET', KEYS[4])
if owner and owner ~= NAME then
  return { id, 'owned' }
end
if HOW ~= 'answer' and not owner and is_gated(id, since, PUBLISHED, LEASE, LEAST_AGE) then
  return { id, 'gated' }
end
local found = HOW == 'look' and not owner and others()
if found then
  return { id, found }
end
if HOW ~= 'word' then
  redis.call('SET', KEYS[4], NAME, 'PX', LIFETIME)
end
return { id, 'taken' }
