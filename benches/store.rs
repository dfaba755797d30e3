//! Cost of the shared quota at the store. A real redis-server on loopback runs `deal.lua` as a
//! replica does: at several counts, one after the other, many at once, and for a hundred thousand
//! accounts. Cost, CPU time and memory are read from the server. Method and figures:
//! `benches/README.md`.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed benchmark")]
#![expect(
    clippy::print_stdout,
    reason = "the figures are what the benchmark is for"
)]

#[path = "../tests/it/redis.rs"]
mod servers;

use std::num::NonZeroU32;
use std::time::Duration;

use flowgate::testing::bench::{TAKE, dealt, take_args};
use redis::aio::MultiplexedConnection;
use redis::{Script, cmd};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::servers::Redis;

const ACCOUNTS: usize = 100_000;
const ONE_BY_ONE: usize = 20_000;
const AT_ONCE: usize = 64;
/// Waiting calls of a saturated lane.
const CROWD: usize = 50;
const FIVE: NonZeroU32 = NonZeroU32::new(5).unwrap();
const COUNTS: [u32; 3] = [5, 200, 10_000];
/// Lanes of one count in one round.
const LANES: usize = 20;
const ROUNDS: usize = 8;
/// Length of the server's slow log.
const LOGGED: i64 = 300;
/// Maximum number of slots of one take.
const AT_MOST: usize = 256;

async fn info(connection: &mut MultiplexedConnection, names: &[&str]) -> f64 {
    let text: String = cmd("INFO")
        .arg("everything")
        .query_async(connection)
        .await
        .unwrap();
    let value = |name: &&str| -> f64 {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(*name)?.strip_prefix(':'))
            .unwrap();
        line.trim().parse().unwrap()
    };
    names.iter().map(value).sum()
}

async fn cpu(connection: &mut MultiplexedConnection) -> f64 {
    info(connection, &["used_cpu_user", "used_cpu_sys"]).await
}

/// A lane, the script, and a connection.
struct Lane<'a> {
    name: String,
    count: NonZeroU32,
    script: &'a Script,
}

async fn take(
    lane: &Lane<'_>,
    wanted: usize,
    connection: &mut MultiplexedConnection,
) -> (usize, u64) {
    let Lane {
        name,
        count,
        script,
    } = lane;
    let mut call = script.prepare_invoke();
    call.key(format!("flowgate:lane:{{{name}}}:CreateFlow"))
        .key(format!("flowgate:ring:{{{name}}}:CreateFlow"));
    for arg in take_args("0123456789abcdef", *count, wanted) {
        call.arg(arg);
    }
    let answer: redis::Value = call.invoke_async(connection).await.unwrap();
    dealt(answer).unwrap()
}

/// The server's microseconds of each script since the last call of this.
async fn times(connection: &mut MultiplexedConnection) -> Vec<u64> {
    type Entry = (u64, u64, u64, Vec<redis::Value>, redis::Value, redis::Value);
    let entries: Vec<Entry> = cmd("SLOWLOG")
        .arg("GET")
        .arg(LOGGED)
        .query_async(connection)
        .await
        .unwrap();
    cmd("SLOWLOG")
        .arg("RESET")
        .query_async::<()>(connection)
        .await
        .unwrap();
    let is_script =
        |entry: &&Entry| entry.3.first() == Some(&redis::Value::BulkString(b"EVALSHA".to_vec()));
    entries
        .iter()
        .filter(is_script)
        .map(|entry| entry.2)
        .collect()
}

/// The mean would include other work of the machine.
fn median(mut times: Vec<u64>) -> u64 {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Server times of the takes at one count.
#[derive(Default)]
struct TakeTimes {
    /// Of a free token.
    free: Vec<u64>,
    /// Of a token that is back, while half of the tokens are in use.
    back: Vec<u64>,
    /// While all tokens are in use.
    away: Vec<u64>,
    /// Of as many tokens as one answer has.
    crowd: Vec<u64>,
}

/// Server time of a take of one slot and of the maximum, with free tokens, with tokens that are
/// back after use, and with none.
async fn by_count(connection: &mut MultiplexedConnection, script: &Script) {
    for (name, value) in [("slowlog-log-slower-than", 0), ("slowlog-max-len", LOGGED)] {
        cmd("CONFIG")
            .arg("SET")
            .arg(name)
            .arg(value)
            .query_async::<()>(connection)
            .await
            .unwrap();
    }
    // The first takes after the start of the server are slower than all others.
    for index in 0..ONE_BY_ONE {
        let lane = Lane {
            name: format!("warm-up-{index}"),
            count: FIVE,
            script,
        };
        take(&lane, 1, connection).await;
    }
    // The counts take turns, so that other work of the machine meets all of them.
    let mut of_count = COUNTS.map(|count| (count, TakeTimes::default()));
    for round in 0..ROUNDS {
        for (count, seen) in &mut of_count {
            let count = NonZeroU32::new(*count).unwrap();
            one_round(connection, script, round, count, seen).await;
        }
    }
    for (count, seen) in of_count {
        println!(
            "at {count} a second: {} us a take of a free token, {} us of one that is back, {} us while all are away, {} us a take of {}",
            median(seen.free),
            median(seen.back),
            median(seen.away),
            median(seen.crowd),
            AT_MOST.min(count as usize),
        );
    }
    cmd("CONFIG")
        .arg("SET")
        .arg("slowlog-log-slower-than")
        .arg(-1)
        .query_async::<()>(connection)
        .await
        .unwrap();
    cmd("FLUSHALL").query_async::<()>(connection).await.unwrap();
}

async fn one_round(
    connection: &mut MultiplexedConnection,
    script: &Script,
    round: usize,
    count: NonZeroU32,
    seen: &mut TakeTimes,
) {
    let lane = |kind: &str, index: usize| Lane {
        name: format!("{kind}-{count}-{round}-{index}"),
        count,
        script,
    };
    let many = AT_MOST.min(count.get() as usize);
    times(connection).await;
    for index in 0..LANES {
        take(&lane("all", index), 1, connection).await;
    }
    seen.free.extend(times(connection).await);
    for index in 0..LANES {
        take(&lane("all", index), many, connection).await;
    }
    seen.crowd.extend(times(connection).await);
    for index in 0..LANES {
        while take(&lane("all", index), many, connection).await.0 > 0 {}
    }
    times(connection).await;
    for index in 0..LANES {
        take(&lane("all", index), 1, connection).await;
    }
    seen.away.extend(times(connection).await);
    // Half of the tokens are back, and half are in use.
    let half = count.get() as usize / 2;
    for pause in [600, 450] {
        for index in 0..LANES {
            let mut dealt = 0;
            while dealt < half {
                dealt += take(&lane("half", index), many.min(half - dealt), connection)
                    .await
                    .0;
            }
        }
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    // The odd one of five.
    for index in 0..LANES {
        take(&lane("half", index), count.get() as usize % 2, connection).await;
    }
    times(connection).await;
    for index in 0..LANES {
        assert_eq!(
            take(&lane("half", index), 1, connection).await.0,
            1,
            "half of its tokens are back"
        );
    }
    seen.back.extend(times(connection).await);
}

fn percentile(sorted: &[Duration], part: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6
}

async fn one_by_one(connection: &mut MultiplexedConnection, script: &Script) {
    let mut waits = Vec::with_capacity(ONE_BY_ONE);
    let before = cpu(connection).await;
    for account in 0..ONE_BY_ONE {
        let start = Instant::now();
        let lane = Lane {
            name: format!("one-{account}"),
            count: FIVE,
            script,
        };
        assert_eq!(
            take(&lane, 1, connection).await.0,
            1,
            "each account has five"
        );
        waits.push(start.elapsed());
    }
    let used = cpu(connection).await - before;
    let mut pings = Vec::with_capacity(ONE_BY_ONE);
    for _ in 0..ONE_BY_ONE {
        let start = Instant::now();
        cmd("PING").query_async::<String>(connection).await.unwrap();
        pings.push(start.elapsed());
    }
    for (name, list) in [
        ("a take", &mut waits),
        ("PING, the round trip alone", &mut pings),
    ] {
        list.sort();
        println!(
            "{name}: p50 {:.0} us, p99 {:.0} us",
            percentile(list, 0.5),
            percentile(list, 0.99)
        );
    }
    println!(
        "CPU of the store: {:.1} ms per 1,000 takes, one after the other",
        used * 1e6 / ONE_BY_ONE as f64
    );
}

/// Duration of a take while a lane of 10,000 per second has more calls than it can send.
async fn beside_a_crowd(
    connection: &mut MultiplexedConnection,
    other: MultiplexedConnection,
    script: &Script,
) {
    let crowd = tokio::spawn({
        let mut connection = other;
        let script = script.clone();
        async move {
            let count = NonZeroU32::new(10_000).unwrap();
            let lane = Lane {
                name: "crowd".to_owned(),
                count,
                script: &script,
            };
            let start = Instant::now();
            let mut slots = 0;
            loop {
                let (dealt, again) = take(&lane, 20_000, &mut connection).await;
                slots += dealt;
                if start.elapsed() > Duration::from_secs(5) {
                    return f64::from(u32::try_from(slots).unwrap())
                        / start.elapsed().as_secs_f64();
                }
                tokio::time::sleep(Duration::from_micros(again)).await;
            }
        }
    });
    let mut waits = Vec::new();
    while !crowd.is_finished() {
        let lane = Lane {
            name: format!("beside-{}", waits.len()),
            count: FIVE,
            script,
        };
        let start = Instant::now();
        take(&lane, 1, connection).await;
        waits.push(start.elapsed());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    waits.sort();
    println!(
        "a take beside a lane that is dealt {:.0} slots a second: p50 {:.0} us, p99 {:.0} us",
        crowd.await.unwrap(),
        percentile(&waits, 0.5),
        percentile(&waits, 0.99)
    );
}

/// Every account calls once, and again when its first tokens are back: the load that a store can
/// carry.
async fn many(connection: &mut MultiplexedConnection, script: &Script) {
    let empty = info(connection, &["used_memory"]).await;
    for round in ["new", "known"] {
        let start = Instant::now();
        let before = cpu(connection).await;
        let mut tasks = JoinSet::new();
        for task in 0..AT_ONCE {
            let mut connection = connection.clone();
            let script = script.clone();
            tasks.spawn(async move {
                for account in (task..ACCOUNTS).step_by(AT_ONCE) {
                    let lane = Lane {
                        name: format!("account-{account}"),
                        count: FIVE,
                        script: &script,
                    };
                    take(&lane, 1, &mut connection).await;
                }
            });
        }
        tasks.join_all().await;
        let seconds = start.elapsed().as_secs_f64();
        let used = cpu(connection).await - before;
        println!(
            "{ACCOUNTS} {round} accounts, {AT_ONCE} takes at once: {:.0} takes/s, CPU of the store {:.1} ms per 1,000 takes",
            ACCOUNTS as f64 / seconds,
            used * 1e6 / ACCOUNTS as f64
        );
    }
    let grown = info(connection, &["used_memory"]).await - empty;
    println!(
        "memory of the store: {:.0} bytes per account",
        grown / ACCOUNTS as f64
    );
}

/// One replica with a waiting crowd takes when the store allows it: takes per second.
async fn saturated(connection: &mut MultiplexedConnection, script: &Script) {
    let mut asked = 0;
    let mut slots = 0;
    let lane = Lane {
        name: "saturated".to_owned(),
        count: FIVE,
        script,
    };
    let end = Instant::now() + Duration::from_secs(10);
    while Instant::now() < end {
        let (dealt, again) = take(&lane, CROWD, connection).await;
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
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let script = Script::new(TAKE);
    script
        .prepare_invoke()
        .load_async(&mut connection)
        .await
        .unwrap();
    // The first script on a server costs more than any later one.
    let lane = Lane {
        name: "first".to_owned(),
        count: FIVE,
        script: &script,
    };
    take(&lane, 1, &mut connection).await;
    by_count(&mut connection, &script).await;
    one_by_one(&mut connection, &script).await;
    let other = client.get_multiplexed_async_connection().await.unwrap();
    beside_a_crowd(&mut connection, other, &script).await;
    many(&mut connection, &script).await;
    saturated(&mut connection, &script).await;
}
