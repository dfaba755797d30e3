//! Slots in simulated time, with a store whose clock shows microseconds since `START`.

use std::num::NonZeroU32;

use super::*;

const MS: Duration = Duration::from_millis(1);
const START: u64 = 1_000_000_000;

/// A lane, its store's clock, and the way there.
struct World {
    start: Instant,
    slots: Slots,
}

// === impl World ===

impl World {
    fn new() -> Self {
        let start = Instant::now();
        let limit = Limit {
            count: NonZeroU32::new(5).unwrap(),
            window: 1000 * MS,
        };
        let slots = Slots::new(&Start {
            limit,
            gap: 5 * MS,
            slack: 15 * MS,
            distance: Duration::ZERO,
            from: start,
        });
        Self { start, slots }
    }

    fn at(&self, ms: u32) -> Instant {
        self.start + ms * MS
    }

    fn store(at: u32) -> u64 {
        START + u64::from(at) * 1000
    }

    /// The store deals at `dealt` what was asked for at `sent`, dated then; the answer is here at `received`.
    fn request(&mut self, wanted: usize, [sent, dealt, received]: [u32; 3]) -> SlotTiming {
        let request = self.slots.next_request(wanted, self.at(sent));
        self.answer(&request, [sent, dealt, received])
    }

    fn answer(&mut self, request: &SlotRequest, [sent, dealt, received]: [u32; 3]) -> SlotTiming {
        let slack = u64::try_from(request.slack.as_micros()).unwrap();
        let at = Self::store(dealt);
        let slot = DatedSlot {
            at,
            back: at + 1_020_000,
            slack,
            probe: false,
        };
        let view = View {
            now: at,
            usable: 5,
            away: 1_020_000,
            share: 1_000_000,
            ..View::default()
        };
        let view = View {
            slots: vec![slot; request.wanted],
            ..view
        };
        let answer = Answer {
            view,
            sent: self.at(sent),
            received: self.at(received),
        };
        self.slots
            .answered(request.number, &answer, self.at(received))
    }
}

#[test]
fn a_slot_may_be_used_from_its_date_until_its_slack_is_over() {
    let mut world = World::new();
    assert_eq!(world.request(2, [0, 0, 0]), SlotTiming::Fine);
    let slot = world.slots.take(world.at(0)).unwrap();
    assert!(
        world.slots.is_usable(&slot, world.at(15)) && !world.slots.is_usable(&slot, world.at(16))
    );
    assert!(world.slots.written(slot, world.at(15), world.at(15)));
    assert!(
        world.slots.take(world.at(16)).is_none(),
        "the other one is too late"
    );
    assert!(
        world.slots.has_unused() && matches!(world.slots.wait(1, world.at(16)), Wait::SendRequest)
    );
}

#[test]
fn slots_beyond_the_bound_are_given_back_with_the_next_request() {
    let mut world = World::new();
    world.request(GIVEN_BACK + 30, [0, 0, 0]);
    let mut given_back = Vec::new();
    for sent in [20, 21] {
        assert!(
            world.slots.take(world.at(sent)).is_none(),
            "all are too late"
        );
        assert_eq!(world.slots.wait(100, world.at(sent)), Wait::SendRequest);
        let request = world.slots.next_request(100, world.at(sent));
        let view = View {
            now: World::store(sent),
            usable: 5,
            away: 1_020_000,
            next_request_after: 100_000,
            ..View::default()
        };
        let answer = Answer {
            view,
            sent: world.at(sent),
            received: world.at(sent),
        };
        world
            .slots
            .answered(request.number, &answer, world.at(sent));
        given_back.push(request.unused.len());
    }
    assert_eq!(given_back, [GIVEN_BACK, 30]);
    assert_eq!(
        world.slots.wait(100, world.at(21)),
        Wait::Until(world.at(121)),
        "then when the store says"
    );
}

#[test]
fn a_store_at_any_distance_is_usable_from_its_second_answer() {
    for distance in [0, 5, 20, 100, 400] {
        for there in [0, distance / 2, distance] {
            let mut world = World::new();
            let mut served = 0;
            for request in 0..10 {
                let sent = request * 1000;
                world.request(1, [sent, sent + there, sent + distance]);
                let now = world.at(sent + distance);
                if let Some(slot) = world.slots.take(now) {
                    assert!(world.slots.written(slot, now, now));
                    served += 1;
                }
            }
            assert!(
                served >= 9,
                "{served} at {distance} ms, of which {there} ms there"
            );
        }
    }
}

#[test]
fn no_slot_is_used_before_its_date_or_after_its_slack_by_the_stores_clock() {
    for seed in 0..300 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut world = World::new();
        let mut sent = 0;
        for _ in 0..50 {
            sent += random.u32(0..3000);
            let there = random.u32(0..150);
            let back = random.u32(0..150);
            world.request(1, [sent, sent + there, sent + there + back]);
            sent += there + back + random.u32(0..40);
            while let Some(slot) = world.slots.take(world.at(sent)) {
                let used = World::store(sent);
                assert!(
                    slot.dated.at <= used && used <= slot.dated.at + slot.dated.slack,
                    "seed {seed}"
                );
                world.slots.written(slot, world.at(sent), world.at(sent));
            }
            world.slots.void();
        }
    }
}

#[test]
fn a_store_that_becomes_slower_is_usable_again_from_its_second_answer() {
    let mut world = World::new();
    world.request(1, [0, 0, 0]);
    let timing: Vec<_> = (1..=6)
        .map(|i| world.request(1, [i * 1000, i * 1000, i * 1000 + 240]))
        .collect();
    assert_eq!(
        (timing[0], &timing[1..]),
        (SlotTiming::TooLate, &[SlotTiming::Fine; 5][..])
    );
}

#[test]
fn a_store_whose_answers_become_ever_slower_is_too_far_away() {
    let mut world = World::new();
    let timing: Vec<_> = (0..6)
        .map(|i| world.request(1, [i * 3000, i * 3000, i * 3000 + 400 * i]))
        .collect();
    assert_eq!(
        (timing[0], timing[1], timing[5]),
        (SlotTiming::Fine, SlotTiming::TooLate, SlotTiming::TooFar)
    );
    assert_eq!(
        world.request(0, [19_000, 19_000, 19_900]),
        SlotTiming::Fine,
        "no slot, no judgement"
    );
    assert_eq!(world.request(1, [20_000, 20_000, 20_100]), SlotTiming::Fine);
}

#[test]
fn after_a_late_use_no_slot_is_used_before_the_store_confirms_it() {
    let mut world = World::new();
    world.request(2, [0, 0, 0]);
    let [late, held] = [0, 0].map(|at| world.slots.take(world.at(at)).unwrap());
    // A question is under way that does not carry the report.
    let without = world.slots.next_request(3, world.at(5));
    assert!(!world.slots.written(late, world.at(30), world.at(31)));
    assert!(
        !world.slots.is_usable(&held, world.at(10)) && world.slots.take(world.at(10)).is_none()
    );
    world.answer(&without, [5, 32, 33]);
    assert!(
        world.slots.take(world.at(33)).is_none(),
        "it was dealt without knowing of it"
    );
    assert!(
        matches!(world.slots.wait(0, world.at(33)), Wait::SendRequest),
        "also if no call waits"
    );
    let report = world.slots.next_request(1, world.at(34));
    // What the clocks may have parted by is added.
    let used: Vec<_> = report
        .late
        .iter()
        .map(|late| late.used - World::store(30))
        .collect();
    assert!(used[..] == [6], "{used:?}");
    assert_eq!(report.unused.len(), 3);
    assert!(world.slots.take(world.at(34)).is_none() && !world.slots.at_rest());
    // The answer is lost: it is reported again.
    world.slots.unanswered(report.number, world.at(84));
    let again = world.slots.next_request(1, world.at(84));
    assert_eq!(again.late, report.late);
    world.answer(&again, [84, 84, 84]);
    assert!(world.slots.take(world.at(84)).is_some());
}

#[test]
fn a_request_is_withdrawn_when_no_call_waits() {
    let mut world = World::new();
    let request = world.slots.next_request(9, world.at(0));
    let view = View {
        now: START,
        wanted: 4,
        usable: 5,
        next_request_after: 100_000,
        ..View::default()
    };
    let answer = Answer {
        view,
        sent: world.at(0),
        received: world.at(0),
    };
    world.slots.answered(request.number, &answer, world.at(0));
    assert!(
        world.slots.has_unused(),
        "the store means to deal four more"
    );
    assert_eq!(world.slots.next_request(0, world.at(1)).wanted, 0);
    world.slots.unanswered(2, world.at(50));
    assert!(!world.slots.has_unused() && world.slots.at_rest());
}

#[test]
fn a_request_with_an_old_pace_is_repeated_immediately() {
    let mut world = World::new();
    let request = world.slots.next_request(1, world.at(0));
    let view = View {
        now: START,
        wanted: 1,
        usable: 5,
        next_request_after: 100_000,
        stale: true,
        ..View::default()
    };
    let answer = Answer {
        view,
        sent: world.at(0),
        received: world.at(1),
    };
    world.slots.answered(request.number, &answer, world.at(1));
    assert!(matches!(
        world.slots.wait(1, world.at(1)),
        Wait::SendRequest
    ));
}

#[test]
fn a_request_gives_back_a_bounded_number_of_slots() {
    let mut world = World::new();
    world.request(200, [0, 0, 0]);
    let given: Vec<_> = (1..=5)
        .map(|at| world.slots.next_request(0, world.at(at)).unused.len())
        .collect();
    assert_eq!(given, [64, 64, 64, 8, 0]);
}

#[test]
fn of_reordered_answers_the_latest_view_is_used() {
    let mut world = World::new();
    let view = |now, usable| View {
        now,
        usable,
        away: 1_000_000,
        share: 1_000_000,
        ..View::default()
    };
    let mut hear = |view: View| {
        let number = world.slots.next_request(1, world.at(0)).number;
        let now = world.at(1);
        world.slots.answered(
            number,
            &Answer {
                view: view.clone(),
                sent: world.at(0),
                received: now,
            },
            now,
        );
        (world.slots.is_latest(&view), world.slots.rate())
    };
    assert_eq!(hear(view(START, 5)), (true, 5.0));
    assert_eq!(hear(view(START + 300, 3)), (true, 3.0));
    assert_eq!(hear(view(START + 200, 4)), (false, 3.0));
    assert_eq!(hear(view(START - 3_600_000, 4)), (false, 3.0));
    assert_eq!(
        hear(view(START - 36_000_000, 4)),
        (true, 4.0),
        "the clock has gone back"
    );
}
