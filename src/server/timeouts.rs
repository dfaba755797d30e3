//! Time-outs that hyper does not have, as a layer over the stream: for a request head that does not
//! end, and for a response that the caller reads too slowly.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Response;
use hyper::header::{CONNECTION, HeaderValue};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

/// How long a caller may stall, and how much it may send before its head has ended.
pub(crate) struct IoTimeouts {
    /// From the first byte of a head to its end; also for a TLS handshake.
    pub(crate) head: Duration,
    /// From the first byte of a response that the caller does not read immediately, to its last
    /// byte.
    pub(crate) write: Duration,
    /// Permits to receive a large head.
    pub(crate) large_heads: Arc<Semaphore>,
}

/// Size above which a head is large. Thousands of connections may send heads at the same time, but
/// few of these: hyper buffers the whole head.
const LARGE_HEAD: usize = 16 << 10;
/// Large heads that are received at the same time.
pub(super) const MAX_LARGE_HEADS: usize = 1024;

/// A stream with the two time-outs.
pub(crate) struct TimeoutIo<T> {
    io: T,
    timeouts: Arc<IoTimeouts>,
    /// Received bytes count as a head only while no request is being answered.
    phase: RequestPhase,
    /// For the head that is being received.
    head: Deadline,
    /// For the bytes being written, until all of them are.
    answer: Deadline,
}

/// Whether the caller is to send a request on a connection, or Flowgate is to answer one.
#[derive(Clone)]
pub(crate) struct RequestPhase(Arc<PhaseState>);

struct PhaseState {
    /// The caller's address; `None` for a Unix socket.
    from: Option<IpAddr>,
    /// Number of changes; after an odd number Flowgate answers.
    changes: AtomicU64,
    /// Whether the latest request has a body whose end was not read.
    unread: AtomicBool,
    /// After this number of changes every answer had been written.
    flushed_at: AtomicU64,
    /// Whether hyper has begun an answer of its own, which is withheld.
    is_withheld: AtomicBool,
    /// The head that began after this number of changes.
    head_of: AtomicU64,
    /// Bytes of that head so far.
    head_bytes: AtomicUsize,
    /// Held while a large head is received.
    large_head: Mutex<Option<OwnedSemaphorePermit>>,
}

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
    /// A head is large, and too many large heads are being received.
    #[error("too many large heads at the same time")]
    LargeHead,
}

// === impl PhaseState ===

impl PhaseState {
    fn end_head(&self) {
        if self.head_bytes.swap(0, Ordering::Relaxed) > LARGE_HEAD {
            *self.large_head.lock() = None;
        }
    }

    /// Takes a permit for a large head. Fails if there is none.
    fn check_head(&self, timeouts: &IoTimeouts) -> io::Result<()> {
        if self.head_bytes.load(Ordering::Relaxed) <= LARGE_HEAD {
            return Ok(());
        }
        let mut large_head = self.large_head.lock();
        if large_head.is_none() {
            let permit = timeouts.large_heads.clone().try_acquire_owned();
            *large_head = Some(permit.map_err(|_| io::Error::other(Stalled::LargeHead))?);
        }
        Ok(())
    }
}

// === impl RequestPhase ===

impl RequestPhase {
    /// Before the first request of a connection from this address.
    pub(super) fn new(from: Option<IpAddr>) -> Self {
        Self(Arc::new(PhaseState {
            from,
            changes: AtomicU64::default(),
            unread: AtomicBool::default(),
            flushed_at: AtomicU64::default(),
            is_withheld: AtomicBool::default(),
            head_of: AtomicU64::default(),
            head_bytes: AtomicUsize::default(),
            large_head: Mutex::default(),
        }))
    }

    /// The caller's address.
    pub(super) fn from(&self) -> Option<IpAddr> {
        self.0.from
    }

    /// Called when a request's head is complete.
    pub(crate) fn begin_answer(self) -> AnswerGuard {
        self.0.changes.fetch_add(1, Ordering::Relaxed);
        AnswerGuard(self)
    }

    /// Notes whether the rest of a body is still to be read.
    pub(super) fn set_unread(&self, unread: bool) {
        self.0.unread.store(unread, Ordering::Relaxed);
    }

    /// Whether bytes of the latest request may still arrive.
    pub(super) fn is_unread(&self) -> bool {
        self.0.unread.load(Ordering::Relaxed)
    }

    /// Whether no head has been complete yet.
    pub(crate) fn is_first(&self) -> bool {
        self.changes() == 0
    }

    fn changes(&self) -> u64 {
        self.0.changes.load(Ordering::Relaxed)
    }
}

// === impl AnswerGuard ===

impl AnswerGuard {
    /// The answer is ready. If the rest of the request was not read, the connection must end with
    /// it.
    pub(super) fn end<B, E>(self, mut answer: Result<Response<B>, E>) -> Result<Response<B>, E> {
        if self.0.is_unread()
            && let Ok(response) = &mut answer
        {
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
        answer
    }
}

impl Drop for AnswerGuard {
    fn drop(&mut self) {
        self.0.0.changes.fetch_add(1, Ordering::Relaxed);
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
            answer,
        }
    }

    /// The stream without its time-outs.
    pub(super) fn into_inner(self) -> T {
        self.io
    }

    /// Whether these bytes are hyper's own answer to a head that it cannot read: a status without a
    /// body. It is withheld, and the handler's answer is sent in its place when hyper has ended.
    fn withholds(&self, bytes: &[u8]) -> bool {
        // Every request of this connection is answered, so only hyper's own answer can be written.
        let state = &self.phase.0;
        if state.flushed_at.load(Ordering::Relaxed) == self.phase.changes()
            && bytes.starts_with(b"HTTP/1.")
        {
            state.is_withheld.store(true, Ordering::Relaxed);
        }
        state.is_withheld.load(Ordering::Relaxed)
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
        let state = &this.phase.0;
        if phase != state.head_of.swap(phase, Ordering::Relaxed) {
            this.head.stop();
            state.end_head();
        }
        state.check_head(&this.timeouts)?;
        let before = buf.filled().len();
        let Poll::Ready(read) = Pin::new(&mut this.io).poll_read(cx, buf) else {
            this.head.poll(cx, Stalled::Head)?;
            return Poll::Pending;
        };
        let received = buf.filled().len() - before;
        if read.is_ok() && received > 0 && phase.is_multiple_of(2) {
            this.head.start(this.timeouts.head);
            state.head_bytes.fetch_add(received, Ordering::Relaxed);
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
        if this.withholds(buf) {
            return Poll::Ready(Ok(buf.len()));
        }
        let written = Pin::new(&mut this.io).poll_write(cx, buf);
        this.taken(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.withholds(bufs.first().map_or(&[], |buf| buf)) {
            return Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()));
        }
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
            let changes = this.phase.changes();
            if changes.is_multiple_of(2) {
                this.phase.0.flushed_at.store(changes, Ordering::Relaxed);
            }
        }
        this.taken(cx, flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.phase.0.is_withheld.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        let shut = Pin::new(&mut this.io).poll_shutdown(cx);
        this.taken(cx, shut)
    }
}
