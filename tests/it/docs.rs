//! Checks that the documents are complete and that the names in them exist: error codes and log
//! messages have an entry in the runbook, tests and files of the security page exist, links have a
//! target. For metrics see `src/observe/metrics/tests/named.rs`.

use std::collections::BTreeSet;
use std::path::Path;

pub(crate) fn read(path: &str) -> String {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path));
    text.unwrap_or_else(|error| panic!("{path}: {error}"))
}

pub(crate) fn files(folder: &str, extension: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{folder}/{}", entry.file_name().into_string().unwrap());
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&path, extension));
        } else if path.ends_with(extension) {
            found.push(path);
        }
    }
    found
}

/// The string literals in `text`, which has no escapes.
fn literals(text: &str) -> impl Iterator<Item = &str> {
    text.split('"').skip(1).step_by(2)
}

/// The code spans of a Markdown text; none of them spans lines.
fn code_spans(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .flat_map(|line| line.split('`').skip(1).step_by(2))
}

#[test]
fn the_runbook_has_a_section_for_each_error_code() {
    let errors = read("src/error.rs");
    let runbook = read("docs/runbook.md");
    let named: BTreeSet<_> = code_spans(&runbook).collect();
    let (_, table) = errors
        .split_once("let (status, code, outcome, label) = match self {")
        .unwrap();
    let (table, _) = table.split_once("};").unwrap();
    let rows: Vec<_> = table.split("Self::").skip(1).collect();
    assert!(rows.len() > 20, "{}", rows.len());
    for row in rows {
        let [code, label] = literals(row).collect::<Vec<_>>()[..] else {
            panic!("no code and label in {row}")
        };
        assert!(
            runbook.contains(&format!("\n### {code}\n")),
            "{code} has no section"
        );
        assert!(named.contains(label), "{label} is not explained");
    }
}

/// An operator searches the runbook for the text of a log line.
#[test]
fn the_runbook_has_a_row_for_each_warning_and_error_of_the_log() {
    let runbook = read("docs/runbook.md");
    let mut count = 0;
    for path in files("src", ".rs") {
        let source = read(&path);
        for (level, macro_call) in [("WARN", "warn!("), ("ERROR", "error!(")] {
            for event in source.split(macro_call).skip(1) {
                let message = literals(event).next().unwrap();
                assert!(
                    runbook.contains(&format!("| `{message}` | {level} |")),
                    "{path}: {message}"
                );
                count += 1;
            }
        }
    }
    assert!(count > 20, "{count}");
}

#[test]
fn the_page_of_the_first_week_names_each_critical_alert() {
    let rules = read("deploy/prometheus/rules.yaml");
    let page = read("docs/first-week.md");
    let named: BTreeSet<_> = code_spans(&page).collect();
    let alerts = rules.split("- alert: ").skip(1);
    let critical: Vec<_> = alerts
        .filter(|alert| alert.contains("severity: critical"))
        .filter_map(|alert| alert.lines().next())
        .collect();
    assert!(critical.len() > 5, "{critical:?}");
    for alert in critical {
        assert!(
            named.contains(alert),
            "{alert} is not in docs/first-week.md"
        );
    }
}

#[test]
fn the_tests_and_files_that_the_security_page_names_exist() {
    let page = read("docs/security.md");
    let mut tests = 0;
    for name in
        code_spans(&page).filter(|name| name.starts_with("src/") || name.starts_with("tests/"))
    {
        let (path, test) = name
            .split_once("::")
            .map_or((name, None), |(path, test)| (path, Some(test)));
        let source = read(path);
        assert!(
            test.is_none_or(|test| source.contains(&format!("fn {test}("))),
            "{name}"
        );
        tests += usize::from(test.is_some());
    }
    assert!(tests > 30, "{tests}");
}

/// The text without fenced code blocks.
fn prose(page: &str) -> String {
    page.split("```").step_by(2).collect()
}

/// The anchor that GitHub generates for a heading.
fn anchor(heading: &str) -> String {
    let kept = |char: char| match char {
        ' ' => Some('-'),
        char if char.is_alphanumeric() || "-_".contains(char) => Some(char),
        _ => None,
    };
    heading.to_lowercase().chars().filter_map(kept).collect()
}

#[test]
fn every_link_has_a_target() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pages = [
        "README.md",
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "benches/README.md",
    ];
    let mut links = 0;
    for page in files("docs", ".md")
        .into_iter()
        .chain(pages.map(str::to_owned))
    {
        let text = prose(&read(&page));
        for target in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            if target.contains("://") {
                continue;
            }
            let (file, section) = target.split_once('#').unwrap_or((target, ""));
            let folder = root.join(&page).parent().unwrap().to_owned();
            let place = if file.is_empty() {
                root.join(&page)
            } else {
                folder.join(file)
            };
            assert!(place.exists(), "{page}: {target}");
            if !section.is_empty() {
                let there = prose(&std::fs::read_to_string(&place).unwrap());
                let mut headings = there.lines().filter(|line| line.starts_with('#'));
                let is_there =
                    headings.any(|line| anchor(line.trim_start_matches('#').trim()) == section);
                assert!(is_there, "{page}: {target}");
            }
            links += 1;
        }
    }
    assert!(links > 40, "{links}");
}
