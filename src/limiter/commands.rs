//! The commands of operators to a lane: pause it, resume it, or refuse all its queued calls.
//! Operators name lanes by their labels. A command applies to this process only, also where
//! replicas share the quota.

use std::sync::Arc;
use std::time::Duration;

use crate::limiter::handle::LaneHandle;
use crate::limiter::lane::Event;
use crate::limiter::{Connector, Limiter};
use crate::operation::Operation;
use crate::primitives::id::{AccountId, ActionName, ClientId, TenantId};

/// An operator's command for a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Send nothing for this long, or until `Resume`.
    Pause(Option<Duration>),
    /// End the operator's pause.
    Resume,
    /// Refuse every queued call now.
    Flush,
}

/// The effect of a command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CommandResult {
    /// Calls that were refused.
    pub(crate) refused: usize,
    /// Calls that are still queued.
    pub(crate) queued: usize,
}

// === impl Limiter ===

impl<K: Connector> Limiter<K> {
    /// Applies a command to all lanes with these labels. If `is_configured`, a missing lane is
    /// created, so that it can be paused before its first call. Returns none if there is no such
    /// lane.
    pub(crate) async fn handle_command(
        &self,
        account: &str,
        action: &str,
        is_configured: bool,
        command: Command,
    ) -> Option<CommandResult> {
        let mut lanes = self.all();
        lanes.retain(|lane| lane.metrics.labels() == [account, action]);
        if lanes.is_empty() && is_configured {
            lanes.push(self.new_lane(account, action)?);
        }
        if lanes.is_empty() {
            return None;
        }
        let mut total = CommandResult::default();
        for lane in lanes {
            let result = lane.handle_command(command).await;
            total.refused += result.refused;
            total.queued += result.queued;
        }
        Some(total)
    }

    /// Creates the lane of this account and action; none if the action has no limit.
    fn new_lane(&self, account: &str, action: &str) -> Option<Arc<LaneHandle<K>>> {
        let limit = self.inner.rules.load().limits.get(action).copied()?;
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
    async fn handle_command(self: &Arc<Self>, command: Command) -> CommandResult {
        let before = self.queued();
        self.event(match command {
            Command::Pause(time) => Event::Paused(time),
            Command::Resume => Event::Resumed,
            Command::Flush => Event::Flushed,
        });
        // The worker refuses the calls that became late, one piece of the queue at a time.
        while self.is_reviewing() {
            tokio::task::yield_now().await;
        }
        let queued = self.queued();
        CommandResult {
            refused: before.saturating_sub(queued),
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
