//! What of a relayed call goes on? All of it that its signature covers, byte for byte, and no header that is between two
//! neighbours, meant for Flowgate, or said by somebody else.

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::uri::PathAndQuery;

use super::bad;
use super::directory::Directory;
use super::said::is_foreign;
use super::shape::{self, Shape};
use crate::acs::decode::Params;
use crate::acs::v3::Authorization;
use crate::error::{Kind, Refusal};

/// The part of a relayed call that its head decides.
pub(super) struct Passage {
    pub(super) target: PathAndQuery,
    pub(super) headers: HeaderMap,
}

/// Picks what goes on; `signed` is the `Authorization` of a version 3 call.
pub(super) fn passage(
    shape: &Shape<'_>,
    params: &Params,
    signed: Option<&Authorization<'_>>,
    directory: &Directory,
) -> Result<Passage, Refusal> {
    if signed.is_some() && shape.host.as_bytes() != directory.upstream_host().as_bytes() {
        return Err(Refusal::new(
            Kind::SignedHostMismatch,
            format!(
                "The call is signed for another host than {}, and Flowgate has no secret to sign it anew: keep the \
                 SDK's endpoint and use Flowgate as its http_proxy with protocol HTTP, or give Flowgate the secret of \
                 this access key.",
                directory.upstream_host()
            ),
        ));
    }
    let all = &shape.parts.headers;
    if all.keys().any(|name| speaks_for_another(name.as_str())) || params.iter().any(|(name, _)| is_foreign(name)) {
        return Err(bad("a header or parameter speaks for another caller"));
    }
    let is_signed = |name: &str| signed.is_some_and(|signed| signed.signed_headers.contains(&name));
    let listed = shape::connection_listed(all);
    let stays =
        |name: &str| shape::is_hop(name) || listed.iter().any(|other| other == name) || name.starts_with("x-flowgate-");
    let mut headers = HeaderMap::with_capacity(all.len() + 2);
    for (name, value) in all.iter().filter(|(name, _)| !stays(name.as_str()) || is_signed(name.as_str())) {
        headers.append(own_name(name), own_value(value));
    }
    // Sign writes this and the host anew.
    headers.remove(header::CONTENT_LENGTH);
    if !is_signed("accept-encoding") {
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
    let target = shape.target.as_str().parse().expect("it was parsed from the same text");
    Ok(Passage { target, headers })
}

/// A copy that does not keep the caller's read buffer, 8 KiB and more, for as long as the call waits.
fn own_name(name: &HeaderName) -> HeaderName {
    HeaderName::from_bytes(name.as_str().as_bytes()).expect("a name is one")
}

/// As [`own_name`].
fn own_value(value: &HeaderValue) -> HeaderValue {
    HeaderValue::from_bytes(value.as_bytes()).expect("a value is one")
}

/// Headers with which a gateway speaks for somebody else.
fn speaks_for_another(name: &str) -> bool {
    matches!(name, "x-acs-source-ip" | "x-acs-secure-transport" | "x-acs-parent-id")
        || name.starts_with("x-acs-proxy-")
        || name.starts_with("x-acs-caller-")
}
