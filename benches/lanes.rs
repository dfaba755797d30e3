//! What do queue and tokens cost alone? Ten thousand lanes of 5/s, each with eight callers who come back as soon as they
//! are answered, for some seconds in real time: how much of a core that takes, and how much of the rate is granted.
//! `benches/README.md` has the method and the figures.

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
/// After which a token is back: window and gap.
const PERIOD: Duration = Duration::from_millis(1005);
/// Lanes begin spread over a period, as real ones would, and are measured when all are at their pace.
const WARM_UP: Duration = Duration::from_secs(4);
const MEASURED: Duration = Duration::from_secs(10);
/// The kernel's ticks of a process's time.
const TICKS_PER_SECOND: f64 = 100.0;

async fn run(apart: bool) {
    let (lanes, granted) = (Arc::new(Lanes::new(LANES)), Arc::new(AtomicU64::new(0)));
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
            let (lanes, granted) = (lanes.clone(), granted.clone());
            tokio::spawn(async move {
                sleep_until(begin).await;
                loop {
                    assert!(lanes.call(lane).await, "nobody is refused");
                    granted.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    }
    sleep(WARM_UP).await;
    let (before, cpu, from) = (granted.load(Ordering::Relaxed), cpu(), Instant::now());
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

/// Seconds of CPU that this process has used, in user and system mode.
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
