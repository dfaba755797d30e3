//! Time-outs of a connection, as a layer over the stream: while no request arrives, for a request head
//! that does not end, and for a response that the caller reads too slowly. hyper has one for a head
//! alone, and makes a timer for each.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Response;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

use super::closing::announced;
use crate::primitives::lazy_timer::LazyTimer;

/// How long a caller may stall, and how much it may send before its head has ended.
pub(crate) struct IoTimeouts {
    /// From the end of a response, or the begin of the connection, to the first bytes of a head.
    pub(crate) idle: Duration,
    /// From the first bytes of a head to its end; also for a TLS handshake.
    pub(crate) head: Duration,
    /// From the first byte of a response that the caller does not read immediately, to its last
    /// byte.
    pub(crate) write: Duration,
    /// Permits to receive a large head.
    pub(crate) large_heads: Arc<Semaphore>,
}

/// Size above which a head is large. Thousands of connections may send heads at the same time, but
/// few of these: hyper buffers the whole head.
pub(crate) const LARGE_HEAD: usize = 16 << 10;
/// Memory for large heads that are received at the same time, in bytes.
const LARGE_HEADS: usize = 80 << 20;

/// A stream with the time-outs.
pub(crate) struct TimeoutIo<T> {
    io: T,
    phase: RequestPhase,
    /// For the bytes being written, until all of them are.
    answer: Deadline,
}

/// The head that is being received.
#[derive(Default)]
struct HeadProgress {
    /// Number of requests before it on its connection.
    after: u32,
    /// Bytes so far.
    bytes: usize,
    deadline: Deadline,
    /// Held while a large head is received.
    permit: Option<OwnedSemaphorePermit>,
}

/// What a connection does with its latest request. Shared by the stream below hyper and by the
/// handler above it.
#[derive(Clone)]
pub(crate) struct RequestPhase(Arc<PhaseState>);

struct PhaseState {
    /// The caller's address; `None` for a Unix socket.
    peer: Option<IpAddr>,
    /// A [`Step`].
    step: AtomicU8,
    /// Number of requests whose heads were complete.
    requests: AtomicU32,
    /// Whether the latest request has a body whose end was not read.
    unread: AtomicBool,
    /// Whether the head of the latest request was large.
    large: AtomicBool,
    /// Whether the connection was idle for too long.
    idled: AtomicBool,
    // The following are used by the stream alone. Kept here because the future of a connection,
    // which contains the stream, is at the limit of its size (`call::tests`).
    timeouts: Arc<IoTimeouts>,
    head: Mutex<HeadProgress>,
    idle: Mutex<IdleTimer>,
}

/// The steps of a request, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Step {
    /// The head is awaited or received. Earlier answers are written, except for later parts of a
    /// streamed body.
    Reading,
    /// The handler has the request. Received bytes belong to its body.
    Answering,
    /// hyper has the answer, and not all of it is written.
    Writing,
    /// hyper has answered a head that it cannot read. Its answer is withheld, and the handler's is
    /// sent in its place when hyper has ended.
    Withholding,
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

/// The end of the idle time.
struct IdleTimer {
    ends: Instant,
    timer: LazyTimer,
}

/// A caller stalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Stalled {
    /// No request arrived.
    #[error("the connection was idle for too long")]
    Idle,
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

/// How many large heads may be received at the same time, if none is larger than `max_header` bytes.
pub(super) fn large_heads(max_header: usize) -> usize {
    (LARGE_HEADS / max_header.max(LARGE_HEAD)).max(1)
}

// === impl HeadProgress ===

impl HeadProgress {
    /// Starts over if the head is complete: then its connection has more `requests` than before.
    fn reset_after(&mut self, requests: u32) {
        if self.after != requests {
            *self = Self {
                after: requests,
                ..Self::default()
            };
        }
    }

    /// Takes a permit if the head is large. Fails if there is none.
    fn check_size(&mut self, large_heads: &Arc<Semaphore>) -> io::Result<()> {
        if self.bytes > LARGE_HEAD && self.permit.is_none() {
            let permit = large_heads.clone().try_acquire_owned();
            self.permit = Some(permit.map_err(|_| io::Error::other(Stalled::LargeHead))?);
        }
        Ok(())
    }

    /// Waits for more of a head, which must end `within` this time. Most heads arrive in one piece,
    /// and are not waited for.
    fn poll_rest(&mut self, cx: &mut Context<'_>, within: Duration) -> io::Result<()> {
        if self.bytes > 0 {
            self.deadline.start(within);
        }
        self.deadline.poll(cx, Stalled::Head)
    }
}

// === impl Step ===

impl Step {
    /// In the order of their declaration.
    const ALL: [Self; 4] = [
        Self::Reading,
        Self::Answering,
        Self::Writing,
        Self::Withholding,
    ];
}

// === impl RequestPhase ===

impl RequestPhase {
    /// Before the first request of a connection from this address.
    pub(super) fn new(peer: Option<IpAddr>, timeouts: Arc<IoTimeouts>) -> Self {
        Self(Arc::new(PhaseState {
            peer,
            step: AtomicU8::new(Step::Reading as u8),
            requests: AtomicU32::default(),
            unread: AtomicBool::default(),
            large: AtomicBool::default(),
            idled: AtomicBool::default(),
            idle: Mutex::new(IdleTimer::new(timeouts.idle)),
            timeouts,
            head: Mutex::default(),
        }))
    }

    /// The caller's address.
    pub(super) fn peer(&self) -> Option<IpAddr> {
        self.0.peer
    }

    /// Called when a request's head is complete.
    pub(crate) fn begin_answer(self) -> AnswerGuard {
        let requests = self.0.requests.fetch_add(1, Ordering::Relaxed) + 1;
        let mut head = self.0.head.lock();
        self.0
            .large
            .store(head.bytes > LARGE_HEAD, Ordering::Relaxed);
        // Here, because hyper reads no more while the call waits: its permit is free for others.
        head.reset_after(requests);
        drop(head);
        self.set_step(Step::Answering);
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

    /// Whether the connection ends because it was idle for too long. hyper reports no error then.
    pub(super) fn has_idled(&self) -> bool {
        self.0.idled.load(Ordering::Relaxed)
    }

    /// Whether no head has been complete yet.
    pub(crate) fn is_first(&self) -> bool {
        self.requests() == 0
    }

    fn requests(&self) -> u32 {
        self.0.requests.load(Ordering::Relaxed)
    }

    fn step(&self) -> Step {
        Step::ALL[usize::from(self.0.step.load(Ordering::Relaxed))]
    }

    fn set_step(&self, step: Step) {
        self.0.step.store(step as u8, Ordering::Relaxed);
    }
}

// === impl AnswerGuard ===

impl AnswerGuard {
    /// The answer is ready. If the rest of the request was not read, the connection must end with
    /// it. It ends after a large head, too, because hyper would keep the memory of it.
    pub(super) fn end<B, E>(self, answer: Result<Response<B>, E>) -> Result<Response<B>, E> {
        if self.0.is_unread() || self.0.0.large.load(Ordering::Relaxed) {
            return answer.map(announced);
        }
        answer
    }
}

impl Drop for AnswerGuard {
    fn drop(&mut self) {
        self.0.set_step(Step::Writing);
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

// === impl IdleTimer ===

impl IdleTimer {
    fn new(within: Duration) -> Self {
        Self {
            ends: Instant::now() + within,
            timer: LazyTimer::default(),
        }
    }

    /// The idle time begins again.
    fn restart(&mut self, within: Duration) {
        self.ends = Instant::now() + within;
    }

    /// Whether the idle time is over.
    fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        self.timer.has_come(self.ends, cx)
    }
}

// === impl TimeoutIo ===

impl<T> TimeoutIo<T> {
    /// Applies the time-outs of `phase` to each head and each response.
    pub(crate) fn new(io: T, phase: RequestPhase) -> Self {
        Self {
            io,
            phase,
            answer: Deadline::default(),
        }
    }

    /// The stream without its time-outs.
    pub(super) fn into_inner(self) -> T {
        self.io
    }

    /// Whether these bytes are of hyper's own answer to a head that it cannot read.
    fn withholds(&self, bytes: &[u8]) -> bool {
        match self.phase.step() {
            // A status line is hyper's own here: every earlier answer has written its one.
            Step::Reading if bytes.starts_with(b"HTTP/1.") => {
                self.phase.set_step(Step::Withholding);
                true
            }
            Step::Reading | Step::Answering | Step::Writing => false,
            Step::Withholding => true,
        }
    }

    /// Fails if the written bytes are not accepted in time.
    fn taken<R>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<R>>,
    ) -> Poll<io::Result<R>> {
        if written.is_pending() {
            self.answer.start(self.phase.0.timeouts.write);
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
        let mut head = this.phase.0.head.lock();
        head.reset_after(this.phase.requests());
        head.check_size(&this.phase.0.timeouts.large_heads)?;
        let before = buf.filled().len();
        let Poll::Ready(read) = Pin::new(&mut this.io).poll_read(cx, buf) else {
            head.poll_rest(cx, this.phase.0.timeouts.head)?;
            let is_idle = head.bytes == 0 && this.phase.step() == Step::Reading;
            if is_idle && this.phase.0.idle.lock().poll(cx) {
                this.phase.0.idled.store(true, Ordering::Relaxed);
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, Stalled::Idle)));
            }
            return Poll::Pending;
        };
        let received = buf.filled().len() - before;
        if read.is_ok() && received > 0 && this.phase.step() != Step::Answering {
            head.bytes += received;
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
            if this.phase.step() == Step::Writing {
                this.phase.set_step(Step::Reading);
                let phase = &this.phase.0;
                phase.idle.lock().restart(phase.timeouts.idle);
            }
        }
        this.taken(cx, flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.phase.step() == Step::Withholding {
            return Poll::Ready(Ok(()));
        }
        let shut = Pin::new(&mut this.io).poll_shutdown(cx);
        this.taken(cx, shut)
    }
}
