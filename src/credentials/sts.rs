//! STS, version 2015-04-01: AssumeRole and GetCallerIdentity are signed with version 3.
//! AssumeRoleWithOIDC is anonymous; its token is in the form, because targets are logged by proxies
//! and servers.

use std::borrow::Cow;
use std::time::SystemTime;

use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName};
use hyper::http::uri::PathAndQuery;
use hyper::{Method, StatusCode};
use tokio::time::Instant;

use super::answer::{self, Form, Identity};
use super::error::FetchError;
use super::http::{self, Answer, Roots};
use super::oidc_token;
use super::session::Obtained;
use crate::acs::v3::Signable;
use crate::acs::{encode, time, v3};
use crate::config::{AssumeRole, Credentials, Oidc, Role, StsEndpoint};
use crate::primitives::secret::Secret;
use crate::upstream::Request;
use crate::upstream::clock::UpstreamClock;
use crate::upstream::one_request::{Destination, any_address};

const VERSION: &str = "2015-04-01";
const ASSUME_ROLE: &str = "AssumeRole";
const ASSUME_ROLE_WITH_OIDC: &str = "AssumeRoleWithOIDC";
const GET_CALLER_IDENTITY: &str = "GetCallerIdentity";

/// Parameters of an action, before encoding.
type Pairs<'a> = Vec<(&'static str, Cow<'a, str>)>;

/// One fetch from STS.
pub(super) struct Sts<'a> {
    pub(super) endpoint: &'a StsEndpoint,
    pub(super) roots: &'a Roots,
    pub(super) clock: &'a UpstreamClock,
    pub(super) deadline: Instant,
}

/// What differs between two requests.
struct DateAndNonce {
    date: String,
    nonce: String,
}

/// The parameters of AssumeRole.
fn assume_role(source: &AssumeRole) -> Pairs<'_> {
    let mut pairs = role(&source.role);
    pairs.extend(
        source
            .external_id
            .iter()
            .map(|id| ("ExternalId", id.into())),
    );
    pairs
}

/// The parameters of AssumeRoleWithOIDC.
fn assume_role_with_oidc<'a>(source: &'a Oidc, token: &'a str) -> Pairs<'a> {
    let mut pairs = role(&source.role);
    pairs.push(("OIDCProviderArn", (&source.provider_arn).into()));
    pairs.push(("OIDCToken", token.into()));
    pairs
}

fn role(role: &Role) -> Pairs<'_> {
    let mut pairs = vec![
        ("RoleArn", (&role.arn).into()),
        ("RoleSessionName", (&role.session_name).into()),
    ];
    if let Some(duration) = role.duration {
        pairs.push(("DurationSeconds", duration.as_secs().to_string().into()));
    }
    pairs.extend(role.policy.iter().map(|policy| ("Policy", policy.into())));
    pairs
}

fn borrowed<'a>(pairs: &'a Pairs<'_>) -> impl Iterator<Item = (&'a str, &'a str)> {
    pairs.iter().map(|(name, value)| (*name, &**value))
}

/// The signed headers in ascending order.
fn signed_headers<'a>(
    action: &'a str,
    host: &'a str,
    body_hash: &'a str,
    credentials: &'a Credentials,
    date_and_nonce: &'a DateAndNonce,
) -> Vec<(&'static str, &'a str)> {
    let mut headers = vec![
        ("host", host),
        ("x-acs-action", action),
        ("x-acs-content-sha256", body_hash),
        ("x-acs-date", &*date_and_nonce.date),
        ("x-acs-signature-nonce", &*date_and_nonce.nonce),
        ("x-acs-version", VERSION),
    ];
    if let Some(token) = &credentials.security_token {
        headers.extend([
            ("x-acs-accesskey-id", credentials.access_key_id.as_str()),
            ("x-acs-security-token", token.expose()),
        ]);
    }
    headers.sort_unstable();
    headers
}

/// A request with the parameters in the query, as Alibaba's STS SDK sends it.
fn signed(
    action: &str,
    host: &str,
    pairs: &Pairs<'_>,
    credentials: &Credentials,
    date_and_nonce: &DateAndNonce,
) -> Request {
    let body_hash = v3::hash(b"");
    let headers = signed_headers(action, host, &body_hash, credentials, date_and_nonce);
    let authorization = Signable {
        method: "POST",
        query: borrowed(pairs).collect(),
        headers: headers
            .iter()
            .map(|(name, value)| (*name, value.as_bytes()))
            .collect(),
        body_hash: &body_hash,
    }
    .authorization(credentials.access_key_id.as_str(), &credentials.secret);
    let query = encode::pairs(borrowed(pairs));
    let mut request = http::request(Method::POST, target(&query), host, "");
    for (name, value) in headers {
        let header = HeaderName::from_static(name);
        if name == "x-acs-security-token" {
            http::put_secret(&mut request, header, value);
        } else {
            http::put(&mut request, header, value);
        }
    }
    http::put_secret(&mut request, AUTHORIZATION, &authorization);
    request
}

/// A request without a signature and with the parameters in the form.
fn anonymous(
    action: &str,
    host: &str,
    pairs: &Pairs<'_>,
    date_and_nonce: &DateAndNonce,
) -> Request {
    let query = encode::pairs([
        ("Action", action),
        ("Format", "JSON"),
        ("Timestamp", &*date_and_nonce.date),
        ("Version", VERSION),
    ]);
    let form = encode::pairs(borrowed(pairs));
    let mut request = http::request(Method::POST, target(&query), host, form);
    let content_type = "application/x-www-form-urlencoded";
    http::put(&mut request, CONTENT_TYPE, content_type);
    request
}

fn target(query: &str) -> PathAndQuery {
    let target = if query.is_empty() {
        "/".to_owned()
    } else {
        format!("/?{query}")
    };
    target
        .parse()
        .expect("the configuration bounds the parameters, and they are encoded")
}

// === impl Sts ===

impl Sts<'_> {
    /// A session of the role, for which these credentials ask.
    pub(super) async fn assume_role(
        &self,
        source: &AssumeRole,
        assuming: &Credentials,
    ) -> Result<Obtained, FetchError> {
        let pairs = assume_role(source);
        let host = self.endpoint.to_string();
        let answer = self
            .send(&assuming.secret, |date_and_nonce| {
                signed(ASSUME_ROLE, &host, &pairs, assuming, date_and_nonce)
            })
            .await?;
        answer::read(Form::Sts, &host, &answer)
    }

    /// A session of the role, for which the token in the file asks.
    pub(super) async fn assume_role_with_oidc(
        &self,
        source: &Oidc,
    ) -> Result<Obtained, FetchError> {
        let token = oidc_token::read(&source.token_file, self.deadline).await?;
        let pairs = assume_role_with_oidc(source, token.expose());
        let host = self.endpoint.to_string();
        let answer = self
            .send(&token, |date_and_nonce| {
                anonymous(ASSUME_ROLE_WITH_OIDC, &host, &pairs, date_and_nonce)
            })
            .await?;
        answer::read(Form::Sts, &host, &answer)
    }

    /// Who the credentials belong to.
    pub(super) async fn caller_identity(
        &self,
        credentials: &Credentials,
    ) -> Result<Identity, FetchError> {
        let pairs = Pairs::new();
        let host = self.endpoint.to_string();
        let answer = self
            .send(&credentials.secret, |date_and_nonce| {
                signed(
                    GET_CALLER_IDENTITY,
                    &host,
                    &pairs,
                    credentials,
                    date_and_nonce,
                )
            })
            .await?;
        answer::read_identity(&host, &answer)
    }

    /// Sends the request. If STS refuses its time stamp and its answer has another time, the request
    /// is sent once more with that time. `secret` is what the request is made with.
    async fn send(
        &self,
        secret: &Secret,
        build: impl Fn(&DateAndNonce) -> Request,
    ) -> Result<Answer, FetchError> {
        let first = self.clock.correction();
        let answer = self.send_once(secret, &build).await?;
        if !answer::refuses_stamp(&answer) {
            // Another answer may be that of a balancer, with its own clock.
            if answer.response.status == StatusCode::OK {
                self.clock.answered(
                    &answer.response.headers,
                    answer.took,
                    answer.received,
                    first,
                );
            }
            return Ok(answer);
        }
        self.clock.stamp_refused(
            &answer.response.headers,
            answer.took,
            answer.received,
            first,
        );
        if self.clock.correction() == first {
            return Ok(answer);
        }
        self.send_once(secret, &build).await
    }

    async fn send_once(
        &self,
        secret: &Secret,
        build: impl Fn(&DateAndNonce) -> Request,
    ) -> Result<Answer, FetchError> {
        let place = self.endpoint.to_string();
        let destination = Destination {
            host: &self.endpoint.host,
            port: self.endpoint.port,
            tls: Some(self.roots.get(&place)?),
            allows: any_address,
        };
        let now = self.clock.correction().apply(SystemTime::now());
        let request = build(&DateAndNonce {
            date: time::format(now),
            nonce: v3::nonce(),
        });
        let secrets = [secret.expose()];
        http::send(&place, &destination, request, &secrets, self.deadline).await
    }
}

#[cfg(test)]
mod tests;
