//! The content of the journal and how it is read: pairs across rotations, damage, outages.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use futures_util::future::join_all;
use hyper::StatusCode;
use hyper::header::HeaderMap;
use serde_json::Value;

use super::*;
use crate::call::attempt::note_end;
use crate::call::judge::Verdict;
use crate::cli::journal::as_table;
use crate::observe::metrics::Scrape;
use crate::primitives::id::{AccountId, ActionName, ClientId, TenantId};
use crate::upstream::UpstreamResponse;

/// A journal in a folder of its own.
struct JournalTest {
    folder: tempfile::TempDir,
    metrics: Arc<Metrics>,
    journal: Arc<Journal>,
}

/// A disk that does not answer until the test lets it.
struct SlowDisk {
    go_on: std::sync::mpsc::Receiver<()>,
    file: RotatingFile,
}

impl writer::Sink for SlowDisk {
    fn append(&mut self, lines: &[Bytes]) -> writer::WriteResult {
        // A test that has ended waits for nothing.
        let _gone = self.go_on.recv();
        self.file.append(lines)
    }
}

fn operation() -> Operation {
    Operation {
        account: AccountId::new("acme"),
        known: true,
        client: ClientId::new("team-a"),
        weight: 1,
        tenant: TenantId::new(""),
        action: ActionName::new(CREATE),
        limit: None,
        hold: Duration::from_secs(1),
        wait: Duration::from_secs(1),
    }
}

fn created(flow_id: &str) -> (UpstreamResponse, Verdict) {
    let body = Bytes::from(format!(
        r#"{{"Code":"OK","Data":{{"FlowId":"{flow_id}"}}}}"#
    ));
    let verdict = Verdict::Ok {
        request_id: Some("CAMS-1".to_owned()),
        code: "OK".to_owned(),
    };
    (
        UpstreamResponse {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            body,
        },
        verdict,
    )
}

// === impl JournalTest ===

impl JournalTest {
    fn new(max_size: usize, keep: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = config::Journal {
            path: folder.path().join("journal"),
            max_size,
            keep,
        };
        let metrics = Arc::new(Metrics::new());
        let journal = Arc::new(Journal::open(&config, metrics.clone()).unwrap());
        Self {
            folder,
            metrics,
            journal,
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("journal")
    }

    /// The attempt of a call for a flow of this name.
    fn note(&self, flow_name: &str) -> Note {
        self.journal
            .note(Some(flow_name), &operation(), "REQUEST-1", None)
    }

    fn lines(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path()).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// The names of the flows whose attempts are open.
    fn open(&self) -> Vec<String> {
        let content = read(&self.path(), false).unwrap();
        let attempts = content.attempts().iter();
        attempts
            .map(|attempt| attempt.sent.flow_name.clone().unwrap().into_owned())
            .collect()
    }
}

#[tokio::test]
async fn an_attempt_is_two_lines() {
    let test = JournalTest::new(1 << 20, 1);
    let note = test.note("a\n\"b\"");
    note.sent().await;
    assert_eq!(test.open(), ["a\n\"b\""]);
    let (answer, verdict) = created("3339938380001");
    note_end(&note, Some(&answer), &verdict);
    test.journal.flushed().await;
    let [mut sent, mut done] = <[Value; 2]>::try_from(test.lines()).unwrap();
    for line in [&mut sent, &mut done] {
        let time = line["time"].take();
        let time = time.as_str().unwrap();
        assert!(
            time.len() == "2026-11-24T19:30:00.123Z".len() && time.ends_with('Z'),
            "{time}"
        );
    }
    let attempt = format!("{}-0", test.journal.run);
    let expected = serde_json::json!({
        "event": "sent", "time": null, "attempt": attempt, "request_id": "REQUEST-1", "account": "acme",
        "client": "team-a", "action": "CreateFlow", "flow_name": "a\n\"b\"",
    });
    assert_eq!(sent, expected);
    let expected = serde_json::json!({
        "event": "done", "time": null, "attempt": attempt, "result": "ok", "code": "OK", "cams_request_id": "CAMS-1",
        "flow_id": "3339938380001",
    });
    assert_eq!(done, expected);
    assert_eq!(test.open(), [""; 0]);
}

#[tokio::test]
async fn every_outcome_has_its_name() {
    let test = JournalTest::new(1 << 20, 1);
    let request_id: Option<String> = None;
    let verdicts = [
        Verdict::UpstreamError {
            code: "Product.Unsubscript".to_owned(),
            request_id: request_id.clone(),
        },
        Verdict::Throttled {
            code: "System.LimitControl".to_owned(),
            source: crate::call::judge::ThrottleSource::Body,
            hint: None,
            request_id: request_id.clone(),
        },
        Verdict::Credentials {
            code: "SignatureDoesNotMatch".to_owned(),
            request_id,
        },
        Verdict::Unknown {
            reason: "no complete answer before the timeout",
            request_id: None,
        },
    ];
    verdicts
        .iter()
        .for_each(|verdict| note_end(&test.note("x"), None, verdict));
    test.note("x").unsent();
    test.journal.flushed().await;
    let result = |line: &Value| {
        ["result", "code", "reason"].map(|key| line[key].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(
        test.lines().iter().map(result).collect::<Vec<_>>(),
        [
            ["upstream_error", "Product.Unsubscript", ""],
            ["throttled", "System.LimitControl", ""],
            ["credentials", "SignatureDoesNotMatch", ""],
            ["unknown", "", "no complete answer before the timeout"],
            ["unsent", "", ""],
        ]
    );
}

#[tokio::test]
async fn names_are_capped_and_unknown_keys_are_masked() {
    let test = JournalTest::new(1 << 20, 1);
    let account = AccountId::new("?LTAI-unknown-1");
    let long = "ü".repeat(1000);
    test.journal
        .note(
            Some(&long),
            &Operation {
                account,
                known: false,
                ..operation()
            },
            "R",
            None,
        )
        .sent()
        .await;
    let line = &test.lines()[0];
    assert_eq!(line["account"], "LTAI***-1");
    assert_eq!(line["flow_name"].as_str(), Some(&*"ü".repeat(100)));
}

#[tokio::test]
async fn attempts_are_matched_across_rotations_and_processes() {
    let test = JournalTest::new(4096, 1000);
    let (answer, verdict) = created("1");
    let notes: Vec<_> = (0..200)
        .map(|index| test.note(&format!("flow-{index}")))
        .collect();
    join_all(notes.iter().map(Note::sent)).await;
    let expected: Vec<_> = (0..200)
        .filter(|index| index % 50 == 0)
        .map(|index| format!("flow-{index}"))
        .collect();
    for (index, note) in notes.iter().enumerate() {
        if index % 50 != 0 {
            note_end(note, Some(&answer), &verdict);
        }
    }
    test.journal.flushed().await;
    assert!(file::older(&test.path(), 10).exists(), "many files");
    assert_eq!(test.open(), expected);
    // The next process writes on.
    let config = config::Journal {
        path: test.path(),
        max_size: 4096,
        keep: 1000,
    };
    let next = Arc::new(Journal::open(&config, Arc::new(Metrics::new())).unwrap());
    let note = next.note(Some("next"), &operation(), "R", None);
    note.sent().await;
    assert_eq!(test.open(), [expected, vec!["next".to_owned()]].concat());
    assert!(notes.iter().all(|other| other.attempt != note.attempt));
}

#[tokio::test]
async fn unknown_outcomes_are_listed_on_request() {
    let test = JournalTest::new(1 << 20, 1);
    let note = test.note("lost");
    note.sent().await;
    note_end(
        &note,
        None,
        &Verdict::Unknown {
            reason: "the connection closed before an answer",
            request_id: None,
        },
    );
    test.journal.flushed().await;
    assert!(read(&test.path(), false).unwrap().is_settled());
    assert!(!read(&test.path(), true).unwrap().is_settled());
}

#[tokio::test]
async fn a_journal_is_shared_until_the_earlier_process_has_ended() {
    let first = JournalTest::new(1 << 20, 1);
    assert!(!first.journal.is_shared());
    let config = config::Journal {
        path: first.path(),
        max_size: 1 << 20,
        keep: 1,
    };
    let metrics = Arc::new(Metrics::new());
    let second = Arc::new(Journal::open(&config, metrics.clone()).unwrap());
    let gauge = |value| format!("\nflowgate_journal_shared {value}\n");
    let shown = || metrics.render(&Scrape::default());
    assert!(second.is_shared() && shown().contains(&gauge(1)));
    assert!(!second.end_sharing(|| panic!("the first has the lock")));
    let own = second.note(Some("own"), &operation(), "R", None);
    let other = first.note("other");
    assert!(second.has_made(own.attempt()) && !second.has_made(other.attempt()));
    let JournalTest {
        folder: _folder,
        journal,
        ..
    } = first;
    drop((other, journal));
    let mut is_taken_over = false;
    assert!(second.end_sharing(|| is_taken_over = second.is_shared()));
    assert!(is_taken_over && !second.is_shared() && shown().contains(&gauge(0)));
}

#[tokio::test(start_paused = true)]
async fn a_word_that_the_disk_does_not_take_in_time_is_written_later() {
    let folder = tempfile::tempdir().unwrap();
    let metrics = Arc::new(Metrics::new());
    let config = config::Journal {
        path: folder.path().join("slow"),
        max_size: 1 << 20,
        keep: 1,
    };
    let health = Arc::new(Health::new(metrics.clone()));
    let (go, go_on) = std::sync::mpsc::channel();
    let file = RotatingFile::open(&config).unwrap();
    let journal = Arc::new(Journal {
        run: "run".to_owned(),
        attempts: AtomicU64::new(0),
        writer: Writer::start(SlowDisk { go_on, file }, health.clone()).unwrap(),
        carrier: Arc::new(Carrier::new(&config.path, health.clone())),
        health,
        lock: JournalLock::take(&config.path).0,
        is_shared: AtomicBool::new(false),
        metrics,
    });
    let resolved = Resolved {
        attempt: "run-0",
        result: ResolvedAs::Settled,
        flow_id: Some("77"),
        found: None,
    };
    let written = journal.record_resolved(resolved, Duration::from_secs(2));
    assert_eq!(written.await, Written::NotYet);
    assert_eq!(std::fs::read_to_string(&config.path).unwrap(), "");
    drop(go);
    journal.flushed().await;
    let text = std::fs::read_to_string(&config.path).unwrap();
    assert!(
        text.contains(r#""result":"settled","flow_id":"77""#),
        "{text}"
    );
}

#[tokio::test]
async fn a_damaged_line_does_not_affect_others() {
    let test = JournalTest::new(1 << 20, 1);
    test.note("before").sent().await;
    let whole = std::fs::read(test.path()).unwrap();
    std::fs::write(
        test.path(),
        [&whole, &b"{\"event\":\"sent\",\"attem"[..]].concat(),
    )
    .unwrap();
    // The process that opens a torn file ends its last line.
    let config = config::Journal {
        path: test.path(),
        max_size: 1 << 20,
        keep: 1,
    };
    let next = Arc::new(Journal::open(&config, Arc::new(Metrics::new())).unwrap());
    next.note(Some("after"), &operation(), "R", None)
        .sent()
        .await;
    let torn = std::fs::read(test.path()).unwrap();
    std::fs::write(
        test.path(),
        [&torn, &b"\xff\xfe\n\n[]\n{\"event\":\"else\"}\n"[..]].concat(),
    )
    .unwrap();
    let content = read(&test.path(), false).unwrap();
    assert_eq!(
        (content.damaged(), test.open()),
        (4, vec!["before".to_owned(), "after".to_owned()])
    );
    // The last line may still be written.
    let writing = std::fs::read(test.path()).unwrap();
    std::fs::write(
        test.path(),
        [&writing, &b"{\"event\":\"done\""[..]].concat(),
    )
    .unwrap();
    assert_eq!(keyed(&test.path(), true).unwrap().damaged, 4);
    assert_eq!(keyed(&test.path(), false).unwrap().damaged, 5);
    // Both processes have the journal open.
    assert_eq!(read(&test.path(), false).unwrap().damaged(), 4);
    drop((test.journal, next));
    let path = test.folder.path().join("journal");
    assert_eq!(read(&path, false).unwrap().damaged(), 5);
}

#[tokio::test]
async fn another_file_is_refused_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let config = config::Journal {
        path: folder.path().join("notes"),
        max_size: 1 << 20,
        keep: 1,
    };
    std::fs::write(&config.path, "hello\nworld").unwrap();
    std::fs::set_permissions(&config.path, Permissions::from_mode(0o644)).unwrap();
    let error = Journal::open(&config, Arc::new(Metrics::new()))
        .err()
        .unwrap();
    assert_eq!(
        error.to_string(),
        "it is another file, without a line of a journal: name another one, or move it away"
    );
    let mode = std::fs::metadata(&config.path)
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(
        (mode & 0o777, std::fs::read(&config.path).unwrap()),
        (0o644, b"hello\nworld".to_vec())
    );
}

#[tokio::test]
async fn an_older_file_that_cannot_be_read_is_named() {
    let test = JournalTest::new(1 << 20, 1);
    let older = test.folder.path().join("journal.1");
    std::fs::create_dir(&older).unwrap();
    let error = keyed(&test.path(), false).err().unwrap();
    let expected = format!("{}: expected a regular file", older.display());
    assert_eq!(error.to_string(), expected);
}

#[tokio::test]
async fn a_table_is_aligned_and_escaped() {
    let test = JournalTest::new(1 << 20, 1);
    let operation = Operation {
        tenant: TenantId::new("cams-1"),
        ..operation()
    };
    test.note("\u{1b}[2J\u{202e}ü").sent().await;
    test.journal
        .note(
            None,
            &Operation {
                action: ActionName::new("ListFlow"),
                ..operation
            },
            "R",
            None,
        )
        .sent()
        .await;
    let table = as_table(&read(&test.path(), false).unwrap());
    let rows: Vec<_> = table
        .lines()
        .map(|line| line.split_once("  ").unwrap().1.trim_start())
        .collect();
    assert_eq!(
        rows,
        [
            r"ACCOUNT  CLIENT  TENANT  ACTION      FLOW NAME           REQUEST ID",
            r"acme     team-a  -       CreateFlow  \u{1b}[2J\u{202e}ü  REQUEST-1",
            r"acme     team-a  cams-1  ListFlow    -                   R",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn lost_lines_are_counted_and_an_outage_is_logged_at_intervals() {
    let test = JournalTest::new(1 << 20, 1);
    std::fs::remove_file(test.path()).unwrap();
    std::fs::create_dir(test.path()).unwrap();
    let reported_outage = || {
        test.journal
            .health
            .outage_now()
            .map(|outage| (outage.errors, outage.logged_at))
    };
    let start = Instant::now();
    for second in [0, 1, 9, 11, 12] {
        tokio::time::sleep_until(start + Duration::from_secs(second)).await;
        test.note("x").sent().await;
    }
    assert_eq!(
        reported_outage(),
        Some((5, start + Duration::from_secs(11)))
    );
    let page = || {
        test.metrics
            .render(&crate::observe::metrics::Scrape::default())
    };
    assert!(
        page().contains("flowgate_journal_errors_total 5")
            && page().contains("flowgate_journal_up 0")
    );
    std::fs::remove_dir(test.path()).unwrap();
    test.note("y").sent().await;
    assert_eq!(reported_outage(), None);
    assert!(
        page().contains("flowgate_journal_errors_total 5")
            && page().contains("flowgate_journal_up 1")
    );
    assert_eq!(test.open(), ["y"]);
}
