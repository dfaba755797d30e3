//! One lane behind its lock: passes events in and carries effects out. The lock is held for moments; waiters get their
//! answers when it is free again.

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
use crate::limiter::lane::{Context, Effect, Event, Grant, Lane, Question, StoreTerms, Waiting};
use crate::limiter::pace::Rate;
use crate::limiter::permit::SendPermit;
use crate::limiter::registry::Shared;
use crate::limiter::rules::Rules;
use crate::limiter::shadow::Shadow;
use crate::limiter::shared::Quota;
use crate::limiter::shared::protocol::{Answer, NewPace, Question as StoreQuestion};
use crate::limiter::view::tenants_in_words;
use crate::limiter::{Connector, refusals, worker};
use crate::observe::metrics::CallMetrics;
use crate::operation::Operation;
use crate::primitives::id::{AccountId, ActionName};

/// How long the store keeps what was learned.
const LEARNED_LIVES: Duration = Duration::from_secs(300);
/// Calls that are refused at once before other tasks run.
const PIECE: usize = 128;

/// One lane, and what its tasks need.
pub(super) struct LaneHandle<K: Connector> {
    pub(super) shared: Arc<Shared<K>>,
    state: Mutex<Attended<K>>,
    /// Notifies the worker that something it waits for has changed.
    pub(super) changed: Notify,
    /// While Flowgate only observes: the queue that there would be. There is no other then. Boxed: lanes are many.
    pub(super) shadow: Option<Box<Mutex<Shadow>>>,
    /// Whose quota its calls spend, and of what.
    pub(super) account: AccountId,
    pub(super) action: ActionName,
    /// Its metrics know how operators call it: accounts that the configuration does not name have one label together.
    pub(super) metrics: Arc<CallMetrics>,
}

/// The waiting end of a queued call.
pub(super) type Waiter<K> = oneshot::Sender<Result<SendPermit<K>, Refusal>>;

/// A lane, and whether a worker waits on its behalf.
pub(super) struct Attended<K: Connector> {
    pub(super) lane: Lane<Waiter<K>>,
    pub(super) has_worker: bool,
}

/// What a call meets on entering.
pub(super) enum Entered<K: Connector> {
    /// No call waits and a token is free.
    Now(SendPermit<K>),
    /// It waits for its answer.
    Waiting(oneshot::Receiver<Result<SendPermit<K>, Refusal>>),
}

/// A queued call's place. Dropped before the call has its answer, it leaves the queue, which is what a disconnect does.
pub(super) struct Queued<'a, K: Connector> {
    lane: &'a Arc<LaneHandle<K>>,
    entry: &'a QueueEntry,
    has_answer: bool,
}

/// The state of a lane under its lock, with what its events are handled with.
pub(super) struct Locked<'a, K: Connector> {
    pub(super) state: MutexGuard<'a, Attended<K>>,
    rules: arc_swap::Guard<Arc<Rules>>,
    drain_by: Option<Instant>,
    /// Read under the lock, for which this task may have waited.
    pub(super) now: Instant,
}

// === impl LaneHandle ===

impl<K: Connector> LaneHandle<K> {
    pub(super) fn new(operation: &Operation, shared: Arc<Shared<K>>) -> Self {
        let rules = shared.rules.load_full();
        let Rules {
            limits,
            learn,
            bounds,
            since,
            ..
        } = &*rules;
        let since = shared.started.max(*since);
        // Without one in the rules, the limit has just gone.
        let limit = limits.get(&operation.action).copied().or(operation.limit);
        let limit = limit.expect("only limited operations have a lane");
        let lane = Lane::new(limit, *learn, since, Instant::now());
        let metrics = shared.metrics.calls(operation.labels());
        let (account, action) = (operation.account.clone(), operation.action.clone());
        let shadow = || Box::new(Mutex::new(Shadow::new(limit, learn.gap, bounds, since)));
        let shadow = (shared.mode == Mode::Observe).then(shadow);
        let state = Mutex::new(Attended {
            lane,
            has_worker: false,
        });
        Self {
            shared,
            state,
            changed: Notify::new(),
            shadow,
            account,
            action,
            metrics,
        }
    }

    /// The lane, told which source deals out its tokens now.
    pub(super) fn lock(self: &Arc<Self>) -> Locked<'_, K> {
        let state = self.state.lock();
        let changed = self.shared.quota.as_ref().and_then(|quota| {
            let stands = quota.stands(state.lane.limit());
            (stands != state.lane.stands()).then(|| (stands, StoreTerms::of(quota)))
        });
        let drain_by = self.shared.drain_by();
        let mut locked = Locked {
            rules: self.shared.rules.load(),
            drain_by,
            now: Instant::now(),
            state,
        };
        if let Some((stands, store)) = changed {
            let effects = locked.handle(Event::SourceChanged { stands, store });
            self.spawn_effects(effects);
            self.changed.notify_one();
        }
        locked
    }

    /// Handles an event and carries out what comes of it.
    pub(super) fn event(self: &Arc<Self>, event: Event<Waiter<K>>) {
        let effects = self.lock().handle(event);
        self.carry_out(effects);
        self.changed.notify_one();
    }

    /// A call comes, for the first time or back from a throttle refusal: then it was admitted before.
    pub(super) fn enter(
        self: &Arc<Self>,
        entry: &QueueEntry,
        send_by: Instant,
        returning: bool,
    ) -> Entered<K> {
        let mut locked = self.lock();
        let now = locked.now;
        if !locked.is_drained()
            && now < send_by
            && !locked.state.has_worker
            && locked.state.lane.is_open(now)
            && let Some(connection) = self.shared.connector.try_ready()
            // The connection may have taken a while.
            && let Some(grant) = locked.state.lane.pass(send_by, now)
        {
            drop(locked);
            return Entered::Now(self.permit(connection, grant));
        }
        let (waiter, answer) = oneshot::channel();
        let effects = locked.handle(Event::Arrived {
            entry: entry.clone(),
            send_by,
            returning,
            waiter,
        });
        let Attended { lane, has_worker } = &mut *locked.state;
        if lane.queue().len() > 0 && !std::mem::replace(has_worker, true) {
            tokio::spawn(worker::run(self.clone()));
        } else if returning
            || lane.source().is_shared()
            || lane.source().free(now) > 0
            || lane.has_review()
        {
            // The worker waits for a connection or the store, and one more is wanted; or a review is due.
            self.changed.notify_one();
        }
        drop(locked);
        self.carry_out(effects);
        Entered::Waiting(answer)
    }

    /// What a call that came now would wait; while no call waits here, when a refused one had best come back.
    pub(super) fn predicted_wait(self: &Arc<Self>, now: Instant) -> Duration {
        if let Some(shadow) = &self.shadow {
            return shadow.lock().come_back(now);
        }
        self.lock().state.lane.advice_now(now)
    }

    /// A permit of this lane.
    pub(super) fn permit(
        self: &Arc<Self>,
        connection: K::Connection,
        grant: Grant,
    ) -> SendPermit<K> {
        self.metrics.granted.inc();
        SendPermit::limited(connection, self.clone(), grant)
    }

    /// Whether a new lane would be the same as this one.
    pub(super) fn is_at_rest(self: &Arc<Self>) -> bool {
        let shadow = self
            .shadow
            .as_ref()
            .is_none_or(|shadow| shadow.lock().at_rest(Instant::now()));
        if !shadow {
            return false;
        }
        self.lock().is_at_rest()
    }

    /// The configuration was reloaded.
    pub(super) fn reload(self: &Arc<Self>) {
        let (rules, now) = (self.shared.rules.load_full(), Instant::now());
        let limit = rules.limits.get(&self.action).copied();
        if let Some(shadow) = &self.shadow {
            let limit = limit.unwrap_or_else(|| self.state.lock().lane.limit());
            let mut shadow = shadow.lock();
            if !shadow.keeps_to(limit, rules.learn.gap, &rules.bounds) {
                *shadow = Shadow::new(limit, rules.learn.gap, &rules.bounds, now);
            }
        }
        self.event(Event::RulesChanged { limit });
        // Where replicas share the quota, this looks which source deals it out.
        drop(self.lock());
    }

    /// Looks again which source deals out the tokens.
    pub(super) fn refresh(self: &Arc<Self>) {
        drop(self.lock());
        self.changed.notify_one();
    }

    /// Carries out effects; a grant needs the worker's connection, and is none of these.
    pub(super) fn carry_out(self: &Arc<Self>, effects: VecDeque<Effect<Waiter<K>>>) {
        for effect in effects {
            self.effect(effect);
        }
    }

    fn effect(self: &Arc<Self>, effect: Effect<Waiter<K>>) {
        match effect {
            Effect::Refuse { waiter, refusal } => answer(waiter, Err(refusal)),
            Effect::Expire { waiter, advice } => {
                answer(
                    waiter,
                    Err(refusals::expired(self.shared.connector.down(), advice)),
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
            Effect::Ask(question) => {
                let lane = self.clone();
                tokio::spawn(async move { lane.ask(*question).await });
            }
            Effect::StoreTooFar => {
                if let Some(quota) = &self.shared.quota {
                    quota.is_too_far();
                }
            }
            Effect::PauseBegan { pause, hint, rate } => self.note_pause(pause, hint, rate),
            Effect::Grant { grant, .. } => {
                debug_assert!(false, "only the worker has a connection to grant");
                self.event(Event::Returned(grant));
            }
        }
    }

    /// The same where the lock is still held: later, by a task.
    fn spawn_effects(self: &Arc<Self>, effects: VecDeque<Effect<Waiter<K>>>) {
        if !effects.is_empty() {
            let lane = self.clone();
            tokio::spawn(async move { lane.carry_out(effects) });
        }
    }

    async fn ask(self: Arc<Self>, question: Question) {
        let Some(quota) = self.shared.quota.clone() else {
            return;
        };
        let Question {
            op,
            limit,
            rate,
            waiting,
            asked,
        } = question;
        let answer: Option<Box<Answer>> = {
            let max_pause = self.shared.rules.load().retry.max_pause;
            let store_question = StoreQuestion {
                replica: quota.replica(),
                limit,
                tokens: rate.tokens,
                window: rate.window,
                gap: rate.gap,
                spacing: rate.spacing,
                slack: asked.ask.slack,
                cap: quota.cap(limit),
                version: asked.version,
                pace: asked.pace.as_ref().map(|text| NewPace {
                    text,
                    lives: LEARNED_LIVES,
                }),
                wanted: asked.ask.wanted,
                waiting: &waiting,
                unused: &asked.ask.unused,
                late: &asked.ask.late,
                max_pause,
            };
            quota
                .take(&self.account, &self.action, &op, &store_question)
                .await
                .map(Box::new)
        };
        self.event(Event::Answered {
            question: asked,
            answer,
        });
    }

    /// A pause has begun.
    fn note_pause(self: &Arc<Self>, pause: Duration, hint: Option<Duration>, rate: Rate) {
        let [account, action] = self.metrics.labels();
        self.shared.metrics.paused(account, action, pause);
        let (queued, tenants) = {
            let locked = self.lock();
            let queue = locked.state.lane.queue();
            (queue.len(), tenants_in_words(queue, locked.now))
        };
        let (gap, tokens) = (rate.gap, rate.tokens);
        tracing::warn!(
            account,
            action,
            ?pause,
            ?hint,
            ?gap,
            tokens,
            queued,
            tenants,
            "CAMS throttles: the lane pauses"
        );
    }
}

/// A caller that has just disconnected does not need its answer; a permit among them goes back.
pub(super) fn answer<K: Connector>(waiter: Waiter<K>, answer: Result<SendPermit<K>, Refusal>) {
    drop(waiter.send(answer));
}

/// Each caller gets a moment of its own to come back.
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
        if refused % PIECE == 0 {
            tokio::task::yield_now().await;
        }
    }
}

// === impl Locked ===

impl<K: Connector> Locked<'_, K> {
    pub(super) fn handle(&mut self, event: Event<Waiter<K>>) -> VecDeque<Effect<Waiter<K>>> {
        let cx = Context {
            now: self.now,
            rules: &self.rules,
            drain_by: self.drain_by,
        };
        self.state.lane.handle(event, cx)
    }

    /// What the lane waits for; see [`Lane::next`].
    pub(super) fn next(
        &mut self,
        is_connected: bool,
    ) -> (crate::limiter::lane::Next, Option<Instant>) {
        let cx = Context {
            now: self.now,
            rules: &self.rules,
            drain_by: self.drain_by,
        };
        self.state.lane.next(is_connected, cx)
    }

    /// Tokens that are back are free.
    pub(super) fn refresh(&mut self) {
        self.state.lane.refresh(self.now);
    }

    pub(super) fn is_at_rest(&mut self) -> bool {
        let cx = Context {
            now: self.now,
            rules: &self.rules,
            drain_by: self.drain_by,
        };
        !self.state.has_worker && self.state.lane.is_at_rest(cx)
    }

    fn is_drained(&self) -> bool {
        self.drain_by.is_some_and(|by| by <= self.now)
    }
}

// === impl StoreTerms ===

impl StoreTerms {
    pub(super) fn of(quota: &Quota) -> Self {
        Self {
            slack: quota.slack(),
            longest_slack: quota.longest_slack(),
            distance: quota.distance(),
        }
    }
}

// === impl Queued ===

impl<'a, K: Connector> Queued<'a, K> {
    pub(super) fn new(lane: &'a Arc<LaneHandle<K>>, entry: &'a QueueEntry) -> Self {
        Self {
            lane,
            entry,
            has_answer: false,
        }
    }

    /// What has come by the call's send-by, if anything has.
    pub(super) fn answered(
        &mut self,
        answer: Result<Result<Result<SendPermit<K>, Refusal>, RecvError>, Elapsed>,
    ) -> Result<SendPermit<K>, Refusal> {
        if let Ok(Ok(answer)) = answer {
            self.has_answer = true;
            return answer;
        }
        let advice = self.lane.predicted_wait(Instant::now());
        Err(refusals::expired(self.lane.shared.connector.down(), advice))
    }
}

impl<K: Connector> Drop for Queued<'_, K> {
    fn drop(&mut self) {
        if !self.has_answer {
            self.lane.event(Event::Left(self.entry.clone()));
        }
    }
}
