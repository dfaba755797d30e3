//! Cost of queue and tokens alone. Ten thousand lanes of 5/s, each with eight callers that call
//! again after each response, for some seconds of real time: CPU time and the granted part of the
//! rate. Method and figures: `benches/README.md`.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed benchmark")]
#![expect(
    clippy::print_stdout,
    reason = "the figures are what the benchmark is for"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flowgate::testing::bench::Lanes;
use tokio::runtime::Builder;
use tokio::time::{Instant, sleep, sleep_until};

const LANES: usize = 10_000;
const CALLERS: usize = 8;
/// Time until a token is back: window and gap.
const PERIOD: Duration = Duration::from_millis(1005);
/// The lanes start at different times, as real ones would, and are measured at a steady rate.
const WARM_UP: Duration = Duration::from_secs(4);
const MEASURED: Duration = Duration::from_secs(10);
/// Clock ticks per second in `/proc`.
const TICKS_PER_SECOND: f64 = 100.0;

async fn run(apart: bool) {
    let lanes = Arc::new(Lanes::new(LANES));
    let granted = Arc::new(AtomicU64::new(0));
    let start = Instant::now() + Duration::from_secs(1);
    for lane in 0..LANES {
        let begin = start + PERIOD * u32::try_from(lane).unwrap() / u32::try_from(LANES).unwrap();
        for caller in 0..CALLERS {
            // Tokens keep the distances at which they were first used.
            let begin = if apart {
                begin + PERIOD / 5 * u32::try_from(caller).unwrap()
            } else {
                begin
            };
            let lanes = lanes.clone();
            let granted = granted.clone();
            tokio::spawn(async move {
                sleep_until(begin).await;
                loop {
                    assert!(lanes.call(lane).await, "no call is refused");
                    granted.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    }
    sleep(WARM_UP).await;
    let before = granted.load(Ordering::Relaxed);
    let cpu = cpu();
    let from = Instant::now();
    sleep(MEASURED).await;
    let seconds = from.elapsed().as_secs_f64();
    let granted = (granted.load(Ordering::Relaxed) - before) as f64;
    let cpu = self::cpu() - cpu;
    let rate = 5.0 * LANES as f64 * seconds;
    println!(
        "| {:.3} | {:.2} | {:.2} % |",
        cpu / seconds,
        cpu / granted * 1e6,
        100.0 * granted / rate
    );
}

/// CPU seconds of this process, in user and system mode.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let ticks: f64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|field| field.parse::<f64>().unwrap())
        .sum();
    ticks / TICKS_PER_SECOND
}

fn main() {
    println!("| tokens of a lane | of a core | us per call | granted |\n|---|--:|--:|--:|");
    for apart in [false, true] {
        print!("| {} ", if apart { "apart" } else { "together" });
        let runtime = Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async { tokio::spawn(run(apart)).await.unwrap() });
    }
}
