//! One record: who runs the call of a key, how far it is, and how it ended. Callers wait for the
//! record rather than for the call, so that the call continues without them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Notify, watch};

use super::fingerprint::Fingerprint;

/// How far the call of a key is.
#[derive(Clone)]
pub(crate) enum Progress {
    /// It is queued; nothing of it has been sent.
    Claimed,
    /// An attempt is under way, or CAMS may still execute one.
    Open,
    /// CAMS has created the flow.
    Done(Arc<Created>),
    /// CAMS may have created the flow.
    Unknown(Arc<UnknownOutcome>),
    /// CAMS has certainly not created the flow. The key is free again.
    Released(Option<Arc<Refused>>),
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

/// A call that was refused. It is not stored: only the callers that wait for it learn of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) status: u16,
    pub(crate) code: Box<str>,
    pub(crate) message: Box<str>,
    pub(crate) request_id: Option<Box<str>>,
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

// === impl Progress ===

impl Progress {
    /// Whether the call has ended.
    pub(crate) fn has_ended(&self) -> bool {
        !matches!(self, Self::Claimed | Self::Open)
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

    /// Waits until the call has ended, without a limit.
    pub(crate) async fn end(&mut self) -> Progress {
        let ended = self.progress.wait_for(Progress::has_ended).await;
        ended
            .expect("the record is held by this waiter, and with it the sender")
            .clone()
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if self.running.waiters.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.running.abandoned.notify_waiters();
        }
    }
}
