//! Does a caller keep moving? The clocks that hyper does not have, over whatever carries HTTP: for a head that began and
//! does not end, and for an answer that is not taken, however slowly it is read.

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
pub(crate) struct Patience {
    /// From a head's first byte to its end; also for a handshake.
    pub(crate) head: Duration,
    /// From the first byte of an answer that it does not take at once to the answer's last.
    pub(crate) write: Duration,
}

/// A connection as hyper uses it: the bytes of HTTP, and a clock for each head.
pub(crate) struct Timed<T> {
    io: T,
    patience: Arc<Patience>,
    /// Whose turn it is: while a request is being answered, what comes is no head.
    turn: Turn,
    /// For the head that began at this change of turns.
    head: Deadline,
    head_of: u64,
    /// For what is being written, until all of it is.
    answer: Deadline,
}

/// Whose turn it is on a connection: the caller's, to send a request, or ours, to answer it. Counts the changes, so an
/// odd number is ours.
#[derive(Clone, Default)]
pub(crate) struct Turn(Arc<AtomicU64>);

/// Our turn, until dropped.
pub(crate) struct Ours(Turn);

/// A clock that runs or does not.
#[derive(Default)]
pub(super) struct Deadline {
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

// === impl Turn ===

impl Turn {
    /// The request's head is complete.
    pub(crate) fn take(self) -> Ours {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ours(self)
    }

    /// Whether no request's head has been complete yet.
    pub(crate) fn is_first(&self) -> bool {
        self.changes() == 0
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

// === impl Timed ===

impl<T> Timed<T> {
    /// With so much time for each head and for each answer.
    pub(crate) fn new(io: T, patience: Arc<Patience>, turn: Turn) -> Self {
        let (head, answer) = (Deadline::default(), Deadline::default());
        Self {
            io,
            patience,
            turn,
            head,
            head_of: 0,
            answer,
        }
    }

    /// Gives up when what is written is not taken in time.
    fn taken<R>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<R>>,
    ) -> Poll<io::Result<R>> {
        if written.is_pending() {
            self.answer.start(self.patience.write);
            self.answer.poll(cx, Stalled::Answer)?;
        }
        written
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Timed<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let turn = this.turn.changes();
        if turn != this.head_of {
            this.head_of = turn;
            this.head.stop();
        }
        let before = buf.filled().len();
        let Poll::Ready(read) = Pin::new(&mut this.io).poll_read(cx, buf) else {
            this.head.poll(cx, Stalled::Head)?;
            return Poll::Pending;
        };
        if read.is_ok() && buf.filled().len() > before && turn.is_multiple_of(2) {
            this.head.start(this.patience.head);
        }
        Poll::Ready(read)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Timed<T> {
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

    /// hyper asks for this when it has handed over all that it has.
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
