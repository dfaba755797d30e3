//! What is seen of the journal. Nothing of it is on the page when there is none.

use prometheus::core::Collector;
use prometheus::{IntCounter, IntGauge};

use super::families::{Families, opts};

/// What is seen of the journal.
pub(super) struct JournalMetrics {
    up: IntGauge,
    errors: IntCounter,
}

// === impl JournalMetrics ===

impl JournalMetrics {
    pub(super) fn new() -> Self {
        let up = opts("journal_up", "1 while the journal can be written.");
        let errors = opts(
            "journal_errors_total",
            "Lines that could not be written to the journal, and failed rotations.",
        );
        Self {
            up: IntGauge::with_opts(up).expect("a valid name"),
            errors: IntCounter::with_opts(errors).expect("a valid name"),
        }
    }

    fn register(&self, families: &Families) {
        let collectors: [Box<dyn Collector>; 2] =
            [Box::new(self.up.clone()), Box::new(self.errors.clone())];
        collectors
            .into_iter()
            .for_each(|collector| families.add(collector));
    }
}

impl super::Metrics {
    /// There is a journal: its metrics are on the page from now on.
    pub(crate) fn has_journal(&self) {
        self.journal.up.set(1);
        self.journal.register(&self.families);
    }

    /// Whether the journal can be written.
    pub(crate) fn journal_up(&self, up: bool) {
        self.journal.up.set(i64::from(up));
    }

    /// A line could not be written.
    pub(crate) fn journal_failed(&self) {
        self.journal.errors.inc();
    }
}
