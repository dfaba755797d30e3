//! When will the next tokens be back? Only computes, for honest predictions; nobody is granted anything by it.

use std::time::Duration;

use tokio::time::Instant;

/// When the `ahead` + 1st grant comes, if each token's first is at one of `turns`, which all lie within one period, and
/// each comes back `away` after every grant. From each of `joins` on, in order, there is one token more.
pub(crate) fn nth(ahead: usize, mut turns: Vec<Instant>, away: Duration, joins: &[Instant]) -> Instant {
    let mut ahead = ahead;
    for joins_at in joins {
        let rounds = |turn: &Instant| {
            let until = joins_at.saturating_duration_since(*turn);
            usize::try_from(until.as_nanos().div_ceil(away.as_nanos())).unwrap_or(usize::MAX)
        };
        let before = turns.iter().map(rounds).fold(0, usize::saturating_add);
        if ahead < before {
            break;
        }
        ahead -= before;
        turns.iter_mut().for_each(|turn| *turn = after(*turn, rounds(turn), away));
        turns.push(*joins_at);
    }
    turns.sort_unstable();
    after(turns[ahead % turns.len()], ahead / turns.len(), away)
}

/// So many periods after `turn`.
pub(crate) fn after(turn: Instant, periods: usize, away: Duration) -> Instant {
    turn + away * u32::try_from(periods).unwrap_or(u32::MAX)
}
