//! A caller's socket, shared by hyper (or TLS below it), which reads and writes, and by the call,
//! which watches for a disconnect. hyper's own detection would read into another buffer, and would
//! stop at the first stray byte behind the request. A close is noticed here regardless of unread
//! bytes.

use std::io;
use std::net::{IpAddr, Shutdown};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::header::HeaderMap;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::per_address::{CallSource, OpenConnection};
use super::proxy_header::{self, ProxyHeaderError};

/// A caller's end of a connection.
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A socket and its entry in the counts.
struct Peer {
    socket: Socket,
    open_connection: OpenConnection,
}

/// The reading and writing half.
pub(crate) struct SocketIo {
    peer: Arc<Peer>,
}

/// Detects that a caller has disconnected.
#[derive(Clone)]
pub(crate) struct Disconnect(Arc<Peer>);

/// Becomes ready when the other side closes, and otherwise only for TCP urgent data, which HTTP
/// does not use.
#[cfg(target_os = "linux")]
const CLOSE: Interest = Interest::PRIORITY;
#[cfg(not(target_os = "linux"))]
const CLOSE: Interest = Interest::READABLE;

/// Interval between checks of a socket that is ready and not closed.
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

    /// Reads a PROXY header, and nothing after it. With `is_optional` the first byte decides
    /// whether there is one: `None` if not. A Unix socket must have one, because its first byte
    /// cannot be read without consuming it.
    pub(super) async fn read_proxy_header(
        &mut self,
        is_optional: bool,
    ) -> Option<Result<Option<IpAddr>, ProxyHeaderError>> {
        match self {
            Self::Tcp(stream) => {
                let mut first = [0];
                let is_absent = is_optional
                    && stream.peek(&mut first).await.is_ok_and(|read| read == 1)
                    && first[0] != b'\r';
                if is_absent {
                    return None;
                }
                Some(proxy_header::read(stream).await)
            }
            Self::Unix(stream) => Some(proxy_header::read(stream).await),
        }
    }

    /// Waits for readiness. Returns whether the other side has closed.
    async fn closed(&self) -> bool {
        let ready = match self {
            Self::Tcp(stream) => stream.ready(CLOSE).await,
            Self::Unix(stream) => stream.ready(CLOSE).await,
        };
        ready.map_or(true, |ready| ready.is_read_closed())
    }
}

// === impl Disconnect ===

impl Disconnect {
    /// Waits for a close, a reset or a half-close.
    pub(crate) async fn wait(&self) {
        while !self.0.socket.closed().await {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Whether the caller has disconnected.
    pub(crate) fn has_disconnected(&self) -> bool {
        use futures_util::FutureExt;
        self.0.socket.closed().now_or_never() == Some(true)
    }

    /// The peer's address: the caller's, or that of a balancer; `None` for a Unix socket.
    pub(crate) fn peer(&self) -> Option<IpAddr> {
        self.0.open_connection.peer()
    }

    /// Where a call with these headers comes from. It counts for its source until
    /// [`end_call`](Self::end_call).
    pub(crate) fn begin_call(&self, headers: &HeaderMap) -> CallSource {
        self.0.open_connection.begin_call(headers)
    }

    /// The call is answered.
    pub(crate) fn end_call(&self) {
        self.0.open_connection.end_call();
    }
}

// === impl SocketIo ===

impl SocketIo {
    /// The connection is counted while one of the two exists.
    pub(crate) fn new(socket: Socket, open_connection: OpenConnection) -> (Self, Disconnect) {
        let peer = Arc::new(Peer {
            socket,
            open_connection,
        });
        let disconnect = Disconnect(peer.clone());
        (Self { peer }, disconnect)
    }

    /// Waits for the first byte without consuming it; `None` if the other side closes first. A Unix
    /// socket does not support this.
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

impl AsyncRead for SocketIo {
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

impl SocketIo {
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

impl AsyncWrite for SocketIo {
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
