//! Which keys are there? What the one table (`keys/table.rs`) says of a key, and how the table is asked. What a value may
//! be is checked by `check.rs`.

use std::collections::HashMap;
use std::sync::LazyLock;

pub(crate) use table::KEYS;

mod table;

/// What kind of value a key takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Text of some form, an address for instance.
    Text,
    /// A whole number.
    Count,
    /// `true` or `false`.
    Flag,
    /// `200ms`, `1s`, `2m`, `1h`.
    Time,
    /// `64KiB`.
    Size,
    /// `5/1s`, a table with `rate`, `burst` and `reserve`, or `off`.
    Limit,
    /// A list of text.
    List,
    /// The place of a secret.
    Secret,
    /// A table.
    Table,
}

/// One key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    /// Its path; `[]` stands for an index, `<Action>` for the name of an action.
    pub(crate) path: &'static str,
    pub(crate) kind: Kind,
    /// As it would be written, without quotes. Without one the key is required, or leaving it out means something.
    pub(crate) default: Option<&'static str>,
    /// One or two sentences for the manual.
    #[cfg_attr(not(test), expect(dead_code, reason = "the manual's test reads it"))]
    pub(crate) meaning: &'static str,
}

/// By their paths: they are asked for once for each key of each account.
static BY_PATH: LazyLock<HashMap<&str, &Key>> =
    LazyLock::new(|| KEYS.iter().map(|key| (key.path, key)).collect());

/// The key of this path.
pub(crate) fn find(path: &str) -> Option<&'static Key> {
    BY_PATH.get(path).copied()
}

/// Whether this path is an array of tables.
pub(crate) fn is_array(path: &str) -> bool {
    KEYS.iter().any(|key| {
        key.path
            .strip_prefix(path)
            .is_some_and(|rest| rest.starts_with("[]."))
    })
}

/// How the manual calls what stands as `name` in a table: there, every limited action has one name.
pub(crate) fn in_manual<'a>(table: &str, name: &'a str) -> &'a str {
    if table == "limits" && name != "preset" {
        "<Action>"
    } else {
        name
    }
}

/// Names that may stand in the table of this path (empty: at the top), each once, in the manual's order.
pub(crate) fn names(table: &str) -> Vec<&'static str> {
    let mut names: Vec<&str> = Vec::new();
    for key in KEYS {
        let rest = if table.is_empty() {
            Some(key.path)
        } else {
            key.path
                .strip_prefix(table)
                .and_then(|r| r.strip_prefix('.'))
        };
        let name = rest.and_then(|rest| rest.split(['.', '[']).next());
        names.extend(name.filter(|name| !names.contains(name)));
    }
    names
}

// === impl Key ===

impl Key {
    pub(crate) fn is_list(&self) -> bool {
        self.kind == Kind::List
    }

    pub(crate) fn is_secret(&self) -> bool {
        self.kind == Kind::Secret
    }
}

#[cfg(test)]
mod tests;
