//! When a request counts as written, and when as unsent.

use futures_util::FutureExt;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::dialling::{tls, tls_server, tls_settings};
use super::*;
use crate::upstream::OnWrite;
use crate::upstream::first_write::{FirstWrite, WatchedTcp};

/// A callback and a receiver of its argument; the receiver fails once the callback is dropped
/// uncalled.
fn on_write() -> (Option<OnWrite>, oneshot::Receiver<Instant>) {
    let (report, reported) = oneshot::channel();
    (Some(Box::new(move |at| report.send(at).unwrap())), reported)
}

/// Larger than the buffers of both sockets together.
fn large_request() -> Request {
    let request = hyper::Request::post("/large").header("host", "cams.test");
    request
        .body(Full::new(Bytes::from(vec![b'x'; 64 << 20])))
        .unwrap()
}

/// A plain TCP server and a TLS server that answer each request, with a client for each.
async fn both() -> [(Upstream, Option<tempfile::NamedTempFile>); 2] {
    let (plain, _) = answering(OK).await;
    let (acceptor, ca) = tls("cams.test");
    let (over_tls, _) = tls_server(acceptor).await;
    let settings = tls_settings("cams.test", over_tls, Some(ca.path().to_owned()));
    [
        (upstream(plain), None),
        (Upstream::new(&settings, Vec::new()).unwrap(), Some(ca)),
    ]
}

#[tokio::test]
async fn the_reported_time_is_the_time_of_the_write() {
    for (upstream, _ca) in both().await {
        // The second request uses a connection that has been written to.
        for _ in 0..2 {
            let connection = upstream.ready(1).await;
            tokio::time::pause();
            let handed_over = Instant::now();
            let (on_write, mut written) = on_write();
            let mut sent = Box::pin(connection.send(request("/"), on_write));
            // hyper has the request now; its task does not run before the time moves.
            assert!(sent.as_mut().now_or_never().is_none());
            assert!(written.try_recv().is_err());
            tokio::time::advance(Duration::from_secs(1)).await;
            eventually("written", || !written.is_empty()).await;
            tokio::time::resume();
            assert_eq!(
                written.try_recv().unwrap() - handed_over,
                Duration::from_secs(1)
            );
            assert_eq!(answered(sent.await).status, 200);
        }
    }
}

#[tokio::test]
async fn each_request_reports_its_own_write_once() {
    for (upstream, _ca) in both().await {
        for _ in 0..20 {
            let (on_write, mut written) = on_write();
            let before = Instant::now();
            assert_eq!(
                answered(upstream.ready(1).await.send(request("/"), on_write).await).status,
                200
            );
            let at = written.try_recv().unwrap();
            assert!(before <= at && at <= Instant::now());
        }
        eventually("given back", || upstream.idle() == 1).await;
    }
}

#[tokio::test]
async fn a_large_request_counts_from_its_first_byte() {
    let (address, seen) = server(|_, stream, _| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let upstream = upstream(address);
    let (on_write, written) = on_write();
    let mut sent = Box::pin(upstream.ready(1).await.send(large_request(), on_write));
    tokio::select! {
        _ = &mut sent => panic!("there is no answer"),
        written = written => drop(written.unwrap()),
    }
    assert!(sent.as_mut().now_or_never().is_none());
    assert_eq!(seen.accepted(), 1);
}

#[tokio::test]
async fn on_a_closed_connection_the_callback_is_dropped_uncalled() {
    let (acceptor, ca) = tls("cams.test");
    let (plain, plain_seen) = server(|_, stream, _| async move { drop(stream) }).await;
    let (over_tls, tls_seen) = server(move |_, stream, _| {
        let acceptor = acceptor.clone();
        async move { drop(acceptor.accept(stream).await) }
    })
    .await;
    let settings = tls_settings("cams.test", over_tls, Some(ca.path().to_owned()));
    for (upstream, seen) in [
        (upstream(plain), plain_seen),
        (Upstream::new(&settings, Vec::new()).unwrap(), tls_seen),
    ] {
        let connection = upstream.ready(1).await;
        eventually("close noticed", || !connection.is_usable()).await;
        let (on_write, mut written) = on_write();
        assert!(matches!(
            connection.send(request("/"), on_write).await,
            Sent::Unsent
        ));
        assert_eq!(
            written.try_recv(),
            Err(oneshot::error::TryRecvError::Closed)
        );
        assert_eq!(seen.accepted(), 1);
    }
}

/// The connection's task is on a thread that does not run it.
#[test]
fn a_request_that_is_not_written_in_time_is_withdrawn() {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let upstream = upstream(listener.local_addr().unwrap());
    let busy = Builder::new_current_thread().enable_all().build().unwrap();
    let connection = busy.block_on(upstream.ready(1));
    let (on_write, mut written) = on_write();
    let calling = Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let sent = calling.block_on(connection.send(request("/"), on_write));
    assert!(matches!(sent, Sent::Unsent));
    assert_eq!(
        written.try_recv(),
        Err(oneshot::error::TryRecvError::Closed)
    );
    // Now the task runs, and finds nothing to write.
    let (stream, _) = listener.accept().unwrap();
    stream.set_nonblocking(true).unwrap();
    let received = busy.block_on(async move {
        let mut received = Vec::new();
        TcpStream::from_std(stream)
            .unwrap()
            .read_to_end(&mut received)
            .await
            .unwrap();
        received
    });
    assert_eq!(received, b"");
}

#[tokio::test]
async fn a_send_dropped_before_its_first_byte_is_withdrawn() {
    let (address, seen) = answering(OK).await;
    let upstream = upstream(address);
    let (on_write, mut written) = on_write();
    let mut sent = Box::pin(upstream.ready(1).await.send(request("/"), on_write));
    // hyper has the request, and its task has not run since.
    assert!(sent.as_mut().now_or_never().is_none());
    drop(sent);
    assert_eq!(
        written.try_recv(),
        Err(oneshot::error::TryRecvError::Closed)
    );
    eventually("closed", || seen.closed() == 1).await;
    assert_eq!(*seen.requests.lock(), [""; 0]);
    assert_eq!((upstream.idle(), upstream.in_use()), (0, 0));
}

#[tokio::test]
async fn a_send_dropped_after_its_first_byte_has_reported_it() {
    let (address, seen) =
        server(
            |_, mut stream, seen| async move { while read_request(&mut stream, &seen).await {} },
        )
        .await;
    let upstream = upstream(address);
    let (on_write, mut written) = on_write();
    let sending = tokio::spawn(upstream.ready(1).await.send(request("/"), on_write));
    eventually("arrived", || seen.requests.lock().len() == 1).await;
    sending.abort();
    eventually("closed", || seen.closed() == 1).await;
    assert!(written.try_recv().is_ok());
}

/// Dropped at a random moment while another thread writes: the server gets the request if and only
/// if its write is reported.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_reported_if_and_only_if_it_arrives() {
    let (address, seen) = answering(OK).await;
    let upstream = upstream(address);
    let mut reported = Vec::new();
    for call in 0..500 {
        let target = format!("/?{call}");
        let (on_write, written) = on_write();
        let connection = upstream.ready(1).await;
        let mut sent = Box::pin(connection.send(request(&target), on_write));
        for _ in 0..fastrand::usize(..20) {
            if sent.as_mut().now_or_never().is_some() {
                break;
            }
            std::hint::spin_loop();
        }
        drop(sent);
        // Immediately, or a moment later while another thread is writing.
        if written.await.is_ok() {
            reported.push(format!("{target} body"));
        }
    }
    eventually("all closed or idle", || {
        seen.closed() + upstream.idle() == seen.accepted()
    })
    .await;
    let mut arrived = seen.requests.lock().clone();
    arrived.sort();
    reported.sort();
    assert_eq!(arrived, reported);
}

/// hyper may already have taken the request.
#[tokio::test]
async fn no_byte_of_a_withdrawn_request_can_be_written() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let tcp = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (mut peer, _) = listener.accept().await.unwrap();
    let first_write = Arc::<FirstWrite>::default();
    let mut watched = WatchedTcp::new(tcp, first_write.clone());
    let (first, mut written) = on_write();
    let armed = first_write.arm(first);
    watched.write_all(b"one").await.unwrap();
    assert!(armed.was_written());
    assert!(written.try_recv().is_ok());
    let (second, mut written) = on_write();
    assert!(!first_write.arm(second).was_written());
    assert_eq!(
        written.try_recv(),
        Err(oneshot::error::TryRecvError::Closed)
    );
    assert_eq!(
        watched.write(b"two").await.unwrap_err().kind(),
        std::io::ErrorKind::BrokenPipe
    );
    drop(watched);
    let mut received = Vec::new();
    peer.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, b"one");
}

/// Over TLS hyper takes the next request although rustls holds back bytes of the previous one,
/// which was answered early.
#[tokio::test]
async fn a_connection_is_behind_until_the_kernel_has_taken_everything() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let tcp = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (mut peer, _) = listener.accept().await.unwrap();
    let first_write = Arc::<FirstWrite>::default();
    let mut watched = WatchedTcp::new(tcp, first_write.clone());
    assert!(!first_write.is_behind());
    let chunk = [b'x'; 1 << 16];
    while watched.write(&chunk).now_or_never().is_some() {
        // Until the buffers are full.
    }
    assert!(first_write.is_behind());
    let drain = tokio::spawn(async move { peer.read_to_end(&mut Vec::new()).await });
    while watched.write(&chunk).await.unwrap() < chunk.len() {
        assert!(first_write.is_behind());
    }
    assert!(!first_write.is_behind());
    drop(watched);
    drain.await.unwrap().unwrap();
}
