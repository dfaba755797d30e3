//! The fair order: shares by weight, tenants within their client's share, and forecasts that come
//! true.

use std::cell::Cell;

use proptest::prelude::*;

use super::*;

thread_local! {
    static COMPARISONS: Cell<u64> = const { Cell::new(0) };
}

/// Counts a comparison of two tags or two sequence numbers.
pub(super) fn compared() {
    COMPARISONS.set(COMPARISONS.get() + 1);
}

fn entry(sequence: u64, client: &str, weight: u32, tenant: &str) -> QueueEntry {
    QueueEntry {
        sequence: Sequence(sequence),
        client: ClientId::new(client),
        weight,
        tenant: TenantId::new(tenant),
        arrived: Instant::now(),
    }
}

#[derive(Default)]
struct Calls {
    next: u64,
}

impl Calls {
    fn push(&mut self, queue: &mut FairQueue<(u64, String)>, who: (&str, u32, &str)) {
        self.next += 1;
        let (client, weight, tenant) = who;
        let entry = entry(self.next, client, weight, tenant);
        queue.push(entry, (self.next, client.to_owned()));
    }
}

/// Walks through the whole queue, in pieces.
fn walk_all(
    queue: &mut FairQueue<(u64, String)>,
    mut stays: impl FnMut(usize, &(u64, String)) -> bool,
) -> Vec<(u64, String)> {
    let mut walk = queue.walk();
    let mut gone = Vec::new();
    while !walk.is_over() {
        gone.extend(queue.advance_walk(&mut walk, 3, &mut stays));
    }
    gone
}

fn clients(queue: &mut FairQueue<(u64, String)>, count: usize) -> String {
    (0..count)
        .map_while(|_| queue.pop())
        .map(|(_, client)| client)
        .collect()
}

fn sequences(queue: &mut FairQueue<(u64, String)>) -> Vec<u64> {
    std::iter::from_fn(|| queue.pop())
        .map(|(sequence, _)| sequence)
        .collect()
}

#[test]
fn one_tenants_calls_are_served_by_first_arrival_in_whatever_order_they_return() {
    let mut queue = FairQueue::new();
    for sequence in [3, 1, 2] {
        queue.push(entry(sequence, "a", 1, ""), sequence);
    }
    assert_eq!(
        [queue.pop(), queue.pop(), queue.pop(), queue.pop()],
        [Some(1), Some(2), Some(3), None]
    );
}

#[test]
fn a_thousand_calls_in_a_hundred_tenants_and_five_of_another_client_alternate() {
    let mut queue = FairQueue::new();
    let mut calls = Calls::default();
    for index in 0..1000 {
        calls.push(&mut queue, ("A", 1, &format!("tenant-{}", index % 100)));
    }
    assert_eq!(clients(&mut queue, 3), "AAA");
    for _ in 0..5 {
        calls.push(&mut queue, ("B", 1, ""));
    }
    assert_eq!(clients(&mut queue, 14), "BABABABABAAAAA");
    assert_eq!(queue.len(), 1005 - 17);
}

#[test]
fn tenants_of_a_client_take_turns() {
    let mut queue = FairQueue::new();
    let mut calls = Calls::default();
    for tenant in ["x", "x", "x", "x", "y", "z", "y"] {
        calls.push(&mut queue, ("a", 1, tenant));
    }
    assert_eq!(sequences(&mut queue), [1, 5, 6, 2, 7, 3, 4]);
}

#[test]
fn weights_are_shares() {
    let mut queue = FairQueue::new();
    let mut calls = Calls::default();
    for _ in 0..700 {
        for who in [("a", 1, ""), ("b", 2, ""), ("c", 4, "")] {
            calls.push(&mut queue, who);
        }
    }
    let served = clients(&mut queue, 700);
    let of = |client| served.matches(client).count();
    assert_eq!([of("a"), of("b"), of("c")], [100, 200, 400]);
    // The shares are interleaved: in any seven calls each client has its share, plus or minus one.
    for window in served.as_bytes().windows(7) {
        let of = |client| window.iter().filter(|served| **served == client).count();
        assert!(
            (1..=1).contains(&of(b'a'))
                && (1..=3).contains(&of(b'b'))
                && (3..=5).contains(&of(b'c'))
        );
    }
}

#[test]
fn sending_one_call_at_a_time_gains_nothing() {
    let mut queue = FairQueue::new();
    let mut calls = Calls::default();
    for _ in 0..50 {
        calls.push(&mut queue, ("A", 1, ""));
    }
    let mut served = String::new();
    for _ in 0..20 {
        if queue.client_len(&ClientId::new("B")) == 0 {
            calls.push(&mut queue, ("B", 1, ""));
        }
        served.push_str(&queue.pop().unwrap().1);
    }
    assert_eq!(
        (served.matches('A').count(), served.matches('B').count()),
        (10, 10)
    );
}

#[test]
fn a_client_saves_up_no_turns_while_it_is_away() {
    let mut queue = FairQueue::new();
    let mut calls = Calls::default();
    for _ in 0..50 {
        calls.push(&mut queue, ("A", 1, ""));
        calls.push(&mut queue, ("B", 1, ""));
    }
    clients(&mut queue, 60);
    for _ in 0..20 {
        calls.push(&mut queue, ("C", 1, ""));
    }
    let served = clients(&mut queue, 30);
    assert_eq!(served.matches('C').count(), 10);
}

#[test]
fn the_newest_call_of_the_client_with_the_most_calls_is_evicted() {
    let mut queue = FairQueue::new();
    let mut calls = Calls::default();
    for who in [("a", 1, "x"), ("a", 1, "y"), ("a", 1, "x"), ("b", 1, "")] {
        calls.push(&mut queue, who);
    }
    let a = ClientId::new("a");
    let b = ClientId::new("b");
    assert_eq!(
        queue.evict(&a),
        None,
        "the client with the most calls evicts none of its own"
    );
    assert_eq!(queue.evict(&b).map(|(sequence, _)| sequence), Some(3));
    assert_eq!(queue.evict(&b).map(|(sequence, _)| sequence), Some(2));
    assert_eq!(
        queue.evict(&b),
        None,
        "a client with as many calls keeps them"
    );
    assert_eq!((queue.client_len(&a), queue.len()), (1, 2));
}

#[test]
fn a_removed_call_leaves_its_turn_to_the_next_one_of_its_tenant() {
    let mut queue = FairQueue::new();
    let mut calls = Calls::default();
    for who in [("a", 1, ""), ("a", 1, ""), ("b", 1, ""), ("b", 1, "")] {
        calls.push(&mut queue, who);
    }
    let mut asked = Vec::new();
    let gone = walk_all(&mut queue, |ahead, (sequence, _)| {
        asked.push((ahead, *sequence));
        *sequence != 1
    });
    assert_eq!(asked, [(0, 1), (0, 2), (1, 3), (2, 4)]);
    assert_eq!(gone.len(), 1);
    assert_eq!(sequences(&mut queue), [2, 3, 4]);
}

/// The mean number of comparisons per push, pop, evict and remove in a queue of `calls` calls of
/// `tenants` tenants.
#[cfg(debug_assertions)]
fn cost(calls: u64, tenants: u64) -> [u64; 4] {
    const ROUNDS: u64 = 1000;
    let mut random = fastrand::Rng::with_seed(1);
    let tenants: Vec<_> = (0..tenants)
        .map(|tenant| format!("tenant-{tenant}"))
        .collect();
    let mut queue = FairQueue::new();
    let mut waiting = Vec::new();
    let mut costs = [0; 4];
    let mut arrive = |queue: &mut FairQueue<u64>, waiting: &mut Vec<QueueEntry>, sequence| {
        // Half of them belong to a client whose tags never tie with the other's.
        let client = if random.bool() { ("a", 1) } else { ("b", 7) };
        let tenant = &tenants[random.usize(..tenants.len())];
        let entry = entry(sequence, client.0, client.1, tenant);
        waiting.push(entry.clone());
        let before = COMPARISONS.get();
        queue.push(entry, sequence);
        COMPARISONS.get() - before
    };
    for sequence in 0..calls {
        arrive(&mut queue, &mut waiting, sequence);
    }
    for sequence in calls..calls + ROUNDS {
        costs[0] += arrive(&mut queue, &mut waiting, 3 * sequence);
        costs[0] += arrive(&mut queue, &mut waiting, 3 * sequence + 1);
        costs[0] += arrive(&mut queue, &mut waiting, 3 * sequence + 2);
        let before = COMPARISONS.get();
        queue.pop().unwrap();
        costs[1] += COMPARISONS.get() - before;
        let before = COMPARISONS.get();
        queue.evict(&ClientId::new("c")).unwrap();
        costs[2] += COMPARISONS.get() - before;
        while queue.len() as u64 > calls {
            let entry = waiting.swap_remove(sequence as usize * 7919 % waiting.len());
            let before = COMPARISONS.get();
            let removed = queue.remove(&entry);
            costs[3] += if removed.is_some() {
                COMPARISONS.get() - before
            } else {
                0
            };
        }
    }
    [costs[0] / 3, costs[1], costs[2], costs[3]].map(|cost| cost / ROUNDS)
}

/// A thousand times the calls make the logarithm 2.5 times as long. In a longer queue more tags
/// tie, and a tie takes a second comparison, so the cost may be four times as high, where a linear
/// one would be a thousand times.
#[cfg(debug_assertions)]
#[test]
fn no_operation_costs_more_than_a_logarithm_of_the_queue() {
    for (few, many) in [(1, 1), (100, 10_000), (100, 100_000)] {
        let short = cost(100, few);
        let long = cost(100_000, many);
        for (operation, (short, long)) in ["push", "pop", "evict", "remove"]
            .iter()
            .zip(short.into_iter().zip(long))
        {
            assert!(
                (1..=4 * short).contains(&long),
                "{operation}, {few} and {many} tenants: {short} grows to {long}"
            );
        }
    }
}

/// An event of a queue.
#[derive(Clone, Debug)]
enum Event {
    Come {
        client: usize,
        tenant: usize,
    },
    /// The waiting call at this index, modulo their number, leaves.
    Go(usize),
    Serve,
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..4_usize, 0..5_usize).prop_map(|(client, tenant)| Event::Come { client, tenant }),
        1 => any::<usize>().prop_map(Event::Go),
        3 => Just(Event::Serve),
    ]
}

fn who(event: (usize, usize), weights: [u32; 4]) -> (&'static str, u32, String) {
    (NAMES[event.0], weights[event.0], format!("t{}", event.1))
}

/// Applies all events. Returns the queue and its entries.
fn after(events: &[Event], weights: [u32; 4]) -> (FairQueue<(u64, String)>, Vec<QueueEntry>) {
    let mut queue = FairQueue::new();
    let mut waiting = Vec::<QueueEntry>::new();
    for (number, event) in (1..).zip(events) {
        match event {
            Event::Come { client, tenant } => {
                let (client, weight, tenant) = who((*client, *tenant), weights);
                let entry = entry(number, client, weight, &tenant);
                queue.push(entry.clone(), (number, client.to_owned()));
                waiting.push(entry);
            }
            Event::Go(which) if !waiting.is_empty() => {
                let entry = waiting.remove(which % waiting.len());
                assert_eq!(
                    queue.remove(&entry).map(|(sequence, _)| Sequence(sequence)),
                    Some(entry.sequence)
                );
            }
            Event::Go(_) => {}
            Event::Serve => {
                // Work conserving: if a call waits, a call is served.
                let served = queue.pop();
                assert_eq!(served.is_some(), !waiting.is_empty());
                waiting.retain(|entry| {
                    Some(entry.sequence.0) != served.as_ref().map(|(sequence, _)| *sequence)
                });
            }
        }
        assert_eq!(queue.len(), waiting.len());
    }
    (queue, waiting)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// The number of calls before a new one is exact if no call arrives after it.
    #[test]
    fn the_forecast_for_a_new_call_comes_true(
        events in proptest::collection::vec(event(), 0..120),
        weights in [1..9_u32, 1..9_u32, 1..9_u32, 1..9_u32],
        new in (0..4_usize, 0..5_usize),
    ) {
        let (mut queue, _) = after(&events, weights);
        let (client, weight, tenant) = who(new, weights);
        let entry = entry(1_000_000, client, weight, &tenant);
        let ahead = queue.ahead_of_new(&entry);
        queue.push(entry, (1_000_000, client.to_owned()));
        prop_assert_eq!(sequences(&mut queue).iter().position(|sequence| *sequence == 1_000_000), Some(ahead));
    }

    /// A walk visits the calls in the order of service.
    #[test]
    fn a_walk_follows_the_order_of_service(
        events in proptest::collection::vec(event(), 0..120),
        weights in [1..9_u32, 1..9_u32, 1..9_u32, 1..9_u32],
    ) {
        let (mut queue, waiting) = after(&events, weights);
        let mut order = Vec::new();
        let gone = walk_all(&mut queue, |ahead, (sequence, _)| {
            assert_eq!(ahead, order.len());
            order.push(*sequence);
            true
        });
        prop_assert!(gone.is_empty());
        prop_assert_eq!(order.len(), waiting.len());
        prop_assert_eq!(sequences(&mut queue), order);
    }

    /// No client starves: between two calls of a waiting client, no other client is served more
    /// than its share plus one.
    #[test]
    fn every_waiting_client_gets_its_share(
        events in proptest::collection::vec(event(), 0..200),
        weights in [1..9_u32, 1..9_u32, 1..9_u32, 1..9_u32],
    ) {
        let (mut queue, _) = after(&events, weights);
        let mut left: Vec<usize> = NAMES.iter().map(|name| queue.client_len(&ClientId::new(*name))).collect();
        let mut since = [[0_usize; 4]; 4];
        while let Some((_, client)) = queue.pop() {
            let served = NAMES.iter().position(|name| *name == client).unwrap();
            left[served] -= 1;
            since[served] = [0; 4];
            for waits in (0..4).filter(|waits| *waits != served && left[*waits] > 0) {
                since[waits][served] += 1;
                let share = weights[served].div_ceil(weights[waits]) as usize;
                prop_assert!(since[waits][served] <= share + 1, "{} waits while {} is served", NAMES[waits], client);
            }
        }
    }
}
