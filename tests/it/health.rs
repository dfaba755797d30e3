//! `flowgate health` against processes that live, drain, do not move and are not there: what it prints, and its exit code.

use std::process::Output;

use cams_sim::{Running, Settings, Sim};
use tokio::net::TcpListener;
use tokio::process::Command;

use crate::caller::{KEY, SECRET};
use crate::process::{ACME, Process};

/// Asks by a configuration of its own; `more` stands after `admin`.
async fn health(admin: &str, more: &str, args: &[&str]) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("flowgate.toml");
    std::fs::write(&file, format!("listen.admin = \"{admin}\"\n{more}")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_flowgate"));
    command
        .env_clear()
        .arg("health")
        .args(args)
        .arg("--config")
        .arg(&file);
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().await.unwrap();
    let said = String::from_utf8([stdout, stderr].concat()).unwrap();
    (
        status.code(),
        said.replace(folder.path().to_str().unwrap(), "."),
    )
}

async fn sim() -> Running {
    Sim::start(Settings::default().with_key(KEY, SECRET, "acme"))
        .await
        .unwrap()
}

#[tokio::test]
async fn who_lives_is_healthy_and_who_drains_is_not_ready() {
    let sim = sim().await;
    let process = Process::start(&sim, "[drain]\ndelay = \"1m\"\n").await;
    let admin = process.admin.to_string();
    assert_eq!(health(&admin, "", &[]).await, (Some(0), "ok\n".into()));
    assert_eq!(
        health(&admin, "", &["--ready"]).await,
        (Some(0), "ok\n".into())
    );
    let wrong = "mode = \"watch\"\n[[accounts]]\naccess_key_secret = { env = \"UNSET\" }\n";
    assert_eq!(
        health(&admin, wrong, &[]).await,
        (Some(0), "ok\n".into()),
        "the process goes on with what was right"
    );
    process.signal("-TERM").await;
    process
        .logged("draining; a second signal ends at once", 1)
        .await;
    assert_eq!(health(&admin, "", &[]).await, (Some(0), "ok\n".into()));
    let expected = format!("flowgate: {admin}/readyz says 503: draining\n");
    assert_eq!(health(&admin, "", &["--ready"]).await, (Some(1), expected));
}

#[tokio::test]
async fn a_unix_socket_and_every_address_can_be_asked() {
    let (sim, folder) = (sim().await, tempfile::tempdir().unwrap());
    let socket = format!("unix:{}", folder.path().join("admin.sock").display());
    let env = [("FLOWGATE_LISTEN__ADMIN", socket.as_str())];
    let process = Process::configured(&sim, ACME, tempfile::tempdir().unwrap(), &env).await;
    assert_eq!(
        health(&socket, "", &["--ready"]).await,
        (Some(0), "ok\n".into())
    );
    drop(process);
    let env = [("FLOWGATE_LISTEN__ADMIN", "0.0.0.0:0")];
    let process = Process::configured(&sim, ACME, tempfile::tempdir().unwrap(), &env).await;
    assert_eq!(
        health(&process.admin.to_string(), "", &["--ready"]).await,
        (Some(0), "ok\n".into())
    );
}

#[tokio::test]
async fn who_does_not_answer_is_not_healthy() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let admin = listener.local_addr().unwrap().to_string();
    let slow = format!("flowgate: no answer from {admin} (listen.admin) within 2 s\n");
    assert_eq!(health(&admin, "", &[]).await, (Some(1), slow));
    let (asked, ()) = tokio::join!(health(&admin, "", &[]), async {
        // The one before has hung up already and still stands in the line.
        for _ in 0..2 {
            drop(listener.accept().await.unwrap());
        }
    });
    assert_eq!(asked.0, Some(1));
    assert!(
        asked.1.starts_with(&format!(
            "flowgate: no answer from {admin} (listen.admin): "
        )),
        "{}",
        asked.1
    );
    drop(listener);
    let gone = format!(
        "flowgate: cannot connect to {admin} (listen.admin): Connection refused (os error 111)\n"
    );
    assert_eq!(health(&admin, "", &[]).await, (Some(1), gone));
}

#[tokio::test]
async fn what_says_nowhere_where_to_ask_is_a_bad_configuration() {
    let expected = "./flowgate.toml:1: listen.admin: expected ip:port such as 127.0.0.1:8080, or unix: and an absolute path such as unix:/run/flowgate.sock\n";
    assert_eq!(
        health("nowhere", "mode = 7", &[]).await,
        (Some(64), expected.into())
    );
    let (code, said) = health("127.0.0.1:1\n", "", &[]).await;
    assert_eq!(code, Some(64), "{said}");
}
