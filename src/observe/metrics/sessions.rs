//! The sessions that Flowgate obtains itself, and how often that failed. They are set during a
//! scrape, so no series of a removed account is left behind.

use std::time::SystemTime;

use parking_lot::Mutex;
use prometheus::{IntCounterVec, IntGaugeVec};

use super::config::seconds;
use super::families::Families;
use super::labels::{FAILED_REFRESHES, REFRESHED};

/// The session of one account at the time of a scrape.
pub(crate) struct SessionSample<'a> {
    pub(crate) account: &'a str,
    /// When it expires, or has expired.
    pub(crate) ends_at: Option<SystemTime>,
    pub(crate) obtained_at: Option<SystemTime>,
    /// The number of calls that wait for it.
    pub(crate) waiting: usize,
    /// Whether the last refresh has failed.
    pub(crate) is_failing: bool,
    /// The number of sessions obtained.
    pub(crate) succeeded: u64,
    /// The number of failures, in the order of [`FAILED_REFRESHES`].
    pub(crate) failed: [u64; FAILED_REFRESHES.len()],
}

/// The metrics of sessions.
pub(super) struct SessionMetrics {
    obtained: IntGaugeVec,
    waiting: IntGaugeVec,
    last_successful: IntGaugeVec,
    refreshes: IntCounterVec,
    /// The accounts whose expiry the last scrape has set.
    shown: Mutex<Vec<String>>,
}

/// The results whose series exist before their first event, because alerts are based on them.
const ALWAYS_SHOWN: [&str; 3] = [REFRESHED, "unreachable", "refused"];

// === impl SessionMetrics ===

impl SessionMetrics {
    pub(super) fn new(r: &Families) -> Self {
        let obtained = "Time at which Flowgate obtained an account's session, in seconds since \
                        1970. Absent before the first one.";
        let refreshes = "Refreshes of an account's session that have ended, by result. With \
                         token_file and no_source nothing was sent.";
        let waiting = "Calls that wait until their account has a session. They are in no queue of \
                       a lane.";
        let last_successful = "1 if the last refresh of an account's session succeeded, else 0. \
                               Absent before the first one has ended.";
        Self {
            obtained: r.gauge(
                "credentials_obtained_timestamp_seconds",
                obtained,
                &["account"],
            ),
            waiting: r.gauge("credentials_waiting", waiting, &["account"]),
            last_successful: r.gauge(
                "credentials_last_refresh_successful",
                last_successful,
                &["account"],
            ),
            refreshes: r.counter(
                "credentials_refreshes_total",
                refreshes,
                &["account", "result"],
            ),
            shown: Mutex::default(),
        }
    }

    /// Sets all series. `expiry` is shared with credentials that are read with the configuration.
    /// Scrapes are serialised by the caller.
    pub(super) fn set(&self, expiry: &IntGaugeVec, samples: &[SessionSample<'_>]) {
        self.obtained.reset();
        self.refreshes.reset();
        self.waiting.reset();
        self.last_successful.reset();
        let mut shown = self.shown.lock();
        for account in shown.drain(..) {
            // An error means that a reload has removed the series.
            drop(expiry.remove_label_values(&[&account]));
        }
        for sample in samples {
            let account = sample.account;
            if let Some(ends_at) = sample.ends_at {
                expiry.with_label_values(&[account]).set(seconds(ends_at));
                shown.push(account.to_owned());
            }
            if let Some(obtained_at) = sample.obtained_at {
                self.obtained
                    .with_label_values(&[account])
                    .set(seconds(obtained_at));
            }
            self.waiting
                .with_label_values(&[account])
                .set(i64::try_from(sample.waiting).unwrap_or(i64::MAX));
            if sample.is_failing || sample.succeeded > 0 {
                self.last_successful
                    .with_label_values(&[account])
                    .set(i64::from(!sample.is_failing));
            }
            let failed = FAILED_REFRESHES.into_iter().zip(sample.failed);
            for (result, count) in failed.chain([(REFRESHED, sample.succeeded)]) {
                if count > 0 || ALWAYS_SHOWN.contains(&result) {
                    self.refreshes
                        .with_label_values(&[account, result])
                        .inc_by(count);
                }
            }
        }
    }
}
