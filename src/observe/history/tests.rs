//! The history with invented lanes and times.

use super::*;

fn labels(account: usize) -> LaneLabels {
    (
        AccountId::new(format!("account-{account:06}")),
        ActionName::new("CreateFlow"),
    )
}

fn activity(labels: &LaneLabels, granted: u64, queued: usize) -> LaneActivity<'_> {
    LaneActivity {
        labels,
        limit_per_second: 5.0,
        granted,
        throttled: 0,
        queued,
        paused: Paused::No,
    }
}

/// What the history adds up to.
fn sum(counts: &[Option<u64>]) -> u64 {
    counts.iter().flatten().sum()
}

struct Clock {
    start: Instant,
    history: History,
}

impl Clock {
    fn new() -> Self {
        let start = Instant::now();
        Self {
            start,
            history: History::new(start),
        }
    }

    /// Ends the open slot at this second.
    fn close(&self, second: u64) {
        self.history
            .close(self.start + Duration::from_secs(second), Ended::default());
    }

    fn view(&self, second: u64) -> HistoryView {
        self.history.view(self.start + Duration::from_secs(second))
    }
}

#[test]
fn a_sample_has_what_happened_in_its_interval_and_idle_intervals_are_zero() {
    let clock = Clock::new();
    assert!(clock.view(1).total.queued.is_empty());
    let acme = labels(0);
    clock.history.add(&activity(&acme, 20, 0));
    clock.history.add(&LaneActivity {
        throttled: 2,
        paused: Paused::AfterThrottle,
        ..activity(&acme, 5, 7)
    });
    clock.close(5);
    clock.close(10);
    let view = clock.view(11);
    assert_eq!((view.interval_seconds, view.newest_seconds_ago), (5, 1.0));
    assert_eq!(view.total.granted_per_second, [Some(5.0), Some(0.0)]);
    assert_eq!(view.total.limit_per_second, [Some(5.0), Some(0.0)]);
    assert_eq!(view.total.queued, [Some(7), Some(0)]);
    assert_eq!(view.total.throttled, [Some(2), Some(0)]);
    assert_eq!(view.total.paused_lanes, [Some(1), Some(0)]);
    let [lane] = &view.lanes[..] else {
        panic!("{view:?}")
    };
    assert_eq!(
        (&*lane.account, &*lane.action),
        ("account-000000", "CreateFlow")
    );
    assert_eq!(lane.limit_per_second, 5.0);
    assert_eq!(lane.granted_per_second, [Some(5.0), Some(0.0)]);
    assert_eq!(lane.queued, [Some(7), Some(0)]);
    assert_eq!(lane.throttled, [Some(2), Some(0)]);
    assert_eq!(lane.paused, [Some(1), Some(0)]);
}

#[test]
fn the_calls_that_ended_are_counted_by_outcome() {
    let clock = Clock::new();
    let mut ended = Ended::default();
    for (second, ok, refused) in [(5, 10, 0), (10, 12, 3)] {
        ended[Outcome::Ok as usize] = ok;
        ended[Outcome::Refused as usize] = refused;
        clock
            .history
            .close(clock.start + Duration::from_secs(second), ended);
    }
    let view = clock.view(10);
    assert_eq!(view.total.ended["ok"], [Some(10), Some(2)]);
    assert_eq!(view.total.ended["refused"], [Some(0), Some(3)]);
    assert_eq!(view.total.ended.len(), Outcome::ALL.len());
}

#[test]
fn a_second_close_in_the_same_interval_changes_nothing() {
    let clock = Clock::new();
    clock.close(5);
    clock.history.add(&activity(&labels(0), 3, 0));
    for second in [5, 6, 9] {
        clock.close(second);
        assert_eq!(clock.view(second).total.queued.len(), 1);
    }
    clock.close(10);
    assert_eq!(
        clock.view(10).total.granted_per_second,
        [Some(0.0), Some(0.6)]
    );
}

#[test]
fn the_oldest_sample_is_replaced_after_15_minutes() {
    let clock = Clock::new();
    let acme = labels(0);
    for slot in 0..=SAMPLES {
        clock.history.add(&activity(&acme, 0, slot + 1));
        clock.close(5 * (slot as u64 + 1));
        assert_eq!(clock.view(0).total.queued.len(), (slot + 1).min(SAMPLES));
    }
    let view = clock.view(0);
    let expected: Vec<_> = (2..).take(SAMPLES).map(Some).collect();
    assert_eq!(view.total.queued, expected);
    let expected: Vec<_> = (2..).take(SAMPLES).map(Some).collect();
    assert_eq!(view.lanes[0].queued, expected);
}

#[test]
fn a_pause_of_the_process_leaves_a_gap_and_the_sample_after_it_covers_the_whole_time() {
    let clock = Clock::new();
    let acme = labels(0);
    clock.history.add(&activity(&acme, 10, 0));
    clock.close(5);
    clock.history.add(&activity(&acme, 10, 0));
    clock.close(25);
    let view = clock.view(25);
    let expected = [Some(2.0), None, None, None, Some(0.5)];
    assert_eq!(view.total.granted_per_second, expected);
    assert_eq!(view.lanes[0].granted_per_second, expected);
    assert_eq!(view.lanes[0].paused, [Some(0), None, None, None, Some(0)]);
}

#[test]
fn nothing_older_is_left_after_a_pause_of_more_than_15_minutes() {
    let clock = Clock::new();
    let acme = labels(0);
    for slot in 1..=100 {
        clock.history.add(&activity(&acme, 10, 3));
        clock.close(5 * slot);
    }
    clock.history.add(&activity(&acme, 1, 0));
    clock.close(100 * 3600);
    let view = clock.view(100 * 3600);
    assert_eq!(view.total.queued.len(), SAMPLES);
    assert_eq!(sum(&view.total.queued), 0);
    assert_eq!(view.total.queued.iter().flatten().count(), 1);
    assert_eq!(view.lanes[0].queued.iter().flatten().count(), 1);
}

#[test]
fn of_100_000_lanes_the_busiest_are_kept_and_all_are_in_the_total() {
    let clock = Clock::new();
    let all: Vec<_> = (0..100_000).map(labels).collect();
    for slot in 1..=3 {
        for (number, labels) in all.iter().enumerate() {
            let queued = if number.is_multiple_of(5000) { 100 } else { 0 };
            clock.history.add(&activity(labels, 1, queued));
        }
        clock.close(5 * slot);
    }
    let view = clock.view(15);
    assert_eq!(view.total.granted_per_second, [Some(20_000.0); 3]);
    assert_eq!(view.total.limit_per_second, [Some(500_000.0); 3]);
    assert_eq!(view.total.queued, [Some(2000); 3]);
    assert_eq!(view.lanes.len(), LANES);
    let crowded = view.lanes.iter().filter(|lane| lane.queued[2] == Some(100));
    assert_eq!(crowded.count(), 20);
    let slots = clock.history.0.lock();
    assert_eq!((slots.lanes.len(), slots.newcomers.len()), (LANES, 0));
}

#[test]
fn a_lane_with_one_call_does_not_replace_a_lane_with_a_past() {
    let clock = Clock::new();
    let all: Vec<_> = (0..=LANES).map(labels).collect();
    for labels in &all[..LANES] {
        clock.history.add(&activity(labels, 2, 0));
    }
    clock.close(5);
    clock.history.add(&activity(&all[LANES], 1, 0));
    clock.close(10);
    let is_kept = |view: &HistoryView| {
        view.lanes
            .iter()
            .any(|lane| lane.account == "account-000040")
    };
    assert!(!is_kept(&clock.view(10)));
    clock.history.add(&activity(&all[LANES], 5, 20));
    clock.close(15);
    assert!(is_kept(&clock.view(15)));
    assert_eq!(clock.view(15).lanes.len(), LANES);
}

#[test]
fn a_lane_is_dropped_15_minutes_after_its_last_call_but_not_while_it_is_paused() {
    let clock = Clock::new();
    let (acme, paused) = (labels(0), labels(1));
    clock.history.add(&activity(&acme, 1, 0));
    let mut lanes = Vec::new();
    for slot in 1..=SAMPLES as u64 + 1 {
        clock.history.add(&LaneActivity {
            paused: Paused::ByOperator,
            ..activity(&paused, 0, 0)
        });
        clock.close(5 * slot);
        lanes.push(clock.view(5 * slot).lanes.len());
    }
    assert_eq!(lanes[SAMPLES - 1..], [2, 1]);
    assert_eq!(clock.view(0).lanes[0].paused[0], Some(2));
}
