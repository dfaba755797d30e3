//! Callers other than the captured SDKs: every spelling of a request that its signature covers is
//! the same call, and errors come in the format that the caller expects.

use std::time::SystemTime;

use cams_sim::{Key, Settings, Sim};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::caller::{self, Call, KEY, SECRET};
use crate::harness::{Harness, Metrics};

const REAL: &str = "cams.ap-southeast-1.aliyuncs.com";
const FLOW: [(&str, &str); 2] = [("Categories", "[\"SIGN_UP\"]"), ("FlowName", "x y")];
const MANAGED: (&str, &str) = (KEY, SECRET);
const RELAYED: (&str, &str) = ("LTAI-relayed", "relayed-secret");

/// One account with a secret, and one without.
async fn gateway() -> Harness {
    let keys = vec![
        format!("{KEY}:{SECRET}:acme").parse::<Key>().unwrap(),
        format!("{}:{}:other", RELAYED.0, RELAYED.1)
            .parse::<Key>()
            .unwrap(),
    ];
    let sim = Sim::start(Settings {
        keys,
        ..Settings::default()
    })
    .await
    .unwrap();
    let upstream = sim.url();
    let toml = format!(
        "[[accounts]]\nid = \"acme\"\naccess_key_id = \"{KEY}\"\naccess_key_secret = {{ env = \"MANAGED\" }}\n\
         [[accounts]]\nid = \"other\"\naliases = [\"{}\"]\n\
         [upstream]\nurl = \"{upstream}\"\nhost = \"{REAL}\"",
        RELAYED.0
    );
    Harness::configured(sim, &toml).await
}

fn set_query(call: &mut Call, name: &str, value: &str) {
    call.query
        .iter_mut()
        .find(|(known, _)| known == name)
        .unwrap()
        .1 = value.into();
}

fn without_format(call: &mut Call) {
    call.query.retain(|(name, _)| name != "Format");
}

fn stamp(suffix: &str) -> String {
    caller::timestamp(SystemTime::now()).replace('Z', suffix)
}

#[tokio::test]
async fn a_version_1_call_with_all_parameters_in_its_form_is_served() {
    let harness = gateway().await;
    for key in [MANAGED, RELAYED] {
        let call = Call::v1_with(&harness.host(), &FLOW, |_| (), key).in_form();
        assert_eq!(call.path, call.target(), "the query is empty");
        let reply = call.send(harness.proxy).await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (200, "OK"),
            "{key:?}"
        );
        let arrivals = harness.sim.arrivals();
        let arrival = arrivals.last().unwrap();
        assert_eq!(arrival.flow_name.as_deref(), Some("x y"));
        if key == RELAYED {
            assert_eq!(
                (&arrival.target, &arrival.body[..]),
                (&call.target(), &call.body[..])
            );
        }
    }
    let metrics = harness.metrics().await;
    for account in ["acme", "other"] {
        assert_eq!(
            metrics.outcome(account, "CreateFlow", "ok"),
            1.0,
            "{account}"
        );
    }
}

#[tokio::test]
async fn an_unsigned_acs_header_of_version_1_is_ignored_and_not_forwarded() {
    let harness = gateway().await;
    for key in [MANAGED, RELAYED] {
        let popcore = |call: &mut Call| {
            call.method = "GET".into();
            call.push("x-acs-action", "createFlow");
            call.push("x-acs-version", "2020-06-06");
        };
        let mut call = Call::v1_with(&harness.host(), &[], popcore, key);
        assert!(call.body.is_empty());
        let reply = call.send(harness.proxy).await;
        assert_eq!(reply.code(), "MissingFlowName", "it arrived at CAMS");
        let arrivals = harness.sim.arrivals();
        let sent = &arrivals.last().unwrap().headers;
        assert!(!format!("{sent:?}").contains("createFlow"), "{sent:?}");
        call = Call::v1_with(
            &harness.host(),
            &FLOW,
            |call| call.push("x-acs-action", "createFlow"),
            key,
        );
        assert_eq!(call.send(harness.proxy).await.status, 200);
    }
}

#[tokio::test]
async fn hosts_are_compared_by_name_and_port() {
    let harness = gateway().await;
    for (signed, target) in [
        (format!("{REAL}:8080"), None),
        (format!("{REAL}:80"), None),
        (
            format!("CAMS.ap-southeast-1.aliyuncs.com.:{}", harness.proxy.port()),
            None,
        ),
        (REAL.to_owned(), Some(format!("http://{REAL}:80/"))),
        (format!("{REAL}:80"), Some(format!("http://{REAL}/"))),
        (format!("{REAL}:8080"), Some(format!("http://{REAL}:8080/"))),
    ] {
        for key in [MANAGED, RELAYED] {
            let mut call = Call::v3_with(&signed, &FLOW, |_| (), key);
            call.path = target.clone().unwrap_or(call.path);
            let reply = call.send(harness.proxy).await;
            assert_eq!(reply.status, 200, "{signed} {target:?} {key:?}: {reply:?}");
        }
    }
    for target in ["http://u@cams.ap-southeast-1.aliyuncs.com/", "http://[::1/"] {
        let mut call = Call::v3_with(REAL, &FLOW, |_| (), MANAGED);
        call.path = target.to_owned();
        assert_eq!(call.send(harness.proxy).await.status, 400, "{target}");
    }
}

#[tokio::test]
async fn a_time_stamp_with_a_fraction_is_taken_and_an_odd_one_is_named() {
    let harness = gateway().await;
    let v1 = |stamp: &str| {
        let change = |call: &mut Call| set_query(call, "Timestamp", stamp);
        Call::v1_with(&harness.host(), &FLOW, change, MANAGED)
    };
    let v3 = |stamp: &str| {
        let change = |call: &mut Call| call.set("x-acs-date", stamp);
        Call::v3_with(&harness.host(), &FLOW, change, MANAGED)
    };
    for suffix in [".973Z", ".9Z", ".973123456Z"] {
        let stamp = stamp(suffix);
        for call in [v1(&stamp), v1(&stamp).in_form(), v3(&stamp)] {
            assert_eq!(call.send(harness.proxy).await.status, 200, "{stamp}");
        }
    }
    for stamp in [stamp("+00:00"), stamp(""), "yesterday".to_owned()] {
        for call in [v1(&stamp), v1(&stamp).in_form(), v3(&stamp)] {
            let reply = call.send(harness.proxy).await;
            assert_eq!(
                (reply.status, reply.code().as_str()),
                (400, "InvalidTimeStamp.Format"),
                "{stamp}"
            );
        }
    }
    let checks = "flowgate_signature_checks_total{result=\"timestamp_format\"}";
    assert_eq!(harness.metrics().await.get(checks), 9.0);
}

#[tokio::test]
async fn version_1_without_format_gets_xml_from_flowgate_and_from_cams() {
    let harness = gateway().await;
    let wrong = (KEY, "guessed");
    for in_form in [false, true] {
        let place = |call: Call| if in_form { call.in_form() } else { call };
        let refused = place(Call::v1_with(&harness.host(), &FLOW, without_format, wrong));
        let reply = refused.send(harness.proxy).await;
        assert_eq!(
            (reply.status, reply.header("content-type")),
            (400, Some("text/xml;charset=utf-8"))
        );
        assert!(
            reply.body.contains("<Error><RequestId>")
                && reply.body.contains("<Code>SignatureDoesNotMatch</Code>"),
            "{}",
            reply.body
        );
        // CAMS throttles in XML as well, and is understood.
        harness
            .sim
            .set_faults(vec!["next=1,throttle".parse().unwrap()]);
        let call = place(Call::v1_with(
            &harness.host(),
            &FLOW,
            without_format,
            MANAGED,
        ));
        let reply = call.send(harness.proxy).await;
        assert_eq!(
            (reply.status, reply.header("x-flowgate-attempts")),
            (200, Some("2")),
            "{reply:?}"
        );
        assert_eq!(reply.header("content-type"), Some("text/xml;charset=utf-8"));
        assert!(
            reply.body.contains("<CreateFlowResponse>") && reply.body.contains("<Code>OK</Code>"),
            "{}",
            reply.body
        );
        // Format=JSON decides, wherever it is.
        let json = place(Call::v1_with(&harness.host(), &FLOW, |_| (), wrong));
        assert_eq!(
            json.send(harness.proxy).await.code(),
            "SignatureDoesNotMatch"
        );
    }
    let v3 = Call::v3_with(&harness.host(), &FLOW, |_| (), wrong);
    assert_eq!(v3.send(harness.proxy).await.code(), "SignatureDoesNotMatch");
    let probe = format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", harness.host());
    let probe = caller::exchange(harness.proxy, probe.as_bytes()).await;
    assert_eq!(probe.unwrap().code(), "IncompleteSignature");
}

#[tokio::test]
async fn forms_that_must_be_read_to_find_their_key_are_bounded_in_size_and_sum() {
    const BODY: usize = 63 * 1024;
    let harness = Harness::new("[listen]\nmax_body = \"64KiB\"\nmax_unverified = \"256KiB\"").await;
    let form = |size: usize| {
        let mut call = Call::v1(&harness.host(), "x").in_form();
        call.body.extend([b'x'; 128 * 1024]);
        call.body.truncate(size);
        call.bytes()
    };
    let large = caller::exchange(harness.proxy, &form(64 * 1024 + 1)).await;
    assert_eq!(large.unwrap().code(), "Flowgate.RequestTooLarge");
    let begun = &form(BODY + 1)[..form(BODY + 1).len() - 1];
    let mut streams = Vec::new();
    for _ in 0..4 {
        let mut stream = TcpStream::connect(harness.proxy).await.unwrap();
        stream.write_all(begun).await.unwrap();
        streams.push(stream);
    }
    harness
        .until("flowgate_unverified_bytes", 4.0 * BODY as f64)
        .await;
    let fifth = caller::exchange(harness.proxy, begun).await.unwrap();
    assert_eq!(fifth.code(), "System.LimitControl");
    assert!(fifth.header("x-acs-retry-after").is_some());
    drop(streams);
    let admin = harness.app.admin_address().unwrap();
    Metrics::until(admin, "flowgate_unverified_bytes", |bytes| bytes == 0.0).await;
    let call = Call::v1(&harness.host(), "with room").in_form();
    assert_eq!(call.send(harness.proxy).await.status, 200);
}
