//! One record: who runs the call of a key, how far it is, and how it ended. Callers wait for the
//! record rather than for the call, so that the call continues without them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::fingerprint::{Fingerprint, FlowNameHash, flow_name_hash};
use crate::error::{Outcome, Refusal};
use crate::observe::record::{CallNotes, CallStats};
use crate::primitives::id::{AccountId, ClientId};

pub(crate) use crate::observe::journal::OrderKind;

/// The order that a record stands for: whose it is, and the flow that it creates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) account: AccountId,
    pub(crate) client: ClientId,
    pub(crate) kind: OrderKind,
    pub(crate) fingerprint: Fingerprint,
    /// Flowgate's id of the request with which its call began. It names the call here, in the journal and
    /// in the store.
    pub(crate) request_id: Box<str>,
    pub(crate) flow: FlowDescription,
}

/// What a look needs to know of a flow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FlowDescription {
    pub(crate) name: Box<str>,
    /// The CustSpaceId; empty if the call has none.
    pub(crate) space: Box<str>,
    pub(crate) categories: Vec<String>,
}

/// Maximum length in bytes of a flow's name that is looked for: the journal keeps no longer one.
const MAX_SOUGHT_NAME: usize = 1024;

/// How far the call of a record is.
#[derive(Clone)]
pub(crate) enum Progress {
    /// It is queued; nothing of it has been sent.
    Claimed,
    /// An attempt is under way, or CAMS may still execute one.
    Open,
    /// Its outcome is unknown, and Flowgate looks for the flow.
    Sought(Arc<Ending>),
    /// It has ended.
    Ended(Arc<Ending>),
}

/// The end of a call.
pub(crate) struct Ending {
    pub(crate) end: End,
    /// The answer to those who wait for it; it is not stored. `None`: the call was interrupted, or
    /// its end was learned in another way.
    pub(crate) answer: Option<Answer>,
    /// Whether it was unknown, and has been learned since.
    pub(crate) is_resolved: bool,
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
    pub(crate) order: Arc<Order>,
    /// The journal's name of the attempt, if it is in a journal.
    pub(crate) attempt: Option<Box<str>>,
    /// When the attempt was sent, by this host's clock; of another replica's, when at the latest.
    pub(crate) at: SystemTime,
    /// When the attempt ended.
    pub(crate) ended: Instant,
    /// No request of the call has a later time stamp than this.
    pub(crate) stamped_until: Instant,
    pub(crate) search: Search,
}

/// Whether the flow of an unknown outcome is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Search {
    /// It is not: only an operator can end it.
    None,
    /// It is.
    Active,
    /// It has found something that only an operator can judge.
    Ambiguous(Box<str>),
}

/// How an unknown outcome has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Resolution {
    /// A look has found the flow.
    Created(Created),
    /// Another process has learned of the flow, and all replicas know it.
    CreatedElsewhere(Created),
    /// Looks have proved that CAMS did not create the flow, or another process has learned that.
    Absent,
    /// Looks have found something that only an operator can judge: the outcome stays unknown.
    Ambiguous(Box<str>),
    /// An operator says that CAMS has created the flow.
    SettledCreated(Created),
    /// An operator says that CAMS has not created the flow.
    SettledNotCreated,
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
    /// What was noted of its attempts and its way.
    pub(crate) notes: CallNotes,
    /// False: the call was sent although its key could not be recorded for all replicas.
    pub(crate) is_protected: bool,
}

/// A call that is under way, or whose outcome is unknown.
pub(super) struct Running {
    pub(super) order: Arc<Order>,
    progress: watch::Sender<Progress>,
    /// False: it is known to this process only, although others should know it.
    is_protected: AtomicBool,
    /// False: it was sent while the store could not record its key. What the store says of the key is
    /// not about this call.
    is_in_store: AtomicBool,
    /// `None`: this process does not have the call yet, or another replica has it.
    attempts: Mutex<Option<Attempts>>,
    waiters: AtomicUsize,
    /// Notified when the last waiter has left.
    abandoned: Notify,
}

/// The attempts of a call so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempts {
    pub(crate) stats: CallStats,
    /// Whether the latest may be under way; otherwise CAMS has executed none of them.
    pub(crate) is_in_flight: bool,
}

/// What cannot record a call that is sent all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LostRecord {
    Journal,
    Store,
}

/// One caller that waits for a record.
pub(crate) struct Waiter {
    running: Arc<Running>,
    progress: watch::Receiver<Progress>,
    has_left: bool,
}

// === impl Resolution ===

impl Resolution {
    /// The flow that CAMS has created, if it has.
    pub(crate) fn flow_id(&self) -> Option<&str> {
        match self {
            Self::Created(created)
            | Self::CreatedElsewhere(created)
            | Self::SettledCreated(created) => Some(&created.flow_id),
            Self::Absent | Self::Ambiguous(_) | Self::SettledNotCreated => None,
        }
    }
}

// === impl UnknownOutcome ===

impl UnknownOutcome {
    /// Whether both are of one call. What was learned of a call must not end the next one of its key,
    /// which may have been sent and lost meanwhile.
    pub(super) fn is_of_call(&self, other: &Self) -> bool {
        self.order.request_id == other.order.request_id
    }

    /// The same unknown outcome with another state of the search.
    pub(super) fn with(&self, search: Search) -> End {
        End::Unknown(Arc::new(Self {
            search,
            ..self.clone()
        }))
    }

    /// CAMS's request id, or Flowgate's own of the first request if CAMS's was lost.
    pub(crate) fn known_request_id(&self) -> Option<Box<str>> {
        let own = || self.order.request_id.clone();
        Some(self.request_id.clone().unwrap_or_else(own))
    }
}

// === impl Order ===

impl Order {
    /// What it has in common with other orders of the same flow name, if its flow can be looked for.
    pub(crate) fn flow_name_hash(&self) -> Option<FlowNameHash> {
        let Self { account, flow, .. } = self;
        let hash = || flow_name_hash(account.as_str(), &flow.space, &flow.name);
        flow.can_be_sought().then(hash)
    }
}

// === impl FlowDescription ===

impl FlowDescription {
    /// Whether a look can recognise the flow. The parameters of a JSON body are not read, so such a
    /// call has no categories here.
    pub(crate) fn can_be_sought(&self) -> bool {
        let has_name = (1..=MAX_SOUGHT_NAME).contains(&self.name.len());
        has_name && !self.categories.is_empty()
    }
}

// === impl Progress ===

impl Progress {
    /// How far a call is after this end.
    pub(super) fn after(ending: Ending) -> Self {
        let is_sought =
            matches!(&ending.end, End::Unknown(outcome) if outcome.search == Search::Active);
        let ending = Arc::new(ending);
        if is_sought {
            Self::Sought(ending)
        } else {
            Self::Ended(ending)
        }
    }
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
    pub(super) fn new(order: Arc<Order>) -> Arc<Self> {
        Arc::new(Self {
            order,
            progress: watch::Sender::new(Progress::Claimed),
            is_protected: AtomicBool::new(true),
            is_in_store: AtomicBool::new(true),
            attempts: Mutex::default(),
            waiters: AtomicUsize::new(0),
            abandoned: Notify::new(),
        })
    }

    pub(super) fn set(&self, progress: Progress) {
        self.progress.send_replace(progress);
    }

    /// An attempt of the call may leave from now on. No caller is woken by that.
    pub(super) fn open(&self) {
        self.progress.send_if_modified(|progress| {
            *progress = Progress::Open;
            false
        });
    }

    pub(super) fn note_attempts(&self, attempts: Attempts) {
        *self.attempts.lock() = Some(attempts);
    }

    /// Another replica may have the call.
    pub(super) fn forget_attempts(&self) {
        *self.attempts.lock() = None;
    }

    /// Another replica has sent an attempt.
    pub(super) fn follow(&self) {
        self.forget_attempts();
        self.set(Progress::Open);
    }

    pub(super) fn is_protected(&self) -> bool {
        self.is_protected.load(Ordering::Relaxed)
    }

    pub(super) fn is_in_store(&self) -> bool {
        self.is_in_store.load(Ordering::Relaxed)
    }

    pub(super) fn lose_protection(&self, lost: LostRecord) {
        self.is_protected.store(false, Ordering::Relaxed);
        if lost == LostRecord::Store {
            self.is_in_store.store(false, Ordering::Relaxed);
        }
    }

    /// Whether an attempt of the call may have left.
    pub(super) fn is_open(&self) -> bool {
        !matches!(*self.progress.borrow(), Progress::Claimed)
    }

    /// Whether a caller waits for the call.
    pub(super) fn is_awaited(&self) -> bool {
        self.waiters.load(Ordering::SeqCst) > 0
    }

    /// Waits until no caller waits for the call any more.
    pub(super) async fn abandoned(&self) {
        loop {
            let left = self.abandoned.notified();
            if !self.is_awaited() {
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
            has_left: false,
        }
    }

    /// How far the call is now. After an attempt that CAMS has refused it is queued again, as before
    /// its first one.
    pub(crate) fn progress(&self) -> Progress {
        let attempts = self.attempts();
        match &*self.progress.borrow() {
            Progress::Open if attempts.is_some_and(|attempts| !attempts.is_in_flight) => {
                Progress::Claimed
            }
            progress => progress.clone(),
        }
    }

    /// Whether CAMS may have executed the call. If replicas share its key, another one may have the
    /// call until this one has claimed it.
    pub(crate) fn may_be_executed(&self, is_shared: bool) -> bool {
        match self.progress() {
            Progress::Claimed => is_shared && self.attempts().is_none(),
            Progress::Open | Progress::Sought(_) => true,
            Progress::Ended(ending) => !matches!(ending.end, End::Released),
        }
    }

    /// Flowgate's id of the request with which the call began.
    pub(crate) fn first_request_id(&self) -> Box<str> {
        match &*self.progress.borrow() {
            Progress::Sought(ending) | Progress::Ended(ending) => match &ending.end {
                // It may be another replica's.
                End::Unknown(unknown) => unknown.order.request_id.clone(),
                End::Done(_) | End::Released => self.running.order.request_id.clone(),
            },
            Progress::Claimed | Progress::Open => self.running.order.request_id.clone(),
        }
    }

    /// The attempts of the call so far; `None` before this process has the call, and while another
    /// replica has it.
    pub(crate) fn attempts(&self) -> Option<Attempts> {
        *self.running.attempts.lock()
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

    /// Waits no longer.
    pub(crate) fn leave(&mut self) {
        if std::mem::replace(&mut self.has_left, true) {
            return;
        }
        if self.running.waiters.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.running.abandoned.notify_waiters();
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.leave();
    }
}
