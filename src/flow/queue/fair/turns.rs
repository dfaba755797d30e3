//! Who is next among equals? Start-time fair queueing for one level: a name's calls bear tags that lie a stride apart,
//! and the smallest tag goes next. Used twice, for clients and for the tenants of each.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

use super::Place;

/// A moment in virtual time.
pub(super) type Tag = u64;

/// Between two calls of a client of weight 1; divisible by the usual weights, so that equal shares tie exactly.
pub(super) const STRIDE: Tag = 720_720;

/// Who is next among those that wait. Kept twice, on both levels.
#[derive(Clone)]
pub(super) struct Turns<N> {
    /// The tag being served.
    now: Tag,
    /// Tag of the next call and place of the call, of all that wait; and how many calls wait there.
    waiting: BTreeMap<(Tag, Place, N), usize>,
    /// The same by name.
    tags: HashMap<N, (Tag, Place)>,
    /// Tags of those that do not wait now and have been served ahead of `now`.
    ahead: HashMap<N, Tag>,
}

// === impl Turns ===

impl<N: Clone + Ord + Hash> Turns<N> {
    pub(super) fn new() -> Self {
        Self { now: 0, waiting: BTreeMap::new(), tags: HashMap::new(), ahead: HashMap::new() }
    }

    /// The tag that a call of this name gets if it comes next.
    pub(super) fn tag(&self, name: &N) -> Tag {
        let known = self.tags.get(name).map(|(tag, _)| *tag).or_else(|| self.ahead.get(name).copied());
        known.map_or(self.now, |tag| tag.max(self.now))
    }

    /// The first call of this name is now the one at this place, and so many wait; none: nothing of it waits.
    pub(super) fn set(&mut self, name: &N, first: Option<(Place, usize)>) {
        let tag = self.tag(name);
        if let Some((tag, place)) = self.tags.remove(name) {
            self.waiting.remove(&(tag, place, name.clone()));
        }
        match first {
            Some((place, calls)) => {
                self.ahead.remove(name);
                self.tags.insert(name.clone(), (tag, place));
                self.waiting.insert((tag, place, name.clone()), calls);
            }
            None if tag > self.now => drop(self.ahead.insert(name.clone(), tag)),
            None => drop(self.ahead.remove(name)),
        }
    }

    /// Whether it does not wait and has been served ahead of the others.
    pub(super) fn is_ahead(&self, name: &N) -> bool {
        self.ahead.contains_key(name)
    }

    /// Whose turn it is.
    pub(super) fn first(&self) -> Option<&N> {
        self.waiting.first_key_value().map(|((_, _, name), _)| name)
    }

    /// The first is served: its next call's tag lies a stride on. What is ahead of nobody any more is forgotten.
    pub(super) fn serve(&mut self, stride: Tag) {
        let Some(((tag, place, name), calls)) = self.waiting.pop_first() else { return };
        if tag > self.now {
            self.now = tag;
            self.ahead.retain(|_, ahead| *ahead > tag);
        }
        self.tags.insert(name.clone(), (tag + stride, place));
        self.waiting.insert((tag + stride, place, name), calls);
    }

    /// How many calls of others go before one with this tag that comes last: `stride` tells how far apart another's lie.
    pub(super) fn before(&self, name: &N, tag: Tag, stride: impl Fn(&N) -> Tag) -> usize {
        let earlier = self.waiting.iter().take_while(|((first, ..), _)| *first <= tag);
        let others = earlier.filter(|((_, _, other), _)| other != name);
        others.map(|((first, _, other), calls)| (*calls).min(fit(tag - first, stride(other)))).sum()
    }
}

/// How many calls `stride` apart, the first at once, have tags within this distance.
fn fit(distance: Tag, stride: Tag) -> usize {
    usize::try_from(distance / stride + 1).unwrap_or(usize::MAX)
}
