//! The load: a closed loop of CreateFlow calls over kept connections, each with another access key
//! and nonce, signed before the measurement.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;
use tokio::time::Instant;

use crate::caller::Call;

#[derive(Args, Clone)]
pub(crate) struct Load {
    to: SocketAddr,
    /// The signed host.
    host: String,
    connections: usize,
    seconds: f64,
    /// Use the keys of managed accounts, in rotation; otherwise each key is used once.
    #[arg(long)]
    managed: bool,
    /// Number of managed accounts.
    #[arg(long, default_value_t = ACCOUNTS)]
    accounts: usize,
    /// Send each call with an idempotency key of its own.
    #[arg(long)]
    keyed: bool,
    /// Number of calls, instead of seconds.
    #[arg(long)]
    calls: Option<usize>,
}

/// Calls of one account, each on a connection of its own, that wait for a command.
#[derive(Args)]
pub(crate) struct Crowd {
    to: SocketAddr,
    /// The signed host.
    host: String,
    calls: usize,
}

/// The result; times in microseconds.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Seen {
    pub(crate) answered: usize,
    pub(crate) failed: usize,
    pub(crate) seconds: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

/// Number of managed accounts, so that each is called less often than its limit allows.
pub(crate) const ACCOUNTS: usize = 9_000;
/// More calls than any contender answers in a second.
const PER_SECOND: f64 = 60_000.0;

/// State shared by the connections.
struct Shared {
    calls: RefCell<Vec<Vec<u8>>>,
    /// Accounts whose calls are signed when they are sent: a million would not fit into memory.
    later: RefCell<Range<usize>>,
    until: Instant,
    took: RefCell<Vec<Duration>>,
    failed: RefCell<usize>,
}

/// The access key and secret of an account.
pub(crate) fn key(account: usize) -> (String, String) {
    (
        format!("LTAI{account:08}"),
        format!("bench-secret-{account:08}"),
    )
}

/// The configuration of managed accounts; their secrets are files in the folder.
pub(crate) fn accounts(count: usize, folder: &Path) -> String {
    let mut toml = String::new();
    for account in 0..count {
        let (key, secret) = key(account);
        std::fs::write(folder.join(&key), secret).unwrap();
        toml += &format!(
            "[[accounts]]\nid = \"a{account}\"\naccess_key_id = \"{key}\"\naccess_key_secret = {{ file = \"{key}\" }}\n"
        );
    }
    toml
}

/// A key as callers are told to make it.
fn uuid() -> String {
    let hex = format!("{:032x}", fastrand::u128(..));
    let [a, b, c, d, e] = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &hex[part]);
    [a, b, c, d, e].join("-")
}

// === impl Load ===

impl Load {
    /// Reports readiness, waits for a line, calls, and prints the result.
    pub(crate) async fn run(&self) {
        let calls = if self.calls.is_some() {
            0
        } else {
            (self.seconds * PER_SECOND) as usize
        };
        let first = fastrand::usize(..1 << 40);
        let calls: Vec<_> = (0..calls).map(|index| self.call(first + index)).collect();
        crate::process::say("ready");
        std::io::stdin().read_line(&mut String::new()).unwrap();
        let start = Instant::now();
        let seconds = if self.calls.is_some() {
            600.0
        } else {
            self.seconds
        };
        let shared = Rc::new(Shared {
            calls: RefCell::new(calls),
            later: RefCell::new(first..first + self.calls.unwrap_or_default()),
            until: start + Duration::from_secs_f64(seconds),
            took: RefCell::default(),
            failed: RefCell::default(),
        });
        let connections = LocalSet::new();
        for _ in 0..self.connections {
            connections.spawn_local(connection(self.clone(), shared.clone()));
        }
        connections.await;
        let seconds = start.elapsed().as_secs_f64();
        let mut took = shared.took.borrow_mut();
        took.sort_unstable();
        let part = |part: f64| took[((took.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6;
        let seen = Seen {
            answered: took.len(),
            failed: *shared.failed.borrow(),
            seconds,
            p50: part(0.5),
            p99: part(0.99),
        };
        crate::process::say(&serde_json::to_string(&seen).unwrap());
    }

    fn call(&self, index: usize) -> Vec<u8> {
        let (key, secret) = key(if self.managed {
            index % self.accounts
        } else {
            index
        });
        let agent = "AlibabaCloud (Linux; x86_64) Python/3.11.2 Core/0.4.4 TeaDSL/2";
        let query = [
            ("Categories", "[\"SIGN_UP\"]"),
            ("FlowName", "a flow of the benchmark's"),
        ];
        let mut call = Call::v3_with(
            &self.host,
            &query,
            |call| call.push("user-agent", agent),
            (&key, &secret),
        );
        if self.keyed {
            call.push("idempotency-key", &uuid());
        }
        call.bytes()
    }
}

// === impl Crowd ===

impl Crowd {
    /// Reports when all calls are sent, and ends on command.
    pub(crate) async fn run(&self) {
        assert!(
            flowgate::process::hardening::raise_open_files().unwrap() > self.calls as u64,
            "room for the sockets"
        );
        let mut waiting = Vec::new();
        for _ in 0..self.calls {
            let mut stream = TcpStream::connect(self.to).await.unwrap();
            let query = [
                ("Categories", "[\"SIGN_UP\"]"),
                ("FlowName", "a flow of the benchmark's"),
            ];
            let call = Call::v3_with(&self.host, &query, |_| {}, ("LTAI-crowd", "crowd-secret"));
            stream.write_all(&call.bytes()).await.unwrap();
            waiting.push(stream);
        }
        crate::process::say("waiting");
        std::io::stdin().read_line(&mut String::new()).unwrap();
    }
}

async fn connection(load: Load, shared: Rc<Shared>) {
    let mut stream = TcpStream::connect(load.to).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let mut seen = Vec::with_capacity(8192);
    while Instant::now() < shared.until {
        let signed = shared.calls.borrow_mut().pop();
        let later = || {
            shared
                .later
                .borrow_mut()
                .next()
                .map(|index| load.call(index))
        };
        let Some(call) = signed.or_else(later) else {
            return;
        };
        let start = Instant::now();
        stream.write_all(&call).await.unwrap();
        seen.clear();
        while !is_whole(&seen) {
            if stream.read_buf(&mut seen).await.unwrap() == 0 {
                eprintln!("closed after {:?}", String::from_utf8_lossy(&seen));
                *shared.failed.borrow_mut() += 1;
                return;
            }
        }
        if seen.starts_with(b"HTTP/1.1 200") {
            shared.took.borrow_mut().push(start.elapsed());
        } else {
            if *shared.failed.borrow() == 0 {
                eprintln!("{}", String::from_utf8_lossy(&seen));
            }
            *shared.failed.borrow_mut() += 1;
        }
    }
}

/// Contenders answer with a length or, as Envoy and nginx may, in chunks.
fn is_whole(seen: &[u8]) -> bool {
    let Some(end) = memmem(seen, b"\r\n\r\n") else {
        return false;
    };
    let head = &seen[..end];
    let length = head.split(|byte| *byte == b'\n').find_map(|line| {
        let (name, value) = line.split_at_checked(15)?;
        name.eq_ignore_ascii_case(b"content-length:").then(|| {
            str::from_utf8(value)
                .unwrap()
                .trim()
                .parse::<usize>()
                .unwrap()
        })
    });
    match length {
        Some(length) => seen.len() >= end + 4 + length,
        None => seen.ends_with(b"0\r\n\r\n"),
    }
}

fn memmem(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}
