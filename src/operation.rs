//! What is called, by whom and on whose quota? One value that the limiter, the records of a call and its steps share.

use std::sync::LazyLock;
use std::time::Duration;

use crate::acs::limits;
use crate::config::Limit;
use crate::primitives::id::{AccountId, ActionName, ClientId, TenantId};

/// The labels of what has none of its own.
pub(crate) const UNKNOWN_ACCOUNT: &str = "unknown";
pub(crate) const OTHER_ACTION: &str = "other";

/// A permitted call, as the queue sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Operation {
    /// Whose quota it spends.
    pub(crate) account: AccountId,
    /// Whether the configuration names the account.
    pub(crate) known: bool,
    /// Who calls.
    pub(crate) client: ClientId,
    /// The client's share among the account's clients.
    pub(crate) weight: u32,
    /// For whom inside the client's share, by default which sub-customer; empty if for none.
    pub(crate) tenant: TenantId,
    /// What is called.
    pub(crate) action: ActionName,
    /// The action's limit, if it has one.
    pub(crate) limit: Option<Limit>,
    /// How long the call may be kept, its answer included.
    pub(crate) hold: Duration,
    /// How long of that it may wait for its turn.
    pub(crate) wait: Duration,
}

// === impl Operation ===

impl Operation {
    /// Both labels as names, of which the usual ones need not be copied.
    pub(crate) fn labels(&self) -> (AccountId, ActionName) {
        static UNKNOWN: LazyLock<AccountId> = LazyLock::new(|| AccountId::new(UNKNOWN_ACCOUNT));
        static OTHER: LazyLock<ActionName> = LazyLock::new(|| ActionName::new(OTHER_ACTION));
        let account = if self.known { &self.account } else { &*UNKNOWN };
        let action = if self.has_action_label() {
            &self.action
        } else {
            &*OTHER
        };
        (account.clone(), action.clone())
    }

    /// The account as a metric label: all keys that the configuration does not name are one.
    pub(crate) fn account_label(&self) -> &str {
        if self.known {
            self.account.as_str()
        } else {
            UNKNOWN_ACCOUNT
        }
    }

    /// The action as a metric label: those without a limit, set or documented, are one.
    pub(crate) fn action_label(&self) -> &str {
        if self.has_action_label() {
            self.action.as_str()
        } else {
            OTHER_ACTION
        }
    }

    /// Whether the action has a label of its own.
    pub(crate) fn has_action_label(&self) -> bool {
        self.limit.is_some() || limits::is_documented(self.action.as_str())
    }
}
