//! Slots in simulated time, with a store whose clock shows microseconds since `START`.

use std::num::NonZeroU32;

use super::*;

const MS: Duration = Duration::from_millis(1);
const START: u64 = 1_000_000_000;

/// A lane, its store's clock, and the way there.
struct Harness {
    start: Instant,
    slots: Slots,
}

// === impl Harness ===

impl Harness {
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

    /// The store deals, at `dealt`, a slot of that date for a request of `sent`. The answer arrives
    /// at `received`.
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
    let mut harness = Harness::new();
    assert_eq!(harness.request(2, [0, 0, 0]), SlotTiming::Fine);
    let slot = harness.slots.take(harness.at(0)).unwrap();
    assert!(
        harness.slots.is_usable(&slot, harness.at(15))
            && !harness.slots.is_usable(&slot, harness.at(16))
    );
    assert!(harness.slots.written(slot, harness.at(15), harness.at(15)));
    assert!(
        harness.slots.take(harness.at(16)).is_none(),
        "the other one is too late"
    );
    assert!(
        harness.slots.has_unused()
            && matches!(harness.slots.wait(1, harness.at(16)), Wait::SendRequest)
    );
}

#[test]
fn slots_beyond_the_bound_are_given_back_with_the_next_request() {
    let mut harness = Harness::new();
    harness.request(GIVEN_BACK + 30, [0, 0, 0]);
    let mut given_back = Vec::new();
    for sent in [20, 21] {
        assert!(
            harness.slots.take(harness.at(sent)).is_none(),
            "all are too late"
        );
        assert_eq!(harness.slots.wait(100, harness.at(sent)), Wait::SendRequest);
        let request = harness.slots.next_request(100, harness.at(sent));
        let view = View {
            now: Harness::store(sent),
            usable: 5,
            away: 1_020_000,
            next_request_after: 100_000,
            ..View::default()
        };
        let answer = Answer {
            view,
            sent: harness.at(sent),
            received: harness.at(sent),
        };
        harness
            .slots
            .answered(request.number, &answer, harness.at(sent));
        given_back.push(request.unused.len());
    }
    assert_eq!(given_back, [GIVEN_BACK, 30]);
    assert_eq!(
        harness.slots.wait(100, harness.at(21)),
        Wait::Until(harness.at(121)),
        "then when the store says"
    );
}

#[test]
fn a_store_at_any_distance_is_usable_from_its_second_answer() {
    for distance in [0, 5, 20, 100, 400] {
        for there in [0, distance / 2, distance] {
            let mut harness = Harness::new();
            let mut served = 0;
            for request in 0..10 {
                let sent = request * 1000;
                harness.request(1, [sent, sent + there, sent + distance]);
                let now = harness.at(sent + distance);
                if let Some(slot) = harness.slots.take(now) {
                    assert!(harness.slots.written(slot, now, now));
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
        let mut harness = Harness::new();
        let mut sent = 0;
        for _ in 0..50 {
            sent += random.u32(0..3000);
            let there = random.u32(0..150);
            let back = random.u32(0..150);
            harness.request(1, [sent, sent + there, sent + there + back]);
            sent += there + back + random.u32(0..40);
            while let Some(slot) = harness.slots.take(harness.at(sent)) {
                let used = Harness::store(sent);
                assert!(
                    slot.dated.at <= used && used <= slot.dated.at + slot.dated.slack,
                    "seed {seed}"
                );
                harness
                    .slots
                    .written(slot, harness.at(sent), harness.at(sent));
            }
            harness.slots.give_back_all();
        }
    }
}

#[test]
fn a_store_that_becomes_slower_is_usable_again_from_its_second_answer() {
    let mut harness = Harness::new();
    harness.request(1, [0, 0, 0]);
    let timing: Vec<_> = (1..=6)
        .map(|i| harness.request(1, [i * 1000, i * 1000, i * 1000 + 240]))
        .collect();
    assert_eq!(
        (timing[0], &timing[1..]),
        (SlotTiming::TooLate, &[SlotTiming::Fine; 5][..])
    );
}

#[test]
fn a_store_whose_answers_become_ever_slower_is_too_far_away() {
    let mut harness = Harness::new();
    let timing: Vec<_> = (0..6)
        .map(|i| harness.request(1, [i * 3000, i * 3000, i * 3000 + 400 * i]))
        .collect();
    assert_eq!(
        (timing[0], timing[1], timing[5]),
        (SlotTiming::Fine, SlotTiming::TooLate, SlotTiming::TooFar)
    );
    assert_eq!(
        harness.request(0, [19_000, 19_000, 19_900]),
        SlotTiming::Fine,
        "no slot, no judgement"
    );
    assert_eq!(
        harness.request(1, [20_000, 20_000, 20_100]),
        SlotTiming::Fine
    );
}

#[test]
fn after_a_late_use_no_slot_is_used_before_the_store_confirms_it() {
    let mut harness = Harness::new();
    harness.request(2, [0, 0, 0]);
    let [late, held] = [0, 0].map(|at| harness.slots.take(harness.at(at)).unwrap());
    // A question is under way that does not carry the report.
    let without = harness.slots.next_request(3, harness.at(5));
    assert!(!harness.slots.written(late, harness.at(30), harness.at(31)));
    assert!(
        !harness.slots.is_usable(&held, harness.at(10))
            && harness.slots.take(harness.at(10)).is_none()
    );
    harness.answer(&without, [5, 32, 33]);
    assert!(
        harness.slots.take(harness.at(33)).is_none(),
        "it was dealt without knowing of it"
    );
    assert!(
        matches!(harness.slots.wait(0, harness.at(33)), Wait::SendRequest),
        "also if no call waits"
    );
    let report = harness.slots.next_request(1, harness.at(34));
    // What the clocks may have parted by is added.
    let used: Vec<_> = report
        .late
        .iter()
        .map(|late| late.used - Harness::store(30))
        .collect();
    assert!(used[..] == [6], "{used:?}");
    assert_eq!(report.unused.len(), 3);
    assert!(harness.slots.take(harness.at(34)).is_none() && !harness.slots.at_rest());
    // The answer is lost: it is reported again.
    harness.slots.unanswered(report.number, harness.at(84));
    let again = harness.slots.next_request(1, harness.at(84));
    assert_eq!(again.late, report.late);
    harness.answer(&again, [84, 84, 84]);
    assert!(harness.slots.take(harness.at(84)).is_some());
}

#[test]
fn a_request_is_withdrawn_when_no_call_waits() {
    let mut harness = Harness::new();
    let request = harness.slots.next_request(9, harness.at(0));
    let view = View {
        now: START,
        wanted: 4,
        usable: 5,
        next_request_after: 100_000,
        ..View::default()
    };
    let answer = Answer {
        view,
        sent: harness.at(0),
        received: harness.at(0),
    };
    harness
        .slots
        .answered(request.number, &answer, harness.at(0));
    assert!(
        harness.slots.has_unused(),
        "the store means to deal four more"
    );
    assert_eq!(harness.slots.next_request(0, harness.at(1)).wanted, 0);
    harness.slots.unanswered(2, harness.at(50));
    assert!(!harness.slots.has_unused() && harness.slots.at_rest());
}

#[test]
fn a_request_with_an_old_pace_is_repeated_immediately() {
    let mut harness = Harness::new();
    let request = harness.slots.next_request(1, harness.at(0));
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
        sent: harness.at(0),
        received: harness.at(1),
    };
    harness
        .slots
        .answered(request.number, &answer, harness.at(1));
    assert!(matches!(
        harness.slots.wait(1, harness.at(1)),
        Wait::SendRequest
    ));
}

#[test]
fn a_request_gives_back_a_bounded_number_of_slots() {
    let mut harness = Harness::new();
    harness.request(200, [0, 0, 0]);
    let given: Vec<_> = (1..=5)
        .map(|at| harness.slots.next_request(0, harness.at(at)).unused.len())
        .collect();
    assert_eq!(given, [64, 64, 64, 8, 0]);
}

#[test]
fn of_reordered_answers_the_latest_view_is_used() {
    let mut harness = Harness::new();
    let view = |now, usable| View {
        now,
        usable,
        away: 1_000_000,
        share: 1_000_000,
        ..View::default()
    };
    let mut hear = |view: View| {
        let number = harness.slots.next_request(1, harness.at(0)).number;
        let now = harness.at(1);
        harness.slots.answered(
            number,
            &Answer {
                view: view.clone(),
                sent: harness.at(0),
                received: now,
            },
            now,
        );
        (harness.slots.is_latest(&view), harness.slots.rate())
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
