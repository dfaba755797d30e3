//! A client of the admin listener: one GET over TCP or a Unix socket, with a timeout. Used by the
//! commands that query a running Flowgate.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::header::{AUTHORIZATION, HOST, HeaderValue};
use hyper::http::request::Builder;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::config::Bind;
use crate::config::names::Authority;
use crate::primitives::secret::Secret;

/// An admin listener.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Its address.
    pub address: AdminAddress,
    /// The token to send.
    pub token: Option<Secret>,
}

/// Where an admin listener is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminAddress {
    /// An address that a listener can have.
    Bind(Bind),
    /// A host name with its port, such as `flowgate.messaging.svc:9900`.
    Name(String),
}

/// The text is no address of an admin listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected ip:port, name:port, or unix: and an absolute path")]
pub struct NotAnAddress;

/// A response of the admin listener.
#[derive(Debug)]
pub struct AdminResponse {
    /// The status.
    pub status: StatusCode,
    /// The whole body.
    pub body: String,
}

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// No process listens there, or the address is not reachable.
    #[error("cannot connect to {0} (listen.admin): {1}")]
    Connect(AdminAddress, std::io::Error),
    /// The listener does not speak HTTP, or closed the connection.
    #[error("no answer from {0} (listen.admin): {1}")]
    Http(AdminAddress, hyper::Error),
    /// The timeout has expired.
    #[error("no answer from {0} (listen.admin) within {1} s")]
    Slow(AdminAddress, u64),
}

/// Timeout of connecting, sending the request and reading the response together.
const WITHIN: Duration = Duration::from_secs(2);

/// Sends a GET request for `path`.
pub async fn ask(admin: &Admin, path: &str) -> Result<AdminResponse, AskError> {
    timeout(WITHIN, exchange(admin, path))
        .await
        .unwrap_or_else(|_| Err(AskError::Slow(admin.address.clone(), WITHIN.as_secs())))
}

async fn exchange(admin: &Admin, path: &str) -> Result<AdminResponse, AskError> {
    let mut request = Request::get(path);
    if let Some(token) = &admin.token {
        request = request.header(AUTHORIZATION, bearer(token));
    }
    let refused = |error| AskError::Connect(admin.address.clone(), error);
    let response = match &admin.address {
        AdminAddress::Bind(Bind::Tcp(address)) => {
            let address = reachable(*address);
            let stream = TcpStream::connect(address).await.map_err(refused)?;
            get(stream, request.header(HOST, address.to_string())).await
        }
        AdminAddress::Bind(Bind::Unix(socket)) => {
            let stream = UnixStream::connect(socket).await.map_err(refused)?;
            get(stream, request.header(HOST, "localhost")).await
        }
        AdminAddress::Name(name) => {
            let stream = TcpStream::connect(name).await.map_err(refused)?;
            get(stream, request.header(HOST, name)).await
        }
    };
    response.map_err(|error| AskError::Http(admin.address.clone(), error))
}

/// Replaces the unspecified address, which accepts connections on loopback too, with loopback.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

/// Returns the `Authorization` value, marked as sensitive so that no log shows it.
fn bearer(token: &Secret) -> HeaderValue {
    let value = HeaderValue::try_from(format!("Bearer {}", token.expose()));
    let mut value = value.expect("a secret is one line without control characters");
    value.set_sensitive(true);
    value
}

async fn get(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Builder,
) -> hyper::Result<AdminResponse> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // An error of the connection is also returned by `send_request`.
    tokio::spawn(connection);
    let request = request.body(Empty::<Bytes>::new());
    let response = sender
        .send_request(request.expect("a path and a host make a request"))
        .await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    Ok(AdminResponse {
        status,
        body: String::from_utf8_lossy(&body).into_owned(),
    })
}

// === impl AdminAddress ===

impl fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bind(bind) => bind.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl FromStr for AdminAddress {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        if let Ok(bind) = text.parse() {
            return Ok(Self::Bind(bind));
        }
        // With a host that is no name, such as an IPv6 address without brackets, it is a mistake.
        let is_name = Authority::parse(text).is_some() && text.contains(':');
        if is_name {
            Ok(Self::Name(text.to_owned()))
        } else {
            Err(NotAnAddress)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_admin_address_is_that_of_a_listener_or_a_name_with_a_port() {
        for text in ["127.0.0.1:9900", "[::1]:9900", "unix:/run/admin.sock"] {
            let address = AdminAddress::Bind(text.parse().unwrap());
            assert_eq!(text.parse(), Ok(address.clone()));
            assert_eq!(address.to_string(), text);
        }
        for text in ["localhost:9900", "flowgate-admin.messaging.svc:9900"] {
            let address = AdminAddress::Name(text.to_owned());
            assert_eq!(text.parse(), Ok(address.clone()));
            assert_eq!(address.to_string(), text);
        }
        for text in [
            "",
            "localhost",
            "localhost:0",
            "localhost:http",
            "::1:9900",
            "http://a:1",
            "a b:1",
            "unix:relative",
        ] {
            assert_eq!(text.parse::<AdminAddress>(), Err(NotAnAddress), "{text}");
        }
    }

    #[test]
    fn the_unspecified_address_is_reached_at_loopback() {
        for (bound, asked) in [
            ("0.0.0.0:9", "127.0.0.1:9"),
            ("[::]:9", "[::1]:9"),
            ("10.0.0.7:9", "10.0.0.7:9"),
            ("[::1]:9", "[::1]:9"),
        ] {
            assert_eq!(reachable(bound.parse().unwrap()).to_string(), asked);
        }
    }
}
