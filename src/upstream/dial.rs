//! Opens one connection to an upstream: to its pinned addresses, or to those that its name resolves
//! to, or through a tunnel of the configured proxy. Never to one of Flowgate's own listeners. The
//! pool decides when to dial.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use hyper::client::conn::http1;
use hyper::rt::{Read, Write};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use tracing::debug;

use super::addresses::RaceHistory;
use super::failures::Failure;
use super::first_write::{FirstWrite, WatchedTcp};
use super::race::{Connect, race};
use super::resolve::Resolver;
use super::tunnel::{Tunnel, TunnelError};
use super::{Sender, TlsRoots, UpstreamError};
use crate::config::{self, Scheme};

/// Maximum size of a response head, in bytes.
const MAX_HEAD: usize = 64 * 1024;

/// Maximum length of TLS's error text in characters. The peer writes a part of it.
const MAX_TLS_ERROR: usize = 300;

/// TCP keep-alive: idle time before the first probe, interval, number of probes. A vanished host is
/// noticed within 30 s; Linux's default of nine probes would take 60 s.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;

/// Connection settings and the results of earlier attempts.
pub(super) struct Dialer {
    /// The name that is resolved: the upstream's or the proxy's.
    host: String,
    /// Set if connections lead through a proxy.
    tunnel: Option<Tunnel>,
    /// Addresses that replace the name's own, unless empty.
    pinned: Vec<SocketAddr>,
    /// Flowgate's own listeners.
    own: Vec<SocketAddr>,
    /// Limit on resolving, TCP, the proxy's tunnel and TLS together.
    timeout: Duration,
    tls: Option<(ArcSwap<ClientConfig>, ServerName<'static>)>,
    resolver: Resolver,
    race_history: Mutex<RaceHistory>,
}

/// A connection that is ready for its first request.
pub(super) struct Dialled {
    pub(super) sender: Sender,
    pub(super) first_write: Arc<FirstWrite>,
}

/// One race for a connection.
struct DialRace<'a> {
    dialer: &'a Dialer,
    /// The furthest stage that one of the addresses has reached.
    reached: AtomicU8,
}

/// The stages of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Tcp,
    /// The tunnel of a proxy.
    Tunnel,
    Tls,
}

/// The other end of the TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    Upstream,
    Proxy,
}

/// Why a connection could not be opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    /// The name could not be resolved.
    #[error("cannot resolve {0}: {1}")]
    Resolve(String, io::Error),
    /// The name has no address.
    #[error("{0} has no address")]
    NoAddress(String),
    /// Every address is one of Flowgate's own listeners.
    #[error("{}", itself(*.0))]
    Itself(Peer),
    /// TCP failed.
    #[error("cannot connect{to}: {kind}", to = to(*.0), kind = .1.kind())]
    Connect(Peer, io::Error),
    /// The proxy opens no tunnel.
    #[error("{0}")]
    Tunnel(TunnelError),
    /// TLS failed.
    #[error("TLS failed{place}: {error}", place = within(*.0), error = short(.1))]
    Tls(Peer, io::Error),
    /// hyper rejects the connection.
    #[error("{0}")]
    Http(hyper::Error),
    /// The time-out was reached.
    #[error("{what} within {limit:?}", what = not_reached(*.0, *.1), limit = .2)]
    Timeout(Peer, Stage, Duration),
    /// More than one address was tried.
    #[error("{}", GroupedErrors(.0))]
    Several(Vec<(SocketAddr, DialError)>),
}

impl Dialer {
    /// Checks the name, and loads the roots unless they are given; opens no connection.
    pub(super) fn new(
        config: &config::Upstream,
        own: Vec<SocketAddr>,
        roots: Option<&TlsRoots>,
    ) -> Result<Self, UpstreamError> {
        let upstream_host = config
            .dial_host
            .trim_start_matches('[')
            .trim_end_matches(']');
        let tls = match config.scheme {
            Scheme::Http => None,
            Scheme::Https => {
                let name = ServerName::try_from(upstream_host.to_owned())
                    .map_err(|_| UpstreamError::Name(config.url()))?;
                let roots = match roots {
                    Some(roots) => roots.clone(),
                    None => TlsRoots::load(config.ca_file.as_deref())?,
                };
                Some((ArcSwap::new(roots.0), name))
            }
        };
        let timeout = config.connect_timeout;
        let (host, port) = match &config.proxy {
            Some(proxy) => (&*proxy.host, proxy.port),
            None => (upstream_host, config.dial_port),
        };
        // Half of the time remains to connect to the last known addresses.
        let resolver = Resolver::of(host, port, timeout / 2);
        let pinned = config.connect_to.clone();
        Ok(Self {
            host: host.to_owned(),
            tunnel: Tunnel::for_upstream(config),
            pinned,
            own,
            timeout,
            tls,
            resolver,
            race_history: Mutex::default(),
        })
    }

    /// Replaces the trusted roots for new connections.
    pub(super) fn set_tls_roots(&self, tls_roots: TlsRoots) {
        if let Some((client, _)) = &self.tls {
            client.store(tls_roots.0);
        }
    }

    /// Opens one connection.
    pub(super) async fn dial(&self) -> Result<Dialled, DialError> {
        let deadline = Instant::now() + self.timeout;
        let addresses = timeout_at(deadline, self.addresses())
            .await
            .map_err(|_elapsed| self.slow_resolver())??;
        let order = self.race_history.lock().order(&addresses, Instant::now());
        let racing = DialRace {
            dialer: self,
            reached: AtomicU8::new(Stage::Tcp as u8),
        };
        let outcome = race(&racing, &order, deadline).await;
        self.race_history.lock().learn(&outcome, Instant::now());
        match outcome.winner {
            Some((_, dialled)) => Ok(dialled),
            None => Err(self.failure(outcome.failed, &outcome.pending, racing.reached())),
        }
    }

    fn slow_resolver(&self) -> DialError {
        let error = io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no answer within {:?}", self.timeout),
        );
        DialError::Resolve(self.name(), error)
    }

    /// The other end of the TCP connection.
    fn peer(&self) -> Peer {
        match self.tunnel {
            None => Peer::Upstream,
            Some(_) => Peer::Proxy,
        }
    }

    /// The resolved name, for messages.
    fn name(&self) -> String {
        match self.peer() {
            Peer::Upstream => self.host.clone(),
            Peer::Proxy => format!("the proxy {}", self.host),
        }
    }

    /// The error if no address could be connected to.
    fn failure(
        &self,
        mut failed: Vec<(SocketAddr, DialError)>,
        late: &[SocketAddr],
        reached: Stage,
    ) -> DialError {
        failed.extend(late.iter().map(|address| {
            let error = DialError::Timeout(self.peer(), reached, self.timeout);
            (*address, error)
        }));
        DialError::of_all(&self.name(), failed)
    }

    /// The addresses to dial, without Flowgate's own listeners.
    async fn addresses(&self) -> Result<Vec<SocketAddr>, DialError> {
        let mut addresses = if self.pinned.is_empty() {
            let resolved = self.resolver.addresses().await;
            resolved
                .map_err(|error| DialError::Resolve(self.name(), error))?
                .to_vec()
        } else {
            self.pinned.clone()
        };
        let found = addresses.len();
        addresses.retain(|address| !self.own.iter().any(|own| is_same(*own, *address)));
        if addresses.is_empty() && found > 0 {
            Err(DialError::Itself(self.peer()))
        } else {
            Ok(addresses)
        }
    }
}

// === impl DialRace ===

impl DialRace<'_> {
    fn reaches(&self, stage: Stage) {
        self.reached.fetch_max(stage as u8, Ordering::Relaxed);
    }

    fn reached(&self) -> Stage {
        let reached = self.reached.load(Ordering::Relaxed);
        [Stage::Tls, Stage::Tunnel]
            .into_iter()
            .find(|stage| *stage as u8 == reached)
            .unwrap_or(Stage::Tcp)
    }
}

impl Connect for DialRace<'_> {
    type Tcp = TcpStream;
    type Ready = Dialled;
    type Error = DialError;

    async fn connect(&self, address: SocketAddr) -> Result<TcpStream, DialError> {
        let peer = self.dialer.peer();
        let tcp = TcpStream::connect(address)
            .await
            .map_err(|error| DialError::Connect(peer, error))?;
        tcp.set_nodelay(true)
            .map_err(|error| DialError::Connect(peer, error))?;
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_RETRIES);
        SockRef::from(&tcp)
            .set_tcp_keepalive(&keepalive)
            .map_err(|error| DialError::Connect(peer, error))?;
        Ok(tcp)
    }

    async fn handshake(&self, mut tcp: TcpStream) -> Result<Dialled, DialError> {
        if let Some(tunnel) = &self.dialer.tunnel {
            self.reaches(Stage::Tunnel);
            tunnel.open(&mut tcp).await.map_err(DialError::Tunnel)?;
        }
        self.reaches(Stage::Tls);
        let first_write = Arc::<FirstWrite>::default();
        let tcp = WatchedTcp::new(tcp, first_write.clone());
        let sender = match &self.dialer.tls {
            None => start(TokioIo::new(tcp)).await,
            Some((client, name)) => {
                let connector = TlsConnector::from(client.load_full());
                let tls = connector
                    .connect(name.clone(), tcp)
                    .await
                    .map_err(|error| DialError::Tls(self.dialer.peer(), error))?;
                start(TokioIo::new(tls)).await
            }
        };
        Ok(Dialled {
            sender: sender.map_err(DialError::Http)?,
            first_write,
        })
    }
}

// === impl DialError ===

impl DialError {
    /// The error if each of a name's addresses failed.
    pub(super) fn of_all(name: &str, mut failed: Vec<(SocketAddr, DialError)>) -> Self {
        match failed.len() {
            0 => Self::NoAddress(name.to_owned()),
            1 => failed.remove(0).1,
            _ => Self::Several(failed),
        }
    }

    /// The reason as a metric label. Of several addresses, that of the one that failed first.
    pub(super) fn failure(&self) -> Failure {
        match self {
            Self::Resolve(..) | Self::NoAddress(_) => Failure::Resolve,
            Self::Itself(_) => Failure::Itself,
            Self::Connect(Peer::Upstream, _) => Failure::Connect,
            Self::Connect(Peer::Proxy, _) | Self::Timeout(Peer::Proxy, Stage::Tcp, _) => {
                Failure::ProxyConnect
            }
            Self::Tunnel(error) => error.failure(),
            Self::Tls(..) => Failure::Tls,
            Self::Http(_) => Failure::Http,
            Self::Timeout(_, Stage::Tunnel, _) => Failure::ProxyTimeout,
            Self::Timeout(..) => Failure::Timeout,
            Self::Several(errors) => errors
                .first()
                .map_or(Failure::Connect, |(_, error)| error.failure()),
        }
    }
}

/// The text of TLS's error, which may quote all names of the peer's certificate.
fn short(error: &io::Error) -> String {
    let text = error.to_string();
    match text.char_indices().nth(MAX_TLS_ERROR) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

fn itself(peer: Peer) -> &'static str {
    match peer {
        Peer::Upstream => "would dial Flowgate itself: upstream.connect_to pins other addresses",
        Peer::Proxy => "would dial Flowgate itself: upstream.proxy is one of its own listeners",
    }
}

fn to(peer: Peer) -> &'static str {
    match peer {
        Peer::Upstream => "",
        Peer::Proxy => " to the proxy",
    }
}

fn within(peer: Peer) -> &'static str {
    match peer {
        Peer::Upstream => "",
        Peer::Proxy => " in the proxy's tunnel",
    }
}

fn not_reached(peer: Peer, reached: Stage) -> &'static str {
    match (peer, reached) {
        (Peer::Upstream, _) => "not connected",
        (Peer::Proxy, Stage::Tcp) => "not connected to the proxy",
        (Peer::Proxy, Stage::Tunnel) => "the proxy has not answered",
        (Peer::Proxy, Stage::Tls) => "no TLS in the proxy's tunnel",
    }
}

/// Failures of several addresses, grouped by reason.
struct GroupedErrors<'a>(&'a [(SocketAddr, DialError)]);

impl fmt::Display for GroupedErrors<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Maximum number of addresses named for one reason.
        const NAMED: usize = 4;
        let mut groups: Vec<(String, Vec<String>)> = Vec::new();
        for (address, error) in self.0 {
            let reason = error.to_string();
            let address = address.to_string();
            match groups.iter_mut().find(|(known, _)| *known == reason) {
                Some((_, addresses)) => addresses.push(address),
                None => groups.push((reason, vec![address])),
            }
        }
        for (place, (reason, addresses)) in groups.iter().enumerate() {
            let separator = if place == 0 { "" } else { "; " };
            let named = addresses.len().min(NAMED);
            write!(
                out,
                "{separator}{reason} ({}",
                addresses[..named].join(", ")
            )?;
            match addresses.len() - named {
                0 => write!(out, ")")?,
                more => write!(out, " and {more} more)")?,
            }
        }
        Ok(())
    }
}

/// Spawns the connection's task, which also notices a close by the other side, and waits until it
/// is ready for a request.
pub(super) async fn start<T>(io: T) -> hyper::Result<Sender>
where
    T: Read + Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::Builder::new()
        .max_header_size(MAX_HEAD)
        .handshake(io)
        .await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            debug!(%error, "upstream connection ended");
        }
    });
    sender.ready().await?;
    Ok(sender)
}

/// Whether dialling the address would reach the listener.
fn is_same(listener: SocketAddr, dialled: SocketAddr) -> bool {
    let own = listener.ip().to_canonical();
    let ip = dialled.ip().to_canonical();
    // A dialled 0.0.0.0 is this machine; a listener on 0.0.0.0 has all of its addresses.
    listener.port() == dialled.port()
        && (own == ip || ip.is_unspecified() || (own.is_unspecified() && is_local(ip)))
}

/// Whether the address belongs to this machine: only its own addresses can be bound.
fn is_local(ip: IpAddr) -> bool {
    ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::upstream::tests::settings;

    #[tokio::test(start_paused = true)]
    async fn a_hanging_resolver_is_given_up_after_the_connect_timeout() {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let address = listener.local_addr().unwrap();
        let config = config::Upstream {
            dial_host: "cams.test".to_owned(),
            ..settings(address)
        };
        let mut dialer = Dialer::new(&config, Vec::new(), None).unwrap();
        let hangs = || std::future::pending().boxed();
        dialer.resolver = Resolver::new(Box::new(hangs), dialer.timeout / 2);
        let start = Instant::now();
        let reason = dialer.dial().await.err().unwrap().to_string();
        assert_eq!(reason, "cannot resolve cams.test: no answer within 3s");
        assert_eq!(start.elapsed(), Duration::from_secs(3));
    }

    #[test]
    fn an_error_of_tls_is_cut() {
        let long = io::Error::other("\u{e9}".repeat(60_000));
        let text = DialError::Tls(Peer::Upstream, long).to_string();
        assert_eq!(text, format!("TLS failed: {}...", "\u{e9}".repeat(300)));
        let whole = DialError::Tls(Peer::Proxy, io::Error::other("\u{e9}".repeat(300)));
        assert!(whole.to_string().ends_with('\u{e9}'));
    }

    #[test]
    fn an_own_listener_is_recognised_by_every_address_that_reaches_it() {
        let same = |listener: &str, dialled: &str| {
            is_same(listener.parse().unwrap(), dialled.parse().unwrap())
        };
        assert!(same("127.0.0.1:8080", "127.0.0.1:8080"));
        assert!(same("127.0.0.1:8080", "[::ffff:127.0.0.1]:8080"));
        assert!(same("127.0.0.1:8080", "0.0.0.0:8080"));
        assert!(same("0.0.0.0:8080", "127.0.0.9:8080"));
        assert!(same("[::]:8080", "127.0.0.1:8080"));
        assert!(same("[::]:8080", "[::1]:8080"));
        assert!(!same("127.0.0.1:8080", "127.0.0.1:8081"));
        assert!(!same("127.0.0.1:8080", "127.0.0.2:8080"));
        // 192.0.2.0/24 is reserved for documentation.
        assert!(!same("0.0.0.0:8080", "192.0.2.1:8080"));
    }
}
