//! Whether replicas keep and use one shared quota: one to eight Flowgate processes, a real
//! redis-server and the simulated endpoint, with one account that always has too many calls, spread
//! evenly or mostly at one replica. Method and figures: `benches/README.md`.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed benchmark")]
#![expect(
    clippy::print_stdout,
    reason = "the table is what the benchmark is for"
)]

#[allow(dead_code, reason = "the tests' caller does more than send")]
#[path = "../tests/it/caller.rs"]
mod caller;
#[allow(dead_code, reason = "the tests' processes do more than run")]
#[path = "../tests/it/process.rs"]
mod process;
#[path = "../tests/it/redis.rs"]
mod redis;

use std::net::SocketAddr;
use std::time::Duration;

use cams_sim::{Running, Settings, Sim};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::caller::{Call, KEY, SECRET};
use crate::process::Process;
use crate::redis::Redis;

const MEASURED: Duration = Duration::from_secs(30);
const LONE: usize = 9;
/// Maximum number of waiting callers.
const CROWD: usize = 64;

/// A replica with the longest hold.
async fn replica(sim: &Running, redis: &Redis) -> Process {
    let hold = "[queue]\nhold = \"2m\"\nmax_hold = \"2m\"";
    Process::start(
        sim,
        &format!("{hold}\n[quota]\nstore = \"{}\"", redis.url()),
    )
    .await
}

/// Starts callers that call again after each response.
async fn caller(proxy: SocketAddr, name: String, end: Instant) -> usize {
    let mut served = 0;
    while Instant::now() < end {
        let reply = Call::v3(&proxy.to_string(), &format!("{name}-{served}"))
            .send(proxy)
            .await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        served += 1;
    }
    served
}

/// The most attempts within a second, and all attempts between one second after the start and the
/// end.
fn seen(sim: &Running, start: Instant) -> (usize, usize) {
    let mut at: Vec<_> = sim
        .arrivals()
        .iter()
        .map(|arrival| arrival.received)
        .collect();
    at.sort();
    let second = Duration::from_secs(1);
    let worst = at
        .iter()
        .enumerate()
        .map(|(i, from)| at[i..].partition_point(|other| *other < *from + second))
        .max();
    let within = at
        .iter()
        .filter(|at| **at >= start && **at < start + MEASURED)
        .count();
    (worst.unwrap(), within)
}

async fn run(replicas: usize, is_skewed: bool) {
    let sim = Sim::start(Settings::default().with_key(KEY, SECRET, "acme"))
        .await
        .unwrap();
    let redis = Redis::start().await;
    let mut processes = Vec::new();
    for _ in 0..replicas {
        processes.push(replica(&sim, &redis).await);
    }
    sleep(Duration::from_secs(3)).await;
    let start = Instant::now() + Duration::from_secs(2);
    let mut callers = JoinSet::new();
    for (index, replica) in processes.iter().enumerate() {
        let crowd = if !is_skewed {
            CROWD / replicas
        } else if index == 0 {
            CROWD
        } else {
            2
        };
        for number in 0..crowd {
            let proxy = replica.proxy;
            let name = format!("{index}-{number}");
            callers.spawn(async move { (index, caller(proxy, name, start + MEASURED).await) });
        }
    }
    let mut shares = vec![0; replicas];
    callers
        .join_all()
        .await
        .into_iter()
        .for_each(|(index, served)| shares[index] += served);
    let (worst, within) = seen(&sim, start);
    let report = sim.report();
    let calls = if is_skewed { "at one" } else { "spread" };
    let rate = within as f64 / MEASURED.as_secs_f64();
    assert!(report.duplicates.is_empty());
    println!(
        "| {replicas} | {calls} | {rate:.2} | {:.1} % | {worst} | {} | {} |",
        rate * 20.0,
        report.refused,
        shares
            .iter()
            .map(usize::to_string)
            .collect::<Vec<_>>()
            .join(" ")
    );
}

/// The duration of a single call in milliseconds, median and maximum, with pauses so that tokens
/// are free.
async fn lone(proxy: SocketAddr, name: &str) -> (f64, f64) {
    let mut took = Vec::new();
    for number in 0..LONE {
        sleep(Duration::from_millis(1100)).await;
        let begin = Instant::now();
        let reply = Call::v3(&proxy.to_string(), &format!("{name}-{number}"))
            .send(proxy)
            .await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        took.push(begin.elapsed().as_secs_f64() * 1000.0);
    }
    took.sort_by(f64::total_cmp);
    (took[LONE / 2], took[LONE - 1])
}

/// Measures whether a dead store makes calls slower.
async fn without_store() {
    let sim = Sim::start(Settings::default().with_key(KEY, SECRET, "acme"))
        .await
        .unwrap();
    let mut redis = Redis::start().await;
    let replica = replica(&sim, &redis).await;
    sleep(Duration::from_secs(3)).await;
    let with = lone(replica.proxy, "with").await;
    redis.stop().await;
    sleep(Duration::from_secs(4)).await;
    let without = lone(replica.proxy, "without").await;
    println!(
        "\na lone call, ms, median and most of {LONE}: with the store {with:.1?}, with a dead one {without:.1?}"
    );
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    println!(
        "| replicas | calls | sent a second | of 5 | worst second | refused | served at each |"
    );
    println!("|--:|---|--:|--:|--:|--:|---|");
    for replicas in [1, 2, 4, 8] {
        for is_skewed in [false, true] {
            run(replicas, is_skewed).await;
        }
    }
    without_store().await;
}
