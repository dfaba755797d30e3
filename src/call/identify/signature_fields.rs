//! The texts that a call of either signature version states, as they were written.

use std::time::Duration;

/// How far a timestamp may differ from Flowgate's clock, in both directions. CAMS has the same
/// window.
pub(super) const WINDOW: Duration = Duration::from_secs(15 * 60);
/// The supported API version.
pub(crate) const VERSION: &str = "2020-06-06";

/// The texts that both versions have, in different places of the request.
pub(super) struct SignatureFields<'a> {
    pub(super) key: &'a str,
    pub(super) action: &'a str,
    pub(super) version: &'a str,
    pub(super) nonce: &'a str,
    pub(super) stamp: &'a str,
}
