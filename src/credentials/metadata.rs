//! The metadata service of an ECS instance. Version 2 asks for a token first and sends it with each
//! request; it lives six hours and is kept. Version 1, without a token, is used only if it is
//! allowed and no token can be obtained.

use std::time::Duration;

use hyper::header::HeaderName;
use hyper::http::uri::PathAndQuery;
use hyper::{Method, StatusCode};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::answer::{self, Form};
use super::error::FetchError;
use super::http::{self, Answer};
use super::session::Obtained;
use crate::config::EcsRole;
use crate::primitives::secret::Secret;
use crate::upstream::Request;
use crate::upstream::one_request::{Destination, any_address};

const TOKEN_PATH: &str = "/latest/api/token";
const ROLE_PATH: &str = "/latest/meta-data/ram/security-credentials/";

const TTL: HeaderName = HeaderName::from_static("x-aliyun-ecs-metadata-token-ttl-seconds");
const TOKEN: HeaderName = HeaderName::from_static("x-aliyun-ecs-metadata-token");

/// The lifetime that is asked for, the longest one, in seconds.
const LIFETIME: u64 = 21_600;
/// The age from which a token is replaced.
const KEPT: Duration = Duration::from_secs(LIFETIME - 300);

/// Time-out of one request: the service is on the host of the instance.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Maximum length of a token in characters.
const MAX_TOKEN: usize = 4096;

/// The token of the metadata service, and when it was obtained.
#[derive(Default)]
pub(super) struct TokenCache(Mutex<Option<(Secret, Instant)>>);

/// One fetch from the metadata service.
pub(super) struct Metadata<'a> {
    pub(super) source: &'a EcsRole,
    pub(super) tokens: &'a TokenCache,
    pub(super) deadline: Instant,
}

/// What the requests of one fetch are sent with.
struct Access {
    /// `None` for version 1.
    token: Option<Secret>,
    /// Whether a refused token was replaced in this fetch.
    is_renewed: bool,
}

/// Text of an answer without the line end that some services write.
fn line(answer: &Answer) -> Option<&str> {
    let text = std::str::from_utf8(&answer.response.body).ok()?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    Some(text.strip_suffix('\r').unwrap_or(text))
}

fn is_token(text: &str) -> bool {
    (1..=MAX_TOKEN).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Whether the service does not accept the token.
fn is_refused(answer: &Answer) -> bool {
    let status = answer.response.status;
    status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN
}

// === impl TokenCache ===

impl TokenCache {
    fn get(&self) -> Option<Secret> {
        let known = self.0.lock();
        let (token, obtained) = known.as_ref()?;
        (obtained.elapsed() < KEPT).then(|| token.clone())
    }

    fn set(&self, token: Option<(Secret, Instant)>) {
        *self.0.lock() = token;
    }
}

// === impl Metadata ===

impl Metadata<'_> {
    /// A session of the instance's role.
    pub(super) async fn fetch(&self) -> Result<Obtained, FetchError> {
        let mut access = Access {
            token: self.token().await?,
            is_renewed: false,
        };
        let role = match &self.source.role {
            Some(role) => role.clone(),
            None => self.role(&mut access).await?,
        };
        let path = format!("{ROLE_PATH}{role}");
        let answer = self.get(&path, &mut access).await?;
        if answer.response.status == StatusCode::NOT_FOUND {
            return Err(self.bad(&answer, "the instance does not have the role"));
        }
        answer::read(Form::Metadata, &self.place(), &answer)
    }

    /// The kept token, or a new one. `None` if version 1 is to be used.
    async fn token(&self) -> Result<Option<Secret>, FetchError> {
        if let Some(token) = self.tokens.get() {
            return Ok(Some(token));
        }
        match self.new_token().await {
            Ok(token) => Ok(Some(token)),
            Err(error) if self.source.allow_v1 => {
                tracing::debug!(%error, "metadata service: version 1 is used");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn new_token(&self) -> Result<Secret, FetchError> {
        self.tokens.set(None);
        let mut request = self.request(Method::PUT, TOKEN_PATH);
        http::put(&mut request, TTL, &LIFETIME.to_string());
        let asked = Instant::now();
        let answer = self.send(request).await?;
        if answer.response.status != StatusCode::OK {
            return Err(FetchError {
                reason: "no token for version 2 of the metadata service".to_owned(),
                ..answer::refusal(Form::Metadata, &self.place(), &answer)
            });
        }
        let token = line(&answer)
            .filter(|token| is_token(token))
            .map(Secret::new)
            .ok_or_else(|| self.bad(&answer, "the answer is not a metadata token"))?;
        self.tokens.set(Some((token.clone(), asked)));
        Ok(token)
    }

    async fn role(&self, access: &mut Access) -> Result<String, FetchError> {
        let answer = self.get(ROLE_PATH, access).await?;
        match answer.response.status {
            StatusCode::OK => line(&answer)
                .filter(|name| EcsRole::is_role_name(name))
                .map(str::to_owned)
                .ok_or_else(|| self.bad(&answer, "the answer is not the name of one role")),
            StatusCode::NOT_FOUND => Err(self.bad(&answer, "the instance has no role")),
            _ => Err(answer::refusal(Form::Metadata, &self.place(), &answer)),
        }
    }

    /// A refused token is replaced once. No request of version 2 is repeated without a token.
    async fn get(&self, path: &str, access: &mut Access) -> Result<Answer, FetchError> {
        loop {
            let answer = self.get_once(path, access).await?;
            if access.token.is_none() || !is_refused(&answer) {
                return Ok(answer);
            }
            self.tokens.set(None);
            if std::mem::replace(&mut access.is_renewed, true) {
                return Ok(answer);
            }
            access.token = Some(self.new_token().await?);
        }
    }

    async fn get_once(&self, path: &str, access: &Access) -> Result<Answer, FetchError> {
        let mut request = self.request(Method::GET, path);
        if let Some(token) = &access.token {
            http::put_secret(&mut request, TOKEN, token.expose());
        }
        self.send(request).await
    }

    fn request(&self, method: Method, path: &str) -> Request {
        let target: PathAndQuery = path
            .parse()
            .expect("a role's name is checked when it is read");
        http::request(method, target, &self.place(), "")
    }

    async fn send(&self, request: Request) -> Result<Answer, FetchError> {
        let host = self.source.address.ip().to_string();
        let destination = Destination {
            host: &host,
            port: self.source.address.port(),
            tls: None,
            allows: any_address,
        };
        let deadline = self.deadline.min(Instant::now() + TIMEOUT);
        http::send(&self.place(), &destination, request, &[], deadline).await
    }

    fn bad(&self, answer: &Answer, reason: &str) -> FetchError {
        answer::bad(&self.place(), answer, reason)
    }

    fn place(&self) -> String {
        http::place_of_metadata(self.source)
    }
}

#[cfg(test)]
mod tests;
