//! The learned rate of a lane whose configured limit is twice the endpoint's.

use std::time::Duration;

use cams_sim::{Kind, Limit, Settings, Sim, Verdict};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::caller::{Call, SECRET, try_exchange};
use crate::crowd::key;
use crate::flowgate;

/// Flowgate's limit and the endpoint's.
const LIMIT: usize = 200;
const TAKES: u32 = 100;

/// Callers that call again after each response.
const CALLERS: usize = 300;

/// Start and end of the measurement.
const FROM: Duration = Duration::from_secs(30);
const TO: Duration = Duration::from_secs(60);

/// The promise: at least this part of the endpoint's limit, with at most this part refused.
const LEAST_SENT: f64 = 0.85;
const MOST_REFUSED: f64 = 0.06;

pub(crate) const HEAD: &str = "| window | limit | endpoint takes | accepted a second, from 30 s on | of what it takes | throttled |\n|---|--:|--:|--:|--:|--:|";

/// Measures with this kind of window, prints a row, and returns a broken promise.
pub(crate) async fn run(kind: Kind) -> Result<(), String> {
    let settings = Settings {
        latency: Duration::from_millis(30),
        keep_requests: false,
        ..Settings::default()
    };
    let settings = settings.with_key(&key(0), SECRET, &key(0));
    let sim = Sim::start(settings.with_limit(Limit {
        kind,
        per_window: TAKES,
        ..Limit::default()
    }))
    .await
    .unwrap();
    let process = flowgate::start(&sim.url(), 1, &flowgate::limit(LIMIT)).await;
    sleep(Duration::from_secs(2)).await;
    let start = Instant::now();
    let proxy = process.proxy;
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        callers.spawn(async move {
            for number in 0.. {
                let query = [
                    ("Categories", "[\"SIGN_UP\"]"),
                    ("FlowName", &*format!("flow-{caller}-{number}")),
                ];
                let hold = |call: &mut Call| call.push("x-flowgate-hold", "60s");
                let call = Call::v3_with(&proxy.to_string(), &query, hold, (&key(0), SECRET));
                drop(try_exchange(proxy, &call.bytes()).await);
            }
        });
    }
    sleep_until(start + TO).await;
    callers.abort_all();
    let arrivals = sim.arrivals();
    let measured = || {
        arrivals
            .iter()
            .filter(|arrival| arrival.at >= start + FROM && arrival.at < start + TO)
    };
    let of = |verdict: Verdict| {
        measured()
            .filter(|arrival| arrival.verdict == verdict)
            .count() as f64
    };
    let rate = of(Verdict::Accepted) / (TO - FROM).as_secs_f64();
    let sent = rate / f64::from(TAKES);
    let refused = of(Verdict::Throttled) / measured().count().max(1) as f64;
    let kind = format!("{kind:?}").to_lowercase();
    println!(
        "| {kind} | {LIMIT}/s | {TAKES}/s | {rate:.1} | {:.1} % | {:.1} % |",
        sent * 100.0,
        refused * 100.0
    );
    let is_kept = sent >= LEAST_SENT && refused <= MOST_REFUSED;
    if is_kept {
        Ok(())
    } else {
        Err(format!(
            "{kind} window: {sent:.3} of what the endpoint takes, {refused:.3} refused"
        ))
    }
}
