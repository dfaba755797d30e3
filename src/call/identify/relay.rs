//! Selects what is forwarded of a relayed call, byte for byte: all headers except hop-by-hop
//! headers, headers for Flowgate and those that `sign` writes. A signed header is always forwarded,
//! except Content-Length. Version 1 signs no header, so no `x-acs-*` header of such a call is. A
//! call that states properties of another caller is refused.

use bytes::Bytes;
use hyper::header::{self, HeaderName};

use super::checked_head::{self, CheckedHead};
use super::directory::Directory;
use super::known_headers::Known;
use super::names::is_foreign;
use super::refusals::bad;
use super::relayed_request::RelayedRequest;
use crate::acs::decode::Params;
use crate::acs::headers;
use crate::acs::hop_by_hop::connection_listed;
use crate::acs::v3::Authorization;
use crate::config::UpstreamIndex;
use crate::config::names::Authority;
use crate::error::{Kind, Refusal};

const FOR_ANOTHER: &str =
    "a header or parameter states properties of another caller (such as its address)";

/// The first characters of the access key ids of sessions.
const SESSION_KEY: &str = "STS.";

/// Selects the forwarded parts, without the body. `signed` is the `Authorization` of a version 3
/// call.
pub(super) fn relayed_request(
    head: &CheckedHead<'_>,
    params: &Params,
    signed: Option<&Authorization<'_>>,
    directory: &Directory,
    upstream: UpstreamIndex,
) -> Result<RelayedRequest, Refusal> {
    let upstream_host = directory.upstream_host(upstream);
    directory.check_unsigned_host(head.host, upstream)?;
    if let Some(signed) = signed
        && !is_for_upstream(head, directory, upstream)
    {
        return Err(not_for_upstream(upstream_host, signed));
    }
    let all = &head.parts.headers;
    let is_delegated = all.keys().any(|name| is_delegation_header(name.as_str()));
    if signed.is_some() && is_delegated {
        return Err(bad(FOR_ANOTHER));
    }
    check_params(params.iter())?;
    let signed_headers = signed.map_or(&[][..], |signed| &signed.signed_headers[..]);
    let connection_listed = match head.headers.has(Known::Connection) {
        true => connection_listed(all),
        false => Vec::new(),
    };
    let forwarded = all
        .iter()
        .filter(|(name, _)| is_forwarded(name, signed_headers, &connection_listed))
        .filter(|(name, _)| signed.is_some() || !name.as_str().starts_with("x-acs-"))
        .map(|(name, value)| (headers::copy(name), value.clone()));
    // Nearly all are forwarded. A `collect` would grow the list step by step.
    let mut forwarded_headers = Vec::with_capacity(all.len());
    forwarded_headers.extend(forwarded);
    Ok(RelayedRequest {
        method: head.parts.method.clone(),
        target: head.target.clone(),
        headers: forwarded_headers.into_boxed_slice(),
        body: Bytes::new(),
    })
}

/// The refusal of a call that is signed for another host. Flowgate cannot have the secret of a
/// session that an application has obtained.
fn not_for_upstream(upstream_host: &str, signed: &Authorization<'_>) -> Refusal {
    let or_secret = if signed.credential.starts_with(SESSION_KEY) {
        ""
    } else {
        "; or add the secret of this access key to Flowgate's configuration"
    };
    let message = format!(
        "The call is not signed for {upstream_host}, and Flowgate has no secret for this access key \
         to sign it again. Either sign with a key that Flowgate issues ([[clients]], flowgate client \
         new) for an account whose credentials it has; or sign with version 1 (signature_algorithm \
         \"v2\" in Python and Node), which does not cover the host; or keep the SDK's endpoint and \
         use Flowgate as its http_proxy with protocol HTTP{or_secret}."
    );
    Refusal::new(Kind::SignedHostMismatch, message)
}

/// Whether the call is signed for CAMS. CAMS verifies the host as it was signed, so that it is
/// forwarded as it is, with its port and in its case.
fn is_for_upstream(head: &CheckedHead<'_>, directory: &Directory, upstream: UpstreamIndex) -> bool {
    let host = head.host.to_str().ok();
    host.is_some_and(|host| host == directory.upstream_host(upstream))
        || host
            .and_then(Authority::parse)
            .is_some_and(|host| directory.is_of_upstream(&host, upstream))
}

/// Whether a header is forwarded. Every signed header is, because CAMS verifies it, except the
/// length, which `sign` writes.
fn is_forwarded(name: &HeaderName, signed: &[&str], connection_listed: &[String]) -> bool {
    if name == header::CONTENT_LENGTH {
        return false;
    }
    let name = name.as_str();
    if signed.contains(&name) {
        return true;
    }
    if name == header::HOST.as_str() {
        return false;
    }
    let is_for_this_hop =
        checked_head::is_not_forwarded(name) || connection_listed.iter().any(|other| other == name);
    let is_for_flowgate = name.starts_with("x-flowgate-") || is_of_balancer(name);
    let is_written_by_sign = name == header::ACCEPT_ENCODING.as_str();
    !is_for_this_hop && !is_for_flowgate && !is_written_by_sign
}

/// Refuses parameters that state properties of another caller. They are signed, so they cannot be
/// dropped.
pub(super) fn check_params<'a>(
    mut params: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<(), Refusal> {
    if params.any(|(name, _)| is_foreign(name)) {
        return Err(bad(FOR_ANOTHER));
    }
    Ok(())
}

/// Whether a balancer uses this header to tell the next server about the caller.
fn is_of_balancer(name: &str) -> bool {
    name.starts_with("x-forwarded-") || matches!(name, "forwarded" | "x-real-ip")
}

/// Whether a gateway uses this header to state properties of another caller.
fn is_delegation_header(name: &str) -> bool {
    matches!(
        name,
        "x-acs-source-ip" | "x-acs-secure-transport" | "x-acs-parent-id"
    ) || name.starts_with("x-acs-proxy-")
        || name.starts_with("x-acs-caller-")
}
