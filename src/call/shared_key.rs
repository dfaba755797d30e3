//! The key of one call among the replicas: it is claimed before the call queues, marked after each
//! signature, and settled at the end. A call whose key another replica has claimed follows the
//! record in the store.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::idempotency::fingerprint::RecordName;
use crate::idempotency::record::Order;
use crate::idempotency::records::{CallEnd, Loss};
use crate::idempotency::shared::{
    ClaimId, KeyClaim, Settlement, SharedEnd, SharedRecord, SharedRecords, SharedState,
};
use crate::store::Unavailable;

/// The key of a call that this process runs.
pub(super) struct SharedKey {
    records: Arc<SharedRecords>,
    claim: KeyClaim,
    /// How long the claim lasts.
    hold: Duration,
    is_sought: bool,
}

/// What has become of a key that was to be claimed.
pub(super) enum ClaimedKey {
    /// This process runs its call.
    Mine,
    /// Another replica has run its call. No request of it has a later time stamp than the instant.
    Ended(CallEnd, Instant),
    /// Another order has the key.
    Mismatch,
    /// No caller waits for it any more, or its hold is over. `is_followed`: an attempt of another replica
    /// was under way.
    Abandoned { is_followed: bool },
}

/// Interval of the first reads of a record that another replica has claimed, and of the later ones.
const FIRST_POLL: Duration = Duration::from_millis(50);
const LONGEST_POLL: Duration = Duration::from_millis(500);

// === impl SharedKey ===

impl SharedKey {
    pub(super) fn new(
        records: &Arc<SharedRecords>,
        name: RecordName,
        order: &Order,
        hold: Duration,
        is_sought: bool,
    ) -> Self {
        let claim = KeyClaim::of(name, order, ClaimId::of_call(&order.request_id));
        Self {
            records: records.clone(),
            claim,
            hold,
            is_sought,
        }
    }

    /// Makes a new claim of the key, or waits for the replica that has claimed it, until `gone`. Calls `follow`
    /// when an attempt of that replica is under way.
    pub(super) async fn claim(
        &mut self,
        follow: impl Fn(),
        gone: impl Future<Output = ()>,
    ) -> Result<ClaimedKey, Unavailable> {
        self.claim.id = self.claim.id.next();
        let mut gone = pin!(gone);
        let mut pause = FIRST_POLL;
        let mut is_followed = false;
        loop {
            match self.records.claim(&self.claim, self.hold).await {
                Ok(SharedState::Mine) => return Ok(ClaimedKey::Mine),
                Ok(SharedState::Done(created)) => {
                    return Ok(ClaimedKey::Ended(CallEnd::Created(created), Instant::now()));
                }
                Ok(SharedState::Unknown(record)) => return Ok(self.unknown(record)),
                Ok(SharedState::Mismatch) => return Ok(ClaimedKey::Mismatch),
                Ok(SharedState::Open(_)) => {
                    is_followed = true;
                    follow();
                }
                Ok(SharedState::Claimed(_) | SharedState::Gated | SharedState::Absent) => {}
                // Only the store knows how the attempt of the other replica ends.
                Err(_logged) if is_followed => {}
                Err(error) => return Err(error),
            }
            tokio::select! {
                biased;
                () = &mut gone => return Ok(ClaimedKey::Abandoned { is_followed }),
                () = sleep(pause) => {}
            }
            pause = (2 * pause).min(LONGEST_POLL);
        }
    }

    fn unknown(&self, record: SharedRecord) -> ClaimedKey {
        let now = Instant::now();
        let passed = Duration::from_millis(record.until_ms.unsigned_abs());
        let stamped_until = if record.until_ms < 0 {
            now.checked_sub(passed).unwrap_or(now)
        } else {
            now + passed
        };
        let loss = Loss {
            reason: "the call of a replica has no certain answer".into(),
            request_id: record.request_id,
            attempt: None,
            call: record.calls.into_iter().next(),
            is_sought: self.is_sought,
        };
        ClaimedKey::Ended(CallEnd::Unknown(loss), stamped_until)
    }

    /// Marks the key open for an attempt that is signed. False: it must be claimed again.
    pub(super) async fn mark(&self, stamped_until: Instant) -> Result<bool, Unavailable> {
        let remaining = stamped_until.saturating_duration_since(Instant::now());
        self.records.mark(&self.claim, remaining).await
    }

    /// Settles the end of the call. If the store gives no answer it is settled later.
    pub(super) async fn settle(&self, end: &CallEnd, stamped_until: Instant) {
        let end = match end {
            CallEnd::Created(created) => SharedEnd::Done(created.clone()),
            CallEnd::Unknown(loss) => SharedEnd::Unknown {
                request_id: loss.request_id.clone(),
            },
            CallEnd::NotCreated => SharedEnd::Released,
        };
        let settlement = Settlement {
            claim: self.claim.clone(),
            end,
            signed_until: stamped_until,
        };
        drop(self.records.settle(settlement).await);
    }

    /// The record of this process has the end.
    pub(super) fn ended(&self) {
        self.records.ended(&self.claim);
    }
}
