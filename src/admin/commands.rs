//! Operator actions. Each is a POST with a small JSON object and the token. Each action is logged
//! once and counted once. Those on lanes are here: pause a lane, resume it, flush its queue.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap};
use hyper::{Request, StatusCode};
use serde::Deserialize;
use serde_json::json;

use super::{JSON, Page};
use crate::call::body::{self, BodyBounds};
use crate::call::services::CallServices;
use crate::config::{Listen, Mode};
use crate::limiter::{Command, CommandResult};
use crate::server::received_body::ReceivedBody;

/// What an operator may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OperatorAction {
    Lane(CommandKind),
    /// End an unknown outcome.
    Settle,
}

/// The kind of a command to a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CommandKind {
    Pause,
    Resume,
    Flush,
}

/// The request body.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CommandBody {
    account: String,
    action: String,
    seconds: Option<u64>,
}

/// Maximum size of a request body, in bytes.
const MAX_BODY: usize = 4096;
/// Maximum length of a pause with an end, in seconds: one day.
const MAX_PAUSE: u64 = 86_400;

/// Returns the operator action of this path, if it has one.
pub(super) fn at_path(path: &str) -> Option<OperatorAction> {
    match path {
        "/lanes/pause" => Some(OperatorAction::Lane(CommandKind::Pause)),
        "/lanes/resume" => Some(OperatorAction::Lane(CommandKind::Resume)),
        "/lanes/flush" => Some(OperatorAction::Lane(CommandKind::Flush)),
        "/unknown/settle" => Some(OperatorAction::Settle),
        _ => None,
    }
}

/// Handles the command. The caller has checked that the request is permitted.
pub(super) async fn handle(
    services: &CallServices,
    kind: CommandKind,
    request: Request<ReceivedBody>,
    from: Option<IpAddr>,
) -> Page {
    let config = &services.current_config.load_full().config;
    let body = receive(services, &config.listen, request).await;
    let parsed = body.and_then(|body| {
        parse(kind, &body).map_err(|why| Page::refused(StatusCode::BAD_REQUEST, format!("{why}\n")))
    });
    let (target, command) = match parsed {
        Ok(parsed) => parsed,
        Err(page) => return page,
    };
    if config.mode == Mode::Observe {
        return Page::refused(
            StatusCode::CONFLICT,
            "Flowgate only observes: no call waits in a lane.\n",
        );
    }
    let is_configured = config
        .accounts
        .iter()
        .any(|account| account.id.as_str() == target.account);
    let Some(result) = services
        .limiter
        .handle_command(&target.account, &target.action, is_configured, command)
        .await
    else {
        return Page::refused(
            StatusCode::NOT_FOUND,
            "There is no such lane: see the accounts and actions of /lanes.\n",
        );
    };
    services.metrics.operator_action(kind.label());
    log(kind, &target, result, from);
    let scope = if services.quota.is_some() {
        "this replica only"
    } else {
        "the whole lane"
    };
    let answer = json!({
        "order": kind.label(),
        "account": target.account,
        "action": target.action,
        "seconds": target.seconds,
        "told": result.refused,
        "queued": result.queued,
        "scope": scope,
    });
    Page::ok(JSON, answer.to_string())
}

/// Logs the command with the names of the response's fields.
fn log(kind: CommandKind, target: &CommandBody, result: CommandResult, from: Option<IpAddr>) {
    tracing::warn!(
        order = kind.label(),
        account = target.account,
        action = target.action,
        seconds = target.seconds,
        told = result.refused,
        queued = result.queued,
        from = from.map(tracing::field::display),
        "operator action on a lane"
    );
}

/// Reads the body of an operator action, or returns the page that refuses it.
pub(super) async fn receive(
    services: &CallServices,
    listen: &Listen,
    request: Request<ReceivedBody>,
) -> Result<Bytes, Page> {
    if !is_json(request.headers()) {
        return Err(Page::refused(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "An operator action must be application/json.\n",
        ));
    }
    let reservation = services
        .unverified
        .take(0)
        .expect("a zero-byte reservation cannot fail");
    let bounds = BodyBounds {
        max: MAX_BODY,
        within: listen.body_timeout,
        reservations: vec![reservation],
    };
    let body = body::read(request.into_body(), bounds).await;
    body.map_err(|refusal| Page::refused(refusal.kind.status(), format!("{}\n", refusal.message)))
}

fn is_json(headers: &HeaderMap) -> bool {
    let content_type = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    content_type
        .split(';')
        .next()
        .is_some_and(|media_type| media_type.trim().eq_ignore_ascii_case(JSON))
}

fn parse(kind: CommandKind, body: &[u8]) -> Result<(CommandBody, Command), &'static str> {
    let expected = "Expected {\"account\": \"...\", \"action\": \"...\"}, and for a pause, if you like, \"seconds\".";
    let target: CommandBody = serde_json::from_slice(body).map_err(|_| expected)?;
    let command = match (kind, target.seconds) {
        (CommandKind::Pause, None) => Command::Pause(None),
        (CommandKind::Pause, Some(seconds @ 1..=MAX_PAUSE)) => {
            Command::Pause(Some(Duration::from_secs(seconds)))
        }
        (CommandKind::Pause, Some(_)) => {
            return Err("Expected 1 to 86400 seconds, or none: until it is resumed.");
        }
        (CommandKind::Resume, None) => Command::Resume,
        (CommandKind::Flush, None) => Command::Flush,
        (CommandKind::Resume | CommandKind::Flush, Some(_)) => {
            return Err("Only a pause has seconds.");
        }
    };
    Ok((target, command))
}

// === impl CommandKind ===

impl CommandKind {
    /// The metric label.
    fn label(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Flush => "flush",
        }
    }
}
