//! How does a lane learn what the store has dealt to it? It asks, one question at a time for slots, and tells at once
//! what became of an attempt where that changes anything for others. Each answer is the lane's whole state.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::flow::queue::Connector;
use crate::flow::queue::lane::{Labels, Lane, State};
use crate::flow::queue::pause::Refused;
use crate::flow::queue::view::tenants_in_words;
use crate::flow::take_token::Tokens;
use crate::flow::take_token::script::{Clock, Dated, How, Op, Question, View};
use crate::quota::Quota;

/// How long after an unanswered question the store is asked again, if it is not known to be away by then.
const AGAIN: Duration = Duration::from_millis(50);

// === impl Lane ===

impl<K: Connector> Lane<K> {
    /// Asks the store for slots, unless that is under way. Whatever it answers wakes the worker.
    pub(super) fn ask(self: &Arc<Self>, state: &mut State<K>, quota: &Arc<Quota>) {
        let Tokens::Shared(slots) = &mut state.tokens else { return };
        let (wanted, unused) = slots.ask(state.line.len());
        tokio::spawn(self.clone().tell(quota.clone(), Op::Take, (wanted, state.line.weight(), unused), None));
    }

    /// CAMS refused an attempt: the lane pauses on all replicas.
    pub(super) fn tell_throttled(
        self: &Arc<Self>,
        state: &mut State<K>,
        quota: &Arc<Quota>,
        slot: Dated,
        refused: Refused,
    ) {
        let Tokens::Shared(slots) = &mut state.tokens else { return };
        slots.void();
        let (wanted, unused) = slots.ask(state.line.len());
        let op = Op::Throttled { at: slot.at, hint: refused.hint, random: state.random.f64() };
        tokio::spawn(self.clone().tell(quota.clone(), op, (wanted, state.line.weight(), unused), Some(refused)));
    }

    /// An attempt has another end, which the store must know of: it was the probe, or a trouble is over.
    pub(super) fn tell_ended(self: &Arc<Self>, state: &mut State<K>, quota: &Arc<Quota>, slot: Dated, how: How) {
        let Tokens::Shared(slots) = &mut state.tokens else { return };
        let is_news = slot.probe || (how == How::Answered && slots.is_troubled());
        if !is_news {
            return;
        }
        let (wanted, unused) = slots.ask(state.line.len());
        let op = Op::Ended { slot, how };
        tokio::spawn(self.clone().tell(quota.clone(), op, (wanted, state.line.weight(), unused), None));
    }

    async fn tell(
        self: Arc<Self>,
        quota: Arc<Quota>,
        op: Op,
        (wanted, weight, unused): (usize, u32, Vec<Dated>),
        refused: Option<Refused>,
    ) {
        let question = Question {
            replica: quota.replica(),
            limit: self.limit,
            learn: self.shared.learn,
            slack: quota.slack(),
            cap: quota.cap(self.limit),
            wanted,
            weight,
            unused: &unused,
            retry: &self.shared.retry,
        };
        let asked = Instant::now();
        let (account, action) = (&self.labels.account, &self.labels.action);
        let answer = quota.take(account, action, &op, &question).await;
        let now = Instant::now();
        let mut state = self.lock();
        match answer {
            Some(view) => {
                state.told(&view, &Clock::new(asked, now, view.now), now);
                if view.new_episode {
                    self.log_pause(&state, refused.and_then(|refused| refused.hint), now);
                }
                self.tell_late(&mut state, now);
            }
            None => {
                if let Tokens::Shared(slots) = &mut state.tokens {
                    slots.unanswered(now + AGAIN);
                }
                if let Some(refused) = refused {
                    // The store does not know of it: at least this replica keeps still.
                    state.throttled(&refused, &self.shared.retry, now);
                }
            }
        }
        let nobody_waits = state.line.len() == 0;
        if let Tokens::Shared(slots) = &state.tokens
            && nobody_waits
            && slots.has_unused()
        {
            self.ask(&mut state, &quota);
        }
        drop(state);
        self.changed.notify_one();
    }

    pub(super) fn log_pause(&self, state: &State<K>, hint: Option<Duration>, now: Instant) {
        let Labels { account, action } = &self.labels;
        let pause = state.pause.remaining(now);
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
    /// The store has answered: its pause and its pace are ours.
    fn told(&mut self, view: &View, clock: &Clock, now: Instant) {
        let Tokens::Shared(slots) = &mut self.tokens else { return };
        slots.answered(view, clock, now);
        self.pause.told(clock.latest(view.open));
        let (gap, tokens) = view.learned;
        let quiet_from = (view.quiet > 0).then(|| clock.latest(view.quiet));
        self.learned.told(Duration::from_micros(gap), tokens, quiet_from);
    }
}
