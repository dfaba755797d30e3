//! The time until which calls are granted. There is none without a drain. After a drain has begun,
//! it is a deadline that leaves time for the answers; where a successor takes over the quota, calls
//! of limited actions are not granted any more.

use tokio::time::Instant;

/// The deadlines of a drain.
#[derive(Default)]
pub(super) struct DrainDeadlines {
    limited: Option<Instant>,
    unlimited: Option<Instant>,
}

// === impl DrainDeadlines ===

impl DrainDeadlines {
    /// Begins a drain that ends at `by`. A later call never extends the deadline of limited
    /// actions.
    pub(super) fn begin(&mut self, by: Instant) {
        self.limited = Some(self.limited.map_or(by, |limited| limited.min(by)));
        self.unlimited = Some(by);
    }

    /// A successor uses the quota from now on.
    pub(super) fn hand_over(&mut self, now: Instant) {
        self.limited = Some(now);
    }

    /// The deadline for calls of limited actions.
    pub(super) fn limited(&self) -> Option<Instant> {
        self.limited
    }

    /// Whether calls of actions without a limit are not granted any more.
    pub(super) fn is_over_for_unlimited(&self, now: Instant) -> bool {
        self.unlimited.is_some_and(|by| by <= now)
    }
}
