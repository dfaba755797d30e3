//! How is a tree read? Key by key: each is taken out by its name, and what is left over is unknown. Every mistake is
//! noted and reading goes on, so that all of them are reported at once. What one key may say is `read/field.rs`, what
//! all of them may say together `check.rs`.

use std::cell::RefCell;
use std::path::PathBuf;

use super::entries::Entries;
use super::env::Environment;
use super::file::{Item, Node};
use super::keys::{self, Key};
use super::mistakes::{FileNames, Mistake, Origin};
use super::stamps::Stamps;

pub(crate) use field::{Field, MAX_TIME, POSITIVE};

mod field;

/// What all sections share: whom to tell about mistakes, and where secrets come from.
pub(crate) struct Reader {
    pub(crate) environment: Environment,
    pub(crate) names: FileNames,
    /// Where the files' relative paths start.
    pub(crate) folder: PathBuf,
    pub(crate) mistakes: RefCell<Vec<Mistake>>,
    pub(crate) warnings: RefCell<Vec<String>>,
    /// What was opened, or looked for.
    pub(crate) files: RefCell<Stamps>,
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
    nodes: Entries,
}

// === impl Reader ===

impl Reader {
    /// Notes a mistake; the text says what was expected and never what was written.
    pub(crate) fn mistake(&self, place: &Place, expectation: impl Into<String>) {
        let Place { path, origin } = place.clone();
        self.mistakes.borrow_mut().push(Mistake {
            origin,
            key: path,
            expectation: expectation.into(),
        });
    }

    /// Where something stands, for a mistake in `other`: by its path, and by its file where that is another one.
    pub(crate) fn seen(&self, place: &Place, other: &Place) -> String {
        let file = |place: &Place| match place.origin {
            Origin::File { file, .. } => Some(file),
            Origin::Variable(_) | Origin::Nowhere => None,
        };
        let path = &place.path;
        match self.names.show(&place.origin) {
            Some(shown) if file(place) != file(other) => format!("{path} ({shown})"),
            _ => path.clone(),
        }
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
        let place = Place {
            path: String::new(),
            origin: root.origin,
        };
        let nodes = if let Item::Table(nodes) = root.item {
            nodes
        } else {
            Entries::default()
        };
        Self {
            reader,
            place,
            manual: String::new(),
            nodes,
        }
    }

    /// Takes a key out. It must stand in the manual.
    pub(crate) fn key(&mut self, name: &str) -> Field<'a> {
        let key = keys::find(&join(&self.manual, name))
            .expect("every key that is read stands in the manual");
        self.take(name, key)
    }

    fn take(&mut self, name: &str, key: &'static Key) -> Field<'a> {
        let node = self.nodes.remove(name);
        self.field(name, key, node)
    }

    fn field(&self, name: &str, key: &'static Key, node: Option<Node>) -> Field<'a> {
        // A key that is missing is missing where its table begins.
        let origin = node
            .as_ref()
            .map_or(&self.place.origin, |node| &node.origin)
            .clone();
        let place = Place {
            path: join(&self.place.path, name),
            origin,
        };
        Field {
            reader: self.reader,
            key,
            place,
            item: node.map(|node| node.item),
        }
    }

    /// Takes a table out; one that was not written is empty.
    pub(crate) fn table(&mut self, name: &str) -> Section<'a> {
        let manual = join(&self.manual, name);
        let mut place = Place {
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

    /// Takes an array of tables out.
    pub(crate) fn tables(&mut self, name: &str) -> Vec<Section<'a>> {
        let path = join(&self.place.path, name);
        let nodes = match self.nodes.remove(name) {
            None => Vec::new(),
            Some(Node {
                item: Item::List(nodes),
                ..
            }) => nodes,
            Some(Node { origin, .. }) => {
                self.reader.mistake(
                    &Place { path, origin },
                    format!("expected [[{name}]] tables"),
                );
                return Vec::new();
            }
        };
        let manual = format!("{}[]", join(&self.manual, name));
        let section = |(index, node): (usize, Node)| {
            let place = Place {
                path: format!("{path}[{index}]"),
                origin: node.origin,
            };
            let nodes = self.entries(&place, node.item)?;
            Some(Section {
                reader: self.reader,
                place,
                manual: manual.clone(),
                nodes,
            })
        };
        nodes.into_iter().enumerate().filter_map(section).collect()
    }

    fn entries(&self, place: &Place, item: Item) -> Option<Entries> {
        let Item::Table(nodes) = item else {
            self.reader.mistake(place, "expected a table");
            return None;
        };
        Some(nodes)
    }

    /// Takes everything that is left, under names that are free, as one kind of key.
    pub(crate) fn rest(&mut self, manual: &str) -> Vec<(String, Field<'a>)> {
        let key = keys::find(manual).expect("every key that is read stands in the manual");
        let rest = self.nodes.take().into_iter();
        rest.map(|(name, node)| {
            let field = self.field(&name, key, Some(node));
            (name, field)
        })
        .collect()
    }

    /// Whatever was not taken out is unknown.
    pub(crate) fn done(self) {
        for (name, node) in self.nodes {
            let place = Place {
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
