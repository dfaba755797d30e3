//! An endpoint with exact receive times: the kernel stamps every segment when the sender writes it
//! to the loopback device, and the stamp is read with the bytes, so delays of this program do not
//! matter.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

/// A listening endpoint. Dropping it stops it.
pub(crate) struct Endpoint {
    pub(crate) addr: SocketAddr,
    state: Arc<Mutex<State>>,
    _end: oneshot::Sender<()>,
}

/// What an endpoint received.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    /// Requests that were refused because the account had `count` of them within the second before.
    pub(crate) refused: usize,
    /// The most requests of one account within less than a second.
    pub(crate) worst_second: usize,
}

struct State {
    /// Requests of one account that are accepted within a second.
    count: usize,
    refused: usize,
    /// When each account's requests were written, in order.
    all: BTreeMap<String, Vec<Instant>>,
    accepted: BTreeMap<String, Vec<Instant>>,
}

/// The response time of CAMS.
const LATENCY: Duration = Duration::from_millis(20);

const SECOND: Duration = Duration::from_secs(1);

const ACCEPTED: (&str, &str) = (
    "200 OK",
    r#"{"RequestId":"90E63D28","Code":"OK","Message":"OK","Data":{"FlowId":"1"}}"#,
);

const REFUSED: (&str, &str) = (
    "400 Bad Request",
    r#"{"RequestId":"90E63D28","HostId":"cams","Code":"System.LimitControl","Message":"The system is under flow control."}"#,
);

// === impl Endpoint ===

impl Endpoint {
    /// Starts an endpoint in a thread of its own.
    pub(crate) fn start(count: usize) -> Self {
        let all = BTreeMap::new();
        let accepted = BTreeMap::new();
        let state = Arc::new(Mutex::new(State {
            count,
            refused: 0,
            all,
            accepted,
        }));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        SockRef::from(&listener).listen(4096).unwrap();
        // Accepted sockets inherit it, so bytes from before `accept` are stamped too.
        cams_sim::stamp(&listener).unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        let (end, ended) = oneshot::channel();
        let served = state.clone();
        std::thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    () = serve(listener, served) => {}
                    _ = ended => {}
                }
            });
        });
        Self {
            addr,
            state,
            _end: end,
        }
    }

    /// The requests so far.
    pub(crate) fn seen(&self) -> Seen {
        let state = self.state.lock();
        Seen {
            refused: state.refused,
            worst_second: state.all.values().map(|at| worst(at)).max().unwrap_or(0),
        }
    }
}

async fn serve(listener: TcpListener, state: Arc<Mutex<State>>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        tokio::spawn(serve_connection(stream, state.clone()));
    }
}

/// Requests have no body and come one at a time.
async fn serve_connection(mut stream: TcpStream, state: Arc<Mutex<State>>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut request = Vec::new();
    let mut written_at = None;
    let mut buffer = [0; 8192];
    loop {
        stream.readable().await?;
        let (length, received) = match cams_sim::receive(&stream, &mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            received => received?,
        };
        if length == 0 {
            return Ok(());
        }
        let at = *written_at.get_or_insert(received);
        request.extend_from_slice(&buffer[..length]);
        if !request.ends_with(b"\r\n\r\n") {
            continue;
        }
        written_at = None;
        let (status, body) = if state.lock().accepts(account(&request), at) {
            ACCEPTED
        } else {
            REFUSED
        };
        request.clear();
        sleep(LATENCY).await;
        let head = "content-type: application/json;charset=utf-8\r\nx-acs-request-id: 90E63D28\r\n";
        let answer = format!(
            "HTTP/1.1 {status}\r\n{head}content-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(answer.as_bytes()).await?;
    }
}

/// The access key of a V3 signature.
fn account(request: &[u8]) -> String {
    let text = String::from_utf8_lossy(request);
    let key = text
        .split_once("Credential=")
        .and_then(|(_, rest)| rest.split_once(','));
    key.map(|(key, _)| key.to_owned()).unwrap_or_default()
}

/// The most of these ordered times within less than a second.
fn worst(moments: &[Instant]) -> usize {
    moments
        .iter()
        .enumerate()
        .map(|(index, first)| moments.partition_point(|other| *other < *first + SECOND) - index)
        .max()
        .unwrap_or(0)
}

// === impl State ===

impl State {
    /// Counts a request that was written at `at`; false if it is refused.
    fn accepts(&mut self, account: String, at: Instant) -> bool {
        insert(self.all.entry(account.clone()).or_default(), at);
        let accepted = self.accepted.entry(account).or_default();
        let before = accepted.partition_point(|other| *other + SECOND <= at);
        let within = accepted.partition_point(|other| *other <= at) - before;
        if within >= self.count {
            self.refused += 1;
            return false;
        }
        insert(accepted, at);
        true
    }
}

/// Connections are not read in the order of the writes.
fn insert(moments: &mut Vec<Instant>, at: Instant) {
    let place = moments.partition_point(|other| *other <= at);
    moments.insert(place, at);
}
