//! The admin port: the status page at `/`, kept current by `/events`, and the page of a call;
//! `/metrics` for Prometheus; `/livez` and `/readyz` for orchestrators and load balancers; `/lanes`,
//! `/history`, `/calls`, `/unknown` and `/config` as JSON; and operator actions, by POST. It is a separate port so that no admin path hides a path
//! of CAMS. Access rules are in `admin/access.rs`.

mod access;
mod calls;
mod commands;
mod events;
mod misdirected;
mod snapshot;
mod unknown;

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;

use crate::admin::commands::OperatorAction;
use crate::admin::events::Events;
use crate::call::services::CallServices;
use crate::config;
use crate::limiter::LaneView;
use crate::observe::metrics::{self, Scrape};
use crate::process::shutdown::Phase;
use crate::server::received_body::ReceivedBody;
use crate::server::socket::Disconnect;
use crate::server::{CallerDisconnected, Handler};

/// The admin port's service.
#[derive(Clone)]
pub(crate) struct Admin {
    services: Arc<CallServices>,
    events: Arc<Events>,
}

/// A response of the admin port.
struct Page {
    status: StatusCode,
    content_type: &'static str,
    /// The allowed methods, in a 405 response.
    allow: Option<&'static str>,
    body: UnsyncBoxBody<Bytes, Infallible>,
}

/// Maximum number of unknown outcomes at `/unknown`; the oldest are listed.
const LISTED: usize = 10_000;

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
const EVENTS: &str = "text/event-stream";
/// Prometheus' text exposition format.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The status page's files, embedded in the binary: path, content type, text.
const FILES: [(&str, &str, &str); 8] = [
    ("/", HTML, include_str!("admin/page/page.html")),
    (CALL_HTML, HTML, include_str!("admin/page/call.html")),
    (
        "/page.css",
        "text/css; charset=utf-8",
        include_str!("admin/page/page.css"),
    ),
    ("/page.js", SCRIPT, include_str!("admin/page/page.js")),
    ("/call.js", SCRIPT, include_str!("admin/page/call.js")),
    (
        "/callview.js",
        SCRIPT,
        include_str!("admin/page/callview.js"),
    ),
    ("/charts.js", SCRIPT, include_str!("admin/page/charts.js")),
    ("/common.js", SCRIPT, include_str!("admin/page/common.js")),
];

/// The file for every path of a call.
const CALL_HTML: &str = "/call.html";

/// Headers of every response: no caching, sniffing, framing or referrer, and the page may load only
/// its own files.
const GUARDS: [(&str, &str); 5] = [
    ("cache-control", "no-store"),
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
         frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    ),
    ("referrer-policy", "no-referrer"),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
];

// === impl Admin ===

impl Admin {
    pub(crate) fn new(services: Arc<CallServices>) -> Self {
        Self {
            services,
            events: Arc::default(),
        }
    }

    async fn page(&self, request: Box<Request<ReceivedBody>>, disconnect: &Disconnect) -> Page {
        let path = request.uri().path();
        let path = if calls::wants_html(path, request.headers()) {
            CALL_HTML
        } else {
            path
        };
        let query = request.uri().query().unwrap_or_default();
        let config_snapshot = self.services.current_config.load_full();
        let listen = &config_snapshot.config.listen;
        if let Err((status, why)) = access::check(listen, path, request.headers()) {
            return Page::refused(status, why);
        }
        match (request.method(), commands::at_path(path)) {
            (&Method::POST, Some(action)) => {
                if let Err((status, why)) = access::check_operator(listen, request.headers()) {
                    return Page::refused(status, why);
                }
                let (services, from) = (&self.services, disconnect.peer());
                match action {
                    OperatorAction::Lane(kind) => {
                        commands::handle(services, kind, *request, from).await
                    }
                    OperatorAction::Settle => unknown::settle(services, *request, from).await,
                }
            }
            (_, Some(_)) => Page::not_allowed("POST"),
            (&Method::GET, None) => self.page_at(path, query).await,
            // The headers of GET, without a subscription to the events.
            (&Method::HEAD, None) if path == "/events" => Page::ok(EVENTS, ""),
            (&Method::HEAD, None) => Page {
                body: Page::ok(TEXT, "").body,
                ..self.page_at(path, query).await
            },
            _ => Page::not_allowed("GET, HEAD"),
        }
    }

    async fn page_at(&self, path: &str, query: &str) -> Page {
        match path {
            "/metrics" => Page::ok(METRICS, self.built(Self::metrics).await),
            "/livez" => Page::ok(TEXT, "ok\n"),
            "/readyz" => self.readyz(),
            "/lanes" => Page::ok(JSON, self.built(Self::lanes).await),
            "/history" => Page::ok(JSON, self.built(Self::history).await),
            "/calls" => calls::list(&self.services, query),
            path if path.starts_with(calls::PATH) => calls::one(&self.services, path),
            "/unknown" => Page::ok(JSON, self.built(Self::unknown).await),
            "/config" => Page::ok(JSON, self.built(Self::config).await),
            "/events" => match self.events.subscribe(&self.services) {
                Some(body) => Page {
                    body,
                    ..Page::ok(EVENTS, "")
                },
                None => Page::refused(StatusCode::SERVICE_UNAVAILABLE, events::FULL),
            },
            _ => Self::file(path),
        }
    }

    /// A file of the status page.
    fn file(path: &str) -> Page {
        match FILES.iter().find(|(known, ..)| *known == path) {
            Some((_, content_type, text)) => Page::ok(content_type, *text),
            None => {
                let why = "There is the page at /, and /metrics, /livez, /readyz, /lanes, /history, /calls, /unknown, /config and /events.\n";
                Page::refused(StatusCode::NOT_FOUND, why)
            }
        }
    }

    /// Builds on a blocking thread what takes long with 100,000 accounts.
    async fn built(&self, build: fn(&Self) -> String) -> String {
        let admin = self.clone();
        let built = tokio::task::spawn_blocking(move || build(&admin)).await;
        built.expect("a page is built without a panic")
    }

    fn config(&self) -> String {
        config::effective(&self.services.current_config.load().config).to_string()
    }

    fn metrics(&self) -> String {
        let CallServices {
            metrics,
            limiter,
            unverified,
            current_config,
            session_waits,
            ..
        } = &*self.services;
        let bytes = metrics::Bytes {
            queued: limiter.bytes(),
            unverified: unverified.used(),
        };
        let lanes = limiter.lanes_by_label();
        let samples: Vec<_> = lanes.iter().map(LaneView::sample).collect();
        let config_snapshot = current_config.load();
        let sessions = config_snapshot.session_accounts().iter();
        let sessions: Vec<_> = sessions
            .map(|account| account.sample(session_waits.waiting(&account.id)))
            .collect();
        metrics.render(&Scrape {
            lanes: &samples,
            bytes,
            upstreams: config_snapshot.upstreams.all(),
            sessions: &sessions,
            keys: unknown::sample(&self.services),
        })
    }

    fn history(&self) -> String {
        let history = serde_json::to_string(&self.services.limiter.history());
        history.expect("a history can be serialised")
    }

    fn unknown(&self) -> String {
        json!({
            "all_unknown": self.services.records.count().unknown,
            "unknown": unknown::views(&self.services, LISTED),
        })
        .to_string()
    }

    /// An unreachable upstream does not make a replica unready: other replicas would not reach it
    /// either.
    fn readyz(&self) -> Page {
        match self.services.phases.now() {
            Phase::Serving => Page::ok(TEXT, "ok\n"),
            _ => Page::refused(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
        }
    }

    fn lanes(&self) -> String {
        let config_snapshot = self.services.current_config.load();
        let mode = config_snapshot.config.mode.to_string();
        let lanes = self.services.limiter.lanes();
        let upstream = snapshot::upstream(config_snapshot.upstreams.default());
        let upstreams = snapshot::upstreams(&config_snapshot.upstreams);
        json!({
            "mode": mode,
            "upstream": upstream,
            "upstreams": upstreams,
            "store": snapshot::store(&self.services),
            "queued_bytes": self.services.limiter.bytes(),
            "sessions": snapshot::sessions_in_trouble(&self.services, &config_snapshot),
            "lanes": lanes,
        })
        .to_string()
    }
}

impl Handler for Admin {
    type Body = UnsyncBoxBody<Bytes, Infallible>;

    const MAY_OMIT_PROXY_HEADER: bool = true;

    async fn answer(
        self,
        request: Box<Request<ReceivedBody>>,
        disconnect: Disconnect,
    ) -> Result<Response<Self::Body>, CallerDisconnected> {
        let (head, body) = request.into_parts();
        let config_snapshot = self.services.current_config.load_full();
        if let Some(response) = misdirected::answer(&head, &config_snapshot.config.listen.proxy) {
            return Ok(response);
        }
        let request = Box::new(Request::from_parts(head, body));
        Ok(self.page(request, &disconnect).await.into_response())
    }
}

// === impl Page ===

impl Page {
    fn ok(content_type: &'static str, body: impl Into<Bytes>) -> Self {
        let body = Full::new(body.into()).boxed_unsync();
        Self {
            status: StatusCode::OK,
            content_type,
            allow: None,
            body,
        }
    }

    fn refused(status: StatusCode, why: impl Into<Bytes>) -> Self {
        Self {
            status,
            ..Self::ok(TEXT, why)
        }
    }

    fn not_allowed(allow: &'static str) -> Self {
        Self {
            allow: Some(allow),
            ..Self::refused(StatusCode::METHOD_NOT_ALLOWED, format!("Only {allow}.\n"))
        }
    }

    fn into_response(self) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
        let mut headers: HeaderMap = GUARDS
            .iter()
            .map(|(name, value)| {
                (
                    name.parse().expect("a header"),
                    HeaderValue::from_static(value),
                )
            })
            .collect();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(allow) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        let mut response = Response::new(self.body);
        *response.status_mut() = self.status;
        *response.headers_mut() = headers;
        response
    }
}
