//! The health of the journal: lost lines are counted, and the start and end of an outage are
//! logged. A write that hangs is an outage too.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::observe::metrics::Metrics;

/// Interval at which an outage is logged.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// A write that takes longer is considered to hang.
const HANGS_AFTER: Duration = Duration::from_secs(5);

/// Shared by the calls and the writer thread.
///
/// All times are those at which lines were queued, because the writer thread has no tokio clock.
pub(super) struct Health {
    metrics: Arc<Metrics>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// When the oldest line of the current write was queued.
    writing_since: Option<Instant>,
    outage: Option<Outage>,
}

/// A time during which the journal cannot be written, or a write hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outage {
    /// Lines lost since the start.
    pub(super) errors: u64,
    pub(super) logged_at: Instant,
}

// === impl Health ===

impl Health {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        metrics.register_journal();
        Self {
            metrics,
            state: Mutex::default(),
        }
    }

    /// Whether lines can be written.
    pub(super) fn is_up(&self, now: Instant) -> bool {
        let state = self.state.lock();
        state.outage.is_none() && !state.is_hanging(now)
    }

    /// A write begins. `queued_at` is when its oldest line was queued.
    pub(super) fn begin(&self, queued_at: Instant) {
        self.state.lock().writing_since = Some(queued_at);
    }

    /// The write has succeeded.
    pub(super) fn wrote(&self) {
        let mut state = self.state.lock();
        state.writing_since = None;
        if let Some(Outage { errors, .. }) = state.outage.take() {
            tracing::info!(errors, "the journal can be written again");
            self.metrics.journal_up(true);
        }
    }

    /// The write has ended and `lost` lines are not in the file. With 0, only a rotation failed.
    pub(super) fn failed(&self, lost: usize, error: &dyn Display, now: Instant) {
        self.state.lock().writing_since = None;
        self.lost(lost, error, now);
    }

    /// Lines are lost, or a rotation failed.
    pub(super) fn lost(&self, lines: usize, error: &dyn Display, now: Instant) {
        let errors = lines.max(1);
        for _ in 0..errors {
            self.metrics.journal_failed();
        }
        self.outage(errors as u64, now, |errors| {
            tracing::error!(%error, errors, "the journal cannot be written; calls without a key continue");
        });
    }

    /// Keys cannot be carried from a file that is to be dropped. It stays.
    pub(super) fn not_carried(&self, error: &dyn Display) {
        self.metrics.journal_failed();
        tracing::error!(%error, "keys cannot be carried from the journal's oldest file; its files grow until they are");
    }

    /// The writer thread has panicked.
    pub(super) fn ended(&self, now: Instant) {
        self.state.lock().writing_since = None;
        self.outage(0, now, |_| {});
        tracing::error!(
            "the journal's thread has panicked; calls continue without the journal until a restart"
        );
    }

    /// Detects a write that hangs.
    pub(super) fn check(&self, now: Instant) {
        if self.state.lock().is_hanging(now) {
            self.outage(0, now, |errors| {
                tracing::error!(errors, "the journal's disk hangs; calls wait for it")
            });
        }
    }

    /// Records an outage, and logs it if that is due.
    fn outage(&self, errors: u64, now: Instant, log: impl FnOnce(u64)) {
        let mut state = self.state.lock();
        let is_new = state.outage.is_none();
        let outage = state.outage.get_or_insert(Outage {
            errors: 0,
            logged_at: now,
        });
        outage.errors += errors;
        self.metrics.journal_up(false);
        if is_new || now.saturating_duration_since(outage.logged_at) >= LOG_EVERY {
            outage.logged_at = now;
            log(outage.errors);
        }
    }

    #[cfg(test)]
    pub(super) fn outage_now(&self) -> Option<Outage> {
        self.state.lock().outage
    }
}

// === impl State ===

impl State {
    fn is_hanging(&self, now: Instant) -> bool {
        self.writing_since
            .is_some_and(|since| now.saturating_duration_since(since) >= HANGS_AFTER)
    }
}
