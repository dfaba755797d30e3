//! Accepts callers' connections: TCP or a Unix socket, with or without TLS, HTTP/1.1 only. The
//! number of connections, their time-outs and the size of request heads are limited. A [`Handler`]
//! answers each request.

pub(crate) mod balancers;
pub(crate) mod bounds;
mod closing;
pub(crate) mod head_error;
mod listener;
pub(crate) mod per_address;
pub(crate) mod proxy_header;
pub(crate) mod received_body;
pub(crate) mod runtime_pool;
pub(crate) mod socket;
pub(crate) mod timeouts;
pub(crate) mod tls;

use std::error::Error;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::http::request;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use prometheus::IntCounter;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;

use crate::observe::metrics::Metrics;
use crate::process::shutdown::{Phase, Phases};
use crate::server::bounds::{Bounds, CurrentBounds};
use crate::server::closing::{announced, linger, write_last};
use crate::server::head_error::HeadError;
pub(crate) use crate::server::listener::Listener;
use crate::server::per_address::{Balancer, ConnectionSource, OpenConnection, Sources};
use crate::server::proxy_header::ProxyHeaderError;
use crate::server::received_body::ReceivedBody;
use crate::server::runtime_pool::RuntimePool;
use crate::server::socket::{Disconnect, Socket, SocketIo};
use crate::server::timeouts::{RequestPhase, Stalled, TimeoutIo};
use crate::server::tls::{Certificates, Opened, PlaintextHandler};

/// Serves a listener's connections within its limits, and counts them.
pub(crate) struct ConnectionServer {
    bounds: CurrentBounds,
    /// `Some`: callers must use TLS.
    certificates: Option<Arc<Certificates>>,
    metrics: Arc<Metrics>,
    phases: Phases,
    /// The phase in which the listener closes and its connections are asked to end.
    until: Phase,
    /// All connections, so that a drain can wait for them.
    open: TaskTracker,
    sources: Sources,
    /// Permits to answer on connections over the limits.
    refusing: Arc<Semaphore>,
    /// When refused connections were last logged.
    refusals_logged: LogInterval,
    /// When connections with a missing or invalid PROXY header were last logged.
    proxy_headers_logged: LogInterval,
}

/// When a line was last logged that callers could repeat without end.
#[derive(Default)]
struct LogInterval(Mutex<Option<Instant>>);

/// Minimum interval between log lines about refused connections.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Connections over the limits that are answered at the same time. They use reserved descriptors
/// (`bounds.rs`).
const MAX_REFUSING: usize = 32;
/// How long a connection over the limits stays open.
const REFUSED_FOR: Duration = Duration::from_secs(2);

/// The caller has disconnected, so no response can be sent.
#[derive(Debug, thiserror::Error)]
#[error("the caller has disconnected")]
pub(crate) struct CallerDisconnected;

/// A handler of requests.
pub(crate) trait Handler: Clone + Send + Sync + 'static {
    /// Whether a balancer's connection may begin without a PROXY header. Probes and scrapes come
    /// from the same addresses.
    const MAY_OMIT_PROXY_HEADER: bool = false;

    /// The response body.
    type Body: Body<Data = Bytes, Error: Error + Send + Sync + 'static> + Send + 'static;

    /// Handles one request; `disconnect` detects that the caller has disconnected. The future is
    /// polled again when a phase begins.
    fn answer(
        self,
        request: Box<Request<ReceivedBody>>,
        disconnect: Disconnect,
    ) -> impl Future<Output = Result<Response<Self::Body>, CallerDisconnected>> + Send;

    /// A connection ended without a request: TLS was expected, or a head did not end.
    fn no_request(&self) {}

    /// Answers a head that could not be read, of which `received` is what is left. The connection
    /// ends with this answer.
    fn refuse_head(
        &self,
        error: HeadError,
        _received: &[u8],
        _peer: Option<IpAddr>,
    ) -> Response<Full<Bytes>> {
        plain_text(error.status(), format!("{error}\n"))
    }

    /// Answers a call on a connection over the limits, without reading its body. The connection
    /// ends with this answer.
    fn refuse_connection(&self, _head: &request::Parts) -> Response<Full<Bytes>> {
        plain_text(StatusCode::SERVICE_UNAVAILABLE, "Too many connections.\n")
    }
}

/// Refuses every request of a connection over the limits.
#[derive(Clone)]
struct OverLimit<H>(H);

// === impl OverLimit ===

impl<H: Handler> Handler for OverLimit<H> {
    type Body = Full<Bytes>;

    async fn answer(
        self,
        request: Box<Request<ReceivedBody>>,
        _disconnect: Disconnect,
    ) -> Result<Response<Full<Bytes>>, CallerDisconnected> {
        let (head, _unread) = request.into_parts();
        Ok(announced(self.0.refuse_connection(&head)))
    }

    fn refuse_head(
        &self,
        error: HeadError,
        received: &[u8],
        peer: Option<IpAddr>,
    ) -> Response<Full<Bytes>> {
        self.0.refuse_head(error, received, peer)
    }
}

// === impl ConnectionServer ===

impl ConnectionServer {
    /// Serves until the phase `until`.
    pub(crate) fn new(
        bounds: CurrentBounds,
        certificates: Option<Arc<Certificates>>,
        metrics: Arc<Metrics>,
        phases: Phases,
        until: Phase,
    ) -> Arc<Self> {
        Arc::new(Self {
            bounds,
            certificates,
            metrics,
            phases,
            until,
            open: TaskTracker::new(),
            sources: Sources::default(),
            refusing: Arc::new(Semaphore::new(MAX_REFUSING)),
            refusals_logged: LogInterval::default(),
            proxy_headers_logged: LogInterval::default(),
        })
    }

    /// Accepts connections, then closes the listener. A connection that is answering a request
    /// continues until it has answered.
    pub(crate) async fn serve(
        self: Arc<Self>,
        listener: Listener,
        service: impl Handler,
        mut runtime_pool: RuntimePool,
    ) {
        let mut phases = self.phases.clone();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = phases.reached(self.until) => return,
            };
            let begun = accepted.and_then(|(socket, from)| {
                runtime_pool.begin(socket, |socket| self.admit(socket, from, &service))
            });
            if let Err(error) = begun {
                // Out of descriptors, or the connection was closed before it was accepted.
                tracing::warn!(%error, "cannot accept a connection");
                self.errors("accept").inc();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// Waits until every connection has ended.
    pub(crate) async fn all_closed(&self) {
        self.open.close();
        self.open.wait().await;
    }

    fn admit<H: Handler>(self: &Arc<Self>, socket: Socket, peer: Option<IpAddr>, service: &H) {
        let bounds = self.bounds.load();
        if self.open.len() >= bounds.max_connections {
            return self.refuse_connection("too_many", socket, service);
        }
        let balancers = &bounds.balancers;
        if !balancers.require_proxy_header() {
            return self.open_connection(socket, peer, service);
        }
        match (balancers.is_trusted(peer), H::MAY_OMIT_PROXY_HEADER) {
            (false, false) => self.refuse_proxy_header(&ProxyHeaderError::Untrusted, peer),
            (false, true) => self.open_connection(socket, peer, service),
            (true, true) if peer.is_none() => self.open_connection(socket, peer, service),
            (true, _) => {
                let connection = self.clone().behind_balancer(socket, peer, service.clone());
                self.open.spawn(connection);
            }
        }
    }

    /// Reads the PROXY header, then serves the connection as one of the address that it states. A
    /// task of its own, so that its future does not outlive the header.
    async fn behind_balancer<H: Handler>(
        self: Arc<Self>,
        mut socket: Socket,
        peer: Option<IpAddr>,
        service: H,
    ) {
        let within = self.bounds.load().timeouts.head;
        let mut phases = self.phases.clone();
        let read = timeout(within, socket.read_proxy_header(H::MAY_OMIT_PROXY_HEADER));
        let header = tokio::select! {
            biased;
            read = read => read.unwrap_or(Some(Err(ProxyHeaderError::Slow))),
            () = phases.reached(Phase::Closing) => return,
        };
        match header {
            None | Some(Ok(None)) => self.open_connection(socket, peer, &service),
            Some(Ok(stated)) => self.open_connection(socket, stated, &service),
            Some(Err(error)) => self.refuse_proxy_header(&error, peer),
        }
    }

    /// Serves a connection whose calls come from `source`, or from the callers of the balancer with
    /// this address. `None` is a Unix socket.
    fn open_connection(
        self: &Arc<Self>,
        socket: Socket,
        source: Option<IpAddr>,
        service: &impl Handler,
    ) {
        let bounds = self.bounds.load();
        let source = match source {
            None => ConnectionSource::Local,
            Some(address) if bounds.balancers.is_forwarder(address) => {
                ConnectionSource::Balancer(Box::new(Balancer {
                    address,
                    bounds: self.bounds.clone(),
                    sources: self.sources.clone(),
                    call: Mutex::default(),
                }))
            }
            Some(address) => match self.sources.enter(address, bounds.max_per_source) {
                Ok(slot) => ConnectionSource::Caller(slot),
                Err(()) => return self.refuse_connection("too_many_from_source", socket, service),
            },
        };
        let (socket_io, disconnect) = SocketIo::new(
            socket,
            OpenConnection::new(source, &self.metrics.connections.open),
        );
        match self.certificates.clone() {
            None => self
                .open
                .spawn(self.clone().http(socket_io, disconnect, service.clone())),
            Some(certificates) => self.open.spawn(self.clone().secured(
                certificates,
                socket_io,
                disconnect,
                service.clone(),
            )),
        };
    }

    /// Counts a connection over the limits. Its first request is answered with a refusal, unless
    /// too many such answers are being given; then it is closed.
    fn refuse_connection(self: &Arc<Self>, kind: &str, socket: Socket, service: &impl Handler) {
        self.count_refused_connection(kind);
        let Ok(answering) = self.refusing.clone().try_acquire_owned() else {
            return;
        };
        let (socket_io, disconnect) = SocketIo::new(socket, OpenConnection::uncounted());
        let server = self.clone();
        let certificates = self.certificates.clone();
        let service = OverLimit(service.clone());
        self.open.spawn(async move {
            let _answering = answering;
            drop(match certificates {
                None => timeout(REFUSED_FOR, server.http(socket_io, disconnect, service)).await,
                Some(certificates) => {
                    let answered = server.secured(certificates, socket_io, disconnect, service);
                    timeout(REFUSED_FOR, answered).await
                }
            });
        });
    }

    fn count_refused_connection(&self, kind: &str) {
        if self.refusals_logged.is_over() {
            tracing::warn!(
                kind,
                open = self.open.len(),
                "connections refused: a limit of [listen] is reached"
            );
        }
        self.errors(kind).inc();
    }

    fn refuse_proxy_header(&self, error: &ProxyHeaderError, peer: Option<IpAddr>) {
        let Some(kind) = error.kind() else { return };
        if self.proxy_headers_logged.is_over() {
            tracing::warn!(
                kind,
                from = peer.map(tracing::field::display),
                reason = %error,
                "connections refused: no valid PROXY header"
            );
        }
        self.errors(kind).inc();
    }

    async fn secured(
        self: Arc<Self>,
        certificates: Arc<Certificates>,
        socket_io: SocketIo,
        disconnect: Disconnect,
        service: impl Handler,
    ) {
        let within = self.bounds.load().timeouts.head;
        let mut phases = self.phases.clone();
        let opened = tokio::select! {
            biased;
            opened = certificates.open(socket_io, within) => opened,
            () = phases.reached(Phase::Closing) => return,
        };
        match opened {
            Opened::Tls(stream) => self.http(stream, disconnect, service).await,
            Opened::Plaintext(socket_io) => {
                self.errors("tls").inc();
                service.no_request();
                let service = PlaintextHandler(certificates.plaintext_reply());
                self.http(socket_io, disconnect, service).await;
            }
            Opened::Failed(failed) => {
                if let Some(kind) = failed.kind() {
                    self.errors(kind).inc();
                    tracing::debug!(kind, reason = %failed, "connection not established");
                }
            }
        }
    }

    /// Serves one connection. Its future lives as long as a waiting call, and its size is the
    /// memory per queued call (docs/decisions/0013-memory-per-queued-call.md): an `async fn` would
    /// store its arguments twice.
    pub(super) fn http<T>(
        self: Arc<Self>,
        io: T,
        disconnect: Disconnect,
        service: impl Handler,
    ) -> impl Future<Output = ()> + Send
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let timeouts = self.bounds.load().timeouts.clone();
        let request_phase = RequestPhase::new(disconnect.peer(), timeouts);
        async move {
            let last = {
                let mut connection = {
                    let bounds = self.bounds.load();
                    let stream = TimeoutIo::new(io, request_phase.clone());
                    let answer = service.clone();
                    let request_phase = request_phase.clone();
                    let answers = service_fn(move |request: Request<Incoming>| {
                        let answering = request_phase.clone().begin_answer();
                        let request = request.map(|body| ReceivedBody::new(body, &request_phase));
                        // Boxed: a future reserves space for its arguments until its end.
                        answer
                            .clone()
                            .answer(Box::new(request), disconnect.clone())
                            .map(move |response| answering.end(response))
                    });
                    http_builder(&bounds).serve_connection(TokioIo::new(stream), answers)
                };
                let mut changes = self.phases.changes();
                let mut ending = false;
                // Each phase wakes the connection, and thereby the call that it answers.
                let ended = loop {
                    tokio::select! {
                        // First, so that received bytes are read before the connection is asked to
                        // end.
                        biased;
                        ended = &mut connection => break ended,
                        _ = changes.next() => {
                            if self.must_end(&request_phase) && !std::mem::replace(&mut ending, true) {
                                Pin::new(&mut connection).graceful_shutdown();
                            }
                        }
                    }
                };
                let rest = connection.into_parts();
                let stream = rest.io.into_inner().into_inner();
                self.close(stream, ended, &rest.read_buf, &service, &request_phase)
            };
            if let Some(last) = last {
                last.await;
            }
        }
    }

    /// Closes a connection that hyper has ended. Returns what is still to be done: few connections
    /// have a last answer, or a caller that is still sending.
    fn close<T>(
        self: &Arc<Self>,
        io: T,
        ended: hyper::Result<()>,
        received: &[u8],
        service: &impl Handler,
        request_phase: &RequestPhase,
    ) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        match ended {
            Ok(()) if request_phase.is_unread() => Some(Box::pin(linger(io))),
            Ok(()) => {
                if request_phase.has_idled() {
                    self.count_error("idle");
                }
                None
            }
            Err(error) if error.is_parse() || stalled(&error) == Some(Stalled::LargeHead) => {
                let error = HeadError::new(&error, received, self.bounds.load().max_header);
                let answer = service.refuse_head(error, received, request_phase.peer());
                Some(Box::pin(self.clone().answer_head(io, error, answer)))
            }
            Err(error) => {
                self.count(&error, service);
                None
            }
        }
    }

    /// Sends the answer to a head that could not be read.
    async fn answer_head<T>(
        self: Arc<Self>,
        mut io: T,
        error: HeadError,
        answer: Response<Full<Bytes>>,
    ) where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        self.errors(error.kind()).inc();
        let within = self.bounds.load().timeouts.write;
        write_last(&mut io, answer, within).await;
        linger(io).await;
    }

    /// Whether a connection ends after the request that it is answering.
    fn must_end(&self, request_phase: &RequestPhase) -> bool {
        let phase = self.phases.now();
        // A caller that has just connected is about to send its first request.
        phase >= self.until && (phase >= Phase::Closing || !request_phase.is_first())
    }

    fn count(&self, error: &hyper::Error, service: &impl Handler) {
        let kind = match stalled(error) {
            Some(Stalled::Head) => "slow_head",
            Some(Stalled::Answer) => "slow_reader",
            Some(Stalled::LargeHead) => "large_head",
            Some(Stalled::Idle) => "idle",
            None if error.is_user() => return,
            None if error.is_incomplete_message() => "incomplete",
            None => "broken",
        };
        if kind == "slow_head" {
            service.no_request();
        }
        self.count_error(kind);
    }

    fn count_error(&self, kind: &str) {
        self.errors(kind).inc();
        tracing::debug!(kind, "connection ended with an error");
    }

    fn errors(&self, kind: &str) -> IntCounter {
        self.metrics.connections.errors.with_label_values(&[kind])
    }
}

// === impl LogInterval ===

impl LogInterval {
    /// Whether the line may be logged again; it then counts as logged now.
    fn is_over(&self) -> bool {
        let now = Instant::now();
        let mut last_logged = self.0.lock();
        let is_over = last_logged.is_none_or(|last_logged| last_logged + LOG_INTERVAL <= now);
        if is_over {
            *last_logged = Some(now);
        }
        is_over
    }
}

fn http_builder(bounds: &Bounds) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        // `TimeoutIo` has the time-outs.
        .header_read_timeout(None)
        .max_buf_size(bounds.max_header.max(8192))
        // The call itself watches for a disconnect; hyper would read for it, into another buffer.
        .half_close(true);
    builder
}

fn plain_text(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

/// The time-out that ended a connection, if one did.
fn stalled(error: &hyper::Error) -> Option<Stalled> {
    let io = error.source()?.downcast_ref::<io::Error>()?;
    io.get_ref()?.downcast_ref().copied()
}
