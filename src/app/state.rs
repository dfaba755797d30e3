//! What does every call need? All that lives as long as the process, and what of it changes when the configuration does.

use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;

use crate::app::start_error::StartError;
use crate::call::reply;
use crate::call::services::CallServices;
use crate::config::{self, Bind, Config};
use crate::limiter::shared::Quota;
use crate::observe::journal::Journal;
use crate::observe::metrics::Metrics;
use crate::observe::otlp::Exporter;
use crate::observe::record::{Recent, Sinks};
use crate::process::logging;
use crate::process::shutdown::Phase;
use crate::server::bounds::{self, Bounds, Present};
use crate::server::tls::Certificates;
use crate::upstream::{Reach, Trust, Upstream};

/// A running Flowgate, but for its listeners.
pub(crate) struct AppState {
    calls: Arc<CallServices>,
    /// What callers speak TLS with, if they do; swapped when the files have changed.
    certificates: Option<Arc<Certificates>>,
    /// What callers' and operators' connections keep to.
    bounds: Present,
}

/// How often idle lanes are forgotten: a lane is at rest a window after its last call, and callers may be many.
const SWEEP: Duration = Duration::from_secs(2);

// === impl AppState ===

impl AppState {
    /// `config` with the addresses that were in fact bound.
    pub(crate) fn new(config: Config) -> anyhow::Result<Self> {
        let own = [&config.listen.proxy, &config.listen.admin]
            .into_iter()
            .filter_map(Bind::address)
            .collect();
        let metrics = Arc::new(Metrics::new());
        metrics.accounts(&config.accounts);
        let upstream = Arc::new(Upstream::new(&config.upstream, own)?);
        let quota = config
            .quota
            .store
            .as_ref()
            .map(|store| Quota::open(store, config.quota.on_store_failure, metrics.clone()))
            .transpose()?;
        let open = |journal: &config::Journal| {
            let opened = Journal::open(journal, metrics.clone());
            opened.map(Arc::new).map_err(|error| StartError::Journal {
                path: journal.path.clone(),
                error,
            })
        };
        let otlp = config
            .telemetry
            .otlp
            .as_ref()
            .map(|to| Exporter::start(to, &metrics))
            .transpose()?;
        let journal = config.journal.as_ref().map(open).transpose()?;
        let certificates = config
            .listen
            .tls
            .as_ref()
            .map(|tls| Arc::new(Certificates::new(tls, &metrics, reply::speaks_tls)));
        let bounds = Arc::new(ArcSwap::from_pointee(Bounds::from(&config.listen)));
        let sinks = Sinks {
            metrics,
            otlp,
            recent: Recent::default(),
        };
        Ok(Self {
            calls: Arc::new(CallServices::new(config, upstream, quota, journal, sinks)),
            certificates,
            bounds,
        })
    }

    /// What calls use.
    pub(crate) fn calls(&self) -> &Arc<CallServices> {
        &self.calls
    }

    /// What callers speak TLS with, if they do.
    pub(crate) fn certificates(&self) -> Option<Arc<Certificates>> {
        self.certificates.clone()
    }

    /// What connections keep to.
    pub(crate) fn bounds(&self) -> Present {
        self.bounds.clone()
    }

    /// From now on this configuration holds, but for what a running process cannot change.
    pub(crate) fn apply(&self, mut config: Config, trust: Option<Trust>) {
        let before = self.calls.settings.load_full();
        config.listen.proxy = before.config.listen.proxy.clone();
        config.listen.admin = before.config.listen.admin.clone();
        bounds::afford(&mut config.listen);
        self.bounds.store(Arc::new(Bounds::from(&config.listen)));
        let settings = Arc::new(before.then(config));
        // First the queue: no lane may begin by what held before for a call that is identified by what holds now.
        self.calls.limiter.reload(&settings.config);
        self.calls.settings.store(settings.clone());
        self.calls
            .unverified
            .resize(settings.config.listen.max_unverified);
        if let (Some(certificates), Some(tls)) = (&self.certificates, &settings.config.listen.tls) {
            certificates.swap(tls);
        }
        if let Some(trust) = trust {
            self.calls.upstream.trust(trust);
        }
        self.calls.metrics.accounts(&settings.config.accounts);
        logging::set_level(settings.config.log.level);
    }

    /// Where Flowgate stands, in one line. It is had under every lock of the queue and the pool's.
    pub(crate) fn status(&self) -> String {
        let (lanes, waiting) = self.calls.limiter.count();
        let accounts = self.calls.settings.load().config.accounts.len();
        let phase = if self.calls.phases.now() == Phase::Serving {
            "serving"
        } else {
            "draining"
        };
        let upstream = if self.calls.upstream.reach() == Reach::Up {
            ""
        } else {
            ", CAMS cannot be reached"
        };
        format!("{phase}: accounts {accounts}, lanes {lanes}, waiting {waiting}{upstream}")
    }
}

/// Forgets idle lanes and old nonces for as long as anybody needs them.
pub(crate) async fn sweep(state: Weak<AppState>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let Some(state) = state.upgrade() else { return };
        // There may be 100,000 lanes: not on a thread that serves calls.
        // A panic of one sweep is logged where it happens, and the next sweep goes on.
        drop(tokio::task::spawn_blocking(move || state.calls.forget_idle(SystemTime::now())).await);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::app::reload::Reloader;
    use crate::config::Source;

    #[tokio::test(start_paused = true)]
    async fn credentials_that_cannot_be_read_are_waited_for_until_the_hold_ends_and_not_longer_than_a_moment()
     {
        let source = Source {
            file: None,
            environment: Some(Vec::new()),
        };
        let loaded = source.load().unwrap();
        // It never looks, as on a file system that hangs.
        let (_reloader, ask) = Reloader::new(source, &loaded).unwrap();
        let state = AppState::new(loaded.config).unwrap();
        let settings = &state.calls().settings;
        settings.can_be_reread(ask, Vec::new());
        let generation = settings.load().generation;
        for (hold, waits) in [(0, 0), (1, 1), (3600, 5)] {
            let start = Instant::now();
            assert!(
                !settings
                    .reread(generation, start + Duration::from_secs(hold))
                    .await
            );
            assert_eq!(start.elapsed().as_secs(), waits);
        }
    }
}
