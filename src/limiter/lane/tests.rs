//! The state machine in simulated time: tables of events and effects, and one property test. A row
//! is a time, an event, its expected effects, and what the lane waits for after it. Calls are
//! numbers; times are milliseconds.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use super::*;
use crate::config::{self, Retry};
use crate::limiter::fair::Sequence;
use crate::limiter::rules::Rules;
use crate::limiter::shared::protocol::{Answer, DatedSlot, View};
use crate::primitives::id::{ClientId, TenantId};

mod calls;
mod changes;
mod forecasts;
mod pauses;
mod property;
mod review;
mod store;

const GAP: u64 = 5;
/// How long a token of a limit of one second is away.
const AWAY: u64 = 1000 + GAP;
/// How late a slot of the store may be used.
const SLACK: u64 = 15;
/// What the store's clock shows at the origin, in microseconds.
const STORED: u64 = 1_000_000_000;
/// Longer than any table.
const HOLD: u64 = 1_000_000;

const RETRY: Retry = Retry {
    max_attempts: 10,
    base: Duration::from_millis(200),
    max: Duration::from_secs(8),
    max_pause: Duration::from_secs(60),
    reads: false,
};

/// The event of a row.
enum Step {
    /// This call of this client arrives, with this hold.
    Arrive(u64, &'static str, u64),
    /// It comes back after a throttle refusal.
    Return(u64, &'static str, u64),
    /// It arrives while no call is queued.
    TryGrant(u64),
    Leave(u64),
    /// A connection is ready for one call.
    Connected,
    MaySend(u64),
    /// The call's first byte was written at this time.
    Written(u64, u64),
    Returned(u64),
    Accepted(u64),
    /// CAMS throttles the attempt, with this hint. Without a hint the back-off is half of the
    /// maximum.
    Throttled(u64, Option<u64>),
    Unknown(u64),
    Unsent(u64),
    Source(QuotaSource),
    Reload(Option<(u32, u64)>),
    /// A drain begins that ends at this time.
    Drain(u64),
    Pause(Option<u64>),
    Resume,
    Flush,
    Review,
    /// The store answers the request of this number.
    Answer(usize, View),
    /// The request of this number fails.
    NoAnswer(usize),
    Check,
}

/// A time, an event, its effects, and what the lane waits for after it.
type Row<'a> = (u64, Step, &'a str, &'a str);

/// A lane, and the state that its handle, its worker and its permits would have.
struct Harness {
    origin: Instant,
    now: Instant,
    lane: Lane<u64>,
    rules: Rules,
    drain_by: Option<Instant>,
    has_connection: bool,
    entries: BTreeMap<u64, QueueEntry>,
    grants: BTreeMap<u64, Grant>,
    written: BTreeMap<u64, Instant>,
    /// What was pending, and when.
    requests: Vec<(StoreRequest, Instant)>,
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn limit(count: u32, window: u64) -> Limit {
    Limit {
        count: NonZeroU32::new(count).unwrap(),
        window: ms(window),
    }
}

fn rules() -> Rules {
    let mut config = config::load(None, []).unwrap().config;
    config.queue.max_waiting = 20_000;
    config.queue.max_waiting_per_client = 20_000;
    config.learn = Learn {
        gap: ms(GAP),
        max_gap: ms(8 * GAP),
    };
    config.retry = RETRY;
    Rules::new(&config, Instant::now())
}

fn entry(call: u64, client: &str, now: Instant) -> QueueEntry {
    let client = ClientId::new(client);
    let tenant = TenantId::new("");
    QueueEntry {
        sequence: Sequence(call),
        client,
        weight: 1,
        tenant,
        arrived: now,
    }
}

fn timing() -> StoreTiming {
    StoreTiming {
        slack: ms(SLACK),
        longest_slack: ms(SLACK),
        distance: Duration::ZERO,
    }
}

/// The store's clock at this time.
fn stored(at: u64) -> u64 {
    STORED + at * 1000
}

/// The store's answer at `at`, with slots of these dates.
fn view(at: u64, dates: &[u64]) -> View {
    let away = AWAY + SLACK;
    let slot = |date: &u64| DatedSlot {
        at: stored(*date),
        back: stored(date + away),
        slack: SLACK * 1000,
        probe: false,
    };
    View {
        now: stored(at),
        usable: 5,
        gap: GAP * 1000,
        away: away * 1000,
        share: 1_000_000,
        next_request_after: 100_000,
        used: u32::try_from(dates.len()).unwrap(),
        back: dates.iter().map(|date| stored(date + away)).collect(),
        slots: dates.iter().map(slot).collect(),
        ..View::default()
    }
}

// === impl Harness ===

impl Harness {
    /// All tokens are free.
    fn warm(count: u32) -> Self {
        let mut harness = Self::cold(count);
        let since = harness.origin - ms(10_000);
        harness.lane = Lane::new(limit(count, 1000), harness.rules.learn, since, harness.now);
        harness
    }

    /// All tokens count as just used.
    fn cold(count: u32) -> Self {
        let rules = rules();
        let now = Instant::now();
        Self {
            origin: now,
            now,
            lane: Lane::new(limit(count, 1000), rules.learn, now, now),
            rules,
            drain_by: None,
            has_connection: true,
            entries: BTreeMap::new(),
            grants: BTreeMap::new(),
            written: BTreeMap::new(),
            requests: Vec::new(),
        }
    }

    fn at(&self, at: u64) -> Instant {
        self.origin + ms(at)
    }

    fn since_origin(&self, at: Instant) -> u128 {
        (at - self.origin).as_micros().div_ceil(1000)
    }

    fn rows(&mut self, rows: impl IntoIterator<Item = (u64, Step, &'static str, &'static str)>) {
        for (number, (at, what, effects, next)) in rows.into_iter().enumerate() {
            self.row(&format!("row {number}"), (at, what, effects, next));
        }
    }

    fn row(&mut self, name: &str, row: Row<'_>) {
        let (at, what, effects, next) = row;
        let seen = self.step(at, what);
        assert_eq!(
            (seen.0.as_str(), seen.1.as_str()),
            (effects, next),
            "{name} at {at} ms"
        );
    }

    /// Applies an event. Returns its effects, and what the lane waits for.
    fn step(&mut self, at: u64, what: Step) -> (String, String) {
        self.now = self.at(at);
        let mut seen = self.apply(what);
        let (next, _) = {
            let cx = Context {
                now: self.now,
                rules: &self.rules,
                drain_by: self.drain_by,
            };
            self.lane.next(self.has_connection, cx)
        };
        let effects = self.lane.take_effects();
        self.carry_out(effects, &mut seen);
        (seen.join(", "), self.next_text(next))
    }

    fn apply(&mut self, what: Step) -> Vec<String> {
        let now = self.now;
        let mut seen = Vec::new();
        let event = match what {
            Step::Arrive(call, client, hold) | Step::Return(call, client, hold) => {
                let returning = matches!(what, Step::Return(..));
                let entry = self
                    .entries
                    .entry(call)
                    .or_insert_with(|| entry(call, client, now))
                    .clone();
                Event::Arrived {
                    entry,
                    send_by: now + ms(hold),
                    returning,
                    waiter: call,
                }
            }
            Step::TryGrant(call) => {
                let grant = self.lane.try_grant(now + ms(HOLD), now);
                seen.push(grant.map_or("closed".to_owned(), |grant| self.granted(call, grant)));
                return seen;
            }
            Step::MaySend(call) => {
                let may = self.lane.may_send(&self.grants[&call], now);
                seen.push(if may { "yes" } else { "no" }.to_owned());
                return seen;
            }
            Step::Check => return seen,
            Step::Leave(call) => Event::Cancelled(self.entries[&call].clone()),
            Step::Connected => Event::Connected,
            Step::Written(call, at) => {
                let at = self.at(at);
                self.written.insert(call, at);
                Event::Written {
                    grant: self.grants[&call],
                    at,
                }
            }
            Step::Returned(call) => Event::Returned(self.grants[&call]),
            Step::Accepted(call) => self.ended(call, End::Accepted),
            Step::Unknown(call) => self.ended(call, End::Unknown),
            Step::Unsent(call) => self.ended(call, End::Unsent),
            Step::Throttled(call, hint) => self.ended(
                call,
                End::Throttled {
                    hint: hint.map(ms),
                    random: 0.5,
                },
            ),
            Step::Source(quota_source) => Event::SourceChanged {
                quota_source,
                store: timing(),
            },
            Step::Reload(changed) => Event::RulesChanged {
                limit: changed.map(|(count, window)| limit(count, window)),
            },
            Step::Drain(by) => {
                self.drain_by = Some(self.at(by));
                Event::DrainBegan
            }
            Step::Pause(time) => Event::Paused(time.map(ms)),
            Step::Resume => Event::Resumed,
            Step::Flush => Event::Flushed,
            Step::Review => Event::Review,
            Step::Answer(number, view) => {
                let (request, sent) = &self.requests[number];
                let answer = Answer {
                    view,
                    sent: *sent,
                    received: now,
                };
                Event::StoreAnswered {
                    request: request.pending.clone(),
                    answer: Some(Box::new(answer)),
                }
            }
            Step::NoAnswer(number) => Event::StoreAnswered {
                request: self.requests[number].0.pending.clone(),
                answer: None,
            },
        };
        let effects = self.lane.handle(
            event,
            Context {
                now,
                rules: &self.rules,
                drain_by: self.drain_by,
            },
        );
        self.carry_out(effects, &mut seen);
        seen
    }

    fn ended(&self, call: u64, end: End) -> Event<u64> {
        Event::Ended {
            grant: self.grants[&call],
            written_at: self.written[&call],
            end,
        }
    }

    fn granted(&mut self, call: u64, grant: Grant) -> String {
        self.grants.insert(call, grant);
        format!("{} {call}", if grant.probe { "probe" } else { "grant" })
    }

    fn carry_out(&mut self, effects: VecDeque<Effect<u64>>, seen: &mut Vec<String>) {
        for effect in effects {
            let text = match effect {
                Effect::Grant { waiter, grant } => self.granted(waiter, grant),
                Effect::Refuse { waiter, refusal } => format!("refuse {waiter} {:?}", refusal.kind),
                Effect::Expire { waiter, .. } => format!("expire {waiter}"),
                Effect::RefuseAll { queue, refusal, .. } => {
                    format!("refuse all {} {:?}", queue.len(), refusal.kind)
                }
                Effect::SendRequest(request) => {
                    let slot_request = &request.pending.slot_request;
                    let mut text = format!("{} for {}", request.op.name(), slot_request.wanted);
                    for (what, number) in [
                        ("unused", slot_request.unused.len()),
                        ("late", slot_request.late.len()),
                    ] {
                        if number > 0 {
                            text += &format!(" {what} {number}");
                        }
                    }
                    self.requests.push((*request, self.now));
                    text
                }
                Effect::StoreTooFar => "too far".to_owned(),
                Effect::PauseBegan { pause, .. } => format!("pauses {}", pause.as_millis()),
            };
            seen.push(text);
        }
    }

    fn next_text(&self, next: Next) -> String {
        match next {
            Next::Idle => "idle".to_owned(),
            Next::Grant => "grant".to_owned(),
            Next::Review => "review".to_owned(),
            Next::Event => "event".to_owned(),
            Next::Connect(wanted) => format!("connect {wanted}"),
            Next::Pause(until) => format!("pause {}", self.since_origin(until)),
            Next::Token(back_at) => format!("token {}", self.since_origin(back_at)),
            Next::Until(moment) => format!("until {}", self.since_origin(moment)),
        }
    }

    /// The call arrives, is granted and is written immediately.
    fn send_one(&mut self, call: u64, at: u64) {
        self.row(
            "sends",
            (at, Step::TryGrant(call), &format!("grant {call}"), "idle"),
        );
        self.row("sends", (at, Step::Written(call, at), "", "idle"));
    }
}
