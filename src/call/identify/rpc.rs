//! Verifies version 1 signatures. They cover the method and the parameters of query and form, so
//! they can be verified only with the body, which may even contain the signature itself. They do
//! not cover headers, so no `x-acs-*` header has a meaning.

use hyper::Method;

use super::checked_head::{BodyType, CheckedHead};
use super::known_headers::Known;
use super::names::is_misspelt_common;
use super::refusals::{self, bad, incomplete};
use super::signature_fields::SignatureFields;
use crate::acs::decode::Params;
use crate::acs::v1;
use crate::error::Refusal;
use crate::primitives::secret::Secret;

/// The parameters that identify a call. The first [`REQUIRED`] must not be empty.
const IDENTIFYING: [&str; 8] = [
    "AccessKeyId",
    "Signature",
    "SignatureMethod",
    "SignatureNonce",
    "Timestamp",
    "Action",
    "SignatureVersion",
    "Version",
];
const REQUIRED: usize = 5;

/// A version 1 signature.
pub(super) struct Rpc {
    is_supported: bool,
    signature: String,
    format: Option<String>,
}

/// Whether the caller can be identified only with the form: the head has no `Authorization`, and
/// the query lacks a parameter that identifies the call.
pub(super) fn is_in_form(head: &CheckedHead<'_>) -> bool {
    head.body == BodyType::Form
        && head.parts.method == Method::POST
        && !head.headers.has(Known::Authorization)
        && IDENTIFYING
            .iter()
            .any(|name| head.params.get(name).is_none())
}

/// Reads a version 1 call.
pub(super) fn read<'a>(head: &'a CheckedHead<'_>) -> Result<(SignatureFields<'a>, Rpc), Refusal> {
    let params = &head.params;
    let proof = Rpc::new(params)?;
    for name in &IDENTIFYING[..REQUIRED] {
        if text(params, name).is_empty() {
            return Err(incomplete(format!("the parameter {name} is missing")));
        }
    }
    if text(params, "SignatureVersion") != v1::VERSION {
        return Err(incomplete("SignatureVersion is not 1.0"));
    }
    let fields = SignatureFields {
        key: text(params, "AccessKeyId"),
        action: text(params, "Action"),
        version: text(params, "Version"),
        nonce: text(params, "SignatureNonce"),
        stamp: text(params, "Timestamp"),
    };
    Ok((fields, proof))
}

/// The value of a parameter; empty if it is missing.
fn text<'a>(params: &'a Params, name: &str) -> &'a str {
    params.get(name).unwrap_or_default()
}

/// The parameter `Format`, if it is present and valid. An empty one, which the SDK for C# can send,
/// states nothing.
fn format(params: &Params) -> Result<Option<&str>, Refusal> {
    let Some(format) = params.get("Format") else {
        return Ok(None);
    };
    let is_known = ["json", "xml", ""]
        .iter()
        .any(|known| known.eq_ignore_ascii_case(format));
    if !is_known {
        return Err(bad("Format is neither JSON nor XML"));
    }
    Ok(Some(format))
}

// === impl Rpc ===

impl Rpc {
    /// Reads everything but what identifies the caller.
    pub(super) fn new(params: &Params) -> Result<Self, Refusal> {
        if params.iter().any(|(name, _)| is_misspelt_common(name)) {
            return Err(bad(
                "a parameter of signature version 1 is spelt in another case",
            ));
        }
        if params.get("BearerToken").is_some() {
            return Err(refusals::bearer());
        }
        let is_supported = text(params, "SignatureMethod") == v1::METHOD
            // The old SDK sends an empty SignatureType.
            && text(params, "SignatureType").is_empty();
        Ok(Self {
            is_supported,
            signature: text(params, "Signature").to_owned(),
            format: format(params)?.map(str::to_owned),
        })
    }

    /// Checks that Flowgate supports this kind of signature.
    pub(super) fn check_method(&self) -> Result<(), Refusal> {
        if !self.is_supported {
            return Err(refusals::unsupported());
        }
        Ok(())
    }

    /// Checks that one of the secrets made the signature.
    pub(super) fn verify(
        &self,
        secrets: &[Secret],
        method: &str,
        params: &Params,
    ) -> Result<(), Refusal> {
        // The form may have added a `SignatureType` to what the head stated.
        self.check_method()?;
        let string_to_sign = v1::string_to_sign(method, params.iter());
        let is_valid = secrets
            .iter()
            .any(|secret| v1::verify(secret, &string_to_sign, &self.signature));
        if !is_valid {
            return Err(refusals::wrong_signature());
        }
        Ok(())
    }

    /// `Format`, as the caller wrote it.
    pub(super) fn into_format(self) -> Option<String> {
        self.format
    }
}
