//! Callers behind a balancer: the address that it states, in a PROXY header or in
//! `X-Forwarded-For`, is logged and bounded, and only a trusted balancer may state one.

use std::net::SocketAddr;
use std::time::Duration;

use cams_sim::{Running, Settings, Sim};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::caller::{Call, KEY, Reply, SECRET, read_reply};
use crate::harness::{Harness, Metrics};
use crate::process::{ACME, Process};

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// What HAProxy sends before its health checks.
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
const ANNOUNCED: &str = "[listen]\nproxy_protocol = true\ntrusted_proxies = [\"127.0.0.0/8\"]\n";

/// The header of a caller with this last byte of its address, and with a field of the balancer.
pub(crate) fn header(last: u8) -> Vec<u8> {
    let addresses = [192, 0, 2, last, 198, 51, 100, 1, 0x9c, 0x40, 0x1f, 0x90];
    let field = [0x04, 0, 3, 1, 2, 3];
    [
        SIGNATURE,
        &[0x21, 0x11, 0, 18],
        addresses.as_slice(),
        &field,
    ]
    .concat()
}

async fn sim() -> Running {
    Sim::start(Settings::default().with_key(KEY, SECRET, "acme"))
        .await
        .unwrap()
}

/// Starts a process with these keys of `[listen]`.
async fn process(sim: &Running, listen: &[(&str, &str)]) -> Process {
    let listen: Vec<_> = listen
        .iter()
        .map(|(key, value)| (format!("FLOWGATE_LISTEN__{key}"), *value))
        .collect();
    let env: Vec<_> = listen
        .iter()
        .map(|(key, value)| (key.as_str(), *value))
        .collect();
    Process::with_env(sim, "", &env).await
}

/// Connects and sends these bytes.
async fn begin(to: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

/// Sends a call after this header, in one piece.
async fn send(to: SocketAddr, header: &[u8], name: &str) -> Reply {
    let call = Call::v3(&to.to_string(), name).bytes();
    let mut stream = begin(to, &[header, &call].concat()).await;
    read_reply(&mut stream).await.expect("an answer")
}

/// Sends a call with this `X-Forwarded-For`, which a balancer adds after the signature.
async fn forwarded(to: SocketAddr, header: &str, name: &str) -> Reply {
    let mut call = Call::v3(&to.to_string(), name);
    call.push("x-forwarded-for", header);
    call.send(to).await
}

/// The addresses of the calls that were logged.
async fn logged_from(flowgate: &Process, calls: usize) -> Vec<Value> {
    let events = flowgate.logged("call", calls).await;
    events.iter().map(|event| event["from"].clone()).collect()
}

async fn is_closed(mut stream: TcpStream) -> bool {
    stream.read(&mut [0]).await.unwrap_or(0) == 0
}

#[tokio::test]
async fn a_proxy_header_states_the_address_that_is_logged() {
    let sim = sim().await;
    let listen = [("PROXY_PROTOCOL", "true"), ("TRUSTED_PROXIES", "127.0.0.1")];
    let flowgate = process(&sim, &listen).await;
    let proxy = flowgate.proxy;
    assert_eq!(send(proxy, &header(7), "stated").await.status, 200);
    assert_eq!(send(proxy, LOCAL, "of the balancer").await.status, 200);
    // A caller cannot state another address in the other way.
    let mut call = Call::v3(&proxy.to_string(), "two ways");
    call.push("x-forwarded-for", "203.0.113.1");
    let mut stream = begin(proxy, &[LOCAL, &call.bytes()].concat()).await;
    assert_eq!(read_reply(&mut stream).await.unwrap().status, 200);
    // A second call of a connection has no header.
    let again = Call::v3(&proxy.to_string(), "again").bytes();
    stream.write_all(&again).await.unwrap();
    assert_eq!(read_reply(&mut stream).await.unwrap().status, 200);
    assert_eq!(
        logged_from(&flowgate, 4).await,
        ["192.0.2.7", "127.0.0.1", "127.0.0.1", "127.0.0.1"]
    );
}

#[tokio::test]
async fn connections_behind_a_proxy_header_are_limited_by_their_stated_address() {
    let harness = Harness::new(&format!("{ANNOUNCED}max_connections_per_source = 2\n")).await;
    let kept = [
        begin(harness.proxy, &header(7)).await,
        begin(harness.proxy, &header(7)).await,
    ];
    harness.until("flowgate_connections", 3.0).await;
    assert!(is_closed(begin(harness.proxy, &header(7)).await).await);
    let too_many = "flowgate_connection_errors_total{kind=\"too_many_from_source\"}";
    harness.until(too_many, 1.0).await;
    assert_eq!(send(harness.proxy, &header(8), "other").await.status, 200);
    let [first, second] = kept;
    drop(first);
    // The slot is free as soon as the proxy has noticed the close.
    loop {
        let mut stream = begin(harness.proxy, &header(7)).await;
        let call = Call::v3(&harness.host(), "freed").bytes();
        drop(stream.write_all(&call).await);
        if let Some(reply) = read_reply(&mut stream).await {
            break assert_eq!(reply.status, 200);
        }
    }
    drop(second);
}

#[tokio::test]
async fn a_connection_without_a_valid_proxy_header_is_closed_with_one_log_line() {
    for (bytes, reason) in [
        (
            b"POST / HTTP/1.1\r\nhost: flowgate\r\n\r\n".as_slice(),
            "there is no PROXY header, the connection begins with HTTP",
        ),
        (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            "there is no PROXY header, the connection begins with TLS",
        ),
        (
            b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 8080\r\nPOST / HTTP/1.1\r\n\r\n",
            "the PROXY header has version 1, configure the balancer to send version 2",
        ),
        (
            &header(7)[..20],
            "the PROXY header did not end within listen.header_timeout",
        ),
    ] {
        let sim = sim().await;
        let listen = [
            ("PROXY_PROTOCOL", "true"),
            ("TRUSTED_PROXIES", "10.0.0.0/8,127.0.0.1"),
            ("HEADER_TIMEOUT", "1s"),
        ];
        let flowgate = process(&sim, &listen).await;
        for _ in 0..3 {
            assert!(is_closed(begin(flowgate.proxy, bytes).await).await);
        }
        let errors = "flowgate_connection_errors_total{kind=\"proxy_header\"}";
        Metrics::until(flowgate.admin, errors, |count| count == 3.0).await;
        let message = "connections refused: no valid PROXY header";
        let logged = flowgate.logged(message, 1).await;
        assert_eq!(
            (logged.len(), &logged[0]["reason"], &logged[0]["from"]),
            (1, &reason.into(), &"127.0.0.1".into())
        );
    }
}

#[tokio::test]
async fn a_proxy_header_of_an_untrusted_peer_is_not_read() {
    let sim = sim().await;
    let listen = [
        ("PROXY_PROTOCOL", "true"),
        ("TRUSTED_PROXIES", "192.0.2.0/24"),
    ];
    let flowgate = process(&sim, &listen).await;
    let call = Call::v3(&flowgate.proxy.to_string(), "x").bytes();
    for bytes in [[header(7), call.clone()].concat(), call] {
        assert!(is_closed(begin(flowgate.proxy, &bytes).await).await);
    }
    let errors = "flowgate_connection_errors_total{kind=\"untrusted_proxy\"}";
    // The admin port serves those who are not balancers.
    Metrics::until(flowgate.admin, errors, |count| count == 2.0).await;
    let message = "connections refused: no valid PROXY header";
    let reason = &flowgate.logged(message, 1).await[0]["reason"];
    assert_eq!(reason, "the peer is not in listen.trusted_proxies");
    assert_eq!(sim.report().arrived, 0);
}

#[tokio::test]
async fn health_checks_of_a_balancer_are_answered_with_and_without_a_header() {
    let sim = sim().await;
    let listen = [("PROXY_PROTOCOL", "true"), ("TRUSTED_PROXIES", "127.0.0.1")];
    let flowgate = process(&sim, &listen).await;
    let admin = flowgate.admin;
    let check = format!("GET /livez HTTP/1.1\r\nhost: {admin}\r\n\r\n");
    for header in [LOCAL, &header(7), b""] {
        let mut stream = begin(admin, &[header, check.as_bytes()].concat()).await;
        let reply = read_reply(&mut stream).await.unwrap();
        assert_eq!((reply.status, reply.body.as_str()), (200, "ok\n"));
    }
    // To the proxy port: a header, or no byte, and a close.
    for bytes in [LOCAL, b""] {
        drop(begin(flowgate.proxy, bytes).await);
    }
    assert_eq!(send(flowgate.proxy, LOCAL, "x").await.status, 200);
    let metrics = Metrics::of(admin).await;
    assert_eq!(metrics.sum("flowgate_connection_errors_total"), 0.0);
}

#[tokio::test]
async fn the_last_untrusted_address_of_x_forwarded_for_is_logged_and_not_sent_to_cams() {
    let sim = sim().await;
    let flowgate = process(&sim, &[("TRUSTED_PROXIES", "127.0.0.1,10.0.0.0/8")]).await;
    let proxy = flowgate.proxy;
    for (header, name) in [
        ("203.0.113.1, 198.51.100.7", "one"),
        ("198.51.100.8, 10.1.2.3", "two"),
        ("nonsense", "three"),
    ] {
        assert_eq!(forwarded(proxy, header, name).await.status, 200);
    }
    assert_eq!(send(proxy, b"", "direct").await.status, 200);
    assert_eq!(
        logged_from(&flowgate, 4).await,
        ["198.51.100.7", "198.51.100.8", "127.0.0.1", "127.0.0.1"]
    );
    let names = sim.arrivals().into_iter().flat_map(|call| call.headers);
    assert!(
        names
            .into_iter()
            .all(|(name, _)| !name.contains("forwarded"))
    );
}

#[tokio::test]
async fn a_reload_changes_which_balancers_are_trusted() {
    let sim = sim().await;
    let folder = tempfile::tempdir().unwrap();
    let flowgate = Process::configured(&sim, ACME, folder, &[]).await;
    let proxy = flowgate.proxy;
    let mut kept = begin(proxy, &Call::v3(&proxy.to_string(), "kept").bytes()).await;
    assert_eq!(read_reply(&mut kept).await.unwrap().status, 200);
    assert_eq!(
        forwarded(proxy, "198.51.100.7", "a claim").await.status,
        200
    );
    let config = flowgate.folder.path().join("flowgate.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let trusting = text.replace(
        "[listen]\n",
        "[listen]\ntrusted_proxies = [\"127.0.0.1\"]\n",
    );
    std::fs::write(&config, trusting).unwrap();
    flowgate.signal("-HUP").await;
    flowgate.logged("configuration reloaded", 1).await;
    assert_eq!(
        forwarded(proxy, "198.51.100.7", "trusted").await.status,
        200
    );
    std::fs::write(&config, &text).unwrap();
    flowgate.signal("-HUP").await;
    flowgate.logged("configuration reloaded", 2).await;
    assert_eq!(forwarded(proxy, "198.51.100.7", "again").await.status, 200);
    assert_eq!(
        logged_from(&flowgate, 4).await,
        ["127.0.0.1", "127.0.0.1", "198.51.100.7", "127.0.0.1"]
    );
}

#[tokio::test]
async fn calls_behind_x_forwarded_for_are_limited_by_their_address() {
    let settings = Settings {
        latency: Duration::from_secs(3),
        ..Settings::default()
    };
    let more = "[listen]\ntrusted_proxies = [\"127.0.0.1\"]\nmax_connections_per_source = 1\n";
    let harness = Harness::with(settings, more).await;
    let proxy = harness.proxy;
    let first = tokio::spawn(forwarded(proxy, "198.51.100.7", "first"));
    let in_flight = "flowgate_in_flight{account=\"acme\",action=\"CreateFlow\"}";
    harness.until(in_flight, 1.0).await;
    let refused = forwarded(proxy, "198.51.100.7", "second").await;
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (400, "System.LimitControl")
    );
    assert_eq!(refused.header("x-acs-retry-after"), Some("1000"));
    assert!(refused.body.contains("listen.max_connections_per_source"));
    // The balancer's own connections are not limited, and neither are other callers.
    let idle = begin(proxy, b"").await;
    let other = tokio::spawn(forwarded(proxy, "198.51.100.8", "other"));
    assert_eq!(other.await.unwrap().status, 200);
    assert_eq!(first.await.unwrap().status, 200);
    assert_eq!(forwarded(proxy, "198.51.100.7", "third").await.status, 200);
    drop(idle);
    let refused = "flowgate_refused_total{account=\"unknown\",reason=\"queue_full\"}";
    assert_eq!(harness.metrics().await.get(refused), 1.0);
}
