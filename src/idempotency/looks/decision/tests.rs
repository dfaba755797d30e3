//! Tables of what a look has found, and what that proves.

use std::time::Duration;

use super::*;

/// A case that can be changed field by field.
struct Case {
    flows: Vec<ListedFlow>,
    is_whole: bool,
    is_unfiltered: bool,
    status: FlowStatus,
    others: Others,
    /// Seconds from the time after which nothing is executed any more to the begin of the listing.
    since_settled: i64,
    /// Seconds from the end of the earlier sweep to the begin of this one.
    since_sweep: Option<u64>,
}

const NOT_PROVEN: Verdict = Verdict::Missing {
    shows_absence: false,
};
const FIRST_SWEEP: Verdict = Verdict::Missing {
    shows_absence: true,
};

fn flow(id: &str, name: &str, categories: &[&str]) -> ListedFlow {
    ListedFlow {
        id: id.into(),
        name: name.into(),
        categories: categories.iter().map(|text| (*text).to_owned()).collect(),
    }
}

/// A flow that Flowgate has created in the space before.
fn known() -> ListedFlow {
    flow("1", "Another", &["OTHER"])
}

fn welcome(id: &str) -> ListedFlow {
    flow(id, "Welcome", &["SIGN_UP", "OTHER"])
}

fn others(others: fn(&mut Others)) -> Others {
    let mut changed = Others::default();
    others(&mut changed);
    changed
}

impl Case {
    /// The wanted flow is in the list and nothing contradicts.
    fn found() -> Self {
        Self {
            flows: vec![known(), welcome("7")],
            is_whole: true,
            is_unfiltered: false,
            status: FlowStatus::Draft,
            others: Others::default(),
            since_settled: -1000,
            since_sweep: None,
        }
    }

    /// The second of two sweeps that show no flow.
    fn absent() -> Self {
        Self {
            flows: vec![known()],
            is_unfiltered: true,
            status: FlowStatus::NotAsked,
            since_settled: 30,
            since_sweep: Some(30),
            ..Self::found()
        }
    }

    fn verdict(self) -> Verdict {
        let categories = ["OTHER".to_owned(), "SIGN_UP".to_owned()];
        let wanted = Wanted {
            name: "Welcome",
            categories: &categories,
        };
        let listing = Listing {
            flows: self.flows,
            is_whole: self.is_whole,
            is_unfiltered: self.is_unfiltered,
        };
        let base = Instant::now();
        let began = base + Duration::from_secs(10_000);
        let settled_at = 10_000u64.checked_add_signed(-self.since_settled).unwrap();
        decide(&Evidence {
            wanted,
            listing: &listing,
            status: self.status,
            others: self.others,
            made_here: &["0".into(), "1".into()],
            began,
            settled_at: base + Duration::from_secs(settled_at),
            earlier_sweep: self
                .since_sweep
                .map(|since| began - Duration::from_secs(since)),
        })
    }
}

#[test]
fn one_draft_of_the_same_name_and_categories_is_the_flow() {
    let created = Verdict::Created("7".into());
    assert_eq!(Case::found().verdict(), created);
    let unfiltered = Case {
        is_unfiltered: true,
        since_settled: 30,
        ..Case::found()
    };
    assert_eq!(unfiltered.verdict(), created);
    let near_names_do_not_matter = Case {
        flows: vec![welcome("7"), flow("8", "welcome ", &["SIGN_UP"])],
        ..Case::found()
    };
    assert_eq!(near_names_do_not_matter.verdict(), created);
    let doubled_category = Case {
        flows: vec![flow("7", "Welcome", &["SIGN_UP", "OTHER", "SIGN_UP"])],
        ..Case::found()
    };
    assert_eq!(doubled_category.verdict(), created);
}

#[test]
fn what_contradicts_unique_names_is_ambiguous() {
    let cases = [
        (
            "several flows",
            Case {
                flows: vec![welcome("7"), welcome("8")],
                ..Case::found()
            },
        ),
        (
            "other categories",
            Case {
                flows: vec![flow("7", "Welcome", &["SIGN_UP"])],
                ..Case::found()
            },
        ),
        (
            "other categories",
            Case {
                flows: vec![flow("7", "Welcome", &[])],
                ..Case::found()
            },
        ),
        (
            "no draft",
            Case {
                status: FlowStatus::Other,
                ..Case::found()
            },
        ),
        (
            "belongs to another order",
            Case {
                others: others(|others| others.have_flow = true),
                ..Case::found()
            },
        ),
        (
            "belongs to another order",
            Case {
                flows: vec![welcome("1")],
                ..Case::found()
            },
        ),
        (
            "unknown outcome, too",
            Case {
                others: others(|others| others.are_unknown = true),
                ..Case::found()
            },
        ),
    ];
    for (part, case) in cases {
        match case.verdict() {
            Verdict::Ambiguous(why) => assert!(why.contains(part), "{why}"),
            other => panic!("{part}: {other:?}"),
        }
    }
}

#[test]
fn a_flow_that_fits_is_found_before_its_status_is_known() {
    let found = Case {
        status: FlowStatus::NotAsked,
        ..Case::found()
    };
    assert_eq!(found.verdict(), Verdict::Found("7".into()));
}

#[test]
fn a_flow_is_not_handed_out_before_everything_is_known() {
    for case in [
        Case {
            is_whole: false,
            ..Case::found()
        },
        Case {
            others: others(|others| others.are_open = true),
            ..Case::found()
        },
    ] {
        assert_eq!(case.verdict(), NOT_PROVEN);
    }
}

#[test]
fn two_sweeps_after_the_last_possible_execution_prove_absence() {
    assert_eq!(Case::absent().verdict(), Verdict::Absent);
    let first = Case {
        since_sweep: None,
        since_settled: 0,
        ..Case::absent()
    };
    assert_eq!(first.verdict(), FIRST_SWEEP);
    let too_soon = Case {
        since_sweep: Some(29),
        ..Case::absent()
    };
    assert_eq!(too_soon.verdict(), FIRST_SWEEP);
}

#[test]
fn without_all_conditions_absence_is_not_proven() {
    let cases = [
        (
            "a request may still be executed",
            Case {
                since_settled: -1,
                ..Case::absent()
            },
        ),
        (
            "the list is filtered",
            Case {
                is_unfiltered: false,
                ..Case::absent()
            },
        ),
        (
            "the list is not whole",
            Case {
                is_whole: false,
                ..Case::absent()
            },
        ),
        (
            "no flow of Flowgate's is shown",
            Case {
                flows: vec![flow("2", "Another", &[])],
                ..Case::absent()
            },
        ),
        (
            "the list is empty",
            Case {
                flows: Vec::new(),
                ..Case::absent()
            },
        ),
        (
            "a name differs by case and blanks",
            Case {
                flows: vec![known(), flow("7", "welcome ", &[])],
                ..Case::absent()
            },
        ),
        (
            "a name may be cut",
            Case {
                flows: vec![known(), flow("7", "Welc", &[])],
                ..Case::absent()
            },
        ),
        (
            "another order of the name is under way",
            Case {
                others: others(|others| others.are_open = true),
                ..Case::absent()
            },
        ),
    ];
    for (why, case) in cases {
        assert_eq!(case.verdict(), NOT_PROVEN, "{why}");
    }
}
