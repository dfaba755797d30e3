//! Which trace is a call part of, and where has the call been? A caller's W3C `traceparent` stands in the log and goes on
//! to CAMS; where traces are exported, the call is a span below the caller's, its waits and attempts are spans below
//! that, and an attempt's span is what CAMS is told. `tracestate` does not go on: it would tell CAMS of others' systems.

use std::time::{Duration, SystemTime};

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;

pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// A call's place in a trace, and what it has done so far.
pub(crate) struct Trace {
    place: Place,
    /// None: nobody wants to know, and the caller's place goes on as it is.
    spans: Option<Spans>,
}

/// One span of one trace, as `traceparent` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) trace: u128,
    pub(crate) span: u64,
    /// The last two bits of the version that is known: sampled, and a random trace id.
    flags: u8,
}

/// The call's spans.
pub(crate) struct Spans {
    /// The caller's, if there is one.
    pub(crate) parent: Option<u64>,
    /// The call's own.
    pub(crate) own: Place,
    pub(crate) arrived: Moment,
    pub(crate) steps: Vec<Step>,
}

/// A moment by both clocks: steps are timed by the one that nobody sets.
#[derive(Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) wall: SystemTime,
    pub(crate) at: Instant,
}

/// Something that a call did or waited for.
pub(crate) struct Step {
    pub(crate) kind: Kind,
    pub(crate) span: u64,
    pub(crate) from: Instant,
    /// None: it had no end when the call ended.
    pub(crate) until: Option<Instant>,
    /// What came of an attempt.
    pub(crate) code: Option<Box<str>>,
    /// CAMS's name for it.
    pub(crate) cams_request_id: Option<Box<str>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Waits for its turn.
    Queue,
    /// At CAMS.
    Attempt,
    /// Between a refusal and the queue.
    BackOff,
}

const SAMPLED: u8 = 1;

// === impl Trace ===

impl Trace {
    /// The call's trace: the caller's, or a new one if `begin` says so. Spans are only kept of what is sampled, and
    /// where they are `exported`.
    pub(crate) fn of(
        headers: &HeaderMap,
        exported: bool,
        arrived: Moment,
        begin: impl FnOnce() -> bool,
    ) -> Option<Self> {
        let caller = Place::parse(headers);
        let is_sampled =
            exported && caller.map_or_else(begin, |caller| caller.flags & SAMPLED != 0);
        let spans = is_sampled.then(|| {
            let own = match caller {
                Some(caller) => Place {
                    span: span_id(),
                    ..caller
                },
                None => Place {
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

    /// The trace's id, for the log.
    pub(crate) fn id(&self) -> String {
        format!("{:032x}", self.place.trace)
    }

    /// What begins now, after what was before has ended.
    pub(crate) fn begin(&mut self, kind: Kind, now: Instant) {
        self.end(now);
        if let Some(spans) = &mut self.spans {
            let step = Step {
                kind,
                span: span_id(),
                from: now,
                until: None,
                code: None,
                cams_request_id: None,
            };
            spans.steps.push(step);
            self.place.span = spans
                .steps
                .last()
                .filter(|_| kind == Kind::Attempt)
                .map_or(spans.own.span, |step| step.span);
        }
    }

    /// So long nothing happens, and then it waits again.
    pub(crate) fn back_off(&mut self, after: Duration, now: Instant) {
        if !after.is_zero() {
            self.begin(Kind::BackOff, now);
        }
        self.begin(Kind::Queue, now + after);
    }

    /// What was begun last ends.
    pub(crate) fn end(&mut self, now: Instant) {
        if let Some(step) = self.latest() {
            step.until.get_or_insert(now);
        }
    }

    /// The attempt that was begun last was none: it waits again.
    pub(crate) fn unsent(&mut self, now: Instant) {
        if let Some(spans) = &mut self.spans {
            spans.steps.pop();
        }
        self.begin(Kind::Queue, now);
    }

    /// What came of the attempt that was begun last.
    pub(crate) fn judged(&mut self, code: &str, cams_request_id: Option<&str>, now: Instant) {
        self.end(now);
        if let Some(step) = self.latest() {
            step.code = Some(code.into());
            step.cams_request_id = cams_request_id.map(Into::into);
        }
    }

    /// Says to whom the request goes which span it is part of.
    pub(crate) fn onto(&self, headers: &mut HeaderMap) {
        headers.insert(TRACEPARENT, self.place.header());
    }

    /// What is to be exported.
    pub(crate) fn into_spans(self) -> Option<Spans> {
        self.spans
    }

    fn latest(&mut self) -> Option<&mut Step> {
        self.spans.as_mut()?.steps.last_mut()
    }
}

// === impl Place ===

impl Place {
    /// The caller's, if it says so once and in the form of W3C Trace Context: version 00, or as much of a later one as
    /// that defines.
    fn parse(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        let text = values
            .next()
            .filter(|_| values.next().is_none())?
            .to_str()
            .ok()?;
        let mut parts = text.splitn(5, '-');
        let mut part = |length| {
            parts
                .next()
                .filter(|part| part.len() == length && part.bytes().all(is_hex))
        };
        let version = part(2)?;
        let (trace, span, flags) = (part(32)?, part(16)?, part(2)?);
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

/// Upper case is not allowed.
fn is_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

fn span_id() -> u64 {
    fastrand::u64(1..)
}

// === impl Moment ===

impl Moment {
    /// When this was, by the clock on the wall.
    pub(crate) fn wall_at(&self, at: Instant) -> SystemTime {
        self.wall + at.saturating_duration_since(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn said(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(TRACEPARENT, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn now() -> Moment {
        Moment {
            wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
            at: Instant::now(),
        }
    }

    fn goes_on(trace: &Trace) -> String {
        let mut headers = HeaderMap::new();
        trace.onto(&mut headers);
        headers[TRACEPARENT].to_str().unwrap().to_owned()
    }

    #[test]
    fn a_traceparent_is_read_in_its_form_only() {
        let parse = |value: &str| Place::parse(&said(&[value]));
        let place = Place {
            trace: 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c,
            span: 0xb7ad_6b71_6920_3331,
            flags: 1,
        };
        assert_eq!(parse(CALLER), Some(place));
        assert_eq!(
            parse(&CALLER.replace("-01", "-fc")),
            Some(Place { flags: 0, ..place })
        );
        // A later version may say more.
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
        assert_eq!(Place::parse(&said(&[])), None);
        assert_eq!(Place::parse(&said(&[CALLER, CALLER])), None);
    }

    #[test]
    fn without_a_collector_the_callers_place_goes_on_as_it_is() {
        let mut trace =
            Trace::of(&said(&[CALLER]), false, now(), || panic!("nobody asks")).unwrap();
        trace.begin(Kind::Attempt, Instant::now());
        assert_eq!(goes_on(&trace), CALLER);
        assert_eq!(trace.id(), "0af7651916cd43dd8448eb211c80319c");
        assert!(trace.into_spans().is_none());
        assert!(Trace::of(&said(&[]), false, now(), || true).is_none());
    }

    #[test]
    fn the_caller_decides_whether_it_is_sampled_and_the_share_decides_for_the_others() {
        let spans = |values: &[&str], begin: bool| {
            Trace::of(&said(values), true, now(), || begin)
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
    async fn each_wait_and_attempt_is_a_span_and_cams_is_told_of_its_own() {
        let (start, pass) = (now(), |millis| {
            tokio::time::advance(Duration::from_millis(millis))
        });
        let mut trace = Trace::of(&said(&[CALLER]), true, start, || false).unwrap();
        trace.begin(Kind::Queue, Instant::now());
        pass(7).await;
        trace.begin(Kind::Attempt, Instant::now());
        trace.unsent(Instant::now());
        trace.begin(Kind::Attempt, Instant::now());
        let first = goes_on(&trace);
        pass(30).await;
        trace.judged("System.LimitControl", Some("R-1"), Instant::now());
        trace.back_off(Duration::from_millis(500), Instant::now());
        pass(500).await;
        trace.begin(Kind::Attempt, Instant::now());
        let second = goes_on(&trace);
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
            |step: &Step| format!("00-0af7651916cd43dd8448eb211c80319c-{:016x}-01", step.span);
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
