//! Calls with keys that Flowgate has no secret for: what is forwarded, and what is refused before
//! it is queued.

use super::call::{Call, v1, v3};
use super::*;
use crate::primitives::id::{AccountId, ClientId};

const ALIAS: &str = "LTAI-second";

fn gate() -> Gate {
    Gate::with(&[
        ("FLOWGATE_ACCOUNTS__0__ALIASES", ALIAS),
        ("FLOWGATE_UNKNOWN_KEYS", "relay"),
    ])
}

/// A call that is signed with a secret that Flowgate does not have, sent through `http_proxy`.
fn through_proxy(edit: impl FnOnce(&mut Call)) -> Capture {
    let mut capture = v3(|call| {
        call.key = ALIAS;
        call.secret = "not-here";
        call.set("host", UPSTREAM);
        edit(call);
    });
    capture.target = format!("http://{UPSTREAM}{}", capture.target);
    capture
}

fn alias_v1(edit: impl FnOnce(&mut Call)) -> Capture {
    v1(&[], |call| {
        call.key = ALIAS;
        call.secret = "not-here";
        edit(call);
    })
}

fn sent(capture: &Capture) -> Capture {
    let gate = gate();
    gate.send(gate.ask(capture).unwrap())
}

#[test]
fn version_3_is_relayed_as_it_was_signed() {
    let capture = through_proxy(|call| {
        call.form("Name=a+b%2A");
        for name in ["user-agent", "accept", "x-acs-credentials-provider"] {
            call.set(name, "Stock SDK");
        }
        for (name, value) in [
            ("connection", "x-listed"),
            ("x-listed", "1"),
            ("x-flowgate-hold", "9s"),
            ("te", "trailers"),
            ("x-forwarded-for", "198.51.100.7"),
            ("x-forwarded-proto", "http"),
            ("forwarded", "for=198.51.100.7"),
            ("x-real-ip", "198.51.100.7"),
            ("proxy-authorization", "Basic dTpw"),
            ("accept-encoding", "gzip"),
            ("content-length", "11"),
        ] {
            call.set(name, value);
            call.unsigned.push(name);
        }
    });
    let sent = sent(&capture);
    assert_eq!(
        (sent.method.as_str(), sent.target.as_str()),
        ("POST", "/?FlowName=a&CustSpaceId=space-1")
    );
    assert_eq!(sent.body, b"Name=a+b%2A");
    let signed = Authorization::parse(capture.header("authorization").unwrap())
        .unwrap()
        .signed_headers;
    for name in signed.iter().chain(&["authorization"]) {
        assert_eq!(sent.header(name), capture.header(name), "{name}");
    }
    let mut others: Vec<_> = sent.headers.iter().map(|(name, _)| name.as_str()).collect();
    others.retain(|name| !signed.contains(name));
    others.sort_unstable();
    assert_eq!(
        others,
        ["accept-encoding", "authorization", "content-length"]
    );
    assert_eq!(
        (
            sent.header("accept-encoding"),
            sent.header("content-length")
        ),
        (Some("identity"), Some("11"))
    );
}

#[test]
fn a_signed_accept_encoding_is_the_only_one_sent() {
    let sent = sent(&through_proxy(|call| {
        call.set("accept-encoding", "gzip, br")
    }));
    let encodings = sent
        .headers
        .iter()
        .filter(|(name, _)| name == "accept-encoding");
    assert_eq!(
        encodings.map(|(_, value)| &value[..]).collect::<Vec<_>>(),
        [b"gzip, br"]
    );
}

#[test]
fn version_1_is_relayed_with_the_upstream_host() {
    let capture = alias_v1(|call| call.form("Name=a+b%2A"));
    let sent = sent(&capture);
    assert_eq!((&sent.target, &sent.body), (&capture.target, &capture.body));
    assert_eq!(sent.header("host"), Some(UPSTREAM));
    let mut get = alias_v1(|call| call.method = "GET");
    get.target = format!("/{}", get.target);
    let sent = self::sent(&get);
    assert_eq!(
        (&sent.target, sent.header("content-length")),
        (&get.target, None)
    );
}

#[test]
fn the_refusal_of_a_relayed_call_signed_for_flowgate_says_what_to_do() {
    let (kind, message) = gate().refuses(&v3(|call| call.key = ALIAS));
    assert_eq!(kind, Kind::SignedHostMismatch);
    assert!(
        message.contains("http_proxy") && message.contains(UPSTREAM) && !message.contains(ALIAS),
        "{message}"
    );
    assert!(
        message.contains("[[clients]]") && message.contains("add the secret"),
        "{message}"
    );
}

/// Only the application has the secret of its session.
#[test]
fn the_refusal_of_a_relayed_session_does_not_ask_for_its_secret() {
    let gate = Gate::bare(&[("ALIBABA_CLOUD_ECS_METADATA", "flowgate")]);
    let (kind, message) = gate.refuses(&v3(|call| call.key = "STS.own"));
    assert_eq!(kind, Kind::SignedHostMismatch);
    assert!(
        message.contains("[[clients]], flowgate client new") && !message.contains("add the secret"),
        "{message}"
    );
}

#[test]
fn a_relayed_call_keeps_cams_host_as_it_was_signed() {
    // CAMS computes the signature with these bytes.
    for host in [
        UPSTREAM,
        "CAMS.ap-southeast-1.aliyuncs.com",
        "cams.ap-southeast-1.aliyuncs.com:80",
        "cams.ap-southeast-1.aliyuncs.com.:8080",
    ] {
        let capture = v3(|call| {
            call.key = ALIAS;
            call.set("host", host);
        });
        let sent = sent(&capture);
        let hosts: Vec<_> = sent
            .headers
            .iter()
            .filter(|(name, _)| name == "host")
            .collect();
        assert_eq!(hosts, [&("host".to_owned(), host.as_bytes().to_vec())]);
    }
    for host in [
        "u@cams.ap-southeast-1.aliyuncs.com",
        "http://cams.ap-southeast-1.aliyuncs.com",
        "ecs.aliyuncs.com",
    ] {
        let capture = v3(|call| {
            call.key = ALIAS;
            call.set("host", host);
        });
        assert_eq!(
            gate().refuses(&capture).0,
            Kind::SignedHostMismatch,
            "{host}"
        );
    }
}

#[test]
fn acs_headers_of_a_relayed_version_1_call_are_dropped() {
    let sent = sent(&alias_v1(|call| {
        for (name, value) in [
            ("x-acs-action", "createFlow"),
            ("x-acs-source-ip", "1.2.3.4"),
            ("x-acs-security-token", "x"),
            ("x-sdk-client", "kept"),
        ] {
            call.set(name, value);
        }
    }));
    let names = sent.headers.iter().map(|(name, _)| name.as_str());
    assert_eq!(
        names
            .filter(|name| name.starts_with("x-"))
            .collect::<Vec<_>>(),
        ["x-sdk-client"]
    );
}

#[test]
fn relayed_calls_pass_every_check_that_needs_no_secret() {
    let refuses = |capture: &Capture| gate().refuses(capture).0;
    let mut body = through_proxy(|call| call.form("a=1"));
    body.body = b"a=2".to_vec();
    assert_eq!(refuses(&body), Kind::SignatureDoesNotMatch);
    assert_eq!(
        refuses(&through_proxy(|call| call.unsigned.push("x-acs-action"))),
        Kind::IncompleteSignature
    );
    assert_eq!(
        refuses(&through_proxy(
            |call| call.set("x-acs-date", "2026-11-24T01:00:00Z")
        )),
        Kind::TimestampExpired
    );
    assert_eq!(
        refuses(&through_proxy(|call| call.query = "a=1&A=2".into())),
        Kind::BadRequest
    );
    assert_eq!(
        refuses(&through_proxy(|call| call.json("{\"a\":1,\"a\":2}"))),
        Kind::BadRequest
    );
    assert_eq!(
        refuses(&through_proxy(|call| call.set("x-acs-caller-uid", "1"))),
        Kind::BadRequest
    );
    for form in ["Name=a&SourceIp=1.2.3.4", "securetransport=true"] {
        assert_eq!(refuses(&alias_v1(|call| call.form(form))), Kind::BadRequest);
        assert_eq!(
            refuses(&through_proxy(|call| call.form(form))),
            Kind::BadRequest
        );
    }
    assert_eq!(refuses(&alias_v1(|call| call.json("{}"))), Kind::BadRequest);
    let gate = gate();
    gate.ask(&through_proxy(|_| ())).unwrap();
    assert_eq!(gate.refuses(&through_proxy(|_| ())).0, Kind::NonceUsed);
}

#[test]
fn an_alias_uses_its_accounts_quota_as_one_unverified_client() {
    let operation = gate().classify(&through_proxy(|_| ())).unwrap();
    assert_eq!(
        (operation.account_label(), operation.action_label()),
        ("acme", "CreateFlow")
    );
    assert_eq!(
        (operation.client, operation.tenant.as_str()),
        (ClientId::unverified(), "space-1")
    );
    let claim = gate().claim(&through_proxy(|_| ())).unwrap();
    assert!(!claim.is_verified());
    assert_eq!(
        claim.claimed_identity().account,
        Some(AccountId::new("acme"))
    );
}

#[test]
fn a_relayed_call_is_sent_before_its_timestamp_is_14_minutes_old_or_refused() {
    let wait = |stamp: &'static str| {
        let call = v1(&[("Timestamp", stamp)], |call| {
            call.key = ALIAS;
            call.secret = "not-here";
        });
        gate().classify(&call).unwrap().wait
    };
    let usual = wait(NOW);
    assert!(usual > Duration::from_secs(25));
    assert_eq!(
        wait("2026-11-24T03:10:00Z"),
        usual,
        "a clock that is ahead does not extend the wait"
    );
    assert_eq!(wait("2026-11-24T02:45:10Z"), Duration::from_secs(10));
    assert_eq!(wait("2026-11-24T02:45:00Z"), Duration::ZERO);
    assert_eq!(wait("2026-11-24T02:44:30Z"), Duration::ZERO);
    let managed = Gate::new().classify(&v3(|call| call.set("x-acs-date", "2026-11-24T02:44:30Z")));
    assert_eq!(
        managed.unwrap().wait,
        usual,
        "Flowgate sets the timestamp of calls that it signs"
    );
}

#[test]
fn unknown_keys_are_separate_accounts_under_one_label() {
    let gate = gate();
    // A key with the id of an account does not use the quota of that account.
    for key in ["LTAI-x", "LTAI-y", "acme"] {
        let capture = v1(&[("SignatureNonce", key)], |call| call.key = key);
        let operation = gate.classify(&capture).unwrap();
        assert_eq!(operation.account.as_str(), format!("?{key}"));
        assert_eq!(
            (operation.account_label(), operation.known),
            ("unknown", false)
        );
    }
}

#[test]
fn a_relayed_body_is_never_verified() {
    let max = |capture: &Capture| {
        gate()
            .claim(capture)
            .map(|claim| (claim.is_verified(), claim.max_body(1 << 20)))
            .unwrap()
    };
    assert_eq!(max(&through_proxy(|_| ())), (false, 1 << 20));
    assert_eq!(max(&alias_v1(|_| ())), (false, 64 << 10));
}

#[test]
fn other_algorithms_are_relayed_for_keys_without_a_secret() {
    let gate = Gate::bare(&[("FLOWGATE_UNKNOWN_KEYS", "relay")]);
    for file in ["py5_d_sm3.http", "py5_d_rsa.http"] {
        // The only reason for the refusal is that they are signed for Flowgate's own address.
        assert_eq!(
            gate.refuses(&capture::load(file)).0,
            Kind::SignedHostMismatch,
            "{file}"
        );
        let mut capture = capture::load(file);
        capture.set("host", UPSTREAM);
        let sent = gate.send(gate.ask(&capture).unwrap());
        assert_eq!(
            sent.header("authorization"),
            capture.header("authorization")
        );
    }
    let rsa = capture::load("pyv1_e_rsa.http");
    assert_eq!(gate.send(gate.ask(&rsa).unwrap()).target, rsa.target);
}

#[test]
fn sdk_captures_are_relayed_where_their_signed_host_allows_it() {
    let gate = Gate::bare(&[("FLOWGATE_UNKNOWN_KEYS", "relay")]);
    let mut passed = 0;
    for (file, capture) in capture::signed() {
        let is_for_cams = capture.header("host") == Some(UPSTREAM);
        if capture.is_v3() && !is_for_cams {
            assert_eq!(gate.refuses(&capture).0, Kind::SignedHostMismatch, "{file}");
            continue;
        }
        let sent = gate.send(gate.ask(&capture).unwrap());
        assert_eq!(
            (sent.query(), &sent.body),
            (capture.query(), &capture.body),
            "{file}"
        );
        passed += 1;
    }
    assert_eq!(passed, 50);
}
