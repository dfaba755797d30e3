//! The few values that a call of either signature version states, as they were written.

use std::time::Duration;

/// How far a stamp may be off, either way.
pub(super) const WINDOW: Duration = Duration::from_secs(15 * 60);
/// The API version that Flowgate knows.
pub(crate) const VERSION: &str = "2020-06-06";

/// The words that both versions write in their own places.
pub(super) struct Words<'a> {
    pub(super) key: &'a str,
    pub(super) action: &'a str,
    pub(super) version: &'a str,
    pub(super) nonce: &'a str,
    pub(super) stamp: &'a str,
}
