//! The calls that ended last: `/calls`, filtered, and `/calls/<request id>`: the way of one call and
//! why it waited. The texts are made here, so that the page and `flowgate why` say the same.

use hyper::StatusCode;
use hyper::header::{ACCEPT, HeaderMap};
use serde::Serialize;
use serde_json::json;

use super::{JSON, Page};
use crate::acs::decode::Params;
use crate::call::services::CallServices;
use crate::error::Outcome;
use crate::observe::record::{Arrival, AttemptNote, CallDetails, CallView, Filter};

/// The path of a call, before its request id.
pub(super) const PATH: &str = "/calls/";

/// The number of calls in a list, unless the request says otherwise.
const LISTED: usize = 100;
/// Maximum number of calls in a list: all that are kept.
const MAX_LISTED: usize = 2000;

const EXPECTED: &str = "Expected account, client, outcome (ok, upstream_error, throttled, refused, \
                        outcome_unknown, unreachable, cancelled, invalid) and limit (1 to 2000).\n";
const NOT_KEPT: &str = "No call with this request id is among the 1000 successful and 1000 other calls that ended last in \
                        this process. A call that still waits is not among them; the log has a line for each call.\n";

/// A call as `/calls/<request id>` shows it. Times in milliseconds are since its arrival.
#[derive(Debug, Serialize)]
struct CallPage {
    #[serde(flatten)]
    call: CallView,
    /// How long it might be kept; `null` if it ended before it was classified.
    hold_ms: Option<u64>,
    /// Until when it might be sent.
    send_by_ms: Option<u64>,
    /// Of its lane; `null` if the action has no limit.
    limit_per_second: Option<f64>,
    /// How long it waited for a session of its account.
    session_ms: u32,
    /// The queue that it found; `null` if it did not have to queue.
    arrival: Option<Arrival>,
    tries: Vec<AttemptNote>,
    /// What Flowgate told the caller, if CAMS's answer was not passed on.
    detail: Option<Box<str>>,
    summary: String,
    steps: Vec<Step>,
    /// Why it waited, in sentences.
    why: Vec<String>,
}

/// One step of a call.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Step {
    at_ms: u64,
    text: String,
}

/// Whether a request for a call comes from a browser's address bar or a link. It gets the page,
/// which has no data and requests it.
pub(super) fn wants_html(path: &str, headers: &HeaderMap) -> bool {
    path.starts_with(PATH)
        && headers
            .get(ACCEPT)
            .and_then(|accept| accept.to_str().ok())
            .is_some_and(|accept| accept.contains("text/html"))
}

/// The list of calls.
pub(super) fn list(services: &CallServices, query: &str) -> Page {
    let Some((filter, limit)) = parse(query) else {
        return Page::refused(StatusCode::BAD_REQUEST, EXPECTED);
    };
    let calls = services.telemetry.recent.views(&filter, limit);
    Page::ok(JSON, json!({ "calls": calls }).to_string())
}

/// The page of one call.
pub(super) fn one(services: &CallServices, path: &str) -> Page {
    let request_id = path.strip_prefix(PATH).unwrap_or_default();
    match services.telemetry.recent.find(request_id) {
        None => Page::refused(StatusCode::NOT_FOUND, NOT_KEPT),
        Some(details) => {
            let page = serde_json::to_string(&CallPage::from(details));
            Page::ok(JSON, page.expect("a call can be serialised"))
        }
    }
}

fn parse(query: &str) -> Option<(Filter, usize)> {
    let params = Params::from_query(query).ok()?;
    let mut filter = Filter::default();
    let mut limit = LISTED;
    for (name, value) in params.iter() {
        match name {
            "account" => filter.account = Some(value.to_owned()),
            "client" => filter.client = Some(value.to_owned()),
            "outcome" => {
                Outcome::ALL
                    .iter()
                    .find(|outcome| outcome.label() == value)?;
                filter.outcome = Some(value.to_owned());
            }
            "limit" => {
                limit = value
                    .parse()
                    .ok()
                    .filter(|limit| (1..=MAX_LISTED).contains(limit))?;
            }
            _ => return None,
        }
    }
    Some((filter, limit))
}

// === impl CallPage ===

impl From<CallDetails> for CallPage {
    fn from(details: CallDetails) -> Self {
        let summary = summary(&details.view);
        let steps = steps(&details);
        let why = why(&details);
        let CallDetails {
            view,
            hold_ms,
            send_by_ms,
            limit_per_second,
            session_ms,
            arrival,
            attempts,
            detail,
        } = details;
        Self {
            call: view,
            hold_ms,
            send_by_ms,
            limit_per_second,
            session_ms,
            arrival,
            tries: attempts,
            detail,
            summary,
            steps,
            why,
        }
    }
}

fn summary(call: &CallView) -> String {
    let client = match &*call.client {
        "" => String::new(),
        client => format!(" of {client}"),
    };
    let attempts = match call.attempts {
        0 if call.first_request_id.is_some() => {
            "was not sent itself, because it repeats another call".to_owned()
        }
        0 if call.outcome == Outcome::Ok.label() => {
            "was not sent itself, because an earlier call of its order was executed".to_owned()
        }
        0 => "was not sent".to_owned(),
        1 => "was sent once".to_owned(),
        attempts => format!("was sent {attempts} times"),
    };
    format!(
        "{} / {}{client}: {}. It took {}, waited {} and {attempts}.",
        call.account,
        call.action,
        ending(call),
        seconds(call.took_ms),
        seconds(call.waited_ms),
    )
}

fn ending(call: &CallView) -> String {
    let outcome = call.outcome.replace('_', " ");
    match call.status {
        _ if call.outcome == Outcome::Ok.label() => outcome,
        0 => format!("{outcome}, the caller disconnected"),
        status => format!("{outcome}, HTTP {status} {}", call.code),
    }
}

fn steps(details: &CallDetails) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut step = |at_ms: u64, text: String| steps.push(Step { at_ms, text });
    let CallDetails {
        view,
        hold_ms,
        session_ms,
        arrival,
        attempts,
        ..
    } = details;
    step(
        0,
        match hold_ms {
            Some(hold) => format!("arrived; may be kept for {}", seconds(*hold)),
            None => "arrived".to_owned(),
        },
    );
    let session_ms = u64::from(*session_ms);
    if session_ms > 0 {
        step(0, format!("waited {} for a session", seconds(session_ms)));
    }
    if let Some(arrival) = arrival {
        let predicted = seconds(u64::from(arrival.predicted_ms));
        let verb = if arrival.queued {
            "queued"
        } else {
            "not queued"
        };
        let text = format!(
            "{verb}: {} before it, forecast {predicted}",
            calls(arrival.ahead)
        );
        step(session_ms.min(view.took_ms), text);
    }
    for (number, attempt) in (1..).zip(attempts) {
        step(
            attempt.permitted_ms.into(),
            format!("attempt {number} may be sent"),
        );
        step(
            attempt.ended_ms.into(),
            format!("attempt {number}: {}", answer(attempt)),
        );
        if let Some(back_off @ 1..) = attempt.back_off_ms {
            let back_off = seconds(back_off.into());
            step(
                attempt.ended_ms.into(),
                format!("waits {back_off}, then queues again in its place"),
            );
        }
    }
    step(view.took_ms, format!("ended: {}", ending(view)));
    steps
}

fn answer(attempt: &AttemptNote) -> String {
    let id = match &attempt.cams_request_id {
        Some(id) => format!(" (CAMS's request id {id})"),
        None => String::new(),
    };
    match attempt.code.as_deref() {
        None => {
            "not sent: the connection was closed or the permission was no longer valid".to_owned()
        }
        // A reason in words.
        Some(reason) if reason.contains(' ') => format!("no certain answer: {reason}{id}"),
        Some(code) => format!("CAMS answered {code}{id}"),
    }
}

/// The shortest wait that is explained.
const SHORT_MS: u64 = 20;
/// How much longer than its forecast a wait is before the difference is explained.
const LATE_MS: u64 = 500;
/// An answer that takes longer is slow.
const SLOW_MS: u32 = 1000;

fn why(details: &CallDetails) -> Vec<String> {
    let CallDetails {
        view,
        send_by_ms,
        limit_per_second,
        session_ms,
        arrival,
        attempts,
        detail,
        ..
    } = details;
    let mut why = Vec::new();
    let first = attempts.first().map(|attempt| attempt.permitted_ms.into());
    let first_wait: u64 = first.unwrap_or(view.waited_ms);
    if let Some(arrival) = arrival {
        let has_waited = !arrival.queued || first_wait > SHORT_MS;
        why.extend(queue(arrival, *limit_per_second, has_waited));
    }
    if *session_ms > 0 {
        why.push(format!(
            "Its account had no valid session: it waited {} for one.",
            seconds(u64::from(*session_ms))
        ));
    }
    if let Some(arrival) = arrival.filter(|arrival| arrival.queued)
        && first_wait > u64::from(arrival.predicted_ms) + LATE_MS
    {
        why.push(format!(
            "It waited {} longer than the forecast: meanwhile the lane was paused or slowed down, \
             or calls with an earlier turn arrived.",
            seconds(first_wait - u64::from(arrival.predicted_ms))
        ));
    }
    why.extend(repetitions(attempts, view.took_ms));
    if let Some(slow) = attempts
        .iter()
        .filter(|attempt| attempt.code.is_some())
        .map(|attempt| attempt.ended_ms.saturating_sub(attempt.permitted_ms))
        .max()
        .filter(|slow| *slow > SLOW_MS)
    {
        why.push(format!(
            "CAMS took up to {} for an attempt.",
            seconds(slow.into())
        ));
    }
    if why.is_empty() && view.waited_ms <= SHORT_MS && view.attempts > 0 {
        why.push(match limit_per_second {
            Some(_) => "It did not wait: a token was free.".to_owned(),
            None => "It did not wait: its action has no limit.".to_owned(),
        });
    }
    let is_late = [Outcome::Refused, Outcome::Throttled, Outcome::Unreachable]
        .iter()
        .any(|outcome| outcome.label() == view.outcome);
    if let Some(send_by) = send_by_ms.filter(|_| is_late) {
        why.push(format!(
            "Its hold allowed to send it until {} after its arrival; the rest is for CAMS's answer.",
            seconds(send_by)
        ));
    }
    if let Some(first) = &view.first_request_id {
        why.push(format!(
            "It repeats the call of request {first}: flowgate why {first}."
        ));
    }
    match detail.as_deref() {
        Some(stage) if view.outcome == Outcome::Cancelled.label() => why.push(left(view, stage)),
        Some(detail) => why.push(format!("The caller was told: {detail}")),
        None => {}
    }
    why
}

/// What is known of a call whose caller has left at this stage.
fn left(call: &CallView, stage: &str) -> String {
    let when = match (stage, &call.first_request_id, call.attempts) {
        ("in_flight", None, 0) => {
            "while another replica had the call, or could have it: CAMS may have executed it."
        }
        ("in_flight", None, _) => {
            "while an attempt was under way: CAMS may have executed the call."
        }
        ("in_flight", Some(_), _) => "while CAMS may have executed that call.",
        (_, Some(_), _) => "while that call was queued.",
        (_, None, 0) => "before it was sent: CAMS has done nothing.",
        (_, None, _) => "while it was queued again: CAMS has done nothing.",
    };
    format!("Its caller disconnected {when}")
}

/// The queue that it found.
fn queue(arrival: &Arrival, limit_per_second: Option<f64>, has_waited: bool) -> Vec<String> {
    let Arrival {
        ahead,
        tokens_free,
        tokens,
        pause_ms,
        paused_by_operator,
        ..
    } = *arrival;
    let mut why = Vec::new();
    if ahead > 0 {
        let rate = limit_per_second.map_or(String::new(), |rate| {
            format!(
                ": {} at the lane's limit",
                seconds((f64::from(ahead) / rate * 1000.0) as u64)
            )
        });
        why.push(format!(
            "{} had an earlier turn at its arrival{rate}.",
            calls(ahead)
        ));
    }
    if pause_ms > 0 {
        let cause = if paused_by_operator {
            "by an operator"
        } else {
            "after CAMS had throttled"
        };
        why.push(format!(
            "The lane was paused {cause}, for another {}.",
            seconds(pause_ms.into())
        ));
    }
    match tokens_free {
        0 => why.push(format!(
            "None of the lane's {tokens} tokens was free at its arrival."
        )),
        free if has_waited => why.push(format!(
            "Of the lane's {tokens} tokens {free} could be used at its arrival, so it waited for a \
             connection, a pause or earlier calls."
        )),
        _ => {}
    }
    why
}

/// Attempts after which it was queued again.
fn repetitions(attempts: &[AttemptNote], took_ms: u64) -> Option<String> {
    let next_permits = attempts
        .iter()
        .skip(1)
        .map(|next| u64::from(next.permitted_ms))
        .chain([took_ms]);
    let repeated: Vec<_> = attempts
        .iter()
        .zip(next_permits)
        .filter(|(attempt, _)| attempt.back_off_ms.is_some())
        .filter_map(|(attempt, next)| Some((attempt, attempt.code.as_deref()?, next)))
        .collect();
    let (_, code, _) = repeated.first()?;
    let waited: u64 = repeated
        .iter()
        .map(|(attempt, _, next)| next.saturating_sub(attempt.ended_ms.into()))
        .sum();
    let again = match repeated.len() {
        1 => format!("once, after {code}"),
        times => format!("{times} times, first after {code}"),
    };
    Some(format!(
        "It was queued again {again}. That took {}: the lane's pause after a throttle, back-off, and \
         the wait for a new token.",
        seconds(waited)
    ))
}

fn calls(count: u32) -> String {
    match count {
        0 => "no call".to_owned(),
        1 => "1 call".to_owned(),
        count => format!("{count} calls"),
    }
}

fn seconds(millis: u64) -> String {
    match millis {
        0..1000 => format!("{millis} ms"),
        1000..100_000 => format!("{:.1} s", millis as f64 / 1000.0),
        _ => format!("{} s", millis / 1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn details(outcome: Outcome, code: &str, status: u16) -> CallDetails {
        CallDetails {
            view: CallView {
                account: "acme".to_owned(),
                action: "CreateFlow".to_owned(),
                client: "team-a".to_owned(),
                outcome: outcome.label(),
                code: code.into(),
                status,
                ..CallView::default()
            },
            hold_ms: Some(30_000),
            send_by_ms: Some(28_900),
            limit_per_second: Some(5.0),
            ..CallDetails::default()
        }
    }

    fn texts(page: &CallPage) -> Vec<(u64, &str)> {
        page.steps
            .iter()
            .map(|step| (step.at_ms, &*step.text))
            .collect()
    }

    const FULL: Arrival = Arrival {
        ahead: 12,
        predicted_ms: 2400,
        queued: true,
        tokens_free: 0,
        tokens: 5,
        pause_ms: 0,
        paused_by_operator: false,
    };

    #[test]
    fn a_call_that_was_sent_at_once_did_not_wait() {
        let mut details = details(Outcome::Ok, "OK", 200);
        details.view.attempts = 1;
        details.view.took_ms = 31;
        details.attempts = vec![AttemptNote {
            permitted_ms: 1,
            ended_ms: 31,
            code: Some("OK".into()),
            cams_request_id: Some("C-1".into()),
            back_off_ms: None,
        }];
        let page = CallPage::from(details);
        assert_eq!(
            page.summary,
            "acme / CreateFlow of team-a: ok. It took 31 ms, waited 0 ms and was sent once."
        );
        assert_eq!(
            texts(&page),
            [
                (0, "arrived; may be kept for 30.0 s"),
                (1, "attempt 1 may be sent"),
                (31, "attempt 1: CAMS answered OK (CAMS's request id C-1)"),
                (31, "ended: ok"),
            ]
        );
        assert_eq!(page.why, ["It did not wait: a token was free."]);
    }

    #[test]
    fn a_call_that_was_throttled_is_explained_by_queue_pause_back_off_and_answer_time() {
        let mut details = details(Outcome::Ok, "OK", 200);
        details.view.attempts = 2;
        details.view.waited_ms = 5900;
        details.view.took_ms = 7500;
        details.arrival = Some(Arrival {
            pause_ms: 1200,
            ..FULL
        });
        details.attempts = vec![
            AttemptNote {
                permitted_ms: 4000,
                ended_ms: 4040,
                code: Some("Throttling.User".into()),
                cams_request_id: None,
                back_off_ms: Some(300),
            },
            AttemptNote {
                permitted_ms: 5900,
                ended_ms: 7500,
                code: Some("OK".into()),
                cams_request_id: None,
                back_off_ms: None,
            },
        ];
        let page = CallPage::from(details);
        assert_eq!(
            texts(&page),
            [
                (0, "arrived; may be kept for 30.0 s"),
                (0, "queued: 12 calls before it, forecast 2.4 s"),
                (4000, "attempt 1 may be sent"),
                (4040, "attempt 1: CAMS answered Throttling.User"),
                (4040, "waits 300 ms, then queues again in its place"),
                (5900, "attempt 2 may be sent"),
                (7500, "attempt 2: CAMS answered OK"),
                (7500, "ended: ok"),
            ]
        );
        assert_eq!(
            page.why,
            [
                "12 calls had an earlier turn at its arrival: 2.4 s at the lane's limit.",
                "The lane was paused after CAMS had throttled, for another 1.2 s.",
                "None of the lane's 5 tokens was free at its arrival.",
                "It waited 1.6 s longer than the forecast: meanwhile the lane was paused or slowed \
                 down, or calls with an earlier turn arrived.",
                "It was queued again once, after Throttling.User. That took 1.9 s: the lane's pause \
                 after a throttle, back-off, and the wait for a new token.",
                "CAMS took up to 1.6 s for an attempt.",
            ]
        );
    }

    #[test]
    fn a_refused_call_is_explained_by_its_hold_and_by_what_its_caller_was_told() {
        let mut details = details(Outcome::Refused, "System.LimitControl", 400);
        details.arrival = Some(Arrival {
            queued: false,
            ahead: 1,
            pause_ms: 60_000,
            paused_by_operator: true,
            ..FULL
        });
        details.detail = Some("The wait would be too long.".into());
        let page = CallPage::from(details);
        assert!(
            page.summary.ends_with(
                "refused, HTTP 400 System.LimitControl. It took 0 ms, waited 0 ms and was not sent."
            ),
            "{}",
            page.summary
        );
        assert_eq!(
            texts(&page)[1],
            (0, "not queued: 1 call before it, forecast 2.4 s")
        );
        assert_eq!(
            page.why,
            [
                "1 call had an earlier turn at its arrival: 200 ms at the lane's limit.",
                "The lane was paused by an operator, for another 60.0 s.",
                "None of the lane's 5 tokens was free at its arrival.",
                "Its hold allowed to send it until 28.9 s after its arrival; the rest is for CAMS's \
                 answer.",
                "The caller was told: The wait would be too long.",
            ]
        );
    }

    #[test]
    fn a_repetition_names_the_call_that_it_repeats() {
        let mut details = details(Outcome::Ok, "OK", 200);
        details.view.waited_ms = 8400;
        details.view.took_ms = 8400;
        details.view.first_request_id = Some("F-1".into());
        let page = CallPage::from(details.clone());
        assert!(
            page.summary.ends_with(
                "waited 8.4 s and was not sent itself, because it repeats another call."
            ),
            "{}",
            page.summary
        );
        assert_eq!(
            page.why,
            ["It repeats the call of request F-1: flowgate why F-1."]
        );
        // The record of its key had the answer.
        details.view.first_request_id = None;
        let summary = CallPage::from(details).summary;
        assert!(
            summary.ends_with("because an earlier call of its order was executed."),
            "{summary}"
        );
    }

    #[test]
    fn a_call_whose_caller_has_left_says_what_cams_may_have_done() {
        for (stage, attempts, first, text) in [
            (
                "queued",
                0,
                None,
                "before it was sent: CAMS has done nothing.",
            ),
            (
                "queued",
                1,
                None,
                "while it was queued again: CAMS has done nothing.",
            ),
            ("queued", 0, Some("F-1"), "while that call was queued."),
            (
                "in_flight",
                1,
                None,
                "while an attempt was under way: CAMS may have executed the call.",
            ),
            (
                "in_flight",
                0,
                None,
                "while another replica had the call, or could have it: CAMS may have executed it.",
            ),
            (
                "in_flight",
                0,
                Some("F-1"),
                "while CAMS may have executed that call.",
            ),
        ] {
            let mut details = details(Outcome::Cancelled, "cancelled", 0);
            details.view.first_request_id = first.map(Into::into);
            details.view.attempts = attempts;
            details.detail = Some(stage.into());
            let why = CallPage::from(details).why;
            let text = format!("Its caller disconnected {text}");
            assert_eq!(why.last(), Some(&text));
        }
    }

    #[test]
    fn free_tokens_are_the_cause_only_of_a_wait() {
        let mut details = details(Outcome::Ok, "OK", 200);
        details.view.attempts = 1;
        details.arrival = Some(Arrival {
            ahead: 0,
            tokens_free: 5,
            ..FULL
        });
        let why = CallPage::from(details.clone()).why;
        assert_eq!(why, ["It did not wait: a token was free."]);
        details.view.waited_ms = 100;
        let why = CallPage::from(details).why;
        assert!(
            why[0].ends_with("a connection, a pause or earlier calls."),
            "{why:?}"
        );
    }

    #[test]
    fn an_attempt_without_a_certain_answer_and_one_that_was_not_sent_say_so() {
        let attempt = |code: Option<&str>| {
            answer(&AttemptNote {
                code: code.map(Into::into),
                ..AttemptNote::default()
            })
        };
        assert!(attempt(None).starts_with("not sent"));
        assert_eq!(
            attempt(Some("the connection closed before an answer")),
            "no certain answer: the connection closed before an answer"
        );
    }

    #[test]
    fn a_filter_has_known_names_outcomes_and_limits_only() {
        let (filter, limit) = parse("account=acme&outcome=outcome_unknown&client=a%20b").unwrap();
        assert_eq!(filter.account.as_deref(), Some("acme"));
        assert_eq!(filter.client.as_deref(), Some("a b"));
        assert_eq!(filter.outcome.as_deref(), Some("outcome_unknown"));
        assert_eq!(limit, LISTED);
        assert_eq!(parse("limit=2000").unwrap().1, 2000);
        assert!(parse("").is_some());
        for query in [
            "outcome=bad",
            "limit=0",
            "limit=2001",
            "limit=x",
            "flow=x",
            "account=%",
        ] {
            assert!(parse(query).is_none(), "{query}");
        }
    }

    #[test]
    fn only_a_browser_gets_the_page_of_a_call() {
        let accept = |text: &str| HeaderMap::from_iter([(ACCEPT, text.parse().unwrap())]);
        let browser = accept("text/html,application/xhtml+xml,*/*;q=0.8");
        assert!(wants_html("/calls/A-1", &browser));
        assert!(!wants_html("/calls", &browser));
        assert!(!wants_html("/calls/A-1", &accept("*/*")));
        assert!(!wants_html("/calls/A-1", &HeaderMap::new()));
    }
}
