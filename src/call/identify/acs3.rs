//! Does a version 3 signature cover all that matters, and is it right? Both are known from the head alone, because the
//! head states the body's hash: nothing of a body is read for a caller that cannot sign.

use hyper::header::HeaderName;

use super::names::is_common;
use super::refusals::{self, bad, incomplete, one};
use super::shape::{self, Shape};
use super::words::Words;
use crate::acs::decode::Params;
use crate::acs::hop_by_hop::connection_listed;
use crate::acs::v3::{self, Algorithm, Authorization, Signable};
use crate::error::{Kind, Refusal};
use crate::primitives::secret::Secret;

/// What CAMS's gateway decides by, and what therefore has to be signed.
const REQUIRED: [&str; 6] = [
    "host",
    "x-acs-action",
    "x-acs-content-sha256",
    "x-acs-date",
    "x-acs-signature-nonce",
    "x-acs-version",
];

// The headers that hold the call's own words.
static ACTION: HeaderName = HeaderName::from_static("x-acs-action");
static BODY_HASH: HeaderName = HeaderName::from_static("x-acs-content-sha256");
static KEY: HeaderName = HeaderName::from_static("x-acs-accesskey-id");
static VERSION: HeaderName = HeaderName::from_static("x-acs-version");
static NONCE: HeaderName = HeaderName::from_static("x-acs-signature-nonce");
static DATE: HeaderName = HeaderName::from_static("x-acs-date");

/// A version 3 signature.
pub(super) struct Acs3 {
    algorithm: Algorithm,
    body_hash: String,
    signs_type: bool,
}

/// Reads the head of a version 3 call.
pub(super) fn read<'a>(
    shape: &'a Shape<'_>,
    authorization: &'a Authorization<'_>,
) -> Result<(Words<'a>, Acs3), Refusal> {
    if shape.params.iter().any(|(name, _)| is_common(name)) {
        return Err(bad(
            "a version 3 Authorization stands beside a parameter of signature version 1",
        ));
    }
    let action = header_text(shape, &ACTION)?;
    if action.is_empty() {
        return Err(bad("the mandatory Action is missing"));
    }
    covers(shape, authorization)?;
    let body_hash = header_text(shape, &BODY_HASH)?;
    if body_hash.len() != 64 || !v3::is_hex(body_hash) {
        return Err(bad(
            "x-acs-content-sha256 is not 64 lower-case hexadecimal digits",
        ));
    }
    let key = header_text(shape, &KEY)?;
    if !key.is_empty() && key != authorization.credential {
        return Err(bad("x-acs-accesskey-id differs from the Credential"));
    }
    let proof = Acs3 {
        algorithm: authorization.algorithm,
        body_hash: body_hash.to_owned(),
        signs_type: authorization.signed_headers.contains(&"content-type"),
    };
    let words = Words {
        key: authorization.credential,
        action,
        version: header_text(shape, &VERSION)?,
        nonce: header_text(shape, &NONCE)?,
        stamp: header_text(shape, &DATE)?,
    };
    Ok((words, proof))
}

/// The header's one value; empty if there is none.
fn header_text<'a>(shape: &Shape<'a>, name: &HeaderName) -> Result<&'a str, Refusal> {
    let value = one(&shape.parts.headers, name)?;
    value.map_or(Ok(""), |value| {
        value
            .to_str()
            .map_err(|_| bad(format!("the header {name} is not ASCII")))
    })
}

/// Whether the signature covers what CAMS decides by and every `x-acs-*` header, and nothing that is not one value.
fn covers(shape: &Shape<'_>, authorization: &Authorization<'_>) -> Result<(), Refusal> {
    let headers = &shape.parts.headers;
    let signed = &authorization.signed_headers;
    if let Some(missing) = REQUIRED.iter().find(|name| !signed.contains(name)) {
        return Err(incomplete(format!("SignedHeaders do not name {missing}")));
    }
    let mut values = vec![0_usize; signed.len()];
    for (name, _) in headers {
        match signed.binary_search(&name.as_str()) {
            Ok(at) => values[at] += 1,
            Err(_) if name.as_str().starts_with("x-acs-") => {
                return Err(incomplete(format!("the header {name} is not signed")));
            }
            Err(_) => {}
        }
    }
    let listed = connection_listed(headers);
    for (name, values) in signed.iter().zip(values) {
        if shape::is_hop(name)
            || *name == "authorization"
            || listed.iter().any(|other| other == name)
        {
            return Err(bad(
                "SignedHeaders name a header that does not leave its connection",
            ));
        }
        if values != 1 {
            return Err(bad("a signed header is missing or occurs twice"));
        }
    }
    Ok(())
}

fn signable<'a>(
    (shape, params): (&'a Shape<'_>, &'a Params),
    authorization: &Authorization<'a>,
    body_hash: &'a str,
) -> Signable<'a> {
    let value = |name: &str| shape.parts.headers[name].as_bytes();
    Signable {
        method: shape.parts.method.as_str(),
        query: params.query().collect(),
        headers: authorization
            .signed_headers
            .iter()
            .map(|name| (*name, value(name)))
            .collect(),
        body_hash,
    }
}

// === impl Acs3 ===

impl Acs3 {
    /// Whether one of the secrets made the signature.
    pub(super) fn verify(
        &self,
        secrets: &[Secret],
        (shape, params): (&Shape<'_>, &Params),
        authorization: &Authorization<'_>,
    ) -> Result<(), Refusal> {
        if self.algorithm != Algorithm::HmacSha256 {
            return Err(incomplete(refusals::SUPPORTED));
        }
        let string_to_sign =
            signable((shape, params), authorization, &self.body_hash).string_to_sign();
        match secrets
            .iter()
            .any(|secret| v3::verify(secret, &string_to_sign, authorization.signature))
        {
            true => Ok(()),
            false => Err(refusals::wrong_signature()),
        }
    }

    /// Whether the body is the one that the head states. SM3 is CAMS's to check.
    pub(super) fn check_body(&self, body: &[u8]) -> Result<(), Refusal> {
        if self.algorithm.hashes_with_sha256() && v3::hash(body) != self.body_hash {
            return Err(Refusal::new(
                Kind::SignatureDoesNotMatch,
                "Specified signature is not matched with our calculation: the body is not the one that \
                 x-acs-content-sha256 states.",
            ));
        }
        if !body.is_empty() && !self.signs_type {
            return Err(incomplete(
                "there is a body, and SignedHeaders do not name content-type",
            ));
        }
        Ok(())
    }
}
