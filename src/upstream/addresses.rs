//! In which order are the addresses of the upstream tried? The one that won last first, then the families in turn (RFC
//! 8305, section 4), and last those that failed or were too slow within the last minutes. Only decides: the race between
//! them is `upstream/race.rs`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::race::Outcome;

/// How long it is remembered how an address did. RFC 8305 leaves it open and asks to forget when the network changes;
/// Flowgate cannot see that, so it is minutes.
const REMEMBERED: Duration = Duration::from_secs(10 * 60);

/// What the latest races have shown.
#[derive(Default)]
pub(super) struct Memory {
    /// The latest winner: its family is tried first even when the name no longer resolves to it.
    winner: Option<(SocketAddr, Instant)>,
    /// Addresses that failed or lost, and when.
    avoided: HashMap<SocketAddr, Instant>,
}

// === impl Memory ===

impl Memory {
    /// The addresses in the order in which they are tried.
    pub(super) fn order(&self, addresses: &[SocketAddr], now: Instant) -> Vec<SocketAddr> {
        let winner = self
            .winner
            .filter(|(_, at)| now - *at < REMEMBERED)
            .map(|(address, _)| address);
        let avoided_at = |address: &SocketAddr| {
            self.avoided
                .get(address)
                .copied()
                .filter(|at| now - *at < REMEMBERED)
        };
        let mut distinct = Vec::with_capacity(addresses.len());
        for address in addresses {
            if !distinct.contains(address) {
                distinct.push(*address);
            }
        }
        // One that failed after it had won comes last all the same.
        let (mut avoided, mut tried): (Vec<_>, Vec<_>) = distinct
            .into_iter()
            .partition(|address| avoided_at(address).is_some());
        tried.sort_by_key(|address| Some(*address) != winner);
        avoided.sort_by_key(avoided_at);
        let first = winner
            .or(tried.first().copied())
            .is_none_or(|address| address.is_ipv6());
        let mut order = interleaved(tried, first);
        order.extend(avoided);
        order
    }

    /// What failed or was overtaken comes last from now on, and the winner first.
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

    fn won(&mut self, address: SocketAddr, now: Instant) {
        self.winner = Some((address, now));
        self.avoided.remove(&address);
    }

    fn avoid(&mut self, address: SocketAddr, now: Instant) {
        self.avoided.retain(|_, at| now - *at < REMEMBERED);
        self.avoided.insert(address, now);
    }
}

/// One of each family in turn, in their order otherwise.
fn interleaved(addresses: Vec<SocketAddr>, ipv6_first: bool) -> Vec<SocketAddr> {
    let (first, second): (Vec<_>, Vec<_>) = addresses
        .into_iter()
        .partition(|address| address.is_ipv6() == ipv6_first);
    let longest = first.len().max(second.len());
    let turn = |place| [first.get(place).copied(), second.get(place).copied()];
    (0..longest).flat_map(turn).flatten().collect()
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
    fn without_memory_families_alternate_in_the_resolvers_order() {
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
                Memory::default().order(&addresses(given), now),
                addresses(expected),
                "{given:?}"
            );
        }
    }

    #[test]
    fn the_last_winner_is_first_and_else_its_family() {
        let (mut memory, now) = (Memory::default(), Instant::now());
        memory.won(one("1.1.1.2"), now);
        let order = memory.order(&addresses(&["::1", "::2", "1.1.1.1", "1.1.1.2"]), now);
        assert_eq!(order, addresses(&["1.1.1.2", "::1", "1.1.1.1", "::2"]));
        let order = memory.order(&addresses(&["::1", "1.1.1.3"]), now);
        assert_eq!(order, addresses(&["1.1.1.3", "::1"]));
    }

    #[test]
    fn what_failed_or_lost_comes_last_and_the_longest_ago_first() {
        let (mut memory, start) = (Memory::default(), Instant::now());
        let all = addresses(&["::1", "::2", "1.1.1.1", "1.1.1.2"]);
        memory.won(one("::2"), start);
        memory.avoid(one("::2"), start + Duration::from_secs(2));
        memory.avoid(one("::1"), start + Duration::from_secs(1));
        let order = memory.order(&all, start + Duration::from_secs(3));
        assert_eq!(order, addresses(&["1.1.1.1", "1.1.1.2", "::1", "::2"]));
        // A win makes good for it.
        memory.won(one("::1"), start + Duration::from_secs(4));
        let order = memory.order(&all, start + Duration::from_secs(5));
        assert_eq!(order, addresses(&["::1", "1.1.1.1", "1.1.1.2", "::2"]));
    }

    #[test]
    fn minutes_later_all_is_forgotten() {
        let (mut memory, start) = (Memory::default(), Instant::now());
        let all = addresses(&["::1", "1.1.1.1"]);
        memory.avoid(one("::1"), start);
        memory.won(one("1.1.1.1"), start);
        let before = start + REMEMBERED - Duration::from_millis(1);
        assert_eq!(memory.order(&all, before), addresses(&["1.1.1.1", "::1"]));
        assert_eq!(memory.order(&all, start + REMEMBERED), all);
        memory.avoid(one("::9"), start + REMEMBERED);
        assert_eq!(memory.avoided.len(), 1);
    }
}
