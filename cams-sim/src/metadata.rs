//! The metadata service of an ECS instance with a RAM role, and a credentials URI. The requests,
//! after Alibaba's help pages: `PUT /latest/api/token` with the token's lifetime in a header, then
//! `GET /latest/meta-data/ram/security-credentials/` and the same with the role's name, both with
//! the token, or without it where version 1 is allowed. `GET /credentials` is the URI.
//!
//! The statuses of refusals other than 404 are not documented; they are those of AWS's service.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hyper::{Method, Request, Response};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::answer::{json_answer, plain_answer};
use crate::date;
use crate::fault::Fault;
use crate::request::header;
use crate::session::{Holder, Session};
use crate::settings::MetadataSettings;

const TOKEN_PATH: &str = "/latest/api/token";
const ROLE_PATH: &str = "/latest/meta-data/ram/security-credentials";
const URI_PATH: &str = "/credentials";

/// How long a session of the instance lives; published samples live this long.
pub(crate) const LIFETIME: Duration = Duration::from_secs(6 * 3_600);

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    Token,
    Role,
    Credentials,
    Uri,
}

/// A status and the reason for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Denial {
    pub(crate) status: u16,
    pub(crate) reason: String,
}

/// The tokens that were handed out, with their ends.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    ends: HashMap<String, Instant>,
}

// === impl Route ===

impl Route {
    /// The route of a path, if there is one.
    pub(crate) fn of(path: &str) -> Option<Self> {
        match path {
            TOKEN_PATH => Some(Self::Token),
            URI_PATH => Some(Self::Uri),
            _ => match path.strip_prefix(ROLE_PATH)? {
                "" | "/" => Some(Self::Role),
                rest => rest.starts_with('/').then_some(Self::Credentials),
            },
        }
    }

    /// The name in records and fault rules.
    pub(crate) fn action(self) -> &'static str {
        match self {
            Self::Token => "MetadataToken",
            Self::Role => "MetadataRole",
            Self::Credentials => "MetadataCredentials",
            Self::Uri => "CredentialsUri",
        }
    }

    /// Checks method, token and role of a request.
    pub(crate) fn check(
        self,
        request: &Request<Bytes>,
        tokens: &Tokens,
        settings: &MetadataSettings,
        now: Instant,
    ) -> Result<(), Denial> {
        let method = if self == Self::Token {
            Method::PUT
        } else {
            Method::GET
        };
        if request.method() != method {
            return Err(Denial::new(405, "the method is not allowed"));
        }
        if matches!(self, Self::Role | Self::Credentials) {
            tokens.check(request, settings.tokens_required, now)?;
        }
        let named = request.uri().path().strip_prefix(ROLE_PATH);
        let named = named.map(|path| path.trim_start_matches('/'));
        match (self, &settings.role) {
            (Self::Role, None) => Err(Denial::new(404, "the instance has no role")),
            (Self::Credentials, role) if role.as_deref() != named => {
                Err(Denial::new(404, "the instance does not have this role"))
            }
            _ => Ok(()),
        }
    }
}

// === impl Denial ===

impl Denial {
    pub(crate) fn new(status: u16, reason: &str) -> Self {
        Self {
            status,
            reason: reason.to_owned(),
        }
    }

    pub(crate) fn answer(&self) -> Response<Bytes> {
        plain_answer(self.status, format!("{}\n", self.reason))
    }
}

// === impl Tokens ===

impl Tokens {
    /// Hands out a token for the lifetime that the request's header asks for.
    pub(crate) fn issue(
        &mut self,
        request: &Request<Bytes>,
        now: Instant,
        dice: &mut fastrand::Rng,
    ) -> Result<String, Denial> {
        let lifetime = header(request.headers(), "x-aliyun-ecs-metadata-token-ttl-seconds");
        let seconds: u64 = lifetime
            .parse()
            .ok()
            .filter(|seconds| (1..=21_600).contains(seconds))
            .ok_or_else(|| Denial::new(400, "the lifetime is not 1 to 21600 seconds"))?;
        let letters: String = (0..46).map(|_| dice.alphanumeric()).collect();
        let token = format!("{letters}==");
        self.ends
            .insert(token.clone(), now + Duration::from_secs(seconds));
        Ok(token)
    }

    /// All tokens that were handed out.
    pub(crate) fn all(&self) -> impl Iterator<Item = &String> {
        self.ends.keys()
    }

    fn check(&self, request: &Request<Bytes>, required: bool, now: Instant) -> Result<(), Denial> {
        if !request
            .headers()
            .contains_key("x-aliyun-ecs-metadata-token")
        {
            return if required {
                Err(Denial::new(403, "a token is required"))
            } else {
                Ok(())
            };
        }
        let token = header(request.headers(), "x-aliyun-ecs-metadata-token");
        if self.ends.get(&token).is_none_or(|ends| *ends <= now) {
            return Err(Denial::new(401, "the token is unknown or has ended"));
        }
        Ok(())
    }
}

/// The holder of the instance's sessions.
pub(crate) fn holder(settings: &MetadataSettings) -> Holder {
    Holder {
        account: settings.account.clone(),
        role: settings.role.clone().unwrap_or_default(),
        name: "i-simulated".to_owned(),
    }
}

/// The role's name or a token, as plain text.
pub(crate) fn text_answer(text: &str, settings: &MetadataSettings) -> Response<Bytes> {
    let end = if settings.newline { "\n" } else { "" };
    plain_answer(200, format!("{text}{end}"))
}

/// A session as the instance and the URI tell it.
pub(crate) fn session_answer(
    session: &Session,
    now: SystemTime,
    fault: Option<&Fault>,
) -> Response<Bytes> {
    if fault == Some(&Fault::Failed) {
        return json_answer(200, &json!({ "Code": "Failed" }));
    }
    let mut members = session.members(fault);
    members.insert("LastUpdated".to_owned(), json!(date::format(now)));
    members.insert("Code".to_owned(), json!("Success"));
    json_answer(200, &Value::Object(members))
}

#[cfg(test)]
mod tests;
