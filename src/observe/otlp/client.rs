//! How do spans get to the collector? One POST a batch over a connection of its own, in the clear or with TLS. The SDK calls
//! from a thread that is none of tokio's, so the work is done on the runtime. Whether it goes well is told when that
//! changes, and counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{HOST, HeaderValue};
use hyper::http::uri::PathAndQuery;
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use opentelemetry_http::{HttpClient, HttpError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::config::{Collector, Scheme};
use crate::observe::metrics::Metrics;
use crate::upstream::Trust;

/// What one batch may take, as OpenTelemetry's exporters have it.
const WITHIN: Duration = Duration::from_secs(10);
/// Bytes of a collector's answer.
const MAX_ANSWER: usize = 64 * 1024;

/// Sends batches to one collector.
pub(super) struct Client {
    to: Arc<Target>,
    runtime: Handle,
    metrics: Arc<Metrics>,
    is_failing: AtomicBool,
}

struct Target {
    collector: Collector,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

// === impl Client ===

impl Client {
    /// Reads the system's roots if they are needed; dials nothing.
    pub(super) fn new(collector: &Collector, metrics: Arc<Metrics>) -> anyhow::Result<Self> {
        let tls = match collector.scheme {
            Scheme::Http => None,
            Scheme::Https => {
                let name =
                    ServerName::try_from(collector.host.clone()).context("telemetry.otlp")?;
                Some((Trust::load(None)?.connector(), name))
            }
        };
        let to = Arc::new(Target {
            collector: collector.clone(),
            tls,
        });
        Ok(Self {
            to,
            runtime: Handle::current(),
            metrics,
            is_failing: AtomicBool::new(false),
        })
    }

    /// Where traces are taken.
    pub(super) fn url(&self) -> String {
        let scheme = if self.to.tls.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}/v1/traces", self.to.collector.authority)
    }

    /// Counts a batch, and tells when it is the first to fail or to pass.
    fn note(&self, failed: Option<String>) {
        self.metrics.exported_traces(failed.is_none());
        match (failed, self.is_failing.load(Ordering::Relaxed)) {
            (Some(error), false) => {
                tracing::warn!(error, url = self.url(), "spans cannot be exported")
            }
            (None, true) => tracing::info!("spans can be exported again"),
            (failed, _) => return drop(failed),
        }
        self.is_failing.fetch_xor(true, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Client").field(&self.to.collector).finish()
    }
}

#[async_trait::async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let to = self.to.clone();
        let sent = self
            .runtime
            .spawn(async move { timeout(WITHIN, to.post(request)).await });
        let answer = match sent.await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_elapsed)) => Err(format!("no answer within {WITHIN:?}").into()),
            Err(_) => Err("Flowgate has ended".into()),
        };
        self.note(match &answer {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("the collector answers {}", answer.status())),
            Err(error) => Some(error.to_string()),
        });
        answer
    }
}

// === impl Target ===

impl Target {
    async fn post(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let tcp = TcpStream::connect((self.collector.host.as_str(), self.collector.port)).await?;
        match &self.tls {
            None => self.post_on(tcp, request).await,
            Some((connector, name)) => {
                self.post_on(connector.connect(name.clone(), tcp).await?, request)
                    .await
            }
        }
    }

    async fn post_on(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        request: Request<Bytes>,
    ) -> Result<Response<Bytes>, HttpError> {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Its failure is the request's.
        tokio::spawn(connection);
        let (mut head, body) = request.into_parts();
        head.uri = Uri::from(
            head.uri
                .into_parts()
                .path_and_query
                .unwrap_or(PathAndQuery::from_static("/")),
        );
        head.headers
            .insert(HOST, HeaderValue::from_str(&self.collector.authority)?);
        let (head, body) = sender
            .send_request(Request::from_parts(head, Full::new(body)))
            .await?
            .into_parts();
        Ok(Response::from_parts(
            head,
            Limited::new(body, MAX_ANSWER).collect().await?.to_bytes(),
        ))
    }
}
