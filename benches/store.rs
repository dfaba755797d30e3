//! What does the shared quota cost the store? A real redis-server on loopback runs `take.lua` as a replica asks for it:
//! one after the other, many at once, and for a hundred thousand accounts; its own CPU time and memory are read from it.
//! `benches/README.md` has the method and the figures.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed benchmark")]
#![expect(clippy::print_stdout, reason = "the figures are what the benchmark is for")]

#[path = "../tests/it/redis.rs"]
mod servers;

use std::time::Duration;

use flowgate::bench_support::{TAKE, dealt, take_args};
use redis::aio::MultiplexedConnection;
use redis::{Script, cmd};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::servers::Redis;

const ACCOUNTS: usize = 100_000;
const ONE_BY_ONE: usize = 20_000;
const AT_ONCE: usize = 64;
/// Calls that wait at a saturated lane.
const CROWD: usize = 50;

async fn info(connection: &mut MultiplexedConnection, names: &[&str]) -> f64 {
    let text: String = cmd("INFO").arg("everything").query_async(connection).await.unwrap();
    let value = |name: &&str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(*name)?.strip_prefix(':')).unwrap();
        line.trim().parse().unwrap()
    };
    names.iter().map(value).sum()
}

async fn cpu(connection: &mut MultiplexedConnection) -> f64 {
    info(connection, &["used_cpu_user", "used_cpu_sys"]).await
}

async fn take(script: &Script, key: &str, wanted: usize, connection: &mut MultiplexedConnection) -> (usize, u64) {
    let mut call = script.key(key);
    for arg in take_args("0123456789abcdef", FIVE, wanted) {
        call.arg(arg);
    }
    let answer: redis::Value = call.invoke_async(connection).await.unwrap();
    dealt(answer).unwrap()
}

fn percentile(sorted: &[Duration], part: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6
}

async fn one_by_one(connection: &mut MultiplexedConnection, script: &Script) {
    let mut waits = Vec::with_capacity(ONE_BY_ONE);
    let before = cpu(connection).await;
    for account in 0..ONE_BY_ONE {
        let start = Instant::now();
        assert_eq!(take(script, &format!("one:{account}"), 1, connection).await.0, 1, "each account has five");
        waits.push(start.elapsed());
    }
    let used = cpu(connection).await - before;
    let mut pings = Vec::with_capacity(ONE_BY_ONE);
    for _ in 0..ONE_BY_ONE {
        let start = Instant::now();
        cmd("PING").query_async::<String>(connection).await.unwrap();
        pings.push(start.elapsed());
    }
    for (name, list) in [("a take", &mut waits), ("PING, the round trip alone", &mut pings)] {
        list.sort();
        println!("{name}: p50 {:.0} us, p99 {:.0} us", percentile(list, 0.5), percentile(list, 0.99));
    }
    println!("CPU of the store: {:.1} ms per 1,000 takes, one after the other", used * 1e6 / ONE_BY_ONE as f64);
}

/// Every account calls once, and then again when its first tokens are back: what a store carries.
async fn many(connection: &mut MultiplexedConnection, script: &Script) {
    let empty = info(connection, &["used_memory"]).await;
    for round in ["new", "known"] {
        let (start, before) = (Instant::now(), cpu(connection).await);
        let mut tasks = JoinSet::new();
        for task in 0..AT_ONCE {
            let (mut connection, script) = (connection.clone(), script.clone());
            tasks.spawn(async move {
                for account in (task..ACCOUNTS).step_by(AT_ONCE) {
                    take(&script, &format!("flowgate:lane:{{account-{account}}}:CreateFlow"), 1, &mut connection).await;
                }
            });
        }
        tasks.join_all().await;
        let (seconds, used) = (start.elapsed().as_secs_f64(), cpu(connection).await - before);
        println!(
            "{ACCOUNTS} {round} accounts, {AT_ONCE} takes at once: {:.0} takes/s, CPU of the store {:.1} ms per 1,000 takes",
            ACCOUNTS as f64 / seconds,
            used * 1e6 / ACCOUNTS as f64
        );
    }
    let grown = info(connection, &["used_memory"]).await - empty;
    println!("memory of the store: {:.0} bytes per account", grown / ACCOUNTS as f64);
}

/// One replica with a crowd waiting asks when the store says: how many questions a second that takes.
async fn saturated(connection: &mut MultiplexedConnection, script: &Script) {
    let (mut asked, mut slots) = (0, 0);
    let end = Instant::now() + Duration::from_secs(10);
    while Instant::now() < end {
        let (dealt, again) = take(script, "saturated", CROWD, connection).await;
        (asked, slots) = (asked + 1, slots + dealt);
        tokio::time::sleep(Duration::from_micros(again)).await;
    }
    println!(
        "a saturated account, one replica: {:.1} takes/s for {:.2} calls/s",
        asked as f64 / 10.0,
        slots as f64 / 10.0
    );
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let server = Redis::start().await;
    let client = redis::Client::open(server.url()).unwrap();
    let (mut connection, script) = (client.get_multiplexed_async_connection().await.unwrap(), Script::new(TAKE));
    script.prepare_invoke().load_async(&mut connection).await.unwrap();
    one_by_one(&mut connection, &script).await;
    many(&mut connection, &script).await;
    saturated(&mut connection, &script).await;
}
