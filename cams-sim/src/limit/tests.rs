//! Tests of `limit`.

use super::*;

const MS: Duration = Duration::from_millis(1);

/// Which of the calls at these milliseconds pass.
fn passed(limit: Limit, calls: &[u32]) -> Vec<u32> {
    let start = Instant::now();
    let mut limits = Limits::new(&BTreeMap::from([("A".to_owned(), limit)]), start);
    calls
        .iter()
        .copied()
        .filter(|at| limits.admit("acme", "A", start + MS * *at).is_ok())
        .collect()
}

fn limit(kind: Kind) -> Limit {
    Limit {
        kind,
        ..Limit::default()
    }
}

#[test]
fn a_sliding_window_frees_each_place_one_window_after_its_use() {
    let calls = [
        0, 100, 200, 300, 400, 999, 1_000, 1_099, 1_100, 1_101, 1_300,
    ];
    assert_eq!(
        passed(limit(Kind::Sliding), &calls),
        [0, 100, 200, 300, 400, 1_000, 1_100, 1_300]
    );
}

#[test]
fn an_aligned_window_frees_all_places_at_the_tick() {
    let calls = [
        900, 900, 900, 900, 900, 999, 1_000, 1_000, 1_000, 1_000, 1_000, 1_500, 2_000,
    ];
    assert_eq!(
        passed(limit(Kind::Aligned), &calls),
        [
            900, 900, 900, 900, 900, 1_000, 1_000, 1_000, 1_000, 1_000, 2_000
        ]
    );
}

#[test]
fn a_smooth_limit_lets_one_through_each_fifth_of_a_second() {
    assert_eq!(
        passed(
            limit(Kind::Smooth),
            &[0, 1, 199, 200, 300, 399, 400, 1_000, 1_001]
        ),
        [0, 200, 400, 1_000]
    );
}

#[test]
fn refused_calls_count_if_configured() {
    let hammer: Vec<u32> = (0..50).map(|call| call * 100).collect();
    let counting = |kind| Limit {
        refused_count: true,
        ..limit(kind)
    };
    assert_eq!(
        passed(counting(Kind::Sliding), &hammer),
        [0, 100, 200, 300, 400]
    );
    assert_eq!(passed(counting(Kind::Smooth), &hammer), [0]);
    assert_eq!(passed(limit(Kind::Smooth), &hammer).len(), 25);
}

#[test]
fn a_limit_of_zero_refuses_every_call() {
    assert_eq!(
        passed(
            Limit {
                per_window: 0,
                ..Limit::default()
            },
            &[0, 5_000]
        ),
        [0; 0]
    );
}

#[test]
fn actions_without_a_limit_pass_and_accounts_do_not_share() {
    let start = Instant::now();
    let mut limits = Limits::new(
        &BTreeMap::from([(
            "A".to_owned(),
            Limit {
                per_window: 1,
                ..Limit::default()
            },
        )]),
        start,
    );
    let results = [
        ("acme", "A"),
        ("acme", "A"),
        ("other", "A"),
        ("acme", "B"),
        ("acme", "B"),
    ]
    .map(|(account, action)| limits.admit(account, action, start).is_ok());
    assert_eq!(results, [true, false, true, true, true]);
}

#[test]
fn an_outsider_spends_the_same_quota_at_its_own_moments() {
    let start = Instant::now();
    let shared = Limit {
        outsider_every: Some(500 * MS),
        ..Limit::default()
    };
    let mut limits = Limits::new(&BTreeMap::from([("A".to_owned(), shared)]), start);
    let ours = (0..1_000)
        .filter(|call| limits.admit("acme", "A", start + MS * 10 * *call).is_ok())
        .count();
    // Its calls on the full second come before ours, its calls on the half meet a full window.
    assert_eq!((ours, limits.outsiders(start + 9_999 * MS)), (40, 10));
}

#[test]
fn a_new_limit_keeps_what_was_spent() {
    let start = Instant::now();
    let mut limits = Limits::new(&BTreeMap::from([("A".to_owned(), Limit::default())]), start);
    for _ in 0..3 {
        limits.admit("acme", "A", start).unwrap();
    }
    limits.set(
        "A",
        Limit {
            per_window: 4,
            outsider_every: Some(200 * MS),
            ..Limit::default()
        },
        start + 100 * MS,
    );
    // The outsider takes the fourth place at 100 ms.
    let results = [100, 999, 1_000].map(|at| limits.admit("acme", "A", start + MS * at).is_ok());
    assert_eq!(results, [false, false, true]);
}

#[test]
fn hints_are_exact_and_rounded_up() {
    for (kind, wait) in [
        (Kind::Sliding, 901),
        (Kind::Aligned, 801),
        (Kind::Smooth, 101),
    ] {
        let start = Instant::now();
        let hinting = Limit {
            hints: true,
            ..limit(kind)
        };
        let mut limits = Limits::new(&BTreeMap::from([("A".to_owned(), hinting)]), start);
        for _ in 0..5 {
            limits.admit("acme", "A", start + 100 * MS).ok();
        }
        let refused = limits.admit("acme", "A", start + 200 * MS - Duration::from_micros(500));
        assert_eq!(
            refused,
            Err(Hints {
                acs_retry_after_ms: Some(wait),
                ..Hints::default()
            }),
            "{kind:?}"
        );
    }
}
