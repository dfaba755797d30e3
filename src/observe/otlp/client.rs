//! The HTTP client of the exporter: one POST per batch, each over its own connection, with or
//! without TLS. The SDK calls it from a thread outside of tokio, so the request runs on the
//! runtime. Every batch is counted; the first failure and the first success after failures are
//! logged.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{HOST, HeaderValue};
use hyper::http::uri::PathAndQuery;
use hyper::{Request, Response, Uri};
use opentelemetry_http::{HttpClient, HttpError};
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::config::{Collector, Scheme};
use crate::observe::metrics::Metrics;
use crate::upstream::TlsRoots;
use crate::upstream::one_request::{self, Destination, any_address};

/// Timeout of one batch, the default of OpenTelemetry's exporters.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Sends batches to one collector.
pub(super) struct Client {
    to: Arc<Target>,
    runtime: Handle,
    metrics: Arc<Metrics>,
    is_failing: AtomicBool,
}

struct Target {
    collector: Collector,
    tls: Option<TlsRoots>,
}

// === impl Client ===

impl Client {
    /// Creates the client without connecting. For https it loads the system's root certificates.
    pub(super) fn new(collector: &Collector, metrics: Arc<Metrics>) -> anyhow::Result<Self> {
        let tls = match collector.scheme {
            Scheme::Http => None,
            Scheme::Https => {
                ServerName::try_from(&*collector.host).context("telemetry.otlp")?;
                Some(TlsRoots::load(None)?)
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

    /// The collector's URL for traces.
    pub(super) fn url(&self) -> String {
        let scheme = if self.to.tls.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}/v1/traces", self.to.collector.authority)
    }

    /// Counts a batch, and logs if exports begin to fail or succeed again.
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
        let sent = self.runtime.spawn(async move { to.post(request).await });
        let answer = match sent.await {
            Ok(answer) => answer,
            Err(_) => Err("Flowgate is shutting down".into()),
        };
        self.note(match &answer {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("the collector answered {}", answer.status())),
            Err(error) => Some(error.to_string()),
        });
        answer
    }
}

// === impl Target ===

impl Target {
    async fn post(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (mut head, body) = request.into_parts();
        let target = head.uri.into_parts().path_and_query;
        head.uri = Uri::from(target.unwrap_or(PathAndQuery::from_static("/")));
        head.headers
            .insert(HOST, HeaderValue::from_str(&self.collector.authority)?);
        let destination = Destination {
            host: &self.collector.host,
            port: self.collector.port,
            tls: self.tls.clone(),
            allows: any_address,
        };
        let request = Request::from_parts(head, Full::new(body));
        let answer = one_request::send(&destination, request, Instant::now() + TIMEOUT).await?;
        let mut response = Response::new(answer.body);
        *response.status_mut() = answer.status;
        *response.headers_mut() = answer.headers;
        Ok(response)
    }
}
