//! Connections over real loopback sockets: reuse, lost and unsent requests. How connections are
//! opened is tested in `tests/dialling.rs`. The servers write their bytes by hand.

pub(crate) mod dialling;
mod first_write;
mod tunnels;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Handle};
use tokio::sync::Notify;
use tokio::time::{advance, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use super::{
    Connection, Lost, Reach, Request, Sent, TlsRoots, Upstream, UpstreamError, UpstreamResponse,
};
use crate::config::{self, Scheme};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";

/// What a server has received.
#[derive(Default)]
struct Seen {
    accepted: AtomicUsize,
    closed: AtomicUsize,
    /// Target and body of each request, in order of arrival.
    requests: Mutex<Vec<String>>,
}

impl Seen {
    fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    fn closed(&self) -> usize {
        self.closed.load(Ordering::SeqCst)
    }
}

/// Runs the script once for each connection, with the connection's number from 1.
async fn server<F, R>(script: F) -> (SocketAddr, Arc<Seen>)
where
    F: Fn(usize, TcpStream, Arc<Seen>) -> R + Send + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Seen::default());
    let watch = seen.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let number = watch.accepted.fetch_add(1, Ordering::SeqCst) + 1;
            let served = script(number, stream, watch.clone());
            let watch = watch.clone();
            tokio::spawn(async move {
                served.await;
                watch.closed.fetch_add(1, Ordering::SeqCst);
            });
        }
    });
    (address, seen)
}

/// Answers every request of every connection with the same bytes.
async fn answering(answer: &'static [u8]) -> (SocketAddr, Arc<Seen>) {
    server(move |_, mut stream, seen| async move {
        while read_request(&mut stream, &seen).await {
            stream.write_all(answer).await.unwrap();
        }
    })
    .await
}

/// Reads one request; returns false when the other side has closed.
async fn read_request(stream: &mut (impl AsyncRead + Unpin), seen: &Seen) -> bool {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return false,
        }
    }
    let head = String::from_utf8(head).unwrap();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .unwrap_or("0");
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).await.unwrap();
    let target = head.split(' ').nth(1).unwrap();
    seen.requests
        .lock()
        .push(format!("{target} {}", String::from_utf8(body).unwrap()));
    true
}

pub(super) fn settings(address: SocketAddr) -> config::Upstream {
    config::Upstream {
        scheme: Scheme::Http,
        dial_host: address.ip().to_string(),
        dial_port: address.port(),
        host: "cams.ap-southeast-1.aliyuncs.com".to_owned(),
        connect_to: Vec::new(),
        proxy: None,
        proxy_credentials: None,
        ca_file: None,
        connect_timeout: Duration::from_secs(3),
        answer_timeout: Duration::from_secs(30),
        idle_timeout: Duration::from_secs(10),
        correct_clock: true,
        max_response: 1000,
    }
}

fn upstream(address: SocketAddr) -> Upstream {
    Upstream::new(&settings(address), Vec::new()).unwrap()
}

fn request(target: &str) -> Request {
    let request = hyper::Request::post(target).header("host", "cams.ap-southeast-1.aliyuncs.com");
    request
        .body(Full::new(Bytes::from_static(b"body")))
        .unwrap()
}

async fn send(upstream: &Upstream, target: &str) -> Sent {
    upstream.ready(1).await.send(request(target), None).await
}

fn answered(sent: Sent) -> UpstreamResponse {
    match sent {
        Sent::Answered(answer) => answer,
        Sent::Unsent => panic!("unsent"),
        Sent::Lost(lost) => panic!("lost: {lost:?}"),
    }
}

fn lost(sent: Sent) -> Lost {
    match sent {
        Sent::Lost(lost) => lost,
        Sent::Unsent => panic!("unsent"),
        Sent::Answered(answer) => panic!("answered: {}", answer.status),
    }
}

/// Lets other tasks run until the condition is true.
async fn eventually(what: &str, is_true: impl Fn() -> bool) {
    let wait = async {
        while !is_true() {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(20), wait)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}

fn down(upstream: &Upstream) -> Option<String> {
    match upstream.reach() {
        Reach::Up => None,
        Reach::Down { reason, .. } => Some(reason.to_string()),
    }
}

/// The reason why no connection could be opened.
async fn refusal(upstream: &Upstream) -> String {
    let waiting = tokio::spawn({
        let upstream = upstream.clone();
        async move { drop(upstream.ready(1).await) }
    });
    eventually("down", || upstream.reach() != Reach::Up).await;
    waiting.abort();
    down(upstream).unwrap()
}

/// A connection of another runtime wakes another thread for each request and each response.
#[tokio::test]
async fn a_call_gets_a_connection_of_its_own_runtime_first() {
    let (address, seen) = answering(OK).await;
    let upstream = upstream(address);
    let other = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let own = upstream.ready(1).await;
    let there = upstream.clone();
    let others = other
        .spawn(async move { there.ready(1).await })
        .await
        .unwrap();
    // The other runtime's connection was used last.
    drop(own);
    drop(others);
    let [first, second] = [(); 2].map(|()| upstream.try_ready().unwrap());
    let home = |connection: &Connection| connection.link.as_ref().unwrap().home;
    assert_eq!(home(&first), Handle::current().id());
    assert_eq!(home(&second), other.handle().id());
    // It serves calls of any runtime.
    assert!(matches!(
        second.send(request("/"), None).await,
        Sent::Answered(_)
    ));
    assert_eq!(seen.accepted(), 2);
    other.shutdown_background();
}

#[tokio::test]
async fn a_connection_is_used_again() {
    let (address, seen) = answering(OK).await;
    let upstream = upstream(address);
    assert!(upstream.try_ready().is_none());
    for target in ["/?1", "/?2", "/?3"] {
        let connection = upstream.ready(1).await;
        assert!(connection.is_usable());
        assert_eq!(upstream.in_use(), 1);
        let answer = answered(connection.send(request(target), None).await);
        assert_eq!((answer.status.as_u16(), &*answer.body), (200, &b"{}"[..]));
        assert_eq!(answer.headers["content-length"], "2");
        eventually("given back", || {
            (upstream.idle(), upstream.in_use()) == (1, 0)
        })
        .await;
    }
    assert_eq!(*seen.requests.lock(), ["/?1 body", "/?2 body", "/?3 body"]);
    assert_eq!(seen.accepted(), 1);
    assert_eq!(upstream.reach(), Reach::Up);
}

#[tokio::test]
async fn an_unused_connection_goes_back_and_the_latest_is_given_out_first() {
    let (address, seen) = server(|number, mut stream, seen| async move {
        while read_request(&mut stream, &seen).await {
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{number}");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let upstream = upstream(address);
    let first = upstream.ready(1).await;
    let second = upstream.ready(1).await;
    drop(first);
    drop(second);
    assert_eq!((upstream.idle(), upstream.in_use()), (2, 0));
    let answer = answered(upstream.try_ready().unwrap().send(request("/"), None).await);
    assert_eq!(&*answer.body, b"2");
    assert_eq!(seen.accepted(), 2);
}

#[tokio::test]
async fn one_connection_is_opened_for_each_call_that_could_be_sent() {
    let (address, seen) = answering(OK).await;
    let upstream = upstream(address);
    let connection = upstream.ready(5).await;
    eventually("five open", || (upstream.idle(), seen.accepted()) == (4, 5)).await;
    let others: Vec<_> = std::iter::from_fn(|| upstream.try_ready()).collect();
    assert_eq!(
        (others.len(), upstream.idle(), upstream.in_use()),
        (4, 0, 5)
    );
    drop((connection, others));
    assert_eq!(
        (upstream.idle(), upstream.in_use(), seen.accepted()),
        (5, 0, 5)
    );
}

/// Whether a connection to this address has not received a close yet, as the kernel sees it.
fn is_established(to: SocketAddr) -> bool {
    let IpAddr::V4(ip) = to.ip() else {
        panic!("{to} is not an IPv4 address");
    };
    // The kernel prints addresses in the byte order of the host.
    let remote = format!("{:08X}:{:04X}", u32::from_ne_bytes(ip.octets()), to.port());
    let sockets = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    sockets.lines().any(|socket| {
        let mut columns = socket.split_whitespace().skip(2);
        columns.next() == Some(&*remote) && columns.next() == Some("01")
    })
}

#[tokio::test]
async fn a_server_that_closes_between_calls_loses_and_repeats_no_request() {
    let (address, seen) = server(|_, mut stream, seen| async move {
        read_request(&mut stream, &seen).await;
        stream.write_all(OK).await.unwrap();
    })
    .await;
    let upstream = upstream(address);
    for call in 0..50 {
        loop {
            match upstream
                .ready(1)
                .await
                .send(request(&format!("/?{call}")), None)
                .await
            {
                Sent::Answered(answer) => break assert_eq!(answer.status, 200),
                Sent::Unsent => {}
                Sent::Lost(lost) => panic!("{lost:?}"),
            }
        }
        // The kernel has the close before the next call; whether hyper has noticed it is random.
        eventually("closed", || seen.closed() == seen.accepted()).await;
        eventually("close received", || !is_established(address)).await;
        // The runtime looks for events of sockets before it goes on.
        tokio::task::yield_now().await;
    }
    let expected: Vec<_> = (0..50).map(|call| format!("/?{call} body")).collect();
    assert_eq!(*seen.requests.lock(), expected);
}

#[tokio::test]
async fn a_connection_that_closes_before_the_request_reports_it_as_unsent() {
    let (address, seen) = server(|_, stream, _| async move { drop(stream) }).await;
    let upstream = upstream(address);
    let connection = upstream.ready(1).await;
    eventually("close noticed", || !connection.is_usable()).await;
    assert!(matches!(
        connection.send(request("/?x"), None).await,
        Sent::Unsent
    ));
    assert_eq!((upstream.idle(), upstream.in_use()), (0, 0));
    assert_eq!(*seen.requests.lock(), [""; 0]);
}

#[tokio::test]
async fn a_connection_that_closes_while_idle_is_not_handed_out() {
    let close = Arc::new(Notify::new());
    let closing = close.clone();
    let (address, seen) = server(move |_, stream, _| {
        let closing = closing.clone();
        async move {
            closing.notified().await;
            drop(stream);
        }
    })
    .await;
    let upstream = upstream(address);
    drop(upstream.ready(1).await);
    drop(upstream.try_ready().unwrap());
    close.notify_one();
    let is_none = || match upstream.try_ready() {
        Some(connection) => {
            assert!(connection.is_usable());
            false
        }
        None => true,
    };
    eventually("close noticed", is_none).await;
    assert_eq!(
        (upstream.idle(), upstream.in_use(), seen.accepted()),
        (0, 0, 1)
    );
}

#[tokio::test]
async fn an_incomplete_response_is_lost_and_its_connection_closed() {
    const HUGE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 1001\r\n\r\n";
    let rows: [(&[u8], Lost); 12] = [
        (b"", Lost::Closed),
        (b"HTTP/1.1 200 OK\r\ncontent-le", Lost::Closed),
        (b"HTTP/1.1 100 Continue\r\n\r\n", Lost::Closed),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{}",
            Lost::Cut,
        ),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n",
            Lost::Cut,
        ),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
            Lost::Cut,
        ),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
            Lost::Malformed,
        ),
        (b"SSH-2.0-OpenSSH\r\n\r\n", Lost::Malformed),
        (b"HTTP/1.1 abc\r\n\r\n", Lost::Malformed),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
            Lost::Malformed,
        ),
        ([HUGE, &[b'x'; 1001]].concat().leak(), Lost::TooLarge),
        (
            [b"HTTP/1.1 200 OK\r\nx: ", &[b'x'; 70_000][..], b"\r\n\r\n"]
                .concat()
                .leak(),
            Lost::TooLarge,
        ),
    ];
    for (bytes, expected) in rows {
        let (address, seen) = server(move |_, mut stream, seen| async move {
            read_request(&mut stream, &seen).await;
            // The client may have disconnected before the last byte.
            stream.write_all(bytes).await.ok();
            stream.shutdown().await.ok();
            while stream.read_u8().await.is_ok() {}
        })
        .await;
        let upstream = upstream(address);
        assert_eq!(
            lost(send(&upstream, "/").await),
            expected,
            "{}",
            String::from_utf8_lossy(bytes)
        );
        eventually("closed", || seen.closed() == 1).await;
        assert_eq!((upstream.idle(), upstream.in_use()), (0, 0));
        assert_eq!(*seen.requests.lock(), ["/ body"]);
    }
}

#[tokio::test]
async fn interim_responses_are_skipped_and_a_body_of_maximum_size_is_read() {
    let (address, _) = server(|_, mut stream, seen| async move {
        read_request(&mut stream, &seen).await;
        let head = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n";
        stream.write_all(head).await.unwrap();
        stream
            .write_all(b"HTTP/1.1 503 Busy\r\ncontent-length: 1000\r\n\r\n")
            .await
            .unwrap();
        stream.write_all(&[b'x'; 1000]).await.unwrap();
    })
    .await;
    let answer = answered(send(&upstream(address), "/").await);
    assert_eq!((answer.status.as_u16(), answer.body.len()), (503, 1000));
}

#[tokio::test]
async fn a_response_that_is_incomplete_at_the_timeout_is_lost() {
    for bytes in [
        &b""[..],
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{}",
    ] {
        let (address, seen) = server(move |_, mut stream, seen| async move {
            read_request(&mut stream, &seen).await;
            stream.write_all(bytes).await.unwrap();
            while stream.read_u8().await.is_ok() {}
        })
        .await;
        let settings = config::Upstream {
            answer_timeout: Duration::from_millis(50),
            ..settings(address)
        };
        let upstream = Upstream::new(&settings, Vec::new()).unwrap();
        assert_eq!(lost(send(&upstream, "/").await), Lost::Timeout);
        eventually("closed", || seen.closed() == 1).await;
        assert_eq!((upstream.idle(), upstream.in_use()), (0, 0));
    }
}

#[tokio::test]
async fn a_send_that_is_dropped_closes_its_connection() {
    let (address, seen) =
        server(
            |_, mut stream, seen| async move { while read_request(&mut stream, &seen).await {} },
        )
        .await;
    let upstream = upstream(address);
    let sending = tokio::spawn(upstream.ready(1).await.send(request("/"), None));
    eventually("arrived", || seen.requests.lock().len() == 1).await;
    assert_eq!((upstream.idle(), upstream.in_use()), (0, 1));
    sending.abort();
    eventually("closed", || seen.closed() == 1).await;
    assert_eq!((upstream.idle(), upstream.in_use()), (0, 0));
}

#[tokio::test]
async fn a_connection_with_surplus_bytes_or_connection_close_is_not_reused() {
    let more = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged";
    let close = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}";
    for answer in [&more[..], close] {
        let (address, seen) = answering(answer).await;
        let upstream = upstream(address);
        for _ in 0..3 {
            assert_eq!(&*answered(send(&upstream, "/").await).body, b"{}");
        }
        eventually("closed", || seen.closed() == 3).await;
        assert!(upstream.try_ready().is_none());
        assert_eq!(seen.accepted(), 3);
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_the_idle_timeout() {
    let (address, seen) = answering(OK).await;
    let settings = config::Upstream {
        idle_timeout: Duration::from_millis(30),
        ..settings(address)
    };
    let upstream = Upstream::new(&settings, Vec::new()).unwrap();
    assert_eq!(answered(send(&upstream, "/").await).status, 200);
    eventually("closed", || (upstream.idle(), seen.closed()) == (0, 1)).await;
    assert!(upstream.try_ready().is_none());
}

/// From now on time moves only by `advance`: the runtime is never idle, so time does not run ahead
/// of the sockets.
fn freeze() {
    tokio::time::pause();
    tokio::spawn(async {
        loop {
            tokio::task::yield_now().await;
        }
    });
}

/// Otherwise a change of the name's addresses would never be followed.
#[tokio::test]
async fn a_connection_in_steady_use_ends_after_five_minutes() {
    let (address, seen) = answering(OK).await;
    let upstream = upstream(address);
    freeze();
    for _ in 0..1200 {
        assert_eq!(answered(send(&upstream, "/").await).status, 200);
        advance(Duration::from_secs(1)).await;
    }
    // Each lives between 270 and 330 s.
    assert!((4..=5).contains(&seen.accepted()), "{}", seen.accepted());
    assert_eq!(seen.requests.lock().len(), 1200);
}

#[tokio::test]
async fn a_connection_that_becomes_old_during_a_call_ends_after_it() {
    let answer = Arc::new(Notify::new());
    let answering = answer.clone();
    let (address, seen) = server(move |_, mut stream, seen| {
        let answering = answering.clone();
        async move {
            while read_request(&mut stream, &seen).await {
                answering.notified().await;
                stream.write_all(OK).await.unwrap();
            }
        }
    })
    .await;
    let settings = config::Upstream {
        answer_timeout: Duration::from_secs(1000),
        ..settings(address)
    };
    let upstream = Upstream::new(&settings, Vec::new()).unwrap();
    freeze();
    let sent = tokio::spawn(upstream.ready(1).await.send(request("/"), None));
    eventually("arrived", || seen.requests.lock().len() == 1).await;
    advance(Duration::from_secs(400)).await;
    answer.notify_one();
    assert_eq!(answered(sent.await.unwrap()).status, 200);
    eventually("closed", || (upstream.idle(), seen.closed()) == (0, 1)).await;
    assert!(upstream.try_ready().is_none());
}

#[tokio::test]
async fn a_connection_that_becomes_old_while_it_is_held_is_not_usable() {
    let (address, _) = answering(OK).await;
    let settings = config::Upstream {
        idle_timeout: Duration::from_secs(1000),
        ..settings(address)
    };
    let upstream = Upstream::new(&settings, Vec::new()).unwrap();
    let connection = upstream.ready(1).await;
    freeze();
    advance(Duration::from_secs(260)).await;
    assert!(connection.is_usable());
    advance(Duration::from_secs(80)).await;
    assert!(!connection.is_usable());
    drop(connection);
    assert_eq!(upstream.idle(), 0);
}
