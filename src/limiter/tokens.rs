//! The tokens of one lane, in this process's memory: as many as its limit allows in a window, each usable again one
//! window and gap after its own use. A token is held from its grant until the first byte of its attempt was written; from
//! that write on it is away.
//!
//! No plain token bucket keeps "at most 5 in any second, the first five at once": with capacity 5 at 5/s it lets ten calls
//! into one second, with capacity 1 the fifth call after idleness waits 0.8 s. A clock for each token does both. The
//! clocks are a ring: the times at which the tokens in use are back, in order. A free token holds nothing.
//!
//! The rate may change at any time, and no window ever holds more uses than the limit's count: a token keeps the time
//! that it was used under, which is never shorter than the window. When fewer tokens may be in use, those that are free
//! stay unused, then those that come back next.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Limit;
use crate::limiter::forecast::{Forecast, Turns};
use crate::limiter::pace::Rate;

/// Held tokens and tokens that are away; the others are free.
pub(crate) struct Tokens {
    /// How long a token that is used now stays away.
    away: Duration,
    /// How many may be held or away at once.
    usable: u32,
    /// Granted, and neither used nor given back.
    held: u32,
    /// When each token that is away is back, in order: with a narrower gap a later use may be back earlier.
    back: VecDeque<Instant>,
    /// The least time between two uses: zero unless the lane sends less than its limit.
    spacing: Duration,
    /// The latest use.
    used_at: Option<Instant>,
}

// === impl Tokens ===

impl Tokens {
    /// All tokens count as used at `since`: a predecessor may have used them then.
    pub(crate) fn new(limit: Limit, gap: Duration, since: Instant, now: Instant) -> Self {
        let (count, away) = (limit.count.get(), limit.window + gap);
        let back_at = since + away;
        let back = if back_at > now { std::iter::repeat_n(back_at, count as usize).collect() } else { VecDeque::new() };
        Self { away, usable: count, held: 0, back, spacing: Duration::ZERO, used_at: None }
    }

    /// From now on a token that is used stays away for the rate's window and gap, and at most its tokens are in use.
    pub(crate) fn keep(&mut self, rate: Rate) {
        self.away = rate.away();
        self.usable = rate.tokens;
        self.spacing = rate.spacing;
    }

    /// Makes every token free that is back at `now`.
    pub(crate) fn collect(&mut self, now: Instant) {
        while self.back.front().is_some_and(|back_at| *back_at <= now) {
            self.back.pop_front();
        }
    }

    /// Grants one free token; false when there is none.
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

    /// A granted token was used at `at`. Returns when it is back.
    pub(crate) fn used(&mut self, at: Instant) -> Instant {
        debug_assert!(self.held > 0, "only a held token can be used");
        self.held = self.held.saturating_sub(1);
        self.used_besides(at)
    }

    /// An attempt was written at `at` that no token of this ring was granted for: one token fewer until it is over.
    pub(crate) fn used_besides(&mut self, at: Instant) -> Instant {
        let back_at = at + self.away;
        let place = self.back.partition_point(|other| *other <= back_at);
        self.back.insert(place, back_at);
        self.used_at = self.used_at.max(Some(at));
        back_at
    }

    /// A token that is back at `back_at`, if it still is away, counts as used at `at` instead. Returns when it is back.
    pub(crate) fn restart(&mut self, back_at: Instant, at: Instant) -> Option<Instant> {
        let place = self.back.binary_search(&back_at).ok()?;
        self.back.remove(place);
        Some(self.used_besides(at))
    }

    /// When a token may be taken next. None while that takes a held token's use or return.
    pub(crate) fn next_at(&self, now: Instant) -> Option<Instant> {
        if !self.spacing.is_zero() && self.held > 0 {
            return None;
        }
        let spaced = self.spaced_until().unwrap_or(now);
        match self.in_use().checked_sub(self.usable as usize) {
            None => Some(spaced),
            Some(beyond) => self.back.get(beyond).map(|back_at| spaced.max(*back_at)),
        }
    }

    /// The grants to come, if none comes before `open` and the rate rises at these moments.
    pub(crate) fn forecast(&self, now: Instant, open: Instant, rises: Vec<(Instant, Rate)>) -> Forecast<'_> {
        // Of those in use, the next to come back only make up for what is in use beyond what may be.
        let beyond = self.in_use().saturating_sub(self.usable as usize);
        let (free, held) = (self.unused() as usize, self.held as usize);
        let open = self.spaced_until().map_or(open, |spaced| spaced.max(open));
        // A held token is about to be used: at the soonest it is back a whole period from now.
        let turns = Turns::Ring { open, free, back: &self.back, beyond, held, held_back_at: now + self.away };
        Forecast::new(turns, self.away, rises)
    }

    /// Tokens that may be taken now.
    pub(crate) fn free(&self, now: Instant) -> u32 {
        if self.spacing.is_zero() {
            return self.unused();
        }
        let is_next_due = self.held == 0 && self.spaced_until().is_none_or(|until| until <= now);
        if is_next_due { self.unused().min(1) } else { 0 }
    }

    /// Tokens that are neither in use nor taken out of use.
    fn unused(&self) -> u32 {
        let in_use = u32::try_from(self.in_use()).unwrap_or(u32::MAX);
        self.usable.saturating_sub(in_use)
    }

    /// Until then the latest use keeps the next one away.
    fn spaced_until(&self) -> Option<Instant> {
        self.used_at.filter(|_| !self.spacing.is_zero()).map(|used_at| used_at + self.spacing)
    }

    /// Tokens that are granted and neither used nor given back.
    pub(crate) fn held(&self) -> u32 {
        self.held
    }

    /// Whether a lane with these tokens may be forgotten: a new one would be the same.
    pub(crate) fn at_rest(&mut self, now: Instant) -> bool {
        self.collect(now);
        self.in_use() == 0
    }

    /// Held tokens and those that are away.
    fn in_use(&self) -> usize {
        self.held as usize + self.back.len()
    }
}

#[cfg(test)]
mod tests;
