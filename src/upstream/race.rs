//! Connects to several addresses in a staggered race (RFC 8305, section 5): the next address is
//! tried when one has failed or has not connected in time. The first that is ready wins, and the
//! others are dropped.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, sleep_until};

/// RFC 8305's Connection Attempt Delay.
const STAGGER: Duration = Duration::from_millis(250);

/// The same after TCP is connected: TLS takes one or two more round trips, and computation on both
/// sides.
const HANDSHAKE_STAGGER: Duration = Duration::from_secs(1);

/// The two stages of a race: the TCP connection, and the handshakes on it.
pub(super) trait Connect: Sync {
    type Tcp: Send;
    type Ready: Send;
    type Error: Send;

    fn connect(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = Result<Self::Tcp, Self::Error>> + Send;
    fn handshake(
        &self,
        tcp: Self::Tcp,
    ) -> impl Future<Output = Result<Self::Ready, Self::Error>> + Send;
}

/// The result of a race.
pub(super) struct Outcome<R, E> {
    pub(super) winner: Option<(SocketAddr, R)>,
    /// In the order of their failures.
    pub(super) failed: Vec<(SocketAddr, E)>,
    /// Addresses that neither won nor failed, in the order of their start.
    pub(super) pending: Vec<SocketAddr>,
    /// How many of `pending` lost: they were started before the winner, or ran out of time.
    pub(super) late: usize,
}

enum Step<C: Connect> {
    Connected(C::Tcp),
    Ready(C::Ready),
    Failed(C::Error),
}

type Attempts<'a, C> = FuturesUnordered<BoxFuture<'a, (SocketAddr, Step<C>)>>;

/// Races the addresses, in this order, until one is ready, all have failed or the deadline has
/// passed.
pub(super) async fn race<C: Connect>(
    connector: &C,
    addresses: &[SocketAddr],
    deadline: Instant,
) -> Outcome<C::Ready, C::Error> {
    let mut attempts = Attempts::<C>::new();
    let mut outcome = Outcome::new();
    // With little time each address still gets its share.
    let share = share(deadline, addresses.len());
    let stagger = STAGGER.min(share);
    let handshake_stagger = HANDSHAKE_STAGGER.min(share);
    let mut untried = addresses.iter().copied();
    let mut next_start = Instant::now();
    loop {
        if Instant::now() >= next_start || attempts.is_empty() {
            if let Some(address) = untried.next() {
                attempts.push(connect(connector, address));
                outcome.pending.push(address);
                next_start = Instant::now() + stagger;
            } else if attempts.is_empty() {
                return outcome;
            }
        }
        tokio::select! {
            // A ready connection wins over the timers.
            biased;
            Some((address, step)) = attempts.next() => match step {
                Step::Connected(tcp) => {
                    attempts.push(handshake(connector, address, tcp));
                    next_start = Instant::now() + handshake_stagger;
                }
                Step::Ready(ready) => {
                    outcome.late = outcome.leave(address);
                    outcome.winner = Some((address, ready));
                    return outcome;
                }
                Step::Failed(error) => {
                    outcome.leave(address);
                    outcome.failed.push((address, error));
                    next_start = Instant::now();
                }
            },
            () = sleep_until(deadline) => {
                outcome.late = outcome.pending.len();
                return outcome;
            }
            () = sleep_until(next_start), if untried.len() > 0 => {}
        }
    }
}

/// The time until the deadline, divided among this many addresses.
fn share(deadline: Instant, addresses: usize) -> Duration {
    let addresses = u32::try_from(addresses.max(1)).unwrap_or(u32::MAX);
    deadline.saturating_duration_since(Instant::now()) / addresses
}

fn connect<C: Connect>(connector: &C, address: SocketAddr) -> BoxFuture<'_, (SocketAddr, Step<C>)> {
    let connected = connector.connect(address);
    let step = async move { connected.await.map_or_else(Step::Failed, Step::Connected) };
    async move { (address, step.await) }.boxed()
}

fn handshake<C: Connect>(
    connector: &C,
    address: SocketAddr,
    tcp: C::Tcp,
) -> BoxFuture<'_, (SocketAddr, Step<C>)> {
    let ready = connector.handshake(tcp);
    async move { (address, ready.await.map_or_else(Step::Failed, Step::Ready)) }.boxed()
}

// === impl Outcome ===

impl<R, E> Outcome<R, E> {
    fn new() -> Self {
        Self {
            winner: None,
            failed: Vec::new(),
            pending: Vec::new(),
            late: 0,
        }
    }

    /// Removes an attempt that ended. Returns how many that were started before it are pending.
    fn leave(&mut self, address: SocketAddr) -> usize {
        let index = self
            .pending
            .iter()
            .position(|pending| *pending == address)
            .expect("a started attempt is pending until it ends");
        self.pending.remove(index);
        index
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use parking_lot::Mutex;
    use tokio::time::sleep;

    use super::*;
    use crate::upstream::addresses::RaceHistory;

    /// Milliseconds of the connection and of the handshake, and whether each succeeds.
    #[derive(Clone, Copy)]
    struct Host {
        connect: (u64, bool),
        handshake: (u64, bool),
    }

    const SWALLOWS: Host = Host {
        connect: (u64::MAX / 2, true),
        handshake: (0, true),
    };

    fn answers(after: u64) -> Host {
        Host {
            connect: (after, true),
            handshake: (0, true),
        }
    }

    fn refuses(after: u64) -> Host {
        Host {
            connect: (after, false),
            handshake: (0, true),
        }
    }

    struct FakeNetwork {
        hosts: HashMap<SocketAddr, Host>,
        start: Instant,
        /// When each address was tried.
        tried: Mutex<Vec<(u64, u16)>>,
    }

    impl FakeNetwork {
        async fn takes(&self, step: (u64, bool), address: SocketAddr) -> Result<SocketAddr, ()> {
            let (after, succeeds) = step;
            sleep(Duration::from_millis(after)).await;
            succeeds.then_some(address).ok_or(())
        }
    }

    impl Connect for FakeNetwork {
        type Tcp = SocketAddr;
        type Ready = SocketAddr;
        type Error = ();

        async fn connect(&self, address: SocketAddr) -> Result<SocketAddr, ()> {
            self.tried.lock().push((millis(self.start), address.port()));
            self.takes(self.hosts[&address].connect, address).await
        }

        async fn handshake(&self, tcp: SocketAddr) -> Result<SocketAddr, ()> {
            self.takes(self.hosts[&tcp].handshake, tcp).await
        }
    }

    fn millis(since: Instant) -> u64 {
        since.elapsed().as_millis().try_into().unwrap()
    }

    #[derive(Debug, PartialEq)]
    struct Seen {
        /// Which host won, and when.
        winner: Option<(u64, u16)>,
        tried: Vec<(u64, u16)>,
        failed: Vec<u16>,
        late: Vec<u16>,
    }

    fn address(number: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], number))
    }

    /// Races the hosts, each named by its place from 1, for 3 s.
    async fn seen(hosts: &[Host]) -> Seen {
        seen_within(3000, hosts).await
    }

    async fn seen_within(time: u64, hosts: &[Host]) -> Seen {
        let addresses: Vec<_> = (1..).take(hosts.len()).map(address).collect();
        let start = Instant::now();
        let hosts = addresses
            .iter()
            .copied()
            .zip(hosts.iter().copied())
            .collect();
        let network = FakeNetwork {
            hosts,
            start,
            tried: Mutex::default(),
        };
        let outcome = race(&network, &addresses, start + Duration::from_millis(time)).await;
        assert!(outcome.winner.is_some() || outcome.pending.is_empty() || millis(start) == time);
        Seen {
            winner: outcome
                .winner
                .map(|(address, _)| (millis(start), address.port())),
            tried: network.tried.into_inner(),
            failed: outcome
                .failed
                .iter()
                .map(|(address, ())| address.port())
                .collect(),
            late: outcome.pending[..outcome.late]
                .iter()
                .map(SocketAddr::port)
                .collect(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_connects_in_time_is_the_only_one_tried() {
        let expected = Seen {
            winner: Some((249, 1)),
            tried: vec![(0, 1)],
            failed: vec![],
            late: vec![],
        };
        assert_eq!(seen(&[answers(249), answers(0)]).await, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_address_costs_a_quarter_of_a_second() {
        let tried = vec![(0, 1), (250, 2)];
        let expected = Seen {
            winner: Some((260, 2)),
            tried,
            failed: vec![],
            late: vec![1],
        };
        assert_eq!(seen(&[SWALLOWS, answers(10), answers(0)]).await, expected);
        let tried = vec![(0, 1), (250, 2), (500, 3), (750, 4)];
        let expected = Seen {
            winner: Some((760, 4)),
            tried,
            failed: vec![],
            late: vec![1, 2, 3],
        };
        assert_eq!(
            seen(&[SWALLOWS, SWALLOWS, SWALLOWS, answers(10)]).await,
            expected
        );
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_refusal_the_next_address_is_tried_immediately() {
        let expected = Seen {
            winner: Some((25, 3)),
            tried: vec![(0, 1), (5, 2), (15, 3)],
            failed: vec![1, 2],
            late: vec![],
        };
        assert_eq!(
            seen(&[refuses(5), refuses(10), answers(10), answers(0)]).await,
            expected
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_ready_connection_wins_whenever_it_was_started() {
        // A slow one that is still ready before the second.
        let expected = Seen {
            winner: Some((300, 1)),
            tried: vec![(0, 1), (250, 2)],
            failed: vec![],
            late: vec![],
        };
        assert_eq!(seen(&[answers(300), answers(100)]).await, expected);
        let expected = Seen {
            winner: Some((350, 2)),
            tried: vec![(0, 1), (250, 2)],
            failed: vec![],
            late: vec![1],
        };
        assert_eq!(seen(&[answers(400), answers(100)]).await, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_handshake_has_a_second_before_the_next_is_tried() {
        let slow = Host {
            connect: (100, true),
            handshake: (900, true),
        };
        let expected = Seen {
            winner: Some((1000, 1)),
            tried: vec![(0, 1)],
            failed: vec![],
            late: vec![],
        };
        assert_eq!(seen(&[slow, answers(0)]).await, expected);
        let hangs = Host {
            connect: (100, true),
            handshake: (10_000, true),
        };
        let expected = Seen {
            winner: Some((1110, 2)),
            tried: vec![(0, 1), (1100, 2)],
            failed: vec![],
            late: vec![1],
        };
        assert_eq!(seen(&[hangs, answers(10)]).await, expected);
        let fails = Host {
            connect: (100, true),
            handshake: (20, false),
        };
        let expected = Seen {
            winner: Some((130, 2)),
            tried: vec![(0, 1), (120, 2)],
            failed: vec![1],
            late: vec![],
        };
        assert_eq!(seen(&[fails, answers(10)]).await, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn with_little_time_each_address_is_still_tried() {
        let hangs = Host {
            connect: (10, true),
            handshake: (10_000, true),
        };
        let tried = vec![(0, 1), (60, 2), (110, 3)];
        let expected = Seen {
            winner: Some((120, 3)),
            tried,
            failed: vec![],
            late: vec![1, 2],
        };
        assert_eq!(
            seen_within(150, &[hangs, SWALLOWS, answers(10)]).await,
            expected
        );
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_winner_every_tried_address_is_reported() {
        let expected = Seen {
            winner: None,
            tried: vec![(0, 1), (5, 2)],
            failed: vec![1, 2],
            late: vec![],
        };
        assert_eq!(seen(&[refuses(5), refuses(5)]).await, expected);
        let expected = Seen {
            winner: None,
            tried: vec![(0, 1), (250, 2)],
            failed: vec![2],
            late: vec![1],
        };
        assert_eq!(seen(&[SWALLOWS, refuses(5)]).await, expected);
        let expected = Seen {
            winner: None,
            tried: vec![],
            failed: vec![],
            late: vec![],
        };
        assert_eq!(seen(&[]).await, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_was_too_slow_is_tried_last_next_time() {
        let addresses = [1, 2, 3].map(address);
        let hosts = addresses
            .into_iter()
            .zip([SWALLOWS, answers(10), answers(0)])
            .collect();
        let network = FakeNetwork {
            hosts,
            start: Instant::now(),
            tried: Mutex::default(),
        };
        let mut race_history = RaceHistory::default();
        for (expected, takes) in [([1, 2, 3], 260), ([2, 3, 1], 10), ([2, 3, 1], 10)] {
            let start = Instant::now();
            let order = race_history.order(&addresses, start);
            assert_eq!(order, expected.map(address));
            let outcome = race(&network, &order, start + Duration::from_secs(3)).await;
            assert_eq!(millis(start), takes);
            race_history.learn(&outcome, Instant::now());
        }
    }
}
