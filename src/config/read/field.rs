//! Reads one key in one form, such as a duration or a list, within bounds. A mistake describes the
//! form, never what was written.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{KeyLocation, Reader, Section};
use crate::config::entries::Entries;
use crate::config::file::{Item, Node, Style};
use crate::config::keys::Key;
use crate::config::mistakes::Origin;
use crate::config::units::{Size, Time};

/// One key, which may be absent.
pub(crate) struct Field<'a> {
    pub(crate) reader: &'a Reader,
    pub(crate) key: &'static Key,
    pub(crate) place: KeyLocation,
    pub(crate) item: Option<Item>,
    /// The variable of Alibaba's SDKs that sets the key if it is not written.
    pub(crate) variable: Option<&'static str>,
}

/// Upper bound of every duration: a longer one is a mistake, and could overflow the clock.
pub(crate) const MAX_TIME: Duration = Duration::from_secs(24 * 3600);

/// The range of durations that must not be zero.
pub(crate) const POSITIVE: RangeInclusive<Duration> = Duration::from_millis(1)..=MAX_TIME;

// === impl Field ===

impl<'a> Field<'a> {
    /// Records a mistake in this key.
    pub(crate) fn mistake(&self, expectation: impl Into<String>) {
        self.reader.mistake(&self.place, expectation);
    }

    /// Whether the key was written.
    pub(crate) fn is_given(&self) -> bool {
        self.item.is_some()
    }

    /// Whether the key was set by an environment variable without any list entry.
    pub(crate) fn is_empty_variable(&self) -> bool {
        let Some(Item::Scalar {
            text,
            style: Style::Variable,
        }) = &self.item
        else {
            return false;
        };
        split(text, &self.place.origin).is_empty()
    }

    /// Whether an environment variable has set the key.
    pub(crate) fn is_variable(&self) -> bool {
        self.is_given() && matches!(self.place.origin, Origin::Variable(_))
    }

    /// Takes the value of an absent key from a variable of Alibaba's SDKs.
    pub(crate) fn or_variable(mut self, name: &'static str) -> Self {
        self.variable = Some(name);
        if !self.is_given()
            && let Some(text) = self.reader.environment.get(name)
        {
            self.item = Some(Item::Scalar {
                text: text.to_owned(),
                style: Style::Variable,
            });
            self.place.origin = Origin::Variable(name.to_owned());
        }
        self
    }

    /// Whether exactly this word was written.
    pub(crate) fn says(&self, word: &str) -> bool {
        self.written() == Some(word)
    }

    /// Whether a text with this start was written.
    pub(crate) fn starts_with(&self, start: &str) -> bool {
        self.written().is_some_and(|text| text.starts_with(start))
    }

    fn written(&self) -> Option<&str> {
        match &self.item {
            Some(Item::Scalar {
                text,
                style: Style::Quoted | Style::Variable,
            }) => Some(text),
            _ => None,
        }
    }

    /// Reads an optional key without a default. The outer `None` is a mistake.
    pub(crate) fn optional<T>(&self, read: impl FnOnce(&Self) -> Option<T>) -> Option<Option<T>> {
        if self.is_given() {
            read(self).map(Some)
        } else {
            Some(None)
        }
    }

    /// Like [`Field::optional`], for a `read` that consumes the key.
    pub(crate) fn given<T>(self, read: impl FnOnce(Self) -> Option<T>) -> Option<Option<T>> {
        if self.is_given() {
            read(self).map(Some)
        } else {
            Some(None)
        }
    }

    /// Reads text in the form that `parse` accepts and `expected` describes.
    pub(crate) fn text<T>(
        &self,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let value = match (&self.item, self.key.default) {
            (
                Some(Item::Scalar {
                    text,
                    style: Style::Quoted | Style::Variable,
                }),
                _,
            ) => parse(text),
            (Some(_), _) => None,
            (None, Some(default)) => {
                return Some(parse(default).expect("the manual's defaults are well-formed"));
            }
            (None, None) => {
                let or_variable = self
                    .variable
                    .map(|name| format!(", or the variable {name}"))
                    .unwrap_or_default();
                self.mistake(format!("missing, expected {expected}{or_variable}"));
                return None;
            }
        };
        if value.is_none() {
            self.mistake(format!("expected {expected}"));
        }
        value
    }

    /// Reads one of some words.
    pub(crate) fn choice<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        self.text(&alternatives(words), |text| {
            words
                .iter()
                .find(|(word, _)| *word == text)
                .map(|(_, value)| *value)
        })
    }

    /// Reads a duration.
    pub(crate) fn time(&self, range: &RangeInclusive<Duration>) -> Option<Duration> {
        let Time(time) = self.text("a duration such as 10s", |text| text.parse().ok())?;
        self.within(time, range, Time)
    }

    /// Reads a number of bytes.
    pub(crate) fn size(&self, range: &RangeInclusive<usize>) -> Option<usize> {
        let Size(size) = self.text("a size such as 64KiB", |text| text.parse().ok())?;
        self.within(size, range, Size)
    }

    /// Records a mistake if the value is out of range.
    pub(crate) fn within<T: Copy + PartialOrd, S: fmt::Display>(
        &self,
        value: T,
        range: &RangeInclusive<T>,
        show: fn(T) -> S,
    ) -> Option<T> {
        if range.contains(&value) {
            return Some(value);
        }
        self.mistake(format!(
            "expected a value from {} to {}",
            show(*range.start()),
            show(*range.end())
        ));
        None
    }

    /// Reads a whole number.
    pub(crate) fn count(&self, range: &RangeInclusive<u32>) -> Option<u32> {
        let value = self
            .bare()
            .and_then(|text| text.parse().ok())
            .filter(|count| range.contains(count));
        if value.is_none() {
            self.mistake(format!(
                "expected a whole number from {} to {}",
                range.start(),
                range.end()
            ));
        }
        value
    }

    /// Reads `true` or `false`.
    pub(crate) fn flag(&self) -> Option<bool> {
        let value = self.bare().and_then(|text| text.parse().ok());
        if value.is_none() {
            self.mistake("expected true or false");
        }
        value
    }

    fn bare(&self) -> Option<&str> {
        match &self.item {
            None => self.key.default,
            Some(Item::Scalar {
                text,
                style: Style::Bare | Style::Variable,
            }) => Some(text),
            Some(_) => None,
        }
    }

    /// Reads a list, each entry as a field. In the environment, commas separate the entries.
    pub(crate) fn list<T>(self, mut read: impl FnMut(&Field<'a>) -> Option<T>) -> Option<Vec<T>> {
        let Self {
            reader,
            key,
            place,
            item,
            variable: _,
        } = self;
        let nodes = match item {
            None if key.default.is_some() => Vec::new(),
            Some(Item::List(nodes)) => nodes,
            Some(Item::Scalar {
                text,
                style: Style::Variable,
            }) => split(&text, &place.origin),
            found => {
                let missing = if found.is_none() { "missing, " } else { "" };
                reader.mistake(&place, format!("{missing}expected a list"));
                return None;
            }
        };
        // Every entry is read, even after a mistake, so that all mistakes are reported.
        let mut values = Some(Vec::with_capacity(nodes.len()));
        for (index, node) in nodes.into_iter().enumerate() {
            let entry = Field {
                reader,
                key,
                place: KeyLocation {
                    path: format!("{}[{index}]", place.path),
                    origin: node.origin,
                },
                item: Some(node.item),
                variable: None,
            };
            match (read(&entry), &mut values) {
                (Some(value), Some(values)) => values.push(value),
                (Some(_), None) => {}
                (None, _) => values = None,
            }
        }
        values
    }

    /// Returns the key as a table, or the unchanged key if it is not a table.
    pub(crate) fn into_table(self) -> Result<Section<'a>, Self> {
        match self.item {
            Some(Item::Table(nodes)) => Ok(Section {
                reader: self.reader,
                place: self.place,
                manual: self.key.path.to_owned(),
                nodes,
            }),
            item => Err(Self { item, ..self }),
        }
    }

    /// Returns an empty table in place of the key, to read the defaults of its keys.
    pub(crate) fn empty_table(self) -> Section<'a> {
        let Self {
            reader,
            key,
            place,
            item: _,
            variable: _,
        } = self;
        Section {
            reader,
            place,
            manual: key.path.to_owned(),
            nodes: Entries::default(),
        }
    }

    /// Resolves the path of a file that the configuration depends on, and records its stamp.
    pub(crate) fn opens(&self, path: &Path) -> PathBuf {
        let path = self.resolve(path);
        self.reader.watch(&path);
        path
    }

    /// Resolves a path: in a file relative to its directory, in a variable to the current one.
    pub(crate) fn resolve(&self, path: &Path) -> PathBuf {
        match self.place.origin {
            Origin::File { .. } => self.reader.folder.join(path),
            Origin::Variable(_) | Origin::Nowhere => path.to_owned(),
        }
    }
}

/// Formats the words as `"a", "b" or "c"`.
fn alternatives<T>(words: &[(&str, T)]) -> String {
    let mut text = String::new();
    for (index, (word, _)) in words.iter().enumerate() {
        let separator = match index {
            0 => "",
            _ if index + 1 == words.len() => " or ",
            _ => ", ",
        };
        text.push_str(&format!("{separator}\"{word}\""));
    }
    text
}

/// Splits a comma-separated list; empty entries are dropped.
fn split(text: &str, origin: &Origin) -> Vec<Node> {
    text.split(',')
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
        .map(|entry| Node {
            origin: origin.clone(),
            item: Item::Scalar {
                text: entry.to_owned(),
                style: Style::Variable,
            },
        })
        .collect()
}
