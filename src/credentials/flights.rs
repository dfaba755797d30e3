//! Bounds the requests to one service. Requests that no call waits for share one bound; requests
//! that a call waits for have another one, so that they never queue behind the others.
//!
//! A process may have 100,000 accounts with a role each. STS allows 100 requests a second for all
//! users and roles of an account. A permit is held for at least [`MIN_HOLD`], so the 16 permits of a
//! bound start at most 50 requests a second: both bounds together keep within that quota.
//! 100,000 sessions of an hour need 37 refreshes a second, which 50 covers; at a start it takes 33
//! minutes until all have a session, and those that calls need are obtained first.
//!
//! Each service has its own bounds: one that does not answer delays no other. The log lines about the
//! sources of a service are bounded, too: they all fail together.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};

/// The maximum of concurrent requests per bound.
pub(super) const AT_ONCE: usize = 16;

/// How long a permit is held at least.
pub(super) const MIN_HOLD: Duration = Duration::from_millis(320);

/// The maximum of log lines per service in [`LOG_WINDOW`].
pub(super) const LOG_LINES: u32 = 20;

/// The window of [`LOG_LINES`].
const LOG_WINDOW: Duration = Duration::from_secs(10);

/// The bounds of one service.
pub(super) struct Flights {
    background: Arc<Semaphore>,
    awaited: Arc<Semaphore>,
    logged: Mutex<Logged>,
}

/// The log lines of a window.
#[derive(Default)]
struct Logged {
    since: Option<Instant>,
    lines: u32,
    /// Lines left out since the last one that was logged.
    left_out: u64,
}

/// The right to send one request.
pub(super) struct FlightPermit {
    permit: Option<OwnedSemaphorePermit>,
    since: Instant,
}

// === impl Flights ===

impl Flights {
    pub(super) fn new() -> Self {
        Self {
            background: Arc::new(Semaphore::new(AT_ONCE)),
            awaited: Arc::new(Semaphore::new(AT_ONCE)),
            logged: Mutex::default(),
        }
    }

    /// Whether a line about one of the sources may be logged. If so, returns how many were left out
    /// since the last one.
    pub(super) fn log_line(&self, now: Instant) -> Option<u64> {
        let mut logged = self.logged.lock();
        if logged.since.is_none_or(|since| now >= since + LOG_WINDOW) {
            logged.since = Some(now);
            logged.lines = 0;
        }
        if logged.lines == LOG_LINES {
            logged.left_out += 1;
            return None;
        }
        logged.lines += 1;
        Some(std::mem::take(&mut logged.left_out))
    }

    /// Waits for a permit. `awaited` completes when a call waits for the request.
    pub(super) async fn permit(&self, awaited: impl Future<Output = ()>) -> FlightPermit {
        let ahead = async {
            awaited.await;
            self.awaited.clone().acquire_owned().await
        };
        let permit = tokio::select! {
            biased;
            permit = self.background.clone().acquire_owned() => permit,
            permit = ahead => permit,
        };
        FlightPermit {
            permit: Some(permit.expect("the semaphore is never closed")),
            since: Instant::now(),
        }
    }
}

// === impl FlightPermit ===

impl Drop for FlightPermit {
    /// Returns the permit, at the earliest at the end of [`MIN_HOLD`].
    fn drop(&mut self) {
        let permit = self.permit.take();
        let free_at = self.since + MIN_HOLD;
        if Instant::now() >= free_at {
            return;
        }
        // Without a runtime the process ends.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                sleep_until(free_at).await;
                drop(permit);
            });
        }
    }
}
