//! Does a version 1 signature state all that it must, and is it right? It covers the method and the parameters of query
//! and form, so it is known only with the body, and the headers prove nothing: they may repeat the parameters at most.

use hyper::header::HeaderName;

use super::names::is_misspelt_common;
use super::refusals::{self, bad, incomplete, one};
use super::shape::Shape;
use super::words::Words;
use crate::acs::decode::Params;
use crate::acs::v1;
use crate::error::Refusal;
use crate::primitives::secret::Secret;

/// A version 1 signature.
pub(super) struct Rpc {
    is_supported: bool,
    signature: String,
    format: Option<String>,
}

/// Reads the head of a version 1 call.
pub(super) fn read<'a>(shape: &'a Shape<'_>) -> Result<(Words<'a>, Rpc), Refusal> {
    if shape
        .params
        .iter()
        .any(|(name, _)| is_misspelt_common(name))
    {
        return Err(bad(
            "a parameter of signature version 1 is spelt in another case",
        ));
    }
    let get = |name| shape.params.get(name).unwrap_or_default();
    for name in [
        "AccessKeyId",
        "Signature",
        "SignatureMethod",
        "SignatureNonce",
        "Timestamp",
    ] {
        if get(name).is_empty() {
            return Err(incomplete(format!("the query has no {name}")));
        }
    }
    if get("SignatureVersion") != v1::VERSION {
        return Err(incomplete("SignatureVersion is not 1.0"));
    }
    for (header, param) in [("x-acs-action", "Action"), ("x-acs-version", "Version")] {
        let value = one(&shape.parts.headers, &HeaderName::from_static(header))?;
        if value.is_some_and(|value| value.as_bytes() != get(param).as_bytes()) {
            return Err(bad(format!(
                "the header {header} differs from the parameter {param}"
            )));
        }
    }
    let format = shape.params.get("Format");
    if format.is_some_and(|format| {
        !["json", "xml"]
            .iter()
            .any(|known| known.eq_ignore_ascii_case(format))
    }) {
        return Err(bad("Format is neither JSON nor XML"));
    }
    let proof = Rpc {
        // The old SDK sends an empty SignatureType.
        is_supported: get("SignatureMethod") == v1::METHOD && get("SignatureType").is_empty(),
        signature: get("Signature").to_owned(),
        format: format.map(str::to_owned),
    };
    let words = Words {
        key: get("AccessKeyId"),
        action: get("Action"),
        version: get("Version"),
        nonce: get("SignatureNonce"),
        stamp: get("Timestamp"),
    };
    Ok((words, proof))
}

// === impl Rpc ===

impl Rpc {
    /// Whether the signature is of the kind that Flowgate computes.
    pub(super) fn check_method(&self) -> Result<(), Refusal> {
        match self.is_supported {
            true => Ok(()),
            false => Err(incomplete(refusals::SUPPORTED)),
        }
    }

    /// Whether one of the secrets made the signature.
    pub(super) fn verify(
        &self,
        secrets: &[Secret],
        method: &str,
        params: &Params,
    ) -> Result<(), Refusal> {
        let string_to_sign = v1::string_to_sign(method, params.iter());
        match secrets
            .iter()
            .any(|secret| v1::verify(secret, &string_to_sign, &self.signature))
        {
            true => Ok(()),
            false => Err(refusals::wrong_signature()),
        }
    }

    /// `Format`, as it was written.
    pub(super) fn into_format(self) -> Option<String> {
        self.format
    }
}
