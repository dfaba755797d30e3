//! Selects the next name, by start-time fair queueing on one level: the calls of a name have tags
//! that are one stride apart, and the smallest tag is served next. Used on two levels: for clients,
//! and for the tenants of each client.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;

use super::Sequence;

/// A point in virtual time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag(u64);

/// A length of virtual time.
pub(super) type Stride = u64;

/// The stride of a client of weight 1. Divisible by the usual weights, so that equal shares tie
/// exactly.
pub(super) const STRIDE: Stride = 720_720;

/// The order of service among the names that wait.
#[derive(Clone)]
pub(super) struct TurnOrder<N> {
    /// The tag being served.
    now: Tag,
    /// The waiting names, by the tag and the sequence number of their first call; with their number
    /// of calls.
    waiting: BTreeMap<(Tag, Sequence, N), usize>,
    /// The names that do not wait and whose last call ended ahead of `now`. They are removed in
    /// this order.
    ahead: BTreeSet<(Tag, N)>,
    /// The tag of every name above; with the sequence number of its first call if it waits.
    tags: HashMap<N, (Tag, Option<Sequence>)>,
}

// === impl TurnOrder ===

impl<N: Clone + Ord + Hash> TurnOrder<N> {
    pub(super) fn new() -> Self {
        Self {
            now: Tag(0),
            waiting: BTreeMap::new(),
            ahead: BTreeSet::new(),
            tags: HashMap::new(),
        }
    }

    /// The tag of the next call of this name.
    pub(super) fn tag(&self, name: &N) -> Tag {
        self.tags
            .get(name)
            .map_or(self.now, |(tag, _)| self.now.max(*tag))
    }

    /// Updates a name: the sequence number of its first call and its number of calls; none if no
    /// call of it waits.
    pub(super) fn set(&mut self, name: &N, first: Option<(Sequence, usize)>) {
        let Some(known) = self.tags.get_mut(name) else {
            if let Some((sequence, calls)) = first {
                self.tags.insert(name.clone(), (self.now, Some(sequence)));
                self.waiting
                    .insert((self.now, sequence, name.clone()), calls);
            }
            return;
        };
        let before = *known;
        let tag = self.now.max(before.0);
        *known = (tag, first.map(|(sequence, _)| sequence));
        // The common case: one more call behind others, so the name's key stays the same.
        if let Some((sequence, calls)) = first.filter(|_| *known == before) {
            self.waiting.insert((tag, sequence, name.clone()), calls);
            return;
        }
        match before {
            (tag, Some(sequence)) => {
                self.waiting.remove(&(tag, sequence, name.clone()));
            }
            (tag, None) => {
                self.ahead.remove(&(tag, name.clone()));
            }
        }
        match first {
            Some((sequence, calls)) => {
                self.waiting.insert((tag, sequence, name.clone()), calls);
            }
            None if tag > self.now => {
                self.ahead.insert((tag, name.clone()));
            }
            None => {
                self.tags.remove(name);
            }
        }
    }

    /// Whether the name does not wait and its last call ended ahead of `now`.
    pub(super) fn is_ahead(&self, name: &N) -> bool {
        self.tags
            .get(name)
            .is_some_and(|(_, sequence)| sequence.is_none())
    }

    /// The name that is served next, and the sequence number of its first call.
    pub(super) fn first(&self) -> Option<(&N, Sequence)> {
        self.waiting
            .first_key_value()
            .map(|((_, sequence, name), _)| (name, *sequence))
    }

    /// Serves the first name: the tag of its next call is one stride later. Names that are no
    /// longer ahead are removed.
    pub(super) fn serve(&mut self, stride: Stride) {
        let Some(((tag, sequence, name), calls)) = self.waiting.pop_first() else {
            return;
        };
        self.now = self.now.max(tag);
        while self
            .ahead
            .first()
            .is_some_and(|(ahead, _)| *ahead <= self.now)
        {
            let (_, passed) = self.ahead.pop_first().expect("the set has a first element");
            self.tags.remove(&passed);
        }
        let next = tag.after(1, stride);
        self.tags.insert(name.clone(), (next, Some(sequence)));
        self.waiting.insert((next, sequence, name), calls);
    }

    /// How many calls of other names are served before a call with this tag and the highest
    /// sequence number. `stride` returns the stride of a name.
    pub(super) fn before(&self, name: &N, tag: Tag, stride: impl Fn(&N) -> Stride) -> usize {
        self.waiting
            .iter()
            .take_while(|((first, ..), _)| *first <= tag)
            .filter(|((_, _, other), _)| other != name)
            .map(|((first, _, other), calls)| (*calls).min(first.count_to(tag, stride(other))))
            .sum()
    }
}

// === impl Tag ===

impl Tag {
    /// The tag `calls` strides later.
    pub(super) fn after(self, calls: usize, stride: Stride) -> Self {
        Self(self.0 + stride * calls as Stride)
    }

    /// How many tags, the first one this and `stride` apart, are at most `last`.
    fn count_to(self, last: Self, stride: Stride) -> usize {
        usize::try_from((last.0 - self.0) / stride + 1).unwrap_or(usize::MAX)
    }
}

impl Ord for Tag {
    fn cmp(&self, other: &Self) -> Ordering {
        #[cfg(all(test, debug_assertions))]
        super::tests::compared();
        self.0.cmp(&other.0)
    }
}

impl PartialOrd for Tag {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
