//! Random histories of one lane, with a driver, an endpoint and a store that act at the worst
//! moment. The invariants are checked after every step and at the end.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::limiter::shared::protocol::{AHEAD, AttemptEnd, Op, Pauses};

static RULES: LazyLock<Rules> = LazyLock::new(|| {
    let mut rules = rules();
    rules.bounds.max_waiting = 150;
    rules.bounds.max_waiting_per_client = 60;
    rules
});

const CLIENTS: [(&str, u32); 4] = [("a", 1), ("b", 1), ("c", 2), ("d", 5)];
/// The hold of patient calls, which must be answered before it ends.
const PATIENT: Duration = Duration::from_secs(200_000);
const WINDOWS: [u64; 3] = [1000, 200, 5000];

/// The parameters of a history. Probabilities are in thousandths.
#[derive(Clone, Copy, Debug)]
struct History {
    seed: u64,
    count: u32,
    window: u64,
    has_store: bool,
    calls: usize,
    /// The probability of each attempt to be throttled.
    refused: u32,
    late: u32,
    unsent: u32,
    /// The probability of each request to fail.
    unanswered: u32,
    /// The number of changes of the source and the limit, and of operators' commands.
    changes: usize,
    drains: bool,
}

fn history() -> impl Strategy<Value = History> {
    let lane = (
        any::<u64>(),
        prop_oneof![Just(1_u32), Just(5), Just(200), Just(10_000)],
        0..WINDOWS.len(),
        any::<bool>(),
    );
    let trouble = (
        0..200_u32,
        0..100_u32,
        0..100_u32,
        0..200_u32,
        0..12_usize,
        proptest::bool::weighted(0.2),
    );
    (lane, trouble, 5..160_usize).prop_map(|((seed, count, window, has_store), trouble, calls)| {
        let (refused, late, unsent, unanswered, changes, drains) = trouble;
        let calls = if count == 200 { 4 * calls } else { calls };
        History {
            seed,
            count,
            window: WINDOWS[window],
            has_store,
            calls,
            refused,
            late,
            unsent,
            unanswered,
            changes,
            drains,
        }
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Outside,
    Waiting,
    Granted,
    Sent,
    Over,
}

struct Call {
    entry: QueueEntry,
    send_by: Instant,
    is_patient: bool,
    state: State,
    grant: Option<Grant>,
    /// The index of the limit under which the grant was made.
    era: usize,
}

/// A scheduled event.
enum Due {
    Arrive(usize),
    /// The caller disconnects, or its hold is over.
    Leave(usize),
    /// The permit is used.
    Begin(usize),
    Write(usize),
    Report(usize, Instant),
    End(usize, Instant),
    Received(Box<StoreRequest>, Instant),
    Answered(PendingRequest, Option<Box<Answer>>),
    Connection,
    Change,
    Resume,
}

struct Write {
    at: Instant,
    era: usize,
}

struct Driver {
    history: History,
    random: fastrand::Rng,
    origin: Instant,
    now: Instant,
    lane: Lane<usize>,
    drain_by: Option<Instant>,
    calls: Vec<Call>,
    due: BTreeMap<(Instant, u64), Due>,
    scheduled: u64,
    wake: Option<Instant>,
    has_connection: bool,
    is_connecting: bool,
    store: Store,
    requests: usize,
    /// A slot was used too late, and the store has not acknowledged the report.
    is_unreported: bool,
    limits: Vec<Limit>,
    writes: Vec<Write>,
    granted: u64,
    written: u64,
    returned: u64,
    held: u32,
    /// For each waiting client (first index): how often each other client (second index) was served
    /// since the first one was served last.
    served_since: [[u32; CLIENTS.len()]; CLIENTS.len()],
}

// === impl Driver ===

impl Driver {
    fn new(history: History) -> Self {
        let origin = Instant::now();
        let limit = limit(history.count, history.window);
        let lane = Lane::new(limit, RULES.learn, origin - ms(20_000), origin);
        let mut driver = Self {
            history,
            random: fastrand::Rng::with_seed(history.seed),
            origin,
            now: origin,
            lane,
            drain_by: None,
            calls: Vec::new(),
            due: BTreeMap::new(),
            scheduled: 0,
            wake: None,
            has_connection: true,
            is_connecting: false,
            store: Store::default(),
            requests: 0,
            is_unreported: false,
            limits: vec![limit],
            writes: Vec::new(),
            granted: 0,
            written: 0,
            returned: 0,
            held: 0,
            served_since: Default::default(),
        };
        driver.plan();
        driver
    }

    /// Schedules bursts of arrivals and the changes.
    fn plan(&mut self) {
        let mut at = self.now;
        for number in 0..self.history.calls {
            if self.random.u32(0..8) == 0 {
                at += ms(self.random.u64(0..2 * self.history.window));
            }
            let (client, weight) = CLIENTS[self.random.usize(..CLIENTS.len())];
            let tenant = TenantId::new(["x", "y"][self.random.usize(..2)]);
            let entry = QueueEntry {
                sequence: Sequence(number as u64),
                client: ClientId::new(client),
                weight,
                tenant,
                arrived: at,
            };
            let is_patient = self.random.bool();
            let hold = if is_patient {
                PATIENT
            } else {
                ms(self.random.u64(0..20 * self.history.window))
            };
            let send_by = at + hold;
            self.calls.push(Call {
                entry,
                send_by,
                is_patient,
                state: State::Outside,
                grant: None,
                era: 0,
            });
            self.at(at, Due::Arrive(number));
            if !is_patient && self.random.u32(0..5) == 0 {
                let leaves = at + hold.mul_f64(self.random.f64());
                self.at(leaves, Due::Leave(number));
            }
        }
        if self.history.has_store {
            self.change_source(QuotaSource::Store { since: self.now });
        }
        for _ in 0..self.history.changes {
            let change_at = self.origin + (at - self.origin).mul_f64(1.5 * self.random.f64());
            self.at(change_at, Due::Change);
        }
        if self.history.drains {
            self.drain_by = Some(at + ms(self.random.u64(0..10_000)));
        }
    }

    fn at(&mut self, at: Instant, due: Due) {
        self.scheduled += 1;
        self.due.insert((at.max(self.now), self.scheduled), due);
    }

    fn after(&mut self, time: Duration, due: Due) {
        self.at(self.now + time, due);
    }

    /// Returns true with a probability of `thousandths` / 1000.
    fn chance(&mut self, thousandths: u32) -> bool {
        self.random.u32(0..1000) < thousandths
    }

    fn cx(&self) -> Context<'static> {
        Context {
            now: self.now,
            rules: &RULES,
            drain_by: self.drain_by,
        }
    }

    /// Runs until no event is scheduled.
    fn run(&mut self) {
        self.work();
        for step in 0.. {
            assert!(step < 200_000, "the history never ends");
            let due_at = self.due.first_key_value().map(|((at, _), _)| *at);
            let Some(at) = due_at.into_iter().chain(self.wake).min() else {
                break;
            };
            self.now = self.now.max(at);
            if due_at == Some(at) {
                let (_, due) = self.due.pop_first().unwrap();
                self.happens(due);
                self.check();
            }
            self.work();
            self.check();
        }
        assert_eq!(
            (self.held, self.requests, self.lane.queue().len()),
            (0, 0, 0)
        );
        assert!(
            self.calls.iter().all(|call| call.state == State::Over),
            "a call is lost"
        );
        self.check_windows();
    }

    fn happens(&mut self, due: Due) {
        match due {
            Due::Arrive(call) => self.arrive(call, false),
            Due::Leave(call) => {
                if self.calls[call].state == State::Waiting {
                    assert!(
                        !self.calls[call].is_patient,
                        "a patient call was not answered in time"
                    );
                    self.calls[call].state = State::Over;
                    let entry = self.calls[call].entry.clone();
                    self.event(Event::Cancelled(entry));
                }
            }
            Due::Begin(call) => self.begin(call),
            Due::Write(call) => self.write(call),
            Due::Report(call, at) => self.report(call, at),
            Due::End(call, at) => self.end(call, at),
            Due::Received(request, sent) => self.received(*request, sent),
            Due::Answered(pending, answer) => {
                self.requests -= 1;
                if answer.is_some() && !pending.slot_request.late.is_empty() {
                    self.is_unreported = false;
                }
                self.event(Event::StoreAnswered {
                    request: pending,
                    answer,
                });
            }
            Due::Connection => {
                self.has_connection = true;
                self.is_connecting = false;
            }
            Due::Change => self.change(),
            Due::Resume => self.event(Event::Resumed),
        }
    }

    fn event(&mut self, event: Event<usize>) {
        let effects = self.lane.handle(event, self.cx());
        self.carry_out(effects, false);
    }

    fn arrive(&mut self, number: usize, returning: bool) {
        let entry = self.calls[number].entry.clone();
        let send_by = self.calls[number].send_by;
        assert_eq!(self.calls[number].state, State::Outside);
        self.calls[number].state = State::Waiting;
        if !self.cx().is_drained(self.now)
            && self.now < send_by
            && self.has_connection
            && let Some(grant) = self.lane.try_grant(send_by, self.now)
        {
            return self.grant(number, grant);
        }
        // A queued caller waits until its send-by.
        self.at(send_by, Due::Leave(number));
        self.event(Event::Arrived {
            entry,
            send_by,
            returning,
            waiter: number,
        });
    }

    fn grant(&mut self, number: usize, grant: Grant) {
        assert!(
            !self.is_unreported,
            "a grant before the store knows of a late use"
        );
        let call = &mut self.calls[number];
        assert_eq!(
            call.state,
            State::Waiting,
            "granted twice, or after it was answered"
        );
        call.state = State::Granted;
        call.grant = Some(grant);
        call.era = self.limits.len() - 1;
        self.granted += 1;
        self.held += 1;
        self.has_connection = self.random.bool();
        let late = self.delay(5);
        self.after(late, Due::Begin(number));
    }

    /// A random time of up to `most` milliseconds; sometimes seconds.
    fn delay(&mut self, most: u64) -> Duration {
        let most = if self.chance(self.history.late) {
            3000
        } else {
            most
        };
        Duration::from_micros(self.random.u64(0..=1000 * most))
    }

    fn carry_out(&mut self, effects: VecDeque<Effect<usize>>, is_served: bool) {
        for effect in effects {
            match effect {
                Effect::Grant { waiter, grant } => {
                    self.check_fairness(waiter);
                    self.grant(waiter, grant);
                }
                Effect::Expire { waiter, .. } => {
                    if is_served {
                        self.check_fairness(waiter);
                    }
                    self.over(waiter);
                }
                Effect::Refuse { waiter, .. } => self.over(waiter),
                Effect::RefuseAll { mut queue, .. } => {
                    while let Some(Waiting { waiter, .. }) = queue.pop() {
                        self.over(waiter);
                    }
                }
                Effect::SendRequest(request) => {
                    self.requests += 1;
                    let there = self.one_way_time();
                    let now = self.now;
                    self.after(there, Due::Received(request, now));
                }
                Effect::StoreTooFar | Effect::PauseBegan { .. } => {}
            }
        }
    }

    /// A random one-way time between this process and the store.
    fn one_way_time(&mut self) -> Duration {
        let most = if self.chance(30) { 300_000 } else { 3000 };
        Duration::from_micros(self.random.u64(0..most))
    }

    fn over(&mut self, number: usize) {
        assert_eq!(self.calls[number].state, State::Waiting, "answered twice");
        self.calls[number].state = State::Over;
    }

    /// Checks the fair order after a call was served: no waiting client is behind by more than its
    /// share.
    fn check_fairness(&mut self, number: usize) {
        let name = self.calls[number].entry.client.clone();
        let served = CLIENTS
            .iter()
            .position(|(client, _)| name.as_str() == *client)
            .unwrap();
        self.served_since[served] = Default::default();
        for waits in (0..CLIENTS.len()).filter(|waits| *waits != served) {
            if !self.waits(waits) {
                continue;
            }
            self.served_since[waits][served] += 1;
            let share = CLIENTS[served].1.div_ceil(CLIENTS[waits].1);
            assert!(
                self.served_since[waits][served] <= share + 1,
                "{waits} waits while {served} is served"
            );
        }
    }

    fn waits(&self, client: usize) -> bool {
        self.lane
            .queue()
            .client_len(&ClientId::new(CLIENTS[client].0))
            > 0
    }

    fn begin(&mut self, number: usize) {
        let grant = self.calls[number].grant.unwrap();
        let is_dropped = self.chance(self.history.unsent);
        if is_dropped || !self.lane.may_send(&grant, self.now) {
            self.give_back(number);
            return if is_dropped {
                self.calls[number].state = State::Over
            } else {
                self.retry(number)
            };
        }
        assert!(self.now <= self.calls[number].send_by);
        let late = self.delay(2);
        self.after(late, Due::Write(number));
    }

    fn give_back(&mut self, number: usize) {
        self.held -= 1;
        self.returned += 1;
        self.event(Event::Returned(self.calls[number].grant.unwrap()));
    }

    /// The call comes back with its sequence number.
    fn retry(&mut self, number: usize) {
        self.calls[number].state = State::Outside;
        self.arrive(number, true);
    }

    fn write(&mut self, number: usize) {
        if self.chance(self.history.unsent) {
            self.give_back(number);
            return self.retry(number);
        }
        self.calls[number].state = State::Sent;
        let now = self.now;
        let late = self.delay(0);
        self.after(late, Due::Report(number, now));
    }

    fn report(&mut self, number: usize, at: Instant) {
        let Call { grant, era, .. } = self.calls[number];
        let grant = grant.unwrap();
        let is_current = grant.epoch == self.lane.epoch;
        let is_late = match (&self.lane.source, grant.token) {
            (Source::Shared(_), GrantedToken::Slot(slot)) if is_current => at > slot.until(),
            (Source::Shared(_) | Source::None, _) => true,
            (Source::Memory(_), GrantedToken::Slot(slot)) => at > slot.until(),
            (Source::Memory(_), GrantedToken::Memory) => false,
        };
        if !is_late {
            self.writes.push(Write { at, era });
        }
        self.is_unreported |= is_late && matches!(self.lane.source, Source::Shared(_));
        self.held -= 1;
        self.written += 1;
        self.event(Event::Written { grant, at });
        let answer = ms(self.random.u64(5..60));
        self.after(answer, Due::End(number, at));
    }

    fn end(&mut self, number: usize, written_at: Instant) {
        let refused = self.chance(self.history.refused);
        let end = match self.random.u32(0..20) {
            _ if refused => {
                let hint = (self.random.u32(0..3) == 0).then(|| ms(self.random.u64(1..8000)));
                End::Throttled {
                    hint,
                    random: self.random.f64(),
                }
            }
            0 => End::Unknown,
            1 => End::Unsent,
            _ => End::Accepted,
        };
        self.event(Event::Ended {
            grant: self.calls[number].grant.unwrap(),
            written_at,
            end,
        });
        if refused {
            self.retry(number)
        } else {
            self.calls[number].state = State::Over
        }
    }

    fn received(&mut self, request: StoreRequest, sent: Instant) {
        let lost = self.chance(self.history.unanswered);
        let view =
            (!lost || self.random.bool()).then(|| self.store.answer(&request, self.stored()));
        let back = self.one_way_time();
        let answer = view.filter(|_| !lost).map(|view| Answer {
            view,
            sent,
            received: self.now + back,
        });
        let back = if answer.is_some() { back } else { ms(250) };
        self.after(back, Due::Answered(request.pending, answer.map(Box::new)));
    }

    fn stored(&self) -> u64 {
        STORED + u64::try_from((self.now - self.origin).as_micros()).unwrap()
    }

    fn change(&mut self) {
        match self
            .random
            .u32(0..if self.history.has_store { 9 } else { 5 })
        {
            0 => {
                self.event(Event::Paused(None));
                let later = ms(self.random.u64(0..5000));
                self.after(later, Due::Resume);
            }
            1 => {
                let time = ms(self.random.u64(0..5000));
                self.event(Event::Paused(Some(time)));
            }
            2 if self.random.bool() => self.event(Event::Flushed),
            2..5 => {
                let count = [1, 2, 5, 50, 200, 10_000][self.random.usize(..6)];
                let window = WINDOWS[self.random.usize(..3)];
                let quota_source = self.lane.quota_source;
                if limit(count, window) != self.lane.limit {
                    self.limits.push(limit(count, window));
                    self.is_unreported = false;
                }
                self.event(Event::RulesChanged {
                    limit: Some(limit(count, window)),
                });
                self.change_source(quota_source);
            }
            5 | 6 => self.change_source(QuotaSource::Store { since: self.now }),
            7 => {
                let most = self.lane.limit.count.get();
                let count = NonZeroU32::new(self.random.u32(1..=most)).unwrap();
                let since = match self.lane.quota_source {
                    QuotaSource::Part { since, .. } => since,
                    _ => self.now,
                };
                self.change_source(QuotaSource::Part { count, since });
            }
            _ => self.change_source(QuotaSource::Unavailable {
                since: Some(self.now),
            }),
        }
    }

    fn change_source(&mut self, quota_source: QuotaSource) {
        if quota_source != self.lane.quota_source {
            self.is_unreported = false;
        }
        self.event(Event::SourceChanged {
            quota_source,
            store: timing(),
        });
    }

    /// Acts as the worker until it has to wait, and checks that it waits for an event that will
    /// happen.
    fn work(&mut self) {
        for step in 0.. {
            assert!(step < 1000 + 2 * self.calls.len(), "a busy wait");
            let (next, check_at) = self.lane.next(self.has_connection, self.cx());
            let effects = self.lane.take_effects();
            self.carry_out(effects, false);
            let until = match next {
                Next::Idle => {
                    assert_eq!(
                        self.lane.queue().len(),
                        0,
                        "a call waits and the worker rests"
                    );
                    self.wake = None;
                    return;
                }
                Next::Grant | Next::Review => {
                    let event = if next == Next::Grant {
                        Event::Connected
                    } else {
                        Event::Review
                    };
                    let effects = self.lane.handle(event, self.cx());
                    assert!(
                        next == Next::Review || !effects.is_empty(),
                        "a call that can be granted is"
                    );
                    self.carry_out(effects, true);
                    continue;
                }
                Next::Connect(wanted) => {
                    assert!((1..=self.lane.queue().len()).contains(&wanted));
                    if !std::mem::replace(&mut self.is_connecting, true) {
                        let time = self.delay(20);
                        self.after(time, Due::Connection);
                    }
                    None
                }
                Next::Pause(until) | Next::Token(until) | Next::Until(until) => Some(until),
                Next::Event => {
                    let will_happen = self.held > 0 || self.requests > 0 || check_at.is_some();
                    assert!(will_happen, "a call waits for an event that never comes");
                    None
                }
            };
            if let Next::Pause(_) = next {
                // A connection that idles through a pause would be stale.
                self.has_connection = false;
            }
            self.wake = until.into_iter().chain(check_at).min();
            if self.wake.is_none_or(|wake| wake > self.now) {
                return;
            }
        }
    }

    fn check(&mut self) {
        for client in 0..CLIENTS.len() {
            if !self.waits(client) {
                self.served_since[client] = Default::default();
            }
        }
        assert_eq!(self.lane.granted(), self.granted);
        assert_eq!(
            self.granted,
            self.written + self.returned + u64::from(self.held)
        );
        assert_eq!(self.lane.held, self.held);
        if let Source::Memory(tokens) = &self.lane.source {
            assert_eq!(tokens.held(), self.held);
        }
        let waiting = self
            .calls
            .iter()
            .filter(|call| call.state == State::Waiting)
            .count();
        assert_eq!(self.lane.queue().len(), waiting);
    }

    /// Checks that no window of a limit has more writes than its count, including writes under
    /// earlier limits.
    fn check_windows(&mut self) {
        self.writes.sort_by_key(|write| write.at);
        for (era, limit) in self.limits.iter().enumerate() {
            let writes: Vec<_> = self
                .writes
                .iter()
                .filter(|write| write.era <= era)
                .collect();
            for group in writes.windows(limit.count.get() as usize + 1) {
                let time = group[group.len() - 1].at - group[0].at;
                let is_judged = group.iter().any(|write| write.era == era);
                assert!(
                    !is_judged || time >= limit.window,
                    "{} in {time:?}, limit {limit:?}",
                    group.len()
                );
            }
        }
    }
}

/// A model of the store for one lane, on its own clock.
#[derive(Default)]
struct Store {
    /// When each token in use is back, in order.
    uses: Vec<u64>,
    dealt: u64,
    open: u64,
    known: u64,
    level: u32,
    probe: Probe,
    version: u64,
    pace: String,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Probe {
    #[default]
    NotNeeded,
    Due,
    InFlight(u64),
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap()
}

// === impl Store ===

impl Store {
    fn answer(&mut self, request: &StoreRequest, now: u64) -> View {
        let StoreRequest {
            op,
            limit,
            rate,
            pending,
            ..
        } = request;
        let slot_request = &pending.slot_request;
        let slack = micros(pending.slot_request.slack);
        let away = micros(rate.away());
        for slot in &slot_request.unused {
            self.take_out(slot.back);
            if slot.probe && matches!(self.probe, Probe::InFlight(_)) {
                self.probe = Probe::Due;
            }
        }
        for late in &slot_request.late {
            self.take_out(late.slot.back);
            self.add(late.slot.back.max(late.used.min(now) + away));
        }
        let stale = pending.version != self.version;
        if let Some(pace) = pending.pace.as_ref().filter(|_| !stale) {
            self.version += 1;
            self.pace = pace.clone();
        }
        let new_episode = self.ended(*op, now);
        self.uses.retain(|back| *back > now);
        let mut slots = Vec::new();
        let usable = limit.count.get().min(rate.tokens);
        while !stale && slots.len() < slot_request.wanted.min(256) {
            let beyond = (self.uses.len() + 1).checked_sub(usable as usize);
            let back = beyond
                .filter(|beyond| *beyond > 0)
                .map_or(now, |beyond| self.uses[beyond - 1]);
            let spaced = self.dealt + micros(rate.spacing);
            let at = now.max(self.open).max(back).max(spaced);
            let is_waited_for =
                matches!(self.probe, Probe::InFlight(since) if now < since + 1_000_000);
            if at > now + micros(AHEAD) || is_waited_for {
                break;
            }
            let probe = self.probe == Probe::Due;
            if probe {
                self.probe = Probe::InFlight(at);
            }
            self.dealt = at;
            let back = at + away + slack;
            self.add(back);
            slots.push(DatedSlot {
                at,
                back,
                slack,
                probe,
            });
        }
        let used = self.uses.len().min(usable as usize);
        View {
            now,
            open: self.open,
            level: self.level,
            new_episode,
            stale,
            version: self.version,
            pace: self.pace.clone(),
            gap: micros(rate.gap),
            away,
            usable,
            wanted: u32::try_from(slot_request.wanted - slots.len()).unwrap(),
            next_request_after: 50_000,
            share: 1_000_000,
            used: u32::try_from(used).unwrap(),
            back: self.uses[self.uses.len() - used..].to_vec(),
            slots,
        }
    }

    fn ended(&mut self, op: Op, now: u64) -> bool {
        match op {
            Op::Take => false,
            Op::Throttled { pauses: None, .. } => true,
            Op::Throttled {
                at,
                pauses: Some(Pauses { new, same }),
            } => {
                let is_new = at > self.known;
                let pause = if is_new { Some(new) } else { same };
                if let Some(pause) = pause {
                    self.open = self.open.max(now + micros(pause));
                    self.probe = Probe::Due;
                }
                if is_new {
                    self.known = now;
                    self.level += 1;
                }
                is_new
            }
            Op::Ended { slot, how } => {
                if slot.probe && matches!(self.probe, Probe::InFlight(_)) {
                    self.probe = if let AttemptEnd::Unsent = how {
                        Probe::Due
                    } else {
                        Probe::NotNeeded
                    };
                }
                if matches!(how, AttemptEnd::Answered) && slot.at > self.known {
                    self.level = 0;
                }
                false
            }
        }
    }

    fn take_out(&mut self, back: u64) {
        if let Ok(index) = self.uses.binary_search(&back) {
            self.uses.remove(index);
        }
    }

    fn add(&mut self, back: u64) {
        let index = self.uses.partition_point(|other| *other <= back);
        self.uses.insert(index, back);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    /// No call is lost or answered twice, no call waits for an event that never happens, and no
    /// window of any limit has more writes than its count.
    #[test]
    fn the_invariants_of_a_lane_hold_in_any_history(history in history()) {
        Driver::new(history).run();
    }
}
