//! Until when is anything granted? For ever, until a drain begins; then until a moment that leaves time for the answers,
//! and where a successor takes over the quota, calls of limited actions no longer at all.

use tokio::time::Instant;

/// When the last calls are granted.
#[derive(Default)]
pub(super) struct DrainBy {
    limited: Option<Instant>,
    others: Option<Instant>,
}

// === impl DrainBy ===

impl DrainBy {
    /// A drain ends then; never later than was said before.
    pub(super) fn begin(&mut self, by: Instant) {
        self.limited = Some(self.limited.map_or(by, |limited| limited.min(by)));
        self.others = Some(by);
    }

    /// A successor has the quota.
    pub(super) fn hand_over(&mut self, now: Instant) {
        self.limited = Some(now);
    }

    /// When calls of limited actions are not granted any more.
    pub(super) fn limited(&self) -> Option<Instant> {
        self.limited
    }

    /// Whether calls without a limit are not, either.
    pub(super) fn is_over_for_all(&self, then: Instant) -> bool {
        self.others.is_some_and(|by| by <= then)
    }
}
