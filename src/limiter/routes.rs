//! The connectors of the accounts: the default one, except for accounts with one of their own. A
//! lane looks it up when it is created and after a reload, not for each call.

use std::collections::HashMap;
use std::sync::Arc;

use crate::limiter::Connector;
use crate::primitives::id::AccountId;

/// The connector of each account.
pub(crate) struct Routes<K: Connector> {
    default: Arc<K>,
    own: HashMap<AccountId, Arc<K>>,
}

// === impl Routes ===

impl<K: Connector> Routes<K> {
    /// `own` are the accounts that do not use the default connector.
    pub(crate) fn new(default: Arc<K>, own: HashMap<AccountId, Arc<K>>) -> Self {
        Self { default, own }
    }

    /// The connector of an account.
    pub(super) fn of(&self, account: &AccountId) -> &Arc<K> {
        self.own.get(account).unwrap_or(&self.default)
    }
}

impl<K: Connector> From<Arc<K>> for Routes<K> {
    fn from(default: Arc<K>) -> Self {
        Self::new(default, HashMap::new())
    }
}
