//! Rules, dashboards and documents name only metrics, labels and values that exist. Selectors are
//! found by a regular expression; promtool and Prometheus check whole expressions (`scripts/test
//! prometheus`).

use std::path::{Path, PathBuf};

use regex::Regex;

use super::registered;
use crate::observe::metrics::families::Family;
use crate::observe::metrics::labels;

/// What Prometheus adds to every series.
const ADDED: [&str; 3] = ["job", "instance", "le"];

/// A name, `*` where it is a prefix, and matchers in braces.
const SELECTOR: &str = r"([A-Za-z_:][\w:]*)(\*?)(?:\{([^{}]*)\})?";

/// A label, and how it is compared with what. No value of ours contains a comma.
const MATCHER: &str = r#"^\s*(\w+)\s*(?:[=!~]+\s*\\?"([^"\\]*))?"#;

/// The metric of a series: a histogram has three kinds of them.
fn family<'a>(families: &'a [Family], series: &str) -> Option<&'a Family> {
    let named = |name: &str| families.iter().find(|family| family.name == name);
    named(series).or_else(|| {
        let suffixes = ["_bucket", "_sum", "_count"];
        let name = suffixes
            .iter()
            .find_map(|suffix| series.strip_suffix(suffix))?;
        named(name).filter(|family| family.kind == "histogram")
    })
}

/// What a text names and is not there.
fn wrong(text: &str) -> Vec<String> {
    let families = registered();
    let rules = rules();
    let mut wrong = Vec::new();
    for selector in Regex::new(SELECTOR).unwrap().captures_iter(text) {
        let name = selector[1].trim_end_matches(':');
        if name.contains(":flowgate_") {
            if !rules.contains(&format!("- record: {name}\n")) {
                wrong.push(format!("{name} is not recorded"));
            }
        } else if !name.starts_with("flowgate_") && !name.starts_with("process_") {
            continue;
        } else if !selector[2].is_empty() {
            if !families.iter().any(|family| family.name.starts_with(name)) {
                wrong.push(format!("no metric begins with {name}"));
            }
        } else if let Some(family) = family(&families, name) {
            let matchers = selector.get(3).map_or("", |matchers| matchers.as_str());
            wrong.extend(
                matchers
                    .split(',')
                    .filter_map(|text| wrong_matcher(family, text)),
            );
        } else {
            wrong.push(format!("there is no metric {name}"));
        }
    }
    wrong
}

fn wrong_matcher(family: &Family, text: &str) -> Option<String> {
    let name = &family.name;
    let matcher = Regex::new(MATCHER).unwrap().captures(text)?;
    let label = &matcher[1];
    if ADDED.contains(&label) {
        return None;
    }
    if !family.labels.iter().any(|known| known == label) {
        return Some(format!("{name} has no label {label}"));
    }
    let closed = labels::closed(name, label)?;
    let mut values = matcher.get(2)?.as_str().split('|');
    let never = values.find(|value| !closed.iter().any(|known| matches(value, known)))?;
    Some(format!("{label} of {name} is never {never:?}"))
}

/// Whether a matcher's value, or one alternative of its pattern, can be this one. A dashboard's
/// variable is any of them.
fn matches(value: &str, known: &str) -> bool {
    match value.strip_suffix(".*") {
        Some(start) => known.starts_with(start),
        None => known == value || value.starts_with('$'),
    }
}

fn rules() -> String {
    std::fs::read_to_string(root().join("deploy/prometheus/rules.yaml")).unwrap()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found)
        } else {
            found.push(path)
        }
    }
}

#[test]
fn rules_dashboards_and_documents_name_what_exists() {
    let names = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"];
    let mut places: Vec<_> = names.map(|name| root().join(name)).into();
    files(&root().join("docs"), &mut places);
    files(&root().join("deploy"), &mut places);
    let mut all = Vec::new();
    for place in &places {
        let text = std::fs::read_to_string(place).unwrap();
        let wrong = wrong(&text).into_iter();
        all.extend(wrong.map(|wrong| format!("{}: {wrong}", place.display())));
    }
    assert!(all.is_empty(), "{}", all.join("\n"));
}

#[test]
fn a_name_that_does_not_exist_is_found() {
    for (text, found) in [
        (
            "see `flowgate_requests_totl`",
            "there is no metric flowgate_requests_totl",
        ),
        (
            "sum(flowgate_queued_bucket)",
            "there is no metric flowgate_queued_bucket",
        ),
        (
            "rate(process_cpu_second[5m])",
            "there is no metric process_cpu_second",
        ),
        (
            "flowgate_stores_*",
            "no metric begins with flowgate_stores_",
        ),
        (
            "`flowgate_refused_total{outcome}`",
            "flowgate_refused_total has no label outcome",
        ),
        (
            r#"flowgate_tokens_total{job="x", event="used"}"#,
            r#"event of flowgate_tokens_total is never "used""#,
        ),
        (
            r#""expr": "flowgate_cancelled_total{stage=~\"queued|sent\"}""#,
            r#"stage of flowgate_cancelled_total is never "sent""#,
        ),
        (
            "job:flowgate_queued:max > 1",
            "job:flowgate_queued:max is not recorded",
        ),
    ] {
        assert_eq!(wrong(text), [found], "{text}");
    }
    for right in [
        r#"sum by (le) (rate(flowgate_queue_wait_seconds_bucket{job=~"$job", le="1"}[5m]))"#,
        r#"flowgate_attempts_total{code=~"System.LimitControl|Throttling.*"}"#,
        "`flowgate_store_*` and `flowgate_requests_total{outcome}`: {{account}}",
    ] {
        assert_eq!(wrong(right), [""; 0], "{right}");
    }
}

#[test]
fn every_alert_leads_to_its_section() {
    let rules = rules();
    let alerts: Vec<_> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(alerts.len() > 10);
    let runbook = std::fs::read_to_string(root().join("docs/runbook.md")).unwrap();
    for alert in alerts {
        let anchor = format!("docs/runbook.md#{}\n", alert.to_lowercase());
        assert!(
            rules.contains(&anchor),
            "{alert} has no runbook_url that ends in {anchor}"
        );
        let is_section =
            |line: &str| line.starts_with('#') && line.trim_start_matches('#').trim() == alert;
        assert!(
            runbook.lines().any(is_section),
            "docs/runbook.md has no section {alert}"
        );
    }
}
