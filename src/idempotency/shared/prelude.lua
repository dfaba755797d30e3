-- The part that all scripts of the idempotency keys begin with.
-- KEYS: the epoch, the members, then the record, or three keys for each record: the record, the owner of its flow, and
-- the calls of its flow's name; one that does not apply is the record. ARGV[1..3]: this replica, an id for a new epoch, the
-- server's run.
-- A record is one string: state|owner|fingerprint|until|epoch|CAMS's request id|flow id. Its state is c (claimed), o (open),
-- u (unknown) or d (done). The epoch is that of the claim. Times are milliseconds of the store's clock.
-- The owner is the claim of a call: call:number. Of an unknown record it is the claims of all calls that may have created the
-- flow, with blanks between them: a failover may bring an earlier call back. Of a finished record it does not matter.
-- The owner of a flow is the name of the record that the flow belongs to, or of a call without a key. The calls of a flow's
-- name are a hash: of each call that may have created a flow of this name, the name of its record, and state|until.

local REPLICA, FRESH, RUN = ARGV[1], ARGV[2], ARGV[3]
-- The stronger state says more of what CAMS has done.
local RANK = { c = 1, o = 2, u = 3, d = 4 }

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
local NOW = now_ms()

-- A number without an exponent.
local function int(number)
  return string.format('%.0f', number)
end

-- The id and the beginning of the epoch. A missing epoch is made: the store has lost its data, or is new.
-- With `is_greeting` another run of the server is a new epoch, too: a restart or a failover may have lost writes.
-- An epoch that began later than now began before the server's clock was set back: it begins again.
local function epoch(is_greeting)
  local value = redis.call('GET', KEYS[1])
  if value then
    local id, since, run = string.match(value, '^([^|]*)|(%d+)|(.*)$')
    if id and not (is_greeting and (RUN == '' or run ~= RUN)) then
      if tonumber(since) <= NOW then
        return id, tonumber(since)
      end
      redis.call('SET', KEYS[1], id .. '|' .. int(NOW) .. '|' .. run)
      return id, NOW
    end
  end
  redis.call('SET', KEYS[1], FRESH .. '|' .. int(NOW) .. '|' .. RUN)
  return FRESH, NOW
end

-- The record of a key, or nil.
local function read(key)
  local value = redis.call('GET', key)
  if not value then
    return nil
  end
  local state, owner, print, ends, claimed_in, request_id, flow_id =
    string.match(value, '^(%a)|([^|]*)|(%x*)|(%d+)|(%x*)|([^|]*)|(.*)$')
  if not state then
    return nil
  end
  return {
    state = state,
    owner = owner,
    print = print,
    ends = tonumber(ends),
    claimed_in = claimed_in,
    request_id = request_id,
    flow_id = flow_id,
  }
end

local function write(key, record, expires)
  local value = table.concat({
    record.state,
    record.owner,
    record.print,
    int(record.ends),
    record.claimed_in or '',
    record.request_id,
    record.flow_id,
  }, '|')
  redis.call('SET', key, value, 'PX', expires)
end

-- Notes what a record says about flows, for the looks of all replicas. The record is KEYS[at].
local function note_flow(at, record, expires)
  local key, owner, calls = KEYS[at], KEYS[at + 1], KEYS[at + 2]
  local name = string.sub(key, -32)
  if record.state == 'd' and owner ~= key then
    redis.call('SET', owner, name, 'PX', expires)
  end
  if calls == key then
    return
  elseif record.state == 'o' or record.state == 'u' then
    redis.call('HSET', calls, name, record.state .. '|' .. int(record.ends))
    redis.call('PEXPIRE', calls, expires)
  else
    redis.call('HDEL', calls, name)
  end
end

-- The call of a claim, and the claim's number.
local function call_of(claim)
  local call, number = string.match(claim, '^(.*):(%d+)$')
  return call or claim, tonumber(number) or 0
end

-- The claim of this call among the owners, or nil.
local function claim_of(owners, call)
  for claim in string.gmatch(owners, '%S+') do
    if call_of(claim) == call then
      return claim
    end
  end
  return nil
end

-- Whether a record is of this order. If it is of several calls, their orders may differ: it has the fingerprint of one.
local function is_of_order(record, print, call)
  return record.print == print or claim_of(record.owner, call) ~= nil
end

-- The owners without this claim.
local function without(owners, claim)
  local left = {}
  for other in string.gmatch(owners, '%S+') do
    if other ~= claim then
      left[#left + 1] = other
    end
  end
  return table.concat(left, ' ')
end

-- The owners and this claim, one claim of each call: the latest.
local function with(owners, claim)
  local call, number = call_of(claim)
  local known = claim_of(owners, call)
  if known then
    local _, known_number = call_of(known)
    if known_number >= number then
      return owners
    end
    owners = without(owners, known)
  end
  return owners == '' and claim or owners .. ' ' .. claim
end

-- Whether a replica that has not published yet may know what is missing in the store.
-- `published`: the epoch that this replica has published.
local function is_gated(id, since, published, lease, least_age)
  if NOW < since + least_age or published ~= id then
    return true
  end
  local members = redis.call('HGETALL', KEYS[2])
  for i = 1, #members, 2 do
    local seen, other_published = string.match(members[i + 1], '^(%d+)|(.*)$')
    if members[i] ~= REPLICA and seen and other_published ~= id and NOW < tonumber(seen) + lease then
      return true
    end
  end
  return false
end

-- What readers see: the owner of an open record has died, or was silent for longer than CAMS's answer takes.
local function state_for_readers(record, overdue)
  if record.state == 'o' and NOW > record.ends + overdue then
    return 'u'
  end
  return record.state
end

-- The call of this claim has created nothing. The key is free when no other call is left. The record is KEYS[3].
local function remove_claim(record, claim, expires)
  local left = without(record.owner, claim)
  if left == '' then
    redis.call('DEL', KEYS[3])
    note_flow(3, { state = 'c' }, expires)
  else
    record.owner = left
    write(KEYS[3], record, expires)
  end
end

-- The answer that says what the store has of a key.
local function answer(id, what, record)
  if not record then
    return { id, what }
  end
  return { id, what, record.owner, int(record.ends - NOW), record.request_id, record.flow_id }
end
