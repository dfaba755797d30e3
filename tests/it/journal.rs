//! The journal of a real process: after a kill it names exactly the calls that may have been
//! processed, with torn lines, a full disk or rotation.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use cams_sim::{Running, Settings};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::caller::{Call, KEY, Reply, SECRET};
use crate::harness::{Harness, Metrics};
use crate::keyed_calls::endpoint;
use crate::process::Process;

const ERRORS: &str = "flowgate_journal_errors_total";

/// A journal in this folder, in a Flowgate without limits.
fn configured(path: &Path, more: &str) -> String {
    format!(
        "[journal]\npath = \"{}\"\n{more}\n[limits]\npreset = \"none\"\n",
        path.display()
    )
}

/// Runs `flowgate journal`.
fn journal(path: &Path, flags: &[&str]) -> Output {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_flowgate"));
    command
        .arg("journal")
        .arg(path)
        .args(flags)
        .output()
        .unwrap()
}

/// The names of the open flows, and the number of damaged lines.
fn open(path: &Path) -> (Vec<String>, u64) {
    let output = journal(path, &["--json"]);
    let page: Value = serde_json::from_slice(&output.stdout).unwrap();
    let open = page["open"].as_array().unwrap();
    assert_eq!(
        output.status.code(),
        Some(if open.is_empty() { 0 } else { 1 })
    );
    let name = |sent: &Value| sent["flow_name"].as_str().unwrap().to_owned();
    (
        open.iter().map(name).collect(),
        page["damaged_lines"].as_u64().unwrap(),
    )
}

/// All lines of all files, the oldest first.
fn lines(path: &Path) -> Vec<Value> {
    let older = |number: u32| PathBuf::from(format!("{}.{number}", path.display()));
    let numbers = (1..).take_while(|number| older(*number).exists());
    let mut files: Vec<_> = [path.to_owned()]
        .into_iter()
        .chain(numbers.map(older))
        .collect();
    files.reverse();
    let texts = files
        .iter()
        .map(|file| std::fs::read_to_string(file).unwrap());
    texts
        .flat_map(|text| {
            text.lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect::<Vec<_>>()
        })
        .collect()
}

/// Waits until this many lines are written. The end of an attempt is written soon after its caller
/// is answered.
pub(crate) async fn written(path: &Path, count: usize) {
    let give_up = Instant::now() + Duration::from_secs(60);
    loop {
        let older = (1..).map(|number| PathBuf::from(format!("{}.{number}", path.display())));
        let older = older.take_while(|path| path.exists()).collect::<Vec<_>>();
        // From the oldest file: a rotation meanwhile may hide lines, but not show one twice.
        let files = older.iter().rev().map(PathBuf::as_path).chain([path]);
        let text: String = files
            .map(|file| std::fs::read_to_string(file).unwrap_or_default())
            .collect();
        let found = text.matches('\n').count();
        if found >= count {
            return;
        }
        assert!(Instant::now() < give_up, "{found} of {count} lines");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn names<'a>(lines: impl IntoIterator<Item = &'a Value>) -> BTreeSet<String> {
    let sent = lines.into_iter().filter(|line| line["event"] == "sent");
    sent.map(|line| line["flow_name"].as_str().unwrap().to_owned())
        .collect()
}

async fn call(process: &Process, name: &str) -> Reply {
    Call::v3(&process.proxy.to_string(), name)
        .send(process.proxy)
        .await
}

/// Waits until this many calls have arrived at the endpoint.
async fn arrived(sim: &Running, calls: u64) {
    let give_up = Instant::now() + Duration::from_secs(60);
    while sim.report().arrived < calls {
        assert!(Instant::now() < give_up, "{:?}", sim.report());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_killed_process_leaves_exactly_what_was_in_flight() {
    let sim = endpoint(&["named=slow,slow=60s"]).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let process = Process::start(&sim, &configured(&path, "")).await;
    for name in ["one", "two"] {
        assert_eq!(call(&process, name).await.status, 200);
    }
    written(&path, 4).await;
    assert!(
        String::from_utf8(journal(&path, &[]).stdout)
            .unwrap()
            .lines()
            .count()
            == 1,
        "a head and no row"
    );
    let _waiting = process.come("slow \u{1b}[2J").await;
    arrived(&sim, 3).await;
    let expected = (vec!["slow \u{1b}[2J".to_owned()], 0);
    assert_eq!(open(&path), expected, "what is under way is open");
    process.kill().await;
    assert_eq!(open(&path), expected);
    let table = journal(&path, &[]);
    assert_eq!(table.status.code(), Some(1));
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(
        table.lines().count() == 2 && table.contains(r"CreateFlow  slow \u{1b}[2J  "),
        "{table}"
    );
    let process =
        Process::with_env(&sim, "", &[("FLOWGATE_JOURNAL", path.to_str().unwrap())]).await;
    // A process sends nothing in its first second.
    assert_eq!(call(&process, "three").await.status, 200);
    written(&path, 7).await;
    assert_eq!(open(&path), expected);
}

#[tokio::test]
async fn every_attempt_that_reached_cams_is_in_the_journal_after_a_kill() {
    let sim = endpoint(&[]).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let process =
        Process::start(&sim, &configured(&path, "max_size = \"8KiB\"\nkeep = 1000")).await;
    let mut calls = JoinSet::new();
    for worker in 0..8 {
        let proxy = process.proxy;
        calls.spawn(async move {
            let mut index = 0;
            // Until the process has ended.
            while let Some(reply) = {
                let call = Call::v3(&proxy.to_string(), &format!("flow-{worker}-{index}"));
                crate::caller::try_exchange(proxy, &call.bytes()).await
            } {
                assert_eq!(reply.status, 200);
                index += 1;
            }
        });
    }
    arrived(&sim, 300).await;
    process.kill().await;
    calls.join_all().await;
    let lines = lines(&path);
    let reached: BTreeSet<_> = sim
        .arrivals()
        .into_iter()
        .filter_map(|arrival| arrival.flow_name)
        .collect();
    assert!(
        reached.is_subset(&names(&lines)),
        "{:?}",
        reached.difference(&names(&lines))
    );
    let (open, damaged) = open(&path);
    assert!(open.len() <= 8 && damaged == 0, "{open:?}, {damaged}");
}

#[tokio::test]
async fn rotation_under_load_loses_no_line() {
    let sim = endpoint(&[]).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let process =
        Process::start(&sim, &configured(&path, "max_size = \"4KiB\"\nkeep = 1000")).await;
    let mut calls = JoinSet::new();
    for index in 0..400 {
        let proxy = process.proxy;
        let name = format!("flow-{index}");
        calls.spawn(async move { Call::v3(&proxy.to_string(), &name).send(proxy).await });
    }
    assert!(
        calls
            .join_all()
            .await
            .iter()
            .all(|reply| reply.status == 200)
    );
    written(&path, 800).await;
    let lines = lines(&path);
    assert_eq!(lines.len(), 800);
    let (sent, done): (Vec<_>, Vec<_>) = lines.iter().partition(|line| line["event"] == "sent");
    assert_eq!(
        names(sent.iter().copied()),
        (0..400).map(|index| format!("flow-{index}")).collect()
    );
    let attempts = |lines: &[&Value]| -> BTreeSet<_> {
        lines
            .iter()
            .map(|line| line["attempt"].to_string())
            .collect()
    };
    assert_eq!(attempts(&sent), attempts(&done));
    let ids: BTreeSet<_> = done
        .iter()
        .map(|line| line["flow_id"].as_str().unwrap())
        .collect();
    assert_eq!(ids.len(), 400, "each flow's own id");
    assert!(path.with_extension("20").exists(), "many files");
    assert_eq!(open(&path), (vec![], 0));
}

#[tokio::test]
async fn calls_continue_while_the_journal_cannot_be_written_and_a_torn_line_costs_one_more() {
    let sim = endpoint(&[]).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let process = Process::start(&sim, &configured(&path, "")).await;
    assert_eq!(call(&process, "before").await.status, 200);
    written(&path, 2).await;
    let size = std::fs::metadata(&path).unwrap().len();
    process.files_end_at(Some(size + 40));
    for name in ["torn", "lost"] {
        assert_eq!(call(&process, name).await.status, 200);
    }
    let metrics = Metrics::until(process.admin, ERRORS, |errors| errors >= 4.0).await;
    assert_eq!(
        (metrics.get(ERRORS), metrics.get("flowgate_journal_up")),
        (4.0, 0.0)
    );
    assert_eq!(std::fs::metadata(&path).unwrap().len(), size + 40);
    process.files_end_at(None);
    assert_eq!(call(&process, "after").await.status, 200);
    let metrics = Metrics::of(process.admin).await;
    assert_eq!(
        (metrics.get(ERRORS), metrics.get("flowgate_journal_up")),
        (4.0, 1.0)
    );
    assert_eq!(
        process
            .logged("the journal can be written again", 1)
            .await
            .len(),
        1
    );
    assert_eq!(
        process
            .logged(
                "the journal cannot be written; calls without a key continue",
                1
            )
            .await
            .len(),
        1
    );
    let give_up = Instant::now() + Duration::from_secs(60);
    while open(&path) != (vec![], 1) {
        assert!(Instant::now() < give_up, "{:?}", open(&path));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let text = std::fs::read_to_string(&path).unwrap();
    let whole: Vec<Value> = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    assert_eq!(names(&whole), ["after", "before"].map(str::to_owned).into());
}

#[tokio::test]
async fn the_journal_has_each_flow_name_and_the_result() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let faults = [
        "named=odd,refuse=Ram.PermissionDeny",
        "named=lost,close-after",
    ];
    let faults = faults.iter().map(|fault| fault.parse().unwrap()).collect();
    let settings = Settings {
        faults,
        ..Settings::default()
    };
    let harness = Harness::with(
        settings,
        &format!("[journal]\npath = \"{}\"\n", path.display()),
    )
    .await;
    let host = harness.host();
    let json = |call: &mut Call| {
        call.push("content-type", "application/json");
        call.body = br#"{"Categories":["SIGN_UP"],"FlowName":"by JSON"}"#.to_vec();
    };
    let xml = |call: &mut Call| {
        call.query
            .iter_mut()
            .find(|(name, _)| name == "Format")
            .unwrap()
            .1 = "XML".into()
    };
    let form = [
        ("Categories", "[\"SIGN_UP\"]"),
        ("FlowName", "by form"),
        ("CustSpaceId", "cams-1"),
    ];
    Call::v3(&host, "by query").send(harness.proxy).await;
    Call::v1_with(&host, &form, xml, (KEY, SECRET))
        .send(harness.proxy)
        .await;
    Call::v3_with(&host, &[], json, (KEY, SECRET))
        .send(harness.proxy)
        .await;
    for name in ["odd", "lost"] {
        Call::v3(&host, name).send(harness.proxy).await;
    }
    harness
        .sim
        .set_faults(vec!["next=1,throttle".parse().unwrap()]);
    Call::v3(&host, "throttled").send(harness.proxy).await;
    written(&path, 14).await;
    let lines = lines(&path);
    let text = |line: &Value, key: &str| line[key].as_str().unwrap_or_default().to_owned();
    let done = |sent: &Value| {
        let is_its = |line: &&Value| line["event"] == "done" && line["attempt"] == sent["attempt"];
        let done = lines.iter().find(is_its).unwrap();
        assert!(
            text(done, "result") != "ok" || text(done, "flow_id").starts_with("33399383800"),
            "{done}"
        );
        ["flow_name", "tenant"]
            .map(|key| text(sent, key))
            .into_iter()
            .chain([text(done, "result"), text(done, "code")])
    };
    let sent = lines.iter().filter(|line| line["event"] == "sent");
    let text: Vec<String> = sent
        .map(|sent| done(sent).collect::<Vec<_>>().join(" | "))
        .collect();
    assert_eq!(
        text,
        [
            "by query |  | ok | OK",
            "by form | cams-1 | ok | OK",
            "by JSON |  | upstream_error | MissingFlowName",
            "odd |  | upstream_error | Ram.PermissionDeny",
            "lost |  | unknown | ",
            "throttled |  | throttled | System.LimitControl",
            "throttled |  | ok | OK",
        ]
    );
}

#[test]
fn a_missing_journal_is_reported() {
    let output = journal(Path::new("no/such"), &[]);
    assert_eq!(output.status.code(), Some(64));
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        text,
        "flowgate: no/such: No such file or directory (os error 2)\n"
    );
}

#[test]
fn a_file_that_is_no_journal_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flowgate.toml");
    for text in [
        "no journal\n",
        "\n\n[[accounts]]\n\nid = \"acme\"\n",
        "{}\n",
    ] {
        std::fs::write(&path, text).unwrap();
        for flags in [&["--unknown"][..], &[], &["--json", "--unknown"]] {
            let output = journal(&path, flags);
            let error = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(64), "{text:?}: {error}");
            assert!(
                error.contains("flowgate.toml: it has no line of a journal"),
                "{error}"
            );
            assert!(output.stdout.is_empty(), "{text:?}");
        }
    }
    // Before its first attempt a journal is empty.
    std::fs::write(&path, "").unwrap();
    assert_eq!(journal(&path, &["--unknown"]).status.code(), Some(0));
}
