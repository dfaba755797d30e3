//! What do queue and tokens cost alone? All lanes with a connector that always has a connection and an endpoint that
//! answers at once: nothing of HTTP is left.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Limit;
use crate::limiter::{Connector, Limiter};
use crate::observe::metrics::Metrics;
use crate::operation::Operation;
use crate::primitives::id::{AccountId, ActionName, ClientId, TenantId};

/// A connection is always ready.
struct Open;

/// So many active lanes of 5/s each.
pub struct Lanes {
    limiter: Limiter<Open>,
    operations: Vec<Operation>,
}

// === impl Open ===

impl Connector for Open {
    type Connection = ();

    fn try_ready(&self) -> Option<()> {
        Some(())
    }

    async fn ready(&self, _wanted: usize) {}

    fn is_usable((): &()) -> bool {
        true
    }

    fn down(&self) -> Option<String> {
        None
    }
}

// === impl Lanes ===

impl Lanes {
    /// Lanes whose first tokens are free.
    pub fn new(lanes: usize) -> Self {
        let (limit, hold) = (
            Limit {
                count: NonZeroU32::MIN.saturating_add(4),
                window: Duration::from_secs(1),
            },
            Duration::from_secs(30),
        );
        let operation = |lane| Operation {
            account: AccountId::new(format!("account-{lane}")),
            known: false,
            client: ClientId::unverified(),
            weight: 1,
            tenant: TenantId::new(""),
            action: ActionName::new("CreateFlow"),
            limit: Some(limit),
            hold,
            wait: hold,
        };
        let started = Instant::now() - Duration::from_secs(2);
        let limiter = Limiter::new(
            &super::config(),
            Arc::new(Open),
            Arc::new(Metrics::new()),
            None,
            started,
        );
        Self {
            limiter,
            operations: (0..lanes).map(operation).collect(),
        }
    }

    /// One call of a lane from its arrival to its answer; false if it was refused.
    pub async fn call(&self, lane: usize) -> bool {
        let Ok(mut call) = self.limiter.arrive(&self.operations[lane], 256) else {
            return false;
        };
        let Ok(permit) = call.permit().await else {
            return false;
        };
        permit.spend().expect("memory deals for ever").1.answered();
        true
    }
}
