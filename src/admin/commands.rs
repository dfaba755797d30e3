//! Operator actions: pause a lane, resume it, flush its queue. Each is a POST with a small JSON
//! object and the token. Each action is logged once and counted once.

use std::net::IpAddr;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderMap};
use hyper::{Request, StatusCode};
use serde::Deserialize;
use serde_json::json;

use super::{JSON, Page};
use crate::call::body::{self, Allowance};
use crate::call::services::CallServices;
use crate::config::{Listen, Mode};
use crate::limiter::Command;

/// An operator action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    Pause,
    Resume,
    Flush,
}

/// The request body.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Target {
    account: String,
    action: String,
    seconds: Option<u64>,
}

/// Maximum size of a request body, in bytes.
const MAX_BODY: usize = 4096;
/// Maximum length of a pause with an end, in seconds: one day.
const MAX_PAUSE: u64 = 86_400;

/// The operator action of this path, if it has one.
pub(super) fn known(path: &str) -> Option<Name> {
    match path {
        "/lanes/pause" => Some(Name::Pause),
        "/lanes/resume" => Some(Name::Resume),
        "/lanes/flush" => Some(Name::Flush),
        _ => None,
    }
}

/// Performs the action. The caller has checked that the request is permitted.
pub(super) async fn handle(
    services: &CallServices,
    name: Name,
    request: Request<Incoming>,
    from: Option<IpAddr>,
) -> Page {
    let config = &services.settings.load_full().config;
    let (target, order) = match receive(services, &config.listen, name, request).await {
        Ok(received) => received,
        Err(page) => return page,
    };
    if config.mode == Mode::Observe {
        return Page::refused(
            StatusCode::CONFLICT,
            "Flowgate only observes: no call waits in a lane.\n",
        );
    }
    let Target {
        account,
        action,
        seconds,
    } = &target;
    let is_configured = config
        .accounts
        .iter()
        .any(|known| known.id.as_str() == account);
    let Some(result) = services
        .limiter
        .handle_command(account, action, is_configured, order)
        .await
    else {
        return Page::refused(
            StatusCode::NOT_FOUND,
            "There is no such lane: see the accounts and actions of /lanes.\n",
        );
    };
    let order = name.label();
    let refused = result.refused;
    let queued = result.queued;
    services.metrics.operator_action(order);
    let from = from.map(tracing::field::display);
    tracing::warn!(
        order,
        account,
        action,
        seconds,
        told = refused,
        queued,
        from,
        "operator action on a lane"
    );
    let scope = if services.quota.is_some() {
        "this replica only"
    } else {
        "the whole lane"
    };
    let answer = json!({
        "order": order,
        "account": account,
        "action": action,
        "seconds": seconds,
        "told": refused,
        "queued": queued,
        "scope": scope,
    });
    Page::ok(JSON, answer.to_string())
}

/// Reads the request, or returns the page that refuses it.
async fn receive(
    services: &CallServices,
    listen: &Listen,
    name: Name,
    request: Request<Incoming>,
) -> Result<(Target, Command), Page> {
    if !is_json(request.headers()) {
        return Err(Page::refused(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "An operator action must be application/json.\n",
        ));
    }
    let share = services
        .unverified
        .take(0)
        .expect("a zero-byte reservation cannot fail");
    let allowance = Allowance {
        max: MAX_BODY,
        within: listen.body_timeout,
        shares: vec![share],
    };
    let body = body::read(request.into_body(), allowance)
        .await
        .map_err(|refusal| {
            Page::refused(refusal.kind.status(), format!("{}\n", refusal.message))
        })?;
    parse(name, &body).map_err(|why| Page::refused(StatusCode::BAD_REQUEST, format!("{why}\n")))
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers
        .get(CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .unwrap_or_default();
    kind.split(';')
        .next()
        .is_some_and(|kind| kind.trim().eq_ignore_ascii_case(JSON))
}

fn parse(name: Name, body: &[u8]) -> Result<(Target, Command), &'static str> {
    let expected = "Expected {\"account\": \"...\", \"action\": \"...\"}, and for a pause, if you like, \"seconds\".";
    let target: Target = serde_json::from_slice(body).map_err(|_| expected)?;
    let order = match (name, target.seconds) {
        (Name::Pause, None) => Command::Pause(None),
        (Name::Pause, Some(seconds @ 1..=MAX_PAUSE)) => {
            Command::Pause(Some(Duration::from_secs(seconds)))
        }
        (Name::Pause, Some(_)) => {
            return Err("Expected 1 to 86400 seconds, or none: until it is resumed.");
        }
        (Name::Resume, None) => Command::Resume,
        (Name::Flush, None) => Command::Flush,
        (Name::Resume | Name::Flush, Some(_)) => return Err("Only a pause has seconds."),
    };
    Ok((target, order))
}

// === impl Name ===

impl Name {
    /// The metric label.
    fn label(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Flush => "flush",
        }
    }
}
