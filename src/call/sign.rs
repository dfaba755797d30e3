//! Builds the request to CAMS, separately for each attempt and only from what identify verified:
//! with a new nonce, the current time, the account's key and the caller's signature version. A
//! relayed call is forwarded unchanged.

use std::time::SystemTime;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{self, HeaderMap, HeaderValue, InvalidHeaderValue};
use hyper::http::uri::PathAndQuery;
use hyper::{Method, Request, Uri};

use crate::acs::v3::Signable;
use crate::acs::{encode, headers, time, v1, v3};
use crate::call::identify::{ReadyCall, RelayedRequest, Scheme, VERSION, Verified};
use crate::config::Credentials;
use crate::error::{Kind, Refusal};

const USER_AGENT: HeaderValue =
    HeaderValue::from_static(concat!("flowgate/", env!("CARGO_PKG_VERSION")));
const FORM: HeaderValue = HeaderValue::from_static("application/x-www-form-urlencoded");
const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");
const ACCEPTED: HeaderValue = HeaderValue::from_static("application/json");
const NOT_ENCODED: HeaderValue = HeaderValue::from_static("identity");
const API_VERSION: HeaderValue = HeaderValue::from_static(VERSION);

/// Headers of a version 3 request, with those of a session.
const MAX_HEADERS: usize = 14;
/// Bytes of a target; a longer one grows.
const USUAL_TARGET: usize = 512;

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
        Scheme::V1 => sign_v1(call, credentials, fields),
        Scheme::V3 => sign_v3(call, credentials, fields),
    }
}

fn sign_v3(
    call: &Verified,
    credentials: &Credentials,
    fields: AttemptFields<'_>,
) -> Result<Request<Full<Bytes>>, Refusal> {
    let (body, content_type) = body(call);
    let body_hash = v3::hash(&body);
    let key = credentials.access_key_id.as_str();
    let token = credentials.security_token.as_ref();
    // In ascending order.
    let mut signed = Vec::with_capacity(MAX_HEADERS);
    signed.extend(content_type.map(|content_type| (header::CONTENT_TYPE, content_type)));
    signed.push((header::HOST, value(fields.host)));
    signed.extend(token.map(|_| (headers::KEY, value(key))));
    signed.extend([
        (headers::ACTION, value(call.action().as_str())),
        (headers::BODY_HASH, value(&body_hash)),
        (headers::DATE, owned_value(fields.date)),
    ]);
    signed.extend(token.map(|token| (headers::TOKEN, secret_value(token.expose().to_owned()))));
    signed.extend([
        (headers::NONCE, owned_value(fields.nonce)),
        (headers::VERSION, API_VERSION),
    ]);
    let authorization = Signable {
        method: call.method().as_str(),
        query: call.params().query().collect(),
        headers: signed
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_bytes()))
            .collect(),
        body_hash: &body_hash,
    }
    .authorization(key, &credentials.secret);
    let mut request = request(call.method(), target(call.params().query()), body)?;
    let headers = request.headers_mut();
    headers.extend(signed);
    headers.insert(header::ACCEPT, ACCEPTED);
    headers.insert(header::AUTHORIZATION, secret_value(authorization));
    Ok(request)
}

fn sign_v1(
    call: &Verified,
    credentials: &Credentials,
    fields: AttemptFields<'_>,
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
    let mut request = request(call.method(), target(query), body)?;
    let headers = request.headers_mut();
    headers.insert(header::HOST, value(fields.host));
    headers.insert(headers::ACTION, value(call.action().as_str()));
    headers.insert(headers::VERSION, API_VERSION);
    if let Some(content_type) = content_type {
        headers.insert(header::CONTENT_TYPE, content_type);
    }
    Ok(request)
}

fn relay(call: &RelayedRequest, upstream_host: &str) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(call.body().clone()));
    *request.method_mut() = call.method().clone();
    *request.uri_mut() = Uri::from(call.target().clone());
    request.headers_mut().reserve(call.headers().len() + 3);
    let headers = request.headers_mut();
    headers.insert(header::HOST, value(upstream_host));
    for (name, value) in call.headers() {
        if name == header::HOST {
            headers.insert(name, value.clone());
        } else {
            headers.append(name, value.clone());
        }
    }
    headers
        .entry(header::ACCEPT_ENCODING)
        .or_insert(NOT_ENCODED);
    put_length(headers, call.method(), call.body().len());
    request
}

/// The body and its content type; an empty body has none.
fn body(call: &Verified) -> (Bytes, Option<HeaderValue>) {
    if let Some(json) = call.json() {
        return (json.clone(), Some(JSON));
    }
    let form = encode::pairs(call.params().form());
    let content_type = (!form.is_empty()).then_some(FORM);
    (form.into(), content_type)
}

fn target<'a>(query: impl IntoIterator<Item = (&'a str, &'a str)>) -> Bytes {
    let mut target = Vec::with_capacity(USUAL_TARGET);
    target.extend_from_slice(b"/?");
    encode::append_pairs(&mut target, query);
    if target.len() == 2 {
        target.pop();
    }
    target.into()
}

fn request(method: &Method, target: Bytes, body: Bytes) -> Result<Request<Full<Bytes>>, Refusal> {
    let length = body.len();
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method.clone();
    // The encoded query is ASCII, so only its length can be wrong.
    let target = PathAndQuery::from_maybe_shared(target).map_err(|_| too_long())?;
    *request.uri_mut() = target.into();
    let headers = request.headers_mut();
    headers.reserve(MAX_HEADERS);
    headers.insert(header::USER_AGENT, USER_AGENT);
    headers.insert(header::ACCEPT_ENCODING, NOT_ENCODED);
    put_length(headers, method, length);
    Ok(request)
}

/// The refusal of a call whose query has no room for the security token.
fn too_long() -> Refusal {
    let message = "With the account's security token the query is longer than 64 KiB after encoding. \
                   Sign with version 3, which sends the token in a header, or send long parameters \
                   in the body. CAMS has done nothing.";
    Refusal::new(Kind::TooLarge, message)
}

fn put_length(message: &mut HeaderMap, method: &Method, length: usize) {
    if *method != Method::GET {
        message.insert(header::CONTENT_LENGTH, headers::number(length as u64));
    }
}

fn value(text: &str) -> HeaderValue {
    checked(HeaderValue::from_str(text))
}

/// Like [`value`], without a copy.
fn owned_value(text: String) -> HeaderValue {
    checked(HeaderValue::try_from(text))
}

/// The value of a header that is not shown by `Debug`.
fn secret_value(text: String) -> HeaderValue {
    let mut value = owned_value(text);
    value.set_sensitive(true);
    value
}

fn checked(value: Result<HeaderValue, InvalidHeaderValue>) -> HeaderValue {
    value.expect("the configuration admits no control characters in keys, tokens and hosts")
}
