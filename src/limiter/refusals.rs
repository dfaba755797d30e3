//! The texts for callers of refused calls. One function for each cause.

use std::time::Duration;

use crate::error::{Kind, Refusal};
use crate::limiter::shared::ADVICE;

/// The predicted wait is longer than the time until the call's send-by time.
pub(super) fn too_long(wait: Duration, left: Duration) -> Refusal {
    let wait_ms = wait.as_millis();
    let left_ms = left.as_millis();
    let over = wait.saturating_sub(left);
    let message = format!(
        "The system is under flow control: the predicted wait of {wait_ms} ms exceeds the {left_ms} ms that its hold leaves. CAMS has done nothing. \
         Repeat it after the retry time, or let it wait longer: raise the SDK's time-out, and x-flowgate-hold or queue.hold to a little less."
    );
    Refusal::after(Kind::WaitTooLong, over, message)
}

/// The hold is over, because CAMS cannot be reached (`down`) or because the queue is long or
/// paused.
pub(super) fn expired(down: Option<String>, wait: Duration) -> Refusal {
    match down {
        Some(reason) => {
            let message = format!("CAMS cannot be reached ({reason}). CAMS has done nothing.");
            Refusal::after(
                Kind::UpstreamUnreachable,
                wait.max(Duration::from_secs(1)),
                message,
            )
        }
        None => {
            let message = "The system is under flow control: the call could not be sent within its hold. CAMS has done nothing.";
            Refusal::after(Kind::HoldExpired, wait, message)
        }
    }
}

/// The store of the shared quota cannot be reached, and this replica has no part of the quota.
pub(super) fn no_part() -> Refusal {
    let message = "The system is under flow control: the store of the shared quota cannot be reached, and this Flowgate has no part of the quota meanwhile. CAMS has done nothing.";
    Refusal::after(Kind::StoreUnavailable, ADVICE, message)
}

/// The whole limit is withheld, because replicas that have vanished may be using it.
pub(super) fn withheld() -> Refusal {
    let message = "The system is under flow control: replicas of this Flowgate that are cut off from the store of the shared quota may use all of it meanwhile. CAMS has done nothing.";
    Refusal::after(Kind::StoreUnavailable, ADVICE, message)
}

/// The queue, or a client's part of it, has no room.
pub(super) fn full(what: &str, bound: usize, wait: Duration) -> Refusal {
    let message = format!(
        "{what} of {bound} waiting calls is full. CAMS has done nothing. Repeat it after the retry time."
    );
    Refusal::after(Kind::QueueFull, wait, message)
}

/// An operator has flushed the queue.
pub(super) fn flushed(wait: Duration) -> Refusal {
    let message = "The system is under flow control: an operator has flushed the queue. CAMS has done nothing.";
    Refusal::after(Kind::Flushed, wait, message)
}

/// The call cannot be granted before the drain ends.
pub(crate) fn draining() -> Refusal {
    let message = "Flowgate is shutting down. CAMS has done nothing.";
    Refusal::after(Kind::Draining, Duration::from_secs(1), message)
}
