//! The one place where the parts are joined: configuration in, a running Flowgate out, and how it stops.

pub(crate) mod reload;
pub(crate) mod start_error;
pub(crate) mod state;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Request, Response};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::admin::Admin;
use crate::app::reload::Reloader;
use crate::app::start_error::StartError;
use crate::app::state::{AppState, sweep};
use crate::call;
use crate::call::services::CallServices;
use crate::config::{Bind, Config, Loaded, Source};
use crate::error::Outcome;
use crate::process::hardening;
use crate::process::shutdown::{Phase, Signals};
use crate::process::systemd::{self, Handed, Passed};
use crate::server::bounds;
use crate::server::socket::Hangup;
use crate::server::spread::Spread;
use crate::server::{Answer, Gone, Listener, Terms};

/// A running Flowgate.
pub struct App {
    pub(crate) state: Arc<AppState>,
    terms: Arc<Terms>,
    /// Ends, and leaves the listener, when a drain begins.
    serving: JoinHandle<()>,
    /// Awaited since before the start was announced.
    signals: Option<Signals>,
}

/// The proxy port's service.
#[derive(Clone)]
struct Proxy(Arc<CallServices>);

/// What CAMS's answer to the last call that is sent in a drain may take; a quarter of a short grace.
const ANSWER_MARGIN: Duration = Duration::from_secs(2);
/// How long a drain waits for the first request of whoever has been let in before it.
const FIRST_WORDS: Duration = Duration::from_secs(1);
/// How long callers have to read their last answer when the grace is over.
const LAST_WORDS: Duration = Duration::from_secs(1);

// === impl App ===

impl App {
    /// Starts with what the source says now, and reads it anew on SIGHUP and when its files change.
    pub async fn start_from(
        source: Source,
        loaded: Loaded,
        handed: Handed,
        runtimes: Vec<Handle>,
    ) -> anyhow::Result<Self> {
        // Before anybody is told that it runs: a signal that nobody awaits ends the process.
        let signals = Signals::new().context("cannot listen for signals")?;
        let (reloader, ask) = Reloader::new(source, &loaded).context("cannot listen for SIGHUP")?;
        let app = Self::start_on(loaded.config, handed, runtimes).await?;
        let settings = &app.state.calls().settings;
        settings.can_be_reread(ask, loaded.warnings);
        tokio::spawn(reloader.run(Arc::downgrade(&app.state)));
        Ok(Self {
            signals: Some(signals),
            ..app
        })
    }

    /// Binds both listeners and begins to serve. Must be called inside a tokio runtime, which does all there is to do.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        Self::start_on(config, Handed::default(), Vec::new()).await
    }

    /// As [`App::start`], on sockets that were bound before, as far as there are any; callers' connections are served by
    /// `runtimes` in turn, if there are any, which must live for as long as the present one.
    pub async fn start_on(
        mut config: Config,
        handed: Handed,
        runtimes: Vec<Handle>,
    ) -> anyhow::Result<Self> {
        let open = async |passed: Option<Passed>, bind: &Bind, key: &'static str| {
            let listener = match passed {
                Some(passed) => Listener::adopt(passed, bind),
                None => Listener::bind(bind, config.listen.socket_mode).await,
            };
            listener.map_err(|error| StartError::Listen {
                bind: bind.clone(),
                key,
                error,
            })
        };
        let proxy = open(handed.proxy, &config.listen.proxy, "listen.proxy").await?;
        let admin = open(handed.admin, &config.listen.admin, "listen.admin").await?;
        config.listen.proxy = proxy.bound().context("listen.proxy has no address")?;
        config.listen.admin = admin.bound().context("listen.admin has no address")?;
        bounds::afford(&mut config.listen);
        hardening::survive_file_limits().context("cannot catch SIGXFSZ")?;
        let state = Arc::new(AppState::new(config)?);
        let calls = state.calls();
        if let Some(quota) = &calls.quota {
            quota
                .check()
                .await
                .map_err(|why| anyhow::anyhow!("quota.store: {why}"))?;
            let weak = Arc::downgrade(calls);
            tokio::spawn(quota.clone().keep(move || {
                if let Some(calls) = weak.upgrade() {
                    // There may be 100,000 lanes: not on a thread that serves calls. Each looks by itself, too, when it is used.
                    drop(tokio::task::spawn_blocking(move || calls.limiter.refresh()));
                }
            }));
        }
        let settings = calls.settings.load_full();
        let (config, listen) = (&settings.config, &settings.config.listen);
        let terms = |certificates, until| {
            Terms::new(
                state.bounds(),
                certificates,
                calls.metrics.clone(),
                (calls.phases.clone(), until),
            )
        };
        let (terms, admin_terms) = (
            terms(state.certificates(), Phase::Draining),
            terms(None, Phase::Over),
        );
        let (pages, service) = (Admin::new(calls.clone()), Proxy(calls.clone()));
        tokio::spawn(async move { admin_terms.serve(admin, pages, Spread::default()).await });
        let serving = terms.clone();
        let serving =
            tokio::spawn(
                async move { serving.serve(proxy, service, Spread::over(runtimes)).await },
            );
        tokio::spawn(sweep(Arc::downgrade(&state)));
        tracing::info!(
            version = crate::VERSION,
            mode = %config.mode,
            proxy = %listen.proxy,
            tls = state.certificates().is_some(),
            admin = %listen.admin,
            upstream = config.upstream.host,
            max_connections = listen.max_connections,
            accounts = config.accounts.len(),
            clients = config.clients.len(),
            "flowgate is ready"
        );
        Ok(Self {
            state,
            terms,
            serving,
            signals: None,
        })
    }

    /// Where applications point their SDK's endpoint; none on a Unix socket.
    pub fn proxy_address(&self) -> Option<SocketAddr> {
        self.state
            .calls()
            .settings
            .load()
            .config
            .listen
            .proxy
            .address()
    }

    /// Where `/metrics` and the other pages are; none on a Unix socket.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.state
            .calls()
            .settings
            .load()
            .config
            .listen
            .admin
            .address()
    }

    /// Serves until SIGTERM or SIGINT, then drains; a second signal ends the drain at once.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let signals = self.signals.take().map_or_else(Signals::new, Ok);
        let mut signals = signals.context("cannot listen for signals")?;
        systemd::ready(&self.state.status());
        let state = Arc::downgrade(&self.state);
        tokio::spawn(systemd::keep_telling(move || {
            state.upgrade().map(|state| state.status())
        }));
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
        let drain = self.state.calls().settings.load().config.drain;
        let phases = &self.state.calls().phases;
        phases.enter(Phase::Leaving);
        if drain.hand_over {
            self.state.calls().limiter.hand_over();
        }
        tokio::time::sleep(drain.delay).await;
        // What is sent in the last moment would not be answered within the grace.
        let sending = drain
            .grace
            .saturating_sub(ANSWER_MARGIN.min(drain.grace / 4));
        self.state.calls().limiter.drain(Instant::now() + sending);
        phases.enter(Phase::Draining);
        if let Err(error) = (&mut self.serving).await {
            tracing::error!(%error, "the listener had ended before");
        }
        let first = FIRST_WORDS.min(drain.grace);
        let mut ended = timeout(first, self.all_ended()).await;
        if ended.is_err() {
            phases.enter(Phase::Closing);
            ended = timeout(drain.grace - first, self.all_ended()).await;
        }
        if ended.is_err() {
            self.state.calls().limiter.drain(Instant::now());
            phases.enter(Phase::Over);
            drop(timeout(LAST_WORDS, self.terms.all_closed()).await);
        }
        phases.enter(Phase::Over);
        if let Some(quota) = &self.state.calls().quota {
            quota.leave().await;
        }
        if let Some(otlp) = &self.state.calls().sinks.otlp {
            otlp.finish().await;
        }
        if let Some(journal) = &self.state.calls().journal {
            journal.finish().await;
        }
        tracing::info!("drained");
    }

    /// Every caller is answered, and every attempt has its end, also those whose callers have gone.
    async fn all_ended(&self) {
        self.terms.all_closed().await;
        self.state.calls().attempts_ended().await;
    }
}

// === impl Proxy ===

impl Answer for Proxy {
    type Body = Full<Bytes>;

    fn answer(
        self,
        request: Box<Request<Incoming>>,
        hangup: Hangup,
    ) -> impl Future<Output = Result<Response<Full<Bytes>>, Gone>> + Send {
        call::call(self.0, request, hangup)
    }

    fn no_request(&self) {
        self.0.metrics.ended("unknown", "other", Outcome::Invalid);
    }
}
