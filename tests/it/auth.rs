//! Invalid calls with a client key, over raw sockets and in both signature versions: each gets its
//! exact response, and only verified requests reach CAMS. `bad_input.rs` does the same for an
//! account's own key.

use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::caller::{self, Call, KEY, SECRET};
use crate::harness::Harness;

const TEAM: (&str, &str) = ("team-a", "team-secret-1");
const OTHERS: (&str, &str) = ("team-b", "not-the-secret");
const DISABLED: (&str, &str) = ("team-d", "team-secret-1");
const OWN: (&str, &str) = ("CustSpaceId", "space-1");
const FLOW: [(&str, &str); 3] = [("Categories", "[\"SIGN_UP\"]"), ("FlowName", "x"), OWN];

/// A request, and the status and code of its response.
struct Row {
    name: String,
    bytes: Vec<u8>,
    status: u16,
    code: &'static str,
}

/// A change, and the expected response.
type Change = (&'static str, fn(&mut Call), u16, &'static str);

const MISMATCH: (u16, &str) = (400, "SignatureDoesNotMatch");
const INCOMPLETE: (u16, &str) = (400, "IncompleteSignature");
const BAD: (u16, &str) = (400, "Flowgate.BadRequest");
const HOST: (u16, &str) = (400, "Flowgate.SignedHostMismatch");
const FORBIDDEN: (u16, &str) = (403, "Flowgate.Forbidden");
const FOREIGN: (u16, &str) = (403, "Flowgate.NotAProxy");

/// A `[[clients]]` entry with these further lines.
fn client(id: &str, secret: &str, more: &str) -> String {
    format!(
        "[[clients]]\naccess_key_id = \"{id}\"\naccess_key_secret = {{ env = \"{secret}\" }}\naccount = \"acme\"\n{more}\n"
    )
}

async fn gateway(more: &str) -> Harness {
    let limited =
        "actions = [\"CreateFlow\", \"ListFlow\"]\ncust_space_ids = [\"space-1\", \"space-2\"]";
    let clients = [
        client(TEAM.0, "TEAM", limited),
        client(OTHERS.0, "WRONG", "actions = [\"*\"]"),
        client(DISABLED.0, "TEAM", "actions = [\"*\"]\ndisabled = true"),
    ];
    Harness::new(&[&clients.concat(), more].concat()).await
}

fn nothing(_: &mut Call) {}

/// Parameters in the query, one more signed header than required.
fn v3(host: &str, before: impl FnOnce(&mut Call)) -> Call {
    let change = |call: &mut Call| {
        call.push("x-custom", "1");
        before(call);
    };
    Call::v3_with(host, &FLOW, change, TEAM)
}

/// Parameters in the query and in a form.
fn v3_form(host: &str) -> Call {
    let form = |call: &mut Call| {
        call.push("content-type", "application/x-www-form-urlencoded");
        call.body = b"Remark=a".to_vec();
    };
    v3(host, form)
}

fn v1(host: &str, before: impl FnOnce(&mut Call)) -> Call {
    Call::v1_with(host, &FLOW, before, TEAM)
}

fn set_query(call: &mut Call, name: &str, value: &str) {
    call.query
        .iter_mut()
        .find(|(known, _)| known == name)
        .unwrap()
        .1 = value.into();
}

fn in_authorization(call: &mut Call, from: &str, to: &str) {
    let value = call.header("authorization");
    assert!(value.contains(from), "{value}");
    let value = value.replacen(from, to, 1);
    call.set("authorization", &value);
}

fn half_signed(call: &mut Call) {
    let mut half = call.header("authorization").to_owned();
    half.truncate(half.len() - 32);
    call.set("authorization", &half);
}

fn same_host_again(call: &mut Call) {
    let host = call.header("host").to_owned();
    call.push("host", &host);
}

fn late(minutes: i64) -> String {
    let off = Duration::from_secs(60 * minutes.unsigned_abs());
    caller::timestamp(if minutes > 0 {
        SystemTime::now() - off
    } else {
        SystemTime::now() + off
    })
}

/// Each signed part of a version 3 call, changed after signing.
const CHANGED_V3: [Change; 22] = [
    (
        "action",
        |call| call.set("x-acs-action", "ListFlow"),
        MISMATCH.0,
        MISMATCH.1,
    ),
    (
        "version",
        |call| call.set("x-acs-version", "2020-06-07"),
        BAD.0,
        BAD.1,
    ),
    (
        "date",
        |call| call.set("x-acs-date", &late(1)),
        MISMATCH.0,
        MISMATCH.1,
    ),
    (
        "nonce",
        |call| call.set("x-acs-signature-nonce", "another"),
        MISMATCH.0,
        MISMATCH.1,
    ),
    (
        "body hash",
        |call| call.set("x-acs-content-sha256", &"0".repeat(64)),
        MISMATCH.0,
        MISMATCH.1,
    ),
    (
        "body hash in capitals",
        |call| call.set("x-acs-content-sha256", &"A".repeat(64)),
        BAD.0,
        BAD.1,
    ),
    (
        "content type",
        |call| call.set("content-type", "application/json"),
        MISMATCH.0,
        MISMATCH.1,
    ),
    (
        "any signed header",
        |call| call.set("x-custom", "2"),
        MISMATCH.0,
        MISMATCH.1,
    ),
    (
        "no such header",
        |call| call.headers.retain(|(name, _)| name != "x-custom"),
        BAD.0,
        BAD.1,
    ),
    (
        "another of our hosts",
        |call| {
            call.set(
                "host",
                &call.header("host").replace("127.0.0.1", "localhost"),
            )
        },
        MISMATCH.0,
        MISMATCH.1,
    ),
    (
        "a parameter's value",
        |call| set_query(call, "CustSpaceId", "space-2"),
        MISMATCH.0,
        MISMATCH.1,
    ),
    (
        "a parameter's name",
        |call| call.query[0].0 = "Category".into(),
        MISMATCH.0,
        MISMATCH.1,
    ),
    (
        "a parameter more",
        |call| call.query.push(("More".into(), String::new())),
        MISMATCH.0,
        MISMATCH.1,
    ),
    (
        "a parameter less",
        |call| drop(call.query.pop()),
        MISMATCH.0,
        MISMATCH.1,
    ),
    (
        "the form",
        |call| call.body = b"Remark=b".to_vec(),
        MISMATCH.0,
        MISMATCH.1,
    ),
    ("no form", |call| call.body.clear(), MISMATCH.0, MISMATCH.1),
    (
        "the account's own key",
        |call| in_authorization(call, TEAM.0, KEY),
        MISMATCH.0,
        MISMATCH.1,
    ),
    (
        "another client's key",
        |call| in_authorization(call, TEAM.0, OTHERS.0),
        MISMATCH.0,
        MISMATCH.1,
    ),
    (
        "one header signed less",
        |call| in_authorization(call, "accept;", ""),
        MISMATCH.0,
        MISMATCH.1,
    ),
    (
        "the action not signed",
        |call| in_authorization(call, "x-acs-action;", ""),
        INCOMPLETE.0,
        INCOMPLETE.1,
    ),
    ("half a signature", half_signed, INCOMPLETE.0, INCOMPLETE.1),
    (
        "another scheme",
        |call| in_authorization(call, "ACS3-HMAC-SHA256", "ACS3-HMAC-SHA1"),
        INCOMPLETE.0,
        INCOMPLETE.1,
    ),
];

/// The same for version 1.
const CHANGED_V1: [Change; 14] = [
    (
        "Action",
        |call| set_query(call, "Action", "ListFlow"),
        MISMATCH.0,
        MISMATCH.1,
    ),
    (
        "Version",
        |call| set_query(call, "Version", "2020-06-07"),
        BAD.0,
        BAD.1,
    ),
    (
        "Format",
        |call| set_query(call, "Format", "json"),
        MISMATCH.0,
        MISMATCH.1,
    ),
    (
        "Timestamp",
        |call| set_query(call, "Timestamp", &late(1)),
        MISMATCH.0,
        MISMATCH.1,
    ),
    (
        "SignatureNonce",
        |call| set_query(call, "SignatureNonce", "another"),
        MISMATCH.0,
        MISMATCH.1,
    ),
    (
        "the account's own key",
        |call| set_query(call, "AccessKeyId", KEY),
        MISMATCH.0,
        MISMATCH.1,
    ),
    (
        "another client's key",
        |call| set_query(call, "AccessKeyId", OTHERS.0),
        MISMATCH.0,
        MISMATCH.1,
    ),
    (
        "SignatureMethod",
        |call| set_query(call, "SignatureMethod", "HMAC-SHA256"),
        INCOMPLETE.0,
        INCOMPLETE.1,
    ),
    (
        "SignatureVersion",
        |call| set_query(call, "SignatureVersion", "2.0"),
        INCOMPLETE.0,
        INCOMPLETE.1,
    ),
    (
        "Signature",
        |call| set_query(call, "Signature", "AAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        MISMATCH.0,
        MISMATCH.1,
    ),
    (
        "no Signature",
        |call| drop(call.query.pop()),
        INCOMPLETE.0,
        INCOMPLETE.1,
    ),
    (
        "a parameter more",
        |call| call.query.push(("More".into(), String::new())),
        MISMATCH.0,
        MISMATCH.1,
    ),
    (
        "the form",
        |call| call.body = [&call.body, b"x".as_slice()].concat(),
        MISMATCH.0,
        MISMATCH.1,
    ),
    ("no form", |call| call.body.clear(), MISMATCH.0, MISMATCH.1),
];

/// Additions that the signature does not cover, for both versions.
const BESIDE: [Change; 14] = [
    (
        "a parameter again",
        |call| call.query.push(("FlowName".into(), "x".into())),
        BAD.0,
        BAD.1,
    ),
    (
        "a parameter in another case",
        |call| call.query.push(("custspaceid".into(), "victim".into())),
        BAD.0,
        BAD.1,
    ),
    (
        "a parameter spelt by escapes",
        |call| call.path = "/?CustSpac%65Id=victim&".into(),
        BAD.0,
        BAD.1,
    ),
    (
        "a parameter like a header",
        |call| call.query.push(("x-acs-action".into(), "ListFlow".into())),
        BAD.0,
        BAD.1,
    ),
    (
        "a parameter without a value",
        |call| call.path = "/?CustSpaceId&".into(),
        BAD.0,
        BAD.1,
    ),
    (
        "a parameter with a NUL",
        |call| call.path = "/?More=%00&".into(),
        BAD.0,
        BAD.1,
    ),
    ("a second Host", same_host_again, BAD.0, BAD.1),
    (
        "two content types",
        |call| {
            ["text/plain", "text/html"]
                .map(|kind| call.push("content-type", kind))
                .into_iter()
                .collect()
        },
        BAD.0,
        BAD.1,
    ),
    (
        "a coding of the body",
        |call| call.push("content-encoding", "gzip"),
        BAD.0,
        BAD.1,
    ),
    (
        "two holds",
        |call| {
            ["1s", "2s"]
                .map(|hold| call.push("x-flowgate-hold", hold))
                .into_iter()
                .collect()
        },
        BAD.0,
        BAD.1,
    ),
    ("a cookie", |call| call.push("cookie", "a=b"), BAD.0, BAD.1),
    (
        "a page's request",
        |call| call.push("sec-fetch-site", "none"),
        BAD.0,
        BAD.1,
    ),
    (
        "another path",
        |call| call.path = "/api".into(),
        BAD.0,
        BAD.1,
    ),
    (
        "another method",
        |call| call.method = "PUT".into(),
        BAD.0,
        BAD.1,
    ),
];

/// Headers that only version 3 could have signed.
const UNSIGNED: [Change; 8] = [
    (
        "another action in a header",
        |call| call.push("x-acs-action", "ListFlow"),
        BAD.0,
        BAD.1,
    ),
    (
        "another version in a header",
        |call| call.push("x-acs-version", "2019-01-01"),
        BAD.0,
        BAD.1,
    ),
    (
        "a token",
        |call| call.push("x-acs-security-token", "x"),
        INCOMPLETE.0,
        INCOMPLETE.1,
    ),
    (
        "a key",
        |call| call.push("x-acs-accesskey-id", KEY),
        INCOMPLETE.0,
        INCOMPLETE.1,
    ),
    (
        "an address",
        |call| call.push("x-acs-source-ip", "10.0.0.1"),
        INCOMPLETE.0,
        INCOMPLETE.1,
    ),
    (
        "whatever",
        |call| call.push("X-ACS-Whatever", "1"),
        INCOMPLETE.0,
        INCOMPLETE.1,
    ),
    (
        "a signed header between neighbours",
        |call| call.push("connection", "x-custom"),
        BAD.0,
        BAD.1,
    ),
    (
        "a parameter of version 1",
        |call| call.query.push(("Action".into(), "ListFlow".into())),
        BAD.0,
        BAD.1,
    ),
];

/// Correctly signed, but not permitted for this client or not for Flowgate.
fn out_of_bounds(host: &str) -> Vec<Row> {
    let late_v3 = |minutes| v3(host, |call| call.set("x-acs-date", &late(minutes)));
    let late_v1 = |minutes| v1(host, |call| set_query(call, "Timestamp", &late(minutes)));
    let action = |key| v3_by(host, key, |call| call.set("x-acs-action", "DeleteFlow"));
    let v1_action = v1(host, |call| set_query(call, "Action", "DeleteFlow"));
    let space = |params: &[(&str, &str)]| {
        Call::v3_with(host, &[&FLOW[..2], params].concat(), nothing, TEAM)
    };
    let v1_space = |params: &[(&str, &str)]| {
        Call::v1_with(host, &[&FLOW[..2], params].concat(), nothing, TEAM)
    };
    let json = v3(host, |call| {
        call.push("content-type", "application/json");
        call.body = b"{\"CustSpaceId\":\"victim\"}".to_vec();
    });
    let mut rows = vec![
        call(
            "a stamp 16 minutes old",
            late_v3(16),
            (400, "InvalidTimeStamp.Expired"),
        ),
        call(
            "a stamp 16 minutes ahead",
            late_v3(-16),
            (400, "InvalidTimeStamp.Expired"),
        ),
        call(
            "a stamp 16 minutes old, V1",
            late_v1(16),
            (400, "InvalidTimeStamp.Expired"),
        ),
        call(
            "a stamp 16 minutes ahead, V1",
            late_v1(-16),
            (400, "InvalidTimeStamp.Expired"),
        ),
        call(
            "an unknown key",
            v3_by(host, ("team-c", TEAM.1), nothing),
            (404, "InvalidAccessKeyId.NotFound"),
        ),
        call(
            "the key in another case",
            v3_by(host, ("Team-A", TEAM.1), nothing),
            (404, "InvalidAccessKeyId.NotFound"),
        ),
        call(
            "the account's secret",
            v3_by(host, (TEAM.0, SECRET), nothing),
            MISMATCH,
        ),
        call(
            "another client's secret",
            v3_by(host, (TEAM.0, OTHERS.1), nothing),
            MISMATCH,
        ),
        call("no secret", v3_by(host, (TEAM.0, ""), nothing), MISMATCH),
        call(
            "another client's secret, V1",
            Call::v1_with(host, &FLOW, nothing, (TEAM.0, OTHERS.1)),
            MISMATCH,
        ),
        call(
            "a disabled client",
            v3_by(host, DISABLED, nothing),
            FORBIDDEN,
        ),
        call(
            "a disabled client, V1",
            Call::v1_with(host, &FLOW, nothing, DISABLED),
            FORBIDDEN,
        ),
        call("another action", action(TEAM), FORBIDDEN),
        call("another action, V1", v1_action, FORBIDDEN),
        call("a space in JSON", json, FORBIDDEN),
    ];
    let spaces: [&[(&str, &str)]; 9] = [
        &[],
        &[("CustSpaceId", "victim")],
        &[("CustSpaceId", "")],
        &[("CustSpaceId", "space-1,victim")],
        &[("custspaceid", "space-1")],
        &[OWN, ("CustWabaId", "victim")],
        &[OWN, ("IsvCode", "victim")],
        &[OWN, ("ISVCODE", "space-1")],
        &[OWN, ("CustSpaceId.1", "victim")],
    ];
    for params in spaces {
        rows.push(call(format!("{params:?}"), space(params), FORBIDDEN));
        rows.push(call(format!("{params:?}, V1"), v1_space(params), FORBIDDEN));
        rows.push(call(
            format!("{params:?}, V1 in a form"),
            v1_space(params).in_form(),
            FORBIDDEN,
        ));
    }
    rows
}

/// The same for calls that have everything in their form.
fn out_of_bounds_in_a_form(host: &str) -> Vec<Row> {
    let action = v1(host, |call| set_query(call, "Action", "DeleteFlow"));
    let late = v1(host, |call| set_query(call, "Timestamp", &late(16)));
    vec![
        call("another action, V1 in a form", action.in_form(), FORBIDDEN),
        call(
            "a stamp 16 minutes old, V1 in a form",
            late.in_form(),
            (400, "InvalidTimeStamp.Expired"),
        ),
        call(
            "an unknown key, V1 in a form",
            Call::v1_with(host, &FLOW, nothing, ("team-c", TEAM.1)).in_form(),
            (404, "InvalidAccessKeyId.NotFound"),
        ),
        call(
            "another client's secret, V1 in a form",
            Call::v1_with(host, &FLOW, nothing, (TEAM.0, OTHERS.1)).in_form(),
            MISMATCH,
        ),
        call(
            "a disabled client, V1 in a form",
            Call::v1_with(host, &FLOW, nothing, DISABLED).in_form(),
            FORBIDDEN,
        ),
    ]
}

fn v3_by(host: &str, key: (&str, &str), before: impl FnOnce(&mut Call)) -> Call {
    Call::v3_with(host, &FLOW, before, key)
}

fn call(name: impl Into<String>, call: Call, expected: (u16, &'static str)) -> Row {
    Row {
        name: name.into(),
        bytes: call.bytes(),
        status: expected.0,
        code: expected.1,
    }
}

/// Hosts that a version 3 call may be signed for, and targets that contradict the signature.
fn hosts_and_targets(host: &str) -> Vec<Row> {
    let port = host.rsplit(':').next().unwrap();
    let mut rows = Vec::new();
    for signed in [
        "".to_owned(),
        "evil.example".to_owned(),
        "localhost".to_owned(),
        format!("127.0.0.1:{port}@evil.example"),
        format!("evil@127.0.0.1:{port}"),
        format!("evil.example/127.0.0.1:{port}"),
        format!("127.0.0.1.evil.example:{port}"),
        format!("[::1]:{port}"),
        "dysmsapi.aliyuncs.com".to_owned(),
        "cams.ap-southeast-1.aliyuncs.com.evil.example".to_owned(),
        "evil@cams.ap-southeast-1.aliyuncs.com".to_owned(),
        "cams.ap-southeast-1.aliyuncs.com@evil.example".to_owned(),
        "cams.ap-southeast-1.aliyuncs.com:x".to_owned(),
        format!("127.0.0.1:{port}0"),
        format!("localhost.evil.example:{port}"),
    ] {
        rows.push(call(
            format!("signed for {signed}"),
            v3(&signed, nothing),
            HOST,
        ));
    }
    let to = |target: String, answer| {
        let mut to = v3(host, nothing);
        to.path = target.clone();
        call(format!("to {target}"), to, answer)
    };
    rows.extend([
        to("http://evil.example/".into(), FOREIGN),
        to(format!("http://127.0.0.1.evil.example:{port}/"), FOREIGN),
        to("http://127.0.0.1:9/".into(), FOREIGN),
        to(format!("http://evil@{host}/"), BAD),
        to(format!("https://{host}/"), BAD),
        to(format!("ftp://{host}/"), BAD),
        to(format!("http://localhost:{port}/"), BAD),
        to("http://cams.ap-southeast-1.aliyuncs.com/".into(), FOREIGN),
        to(format!("http://{host}//evil.example/"), BAD),
        to(format!("http://{host}/.."), BAD),
        to("//evil.example/".into(), BAD),
        to("/%2e%2e/".into(), BAD),
        to("/;x".into(), BAD),
    ]);
    rows
}

fn changed(version: &str, base: impl Fn() -> Call, changes: &[Change]) -> Vec<Row> {
    changed_in(version, base, changes, |call| call)
}

/// Changes calls, then puts their parameters in another place.
fn changed_in(
    version: &str,
    base: impl Fn() -> Call,
    changes: &[Change],
    place: fn(Call) -> Call,
) -> Vec<Row> {
    let row = |(name, change, status, code): &Change| {
        let mut changed = base();
        change(&mut changed);
        call(
            format!("{version}: {name}"),
            place(changed),
            (*status, *code),
        )
    };
    changes.iter().map(row).collect()
}

#[tokio::test]
async fn every_tampered_client_call_is_refused_and_reaches_no_upstream() {
    let harness = gateway("").await;
    let host = &harness.host();
    let rows = [
        changed("V3", || v3_form(host), &CHANGED_V3),
        changed("V1", || v1(host, nothing), &CHANGED_V1),
        changed_in(
            "V1 in a form",
            || v1(host, nothing),
            &CHANGED_V1,
            Call::in_form,
        ),
        changed_in("V1 in a form", || v1(host, nothing), &BESIDE, Call::in_form),
        changed("V3", || v3(host, nothing), &BESIDE),
        changed(
            "V1",
            || v1(host, |call| call.headers.retain(|(name, _)| name == "host")),
            &BESIDE,
        ),
        changed("V3", || v3(host, nothing), &UNSIGNED),
        out_of_bounds(host),
        out_of_bounds_in_a_form(host),
        hosts_and_targets(host),
    ];
    let mut wrong = Vec::new();
    for row in rows.into_iter().flatten() {
        let reply = caller::exchange(harness.proxy, &row.bytes)
            .await
            .unwrap_or_else(|| panic!("{}: no answer", row.name));
        let body = &reply.body;
        let got = (
            reply.status,
            reply
                .header("x-flowgate-error")
                .unwrap_or_default()
                .to_owned(),
        );
        if got != (row.status, row.code.to_owned()) {
            wrong.push(format!("{}: {got:?} {body}", row.name));
        }
        assert!(
            [TEAM.1, OTHERS.1, SECRET]
                .iter()
                .all(|secret| !body.contains(secret)),
            "{}: {body}",
            row.name
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(
        (
            harness.sim.report().arrived,
            harness.sim.report().connections
        ),
        (0, 0),
        "CAMS is not even dialled"
    );
    for good in [
        v3(host, nothing),
        v3_form(host),
        v1(host, nothing),
        v1(host, nothing).in_form(),
    ] {
        assert_eq!(
            good.send(harness.proxy).await.status,
            200,
            "what all of them are made from is in order"
        );
    }
}

#[tokio::test]
async fn a_replay_is_refused_in_every_form() {
    let harness = gateway("").await;
    let host = harness.host();
    let nonce = |call: &mut Call| call.push("x-acs-signature-nonce", "once");
    let fixed = |call: &mut Call| {
        call.headers
            .retain(|(name, _)| name != "x-acs-signature-nonce");
        nonce(call);
    };
    let first = v3(&host, fixed);
    assert_eq!(first.send(harness.proxy).await.status, 200);
    let same_nonce_in_v1 = v1(&host, |call| set_query(call, "SignatureNonce", "once"));
    let same_nonce_anew = v3_by(&host, TEAM, fixed);
    let same_nonce_in_form = same_nonce_in_v1.clone().in_form();
    for again in [
        &first,
        &same_nonce_anew,
        &same_nonce_in_v1,
        &same_nonce_in_form,
    ] {
        let reply = again.send(harness.proxy).await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (400, "SignatureNonceUsed")
        );
    }
    // Of many simultaneous calls one is accepted.
    let call = v3(&host, |call| call.query[1].1 = "together".into());
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let call = call.clone();
        let proxy = harness.proxy;
        calls.spawn(async move { call.send(proxy).await.status });
    }
    assert_eq!(
        calls
            .join_all()
            .await
            .iter()
            .filter(|status| **status == 200)
            .count(),
        1
    );
    // A nonce belongs to its key: a client cannot spend another's.
    assert_eq!(
        v3_by(&host, OTHERS, fixed).send(harness.proxy).await.status,
        200
    );
    assert_eq!(harness.sim.report().arrived, 3);
}

#[tokio::test]
async fn unsigned_headers_and_parameters_are_not_forwarded() {
    let harness = gateway("").await;
    let host = harness.host();
    let mark = "smuggled";
    let put = |call: &mut Call, names: &[&str]| names.iter().for_each(|name| call.push(name, mark));
    let mut three = v3(&host, nothing);
    put(
        &mut three,
        &[
            "x-forwarded-for",
            "x-flowgate-waited",
            "forwarded",
            "x-real-ip",
            "via",
            "x-tenant",
            "pragma",
        ],
    );
    three.push("connection", "close, x-tenant");
    let mut one = v1(&host, nothing);
    put(
        &mut one,
        &[
            "x-acs-security-token",
            "x-acs-source-ip",
            "x-acs-caller-uid",
            "x-acs-proxy-x",
            "x-forwarded-host",
            "x-acs-action",
            "x-acs-version",
            "x-acs-bearer-token",
        ],
    );
    let in_form = v1(&host, |call| call.push("x-acs-action", mark)).in_form();
    let mut elsewhere = v1(&host, nothing);
    elsewhere.set("host", mark);
    let mut fragment = v3(&host, nothing).bytes();
    let end = fragment
        .windows(9)
        .position(|window| window == b" HTTP/1.1")
        .unwrap();
    fragment.splice(end..end, format!("#&FlowName={mark}").into_bytes());
    for bytes in [
        three.bytes(),
        one.bytes(),
        in_form.bytes(),
        elsewhere.bytes(),
        fragment,
    ] {
        assert_eq!(
            caller::exchange(harness.proxy, &bytes)
                .await
                .unwrap()
                .status,
            200
        );
    }
    let arrivals = harness.sim.arrivals();
    assert_eq!(arrivals.len(), 5);
    for arrival in arrivals {
        let all = format!("{arrival:?}");
        assert!(!all.contains(mark) && !all.contains(TEAM.0), "{all}");
    }
}

/// A request whose end two servers may see in different places, and the status of its only
/// response: 200 if Flowgate has one reading and it is signed; 0 if the connection is closed
/// without a response.
struct Shape {
    name: &'static str,
    bytes: Vec<u8>,
    status: u16,
}

/// Edits the head after signing.
fn head(call: &Call, from: &str, to: &str) -> Vec<u8> {
    let bytes = call.bytes();
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.contains(from), "{from} is in {text}");
    text.replacen(from, to, 1).into_bytes()
}

/// The request that every shape hides.
fn hidden(host: &str) -> Vec<u8> {
    v3(host, |call| set_query(call, "FlowName", "smuggled")).bytes()
}

fn chunk(body: &[u8]) -> Vec<u8> {
    [
        format!("{:x}\r\n", body.len()).as_bytes(),
        body,
        b"\r\n0\r\n\r\n",
    ]
    .concat()
}

/// The end of the body: by length or by chunks.
#[expect(clippy::too_many_lines, reason = "one table")]
fn shapes_of_length(host: &str) -> Vec<Shape> {
    let shape = |name, bytes, status| Shape {
        name,
        bytes,
        status,
    };
    let form = || v3_form(host);
    let coded = |codings: &[&str], lengths: &[String], body: Vec<u8>| {
        let mut call = form();
        codings
            .iter()
            .for_each(|coding| call.push("transfer-encoding", coding));
        lengths
            .iter()
            .for_each(|length| call.push("content-length", length));
        call.body = body;
        call.bytes()
    };
    let right = || chunk(b"Remark=a");
    let with_hidden = [right(), hidden(host)].concat().len().to_string();
    let length = |lengths: &[&str]| {
        coded(
            &[],
            &lengths
                .iter()
                .map(|length| (*length).to_owned())
                .collect::<Vec<_>>(),
            b"Remark=a".to_vec(),
        )
    };
    vec![
        shape(
            "CL.TE: the length takes in what is hidden",
            coded(&["chunked"], &[with_hidden], right()),
            200,
        ),
        shape(
            "TE.CL: a chunk hides it",
            coded(&["chunked"], &["4".into()], chunk(&hidden(host))),
            400,
        ),
        shape("two lengths", length(&["8", "0"]), 400),
        shape("two lengths, the shorter first", length(&["0", "8"]), 400),
        shape("a list of lengths", length(&["8, 0"]), 400),
        shape("a list of the same length", length(&["8, 8"]), 400),
        shape("a signed length", length(&["+8"]), 400),
        shape("a negative length", length(&["-8"]), 400),
        shape("a hexadecimal length", length(&["0x8"]), 400),
        shape("no length at all", length(&[""]), 400),
        shape("a length with a blank inside", length(&["8 0"]), 400),
        shape(
            "a length of twenty digits",
            length(&["99999999999999999999"]),
            400,
        ),
        shape(
            "a list of codings",
            coded(&["gzip, chunked"], &[], right()),
            400,
        ),
        shape(
            "chunked, then not",
            coded(&["chunked, identity"], &[], right()),
            400,
        ),
        shape(
            "chunked twice",
            coded(&["chunked, chunked"], &[], right()),
            400,
        ),
        shape(
            "two codings",
            coded(&["chunked", "identity"], &[], right()),
            400,
        ),
        shape(
            "two codings, the other way",
            coded(&["identity", "chunked"], &[], right()),
            400,
        ),
        shape(
            "identity",
            coded(&["identity"], &["8".into()], b"Remark=a".to_vec()),
            400,
        ),
        shape(
            "nearly chunked",
            coded(&["xchunked"], &["8".into()], b"Remark=a".to_vec()),
            400,
        ),
        shape(
            "chunked in quotes",
            coded(&["\"chunked\""], &["8".into()], b"Remark=a".to_vec()),
            400,
        ),
        shape(
            "chunked behind a vertical tab",
            coded(&["\u{b}chunked"], &["8".into()], b"Remark=a".to_vec()),
            400,
        ),
        shape(
            "a GET with a body",
            {
                let mut get = v3(host, |call| call.method = "GET".into());
                get.body = hidden(host);
                get.bytes()
            },
            413,
        ),
    ]
}

/// The end of a chunk.
fn shapes_of_chunks(host: &str) -> Vec<Shape> {
    let shape = |name, body: &[u8], status| {
        let mut call = v3_form(host);
        call.push("transfer-encoding", "chunked");
        call.body = body.to_vec();
        Shape {
            name,
            bytes: call.bytes(),
            status,
        }
    };
    vec![
        shape("a size with a sign", b"+8\r\nRemark=a\r\n0\r\n\r\n", 400),
        shape("a size with 0x", b"0x8\r\nRemark=a\r\n0\r\n\r\n", 400),
        shape("no size", b"\r\nRemark=a\r\n0\r\n\r\n", 400),
        shape(
            "a size that overflows",
            b"10000000000000008\r\nRemark=a\r\n0\r\n\r\n",
            400,
        ),
        shape(
            "a chunk that is too long",
            b"8\r\nRemark=ab\r\n0\r\n\r\n",
            400,
        ),
        shape("a chunk without an end", b"8\r\nRemark=a0\r\n\r\n", 400),
        shape(
            "a bare LF behind the size",
            b"8\nRemark=a\r\n0\r\n\r\n",
            400,
        ),
        shape(
            "a bare LF behind the chunk",
            b"8\r\nRemark=a\n0\r\n\r\n",
            400,
        ),
        shape(
            "an extension with a bare LF",
            b"8;a\nb\r\nRemark=a\r\n0\r\n\r\n",
            400,
        ),
        shape(
            "an extension with a bare CR",
            b"8;a\rb\r\nRemark=a\r\n0\r\n\r\n",
            400,
        ),
    ]
}

/// The end of the head, and its lines.
fn shapes_of_head(host: &str) -> Vec<Shape> {
    let shape = |name, bytes, status| Shape {
        name,
        bytes,
        status,
    };
    let add = |line: &str| {
        head(
            &v3(host, nothing),
            "\r\ncontent-length",
            &format!("\r\n{line}\r\ncontent-length"),
        )
    };
    let chunked = |line: &str| {
        let mut call = v3_form(host);
        call.body = chunk(b"Remark=a");
        call.push("content-length", "8");
        head(
            &call,
            "\r\ncontent-length",
            &format!("\r\n{line}\r\ncontent-length"),
        )
    };
    let version = |version: &str| head(&v3(host, nothing), "HTTP/1.1", version);
    vec![
        shape("a folded line", add("x-y: a\r\n b"), 400),
        shape(
            "a folded coding",
            chunked("transfer-encoding:\r\n chunked"),
            400,
        ),
        shape(
            "a blank before the colon",
            chunked("transfer-encoding : chunked"),
            400,
        ),
        shape("a line that begins with a blank", add(" x-y: a"), 400),
        shape("a line without a colon", add("x-y"), 400),
        shape("a name of nothing", add(": a"), 400),
        shape("a NUL in a value", add("x-y: a\0b"), 400),
        shape(
            "a bare CR in a value",
            add("x-y: a\rtransfer-encoding: chunked"),
            400,
        ),
        // A bare LF ends a line (RFC 9112, 2.2), so the text after it counts.
        shape(
            "a coding behind a bare LF",
            chunked("x-y: a\ntransfer-encoding: chunked"),
            200,
        ),
        shape("a bare CR before a line", add("\rx-y: a"), 400),
        shape("HTTP/1.2", version("HTTP/1.2"), 400),
        shape("HTTP/2.0", version("HTTP/2.0"), 400),
        shape("http/1.1", version("http/1.1"), 400),
        shape("two blanks before the version", version(" HTTP/1.1"), 400),
        shape(
            "HTTP/1.0 with chunks",
            {
                let mut call = v3_form(host);
                call.push("transfer-encoding", "chunked");
                call.body = chunk(b"Remark=a");
                head(&call, "HTTP/1.1", "HTTP/1.0")
            },
            400,
        ),
        shape(
            "the start of HTTP/2",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            400,
        ),
        shape(
            "a target with a blank",
            head(&v3(host, nothing), "/?", "/ ?"),
            400,
        ),
    ]
}

/// Sends a shape directly followed by a valid request, and returns all bytes until the connection
/// ends.
async fn behind(harness: &Harness, shape: &Shape) -> String {
    let mut stream = TcpStream::connect(harness.proxy).await.unwrap();
    let bytes = [shape.bytes.as_slice(), &hidden(&harness.host())].concat();
    drop(stream.write_all(&bytes).await);
    let mut seen = Vec::new();
    // Unread bytes turn the close into a reset.
    let closed = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut seen)).await;
    assert!(closed.is_ok(), "{}: the connection stays open", shape.name);
    String::from_utf8_lossy(&seen).into_owned()
}

#[tokio::test]
async fn bytes_after_an_ambiguous_request_are_not_read_as_a_request() {
    let harness = gateway("").await;
    let host = harness.host();
    let mut wrong = Vec::new();
    let mut passed = 0;
    for shape in [
        shapes_of_length(&host),
        shapes_of_chunks(&host),
        shapes_of_head(&host),
    ]
    .into_iter()
    .flatten()
    {
        let seen = behind(&harness, &shape).await;
        let answers: Vec<_> = seen
            .match_indices("HTTP/1.1 ")
            .map(|(at, _)| seen[at + 9..].get(..3).unwrap_or(""))
            .collect();
        if answers != [shape.status.to_string()] {
            wrong.push(format!(
                "{}: {answers:?} instead of {}: {seen}",
                shape.name, shape.status
            ));
        }
        passed += usize::from(shape.status == 200);
    }
    let arrivals = harness.sim.arrivals();
    let smuggled = arrivals
        .iter()
        .filter(|arrival| arrival.flow_name.as_deref() != Some("x"))
        .count();
    assert!(
        wrong.is_empty(),
        "{} smuggled of {}\n{}",
        smuggled,
        arrivals.len(),
        wrong.join("\n")
    );
    assert_eq!((smuggled, arrivals.len()), (0, passed));
}
