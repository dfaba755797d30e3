//! Prints the open attempts of a journal: as a table for people, or as one JSON object for
//! programs.

use serde_json::json;

use super::table::{shown, table};
use crate::observe::journal::{JournalContent, SentLine};

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

/// Formats the open attempts as a table.
pub fn as_table(content: &JournalContent) -> String {
    let mut rows = vec![HEAD.map(str::to_owned)];
    for attempt in content.open() {
        rows.push(row(attempt));
    }
    table(&rows)
}

/// Formats the open attempts as one JSON object.
pub fn as_json(content: &JournalContent) -> String {
    let open = content.open();
    format!(
        "{}\n",
        json!({ "open": open, "damaged_lines": content.damaged() })
    )
}

fn row(sent: &SentLine<'_>) -> [String; 7] {
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
