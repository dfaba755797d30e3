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
use tokio::net::{TcpStream, UnixStream, tcp, unix};

use super::per_address::{CallSource, OpenConnection};
use super::proxy_header::{self, ProxyHeaderError};

/// A caller's end of a connection.
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A socket and its entry in the counts.
struct Peer {
    writer: Writer,
    open_connection: OpenConnection,
}

/// What hyper reads from and writes to.
pub(crate) struct SocketIo {
    reader: Reader,
    peer: Arc<Peer>,
}

/// A read that does not fill its buffer says that all received bytes were read. Only the halves of
/// a stream remember that; a shared stream would be read once more, in vain.
enum Reader {
    Tcp(tcp::OwnedReadHalf),
    Unix(unix::OwnedReadHalf),
}

/// The half that the call shares.
enum Writer {
    Tcp(tcp::OwnedWriteHalf),
    Unix(unix::OwnedWriteHalf),
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
    fn into_halves(self) -> (Reader, Writer) {
        match self {
            Self::Tcp(stream) => {
                let (reader, writer) = stream.into_split();
                (Reader::Tcp(reader), Writer::Tcp(writer))
            }
            Self::Unix(stream) => {
                let (reader, writer) = stream.into_split();
                (Reader::Unix(reader), Writer::Unix(writer))
            }
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
}

// === impl Writer ===

impl Writer {
    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(half) => half.as_ref().poll_write_ready(cx),
            Self::Unix(half) => half.as_ref().poll_write_ready(cx),
        }
    }

    fn try_write(&self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(half) => half.try_write_vectored(bufs),
            Self::Unix(half) => half.try_write_vectored(bufs),
        }
    }

    fn shutdown(&self) -> io::Result<()> {
        match self {
            Self::Tcp(half) => SockRef::from(half.as_ref()).shutdown(Shutdown::Write),
            Self::Unix(half) => SockRef::from(half.as_ref()).shutdown(Shutdown::Write),
        }
    }

    /// Waits for readiness. Returns whether the other side has closed.
    async fn closed(&self) -> bool {
        let ready = match self {
            Self::Tcp(half) => half.as_ref().ready(CLOSE).await,
            Self::Unix(half) => half.as_ref().ready(CLOSE).await,
        };
        ready.map_or(true, |ready| ready.is_read_closed())
    }

    /// Whether `closed` has something to look at.
    fn may_be_closed(&self) -> bool {
        let look = || Ok(());
        match self {
            Self::Tcp(half) => half.as_ref().try_io(CLOSE, look).is_ok(),
            Self::Unix(half) => half.as_ref().try_io(CLOSE, look).is_ok(),
        }
    }
}

// === impl Disconnect ===

impl Disconnect {
    /// Waits for a close, a reset or a half-close.
    pub(crate) async fn wait(&self) {
        while !self.0.writer.closed().await {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Whether the caller has disconnected.
    pub(crate) fn has_disconnected(&self) -> bool {
        use futures_util::FutureExt;
        let writer = &self.0.writer;
        writer.may_be_closed() && writer.closed().now_or_never() == Some(true)
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
        let (reader, writer) = socket.into_halves();
        let peer = Arc::new(Peer {
            writer,
            open_connection,
        });
        let disconnect = Disconnect(peer.clone());
        (Self { reader, peer }, disconnect)
    }

    /// Waits for the first byte without consuming it; `None` if the other side closes first. A Unix
    /// socket does not support this.
    pub(super) async fn peek(&self) -> io::Result<Option<u8>> {
        match &self.reader {
            Reader::Tcp(half) => {
                let mut byte = [0];
                Ok((half.as_ref().peek(&mut byte).await? > 0).then_some(byte[0]))
            }
            Reader::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

impl AsyncRead for SocketIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.get_mut().reader {
            Reader::Tcp(half) => Pin::new(half).poll_read(cx, buf),
            Reader::Unix(half) => Pin::new(half).poll_read(cx, buf),
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
            if self.peer.writer.poll_writable(cx)?.is_pending() {
                return Poll::Pending;
            }
            match self.peer.writer.try_write(bufs) {
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
        Poll::Ready(self.peer.writer.shutdown())
    }
}
