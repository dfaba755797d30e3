//! Metrics of the journal. They are registered only if a journal is configured.

use prometheus::{IntCounter, IntGauge};

use super::families::{Families, opts};

/// Metrics of the journal.
pub(super) struct JournalMetrics {
    up: IntGauge,
    errors: IntCounter,
    shared: IntGauge,
}

// === impl JournalMetrics ===

impl JournalMetrics {
    pub(super) fn new() -> Self {
        let up = opts(
            "journal_up",
            "1 if the last write to the journal succeeded, else 0.",
        );
        let errors = opts(
            "journal_errors_total",
            "Failed writes of lines to the journal, and failed rotations.",
        );
        let shared = opts(
            "journal_shared",
            "1 while a process that was started earlier writes the same journal, else 0.",
        );
        Self {
            up: IntGauge::with_opts(up).expect("a valid name"),
            errors: IntCounter::with_opts(errors).expect("a valid name"),
            shared: IntGauge::with_opts(shared).expect("a valid name"),
        }
    }

    fn register(&self, families: &Families) {
        families.add(Box::new(self.up.clone()));
        families.add(Box::new(self.errors.clone()));
        families.add(Box::new(self.shared.clone()));
    }
}

impl super::Metrics {
    /// Registers the metrics of the journal.
    pub(crate) fn register_journal(&self) {
        self.journal.up.set(1);
        self.journal.register(&self.families);
    }

    /// Sets whether the journal can be written.
    pub(crate) fn journal_up(&self, up: bool) {
        self.journal.up.set(i64::from(up));
    }

    /// Sets whether another process writes the journal.
    pub(crate) fn journal_shared(&self, shared: bool) {
        self.journal.shared.set(i64::from(shared));
    }

    /// Counts a failed write.
    pub(crate) fn journal_failed(&self) {
        self.journal.errors.inc();
    }
}
