//! How much longer may slots be used whose answers come late? What is known of the store's clock says how far away it is;
//! an answer that took longer than that has slots that can no longer be used. Then the next ones are given more time, and
//! a store whose slots still come too late cannot deal.

use std::time::Duration;

/// The most that is added to the slack of a lane.
pub(crate) const MOST_EXTRA: Duration = Duration::from_millis(100);
/// What is added first; doubled with each answer that is too late.
const FIRST_EXTRA: Duration = Duration::from_millis(10);
/// The part of it that an answer in time takes away.
const LESS_EXTRA: u32 = 16;
/// After this many answers in a row whose slots all came too late the store cannot deal.
const TOO_FAR: u32 = 5;

/// What a lane adds to the slack.
#[derive(Debug, Default)]
pub(super) struct Allowance {
    extra: Duration,
    /// Answers in a row whose slots all came too late.
    too_late: u32,
    /// It has grown since the last answer.
    has_grown: bool,
}

/// What an answer is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Worth {
    /// Its slots can be used, or it had none.
    Fine,
    /// All its slots came too late. The next ones may be used for longer.
    TooLate,
    /// Such answers have come several times in a row: the store is of no use.
    TooFar,
}

// === impl Allowance ===

impl Allowance {
    pub(super) fn extra(&self) -> Duration {
        self.extra
    }

    /// An answer had slots in time, and slots that were too late.
    pub(super) fn judge(&mut self, in_time: usize, too_late: usize) -> Worth {
        self.has_grown = false;
        if in_time > 0 {
            self.too_late = 0;
            self.extra -= self.extra / LESS_EXTRA;
        } else if too_late > 0 {
            self.too_late += 1;
            self.more();
            return if self.too_late >= TOO_FAR {
                Worth::TooFar
            } else {
                Worth::TooLate
            };
        }
        Worth::Fine
    }

    /// A slot came in time, but its attempt did not: a slow disk, a busy machine, or more slots than can be written within
    /// the slack. The next slots may be used for longer. All slots of one answer count once.
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
    fn answers_that_are_too_late_double_it_and_answers_in_time_take_it_back() {
        let mut allowance = Allowance::default();
        let mut late = || (allowance.judge(0, 2), allowance.extra().as_millis());
        let seen: Vec<_> = (0..5).map(|_| late()).collect();
        assert_eq!(
            seen.iter().map(|(_, extra)| *extra).collect::<Vec<_>>(),
            [10, 20, 40, 80, 100]
        );
        assert!(
            seen[..4].iter().all(|(worth, _)| *worth == Worth::TooLate)
                && seen[4].0 == Worth::TooFar
        );
        assert_eq!(allowance.judge(0, 0), Worth::Fine);
        assert_eq!(
            allowance.extra(),
            MOST_EXTRA,
            "an answer without slots says nothing"
        );
        let seen: Vec<_> = (0..20)
            .map(|_| (allowance.judge(1, 1), allowance.extra()))
            .collect();
        assert!(seen.is_sorted_by(|a, b| a.1 > b.1) && seen[19].1 < MOST_EXTRA / 3);
        assert_eq!(allowance.judge(0, 1), Worth::TooLate);
    }

    #[test]
    fn attempts_that_are_too_late_double_it_too_once_for_an_answer() {
        let mut allowance = Allowance::default();
        let mut late = || {
            allowance.judge(0, 0);
            (0..3).for_each(|_| allowance.used_late());
            allowance.extra().as_millis()
        };
        assert_eq!([(); 5].map(|()| late()), [10, 20, 40, 80, 100]);
        assert_eq!(
            allowance.judge(0, 1),
            Worth::TooLate,
            "it says nothing of the store"
        );
    }
}
