//! Is the caller still there, and does it keep moving? A caller's socket, shared between hyper, which reads and writes
//! it, and the call, which watches it for a hang-up: hyper would read for that, into another buffer, and stop looking as
//! soon as one stray byte lies behind the request. Also the clocks that hyper does not have: for a head that began and
//! does not end, and for an answer that nobody reads.

use std::io;
use std::net::{IpAddr, Shutdown};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, Sleep};

/// A caller's end of a connection.
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A caller's end, and where it is.
struct Peer {
    socket: Socket,
    from: Option<IpAddr>,
}

/// How long a caller may stall.
#[derive(Clone, Copy)]
pub(crate) struct Patience {
    /// From a head's first byte to its end.
    pub(crate) head: Duration,
    /// While it does not take what is written to it.
    pub(crate) write: Duration,
}

/// The socket as hyper uses it.
pub(crate) struct Stream {
    peer: Arc<Peer>,
    patience: Patience,
    /// Whose turn it is: while a request is being answered, what comes is no head.
    turn: Turn,
    /// For the head that began at this change of turns.
    head: Deadline,
    head_of: u64,
    write: Deadline,
}

/// Tells whether a caller has hung up.
#[derive(Clone)]
pub(crate) struct Hangup(Arc<Peer>);

/// Whose turn it is on a connection: the caller's, to send a request, or ours, to answer it. Counts the changes, so an
/// odd number is ours.
#[derive(Clone, Default)]
pub(crate) struct Turn(Arc<AtomicU64>);

/// Our turn, until dropped.
pub(crate) struct Ours(Turn);

/// A clock that runs or does not.
#[derive(Default)]
struct Deadline {
    ends: Option<Instant>,
    /// Made when somebody must wait: a head mostly comes in one piece.
    sleep: Option<Pin<Box<Sleep>>>,
}

/// A caller stalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Stalled {
    /// A head began and did not end.
    #[error("the request's head did not end in time")]
    Head,
    /// An answer was not taken.
    #[error("the answer was not taken in time")]
    Answer,
}

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

    fn from(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp(stream) => stream.peer_addr().ok().map(|address| address.ip()),
            Self::Unix(_) => None,
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
        self.0.from
    }
}

// === impl Turn ===

impl Turn {
    /// The request's head is complete.
    pub(crate) fn take(self) -> Ours {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ours(self)
    }

    fn changes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        self.0.0.fetch_add(1, Ordering::Relaxed);
    }
}

// === impl Deadline ===

impl Deadline {
    fn start(&mut self, after: Duration) {
        self.ends.get_or_insert_with(|| Instant::now() + after);
    }

    fn stop(&mut self) {
        *self = Self::default();
    }

    fn poll(&mut self, cx: &mut Context<'_>, stalled: Stalled) -> io::Result<()> {
        let Some(ends) = self.ends else { return Ok(()) };
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(ends)));
        let over = sleep.as_mut().poll(cx).is_ready();
        if over { Err(io::Error::new(io::ErrorKind::TimedOut, stalled)) } else { Ok(()) }
    }
}

// === impl Stream ===

impl Stream {
    pub(crate) fn new(socket: Socket, patience: Patience) -> (Self, Hangup, Turn) {
        let peer = Arc::new(Peer { from: socket.from(), socket });
        let turn = Turn::default();
        let hangup = Hangup(peer.clone());
        let (head, write) = (Deadline::default(), Deadline::default());
        (Self { peer, patience, turn: turn.clone(), head, head_of: 0, write }, hangup, turn)
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let turn = this.turn.changes();
        if turn != this.head_of {
            this.head_of = turn;
            this.head.stop();
        }
        loop {
            if this.peer.socket.poll_readable(cx)?.is_pending() {
                this.head.poll(cx, Stalled::Head)?;
                return Poll::Pending;
            }
            match this.peer.socket.try_read(buf) {
                Ok(read) => {
                    if read > 0 && turn.is_multiple_of(2) {
                        this.head.start(this.patience.head);
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl Stream {
    fn poll_write_some(&mut self, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        loop {
            if self.peer.socket.poll_writable(cx)?.is_pending() {
                self.write.start(self.patience.write);
                self.write.poll(cx, Stalled::Answer)?;
                return Poll::Pending;
            }
            match self.peer.socket.try_write(bufs) {
                Ok(written) => {
                    self.write.stop();
                    return Poll::Ready(Ok(written));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
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
