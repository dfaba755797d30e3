//! One account's calls of one limited action: who waits, which tokens are free, whether the lane pauses, under one
//! lock that is held for moments. A lone call is granted here and now; whoever must wait gets a waiter, and the lane a
//! worker.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::config::{Limit, Mode, Retry};
use crate::error::Refusal;
use crate::flow::classify::Operation;
use crate::id::{AccountId, ActionName};
use crate::limiter::admit::too_long;
use crate::limiter::fair::{Line, Standing};
use crate::limiter::pace::{Learned, Pace};
use crate::limiter::pause::{Episode, Gate, Pause, Refused};
use crate::limiter::permit::Turn;
use crate::limiter::rules::Rules;
use crate::limiter::shadow::Shadow;
use crate::limiter::shared::{self, Stands};
use crate::limiter::source::{Spent, Tokens};
use crate::limiter::tokens;
use crate::limiter::waiter::{self, Waiter};
use crate::limiter::{Connector, Shared, worker};
use crate::metrics::CallMetrics;

/// One lane.
pub(super) struct Lane<K: Connector> {
    pub(super) shared: Arc<Shared<K>>,
    state: Mutex<State<K>>,
    /// Tells the worker that something it waits on has changed.
    pub(super) changed: Notify,
    /// While Flowgate only observes: the queue that there would be. There is no other then. Boxed: lanes are many.
    pub(super) shadow: Option<Box<Mutex<Shadow>>>,
    /// Whose quota its calls spend, and of what.
    pub(super) account: AccountId,
    pub(super) action: ActionName,
    /// Its metrics know how operators call it: accounts that the configuration does not name have one label together.
    pub(super) metrics: Arc<CallMetrics>,
}

/// The waiting end of a queued call: where its turn is sent, and until when it is of use.
pub(super) struct Queued<K: Connector> {
    pub(super) reply: oneshot::Sender<Result<Turn<K>, Refusal>>,
    pub(super) send_by: Instant,
}

/// What the lane's lock guards.
pub(super) struct State<K: Connector> {
    pub(super) limit: Limit,
    /// When it began: tokens count as just used then, whoever deals them out.
    pub(super) limit_since: Instant,
    pub(super) line: Line<Queued<K>>,
    pub(super) tokens: Tokens,
    pub(super) pause: Pause,
    pub(super) learned: Learned,
    /// Who deals out the tokens.
    pub(super) stands: Stands,
    /// How often that has changed: what an earlier source granted is nothing to the present one.
    pub(super) epoch: u64,
    /// The version of what the store has learned.
    pub(super) version: u64,
    /// Something was learned that the store does not know.
    pub(super) unsaved: Option<()>,
    /// A question tells the store what was learned.
    pub(super) saving: bool,
    /// A worker lives; nobody else may try the tokens' clocks.
    pub(super) worker: bool,
    pub(super) random: fastrand::Rng,
    /// When somebody has come before others: when to look whom that has made late.
    pub(super) check_at: Option<Instant>,
    /// The moment that the last refused caller was told to come back at.
    pub(super) come_back: Instant,
    /// Turns so far.
    pub(super) granted: u64,
}

/// What a call meets on entering.
pub(super) enum Entered<'a, K: Connector> {
    /// Nobody waits and a token is free.
    Now(Turn<K>),
    /// It waits to be told.
    Waiting(Waiter<'a, K>, oneshot::Receiver<Result<Turn<K>, Refusal>>),
}

// === impl Lane ===

impl<K: Connector> Lane<K> {
    pub(super) fn new(operation: &Operation, shared: Arc<Shared<K>>) -> Self {
        let rules = shared.rules.load_full();
        let Rules { limits, learn, bounds, since, .. } = &*rules;
        let since = shared.started.max(*since);
        // Without one in the rules, the limit has just gone.
        let limit = limits.get(&operation.action).copied().or(operation.limit);
        let limit = limit.expect("only limited operations have a lane");
        let state = State {
            limit,
            limit_since: since,
            line: Line::new(),
            tokens: Tokens::Memory(tokens::Tokens::new(limit, learn.gap, since)),
            pause: Pause::default(),
            learned: Learned::new(limit, *learn),
            stands: Stands::Alone,
            epoch: 0,
            version: 0,
            unsaved: None,
            saving: false,
            worker: false,
            random: fastrand::Rng::new(),
            check_at: None,
            come_back: Instant::now(),
            granted: 0,
        };
        let metrics = shared.metrics.calls(operation);
        let (account, action) = (operation.account.clone(), operation.action.clone());
        let shadow = || Box::new(Mutex::new(Shadow::new(limit, learn.gap, bounds, since)));
        let shadow = (shared.mode == Mode::Observe).then(shadow);
        Self { shared, state: Mutex::new(state), changed: Notify::new(), shadow, account, action, metrics }
    }

    /// The lane's state, with the tokens at the pace that is right now: quiet time gives it back without a timer.
    pub(super) fn lock(&self) -> MutexGuard<'_, State<K>> {
        let mut state = self.state.lock();
        if let Some(quota) = &self.shared.quota {
            let stands = quota.stands(state.limit);
            self.follow(&mut state, stands);
        }
        if state.learned.has_learned() {
            state.keep_pace(Instant::now());
        }
        state
    }

    /// A call comes, for the first time or back from a throttle refusal: then it was admitted before.
    pub(super) fn enter<'a>(
        self: &'a Arc<Self>,
        standing: &'a Standing,
        send_by: Instant,
        admitted: bool,
    ) -> Result<Entered<'a, K>, Refusal> {
        if self.shared.drained(Instant::now()) {
            return Err(waiter::draining());
        }
        let mut state = self.lock();
        // Read under the lock, for which it may have waited.
        let now = Instant::now();
        if let Tokens::None = &state.tokens {
            return Err(waiter::no_part());
        }
        if send_by <= now {
            return Err(waiter::expired(self.shared.connector.down(), advice(&state, state.line.len(), now)));
        }
        if !state.worker
            && let Some(turn) = self.pass(&mut state, now)
        {
            return Ok(Entered::Now(turn));
        }
        if !admitted {
            self.admit(&mut state, (standing, send_by), now)?;
        }
        let (reply, turn) = oneshot::channel();
        state.line.push(standing.clone(), Queued { reply, send_by });
        if admitted {
            // It stands before others, and before it stood nowhere: the forecasts have changed.
            self.tell_late(&mut state, now);
        }
        if !std::mem::replace(&mut state.worker, true) {
            tokio::spawn(worker::run(self.clone()));
        } else if state.tokens.free(now) > 0 {
            // The worker waits for a connection, and one more is wanted.
            self.changed.notify_one();
        }
        Ok(Entered::Waiting(Waiter { lane: self, standing, told: false }, turn))
    }

    /// What a call that came now would wait; while nobody waits here, when a refused one had best come back.
    pub(super) fn predicted_wait(&self, now: Instant) -> Duration {
        if let Some(shadow) = &self.shadow {
            return shadow.lock().come_back(now);
        }
        let state = self.lock();
        advice(&state, state.line.len(), now)
    }

    /// A caller has gone or its time is over.
    pub(super) fn leave(&self, standing: &Standing) {
        let mut state = self.lock();
        if state.line.remove(standing).is_some() && state.line.len() == 0 {
            self.changed.notify_one();
        }
    }

    /// A drain has begun: tells everybody who will not be granted in time.
    pub(super) fn drain(&self) {
        self.tell_late(&mut self.lock(), Instant::now());
        self.changed.notify_one();
    }

    /// CAMS refused an attempt: the lane pauses, and whom that makes late is told now.
    pub(super) fn throttled(self: &Arc<Self>, refused: &Refused, spent: &Spent) {
        let mut state = self.lock();
        let now = Instant::now();
        if let Spent::Slot(slot) = spent
            && self.tell_throttled(&mut state, *slot, refused)
        {
            return;
        }
        if state.throttled(refused, &self.shared.rules.load().retry, now) == Episode::New {
            self.note_pause(&state, refused.hint, now);
        }
        self.tell_late(&mut state, now);
        self.changed.notify_one();
    }

    /// Takes out of line, and tells, everybody whose turn is forecast for after its send-by or the end of a drain.
    pub(super) fn tell_late(&self, state: &mut State<K>, now: Instant) {
        state.check_at = None;
        let State { line, tokens, pause, learned, .. } = state;
        let (open, more) = (pause.open_at(now), learned.returns(now));
        let late = line.sift(|ahead, queued| {
            let turn = tokens.forecast(ahead, now, open, &more).max(now);
            turn <= queued.send_by && !self.shared.drained(turn)
        });
        let wait = forecast(state, state.line.len(), now);
        for queued in late {
            let refusal = if self.shared.drained(now + wait) {
                waiter::draining()
            } else if state.tokens.are_withheld() {
                waiter::withheld()
            } else {
                let refusal = too_long(wait, queued.send_by.saturating_duration_since(now));
                let ahead = state.line.len();
                self.advised(state, refusal.queued(ahead, wait), now)
            };
            // Whoever has just gone does not need it.
            drop(queued.reply.send(Err(refusal)));
        }
    }

    /// Whether a new lane would be the same as this one.
    pub(super) fn at_rest(&self) -> bool {
        let mut state = self.lock();
        let now = Instant::now();
        let quiet = state.pause.is_forgotten(&self.shared.rules.load().retry, now) && state.learned.is_forgotten(now);
        let shadow = self.shadow.as_ref().is_none_or(|shadow| shadow.lock().at_rest(now));
        !state.worker && quiet && shadow && state.line.len() == 0 && state.tokens.at_rest()
    }

    /// Grants at once, if nobody has to wait for anything.
    fn pass(self: &Arc<Self>, state: &mut State<K>, now: Instant) -> Option<Turn<K>> {
        if state.pause.gate(now) != Gate::Open {
            return None;
        }
        state.tokens.collect(now);
        if state.tokens.free(now) == 0 {
            return None;
        }
        let connection = self.shared.connector.try_ready()?;
        Some(self.grant(state, connection, now))
    }
}

// === impl State ===

impl<K: Connector> State<K> {
    pub(super) fn keep_pace(&mut self, now: Instant) {
        let Pace { gap, tokens } = self.learned.pace(now);
        let part = if let Stands::Part { count, .. } = self.stands { count.get() } else { tokens };
        self.tokens.keep(gap, tokens.min(part));
    }

    /// This process keeps the pause and the pace: an attempt was refused.
    pub(super) fn throttled(&mut self, refused: &Refused, retry: &Retry, now: Instant) -> Episode {
        let random = self.random.f64();
        let episode = self.pause.refused(refused, retry, now, random);
        if episode == Episode::New {
            let open = self.pause.open_at(now);
            self.learned.episode(now, open);
        } else {
            self.learned.refused_too();
        }
        self.keep_pace(now);
        episode
    }
}

/// A twentieth: in simulations (`tests/prediction.rs`) most forecasts of a lane that is refused now and then come true.
const FOR_REFUSALS: u32 = 20;

/// What the call that has `ahead` others before it will wait. A lane that was refused of late is likely to be refused
/// again before a long wait is over: that is allowed for by a part of what is forecast after the pause.
pub(super) fn forecast<K: Connector>(state: &State<K>, ahead: usize, now: Instant) -> Duration {
    let State { tokens, pause, learned, .. } = state;
    let open = pause.open_at(now);
    let turn = tokens.forecast(ahead, now, open, &learned.returns(now));
    let spare = if learned.is_forgotten(now) { Duration::ZERO } else { (turn - open) / FOR_REFUSALS };
    (turn + spare).saturating_duration_since(now)
}

/// When the call that has `ahead` others before it had best come back. While there are no tokens nobody knows, and a day
/// would be no advice.
pub(super) fn advice<K: Connector>(state: &State<K>, ahead: usize, now: Instant) -> Duration {
    if state.tokens.are_withheld() { shared::ADVICE } else { forecast(state, ahead, now) }
}
