//! A lane in front of an endpoint that enforces the limit, on a steady path and behind jitter.

use super::*;

/// Five per sliding second, refused calls not counting: the strictest reading of the documented
/// limit.
#[derive(Default)]
pub(super) struct Endpoint {
    pub(super) accepted: Mutex<Vec<Instant>>,
    refused: AtomicU64,
}

impl Endpoint {
    pub(super) fn accepts(&self) -> bool {
        let now = Instant::now();
        let mut accepted = self.accepted.lock();
        let recent = accepted
            .iter()
            .rev()
            .take_while(|at| **at + SECOND > now)
            .count();
        if recent < 5 {
            accepted.push(now);
            true
        } else {
            self.refused.fetch_add(1, Ordering::Relaxed);
            false
        }
    }
}

/// One minute of more calls than fit, `jitter_ms` of jitter on the way there. Returns (accepted,
/// refused, sends).
async fn saturated_minute(gap: Duration, jitter_ms: u64, seed: u64) -> (usize, u64, Vec<Instant>) {
    let harness = Harness::new(gap).await;
    let endpoint = Arc::new(Endpoint::default());
    let sends = Arc::new(Mutex::new(Vec::new()));
    let random = Arc::new(Mutex::new(fastrand::Rng::with_seed(seed)));
    let start = Instant::now();
    let mut calls = JoinSet::new();
    for _ in 0..330 {
        let mut call = harness.arrive(119 * SECOND).unwrap();
        let endpoint = endpoint.clone();
        let sends = sends.clone();
        let random = random.clone();
        calls.spawn(async move {
            loop {
                let Ok(permit) = call.permit().await else {
                    return;
                };
                let (_connection, receipt) = permit.spend().unwrap();
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
    let mut accepted = 0;
    let mut refused = 0;
    for seed in 0..20 {
        let minute = saturated_minute(Duration::from_millis(20), 30, seed).await;
        assert_eq!(worst_second(&minute.2), 5, "seed {seed}");
        assert!(
            minute.0 * 100 >= 300 * 96,
            "seed {seed}: {} of 300",
            minute.0
        );
        (accepted, refused) = (accepted + minute.0 as u64, refused + minute.1);
    }
    assert!(
        refused * 100 <= accepted + refused,
        "{refused} refused of {}",
        accepted + refused
    );
}
