//! Merges several files. Entries of `[[accounts]]` and `[[clients]]` are concatenated and tables
//! are merged. Any other key that is set in two files is a mistake that names both places.

use super::entries::Entries;
use super::file::{Item, Node};
use super::keys::{self, Kind};
use super::mistakes::{FileNames, Mistake, Origin};

/// The files merged so far.
pub(super) struct Merge<'a> {
    names: &'a FileNames,
    root: Entries<Node>,
    mistakes: Vec<Mistake>,
}

// === impl Merge ===

impl<'a> Merge<'a> {
    pub(super) fn new(names: &'a FileNames) -> Self {
        Self {
            names,
            root: Entries::default(),
            mistakes: Vec::new(),
        }
    }

    /// Adds the next file.
    pub(super) fn add(&mut self, file: Node) {
        let Item::Table(entries) = file.item else {
            unreachable!("a TOML document is a table")
        };
        let mut root = std::mem::take(&mut self.root);
        self.tables(&mut root, entries, "", "");
        self.root = root;
    }

    /// Returns the merged tree and the keys that are set in more than one file.
    pub(super) fn done(self) -> (Node, Vec<Mistake>) {
        (
            Node {
                origin: Origin::Nowhere,
                item: Item::Table(self.root),
            },
            self.mistakes,
        )
    }

    /// `path` is the table's path, `manual` the same path in the form of the table of keys.
    fn tables(&mut self, into: &mut Entries<Node>, from: Entries<Node>, path: &str, manual: &str) {
        let mut fresh = Vec::new();
        for (name, node) in from {
            match into.get_mut(&name) {
                None => fresh.push((name, node)),
                Some(first) => {
                    let path = join(path, &name);
                    let manual = join(manual, keys::in_manual(manual, &name));
                    self.key(first, node, &path, &manual);
                }
            }
        }
        into.extend(fresh);
    }

    fn key(&mut self, into: &mut Node, from: Node, path: &str, manual: &str) {
        let is_table = keys::find(manual).is_none_or(|key| key.kind == Kind::Table);
        match (&mut into.item, from.item) {
            (Item::List(all), Item::List(more)) if keys::is_array(manual) => all.extend(more),
            (Item::Table(all), Item::Table(more)) if is_table => {
                self.tables(all, more, path, manual)
            }
            _ => {
                let first = self.names.show(&into.origin).unwrap_or_default();
                let expectation = format!("already set in {first}: expected in one file only");
                self.mistakes.push(Mistake {
                    origin: from.origin,
                    key: path.to_owned(),
                    expectation,
                });
            }
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
