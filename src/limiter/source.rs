//! Where do a lane's tokens come from? From this process's memory (`tokens.rs`), or from the store that replicas share
//! (`shared/slots.rs`). A token is the right to send one attempt now; whose turn it is, is the fair queue's business.

use tokio::time::Instant;

use crate::limiter::forecast::{Forecast, Turns};
use crate::limiter::pace::Rate;
use crate::limiter::shared::NEVER;
use crate::limiter::shared::slots::{Slot, Slots};
use crate::limiter::tokens::Tokens;

/// Where a lane's tokens come from.
pub(crate) enum Source {
    /// This process has them all, or its part of them while the store is away.
    Memory(Tokens),
    /// The store deals them out. Boxed: lanes are many, and most have the others.
    Shared(Box<Slots>),
    /// There are none: the store is away, and this replica has no part.
    None,
}

/// A granted token that is not used yet.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Granted {
    Memory,
    Slot(Slot),
}

/// What a lane whose tokens are all away waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// A token is back then.
    Token(Instant),
    /// A slot's date, or the moment of the next question.
    Until(Instant),
    /// The store's answer, which is to be asked for now.
    Ask,
    /// Another event.
    Change,
}

/// The grants to come.
pub(crate) enum SourceForecast<'a> {
    Memory(Forecast<'a>),
    /// Slots at hand go first; none is forecast while no token may be in use.
    Shared {
        slots: &'a Slots,
        open: Instant,
        dealt: Option<Forecast<'a>>,
    },
}

// === impl Source ===

impl Source {
    /// This rate holds from now on. The store gets it with each question.
    pub(crate) fn keep(&mut self, rate: Rate) {
        if let Self::Memory(tokens) = self {
            tokens.keep(rate);
        }
    }

    /// Puts aside slots that can no longer be used in time.
    pub(crate) fn drop_late(&mut self, now: Instant) {
        if let Self::Shared(slots) = self {
            slots.drop_late(now);
        }
    }

    /// Grants one free token.
    pub(crate) fn take(&mut self, now: Instant) -> Option<Granted> {
        match self {
            Self::Memory(tokens) => tokens.take(now).then_some(Granted::Memory),
            Self::Shared(slots) => slots.take(now).map(Granted::Slot),
            Self::None => None,
        }
    }

    /// Whether a granted token may be used now.
    pub(crate) fn is_usable(&self, token: &Granted, now: Instant) -> bool {
        match (self, token) {
            (Self::Memory(_), Granted::Memory) => true,
            (Self::Shared(slots), Granted::Slot(slot)) => slots.is_usable(slot, now),
            _ => false,
        }
    }

    /// Tokens that may be taken now.
    pub(crate) fn free(&self, now: Instant) -> u32 {
        match self {
            Self::Memory(tokens) => tokens.free(now),
            Self::Shared(slots) => slots.free(now),
            Self::None => 0,
        }
    }

    /// Tokens that are granted and neither used nor given back.
    pub(crate) fn held(&self) -> u32 {
        match self {
            Self::Memory(tokens) => tokens.held(),
            Self::Shared(slots) => slots.held(),
            Self::None => 0,
        }
    }

    /// This process's part of the lane's attempts, from 0 to 1.
    pub(crate) fn part(&self) -> f64 {
        if let Self::Shared(slots) = self {
            slots.part()
        } else {
            1.0
        }
    }

    /// Whether the store that replicas share deals them out.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self, Self::Shared(_))
    }

    pub(crate) fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// Whether there are no tokens, for a time that is not known.
    pub(crate) fn is_withheld(&self) -> bool {
        match self {
            Self::Memory(_) => false,
            Self::Shared(slots) => slots.are_withheld(),
            Self::None => true,
        }
    }

    /// What to wait for while none is free and `waiting` calls wait.
    pub(crate) fn wait(&self, waiting: usize, now: Instant) -> Wait {
        match self {
            Self::Memory(tokens) => tokens.next_at(now).map_or(Wait::Change, Wait::Token),
            Self::Shared(slots) => slots.wait(waiting, now),
            Self::None => Wait::Change,
        }
    }

    /// The grants to come, if none comes before `open`, at this rate until it rises at these moments.
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
                let dealt = slots.turns();
                let forecast = || {
                    Forecast::new(Turns::Dealt { dealt, open }, dealt.away(), rises)
                        .spaced(rate.spacing)
                };
                let dealt = (!slots.are_withheld()).then(forecast);
                Some(SourceForecast::Shared { slots, open, dealt })
            }
            Self::None => None,
        }
    }

    /// Whether a lane with these tokens may be forgotten: a new one would be the same.
    pub(crate) fn at_rest(&self, now: Instant) -> bool {
        match self {
            Self::Memory(tokens) => tokens.at_rest(now),
            Self::Shared(slots) => slots.at_rest(),
            Self::None => true,
        }
    }
}

// === impl Granted ===

impl Granted {
    pub(crate) fn is_probe(&self) -> bool {
        matches!(self, Self::Slot(slot) if slot.dated.probe)
    }
}

// === impl SourceForecast ===

impl SourceForecast<'_> {
    /// When the grant comes that has `ahead` others before it.
    pub(crate) fn at(&self, ahead: usize) -> Instant {
        match self {
            Self::Memory(forecast) => forecast.at(ahead),
            Self::Shared { slots, open, dealt } => match (slots.at_hand(ahead), dealt) {
                (Some(at), _) => at.max(*open),
                (None, Some(dealt)) => dealt.at(slots.ahead_of_all(ahead)),
                (None, None) => *open + NEVER,
            },
        }
    }
}
