//! Which operation is it, may this caller do it, and is it limited? Permission is denied by default: a client may call
//! what its entry lists, for the sub-customers that it lists. When the call's turn comes is the queue's question.

use hyper::header::HeaderMap;

use crate::call::hold::hold;
use crate::call::hold::margin::Margins;
use crate::call::identify::{Caller, Verified};
use crate::config::{Actions, Config, Tenant};
use crate::error::{Kind, Refusal};
use crate::operation::Operation;
use crate::primitives::id::TenantId;

/// Names are the caller's to invent, and a lane keeps them while calls wait.
const MAX_TENANT: usize = 64;

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
