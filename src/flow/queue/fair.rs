//! Whose turn is it? First come, first served, by first arrival: a call that comes back after a throttle refusal stands
//! where it stood. Only decides; it is told of arrivals and departures by the lane.
//!
//! Client and tenant are kept beside each call, for the bound per client, for the operators' view, and so that shares
//! by client and tenant can take the place of plain order without anybody else noticing.

use std::collections::{BTreeMap, HashMap};

use tokio::time::Instant;

use crate::id::{ClientId, TenantId};

/// A place in the order of first arrivals; lower is earlier. Given once per call and kept through its retries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place(pub(crate) u64);

/// Who stands in line, and since when.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    pub(crate) place: Place,
    pub(crate) client: ClientId,
    pub(crate) tenant: TenantId,
    pub(crate) arrived: Instant,
}

/// The waiting calls of one lane, in the order in which they will be served.
pub(crate) struct Line<W> {
    waiting: BTreeMap<Place, (Standing, W)>,
    per_client: HashMap<ClientId, usize>,
}

// === impl Line ===

impl<W> Line<W> {
    pub(crate) fn new() -> Self {
        Self { waiting: BTreeMap::new(), per_client: HashMap::new() }
    }

    /// One more waits. A place is in line at most once.
    pub(crate) fn push(&mut self, standing: Standing, waiter: W) {
        *self.per_client.entry(standing.client.clone()).or_default() += 1;
        let before = self.waiting.insert(standing.place, (standing, waiter));
        debug_assert!(before.is_none(), "a place is in line at most once");
    }

    /// Takes out whose turn it is.
    pub(crate) fn pop(&mut self) -> Option<W> {
        let (_, (standing, waiter)) = self.waiting.pop_first()?;
        self.left(&standing.client);
        Some(waiter)
    }

    /// Takes one out wherever it stands: it hung up, or its time is over.
    pub(crate) fn remove(&mut self, place: Place) -> Option<W> {
        let (standing, waiter) = self.waiting.remove(&place)?;
        self.left(&standing.client);
        Some(waiter)
    }

    /// Takes out those whom `stays` does not let stay. It is asked in order, and told how many that stay are before.
    pub(crate) fn sift(&mut self, mut stays: impl FnMut(usize, &W) -> bool) -> Vec<W> {
        let mut ahead = 0;
        let mut go = Vec::new();
        for (place, (_, waiter)) in &self.waiting {
            if stays(ahead, waiter) {
                ahead += 1;
            } else {
                go.push(*place);
            }
        }
        go.into_iter().filter_map(|place| self.remove(place)).collect()
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// How many of this client's calls wait.
    pub(crate) fn of_client(&self, client: &ClientId) -> usize {
        self.per_client.get(client).copied().unwrap_or(0)
    }

    /// When the one that has waited longest arrived.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.waiting.values().map(|(standing, _)| standing.arrived).min()
    }

    /// Every standing, in order.
    pub(crate) fn standings(&self) -> impl Iterator<Item = &Standing> {
        self.waiting.values().map(|(standing, _)| standing)
    }

    fn left(&mut self, client: &ClientId) {
        if let Some(count) = self.per_client.get_mut(client) {
            *count -= 1;
            if *count == 0 {
                self.per_client.remove(client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(place: u64, client: &str) -> Standing {
        let tenant = TenantId::new("");
        Standing { place: Place(place), client: ClientId::new(client), tenant, arrived: Instant::now() }
    }

    fn line(calls: &[(u64, &str)]) -> Line<u64> {
        let mut line = Line::new();
        calls.iter().for_each(|(place, client)| line.push(standing(*place, client), *place));
        line
    }

    #[test]
    fn serves_by_first_arrival_whatever_the_order_of_coming_back() {
        let mut line = line(&[(3, "a"), (1, "b"), (2, "a")]);
        assert_eq!([line.pop(), line.pop(), line.pop(), line.pop()], [Some(1), Some(2), Some(3), None]);
    }

    #[test]
    fn counts_per_client_and_forgets_clients_that_left() {
        let mut line = line(&[(1, "a"), (2, "a"), (3, "b")]);
        assert_eq!((line.of_client(&ClientId::new("a")), line.of_client(&ClientId::new("b"))), (2, 1));
        assert_eq!(line.remove(Place(2)), Some(2));
        assert_eq!(line.remove(Place(2)), None);
        assert_eq!(line.pop(), Some(1));
        assert_eq!(line.of_client(&ClientId::new("a")), 0);
        assert_eq!(line.per_client.len(), 1);
    }

    #[test]
    fn sifts_in_order_by_how_many_stay_before() {
        let mut line = line(&[(1, "a"), (5, "a"), (9, "b"), (12, "b")]);
        let mut asked = Vec::new();
        let gone = line.sift(|ahead, waiter| {
            asked.push((ahead, *waiter));
            *waiter != 5 && *waiter != 12
        });
        assert_eq!(asked, [(0, 1), (1, 5), (1, 9), (2, 12)]);
        assert_eq!((gone, line.len()), (vec![5, 12], 2));
        assert_eq!(line.of_client(&ClientId::new("b")), 1);
    }
}
