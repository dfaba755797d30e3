//! The trace of a call. The trace id of a caller's W3C `traceparent` is logged, and the header is
//! forwarded to CAMS. If traces are exported, the call is a child span of the caller's span, its
//! waits and attempts are child spans of the call, and CAMS gets the span of the attempt.
//! `tracestate` is not forwarded: it would reveal other systems to CAMS.

use std::time::{Duration, SystemTime};

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;

pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The position of a call in a trace, and its spans so far.
pub(crate) struct Trace {
    place: SpanContext,
    /// `None` if the spans are not exported; then the caller's `traceparent` is forwarded
    /// unchanged.
    spans: Option<Spans>,
}

/// One span of one trace, as `traceparent` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SpanContext {
    pub(crate) trace: u128,
    pub(crate) span: u64,
    /// The two bits that version 00 defines: sampled, and random trace id.
    flags: u8,
}

/// The call's spans.
pub(crate) struct Spans {
    /// The caller's span, if there is one.
    pub(crate) parent: Option<u64>,
    /// The call's own span.
    pub(crate) own: SpanContext,
    pub(crate) arrived: Timestamp,
    pub(crate) steps: Vec<TraceStep>,
}

/// A moment in wall-clock time and in monotonic time. Steps are measured with the latter.
#[derive(Clone, Copy)]
pub(crate) struct Timestamp {
    pub(crate) wall: SystemTime,
    pub(crate) at: Instant,
}

/// A wait or an attempt of a call.
pub(crate) struct TraceStep {
    pub(crate) kind: Kind,
    pub(crate) span: u64,
    pub(crate) from: Instant,
    /// `None` if it had not ended when the call ended.
    pub(crate) until: Option<Instant>,
    /// The code of an attempt's verdict.
    pub(crate) code: Option<Box<str>>,
    /// CAMS's request id of an attempt.
    pub(crate) cams_request_id: Option<Box<str>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Waiting for a session of its account.
    Session,
    /// Queued.
    Queue,
    /// In flight.
    Attempt,
    /// Waiting after a throttled attempt, before it is queued again.
    BackOff,
}

const SAMPLED: u8 = 1;

// === impl Trace ===

impl Trace {
    /// The trace of a call: the caller's, or a new one if `begin` returns true. Spans are kept only
    /// for sampled calls, and only if they are `exported`.
    pub(crate) fn of(
        headers: &HeaderMap,
        exported: bool,
        arrived: Timestamp,
        begin: impl FnOnce() -> bool,
    ) -> Option<Self> {
        let caller = SpanContext::parse(headers);
        let is_sampled =
            exported && caller.map_or_else(begin, |caller| caller.flags & SAMPLED != 0);
        let spans = is_sampled.then(|| {
            let own = match caller {
                Some(caller) => SpanContext {
                    span: span_id(),
                    ..caller
                },
                None => SpanContext {
                    trace: fastrand::u128(1..),
                    span: span_id(),
                    flags: SAMPLED,
                },
            };
            Spans {
                parent: caller.map(|caller| caller.span),
                own,
                arrived,
                steps: Vec::new(),
            }
        });
        let place = spans.as_ref().map(|spans| spans.own).or(caller)?;
        Some(Self { place, spans })
    }

    /// The trace id, for the log.
    pub(crate) fn id(&self) -> String {
        format!("{:032x}", self.place.trace)
    }

    /// Ends the latest step and begins a new one.
    pub(crate) fn begin(&mut self, kind: Kind, now: Instant) {
        self.end(now);
        let Some(spans) = &mut self.spans else {
            return;
        };
        let span = span_id();
        spans.steps.push(TraceStep {
            kind,
            span,
            from: now,
            until: None,
            code: None,
            cams_request_id: None,
        });
        // CAMS gets the span of the attempt; outside of attempts the position is the call's own
        // span.
        self.place.span = match kind {
            Kind::Attempt => span,
            Kind::Session | Kind::Queue | Kind::BackOff => spans.own.span,
        };
    }

    /// The call waits for the back-off, then it is queued again.
    pub(crate) fn back_off(&mut self, after: Duration, now: Instant) {
        if !after.is_zero() {
            self.begin(Kind::BackOff, now);
        }
        self.begin(Kind::Queue, now + after);
    }

    /// Ends the latest step.
    pub(crate) fn end(&mut self, now: Instant) {
        if let Some(step) = self.latest() {
            step.until.get_or_insert(now);
        }
    }

    /// The latest attempt was not sent: removes its span. The call is queued again.
    pub(crate) fn unsent(&mut self, now: Instant) {
        if let Some(spans) = &mut self.spans {
            spans.steps.pop();
        }
        self.begin(Kind::Queue, now);
    }

    /// Ends the latest attempt with the code of its verdict.
    pub(crate) fn judged(&mut self, code: &str, cams_request_id: Option<&str>, now: Instant) {
        self.end(now);
        if let Some(step) = self.latest() {
            step.code = Some(code.into());
            step.cams_request_id = cams_request_id.map(Into::into);
        }
    }

    /// Adds `traceparent` to the headers of a request to CAMS.
    pub(crate) fn insert_traceparent(&self, headers: &mut HeaderMap) {
        headers.insert(TRACEPARENT, self.place.header());
    }

    /// The spans to export.
    pub(crate) fn into_spans(self) -> Option<Spans> {
        self.spans
    }

    fn latest(&mut self) -> Option<&mut TraceStep> {
        self.spans.as_mut()?.steps.last_mut()
    }
}

// === impl SpanContext ===

impl SpanContext {
    /// Parses the caller's `traceparent` by W3C Trace Context. It must occur once. Of later
    /// versions only the fields of version 00 are read.
    fn parse(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        let text = values
            .next()
            .filter(|_| values.next().is_none())?
            .to_str()
            .ok()?;
        let mut parts = text.splitn(5, '-');
        let version = hex_field(parts.next(), 2)?;
        let trace = hex_field(parts.next(), 32)?;
        let span = hex_field(parts.next(), 16)?;
        let flags = hex_field(parts.next(), 2)?;
        let has_more = parts.next().is_some();
        if version == "ff" || version == "00" && has_more {
            return None;
        }
        let place = Self {
            trace: u128::from_str_radix(trace, 16).ok()?,
            span: u64::from_str_radix(span, 16).ok()?,
            flags: u8::from_str_radix(flags, 16).ok()? & 0b11,
        };
        Some(place).filter(|place| place.trace != 0 && place.span != 0)
    }

    fn header(&self) -> HeaderValue {
        let text = format!(
            "00-{:032x}-{:016x}-{:02x}",
            self.trace, self.span, self.flags
        );
        HeaderValue::try_from(text).expect("hexadecimal digits and dashes make a value")
    }
}

/// A field of this many lower-case hexadecimal digits.
fn hex_field(text: Option<&str>, length: usize) -> Option<&str> {
    text.filter(|text| text.len() == length && text.bytes().all(is_hex))
}

/// W3C Trace Context does not allow upper case.
fn is_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

fn span_id() -> u64 {
    fastrand::u64(1..)
}

// === impl Timestamp ===

impl Timestamp {
    /// The wall-clock time of an instant.
    pub(crate) fn wall_at(&self, at: Instant) -> SystemTime {
        self.wall + at.saturating_duration_since(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn headers(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(TRACEPARENT, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn now() -> Timestamp {
        Timestamp {
            wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
            at: Instant::now(),
        }
    }

    fn forwarded(trace: &Trace) -> String {
        let mut headers = HeaderMap::new();
        trace.insert_traceparent(&mut headers);
        headers[TRACEPARENT].to_str().unwrap().to_owned()
    }

    #[test]
    fn only_a_well_formed_traceparent_is_read() {
        let parse = |value: &str| SpanContext::parse(&headers(&[value]));
        let place = SpanContext {
            trace: 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c,
            span: 0xb7ad_6b71_6920_3331,
            flags: 1,
        };
        assert_eq!(parse(CALLER), Some(place));
        assert_eq!(
            parse(&CALLER.replace("-01", "-fc")),
            Some(SpanContext { flags: 0, ..place })
        );
        // A later version may have more fields.
        assert_eq!(
            parse(&CALLER.replace("00-", "cc-").replace("-01", "-01-what-else")),
            Some(place)
        );
        for wrong in [
            "",
            "00",
            &CALLER[..54],
            &CALLER.to_uppercase(),
            &format!("{CALLER}-"),
            &format!("{CALLER}0"),
            &CALLER.replace("00-", "ff-"),
            &CALLER.replace("00-", "0-"),
            &CALLER.replace("b7ad6b7169203331", "0000000000000000"),
            &CALLER.replace(
                "0af7651916cd43dd8448eb211c80319c",
                "00000000000000000000000000000000",
            ),
            &CALLER.replace("0af7", "+af7"),
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
        assert_eq!(SpanContext::parse(&headers(&[])), None);
        assert_eq!(SpanContext::parse(&headers(&[CALLER, CALLER])), None);
    }

    #[test]
    fn without_a_collector_the_callers_traceparent_is_forwarded_unchanged() {
        let mut trace = Trace::of(&headers(&[CALLER]), false, now(), || {
            panic!("the caller has decided")
        })
        .unwrap();
        trace.begin(Kind::Attempt, Instant::now());
        assert_eq!(forwarded(&trace), CALLER);
        assert_eq!(trace.id(), "0af7651916cd43dd8448eb211c80319c");
        assert!(trace.into_spans().is_none());
        assert!(Trace::of(&headers(&[]), false, now(), || true).is_none());
    }

    #[test]
    fn the_caller_decides_sampling_and_the_percentage_decides_for_calls_without_a_trace() {
        let spans = |values: &[&str], begin: bool| {
            Trace::of(&headers(values), true, now(), || begin)
                .and_then(Trace::into_spans)
                .map(|spans| spans.parent)
        };
        let caller = Some(Some(0xb7ad_6b71_6920_3331));
        assert_eq!(spans(&[CALLER], false), caller);
        assert_eq!(spans(&[&CALLER.replace("-01", "-00")], true), None);
        assert_eq!(spans(&[], true), Some(None));
        assert_eq!(spans(&[], false), None);
        assert_eq!(spans(&["garbage"], true), Some(None));
    }

    #[tokio::test(start_paused = true)]
    async fn each_wait_and_attempt_is_a_span_and_cams_gets_the_attempts_own() {
        let start = now();
        let mut trace = Trace::of(&headers(&[CALLER]), true, start, || false).unwrap();
        trace.begin(Kind::Queue, Instant::now());
        tokio::time::advance(Duration::from_millis(7)).await;
        trace.begin(Kind::Attempt, Instant::now());
        trace.unsent(Instant::now());
        trace.begin(Kind::Attempt, Instant::now());
        let first = forwarded(&trace);
        tokio::time::advance(Duration::from_millis(30)).await;
        trace.judged("System.LimitControl", Some("R-1"), Instant::now());
        trace.back_off(Duration::from_millis(500), Instant::now());
        tokio::time::advance(Duration::from_millis(500)).await;
        trace.begin(Kind::Attempt, Instant::now());
        let second = forwarded(&trace);
        let spans = trace.into_spans().unwrap();
        let millis = |at: Instant| (at - start.at).as_millis();
        let steps: Vec<_> = spans
            .steps
            .iter()
            .map(|step| (step.kind, millis(step.from), step.until.map(millis)))
            .collect();
        let expected = [
            (Kind::Queue, 0, Some(7)),
            (Kind::Queue, 7, Some(7)),
            (Kind::Attempt, 7, Some(37)),
            (Kind::BackOff, 37, Some(537)),
            (Kind::Queue, 537, Some(537)),
            (Kind::Attempt, 537, None),
        ];
        assert_eq!(steps, expected);
        assert_eq!(spans.steps[2].code.as_deref(), Some("System.LimitControl"));
        assert_eq!(spans.steps[2].cams_request_id.as_deref(), Some("R-1"));
        let header =
            |step: &TraceStep| format!("00-0af7651916cd43dd8448eb211c80319c-{:016x}-01", step.span);
        assert_eq!(
            [first, second],
            [header(&spans.steps[2]), header(&spans.steps[5])]
        );
        assert_ne!(spans.own.span, spans.steps[5].span);
        assert_eq!(
            start.wall_at(spans.steps[5].from),
            start.wall + Duration::from_millis(537)
        );
    }
}
