//! One connection between two requests, and whether it can serve the next: not if it is closed, has
//! unwritten bytes or is too old.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime;
use tokio::time::Instant;

use super::Sender;
use super::dial::Dialled;
use super::first_write::FirstWrite;
use crate::primitives::lazy_timer::LazyTimer;

/// Maximum age: a connection in steady use would never follow a change of the name's addresses. It
/// ends between two requests. The jitter prevents that connections of one burst end together.
const MAX_AGE: Duration = Duration::from_secs(5 * 60);
const MAX_AGE_JITTER: f64 = 0.1;

/// A connection that closes within this time, without a response, never worked. Later it may have
/// been idle for too long.
const EARLY: Duration = Duration::from_secs(1);

/// An open connection.
pub(super) struct Link {
    opened: Instant,
    /// When it was opened or last used.
    pub(super) since: Instant,
    /// When it becomes too old to be used again.
    retires: Instant,
    has_answered: bool,
    pub(super) sender: Sender,
    /// Reports the first write of each request.
    pub(super) first_write: Arc<FirstWrite>,
    /// For the deadline of each exchange.
    pub(super) timer: LazyTimer,
    /// The runtime of its task.
    pub(super) home: runtime::Id,
}

// === impl Link ===

impl Link {
    pub(super) fn new(dialled: Dialled, home: runtime::Id) -> Self {
        let opened = Instant::now();
        let jitter = (fastrand::f64() - 0.5) * 2.0 * MAX_AGE_JITTER;
        let retires = opened + MAX_AGE.mul_f64(1.0 + jitter);
        Self {
            opened,
            since: opened,
            retires,
            has_answered: false,
            sender: dialled.sender,
            first_write: dialled.first_write,
            timer: LazyTimer::default(),
            home,
        }
    }

    /// Whether a request can be sent now, with no bytes of another request before it.
    pub(super) fn is_ready(&self, now: Instant) -> bool {
        self.sender.is_ready() && self.can_become_ready(now)
    }

    /// Whether it was not idle for so long that the other side may close it soon.
    pub(super) fn is_fresh(&self, idle_timeout: Duration, now: Instant) -> bool {
        now - self.since < idle_timeout
    }

    pub(super) fn can_become_ready(&self, now: Instant) -> bool {
        !self.first_write.is_behind() && now < self.retires
    }

    /// Whether it closed soon after it was opened, without an answer.
    pub(super) fn has_closed_early(&self, now: Instant) -> bool {
        !self.has_answered && now - self.opened < EARLY && self.sender.is_closed()
    }

    pub(super) fn record_answer(&mut self) {
        self.since = Instant::now();
        self.has_answered = true;
    }
}
