//! What does the configuration say of queues? It may say otherwise when it is read anew, so lanes look here each time.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use tokio::time::Instant;

use crate::config::{self, Config, Limit};
use crate::primitives::id::ActionName;

/// What holds for all lanes until the next reload.
pub(super) struct Rules {
    /// By action. A lane whose limit has gone keeps to the one that it had.
    pub(super) limits: BTreeMap<ActionName, Limit>,
    pub(super) bounds: config::Queue,
    pub(super) retry: config::Retry,
    pub(super) learn: config::Learn,
    /// Since when these limits hold for these accounts. What a new lane has to do with was sent by another one before, or
    /// without any, so its tokens count as just used then.
    pub(super) since: Instant,
    /// Whose quota which key spends, in short.
    keys: u64,
}

// === impl Rules ===

impl Rules {
    pub(super) fn new(config: &Config, since: Instant) -> Self {
        let (bounds, limits) = (config.queue.clone(), config.limits.clone());
        Self {
            limits,
            bounds,
            retry: config.retry,
            learn: config.learn,
            since,
            keys: keys(config),
        }
    }

    /// Those that follow these `now`.
    pub(super) fn then(&self, config: &Config, now: Instant) -> Self {
        let mut next = Self::new(config, now);
        if (next.keys, &next.limits) == (self.keys, &self.limits) {
            next.since = self.since;
        }
        next
    }
}

/// Changes with the accounts, with the keys that spend their quota, and with the clients that do. Temporary keys come and
/// go, and their account stays.
fn keys(config: &Config) -> u64 {
    let mut hasher = DefaultHasher::new();
    for account in &config.accounts {
        let lasting = account
            .credentials
            .as_ref()
            .filter(|credentials| credentials.security_token.is_none());
        (
            &account.id,
            lasting.map(|credentials| &credentials.access_key_id),
            &account.aliases,
        )
            .hash(&mut hasher);
    }
    config.accounts.len().hash(&mut hasher);
    config
        .clients
        .iter()
        .for_each(|client| (&client.id, &client.account).hash(&mut hasher));
    hasher.finish()
}
