//! The tokens of one lane, in this process's memory. Each spent token is a leaky-bucket limiter of one, built empty at
//! the token's use: the token is back when it drips. A free token holds nothing.
//!
//! The pace may change at any time, and the window rule holds through every change: a spent token keeps the clock that it
//! was spent under, which is never shorter than the window. When fewer tokens may be in use, those that are free stay
//! unused, then those that come back next.
//!
//! The limiters are never a queue: several waiters on one of them can hang for ever when callers leave together. They
//! are polled by the lane's worker alone, and tried, under the lane's lock, by it or while no worker lives.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use leaky_bucket::RateLimiter;
use tokio::time::Instant;

use crate::config::Limit;
use crate::limiter::forecast::{after, nth};

/// Held and spent tokens; the others are free.
pub(crate) struct Tokens {
    window: Duration,
    /// How long a token that is spent now stays away: window plus gap.
    away: Duration,
    /// How many may be held or spent at once.
    usable: u32,
    /// Granted and neither spent nor given back.
    held: u32,
    /// In order of their return: with a narrower gap a later use may be back earlier.
    spent: VecDeque<Spent>,
}

struct Spent {
    /// When it drips; for forecasts only.
    back_at: Instant,
    drip: Arc<RateLimiter>,
}

// === impl Tokens ===

impl Tokens {
    /// At the start of the process all tokens count as just used, for a predecessor may have used them: until
    /// `started` + window + gap a new lane's tokens are spent.
    pub(crate) fn new(limit: Limit, gap: Duration, started: Instant) -> Self {
        let away = limit.window + gap;
        let Limit { count, window } = limit;
        let mut tokens = Self { window, away, usable: count.get(), held: 0, spent: VecDeque::new() };
        let cold = (started + away).saturating_duration_since(Instant::now());
        if !cold.is_zero() {
            // leaky-bucket takes no interval below a millisecond.
            let cold = cold.max(Duration::from_millis(1));
            (0..count.get()).for_each(|_| drop(tokens.start_clock(cold)));
        }
        tokens
    }

    /// From now on a token that is spent stays away for window plus `gap`, and at most `usable` tokens are in use.
    pub(crate) fn keep(&mut self, gap: Duration, usable: u32) {
        self.away = self.window + gap;
        self.usable = usable;
    }

    /// Makes every token free that has dripped. Only while nobody polls a limiter.
    pub(crate) fn collect(&mut self) {
        while self.spent.front().is_some_and(|spent| spent.drip.try_acquire(1)) {
            self.spent.pop_front();
        }
    }

    /// Grants one free token; false when there is none.
    pub(crate) fn take(&mut self) -> bool {
        if self.free() == 0 {
            return false;
        }
        self.held += 1;
        true
    }

    /// A granted token was not used.
    pub(crate) fn give_back(&mut self) {
        debug_assert!(self.held > 0, "only a held token can be given back");
        self.held -= 1;
    }

    /// A granted token is used now: its clock starts. Returns the clock.
    pub(crate) fn spend(&mut self) -> Arc<RateLimiter> {
        debug_assert!(self.held > 0, "only a held token can be spent");
        self.held -= 1;
        self.start_clock(self.away)
    }

    /// Counts a spent token, if it is not back yet, as used only now.
    pub(crate) fn restart(&mut self, drip: &Arc<RateLimiter>) {
        if self.forget_clock(drip) {
            self.start_clock(self.away);
        }
    }

    /// The clock of the token that is back first, for the lane's worker to wait on.
    pub(crate) fn next_drip(&self) -> Option<Arc<RateLimiter>> {
        self.spent.front().map(|spent| spent.drip.clone())
    }

    /// The worker has taken what `drip` dripped: the token is free.
    pub(crate) fn dripped(&mut self, drip: &Arc<RateLimiter>) {
        self.forget_clock(drip);
    }

    /// When the `ahead` + 1st grant from now can come at the earliest, if nothing may be granted before `open` and one
    /// token more may be in use from each of `more` on.
    pub(crate) fn forecast(&self, ahead: usize, now: Instant, open: Instant, more: &[Instant]) -> Instant {
        // Held tokens are about to be spent: at the soonest they are back a whole period later.
        let spent = self.spent.iter().map(|spent| spent.back_at.max(open));
        let held = std::iter::repeat_n((now + self.away).max(open), self.held as usize);
        let in_use = spent.chain(held);
        let free = std::iter::repeat_n(open, self.free() as usize);
        // Of those in use, the next to come back only make up for what is in use beyond what may be.
        let beyond = self.in_use().saturating_sub(self.usable as usize);
        if more.is_empty() {
            let (round, place) = (ahead / self.usable as usize, ahead % self.usable as usize);
            return after(free.chain(in_use.skip(beyond)).nth(place).unwrap_or(open), round, self.away);
        }
        let turns: Vec<Instant> = free.chain(in_use.clone().skip(beyond)).collect();
        let beyond: Vec<Instant> = in_use.take(beyond).collect();
        let mut back = beyond.into_iter().rev();
        let mut joins: Vec<Instant> = more.iter().map(|at| back.next().map_or(*at, |back| back.max(*at))).collect();
        joins.sort_unstable();
        nth(ahead, turns, self.away, &joins)
    }

    /// Tokens that may be taken now, as far as is known without trying a limiter.
    pub(crate) fn free(&self) -> u32 {
        let in_use = u32::try_from(self.in_use()).unwrap_or(u32::MAX);
        self.usable.saturating_sub(in_use)
    }

    /// Tokens that are granted and neither spent nor given back.
    pub(crate) fn held(&self) -> u32 {
        self.held
    }

    /// Whether a lane with these tokens may be forgotten: a new one would be the same.
    pub(crate) fn at_rest(&mut self) -> bool {
        self.collect();
        self.in_use() == 0
    }

    /// One token is away for `away` from now.
    #[expect(clippy::disallowed_methods, reason = "this is the one place where limiters are made")]
    fn start_clock(&mut self, away: Duration) -> Arc<RateLimiter> {
        let drip = Arc::new(RateLimiter::builder().max(1).initial(0).refill(1).interval(away).build());
        let back_at = Instant::now() + away;
        let place = self.spent.partition_point(|spent| spent.back_at <= back_at);
        self.spent.insert(place, Spent { back_at, drip: drip.clone() });
        drip
    }

    /// Held and spent tokens.
    fn in_use(&self) -> usize {
        self.held as usize + self.spent.len()
    }

    fn forget_clock(&mut self, drip: &Arc<RateLimiter>) -> bool {
        let at = self.spent.iter().position(|spent| Arc::ptr_eq(&spent.drip, drip));
        at.and_then(|at| self.spent.remove(at)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use tokio::time::{advance, sleep_until};

    use super::*;

    const GAP: Duration = Duration::from_millis(5);
    const AWAY: Duration = Duration::from_millis(1005);

    fn warm() -> Tokens {
        let limit = Limit { count: NonZeroU32::new(5).unwrap(), window: Duration::from_secs(1) };
        Tokens::new(limit, GAP, Instant::now() - AWAY)
    }

    fn cold() -> Tokens {
        let limit = Limit { count: NonZeroU32::new(5).unwrap(), window: Duration::from_secs(1) };
        Tokens::new(limit, GAP, Instant::now())
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_five_after_idleness_are_free_at_once() {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let mut tokens = warm();
        assert_eq!((0..6).filter(|_| tokens.take()).count(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn at_the_start_all_tokens_count_as_just_used() {
        let mut tokens = cold();
        assert!(!tokens.take());
        advance(AWAY - Duration::from_millis(1)).await;
        tokens.collect();
        assert_eq!(tokens.free(), 0);
        advance(Duration::from_millis(1)).await;
        tokens.collect();
        assert_eq!(tokens.free(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lane_may_begin_in_the_last_moment_of_the_first_window() {
        let start = Instant::now();
        tokio::time::sleep(AWAY).await;
        let limit = Limit { count: NonZeroU32::new(5).unwrap(), window: Duration::from_secs(1) };
        let mut tokens = Tokens::new(limit, GAP, start + Duration::from_micros(300));
        assert!(!tokens.take());
        advance(Duration::from_millis(1)).await;
        tokens.collect();
        assert_eq!(tokens.free(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn each_token_is_back_one_window_and_gap_after_its_own_use() {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let mut tokens = warm();
        let start = Instant::now();
        for at in [0, 100, 250, 400, 900] {
            sleep_until(start + Duration::from_millis(at)).await;
            assert!(tokens.take());
            tokens.spend();
        }
        assert!(!tokens.take());
        for at in [0, 100, 250, 400, 900] {
            let drip = tokens.next_drip().unwrap();
            drip.acquire_one().await;
            assert_eq!(start.elapsed(), AWAY + Duration::from_millis(at));
            tokens.dripped(&drip);
            assert!(tokens.take());
        }
        assert!(tokens.next_drip().is_none());
        assert_eq!((tokens.free(), tokens.held()), (0, 5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_given_back_is_free_at_once() {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let mut tokens = warm();
        assert!(tokens.take());
        tokens.give_back();
        assert!(tokens.at_rest());
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_given_up_does_not_disturb_the_clock() {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let mut tokens = warm();
        let start = Instant::now();
        assert!(tokens.take());
        tokens.spend();
        for _ in 0..9 {
            let drip = tokens.next_drip().unwrap();
            let wait = tokio::time::timeout(Duration::from_millis(100), drip.acquire_one());
            assert!(wait.await.is_err());
        }
        let drip = tokens.next_drip().unwrap();
        drip.acquire_one().await;
        assert_eq!(start.elapsed(), AWAY);
    }

    #[tokio::test(start_paused = true)]
    async fn the_forecast_is_what_happens() {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let mut tokens = warm();
        let start = Instant::now();
        assert!(tokens.take());
        tokens.spend();
        advance(Duration::from_millis(300)).await;
        let now = Instant::now();
        let wait = |ahead, open| tokens.forecast(ahead, now, open, &[]) - start;
        assert_eq!(wait(0, now), Duration::from_millis(300));
        assert_eq!(wait(3, now), Duration::from_millis(300));
        assert_eq!(wait(4, now), AWAY);
        assert_eq!(wait(5, now), Duration::from_millis(300) + AWAY);
        assert_eq!(wait(9, now), AWAY * 2);
        assert_eq!(wait(0, start + Duration::from_secs(9)), Duration::from_secs(9));
        assert_eq!(wait(4, start + Duration::from_secs(9)), Duration::from_secs(9));
    }

    /// Takes whatever can be taken, as a lane's worker does, one token more being usable from each of `more` on.
    async fn grants(tokens: &mut Tokens, start: Instant, number: usize, more: &[u64]) -> Vec<u128> {
        let mut usable = tokens.usable;
        let mut more = more.iter().map(|ms| start + Duration::from_millis(*ms)).peekable();
        let mut grants = Vec::new();
        while grants.len() < number {
            while more.next_if(|at| *at <= Instant::now()).is_some() {
                usable += 1;
                tokens.keep(tokens.away - tokens.window, usable);
            }
            tokens.collect();
            while tokens.take() {
                tokens.spend();
                grants.push(start.elapsed().as_millis());
            }
            advance(Duration::from_millis(1)).await;
        }
        grants.truncate(number);
        grants
    }

    #[tokio::test(start_paused = true)]
    async fn the_forecast_reckons_with_tokens_that_may_be_used_later() {
        for (usable, used, more) in [
            (3, &[0, 100, 200][..], &[5000, 9000][..]),
            (2, &[0, 100, 200, 300, 400], &[450, 600, 5000]),
            (1, &[0, 0, 0, 700, 900], &[1000, 1000, 1100, 20_000]),
            (4, &[], &[300]),
        ] {
            tokio::time::sleep(Duration::from_secs(5)).await;
            let (mut tokens, start) = (warm(), Instant::now());
            for at in used {
                sleep_until(start + Duration::from_millis(*at)).await;
                assert!(tokens.take());
                tokens.spend();
            }
            tokens.keep(GAP, usable);
            let now = Instant::now();
            let joins: Vec<_> = more.iter().map(|ms| start + Duration::from_millis(*ms)).collect();
            let forecasts: Vec<_> =
                (0..60).map(|ahead| (tokens.forecast(ahead, now, now, &joins) - start).as_millis()).collect();
            assert_eq!(forecasts, grants(&mut tokens, start, 60, more).await, "{usable} usable");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn fewer_usable_tokens_leave_out_the_free_ones_then_those_that_come_back_next() {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let mut tokens = warm();
        let start = Instant::now();
        for at in [0, 100, 200, 300] {
            sleep_until(start + Duration::from_millis(at)).await;
            assert!(tokens.take());
            tokens.spend();
        }
        let now = Instant::now();
        tokens.keep(GAP, 2);
        assert_eq!(tokens.free(), 0);
        let grants: Vec<_> = (0..4).map(|ahead| (tokens.forecast(ahead, now, now, &[]) - start).as_millis()).collect();
        assert_eq!(grants, [1205, 1305, 2210, 2310]);
        for expected in [1205, 1305] {
            while !tokens.take() {
                let drip = tokens.next_drip().unwrap();
                drip.acquire_one().await;
                tokens.dripped(&drip);
            }
            assert_eq!(start.elapsed().as_millis(), expected);
        }
        tokens.keep(GAP, 5);
        assert_eq!(tokens.free(), 3, "nothing that was taken out of use is lost");
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_keeps_the_clock_that_it_was_spent_under() {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let mut tokens = warm();
        let start = Instant::now();
        for gap in [40, 5, 20] {
            tokens.keep(Duration::from_millis(gap), 5);
            assert!(tokens.take());
            tokens.spend();
        }
        for expected in [1005, 1020, 1040] {
            let drip = tokens.next_drip().unwrap();
            drip.acquire_one().await;
            assert_eq!(start.elapsed().as_millis(), expected);
            tokens.dripped(&drip);
        }
        assert!(tokens.at_rest());
    }

    /// Spends whatever can be had, while the pace changes every `after` milliseconds. Returns the uses.
    async fn spend_at_every_pace(paces: &[(u64, u64, u32)]) -> Vec<Instant> {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let mut tokens = warm();
        let mut uses = Vec::new();
        for (after, gap, usable) in paces {
            tokens.keep(Duration::from_millis(*gap), *usable);
            for _ in 0..*after {
                tokens.collect();
                while tokens.take() {
                    tokens.spend();
                    uses.push(Instant::now());
                }
                assert!(tokens.in_use() <= 5);
                advance(Duration::from_millis(1)).await;
            }
        }
        uses
    }

    proptest::proptest! {
        #[test]
        fn no_change_of_pace_lets_six_into_a_second(paces in proptest::collection::vec((0..900_u64, 5..41_u64, 1..6_u32), 1..20)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            let uses = runtime.block_on(spend_at_every_pace(&paces));
            for (first, sixth) in uses.iter().zip(uses.iter().skip(5)) {
                assert!(*sixth - *first > Duration::from_secs(1));
            }
        }
    }
}
