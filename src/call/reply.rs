//! Writes the answer to the caller: CAMS's answer without its hop-by-hop headers, or a refusal by
//! Flowgate in the format of CAMS's errors. A refusal is never empty, a redirect or compressed, and
//! has the header `x-flowgate-error`.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName,
    HeaderValue, RETRY_AFTER,
};
use hyper::http::request;
use hyper::{Request, Response, Uri};

use crate::acs::created_flow::CreatedFlow;
use crate::acs::error_body::{self, ErrorBody, Format};
use crate::acs::headers::number;
use crate::acs::hop_by_hop::{connection_listed, is_hop_by_hop};
use crate::call::identify;
use crate::call::judge::Verdict;
use crate::config::Bind;
use crate::error::{Kind, Refusal};
use crate::idempotency::KeyState;
use crate::observe::record::CallStats;
use crate::primitives::text::{capped, millis};
use crate::process::shutdown::Phase;
use crate::server::head_error;
use crate::upstream::UpstreamResponse;

const ACS_RETRY_AFTER: HeaderName = HeaderName::from_static("x-acs-retry-after");
const FLOWGATE_ERROR: HeaderName = HeaderName::from_static("x-flowgate-error");
const FLOWGATE_WAITED: HeaderName = HeaderName::from_static("x-flowgate-waited");
const FLOWGATE_IDEMPOTENCY: HeaderName = HeaderName::from_static("x-flowgate-idempotency");
const FLOWGATE_ATTEMPTS: HeaderName = HeaderName::from_static("x-flowgate-attempts");

/// `Recommend` of an error, where CAMS puts a link to its diagnosis. Flowgate's message already
/// states what to do.
const RECOMMEND: &str = "";

/// Difference between two clocks in seconds that the network and whole seconds explain.
const EXPLAINED_BY_NETWORK: u64 = 10;

/// The format of errors for a caller.
#[derive(Debug)]
pub(crate) struct ErrorFormat {
    format: Format,
    /// `HostId` of an error: the host in the request.
    host: Box<str>,
}

// === impl ErrorFormat ===

impl Default for ErrorFormat {
    fn default() -> Self {
        Self {
            format: Format::Json,
            host: Box::default(),
        }
    }
}

impl ErrorFormat {
    /// Reads the format from the head of a request.
    pub(crate) fn of(head: &request::Parts) -> Self {
        let host = head
            .headers
            .get(hyper::header::HOST)
            .and_then(|host| host.to_str().ok());
        Self {
            format: expected(head, b""),
            host: host.unwrap_or_default().into(),
        }
    }

    /// Reads the format from the received part of a head that could not be parsed.
    pub(crate) fn of_unread(head: &[u8]) -> Self {
        let mut request = Request::builder();
        // A target that is too long is cut off: the format's parameter may be before the cut.
        let target = head_error::target(head);
        let target = &target[..target.len().min(usize::from(u16::MAX) - 1)];
        if let Ok(target) = Uri::try_from(target) {
            request = request.uri(target);
        }
        for name in [HOST, AUTHORIZATION] {
            if let Some(value) = head_error::header(head, name.as_str()) {
                request = request.header(name, value);
            }
        }
        let request = request.body(());
        request.map_or_else(
            |_| Self::default(),
            |request| Self::of(&request.into_parts().0),
        )
    }

    /// Reads the format again with the body, which may be a form with the parameter `Format`.
    pub(crate) fn read_body(&mut self, head: &request::Parts, body: &[u8]) {
        self.format = expected(head, body);
    }
}

fn expected(head: &request::Parts, form: &[u8]) -> Format {
    if identify::wants_xml(head, form) {
        Format::Xml
    } else {
        Format::Json
    }
}

/// CAMS's answer for the caller, or the refusal that replaces it. `predicted_wait` is the wait of a
/// call that arrives now; it is the retry time of a throttled answer unless CAMS's own hint is
/// longer.
pub(crate) fn pass_on(
    answer: Option<UpstreamResponse>,
    verdict: &Verdict,
    action: &str,
    service: CallStats,
    predicted_wait: impl FnOnce() -> Duration,
) -> Result<Response<Full<Bytes>>, Refusal> {
    let answer = match (verdict, answer) {
        (Verdict::Unknown { reason, request_id }, _) => {
            return Err(Refusal::unknown(reason, action, request_id.as_deref()));
        }
        (Verdict::Credentials { .. } | Verdict::Clock { .. }, _) => {
            return Err(refused_signature(verdict));
        }
        (_, Some(answer)) => answer,
        (_, None) => return Err(Refusal::unknown("no answer", action, None)),
    };
    let mut response = Response::new(Full::new(answer.body));
    *response.status_mut() = answer.status;
    let headers = response.headers_mut();
    *headers = end_to_end(answer.headers);
    headers.insert(FLOWGATE_WAITED, number(millis(service.waited)));
    headers.insert(FLOWGATE_ATTEMPTS, number(service.attempts.into()));
    if let Verdict::Throttled { hint, .. } = verdict {
        let wait = hint.unwrap_or_default().max(predicted_wait());
        advise(headers, wait);
    }
    Ok(response)
}

/// The answer to a repetition of a CreateFlow that has created this flow.
pub(crate) fn replay(
    flow: &CreatedFlow<'_>,
    state: KeyState,
    format: &ErrorFormat,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(flow.write(format.format))));
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static(format.format.content_type()),
    );
    headers.insert(FLOWGATE_ATTEMPTS, HeaderValue::from(0));
    mark_key(headers, state);
    response
}

/// The answer is not protected by the call's idempotency key.
pub(crate) fn unmark_key(headers: &mut HeaderMap) {
    headers.remove(FLOWGATE_IDEMPOTENCY);
}

/// What the answer has to do with the call's idempotency key.
pub(crate) fn key_state(headers: &HeaderMap) -> Option<&'static str> {
    let stated = headers.get(FLOWGATE_IDEMPOTENCY)?;
    let mut states = KeyState::ALL.iter().map(|state| state.label());
    states.find(|state| stated == state)
}

/// States what the answer has to do with the call's idempotency key.
pub(crate) fn mark_key(headers: &mut HeaderMap, state: KeyState) {
    headers.insert(
        FLOWGATE_IDEMPOTENCY,
        HeaderValue::from_static(state.label()),
    );
}

/// The answer for a refusal.
pub(crate) fn refuse(
    refusal: &Refusal,
    format: &ErrorFormat,
    request_id: &str,
) -> Response<Full<Bytes>> {
    let code = refusal.kind.code();
    let body = ErrorBody {
        request_id,
        host_id: &format.host,
        code,
        message: refusal.message.as_str(),
        recommend: RECOMMEND,
        retry_after: refusal.retry_after.map(advice),
    };
    let mut response = Response::new(Full::new(Bytes::from(body.write(format.format))));
    *response.status_mut() = refusal.kind.status();
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static(format.format.content_type()),
    );
    headers.insert(FLOWGATE_ERROR, HeaderValue::from_static(code));
    headers.insert(
        "x-acs-request-id",
        HeaderValue::from_str(request_id).expect("request ids are printable"),
    );
    if let Some(wait) = refusal.retry_after {
        advise(headers, wait);
    }
    if let Some(state) = refusal.key {
        headers.insert(FLOWGATE_IDEMPOTENCY, HeaderValue::from_static(state));
    }
    if let Some(queued) = refusal.queued {
        headers.insert(
            "x-flowgate-queue-position",
            HeaderValue::from(queued.ahead + 1),
        );
        let millis = u64::try_from(queued.wait.as_millis()).unwrap_or(u64::MAX);
        headers.insert("x-flowgate-predicted-wait", HeaderValue::from(millis));
    }
    if leaves_rest_unread(refusal.kind) {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// During a shutdown, closes the connection after the answer, so that the caller's pool connects to
/// another replica.
pub(crate) fn closing(mut response: Response<Full<Bytes>>, phase: Phase) -> Response<Full<Bytes>> {
    if phase > Phase::Serving {
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// The answer to an HTTP request on a port that expects TLS.
pub(crate) fn tls_required(head: &request::Parts) -> Response<Full<Bytes>> {
    let refusal = Refusal::new(
        Kind::BadRequest,
        "This port requires TLS: set the SDK's protocol to HTTPS.",
    );
    refuse(&refusal, &ErrorFormat::of(head), &error_body::request_id())
}

/// The answer to a call that arrived at the admin port. `proxy` is the address of the proxy port.
pub(crate) fn admin_port(head: &request::Parts, proxy: &Bind) -> Response<Full<Bytes>> {
    let message = format!(
        "This is Flowgate's admin port: set the SDK's endpoint to the proxy port, which listens on \
         {proxy} (listen.proxy)."
    );
    let refusal = Refusal::new(Kind::BadRequest, message);
    refuse(&refusal, &ErrorFormat::of(head), &error_body::request_id())
}

/// The refusal of a call that panicked.
pub(crate) fn internal() -> Refusal {
    Refusal::new(
        Kind::Internal,
        "The call failed because of an internal error in Flowgate. CAMS has done nothing.",
    )
}

/// The refusal of a call whose signature by Flowgate CAMS rejected. The text names the cause.
fn refused_signature(verdict: &Verdict) -> Refusal {
    let cause = match verdict {
        Verdict::Clock {
            offset: Some(offset),
            ..
        } => {
            let side = if *offset < 0 { "ahead of" } else { "behind" };
            let seconds = offset.unsigned_abs();
            if seconds < EXPLAINED_BY_NETWORK {
                "its time stamp, although the clock of Flowgate's host agrees with the Date of this \
                 answer"
                    .to_owned()
            } else {
                format!("the clock of Flowgate's host is {seconds} seconds {side} CAMS's")
            }
        }
        Verdict::Clock { .. } => "the clock of Flowgate's host differs from CAMS's".to_owned(),
        _ if verdict.is_old_session() => {
            "its access key or security token is unknown, expired or disabled".to_owned()
        }
        _ if verdict.is_wrong_secret() => {
            "its access key and secret do not belong together".to_owned()
        }
        _ => "the request is not signed in the way that CAMS expects, or was changed on its way"
            .to_owned(),
    };
    let request_id = verdict.request_id().map_or("none", capped);
    let message = format!(
        "CAMS rejected the signature that Flowgate made for this account, and did nothing: \
         {cause}. Report this to the operator of Flowgate. CAMS's RequestId: {request_id}."
    );
    Refusal::new(Kind::AccountCredentials, message)
}

/// Sets the retry time in the SDKs' own header (milliseconds) and the standard one (seconds,
/// rounded up). Never zero.
fn advise(headers: &mut HeaderMap, wait: Duration) {
    let millis = advice(wait);
    headers.insert(ACS_RETRY_AFTER, HeaderValue::from(millis));
    headers.insert(RETRY_AFTER, HeaderValue::from(millis.div_ceil(1000)));
}

/// The retry time in milliseconds. Never zero, which would mean that there is none.
fn advice(wait: Duration) -> u64 {
    millis(wait).max(1)
}

/// Whether unread bytes of the request may follow, so that the connection must be closed.
fn leaves_rest_unread(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::BadRequest | Kind::TooLarge | Kind::BodyTimeout | Kind::Connect | Kind::ForeignHost
    )
}

/// The headers of an answer without hop-by-hop headers, and without those that only Flowgate or a
/// browser may set.
fn end_to_end(mut headers: HeaderMap) -> HeaderMap {
    let listed = connection_listed(&headers);
    // Of most answers this is the only one.
    headers.remove(CONTENT_LENGTH);
    let removed: Vec<HeaderName> = headers
        .keys()
        .filter(|name| is_removed(name))
        .cloned()
        .collect();
    for name in removed {
        headers.remove(name);
    }
    for name in listed {
        headers.remove(name.as_str());
    }
    headers
}

fn is_removed(name: &HeaderName) -> bool {
    let text = name.as_str();
    is_hop_by_hop(text)
        || [
            "alt-svc",
            "content-encoding",
            "content-length",
            "set-cookie",
        ]
        .contains(&text)
        || text.starts_with("x-flowgate-")
        || text.ends_with("-authenticate")
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use hyper::StatusCode;

    use super::*;

    fn answer(headers: &[(&'static str, &'static str)]) -> Option<UpstreamResponse> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        Some(UpstreamResponse {
            status: StatusCode::BAD_REQUEST,
            headers: map,
            body: Bytes::from_static(b"{}"),
        })
    }

    fn throttled(hint: Option<Duration>) -> Verdict {
        Verdict::Throttled {
            code: "Throttling".into(),
            source: crate::call::judge::ThrottleSource::Body,
            hint,
            request_id: None,
        }
    }

    const SERVICE: CallStats = CallStats {
        waited: Duration::from_micros(1_234_567),
        attempts: 3,
    };

    #[test]
    fn hop_by_hop_and_flowgate_headers_are_removed() {
        let upstream = answer(&[
            ("content-length", "2"),
            ("transfer-encoding", "chunked"),
            ("connection", "close, X-Hop"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("set-cookie", "a=b"),
            ("alt-svc", "h3"),
            ("www-authenticate", "Basic"),
            ("x-flowgate-error", "forged"),
            ("x-flowgate-waited", "forged"),
            ("content-type", "application/json;charset=utf-8"),
            ("x-acs-request-id", "R"),
        ]);
        let verdict = Verdict::UpstreamError {
            code: "x".into(),
            request_id: None,
        };
        let response =
            pass_on(upstream, &verdict, "CreateFlow", SERVICE, || Duration::ZERO).unwrap();
        let mut names: Vec<_> = response.headers().keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "content-type",
                "x-acs-request-id",
                "x-flowgate-attempts",
                "x-flowgate-waited"
            ]
        );
        assert_eq!(response.headers()["x-flowgate-waited"], "1234");
        assert_eq!(response.headers()["x-flowgate-attempts"], "3");
        assert_eq!(response.status(), 400);
    }

    #[test]
    fn headers_named_by_connection_are_dropped_even_if_another_name_is_not_ascii() {
        let mut headers = HeaderMap::new();
        let names = HeaderValue::from_bytes(b"X-Hop,, \xff\xc3\xa4, \tX-Other ").unwrap();
        headers.insert(CONNECTION, names);
        for name in ["x-hop", "x-other", "x-kept"] {
            headers.insert(name, HeaderValue::from_static("1"));
        }
        let kept = end_to_end(headers);
        assert_eq!(kept.keys().collect::<Vec<_>>(), ["x-kept"]);
    }

    #[test]
    fn a_throttled_answer_carries_a_retry_time_above_zero() {
        let hint = Some(Duration::from_secs(3));
        for (hint, predicted_wait, milliseconds, seconds) in [
            (None, Duration::ZERO, "1", "1"),
            (None, Duration::from_millis(1001), "1001", "2"),
            (hint, Duration::from_secs(1), "3000", "3"),
        ] {
            let verdict = throttled(hint);
            let response = pass_on(answer(&[]), &verdict, "CreateFlow", SERVICE, || {
                predicted_wait
            })
            .unwrap();
            assert_eq!(response.headers()["x-acs-retry-after"], milliseconds);
            assert_eq!(response.headers()["retry-after"], seconds);
        }
    }

    #[tokio::test]
    async fn refusals_have_the_shape_of_cams_errors() {
        let refusal = Refusal::after(
            Kind::WaitTooLong,
            Duration::from_millis(1500),
            "Too \"long\".",
        );
        let mut format = ErrorFormat {
            host: "h:1".into(),
            ..ErrorFormat::default()
        };
        let response = refuse(&refusal, &format, "REQUEST-ID");
        assert_eq!(response.status(), 400);
        assert_eq!(
            response.headers()["x-flowgate-error"],
            "System.LimitControl"
        );
        assert_eq!(
            response.headers()["content-type"],
            "application/json;charset=utf-8"
        );
        assert_eq!(response.headers()["x-acs-retry-after"], "1500");
        assert_eq!(response.headers()["retry-after"], "2");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["Code"], "System.LimitControl");
        assert_eq!(body["Message"], "Too \"long\".");
        assert_eq!(body["RequestId"], "REQUEST-ID");
        assert_eq!(body["HostId"], "h:1");
        assert_eq!(body["RetryAfter"], 1500);

        format.format = Format::Xml;
        let response = refuse(&refusal, &format, "REQUEST-ID");
        assert_eq!(response.headers()["content-type"], "text/xml;charset=utf-8");
    }

    #[test]
    fn the_refusal_of_a_signature_names_its_cause() {
        let credentials = |code: &str| Verdict::Credentials {
            code: code.into(),
            request_id: None,
        };
        let clock = |offset| Verdict::Clock {
            code: "InvalidTimeStamp.Expired".into(),
            offset,
            request_id: None,
        };
        for (verdict, cause) in [
            (
                credentials("SignatureDoesNotMatch"),
                "its access key and secret do not belong together.",
            ),
            (
                credentials("SecurityTokenExpired"),
                "its access key or security token is unknown, expired or disabled.",
            ),
            (
                credentials("InvalidAccessKeyId.Inactive"),
                "its access key or security token is unknown, expired or disabled.",
            ),
            (
                credentials("InvalidTimeStamp.Format"),
                "or was changed on its way.",
            ),
            (
                clock(Some(1200)),
                "the clock of Flowgate's host is 1200 seconds behind CAMS's.",
            ),
            (
                clock(Some(-1200)),
                "the clock of Flowgate's host is 1200 seconds ahead of CAMS's.",
            ),
            (
                clock(None),
                "the clock of Flowgate's host differs from CAMS's.",
            ),
        ] {
            let refusal = pass_on(answer(&[]), &verdict, "CreateFlow", SERVICE, || {
                Duration::ZERO
            })
            .unwrap_err();
            assert_eq!(refusal.kind, Kind::AccountCredentials);
            assert!(refusal.message.contains(cause), "{}", refusal.message);
        }
    }

    #[test]
    fn an_unknown_outcome_has_the_advice_for_its_action() {
        let verdict = Verdict::Unknown {
            reason: "CAMS reported a failure of its own",
            request_id: Some("R-1".into()),
        };
        for (action, advice) in [
            (
                "CreateFlow",
                "Check its effect (with ListFlow) before you repeat it.",
            ),
            (
                "ListFlow",
                "The action only reads, so the call may simply be repeated.",
            ),
        ] {
            let refusal =
                pass_on(answer(&[]), &verdict, action, SERVICE, || Duration::ZERO).unwrap_err();
            assert_eq!(refusal.kind, Kind::OutcomeUnknown);
            assert_eq!(
                refusal.message,
                format!(
                    "The call was sent to CAMS, but its outcome is unknown: CAMS reported a \
                     failure of its own. CAMS may have executed it. {advice} CAMS's RequestId: R-1."
                )
            );
        }
    }

    #[test]
    fn the_answer_to_a_rejected_signature_is_not_passed_on() {
        let verdict = Verdict::Credentials {
            code: "SignatureDoesNotMatch".into(),
            request_id: Some("R-1".into()),
        };
        let refusal = pass_on(answer(&[]), &verdict, "CreateFlow", SERVICE, || {
            Duration::ZERO
        })
        .unwrap_err();
        assert_eq!(refusal.kind, Kind::AccountCredentials);
        assert!(refusal.message.ends_with("CAMS's RequestId: R-1."));
    }
}
