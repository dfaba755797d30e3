//! The keys of one table, in a sorted vector. Most tables have one to five keys, while a node of a
//! `BTreeMap` has room for eleven: with a vector, 100,000 accounts load a seventh faster.

use super::file::Node;

/// The keys of one table, sorted by name, without duplicates.
#[derive(Default)]
pub(crate) struct Entries(Vec<(String, Node)>);

// === impl Entries ===

impl Entries {
    /// Removes a key. O(n), but a section removes a fixed number of keys.
    pub(crate) fn remove(&mut self, name: &str) -> Option<Node> {
        self.position(name).ok().map(|index| self.0.remove(index).1)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Removes all keys.
    pub(crate) fn take(&mut self) -> Self {
        Self(std::mem::take(&mut self.0))
    }

    /// Returns the key's node, inserting one if the key is absent.
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

    pub(crate) fn get_mut(&mut self, name: &str) -> Option<&mut Node> {
        self.position(name).ok().map(|index| &mut self.0[index].1)
    }

    /// Adds keys. None of them may be present.
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

    /// The stable sort merges two sorted runs in one pass.
    fn sort(&mut self) {
        self.0.sort_by(|(a, _), (b, _)| a.cmp(b));
    }
}

impl FromIterator<(String, Node)> for Entries {
    /// The keys must be distinct.
    fn from_iter<I: IntoIterator<Item = (String, Node)>>(keys: I) -> Self {
        let keys = keys.into_iter();
        // The exact capacity: `collect` allocates at least four entries.
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
    fn keys_are_found_by_name_and_sorted() {
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
