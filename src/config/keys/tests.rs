//! The manual agrees with the table of keys, and the table is consistent.

use super::*;

/// The lines around the manual's table.
const MARKS: [&str; 2] = [
    "<!-- keys: made from src/config/keys.rs -->\n",
    "<!-- end of keys -->\n",
];

fn default(key: &Key) -> String {
    match (key.default, key.kind) {
        (None, _) => String::new(),
        (Some(default), Kind::Count | Kind::Flag | Kind::List) => format!("`{default}`"),
        (Some(default), _) => format!("`\"{default}\"`"),
    }
}

fn kind(key: &Key) -> &'static str {
    match key.kind {
        Kind::Text => "text",
        Kind::Count => "whole number",
        Kind::Flag => "true or false",
        Kind::Time => "duration",
        Kind::Size => "size",
        Kind::Limit => "rate, table or `off`",
        Kind::List => "list of text",
        Kind::Secret => "place of a secret",
        Kind::Table => "table",
    }
}

fn manual() -> String {
    let rows: String = KEYS
        .iter()
        .map(|key| {
            format!(
                "| `{}` | {} | {} | {} |\n",
                key.path,
                kind(key),
                default(key),
                key.meaning
            )
        })
        .collect();
    format!("\n| key | type | default | meaning |\n|---|---|---|---|\n{rows}\n")
}

/// Run with `UPDATE_DOCS=1` to write the table to the manual.
#[test]
fn the_manual_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (before, rest) = page.split_once(MARKS[0]).unwrap();
    let (table, after) = rest.split_once(MARKS[1]).unwrap();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(
            path,
            [before, MARKS[0], &manual(), MARKS[1], after].concat(),
        )
        .unwrap();
        return;
    }
    assert_eq!(table, manual());
}

#[test]
fn each_key_occurs_once_and_its_description_is_one_line_with_a_full_stop() {
    for (index, key) in KEYS.iter().enumerate() {
        assert!(
            key.meaning.ends_with('.') && !key.meaning.contains(['\n', '|']),
            "{}",
            key.path
        );
        assert!(
            KEYS[..index].iter().all(|other| other.path != key.path),
            "{}",
            key.path
        );
    }
}

#[test]
fn names_returns_the_keys_of_one_table() {
    assert_eq!(names("queue.tenant"), ["header"]);
    assert_eq!(names("limits.<Action>"), ["rate", "burst", "reserve"]);
    assert_eq!(names("drain"), ["delay", "grace", "hand_over"]);
    let top = [
        "mode",
        "unknown_keys",
        "listen",
        "upstream",
        "accounts",
        "clients",
        "sts",
    ];
    assert_eq!(names("")[..7], top);
}

#[test]
fn the_keys_of_a_source_are_repeated_within_a_role_s_source() {
    let found = |path: &str| find(path).map(|key| key.path);
    let deep = format!("{FROM}.assume_role.from.assume_role.from");
    for (path, expected) in [
        (
            format!("{FROM}.oidc.role_arn"),
            Some("accounts[].credentials.oidc.role_arn"),
        ),
        (format!("{deep}.file"), Some("accounts[].credentials.file")),
        (
            format!("{deep}.assume_role"),
            Some("accounts[].credentials.assume_role"),
        ),
        (
            format!("{deep}.access_key_id"),
            Some("accounts[].credentials.assume_role.from.access_key_id"),
        ),
        (deep.clone(), Some(FROM)),
        (format!("{deep}.id"), None),
        (format!("{deep}."), None),
        (format!("{FROM}.from.file"), None),
        (format!("{FROM}file"), None),
        ("accounts[].credentials.access_key_id".to_owned(), None),
    ] {
        assert_eq!(found(&path), expected, "{path}");
    }
    let sources = [
        "file",
        "env",
        "profile",
        "oidc",
        "ecs_role",
        "assume_role",
        "uri",
    ];
    assert_eq!(names("accounts[].credentials"), sources);
    let own = ["access_key_id", "access_key_secret", "security_token"];
    assert_eq!(names(FROM), [&sources[..], &own].concat());
}
