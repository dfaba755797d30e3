//! When a lane's tokens return, as the store last reported, for forecasts. Of many tokens the store
//! reports samples; the others are interpolated.

use std::time::Duration;

use tokio::time::Instant;

/// When each usable token returns.
#[derive(Clone, Debug)]
pub(crate) struct TokenReturns {
    pub(super) usable: u32,
    /// How many of them are in use.
    pub(super) used: u32,
    /// When the used tokens return, sorted: all of them, or evenly spread samples.
    pub(super) back: Vec<Instant>,
    /// When the free tokens can be used.
    pub(super) free: Instant,
    /// How long a used token is unavailable.
    pub(super) away: Duration,
}

// === impl TokenReturns ===

impl TokenReturns {
    /// Returns how many tokens may be in use.
    pub(crate) fn usable(&self) -> usize {
        self.usable as usize
    }

    /// Returns how long a used token is unavailable.
    pub(crate) fn away(&self) -> Duration {
        self.away
    }

    /// Returns when grant `ahead` + 1 is possible, not before `open`. `usable` must not be 0.
    pub(crate) fn nth(&self, ahead: usize, open: Instant) -> Instant {
        let usable = self.usable as usize;
        after(
            self.first(ahead % usable).max(open),
            ahead / usable,
            self.away,
        )
    }

    /// Returns how many tokens are not in use at `now`.
    pub(crate) fn free_at(&self, now: Instant) -> u32 {
        let mut low = self.usable - self.used;
        let mut high = self.usable;
        while low < high {
            let middle = low.midpoint(high);
            if self.first(middle as usize) <= now {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// Returns when the token of this rank returns, interpolated between the store's samples.
    fn first(&self, rank: usize) -> Instant {
        let free = (self.usable - self.used) as usize;
        let Some(rank) = rank.checked_sub(free) else {
            return self.free;
        };
        let last_sample = self.back.len() - 1;
        let last_token = self.used as usize - 1;
        if last_sample == last_token || last_token == 0 {
            return self.back[rank.min(last_sample)];
        }
        let position = rank as f64 * last_sample as f64 / last_token as f64;
        let index = position as usize;
        let from = self.back[index];
        let to = self.back[(index + 1).min(last_sample)];
        from + to.saturating_duration_since(from).mul_f64(position.fract())
    }
}

/// `periods` times `away` after `start`.
pub(super) fn after(start: Instant, periods: usize, away: Duration) -> Instant {
    start + away * u32::try_from(periods).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forecasts_use_each_token_or_interpolate_between_samples() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let at = |ms: &u32| now + Duration::from_millis(u64::from(*ms));
        let returns = |usable, used, back: &[u32]| TokenReturns {
            usable,
            used,
            back: back.iter().map(at).collect(),
            free: now,
            away: second,
        };
        let nth = |returns: &TokenReturns, ahead: &[usize]| -> Vec<u128> {
            ahead
                .iter()
                .map(|ahead| (returns.nth(*ahead, now) - now).as_millis())
                .collect()
        };
        assert_eq!(
            nth(&returns(5, 3, &[100, 200, 700]), &[0, 1, 2, 3, 4, 5, 7]),
            [0, 0, 100, 200, 700, 1000, 1100]
        );
        // The store reports three of 101 tokens.
        assert_eq!(
            nth(
                &returns(101, 101, &[0, 100, 900]),
                &[0, 25, 50, 75, 100, 101]
            ),
            [0, 50, 100, 500, 900, 1000]
        );
        assert_eq!(nth(&returns(1, 1, &[300]), &[0, 2]), [300, 2300]);
        let free = |returns: TokenReturns, ms| returns.free_at(at(ms));
        assert_eq!(free(returns(5, 3, &[100, 200, 700]), &0), 2);
        assert_eq!(free(returns(5, 3, &[100, 200, 700]), &200), 4);
        assert_eq!(free(returns(5, 3, &[100, 200, 700]), &700), 5);
        assert_eq!(free(returns(101, 101, &[0, 100, 900]), &500), 76);
        assert_eq!(free(returns(5, 0, &[]), &0), 5);
        let paused = returns(5, 3, &[100, 200, 700]).nth(2, at(&500));
        assert_eq!(paused, at(&500));
    }
}
