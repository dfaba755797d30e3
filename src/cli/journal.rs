//! How are the open attempts of a journal printed? As a table for people, or as one JSON object for machines.

use serde_json::json;

use super::table::{shown, table};
use crate::observe::journal::{Reading, Sent};

/// The table's head.
const HEAD: [&str; 7] = [
    "SENT",
    "ACCOUNT",
    "CLIENT",
    "TENANT",
    "ACTION",
    "FLOW NAME",
    "REQUEST ID",
];

/// For people: one row each.
pub fn as_table(reading: &Reading) -> String {
    let row = |sent: &Sent<'_>| {
        let Sent {
            time,
            attempt: _,
            request_id,
            account,
            client,
            tenant,
            action,
            flow_name,
        } = sent;
        let tenant = tenant.as_deref().unwrap_or("-");
        let name = flow_name.as_deref().unwrap_or("-");
        [time, account, client, tenant, action, name, request_id].map(shown)
    };
    let rows: Vec<[String; 7]> = [HEAD.map(str::to_owned)]
        .into_iter()
        .chain(reading.open().iter().map(row))
        .collect();
    table(&rows)
}

/// For machines: one object.
pub fn as_json(reading: &Reading) -> String {
    let open = reading.open();
    format!(
        "{}\n",
        json!({ "open": open, "damaged_lines": reading.damaged() })
    )
}
