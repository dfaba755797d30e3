//! The queue in simulated time: exact instants, random storms, an endpoint that enforces the limit.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU64};

use proptest::prelude::*;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};

use super::*;
use crate::config::{Limit, Retry};
use crate::id::{ClientId, TenantId};
use crate::store::State;

mod learning;
mod prediction;
mod replicas;
mod sources;

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
        let settings = config::Store {
            topology: config::Topology::Single,
            servers: vec![config::Server { host: "127.0.0.1".to_owned(), port }],
            tls: false,
            database: 0,
            username: None,
            password: None,
            sentinel_password: None,
            ca_file: None,
            prefix,
            timeout: Duration::from_millis(250),
            lease: Duration::from_secs(600),
            slack: Duration::from_millis(15),
        };
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
        let shared = Shared {
            mode: Mode::Enforce,
            connector: Arc::new(Doors(door.clone())),
            metrics: metrics.clone(),
            bounds: bounds.clone(),
            retry: RETRY,
            learn: config::Learn { gap, max_gap: 8 * gap },
            quota: None,
            started,
            room: Room::new(bounds.max_bytes),
            client_rooms: DashMap::new(),
            drain_by: Mutex::new(None),
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

#[tokio::test(start_paused = true)]
async fn a_throttle_pauses_everybody_then_one_probe_then_the_normal_rate() {
    let world = World::new(GAP).await;
    let start = Instant::now();
    let mut first = world.arrive(30 * SECOND).unwrap();
    let (_, receipt) = first.turn().await.unwrap().spend().unwrap();
    sleep(Duration::from_millis(20)).await;
    receipt.throttled(Some(3 * SECOND));
    let mut calls = JoinSet::new();
    for index in 0..4 {
        let mut call = world.arrive(30 * SECOND).unwrap();
        calls.spawn(async move {
            let (_, receipt) = call.turn().await.unwrap().spend().unwrap();
            let at = start.elapsed();
            sleep(Duration::from_millis(40)).await;
            receipt.answered();
            (index, at.as_millis())
        });
    }
    // The refused call comes back last and still is the probe: it arrived first.
    sleep(Duration::from_millis(100)).await;
    let (_, receipt) = first.turn().await.unwrap().spend().unwrap();
    assert_eq!(start.elapsed().as_millis(), 3020);
    sleep(Duration::from_millis(40)).await;
    receipt.answered();
    let left: BTreeMap<_, _> = calls.join_all().await.into_iter().collect();
    assert_eq!(left.into_values().collect::<Vec<_>>(), [3060, 3060, 3060, 3060]);
}

#[tokio::test(start_paused = true)]
async fn a_lost_probe_does_not_hold_the_lane() {
    let world = World::new(GAP).await;
    let (_, receipt) = world.arrive(30 * SECOND).unwrap().turn().await.unwrap().spend().unwrap();
    receipt.throttled(Some(SECOND));
    let (_, probe) = world.arrive(30 * SECOND).unwrap().turn().await.unwrap().spend().unwrap();
    let mut next = world.arrive(30 * SECOND).unwrap();
    let waiting = tokio::spawn(async move { next.turn().await.map(drop) });
    sleep(SECOND).await;
    assert!(!waiting.is_finished());
    drop(probe);
    waiting.await.unwrap().unwrap();
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
async fn a_slow_probe_stops_the_lane_for_a_second_at_most() {
    let world = World::new(GAP).await;
    pause(&world, SECOND).await;
    let (_, probe) = world.arrive(30 * SECOND).unwrap().turn().await.unwrap().spend().unwrap();
    let start = Instant::now();
    world.arrive(30 * SECOND).unwrap().turn().await.unwrap().spend().unwrap().1.answered();
    assert_eq!(start.elapsed(), SECOND);
    // Should it be refused after all, that is a new episode.
    probe.throttled(Some(SECOND));
    assert!(world.view().pause_remaining_seconds > 0.9);
}

#[tokio::test(start_paused = true)]
async fn whom_a_pause_makes_late_is_told_at_once() {
    let world = World::new(GAP).await;
    let mut receipts = Vec::new();
    for _ in 0..5 {
        receipts.push(world.arrive(30 * SECOND).unwrap().turn().await.unwrap().spend().unwrap().1);
    }
    let start = Instant::now();
    let mut ends = JoinSet::new();
    for (index, hold) in [5, 30, 5, 30].into_iter().enumerate() {
        let mut call = world.arrive(hold * SECOND).unwrap();
        ends.spawn(
            async move { (index, call.turn().await.map(drop).map_err(|refusal| refusal.kind), start.elapsed()) },
        );
    }
    sleep(Duration::from_millis(10)).await;
    receipts.pop().unwrap().throttled(Some(20 * SECOND));
    let ends: BTreeMap<_, _> = ends.join_all().await.into_iter().map(|(index, end, at)| (index, (end, at))).collect();
    let (told, paused) = (Duration::from_millis(10), Duration::from_millis(20_010));
    for index in [0, 2] {
        assert_eq!(ends[&index], (Err(Kind::WaitTooLong), told));
    }
    assert_eq!(ends[&1], (Ok(()), paused));
    assert_eq!(ends[&3].0, Ok(()));
    // A newcomer is told at once, too, and what to wait for.
    pause(&world, 20 * SECOND).await;
    let refusal = world.arrive(5 * SECOND).unwrap().turn().await.err().unwrap();
    // What is left of the pause after its hold, and a window at the gap that two episodes have widened.
    let learned = Duration::from_millis(20);
    assert_eq!((refusal.kind, refusal.retry_after), (Kind::WaitTooLong, Some(15 * SECOND + SECOND + GAP + learned)));
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
async fn a_lane_in_trouble_is_not_forgotten() {
    let world = World::new(GAP).await;
    pause(&world, SECOND).await;
    sleep(10 * SECOND).await;
    world.queue.forget_idle();
    let mut turns = Vec::new();
    turns.push(world.arrive(30 * SECOND).unwrap().turn().await.unwrap());
    let second = tokio::time::timeout(SECOND, async { world.arrive(30 * SECOND).unwrap().turn().await.map(drop) });
    assert!(second.await.is_err(), "one probe goes, nobody else");
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

// === Fair shares ===

/// Queues a call of this client and tenant, which notes its end and when that came.
fn queue(
    world: &World,
    calls: &mut JoinSet<(String, Result<(), Kind>, Instant)>,
    who: (&str, u32, &str),
    hold: Duration,
) {
    let (client, weight, tenant) = who;
    let operation = Operation { weight, tenant: TenantId::new(tenant), ..operation(client, hold) };
    let mut call = world.queue.arrive(&operation, 10).unwrap();
    let client = client.to_owned();
    calls.spawn(async move {
        let end = call.turn().await.map(|turn| turn.spend().unwrap().1.answered()).map_err(|refusal| refusal.kind);
        (client, end, Instant::now())
    });
}

#[tokio::test(start_paused = true)]
async fn a_thousand_invented_tenants_of_one_client_do_not_delay_anothers_first() {
    let world = World::new(GAP).await;
    let mut calls = JoinSet::new();
    for index in 0..1000 {
        queue(&world, &mut calls, ("A", 1, &format!("tenant-{index}")), 3600 * SECOND);
    }
    sleep(3 * SECOND).await;
    let start = Instant::now();
    for _ in 0..5 {
        queue(&world, &mut calls, ("B", 1, ""), 3600 * SECOND);
    }
    let mut of_b = Vec::new();
    while of_b.len() < 5 {
        let (client, end, at) = calls.join_next().await.unwrap().unwrap();
        assert_eq!(end, Ok(()));
        if client == "B" {
            of_b.push(at - start);
        }
    }
    // The next five tokens come at 3 x 1005 - 3000 = 15 ms and a window later: every other one is B's.
    let windows: Vec<_> = of_b.iter().map(Duration::as_millis).collect();
    assert_eq!(windows, [15, 15, 15, 1020, 1020]);
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_tenants_of_one_call_each_go_at_the_full_rate() {
    let world = World::with(GAP, |bounds| bounds.max_waiting_per_client = 10_000).await;
    let mut calls = JoinSet::new();
    let start = Instant::now();
    for index in 0..10_000 {
        queue(&world, &mut calls, ("A", 1, &format!("tenant-{index}")), 3600 * SECOND);
    }
    while let Some(call) = calls.join_next().await {
        assert_eq!(call.unwrap().1, Ok(()));
    }
    assert_eq!(start.elapsed(), (SECOND + GAP) * (10_000 / 5 - 1));
}

#[tokio::test(start_paused = true)]
async fn whom_a_later_arrival_makes_late_is_told_at_once() {
    let world = World::new(GAP).await;
    let mut calls = JoinSet::new();
    let start = Instant::now();
    // Thirty of A: the last five are due at 5025 ms, just within their hold.
    for _ in 0..30 {
        queue(&world, &mut calls, ("A", 1, ""), 5100 * SECOND / 1000);
    }
    sleep(Duration::from_millis(100)).await;
    for _ in 0..5 {
        queue(&world, &mut calls, ("B", 1, ""), 5100 * SECOND / 1000);
    }
    let mut ends = BTreeMap::new();
    while let Some(call) = calls.join_next().await {
        let (client, end, at) = call.unwrap();
        let at = if end.is_ok() { "in time".to_owned() } else { format!("{} ms", (at - start).as_millis()) };
        *ends.entry((client, format!("{end:?}"), at)).or_insert(0) += 1;
    }
    let line = |client: &str, end: &str, at: &str, count| ((client.to_owned(), end.to_owned(), at.to_owned()), count);
    let expected = [
        line("A", "Err(WaitTooLong)", "120 ms", 5),
        line("A", "Ok(())", "in time", 25),
        line("B", "Ok(())", "in time", 5),
    ];
    assert_eq!(ends, BTreeMap::from(expected));
}

// === An endpoint that enforces the limit ===

/// Five per sliding second, refused calls not counting: the strictest reading of the documented limit.
#[derive(Default)]
struct Endpoint {
    accepted: Mutex<Vec<Instant>>,
    refused: AtomicU64,
}

impl Endpoint {
    fn accepts(&self) -> bool {
        let now = Instant::now();
        let mut accepted = self.accepted.lock();
        let recent = accepted.iter().rev().take_while(|at| **at + SECOND > now).count();
        if recent < 5 {
            accepted.push(now);
            true
        } else {
            self.refused.fetch_add(1, Ordering::Relaxed);
            false
        }
    }
}

/// One minute of more calls than fit, `jitter_ms` of jitter on the way there. Returns (accepted, refused, sends).
async fn saturated_minute(gap: Duration, jitter_ms: u64, seed: u64) -> (usize, u64, Vec<Instant>) {
    let world = World::new(gap).await;
    let endpoint = Arc::new(Endpoint::default());
    let sends = Arc::new(Mutex::new(Vec::new()));
    let random = Arc::new(Mutex::new(fastrand::Rng::with_seed(seed)));
    let start = Instant::now();
    let mut calls = JoinSet::new();
    for _ in 0..330 {
        let mut call = world.arrive(119 * SECOND).unwrap();
        let (endpoint, sends, random) = (endpoint.clone(), sends.clone(), random.clone());
        calls.spawn(async move {
            loop {
                let Ok(turn) = call.turn().await else { return };
                let (_connection, receipt) = turn.spend().unwrap();
                sends.lock().push(Instant::now());
                let jitter = random.lock().u64(0..=jitter_ms * 1000);
                sleep(Duration::from_micros(10_000 + jitter)).await;
                let accepted = endpoint.accepts();
                sleep(Duration::from_millis(10)).await;
                if accepted {
                    return receipt.answered();
                }
                receipt.throttled(None);
            }
        });
    }
    sleep_until(start + 60 * SECOND).await;
    calls.abort_all();
    let accepted = endpoint.accepted.lock().len();
    let sends = sends.lock().clone();
    (accepted, endpoint.refused.load(Ordering::Relaxed), sends)
}

#[tokio::test(start_paused = true)]
async fn a_sliding_window_behind_a_steady_path_refuses_nothing() {
    let (accepted, refused, sends) = saturated_minute(GAP, 0, 1).await;
    assert_eq!(refused, 0);
    assert!(accepted * 100 >= 300 * 99, "{accepted} of 300");
    assert_eq!(worst_second(&sends), 5);
}

#[tokio::test(start_paused = true)]
async fn a_sliding_window_behind_jitter_refuses_little_with_a_wide_gap() {
    let (mut accepted, mut refused) = (0, 0);
    for seed in 0..20 {
        let minute = saturated_minute(Duration::from_millis(20), 30, seed).await;
        assert_eq!(worst_second(&minute.2), 5, "seed {seed}");
        assert!(minute.0 * 100 >= 300 * 96, "seed {seed}: {} of 300", minute.0);
        (accepted, refused) = (accepted + minute.0 as u64, refused + minute.1);
    }
    assert!(refused * 100 <= accepted + refused, "{refused} refused of {}", accepted + refused);
}

// === A storm ===

#[derive(Clone, Debug)]
struct Event {
    /// Which client and which of its tenants; a client's weight is one more than its number.
    who: (u32, u32),
    /// Milliseconds after the event before it.
    after: u64,
    hold: u64,
    /// The caller hangs up so many milliseconds after it came.
    hang_up: Option<u64>,
    latency: u64,
    ends: Vec<End>,
    unused: bool,
    connect: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Answered,
    Throttled(Option<u64>),
    Lost,
    Unsent,
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![
        8 => Just(End::Answered),
        2 => proptest::option::of(1..3000_u64).prop_map(End::Throttled),
        1 => Just(End::Lost),
        1 => Just(End::Unsent),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let after = prop_oneof![6 => Just(0_u64), 3 => 0..300_u64, 1 => 0..4000_u64];
    let connect = prop_oneof![4 => Just(0_u64), 1 => 0..80_u64];
    let ends = proptest::collection::vec(end(), 1..4);
    let who = (0..3_u32, 0..4_u32);
    let timing = (after, 500..60_000_u64);
    (
        who,
        timing,
        proptest::option::weighted(0.3, 0..8000_u64),
        0..200_u64,
        ends,
        proptest::bool::weighted(0.05),
        connect,
    )
        .prop_map(|(who, (after, hold), hang_up, latency, ends, unused, connect)| Event {
            who,
            after,
            hold,
            hang_up,
            latency,
            ends,
            unused,
            connect,
        })
}

/// What became of one call: exactly one of these, or its caller hung up.
#[derive(Debug, PartialEq)]
enum Fate {
    Answered,
    Lost,
    Refused(Kind),
    Unused,
}

/// Takes one call through the queue as the flow does, ending attempts as the event says.
async fn one_call(mut call: Call<Doors>, event: Event, sends: Arc<Mutex<Vec<Instant>>>) -> Fate {
    let arrived = Instant::now();
    for attempt in 0.. {
        let turn = match call.turn().await {
            Ok(turn) => turn,
            Err(refusal) => return Fate::Refused(refusal.kind),
        };
        assert!(arrived.elapsed() <= Duration::from_millis(event.hold), "nothing gets its turn after its send-by");
        if event.unused {
            return Fate::Unused;
        }
        let (_connection, receipt) = turn.spend().unwrap();
        sends.lock().push(Instant::now());
        let end = event.ends.get(attempt).copied().unwrap_or(End::Answered);
        let latency = Duration::from_millis(event.latency);
        // From the send on the attempt is its own task, and goes on when the caller hangs up.
        let attempt = tokio::spawn(async move {
            sleep(latency).await;
            match end {
                End::Answered => receipt.answered(),
                End::Throttled(hint) => receipt.throttled(hint.map(Duration::from_millis)),
                End::Lost => drop(receipt),
                End::Unsent => receipt.unsent(),
            }
        });
        attempt.await.unwrap();
        match end {
            End::Answered => return Fate::Answered,
            End::Lost => return Fate::Lost,
            End::Throttled(_) | End::Unsent => {}
        }
    }
    unreachable!("the loop ends with a fate")
}

async fn storm(events: Vec<Event>) {
    let world = World::new(GAP).await;
    let sends = Arc::new(Mutex::new(Vec::new()));
    let mut calls = Vec::new();
    for event in events {
        sleep(Duration::from_millis(event.after)).await;
        world.door.delay_ms.store(event.connect, Ordering::Relaxed);
        let (client, tenant) = event.who;
        let who = operation(&format!("client-{client}"), Duration::from_millis(event.hold));
        let who = Operation { weight: client + 1, tenant: TenantId::new(format!("tenant-{tenant}")), ..who };
        let call = world.queue.arrive(&who, 100).unwrap();
        let hang_up = event.hang_up;
        let task = tokio::spawn(one_call(call, event, sends.clone()));
        if let Some(after) = hang_up {
            let abort = task.abort_handle();
            tokio::spawn(async move {
                sleep(Duration::from_millis(after)).await;
                abort.abort();
            });
        }
        calls.push((task, hang_up.is_some()));
    }
    for (task, hangs_up) in calls {
        if let Err(end) = task.await {
            assert!(hangs_up && end.is_cancelled(), "only a hang-up leaves a call without an answer: {end}");
        }
    }
    assert!(worst_second(&sends.lock()) <= 5, "six sends in a second");
    // At rest: pauses end within a minute; four tokens come back in 48 seconds, then 35 ms of the gap in 175.
    sleep(300 * SECOND).await;
    let (granted, spent, returned) = world.tokens();
    assert_eq!(granted, spent + returned, "every token was spent or returned");
    assert_eq!(spent, sends.lock().len() as u64, "what was spent was sent, once");
    world.queue.forget_idle();
    assert!(world.queue.lanes().is_empty(), "the lane is at rest and holds no token");
    assert_eq!(world.queue.shared.room.used(), 0);
    assert_eq!(world.door.open.load(Ordering::Relaxed), 0);
    first_five_go_at_once(&world).await;
}

async fn first_five_go_at_once(world: &World) {
    world.door.delay_ms.store(0, Ordering::Relaxed);
    let start = Instant::now();
    for _ in 0..5 {
        world.arrive(SECOND).unwrap().turn().await.unwrap().spend().unwrap().1.answered();
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// 96 storms of 150 to 250 calls: at least 14,400 arrivals, with hang-ups, throttles, lost answers, connections
    /// that were closed before anything was sent, slow connections, turns that are not used.
    #[test]
    fn in_any_storm_the_rate_holds_and_every_call_has_one_end(events in proptest::collection::vec(event(), 150..250)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(storm(events));
    }
}
