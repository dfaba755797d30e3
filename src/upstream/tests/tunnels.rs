//! Connections through a proxy's tunnel: TLS end to end, and a reason and a count for each failure.

use tokio::io::copy_bidirectional;

use super::dialling::{tls, tls_server, tls_settings};
use super::*;
use crate::config::HttpProxy;
use crate::primitives::secret::Secret;
use crate::upstream::Failure;

const OPENED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

/// What a proxy has received.
type Heads = Arc<Mutex<Vec<String>>>;

/// Reads the head of a request for a tunnel, byte by byte: anything after it is left unread.
async fn read_connect(stream: &mut TcpStream, heads: &Heads) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    heads.lock().push(String::from_utf8(head).unwrap());
}

/// A proxy that opens every tunnel to this address, whatever the name.
async fn proxy_to(upstream: SocketAddr) -> (SocketAddr, Heads) {
    let heads = Heads::default();
    let seen = heads.clone();
    let (address, _) = server(move |_, mut near, _| {
        let seen = seen.clone();
        async move {
            read_connect(&mut near, &seen).await;
            let mut far = TcpStream::connect(upstream).await.unwrap();
            near.write_all(OPENED).await.unwrap();
            copy_bidirectional(&mut near, &mut far).await.ok();
        }
    })
    .await;
    (address, heads)
}

/// A proxy that answers each request with these bytes and waits for the other side to close, or
/// closes at once.
async fn proxy_that_says(answer: &'static [u8], closes: bool) -> SocketAddr {
    let (address, _) = server(move |_, mut stream, _| async move {
        read_connect(&mut stream, &Heads::default()).await;
        stream.write_all(answer).await.unwrap();
        while !closes && stream.read_u8().await.is_ok() {}
    })
    .await;
    address
}

fn through(proxy: SocketAddr, settings: config::Upstream) -> config::Upstream {
    config::Upstream {
        connect_to: Vec::new(),
        proxy: Some(HttpProxy {
            host: proxy.ip().to_string(),
            port: proxy.port(),
        }),
        ..settings
    }
}

fn set_up(settings: &config::Upstream) -> Upstream {
    Upstream::new(settings, Vec::new()).unwrap()
}

fn count(upstream: &Upstream, failure: Failure) -> u64 {
    upstream
        .failures()
        .find_map(|(known, count)| (known == failure).then_some(count))
        .unwrap()
}

#[tokio::test]
async fn tls_is_verified_end_to_end_through_a_tunnel_whose_proxy_resolves_the_name() {
    let (acceptor, ca) = tls("cams.test");
    let (address, seen) = tls_server(acceptor).await;
    let (proxy, heads) = proxy_to(address).await;
    let known = Some(ca.path().to_owned());
    // No resolver knows these names, so the connection proves that the proxy was asked.
    let right = set_up(&through(
        proxy,
        tls_settings("cams.test", address, known.clone()),
    ));
    assert_eq!(answered(send(&right, "/").await).status, 200);
    assert_eq!(answered(send(&right, "/").await).status, 200);
    let target = format!("cams.test:{}", address.port());
    assert_eq!(
        *heads.lock(),
        [format!(
            "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nUser-Agent: flowgate/{}\r\n\r\n",
            crate::VERSION
        )]
    );

    let wrong = set_up(&through(proxy, tls_settings("other.test", address, known)));
    let reason = refusal(&wrong).await;
    let expected = "TLS failed in the proxy's tunnel: invalid peer certificate: certificate not valid for name \"other.test\"";
    assert!(reason.starts_with(expected), "{reason}");
    let unknown = set_up(&through(proxy, tls_settings("cams.test", address, None)));
    assert_eq!(
        refusal(&unknown).await,
        "TLS failed in the proxy's tunnel: invalid peer certificate: UnknownIssuer"
    );
    assert_eq!(count(&unknown, Failure::Tls), 1);
    assert_eq!(*seen.requests.lock(), ["/ body", "/ body"]);
}

#[tokio::test]
async fn plaintext_and_credentials_go_through_a_tunnel_too() {
    let (address, seen) = answering(OK).await;
    let (proxy, heads) = proxy_to(address).await;
    let upstream = set_up(&config::Upstream {
        proxy_credentials: Some(Secret::new("Aladdin:open sesame")),
        ..through(proxy, settings(address))
    });
    let connection = upstream.ready(1).await;
    let written = Arc::new(AtomicUsize::new(0));
    let counter = written.clone();
    let on_write: super::super::OnWrite = Box::new(move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
    });
    assert_eq!(written.load(Ordering::SeqCst), 0);
    let sent = connection.send(request("/?x"), Some(on_write)).await;
    assert_eq!(answered(sent).status, 200);
    // The request for the tunnel is not the first byte of the call.
    assert_eq!(written.load(Ordering::SeqCst), 1);
    assert_eq!(*seen.requests.lock(), ["/?x body"]);
    assert!(heads.lock()[0].contains("Proxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="));
}

#[tokio::test]
async fn each_failure_of_a_proxy_has_its_reason_and_its_count() {
    let cams = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 443));
    let rows: [(&[u8], bool, &str, Failure); 8] = [
        (
            b"HTTP/1.1 407 Auth\r\nProxy-Authenticate: Basic realm=x\r\n\r\n",
            false,
            "the proxy demands a user and a password (407): set upstream.proxy_credentials",
            Failure::ProxyAuthentication,
        ),
        (
            b"HTTP/1.1 403 No\r\n\r\n",
            true,
            "the proxy forbids a tunnel to 192.0.2.1:443 (403)",
            Failure::ProxyForbidden,
        ),
        (
            b"HTTP/1.1 502 No\r\n\r\n",
            true,
            "the proxy cannot reach 192.0.2.1:443 (502)",
            Failure::ProxyBadGateway,
        ),
        (
            b"HTTP/1.1 405 No\r\n\r\n",
            true,
            "the proxy opens no tunnel to 192.0.2.1:443 (405)",
            Failure::ProxyStatus,
        ),
        (
            b"SSH-2.0-x\r\n",
            false,
            "the proxy's answer is not HTTP",
            Failure::ProxyAnswer,
        ),
        (
            b"HTTP/1.1 200",
            true,
            "the proxy closed the connection before it had answered",
            Failure::ProxyClosed,
        ),
        (
            b"",
            false,
            "the proxy has not answered within 50ms",
            Failure::ProxyTimeout,
        ),
        (
            b"HTTP/1.1 200 OK\r\n",
            false,
            "the proxy has not answered within 50ms",
            Failure::ProxyTimeout,
        ),
    ];
    for (answer, closes, reason, failure) in rows {
        let proxy = proxy_that_says(answer, closes).await;
        let mut settings = through(proxy, settings(cams));
        if failure == Failure::ProxyTimeout {
            settings.connect_timeout = Duration::from_millis(50);
        }
        let upstream = set_up(&settings);
        assert_eq!(refusal(&upstream).await, reason);
        assert_eq!(count(&upstream, failure), 1, "{reason}");
        let all: u64 = upstream.failures().map(|(_, count)| count).sum();
        assert_eq!(all, 1, "{reason}");
    }
}

#[tokio::test]
async fn an_unreachable_proxy_is_named_and_not_the_upstream() {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket
        .bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
        .unwrap();
    let proxy = socket.local_addr().unwrap().as_socket().unwrap();
    let upstream = set_up(&through(proxy, settings(proxy)));
    assert_eq!(
        refusal(&upstream).await,
        "cannot connect to the proxy: connection refused"
    );
    assert_eq!(count(&upstream, Failure::ProxyConnect), 1);

    let (proxy, seen) = answering(OK).await;
    let own = Upstream::new(&through(proxy, settings(proxy)), vec![proxy]).unwrap();
    assert_eq!(
        refusal(&own).await,
        "would dial Flowgate itself: upstream.proxy is one of its own listeners"
    );
    assert_eq!((seen.accepted(), count(&own, Failure::Itself)), (0, 1));
}

#[tokio::test]
async fn tls_that_does_not_finish_in_the_tunnel_is_not_the_proxys_silence() {
    let proxy = proxy_that_says(OPENED, false).await;
    let mut settings = through(proxy, tls_settings("cams.test", proxy, None));
    settings.connect_timeout = Duration::from_millis(50);
    let upstream = set_up(&settings);
    assert_eq!(
        refusal(&upstream).await,
        "no TLS in the proxy's tunnel within 50ms"
    );
    assert_eq!(count(&upstream, Failure::Timeout), 1);
}

#[tokio::test]
async fn a_proxy_that_recovers_is_noticed_by_the_next_probe() {
    let (address, _) = answering(OK).await;
    let heads = Heads::default();
    let (proxy, seen) = server(move |number, mut near, _| {
        let heads = heads.clone();
        async move {
            read_connect(&mut near, &heads).await;
            if number <= 2 {
                near.write_all(b"HTTP/1.1 503 Busy\r\n\r\n").await.unwrap();
                return;
            }
            let mut far = TcpStream::connect(address).await.unwrap();
            near.write_all(OPENED).await.unwrap();
            copy_bidirectional(&mut near, &mut far).await.ok();
        }
    })
    .await;
    let upstream = set_up(&through(proxy, settings(address)));
    assert_eq!(answered(send(&upstream, "/").await).status, 200);
    assert_eq!((seen.accepted(), upstream.reach()), (3, Reach::Up));
    assert_eq!(count(&upstream, Failure::ProxyBadGateway), 2);
}

#[tokio::test]
async fn an_upstream_without_a_proxy_has_no_counts_of_one() {
    let (address, _) = answering(OK).await;
    let upstream = upstream(address);
    assert!(
        upstream
            .failures()
            .all(|(failure, count)| !failure.is_of_proxy() && count == 0)
    );
    assert!(upstream.failures().count() > 3);
}
