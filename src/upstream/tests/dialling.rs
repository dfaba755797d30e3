//! How connections are opened: an unreachable upstream, TLS, own listeners, pinned addresses.

use tokio_rustls::rustls::{self, SupportedProtocolVersion};

use super::*;

#[tokio::test]
async fn a_refusing_port_is_down_and_comes_up_when_it_listens() {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket
        .bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
        .unwrap();
    let upstream = upstream(socket.local_addr().unwrap().as_socket().unwrap());
    let waiting: Vec<_> = (0..20)
        .map(|_| {
            let upstream = upstream.clone();
            tokio::spawn(async move { upstream.ready(1).await })
        })
        .collect();
    eventually("down", || upstream.reach() != Reach::Up).await;
    assert_eq!(
        down(&upstream).unwrap(),
        "cannot connect: connection refused"
    );
    socket.listen(128).unwrap();
    let mut connections = Vec::new();
    for waiting in waiting {
        connections.push(
            timeout(Duration::from_secs(20), waiting)
                .await
                .unwrap()
                .unwrap(),
        );
    }
    assert_eq!((upstream.in_use(), upstream.reach()), (20, Reach::Up));
}

/// A server's TLS settings for one name, and the file of its certificate authority.
pub(crate) fn tls(name: &str) -> (TlsAcceptor, tempfile::NamedTempFile) {
    tls_with(name, rustls::DEFAULT_VERSIONS, |_| {})
}

fn tls_with(
    name: &str,
    versions: &[&'static SupportedProtocolVersion],
    change: impl FnOnce(&mut CertificateParams),
) -> (TlsAcceptor, tempfile::NamedTempFile) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let authority = params.self_signed(&key).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), authority.pem()).unwrap();
    let leaf_key = KeyPair::generate().unwrap();
    let mut leaf = CertificateParams::new(vec![name.to_owned()]).unwrap();
    change(&mut leaf);
    let leaf = leaf
        .signed_by(&leaf_key, &Issuer::new(params, key))
        .unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone()],
            PrivateKeyDer::Pkcs8(leaf_key.serialize_der().into()),
        )
        .unwrap();
    (TlsAcceptor::from(Arc::new(config)), file)
}

pub(super) async fn tls_server(acceptor: TlsAcceptor) -> (SocketAddr, Arc<Seen>) {
    server(move |_, stream, seen| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else {
                return;
            };
            while read_request(&mut stream, &seen).await {
                stream.write_all(OK).await.unwrap();
            }
        }
    })
    .await
}

pub(super) fn tls_settings(
    name: &str,
    address: SocketAddr,
    ca_file: Option<PathBuf>,
) -> config::Upstream {
    config::Upstream {
        scheme: Scheme::Https,
        dial_host: name.to_owned(),
        connect_to: vec![address],
        ca_file,
        ..settings(address)
    }
}

#[tokio::test]
async fn tls_accepts_only_the_right_name_from_a_trusted_authority() {
    let (acceptor, ca) = tls("cams.test");
    let (address, seen) = tls_server(acceptor).await;
    let known = Some(ca.path().to_owned());
    let right = Upstream::new(
        &tls_settings("cams.test", address, known.clone()),
        Vec::new(),
    )
    .unwrap();
    assert_eq!(answered(send(&right, "/").await).status, 200);

    let wrong = Upstream::new(&tls_settings("other.test", address, known), Vec::new()).unwrap();
    let reason = refusal(&wrong).await;
    let expected =
        "TLS failed: invalid peer certificate: certificate not valid for name \"other.test\"";
    assert!(reason.starts_with(expected), "{reason}");

    let unknown = Upstream::new(&tls_settings("cams.test", address, None), Vec::new()).unwrap();
    assert_eq!(
        refusal(&unknown).await,
        "TLS failed: invalid peer certificate: UnknownIssuer"
    );
    assert_eq!(*seen.requests.lock(), ["/ body"]);
}

/// The result of a call that trusts the server's certificate authority.
async fn under_its_authority(
    server: (TlsAcceptor, tempfile::NamedTempFile),
) -> Result<u16, String> {
    let (acceptor, ca) = server;
    result_of(acceptor, Some(ca.path().to_owned())).await
}

async fn result_of(acceptor: TlsAcceptor, ca_file: Option<PathBuf>) -> Result<u16, String> {
    let (address, seen) = tls_server(acceptor).await;
    let upstream = Upstream::new(&tls_settings("cams.test", address, ca_file), Vec::new()).unwrap();
    let outcome = outcome(&upstream).await;
    assert_eq!(seen.requests.lock().len(), usize::from(outcome.is_ok()));
    outcome
}

/// The status, or the reason why no connection could be opened.
async fn outcome(upstream: &Upstream) -> Result<u16, String> {
    tokio::select! {
        sent = send(upstream, "/") => Ok(answered(sent).status.as_u16()),
        () = eventually("down", || upstream.reach() != Reach::Up) => Err(down(upstream).unwrap()),
    }
}

#[tokio::test]
async fn tls_rejects_expired_future_and_self_signed_certificates() {
    let versions = rustls::DEFAULT_VERSIONS;
    let ended = tls_with("cams.test", versions, |leaf| {
        leaf.not_after = rcgen::date_time_ymd(2020, 1, 1)
    });
    let reason = under_its_authority(ended).await.unwrap_err();
    assert!(
        reason.starts_with("TLS failed: invalid peer certificate: certificate expired"),
        "{reason}"
    );
    let early = tls_with("cams.test", versions, |leaf| {
        leaf.not_before = rcgen::date_time_ymd(2999, 1, 1)
    });
    let reason = under_its_authority(early).await.unwrap_err();
    assert!(
        reason.starts_with("TLS failed: invalid peer certificate: certificate not valid yet"),
        "{reason}"
    );

    let key = KeyPair::generate().unwrap();
    let own = CertificateParams::new(vec!["cams.test".to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![own.der().clone()],
            PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        )
        .unwrap();
    let reason = result_of(TlsAcceptor::from(Arc::new(config)), None).await;
    assert_eq!(
        reason,
        Err("TLS failed: invalid peer certificate: UnknownIssuer".to_owned())
    );
}

#[tokio::test]
async fn tls_versions_before_1_2_are_rejected() {
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        assert_eq!(
            under_its_authority(tls_with("cams.test", &[version], |_| {})).await,
            Ok(200)
        );
    }
    // No library here supports TLS 1.1, so this ServerHello is written by hand, and an alert is
    // expected.
    let alert = Arc::new(Mutex::new(Vec::new()));
    let (address, _) = server({
        let alert = alert.clone();
        move |_, mut stream, _| {
            let alert = alert.clone();
            async move {
                drop(stream.read(&mut [0; 4096]).await);
                let hello = [
                    &[22, 3, 2, 0, 42, 2, 0, 0, 38, 3, 2][..],
                    &[7; 32],
                    &[0, 0xc0, 0x13, 0],
                ]
                .concat();
                stream.write_all(&hello).await.unwrap();
                let mut said = Vec::new();
                drop(stream.read_to_end(&mut said).await);
                alert.lock().extend(said);
            }
        }
    })
    .await;
    let upstream = Upstream::new(&tls_settings("cams.test", address, None), Vec::new()).unwrap();
    let reason = refusal(&upstream).await;
    assert!(
        reason.starts_with("TLS failed: peer is incompatible"),
        "{reason}"
    );
    eventually("an alert", || alert.lock().len() >= 7).await;
    // Fatal, protocol_version.
    assert_eq!(alert.lock()[5..7], [2, 70]);
}

#[tokio::test]
async fn replaced_roots_apply_to_the_next_connection() {
    let (acceptor, ca) = tls("cams.test");
    let (address, _) = tls_server(acceptor).await;
    let upstream = Upstream::new(&tls_settings("cams.test", address, None), Vec::new()).unwrap();
    upstream.set_tls_roots(TlsRoots::load(Some(ca.path())).unwrap());
    assert_eq!(outcome(&upstream).await, Ok(200));
    upstream.set_tls_roots(TlsRoots::load(None).unwrap());
    // This connection stays open; a second one cannot be opened.
    let standing = upstream.try_ready().unwrap();
    assert_eq!(
        outcome(&upstream).await,
        Err("TLS failed: invalid peer certificate: UnknownIssuer".to_owned())
    );
    let sent = answered(standing.send(request("/"), None).await);
    assert_eq!(sent.status, 200);
}

#[tokio::test]
async fn an_unreachable_upstream_is_probed_by_one_connection_at_a_time() {
    const FAILING: usize = 4;
    let (acceptor, ca) = tls("cams.test");
    let open = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let (address, seen) = server({
        let most = most.clone();
        move |number, mut stream, seen| {
            let acceptor = acceptor.clone();
            let open = open.clone();
            let most = most.clone();
            async move {
                if number <= FAILING {
                    most.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    // The client has sent its first TLS bytes and waits for ours until this ends,
                    // which is long enough to see a second probe.
                    stream.read_u8().await.unwrap();
                    for _ in 0..500 {
                        tokio::task::yield_now().await;
                    }
                    open.fetch_sub(1, Ordering::SeqCst);
                } else {
                    let mut stream = acceptor.accept(stream).await.unwrap();
                    while read_request(&mut stream, &seen).await {}
                }
            }
        }
    })
    .await;
    let settings = tls_settings("cams.test", address, Some(ca.path().to_owned()));
    let upstream = Upstream::new(&settings, Vec::new()).unwrap();
    refusal(&upstream).await;
    assert_eq!(seen.accepted(), 1);
    let waiting: Vec<_> = (0..50)
        .map(|_| {
            let upstream = upstream.clone();
            tokio::spawn(async move { upstream.ready(5).await })
        })
        .collect();
    let mut connections = Vec::new();
    for waiting in waiting {
        connections.push(
            timeout(Duration::from_secs(20), waiting)
                .await
                .unwrap()
                .unwrap(),
        );
    }
    assert_eq!(most.load(Ordering::SeqCst), 1);
    assert_eq!((upstream.in_use(), upstream.reach()), (50, Reach::Up));
    assert!(seen.accepted() >= FAILING + 50);
}

#[tokio::test(start_paused = true)]
async fn probes_back_off_and_end_when_no_call_waits() {
    let (address, seen) =
        server(|_, mut stream, _| async move { drop(stream.read_u8().await) }).await;
    let upstream = Upstream::new(&tls_settings("cams.test", address, None), Vec::new()).unwrap();
    assert!(
        timeout(Duration::from_secs(100), upstream.ready(5))
            .await
            .is_err()
    );
    // Five in parallel, then one every 2 s at full jitter: 1 s on average.
    let probes = seen.accepted();
    assert!((60..200).contains(&probes), "{probes}");
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!((seen.accepted(), seen.closed()), (probes, probes));
    assert!(
        timeout(Duration::from_secs(1), upstream.ready(5))
            .await
            .is_err()
    );
    // The next waiter's first probe is sent immediately; ten more within a second have a chance of
    // 10^-9.
    let again = seen.accepted() - probes;
    assert!((1..11).contains(&again), "{again}");
}

#[tokio::test]
async fn a_response_on_an_open_connection_ends_the_back_off() {
    let (socket, address) = refusing();
    socket.listen(8).unwrap();
    let upstream = upstream(address);
    let open = upstream.ready(1).await;
    let (accepted, _) = socket.accept().unwrap();
    accepted.set_nonblocking(true).unwrap();
    let mut accepted = TcpStream::from_std(accepted.into()).unwrap();
    // The port refuses connections until it listens again.
    socket.shutdown(std::net::Shutdown::Read).unwrap();
    freeze();
    let waiting = tokio::spawn({
        let upstream = upstream.clone();
        async move { drop(upstream.ready(1).await) }
    });
    eventually("down", || {
        down(&upstream).is_some_and(|reason| reason == "cannot connect: connection refused")
    })
    .await;
    socket.listen(8).unwrap();
    // This clock stands still, so the probe never becomes due.
    let serve = async {
        read_request(&mut accepted, &Seen::default()).await;
        accepted.write_all(OK).await.unwrap();
    };
    let (sent, ()) = tokio::join!(open.send(request("/"), None), serve);
    assert_eq!(
        (answered(sent).status.as_u16(), upstream.reach()),
        (200, Reach::Up)
    );
    waiting.await.unwrap();
}

/// A balancer without servers behaves like this.
#[tokio::test]
async fn a_port_that_closes_each_connection_is_not_dialled_in_a_loop() {
    let (address, seen) = server(|_, stream, _| async move { drop(stream) }).await;
    let upstream = upstream(address);
    let call = async || {
        let connection = upstream.ready(1).await;
        eventually("close noticed", || !connection.is_usable()).await;
        assert!(matches!(
            connection.send(request("/"), None).await,
            Sent::Unsent
        ));
    };
    freeze();
    for _ in 0..3 {
        assert_eq!(upstream.reach(), Reach::Up);
        call().await;
    }
    assert_eq!(down(&upstream).unwrap(), "closed before its first answer");
    let calls = async {
        loop {
            call().await;
        }
    };
    let time = async {
        for _ in 0..1000 {
            advance(Duration::from_millis(100)).await;
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
        }
    };
    tokio::select! {
        () = calls => {}
        () = time => {}
    }
    // In 100 s: one every 2 s at full jitter, which is one per second on average, and fewer on a
    // slow machine.
    assert!((10..200).contains(&seen.accepted()), "{}", seen.accepted());
}

#[tokio::test]
async fn an_own_listener_is_never_dialled() {
    let (address, seen) = answering(OK).await;
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
    let itself = "would dial Flowgate itself: upstream.connect_to pins other addresses";
    for own in [address, any] {
        let upstream = Upstream::new(&settings(address), vec![own]).unwrap();
        assert_eq!(refusal(&upstream).await, itself);
        let pinned = config::Upstream {
            connect_to: vec![address],
            ..settings(address)
        };
        let upstream = Upstream::new(&pinned, vec![own]).unwrap();
        assert_eq!(refusal(&upstream).await, itself);
    }
    assert_eq!(seen.accepted(), 0);
}

/// An address that refuses connections while the socket exists.
fn refusing() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket
        .bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
        .unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

#[tokio::test]
async fn pinned_addresses_are_tried_in_turn() {
    let (_socket, refusing) = refusing();
    let (address, seen) = answering(OK).await;
    let settings = config::Upstream {
        connect_to: vec![refusing, address],
        ..settings(refusing)
    };
    let upstream = Upstream::new(&settings, Vec::new()).unwrap();
    assert_eq!(answered(send(&upstream, "/").await).status, 200);
    assert_eq!((seen.accepted(), upstream.reach()), (1, Reach::Up));
}

#[tokio::test]
async fn a_name_and_its_addresses_are_resolved() {
    let (address, seen) = answering(OK).await;
    // The name may have addresses of both families; only one has a listener.
    let settings = config::Upstream {
        dial_host: "localhost".to_owned(),
        ..settings(address)
    };
    let upstream = Upstream::new(&settings, Vec::new()).unwrap();
    assert_eq!(answered(send(&upstream, "/").await).status, 200);
    assert_eq!((seen.accepted(), upstream.reach()), (1, Reach::Up));
}

#[tokio::test]
async fn after_a_tls_failure_the_next_address_is_tried_and_the_failed_one_avoided() {
    let (wrong, _) = tls("cams.test");
    let (wrong, wrong_seen) = tls_server(wrong).await;
    let (right, ca) = tls("cams.test");
    let (right, right_seen) = tls_server(right).await;
    let settings = tls_settings("cams.test", right, Some(ca.path().to_owned()));
    let upstream = Upstream::new(
        &config::Upstream {
            connect_to: vec![wrong, right],
            ..settings
        },
        Vec::new(),
    )
    .unwrap();
    // Held, so that each call needs a connection of its own.
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(upstream.ready(1).await);
        assert_eq!(upstream.reach(), Reach::Up);
    }
    assert_eq!((wrong_seen.accepted(), right_seen.accepted()), (1, 3));
}

#[tokio::test]
async fn the_error_names_each_address_that_was_tried() {
    let (_one, one) = refusing();
    let (_other, other) = refusing();
    let pinned = |connect_to| config::Upstream {
        connect_to,
        ..settings(one)
    };
    let upstream = Upstream::new(&pinned(vec![one, other, one]), Vec::new()).unwrap();
    assert_eq!(
        refusal(&upstream).await,
        format!("cannot connect: connection refused ({one}, {other})")
    );

    let (hanging, _) =
        server(|_, mut stream, _| async move { while stream.read_u8().await.is_ok() {} }).await;
    let short = config::Upstream {
        connect_timeout: Duration::from_millis(50),
        connect_to: vec![one, hanging],
        ..tls_settings("cams.test", one, None)
    };
    let upstream = Upstream::new(&short, Vec::new()).unwrap();
    let expected = format!(
        "cannot connect: connection refused ({one}); not connected within 50ms ({hanging})"
    );
    assert_eq!(refusal(&upstream).await, expected);

    let many: Vec<_> = (0..6).map(|_| refusing()).collect();
    let addresses: Vec<_> = many.iter().map(|(_, address)| *address).collect();
    let upstream = Upstream::new(&pinned(addresses.clone()), Vec::new()).unwrap();
    let [first, second, third, fourth, ..] = addresses[..] else {
        panic!("six")
    };
    let expected = format!(
        "cannot connect: connection refused ({first}, {second}, {third}, {fourth} and 2 more)"
    );
    assert_eq!(refusal(&upstream).await, expected);
}

#[tokio::test]
async fn a_handshake_that_never_ends_times_out() {
    let (address, _) =
        server(|_, mut stream, _| async move { while stream.read_u8().await.is_ok() {} }).await;
    let settings = config::Upstream {
        connect_timeout: Duration::from_millis(50),
        ..tls_settings("cams.test", address, None)
    };
    let upstream = Upstream::new(&settings, Vec::new()).unwrap();
    assert_eq!(refusal(&upstream).await, "not connected within 50ms");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_randomly_dropped_waiters_lose_no_connection() {
    let (address, seen) = answering(OK).await;
    let upstream = upstream(address);
    let waiting: Vec<_> = (0..1000)
        .map(|_| {
            let upstream = upstream.clone();
            tokio::spawn(async move {
                let patience = fastrand::usize(..30);
                tokio::select! {
                    biased;
                    connection = upstream.ready(1 + patience % 3) => {
                        for _ in 0..patience {
                            tokio::task::yield_now().await;
                        }
                        drop(connection);
                    }
                    () = async { for _ in 0..patience { tokio::task::yield_now().await } } => {}
                }
            })
        })
        .collect();
    let stayed: Vec<_> = (0..100)
        .map(|call| {
            let upstream = upstream.clone();
            tokio::spawn(async move {
                answered(send(&upstream, &format!("/?{call}")).await)
                    .status
                    .as_u16()
            })
        })
        .collect();
    for waiting in waiting {
        waiting.await.unwrap();
    }
    for stayed in stayed {
        assert_eq!(
            timeout(Duration::from_secs(20), stayed)
                .await
                .unwrap()
                .unwrap(),
            200
        );
    }
    eventually("all given back", || {
        (upstream.idle(), upstream.in_use()) == (seen.accepted(), 0)
    })
    .await;
    assert_eq!(
        (seen.requests.lock().len(), seen.closed(), upstream.reach()),
        (100, 0, Reach::Up)
    );
}

#[test]
fn configuration_mistakes_are_reported_without_dialling() {
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 443));
    let file = tempfile::NamedTempFile::new().unwrap();
    let refused = |settings: &config::Upstream| {
        Upstream::new(settings, Vec::new())
            .err()
            .map(|error| error.to_string())
    };
    let empty = refused(&tls_settings(
        "cams.test",
        anywhere,
        Some(file.path().to_owned()),
    ));
    assert_eq!(
        empty,
        Some(format!(
            "upstream.ca_file: {}: expected certificates in PEM",
            file.path().display()
        ))
    );
    assert!(matches!(
        Upstream::new(&tls_settings("not a name", anywhere, None), Vec::new()),
        Err(UpstreamError::Name(_))
    ));
}
