//! Converts a call to OpenTelemetry spans. Attributes have the names of its semantic conventions if
//! there is one, and else the prefix `flowgate.`.

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
use crate::observe::trace::{Kind, TraceStep};

/// Timeout for exporting the last spans when the process ends.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// Exports spans until [`finish`](Self::finish) is called.
pub(crate) struct Exporter {
    processor: Arc<BatchSpanProcessor>,
    scope: InstrumentationScope,
}

/// The content of a span.
struct Description {
    name: String,
    kind: SpanKind,
    start: SystemTime,
    end: SystemTime,
    attributes: Vec<KeyValue>,
    status: Status,
}

// === impl Exporter ===

impl Exporter {
    /// Starts the exporter. Must be called inside the runtime that sends the batches.
    pub(crate) fn start(collector: &Collector, metrics: &Arc<Metrics>) -> anyhow::Result<Self> {
        metrics.register_trace_export();
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

    /// Queues the spans of a call. They are dropped if the queue is full.
    pub(crate) fn export(&self, call: &Call<'_>) {
        let spans = &call.spans;
        for step in spans.steps.iter().filter(|step| step.from <= call.ended) {
            let description = Description::of_step(step, call);
            self.queue(call, step.span, Some(spans.own.span), description);
        }
        let description = Description::of_call(call);
        self.queue(call, spans.own.span, spans.parent, description);
    }

    /// Exports the remaining spans and stops.
    pub(crate) async fn finish(&self) {
        let processor = self.processor.clone();
        let finished =
            tokio::task::spawn_blocking(move || processor.shutdown_with_timeout(SHUTDOWN_TIMEOUT))
                .await;
        if let Ok(Err(error)) = finished {
            tracing::warn!(%error, "the last spans could not be exported");
        }
    }

    fn queue(&self, call: &Call<'_>, span: u64, parent: Option<u64>, description: Description) {
        let trace = TraceId::from(call.spans.own.trace);
        let id = SpanId::from(span);
        self.processor.on_end(SpanData {
            span_context: SpanContext::new(trace, id, TraceFlags::SAMPLED, false, TraceState::NONE),
            parent_span_id: parent.map_or(SpanId::INVALID, SpanId::from),
            parent_span_is_remote: span == call.spans.own.span && parent.is_some(),
            span_kind: description.kind,
            name: description.name.into(),
            start_time: description.start,
            end_time: description.end,
            attributes: description.attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: description.status,
            instrumentation_scope: self.scope.clone(),
        });
    }
}

/// The resource from the environment variables of OpenTelemetry, with defaults for name and
/// version.
fn resource() -> Resource {
    let name = Resource::builder()
        .build()
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

// === impl Description ===

impl Description {
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
            start: arrived.wall,
            end: arrived.wall_at(call.ended),
            attributes,
            status: if call.outcome == Outcome::Ok {
                Status::Unset
            } else {
                Status::error(call.code.to_owned())
            },
        }
    }

    fn of_step(step: &TraceStep, call: &Call<'_>) -> Self {
        let (name, kind) = match step.kind {
            Kind::Session => ("session", SpanKind::Internal),
            Kind::Queue => ("queue", SpanKind::Internal),
            Kind::Attempt => ("attempt", SpanKind::Client),
            Kind::BackOff => ("back-off", SpanKind::Internal),
        };
        let arrived = call.spans.arrived;
        let until = step.until.unwrap_or(call.ended).min(call.ended);
        let mut attributes = Vec::new();
        if let Some(code) = &step.code {
            attributes.push(KeyValue::new("flowgate.code", code.to_string()));
        }
        if let Some(request_id) = &step.cams_request_id {
            attributes.push(KeyValue::new(
                "flowgate.cams_request_id",
                request_id.to_string(),
            ));
        }
        let status = match step.code.as_deref() {
            Some(code) if code != "OK" => Status::error(code.to_owned()),
            None if step.kind == Kind::Attempt => {
                Status::error("the attempt continued after the call had ended")
            }
            _ => Status::Unset,
        };
        Self {
            name: name.to_owned(),
            kind,
            start: arrived.wall_at(step.from),
            end: arrived.wall_at(until),
            attributes,
            status,
        }
    }
}
