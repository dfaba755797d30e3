//! How is a tree read? Key by key: each is taken out by its name, asked for one form, and what is left over is unknown.
//! Every mistake is noted and reading goes on, so that all of them are reported at once. What values may be together
//! is `check.rs`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::env::Environment;
use super::file::{Item, Node, Style};
use super::keys::{self, Key};
use super::mistakes::{Mistake, Origin};
use super::units::{Size, Time};

/// What all sections share: whom to tell about mistakes, and where secrets come from.
pub(crate) struct Reader {
    pub(crate) environment: Environment,
    /// Where the file's relative paths start.
    pub(crate) folder: PathBuf,
    pub(crate) mistakes: RefCell<Vec<Mistake>>,
    pub(crate) warnings: RefCell<Vec<String>>,
}

/// A key's path and origin.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) path: String,
    pub(crate) origin: Origin,
}

/// A table whose keys are taken out one after the other.
pub(crate) struct Section<'a> {
    pub(crate) reader: &'a Reader,
    pub(crate) place: Place,
    /// Its path in the manual.
    manual: String,
    nodes: BTreeMap<String, Node>,
}

/// One key, written or not.
pub(crate) struct Field<'a> {
    pub(crate) reader: &'a Reader,
    pub(crate) key: &'static Key,
    pub(crate) place: Place,
    pub(crate) item: Option<Item>,
}

/// The most that any duration may be: more is a slip, and far more would overflow the clock.
pub(crate) const MAX_TIME: Duration = Duration::from_secs(24 * 3600);

/// A duration of which zero makes no sense.
pub(crate) const POSITIVE: RangeInclusive<Duration> = Duration::from_millis(1)..=MAX_TIME;

// === impl Reader ===

impl Reader {
    /// Notes a mistake; the text says what was expected and never what was written.
    pub(crate) fn mistake(&self, place: &Place, expectation: impl Into<String>) {
        let Place { path, origin } = place.clone();
        self.mistakes.borrow_mut().push(Mistake { origin, key: path, expectation: expectation.into() });
    }

    /// Notes something that is no mistake.
    pub(crate) fn warn(&self, warning: impl Into<String>) {
        self.warnings.borrow_mut().push(warning.into());
    }
}

// === impl Section ===

impl<'a> Section<'a> {
    /// The whole tree.
    pub(crate) fn root(reader: &'a Reader, root: Node) -> Self {
        let place = Place { path: String::new(), origin: root.origin };
        let nodes = if let Item::Table(nodes) = root.item { nodes } else { BTreeMap::new() };
        Self { reader, place, manual: String::new(), nodes }
    }

    /// Takes a key out. It must stand in the manual.
    pub(crate) fn key(&mut self, name: &str) -> Field<'a> {
        let key = keys::find(&join(&self.manual, name)).expect("every key that is read stands in the manual");
        self.take(name, key)
    }

    fn take(&mut self, name: &str, key: &'static Key) -> Field<'a> {
        let node = self.nodes.remove(name);
        // A key that is missing is missing where its table begins.
        let origin = node.as_ref().map_or(&self.place.origin, |node| &node.origin).clone();
        let place = Place { path: join(&self.place.path, name), origin };
        Field { reader: self.reader, key, place, item: node.map(|node| node.item) }
    }

    /// Takes a table out; one that was not written is empty.
    pub(crate) fn table(&mut self, name: &str) -> Section<'a> {
        let manual = join(&self.manual, name);
        let mut place = Place { path: join(&self.place.path, name), origin: Origin::Nowhere };
        let nodes = match self.nodes.remove(name) {
            None => BTreeMap::new(),
            Some(Node { origin, item }) => {
                place.origin = origin;
                self.entries(&place, item).unwrap_or_default()
            }
        };
        Section { reader: self.reader, place, manual, nodes }
    }

    /// Takes an array of tables out.
    pub(crate) fn tables(&mut self, name: &str) -> Vec<Section<'a>> {
        let path = join(&self.place.path, name);
        let nodes = match self.nodes.remove(name) {
            None => Vec::new(),
            Some(Node { item: Item::List(nodes), .. }) => nodes,
            Some(Node { origin, .. }) => {
                self.reader.mistake(&Place { path, origin }, format!("expected [[{name}]] tables"));
                return Vec::new();
            }
        };
        let manual = format!("{}[]", join(&self.manual, name));
        let section = |(index, node): (usize, Node)| {
            let place = Place { path: format!("{path}[{index}]"), origin: node.origin };
            let nodes = self.entries(&place, node.item)?;
            Some(Section { reader: self.reader, place, manual: manual.clone(), nodes })
        };
        nodes.into_iter().enumerate().filter_map(section).collect()
    }

    fn entries(&self, place: &Place, item: Item) -> Option<BTreeMap<String, Node>> {
        let Item::Table(nodes) = item else {
            self.reader.mistake(place, "expected a table");
            return None;
        };
        Some(nodes)
    }

    /// Takes everything that is left, under names that are free, as one kind of key.
    pub(crate) fn rest(&mut self, manual: &str) -> Vec<(String, Field<'a>)> {
        let key = keys::find(manual).expect("every key that is read stands in the manual");
        let names: Vec<_> = self.nodes.keys().cloned().collect();
        names.into_iter().map(|name| (name.clone(), self.take(&name, key))).collect()
    }

    /// A key whose effect comes later: its default is accepted, everything else is refused by name.
    pub(crate) fn later(&mut self, name: &str) {
        let field = self.key(name);
        match (&field.item, field.key.default) {
            (None, _) => {}
            (Some(Item::Scalar { text, .. }), Some(default)) if text == default => {}
            (Some(_), Some(default)) => field.mistake(format!("not available yet, expected {default}")),
            (Some(_), None) => field.mistake("not available yet"),
        }
    }

    /// Whatever was not taken out is unknown.
    pub(crate) fn done(self) {
        for (name, node) in self.nodes {
            let place = Place { path: join(&self.place.path, &name), origin: node.origin };
            let known = keys::names(&self.manual).join(", ");
            self.reader.mistake(&place, format!("unknown key, expected one of {known}"));
        }
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

// === impl Field ===

impl<'a> Field<'a> {
    /// Notes a mistake in this key.
    pub(crate) fn mistake(&self, expectation: impl Into<String>) {
        self.reader.mistake(&self.place, expectation);
    }

    /// Whether the key was written at all.
    pub(crate) fn is_given(&self) -> bool {
        self.item.is_some()
    }

    /// Whether exactly this word was written.
    pub(crate) fn says(&self, word: &str) -> bool {
        matches!(&self.item, Some(Item::Scalar { text, style: Style::Quoted | Style::Variable }) if text == word)
    }

    /// Reads a key that may be left out and has no default. The outer `None` is a mistake.
    pub(crate) fn optional<T>(&self, read: impl FnOnce(&Self) -> Option<T>) -> Option<Option<T>> {
        if self.is_given() { read(self).map(Some) } else { Some(None) }
    }

    /// Reads text of some form.
    pub(crate) fn text<T>(&self, expected: &str, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let value = match (&self.item, self.key.default) {
            (Some(Item::Scalar { text, style: Style::Quoted | Style::Variable }), _) => parse(text),
            (Some(_), _) => None,
            (None, Some(default)) => return Some(parse(default).expect("the manual's defaults are well-formed")),
            (None, None) => {
                self.mistake(format!("missing, expected {expected}"));
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
        let quoted: Vec<_> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        let find = |text: &str| words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        self.text(&quoted.join(" or "), find)
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

    fn within<T: Copy + PartialOrd, S: fmt::Display>(
        &self,
        value: T,
        range: &RangeInclusive<T>,
        show: fn(T) -> S,
    ) -> Option<T> {
        if range.contains(&value) {
            return Some(value);
        }
        self.mistake(format!("expected {} to {}", show(*range.start()), show(*range.end())));
        None
    }

    /// Reads a whole number.
    pub(crate) fn count(&self, range: &RangeInclusive<u32>) -> Option<u32> {
        let value = self.bare().and_then(|text| text.parse().ok()).filter(|count| range.contains(count));
        if value.is_none() {
            self.mistake(format!("expected a whole number from {} to {}", range.start(), range.end()));
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
            Some(Item::Scalar { text, style: Style::Bare | Style::Variable }) => Some(text),
            Some(_) => None,
        }
    }

    /// Reads a list, each entry as a key of its own. In the environment it may be written with commas.
    pub(crate) fn list<T>(self, mut read: impl FnMut(&Field<'a>) -> Option<T>) -> Option<Vec<T>> {
        let Self { reader, key, place, item } = self;
        let nodes = match item {
            None if key.default.is_some() => Vec::new(),
            Some(Item::List(nodes)) => nodes,
            Some(Item::Scalar { text, style: Style::Variable }) => split(&text, &place.origin),
            found => {
                let missing = if found.is_none() { "missing, " } else { "" };
                reader.mistake(&place, format!("{missing}expected a list"));
                return None;
            }
        };
        let field = |(index, node): (usize, Node)| Field {
            reader,
            key,
            place: Place { path: format!("{}[{index}]", place.path), origin: node.origin },
            item: Some(node.item),
        };
        // Every entry is read before the first wrong one makes the whole wrong.
        let read: Vec<_> = nodes.into_iter().enumerate().map(field).map(|entry| read(&entry)).collect();
        read.into_iter().collect()
    }

    /// The key as a table, or as it was when it is none.
    pub(crate) fn into_table(self) -> Result<Section<'a>, Self> {
        match self.item {
            Some(Item::Table(nodes)) => {
                Ok(Section { reader: self.reader, place: self.place, manual: self.key.path.to_owned(), nodes })
            }
            item => Err(Self { item, ..self }),
        }
    }

    /// Where a path that was written here leads: from the file's folder, or, in a variable, from the current one.
    pub(crate) fn resolve(&self, path: &Path) -> PathBuf {
        match self.place.origin {
            Origin::Line(_) => self.reader.folder.join(path),
            Origin::Variable(_) | Origin::Nowhere => path.to_owned(),
        }
    }
}

fn split(text: &str, origin: &Origin) -> Vec<Node> {
    let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    let item = |entry: &str| Item::Scalar { text: entry.to_owned(), style: Style::Variable };
    entries.map(|entry| Node { origin: origin.clone(), item: item(entry) }).collect()
}
