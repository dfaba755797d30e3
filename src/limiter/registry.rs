//! All lanes, and what they have in common. A call that has arrived gets its place in the order of arrivals here, and waits
//! for its permit.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use dashmap::DashMap;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::config::{Config, Mode};
use crate::error::{Kind, Refusal};
use crate::limiter::drain::DrainBy;
use crate::limiter::fair::{Place, QueueEntry};
use crate::limiter::handle::{Entered, LaneHandle, Queued};
use crate::limiter::lane::Event;
use crate::limiter::permit::SendPermit;
use crate::limiter::rules::Rules;
use crate::limiter::shadow::Shadow;
use crate::limiter::shared::Quota;
use crate::limiter::view::LaneView;
use crate::limiter::{Connector, refusals};
use crate::observe::metrics::Metrics;
use crate::operation::Operation;
use crate::primitives::byte_budget::{Room, Share};
use crate::primitives::id::{AccountId, ActionName, ClientId};

/// A map shrinks when its capacity is this many times what it needs.
const SPARSE: usize = 8;
/// Each shard of the map of lanes has a lock of its own, which a sweep holds: with many shards for a moment only.
const SHARDS: usize = 256;

/// All lanes.
pub(crate) struct Limiter<K: Connector> {
    pub(super) lanes: DashMap<(AccountId, ActionName), Arc<LaneHandle<K>>>,
    pub(super) shared: Arc<Shared<K>>,
    /// The order of arrivals over all lanes.
    pub(super) next_place: AtomicU64,
}

/// What all lanes have in common.
pub(super) struct Shared<K: Connector> {
    pub(super) mode: Mode,
    pub(super) connector: Arc<K>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) rules: ArcSwap<Rules>,
    /// Where replicas share the quota.
    pub(super) quota: Option<Arc<Quota>>,
    /// When the process started: tokens count as just used then.
    pub(super) started: Instant,
    /// Bytes of all calls that are in the queue or on their way.
    pub(super) room: Arc<Room>,
    /// The same of each client, which may take half of the room and no more.
    pub(super) client_rooms: DashMap<(AccountId, ClientId), Arc<Room>>,
    pub(super) drain_by: Mutex<DrainBy>,
}

/// One call's claim on the queue: its place by first arrival, its hold, its share of the memory. Kept through retries.
pub(crate) struct LimitedCall<K: Connector> {
    /// None for an action without a limit.
    lane: Option<Arc<LaneHandle<K>>>,
    shared: Arc<Shared<K>>,
    entry: QueueEntry,
    /// Nothing is sent after this: the arrival and the hold less the margin for CAMS's answer.
    send_by: Instant,
    /// The call has been queued, or granted, before: the bounds were checked, or the call was counted, then.
    admitted: bool,
    _bytes: [Share; 2],
}

// === impl Limiter ===

impl<K: Connector> Limiter<K> {
    /// An empty queue; `started` is when the process started.
    pub(crate) fn new(
        config: &Config,
        connector: Arc<K>,
        (metrics, quota): (Arc<Metrics>, Option<Arc<Quota>>),
        started: Instant,
    ) -> Self {
        let shared = Shared {
            mode: config.mode,
            connector,
            metrics,
            rules: ArcSwap::from_pointee(Rules::new(config, started)),
            quota,
            started,
            room: Room::new(config.queue.max_bytes),
            client_rooms: DashMap::new(),
            drain_by: Mutex::default(),
        };
        Self {
            lanes: DashMap::with_shard_amount(SHARDS),
            shared: Arc::new(shared),
            next_place: AtomicU64::new(0),
        }
    }

    /// A call has arrived, whole: it gets its place in the order of arrivals.
    pub(crate) fn arrive(
        &self,
        operation: &Operation,
        bytes: usize,
    ) -> Result<LimitedCall<K>, Refusal> {
        let now = Instant::now();
        let lane = operation.limit.is_some().then(|| self.lane(operation));
        let full = |what: &str| {
            let wait = lane
                .as_ref()
                .map_or(Duration::from_secs(1), |lane| lane.predicted_wait(now));
            Refusal::after(Kind::QueueFull, wait, format!("{what} is full."))
        };
        let client = self
            .client_room((operation.account.clone(), operation.client.clone()))
            .take(bytes);
        let client = client
            .ok_or_else(|| full("This client's part of Flowgate's memory for queued calls"))?;
        let share = self
            .shared
            .room
            .take(bytes)
            .ok_or_else(|| full("Flowgate's memory for queued calls"))?;
        let entry = QueueEntry {
            place: Place(self.next_place.fetch_add(1, Ordering::Relaxed)),
            client: operation.client.clone(),
            weight: operation.weight,
            tenant: operation.tenant.clone(),
            arrived: now,
        };
        let send_by = now + operation.wait;
        Ok(LimitedCall {
            lane,
            shared: self.shared.clone(),
            entry,
            send_by,
            admitted: false,
            _bytes: [client, share],
        })
    }

    /// From now on this configuration holds, for those who wait, too. A lane whose limit has changed begins anew, with all
    /// of its tokens just used, as does one that is made after accounts, keys or limits have changed: others may have sent
    /// for it before. One whose limit has gone ends when nobody waits in it.
    pub(crate) fn reload(&self, config: &Config) {
        let Shared {
            rules,
            room,
            client_rooms,
            ..
        } = &*self.shared;
        rules.store(Arc::new(rules.load().then(config, Instant::now())));
        room.resize(config.queue.max_bytes);
        client_rooms
            .iter()
            .for_each(|room| room.resize(config.queue.max_bytes / 2));
        // A lane that is made meanwhile reads the new rules.
        self.all().iter().for_each(|lane| lane.reload());
    }

    /// Begins to drain: who cannot be granted before `by` is told so now, here and on arrival.
    pub(crate) fn drain(&self, by: Instant) {
        self.shared.drain_by.lock().begin(by);
        self.all()
            .iter()
            .for_each(|lane| lane.event(Event::DrainBegan));
    }

    /// Leaves the limited actions' quota to a successor: nothing of them is sent from now on.
    pub(crate) fn hand_over(&self) {
        self.shared.drain_by.lock().hand_over(Instant::now());
        self.all()
            .iter()
            .for_each(|lane| lane.event(Event::DrainBegan));
    }

    /// The state of every lane, for metrics and operators.
    pub(crate) fn lanes(&self) -> Vec<LaneView> {
        self.all().iter().map(|lane| lane.view()).collect()
    }

    /// How many lanes there are, and how many calls wait in them.
    pub(crate) fn count(&self) -> (usize, usize) {
        let lanes = self.all();
        (
            lanes.len(),
            lanes
                .iter()
                .map(|lane| lane.lock().state.lane.queue().len())
                .sum(),
        )
    }

    /// The room for the bytes of all calls that come in, wait or are under way.
    pub(crate) fn room(&self) -> &Arc<Room> {
        &self.shared.room
    }

    /// Bytes of the bodies of all calls that come in, wait or are under way.
    pub(crate) fn bytes(&self) -> usize {
        self.shared.room.used()
    }

    /// Whoever deals out the quota has changed.
    pub(crate) fn refresh(&self) {
        self.all().iter().for_each(|lane| lane.refresh());
    }

    /// Forgets lanes that nobody holds and whose tokens are all free.
    pub(crate) fn forget_idle(&self) {
        // Holding the shard's lock keeps newcomers out, so a count of one means that the map is the only holder.
        let Shared { client_rooms, .. } = &*self.shared;
        self.lanes
            .retain(|_, lane| Arc::strong_count(lane) > 1 || !lane.is_at_rest());
        client_rooms.retain(|_, room| Arc::strong_count(room) > 1);
        // A map keeps the room of its greatest crowd.
        if self.lanes.len() < self.lanes.capacity() / SPARSE {
            self.lanes.shrink_to_fit();
        }
        if client_rooms.len() < client_rooms.capacity() / SPARSE {
            client_rooms.shrink_to_fit();
        }
    }

    /// The room for the bytes of one client's calls.
    pub(crate) fn client_room(&self, key: (AccountId, ClientId)) -> Arc<Room> {
        let half = || self.shared.rules.load().bounds.max_bytes / 2;
        self.shared
            .client_rooms
            .entry(key)
            .or_insert_with(|| Room::new(half()))
            .clone()
    }

    pub(super) fn all(&self) -> Vec<Arc<LaneHandle<K>>> {
        self.lanes
            .iter()
            .map(|entry| entry.value().clone())
            .collect()
    }

    pub(super) fn lane(&self, operation: &Operation) -> Arc<LaneHandle<K>> {
        let key = (operation.account.clone(), operation.action.clone());
        let new = || Arc::new(LaneHandle::new(operation, self.shared.clone()));
        self.lanes.entry(key).or_insert_with(new).clone()
    }
}

// === impl Shared ===

impl<K: Connector> Shared<K> {
    /// When no call of a limited action is granted any more, if a drain has begun.
    pub(super) fn drain_by(&self) -> Option<Instant> {
        self.drain_by.lock().limited()
    }
}

// === impl LimitedCall ===

impl<K: Connector> LimitedCall<K> {
    /// Waits for the permission to send, at most until the call's send-by. Dropping the future leaves the queue and uses
    /// no token.
    pub(crate) async fn permit(&mut self) -> Result<SendPermit<K>, Refusal> {
        let Some(lane) = self.lane.clone() else {
            return self.unlimited_permit().await;
        };
        if let Some(shadow) = &lane.shadow {
            self.observe(&lane, shadow);
            return self.unlimited_permit().await;
        }
        let returning = std::mem::replace(&mut self.admitted, true);
        // In a statement of its own the permit that comes at once needs no room while the call waits.
        let answer = match lane.enter(&self.entry, self.send_by, returning) {
            Entered::Now(permit) => return Ok(permit),
            Entered::Waiting(answer) => answer,
        };
        let mut queued = Queued::new(&lane, &self.entry);
        queued.answered(tokio::time::timeout_at(self.send_by, answer).await)
    }

    /// Time since the call arrived.
    pub(crate) fn age(&self) -> Duration {
        self.entry.arrived.elapsed()
    }

    /// Nothing of it is sent after this.
    pub(crate) fn send_by(&self) -> Instant {
        self.send_by
    }

    /// What is left until its send-by.
    pub(crate) fn left(&self) -> Duration {
        self.send_by.saturating_duration_since(Instant::now())
    }

    /// When a call that came now could be sent: the honest advice for when to come back.
    pub(crate) fn predicted_wait(&self) -> Duration {
        self.lane
            .as_ref()
            .map_or(Duration::ZERO, |lane| lane.predicted_wait(Instant::now()))
    }

    /// Counts, once, what would have become of the call.
    fn observe(&mut self, lane: &LaneHandle<K>, shadow: &Mutex<Shadow>) {
        if self
            .shared
            .drain_by()
            .is_some_and(|by| by <= Instant::now())
            || std::mem::replace(&mut self.admitted, true)
        {
            return;
        }
        let mut shadow = shadow.lock();
        // Read under the lock, so that the shadow's time never goes back.
        let now = Instant::now();
        let would = shadow.decide(
            &self.entry.client,
            self.send_by.saturating_duration_since(now),
            now,
        );
        drop(shadow);
        let ([account, action], client) = (lane.metrics.labels(), self.entry.client.as_str());
        self.shared
            .metrics
            .shadow_decision(account, action, would.label());
        tracing::debug!(account, action, client, decision = would.label(), wait = ?would.wait(), "observed");
    }

    /// A permit as soon as a connection is ready.
    async fn unlimited_permit(&self) -> Result<SendPermit<K>, Refusal> {
        if self.shared.drain_by.lock().is_over_for_all(Instant::now()) {
            return Err(refusals::draining());
        }
        if self.left().is_zero() {
            return Err(refusals::expired(
                self.shared.connector.down(),
                Duration::from_secs(1),
            ));
        }
        let connection = match self.shared.connector.try_ready() {
            Some(connection) => connection,
            // Boxed: seldom needed, and room for it would be in every call that waits.
            None => Box::pin(tokio::time::timeout_at(
                self.send_by,
                self.shared.connector.ready(1),
            ))
            .await
            .map_err(|_| refusals::expired(self.shared.connector.down(), Duration::from_secs(1)))?,
        };
        Ok(SendPermit::unlimited(connection))
    }
}

#[cfg(test)]
impl<K: Connector> LimitedCall<K> {
    /// What this call will wait if no other comes after it. It does not wait yet.
    pub(super) fn predicted_now(&self) -> Duration {
        let locked = self.lane.as_ref().expect("it has a lane").lock();
        let lane = &locked.state.lane;
        lane.predicted_wait(lane.queue().ahead_of_new(&self.entry), locked.now)
    }
}
