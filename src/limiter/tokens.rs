//! The tokens of one lane, in this process's memory: as many as its limit allows in a window, each usable again one
//! window and gap after its own use. A token is held from its grant until the first byte of its attempt was written; from
//! that write on it is away.
//!
//! No plain token bucket keeps "at most 5 in any second, the first five at once": with capacity 5 at 5/s it lets ten calls
//! into one second, with capacity 1 the fifth call after idleness waits 0.8 s. A clock for each token does both. The
//! clocks are a ring of the last uses.
//!
//! The rate may change at any time. What is learned holds for uses that were before, too: the rate of the moment decides
//! when a token is back. It is never sooner than the limit's window, so no window ever holds more uses than the limit's
//! count. When fewer tokens may be in use, the latest uses keep them.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Limit;
use crate::limiter::forecast::{Forecast, Turns};
use crate::limiter::pace::Rate;

/// The last uses, and the tokens that are held.
pub(crate) struct Tokens {
    /// The most uses that are remembered: one for each token of the limit.
    count: usize,
    /// How long a token stays away after its use, now.
    away: Duration,
    /// How many may be held or away at once, now.
    usable: usize,
    /// The least time between two uses, now: zero unless the lane sends less than its limit.
    spacing: Duration,
    /// Granted, and neither used nor given back.
    held: usize,
    /// The last uses, oldest first.
    used: VecDeque<Instant>,
}

// === impl Tokens ===

impl Tokens {
    /// All tokens count as used at `since`: a predecessor may have used them then.
    pub(crate) fn new(limit: Limit, gap: Duration, since: Instant, now: Instant) -> Self {
        let (count, away) = (limit.count.get() as usize, limit.window + gap);
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

    /// This rate holds from now on.
    pub(crate) fn keep(&mut self, rate: Rate) {
        self.away = rate.away();
        self.usable = rate.tokens as usize;
        // A replica's part of the tokens may grow.
        self.count = self.count.max(self.usable);
        self.spacing = rate.spacing;
    }

    /// This many attempts may still be written that were granted before: each holds a token until its use or return.
    pub(crate) fn hold(&mut self, attempts: u32) {
        self.held += attempts as usize;
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

    /// A granted token was used at `at`.
    pub(crate) fn used(&mut self, at: Instant) {
        debug_assert!(self.held > 0, "only a held token can be used");
        self.held = self.held.saturating_sub(1);
        let place = self.used.partition_point(|other| *other <= at);
        self.used.insert(place, at);
        if self.used.len() > self.count {
            self.used.pop_front();
        }
    }

    /// When a token may be taken next. None while that takes a held token's use or return.
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

    /// The grants to come, if none comes before `open` and the rate rises at these moments.
    pub(crate) fn forecast(
        &self,
        now: Instant,
        open: Instant,
        rises: Vec<(Instant, Rate)>,
    ) -> Forecast<'_> {
        let away = self.away(now);
        let turns = Turns::Ring {
            open: self.spaced_until().map_or(open, |spaced| spaced.max(open)),
            free: self.usable.saturating_sub(self.held + away),
            used: &self.used,
            first: self.first_of_usable().max(self.used.len() - away),
            held: self.held.min(self.usable),
            // A held token is about to be used.
            held_until: now,
            away: self.away,
        };
        Forecast::new(turns, self.away, rises).spaced(self.spacing)
    }

    /// Tokens that may be taken now.
    pub(crate) fn free(&self, now: Instant) -> u32 {
        let free = self.usable.saturating_sub(self.held + self.away(now));
        if self.spacing.is_zero() {
            return u32::try_from(free).unwrap_or(u32::MAX);
        }
        let is_next_due = self.held == 0 && self.spaced_until().is_none_or(|until| until <= now);
        u32::from(free > 0 && is_next_due)
    }

    /// Tokens that are granted and neither used nor given back.
    pub(crate) fn held(&self) -> u32 {
        u32::try_from(self.held).unwrap_or(u32::MAX)
    }

    /// Whether a lane with these tokens may be forgotten: a new one would be the same.
    pub(crate) fn at_rest(&self, now: Instant) -> bool {
        self.held == 0 && self.away(now) == 0
    }

    /// How many uses are not over.
    fn away(&self, now: Instant) -> usize {
        // Mostly all of them are, or a few of the oldest are not.
        self.used.len() - self.used.partition_point(|used| *used + self.away <= now)
    }

    /// The use whose end makes a token free when all usable ones are held or away.
    fn first_of_usable(&self) -> usize {
        (self.used.len() + self.held).saturating_sub(self.usable)
    }

    /// Until then the latest use keeps the next one away.
    fn spaced_until(&self) -> Option<Instant> {
        self.used
            .back()
            .filter(|_| !self.spacing.is_zero())
            .map(|used| *used + self.spacing)
    }
}

#[cfg(test)]
mod tests;
