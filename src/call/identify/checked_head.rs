//! Checks the form of a request head before the caller is identified. It refuses requests that two
//! servers could interpret differently, requests from browsers, and requests for another proxy.

use hyper::Method;
use hyper::header::HeaderValue;
use hyper::http::request::Parts;
use hyper::http::uri::{PathAndQuery, Scheme};

use super::directory::Directory;
use super::known_headers::{Known, KnownHeaders};
use super::names::{LIKE_ACS_HEADER, is_acs_header};
use super::refusals::bad;
use crate::acs::decode::Params;
use crate::acs::hop_by_hop::is_hop_by_hop;
use crate::config::names::Authority;
use crate::error::{Kind, Refusal};

/// The port of an absolute `http` target that names none.
const HTTP_PORT: u16 = 80;

/// A request head with one possible interpretation.
pub(super) struct CheckedHead<'a> {
    pub(super) parts: &'a Parts,
    pub(super) headers: KnownHeaders<'a>,
    pub(super) target: PathAndQuery,
    pub(super) host: &'a HeaderValue,
    pub(super) params: Params,
    pub(super) body: BodyType,
}

/// The declared type of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyType {
    /// No content type.
    Unsaid,
    /// `application/x-www-form-urlencoded`.
    Form,
    /// `application/json`.
    Json,
    /// Something else, or another character set than UTF-8.
    Other,
    /// A form that is already among the parameters.
    Read,
}

/// Checks framing, target and headers, and decodes the query.
pub(super) fn read<'a>(
    parts: &'a Parts,
    directory: &Directory,
) -> Result<CheckedHead<'a>, Refusal> {
    if parts.method == Method::CONNECT {
        return Err(no_tunnels());
    }
    if parts.method != Method::GET && parts.method != Method::POST {
        return Err(bad("the method is neither GET nor POST"));
    }
    let headers = KnownHeaders::new(&parts.headers);
    framing(&headers)?;
    browser(&headers)?;
    let host = headers.one(Known::Host)?;
    let host = host.ok_or_else(|| bad("the Host header is missing"))?;
    let target = target(parts, host, directory)?;
    let params = Params::from_query(target.query().unwrap_or_default()).map_err(bad)?;
    if params.iter().any(|(name, _)| is_acs_header(name)) {
        return Err(bad(LIKE_ACS_HEADER));
    }
    Ok(CheckedHead {
        parts,
        target,
        host,
        params,
        body: body_type(&headers)?,
        headers,
    })
}

#[cold]
fn no_tunnels() -> Refusal {
    Refusal::new(
        Kind::Connect,
        "Flowgate opens no tunnels: set the SDK's protocol to HTTP, and use Flowgate as its \
         endpoint or as its http_proxy.",
    )
}

// === impl CheckedHead ===

impl CheckedHead<'_> {
    /// Adds the form's parameters to those of the query.
    pub(super) fn add_form(&mut self, body: &[u8]) -> Result<(), Refusal> {
        self.params.add_form(body).map_err(bad)?;
        if self.params.form().any(|(name, _)| is_acs_header(name)) {
            return Err(bad(LIKE_ACS_HEADER));
        }
        self.body = BodyType::Read;
        Ok(())
    }
}

/// Whether a request header is not forwarded: hop-by-hop, or `Expect`, which Flowgate answers
/// itself.
pub(super) fn is_not_forwarded(name: &str) -> bool {
    name == "expect" || is_hop_by_hop(name)
}

fn framing(headers: &KnownHeaders<'_>) -> Result<(), Refusal> {
    let coding = headers.one(Known::TransferEncoding)?;
    if coding.is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked")) {
        return Err(bad("Transfer-Encoding is not exactly 'chunked'"));
    }
    let coding = headers.one(Known::ContentEncoding)?;
    if coding.is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Err(bad("Content-Encoding is not supported"));
    }
    Ok(())
}

/// Refuses requests from browsers: a web page must not reach a proxy that signs.
fn browser(headers: &KnownHeaders<'_>) -> Result<(), Refusal> {
    if headers.is_from_browser() {
        return Err(bad(
            "calls from browsers are refused, it has an Origin, Cookie or Sec-Fetch header",
        ));
    }
    Ok(())
}

fn target(
    parts: &Parts,
    host: &HeaderValue,
    directory: &Directory,
) -> Result<PathAndQuery, Refusal> {
    match (parts.uri.scheme(), parts.uri.authority()) {
        (None, None) => {}
        (Some(scheme), Some(authority))
            if *scheme == Scheme::HTTP && !authority.as_str().contains('@') =>
        {
            let named = Authority::parse(authority.as_str())
                .ok_or_else(|| bad("the host in the target is malformed"))?;
            if !directory.is_ours(&named) {
                let message = format!(
                    "Flowgate is not a general proxy: it forwards only requests for CAMS. The host \
                     of this request, {authority}, is neither an upstream of the configuration \
                     (upstream.url) nor one of Flowgate's own names (listen.names)."
                );
                return Err(Refusal::new(Kind::ForeignHost, message));
            }
            let is_host = host
                .to_str()
                .ok()
                .and_then(Authority::parse)
                .is_some_and(|host| host.is_same(&named, HTTP_PORT));
            if !is_host {
                return Err(bad("the Host header differs from the host in the target"));
            }
        }
        _ => {
            return Err(bad(
                "the request target is neither a path nor a plain http URL",
            ));
        }
    }
    let target = parts
        .uri
        .path_and_query()
        .ok_or_else(|| bad("the target has no path"))?;
    // Node's SDK sends two slashes if its endpoint ends with one.
    match target.path() {
        "/" | "//" => Ok(target.clone()),
        _ => Err(bad(
            "the path is not '/', the SDK's endpoint must be only host and port",
        )),
    }
}

/// Whether the parameter of a content type states UTF-8, in quotes or not.
fn is_utf8(parameter: &str) -> bool {
    ["charset=utf-8", "charset=\"utf-8\""]
        .iter()
        .any(|known| known.eq_ignore_ascii_case(parameter))
}

fn body_type(headers: &KnownHeaders<'_>) -> Result<BodyType, Refusal> {
    let Some(value) = headers.one(Known::ContentType)? else {
        return Ok(BodyType::Unsaid);
    };
    let Ok(value) = value.to_str() else {
        return Ok(BodyType::Other);
    };
    let (essence, parameter) = value.split_once(';').unwrap_or((value, "charset=utf-8"));
    if !is_utf8(parameter.trim_ascii()) {
        return Ok(BodyType::Other);
    }
    match essence.trim_ascii().to_ascii_lowercase().as_str() {
        "application/x-www-form-urlencoded" => Ok(BodyType::Form),
        "application/json" => Ok(BodyType::Json),
        _ => Ok(BodyType::Other),
    }
}
