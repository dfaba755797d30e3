//! Joins the parts: takes the configuration, starts a running Flowgate, and drains it at the end.

mod journal;
pub(crate) mod reload;
pub(crate) mod start_error;
pub(crate) mod state;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::Full;
use hyper::http::request;
use hyper::{Request, Response};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::admin::Admin;
use crate::app::reload::Reloader;
use crate::app::start_error::StartError;
use crate::app::state::{AppState, sample, sweep};
use crate::call;
use crate::call::services::CallServices;
use crate::config::{Bind, Config, Loaded, Source};
use crate::error::Outcome;
use crate::limiter::shared::Quota;
use crate::process::hardening;
use crate::process::shutdown::{Phase, Signals};
use crate::process::systemd::{self, InheritedSocket, InheritedSockets};
use crate::server::bounds;
use crate::server::head_error::HeadError;
use crate::server::received_body::ReceivedBody;
use crate::server::runtime_pool::RuntimePool;
use crate::server::socket::Disconnect;
use crate::server::{CallerDisconnected, ConnectionServer, Handler, Listener};

/// A running Flowgate.
pub struct App {
    pub(crate) state: Arc<AppState>,
    proxy_server: Arc<ConnectionServer>,
    /// The accept loop. Ends when a drain begins, which closes the listener.
    serving: JoinHandle<()>,
    /// Installed before readiness is reported; see `start_from`.
    signals: Option<Signals>,
}

/// The proxy port's service.
#[derive(Clone)]
struct Proxy(Arc<CallServices>);

/// Part of the grace that is reserved for CAMS's answer to the last call sent; at most a quarter of
/// the grace.
const ANSWER_MARGIN: Duration = Duration::from_secs(2);
/// How long a drain waits for the first request on a connection that was just accepted.
const FIRST_REQUEST_WAIT: Duration = Duration::from_secs(1);
/// How long callers have to read their last answer when the grace is over.
const LAST_ANSWER_WAIT: Duration = Duration::from_secs(1);

// === impl App ===

impl App {
    /// Starts with the loaded configuration. Reads `source` again on SIGHUP and when its files
    /// change.
    pub async fn start_from(
        source: Source,
        loaded: Loaded,
        inherited: InheritedSockets,
        runtimes: Vec<Handle>,
    ) -> anyhow::Result<Self> {
        // Before readiness is reported: a signal without a handler would end the process.
        let signals = Signals::new().context("cannot listen for signals")?;
        let (reloader, reload) =
            Reloader::new(source, &loaded).context("cannot listen for SIGHUP")?;
        let app = Self::start_on(loaded.config, inherited, runtimes).await?;
        let current_config = &app.state.calls().current_config;
        current_config.set_reload_handle(reload, loaded.warnings);
        tokio::spawn(reloader.run(Arc::downgrade(&app.state)));
        Ok(Self {
            signals: Some(signals),
            ..app
        })
    }

    /// Binds both listeners and starts to serve. Must be called inside a tokio runtime, which runs
    /// everything.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        Self::start_on(config, InheritedSockets::default(), Vec::new()).await
    }

    /// Like [`App::start`], on the sockets that were passed by a parent process; a socket that was
    /// not passed is bound here. Callers' connections are distributed over `runtimes`, or served by
    /// the current runtime if there are none. The runtimes must outlive the current one.
    pub async fn start_on(
        mut config: Config,
        inherited: InheritedSockets,
        runtimes: Vec<Handle>,
    ) -> anyhow::Result<Self> {
        let mode = config.listen.socket_mode;
        let proxy = open(inherited.proxy, &config.listen.proxy, mode, "listen.proxy").await?;
        let admin = open(inherited.admin, &config.listen.admin, mode, "listen.admin").await?;
        config.listen.proxy = proxy.bound().context("listen.proxy has no address")?;
        config.listen.admin = admin.bound().context("listen.admin has no address")?;
        bounds::fit_to_descriptors(&mut config.listen);
        hardening::survive_file_limits().context("cannot catch SIGXFSZ")?;
        let state = Arc::new(AppState::new(config)?);
        let calls = state.calls();
        if let Some(quota) = &calls.quota {
            keep_quota(quota, calls).await?;
        }
        let proxy_server = ConnectionServer::new(
            state.bounds(),
            state.certificates(),
            calls.metrics.clone(),
            calls.phases.clone(),
            Phase::Draining,
        );
        let admin_server = ConnectionServer::new(
            state.bounds(),
            None,
            calls.metrics.clone(),
            calls.phases.clone(),
            Phase::Over,
        );
        let pages = Admin::new(calls.clone());
        tokio::spawn(admin_server.serve(admin, pages, RuntimePool::default()));
        let service = Proxy(calls.clone());
        let serving = tokio::spawn(proxy_server.clone().serve(
            proxy,
            service,
            RuntimePool::over(runtimes),
        ));
        tokio::spawn(sweep(Arc::downgrade(&state)));
        tokio::spawn(journal::end_sharing(Arc::downgrade(calls)));
        tokio::spawn(sample(Arc::downgrade(calls)));
        tokio::spawn(call::looks::run(Arc::downgrade(calls)));
        log_ready(&state);
        Ok(Self {
            state,
            proxy_server,
            serving,
            signals: None,
        })
    }

    /// The address for an SDK's endpoint; `None` on a Unix socket.
    pub fn proxy_address(&self) -> Option<SocketAddr> {
        self.state
            .calls()
            .current_config
            .load()
            .config
            .listen
            .proxy
            .address()
    }

    /// The address of `/metrics` and the other admin pages; `None` on a Unix socket.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.state
            .calls()
            .current_config
            .load()
            .config
            .listen
            .admin
            .address()
    }

    /// Serves until SIGTERM or SIGINT, then drains; a second signal ends the drain immediately.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let signals = self.signals.take().map_or_else(Signals::new, Ok);
        let mut signals = signals.context("cannot listen for signals")?;
        systemd::ready(&self.state.status());
        let state = Arc::downgrade(&self.state);
        tokio::spawn(systemd::notify_periodically(move || {
            state.upgrade().map(|state| state.status())
        }));
        signals.next().await;
        systemd::stopping("draining");
        tracing::info!("draining; a second signal exits immediately");
        tokio::select! {
            () = self.drain() => {}
            () = signals.again() => tracing::warn!("drain ended by a second signal"),
        }
        Ok(())
    }

    /// Shuts down in phases: readiness goes down, the listener closes, calls finish within the
    /// grace, and the remaining calls are refused.
    pub async fn drain(mut self) {
        let drain = self.state.calls().current_config.load().config.drain;
        let phases = &self.state.calls().phases;
        phases.enter(Phase::Leaving);
        if drain.hand_over {
            self.state.calls().limiter.hand_over();
        }
        tokio::time::sleep(drain.delay).await;
        // An attempt sent later than this would not be answered within the grace.
        let sending = drain
            .grace
            .saturating_sub(ANSWER_MARGIN.min(drain.grace / 4));
        self.state.calls().limiter.drain(Instant::now() + sending);
        phases.enter(Phase::Draining);
        if let Err(error) = (&mut self.serving).await {
            tracing::error!(%error, "the listener ended before the drain");
        }
        let first = FIRST_REQUEST_WAIT.min(drain.grace);
        let mut ended = timeout(first, self.all_ended()).await;
        if ended.is_err() {
            phases.enter(Phase::Closing);
            ended = timeout(drain.grace - first, self.all_ended()).await;
        }
        if ended.is_err() {
            self.state.calls().limiter.drain(Instant::now());
            phases.enter(Phase::Over);
            drop(timeout(LAST_ANSWER_WAIT, self.proxy_server.all_closed()).await);
        }
        phases.enter(Phase::Over);
        if let Some(shared) = &self.state.calls().shared_records {
            // Without the store there is nothing to leave.
            drop(shared.leave().await);
        }
        if let Some(quota) = &self.state.calls().quota {
            quota.leave().await;
        }
        if let Some(otlp) = &self.state.calls().telemetry.otlp {
            otlp.finish().await;
        }
        if let Some(journal) = &self.state.calls().journal {
            journal.finish().await;
        }
        tracing::info!("drained");
    }

    /// Waits until every caller is answered and every attempt has ended, including attempts whose
    /// callers have disconnected.
    async fn all_ended(&self) {
        self.proxy_server.all_closed().await;
        self.state.calls().attempts_ended().await;
    }
}

/// Uses the socket that a parent process passed, or binds one.
async fn open(
    passed: Option<InheritedSocket>,
    bind: &Bind,
    mode: u32,
    key: &'static str,
) -> Result<Listener, StartError> {
    let listener = match passed {
        Some(passed) => Listener::adopt(passed, bind),
        None => Listener::bind(bind, mode).await,
    };
    listener.map_err(|error| StartError::Listen {
        bind: bind.clone(),
        key,
        error,
    })
}

/// Checks the store of the shared quota, then keeps its connection in a task of its own.
async fn keep_quota(quota: &Arc<Quota>, calls: &Arc<CallServices>) -> anyhow::Result<()> {
    quota
        .check()
        .await
        .map_err(|why| anyhow::anyhow!("quota.store: {why}"))?;
    if let Some(shared) = &calls.shared_records {
        let (shared, records) = (shared.clone(), calls.records.clone());
        tokio::spawn(async move { shared.keep(|| records.shareable(Instant::now())).await });
    }
    let weak = Arc::downgrade(calls);
    tokio::spawn(quota.clone().keep(move || {
        if let Some(calls) = weak.upgrade() {
            // With 100,000 lanes this takes long, so not on a serving thread. A lane also updates
            // when it is used.
            drop(tokio::task::spawn_blocking(move || {
                calls.limiter.update_sources()
            }));
        }
    }));
    Ok(())
}

fn log_ready(state: &AppState) {
    let config_snapshot = state.calls().current_config.load();
    let config = &config_snapshot.config;
    tracing::info!(
        version = crate::VERSION,
        mode = %config.mode,
        proxy = %config.listen.proxy,
        tls = state.certificates().is_some(),
        admin = %config.listen.admin,
        upstream = config.upstream.host,
        max_connections = config.listen.max_connections,
        accounts = config.accounts.len(),
        clients = config.clients.len(),
        "flowgate is ready"
    );
}

// === impl Proxy ===

impl Handler for Proxy {
    type Body = Full<Bytes>;

    fn answer(
        self,
        request: Box<Request<ReceivedBody>>,
        disconnect: Disconnect,
    ) -> impl Future<Output = Result<Response<Full<Bytes>>, CallerDisconnected>> + Send {
        call::call(self.0, request, disconnect)
    }

    fn refuse_head(
        &self,
        error: HeadError,
        received: &[u8],
        from: Option<IpAddr>,
    ) -> Response<Full<Bytes>> {
        call::unread::head(&self.0, error, received, from)
    }

    fn refuse_connection(&self, head: &request::Parts) -> Response<Full<Bytes>> {
        call::unread::connection(&self.0, head)
    }

    fn no_request(&self) {
        self.0.metrics.ended("unknown", "other", Outcome::Invalid);
    }
}
