//! What is seen of the configuration: whether it could be read the last time, and when the temporary credentials that it
//! names will end.

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::{IntCounterVec, IntGauge, IntGaugeVec};

use super::families::Families;
use crate::config::Account;
use crate::error::Kind;
use crate::operation::UNKNOWN_ACCOUNT;

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
    time.duration_since(UNIX_EPOCH).map_or(0, |since| {
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    })
}

// === impl ConfigMetrics ===

impl ConfigMetrics {
    /// The configuration of the start was read, or there would be no metrics.
    pub(super) fn new(r: &Families) -> Self {
        let help = "1 while the configuration could be read the last time that it was tried.";
        let successful = r.only_gauge("config_last_reload_successful", help);
        let help = "When the configuration that holds was read, in seconds since 1970.";
        let succeeded_at = r.only_gauge("config_last_reload_success_timestamp_seconds", help);
        let reloads = r.counter(
            "config_reloads_total",
            "Reloads of the configuration, by what became of them.",
            &["result"],
        );
        let help = "When an account's temporary credentials end, in seconds since 1970.";
        let credentials_end = r.gauge("credentials_expiry_timestamp_seconds", help, &["account"]);
        successful.set(1);
        succeeded_at.set(seconds(SystemTime::now()));
        Self {
            successful,
            succeeded_at,
            reloads,
            credentials_end,
        }
    }
}

impl super::Metrics {
    /// The configuration was read anew.
    pub(crate) fn reloaded(&self, reload: Reload) {
        let ConfigMetrics {
            successful,
            succeeded_at,
            reloads,
            ..
        } = &self.config;
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

    /// These accounts are there now. What somebody is told of at its first time begins at zero.
    pub(crate) fn accounts(&self, accounts: &[Account]) {
        for account in accounts
            .iter()
            .map(|account| account.id.as_str())
            .chain([UNKNOWN_ACCOUNT])
        {
            [Kind::OutcomeUnknown, Kind::AccountCredentials]
                .iter()
                .for_each(|kind| drop(self.refused.with_label_values(&[account, kind.label()])));
        }
        let ends = &self.config.credentials_end;
        ends.reset();
        for account in accounts {
            if let Some(end) = account
                .credentials
                .as_ref()
                .and_then(|credentials| credentials.expires)
            {
                ends.with_label_values(&[account.id.as_str()])
                    .set(seconds(end));
            }
        }
    }
}
