//! The spread of a lane's answer times. It is an upper bound of the jitter on the way to CAMS.

use std::time::Duration;

/// After this number of answers the older half is dropped.
const HALF_LEN: u8 = 32;
/// With fewer answers the spread counts as zero.
const MIN_ANSWERS: u8 = 3;
/// The extremes of n answers are closer together than the true ones, so the spread is increased by
/// this factor divided by n. The spread of five answers counts five times. With that, behind 30 ms
/// of jitter one minute in 1000 has a refusal.
const UNSEEN_FACTOR: f64 = 20.0;

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
        if self.latest.count == HALF_LEN {
            self.before = std::mem::take(&mut self.latest);
        }
        let time = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        self.latest = self.latest.merged(Extremes {
            count: 1,
            least: time,
            most: time,
        });
    }

    /// The spread in seconds, increased for what a small number of answers may not have shown.
    pub(super) fn spread(&self) -> f64 {
        let Extremes { count, least, most } = self.latest.merged(self.before);
        if count < MIN_ANSWERS {
            return 0.0;
        }
        f64::from(most - least) / 1e6 * (1.0 + UNSEEN_FACTOR / f64::from(count))
    }
}

// === impl Extremes ===

impl Extremes {
    fn merged(self, other: Self) -> Self {
        match (self.count, other.count) {
            (0, _) => other,
            (_, 0) => self,
            (own, others) => Self {
                count: own + others,
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
    fn two_answers_have_no_spread_and_fewer_answers_increase_it_more() {
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
