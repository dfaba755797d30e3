//! By how much do the answer times of a lane differ? No attempt was later on its way in than that.

use std::time::Duration;

/// Answers after which the older extremes are forgotten.
const REMEMBERED: u8 = 32;
/// The fewest answers that say anything.
const FEWEST: u8 = 3;
/// The extremes of n answers lie closer together than the true ones: this, over n, is added to their distance. Five answers
/// count as five times as far apart as they are, so that in 1000 minutes behind 30 ms of jitter one has a refusal.
const UNSEEN: f64 = 20.0;

/// The extremes of the latest 32 to 63 answer times, in microseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct AnswerTimes {
    latest: Extremes,
    before: Extremes,
}

#[derive(Clone, Copy, Debug, Default)]
struct Extremes {
    count: u8,
    least: u32,
    most: u32,
}

// === impl AnswerTimes ===

impl AnswerTimes {
    pub(super) fn add(&mut self, time: Duration) {
        if self.latest.count == REMEMBERED {
            self.before = std::mem::take(&mut self.latest);
        }
        let time = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        self.latest = self.latest.with(Extremes {
            count: 1,
            least: time,
            most: time,
        });
    }

    /// How far apart the extremes are, in seconds, with what so few answers may not have shown.
    pub(super) fn spread(&self) -> f64 {
        let Extremes { count, least, most } = self.latest.with(self.before);
        if count < FEWEST {
            return 0.0;
        }
        f64::from(most - least) / 1e6 * (1.0 + UNSEEN / f64::from(count))
    }
}

// === impl Extremes ===

impl Extremes {
    fn with(self, other: Self) -> Self {
        match (self.count, other.count) {
            (0, _) => other,
            (_, 0) => self,
            (ours, theirs) => Self {
                count: ours + theirs,
                least: self.least.min(other.least),
                most: self.most.max(other.most),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread_ms(times: impl IntoIterator<Item = u64>) -> f64 {
        let mut answer_times = AnswerTimes::default();
        times
            .into_iter()
            .for_each(|ms| answer_times.add(Duration::from_millis(ms)));
        (answer_times.spread() * 1e6).round() / 1e3
    }

    #[test]
    fn two_answers_say_nothing_and_the_fewer_there_are_the_more_is_added() {
        assert_eq!(spread_ms([20, 50]), 0.0);
        assert_eq!(spread_ms([20, 30, 25, 22, 26]), 50.0);
        assert_eq!(spread_ms((0..20).map(|n| 20 + n % 11)), 20.0);
    }

    #[test]
    fn equal_answer_times_have_no_spread() {
        assert_eq!(spread_ms([20; 100]), 0.0);
    }

    #[test]
    fn an_extreme_is_forgotten_after_64_answers_at_most() {
        assert_eq!(spread_ms([2000].into_iter().chain([20; 63])), 2598.75);
        assert_eq!(spread_ms([2000].into_iter().chain([20; 64])), 0.0);
    }
}
