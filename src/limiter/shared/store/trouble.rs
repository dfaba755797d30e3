//! What does an error say of the store? That it is ill (nobody should ask it for now), that it will not have us (somebody
//! must change a setting), or nothing: a script's own error is a mistake of ours.

use std::time::Duration;

use redis::{ErrorKind, RedisError, ServerErrorKind};

/// Why there is no connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It may pass by itself.
    Unreachable(String),
    /// It stays until somebody changes a setting: a password, a right, the server's mode.
    Refused(String),
    /// The store would drop keys to make room: it must not be used.
    Evicts(String),
}

/// Codes that the library has no kind for, of servers that are up and yet cannot serve.
const ILL: [&str; 6] = ["BUSY", "MISCONF", "NOAUTH", "NOREPLICAS", "OOM", "UNKILLABLE"];

// === impl Trouble ===

impl Trouble {
    pub(super) fn late(limit: Duration) -> Self {
        Self::Unreachable(format!("no answer within {limit:?}"))
    }

    pub(super) fn of(error: &RedisError) -> Self {
        let refused = match error.kind() {
            ErrorKind::AuthenticationFailed
            | ErrorKind::InvalidClientConfig
            | ErrorKind::Server(ServerErrorKind::NoPerm) => true,
            _ => matches!(error.code(), Some("NOAUTH" | "WRONGPASS" | "DENIED")),
        };
        let text = text(error);
        if refused { Self::Refused(text) } else { Self::Unreachable(text) }
    }
}

/// Whether the store is ill, and not only this operation wrong.
pub(super) fn is_illness(error: &RedisError) -> bool {
    match error.kind() {
        // The operation's own mistakes.
        ErrorKind::Server(
            ServerErrorKind::ResponseError
            | ServerErrorKind::ExecAbort
            | ServerErrorKind::NoScript
            | ServerErrorKind::CrossSlot
            | ServerErrorKind::NotBusy
            | ServerErrorKind::NoSub
            | ServerErrorKind::NoPerm,
        )
        | ErrorKind::UnexpectedReturnType
        | ErrorKind::InvalidClientConfig
        | ErrorKind::Client => false,
        ErrorKind::Extension => error.code().is_some_and(|code| ILL.contains(&code)),
        // Connections, replicas that take no writes, clusters without a master, servers that load.
        _ => true,
    }
}

/// One line, without control characters: part of it is what a server sent.
pub(super) fn text(error: &RedisError) -> String {
    let text = error.to_string();
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect()
}
