//! When does a request leave this process? When the kernel takes its first byte, which may be long after hyper took the
//! request: its connection task has to be scheduled, and TLS encrypts first. So the socket itself, below TLS, reports
//! the first write after it was armed, and a request of which no byte was written can be withdrawn for certain.

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

/// What one connection's next write means, shared by its socket and by the sender of its requests.
#[derive(Default)]
pub(super) struct FirstWrite {
    /// False while a write needs no look at the state. What arms it happens before hyper gets the request, and hyper's
    /// channel orders that before the request's first write; so relaxed loads suffice.
    watched: AtomicBool,
    state: Mutex<State>,
    /// Whether the kernel has not taken all that was to be written. If a request was answered before it was read, hyper
    /// takes the next one although TLS still holds bytes of it back.
    behind: AtomicBool,
}

#[derive(Default)]
enum State {
    #[default]
    Unwatched,
    /// The next write that moves a byte is a request's first.
    Armed(Option<OnWrite>),
    /// A request was withdrawn: no further byte may leave on this connection.
    Barred,
}

/// One request whose first byte is being waited for. Dropped before that it withdraws the request.
pub(super) struct Armed<'a>(&'a FirstWrite);

/// A TCP connection that reports its first write.
pub(super) struct WatchedTcp {
    tcp: TcpStream,
    first_write: Arc<FirstWrite>,
}

// === impl FirstWrite ===

impl FirstWrite {
    /// Must come before hyper gets the request.
    pub(super) fn arm(&self, on_write: Option<OnWrite>) -> Armed<'_> {
        *self.state.lock() = State::Armed(on_write);
        self.watched.store(true, Ordering::Relaxed);
        Armed(self)
    }

    /// Whether bytes of an earlier request are still to be written: what is written next would not be the next one's.
    pub(super) fn is_behind(&self) -> bool {
        self.behind.load(Ordering::Relaxed)
    }

    /// Whether a byte was written since it was armed. If none was, none will be.
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

// === impl Armed ===

impl Armed<'_> {
    /// Whether the kernel has taken a byte. If not, it gets none any more, and the connection is of no further use.
    pub(super) fn was_written(self) -> bool {
        self.0.settle()
    }
}

impl Drop for Armed<'_> {
    fn drop(&mut self) {
        self.0.settle();
    }
}

// === impl WatchedTcp ===

impl WatchedTcp {
    pub(super) fn new(tcp: TcpStream, first_write: Arc<FirstWrite>) -> Self {
        Self { tcp, first_write }
    }

    /// Writes `len` bytes, or fewer.
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
        // Held during the write, which does not block: a request is either withdrawn or written.
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
