//! What of a relayed call goes on? All of it that its signature covers, byte for byte, and no header that is between two
//! neighbours, meant for Flowgate, or said by somebody else.

use bytes::Bytes;
use hyper::header::{self, HeaderName};

use super::directory::Directory;
use super::names::is_foreign;
use super::passage::Passage;
use super::refusals::bad;
use super::shape::{self, Shape};
use crate::acs::decode::Params;
use crate::acs::hop_by_hop::connection_listed;
use crate::acs::v3::Authorization;
use crate::error::{Kind, Refusal};

const FOR_ANOTHER: &str = "a header or parameter speaks for another caller";

/// Picks what goes on, but for the body; `signed` is the `Authorization` of a version 3 call.
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
    if all.keys().any(|name| speaks_for_another(name.as_str())) {
        return Err(bad(FOR_ANOTHER));
    }
    check_params(params.query())?;
    let is_signed = |name: &str| signed.is_some_and(|signed| signed.signed_headers.contains(&name));
    let listed = connection_listed(all);
    let stays = |name: &str| {
        shape::is_hop(name)
            || listed.iter().any(|other| other == name)
            || name.starts_with("x-flowgate-")
    };
    // Sign writes these anew: what waits does not hold them. An encoding stays if it is signed.
    let is_written = |name: &HeaderName| {
        [header::HOST, header::CONTENT_LENGTH].contains(name)
            || name == header::ACCEPT_ENCODING && !is_signed("accept-encoding")
    };
    let goes = |name: &HeaderName| {
        !is_written(name) && (!stays(name.as_str()) || is_signed(name.as_str()))
    };
    let headers = all
        .iter()
        .filter(|(name, _)| goes(name))
        .map(|(name, value)| (name.clone(), value.clone()));
    let (method, target) = (shape.parts.method.clone(), shape.target.clone());
    Ok(Passage {
        method,
        target,
        headers: headers.collect(),
        body: Bytes::new(),
    })
}

/// Whether none of these parameters speaks for somebody else: what is signed cannot be left out.
pub(super) fn check_params<'a>(
    mut params: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<(), Refusal> {
    match params.any(|(name, _)| is_foreign(name)) {
        true => Err(bad(FOR_ANOTHER)),
        false => Ok(()),
    }
}

/// Headers with which a gateway speaks for somebody else.
fn speaks_for_another(name: &str) -> bool {
    matches!(
        name,
        "x-acs-source-ip" | "x-acs-secure-transport" | "x-acs-parent-id"
    ) || name.starts_with("x-acs-proxy-")
        || name.starts_with("x-acs-caller-")
}
