//! The rate at which CAMS accepts this lane's attempts. Two things can lower it: jitter on the way,
//! which lets attempts arrive closer together than they were written, and an outsider that uses the
//! same quota.
//!
//! Jitter can be measured before anything is throttled: it cannot be larger than the spread of the
//! answer times. The gap is a fraction of that spread. The fraction shrinks in quiet time, and when
//! answers arrive faster than jitter on the way in would allow. It grows with throttle refusals.
//!
//! An outsider is detected by throttle refusals that jitter does not explain. The lane then sends
//! at a lower rate, evenly spaced. The rate rises back to the point of the refusal slowly enough
//! that few attempts are throttled, and then faster and faster.
//!
//! All throttle refusals of attempts that met the same full window form one *congestion event*,
//! which changes the gap or the rate once.
//!
//! Only decides; time is an argument. `docs/decisions/0001-how-a-lane-learns.md` has the figures.

mod answer_times;
#[cfg(test)]
mod simulation;
mod slowdown;
#[cfg(test)]
mod tests;

use std::time::Duration;

use tokio::time::Instant;

use crate::config::{Learn, Limit};
use crate::limiter::pace::answer_times::AnswerTimes;
pub(crate) use crate::limiter::pace::slowdown::SharedRate;
use crate::limiter::pace::slowdown::Slowdown;

/// A new lane's gap, as a fraction of the spread of its answer times. Attempts that leave together
/// arrive in the order of their jitter, so a window needs less than the whole spread.
const INITIAL_FRACTION: f64 = 0.75;
/// The increase of the fraction after a refusal that jitter explains.
const FRACTION_INCREASE: f64 = 0.1;
/// The quiet time in which the fraction shrinks to zero. Slowly at first: a tenth takes 95 s.
const FRACTION_LIFETIME: Duration = Duration::from_secs(300);
/// The fraction is multiplied by this when answers prove that the spread is not on the way in.
const PROOF_FACTOR: f64 = 0.8;
/// For this time after a refusal by jitter, answers prove nothing: some of the spread is on the
/// way in.
const PROOF_SUSPENDED_FOR: Duration = Duration::from_secs(60);
/// Jitter explains a refusal only if the gap is below this fraction of the spread.
const EXPLAINED_BELOW: f64 = 0.85;
/// The number of accepted attempts that make up for one isolated refusal.
const CREDIT_PER_ISOLATED: f64 = 10.0;
/// A second isolated refusal within this number of windows is a congestion event for the rate. A
/// single one is not.
const SUSPICION_WINDOWS: u32 = 10;
/// Attempts that were written within this part of a window after the first refusal met the same
/// full window, so they belong to the same congestion event.
const SAME_EVENT: f64 = 0.9;
/// Timers are too coarse for a smaller spacing.
const MIN_SPACING: Duration = Duration::from_millis(8);

/// What one lane has learned, and the rate that results from it.
#[derive(Debug)]
pub(crate) struct Pace {
    limit: Limit,
    /// The bounds of the gap in microseconds. Small types, because there may be many lanes.
    min_gap: u32,
    max_gap: u32,
    answer_times: AnswerTimes,
    /// The gap as a fraction of the spread of answer times, as of `fraction_since`.
    fraction: f32,
    fraction_since: Option<Instant>,
    /// Accepted attempts that have not yet made up for an isolated refusal.
    credit: f32,
    /// Answers since `answers_since`, counted for one window.
    answers: u32,
    answers_since: Option<Instant>,
    /// What throttle refusals have taught. None for most lanes.
    history: Option<Box<ThrottleHistory>>,
}

/// A rate: at most `tokens` attempts are written per `window` plus `gap`, at least `spacing` apart.
/// A change of the rate also applies to attempts that are already written: their tokens are back
/// when the present window and gap have passed since the write. That way the answers of the first
/// attempts determine the gap for these very attempts' tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    /// The tokens that may be in use at once, at most the limit's count.
    pub(crate) tokens: u32,
    /// At least the limit's window.
    pub(crate) window: Duration,
    /// What is added to the window before a token is back.
    pub(crate) gap: Duration,
    /// The least time between two writes of the lane. Zero unless it sends less than its limit.
    pub(crate) spacing: Duration,
}

/// An attempt that CAMS has throttled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ThrottledAttempt {
    /// When the first byte of the request was written.
    pub(crate) written_at: Instant,
    /// A throttled probe is no evidence about the rate, because the lane sent nothing else.
    pub(crate) probe: bool,
    /// This process's share of the lane's attempts (0..=1). It sees the refusals of its own
    /// attempts only.
    pub(crate) own_share: f64,
}

#[derive(Debug, Default)]
struct ThrottleHistory {
    slowdown: Option<Slowdown>,
    congestion_event: Option<CongestionEvent>,
    /// The latest isolated refusal that jitter does not explain.
    suspected_at: Option<Instant>,
    /// The latest refusal that jitter explains.
    jitter_at: Option<Instant>,
    /// When the limit has changed. Refusals of attempts that were written before teach nothing
    /// about the new limit.
    learns_from: Option<Instant>,
}

/// All throttle refusals of attempts that met the same full window.
#[derive(Clone, Copy, Debug)]
struct CongestionEvent {
    known_at: Instant,
    /// The refusals that this process has seen.
    seen: u32,
    /// The estimated refusals of the whole lane.
    refused: f64,
    /// The rate in calls per window, and the congestion events in a row, before this one.
    rate_before: f64,
    streak_before: u32,
    /// Whether jitter explains it.
    by_jitter: bool,
}

// === impl Pace ===

impl Pace {
    pub(crate) fn new(limit: Limit, bounds: Learn) -> Self {
        let (min_gap, max_gap) = gap_bounds(bounds, limit);
        Self {
            limit,
            min_gap,
            max_gap,
            answer_times: AnswerTimes::default(),
            fraction: INITIAL_FRACTION as f32,
            fraction_since: None,
            credit: 0.0,
            answers: 0,
            answers_since: None,
            history: None,
        }
    }

    /// Applies changed rules. What was learned about another limit is dropped.
    pub(crate) fn set_rules(&mut self, limit: Limit, bounds: Learn, now: Instant) {
        if limit == self.limit {
            (self.min_gap, self.max_gap) = gap_bounds(bounds, limit);
            return;
        }
        *self = Self::new(limit, bounds);
        self.history = Some(Box::new(ThrottleHistory {
            learns_from: Some(now),
            ..ThrottleHistory::default()
        }));
    }

    /// The rate at `now`.
    pub(crate) fn rate(&self, now: Instant) -> Rate {
        let gap = Duration::from_secs_f64(self.gap(now));
        let rate = self.calls_per_window(now);
        if rate >= self.count() {
            return Rate {
                tokens: self.limit.count.get(),
                window: self.limit.window,
                gap,
                spacing: Duration::ZERO,
            };
        }
        let tokens = rate.ceil().max(1.0);
        let spacing = self.limit.window.div_f64(rate);
        Rate {
            tokens: tokens as u32,
            window: self
                .limit
                .window
                .mul_f64(tokens / rate)
                .max(self.limit.window),
            gap,
            spacing: if spacing < MIN_SPACING {
                Duration::ZERO
            } else {
                spacing
            },
        }
    }

    /// When the rate rises next, if no attempt is throttled until then.
    pub(crate) fn next_rise(&self, now: Instant) -> Option<Instant> {
        self.slowdown()?.next_rise(self.limit, now)
    }

    /// The future rates if no attempt is throttled, in order. At most 16; the last is the whole
    /// limit.
    pub(crate) fn upcoming_rates(&self, now: Instant) -> impl Iterator<Item = (Instant, Rate)> {
        self.slowdown()
            .into_iter()
            .flat_map(move |slowdown| slowdown.rises(self.limit, now))
            .map(|at| (at, self.rate(at)))
    }

    /// CAMS accepted an attempt.
    pub(crate) fn accepted(&mut self, written_at: Instant, now: Instant) {
        self.sample(written_at, now);
        let most = CREDIT_PER_ISOLATED * (1.0 + self.count() / 10.0);
        self.credit = (self.credit + 1.0).min(most as f32);
        self.count_answer(now);
        self.drop_expired(now);
    }

    /// CAMS throttled an attempt. Returns whether the refusal is isolated: it came among accepted
    /// attempts.
    pub(crate) fn throttled(&mut self, attempt: &ThrottledAttempt, now: Instant) -> bool {
        self.sample(attempt.written_at, now);
        let isolated = f64::from(self.credit) >= CREDIT_PER_ISOLATED;
        self.credit = if isolated {
            self.credit - CREDIT_PER_ISOLATED as f32
        } else {
            0.0
        };
        let learns_from = self
            .history
            .as_ref()
            .and_then(|history| history.learns_from);
        if attempt.probe || learns_from.is_some_and(|from| attempt.written_at < from) {
            return isolated;
        }
        let event = self.congestion_event(attempt, now);
        self.widen_gap(&event, now);
        self.slow_down(&event, isolated, now);
        isolated
    }

    /// The lane is paused until `at`. A pause does not count as quiet time, so the rate does not
    /// rise in it.
    pub(crate) fn paused_until(&mut self, at: Instant) {
        if let Some(slowdown) = self
            .history
            .as_mut()
            .and_then(|history| history.slowdown.as_mut())
        {
            slowdown.delay_rise(at);
        }
    }

    /// Whether the lane sends less than its limit.
    #[cfg(test)]
    pub(crate) fn has_learned(&self) -> bool {
        self.slowdown().is_some()
    }

    /// Whether a new lane would do as well as this one. A new lane learns its gap from its first
    /// answers.
    pub(crate) fn is_at_rest(&self, now: Instant) -> bool {
        let Some(history) = &self.history else {
            return true;
        };
        let window = self.limit.window;
        let is_slow = history
            .slowdown
            .is_some_and(|slowdown| !slowdown.is_over(self.limit, now));
        let event_at = history.congestion_event.map(|event| event.known_at);
        !is_slow
            && !is_recent(history.jitter_at, PROOF_SUSPENDED_FOR, now)
            && !is_recent(history.suspected_at, window * SUSPICION_WINDOWS, now)
            && !is_recent(history.learns_from.max(event_at), window, now)
    }

    /// What replicas that share the quota exchange. Each replica has a gap of its own.
    pub(crate) fn to_shared(&self, now: Instant) -> Option<SharedRate> {
        self.slowdown().map(|slowdown| slowdown.to_shared(now))
    }

    /// Adopts what another replica has learned. Of two congestion events from the same window the
    /// lower rate applies, otherwise the later one.
    pub(crate) fn adopt(&mut self, shared: &SharedRate, now: Instant) {
        let Some(theirs) = Slowdown::from_shared(shared, self.limit, now) else {
            return;
        };
        let history = self.history.get_or_insert_default();
        if history
            .learns_from
            .is_some_and(|from| theirs.known_at() < from)
        {
            return;
        }
        if history
            .slowdown
            .is_some_and(|ours| !theirs.supersedes(&ours, self.limit))
        {
            return;
        }
        history.slowdown = Some(theirs);
        // This replica's refusals in the same window belong to the same congestion event.
        history.congestion_event = Some(CongestionEvent {
            known_at: theirs.known_at(),
            seen: 1,
            refused: theirs.rate_before() - theirs.lowest(),
            rate_before: theirs.rate_before(),
            streak_before: theirs.streak().saturating_sub(1),
            by_jitter: false,
        });
    }

    /// The gap in seconds.
    fn gap(&self, now: Instant) -> f64 {
        (self.fraction(now) * self.spread()).max(f64::from(self.min_gap) / 1e6)
    }

    /// The gap as a fraction of the spread.
    fn fraction(&self, now: Instant) -> f64 {
        let ceiling = (self.max_gap() / self.spread().max(1e-9)).min(1.0);
        let quiet = self.fraction_since.map_or(0.0, |since| {
            now.saturating_duration_since(since).as_secs_f64()
        });
        let shrunk = (quiet / FRACTION_LIFETIME.as_secs_f64()).powi(2);
        f64::from(self.fraction).min(ceiling) * (1.0 - shrunk).max(0.0)
    }

    /// The spread of answer times in seconds. It is bounded by the value that gives a new lane the
    /// largest gap, because one answer that took a second is no evidence of jitter.
    fn spread(&self) -> f64 {
        self.answer_times
            .spread()
            .min(self.max_gap() / INITIAL_FRACTION)
    }

    /// The largest gap in seconds.
    fn max_gap(&self) -> f64 {
        f64::from(self.max_gap) / 1e6
    }

    fn set_fraction(&mut self, fraction: f64, now: Instant) {
        self.fraction = fraction as f32;
        self.fraction_since = Some(now);
    }

    fn sample(&mut self, written_at: Instant, now: Instant) {
        self.answer_times
            .add(now.saturating_duration_since(written_at));
        self.fraction_since.get_or_insert(now);
    }

    /// Counts answers per window. If more answers than tokens arrive within one window, the
    /// attempts were not spread on the way in, because otherwise one of them would have been
    /// throttled. The fraction shrinks then.
    fn count_answer(&mut self, now: Instant) {
        match self.answers_since {
            Some(since) if now < since + self.limit.window => self.answers += 1,
            _ => {
                self.answers_since = Some(now);
                self.answers = 1;
            }
        }
        if self.answers <= self.limit.count.get() {
            return;
        }
        self.answers_since = None;
        let jitter_at = self.history.as_ref().and_then(|history| history.jitter_at);
        if jitter_at.is_none_or(|at| now >= at + PROOF_SUSPENDED_FOR) {
            self.set_fraction(self.fraction(now) * PROOF_FACTOR, now);
        }
    }

    /// Adds this refusal to the congestion event that it belongs to, and returns that event.
    fn congestion_event(&mut self, attempt: &ThrottledAttempt, now: Instant) -> CongestionEvent {
        let gap = self.gap(now);
        let rate_before = self.calls_per_window(now);
        let explained = self.spread().min(self.max_gap());
        let window = self.limit.window;
        let history = self.history.get_or_insert_default();
        let running = history
            .congestion_event
            .filter(|event| attempt.written_at <= event.known_at + window.mul_f64(SAME_EVENT));
        let mut event = running.unwrap_or(CongestionEvent {
            known_at: now,
            seen: 0,
            refused: 0.0,
            rate_before,
            streak_before: history.slowdown.map_or(0, |slowdown| slowdown.streak()),
            by_jitter: gap < explained * EXPLAINED_BELOW,
        });
        event.seen = event.seen.saturating_add(1);
        event.refused += 1.0 / attempt.own_share.clamp(0.01, 1.0);
        // Jitter alone does not cause more refusals than this together.
        event.by_jitter &= event.refused <= 2.0 + event.rate_before / 20.0;
        history.congestion_event = Some(event);
        event
    }

    fn widen_gap(&mut self, event: &CongestionEvent, now: Instant) {
        if event.by_jitter {
            self.set_fraction(self.fraction(now) + FRACTION_INCREASE, now);
            self.history.get_or_insert_default().jitter_at = Some(now);
        }
    }

    fn slow_down(&mut self, event: &CongestionEvent, isolated: bool, now: Instant) {
        if event.by_jitter {
            return;
        }
        let suspicion = self.limit.window * SUSPICION_WINDOWS;
        let history = self.history.get_or_insert_default();
        if event.seen == 1 && isolated && history.slowdown.is_none() {
            let suspected_at = history.suspected_at.replace(now);
            if suspected_at.is_none_or(|at| now > at + suspicion) {
                return;
            }
        }
        let refused = if event.seen == 1 { 0.0 } else { event.refused };
        history.slowdown = Some(Slowdown::new(
            event.rate_before,
            refused,
            event.streak_before.saturating_add(1),
            event.known_at,
            now,
        ));
    }

    fn drop_expired(&mut self, now: Instant) {
        if self.history.is_some() && self.is_at_rest(now) {
            self.history = None;
        } else if let Some(history) = &mut self.history {
            history.slowdown = history
                .slowdown
                .filter(|slowdown| !slowdown.is_over(self.limit, now));
        }
    }

    fn slowdown(&self) -> Option<&Slowdown> {
        self.history.as_ref()?.slowdown.as_ref()
    }

    fn calls_per_window(&self, now: Instant) -> f64 {
        self.slowdown()
            .map_or(self.count(), |slowdown| slowdown.rate(self.limit, now))
    }

    fn count(&self) -> f64 {
        f64::from(self.limit.count.get())
    }
}

/// Whether `at` is less than `time` ago.
fn is_recent(at: Option<Instant>, time: Duration, now: Instant) -> bool {
    at.is_some_and(|at| now < at + time)
}

/// The least and the largest gap in microseconds. The largest is at most half of the window, but
/// not below the least.
fn gap_bounds(bounds: Learn, limit: Limit) -> (u32, u32) {
    let max_gap = bounds.max_gap.min(limit.window / 2).max(bounds.gap);
    (saturating_micros(bounds.gap), saturating_micros(max_gap))
}

fn saturating_micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

// === impl Rate ===

impl Rate {
    /// How long a token is away after its write.
    pub(crate) fn away(&self) -> Duration {
        self.window + self.gap
    }

    /// The rate in calls per second.
    pub(crate) fn per_second(&self) -> f64 {
        f64::from(self.tokens) / self.away().as_secs_f64()
    }
}
