//! Whether the manual says what the code registers, and whether rules, dashboards and documents name only what is there.

mod named;

use std::collections::BTreeMap;

use super::families::Family;
use super::{Metrics, labels};

const MARKS: [&str; 2] = [
    "<!-- metrics: made from src/observe/metrics.rs -->\n",
    "<!-- end of metrics -->\n",
];

/// Labels whose values the configuration or CAMS decides.
const OPEN: [(&str, &str); 5] = [
    (
        "account",
        "an account of the configuration; `unknown` for keys that it does not name",
    ),
    (
        "action",
        "an action with a limit, set or documented; `other` for those without",
    ),
    (
        "client",
        "the key of a client of the configuration, an account's own key in its masked form, or `unverified`",
    ),
    ("status", "the HTTP status; `none` where no answer came"),
    ("version", "Flowgate's"),
];

/// All that a process with a store, a journal and a collector registers.
fn registered() -> Vec<Family> {
    let metrics = Metrics::new();
    metrics.has_store();
    metrics.has_journal();
    metrics.exports_traces();
    metrics.families.known()
}

/// What a label's values are, in the manual's words.
fn values(metric: &str, label: &str) -> String {
    let open = || {
        OPEN.iter()
            .find(|(name, _)| *name == label)
            .expect("a label is closed or its values are told above")
    };
    match labels::closed(metric, label) {
        Some(values) => values
            .iter()
            .map(|value| format!("`{value}`"))
            .collect::<Vec<_>>()
            .join(", "),
        None => open().1.to_owned(),
    }
}

fn manual() -> String {
    let families = registered();
    let row = |family: &Family| {
        let labels: Vec<_> = family
            .labels
            .iter()
            .map(|label| format!("`{label}`"))
            .collect();
        format!(
            "| `{}` | {} | {} | {} |\n",
            family.name,
            family.kind,
            labels.join(", "),
            family.meaning
        )
    };
    let rows: String = families.iter().map(row).collect();
    let mut uses = BTreeMap::<(&str, String), Vec<&str>>::new();
    for family in &families {
        for label in &family.labels {
            uses.entry((label, values(&family.name, label)))
                .or_default()
                .push(&family.name);
        }
    }
    let row = |((label, values), of): (&(&str, String), &Vec<&str>)| {
        let is_usual = of.len() > 2 || uses.keys().filter(|(name, _)| name == label).count() == 1;
        let of = if is_usual {
            String::new()
        } else {
            format!(" of `{}`", of.join("`, `"))
        };
        format!("| `{label}`{of} | {values} |\n")
    };
    let rest: String = uses.iter().map(row).collect();
    format!(
        "\n| name | type | labels | meaning |\n|---|---|---|---|\n{rows}\n| label | values |\n|---|---|\n{rest}\n"
    )
}

/// Run with `UPDATE_DOCS=1` to write the tables anew.
#[test]
fn the_manual_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (before, rest) = page.split_once(MARKS[0]).unwrap();
    let (tables, after) = rest.split_once(MARKS[1]).unwrap();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(
            path,
            [before, MARKS[0], &manual(), MARKS[1], after].concat(),
        )
        .unwrap();
        return;
    }
    assert_eq!(tables, manual());
}

#[test]
fn every_metric_says_in_one_line_what_it_means() {
    for Family { name, meaning, .. } in registered() {
        assert!(!meaning.contains(['\n', '|']), "{name}");
        assert!(
            meaning.ends_with('.') || name.starts_with("process_"),
            "{name}: {meaning}"
        );
    }
}

#[test]
fn what_somebody_is_told_of_at_its_first_time_begins_at_zero() {
    let metrics = Metrics::new();
    metrics.accounts(&[]);
    let page = metrics.families.render();
    for series in [
        "flowgate_connection_errors_total{kind=\"too_many\"} 0",
        "flowgate_signature_checks_total{result=\"nonce\"} 0",
        "flowgate_config_reloads_total{result=\"refused\"} 0",
        "flowgate_refused_total{account=\"unknown\",reason=\"outcome_unknown\"} 0",
        "flowgate_refused_total{account=\"unknown\",reason=\"credentials\"} 0",
    ] {
        assert!(page.contains(series), "{series} in {page}");
    }
}

#[test]
#[should_panic(expected = "flowgate_signature_checks_total{result=\\\"odd\\\"}")]
fn a_value_that_is_not_of_its_closed_set_is_found() {
    let metrics = Metrics::new();
    metrics.signature_check("odd");
    metrics.families.render();
}
