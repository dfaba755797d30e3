//! What lints cannot see: every file says its question, and deciders do no I/O.

use std::path::{Path, PathBuf};

/// Files that only decide: the time is an argument, and nothing is waited for.
const DECIDERS: &[&str] = &[
    "acs",
    "call/classify.rs",
    "call/hold",
    "call/hold.rs",
    "call/identify",
    "call/identify.rs",
    "call/judge.rs",
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
    "limiter/tokens.rs",
    "call/retry.rs",
    "call/retry",
    "call/sign.rs",
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
fn every_file_opens_with_its_question_and_ends_its_docs_with_a_full_stop() {
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
            let (line, next) = (pair[0].trim(), pair[1].trim());
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

#[test]
fn nobody_turns_tls_verification_off() {
    for (path, text) in sources("src") {
        assert!(!text.contains("dangerous"), "{}", path.display());
    }
}
