//! What does an error say of the store? That it is ill (it is not asked for now), or that it will not have this process,
//! until an operator changes a setting.

use std::time::Duration;

use redis::{ErrorKind, RedisError, ServerErrorKind};

/// Why the store cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It may pass by itself.
    Unreachable(String),
    /// It stays until a setting is changed: a password, the server's mode.
    Refused(String),
    /// The store answers, and this user may not do what Flowgate needs.
    Forbids(String),
    /// The store would drop keys to make room: it must not be used.
    Evicts(String),
    /// The store does not run the scripts as it should.
    Unfit(String),
    /// Answers come too late for their slots to be used; they took up to this.
    TooFar(Duration),
}

/// What the store's user needs.
const RIGHTS: &str =
    "+@read +@write +@scripting +@connection +info +time, and the keys of quota.store_prefix";

// === impl Trouble ===

impl Trouble {
    pub(super) fn late(limit: Duration) -> Self {
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

    /// What a script that is known to be right was answered with.
    pub(super) fn of_script(error: &RedisError) -> Self {
        let text = text(error);
        match error.kind() {
            // A script whose own command is refused fails with a plain error on servers before Redis 7.
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

    /// The reason not to start: the store answers, and will not serve before a setting is changed.
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

fn is_refused_command(text: &str) -> bool {
    [
        "NOPERM",
        "can't run this command",
        "can't access at least one of the keys",
    ]
    .iter()
    .any(|said| text.contains(said))
}

/// The server does not know the script, or has forgotten it.
pub(super) fn is_unknown_script(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(ServerErrorKind::NoScript))
}

/// One line, without control characters: part of it is what a server sent.
pub(super) fn text(error: &RedisError) -> String {
    let text = error.to_string();
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(300)
        .collect()
}
