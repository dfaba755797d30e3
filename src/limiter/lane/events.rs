//! The events that a lane handles, the context of an event, and the effects that its caller carries
//! out.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::Limit;
use crate::error::Refusal;
use crate::limiter::fair::{FairQueue, QueueEntry};
use crate::limiter::lane::{Grant, Waiting};
use crate::limiter::pace::Rate;
use crate::limiter::pause::ThrottleRefusal;
use crate::limiter::rules::Rules;
use crate::limiter::shared::QuotaSource;
use crate::limiter::shared::protocol::{Answer, Op, WaitingClient};
use crate::limiter::shared::slots::SlotRequest;

/// The context in which an event is handled.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) now: Instant,
    pub(crate) rules: &'a Rules,
    /// The drain deadline, if a drain has begun. No call is granted from then on.
    pub(crate) drain_by: Option<Instant>,
}

/// An event of a lane.
pub(crate) enum Event<W> {
    /// A call arrives. `returning`: it was admitted before and keeps its sequence number.
    Arrived {
        entry: QueueEntry,
        send_by: Instant,
        returning: bool,
        waiter: W,
    },
    /// A queued caller has disconnected, or its hold is over.
    Cancelled(QueueEntry),
    /// A connection is ready for one call.
    Connected,
    /// The first byte of a granted attempt was written at `at`.
    Written { grant: Grant, at: Instant },
    /// A grant was not used.
    Returned(Grant),
    /// A written attempt has ended.
    Ended {
        grant: Grant,
        written_at: Instant,
        end: End,
    },
    /// The store has answered a request. `answer` is none if the request has failed.
    StoreAnswered {
        request: PendingRequest,
        answer: Option<Box<Answer>>,
    },
    /// The token source has changed.
    SourceChanged {
        quota_source: QuotaSource,
        store: StoreTiming,
    },
    /// The configuration was reloaded. `limit` is none if the action's limit was removed.
    RulesChanged { limit: Option<Limit> },
    /// A drain has begun.
    DrainBegan,
    /// An operator pauses the lane for a time, or until it is resumed.
    Paused(Option<Duration>),
    /// An operator resumes the lane.
    Resumed,
    /// An operator flushes the queue.
    Flushed,
    /// A piece of the queue's review is due.
    Review,
}

/// How a written attempt ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum End {
    /// CAMS answered, and did not throttle.
    Accepted,
    /// CAMS throttled the attempt, with this hint. `random` in 0..1 determines the back-off's
    /// jitter.
    Throttled { hint: Option<Duration>, random: f64 },
    /// The end is not known.
    Unknown,
    /// Nothing of the request was sent after all.
    Unsent,
}

/// An action for the caller of the state machine.
pub(crate) enum Effect<W> {
    /// Send this call now, over the connection that `Event::Connected` announced.
    Grant { waiter: W, grant: Grant },
    /// Refuse this call.
    Refuse { waiter: W, refusal: Refusal },
    /// Refuse this call because its hold is over. `advice` is for `Retry-After`.
    Expire { waiter: W, advice: Duration },
    /// Refuse all these calls. Each one's `Retry-After` is a `step` later than the one before, up
    /// to `most`.
    RefuseAll {
        queue: FairQueue<Waiting<W>>,
        refusal: Refusal,
        step: Duration,
        most: Duration,
    },
    /// Send this request to the store.
    SendRequest(Box<StoreRequest>),
    /// Stop using the store: its answers come too late for their slots to be used.
    StoreTooFar,
    /// A pause has begun; record it in metrics and log.
    PauseBegan {
        pause: Duration,
        hint: Option<Duration>,
        rate: Rate,
    },
}

/// A request to the store.
pub(crate) struct StoreRequest {
    pub(crate) op: Op,
    pub(crate) limit: Limit,
    /// The rate that this replica has learned.
    pub(crate) rate: Rate,
    pub(crate) waiting: Vec<WaitingClient>,
    pub(crate) pending: PendingRequest,
}

/// What the lane needs to know when a request is answered.
#[derive(Clone, Debug)]
pub(crate) struct PendingRequest {
    pub(super) epoch: u64,
    pub(crate) slot_request: SlotRequest,
    /// The version of the stored pace that this replica had when it sent the request.
    pub(crate) version: u64,
    /// The pace that the request stores.
    pub(crate) pace: Option<String>,
    /// The throttle refusal that the request reports.
    pub(super) refusal: Option<ThrottleRefusal>,
}

/// Properties of the store that a lane needs when its token source changes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StoreTiming {
    /// How late a slot may be used, as configured.
    pub(crate) slack: Duration,
    /// How late any replica may use a slot.
    pub(crate) longest_slack: Duration,
    /// The usual round trip to the store.
    pub(crate) distance: Duration,
}

// === impl Context ===

impl Context<'_> {
    /// Whether no call is granted any more at `then`.
    pub(crate) fn is_drained(&self, then: Instant) -> bool {
        self.drain_by.is_some_and(|by| by <= then)
    }
}
