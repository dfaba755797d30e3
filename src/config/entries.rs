//! The keys of one table, in a sorted vector. Most tables have one to five keys, and a node of a `BTreeMap` has room for eleven:
//! reading 100,000 accounts takes a seventh less time without them.

use super::file::Node;

/// The keys of one table, in order of name, each once.
#[derive(Default)]
pub(crate) struct Entries(Vec<(String, Node)>);

// === impl Entries ===

impl Entries {
    /// Takes a key out. A section takes a fixed number of them, however many there are.
    pub(crate) fn remove(&mut self, name: &str) -> Option<Node> {
        self.position(name).ok().map(|index| self.0.remove(index).1)
    }

    /// Whether no key is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes all keys out.
    pub(crate) fn take(&mut self) -> Self {
        Self(std::mem::take(&mut self.0))
    }

    /// The key, which is made if there is none.
    pub(crate) fn get_or_insert_with(
        &mut self,
        name: &str,
        node: impl FnOnce() -> Node,
    ) -> &mut Node {
        let index = self.position(name).unwrap_or_else(|index| {
            self.0.insert(index, (name.to_owned(), node()));
            index
        });
        &mut self.0[index].1
    }

    /// The key, if there is one.
    pub(crate) fn get_mut(&mut self, name: &str) -> Option<&mut Node> {
        self.position(name).ok().map(|index| &mut self.0[index].1)
    }

    /// Adds keys that are not there yet.
    pub(crate) fn extend(&mut self, more: Vec<(String, Node)>) {
        self.0.extend(more);
        self.sort();
    }

    #[cfg(test)]
    pub(crate) fn get(&self, name: &str) -> Option<&Node> {
        self.position(name).ok().map(|index| &self.0[index].1)
    }

    #[cfg(test)]
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.0.iter().map(|(_, node)| node)
    }

    fn position(&self, name: &str) -> Result<usize, usize> {
        self.0
            .binary_search_by(|(other, _)| other.as_str().cmp(name))
    }

    /// Two sorted runs are merged in one pass.
    fn sort(&mut self) {
        self.0.sort_by(|(a, _), (b, _)| a.cmp(b));
    }
}

impl FromIterator<(String, Node)> for Entries {
    /// Of keys that differ.
    fn from_iter<I: IntoIterator<Item = (String, Node)>>(keys: I) -> Self {
        let keys = keys.into_iter();
        // Room for them and no more: `collect` makes room for four.
        let mut entries = Self(Vec::with_capacity(keys.size_hint().0));
        entries.0.extend(keys);
        entries.sort();
        entries
    }
}

impl IntoIterator for Entries {
    type Item = (String, Node);
    type IntoIter = std::vec::IntoIter<(String, Node)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::super::file::{Item, Style};
    use super::super::mistakes::Origin;
    use super::*;

    fn node(text: &str) -> Node {
        Node {
            origin: Origin::Nowhere,
            item: Item::Scalar {
                text: text.to_owned(),
                style: Style::Bare,
            },
        }
    }

    fn entries(names: &[&str]) -> Entries {
        names
            .iter()
            .map(|name| ((*name).to_owned(), node(name)))
            .collect()
    }

    fn names(entries: Entries) -> Vec<String> {
        entries.into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn keys_are_found_by_name_and_stand_in_order() {
        let mut found = entries(&["c", "a", "d", "b"]);
        assert!(found.remove("c").is_some() && found.remove("c").is_none());
        assert!(found.get_mut("b").is_some() && found.get_mut("x").is_none());
        found.get_or_insert_with("a", || unreachable!("it is there"));
        found.get_or_insert_with("aa", || node("aa"));
        found.extend(vec![
            ("z".to_owned(), node("z")),
            ("0".to_owned(), node("0")),
        ]);
        assert_eq!(names(found.take()), ["0", "a", "aa", "b", "d", "z"]);
        assert!(found.is_empty());
    }
}
