//! A caller's trace continues in the log, at the endpoint, and as spans at a collector.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cams_sim::{Settings, Sim};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use parking_lot::Mutex;
use prost::Message;
use tokio::net::TcpListener;

use crate::caller::{Call, KEY, SECRET};
use crate::harness::Metrics;
use crate::process::Process;

const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// Accepts traces, or answers 503.
#[derive(Clone, Default)]
struct Collector {
    taken: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
    is_down: Arc<Mutex<bool>>,
}

impl Collector {
    /// The configuration line and the collector.
    async fn start() -> (String, Self) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let collector = Self::default();
        let url = format!(
            "[telemetry]\notlp = \"http://{}\"\n",
            listener.local_addr().unwrap()
        );
        let serving = collector.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let serving = serving.clone();
                let service = service_fn(move |request| serving.clone().answer(request));
                let http = hyper::server::conn::http1::Builder::new();
                tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
            }
        });
        (url, collector)
    }

    async fn answer(self, request: Request<Incoming>) -> hyper::Result<Response<Full<Bytes>>> {
        assert_eq!(
            (request.method().as_str(), request.uri().path()),
            ("POST", "/v1/traces")
        );
        assert_eq!(request.headers()["content-type"], "application/x-protobuf");
        let body = request.into_body().collect().await?.to_bytes();
        let mut response = Response::default();
        if *self.is_down.lock() {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        } else {
            self.taken
                .lock()
                .push(ExportTraceServiceRequest::decode(body).unwrap());
        }
        Ok(response)
    }

    fn spans(&self) -> Vec<Span> {
        let taken = self.taken.lock();
        let all = taken
            .iter()
            .flat_map(|taken| &taken.resource_spans)
            .flat_map(|of| &of.scope_spans);
        all.flat_map(|of| of.spans.clone()).collect()
    }
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    let value = attributes
        .iter()
        .find(|attribute| attribute.key == key)?
        .value
        .clone()?
        .value?;
    Some(match value {
        Value::StringValue(text) => text,
        Value::IntValue(number) => number.to_string(),
        other => panic!("{other:?}"),
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn call(process: &Process, name: &str, traceparent: Option<&str>) {
    let mut call = Call::v3(&process.proxy.to_string(), name);
    if let Some(traceparent) = traceparent {
        call.push("traceparent", traceparent);
    }
    assert_eq!(call.send(process.proxy).await.status, 200);
}

/// The trace headers that the endpoint received for this flow.
fn trace_of(sim: &cams_sim::Running, flow: &str) -> Vec<String> {
    let of_flow = sim
        .arrivals()
        .into_iter()
        .filter(|arrival| arrival.flow_name.as_deref() == Some(flow));
    let headers = of_flow.flat_map(|arrival| arrival.headers);
    headers
        .filter(|(name, _)| name == "traceparent")
        .map(|(_, value)| value)
        .collect()
}

#[tokio::test]
async fn waits_and_attempts_are_spans_of_the_callers_trace() {
    let fault = "next=1,throttle,acs-retry-after=500".parse().unwrap();
    let settings = Settings {
        faults: vec![fault],
        ..Settings::default()
    };
    let sim = Sim::start(settings.with_key(KEY, SECRET, "acme"))
        .await
        .unwrap();
    let (toml, collector) = Collector::start().await;
    let process = Process::start(&sim, &format!("{toml}sample_percent = 0\n")).await;
    call(&process, "traced", Some(CALLER)).await;
    call(&process, "alone", None).await;
    call(&process, "unsampled", Some(&CALLER.replace("-01", "-00"))).await;
    let logged = process.logged("call", 3).await;
    assert_eq!([&logged[0]["trace_id"], &logged[2]["trace_id"]], [TRACE; 2]);
    assert_eq!(logged[1].get("trace_id"), None);
    assert!(process.terminate().await.success());

    let spans = collector.spans();
    let names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(
        names,
        ["queue", "attempt", "queue", "attempt", "CreateFlow"]
    );
    let whole = &spans[4];
    assert_eq!(
        (hex(&whole.parent_span_id), whole.kind),
        ("b7ad6b7169203331".to_owned(), 2)
    );
    let attribute = |key| text(&whole.attributes, key);
    let expected = [
        ("flowgate.account", "acme"),
        ("flowgate.outcome", "ok"),
        ("flowgate.attempts", "2"),
        ("http.response.status_code", "200"),
        (
            "flowgate.request_id",
            logged[0]["request_id"].as_str().unwrap(),
        ),
    ];
    expected
        .into_iter()
        .for_each(|(key, value)| assert_eq!(attribute(key).as_deref(), Some(value), "{key}"));
    for (before, span) in spans.iter().zip(&spans[1..4]) {
        assert_eq!(span.parent_span_id, whole.span_id);
        assert!(before.end_time_unix_nano <= span.start_time_unix_nano);
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano);
        assert!(span.end_time_unix_nano <= whole.end_time_unix_nano);
    }
    assert!(spans.iter().all(|span| hex(&span.trace_id) == TRACE));
    // The lane pauses from the refusal, which came within the first attempt, for as long as the
    // endpoint demands.
    assert!(
        spans[2].end_time_unix_nano - spans[1].start_time_unix_nano
            >= Duration::from_millis(500).as_nanos() as u64
    );
    let codes: Vec<_> = spans
        .iter()
        .filter_map(|span| text(&span.attributes, "flowgate.code"))
        .collect();
    assert_eq!(codes, ["System.LimitControl", "OK", "OK"]);
    // The endpoint receives the attempts' span ids, or without a collector the caller's.
    let attempt = |span: &Span| format!("00-{TRACE}-{}-01", hex(&span.span_id));
    assert_eq!(
        trace_of(&sim, "traced"),
        [attempt(&spans[1]), attempt(&spans[3])]
    );
    assert_eq!(trace_of(&sim, "unsampled"), [CALLER.replace("-01", "-00")]);
    assert_eq!(trace_of(&sim, "alone"), [""; 0]);
    let of = collector.taken.lock()[0].resource_spans[0]
        .resource
        .clone()
        .unwrap();
    assert_eq!(
        text(&of.attributes, "service.name").as_deref(),
        Some("flowgate")
    );
    // An invalid trace header is ignored.
    let all = format!("{:?}", collector.taken.lock());
    assert!(!all.contains(SECRET) && !all.contains("ACS3-HMAC") && !all.contains("traced"));
}

#[tokio::test]
async fn an_unreachable_collector_costs_no_call_and_is_logged_once() {
    let sim = Sim::start(
        Settings {
            limits: Default::default(),
            ..Settings::default()
        }
        .with_key(KEY, SECRET, "acme"),
    );
    let (toml, collector) = Collector::start().await;
    *collector.is_down.lock() = true;
    let sim = sim.await.unwrap();
    // The default of OpenTelemetry's own variable.
    let env = [
        ("OTEL_BSP_SCHEDULE_DELAY", "20"),
        ("OTEL_SERVICE_NAME", "gate"),
    ];
    let process = Process::with_env(&sim, &toml, &env).await;
    call(&process, "one", None).await;
    let warned = process.logged("spans cannot be exported", 1).await;
    assert_eq!(
        warned[0]["error"],
        "the collector answered 503 Service Unavailable"
    );
    assert_eq!(trace_of(&sim, "one").len(), 1);
    *collector.is_down.lock() = false;
    call(&process, "two", None).await;
    process.logged("spans can be exported again", 1).await;
    let metrics = Metrics::of(process.admin).await;
    assert!(metrics.get("flowgate_trace_exports_total{result=\"failed\"}") >= 1.0);
    assert!(metrics.get("flowgate_trace_exports_total{result=\"done\"}") >= 1.0);
    assert_eq!(process.logged("spans cannot be exported", 1).await.len(), 1);
    let of = collector.taken.lock()[0].resource_spans[0]
        .resource
        .clone()
        .unwrap();
    assert_eq!(
        text(&of.attributes, "service.name").as_deref(),
        Some("gate")
    );
    assert!(process.terminate().await.success());
}
