//! Checks that lints cannot make: every file has a module doc, deciders do no I/O, and folders use
//! only those above them.

use std::path::{Path, PathBuf};

/// Files that only decide: the time is an argument, and they do not wait.
const DECIDERS: &[&str] = &[
    "acs",
    "primitives/backoff.rs",
    "call/classify.rs",
    "call/hold",
    "call/hold.rs",
    "call/identify",
    "call/identify.rs",
    "call/clock.rs",
    "call/judge.rs",
    "idempotency/shared/member.rs",
    "limiter/fair.rs",
    "limiter/fair",
    "limiter/forecast.rs",
    "limiter/lane.rs",
    "limiter/lane",
    "limiter/pace.rs",
    "limiter/pace",
    "limiter/pause.rs",
    "limiter/shadow.rs",
    "limiter/shared/clock.rs",
    "limiter/shared/members.rs",
    "limiter/shared/slots.rs",
    "limiter/source.rs",
    "limiter/token_returns.rs",
    "limiter/tokens.rs",
    "limiter/wait.rs",
    "call/retry.rs",
    "call/sign.rs",
    "idempotency/looks.rs",
    "idempotency/looks",
    "credentials/keeper/state.rs",
    "credentials/schedule.rs",
    "credentials/session.rs",
];

/// The folders and files of `src` in the order in which they may use one another: each only those
/// above it.
const LAYERS: &[&str] = &[
    "primitives",
    "acs",
    "config",
    "error",
    "operation",
    "process",
    "upstream",
    "observe",
    "store",
    "credentials",
    "idempotency",
    "limiter",
    "server",
    "call",
    "admin",
    "app",
    "cli",
    "testing",
];

fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    assert!(found.len() > 5, "{folder} has sources");
    found
}

fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests {").next().unwrap()
}

#[test]
fn every_file_has_a_module_doc_and_docs_end_with_a_full_stop() {
    for (path, text) in ["src", "cams-sim/src", "tests/it", "fuzz/targets"]
        .into_iter()
        .flat_map(sources)
    {
        assert!(
            text.starts_with("//! "),
            "{} has no module doc",
            path.display()
        );
        let lines: Vec<_> = text.lines().chain([""]).collect();
        for pair in lines.windows(2) {
            let line = pair[0].trim();
            let next = pair[1].trim();
            let is_doc = |line: &str| line.starts_with("//!") || line.starts_with("///");
            if is_doc(line) && !is_doc(next) && line.len() > 4 {
                let closed = line.ends_with(['.', ':', '|', '`', '?', '!', ')']);
                assert!(
                    closed,
                    "{}: a doc stops mid-sentence: {line}",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn deciders_do_no_io() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (path, text) in sources("src") {
        let relative = path.strip_prefix(&root).unwrap();
        if !DECIDERS.iter().any(|decider| relative.starts_with(decider))
            || path.ends_with("tests.rs")
        {
            continue;
        }
        for line in without_tests(&text)
            .lines()
            .filter(|line| line.trim_start().starts_with("use "))
        {
            let allowed = line.contains("tokio::time::Instant;");
            let waits = [
                "tokio",
                "hyper_util",
                "std::net::Tcp",
                "std::fs",
                "std::env",
                "redis",
                "leaky_bucket",
            ];
            assert!(
                allowed || !waits.iter().any(|name| line.contains(name)),
                "{}: {line}",
                path.display()
            );
        }
    }
}

/// Every `crate::a::...` path in the text, by its first name.
fn crate_paths(text: &str) -> impl Iterator<Item = &str> {
    let code = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    code.flat_map(|line| line.split("crate::").skip(1))
        .filter_map(|rest| {
            rest.split(|c: char| !c.is_alphanumeric() && c != '_')
                .next()
        })
}

#[test]
fn folders_use_only_those_above_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let rank = |name: &str| LAYERS.iter().position(|layer| *layer == name);
    let mut uses = 0;
    for (path, text) in sources("src") {
        let relative = path.strip_prefix(&root).unwrap().with_extension("");
        let names: Vec<_> = relative.iter().map(|name| name.to_str().unwrap()).collect();
        let is_root = ["lib", "main"].contains(&names[0]);
        let is_test = names.contains(&"tests");
        if is_root || is_test {
            continue;
        }
        let own = rank(names[0]).unwrap_or_else(|| panic!("{} has no layer", path.display()));
        let code = without_tests(&text);
        assert!(
            !code.contains("use crate::{"),
            "{}: one line for each folder",
            path.display()
        );
        for used in crate_paths(code) {
            // What is in `lib.rs`: the version, and `App`.
            let Some(other) = rank(used) else { continue };
            assert!(
                other <= own,
                "{}: {} comes before {used}",
                path.display(),
                names[0]
            );
            uses += usize::from(other != own);
        }
    }
    assert!(uses > 200, "{uses}");
}

#[test]
fn no_code_turns_tls_verification_off() {
    for (path, text) in sources("src") {
        assert!(!text.contains("dangerous"), "{}", path.display());
    }
}
