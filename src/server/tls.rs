//! TLS 1.2 and 1.3 on the proxy port. The certificates that `config::Tls` has loaded are behind one
//! value that a reload replaces: new connections use the new certificate, open ones continue.
//! `config` checks the files.

use std::io;
use std::net::IpAddr;
use std::time::{Duration, UNIX_EPOCH};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http_body_util::Full;
use hyper::http::request;
use hyper::{Request, Response};
use prometheus::IntGauge;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;

use super::closing::announced;
use super::head_error::HeadError;
use super::received_body::ReceivedBody;
use super::socket::{Disconnect, SocketIo};
use super::{CallerDisconnected, Handler};
use crate::config::Tls;
use crate::observe::metrics::Metrics;

/// The settings of the next handshake.
pub(crate) struct Certificates {
    server: ArcSwap<ServerConfig>,
    expiry: IntGauge,
    plaintext_reply: PlaintextReply,
}

/// Builds the response to a plaintext request on a TLS port, from the head of the request.
pub(crate) type PlaintextReply = fn(&request::Parts) -> Response<Full<Bytes>>;

/// How a connection started.
pub(super) enum Opened {
    /// The handshake is done.
    Tls(Box<TlsStream<SocketIo>>),
    /// The first byte is not TLS but may be HTTP.
    Plaintext(SocketIo),
    /// It has ended, or the handshake did not end in time.
    Failed(TlsFailure),
}

/// Why a connection was not established.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsFailure {
    /// The caller closed without sending a byte, as a port check does.
    #[error("closed without a byte")]
    Silent,
    /// The handshake did not end in time.
    #[error("the handshake did not end in time")]
    Slow,
    /// Not TLS, or no accepted certificate, or the connection broke.
    #[error("the handshake failed: {0}")]
    Handshake(io::Error),
}

/// Answers clients that send plaintext HTTP to a TLS port.
#[derive(Clone)]
pub(super) struct PlaintextHandler(pub(super) PlaintextReply);

// === impl Certificates ===

impl Certificates {
    pub(crate) fn new(tls: &Tls, metrics: &Metrics, plaintext_reply: PlaintextReply) -> Self {
        let expiry = metrics
            .connections
            .certificate_expiry
            .with_label_values(&["listen"]);
        let certificates = Self {
            server: ArcSwap::new(tls.server.clone()),
            expiry,
            plaintext_reply,
        };
        certificates.swap(tls);
        certificates
    }

    /// Replaces the certificates for connections accepted from now on. Open connections continue.
    pub(crate) fn swap(&self, tls: &Tls) {
        self.server.store(tls.server.clone());
        let until = tls.not_after.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.expiry
            .set(i64::try_from(until.as_secs()).unwrap_or(i64::MAX));
    }

    /// Builds the response to a plaintext request.
    pub(super) fn plaintext_reply(&self) -> PlaintextReply {
        self.plaintext_reply
    }

    /// Performs the handshake.
    pub(super) async fn open(&self, socket_io: SocketIo, within: Duration) -> Opened {
        timeout(within, self.handshake(socket_io))
            .await
            .unwrap_or(Opened::Failed(TlsFailure::Slow))
    }

    async fn handshake(&self, socket_io: SocketIo) -> Opened {
        match socket_io.peek().await {
            Ok(None) => return Opened::Failed(TlsFailure::Silent),
            // The first letter of a method. The first byte of TLS is not a letter.
            Ok(Some(b'A'..=b'Z' | b'a'..=b'z')) => return Opened::Plaintext(socket_io),
            // Errors show in the handshake too.
            Ok(Some(_)) | Err(_) => {}
        }
        match TlsAcceptor::from(self.server.load_full())
            .accept(socket_io)
            .await
        {
            Ok(stream) => Opened::Tls(Box::new(stream)),
            Err(error) => Opened::Failed(TlsFailure::Handshake(error)),
        }
    }
}

// === impl TlsFailure ===

impl TlsFailure {
    /// The metric label; `None` if it is not an error.
    pub(super) fn kind(&self) -> Option<&'static str> {
        match self {
            Self::Silent => None,
            Self::Slow => Some("slow_handshake"),
            Self::Handshake(_) => Some("tls"),
        }
    }
}

// === impl PlaintextHandler ===

impl Handler for PlaintextHandler {
    type Body = Full<Bytes>;

    async fn answer(
        self,
        request: Box<Request<ReceivedBody>>,
        _disconnect: Disconnect,
    ) -> Result<Response<Full<Bytes>>, CallerDisconnected> {
        Ok(announced((self.0)(&request.into_parts().0)))
    }

    /// Whatever the head is, it is not TLS.
    fn refuse_head(
        &self,
        _error: HeadError,
        _received: &[u8],
        _peer: Option<IpAddr>,
    ) -> Response<Full<Bytes>> {
        (self.0)(&Request::new(()).into_parts().0)
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::path::Path;
    use std::sync::Arc;

    use prometheus::IntGauge;
    use rcgen::{CertificateParams, KeyPair};
    use rustls::pki_types::{CertificateDer, ServerName};
    use rustls::{ClientConfig, RootCertStore};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio_rustls::TlsConnector;

    use super::super::per_address::{ConnectionSource, OpenConnection};
    use super::super::socket::Socket;
    use super::*;
    use crate::config;

    /// A self-signed certificate that ends in `year`, written to the configured files.
    fn certify(folder: &Path, year: i32) -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["flowgate.test".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(folder.join("cert.pem"), certificate.pem()).unwrap();
        std::fs::write(folder.join("key.pem"), key.serialize_pem()).unwrap();
        certificate.der().clone()
    }

    fn load(folder: &Path) -> Tls {
        let file = |name: &str| folder.join(name).into_os_string();
        let env: [(OsString, OsString); 2] = [
            ("FLOWGATE_LISTEN__TLS__CERT".into(), file("cert.pem")),
            ("FLOWGATE_LISTEN__TLS__KEY".into(), file("key.pem")),
        ];
        config::load(None, env).unwrap().config.listen.tls.unwrap()
    }

    /// Both ends of a new connection; the client trusts both certificates.
    async fn open(
        certificates: &Certificates,
        roots: [&CertificateDer<'static>; 2],
    ) -> (
        tokio_rustls::client::TlsStream<TcpStream>,
        Box<TlsStream<SocketIo>>,
    ) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut store = RootCertStore::empty();
        roots
            .into_iter()
            .for_each(|root| store.add(root.clone()).unwrap());
        let client =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(store)
                .with_no_client_auth();
        let tcp = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let name = ServerName::try_from("flowgate.test").unwrap();
        let open_connection = OpenConnection::new(
            ConnectionSource::Local,
            &IntGauge::new("open", "open").unwrap(),
        );
        let (socket_io, _) = SocketIo::new(
            Socket::Tcp(listener.accept().await.unwrap().0),
            open_connection,
        );
        let (client, opened) = tokio::join!(
            TlsConnector::from(Arc::new(client)).connect(name, tcp),
            certificates.open(socket_io, Duration::from_secs(10))
        );
        let Opened::Tls(server) = opened else {
            panic!("no handshake")
        };
        (client.unwrap(), server)
    }

    #[tokio::test]
    async fn a_new_certificate_applies_to_the_next_connection_and_open_ones_continue() {
        let folder = tempfile::tempdir().unwrap();
        let first = certify(folder.path(), 2050);
        let metrics = Metrics::new();
        let certificates =
            Certificates::new(&load(folder.path()), &metrics, |_head| Response::default());
        let expiry = metrics
            .connections
            .certificate_expiry
            .with_label_values(&["listen"]);
        assert_eq!(expiry.get(), 2_524_608_000);
        let second = certify(folder.path(), 2051);
        let roots = [&first, &second];
        let (mut client, mut server) = open(&certificates, roots).await;
        assert_eq!(
            client.get_ref().1.peer_certificates(),
            Some(std::slice::from_ref(&first))
        );

        certificates.swap(&load(folder.path()));
        assert_eq!(expiry.get(), 2_524_608_000 + 365 * 86_400);
        let (after, _) = open(&certificates, roots).await;
        assert_eq!(
            after.get_ref().1.peer_certificates(),
            Some(std::slice::from_ref(&second))
        );
        client.write_all(b"still there").await.unwrap();
        client.flush().await.unwrap();
        let mut said = [0; 11];
        server.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"still there");
    }
}
