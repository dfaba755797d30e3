//! What operators see: `/metrics` for Prometheus, `/livez` and `/readyz` for whoever restarts and balances, `/lanes`
//! and `/config` for people. On a port of its own, so that it shadows no path of CAMS's; it only reads. Who may see what
//! is `admin/access.rs`.

mod access;

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;

use crate::config;
use crate::flow::forward::Reach;
use crate::flow::listen::socket::Hangup;
use crate::flow::listen::{Answer, Gone};
use crate::metrics;
use crate::parts::Parts;
use crate::shutdown::Phase;

/// The admin port's service.
#[derive(Clone)]
pub(crate) struct Admin {
    parts: Arc<Parts>,
}

struct Page {
    status: StatusCode,
    content_type: &'static str,
    body: String,
}

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
/// Prometheus' text format.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

// === impl Admin ===

impl Admin {
    pub(crate) fn new(parts: Arc<Parts>) -> Self {
        Self { parts }
    }

    fn page(&self, path: &str) -> Page {
        match path {
            "/metrics" => Page::ok(METRICS, self.metrics()),
            "/livez" => Page::ok(TEXT, "ok\n".into()),
            "/readyz" => self.readyz(),
            "/lanes" => Page::ok(JSON, self.lanes()),
            "/config" => Page::ok(JSON, config::effective(&self.parts.settings.load().config).to_string()),
            _ => {
                let body = "There is /metrics, /livez, /readyz, /lanes and /config.\n".into();
                Page { status: StatusCode::NOT_FOUND, content_type: TEXT, body }
            }
        }
    }

    fn metrics(&self) -> String {
        let Parts { metrics, queue, unverified, upstream, .. } = &*self.parts;
        let bytes = metrics::Bytes { queued: queue.bytes(), unverified: unverified.used() };
        metrics.render(&queue.lanes(), bytes, upstream.reach() == Reach::Up)
    }

    /// An upstream that is down does not make a replica unready: the others would not reach it either.
    fn readyz(&self) -> Page {
        match self.parts.phases.now() {
            Phase::Serving => Page::ok(TEXT, "ok\n".into()),
            _ => {
                let body = "draining\n".into();
                Page { status: StatusCode::SERVICE_UNAVAILABLE, content_type: TEXT, body }
            }
        }
    }

    fn lanes(&self) -> String {
        let upstream = match self.parts.upstream.reach() {
            Reach::Up => json!({ "reachable": true }),
            Reach::Down { since, reason } => {
                json!({ "reachable": false, "down_seconds": since.elapsed().as_secs_f64(), "reason": &*reason })
            }
        };
        let (mode, lanes) = (self.parts.settings.load().config.mode.to_string(), self.parts.queue.lanes());
        json!({ "mode": mode, "upstream": upstream, "queued_bytes": self.parts.queue.bytes(), "lanes": lanes })
            .to_string()
    }
}

impl Answer for Admin {
    async fn answer(&self, request: Box<Request<Incoming>>, _hangup: Hangup) -> Result<Response<Full<Bytes>>, Gone> {
        let path = request.uri().path();
        let allowed = access::check(&self.parts.settings.load().config.listen, path, request.headers());
        let mut page = match (allowed, request.method()) {
            (Err((status, why)), _) => Page { status, content_type: TEXT, body: why.into() },
            (Ok(()), &Method::GET | &Method::HEAD) => self.page(path),
            (Ok(()), _) => {
                let body = "Only GET.\n".into();
                Page { status: StatusCode::METHOD_NOT_ALLOWED, content_type: TEXT, body }
            }
        };
        if request.method() == Method::HEAD {
            page.body.clear();
        }
        Ok(page.into_response())
    }
}

// === impl Page ===

impl Page {
    fn ok(content_type: &'static str, body: String) -> Self {
        Self { status: StatusCode::OK, content_type, body }
    }

    fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(Bytes::from(self.body)));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    }
}
