//! Orders the upstream's addresses: the last winner first, then alternating address families (RFC
//! 8305, section 4), last the addresses that failed or were slow in the last minutes. This file
//! only decides; `upstream/race.rs` connects.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::race::Outcome;

/// How long results are remembered. RFC 8305 names no value and asks to forget when the network
/// changes, which Flowgate cannot observe.
const REMEMBERED: Duration = Duration::from_secs(10 * 60);

/// Results of recent races.
#[derive(Default)]
pub(super) struct RaceHistory {
    /// The latest winner. Its family is tried first even when the name no longer resolves to it.
    winner: Option<(SocketAddr, Instant)>,
    /// Addresses that failed or lost, and when.
    avoided: HashMap<SocketAddr, Instant>,
}

// === impl RaceHistory ===

impl RaceHistory {
    /// The addresses in the order to try.
    pub(super) fn order(&self, addresses: &[SocketAddr], now: Instant) -> Vec<SocketAddr> {
        let winner = self
            .winner
            .filter(|(_, at)| now - *at < REMEMBERED)
            .map(|(address, _)| address);
        let mut distinct = Vec::with_capacity(addresses.len());
        for address in addresses {
            if !distinct.contains(address) {
                distinct.push(*address);
            }
        }
        // An address that failed after its win is tried last too.
        let (mut avoided, mut tried): (Vec<_>, Vec<_>) = distinct
            .into_iter()
            .partition(|address| self.avoided_at(address, now).is_some());
        tried.sort_by_key(|address| Some(*address) != winner);
        avoided.sort_by_key(|address| self.avoided_at(address, now));
        let first = winner
            .or(tried.first().copied())
            .is_none_or(|address| address.is_ipv6());
        let mut order = interleaved(tried, first);
        order.extend(avoided);
        order
    }

    /// Records a race: addresses that failed or lost are tried last from now on, the winner first.
    pub(super) fn learn<R, E>(&mut self, outcome: &Outcome<R, E>, now: Instant) {
        let failed = outcome.failed.iter().map(|(address, _)| *address);
        let late = outcome.pending[..outcome.late].iter().copied();
        failed
            .chain(late)
            .for_each(|address| self.avoid(address, now));
        if let Some((address, _)) = outcome.winner {
            self.won(address, now);
        }
    }

    /// When the address last failed or lost, if that is still remembered.
    fn avoided_at(&self, address: &SocketAddr, now: Instant) -> Option<Instant> {
        let at = self.avoided.get(address).copied()?;
        (now - at < REMEMBERED).then_some(at)
    }

    fn won(&mut self, address: SocketAddr, now: Instant) {
        self.winner = Some((address, now));
        self.avoided.remove(&address);
    }

    fn avoid(&mut self, address: SocketAddr, now: Instant) {
        self.avoided.retain(|_, at| now - *at < REMEMBERED);
        self.avoided.insert(address, now);
    }
}

/// Alternates between the families, and keeps the order within each.
fn interleaved(addresses: Vec<SocketAddr>, ipv6_first: bool) -> Vec<SocketAddr> {
    let (first, second): (Vec<_>, Vec<_>) = addresses
        .into_iter()
        .partition(|address| address.is_ipv6() == ipv6_first);
    let longest = first.len().max(second.len());
    (0..longest)
        .flat_map(|index| [first.get(index).copied(), second.get(index).copied()])
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(hosts: &[&str]) -> Vec<SocketAddr> {
        hosts
            .iter()
            .map(|host| SocketAddr::new(host.parse().unwrap(), 443))
            .collect()
    }

    fn one(host: &str) -> SocketAddr {
        addresses(&[host])[0]
    }

    #[test]
    fn families_alternate_in_the_resolvers_order() {
        let now = Instant::now();
        for (given, expected) in [
            (
                &["::1", "::2", "1.1.1.1", "::3", "1.1.1.2"][..],
                &["::1", "1.1.1.1", "::2", "1.1.1.2", "::3"][..],
            ),
            (
                &["1.1.1.1", "1.1.1.2", "::1"],
                &["1.1.1.1", "::1", "1.1.1.2"],
            ),
            (&["1.1.1.2", "1.1.1.1", "1.1.1.2"], &["1.1.1.2", "1.1.1.1"]),
            (&["::1"], &["::1"]),
            (&[], &[]),
        ] {
            assert_eq!(
                RaceHistory::default().order(&addresses(given), now),
                addresses(expected),
                "{given:?}"
            );
        }
    }

    #[test]
    fn the_last_winner_or_else_its_family_comes_first() {
        let mut race_history = RaceHistory::default();
        let now = Instant::now();
        race_history.won(one("1.1.1.2"), now);
        let order = race_history.order(&addresses(&["::1", "::2", "1.1.1.1", "1.1.1.2"]), now);
        assert_eq!(order, addresses(&["1.1.1.2", "::1", "1.1.1.1", "::2"]));
        let order = race_history.order(&addresses(&["::1", "1.1.1.3"]), now);
        assert_eq!(order, addresses(&["1.1.1.3", "::1"]));
    }

    #[test]
    fn addresses_that_failed_or_lost_come_last_the_oldest_failure_first() {
        let mut race_history = RaceHistory::default();
        let start = Instant::now();
        let all = addresses(&["::1", "::2", "1.1.1.1", "1.1.1.2"]);
        race_history.won(one("::2"), start);
        race_history.avoid(one("::2"), start + Duration::from_secs(2));
        race_history.avoid(one("::1"), start + Duration::from_secs(1));
        let order = race_history.order(&all, start + Duration::from_secs(3));
        assert_eq!(order, addresses(&["1.1.1.1", "1.1.1.2", "::1", "::2"]));
        // A win clears the failure.
        race_history.won(one("::1"), start + Duration::from_secs(4));
        let order = race_history.order(&all, start + Duration::from_secs(5));
        assert_eq!(order, addresses(&["::1", "1.1.1.1", "1.1.1.2", "::2"]));
    }

    #[test]
    fn results_are_forgotten_after_ten_minutes() {
        let mut race_history = RaceHistory::default();
        let start = Instant::now();
        let all = addresses(&["::1", "1.1.1.1"]);
        race_history.avoid(one("::1"), start);
        race_history.won(one("1.1.1.1"), start);
        let before = start + REMEMBERED - Duration::from_millis(1);
        assert_eq!(
            race_history.order(&all, before),
            addresses(&["1.1.1.1", "::1"])
        );
        assert_eq!(race_history.order(&all, start + REMEMBERED), all);
        race_history.avoid(one("::9"), start + REMEMBERED);
        assert_eq!(race_history.avoided.len(), 1);
    }
}
