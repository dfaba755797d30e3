//! The refusals that several steps of identify share.

use std::fmt::Display;

use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use crate::error::{Kind, Refusal};

pub(super) const SUPPORTED: &str = "this kind of signature is not supported here: sign with ACS3-HMAC-SHA256 (the SDKs' default) or \
                         HMAC-SHA1 (signature version 1.0)";

/// The header's value, if it is there; an error if it is there twice.
pub(crate) fn one<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> Result<Option<&'a HeaderValue>, Refusal> {
    let mut values = headers.get_all(name).into_iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        (_, Some(_)) => Err(bad(format!("the header {name} occurs twice"))),
    }
}

pub(crate) fn bad(message: impl Display) -> Refusal {
    Refusal::new(
        Kind::BadRequest,
        format!("The request is malformed or ambiguous: {message}."),
    )
}

pub(super) fn incomplete(message: impl Display) -> Refusal {
    Refusal::new(
        Kind::IncompleteSignature,
        format!("The request signature does not conform: {message}."),
    )
}

/// The old SDK splits the message at its colon; the string to sign is not echoed, because it holds what is not ours.
pub(super) fn wrong_signature() -> Refusal {
    Refusal::new(
        Kind::SignatureDoesNotMatch,
        "Specified signature is not matched with our calculation: the secret is another one, or the call was changed \
         after it was signed.",
    )
}
