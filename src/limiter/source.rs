//! The source of a lane's tokens: this process's memory (`tokens.rs`), or the store that replicas
//! share (`shared/slots.rs`). A token allows one attempt; the fair queue decides which call gets
//! it.

use tokio::time::Instant;

use crate::limiter::forecast::{Forecast, NextGrants};
use crate::limiter::pace::Rate;
use crate::limiter::shared::NEVER;
use crate::limiter::shared::slots::{Slot, Slots};
use crate::limiter::tokens::Tokens;
use crate::limiter::wait::Wait;

/// The token source of a lane.
pub(crate) enum Source {
    /// This process holds all tokens, or its part of them while the store cannot be reached.
    Memory(Tokens),
    /// The store deals the tokens as slots. Boxed, because there may be many lanes and most have
    /// another source.
    Shared(Box<Slots>),
    /// No tokens: the store cannot be reached, and this replica has no part.
    None,
}

/// A token that was granted and is not used yet.
#[derive(Clone, Copy, Debug)]
pub(crate) enum GrantedToken {
    Memory,
    Slot(Slot),
}

/// A forecast of the next grants.
pub(crate) enum SourceForecast<'a> {
    Memory(Forecast<'a>),
    /// The slots that are already dealt come first. `dealt` is none while all tokens are withheld.
    Shared {
        slots: &'a Slots,
        open: Instant,
        dealt: Option<Forecast<'a>>,
    },
}

// === impl Source ===

impl Source {
    /// Sets the rate. The store gets the rate with each request instead.
    pub(crate) fn set_rate(&mut self, rate: Rate) {
        if let Self::Memory(tokens) = self {
            tokens.set_rate(rate);
        }
    }

    /// Discards slots that can no longer be used in time.
    pub(crate) fn drop_late(&mut self, now: Instant) {
        if let Self::Shared(slots) = self {
            slots.drop_late(now);
        }
    }

    /// Takes a free token.
    pub(crate) fn take(&mut self, now: Instant) -> Option<GrantedToken> {
        match self {
            Self::Memory(tokens) => tokens.take(now).then_some(GrantedToken::Memory),
            Self::Shared(slots) => slots.take(now).map(GrantedToken::Slot),
            Self::None => None,
        }
    }

    /// Whether a granted token may be used now.
    pub(crate) fn is_usable(&self, token: &GrantedToken, now: Instant) -> bool {
        match (self, token) {
            (Self::Memory(_), GrantedToken::Memory) => true,
            (Self::Shared(slots), GrantedToken::Slot(slot)) => slots.is_usable(slot, now),
            _ => false,
        }
    }

    /// Tokens that can be taken now.
    pub(crate) fn free(&self, now: Instant) -> u32 {
        match self {
            Self::Memory(tokens) => tokens.free(now),
            Self::Shared(slots) => slots.free(now),
            Self::None => 0,
        }
    }

    /// Tokens that are not in use, for operators: with a store also those that it has not dealt to
    /// this replica.
    pub(crate) fn unused(&self, now: Instant) -> u32 {
        match self {
            Self::Memory(tokens) => tokens.free(now),
            Self::Shared(slots) => slots.unused(now),
            Self::None => 0,
        }
    }

    /// Tokens that were granted and neither used nor returned.
    pub(crate) fn held(&self) -> u32 {
        match self {
            Self::Memory(tokens) => tokens.held(),
            Self::Shared(slots) => slots.held(),
            Self::None => 0,
        }
    }

    /// This process's share of the lane's attempts, from 0 to 1.
    pub(crate) fn share(&self) -> f64 {
        if let Self::Shared(slots) = self {
            slots.share()
        } else {
            1.0
        }
    }

    /// Whether the shared store deals the tokens.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self, Self::Shared(_))
    }

    pub(crate) fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// Whether there are no tokens for an unknown time.
    pub(crate) fn is_withheld(&self) -> bool {
        match self {
            Self::Memory(_) => false,
            Self::Shared(slots) => slots.are_withheld(),
            Self::None => true,
        }
    }

    /// What to wait for while no token is free and `waiting` calls are queued.
    pub(crate) fn wait(&self, waiting: usize, now: Instant) -> Wait {
        match self {
            Self::Memory(tokens) => tokens.next_at(now).map_or(Wait::Change, Wait::Token),
            Self::Shared(slots) => slots.wait(waiting, now),
            Self::None => Wait::Change,
        }
    }

    /// Forecasts the next grants: none before `open`, at `rate` until it rises as in `rises`.
    pub(crate) fn forecast(
        &self,
        now: Instant,
        open: Instant,
        rate: Rate,
        rises: Vec<(Instant, Rate)>,
    ) -> Option<SourceForecast<'_>> {
        match self {
            Self::Memory(tokens) => Some(SourceForecast::Memory(tokens.forecast(now, open, rises))),
            Self::Shared(slots) => {
                let dealt = (!slots.are_withheld()).then(|| {
                    let dealt = slots.returns();
                    Forecast::new(NextGrants::Dealt { dealt, open }, dealt.away(), rises)
                        .spaced(rate.spacing)
                });
                Some(SourceForecast::Shared { slots, open, dealt })
            }
            Self::None => None,
        }
    }

    /// Whether a lane with these tokens may be removed because a new one would have the same
    /// tokens.
    pub(crate) fn is_at_rest(&self, now: Instant) -> bool {
        match self {
            Self::Memory(tokens) => tokens.is_at_rest(now),
            Self::Shared(slots) => slots.at_rest(),
            Self::None => true,
        }
    }
}

// === impl GrantedToken ===

impl GrantedToken {
    pub(crate) fn is_probe(&self) -> bool {
        matches!(self, Self::Slot(slot) if slot.dated.probe)
    }
}

// === impl SourceForecast ===

impl SourceForecast<'_> {
    /// The time of the grant that has `ahead` others before it.
    pub(crate) fn at(&self, ahead: usize) -> Instant {
        match self {
            Self::Memory(forecast) => forecast.at(ahead),
            Self::Shared { slots, open, dealt } => match (slots.date_of(ahead), dealt) {
                (Some(at), _) => at.max(*open),
                (None, Some(dealt)) => dealt.at(slots.ahead_of_all(ahead)),
                (None, None) => *open + NEVER,
            },
        }
    }
}
