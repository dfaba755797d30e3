//! What would have become of this call? While Flowgate only observes, calls are sent at once, and this is the queue in
//! which a lane would have kept them: when each would have been sent if the limit had been kept. Only decides; nobody
//! waits here, and the queue counts the answers.
//!
//! Each would-be send is a token that is back one window and gap later, so the next call would go when the oldest of
//! the last `count` is back. Calls stand by arrival: fair order changes which of them wait, hardly how many. And CAMS's
//! refusals do not pause it, for at the limit's rate CAMS would hardly have refused.

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
    /// The last `count` would-be sends, oldest first, those that are yet to come included.
    sends: VecDeque<Instant>,
    /// Who would still wait, and until when; in order of their turns.
    waiting: VecDeque<(Instant, ClientId)>,
    /// How many of each client's calls would still wait; without those that have none.
    of_client: HashMap<ClientId, usize>,
}

/// What would have become of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Would {
    /// Sent at once, as it was.
    Pass,
    /// Sent after so long.
    Wait(Duration),
    /// Refused: its turn would have come too late, or a bound of the queue was reached.
    Refuse,
}

// === impl Shadow ===

impl Shadow {
    /// As for the lane's tokens, all count as just used when the process `started`.
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
            of_client: HashMap::new(),
        }
    }

    /// Whether it is the queue that there would be under these rules.
    pub(crate) fn keeps_to(&self, limit: Limit, gap: Duration, bounds: &config::Queue) -> bool {
        let Self {
            away,
            max_waiting,
            max_waiting_per_client,
            ..
        } = self;
        let rules = (
            limit.window + gap,
            bounds.max_waiting,
            bounds.max_waiting_per_client,
        );
        self.sends.len() == limit.count.get() as usize
            && rules == (*away, *max_waiting, *max_waiting_per_client)
    }

    /// A call of this client came `now` and could have waited for `hold`. A refused one takes no place.
    pub(crate) fn decide(&mut self, client: &ClientId, hold: Duration, now: Instant) -> Would {
        self.advance(now);
        let wait = self.wait(now);
        if !wait.is_zero() {
            let own = self.of_client.get(client).copied().unwrap_or_default();
            if wait > hold
                || self.waiting.len() >= self.max_waiting
                || own >= self.max_waiting_per_client
            {
                return Would::Refuse;
            }
            self.waiting.push_back((now + wait, client.clone()));
            *self.of_client.entry(client.clone()).or_default() += 1;
        }
        self.sends.pop_front();
        self.sends.push_back(now + wait);
        if wait.is_zero() {
            Would::Pass
        } else {
            Would::Wait(wait)
        }
    }

    /// How many calls would wait.
    pub(crate) fn waiting(&mut self, now: Instant) -> usize {
        self.advance(now);
        self.waiting.len()
    }

    /// What a call that came now would wait.
    pub(crate) fn wait(&self, now: Instant) -> Duration {
        let oldest = self.sends.front().expect("a limit has at least one token");
        (*oldest + self.away).saturating_duration_since(now)
    }

    /// When a call that CAMS refused had best come back: no earlier than it would have been sent, nor before all that
    /// CAMS may have counted has left its window.
    pub(crate) fn come_back(&self, now: Instant) -> Duration {
        self.wait(now).max(self.away)
    }

    /// Whether a new one would be the same.
    pub(crate) fn at_rest(&self, now: Instant) -> bool {
        self.sends
            .back()
            .is_none_or(|latest| *latest + self.away <= now)
    }

    /// Lets go whose turn would have come.
    fn advance(&mut self, now: Instant) {
        while self.waiting.front().is_some_and(|(turn, _)| *turn <= now) {
            let (_, client) = self.waiting.pop_front().expect("somebody waits");
            let left = self
                .of_client
                .get_mut(&client)
                .expect("who waits is counted");
            *left -= 1;
            if *left == 0 {
                self.of_client.remove(&client);
            }
        }
    }
}

// === impl Would ===

impl Would {
    /// The metric label.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Pass => "passed",
            Self::Wait(_) => "waited",
            Self::Refuse => "refused",
        }
    }

    /// What the call would have waited before it was sent.
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

    fn many(shadow: &mut Shadow, calls: usize, hold: Duration, now: Instant) -> Vec<Would> {
        (0..calls)
            .map(|_| shadow.decide(&ClientId::new("a"), hold, now))
            .collect()
    }

    #[test]
    fn twenty_at_once_would_have_gone_five_a_window() {
        let (mut shadow, now) = shadow(100, 100);
        let would = many(&mut shadow, 20, HOLD, now);
        assert_eq!(would[..5], [Would::Pass; 5]);
        for (round, five) in (1..).zip(would[5..].chunks(5)) {
            assert_eq!(*five, [Would::Wait(ms(1005) * round); 5]);
        }
        let waiting = |shadow: &mut Shadow, after| shadow.waiting(now + ms(after));
        assert_eq!(
            [0, 1004, 1005, 2010, 3015].map(|after| waiting(&mut shadow, after)),
            [15, 15, 10, 5, 0]
        );
        assert!(shadow.of_client.is_empty() && shadow.sends.len() == 5);
    }

    #[test]
    fn each_token_is_back_one_window_and_gap_after_its_own_would_be_use() {
        let (mut shadow, now) = shadow(100, 100);
        for at in [0, 100, 250, 400, 900] {
            assert_eq!(many(&mut shadow, 1, HOLD, now + ms(at)), [Would::Pass]);
        }
        let would = many(&mut shadow, 6, HOLD, now + ms(950));
        assert_eq!(
            would,
            [55, 155, 305, 455, 955, 1060].map(|wait| Would::Wait(ms(wait)))
        );
        assert_eq!(many(&mut shadow, 1, HOLD, now + ms(5000)), [Would::Pass]);
    }

    #[test]
    fn nothing_would_have_left_in_the_first_second_of_a_process() {
        let (mut shadow, warm) = shadow(100, 100);
        assert!(!shadow.at_rest(warm - ms(1)) && shadow.at_rest(warm));
        assert_eq!(
            many(&mut shadow, 1, HOLD, warm - ms(1005)),
            [Would::Wait(ms(1005))]
        );
        assert_eq!(many(&mut shadow, 1, HOLD, warm), [Would::Pass]);
        assert!(!shadow.at_rest(warm + ms(1004)) && shadow.at_rest(warm + ms(1005)));
    }

    #[test]
    fn a_call_that_would_have_waited_longer_than_its_hold_takes_no_place() {
        let (mut shadow, now) = shadow(100, 100);
        let would = many(&mut shadow, 14, ms(1005), now);
        assert_eq!(would[..5], [Would::Pass; 5]);
        assert_eq!(would[5..10], [Would::Wait(ms(1005)); 5]);
        assert_eq!(would[10..], [Would::Refuse; 4]);
        assert_eq!(shadow.wait(now), ms(2010));
        assert_eq!(many(&mut shadow, 1, ms(2010), now), [Would::Wait(ms(2010))]);
    }

    #[test]
    fn the_queues_bounds_hold_for_the_would_be_queue() {
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
    fn who_is_refused_by_cams_comes_back_after_its_window_and_after_the_would_be_queue() {
        let (mut shadow, now) = shadow(100, 100);
        assert_eq!(shadow.come_back(now), ms(1005));
        many(&mut shadow, 11, HOLD, now);
        assert_eq!(shadow.come_back(now), ms(2010));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn would_be_sends_keep_the_limit_and_none_is_later_than_it_must(
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
