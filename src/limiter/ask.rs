//! How does a lane learn what the store has dealt to it? It asks, one question at a time for slots, and tells at once
//! what became of an attempt where that changes anything for others. Each answer is the lane's whole state.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Limit;
use crate::limiter::Connector;
use crate::limiter::lane::{Lane, State};
use crate::limiter::pause::Refused;
use crate::limiter::shared::Quota;
use crate::limiter::shared::protocol::{Clock, Dated, How, Op, Question, View, Waiting};
use crate::limiter::source::Tokens;
use crate::limiter::view::tenants_in_words;

/// How long after an unanswered question the store is asked again, if it is not known to be away by then.
const AGAIN: Duration = Duration::from_millis(50);

/// So many of the clients that wait are told to the store; an account seldom has more.
const NAMED: usize = 64;

/// What the lane wants of the store.
struct Wants {
    /// Of the source that asks.
    epoch: u64,
    limit: Limit,
    /// Calls that wait without a slot.
    wanted: usize,
    waiting: Vec<Waiting>,
    /// What goes back.
    unused: Vec<Dated>,
}

// === impl Lane ===

impl<K: Connector> Lane<K> {
    /// Asks the store for slots. Whatever it answers wakes the worker.
    pub(super) fn ask(self: &Arc<Self>, state: &mut State<K>, quota: &Arc<Quota>) {
        self.send(state, quota, Op::Take, None);
    }

    /// CAMS refused an attempt: the lane pauses on all replicas. False when it is not the store that deals out the tokens.
    pub(super) fn tell_throttled(self: &Arc<Self>, state: &mut State<K>, slot: Dated, refused: &Refused) -> bool {
        let (Tokens::Shared(slots), Some(quota)) = (&mut state.tokens, &self.shared.quota) else { return false };
        slots.void();
        let op = Op::Throttled { at: slot.at, hint: refused.hint, random: state.random.f64() };
        self.send(state, quota, op, Some(*refused));
        true
    }

    /// An attempt has another end, which the store must know of if it was the probe, or if a trouble is over.
    pub(super) fn tell_ended(self: &Arc<Self>, state: &mut State<K>, slot: Dated, how: How) {
        let (Tokens::Shared(slots), Some(quota)) = (&state.tokens, &self.shared.quota) else { return };
        if slot.probe || (how == How::Answered && slots.is_troubled()) {
            self.send(state, quota, Op::Ended { slot, how }, None);
        }
    }

    /// Every question also says what is wanted here, and gives back what was not used.
    fn send(self: &Arc<Self>, state: &mut State<K>, quota: &Arc<Quota>, op: Op, refused: Option<Refused>) {
        let Tokens::Shared(slots) = &mut state.tokens else { return };
        let (wanted, unused) = slots.ask(state.line.len());
        let waiting =
            state.line.clients().take(NAMED).map(|(client, weight, tenants)| Waiting::new(client, weight, tenants));
        let wants = Wants { epoch: state.epoch, limit: state.limit, wanted, waiting: waiting.collect(), unused };
        let (lane, quota) = (self.clone(), quota.clone());
        tokio::spawn(async move {
            let asked = Instant::now();
            let answer = lane.question(&quota, &op, &wants).await;
            lane.hear(answer, asked, wants.epoch, refused);
        });
    }

    async fn question(&self, quota: &Quota, op: &Op, wants: &Wants) -> Option<View> {
        let rules = self.shared.rules.load_full();
        let question = Question {
            replica: quota.replica(),
            limit: wants.limit,
            learn: rules.learn,
            slack: quota.slack(),
            cap: quota.cap(wants.limit),
            wanted: wants.wanted,
            waiting: &wants.waiting,
            unused: &wants.unused,
            retry: &rules.retry,
        };
        quota.take(&self.account, &self.action, op, &question).await
    }

    /// The store has answered, or has not.
    fn hear(self: &Arc<Self>, answer: Option<View>, asked: Instant, epoch: u64, refused: Option<Refused>) {
        let now = Instant::now();
        let mut state = self.lock();
        match answer {
            // Whoever deals out the tokens now knows nothing of it.
            Some(_) if state.epoch != epoch => {}
            Some(view) => {
                let is_slower = state.told(&view, &Clock::new(asked, now, view.now), now);
                if view.new_episode {
                    self.note_pause(&state, refused.and_then(|refused| refused.hint), now);
                }
                if is_slower {
                    self.tell_late(&mut state, now);
                }
            }
            None => {
                if let Tokens::Shared(slots) = &mut state.tokens {
                    slots.unanswered(now + AGAIN);
                }
                if let Some(refused) = refused {
                    // The store does not know of it: at least this replica keeps still.
                    state.throttled(&refused, &self.shared.rules.load().retry, now);
                }
            }
        }
        self.return_unused(&mut state);
        drop(state);
        self.changed.notify_one();
    }

    /// A pause has begun.
    pub(super) fn note_pause(&self, state: &State<K>, hint: Option<Duration>, now: Instant) {
        let [account, action] = self.metrics.labels();
        let pause = state.pause.remaining(now);
        self.shared.metrics.paused(account, action, pause);
        let pace = state.learned.pace(now);
        let (gap, tokens, queued) = (pace.gap, pace.tokens, state.line.len());
        let tenants = tenants_in_words(&state.line, now);
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

// === impl State ===

impl<K: Connector> State<K> {
    /// The store has answered: its pause and its pace are ours. Whether that makes the lane slower than it was forecast.
    fn told(&mut self, view: &View, clock: &Clock, now: Instant) -> bool {
        let Tokens::Shared(slots) = &mut self.tokens else { return false };
        let (open, rate) = (self.pause.open_at(now), slots.rate());
        slots.answered(view, clock, now);
        let is_less = slots.rate() < rate;
        self.pause.told(clock.latest(view.open));
        let (gap, tokens) = view.learned;
        let quiet_from = (view.quiet > 0).then(|| clock.latest(view.quiet));
        self.learned.told(Duration::from_micros(gap), tokens, quiet_from);
        is_less || self.pause.open_at(now) > open
    }
}
