//! The limiter in simulated time: exact instants, random storms, an endpoint that enforces the
//! limit.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use arc_swap::ArcSwap;
use dashmap::DashMap;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::config::{self, Config, Limit, Mode, Retry};
use crate::error::{Kind, Refusal};
use crate::limiter::drain::DrainDeadlines;
use crate::limiter::inner::LimiterInner;
use crate::limiter::registry::LimitedCall;
use crate::limiter::routes::Routes;
use crate::limiter::rules::Rules;
use crate::limiter::shared::Quota;
use crate::limiter::shared::protocol::{Answer, DatedSlot, View};
use crate::limiter::shared::slots::{Slots, Start};
use crate::limiter::source::Source;
use crate::limiter::{Command, Connector, LaneView, Limiter, Receipt, view};
use crate::observe::history::History;
use crate::observe::metrics::Metrics;
use crate::operation::Operation;
use crate::primitives::byte_budget::ByteBudget;
use crate::primitives::id::{AccountId, ActionName, ClientId, TenantId};
use crate::store::State;

mod bounds;
mod commands;
mod endpoint;
mod history;
mod learning;
mod pauses;
mod prediction;
mod reload;
mod replicas;
mod shares;
mod sources;
mod storm;
mod turns;

const GAP: Duration = Duration::from_millis(5);
const SECOND: Duration = Duration::from_secs(1);

/// Connections are ready at once, or after `delay`, or not at all.
#[derive(Default)]
struct ConnectorState {
    delay_ms: AtomicU64,
    is_down: AtomicBool,
    open: AtomicU64,
    /// The most connections that were requested at once.
    wanted: AtomicU64,
    /// How long it takes to look up whether a connection is ready.
    lookup_ms: AtomicU64,
    /// The next wait for a connection panics.
    panics: AtomicBool,
}

struct TestConnection(Arc<ConnectorState>);

impl Drop for TestConnection {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

struct TestConnector(Arc<ConnectorState>);

impl TestConnector {
    fn open(&self) -> TestConnection {
        self.0.open.fetch_add(1, Ordering::Relaxed);
        TestConnection(self.0.clone())
    }

    /// Advances the time by the duration of a lookup, as if this task were not scheduled meanwhile.
    fn spend_lookup_time(&self) {
        let lookup = Duration::from_millis(self.0.lookup_ms.load(Ordering::Relaxed));
        if !lookup.is_zero() {
            let mut advance = pin!(tokio::time::advance(lookup));
            // The first poll advances the clock. The second would complete the future.
            assert!(
                advance
                    .as_mut()
                    .poll(&mut Context::from_waker(Waker::noop()))
                    .is_pending()
            );
        }
    }
}

impl Connector for TestConnector {
    type Connection = TestConnection;

    fn try_ready(&self) -> Option<TestConnection> {
        self.spend_lookup_time();
        let at_once =
            self.0.delay_ms.load(Ordering::Relaxed) == 0 && !self.0.is_down.load(Ordering::Relaxed);
        at_once.then(|| self.open())
    }

    async fn ready(&self, wanted: usize) -> TestConnection {
        self.0.wanted.fetch_max(wanted as u64, Ordering::Relaxed);
        sleep(Duration::from_millis(
            self.0.delay_ms.load(Ordering::Relaxed),
        ))
        .await;
        assert!(
            !self.0.panics.swap(false, Ordering::Relaxed),
            "a test panic"
        );
        while self.0.is_down.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(10)).await;
        }
        self.open()
    }

    fn is_usable(&self, connection: &TestConnection) -> bool {
        Arc::ptr_eq(&self.0, &connection.0)
    }

    fn down(&self) -> Option<String> {
        self.0
            .is_down
            .load(Ordering::Relaxed)
            .then(|| "the connector is down".into())
    }
}

struct Harness {
    queue: Arc<Limiter<TestConnector>>,
    connector: Arc<ConnectorState>,
    metrics: Arc<Metrics>,
    bounds: config::Queue,
}

impl Harness {
    /// A limiter in a process that started long enough ago for all tokens to be free.
    async fn new(gap: Duration) -> Self {
        Self::with(gap, |_| {}).await
    }

    /// The only replica that uses this server, when it may send.
    async fn sharing(server: &crate::servers::Redis) -> Self {
        Self::replica(server.port, format!("test{}:", fastrand::u64(..))).await
    }

    /// One of the replicas that share this prefix, when it may send.
    async fn replica(port: u16, prefix: String) -> Self {
        let mut harness = Self::since(Instant::now() - 10 * SECOND, GAP, |_| {});
        let settings = config::Store {
            prefix,
            ..config::Store::on(config::Topology::Single, &[port])
        };
        let quota = Quota::open(
            &settings,
            config::OnStoreFailure::Share,
            harness.metrics.clone(),
        )
        .unwrap();
        Arc::get_mut(&mut Arc::get_mut(&mut harness.queue).unwrap().inner)
            .unwrap()
            .quota = Some(quota.clone());
        let queue = harness.queue.clone();
        let quota_changes = quota.changes();
        tokio::spawn(quota.keep(move || queue.update_sources()));
        let mut changes = quota_changes;
        changes
            .wait_for(|state| matches!(state, State::Up { .. }))
            .await
            .unwrap();
        sleep(SECOND + 30 * GAP).await;
        harness
    }

    async fn with(gap: Duration, change: impl FnOnce(&mut config::Queue)) -> Self {
        let started = Instant::now();
        sleep(10 * SECOND).await;
        Self::since(started, gap, change)
    }

    fn since(started: Instant, gap: Duration, change: impl FnOnce(&mut config::Queue)) -> Self {
        let mut bounds = config::Queue {
            tenant: config::Tenant::CustSpaceId,
            max_waiting: 10_000,
            max_waiting_per_client: 5_000,
            max_bytes: 1 << 20,
            hold: config::Hold::Auto,
            max_hold: 120 * SECOND,
        };
        change(&mut bounds);
        let connector = Arc::new(ConnectorState::default());
        let metrics = Arc::new(Metrics::new());
        let learn = config::Learn {
            gap,
            max_gap: 8 * gap,
        };
        let mut config = config::load(None, []).unwrap().config;
        (config.limits, config.queue, config.retry, config.learn) =
            (BTreeMap::new(), bounds.clone(), RETRY, learn);
        let rules = Rules::new(&config, started);
        let inner = LimiterInner {
            mode: Mode::Enforce,
            routes: ArcSwap::from_pointee(Routes::from(Arc::new(TestConnector(connector.clone())))),
            metrics: metrics.clone(),
            rules: ArcSwap::from_pointee(rules),
            quota: None,
            started,
            budget: ByteBudget::new(bounds.max_bytes),
            client_budgets: DashMap::new(),
            drain_by: DrainDeadlines::default(),
        };
        let queue = Limiter {
            lanes: DashMap::new(),
            inner: Arc::new(inner),
            next_sequence: AtomicU64::new(0),
            history: History::new(started),
        };
        Self {
            queue: Arc::new(queue),
            connector,
            metrics,
            bounds,
        }
    }

    /// Sets a source in which the store has dealt `slots` slots, dated now, with `usable` tokens.
    fn set_dealt(&self, slots: usize, usable: u32) {
        let now = Instant::now();
        let slack = Duration::from_millis(15);
        let dated = DatedSlot {
            at: 0,
            back: 1_020_000,
            slack: 15_000,
            probe: false,
        };
        let view = View {
            usable,
            gap: 5000,
            away: 1_020_000,
            share: 1_000_000,
            ..View::default()
        };
        let view = View {
            slots: vec![dated; slots],
            ..view
        };
        let limit = Limit {
            count: NonZeroU32::new(5).unwrap(),
            window: SECOND,
        };
        let mut tokens = Slots::new(&Start {
            limit,
            gap: GAP,
            slack,
            distance: Duration::ZERO,
            from: now,
        });
        let number = tokens.next_request(1, now).number;
        tokens.answered(
            number,
            &Answer {
                view,
                sent: now,
                received: now,
            },
            now,
        );
        self.set_source(Source::Shared(Box::new(tokens)));
    }

    /// Replaces the lane's token source.
    fn set_source(&self, source: Source) {
        self.queue
            .lane(&operation("a", SECOND))
            .lock()
            .state
            .lane
            .set_source(source);
    }

    fn arrive(&self, hold: Duration) -> Result<LimitedCall<TestConnector>, Refusal> {
        self.queue.arrive(&operation("a", hold), 100)
    }

    fn view(&self) -> LaneView {
        self.queue.lanes().pop().expect("there is a lane")
    }

    /// (granted, spent, returned) of all lanes.
    fn tokens(&self) -> (u64, u64, u64) {
        let lane = self.metrics.calls(operation("a", SECOND).labels());
        (lane.granted.get(), lane.spent.get(), lane.returned.get())
    }
}

const RETRY: Retry = Retry {
    max_attempts: 10,
    base: Duration::from_millis(200),
    max: Duration::from_secs(8),
    max_pause: Duration::from_secs(60),
    reads: false,
};

fn operation(client: &str, hold: Duration) -> Operation {
    let limit = Limit {
        count: NonZeroU32::new(5).unwrap(),
        window: SECOND,
    };
    Operation {
        account: AccountId::new("acme"),
        known: true,
        weight: 1,
        client: ClientId::new(client),
        tenant: TenantId::new(""),
        action: ActionName::new("CreateFlow"),
        limit: Some(limit),
        hold,
        wait: hold,
    }
}

/// The most sends in any half-open second.
fn worst_second(sends: &[Instant]) -> usize {
    let mut sends = sends.to_vec();
    sends.sort();
    sends
        .iter()
        .enumerate()
        .map(|(i, at)| sends[i..].partition_point(|other| *other < *at + SECOND))
        .max()
        .unwrap_or(0)
}

/// Pauses the lane by a throttle refusal with this hint.
async fn pause(harness: &Harness, hint: Duration) {
    let (_, receipt) = harness
        .arrive(30 * SECOND)
        .unwrap()
        .permit()
        .await
        .unwrap()
        .spend()
        .unwrap();
    receipt.throttled(Some(hint));
}
