//! What happened to a call on its way, as far as it is not already in its record: the queue that it
//! found, and the attempts that did not end well. A call that is sent at once and succeeds notes
//! nothing here.

use crate::error::Queued;
use crate::primitives::text::whole_millis;

/// The notes of one call.
#[derive(Clone, Debug, Default)]
pub(crate) struct Way {
    /// Milliseconds that it has waited for a session of its account.
    pub(super) session_ms: u32,
    /// The queue that it found; `None` if it was not queued.
    pub(crate) arrival: Option<Arrival>,
    /// The attempts that were not sent or did not succeed, in order.
    pub(super) attempts: Vec<AttemptNote>,
}

/// The queue as a call found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Arrival {
    /// Queued calls before it, in the fair order.
    pub(crate) ahead: u32,
    /// The forecast of its wait.
    pub(crate) predicted_ms: u32,
    /// Whether it was admitted to the queue.
    pub(crate) queued: bool,
    pub(crate) tokens_free: u32,
    /// All tokens of the lane.
    pub(crate) tokens: u32,
    /// The rest of the lane's pause; 0 without one.
    pub(crate) pause_ms: u32,
    /// Whether an operator paused the lane.
    pub(crate) paused_by_operator: bool,
}

/// An attempt of a call. Times are since the arrival of the call.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct AttemptNote {
    /// When it was permitted.
    pub(crate) permitted_ms: u32,
    pub(crate) ended_ms: u32,
    /// CAMS's code, or the reason of an unknown outcome; `None` if nothing was sent.
    pub(crate) code: Option<Box<str>>,
    pub(crate) cams_request_id: Option<Box<str>>,
    /// The back-off after it, if the call was queued again.
    pub(crate) back_off_ms: Option<u32>,
}

/// Maximum number of attempts that are noted.
const MAX_ATTEMPTS: usize = 20;

// === impl Way ===

impl Way {
    /// The forecast because of which the call was not queued, or did not stay there.
    pub(super) fn refused_at_arrival(&mut self, queued: Queued) {
        if let Some(arrival) = &mut self.arrival
            && !arrival.queued
        {
            arrival.ahead = u32::try_from(queued.ahead).unwrap_or(u32::MAX);
            arrival.predicted_ms = whole_millis(queued.wait);
        }
    }

    pub(super) fn failed(&mut self, attempt: AttemptNote) {
        if self.attempts.len() < MAX_ATTEMPTS {
            self.attempts.push(attempt);
        }
    }
}
