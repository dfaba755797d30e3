//! Time-outs that hyper does not have, as a layer over the stream: for a request head that does not
//! end, and for a response that the caller reads too slowly.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// How long a caller may stall.
#[derive(Clone, Copy)]
pub(crate) struct IoTimeouts {
    /// From the first byte of a head to its end; also for a TLS handshake.
    pub(crate) head: Duration,
    /// From the first byte of a response that the caller does not read immediately, to its last
    /// byte.
    pub(crate) write: Duration,
}

/// A stream with the two time-outs.
pub(crate) struct TimeoutIo<T> {
    io: T,
    timeouts: Arc<IoTimeouts>,
    /// Received bytes count as a head only while no request is being answered.
    phase: RequestPhase,
    /// For the head that began after this number of changes.
    head: Deadline,
    head_of: u64,
    /// For the bytes being written, until all of them are.
    answer: Deadline,
}

/// Whether the caller is to send a request on a connection, or Flowgate is to answer one. Counts
/// the changes; after an odd number Flowgate answers.
#[derive(Clone, Default)]
pub(crate) struct RequestPhase(Arc<AtomicU64>);

/// Marks a request as being answered, until dropped.
pub(crate) struct AnswerGuard(RequestPhase);

/// A time-out that runs or is stopped.
#[derive(Default)]
pub(super) struct Deadline {
    ends: Option<Instant>,
    /// Created when it is first polled: most heads arrive in one piece.
    sleep: Option<Pin<Box<Sleep>>>,
}

/// A caller stalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Stalled {
    /// A head began and did not end.
    #[error("the request's head did not end in time")]
    Head,
    /// A response was not read.
    #[error("the answer was not taken in time")]
    Answer,
}

// === impl RequestPhase ===

impl RequestPhase {
    /// Called when a request's head is complete.
    pub(crate) fn begin_answer(self) -> AnswerGuard {
        self.0.fetch_add(1, Ordering::Relaxed);
        AnswerGuard(self)
    }

    /// Whether no head has been complete yet.
    pub(crate) fn is_first(&self) -> bool {
        self.changes() == 0
    }

    fn changes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for AnswerGuard {
    fn drop(&mut self) {
        self.0.0.fetch_add(1, Ordering::Relaxed);
    }
}

// === impl Deadline ===

impl Deadline {
    pub(super) fn start(&mut self, after: Duration) {
        self.ends.get_or_insert_with(|| Instant::now() + after);
    }

    pub(super) fn stop(&mut self) {
        *self = Self::default();
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>, stalled: Stalled) -> io::Result<()> {
        let Some(ends) = self.ends else { return Ok(()) };
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(ends)));
        let over = sleep.as_mut().poll(cx).is_ready();
        if over {
            Err(io::Error::new(io::ErrorKind::TimedOut, stalled))
        } else {
            Ok(())
        }
    }
}

// === impl TimeoutIo ===

impl<T> TimeoutIo<T> {
    /// Applies `timeouts` to each head and each response.
    pub(crate) fn new(io: T, timeouts: Arc<IoTimeouts>, phase: RequestPhase) -> Self {
        let head = Deadline::default();
        let answer = Deadline::default();
        Self {
            io,
            timeouts,
            phase,
            head,
            head_of: 0,
            answer,
        }
    }

    /// Fails if the written bytes are not accepted in time.
    fn taken<R>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<R>>,
    ) -> Poll<io::Result<R>> {
        if written.is_pending() {
            self.answer.start(self.timeouts.write);
            self.answer.poll(cx, Stalled::Answer)?;
        }
        written
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for TimeoutIo<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let phase = this.phase.changes();
        if phase != this.head_of {
            this.head_of = phase;
            this.head.stop();
        }
        let before = buf.filled().len();
        let Poll::Ready(read) = Pin::new(&mut this.io).poll_read(cx, buf) else {
            this.head.poll(cx, Stalled::Head)?;
            return Poll::Pending;
        };
        if read.is_ok() && buf.filled().len() > before && phase.is_multiple_of(2) {
            this.head.start(this.timeouts.head);
        }
        Poll::Ready(read)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for TimeoutIo<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write(cx, buf);
        this.taken(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write_vectored(cx, bufs);
        this.taken(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    /// hyper calls this after it has handed over everything.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.io).poll_flush(cx);
        if flushed.is_ready() {
            this.answer.stop();
        }
        this.taken(cx, flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let shut = Pin::new(&mut this.io).poll_shutdown(cx);
        this.taken(cx, shut)
    }
}
