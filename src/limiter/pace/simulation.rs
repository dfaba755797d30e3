//! A discrete-event simulation of one lane, with its pace and its pause, and of an endpoint that
//! enforces a rate. An hour of a lane of 50/s takes less than a second. The lane writes whatever
//! its tokens, its spacing and its pause allow.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::num::NonZeroU32;
use std::time::Duration;

use tokio::time::Instant;

use super::{Pace, Rate, ThrottledAttempt};
use crate::config::{Learn, Limit, Retry};
use crate::limiter::pause::{Episode, Gate, Pause, ThrottleRefusal};

/// The conditions of a simulation. Times are microseconds since the start, unless their name has
/// another unit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scenario {
    /// The lane's limit, in calls per second.
    pub(super) limit: u32,
    /// The attempts per second that the endpoint accepts.
    pub(super) takes: u32,
    pub(super) window: Window,
    /// Whether the endpoint counts refused attempts, too.
    pub(super) counts_refused: bool,
    /// The jitter on the way in, evenly distributed from zero.
    pub(super) jitter_ms: u64,
    /// The time in the server after its decision, evenly distributed from zero.
    pub(super) server_ms: u64,
    pub(super) outsider: Outsider,
    pub(super) outsider_stops_s: u64,
    /// The endpoint accepts nothing between these seconds.
    pub(super) outage_s: (u64, u64),
    /// What is written between these two times arrives together at the second one.
    pub(super) stall: (u64, u64),
    /// Timers wake the lane at whole milliseconds, late by up to this.
    pub(super) late: u64,
    /// Calls that are queued at the start. A refused call is retried.
    pub(super) calls: u64,
    pub(super) seconds: u64,
    pub(super) seed: u64,
    /// Replicas that share the lane. Each sees the answers of its own attempts, and adopts
    /// immediately what another one has learned.
    pub(super) replicas: usize,
}

/// The kind of the endpoint's window of one second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Window {
    Sliding,
    Aligned,
    /// One attempt per part of a second.
    Smooth,
}

/// Another process that uses 40 % of the quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outsider {
    None,
    /// Sends evenly and is never refused.
    Even,
    /// Sends evenly; a refused call is lost.
    Refusable,
    /// Sends at random times and is never refused.
    Poisson,
    /// Sends evenly, alternately on and off for this number of seconds.
    OnOff(u64),
}

/// The result of a simulation.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// When each attempt reached the endpoint, and whether it was accepted.
    pub(super) attempts: Vec<(u64, bool)>,
    pub(super) writes: Vec<u64>,
    /// When the outsider's calls were served.
    pub(super) outsiders: Vec<u64>,
    pub(super) pauses: u32,
    pub(super) isolated: u32,
    /// The rate at the start of each second, in calls per second.
    pub(super) rates: Vec<f64>,
}

pub(super) const LEARN: Learn = Learn {
    gap: Duration::from_millis(5),
    max_gap: Duration::from_millis(40),
};

pub(super) const STEADY: Scenario = Scenario {
    limit: 5,
    takes: 5,
    window: Window::Sliding,
    counts_refused: false,
    jitter_ms: 0,
    server_ms: 0,
    outsider: Outsider::None,
    outsider_stops_s: u64::MAX / SECOND,
    outage_s: (0, 0),
    stall: (0, 0),
    late: 0,
    calls: u64::MAX,
    seconds: 60,
    seed: 0,
    replicas: 1,
};

const SECOND: u64 = 1_000_000;
const ONE_WAY: u64 = 10_000;
const POLICY: Retry = Retry {
    max_attempts: 10,
    base: Duration::from_millis(200),
    max: Duration::from_secs(8),
    max_pause: Duration::from_secs(60),
    reads: false,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Wake,
    Arrives(Attempt),
    Known { attempt: Attempt, accepted: bool },
    Outsider,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Attempt {
    written: u64,
    probe: bool,
    replica: usize,
}

struct Endpoint {
    scenario: Scenario,
    counted: VecDeque<u64>,
    /// Where its aligned windows begin.
    offset: u64,
}

/// A simulation in progress.
struct Run {
    scenario: Scenario,
    origin: Instant,
    random: fastrand::Rng,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    pushed: u64,
    endpoint: Endpoint,
    /// One for each replica.
    paces: Vec<Pace>,
    pause: Pause,
    /// The lane's latest writes, as many as the limit's count.
    ring: VecDeque<u64>,
    waiting: u64,
    wakes_at: u64,
    outcome: Outcome,
}

/// Runs the simulation.
pub(super) fn run(scenario: Scenario) -> Outcome {
    let limit = Limit {
        count: NonZeroU32::new(scenario.limit).unwrap(),
        window: Duration::from_micros(SECOND),
    };
    let mut random = fastrand::Rng::with_seed(scenario.seed);
    let endpoint = Endpoint {
        scenario,
        counted: VecDeque::new(),
        offset: random.u64(0..SECOND),
    };
    let mut run = Run {
        scenario,
        origin: Instant::now() + Duration::from_secs(3600),
        random,
        events: BinaryHeap::new(),
        pushed: 0,
        endpoint,
        paces: (0..scenario.replicas)
            .map(|_| Pace::new(limit, LEARN))
            .collect(),
        pause: Pause::default(),
        ring: VecDeque::new(),
        waiting: scenario.calls,
        wakes_at: 0,
        outcome: Outcome::default(),
    };
    run.push(0, Event::Wake);
    if scenario.outsider != Outsider::None {
        let first = run.random.u64(0..=scenario.outsider_every());
        run.push(first, Event::Outsider);
    }
    run.drive();
    run.outcome
}

// === impl Scenario ===

impl Scenario {
    fn outsider_every(&self) -> u64 {
        SECOND * 10 / (4 * u64::from(self.limit))
    }
}

// === impl Outcome ===

impl Outcome {
    /// Returns the attempts between these seconds: (accepted, refused).
    pub(super) fn between(&self, from_s: u64, to_s: u64) -> (f64, f64) {
        let within = self
            .attempts
            .iter()
            .filter(|(at, _)| (from_s * SECOND..to_s * SECOND).contains(at));
        let (accepted, refused): (Vec<&(u64, bool)>, Vec<_>) =
            within.partition(|(_, accepted)| *accepted);
        (accepted.len() as f64, refused.len() as f64)
    }

    pub(super) fn outsiders_between(&self, from_s: u64, to_s: u64) -> f64 {
        self.outsiders
            .iter()
            .filter(|at| (from_s * SECOND..to_s * SECOND).contains(*at))
            .count() as f64
    }

    /// Returns the seconds from the first arrival to the nth accepted one, and the number of
    /// refused attempts by then.
    pub(super) fn nth_accepted(&self, nth: usize) -> (f64, usize) {
        let accepted = self
            .attempts
            .iter()
            .filter(|(_, accepted)| *accepted)
            .nth(nth - 1);
        let until = accepted.expect("that many were accepted").0;
        let refused = self
            .attempts
            .iter()
            .filter(|(at, accepted)| !accepted && *at <= until)
            .count();
        ((until - self.attempts[0].0) as f64 / SECOND as f64, refused)
    }

    /// The maximum number of writes within a second.
    pub(super) fn worst_second(&self) -> usize {
        let mut oldest = 0;
        let within = self.writes.iter().enumerate().map(|(newest, at)| {
            while self.writes[oldest] + SECOND <= *at {
                oldest += 1;
            }
            newest - oldest + 1
        });
        within.max().unwrap_or_default()
    }
}

// === impl Endpoint ===

impl Endpoint {
    fn takes(&mut self, now: u64) -> bool {
        let (from, to) = self.scenario.outage_s;
        let out = (from * SECOND..to * SECOND).contains(&now);
        let takes = u64::from(self.scenario.takes);
        let begun = |at: u64| (at + self.offset) / SECOND;
        let is_over = |at: u64| match self.scenario.window {
            Window::Sliding => at + SECOND <= now,
            Window::Aligned => begun(at) < begun(now),
            Window::Smooth => at + SECOND / takes <= now,
        };
        while self.counted.front().is_some_and(|at| is_over(*at)) {
            self.counted.pop_front();
        }
        let most = if self.scenario.window == Window::Smooth {
            1
        } else {
            takes
        };
        let fits = !out && (self.counted.len() as u64) < most;
        if fits || self.scenario.counts_refused {
            self.counted.push_back(now);
        }
        fits
    }

    /// Whether the outsider's call is served.
    fn takes_outsider(&mut self, now: u64) -> bool {
        if self.takes(now) {
            return true;
        }
        let served = self.scenario.outsider != Outsider::Refusable;
        if served && !self.scenario.counts_refused {
            self.counted.push_back(now);
        }
        served
    }
}

// === impl Run ===

impl Run {
    fn drive(&mut self) {
        while let Some(Reverse((now, _, event))) = self.events.pop() {
            while self.outcome.rates.len() as u64 * SECOND <= now {
                self.outcome.rates.push(self.rate(now).per_second());
            }
            if now > self.scenario.seconds * SECOND {
                return;
            }
            self.handle(event, now);
            self.write(now);
        }
    }

    fn handle(&mut self, event: Event, now: u64) {
        match event {
            Event::Wake => {}
            Event::Arrives(attempt) => {
                let accepted = self.endpoint.takes(now);
                self.outcome.attempts.push((now, accepted));
                let server = if accepted {
                    self.random.u64(0..=self.scenario.server_ms * 1000)
                } else {
                    0
                };
                self.push(now + server + ONE_WAY, Event::Known { attempt, accepted });
            }
            Event::Known {
                attempt,
                accepted: true,
            } => {
                let written_at = self.at(attempt.written);
                let now = self.at(now);
                self.paces[attempt.replica].accepted(written_at, now);
                self.pause.accepted(written_at);
                if attempt.probe {
                    self.pause.probe_passed();
                }
            }
            Event::Known {
                attempt,
                accepted: false,
            } => self.refused(attempt, now),
            Event::Outsider => self.outsider(now),
        }
    }

    fn refused(&mut self, attempt: Attempt, now: u64) {
        self.waiting = self.waiting.saturating_add(1);
        let Attempt {
            written,
            probe,
            replica,
        } = attempt;
        let written_at = self.at(written);
        let now = self.at(now);
        let own_share = 1.0 / self.scenario.replicas as f64;
        let isolated = self.paces[replica].throttled(
            &ThrottledAttempt {
                written_at,
                probe,
                own_share,
            },
            now,
        );
        let refusal = ThrottleRefusal {
            written_at,
            hint: None,
            isolated,
        };
        match self
            .pause
            .throttled(&refusal, &POLICY, now, self.random.f64())
        {
            Episode::New => self.outcome.pauses += 1,
            Episode::Isolated => self.outcome.isolated += 1,
            Episode::Same => {}
        }
        self.paces[replica].paused_until(self.pause.open_at(now));
        if let Some(shared) = self.paces[replica].to_shared(now) {
            let others = self
                .paces
                .iter_mut()
                .enumerate()
                .filter(|(other, _)| *other != replica);
            others.for_each(|(_, pace)| pace.adopt(&shared, now));
        }
    }

    /// The shared rate, with the largest gap of all replicas.
    fn rate(&self, now: u64) -> Rate {
        let now = self.at(now);
        let gap = self.paces.iter().map(|pace| pace.rate(now).gap).max();
        Rate {
            gap: gap.expect("there is a replica"),
            ..self.paces[0].rate(now)
        }
    }

    fn outsider(&mut self, now: u64) {
        if now >= self.scenario.outsider_stops_s * SECOND {
            return;
        }
        let is_on = match self.scenario.outsider {
            Outsider::OnOff(seconds) => (now / (seconds * SECOND)).is_multiple_of(2),
            _ => true,
        };
        if is_on && self.endpoint.takes_outsider(now) {
            self.outcome.outsiders.push(now);
        }
        let random = -(1.0 - self.random.f64()).ln();
        let spread = if self.scenario.outsider == Outsider::Poisson {
            random
        } else {
            1.0
        };
        let after = (self.scenario.outsider_every() as f64 * spread) as u64;
        self.push(now + after, Event::Outsider);
    }

    /// Writes all attempts that may be written now, and schedules the next one.
    fn write(&mut self, now: u64) {
        while self.waiting > 0 {
            let next = self.next_write(now);
            if next > now {
                if self.wakes_at <= now || next < self.wakes_at {
                    self.wakes_at = next;
                    let late = self.scenario.late;
                    let wakes_at = if late > 0 {
                        next.next_multiple_of(1000) + self.random.u64(0..=late)
                    } else {
                        next
                    };
                    self.push(wakes_at, Event::Wake);
                }
                return;
            }
            let probe = self.pause.begin_attempt(self.at(now));
            if self.ring.len() == self.scenario.limit as usize {
                self.ring.pop_front();
            }
            self.ring.push_back(now);
            self.outcome.writes.push(now);
            self.waiting -= 1;
            let jitter = self.random.u64(0..=self.scenario.jitter_ms * 1000);
            let (from, to) = self.scenario.stall;
            let leaves = if (from..to).contains(&now) { to } else { now };
            let replica = self.random.usize(0..self.scenario.replicas);
            self.push(
                leaves + ONE_WAY + jitter,
                Event::Arrives(Attempt {
                    written: now,
                    probe,
                    replica,
                }),
            );
        }
    }

    fn next_write(&self, now: u64) -> u64 {
        let rate = self.rate(now);
        let micros = |time: Duration| time.as_micros() as u64;
        let open = match self.pause.gate(self.at(now)) {
            Gate::Open => now,
            Gate::Until(until) => micros(until - self.origin),
        };
        let oldest_in_use = self
            .ring
            .len()
            .checked_sub(rate.tokens as usize)
            .map(|index| self.ring[index]);
        let token = oldest_in_use.map_or(0, |written| written + micros(rate.away()));
        let spaced = self
            .ring
            .back()
            .map_or(0, |written| written + micros(rate.spacing));
        open.max(token).max(spaced)
    }

    fn push(&mut self, at: u64, event: Event) {
        self.pushed += 1;
        self.events.push(Reverse((at, self.pushed, event)));
    }

    fn at(&self, micros: u64) -> Instant {
        self.origin + Duration::from_micros(micros)
    }
}
