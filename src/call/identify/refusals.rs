//! The refusals that several steps of identify share.

use std::fmt::Display;

use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use crate::error::{Kind, Refusal};

const SUPPORTED: &str =
    "sign with ACS3-HMAC-SHA256 (the SDKs' default) or HMAC-SHA1 (signature version 1.0)";

/// The value of a header, if it is present; an error if it occurs twice.
pub(crate) fn one<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> Result<Option<&'a HeaderValue>, Refusal> {
    let mut values = headers.get_all(name).into_iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        (_, Some(_)) => Err(twice(name.as_str())),
    }
}

#[cold]
pub(super) fn twice(name: &str) -> Refusal {
    bad(format!("the header {name} occurs twice"))
}

#[cold]
pub(crate) fn bad(message: impl Display) -> Refusal {
    Refusal::new(
        Kind::BadRequest,
        format!("The request is malformed or ambiguous: {message}."),
    )
}

#[cold]
pub(super) fn incomplete(message: impl Display) -> Refusal {
    Refusal::new(
        Kind::IncompleteSignature,
        format!("The request signature does not conform: {message}."),
    )
}

#[cold]
pub(super) fn unsupported() -> Refusal {
    incomplete(format!(
        "this kind of signature is not supported, {SUPPORTED}"
    ))
}

#[cold]
pub(super) fn bearer() -> Refusal {
    incomplete(format!(
        "bearer and identity tokens are not supported, {SUPPORTED}"
    ))
}

/// The old SDK splits the message at its colon. The string to sign is not echoed: it may hold data
/// of another caller.
#[cold]
pub(super) fn wrong_signature() -> Refusal {
    Refusal::new(
        Kind::SignatureDoesNotMatch,
        "Specified signature is not matched with our calculation: the access key secret is wrong, or is not the one that Flowgate has, \
         or the request was changed after it was signed.",
    )
}
