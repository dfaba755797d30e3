-- One lane's tokens, pause and pace, for all replicas together, on the store's clock. Every operation answers the same
-- view. Times are microseconds.
--
-- A slot is the right to send one attempt, dated at most `ahead` from now, by the replica that it was dealt to. It is of
-- use until its date plus the slack: the token counts as used then, and is back one window and gap later. Who cannot use a
-- slot in time gives it back, and what a dead replica had is lost with its dates.
--
-- Replicas take turns by who waits there: each client brings its weight, dealt out over the replicas at which it waits by
-- how many of its tenants wait at each. Whoever has waited for as many grants as there are replicas with work goes before:
-- with R of them each has a slot at least every 2 R grants.

local op, me = ARGV[1], ARGV[2]
local count, window, base_gap, max_gap, slack = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local cap, wanted, waiting, max_pause = tonumber(ARGV[8]), tonumber(ARGV[9]), ARGV[10], tonumber(ARGV[11])
local unused, ahead = ARGV[12], tonumber(ARGV[13])

-- The longest silence after which a replica is still dealt to; how often it asks while others have work, too.
local SILENCE, ASK = 600000, 100000
-- As in queue/learn.rs and queue/pause.rs.
local WIDER, BEFORE_NARROWING, NARROWING, WINDOWS_PER_TOKEN, STEPS, PATIENCE = 10000, 10000000, 5000, 12, 5, 1000000
local NOT_NEEDED, DUE, OUT = 0, 1, 2

local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])

local function fresh()
  local back = {}
  for token = 1, count do back[token] = 0 end
  return { count = count, window = window, back = back, replicas = {}, grants = 0, open = 0, probe = NOT_NEEDED, probe_at = 0, known = 0,
    level = 0, gap = base_gap, tokens = count, quiet = 0 }
end

local kept = redis.call('GET', KEYS[1])
local lane = kept and cmsgpack.unpack(kept) or fresh()

-- Another limit keeps the uses of the former: of fewer tokens those that are back last, and more of them are back with the
-- last. While some replicas have the one limit and some the other, that goes back and forth and nobody is locked out.
if lane.count ~= count or lane.window ~= window then
  local back = {}
  for token = 1, lane.count do back[token] = lane.back[token] + window - (lane.window or window) end
  table.sort(back)
  local last = back[lane.count]
  while #back > count do table.remove(back, 1) end
  while #back < count do table.insert(back, last) end
  lane.back, lane.count, lane.window = back, count, window
  lane.gap, lane.tokens, lane.quiet = base_gap, count, 0
  -- What was dealt and not fetched counts as used.
  for _, replica in pairs(lane.replicas) do
    replica.wanted, replica.slots = replica.wanted + #replica.slots, {}
  end
end

-- Pace, as learned: queue/learn.rs.

local step = math.ceil(count / STEPS)
local per_step = math.max(window, 1000000) * WINDOWS_PER_TOKEN

local function pace()
  if lane.quiet == 0 then return lane.gap, lane.tokens end
  local quiet = math.max(now - lane.quiet, 0)
  local tokens = math.min(lane.tokens + math.floor(quiet / per_step) * step, count)
  local whole_after = math.ceil((count - lane.tokens) / step) * per_step
  local narrowed = math.max(quiet - math.max(whole_after, BEFORE_NARROWING), 0) / NARROWING
  return math.max(math.floor(lane.gap - narrowed), base_gap), tokens
end

-- A clock that has gone back, after a failover say, must not lock anybody out: what lies further ahead than it can counts
-- as used, seen or known now.
local away = window + pace() + slack
for token = 1, count do
  if lane.back[token] > now + ahead + window + max_gap + slack then lane.back[token] = now + away end
end
lane.open = math.min(lane.open, now + max_pause)
lane.quiet = math.min(lane.quiet, now + max_pause)
lane.known = math.min(lane.known, now)
lane.probe_at = math.min(lane.probe_at, now + max_pause)
for id, replica in pairs(lane.replicas) do
  replica.seen = math.min(replica.seen, now)
  if now - replica.seen > SILENCE then lane.replicas[id] = nil end
end

-- Slots

local function free(slot)
  if lane.back[slot.token] == slot.back then lane.back[slot.token] = slot.at end
end

local function stamp(slot, at)
  slot.at, slot.back = at, at + away
  lane.back[slot.token] = slot.back
end

local function unprobed()
  if lane.probe == OUT then lane.probe = DUE end
end

for token, at, back, probe in string.gmatch(unused, '(%d+):(%d+):(%d+):(%d)') do
  free({ token = tonumber(token), at = tonumber(at), back = tonumber(back) })
  if probe == '1' then unprobed() end
end

-- What the operation says

-- Whether an attempt of that date was dealt after the latest episode began: none is dated into a pause. Dates lie ahead, so
-- one that is later than the refusal alone may have been dealt before it.
local function is_after_the_pause(at) return at > lane.known and at >= lane.open end

local episode = 0
if op == 'throttled' then
  local granted, hint = tonumber(ARGV[14]), tonumber(ARGV[15])
  local backoff = { base = tonumber(ARGV[16]), max = tonumber(ARGV[17]), random = tonumber(ARGV[18]) }
  if is_after_the_pause(granted) then
    episode = 1
    lane.known, lane.level = now, lane.level + 1
  end
  local wait = math.min(hint, max_pause)
  if hint < 0 then
    local doubled = math.min(backoff.base * 2 ^ math.min(lane.level - 1, 20), backoff.max)
    wait = math.max(math.floor(doubled * backoff.random), 1000)
  end
  -- Only a hint makes the pause of a known episode longer.
  if episode == 1 or (hint >= 0 and now + wait > lane.open) then
    lane.probe = DUE
    lane.open = math.max(lane.open, now + wait)
  end
  if episode == 1 then
    lane.gap, lane.tokens = pace()
    if lane.gap < max_gap then
      lane.gap = math.min(lane.gap + WIDER, max_gap)
    else
      lane.tokens = math.max(lane.tokens - step, 1)
    end
    lane.quiet = lane.open
    -- What was dealt and not fetched is not to be sent before the pause ends.
    for _, replica in pairs(lane.replicas) do
      for _, slot in ipairs(replica.slots) do free(slot) end
      replica.wanted, replica.slots = replica.wanted + #replica.slots, {}
    end
  else
    lane.gap = math.min(lane.gap + WIDER, max_gap)
  end
elseif op == 'ended' then
  -- An attempt has an end that is no refusal: answered or unknown; or, as a probe, never left.
  local token, at, back, probe, how = tonumber(ARGV[14]), tonumber(ARGV[15]), tonumber(ARGV[16]), ARGV[17], ARGV[18]
  if how == 'answered' and is_after_the_pause(at) then lane.level = 0 end
  if probe == '1' then
    if how == 'unsent' then
      unprobed()
    elseif lane.probe == OUT then
      lane.probe = NOT_NEEDED
      -- The probe's token counts from its answer.
      if lane.back[token] == back then lane.back[token] = now + away end
    end
  end
end

local gap, tokens = pace()
away = window + gap + slack
local usable = math.min(tokens, cap)

-- Who has work

local mine = lane.replicas[me]
local function lowest()
  local least
  for id, replica in pairs(lane.replicas) do
    if id ~= me and replica.wanted > 0 and (not least or replica.pass < least) then least = replica.pass end
  end
  return least or 0
end
if wanted >= 0 then
  if not mine or mine.wanted == 0 then
    mine = mine or { slots = {}, pass = 0 }
    mine.pass, mine.last = math.max(mine.pass, lowest()), lane.grants
  end
  mine.seen, mine.clients = now, {}
  for client, weight, tenants in string.gmatch(waiting, '(%x+):(%d+):(%d+)') do
    mine.clients[client] = { tonumber(weight), tonumber(tenants) }
  end
  mine.wanted = math.max(wanted - #mine.slots, 0)
  lane.replicas[me] = mine
end

local tenants_of = {}
for _, replica in pairs(lane.replicas) do
  for client, brings in pairs(replica.clients) do
    tenants_of[client] = (tenants_of[client] or 0) + brings[2]
  end
end
for _, replica in pairs(lane.replicas) do
  replica.weight = 0
  for client, brings in pairs(replica.clients) do
    replica.weight = replica.weight + brings[1] * brings[2] / tenants_of[client]
  end
  replica.weight = math.max(replica.weight, 0.01)
end

-- Whose turn is it?

local function next_replica()
  local ids, chosen = {}, nil
  for id, replica in pairs(lane.replicas) do
    if replica.wanted > 0 then ids[#ids + 1] = id end
  end
  table.sort(ids)
  local overdue
  for _, id in ipairs(ids) do
    local replica = lane.replicas[id]
    local waited = lane.grants - replica.last
    if waited >= #ids and (not overdue or waited > lane.grants - overdue.last) then overdue = replica end
    if not chosen or replica.pass < chosen.pass then chosen = replica end
  end
  return overdue or chosen
end

local function next_token()
  local order = {}
  for token = 1, count do order[token] = token end
  table.sort(order, function(a, b)
    if lane.back[a] == lane.back[b] then return a < b end
    return lane.back[a] < lane.back[b]
  end)
  return order[count - usable + 1]
end

-- When the next slot can be, and whether it may be dealt.
local function next_slot()
  local token = next_token()
  local at = math.max(lane.back[token], now, lane.open)
  local waits_for_probe = lane.probe == OUT and now < lane.probe_at + PATIENCE
  if waits_for_probe then at = math.max(at, lane.probe_at + PATIENCE) end
  return token, at, not waits_for_probe and at <= now + ahead
end

while usable > 0 do
  local replica = next_replica()
  if not replica then break end
  local token, at, may = next_slot()
  if not may then break end
  local slot = { token = token, probe = 0 }
  stamp(slot, at)
  if lane.probe == DUE then
    lane.probe, lane.probe_at, slot.probe = OUT, at, 1
  end
  replica.slots[#replica.slots + 1] = slot
  lane.grants = lane.grants + 1
  replica.pass, replica.last = replica.pass + 1 / replica.weight, lane.grants
  replica.wanted = replica.wanted - 1
end

-- The answer

local fetched = {}
local ask, part = 0, 1000000
if mine then
  for _, slot in ipairs(mine.slots) do
    if slot.at >= now then
      fetched[#fetched + 1] = slot
    elseif lane.back[slot.token] == slot.back then
      stamp(slot, now)
      fetched[#fetched + 1] = slot
    else
      if slot.probe == 1 then unprobed() end
      mine.wanted = mine.wanted + 1
    end
  end
  mine.slots = {}
  local working, weights = 0, 0
  for _, replica in pairs(lane.replicas) do
    if replica.wanted > 0 or replica == mine then
      working, weights = working + 1, weights + replica.weight
    end
  end
  part = math.floor(1000000 * math.max(mine.weight / weights, 1 / (2 * working)))
  if mine.wanted > 0 then
    ask = ASK
    if working == 1 and usable > 0 then
      local _, at = next_slot()
      ask = math.min(math.max(at - ahead - now, 2000), SILENCE - 2 * ASK)
    end
  end
end

local replies = { now, lane.open, lane.gap, lane.tokens, lane.quiet, lane.level, lane.probe, lane.known, gap, usable, ask, part, episode, #fetched }
for _, slot in ipairs(fetched) do
  for _, value in ipairs({ slot.token, slot.at, slot.back, slot.probe }) do replies[#replies + 1] = value end
end
for token = 1, count do replies[#replies + 1] = lane.back[token] end

-- Trouble is remembered until nothing of it is left, tokens until all are back.
local latest = now
for token = 1, count do latest = math.max(latest, lane.back[token]) end
local troubled = lane.quiet > 0 and (gap > base_gap or tokens < count or lane.level > 0 or lane.probe ~= NOT_NEEDED)
local lives = latest - now + 2 * SILENCE
if troubled then lives = lives + math.max(lane.open - now, 0) + max_pause + per_step * STEPS + max_gap * NARROWING end
redis.call('SET', KEYS[1], cmsgpack.pack(lane), 'PX', math.ceil(lives / 1000))
return replies
