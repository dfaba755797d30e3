//! Forecasts that come true: what a newcomer is told it will wait is what it waits.

#![expect(clippy::print_stdout, reason = "how many forecasts came true")]

use super::*;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// What this call will wait if nobody comes after it. It does not wait yet.
fn predicted(call: &LimitedCall<Doors>) -> Duration {
    call.predicted_now()
}

/// What was predicted and what came, of every call that was served.
type Predictions = Arc<Mutex<Vec<(Duration, Duration)>>>;

/// Which part of attempts the endpoint refuses by throttling, how long it takes, how long a turn lies unused, how
/// far apart the calls come on average, and how long they may wait.
#[derive(Clone, Copy)]
struct Path {
    refuses: f64,
    latency: Duration,
    to_send: Duration,
    apart: Duration,
    hold: Duration,
}

/// A call comes, and goes on until it is answered or refused by the queue; its first turn is what was predicted.
fn come(
    world: &World,
    calls: &mut JoinSet<()>,
    predictions: &Predictions,
    (path, seed): (Path, u64),
) {
    let mut call = world.arrive(path.hold).unwrap();
    let (start, predicted) = (Instant::now(), predicted(&call));
    let (predictions, mut random) = (predictions.clone(), fastrand::Rng::with_seed(seed));
    calls.spawn(async move {
        let mut first = true;
        while let Ok(turn) = call.permit().await {
            if std::mem::take(&mut first) {
                predictions.lock().push((predicted, start.elapsed()));
            }
            sleep(path.to_send.mul_f64(random.f64())).await;
            let (_connection, receipt) = turn.spend().unwrap();
            sleep(path.latency).await;
            if random.f64() >= path.refuses {
                return receipt.answered();
            }
            receipt.throttled(None);
        }
    });
}

/// Five minutes of one tenant's calls that come in crowds and alone.
async fn one_tenant(path: Path, seed: u64) -> Vec<(Duration, Duration)> {
    let world = World::new(GAP).await;
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut calls, predictions) = (JoinSet::new(), Predictions::default());
    let end = Instant::now() + 300 * SECOND;
    while Instant::now() < end {
        let crowd = if random.u8(..10) == 0 {
            random.u64(1..80)
        } else {
            1
        };
        for _ in 0..crowd {
            come(&world, &mut calls, &predictions, (path, random.u64(..)));
            // It joins the line before the next one asks.
            tokio::task::yield_now().await;
        }
        sleep(path.apart.mul_f64(2.0 * random.f64() * crowd as f64)).await;
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
        .filter(|(_, came)| *came > 5 * SECOND)
        .count();
    assert!(long > 100, "seed {seed}: {long} calls have waited long");
    predictions
}

#[tokio::test(start_paused = true)]
async fn one_tenant_without_throttles_waits_what_it_was_told() {
    let (mut calls, mut worst) = (0, Duration::ZERO);
    for seed in 0..10 {
        let path = Path {
            refuses: 0.0,
            latency: ms(40),
            to_send: ms(2),
            apart: ms(230),
            hold: 120 * SECOND,
        };
        for (predicted, came) in one_tenant(path, seed).await {
            calls += 1;
            worst = worst.max(predicted.abs_diff(came));
            assert!(
                predicted.abs_diff(came) <= ms(250),
                "seed {seed}: {predicted:?} predicted, {came:?} came"
            );
        }
    }
    assert!(
        calls > 5000 && worst > Duration::ZERO,
        "{calls} calls, off by {worst:?} at most"
    );
}

/// From half of the rate to all of it. What is refused again during a long wait, and what the lane learns from it, is
/// allowed for but not foreseen.
#[tokio::test(start_paused = true)]
async fn with_two_percent_throttled_four_of_five_wait_about_what_they_were_told() {
    for apart in [400, 300, 230, 200].map(ms) {
        let (mut calls, mut close) = (0, 0);
        for seed in 0..20 {
            let path = Path {
                refuses: 0.02,
                latency: ms(40),
                to_send: ms(2),
                apart,
                hold: 30 * SECOND,
            };
            let predictions = one_tenant(path, seed).await;
            let is_close = |(predicted, came): &&(Duration, Duration)| {
                predicted.abs_diff(*came) <= SECOND.max(*came / 10)
            };
            let of_seed = predictions.iter().filter(is_close).count();
            (calls, close) = (calls + predictions.len(), close + of_seed);
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

/// A newcomer of any client and tenant, after a random past, is served exactly when it was told.
async fn nobody_comes_later(seed: u64) {
    let world = World::new(GAP).await;
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
        let mut call = world.queue.arrive(&operation(&mut random), 10).unwrap();
        // Some have gone again before the newcomer comes.
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
    let mut call = world.queue.arrive(&operation(&mut random), 10).unwrap();
    let (start, predicted) = (Instant::now(), predicted(&call));
    call.permit().await.unwrap().spend().unwrap().1.answered();
    assert_eq!(start.elapsed(), predicted, "seed {seed}");
    while calls.join_next().await.is_some() {}
}

#[tokio::test(start_paused = true)]
async fn among_many_clients_and_tenants_the_forecast_is_exact_while_nobody_comes_later() {
    for seed in 0..500 {
        nobody_comes_later(seed).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_newest_of_the_tenant_furthest_over_its_share_is_told() {
    let world = World::new(GAP).await;
    let (start, hold) = (Instant::now(), ms(3100));
    let mut calls = JoinSet::new();
    let mut come = |tenant: &str, index: u32| {
        let operation = Operation {
            tenant: TenantId::new(tenant),
            ..operation("a", hold)
        };
        let (mut call, name) = (
            world.queue.arrive(&operation, 10).unwrap(),
            format!("{tenant}{index}"),
        );
        calls.spawn(async move {
            let end = call
                .permit()
                .await
                .map(|turn| turn.spend().unwrap().1.answered());
            (name, end.map_err(|refusal| refusal.kind), start.elapsed())
        });
    };
    // Five go at once; in three windows fifteen more fit into the hold: twelve of x, three of y.
    (0..17).for_each(|index| come("x", index));
    (0..3).for_each(|index| come("y", index));
    sleep(ms(50)).await;
    (0..2).for_each(|index| come("z", index));
    let mut late = Vec::new();
    while let Some(call) = calls.join_next().await {
        let (name, end, at) = call.unwrap();
        match end {
            Ok(()) => assert!(at <= ms(50) + hold, "{name} went at {at:?}"),
            Err(kind) => late.push((name, kind, at.as_millis())),
        }
    }
    late.sort_by(|a, b| a.0.cmp(&b.0));
    let told = |name: &str| (name.to_owned(), Kind::WaitTooLong, 70);
    assert_eq!(late, [told("x15"), told("x16")]);
}
