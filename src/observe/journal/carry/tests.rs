//! Which lines are carried, and what a failure or a crash leaves.

use super::*;
use crate::config;
use crate::observe::journal::file::older;
use crate::observe::journal::open::{KeyedAttempt, keyed, read};
use crate::observe::journal::writer::Sink;
use crate::observe::journal::{RotatingFile, line};
use crate::observe::metrics::{Metrics, Scrape};
use bytes::Bytes;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A journal in a folder of its own.
struct CarryTest {
    folder: tempfile::TempDir,
    now: SystemTime,
}

/// How an attempt is told to the journal.
fn sent(name: &str, kind: OrderKind, has_key: bool, at: SystemTime) -> String {
    let line = Line::Sent(SentLine {
        time: line::time(at).into(),
        attempt: name.into(),
        request_id: "REQUEST".into(),
        account: "acme".into(),
        client: "team-a".into(),
        tenant: None,
        action: "CreateFlow".into(),
        flow_name: Some(name.into()),
        key: has_key.then(|| format!("key-of-{name}").into()),
        print: has_key.then(|| "print".into()),
        kind,
        space: None,
        categories: Vec::new(),
        unprotected: false,
    });
    String::from_utf8(line.to_bytes()).unwrap()
}

fn done(name: &str, outcome: Outcome, flow_id: Option<&str>, at: SystemTime) -> String {
    let line = Line::Done(DoneLine {
        time: line::time(at).into(),
        attempt: name.into(),
        outcome,
        flow_id: flow_id.map(Into::into),
        ..DoneLine::default()
    });
    String::from_utf8(line.to_bytes()).unwrap()
}

fn resolved(name: &str, result: ResolvedAs, flow_id: Option<&str>, at: SystemTime) -> String {
    let line = Line::Resolved(ResolvedLine {
        time: line::time(at).into(),
        attempt: name.into(),
        result,
        flow_id: flow_id.map(Into::into),
        found: None,
    });
    String::from_utf8(line.to_bytes()).unwrap()
}

// === impl CarryTest ===

impl CarryTest {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            now: SystemTime::now(),
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("journal")
    }

    fn keyed(&self, name: &str) -> String {
        sent(name, OrderKind::Keyed, true, self.now)
    }

    fn created(&self, name: &str) -> String {
        self.keyed(name) + &done(name, Outcome::Ok, Some("1"), self.now)
    }

    /// Carries the keys of a dropped file with this text. Returns all that are carried.
    fn carry(&self, text: &str) -> String {
        std::fs::write(dropped(&self.path()), text).unwrap();
        self.carry_again();
        assert!(!dropped(&self.path()).exists());
        assert!(!with_suffix(&self.path(), ".keys.new").exists());
        self.keys()
    }

    fn carry_again(&self) {
        carry(&self.path(), DAY, self.now).unwrap();
    }

    fn keys(&self) -> String {
        std::fs::read_to_string(keys(&self.path())).unwrap()
    }

    /// The names of the attempts that a later process finds.
    fn found(&self) -> Vec<String> {
        let attempts: Vec<KeyedAttempt> = keyed(&self.path(), false).unwrap().attempts;
        attempts.into_iter().map(|it| it.attempt).collect()
    }
}

#[test]
fn finished_keys_and_unknown_outcomes_are_carried_with_all_their_lines() {
    let test = CarryTest::new();
    let now = test.now;
    let kept = [
        test.created("created"),
        test.keyed("without-an-end"),
        test.keyed("unknown") + &done("unknown", Outcome::Unknown, None, now),
        test.keyed("no-flow-id") + &done("no-flow-id", Outcome::Ok, None, now),
        test.keyed("found")
            + &done("found", Outcome::Unknown, None, now)
            + &resolved("found", ResolvedAs::Created, Some("2"), now),
        test.keyed("ambiguous")
            + &done("ambiguous", Outcome::Unknown, None, now)
            + &resolved("ambiguous", ResolvedAs::Ambiguous, None, now),
        sent("equal", OrderKind::Equal, true, now),
    ];
    assert_eq!(test.carry(&kept.concat()), kept.concat());
    let metadata = std::fs::metadata(keys(&test.path())).unwrap();
    let mode = std::os::unix::fs::MetadataExt::mode(&metadata);
    assert_eq!(mode & 0o777, MODE);
}

#[test]
fn what_has_created_nothing_or_has_no_key_is_not_carried() {
    let test = CarryTest::new();
    let now = test.now;
    let dead = [
        test.keyed("refused") + &done("refused", Outcome::UpstreamError, None, now),
        test.keyed("throttled") + &done("throttled", Outcome::Throttled, None, now),
        test.keyed("unsent") + &done("unsent", Outcome::Unsent, None, now),
        test.keyed("absent")
            + &done("absent", Outcome::Unknown, None, now)
            + &resolved("absent", ResolvedAs::Absent, None, now),
        test.keyed("not-created")
            + &done("not-created", Outcome::Unknown, None, now)
            + &resolved("not-created", ResolvedAs::Settled, None, now),
        test.keyed("forgotten") + &resolved("forgotten", ResolvedAs::Forgotten, None, now),
        sent("without-a-key", OrderKind::Keyed, false, now),
        sent("single", OrderKind::Single, true, now) + &done("single", Outcome::Ok, Some("1"), now),
        done("of-an-earlier-file", Outcome::Ok, Some("1"), now),
        "damaged\n\n".to_owned(),
    ];
    assert_eq!(test.carry(&dead.concat()), "");
}

#[test]
fn the_last_line_of_an_attempt_says_whether_it_is_carried() {
    let test = CarryTest::new();
    let now = test.now;
    let lost = |name: &str| test.keyed(name) + &done(name, Outcome::Unknown, None, now);
    let created = |name: &str| resolved(name, ResolvedAs::Created, Some("1"), now);
    let settled = |name: &str| resolved(name, ResolvedAs::Settled, None, now);
    let made = lost("made") + &settled("made") + &created("made");
    let unmade = lost("unmade") + &created("unmade") + &settled("unmade");
    let carried = test.carry(&(made + &unmade));
    assert_eq!(carried, lost("made") + &created("made"));
}

#[test]
fn keys_are_carried_until_they_are_old() {
    let test = CarryTest::new();
    let ago = |age: Duration| test.now - age;
    let created = |name: &str, age| {
        sent(name, OrderKind::Keyed, true, ago(age)) + &done(name, Outcome::Ok, Some("1"), ago(age))
    };
    let unknown = |name: &str, age| sent(name, OrderKind::Keyed, true, ago(age));
    let young = created("a", DAY - HOUR) + &unknown("b", 7 * DAY - HOUR);
    let old = created("c", DAY + HOUR) + &unknown("d", 7 * DAY + HOUR);
    assert_eq!(test.carry(&(old + &young)), young);
    // What was young then is old now.
    carry_later(&test, 2 * HOUR);
    assert_eq!(test.keys(), "");
}

fn carry_later(test: &CarryTest, by: Duration) {
    std::fs::write(dropped(&test.path()), "").unwrap();
    carry(&test.path(), DAY, test.now + by).unwrap();
}

#[test]
fn an_end_in_a_later_file_belongs_to_the_carried_line() {
    let test = CarryTest::new();
    let now = test.now;
    let open = [test.keyed("a"), test.keyed("b"), test.keyed("c")].concat();
    assert_eq!(test.carry(&open), open);
    let ends = done("a", Outcome::Ok, Some("1"), now) + &done("b", Outcome::Throttled, None, now);
    std::fs::write(test.path(), &ends).unwrap();
    let open: Vec<_> = keyed(&test.path(), false)
        .unwrap()
        .attempts
        .into_iter()
        .map(|it| it.end.map(|end| end.outcome))
        .collect();
    assert_eq!(open, [Some(Outcome::Ok), Some(Outcome::Throttled), None]);
    let lines = test.carry(&ends);
    let [a, c] = ["a", "c"].map(|name| test.keyed(name));
    assert_eq!(lines, a + &c + &done("a", Outcome::Ok, Some("1"), now));
}

#[test]
fn after_a_crash_before_the_dropped_file_was_removed_no_line_is_carried_twice() {
    let test = CarryTest::new();
    let text = test.created("a") + &test.keyed("b");
    let carried = test.carry(&text);
    // As if the file had not been removed.
    std::fs::write(test.path(), test.created("c")).unwrap();
    std::fs::write(dropped(&test.path()), &text).unwrap();
    std::fs::write(with_suffix(&test.path(), ".keys.new"), "torn").unwrap();
    assert_eq!(test.found(), ["a", "b", "a", "b", "c"]);
    let content = read(&test.path(), false).unwrap();
    let listed = content.attempts().iter().map(|it| &*it.sent.attempt);
    assert_eq!(listed.collect::<Vec<_>>(), ["b"]);
    test.carry_again();
    assert_eq!(test.keys(), carried);
    assert_eq!(test.found(), ["a", "b", "c"]);
}

#[test]
fn a_dropped_file_is_left_to_the_process_that_carries_its_keys() {
    let test = CarryTest::new();
    std::fs::write(dropped(&test.path()), test.created("a")).unwrap();
    let other = File::open(dropped(&test.path())).unwrap();
    flock(&other, FlockOperation::LockExclusive).unwrap();
    test.carry_again();
    assert!(dropped(&test.path()).exists() && !keys(&test.path()).exists());
    drop(other);
    test.carry_again();
    assert_eq!(test.keys(), test.created("a"));
}

/// A file of at most one line, whose last older one is `path.1`.
fn rotating(test: &CarryTest) -> (RotatingFile, Arc<Carrier>, Arc<Metrics>) {
    let mut file = RotatingFile::open(&config::Journal {
        path: test.path(),
        max_size: 10,
        keep: 1,
    })
    .unwrap();
    let metrics = Arc::new(Metrics::new());
    let health = Arc::new(Health::new(metrics.clone()));
    let carrier = Arc::new(Carrier::new(&test.path(), health));
    file.carry_with(carrier.clone());
    (file, carrier, metrics)
}

fn append(file: &mut RotatingFile, line: String) {
    let written = file.append(&[Bytes::from(line)]);
    assert!(written.error.is_none(), "{written:?}");
}

#[test]
fn no_key_is_lost_over_many_rotations() {
    let test = CarryTest::new();
    let (mut file, carrier, _) = rotating(&test);
    carrier.set_keep(Some(DAY));
    let names: Vec<_> = (0..20).map(|number| number.to_string()).collect();
    for (number, name) in names.iter().enumerate() {
        append(&mut file, test.keyed(name));
        // At some rotations the keys of the last one are still being carried.
        if number % 3 == 0 {
            carrier.wait();
        }
    }
    carrier.wait();
    assert_eq!(test.found(), names);
    assert!(!older(&test.path(), 2).exists());
}

#[test]
fn without_keys_the_oldest_file_is_overwritten() {
    let test = CarryTest::new();
    let (mut file, carrier, _) = rotating(&test);
    carrier.set_keep(None);
    for name in ["a", "b", "c"] {
        append(&mut file, test.keyed(name));
    }
    assert_eq!(test.found(), ["b", "c"]);
    assert!(!keys(&test.path()).exists() && !dropped(&test.path()).exists());
}

#[test]
fn if_keys_cannot_be_carried_the_files_stay_and_it_is_counted_once_in_ten_seconds() {
    let test = CarryTest::new();
    let (mut file, carrier, metrics) = rotating(&test);
    carrier.set_keep(Some(DAY));
    // A file cannot take a folder's name.
    std::fs::create_dir(keys(&test.path())).unwrap();
    for name in ["a", "b", "c", "d", "e"] {
        append(&mut file, test.keyed(name));
        carrier.wait();
    }
    let page = metrics.render(&Scrape::default());
    assert!(page.contains("flowgate_journal_errors_total 1\n"), "{page}");
    assert!(!older(&test.path(), 2).exists());
    std::fs::remove_dir(keys(&test.path())).unwrap();
    assert_eq!(test.found(), ["a", "b", "c", "d", "e"]);
    test.carry_again();
    assert_eq!(test.found(), ["a", "b", "c", "d", "e"]);
    assert_eq!(test.keys(), test.keyed("a"));
}

#[test]
fn files_that_a_larger_number_has_kept_are_dropped_oldest_first() {
    let test = CarryTest::new();
    std::fs::write(older(&test.path(), 3), test.keyed("a")).unwrap();
    std::fs::write(older(&test.path(), 2), test.keyed("b")).unwrap();
    std::fs::write(older(&test.path(), 1), test.keyed("c")).unwrap();
    let (mut file, carrier, _) = rotating(&test);
    carrier.set_keep(Some(DAY));
    for name in ["d", "e", "f", "g"] {
        append(&mut file, test.keyed(name));
        carrier.wait();
        let found = test.found();
        assert!(found.is_sorted() && found[0] == "a", "{found:?}");
    }
    assert_eq!(test.found().len(), 7);
    assert!(!older(&test.path(), 2).exists());
}

#[test]
fn an_answer_after_the_conclusion_of_another_process_is_found_after_a_rotation() {
    let test = CarryTest::new();
    let text = test.keyed("a") + &resolved("a", ResolvedAs::Absent, None, test.now);
    test.carry(&text);
    std::fs::write(test.path(), done("a", Outcome::Ok, Some("9"), test.now)).unwrap();
    let attempts = keyed(&test.path(), false).unwrap().attempts;
    let known: Vec<_> = attempts.iter().map(KeyedAttempt::known).collect();
    assert_eq!(known, [Known::Created]);
}

#[test]
fn what_one_process_finds_ambiguous_does_not_replace_how_another_one_has_ended_it() {
    let test = CarryTest::new();
    let word = resolved("a", ResolvedAs::Settled, Some("9"), test.now);
    let ambiguous = resolved("a", ResolvedAs::Ambiguous, None, test.now);
    let text = test.keyed("a") + &word + &ambiguous;
    let carried = test.keyed("a") + &word;
    assert_eq!(test.carry(&text), carried);
    std::fs::write(test.path(), &text).unwrap();
    let attempts = keyed(&test.path(), false).unwrap().attempts;
    let known: Vec<_> = attempts.iter().map(KeyedAttempt::known).collect();
    assert!(known.iter().all(|known| *known == Known::Created));
    let listed = read(&test.path(), true).unwrap();
    assert!(listed.is_settled());
    // A word ends what was ambiguous.
    let text =
        test.keyed("b") + &ambiguous.replace("\"a\"", "\"b\"") + &word.replace("\"a\"", "\"b\"");
    std::fs::write(test.path(), &text).unwrap();
    assert!(read(&test.path(), true).unwrap().is_settled());
}
