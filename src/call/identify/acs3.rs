//! Verifies version 3 signatures. The head is enough for this, because it contains the hash of the
//! body: no body is read for a caller that cannot sign.

use hyper::header::{HOST, HeaderName, HeaderValue};

use super::checked_head::{self, CheckedHead};
use super::names::{TWO_SCHEMES, is_common};
use super::refusals::{self, bad, incomplete, one};
use super::signature_fields::SignatureFields;
use crate::acs::decode::Params;
use crate::acs::hop_by_hop::connection_listed;
use crate::acs::v3::{self, Algorithm, Authorization, Signable};
use crate::error::{Kind, Refusal};
use crate::primitives::secret::Secret;

/// The headers that CAMS's gateway evaluates, which therefore must be signed.
const REQUIRED: [&str; 6] = [
    "host",
    "x-acs-action",
    "x-acs-content-sha256",
    "x-acs-date",
    "x-acs-signature-nonce",
    "x-acs-version",
];

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
    head: &'a CheckedHead<'_>,
    authorization: &'a Authorization<'_>,
) -> Result<(SignatureFields<'a>, Acs3), Refusal> {
    if head.params.iter().any(|(name, _)| is_common(name)) {
        return Err(bad(TWO_SCHEMES));
    }
    let action = header_text(head, &ACTION)?;
    if action.is_empty() {
        return Err(bad("the mandatory Action is missing"));
    }
    covers(head, authorization)?;
    let body_hash = header_text(head, &BODY_HASH)?;
    if body_hash.len() != 64 || !v3::is_hex(body_hash) {
        return Err(bad(
            "x-acs-content-sha256 is not 64 lower-case hexadecimal digits",
        ));
    }
    let key = header_text(head, &KEY)?;
    if !key.is_empty() && key != authorization.credential {
        return Err(bad("x-acs-accesskey-id differs from the Credential"));
    }
    let proof = Acs3 {
        algorithm: authorization.algorithm,
        body_hash: body_hash.to_owned(),
        signs_type: authorization.signed_headers.contains(&"content-type"),
    };
    let fields = SignatureFields {
        key: authorization.credential,
        action,
        version: header_text(head, &VERSION)?,
        nonce: header_text(head, &NONCE)?,
        stamp: header_text(head, &DATE)?,
    };
    Ok((fields, proof))
}

/// The single value of a header; empty if it is missing.
fn header_text<'a>(head: &CheckedHead<'a>, name: &HeaderName) -> Result<&'a str, Refusal> {
    let Some(value) = one(&head.parts.headers, name)? else {
        return Ok("");
    };
    value
        .to_str()
        .map_err(|_| bad(format!("the header {name} is not ASCII")))
}

/// Checks that the signature covers all required headers and every `x-acs-*` header, and that each
/// signed header has exactly one value.
fn covers(head: &CheckedHead<'_>, authorization: &Authorization<'_>) -> Result<(), Refusal> {
    let headers = &head.parts.headers;
    let signed = &authorization.signed_headers;
    if let Some(missing) = REQUIRED.iter().find(|name| !signed.contains(name)) {
        let advice = match *missing {
            "host" => ". If the SDK does not sign it, use signature version 1",
            _ => "",
        };
        return Err(incomplete(format!(
            "SignedHeaders must contain {missing}{advice}"
        )));
    }
    // The Go SDK sends one if its endpoint ends with a slash, and signs another.
    if headers.get(HOST).is_some_and(HeaderValue::is_empty) {
        return Err(Refusal::new(
            Kind::SignedHostMismatch,
            "The Host header is empty: the SDK's endpoint must be only host and port.",
        ));
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
        if checked_head::is_not_forwarded(name)
            || *name == "authorization"
            || listed.iter().any(|other| other == name)
        {
            return Err(bad(
                "SignedHeaders contain a hop-by-hop header or Authorization",
            ));
        }
        if values != 1 {
            return Err(bad("a signed header is missing or occurs twice"));
        }
    }
    Ok(())
}

fn signable<'a>(
    head: &'a CheckedHead<'_>,
    params: &'a Params,
    authorization: &Authorization<'a>,
    body_hash: &'a str,
) -> Signable<'a> {
    Signable {
        method: head.parts.method.as_str(),
        query: params.query().collect(),
        headers: authorization
            .signed_headers
            .iter()
            .map(|name| (*name, head.parts.headers[*name].as_bytes()))
            .collect(),
        body_hash,
    }
}

// === impl Acs3 ===

impl Acs3 {
    /// Checks that one of the secrets made the signature.
    pub(super) fn verify(
        &self,
        secrets: &[Secret],
        head: &CheckedHead<'_>,
        params: &Params,
        authorization: &Authorization<'_>,
    ) -> Result<(), Refusal> {
        if self.algorithm != Algorithm::HmacSha256 {
            return Err(refusals::unsupported());
        }
        let string_to_sign =
            signable(head, params, authorization, &self.body_hash).string_to_sign();
        let is_valid = secrets
            .iter()
            .any(|secret| v3::verify(secret, &string_to_sign, authorization.signature));
        if !is_valid {
            return Err(refusals::wrong_signature());
        }
        Ok(())
    }

    /// Checks that the body matches its hash in the head. A hash with SM3 is left to CAMS.
    pub(super) fn check_body(&self, body: &[u8]) -> Result<(), Refusal> {
        if self.algorithm.hashes_with_sha256() && v3::hash(body) != self.body_hash {
            return Err(Refusal::new(
                Kind::SignatureDoesNotMatch,
                "Specified signature is not matched with our calculation: the body does not match \
                 x-acs-content-sha256.",
            ));
        }
        if !body.is_empty() && !self.signs_type {
            return Err(incomplete(
                "SignedHeaders must contain content-type if there is a body",
            ));
        }
        Ok(())
    }
}
