//! The tokens of one lane in this process's memory: as many as its limit allows in a window. A
//! granted token is held until the first byte of its attempt was written. From that write on it is
//! away for one window and gap, then it is free again.
//!
//! A plain token bucket cannot guarantee "at most 5 in any second, the first five immediately".
//! With capacity 5 at 5/s it lets ten calls into one second; with capacity 1 the fifth call after
//! idle time waits 0.8 s. A clock for each token does both. The clocks are a ring of the last uses.
//!
//! The rate may change at any time. A change applies to earlier uses, too: the present rate decides
//! when a token is back. It is never back before the limit's window is over, so no window ever
//! contains more uses than the limit's count. When the number of usable tokens shrinks, the latest
//! uses occupy the remaining ones.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Limit;
use crate::limiter::forecast::{Forecast, NextGrants};
use crate::limiter::pace::Rate;

/// The recent uses and the number of held tokens.
pub(crate) struct Tokens {
    /// The limit's count: the most uses that are remembered.
    count: usize,
    /// How long a token is away after its use, at the present rate.
    away: Duration,
    /// How many tokens may be held or away at once, at the present rate.
    usable: usize,
    /// The least time between two uses at the present rate. Zero unless the lane sends less than
    /// its limit.
    spacing: Duration,
    /// Tokens that were granted and neither used nor returned.
    held: usize,
    /// The last uses, oldest first.
    used: VecDeque<Instant>,
}

// === impl Tokens ===

impl Tokens {
    /// Makes tokens that all count as used at `since`, because a predecessor may have used them
    /// then.
    pub(crate) fn new(limit: Limit, gap: Duration, since: Instant, now: Instant) -> Self {
        let count = limit.count.get() as usize;
        let away = limit.window + gap;
        let is_cold = since + away > now;
        let used = if is_cold {
            std::iter::repeat_n(since, count).collect()
        } else {
            VecDeque::new()
        };
        Self {
            count,
            away,
            usable: count,
            spacing: Duration::ZERO,
            held: 0,
            used,
        }
    }

    pub(crate) fn set_rate(&mut self, rate: Rate) {
        self.away = rate.away();
        self.usable = rate.tokens as usize;
        self.spacing = rate.spacing;
    }

    /// Reserves a token for each of `attempts`, which an earlier source has granted and which may
    /// still be written.
    pub(crate) fn reserve_for_earlier_grants(&mut self, attempts: u32) {
        self.held += attempts as usize;
    }

    /// Takes a free token. Returns false if there is none.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        if self.free(now) == 0 {
            return false;
        }
        self.held += 1;
        true
    }

    /// A granted token was not used.
    pub(crate) fn give_back(&mut self) {
        debug_assert!(self.held > 0, "only a held token can be given back");
        self.held = self.held.saturating_sub(1);
    }

    /// A granted token was used at `at`.
    pub(crate) fn used(&mut self, at: Instant) {
        debug_assert!(self.held > 0, "only a held token can be used");
        self.held = self.held.saturating_sub(1);
        let index = self.used.partition_point(|other| *other <= at);
        self.used.insert(index, at);
        if self.used.len() > self.count {
            self.used.pop_front();
        }
    }

    /// When a token becomes free. None while that depends on the use or return of a held token.
    pub(crate) fn next_at(&self, now: Instant) -> Option<Instant> {
        if !self.spacing.is_zero() && self.held > 0 {
            return None;
        }
        let spaced = self.spaced_until().unwrap_or(now);
        match (self.held + self.away(now)).checked_sub(self.usable) {
            None => Some(spaced),
            Some(_) => self
                .used
                .get(self.first_of_usable())
                .map(|used| spaced.max(*used + self.away)),
        }
    }

    /// Forecasts the next grants: none before `open`, and the rate rises as in `rises`.
    pub(crate) fn forecast(
        &self,
        now: Instant,
        open: Instant,
        rises: Vec<(Instant, Rate)>,
    ) -> Forecast<'_> {
        let away = self.away(now);
        let next_grants = NextGrants::Ring {
            open: self.spaced_until().map_or(open, |spaced| spaced.max(open)),
            free: self.usable.saturating_sub(self.held + away),
            used: &self.used,
            first: self.first_of_usable().max(self.used.len() - away),
            held: self.held.min(self.usable),
            // A held token is used now at the earliest.
            held_until: now,
            away: self.away,
        };
        Forecast::new(next_grants, self.away, rises).spaced(self.spacing)
    }

    /// Tokens that can be taken now.
    pub(crate) fn free(&self, now: Instant) -> u32 {
        let free = self.usable.saturating_sub(self.held + self.away(now));
        if self.spacing.is_zero() {
            return u32::try_from(free).unwrap_or(u32::MAX);
        }
        let is_next_due = self.held == 0 && self.spaced_until().is_none_or(|until| until <= now);
        u32::from(free > 0 && is_next_due)
    }

    /// Tokens that were granted and neither used nor returned.
    pub(crate) fn held(&self) -> u32 {
        u32::try_from(self.held).unwrap_or(u32::MAX)
    }

    /// Whether new tokens would be equal: none is held or away.
    pub(crate) fn is_at_rest(&self, now: Instant) -> bool {
        self.held == 0 && self.away(now) == 0
    }

    /// The number of tokens that are away.
    fn away(&self, now: Instant) -> usize {
        self.used.len() - self.used.partition_point(|used| *used + self.away <= now)
    }

    /// The index of the use whose end makes a token free, when all usable tokens are held or away.
    fn first_of_usable(&self) -> usize {
        (self.used.len() + self.held).saturating_sub(self.usable)
    }

    /// Until when the spacing after the latest use prevents the next one.
    fn spaced_until(&self) -> Option<Instant> {
        self.used
            .back()
            .filter(|_| !self.spacing.is_zero())
            .map(|used| *used + self.spacing)
    }
}

#[cfg(test)]
mod tests;
