//! How much of a hold does CAMS need for its answer? What it usually needs, measured per account and action: a call whose
//! turn comes later than its hold less this margin would be answered to nobody.
//!
//! The estimate is that of TCP's retransmission timer (RFC 6298): a running mean and four times the running deviation
//! from it, an eighth and a quarter of each new answer. A mean alone is overrun by half of all answers. A decayed
//! maximum is one slow answer's word for all that follow, and how fast it decays is a guess at how often answers come.
//! This one follows the spread itself: answers that take 30 to 70 ms in turn have a margin of about 140 ms and none
//! overruns it, and one answer of 5 s among answers of 50 ms is forgotten (a margin below 200 ms) after 28 of them. In
//! the meantime two bounds keep it from eating the hold: a third of the hold, and 2 s.

use std::time::Duration;

use dashmap::DashMap;

use crate::operation::Operation;
use crate::primitives::id::{AccountId, ActionName};

/// The usual answer time of each account and action, by their labels: those are closed sets, so callers cannot make this
/// grow.
#[derive(Default)]
pub(crate) struct Margins(DashMap<(AccountId, ActionName), AnswerTime>);

/// How long answers take.
struct AnswerTime {
    mean: Duration,
    deviation: Duration,
}

/// Before the first answer: a gateway on another continent.
const START: Duration = Duration::from_millis(200);
/// Answers that all take the same time still need some room: for timers, and for the way back to the caller.
const LEAST: Duration = Duration::from_millis(50);
/// The most that a margin may be.
const MOST: Duration = Duration::from_secs(2);

// === impl Margins ===

impl Margins {
    /// How long a call that is kept for `hold` may wait for its turn.
    pub(crate) fn wait(&self, operation: &Operation, hold: Duration) -> Duration {
        let usual = self
            .0
            .get(&operation.labels())
            .map_or(START, |known| known.usual());
        hold - usual.min(MOST).min(hold / 3)
    }

    /// CAMS has answered, and this is what it took.
    pub(crate) fn answered(&self, operation: &Operation, took: Duration) {
        let first = || AnswerTime {
            mean: took,
            deviation: took / 2,
        };
        self.0
            .entry(operation.labels())
            .and_modify(|known| known.add(took))
            .or_insert_with(first);
    }
}

// === impl AnswerTime ===

impl AnswerTime {
    fn add(&mut self, took: Duration) {
        self.deviation = (self.deviation * 3 + self.mean.abs_diff(took)) / 4;
        self.mean = (self.mean * 7 + took) / 8;
    }

    /// What an answer hardly ever exceeds.
    fn usual(&self) -> Duration {
        self.mean + (self.deviation * 4).max(LEAST)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::primitives::id::{ClientId, TenantId};

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn operation(account: &str, action: &str) -> Operation {
        Operation {
            account: AccountId::new(account),
            known: !account.starts_with('?'),
            weight: 1,
            client: ClientId::new("a"),
            tenant: TenantId::new(""),
            action: ActionName::new(action),
            limit: None,
            hold: ms(10_000),
            wait: ms(10_000),
        }
    }

    /// What is known after these answers, the first of them 50 ms.
    fn after(answers: impl IntoIterator<Item = u64>) -> AnswerTime {
        let mut time = AnswerTime {
            mean: ms(50),
            deviation: ms(25),
        };
        answers.into_iter().for_each(|took| time.add(ms(took)));
        time
    }

    #[test]
    fn it_is_200_ms_before_the_first_answer_and_three_times_the_first_after_it() {
        let (margins, operation) = (Margins::default(), operation("acme", "CreateFlow"));
        assert_eq!(margins.wait(&operation, ms(10_000)), ms(9800));
        margins.answered(&operation, ms(40));
        assert_eq!(margins.wait(&operation, ms(10_000)), ms(9880));
    }

    #[test]
    fn it_is_at_most_a_third_of_the_hold_and_2_s() {
        let margins = Margins::default();
        let slow = operation("acme", "CreateFlow");
        assert_eq!(margins.wait(&slow, ms(300)), ms(200));
        assert_eq!(margins.wait(&slow, ms(3)), ms(2));
        for _ in 0..100 {
            margins.answered(&slow, ms(5000));
        }
        assert_eq!(margins.wait(&slow, ms(30_000)), ms(28_000));
        assert_eq!(margins.wait(&slow, ms(3000)), ms(2000));
    }

    #[test]
    fn answers_that_all_take_the_same_time_leave_50_ms() {
        let usual = after([80; 200]).usual();
        assert!(
            usual.abs_diff(ms(130)) < Duration::from_micros(1),
            "{usual:?}"
        );
    }

    #[test]
    fn the_spread_is_covered_and_an_outlier_is_forgotten() {
        let mut time = after([30, 70].repeat(100));
        for took in [30, 70].repeat(10) {
            assert!(
                time.usual() > ms(125) && time.usual() < ms(150),
                "{:?}",
                time.usual()
            );
            time.add(ms(took));
        }
        let mut outlier = after([[50; 100].as_slice(), &[5000]].concat());
        assert!(outlier.usual() > MOST);
        let long = (1..).find(|_| {
            outlier.add(ms(50));
            outlier.usual() < ms(200)
        });
        assert_eq!(long, Some(28));
    }

    #[test]
    fn each_account_and_action_has_its_own_and_invented_ones_share_one() {
        let margins = Margins::default();
        for key in 0..100 {
            margins.answered(
                &operation(&format!("?LTAI-{key}"), &format!("Invented{key}")),
                ms(900),
            );
        }
        assert_eq!(margins.0.len(), 1);
        margins.answered(&operation("acme", "CreateFlow"), ms(100));
        assert_eq!(
            margins.wait(&operation("acme", "ListFlow"), ms(10_000)),
            ms(9800)
        );
        assert!(margins.wait(&operation("?LTAI-new", "Invented"), ms(10_000)) < ms(9100));
    }

    proptest! {
        #[test]
        fn whatever_comes_the_margin_keeps_its_bounds(
            answers in proptest::collection::vec(0_u64..100_000, 0..200),
            hold in 1_u64..120_000,
        ) {
            let margins = Margins::default();
            let operation = operation("acme", "CreateFlow");
            answers.iter().for_each(|took| margins.answered(&operation, ms(*took)));
            let margin = ms(hold) - margins.wait(&operation, ms(hold));
            prop_assert!(margin <= MOST && margin <= ms(hold) / 3 && margin >= LEAST.min(ms(hold) / 3));
        }
    }
}
