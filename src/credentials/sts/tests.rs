//! Signatures over the same parameters as Alibaba's libraries, and the second request after a
//! refused time stamp.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::*;
use crate::acs::decode::Params;
use crate::acs::v1;
use crate::credentials::error::FailureKind;
use crate::credentials::scripted::{self, Scripted, answer, sts_body};
use crate::primitives::secret::Secret;

/// A request that one of Alibaba's libraries has sent.
struct Capture {
    method: String,
    query: Vec<(String, String)>,
    headers: BTreeMap<String, String>,
}

fn capture(name: &str) -> Capture {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/credentials");
    let text = std::fs::read_to_string(folder.join(format!("{name}.http"))).unwrap();
    let mut lines = text.lines();
    let line = lines.next().unwrap();
    let (method, rest) = line.split_once(' ').unwrap();
    let target = rest.strip_suffix(" HTTP/1.1").unwrap();
    let query = target.split_once('?').map_or("", |(_, query)| query);
    let params = Params::from_query(query).unwrap();
    Capture {
        method: method.to_owned(),
        query: params
            .query()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        headers: lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect(),
    }
}

// === impl Capture ===

impl Capture {
    fn parameter(&self, name: &str) -> &str {
        let mut pairs = self.query.iter();
        pairs.find(|(other, _)| other == name).unwrap().1.as_str()
    }

    fn stamp(&self) -> DateAndNonce {
        DateAndNonce {
            date: self.headers["x-acs-date"].clone(),
            nonce: self.headers["x-acs-signature-nonce"].clone(),
        }
    }
}

fn endpoint() -> StsEndpoint {
    StsEndpoint {
        host: "sts.aliyuncs.com".to_owned(),
        port: 443,
    }
}

fn with_token() -> Credentials {
    Credentials {
        security_token: Some(Secret::new("test-sts-token/with+special=chars==")),
        ..scripted::long_lived()
    }
}

/// The parameters of version 1 with those of AssumeRole.
fn v1_signature(source: &AssumeRole, credentials: &Credentials, capture: &Capture) -> String {
    let pairs = assume_role(source);
    let mut all: Vec<(&str, &str)> = borrowed(&pairs).collect();
    all.extend([
        ("AccessKeyId", credentials.access_key_id.as_str()),
        ("Action", ASSUME_ROLE),
        ("Format", "JSON"),
        ("SignatureMethod", v1::METHOD),
        ("SignatureNonce", capture.parameter("SignatureNonce")),
        ("SignatureVersion", v1::VERSION),
        ("Timestamp", capture.parameter("Timestamp")),
        ("Version", VERSION),
    ]);
    if let Some(token) = &credentials.security_token {
        all.push(("SecurityToken", token.expose()));
    }
    // What was captured has the same parameters and no others.
    let mut sent: Vec<(&str, &str)> = capture
        .query
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .filter(|(name, _)| *name != "Signature")
        .collect();
    sent.sort_unstable();
    all.sort_unstable();
    assert_eq!(all, sent);
    v1::sign(
        &credentials.secret,
        &v1::string_to_sign(&capture.method, all),
    )
}

#[test]
fn assume_role_parameters_have_the_signature_that_the_library_sent() {
    let capture = capture("py_assume_sts_external_policy");
    let mut source = scripted::assume_role(endpoint());
    source.external_id = Some("abc/1=2:3@x".to_owned());
    source.role.duration = Some(Duration::from_secs(1800));
    source.role.policy = Some(
        r#"{"Version":"1","Statement":[{"Effect":"Allow","Action":["cams:*"],"Resource":"*"}]}"#
            .to_owned(),
    );
    let signature = v1_signature(&source, &with_token(), &capture);
    assert_eq!(signature, "5H6OXanSGwzFeDuEi0HchGnIKt0=");
    assert_eq!(capture.parameter("Signature"), signature);
}

#[test]
fn a_policy_with_spaces_has_the_documented_signature_not_the_library_s() {
    let capture = capture("py_assume_policy_space");
    let mut source = scripted::assume_role(endpoint());
    source.role.duration = Some(Duration::from_secs(3600));
    source.role.policy = Some(r#"{"Version": "1", "Statement": []}"#.to_owned());
    let signature = v1_signature(&source, &scripted::long_lived(), &capture);
    assert_eq!(signature, "DINIn8z9+q9lntcDrxmMWHoSu8U=");
    assert_ne!(capture.parameter("Signature"), signature);
    let request = signed(
        ASSUME_ROLE,
        "sts.aliyuncs.com",
        &assume_role(&source),
        &scripted::long_lived(),
        &DateAndNonce {
            date: "2026-11-29T04:12:19Z".to_owned(),
            nonce: "n".to_owned(),
        },
    );
    let query = request.uri().query().unwrap();
    assert!(
        query.contains("Policy=%7B%22Version%22%3A%20%221%22%2C%20%22Statement"),
        "{query}"
    );
}

/// The signature of version 3 over our headers and those that only the library signs.
fn v3_signature(
    action: &str,
    pairs: &Pairs<'_>,
    credentials: &Credentials,
    capture: &Capture,
) -> String {
    let stamp = capture.stamp();
    let body_hash = v3::hash(b"");
    let host = &capture.headers["host"];
    let mut headers = signed_headers(action, host, &body_hash, credentials, &stamp);
    for name in ["accept", "user-agent", "x-acs-credentials-provider"] {
        headers.push((name, &capture.headers[name]));
    }
    headers.sort_unstable();
    let authorization = Signable {
        method: &capture.method,
        query: borrowed(pairs).collect(),
        headers: headers
            .iter()
            .map(|(name, value)| (*name, value.as_bytes()))
            .collect(),
        body_hash: &body_hash,
    }
    .authorization(credentials.access_key_id.as_str(), &credentials.secret);
    assert_eq!(authorization, capture.headers["authorization"]);
    authorization
        .rsplit_once("Signature=")
        .unwrap()
        .1
        .to_owned()
}

#[test]
fn assume_role_with_a_session_has_the_v3_signature_of_the_sts_sdk() {
    let mut source = scripted::assume_role(endpoint());
    source.role.session_name = "hop2".to_owned();
    let signature = v3_signature(
        ASSUME_ROLE,
        &assume_role(&source),
        &with_token(),
        &capture("py_sts_sdk_assume_role_v3_sts"),
    );
    assert_eq!(
        signature,
        "70b2416a1e62ba76cbe27a0d57a2f5b1ebcad54a9f8a021010d81de0161f9fbd"
    );
}

#[test]
fn a_policy_with_spaces_and_the_caller_s_identity_have_the_v3_signatures_of_the_sts_sdk() {
    let mut source = scripted::assume_role(endpoint());
    source.external_id = Some("abc/1=2:3@x".to_owned());
    source.role.duration = Some(Duration::from_secs(3600));
    source.role.policy = Some(r#"{"Version": "1", "Statement": []}"#.to_owned());
    let signature = v3_signature(
        ASSUME_ROLE,
        &assume_role(&source),
        &scripted::long_lived(),
        &capture("py_sts_sdk_assume_role_v3"),
    );
    assert_eq!(
        signature,
        "872d2404fdebc5dade92b867dc2258f46ae83a75caef7e198cd3d41721624615"
    );
    v3_signature(
        GET_CALLER_IDENTITY,
        &Pairs::new(),
        &scripted::long_lived(),
        &capture("py_sts_sdk_get_caller_identity_v3"),
    );
}

fn date(ahead: i64) -> String {
    let by = Duration::from_secs(ahead.unsigned_abs());
    let now = SystemTime::now();
    let time = if ahead < 0 { now - by } else { now + by };
    format!("Date: {}\r\n", httpdate::fmt_http_date(time))
}

fn refused_stamp(code: &str, ahead: i64) -> String {
    answer(
        400,
        &date(ahead),
        &format!(r#"{{"Code":"{code}","RequestId":"R-1","Message":"m"}}"#),
    )
}

/// The stamp of a request in seconds from now.
fn ahead_of_now(request: &scripted::Received) -> i64 {
    let stamp = request.header("x-acs-date").map(str::to_owned);
    let stamp = stamp.unwrap_or_else(|| {
        let query = request.line.split_once('?').unwrap().1;
        let params = Params::from_query(query).unwrap();
        params.get("Timestamp").unwrap().to_owned()
    });
    let stamp = time::parse(&stamp).unwrap();
    let now = SystemTime::now();
    match stamp.duration_since(now) {
        Ok(ahead) => i64::try_from(ahead.as_secs()).unwrap(),
        Err(behind) => -i64::try_from(behind.duration().as_secs()).unwrap(),
    }
}

fn is_near(found: i64, expected: i64) -> bool {
    (expected - 60..=expected + 60).contains(&found)
}

#[tokio::test]
async fn a_refused_stamp_is_corrected_by_the_answer_s_date_and_stays_corrected() {
    for code in ["InvalidTimeStamp.Expired", "IllegalTimestamp"] {
        let session = answer(
            200,
            &date(4000),
            &sts_body(&time::format(SystemTime::now() + Duration::from_secs(7600))),
        );
        let server =
            Scripted::start_tls([refused_stamp(code, 4000), session.clone(), session]).await;
        let fetcher = scripted::fetcher(server.assume_role(), server.roots.clone());
        let credentials = scripted::long_lived();
        for _ in 0..2 {
            let obtained = fetcher.fetch(Some(&credentials)).await.ok().unwrap();
            // By STS's clock: this host would see 7600 s.
            let lifetime = obtained.lifetime.as_secs();
            assert!((3500..=3600).contains(&lifetime), "{lifetime}");
        }
        let requests = server.requests();
        let stamps: Vec<i64> = requests.iter().map(ahead_of_now).collect();
        assert_eq!(stamps.len(), 3);
        assert!(is_near(stamps[0], 0), "{stamps:?}");
        assert!(is_near(stamps[1], 4000), "{stamps:?}");
        assert!(is_near(stamps[2], 4000), "{stamps:?}");
        let nonce = |at: usize| requests[at].header("x-acs-signature-nonce").unwrap();
        assert_ne!(nonce(0), nonce(1));
    }
}

#[tokio::test]
async fn an_anonymous_request_s_stamp_is_corrected_too() {
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), "a.b.c").unwrap();
    let end = time::format(SystemTime::now());
    let server = Scripted::start_tls([
        refused_stamp("InvalidTimeStamp.Expired", -4000),
        answer(200, &date(-4000), &sts_body(&end)),
    ])
    .await;
    let fetcher = scripted::fetcher(server.oidc(token.path()), server.roots.clone());
    // The session has ended by this host's clock, and not by STS's.
    let lifetime = fetcher.fetch(None).await.ok().unwrap().lifetime.as_secs();
    assert!((3900..=4000).contains(&lifetime), "{lifetime}");
    let stamps: Vec<i64> = server.requests().iter().map(ahead_of_now).collect();
    assert!(
        is_near(stamps[0], 0) && is_near(stamps[1], -4000),
        "{stamps:?}"
    );
}

#[tokio::test]
async fn a_stamp_is_refused_twice_at_most_and_a_used_nonce_is_no_clock() {
    let credentials = scripted::long_lived();
    for (first, second, requests) in [
        // The date does not explain the refusal.
        (refused_stamp("InvalidTimeStamp.Expired", 0), None, 1),
        (
            refused_stamp("InvalidTimeStamp.Expired", 4000),
            Some(refused_stamp("InvalidTimeStamp.Expired", 4000)),
            2,
        ),
        (refused_stamp("SignatureNonceUsed", 4000), None, 1),
    ] {
        let server = Scripted::start_tls([Some(first), second].into_iter().flatten()).await;
        let fetcher = scripted::fetcher(server.assume_role(), server.roots.clone());
        let error = fetcher.fetch(Some(&credentials)).await.err().unwrap();
        assert_ne!(error.kind, FailureKind::Unreachable, "{error}");
        assert_eq!(error.status, Some(400));
        assert_eq!(server.requests().len(), requests);
    }
}

#[tokio::test]
async fn the_caller_s_identity_is_asked_with_the_credentials() {
    let body = r#"{"IdentityType":"AssumedRoleUser","AccountId":"123456789012","RequestId":"R","PrincipalId":"p","Arn":"acs:ram::123456789012:assumed-role/flowgate/flowgate","RoleId":"r"}"#;
    let server = Scripted::start_tls([scripted::plain(200, body)]).await;
    let endpoint = server.sts();
    let sts = Sts {
        endpoint: &endpoint,
        roots: &Roots::new(server.roots.clone()),
        clock: &UpstreamClock::new("sts", true, Instant::now()),
        deadline: Instant::now() + Duration::from_secs(60),
    };
    let identity = sts.caller_identity(&with_token()).await.unwrap();
    assert_eq!(
        (&*identity.arn, &*identity.account),
        (
            "acs:ram::123456789012:assumed-role/flowgate/flowgate",
            "123456789012"
        )
    );
    let request = &server.requests()[0];
    assert_eq!(request.line, "POST /");
    assert_eq!(request.header("x-acs-action"), Some(GET_CALLER_IDENTITY));
    assert_eq!(
        request.header("x-acs-security-token"),
        Some("test-sts-token/with+special=chars==")
    );
    assert_eq!(request.header("host"), Some(&*server.address.to_string()));
}
