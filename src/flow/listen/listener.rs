//! Where do connections come from? From a bound socket: TCP, or a Unix socket's path, which is taken over from a
//! process that left it behind.

use std::io;
use std::net::IpAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

use socket2::SockRef;
use tokio::net::{TcpListener, UnixListener, UnixStream};

use super::socket::Socket;
use crate::config::Bind;

/// A bound socket.
pub(crate) enum Listener {
    Tcp(TcpListener),
    /// The path is removed again when the listener goes.
    Unix(UnixListener, PathBuf),
}

/// So many may connect before they are accepted: who finds tokio's 128 full loses a second until the kernel tries again.
const BACKLOG: i32 = 4096;

// === impl Listener ===

impl Listener {
    /// Binds; a Unix socket that nobody listens on any more is replaced.
    pub(crate) async fn bind(bind: &Bind) -> io::Result<Self> {
        match bind {
            Bind::Tcp(address) => {
                let listener = TcpListener::bind(address).await?;
                SockRef::from(&listener).listen(BACKLOG)?;
                Ok(Self::Tcp(listener))
            }
            Bind::Unix(path) => {
                // Refused means that a process left its socket behind; whatever else it is, binding says.
                let left = UnixStream::connect(path)
                    .await
                    .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
                if left && std::fs::symlink_metadata(path)?.file_type().is_socket() {
                    std::fs::remove_file(path)?;
                }
                Ok(Self::Unix(UnixListener::bind(path)?, path.clone()))
            }
        }
    }

    /// What was in fact bound: the system may have chosen the port.
    pub(crate) fn bound(&self) -> io::Result<Bind> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(Bind::Tcp),
            Self::Unix(_, path) => Ok(Bind::Unix(path.clone())),
        }
    }

    pub(super) async fn accept(&self) -> io::Result<(Socket, Option<IpAddr>)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, from) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok((Socket::Tcp(stream), Some(from.ip())))
            }
            Self::Unix(listener, _) => Ok((Socket::Unix(listener.accept().await?.0), None)),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            drop(std::fs::remove_file(path));
        }
    }
}
