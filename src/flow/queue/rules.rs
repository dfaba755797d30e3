//! What does the configuration say of queues? It may say otherwise when it is read anew, so lanes look here each time.

use std::collections::BTreeMap;

use crate::config::{self, Config, Limit};
use crate::id::ActionName;

/// What holds for all lanes until the next reload.
pub(super) struct Rules {
    /// By action. A lane whose limit has gone keeps to the one that it had.
    pub(super) limits: BTreeMap<ActionName, Limit>,
    pub(super) bounds: config::Queue,
    pub(super) retry: config::Retry,
    pub(super) learn: config::Learn,
}

// === impl Rules ===

impl Rules {
    pub(super) fn new(config: &Config) -> Self {
        let (bounds, limits) = (config.queue.clone(), config.limits.clone());
        Self { limits, bounds, retry: config.retry, learn: config.learn }
    }
}
