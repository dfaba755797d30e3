//! The headers of signature version 3.

use hyper::header::HeaderName;

pub(crate) const ACTION: HeaderName = HeaderName::from_static("x-acs-action");
pub(crate) const BODY_HASH: HeaderName = HeaderName::from_static("x-acs-content-sha256");
pub(crate) const DATE: HeaderName = HeaderName::from_static("x-acs-date");
pub(crate) const KEY: HeaderName = HeaderName::from_static("x-acs-accesskey-id");
pub(crate) const NONCE: HeaderName = HeaderName::from_static("x-acs-signature-nonce");
pub(crate) const TOKEN: HeaderName = HeaderName::from_static("x-acs-security-token");
pub(crate) const VERSION: HeaderName = HeaderName::from_static("x-acs-version");
