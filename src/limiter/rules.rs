//! The configuration that applies to the lanes. It may change with a reload, so lanes read it here
//! each time.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use tokio::time::Instant;

use crate::config::{self, AccountCredentials, Config, Limit};
use crate::primitives::id::ActionName;

/// The settings of all lanes until the next reload.
pub(super) struct Rules {
    /// By action. A lane whose limit was removed keeps its last one.
    pub(super) limits: BTreeMap<ActionName, Limit>,
    pub(super) bounds: config::Queue,
    pub(super) retry: config::Retry,
    pub(super) learn: config::Learn,
    /// Since when these limits apply to these accounts. Before that another lane, or no lane, may
    /// have sent the calls of a new lane, so its tokens count as used at this time.
    pub(super) since: Instant,
    /// A hash of the assignment of keys to quotas.
    keys: u64,
}

// === impl Rules ===

impl Rules {
    pub(super) fn new(config: &Config, since: Instant) -> Self {
        Self {
            limits: config.limits.clone(),
            bounds: config.queue.clone(),
            retry: config.retry,
            learn: config.learn,
            since,
            keys: hash_keys(config),
        }
    }

    /// The rules after a reload at `now`.
    pub(super) fn reloaded(&self, config: &Config, now: Instant) -> Self {
        let mut next = Self::new(config, now);
        if next.keys == self.keys && next.limits == self.limits {
            next.since = self.since;
        }
        next
    }
}

/// A hash over the accounts, the keys that use their quota, and the clients. Temporary keys are
/// left out: they change often, and their account stays the same.
fn hash_keys(config: &Config) -> u64 {
    let mut hasher = DefaultHasher::new();
    for account in &config.accounts {
        let permanent = account
            .credentials
            .as_ref()
            .and_then(AccountCredentials::loaded)
            .filter(|credentials| credentials.security_token.is_none());
        account.id.hash(&mut hasher);
        permanent
            .map(|credentials| &credentials.access_key_id)
            .hash(&mut hasher);
        account.aliases.hash(&mut hasher);
    }
    config.accounts.len().hash(&mut hasher);
    for client in &config.clients {
        client.id.hash(&mut hasher);
        client.account.hash(&mut hasher);
    }
    hasher.finish()
}
