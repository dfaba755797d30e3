//! Where does a listener stand? On an address and a port, or on a Unix socket; written as one text.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where a listener is bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bind {
    /// An address and a port; port 0 lets the system choose.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

/// How it is written.
pub(super) const BIND_FORM: &str = "ip:port such as 127.0.0.1:8080, or unix: and an absolute path";

/// Bytes of a Unix socket's path: one less than the system's structure holds.
const MAX_PATH: usize = 107;

/// This is not how it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {BIND_FORM}")]
pub struct NotABind;

// === impl Bind ===

impl Bind {
    /// The TCP address; none of a Unix socket.
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
