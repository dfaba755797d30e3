//! Which metrics, labels and values does a text name? Whatever rules, dashboards, documents and the code's own texts name
//! is held against what is registered. A text is scanned, not parsed: names are known by how they begin.

use std::path::{Path, PathBuf};

use super::registered;
use crate::observe::metrics::families::Family;
use crate::observe::metrics::labels;

/// What Prometheus adds to every series.
const ADDED: [&str; 5] = ["job", "instance", "le", "alertname", "severity"];

/// Where a list of labels stands after.
const BEFORE_LABELS: [&str; 7] = [
    "by",
    "on",
    "without",
    "ignoring",
    "group_left",
    "group_right",
    "label_values",
];

struct Known {
    families: Vec<Family>,
    /// The rules, whose records can be named, too.
    rules: String,
}

/// A text without what has been read of it.
struct Scan<'a> {
    text: &'a str,
    known: &'a Known,
    /// In a text that is PromQL, every list of labels is looked at.
    promql: bool,
    wrong: Vec<String>,
}

/// One matcher of a selector: a label, and how it is compared to what.
struct Matcher<'a> {
    label: &'a str,
    is_pattern: bool,
    value: Option<&'a str>,
}

/// One of the values that a matcher names.
struct Value<'a> {
    text: &'a str,
    is_pattern: bool,
}

// === impl Known ===

impl Known {
    fn new() -> Self {
        let rules = std::fs::read_to_string(root().join("deploy/prometheus/rules.yaml")).unwrap();
        Self {
            families: registered(),
            rules,
        }
    }

    /// The metric of a series: a histogram has three kinds of them.
    fn family(&self, series: &str) -> Option<&Family> {
        let of = |name: &str| self.families.iter().find(|family| family.name == name);
        let histogram = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| series.strip_suffix(suffix));
        of(series).or_else(|| {
            histogram
                .and_then(of)
                .filter(|family| family.kind == "histogram")
        })
    }

    fn is_label(&self, name: &str) -> bool {
        ADDED.contains(&name)
            || self
                .families
                .iter()
                .any(|family| family.labels.iter().any(|label| label == name))
    }

    /// What is wrong with a text.
    fn wrong(&self, text: &str, promql: bool) -> Vec<String> {
        let mut scan = Scan {
            text,
            known: self,
            promql,
            wrong: Vec::new(),
        };
        while scan.next() {}
        scan.wrong
    }
}

// === impl Scan ===

impl<'a> Scan<'a> {
    /// Reads up to the end of the next name.
    fn next(&mut self) -> bool {
        let Some(start) = self.text.find(is_name_start) else {
            return false;
        };
        let rest = &self.text[start..];
        let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
        let (name, rest) = rest.split_at(end);
        let before = self.text[..start].chars().next_back();
        self.text = rest;
        if name.contains(":flowgate_") {
            self.recorded(name);
        } else if name.starts_with("flowgate_") || (self.promql && name.starts_with("process_")) {
            self.metric(name.trim_end_matches(':'));
        } else if self.promql && BEFORE_LABELS.contains(&name) {
            self.labels();
        } else if before == Some('$') && name == "labels" {
            let label = rest
                .strip_prefix('.')
                .and_then(|rest| rest.split(|c| !is_name(c)).next());
            self.label(label.unwrap_or_default());
        }
        true
    }

    fn recorded(&mut self, name: &str) {
        if !self.known.rules.contains(&format!("- record: {name}\n")) {
            self.wrong.push(format!("{name} is not recorded"));
        }
        for Matcher { label, .. } in self.matchers() {
            self.label(label);
        }
    }

    fn metric(&mut self, name: &'a str) {
        if self.text.starts_with('*') {
            if !self
                .known
                .families
                .iter()
                .any(|family| family.name.starts_with(name))
            {
                self.wrong.push(format!("no metric begins with {name}"));
            }
            return;
        }
        let Some(family) = self.known.family(name) else {
            return self.wrong.push(format!("there is no metric {name}"));
        };
        for Matcher {
            label,
            is_pattern,
            value,
        } in self.matchers()
        {
            if ADDED.contains(&label) {
                continue;
            }
            if !family.labels.iter().any(|known| known == label) {
                self.wrong.push(format!("{name} has no label {label}"));
                continue;
            }
            let closed = labels::closed(&family.name, label);
            if let (Some(closed), Some(value)) = (closed, value) {
                let never = values(value, is_pattern)
                    .filter(|value| !closed.iter().any(|known| value.is(known)));
                self.wrong.extend(
                    never.map(|value| format!("{label} of {name} is never {:?}", value.text)),
                );
            }
        }
    }

    /// `{label="value", label}` behind a name, if it is there.
    fn matchers(&mut self) -> Vec<Matcher<'a>> {
        let Some(inner) = self
            .text
            .strip_prefix('{')
            .filter(|inner| !inner.starts_with('{'))
        else {
            return Vec::new();
        };
        let mut is_quoted = false;
        let ends = |c: char| {
            is_quoted ^= c == '"';
            c == '}' && !is_quoted
        };
        let Some(end) = inner.find(ends) else {
            return Vec::new();
        };
        self.text = &inner[end..];
        // No value of ours holds a comma.
        let matcher = |text: &'a str| {
            let (label, rest) = text.split_at(text.find(|c| !is_name(c)).unwrap_or(text.len()));
            Matcher {
                label,
                is_pattern: rest.contains('~'),
                value: rest.split('"').nth(1),
            }
        };
        inner[..end]
            .split(',')
            .map(|text| matcher(text.trim()))
            .collect()
    }

    /// `(label, label)` behind a keyword.
    fn labels(&mut self) {
        let text = self.text.trim_start();
        let Some((inner, _)) = text
            .strip_prefix('(')
            .and_then(|inner| inner.split_once(')'))
        else {
            return;
        };
        // `label_values(selector, label)` ends in the only label that is not seen with its metric.
        let from = inner.rfind('}').map_or(0, |end| end + 1);
        inner[from..]
            .split(',')
            .map(str::trim)
            .filter(|label| !label.is_empty())
            .for_each(|label| {
                if !label.starts_with("flowgate_") {
                    self.label(label);
                }
            });
    }

    fn label(&mut self, label: &str) {
        if !self.known.is_label(label) {
            self.wrong.push(format!("no metric has a label {label:?}"));
        }
    }
}

// === impl Value ===

impl Value<'_> {
    fn is(&self, known: &str) -> bool {
        match self.text.strip_suffix(".*").filter(|_| self.is_pattern) {
            Some(start) => known.starts_with(start),
            // A dashboard's variable is any of them.
            None => known == self.text || self.text.starts_with('$'),
        }
    }
}

fn values(text: &str, is_pattern: bool) -> impl Iterator<Item = Value<'_>> {
    let separator = move |c: char| is_pattern && c == '|';
    text.split(separator)
        .map(move |text| Value { text, is_pattern })
}

fn is_name_start(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_'
}

fn is_name(c: char) -> bool {
    is_name_start(c) || c.is_ascii_digit() || c == ':'
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
fn what_rules_dashboards_and_documents_name_is_there() {
    let known = Known::new();
    let mut places: Vec<_> = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"]
        .map(|name| root().join(name))
        .into();
    files(&root().join("docs"), &mut places);
    files(&root().join("deploy"), &mut places);
    let mut wrong = Vec::new();
    for place in &places {
        // In JSON quotes stand escaped.
        let text = std::fs::read_to_string(place)
            .unwrap()
            .replace("\\\"", "\"");
        let promql = place.starts_with(root().join("deploy/prometheus"))
            || place.ends_with("grafana/flowgate.json");
        wrong.extend(
            known
                .wrong(&text, promql)
                .into_iter()
                .map(|wrong| format!("{}: {wrong}", place.display())),
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_not_there_is_found() {
    let known = Known::new();
    for (text, promql, wrong) in [
        (
            "see `flowgate_requests_totl`",
            false,
            "there is no metric flowgate_requests_totl",
        ),
        (
            "sum(flowgate_queued_bucket)",
            true,
            "there is no metric flowgate_queued_bucket",
        ),
        (
            "rate(process_cpu_second[5m])",
            true,
            "there is no metric process_cpu_second",
        ),
        (
            "flowgate_stores_*",
            false,
            "no metric begins with flowgate_stores_",
        ),
        (
            "`flowgate_refused_total{outcome}`",
            false,
            "flowgate_refused_total has no label outcome",
        ),
        (
            "flowgate_tokens_total{event=\"used\"}",
            true,
            "event of flowgate_tokens_total is never \"used\"",
        ),
        (
            "flowgate_cancelled_total{stage=~\"queued|sent\"}",
            true,
            "stage of flowgate_cancelled_total is never \"sent\"",
        ),
        (
            "sum by (acount) (x)",
            true,
            "no metric has a label \"acount\"",
        ),
        (
            "{{ $labels.acount }}",
            true,
            "no metric has a label \"acount\"",
        ),
        (
            "label_values(flowgate_queued{job=\"x\"}, acount)",
            true,
            "no metric has a label \"acount\"",
        ),
        (
            "job:flowgate_queued:max > 1",
            true,
            "job:flowgate_queued:max is not recorded",
        ),
    ] {
        assert_eq!(known.wrong(text, promql), [wrong], "{text}");
    }
    for right in [
        "sum by (le) (rate(flowgate_queue_wait_seconds_bucket{job=~\"$job\", le=\"1\"}[5m]))",
        "flowgate_attempts_total{code=~\"System.LimitControl|Throttling.*\"}",
        "label_values(flowgate_build_info, job)",
        "`flowgate_store_*` and `flowgate_requests_total{outcome}`: {{account}}",
    ] {
        assert_eq!(known.wrong(right, true), [""; 0], "{right}");
    }
}

#[test]
fn every_alert_leads_to_its_section() {
    let rules = Known::new().rules;
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
