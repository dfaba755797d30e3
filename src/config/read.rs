//! Reads the tree key by key: each key is removed by name, and what remains is unknown.
//!
//! A mistake is recorded and reading continues, so that all mistakes are reported at once. The
//! forms of single keys are in `read/field.rs`, rules between keys in `check.rs`.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use super::entries::Entries;
use super::env::Environment;
use super::file::{Item, Node};
use super::keys::{self, Key};
use super::mistakes::{FileId, FileNames, Mistake, Origin};
use super::stamps::{Stamps, stamp};

pub(crate) use field::{Field, MAX_TIME, POSITIVE};

mod field;

/// State shared by all sections: collected mistakes, and the environment that holds secrets.
pub(crate) struct Reader {
    pub(crate) environment: Environment,
    pub(crate) names: FileNames,
    /// The directory that relative paths in files start from.
    pub(crate) folder: PathBuf,
    pub(crate) mistakes: RefCell<Vec<Mistake>>,
    pub(crate) warnings: RefCell<Vec<String>>,
    /// Every file that was opened or looked for.
    pub(crate) files: RefCell<Stamps>,
}

/// The path and origin of a key.
#[derive(Clone)]
pub(crate) struct KeyLocation {
    pub(crate) path: String,
    pub(crate) origin: Origin,
}

/// A table whose keys are removed one after the other.
pub(crate) struct Section<'a> {
    pub(crate) reader: &'a Reader,
    pub(crate) place: KeyLocation,
    /// The table's path in the form of the manual.
    manual: String,
    nodes: Entries<Node>,
}

// === impl Reader ===

impl Reader {
    /// Records a mistake. The text describes what was expected, never what was written.
    pub(crate) fn mistake(&self, place: &KeyLocation, expectation: impl Into<String>) {
        let KeyLocation { path, origin } = place.clone();
        self.mistakes.borrow_mut().push(Mistake {
            origin,
            key: path,
            expectation: expectation.into(),
        });
    }

    /// Describes `place` for a mistake in `other`: its path, and its file if that differs.
    pub(crate) fn seen(&self, place: &KeyLocation, other: &KeyLocation) -> String {
        let path = &place.path;
        match self.names.show(&place.origin) {
            Some(shown) if place.file() != other.file() => format!("{path} ({shown})"),
            _ => path.clone(),
        }
    }

    /// Records the stamp of a file that the configuration depends on.
    pub(crate) fn watch(&self, path: &Path) {
        self.files
            .borrow_mut()
            .entry(path.to_owned())
            .or_insert_with(|| stamp(path));
    }

    /// Reads a flag of Alibaba's SDKs, for which only `true`, in any case, has an effect. Warns of
    /// other values than `false`.
    pub(crate) fn is_true(&self, name: &str) -> bool {
        let Some(text) = self.environment.get(name) else {
            return false;
        };
        let is_true = text.eq_ignore_ascii_case("true");
        if !is_true && !text.eq_ignore_ascii_case("false") {
            let warning =
                format!("{name}: has no effect, because only true has: expected true or false");
            let mut warnings = self.warnings.borrow_mut();
            if !warnings.contains(&warning) {
                warnings.push(warning);
            }
        }
        is_true
    }

    /// The number of mistakes so far.
    pub(crate) fn mistake_count(&self) -> usize {
        self.mistakes.borrow().len()
    }

    /// Records a warning, which does not invalidate the configuration.
    pub(crate) fn warn(&self, warning: impl Into<String>) {
        self.warnings.borrow_mut().push(warning.into());
    }
}

// === impl KeyLocation ===

impl KeyLocation {
    fn file(&self) -> Option<FileId> {
        match self.origin {
            Origin::File { file, .. } => Some(file),
            Origin::Variable(_) | Origin::Nowhere => None,
        }
    }
}

// === impl Section ===

impl<'a> Section<'a> {
    /// The section of the whole tree.
    pub(crate) fn root(reader: &'a Reader, root: Node) -> Self {
        let place = KeyLocation {
            path: String::new(),
            origin: root.origin,
        };
        let nodes = match root.item {
            Item::Table(nodes) => nodes,
            _ => Entries::default(),
        };
        Self {
            reader,
            place,
            manual: String::new(),
            nodes,
        }
    }

    /// A table of this path in which nothing is written, to read keys that variables set.
    pub(crate) fn unwritten(reader: &'a Reader, manual: &str) -> Self {
        Self {
            reader,
            place: KeyLocation {
                path: String::new(),
                origin: Origin::Nowhere,
            },
            manual: manual.to_owned(),
            nodes: Entries::default(),
        }
    }

    /// Whether the table has the keys of [`keys::FROM`].
    pub(crate) fn is_from(&self) -> bool {
        self.manual == keys::FROM
    }

    /// Removes a key, which must be in the manual.
    pub(crate) fn key(&mut self, name: &str) -> Field<'a> {
        let key =
            keys::find(&join(&self.manual, name)).expect("every key that is read is in the manual");
        let node = self.nodes.remove(name);
        self.field(name, key, node)
    }

    fn field(&self, name: &str, key: &'static Key, node: Option<Node>) -> Field<'a> {
        // A missing key is reported where its table begins.
        let origin = node
            .as_ref()
            .map_or(&self.place.origin, |node| &node.origin)
            .clone();
        let place = KeyLocation {
            path: join(&self.place.path, name),
            origin,
        };
        Field {
            reader: self.reader,
            key,
            place,
            item: node.map(|node| node.item),
            variable: None,
        }
    }

    /// Removes a table. A table that is not written is empty.
    pub(crate) fn table(&mut self, name: &str) -> Section<'a> {
        let manual = join(&self.manual, name);
        let mut place = KeyLocation {
            path: join(&self.place.path, name),
            origin: Origin::Nowhere,
        };
        let nodes = match self.nodes.remove(name) {
            None => Entries::default(),
            Some(Node { origin, item }) => {
                place.origin = origin;
                self.entries(&place, item).unwrap_or_default()
            }
        };
        Section {
            reader: self.reader,
            place,
            manual,
            nodes,
        }
    }

    /// Removes an array of tables.
    pub(crate) fn tables(&mut self, name: &str) -> Vec<Section<'a>> {
        let path = join(&self.place.path, name);
        let Some(Node { origin, item }) = self.nodes.remove(name) else {
            return Vec::new();
        };
        let Item::List(nodes) = item else {
            let expectation = format!("expected an array of tables: [[{name}]]");
            self.reader
                .mistake(&KeyLocation { path, origin }, expectation);
            return Vec::new();
        };
        let manual = format!("{}[]", join(&self.manual, name));
        let mut sections = Vec::with_capacity(nodes.len());
        for (index, node) in nodes.into_iter().enumerate() {
            let place = KeyLocation {
                path: format!("{path}[{index}]"),
                origin: node.origin,
            };
            if let Some(nodes) = self.entries(&place, node.item) {
                sections.push(Section {
                    reader: self.reader,
                    place,
                    manual: manual.clone(),
                    nodes,
                });
            }
        }
        sections
    }

    fn entries(&self, place: &KeyLocation, item: Item) -> Option<Entries<Node>> {
        let Item::Table(nodes) = item else {
            self.reader.mistake(place, "expected a table");
            return None;
        };
        Some(nodes)
    }

    /// Removes all remaining keys, whose names are free, as fields of one kind of key.
    pub(crate) fn rest(&mut self, manual: &str) -> Vec<(String, Field<'a>)> {
        let key = keys::find(manual).expect("every key that is read is in the manual");
        self.nodes
            .take()
            .into_iter()
            .map(|(name, node)| {
                let field = self.field(&name, key, Some(node));
                (name, field)
            })
            .collect()
    }

    /// Reports the remaining keys as unknown.
    pub(crate) fn done(self) {
        for (name, node) in self.nodes {
            let place = KeyLocation {
                path: join(&self.place.path, &name),
                origin: node.origin,
            };
            let known = keys::names(&self.manual).join(", ");
            self.reader
                .mistake(&place, format!("unknown key, expected one of {known}"));
        }
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}
