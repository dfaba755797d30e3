//! What is an exporter where there is none? Nothing that could be made.

use std::sync::Arc;

use super::Call;
use crate::config::Collector;
use crate::observe::metrics::Metrics;

/// The configuration refuses a collector, so nobody starts one.
pub(crate) enum Exporter {}

impl Exporter {
    pub(crate) fn start(_collector: &Collector, _metrics: &Arc<Metrics>) -> anyhow::Result<Self> {
        anyhow::bail!("built without the feature otlp")
    }

    pub(crate) fn export(&self, _call: &Call<'_>) {
        match *self {}
    }

    pub(crate) async fn finish(&self) {
        match *self {}
    }
}
