//! Verifies version 1 signatures. They cover the method and the parameters of query and form, so
//! they can be verified only with the body. They do not cover headers: a header may only repeat a
//! parameter.

use hyper::header::HeaderName;

use super::checked_head::CheckedHead;
use super::names::is_misspelt_common;
use super::refusals::{self, bad, incomplete, one};
use super::signature_fields::SignatureFields;
use crate::acs::decode::Params;
use crate::acs::v1;
use crate::error::Refusal;
use crate::primitives::secret::Secret;

/// The parameters that must not be empty.
const REQUIRED: [&str; 5] = [
    "AccessKeyId",
    "Signature",
    "SignatureMethod",
    "SignatureNonce",
    "Timestamp",
];

// Headers that may repeat a parameter.
static ACTION: HeaderName = HeaderName::from_static("x-acs-action");
static VERSION: HeaderName = HeaderName::from_static("x-acs-version");

/// A version 1 signature.
pub(super) struct Rpc {
    is_supported: bool,
    signature: String,
    format: Option<String>,
}

/// Reads the head of a version 1 call.
pub(super) fn read<'a>(head: &'a CheckedHead<'_>) -> Result<(SignatureFields<'a>, Rpc), Refusal> {
    let params = &head.params;
    if params.iter().any(|(name, _)| is_misspelt_common(name)) {
        return Err(bad(
            "a parameter of signature version 1 is spelt in another case",
        ));
    }
    for name in REQUIRED {
        if text(params, name).is_empty() {
            return Err(incomplete(format!(
                "the parameter {name} is missing in the query"
            )));
        }
    }
    if text(params, "SignatureVersion") != v1::VERSION {
        return Err(incomplete("SignatureVersion is not 1.0"));
    }
    check_header(head, &ACTION, "Action")?;
    check_header(head, &VERSION, "Version")?;
    let is_supported = text(params, "SignatureMethod") == v1::METHOD
        // The old SDK sends an empty SignatureType.
        && text(params, "SignatureType").is_empty();
    let proof = Rpc {
        is_supported,
        signature: text(params, "Signature").to_owned(),
        format: format(params)?.map(str::to_owned),
    };
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

/// Checks that a header, if it is present, repeats a parameter.
fn check_header(head: &CheckedHead<'_>, header: &HeaderName, param: &str) -> Result<(), Refusal> {
    let value = one(&head.parts.headers, header)?;
    if value.is_some_and(|value| value.as_bytes() != text(&head.params, param).as_bytes()) {
        return Err(bad(format!(
            "the header {header} differs from the parameter {param}"
        )));
    }
    Ok(())
}

/// The parameter `Format`, if it is present and valid.
fn format(params: &Params) -> Result<Option<&str>, Refusal> {
    let Some(format) = params.get("Format") else {
        return Ok(None);
    };
    let is_known = ["json", "xml"]
        .iter()
        .any(|known| known.eq_ignore_ascii_case(format));
    if !is_known {
        return Err(bad("Format is neither JSON nor XML"));
    }
    Ok(Some(format))
}

// === impl Rpc ===

impl Rpc {
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
