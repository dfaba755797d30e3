//! At what rate does CAMS really take this lane's attempts? An episode of throttle refusals is either jitter on the way,
//! which bunches attempts that left a window apart, or an outsider who spends the same quota. The lane cannot tell which:
//! it widens the gap first, and uses fewer tokens per window once the gap is at its ceiling. Quiet time gives back the
//! tokens, then the gap. Only decides; the tokens (`take_token/memory.rs`) keep the pace that it names.
//!
//! The lane's own count never explains a refusal: no window holds more of its sends than the limit allows, and what a
//! predecessor may have sent is waited out at the start. So every new episode teaches.
//!
//! The more of an episode's attempts were refused, the more too narrow was the gap: each further refusal widens it by a
//! step too, but costs no token and does not lengthen the back-off. An endpoint that takes 5 per sliding second, behind
//! 30 ms of jitter, then refuses 0.8 % of the first minute at 97.5 % of the rate, and at most 1.7 % in the worst of 1500
//! minutes. With a step per episode, however many it refused, it is 1.0 % and 2.7 %: whole bunches of five meet a gap
//! that is still narrow. Beside an outsider's even 2/s the lane sends 2.9/s with 3 % refused: a token is tried again every
//! twelve seconds, for an outsider's end can be seen in no other way.
//!
//! Known limit: on a steady path the lane's five take up the quota in the instant in which it frees. An outsider who gives
//! up when refused is crowded out then, and as the lane is not refused, it learns nothing of him.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::{Learn, Limit};

/// What one refusal adds to the gap.
const WIDER: Duration = Duration::from_millis(10);
/// How long it must be quiet before the gap narrows.
const BEFORE_NARROWING: Duration = Duration::from_secs(10);
/// The gap narrows by a part in so many of the time that passes: 0.2 ms a second.
const NARROWING: u32 = 5000;
/// Windows (of a second at least) that must be quiet for each step of tokens to come back.
const WINDOWS_PER_TOKEN: u32 = 12;
/// Tokens go in so many steps: one by one for a count of five.
const STEPS: u32 = 5;

/// What the lane has learned.
#[derive(Debug)]
pub(crate) struct Learned {
    limit: Limit,
    bounds: Learn,
    /// As the latest episode left it; time gives back.
    pace: Pace,
    /// Since when it has been quiet, or will be: the lane sends again after the latest episode.
    quiet_from: Option<Instant>,
}

/// How a lane uses its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pace {
    /// What is added to the window before a token comes back.
    pub(crate) gap: Duration,
    /// How many tokens may be in use.
    pub(crate) tokens: u32,
}

// === impl Learned ===

impl Learned {
    pub(crate) fn new(limit: Limit, bounds: Learn) -> Self {
        let max_gap = bounds.max_gap.min(limit.window / 2).max(bounds.gap);
        let pace = Pace { gap: bounds.gap, tokens: limit.count.get() };
        Self { limit, bounds: Learn { max_gap, ..bounds }, pace, quiet_from: None }
    }

    /// The rules have changed. What was learned of another limit says nothing of this one.
    pub(crate) fn keep_to(&mut self, limit: Limit, bounds: Learn) {
        let fresh = Self::new(limit, bounds);
        if limit != self.limit || !self.has_learned() {
            *self = fresh;
            return;
        }
        self.bounds = fresh.bounds;
        self.pace.gap = self.pace.gap.clamp(self.bounds.gap, self.bounds.max_gap);
    }

    /// Whether there was an episode: without one the pace does not change with time.
    pub(crate) fn has_learned(&self) -> bool {
        self.quiet_from.is_some()
    }

    /// The pace to keep at `now`.
    pub(crate) fn pace(&self, now: Instant) -> Pace {
        let Some(quiet_from) = self.quiet_from else { return self.pace };
        let quiet = now.saturating_duration_since(quiet_from);
        let count = self.limit.count.get();
        let per_step = self.per_step();
        let steps = u32::try_from(quiet.as_nanos() / per_step.as_nanos()).unwrap_or(u32::MAX);
        let tokens = self.pace.tokens.saturating_add(steps.saturating_mul(self.step())).min(count);
        // The gap's turn comes when all tokens are back.
        let whole_after = per_step * (count - self.pace.tokens).div_ceil(self.step());
        let narrowed = quiet.saturating_sub(whole_after.max(BEFORE_NARROWING)) / NARROWING;
        Pace { gap: self.pace.gap.saturating_sub(narrowed).max(self.bounds.gap), tokens }
    }

    /// When one token more may be used, from `now` on, if it stays quiet: in order.
    pub(crate) fn returns(&self, now: Instant) -> Vec<Instant> {
        let Some(quiet_from) = self.quiet_from else { return Vec::new() };
        let missing = self.limit.count.get() - self.pace.tokens;
        let returns = (0..missing).map(|token| quiet_from + self.per_step() * (token / self.step() + 1));
        returns.filter(|at| *at > now).collect()
    }

    /// An episode has begun that holds the lane until `quiet_from`.
    pub(crate) fn episode(&mut self, now: Instant, quiet_from: Instant) {
        self.pace = self.pace(now);
        if self.pace.gap < self.bounds.max_gap {
            self.pace.gap = (self.pace.gap + WIDER).min(self.bounds.max_gap);
        } else {
            self.pace.tokens = self.pace.tokens.saturating_sub(self.step()).max(1);
        }
        self.quiet_from = Some(quiet_from);
    }

    /// Another attempt of the running episode came back refused.
    pub(crate) fn refused_too(&mut self) {
        self.pace.gap = (self.pace.gap + WIDER).min(self.bounds.max_gap);
    }

    /// For the store to keep: of which limit, the gap in microseconds, the tokens, and since when it has been quiet.
    pub(crate) fn text(&self, limit: Limit, stored: impl Fn(Instant) -> u64) -> String {
        let quiet_from = self.quiet_from.map_or(0, stored);
        let Pace { gap, tokens } = self.pace;
        format!("{}/{}:{}:{tokens}:{quiet_from}", limit.count, limit.window.as_micros(), gap.as_micros())
    }

    /// What the store has kept; of another limit it says nothing.
    pub(crate) fn read(&mut self, text: &str, limit: Limit, moment: impl Fn(u64) -> Instant) {
        let of = format!("{}/{}", limit.count, limit.window.as_micros());
        let parts: Vec<&str> = text.split(':').collect();
        let known = match parts[..] {
            [kept, gap, tokens, quiet] if kept == of => {
                gap.parse().ok().zip(tokens.parse().ok()).zip(quiet.parse::<u64>().ok())
            }
            _ => None,
        };
        match known {
            Some(((gap, tokens), quiet)) => {
                let gap = Duration::from_micros(gap).max(self.bounds.gap);
                self.pace = Pace { gap, tokens: u32::clamp(tokens, 1, self.limit.count.get()) };
                self.quiet_from = (quiet > 0).then(|| moment(quiet));
            }
            None => {
                self.pace = Pace { gap: self.bounds.gap, tokens: self.limit.count.get() };
                self.quiet_from = None;
            }
        }
    }

    /// Whether nothing is left of what was learned.
    pub(crate) fn is_forgotten(&self, now: Instant) -> bool {
        self.pace(now) == Pace { gap: self.bounds.gap, tokens: self.limit.count.get() }
    }

    fn per_step(&self) -> Duration {
        self.limit.window.max(Duration::from_secs(1)) * WINDOWS_PER_TOKEN
    }

    fn step(&self) -> u32 {
        self.limit.count.get().div_ceil(STEPS)
    }
}

// === impl Pace ===

impl Pace {
    /// Calls per second that fit, for operators.
    pub(crate) fn per_second(&self, window: Duration) -> f64 {
        f64::from(self.tokens) / (window + self.gap).as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    const LEARN: Learn = Learn { gap: Duration::from_millis(5), max_gap: Duration::from_millis(40) };
    const SECOND: Duration = Duration::from_secs(1);

    fn learned(count: u32, window: Duration) -> Learned {
        Learned::new(Limit { count: NonZeroU32::new(count).unwrap(), window }, LEARN)
    }

    /// After so many episodes in a row at `t`.
    fn troubled(count: u32, episodes: u32, t: Instant) -> Learned {
        let mut learned = learned(count, SECOND);
        (0..episodes).for_each(|_| learned.episode(t, t));
        learned
    }

    /// (gap in microseconds, tokens)
    fn pace(learned: &Learned, now: Instant) -> (u128, u32) {
        let Pace { gap, tokens } = learned.pace(now);
        (gap.as_micros(), tokens)
    }

    #[test]
    fn episodes_widen_the_gap_to_its_ceiling_then_take_tokens_but_the_last() {
        let t = Instant::now();
        let after = |episodes| pace(&troubled(5, episodes, t), t);
        let expected =
            [(5, 5), (15, 5), (25, 5), (35, 5), (40, 5), (40, 4), (40, 3), (40, 2), (40, 1), (40, 1), (40, 1)];
        for (episodes, (gap, tokens)) in (0..).zip(expected) {
            assert_eq!(after(episodes), (gap * 1000, tokens), "{episodes} episodes");
        }
    }

    #[test]
    fn the_more_an_episode_refuses_the_wider_the_gap_but_it_takes_one_token_at_most() {
        let t = Instant::now();
        let mut learned = learned(5, SECOND);
        let mut episode = |refusals| {
            learned.episode(t, t);
            (1..refusals).for_each(|_| learned.refused_too());
            pace(&learned, t)
        };
        assert_eq!(
            [1, 2, 5, 5, 1].map(&mut episode),
            [(15, 5), (35, 5), (40, 5), (40, 4), (40, 3)].map(|(ms, n)| (ms * 1000, n))
        );
    }

    #[test]
    fn a_late_refusal_of_an_episode_takes_back_no_quiet_time() {
        let t = Instant::now();
        let mut learned = troubled(5, 1, t);
        assert_eq!(pace(&learned, t + SECOND * 20), (13_000, 5));
        learned.refused_too();
        assert_eq!(pace(&learned, t + SECOND * 20), (23_000, 5));
    }

    #[test]
    fn a_larger_count_goes_in_as_many_steps() {
        let t = Instant::now();
        assert_eq!([4, 5, 6, 7, 8, 9, 10].map(|n| pace(&troubled(10, n, t), t).1), [10, 8, 6, 4, 2, 1, 1]);
        assert_eq!([4, 5, 6, 7, 8, 9, 10].map(|n| pace(&troubled(7, n, t), t).1), [7, 5, 3, 1, 1, 1, 1]);
        let back = troubled(10, 8, t);
        assert_eq!(
            [11_999, 12_000, 24_000, 47_999, 48_000].map(|ms| pace(&back, t + SECOND * ms / 1000).1),
            [2, 4, 6, 8, 10]
        );
        let returns = |learned: &Learned, at: u32| -> Vec<u64> {
            learned.returns(t + SECOND * at).iter().map(|back| (*back - t).as_secs()).collect()
        };
        assert_eq!(returns(&back, 0), [12, 12, 24, 24, 36, 36, 48, 48]);
        assert_eq!(returns(&back, 24), [36, 36, 48, 48]);
        assert_eq!(returns(&troubled(7, 9, t), 0), [12, 12, 24, 24, 36, 36]);
        assert!(returns(&troubled(10, 4, t), 0).is_empty() && returns(&learned(10, SECOND), 0).is_empty());
    }

    #[test]
    fn ten_quiet_seconds_then_a_fifth_of_a_millisecond_each() {
        let t = Instant::now();
        let learned = troubled(5, 2, t);
        let expected = [(0, 25_000), (10_000, 25_000), (11_000, 24_800), (60_000, 15_000), (110_000, 5000)];
        for (ms, gap) in expected {
            assert_eq!(pace(&learned, t + Duration::from_millis(ms)), (gap, 5), "after {ms} ms");
        }
        assert!(!learned.is_forgotten(t + Duration::from_millis(109_999)));
        assert!(learned.is_forgotten(t + Duration::from_millis(110_000)));
        assert_eq!(pace(&learned, t + SECOND * 3600), (5000, 5));
    }

    #[test]
    fn tokens_come_back_one_per_twelve_quiet_seconds_before_the_gap_does() {
        let t = Instant::now();
        let learned = troubled(5, 7, t);
        let expected = [
            (11_999, (40_000, 2)),
            (12_000, (40_000, 3)),
            (24_000, (40_000, 4)),
            (36_000, (40_000, 5)),
            (37_000, (39_800, 5)),
            (211_000, (5000, 5)),
        ];
        for (ms, expected) in expected {
            assert_eq!(pace(&learned, t + Duration::from_millis(ms)), expected, "after {ms} ms");
        }
        assert!(learned.is_forgotten(t + Duration::from_millis(211_000)));
    }

    #[test]
    fn an_episode_goes_on_from_what_is_left_of_the_last() {
        let t = Instant::now();
        let mut learned = troubled(5, 7, t);
        learned.episode(t + SECOND * 13, t + SECOND * 13);
        assert_eq!(pace(&learned, t + SECOND * 13), (40_000, 2));
        learned.episode(t + SECOND * (13 + 36 + 100), t + SECOND * 150);
        assert_eq!(pace(&learned, t + SECOND * 150), (30_000, 5));
    }

    #[test]
    fn a_pause_is_not_quiet_time() {
        let t = Instant::now();
        let mut learned = troubled(5, 4, t);
        learned.episode(t, t + SECOND * 60);
        assert_eq!(pace(&learned, t + SECOND * 60), (40_000, 4));
        assert_eq!(pace(&learned, t + SECOND * 72), (40_000, 5));
    }

    #[test]
    fn the_bounds_of_a_short_and_of_a_long_window() {
        let t = Instant::now();
        let mut short = learned(5, Duration::from_millis(50));
        (0..4).for_each(|_| short.episode(t, t));
        assert_eq!(pace(&short, t), (25_000, 3));
        assert_eq!(pace(&short, t + SECOND * 12), (25_000, 4));
        let mut long = learned(5, SECOND * 60);
        (0..5).for_each(|_| long.episode(t, t));
        assert_eq!(pace(&long, t + SECOND * 719), (40_000, 4));
        assert_eq!(pace(&long, t + SECOND * 720), (40_000, 5));
    }

    #[test]
    fn the_rate_that_operators_see() {
        let t = Instant::now();
        assert_eq!(learned(5, SECOND).pace(t).per_second(SECOND), 5.0 / 1.005);
        assert_eq!(troubled(5, 6, t).pace(t).per_second(SECOND), 3.0 / 1.04);
    }
}
