//! Sends one signed request to CAMS and reads the response. A call takes its token only when a
//! connection is ready. The pool holds hyper's own connections, because Flowgate must know exactly
//! which bytes have left the process. Nothing is retried here; the response is judged elsewhere.
//!
//! `upstream/set.rs` holds the configured upstreams, and only they are dialled:
//! `upstream/dial.rs` opens connections, `upstream/tunnel.rs` asks a proxy for a tunnel,
//! `upstream/resolve.rs` resolves the name, `upstream/addresses.rs` orders the addresses,
//! `upstream/race.rs` races them. `upstream/pool.rs` keeps idle connections and probes an
//! unreachable upstream, `upstream/exchange.rs` is one request and its response,
//! `upstream/first_write.rs` reports when the request is written. `upstream/clock.rs` compares its
//! clock with this host's. `upstream/one_request.rs` sends a single request to another service over
//! a connection of its own.

mod addresses;
pub(crate) mod clock;
mod dial;
mod exchange;
mod failures;
mod first_write;
mod link;
pub(crate) mod one_request;
mod pool;
mod race;
mod reach;
mod resolve;
mod set;
mod tls;
mod tunnel;

use std::future::poll_fn;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use http_body_util::Full;
use hyper::StatusCode;
use hyper::client::conn::http1::SendRequest;
use hyper::header::HeaderMap;
use tokio::time::Instant;

use crate::config;
use crate::primitives::lazy_timer::LazyTimer;
use clock::UpstreamClock;
use dial::Dialer;
pub(crate) use failures::Failure;
use link::Link;
use pool::Pool;
pub(crate) use set::Upstreams;
pub(crate) use tls::TlsRoots;

/// A request to CAMS: origin form, with a `Host` header.
pub(crate) type Request = hyper::Request<Full<Bytes>>;

/// The sending half of a hyper connection.
type Sender = SendRequest<Full<Bytes>>;

/// Called with the time right after the kernel has accepted the first byte of a request, on the
/// thread that wrote it. It must be quick: the connection waits for it.
pub(crate) type OnWrite = Box<dyn FnOnce(Instant) + Send>;

/// One configured upstream with its connections. Clones share them.
#[derive(Clone)]
pub(crate) struct Upstream {
    pool: Arc<Pool>,
}

/// A connection that was ready when it was handed out. It returns to the pool if it is dropped
/// unused.
pub(crate) struct Connection {
    pool: Arc<Pool>,
    /// `None` while a response is awaited: a connection that is dropped half-read is closed, not
    /// reused.
    link: Option<Link>,
}

/// The result of sending one request.
pub(crate) enum Sent {
    /// The complete response.
    Answered(UpstreamResponse),
    /// No byte of the request has left this process, and none will: the connection had closed, or
    /// could not be written to in time.
    Unsent,
    /// The request may have arrived.
    Lost(Lost),
}

/// A complete response.
pub(crate) struct UpstreamResponse {
    /// The status.
    pub(crate) status: StatusCode,
    /// The headers, unchanged.
    pub(crate) headers: HeaderMap,
    /// The body, of at most `upstream.max_response` bytes.
    pub(crate) body: Bytes,
}

/// Why a request that may have arrived has no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Lost {
    /// The response was not complete within `upstream.answer_timeout`.
    Timeout,
    /// The connection broke before the response's head was complete.
    Closed,
    /// The connection broke within the response's body.
    Cut,
    /// The body is larger than `upstream.max_response`, or the head is larger than 64 KiB.
    TooLarge,
    /// Not an HTTP response, or a switch to another protocol.
    Malformed,
}

/// Whether CAMS can be reached, according to the latest connection attempts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// The latest attempt succeeded, or there was none yet.
    Up,
    /// The latest attempt failed.
    Down {
        /// Time of the first failure in a row.
        since: Instant,
        /// Reason of the latest failure.
        reason: Arc<str>,
    },
}

/// Why the upstream cannot be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamError {
    /// The host is not a valid name for a certificate.
    #[error("{0}: its host is not a name that a certificate can bear")]
    Name(String),
    /// The file with additional roots cannot be used.
    #[error("upstream.ca_file: {}: {reason}", path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// The mistake.
        reason: String,
    },
    /// The TLS library rejects its settings.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] tokio_rustls::rustls::Error),
}

// === impl Upstream ===

impl Upstream {
    /// Like [`Upstream::with_roots`], with the roots of the settings.
    #[cfg(test)]
    pub(crate) fn new(
        config: &config::Upstream,
        own: Vec<SocketAddr>,
    ) -> Result<Self, UpstreamError> {
        Self::with_roots(config, own, None)
    }

    /// Sets up TLS and an empty pool; connections are opened on demand. `own` are Flowgate's own
    /// listeners, which are never dialled. `roots` are loaded from the settings if there are none.
    fn with_roots(
        config: &config::Upstream,
        own: Vec<SocketAddr>,
        roots: Option<&TlsRoots>,
    ) -> Result<Self, UpstreamError> {
        let dialer = Dialer::new(config, own, roots)?;
        Ok(Self {
            pool: Arc::new(Pool::new(dialer, config)),
        })
    }

    /// Takes an idle connection, the most recently used one.
    pub(crate) fn try_ready(&self) -> Option<Connection> {
        self.pool.take()
    }

    /// Waits until a connection is ready, without a limit. `wanted` is the number of calls that
    /// could be sent now: up to that many connections are opened in parallel, within a limit, or
    /// one at a time while CAMS is unreachable. The future can be dropped at any time: the pool
    /// dials in its own tasks and keeps the connections.
    pub(crate) async fn ready(&self, wanted: usize) -> Connection {
        self.pool.ready(wanted).await
    }

    /// Whether the latest attempt to connect succeeded.
    pub(crate) fn reach(&self) -> Reach {
        self.pool.reach()
    }

    /// The URL, which is its name in metrics and logs.
    pub(crate) fn url(&self) -> &str {
        &self.pool.url
    }

    /// The host that is signed and sent as `Host`.
    pub(crate) fn host(&self) -> &str {
        &self.pool.settings.host
    }

    /// Its clock relative to this host's.
    pub(crate) fn clock(&self) -> &Arc<UpstreamClock> {
        &self.pool.clock
    }

    /// The proxy on the way to it.
    pub(crate) fn proxy(&self) -> Option<String> {
        self.pool.settings.proxy.as_ref().map(ToString::to_string)
    }

    /// The number of failed attempts to connect, by reason. Only an upstream behind a proxy has a
    /// proxy's reasons.
    pub(crate) fn failures(&self) -> impl Iterator<Item = (Failure, u64)> {
        let has_proxy = self.pool.settings.proxy.is_some();
        Failure::ALL
            .into_iter()
            .filter(move |failure| has_proxy || !failure.is_of_proxy())
            .map(|failure| (failure, self.pool.failures.get(failure)))
    }

    /// Whether a connection was opened by this upstream.
    pub(crate) fn owns(&self, connection: &Connection) -> bool {
        Arc::ptr_eq(&self.pool, &connection.pool)
    }

    fn has_settings(&self, settings: &config::Upstream) -> bool {
        self.pool.settings.is_same(settings)
    }

    /// Replaces the trusted roots for new connections. Open connections keep theirs; they live for
    /// at most some minutes.
    pub(crate) fn set_tls_roots(&self, tls_roots: TlsRoots) {
        self.pool.dialer.set_tls_roots(tls_roots);
    }

    /// Number of idle connections, including ones that the other side may have closed.
    #[cfg(test)]
    pub(crate) fn idle(&self) -> usize {
        self.pool.idle()
    }

    /// Number of connections that are handed out.
    #[cfg(test)]
    pub(crate) fn in_use(&self) -> usize {
        self.pool.in_use()
    }
}

// === impl Connection ===

impl Connection {
    /// The clock of its upstream relative to this host's.
    pub(crate) fn clock(&self) -> &Arc<UpstreamClock> {
        &self.pool.clock
    }

    /// The host of its upstream, which is signed and sent as `Host`.
    pub(crate) fn host(&self) -> &str {
        &self.pool.settings.host
    }

    /// Whether hyper still considers the connection open, and it is not so old that the other side
    /// may close it soon.
    pub(crate) fn is_usable(&self) -> bool {
        let now = Instant::now();
        self.link
            .as_ref()
            .is_some_and(|link| link.is_fresh(self.pool.idle_timeout(), now) && link.is_ready(now))
    }

    /// Sends one request and reads its complete response, within the answer time-out from `now` on.
    /// Dropping the future closes the connection and leaves the outcome unknown. Its task is also
    /// polled at `wake_at`, so that a caller that waits no longer needs no timer of its own.
    ///
    /// `on_write` is called once, when the first byte is written, from the connection's task. If
    /// nothing is written, it is dropped before this returns. Over TLS, an alert that is written
    /// while the request waits counts as the first byte, so `on_write` may have been called
    /// although this returns `Unsent`.
    pub(crate) async fn send_from(
        mut self,
        now: Instant,
        request: Request,
        on_write: Option<OnWrite>,
        wake_at: Instant,
    ) -> Sent {
        let mut link = self
            .link
            .take()
            .expect("a connection holds its link until it is sent on");
        let armed = link.first_write.arm(on_write);
        let exchange = exchange::exchange(&mut link.sender, request, self.pool.max_response());
        let deadline = now + self.pool.answer_timeout();
        let sent = by_deadline(exchange, &mut link.timer, deadline, wake_at).await;
        if !armed.was_written() {
            self.pool.closed(&link);
            return Sent::Unsent;
        }
        match sent {
            Sent::Answered(answer) => {
                self.pool.record_answer(&mut link);
                self.link = Some(link);
                Sent::Answered(answer)
            }
            failed => failed,
        }
    }

    #[cfg(test)]
    pub(crate) async fn send(self, request: Request, on_write: Option<OnWrite>) -> Sent {
        let now = Instant::now();
        let wake_at = now + self.pool.answer_timeout();
        self.send_from(now, request, on_write, wake_at).await
    }
}

/// The exchange, or `Timeout` at the deadline.
async fn by_deadline(
    exchange: impl Future<Output = Sent>,
    timer: &mut LazyTimer,
    deadline: Instant,
    wake_at: Instant,
) -> Sent {
    let mut exchange = pin!(exchange);
    let mut next = deadline.min(wake_at);
    poll_fn(|cx| {
        if let Poll::Ready(sent) = exchange.as_mut().poll(cx) {
            return Poll::Ready(sent);
        }
        while timer.has_come(next, cx) {
            if next == deadline {
                return Poll::Ready(Sent::Lost(Lost::Timeout));
            }
            next = deadline;
        }
        Poll::Pending
    })
    .await
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.pool.give_back(self.link.take());
    }
}

#[cfg(test)]
pub(crate) mod tests;
