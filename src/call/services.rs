//! The services that all calls share, which live as long as the process.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::body;
use super::current_config::{CurrentConfig, Endpoints};
use super::hold::margin::Margins;
use super::identify::{self, Caller, Claim, Nonces};
use super::looks::Looks;
use super::unknown;
use super::waiting::WaitingCalls;
use crate::config::{Config, Listen};
use crate::error::{Kind, Refusal};
use crate::idempotency::records::{Bounds, Records};
use crate::idempotency::shared::{SharedRecords, Times};
use crate::limiter::Limiter;
use crate::limiter::shared::Quota;
use crate::observe::journal::Journal;
use crate::observe::metrics::Metrics;
use crate::observe::record::CallTelemetry;
use crate::primitives::byte_budget::ByteBudget;
use crate::process::shutdown::Phases;
use crate::upstream::Upstream;

/// The services that all calls share.
pub(crate) struct CallServices {
    pub(crate) current_config: CurrentConfig,
    pub(crate) limiter: Limiter<Upstream>,
    /// `None`: each process uses the full quota.
    pub(crate) quota: Option<Arc<Quota>>,
    /// `None`: attempts are not recorded.
    pub(crate) journal: Option<Arc<Journal>>,
    pub(crate) metrics: Arc<Metrics>,
    /// Where the ends of calls are reported.
    pub(crate) telemetry: Arc<CallTelemetry>,
    pub(crate) phases: Phases,
    /// Bytes of request bodies whose callers are not verified yet.
    pub(crate) unverified: Arc<ByteBudget>,
    pub(super) nonces: Nonces,
    /// What of a hold is reserved for the answer.
    pub(super) margins: Margins,
    /// Calls that wait for a session of their account.
    pub(crate) session_waits: WaitingCalls,
    /// Calls that wait for the call of their idempotency key.
    pub(super) key_waits: WaitingCalls,
    /// The idempotency keys of calls.
    pub(crate) records: Arc<Records>,
    /// When old records are removed next.
    records_due: Mutex<Instant>,
    /// The looks for flows of unknown outcomes.
    pub(crate) looks: Looks,
    /// The idempotency keys that replicas share; `None` without a store.
    pub(crate) shared_records: Option<Arc<SharedRecords>>,
    /// Attempts in flight, and calls that continue without their callers.
    pub(super) attempts: TaskTracker,
}

/// The interval at which old records are removed.
const RECORDS_INTERVAL: Duration = Duration::from_secs(60);

// === impl CallServices ===

impl CallServices {
    /// `config` must contain the addresses that were bound.
    pub(crate) fn new(
        config: Config,
        endpoints: Endpoints,
        quota: Option<Arc<Quota>>,
        journal: Option<Arc<Journal>>,
        telemetry: CallTelemetry,
    ) -> Self {
        let metrics = telemetry.metrics.clone();
        let max_unverified = config.listen.max_unverified;
        let current_config = CurrentConfig::new(config, endpoints);
        let config_snapshot = current_config.load_full();
        let shared_records = quota.as_ref().map(|quota| {
            let times = times_of_keys(&config_snapshot.config);
            let (store, replica) = (quota.store().clone(), quota.replica());
            Arc::new(SharedRecords::new(store, replica, times, metrics.clone()))
        });
        Self {
            shared_records,
            limiter: Limiter::new(
                &config_snapshot.config,
                config_snapshot.routes(),
                metrics.clone(),
                quota.clone(),
                Instant::now(),
            ),
            quota,
            journal,
            margins: Margins::new(metrics.clone()),
            metrics,
            telemetry: Arc::new(telemetry),
            phases: Phases::new(),
            unverified: ByteBudget::new(max_unverified),
            nonces: Nonces::new(SystemTime::now()),
            session_waits: WaitingCalls::default(),
            key_waits: WaitingCalls::default(),
            records_due: Mutex::new(Instant::now()),
            records: Records::new(bounds_of_keys(&config_snapshot.config)),
            looks: Looks::default(),
            attempts: TaskTracker::new(),
            current_config,
        }
    }

    /// Removes idle lanes, old records, and the nonces that are too old at `now`. `uptime` is the
    /// time of the monotonic clock.
    pub(crate) fn forget_idle(&self, now: SystemTime, uptime: Instant) {
        self.limiter.forget_idle();
        self.nonces.forget_idle(now, uptime);
        self.forget_old_records(uptime);
    }

    /// Removes old records, once a minute: it is a walk through all of them.
    fn forget_old_records(&self, now: Instant) {
        let mut due = self.records_due.lock();
        if now < *due {
            return;
        }
        *due = now + RECORDS_INTERVAL;
        drop(due);
        for outcome in self.records.forget_old(now).unknown {
            unknown::forgotten(self, &outcome);
        }
    }

    /// Waits until every attempt has ended, including attempts whose callers have disconnected. No
    /// attempt may start after this.
    pub(crate) async fn attempts_ended(&self) {
        self.attempts.close();
        self.attempts.wait().await;
    }

    /// The bounds of a body. Without a claim, only the body will identify the caller.
    pub(super) fn body_bounds(&self, claim: Option<&Claim>, listen: &Listen) -> body::BodyBounds {
        let max = match claim {
            Some(claim) => claim.max_body(listen.max_body),
            None => identify::max_unproven_body(listen.max_body),
        };
        let budgets = match claim.and_then(Claim::budget_owner) {
            Some(budget_owner) => vec![
                self.limiter.client_budget(budget_owner),
                self.limiter.budget().clone(),
            ],
            None => vec![self.unverified.clone()],
        };
        let reservations = budgets
            .iter()
            .map(|budget| budget.take(0).expect("a zero-byte reservation cannot fail"))
            .collect();
        body::BodyBounds {
            max,
            within: listen.body_timeout,
            reservations,
        }
    }

    /// Counts a failed check of a head. A passed check is counted after the whole request is
    /// verified.
    pub(super) fn count_failed_check<T>(&self, checked: Result<T, Refusal>) -> Result<T, Refusal> {
        checked.inspect_err(|refusal| self.count_check(refusal.kind))
    }

    /// Counts the verdict on a whole request.
    pub(super) fn count_proof(&self, proved: Result<Caller, Refusal>) -> Result<Caller, Refusal> {
        match &proved {
            Ok(caller) => self.metrics.proved(matches!(caller, Caller::Verified(_))),
            Err(refusal) => self.count_check(refusal.kind),
        }
        proved
    }

    fn count_check(&self, kind: Kind) {
        let result = match kind {
            Kind::SignatureDoesNotMatch
            | Kind::IncompleteSignature
            | Kind::UnknownAccessKey
            | Kind::TimestampExpired
            | Kind::TimestampFormat
            | Kind::NonceUsed
            | Kind::SignedHostMismatch => kind.label(),
            _ => return,
        };
        self.metrics.signature_check(result);
    }
}

/// How long idempotency keys are kept in the store.
pub(crate) fn times_of_keys(config: &Config) -> Times {
    Times {
        keep: config.exactly_once.keep,
        answer_timeout: config.upstream.answer_timeout,
        settle: config.exactly_once.settle,
    }
}

/// The bounds of idempotency keys.
pub(crate) fn bounds_of_keys(config: &Config) -> Bounds {
    Bounds {
        keep: config.exactly_once.keep,
        max: config.exactly_once.max_keys,
    }
}
