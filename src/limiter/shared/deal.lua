-- One lane's tokens, pause and turns, for all replicas together, on the store's clock. Every
-- operation returns the same view of the lane. Times are in microseconds.
--
-- A slot permits one attempt of the replica that it was dealt to. Its date is at most AHEAD from
-- now. It may be used until its date plus its slack; the token counts as used at that time, and is
-- back one window and gap later. A replica that cannot use a slot in time gives it back. The slots
-- of a dead replica are lost until their tokens are back.
--
-- The ring lists when the tokens are back, in order: up to SHORT times in the lane's state
-- (KEYS[1]), more of them in a list (KEYS[2]). A lane has `count` tokens; those that are not listed
-- are free. Dealing a slot appends the time when its token is back, and removes the first time if
-- there are more than `count`. The first time is never later than the slot's date, so a token's
-- time is only replaced by a later one, and no window contains more than `count` uses. A time
-- becomes earlier only if a slot was given back unused, and then it is the slot's date. If fewer
-- tokens are usable than `count`, the date follows from the last `usable` times; the others are
-- older.
--
-- The cost of a step does not depend on `count`, except after a change of the limit or of the
-- clock.
--
-- Replicas take turns by the clients that wait there: a client's weight is divided among the
-- replicas at which it waits, in proportion to its waiting tenants at each. A replica that has
-- waited for as many grants as there are replicas with waiting calls is served first, so each of R
-- such replicas has a slot at least every 2 R grants.

local state, ring = KEYS[1], KEYS[2]
local op, me, pace, waiting, unused, late = ARGV[1], ARGV[2], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
-- All numbers are in one argument, because each argument costs as much as a step of the script. The
-- constants in capitals are defined in protocol.rs.
local number = cmsgpack.unpack(ARGV[3])
local AHEAD, LEAD, VANISHED_AFTER, ASK, SOON, PROBE_TIMEOUT, SLOTS, KEPT, DEPTH, SHORT, LISTED, SAMPLES = unpack(number, 1, 12)
local count, limit_window, tokens, window, gap, slack, cap, wanted, max_pause, version, pace_lives, spacing =
  unpack(number, 13, 24)
local NOT_NEEDED, DUE, OUT = 0, 1, 2

local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])

-- The state is stored as arrays, because field names would be most of its bytes.
--
-- A lane:
--   paused_until  no slot is dated before it
--   level         episodes in a row
--   known_at      when the latest episode was reported
--   probe         state of the probe: NOT_NEEDED, DUE or OUT
--   probe_at      date of the probe
--   dated         date of the latest slot
--   reach         the furthest that a listed time was ahead
--   length        listed times in the ring
--   last          the last listed time
--   list_expires  when the list expires
--
-- A replica:
--   wanted     calls without a slot
--   pass       virtual time of the replica's turn
--   last       the lane's grants at the replica's latest grant
--   slots      dealt, not fetched

local function pack_replica(it)
  return { it.seen, it.gap, it.slack, it.wanted, it.pass, it.last, it.clients, it.slots }
end
local function unpack_replica(it)
  return { seen = it[1], gap = it[2], slack = it[3], wanted = it[4], pass = it[5], last = it[6], clients = it[7], slots = it[8] }
end

-- The last value of a lane's array. It changes with the fields above.
local FORMAT = 2

local lane, short
local kept = redis.call('GET', state)
local is_read, it
if kept then is_read, it = pcall(cmsgpack.unpack, kept) end
if is_read and type(it) == 'table' and it[19] == FORMAT then
  lane = { count = it[1], window = it[2], grants = it[3], paused_until = it[4], level = it[5], known_at = it[6], probe = it[7],
    probe_at = it[8], dated = it[9], reach = it[10], pace = it[11], pace_until = it[12], version = it[13],
    length = it[14], last = it[15], replicas = it[16], list_expires = it[18] }
  short = it[17]
  for id, replica in pairs(lane.replicas) do lane.replicas[id] = unpack_replica(replica) end
else
  -- What cannot be read may have counted uses: no slot is dated before they have all ended.
  local paused_until = kept and now + window + gap + slack or 0
  lane = { count = count, window = limit_window, grants = 0, paused_until = paused_until, level = 0, known_at = 0, probe = NOT_NEEDED,
    probe_at = 0, dated = 0, reach = 0, pace = '', pace_until = 0, version = 0, length = 0, last = 0, replicas = {},
    list_expires = 0 }
  short = {}
end

-- The ring: the number of listed times, and the last one. If all tokens are back, the list is
-- treated as empty.
local length, last = lane.length, lane.last
-- Whether the times are in the list (KEYS[2]).
local is_long = length > #short
if last <= now then
  if is_long then redis.call('DEL', ring) end
  length, last, short, is_long, lane.list_expires = 0, 0, {}, false, 0
end

local function text(time) return string.format('%.0f', time) end
-- Times that were read from the list, by their index before `removed` first ones were removed. Each
-- read is a command, so one may read `ahead` more.
local looked_up, removed = {}, 0
-- The time at an index from the start, beginning with 1.
local function listed(index, ahead)
  if not is_long then return short[index] end
  if index == length then return last end
  if not looked_up[removed + index] then
    local first, final = index - 1, math.min(index - 1 + ahead, length - 1)
    -- Counted from the nearer end, because a read costs the distance from the end.
    if 2 * index > length then first, final = first - length, final - length end
    for offset, time in ipairs(redis.call('LRANGE', ring, first, final)) do
      looked_up[removed + index - 1 + offset] = tonumber(time)
    end
  end
  return looked_up[removed + index] or 0
end
local function last_listed(most)
  if is_long then return redis.call('LRANGE', ring, -most, -1) end
  return { unpack(short, math.max(length - most, 0) + 1) }
end

-- Replaces the list.
local function list(times)
  redis.call('DEL', ring)
  looked_up = {}
  length, last, is_long = #times, times[#times] or 0, #times > SHORT
  short = is_long and {} or times
  if is_long then
    for first = 1, length, 1000 do
      local texts = {}
      for index = first, math.min(first + 999, length) do texts[#texts + 1] = text(times[index]) end
      redis.call('RPUSH', ring, unpack(texts))
    end
  end
  lane.list_expires = 0
end

-- A changed limit keeps the uses of the former one: with fewer tokens, those that are back last are
-- kept; with more, the additional ones are back with the last. While the replicas have different
-- limits, this happens repeatedly and excludes none.
if lane.count ~= count or lane.window ~= limit_window then
  local longer, times = limit_window - lane.window, {}
  local all = last_listed(count)
  for index, back in ipairs(all) do times[index] = tonumber(back) + longer end
  if #all > 0 then
    for _ = 1, math.min(count - lane.count, count - #all) do times[#times + 1] = times[#all] end
  end
  list(times)
  lane.count, lane.window, lane.reach = count, limit_window, math.max(lane.reach + longer, 0)
  -- Dealt slots that were not fetched count as used.
  for _, replica in pairs(lane.replicas) do
    replica.wanted, replica.slots = replica.wanted + #replica.slots, {}
  end
end

-- A clock that has gone back, for example after a failover, must not exclude a replica: times that
-- are further ahead than they can be are cut to their bound.
if last > now + lane.reach then
  local times = last_listed(length)
  for index, back in ipairs(times) do times[index] = math.min(tonumber(back), now + lane.reach) end
  list(times)
end
lane.paused_until = math.min(lane.paused_until, now + max_pause)
lane.known_at = math.min(lane.known_at, now)
lane.dated = math.min(lane.dated, now + AHEAD)
lane.probe_at = math.min(lane.probe_at, now + max_pause)

-- Adds the time when a token is back. In a long ring a time before the last is raised to the last.
local function add(back)
  if back < last and length > DEPTH then back = last end
  if not is_long then
    local index = length + 1
    while index > 1 and short[index - 1] > back do index = index - 1 end
    table.insert(short, index, back)
  elseif back >= last then
    -- Redis deletes an empty list together with its expiry.
    if redis.call('RPUSH', ring, text(back)) == 1 then lane.list_expires = 0 end
  else
    local low, high = 1, length
    while low < high do
      local middle = math.floor((low + high) / 2)
      if listed(middle, 0) > back then high = middle else low = middle + 1 end
    end
    redis.call('LINSERT', ring, 'BEFORE', redis.call('LINDEX', ring, low - 1) or '', text(back))
    looked_up = {}
  end
  length, last = length + 1, math.max(last, back)
  if length > count then
    if is_long then redis.call('LPOP', ring) else table.remove(short, 1) end
    length, removed = count, removed + 1
  end
  if not is_long and length > SHORT then list(short) end
  lane.reach = math.max(lane.reach, back - now)
end

-- Removes the last time that equals the given one, if it is among the last DEPTH.
local function take_out(back)
  if is_long then
    if not redis.call('LPOS', ring, text(back), 'RANK', -1, 'MAXLEN', DEPTH) then return false end
    redis.call('LREM', ring, -1, text(back))
  else
    local index = length
    while index > 0 and short[index] ~= back do index = index - 1 end
    if index == 0 then return false end
    table.remove(short, index)
  end
  length, looked_up = length - 1, {}
  if back == last then
    last = short[length] or is_long and tonumber(redis.call('LINDEX', ring, -1) or 0) or 0
  end
  return true
end

local function free(slot)
  if take_out(slot.back) and slot.at > now then add(slot.at) end
end

local function probe_due_again()
  if lane.probe == OUT then lane.probe = DUE end
end

local function give_back(slot)
  free(slot)
  if slot.probe == 1 then probe_due_again() end
end

-- Slots that were not used

for at, back, _, probe in string.gmatch(unused, '(%d+):(%d+):(%d+):(%d)') do
  give_back({ at = tonumber(at), back = tonumber(back), probe = tonumber(probe) })
end

-- The present replicas

for id, replica in pairs(lane.replicas) do
  replica.seen = math.min(replica.seen, now)
  if now - replica.seen > VANISHED_AFTER then
    for _, slot in ipairs(replica.slots) do give_back(slot) end
    lane.replicas[id] = nil
  end
end
local function lowest()
  local least
  for id, replica in pairs(lane.replicas) do
    if id ~= me and replica.wanted > 0 and (not least or replica.pass < least) then least = replica.pass end
  end
  return least or 0
end
local mine = lane.replicas[me]
if not mine or mine.wanted == 0 then
  mine = mine or { slots = {}, pass = 0 }
  mine.pass, mine.last = math.max(mine.pass, lowest()), lane.grants
end
lane.replicas[me] = mine
mine.seen, mine.gap, mine.slack, mine.clients = now, gap, slack, {}
for client, weight, tenants in string.gmatch(waiting, '(%x+):(%d+):(%d+)') do
  mine.clients[client] = { tonumber(weight), tonumber(tenants) }
end
if wanted == 0 then
  for _, slot in ipairs(mine.slots) do give_back(slot) end
  mine.slots = {}
end
mine.wanted = math.max(wanted - #mine.slots, 0)

for _, replica in pairs(lane.replicas) do gap = math.max(gap, replica.gap) end
local function away(replica) return window + gap + replica.slack end

-- A slot that was used too late counts from its use. If its token was used again meanwhile, it
-- costs the token that is back first.
for _, back, _, _, used in string.gmatch(late, '(%d+):(%d+):(%d+):(%d):(%d+)') do
  back, used = tonumber(back), math.min(tonumber(used), now)
  take_out(back)
  add(math.max(back, used + window + gap))
end

-- The pace: a replica that has computed with an earlier one gets no slots.

local stale = version ~= lane.version
if pace ~= '' and not stale then
  lane.pace, lane.pace_until, lane.version = pace, now + pace_lives, math.max(lane.version + 1, now)
end

-- The operation

-- Whether an attempt of that date was dealt after the latest episode began. No date is within a pause. Dates are in the
-- future, so a date after the refusal may have been dealt before it.
local function is_after_the_pause(at) return at > lane.known_at and at >= lane.paused_until end

local episode = 0
if op == 'throttled' then
  local at, new, same = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
  if is_after_the_pause(at) then episode = 1 end
  -- Without a pause the refusal is isolated, and the lane continues.
  if new >= 0 then
    local pause = episode == 1 and new or same
    local open = now + math.min(pause, max_pause)
    if episode == 1 then lane.known_at, lane.level = now, lane.level + 1 end
    -- Only a hint extends the pause of a known episode.
    if episode == 1 or (pause >= 0 and open > lane.paused_until) then
      lane.probe = DUE
      lane.paused_until = math.max(lane.paused_until, open)
    end
    if episode == 1 then
      -- Dealt slots that were not fetched must not be used before the pause ends.
      for _, replica in pairs(lane.replicas) do
        for _, slot in ipairs(replica.slots) do free(slot) end
        replica.wanted, replica.slots = replica.wanted + #replica.slots, {}
      end
    end
  end
elseif op == 'ended' then
  -- The end of an attempt that was not throttled: answered, unknown, or a probe that was never
  -- sent.
  local at, back, _, probe = string.match(ARGV[8], '(%d+):(%d+):(%d+):(%d)')
  local how = ARGV[9]
  if how == 'answered' and is_after_the_pause(tonumber(at)) then lane.level = 0 end
  if probe == '1' then
    if how == 'unsent' then
      probe_due_again()
    elseif lane.probe == OUT then
      lane.probe = NOT_NEEDED
      -- The probe's token counts from its answer.
      back = tonumber(back)
      if take_out(back) then add(math.max(back, now + away(mine))) end
    end
  end
end

-- Which replica is next?

local ids, tenants_of, weight_of = {}, {}, {}
for id, replica in pairs(lane.replicas) do
  ids[#ids + 1] = id
  for client, brings in pairs(replica.clients) do
    tenants_of[client] = (tenants_of[client] or 0) + brings[2]
  end
end
table.sort(ids)
local dealt, kept_slots = 0, 0
for _, replica in pairs(lane.replicas) do
  local weight = 0
  for client, brings in pairs(replica.clients) do
    weight = weight + brings[1] * brings[2] / tenants_of[client]
  end
  weight_of[replica] = math.max(weight, 0.01)
  if replica ~= mine then kept_slots = kept_slots + #replica.slots end
end

local function next_replica()
  local with_work, chosen, overdue = 0, nil, nil
  for _, id in ipairs(ids) do
    if lane.replicas[id].wanted > 0 then with_work = with_work + 1 end
  end
  for _, id in ipairs(ids) do
    local replica = lane.replicas[id]
    if replica.wanted > 0 and (replica == mine or kept_slots < KEPT) then
      local waited = lane.grants - replica.last
      if waited >= with_work and (not overdue or waited > lane.grants - overdue.last) then overdue = replica end
      if not chosen or replica.pass < chosen.pass then chosen = replica end
    end
  end
  return overdue or chosen
end

-- The earliest date of the next slot, and whether it may be dealt.
local usable = math.min(tokens, cap, count)
local function next_date()
  local at = math.max(now, lane.paused_until)
  if length >= usable then at = math.max(at, listed(length - usable + 1, math.min(wanted, SLOTS))) end
  if spacing > 0 then at = math.max(at, lane.dated + spacing) end
  local waits_for_probe = lane.probe == OUT and now < lane.probe_at + PROBE_TIMEOUT
  if waits_for_probe then at = math.max(at, lane.probe_at + PROBE_TIMEOUT) end
  return at, not waits_for_probe and at <= now + AHEAD
end

while usable > 0 and not stale and dealt < SLOTS do
  local replica = next_replica()
  if not replica then break end
  local at, may = next_date()
  if not may then break end
  local slot = { at = at, back = at + away(replica), slack = replica.slack, probe = 0 }
  if slot.back < last and length > DEPTH then slot.back = last end
  add(slot.back)
  lane.dated = at
  if lane.probe == DUE then
    lane.probe, lane.probe_at, slot.probe = OUT, at, 1
  end
  replica.slots[#replica.slots + 1] = slot
  if replica ~= mine then kept_slots = kept_slots + 1 end
  dealt, lane.grants = dealt + 1, lane.grants + 1
  replica.pass, replica.last = replica.pass + 1 / weight_of[replica], lane.grants
  replica.wanted = replica.wanted - 1
end

-- The answer

local fetched, ask, share = {}, 0, 1000000
local function fetch(slot)
  local n = #fetched
  fetched[n + 1], fetched[n + 2], fetched[n + 3], fetched[n + 4] = slot.at, slot.back, slot.slack, slot.probe
end
if not stale then
  for _, slot in ipairs(mine.slots) do
    if slot.at >= now then
      fetch(slot)
    elseif take_out(slot.back) then
      -- It was kept for too long: its date becomes now.
      slot.at, slot.back, slot.slack = now, now + away(mine), slack
      if slot.back < last and length > DEPTH then slot.back = last end
      add(slot.back)
      fetch(slot)
    else
      if slot.probe == 1 then probe_due_again() end
      mine.wanted = mine.wanted + 1
    end
  end
  mine.slots = {}
end
local active, weights = 0, 0
for _, replica in pairs(lane.replicas) do
  if replica.wanted > 0 or replica == mine then
    active, weights = active + 1, weights + weight_of[replica]
  end
end
share = math.floor(1000000 * math.max(weight_of[mine] / weights, 1 / (2 * active)))
if mine.wanted > 0 then
  ask = ASK
  if usable > 0 and (active == 1 or dealt == SLOTS) then
    local at = next_date()
    ask = math.min(math.max(at - LEAD - now, SOON), VANISHED_AFTER - 2 * ASK)
  end
end

-- Of a long ring, evenly spaced samples are returned, because each costs a read of the list.
local used, back = 0, {}
if usable > 0 and last > now then
  used = math.min(usable, length)
  if used <= LISTED then
    back = last_listed(used)
  else
    for sample = 0, SAMPLES - 1 do
      back[sample + 1] = listed(length - used + 1 + math.floor(sample * (used - 1) / (SAMPLES - 1) + 0.5), 0)
    end
  end
end

-- The key expires when all tokens are back, the pause is over and what was learned has decayed.
local lives = math.max(last - now, 0) + 2 * VANISHED_AFTER
if lane.level > 0 or lane.probe ~= NOT_NEEDED then lives = lives + math.max(lane.paused_until - now, 0) + max_pause end
lives = math.ceil(math.max(lives, lane.paused_until - now, lane.pace_until - now) / 1000)
-- The list lives at least as long as the state. It is prolonged by twice that, so that few steps do it. A list that
-- outlives its state is deleted before the next one is written.
if is_long and lane.list_expires < now + lives * 1000 then
  redis.call('PEXPIRE', ring, 2 * lives)
  lane.list_expires = now + 2000 * lives
end
local replicas = {}
for id, replica in pairs(lane.replicas) do replicas[id] = pack_replica(replica) end
redis.call('SET', state, cmsgpack.pack({ lane.count, lane.window, lane.grants, lane.paused_until, lane.level, lane.known_at, lane.probe,
  lane.probe_at, lane.dated, lane.reach, lane.pace, lane.pace_until, lane.version, length, last, replicas, short,
  lane.list_expires, FORMAT }), 'PX', lives)

return {
  { now, lane.paused_until, lane.level, episode, stale and 1 or 0, lane.version, gap, away(mine), usable, mine.wanted, ask, share, used },
  lane.pace, back, fetched
}
