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
    /// The head or the body is too large, or there are more headers than hyper reads.
    #[error("the answer is larger than 64 KiB or has more than 100 headers")]
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
    let limit = rounded(deadline.saturating_duration_since(Instant::now()));
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

/// The time as errors show it: in tenths of a second.
fn rounded(time: Duration) -> Duration {
    const STEP: Duration = Duration::from_millis(100);
    if time < STEP {
        return time;
    }
    STEP * u32::try_from((time + STEP / 2).as_millis() / STEP.as_millis()).unwrap_or(u32::MAX)
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
    connect(&dialling, host, &addresses, deadline).await
}

/// Connects to one of the addresses.
async fn connect(
    dialling: &DialRace<'_>,
    host: &str,
    addresses: &[SocketAddr],
    deadline: Instant,
) -> Result<Sender, RequestError> {
    let limit = rounded(deadline.saturating_duration_since(Instant::now()));
    let outcome = race(dialling, addresses, deadline).await;
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use bytes::Bytes;
    use http_body_util::Full;
    use hyper::header::HOST;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const WITHIN: Duration = Duration::from_secs(60);

    fn request() -> Request {
        let request = hyper::Request::get("/").header(HOST, "service.test");
        request.body(Full::new(Bytes::new())).unwrap()
    }

    fn to(address: SocketAddr, allows: fn(IpAddr) -> bool) -> Destination<'static> {
        assert!(address.ip().is_loopback());
        Destination {
            host: "127.0.0.1",
            port: address.port(),
            tls: None,
            allows,
        }
    }

    async fn listen() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    /// Sends a request to a server that answers with these bytes and closes.
    async fn answered(answer: String) -> Result<UpstreamResponse, RequestError> {
        let (listener, address) = listen().await;
        let serve = async {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let mut bytes = [0; 1024];
            assert!(tcp.read(&mut bytes).await.unwrap() > 0);
            // The client closes within an answer that is too large.
            drop(tcp.write_all(answer.as_bytes()).await);
        };
        let destination = to(address, any_address);
        let sent = send(&destination, request(), Instant::now() + WITHIN);
        tokio::join!(sent, serve).0
    }

    #[tokio::test]
    async fn an_answer_of_up_to_64_kib_is_read() {
        let body = "x".repeat(MAX_BODY);
        for head in [
            format!("HTTP/1.1 200 OK\r\nContent-Length: {MAX_BODY}\r\n\r\n"),
            "HTTP/1.1 200 OK\r\n\r\n".to_owned(),
        ] {
            let answer = answered(format!("{head}{body}")).await.ok().unwrap();
            assert_eq!((answer.status.as_u16(), answer.body.len()), (200, MAX_BODY));
        }
    }

    #[tokio::test]
    async fn larger_broken_and_foreign_answers_are_told_apart() {
        let body = "x".repeat(MAX_BODY + 1);
        let long = "x".repeat(70 * 1024);
        for (answer, expected) in [
            (
                format!("HTTP/1.1 200 OK\r\n\r\n{body}"),
                "the answer is larger than 64 KiB or has more than 100 headers",
            ),
            (
                format!("HTTP/1.1 200 OK\r\nX: {long}\r\n\r\n"),
                "the answer is larger than 64 KiB or has more than 100 headers",
            ),
            (
                format!("HTTP/1.1 200 OK\r\n{}\r\n", "x:y\r\n".repeat(101)),
                "the answer is larger than 64 KiB or has more than 100 headers",
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx".to_owned(),
                "the connection closed before the answer was complete",
            ),
            (
                "HTTP/1.1 200".to_owned(),
                "the connection closed before the answer was complete",
            ),
            (
                String::new(),
                "the connection closed before the answer was complete",
            ),
            ("SSH-2.0-x\r\n\r\n".to_owned(), "the answer is not HTTP"),
            (
                "HTTP/1.1 101 X\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n".to_owned(),
                "the answer is not HTTP",
            ),
        ] {
            let error = answered(answer.clone()).await.err().unwrap();
            let start: String = answer.chars().take(60).collect();
            assert_eq!(error.to_string(), expected, "{start}");
        }
    }

    #[tokio::test]
    async fn nothing_is_connected_if_one_address_is_not_permitted() {
        let (listener, address) = listen().await;
        let destination = to(address, |address| !address.is_loopback());
        let sent = send(&destination, request(), Instant::now() + WITHIN).await;
        assert!(matches!(sent, Err(RequestError::Forbidden(_))));
        assert!(futures_util::FutureExt::now_or_never(listener.accept()).is_none());
    }

    #[tokio::test]
    async fn the_next_address_is_connected_to_if_one_refuses() {
        let (listener, good) = listen().await;
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let socket = socket.unwrap();
        socket
            .bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
            .unwrap();
        let refusing = socket.local_addr().unwrap().as_socket().unwrap();
        let dialling = DialRace { tls: None };
        let deadline = Instant::now() + WITHIN;
        let connected = connect(&dialling, "service.test", &[refusing, good], deadline).await;
        assert!(connected.is_ok());
        listener.accept().await.unwrap();
        let error = connect(&dialling, "service.test", &[refusing], deadline).await;
        assert_eq!(
            error.err().unwrap().to_string(),
            "cannot connect: connection refused"
        );
        let error = connect(&dialling, "service.test", &[], deadline).await;
        assert_eq!(
            error.err().unwrap().to_string(),
            "service.test has no address"
        );
    }

    #[tokio::test]
    async fn a_request_that_is_given_up_closes_its_connection() {
        let (listener, address) = listen().await;
        let destination = to(address, any_address);
        let mut sent = Box::pin(send(&destination, request(), Instant::now() + WITHIN));
        let mut bytes = Vec::new();
        let mut tcp = tokio::select! {
            _ = &mut sent => unreachable!("no answer was written"),
            tcp = async {
                let (mut tcp, _) = listener.accept().await.unwrap();
                while !bytes.ends_with(b"\r\n\r\n") {
                    assert!(tcp.read_buf(&mut bytes).await.unwrap() > 0);
                }
                tcp
            } => tcp,
        };
        drop(sent);
        assert_eq!(tcp.read_buf(&mut bytes).await.unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn one_deadline_limits_all_of_it() {
        let (_silent, address) = listen().await;
        let start = Instant::now();
        let deadline = start + Duration::from_secs(7);
        let error = send(&to(address, any_address), request(), deadline).await;
        assert_eq!(
            error.err().unwrap().to_string(),
            "no complete answer within 7s"
        );
        assert_eq!(start.elapsed().as_secs(), 7);
    }

    #[test]
    fn times_in_errors_are_rounded() {
        let shown = [2_999_998_367, 9_999_903_356, 7_349_000_000, 50_000_000].map(|nanos| {
            let error = RequestError::Timeout(rounded(Duration::from_nanos(nanos)));
            error.to_string().replace("no complete answer within ", "")
        });
        assert_eq!(shown, ["3s", "10s", "7.3s", "50ms"]);
    }
}
