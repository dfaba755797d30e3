//! What does the environment say? `FLOWGATE_LISTEN__PROXY` is `listen.proxy`, `FLOWGATE_ACCOUNTS__0__ID` is
//! `accounts[0].id`: laid over what the file says. The environment is handed in once and never read where it is used;
//! a variable that is no key is left alone, because Kubernetes injects some of its own.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;

use zeroize::Zeroizing;

use super::entries::Entries;
use super::file::{Item, Node, Style};
use super::keys::{self, Key};
use super::mistakes::{Mistake, Origin};
use crate::acs::limits::DOCUMENTED;
use crate::primitives::secret::never_shown;

const PREFIX: &str = "FLOWGATE_";

/// Which file is read, and therefore no key; `cli.rs` reads it.
const FILE: &str = "FLOWGATE_CONFIG";

/// The variables as they were when Flowgate started. Some are secrets.
pub(crate) struct Environment {
    /// `None` is a value that is not UTF-8.
    variables: BTreeMap<String, Option<Zeroizing<String>>>,
    /// Variables that turned out to be a secret's place, and so are known.
    asked: RefCell<BTreeSet<String>>,
}

never_shown!(Environment);

/// A step on the way to a key. Indices are compared as numbers, so that the tenth entry follows the second.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Key(String),
    Index(usize),
}

// === impl Environment ===

impl Environment {
    pub(crate) fn new(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let utf8 = |(name, value): (OsString, OsString)| {
            Some((
                name.into_string().ok()?,
                value.into_string().ok().map(Zeroizing::new),
            ))
        };
        Self {
            variables: variables.into_iter().filter_map(utf8).collect(),
            asked: RefCell::default(),
        }
    }

    /// The variable's value, unless it is empty or not UTF-8.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.asked.borrow_mut().insert(name.to_owned());
        self.variables
            .get(name)?
            .as_deref()
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// Whether the variable is set to nothing.
    pub(crate) fn is_empty(&self, name: &str) -> bool {
        self.variables
            .get(name)
            .is_some_and(|value| value.as_ref().is_some_and(|value| value.is_empty()))
    }

    /// Lays every variable that is a key over the tree.
    pub(crate) fn lay_over(&self, root: &mut Node) -> Vec<Mistake> {
        let mut known: Vec<_> = self
            .named()
            .filter_map(|name| Some((steps(name)?, name)))
            .collect();
        known.sort();
        let mut mistakes = Vec::new();
        for (steps, name) in known {
            let set = match self.variables.get(name).and_then(Option::as_ref) {
                Some(value) => set(root, &steps, name, value),
                None => Err("expected UTF-8"),
            };
            if let Err(expectation) = set {
                let origin = Origin::Variable(name.to_owned());
                mistakes.push(Mistake {
                    origin,
                    key: path(&steps),
                    expectation: expectation.to_owned(),
                });
            }
        }
        mistakes
    }

    /// Variables that look as if they were meant for Flowgate and are nothing to it. Asked after all others.
    pub(crate) fn unknown(&self) -> Vec<&str> {
        let asked = self.asked.borrow();
        self.named()
            .filter(|name| steps(name).is_none() && !asked.contains(*name))
            .collect()
    }

    fn named(&self) -> impl Iterator<Item = &str> {
        self.variables
            .keys()
            .map(String::as_str)
            .filter(|name| name.starts_with(PREFIX) && *name != FILE)
    }
}

/// Where the variable leads, if it leads to a key.
fn steps(name: &str) -> Option<Vec<Step>> {
    let parts: Vec<_> = name.strip_prefix(PREFIX)?.split("__").collect();
    let mut steps = Vec::new();
    // The same way as it stands in the manual, where indices are `[]` and actions are `<Action>`.
    let mut manual = String::new();
    for (depth, part) in parts.iter().enumerate() {
        if depth > 0 && part.bytes().all(|b| b.is_ascii_digit()) && manual != "limits" {
            steps.push(Step::Index(part.parse().ok()?));
            manual.push_str("[]");
            continue;
        }
        let key = part.to_ascii_lowercase();
        let separator = if depth > 0 { "." } else { "" };
        if manual == "limits" && key != "preset" {
            steps.push(Step::Key(action(part)));
            manual.push_str(".<Action>");
        } else {
            manual = format!("{manual}{separator}{key}");
            steps.push(Step::Key(key));
        }
    }
    is_key(&manual).then_some(steps)
}

/// Variables are often written in capitals only, so a documented action is found in any case.
fn action(part: &str) -> String {
    let documented = DOCUMENTED
        .iter()
        .find(|(name, _)| part.eq_ignore_ascii_case(name));
    documented.map_or(part, |(name, _)| *name).to_owned()
}

/// Whether the manual has the key, an entry of it when it is a list, or a place in it when it is a secret.
fn is_key(manual: &str) -> bool {
    let of =
        |path: Option<&str>, kind: fn(&Key) -> bool| path.and_then(keys::find).is_some_and(kind);
    let secret = |place| of(manual.strip_suffix(place), Key::is_secret);
    keys::find(manual).is_some()
        || of(manual.strip_suffix("[]"), Key::is_list)
        || secret(".env")
        || secret(".file")
}

/// Sets one value, and makes the tables and lists on the way.
fn set(root: &mut Node, steps: &[Step], name: &str, value: &str) -> Result<(), &'static str> {
    let fresh = |item| Node {
        origin: Origin::Variable(name.to_owned()),
        item,
    };
    let mut node = root;
    for step in steps {
        node = match step {
            Step::Key(key) => {
                if !matches!(node.item, Item::Table(_)) {
                    *node = fresh(Item::Table(Entries::default()));
                }
                let Item::Table(entries) = &mut node.item else {
                    unreachable!("made a table above")
                };
                entries.get_or_insert_with(key, || fresh(Item::Table(Entries::default())))
            }
            Step::Index(index) => {
                if !matches!(node.item, Item::List(_)) {
                    *node = fresh(Item::List(Vec::new()));
                }
                let Item::List(nodes) = &mut node.item else {
                    unreachable!("made a list above")
                };
                if *index == nodes.len() {
                    nodes.push(fresh(Item::Table(Entries::default())));
                }
                nodes
                    .get_mut(*index)
                    .ok_or("expected the entries before this one too: they count from 0")?
            }
        };
    }
    *node = fresh(Item::Scalar {
        text: value.to_owned(),
        style: Style::Variable,
    });
    Ok(())
}

fn path(steps: &[Step]) -> String {
    let mut path = String::new();
    for step in steps {
        match step {
            Step::Index(index) => path.push_str(&format!("[{index}]")),
            Step::Key(key) if path.is_empty() => path.push_str(key),
            Step::Key(key) => path.push_str(&format!(".{key}")),
        }
    }
    path
}
