//! Computes what the limit would have done with a call. In observe mode calls are sent immediately.
//! The queue that the lane would have had is simulated, and nothing waits here.
//!
//! Each would-be send is a token that is back one window and gap later, so the next call would be
//! sent when the oldest of the last `count` tokens is back. Calls are taken in order of arrival:
//! fair order would change which of them wait, but hardly how many. CAMS's throttle refusals do not
//! pause the shadow, because at the limit's rate CAMS would hardly have throttled.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::{self, Limit};
use crate::primitives::id::ClientId;

/// The would-be queue of one lane.
pub(crate) struct Shadow {
    /// Window plus gap.
    away: Duration,
    max_waiting: usize,
    max_waiting_per_client: usize,
    /// The last `count` would-be sends, oldest first, including those in the future.
    sends: VecDeque<Instant>,
    /// The would-be queue: each call's send time and client, in order of the send times.
    waiting: VecDeque<(Instant, ClientId)>,
    /// The length of the would-be queue per client. Contains no zeros.
    waiting_by_client: HashMap<ClientId, usize>,
    /// Calls that arrived since the activity was taken last.
    arrived: u64,
}

/// What the limit would have done with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShadowDecision {
    /// Send it immediately, as it was.
    Pass,
    /// Send it after this time.
    Wait(Duration),
    /// Refuse it: the wait would have exceeded its hold, or the queue was full.
    Refuse,
}

// === impl Shadow ===

impl Shadow {
    /// All tokens count as used at `started`, as in a real lane.
    pub(crate) fn new(
        limit: Limit,
        gap: Duration,
        bounds: &config::Queue,
        started: Instant,
    ) -> Self {
        Self {
            away: limit.window + gap,
            max_waiting: bounds.max_waiting,
            max_waiting_per_client: bounds.max_waiting_per_client,
            sends: std::iter::repeat_n(started, limit.count.get() as usize).collect(),
            waiting: VecDeque::new(),
            waiting_by_client: HashMap::new(),
            arrived: 0,
        }
    }

    /// Whether a new shadow with these rules would be the same as this one.
    pub(crate) fn matches_rules(
        &self,
        limit: Limit,
        gap: Duration,
        bounds: &config::Queue,
    ) -> bool {
        self.sends.len() == limit.count.get() as usize
            && self.away == limit.window + gap
            && self.max_waiting == bounds.max_waiting
            && self.max_waiting_per_client == bounds.max_waiting_per_client
    }

    /// Decides about a call of this client that arrives at `now` and may wait for `hold`. A refused
    /// call takes no token.
    pub(crate) fn decide(
        &mut self,
        client: &ClientId,
        hold: Duration,
        now: Instant,
    ) -> ShadowDecision {
        self.arrived += 1;
        self.advance(now);
        let wait = self.wait(now);
        if !wait.is_zero() {
            let own = self
                .waiting_by_client
                .get(client)
                .copied()
                .unwrap_or_default();
            if wait > hold
                || self.waiting.len() >= self.max_waiting
                || own >= self.max_waiting_per_client
            {
                return ShadowDecision::Refuse;
            }
            self.waiting.push_back((now + wait, client.clone()));
            *self.waiting_by_client.entry(client.clone()).or_default() += 1;
        }
        self.sends.pop_front();
        self.sends.push_back(now + wait);
        if wait.is_zero() {
            ShadowDecision::Pass
        } else {
            ShadowDecision::Wait(wait)
        }
    }

    /// The number of calls that would be queued.
    pub(crate) fn waiting(&mut self, now: Instant) -> usize {
        self.advance(now);
        self.waiting.len()
    }

    /// Calls that arrived, and so were sent, since the last call of this.
    pub(crate) fn take_arrived(&mut self) -> u64 {
        std::mem::take(&mut self.arrived)
    }

    /// How long a call that arrives now would wait.
    pub(crate) fn wait(&self, now: Instant) -> Duration {
        let oldest = self.sends.front().expect("a limit has at least one token");
        (*oldest + self.away).saturating_duration_since(now)
    }

    /// When a call that CAMS throttled should be retried: not before it would have been sent, and
    /// not before everything that CAMS may have counted has left its window.
    pub(crate) fn retry_after(&self, now: Instant) -> Duration {
        self.wait(now).max(self.away)
    }

    /// Whether a new shadow would be the same as this one.
    pub(crate) fn is_at_rest(&self, now: Instant) -> bool {
        self.sends
            .back()
            .is_none_or(|latest| *latest + self.away <= now)
    }

    /// Removes the calls that would have been sent by `now`.
    fn advance(&mut self, now: Instant) {
        while let Some((sent_at, client)) = self.waiting.front()
            && *sent_at <= now
        {
            let count = self
                .waiting_by_client
                .get_mut(client)
                .expect("a waiting call is counted");
            *count -= 1;
            if *count == 0 {
                self.waiting_by_client.remove(client);
            }
            self.waiting.pop_front();
        }
    }
}

// === impl ShadowDecision ===

impl ShadowDecision {
    /// The metric label.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Pass => "passed",
            Self::Wait(_) => "waited",
            Self::Refuse => "refused",
        }
    }

    /// How long the call would have waited; none if it would have been refused.
    pub(crate) fn wait(self) -> Option<Duration> {
        match self {
            Self::Pass => Some(Duration::ZERO),
            Self::Wait(wait) => Some(wait),
            Self::Refuse => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use proptest::prelude::*;

    use super::*;

    const HOLD: Duration = Duration::from_secs(30);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// 5/1s with a gap of 5 ms, and the moment at which all its tokens are free.
    fn shadow(max_waiting: usize, max_waiting_per_client: usize) -> (Shadow, Instant) {
        let bounds = config::Queue {
            tenant: config::Tenant::CustSpaceId,
            max_waiting,
            max_waiting_per_client,
            max_bytes: 1,
            hold: config::Hold::Auto,
            max_hold: HOLD,
        };
        let limit = Limit {
            count: NonZeroU32::new(5).unwrap(),
            window: ms(1000),
        };
        let started = Instant::now();
        (
            Shadow::new(limit, ms(5), &bounds, started),
            started + ms(1005),
        )
    }

    fn many(
        shadow: &mut Shadow,
        calls: usize,
        hold: Duration,
        now: Instant,
    ) -> Vec<ShadowDecision> {
        (0..calls)
            .map(|_| shadow.decide(&ClientId::new("a"), hold, now))
            .collect()
    }

    #[test]
    fn twenty_calls_at_once_are_sent_five_per_window() {
        let (mut shadow, now) = shadow(100, 100);
        let decisions = many(&mut shadow, 20, HOLD, now);
        assert_eq!(decisions[..5], [ShadowDecision::Pass; 5]);
        for (round, five) in (1..).zip(decisions[5..].chunks(5)) {
            assert_eq!(*five, [ShadowDecision::Wait(ms(1005) * round); 5]);
        }
        let waiting = |shadow: &mut Shadow, after| shadow.waiting(now + ms(after));
        assert_eq!(
            [0, 1004, 1005, 2010, 3015].map(|after| waiting(&mut shadow, after)),
            [15, 15, 10, 5, 0]
        );
        assert!(shadow.waiting_by_client.is_empty() && shadow.sends.len() == 5);
    }

    #[test]
    fn each_token_is_back_one_window_and_gap_after_its_own_would_be_use() {
        let (mut shadow, now) = shadow(100, 100);
        for at in [0, 100, 250, 400, 900] {
            assert_eq!(
                many(&mut shadow, 1, HOLD, now + ms(at)),
                [ShadowDecision::Pass]
            );
        }
        let decisions = many(&mut shadow, 6, HOLD, now + ms(950));
        assert_eq!(
            decisions,
            [55, 155, 305, 455, 955, 1060].map(|wait| ShadowDecision::Wait(ms(wait)))
        );
        assert_eq!(
            many(&mut shadow, 1, HOLD, now + ms(5000)),
            [ShadowDecision::Pass]
        );
    }

    #[test]
    fn nothing_is_sent_in_the_first_second_of_a_process() {
        let (mut shadow, warm) = shadow(100, 100);
        assert!(!shadow.is_at_rest(warm - ms(1)) && shadow.is_at_rest(warm));
        assert_eq!(
            many(&mut shadow, 1, HOLD, warm - ms(1005)),
            [ShadowDecision::Wait(ms(1005))]
        );
        assert_eq!(many(&mut shadow, 1, HOLD, warm), [ShadowDecision::Pass]);
        assert!(!shadow.is_at_rest(warm + ms(1004)) && shadow.is_at_rest(warm + ms(1005)));
    }

    #[test]
    fn a_call_whose_wait_exceeds_its_hold_takes_no_token() {
        let (mut shadow, now) = shadow(100, 100);
        let decisions = many(&mut shadow, 14, ms(1005), now);
        assert_eq!(decisions[..5], [ShadowDecision::Pass; 5]);
        assert_eq!(decisions[5..10], [ShadowDecision::Wait(ms(1005)); 5]);
        assert_eq!(decisions[10..], [ShadowDecision::Refuse; 4]);
        assert_eq!(shadow.wait(now), ms(2010));
        assert_eq!(
            many(&mut shadow, 1, ms(2010), now),
            [ShadowDecision::Wait(ms(2010))]
        );
    }

    #[test]
    fn the_bounds_of_the_queue_apply() {
        let (mut shadow, now) = shadow(4, 3);
        many(&mut shadow, 5, HOLD, now);
        let mut decide = |client: &str, at| {
            shadow
                .decide(&ClientId::new(client), HOLD, now + ms(at))
                .label()
        };
        assert_eq!(
            ["a", "a", "a", "a"].map(|client| decide(client, 0)),
            ["waited", "waited", "waited", "refused"]
        );
        assert_eq!(
            ["b", "b"].map(|client| decide(client, 0)),
            ["waited", "refused"]
        );
        assert_eq!(
            ["a", "b"].map(|client| decide(client, 1005)),
            ["passed", "waited"]
        );
    }

    #[test]
    fn a_call_that_cams_throttled_is_retried_after_its_window_and_after_the_queue() {
        let (mut shadow, now) = shadow(100, 100);
        assert_eq!(shadow.retry_after(now), ms(1005));
        many(&mut shadow, 11, HOLD, now);
        assert_eq!(shadow.retry_after(now), ms(2010));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn sends_keep_the_limit_and_none_is_later_than_necessary(
            pauses in proptest::collection::vec(0_u64..600, 1..200),
        ) {
            let (mut shadow, mut now) = shadow(1000, 1000);
            let mut sends: Vec<Instant> = Vec::new();
            for pause in pauses {
                now += ms(pause);
                if let Some(wait) = shadow.decide(&ClientId::new("a"), HOLD, now).wait() {
                    let back = sends.len().checked_sub(5).map(|fifth| sends[fifth] + ms(1005));
                    prop_assert_eq!(now + wait, back.map_or(now, |back| back.max(now)));
                    sends.push(now + wait);
                }
                prop_assert!(shadow.sends.len() == 5 && shadow.waiting.len() <= 1000);
            }
        }
    }
}
