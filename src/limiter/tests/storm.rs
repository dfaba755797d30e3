//! Random storms: calls arrive, leave, are refused or lost in any order. No call starves and every
//! bound is kept.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
struct Event {
    /// The client and its tenant. A client's weight is one more than its number.
    who: (u32, u32),
    /// Milliseconds after the previous event.
    after: u64,
    hold: u64,
    /// The caller disconnects after this number of milliseconds.
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

/// The outcome of a call whose caller did not disconnect.
#[derive(Debug, PartialEq)]
enum Outcome {
    Answered,
    Lost,
    Refused(Kind),
    Unused,
}

/// Runs one call as the proxy does. Its attempts end as in `event.ends`.
async fn one_call(
    mut call: LimitedCall<TestConnector>,
    event: Event,
    sends: Arc<Mutex<Vec<Instant>>>,
) -> Outcome {
    let arrived = Instant::now();
    let mut attempts = 0;
    loop {
        let permit = match call.permit().await {
            Ok(permit) => permit,
            Err(refusal) => return Outcome::Refused(refusal.kind),
        };
        assert!(
            arrived.elapsed() <= Duration::from_millis(event.hold),
            "no call is granted after its send-by"
        );
        if event.unused {
            return Outcome::Unused;
        }
        // A pause may withdraw a granted permit before it is spent. The call then waits again.
        let Some((_connection, receipt)) = permit.spend() else {
            continue;
        };
        sends.lock().push(Instant::now());
        let end = event.ends.get(attempts).copied().unwrap_or(End::Answered);
        attempts += 1;
        let latency = Duration::from_millis(event.latency);
        // The attempt is a task of its own, and continues when the caller disconnects.
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
            End::Answered => return Outcome::Answered,
            End::Lost => return Outcome::Lost,
            End::Throttled(_) | End::Unsent => {}
        }
    }
}

async fn storm(events: Vec<Event>) {
    let harness = Harness::new(GAP).await;
    let sends = Arc::new(Mutex::new(Vec::new()));
    let mut calls = Vec::new();
    for event in events {
        sleep(Duration::from_millis(event.after)).await;
        harness
            .connector
            .delay_ms
            .store(event.connect, Ordering::Relaxed);
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
        let call = harness.queue.arrive(&who, 100).unwrap();
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
    // At rest: pauses end within a minute; four tokens come back in 48 seconds, then 35 ms of the
    // gap in 175.
    sleep(300 * SECOND).await;
    let (granted, spent, returned) = harness.tokens();
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
    harness.queue.forget_idle();
    assert!(
        harness.queue.lanes().is_empty(),
        "the lane is at rest and holds no token"
    );
    assert_eq!(harness.queue.inner.budget.used(), 0);
    assert_eq!(harness.connector.open.load(Ordering::Relaxed), 0);
    first_five_go_at_once(&harness).await;
}

async fn first_five_go_at_once(harness: &Harness) {
    harness.connector.delay_ms.store(0, Ordering::Relaxed);
    let start = Instant::now();
    for _ in 0..5 {
        harness
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

    /// 96 storms of 150 to 250 calls: at least 14,400 arrivals, with disconnects, throttles, lost
    /// answers, connections that were closed before anything was sent, slow connections, unused
    /// permits.
    #[test]
    fn in_any_storm_the_rate_is_kept_and_every_call_has_one_outcome(events in proptest::collection::vec(event(), 150..250)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(storm(events));
    }
}
