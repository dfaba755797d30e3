//! Tests of `serve`.

use std::time::Duration;

use tokio::io::{AsyncReadExt, duplex};

use super::*;
use crate::testing::{Draft, settings};

const CALL: &str = "POST /?Action=CreateFlow&Version=2020-06-06&Format=JSON&FlowName=a&Categories=%5B%22OTHER%22%5D HTTP/1.1\r\nhost: cams.test\r\ncontent-length: 0\r\n\r\n";

async fn start(faults: &[&str]) -> Running {
    let faults = faults.iter().map(|text| text.parse().unwrap()).collect();
    Sim::start(Settings {
        check_signatures: false,
        faults,
        ..Settings::default()
    })
    .await
    .unwrap()
}

/// Sends the bytes. Returns all bytes until the simulator closes, or an error if it resets.
async fn raw(running: &Running, request: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(running.addr()).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// The same for a call that ends its connection.
async fn last_call(running: &Running) -> io::Result<String> {
    raw(
        running,
        &CALL.replace(
            "content-length: 0",
            "content-length: 0\r\nconnection: close",
        ),
    )
    .await
}

/// Status, content type and body of a response.
fn split(answer: &str) -> (&str, &str, &str) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let line = |name: &str| {
        head.lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap_or_default()
    };
    (line("HTTP/1.1 "), line("content-type: "), body)
}

#[tokio::test]
async fn a_plain_call_is_answered_and_the_connection_kept() {
    let running = start(&[]).await;
    let answer = raw(
        &running,
        &format!(
            "{CALL}{}",
            CALL.replace("content-length: 0", "connection: close")
        ),
    )
    .await
    .unwrap();
    assert_eq!(answer.matches("HTTP/1.1 200 OK\r\n").count(), 2);
    assert_eq!(answer.matches("\"Code\":\"OK\"").count(), 2);
    let report = running.report();
    assert_eq!(
        (report.connections, report.accepted, report.duplicates),
        (1, 2, vec!["a".to_owned()])
    );
}

#[tokio::test]
async fn faults_with_http_responses() {
    let running = start(&[
        "next=1,html",
        "next=1,empty",
        "next=1,redirect",
        "next=1,unavailable,retry-after=3",
    ])
    .await;
    let html = last_call(&running).await.unwrap();
    assert_eq!(
        split(&html),
        ("200 OK", "text/html", "<html><body>It works!</body></html>")
    );
    let empty = last_call(&running).await.unwrap();
    assert_eq!(
        split(&empty),
        ("200 OK", "application/json;charset=utf-8", "")
    );
    let redirect = last_call(&running).await.unwrap();
    assert_eq!(split(&redirect).0, "302 Found");
    assert!(redirect.contains("\r\nlocation: http://127.0.0.1:9/\r\n"));
    let unavailable = last_call(&running).await.unwrap();
    assert_eq!(split(&unavailable).0, "503 Service Unavailable");
    assert!(unavailable.contains("\r\nretry-after: 3\r\n"));
    assert!(
        split(&unavailable)
            .2
            .contains("\"Code\":\"ServiceUnavailable\"")
    );
    let report = running.report();
    assert_eq!(
        (
            report.created,
            report.accepted,
            report.lost,
            report.rejected
        ),
        (2, 2, 1, 1)
    );
}

#[tokio::test]
async fn faults_that_end_the_connection() {
    let running = start(&[
        "next=1,close-before",
        "next=1,close-after",
        "next=1,garbage",
        "next=1,cut",
        "next=1,reset",
    ])
    .await;
    assert_eq!(raw(&running, CALL).await.unwrap(), "");
    assert_eq!(running.report().created, 0);
    assert_eq!(raw(&running, CALL).await.unwrap(), "");
    assert_eq!(running.report().created, 1);
    assert_eq!(
        raw(&running, CALL).await.unwrap(),
        "\u{16}\u{3}\u{1}\0 this is not HTTP\r\n\r\n"
    );
    let cut = raw(&running, CALL).await.unwrap();
    let (status, _, body) = split(&cut);
    assert_eq!(status, "200 OK");
    assert!(cut.contains(&format!("content-length: {}\r\n", body.len() + 100)));
    assert!(body.ends_with('}') && body.contains("\"Code\":\"OK\""));
    assert_eq!(
        raw(&running, CALL).await.unwrap_err().kind(),
        io::ErrorKind::ConnectionReset
    );
    let report = running.report();
    assert_eq!((report.created, report.lost, report.connections), (4, 1, 5));
}

#[tokio::test]
async fn connections_that_are_not_http_are_counted() {
    let running = start(&[]).await;
    let answer = raw(&running, "\u{16}\u{3}\u{1}hello\r\n\r\n")
        .await
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"));
    assert_eq!(
        (running.report().not_http, running.report().arrived),
        (1, 0)
    );
}

#[tokio::test]
async fn a_signed_call_is_verified_over_a_connection() {
    let running = Sim::start(settings()).await.unwrap();
    let request = Draft::create("a b", "n").v3();
    let headers = request
        .headers()
        .iter()
        .map(|(name, value)| format!("{name}: {}\r\n", value.to_str().unwrap()));
    let head = format!(
        "POST {} HTTP/1.1\r\nconnection: close\r\n{}",
        request.uri(),
        headers.collect::<String>()
    );
    let answer = raw(
        &running,
        &format!("{head}transfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
    )
    .await
    .unwrap();
    assert!(
        split(&answer).2.contains("\"FlowName\":\"a b\""),
        "{answer}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_received_call_is_processed_after_a_hang_up() {
    let waiting = Duration::from_secs(1);
    let sim = Sim::new(Settings {
        check_signatures: false,
        jitter: waiting,
        latency: waiting,
        seed: 1,
        ..Settings::default()
    });
    let (mut ours, theirs) = duplex(4_096);
    let served = tokio::spawn({
        let sim = sim.clone();
        async move { sim.serve_connection(theirs).await }
    });
    ours.write_all(CALL.as_bytes()).await.unwrap();
    tokio::task::yield_now().await;
    drop(ours);
    served.await.unwrap();
    assert_eq!(sim.report().arrived, 0);
    tokio::time::sleep(waiting).await;
    assert_eq!((sim.report().arrived, sim.report().created), (1, 1));
}

/// `CALL`, written to a new connection while the simulator does not run.
fn write_call(running: &Running) -> std::net::TcpStream {
    let mut stream = std::net::TcpStream::connect(running.addr()).unwrap();
    std::io::Write::write_all(&mut stream, CALL.as_bytes()).unwrap();
    stream.set_nonblocking(true).unwrap();
    stream
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_call_is_received_when_the_kernel_has_it() {
    let running = start(&[]).await;
    // The first ones may arrive before the kernel has begun to stamp.
    for arrived in 1.. {
        let stream = write_call(&running);
        let written = tokio::time::Instant::now();
        while running.report().arrived < arrived {
            tokio::task::yield_now().await;
        }
        let arrival = running.arrivals().pop().expect("the call has arrived");
        assert!(written < arrival.at);
        drop(stream);
        if arrival.received <= written {
            break;
        }
    }
}

#[tokio::test]
async fn a_held_response_is_released_with_the_next_rules() {
    let running = start(&["next=1,held"]).await;
    let mut stream = TcpStream::from_std(write_call(&running)).unwrap();
    while running.report().created < 1 {
        tokio::task::yield_now().await;
    }
    running.set_faults(Vec::new());
    let mut answer = [0; 15];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
}

#[tokio::test]
async fn the_simulator_can_be_controlled_over_http() {
    let running = start(&[]).await;
    let ask = async |head: &str, body: &str| {
        let length = body.len();
        let answer = raw(
            &running,
            &format!("{head} HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"),
        )
        .await
        .unwrap();
        let (status, _, body) = split(&answer);
        (
            status.to_owned(),
            serde_json::from_str::<serde_json::Value>(body).unwrap(),
        )
    };
    assert_eq!(
        ask("POST /__faults", "[\"next=1,refuse=Ram.PermissionDeny\"]").await,
        ("200 OK".to_owned(), json!({}))
    );
    assert!(
        last_call(&running)
            .await
            .unwrap()
            .contains("\"Code\":\"Ram.PermissionDeny\"")
    );
    let (_, report) = ask("GET /__report", "").await;
    assert_eq!(
        (&report["arrived"], &report["codes"]),
        (&json!(1), &json!({ "Ram.PermissionDeny": 1 }))
    );
    let (_, arrivals) = ask("GET /__arrivals", "").await;
    assert_eq!(
        (&arrivals[0]["flow_name"], &arrivals[0]["verdict"]),
        (&json!("a"), &json!("Ram.PermissionDeny"))
    );
    assert_eq!(ask("POST /__reset", "").await.1, json!({}));
    assert_eq!(ask("GET /__report", "").await.1["arrived"], json!(0));
    let (status, answer) = ask("POST /__faults", "[\"explode=1\"]").await;
    assert_eq!(status, "400 Bad Request");
    assert!(
        answer["error"]
            .as_str()
            .unwrap()
            .starts_with("expected one of unavailable,")
    );
}

#[tokio::test]
async fn stopping_closes_port_and_connections() {
    let running = start(&[]).await;
    let addr = running.addr();
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(CALL.as_bytes()).await.unwrap();
    assert!(stream.read(&mut [0; 4_096]).await.unwrap() > 0);
    let sim = running.stop().await;
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    assert_eq!(
        TcpStream::connect(addr).await.unwrap_err().kind(),
        io::ErrorKind::ConnectionRefused
    );
    assert_eq!(sim.report().accepted, 1);
}

const ASSUME: &str = "POST /?Action=AssumeRoleWithOIDC&Version=2015-04-01&Format=JSON HTTP/1.1\r\nhost: sts.test\r\n\
    content-type: application/x-www-form-urlencoded\r\nconnection: close\r\ncontent-length: ";

/// A call of AssumeRoleWithOIDC with this token, over a stream.
async fn assume(stream: impl AsyncRead + AsyncWrite, token: &str) -> String {
    let form = format!(
        "RoleArn=acs:ram::1:role/a&RoleSessionName=ab&OIDCProviderArn=acs:ram::1:oidc-provider/p&OIDCToken={token}"
    );
    let mut stream = Box::pin(stream);
    let request = format!("{ASSUME}{}\r\n\r\n{form}", form.len());
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn get(running: &Running, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n");
    raw(running, &request).await.unwrap()
}

async fn post(running: &Running, path: &str, body: &str) -> String {
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    raw(running, &request).await.unwrap()
}

#[tokio::test]
async fn the_metadata_service_has_an_address_of_its_own() {
    let running = start(&[]).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let metadata = running.metadata().listen(listener).unwrap();
    let path = "/latest/meta-data/ram/security-credentials/";
    assert!(
        get(&metadata, path)
            .await
            .ends_with("\r\n\r\nflowgate-role")
    );
    assert!(get(&running, path).await.starts_with("HTTP/1.1 404"));
    let records = get(&running, "/__credentials").await;
    let (_, _, records) = split(&records);
    let records: serde_json::Value = serde_json::from_str(records).unwrap();
    assert_eq!(records[0]["action"], "MetadataRole");
    assert_eq!(records[0]["verdict"], "accepted");
    assert_eq!(records.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn clock_and_sessions_are_set_while_it_runs() {
    let running = start(&[]).await;
    let stream = TcpStream::connect(running.addr()).await.unwrap();
    let answer = assume(stream, "a.b.c").await;
    assert!(answer.contains("\"AccessKeyId\":\"STS."), "{answer}");
    assert!(
        post(&running, "/__end-sessions", "")
            .await
            .starts_with("HTTP/1.1 200")
    );
    assert!(
        post(&running, "/__skew", "\"-30m\"")
            .await
            .starts_with("HTTP/1.1 200")
    );
    let late = last_call(&running).await.unwrap();
    let date = late
        .lines()
        .find_map(|line| line.strip_prefix("date: "))
        .unwrap();
    let date = httpdate::parse_http_date(date).unwrap();
    let behind = SystemTime::now().duration_since(date).unwrap();
    assert!((1_800..1_900).contains(&behind.as_secs()), "{behind:?}");
    assert!(
        post(&running, "/__skew", "\"late\"")
            .await
            .starts_with("HTTP/1.1 400")
    );
}

#[tokio::test]
async fn tls_serves_the_same_calls() {
    let running = start(&[]).await;
    let pair = rcgen::generate_simple_self_signed(vec!["sts.test".to_owned()]).unwrap();
    let (certificate, key) = (pair.cert.pem(), pair.signing_key.serialize_pem());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let secure = (*running)
        .clone()
        .listen_tls(listener, certificate.as_bytes(), key.as_bytes())
        .unwrap();
    assert!(secure.url().starts_with("https://127.0.0.1:"));
    let mut roots = tokio_rustls::rustls::RootCertStore::empty();
    roots.add(pair.cert.der().clone()).unwrap();
    let config = tokio_rustls::rustls::ClientConfig::builder_with_provider(Arc::new(
        ring::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .unwrap()
    .with_root_certificates(roots)
    .with_no_client_auth();
    let stream = TcpStream::connect(secure.addr()).await.unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect("sts.test".try_into().unwrap(), stream)
        .await
        .unwrap();
    let answer = assume(stream, "a.b.c").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(running.report().credentials["AssumeRoleWithOIDC"], 1);

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let no_key = (*running)
        .clone()
        .listen_tls(listener, certificate.as_bytes(), b"");
    assert!(no_key.is_err());
}
