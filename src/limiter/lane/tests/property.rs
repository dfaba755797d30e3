//! Random lives of one lane, with a carrier, an endpoint and a store around it that do what they may do at the worst
//! moment. What must hold is checked at every step, and once more at the end.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::limiter::shared::protocol::{AHEAD, How, Pauses};

static RULES: LazyLock<Rules> = LazyLock::new(|| {
    let mut rules = rules();
    (
        rules.bounds.max_waiting,
        rules.bounds.max_waiting_per_client,
    ) = (150, 60);
    rules
});

const CLIENTS: [(&str, u32); 4] = [("a", 1), ("b", 1), ("c", 2), ("d", 5)];
/// Every call with such a hold must be answered before its end.
const PATIENT: Duration = Duration::from_secs(200_000);
const WINDOWS: [u64; 3] = [1000, 200, 5000];

/// How a life begins, and what happens in it. The chances are in thousandths.
#[derive(Clone, Copy, Debug)]
struct Life {
    seed: u64,
    count: u32,
    window: u64,
    has_store: bool,
    calls: usize,
    /// Of each attempt.
    refused: u32,
    late: u32,
    unsent: u32,
    /// Of each question.
    unanswered: u32,
    /// How many changes of the source, of the limit and orders there are.
    changes: usize,
    drains: bool,
}

fn life() -> impl Strategy<Value = Life> {
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
        Life {
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
    /// Of the limit that the grant was made under.
    era: usize,
}

/// What is due at some moment.
enum Due {
    Arrive(usize),
    /// The caller hangs up, or its hold is over.
    Leave(usize),
    /// The permit is used.
    Begin(usize),
    Write(usize),
    Report(usize, Instant),
    End(usize, Instant),
    Heard(Box<Question>, Instant),
    Answered(Asked, Option<Box<Answer>>),
    Connection,
    Change,
    Resume,
}

struct Write {
    at: Instant,
    era: usize,
}

struct Driver {
    life: Life,
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
    questions: usize,
    /// A slot was used too late, and the store has not answered the report.
    is_unreported: bool,
    limits: Vec<Limit>,
    writes: Vec<Write>,
    granted: u64,
    written: u64,
    returned: u64,
    held: u32,
    /// Turns of each client (second) since another's latest (first), while that one waits.
    turns: [[u32; CLIENTS.len()]; CLIENTS.len()],
}

// === impl Driver ===

impl Driver {
    fn new(life: Life) -> Self {
        let origin = Instant::now();
        let limit = limit(life.count, life.window);
        let lane = Lane::new(limit, RULES.learn, origin - ms(20_000), origin);
        let mut driver = Self {
            life,
            random: fastrand::Rng::with_seed(life.seed),
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
            questions: 0,
            is_unreported: false,
            limits: vec![limit],
            writes: Vec::new(),
            granted: 0,
            written: 0,
            returned: 0,
            held: 0,
            turns: Default::default(),
        };
        driver.plan();
        driver
    }

    /// Bursts of arrivals, and what is changed meanwhile.
    fn plan(&mut self) {
        let mut at = self.now;
        for number in 0..self.life.calls {
            if self.random.u32(0..8) == 0 {
                at += ms(self.random.u64(0..2 * self.life.window));
            }
            let (client, weight) = CLIENTS[self.random.usize(..CLIENTS.len())];
            let tenant = TenantId::new(["x", "y"][self.random.usize(..2)]);
            let place = Place(number as u64);
            let entry = QueueEntry {
                place,
                client: ClientId::new(client),
                weight,
                tenant,
                arrived: at,
            };
            let is_patient = self.random.bool();
            let hold = if is_patient {
                PATIENT
            } else {
                ms(self.random.u64(0..20 * self.life.window))
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
        if self.life.has_store {
            self.change_source(Stands::Together { since: self.now });
        }
        for _ in 0..self.life.changes {
            let change_at = self.origin + (at - self.origin).mul_f64(1.5 * self.random.f64());
            self.at(change_at, Due::Change);
        }
        if self.life.drains {
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

    /// Whether something with this many chances in a thousand happens.
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

    /// Lives to the end: nothing is due any more.
    fn run(&mut self) {
        self.work();
        for step in 0.. {
            assert!(step < 200_000, "it never ends");
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
            (self.held, self.questions, self.lane.queue().len()),
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
                        "a patient call was left to itself"
                    );
                    self.calls[call].state = State::Over;
                    let entry = self.calls[call].entry.clone();
                    self.event(Event::Left(entry));
                }
            }
            Due::Begin(call) => self.begin(call),
            Due::Write(call) => self.write(call),
            Due::Report(call, at) => self.report(call, at),
            Due::End(call, at) => self.end(call, at),
            Due::Heard(question, sent) => self.heard(*question, sent),
            Due::Answered(asked, answer) => {
                self.questions -= 1;
                if answer.is_some() && !asked.ask.late.is_empty() {
                    self.is_unreported = false;
                }
                self.event(Event::Answered {
                    question: asked,
                    answer,
                });
            }
            Due::Connection => (self.has_connection, self.is_connecting) = (true, false),
            Due::Change => self.change(),
            Due::Resume => self.event(Event::Resumed),
        }
    }

    fn event(&mut self, event: Event<usize>) {
        let effects = self.lane.handle(event, self.cx());
        self.carry_out(effects, false);
    }

    fn arrive(&mut self, number: usize, returning: bool) {
        let (entry, send_by) = (self.calls[number].entry.clone(), self.calls[number].send_by);
        assert_eq!(self.calls[number].state, State::Outside);
        self.calls[number].state = State::Waiting;
        if !self.cx().is_drained(self.now)
            && self.now < send_by
            && self.has_connection
            && let Some(grant) = self.lane.pass(send_by, self.now)
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
        (call.state, call.grant, call.era) = (State::Granted, Some(grant), self.limits.len() - 1);
        self.granted += 1;
        self.held += 1;
        self.has_connection = self.random.bool();
        let late = self.delay(5);
        self.after(late, Due::Begin(number));
    }

    /// Up to this many milliseconds; sometimes seconds.
    fn delay(&mut self, most: u64) -> Duration {
        let most = if self.chance(self.life.late) {
            3000
        } else {
            most
        };
        Duration::from_micros(self.random.u64(0..=1000 * most))
    }

    fn carry_out(&mut self, effects: VecDeque<Effect<usize>>, is_turn: bool) {
        for effect in effects {
            match effect {
                Effect::Grant { waiter, grant } => {
                    self.turn(waiter);
                    self.grant(waiter, grant);
                }
                Effect::Expire { waiter, .. } => {
                    if is_turn {
                        self.turn(waiter);
                    }
                    self.over(waiter);
                }
                Effect::Refuse { waiter, .. } => self.over(waiter),
                Effect::RefuseAll { mut queue, .. } => {
                    while let Some(Waiting { waiter, .. }) = queue.pop() {
                        self.over(waiter);
                    }
                }
                Effect::Ask(question) => {
                    self.questions += 1;
                    let there = self.way();
                    let now = self.now;
                    self.after(there, Due::Heard(question, now));
                }
                Effect::StoreTooFar | Effect::PauseBegan { .. } => {}
            }
        }
    }

    /// The way to the store or back.
    fn way(&mut self) -> Duration {
        let most = if self.chance(30) { 300_000 } else { 3000 };
        Duration::from_micros(self.random.u64(0..most))
    }

    fn over(&mut self, number: usize) {
        assert_eq!(self.calls[number].state, State::Waiting, "answered twice");
        self.calls[number].state = State::Over;
    }

    /// A call was served from the queue: no other client that waits is left behind by more than its share.
    fn turn(&mut self, number: usize) {
        let name = self.calls[number].entry.client.clone();
        let served = CLIENTS
            .iter()
            .position(|(client, _)| name.as_str() == *client)
            .unwrap();
        self.turns[served] = Default::default();
        for waits in (0..CLIENTS.len()).filter(|waits| *waits != served) {
            if !self.waits(waits) {
                continue;
            }
            self.turns[waits][served] += 1;
            let share = CLIENTS[served].1.div_ceil(CLIENTS[waits].1);
            assert!(
                self.turns[waits][served] <= share + 1,
                "{waits} waits while {served} is served"
            );
        }
    }

    fn waits(&self, client: usize) -> bool {
        self.lane
            .queue()
            .of_client(&ClientId::new(CLIENTS[client].0))
            > 0
    }

    fn begin(&mut self, number: usize) {
        let grant = self.calls[number].grant.unwrap();
        let is_dropped = self.chance(self.life.unsent);
        if is_dropped || !self.lane.may_send(&grant, self.now) {
            self.give_back(number);
            return if is_dropped {
                self.calls[number].state = State::Over
            } else {
                self.again(number)
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

    /// It comes back with its place.
    fn again(&mut self, number: usize) {
        self.calls[number].state = State::Outside;
        self.arrive(number, true);
    }

    fn write(&mut self, number: usize) {
        if self.chance(self.life.unsent) {
            self.give_back(number);
            return self.again(number);
        }
        self.calls[number].state = State::Sent;
        let (now, late) = (self.now, self.delay(0));
        self.after(late, Due::Report(number, now));
    }

    fn report(&mut self, number: usize, at: Instant) {
        let Call { grant, era, .. } = self.calls[number];
        let grant = grant.unwrap();
        let is_current = grant.epoch == self.lane.epoch;
        let is_late = match (&self.lane.source, grant.token) {
            (Source::Shared(_), Granted::Slot(slot)) if is_current => at > slot.until(),
            (Source::Shared(_) | Source::None, _) => true,
            (Source::Memory(_), Granted::Slot(slot)) => at > slot.until(),
            (Source::Memory(_), Granted::Memory) => false,
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
        let refused = self.chance(self.life.refused);
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
            self.again(number)
        } else {
            self.calls[number].state = State::Over
        }
    }

    fn heard(&mut self, question: Question, sent: Instant) {
        let lost = self.chance(self.life.unanswered);
        let view =
            (!lost || self.random.bool()).then(|| self.store.answer(&question, self.stored()));
        let back = self.way();
        let answer = view.filter(|_| !lost).map(|view| Answer {
            view,
            sent,
            received: self.now + back,
        });
        let back = if answer.is_some() { back } else { ms(250) };
        self.after(back, Due::Answered(question.asked, answer.map(Box::new)));
    }

    fn stored(&self) -> u64 {
        STORED + u64::try_from((self.now - self.origin).as_micros()).unwrap()
    }

    fn change(&mut self) {
        match self.random.u32(0..if self.life.has_store { 9 } else { 5 }) {
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
                let stands = self.lane.stands;
                if limit(count, window) != self.lane.limit {
                    self.limits.push(limit(count, window));
                    self.is_unreported = false;
                }
                self.event(Event::RulesChanged {
                    limit: Some(limit(count, window)),
                });
                self.change_source(stands);
            }
            5 | 6 => self.change_source(Stands::Together { since: self.now }),
            7 => {
                let most = self.lane.limit.count.get();
                let count = NonZeroU32::new(self.random.u32(1..=most)).unwrap();
                let since = match self.lane.stands {
                    Stands::Part { since, .. } => since,
                    _ => self.now,
                };
                self.change_source(Stands::Part { count, since });
            }
            _ => self.change_source(Stands::Nothing {
                since: Some(self.now),
            }),
        }
    }

    fn change_source(&mut self, stands: Stands) {
        if stands != self.lane.stands {
            self.is_unreported = false;
        }
        self.event(Event::SourceChanged {
            stands,
            store: terms(),
        });
    }

    /// Does what a worker does until it has to wait: that it then waits for something that will happen.
    fn work(&mut self) {
        for step in 0.. {
            assert!(step < 1000 + 2 * self.calls.len(), "a busy wait");
            let (next, look_at) = self.lane.next(self.has_connection, self.cx());
            let effects = self.lane.take_effects();
            self.carry_out(effects, false);
            let until = match next {
                Next::Rest => {
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
                    let will_happen = self.held > 0 || self.questions > 0 || look_at.is_some();
                    assert!(will_happen, "a call waits for an event that never comes");
                    None
                }
            };
            if let Next::Pause(_) = next {
                // A connection that is idle through a pause would be stale.
                self.has_connection = false;
            }
            self.wake = until.into_iter().chain(look_at).min();
            if self.wake.is_none_or(|wake| wake > self.now) {
                return;
            }
        }
    }

    fn check(&mut self) {
        for client in 0..CLIENTS.len() {
            if !self.waits(client) {
                self.turns[client] = Default::default();
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

    /// No window of a limit has more than its count, with what an earlier limit has let through.
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

/// The store's side of one lane, on its own clock.
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
    Out(u64),
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap()
}

// === impl Store ===

impl Store {
    fn answer(&mut self, question: &Question, now: u64) -> View {
        let Question {
            op,
            limit,
            rate,
            asked,
            ..
        } = question;
        let (ask, slack) = (&asked.ask, micros(asked.ask.slack));
        let away = micros(rate.away());
        for slot in &ask.unused {
            self.take_out(slot.back);
            if slot.probe && matches!(self.probe, Probe::Out(_)) {
                self.probe = Probe::Due;
            }
        }
        for late in &ask.late {
            self.take_out(late.slot.back);
            self.add(late.slot.back.max(late.used.min(now) + away));
        }
        let stale = asked.version != self.version;
        if let Some(pace) = asked.pace.as_ref().filter(|_| !stale) {
            (self.version, self.pace) = (self.version + 1, pace.clone());
        }
        let new_episode = self.ended(*op, now);
        self.uses.retain(|back| *back > now);
        let mut slots = Vec::new();
        let usable = limit.count.get().min(rate.tokens);
        while !stale && slots.len() < ask.wanted.min(256) {
            let beyond = (self.uses.len() + 1).checked_sub(usable as usize);
            let back = beyond
                .filter(|beyond| *beyond > 0)
                .map_or(now, |beyond| self.uses[beyond - 1]);
            let spaced = self.dealt + micros(rate.spacing);
            let at = now.max(self.open).max(back).max(spaced);
            let is_waited_for = matches!(self.probe, Probe::Out(since) if now < since + 1_000_000);
            if at > now + micros(AHEAD) || is_waited_for {
                break;
            }
            let probe = self.probe == Probe::Due;
            if probe {
                self.probe = Probe::Out(at);
            }
            self.dealt = at;
            let back = at + away + slack;
            self.add(back);
            slots.push(Dated {
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
            wanted: u32::try_from(ask.wanted - slots.len()).unwrap(),
            ask: 50_000,
            part: 1_000_000,
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
                    (self.known, self.level) = (now, self.level + 1);
                }
                is_new
            }
            Op::Ended { slot, how } => {
                if slot.probe && matches!(self.probe, Probe::Out(_)) {
                    self.probe = if let How::Unsent = how {
                        Probe::Due
                    } else {
                        Probe::NotNeeded
                    };
                }
                if matches!(how, How::Answered) && slot.at > self.known {
                    self.level = 0;
                }
                false
            }
        }
    }

    fn take_out(&mut self, back: u64) {
        if let Ok(place) = self.uses.binary_search(&back) {
            self.uses.remove(place);
        }
    }

    fn add(&mut self, back: u64) {
        let place = self.uses.partition_point(|other| *other <= back);
        self.uses.insert(place, back);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    /// No call is lost or answered twice, no call waits for nothing, and no window of any limit has more than its count.
    #[test]
    fn a_lane_keeps_its_promises_whatever_happens(life in life()) {
        Driver::new(life).run();
    }
}
