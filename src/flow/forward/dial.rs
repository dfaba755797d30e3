//! Opens one connection to the configured upstream and to nothing else: its pinned addresses, or those that its name
//! resolves to, in turn, never one of Flowgate's own listeners, through no proxy. When to dial is the pool's.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hyper::client::conn::http1;
use hyper::rt::{Read, Write};
use hyper_util::rt::TokioIo;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use tracing::debug;

use super::first_write::{FirstWrite, WatchedTcp};
use super::{Sender, Trust, UpstreamError};
use crate::config::{self, Scheme};

/// Bytes of an answer's head.
const MAX_HEAD: usize = 64 * 1024;

/// After so long without a byte the system asks whether the other side still lives, and how often after that.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// Where and how to connect.
pub(super) struct Dialer {
    host: String,
    port: u16,
    /// Dialled instead of what the name resolves to, unless empty.
    pinned: Vec<SocketAddr>,
    /// Flowgate's own listeners.
    own: Vec<SocketAddr>,
    /// For the name, TCP and TLS together.
    timeout: Duration,
    tls: Option<(ArcSwap<ClientConfig>, ServerName<'static>)>,
}

/// A connection that is ready for its first request.
pub(super) struct Dialled {
    pub(super) sender: Sender,
    pub(super) first_write: Arc<FirstWrite>,
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
    #[error("would dial Flowgate itself: upstream.connect_to pins other addresses")]
    Itself,
    /// TCP failed.
    #[error("cannot connect: {}", .0.kind())]
    Connect(io::Error),
    /// TLS failed.
    #[error("TLS failed: {0}")]
    Tls(io::Error),
    /// hyper does not take the connection.
    #[error("{0}")]
    Http(hyper::Error),
    /// Not done in time.
    #[error("not connected within {0:?}")]
    Timeout(Duration),
}

impl Dialer {
    /// Reads the roots and checks the name; dials nothing.
    pub(super) fn new(config: &config::Upstream, own: Vec<SocketAddr>) -> Result<Self, UpstreamError> {
        let host = config.dial_host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let tls = match config.scheme {
            Scheme::Http => None,
            Scheme::Https => {
                let name = ServerName::try_from(host.clone()).map_err(|_| UpstreamError::Name)?;
                Some((ArcSwap::new(Trust::load(config.ca_file.as_deref())?.0), name))
            }
        };
        let pinned = config.connect_to.clone();
        Ok(Self { host, port: config.dial_port, pinned, own, timeout: config.connect_timeout, tls })
    }

    /// From now on others are believed.
    pub(super) fn trust(&self, trust: Trust) {
        if let Some((client, _)) = &self.tls {
            client.store(trust.0);
        }
    }

    /// One connection, ready for its first request.
    pub(super) async fn dial(&self) -> Result<Dialled, DialError> {
        let late = |_| DialError::Timeout(self.timeout);
        timeout(self.timeout, self.try_each()).await.map_err(late)?
    }

    /// Tries the addresses in turn, each for an equal part of the time that is left, so that one that swallows
    /// everything does not hide the next.
    async fn try_each(&self) -> Result<Dialled, DialError> {
        let deadline = Instant::now() + self.timeout;
        let addresses = self.addresses().await?;
        let mut failed = DialError::NoAddress(self.host.clone());
        for (tried, address) in addresses.iter().enumerate() {
            let left = deadline.saturating_duration_since(Instant::now());
            let part = left / u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
            match timeout(part, self.open(*address)).await {
                Ok(Ok(dialled)) => return Ok(dialled),
                Ok(Err(error)) => failed = error,
                Err(_elapsed) => failed = DialError::Timeout(self.timeout),
            }
        }
        Err(failed)
    }

    /// Where to connect, without Flowgate itself.
    async fn addresses(&self) -> Result<Vec<SocketAddr>, DialError> {
        let mut addresses = if self.pinned.is_empty() {
            let resolved = lookup_host((self.host.as_str(), self.port)).await;
            resolved.map_err(|error| DialError::Resolve(self.host.clone(), error))?.collect()
        } else {
            self.pinned.clone()
        };
        let found = addresses.len();
        addresses.retain(|address| !self.own.iter().any(|own| is_same(*own, *address)));
        if addresses.is_empty() && found > 0 { Err(DialError::Itself) } else { Ok(addresses) }
    }

    async fn open(&self, address: SocketAddr) -> Result<Dialled, DialError> {
        let tcp = TcpStream::connect(address).await.map_err(DialError::Connect)?;
        tcp.set_nodelay(true).map_err(DialError::Connect)?;
        let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE_INTERVAL);
        SockRef::from(&tcp).set_tcp_keepalive(&keepalive).map_err(DialError::Connect)?;
        let first_write = Arc::<FirstWrite>::default();
        let tcp = WatchedTcp::new(tcp, first_write.clone());
        let sender = match &self.tls {
            None => start(TokioIo::new(tcp)).await,
            Some((client, name)) => {
                let connector = TlsConnector::from(client.load_full());
                let tls = connector.connect(name.clone(), tcp).await.map_err(DialError::Tls)?;
                start(TokioIo::new(tls)).await
            }
        };
        Ok(Dialled { sender: sender.map_err(DialError::Http)?, first_write })
    }
}

/// Gives the connection a task of its own, which also notices when the other side closes, and waits for its first turn.
async fn start<T>(io: T) -> hyper::Result<Sender>
where
    T: Read + Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::Builder::new().max_header_size(MAX_HEAD).handshake(io).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            debug!(%error, "upstream connection ended");
        }
    });
    sender.ready().await?;
    Ok(sender)
}

/// Whether dialling the address reaches the listener.
fn is_same(listener: SocketAddr, dialled: SocketAddr) -> bool {
    let (own, ip) = (listener.ip().to_canonical(), dialled.ip().to_canonical());
    // A dialled 0.0.0.0 is this machine, and a listener on 0.0.0.0 is each of its addresses.
    listener.port() == dialled.port() && (own == ip || ip.is_unspecified() || (own.is_unspecified() && is_local(ip)))
}

/// Whether the address is one of this machine's: only those can be bound.
fn is_local(ip: IpAddr) -> bool {
    ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_recognised_behind_every_address_that_reaches_it() {
        let same = |listener: &str, dialled: &str| is_same(listener.parse().unwrap(), dialled.parse().unwrap());
        assert!(same("127.0.0.1:8080", "127.0.0.1:8080"));
        assert!(same("127.0.0.1:8080", "[::ffff:127.0.0.1]:8080"));
        assert!(same("127.0.0.1:8080", "0.0.0.0:8080"));
        assert!(same("0.0.0.0:8080", "127.0.0.9:8080"));
        assert!(same("[::]:8080", "127.0.0.1:8080"));
        assert!(same("[::]:8080", "[::1]:8080"));
        assert!(!same("127.0.0.1:8080", "127.0.0.1:8081"));
        assert!(!same("127.0.0.1:8080", "127.0.0.2:8080"));
        // 192.0.2.0/24 is for documentation and nobody's.
        assert!(!same("0.0.0.0:8080", "192.0.2.1:8080"));
    }
}
