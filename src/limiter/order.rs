//! What may an operator order? That a lane pauses, that it goes on, and that everybody who waits in it is told to come
//! back. Lanes are named by their labels, as operators see them. An order is this process's own, also where replicas share
//! the quota.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Kind, Refusal};
use crate::flow::classify::Operation;
use crate::id::{AccountId, ActionName, ClientId, TenantId};
use crate::limiter::lane::{Lane, State, advice};
use crate::limiter::{Connector, Queue};

/// An order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Nobody is sent for so long, or until the lane is resumed.
    Pause(Option<Duration>),
    /// An operator's pause is over.
    Resume,
    /// Whoever waits is answered now.
    Flush,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Obeyed {
    /// Calls that were told to come back.
    pub(crate) told: usize,
    /// Calls that wait now.
    pub(crate) queued: usize,
}

// === impl Queue ===

impl<K: Connector> Queue<K> {
    /// Gives the order to all lanes of these labels. A limited action of a configured account has one as soon as it is
    /// named, so that it can be paused before anybody calls. None: there is no such lane.
    pub(crate) fn order(&self, account: &str, action: &str, is_configured: bool, order: Order) -> Option<Obeyed> {
        let is_named = |lane: &Arc<Lane<K>>| lane.metrics.labels() == [account, action];
        let mut lanes: Vec<_> = self.all().into_iter().filter(is_named).collect();
        if lanes.is_empty() && is_configured {
            lanes.push(self.new_lane(account, action)?);
        }
        let obeyed = lanes.iter().map(|lane| lane.order(order));
        obeyed.reduce(|a, b| Obeyed { told: a.told + b.told, queued: a.queued + b.queued })
    }

    /// The lane that such a call would have; none if the action has no limit.
    fn new_lane(&self, account: &str, action: &str) -> Option<Arc<Lane<K>>> {
        let limit = self.shared.rules.load().limits.get(action).copied()?;
        Some(self.lane(&Operation {
            account: AccountId::new(account),
            known: true,
            client: ClientId::new(""),
            weight: 1,
            tenant: TenantId::new(""),
            action: ActionName::new(action),
            limit: Some(limit),
            hold: Duration::ZERO,
            wait: Duration::ZERO,
        }))
    }
}

// === impl Lane ===

impl<K: Connector> Lane<K> {
    fn order(&self, order: Order) -> Obeyed {
        let now = Instant::now();
        let mut state = self.lock();
        let before = state.line.len();
        match order {
            Order::Pause(time) => {
                state.pause.order(time, now);
                self.tell_late(&mut state, now);
            }
            Order::Resume => state.pause.resume(),
            Order::Flush => self.flush(&mut state, now),
        }
        let queued = state.line.len();
        drop(state);
        self.changed.notify_one();
        Obeyed { told: before - queued, queued }
    }

    fn flush(&self, state: &mut State<K>, now: Instant) {
        while let Some(queued) = state.line.pop() {
            let message = "The system is under flow control: an operator has flushed the queue. CAMS has done nothing.";
            let refusal = Refusal::after(Kind::Flushed, advice(state, 0, now), message);
            // Whoever has just gone does not need it.
            drop(queued.reply.send(Err(self.advised(state, refusal, now))));
        }
    }
}
