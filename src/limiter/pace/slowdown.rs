//! The recovery of a lane's rate after a congestion event. It rises linearly to the rate at which
//! it was throttled, slowly enough for about one attempt in 28 to be throttled. If nothing is
//! throttled there, it rises faster and faster, because only sending more shows that an outsider
//! has stopped.
//!
//! The rate is a closed form of the time: nothing has to run while it rises, and replicas that
//! share it agree.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::Limit;

/// The least part of the rate that a congestion event cuts. It makes room for the lane's own
/// retries.
const MIN_CUT: f64 = 0.06;
/// The least part of the rate that the first congestion event leaves. A burst of refusals may have
/// another cause than the rate.
const MIN_LEFT_BY_FIRST: f64 = 0.5;
/// The same for later congestion events.
const MIN_LEFT_BY_LATER: f64 = 0.75;
/// The rate is never cut below this, in calls per window.
const MIN_RATE: f64 = 0.25;
/// Windows until the first congestion event's cut has been recovered. Doubles with each further
/// event in a row.
const FIRST_RECOVERY: f64 = 4.0;
/// The recovery takes at most as many windows as it takes to send this number of attempts, so that
/// few of them are throttled...
const ATTEMPTS_PER_EVENT: f64 = 28.0;
/// ...within these bounds, in windows.
const RECOVERY_BOUNDS: std::ops::RangeInclusive<f64> = 3.0..=16.0;
/// After the recovery, the rate doubles within this many times the duration of the recovery.
const DOUBLES_AFTER: f64 = 1.1;
/// The number of steps from zero to the limit in which the rate rises.
const STEPS: f64 = 64.0;
/// The most future rises that are listed.
const MAX_RISES: u32 = 16;
/// Shorter windows count as this long.
const MIN_WINDOW: Duration = Duration::from_secs(1);

/// A lane that sends less than its limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Slowdown {
    /// The rate right after the congestion event, in calls per window.
    lowest: f64,
    /// What the congestion event has cut from the rate, in calls per window.
    cut: f64,
    /// Since when the rate rises.
    rises_from: Instant,
    /// Congestion events in a row, without reaching the limit between them.
    streak: u32,
    /// When the first refusal of the congestion event was known.
    known_at: Instant,
}

/// A slowdown as replicas share it. Rates are in millionths of a call per window, times in
/// microseconds relative to now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SharedRate {
    pub(crate) lowest: u64,
    pub(crate) cut: u64,
    pub(crate) streak: u32,
    /// Negative if before now.
    pub(crate) rises_from: i64,
    /// Negative if before now.
    pub(crate) known_at: i64,
}

// === impl Slowdown ===

impl Slowdown {
    /// Makes the slowdown after a congestion event at `rate` calls per window, of which `refused`
    /// were throttled. Its first refusal was known at `known_at`; the rate rises from `now` on.
    pub(super) fn new(
        rate: f64,
        refused: f64,
        streak: u32,
        known_at: Instant,
        now: Instant,
    ) -> Self {
        let min_left = if streak <= 1 {
            MIN_LEFT_BY_FIRST
        } else {
            MIN_LEFT_BY_LATER
        };
        let lowest = (rate - refused.max(rate * MIN_CUT))
            .max(rate * min_left)
            .max(MIN_RATE.min(rate));
        Self {
            lowest,
            cut: rate - lowest,
            rises_from: now,
            streak,
            known_at,
        }
    }

    /// Calls per window at `now`, at most the limit's.
    pub(super) fn rate(&self, limit: Limit, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.rises_from).as_secs_f64();
        let recoveries = elapsed / self.recovery_time(limit);
        let recovered = self.lowest + self.cut * recoveries.min(1.0);
        let growth = 1.0 + ((recoveries - 1.0).max(0.0) / DOUBLES_AFTER).powi(2);
        let rate = recovered * growth;
        let step = step(limit);
        // The small addition makes up for rounding the time of a step to a nanosecond.
        ((rate / step + 1e-6).floor() * step)
            .max(self.lowest)
            .min(f64::from(limit.count.get()))
    }

    /// When the rate rises after `now`, in order. The last rise reaches the limit.
    pub(super) fn rises(
        &self,
        limit: Limit,
        now: Instant,
    ) -> impl Iterator<Item = Instant> + use<> {
        let slowdown = *self;
        let left = (STEPS as u32).saturating_sub(self.steps_reached(limit, now));
        let stride = left.div_ceil(MAX_RISES).max(1) as usize;
        // Counted down from the limit, so that the last rise reaches it.
        (0..left)
            .step_by(stride)
            .rev()
            .map(move |below| slowdown.reaches(STEPS as u32 - below, limit))
    }

    /// When the rate rises next.
    pub(super) fn next_rise(&self, limit: Limit, now: Instant) -> Option<Instant> {
        let reached = self.steps_reached(limit, now);
        (reached < STEPS as u32).then(|| self.reaches(reached + 1, limit))
    }

    /// Whether the rate has reached the limit.
    pub(super) fn is_over(&self, limit: Limit, now: Instant) -> bool {
        self.rate(limit, now) >= f64::from(limit.count.get())
    }

    /// Delays the rise until `at`.
    pub(super) fn delay_rise(&mut self, at: Instant) {
        self.rises_from = self.rises_from.max(at);
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
        self.lowest + self.cut
    }

    /// Whether this slowdown replaces `other`: it is from a later window, or it is lower and from
    /// the same one.
    pub(super) fn supersedes(&self, other: &Self, limit: Limit) -> bool {
        if self.known_at > other.known_at + limit.window {
            return true;
        }
        self.known_at + limit.window > other.known_at && self.lowest < other.lowest
    }

    pub(super) fn to_shared(self, now: Instant) -> SharedRate {
        SharedRate {
            lowest: to_millionths(self.lowest),
            cut: to_millionths(self.cut),
            streak: self.streak,
            rises_from: micros_from_now(self.rises_from, now),
            known_at: micros_from_now(self.known_at, now),
        }
    }

    /// Returns none if the slowdown is over or does not fit the limit.
    pub(super) fn from_shared(shared: &SharedRate, limit: Limit, now: Instant) -> Option<Self> {
        let lowest = from_millionths(shared.lowest).max(MIN_RATE);
        let cut = from_millionths(shared.cut);
        if lowest + cut > f64::from(limit.count.get()) + 1e-6 {
            return None;
        }
        let slowdown = Self {
            lowest,
            cut,
            rises_from: instant_from(shared.rises_from, now)?,
            streak: shared.streak.max(1),
            known_at: instant_from(shared.known_at, now)?.min(now),
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
        let recoveries = if rate <= before {
            (rate - self.lowest).max(0.0) / self.cut
        } else {
            1.0 + DOUBLES_AFTER * (rate / before - 1.0).sqrt()
        };
        self.rises_from + Duration::from_secs_f64(recoveries * self.recovery_time(limit))
    }

    /// Seconds from the lowest rate to the one before the congestion event.
    fn recovery_time(&self, limit: Limit) -> f64 {
        let window = limit.window.max(MIN_WINDOW).as_secs_f64();
        let per_window = self.lowest * window / limit.window.as_secs_f64();
        let most = (ATTEMPTS_PER_EVENT / per_window)
            .clamp(*RECOVERY_BOUNDS.start(), *RECOVERY_BOUNDS.end());
        let doublings = self.streak.saturating_sub(1).min(10);
        (FIRST_RECOVERY * f64::from(1_u32 << doublings)).min(most) * window
    }
}

fn step(limit: Limit) -> f64 {
    f64::from(limit.count.get()) / STEPS
}

fn to_millionths(rate: f64) -> u64 {
    (rate * 1e6).round() as u64
}

fn from_millionths(millionths: u64) -> f64 {
    millionths as f64 / 1e6
}

/// Microseconds from `now` to `at`; negative if `at` is earlier.
fn micros_from_now(at: Instant, now: Instant) -> i64 {
    saturating_micros(at.saturating_duration_since(now))
        - saturating_micros(now.saturating_duration_since(at))
}

fn saturating_micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

/// The inverse of [`micros_from_now`]. Returns none if the result cannot be represented.
fn instant_from(micros: i64, now: Instant) -> Option<Instant> {
    let distance = Duration::from_micros(micros.unsigned_abs());
    if micros < 0 {
        now.checked_sub(distance)
    } else {
        now.checked_add(distance)
    }
}
