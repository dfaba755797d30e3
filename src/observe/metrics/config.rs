//! Metrics of the configuration: results of reloads, and the expiry of temporary credentials.

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::{IntCounterVec, IntGauge, IntGaugeVec};

use super::families::Families;
use crate::config::{Account, AccountCredentials};
use crate::error::Kind;
use crate::operation::UNKNOWN_ACCOUNT;

/// Metrics of the configuration.
pub(super) struct ConfigMetrics {
    successful: IntGauge,
    succeeded_at: IntGauge,
    reloads: IntCounterVec,
    /// Also set for sessions, during a scrape.
    pub(super) credentials_end: IntGaugeVec,
}

/// The result of a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reload {
    /// The new configuration is in use.
    Done,
    /// The new configuration has an error; the current one is kept.
    Refused,
}

/// Seconds since 1970, Prometheus' unit for timestamps.
pub(super) fn seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| {
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    })
}

// === impl ConfigMetrics ===

impl ConfigMetrics {
    /// The first reload counts as successful: the process does not start with an invalid
    /// configuration.
    pub(super) fn new(r: &Families) -> Self {
        let help = "1 if the last reload of the configuration succeeded, else 0.";
        let successful = r.only_gauge("config_last_reload_successful", help);
        let help = "Time at which the current configuration was loaded, in seconds since 1970.";
        let succeeded_at = r.only_gauge("config_last_reload_success_timestamp_seconds", help);
        let help = "Reloads of the configuration, by result.";
        let reloads = r.counter("config_reloads_total", help, &["result"]);
        let help = "Expiry of an account's temporary credentials, in seconds since 1970.";
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
    /// Counts a reload of the configuration.
    pub(crate) fn reloaded(&self, reload: Reload) {
        let ConfigMetrics {
            successful,
            succeeded_at,
            reloads,
            ..
        } = &self.config;
        match reload {
            Reload::Done => {
                // The counter first: a scrape in between must not show an uncounted success.
                reloads.with_label_values(&["done"]).inc();
                succeeded_at.set(seconds(SystemTime::now()));
                successful.set(1);
            }
            Reload::Refused => {
                successful.set(0);
                reloads.with_label_values(&["refused"]).inc();
            }
        }
    }

    /// Sets the accounts of the configuration. Counters that alert on their first event start at
    /// zero for each.
    pub(crate) fn accounts(&self, accounts: &[Account]) {
        let ids = accounts.iter().map(|account| account.id.as_str());
        for id in ids.chain([UNKNOWN_ACCOUNT]) {
            self.looks.add_account(id);
            for kind in [
                Kind::OutcomeUnknown,
                Kind::AccountCredentials,
                Kind::NoSession,
            ] {
                drop(self.refused.with_label_values(&[id, kind.label()]));
            }
        }
        let ends = &self.config.credentials_end;
        ends.reset();
        for account in accounts {
            let credentials = account.credentials.as_ref();
            let credentials = credentials.and_then(AccountCredentials::loaded);
            if let Some(end) = credentials.and_then(|credentials| credentials.expires) {
                ends.with_label_values(&[account.id.as_str()])
                    .set(seconds(end));
            }
        }
    }
}
