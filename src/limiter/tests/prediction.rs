//! Forecasts come true: a call waits as long as predicted on its arrival.

#![expect(clippy::print_stdout, reason = "how many forecasts came true")]

use super::*;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// The predicted wait of a call that is not queued yet, if no other call arrives after it.
fn predicted(call: &LimitedCall<TestConnector>) -> Duration {
    call.predicted_now()
}

/// The predicted and the actual wait of every call that was served.
type Predictions = Arc<Mutex<Vec<(Duration, Duration)>>>;

/// The conditions of a run.
#[derive(Clone, Copy)]
struct Path {
    /// The part of the attempts that the endpoint throttles.
    throttles: f64,
    latency: Duration,
    /// The longest time between a permit and its use.
    to_send: Duration,
    /// The mean time between two arrivals.
    apart: Duration,
    hold: Duration,
}

/// Starts a call that is retried until it is answered or refused. Records when its first permit
/// came.
fn start_call(
    harness: &Harness,
    calls: &mut JoinSet<()>,
    predictions: &Predictions,
    path: Path,
    seed: u64,
) {
    let mut call = harness.arrive(path.hold).unwrap();
    let start = Instant::now();
    let predicted = predicted(&call);
    let predictions = predictions.clone();
    let mut random = fastrand::Rng::with_seed(seed);
    calls.spawn(async move {
        let mut first = true;
        while let Ok(permit) = call.permit().await {
            if std::mem::take(&mut first) {
                predictions.lock().push((predicted, start.elapsed()));
            }
            sleep(path.to_send.mul_f64(random.f64())).await;
            let (_connection, receipt) = permit.spend().unwrap();
            sleep(path.latency).await;
            if random.f64() >= path.throttles {
                return receipt.answered();
            }
            receipt.throttled(None);
        }
    });
}

/// Five minutes of one tenant's calls, in bursts and alone.
async fn one_tenant(path: Path, seed: u64) -> Vec<(Duration, Duration)> {
    let harness = Harness::new(GAP).await;
    let mut random = fastrand::Rng::with_seed(seed);
    let mut calls = JoinSet::new();
    let predictions = Predictions::default();
    let end = Instant::now() + 300 * SECOND;
    while Instant::now() < end {
        let burst = if random.u8(..10) == 0 {
            random.u64(1..80)
        } else {
            1
        };
        for _ in 0..burst {
            start_call(&harness, &mut calls, &predictions, path, random.u64(..));
            // Let it enter the queue before the next one arrives.
            tokio::task::yield_now().await;
        }
        sleep(path.apart.mul_f64(2.0 * random.f64() * burst as f64)).await;
    }
    while calls.join_next().await.is_some() {}
    let predictions = std::mem::take(&mut *predictions.lock());
    assert!(
        predictions.len() > 500,
        "seed {seed}: {} calls",
        predictions.len()
    );
    let long = predictions
        .iter()
        .filter(|(_, waited)| *waited > 5 * SECOND)
        .count();
    assert!(long > 100, "seed {seed}: {long} calls have waited long");
    predictions
}

#[tokio::test(start_paused = true)]
async fn without_throttles_one_tenants_waits_match_their_predictions() {
    let mut calls = 0;
    let mut worst = Duration::ZERO;
    for seed in 0..10 {
        let path = Path {
            throttles: 0.0,
            latency: ms(40),
            to_send: ms(2),
            apart: ms(230),
            hold: 120 * SECOND,
        };
        for (predicted, waited) in one_tenant(path, seed).await {
            calls += 1;
            worst = worst.max(predicted.abs_diff(waited));
            assert!(
                predicted.abs_diff(waited) <= ms(250),
                "seed {seed}: {predicted:?} predicted, {waited:?} waited"
            );
        }
    }
    assert!(
        calls > 5000 && worst > Duration::ZERO,
        "{calls} calls, off by {worst:?} at most"
    );
}

/// From half of the rate to the whole rate. Further refusals during a long wait, and what the lane
/// learns from them, are allowed for but cannot be predicted.
#[tokio::test(start_paused = true)]
async fn with_two_percent_throttled_four_of_five_waits_are_close_to_their_predictions() {
    for apart in [400, 300, 230, 200].map(ms) {
        let mut calls = 0;
        let mut close = 0;
        for seed in 0..20 {
            let path = Path {
                throttles: 0.02,
                latency: ms(40),
                to_send: ms(2),
                apart,
                hold: 30 * SECOND,
            };
            let predictions = one_tenant(path, seed).await;
            let is_close = |(predicted, waited): &&(Duration, Duration)| {
                predicted.abs_diff(*waited) <= SECOND.max(*waited / 10)
            };
            let of_seed = predictions.iter().filter(is_close).count();
            calls += predictions.len();
            close += of_seed;
        }
        println!(
            "a call every {apart:?}: {close} of {calls}, {} %",
            close * 100 / calls
        );
        assert!(
            close * 100 >= calls * 80,
            "a call every {apart:?}: {close} of {calls}"
        );
    }
}

/// After a random history, a new call of any client and tenant is served exactly when predicted.
async fn no_later_arrivals(seed: u64) {
    let harness = Harness::new(GAP).await;
    let mut random = fastrand::Rng::with_seed(seed);
    let mut calls = JoinSet::new();
    let operation = |random: &mut fastrand::Rng| {
        let (client, weight) = [("a", 1), ("b", 2), ("c", 4), ("d", 3)][random.usize(..4)];
        let tenant = TenantId::new(format!("tenant-{}", random.u8(..5)));
        Operation {
            weight,
            tenant,
            ..operation(client, 120 * SECOND)
        }
    };
    for _ in 0..random.u32(1..120) {
        let mut call = harness.queue.arrive(&operation(&mut random), 10).unwrap();
        // Some leave before the new call arrives.
        let patience = if random.u8(..5) == 0 {
            ms(1)
        } else {
            120 * SECOND
        };
        calls.spawn(tokio::time::timeout(patience, async move {
            call.permit().await.unwrap().spend().unwrap().1.answered()
        }));
        sleep(ms(if random.bool() { 0 } else { random.u64(2..200) })).await;
    }
    sleep(ms(2)).await;
    let mut call = harness.queue.arrive(&operation(&mut random), 10).unwrap();
    let start = Instant::now();
    let predicted = predicted(&call);
    call.permit().await.unwrap().spend().unwrap().1.answered();
    assert_eq!(start.elapsed(), predicted, "seed {seed}");
    while calls.join_next().await.is_some() {}
}

#[tokio::test(start_paused = true)]
async fn among_many_clients_and_tenants_the_forecast_is_exact_without_later_arrivals() {
    for seed in 0..500 {
        no_later_arrivals(seed).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_newest_calls_of_the_tenant_furthest_over_its_share_are_refused() {
    let harness = Harness::new(GAP).await;
    let start = Instant::now();
    let hold = ms(3100);
    let mut calls = JoinSet::new();
    let mut start_call = |tenant: &str, index: u32| {
        let operation = Operation {
            tenant: TenantId::new(tenant),
            ..operation("a", hold)
        };
        let mut call = harness.queue.arrive(&operation, 10).unwrap();
        let name = format!("{tenant}{index}");
        calls.spawn(async move {
            let end = call
                .permit()
                .await
                .map(|permit| permit.spend().unwrap().1.answered());
            (name, end.map_err(|refusal| refusal.kind), start.elapsed())
        });
    };
    // Five are sent immediately. Fifteen more fit into the hold in three windows: twelve of x,
    // three of y.
    (0..17).for_each(|index| start_call("x", index));
    (0..3).for_each(|index| start_call("y", index));
    sleep(ms(50)).await;
    (0..2).for_each(|index| start_call("z", index));
    let mut late = Vec::new();
    while let Some(call) = calls.join_next().await {
        let (name, end, at) = call.unwrap();
        match end {
            Ok(()) => assert!(at <= ms(50) + hold, "{name} went at {at:?}"),
            Err(kind) => late.push((name, kind, at.as_millis())),
        }
    }
    late.sort_by(|a, b| a.0.cmp(&b.0));
    let expected = ["x15", "x16"].map(|name| (name.to_owned(), Kind::WaitTooLong, 70));
    assert_eq!(late, expected);
}
