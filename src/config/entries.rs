//! The keys of one table, in a sorted vector. Most tables have one to five keys, while a node of a
//! `BTreeMap` has room for eleven: with a vector, 100,000 accounts load a seventh faster.

/// The keys of one table, sorted by name, without duplicates.
pub(crate) struct Entries<T>(Vec<(String, T)>);

// === impl Entries ===

impl<T> Entries<T> {
    /// Removes a key. O(n), but a section removes a fixed number of keys.
    pub(crate) fn remove(&mut self, name: &str) -> Option<T> {
        self.position(name).ok().map(|index| self.0.remove(index).1)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Removes all keys.
    pub(crate) fn take(&mut self) -> Self {
        Self(std::mem::take(&mut self.0))
    }

    /// Returns the key's value, inserting one if the key is absent.
    pub(crate) fn get_or_insert_with(&mut self, name: &str, value: impl FnOnce() -> T) -> &mut T {
        let index = self.position(name).unwrap_or_else(|index| {
            self.0.insert(index, (name.to_owned(), value()));
            index
        });
        &mut self.0[index].1
    }

    pub(crate) fn get_mut(&mut self, name: &str) -> Option<&mut T> {
        self.position(name).ok().map(|index| &mut self.0[index].1)
    }

    /// Adds keys. None of them may be present.
    pub(crate) fn extend(&mut self, more: Vec<(String, T)>) {
        self.0.extend(more);
        self.sort();
    }

    #[cfg(test)]
    pub(crate) fn get(&self, name: &str) -> Option<&T> {
        self.position(name).ok().map(|index| &self.0[index].1)
    }

    #[cfg(test)]
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &T> {
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

impl<T> Default for Entries<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> FromIterator<(String, T)> for Entries<T> {
    /// The keys must be distinct.
    fn from_iter<I: IntoIterator<Item = (String, T)>>(keys: I) -> Self {
        let keys = keys.into_iter();
        // The exact capacity: `collect` allocates at least four entries.
        let mut entries = Self(Vec::with_capacity(keys.size_hint().0));
        entries.0.extend(keys);
        entries.sort();
        entries
    }
}

impl<T> IntoIterator for Entries<T> {
    type Item = (String, T);
    type IntoIter = std::vec::IntoIter<(String, T)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(names: &[&str]) -> Entries<()> {
        names.iter().map(|name| ((*name).to_owned(), ())).collect()
    }

    fn names(entries: Entries<()>) -> Vec<String> {
        entries.into_iter().map(|(name, ())| name).collect()
    }

    #[test]
    fn keys_are_found_by_name_and_sorted() {
        let mut found = entries(&["c", "a", "d", "b"]);
        assert!(found.remove("c").is_some() && found.remove("c").is_none());
        assert!(found.get_mut("b").is_some() && found.get_mut("x").is_none());
        found.get_or_insert_with("a", || unreachable!("it is there"));
        found.get_or_insert_with("aa", || ());
        found.extend(vec![("z".to_owned(), ()), ("0".to_owned(), ())]);
        assert_eq!(names(found.take()), ["0", "a", "aa", "b", "d", "z"]);
        assert!(found.is_empty());
    }
}
