//! Arbitrary answers of CAMS: the verdict, the pause, the decision and the answer to the caller
//! stay within the configured bounds, and no attempt is repeated unless CAMS clearly throttled it.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use tokio::time::Instant;

use super::first_line;
use crate::acs::answer as document;
use crate::acs::error_body::{ErrorBody, Format};
use crate::call::hold;
use crate::call::judge::{self, Context, ThrottleSource, Verdict};
use crate::call::reply;
use crate::call::retry::{self, Decision, RetryState};
use crate::config::{self, Config};
use crate::limiter::pause::{Pause, ThrottleRefusal};
use crate::observe::record::CallStats;
use crate::upstream::UpstreamResponse;

const STATUSES: [u16; 12] = [200, 201, 204, 302, 400, 403, 404, 409, 429, 500, 503, 599];
const TYPES: [&str; 4] = [
    "",
    "application/json;charset=utf-8",
    "text/xml;charset=utf-8",
    "text/html",
];
const SERVICE: CallStats = CallStats {
    waited: Duration::ZERO,
    attempts: 1,
};

fn is_throttle(code: &str) -> bool {
    code == "System.LimitControl" || code == "Throttling" || code.starts_with("Throttling.")
}

static DEFAULTS: LazyLock<Config> = LazyLock::new(|| {
    config::load(None, [])
        .expect("the default configuration is valid")
        .config
});

/// The first byte selects a status, the second a content type; the rest is the body.
pub fn answer(input: &[u8]) {
    let [status, kind, body @ ..] = input else {
        return;
    };
    let status = STATUSES[usize::from(*status) % STATUSES.len()];
    let kind = TYPES[usize::from(*kind) % TYPES.len()];
    for (managed, limited) in [(true, true), (false, true), (true, false)] {
        let context = Context {
            managed,
            limited,
            action: "CreateFlow",
        };
        let whole = made(status, kind, body);
        let verdict = judge::judge(&whole, context, SystemTime::now);
        if let Verdict::Throttled { code, source, .. } = &verdict {
            assert!(
                [200, 400, 429].contains(&status) && is_throttle(code),
                "{status} {code}"
            );
            assert_eq!(*source, ThrottleSource::Body);
            check_throttled(status, kind, body, context);
        }
        let is_own = matches!(
            verdict,
            Verdict::Credentials { .. } | Verdict::Clock { .. } | Verdict::Unknown { .. }
        );
        let passed = reply::pass_on(Some(whole), &verdict, "CreateFlow", SERVICE, || {
            Duration::ZERO
        });
        assert_eq!(
            passed.is_err(),
            is_own,
            "only answers of CAMS to the caller are passed on"
        );
        passed.iter().for_each(check_headers);
    }
    written(body);
}

/// A throttled answer is a complete document, and another parser agrees.
fn check_throttled(status: u16, kind: &str, body: &[u8], context: Context<'_>) {
    let cut = body
        .trim_ascii_end()
        .split_last()
        .map(|(_, rest)| rest)
        .unwrap_or_default();
    let verdict_on_cut = judge::judge(&made(status, kind, cut), context, SystemTime::now);
    assert!(
        !matches!(verdict_on_cut, Verdict::Throttled { .. }),
        "an incomplete document is not a throttled answer"
    );
    if kind.contains("json") {
        assert!(
            is_throttled_json(body, status == 200),
            "another parser agrees"
        );
    }
}

/// Whether the document has a throttle code at its top level, according to serde.
fn is_throttled_json(body: &[u8], without_data: bool) -> bool {
    let Ok(serde_json::Value::Object(fields)) = serde_json::from_slice(body) else {
        return false;
    };
    let code = fields.get("Code").or_else(|| fields.get("code"));
    let code = code.and_then(|code| code.as_str());
    let data = fields.get("Data").or_else(|| fields.get("data"));
    let has_data = data.is_some_and(|data| !data.is_null());
    code.is_some_and(is_throttle) && !(without_data && has_data)
}

/// An SDK finds the right code in Flowgate's own errors, whatever text they contain.
fn written(text: &[u8]) {
    let text = String::from_utf8_lossy(text);
    let error = ErrorBody {
        request_id: "1",
        host_id: &text,
        code: "Flowgate.BadRequest",
        message: &text,
        recommend: "",
        retry_after: None,
    };
    for format in [Format::Json, Format::Xml] {
        let summary = document::read(Some(format.content_type()), error.write(format).as_bytes());
        let code = summary.expect("Flowgate's own error can be parsed").code;
        assert_eq!(code.as_deref(), Some("Flowgate.BadRequest"));
    }
}

fn made(status: u16, kind: &str, body: &[u8]) -> UpstreamResponse {
    let mut headers = HeaderMap::new();
    if !kind.is_empty() {
        headers.insert(
            "content-type",
            HeaderValue::from_str(kind).expect("a content type is ASCII"),
        );
    }
    let status = StatusCode::from_u16(status).expect("the statuses above are all valid");
    UpstreamResponse {
        status,
        headers,
        body: Bytes::copy_from_slice(body),
    }
}

fn check_headers<B>(response: &Response<B>) {
    let headers = response.headers();
    for name in [
        "connection",
        "content-length",
        "transfer-encoding",
        "set-cookie",
        "alt-svc",
        "upgrade",
    ] {
        assert!(!headers.contains_key(name), "{name} is a hop-by-hop header");
    }
    for name in headers.keys().map(HeaderName::as_str) {
        let is_own = ["x-flowgate-waited", "x-flowgate-attempts"].contains(&name);
        assert!(is_own || !name.starts_with("x-flowgate-"), "{name}");
    }
}

/// Lines of `name: value` are the headers of a call and of an answer; the first line selects the
/// status.
pub fn hints(input: &[u8]) {
    let (first, rest) = first_line(input);
    let status = STATUSES[first.first().map_or(0, |byte| usize::from(*byte)) % STATUSES.len()];
    let headers: HeaderMap = rest
        .split(|byte| *byte == b'\n')
        .filter_map(header)
        .collect();
    if let Ok(hold) = hold::hold(&headers, None, &DEFAULTS.queue) {
        assert!(
            !hold.is_zero() && hold <= DEFAULTS.queue.max_hold,
            "{hold:?}"
        );
    }
    let body = Bytes::from_static(b"{\"Code\":\"System.LimitControl\"}");
    let status = StatusCode::from_u16(status).expect("the statuses above are all valid");
    let answer = UpstreamResponse {
        status,
        headers,
        body,
    };
    let verdict = judge::judge(
        &answer,
        Context {
            managed: true,
            limited: true,
            action: "CreateFlow",
        },
        SystemTime::now,
    );
    let Verdict::Throttled { hint, .. } = &verdict else {
        return;
    };
    check_pause(*hint);
    check_retry(&verdict);
    let response = reply::pass_on(Some(answer), &verdict, "CreateFlow", SERVICE, || {
        Duration::ZERO
    });
    let response = response.expect("a throttled answer is passed on");
    check_headers(&response);
    for name in ["x-acs-retry-after", "retry-after"] {
        let mut values = response.headers().get_all(name).iter();
        let value = values
            .next()
            .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        assert!(
            value.is_some_and(|wait| wait > 0) && values.next().is_none(),
            "{name} occurs once and is not zero"
        );
    }
}

/// A lane never pauses longer than the configuration allows.
fn check_pause(hint: Option<Duration>) {
    let now = Instant::now();
    let policy = &DEFAULTS.retry;
    let mut pause = Pause::default();
    pause.throttled(
        &ThrottleRefusal {
            written_at: now,
            hint,
            isolated: false,
        },
        policy,
        now,
        0.99,
    );
    assert!(
        pause.remaining(now) <= policy.max_pause,
        "max_pause bounds every pause"
    );
}

/// A call without a lane never waits longer than the configuration allows.
fn check_retry(verdict: &Verdict) {
    let policy = &DEFAULTS.retry;
    let alone = RetryState {
        sent: 1,
        can_repeat: true,
        has_lane: false,
        is_read: false,
        left: Duration::from_secs(3600),
    };
    if let Decision::Again { after } = retry::decide(verdict, alone, policy, 0.99) {
        assert!(after <= policy.max_pause);
    }
}

fn header(line: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let name = HeaderName::from_bytes(&line[..colon]).ok()?;
    Some((
        name,
        HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?,
    ))
}
