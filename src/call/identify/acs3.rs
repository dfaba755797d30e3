//! Verifies version 3 signatures. The head is enough for this, because it contains the hash of the
//! body: no body is read for a caller that cannot sign.

use super::checked_head::{self, CheckedHead};
use super::known_headers::Known;
use super::names::{TWO_SCHEMES, is_common};
use super::refusals::{self, bad, incomplete};
use super::signature_fields::SignatureFields;
use crate::acs::decode::Params;
use crate::acs::hop_by_hop::connection_listed;
use crate::acs::v3::{self, Algorithm, Authorization, Signable};
use crate::error::{Kind, Refusal};
use crate::primitives::secret::Secret;

/// The headers that CAMS's gateway evaluates, which therefore must be signed; in ascending order.
const REQUIRED: [&str; 6] = [
    "host",
    "x-acs-action",
    "x-acs-content-sha256",
    "x-acs-date",
    "x-acs-signature-nonce",
    "x-acs-version",
];

/// A version 3 signature.
pub(super) struct Acs3 {
    algorithm: Algorithm,
    body_hash: BodyHash,
    signs_type: bool,
}

/// Lower-case hexadecimal digits.
type BodyHash = [u8; 64];

/// The signature of a call and what it covers.
pub(super) struct SignedHead<'a> {
    pub(super) authorization: &'a Authorization<'a>,
    /// The signed headers, in the order of their names.
    headers: Vec<(&'a str, &'a [u8])>,
}

/// Reads the head of a version 3 call.
pub(super) fn read<'a, 'b>(
    head: &'a CheckedHead<'b>,
    authorization: &'b Authorization<'_>,
) -> Result<(SignatureFields<'a>, Acs3, SignedHead<'b>), Refusal> {
    if head.params.iter().any(|(name, _)| is_common(name)) {
        return Err(bad(TWO_SCHEMES));
    }
    let action = header_text(head, Known::Action)?;
    if action.is_empty() {
        return Err(bad("the mandatory Action is missing"));
    }
    let headers = covered(head, authorization)?;
    let body_hash = header_text(head, Known::BodyHash)?;
    let body_hash = body_hash_of(body_hash).ok_or_else(malformed_body_hash)?;
    let key = header_text(head, Known::Key)?;
    if !key.is_empty() && key != authorization.credential {
        return Err(bad("x-acs-accesskey-id differs from the Credential"));
    }
    let proof = Acs3 {
        algorithm: authorization.algorithm,
        body_hash,
        signs_type: authorization.signed_headers.contains(&"content-type"),
    };
    let fields = SignatureFields {
        key: authorization.credential,
        action,
        version: header_text(head, Known::Version)?,
        nonce: header_text(head, Known::Nonce)?,
        stamp: header_text(head, Known::Date)?,
    };
    let signed = SignedHead {
        authorization,
        headers,
    };
    Ok((fields, proof, signed))
}

fn body_hash_of(text: &str) -> Option<BodyHash> {
    text.as_bytes().try_into().ok().filter(|_| v3::is_hex(text))
}

#[cold]
fn malformed_body_hash() -> Refusal {
    bad("x-acs-content-sha256 is not 64 lower-case hexadecimal digits")
}

/// The single value of a header; empty if it is missing.
fn header_text<'a>(head: &CheckedHead<'a>, header: Known) -> Result<&'a str, Refusal> {
    let Some(value) = head.headers.one(header)? else {
        return Ok("");
    };
    value.to_str().map_err(|_| not_ascii(header))
}

#[cold]
fn not_ascii(header: Known) -> Refusal {
    bad(format!("the header {} is not ASCII", header.name()))
}

/// Checks that the signature covers all required headers and every `x-acs-*` header, and that each
/// signed header has exactly one value. Returns the signed headers.
fn covered<'a>(
    head: &CheckedHead<'a>,
    authorization: &'a Authorization<'_>,
) -> Result<Vec<(&'a str, &'a [u8])>, Refusal> {
    let signed = &authorization.signed_headers;
    // Both are in ascending order.
    let mut required = REQUIRED.iter().peekable();
    for name in signed {
        required.next_if_eq(&name);
    }
    if let Some(missing) = required.next() {
        return Err(not_signed(missing));
    }
    // The Go SDK sends one if its endpoint ends with a slash, and signs another.
    if head.host.is_empty() {
        return Err(empty_host());
    }
    // Otherwise a caller could make the comparisons below many.
    if signed.len() > head.parts.headers.len() {
        return Err(bad("a signed header is missing or occurs twice"));
    }
    let mut values = vec![Value::Missing; signed.len()];
    for (name, value) in &head.parts.headers {
        let name = name.as_str();
        // Quicker than a binary search: most names differ in their lengths.
        match signed.iter().position(|signed| *signed == name) {
            Some(at) => values[at].add(value.as_bytes()),
            None if name.starts_with("x-acs-") => {
                return Err(incomplete(format!("the header {name} is not signed")));
            }
            None => {}
        }
    }
    let listed = match head.headers.has(Known::Connection) {
        true => connection_listed(&head.parts.headers),
        false => Vec::new(),
    };
    let mut headers = Vec::with_capacity(signed.len());
    for (&name, value) in signed.iter().zip(values) {
        if checked_head::is_not_forwarded(name)
            || name == "authorization"
            || listed.iter().any(|other| other == name)
        {
            return Err(bad(
                "SignedHeaders contain a hop-by-hop header or Authorization",
            ));
        }
        let Value::One(value) = value else {
            return Err(bad("a signed header is missing or occurs twice"));
        };
        headers.push((name, value));
    }
    Ok(headers)
}

/// The values that a signed header has.
#[derive(Clone, Copy)]
enum Value<'a> {
    Missing,
    One(&'a [u8]),
    Several,
}

// === impl Value ===

impl<'a> Value<'a> {
    fn add(&mut self, value: &'a [u8]) {
        *self = match self {
            Self::Missing => Self::One(value),
            Self::One(_) | Self::Several => Self::Several,
        };
    }
}

#[cold]
fn not_signed(missing: &str) -> Refusal {
    let advice = match missing {
        "host" => ". If the SDK does not sign it, use signature version 1",
        _ => "",
    };
    incomplete(format!("SignedHeaders must contain {missing}{advice}"))
}

#[cold]
fn empty_host() -> Refusal {
    Refusal::new(
        Kind::SignedHostMismatch,
        "The Host header is empty: the SDK's endpoint must be only host and port.",
    )
}

// === impl Acs3 ===

impl Acs3 {
    /// Checks that one of the secrets made the signature.
    pub(super) fn verify(
        &self,
        secrets: &[Secret],
        head: &CheckedHead<'_>,
        params: &Params,
        signed: SignedHead<'_>,
    ) -> Result<(), Refusal> {
        if self.algorithm != Algorithm::HmacSha256 {
            return Err(refusals::unsupported());
        }
        let string_to_sign = Signable {
            method: head.parts.method.as_str(),
            query: params.query().collect(),
            headers: signed.headers,
            body_hash: header_text(head, Known::BodyHash)?,
        }
        .string_to_sign();
        let signature = signed.authorization.signature;
        let is_valid = secrets
            .iter()
            .any(|secret| v3::verify(secret, &string_to_sign, signature));
        if !is_valid {
            return Err(refusals::wrong_signature());
        }
        Ok(())
    }

    /// Checks that the body matches its hash in the head. A hash with SM3 is left to CAMS.
    pub(super) fn check_body(&self, body: &[u8]) -> Result<(), Refusal> {
        if self.algorithm.hashes_with_sha256() && v3::hash(body).as_bytes() != self.body_hash {
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
