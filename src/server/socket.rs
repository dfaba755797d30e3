//! Is the caller still there? A caller's socket, shared between whoever reads and writes it, which is hyper or TLS below
//! it, and the call, which watches it for a hang-up: hyper would read for that, into another buffer, and stop looking as
//! soon as one stray byte lies behind the request. A close is seen here whatever the bytes before it mean.

use std::io;
use std::net::{IpAddr, Shutdown};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::place::Held;

/// A caller's end of a connection.
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A caller's end, and where it is.
struct Peer {
    socket: Socket,
    held: Held,
}

/// The socket to read and write.
pub(crate) struct Wire {
    peer: Arc<Peer>,
}

/// Tells whether a caller has hung up.
#[derive(Clone)]
pub(crate) struct Hangup(Arc<Peer>);

/// What becomes ready when the other side closes, and for nothing else but TCP's urgent data, which nobody sends.
#[cfg(target_os = "linux")]
const CLOSE: Interest = Interest::PRIORITY;
#[cfg(not(target_os = "linux"))]
const CLOSE: Interest = Interest::READABLE;

/// How often a caller is looked at again whose socket is ready and not closed.
const LOOK_AGAIN: Duration = Duration::from_millis(25);

// === impl Socket ===

impl Socket {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_read_ready(cx),
            Self::Unix(stream) => stream.poll_read_ready(cx),
        }
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_write_ready(cx),
            Self::Unix(stream) => stream.poll_write_ready(cx),
        }
    }

    fn try_read(&self, buf: &mut ReadBuf<'_>) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_read_buf(buf),
            Self::Unix(stream) => stream.try_read_buf(buf),
        }
    }

    fn try_write(&self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write_vectored(bufs),
            Self::Unix(stream) => stream.try_write_vectored(bufs),
        }
    }

    fn shutdown(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => SockRef::from(stream).shutdown(Shutdown::Write),
            Self::Unix(stream) => SockRef::from(stream).shutdown(Shutdown::Write),
        }
    }

    /// Waits until the other side has closed, which is true, or something else has become ready.
    async fn closed(&self) -> bool {
        let ready = match self {
            Self::Tcp(stream) => stream.ready(CLOSE).await,
            Self::Unix(stream) => stream.ready(CLOSE).await,
        };
        ready.map_or(true, |ready| ready.is_read_closed())
    }
}

// === impl Hangup ===

impl Hangup {
    /// Waits for the hang-up: a close, a reset, or a half-close.
    pub(crate) async fn happened(&self) {
        while !self.0.socket.closed().await {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Whether it has happened.
    pub(crate) fn has_happened(&self) -> bool {
        use futures_util::FutureExt;
        self.0.socket.closed().now_or_never() == Some(true)
    }

    /// The address that the caller came from; none for a Unix socket.
    pub(crate) fn from(&self) -> Option<IpAddr> {
        self.0.held.from()
    }
}

// === impl Wire ===

impl Wire {
    /// Counted while either of the two is there.
    pub(crate) fn new(socket: Socket, held: Held) -> (Self, Hangup) {
        let peer = Arc::new(Peer { socket, held });
        let hangup = Hangup(peer.clone());
        (Self { peer }, hangup)
    }

    /// Waits for the first byte and leaves it there; none if the other side closes without one. A Unix socket cannot be
    /// looked into.
    pub(super) async fn peek(&self) -> io::Result<Option<u8>> {
        match &self.peer.socket {
            Socket::Tcp(stream) => {
                let mut byte = [0];
                Ok((stream.peek(&mut byte).await? > 0).then_some(byte[0]))
            }
            Socket::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let socket = &self.peer.socket;
        loop {
            if socket.poll_readable(cx)?.is_pending() {
                return Poll::Pending;
            }
            match socket.try_read(buf) {
                Ok(_) => return Poll::Ready(Ok(())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl Wire {
    fn poll_write_some(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            if self.peer.socket.poll_writable(cx)?.is_pending() {
                return Poll::Pending;
            }
            match self.peer.socket.try_write(bufs) {
                Ok(written) => return Poll::Ready(Ok(written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_some(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_some(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.peer.socket.shutdown())
    }
}
