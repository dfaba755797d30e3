//! Mistakes in the configuration: where they are and what was expected. A wrong value may be a
//! misplaced secret, so neither the value nor its source line is kept here.

use std::fmt;
use std::path::Path;

use super::stamps::Stamps;

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    /// In a file. Without a line, the whole file.
    File { file: FileId, line: Option<u32> },
    /// In the environment variable of this name.
    Variable(String),
    /// Not written: the default.
    Nowhere,
}

/// The index of a file, in the order in which the files are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FileId(u32);

/// The names of the configuration's files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FileNames(Vec<String>);

/// Maximum number of mistakes in a log line.
const SHOWN: usize = 100;

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    pub(crate) origin: Origin,
    /// The path of the key, such as `accounts[0].id`; empty when no single key is wrong.
    pub(crate) key: String,
    pub(crate) expectation: String,
}

/// All mistakes of a configuration; at least one.
#[derive(Clone, PartialEq, Eq)]
pub struct Mistakes {
    names: FileNames,
    list: Vec<Mistake>,
    /// Variables that may be the cause. Not part of the text.
    warnings: Vec<String>,
    /// The stamps of every file that was read or looked for: a change in one of them may correct
    /// the mistakes. Never shown, because a path may be a misplaced secret.
    pub(crate) files: Stamps,
}

// === impl Mistake ===

impl Mistake {
    /// Returns the path of the key, such as `accounts[0].id`; empty when no single key is wrong.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Returns what is wrong or what was expected.
    pub fn expectation(&self) -> &str {
        &self.expectation
    }

    /// Returns the line number for a mistake in a file.
    pub fn line(&self) -> Option<usize> {
        match self.origin {
            Origin::File { line, .. } => line.map(|line| line as usize),
            Origin::Variable(_) | Origin::Nowhere => None,
        }
    }
}

// === impl FileId ===

impl FileId {
    /// Returns the origin of a line of the file.
    pub(crate) fn line(self, line: usize) -> Origin {
        Origin::File {
            file: self,
            line: u32::try_from(line).ok(),
        }
    }

    /// Returns the origin of a mistake that concerns the whole file.
    pub(crate) fn whole(self) -> Origin {
        Origin::File {
            file: self,
            line: None,
        }
    }
}

// === impl FileNames ===

impl FileNames {
    /// Adds the next file.
    pub(crate) fn add(&mut self, path: &Path) -> FileId {
        // A file name with control characters could otherwise forge log lines.
        let name = path.display().to_string();
        let shown = if name.contains(char::is_control) {
            name.escape_debug().to_string()
        } else {
            name
        };
        self.0.push(shown);
        FileId(u32::try_from(self.0.len() - 1).expect("memory does not hold that many names"))
    }

    /// Formats an origin as `flowgate.toml:12`; `None` for an origin that is not a file.
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
    /// Sorts the mistakes by file and line, then by environment variable, then those without an
    /// origin.
    pub(crate) fn new(names: FileNames, mut list: Vec<Mistake>, files: Stamps) -> Self {
        list.sort_by(|a, b| a.origin.cmp(&b.origin));
        list.dedup();
        Self {
            names,
            list,
            warnings: Vec::new(),
            files,
        }
    }

    /// Adds warnings of variables that may be the cause.
    pub(crate) fn with_warnings(self, warnings: Vec<String>) -> Self {
        Self { warnings, ..self }
    }

    /// Returns the warnings of variables that may be the cause, such as misspelt ones.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Formats the first mistakes and the number of the others, because a log line is bounded.
    pub(crate) fn summary(&self) -> String {
        let shown = Self {
            names: self.names.clone(),
            list: self.list.iter().take(SHOWN).cloned().collect(),
            warnings: Vec::new(),
            files: Stamps::new(),
        };
        match self.list.len().checked_sub(SHOWN) {
            None | Some(0) => shown.to_string(),
            Some(more) => format!("{shown}\nand {more} more: flowgate check prints all of them"),
        }
    }

    /// Iterates over the mistakes in order.
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
    /// One line per mistake, such as
    /// `flowgate.toml:12: listen.header_timeout: expected a duration such as 10s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.list.iter().enumerate() {
            let Mistake {
                origin,
                key,
                expectation,
            } = mistake;
            if index > 0 {
                writeln!(f)?;
            }
            match (origin, self.names.show(origin)) {
                (_, Some(place)) => write!(f, "{place}: ")?,
                (Origin::Variable(name), None) => write!(f, "{}: ", name.escape_debug())?,
                (Origin::File { .. } | Origin::Nowhere, None) => {}
            }
            if !key.is_empty() {
                // A key with control characters could otherwise forge log lines.
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
        let list = (1..=count)
            .rev()
            .map(|line| Mistake {
                origin: files[line % 2].line(line),
                key: "mode".to_owned(),
                expectation: "expected another".to_owned(),
            })
            .collect();
        Mistakes::new(names, list, Stamps::new())
    }

    #[test]
    fn mistakes_are_sorted_by_file_and_line() {
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
    fn a_log_line_holds_a_hundred_mistakes_and_the_number_of_the_others() {
        assert_eq!(many(100).summary(), many(100).to_string());
        let all = many(350).to_string();
        let summary = many(350).summary();
        let last = "and 250 more: flowgate check prints all of them";
        assert_eq!(
            summary.lines().collect::<Vec<_>>(),
            all.lines().take(100).chain([last]).collect::<Vec<_>>()
        );
    }
}
