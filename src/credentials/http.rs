//! One request to a service that returns credentials, over a connection of its own.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http_body_util::Full;
use hyper::Method;
use hyper::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_LENGTH, HOST, HeaderName, HeaderValue, USER_AGENT,
};
use hyper::http::uri::PathAndQuery;
use tokio::time::Instant;
use tracing::debug;

use super::error::{FailureKind, FetchError};
use crate::config::{CredentialsUri, EcsRole, SessionSource, bracketed};
use crate::primitives::secret::{Secret, never_shown};
use crate::upstream::one_request::{self, Destination, RequestError};
use crate::upstream::{Request, TlsRoots, UpstreamResponse};

/// A complete answer of any status. Its body may contain secrets.
pub(crate) struct Answer {
    /// The answer itself.
    pub(crate) response: UpstreamResponse,
    /// When it was complete, by this host's clock.
    pub(crate) received: SystemTime,
    /// The time from before the connection until then.
    pub(crate) took: Duration,
    /// The secrets of the request, which the answer may quote.
    pub(crate) sent: Vec<Secret>,
}

never_shown!(Answer);

/// The roots for connections with TLS, which can be replaced. All sources share them; there are none
/// if no source uses TLS.
pub(crate) struct Roots(ArcSwapOption<TlsRoots>);

/// The service that a source asks, for the `Host` header and for errors: `host`, or `host:port` if
/// the port is not the default.
pub(crate) fn place(source: &SessionSource) -> String {
    match source {
        SessionSource::Oidc(source) => source.role.sts.to_string(),
        SessionSource::AssumeRole(source) => source.role.sts.to_string(),
        SessionSource::EcsRole(source) => place_of_metadata(source),
        SessionSource::Uri(source) => place_of_uri(source),
    }
}

pub(super) fn place_of_metadata(source: &EcsRole) -> String {
    let address = source.address;
    authority(&address.ip().to_string(), address.port(), 80)
}

pub(super) fn place_of_uri(source: &CredentialsUri) -> String {
    let default_port = if source.is_tls { 443 } else { 80 };
    authority(&source.host, source.port, default_port)
}

fn authority(host: &str, port: u16, default_port: u16) -> String {
    let host = bracketed(host);
    if port == default_port {
        host.into_owned()
    } else {
        format!("{host}:{port}")
    }
}

/// A request in origin form.
pub(super) fn request(
    method: Method,
    target: PathAndQuery,
    host: &str,
    body: impl Into<Bytes>,
) -> Request {
    let body = body.into();
    let length = (method != Method::GET).then_some(body.len());
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    *request.uri_mut() = target.into();
    put(&mut request, HOST, host);
    put(
        &mut request,
        USER_AGENT,
        concat!("flowgate/", env!("CARGO_PKG_VERSION")),
    );
    put(&mut request, ACCEPT, "application/json");
    put(&mut request, ACCEPT_ENCODING, "identity");
    if let Some(length) = length {
        request
            .headers_mut()
            .insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    request
}

/// Sets a header. The value was checked when it was read.
pub(super) fn put(request: &mut Request, name: HeaderName, value: &str) {
    let value = HeaderValue::from_str(value);
    let value = value.expect("hosts, keys and tokens have only printable characters");
    request.headers_mut().insert(name, value);
}

/// The same, for a value that must not be shown.
pub(super) fn put_secret(request: &mut Request, name: HeaderName, value: &str) {
    put(request, name.clone(), value);
    if let Some(value) = request.headers_mut().get_mut(name) {
        value.set_sensitive(true);
    }
}

/// Sends the request and reads the answer, all by the deadline. `place` names the service. `secrets`
/// are those of the request that are not in its sensitive headers.
pub(super) async fn send(
    place: &str,
    destination: &Destination<'_>,
    request: Request,
    secrets: &[&str],
    deadline: Instant,
) -> Result<Answer, FetchError> {
    let start = Instant::now();
    let headers = request.headers().values();
    let headers = headers.filter(|value| value.is_sensitive());
    let sent = headers
        .filter_map(|value| value.to_str().ok())
        .chain(secrets.iter().copied())
        .map(Secret::new)
        .collect();
    match one_request::send(destination, request, deadline).await {
        Ok(response) => {
            let took = start.elapsed();
            let status = response.status.as_u16();
            debug!(service = place, status, ?took, "credentials answer");
            Ok(Answer {
                response,
                received: SystemTime::now(),
                took,
                sent,
            })
        }
        Err(error) => Err(FetchError::new(kind(&error), place, error.to_string())),
    }
}

/// The kind of a failure without a complete answer.
fn kind(error: &RequestError) -> FailureKind {
    match error {
        RequestError::Unconnected(_)
        | RequestError::Unsent
        | RequestError::Closed
        | RequestError::Timeout(_) => FailureKind::Unreachable,
        RequestError::TooLarge | RequestError::Malformed => FailureKind::BadAnswer,
        // Another address, or another URI, is needed.
        RequestError::Forbidden(_) => FailureKind::Refused,
    }
}

// === impl Roots ===

impl Roots {
    pub(super) fn new(roots: Option<TlsRoots>) -> Arc<Self> {
        Arc::new(Self(ArcSwapOption::from_pointee(roots)))
    }

    pub(super) fn set(&self, roots: TlsRoots) {
        self.0.store(Some(Arc::new(roots)));
    }

    /// The roots for a connection to the service with this name.
    pub(super) fn get(&self, place: &str) -> Result<TlsRoots, FetchError> {
        match &*self.0.load() {
            Some(roots) => Ok(TlsRoots::clone(roots)),
            None => Err(FetchError::new(
                FailureKind::Unreachable,
                place,
                "no TLS roots are loaded",
            )),
        }
    }
}
