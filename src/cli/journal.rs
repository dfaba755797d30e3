//! Prints the attempts of a journal that are open or whose outcome was unknown: as a table for
//! people, or as one JSON object for programs.

use serde_json::json;

use super::table::{shown, table};
use crate::observe::journal::{JournalContent, ListedAttempt, Resolution, ResolvedAs};

/// The table's header.
const HEAD: [&str; 7] = [
    "SENT",
    "ACCOUNT",
    "CLIENT",
    "TENANT",
    "ACTION",
    "FLOW NAME",
    "REQUEST ID",
];

/// The header of the last column, if attempts whose outcome was unknown are listed.
const OUTCOME: &str = "OUTCOME";

/// Formats the attempts as a table.
pub fn as_table(content: &JournalContent) -> String {
    let mut rows = vec![HEAD.map(str::to_owned)];
    rows.extend(content.attempts().iter().map(row));
    if !content.lists_unknown() {
        return table(&rows);
    }
    let outcomes = content.attempts().iter().map(outcome);
    let outcomes = std::iter::once(OUTCOME.to_owned()).chain(outcomes);
    let rows: Vec<[String; 8]> = rows
        .into_iter()
        .zip(outcomes)
        .map(|([a, b, c, d, e, f, g], outcome)| [a, b, c, d, e, f, g, outcome])
        .collect();
    table(&rows)
}

/// Formats the attempts as one JSON object.
pub fn as_json(content: &JournalContent) -> String {
    let (open, resolved): (Vec<_>, Vec<_>) = content
        .attempts()
        .iter()
        .partition(|attempt| attempt.is_open());
    let mut page = json!({ "open": open, "damaged_lines": content.damaged() });
    if content.lists_unknown() {
        page["resolved"] = json!(resolved);
    }
    format!("{page}\n")
}

fn row(attempt: &ListedAttempt) -> [String; 7] {
    let sent = &attempt.sent;
    let tenant = sent.tenant.as_deref().unwrap_or("-");
    let flow_name = sent.flow_name.as_deref().unwrap_or("-");
    [
        &sent.time,
        &sent.account,
        &sent.client,
        tenant,
        &sent.action,
        flow_name,
        &sent.request_id,
    ]
    .map(shown)
}

/// What is known of the outcome of an attempt.
fn outcome(attempt: &ListedAttempt) -> String {
    let text = match (&attempt.resolution, &attempt.reason) {
        (Some(resolution), _) => resolved(resolution),
        (None, Some(reason)) => format!("unknown: {reason}"),
        (None, None) => "open".to_owned(),
    };
    shown(&text)
}

fn resolved(resolution: &Resolution) -> String {
    let flow_id = resolution.flow_id.as_deref();
    match (resolution.result, flow_id) {
        (ResolvedAs::Created, _) => format!("created {}", flow_id.unwrap_or_default()),
        (ResolvedAs::Absent, _) => "absent".to_owned(),
        (ResolvedAs::Ambiguous, _) => {
            let found = resolution.found.as_deref();
            format!("ambiguous: {}", found.unwrap_or_default())
        }
        (ResolvedAs::Settled, Some(flow_id)) => format!("settled: created {flow_id}"),
        (ResolvedAs::Settled, None) => "settled: not created".to_owned(),
        (ResolvedAs::Forgotten, _) => "forgotten".to_owned(),
    }
}
