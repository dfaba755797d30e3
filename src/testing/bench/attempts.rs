//! The cost of journalling an attempt, in a journal in a real file. For comparison, the same line
//! written by the calling thread.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::future::join_all;

use super::Steps;
use crate::call::attempt::note_end;
use crate::call::classify;
use crate::call::judge::{self, Context, Verdict};
use crate::config;
use crate::observe::journal::{Journal, Note, RotatingFile};
use crate::observe::metrics::Metrics;
use crate::operation::Operation;
use crate::upstream::UpstreamResponse;

/// Successive attempts of one call.
pub struct Attempts {
    journal: Arc<Journal>,
    flow_name: Option<String>,
    operation: Operation,
    answer: UpstreamResponse,
    verdict: Verdict,
    /// A file that is written without the journal's thread.
    file: RotatingFile,
}

// === impl Attempts ===

impl Attempts {
    /// Attempts of the prepared call, with the journal at `path`.
    pub fn new(steps: Steps, path: &Path) -> Self {
        let config = config::Journal {
            path: path.to_owned(),
            max_size: 64 << 20,
            keep: 1,
        };
        let journal =
            Journal::open(&config, Arc::new(Metrics::new())).expect("the folder is writable");
        let beside = config::Journal {
            path: path.with_extension("here"),
            ..config
        };
        let file = RotatingFile::open(&beside).expect("the folder is writable");
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
                action: "CreateFlow",
            },
            SystemTime::now,
        );
        let operation = operation.expect("the prepared call is permitted");
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

    /// Journals that an attempt is sent, and its verdict.
    pub async fn journal(&self) {
        let note = self.note();
        note.sent().await;
        note_end(&note, Some(&self.answer), &self.verdict);
    }

    /// Journals that an attempt is sent.
    pub async fn sent(&self) {
        self.note().sent().await;
    }

    /// Journals that `count` attempts are sent at once.
    pub async fn sent_together(&self, count: usize) {
        join_all((0..count).map(|_| self.sent())).await;
    }

    /// Writes the line of [`Attempts::sent`] on the calling thread.
    pub fn sent_here(&mut self) {
        let note = self.note();
        note.write_here(&mut self.file);
    }

    fn note(&self) -> Note {
        self.journal.note(
            self.flow_name.as_deref(),
            &self.operation,
            "90E63D28-E31D-1EB2-8939-A94866411234",
            None,
        )
    }
}
