//! Builds the request to CAMS, separately for each attempt and only from what identify verified:
//! with a new nonce, the current time, the account's key and the caller's signature version. A
//! relayed call is forwarded unchanged.

use std::time::SystemTime;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::uri::PathAndQuery;
use hyper::{Method, Request, Uri};

use crate::acs::v3::Signable;
use crate::acs::{encode, time, v1, v3};
use crate::call::identify::{ReadyCall, RelayedRequest, Scheme, VERSION, Verified};
use crate::config::Credentials;
use crate::error::{Kind, Refusal};

const USER_AGENT: &str = concat!("flowgate/", env!("CARGO_PKG_VERSION"));
const FORM: &str = "application/x-www-form-urlencoded";
const JSON: &str = "application/json; charset=utf-8";

/// The parts of a request that differ between attempts.
struct AttemptFields<'a> {
    host: &'a str,
    date: String,
    nonce: String,
}

/// Builds the request of one attempt. Refuses a call whose query has no room for the account's
/// security token, whose length nothing bounds.
pub(crate) fn sign(
    call: &ReadyCall<'_>,
    upstream_host: &str,
    now: SystemTime,
) -> Result<Request<Full<Bytes>>, Refusal> {
    let (call, credentials) = match call {
        ReadyCall::Verified { call, credentials } => (*call, &**credentials),
        ReadyCall::Relayed(relayed) => return Ok(relay(relayed, upstream_host)),
    };
    let fields = AttemptFields {
        host: upstream_host,
        date: time::format(now),
        nonce: v3::nonce(),
    };
    match call.scheme() {
        Scheme::V1 => sign_v1(call, credentials, &fields),
        Scheme::V3 => sign_v3(call, credentials, &fields),
    }
}

fn sign_v3(
    call: &Verified,
    credentials: &Credentials,
    fields: &AttemptFields<'_>,
) -> Result<Request<Full<Bytes>>, Refusal> {
    let (body, content_type) = body(call);
    let body_hash = v3::hash(&body);
    let key = credentials.access_key_id.as_str();
    let mut signed = vec![
        ("host", fields.host),
        ("x-acs-action", call.action().as_str()),
        ("x-acs-content-sha256", &body_hash),
        ("x-acs-date", &fields.date),
        ("x-acs-signature-nonce", &fields.nonce),
        ("x-acs-version", VERSION),
    ];
    signed.extend(content_type.map(|content_type| ("content-type", content_type)));
    if let Some(token) = &credentials.security_token {
        signed.extend([
            ("x-acs-accesskey-id", key),
            ("x-acs-security-token", token.expose()),
        ]);
    }
    signed.sort_unstable();
    let authorization = Signable {
        method: call.method().as_str(),
        query: call.params().query().collect(),
        headers: signed
            .iter()
            .map(|(name, value)| (*name, value.as_bytes()))
            .collect(),
        body_hash: &body_hash,
    }
    .authorization(key, &credentials.secret);
    let mut request = request(call.method(), &target(call.params().query()), body)?;
    for (name, value) in signed {
        put(&mut request, name, value);
    }
    put(&mut request, "accept", "application/json");
    put(&mut request, "authorization", &authorization);
    Ok(request)
}

fn sign_v1(
    call: &Verified,
    credentials: &Credentials,
    fields: &AttemptFields<'_>,
) -> Result<Request<Full<Bytes>>, Refusal> {
    let (body, content_type) = body(call);
    let mut query: Vec<(&str, &str)> =
        vec![("Action", call.action().as_str()), ("Version", VERSION)];
    query.extend(call.format().map(|format| ("Format", format)));
    query.extend(call.params().query());
    query.extend([
        ("AccessKeyId", credentials.access_key_id.as_str()),
        ("SignatureMethod", v1::METHOD),
        ("SignatureNonce", &fields.nonce),
        ("SignatureVersion", v1::VERSION),
        ("Timestamp", &fields.date),
    ]);
    query.extend(
        credentials
            .security_token
            .as_ref()
            .map(|token| ("SecurityToken", token.expose())),
    );
    let all = query.iter().copied().chain(call.params().form());
    let signature = v1::sign(
        &credentials.secret,
        &v1::string_to_sign(call.method().as_str(), all),
    );
    query.push(("Signature", &signature));
    let mut request = request(call.method(), &target(query), body)?;
    put(&mut request, "host", fields.host);
    put(&mut request, "x-acs-action", call.action().as_str());
    put(&mut request, "x-acs-version", VERSION);
    if let Some(content_type) = content_type {
        put(&mut request, "content-type", content_type);
    }
    Ok(request)
}

fn relay(call: &RelayedRequest, upstream_host: &str) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(call.body().clone()));
    *request.method_mut() = call.method().clone();
    *request.uri_mut() = Uri::from(call.target().clone());
    request.headers_mut().reserve(call.headers().len() + 3);
    put(&mut request, "host", upstream_host);
    let headers = request.headers_mut();
    for (name, value) in call.headers() {
        if name == header::HOST {
            headers.insert(name, value.clone());
        } else {
            headers.append(name, value.clone());
        }
    }
    headers
        .entry(header::ACCEPT_ENCODING)
        .or_insert(HeaderValue::from_static("identity"));
    put_length(headers, call.method(), call.body().len());
    request
}

/// The body and its content type; an empty body has none.
fn body(call: &Verified) -> (Bytes, Option<&'static str>) {
    if let Some(json) = call.json() {
        return (json.clone(), Some(JSON));
    }
    let form = encode::pairs(call.params().form());
    let content_type = (!form.is_empty()).then_some(FORM);
    (form.into(), content_type)
}

fn target<'a>(query: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let query = encode::pairs(query);
    if query.is_empty() {
        "/".into()
    } else {
        format!("/?{query}")
    }
}

fn request(method: &Method, target: &str, body: Bytes) -> Result<Request<Full<Bytes>>, Refusal> {
    let length = body.len();
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method.clone();
    // The encoded query is ASCII, so only its length can be wrong.
    let target: PathAndQuery = target.parse().map_err(|_| too_long())?;
    *request.uri_mut() = target.into();
    put(&mut request, "user-agent", USER_AGENT);
    put(&mut request, "accept-encoding", "identity");
    put_length(request.headers_mut(), method, length);
    Ok(request)
}

/// The refusal of a call whose query has no room for the security token.
fn too_long() -> Refusal {
    let message = "With the account's security token the query is longer than 64 KiB after encoding. \
                   Sign with version 3, which sends the token in a header, or send long parameters \
                   in the body. CAMS has done nothing.";
    Refusal::new(Kind::TooLarge, message)
}

fn put_length(headers: &mut HeaderMap, method: &Method, length: usize) {
    if *method != Method::GET {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
}

fn put(request: &mut Request<Full<Bytes>>, name: &'static str, value: &str) {
    let header = HeaderValue::from_bytes(value.as_bytes());
    let mut header =
        header.expect("the configuration admits no control characters in keys, tokens and hosts");
    header.set_sensitive(matches!(name, "authorization" | "x-acs-security-token"));
    request
        .headers_mut()
        .insert(HeaderName::from_static(name), header);
}
