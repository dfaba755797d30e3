//! Determines the operation of a call and its limit, and checks the caller's permission. Permission
//! is denied by default: a client may call only the actions of its entry, for the sub-customers of
//! its entry.

use hyper::header::HeaderMap;

use crate::call::hold::hold;
use crate::call::hold::margin::Margins;
use crate::call::identify::{Caller, Verified};
use crate::config::{Actions, Config, Tenant};
use crate::error::{Kind, Refusal};
use crate::operation::Operation;
use crate::primitives::id::TenantId;

/// Callers choose these names, and a lane keeps them while calls are queued.
const MAX_TENANT: usize = 64;

/// Checks the caller's permission and builds the operation. `headers` are those of the request.
pub(crate) fn classify(
    caller: &Caller,
    headers: &HeaderMap,
    config: &Config,
    margins: &Margins,
) -> Result<Operation, Refusal> {
    if let Caller::Verified(call) = caller {
        authorize(call)?;
    }
    let client_config = caller.client_config();
    let tenant = match &config.queue.tenant {
        Tenant::CustSpaceId => caller.params().get("CustSpaceId"),
        Tenant::None => None,
        Tenant::Header(name) => headers.get(name).and_then(|value| value.to_str().ok()),
    };
    let tenant = match tenant.unwrap_or_default() {
        "" => TenantId::none(),
        tenant => TenantId::new(first_chars(tenant, MAX_TENANT)),
    };
    let hold = hold(headers, client_config, &config.queue)?;
    // The names of limited actions are shared by all their calls.
    let (action, limit) = match config.limits.get_key_value(caller.action()) {
        Some((action, limit)) => (action.clone(), Some(*limit)),
        None => (caller.action().clone(), None),
    };
    let mut operation = Operation {
        account: caller.account().clone(),
        known: caller.is_known(),
        client: caller.client(),
        weight: client_config.map_or(1, |client| client.weight.get()),
        tenant,
        action,
        limit,
        hold,
        wait: hold,
    };
    operation.wait = margins.wait(&operation, hold);
    if let Caller::Relayed(call) = caller {
        operation.wait = operation.wait.min(call.fresh_for());
    }
    Ok(operation)
}

fn first_chars(text: &str, count: usize) -> &str {
    let end = text.char_indices().nth(count);
    end.map_or(text, |(end, _)| &text[..end])
}

/// Checks whether the client may make this call. Checked again before the call is sent if the
/// configuration changed.
pub(crate) fn authorize(call: &Verified) -> Result<(), Refusal> {
    let Some(client) = call.client_config() else {
        return Ok(());
    };
    if client.disabled {
        return Err(forbidden(
            "This client is disabled in Flowgate's configuration.",
        ));
    }
    let action = call.action();
    let is_listed = match &client.actions {
        Actions::All => true,
        Actions::Listed(actions) => actions.contains(action),
    };
    if !is_listed {
        return Err(forbidden(format!(
            "This client may not call {action}: its `actions` in Flowgate's configuration do not \
             list it."
        )));
    }
    if !client.cust_space_ids.is_empty() && !is_own_space(call, &client.cust_space_ids) {
        return Err(forbidden(
            "This client must send one of its configured CustSpaceIds as a parameter, and no \
             other id of a sub-customer and no JSON body.",
        ));
    }
    Ok(())
}

#[cold]
fn forbidden(message: impl Into<String>) -> Refusal {
    Refusal::new(Kind::Forbidden, message)
}

/// Whether the call names one of these sub-customers, and no sub-customer by another name or in
/// another place.
fn is_own_space(call: &Verified, ids: &[String]) -> bool {
    let params = call.params();
    let is_listed = params
        .get("CustSpaceId")
        .is_some_and(|id| ids.iter().any(|own| own == id));
    let names_other = params.iter().any(|(name, _)| is_alias_of_space(name));
    is_listed && call.json().is_none() && !names_other
}

/// Whether a parameter other than `CustSpaceId` could name a sub-customer.
fn is_alias_of_space(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or_default();
    let names_space = ["CustSpaceId", "CustWabaId", "IsvCode"]
        .iter()
        .any(|alias| alias.eq_ignore_ascii_case(stem));
    names_space && name != "CustSpaceId"
}
