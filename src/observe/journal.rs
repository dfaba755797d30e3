//! What may CAMS have done? Each attempt is written down before its first byte leaves, and again when it has ended: what
//! was sent and has no end may have been done, also after a crash. What cannot be written is counted, and the call goes on
//! (docs/journal.md says why).
//!
//! A thread writes the lines (`journal/writer.rs`) to a file that rotates (`journal/file.rs`) and keeps track of outages
//! (`journal/health.rs`). What a line says is `journal/line.rs`, how a journal is read is `journal/open.rs`.

mod file;
mod health;
mod line;
mod open;
mod writer;

use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::time::{Instant, timeout};

use crate::acs::flow_id;
use crate::config;
use crate::observe::metrics::Metrics;
use crate::operation::Operation;
use crate::primitives::id::AccessKeyId;
use crate::primitives::text::capped;
use health::Health;
use line::{Done, Line};
use writer::{Sink, Writer};

pub(crate) use file::RotatingFile;
pub(crate) use line::{Outcome, Sent};
pub use open::{Reading, read};

/// Where attempts are written down.
pub(crate) struct Journal {
    /// Tells this process's attempts from those of every other one.
    run: String,
    attempts: AtomicU64,
    writer: Writer,
    health: Arc<Health>,
}

/// One attempt that is to be written down. Dropped without an end, its end is unknown.
pub(crate) struct Note {
    journal: Arc<Journal>,
    attempt: String,
    sent: Bytes,
    /// Whether its answer names a flow.
    creates: bool,
}

/// How long the end of a drain waits for a disk that hangs.
const FINISH_WITHIN: Duration = Duration::from_secs(2);

/// The one action whose calls are told by a name.
const CREATE: &str = "CreateFlow";

/// The account as it may stand in a file: a key that the configuration does not name only masked.
fn account(operation: &Operation) -> Cow<'_, str> {
    let name = operation.account.as_str();
    if operation.known {
        name.into()
    } else {
        AccessKeyId::new(name.trim_start_matches('?'))
            .masked()
            .into()
    }
}

// === impl Journal ===

impl Journal {
    /// Opens the file, or makes it.
    pub(crate) fn open(config: &config::Journal, metrics: Arc<Metrics>) -> io::Result<Self> {
        Self::on(RotatingFile::open(config)?, metrics)
    }

    fn on(sink: impl Sink, metrics: Arc<Metrics>) -> io::Result<Self> {
        let mut run = [0; 8];
        getrandom::fill(&mut run).map_err(io::Error::other)?;
        let health = Arc::new(Health::new(metrics));
        let writer = Writer::start(sink, health.clone())?;
        Ok(Self {
            run: crate::acs::v3::hex(&run),
            attempts: AtomicU64::new(0),
            writer,
            health,
        })
    }

    /// Prepares what is written down of the attempt that is about to be made; `flow_name` counts if it makes a flow.
    pub(crate) fn note(
        self: &Arc<Self>,
        flow_name: Option<&str>,
        operation: &Operation,
        request_id: &str,
    ) -> Note {
        let creates = operation.action.as_str() == CREATE;
        let attempt = format!(
            "{}-{}",
            self.run,
            self.attempts.fetch_add(1, Ordering::Relaxed)
        );
        let sent = Line::Sent(Sent {
            time: line::time(SystemTime::now()).into(),
            attempt: attempt.as_str().into(),
            request_id: request_id.into(),
            account: account(operation),
            client: capped(operation.client.as_str()).into(),
            tenant: Some(operation.tenant.as_str())
                .filter(|tenant| !tenant.is_empty())
                .map(Cow::from),
            action: operation.action.as_str().into(),
            flow_name: flow_name
                .filter(|_| creates)
                .map(|name| capped(name).into()),
        })
        .to_bytes();
        Note {
            journal: self.clone(),
            attempt,
            sent: sent.into(),
            creates,
        }
    }

    /// Whether it can be written.
    pub(crate) fn is_up(&self) -> bool {
        self.health.is_up(Instant::now())
    }

    /// Waits until every line so far is written.
    pub(crate) async fn flushed(&self) {
        self.writer.flushed().await;
    }

    /// The end of a drain: as [`Journal::flushed`], for a short time if the disk hangs.
    pub(crate) async fn finish(&self) {
        if timeout(FINISH_WITHIN, self.flushed()).await.is_err() {
            tracing::error!("the journal's disk hangs; its last lines are not written yet");
        }
    }
}

// === impl Note ===

impl Note {
    /// Writes down that the attempt's first byte is about to leave. Ends when the line is in the file, or is lost: the call
    /// goes on without it.
    ///
    /// Waits for as long as the disk hangs. Dropped earlier, the attempt must not leave: the journal has no line of it, or
    /// says that it is unsent.
    pub(crate) async fn sent(&self) {
        self.journal.writer.write(&self.sent).await;
    }

    /// Nothing left, after all.
    pub(crate) fn unsent(&self) {
        self.done(Done {
            outcome: Outcome::Unsent,
            ..Done::default()
        });
    }

    /// The attempt has ended. `code` is CAMS's, or why there is none; `body` is the answer's, where there is one.
    pub(crate) fn judged(
        &self,
        outcome: Outcome,
        code: &str,
        cams_request_id: Option<&str>,
        body: Option<&Bytes>,
    ) {
        let says = Some(capped(code).into());
        let (code, reason) = if outcome == Outcome::Unknown {
            (None, says)
        } else {
            (says, None)
        };
        let created = body.filter(|_| self.creates && outcome == Outcome::Ok);
        let flow_id = created.and_then(|body| flow_id::read(body));
        self.done(Done {
            outcome,
            code,
            reason,
            cams_request_id: cams_request_id.map(|id| capped(id).into()),
            flow_id: flow_id.as_deref().map(|id| capped(id).into()),
            ..Done::default()
        });
    }

    /// Writes the line of [`Note::sent`] on this thread: what a benchmark compares it with.
    pub(crate) fn write_here(&self, file: &mut RotatingFile) {
        let appended = file.append(std::slice::from_ref(&self.sent));
        assert_eq!(appended.lost, 0, "a benchmark's disk takes lines");
    }

    fn done(&self, done: Done<'_>) {
        let time = line::time(SystemTime::now()).into();
        let line = Line::Done(Done {
            time,
            attempt: self.attempt.as_str().into(),
            ..done
        });
        self.journal.writer.push(line.to_bytes().into());
    }
}

#[cfg(test)]
mod tests;
