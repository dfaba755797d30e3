//! What does the Flowgate that runs here say? One GET to its admin listener, over TCP or its Unix socket, within a bound
//! of time. For the commands that look at another process; a token goes along only to whom it is for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
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
use crate::primitives::secret::Secret;

/// Whom to ask.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Where it listens.
    pub bind: Bind,
    /// What is shown to it.
    pub token: Option<Secret>,
}

/// What was answered.
#[derive(Debug)]
pub struct Said {
    /// The status.
    pub status: StatusCode,
    /// The whole body.
    pub body: String,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens there, or it may not be reached.
    #[error("cannot connect to {0} (listen.admin): {1}")]
    Connect(Bind, std::io::Error),
    /// Whoever listens there does not speak HTTP, or hung up.
    #[error("no answer from {0} (listen.admin): {1}")]
    Http(Bind, hyper::Error),
    /// It takes too long.
    #[error("no answer from {0} (listen.admin) within {1} s")]
    Slow(Bind, u64),
}

/// What connecting, asking and reading may take together.
const WITHIN: Duration = Duration::from_secs(2);

/// Asks for a page.
pub async fn ask(Admin { bind, token }: &Admin, path: &'static str) -> Result<Said, AskError> {
    let asked = async {
        let failed = |error| AskError::Connect(bind.clone(), error);
        let request = Request::get(path);
        let request = match token.as_ref().map(bearer) {
            Some(token) => request.header(AUTHORIZATION, token),
            None => request,
        };
        let said = match bind {
            Bind::Tcp(address) => {
                let address = reachable(*address);
                let stream = TcpStream::connect(address).await.map_err(failed)?;
                get(stream, request.header(HOST, address.to_string())).await
            }
            Bind::Unix(socket) => {
                let stream = UnixStream::connect(socket).await.map_err(failed)?;
                get(stream, request.header(HOST, "localhost")).await
            }
        };
        said.map_err(|error| AskError::Http(bind.clone(), error))
    };
    timeout(WITHIN, asked)
        .await
        .unwrap_or_else(|_| Err(AskError::Slow(bind.clone(), WITHIN.as_secs())))
}

/// Whoever listens on every address listens on loopback, too.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

/// Marked, so that no log shows it.
fn bearer(token: &Secret) -> HeaderValue {
    let value = HeaderValue::try_from(format!("Bearer {}", token.expose()));
    let mut value = value.expect("a secret is one line without control characters");
    value.set_sensitive(true);
    value
}

async fn get(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Builder,
) -> hyper::Result<Said> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Its failure is the request's.
    tokio::spawn(connection);
    let request = request.body(Empty::<Bytes>::new());
    let response = sender
        .send_request(request.expect("a path and a host make a request"))
        .await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    Ok(Said {
        status,
        body: String::from_utf8_lossy(&body).into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_addresses_are_asked_at_loopback() {
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
