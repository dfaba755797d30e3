//! What becomes of a token from its grant to its end? It is used or given back, and what came of its attempt decides on
//! the pause, whoever deals out the tokens: this process or the store.

use std::sync::Arc;

use tokio::time::Instant;

use crate::limiter::Connector;
use crate::limiter::lane::{Lane, State};
use crate::limiter::permit::Turn;
use crate::limiter::shared::protocol::How;
use crate::limiter::source::{Granted, Spent, Tokens};

/// What a turn on the lane is made of.
pub(super) struct Grant {
    pub(super) token: Granted,
    pub(super) epoch: u64,
    pub(super) at: Instant,
    pub(super) probe: bool,
}

// === impl Lane ===

impl<K: Connector> Lane<K> {
    /// Takes a token for a call that has a connection. One must be free at `now`: a moment later a slot may be too late.
    pub(super) fn grant(self: &Arc<Self>, state: &mut State<K>, connection: K::Connection, now: Instant) -> Turn<K> {
        let token = state.tokens.take(now).expect("a grant is decided on a free token, under the lane's lock");
        self.metrics.granted.inc();
        state.granted += 1;
        let probe = state.pause.granted(now) || matches!(&token, Granted::Slot(slot) if slot.dated.probe);
        let grant = Grant { token, epoch: state.epoch, at: now, probe };
        Turn::limited(connection, self.clone(), grant)
    }

    /// Uses a granted token now; none if it is too late for that.
    pub(super) fn spend(&self, grant: Grant) -> Option<Spent> {
        let now = Instant::now();
        let (spent, is_first) = {
            let mut state = self.lock();
            let is_current = grant.epoch == state.epoch;
            match (grant.token, &mut state.tokens) {
                (Granted::Memory, Tokens::Memory(tokens)) if is_current => {
                    let clock = tokens.spend();
                    let is_first = tokens.next_drip().is_some_and(|first| Arc::ptr_eq(&first, &clock));
                    (Some(Spent::Memory(clock)), is_first)
                }
                (Granted::Slot(slot), Tokens::Shared(slots)) if is_current => {
                    if slots.is_usable(&slot, now) {
                        slots.written(slot, now, now);
                        (Some(Spent::Slot(slot.dated)), false)
                    } else {
                        slots.give_back(slot, now);
                        (None, false)
                    }
                }
                // Whoever deals out the tokens now has not dealt this one.
                _ => (None, true),
            }
        };
        match spent {
            Some(_) => self.metrics.spent.inc(),
            None => self.metrics.returned.inc(),
        }
        // Otherwise the worker, if it waits for a token, already waits for one that is back sooner.
        if is_first || spent.is_none() {
            self.changed.notify_one();
        }
        spent
    }

    /// A granted token was not used.
    pub(super) fn give_back(self: &Arc<Self>, grant: Grant) {
        let mut state = self.lock();
        if grant.epoch == state.epoch {
            match (grant.token, &mut state.tokens) {
                (Granted::Memory, Tokens::Memory(tokens)) => tokens.give_back(),
                (Granted::Slot(slot), Tokens::Shared(slots)) => slots.give_back(slot, Instant::now()),
                _ => {}
            }
            if grant.probe {
                state.pause.probe_unsent();
            }
        }
        self.metrics.returned.inc();
        self.return_unused(&mut state);
        drop(state);
        self.changed.notify_one();
    }

    /// Slots that nobody here can use are another replica's.
    pub(super) fn return_unused(self: &Arc<Self>, state: &mut State<K>) {
        if let (Tokens::Shared(slots), Some(quota)) = (&state.tokens, &self.shared.quota)
            && state.line.len() == 0
            && slots.has_unused()
        {
            self.ask(state, quota);
        }
    }

    /// An attempt has an end that is no refusal.
    pub(super) fn ended(self: &Arc<Self>, granted_at: Instant, (spent, probe): (Spent, bool), how: How) {
        let mut state = self.lock();
        let clock = match spent {
            Spent::Slot(slot) => return self.tell_ended(&mut state, slot, how),
            Spent::Memory(clock) => clock,
        };
        if how == How::Answered {
            state.pause.answered(granted_at);
        }
        if !probe {
            return;
        }
        if how == How::Unsent {
            state.pause.probe_unsent();
        } else {
            state.pause.probe_passed();
            // Those that waited for the probe go now, together. Had its token a head start of one round trip for ever
            // after, it would meet the server's window alone, where jitter cannot average out.
            if let Tokens::Memory(tokens) = &mut state.tokens {
                tokens.restart(&clock);
            }
        }
        self.changed.notify_one();
    }
}
