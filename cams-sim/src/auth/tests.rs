//! Tests of `auth`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;

use super::*;
use crate::testing::join;

fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/data")
        .join(name)
}

fn vectors() -> Vec<Value> {
    serde_json::from_slice(&std::fs::read(data("vectors.json")).unwrap()).unwrap()
}

/// The request of a capture, with a decoded chunked body.
fn capture(vector: &Value) -> Request<Bytes> {
    let bytes = std::fs::read(data("captures").join(vector["file"].as_str().unwrap())).unwrap();
    let end = bytes
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap();
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let mut lines = head.split("\r\n");
    let mut first = lines.next().unwrap().split(' ');
    let mut request = Request::builder()
        .method(first.next().unwrap())
        .uri(first.next().unwrap());
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        request = request.header(name, value);
    }
    let mut body = bytes[end + 4..].to_vec();
    if head.contains("Transfer-Encoding: chunked") {
        body = dechunk(&body);
    }
    request.body(Bytes::from(body)).unwrap()
}

fn dechunk(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|two| two == b"\r\n").unwrap();
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        body.extend(&rest[end + 2..end + 2 + size]);
        if size == 0 {
            return body;
        }
        rest = &rest[end + 2 + size + 2..];
    }
}

/// A gatekeeper with the capture's time and key.
fn gatekeeper(call: &Call) -> Gatekeeper {
    let mut key: Key = "LTAI-test-key-id-1:test-secret-1:acme".parse().unwrap();
    key.security_token
        .clone_from(&call.credential.security_token);
    let settings = Settings {
        keys: vec![key],
        strict: false,
        now: date::parse(&call.timestamp),
        ..Settings::default()
    };
    Gatekeeper::new(&settings, Instant::now())
}

fn admit(request: &Request<Bytes>) -> Result<(), String> {
    let call = Call::read(request, false).map_err(|refusal| refusal.code)?;
    gatekeeper(&call)
        .admit(&call, request, Instant::now())
        .map_err(|refusal| refusal.code)
}

fn with_query(request: &Request<Bytes>, query: &BTreeMap<String, String>) -> Request<Bytes> {
    let mut changed = request.clone();
    *changed.uri_mut() = format!("/?{}", join(query)).parse().unwrap();
    changed
}

#[test]
fn requests_of_the_sdks_are_admitted_and_decoded() {
    let mut verified = 0;
    for vector in vectors() {
        let file = vector["file"].as_str().unwrap();
        let kind = vector["kind"].as_str().unwrap();
        let request = capture(&vector);
        let expected = match kind {
            "ACS3-HMAC-SHA256" | "RPC-V1 HMAC-SHA1" => Ok(()),
            "skip" if file.contains("connect") => Err("InvalidApi.NotFound"),
            "skip" => Err("MissingAccessKeyId"),
            // With RSA the old SDK fetches a session key of its own.
            "RPC-V1 SHA256withRSA" => Err("InvalidAccessKeyId.NotFound"),
            _ => Err("InvalidSignatureMethod"),
        };
        assert_eq!(admit(&request), expected.map_err(str::to_owned), "{file}");
        if expected.is_err() {
            continue;
        }
        verified += 1;
        let call = Call::read(&request, false).unwrap();
        let text = if call.scheme == Scheme::V3 {
            let signed = &call.credential.signed_headers;
            let canonical = signature::v3_canonical_request(
                &call.method,
                &call.query,
                request.headers(),
                signed,
                request.body(),
            );
            assert_eq!(
                canonical,
                vector["canonical_request"].as_str().unwrap(),
                "{file}"
            );
            signature::v3_string_to_sign(&canonical)
        } else {
            signature::v1_string_to_sign(&call.method, &call.parameters())
        };
        assert_eq!(text, vector["string_to_sign"].as_str().unwrap(), "{file}");
    }
    assert_eq!(verified, 71);
}

#[test]
fn strict_mode_accepts_direct_calls_of_the_sdks() {
    let mut minded = Vec::new();
    for vector in vectors()
        .iter()
        .filter(|vector| vector["resigned"].is_object())
    {
        let request = capture(vector);
        let result = Call::read(&request, true).and_then(|call| {
            let mut gatekeeper = gatekeeper(&call);
            gatekeeper.strict = true;
            gatekeeper.admit(&call, &request, Instant::now())
        });
        minded.extend(
            result
                .err()
                .map(|refusal| format!("{}: {}", vector["file"].as_str().unwrap(), refusal.code)),
        );
    }
    // These were sent to a proxy.
    let to_a_proxy = [
        "py5_b_fwd_v3",
        "py5_b_fwd_v2",
        "py5_b_fwd_async",
        "go_v3_fwd",
        "go_v1_fwd",
        "goold_v1_fwd",
        "aliyuncli_v1_fwd",
        "java_v1_fwd",
        "java_v3_fwd",
        "javaasync_v1_fwd",
        "javaold_v1_fwd",
        "pyv1_b_fwd",
    ];
    // These name the action once more in a header, in another spelling.
    let with_two_actions = [
        "popcoreget_v1_ak",
        "popcoreget_v1_ak_special",
        "popcoreget_v1_sts",
        "popcorepost_v1_ak",
        "popcorepost_v1_ak_special",
        "popcorepost_v1_sts",
    ];
    let mut expected = to_a_proxy
        .map(|file| format!("{file}.http: CamsSim.AbsoluteForm"))
        .to_vec();
    expected.extend(with_two_actions.map(|file| format!("{file}.http: CamsSim.TwoActions")));
    expected.sort_unstable();
    minded.sort_unstable();
    assert_eq!(minded, expected);
}

#[test]
fn requests_that_were_signed_again_are_admitted() {
    for vector in vectors()
        .iter()
        .filter(|vector| vector["resigned"].is_object())
    {
        let mut request = capture(vector);
        let mut query = Call::read(&request, false).unwrap().query;
        for (name, value) in vector["resigned"].as_object().unwrap() {
            let value = value.as_str().unwrap();
            if query.contains_key(name) {
                query.insert(name.clone(), value.to_owned());
            } else {
                request.headers_mut().insert(
                    hyper::header::HeaderName::try_from(name).unwrap(),
                    value.parse().unwrap(),
                );
            }
        }
        assert_eq!(
            admit(&with_query(&request, &query)),
            Ok(()),
            "{}",
            vector["file"]
        );
    }
}

#[test]
fn every_tampered_copy_is_refused() {
    let mut codes: BTreeMap<String, usize> = BTreeMap::new();
    for vector in vectors()
        .iter()
        .filter(|vector| vector["resigned"].is_object())
    {
        let request = capture(vector);
        let file = vector["file"].as_str().unwrap();
        let call = Call::read(&request, false).unwrap();
        let mut copies = Vec::new();
        for name in call.query.keys() {
            for change in [Some("x"), None] {
                let mut query = call.query.clone();
                let old = query.remove(name).unwrap();
                query.extend(change.map(|added| (name.clone(), old + added)));
                copies.push((with_query(&request, &query), name.clone()));
            }
        }
        for name in &call.credential.signed_headers {
            let mut changed = request.clone();
            let value = format!("{}x", header(request.headers(), name));
            changed.headers_mut().insert(
                hyper::header::HeaderName::try_from(name).unwrap(),
                value.parse().unwrap(),
            );
            copies.push((changed, name.clone()));
        }
        if !request.body().is_empty() {
            let mut changed = request.clone();
            let mut body = request.body().to_vec();
            body[9] ^= 1;
            *changed.body_mut() = Bytes::from(body);
            copies.push((changed, "the body".to_owned()));
        }
        let mut other_method = request.clone();
        *other_method.method_mut() = if request.method() == "GET" {
            hyper::Method::POST
        } else {
            hyper::Method::GET
        };
        copies.push((other_method, "the method".to_owned()));
        for (copy, what) in copies {
            let code = admit(&copy).expect_err(&format!("{file}: {what}"));
            *codes.entry(code).or_default() += 1;
        }
    }
    let expected = [
        ("IncompleteSignature", 84),
        ("InvalidAccessKeyId.NotFound", 42),
        ("InvalidSignatureMethod", 84),
        ("InvalidTimeStamp.Format", 68),
        ("MissingAccessKeyId", 45),
        ("MissingTimestamp", 42),
        ("SignatureDoesNotMatch", 1003),
    ];
    assert_eq!(
        codes,
        expected
            .map(|(code, count)| (code.to_owned(), count))
            .into()
    );
}

#[test]
fn a_nonce_counts_once_in_31_minutes_and_per_account() {
    let start = Instant::now();
    let minute = Duration::from_secs(60);
    let mut gatekeeper = Gatekeeper::new(&Settings::default(), start);
    let mut spend = |account: &str, minutes| {
        gatekeeper
            .spend_nonce(account.to_owned(), "n", start + minute * minutes)
            .map_err(|refusal| refusal.code)
    };
    let used = Err("SignatureNonceUsed".to_owned());
    assert_eq!(
        [("a", 0), ("b", 0), ("a", 31), ("a", 32)].map(|(account, at)| spend(account, at)),
        [Ok(()), Ok(()), used, Ok(())]
    );
}
