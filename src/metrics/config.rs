//! What is seen of the configuration: whether it could be read the last time, and when the temporary credentials that it
//! names will end.

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::{IntCounterVec, IntGauge, IntGaugeVec, Registry};

use super::{counter, gauge, single};
use crate::config::Account;

/// What is seen of the configuration.
pub(super) struct ConfigMetrics {
    successful: IntGauge,
    succeeded_at: IntGauge,
    reloads: IntCounterVec,
    credentials_end: IntGaugeVec,
}

/// What became of a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reload {
    /// What was read holds.
    Done,
    /// There is a mistake in it, and what held before still does.
    Refused,
}

/// Seconds since 1970, the unit of Prometheus.
pub(super) fn seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

// === impl ConfigMetrics ===

impl ConfigMetrics {
    /// The configuration of the start was read, or there would be no metrics.
    pub(super) fn new(r: &Registry) -> Self {
        let help = "1 while the configuration could be read the last time that it was tried.";
        let successful = single(r, "config_last_reload_successful", help);
        let help = "When the configuration that holds was read, in seconds since 1970.";
        let succeeded_at = single(r, "config_last_reload_success_timestamp_seconds", help);
        let reloads =
            counter(r, "config_reloads_total", "Reloads of the configuration, by what became of them.", &["result"]);
        let help = "When an account's temporary credentials end, in seconds since 1970.";
        let credentials_end = gauge(r, "credentials_expiry_timestamp_seconds", help, &["account"]);
        successful.set(1);
        succeeded_at.set(seconds(SystemTime::now()));
        ["done", "refused"].iter().for_each(|result| drop(reloads.with_label_values(&[*result])));
        Self { successful, succeeded_at, reloads, credentials_end }
    }
}

impl super::Metrics {
    /// The configuration was read anew.
    pub(crate) fn reloaded(&self, reload: Reload) {
        let ConfigMetrics { successful, succeeded_at, reloads, .. } = &self.config;
        match reload {
            Reload::Done => {
                successful.set(1);
                succeeded_at.set(seconds(SystemTime::now()));
                reloads.with_label_values(&["done"]).inc();
            }
            Reload::Refused => {
                successful.set(0);
                reloads.with_label_values(&["refused"]).inc();
            }
        }
    }

    /// These accounts are there now.
    pub(crate) fn credentials(&self, accounts: &[Account]) {
        let ends = &self.config.credentials_end;
        ends.reset();
        for account in accounts {
            if let Some(end) = account.credentials.as_ref().and_then(|credentials| credentials.expires) {
                ends.with_label_values(&[account.id.as_str()]).set(seconds(end));
            }
        }
    }
}
