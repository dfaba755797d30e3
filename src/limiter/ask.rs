//! How does a lane learn what the store has dealt to it? It asks, one question at a time for slots, and tells at once
//! what became of an attempt where that changes anything for others. Each answer is the lane's whole state.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Limit;
use crate::flow::retry::backoff;
use crate::limiter::Connector;
use crate::limiter::lane::{Lane, State};
use crate::limiter::pace::Pace;
use crate::limiter::pause::Refused;
use crate::limiter::shared::Quota;
use crate::limiter::shared::protocol::{Answer, Dated, How, NewPace, Op, Pauses, Question, View, Waiting};
use crate::limiter::shared::slots::{Ask, Worth};
use crate::limiter::source::Tokens;
use crate::limiter::view::tenants_in_words;

/// How long after an unanswered question the store is asked again, if it is not known to be away by then.
const AGAIN: Duration = Duration::from_millis(50);

/// How long the store keeps what was learned.
const LEARNED_LIVES: Duration = Duration::from_secs(300);

/// So many of the clients that wait are told to the store; an account seldom has more.
const NAMED: usize = 64;

/// What the lane wants of the store.
struct Wants {
    /// Of the source that asks.
    epoch: u64,
    limit: Limit,
    waiting: Vec<Waiting>,
    ask: Ask,
    pace: Pace,
    version: u64,
    /// What was learned and the store does not know yet.
    learned: Option<String>,
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
        let retry = self.shared.rules.load().retry;
        let hint = refused.hint.map(|hint| hint.min(retry.max_pause));
        let random = state.random.f64();
        let new = hint.unwrap_or_else(|| backoff::full_jitter(&retry, slots.level() + 1, random));
        let op = Op::Throttled { at: slot.at, pauses: Some(Pauses { new, same: hint }) };
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
        let now = Instant::now();
        let learned = state.unsaved.take_if(|_| !state.saving);
        let Tokens::Shared(slots) = &mut state.tokens else { return };
        let learned = learned.map(|()| state.learned.text(state.limit, |at| slots.clock().at_most(at, now)));
        state.saving |= learned.is_some();
        let ask = slots.ask(state.line.len(), now);
        let waiting =
            state.line.clients().take(NAMED).map(|(client, weight, tenants)| Waiting::new(client, weight, tenants));
        let wants = Wants {
            epoch: state.epoch,
            limit: state.limit,
            waiting: waiting.collect(),
            ask,
            pace: state.learned.pace(now),
            version: state.version,
            learned,
        };
        let (lane, quota) = (self.clone(), quota.clone());
        tokio::spawn(async move {
            let answer = lane.question(&quota, &op, &wants).await;
            lane.hear(&quota, answer, &wants, refused);
        });
    }

    async fn question(&self, quota: &Quota, op: &Op, wants: &Wants) -> Option<Answer> {
        let rules = self.shared.rules.load_full();
        let question = Question {
            replica: quota.replica(),
            limit: wants.limit,
            tokens: wants.pace.tokens,
            window: wants.limit.window,
            gap: wants.pace.gap,
            slack: wants.ask.slack,
            cap: quota.cap(wants.limit),
            version: wants.version,
            pace: wants.learned.as_ref().map(|text| NewPace { text, lives: LEARNED_LIVES }),
            wanted: wants.ask.wanted,
            waiting: &wants.waiting,
            unused: &wants.ask.unused,
            late: &wants.ask.late,
            max_pause: rules.retry.max_pause,
        };
        quota.take(&self.account, &self.action, op, &question).await
    }

    /// The store has answered, or has not.
    fn hear(self: &Arc<Self>, quota: &Arc<Quota>, answer: Option<Answer>, wants: &Wants, refused: Option<Refused>) {
        let now = Instant::now();
        let mut state = self.lock();
        if state.epoch != wants.epoch {
            // The present source knows nothing of it.
            return;
        }
        match answer {
            Some(answer) => {
                let (is_slower, worth) = state.told(&answer, wants, now);
                if answer.view.new_episode {
                    let open = state.pause.open_at(now);
                    state.learned.episode(now, open);
                    self.note_pause(&state, refused.and_then(|refused| refused.hint), now);
                } else if refused.is_some() {
                    state.learned.refused_too();
                }
                if refused.is_some() {
                    state.unsaved = Some(());
                    self.ask(&mut state, quota);
                }
                if is_slower {
                    self.tell_late(&mut state, now);
                }
                if worth == Worth::TooFar {
                    quota.is_too_far();
                }
            }
            None => {
                if wants.learned.is_some() {
                    (state.saving, state.unsaved) = (false, Some(()));
                }
                if let Tokens::Shared(slots) = &mut state.tokens {
                    slots.unanswered(wants.ask.number, now + AGAIN);
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
    fn told(&mut self, answer: &Answer, wants: &Wants, now: Instant) -> (bool, Worth) {
        let View { version, stale, open, ref pace, .. } = answer.view;
        let before = self.pause.open_at(now);
        let Tokens::Shared(slots) = &mut self.tokens else { return (false, Worth::Fine) };
        let rate = slots.rate();
        let worth = slots.answered(wants.ask.number, answer, now);
        let is_less = slots.rate() < rate;
        let saved = wants.learned.is_some() && !stale;
        if wants.learned.is_some() {
            self.saving = false;
        }
        if version != self.version && !saved {
            self.learned.read(pace, self.limit, |at| slots.clock().latest(at, now));
            self.unsaved = None;
        }
        self.version = version;
        self.pause.told(slots.clock().latest(open, now));
        (is_less || self.pause.open_at(now) > before, worth)
    }
}
