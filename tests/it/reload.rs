//! Reloads of the real program while calls are queued: all of a configuration takes effect or none,
//! on SIGHUP and when a file changes, and no queued call is lost.

use std::path::Path;
use std::time::Duration;

use cams_sim::{Running, Settings, Sim};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::caller::{Call, KEY, Reply, SECRET};
use crate::harness::{self, GAP, Metrics, are_served};
use crate::operator::{OPERATOR, pause, resume, until_queued};
use crate::process::{ACME, Process};

const SUCCESSFUL: &str = "flowgate_config_last_reload_successful";
const DONE: &str = "flowgate_config_reloads_total{result=\"done\"}";
const REFUSED: &str = "flowgate_config_reloads_total{result=\"refused\"}";
const HOLD: &str = "[queue]\nhold = \"60s\"\n";

async fn sim() -> Running {
    Sim::start(Settings::default().with_key(KEY, SECRET, "acme"))
        .await
        .unwrap()
}

fn team(more: &str) -> String {
    format!(
        "[[clients]]\naccess_key_id = \"team-a\"\naccess_key_secret = {{ env = \"TEAM\" }}\naccount = \"acme\"\nactions = [\"CreateFlow\"]\n{more}\n"
    )
}

fn call(flowgate: &Process, name: &str, key: (&str, &str)) -> Call {
    let query = [("Categories", "[\"SIGN_UP\"]"), ("FlowName", name)];
    Call::v3_with(&flowgate.proxy.to_string(), &query, |_| {}, key)
}

/// Starts simultaneous calls with this key.
fn together(flowgate: &Process, count: usize, key: (&'static str, &'static str)) -> JoinSet<Reply> {
    let mut calls = JoinSet::new();
    for index in 0..count {
        let call = call(flowgate, &format!("{}-{index}", key.0), key);
        let proxy = flowgate.proxy;
        calls.spawn(async move { call.send(proxy).await });
    }
    calls
}

const OWN: (&str, &str) = (KEY, SECRET);
const TEAM: (&str, &str) = ("team-a", "team-secret-1");

#[tokio::test]
async fn repeated_sighups_lose_no_call_and_keep_the_rate() {
    let sim = sim().await;
    let head = format!("{ACME}{GAP}{HOLD}");
    let flowgate = Process::configured(&sim, &head, tempfile::tempdir().unwrap(), &[]).await;
    let calls = together(&flowgate, 40, OWN);
    for round in 0..60 {
        let toml = match round % 3 {
            0 => head.clone(),
            1 => format!("{head}max_waiting = {}\n", 1000 + round),
            _ => format!("{head}max_waiting = \"many\"\n"),
        };
        flowgate.write(&toml);
        flowgate.signal("-HUP").await;
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    let replies = calls.join_all().await;
    are_served(&replies);
    let report = sim.report();
    assert_eq!(
        (
            report.created,
            report.duplicates.len(),
            report.worst_window,
            report.arrived
        ),
        (40, 0, 5, 40)
    );
    let metrics = Metrics::of(flowgate.admin).await;
    assert!(
        metrics.get(DONE) >= 2.0 && metrics.get(REFUSED) >= 1.0,
        "{} {}",
        metrics.get(DONE),
        metrics.get(REFUSED)
    );
    assert_eq!(
        metrics.get("flowgate_tokens_total{account=\"acme\",event=\"spent\"}"),
        40.0
    );
}

#[tokio::test]
async fn a_mistake_changes_nothing_and_its_correction_is_noticed() {
    let sim = sim().await;
    let flowgate = Process::start(&sim, HOLD).await;
    assert_eq!(Metrics::of(flowgate.admin).await.get(SUCCESSFUL), 1.0);
    // A valid client and a mistake elsewhere: none of it takes effect.
    flowgate.write(&format!(
        "{ACME}{}{HOLD}max_waiting = \"hunter2\"\n",
        team("")
    ));
    flowgate.signal("-HUP").await;
    Metrics::until(flowgate.admin, REFUSED, |times| times == 1.0).await;
    let rejected = flowgate
        .logged("configuration reload rejected; keeping the current one", 1)
        .await;
    let mistakes = rejected[0]["mistakes"].as_str().unwrap();
    assert!(
        mistakes.contains("queue.max_waiting: expected a whole number")
            && !mistakes.contains("hunter2")
    );
    assert_eq!(Metrics::of(flowgate.admin).await.get(SUCCESSFUL), 0.0);
    let reply = call(&flowgate, "early", TEAM).send(flowgate.proxy).await;
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (404, "InvalidAccessKeyId.NotFound")
    );
    assert_eq!(
        call(&flowgate, "still", OWN)
            .send(flowgate.proxy)
            .await
            .status,
        200
    );
    // No signal after the correction.
    flowgate.write(&format!("{ACME}{}{HOLD}", team("")));
    let metrics = Metrics::until(flowgate.admin, SUCCESSFUL, |successful| successful == 1.0).await;
    assert_eq!(metrics.get(DONE), 1.0);
    assert_eq!(
        call(&flowgate, "new", TEAM)
            .send(flowgate.proxy)
            .await
            .status,
        200
    );
    let read = flowgate.logged("configuration reloaded", 1).await;
    assert_eq!(read[0]["changed"], "clients");
    let page = harness::get(flowgate.admin, "/config").await.json();
    assert_eq!(page["clients"][0]["id"], "team-a");
}

#[tokio::test]
async fn a_missing_file_is_noticed_when_it_appears() {
    let sim = sim().await;
    let flowgate = Process::start(&sim, HOLD).await;
    let team = team("").replace("env = \"TEAM\"", "file = \"team-secret\"");
    flowgate.write(&format!("{ACME}{team}{HOLD}"));
    flowgate.signal("-HUP").await;
    let rejected = flowgate
        .logged("configuration reload rejected; keeping the current one", 1)
        .await;
    assert!(
        rejected[0]["mistakes"]
            .as_str()
            .unwrap()
            .contains("file not found"),
        "{rejected:?}"
    );
    // No signal after the file is written.
    std::fs::write(flowgate.folder.path().join("team-secret"), TEAM.1).unwrap();
    Metrics::until(flowgate.admin, DONE, |times| times == 1.0).await;
    assert_eq!(
        call(&flowgate, "new", TEAM)
            .send(flowgate.proxy)
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn a_key_that_needs_a_restart_is_reported() {
    let sim = sim().await;
    let flowgate = Process::start(&sim, "").await;
    let quota = "[quota]\nstore = \"redis://127.0.0.1:1\"\n";
    flowgate.write(&format!(
        "{ACME}{}[retry]\nmax_attempts = 3\n{quota}",
        team("")
    ));
    flowgate.signal("-HUP").await;
    let rejected = flowgate
        .logged("configuration reload rejected; keeping the current one", 1)
        .await;
    assert_eq!(
        rejected[0]["mistakes"],
        "only a restart can change quota.store"
    );
    let page = harness::get(flowgate.admin, "/config").await.json();
    assert_eq!(
        (
            &page["retry"]["max_attempts"],
            page["clients"].as_array().map(Vec::len)
        ),
        (&10.into(), Some(0))
    );
}

#[tokio::test]
async fn queued_calls_of_a_disabled_client_are_refused_and_others_served() {
    let sim = sim().await;
    let more = format!("{}{GAP}{HOLD}", team(""));
    let flowgate = Process::with_env(&sim, &more, &OPERATOR).await;
    pause(&flowgate, "acme").await;
    let theirs = together(&flowgate, 30, TEAM);
    let own = together(&flowgate, 10, OWN);
    until_queued(&flowgate, "acme", |calls| calls == 40.0).await;
    flowgate.write(&format!("{ACME}{}{GAP}{HOLD}", team("disabled = true")));
    flowgate.signal("-HUP").await;
    for reply in theirs.join_all().await {
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (403, "Flowgate.Forbidden")
        );
    }
    resume(&flowgate, "acme").await;
    assert!(own.join_all().await.iter().all(|reply| reply.status == 200));
    let report = sim.report();
    assert_eq!((report.created, report.worst_window), (10, 5));
}

#[tokio::test]
async fn a_removed_account_serves_its_queued_calls() {
    let sim = sim().await;
    let flowgate = Process::with_env(&sim, &format!("{GAP}{HOLD}"), &OPERATOR).await;
    pause(&flowgate, "acme").await;
    let calls = together(&flowgate, 15, OWN);
    until_queued(&flowgate, "acme", |calls| calls == 15.0).await;
    resume(&flowgate, "acme").await;
    flowgate.write(&format!(
        "[[accounts]]\nid = \"other\"\naliases = [\"LTAI-other\"]\n{GAP}{HOLD}"
    ));
    flowgate.signal("-HUP").await;
    flowgate.logged("configuration reloaded", 1).await;
    // Without a configured secret, unknown keys are relayed, and this call is signed for Flowgate.
    let late = call(&flowgate, "late", OWN).send(flowgate.proxy).await;
    assert_eq!(
        (late.status, late.code().as_str()),
        (400, "Flowgate.SignedHostMismatch")
    );
    assert!(
        calls
            .join_all()
            .await
            .iter()
            .all(|reply| reply.status == 200),
        "the queued calls are served"
    );
    assert_eq!((sim.report().created, sim.report().worst_window), (15, 5));
}

fn session(folder: &Path, number: u32) {
    let session = format!(
        "{{\"AccessKeyId\": \"STS.{number}\", \"AccessKeySecret\": \"secret-{number}\", \"SecurityToken\": \"token-{number}\", \"Expiration\": \"2126-01-01T00:00:00Z\"}}"
    );
    std::fs::write(folder.join("new.json"), session).unwrap();
    std::fs::rename(folder.join("new.json"), folder.join("acme.json")).unwrap();
}

#[tokio::test]
async fn an_expired_session_is_replaced_and_the_call_retried() {
    // CAMS knows only the second session.
    let settings = Settings {
        keys: vec!["STS.2:secret-2:acme:token-2".parse().unwrap()],
        ..Settings::default()
    };
    let sim = Sim::start(settings).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    session(folder.path(), 1);
    let toml = "[[accounts]]\nid = \"acme\"\ncredentials = { file = \"acme.json\" }\n";
    let flowgate = Process::configured(&sim, toml, folder, &[]).await;
    let own = ("STS.1", "secret-1");
    let refused = call(&flowgate, "old", own).send(flowgate.proxy).await;
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (403, "Flowgate.AccountCredentials")
    );
    assert_eq!(
        sim.report().arrived,
        1,
        "there is nothing else to sign with"
    );
    session(flowgate.folder.path(), 2);
    // Immediately, and with the session that was read before.
    let reply = call(&flowgate, "new", own).send(flowgate.proxy).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(sim.report().created, 1);
    let metrics = Metrics::of(flowgate.admin).await;
    assert!(metrics.get("flowgate_credentials_expiry_timestamp_seconds{account=\"acme\"}") > 4e9);
    // A rewritten file is noticed without a call.
    session(flowgate.folder.path(), 3);
    Metrics::until(flowgate.admin, DONE, |times| times >= 2.0).await;
}

#[tokio::test]
async fn every_code_of_an_old_session_leads_to_a_new_read() {
    let keys = ["STS.1:secret-1:acme:token-1", "STS.2:secret-2:acme:token-2"];
    let settings = Settings {
        keys: keys.map(|key| key.parse().unwrap()).to_vec(),
        expired: vec!["STS.1".to_owned()],
        ..Settings::default()
    };
    let sim = Sim::start(settings).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    session(folder.path(), 1);
    let toml = "[[accounts]]\nid = \"acme\"\ncredentials = { file = \"acme.json\" }\n";
    let flowgate = Process::configured(&sim, toml, folder, &[]).await;
    let own = ("STS.1", "secret-1");
    let refused = call(&flowgate, "old", own).send(flowgate.proxy).await;
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (403, "Flowgate.AccountCredentials")
    );
    assert!(
        refused
            .body
            .contains("security token is unknown, expired or disabled"),
        "{}",
        refused.body
    );
    session(flowgate.folder.path(), 2);
    let reply = call(&flowgate, "new", own).send(flowgate.proxy).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let report = sim.report();
    assert_eq!((report.created, report.duplicates.len()), (1, 0));
}

#[tokio::test]
async fn hanging_files_do_not_delay_a_call_beyond_its_hold() {
    // CAMS knows another session than the file's.
    let settings = Settings {
        keys: vec!["STS.2:secret-2:acme:token-2".parse().unwrap()],
        ..Settings::default()
    };
    let sim = Sim::start(settings).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    session(folder.path(), 1);
    let toml = "[[accounts]]\nid = \"acme\"\ncredentials = { file = \"acme.json\" }\n[queue]\nhold = \"3s\"\n";
    let flowgate = Process::configured(&sim, toml, folder, &[]).await;
    let config = flowgate.folder.path().join("flowgate.toml");
    let pipe = flowgate.folder.path().join("pipe");
    // Reading a pipe that is open for writing does not end.
    rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    std::fs::rename(&pipe, &config).unwrap();
    flowgate.signal("-HUP").await;
    let give_up = Instant::now() + Duration::from_secs(30);
    let _writer = loop {
        match rustix::fs::open(&config, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty()) {
            Ok(writer) => break writer,
            Err(error) => assert!(Instant::now() < give_up, "the pipe is not read: {error}"),
        }
        tokio::task::yield_now().await;
    };
    let begun = Instant::now();
    let calls = ["one", "two", "three"].map(|name| {
        let call = call(&flowgate, name, ("STS.1", "secret-1"));
        let proxy = flowgate.proxy;
        tokio::spawn(async move { call.send(proxy).await })
    });
    for call in calls {
        let refused = timeout(Duration::from_secs(60), call)
            .await
            .expect("it is answered")
            .unwrap();
        assert_eq!(
            (refused.status, refused.code().as_str()),
            (403, "Flowgate.AccountCredentials")
        );
    }
    assert!(
        begun.elapsed() >= Duration::from_secs(2),
        "they have waited for the files: {:?}",
        begun.elapsed()
    );
}
