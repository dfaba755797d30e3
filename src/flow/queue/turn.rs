//! A permission is a value: [`Turn`] is the right to send one attempt, made only by the queue and used up by sending;
//! [`Receipt`] is what remains of it until the attempt's end is known. Dropped early, each leaves the lane in order.

use std::sync::Arc;
use std::time::Duration;

use leaky_bucket::RateLimiter;
use tokio::time::Instant;

use crate::flow::queue::Connector;
use crate::flow::queue::lane::Lane;
use crate::flow::queue::pause::Refused;

/// The permission to send one attempt now: a ready connection and, on a lane, a token. Dropped unused, both go back.
pub(crate) struct Turn<K: Connector> {
    /// None after the turn was used.
    connection: Option<K::Connection>,
    lane: Option<Arc<Lane<K>>>,
    granted_at: Instant,
    probe: bool,
}

/// Proof that an attempt left, to be settled with what came of it. Dropped unsettled, the end counts as unknown.
pub(crate) struct Receipt<K: Connector> {
    lane: Option<Arc<Lane<K>>>,
    granted_at: Instant,
    /// For a probe, the clock of its token.
    probe: Option<Arc<RateLimiter>>,
}

// === impl Turn ===

impl<K: Connector> Turn<K> {
    /// A turn of an action without a limit, or while Flowgate only observes: only a connection.
    pub(super) fn unlimited(connection: K::Connection) -> Self {
        Self { connection: Some(connection), lane: None, granted_at: Instant::now(), probe: false }
    }

    /// A turn on a lane, whose token was granted at this moment.
    pub(super) fn limited(connection: K::Connection, lane: Arc<Lane<K>>, (granted_at, probe): (Instant, bool)) -> Self {
        Self { connection: Some(connection), lane: Some(lane), granted_at, probe }
    }

    /// Uses the turn: the token's clock starts now, as the request is handed to the connection.
    pub(crate) fn spend(mut self) -> (K::Connection, Receipt<K>) {
        let connection = self.connection.take().expect("a turn is used once");
        let lane = self.lane.take();
        let clock = lane.as_ref().map(|lane| lane.spend());
        let probe = clock.filter(|_| self.probe);
        (connection, Receipt { lane, granted_at: self.granted_at, probe })
    }
}

impl<K: Connector> Drop for Turn<K> {
    fn drop(&mut self) {
        let Some(lane) = self.lane.take() else { return };
        let mut state = lane.lock();
        state.tokens.give_back();
        if self.probe {
            state.pause.probe_unsent();
        }
        lane.metrics.returned.inc();
        lane.changed.notify_one();
    }
}

// === impl Receipt ===

impl<K: Connector> Receipt<K> {
    /// CAMS refused by throttling: the lane pauses.
    pub(crate) fn throttled(mut self, hint: Option<Duration>) {
        let Some(lane) = self.lane.take() else { return };
        lane.throttled(&Refused { granted_at: self.granted_at, hint });
    }

    /// CAMS answered anything else.
    pub(crate) fn answered(mut self) {
        self.end(true);
    }

    /// Nothing left this process after all. The token stays spent: its clock had started.
    pub(crate) fn unsent(mut self) {
        let Some(lane) = self.lane.take() else { return };
        if self.probe.is_some() {
            lane.lock().pause.probe_unsent();
            lane.changed.notify_one();
        }
    }

    fn end(&mut self, answered: bool) {
        let Some(lane) = self.lane.take() else { return };
        let mut state = lane.lock();
        if answered {
            state.pause.answered(self.granted_at);
        }
        let Some(clock) = &self.probe else { return };
        state.pause.probe_passed();
        // Those that waited for the probe go now, together. Had its token a head start of one round trip for ever
        // after, it would meet the server's window alone, where jitter cannot average out.
        state.tokens.restart(clock);
        lane.changed.notify_one();
    }
}

impl<K: Connector> Drop for Receipt<K> {
    fn drop(&mut self) {
        self.end(false);
    }
}
