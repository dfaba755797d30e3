//! Exports traces to an OpenTelemetry collector: one span for each call and a child span for each
//! of its steps. Spans contain no secret and no parameters of the call. They pass through the SDK's
//! queue and thread, so a slow or unreachable collector loses spans and never delays a call.

use tokio::time::Instant;

use crate::error::Outcome;
use crate::observe::trace::Spans;

mod client;
mod exporter;

pub(crate) use exporter::Exporter;

/// A call that has ended.
pub(crate) struct Call<'a> {
    pub(crate) spans: Spans,
    pub(crate) ended: Instant,
    /// Action and account as metric labels, which are closed sets.
    pub(crate) action: &'a str,
    pub(crate) account: &'a str,
    /// Empty if the call ended before it was classified.
    pub(crate) client: &'a str,
    pub(crate) request_id: &'a str,
    pub(crate) outcome: Outcome,
    pub(crate) code: &'a str,
    /// 0 if the caller had disconnected.
    pub(crate) status: u16,
}
