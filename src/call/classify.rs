//! Which operation is it, may this caller do it, and is it limited? Permission is denied by default: a client may call
//! what its entry lists, for the sub-customers that it lists. When the call's turn comes is the queue's question.

use std::sync::LazyLock;
use std::time::Duration;

use hyper::header::HeaderMap;

use crate::acs::limits;
use crate::call::hold::hold;
use crate::call::hold::margin::Margins;
use crate::call::identify::{Caller, Verified};
use crate::config::{Actions, Config, Limit, Tenant};
use crate::error::{Kind, Refusal};
use crate::primitives::id::{AccountId, ActionName, ClientId, TenantId};

/// Names are the caller's to invent, and a lane keeps them while calls wait.
const MAX_TENANT: usize = 64;

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

/// Checks the caller's permission and looks up what the configuration says of its call; `headers` are the request's.
pub(crate) fn classify(
    caller: &Caller,
    headers: &HeaderMap,
    config: &Config,
    margins: &Margins,
) -> Result<Operation, Refusal> {
    if let Caller::Verified(call) = caller {
        authorize(call)?;
    }
    let settings = caller.settings();
    let tenant = match &config.queue.tenant {
        Tenant::CustSpaceId => caller.params().get("CustSpaceId"),
        Tenant::None => None,
        Tenant::Header(name) => headers.get(name).and_then(|value| value.to_str().ok()),
    };
    let tenant = tenant.unwrap_or_default();
    let hold = hold(headers, settings, &config.queue)?;
    let mut operation = Operation {
        account: caller.account().clone(),
        known: caller.is_known(),
        client: caller.client(),
        weight: settings.map_or(1, |client| client.weight.get()),
        tenant: TenantId::new(tenant.chars().take(MAX_TENANT).collect::<String>()),
        action: caller.action().clone(),
        limit: config.limits.get(caller.action()).copied(),
        hold,
        wait: hold,
    };
    operation.wait = margins.wait(&operation, hold);
    if let Caller::Relayed(call) = caller {
        operation.wait = operation.wait.min(call.fresh_for());
    }
    Ok(operation)
}

/// Whether the client may call what it calls; asked again before a call is sent when the configuration has changed.
pub(crate) fn authorize(call: &Verified) -> Result<(), Refusal> {
    let Some(client) = call.settings() else {
        return Ok(());
    };
    let forbidden = |message: String| Err(Refusal::new(Kind::Forbidden, message));
    if client.disabled {
        return forbidden("this client is disabled".into());
    }
    let action = call.action();
    let is_listed = match &client.actions {
        Actions::All => true,
        Actions::Listed(actions) => actions.contains(action),
    };
    if !is_listed {
        return forbidden(format!("this client may not call {action}"));
    }
    match client.cust_space_ids.is_empty() || is_own_space(call, &client.cust_space_ids) {
        true => Ok(()),
        false => forbidden(
            "this client must name one of its own CustSpaceIds, as a parameter, and no other"
                .into(),
        ),
    }
}

/// Whether the call names one of these sub-customers and none by another name or in another place.
fn is_own_space(call: &Verified, ids: &[String]) -> bool {
    let names_other = |name: &str| {
        let stem = name.split('.').next().unwrap_or_default();
        let is_alias = ["CustSpaceId", "CustWabaId", "IsvCode"]
            .iter()
            .any(|alias| alias.eq_ignore_ascii_case(stem));
        is_alias && name != "CustSpaceId"
    };
    let is_listed = call
        .params()
        .get("CustSpaceId")
        .is_some_and(|id| ids.iter().any(|own| own == id));
    is_listed && call.json().is_none() && !call.params().iter().any(|(name, _)| names_other(name))
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
