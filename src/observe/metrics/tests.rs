//! docs/metrics.md lists the registered metrics, and rules, dashboards and documents name only
//! existing ones.

mod named;

use std::collections::BTreeMap;

use super::families::Family;
use super::{Metrics, labels};

const MARKS: [&str; 2] = [
    "<!-- metrics: made from src/observe/metrics.rs -->\n",
    "<!-- end of metrics -->\n",
];

/// Labels whose values the configuration or CAMS decides.
const OPEN: [(&str, &str); 6] = [
    (
        "account",
        "an account of the configuration; `unknown` for keys that are not configured",
    ),
    (
        "action",
        "an action with a configured or documented limit; `other` for all others",
    ),
    (
        "client",
        "the key of a configured client, an account's own key in its masked form, or `unverified`",
    ),
    (
        "upstream",
        "the URL of `[upstream]` or of an account: scheme, host and port; at most 65",
    ),
    ("status", "the HTTP status; `none` without an answer"),
    ("version", "the version of Flowgate"),
];

/// The metrics of a process with a store, a journal and a collector.
fn registered() -> Vec<Family> {
    let metrics = Metrics::new();
    metrics.register_store();
    metrics.register_journal();
    metrics.register_trace_export();
    metrics.families.known()
}

/// The values of a label, as docs/metrics.md lists them.
fn values(metric: &str, label: &str) -> String {
    if let Some(values) = labels::closed(metric, label) {
        return quoted(&values);
    }
    let (_, values) = OPEN
        .iter()
        .find(|(name, _)| *name == label)
        .expect("a label has a closed set or a row in OPEN");
    (*values).to_owned()
}

fn quoted(words: &[impl std::fmt::Display]) -> String {
    let words: Vec<_> = words.iter().map(|word| format!("`{word}`")).collect();
    words.join(", ")
}

fn metric_row(family: &Family) -> String {
    format!(
        "| `{}` | {} | {} | {} |\n",
        family.name,
        family.kind,
        quoted(&family.labels),
        family.meaning
    )
}

/// The tables of docs/metrics.md.
fn tables() -> String {
    let families = registered();
    let metrics: String = families.iter().map(metric_row).collect();
    let mut uses = BTreeMap::<(&str, String), Vec<&str>>::new();
    for family in &families {
        for label in &family.labels {
            uses.entry((label, values(&family.name, label)))
                .or_default()
                .push(&family.name);
        }
    }
    let mut label_rows = String::new();
    for ((label, values), metrics) in &uses {
        // The metrics are named only where another metric's label of this name has other values.
        let is_usual =
            metrics.len() > 2 || uses.keys().filter(|(name, _)| name == label).count() == 1;
        let of = if is_usual {
            String::new()
        } else {
            format!(" of `{}`", metrics.join("`, `"))
        };
        label_rows += &format!("| `{label}`{of} | {values} |\n");
    }
    format!(
        "\n| name | type | labels | meaning |\n|---|---|---|---|\n{metrics}\n| label | values |\n|---|---|\n{label_rows}\n"
    )
}

/// Run with `UPDATE_DOCS=1` to write the tables again.
#[test]
fn the_tables_of_the_manual_are_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (before, rest) = page.split_once(MARKS[0]).unwrap();
    let (current, after) = rest.split_once(MARKS[1]).unwrap();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(
            path,
            [before, MARKS[0], &tables(), MARKS[1], after].concat(),
        )
        .unwrap();
        return;
    }
    assert_eq!(current, tables());
}

#[test]
fn every_metric_has_a_one_line_help_text() {
    for Family { name, meaning, .. } in registered() {
        assert!(!meaning.contains(['\n', '|']), "{name}");
        assert!(
            meaning.ends_with('.') || name.starts_with("process_"),
            "{name}: {meaning}"
        );
    }
}

#[test]
fn counters_that_alerts_watch_start_at_zero() {
    let metrics = Metrics::new();
    metrics.accounts(&[]);
    let page = metrics.families.render();
    for series in [
        "flowgate_connection_errors_total{kind=\"too_many\"} 0",
        "flowgate_signature_checks_total{result=\"nonce\"} 0",
        "flowgate_config_reloads_total{result=\"refused\"} 0",
        "flowgate_lost_calls_total{account=\"unknown\"} 0",
        "flowgate_refused_total{account=\"unknown\",reason=\"outcome_unknown\"} 0",
        "flowgate_refused_total{account=\"unknown\",reason=\"credentials\"} 0",
    ] {
        assert!(page.contains(series), "{series} in {page}");
    }
}

#[test]
#[should_panic(expected = "flowgate_signature_checks_total{result=\\\"odd\\\"}")]
fn a_label_value_outside_its_closed_set_panics() {
    let metrics = Metrics::new();
    metrics.signature_check("odd");
    metrics.families.render();
}
