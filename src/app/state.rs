//! What does every call need? All that lives as long as the process, and what of it changes when the configuration does.

use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;

use crate::app::reload::{Ask, Reading};
use crate::app::start_error::StartError;
use crate::call::hold::margin::Margins;
use crate::call::identify::Nonces;
use crate::call::reply;
use crate::call::settings::Settings;
use crate::config::{self, Bind, Config};
use crate::limiter::Limiter;
use crate::limiter::shared::Quota;
use crate::observe::journal::Journal;
use crate::observe::metrics::Metrics;
use crate::observe::otlp::Exporter;
use crate::observe::record::{Recent, Sinks};
use crate::primitives::byte_budget::Room;
use crate::process::logging;
use crate::process::shutdown::{Phase, Phases};
use crate::server::bounds::{self, Bounds, Present};
use crate::server::tls::Certificates;
use crate::upstream::{Reach, Trust, Upstream};

/// What every call needs.
pub(crate) struct Parts {
    pub(crate) settings: ArcSwap<Settings>,
    /// None where nobody reads the configuration anew.
    pub(crate) changes: OnceLock<Ask>,
    /// What callers speak TLS with, if they do; swapped when the files have changed.
    pub(crate) certificates: Option<Arc<Certificates>>,
    /// What callers' and operators' connections keep to.
    pub(crate) bounds: Present,
    pub(crate) nonces: Nonces,
    /// What CAMS's answers usually take.
    pub(crate) margins: Margins,
    pub(crate) limiter: Limiter<Upstream>,
    pub(crate) upstream: Arc<Upstream>,
    /// None: each process has the quota for itself.
    pub(crate) quota: Option<Arc<Quota>>,
    /// None: attempts are not written down.
    pub(crate) journal: Option<Arc<Journal>>,
    pub(crate) metrics: Arc<Metrics>,
    /// Where the ends of calls are reported.
    pub(crate) sinks: Arc<Sinks>,
    /// How the configuration was read last.
    pub(crate) reading: Mutex<Reading>,
    pub(crate) phases: Phases,
    /// Bytes of bodies whose callers are not verified yet.
    pub(crate) unverified: Arc<Room>,
    /// What is under way at CAMS.
    pub(crate) attempts: TaskTracker,
}

/// How often idle lanes are forgotten: a lane is at rest a window after its last call, and callers may be many.
const SWEEP: Duration = Duration::from_secs(2);

/// How long a call waits for other credentials. They are read in milliseconds; a hundred thousand accounts in a second.
const REREAD_WITHIN: Duration = Duration::from_secs(5);

// === impl Parts ===

impl Parts {
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
        Ok(Self {
            sinks: Arc::new(Sinks {
                metrics: metrics.clone(),
                otlp,
                recent: Recent::default(),
            }),
            journal: config.journal.as_ref().map(open).transpose()?,
            bounds: Arc::new(ArcSwap::from_pointee(Bounds::from(&config.listen))),
            certificates: config
                .listen
                .tls
                .as_ref()
                .map(|tls| Arc::new(Certificates::new(tls, &metrics, reply::speaks_tls))),
            nonces: Nonces::new(SystemTime::now()),
            margins: Margins::default(),
            limiter: Limiter::new(
                &config,
                upstream.clone(),
                (metrics.clone(), quota.clone()),
                Instant::now(),
            ),
            quota,
            upstream,
            metrics,
            reading: Mutex::new(Reading::done(Vec::new())),
            phases: Phases::new(),
            unverified: Room::new(config.listen.max_unverified),
            attempts: TaskTracker::new(),
            settings: ArcSwap::from_pointee(Settings::new(config)),
            changes: OnceLock::new(),
        })
    }

    /// From now on this configuration holds, but for what a running process cannot change.
    pub(crate) fn apply(&self, mut config: Config, trust: Option<Trust>) {
        let before = self.settings.load_full();
        config.listen.proxy = before.config.listen.proxy.clone();
        config.listen.admin = before.config.listen.admin.clone();
        bounds::afford(&mut config.listen);
        self.bounds.store(Arc::new(Bounds::from(&config.listen)));
        let settings = Arc::new(before.then(config));
        // First the queue: no lane may begin by what held before for a call that is identified by what holds now.
        self.limiter.reload(&settings.config);
        self.settings.store(settings.clone());
        self.unverified
            .resize(settings.config.listen.max_unverified);
        if let (Some(certificates), Some(tls)) = (&self.certificates, &settings.config.listen.tls) {
            certificates.swap(tls);
        }
        if let Some(trust) = trust {
            self.upstream.trust(trust);
        }
        self.metrics.accounts(&settings.config.accounts);
        logging::set_level(settings.config.log.level);
    }

    /// CAMS says that a call's credentials are no good any more. True when others could be read meanwhile, which a file
    /// system that hangs does not delay beyond `answer_by`.
    pub(crate) async fn reread(&self, generation: u64, answer_by: Instant) -> bool {
        let Some(changes) = self.changes.get() else {
            return false;
        };
        // Many calls come here at once, and the first has read for all.
        if self.settings.load().generation == generation {
            let give_up = answer_by.min(Instant::now() + REREAD_WITHIN);
            drop(timeout_at(give_up, changes.changed()).await);
        }
        self.settings.load().generation != generation
    }

    /// Forgets lanes at rest, and the nonces that are old at `now`.
    pub(crate) fn forget_idle(&self, now: SystemTime) {
        self.limiter.forget_idle();
        self.nonces.forget_idle(now);
    }

    /// Where Flowgate stands, in one line. It is had under every lock of the queue and the pool's.
    pub(crate) fn status(&self) -> String {
        let (lanes, waiting) = self.limiter.count();
        let accounts = self.settings.load().config.accounts.len();
        let phase = if self.phases.now() == Phase::Serving {
            "serving"
        } else {
            "draining"
        };
        let upstream = if self.upstream.reach() == Reach::Up {
            ""
        } else {
            ", CAMS cannot be reached"
        };
        format!("{phase}: accounts {accounts}, lanes {lanes}, waiting {waiting}{upstream}")
    }
}

/// Forgets idle lanes and old nonces for as long as anybody needs them.
pub(crate) async fn sweep(parts: Weak<Parts>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let Some(parts) = parts.upgrade() else { return };
        // There may be 100,000 lanes: not on a thread that serves calls.
        // A panic of one sweep is logged where it happens, and the next sweep goes on.
        drop(tokio::task::spawn_blocking(move || parts.forget_idle(SystemTime::now())).await);
    }
}

#[cfg(test)]
mod tests {
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
        let parts = Parts::new(loaded.config).unwrap();
        drop(parts.changes.set(ask));
        let generation = parts.settings.load().generation;
        for (hold, waits) in [(0, 0), (1, 1), (3600, 5)] {
            let start = Instant::now();
            assert!(
                !parts
                    .reread(generation, start + Duration::from_secs(hold))
                    .await
            );
            assert_eq!(start.elapsed().as_secs(), waits);
        }
    }
}
