//! When a lane's tokens return, as the store last reported, for forecasts. Of many tokens the store
//! reports samples; the others are interpolated.

use std::time::Duration;

use tokio::time::Instant;

use crate::limiter::forecast::after;
use crate::limiter::shared::clock::Clock;
use crate::limiter::shared::protocol::View;

/// When each usable token returns.
#[derive(Clone, Debug)]
pub(crate) struct Turns {
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

// === impl Turns ===

impl Turns {
    pub(super) fn of(view: &View, clock: &Clock, now: Instant) -> Self {
        let mut back: Vec<Instant> = view
            .back
            .iter()
            .map(|back| clock.latest(*back, now).max(now))
            .collect();
        back.sort_unstable();
        let used = if back.is_empty() {
            0
        } else {
            view.used.min(view.usable)
        };
        Self {
            usable: view.usable,
            used,
            back,
            free: now,
            away: Duration::from_micros(view.away),
        }
    }

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

    /// Returns when the token of this rank returns, interpolated between the store's samples.
    fn first(&self, rank: usize) -> Instant {
        let free = (self.usable - self.used) as usize;
        let Some(rank) = rank.checked_sub(free) else {
            return self.free;
        };
        let spans = self.back.len() - 1;
        let tokens = self.used as usize - 1;
        if spans == tokens || tokens == 0 {
            return self.back[rank.min(spans)];
        }
        let place = rank as f64 * spans as f64 / tokens as f64;
        let index = place as usize;
        let from = self.back[index];
        let to = self.back[(index + 1).min(spans)];
        from + to.saturating_duration_since(from).mul_f64(place.fract())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forecasts_use_each_token_or_interpolate_between_samples() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let at = |ms: &u32| now + Duration::from_millis(u64::from(*ms));
        let turns = |usable, used, back: &[u32]| Turns {
            usable,
            used,
            back: back.iter().map(at).collect(),
            free: now,
            away: second,
        };
        let nth = |turns: &Turns, ahead: &[usize]| -> Vec<u128> {
            ahead
                .iter()
                .map(|ahead| (turns.nth(*ahead, now) - now).as_millis())
                .collect()
        };
        assert_eq!(
            nth(&turns(5, 3, &[100, 200, 700]), &[0, 1, 2, 3, 4, 5, 7]),
            [0, 0, 100, 200, 700, 1000, 1100]
        );
        // The store reports three of 101 tokens.
        assert_eq!(
            nth(&turns(101, 101, &[0, 100, 900]), &[0, 25, 50, 75, 100, 101]),
            [0, 50, 100, 500, 900, 1000]
        );
        assert_eq!(nth(&turns(1, 1, &[300]), &[0, 2]), [300, 2300]);
        let paused = turns(5, 3, &[100, 200, 700]).nth(2, at(&500));
        assert_eq!(paused, at(&500));
    }
}
