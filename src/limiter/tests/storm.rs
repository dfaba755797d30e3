//! Random storms: whoever comes, leaves, is refused or lost, in whatever order, nobody starves and every bound is kept.

use proptest::prelude::*;

use super::*;

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
        .prop_map(
            |(who, (after, hold), hang_up, latency, ends, unused, connect)| Event {
                who,
                after,
                hold,
                hang_up,
                latency,
                ends,
                unused,
                connect,
            },
        )
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
async fn one_call(
    mut call: LimitedCall<Doors>,
    event: Event,
    sends: Arc<Mutex<Vec<Instant>>>,
) -> Fate {
    let arrived = Instant::now();
    for attempt in 0.. {
        let turn = match call.permit().await {
            Ok(turn) => turn,
            Err(refusal) => return Fate::Refused(refusal.kind),
        };
        assert!(
            arrived.elapsed() <= Duration::from_millis(event.hold),
            "nothing gets its turn after its send-by"
        );
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
        let who = operation(
            &format!("client-{client}"),
            Duration::from_millis(event.hold),
        );
        let who = Operation {
            weight: client + 1,
            tenant: TenantId::new(format!("tenant-{tenant}")),
            ..who
        };
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
            assert!(
                hangs_up && end.is_cancelled(),
                "only a hang-up leaves a call without an answer: {end}"
            );
        }
    }
    assert!(worst_second(&sends.lock()) <= 5, "six sends in a second");
    // At rest: pauses end within a minute; four tokens come back in 48 seconds, then 35 ms of the gap in 175.
    sleep(300 * SECOND).await;
    let (granted, spent, returned) = world.tokens();
    assert_eq!(
        granted,
        spent + returned,
        "every token was spent or returned"
    );
    assert_eq!(
        spent,
        sends.lock().len() as u64,
        "what was spent was sent, once"
    );
    world.queue.forget_idle();
    assert!(
        world.queue.lanes().is_empty(),
        "the lane is at rest and holds no token"
    );
    assert_eq!(world.queue.shared.room.used(), 0);
    assert_eq!(world.door.open.load(Ordering::Relaxed), 0);
    first_five_go_at_once(&world).await;
}

async fn first_five_go_at_once(world: &World) {
    world.door.delay_ms.store(0, Ordering::Relaxed);
    let start = Instant::now();
    for _ in 0..5 {
        world
            .arrive(SECOND)
            .unwrap()
            .permit()
            .await
            .unwrap()
            .spend()
            .unwrap()
            .1
            .answered();
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
