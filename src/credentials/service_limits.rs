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

/// The maximum of log lines per limiter in [`LOG_WINDOW`].
pub(super) const LOG_LINES: u32 = 20;

/// The window of [`LOG_LINES`].
const LOG_WINDOW: Duration = Duration::from_secs(10);

/// The bounds of one service.
pub(super) struct ServiceLimits {
    background: Arc<Semaphore>,
    awaited: Arc<Semaphore>,
    /// Of lines about failures.
    pub(super) failure_lines: LogLimiter,
    /// Of lines about sessions that were obtained, which must not displace those about failures.
    pub(super) success_lines: LogLimiter,
}

/// Bounds the log lines about the sources of one service.
#[derive(Default)]
pub(super) struct LogLimiter(Mutex<LogWindow>);

/// The log lines of a window.
#[derive(Default)]
struct LogWindow {
    since: Option<Instant>,
    lines: u32,
    /// Lines left out since the last one that was logged.
    left_out: u64,
}

/// The right to send one request.
pub(super) struct RequestPermit {
    permit: Option<OwnedSemaphorePermit>,
    since: Instant,
}

// === impl ServiceLimits ===

impl ServiceLimits {
    pub(super) fn new() -> Self {
        Self {
            background: Arc::new(Semaphore::new(AT_ONCE)),
            awaited: Arc::new(Semaphore::new(AT_ONCE)),
            failure_lines: LogLimiter::default(),
            success_lines: LogLimiter::default(),
        }
    }

    /// Waits for a permit. `awaited` completes when a call waits for the request.
    pub(super) async fn permit(&self, awaited: impl Future<Output = ()>) -> RequestPermit {
        let ahead = async {
            awaited.await;
            self.awaited.clone().acquire_owned().await
        };
        let permit = tokio::select! {
            biased;
            permit = self.background.clone().acquire_owned() => permit,
            permit = ahead => permit,
        };
        RequestPermit {
            permit: Some(permit.expect("the semaphore is never closed")),
            since: Instant::now(),
        }
    }
}

// === impl LogLimiter ===

impl LogLimiter {
    /// Whether another line may be logged. If so, returns how many were left out since the last one.
    pub(super) fn line(&self, now: Instant) -> Option<u64> {
        let mut window = self.0.lock();
        if window.since.is_none_or(|since| now >= since + LOG_WINDOW) {
            window.since = Some(now);
            window.lines = 0;
        }
        if window.lines == LOG_LINES {
            window.left_out += 1;
            return None;
        }
        window.lines += 1;
        Some(std::mem::take(&mut window.left_out))
    }
}

// === impl RequestPermit ===

impl Drop for RequestPermit {
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
