//! `flowgate client new`: the printed lines are a valid configuration, and calls signed with the
//! pair are accepted.

use std::process::Output;

use cams_sim::{Settings, Sim};

use crate::caller::{Call, KEY, SECRET};
use crate::process::Process;

/// `flowgate client new`.
fn new(arguments: &[&str]) -> Output {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_flowgate"));
    command
        .args(["client", "new"])
        .args(arguments)
        .output()
        .unwrap()
}

/// Checks that a Flowgate with these lines accepts a call signed with the pair, and none with
/// another secret.
async fn passes(lines: &str, secret: &str, env: &[(&str, &str)]) {
    let sim = Sim::start(Settings::default().with_key(KEY, SECRET, "acme"))
        .await
        .unwrap();
    let process = Process::with_env(&sim, lines, env).await;
    let host = process.proxy.to_string();
    let form = [("Categories", "[\"SIGN_UP\"]"), ("FlowName", "x")];
    let call = |secret| Call::v3_with(&host, &form, |_| {}, ("team-a", secret));
    assert_eq!(
        call("another-secret").send(process.proxy).await.code(),
        "SignatureDoesNotMatch"
    );
    assert_eq!(call(secret).send(process.proxy).await.status, 200);
}

#[tokio::test]
async fn the_printed_client_can_call() {
    let output = new(&["--id", "team-a", "--account", "acme"]);
    assert_eq!(
        (output.status.code(), output.stderr.as_slice()),
        (Some(0), b"".as_slice())
    );
    let printed = String::from_utf8(output.stdout).unwrap();
    let (secret, lines) = printed.split_once("\n\n").unwrap();
    let secret = secret.strip_prefix("secret: ").unwrap();
    assert!(
        !lines.contains(secret) && lines.contains("{ env = \"FLOWGATE_CLIENT_TEAM_A_SECRET\" }"),
        "{lines}"
    );
    passes(lines, secret, &[("FLOWGATE_CLIENT_TEAM_A_SECRET", secret)]).await;
}

#[tokio::test]
async fn a_secret_can_be_written_to_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("team-a.secret");
    let arguments = [
        "--id",
        "team-a",
        "--account",
        "acme",
        "--secret-file",
        path.to_str().unwrap(),
    ];
    let lines = String::from_utf8(new(&arguments).stdout).unwrap();
    assert!(lines.starts_with("[[clients]]\n"), "{lines}");
    passes(&lines, &std::fs::read_to_string(&path).unwrap(), &[]).await;
    let again = new(&arguments);
    assert_eq!(
        (again.status.code(), again.stdout.as_slice()),
        (Some(64), b"".as_slice())
    );
    assert!(
        String::from_utf8(again.stderr)
            .unwrap()
            .ends_with("the file exists: name another one, or remove it\n")
    );
}

#[test]
fn check_accepts_the_printed_lines() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("flowgate.toml");
    let secret = folder.path().join("secret");
    let lines = new(&["--id", "team-a", "--secret-file", secret.to_str().unwrap()]).stdout;
    std::fs::write(&config, lines).unwrap();
    let mut check = std::process::Command::new(env!("CARGO_BIN_EXE_flowgate"));
    // The account of Alibaba's own variables.
    let env = [
        ("ALIBABA_CLOUD_ACCESS_KEY_ID", KEY),
        ("ALIBABA_CLOUD_ACCESS_KEY_SECRET", SECRET),
    ];
    let output = check
        .arg("check")
        .arg("--config")
        .arg(&config)
        .envs(env)
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "the configuration is valid\n"
    );
    assert_eq!(output.status.code(), Some(0));
}
