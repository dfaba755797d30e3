//! Additional slack for slots whose answers arrive late.
//!
//! The bounds on the store's clock give its distance. An answer that took longer has slots that can
//! no longer be used; the next slots then get more slack. A store whose slots are still too late is
//! considered too far away.

use std::time::Duration;

/// Upper bound of a lane's additional slack.
pub(crate) const MOST_EXTRA: Duration = Duration::from_millis(100);
/// The first additional slack; doubled with each late answer.
const FIRST_EXTRA: Duration = Duration::from_millis(10);
/// An answer in time reduces the additional slack by this fraction.
const LESS_EXTRA: u32 = 16;
/// After this many consecutive answers without a usable slot, the store is too far away.
const TOO_FAR: u32 = 5;

/// A lane's additional slack.
#[derive(Debug, Default)]
pub(super) struct ExtraSlack {
    extra: Duration,
    /// Consecutive answers whose slots were all too late.
    too_late: u32,
    /// Whether `extra` has grown since the last answer.
    has_grown: bool,
}

/// Whether the slots of an answer are usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlotTiming {
    /// Some slots are usable, or there are none.
    Fine,
    /// All slots are too late. The next ones get more slack.
    TooLate,
    /// All slots were too late several times in a row.
    TooFar,
}

// === impl ExtraSlack ===

impl ExtraSlack {
    pub(super) fn get(&self) -> Duration {
        self.extra
    }

    /// Judges an answer by its numbers of slots in time and too late.
    pub(super) fn judge(&mut self, in_time: usize, too_late: usize) -> SlotTiming {
        self.has_grown = false;
        if in_time > 0 {
            self.too_late = 0;
            self.extra -= self.extra / LESS_EXTRA;
        } else if too_late > 0 {
            self.too_late += 1;
            self.more();
            return if self.too_late >= TOO_FAR {
                SlotTiming::TooFar
            } else {
                SlotTiming::TooLate
            };
        }
        SlotTiming::Fine
    }

    /// A slot arrived in time but was used too late: a slow disk, a busy machine, or more slots
    /// than can be written within the slack. The next slots get more slack. All slots of one answer
    /// count once.
    pub(super) fn used_late(&mut self) {
        if !std::mem::replace(&mut self.has_grown, true) {
            self.more();
        }
    }

    fn more(&mut self) {
        self.extra = (2 * self.extra).clamp(FIRST_EXTRA, MOST_EXTRA);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_answers_double_the_slack_and_answers_in_time_reduce_it() {
        let mut extra_slack = ExtraSlack::default();
        let mut late = || (extra_slack.judge(0, 2), extra_slack.get().as_millis());
        let seen: Vec<_> = (0..5).map(|_| late()).collect();
        assert_eq!(
            seen.iter().map(|(_, extra)| *extra).collect::<Vec<_>>(),
            [10, 20, 40, 80, 100]
        );
        assert!(
            seen[..4]
                .iter()
                .all(|(timing, _)| *timing == SlotTiming::TooLate)
                && seen[4].0 == SlotTiming::TooFar
        );
        assert_eq!(extra_slack.judge(0, 0), SlotTiming::Fine);
        assert_eq!(
            extra_slack.get(),
            MOST_EXTRA,
            "an answer without slots has no effect"
        );
        let seen: Vec<_> = (0..20)
            .map(|_| (extra_slack.judge(1, 1), extra_slack.get()))
            .collect();
        assert!(seen.is_sorted_by(|a, b| a.1 > b.1) && seen[19].1 < MOST_EXTRA / 3);
        assert_eq!(extra_slack.judge(0, 1), SlotTiming::TooLate);
    }

    #[test]
    fn late_attempts_double_the_slack_once_per_answer() {
        let mut extra_slack = ExtraSlack::default();
        let mut late = || {
            extra_slack.judge(0, 0);
            (0..3).for_each(|_| extra_slack.used_late());
            extra_slack.get().as_millis()
        };
        assert_eq!([(); 5].map(|()| late()), [10, 20, 40, 80, 100]);
        assert_eq!(
            extra_slack.judge(0, 1),
            SlotTiming::TooLate,
            "late attempts do not count against the store"
        );
    }
}
