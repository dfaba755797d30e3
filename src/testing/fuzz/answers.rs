//! What may an answer of CAMS lead to, whatever it says? A verdict, a pause, a decision and an answer to the caller, all
//! within the bounds that the configuration sets, and never a second attempt that CAMS did not clearly ask for.

use std::sync::LazyLock;
use std::time::Duration;

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
use crate::call::retry::{self, Decision, Tries};
use crate::config::{self, Config};
use crate::limiter::pause::{Pause, ThrottleRefusal};
use crate::observe::record::Service;
use crate::upstream::Answer;

const STATUSES: [u16; 12] = [200, 201, 204, 302, 400, 403, 404, 409, 429, 500, 503, 599];
const TYPES: [&str; 4] = [
    "",
    "application/json;charset=utf-8",
    "text/xml;charset=utf-8",
    "text/html",
];
const SERVICE: Service = Service {
    waited: Duration::ZERO,
    attempts: 1,
};

fn is_throttle(code: &str) -> bool {
    code == "System.LimitControl" || code == "Throttling" || code.starts_with("Throttling.")
}

static DEFAULTS: LazyLock<Config> = LazyLock::new(|| {
    config::load(None, [])
        .expect("without a setting there is no mistake")
        .config
});

/// A status by the first byte, a content type by the second, then the body.
pub fn answer(input: &[u8]) {
    let [status, kind, body @ ..] = input else {
        return;
    };
    let status = STATUSES[usize::from(*status) % STATUSES.len()];
    let kind = TYPES[usize::from(*kind) % TYPES.len()];
    for (managed, limited) in [(true, true), (false, true), (true, false)] {
        let judged = |body: &[u8]| {
            let answer = made(status, kind, body);
            (judge::judge(&answer, Context { managed, limited }), answer)
        };
        let (verdict, whole) = judged(body);
        if let Verdict::Throttled { code, source, .. } = &verdict {
            assert!(
                [200, 400, 429].contains(&status) && is_throttle(code),
                "{status} {code}"
            );
            assert_eq!(*source, ThrottleSource::Body);
            let cut = body
                .trim_ascii_end()
                .split_last()
                .map(|(_, rest)| rest)
                .unwrap_or_default();
            assert!(
                !matches!(judged(cut).0, Verdict::Throttled { .. }),
                "half a document says nothing"
            );
            if kind.contains("json") {
                assert!(
                    says_so_in_json(body, status == 200),
                    "by another reader, too"
                );
            }
        }
        let is_own = matches!(
            verdict,
            Verdict::Credentials { .. } | Verdict::Unknown { .. }
        );
        let passed = reply::pass_on(Some(whole), &verdict, SERVICE, || Duration::ZERO);
        assert_eq!(
            passed.is_err(),
            is_own,
            "what is not CAMS's answer to the caller stays inside"
        );
        passed.iter().for_each(check_headers);
    }
    written(body);
}

/// Whether serde's tree has a throttle code at its top.
fn says_so_in_json(body: &[u8], without_data: bool) -> bool {
    let Ok(serde_json::Value::Object(fields)) = serde_json::from_slice(body) else {
        return false;
    };
    let field = |upper: &str, lower: &str| fields.get(upper).or_else(|| fields.get(lower));
    let code = field("Code", "code").and_then(|code| code.as_str());
    let data = field("Data", "data").is_some_and(|data| !data.is_null());
    code.is_some_and(is_throttle) && !(without_data && data)
}

/// Whatever stands in one of Flowgate's own errors, an SDK finds its code and nothing that it might take for another.
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
        let code = summary.expect("what Flowgate writes is read").code;
        assert_eq!(code.as_deref(), Some("Flowgate.BadRequest"));
    }
}

fn made(status: u16, kind: &str, body: &[u8]) -> Answer {
    let mut headers = HeaderMap::new();
    if !kind.is_empty() {
        headers.insert(
            "content-type",
            HeaderValue::from_str(kind).expect("a content type is ASCII"),
        );
    }
    let status = StatusCode::from_u16(status).expect("the statuses above are all valid");
    Answer {
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
        assert!(
            !headers.contains_key(name),
            "{name} is between two neighbours"
        );
    }
    let own =
        |name: &HeaderName| ["x-flowgate-waited", "x-flowgate-attempts"].contains(&name.as_str());
    assert!(
        headers
            .keys()
            .all(|name| own(name) || !name.as_str().starts_with("x-flowgate-"))
    );
}

/// Lines of `name: value`, as a caller's or an answer's headers; the first line holds the status.
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
    let answer = Answer {
        status,
        headers,
        body,
    };
    let verdict = judge::judge(
        &answer,
        Context {
            managed: true,
            limited: true,
        },
    );
    let Verdict::Throttled { hint, .. } = &verdict else {
        return;
    };
    let (now, policy) = (Instant::now(), &DEFAULTS.retry);
    let mut pause = Pause::default();
    pause.throttled(
        &ThrottleRefusal {
            written_at: now,
            hint: *hint,
            isolated: false,
        },
        policy,
        now,
        0.99,
    );
    assert!(
        pause.remaining(now) <= policy.max_pause,
        "nobody pauses a lane for longer"
    );
    let left = Duration::from_secs(3600);
    let alone = Tries {
        sent: 1,
        can_repeat: true,
        has_lane: false,
        left,
    };
    if let Decision::Again { after } = retry::decide(&verdict, alone, policy, 0.99) {
        assert!(after <= policy.max_pause);
    }
    let response = reply::pass_on(Some(answer), &verdict, SERVICE, || Duration::ZERO);
    let response = response.expect("a throttle refusal is the caller's to read");
    check_headers(&response);
    for name in ["x-acs-retry-after", "retry-after"] {
        let mut values = response.headers().get_all(name).iter();
        let value = values
            .next()
            .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        assert!(
            value.is_some_and(|wait| wait > 0) && values.next().is_none(),
            "{name} is there once and never zero"
        );
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
