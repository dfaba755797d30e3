//! A permitted call: its action, caller and account. The limiter, the record of a call and its
//! steps share it.

use std::sync::LazyLock;
use std::time::Duration;

use crate::acs::limits;
use crate::config::Limit;
use crate::primitives::id::{AccountId, ActionName, ClientId, TenantId};

/// The labels of accounts and actions without a label of their own.
pub(crate) const UNKNOWN_ACCOUNT: &str = "unknown";
pub(crate) const OTHER_ACTION: &str = "other";

/// A permitted call, as seen by the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Operation {
    /// The account whose quota it uses.
    pub(crate) account: AccountId,
    /// Whether the account is configured.
    pub(crate) known: bool,
    /// The caller.
    pub(crate) client: ClientId,
    /// The client's weight among the account's clients.
    pub(crate) weight: u32,
    /// The tenant within the client's calls, by default the sub-customer; may be empty.
    pub(crate) tenant: TenantId,
    /// The called action.
    pub(crate) action: ActionName,
    /// The action's limit, if it has one.
    pub(crate) limit: Option<Limit>,
    /// How long the call may be kept, including the time for the answer.
    pub(crate) hold: Duration,
    /// How much of the hold it may spend in the queue.
    pub(crate) wait: Duration,
}

// === impl Operation ===

impl Operation {
    /// The labels of account and action. Cloning a name does not copy its text.
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

    /// The account as a metric label. All keys that are not configured share one label.
    pub(crate) fn account_label(&self) -> &str {
        if self.known {
            self.account.as_str()
        } else {
            UNKNOWN_ACCOUNT
        }
    }

    /// The action as a metric label. All actions without a configured or documented limit share one
    /// label.
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
