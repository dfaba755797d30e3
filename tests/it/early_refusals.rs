//! Calls that are refused before their body has been read: the answer arrives, although the caller
//! is still sending.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::caller::{Call, KEY, SECRET};
use crate::harness::Harness;

/// Bytes of a body that no socket's buffer holds.
const LARGE: usize = 1 << 20;

/// A call with a form of this many bytes, signed with `secret`.
fn call(host: &str, size: usize, secret: &str) -> Call {
    let with_body = |call: &mut Call| {
        call.push("content-type", "application/x-www-form-urlencoded");
        call.body = [b"FlowName=".as_slice(), &vec![b'x'; size]].concat();
    };
    Call::v3_with(host, &[], with_body, (KEY, secret))
}

/// Writes everything, then reads everything, as Python's `http.client` does. An error of either is
/// an error.
fn write_then_read(mut stream: impl Read + Write, bytes: &[u8]) -> std::io::Result<String> {
    stream.write_all(bytes)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

async fn blocking(to: SocketAddr, bytes: Vec<u8>) -> std::io::Result<String> {
    let exchange = move || {
        let stream = TcpStream::connect(to)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        write_then_read(stream, &bytes)
    };
    tokio::task::spawn_blocking(exchange).await.unwrap()
}

fn assert_refused(answer: std::io::Result<String>, status: u16, code: &str) {
    let answer = answer.unwrap_or_else(|error| panic!("{code}: {error}"));
    assert!(
        answer.starts_with(&format!("HTTP/1.1 {status} ")),
        "{answer}"
    );
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
    assert!(answer.contains(&format!("\"Code\":\"{code}\"")), "{answer}");
}

#[tokio::test]
async fn the_answer_arrives_at_a_caller_that_writes_before_it_reads() {
    let harness = Harness::new("").await;
    let host = harness.host();
    for _ in 0..40 {
        let wrong = call(&host, LARGE - 100, "guessed").bytes();
        assert_refused(
            blocking(harness.proxy, wrong).await,
            400,
            "SignatureDoesNotMatch",
        );
        let large = call(&host, 3 * LARGE, SECRET).bytes();
        assert_refused(
            blocking(harness.proxy, large).await,
            413,
            "Flowgate.RequestTooLarge",
        );
    }
    assert_eq!(
        harness
            .metrics()
            .await
            .sum("flowgate_connection_errors_total"),
        0.0
    );
}

#[tokio::test]
async fn a_full_memory_for_bodies_closes_the_connection() {
    let harness =
        Harness::new("[listen]\nbody_timeout = \"60s\"\n[queue]\nmax_bytes = \"2MiB\"").await;
    let host = harness.host();
    // A call whose body has not ended holds its client's half of the memory.
    let held = call(&host, LARGE - 100, SECRET);
    let missing = 10;
    let held_bytes = held.body.len() - missing;
    let bytes = held.bytes();
    let to = harness.proxy;
    let hold = move || {
        let mut stream = TcpStream::connect(to).unwrap();
        stream.write_all(&bytes[..bytes.len() - missing]).unwrap();
        stream
    };
    let _held = tokio::task::spawn_blocking(hold).await.unwrap();
    harness
        .until("flowgate_queued_bytes", held_bytes as f64)
        .await;
    let mut refused = 0;
    for _ in 0..20 {
        let bytes = call(&host, LARGE - 100, SECRET).bytes();
        if let Ok(answer) = blocking(harness.proxy, bytes).await
            && answer.contains("memory for request bodies")
        {
            assert_refused(Ok(answer), 400, "System.LimitControl");
            refused += 1;
        }
    }
    assert_eq!(refused, 20);
}

#[tokio::test]
async fn an_expected_continue_is_not_sent_for_a_call_that_is_refused() {
    let harness = Harness::new("").await;
    let mut call = call(&harness.host(), LARGE, "guessed");
    call.push("expect", "100-continue");
    call.push("content-length", &call.body.len().to_string());
    call.body.clear();
    // The caller waits for the answer, and then sends no body.
    let answer = blocking(harness.proxy, call.bytes()).await;
    assert_refused(answer, 400, "SignatureDoesNotMatch");
}

#[tokio::test]
async fn a_small_body_that_has_been_read_keeps_the_connection() {
    let harness = Harness::new("").await;
    let bytes = Call::v1_with(
        &harness.host(),
        &[("FlowName", "x")],
        |_| {},
        (KEY, "guessed"),
    )
    .bytes();
    let to = harness.proxy;
    let twice = move || {
        let mut stream = TcpStream::connect(to).unwrap();
        for _ in 0..2 {
            stream.write_all(&bytes).unwrap();
            let mut answer = [0; 4096];
            let read = stream.read(&mut answer).unwrap();
            let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
            assert!(answer.contains("SignatureDoesNotMatch"), "{answer}");
            assert!(!answer.contains("connection: close"), "{answer}");
        }
        stream.shutdown(Shutdown::Both).unwrap();
    };
    tokio::task::spawn_blocking(twice).await.unwrap();
}

#[tokio::test]
async fn the_answer_arrives_over_a_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("proxy.sock");
    let listen = format!(
        "[listen]\nproxy = \"unix:{}\"\nnames = [\"localhost\"]",
        path.display()
    );
    let _harness = Harness::new(&listen).await;
    for _ in 0..20 {
        let wrong = call("localhost", LARGE - 100, "guessed").bytes();
        let path = path.clone();
        let exchange = move || write_then_read(UnixStream::connect(path)?, &wrong);
        let answer = tokio::task::spawn_blocking(exchange).await.unwrap();
        assert_refused(answer, 400, "SignatureDoesNotMatch");
    }
}
