//! The bounds of one service: its requests ([`Pacing`]), and the log lines about its sources, which
//! all fail together. Each service has its own: one that does not answer delays no other.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::pacing::Pacing;

/// The maximum of log lines per limiter in [`LOG_WINDOW`].
pub(super) const LOG_LINES: u32 = 20;

/// The window of [`LOG_LINES`].
const LOG_WINDOW: Duration = Duration::from_secs(10);

/// The bounds of one service.
pub(super) struct ServiceLimits {
    pub(super) pacing: Arc<Pacing>,
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

// === impl ServiceLimits ===

impl ServiceLimits {
    pub(super) fn new() -> Self {
        Self {
            pacing: Pacing::new(),
            failure_lines: LogLimiter::default(),
            success_lines: LogLimiter::default(),
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
