//! What does a collector hear of a call? One span for the call and one for each step below it, without a secret and without
//! what was asked. They go through the SDK's queue and thread: a collector that is slow or gone costs spans and never a
//! call.

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
