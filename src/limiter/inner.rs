//! The state that all lanes share.

use std::sync::Arc;

use arc_swap::ArcSwap;
use dashmap::DashMap;
use tokio::time::Instant;

use crate::config::Mode;
use crate::limiter::Connector;
use crate::limiter::drain::DrainDeadlines;
use crate::limiter::routes::Routes;
use crate::limiter::rules::Rules;
use crate::limiter::shared::Quota;
use crate::observe::metrics::Metrics;
use crate::primitives::byte_budget::ByteBudget;
use crate::primitives::id::{AccountId, ClientId};

/// The state that all lanes share.
pub(super) struct LimiterInner<K: Connector> {
    pub(super) mode: Mode,
    /// The source of each account's connections.
    pub(super) routes: ArcSwap<Routes<K>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) rules: ArcSwap<Rules>,
    /// Set where replicas share the quota.
    pub(super) quota: Option<Arc<Quota>>,
    /// When the process started. Tokens count as used at that time.
    pub(super) started: Instant,
    /// Bytes of the bodies of all calls in progress.
    pub(super) budget: Arc<ByteBudget>,
    /// The same per client. A client may use at most half of the total.
    pub(super) client_budgets: DashMap<(AccountId, ClientId), Arc<ByteBudget>>,
    pub(super) drain_by: DrainDeadlines,
}

// === impl LimiterInner ===

impl<K: Connector> LimiterInner<K> {
    /// The deadline for grants of limited actions, if a drain has begun.
    pub(super) fn drain_by(&self) -> Option<Instant> {
        self.drain_by.limited()
    }
}
