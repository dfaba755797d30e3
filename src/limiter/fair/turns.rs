//! Who is next among equals? Start-time fair queueing for one level: a name's calls bear tags that lie a stride apart,
//! and the smallest tag goes next. Used twice, for clients and for the tenants of each.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;

use super::Place;

/// A moment in virtual time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag(u64);

/// A span of virtual time.
pub(super) type Stride = u64;

/// Between two calls of a client of weight 1; divisible by the usual weights, so that equal shares tie exactly.
pub(super) const STRIDE: Stride = 720_720;

/// Who is next among those that wait. Kept twice, on both levels.
#[derive(Clone)]
pub(super) struct Turns<N> {
    /// The tag being served.
    now: Tag,
    /// Tag of the next call and place of the call, of all that wait; and how many calls wait there.
    waiting: BTreeMap<(Tag, Place, N), usize>,
    /// Those that do not wait now and have been served ahead of `now`, the first to be forgotten first.
    ahead: BTreeSet<(Tag, N)>,
    /// The same by name; the place is of those that wait.
    tags: HashMap<N, (Tag, Option<Place>)>,
}

// === impl Turns ===

impl<N: Clone + Ord + Hash> Turns<N> {
    pub(super) fn new() -> Self {
        Self {
            now: Tag(0),
            waiting: BTreeMap::new(),
            ahead: BTreeSet::new(),
            tags: HashMap::new(),
        }
    }

    /// The tag that a call of this name gets if it comes next.
    pub(super) fn tag(&self, name: &N) -> Tag {
        self.tags
            .get(name)
            .map_or(self.now, |(tag, _)| self.now.max(*tag))
    }

    /// The first call of this name is now the one at this place, and so many wait; none: nothing of it waits.
    pub(super) fn set(&mut self, name: &N, first: Option<(Place, usize)>) {
        let Some(known) = self.tags.get_mut(name) else {
            if let Some((place, calls)) = first {
                self.tags.insert(name.clone(), (self.now, Some(place)));
                self.waiting.insert((self.now, place, name.clone()), calls);
            }
            return;
        };
        let (before, tag) = (*known, self.now.max(known.0));
        *known = (tag, first.map(|(place, _)| place));
        // Mostly one more comes behind others, and its name stands where it stood.
        if let Some((place, calls)) = first.filter(|_| *known == before) {
            self.waiting.insert((tag, place, name.clone()), calls);
            return;
        }
        match before {
            (tag, Some(place)) => drop(self.waiting.remove(&(tag, place, name.clone()))),
            (tag, None) => drop(self.ahead.remove(&(tag, name.clone()))),
        }
        match first {
            Some((place, calls)) => drop(self.waiting.insert((tag, place, name.clone()), calls)),
            None if tag > self.now => drop(self.ahead.insert((tag, name.clone()))),
            None => drop(self.tags.remove(name)),
        }
    }

    /// Whether it does not wait and has been served ahead of the others.
    pub(super) fn is_ahead(&self, name: &N) -> bool {
        self.tags
            .get(name)
            .is_some_and(|(_, place)| place.is_none())
    }

    /// Whose turn it is, and where its first call stands.
    pub(super) fn first(&self) -> Option<(&N, Place)> {
        self.waiting
            .first_key_value()
            .map(|((_, place, name), _)| (name, *place))
    }

    /// The first is served: its next call's tag lies a stride on. What is ahead of nobody any more is forgotten.
    pub(super) fn serve(&mut self, stride: Stride) {
        let Some(((tag, place, name), calls)) = self.waiting.pop_first() else {
            return;
        };
        self.now = self.now.max(tag);
        while self
            .ahead
            .first()
            .is_some_and(|(ahead, _)| *ahead <= self.now)
        {
            let (_, passed) = self.ahead.pop_first().expect("the first was seen above");
            self.tags.remove(&passed);
        }
        let next = tag.after(1, stride);
        self.tags.insert(name.clone(), (next, Some(place)));
        self.waiting.insert((next, place, name), calls);
    }

    /// How many calls of others go before one with this tag that comes last: `stride` tells how far apart another's lie.
    pub(super) fn before(&self, name: &N, tag: Tag, stride: impl Fn(&N) -> Stride) -> usize {
        let earlier = self
            .waiting
            .iter()
            .take_while(|((first, ..), _)| *first <= tag);
        let others = earlier.filter(|((_, _, other), _)| other != name);
        others
            .map(|((first, _, other), calls)| (*calls).min(first.fit(tag, stride(other))))
            .sum()
    }
}

// === impl Tag ===

impl Tag {
    /// So many strides on.
    pub(super) fn after(self, calls: usize, stride: Stride) -> Self {
        Self(self.0 + stride * calls as Stride)
    }

    /// How many calls `stride` apart, the first at this tag, have tags up to `last`.
    fn fit(self, last: Self, stride: Stride) -> usize {
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
