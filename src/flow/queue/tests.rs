//! The queue in simulated time: exact instants, random storms, an endpoint that enforces the limit.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU64};

use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};

use super::*;
use crate::config::{self, Limit, Retry};
use crate::id::{ClientId, TenantId};
use crate::store::State;

mod endpoint;
mod learning;
mod orders;
mod pauses;
mod prediction;
mod reload;
mod replicas;
mod shares;
mod sources;
mod storm;

const GAP: Duration = Duration::from_millis(5);
const SECOND: Duration = Duration::from_secs(1);

/// Connections are ready at once, or after `delay`, or not at all.
#[derive(Default)]
struct Door {
    delay_ms: AtomicU64,
    shut: AtomicBool,
    open: AtomicU64,
    /// The most connections that were wanted at once.
    wanted: AtomicU64,
    /// The next wait for a connection panics.
    trapped: AtomicBool,
}

struct Held(Arc<Door>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Doors(Arc<Door>);

impl Doors {
    fn one(&self) -> Held {
        self.0.open.fetch_add(1, Ordering::Relaxed);
        Held(self.0.clone())
    }
}

impl Connector for Doors {
    type Connection = Held;

    fn try_ready(&self) -> Option<Held> {
        let at_once = self.0.delay_ms.load(Ordering::Relaxed) == 0 && !self.0.shut.load(Ordering::Relaxed);
        at_once.then(|| self.one())
    }

    async fn ready(&self, wanted: usize) -> Held {
        self.0.wanted.fetch_max(wanted as u64, Ordering::Relaxed);
        sleep(Duration::from_millis(self.0.delay_ms.load(Ordering::Relaxed))).await;
        assert!(!self.0.trapped.swap(false, Ordering::Relaxed), "the trap");
        while self.0.shut.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(10)).await;
        }
        self.one()
    }

    fn is_usable(_: &Held) -> bool {
        true
    }

    fn down(&self) -> Option<String> {
        self.0.shut.load(Ordering::Relaxed).then(|| "the door is shut".into())
    }
}

struct World {
    queue: Arc<Queue<Doors>>,
    door: Arc<Door>,
    metrics: Arc<Metrics>,
    bounds: config::Queue,
}

impl World {
    /// A queue in a process that started long enough ago for all tokens to be free.
    async fn new(gap: Duration) -> Self {
        Self::with(gap, |_| {}).await
    }

    /// The only replica that uses this server, when it may send.
    async fn sharing(server: &crate::servers::Redis) -> Self {
        Self::replica(server.port, format!("test{}:", fastrand::u64(..))).await
    }

    /// One of the replicas that share this prefix, when it may send.
    async fn replica(port: u16, prefix: String) -> Self {
        let mut world = Self::since(Instant::now() - 10 * SECOND, GAP, |_| {});
        let settings = config::Store { prefix, ..config::Store::on(config::Topology::Single, &[port]) };
        let quota = Quota::open(&settings, config::OnStoreFailure::Share, world.metrics.clone()).unwrap();
        Arc::get_mut(&mut Arc::get_mut(&mut world.queue).unwrap().shared).unwrap().quota = Some(quota.clone());
        let queue = world.queue.clone();
        let quota_changes = quota.changes();
        tokio::spawn(quota.keep(move || queue.refresh()));
        let mut changes = quota_changes;
        changes.wait_for(|state| matches!(state, State::Up { .. })).await.unwrap();
        sleep(SECOND + 30 * GAP).await;
        world
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
        let door = Arc::new(Door::default());
        let metrics = Arc::new(Metrics::new());
        let learn = config::Learn { gap, max_gap: 8 * gap };
        let rules = Rules { limits: BTreeMap::new(), bounds: bounds.clone(), retry: RETRY, learn };
        let shared = Shared {
            mode: Mode::Enforce,
            connector: Arc::new(Doors(door.clone())),
            metrics: metrics.clone(),
            rules: ArcSwap::from_pointee(rules),
            quota: None,
            started,
            room: Room::new(bounds.max_bytes),
            client_rooms: DashMap::new(),
            drain_by: Mutex::default(),
        };
        let queue = Queue { lanes: DashMap::new(), shared: Arc::new(shared), next_place: AtomicU64::new(0) };
        Self { queue: Arc::new(queue), door, metrics, bounds }
    }

    fn arrive(&self, hold: Duration) -> Result<Call<Doors>, Refusal> {
        self.queue.arrive(&operation("a", hold), 100)
    }

    fn view(&self) -> LaneView {
        self.queue.lanes().pop().expect("there is a lane")
    }

    /// (granted, spent, returned) of all lanes.
    fn tokens(&self) -> (u64, u64, u64) {
        let lane = self.metrics.lane("acme");
        (lane.granted.get(), lane.spent.get(), lane.returned.get())
    }
}

const RETRY: Retry = Retry {
    max_attempts: 10,
    base: Duration::from_millis(200),
    max: Duration::from_secs(8),
    max_pause: Duration::from_secs(60),
};

fn operation(client: &str, hold: Duration) -> Operation {
    let limit = Limit { count: NonZeroU32::new(5).unwrap(), window: SECOND };
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
    sends.iter().enumerate().map(|(i, at)| sends[i..].partition_point(|other| *other < *at + SECOND)).max().unwrap_or(0)
}

#[tokio::test(start_paused = true)]
async fn sixty_at_once_leave_in_eleven_seconds_and_eleven_gaps() {
    let world = World::new(GAP).await;
    let start = Instant::now();
    let mut calls = JoinSet::new();
    for index in 0..60_u32 {
        let mut call = world.arrive(120 * SECOND).unwrap();
        calls.spawn(async move {
            call.turn().await.unwrap().spend().unwrap().1.answered();
            (index, start.elapsed())
        });
    }
    let left: BTreeMap<u32, Duration> = calls.join_all().await.into_iter().collect();
    for (index, at) in left {
        assert_eq!(at, (SECOND + GAP) * (index / 5), "call {index}");
    }
    assert_eq!(world.tokens(), (60, 60, 0));
}

#[tokio::test(start_paused = true)]
async fn the_fifth_call_after_idleness_waits_nothing_and_the_sixth_a_window() {
    let world = World::new(GAP).await;
    for _round in 0..3 {
        let start = Instant::now();
        for index in 0..6 {
            world.arrive(30 * SECOND).unwrap().turn().await.unwrap().spend().unwrap().1.answered();
            let expected = if index < 5 { Duration::ZERO } else { SECOND + GAP };
            assert_eq!(start.elapsed(), expected);
        }
        sleep(3 * SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_leaves_in_the_first_second_of_a_process() {
    let mut world = World::new(GAP).await;
    let shared = Arc::get_mut(&mut Arc::get_mut(&mut world.queue).unwrap().shared).unwrap();
    shared.started = Instant::now();
    let start = Instant::now();
    world.arrive(30 * SECOND).unwrap().turn().await.unwrap().spend().unwrap().1.answered();
    assert_eq!(start.elapsed(), SECOND + GAP);
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_is_not_used_goes_to_the_next_at_once() {
    let world = World::new(GAP).await;
    let mut turns = Vec::new();
    for _ in 0..5 {
        turns.push(world.arrive(30 * SECOND).unwrap().turn().await.unwrap());
    }
    let mut sixth = world.arrive(30 * SECOND).unwrap();
    let start = Instant::now();
    let waiting = tokio::spawn(async move { sixth.turn().await.map(|turn| (turn, Instant::now())) });
    sleep(Duration::from_millis(70)).await;
    turns.pop();
    let (_turn, at) = waiting.await.unwrap().unwrap();
    assert_eq!(at - start, Duration::from_millis(70));
    assert_eq!(world.tokens(), (6, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn whoever_leaves_in_whatever_subset_nobody_hangs() {
    for seed in 0..200 {
        let mut random = fastrand::Rng::with_seed(seed);
        let world = World::new(GAP).await;
        let mut stay = Vec::new();
        let mut leave = Vec::new();
        for _ in 0..20 {
            let mut call = world.arrive(120 * SECOND).unwrap();
            let task = tokio::spawn(async move {
                call.turn().await.unwrap().spend().unwrap().1.answered();
            });
            if random.bool() { stay.push(task) } else { leave.push(task) }
        }
        sleep(Duration::from_millis(random.u64(0..2500))).await;
        leave.iter().for_each(tokio::task::JoinHandle::abort);
        for task in stay {
            task.await.unwrap();
        }
        sleep(2 * SECOND).await;
        world.queue.forget_idle();
        assert!(world.queue.lanes().is_empty(), "seed {seed}: the lane is at rest");
        let (granted, spent, returned) = world.tokens();
        assert_eq!(granted, spent + returned, "seed {seed}");
        assert_eq!(world.door.open.load(Ordering::Relaxed), 0, "seed {seed}: connections are given back");
    }
}

/// Pauses the lane by a refusal with this hint.
async fn pause(world: &World, hint: Duration) {
    let (_, receipt) = world.arrive(30 * SECOND).unwrap().turn().await.unwrap().spend().unwrap();
    receipt.throttled(Some(hint));
}

#[tokio::test(start_paused = true)]
async fn the_hold_ends_a_wait_that_no_forecast_saw_coming() {
    let world = World::new(GAP).await;
    world.door.delay_ms.store(60_000, Ordering::Relaxed);
    let start = Instant::now();
    let refusal = world.arrive(5 * SECOND).unwrap().turn().await.err().unwrap();
    assert_eq!((refusal.kind, start.elapsed()), (Kind::HoldExpired, 5 * SECOND));
    assert!(refusal.retry_after.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_call_that_comes_back_after_its_hold_is_not_sent() {
    let world = World::new(GAP).await;
    let mut call = world.arrive(5 * SECOND).unwrap();
    let (_, receipt) = call.turn().await.unwrap().spend().unwrap();
    sleep(20 * SECOND).await;
    receipt.throttled(Some(SECOND));
    sleep(2 * SECOND).await;
    assert_eq!(call.turn().await.err().unwrap().kind, Kind::HoldExpired);
}

#[tokio::test(start_paused = true)]
async fn connections_for_all_who_could_go_are_asked_for_side_by_side() {
    let world = World::new(GAP).await;
    world.door.delay_ms.store(100, Ordering::Relaxed);
    let mut calls = JoinSet::new();
    for _ in 0..9 {
        let mut call = world.arrive(30 * SECOND).unwrap();
        calls.spawn(async move { call.turn().await.unwrap().spend().unwrap().1.answered() });
    }
    calls.join_all().await;
    assert_eq!(world.door.wanted.load(Ordering::Relaxed), 5);
}

#[tokio::test(start_paused = true)]
async fn a_wait_beyond_the_hold_is_refused_at_once_with_the_honest_rest() {
    let world = World::new(GAP).await;
    for _ in 0..5 {
        world.arrive(30 * SECOND).unwrap().turn().await.unwrap().spend().unwrap().1.answered();
    }
    let mut waiting = Vec::new();
    for _ in 0..25 {
        let mut call = world.arrive(30 * SECOND).unwrap();
        waiting.push(tokio::spawn(async move { call.turn().await.unwrap().spend().unwrap().1.answered() }));
    }
    tokio::task::yield_now().await;
    let refusal = world.arrive(5 * SECOND).unwrap().turn().await.err().unwrap();
    assert_eq!(refusal.kind, Kind::WaitTooLong);
    assert_eq!(refusal.retry_after, Some((SECOND + GAP) * 7 - 5 * SECOND));
    assert_eq!(refusal.queued, Some(crate::error::Queued { ahead: 25, wait: (SECOND + GAP) * 6 }));
    // Those who are refused together are not told to come back together, but one after the other as they can be served.
    for later in 1..10_u32 {
        let refusal = world.arrive(5 * SECOND).unwrap().turn().await.err().unwrap();
        assert_eq!(refusal.retry_after, Some((SECOND + GAP) * 7 - 5 * SECOND + (SECOND + GAP) / 5 * later));
    }
    assert_eq!(world.view().queued, 25);
    for task in waiting {
        task.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn every_bound_of_the_queue_is_kept_and_named() {
    let world = World::with(GAP, |bounds| {
        bounds.max_waiting = 4;
        bounds.max_waiting_per_client = 3;
        bounds.max_bytes = 1000;
    })
    .await;
    for _ in 0..5 {
        world.arrive(30 * SECOND).unwrap().turn().await.unwrap().spend().unwrap().1.answered();
    }
    let mut waiting = Vec::new();
    for client in ["a", "a", "a", "a", "b", "b"] {
        let mut call = world.queue.arrive(&operation(client, 30 * SECOND), 100).unwrap();
        waiting.push(tokio::spawn(async move { call.turn().await.map(drop).map_err(|refusal| refusal.message) }));
        tokio::task::yield_now().await;
    }
    let mut ends = Vec::new();
    for task in waiting.drain(..) {
        ends.push(task.await.unwrap());
    }
    let client_full = Err("This client's part of the queue of 3 waiting calls is full.".to_owned());
    // The second of b finds four waiting; a has the most, so its newest makes room.
    let evicted = Err("The queue of 4 waiting calls is full.".to_owned());
    assert_eq!(ends, [Ok(()), Ok(()), evicted, client_full, Ok(()), Ok(())]);
    // Each call has 100 bytes of the 1000; a client may have half of them.
    let arrive = |client| world.queue.arrive(&operation(client, 30 * SECOND), 100);
    let why = |client| arrive(client).err().unwrap().message;
    let of_a: Vec<_> = (0..5).map(|_| arrive("a").unwrap()).collect();
    assert_eq!(why("a"), "This client's part of Flowgate's memory for queued calls is full.");
    let of_b: Vec<_> = (0..5).map(|_| arrive("b").unwrap()).collect();
    assert_eq!(why("c"), "Flowgate's memory for queued calls is full.");
    drop((of_a, of_b));
    assert!(arrive("c").is_ok());
    world.queue.forget_idle();
    assert!(world.queue.shared.client_rooms.is_empty());
    assert_eq!(world.bounds.max_bytes, 1000);
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_is_down_is_named_when_the_hold_ends() {
    let world = World::new(GAP).await;
    world.door.shut.store(true, Ordering::Relaxed);
    let start = Instant::now();
    let refusal = world.arrive(3 * SECOND).unwrap().turn().await.err().unwrap();
    assert_eq!((refusal.kind, start.elapsed()), (Kind::UpstreamUnreachable, 3 * SECOND));
    assert_eq!(world.tokens(), (0, 0, 0));
    let mut call = world.arrive(30 * SECOND).unwrap();
    let waiting = tokio::spawn(async move { call.turn().await.unwrap().spend().unwrap().1.answered() });
    sleep(SECOND).await;
    world.door.shut.store(false, Ordering::Relaxed);
    waiting.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_panics_is_replaced_and_its_line_is_served() {
    let world = World::new(GAP).await;
    world.door.delay_ms.store(1, Ordering::Relaxed);
    world.door.trapped.store(true, Ordering::Relaxed);
    let mut calls = JoinSet::new();
    for _ in 0..7 {
        let mut call = world.arrive(30 * SECOND).unwrap();
        calls.spawn(async move { call.turn().await.unwrap().spend().unwrap().1.answered() });
    }
    assert_eq!(calls.join_all().await.len(), 7);
    assert!(!world.door.trapped.load(Ordering::Relaxed), "the trap was sprung");
}

#[tokio::test(start_paused = true)]
async fn draining_keeps_what_fits_and_tells_the_rest_at_once() {
    let world = World::new(GAP).await;
    let start = Instant::now();
    let mut calls = JoinSet::new();
    for index in 0..40_u32 {
        let mut call = world.arrive(120 * SECOND).unwrap();
        calls.spawn(async move {
            let end = call.turn().await.map(|turn| turn.spend().unwrap().1.answered()).map_err(|refusal| refusal.kind);
            (index, end, start.elapsed())
        });
    }
    sleep(Duration::from_millis(1)).await;
    world.queue.drain(start + 5 * SECOND);
    let ends: BTreeMap<_, _> = calls.join_all().await.into_iter().map(|(i, end, at)| (i, (end, at))).collect();
    for (index, (end, at)) in ends {
        if index < 25 {
            assert_eq!((end, at), (Ok(()), (SECOND + GAP) * (index / 5)));
        } else {
            assert_eq!((end, at), (Err(Kind::Draining), Duration::from_millis(1)));
        }
    }
    sleep_until(start + 6 * SECOND).await;
    assert_eq!(world.arrive(30 * SECOND).unwrap().turn().await.err().map(|r| r.kind), Some(Kind::Draining));
}

#[tokio::test(start_paused = true)]
async fn an_action_without_a_limit_needs_no_lane() {
    let world = World::new(GAP).await;
    let mut free = operation("a", SECOND);
    free.limit = None;
    let start = Instant::now();
    for _ in 0..1000 {
        world.queue.arrive(&free, 0).unwrap().turn().await.unwrap().spend().unwrap().1.answered();
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert!(world.queue.lanes().is_empty());
}
