//! Classifies errors of the store: temporary ones, and those that last until an operator changes a
//! setting.

use std::time::Duration;

use redis::{ErrorKind, RedisError, RedisResult, ServerErrorKind};
use tokio::time::timeout;

/// Why the store cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum StoreError {
    /// May be temporary.
    Unreachable(String),
    /// Lasts until a setting is changed: a password, the server's mode.
    Refused(String),
    /// The store's user lacks a permission that Flowgate needs.
    Forbids(String),
    /// The store may evict keys, so it must not be used.
    Evicts(String),
    /// The store does not run the scripts correctly.
    Unfit(String),
    /// Slots arrive too late to be used; answers took up to this time.
    TooFar(Duration),
}

/// The permissions that the store's user needs.
const RIGHTS: &str =
    "+@read +@write +@scripting +@connection +info +time, and the keys of quota.store_prefix";

// === impl StoreError ===

impl StoreError {
    pub(crate) fn late(limit: Duration) -> Self {
        Self::Unreachable(format!("no answer within {limit:?}"))
    }

    pub(super) fn of(error: &RedisError) -> Self {
        let text = text(error);
        match error.kind() {
            ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig => Self::Refused(text),
            ErrorKind::Server(ServerErrorKind::NoPerm) => Self::Forbids(text),
            _ if matches!(error.code(), Some("NOAUTH" | "WRONGPASS" | "DENIED")) => {
                Self::Refused(text)
            }
            _ => Self::Unreachable(text),
        }
    }

    /// Classifies the error of a script that is known to be correct.
    pub(crate) fn of_script(error: &RedisError) -> Self {
        let text = text(error);
        match error.kind() {
            // Before Redis 7, a script whose command is not permitted fails with a plain error.
            ErrorKind::Server(ServerErrorKind::ResponseError) if is_refused_command(&text) => {
                Self::Forbids(text)
            }
            ErrorKind::Server(
                ServerErrorKind::ResponseError
                | ServerErrorKind::NoScript
                | ServerErrorKind::CrossSlot,
            ) => Self::Unfit(text),
            _ => Self::of(error),
        }
    }

    /// Returns the reason not to start, if the store answers but needs a changed setting.
    pub(super) fn forbids_start(self) -> Option<String> {
        match self {
            Self::Evicts(text) => Some(text),
            Self::Forbids(text) => Some(format!(
                "the shared store does not permit what Flowgate needs ({RIGHTS}): {text}"
            )),
            Self::Unfit(text) => Some(format!(
                "the shared store cannot run Flowgate's scripts: {text}"
            )),
            Self::Unreachable(_) | Self::Refused(_) | Self::TooFar(_) => None,
        }
    }
}

/// Awaits an answer with a timeout.
pub(crate) async fn within<T>(
    limit: Duration,
    answer: impl Future<Output = RedisResult<T>>,
) -> Result<T, StoreError> {
    Ok(timeout(limit, answer)
        .await
        .map_err(|_elapsed| StoreError::late(limit))??)
}

fn is_refused_command(text: &str) -> bool {
    [
        "NOPERM",
        "can't run this command",
        "can't access at least one of the keys",
    ]
    .iter()
    .any(|message| text.contains(message))
}

/// Whether the server does not have the script.
pub(super) fn is_unknown_script(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(ServerErrorKind::NoScript))
}

/// Formats an error as one bounded line, because part of it comes from the server.
pub(super) fn text(error: &RedisError) -> String {
    let text = error.to_string();
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(300)
        .collect()
}
