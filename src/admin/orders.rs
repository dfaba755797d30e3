//! What may an operator do? Pause a lane, resume it, flush its queue: a POST with a small object of JSON, from whoever shows
//! the token. Each order is one line in the log and one count.

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
use crate::config::Mode;
use crate::limiter::Command;

/// What is ordered by this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    Pause,
    Resume,
    Flush,
}

/// What the body says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    account: String,
    action: String,
    seconds: Option<u64>,
}

/// Bytes of a body.
const MAX_BODY: usize = 4096;
/// Seconds of a pause that has an end: a day.
const MAX_PAUSE: u64 = 86_400;

/// The order that this path gives, if it gives one.
pub(super) fn known(path: &str) -> Option<Name> {
    match path {
        "/lanes/pause" => Some(Name::Pause),
        "/lanes/resume" => Some(Name::Resume),
        "/lanes/flush" => Some(Name::Flush),
        _ => None,
    }
}

/// Gives the order; whoever asks has been found to be allowed to.
pub(super) async fn obey(
    parts: &CallServices,
    name: Name,
    request: Request<Incoming>,
    from: Option<IpAddr>,
) -> Page {
    let config = &parts.settings.load_full().config;
    if !is_json(request.headers()) {
        return Page::refused(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "An order is application/json.\n",
        );
    }
    let share = parts.unverified.take(0).expect("nothing always fits");
    let allowance = Allowance {
        max: MAX_BODY,
        within: config.listen.body_timeout,
        shares: vec![share],
    };
    let (said, order) = match body::read(request.into_body(), allowance).await {
        Err(refusal) => {
            return Page::refused(refusal.kind.status(), format!("{}\n", refusal.message));
        }
        Ok(body) => match read(name, &body) {
            Ok(read) => read,
            Err(why) => return Page::refused(StatusCode::BAD_REQUEST, format!("{why}\n")),
        },
    };
    if config.mode == Mode::Observe {
        return Page::refused(
            StatusCode::CONFLICT,
            "Flowgate only observes: nobody waits here.\n",
        );
    }
    let Said {
        account,
        action,
        seconds,
    } = &said;
    let is_configured = config
        .accounts
        .iter()
        .any(|known| known.id.as_str() == account);
    let Some(obeyed) = parts
        .limiter
        .handle_command(account, action, is_configured, order)
        .await
    else {
        return Page::refused(
            StatusCode::NOT_FOUND,
            "There is no such lane: see the accounts and actions of /lanes.\n",
        );
    };
    let (order, told, queued) = (name.label(), obeyed.refused, obeyed.queued);
    parts.metrics.operator_action(order);
    let from = from.map(tracing::field::display);
    tracing::warn!(
        order,
        account,
        action,
        seconds,
        told,
        queued,
        from,
        "an operator gave an order to a lane"
    );
    let scope = if parts.quota.is_some() {
        "this replica only"
    } else {
        "the whole lane"
    };
    let answer = json!({ "order": order, "account": account, "action": action, "seconds": seconds,
        "told": told, "queued": queued, "scope": scope });
    Page::ok(JSON, answer.to_string())
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

fn read(name: Name, body: &[u8]) -> Result<(Said, Command), &'static str> {
    let expected = "Expected {\"account\": \"...\", \"action\": \"...\"}, and for a pause, if you like, \"seconds\".";
    let said: Said = serde_json::from_slice(body).map_err(|_| expected)?;
    let order = match (name, said.seconds) {
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
    Ok((said, order))
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
