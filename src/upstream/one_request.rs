//! One request over a connection of its own, for services that are asked seldom: a collector of
//! traces, STS, the metadata service. Uses no proxy and follows no redirect. Errors name addresses
//! and reasons, and nothing of the request or the answer.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::rustls::pki_types::ServerName;

use super::dial::{DialError, Peer, Stage, start};
use super::exchange::exchange;
use super::race::{Connect, race};
use super::{Lost, Request, Sender, Sent, TlsRoots, UpstreamResponse};

/// Maximum size of an answer's body, in bytes. The head has the same limit.
const MAX_BODY: usize = 64 * 1024;

/// Where a request goes.
pub(crate) struct Destination<'a> {
    /// A name, or an address without brackets.
    pub(crate) host: &'a str,
    /// The port.
    pub(crate) port: u16,
    /// With roots the connection uses TLS, and the certificate must be for the host.
    pub(crate) tls: Option<TlsRoots>,
    /// Whether an address of the host may be connected to. If not, nothing is.
    pub(crate) allows: fn(IpAddr) -> bool,
}

/// Why there is no complete answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    /// The host has an address that must not be connected to.
    #[error("the host leads to {0}, which is not permitted")]
    Forbidden(IpAddr),
    /// There is no connection.
    #[error("{0}")]
    Unconnected(String),
    /// Nothing of the request was sent.
    #[error("the connection closed before the request was sent")]
    Unsent,
    /// The connection broke before the answer was complete.
    #[error("the connection closed before the answer was complete")]
    Closed,
    /// The head or the body is too large.
    #[error("the answer is larger than 64 KiB")]
    TooLarge,
    /// The answer is not HTTP.
    #[error("the answer is not HTTP")]
    Malformed,
    /// The deadline has passed.
    #[error("no complete answer within {0:?}")]
    Timeout(Duration),
}

/// One race for a connection.
struct DialRace<'a> {
    /// The name that the certificate must be for, with the roots.
    tls: Option<(TlsRoots, ServerName<'a>)>,
}

/// Permits every address.
pub(crate) fn any_address(_: IpAddr) -> bool {
    true
}

/// Connects, sends the request, which is in origin form and has a `Host` header, and reads the
/// answer, all of it by the deadline.
pub(crate) async fn send(
    destination: &Destination<'_>,
    request: Request,
    deadline: Instant,
) -> Result<UpstreamResponse, RequestError> {
    let limit = deadline.saturating_duration_since(Instant::now());
    let mut sender = dial(destination, deadline, limit).await?;
    match timeout_at(deadline, exchange(&mut sender, request, MAX_BODY)).await {
        Ok(Sent::Answered(response)) => Ok(response),
        Ok(Sent::Unsent) => Err(RequestError::Unsent),
        Ok(Sent::Lost(lost)) => Err(match lost {
            Lost::Timeout => RequestError::Timeout(limit),
            Lost::Closed | Lost::Cut => RequestError::Closed,
            Lost::TooLarge => RequestError::TooLarge,
            Lost::Malformed => RequestError::Malformed,
        }),
        Err(_elapsed) => Err(RequestError::Timeout(limit)),
    }
}

/// Connects to one of the host's addresses. The name is resolved once, and the addresses that were
/// checked are those that are connected to.
async fn dial(
    destination: &Destination<'_>,
    deadline: Instant,
    limit: Duration,
) -> Result<Sender, RequestError> {
    let host = destination.host;
    let dialling = DialRace {
        tls: destination
            .tls
            .clone()
            .map(|roots| Ok((roots, ServerName::try_from(host)?)))
            .transpose()
            .map_err(|_: InvalidName| {
                RequestError::Unconnected(format!("{host} is no name for TLS"))
            })?,
    };
    let addresses = timeout_at(deadline, lookup_host((host, destination.port)))
        .await
        .unwrap_or_else(|_elapsed| {
            let reason = format!("no answer within {limit:?}");
            Err(io::Error::new(io::ErrorKind::TimedOut, reason))
        })
        .map_err(|error| DialError::Resolve(host.to_owned(), error))?
        .collect::<Vec<_>>();
    if let Some(address) = addresses
        .iter()
        .find(|address| !(destination.allows)(address.ip()))
    {
        return Err(RequestError::Forbidden(address.ip()));
    }
    let outcome = race(&dialling, &addresses, deadline).await;
    if let Some((_, sender)) = outcome.winner {
        return Ok(sender);
    }
    let mut failed = outcome.failed;
    failed.extend(outcome.pending.into_iter().map(|address| {
        let error = DialError::Timeout(Peer::Upstream, Stage::Tcp, limit);
        (address, error)
    }));
    Err(DialError::of_all(host, failed).into())
}

type InvalidName = tokio_rustls::rustls::pki_types::InvalidDnsNameError;

// === impl RequestError ===

impl From<DialError> for RequestError {
    fn from(error: DialError) -> Self {
        Self::Unconnected(error.to_string())
    }
}

// === impl DialRace ===

impl Connect for DialRace<'_> {
    type Tcp = TcpStream;
    type Ready = Sender;
    type Error = DialError;

    async fn connect(&self, address: SocketAddr) -> Result<TcpStream, DialError> {
        let tcp = TcpStream::connect(address).await;
        tcp.and_then(|tcp| tcp.set_nodelay(true).map(|()| tcp))
            .map_err(|error| DialError::Connect(Peer::Upstream, error))
    }

    async fn handshake(&self, tcp: TcpStream) -> Result<Sender, DialError> {
        let sender = match &self.tls {
            None => start(TokioIo::new(tcp)).await,
            Some((roots, name)) => {
                let tls = roots
                    .connector()
                    .connect(name.to_owned(), tcp)
                    .await
                    .map_err(|error| DialError::Tls(Peer::Upstream, error))?;
                start(TokioIo::new(tls)).await
            }
        };
        sender.map_err(DialError::Http)
    }
}
