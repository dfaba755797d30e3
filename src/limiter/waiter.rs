//! A queued call's end of the queue: what it is told, its turn or why there is none, at the latest at its send-by. It
//! leaves the line when it is dropped, which is what a hang-up does.

use std::time::Duration;

use tokio::sync::oneshot::error::RecvError;
use tokio::time::Instant;
use tokio::time::error::Elapsed;

use crate::error::{Kind, Refusal};
use crate::limiter::Connector;
use crate::limiter::fair::Standing;
use crate::limiter::lane::Lane;
use crate::limiter::permit::Turn;
use crate::limiter::shared::ADVICE;

/// One waiting call.
pub(super) struct Waiter<'a, K: Connector> {
    pub(super) lane: &'a Lane<K>,
    pub(super) standing: &'a Standing,
    /// It has its turn or its refusal, for which it was taken out of line.
    pub(super) told: bool,
}

// === impl Waiter ===

impl<K: Connector> Waiter<'_, K> {
    /// What has come before the send-by, if anything has.
    pub(super) fn turn(
        &mut self,
        told: Result<Result<Result<Turn<K>, Refusal>, RecvError>, Elapsed>,
    ) -> Result<Turn<K>, Refusal> {
        let Ok(Ok(turn)) = told else { return Err(self.expired()) };
        self.told = true;
        turn
    }

    fn expired(&self) -> Refusal {
        expired(self.lane.shared.connector.down(), self.lane.predicted_wait(Instant::now()))
    }
}

impl<K: Connector> Drop for Waiter<'_, K> {
    fn drop(&mut self) {
        if !self.told {
            self.lane.leave(self.standing);
        }
    }
}

/// The hold is over: because CAMS cannot be reached, if that is so, else because the queue is long or paused.
pub(super) fn expired(down: Option<String>, wait: Duration) -> Refusal {
    match down {
        Some(reason) => {
            let message = format!("CAMS cannot be reached ({reason}). CAMS has done nothing.");
            Refusal::after(Kind::UpstreamUnreachable, wait.max(Duration::from_secs(1)), message)
        }
        None => {
            let message = "The system is under flow control: the call's turn did not come within its hold. CAMS has done nothing.";
            Refusal::after(Kind::HoldExpired, wait, message)
        }
    }
}

/// The store that deals out the quota is away, and this replica has no part of it.
pub(super) fn no_part() -> Refusal {
    let message = "The system is under flow control: the store of the shared quota cannot be reached, and this Flowgate has no part of the quota meanwhile. CAMS has done nothing.";
    Refusal::after(Kind::StoreUnavailable, ADVICE, message)
}

/// All that the limit allows is withheld, for replicas that have vanished may use it.
pub(super) fn withheld() -> Refusal {
    let message = "The system is under flow control: replicas of this Flowgate that are cut off from the store of the shared quota may use all of it meanwhile. CAMS has done nothing.";
    Refusal::after(Kind::StoreUnavailable, ADVICE, message)
}

/// The call does not fit into what is left before the process ends.
pub(crate) fn draining() -> Refusal {
    let message = "Flowgate is shutting down. CAMS has done nothing.";
    Refusal::after(Kind::Draining, Duration::from_secs(1), message)
}
