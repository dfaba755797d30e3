//! Answers: sessions, refusals, halves and garbage.

use hyper::StatusCode;
use hyper::header::{DATE, HeaderMap, HeaderValue};
use proptest::prelude::*;

use super::*;
use crate::credentials::scripted::{SESSION_SECRET, SESSION_TOKEN, metadata_body, sts_body};
use crate::upstream::UpstreamResponse;

const NOW: &str = "2026-11-29T04:00:00Z";
const LATER: &str = "2026-11-29T05:00:00Z";

fn now() -> SystemTime {
    time::parse(NOW).unwrap()
}

fn answer(status: u16, body: impl Into<Vec<u8>>) -> Answer {
    Answer {
        response: UpstreamResponse {
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::new(),
            body: body.into().into(),
        },
        received: now(),
        took: Duration::from_millis(200),
        sent: Vec::new(),
    }
}

fn read_ok(form: Form, answer: &Answer) -> Obtained {
    read(form, "sts.test", answer).ok().unwrap()
}

fn refused(form: Form, answer: &Answer) -> FetchError {
    let error = read(form, "sts.test", answer).err().unwrap();
    for text in [error.to_string(), format!("{error:?}")] {
        for secret in [SESSION_SECRET, SESSION_TOKEN] {
            assert!(!text.contains(secret), "{text}");
        }
    }
    error
}

fn error_body(code: &str) -> String {
    format!(
        r#"{{"RequestId":"R-1","HostId":"sts.test","Code":"{code}","Message":"{SESSION_SECRET}"}}"#
    )
}

#[test]
fn a_whole_session_is_taken() {
    for (form, body) in [
        (Form::Sts, sts_body(LATER)),
        (Form::Metadata, metadata_body(LATER)),
        (Form::Uri, metadata_body(LATER)),
    ] {
        let obtained = read_ok(form, &answer(200, body));
        let credentials = obtained.credentials;
        assert_eq!(credentials.access_key_id.as_str(), "STS.fake1");
        assert_eq!(credentials.secret.expose(), SESSION_SECRET);
        assert_eq!(credentials.security_token.unwrap().expose(), SESSION_TOKEN);
        assert_eq!(credentials.expires, time::parse(LATER));
        assert_eq!(obtained.lifetime, Duration::from_secs(3600));
    }
}

#[test]
fn the_lifetime_counts_from_the_service_s_date_or_else_from_this_host_s_clock() {
    let mut dated = answer(200, sts_body(LATER));
    let date = httpdate::fmt_http_date(now() + Duration::from_secs(3000));
    dated
        .response
        .headers
        .insert(DATE, HeaderValue::from_str(&date).unwrap());
    // Less the fraction of the date's second and the time that the request took.
    assert_eq!(
        read_ok(Form::Sts, &dated).lifetime,
        Duration::from_millis(598_800)
    );
    let date = httpdate::fmt_http_date(now() + Duration::from_secs(3599));
    dated
        .response
        .headers
        .insert(DATE, HeaderValue::from_str(&date).unwrap());
    assert_eq!(refused(Form::Sts, &dated).kind, FailureKind::BadAnswer);
    dated
        .response
        .headers
        .insert(DATE, HeaderValue::from_static("yesterday"));
    assert_eq!(
        read_ok(Form::Sts, &dated).lifetime,
        Duration::from_secs(3600)
    );
}

fn dated(date: SystemTime, body: String) -> Answer {
    let mut answer = answer(200, body);
    let date = HeaderValue::from_str(&httpdate::fmt_http_date(date)).unwrap();
    answer.response.headers.insert(DATE, date);
    answer
}

#[test]
fn a_date_that_is_more_than_a_day_off_and_the_date_of_a_uri_do_not_count() {
    let (day, hour) = (Duration::from_secs(24 * 3600), Duration::from_secs(3600));
    let past = time::format(now() - hour);
    let (form, body) = (Form::Sts, sts_body(LATER));
    for date in [
        SystemTime::UNIX_EPOCH,
        now() - day - Duration::from_secs(1),
        now() + day + Duration::from_secs(1),
        time::parse("9999-12-31T00:00:00Z").unwrap(),
    ] {
        assert_eq!(read_ok(form, &dated(date, body.clone())).lifetime, hour);
        let error = refused(form, &dated(date, sts_body(&past)));
        assert_eq!(error.reason, format!("the session ended at {past}"));
    }
    // The service's clock may be a day behind.
    assert!(read_ok(form, &dated(now() - day, body)).lifetime > day);
    for date in [now() - day, now() - hour * 2, now() + hour * 2] {
        let whole = dated(date, metadata_body(LATER));
        assert_eq!(read_ok(Form::Uri, &whole).lifetime, hour);
        let error = refused(Form::Uri, &dated(date, metadata_body(&past)));
        assert_eq!(error.reason, format!("the session ended at {past}"));
    }
}

#[test]
fn a_code_and_a_request_id_that_quote_a_secret_are_not_repeated() {
    const SENT: &str = "long-lived-secret-of-44-characters-0123456789";
    let failure = |code: &str, id: &str, rest: &str| {
        format!(r#"{{"Code":"{code}","RequestId":"{id}"{rest}}}"#)
    };
    let session = r#","Credentials":{"AccessKeySecret" : "the-secret-of-the-answer","SecurityToken":"CAIS-token-of-the-answer"}"#;
    let xml = "<Error><Code>the-secret-of-the-answer</Code><RequestId>R-1</RequestId><AccessKeySecret>the-secret-of-the-answer</AccessKeySecret></Error>";
    for (body, code, id) in [
        (failure(SENT, "R-1", ""), None, Some("R-1")),
        (failure("X.ong-lived-sec", "R-1", ""), None, Some("R-1")),
        (
            failure("NoPermission", &SENT[5..40], ""),
            Some("NoPermission"),
            None,
        ),
        (failure("X", &SENT.to_uppercase(), ""), Some("X"), None),
        (
            failure("the-secret-of-the-answer", "CAIS-token-of", session),
            None,
            None,
        ),
        (xml.to_owned(), None, Some("R-1")),
        (
            failure(
                "EntityNotExist.Role",
                "6894B13B-6D71-4EF5-88FA-F32781734A7F",
                session,
            ),
            Some("EntityNotExist.Role"),
            Some("6894B13B-6D71-4EF5-88FA-F32781734A7F"),
        ),
    ] {
        let mut answer = answer(403, body.clone());
        answer.sent = vec![Secret::new(SENT)];
        let error = refused(Form::Sts, &answer);
        let found = (error.code.as_deref(), error.request_id.as_deref());
        assert_eq!(found, (code, id), "{body}");
    }
}

#[test]
fn three_spellings_of_an_expiration_are_read_and_others_are_refused() {
    let second = time::parse("2030-01-01T00:00:00Z");
    for (text, millis) in [
        ("2030-01-01T00:00:00Z", 0),
        ("2030-01-01T00:00:00.123Z", 123),
        ("2030-01-01T08:00:00+08:00", 0),
    ] {
        let obtained = read_ok(Form::Sts, &answer(200, sts_body(text)));
        let expected = second.map(|second| second + Duration::from_millis(millis));
        assert_eq!(obtained.credentials.expires, expected, "{text}");
    }
    let body = sts_body("2030-01-01T00:00:00Z");
    let field = r#","Expiration":"2030-01-01T00:00:00Z""#;
    for (other, reason) in [
        (r#","Expiration":"2030-01-01""#, "Expiration is not a time"),
        (r#","Expiration":1893456000"#, "Expiration is not a time"),
        (r#","Expiration":"""#, "Expiration is not a time"),
        (r#","Expiration":null"#, "the answer has no Expiration"),
        ("", "the answer has no Expiration"),
    ] {
        let error = refused(Form::Sts, &answer(200, body.replace(field, other)));
        assert_eq!(
            (error.kind, &*error.reason),
            (FailureKind::BadAnswer, reason)
        );
    }
}

#[test]
fn a_session_that_failed_is_incomplete_or_has_ended_is_refused() {
    let whole = metadata_body(LATER);
    for (body, reason) in [
        (
            whole.replace("Success", "Failed"),
            "the answer is not a session",
        ),
        (
            whole.replace(r#","Code":"Success""#, ""),
            "the answer has no Code",
        ),
        (
            whole.replace(r#""Expiration""#, r#""Expires""#),
            "the answer has no Expiration",
        ),
        (
            whole.replace("AccessKeyId", "accessKeyId"),
            "the answer has no AccessKeyId",
        ),
        (
            whole.replace("AccessKeySecret", "Secret"),
            "the answer has no AccessKeySecret",
        ),
        (
            whole.replace("SecurityToken", "Token"),
            "the answer has no SecurityToken",
        ),
        (
            whole.replace(SESSION_TOKEN, ""),
            "SecurityToken: the secret is empty",
        ),
        (
            whole.replace(SESSION_SECRET, "a\\nb"),
            "AccessKeySecret: expected a secret of one line, found a line break as character 2",
        ),
        (
            whole.replace("STS.fake1", "STS fake1"),
            "AccessKeyId is not an access key id",
        ),
        (
            metadata_body("2026-11-29T03:59:55Z"),
            "the session ended at 2026-11-29T03:59:55Z",
        ),
        (
            metadata_body(NOW),
            "the session ended at 2026-11-29T04:00:00Z",
        ),
        (
            "<html>captive</html>".to_owned(),
            "the answer is not a JSON object",
        ),
        (format!("[{whole}]"), "the answer is not a JSON object"),
        (
            whole[..whole.len() / 2].to_owned(),
            "the answer is JSON that ends too early",
        ),
        (
            format!("{whole}{whole}"),
            "the answer is not JSON of the documented form",
        ),
        (
            whole.replace(
                r#""Code":"Success""#,
                r#""Code":"Success","Code":"Success""#,
            ),
            "the answer is not JSON of the documented form",
        ),
        (String::new(), "the answer is not a JSON object"),
    ] {
        let error = refused(Form::Metadata, &answer(200, body.clone()));
        assert_eq!(error.kind, FailureKind::BadAnswer, "{body}");
        assert_eq!(error.reason, reason, "{body}");
        assert_eq!(error.status, Some(200));
    }
    let error = refused(
        Form::Metadata,
        &answer(200, whole.replace("Success", "Failed")),
    );
    assert_eq!(error.code.as_deref(), Some("Failed"));
}

#[test]
fn a_uri_s_code_may_be_missing_and_sts_has_none() {
    let whole = metadata_body(LATER);
    let without = whole.replace(r#","Code":"Success""#, "");
    read_ok(Form::Uri, &answer(200, without.clone()));
    let failed = without.replacen('{', r#"{"Code":"Fail","#, 1);
    let error = refused(Form::Uri, &answer(200, failed));
    assert_eq!(error.code.as_deref(), Some("Fail"));
    let sts = sts_body(LATER).replacen('{', r#"{"Code":"Success","#, 1);
    assert_eq!(
        refused(Form::Sts, &answer(200, sts)).kind,
        FailureKind::BadAnswer
    );
    let array = sts_body(LATER)
        .replace(
            r#""Credentials":{"AccessKeyId":"#,
            r#""Credentials":[null,"#,
        )
        .replace(r#""AccessKeySecret":"#, "")
        .replace(r#""SecurityToken":"#, "")
        .replace(r#""Expiration":"#, "")
        .replace("}}", "]}");
    let error = refused(Form::Sts, &answer(200, array));
    assert_eq!(
        error.reason,
        "the answer is not JSON of the documented form"
    );
    // A session of the metadata service is none of STS.
    let error = refused(Form::Sts, &answer(200, without));
    assert_eq!(error.reason, "the answer has no Credentials");
}

#[test]
fn a_failed_session_is_refused_however_its_code_is_written() {
    let failed = metadata_body(LATER).replace("Success", "Failed");
    let mut not_utf8 = failed.clone().replace("LastUpdated", "x").into_bytes();
    let at = not_utf8.windows(3).position(|three| three == b"\"x\"");
    not_utf8[at.unwrap() + 1] = 0xbe;
    let mut xml = answer(200, failed.clone());
    let content_type = HeaderValue::from_static("text/xml");
    xml.response.headers.insert(CONTENT_TYPE, content_type);
    for answer in [
        answer(200, not_utf8),
        answer(200, failed.replacen('{', r#"{"code":"Success","#, 1)),
        answer(200, failed.replace("Failed", "not a word")),
        xml,
    ] {
        for form in [Form::Metadata, Form::Uri] {
            assert_eq!(refused(form, &answer).kind, FailureKind::BadAnswer);
        }
    }
    let mut sts = sts_body(LATER).into_bytes();
    let at = sts.windows(4).position(|four| four == b"6894");
    sts[at.unwrap()] = 0xbe;
    let error = refused(Form::Sts, &answer(200, sts));
    assert_eq!(error.reason, "the answer is not UTF-8");
}

#[test]
fn a_long_token_is_taken() {
    let token = "x".repeat(60_000);
    let body = sts_body(LATER).replace(SESSION_TOKEN, &token);
    let obtained = read_ok(Form::Sts, &answer(200, body));
    assert_eq!(obtained.credentials.security_token.unwrap().expose(), token);
}

#[test]
fn the_code_decides_before_the_status() {
    use FailureKind::{BadAnswer, OldToken, Refused, ServiceError, Throttled};
    for (code, status, kind) in [
        ("Throttling", 400, Throttled),
        ("Throttling.User", 400, Throttled),
        ("Throttling.Api", 403, Throttled),
        ("System.LimitControl", 400, Throttled),
        ("System.LimitControl", 200, Throttled),
        ("Throttling.User", 302, Throttled),
        ("ServiceUnavailable", 503, ServiceError),
        ("ServiceUnavailableTemporary", 400, ServiceError),
        ("InternalError", 500, ServiceError),
        ("InternalError", 400, ServiceError),
        ("SignatureNonceUsed", 400, ServiceError),
        ("AuthenticationFail.OIDCToken.Expired", 400, OldToken),
        ("AuthenticationFail.OIDCToken.Expired", 403, OldToken),
        ("InvalidSecurityToken.Expired", 403, OldToken),
        ("InvalidSecurityToken.Malformed", 400, OldToken),
        ("InvalidSecurityToken.MismatchWithAccessKey", 400, OldToken),
        ("InvalidSecurityToken", 403, OldToken),
        ("SecurityTokenExpired", 403, OldToken),
        ("MissingSecurityToken", 400, OldToken),
        ("InvalidAccessKeyId.NotFound", 404, OldToken),
        ("InvalidAccessKeyId.Inactive", 400, OldToken),
        ("Forbidden.AccessKeyDisabled", 403, OldToken),
        ("AuthenticationFail.OIDCToken.Invalid", 400, Refused),
        (
            "AuthenticationFail.OIDCToken.AudienceNotMatch",
            400,
            Refused,
        ),
        (
            "AuthenticationFail.OIDCToken.PublicKeyFingerprintMismatch",
            500,
            Refused,
        ),
        ("AuthenticationFail.NoPermission", 403, Refused),
        ("NoPermission", 403, Refused),
        ("EntityNotExist.Role", 404, Refused),
        ("InvalidParameter.DurationSeconds", 400, Refused),
        ("InvalidParameter.PolicyGrammar", 400, Refused),
        ("Forbidden.RAM", 403, Refused),
        ("SignatureDoesNotMatch", 400, Refused),
        ("InvalidTimeStamp.Expired", 400, Refused),
        // Unknown codes: by status.
        ("Surprise", 400, Refused),
        ("Surprise", 503, ServiceError),
        ("Surprise", 502, ServiceError),
        ("ThrottlingNot", 400, Refused),
        ("Surprise", 200, BadAnswer),
    ] {
        let error = refused(Form::Sts, &answer(status, error_body(code)));
        assert_eq!(error.kind, kind, "{code} {status}");
        assert_eq!(error.code.as_deref(), Some(code));
        assert_eq!(error.request_id.as_deref(), Some("R-1"));
        assert_eq!(error.status, Some(status));
    }
}

#[test]
fn the_reason_says_what_has_happened() {
    for (code, status, reason) in [
        (
            "Throttling.User",
            503,
            "the service asks for fewer requests",
        ),
        ("ServiceUnavailable", 400, "the service is unavailable"),
        ("Surprise", 503, "the service is unavailable"),
        ("InternalError", 500, "the service failed"),
        (
            "SignatureNonceUsed",
            400,
            "the service refuses the nonce of the request",
        ),
        ("NoPermission", 503, "the service refuses the request"),
    ] {
        let error = refused(Form::Sts, &answer(status, error_body(code)));
        assert_eq!(error.reason, reason, "{code} {status}");
    }
    for (status, reason) in [
        (302, "the service redirects, which is not followed"),
        (429, "the service asks for fewer requests"),
        (503, "the service is unavailable"),
        (500, "the service failed"),
        (403, "the answer is not a session"),
    ] {
        let error = refused(Form::Sts, &answer(status, "<html>no</html>"));
        assert_eq!(error.reason, reason, "{status}");
    }
}

#[test]
fn without_a_code_the_status_decides() {
    use FailureKind::{BadAnswer, Refused, ServiceError, Throttled};
    for (form, status, kind) in [
        (Form::Sts, 302, BadAnswer),
        (Form::Sts, 301, BadAnswer),
        (Form::Sts, 429, Throttled),
        (Form::Sts, 503, ServiceError),
        (Form::Sts, 500, ServiceError),
        (Form::Sts, 403, BadAnswer),
        (Form::Sts, 204, BadAnswer),
        (Form::Uri, 302, BadAnswer),
        (Form::Uri, 403, Refused),
        (Form::Metadata, 401, Refused),
        (Form::Metadata, 404, BadAnswer),
        (Form::Metadata, 500, ServiceError),
    ] {
        let error = refused(form, &answer(status, "<html>no</html>"));
        assert_eq!(error.kind, kind, "{form:?} {status}");
        assert_eq!((error.code, error.request_id), (None, None));
    }
}

#[test]
fn a_code_or_request_id_of_another_form_is_not_repeated() {
    for (code, id) in [
        ("No Permission", "R 1"),
        ("<b>", "a/b"),
        (r"a\nb", r"a\u001b[2J"),
        ("\u{e9}", "\u{e9}"),
        (&"x".repeat(101), &"x".repeat(101)),
        ("", ""),
    ] {
        let body = format!(r#"{{"Code":"{code}","RequestId":"{id}"}}"#);
        let error = refused(Form::Sts, &answer(400, body));
        assert_eq!((error.code, error.request_id), (None, None));
    }
}

#[test]
fn a_refusal_in_xml_is_read_too() {
    let body = "<?xml version='1.0'?><Error><RequestId>R-1</RequestId><Code>NoPermission</Code>\
                <Message>m</Message></Error>";
    let mut xml = answer(403, body);
    let content_type = HeaderValue::from_static("text/xml;charset=utf-8");
    xml.response.headers.insert(CONTENT_TYPE, content_type);
    let error = refused(Form::Sts, &xml);
    assert_eq!(error.kind, FailureKind::Refused);
    assert_eq!(error.code.as_deref(), Some("NoPermission"));
}

#[test]
fn no_beginning_of_an_answer_is_a_session() {
    for (form, body) in [
        (Form::Sts, sts_body(LATER)),
        (Form::Metadata, metadata_body(LATER)),
        (Form::Uri, metadata_body(LATER)),
    ] {
        for end in 0..body.len() {
            let cut = &body.as_bytes()[..end];
            assert_eq!(
                refused(form, &answer(200, cut)).kind,
                FailureKind::BadAnswer
            );
        }
    }
}

proptest! {
    #[test]
    fn garbage_is_never_a_session(status in 200_u16..600, body in proptest::collection::vec(any::<u8>(), 0..600)) {
        for form in [Form::Sts, Form::Metadata, Form::Uri] {
            prop_assert!(read(form, "sts.test", &answer(status, body.clone())).is_err());
        }
    }

    /// A changed byte is a failure, or a session with all its fields.
    #[test]
    fn a_changed_byte_makes_no_half_session(at in 0_usize..400, byte in any::<u8>()) {
        for (form, body) in [(Form::Sts, sts_body(LATER)), (Form::Metadata, metadata_body(LATER))] {
            let mut body = body.into_bytes();
            let at = at % body.len();
            body[at] = byte;
            if let Ok(obtained) = read(form, "sts.test", &answer(200, body)) {
                prop_assert!(!obtained.credentials.access_key_id.as_str().is_empty());
                prop_assert!(!obtained.credentials.secret.expose().is_empty());
                prop_assert!(obtained.credentials.security_token.is_some());
                prop_assert!(obtained.credentials.expires.is_some_and(|expires| expires > now()));
                prop_assert!(!obtained.lifetime.is_zero());
            }
        }
    }
}
