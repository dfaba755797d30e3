//! How does a call become OpenTelemetry's spans? Names and attributes are those of its semantic conventions where they
//! have one, and begin with `flowgate.` where they have none.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, Key, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    BatchSpanProcessor, SpanData, SpanEvents, SpanLinks, SpanProcessor,
};

use super::Call;
use super::client::Client;
use crate::config::Collector;
use crate::error::Outcome;
use crate::observe::metrics::Metrics;
use crate::observe::trace::{Kind, Step};

/// What the last spans may take when the process ends.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Exports until it is finished.
pub(crate) struct Exporter {
    processor: Arc<BatchSpanProcessor>,
    scope: InstrumentationScope,
}

/// What is said of one span besides its place.
struct Told {
    name: String,
    kind: SpanKind,
    time: (SystemTime, SystemTime),
    attributes: Vec<KeyValue>,
    status: Status,
}

// === impl Exporter ===

impl Exporter {
    /// Must be called inside the runtime that is to send.
    pub(crate) fn start(collector: &Collector, metrics: &Arc<Metrics>) -> anyhow::Result<Self> {
        metrics.exports_traces();
        let client = Client::new(collector, metrics.clone())?;
        let exporter = SpanExporter::builder()
            .with_http()
            .with_endpoint(client.url())
            .with_http_client(client)
            .build();
        let mut processor =
            BatchSpanProcessor::builder(exporter.context("telemetry.otlp")?).build();
        processor.set_resource(&resource());
        let scope = InstrumentationScope::builder("flowgate")
            .with_version(crate::VERSION)
            .build();
        Ok(Self {
            processor: Arc::new(processor),
            scope,
        })
    }

    /// Takes a call's spans; drops them where the queue is full.
    pub(crate) fn export(&self, call: &Call<'_>) {
        let (spans, ended) = (&call.spans, call.ended);
        for step in spans.steps.iter().filter(|step| step.from <= ended) {
            let until = step.until.unwrap_or(ended).min(ended);
            let time = (
                spans.arrived.wall_at(step.from),
                spans.arrived.wall_at(until),
            );
            self.give(
                call,
                (step.span, Some(spans.own.span)),
                Told::of_step(step, time),
            );
        }
        self.give(call, (spans.own.span, spans.parent), Told::of_call(call));
    }

    /// Sends what is left.
    pub(crate) async fn finish(&self) {
        let processor = self.processor.clone();
        let finished =
            tokio::task::spawn_blocking(move || processor.shutdown_with_timeout(LAST_WORDS)).await;
        if let Ok(Err(error)) = finished {
            tracing::warn!(%error, "the last spans could not be exported");
        }
    }

    fn give(&self, call: &Call<'_>, (span, parent): (u64, Option<u64>), told: Told) {
        let trace = TraceId::from(call.spans.own.trace);
        let id = SpanId::from(span);
        self.processor.on_end(SpanData {
            span_context: SpanContext::new(trace, id, TraceFlags::SAMPLED, false, TraceState::NONE),
            parent_span_id: parent.map_or(SpanId::INVALID, SpanId::from),
            parent_span_is_remote: span == call.spans.own.span && parent.is_some(),
            span_kind: told.kind,
            name: told.name.into(),
            start_time: told.time.0,
            end_time: told.time.1,
            attributes: told.attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: told.status,
            instrumentation_scope: self.scope.clone(),
        });
    }
}

/// What the environment says of this service, and what it leaves open.
fn resource() -> Resource {
    let said = Resource::builder().build();
    let name = said
        .get(&Key::from_static_str("service.name"))
        .map(|name| name.to_string());
    let is_named = name.is_some_and(|name| !name.starts_with("unknown_service"));
    let resource =
        Resource::builder().with_attribute(KeyValue::new("service.version", crate::VERSION));
    if is_named {
        resource.build()
    } else {
        resource.with_service_name("flowgate").build()
    }
}

// === impl Told ===

impl Told {
    fn of_call(call: &Call<'_>) -> Self {
        let attempts = call
            .spans
            .steps
            .iter()
            .filter(|step| step.kind == Kind::Attempt)
            .count();
        let mut attributes = vec![
            KeyValue::new("rpc.method", call.action.to_owned()),
            KeyValue::new("flowgate.request_id", call.request_id.to_owned()),
            KeyValue::new("flowgate.account", call.account.to_owned()),
            KeyValue::new("flowgate.outcome", call.outcome.label()),
            KeyValue::new("flowgate.code", call.code.to_owned()),
            KeyValue::new(
                "flowgate.attempts",
                i64::try_from(attempts).unwrap_or(i64::MAX),
            ),
        ];
        if !call.client.is_empty() {
            attributes.push(KeyValue::new("flowgate.client", call.client.to_owned()));
        }
        if call.status > 0 {
            attributes.push(KeyValue::new(
                "http.response.status_code",
                i64::from(call.status),
            ));
        }
        let arrived = call.spans.arrived;
        Self {
            name: call.action.to_owned(),
            kind: SpanKind::Server,
            time: (arrived.wall, arrived.wall_at(call.ended)),
            attributes,
            status: if call.outcome == Outcome::Ok {
                Status::Unset
            } else {
                Status::error(call.code.to_owned())
            },
        }
    }

    fn of_step(step: &Step, time: (SystemTime, SystemTime)) -> Self {
        let (name, kind) = match step.kind {
            Kind::Queue => ("queue", SpanKind::Internal),
            Kind::Attempt => ("attempt", SpanKind::Client),
            Kind::BackOff => ("back-off", SpanKind::Internal),
        };
        let of = |key: &'static str, value: &Option<Box<str>>| {
            value
                .as_deref()
                .map(|value| KeyValue::new(key, value.to_owned()))
        };
        let said = [
            of("flowgate.code", &step.code),
            of("flowgate.cams_request_id", &step.cams_request_id),
        ];
        let status = match step.code.as_deref() {
            Some(code) if code != "OK" => Status::error(code.to_owned()),
            None if step.kind == Kind::Attempt => {
                Status::error("it went on when the call had ended")
            }
            _ => Status::Unset,
        };
        Self {
            name: name.to_owned(),
            kind,
            time,
            attributes: said.into_iter().flatten().collect(),
            status,
        }
    }
}
