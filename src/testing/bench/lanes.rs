//! The cost of queue and tokens without HTTP: lanes with a connector that always has a connection,
//! and an endpoint that answers at once.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Limit;
use crate::limiter::{Connector, Limiter};
use crate::observe::metrics::Metrics;
use crate::operation::Operation;
use crate::primitives::id::{AccountId, ActionName, ClientId, TenantId};

/// A connector whose connection is always ready.
struct Open;

/// Active lanes of 5/s each.
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

    fn is_usable(&self, (): &()) -> bool {
        true
    }

    fn down(&self) -> Option<String> {
        None
    }
}

fn operation(lane: usize) -> Operation {
    let limit = Limit {
        count: NonZeroU32::MIN.saturating_add(4),
        window: Duration::from_secs(1),
    };
    let hold = Duration::from_secs(30);
    Operation {
        account: AccountId::new(format!("account-{lane}")),
        known: false,
        client: ClientId::unverified(),
        weight: 1,
        tenant: TenantId::new(""),
        action: ActionName::new("CreateFlow"),
        limit: Some(limit),
        hold,
        wait: hold,
    }
}

// === impl Lanes ===

impl Lanes {
    /// This number of lanes, with their first tokens available.
    pub fn new(lanes: usize) -> Self {
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

    /// Runs one call of a lane from its arrival to its answer. Returns false if it was refused.
    pub async fn call(&self, lane: usize) -> bool {
        let Ok(mut call) = self.limiter.arrive(&self.operations[lane], 256) else {
            return false;
        };
        let Ok(permit) = call.permit().await else {
            return false;
        };
        permit
            .spend()
            .expect("tokens in memory do not lapse")
            .1
            .answered();
        true
    }
}
