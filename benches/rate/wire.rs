//! The rate on the wire at several counts, with tokens in memory or in a store, also beside busy
//! loops on both cores.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::sleep;

use crate::busy::BusyLoops;
use crate::caller::try_exchange;
use crate::crowd::{Size, Target};
use crate::endpoint::{Endpoint, Seen};
use crate::flowgate;
use crate::redis::Redis;

/// One crowd.
#[derive(Clone, Copy)]
pub(crate) struct Row {
    count: usize,
    size: Size,
    has_store: bool,
    is_busy: bool,
}

/// Time after a start until all tokens are free: they may just have been used.
const START: Duration = Duration::from_secs(3);

/// Twice the number of cores of the machine in the table.
const BUSY_LOOPS: usize = 4;

pub(crate) const HEAD: &str = "| rate | calls | tokens | beside | ok, throttled, lost | worst second on the wire | seconds (optimum) |\n\
                               |--:|--:|---|---|--:|--:|--:|";

/// All rows, or the ones that take less than two minutes.
pub(crate) fn rows(quick: bool) -> Vec<Row> {
    // The count, and the number of windows of its crowd.
    let counts: &[(usize, usize)] = if quick {
        &[(5, 6), (200, 4)]
    } else {
        &[(5, 12), (50, 6), (200, 5), (1000, 4)]
    };
    let loads: &[bool] = if quick { &[true] } else { &[false, true] };
    let mut rows = Vec::new();
    for &(count, windows) in counts {
        for has_store in [false, true] {
            let size = Size {
                accounts: 1,
                calls: count * windows,
            };
            rows.extend(loads.iter().map(|&is_busy| Row {
                count,
                size,
                has_store,
                is_busy,
            }));
        }
    }
    if !quick {
        let size = Size {
            accounts: 20,
            calls: 60,
        };
        rows.extend([false, true].map(|has_store| Row {
            count: 5,
            size,
            has_store,
            is_busy: true,
        }));
    }
    rows
}

async fn store_is_up(admin: SocketAddr) {
    let request = format!("GET /metrics HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n");
    loop {
        let reply = try_exchange(admin, request.as_bytes()).await;
        if reply.is_some_and(|reply| reply.body.contains("\nflowgate_store_up 1\n")) {
            return;
        }
        sleep(Duration::from_millis(50)).await;
    }
}

// === impl Row ===

impl Row {
    /// Runs the row, prints it, and returns a broken promise.
    pub(crate) async fn run(self) -> Result<(), String> {
        let endpoint = Endpoint::start(self.count);
        let redis = if self.has_store {
            Some(Redis::start().await)
        } else {
            None
        };
        let store = redis
            .as_ref()
            .map(|redis| format!("[quota]\nstore = \"{}\"\n", redis.url()))
            .unwrap_or_default();
        // 5/1s is the documented limit.
        let limit = if self.count == 5 {
            String::new()
        } else {
            flowgate::limit(self.count)
        };
        let upstream = format!("http://{}", endpoint.addr);
        let process =
            flowgate::start(&upstream, self.size.accounts, &format!("{limit}{store}")).await;
        if self.has_store {
            store_is_up(process.admin).await;
        }
        sleep(START).await;
        let busy = self.is_busy.then(|| BusyLoops::start(BUSY_LOOPS));
        let host = process.proxy.to_string();
        let answers = Target {
            to: process.proxy,
            host: &host,
            limiters: &[],
        }
        .crowd(self.size)
        .await;
        drop(busy);
        let Seen {
            refused,
            worst_second,
        } = endpoint.seen();
        let ok = answers.iter().filter(|answer| answer.is_ok()).count();
        let lost = answers.len() - ok;
        let took = answers
            .iter()
            .map(|answer| answer.after)
            .max()
            .unwrap_or_default();
        let optimum = self.size.optimum(self.count);
        println!(
            "| {self} | {ok}, {refused}, {lost} | {worst_second} | {:.2} ({optimum}) |",
            took.as_secs_f64()
        );
        let is_kept = worst_second <= self.count && lost == 0 && refused == 0;
        if is_kept {
            Ok(())
        } else {
            Err(format!(
                "{self}: {worst_second} in a second, {refused} refused, {lost} lost"
            ))
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tokens = if self.has_store { "store" } else { "memory" };
        let beside = if self.is_busy {
            "4 busy loops"
        } else {
            "nothing"
        };
        write!(f, "{}/s | {} | {tokens} | {beside}", self.count, self.size)
    }
}
