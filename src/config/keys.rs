//! The keys of the configuration, and look-ups in the table that lists them (`keys/table.rs`).
//! Values are validated in `check.rs`.

use std::collections::HashMap;
use std::sync::LazyLock;

pub(crate) use table::KEYS;

mod table;

/// The type of a key's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Text in some form, such as an address.
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
    /// The location of a secret: an environment variable or a file.
    Secret,
    /// A table.
    Table,
}

/// One key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    /// The key's path; `[]` stands for an index, `<Action>` for the name of an action.
    pub(crate) path: &'static str,
    pub(crate) kind: Kind,
    /// The default as it would be written, without quotes. A key without a default is required, or
    /// its absence has a meaning of its own.
    pub(crate) default: Option<&'static str>,
    /// One or two sentences for the manual.
    #[cfg_attr(not(test), expect(dead_code, reason = "the manual's test reads it"))]
    pub(crate) meaning: &'static str,
}

/// The table indexed by path, because each key of each account is looked up.
static BY_PATH: LazyLock<HashMap<&str, &Key>> =
    LazyLock::new(|| KEYS.iter().map(|key| (key.path, key)).collect());

/// The table whose keys are repeated within [`FROM`].
pub(crate) const CREDENTIALS: &str = "accounts[].credentials";

/// The source of a role. Its table has the keys of [`CREDENTIALS`] and some of its own, to any
/// depth; only the keys of its own are in the table of keys.
pub(crate) const FROM: &str = "accounts[].credentials.assume_role.from";

/// Returns the key with this path. In a repetition it is the key of [`CREDENTIALS`], or of the
/// first [`FROM`], so its `path` may be shorter.
pub(crate) fn find(path: &str) -> Option<&'static Key> {
    BY_PATH.get(path).copied().or_else(|| repeated(path))
}

fn repeated(path: &str) -> Option<&'static Key> {
    let mut rest = path.strip_prefix(FROM)?.strip_prefix('.')?;
    while let Some(deeper) = rest.strip_prefix("assume_role.from.") {
        rest = deeper;
    }
    [FROM, CREDENTIALS]
        .into_iter()
        .find_map(|table| BY_PATH.get(&*format!("{table}.{rest}")).copied())
}

/// Whether this path is an array of tables.
pub(crate) fn is_array(path: &str) -> bool {
    KEYS.iter().any(|key| {
        key.path
            .strip_prefix(path)
            .is_some_and(|rest| rest.starts_with("[]."))
    })
}

/// Whether the key of this path is a table, or may be one.
pub(crate) fn is_table(path: &str) -> bool {
    find(path).is_some_and(|key| key.kind == Kind::Table || !names(key.path).is_empty())
}

/// Returns the manual's name for the key `name` of a table: in `limits`, every action is
/// `<Action>`.
pub(crate) fn in_manual<'a>(table: &str, name: &'a str) -> &'a str {
    if table == "limits" && name != "preset" {
        "<Action>"
    } else {
        name
    }
}

/// Returns the names of the keys in the table of this path (empty: the top level), without
/// duplicates, in the manual's order.
pub(crate) fn names(table: &str) -> Vec<&'static str> {
    let mut names = if table == FROM {
        names(CREDENTIALS)
    } else {
        Vec::new()
    };
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

/// Returns the default of a key as it is written in a file.
pub(crate) fn default_in_toml(path: &str) -> String {
    let key = find(path).expect("the path of a key");
    let default = key.default.expect("a key with a default");
    match key.kind {
        Kind::Count | Kind::Flag | Kind::List => default.to_owned(),
        _ => format!("\"{default}\""),
    }
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
