//! The verdict on each kind of answer.

use bytes::Bytes;
use hyper::header::HeaderName;

use super::*;
use crate::primitives::id::AccessKeyId;
use crate::primitives::secret::Secret;

const LIMITED: Context<'static> = Context {
    managed: true,
    limited: true,
    action: "CreateFlow",
};
const READING: Context<'static> = Context {
    action: "ListFlow",
    ..LIMITED
};
const CHANGING: Context<'static> = Context {
    action: "UpdateFlowJSONAsset",
    ..LIMITED
};
/// A read without a limit.
const UNLIMITED: Context<'static> = Context {
    limited: false,
    action: "ListInstance",
    ..LIMITED
};
const RELAYED: Context<'static> = Context {
    managed: false,
    ..LIMITED
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

/// This host's time: 300 ms after `Wed, 21 Oct 2026 07:28:00 GMT`.
fn now() -> SystemTime {
    std::time::UNIX_EPOCH + Duration::from_millis(1_792_567_680_300)
}

fn verdict(status: u16, headers: &[(&str, &str)], body: &str) -> Verdict {
    judge(&answer(status, headers, body), LIMITED, now)
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
fn a_request_id_of_another_form_or_a_quoted_secret_is_not_kept() {
    let body = |id: &str| format!(r#"{{"Code":"InvalidAccessKeyId.NotFound","RequestId":"{id}"}}"#);
    let long = "x".repeat(65);
    for (id, is_kept) in [
        ("6894B13B-6D71-4EF5-88FA-F32781734A7F", true),
        (&long[..64], true),
        (&*long, false),
        ("CAIS/token+1==", false),
        ("a b", false),
        ("", false),
    ] {
        let verdict = verdict(404, &[], &body(id));
        assert_eq!(verdict.request_id(), is_kept.then_some(id), "{id}");
    }
    let credentials = Credentials {
        access_key_id: AccessKeyId::new("STS.1"),
        secret: Secret::new("a-secret-of-the-account"),
        security_token: Some(Secret::new("CAIS-token-of-the-session")),
        expires: None,
    };
    for (code, id, expected) in [
        ("Denied.secret-of-the-a", "R-1", ("other", Some("R-1"))),
        ("Denied", "CAIS-TOKEN-OF", ("Denied", None)),
        ("Denied", "R-1", ("Denied", Some("R-1"))),
    ] {
        let body = format!(r#"{{"Code":"{code}","RequestId":"{id}"}}"#);
        let verdict = verdict(403, &[], &body).without_secrets_of(Some(&credentials));
        assert_eq!((verdict.code(), verdict.request_id()), expected);
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
        for status in [201, 403, 404] {
            assert_eq!(
                verdict(status, &[], &error(code)),
                upstream_error(code),
                "{status}"
            );
        }
        for status in [500, 503] {
            assert_eq!(
                judge(&answer(status, &[], &error(code)), READING, now),
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
        judge(&answer(400, &[], LIMIT_CONTROL), RELAYED, now),
        throttled("System.LimitControl", Body, None)
    );
    assert_eq!(
        judge(&answer(400, &[], LIMIT_CONTROL), UNLIMITED, now),
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
    for body in [&error("ServiceUnavailable"), LIMIT_CONTROL] {
        let judged = judge(&answer(503, &hint, body), READING, now);
        assert!(matches!(judged, Verdict::UpstreamError { .. }), "{body}");
    }
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
fn retry_after_may_be_a_date() {
    let answered = ("date", "Wed, 21 Oct 2026 09:00:00 GMT");
    for (date, by_date, by_our_clock) in [
        (
            "Wed, 21 Oct 2026 09:00:03 GMT",
            Some(3_000),
            Some(5_522_700),
        ),
        (
            "Wednesday, 21-Oct-26 09:00:03 GMT",
            Some(3_000),
            Some(5_522_700),
        ),
        ("Wed Oct 21 09:00:03 2026", Some(3_000), Some(5_522_700)),
        ("Wed, 21 Oct 2026 09:00:00 GMT", None, Some(5_519_700)),
        ("Wed, 21 Oct 2026 07:28:03 GMT", None, Some(2_700)),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None, None),
        ("Thu, 01 Jan 1970 00:00:00 GMT", None, None),
        (
            "Fri, 31 Dec 9999 23:59:59 GMT",
            Some(86_400_000),
            Some(86_400_000),
        ),
        ("Wed, 21 Oct 2026 09:00:03", None, None),
        ("Wed, 41 Oct 2026 09:00:03 GMT", None, None),
    ] {
        assert_eq!(
            hinted(&[("retry-after", date), answered]),
            by_date,
            "{date}"
        );
        assert_eq!(hinted(&[("retry-after", date)]), by_our_clock, "{date}");
        let odd = ("date", "yesterday");
        assert_eq!(
            hinted(&[("retry-after", date), odd]),
            by_our_clock,
            "{date}"
        );
    }
    let both = [
        ("retry-after", "2"),
        ("retry-after", "Wed, 21 Oct 2026 09:00:03 GMT"),
        answered,
    ];
    assert_eq!(hinted(&both), Some(3_000));
}

#[test]
fn retry_after_in_seconds_is_rounded_up_and_never_zero() {
    let window = ("x-ratelimit-user-api", "Limit:5,TimeLeft:1500");
    for (seconds, expected) in [
        ("2", 2_000),
        (" 2 ", 2_000),
        ("0.2", 1_000),
        ("1.0", 1_000),
        ("1.5", 2_000),
        ("0", 1_500),
        ("0.0", 1_500),
        ("-1", 1_500),
        ("+1", 1_500),
        ("1.", 1_500),
        (".5", 1_500),
        ("1.-5", 1_500),
        ("1e3", 1_500),
        ("soon", 1_500),
        ("", 1_500),
    ] {
        assert_eq!(
            hinted(&[("retry-after", seconds), window]),
            Some(expected),
            "{seconds:?}"
        );
    }
    let huge = [("retry-after", "99999999999999999999999")];
    let Verdict::Throttled { hint, .. } = verdict(400, &huge, LIMIT_CONTROL) else {
        panic!("not throttled");
    };
    assert_eq!(hint, Some(Duration::from_secs(86_400)));
}

#[test]
fn a_refused_time_stamp_states_the_offset_of_the_clocks() {
    let clock = |code: &str, offset| Verdict::Clock {
        code: code.to_owned(),
        offset,
        request_id: id(),
    };
    for code in [
        "InvalidTimeStamp.Expired",
        "invalidtimestamp.expired",
        "IllegalTimestamp",
    ] {
        for (date, offset) in [
            ("Wed, 21 Oct 2026 07:48:01 GMT", Some(1200)),
            ("Wed, 21 Oct 2026 07:08:00 GMT", Some(-1200)),
            ("yesterday", None),
        ] {
            let headers = [("date", date)];
            assert_eq!(verdict(400, &headers, &error(code)), clock(code, offset));
            let judged = judge(&answer(403, &headers, &error(code)), UNLIMITED, now);
            assert_eq!(judged, clock(code, offset));
        }
        assert_eq!(verdict(400, &[], &error(code)), clock(code, None));
        // The stamp of a relayed call is its caller's own.
        assert_eq!(
            judge(&answer(400, &[], &error(code)), RELAYED, now),
            upstream_error(code)
        );
        let reason = "a rejected signature in an answer that is not a refusal";
        assert_eq!(verdict(500, &[], &error(code)), answered_unknown(reason));
    }
}

#[test]
fn a_key_or_token_that_may_just_have_been_replaced_is_an_old_session() {
    for (code, is_old) in [
        ("InvalidAccessKeyId.NotFound", true),
        ("InvalidAccessKeyId.Inactive", true),
        ("InvalidSecurityToken.Expired", true),
        ("InvalidSecurityToken.MismatchWithAccessKey", true),
        ("InvalidSecurityToken.Malformed", true),
        ("InvalidSecurityToken", true),
        ("SecurityTokenExpired", true),
        ("securitytokenexpired", true),
        ("Forbidden.AccessKeyDisabled", true),
        ("SignatureDoesNotMatch", false),
        ("InvalidTimeStamp.Expired", false),
        ("InvalidTimeStamp.Format", false),
        ("MissingSecurityToken", false),
        ("Forbidden.RAM", false),
        ("NoPermission", false),
    ] {
        for status in [400, 403, 404] {
            assert_eq!(
                verdict(status, &[], &error(code)).is_old_session(),
                is_old,
                "{status} {code}"
            );
        }
    }
}

#[test]
fn an_answer_that_rejects_our_signature_is_not_passed_on() {
    for code in [
        "SignatureDoesNotMatch",
        "IncompleteSignature",
        "InvalidAccessKeyId.NotFound",
        "InvalidAccessKeyId.Inactive",
        "InvalidSecurityToken.Expired",
        "SecurityTokenExpired",
        "Forbidden.AccessKeyDisabled",
        "InvalidTimeStamp.Format",
        "invalidtimestamp.format",
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
        assert_eq!(
            judge(&answer(404, &[], &error(code)), UNLIMITED, now),
            inside
        );
        assert_eq!(
            judge(&answer(400, &[], &error(code)), RELAYED, now),
            upstream_error(code)
        );
    }
    let unknown = |request_id| Verdict::Unknown {
        reason: "a rejected signature in an answer that is not a refusal",
        request_id,
    };
    assert_eq!(
        verdict(500, &[], &error("InvalidSecurityToken.Expired")),
        unknown(id())
    );
    assert_eq!(
        verdict(
            200,
            &[],
            r#"{"Code":"InvalidSecurityToken.Expired","Data":{"FlowId":"1"}}"#
        ),
        unknown(None)
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
    let shapeless = unknown("an answer that is not in CAMS's format");
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
            judge(&answer(200, &[], body), UNLIMITED, now),
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
            judge(&answer(status, &[], body), UNLIMITED, now),
            passed_error,
            "{status} {body}"
        );
    }
    let no_code = r#"{"RequestId":"R","message":"no healthy upstream"}"#;
    assert_eq!(
        verdict(503, &[], no_code),
        Verdict::Unknown {
            reason: "an error without a code",
            request_id: id(),
        }
    );
    assert_eq!(
        judge(&answer(503, &[], no_code), UNLIMITED, now),
        upstream_error("other")
    );
    assert_eq!(verdict(200, &[], r#"{"RequestId":"R","Data":{}}"#), ok());
    assert_eq!(
        verdict(200, &[("content-encoding", "identity")], CREATED),
        ok()
    );
}

fn unknown(reason: &'static str) -> Verdict {
    Verdict::Unknown {
        reason,
        request_id: None,
    }
}

/// An unknown outcome after an answer that has a request id.
fn answered_unknown(reason: &'static str) -> Verdict {
    Verdict::Unknown {
        reason,
        request_id: id(),
    }
}

#[test]
fn a_nonce_that_cams_has_seen_means_that_a_copy_may_be_executed() {
    let copy = answered_unknown("CAMS had already received a copy of the request");
    for code in [
        "SignatureNonceUsed",
        "signaturenonceused",
        "SignatureNonceUsed.Replay",
        "InvalidSignatureNonce",
        " SignatureNonceUsed ",
    ] {
        for context in [LIMITED, READING, CHANGING, UNLIMITED] {
            for status in [400, 403, 200, 500] {
                let judged = judge(&answer(status, &[], &error(code)), context, now);
                assert_eq!(judged, copy, "{code} {status} {}", context.action);
            }
        }
        // The nonce of a relayed call is its caller's own, who may have used it before.
        assert_eq!(
            judge(&answer(400, &[], &error(code)), RELAYED, now),
            upstream_error(code)
        );
    }
    let xml = "<Error><RequestId>R</RequestId><Code>SignatureNonceUsed</Code></Error>";
    let content_type = [("content-type", "text/xml;charset=utf-8")];
    assert_eq!(verdict(400, &content_type, xml), copy);
    let long = format!(
        r#"{{"RequestId":"R","Message":"{}","Code":"SignatureNonceUsed"}}"#,
        "x".repeat(MAX_JUDGED)
    );
    for status in [200, 400] {
        let judged = judge(&answer(status, &[], &long), LIMITED, now);
        let request_id = judged.request_id();
        assert!(matches!(
            judged,
            Verdict::Unknown {
                reason: COPY_ARRIVED,
                ..
            }
        ));
        assert_eq!(request_id, Some("R"), "{status}");
    }
}

#[test]
fn a_time_out_at_cams_is_no_throttle_if_something_may_have_been_created() {
    let hint = [("x-acs-retry-after", "500")];
    let timed_out = error("RequestTimeout");
    assert_eq!(
        verdict(408, &hint, &timed_out),
        answered_unknown("CAMS reported a failure of its own")
    );
    assert_eq!(
        judge(&answer(408, &hint, &timed_out), READING, now),
        throttled("RequestTimeout", ThrottleSource::Header, Some(500))
    );
}

#[test]
fn a_duplicate_is_passed_on_because_another_call_created_it() {
    for code in [
        "MissingSignatureNonceUsed",
        "EntityAlreadyExists.Flow",
        "DuplicateFlowName",
        "Duplicated.FlowName",
        "isv.FLOW_NAME_EXISTS",
        "IdempotentParameterMismatch",
        "OperationConflict",
    ] {
        for status in [200, 400, 409] {
            assert_eq!(verdict(status, &[], &error(code)), upstream_error(code));
        }
    }
}

#[test]
fn a_failure_of_cams_leaves_it_open_whether_it_has_created_something() {
    let failed = answered_unknown("CAMS reported a failure of its own");
    let codes = ["InternalError", "ServiceUnavailable", "System.LimitControl"];
    for status in [500, 502, 503, 504, 599] {
        for code in codes {
            let whole = answer(status, &[], &error(code));
            let unlimited = Context {
                limited: false,
                action: "CreateFlowVersion",
                ..LIMITED
            };
            for context in [LIMITED, RELAYED, unlimited] {
                assert_eq!(judge(&whole, context, now), failed, "{status} {code}");
            }
            for context in [READING, CHANGING, UNLIMITED] {
                assert_eq!(
                    judge(&whole, context, now),
                    upstream_error(code),
                    "{status}"
                );
            }
        }
    }
    // The status may be that of a refusal or of a success.
    for code in [
        "InternalError",
        "ServiceUnavailable.Busy",
        "isp.SYSTEM_ERROR",
    ] {
        for status in [200, 400, 409] {
            assert_eq!(
                verdict(status, &[], &error(code)),
                failed,
                "{status} {code}"
            );
        }
        assert_eq!(
            judge(&answer(400, &[], &error(code)), READING, now),
            upstream_error(code)
        );
    }
    let hint = [("x-acs-retry-after", "500")];
    assert_eq!(verdict(400, &hint, &error("InternalError")), failed);
    assert_eq!(
        judge(&answer(400, &hint, &error("InternalError")), READING, now),
        throttled("InternalError", ThrottleSource::Header, Some(500))
    );
    assert_eq!(
        verdict(400, &[], &error("isp.RAM_PERMISSION_DENY")),
        upstream_error("isp.RAM_PERMISSION_DENY")
    );
    let long = error(&"x".repeat(MAX_JUDGED));
    assert_eq!(
        verdict(500, &[], &long),
        unknown("CAMS reported a failure of its own")
    );
}

#[test]
fn a_success_of_an_action_that_creates_has_its_data() {
    let missing = "a success without the data that it should have";
    for body in [
        r#"{"RequestId":"R","Code":"OK"}"#,
        r#"{"RequestId":"R","Code":"OK","Data":null}"#,
        r#"{"RequestId":"R"}"#,
    ] {
        for context in [LIMITED, RELAYED] {
            assert_eq!(
                judge(&answer(200, &[], body), context, now),
                answered_unknown(missing),
                "{body}"
            );
        }
        // Their successes have no data.
        for action in ["ListFlow", "UpdateFlowJSONAsset", "SendChatappMessage"] {
            let context = Context { action, ..LIMITED };
            assert_eq!(
                judge(&answer(200, &[], body), context, now),
                ok(),
                "{action}"
            );
        }
    }
    let xml = "<CreateFlowResponse><RequestId>R</RequestId><Code>OK</Code></CreateFlowResponse>";
    let content_type = [("content-type", "text/xml;charset=utf-8")];
    assert_eq!(verdict(200, &content_type, xml), answered_unknown(missing));
}

#[test]
fn an_answer_that_cams_never_gives_is_unknown() {
    for context in [LIMITED, UNLIMITED, RELAYED] {
        let judged = |status, headers: &[(&str, &str)], body| {
            judge(&answer(status, headers, body), context, now)
        };
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
    let large = answer(200, &hint, &padded(64 * 1024 + 1));
    assert_eq!(judge(&large, READING, now), passed);
    // What may have created something is read whole.
    assert_eq!(
        judge(&large, LIMITED, now),
        upstream_error("System.LimitControl")
    );
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
    assert_eq!(all.map(Verdict::from), reasons.map(unknown));
}
