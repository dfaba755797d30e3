//! All lanes, and the state that they share. An arriving call gets its sequence number here and
//! waits here for its permit.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use dashmap::DashMap;
use tokio::time::Instant;

use crate::config::Config;
use crate::error::{Kind, Refusal};
use crate::limiter::drain::DrainDeadlines;
use crate::limiter::fair::{QueueEntry, Sequence};
use crate::limiter::handle::{Admission, LaneHandle, QueueGuard};
use crate::limiter::inner::LimiterInner;
use crate::limiter::lane::Event;
use crate::limiter::permit::SendPermit;
use crate::limiter::routes::Routes;
use crate::limiter::rules::Rules;
use crate::limiter::shared::Quota;
use crate::limiter::view::LaneView;
use crate::limiter::{Connector, refusals, worker};
use crate::observe::history::{Ended, History, HistoryView};
use crate::observe::metrics::{CallMetrics, Metrics};
use crate::observe::record::Way;
use crate::operation::Operation;
use crate::primitives::byte_budget::{ByteBudget, Reservation};
use crate::primitives::id::{AccountId, ActionName, ClientId};

/// A map is shrunk when its capacity is more than this many times its length.
const SHRINK_RATIO: usize = 8;
/// Shards of the map of lanes. A sweep holds one shard's lock at a time; more shards mean shorter
/// holds.
const SHARDS: usize = 256;

/// All lanes.
pub(crate) struct Limiter<K: Connector> {
    pub(super) lanes: DashMap<(AccountId, ActionName), Arc<LaneHandle<K>>>,
    pub(super) inner: Arc<LimiterInner<K>>,
    /// The next sequence number. One sequence covers all lanes.
    pub(super) next_sequence: AtomicU64,
    pub(super) history: History,
}

/// One call in the limiter: its queue entry, its deadline and its memory reservation. Kept through
/// retries.
pub(crate) struct LimitedCall<K: Connector> {
    /// None for an action without a limit.
    lane: Option<Arc<LaneHandle<K>>>,
    limiter: Arc<LimiterInner<K>>,
    /// The connector of its account when it arrived. Its lane may use another one after a reload.
    connector: Arc<K>,
    entry: QueueEntry,
    /// No attempt is sent after this: the arrival plus the hold, less the margin for CAMS's answer.
    send_by: Instant,
    /// The call was queued or granted before. The queue's bounds are checked only the first time,
    /// and the observe mode counts a call only once.
    admitted: bool,
    _bytes: [Reservation; 2],
}

// === impl Limiter ===

impl<K: Connector> Limiter<K> {
    /// A limiter without lanes. `started` is the start of the process.
    pub(crate) fn new(
        config: &Config,
        routes: impl Into<Routes<K>>,
        metrics: Arc<Metrics>,
        quota: Option<Arc<Quota>>,
        started: Instant,
    ) -> Self {
        let inner = LimiterInner {
            mode: config.mode,
            routes: ArcSwap::from_pointee(routes.into()),
            metrics,
            rules: ArcSwap::from_pointee(Rules::new(config, started)),
            quota,
            started,
            budget: ByteBudget::new(config.queue.max_bytes),
            client_budgets: DashMap::new(),
            drain_by: DrainDeadlines::default(),
        };
        Self {
            lanes: DashMap::with_shard_amount(SHARDS),
            inner: Arc::new(inner),
            next_sequence: AtomicU64::new(0),
            history: History::new(started),
        }
    }

    /// Like [`Limiter::arrive_via`], with the connector of the operation's account.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn arrive(
        &self,
        operation: &Operation,
        bytes: usize,
    ) -> Result<LimitedCall<K>, Refusal> {
        let connector = self.inner.routes.load().of(&operation.account).clone();
        self.arrive_via(connector, operation, bytes)
    }

    /// Registers a call whose request has been read completely. `connector` is that of its account.
    /// Fails if the memory for queued calls is used up.
    pub(crate) fn arrive_via(
        &self,
        connector: Arc<K>,
        operation: &Operation,
        bytes: usize,
    ) -> Result<LimitedCall<K>, Refusal> {
        let now = Instant::now();
        let lane = operation.limit.is_some().then(|| self.lane(operation));
        let reservations = self.reserve_for(operation, lane.as_ref(), bytes)?;
        let entry = QueueEntry {
            sequence: Sequence(self.next_sequence.fetch_add(1, Ordering::Relaxed)),
            client: operation.client.clone(),
            weight: operation.weight,
            tenant: operation.tenant.clone(),
            arrived: now,
        };
        Ok(LimitedCall {
            lane,
            limiter: self.inner.clone(),
            connector,
            entry,
            send_by: now + operation.wait,
            admitted: false,
            _bytes: reservations,
        })
    }

    /// Reserves memory for a call that waits outside a lane.
    pub(crate) fn reserve(
        &self,
        operation: &Operation,
        bytes: usize,
    ) -> Result<[Reservation; 2], Refusal> {
        let lane = operation.limit.is_some().then(|| self.lane(operation));
        self.reserve_for(operation, lane.as_ref(), bytes)
    }

    fn reserve_for(
        &self,
        operation: &Operation,
        lane: Option<&Arc<LaneHandle<K>>>,
        bytes: usize,
    ) -> Result<[Reservation; 2], Refusal> {
        let client_budget =
            self.client_budget((operation.account.clone(), operation.client.clone()));
        let Some(client_reservation) = client_budget.take(bytes) else {
            return Err(memory_full(
                lane,
                "This client's part of Flowgate's memory for queued calls",
            ));
        };
        let Some(reservation) = self.inner.budget.take(bytes) else {
            return Err(memory_full(lane, "Flowgate's memory for queued calls"));
        };
        Ok([client_reservation, reservation])
    }

    /// Applies a reloaded configuration, also to queued calls. A lane whose limit has changed
    /// restarts with all tokens just used. So does a lane that is created after accounts, keys or
    /// limits have changed, because another lane may have sent for it before. A lane whose limit
    /// was removed ends when its queue is empty.
    pub(crate) fn reload(&self, config: &Config) {
        let LimiterInner {
            rules,
            budget,
            client_budgets,
            ..
        } = &*self.inner;
        rules.store(Arc::new(rules.load().reloaded(config, Instant::now())));
        budget.resize(config.queue.max_bytes);
        for client_budget in client_budgets {
            client_budget.resize(config.queue.max_bytes / 2);
        }
        // A lane that is created meanwhile reads the new rules.
        for lane in self.all() {
            lane.reload();
        }
    }

    /// Replaces the connectors. Existing lanes use theirs until [`Limiter::reload`].
    pub(crate) fn reroute(&self, routes: Routes<K>) {
        self.inner.routes.store(Arc::new(routes));
    }

    /// Begins a drain. Queued and arriving calls that cannot be granted before `by` are refused
    /// immediately.
    pub(crate) fn drain(&self, by: Instant) {
        self.inner.drain_by.begin(by);
        self.notify_drain();
    }

    /// Hands the quota of the limited actions over to a successor. No attempt of them is sent from
    /// now on.
    pub(crate) fn hand_over(&self) {
        self.inner.drain_by.hand_over(Instant::now());
        self.notify_drain();
    }

    fn notify_drain(&self) {
        for lane in self.all() {
            lane.event(Event::DrainBegan);
        }
    }

    /// The state of every lane, for metrics and operators.
    pub(crate) fn lanes(&self) -> Vec<LaneView> {
        self.all().iter().map(|lane| lane.view()).collect()
    }

    /// The lanes by label. Lanes with the same labels are merged: those of all accounts that the
    /// configuration does not name. The views are merged one at a time, so that not all of them are
    /// in memory at once.
    pub(crate) fn lanes_by_label(&self) -> Vec<LaneView> {
        let mut views = BTreeMap::<(String, String), LaneView>::new();
        for lane in self.all() {
            let view = lane.view();
            let label = (view.account.clone(), view.action.clone());
            match views.get_mut(&label) {
                Some(known) => known.merge(view),
                None => {
                    views.insert(label, view);
                }
            }
        }
        views.into_values().collect()
    }

    /// The number of lanes, and the number of queued calls in all of them.
    pub(crate) fn count(&self) -> (usize, usize) {
        let lanes = self.all();
        let queued = lanes
            .iter()
            .map(|lane| lane.lock().state.lane.queue().len())
            .sum();
        (lanes.len(), queued)
    }

    /// The byte budget of all calls in progress: those being read, queued or sent.
    pub(crate) fn budget(&self) -> &Arc<ByteBudget> {
        &self.inner.budget
    }

    /// Bytes of the bodies of all calls in progress.
    pub(crate) fn bytes(&self) -> usize {
        self.inner.budget.used()
    }

    /// Makes every lane select its token source again: the store came or went.
    pub(crate) fn update_sources(&self) {
        for lane in self.all() {
            lane.update_source();
        }
    }

    /// Takes a sample of the history. `ended` counts the calls that have ended since the start.
    pub(crate) fn sample(&self, ended: Ended) {
        let since = self.history.sampled_at();
        for lane in self.all() {
            self.history.add(&lane.take_activity(since));
        }
        self.history.close(Instant::now(), ended);
    }

    /// The last 15 minutes.
    pub(crate) fn history(&self) -> HistoryView {
        self.history.view(Instant::now())
    }

    /// When the process started.
    pub(crate) fn started(&self) -> Instant {
        self.inner.started
    }

    /// Removes lanes that no call uses and that a new lane would equal. What they have done goes
    /// into the history.
    pub(crate) fn forget_idle(&self) {
        let since = self.history.sampled_at();
        // The shard's lock blocks new users, so a count of one means that the map is the only
        // owner.
        let client_budgets = &self.inner.client_budgets;
        self.lanes.retain(|_, lane| {
            if Arc::strong_count(lane) > 1 {
                return true;
            }
            let rest = lane.take_rest(since);
            if let Some(activity) = &rest {
                self.history.add(activity);
            }
            rest.is_none()
        });
        client_budgets.retain(|_, budget| Arc::strong_count(budget) > 1);
        // A map never gives memory back by itself.
        if self.lanes.len() < self.lanes.capacity() / SHRINK_RATIO {
            self.lanes.shrink_to_fit();
        }
        if client_budgets.len() < client_budgets.capacity() / SHRINK_RATIO {
            client_budgets.shrink_to_fit();
        }
    }

    /// The byte budget of one client's calls.
    pub(crate) fn client_budget(&self, key: (AccountId, ClientId)) -> Arc<ByteBudget> {
        self.inner
            .client_budgets
            .entry(key)
            .or_insert_with(|| ByteBudget::new(self.inner.rules.load().bounds.max_bytes / 2))
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
        self.lanes
            .entry(key)
            .or_insert_with(|| Arc::new(LaneHandle::new(operation, self.inner.clone())))
            .clone()
    }
}

#[cold]
fn memory_full<K: Connector>(lane: Option<&Arc<LaneHandle<K>>>, what: &str) -> Refusal {
    let wait = lane.map_or(Duration::from_secs(1), |lane| {
        lane.predicted_wait(Instant::now())
    });
    Refusal::after(Kind::QueueFull, wait, format!("{what} is full."))
}

// === impl LimitedCall ===

impl<K: Connector> LimitedCall<K> {
    /// Like [`LimitedCall::permit_for`], without a note.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) async fn permit(&mut self) -> Result<SendPermit<K>, Refusal> {
        self.permit_for(&mut None).await
    }

    /// Waits for the permission to send, at most until the call's send-by time. Dropping the future
    /// leaves the queue and uses no token. The queue that the call finds is noted in `way`.
    pub(crate) async fn permit_for(
        &mut self,
        way: &mut Option<Box<Way>>,
    ) -> Result<SendPermit<K>, Refusal> {
        // Borrowed: a clone would be a part of the memory of each queued call.
        let Some(lane) = &self.lane else {
            return self.unlimited_permit().await;
        };
        if lane.shadow.is_some() {
            self.observe();
            return self.unlimited_permit().await;
        }
        let returning = std::mem::replace(&mut self.admitted, true);
        // A statement of its own keeps an immediate permit out of the future's state, and so out of
        // the memory of each queued call.
        let answer = match lane.enter(&self.entry, self.send_by, returning, way) {
            Admission::Granted(permit) => return Ok(permit),
            Admission::Queued {
                answer,
                needs_worker,
            } => {
                if needs_worker {
                    tokio::spawn(worker::run(lane.clone()));
                }
                answer
            }
        };
        let mut guard = QueueGuard::new(lane, &self.entry);
        guard.answered(tokio::time::timeout_at(self.send_by, answer).await)
    }

    /// The series of its operation's account and action.
    pub(crate) fn metrics(&self, operation: &Operation) -> Arc<CallMetrics> {
        match &self.lane {
            Some(lane) => lane.metrics.clone(),
            None => self.limiter.metrics.calls(operation.labels()),
        }
    }

    /// The connector of its account when it arrived.
    pub(crate) fn connector(&self) -> &K {
        &self.connector
    }

    /// When the call arrived.
    pub(crate) fn arrived(&self) -> Instant {
        self.entry.arrived
    }

    /// Time since the call arrived.
    pub(crate) fn age(&self) -> Duration {
        self.entry.arrived.elapsed()
    }

    /// No attempt is sent after this.
    pub(crate) fn send_by(&self) -> Instant {
        self.send_by
    }

    /// Time left until the send-by time.
    pub(crate) fn left(&self) -> Duration {
        self.send_by.saturating_duration_since(Instant::now())
    }

    /// The predicted wait of a call that arrives now, which is also the advice for `Retry-After`.
    pub(crate) fn predicted_wait(&self) -> Duration {
        self.lane
            .as_ref()
            .map_or(Duration::ZERO, |lane| lane.predicted_wait(Instant::now()))
    }

    /// In observe mode: counts once what the limit would have done with the call.
    fn observe(&mut self) {
        let Some((lane, shadow)) = self
            .lane
            .as_ref()
            .and_then(|lane| Some((lane, lane.shadow.as_ref()?)))
        else {
            return;
        };
        let is_drained = self
            .limiter
            .drain_by()
            .is_some_and(|by| by <= Instant::now());
        if is_drained || std::mem::replace(&mut self.admitted, true) {
            return;
        }
        let mut shadow = shadow.lock();
        // Read under the lock, so that the shadow's time never goes back.
        let now = Instant::now();
        let left = self.send_by.saturating_duration_since(now);
        let decision = shadow.decide(&self.entry.client, left, now);
        drop(shadow);
        let [account, action] = lane.metrics.labels();
        let client = self.entry.client.as_str();
        self.limiter
            .metrics
            .shadow_decision(account, action, decision.label());
        tracing::debug!(
            account,
            action,
            client,
            decision = decision.label(),
            wait = ?decision.wait(),
            "observed"
        );
    }

    /// A permit as soon as a connection is ready.
    async fn unlimited_permit(&self) -> Result<SendPermit<K>, Refusal> {
        let is_drained = self.limiter.drain_by.is_over_for_unlimited(Instant::now());
        if is_drained {
            return Err(refusals::draining());
        }
        if self.left().is_zero() {
            return Err(self.expired());
        }
        let connection = match self.connector.try_ready() {
            Some(connection) => connection,
            // Boxed: rarely needed, and its size would count in the future of each queued call.
            None => Box::pin(tokio::time::timeout_at(
                self.send_by,
                self.connector.ready(1),
            ))
            .await
            .map_err(|_| self.expired())?,
        };
        Ok(SendPermit::unlimited(connection))
    }

    fn expired(&self) -> Refusal {
        refusals::expired(self.connector.down(), Duration::from_secs(1))
    }
}

#[cfg(test)]
impl<K: Connector> LimitedCall<K> {
    /// The predicted wait of this call, which is not queued yet, if no other call arrives after it.
    pub(super) fn predicted_now(&self) -> Duration {
        let locked = self.lane.as_ref().expect("the call has a lane").lock();
        let lane = &locked.state.lane;
        lane.predicted_wait(lane.queue().ahead_of_new(&self.entry), locked.now)
    }
}
