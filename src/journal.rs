//! What may CAMS have done? Each attempt is written down before its first byte leaves, and again when it has ended: what
//! was sent and has no end may have been done, also after a crash. Each line is one write to the file, so that a killed
//! process has lost none; what cannot be written is counted, and the call goes on (docs/journal.md says why).
//!
//! The file and its rotation are `journal/file.rs`, what a line says `journal/line.rs`, who reads it `journal/open.rs`.

mod file;
mod line;
mod open;

use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::acs::flow_id;
use crate::config;
use crate::flow::classify::Operation;
use crate::flow::forward::Answer;
use crate::flow::judge::Verdict;
use crate::flow::record::capped;
use crate::id::AccessKeyId;
use crate::metrics::Metrics;
use file::RotatingFile;
use line::{Done, Line, Outcome, Sent};

pub use open::{Reading, read};

/// How often a journal that cannot be written is complained of.
const COMPLAINT: Duration = Duration::from_secs(10);

/// Where attempts are written down.
pub(crate) struct Journal {
    /// Tells this process's attempts from those of every other one.
    run: String,
    attempts: AtomicU64,
    page: Mutex<Page>,
    metrics: Arc<Metrics>,
}

/// The file, and since when it cannot be written.
struct Page {
    file: RotatingFile,
    trouble: Option<Trouble>,
}

/// A journal that cannot be written.
struct Trouble {
    errors: u64,
    told: Instant,
}

/// One attempt that is to be written down. Dropped without an end, its end is unknown.
pub(crate) struct Note {
    journal: Arc<Journal>,
    attempt: String,
    sent: Vec<u8>,
    /// Whether its answer names a flow.
    creates: bool,
}

/// The one action whose calls are told by a name.
const CREATE: &str = "CreateFlow";

/// The account as it may stand in a file: a key that the configuration does not name only masked.
fn account(operation: &Operation) -> Cow<'_, str> {
    let name = operation.account.as_str();
    if operation.known { name.into() } else { AccessKeyId::new(name.trim_start_matches('?')).masked().into() }
}

// === impl Journal ===

impl Journal {
    /// Opens the file, or makes it.
    pub(crate) fn open(config: &config::Journal, metrics: Arc<Metrics>) -> io::Result<Self> {
        let file = RotatingFile::open(config)?;
        let mut run = [0; 8];
        getrandom::fill(&mut run).map_err(io::Error::other)?;
        metrics.has_journal();
        let page = Mutex::new(Page { file, trouble: None });
        Ok(Self { run: crate::acs::v3::hex(&run), attempts: AtomicU64::new(0), page, metrics })
    }

    /// Prepares what is written down of the attempt that is about to be made; `flow_name` counts if it makes a flow.
    pub(crate) fn note(self: &Arc<Self>, flow_name: Option<&str>, operation: &Operation, request_id: &str) -> Note {
        let creates = operation.action.as_str() == CREATE;
        let attempt = format!("{}-{}", self.run, self.attempts.fetch_add(1, Ordering::Relaxed));
        let sent = Line::Sent(Sent {
            time: line::time(SystemTime::now()).into(),
            attempt: attempt.as_str().into(),
            request_id: request_id.into(),
            account: account(operation),
            client: capped(operation.client.as_str()).into(),
            tenant: Some(operation.tenant.as_str()).filter(|tenant| !tenant.is_empty()).map(Cow::from),
            action: operation.action.as_str().into(),
            flow_name: flow_name.filter(|_| creates).map(|name| capped(name).into()),
        })
        .to_bytes();
        Note { journal: self.clone(), attempt, sent, creates }
    }

    /// Whether it can be written.
    pub(crate) fn is_up(&self) -> bool {
        self.page.lock().trouble.is_none()
    }

    fn write(&self, line: &[u8]) {
        let page = &mut *self.page.lock();
        match (page.file.write(line), &mut page.trouble) {
            (Ok(()), None) => {}
            (Ok(()), Some(Trouble { errors, .. })) => {
                tracing::info!(errors, "the journal can be written again");
                page.trouble = None;
                self.metrics.journal_up(true);
            }
            (Err(error), trouble) => {
                self.metrics.journal_failed();
                self.metrics.journal_up(false);
                let now = Instant::now();
                let is_new = trouble.is_none();
                let trouble = trouble.get_or_insert(Trouble { errors: 0, told: now });
                trouble.errors += 1;
                if is_new || now - trouble.told >= COMPLAINT {
                    trouble.told = now;
                    let errors = trouble.errors;
                    tracing::error!(%error, errors, "the journal cannot be written; calls go on without it");
                }
            }
        }
    }
}

// === impl Note ===

impl Note {
    /// The attempt's first byte is about to leave.
    pub(crate) fn sent(&self) {
        self.journal.write(&self.sent);
    }

    /// Nothing left, after all.
    pub(crate) fn unsent(&self) {
        self.done(Done { outcome: Outcome::Unsent, ..Done::default() });
    }

    /// The attempt has ended.
    pub(crate) fn judged(&self, answer: Option<&Answer>, verdict: &Verdict) {
        let (outcome, is_known) = match verdict {
            Verdict::Ok { .. } => (Outcome::Ok, true),
            Verdict::Throttled { .. } => (Outcome::Throttled, true),
            Verdict::UpstreamError { .. } => (Outcome::UpstreamError, true),
            Verdict::Credentials { .. } => (Outcome::Credentials, true),
            Verdict::Unknown { .. } => (Outcome::Unknown, false),
        };
        let says = Some(capped(verdict.code()).into());
        let (code, reason) = if is_known { (says, None) } else { (None, says) };
        let created = answer.filter(|_| self.creates && outcome == Outcome::Ok);
        let flow_id = created.and_then(|answer| flow_id::read(&answer.body));
        self.done(Done {
            outcome,
            code,
            reason,
            cams_request_id: verdict.request_id().map(|id| capped(id).into()),
            flow_id: flow_id.as_deref().map(|id| capped(id).into()),
            ..Done::default()
        });
    }

    fn done(&self, done: Done<'_>) {
        let time = line::time(SystemTime::now()).into();
        self.journal.write(&Line::Done(Done { time, attempt: self.attempt.as_str().into(), ..done }).to_bytes());
    }
}

#[cfg(test)]
mod tests;
