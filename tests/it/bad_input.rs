//! Invalid requests, one row each: the response, the counted outcome, and that nothing reaches
//! CAMS.

use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::caller::{self, Call, KEY, SECRET};
use crate::harness::Harness;

const FLOW: [(&str, &str); 2] = [("Categories", "[\"SIGN_UP\"]"), ("FlowName", "x")];

/// A request, and the status and code of its response.
struct Row {
    name: &'static str,
    bytes: Vec<u8>,
    status: u16,
    code: &'static str,
}

fn row(name: &'static str, bytes: impl Into<Vec<u8>>, status: u16, code: &'static str) -> Row {
    Row {
        name,
        bytes: bytes.into(),
        status,
        code,
    }
}

/// A signed V3 call that is changed before or after signing.
fn v3(host: &str, before: impl FnOnce(&mut Call), after: impl FnOnce(&mut Call)) -> Vec<u8> {
    let mut call = Call::v3_with(host, &FLOW, before, (KEY, SECRET));
    after(&mut call);
    call.bytes()
}

fn v1(host: &str, before: impl FnOnce(&mut Call), after: impl FnOnce(&mut Call)) -> Vec<u8> {
    let mut call = Call::v1_with(host, &FLOW, before, (KEY, SECRET));
    after(&mut call);
    call.bytes()
}

/// A V1 call with everything in its form, changed after signing.
fn v1_in_form(host: &str, after: impl FnOnce(&mut Call)) -> Vec<u8> {
    let mut call = Call::v1_with(host, &FLOW, nothing, (KEY, SECRET)).in_form();
    after(&mut call);
    call.bytes()
}

fn nothing(_: &mut Call) {}

fn form(call: &mut Call) {
    call.push("content-type", "application/x-www-form-urlencoded");
    call.query.clear();
    call.body = b"FlowName=x&Categories=%5B%22SIGN_UP%22%5D".to_vec();
}

fn set_query(call: &mut Call, name: &str, value: &str) {
    call.query
        .iter_mut()
        .find(|(known, _)| known == name)
        .unwrap()
        .1 = value.into();
}

fn late(minutes: u64) -> String {
    caller::timestamp(SystemTime::now() - Duration::from_secs(60 * minutes))
}

/// Identity: key, algorithm, account.
fn identity(host: &str) -> Vec<Row> {
    let other_key = |key, secret| Call::v3_with(host, &FLOW, nothing, (key, secret)).bytes();
    let rsa = |call: &mut Call| {
        let authorization = call
            .header("authorization")
            .replace("ACS3-HMAC-SHA256", "ACS3-RSA-SHA256");
        call.set("authorization", &authorization);
    };
    let sm3 = |call: &mut Call| {
        let authorization = call
            .header("authorization")
            .replace("ACS3-HMAC-SHA256", "ACS3-HMAC-SM3");
        call.set("authorization", &authorization);
    };
    let v1_rsa = |call: &mut Call| set_query(call, "SignatureMethod", "SHA256withRSA");
    let bearer = |call: &mut Call| {
        call.headers.retain(|(name, _)| name != "authorization");
        call.push("x-acs-bearer-token", "token");
        call.query
            .push(("SignatureType".into(), "BEARERTOKEN".into()));
    };
    let anonymous = |call: &mut Call| call.headers.retain(|(name, _)| name != "authorization");
    let foreign_product = Call::v3("ecs.aliyuncs.com", "x").bytes();
    vec![
        row(
            "unknown key",
            other_key("LTAI-unknown", SECRET),
            404,
            "InvalidAccessKeyId.NotFound",
        ),
        row(
            "wrong secret",
            other_key(KEY, "guessed"),
            400,
            "SignatureDoesNotMatch",
        ),
        row(
            "wrong secret, V1",
            Call::v1_with(host, &FLOW, nothing, (KEY, "guessed")).bytes(),
            400,
            "SignatureDoesNotMatch",
        ),
        row("RSA", v3(host, nothing, rsa), 400, "IncompleteSignature"),
        row("SM3", v3(host, nothing, sm3), 400, "IncompleteSignature"),
        row(
            "RSA, V1",
            v1(host, v1_rsa, nothing),
            400,
            "IncompleteSignature",
        ),
        row(
            "bearer",
            v3(host, nothing, bearer),
            400,
            "IncompleteSignature",
        ),
        row(
            "anonymous",
            v3(host, nothing, anonymous),
            400,
            "IncompleteSignature",
        ),
        row(
            "signed for another product",
            foreign_product,
            400,
            "Flowgate.SignedHostMismatch",
        ),
    ]
}

/// Time stamps.
fn stamps(host: &str) -> Vec<Row> {
    vec![
        row(
            "stale timestamp",
            v3(host, |call| call.set("x-acs-date", &late(16)), nothing),
            400,
            "InvalidTimeStamp.Expired",
        ),
        row(
            "stale timestamp, V1",
            v1(
                host,
                |call| set_query(call, "Timestamp", &late(16)),
                nothing,
            ),
            400,
            "InvalidTimeStamp.Expired",
        ),
        row(
            "older than the process",
            v3(host, |call| call.set("x-acs-date", &late(2)), nothing),
            400,
            "InvalidTimeStamp.Expired",
        ),
        row(
            "timestamp that is none",
            v3(host, |call| call.set("x-acs-date", "yesterday"), nothing),
            400,
            "InvalidTimeStamp.Format",
        ),
        row(
            "timestamp that is none, V1",
            v1(
                host,
                |call| set_query(call, "Timestamp", "2026-11-24 03:05:10"),
                nothing,
            ),
            400,
            "InvalidTimeStamp.Format",
        ),
        row(
            "stale timestamp with milliseconds, V1",
            v1(
                host,
                |call| set_query(call, "Timestamp", &late(16).replace('Z', ".973Z")),
                nothing,
            ),
            400,
            "InvalidTimeStamp.Expired",
        ),
    ]
}

/// Changes after the signature, and additions that it does not cover.
fn tampered(host: &str) -> Vec<Row> {
    let unsigned = |name: &'static str, value: &'static str| {
        v3(host, nothing, move |call| call.push(name, value))
    };
    let second_authorization = v3(host, nothing, |call| {
        let authorization = call.header("authorization").to_owned();
        call.push("authorization", &authorization);
    });
    vec![
        row(
            "tampered body",
            v3(host, form, |call| call.body[9] = b'y'),
            400,
            "SignatureDoesNotMatch",
        ),
        row(
            "tampered query",
            v3(host, nothing, |call| set_query(call, "FlowName", "y")),
            400,
            "SignatureDoesNotMatch",
        ),
        row(
            "tampered form, V1",
            v1(host, nothing, |call| *call.body.last_mut().unwrap() = b'y'),
            400,
            "SignatureDoesNotMatch",
        ),
        row(
            "another method",
            v3(host, nothing, |call| call.method = "GET".into()),
            400,
            "SignatureDoesNotMatch",
        ),
        row(
            "another Host",
            v3(host, nothing, |call| call.set("host", "elsewhere")),
            400,
            "SignatureDoesNotMatch",
        ),
        row(
            "unsigned x-acs header",
            unsigned("x-acs-source-ip", "1.2.3.4"),
            400,
            "IncompleteSignature",
        ),
        row(
            "two Authorization headers",
            second_authorization,
            400,
            "Flowgate.BadRequest",
        ),
    ]
}

/// Requests with two readings.
#[expect(clippy::too_many_lines, reason = "one table")]
fn ambiguous(host: &str) -> Vec<Row> {
    let doubled = |call: &mut Call| call.query.push(("flowname".into(), "y".into()));
    let query_and_form = |call: &mut Call| call.query.push(("FlowName".into(), "y".into()));
    let twice_in_json = |call: &mut Call| {
        call.query.clear();
        call.push("content-type", "application/json");
        call.body = b"{\"FlowName\":\"x\",\"Flow\\u004eame\":\"y\"}".to_vec();
    };
    let no_action = |call: &mut Call| call.headers.retain(|(name, _)| name != "x-acs-action");
    vec![
        row(
            "no Action",
            v3(host, no_action, nothing),
            400,
            "Flowgate.BadRequest",
        ),
        row(
            "no Action, V1",
            v1(
                host,
                |call| call.query.retain(|(name, _)| name != "Action"),
                nothing,
            ),
            400,
            "Flowgate.BadRequest",
        ),
        row(
            "Action in another case",
            v3(host, |call| call.set("x-acs-action", "createflow"), nothing),
            400,
            "Flowgate.BadRequest",
        ),
        row(
            "another version",
            v3(
                host,
                |call| call.set("x-acs-version", "2019-01-01"),
                nothing,
            ),
            400,
            "Flowgate.BadRequest",
        ),
        row(
            "doubled parameter",
            v3(host, doubled, nothing),
            400,
            "Flowgate.BadRequest",
        ),
        row(
            "query and form differ, V1",
            v1(host, query_and_form, nothing),
            400,
            "Flowgate.BadRequest",
        ),
        row(
            "a key twice in JSON",
            v3(host, twice_in_json, nothing),
            400,
            "Flowgate.BadRequest",
        ),
        row(
            "V3 with a V1 Action",
            v3(
                host,
                |call| call.query.push(("Action".into(), "ListFlow".into())),
                nothing,
            ),
            400,
            "Flowgate.BadRequest",
        ),
        row(
            "V3 with another x-acs-action",
            v3(host, nothing, |call| call.push("x-acs-action", "ListFlow")),
            400,
            "Flowgate.BadRequest",
        ),
        row(
            "a parameter of V1 in query and form",
            v1_in_form(host, |call| {
                call.query.push(("Action".into(), "ListFlow".into()));
            }),
            400,
            "Flowgate.BadRequest",
        ),
        row(
            "the signature in query and form, V1",
            v1_in_form(host, |call| {
                call.query.push(("Signature".into(), "x".into()));
            }),
            400,
            "Flowgate.BadRequest",
        ),
        row(
            "bad percent",
            v3(host, nothing, |call| call.path = "/?a=%zz&".into()),
            400,
            "Flowgate.BadRequest",
        ),
        row(
            "another path",
            v3(host, nothing, |call| call.path = "/prefix/".into()),
            400,
            "Flowgate.BadRequest",
        ),
        row(
            "another method",
            v3(host, |call| call.method = "PUT".into(), nothing),
            400,
            "Flowgate.BadRequest",
        ),
        row(
            "a browser",
            v3(host, nothing, |call| {
                call.push("origin", "https://evil.example")
            }),
            400,
            "Flowgate.BadRequest",
        ),
    ]
}

/// What version 1 does not sign.
fn unsigned_bodies(host: &str) -> Vec<Row> {
    let json = |call: &mut Call| {
        call.set("content-type", "application/json");
        call.body = b"{\"FlowName\":\"x\"}".to_vec();
    };
    let v1_json = Call::v1_with(
        host,
        &[],
        |call| {
            call.push("content-type", "application/json");
            call.body = b"{\"FlowName\":\"x\"}".to_vec();
        },
        (KEY, SECRET),
    );
    vec![
        row(
            "a form that calls itself JSON, V1",
            v1(host, json, nothing),
            400,
            "Flowgate.BadRequest",
        ),
        row("JSON body, V1", v1_json.bytes(), 400, "Flowgate.BadRequest"),
        row(
            "all in a multipart form, V1",
            v1_in_form(host, |call| {
                call.set("content-type", "multipart/form-data; boundary=x");
            }),
            400,
            "IncompleteSignature",
        ),
        row(
            "all in a form of GET, V1",
            v1_in_form(host, |call| call.method = "GET".into()),
            400,
            "IncompleteSignature",
        ),
        row(
            "a form over the limit, V1",
            v1_in_form(host, |call| call.body.extend([b'x'; 2048])),
            413,
            "Flowgate.RequestTooLarge",
        ),
    ]
}

/// Framing: hosts, target forms, lengths.
fn framing(host: &str) -> Vec<Row> {
    let absolute = |authority: &str| {
        let mut call = Call::v3(authority, "x");
        call.path = format!("http://{authority}/");
        call.bytes()
    };
    let no_host = v3(host, nothing, |call| {
        call.headers.retain(|(name, _)| name != "host")
    });
    let two_hosts = v3(host, nothing, |call| call.push("host", "other"));
    let gzip = v3(host, form, |call| {
        call.push("transfer-encoding", "gzip, chunked");
        call.body = b"0\r\n\r\n".to_vec();
    });
    let chunking = |chunks: &'static [u8]| {
        v3(host, form, move |call| {
            call.push("transfer-encoding", "chunked");
            call.body = chunks.to_vec();
        })
    };
    let large = |call: &mut Call| {
        form(call);
        call.body = [b"FlowName=".as_slice(), &[b'x'; 3000]].concat();
    };
    let connect = "CONNECT cams.ap-southeast-1.aliyuncs.com:443 HTTP/1.0\r\n\r\n";
    vec![
        row("CONNECT", connect, 405, "Flowgate.NotAProxy"),
        row(
            "a foreign host in absolute form",
            absolute("example.com"),
            403,
            "Flowgate.NotAProxy",
        ),
        row("no Host", no_host, 400, "Flowgate.BadRequest"),
        row("two Hosts", two_hosts, 400, "Flowgate.BadRequest"),
        row("gzip, chunked", gzip, 400, "Flowgate.BadRequest"),
        row(
            "broken chunking",
            chunking(b"5\r\nFlow\r\nzz\r\n"),
            400,
            "Flowgate.BadRequest",
        ),
        row(
            "body over the limit",
            v3(host, large, nothing),
            413,
            "Flowgate.RequestTooLarge",
        ),
    ]
}

#[tokio::test]
async fn every_bad_request_gets_its_code_and_none_reaches_cams() {
    let harness = Harness::new("[listen]\nmax_body = \"2KiB\"").await;
    let host = harness.host();
    for row in [
        identity(&host),
        stamps(&host),
        tampered(&host),
        ambiguous(&host),
        unsigned_bodies(&host),
        framing(&host),
    ]
    .into_iter()
    .flatten()
    {
        let before = harness.metrics().await;
        let reply = caller::exchange(harness.proxy, &row.bytes)
            .await
            .unwrap_or_else(|| panic!("{}: no answer", row.name));
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (row.status, row.code),
            "{}: {reply:?}",
            row.name
        );
        assert_eq!(
            reply.header("x-flowgate-error"),
            Some(row.code),
            "{}",
            row.name
        );
        assert_eq!(reply.header("x-acs-retry-after"), None, "{}", row.name);
        let body = reply.json();
        for field in ["RequestId", "HostId", "Code", "Message", "Recommend"] {
            assert!(body[field].is_string(), "{}: {field} in {body}", row.name);
        }
        assert!(
            row.code != "SignatureDoesNotMatch" || body["Message"].as_str().unwrap().contains(':')
        );
        let after = harness.metrics().await;
        let counted = |outcome: &str| {
            let of = |account: &str| {
                after.outcome(account, "other", outcome) - before.outcome(account, "other", outcome)
            };
            of("acme") + of("unknown")
        };
        assert_eq!(counted("invalid"), 1.0, "{}", row.name);
        let all = after.sum("flowgate_requests_total") - before.sum("flowgate_requests_total");
        assert_eq!(all, 1.0, "{}", row.name);
    }
    assert_eq!(harness.sim.report().arrived, 0);
    assert_eq!(
        harness.sim.report().connections,
        0,
        "CAMS is not even dialled"
    );
}

#[tokio::test]
async fn a_nonce_is_good_for_one_call() {
    let harness = Harness::new("").await;
    for call in [
        Call::v3(&harness.host(), "x"),
        Call::v1(&harness.host(), "y"),
    ] {
        assert_eq!(call.send(harness.proxy).await.status, 200);
        let reply = call.send(harness.proxy).await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (400, "SignatureNonceUsed")
        );
    }
    let metrics = harness.metrics().await;
    assert_eq!(
        metrics.get("flowgate_signature_checks_total{result=\"ok\"}"),
        2.0
    );
    assert_eq!(
        metrics.get("flowgate_signature_checks_total{result=\"nonce\"}"),
        2.0
    );
    assert_eq!(harness.sim.report().arrived, 2);
}

#[tokio::test]
async fn a_failed_check_spends_no_nonce() {
    let harness = Harness::new("").await;
    let call = Call::v3(&harness.host(), "x");
    let mut tampered = call.clone();
    set_query(&mut tampered, "FlowName", "y");
    assert_eq!(
        tampered.send(harness.proxy).await.code(),
        "SignatureDoesNotMatch"
    );
    assert_eq!(call.send(harness.proxy).await.status, 200);
}

#[tokio::test]
async fn an_error_is_xml_if_the_request_asks_for_it() {
    let harness = Harness::new("").await;
    let xml = |call: &mut Call| set_query(call, "Format", "XML");
    let reply = Call::v1_with(&harness.host(), &FLOW, xml, (KEY, "guessed"))
        .send(harness.proxy)
        .await;
    assert_eq!(
        (reply.status, reply.header("content-type")),
        (400, Some("text/xml;charset=utf-8"))
    );
    assert!(
        reply.body.contains("<Code>SignatureDoesNotMatch</Code>"),
        "{}",
        reply.body
    );
}

/// Sends bytes that cannot be read as a request, and reads until the connection closes.
async fn unreadable(harness: &Harness, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(harness.proxy).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one table")]
async fn a_head_that_cannot_be_read_gets_an_answer_that_says_why() {
    let harness = Harness::new("").await;
    let head = |more: &str| format!("POST /?Format=JSON HTTP/1.1\r\nHost: cams.test\r\n{more}\r\n");
    let large = head(&format!("x: {}\r\n", "x".repeat(300_000)));
    let target = format!("GET /?{} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(65_540));
    let many = head(&"x: y\r\n".repeat(100));
    let rows: [(&str, &[u8], u16, &str, &str); 9] = [
        (
            "a large head",
            large.as_bytes(),
            413,
            "81920 bytes",
            "large_head",
        ),
        (
            "a long target",
            target.as_bytes(),
            413,
            "65534 bytes",
            "large_head",
        ),
        (
            "many headers",
            many.as_bytes(),
            413,
            "100 headers",
            "large_head",
        ),
        ("TLS", b"\x16\x03\x01\x02\x00\x01", 400, "TLS", "not_http"),
        (
            "HTTP/2",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            400,
            "HTTP/2",
            "not_http",
        ),
        (
            "HTTP/2, in part",
            b"PRI * HTTP/2.0\r\n\r\n",
            400,
            "HTTP/2",
            "not_http",
        ),
        (
            "SSH",
            b"SSH-2.0-OpenSSH_9.6\r\n",
            400,
            "not HTTP.",
            "not_http",
        ),
        (
            "a blank in a name",
            b"POST / HTTP/1.1\r\nHost : x\r\n\r\n",
            400,
            "not valid HTTP/1.1",
            "not_http",
        ),
        (
            "an odd length",
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1x\r\n\r\n",
            400,
            "not valid HTTP/1.1",
            "not_http",
        ),
    ];
    for (name, bytes, status, says, kind) in rows {
        let before = harness.metrics().await;
        let answer = unreadable(&harness, bytes).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} ")),
            "{name}: {answer:?}"
        );
        let body: serde_json::Value =
            serde_json::from_str(body).unwrap_or_else(|_| panic!("{name}: {answer:?}"));
        let (code, reason) = if status == 413 {
            ("Flowgate.RequestTooLarge", "too_large")
        } else {
            ("Flowgate.BadRequest", "bad_request")
        };
        assert_eq!(body["Code"], code, "{name}");
        assert!(
            body["Message"].as_str().unwrap().contains(says),
            "{name}: {body}"
        );
        for header in [
            format!("x-flowgate-error: {code}"),
            "connection: close".into(),
        ] {
            assert!(head.contains(&header), "{name}: {head}");
        }
        let after = harness.metrics().await;
        for series in [
            format!("flowgate_connection_errors_total{{kind=\"{kind}\"}}"),
            format!("flowgate_refused_total{{account=\"unknown\",reason=\"{reason}\"}}"),
            "flowgate_requests_total{account=\"unknown\",action=\"other\",outcome=\"invalid\"}"
                .into(),
        ] {
            assert_eq!(
                after.get(&series) - before.get(&series),
                1.0,
                "{name}: {series}"
            );
        }
    }
    let with_host = unreadable(&harness, large.as_bytes()).await;
    assert!(
        with_host.contains("\"HostId\":\"cams.test\""),
        "{with_host}"
    );
    assert_eq!(harness.sim.report().connections, 0);
}

/// hyper buffers a whole head, so many of them at once would take much memory. The bound is a
/// constant, so the test needs as many connections.
#[tokio::test]
async fn the_memory_for_large_heads_is_bounded() {
    let harness = Harness::new("").await;
    let mut part = b"POST / HTTP/1.1\r\nhost: x\r\nx: ".to_vec();
    part.resize(20 << 10, b'x');
    let mut streams = Vec::new();
    for _ in 0..1100 {
        let mut stream = TcpStream::connect(harness.proxy).await.unwrap();
        stream.write_all(&part).await.unwrap();
        streams.push(stream);
    }
    let kind = "flowgate_connection_errors_total{kind=\"large_head\"}";
    harness.until(kind, 76.0).await;
    let reply = caller::read_reply(streams.last_mut().unwrap())
        .await
        .unwrap();
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (400, "System.LimitControl")
    );
    assert_eq!(reply.header("x-acs-retry-after"), Some("1000"));
    assert_eq!(harness.metrics().await.get(kind), 76.0);
    // Small heads are served meanwhile.
    assert_eq!(
        Call::v3(&harness.host(), "x")
            .send(harness.proxy)
            .await
            .status,
        200
    );
    // Large ones again as soon as those have gone.
    drop(streams);
    let long = Call::v3(&harness.host(), &"x".repeat(30_000));
    loop {
        let reply = long.send(harness.proxy).await;
        if reply.code() != "System.LimitControl" {
            break assert_eq!(reply.header("x-flowgate-error"), None, "{reply:?}");
        }
    }
}

#[tokio::test]
async fn a_bad_head_on_a_used_connection_is_answered_too() {
    let harness = Harness::new("").await;
    let mut stream = TcpStream::connect(harness.proxy).await.unwrap();
    stream
        .write_all(&Call::v3(&harness.host(), "x").bytes())
        .await
        .unwrap();
    assert_eq!(caller::read_reply(&mut stream).await.unwrap().status, 200);
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(101));
    stream.write_all(many.as_bytes()).await.unwrap();
    let reply = caller::read_reply(&mut stream).await.unwrap();
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (413, "Flowgate.RequestTooLarge")
    );
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_list_of_recipients_may_fill_an_http_target() {
    let harness = Harness::new("").await;
    let host = harness.host();
    let sender = |at: usize| {
        format!(
            "{{\"To\":\"8613800{at:06}\",\"TemplateParams\":{{\"name\":\"Customer {at:03}\"}}}}"
        )
    };
    for (count, status) in [(250, 200), (400, 200), (700, 413)] {
        let list: Vec<_> = (0..count).map(sender).collect();
        let list = format!("[{}]", list.join(","));
        let params = [("SenderList", list.as_str()), ("ChannelType", "whatsapp")];
        let call = Call::v3_with(
            &host,
            &params,
            |call| call.set("x-acs-action", "SendChatappMassMessage"),
            (KEY, SECRET),
        );
        let length = call.target().len();
        assert_eq!(length > 65_534, status == 413, "{length}");
        let reply = call.send(harness.proxy).await;
        assert_eq!(reply.status, status, "{count}: {length} bytes, {reply:?}");
    }
    assert_eq!(harness.sim.report().arrived, 2);
}

#[tokio::test]
async fn waiting_calls_with_large_heads_take_no_permit_from_others() {
    // Memory for 80 large heads that are being received.
    let limits = "[limits]\nCreateFlow = \"1/60s\"\n";
    let listen = "[listen]\nmax_header = \"1MiB\"\n";
    let queue = "[queue]\nhold = \"3h\"\nmax_hold = \"3h\"\n";
    let harness = Harness::new(&format!("{limits}{listen}{queue}")).await;
    let host = harness.host();
    let text = "x".repeat(50 << 10);
    let waiting: Vec<_> = (0..100)
        .map(|index| {
            let name = format!("waiting {index}");
            let params = [("FlowName", name.as_str()), ("Remark", text.as_str())];
            let call = Call::v3_with(&host, &params, nothing, (KEY, SECRET));
            let proxy = harness.proxy;
            tokio::spawn(async move { call.send(proxy).await })
        })
        .collect();
    harness
        .until(
            "flowgate_queued{account=\"acme\",action=\"CreateFlow\"}",
            100.0,
        )
        .await;
    let metrics = harness.metrics().await;
    assert!(metrics.get("flowgate_queued_bytes") >= f64::from(100 * (50 << 10)));
    let list = |call: &mut Call| call.set("x-acs-action", "ListProduct");
    let params = [("Remark", text.as_str())];
    let reply = Call::v3_with(&host, &params, list, (KEY, SECRET))
        .send(harness.proxy)
        .await;
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(
        reply.header("connection"),
        Some("close"),
        "hyper would keep the memory of the head"
    );
    for call in waiting {
        call.abort();
    }
}

#[tokio::test]
async fn an_incomplete_request_times_out() {
    let harness =
        Harness::new("[listen]\nheader_timeout = \"300ms\"\nbody_timeout = \"300ms\"").await;
    let whole = v1(&harness.host(), nothing, nothing);
    let half_head = &whole[..40];
    let mut stream = TcpStream::connect(harness.proxy).await.unwrap();
    stream.write_all(half_head).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"", "the connection is closed");
    harness
        .until(
            "flowgate_requests_total{account=\"unknown\",action=\"other\",outcome=\"invalid\"}",
            1.0,
        )
        .await;
    assert_eq!(
        harness
            .metrics()
            .await
            .get("flowgate_connection_errors_total{kind=\"slow_head\"}"),
        1.0
    );

    let half_body = &whole[..whole.len() - 5];
    let reply = caller::exchange(harness.proxy, half_body).await.unwrap();
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (400, "Flowgate.BadRequest")
    );
    assert_eq!(reply.header("connection"), Some("close"));
    assert_eq!(
        harness.metrics().await.outcome("acme", "other", "invalid"),
        1.0
    );
}

#[tokio::test]
async fn an_idle_connection_outlives_the_header_timeout() {
    let harness = Harness::new("[listen]\nheader_timeout = \"300ms\"").await;
    let mut stream = TcpStream::connect(harness.proxy).await.unwrap();
    for name in ["one", "two"] {
        tokio::time::sleep(Duration::from_millis(700)).await;
        stream
            .write_all(&Call::v3(&harness.host(), name).bytes())
            .await
            .unwrap();
        assert_eq!(caller::read_reply(&mut stream).await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_the_idle_timeout() {
    let harness = Harness::new("[listen]\nidle_timeout = \"2s\"").await;
    let mut stream = TcpStream::connect(harness.proxy).await.unwrap();
    stream
        .write_all(&Call::v3(&harness.host(), "x").bytes())
        .await
        .unwrap();
    assert_eq!(caller::read_reply(&mut stream).await.unwrap().status, 200);
    assert_eq!(
        stream.read(&mut [0]).await.unwrap(),
        0,
        "closed without a word"
    );
    assert_eq!(
        harness
            .metrics()
            .await
            .outcome("unknown", "other", "invalid"),
        0.0,
        "idleness is no bad request"
    );
}

#[tokio::test]
async fn a_caller_that_does_not_read_its_response_is_closed() {
    let settings = cams_sim::Settings::default();
    let harness = Harness::with(
        settings,
        "max_response = \"32MiB\"\n[listen]\nbody_timeout = \"300ms\"",
    )
    .await;
    harness
        .sim
        .set_faults(vec!["next=1,huge=20000000".parse().unwrap()]);
    let mut stream = TcpStream::connect(harness.proxy).await.unwrap();
    stream
        .write_all(&Call::v3(&harness.host(), "x").bytes())
        .await
        .unwrap();
    harness
        .until(
            "flowgate_connection_errors_total{kind=\"slow_reader\"}",
            1.0,
        )
        .await;
    assert_eq!(
        harness.metrics().await.get("flowgate_connections"),
        1.0,
        "only the one that asks"
    );
    drop(stream);
}

#[tokio::test]
async fn a_caller_that_reads_its_response_too_slowly_is_closed() {
    let settings = cams_sim::Settings::default();
    let harness = Harness::with(
        settings,
        "max_response = \"32MiB\"\n[listen]\nbody_timeout = \"500ms\"",
    )
    .await;
    harness
        .sim
        .set_faults(vec!["next=1,huge=20000000".parse().unwrap()]);
    let mut stream = TcpStream::connect(harness.proxy).await.unwrap();
    stream
        .write_all(&Call::v3(&harness.host(), "x").bytes())
        .await
        .unwrap();
    let reading = tokio::spawn(async move {
        // At this pace the whole response would take an hour.
        let mut drop_of_it = [0; 100];
        while stream
            .read(&mut drop_of_it)
            .await
            .is_ok_and(|read| read > 0)
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    harness
        .until(
            "flowgate_connection_errors_total{kind=\"slow_reader\"}",
            1.0,
        )
        .await;
    reading.abort();
}

#[tokio::test]
async fn connections_are_limited_in_total_and_by_source() {
    let harness = Harness::new("[listen]\nmax_connections_per_source = 3").await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(TcpStream::connect(harness.proxy).await.unwrap());
    }
    harness.until("flowgate_connections", 4.0).await;
    let call = Call::v3(&harness.host(), "one too many");
    let reply = call.send(harness.proxy).await;
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (503, "Flowgate.TooManyConnections")
    );
    assert_eq!(reply.header("connection"), Some("close"));
    assert_eq!(reply.header("x-acs-retry-after"), Some("1000"));
    assert_eq!(
        harness
            .metrics()
            .await
            .outcome("unknown", "other", "refused"),
        1.0
    );
    assert_eq!(harness.sim.report().arrived, 0);
    let mut silent = TcpStream::connect(harness.proxy).await.unwrap();
    assert_eq!(silent.read(&mut [0]).await.unwrap(), 0, "closed soon");
    harness
        .until(
            "flowgate_connection_errors_total{kind=\"too_many_from_source\"}",
            1.0,
        )
        .await;
    streams.pop();
    harness
        .until(
            "flowgate_connection_errors_total{kind=\"too_many_from_source\"}",
            1.0,
        )
        .await;
    // The connection's slot is free as soon as the proxy has noticed the close.
    loop {
        let reply = Call::v3(&harness.host(), "x").send(harness.proxy).await;
        if reply.status != 503 {
            break assert_eq!(reply.status, 200);
        }
    }
}
