//! The time until which calls are granted. There is none without a drain. After a drain has begun,
//! it is a deadline that leaves time for the answers; where a successor takes over the quota, calls
//! of limited actions are not granted any more.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::time::Instant;

/// The deadlines of a drain.
#[derive(Default)]
pub(super) struct DrainDeadlines {
    /// Whether there are any: each event of a lane asks, and a lock would cost more.
    is_set: AtomicBool,
    deadlines: Mutex<Deadlines>,
}

#[derive(Default)]
struct Deadlines {
    limited: Option<Instant>,
    unlimited: Option<Instant>,
}

// === impl DrainDeadlines ===

impl DrainDeadlines {
    /// Begins a drain that ends at `by`. A later call never extends the deadline of limited
    /// actions.
    pub(super) fn begin(&self, by: Instant) {
        let mut deadlines = self.deadlines.lock();
        deadlines.limited = Some(deadlines.limited.map_or(by, |limited| limited.min(by)));
        deadlines.unlimited = Some(by);
        self.is_set.store(true, Ordering::Release);
    }

    /// A successor uses the quota from now on.
    pub(super) fn hand_over(&self, now: Instant) {
        self.deadlines.lock().limited = Some(now);
        self.is_set.store(true, Ordering::Release);
    }

    /// The deadline for calls of limited actions.
    pub(super) fn limited(&self) -> Option<Instant> {
        if !self.is_set.load(Ordering::Acquire) {
            return None;
        }
        self.deadlines.lock().limited
    }

    /// Whether calls of actions without a limit are not granted any more.
    pub(super) fn is_over_for_unlimited(&self, now: Instant) -> bool {
        if !self.is_set.load(Ordering::Acquire) {
            return false;
        }
        self.deadlines.lock().unlimited.is_some_and(|by| by <= now)
    }
}
