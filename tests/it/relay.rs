//! A relay between Flowgate and the endpoint, for tests and benchmarks. It records when the kernel
//! received each request, and can be blocked, like a frozen endpoint, or broken, like a killed one.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// A relay that ends with the test.
pub(crate) struct Relay {
    address: SocketAddr,
    condition: watch::Sender<Condition>,
    passed: Passed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    Open,
    /// Connections and bytes are accepted, and nothing moves, as the kernel does for a stopped
    /// process.
    Frozen,
    /// The port is closed, and so is every connection.
    Killed,
}

/// When each CreateFlow passed, by its access key.
type Passed = Arc<Mutex<BTreeMap<String, Vec<Instant>>>>;

// === impl Relay ===

impl Relay {
    pub(crate) fn to(endpoint: SocketAddr) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        cams_sim::stamp(&listener).unwrap();
        let address = listener.local_addr().unwrap();
        let condition = watch::Sender::new(Condition::Open);
        let passed = Passed::default();
        let seen = condition.subscribe();
        let noted = passed.clone();
        // In a thread of its own, so that it relays however busy the test is.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_io()
                .build()
                .unwrap();
            runtime.block_on(keep(listener, endpoint, seen, noted));
        });
        Self {
            address,
            condition,
            passed,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn is(&self, condition: Condition) {
        self.condition.send_replace(condition);
    }

    /// The most CreateFlow calls of one key within a second, since the last call of this.
    pub(crate) fn worst_second(&self) -> usize {
        let most = |mut at: Vec<Instant>| {
            at.sort();
            let until = |from: &Instant| {
                at.partition_point(|other| *other < *from + Duration::from_secs(1))
            };
            at.iter()
                .enumerate()
                .map(|(index, from)| until(from) - index)
                .max()
        };
        std::mem::take(&mut *self.passed.lock())
            .into_values()
            .filter_map(most)
            .max()
            .unwrap_or(0)
    }
}

/// Waits for the condition; false when the relay has ended.
async fn until(condition: &mut watch::Receiver<Condition>, wished: fn(Condition) -> bool) -> bool {
    condition.wait_for(|now| wished(*now)).await.is_ok()
}

async fn keep(
    listener: std::net::TcpListener,
    endpoint: SocketAddr,
    mut condition: watch::Receiver<Condition>,
    passed: Passed,
) {
    let address = listener.local_addr().unwrap();
    let mut listener = TcpListener::from_std(listener).unwrap();
    loop {
        let mut ways = JoinSet::new();
        loop {
            let seen = condition.clone();
            tokio::select! {
                accepted = listener.accept() => {
                    ways.spawn(way(accepted.unwrap().0, endpoint, seen, passed.clone()));
                }
                Some(_) = ways.join_next() => {}
                killed = until(&mut condition, |now| now == Condition::Killed) => if killed { break } else { return },
            }
        }
        drop(listener);
        ways.shutdown().await;
        until(&mut condition, |now| now != Condition::Killed).await;
        listener = TcpListener::bind(address).await.unwrap();
        cams_sim::stamp(&listener).unwrap();
    }
}

/// Relays one connection. The client's first bytes are read before the endpoint is dialled.
async fn way(
    near: TcpStream,
    endpoint: SocketAddr,
    condition: watch::Receiver<Condition>,
    passed: Passed,
) {
    let (from, to) = near.into_split();
    let first = read(&from, Some(&passed)).await;
    let Ok(far) = TcpStream::connect(endpoint).await else {
        return;
    };
    let (back, forth) = far.into_split();
    let there = pass(first, from, forth, condition.clone(), Some(&passed));
    let and_back = async {
        let first = read(&back, None).await;
        pass(first, back, to, condition, None).await;
    };
    tokio::join!(there, and_back);
}

/// Relays these bytes and all that follow.
async fn pass(
    mut bytes: Vec<u8>,
    from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut condition: watch::Receiver<Condition>,
    passed: Option<&Passed>,
) {
    while !bytes.is_empty() {
        if !until(&mut condition, |now| now != Condition::Frozen).await
            || to.write_all(&bytes).await.is_err()
        {
            return;
        }
        bytes = read(&from, passed).await;
    }
}

/// The next bytes; empty at the end.
async fn read(from: &OwnedReadHalf, passed: Option<&Passed>) -> Vec<u8> {
    let mut buffer = vec![0; 16 * 1024];
    let (length, at) = loop {
        let received = match from.readable().await {
            Ok(()) => cams_sim::receive(from.as_ref(), &mut buffer),
            Err(error) => Err(error),
        };
        match received {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            received => break received.unwrap_or((0, Instant::now())),
        }
    };
    buffer.truncate(length);
    if let (Some(passed), Some(key)) = (passed, key(&buffer)) {
        passed.lock().entry(key).or_default().push(at);
    }
    buffer
}

/// The access key of a CreateFlow that starts here. Flowgate writes each head in one piece.
fn key(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    let is_other = text.contains("x-acs-action: ") && !text.contains("x-acs-action: CreateFlow");
    if is_other {
        return None;
    }
    let credential = text
        .strip_prefix("POST ")?
        .split_once("Credential=")
        .expect("a head in one piece")
        .1;
    credential.split_once(',').map(|(key, _)| key.to_owned())
}
