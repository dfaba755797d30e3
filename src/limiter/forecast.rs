//! When do the next grants of a lane come? Computed for forecasts only; it grants nothing.
//!
//! With a steady rate the answer is exact and costs O(1). A rate that is about to rise is exact for up to
//! [`EXACT`] tokens; above that tokens are so close together that the mean rate is right to within a token's distance.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::limiter::pace::Rate;
use crate::limiter::shared::turns::Turns as DealtTurns;

/// Up to this many tokens a rising rate is forecast token by token.
const EXACT: usize = 64;

/// The grants to come: each token's next grant, and how the rate rises.
pub(crate) struct Forecast<'a> {
    turns: Turns<'a>,
    /// After a grant a token is back this much later.
    away: Duration,
    /// The least time between two grants, until the rate rises.
    spacing: Duration,
    rises: Vec<(Instant, Rate)>,
}

/// When each token that may be in use is granted next, in order. All lie within about one period.
pub(crate) enum Turns<'a> {
    /// The tokens of this process.
    Ring {
        /// No grant comes before this.
        open: Instant,
        /// Tokens that are free.
        free: usize,
        /// The last uses.
        used: &'a VecDeque<Instant>,
        /// The first of them whose end makes a token free.
        first: usize,
        /// Tokens that are about to be used.
        held: usize,
        /// When they are, at the soonest.
        held_until: Instant,
        /// After a use its token is back this much later.
        away: Duration,
    },
    /// Those that the store deals, as it last said.
    Dealt {
        /// When each is back.
        dealt: &'a DealtTurns,
        /// No grant comes before this.
        open: Instant,
    },
}

// === impl Turns ===

impl Turns<'_> {
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
    /// There is at least one turn.
    pub(crate) fn new(turns: Turns<'a>, away: Duration, rises: Vec<(Instant, Rate)>) -> Self {
        debug_assert!(turns.len() > 0, "a lane without tokens has no forecast");
        Self {
            turns,
            away,
            spacing: Duration::ZERO,
            rises,
        }
    }

    /// The same with this time between two grants at least.
    pub(crate) fn spaced(self, spacing: Duration) -> Self {
        Self { spacing, ..self }
    }

    /// When the grant comes that has `ahead` others before it.
    pub(crate) fn at(&self, ahead: usize) -> Instant {
        let Some((_, highest)) = self.rises.last() else {
            return self.steady(ahead);
        };
        if highest.tokens as usize <= EXACT {
            self.token_by_token(ahead)
        } else {
            self.by_mean_rate(ahead)
        }
    }

    /// If the rate does not rise: every token comes back `away` after each grant.
    fn steady(&self, ahead: usize) -> Instant {
        let tokens = self.turns.len().max(1);
        after(self.turns.get(ahead % tokens), ahead / tokens, self.away)
    }

    fn token_by_token(&self, mut ahead: usize) -> Instant {
        // When each token is back, and when it is granted.
        let mut back: Vec<Instant> = (0..self.turns.len())
            .map(|index| self.turns.get(index))
            .collect();
        let mut turns = back.clone();
        space(&mut back, &mut turns, None, self.spacing);
        let mut away = self.away;
        for (rises_at, rate) in &self.rises {
            let before: usize = turns
                .iter()
                .map(|turn| rounds(*turn, *rises_at, away))
                .sum();
            if ahead < before {
                break;
            }
            ahead -= before;
            let mut latest = None;
            // The rate of the moment decides when a token of this process is back; the store dates it at its use.
            let sooner = match self.turns {
                Turns::Ring { .. } => away.saturating_sub(rate.away()),
                Turns::Dealt { .. } => Duration::ZERO,
            };
            for (back, turn) in back.iter_mut().zip(&turns) {
                let rounds = rounds(*turn, *rises_at, away);
                if rounds > 0 {
                    latest = latest.max(Some(after(*turn, rounds - 1, away)));
                    *back = after(*turn, rounds, away);
                }
                *back = back.checked_sub(sooner).unwrap_or(*back).max(*rises_at);
            }
            back.resize(back.len().max(rate.tokens as usize), *rises_at);
            away = rate.away();
            turns.clone_from(&back);
            space(&mut back, &mut turns, latest, rate.spacing);
        }
        turns.sort_unstable();
        after(turns[ahead % turns.len()], ahead / turns.len(), away)
    }

    fn by_mean_rate(&self, ahead: usize) -> Instant {
        let [(first, rate), rises @ ..] = &self.rises[..] else {
            return self.steady(ahead);
        };
        let open = self.turns.get(0);
        let spaced = first
            .saturating_duration_since(open)
            .as_nanos()
            .checked_div(self.spacing.as_nanos());
        let spaced = spaced.map_or(usize::MAX, |spaced| {
            usize::try_from(spaced).unwrap_or(usize::MAX)
        });
        let before = self.steady_before(*first).min(spaced);
        if ahead < before {
            return self.steady(ahead).max(after(open, ahead, self.spacing));
        }
        let (mut from, mut rate, mut ahead) = (*first, rate, ahead - before);
        for (rises_at, next) in rises {
            let before = (rate.per_second() * (*rises_at - from).as_secs_f64()) as usize;
            if ahead < before {
                break;
            }
            (from, rate, ahead) = (*rises_at, next, ahead - before);
        }
        from + Duration::from_secs_f64(ahead as f64 / rate.per_second())
    }

    /// How many grants come before `until` if the rate does not rise.
    fn steady_before(&self, until: Instant) -> usize {
        let all = self.turns.len();
        let most = rounds(self.turns.get(0), until, self.away);
        // All turns lie within about one period, so two tokens differ by one round.
        let (mut low, mut high) = (0, all);
        while low < high {
            let middle = low.midpoint(high);
            if rounds(self.turns.get(middle), until, self.away) >= most {
                low = middle + 1
            } else {
                high = middle
            }
        }
        most.saturating_mul(low) + most.saturating_sub(1).saturating_mul(all - low)
    }
}

/// Each turn is at least this long after the one before, the first one after `latest`.
fn space(
    back: &mut [Instant],
    turns: &mut Vec<Instant>,
    latest: Option<Instant>,
    spacing: Duration,
) {
    if spacing.is_zero() {
        return;
    }
    back.sort_unstable();
    let mut latest = latest;
    turns.clear();
    for back in back {
        let turn = latest.map_or(*back, |latest| (latest + spacing).max(*back));
        turns.push(turn);
        latest = Some(turn);
    }
}

/// How often a token is granted before `until`, first at `turn`.
fn rounds(turn: Instant, until: Instant, away: Duration) -> usize {
    let time = until.saturating_duration_since(turn);
    usize::try_from(time.as_nanos().div_ceil(away.as_nanos().max(1))).unwrap_or(usize::MAX)
}

/// This many periods after `turn`.
pub(crate) fn after(turn: Instant, periods: usize, away: Duration) -> Instant {
    turn + away * u32::try_from(periods).unwrap_or(u32::MAX)
}
