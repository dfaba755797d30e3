//! Which access key ids and account ids the configuration may contain.

use crate::primitives::id::{AccessKeyId, AccountId, ClientId, KeyPattern};

/// The label of all accounts that are not in the configuration.
const UNKNOWN: &str = "unknown";

pub(super) const KEY_FORM: &str = "\
    an access key id: 1 to 128 letters, digits, '.', '_' or '-', \
    and not \"unknown\" or \"unverified\"";
pub(super) const ALIAS_FORM: &str = "\
    an access key id, its first characters and '*' such as \"STS.*\", or \"*\": \
    1 to 128 letters, digits, '.', '_' or '-', and not \"unknown\" or \"unverified\"";
pub(super) const ID_FORM: &str =
    "a name: 1 to 64 letters, digits, '.', '_' or '-', and not \"unknown\"";

/// Checks the access key id of a client. The error describes what is expected.
pub(crate) fn check_client_id(text: &str) -> Result<(), String> {
    access_key(text)
        .map(drop)
        .ok_or_else(|| format!("expected {KEY_FORM}"))
}

/// Checks the id of an account. The error describes what is expected.
pub(crate) fn check_account_id(text: &str) -> Result<(), String> {
    account_id(text)
        .map(drop)
        .ok_or_else(|| format!("expected {ID_FORM}"))
}

/// Reads an access key id.
pub(crate) fn access_key(text: &str) -> Option<AccessKeyId> {
    // The name of all unverified callers is reserved, like `UNKNOWN`.
    let key = is_name(text, 128) && text != ClientId::unverified().as_str();
    key.then(|| AccessKeyId::new(text))
}

/// Reads an access key id, or the first characters of access key ids and `*`.
pub(super) fn alias(text: &str) -> Option<KeyPattern> {
    let is_valid = match text.strip_suffix('*') {
        Some(prefix) => prefix.is_empty() || is_plain(prefix, 128),
        None => access_key(text).is_some(),
    };
    is_valid.then(|| KeyPattern::new(text))
}

pub(super) fn account_id(text: &str) -> Option<AccountId> {
    is_name(text, 64).then(|| AccountId::new(text))
}

fn is_name(text: &str, most: usize) -> bool {
    is_plain(text, most) && text != UNKNOWN
}

fn is_plain(text: &str, most: usize) -> bool {
    let plain = text
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    plain && (1..=most).contains(&text.len())
}
