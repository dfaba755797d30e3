//! HTTP/1.1 over TCP or any other stream. Faults that are not HTTP responses take the connection
//! back from hyper and write to it or close it. Paths under `/__` control the simulator: report,
//! arrivals, requests for credentials, flows, faults, clock, end of sessions, reset.

use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::answer::json_answer;
use crate::stamp::{Begin, Stamped, stamp};
use crate::{Answer, Rule, Settings, Sim, parse_skew};

/// A listening [`Sim`]. Dropping it closes the port and every connection.
#[derive(Debug)]
pub struct Running {
    sim: Sim,
    addr: SocketAddr,
    scheme: &'static str,
    accepting: JoinHandle<()>,
}

/// Makes hyper return the connection: the response is not one that it can write.
#[derive(Debug)]
struct GiveBack;

/// The body of `/__rename-flow`.
#[derive(Debug, Deserialize)]
struct Renaming {
    id: String,
    name: String,
}

/// The body of `/__delete-flow`.
#[derive(Debug, Deserialize)]
struct Deletion {
    id: String,
}

// === impl Sim ===

impl Sim {
    /// Starts a simulated endpoint on a free port of this machine.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(settings: Settings) -> io::Result<Running> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        Self::new(settings).listen(listener)
    }

    /// Serves a listener until the returned value is dropped.
    ///
    /// # Errors
    /// When the listener has no address.
    pub fn listen(self, listener: TcpListener) -> io::Result<Running> {
        self.listen_as(listener, None)
    }

    /// The same over TLS, with a certificate chain and its key as PEM: libraries call STS by HTTPS
    /// only.
    ///
    /// # Errors
    /// When the listener has no address, or the certificate or the key cannot be used.
    pub fn listen_tls(
        self,
        listener: TcpListener,
        certificate: &[u8],
        key: &[u8],
    ) -> io::Result<Running> {
        let chain = CertificateDer::pem_slice_iter(certificate)
            .collect::<Result<Vec<_>, _>>()
            .map_err(io::Error::other)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(io::Error::other)?;
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
            .map_err(io::Error::other)?;
        self.listen_as(listener, Some(TlsAcceptor::from(Arc::new(config))))
    }

    fn listen_as(self, listener: TcpListener, tls: Option<TlsAcceptor>) -> io::Result<Running> {
        stamp(&listener)?;
        let addr = listener.local_addr()?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let accepting = tokio::spawn(self.clone().accept(listener, tls));
        Ok(Running {
            sim: self,
            addr,
            scheme,
            accepting,
        })
    }

    async fn accept(self, listener: TcpListener, tls: Option<TlsAcceptor>) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                Ok((stream, _)) = listener.accept() => {
                    connections.spawn(self.clone().serve_tcp(stream, tls.clone()));
                }
                Some(_) = connections.join_next() => {}
                    // Out of descriptors: wait until some are free.
                else => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
            }
        }
    }

    async fn serve_tcp(self, stream: TcpStream, tls: Option<TlsAcceptor>) {
        // Otherwise a small response may wait for an acknowledgement. On failure it is only
        // slower.
        drop(stream.set_nodelay(true));
        let begin = Begin::default();
        let stream = Stamped::new(stream, begin.clone());
        if let Some(tls) = tls {
            match tls.accept(stream).await {
                Ok(stream) => {
                    // So far the handshake was received, and rarely the first request with it: that has
                    // the time at which it is read.
                    begin.end();
                    drop(self.serve_io(stream, begin).await);
                }
                Err(_) => self.count_not_http(),
            }
            return;
        }
        if let Some(stream) = self.serve_io(stream, begin).await {
            // Closing without lingering sends a reset. An error means that the peer has
            // closed first.
            drop(stream.into_inner().set_zero_linger());
        }
    }

    /// Serves one connection over any stream, such as TLS or `tokio::io::duplex`, until it ends. A
    /// reset is a plain close here.
    pub async fn serve_connection<I: AsyncRead + AsyncWrite + Unpin>(&self, io: I) {
        drop(self.serve_io(io, Begin::default()).await);
    }

    /// Serves until the connection ends; returns it when it must be reset.
    async fn serve_io<I>(&self, io: I, begin: Begin) -> Option<I>
    where
        I: AsyncRead + AsyncWrite + Unpin,
    {
        self.count_connection();
        let left = Arc::new(Mutex::new(None));
        let service = service_fn(|request| {
            let sim = self.clone();
            let left = Arc::clone(&left);
            let begin = begin.clone();
            Box::pin(async move { sim.respond(request, &begin, &left).await })
        });
        let mut connection = http1::Builder::new().serve_connection(TokioIo::new(io), service);
        let ended = std::future::poll_fn(|cx| connection.poll_without_shutdown(cx)).await;
        if ended.is_err_and(|error| error.is_parse()) {
            self.count_not_http();
        }
        let mut io = connection.into_parts().io.into_inner();
        let answer = left.lock().take();
        match answer {
            Some(Answer::Reset) => return Some(io),
            Some(Answer::Raw(bytes)) => drop(io.write_all(&bytes).await),
            _ => {}
        }
        drop(io.shutdown().await);
        None
    }

    async fn respond(
        &self,
        request: Request<Incoming>,
        begin: &Begin,
        left: &Mutex<Option<Answer>>,
    ) -> Result<Response<Full<Bytes>>, GiveBack> {
        let (head, body) = request.into_parts();
        // An incomplete body is not a call; hyper ends the connection.
        let body = body.collect().await.map_err(|_| GiveBack)?.to_bytes();
        let received = begin.time().unwrap_or_else(Instant::now);
        begin.end();
        let request = Request::from_parts(head, body);
        if request.uri().path().starts_with("/__") {
            return Ok(self.drive(&request).map(Full::new));
        }
        let sim = self.clone();
        // A received call is processed even if its caller disconnects now.
        match tokio::spawn(async move { sim.answer_received(request, received).await }).await {
            Ok(Answer::Http(response)) => Ok(response.map(Full::new)),
            Ok(other) => {
                *left.lock() = Some(other);
                Err(GiveBack)
            }
            Err(_) => Err(GiveBack),
        }
    }

    fn drive(&self, request: &Request<Bytes>) -> Response<Bytes> {
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/__report") => json_answer(200, &json!(self.report())),
            (&Method::GET, "/__arrivals") => json_answer(200, &self.arrivals_json()),
            (&Method::GET, "/__credentials") => json_answer(200, &self.credential_requests_json()),
            (&Method::GET, "/__flows") => json_answer(200, &self.flows_json()),
            (&Method::POST, "/__create-flow" | "/__rename-flow" | "/__delete-flow") => {
                match self.change_flows(request) {
                    Ok(body) => json_answer(200, &body),
                    Err(error) => json_answer(400, &json!({ "error": error })),
                }
            }
            (&Method::POST, "/__end-sessions") => {
                self.end_sessions();
                json_answer(200, &json!({}))
            }
            (&Method::POST, "/__skew") => match read_skew(request.body()) {
                Ok(time) => {
                    self.set_now(Some(time));
                    json_answer(200, &json!({}))
                }
                Err(error) => json_answer(400, &json!({ "error": error })),
            },
            (&Method::POST, "/__reset") => {
                self.reset();
                json_answer(200, &json!({}))
            }
            (&Method::POST, "/__faults") => match read_rules(request.body()) {
                Ok(rules) => {
                    self.set_faults(rules);
                    json_answer(200, &json!({}))
                }
                Err(error) => json_answer(400, &json!({ "error": error })),
            },
            _ => json_answer(
                404,
                &json!({ "error": "GET /__report, GET /__arrivals, GET /__credentials, GET /__flows, POST /__create-flow, POST /__rename-flow, POST /__delete-flow, POST /__reset, POST /__faults, POST /__end-sessions, POST /__skew" }),
            ),
        }
    }

    /// Creates, renames or deletes a flow.
    fn change_flows(&self, request: &Request<Bytes>) -> Result<Value, String> {
        let body = request.body();
        let (found, id) = match request.uri().path() {
            "/__create-flow" => return Ok(json!({ "id": self.create_flow(read_json(body)?) })),
            "/__rename-flow" => {
                let Renaming { id, name } = read_json(body)?;
                (self.rename_flow(&id, &name), id)
            }
            _ => {
                let Deletion { id } = read_json(body)?;
                (self.delete_flow(&id), id)
            }
        };
        if found {
            Ok(json!({}))
        } else {
            Err(format!("flow {id} does not exist"))
        }
    }
}

fn read_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

/// Parses a JSON text such as `"-20m"`: how far the clock is off.
fn read_skew(body: &[u8]) -> Result<SystemTime, String> {
    let text: String =
        serde_json::from_slice(body).map_err(|_| "expected a JSON text".to_owned())?;
    parse_skew(&text)
}

/// Parses a JSON list of rules in text form.
fn read_rules(body: &[u8]) -> Result<Vec<Rule>, String> {
    let texts: Vec<String> =
        serde_json::from_slice(body).map_err(|_| "expected a JSON list of texts".to_owned())?;
    texts.iter().map(|text| text.parse()).collect()
}

// === impl Running ===

impl Running {
    /// The listening address.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The base URL, `http://…` or `https://…` without a slash at the end.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.addr)
    }

    /// Closes the port and every connection, and waits for their end. The returned value keeps the
    /// records.
    pub async fn stop(mut self) -> Sim {
        self.accepting.abort();
        drop((&mut self.accepting).await);
        self.sim.clone()
    }
}

impl Deref for Running {
    type Target = Sim;

    fn deref(&self) -> &Sim {
        &self.sim
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

// === impl GiveBack ===

impl std::fmt::Display for GiveBack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the connection is needed back")
    }
}

impl std::error::Error for GiveBack {}

#[cfg(test)]
mod tests;
