//! One record: who runs the call of a key, how far it is, and how it ended. Callers wait for the
//! record rather than for the call, so that the call continues without them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;
use tokio::sync::{Notify, watch};

use super::fingerprint::Fingerprint;
use crate::error::{Outcome, Refusal};

/// How far the call of a key is.
#[derive(Clone)]
pub(crate) enum Progress {
    /// It is queued; nothing of it has been sent.
    Claimed,
    /// An attempt is under way, or CAMS may still execute one.
    Open,
    /// It has ended.
    Ended(Arc<Ending>),
}

/// The end of a call.
pub(crate) struct Ending {
    pub(crate) end: End,
    /// The answer to those who wait for it; it is not stored. `None`: the call was interrupted.
    pub(crate) answer: Option<Answer>,
}

/// What a call has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// CAMS has created the flow.
    Done(Arc<Created>),
    /// CAMS may have created the flow.
    Unknown(Arc<UnknownOutcome>),
    /// CAMS has certainly not created the flow. The key is free again.
    Released,
}

/// The flow that a call has created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Created {
    pub(crate) flow_id: Box<str>,
    /// CAMS's request id.
    pub(crate) request_id: Option<Box<str>>,
}

/// A call whose outcome is unknown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UnknownOutcome {
    /// The cause.
    pub(crate) reason: Box<str>,
    /// CAMS's request id, if its answer has one.
    pub(crate) request_id: Option<Box<str>>,
}

/// The answer of a call, and what its log line says.
pub(crate) struct Answer {
    pub(crate) result: Result<Response<Full<Bytes>>, Refusal>,
    pub(crate) outcome: Outcome,
    /// CAMS's code.
    pub(crate) code: Box<str>,
    pub(crate) attempts: u32,
    /// Time from the arrival to the permit of the last attempt.
    pub(crate) waited: Duration,
}

/// A call that is under way.
pub(super) struct Running {
    pub(super) fingerprint: Fingerprint,
    progress: watch::Sender<Progress>,
    waiters: AtomicUsize,
    /// Notified when the last waiter has left.
    abandoned: Notify,
}

/// One caller that waits for a record.
pub(crate) struct Waiter {
    running: Arc<Running>,
    progress: watch::Receiver<Progress>,
}

// === impl Ending ===

impl Ending {
    /// Whether CAMS has answered the call.
    pub(crate) fn was_sent(&self) -> bool {
        self.answer
            .as_ref()
            .is_some_and(|answer| answer.attempts > 0)
    }
}

// === impl Running ===

impl Running {
    pub(super) fn new(fingerprint: Fingerprint) -> Arc<Self> {
        Arc::new(Self {
            fingerprint,
            progress: watch::Sender::new(Progress::Claimed),
            waiters: AtomicUsize::new(0),
            abandoned: Notify::new(),
        })
    }

    pub(super) fn set(&self, progress: Progress) {
        self.progress.send_replace(progress);
    }

    /// Waits until no caller waits for the call any more.
    pub(super) async fn abandoned(&self) {
        loop {
            let left = self.abandoned.notified();
            if self.waiters.load(Ordering::SeqCst) == 0 {
                return;
            }
            left.await;
        }
    }
}

// === impl Waiter ===

impl Waiter {
    /// Call it under the lock of the record's entry, so that the record does not end meanwhile.
    pub(super) fn of(running: &Arc<Running>) -> Self {
        running.waiters.fetch_add(1, Ordering::SeqCst);
        Self {
            running: running.clone(),
            progress: running.progress.subscribe(),
        }
    }

    /// How far the call is now.
    pub(crate) fn progress(&self) -> Progress {
        self.progress.borrow().clone()
    }

    /// Waits until an attempt of the call may leave, or it has ended.
    pub(crate) async fn opened(&mut self) {
        let opened = self
            .progress
            .wait_for(|progress| !matches!(progress, Progress::Claimed));
        drop(
            opened
                .await
                .expect("this waiter holds the record, and with it the sender"),
        );
    }

    /// Waits until the call has ended, without a limit.
    pub(crate) async fn end(&mut self) -> Arc<Ending> {
        loop {
            if let Progress::Ended(ending) = &*self.progress.borrow_and_update() {
                return ending.clone();
            }
            let changed = self.progress.changed().await;
            changed.expect("this waiter holds the record, and with it the sender");
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if self.running.waiters.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.running.abandoned.notify_waiters();
        }
    }
}
