//! One call of Flowgate's own, from the queue to its answer. It is not journalled, since it only
//! reads, and not repeated: a later look is its repetition.

use std::sync::Arc;

use bytes::Bytes;
use hyper::HeaderMap;

use crate::acs::flow_pages::{Next, Walk};
use crate::acs::flows::{self, FlowsError};
use crate::call::attempt::Judged;
use crate::call::classify;
use crate::call::identify::OwnCall;
use crate::call::judge::Verdict;
use crate::call::services::CallServices;
use crate::call::{AcceptedCall, ActiveCall};
use crate::error::{Kind, Refusal};
use crate::idempotency::looks::FlowStatus;
use crate::observe::record::Record;
use crate::primitives::id::AccountId;
use crate::store::Unavailable;

/// Why a look has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum LookError {
    /// Flowgate does not sign for the account any more.
    #[error("Flowgate does not sign for the account")]
    NotManaged,
    /// CAMS throttled the look, or the lane had no room or no time for it.
    #[error("throttled")]
    Throttled,
    /// CAMS does not permit the action to the account's key.
    #[error("CAMS does not permit it: {0}")]
    Forbidden(Box<str>),
    /// CAMS refused the parameters of the look.
    #[error("CAMS refused it: {0}")]
    Refused(Box<str>),
    /// There is no answer, or it cannot be read.
    #[error("{0}")]
    Failed(Box<str>),
}

/// CAMS's codes for an action that the account's RAM user may not call. Each is also a prefix before
/// a dot.
const FORBIDDEN_CODES: [&str; 6] = [
    "AccessDenied",
    "Forbidden",
    "NoPermission",
    "PermissionDeny",
    "Ram",
    "Unauthorized",
];

/// Asks for the next page of a walk.
pub(super) async fn page(
    services: &Arc<CallServices>,
    account: &AccountId,
    walk: &mut Walk,
) -> Result<Next, LookError> {
    let body = match ask(services, account, OwnCall::ListFlow(walk)).await {
        Err(LookError::Refused(_)) if walk.refused() => {
            return Ok(Next::Page);
        }
        asked => asked?,
    };
    Ok(walk.page(flows::read_list(&body)?))
}

/// Asks for the status of a flow.
pub(super) async fn status(
    services: &Arc<CallServices>,
    account: &AccountId,
    space: &str,
    id: &str,
) -> Result<FlowStatus, LookError> {
    let body = ask(services, account, OwnCall::GetFlow { space, id }).await?;
    let detail = flows::read_detail(&body)?;
    if *detail.id != *id {
        return Err(LookError::Failed("GetFlow shows another flow".into()));
    }
    Ok(if &*detail.status == "DRAFT" {
        FlowStatus::Draft
    } else {
        FlowStatus::Other
    })
}

/// Sends a call of Flowgate's own, and returns the body of CAMS's success.
async fn ask(
    services: &Arc<CallServices>,
    account: &AccountId,
    call: OwnCall<'_>,
) -> Result<Bytes, LookError> {
    let accepted = accept(services, account, call)?;
    let request_id = crate::acs::error_body::request_id();
    let mut record = Record::background(services.telemetry.clone(), &request_id);
    let call = ActiveCall::in_background(services, accepted, &mut record, None)?;
    body(*send(services, call).await?)
}

fn accept(
    services: &CallServices,
    account: &AccountId,
    call: OwnCall<'_>,
) -> Result<AcceptedCall, LookError> {
    let config_snapshot = services.current_config.load_full();
    let config = &config_snapshot.config;
    let caller = config_snapshot.directory.own_call(account, call);
    let caller = caller.ok_or(LookError::NotManaged)?;
    let operation = classify::classify(&caller, &HeaderMap::new(), config, &services.margins)?;
    Ok(AcceptedCall {
        operation: Arc::new(operation),
        upstream: config_snapshot.upstreams.get(caller.upstream()).clone(),
        bytes: caller.bytes(),
        generation: config_snapshot.generation,
        call: caller.into_sendable(),
        order: None,
    })
}

/// The steps of a call; see `call.rs`.
async fn send(services: &CallServices, mut call: ActiveCall<'_>) -> Result<Box<Judged>, Refusal> {
    loop {
        let permit = call.permit().await?;
        let Some((permit, sending)) = call.sign(permit)? else {
            continue;
        };
        // A drain waits for it; no caller's connection does.
        let attempted = services
            .attempts
            .track_future(call.attempt(permit, sending))
            .await;
        if let Some(judged) = call.judge(attempted).await {
            return Ok(judged);
        }
    }
}

fn body(judged: Judged) -> Result<Bytes, LookError> {
    let code: Box<str> = judged.verdict.code().into();
    match (&judged.verdict, judged.answer) {
        (Verdict::Ok { .. }, Some(answer)) => Ok(answer.body),
        (Verdict::Throttled { .. }, _) => Err(LookError::Throttled),
        (Verdict::UpstreamError { .. }, _) if is_forbidden(&code) => {
            Err(LookError::Forbidden(code))
        }
        (Verdict::UpstreamError { .. }, Some(answer)) if answer.status.is_client_error() => {
            Err(LookError::Refused(code))
        }
        _ => Err(LookError::Failed(code)),
    }
}

fn is_forbidden(code: &str) -> bool {
    let family = code.split('.').next().unwrap_or_default();
    FORBIDDEN_CODES
        .iter()
        .any(|known| known.eq_ignore_ascii_case(family))
}

// === impl LookError ===

impl LookError {
    /// The label in metrics.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Throttled => "throttled",
            Self::Forbidden(_) | Self::Refused(_) => "refused",
            Self::NotManaged | Self::Failed(_) => "failed",
        }
    }
}

impl From<Refusal> for LookError {
    fn from(refusal: Refusal) -> Self {
        match refusal.kind {
            Kind::WaitTooLong
            | Kind::HoldExpired
            | Kind::QueueFull
            | Kind::Flushed
            | Kind::Draining
            | Kind::StoreUnavailable => Self::Throttled,
            _ => Self::Failed(refusal.message.into()),
        }
    }
}

impl From<Unavailable> for LookError {
    fn from(unavailable: Unavailable) -> Self {
        Self::Failed(unavailable.to_string().into())
    }
}

impl From<FlowsError> for LookError {
    fn from(error: FlowsError) -> Self {
        Self::Failed(error.to_string().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_by_ram_are_told_from_others() {
        for code in [
            "Ram.PermissionDeny",
            "NoPermission",
            "NoPermission.Sub",
            "Forbidden.RAM",
        ] {
            assert!(is_forbidden(code), "{code}");
        }
        for code in ["InvalidParameter", "Ramp", "OK", "Product.Unsubscript"] {
            assert!(!is_forbidden(code), "{code}");
        }
    }
}
