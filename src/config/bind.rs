//! A listener's address: IP address and port, or a Unix socket.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A listener's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bind {
    /// IP address and port; with port 0 the system chooses one.
    Tcp(SocketAddr),
    /// Path of a Unix socket.
    Unix(PathBuf),
}

/// The accepted form, for error messages.
pub(super) const BIND_FORM: &str =
    "ip:port such as 127.0.0.1:8080, or unix: and an absolute path such as unix:/run/flowgate.sock";

/// Maximum length of a Unix socket's path in bytes: `sun_path` has 108, and one is the final NUL.
const MAX_PATH: usize = 107;

/// The text is not a listener's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {BIND_FORM}")]
pub struct NotABind;

// === impl Bind ===

impl Bind {
    /// Returns the TCP address; `None` for a Unix socket.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for Bind {
    type Err = NotABind;

    fn from_str(text: &str) -> Result<Self, NotABind> {
        match text.strip_prefix("unix:") {
            None => text.parse().map(Self::Tcp).map_err(|_| NotABind),
            Some(path)
                if path.len() <= MAX_PATH
                    && !path.contains('\0')
                    && Path::new(path).is_absolute() =>
            {
                Ok(Self::Unix(path.into()))
            }
            Some(_) => Err(NotABind),
        }
    }
}
