//! `flowgate health` for processes that serve, drain, hang or are absent: its output and its exit
//! code.

use std::process::Output;

use cams_sim::{Running, Settings, Sim};
use tokio::net::TcpListener;
use tokio::process::Command;

use crate::caller::{KEY, SECRET};
use crate::process::{ACME, Process};

/// Runs `flowgate health` with a configuration of its own; `more` follows `admin`.
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
async fn a_serving_process_is_healthy_and_a_draining_one_is_not_ready() {
    let sim = sim().await;
    let process = Process::start(&sim, "[drain]\ndelay = \"1m\"\n").await;
    let admin = process.admin.to_string();
    assert_eq!(health(&admin, "", &[]).await, (Some(0), "ok\n".into()));
    assert_eq!(
        health(&admin, "", &["--ready"]).await,
        (Some(0), "ok\n".into())
    );
    assert_eq!(
        health("127.0.0.1:1", "", &["--ready", "--admin", &admin]).await,
        (Some(0), "ok\n".into())
    );
    let wrong = "mode = \"watch\"\n[[accounts]]\naccess_key_secret = { env = \"UNSET\" }\n";
    assert_eq!(
        health(&admin, wrong, &[]).await,
        (Some(0), "ok\n".into()),
        "the process keeps its valid configuration"
    );
    process.signal("-TERM").await;
    process
        .logged("draining; a second signal exits immediately", 1)
        .await;
    assert_eq!(health(&admin, "", &[]).await, (Some(0), "ok\n".into()));
    let expected = format!("flowgate: {admin}/readyz returned 503: draining\n");
    assert_eq!(health(&admin, "", &["--ready"]).await, (Some(1), expected));
}

#[tokio::test]
async fn health_uses_unix_sockets_and_wildcard_addresses() {
    let sim = sim().await;
    let folder = tempfile::tempdir().unwrap();
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
async fn a_process_that_does_not_answer_is_unhealthy() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let admin = listener.local_addr().unwrap().to_string();
    let slow = format!("flowgate: no answer from {admin} (listen.admin) within 2 s\n");
    assert_eq!(health(&admin, "", &[]).await, (Some(1), slow));
    let (asked, ()) = tokio::join!(health(&admin, "", &[]), async {
        // The previous connection was closed by its client and is still in the backlog.
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
async fn an_invalid_admin_address_is_a_configuration_mistake() {
    let expected = "./flowgate.toml:1: listen.admin: expected ip:port such as 127.0.0.1:8080, or unix: and an absolute path such as unix:/run/flowgate.sock\n";
    assert_eq!(
        health("nowhere", "mode = 7", &[]).await,
        (Some(64), expected.into())
    );
    let (code, said) = health("127.0.0.1:1\n", "", &[]).await;
    assert_eq!(code, Some(64), "{said}");
}
