//! The verdict on each kind of answer.

use bytes::Bytes;
use hyper::header::HeaderName;

use super::*;

const LIMITED: Context = Context {
    managed: true,
    limited: true,
};
const UNLIMITED: Context = Context {
    managed: true,
    limited: false,
};
const RELAYED: Context = Context {
    managed: false,
    limited: true,
};

const LIMIT_CONTROL: &str =
    r#"{"RequestId":"R","HostId":"h","Code":"System.LimitControl","Message":"m"}"#;
const CREATED: &str = r#"{"RequestId":"R","Message":"None","Data":{"FlowId":"1"},"Code":"OK"}"#;

fn answer(status: u16, headers: &[(&str, &str)], body: &str) -> UpstreamResponse {
    let headers = headers.iter().map(|(name, value)| {
        (
            HeaderName::from_bytes(name.as_bytes()).unwrap(),
            HeaderValue::from_str(value).unwrap(),
        )
    });
    UpstreamResponse {
        status: StatusCode::from_u16(status).unwrap(),
        headers: headers.collect(),
        body: Bytes::copy_from_slice(body.as_bytes()),
    }
}

fn verdict(status: u16, headers: &[(&str, &str)], body: &str) -> Verdict {
    judge(&answer(status, headers, body), LIMITED)
}

fn error(code: &str) -> String {
    format!(r#"{{"RequestId":"R","Code":"{code}","Message":"m"}}"#)
}

fn id() -> Option<String> {
    Some("R".to_owned())
}

fn ok() -> Verdict {
    Verdict::Ok {
        request_id: id(),
        code: "OK".to_owned(),
    }
}

fn upstream_error(code: &str) -> Verdict {
    Verdict::UpstreamError {
        code: code.to_owned(),
        request_id: id(),
    }
}

fn throttled(code: &str, source: ThrottleSource, hint: Option<u64>) -> Verdict {
    let hint = hint.map(Duration::from_millis);
    Verdict::Throttled {
        code: code.to_owned(),
        source,
        hint,
        request_id: id(),
    }
}

fn nameless(verdict: Verdict) -> Verdict {
    match verdict {
        Verdict::Ok { code, .. } => Verdict::Ok {
            request_id: None,
            code,
        },
        Verdict::UpstreamError { code, .. } => Verdict::UpstreamError {
            code,
            request_id: None,
        },
        Verdict::Throttled {
            code, source, hint, ..
        } => Verdict::Throttled {
            code,
            source,
            hint,
            request_id: None,
        },
        other => other,
    }
}

#[test]
fn a_throttle_code_counts_with_400_and_429_and_with_200_without_data() {
    use ThrottleSource::Body;
    for code in [
        "System.LimitControl",
        "Throttling",
        "Throttling.User",
        "Throttling.Api.Concurrency",
    ] {
        assert_eq!(verdict(400, &[], &error(code)), throttled(code, Body, None));
        assert_eq!(verdict(429, &[], &error(code)), throttled(code, Body, None));
        assert_eq!(verdict(200, &[], &error(code)), throttled(code, Body, None));
        for status in [201, 403, 404, 500, 503] {
            assert_eq!(
                verdict(status, &[], &error(code)),
                upstream_error(code),
                "{status}"
            );
        }
    }
    let with_data = r#"{"RequestId":"R","Code":"System.LimitControl","Data":{"FlowId":"1"}}"#;
    assert_eq!(
        verdict(200, &[], with_data),
        upstream_error("System.LimitControl")
    );
    let null_data = r#"{"RequestId":"R","Code":"System.LimitControl","Data":null}"#;
    assert_eq!(
        verdict(200, &[], null_data),
        throttled("System.LimitControl", Body, None)
    );
    let escaped = r#"{"RequestId":"R","Code":"System\u002eLimitControl"}"#;
    assert_eq!(
        verdict(400, &[], escaped),
        throttled("System.LimitControl", Body, None)
    );
    let xml = "<Error><RequestId>R</RequestId><Code>Throttling.User</Code></Error>";
    let content_type = [("content-type", "text/xml;charset=utf-8")];
    assert_eq!(
        verdict(400, &content_type, xml),
        throttled("Throttling.User", Body, None)
    );
    assert_eq!(
        judge(&answer(400, &[], LIMIT_CONTROL), RELAYED),
        throttled("System.LimitControl", Body, None)
    );
    assert_eq!(
        judge(&answer(400, &[], LIMIT_CONTROL), UNLIMITED),
        throttled("System.LimitControl", Body, None)
    );
}

#[test]
fn other_codes_are_not_a_throttle() {
    for code in [
        "isv.BUSINESS_LIMIT_CONTROL",
        "Product.Unsubscript",
        "Ram.PermissionDeny",
        "Unknown.ResourceOwnerId",
        "ThrottlingUser",
        "throttling.user",
        "system.limitcontrol",
        "System.LimitControl ",
        "Something.New",
    ] {
        assert_eq!(verdict(400, &[], &error(code)), upstream_error(code));
        assert_eq!(verdict(200, &[], &error(code)), upstream_error(code));
    }
    let echoed =
        r#"{"RequestId":"R","Data":{"FlowName":"\",\"Code\":\"System.LimitControl"},"Code":"OK"}"#;
    assert_eq!(verdict(200, &[], echoed), ok());
    let nested = r#"{"RequestId":"R","Data":{"Code":"System.LimitControl"},"Code":"OK"}"#;
    assert_eq!(verdict(200, &[], nested), ok());
    let in_message =
        r#"{"RequestId":"R","Message":"\",\"Code\":\"Throttling","Code":"MissingFlowName"}"#;
    assert_eq!(
        verdict(400, &[], in_message),
        upstream_error("MissingFlowName")
    );
}

#[test]
fn the_retry_header_means_throttled_only_with_a_4xx() {
    use ThrottleSource::{Body, Header};
    let hint = [("x-acs-retry-after", "1500")];
    assert_eq!(
        verdict(403, &hint, &error("Busy")),
        throttled("Busy", Header, Some(1500))
    );
    assert_eq!(
        verdict(400, &hint, LIMIT_CONTROL),
        throttled("System.LimitControl", Body, Some(1500))
    );
    assert_eq!(
        verdict(429, &hint, ""),
        nameless(throttled("other", Header, Some(1500)))
    );
    assert_eq!(
        verdict(429, &hint, "slow down"),
        nameless(throttled("other", Header, Some(1500)))
    );
    assert_eq!(
        verdict(503, &hint, &error("ServiceUnavailable")),
        upstream_error("ServiceUnavailable")
    );
    assert_eq!(
        verdict(503, &hint, LIMIT_CONTROL),
        upstream_error("System.LimitControl")
    );
    assert_eq!(verdict(200, &hint, CREATED), ok());
    for invalid in [
        "0",
        "-1",
        "+5",
        "1.5",
        "",
        "soon",
        "5s",
        "99999999999999999999999",
    ] {
        assert_eq!(
            verdict(403, &[("x-acs-retry-after", invalid)], &error("Busy")),
            upstream_error("Busy"),
            "{invalid}"
        );
    }
    // The standard header is only a hint; it does not make an answer a throttled one.
    assert_eq!(
        verdict(403, &[("retry-after", "2")], &error("Busy")),
        upstream_error("Busy")
    );
}

/// The hint of a throttled answer with these headers, in milliseconds.
fn hinted(headers: &[(&str, &str)]) -> Option<u64> {
    match verdict(400, headers, LIMIT_CONTROL) {
        Verdict::Throttled { hint, .. } => {
            hint.map(|hint| u64::try_from(hint.as_millis()).unwrap())
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn retry_hints_have_a_fixed_precedence() {
    let windows = ("x-ratelimit-user-api", "Limit:5,TimeLeft:1500");
    assert_eq!(hinted(&[]), None);
    assert_eq!(
        hinted(&[
            ("x-acs-retry-after", " 700 "),
            ("retry-after", "2"),
            windows
        ]),
        Some(700)
    );
    assert_eq!(
        hinted(&[("x-acs-retry-after", "0"), ("retry-after", "2"), windows]),
        Some(2000)
    );
    assert_eq!(
        hinted(&[("retry-after", "Wed, 21 Oct 2026 07:28:00 GMT"), windows]),
        Some(1500)
    );
    assert_eq!(hinted(&[("retry-after", "0"), windows]), Some(1500));
    assert_eq!(
        hinted(&[windows, ("x-ratelimit-user", "Limit:100, TimeLeft:1700 ")]),
        Some(1700)
    );
    assert_eq!(
        hinted(&[(
            "x-ratelimit-user",
            "TimeLeft,:,a:b:c,TimeLeft:x,TimeLeft:9,TimeLeft:8:1"
        )]),
        Some(9)
    );
    assert_eq!(hinted(&[("x-ratelimit-user", "Limit:5,TimeLeft:0")]), None);
    assert_eq!(
        hinted(&[("x-acs-retry-after", "100"), ("x-acs-retry-after", "300")]),
        Some(300)
    );
}

#[test]
fn an_answer_that_rejects_our_signature_is_not_passed_on() {
    for code in [
        "SignatureDoesNotMatch",
        "IncompleteSignature",
        "InvalidAccessKeyId.NotFound",
        "InvalidAccessKeyId.Inactive",
        "InvalidSecurityToken.Expired",
        "InvalidTimeStamp.Expired",
        "invalidtimestamp.format",
        "SignatureNonceUsed",
        "MissingSecurityToken",
    ] {
        let inside = Verdict::Credentials {
            code: code.to_owned(),
            request_id: id(),
        };
        assert_eq!(verdict(400, &[], &error(code)), inside);
        assert_eq!(
            verdict(403, &[("x-acs-retry-after", "5")], &error(code)),
            inside
        );
        assert_eq!(judge(&answer(404, &[], &error(code)), UNLIMITED), inside);
        assert_eq!(
            judge(&answer(400, &[], &error(code)), RELAYED),
            upstream_error(code)
        );
    }
    let unknown = Verdict::Unknown {
        reason: "a rejected signature in an answer that is not a refusal",
    };
    assert_eq!(
        verdict(500, &[], &error("InvalidSecurityToken.Expired")),
        unknown
    );
    assert_eq!(
        verdict(
            200,
            &[],
            r#"{"Code":"InvalidSecurityToken.Expired","Data":{"FlowId":"1"}}"#
        ),
        unknown
    );
    let long = format!(
        r#"{{"RequestId":"R","Message":"{}","Code":"SignatureDoesNotMatch"}}"#,
        "x".repeat(MAX_JUDGED)
    );
    let inside = Verdict::Credentials {
        code: "SignatureDoesNotMatch".to_owned(),
        request_id: id(),
    };
    assert_eq!(verdict(400, &[], &long), inside);
}

#[test]
fn an_unreadable_answer_is_unknown_on_a_limited_action_and_passed_on_otherwise() {
    let shapeless = Verdict::Unknown {
        reason: "an answer that is not in CAMS's format",
    };
    let passed_ok = Verdict::Ok {
        request_id: None,
        code: "other".to_owned(),
    };
    let passed_error = nameless(upstream_error("other"));
    for body in [
        "<html>hello</html>",
        r#"["OK"]"#,
        r#"{"Code":"OK""#,
        r#"{"Code":"OK","Code":"Throttling"}"#,
    ] {
        assert_eq!(verdict(200, &[], body), shapeless, "{body}");
        assert_eq!(
            judge(&answer(200, &[], body), UNLIMITED),
            passed_ok,
            "{body}"
        );
    }
    let twice = r#"{"Code":"OK","Code":"Throttling"}"#;
    for (status, body) in [
        (400, "Bad Request"),
        (429, twice),
        (502, "<html/>"),
        (503, ""),
        (404, " "),
    ] {
        assert_eq!(verdict(status, &[], body), shapeless, "{status} {body}");
        assert_eq!(
            judge(&answer(status, &[], body), UNLIMITED),
            passed_error,
            "{status} {body}"
        );
    }
    let no_code = r#"{"RequestId":"R","message":"no healthy upstream"}"#;
    assert_eq!(
        verdict(503, &[], no_code),
        Verdict::Unknown {
            reason: "an error without a code"
        }
    );
    assert_eq!(
        judge(&answer(503, &[], no_code), UNLIMITED),
        upstream_error("other")
    );
    assert_eq!(verdict(200, &[], r#"{"RequestId":"R","Data":{}}"#), ok());
    assert_eq!(
        verdict(200, &[("content-encoding", "identity")], CREATED),
        ok()
    );
}

fn unknown(reason: &'static str) -> Verdict {
    Verdict::Unknown { reason }
}

#[test]
fn an_answer_that_cams_never_gives_is_unknown() {
    for context in [LIMITED, UNLIMITED, RELAYED] {
        let judged =
            |status, headers: &[(&str, &str)], body| judge(&answer(status, headers, body), context);
        for status in [101, 103, 301, 302, 304, 307] {
            assert_eq!(
                judged(status, &[], CREATED),
                unknown("an interim answer or a redirect"),
                "{status}"
            );
        }
        assert_eq!(judged(700, &[], CREATED), unknown("an invalid status code"));
        for status in [200, 202, 204] {
            assert_eq!(
                judged(status, &[], " \r\n"),
                unknown("a success without a body")
            );
        }
        let gzip = [("content-encoding", "gzip")];
        assert_eq!(
            judged(200, &gzip, CREATED),
            unknown("a content encoding that was not requested")
        );
        assert_eq!(
            judged(400, &gzip, LIMIT_CONTROL),
            unknown("a content encoding that was not requested")
        );
    }
}

#[test]
fn a_body_over_64_kib_is_not_judged() {
    let padded = |size: usize| {
        let mut body = LIMIT_CONTROL.to_owned();
        body.push_str(&" ".repeat(size - body.len()));
        body
    };
    let hint = [("x-acs-retry-after", "5")];
    let whole = throttled("System.LimitControl", ThrottleSource::Body, Some(5));
    assert_eq!(verdict(400, &hint, &padded(64 * 1024)), whole);
    assert_eq!(
        verdict(400, &hint, &padded(64 * 1024 + 1)),
        nameless(upstream_error("other"))
    );
    let passed = Verdict::Ok {
        request_id: None,
        code: "other".to_owned(),
    };
    assert_eq!(verdict(200, &hint, &padded(64 * 1024 + 1)), passed);
}

#[test]
fn a_lost_answer_is_unknown() {
    let all = [
        Lost::Timeout,
        Lost::Closed,
        Lost::Cut,
        Lost::TooLarge,
        Lost::Malformed,
    ];
    let reasons = [
        "no complete answer before the timeout",
        "the connection closed before an answer",
        "the answer was cut off",
        "the answer is larger than the limit",
        "the answer is not HTTP",
    ];
    assert_eq!(
        all.map(Verdict::from),
        reasons.map(|reason| Verdict::Unknown { reason })
    );
}
