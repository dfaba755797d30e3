//! The headers of signature version 3.

use hyper::header::{HeaderName, HeaderValue};

pub(crate) const ACTION: HeaderName = HeaderName::from_static("x-acs-action");
pub(crate) const BODY_HASH: HeaderName = HeaderName::from_static("x-acs-content-sha256");
pub(crate) const DATE: HeaderName = HeaderName::from_static("x-acs-date");
pub(crate) const KEY: HeaderName = HeaderName::from_static("x-acs-accesskey-id");
pub(crate) const NONCE: HeaderName = HeaderName::from_static("x-acs-signature-nonce");
pub(crate) const TOKEN: HeaderName = HeaderName::from_static("x-acs-security-token");
pub(crate) const VERSION: HeaderName = HeaderName::from_static("x-acs-version");

/// The headers that every request has.
static USUAL: [HeaderName; 5] = [ACTION, BODY_HASH, DATE, NONCE, VERSION];

/// A copy of the name. A clone of a received name would allocate, and free, unless HTTP knows it.
pub(crate) fn copy(name: &HeaderName) -> HeaderName {
    let is_usual = |usual: &&HeaderName| *usual == name;
    let usual = match name.as_str().starts_with("x-acs-") {
        true => USUAL.iter().find(is_usual),
        false => None,
    };
    usual.unwrap_or(name).clone()
}

/// A number as a value. The two of most messages are not formatted.
pub(crate) fn number(number: u64) -> HeaderValue {
    match number {
        0 => HeaderValue::from_static("0"),
        1 => HeaderValue::from_static("1"),
        other => HeaderValue::from(other),
    }
}
