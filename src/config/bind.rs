//! Where does a listener stand? On an address and a port, or on a Unix socket; written as one text.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Where a listener is bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bind {
    /// An address and a port; port 0 lets the system choose.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

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
