//! The tokens of one lane, in this process's memory. Each spent token is a leaky-bucket limiter of one, built empty at
//! the token's use: the token is back when it drips. A free token holds nothing.
//!
//! The limiters are never a queue: several waiters on one of them can hang for ever when callers leave together. They
//! are polled by the lane's worker alone, or, while no worker lives, tried under the lane's lock.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use leaky_bucket::RateLimiter;
use tokio::time::Instant;

use crate::config::Limit;

/// Free, held and spent tokens; their sum is the limit's count.
pub(crate) struct Tokens {
    count: u32,
    /// How long a token stays away from its use: window plus gap.
    away: Duration,
    free: u32,
    /// Granted and neither spent nor given back.
    held: u32,
    /// In order of use, so the front is back first.
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
        let mut tokens = Self { count: limit.count.get(), away, free: 0, held: 0, spent: VecDeque::new() };
        let cold = (started + away).saturating_duration_since(Instant::now());
        if cold.is_zero() {
            tokens.free = tokens.count;
        } else {
            (0..tokens.count).for_each(|_| drop(tokens.start_clock(cold)));
        }
        tokens
    }

    /// Makes every token free that has dripped. Only while no worker polls a limiter.
    pub(crate) fn collect(&mut self) {
        while self.spent.front().is_some_and(|spent| spent.drip.try_acquire(1)) {
            self.spent.pop_front();
            self.free += 1;
        }
    }

    /// Grants one free token; false when there is none.
    pub(crate) fn take(&mut self) -> bool {
        if self.free == 0 {
            return false;
        }
        self.free -= 1;
        self.held += 1;
        true
    }

    /// A granted token was not used.
    pub(crate) fn give_back(&mut self) {
        debug_assert!(self.held > 0, "only a held token can be given back");
        self.held -= 1;
        self.free += 1;
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
        if self.forget_clock(drip) {
            self.free += 1;
        }
    }

    /// When the `ahead` + 1st grant from now can come at the earliest, if nothing may be granted before `open`.
    pub(crate) fn forecast(&self, ahead: usize, now: Instant, open: Instant) -> Instant {
        let count = self.count as usize;
        let (round, place) = (ahead / count, ahead % count);
        // Held tokens are about to be spent: at the soonest they are back a whole period later.
        let free = std::iter::repeat_n(open, self.free as usize);
        let spent = self.spent.iter().map(|spent| spent.back_at.max(open));
        let held = std::iter::repeat_n((now + self.away).max(open), self.held as usize);
        let first = free.chain(spent).chain(held).nth(place).unwrap_or(open);
        first + self.away * u32::try_from(round).unwrap_or(u32::MAX)
    }

    /// Tokens that are free as far as is known without trying a limiter.
    pub(crate) fn free(&self) -> u32 {
        self.free
    }

    /// Tokens that are granted and neither spent nor given back.
    pub(crate) fn held(&self) -> u32 {
        self.held
    }

    /// Whether a lane with these tokens may be forgotten: a new one would be the same.
    pub(crate) fn at_rest(&mut self) -> bool {
        self.collect();
        self.free == self.count
    }

    /// One token is away for `away` from now.
    #[expect(clippy::disallowed_methods, reason = "this is the one place where limiters are made")]
    fn start_clock(&mut self, away: Duration) -> Arc<RateLimiter> {
        let drip = Arc::new(RateLimiter::builder().max(1).initial(0).refill(1).interval(away).build());
        self.spent.push_back(Spent { back_at: Instant::now() + away, drip: drip.clone() });
        drip
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
        let wait = |ahead, open| tokens.forecast(ahead, now, open) - start;
        assert_eq!(wait(0, now), Duration::from_millis(300));
        assert_eq!(wait(3, now), Duration::from_millis(300));
        assert_eq!(wait(4, now), AWAY);
        assert_eq!(wait(5, now), Duration::from_millis(300) + AWAY);
        assert_eq!(wait(9, now), AWAY * 2);
        assert_eq!(wait(0, start + Duration::from_secs(9)), Duration::from_secs(9));
        assert_eq!(wait(4, start + Duration::from_secs(9)), Duration::from_secs(9));
    }
}
