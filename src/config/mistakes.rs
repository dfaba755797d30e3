//! What is wrong, where, and what was expected instead: never what was written. A wrong value may be a secret in the
//! wrong place, so neither it nor its source line is ever kept here.

use std::fmt;

use super::stamps::Stamps;

/// Where something was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    /// On a line of the file.
    Line(usize),
    /// In an environment variable of this name.
    Variable(String),
    /// Nowhere: the default, or a file that cannot be read at all.
    Nowhere,
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    pub(crate) origin: Origin,
    /// The path of the key, such as `accounts[0].id`; empty when no single key is wrong.
    pub(crate) key: String,
    pub(crate) expectation: String,
}

/// Every mistake of a configuration at once; there is at least one.
#[derive(Clone, PartialEq, Eq)]
pub struct Mistakes {
    file: Option<String>,
    list: Vec<Mistake>,
    /// Every file that was read or looked for, as it was before: one of these may be what mends them. Never shown: a path
    /// may be a secret in the wrong place.
    pub(crate) files: Stamps,
}

// === impl Mistake ===

impl Mistake {
    /// The path of the key, such as `accounts[0].id`; empty when no single key is wrong.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// What was expected.
    pub fn expectation(&self) -> &str {
        &self.expectation
    }

    /// The line, when it stands in the file.
    pub fn line(&self) -> Option<usize> {
        match self.origin {
            Origin::Line(line) => Some(line),
            Origin::Variable(_) | Origin::Nowhere => None,
        }
    }
}

// === impl Mistakes ===

impl Mistakes {
    /// In the order of the file; then the environment's, by name; then those that were written nowhere.
    pub(crate) fn new(file: Option<String>, mut list: Vec<Mistake>, files: Stamps) -> Self {
        list.sort_by(|a, b| a.origin.cmp(&b.origin));
        list.dedup();
        Self { file, list, files }
    }

    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = &Mistake> {
        self.list.iter()
    }
}

impl std::error::Error for Mistakes {}

impl fmt::Debug for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mistakes").field("file", &self.file).field("list", &self.list).finish_non_exhaustive()
    }
}

impl fmt::Display for Mistakes {
    /// One line each: `flowgate.toml:12: listen.header_timeout: expected a duration such as 10s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Mistake { origin, key, expectation }) in self.list.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            match (origin, &self.file) {
                (Origin::Line(line), Some(file)) => write!(f, "{file}:{line}: ")?,
                (Origin::Line(line), None) => write!(f, "line {line}: ")?,
                (Origin::Variable(name), _) => write!(f, "{}: ", name.escape_debug())?,
                (Origin::Nowhere, Some(file)) if key.is_empty() => write!(f, "{file}: ")?,
                (Origin::Nowhere, _) => {}
            }
            if !key.is_empty() {
                // A key is free text, so it could otherwise forge lines.
                write!(f, "{}: ", key.escape_debug())?;
            }
            f.write_str(expectation)?;
        }
        Ok(())
    }
}
