//! Decides whether an attempt is retried or the caller is answered. A call is retried only if CAMS
//! certainly did not execute it, or, if so configured, if it only reads; with a new token, a new
//! signature and the same deadline.

use std::time::Duration;

use crate::call::judge::Verdict;
use crate::config::Retry;
use crate::primitives::backoff;

/// What follows from a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// The caller gets the answer.
    Reply {
        /// When a throttled caller should retry, if there is no lane to predict it; else zero.
        advice: Duration,
    },
    /// The call returns to the queue, with the same place and deadline.
    Again {
        /// How long the call waits before it returns to the queue. Zero on a lane, whose pause
        /// applies.
        after: Duration,
    },
}

/// The state of a call that the decision depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RetryState {
    /// Attempts sent so far.
    pub(crate) sent: u32,
    /// Whether the call may be sent again: Flowgate signs it, and the mode is not observe. A
    /// relayed call cannot be sent again, because Alibaba refuses a used nonce.
    pub(crate) can_repeat: bool,
    /// Whether the call has a lane.
    pub(crate) has_lane: bool,
    /// Whether the call only reads, so that a repetition is harmless.
    pub(crate) is_read: bool,
    /// Time left until its send-by time.
    pub(crate) left: Duration,
}

/// Whether another attempt may follow a verdict at all.
pub(crate) fn may_follow(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Throttled { .. } | Verdict::Unknown { .. })
}

/// Decides what follows from a verdict. `random` is in 0..1.
pub(crate) fn decide(
    verdict: &Verdict,
    state: RetryState,
    policy: &Retry,
    random: f64,
) -> Decision {
    let hint = match verdict {
        Verdict::Throttled { hint, .. } => hint,
        Verdict::Unknown { .. } => return decide_on_unknown(state, policy, random),
        _ => return Decision::NO_RETRY,
    };
    let hint = hint.map(|hint| hint.min(policy.max_pause));
    // Between half and the whole step: the caller does not retry at once, and callers are still
    // spread.
    let own = hint.unwrap_or_else(|| {
        backoff::full_jitter(policy.base, policy.max, state.sent, 0.5 + random / 2.0)
    });
    let advice = if state.has_lane { Duration::ZERO } else { own };
    if !state.can_repeat || state.sent >= policy.max_attempts {
        return Decision::Reply { advice };
    }
    let after = match (state.has_lane, hint) {
        (true, _) => Duration::ZERO,
        (false, Some(hint)) => hint,
        (false, None) => backoff::full_jitter(policy.base, policy.max, state.sent, random),
    };
    // On a lane the limiter refuses the call if its hold ends, with a better retry time.
    if after < state.left || state.has_lane {
        Decision::Again { after }
    } else {
        Decision::Reply { advice }
    }
}

/// A call that only reads may be repeated although CAMS may have executed it. No pause of a lane
/// applies, so the call waits out the back-off itself.
fn decide_on_unknown(state: RetryState, policy: &Retry, random: f64) -> Decision {
    let may_repeat =
        policy.reads && state.is_read && state.can_repeat && state.sent < policy.max_attempts;
    let after = backoff::full_jitter(policy.base, policy.max, state.sent, random);
    if may_repeat && after < state.left {
        Decision::Again { after }
    } else {
        Decision::NO_RETRY
    }
}

// === impl Decision ===

impl Decision {
    /// The caller gets the answer.
    pub(crate) const NO_RETRY: Self = Self::Reply {
        advice: Duration::ZERO,
    };
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
        reads: false,
    };

    /// The reply if a lane predicts the retry time, or if no retry makes sense.
    const REPLY: Decision = Decision::Reply {
        advice: Duration::ZERO,
    };

    fn throttled(hint: Option<Duration>) -> Verdict {
        Verdict::Throttled {
            code: "System.LimitControl".to_owned(),
            source: ThrottleSource::Body,
            hint,
            request_id: None,
        }
    }

    fn state(sent: u32) -> RetryState {
        RetryState {
            sent,
            can_repeat: true,
            has_lane: true,
            is_read: false,
            left: Duration::from_secs(90),
        }
    }

    fn reply(advice_ms: u64) -> Decision {
        Decision::Reply {
            advice: Duration::from_millis(advice_ms),
        }
    }

    fn again(after_ms: u64) -> Decision {
        Decision::Again {
            after: Duration::from_millis(after_ms),
        }
    }

    fn hint(seconds: u64) -> Verdict {
        throttled(Some(Duration::from_secs(seconds)))
    }

    #[test]
    fn only_a_throttled_attempt_is_retried() {
        let code = "x".to_owned();
        for verdict in [
            Verdict::Ok {
                request_id: None,
                code: code.clone(),
            },
            Verdict::UpstreamError {
                code: code.clone(),
                request_id: None,
            },
            Verdict::Credentials {
                code: code.clone(),
                request_id: None,
            },
            Verdict::Clock {
                code,
                offset: Some(1200),
                request_id: None,
            },
            Verdict::Unknown {
                reason: "x",
                request_id: None,
            },
        ] {
            assert_eq!(decide(&verdict, state(1), &POLICY, 0.5), REPLY);
        }
        assert_eq!(decide(&throttled(None), state(1), &POLICY, 0.5), again(0));
    }

    #[test]
    fn an_unknown_outcome_of_a_read_is_retried_if_so_configured() {
        let unknown = Verdict::Unknown {
            reason: "x",
            request_id: None,
        };
        let policy = Retry {
            reads: true,
            ..POLICY
        };
        let reading = RetryState {
            is_read: true,
            ..state(1)
        };
        for has_lane in [true, false] {
            let reading = RetryState {
                has_lane,
                ..reading
            };
            assert_eq!(decide(&unknown, reading, &policy, 0.5), again(100));
            assert_eq!(decide(&unknown, reading, &POLICY, 0.5), REPLY);
            for state in [
                RetryState {
                    is_read: false,
                    ..reading
                },
                RetryState {
                    can_repeat: false,
                    ..reading
                },
                RetryState { sent: 3, ..reading },
                RetryState {
                    left: Duration::from_millis(100),
                    ..reading
                },
            ] {
                assert_eq!(decide(&unknown, state, &policy, 0.5), REPLY, "{state:?}");
            }
        }
        let failed = Verdict::UpstreamError {
            code: "x".to_owned(),
            request_id: None,
        };
        assert_eq!(decide(&failed, reading, &policy, 0.5), REPLY);
    }

    #[test]
    fn attempts_are_limited_by_the_policy() {
        assert_eq!(decide(&throttled(None), state(2), &POLICY, 0.5), again(0));
        assert_eq!(decide(&throttled(None), state(3), &POLICY, 0.5), REPLY);
    }

    #[test]
    fn a_relayed_call_is_not_retried() {
        let relayed = RetryState {
            can_repeat: false,
            ..state(1)
        };
        assert_eq!(decide(&throttled(None), relayed, &POLICY, 0.5), REPLY);
    }

    #[test]
    fn without_a_lane_the_retry_waits_for_the_hint_or_the_back_off() {
        for (verdict, sent, expected) in [
            (hint(2), 1, again(2000)),
            (hint(3600), 1, again(60_000)),
            (throttled(None), 1, again(100)),
            (throttled(None), 2, again(200)),
        ] {
            let alone = RetryState {
                has_lane: false,
                ..state(sent)
            };
            assert_eq!(decide(&verdict, alone, &POLICY, 0.5), expected);
        }
    }

    #[test]
    fn without_a_lane_a_retry_fits_the_hold() {
        let short = RetryState {
            has_lane: false,
            left: Duration::from_secs(2),
            ..state(1)
        };
        assert_eq!(decide(&hint(2), short, &POLICY, 0.5), reply(2000));
        assert_eq!(decide(&hint(1), short, &POLICY, 0.5), again(1000));
    }

    #[test]
    fn without_a_lane_a_throttled_caller_gets_the_back_off_as_advice() {
        for (verdict, sent, random, expected) in [
            (throttled(None), 1, 0.0, reply(100)),
            (throttled(None), 1, 1.0, reply(200)),
            (throttled(None), 3, 0.0, reply(400)),
            (throttled(None), 3, 1.0, reply(800)),
            (hint(3), 1, 0.5, reply(3000)),
            (hint(3600), 1, 0.5, reply(60_000)),
        ] {
            let relayed = RetryState {
                has_lane: false,
                can_repeat: false,
                ..state(sent)
            };
            assert_eq!(decide(&verdict, relayed, &POLICY, random), expected);
        }
    }
}
