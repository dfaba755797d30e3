//! The unknown outcomes for operators: as JSON, as metrics, and the operator action that ends one.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use hyper::{Request, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;

use super::{JSON, Page, commands};
use crate::acs::time;
use crate::call::services::CallServices;
use crate::call::unknown::{self, Recorded, WordRefused};
use crate::idempotency::record::{Search, UnknownOutcome};
use crate::idempotency::records::Count;
use crate::observe::metrics::{KeySample, OutcomeSample};
use crate::operation::UNKNOWN_ACCOUNT;
use crate::primitives::text::{capped, capped_at};
use crate::server::received_body::ReceivedBody;

/// An unknown outcome, as operators see it. Texts of callers and CAMS are capped.
#[derive(Debug, Serialize)]
pub(super) struct UnknownView {
    /// Flowgate's id of the request with which the call began. It names the outcome.
    request_id: Box<str>,
    account: String,
    /// Empty: the account itself.
    client: String,
    flow_name: String,
    /// The CustSpaceId; empty if the call has none.
    space: String,
    categories: Vec<String>,
    reason: String,
    cams_request_id: Option<String>,
    /// The journal's name of the attempt, if it is in a journal.
    attempt: Option<Box<str>>,
    /// When the attempt was sent; of another replica's, when at the latest.
    at: String,
    age_seconds: u64,
    /// `sought`, `ambiguous` or `by_hand`.
    state: &'static str,
    /// What looks have found that only an operator can judge.
    found: Option<String>,
    /// Time until the next look, if one is planned.
    next_look_seconds: Option<u64>,
    /// CAMS's code, if it does not permit the account's key to look.
    looks_refused: Option<Box<str>>,
}

/// The request body of the operator action.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct SettleBody {
    request_id: String,
    outcome: SettledAs,
    flow_id: Option<String>,
}

/// What an operator has found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum SettledAs {
    Created,
    NotCreated,
}

/// The label of the operator action.
const SETTLE: &str = "settle";

/// Maximum length of a flow's name in bytes.
const MAX_NAME: usize = 1024;
/// Maximum number of a flow's categories.
const MAX_CATEGORIES: usize = 20;
/// Maximum length of a FlowId in bytes.
const MAX_FLOW_ID: usize = 64;

/// The unknown outcomes, the oldest first, at most `max`.
pub(super) fn views(services: &CallServices, max: usize) -> Vec<UnknownView> {
    let now = Instant::now();
    let forbidden: HashMap<_, _> = services.looks.forbidden().into_iter().collect();
    let unknown = services.records.unknown().into_iter().take(max);
    unknown
        .map(|(name, outcome)| {
            let next_look = services.looks.next_look(name);
            let forbidden = forbidden.get(&outcome.order.account);
            UnknownView {
                next_look_seconds: next_look
                    .map(|next| next.saturating_duration_since(now).as_secs()),
                looks_refused: forbidden.map(|forbidden| capped(&forbidden.code).into()),
                ..UnknownView::of(&outcome, now)
            }
        })
        .collect()
}

/// The records at the time of a scrape. An account that is not in the configuration has the label
/// `unknown`.
pub(super) fn sample(services: &CallServices) -> KeySample {
    let Count {
        running,
        done,
        unknown,
    } = services.records.count();
    let outcomes = if unknown == 0 {
        Vec::new()
    } else {
        outcomes(services)
    };
    let config_snapshot = services.current_config.load();
    KeySample {
        running,
        done,
        unknown,
        max: config_snapshot.config.exactly_once.max_keys,
        outcomes,
    }
}

/// The unknown outcomes by account and state.
fn outcomes(services: &CallServices) -> Vec<OutcomeSample> {
    let now = Instant::now();
    let config_snapshot = services.current_config.load();
    let accounts = config_snapshot.config.accounts.iter();
    let known: HashSet<_> = accounts.map(|account| account.id.as_str()).collect();
    let mut samples: BTreeMap<(&str, &str), (usize, Duration)> = BTreeMap::new();
    let unknown = services.records.unknown();
    for (_, outcome) in &unknown {
        let account = outcome.order.account.as_str();
        let account = known.get(account).unwrap_or(&UNKNOWN_ACCOUNT);
        let (count, oldest) = samples.entry((account, state(outcome))).or_default();
        *count += 1;
        *oldest = (*oldest).max(now.saturating_duration_since(outcome.ended));
    }
    samples
        .into_iter()
        .map(|((account, state), (count, oldest))| OutcomeSample {
            account: account.to_owned(),
            state,
            count,
            oldest,
        })
        .collect()
}

/// What happens to an unknown outcome.
fn state(outcome: &UnknownOutcome) -> &'static str {
    match outcome.search {
        Search::Active => "sought",
        Search::Ambiguous(_) => "ambiguous",
        Search::None => "by_hand",
    }
}

/// Ends an unknown outcome by an operator's word. The caller has checked that the request is
/// permitted.
pub(super) async fn settle(
    services: &CallServices,
    request: Request<ReceivedBody>,
    from: Option<IpAddr>,
) -> Page {
    match try_settle(services, request, from).await {
        Ok(page) | Err(page) => page,
    }
}

async fn try_settle(
    services: &CallServices,
    request: Request<ReceivedBody>,
    from: Option<IpAddr>,
) -> Result<Page, Page> {
    let config_snapshot = services.current_config.load_full();
    let body = commands::receive(services, &config_snapshot.config.listen, request).await?;
    let settled = SettleBody::parse(&body)
        .map_err(|why| Page::refused(StatusCode::BAD_REQUEST, format!("{why}\n")))?;
    let mut unknown = services.records.unknown().into_iter();
    let (name, outcome) = unknown
        .find(|(_, outcome)| *outcome.order.request_id == *settled.request_id)
        .ok_or_else(|| refused(WordRefused::Ended))?;
    let recorded = unknown::settle(services, name, &outcome, settled.flow_id.as_deref())
        .await
        .map_err(refused)?;
    services.metrics.operator_action(SETTLE);
    settled.log(&outcome, from);
    let answer = Page::ok(JSON, settled.answer(&outcome, recorded));
    let status = match recorded {
        Recorded::Yes => StatusCode::OK,
        Recorded::NotInJournal => StatusCode::ACCEPTED,
    };
    Ok(Page { status, ..answer })
}

fn refused(why: WordRefused) -> Page {
    let status = match why {
        WordRefused::Ended => StatusCode::NOT_FOUND,
        WordRefused::OtherFlow => StatusCode::CONFLICT,
        WordRefused::NoStore => StatusCode::SERVICE_UNAVAILABLE,
    };
    Page::refused(status, format!("{why}\n"))
}

/// Whether CAMS may have given a flow this id.
fn is_plausible(flow_id: &str) -> bool {
    let is_id = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=MAX_FLOW_ID).contains(&flow_id.len()) && flow_id.bytes().all(is_id)
}

// === impl UnknownView ===

impl UnknownView {
    fn of(outcome: &UnknownOutcome, now: Instant) -> Self {
        let order = &outcome.order;
        let found = match &outcome.search {
            Search::Ambiguous(found) => Some(capped(found).to_owned()),
            Search::Active | Search::None => None,
        };
        let categories = order.flow.categories.iter().take(MAX_CATEGORIES);
        Self {
            request_id: order.request_id.clone(),
            account: order.account.as_str().to_owned(),
            client: capped(order.client.as_str()).to_owned(),
            flow_name: capped_at(&order.flow.name, MAX_NAME).to_owned(),
            space: capped(&order.flow.space).to_owned(),
            categories: categories.map(|name| capped(name).to_owned()).collect(),
            reason: capped(&outcome.reason).to_owned(),
            cams_request_id: outcome
                .request_id
                .as_deref()
                .map(|id| capped(id).to_owned()),
            attempt: outcome.attempt.clone(),
            at: time::format(outcome.at),
            age_seconds: now.saturating_duration_since(outcome.ended).as_secs(),
            state: state(outcome),
            found,
            next_look_seconds: None,
            looks_refused: None,
        }
    }
}

// === impl SettleBody ===

impl SettleBody {
    fn parse(body: &[u8]) -> Result<Self, &'static str> {
        let expected = "Expected {\"request_id\": \"...\", \"outcome\": \"created\", \"flow_id\": \"...\"}, or \
                        \"outcome\": \"not_created\" without \"flow_id\".";
        let settled: Self = serde_json::from_slice(body).map_err(|_| expected)?;
        match (settled.outcome, &settled.flow_id) {
            (SettledAs::Created, None) => {
                Err("A flow that was created has a flow_id: see it in CAMS, or by ListFlow.")
            }
            (SettledAs::Created, Some(flow_id)) if !is_plausible(flow_id) => {
                Err("Expected a flow_id of 1 to 64 letters and digits.")
            }
            (SettledAs::NotCreated, Some(_)) => Err("Only a flow that was created has a flow_id."),
            _ => Ok(settled),
        }
    }

    /// Logs the action with the names of the response's fields.
    fn log(&self, outcome: &UnknownOutcome, from: Option<IpAddr>) {
        tracing::warn!(
            order = SETTLE,
            account = outcome.order.account.as_str(),
            request_id = self.request_id,
            outcome = self.outcome.label(),
            flow_id = self.flow_id,
            from = from.map(tracing::field::display),
            "operator action on an unknown outcome"
        );
    }

    fn answer(&self, outcome: &UnknownOutcome, recorded: Recorded) -> String {
        let age = SystemTime::now().duration_since(outcome.at);
        let mut answer = json!({
            "order": SETTLE,
            "account": outcome.order.account.as_str(),
            "request_id": self.request_id,
            "outcome": self.outcome.label(),
            "flow_id": self.flow_id,
            "flow_name": capped_at(&outcome.order.flow.name, MAX_NAME),
            "after_seconds": age.unwrap_or_default().as_secs(),
        });
        if recorded == Recorded::NotInJournal {
            answer["pending"] = json!(["journal"]);
        }
        answer.to_string()
    }
}

// === impl SettledAs ===

impl SettledAs {
    fn label(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::NotCreated => "not_created",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_of_an_operator_is_complete_and_has_a_plausible_flow_id() {
        let parse = |text: &str| SettleBody::parse(text.as_bytes());
        let created = parse(r#"{"request_id":"R","outcome":"created","flow_id":"3339-a_B"}"#);
        assert_eq!(created.unwrap().flow_id.as_deref(), Some("3339-a_B"));
        let not_created = parse(r#"{"request_id":"R","outcome":"not_created"}"#).unwrap();
        assert_eq!(not_created.outcome, SettledAs::NotCreated);
        let long = "7".repeat(65);
        for (flow_id, is_ok) in [
            ("7", true),
            ("", false),
            (&*long, false),
            (&long[1..], true),
            ("7 7", false),
            ("<b>", false),
            ("\u{e9}", false),
        ] {
            let body = json!({ "request_id": "R", "outcome": "created", "flow_id": flow_id });
            assert_eq!(parse(&body.to_string()).is_ok(), is_ok, "{flow_id}");
        }
        for wrong in [
            "",
            "[]",
            "{}",
            r#"{"request_id":"R"}"#,
            r#"{"request_id":"R","outcome":"created"}"#,
            r#"{"request_id":"R","outcome":"not_created","flow_id":"7"}"#,
            r#"{"request_id":"R","outcome":"absent"}"#,
            r#"{"request_id":1,"outcome":"not_created"}"#,
            r#"{"request_id":"R","outcome":"not_created","by":"me"}"#,
            r#"{"request_id":"R","request_id":"R","outcome":"not_created"}"#,
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
