//! The one place where the parts are joined: configuration in, a running Flowgate out, and how it stops.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Request, Response};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;

use crate::admin::Admin;
use crate::config::{Bind, Config, Listen};
use crate::error::Outcome;
use crate::flow;
use crate::flow::forward::{Connection, Reach, Upstream};
use crate::flow::hold::margin::Margins;
use crate::flow::identify::{Directory, Nonces};
use crate::flow::listen::socket::Hangup;
use crate::flow::listen::tls::Certificates;
use crate::flow::listen::{Answer, Gone, Listener, Terms};
use crate::flow::queue::{Connector, Queue};
use crate::metrics::Metrics;
use crate::quota::Quota;
use crate::room::Room;
use crate::shutdown::{Phase, Phases, Signals};
use crate::systemd::{self, Handed, Passed};

/// A running Flowgate.
pub struct App {
    parts: Arc<Parts>,
    terms: Arc<Terms>,
    /// Ends, and leaves the listener, when a drain begins.
    serving: JoinHandle<()>,
}

/// What every call needs.
pub(crate) struct Parts {
    pub(crate) config: Config,
    /// What callers speak TLS with, if they do; swapped when the files have changed.
    pub(crate) certificates: Option<Arc<Certificates>>,
    pub(crate) directory: Directory,
    pub(crate) nonces: Nonces,
    /// What CAMS's answers usually take.
    pub(crate) margins: Margins,
    pub(crate) queue: Queue<Upstream>,
    pub(crate) upstream: Arc<Upstream>,
    /// None: each process has the quota for itself.
    pub(crate) quota: Option<Arc<Quota>>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) phases: Phases,
    /// Bytes of bodies whose callers are not verified yet.
    pub(crate) unverified: Arc<Room>,
    /// What is under way at CAMS.
    pub(crate) attempts: TaskTracker,
}

/// The proxy port's service.
#[derive(Clone)]
struct Proxy(Arc<Parts>);

/// Bytes of bodies whose callers are not verified yet, all together.
const UNVERIFIED_BYTES: usize = 16 << 20;
/// Descriptors that callers' connections do not get.
const KEPT_DESCRIPTORS: usize = 128;
/// How often idle lanes are forgotten: a lane is at rest a window after its last call, and callers may be many.
const SWEEP: Duration = Duration::from_secs(2);
/// What CAMS's answer to the last call that is sent in a drain may take; a quarter of a short grace.
const ANSWER_MARGIN: Duration = Duration::from_secs(2);
/// How long callers have to read their last answer when the grace is over.
const LAST_WORDS: Duration = Duration::from_secs(1);

// === impl App ===

impl App {
    /// Binds both listeners and begins to serve. Must be called inside a tokio runtime.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        Self::start_on(config, Handed::default()).await
    }

    /// As [`App::start`], on sockets that were bound before, as far as there are any.
    pub async fn start_on(mut config: Config, handed: Handed) -> anyhow::Result<Self> {
        let open = async |passed: Option<Passed>, bind: &Bind, name: &str| {
            let listener = match passed {
                Some(passed) => Listener::adopt(passed, bind),
                None => Listener::bind(bind, config.listen.socket_mode).await,
            };
            listener.with_context(|| format!("cannot listen on {bind} ({name})"))
        };
        let proxy = open(handed.proxy, &config.listen.proxy, "listen.proxy").await?;
        let admin = open(handed.admin, &config.listen.admin, "listen.admin").await?;
        config.listen.proxy = proxy.bound().context("listen.proxy has no address")?;
        config.listen.admin = admin.bound().context("listen.admin has no address")?;
        bound_connections(&mut config.listen);
        let parts = Arc::new(Parts::new(config)?);
        if let Some(quota) = &parts.quota {
            quota.check().await.map_err(anyhow::Error::msg)?;
            let queue = Arc::downgrade(&parts);
            tokio::spawn(quota.clone().keep(move || {
                if let Some(parts) = queue.upgrade() {
                    parts.queue.refresh();
                }
            }));
        }
        let listen = &parts.config.listen;
        let terms = |certificates, until| {
            Terms::new(listen, certificates, parts.metrics.clone(), (parts.phases.clone(), until))
        };
        let (terms, admin_terms) = (terms(parts.certificates.clone(), Phase::Draining), terms(None, Phase::Over));
        let (pages, service) = (Admin::new(parts.clone()), Proxy(parts.clone()));
        tokio::spawn(async move { admin_terms.serve(admin, pages).await });
        let serving = terms.clone();
        let serving = tokio::spawn(async move { serving.serve(proxy, service).await });
        tokio::spawn(sweep(Arc::downgrade(&parts)));
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            mode = %parts.config.mode,
            proxy = %listen.proxy,
            tls = parts.certificates.is_some(),
            admin = %listen.admin,
            upstream = parts.config.upstream.host,
            max_connections = listen.max_connections,
            accounts = parts.config.accounts.len(),
            clients = parts.config.clients.len(),
            "flowgate is ready"
        );
        Ok(Self { parts, terms, serving })
    }

    /// Where applications point their SDK's endpoint; none on a Unix socket.
    pub fn proxy_address(&self) -> Option<SocketAddr> {
        self.parts.config.listen.proxy.address()
    }

    /// Where `/metrics` and the other pages are; none on a Unix socket.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.parts.config.listen.admin.address()
    }

    /// Serves until SIGTERM or SIGINT, then drains; a second signal ends the drain at once.
    pub async fn run(self) -> anyhow::Result<()> {
        let mut signals = Signals::new().context("cannot listen for signals")?;
        systemd::ready(&self.parts.status());
        let parts = Arc::downgrade(&self.parts);
        tokio::spawn(systemd::keep_telling(move || parts.upgrade().map(|parts| parts.status())));
        signals.next().await;
        systemd::stopping("draining");
        tracing::info!("draining; a second signal ends at once");
        tokio::select! {
            () = self.drain() => {}
            () = signals.next() => tracing::warn!("ended by a second signal"),
        }
        Ok(())
    }

    /// Stops: readiness down, then no new connections, then what fits into the grace, then the rest is told.
    pub async fn drain(mut self) {
        let drain = self.parts.config.drain;
        let phases = &self.parts.phases;
        phases.enter(Phase::Leaving);
        tokio::time::sleep(drain.delay).await;
        // What is sent in the last moment would not be answered within the grace.
        let sending = drain.grace.saturating_sub(ANSWER_MARGIN.min(drain.grace / 4));
        self.parts.queue.drain(Instant::now() + sending);
        phases.enter(Phase::Draining);
        if let Err(error) = (&mut self.serving).await {
            tracing::error!(%error, "the listener had ended before");
        }
        if timeout(drain.grace, self.all_ended()).await.is_err() {
            self.parts.queue.drain(Instant::now());
            phases.enter(Phase::Over);
            drop(timeout(LAST_WORDS, self.terms.all_closed()).await);
        }
        phases.enter(Phase::Over);
        if let Some(quota) = &self.parts.quota {
            quota.leave().await;
        }
        tracing::info!("drained");
    }

    /// Every caller is answered, and every attempt has its end, also those whose callers have gone.
    async fn all_ended(&self) {
        self.terms.all_closed().await;
        self.parts.attempts.close();
        self.parts.attempts.wait().await;
    }
}

/// Lowers `max_connections` to what the descriptors suffice for. Each caller's connection may need another one to CAMS,
/// and some are kept for the admin port and for files.
fn bound_connections(listen: &mut Listen) {
    let descriptors = rlimit::increase_nofile_limit(u64::MAX).unwrap_or(1024);
    let descriptors = usize::try_from(descriptors).unwrap_or(usize::MAX);
    let affordable = (descriptors - KEPT_DESCRIPTORS.min(descriptors / 4)) / 2;
    if affordable < listen.max_connections {
        let set = listen.max_connections;
        tracing::warn!(
            set,
            affordable,
            descriptors,
            "listen.max_connections is lowered: raise the limit of open files"
        );
        listen.max_connections = affordable.max(1);
    }
}

// === impl Parts ===

impl Parts {
    /// `config` with the addresses that were in fact bound.
    pub(crate) fn new(config: Config) -> anyhow::Result<Self> {
        let own = [&config.listen.proxy, &config.listen.admin].into_iter().filter_map(Bind::address).collect();
        let metrics = Arc::new(Metrics::new());
        let upstream = Arc::new(Upstream::new(&config.upstream, own)?);
        let quota = config
            .quota
            .store
            .as_ref()
            .map(|store| Quota::open(store, config.quota.on_store_failure, metrics.clone()))
            .transpose()?;
        Ok(Self {
            certificates: config.listen.tls.as_ref().map(|tls| Arc::new(Certificates::new(tls, &metrics))),
            directory: Directory::new(&config),
            nonces: Nonces::new(SystemTime::now()),
            margins: Margins::default(),
            queue: Queue::new(&config, upstream.clone(), (metrics.clone(), quota.clone()), Instant::now()),
            quota,
            upstream,
            metrics,
            phases: Phases::new(),
            unverified: Room::new(UNVERIFIED_BYTES),
            attempts: TaskTracker::new(),
            config,
        })
    }

    /// Where Flowgate stands, in one line. It is had under every lock of the queue and the pool's.
    fn status(&self) -> String {
        let (lanes, waiting) = self.queue.count();
        let accounts = self.config.accounts.len();
        let phase = if self.phases.now() == Phase::Serving { "serving" } else { "draining" };
        let upstream = if self.upstream.reach() == Reach::Up { "" } else { ", CAMS cannot be reached" };
        format!("{phase}: accounts {accounts}, lanes {lanes}, waiting {waiting}{upstream}")
    }
}

/// Forgets idle lanes and old nonces for as long as anybody needs them.
async fn sweep(parts: std::sync::Weak<Parts>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let Some(parts) = parts.upgrade() else { return };
        parts.queue.forget_idle();
        parts.nonces.forget_idle(SystemTime::now());
    }
}

// === impl Proxy ===

impl Answer for Proxy {
    fn answer(
        &self,
        request: Box<Request<Incoming>>,
        hangup: Hangup,
    ) -> impl Future<Output = Result<Response<Full<Bytes>>, Gone>> + Send {
        flow::call(&self.0, request, hangup)
    }

    fn no_request(&self) {
        self.0.metrics.ended("unknown", "other", Outcome::Invalid);
    }
}

// === impl Upstream ===

impl Connector for Upstream {
    type Connection = Connection;

    fn try_ready(&self) -> Option<Connection> {
        Upstream::try_ready(self)
    }

    async fn ready(&self, wanted: usize) -> Connection {
        Upstream::ready(self, wanted).await
    }

    fn is_usable(connection: &Connection) -> bool {
        connection.is_usable()
    }

    fn down(&self) -> Option<String> {
        match self.reach() {
            Reach::Up => None,
            Reach::Down { reason, .. } => Some(reason.to_string()),
        }
    }
}
