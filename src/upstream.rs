//! How does one signed request reach CAMS, and what came back? Over a connection that was ready before the call took
//! its token, from a small pool of hyper's own connections: they know exactly what has left this process. Nothing is
//! sent twice here, and what an answer means is the judge's.
//!
//! Only the configured upstream is dialled (`upstream/dial.rs`; its addresses are `upstream/resolve.rs`, their order
//! `upstream/addresses.rs`, the race between them `upstream/race.rs`), the pool keeps what is idle and probes what is down
//! (`upstream/pool.rs`), one request and its answer are `upstream/exchange.rs`, the moment of its write is
//! `upstream/first_write.rs`.

mod addresses;
mod dial;
mod exchange;
mod first_write;
mod link;
mod pool;
mod race;
mod reach;
mod resolve;
mod tls;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::StatusCode;
use hyper::client::conn::http1::SendRequest;
use hyper::header::HeaderMap;
use tokio::time::Instant;

use crate::config;
use dial::Dialer;
use link::Link;
use pool::Pool;
pub(crate) use tls::Trust;

/// A request as it goes to CAMS: origin form, with its `Host`.
pub(crate) type Request = hyper::Request<Full<Bytes>>;

/// hyper's end of one connection.
type Sender = SendRequest<Full<Bytes>>;

/// Called with the time right after the kernel has taken the first byte of a request, on the thread that wrote it.
/// It must be quick: the connection waits for it.
pub(crate) type OnWrite = Box<dyn FnOnce(Instant) + Send>;

/// The one endpoint that Flowgate dials, with its connections. Clones share them.
#[derive(Clone)]
pub(crate) struct Upstream {
    pool: Arc<Pool>,
}

/// One connection that stood ready when it was given out. Dropped unused it goes back.
pub(crate) struct Connection {
    pool: Arc<Pool>,
    /// Absent while an answer is awaited: a connection that is dropped half-read is closed and not used again.
    link: Option<Link>,
}

/// What became of one request.
pub(crate) enum Sent {
    /// The whole answer.
    Answered(Answer),
    /// No byte of the request has left this process, and none will: the connection had closed, or could not be written
    /// to in time.
    Unsent,
    /// It may have arrived.
    Lost(Lost),
}

/// An answer that came in whole.
pub(crate) struct Answer {
    /// Its status.
    pub(crate) status: StatusCode,
    /// Its headers, as they came.
    pub(crate) headers: HeaderMap,
    /// Its body, of at most `upstream.max_response` bytes.
    pub(crate) body: Bytes,
}

/// Why there is no answer to a request that may have arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Lost {
    /// The last byte had not come within `upstream.answer_timeout`.
    Timeout,
    /// The connection broke before the answer's head was complete.
    Closed,
    /// The answer's body broke off.
    Cut,
    /// The answer is larger than `upstream.max_response`, or its head larger than is sensible.
    TooLarge,
    /// What came is not an HTTP answer, or wants to become another protocol.
    Malformed,
}

/// Whether CAMS can be reached, as the latest attempts to connect have shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// The latest connection could be opened, or none was tried yet.
    Up,
    /// It could not.
    Down {
        /// When the first of these attempts failed.
        since: Instant,
        /// Why the latest failed.
        reason: Arc<str>,
    },
}

/// Why the upstream cannot be set up at all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamError {
    /// No certificate can bear the host's name.
    #[error("upstream.url: its host is not a name that a certificate can bear")]
    Name,
    /// The file with more roots cannot be used.
    #[error("upstream.ca_file: {}: {reason}", path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The TLS library refuses its settings.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] tokio_rustls::rustls::Error),
}

// === impl Upstream ===

impl Upstream {
    /// Sets up TLS and an empty pool; nothing is dialled before somebody waits. `own` are Flowgate's own listeners,
    /// which are never dialled.
    pub(crate) fn new(
        config: &config::Upstream,
        own: Vec<SocketAddr>,
    ) -> Result<Self, UpstreamError> {
        let dialer = Dialer::new(config, own)?;
        Ok(Self {
            pool: Arc::new(Pool::new(dialer, config)),
        })
    }

    /// A connection that is ready now, the one that was used last.
    pub(crate) fn try_ready(&self) -> Option<Connection> {
        self.pool.take()
    }

    /// Waits until a connection is ready, for ever if need be. `wanted` is how many calls could go now: that many
    /// connections are opened side by side, up to a limit, unless CAMS cannot be reached; then one at a time. Nothing is lost when
    /// the future is dropped: the pool dials in tasks of its own and keeps what they open.
    pub(crate) async fn ready(&self, wanted: usize) -> Connection {
        self.pool.ready(wanted).await
    }

    /// Whether the latest attempt to connect succeeded.
    pub(crate) fn reach(&self) -> Reach {
        self.pool.reach()
    }

    /// Applies to new connections. Open ones were made with the trust of their time and are used until they are some
    /// minutes old.
    pub(crate) fn trust(&self, trust: Trust) {
        self.pool.dialer.trust(trust);
    }

    /// Connections that lie ready, among them some that the other side may have closed meanwhile.
    #[cfg(test)]
    pub(crate) fn idle(&self) -> usize {
        self.pool.idle()
    }

    /// Connections that were given out and not given back.
    #[cfg(test)]
    pub(crate) fn in_use(&self) -> usize {
        self.pool.in_use()
    }
}

// === impl Connection ===

impl Connection {
    /// Whether the connection can still be sent on, as far as hyper has noticed, and is not so old that the other side
    /// may be about to close it.
    pub(crate) fn is_usable(&self) -> bool {
        let now = Instant::now();
        self.link
            .as_ref()
            .is_some_and(|link| link.is_fresh(self.pool.idle_timeout(), now) && link.is_ready(now))
    }

    /// Sends one request and reads its answer to the last byte, within the answer time-out. Do not drop it
    /// half-way: that closes the connection, and what happened stays unknown.
    ///
    /// `on_write` is called once, when the first byte is written, from the connection's task. It is dropped uncalled,
    /// before this returns, if nothing is written. Over TLS an alert that is written while the request waits to be sent
    /// counts as its first byte, so `on_write` may have been called although this returns `Unsent`.
    pub(crate) async fn send(mut self, request: Request, on_write: Option<OnWrite>) -> Sent {
        let mut link = self
            .link
            .take()
            .expect("a connection holds its link until it is sent on");
        let armed = link.first_write.arm(on_write);
        let exchange = exchange::exchange(&mut link.sender, request, self.pool.max_response());
        let sent = tokio::time::timeout(self.pool.answer_timeout(), exchange).await;
        if !armed.was_written() {
            self.pool.closed(&link);
            return Sent::Unsent;
        }
        match sent {
            Ok(Sent::Answered(answer)) => {
                self.pool.answered(&mut link);
                self.link = Some(link);
                Sent::Answered(answer)
            }
            Ok(failed) => failed,
            Err(_elapsed) => Sent::Lost(Lost::Timeout),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.pool.give_back(self.link.take());
    }
}

#[cfg(test)]
mod tests;
