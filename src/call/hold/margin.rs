//! The margin: the part of a hold that is reserved for CAMS's answer, measured per account and
//! action. If a call were sent later than its hold less this margin, its answer would usually be
//! too late for the caller.
//!
//! The estimate is that of TCP's retransmission timer (RFC 6298): the running mean (weight 1/8 for
//! a new answer) plus four times the running deviation (weight 1/4). About half of all answers
//! exceed the mean alone. A decayed maximum would overrate one slow answer, and its decay rate
//! would have to guess the rate of answers. With answer times that alternate between 30 and 70 ms
//! the margin is about 140 ms and no answer exceeds it. After one answer of 5 s among answers of 50
//! ms, the margin is below 200 ms again after 28 answers. Two bounds apply: a third of the hold,
//! and 2 s.

use std::sync::Arc;
use std::time::Duration;

use crate::observe::metrics::{AnswerTime, Metrics};
use crate::operation::Operation;

/// The margins of all accounts and actions. Their answer times are kept with their metrics, so that
/// a call looks them up once.
pub(crate) struct Margins(Arc<Metrics>);

/// The margin before the first answer, enough for a gateway on another continent.
const START: Duration = Duration::from_millis(200);
/// The least addition to the mean, for timers and for the way back to the caller.
const LEAST: Duration = Duration::from_millis(50);
/// The largest margin.
const MOST: Duration = Duration::from_secs(2);

// === impl Margins ===

impl Margins {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self(metrics)
    }

    /// How long a call with this hold may be queued.
    pub(crate) fn wait(&self, operation: &Operation, hold: Duration) -> Duration {
        let known = self.0.known_calls(&operation.labels());
        let answer_time = known.and_then(|calls| calls.answer_time());
        let margin = answer_time.map_or(START, margin);
        hold - margin.min(MOST).min(hold / 3)
    }
}

/// Without answers.
#[cfg(any(test, feature = "testing"))]
impl Default for Margins {
    fn default() -> Self {
        Self::new(Arc::new(Metrics::new()))
    }
}

/// The margin for answers like these, which is rarely too short.
fn margin(answer_time: AnswerTime) -> Duration {
    answer_time.mean + (answer_time.deviation * 4).max(LEAST)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::primitives::id::{AccountId, ActionName, ClientId, TenantId};

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

    impl Margins {
        fn answered(&self, operation: &Operation, took: Duration) {
            self.0.calls(operation.labels()).answered(took);
        }
    }

    /// The statistics after an answer of 50 ms and these.
    fn after(answers: impl IntoIterator<Item = u64>) -> AnswerTime {
        let mut time = AnswerTime::first(ms(50));
        for took in answers {
            time.add(ms(took));
        }
        time
    }

    #[test]
    fn the_margin_is_200_ms_at_first_and_then_three_times_the_first_answer() {
        let margins = Margins::default();
        let operation = operation("acme", "CreateFlow");
        assert_eq!(margins.wait(&operation, ms(10_000)), ms(9800));
        margins.answered(&operation, ms(40));
        assert_eq!(margins.wait(&operation, ms(10_000)), ms(9880));
    }

    #[test]
    fn the_margin_is_at_most_a_third_of_the_hold_and_2_s() {
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
    fn constant_answer_times_leave_a_margin_of_50_ms() {
        let margin = margin(after([80; 200]));
        assert!(
            margin.abs_diff(ms(130)) < Duration::from_micros(1),
            "{margin:?}"
        );
    }

    #[test]
    fn the_margin_covers_the_spread_and_forgets_an_outlier() {
        let mut time = after([30, 70].repeat(100));
        for took in [30, 70].repeat(10) {
            assert!(
                margin(time) > ms(125) && margin(time) < ms(150),
                "{:?}",
                margin(time)
            );
            time.add(ms(took));
        }
        let mut outlier = after([[50; 100].as_slice(), &[5000]].concat());
        assert!(margin(outlier) > MOST);
        let long = (1..).find(|_| {
            outlier.add(ms(50));
            margin(outlier) < ms(200)
        });
        assert_eq!(long, Some(28));
    }

    #[test]
    fn each_account_and_action_has_its_own_margin_and_unknown_ones_share_one() {
        let margins = Margins::default();
        for key in 0..100 {
            margins.answered(
                &operation(&format!("?LTAI-{key}"), &format!("Invented{key}")),
                ms(900),
            );
        }
        margins.answered(&operation("acme", "CreateFlow"), ms(100));
        assert_eq!(
            margins.wait(&operation("acme", "ListFlow"), ms(10_000)),
            ms(9800)
        );
        assert!(margins.wait(&operation("?LTAI-new", "Invented"), ms(10_000)) < ms(9100));
    }

    proptest! {
        #[test]
        fn the_margin_stays_within_its_bounds(
            answers in proptest::collection::vec(0_u64..100_000, 0..200),
            hold in 1_u64..120_000,
        ) {
            let margins = Margins::default();
            let operation = operation("acme", "CreateFlow");
            answers.iter().for_each(|took| margins.answered(&operation, ms(*took)));
            let margin = ms(hold) - margins.wait(&operation, ms(hold));
            let third = ms(hold) / 3;
            prop_assert!(margin <= MOST && margin <= third && margin >= LEAST.min(third));
        }
    }
}
