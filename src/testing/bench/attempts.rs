//! What does it cost to write an attempt down? A journal in a real file, and the call of the other steps. Beside it the same
//! line, written by the thread that asks.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use futures_util::future::join_all;

use super::Steps;
use crate::call::attempt::note_end;
use crate::call::classify;
use crate::call::judge::{self, Context, Verdict};
use crate::config;
use crate::observe::journal::{Journal, Note, RotatingFile};
use crate::observe::metrics::Metrics;
use crate::operation::Operation;
use crate::upstream::Answer;

/// Attempts of one call, one after the other.
pub struct Attempts {
    journal: Arc<Journal>,
    flow_name: Option<String>,
    operation: Operation,
    answer: Answer,
    verdict: Verdict,
    /// Written without the journal's thread.
    file: RotatingFile,
}

// === impl Attempts ===

impl Attempts {
    /// Those of the call that was prepared; the journal is this file.
    pub fn new(steps: Steps, path: &Path) -> Self {
        let config = config::Journal {
            path: path.to_owned(),
            max_size: 64 << 20,
            keep: 1,
        };
        let journal =
            Journal::open(&config, Arc::new(Metrics::new())).expect("the folder takes files");
        let beside = config::Journal {
            path: path.with_extension("here"),
            ..config
        };
        let file = RotatingFile::open(&beside).expect("the folder takes files");
        let operation = classify::classify(
            &steps.caller,
            &steps.head.headers,
            &steps.config,
            &steps.margins,
        );
        let verdict = judge::judge(
            &steps.answer,
            Context {
                managed: true,
                limited: true,
            },
        );
        let operation = operation.expect("the prepared call may be made");
        let flow_name = steps.caller.flow_name().map(Cow::into_owned);
        Self {
            journal: Arc::new(journal),
            flow_name,
            operation,
            answer: steps.answer,
            verdict,
            file,
        }
    }

    /// Writes down that one is sent, and how it has ended.
    pub async fn journal(&self) {
        let note = self.note();
        note.sent().await;
        note_end(&note, Some(&self.answer), &self.verdict);
    }

    /// Writes down that one is sent.
    pub async fn sent(&self) {
        self.note().sent().await;
    }

    /// Writes down that this many are sent at once.
    pub async fn sent_together(&self, count: usize) {
        join_all((0..count).map(|_| self.sent())).await;
    }

    /// Writes the line of [`Attempts::sent`] on this thread.
    pub fn sent_here(&mut self) {
        let note = self.note();
        note.write_here(&mut self.file);
    }

    fn note(&self) -> Note {
        self.journal.note(
            self.flow_name.as_deref(),
            &self.operation,
            "90E63D28-E31D-1EB2-8939-A94866411234",
        )
    }
}
