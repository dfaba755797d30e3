//! How does a lane's rate come back after a lesson? It rises evenly to where it was refused, in a time in which one refusal
//! is one attempt in 28 or so. If nothing is refused there, it rises faster and faster: an outsider's end can be seen in no
//! other way.
//!
//! A closed form of the time, so that nothing has to happen while it rises, and replicas that share it agree.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::Limit;

/// The part of the rate that a lesson takes at least: it makes room for what the lane's retry adds.
const LEAST_CUT: f64 = 0.06;
/// What the first lesson leaves at least, and the later ones: a burst of refusals may have another cause than the rate.
const LEFT_BY_FIRST: f64 = 0.5;
const LEFT_BY_LATER: f64 = 0.75;
/// Calls per window that are never taken.
const LOWEST: f64 = 0.25;
/// The first lesson's cut is back after this number of windows, each further one's after twice as many as the one before.
const FIRST_RETURN: f64 = 4.0;
/// But after at most as many windows as it takes to send this, so that few of them are refused...
const ATTEMPTS_PER_LESSON: f64 = 28.0;
/// ...within these bounds.
const RETURN: std::ops::RangeInclusive<f64> = 3.0..=16.0;
/// The rate has doubled when after its return this many times the return's duration has passed.
const DOUBLES_AFTER: f64 = 1.1;
/// The rate rises in this number of steps from nothing to the limit.
const STEPS: f64 = 64.0;
/// The most rises that are named ahead.
const RISES: u32 = 16;
/// A window counts as this at least.
const SHORTEST_WINDOW: Duration = Duration::from_secs(1);

/// A lane that sends less than its limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Slowdown {
    /// Calls per window that are left, and that were taken.
    lowest: f64,
    taken: f64,
    /// Since when it rises.
    grows_from: Instant,
    /// Lessons in a row, without the whole limit between them.
    streak: u32,
    /// When the first refusal of the lesson was known.
    known_at: Instant,
}

/// What replicas share of a slowdown. Rates in millionths of a call per window, times in microseconds from now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SharedRate {
    pub(crate) lowest: u64,
    pub(crate) taken: u64,
    pub(crate) streak: u32,
    /// Before now: negative.
    pub(crate) grows_from: i64,
    /// Before now: negative.
    pub(crate) known_at: i64,
}

// === impl Slowdown ===

impl Slowdown {
    /// After a lesson at `rate` calls per window, of which `refused` were too many. `when`: its first refusal, and now.
    pub(super) fn new(rate: f64, refused: f64, streak: u32, when: (Instant, Instant)) -> Self {
        let left = if streak <= 1 {
            LEFT_BY_FIRST
        } else {
            LEFT_BY_LATER
        };
        let lowest = (rate - refused.max(rate * LEAST_CUT))
            .max(rate * left)
            .max(LOWEST.min(rate));
        let (known_at, grows_from) = when;
        Self {
            lowest,
            taken: rate - lowest,
            grows_from,
            streak,
            known_at,
        }
    }

    /// Calls per window at `now`, at most the limit's.
    pub(super) fn rate(&self, limit: Limit, now: Instant) -> f64 {
        let returns =
            now.saturating_duration_since(self.grows_from).as_secs_f64() / self.return_time(limit);
        let back = self.lowest + self.taken * returns.min(1.0);
        let rate = back * (1.0 + ((returns - 1.0).max(0.0) / DOUBLES_AFTER).powi(2));
        let (count, step) = (f64::from(limit.count.get()), step(limit));
        // The instant at which a step is reached is rounded to a nanosecond.
        ((rate / step + 1e-6).floor() * step)
            .max(self.lowest)
            .min(count)
    }

    /// When the rate rises from `now` on, in order. The last one reaches the limit.
    pub(super) fn rises(
        &self,
        limit: Limit,
        now: Instant,
    ) -> impl Iterator<Item = Instant> + use<> {
        let (slowdown, reached) = (*self, self.steps_reached(limit, now));
        let left = (STEPS as u32).saturating_sub(reached);
        let stride = left.div_ceil(RISES).max(1) as usize;
        // Counted from the limit down, so that the last one is the limit.
        let steps = (0..left)
            .step_by(stride)
            .rev()
            .map(|below| STEPS as u32 - below);
        steps.map(move |steps| slowdown.reaches(steps, limit))
    }

    /// When the rate rises next.
    pub(super) fn next_rise(&self, limit: Limit, now: Instant) -> Option<Instant> {
        let reached = self.steps_reached(limit, now);
        (reached < STEPS as u32).then(|| self.reaches(reached + 1, limit))
    }

    /// Whether the rate is the limit's.
    pub(super) fn is_over(&self, limit: Limit, now: Instant) -> bool {
        self.rate(limit, now) >= f64::from(limit.count.get())
    }

    pub(super) fn grows_from(&mut self, at: Instant) {
        self.grows_from = self.grows_from.max(at);
    }

    pub(super) fn streak(&self) -> u32 {
        self.streak
    }

    pub(super) fn known_at(&self) -> Instant {
        self.known_at
    }

    pub(super) fn lowest(&self) -> f64 {
        self.lowest
    }

    pub(super) fn rate_before(&self) -> f64 {
        self.lowest + self.taken
    }

    /// Whether this is to be kept rather than `other`.
    pub(super) fn supersedes(&self, other: &Self, limit: Limit) -> bool {
        if self.known_at > other.known_at + limit.window {
            return true;
        }
        self.known_at + limit.window > other.known_at && self.lowest < other.lowest
    }

    pub(super) fn share(&self, now: Instant) -> SharedRate {
        let millionths = |rate: f64| (rate * 1e6).round() as u64;
        SharedRate {
            lowest: millionths(self.lowest),
            taken: millionths(self.taken),
            streak: self.streak,
            grows_from: from_now(self.grows_from, now),
            known_at: from_now(self.known_at, now),
        }
    }

    /// None if the limit is another one, or nothing is left of it.
    pub(super) fn shared(shared: &SharedRate, limit: Limit, now: Instant) -> Option<Self> {
        let rate = |millionths: u64| millionths as f64 / 1e6;
        let (lowest, taken) = (rate(shared.lowest).max(LOWEST), rate(shared.taken));
        let count = f64::from(limit.count.get());
        if lowest + taken > count + 1e-6 {
            return None;
        }
        let (grows_from, known_at) = (
            at(shared.grows_from, now)?,
            at(shared.known_at, now)?.min(now),
        );
        let slowdown = Self {
            lowest,
            taken,
            grows_from,
            streak: shared.streak.max(1),
            known_at,
        };
        (!slowdown.is_over(limit, now)).then_some(slowdown)
    }

    fn steps_reached(&self, limit: Limit, now: Instant) -> u32 {
        (self.rate(limit, now) / step(limit) + 1e-6).floor() as u32
    }

    /// When the rate has risen to this number of steps.
    fn reaches(&self, steps: u32, limit: Limit) -> Instant {
        let rate = f64::from(steps) * step(limit);
        let before = self.rate_before();
        let returns = if rate <= before {
            (rate - self.lowest).max(0.0) / self.taken
        } else {
            1.0 + DOUBLES_AFTER * (rate / before - 1.0).sqrt()
        };
        self.grows_from + Duration::from_secs_f64(returns * self.return_time(limit))
    }

    /// Seconds from the lowest rate to the one before the lesson.
    fn return_time(&self, limit: Limit) -> f64 {
        let window = limit.window.max(SHORTEST_WINDOW).as_secs_f64();
        let per_window = self.lowest * window / limit.window.as_secs_f64();
        let most = (ATTEMPTS_PER_LESSON / per_window).clamp(*RETURN.start(), *RETURN.end());
        let doublings = self.streak.saturating_sub(1).min(10);
        (FIRST_RETURN * f64::from(1_u32 << doublings)).min(most) * window
    }
}

fn step(limit: Limit) -> f64 {
    f64::from(limit.count.get()) / STEPS
}

/// Microseconds from `now` to `at`.
fn from_now(at: Instant, now: Instant) -> i64 {
    let micros = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
    micros(at.saturating_duration_since(now)) - micros(now.saturating_duration_since(at))
}

fn at(micros: i64, now: Instant) -> Option<Instant> {
    let distance = Duration::from_micros(micros.unsigned_abs());
    if micros < 0 {
        now.checked_sub(distance)
    } else {
        now.checked_add(distance)
    }
}
