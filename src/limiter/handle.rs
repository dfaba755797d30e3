//! One lane behind its lock: passes events to the state machine and carries out its effects. The
//! lock is held briefly, and effects are carried out after it is released.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot::error::RecvError;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tokio::time::error::Elapsed;

use crate::config::Mode;
use crate::error::Refusal;
use crate::limiter::fair::{FairQueue, QueueEntry};
use crate::limiter::inner::LimiterInner;
use crate::limiter::lane::{
    Activity, Context, Effect, End, Event, Forecast, Grant, Lane, Next, StoreRequest, StoreTiming,
    Waiting,
};
use crate::limiter::pace::Rate;
use crate::limiter::permit::SendPermit;
use crate::limiter::shadow::Shadow;
use crate::limiter::shared::Quota;
use crate::limiter::shared::protocol::{DealRequest, NewPace};
use crate::limiter::view::{LaneView, ShadowView, describe_tenants, per_second};
use crate::limiter::{Connector, refusals};
use crate::observe::history::{LaneActivity, Paused};
use crate::observe::metrics::CallMetrics;
use crate::observe::record::{Arrival, Way};
use crate::operation::Operation;
use crate::primitives::id::{AccountId, ActionName};
use crate::primitives::text::whole_millis;

/// How long the store keeps a learned pace.
const LEARNED_PACE_TTL: Duration = Duration::from_secs(300);
/// After this number of refusals in a row other tasks get to run.
const REFUSALS_PER_YIELD: usize = 128;

/// A lane with its lock and everything that its tasks need.
pub(super) struct LaneHandle<K: Connector> {
    pub(super) limiter: Arc<LimiterInner<K>>,
    state: Mutex<LaneState<K>>,
    /// Wakes the worker after a change.
    pub(super) changed: Notify,
    /// In observe mode: the queue that the limit would build up. The lane's own queue stays empty
    /// then. Boxed, because there may be many lanes.
    pub(super) shadow: Option<Box<Mutex<Shadow>>>,
    pub(super) account: AccountId,
    pub(super) action: ActionName,
    /// Holds the lane's labels. All accounts that the configuration does not name have one label
    /// together.
    pub(super) metrics: Arc<CallMetrics>,
}

/// Delivers the result to a queued call.
pub(super) type Waiter<K> = oneshot::Sender<Result<SendPermit<K>, Refusal>>;

/// The part of a lane that its lock protects.
pub(super) struct LaneState<K: Connector> {
    pub(super) lane: Lane<Waiter<K>>,
    /// Whether a worker task runs for the lane.
    pub(super) has_worker: bool,
    /// The source of its connections.
    connector: Arc<K>,
}

/// The result of [`LaneHandle::enter`].
pub(super) enum Admission<K: Connector> {
    /// Granted immediately: no call was queued and a token was free.
    Granted(SendPermit<K>),
    /// Queued, or refused.
    Queued {
        /// Gets the result.
        answer: oneshot::Receiver<Result<SendPermit<K>, Refusal>>,
        /// The lane has no worker: the caller starts one.
        needs_worker: bool,
    },
}

/// Removes a queued call from the queue if it is dropped before the call has its result, for
/// example because the caller has disconnected.
pub(super) struct QueueGuard<'a, K: Connector> {
    lane: &'a Arc<LaneHandle<K>>,
    entry: &'a QueueEntry,
    has_answer: bool,
}

/// A locked lane, with the time of its events.
pub(super) struct LockedLane<'a, K: Connector> {
    pub(super) state: MutexGuard<'a, LaneState<K>>,
    limiter: &'a LimiterInner<K>,
    /// Read after the lock was acquired, which may have taken a while.
    pub(super) now: Instant,
}

// === impl LaneHandle ===

impl<K: Connector> LaneHandle<K> {
    pub(super) fn new(operation: &Operation, limiter: Arc<LimiterInner<K>>) -> Self {
        let rules = limiter.rules.load_full();
        let since = limiter.started.max(rules.since);
        // A reload may have removed the limit after the operation was looked up.
        let limit = rules
            .limits
            .get(&operation.action)
            .copied()
            .or(operation.limit)
            .expect("only limited operations have a lane");
        let lane = Lane::new(limit, rules.learn, since, Instant::now());
        let shadow = (limiter.mode == Mode::Observe).then(|| {
            let shadow = Shadow::new(limit, rules.learn.gap, &rules.bounds, since);
            Box::new(Mutex::new(shadow))
        });
        Self {
            state: Mutex::new(LaneState {
                lane,
                has_worker: false,
                connector: limiter.routes.load().of(&operation.account).clone(),
            }),
            changed: Notify::new(),
            shadow,
            account: operation.account.clone(),
            action: operation.action.clone(),
            metrics: limiter.metrics.calls(operation.labels()),
            limiter,
        }
    }

    /// Locks the lane. If its token source has changed since the last lock, the lane handles that
    /// first.
    pub(super) fn lock(self: &Arc<Self>) -> LockedLane<'_, K> {
        let state = self.state.lock();
        let mut locked = LockedLane {
            now: Instant::now(),
            limiter: &self.limiter,
            state,
        };
        if let Some(quota) = &self.limiter.quota {
            self.follow_quota(&mut locked, quota);
        }
        locked
    }

    /// Changes the lane's token source if the quota has another one for it.
    fn follow_quota(self: &Arc<Self>, locked: &mut LockedLane<'_, K>, quota: &Quota) {
        let quota_source = quota.source(locked.state.lane.limit());
        if quota_source == locked.state.lane.quota_source() {
            return;
        }
        let effects = locked.handle(Event::SourceChanged {
            quota_source,
            store: StoreTiming::of(quota),
        });
        self.spawn_effects(effects);
        self.changed.notify_one();
    }

    /// Handles an event and carries out its effects.
    pub(super) fn event(self: &Arc<Self>, event: Event<Waiter<K>>) {
        let mut locked = self.lock();
        let effects = locked.handle(event);
        // A worker that starts later looks at the lane before it waits.
        let has_worker = locked.state.has_worker;
        drop(locked);
        self.carry_out(effects);
        if has_worker {
            self.changed.notify_one();
        }
    }

    /// Grants or queues a call. `returning`: the call was admitted before and comes back after a
    /// throttle refusal. The queue that any other call finds is noted in `way`.
    pub(super) fn enter(
        self: &Arc<Self>,
        entry: &QueueEntry,
        send_by: Instant,
        returning: bool,
        way: &mut Option<Box<Way>>,
    ) -> Admission<K> {
        let mut locked = self.lock();
        let now = locked.now;
        if !locked.is_drained()
            && now < send_by
            && !locked.state.has_worker
            && locked.state.lane.is_open(now)
            && let Some(connection) = locked.state.connector.try_ready()
            && let Some(grant) = locked.state.lane.grant(send_by, now)
        {
            drop(locked);
            return Admission::Granted(self.permit(connection, grant));
        }
        let arrival = (!returning).then(|| locked.arrival());
        let (waiter, answer) = oneshot::channel();
        let effects = locked.handle(Event::Arrived {
            entry: entry.clone(),
            send_by,
            returning,
            waiter,
        });
        let LaneState {
            lane, has_worker, ..
        } = &mut *locked.state;
        if let Some(arrival) = arrival {
            let arrival = with_forecast(arrival, lane.take_admitted());
            way.get_or_insert_default().arrival = Some(arrival);
        }
        let needs_worker = lane.queue().len() > 0 && !std::mem::replace(has_worker, true);
        if !needs_worker
            && (returning
                || lane.source().is_shared()
                || lane.source().free(now) > 0
                || lane.has_review())
        {
            // The worker has to request one more connection or slot, or a review is due.
            self.changed.notify_one();
        }
        drop(locked);
        self.carry_out(effects);
        Admission::Queued {
            answer,
            needs_worker,
        }
    }

    /// The predicted wait of a call that arrives now. In observe mode: when a call that CAMS
    /// throttled should be retried.
    pub(super) fn predicted_wait(self: &Arc<Self>, now: Instant) -> Duration {
        if let Some(shadow) = &self.shadow {
            return shadow.lock().retry_after(now);
        }
        self.lock().state.lane.advice_now(now)
    }

    /// The source of its connections.
    pub(super) fn connector(&self) -> Arc<K> {
        self.state.lock().connector.clone()
    }

    /// Makes a permit of this lane.
    pub(super) fn permit(
        self: &Arc<Self>,
        connection: K::Connection,
        grant: Grant,
    ) -> SendPermit<K> {
        self.metrics.granted.inc();
        SendPermit::limited(connection, self.clone(), grant)
    }

    /// Whether an attempt with this grant may be written now.
    pub(super) fn may_send(self: &Arc<Self>, grant: &Grant) -> bool {
        let locked = self.lock();
        locked.state.lane.may_send(grant, locked.now)
    }

    /// The grant was not used.
    pub(super) fn returned(self: &Arc<Self>, grant: Grant) {
        self.metrics.returned.inc();
        self.event(Event::Returned(grant));
    }

    /// The attempt's first byte was written at `at`.
    pub(super) fn written(self: &Arc<Self>, grant: Grant, at: Instant) {
        self.metrics.spent.inc();
        self.event(Event::Written { grant, at });
    }

    /// The attempt, written at `written_at`, has ended.
    pub(super) fn ended(self: &Arc<Self>, grant: Grant, written_at: Instant, end: End) {
        self.event(Event::Ended {
            grant,
            written_at,
            end,
        });
    }

    /// What the lane has done since `since`, if it may be removed because a new one would equal it.
    pub(super) fn take_rest(self: &Arc<Self>, since: Instant) -> Option<LaneActivity<'_>> {
        let is_shadow_at_rest = self
            .shadow
            .as_ref()
            .is_none_or(|shadow| shadow.lock().is_at_rest(Instant::now()));
        if !is_shadow_at_rest {
            return None;
        }
        let mut locked = self.lock();
        locked
            .is_at_rest()
            .then(|| self.activity(&mut locked, since))
    }

    /// Returns a snapshot for operators.
    pub(super) fn view(self: &Arc<Self>) -> LaneView {
        let mut locked = self.lock();
        locked.refresh();
        let now = locked.now;
        let shadow = self
            .shadow
            .as_ref()
            .map(|shadow| ShadowView::new(&mut shadow.lock(), now));
        LaneView::new(self.metrics.labels(), &locked.state.lane, shadow, now)
    }

    /// What the lane has done since this was called last, at `since`. In observe mode: the calls
    /// that were sent, and the queue that the limit would have built up.
    pub(super) fn take_activity(self: &Arc<Self>, since: Instant) -> LaneActivity<'_> {
        self.activity(&mut self.lock(), since)
    }

    fn activity(&self, locked: &mut LockedLane<'_, K>, since: Instant) -> LaneActivity<'_> {
        let now = locked.now;
        let lane = &mut locked.state.lane;
        let Activity { granted, throttled } = lane.take_activity();
        let (granted, queued) = match &self.shadow {
            None => (granted, lane.queue().len()),
            Some(shadow) => {
                let mut shadow = shadow.lock();
                (shadow.take_arrived(), shadow.waiting(now))
            }
        };
        let paused = if lane.pause().operator_pause(now).is_some() {
            Paused::ByOperator
        } else if lane.pause().was_throttled_since(since) {
            Paused::AfterThrottle
        } else {
            Paused::No
        };
        LaneActivity {
            labels: self.metrics.label_ids(),
            limit_per_second: per_second(lane.limit()),
            granted,
            throttled,
            queued,
            paused,
        }
    }

    /// Applies a reloaded configuration.
    pub(super) fn reload(self: &Arc<Self>) {
        let rules = self.limiter.rules.load_full();
        let now = Instant::now();
        let limit = rules.limits.get(&self.action).copied();
        self.state.lock().connector = self.limiter.routes.load().of(&self.account).clone();
        if let Some(shadow) = &self.shadow {
            let limit = limit.unwrap_or_else(|| self.state.lock().lane.limit());
            let mut shadow = shadow.lock();
            if !shadow.matches_rules(limit, rules.learn.gap, &rules.bounds) {
                *shadow = Shadow::new(limit, rules.learn.gap, &rules.bounds, now);
            }
        }
        self.event(Event::RulesChanged { limit });
        // Where replicas share the quota, locking the lane selects its new token source.
        drop(self.lock());
    }

    /// Selects the token source again.
    pub(super) fn update_source(self: &Arc<Self>) {
        drop(self.lock());
        self.changed.notify_one();
    }

    /// Carries out effects. `Effect::Grant` is not among them: it needs the worker's connection.
    pub(super) fn carry_out(self: &Arc<Self>, effects: VecDeque<Effect<Waiter<K>>>) {
        for effect in effects {
            self.carry_out_one(effect);
        }
    }

    fn carry_out_one(self: &Arc<Self>, effect: Effect<Waiter<K>>) {
        match effect {
            Effect::Refuse { waiter, refusal } => answer(waiter, Err(refusal)),
            Effect::Expire { waiter, advice } => {
                answer(
                    waiter,
                    Err(refusals::expired(self.connector().down(), advice)),
                );
            }
            Effect::RefuseAll {
                queue,
                refusal,
                step,
                most,
            } => {
                tokio::spawn(refuse_all::<K>(queue, refusal, step, most));
            }
            Effect::SendRequest(request) => {
                let lane = self.clone();
                tokio::spawn(async move { lane.send_request(*request).await });
            }
            Effect::StoreTooFar => {
                if let Some(quota) = &self.limiter.quota {
                    quota.mark_too_far();
                }
            }
            Effect::PauseBegan { pause, hint, rate } => self.log_pause(pause, hint, rate),
            Effect::Grant { grant, .. } => {
                debug_assert!(false, "only the worker can grant: it has the connection");
                self.event(Event::Returned(grant));
            }
        }
    }

    /// Carries out effects in a task of their own, for callers that hold the lock.
    fn spawn_effects(self: &Arc<Self>, effects: VecDeque<Effect<Waiter<K>>>) {
        if !effects.is_empty() {
            let lane = self.clone();
            tokio::spawn(async move { lane.carry_out(effects) });
        }
    }

    async fn send_request(self: Arc<Self>, request: StoreRequest) {
        let Some(quota) = self.limiter.quota.clone() else {
            return;
        };
        let StoreRequest {
            op,
            limit,
            rate,
            waiting,
            pending,
        } = request;
        let request = DealRequest {
            replica: quota.replica(),
            limit,
            tokens: rate.tokens,
            window: rate.window,
            gap: rate.gap,
            spacing: rate.spacing,
            slack: pending.slot_request.slack,
            cap: quota.cap(limit),
            version: pending.version,
            pace: pending.pace.as_ref().map(|text| NewPace {
                text,
                lives: LEARNED_PACE_TTL,
            }),
            wanted: pending.slot_request.wanted,
            waiting: &waiting,
            unused: &pending.slot_request.unused,
            late: &pending.slot_request.late,
            max_pause: self.limiter.rules.load().retry.max_pause,
        };
        let answer = quota
            .take(&self.account, &self.action, &op, &request)
            .await
            .map(Box::new);
        self.event(Event::StoreAnswered {
            request: pending,
            answer,
        });
    }

    fn log_pause(self: &Arc<Self>, pause: Duration, hint: Option<Duration>, rate: Rate) {
        let [account, action] = self.metrics.labels();
        self.limiter.metrics.paused(account, action, pause);
        let locked = self.lock();
        let queued = locked.state.lane.queue().len();
        let tenants = describe_tenants(locked.state.lane.queue(), locked.now);
        drop(locked);
        tracing::warn!(
            account,
            action,
            ?pause,
            ?hint,
            gap = ?rate.gap,
            tokens = rate.tokens,
            queued,
            tenants,
            "CAMS throttles: the lane pauses"
        );
    }
}

/// The call was queued with this forecast, or not queued.
fn with_forecast(arrival: Arrival, admitted: Option<Forecast>) -> Arrival {
    match admitted {
        None => arrival,
        Some(Forecast { ahead, wait_ms }) => Arrival {
            ahead,
            predicted_ms: wait_ms,
            queued: true,
            ..arrival
        },
    }
}

/// Delivers the result of a queued call. If the caller has disconnected, a permit is dropped and so
/// returned.
pub(super) fn answer<K: Connector>(waiter: Waiter<K>, answer: Result<SendPermit<K>, Refusal>) {
    drop(waiter.send(answer));
}

/// Refuses all queued calls. Each one's `Retry-After` is a `step` later than the one before, up to
/// `most`.
async fn refuse_all<K: Connector>(
    mut queue: FairQueue<Waiting<Waiter<K>>>,
    refusal: Refusal,
    step: Duration,
    most: Duration,
) {
    let mut advice = refusal.retry_after;
    let mut refused = 0;
    while let Some(Waiting { waiter, .. }) = queue.pop() {
        answer(
            waiter,
            Err(Refusal {
                retry_after: advice,
                ..refusal.clone()
            }),
        );
        advice = advice.map(|advice| (advice + step).min(most));
        refused += 1;
        if refused % REFUSALS_PER_YIELD == 0 {
            tokio::task::yield_now().await;
        }
    }
}

// === impl LockedLane ===

impl<K: Connector> LockedLane<'_, K> {
    pub(super) fn handle(&mut self, event: Event<Waiter<K>>) -> VecDeque<Effect<Waiter<K>>> {
        self.with_context(|lane, cx| lane.handle(event, cx))
    }

    /// See [`Lane::next`].
    pub(super) fn next(&mut self, is_connected: bool) -> (Next, Option<Instant>) {
        self.with_context(|lane, cx| lane.next(is_connected, cx))
    }

    /// The queue as a call finds it that arrives now.
    fn arrival(&self) -> Arrival {
        let (lane, now) = (&self.state.lane, self.now);
        Arrival {
            ahead: u32::try_from(lane.queue().len()).unwrap_or(u32::MAX),
            predicted_ms: 0,
            queued: false,
            tokens_free: lane.source().free(now),
            tokens: lane.limit().count.get(),
            pause_ms: whole_millis(lane.pause().remaining(now)),
            paused_by_operator: lane.pause().operator_pause(now).is_some(),
        }
    }

    /// See [`Lane::refresh`].
    pub(super) fn refresh(&mut self) {
        self.state.lane.refresh(self.now);
    }

    pub(super) fn is_at_rest(&mut self) -> bool {
        if self.state.has_worker {
            return false;
        }
        self.with_context(|lane, cx| lane.is_at_rest(cx))
    }

    fn with_context<R>(&mut self, with: impl FnOnce(&mut Lane<Waiter<K>>, Context<'_>) -> R) -> R {
        let rules = self.limiter.rules.load();
        let cx = Context {
            now: self.now,
            rules: &rules,
            drain_by: self.limiter.drain_by(),
        };
        with(&mut self.state.lane, cx)
    }

    fn is_drained(&self) -> bool {
        self.limiter.drain_by().is_some_and(|by| by <= self.now)
    }
}

// === impl StoreTiming ===

impl StoreTiming {
    pub(super) fn of(quota: &Quota) -> Self {
        Self {
            slack: quota.slack(),
            longest_slack: quota.longest_slack(),
            distance: quota.distance(),
        }
    }
}

// === impl QueueGuard ===

impl<'a, K: Connector> QueueGuard<'a, K> {
    pub(super) fn new(lane: &'a Arc<LaneHandle<K>>, entry: &'a QueueEntry) -> Self {
        Self {
            lane,
            entry,
            has_answer: false,
        }
    }

    /// Converts the result of the wait. Without a result by the send-by time, the call is refused
    /// as expired.
    pub(super) fn answered(
        &mut self,
        answer: Result<Result<Result<SendPermit<K>, Refusal>, RecvError>, Elapsed>,
    ) -> Result<SendPermit<K>, Refusal> {
        if let Ok(Ok(answer)) = answer {
            self.has_answer = true;
            return answer;
        }
        let advice = self.lane.predicted_wait(Instant::now());
        Err(refusals::expired(self.lane.connector().down(), advice))
    }
}

impl<K: Connector> Drop for QueueGuard<'_, K> {
    fn drop(&mut self) {
        if !self.has_answer {
            self.lane.event(Event::Cancelled(self.entry.clone()));
        }
    }
}
