//! The state of the process: what lives as long as it, and what a reload replaces.

use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::app::journal;
use crate::call::current_config::Endpoints;
use crate::call::looks;
use crate::call::reply;
use crate::call::services::{CallServices, bounds_of_keys, times_of_keys};
use crate::config::{Bind, Config};
use crate::credentials::keepers::Keepers;
use crate::limiter::shared::Quota;
use crate::observe::history;
use crate::observe::metrics::Metrics;
use crate::observe::otlp::Exporter;
use crate::observe::record::{CallTelemetry, Recent};
use crate::process::logging;
use crate::process::shutdown::Phase;
use crate::server::bounds::{self, Bounds, CurrentBounds};
use crate::server::tls::Certificates;
use crate::upstream::{Reach, TlsRoots, Upstreams};

/// A running Flowgate without its listeners.
pub(crate) struct AppState {
    calls: Arc<CallServices>,
    /// TLS certificates of the proxy port, if it uses TLS. Replaced by a reload.
    certificates: Option<Arc<Certificates>>,
    /// Limits of callers' and operators' connections.
    bounds: CurrentBounds,
}

/// Interval of the clean-up of idle lanes and old nonces. A lane is idle one window after its last
/// call.
const SWEEP: Duration = Duration::from_secs(2);

// === impl AppState ===

impl AppState {
    /// `config` must contain the addresses that were bound.
    pub(crate) fn new(config: Config) -> anyhow::Result<Self> {
        let own = [&config.listen.proxy, &config.listen.admin]
            .into_iter()
            .filter_map(Bind::address)
            .collect();
        let metrics = Arc::new(Metrics::new());
        metrics.accounts(&config.accounts);
        let tls_roots = TlsRoots::of(&config)?;
        let endpoints = Endpoints {
            upstreams: Upstreams::new(&config, own, tls_roots.as_ref())?,
            keepers: Keepers::new(&config, tls_roots.as_ref())?,
        };
        let quota = config
            .quota
            .store
            .as_ref()
            .map(|store| Quota::open(store, config.quota.on_store_failure, metrics.clone()))
            .transpose()?;
        let otlp = config
            .telemetry
            .otlp
            .as_ref()
            .map(|to| Exporter::start(to, &metrics))
            .transpose()?;
        let journal = config
            .journal
            .as_ref()
            .map(|it| journal::open(it, &config.exactly_once, &metrics))
            .transpose()?;
        let certificates = config
            .listen
            .tls
            .as_ref()
            .map(|tls| Arc::new(Certificates::new(tls, &metrics, reply::tls_required)));
        let bounds = Arc::new(ArcSwap::from_pointee(Bounds::from(&config.listen)));
        let telemetry = CallTelemetry {
            metrics,
            otlp,
            recent: Recent::default(),
        };
        let calls = CallServices::new(config, endpoints, quota, journal, telemetry);
        journal::restore_keys(&calls)?;
        Ok(Self {
            calls: Arc::new(calls),
            certificates,
            bounds,
        })
    }

    /// The services that all calls share.
    pub(crate) fn calls(&self) -> &Arc<CallServices> {
        &self.calls
    }

    /// TLS certificates of the proxy port, if it uses TLS.
    pub(crate) fn certificates(&self) -> Option<Arc<Certificates>> {
        self.certificates.clone()
    }

    /// Limits of callers' and operators' connections.
    pub(crate) fn bounds(&self) -> CurrentBounds {
        self.bounds.clone()
    }

    /// Sets up what a configuration that is not in force yet connects to. Upstreams whose settings
    /// have not changed keep their connections, and sources of credentials their sessions.
    pub(crate) fn next_endpoints(
        &self,
        config: &Config,
        tls_roots: Option<&TlsRoots>,
    ) -> anyhow::Result<Endpoints> {
        let config_snapshot = self.calls.current_config.load_full();
        Ok(Endpoints {
            upstreams: config_snapshot.upstreams.reloaded(config, tls_roots)?,
            keepers: config_snapshot.keepers.reloaded(config, tls_roots)?,
        })
    }

    /// Puts this configuration in force, except for keys that only a restart can change.
    pub(crate) fn apply(
        &self,
        mut config: Config,
        endpoints: Endpoints,
        tls_roots: Option<&TlsRoots>,
    ) {
        let before = self.calls.current_config.load_full();
        config.listen.proxy = before.config.listen.proxy.clone();
        config.listen.admin = before.config.listen.admin.clone();
        bounds::fit_to_descriptors(&mut config.listen);
        self.bounds.store(Arc::new(Bounds::from(&config.listen)));
        let config_snapshot = Arc::new(before.next(config, endpoints));
        // The limiter first: a call that is identified with the new snapshot must not create a lane
        // with the old ones.
        self.calls.limiter.reroute(config_snapshot.routes());
        self.calls.limiter.reload(&config_snapshot.config);
        self.calls.current_config.store(config_snapshot.clone());
        self.calls
            .records
            .set_bounds(bounds_of_keys(&config_snapshot.config));
        if let Some(journal) = &self.calls.journal {
            journal.keep_keys(&config_snapshot.config.exactly_once);
        }
        looks::reconfigure(&self.calls);
        if let Some(shared) = &self.calls.shared_records {
            shared.set_times(times_of_keys(&config_snapshot.config));
        }
        self.calls
            .unverified
            .resize(config_snapshot.config.listen.max_unverified);
        if let (Some(certificates), Some(tls)) =
            (&self.certificates, &config_snapshot.config.listen.tls)
        {
            certificates.swap(tls);
        }
        if let Some(tls_roots) = tls_roots {
            config_snapshot.upstreams.set_tls_roots(tls_roots);
            config_snapshot.keepers.set_tls_roots(tls_roots);
        }
        self.calls
            .metrics
            .accounts(&config_snapshot.config.accounts);
        logging::set_level(config_snapshot.config.log.level);
    }

    /// Removes idle lanes and old nonces, and reports log lines that were dropped.
    fn tidy_up(&self) {
        self.calls.forget_idle(SystemTime::now(), Instant::now());
        self.report_dropped_lines(logging::dropped_lines());
    }

    /// Reports that log lines were dropped, out of `total` since the start.
    fn report_dropped_lines(&self, total: u64) {
        let dropped = self.calls.metrics.log_lines_dropped(total);
        if dropped > 0 {
            tracing::warn!(dropped, "log lines were dropped: their reader is too slow");
        }
    }

    /// One line of status for the service manager. Takes the locks of all queues and of the pool.
    pub(crate) fn status(&self) -> String {
        let (lanes, waiting) = self.calls.limiter.count();
        let accounts = self.calls.current_config.load().config.accounts.len();
        let phase = if self.calls.phases.now() == Phase::Serving {
            "serving"
        } else {
            "draining"
        };
        let config_snapshot = self.calls.current_config.load();
        let mut upstreams = config_snapshot.upstreams.all().iter();
        let upstream = if upstreams.all(|upstream| upstream.reach() == Reach::Up) {
            ""
        } else {
            ", CAMS cannot be reached"
        };
        let sessions = missing_sessions(&self.calls);
        format!(
            "{phase}: accounts {accounts}, lanes {lanes}, waiting {waiting}{upstream}{sessions}"
        )
    }
}

/// How many accounts have no session, and how many calls wait for one; empty if none.
fn missing_sessions(services: &CallServices) -> String {
    let config_snapshot = services.current_config.load();
    let accounts = config_snapshot.session_accounts().iter();
    let missing = accounts.filter(|account| account.keeper.current().is_none());
    let (mut accounts, mut calls) = (0, 0);
    for account in missing {
        accounts += 1;
        calls += services.session_waits.waiting(&account.id);
    }
    if accounts == 0 {
        return String::new();
    }
    format!(", accounts without a session {accounts}, calls that wait for one {calls}")
}

/// Removes idle lanes and old nonces until the process ends.
pub(crate) async fn sweep(state: Weak<AppState>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let Some(state) = state.upgrade() else { return };
        // With 100,000 lanes a sweep takes long, so not on a serving thread. A panic of one sweep
        // is logged where it happens; the next sweep still runs.
        drop(tokio::task::spawn_blocking(move || state.tidy_up()).await);
    }
}

/// Takes the samples of the last 15 minutes until the process ends.
pub(crate) async fn sample(calls: Weak<CallServices>) {
    let mut times = interval(history::INTERVAL);
    times.set_missed_tick_behavior(MissedTickBehavior::Skip);
    times.tick().await;
    loop {
        times.tick().await;
        let Some(calls) = calls.upgrade() else { return };
        // A sample visits all lanes, so not on a serving thread.
        let sample = move || calls.limiter.sample(calls.telemetry.recent.ended());
        drop(tokio::task::spawn_blocking(sample).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::reload::Reloader;
    use crate::call::tests::sessions::{Gateway, failure, seconds, session};
    use crate::config::Source;
    use crate::credentials::error::FailureKind;

    #[tokio::test(start_paused = true)]
    async fn the_status_line_has_the_accounts_without_a_session() {
        let gateway = Gateway::new(failure(FailureKind::Unreachable), &[]).await;
        let waiting = gateway.together(3, "60s").await;
        tokio::time::sleep(seconds(1)).await;
        let line = ", accounts without a session 1, calls that wait for one 3";
        assert_eq!(missing_sessions(&gateway.services), line);
        gateway.script.set(session(seconds(3600), Duration::ZERO));
        waiting.join_all().await;
        assert_eq!(missing_sessions(&gateway.services), "");
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_for_renewed_credentials_ends_with_the_hold_or_after_five_seconds() {
        let source = Source {
            file: None,
            environment: Some(Vec::new()),
        };
        let loaded = source.load().unwrap();
        // The reloader never runs, as if the file system did not respond.
        let (_reloader, reload) = Reloader::new(source, &loaded).unwrap();
        let state = AppState::new(loaded.config).unwrap();
        let current_config = &state.calls().current_config;
        current_config.set_reload_handle(reload, Vec::new());
        let generation = current_config.load().generation;
        for (hold, waits) in [(0, 0), (1, 1), (3600, 5)] {
            let start = Instant::now();
            assert!(
                !current_config
                    .wait_for_reload(generation, start + Duration::from_secs(hold))
                    .await
            );
            assert_eq!(start.elapsed().as_secs(), waits);
        }
    }

    #[tokio::test]
    async fn dropped_log_lines_are_counted_once() {
        let source = Source {
            file: None,
            environment: Some(Vec::new()),
        };
        let state = AppState::new(source.load().unwrap().config).unwrap();
        let metrics = &state.calls().metrics;
        for (total, new) in [(0, 0), (7, 7), (7, 0), (9, 2)] {
            assert_eq!(metrics.log_lines_dropped(total), new);
        }
    }
}
