//! When may one more attempt leave? A lane's tokens: as many as its limit allows in a window, each usable again one
//! window plus the gap after *its own* use. A token is the right to send one attempt now; whose turn it is, is the
//! queue's business. Where the tokens are kept is a source: this process's memory (`memory.rs`), or the store that all
//! replicas share (`shared.rs` here, `take.lua` there).
//!
//! No plain token bucket keeps "at most 5 in any second, the first five at once": with capacity 5 at 5/s it lets ten
//! calls into one second, with capacity 1 the fifth call after idleness waits 0.8 s. A clock per token does both.

use std::sync::Arc;
use std::time::Duration;

use leaky_bucket::RateLimiter;
use tokio::time::Instant;

use crate::limiter::shared::protocol::Dated;
use crate::limiter::shared::slots::{Slot, Slots};
use crate::limiter::tokens;

/// Where a lane's tokens come from.
pub(crate) enum Tokens {
    /// This process has them all, or its part of them while the store is away.
    Memory(tokens::Tokens),
    /// The store deals them out. Boxed: lanes are many, and most have the others.
    Shared(Box<Slots>),
    /// There are none: the store is away, and this replica has no part.
    None,
}

/// A granted token that is not used yet.
pub(crate) enum Granted {
    Memory,
    Slot(Slot),
}

/// A used token, for what its end changes.
#[derive(Clone)]
pub(crate) enum Spent {
    Memory(Arc<RateLimiter>),
    Slot(Dated),
}

/// What a lane whose tokens are all away waits for.
pub(crate) enum Wait {
    /// This clock's drip.
    Drip(Arc<RateLimiter>),
    /// A moment.
    Until(Instant),
    /// The store's answer, which is to be asked for now.
    Ask,
    /// Something that others do.
    Change,
}

// === impl Tokens ===

impl Tokens {
    /// From now on a token that is spent stays away for window plus `gap`, and at most `usable` tokens are in use.
    pub(crate) fn keep(&mut self, gap: Duration, usable: u32) {
        if let Self::Memory(tokens) = self {
            tokens.keep(gap, usable);
        }
    }

    /// Makes every token free that is back. Only while nobody polls a limiter.
    pub(crate) fn collect(&mut self, now: Instant) {
        match self {
            Self::Memory(tokens) => tokens.collect(),
            Self::Shared(slots) => slots.drop_late(now),
            Self::None => {}
        }
    }

    /// Grants one free token.
    pub(crate) fn take(&mut self, now: Instant) -> Option<Granted> {
        match self {
            Self::Memory(tokens) => tokens.take().then_some(Granted::Memory),
            Self::Shared(slots) => slots.take(now).map(Granted::Slot),
            Self::None => None,
        }
    }

    /// Tokens that may be taken now, as far as is known without trying a limiter.
    pub(crate) fn free(&self, now: Instant) -> u32 {
        match self {
            Self::Memory(tokens) => tokens.free(),
            Self::Shared(slots) => slots.free(now),
            Self::None => 0,
        }
    }

    /// Tokens that are granted and neither spent nor given back.
    pub(crate) fn held(&self) -> u32 {
        match self {
            Self::Memory(tokens) => tokens.held(),
            Self::Shared(slots) => slots.held(),
            Self::None => 0,
        }
    }

    /// Whether there are none, for nobody knows how long.
    pub(crate) fn are_withheld(&self) -> bool {
        match self {
            Self::Memory(_) => false,
            Self::Shared(slots) => slots.are_withheld(),
            Self::None => true,
        }
    }

    /// What to wait for while none is free and so many calls wait.
    pub(crate) fn wait(&self, waiting: usize, now: Instant) -> Wait {
        match self {
            Self::Memory(tokens) => tokens.next_drip().map_or(Wait::Change, Wait::Drip),
            Self::Shared(slots) => slots.wait(waiting, now),
            Self::None => Wait::Change,
        }
    }

    /// When the `ahead` + 1st grant from now can come at the earliest, if nothing may be granted before `open` and one
    /// token more may be in use from each of `more` on.
    pub(crate) fn forecast(&self, ahead: usize, now: Instant, open: Instant, more: &[Instant]) -> Instant {
        match self {
            Self::Memory(tokens) => tokens.forecast(ahead, now, open, more),
            Self::Shared(slots) => slots.forecast(ahead, open, more),
            Self::None => now + NEVER,
        }
    }

    /// Whether a lane with these tokens may be forgotten: a new one would be the same.
    pub(crate) fn at_rest(&mut self) -> bool {
        match self {
            Self::Memory(tokens) => tokens.at_rest(),
            Self::Shared(slots) => slots.at_rest(),
            Self::None => true,
        }
    }
}

/// Longer than any hold.
pub(crate) const NEVER: Duration = Duration::from_secs(24 * 3600);
