//! Forecasts when the next grants of a lane come. Grants nothing.
//!
//! At a steady rate the forecast is exact and costs O(1). A rising rate is forecast exactly for up
//! to [`MAX_EXACT_TOKENS`] tokens. With more tokens, the mean rate is used, which is accurate to
//! the distance between two tokens.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::limiter::pace::Rate;
use crate::limiter::token_returns::{TokenReturns, after};

/// The most tokens for which a rising rate is forecast token by token.
const MAX_EXACT_TOKENS: usize = 64;

/// A forecast, from each token's next grant and the rises of the rate.
pub(crate) struct Forecast<'a> {
    next_grants: NextGrants<'a>,
    /// How long after a grant its token is back.
    away: Duration,
    /// The least time between two grants, until the first rise.
    spacing: Duration,
    /// Each rate applies from its time on.
    rises: Vec<(Instant, Rate)>,
}

/// When each usable token is granted next, in order. All these times are within about one period of
/// `away`.
pub(crate) enum NextGrants<'a> {
    /// The tokens of this process.
    Ring {
        /// No grant comes before this.
        open: Instant,
        /// The number of free tokens.
        free: usize,
        /// The recent uses.
        used: &'a VecDeque<Instant>,
        /// The index of the first use whose end makes a token free.
        first: usize,
        /// The number of held tokens.
        held: usize,
        /// When these are used, at the earliest.
        held_until: Instant,
        /// How long after a use its token is back.
        away: Duration,
    },
    /// The store's tokens, as in its latest answer.
    Dealt {
        /// When each token is back.
        dealt: &'a TokenReturns,
        /// No grant comes before this.
        open: Instant,
    },
}

// === impl NextGrants ===

impl NextGrants<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Ring {
                free,
                used,
                first,
                held,
                ..
            } => free + used.len().saturating_sub(*first) + held,
            Self::Dealt { dealt, .. } => dealt.usable(),
        }
    }

    fn get(&self, index: usize) -> Instant {
        match self {
            Self::Dealt { dealt, open } => dealt.nth(index, *open),
            Self::Ring {
                open,
                free,
                used,
                first,
                held_until,
                away,
                ..
            } => match index.checked_sub(*free) {
                None => *open,
                Some(index) => (*used.get(index + first).unwrap_or(held_until) + *away).max(*open),
            },
        }
    }
}

// === impl Forecast ===

impl<'a> Forecast<'a> {
    /// `next_grants` must not be empty.
    pub(crate) fn new(
        next_grants: NextGrants<'a>,
        away: Duration,
        rises: Vec<(Instant, Rate)>,
    ) -> Self {
        debug_assert!(
            next_grants.len() > 0,
            "a lane without tokens has no forecast"
        );
        Self {
            next_grants,
            away,
            spacing: Duration::ZERO,
            rises,
        }
    }

    /// Adds a least time between two grants.
    pub(crate) fn spaced(self, spacing: Duration) -> Self {
        Self { spacing, ..self }
    }

    /// The time of the grant that has `ahead` others before it.
    pub(crate) fn at(&self, ahead: usize) -> Instant {
        let Some((_, highest)) = self.rises.last() else {
            return self.steady(ahead);
        };
        if highest.tokens as usize <= MAX_EXACT_TOKENS {
            self.token_by_token(ahead)
        } else {
            self.by_mean_rate(ahead)
        }
    }

    /// The forecast without a rise: every token is back `away` after its grant.
    fn steady(&self, ahead: usize) -> Instant {
        let tokens = self.next_grants.len().max(1);
        after(
            self.next_grants.get(ahead % tokens),
            ahead / tokens,
            self.away,
        )
    }

    fn token_by_token(&self, mut ahead: usize) -> Instant {
        // For each token: when it is back, and when it is granted.
        let mut back: Vec<Instant> = (0..self.next_grants.len())
            .map(|index| self.next_grants.get(index))
            .collect();
        let mut granted = back.clone();
        space(&mut back, &mut granted, None, self.spacing);
        let mut away = self.away;
        for (rises_at, rate) in &self.rises {
            let grants_before: usize = granted
                .iter()
                .map(|first| grants_until(*first, *rises_at, away))
                .sum();
            if ahead < grants_before {
                break;
            }
            ahead -= grants_before;
            let mut latest = None;
            // The present rate decides when a token of this process is back. The store fixes that
            // at the use.
            let sooner = match self.next_grants {
                NextGrants::Ring { .. } => away.saturating_sub(rate.away()),
                NextGrants::Dealt { .. } => Duration::ZERO,
            };
            for (back, granted) in back.iter_mut().zip(&granted) {
                let grants = grants_until(*granted, *rises_at, away);
                if grants > 0 {
                    latest = latest.max(Some(after(*granted, grants - 1, away)));
                    *back = after(*granted, grants, away);
                }
                *back = back.checked_sub(sooner).unwrap_or(*back).max(*rises_at);
            }
            back.resize(back.len().max(rate.tokens as usize), *rises_at);
            away = rate.away();
            granted.clone_from(&back);
            space(&mut back, &mut granted, latest, rate.spacing);
        }
        granted.sort_unstable();
        after(granted[ahead % granted.len()], ahead / granted.len(), away)
    }

    fn by_mean_rate(&self, ahead: usize) -> Instant {
        let [(first_rise, rate), later_rises @ ..] = &self.rises[..] else {
            return self.steady(ahead);
        };
        let before = self
            .steady_before(*first_rise)
            .min(self.spaced_before(*first_rise));
        if ahead < before {
            let spaced = after(self.next_grants.get(0), ahead, self.spacing);
            return self.steady(ahead).max(spaced);
        }
        let mut from = *first_rise;
        let mut rate = rate;
        let mut ahead = ahead - before;
        for (rises_at, next) in later_rises {
            let grants = (rate.per_second() * (*rises_at - from).as_secs_f64()) as usize;
            if ahead < grants {
                break;
            }
            from = *rises_at;
            rate = next;
            ahead -= grants;
        }
        from + Duration::from_secs_f64(ahead as f64 / rate.per_second())
    }

    /// The most grants that the spacing allows before `until`.
    fn spaced_before(&self, until: Instant) -> usize {
        let time = until.saturating_duration_since(self.next_grants.get(0));
        time.as_nanos()
            .checked_div(self.spacing.as_nanos())
            .and_then(|grants| usize::try_from(grants).ok())
            .unwrap_or(usize::MAX)
    }

    /// The number of grants before `until` if the rate does not rise.
    fn steady_before(&self, until: Instant) -> usize {
        let tokens = self.next_grants.len();
        let most = grants_until(self.next_grants.get(0), until, self.away);
        // All next grants are within about one period, so the numbers of two tokens differ by at
        // most one. The first tokens reach `most`: find how many.
        let mut low = 0;
        let mut high = tokens;
        while low < high {
            let middle = low.midpoint(high);
            if grants_until(self.next_grants.get(middle), until, self.away) >= most {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        most.saturating_mul(low) + most.saturating_sub(1).saturating_mul(tokens - low)
    }
}

/// Sets the grant of each token to at least `spacing` after the one before, the first one after
/// `latest`. Sorts `back`.
fn space(
    back: &mut [Instant],
    granted: &mut Vec<Instant>,
    latest: Option<Instant>,
    spacing: Duration,
) {
    if spacing.is_zero() {
        return;
    }
    back.sort_unstable();
    let mut latest = latest;
    granted.clear();
    for back in back {
        let grant = latest.map_or(*back, |latest| (latest + spacing).max(*back));
        granted.push(grant);
        latest = Some(grant);
    }
}

/// The number of grants of a token before `until`, if the first one is at `first`.
fn grants_until(first: Instant, until: Instant, away: Duration) -> usize {
    let time = until.saturating_duration_since(first);
    usize::try_from(time.as_nanos().div_ceil(away.as_nanos().max(1))).unwrap_or(usize::MAX)
}
