//! What is reported about calls: metrics, the call log, traces and their export, the journal.

pub(crate) mod history;
pub mod journal;
pub(crate) mod metrics;
pub(crate) mod otlp;
pub(crate) mod record;
pub(crate) mod trace;
