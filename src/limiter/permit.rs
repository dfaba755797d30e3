//! A permission is a value: [`Turn`] is the right to send one attempt, made only by the queue and used up by sending;
//! [`Receipt`] is what remains of it until the attempt's end is known. Dropped early, each leaves the lane in order.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::limiter::Connector;
use crate::limiter::grant::Grant;
use crate::limiter::lane::Lane;
use crate::limiter::pause::Refused;
use crate::limiter::shared::protocol::How;
use crate::limiter::source::Spent;

/// The permission to send one attempt now: a ready connection and, on a lane, a token. Dropped unused, both go back.
pub(crate) struct Turn<K: Connector> {
    /// None after the turn was used.
    connection: Option<K::Connection>,
    lane: Option<(Arc<Lane<K>>, Grant)>,
}

/// Proof that an attempt left, to be settled with what came of it. Dropped unsettled, the end counts as unknown.
pub(crate) struct Receipt<K: Connector> {
    lane: Option<(Arc<Lane<K>>, Used)>,
}

/// What was used.
struct Used {
    granted_at: Instant,
    probe: bool,
    spent: Spent,
}

// === impl Turn ===

impl<K: Connector> Turn<K> {
    /// A turn of an action without a limit, or while Flowgate only observes: only a connection.
    pub(super) fn unlimited(connection: K::Connection) -> Self {
        Self { connection: Some(connection), lane: None }
    }

    /// A turn on a lane, with a token.
    pub(super) fn limited(connection: K::Connection, lane: Arc<Lane<K>>, grant: Grant) -> Self {
        Self { connection: Some(connection), lane: Some((lane, grant)) }
    }

    /// Uses the turn: the token's clock starts now, as the request is handed to the connection. None if the token is of
    /// no use any more: one that the store has dealt out lasts for a moment only.
    pub(crate) fn spend(mut self) -> Option<(K::Connection, Receipt<K>)> {
        let connection = self.connection.take().expect("a turn is used once");
        let Some((lane, grant)) = self.lane.take() else { return Some((connection, Receipt { lane: None })) };
        let (granted_at, probe) = (grant.at, grant.probe);
        let spent = lane.spend(grant)?;
        Some((connection, Receipt { lane: Some((lane, Used { granted_at, probe, spent })) }))
    }
}

impl<K: Connector> Drop for Turn<K> {
    fn drop(&mut self) {
        if let Some((lane, grant)) = self.lane.take() {
            lane.give_back(grant);
        }
    }
}

// === impl Receipt ===

impl<K: Connector> Receipt<K> {
    /// CAMS refused by throttling: the lane pauses.
    pub(crate) fn throttled(mut self, hint: Option<Duration>) {
        let Some((lane, used)) = self.lane.take() else { return };
        lane.throttled(&Refused { granted_at: used.granted_at, hint }, &used.spent);
    }

    /// CAMS answered anything else.
    pub(crate) fn answered(mut self) {
        self.end(How::Answered);
    }

    /// Nothing left this process after all. The token stays spent: its clock had started.
    pub(crate) fn unsent(mut self) {
        self.end(How::Unsent);
    }

    fn end(&mut self, how: How) {
        if let Some((lane, Used { granted_at, probe, spent })) = self.lane.take() {
            lane.ended(granted_at, (spent, probe), how);
        }
    }
}

impl<K: Connector> Drop for Receipt<K> {
    fn drop(&mut self) {
        self.end(How::Unknown);
    }
}
