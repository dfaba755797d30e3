//! What does it cost to write an attempt down? A journal in a real file, and the call of the other steps.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use super::Steps;
use crate::config;
use crate::flow::classify::{self, Operation};
use crate::flow::forward::Answer;
use crate::flow::judge::{self, Context, Verdict};
use crate::journal::Journal;
use crate::metrics::Metrics;

/// Attempts of one call, one after the other.
pub struct Attempts {
    journal: Arc<Journal>,
    flow_name: Option<String>,
    operation: Operation,
    answer: Answer,
    verdict: Verdict,
}

// === impl Attempts ===

impl Attempts {
    /// Those of the call that was prepared; the journal is this file.
    pub fn new(steps: Steps, path: &Path) -> Self {
        let config = config::Journal { path: path.to_owned(), max_size: 64 << 20, keep: 1 };
        let journal = Journal::open(&config, Arc::new(Metrics::new())).expect("the folder takes files");
        let operation = classify::classify(&steps.caller, &steps.head.headers, &steps.config, &steps.margins);
        let verdict = judge::judge(&steps.answer, Context { managed: true, limited: true });
        let operation = operation.expect("the prepared call may be made");
        let flow_name = steps.caller.flow_name().map(Cow::into_owned);
        Self { journal: Arc::new(journal), flow_name, operation, answer: steps.answer, verdict }
    }

    /// Writes down that one is sent, and how it has ended.
    pub async fn journal(&self) {
        let note =
            self.journal.note(self.flow_name.as_deref(), &self.operation, "90E63D28-E31D-1EB2-8939-A94866411234");
        note.sent().await;
        note.judged(Some(&self.answer), &self.verdict);
    }
}
