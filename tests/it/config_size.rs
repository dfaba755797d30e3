//! Large configurations: the work is linear in the number of accounts, the file size has a limit,
//! and calls are served during a reload.

use std::ffi::OsString;
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use cams_sim::{Settings, Sim};
use flowgate::config::{self, Source, effective};
use tokio::process::Command;

use crate::caller::{Call, KEY, SECRET};
use crate::harness;
use crate::process::{ACME, Process};

/// Writes this many accounts, with secret files or with one variable, and a client of each.
fn configuration(folder: &Path, count: usize, files: bool) {
    let mut text = String::new();
    for index in 0..count {
        let place = if files {
            std::fs::write(
                folder.join(format!("secret-{index}")),
                format!("secret-{index}\n"),
            )
            .unwrap();
            format!("{{ file = \"secret-{index}\" }}")
        } else {
            "{ env = \"SECRET\" }".to_owned()
        };
        write!(
            text,
            "[[accounts]]\nid = \"account-{index}\"\naccess_key_id = \"LTAI-{index}\"\naccess_key_secret = {place}\n\n\
             [[clients]]\naccess_key_id = \"team-{index}\"\naccess_key_secret = {{ env = \"SECRET\" }}\n\
             account = \"account-{index}\"\nactions = [\"CreateFlow\"]\n\n"
        )
        .unwrap();
    }
    std::fs::write(folder.join("flowgate.toml"), text).unwrap();
}

/// CPU time of this thread, which other processes do not affect.
fn ran() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

/// Seconds for each account, the minimum of three attempts.
fn per_account(folder: &Path, count: usize) -> f64 {
    let environment: Vec<(OsString, OsString)> = vec![("SECRET".into(), "secret".into())];
    let source = Source {
        file: Some(folder.join("flowgate.toml")),
        environment: Some(environment),
    };
    let attempt = |_| {
        let begun = ran();
        let loaded = source.load().unwrap();
        assert_eq!(loaded.config.accounts.len(), count);
        drop(effective(&loaded.config));
        (ran() - begun).as_secs_f64() / count as f64
    };
    (0..3).map(attempt).fold(f64::INFINITY, f64::min)
}

#[test]
fn loading_takes_linear_time_in_the_number_of_accounts() {
    for files in [false, true] {
        let [few, many] = [1_000, 10_000].map(|count| {
            let folder = tempfile::tempdir().unwrap();
            configuration(folder.path(), count, files);
            per_account(folder.path(), count)
        });
        // Quadratic work would give ten.
        assert!(
            many < 3.0 * few,
            "files: {files}, seconds for an account: {few} among 1,000, {many} among 10,000"
        );
    }
}

#[test]
fn a_file_over_64_mib_is_refused_with_its_size() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flowgate.toml");
    std::fs::write(
        &path,
        format!("{}mode = \"observe\"\n", "#".repeat(3 << 20) + "\n"),
    )
    .unwrap();
    assert!(config::load(Some(&path), []).is_ok());
    std::fs::File::create(&path)
        .unwrap()
        .set_len((64 << 20) + 1)
        .unwrap();
    let mistakes = config::load(Some(&path), []).unwrap_err().to_string();
    assert_eq!(
        mistakes,
        format!(
            "{}: expected a file of at most 64MiB, found 67108865B",
            path.display()
        )
    );
}

#[tokio::test]
async fn calls_are_served_while_the_configuration_is_read() {
    let sim = Sim::start(Settings::default().with_key(KEY, SECRET, "acme"))
        .await
        .unwrap();
    let flowgate = Process::with_threads(&sim, "", 1).await;
    // A pipe blocks the reader until it is written.
    let config = flowgate.folder.path().join("flowgate.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::remove_file(&config).unwrap();
    assert!(
        Command::new("mkfifo")
            .arg(&config)
            .status()
            .await
            .unwrap()
            .success()
    );
    flowgate.signal("-HUP").await;
    let opened = tokio::task::spawn_blocking(move || std::fs::File::create(config).unwrap());
    let mut pipe = opened.await.unwrap();
    let query = [("Categories", "[\"SIGN_UP\"]"), ("FlowName", "meanwhile")];
    let call = Call::v3_with(&flowgate.proxy.to_string(), &query, |_| {}, (KEY, SECRET));
    assert_eq!(call.send(flowgate.proxy).await.status, 200);
    assert_eq!(harness::get(flowgate.admin, "/livez").await.status, 200);
    let more = text.replace(ACME, &format!("{ACME}aliases = [\"LTAI-second\"]\n"));
    std::io::Write::write_all(&mut pipe, more.as_bytes()).unwrap();
    drop(pipe);
    assert_eq!(
        flowgate.logged("configuration reloaded", 1).await[0]["changed"],
        "accounts"
    );
}
