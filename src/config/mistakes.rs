//! What is wrong, where, and what was expected instead: never what was written. A wrong value may be a secret in the
//! wrong place, so neither it nor its source line is ever kept here.

use std::fmt;
use std::path::Path;

use super::stamps::Stamps;

/// Where something was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    /// In a file; without a line the whole file is meant.
    File { file: FileId, line: Option<u32> },
    /// In an environment variable of this name.
    Variable(String),
    /// Nowhere: the default.
    Nowhere,
}

/// The number of a file in the order in which the files are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FileId(u32);

/// The names of the configuration's files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FileNames(Vec<String>);

/// How many mistakes a log line holds.
const SHOWN: usize = 100;

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
    names: FileNames,
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

    /// The line, when it stands in a file.
    pub fn line(&self) -> Option<usize> {
        match self.origin {
            Origin::File { line, .. } => line.map(|line| line as usize),
            Origin::Variable(_) | Origin::Nowhere => None,
        }
    }
}

// === impl FileId ===

impl FileId {
    /// A line of the file.
    pub(crate) fn line(self, line: usize) -> Origin {
        Origin::File {
            file: self,
            line: u32::try_from(line).ok(),
        }
    }

    /// The whole file.
    pub(crate) fn whole(self) -> Origin {
        Origin::File {
            file: self,
            line: None,
        }
    }
}

// === impl FileNames ===

impl FileNames {
    /// The next file that is read.
    pub(crate) fn add(&mut self, path: &Path) -> FileId {
        // A file's name is free text, so it could otherwise forge lines.
        let name = path.display().to_string();
        let shown = if name.contains(char::is_control) {
            name.escape_debug().to_string()
        } else {
            name
        };
        self.0.push(shown);
        FileId(u32::try_from(self.0.len() - 1).expect("memory does not hold that many names"))
    }

    /// `flowgate.toml:12`; none for what is in no file.
    pub(crate) fn show(&self, origin: &Origin) -> Option<String> {
        let Origin::File {
            file: FileId(index),
            line,
        } = origin
        else {
            return None;
        };
        let name = self.0.get(*index as usize)?;
        Some(line.map_or_else(|| name.clone(), |line| format!("{name}:{line}")))
    }
}

// === impl Mistakes ===

impl Mistakes {
    /// In the order of the files and their lines; then the environment's, by name; then those that were written nowhere.
    pub(crate) fn new(names: FileNames, mut list: Vec<Mistake>, files: Stamps) -> Self {
        list.sort_by(|a, b| a.origin.cmp(&b.origin));
        list.dedup();
        Self { names, list, files }
    }

    /// The first of them, and how many follow: a log line has a bound.
    pub(crate) fn summary(&self) -> String {
        let shown = Self {
            list: self.list.iter().take(SHOWN).cloned().collect(),
            ..self.without_list()
        };
        match self.list.len().checked_sub(SHOWN) {
            None | Some(0) => shown.to_string(),
            Some(more) => format!("{shown}\nand {more} more: flowgate check prints all of them"),
        }
    }

    fn without_list(&self) -> Self {
        Self {
            names: self.names.clone(),
            list: Vec::new(),
            files: Stamps::new(),
        }
    }

    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = &Mistake> {
        self.list.iter()
    }
}

impl std::error::Error for Mistakes {}

impl fmt::Debug for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mistakes")
            .field("names", &self.names)
            .field("list", &self.list)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Mistakes {
    /// One line each: `flowgate.toml:12: listen.header_timeout: expected a duration such as 10s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (
            index,
            Mistake {
                origin,
                key,
                expectation,
            },
        ) in self.list.iter().enumerate()
        {
            if index > 0 {
                writeln!(f)?;
            }
            match (origin, self.names.show(origin)) {
                (_, Some(place)) => write!(f, "{place}: ")?,
                (Origin::Variable(name), None) => write!(f, "{}: ", name.escape_debug())?,
                (Origin::File { .. } | Origin::Nowhere, None) => {}
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

#[cfg(test)]
mod tests {
    use super::*;

    fn many(count: usize) -> Mistakes {
        let mut names = FileNames::default();
        let files = [
            names.add(Path::new("a.toml")),
            names.add(Path::new("b\n.toml")),
        ];
        let mistake = |line: usize| Mistake {
            origin: files[line % 2].line(line),
            key: "mode".to_owned(),
            expectation: "expected another".to_owned(),
        };
        Mistakes::new(
            names,
            (1..=count).rev().map(mistake).collect(),
            Stamps::new(),
        )
    }

    #[test]
    fn mistakes_stand_in_the_order_of_files_and_lines() {
        let shown = many(4).to_string();
        let places: Vec<_> = shown
            .lines()
            .map(|line| line.split_once(": ").unwrap().0)
            .collect();
        assert_eq!(
            places,
            ["a.toml:2", "a.toml:4", "b\\n.toml:1", "b\\n.toml:3"]
        );
    }

    #[test]
    fn a_log_line_has_a_hundred_mistakes_and_says_how_many_follow() {
        assert_eq!(many(100).summary(), many(100).to_string());
        let (all, summary) = (many(350).to_string(), many(350).summary());
        let last = "and 250 more: flowgate check prints all of them";
        assert_eq!(
            summary.lines().collect::<Vec<_>>(),
            all.lines().take(100).chain([last]).collect::<Vec<_>>()
        );
    }
}
