//! Bound sockets: TCP or a Unix socket. A Unix socket's path is taken over from a process that left
//! it behind, and is removed at the end unless a successor uses it.

use std::fs::Permissions;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net;
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, SockRef, Socket as RawSocket, Type};
use tokio::net::{TcpListener, UnixListener, UnixStream};

use super::socket::Socket;
use crate::config::Bind;
use crate::process::systemd::InheritedSocket;

/// A bound socket.
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// A Unix socket's path. It is removed with the listener, unless the path is another process's
/// socket by then.
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Device and inode of the bound socket, which stay unique while the socket is open. `None` if
    /// the socket was passed.
    ours: Option<(u64, u64)>,
}

/// The listen backlog. With tokio's 128 a client that finds it full loses a second until the kernel
/// retries.
const BACKLOG: i32 = 4096;

// === impl Listener ===

impl Listener {
    /// Binds. Replaces a Unix socket that no process listens on; the new one's file gets `mode`.
    pub(crate) async fn bind(bind: &Bind, mode: u32) -> io::Result<Self> {
        match bind {
            Bind::Tcp(address) => {
                let listener = TcpListener::bind(address).await?;
                SockRef::from(&listener).listen(BACKLOG)?;
                Ok(Self::Tcp(listener))
            }
            Bind::Unix(path) => {
                // Refused: a process left its socket behind. All other cases fail in `bind`.
                let left = UnixStream::connect(path)
                    .await
                    .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
                if left && std::fs::symlink_metadata(path)?.file_type().is_socket() {
                    std::fs::remove_file(path)?;
                }
                bind_unix(path, mode)
            }
        }
    }

    /// Takes a socket that was bound by the parent. It must be the configured one, because other
    /// checks rely on that.
    pub(crate) fn adopt(passed: InheritedSocket, bind: &Bind) -> io::Result<Self> {
        let listener = match passed {
            InheritedSocket::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                SockRef::from(&listener).listen(BACKLOG)?;
                Self::Tcp(TcpListener::from_std(listener)?)
            }
            InheritedSocket::Unix(listener) => {
                listener.set_nonblocking(true)?;
                SockRef::from(&listener).listen(BACKLOG)?;
                let path = listener
                    .local_addr()?
                    .as_pathname()
                    .map(Path::to_owned)
                    .unwrap_or_default();
                Self::Unix(
                    UnixListener::from_std(listener)?,
                    SocketFile { path, ours: None },
                )
            }
        };
        let bound = listener.bound()?;
        if bound == *bind {
            return Ok(listener);
        }
        Err(io::Error::other(format!(
            "the passed socket is bound to {bound}: the two addresses must be equal"
        )))
    }

    /// The bound address; the system may have chosen the port.
    pub(crate) fn bound(&self) -> io::Result<Bind> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(Bind::Tcp),
            Self::Unix(_, file) => Ok(Bind::Unix(file.path.clone())),
        }
    }

    pub(super) async fn accept(&self) -> io::Result<(Socket, Option<IpAddr>)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, from) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok((Socket::Tcp(stream), Some(from.ip().to_canonical())))
            }
            Self::Unix(listener, _) => Ok((Socket::Unix(listener.accept().await?.0), None)),
        }
    }
}

impl Drop for Listener {
    /// Here and not in `SocketFile`'s own drop, which would run after the socket is closed.
    fn drop(&mut self) {
        if let Self::Unix(_, file) = self
            && identity(&file.path).is_ok_and(|there| Some(there) == file.ours)
        {
            drop(std::fs::remove_file(&file.path));
        }
    }
}

fn bind_unix(path: &Path, mode: u32) -> io::Result<Listener> {
    let socket = RawSocket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    // No client can connect before `listen`, so the umask opens no gap.
    std::fs::set_permissions(path, Permissions::from_mode(mode))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    let listener = UnixListener::from_std(net::UnixListener::from(OwnedFd::from(socket)))?;
    Ok(Listener::Unix(
        listener,
        SocketFile {
            path: path.to_owned(),
            ours: Some(identity(path)?),
        },
    ))
}

/// Device and inode of the path itself; a link is not followed.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn bind(path: &Path, mode: u32) -> io::Result<Listener> {
        Listener::bind(&Bind::Unix(path.to_owned()), mode).await
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[tokio::test]
    async fn a_socket_has_its_mode_and_is_removed_with_its_listener() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        for expected in [0o600, 0o660, 0o777] {
            let listener = bind(&path, expected).await.unwrap();
            assert_eq!(mode(&path), expected);
            drop(listener);
            assert!(!path.exists());
        }
    }

    #[tokio::test]
    async fn a_socket_left_behind_is_replaced_and_a_live_one_or_a_file_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        drop(net::UnixListener::bind(&path).unwrap());
        let alive = bind(&path, 0o660).await.unwrap();
        assert_eq!(
            bind(&path, 0o660).await.err().map(|error| error.kind()),
            Some(io::ErrorKind::AddrInUse)
        );
        drop(alive);
        std::fs::write(&path, "a file").unwrap();
        assert_eq!(
            bind(&path, 0o660).await.err().map(|error| error.kind()),
            Some(io::ErrorKind::AddrInUse)
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a file");
    }

    #[tokio::test]
    async fn the_socket_of_a_successor_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let old = bind(&path, 0o660).await.unwrap();
        std::fs::remove_file(&path).unwrap();
        let successor = bind(&path, 0o660).await.unwrap();
        drop(old);
        assert!(UnixStream::connect(&path).await.is_ok());
        drop(successor);
        assert!(!path.exists());
    }
}
