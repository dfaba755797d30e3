//! Idempotency keys over restarts: what the journal knows, a later process knows too.

use std::collections::BTreeMap;
use std::path::Path;

use cams_sim::Running;
use tokio::task::JoinSet;

use crate::caller::{Call, Reply, try_exchange};
use crate::harness::Metrics;
use crate::journal::written;
use crate::keyed_calls::{created, created_twice, endpoint, flow_id, is, learn, order, state};
use crate::process::{ACME, Process};

/// A journal that soon drops its files.
const SMALL: &str = "max_size = \"4KiB\"\nkeep = 1\n";

/// A Flowgate with this journal and without limits.
async fn start(sim: &Running, journal: &Path) -> Process {
    start_with(sim, journal, "").await
}

async fn start_with(sim: &Running, journal: &Path, more: &str) -> Process {
    let toml = format!(
        "[journal]\npath = \"{}\"\n[limits]\npreset = \"none\"\n{more}",
        journal.display()
    );
    Process::start(sim, &toml).await
}

/// `section` is TOML for the section of the journal.
async fn start_with_journal(sim: &Running, journal: &Path, section: &str) -> Process {
    let limits = "[limits]\npreset = \"none\"\n";
    let toml = format!(
        "{limits}[journal]\npath = \"{}\"\n{section}",
        journal.display()
    );
    Process::start(sim, &toml).await
}

async fn send(process: &Process, key: &str, flow: &str) -> Reply {
    let call = order(&process.proxy.to_string(), key, flow);
    call.send(process.proxy).await
}

#[tokio::test]
async fn a_later_process_knows_the_keys_of_a_killed_one() {
    let sim = endpoint(&[
        "named=slow,slow=60s",
        "named=forbidden,refuse=Ram.PermissionDeny",
    ])
    .await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let process = start(&sim, &path).await;
    let done = send(&process, "done", "done").await;
    assert_eq!((done.status, state(&done)), (200, "first"), "{done:?}");
    let refused = send(&process, "refused", "forbidden").await;
    assert_eq!(refused.code(), "Ram.PermissionDeny");
    let proxy = process.proxy;
    let slow = order(&proxy.to_string(), "slow", "slow");
    let slow = tokio::spawn(async move { try_exchange(proxy, &slow.bytes()).await });
    while sim.report().arrived < 3 {
        tokio::task::yield_now().await;
    }
    process.kill().await;
    assert!(slow.await.unwrap().is_none());

    sim.set_faults(Vec::new());
    let process = start(&sim, &path).await;
    let again = send(&process, "done", "done").await;
    assert_eq!(
        (again.status, state(&again)),
        (200, "replayed"),
        "{again:?}"
    );
    assert_eq!(again.json()["Data"], done.json()["Data"]);
    let mismatch = send(&process, "done", "other").await;
    assert_eq!(state(&mismatch), "mismatch", "{mismatch:?}");
    let again = send(&process, "refused", "forbidden").await;
    assert_eq!((again.status, state(&again)), (200, "first"), "{again:?}");
    let unknown = send(&process, "slow", "slow").await;
    assert_eq!(
        (unknown.status, state(&unknown)),
        (409, "unknown"),
        "{unknown:?}"
    );
    assert_eq!(sim.report().arrived, 4);
}

#[tokio::test]
async fn keys_are_known_after_their_lines_were_rotated_away_and_the_process_was_killed() {
    let sim = endpoint(&[
        "named=lost,close-after",
        "named=forbidden,refuse=Ram.PermissionDeny",
    ])
    .await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let process = start_with_journal(&sim, &path, SMALL).await;
    let done = send(&process, "done", "done").await;
    is(&done, 200, "first");
    is(&send(&process, "lost", "lost").await, 409, "unknown");
    let refused = send(&process, "refused", "forbidden").await;
    assert_eq!(refused.code(), "Ram.PermissionDeny");
    let name = |number: i32| format!("other-{number}");
    for number in 0..60 {
        let name = name(number);
        is(&send(&process, &name, &name).await, 200, "first");
    }
    for _ in 0..60 {
        let call = Call::v3(&process.proxy.to_string(), "without a key");
        assert_eq!(call.send(process.proxy).await.status, 200);
    }
    let bytes = |suffix: &str| {
        let file = folder.path().join(format!("journal{suffix}"));
        std::fs::read_to_string(file).unwrap_or_default()
    };
    for suffix in ["", ".1"] {
        assert!(
            !bytes(suffix).contains("\"flow_name\":\"done\""),
            "{suffix} has the first key"
        );
    }
    process.kill().await;

    sim.set_faults(Vec::new());
    let process = start_with_journal(&sim, &path, SMALL).await;
    let again = send(&process, "done", "done").await;
    is(&again, 200, "replayed");
    assert_eq!(again.json()["Data"], done.json()["Data"]);
    is(&send(&process, "lost", "lost").await, 409, "unknown");
    is(&send(&process, "refused", "forbidden").await, 200, "first");
    for number in 0..60 {
        let name = name(number);
        is(&send(&process, &name, &name).await, 200, "replayed");
    }
    let twice = created_twice(&sim);
    assert_eq!(twice, [("without a key".to_owned(), 60)]);
}

#[tokio::test]
async fn the_journal_carries_keys_as_the_reloaded_configuration_says() {
    let sim = endpoint(&[]).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let toml = |keys: bool| {
        format!(
            "{ACME}[limits]\npreset = \"none\"\n[exactly_once]\nkeys = {keys}\n[journal]\npath = \"{}\"\n{SMALL}",
            path.display()
        )
    };
    let launch = async |keys| {
        let folder = tempfile::tempdir().unwrap();
        Process::configured(&sim, &toml(keys), folder, &[]).await
    };
    let process = launch(false).await;
    process.write(&toml(true));
    process.signal("-HUP").await;
    process.logged("configuration reloaded", 1).await;
    let done = send(&process, "done", "done").await;
    is(&done, 200, "first");
    for _ in 0..60 {
        let call = Call::v3(&process.proxy.to_string(), "without a key");
        assert_eq!(call.send(process.proxy).await.status, 200);
    }
    process.kill().await;
    let process = launch(true).await;
    let again = send(&process, "done", "done").await;
    is(&again, 200, "replayed");
    assert_eq!(again.json()["Data"], done.json()["Data"]);
}

#[tokio::test]
async fn a_process_that_starts_before_another_has_ended_warns_and_then_knows_its_keys() {
    const SHARED: &str = "flowgate_journal_shared";
    let sim = endpoint(&["named=slow,slow=2s"]).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let earlier = start(&sim, &path).await;
    let slow = order(&earlier.proxy.to_string(), "slow", "slow");
    let proxy = earlier.proxy;
    let slow = tokio::spawn(async move { slow.send(proxy).await });
    while sim.report().arrived < 1 {
        tokio::task::yield_now().await;
    }
    let later = start(&sim, &path).await;
    let message =
        "another process writes the same journal; a key that both get may create two flows";
    assert_eq!(later.logged(message, 1).await.len(), 1);
    assert_eq!(Metrics::of(later.admin).await.get(SHARED), 1.0);
    assert_eq!(Metrics::of(earlier.admin).await.get(SHARED), 0.0);
    let late = send(&earlier, "late", "late").await;
    assert_eq!((late.status, state(&late)), (200, "first"), "{late:?}");
    let slow = slow.await.unwrap();
    assert_eq!((slow.status, state(&slow)), (200, "first"), "{slow:?}");
    earlier.terminate().await;

    Metrics::until(later.admin, SHARED, |shared| shared == 0.0).await;
    for (key, first) in [("slow", slow), ("late", late)] {
        let again = send(&later, key, key).await;
        let found = (again.status, state(&again));
        assert_eq!(found, (200, "replayed"), "{key}: {again:?}");
        assert_eq!(again.json()["Data"], first.json()["Data"]);
    }
    assert_eq!(
        created(&sim),
        [("slow".into(), 1), ("late".into(), 1)].into()
    );
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_flowgate"))
        .arg("journal")
        .arg(&path)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "a reader needs no lock: {output:?}"
    );
}

#[tokio::test]
async fn no_key_is_executed_twice_over_kills_at_random_times() {
    kill_at_random_times("").await;
}

#[tokio::test]
async fn no_key_is_executed_twice_over_kills_at_random_times_while_the_journal_drops_files() {
    kill_at_random_times(SMALL).await;
}

/// Uses keys again over processes that are killed. `journal` is TOML for the section.
async fn kill_at_random_times(journal: &str) {
    let sim = endpoint(&[
        "percent=10,slow=50ms",
        "percent=5,close-after",
        "percent=5,close-before",
    ])
    .await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let mut answered: BTreeMap<String, String> = BTreeMap::new();
    let mut arrived = 0;
    for _round in 0..5 {
        let process = start_with_journal(&sim, &path, journal).await;
        let mut workers = JoinSet::new();
        for worker in 0..8 {
            let proxy = process.proxy;
            let host = proxy.to_string();
            workers.spawn(async move {
                let mut answers = Vec::new();
                // Every key is used in every round; until the process has ended.
                for number in (0..).map(|number| number % 40) {
                    let name = format!("flow-{worker}-{number}");
                    let call = order(&host, &name, &name);
                    let Some(reply) = try_exchange(proxy, &call.bytes()).await else {
                        return answers;
                    };
                    if reply.status == 200 {
                        answers.push((name, flow_id(&reply)));
                    } else {
                        assert_eq!(reply.code(), "Flowgate.OutcomeUnknown", "{reply:?}");
                    }
                }
                answers
            });
        }
        arrived += 30 + u64::from(fastrand::u8(..30));
        while sim.report().arrived < arrived {
            tokio::task::yield_now().await;
        }
        process.kill().await;
        learn(&mut answered, workers).await;
    }
    assert_eq!(created_twice(&sim), []);
    assert!(answered.len() > 50, "{}", answered.len());
}

#[tokio::test]
async fn a_keyed_call_that_cannot_be_recorded_is_not_sent() {
    let sim = endpoint(&[]).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let process = start(&sim, &path).await;
    process.files_end_at(Some(0));
    let refused = send(&process, "k", "keyed").await;
    assert_eq!(refused.code(), "System.LimitControl", "{refused:?}");
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    let without = Call::v3(&process.proxy.to_string(), "unkeyed");
    assert_eq!(without.send(process.proxy).await.status, 200);
    process.files_end_at(None);
    let again = send(&process, "k", "keyed").await;
    assert_eq!((again.status, state(&again)), (200, "first"), "{again:?}");
    assert_eq!(
        created(&sim),
        [("keyed".into(), 1), ("unkeyed".into(), 1)].into()
    );
}

#[tokio::test]
async fn a_keyed_call_that_cannot_be_recorded_may_be_sent_without_protection() {
    let sim = endpoint(&[]).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let process = start_with(&sim, &path, "[exactly_once]\non_loss = \"send\"\n").await;
    process.files_end_at(Some(0));
    let sent = send(&process, "k", "keyed").await;
    assert_eq!((sent.status, state(&sent)), (200, ""), "{sent:?}");
    process.files_end_at(None);
    let protected = send(&process, "k-2", "other").await;
    assert_eq!((protected.status, state(&protected)), (200, "first"));
    assert_eq!(
        created(&sim),
        [("keyed".into(), 1), ("other".into(), 1)].into()
    );
}

#[tokio::test]
async fn a_start_warns_of_a_key_whose_line_a_crash_has_torn() {
    let sim = endpoint(&[]).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let process = start(&sim, &path).await;
    is(&send(&process, "done", "done").await, 200, "first");
    written(&path, 2).await;
    process.kill().await;
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, [&whole, &whole[..100]].concat()).unwrap();
    let message =
        "the journal has lines that cannot be read; keys that only they name are not known";
    let process = start(&sim, &path).await;
    let warned = process.logged(message, 1).await;
    assert_eq!(warned[0]["lines"], 1);
    is(&send(&process, "done", "done").await, 200, "replayed");
}
