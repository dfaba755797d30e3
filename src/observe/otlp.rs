//! What does a collector hear of a call? One span for the call and one for each step below it, without a secret and without
//! what was asked. They go through the SDK's queue and thread: a collector that is slow or gone costs spans and never a
//! call. Without the feature `otlp` there is no exporter.

use tokio::time::Instant;

use crate::error::Outcome;
use crate::observe::trace::Spans;

#[cfg(feature = "otlp")]
mod client;
#[cfg(feature = "otlp")]
mod exporter;
#[cfg(not(feature = "otlp"))]
mod none;

#[cfg(feature = "otlp")]
pub(crate) use exporter::Exporter;
#[cfg(not(feature = "otlp"))]
pub(crate) use none::Exporter;

/// A call that has ended.
#[cfg_attr(
    not(feature = "otlp"),
    expect(dead_code, reason = "an exporter reads it")
)]
pub(crate) struct Call<'a> {
    pub(crate) spans: Spans,
    pub(crate) ended: Instant,
    /// From the closed sets of metrics' labels.
    pub(crate) action: &'a str,
    pub(crate) account: &'a str,
    /// Empty until the call is known.
    pub(crate) client: &'a str,
    pub(crate) request_id: &'a str,
    pub(crate) outcome: Outcome,
    pub(crate) code: &'a str,
    /// 0: the caller was gone.
    pub(crate) status: u16,
}
