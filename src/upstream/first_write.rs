//! Reports when a request leaves this process: when the kernel accepts its first byte. That may be
//! long after hyper took the request, because its connection task must be scheduled and TLS
//! encrypts first. The socket below TLS therefore reports the first write after it was armed, and a
//! request without a written byte can be withdrawn reliably.

use std::io::{self, IoSlice};
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::OnWrite;

/// The meaning of a connection's next write, shared by its socket and the sender of its requests.
#[derive(Default)]
pub(super) struct FirstWrite {
    /// False while a write need not check the state. It is set before hyper gets the request, and
    /// hyper's channel orders that before the request's first write, so relaxed loads suffice.
    watched: AtomicBool,
    state: Mutex<State>,
    /// Whether the kernel has not accepted everything yet. If a request was answered before it was
    /// read, hyper accepts the next request although TLS still holds back bytes of the previous
    /// one.
    behind: AtomicBool,
}

#[derive(Default)]
enum State {
    #[default]
    Unwatched,
    /// The next write of at least one byte is the first of a request.
    Armed(Option<OnWrite>),
    /// A request was withdrawn: no more bytes may leave on this connection.
    Barred,
}

/// A request whose first byte is awaited. Dropping it withdraws the request.
pub(super) struct FirstWriteGuard<'a>(&'a FirstWrite);

/// A TCP connection that reports its first write.
pub(super) struct WatchedTcp {
    tcp: TcpStream,
    first_write: Arc<FirstWrite>,
}

// === impl FirstWrite ===

impl FirstWrite {
    /// Must be called before hyper gets the request.
    pub(super) fn arm(&self, on_write: Option<OnWrite>) -> FirstWriteGuard<'_> {
        *self.state.lock() = State::Armed(on_write);
        self.watched.store(true, Ordering::Relaxed);
        FirstWriteGuard(self)
    }

    /// Whether bytes of an earlier request are still unwritten, so that the next write would not be
    /// the next request's.
    pub(super) fn is_behind(&self) -> bool {
        self.behind.load(Ordering::Relaxed)
    }

    /// Returns whether a byte was written since `arm`. If not, none will be.
    fn settle(&self) -> bool {
        if !self.watched.load(Ordering::Relaxed) {
            return true;
        }
        let mut state = self.state.lock();
        if matches!(*state, State::Unwatched) {
            return true;
        }
        let withdrawn = mem::replace(&mut *state, State::Barred);
        drop(state);
        drop(withdrawn);
        false
    }
}

// === impl FirstWriteGuard ===

impl FirstWriteGuard<'_> {
    /// Returns whether the kernel has accepted a byte. If not, none will be written, and the
    /// connection is unusable.
    pub(super) fn was_written(self) -> bool {
        self.0.settle()
    }
}

impl Drop for FirstWriteGuard<'_> {
    fn drop(&mut self) {
        self.0.settle();
    }
}

// === impl WatchedTcp ===

impl WatchedTcp {
    pub(super) fn new(tcp: TcpStream, first_write: Arc<FirstWrite>) -> Self {
        Self { tcp, first_write }
    }

    /// Writes up to `len` bytes.
    fn write(
        &mut self,
        len: usize,
        write: impl FnOnce(Pin<&mut TcpStream>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let written = if self.first_write.watched.load(Ordering::Relaxed) {
            self.write_first(write)
        } else {
            write(Pin::new(&mut self.tcp))
        };
        let behind = !matches!(written, Poll::Ready(Ok(taken)) if taken == len);
        self.first_write.behind.store(behind, Ordering::Relaxed);
        written
    }

    fn write_first(
        &mut self,
        write: impl FnOnce(Pin<&mut TcpStream>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        // The lock is held during the write, which does not block, so a request is either withdrawn
        // or written.
        let mut state = self.first_write.state.lock();
        if matches!(*state, State::Barred) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let written = write(Pin::new(&mut self.tcp));
        if matches!(written, Poll::Ready(Ok(1..))) {
            let at = Instant::now();
            let armed = mem::take(&mut *state);
            self.first_write.watched.store(false, Ordering::Relaxed);
            drop(state);
            if let State::Armed(Some(on_write)) = armed {
                on_write(at);
            }
        }
        written
    }
}

impl AsyncRead for WatchedTcp {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for WatchedTcp {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.write(buf.len(), |tcp| tcp.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let len = bufs.iter().map(|buf| buf.len()).sum();
        self.write(len, |tcp| tcp.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
