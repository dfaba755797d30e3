//! What now? A verdict says what happened; the decision is to answer the caller or to try again. Only what CAMS
//! certainly did not do is tried again, with a new token, a fresh signature and the same deadline.

use std::time::Duration;

use crate::call::judge::Verdict;
use crate::config::Retry;
use crate::primitives::backoff;

/// What is done about a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// The caller gets the answer. `advice`: when a throttled caller had best come back, if no lane knows better.
    Reply {
        /// From now on.
        advice: Duration,
    },
    /// Back through the queue: a new token, the same place and deadline. `after`: on a lane its pause governs; an
    /// action without a lane waits by itself.
    Again {
        /// How long the call waits by itself before it goes back.
        after: Duration,
    },
}

/// One call's tries so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tries {
    /// Attempts that were sent.
    pub(crate) sent: u32,
    /// Flowgate can sign anew (a relayed call cannot be replayed: Alibaba refuses a nonce that it has seen), and it does
    /// not only observe.
    pub(crate) can_repeat: bool,
    /// The call has a lane.
    pub(crate) has_lane: bool,
    /// What is left of its hold.
    pub(crate) left: Duration,
}

/// Decides; `random` is in 0..1.
pub(crate) fn decide(verdict: &Verdict, tries: Tries, policy: &Retry, random: f64) -> Decision {
    let Verdict::Throttled { hint, .. } = verdict else {
        return Decision::Reply {
            advice: Duration::ZERO,
        };
    };
    let hint = hint.map(|hint| hint.min(policy.max_pause));
    // A caller that gets the whole back-off or half of it does not come back at once, and callers still come apart.
    let own = hint.unwrap_or_else(|| {
        backoff::full_jitter(policy.base, policy.max, tries.sent, 0.5 + random / 2.0)
    });
    let advice = if tries.has_lane { Duration::ZERO } else { own };
    if !tries.can_repeat || tries.sent >= policy.max_attempts {
        return Decision::Reply { advice };
    }
    let after = match (tries.has_lane, hint) {
        (true, _) => Duration::ZERO,
        (false, Some(hint)) => hint,
        (false, None) => backoff::full_jitter(policy.base, policy.max, tries.sent, random),
    };
    // On a lane the limiter says so itself when the hold runs out, and knows more about when to come back.
    if after < tries.left || tries.has_lane {
        Decision::Again { after }
    } else {
        Decision::Reply { advice }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::judge::ThrottleSource;

    const POLICY: Retry = Retry {
        max_attempts: 3,
        base: Duration::from_millis(200),
        max: Duration::from_secs(8),
        max_pause: Duration::from_secs(60),
    };

    /// Where a lane knows better when to come back, or there is no reason to.
    const REPLY: Decision = Decision::Reply {
        advice: Duration::ZERO,
    };

    fn throttled(hint: Option<Duration>) -> Verdict {
        let code = "System.LimitControl".to_owned();
        Verdict::Throttled {
            code,
            source: ThrottleSource::Body,
            hint,
            request_id: None,
        }
    }

    fn tries(sent: u32) -> Tries {
        Tries {
            sent,
            can_repeat: true,
            has_lane: true,
            left: Duration::from_secs(90),
        }
    }

    #[test]
    fn only_a_throttle_refusal_is_tried_again() {
        let code = || "x".to_owned();
        for verdict in [
            Verdict::Ok {
                request_id: None,
                code: code(),
            },
            Verdict::UpstreamError {
                code: code(),
                request_id: None,
            },
            Verdict::Credentials {
                code: code(),
                request_id: None,
            },
            Verdict::Unknown { reason: "x" },
        ] {
            assert_eq!(decide(&verdict, tries(1), &POLICY, 0.5), REPLY);
        }
        assert_eq!(
            decide(&throttled(None), tries(1), &POLICY, 0.5),
            Decision::Again {
                after: Duration::ZERO
            }
        );
    }

    #[test]
    fn a_call_has_so_many_attempts() {
        assert_eq!(
            decide(&throttled(None), tries(2), &POLICY, 0.5),
            Decision::Again {
                after: Duration::ZERO
            }
        );
        assert_eq!(decide(&throttled(None), tries(3), &POLICY, 0.5), REPLY);
    }

    #[test]
    fn a_relayed_call_cannot_be_signed_anew() {
        let relayed = Tries {
            can_repeat: false,
            ..tries(1)
        };
        assert_eq!(decide(&throttled(None), relayed, &POLICY, 0.5), REPLY);
    }

    #[test]
    fn without_a_lane_the_call_waits_by_itself() {
        let alone = |sent| Tries {
            has_lane: false,
            ..tries(sent)
        };
        let after = |verdict: &Verdict, sent| decide(verdict, alone(sent), &POLICY, 0.5);
        let ms = |ms| Decision::Again {
            after: Duration::from_millis(ms),
        };
        assert_eq!(after(&throttled(Some(Duration::from_secs(2))), 1), ms(2000));
        assert_eq!(
            after(&throttled(Some(Duration::from_secs(3600))), 1),
            ms(60_000)
        );
        assert_eq!(after(&throttled(None), 1), ms(100));
        assert_eq!(after(&throttled(None), 2), ms(200));
    }

    #[test]
    fn without_a_lane_a_call_waits_no_longer_than_its_hold() {
        let short = Tries {
            has_lane: false,
            left: Duration::from_secs(2),
            ..tries(1)
        };
        let hint = |seconds| throttled(Some(Duration::from_secs(seconds)));
        assert_eq!(
            decide(&hint(2), short, &POLICY, 0.5),
            Decision::Reply {
                advice: Duration::from_secs(2)
            }
        );
        assert_eq!(
            decide(&hint(1), short, &POLICY, 0.5),
            Decision::Again {
                after: Duration::from_secs(1)
            }
        );
    }

    #[test]
    fn without_a_lane_a_throttled_caller_is_advised_the_back_off() {
        let relayed = Tries {
            has_lane: false,
            can_repeat: false,
            ..tries(1)
        };
        let advice = |hint, sent, random| {
            decide(&throttled(hint), Tries { sent, ..relayed }, &POLICY, random)
        };
        let ms = |ms| Decision::Reply {
            advice: Duration::from_millis(ms),
        };
        assert_eq!(
            [0.0, 1.0].map(|random| advice(None, 1, random)),
            [ms(100), ms(200)]
        );
        assert_eq!(
            [0.0, 1.0].map(|random| advice(None, 3, random)),
            [ms(400), ms(800)]
        );
        assert_eq!(advice(Some(Duration::from_secs(3)), 1, 0.5), ms(3000));
        assert_eq!(advice(Some(Duration::from_secs(3600)), 1, 0.5), ms(60_000));
    }
}
