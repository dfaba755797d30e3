//! The request to CAMS, header by header.

use proptest::prelude::*;

use super::call::{v1, v3};
use super::*;
use crate::acs::encode;

const TOKEN: &str = "sts-token/+=";

fn sts() -> Gate {
    Gate::bare(&[
        ("ALIBABA_CLOUD_ACCESS_KEY_ID", KEY),
        ("ALIBABA_CLOUD_ACCESS_KEY_SECRET", SECRET),
        ("ALIBABA_CLOUD_SECURITY_TOKEN", TOKEN),
    ])
}

/// Names of the sent headers, in alphabetical order.
fn names(capture: &Capture) -> Vec<&str> {
    let mut names: Vec<_> = capture
        .headers
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    names.sort_unstable();
    names
}

#[test]
fn a_version_3_request_has_only_listed_headers() {
    let gate = sts();
    let sent = gate.send(gate.ask(&v3(|call| call.form("b=%2a+c&a="))).unwrap());
    assert_eq!(
        (sent.method.as_str(), sent.target.as_str()),
        ("POST", "/?FlowName=a&CustSpaceId=space-1")
    );
    assert_eq!(sent.body, b"b=%2A%20c&a=");
    let signed = [
        "content-type",
        "host",
        "x-acs-accesskey-id",
        "x-acs-action",
        "x-acs-content-sha256",
        "x-acs-date",
        "x-acs-security-token",
        "x-acs-signature-nonce",
        "x-acs-version",
    ];
    let authorization = Authorization::parse(sent.header("authorization").unwrap()).unwrap();
    assert_eq!(authorization.signed_headers, signed);
    let mut all = [
        &signed[..],
        &[
            "accept",
            "accept-encoding",
            "authorization",
            "content-length",
            "user-agent",
        ],
    ]
    .concat();
    all.sort_unstable();
    assert_eq!(names(&sent), all);
    for (name, value) in [
        ("host", UPSTREAM),
        ("x-acs-date", NOW),
        ("x-acs-security-token", TOKEN),
        ("x-acs-accesskey-id", KEY),
        ("accept", "application/json"),
        ("accept-encoding", "identity"),
        ("content-length", "12"),
        (
            "user-agent",
            concat!("flowgate/", env!("CARGO_PKG_VERSION")),
        ),
    ] {
        assert_eq!(sent.header(name), Some(value), "{name}");
    }
}

#[test]
fn a_version_1_request_has_only_listed_headers_and_parameters() {
    let gate = sts();
    let sent = gate.send(
        gate.ask(&v1(&[("Format", "xml")], |call| call.form("b=1")))
            .unwrap(),
    );
    assert_eq!(
        names(&sent),
        [
            "accept-encoding",
            "content-length",
            "content-type",
            "host",
            "user-agent",
            "x-acs-action",
            "x-acs-version"
        ]
    );
    let mut query = capture::pairs(sent.query());
    let nonce = query
        .iter()
        .position(|(name, _)| name == "SignatureNonce")
        .map(|at| query.remove(at).1)
        .unwrap();
    assert!(nonce.len() == 32 && nonce != "nonce-1");
    assert_eq!(query.pop().unwrap().0, "Signature");
    let expected = [
        ("Action", "CreateFlow"),
        ("Version", "2020-06-06"),
        ("Format", "xml"),
        ("FlowName", "a"),
        ("AccessKeyId", KEY),
        ("SignatureMethod", "HMAC-SHA1"),
        ("SignatureVersion", "1.0"),
        ("Timestamp", NOW),
        ("SecurityToken", TOKEN),
    ];
    assert!(
        query
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .eq(expected),
        "{query:?}"
    );
    assert_eq!(sent.body, b"b=1");
}

#[test]
fn every_attempt_has_its_own_nonce_and_time() {
    let gate = Gate::new();
    let caller = gate.ask(&v3(|call| call.method = "GET")).unwrap();
    assert_eq!(
        caller.bytes(),
        "FlowNamea".len() + "CustSpaceIdspace-1".len()
    );
    let call = caller.into_sendable();
    let later = gate.now + Duration::from_secs(3600);
    let sent = [gate.now, later].map(|now| Capture::from(signed(&call, now)));
    assert_eq!(sent[1].header("x-acs-date"), Some("2026-11-24T03:59:00Z"));
    assert_ne!(
        sent[0].header("x-acs-signature-nonce"),
        sent[1].header("x-acs-signature-nonce")
    );
    assert_eq!(
        (sent[0].method.as_str(), sent[0].header("content-length")),
        ("GET", None)
    );
}

#[test]
fn debug_output_hides_credentials() {
    let gate = sts();
    let request = signed(&gate.ask(&v3(|_| ())).unwrap().into_sendable(), gate.now);
    let shown = format!("{request:?}");
    assert!(
        !shown.contains(TOKEN) && !shown.contains("ACS3-HMAC"),
        "{shown}"
    );
}

proptest! {
    #[test]
    fn flowgate_accepts_what_it_signs_for_any_parameters(
        query in "[^\0]{0,40}",
        form in "[^\0]{0,40}",
        json in any::<bool>(),
    ) {
        let gate = Gate::new();
        let body = if json {
            serde_json::json!({ "a": form }).to_string()
        } else {
            encode::pairs([("a", form.as_str())])
        };
        let three = v3(|call| {
            call.query = encode::pairs([("q", query.as_str())]);
            if json { call.json(&body) } else { call.form(&body) }
        });
        let params = [("q", query.as_str()), ("SignatureNonce", "nonce-2")];
        let one = v1(&params, |call| if !json { call.form(&body) });
        for capture in [three, one] {
            let sent = gate.send(gate.ask(&capture).unwrap());
            prop_assert_eq!(sent.read(), capture.read());
            let again = gate.send(gate.ask(&sent).unwrap());
            prop_assert_eq!(again.read(), capture.read());
        }
    }
}
