//! Version 1 calls with the signature in the form, and the requests that other SDKs send according
//! to their source code (`tests/data/handwritten`).

use super::call::{Call, v1, v3};
use super::*;
use Kind::{BadRequest, IncompleteSignature, NonceUsed, SignatureDoesNotMatch, TooLarge};

const FORM: &str = "application/x-www-form-urlencoded";

fn handwritten(name: &str) -> Capture {
    capture::load(&format!("../handwritten/{name}.http"))
}

/// A call with all parameters in the form.
fn in_form(params: &[(&str, &str)], edit: impl FnOnce(&mut Call)) -> Capture {
    moved(v1(params, edit), |_| true)
}

/// Moves parameters from the query to the form.
fn moved(mut capture: Capture, is_moved: impl Fn(&str) -> bool) -> Capture {
    let (form, query): (Vec<_>, Vec<_>) = capture
        .query()
        .split('&')
        .map(str::to_owned)
        .partition(|pair| is_moved(pair.split('=').next().unwrap()));
    capture.target = format!("/?{}", query.join("&"));
    let body = String::from_utf8(capture.body.clone()).unwrap();
    let body = Some(body).filter(|body| !body.is_empty()).into_iter();
    capture.body = body.chain(form).collect::<Vec<_>>().join("&").into_bytes();
    capture.set("content-type", FORM);
    capture
}

fn is_signature(name: &str) -> bool {
    name.starts_with("Signature") || ["AccessKeyId", "Timestamp"].contains(&name)
}

#[track_caller]
fn refused(capture: &Capture, kind: Kind, why: &str) {
    let refusal = Gate::new().refuses(capture);
    assert_eq!(refusal.0, kind, "{}", refusal.1);
    assert!(refusal.1.contains(why), "{}", refusal.1);
}

#[test]
fn a_call_of_every_sdk_is_identified_and_sent_with_its_meaning() {
    for (name, is_in_head, is_xml) in [
        ("popcore_get", true, false),
        ("popcore_post", false, false),
        ("php_post", false, false),
        ("ruby_post", false, false),
        ("csharp_get", true, true),
        ("cpp_post", true, false),
        ("split_post", false, true),
        ("no_format_post", false, true),
    ] {
        let capture = handwritten(name);
        let gate = Gate::new();
        assert_eq!(gate.is_in_head(&capture), is_in_head, "{name}");
        let parts = Request::try_from(&capture).unwrap().into_parts().0;
        assert_eq!(wants_xml(&parts, &capture.body), is_xml, "{name}");
        let caller = gate
            .ask(&capture)
            .unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
        assert_eq!(caller.action().as_str(), "CreateFlow", "{name}");
        assert_eq!(
            caller.params().get("FlowName"),
            Some("a b+c~*'(é)"),
            "{name}"
        );
        let sent = gate.send(caller);
        assert_eq!(sent.read(), capture.read(), "{name}");
        for own in ["AccessKeyId", "Signature", "SignatureNonce", "Timestamp"] {
            let is_in_form = sent.form().contains(&format!("{own}="));
            assert!(!is_in_form && sent.query().contains(own), "{name}: {own}");
        }
        // A nonce is good for one call, wherever it is.
        assert_eq!(gate.refuses(&capture).0, NonceUsed, "{name}");
    }
}

#[test]
fn a_call_of_every_sdk_is_relayed_byte_for_byte() {
    for name in [
        "popcore_get",
        "popcore_post",
        "php_post",
        "ruby_post",
        "csharp_get",
        "cpp_post",
        "split_post",
        "no_format_post",
    ] {
        let capture = handwritten(name);
        let gate = Gate::bare(&[("FLOWGATE_UNKNOWN_KEYS", "relay")]);
        let caller = gate
            .ask(&capture)
            .unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
        assert_eq!(
            caller.params().get("FlowName"),
            Some("a b+c~*'(é)"),
            "{name}"
        );
        let sent = gate.send(caller);
        assert_eq!(
            (sent.query(), &sent.body, sent.header("host")),
            (capture.query(), &capture.body, Some(UPSTREAM)),
            "{name}"
        );
        let has_acs_header = sent
            .headers
            .iter()
            .any(|(header, _)| header.starts_with("x-acs-"));
        assert!(!has_acs_header, "{name}");
    }
}

#[test]
fn any_division_between_query_and_form_is_the_same_call() {
    let whole = || v1(&[("CustSpaceId", "space-1")], |_| ());
    let expected = whole().read();
    let divisions: [fn(&str) -> bool; 5] = [
        |_| true,
        is_signature,
        |name| !is_signature(name),
        |name| name == "Signature",
        |name| ["Action", "Format"].contains(&name),
    ];
    for is_moved in divisions {
        let gate = Gate::new();
        let sent = gate.send(gate.ask(&moved(whole(), is_moved)).unwrap());
        assert_eq!(sent.read(), expected);
    }
}

#[test]
fn a_parameter_in_query_and_form_is_refused() {
    for name in [
        "AccessKeyId",
        "accesskeyid",
        "Action",
        "Signature",
        "FlowName",
    ] {
        let mut capture = in_form(&[], |_| ());
        capture.target = format!("/?{name}=x");
        refused(&capture, BadRequest, "twice");
    }
    let mut twice = in_form(&[], |_| ());
    twice.body.extend(b"&flowname=b");
    refused(&twice, BadRequest, "twice");
    let mut spelt = in_form(&[("Timestamp", "")], |_| ());
    spelt.body.extend(b"&timestamp=2026-11-24T02:59:00Z");
    refused(&spelt, BadRequest, "another case");
    let mut like_header = in_form(&[], |_| ());
    like_header.body.extend(b"&x-acs-action=DeleteFlow");
    refused(&like_header, BadRequest, "name of an x-acs header");
    let mut broken = in_form(&[], |_| ());
    broken.body.extend(b"&a=%zz");
    refused(&broken, BadRequest, "hexadecimal");
}

#[test]
fn a_form_is_verified_like_a_query() {
    let mut changed = in_form(&[], |_| ());
    changed.body = String::from_utf8(changed.body)
        .unwrap()
        .replace("FlowName=a", "FlowName=b")
        .into_bytes();
    refused(
        &changed,
        SignatureDoesNotMatch,
        "changed after it was signed",
    );
    refused(
        &in_form(&[], |call| call.secret = "wrong-secret"),
        SignatureDoesNotMatch,
        "secret is wrong",
    );
    refused(
        &in_form(&[], |call| call.key = "LTAI-foreign"),
        Kind::UnknownAccessKey,
        "not found",
    );
    for (name, value, kind, why) in [
        (
            "Timestamp",
            "2026-11-24T02:43:59Z",
            Kind::TimestampExpired,
            "15 minutes",
        ),
        (
            "Timestamp",
            "2026-11-24 02:59:00",
            Kind::TimestampFormat,
            "not well formatted",
        ),
        (
            "SignatureMethod",
            "HMAC-SHA256",
            IncompleteSignature,
            "HMAC-SHA1",
        ),
        (
            "SignatureVersion",
            "2.0",
            IncompleteSignature,
            "SignatureVersion",
        ),
        ("SignatureNonce", "", IncompleteSignature, "SignatureNonce"),
        ("AccessKeyId", "", IncompleteSignature, "AccessKeyId"),
        ("Action", "createFlow", BadRequest, "another case"),
        ("Version", "2019-01-01", BadRequest, "not 2020-06-06"),
        ("Format", "YAML", BadRequest, "neither JSON nor XML"),
        ("BearerToken", "t", IncompleteSignature, "bearer"),
        (
            "SignatureType",
            "PRIVATEKEY",
            IncompleteSignature,
            "HMAC-SHA1",
        ),
    ] {
        refused(&in_form(&[(name, value)], |_| ()), kind, why);
    }
}

#[test]
fn optional_parameters_of_the_signature_may_be_in_the_form_alone() {
    let apart = |name: &'static str, value: &'static str| {
        moved(v1(&[(name, value)], |_| ()), move |moved| moved == name)
    };
    let gate = Gate::new();
    for (name, value) in [("SecurityToken", "token"), ("Format", "XML")] {
        let capture = apart(name, value);
        assert!(gate.is_in_head(&capture), "{name}");
        let gate = Gate::new();
        let sent = gate.send(gate.ask(&capture).unwrap());
        assert_eq!(sent.read(), capture.read(), "{name}");
    }
    let mut empty = apart("FlowName", "a");
    let value = format!("{}&SignatureType=", String::from_utf8(empty.body).unwrap());
    empty.body = value.into_bytes();
    refused(&empty, SignatureDoesNotMatch, "changed after it was signed");
    refused(
        &apart("SignatureType", "PRIVATEKEY"),
        IncompleteSignature,
        "HMAC-SHA1",
    );
    refused(&apart("BearerToken", "t"), IncompleteSignature, "bearer");
    refused(&apart("Format", "YAML"), BadRequest, "neither JSON nor XML");
}

#[test]
fn what_is_not_such_a_form_says_so() {
    let all = in_form(&[], |_| ());
    for kind in [
        "multipart/form-data; boundary=x",
        "application/json",
        "text/plain",
        "application/x-www-form-urlencoded; charset=gbk",
    ] {
        let mut typed = all.clone();
        typed.set("content-type", kind);
        refused(
            &typed,
            IncompleteSignature,
            "application/x-www-form-urlencoded form",
        );
        let mut typed = v1(&[], |call| call.body = "a=1".into());
        typed.set("content-type", kind);
        refused(&typed, BadRequest, "application/x-www-form-urlencoded");
    }
    for kind in [
        "Application/X-WWW-Form-Urlencoded",
        "application/x-www-form-urlencoded;charset=UTF-8",
        "application/x-www-form-urlencoded; charset=\"utf-8\"",
    ] {
        let mut typed = all.clone();
        typed.set("content-type", kind);
        Gate::new().ask(&typed).unwrap();
    }
    let mut get = all.clone();
    get.method = "GET".into();
    refused(&get, IncompleteSignature, "not signed");
    let mut bare = all;
    bare.body.clear();
    refused(&bare, IncompleteSignature, "not signed");
}

#[test]
fn the_form_of_an_unknown_caller_is_limited_to_64_kib() {
    let large = in_form(&[], |call| {
        call.form(&format!("Remark={}", "x".repeat(64 << 10)));
    });
    refused(&large, TooLarge, "too large");
    assert_eq!(max_unproven_body(1 << 20), 64 << 10);
    assert_eq!(max_unproven_body(100), 100);
}

#[test]
fn a_version_3_call_never_waits_for_its_form() {
    let both = v3(|call| call.form("AccessKeyId=x&Signature=y"));
    assert!(Gate::new().is_in_head(&both));
    refused(&both, BadRequest, "both a version 3 Authorization header");
}

#[test]
fn errors_are_xml_for_version_1_unless_format_asks_for_something_else() {
    let wants = |capture: &Capture, body: &[u8]| {
        wants_xml(&Request::try_from(capture).unwrap().into_parts().0, body)
    };
    for (format, is_xml) in [
        (None, true),
        (Some("XML"), true),
        (Some("xml"), true),
        (Some(""), true),
        (Some("JSON"), false),
        (Some("json"), false),
        (Some("YAML"), false),
    ] {
        let mut in_query = v1(&[("Format", "")], |_| ());
        let mut in_form = moved(in_query.clone(), |_| true);
        if let Some(format) = format {
            in_query.target.push_str(&format!("&Format={format}"));
            in_form.body.extend(format!("&Format={format}").bytes());
        }
        assert_eq!(wants(&in_query, b""), is_xml, "{format:?}");
        assert_eq!(wants(&in_form, &in_form.body), is_xml, "{format:?}");
        assert!(!wants(&in_form, b""), "unknown before the form is read");
    }
    let escaped = |target: &str| {
        let mut call = v1(&[], |_| ());
        call.target = target.to_owned();
        wants(&call, b"")
    };
    assert!(escaped("/?%41ction=CreateFlow"));
    assert!(!escaped("/?Action=CreateFlow&F%6Frmat=%4ason"));
    assert!(escaped("/?Action=CreateFlow&F%6frmat=%58ml"));
    assert!(!escaped("/?FlowName=a") && !escaped("/"));
    assert!(!wants(
        &v3(|call| call.query = "Format=XML".into()),
        b"Action=x"
    ));
}
