//! Applies environment variables over the file: `FLOWGATE_LISTEN__PROXY` sets `listen.proxy`,
//! `FLOWGATE_ACCOUNTS__0__ID` sets `accounts[0].id`, and `{}` is an empty table.
//!
//! The environment is passed in once. A variable that matches no key is ignored with a warning,
//! because Kubernetes injects some with the same prefix.

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

/// The first characters of the variables that set keys.
pub(super) const PREFIX: &str = "FLOWGATE_";

/// The value of a variable that sets a table without keys.
const EMPTY_TABLE: &str = "{}";

/// The path of the configuration, which is not a key. Read in `cli.rs`.
pub(super) const FILE: &str = "FLOWGATE_CONFIG";

/// The environment variables. Some are secrets.
pub(crate) struct Environment {
    /// `None`: the value is not UTF-8.
    variables: BTreeMap<String, Option<Zeroizing<String>>>,
    /// Variables that were read by name, such as secrets, and are therefore known.
    asked: RefCell<BTreeSet<String>>,
}

never_shown!(Environment);

/// One step of a key's path. Indices compare as numbers, so that entry 10 follows entry 2.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Key(String),
    Index(usize),
}

// === impl Environment ===

impl Environment {
    pub(crate) fn new(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let variables = variables
            .into_iter()
            .filter_map(|(name, value)| {
                let name = name.into_string().ok()?;
                let value = value.into_string().ok().map(Zeroizing::new);
                Some((name, value))
            })
            .collect();
        Self {
            variables,
            asked: RefCell::default(),
        }
    }

    /// Returns the variable's value, unless it is empty or not UTF-8.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.asked.borrow_mut().insert(name.to_owned());
        self.value(name)
    }

    /// Whether the variable is set to the empty text.
    pub(crate) fn is_empty(&self, name: &str) -> bool {
        self.variables
            .get(name)
            .is_some_and(|value| value.as_ref().is_some_and(|value| value.is_empty()))
    }

    /// Applies every variable that matches a key to the tree.
    pub(crate) fn lay_over(&self, root: &mut Node) -> Vec<Mistake> {
        let mut known: Vec<_> = self
            .named()
            .filter_map(|name| Some((steps(name)?, name)))
            .collect();
        known.sort();
        let mut mistakes = Vec::new();
        for (steps, name) in known {
            if self.is_empty(name) && !takes_empty(&steps) {
                continue;
            }
            let set = match self.variables.get(name).and_then(Option::as_ref) {
                Some(value) => set(root, &steps, name, value),
                None => Err("expected a value in UTF-8"),
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

    /// Returns the variables that match a key and are empty: they are as unset, unless
    /// the empty text is a value.
    pub(crate) fn ignored(&self) -> Vec<&str> {
        self.named()
            .filter(|name| self.is_empty(name))
            .filter(|name| steps(name).is_some_and(|steps| !takes_empty(&steps)))
            .collect()
    }

    /// Returns the variables with Flowgate's prefix, in any case, that match no key. Call it last,
    /// when all variables that hold secrets have been read.
    pub(super) fn unknown(&self) -> Vec<&str> {
        let asked = self.asked.borrow();
        self.names()
            .filter(|name| {
                let start = name.get(..PREFIX.len());
                start.is_some_and(|start| start.eq_ignore_ascii_case(PREFIX))
            })
            .filter(|name| *name != FILE && steps(name).is_none() && !asked.contains(*name))
            .collect()
    }

    /// Returns the names of all variables.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.variables.keys().map(String::as_str)
    }

    /// Returns the variable's value as [`get`](Self::get) does, without using it.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        let value = self.variables.get(name)?.as_deref()?;
        Some(value.as_str()).filter(|value| !value.is_empty())
    }

    /// Whether the variable's value has been used.
    pub(super) fn was_asked(&self, name: &str) -> bool {
        self.asked.borrow().contains(name)
    }

    fn named(&self) -> impl Iterator<Item = &str> {
        self.names()
            .filter(|name| name.starts_with(PREFIX) && *name != FILE)
    }
}

/// Returns the path of the key that the variable sets, if it matches one.
fn steps(name: &str) -> Option<Vec<Step>> {
    let parts = name.strip_prefix(PREFIX)?.split("__");
    let mut steps = Vec::new();
    // The same path in the form of the manual, where indices are `[]` and actions `<Action>`.
    let mut manual = String::new();
    for (depth, part) in parts.enumerate() {
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

/// Variables are usually in capitals, so a documented action is matched in any case.
fn action(part: &str) -> String {
    let documented = DOCUMENTED
        .iter()
        .find(|(name, _)| part.eq_ignore_ascii_case(name));
    documented.map_or(part, |(name, _)| *name).to_owned()
}

/// Whether the path is a key, an entry of a list, or the `env` or `file` of a secret.
fn is_key(manual: &str) -> bool {
    if keys::find(manual).is_some() {
        return true;
    }
    let list = manual.strip_suffix("[]").and_then(keys::find);
    if list.is_some_and(Key::is_list) {
        return true;
    }
    let secret = manual
        .strip_suffix(".env")
        .or_else(|| manual.strip_suffix(".file"))
        .and_then(keys::find);
    secret.is_some_and(Key::is_secret)
}

/// Whether the empty text is a value of this path, valid or not: a list may be empty, and what
/// protects a listener must not vanish with an unset shell variable.
fn takes_empty(steps: &[Step]) -> bool {
    let manual = manual(steps);
    keys::find(&manual).is_some_and(Key::is_list)
        || ["listen.tls.", "listen.admin_token"]
            .iter()
            .any(|protects| manual.starts_with(protects))
}

/// The path in the form of the manual.
fn manual(steps: &[Step]) -> String {
    let mut manual = String::new();
    for step in steps {
        match step {
            Step::Index(_) => manual.push_str("[]"),
            Step::Key(key) if manual.is_empty() => manual.push_str(key),
            Step::Key(key) => manual.push_str(&format!(".{key}")),
        }
    }
    manual
}

/// Sets one value, creating the tables and lists on its path.
fn set(root: &mut Node, steps: &[Step], name: &str, value: &str) -> Result<(), &'static str> {
    let mut node = root;
    for step in steps {
        node = match step {
            Step::Key(key) => {
                if !matches!(node.item, Item::Table(_)) {
                    *node = empty_table(name);
                }
                let Item::Table(entries) = &mut node.item else {
                    unreachable!("made a table above")
                };
                entries.get_or_insert_with(key, || empty_table(name))
            }
            Step::Index(index) => {
                if !matches!(node.item, Item::List(_)) {
                    *node = from_variable(name, Item::List(Vec::new()));
                }
                let Item::List(nodes) = &mut node.item else {
                    unreachable!("made a list above")
                };
                if *index == nodes.len() {
                    nodes.push(empty_table(name));
                }
                nodes.get_mut(*index).ok_or(
                    "expected the entries before this one to be set too: indices start at 0",
                )?
            }
        };
    }
    *node = if value.trim() == EMPTY_TABLE && keys::is_table(&manual(steps)) {
        empty_table(name)
    } else {
        let item = Item::Scalar {
            text: value.to_owned(),
            style: Style::Variable,
        };
        from_variable(name, item)
    };
    Ok(())
}

fn from_variable(name: &str, item: Item) -> Node {
    Node {
        origin: Origin::Variable(name.to_owned()),
        item,
    }
}

fn empty_table(name: &str) -> Node {
    from_variable(name, Item::Table(Entries::default()))
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
