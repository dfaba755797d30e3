//! What may an operator order? That a lane pauses, that it goes on, and that every call that waits in it is refused. Lanes
//! are named by their labels, as operators see them. An order is this process's own, also where replicas share the quota.

use std::sync::Arc;
use std::time::Duration;

use crate::limiter::handle::LaneHandle;
use crate::limiter::lane::Event;
use crate::limiter::{Connector, Limiter};
use crate::operation::Operation;
use crate::primitives::id::{AccountId, ActionName, ClientId, TenantId};

/// An order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Nothing is sent for this long, or until the lane is resumed.
    Pause(Option<Duration>),
    /// An operator's pause is over.
    Resume,
    /// Every call that waits is refused now.
    Flush,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CommandResult {
    /// Calls that were refused.
    pub(crate) told: usize,
    /// Calls that wait now.
    pub(crate) queued: usize,
}

// === impl Limiter ===

impl<K: Connector> Limiter<K> {
    /// Gives the order to all lanes of these labels. A limited action of a configured account has one as soon as it is
    /// named, so that it can be paused before the first call. None: there is no such lane.
    pub(crate) async fn order(
        &self,
        account: &str,
        action: &str,
        is_configured: bool,
        order: Order,
    ) -> Option<CommandResult> {
        let is_named = |lane: &Arc<LaneHandle<K>>| lane.metrics.labels() == [account, action];
        let mut lanes: Vec<_> = self.all().into_iter().filter(is_named).collect();
        if lanes.is_empty() && is_configured {
            lanes.push(self.new_lane(account, action)?);
        }
        let mut all: Option<CommandResult> = None;
        for lane in lanes {
            let result = lane.order(order).await;
            let before = all.unwrap_or_default();
            all = Some(CommandResult {
                told: before.told + result.told,
                queued: before.queued + result.queued,
            });
        }
        all
    }

    /// The lane that such a call would have; none if the action has no limit.
    fn new_lane(&self, account: &str, action: &str) -> Option<Arc<LaneHandle<K>>> {
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

// === impl LaneHandle ===

impl<K: Connector> LaneHandle<K> {
    async fn order(self: &Arc<Self>, order: Order) -> CommandResult {
        let before = self.queued();
        self.event(match order {
            Order::Pause(time) => Event::Paused(time),
            Order::Resume => Event::Resumed,
            Order::Flush => Event::Flushed,
        });
        // The worker refuses the calls that became late, a piece at a time.
        while self.is_reviewing() {
            tokio::task::yield_now().await;
        }
        let queued = self.queued();
        CommandResult {
            told: before.saturating_sub(queued),
            queued,
        }
    }

    fn queued(self: &Arc<Self>) -> usize {
        self.lock().state.lane.queue().len()
    }

    fn is_reviewing(self: &Arc<Self>) -> bool {
        let locked = self.lock();
        locked.state.has_worker && locked.state.lane.is_reviewing(locked.now)
    }
}
