//! Which calls of a managed account are accepted, and why the others are refused.

use super::call::{Call, v1, v3};
use super::*;
use Kind::{
    BadRequest, Connect, ForeignHost, IncompleteSignature, NonceUsed, SignatureDoesNotMatch,
    SignedHostMismatch, TimestampExpired, TimestampFormat, TooLarge, UnknownAccessKey,
};

/// Asserts the kind of the refusal, and that its message contains `why`.
#[track_caller]
fn refused(capture: &Capture, kind: Kind, why: &str) {
    let refusal = Gate::new().refuses(capture);
    assert_eq!(refusal.0, kind, "{}", refusal.1);
    assert!(refusal.1.contains(why), "{}", refusal.1);
}

#[track_caller]
fn accepted(capture: &Capture) -> Capture {
    let gate = Gate::new();
    gate.send(gate.ask(capture).unwrap())
}

fn with(mut capture: Capture, edit: impl FnOnce(&mut Capture)) -> Capture {
    edit(&mut capture);
    capture
}

fn plain_v1() -> Capture {
    v1(&[], |_| ())
}

fn plain_v3() -> Capture {
    v3(|_| ())
}

#[test]
fn a_parameter_name_that_occurs_twice_is_refused() {
    // The string to sign of version 1 would be the same with a second value in the query.
    let own = v1(&[], |call| call.form("CustSpaceId=own"));
    refused(
        &with(own, |call| call.target.push_str("&custspaceid=victim")),
        BadRequest,
        "twice",
    );
    refused(
        &v3(|call| call.query = "a=1&A=1".into()),
        BadRequest,
        "twice",
    );
    refused(&v3(|call| call.form("flowname=b")), BadRequest, "twice");
}

#[test]
fn a_version_1_body_is_a_form_or_empty() {
    refused(&v1(&[], |call| call.json("{}")), BadRequest, "not a form");
    refused(
        &v1(&[], |call| call.body = "a=1".into()),
        BadRequest,
        "not a form",
    );
}

#[test]
fn a_get_request_with_a_body_is_refused() {
    for mut call in [plain_v1(), plain_v3()] {
        call.method = "GET".into();
        call.body = b"a=1".to_vec();
        assert_eq!(
            Gate::new().ask(&call).err().unwrap().kind,
            if call.is_v3() {
                SignatureDoesNotMatch
            } else {
                TooLarge
            }
        );
    }
}

#[test]
fn version_3_must_sign_every_header_that_cams_evaluates() {
    for name in [
        "host",
        "x-acs-action",
        "x-acs-version",
        "x-acs-date",
        "x-acs-signature-nonce",
        "x-acs-content-sha256",
    ] {
        refused(
            &v3(|call| call.unsigned.push(name)),
            IncompleteSignature,
            name,
        );
    }
    for name in ["x-acs-version", "x-acs-date", "x-acs-signature-nonce"] {
        refused(&v3(|call| call.unset(name)), IncompleteSignature, name);
    }
}

/// Version 3 is an option of these SDKs; their default is version 1. The old one also has
/// `Signature` before `SignedHeaders`.
#[test]
fn version_3_of_two_java_sdks_is_refused_because_it_leaves_the_host_unsigned() {
    for (file, why) in [
        ("javaasync_v3_unsigned_host.http", "must contain host"),
        ("javaold_v3_unsigned_host.http", "to the letter"),
    ] {
        refused(&capture::load(file), IncompleteSignature, why);
    }
}

#[test]
fn an_empty_host_of_version_3_is_named() {
    refused(
        &v3(|call| call.set("host", "")),
        SignedHostMismatch,
        "The Host header is empty",
    );
}

#[test]
fn each_signed_header_is_present_once_and_end_to_end() {
    let custom = || v3(|call| call.set("x-custom", "1"));
    accepted(&custom());
    refused(
        &with(custom(), |call| call.add("x-custom", "1")),
        BadRequest,
        "occurs twice",
    );
    refused(
        &with(custom(), |call| {
            call.headers.retain(|(name, _)| name != "x-custom")
        }),
        BadRequest,
        "missing",
    );
    refused(
        &with(custom(), |call| call.add("connection", "close, X-Custom")),
        BadRequest,
        "hop-by-hop",
    );
    for name in [
        "connection",
        "te",
        "proxy-authorization",
        "keep-alive",
        "expect",
    ] {
        refused(&v3(|call| call.set(name, "x")), BadRequest, "hop-by-hop");
    }
}

#[test]
fn unsigned_acs_headers_are_refused_and_unknown_ones_dropped() {
    refused(
        &with(plain_v3(), |call| call.add("x-acs-source-ip", "1.2.3.4")),
        IncompleteSignature,
        "x-acs-source-ip",
    );
    let foreign = [
        "x-acs-source-ip",
        "x-acs-secure-transport",
        "x-acs-proxy-x",
        "x-acs-caller-uid",
        "x-acs-parent-id",
    ];
    let own = ["x-acs-security-token", "x-acs-retry-attempts", "x-custom"];
    let tokens = ["x-acs-bearer-token", "x-acs-zero-trust-idtoken"];
    let set =
        |call: &mut Call, names: &[&str]| names.iter().for_each(|name| call.set(name, "sentinel"));
    let named = [&foreign[..], &own].concat();
    let signed = v3(|call| set(call, &[&named[..], &tokens].concat()));
    let unsigned = v1(&[("SecurityToken", "sentinel")], |call| set(call, &named));
    for sent in [accepted(&signed), accepted(&unsigned)] {
        assert!(
            sent.headers.iter().all(|(_, value)| value != b"sentinel")
                && !sent.target.contains("sentinel")
        );
        assert!(
            named
                .iter()
                .chain(&tokens)
                .all(|name| sent.header(name).is_none()),
            "{sent:?}"
        );
    }
    for name in tokens {
        let sent = accepted(&v1(&[], |call| set(call, &[name])));
        assert!(sent.header(name).is_none(), "{sent:?}");
        let alone = with(plain_v3(), |call| {
            call.headers.retain(|(name, _)| name != "authorization");
            call.add(name, "sentinel");
        });
        refused(&alone, IncompleteSignature, "bearer");
    }
}

#[test]
fn parameters_that_name_another_caller_are_dropped() {
    let query = [("SourceIp", "1.2.3.4"), ("secureTransport", "true")];
    let foreign = v3(|call| call.query = "FlowName=a&sourceip=1.2.3.4&SecureTransport=true".into());
    for sent in [accepted(&foreign), accepted(&v1(&query, |_| ()))] {
        assert_eq!(
            sent.read().params.into_keys().collect::<Vec<_>>(),
            ["FlowName"]
        );
    }
    refused(
        &v3(|call| call.query = "X-Acs-Action=DeleteFlow".into()),
        BadRequest,
        "name of an x-acs header",
    );
    for form in [
        v3(|call| call.form("X-Acs-Action=DeleteFlow")),
        v1(&[], |call| call.form("x-acs-caller-uid=1")),
    ] {
        refused(&form, BadRequest, "name of an x-acs header");
    }
    for form in [
        v3(|call| call.form("Name=a&sourceip=1.2.3.4")),
        v1(&[], |call| call.form("Name=a&SecureTransport=1")),
    ] {
        let params = accepted(&form).read().params;
        assert!(
            params.contains_key("Name")
                && !params
                    .into_keys()
                    .any(|name| name.to_lowercase().starts_with('s'))
        );
    }
}

#[test]
fn a_request_with_two_signature_schemes_is_refused() {
    for name in [
        "Action",
        "action",
        "Version",
        "Signature",
        "AccessKeyId",
        "SignatureType",
        "Format",
        "BearerToken",
    ] {
        refused(
            &v3(|call| call.query = format!("{name}=x")),
            BadRequest,
            "both a version 3 Authorization header",
        );
    }
    refused(
        &v3(|call| call.form("Action=x")),
        BadRequest,
        "both a version 3 Authorization header",
    );
    let two = with(plain_v3(), |call| {
        call.add("Authorization", "ACS3-HMAC-SHA256 x")
    });
    refused(&two, BadRequest, "authorization occurs twice");
}

#[test]
fn an_ambiguous_action_is_refused() {
    let action = |action: &'static str| {
        [
            v3(move |call| call.set("x-acs-action", action)),
            v1(&[("Action", action)], |_| ()),
        ]
    };
    for capture in action("createFlow") {
        refused(&capture, BadRequest, "another case");
    }
    for name in ["Create.Flow", "Create Flow", "é"] {
        refused(
            &action(name)[1],
            BadRequest,
            "1 to 64 ASCII letters and digits",
        );
    }
    for capture in action("Unheard0f") {
        assert_eq!(
            Gate::new().classify(&capture).unwrap().action.as_str(),
            "Unheard0f"
        );
    }
    refused(
        &v3(|call| call.unset("x-acs-action")),
        BadRequest,
        "mandatory Action is missing",
    );
    refused(
        &v1(&[("Action", "")], |_| ()),
        BadRequest,
        "mandatory Action is missing",
    );
    refused(&v1(&[("action", "x")], |_| ()), BadRequest, "twice");
    refused(
        &v1(&[("Action", ""), ("action", "CreateFlow")], |_| ()),
        BadRequest,
        "another case",
    );
}

#[test]
fn no_acs_header_has_a_meaning_for_version_1() {
    for (name, value) in [
        ("x-acs-action", "CreateFlow"),
        ("x-acs-action", "createFlow"),
        ("x-acs-action", "DeleteFlow"),
        ("x-acs-version", "2019-01-01"),
        ("x-acs-date", "yesterday"),
        ("x-acs-accesskey-id", "LTAI-other"),
        ("x-acs-content-sha256", "x"),
    ] {
        let sent = accepted(&v1(&[], |call| call.set(name, value)));
        assert_eq!(sent.read(), plain_v1().read(), "{name}");
        assert_eq!(sent.header("x-acs-action"), Some("CreateFlow"));
        assert_eq!(sent.header("x-acs-version"), Some("2020-06-06"));
    }
    let twice = with(plain_v1(), |call| {
        call.add("x-acs-action", "a");
        call.add("x-acs-action", "b");
    });
    assert_eq!(accepted(&twice).read(), plain_v1().read());
}

#[test]
fn another_api_version_is_refused() {
    refused(
        &v1(&[("Version", "2019-01-01")], |_| ()),
        BadRequest,
        "not 2020-06-06",
    );
    refused(
        &v3(|call| call.set("x-acs-version", "2019-01-01")),
        BadRequest,
        "not 2020-06-06",
    );
}

#[test]
fn other_methods_and_paths_are_refused() {
    for method in ["PUT", "DELETE", "HEAD", "OPTIONS", "post", "PATCH"] {
        refused(
            &with(plain_v3(), |call| call.method = method.into()),
            BadRequest,
            "neither GET nor POST",
        );
    }
    let at = |target: &str| {
        with(plain_v3(), |call| {
            call.target = format!("{target}?{}", call.query())
        })
    };
    assert_eq!(
        accepted(&at("//")).target,
        "/?FlowName=a&CustSpaceId=space-1"
    );
    for target in ["/prefix/", "///", "//evil/", "/./", "/%2F"] {
        refused(&at(target), BadRequest, "the path is not '/'");
    }
    refused(
        &with(plain_v3(), |call| call.target = "*".into()),
        BadRequest,
        "the path is not '/'",
    );
    refused(
        &with(plain_v3(), |call| call.target = "127.0.0.1:8080".into()),
        BadRequest,
        "neither a path nor a plain http URL",
    );
}

#[test]
fn a_version_3_body_needs_a_signed_and_supported_content_type() {
    let typed = |value: &'static str| {
        v3(move |call| {
            call.json("{\"a\":1}");
            call.set("content-type", value);
        })
    };
    for value in ["application/json", "Application/JSON;charset=UTF-8"] {
        let sent = accepted(&typed(value));
        assert_eq!(
            sent.header("content-type"),
            Some("application/json; charset=utf-8")
        );
        assert_eq!(sent.body, b"{\"a\":1}");
    }
    for value in [
        "text/json",
        "application/json; charset=latin1",
        "application/json; charset=utf-8; x=y",
        "",
    ] {
        refused(&typed(value), BadRequest, "neither a form nor JSON");
    }
    let unsigned = v3(|call| {
        call.json("{}");
        call.unsigned.push("content-type");
    });
    refused(&unsigned, IncompleteSignature, "content-type");
    refused(
        &v3(|call| call.body = "a=1".into()),
        IncompleteSignature,
        "content-type",
    );
    let empty = with(plain_v3(), |call| {
        call.add("content-type", "application/octet-stream")
    });
    assert_eq!(accepted(&empty).header("content-type"), None);
    refused(
        &v3(|call| call.set("content-encoding", "gzip")),
        BadRequest,
        "Content-Encoding",
    );
}

#[test]
fn a_body_that_does_not_match_its_hash_is_refused() {
    let form = || v3(|call| call.form("a=1"));
    accepted(&form());
    refused(
        &with(form(), |call| call.body = b"a=2".to_vec()),
        SignatureDoesNotMatch,
        "the body does not match",
    );
    refused(
        &with(form(), |call| call.body = vec![]),
        SignatureDoesNotMatch,
        "the body does not match",
    );
    let hash = "E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855";
    refused(
        &v3(|call| call.set("x-acs-content-sha256", hash)),
        BadRequest,
        "64 lower-case",
    );
    refused(
        &v3(|call| call.json("{\"a\":1,\"\\u0061\":2}")),
        BadRequest,
        "JSON",
    );
    refused(&v3(|call| call.json("{} {}")), BadRequest, "JSON");
}

#[test]
fn invalid_percent_encoding_is_refused() {
    let raw =
        |query: &'static str| with(plain_v3(), move |call| call.target = format!("/?{query}"));
    for (query, why) in [
        ("a=%zz", "hexadecimal"),
        ("a=%ff", "UTF-8"),
        ("a=%00", "NUL"),
        ("a", "'='"),
        ("é=1", "name"),
    ] {
        refused(&raw(query), BadRequest, why);
    }
}

#[test]
fn a_managed_key_is_never_relayed() {
    let gate = Gate::with(&[("FLOWGATE_UNKNOWN_KEYS", "relay")]);
    let wrong = |call: &mut Call| call.secret = "wrong-secret";
    assert_eq!(gate.refuses(&v3(wrong)).0, SignatureDoesNotMatch);
    assert_eq!(gate.refuses(&v1(&[], wrong)).0, SignatureDoesNotMatch);
    let rsa = v1(
        &[
            ("SignatureMethod", "SHA256withRSA"),
            ("SignatureType", "PRIVATEKEY"),
        ],
        |_| (),
    );
    for capture in [
        capture::load("py5_d_sm3.http"),
        capture::load("py5_d_rsa.http"),
        rsa,
    ] {
        let (kind, message) = gate.refuses(&capture);
        assert_eq!(kind, IncompleteSignature);
        assert!(
            message.contains("ACS3-HMAC-SHA256") && message.contains("HMAC-SHA1"),
            "{message}"
        );
    }
}

#[test]
fn a_signature_mismatch_reveals_nothing_and_keeps_the_colon_that_sdks_split_at() {
    for capture in [
        v3(|call| call.secret = "wrong-secret"),
        v1(&[], |call| call.secret = "wrong-secret"),
    ] {
        let (kind, message) = Gate::new().refuses(&capture);
        assert_eq!(kind, SignatureDoesNotMatch);
        assert!(
            message.contains(':') && !message.contains("CreateFlow") && !message.contains(KEY),
            "{message}"
        );
    }
}

#[test]
fn a_refused_call_does_not_use_up_its_nonce() {
    let gate = Gate::new();
    assert_eq!(
        gate.refuses(&v3(|call| call.secret = "wrong-secret")).0,
        SignatureDoesNotMatch
    );
    assert_eq!(gate.refuses(&v3(|call| call.json("{"))).0, BadRequest);
    assert_eq!(gate.refuses(&v1(&[], |call| call.json("{}"))).0, BadRequest);
    gate.ask(&plain_v3()).unwrap();
    assert_eq!(gate.refuses(&plain_v3()).0, NonceUsed);
    assert_eq!(gate.refuses(&plain_v1()).0, NonceUsed);
}

#[test]
fn timestamps_must_be_within_15_minutes() {
    for (stamp, is_fresh) in [
        ("2026-11-24T02:44:00Z", true),
        ("2026-11-24T02:43:59Z", false),
        ("2026-11-24T03:14:00Z", true),
        ("2026-11-24T03:14:01Z", false),
    ] {
        for capture in [
            v3(|call| call.set("x-acs-date", stamp)),
            v1(&[("Timestamp", stamp)], |_| ()),
        ] {
            match is_fresh {
                true => drop(accepted(&capture)),
                false => refused(&capture, TimestampExpired, "15 minutes"),
            }
        }
    }
    for stamp in [
        "Tue, 24 Nov 2026 02:59:00 GMT",
        "2026-11-24 02:59:00",
        "2026-11-24T02:59:00+00:00",
        "1795489140",
    ] {
        for capture in [
            v3(|call| call.set("x-acs-date", stamp)),
            v1(&[("Timestamp", stamp)], |_| ()),
        ] {
            refused(&capture, TimestampFormat, "2026-11-24T02:54:06Z");
        }
    }
}

#[test]
fn a_timestamp_with_a_fraction_is_taken_and_not_sent_on() {
    for stamp in [
        "2026-11-24T02:58:10.973Z",
        "2026-11-24T02:58:10.9Z",
        "2026-11-24T02:58:10.973123456Z",
    ] {
        for capture in [
            v3(|call| call.set("x-acs-date", stamp)),
            v1(&[("Timestamp", stamp)], |_| ()),
        ] {
            let sent = accepted(&capture);
            let all = format!("{sent:?}");
            assert!(!all.contains("10.9") && !all.contains("10%2E9"), "{all}");
        }
    }
    refused(
        &v1(&[("Timestamp", "2026-11-24T02:43:59.999Z")], |_| ()),
        TimestampExpired,
        "15 minutes",
    );
}

#[test]
fn an_unverified_body_is_limited_to_64_kib() {
    let max = |capture: &Capture| {
        let claim = Gate::new().claim(capture).unwrap();
        (claim.is_verified(), claim.max_body(1 << 20))
    };
    assert_eq!(max(&plain_v3()), (true, 1 << 20));
    assert_eq!(max(&plain_v1()), (false, 64 << 10));
    assert_eq!(max(&v3(|call| call.method = "GET")), (true, 0));
    assert_eq!(Gate::new().claim(&plain_v1()).unwrap().max_body(100), 100);
}

#[test]
fn requests_from_browsers_are_refused() {
    for name in ["origin", "cookie", "sec-fetch-site"] {
        refused(
            &with(plain_v3(), |call| call.add(name, "x")),
            BadRequest,
            "browsers",
        );
    }
}

#[test]
fn ambiguous_framing_and_host_headers_are_refused() {
    accepted(&with(plain_v3(), |call| {
        call.add("transfer-encoding", "chunked")
    }));
    for value in ["gzip, chunked", "identity", "chunked, chunked", "xchunked"] {
        refused(
            &with(plain_v3(), |call| call.add("transfer-encoding", value)),
            BadRequest,
            "Transfer-Encoding",
        );
    }
    refused(
        &with(plain_v1(), |call| call.add("host", "b")),
        BadRequest,
        "host occurs twice",
    );
    refused(
        &with(plain_v1(), |call| call.headers.clear()),
        BadRequest,
        "the Host header is missing",
    );
}

#[test]
fn only_the_upstream_and_own_names_are_proxied() {
    let absolute = |scheme: &str, authority: &str, host: &'static str| {
        let call = v3(|call| call.set("host", host));
        let target = format!("{scheme}://{authority}/?{}", call.query());
        with(call, |call| call.target = target)
    };
    for host in [
        UPSTREAM,
        "127.0.0.1:8080",
        "localhost:8080",
        "gate.internal:81",
    ] {
        let gate = Gate::with(&[("FLOWGATE_LISTEN__NAMES", "gate.internal")]);
        gate.ask(&absolute("http", host, host)).unwrap();
    }
    for (target, host) in [
        ("cams.ap-southeast-1.aliyuncs.com:80", UPSTREAM),
        (UPSTREAM, "cams.ap-southeast-1.aliyuncs.com:80"),
        ("CAMS.ap-southeast-1.aliyuncs.com.", UPSTREAM),
        (
            "cams.ap-southeast-1.aliyuncs.com:8080",
            "Cams.ap-southeast-1.aliyuncs.com.:8080",
        ),
        ("gate.internal:80", "gate.internal"),
    ] {
        accepted(&absolute("http", target, host));
    }
    for host in [
        "127.0.0.1:8080",
        "cams.ap-southeast-1.aliyuncs.com:8080",
        "u@cams.ap-southeast-1.aliyuncs.com",
        "http://cams.ap-southeast-1.aliyuncs.com",
    ] {
        refused(
            &absolute("http", UPSTREAM, host),
            BadRequest,
            "Host header differs",
        );
    }
    refused(
        &absolute("http", "cams.ap-southeast-1.aliyuncs.com:0", UPSTREAM),
        BadRequest,
        "malformed",
    );
    for host in ["example.com", "10.0.0.1:9", "ecs.aliyuncs.com"] {
        refused(
            &absolute("http", host, host),
            ForeignHost,
            "not a general proxy",
        );
    }
    refused(
        &absolute("https", UPSTREAM, UPSTREAM),
        BadRequest,
        "plain http",
    );
    refused(
        &absolute("http", &format!("u:p@{UPSTREAM}"), UPSTREAM),
        BadRequest,
        "plain http",
    );
    refused(
        &capture::load("py5_c_connect_reject.http"),
        Connect,
        "no tunnels",
    );
}

#[test]
fn the_authorization_grammar_is_exact() {
    let is = |value: &str| Authorization::parse(value).map(|_| ());
    let hex = "0".repeat(64);
    let whole = format!("ACS3-HMAC-SHA256 Credential=a,SignedHeaders=a;b,Signature={hex}");
    assert_eq!(is(&whole), Ok(()));
    use crate::acs::v3::AuthorizationError::{Algorithm, Grammar, SignedHeaders};
    for (from, to, error) in [
        ("ACS3-HMAC-SHA256 ", "ACS3-HMAC-SHA1 ", Algorithm),
        ("ACS3-HMAC-SHA256 ", "acs3-hmac-sha256 ", Algorithm),
        ("ACS3-HMAC-SHA256 ", "ACS3-HMAC-SHA256  ", Grammar),
        ("a,S", "a, S", Grammar),
        ("Credential", "credential", Grammar),
        ("=a,", "=,", Grammar),
        ("a;b", "b;a", SignedHeaders),
        ("a;b", "a;a", SignedHeaders),
        ("a;b", "a;B", SignedHeaders),
        ("a;b", "a;b;", SignedHeaders),
        ("a;b", "", SignedHeaders),
        ("Signature=0", "Signature=A", Grammar),
        ("Signature=0", "Signature=", Grammar),
        ("Credential=a", "Credential=a,Credential=b", Grammar),
    ] {
        assert_eq!(is(&whole.replacen(from, to, 1)), Err(error), "{from} {to}");
    }
    assert_eq!(is(&format!("{whole},x=y")), Err(Grammar));
    assert_eq!(is(""), Err(Algorithm));
    accepted(&v3(|call| call.set("x-acs-accesskey-id", KEY)));
    refused(
        &v3(|call| call.set("x-acs-accesskey-id", "LTAI-other")),
        BadRequest,
        "differs from the Credential",
    );
}

#[test]
fn calls_signed_for_another_alibaba_product_are_refused() {
    let at = |host: &'static str| v3(move |call| call.set("host", host));
    for host in [
        UPSTREAM,
        "cams.ap-southeast-1.aliyuncs.com:8080",
        "cams.ap-southeast-1.aliyuncs.com:80",
        "CAMS.ap-southeast-1.aliyuncs.com.:443",
        "gate.internal",
        "http://127.0.0.1:8080",
        "h:8080/",
        "h:8080/prefix",
        "xaliyuncs.com",
    ] {
        accepted(&at(host));
    }
    for host in [
        "ecs.aliyuncs.com",
        "ECS.aliyuncs.com:443",
        "http://ecs.aliyuncs.com/",
        "aliyuncs.com",
        "ecs.aliyuncs.com.",
        "u@cams.ap-southeast-1.aliyuncs.com.ecs.aliyuncs.com",
        "camsxap-southeast-1.aliyuncs.com",
    ] {
        refused(&at(host), SignedHostMismatch, "another of Alibaba's hosts");
    }
}

#[test]
fn the_refusal_of_an_unsupported_signature_names_the_supported_ones() {
    for file in [
        "py5_a_bearer.http",
        "node1_a_bearer.http",
        "py5_a_bearer_v2.http",
    ] {
        refused(
            &capture::load(file),
            IncompleteSignature,
            "bearer and identity tokens",
        );
    }
    refused(
        &capture::load("py5_a_anonymous.http"),
        IncompleteSignature,
        "not signed",
    );
    let basic = with(plain_v3(), |call| call.set("authorization", "Basic dTpw"));
    refused(&basic, IncompleteSignature, "ACS3-HMAC-SHA256");
    for name in [
        "AccessKeyId",
        "SignatureMethod",
        "SignatureNonce",
        "Timestamp",
    ] {
        refused(&v1(&[(name, "")], |_| ()), IncompleteSignature, name);
    }
    refused(
        &v1(&[("SignatureVersion", "2.0")], |_| ()),
        IncompleteSignature,
        "SignatureVersion",
    );
    refused(
        &v1(&[("SignatureMethod", "HMAC-SHA256")], |_| ()),
        IncompleteSignature,
        "HMAC-SHA1",
    );
}

#[test]
fn unknown_keys_are_refused_without_being_named() {
    for capture in [
        v3(|call| call.key = "LTAI-foreign"),
        v1(&[], |call| call.key = "LTAI-foreign"),
    ] {
        let (kind, message) = Gate::new().refuses(&capture);
        assert_eq!(kind, UnknownAccessKey);
        assert!(!message.contains("LTAI"), "{message}");
    }
}

#[test]
fn a_query_that_would_not_fit_an_http_target_is_refused() {
    let long = |count| format!("a={}", "'".repeat(count));
    // "a=" and three bytes for each quote.
    for (count, fits) in [(21_843, true), (21_844, false)] {
        let capture = v3(|call| call.query = long(count));
        if fits {
            assert!(Gate::new().ask(&capture).is_ok());
        } else {
            refused(&capture, TooLarge, "64 KiB");
        }
    }
    let quotes = "'".repeat(20 << 10);
    refused(&v1(&[("a", &quotes)], |_| ()), TooLarge, "56 KiB");
}

#[test]
fn an_unknown_format_is_refused() {
    refused(
        &v1(&[("Format", "YAML")], |_| ()),
        BadRequest,
        "neither JSON nor XML",
    );
}
