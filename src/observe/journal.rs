//! The journal of attempts. Each attempt is recorded before its first byte leaves and again when it
//! ends: an attempt without an end may have reached CAMS, even after a crash. Lines that cannot be
//! written are counted, and their calls continue (docs/journal.md explains why).
//!
//! A thread writes the lines (`journal/writer.rs`) to a rotating file (`journal/file.rs`) and
//! tracks outages (`journal/health.rs`). `journal/carry.rs` keeps the keys of a file that is dropped.
//! `journal/line.rs` defines a line, `journal/open.rs` reads a journal, `journal/known.rs` judges what
//! it says of an attempt, `journal/lock.rs` notices another process that writes it.

mod carry;
mod file;
mod health;
mod known;
mod line;
mod lock;
mod open;
mod writer;

use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::time::{Instant, timeout};

use crate::acs::flow_id;
use crate::config;
use crate::observe::metrics::Metrics;
use crate::operation::Operation;
use crate::primitives::id::AccessKeyId;
use crate::primitives::text::{capped, capped_at};
use carry::Carrier;
use health::Health;
use line::{DoneLine, Line, ResolvedLine};
use lock::JournalLock;
use writer::Writer;

pub(crate) use file::RotatingFile;
pub(crate) use known::Known;
pub(crate) use line::{OrderKind, Outcome, ResolvedAs, SentLine};
pub use open::{JournalContent, read};
pub(crate) use open::{
    KeyedAttempt, KeyedAttempts, KeyedEnd, KeyedResolution, ListedAttempt, Resolution, keyed,
};

/// The journal of attempts.
pub(crate) struct Journal {
    /// A random name of this process, which makes its attempts' names unique.
    run: String,
    attempts: AtomicU64,
    writer: Writer,
    health: Arc<Health>,
    carrier: Arc<Carrier>,
    lock: JournalLock,
    /// Whether an earlier process writes the file, too.
    is_shared: AtomicBool,
    metrics: Arc<Metrics>,
}

/// What the journal has of an order with a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JournalOrder {
    /// The name of the record, in hexadecimal.
    pub(crate) name: String,
    /// The fingerprint of its parameters, in hexadecimal.
    pub(crate) fingerprint: String,
    pub(crate) kind: OrderKind,
    /// Whether an attempt may leave only if the journal has it.
    pub(crate) is_required: bool,
    /// False: it is sent although the store that replicas share could not record its key.
    pub(crate) is_in_store: bool,
    /// The name of the flow.
    pub(crate) flow_name: String,
    /// The CustSpaceId of the flow; empty if there is none.
    pub(crate) space: String,
    pub(crate) categories: Vec<String>,
}

/// How an unknown outcome has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resolved<'a> {
    /// The name of the attempt.
    pub(crate) attempt: &'a str,
    pub(crate) result: ResolvedAs,
    pub(crate) flow_id: Option<&'a str>,
    /// What only an operator can judge.
    pub(crate) found: Option<&'a str>,
}

/// What has become of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// It is in the file.
    Yes,
    /// It is not, and will not be.
    Lost,
    /// The disk has not answered.
    NotYet,
}

/// The record of one attempt. If it is dropped without an end, the outcome is unknown.
pub(crate) struct Note {
    journal: Arc<Journal>,
    attempt: String,
    sent: Bytes,
    /// Whether the response contains the id of a new flow.
    creates: bool,
    /// Whether the attempt may leave only if it is recorded.
    is_required: bool,
}

/// Maximum length of the name of a flow that may be looked for, in bytes. Longer than any name that
/// is (1024), also after a cut at a character: a name that is cut here is not looked for later.
const MAX_FLOW_NAME: usize = 1024 + 4;

/// How long the end of a drain waits for a disk that hangs.
const FINISH_WITHIN: Duration = Duration::from_secs(2);

/// The one action whose calls have a flow name.
const CREATE: &str = "CreateFlow";

/// Returns the account for the file: a key that is not in the configuration is masked.
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
    /// Opens or creates the file. Read it later only: without another process its content is then
    /// complete.
    pub(crate) fn open(config: &config::Journal, metrics: Arc<Metrics>) -> io::Result<Self> {
        file::check_kind(&config.path)?;
        let mut file = RotatingFile::open(config)?;
        let (lock, is_shared) = JournalLock::take(&config.path);
        let mut run = [0; 8];
        getrandom::fill(&mut run).map_err(io::Error::other)?;
        let health = Arc::new(Health::new(metrics.clone()));
        let carrier = Arc::new(Carrier::new(&config.path, health.clone()));
        file.carry_with(carrier.clone());
        let writer = Writer::start(file, health.clone())?;
        metrics.journal_shared(is_shared);
        Ok(Self {
            run: crate::acs::v3::hex(&run),
            attempts: AtomicU64::new(0),
            writer,
            health,
            carrier,
            lock,
            is_shared: AtomicBool::new(is_shared),
            metrics,
        })
    }

    /// Sets whether the keys of a file that is dropped are kept, and how long a finished one is. At
    /// first they are not.
    pub(crate) fn keep_keys(&self, keys: &config::ExactlyOnce) {
        self.carrier.set_keep(keys.keys.then_some(keys.keep));
    }

    /// Prepares the record of an attempt. `flow_name` is recorded only if the action creates a
    /// flow. `key` is what it has of the call's record, if it has one.
    pub(crate) fn note(
        self: &Arc<Self>,
        flow_name: Option<&str>,
        operation: &Operation,
        request_id: &str,
        key: Option<&JournalOrder>,
    ) -> Note {
        let creates = operation.action.as_str() == CREATE;
        let attempt = format!(
            "{}-{}",
            self.run,
            self.attempts.fetch_add(1, Ordering::Relaxed)
        );
        let sent = Line::Sent(SentLine {
            time: line::time(SystemTime::now()).into(),
            attempt: attempt.as_str().into(),
            request_id: request_id.into(),
            account: account(operation),
            client: capped(operation.client.as_str()).into(),
            tenant: Some(operation.tenant.as_str())
                .filter(|tenant| !tenant.is_empty())
                .map(Cow::from),
            action: operation.action.as_str().into(),
            flow_name: match key {
                Some(key) => Some(capped_at(&key.flow_name, MAX_FLOW_NAME).into()),
                None => flow_name
                    .filter(|_| creates)
                    .map(|name| capped(name).into()),
            },
            key: key.map(|key| key.name.as_str().into()),
            print: key.map(|key| key.fingerprint.as_str().into()),
            kind: key.map(|key| key.kind).unwrap_or_default(),
            space: key
                .filter(|key| !key.space.is_empty())
                .map(|key| key.space.as_str().into()),
            categories: key
                .map(|key| {
                    key.categories
                        .iter()
                        .map(|name| name.as_str().into())
                        .collect()
                })
                .unwrap_or_default(),
            unprotected: key.is_some_and(|key| !key.is_in_store),
        })
        .to_bytes();
        Note {
            journal: self.clone(),
            attempt,
            sent: sent.into(),
            creates,
            is_required: key.is_some_and(|key| key.is_required),
        }
    }

    /// Records how an unknown outcome has ended.
    pub(crate) fn resolved(&self, resolved: Resolved<'_>) {
        self.writer.push(resolved.to_line());
    }

    /// Like [`Journal::resolved`], and waits for the disk, but not for longer than `within`. Also a line
    /// that is not written by then will be, unless the disk fails.
    pub(crate) async fn record_resolved(
        self: &Arc<Self>,
        resolved: Resolved<'_>,
        within: Duration,
    ) -> Written {
        let (journal, line) = (self.clone(), resolved.to_line());
        // A line that is not waited for any longer would not be written.
        let written = tokio::spawn(async move { journal.writer.write(&line).await });
        match timeout(within, written).await {
            Ok(Ok(true)) => Written::Yes,
            Ok(_) => Written::Lost,
            Err(_elapsed) => Written::NotYet,
        }
    }

    /// Whether lines can be written.
    pub(crate) fn is_up(&self) -> bool {
        self.health.is_up(Instant::now())
    }

    /// Whether an earlier process writes the file, too.
    pub(crate) fn is_shared(&self) -> bool {
        self.is_shared.load(Ordering::Relaxed)
    }

    /// Takes the lock of a shared journal if no other process has it any more. Then it runs
    /// `take_over`, and the journal is not shared any longer. Returns whether that is so.
    pub(crate) fn end_sharing(&self, take_over: impl FnOnce()) -> bool {
        // An error may pass.
        if !self.lock.retry().unwrap_or(false) {
            return false;
        }
        take_over();
        self.is_shared.store(false, Ordering::Relaxed);
        self.metrics.journal_shared(false);
        true
    }

    /// Whether this process has made the attempt of this name.
    pub(crate) fn has_made(&self, attempt: &str) -> bool {
        let number = attempt.strip_prefix(&self.run);
        number.is_some_and(|number| number.starts_with('-'))
    }

    /// Waits until all queued lines are written.
    pub(crate) async fn flushed(&self) {
        self.writer.flushed().await;
    }

    /// Like [`Journal::flushed`], but bounded, for the end of a drain.
    pub(crate) async fn finish(&self) {
        if timeout(FINISH_WITHIN, self.flushed()).await.is_err() {
            tracing::error!("the journal's disk hangs; its last lines are not written yet");
        }
    }
}

// === impl Resolved ===

impl Resolved<'_> {
    fn to_line(self) -> Bytes {
        let line = Line::Resolved(ResolvedLine {
            time: line::time(SystemTime::now()).into(),
            attempt: self.attempt.into(),
            result: self.result,
            flow_id: self.flow_id.map(|id| capped(id).into()),
            found: self.found.map(|found| capped(found).into()),
        });
        line.to_bytes().into()
    }
}

// === impl Note ===

impl Note {
    /// Records that the attempt's first byte is about to leave. Returns whether the line is in the
    /// file. If it is lost, a call without an idempotency key continues without it.
    ///
    /// Waits while the disk hangs. If this future is dropped earlier, the attempt must not leave:
    /// the journal has no line for it, or a line that records it as not sent.
    pub(crate) async fn sent(&self) -> bool {
        self.journal.writer.write(&self.sent).await
    }

    /// Whether the attempt may leave only if it is recorded: its key must be known after a restart.
    pub(crate) fn must_be_recorded(&self) -> bool {
        self.is_required
    }

    /// The journal's name of the attempt.
    pub(crate) fn attempt(&self) -> &str {
        &self.attempt
    }

    /// Records that nothing was sent.
    pub(crate) fn unsent(&self) {
        self.done(DoneLine {
            outcome: Outcome::Unsent,
            ..DoneLine::default()
        });
    }

    /// Records the outcome of the attempt. `code` is CAMS's code, or the reason why there is none;
    /// `body` is the body of the answer, if there is one.
    pub(crate) fn judged(
        &self,
        outcome: Outcome,
        code: &str,
        cams_request_id: Option<&str>,
        body: Option<&Bytes>,
    ) {
        let text = Some(capped(code).into());
        let (code, reason) = if outcome == Outcome::Unknown {
            (None, text)
        } else {
            (text, None)
        };
        let created = body.filter(|_| self.creates && outcome == Outcome::Ok);
        let flow_id = created.and_then(|body| flow_id::read(body));
        self.done(DoneLine {
            outcome,
            code,
            reason,
            cams_request_id: cams_request_id.map(|id| capped(id).into()),
            flow_id: flow_id.as_deref().map(|id| capped(id).into()),
            ..DoneLine::default()
        });
    }

    /// Writes the line of [`Note::sent`] on this thread, for comparison in a benchmark.
    #[cfg(feature = "testing")]
    pub(crate) fn write_here(&self, file: &mut RotatingFile) {
        let appended = writer::Sink::append(file, std::slice::from_ref(&self.sent));
        assert_eq!(appended.lost, 0, "a benchmark's disk takes lines");
    }

    fn done(&self, done: DoneLine<'_>) {
        let time = line::time(SystemTime::now()).into();
        let line = Line::Done(DoneLine {
            time,
            attempt: self.attempt.as_str().into(),
            ..done
        });
        self.journal.writer.push(line.to_bytes().into());
    }
}

#[cfg(test)]
mod tests;
