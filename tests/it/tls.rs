//! TLS on the proxy port: accepted clients, hang-ups, stalls, garbage, drains, and mistakes in the
//! files.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cams_sim::{Settings, Sim};
use flowgate::config;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion, version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::balancers::header;
use crate::caller::{Call, KEY, Reply, SECRET, read_reply};
use crate::harness::Harness;
use crate::process::{ACME, Process};

const NAME: &str = "flowgate.internal";
const QUEUED: &str = "flowgate_queued{account=\"acme\",action=\"CreateFlow\"}";

/// Signs certificates.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
    der: CertificateDer<'static>,
}

/// A certificate and its key.
pub(crate) struct Identity {
    pub(crate) pem: String,
    der: CertificateDer<'static>,
    pub(crate) key: KeyPair,
}

/// A Flowgate with TLS, and the folder of its files.
struct Place {
    harness: Harness,
    authority: Authority,
    _folder: tempfile::TempDir,
}

/// How a caller disconnects.
#[derive(Clone, Copy, Debug)]
enum Manner {
    CloseNotify,
    Fin,
    Reset,
    HalfClose,
    AfterStrayRecord,
}

// === impl Authority ===

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let own = params.self_signed(&key).unwrap();
        Self {
            pem: own.pem(),
            der: own.der().clone(),
            issuer: Issuer::new(params, key),
        }
    }

    pub(crate) fn issue(&self, change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
        change(&mut params);
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        Identity {
            pem: leaf.pem(),
            der: leaf.der().clone(),
            key,
        }
    }

    /// Settings of a caller that trusts only this authority.
    fn client(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        identity: Option<&Identity>,
    ) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).unwrap();
        let builder =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_protocol_versions(versions)
                .unwrap()
                .with_root_certificates(roots);
        match identity {
            None => builder.with_no_client_auth(),
            Some(Identity { der, key, .. }) => {
                let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
                builder
                    .with_client_auth_cert(vec![der.clone()], key)
                    .unwrap()
            }
        }
    }
}

// === impl Identity ===

impl Identity {
    fn write(&self, folder: &Path) {
        std::fs::write(folder.join("cert.pem"), &self.pem).unwrap();
        std::fs::write(folder.join("key.pem"), self.key.serialize_pem()).unwrap();
    }
}

// === impl Place ===

impl Place {
    /// `listen` continues that section; `more` follows it.
    async fn new(listen: &str, more: &str) -> Self {
        Self::with(Settings::default(), listen, more).await
    }

    async fn with(settings: Settings, listen: &str, more: &str) -> Self {
        let authority = Authority::new();
        let folder = tempfile::tempdir().unwrap();
        authority
            .issue(|params| params.not_after = rcgen::date_time_ymd(2050, 1, 1))
            .write(folder.path());
        std::fs::write(folder.path().join("ca.pem"), &authority.pem).unwrap();
        let file = |name: &str| folder.path().join(name);
        let mut tls = format!("cert = {:?}, key = {:?}", file("cert.pem"), file("key.pem"));
        if listen.contains("client_ca") {
            tls += &format!(", client_ca = {:?}", file("ca.pem"));
        }
        let listen = listen.replace("client_ca", "");
        let sim = Sim::start(settings.with_key(KEY, SECRET, "acme"))
            .await
            .unwrap();
        let upstream = sim.url();
        let more = format!("[listen]\ntls = {{ {tls} }}\n{listen}\n{more}");
        Self {
            harness: Harness::in_front_of(sim, &upstream, &more).await,
            authority,
            _folder: folder,
        }
    }

    fn client(&self) -> ClientConfig {
        self.authority.client(&[&version::TLS13], None)
    }

    async fn connect(&self) -> TlsStream<TcpStream> {
        connect(self.harness.proxy, self.client()).await.unwrap()
    }

    async fn errors(&self, kind: &str, count: f64) {
        self.harness
            .until(
                &format!("flowgate_connection_errors_total{{kind=\"{kind}\"}}"),
                count,
            )
            .await;
    }

    fn call(&self, name: &str) -> Call {
        Call::v3(&self.harness.host(), name)
    }
}

async fn connect(to: SocketAddr, client: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    secure(TcpStream::connect(to).await?, client).await
}

async fn secure(tcp: TcpStream, client: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    TlsConnector::from(Arc::new(client))
        .connect(ServerName::try_from(NAME).unwrap(), tcp)
        .await
}

async fn send(stream: &mut TlsStream<TcpStream>, call: &Call) -> Option<Reply> {
    stream.write_all(&call.bytes()).await.ok()?;
    read_reply(stream).await
}

/// Whether the other side closes without a byte of HTTP.
async fn is_closed(stream: &mut TcpStream) -> bool {
    let mut seen = Vec::new();
    drop(stream.read_to_end(&mut seen).await);
    !seen.windows(4).any(|bytes| bytes == b"HTTP")
}

#[tokio::test]
async fn a_proxy_header_precedes_the_handshake() {
    let listen = "proxy_protocol = true\ntrusted_proxies = [\"127.0.0.1\"]\nmax_connections_per_source = 1\n";
    let place = Place::new(listen, "").await;
    let proxy = place.harness.proxy;
    let mut streams = Vec::new();
    for last in [7, 8] {
        let mut tcp = TcpStream::connect(proxy).await.unwrap();
        tcp.write_all(&header(last)).await.unwrap();
        let mut stream = secure(tcp, place.client()).await.unwrap();
        let reply = send(&mut stream, &place.call(&format!("call-{last}"))).await;
        assert_eq!(reply.unwrap().status, 200);
        streams.push(stream);
    }
    let mut second = TcpStream::connect(proxy).await.unwrap();
    second.write_all(&header(7)).await.unwrap();
    assert!(is_closed(&mut second).await);
    place.errors("too_many_from_source", 1.0).await;
    assert!(connect(proxy, place.client()).await.is_err());
    place.errors("proxy_header", 1.0).await;
}

#[tokio::test]
async fn calls_over_tls_1_2_and_1_3_reuse_one_connection() {
    let place = Place::new("", "").await;
    for version in [&version::TLS12, &version::TLS13] {
        let mut client = place.authority.client(&[version], None);
        client.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let mut stream = connect(place.harness.proxy, client).await.unwrap();
        assert_eq!(stream.get_ref().1.protocol_version(), Some(version.version));
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        for name in ["one", "two"] {
            let reply = send(&mut stream, &place.call(name)).await.unwrap();
            assert_eq!(
                (reply.status, reply.json()["Data"]["FlowName"].as_str()),
                (200, Some(name))
            );
        }
        let large = "x".repeat(200 * 1024);
        let call = Call::v3_with(
            &place.harness.host(),
            &[],
            |call| {
                call.push("content-type", "application/x-www-form-urlencoded");
                call.body = format!("FlowName={large}&Categories=%5B%22SIGN_UP%22%5D").into_bytes();
            },
            (KEY, SECRET),
        );
        // More than one record in each direction.
        let reply = send(&mut stream, &call).await.unwrap();
        assert_eq!(
            (reply.status, reply.json()["Data"]["FlowName"].as_str()),
            (200, Some(large.as_str()))
        );
    }
    let mut only_h2 = place.client();
    only_h2.alpn_protocols = vec![b"h2".to_vec()];
    let error = connect(place.harness.proxy, only_h2).await.unwrap_err();
    assert!(
        error.to_string().contains("NoApplicationProtocol"),
        "{error}"
    );
    place.errors("tls", 1.0).await;
    let expiry = place
        .harness
        .metrics()
        .await
        .get("flowgate_certificate_expiry_timestamp_seconds{name=\"listen\"}");
    assert_eq!(expiry, 2_524_608_000.0);
    let shown = place.harness.get("/config").await.json();
    assert_eq!(shown["listen"]["tls"]["client_ca"], serde_json::Value::Null);
    assert_eq!(shown["listen"]["tls"]["not_after"], 2_524_608_000_u64);
}

#[tokio::test]
async fn only_certificates_of_the_client_authority_are_accepted() {
    let place = Place::new("client_ca", "").await;
    let right = place.authority.issue(|_| {});
    let foreign = Authority::new().issue(|_| {});
    let expired = place
        .authority
        .issue(|params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
    for version in [&version::TLS12, &version::TLS13] {
        for (identity, lets_in) in [
            (None, false),
            (Some(&foreign), false),
            (Some(&expired), false),
            (Some(&right), true),
        ] {
            // In TLS 1.3 the client's handshake ends before the server checks its certificate.
            let client = place.authority.client(&[version], identity);
            let reply = match connect(place.harness.proxy, client).await {
                Ok(mut stream) => send(&mut stream, &place.call("x")).await,
                Err(_) => None,
            };
            assert_eq!(reply.map(|reply| reply.status), lets_in.then_some(200));
        }
    }
    place.errors("tls", 6.0).await;
    assert_eq!(place.harness.sim.arrivals().len(), 2);
}

async fn hangs_up_while_queued(manner: Manner) {
    let place = Place::new("", "").await;
    place.harness.sim.set_faults(vec![
        "next=1,throttle,acs-retry-after=3000".parse().unwrap(),
    ]);
    let mut stays = place.connect().await;
    stays.write_all(&place.call("stays").bytes()).await.unwrap();
    place
        .harness
        .until("flowgate_throttled_total{account=\"acme\",code=\"System.LimitControl\",source=\"body\"}", 1.0)
        .await;
    let mut goes = Vec::new();
    for index in 0..5 {
        let mut stream = place.connect().await;
        stream
            .write_all(&place.call(&format!("goes-{index}")).bytes())
            .await
            .unwrap();
        if let Manner::AfterStrayRecord = manner {
            stream.write_all(b"P").await.unwrap();
        }
        goes.push(stream);
    }
    place.harness.until(QUEUED, 6.0).await;
    let mut half_open = Vec::new();
    for mut stream in goes {
        match manner {
            // Sends close_notify, then closes.
            Manner::CloseNotify => stream.shutdown().await.unwrap(),
            Manner::Fin | Manner::AfterStrayRecord => {}
            Manner::Reset => socket2::SockRef::from(stream.get_ref().0)
                .set_linger(Some(Duration::ZERO))
                .unwrap(),
            Manner::HalfClose => {
                stream.shutdown().await.unwrap();
                half_open.push(stream);
                continue;
            }
        }
        drop(stream.into_inner().0);
    }
    place
        .harness
        .until(
            "flowgate_cancelled_total{account=\"acme\",stage=\"queued\"}",
            5.0,
        )
        .await;
    assert_eq!(read_reply(&mut stays).await.unwrap().status, 200);
    let names: Vec<_> = place
        .harness
        .sim
        .arrivals()
        .into_iter()
        .filter_map(|arrival| arrival.flow_name)
        .collect();
    assert_eq!(names, ["stays", "stays"], "{manner:?}");
    let tokens = "flowgate_tokens_total{account=\"acme\",event=\"spent\"}";
    assert_eq!(place.harness.metrics().await.get(tokens), 2.0, "{manner:?}");
}

#[tokio::test]
async fn a_hang_up_over_tls_spends_no_token() {
    tokio::join!(
        hangs_up_while_queued(Manner::CloseNotify),
        hangs_up_while_queued(Manner::Fin),
        hangs_up_while_queued(Manner::Reset),
        hangs_up_while_queued(Manner::HalfClose),
        hangs_up_while_queued(Manner::AfterStrayRecord),
    );
}

#[tokio::test]
async fn a_handshake_times_out_and_its_connection_counts() {
    let place = Place::new(
        "header_timeout = \"300ms\"\nmax_connections_per_source = 2",
        "",
    )
    .await;
    let mut silent = TcpStream::connect(place.harness.proxy).await.unwrap();
    let mut stalled = TcpStream::connect(place.harness.proxy).await.unwrap();
    stalled.write_all(&[22, 3, 1]).await.unwrap();
    // The third connection of this address is refused although no handshake is complete yet.
    place.harness.until("flowgate_connections", 2.0).await;
    assert!(is_closed(&mut TcpStream::connect(place.harness.proxy).await.unwrap()).await);
    place.errors("too_many_from_source", 1.0).await;
    assert!(is_closed(&mut silent).await && is_closed(&mut stalled).await);
    place.errors("slow_handshake", 2.0).await;
}

#[tokio::test]
async fn the_header_timeout_starts_with_the_head() {
    let place = Place::new("header_timeout = \"300ms\"", "").await;
    let mut idle = place.connect().await;
    let mut slow = place.connect().await;
    slow.write_all(b"POST / HT").await.unwrap();
    assert_eq!(read_reply(&mut slow).await.map(|reply| reply.status), None);
    place.errors("slow_head", 1.0).await;
    // By now the same time has passed for the silent connection.
    assert_eq!(
        send(&mut idle, &place.call("pooled")).await.unwrap().status,
        200
    );
}

#[tokio::test]
async fn connections_without_tls_are_counted_and_plain_http_gets_a_400() {
    let place = Place::new("", "").await;
    let reply = place.call("in the clear").send(place.harness.proxy).await;
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (400, "Flowgate.BadRequest")
    );
    assert!(
        reply.json()["Message"]
            .as_str()
            .unwrap()
            .contains("This port requires TLS"),
        "{reply:?}"
    );
    assert_eq!(reply.header("connection"), Some("close"));
    place.errors("tls", 1.0).await;
    for garbage in [
        &b"\x00\x01\x02\x03\r\n\r\n"[..],
        &[22, 3, 1, 0, 5, 1, 2, 3, 4, 5],
        b"\x80\x2e\x01\x03",
    ] {
        let mut stream = TcpStream::connect(place.harness.proxy).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        assert!(is_closed(&mut stream).await);
    }
    place.errors("tls", 4.0).await;
    // A port check is not an error.
    drop(TcpStream::connect(place.harness.proxy).await.unwrap());
    assert_eq!(
        send(&mut place.connect().await, &place.call("after all that"))
            .await
            .unwrap()
            .status,
        200
    );
    assert_eq!(
        place
            .harness
            .metrics()
            .await
            .sum("flowgate_connection_errors_total"),
        4.0
    );
    assert_eq!(place.harness.sim.arrivals().len(), 1);
}

#[tokio::test]
async fn a_silent_close_outside_of_a_call_is_not_an_error() {
    let place = Place::new("", "").await;
    // A pool that opened one connection too many does this. In TLS 1.3 it is a reset, because the
    // ticket is unread.
    let client = place.authority.client(&[&version::TLS12], None);
    drop(
        connect(place.harness.proxy, client)
            .await
            .unwrap()
            .into_inner()
            .0,
    );
    let mut stream = place.connect().await;
    assert_eq!(
        send(&mut stream, &place.call("x")).await.unwrap().status,
        200
    );
    drop(stream.into_inner().0);
    crate::harness::Metrics::until(
        place.harness.app.admin_address().unwrap(),
        "flowgate_connections",
        |open| open <= 1.0,
    )
    .await;
    assert_eq!(
        place
            .harness
            .metrics()
            .await
            .sum("flowgate_connection_errors_total"),
        0.0
    );
}

#[tokio::test]
async fn a_drain_answers_calls_in_flight_and_sends_close_notify() {
    let place = Place::with(Settings::default(), "", "[drain]\ngrace = \"60s\"").await;
    let mut idle = place.connect().await;
    let mut busy = place.connect().await;
    assert_eq!(
        send(&mut idle, &place.call("before")).await.unwrap().status,
        200
    );
    place
        .harness
        .sim
        .set_faults(vec!["next=1,held".parse().unwrap()]);
    busy.write_all(&place.call("under way").bytes())
        .await
        .unwrap();
    place
        .harness
        .until(
            "flowgate_in_flight{account=\"acme\",action=\"CreateFlow\"}",
            1.0,
        )
        .await;
    let drain = tokio::spawn(place.harness.app.drain());
    // Without close_notify this would be an error.
    assert_eq!(idle.read(&mut [0]).await.unwrap(), 0);
    place.harness.sim.set_faults(vec![]);
    let reply = read_reply(&mut busy).await.unwrap();
    assert_eq!(
        (reply.status, reply.header("connection")),
        (200, Some("close"))
    );
    assert_eq!(busy.read(&mut [0]).await.unwrap(), 0);
    drain.await.unwrap();
}

#[tokio::test]
async fn a_replaced_certificate_is_used_for_new_connections() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    let first = authority.issue(|_| {});
    first.write(folder.path());
    let file = |name: &str| folder.path().join(name).display().to_string();
    let cert = file("cert.pem");
    let key = file("key.pem");
    let env = [
        ("FLOWGATE_LISTEN__TLS__CERT", cert.as_str()),
        ("FLOWGATE_LISTEN__TLS__KEY", key.as_str()),
    ];
    let sim = Sim::start(Settings::default().with_key(KEY, SECRET, "acme"))
        .await
        .unwrap();
    let flowgate = Process::configured(&sim, ACME, folder, &env).await;
    let client = || authority.client(&[&version::TLS13], None);
    let shown =
        |stream: &TlsStream<TcpStream>| stream.get_ref().1.peer_certificates().unwrap()[0].clone();
    let mut old = connect(flowgate.proxy, client()).await.unwrap();
    assert_eq!(shown(&old), first.der);

    let second = authority.issue(|_| {});
    second.write(flowgate.folder.path());
    flowgate.logged("configuration reloaded", 1).await;
    let mut new = connect(flowgate.proxy, client()).await.unwrap();
    assert_eq!(shown(&new), second.der);
    for (stream, name) in [(&mut old, "old"), (&mut new, "new")] {
        let call = Call::v3(&flowgate.proxy.to_string(), name);
        assert_eq!(send(stream, &call).await.unwrap().status, 200);
    }
}

fn check(folder: &Path, tls: &str) -> Result<Vec<String>, String> {
    check_file(folder, &format!("[listen]\n{tls}\n"))
}

fn check_file(folder: &Path, toml: &str) -> Result<Vec<String>, String> {
    let file = folder.join("flowgate.toml");
    std::fs::write(&file, toml).unwrap();
    let loaded = config::load(Some(&file), []).map_err(|mistakes| mistakes.to_string());
    loaded
        .map(|loaded| loaded.warnings)
        .map_err(|text| text.replace(&format!("{}:", file.display()), ""))
}

#[test]
fn mistakes_name_key_and_line_and_no_file_content() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let right = authority.issue(|_| {});
    let other = authority.issue(|_| {});
    let of = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
    of("cert.pem", &right.pem);
    of("key.pem", &right.key.serialize_pem());
    of("other.pem", &other.key.serialize_pem());
    of(
        "both.pem",
        &(right.pem.clone() + &right.key.serialize_pem()),
    );
    of(
        "locked.pem",
        &other
            .key
            .serialize_pem()
            .replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"),
    );
    of(
        "bad.pem",
        "-----BEGIN CERTIFICATE-----\nc2VjcmV0\n-----END CERTIFICATE-----\n",
    );
    of("long.pem", &"x".repeat(70_000));
    let tls = |cert: &str, key: &str| {
        check(
            folder,
            &format!("tls = {{ cert = {cert:?}, key = {key:?} }}"),
        )
    };
    let with_ca = |ca: &str| {
        check(
            folder,
            &format!("tls = {{ cert = \"cert.pem\", key = \"key.pem\", client_ca = \"{ca}\" }}"),
        )
    };
    assert_eq!(
        tls("cert.pem", "key.pem").map(|warnings| warnings.len()),
        Ok(0)
    );
    assert_eq!(
        tls("both.pem", "both.pem").map(|warnings| warnings.len()),
        Ok(0)
    );
    assert_eq!(with_ca("cert.pem").map(|warnings| warnings.len()), Ok(0));
    for (found, expected) in [
        (
            tls("cert.pem", "other.pem"),
            "listen.tls.key: expected the private key of the certificate in listen.tls.cert",
        ),
        (
            tls("cert.pem", "cert.pem"),
            "listen.tls.key: expected an unencrypted private key in PEM",
        ),
        (
            tls("cert.pem", "locked.pem"),
            "listen.tls.key: expected an unencrypted private key in PEM",
        ),
        (
            tls("cert.pem", "long.pem"),
            "listen.tls.key: expected a file of at most 64KiB",
        ),
        (
            tls("cert.pem", ""),
            "listen.tls.key: expected the path of a PEM file",
        ),
        (
            tls("key.pem", "key.pem"),
            "listen.tls.cert: expected certificates in PEM",
        ),
        (
            tls("bad.pem", "key.pem"),
            "listen.tls.cert: expected a well-formed X.509 certificate",
        ),
        (
            tls("none.pem", "key.pem"),
            "listen.tls.cert: file not found",
        ),
        (
            with_ca("bad.pem"),
            "listen.tls.client_ca: expected CA certificates",
        ),
        (
            with_ca("key.pem"),
            "listen.tls.client_ca: expected certificates in PEM",
        ),
        (
            check(folder, "tls = true"),
            "listen.tls: expected a table: { cert = \"cert.pem\", key = \"key.pem\" }",
        ),
        (
            check(folder, "tls.key = \"key.pem\""),
            "listen.tls.cert: missing, expected the path of a PEM file",
        ),
    ] {
        assert_eq!(found, Err(format!("2: {expected}")));
    }
}

/// Checks `toml` with several files as `ca.pem`. `place` is the line and the key that names it.
fn check_ca_files(toml: &str, place: &str) {
    let authority = Authority::new();
    let key = authority.issue(|_| {}).key.serialize_pem();
    let damaged = "-----BEGIN CERTIFICATE-----\nc2VjcmV0\n-----END CERTIFICATE-----\n";
    let folder = tempfile::tempdir().unwrap();
    let refused = |expectation: &str| Err(format!("{place}: {expectation}"));
    let check_with = |content: &str| {
        std::fs::write(folder.path().join("ca.pem"), content).unwrap();
        check_file(folder.path(), toml)
    };
    assert_eq!(check_file(folder.path(), toml), refused("file not found"));
    let no_pem = refused("expected certificates in PEM");
    assert_eq!(check_with("no PEM at all"), no_pem);
    assert_eq!(check_with(&key), no_pem);
    assert_eq!(check_with(damaged), refused("expected CA certificates"));
    let one_is_damaged = check_with(&(authority.pem.clone() + damaged));
    assert_eq!(one_is_damaged, refused("expected CA certificates"));
    assert!(check_with(&authority.pem).is_ok());
}

#[test]
fn an_unusable_upstream_ca_file_is_a_configuration_mistake() {
    check_ca_files("[upstream]\nca_file = \"ca.pem\"\n", "2: upstream.ca_file");
}

#[test]
fn an_unusable_store_ca_file_is_a_configuration_mistake() {
    check_ca_files(
        "[quota]\nstore = \"rediss://redis.internal\"\nstore_ca_file = \"ca.pem\"\n",
        "3: quota.store_ca_file",
    );
}

#[test]
fn an_expired_or_future_certificate_is_a_warning() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    let tls = "tls = { cert = \"cert.pem\", key = \"key.pem\" }";
    authority
        .issue(|params| params.not_after = rcgen::date_time_ymd(2020, 1, 1))
        .write(folder.path());
    let expired = check(folder.path(), tls).unwrap();
    assert_eq!(expired, ["listen.tls.cert: the certificate has expired"]);
    authority
        .issue(|params| params.not_before = rcgen::date_time_ymd(2999, 1, 1))
        .write(folder.path());
    let early = check(folder.path(), tls).unwrap();
    assert_eq!(early, ["listen.tls.cert: the certificate is not valid yet"]);
}
