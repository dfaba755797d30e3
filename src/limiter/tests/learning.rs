//! What the lane learns from an endpoint that enforces the limit: jitter on the way, and an
//! outsider that uses the same quota. The time is simulated, and every seed is fixed.

#![expect(
    clippy::print_stdout,
    reason = "the figures that the steps were chosen by"
)]

use super::endpoint::Endpoint;
use super::*;

/// The lane's attempts: when each reached the endpoint, since the start, and whether it was
/// accepted.
type Attempts = Vec<(Duration, bool)>;

/// Another user of the account's quota, which sends twice a second for 120 s.
#[derive(Clone, Copy, Debug)]
enum Outsider {
    None,
    /// Sends evenly and is never refused.
    Served,
    /// Sends evenly; a refused call is lost.
    Refusable,
    /// As `Served`, at random times.
    Poisson,
}

const OUTSIDER_STOPS: Duration = Duration::from_secs(120);

// === A saturated lane ===

/// All attempts within `seconds`, under default settings, with `jitter_ms` of jitter on the way to
/// the endpoint.
async fn saturated(seconds: u32, jitter_ms: u64, outsider: Outsider, seed: u64) -> Attempts {
    let harness = Arc::new(Harness::new(GAP).await);
    let endpoint = Arc::new(Endpoint::default());
    let attempts = Arc::new(Mutex::new(Attempts::new()));
    let random = Arc::new(Mutex::new(fastrand::Rng::with_seed(seed)));
    let start = Instant::now();
    let mut parties = JoinSet::new();
    parties.spawn(spend_the_same_quota(
        outsider,
        endpoint.clone(),
        fastrand::Rng::with_seed(!seed),
    ));
    for _ in 0..20 {
        let harness = harness.clone();
        let endpoint = endpoint.clone();
        let attempts = attempts.clone();
        let random = random.clone();
        parties.spawn(async move {
            let mut call = harness.arrive(119 * SECOND).unwrap();
            loop {
                let (_connection, receipt) = call.permit().await.unwrap().spend().unwrap();
                let jitter = random.lock().u64(0..=jitter_ms * 1000);
                sleep(Duration::from_micros(10_000 + jitter)).await;
                let accepted = endpoint.accepts();
                attempts.lock().push((start.elapsed(), accepted));
                sleep(Duration::from_millis(10)).await;
                if accepted {
                    receipt.answered();
                    call = harness.arrive(119 * SECOND).unwrap();
                } else {
                    receipt.throttled(None);
                }
            }
        });
    }
    sleep_until(start + seconds * SECOND).await;
    parties.shutdown().await;
    std::mem::take(&mut *attempts.lock())
}

async fn spend_the_same_quota(
    outsider: Outsider,
    endpoint: Arc<Endpoint>,
    mut random: fastrand::Rng,
) {
    let every = Duration::from_millis(500);
    let stop = Instant::now() + OUTSIDER_STOPS;
    sleep(every.mul_f64(random.f64())).await;
    while Instant::now() < stop {
        match outsider {
            Outsider::None => return,
            Outsider::Served | Outsider::Poisson => endpoint.accepted.lock().push(Instant::now()),
            Outsider::Refusable => drop(endpoint.accepts()),
        }
        let spread = if let Outsider::Poisson = outsider {
            -(1.0 - random.f64()).ln()
        } else {
            1.0
        };
        sleep(every.mul_f64(spread)).await;
    }
}

/// Returns (accepted per second, per cent refused) between these seconds.
fn figures(attempts: &Attempts, from: u64, to: u64) -> (f64, f64) {
    let within = attempts
        .iter()
        .filter(|(at, _)| (from..to).contains(&at.as_secs()));
    let (accepted, refused): (Attempts, Attempts) = within.partition(|(_, accepted)| *accepted);
    let sent = accepted.len() + refused.len();
    (
        accepted.len() as f64 / (to - from) as f64,
        100.0 * refused.len() as f64 / sent as f64,
    )
}

#[tokio::test(start_paused = true)]
async fn behind_jitter_at_most_2_per_cent_are_refused_and_the_rate_is_93_per_cent_at_least() {
    for seed in 0..40 {
        let (rate, share) = figures(&saturated(60, 30, Outsider::None, seed).await, 0, 60);
        println!(
            "seed {seed}: {:.1} % of the rate, {share:.2} % refused",
            rate * 20.0
        );
        assert!(rate >= 0.93 * 5.0, "seed {seed}: {rate:.2}/s");
        assert!(share <= 2.0, "seed {seed}: {share:.2} % refused");
    }
}

#[tokio::test(start_paused = true)]
async fn beside_an_outsider_the_lane_sends_the_rest_and_recovers_when_the_outsider_stops() {
    for (outsider, jitter) in [
        (Outsider::Served, 0),
        (Outsider::Served, 30),
        (Outsider::Refusable, 30),
    ] {
        for seed in 0..20 {
            let attempts = saturated(210, jitter, outsider, seed).await;
            let beside = figures(&attempts, 30, 120);
            let after = figures(&attempts, 160, 210);
            let which = format!("{outsider:?}, {jitter} ms, seed {seed}");
            println!(
                "{which}: {:.2}/s, {:.2} % refused; then {:.2}/s",
                beside.0, beside.1, after.0
            );
            assert!(
                (2.7..=3.2).contains(&beside.0),
                "{which}: {:.2}/s",
                beside.0
            );
            assert!(beside.1 <= 6.0, "{which}: {:.2} % refused", beside.1);
            assert!(
                after.0 >= 4.75,
                "{which}: {:.2}/s after he stopped",
                after.0
            );
        }
    }
}

/// The rate beside an outsider with random times is only printed.
#[tokio::test(start_paused = true)]
async fn beside_a_poisson_outsider_the_lane_recovers_when_the_outsider_stops() {
    for seed in 0..5 {
        let attempts = saturated(210, 30, Outsider::Poisson, seed).await;
        let beside = figures(&attempts, 30, 120);
        let after = figures(&attempts, 180, 210);
        println!(
            "seed {seed}: {:.2}/s, {:.2} % refused; then {:.2}/s",
            beside.0, beside.1, after.0
        );
        assert!(
            after.0 >= 4.75,
            "seed {seed}: {:.2}/s after he stopped",
            after.0
        );
    }
}

// === Effects outside the lane ===

/// A lane after `episodes` throttle episodes, one each 2 s, and a second without calls.
async fn troubled(episodes: u32) -> Harness {
    let harness = Harness::new(GAP).await;
    for _ in 0..episodes {
        pause(&harness, Duration::from_millis(1)).await;
        sleep(SECOND).await;
        // A throttled probe would not change the rate.
        let (_, probe) = harness
            .arrive(30 * SECOND)
            .unwrap()
            .permit()
            .await
            .unwrap()
            .spend()
            .unwrap();
        probe.answered();
        sleep(SECOND).await;
    }
    sleep(SECOND).await;
    harness
}

#[tokio::test(start_paused = true)]
async fn operators_see_the_learned_rate() {
    let harness = troubled(6).await;
    let view = harness.view();
    assert!(
        view.tokens == 5 && (1..5).contains(&view.tokens_usable),
        "{view:?}"
    );
    assert!((1.0..4.0).contains(&view.effective_per_second), "{view:?}");
    let lanes = harness.queue.lanes_by_label();
    let samples: Vec<_> = lanes.iter().map(LaneView::sample).collect();
    let text = harness.metrics.render(&crate::observe::metrics::Scrape {
        lanes: &samples,
        ..Default::default()
    });
    let rate = |kind, rate: f64| {
        format!(
            "flowgate_rate_limit{{account=\"acme\",action=\"CreateFlow\",kind=\"{kind}\"}} {rate}\n"
        )
    };
    let effective = rate("effective", view.effective_per_second);
    assert!(
        text.contains(&rate("configured", 5.0)) && text.contains(&effective),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn forecasts_follow_the_learned_rate_and_its_rises() {
    let harness = troubled(6).await;
    let start = Instant::now();
    let mut calls = JoinSet::new();
    for index in 0..60_u32 {
        let mut call = harness.arrive(60 * SECOND).unwrap();
        let predicted = call.predicted_wait();
        calls.spawn(async move {
            call.permit().await.unwrap().spend().unwrap().1.answered();
            (index, start.elapsed(), predicted)
        });
        tokio::task::yield_now().await;
    }
    for (index, waited, predicted) in calls.join_all().await {
        // A twentieth is what refusals may add. Timers have steps of a millisecond, and each of the
        // spaced grants counts from the one before it, so each may be one later.
        let off = predicted.abs_diff(waited + waited / 20);
        assert!(
            off <= Duration::from_millis(1) * (index + 1),
            "call {index}: waited {waited:?}, predicted {predicted:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_learned_outlives_idleness_until_quiet_time_gives_it_back() {
    let harness = troubled(6).await;
    let start = Instant::now();
    let mut effective = harness.view().effective_per_second;
    while effective < 4.7 {
        sleep(SECOND).await;
        harness.queue.forget_idle();
        let risen = harness.view().effective_per_second;
        assert!(risen >= effective, "quiet time gives back");
        effective = risen;
    }
    assert!(start.elapsed() > 5 * SECOND, "{:?}", start.elapsed());
    sleep(120 * SECOND).await;
    harness.queue.forget_idle();
    assert!(harness.queue.lanes().is_empty());
}
