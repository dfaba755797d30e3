//! Fair order, exactly: turns by weight, tenants inside their client's turn, forecasts that come true.

use std::cell::Cell;

use proptest::prelude::*;

use super::*;

thread_local! {
    static COMPARISONS: Cell<u64> = const { Cell::new(0) };
}

/// Two tags or two places were compared.
pub(super) fn compared() {
    COMPARISONS.set(COMPARISONS.get() + 1);
}

/// A call of (client, weight, tenant); its number is its place and what it is called by.
fn entry(place: u64, (client, weight, tenant): (&str, u32, &str)) -> QueueEntry {
    let (client, tenant) = (ClientId::new(client), TenantId::new(tenant));
    QueueEntry {
        place: Place(place),
        client,
        weight,
        tenant,
        arrived: Instant::now(),
    }
}

#[derive(Default)]
struct Calls {
    next: u64,
}

impl Calls {
    fn push(&mut self, line: &mut FairQueue<(u64, String)>, who: (&str, u32, &str)) {
        self.next += 1;
        line.push(entry(self.next, who), (self.next, who.0.to_owned()));
    }
}

/// Walks through the whole queue, in pieces.
fn sift(
    line: &mut FairQueue<(u64, String)>,
    mut stays: impl FnMut(usize, &(u64, String)) -> bool,
) -> Vec<(u64, String)> {
    let (mut walk, mut gone) = (line.walk(), Vec::new());
    while !walk.is_over() {
        gone.extend(line.walk_on(&mut walk, 3, &mut stays));
    }
    gone
}

fn clients(line: &mut FairQueue<(u64, String)>, count: usize) -> String {
    (0..count)
        .map_while(|_| line.pop())
        .map(|(_, client)| client)
        .collect()
}

fn places(line: &mut FairQueue<(u64, String)>) -> Vec<u64> {
    std::iter::from_fn(|| line.pop())
        .map(|(place, _)| place)
        .collect()
}

#[test]
fn one_tenant_is_served_by_first_arrival_whatever_the_order_of_coming_back() {
    let mut line = FairQueue::new();
    for place in [3, 1, 2] {
        line.push(entry(place, ("a", 1, "")), place);
    }
    assert_eq!(
        [line.pop(), line.pop(), line.pop(), line.pop()],
        [Some(1), Some(2), Some(3), None]
    );
}

#[test]
fn a_thousand_calls_in_a_hundred_tenants_and_five_of_another_client_alternate() {
    let (mut line, mut calls) = (FairQueue::new(), Calls::default());
    for index in 0..1000 {
        calls.push(&mut line, ("A", 1, &format!("tenant-{}", index % 100)));
    }
    assert_eq!(clients(&mut line, 3), "AAA");
    for _ in 0..5 {
        calls.push(&mut line, ("B", 1, ""));
    }
    assert_eq!(clients(&mut line, 14), "BABABABABAAAAA");
    assert_eq!(line.len(), 1005 - 17);
}

#[test]
fn tenants_of_a_client_take_turns() {
    let (mut line, mut calls) = (FairQueue::new(), Calls::default());
    for tenant in ["x", "x", "x", "x", "y", "z", "y"] {
        calls.push(&mut line, ("a", 1, tenant));
    }
    assert_eq!(places(&mut line), [1, 5, 6, 2, 7, 3, 4]);
}

#[test]
fn weights_are_shares() {
    let (mut line, mut calls) = (FairQueue::new(), Calls::default());
    for _ in 0..700 {
        for who in [("a", 1, ""), ("b", 2, ""), ("c", 4, "")] {
            calls.push(&mut line, who);
        }
    }
    let served = clients(&mut line, 700);
    let of = |client| served.matches(client).count();
    assert_eq!([of("a"), of("b"), of("c")], [100, 200, 400]);
    // Spread, not in lumps: in any seven turns each has its share, give or take one.
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
fn coming_one_call_at_a_time_gains_nothing() {
    let (mut line, mut calls) = (FairQueue::new(), Calls::default());
    for _ in 0..50 {
        calls.push(&mut line, ("A", 1, ""));
    }
    let mut served = String::new();
    for _ in 0..20 {
        if line.of_client(&ClientId::new("B")) == 0 {
            calls.push(&mut line, ("B", 1, ""));
        }
        served.push_str(&line.pop().unwrap().1);
    }
    assert_eq!(
        (served.matches('A').count(), served.matches('B').count()),
        (10, 10)
    );
}

#[test]
fn nobody_saves_up_turns_while_away() {
    let (mut line, mut calls) = (FairQueue::new(), Calls::default());
    for _ in 0..50 {
        calls.push(&mut line, ("A", 1, ""));
        calls.push(&mut line, ("B", 1, ""));
    }
    clients(&mut line, 60);
    for _ in 0..20 {
        calls.push(&mut line, ("C", 1, ""));
    }
    let served = clients(&mut line, 30);
    assert_eq!(served.matches('C').count(), 10);
}

#[test]
fn the_newest_call_of_the_longest_client_makes_room() {
    let (mut line, mut calls) = (FairQueue::new(), Calls::default());
    for who in [("a", 1, "x"), ("a", 1, "y"), ("a", 1, "x"), ("b", 1, "")] {
        calls.push(&mut line, who);
    }
    let (a, b) = (ClientId::new("a"), ClientId::new("b"));
    assert_eq!(line.evict(&a), None, "the longest makes no room for itself");
    assert_eq!(line.evict(&b).map(|(place, _)| place), Some(3));
    assert_eq!(line.evict(&b).map(|(place, _)| place), Some(2));
    assert_eq!(line.evict(&b), None, "equals keep their calls");
    assert_eq!((line.of_client(&a), line.len()), (1, 2));
}

#[test]
fn a_sifted_call_leaves_its_turn_to_the_next_of_its_tenant() {
    let (mut line, mut calls) = (FairQueue::new(), Calls::default());
    for who in [("a", 1, ""), ("a", 1, ""), ("b", 1, ""), ("b", 1, "")] {
        calls.push(&mut line, who);
    }
    let mut asked = Vec::new();
    let gone = sift(&mut line, |ahead, (place, _)| {
        asked.push((ahead, *place));
        *place != 1
    });
    assert_eq!(asked, [(0, 1), (0, 2), (1, 3), (2, 4)]);
    assert_eq!(gone.len(), 1);
    assert_eq!(places(&mut line), [2, 3, 4]);
}

/// Comparisons per operation, by operation, in a line of so many calls in so many tenants.
#[cfg(debug_assertions)]
fn cost(calls: u64, tenants: u64) -> [u64; 4] {
    const ROUNDS: u64 = 1000;
    let mut random = fastrand::Rng::with_seed(1);
    let tenants: Vec<_> = (0..tenants)
        .map(|tenant| format!("tenant-{tenant}"))
        .collect();
    let mut line = FairQueue::new();
    let mut waiting = Vec::new();
    let mut costs = [0; 4];
    let mut arrive = |line: &mut FairQueue<u64>, waiting: &mut Vec<QueueEntry>, place| {
        // Half of them in a client whose tags tie with nobody's.
        let client = if random.bool() { ("a", 1) } else { ("b", 7) };
        let entry = entry(
            place,
            (client.0, client.1, &tenants[random.usize(..tenants.len())]),
        );
        waiting.push(entry.clone());
        let before = COMPARISONS.get();
        line.push(entry, place);
        COMPARISONS.get() - before
    };
    for place in 0..calls {
        arrive(&mut line, &mut waiting, place);
    }
    for place in calls..calls + ROUNDS {
        costs[0] += arrive(&mut line, &mut waiting, 3 * place);
        costs[0] += arrive(&mut line, &mut waiting, 3 * place + 1);
        costs[0] += arrive(&mut line, &mut waiting, 3 * place + 2);
        let before = COMPARISONS.get();
        line.pop().unwrap();
        costs[1] += COMPARISONS.get() - before;
        let before = COMPARISONS.get();
        line.evict(&ClientId::new("c")).unwrap();
        costs[2] += COMPARISONS.get() - before;
        while line.len() as u64 > calls {
            let entry = waiting.swap_remove(place as usize * 7919 % waiting.len());
            let before = COMPARISONS.get();
            let removed = line.remove(&entry);
            costs[3] += if removed.is_some() {
                COMPARISONS.get() - before
            } else {
                0
            };
        }
    }
    [costs[0] / 3, costs[1], costs[2], costs[3]].map(|cost| cost / ROUNDS)
}

/// A thousand times the calls make the logarithm 2.5 times as long. In a longer line more tags tie, and a tie takes a
/// second comparison, so the cost may be four times as high, where a linear one would be a thousand times.
#[cfg(debug_assertions)]
#[test]
fn no_operation_costs_more_than_a_logarithm_of_the_line() {
    for (few, many) in [(1, 1), (100, 10_000), (100, 100_000)] {
        let (short, long) = (cost(100, few), cost(100_000, many));
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

/// What can happen to a line.
#[derive(Clone, Debug)]
enum Event {
    Come {
        client: usize,
        tenant: usize,
    },
    /// The so-manieth of those that wait goes.
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

/// Lets all of this happen and returns the line and who waits.
fn after(events: &[Event], weights: [u32; 4]) -> (FairQueue<(u64, String)>, Vec<QueueEntry>) {
    let mut line = FairQueue::new();
    let mut waiting = Vec::<QueueEntry>::new();
    for (number, event) in (1..).zip(events) {
        match event {
            Event::Come { client, tenant } => {
                let (client, weight, tenant) = who((*client, *tenant), weights);
                let entry = entry(number, (client, weight, &tenant));
                line.push(entry.clone(), (number, client.to_owned()));
                waiting.push(entry);
            }
            Event::Go(which) if !waiting.is_empty() => {
                let entry = waiting.remove(which % waiting.len());
                assert_eq!(
                    line.remove(&entry).map(|(place, _)| Place(place)),
                    Some(entry.place)
                );
            }
            Event::Go(_) => {}
            Event::Serve => {
                // Work conserving: whenever somebody waits, somebody is served.
                let served = line.pop();
                assert_eq!(served.is_some(), !waiting.is_empty());
                waiting.retain(|entry| {
                    Some(entry.place.0) != served.as_ref().map(|(place, _)| *place)
                });
            }
        }
        assert_eq!(line.len(), waiting.len());
    }
    (line, waiting)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// The number of calls before a newcomer is exact when nobody comes after it.
    #[test]
    fn a_newcomers_forecast_comes_true(
        events in proptest::collection::vec(event(), 0..120),
        weights in [1..9_u32, 1..9_u32, 1..9_u32, 1..9_u32],
        new in (0..4_usize, 0..5_usize),
    ) {
        let (mut line, _) = after(&events, weights);
        let (client, weight, tenant) = who(new, weights);
        let entry = entry(1_000_000, (client, weight, &tenant));
        let ahead = line.ahead_of_new(&entry);
        line.push(entry, (1_000_000, client.to_owned()));
        prop_assert_eq!(places(&mut line).iter().position(|place| *place == 1_000_000), Some(ahead));
    }

    /// Going through the line without serving sees the order of service.
    #[test]
    fn sifting_goes_in_the_order_of_service(
        events in proptest::collection::vec(event(), 0..120),
        weights in [1..9_u32, 1..9_u32, 1..9_u32, 1..9_u32],
    ) {
        let (mut line, waiting) = after(&events, weights);
        let mut order = Vec::new();
        let gone = sift(&mut line, |ahead, (place, _)| {
            assert_eq!(ahead, order.len());
            order.push(*place);
            true
        });
        prop_assert!(gone.is_empty());
        prop_assert_eq!(order.len(), waiting.len());
        prop_assert_eq!(places(&mut line), order);
    }

    /// Nobody starves: between two turns of a client that waits, no other gets more than its share, plus one.
    #[test]
    fn every_client_that_waits_has_its_share(
        events in proptest::collection::vec(event(), 0..200),
        weights in [1..9_u32, 1..9_u32, 1..9_u32, 1..9_u32],
    ) {
        let (mut line, _) = after(&events, weights);
        let mut left: Vec<usize> = NAMES.iter().map(|name| line.of_client(&ClientId::new(*name))).collect();
        let mut since = [[0_usize; 4]; 4];
        while let Some((_, client)) = line.pop() {
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
