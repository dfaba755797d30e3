//! Failed starts: the message names the key, the mistake and what to do; and the exit code.

use std::os::unix::net::UnixListener;
use std::process::Output;
use std::time::Duration;

use cams_sim::{Settings, Sim};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::time::timeout;

use crate::caller::{KEY, SECRET};
use crate::process::Process;
use crate::redis::Redis;

/// Free ports for both listeners.
const FREE: &str = "[listen]\nproxy = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n";

/// The error messages of a start with this configuration; `FOLDER` in it is replaced by the
/// configuration's folder.
async fn refused(toml: &str, folder: &tempfile::TempDir) -> (Option<i32>, String) {
    let file = folder.path().join("flowgate.toml");
    let path = folder.path().to_str().unwrap();
    std::fs::write(&file, toml.replace("FOLDER", path)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_flowgate"));
    command
        .env_clear()
        .arg("--config")
        .arg(&file)
        .kill_on_drop(true);
    let ended = timeout(Duration::from_secs(30), command.output()).await;
    let Output { status, stderr, .. } = ended.expect("it does not run with that").unwrap();
    let said = String::from_utf8(stderr).unwrap().replace(path, "FOLDER");
    // Log lines are not checked here.
    let last = said
        .lines()
        .filter(|line| line.starts_with("flowgate: ") || line.starts_with("FOLDER/"));
    (
        status.code(),
        last.map(|line| format!("{line}\n")).collect(),
    )
}

#[tokio::test]
async fn a_start_fails_on_a_port_in_use() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let folder = tempfile::tempdir().unwrap();
    for (key, other) in [("proxy", "admin"), ("admin", "proxy")] {
        let toml = format!("[listen]\n{key} = \"{taken}\"\n{other} = \"127.0.0.1:0\"\n");
        let expected = format!(
            "flowgate: cannot listen on {taken} (listen.{key}): Address already in use (os error 98): stop the process that listens there, or choose another port\n"
        );
        assert_eq!(refused(&toml, &folder).await, (Some(1), expected));
    }
}

#[tokio::test]
async fn a_start_fails_on_an_unusable_socket_path() {
    let folder = tempfile::tempdir().unwrap();
    let _listens = UnixListener::bind(folder.path().join("taken.sock")).unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    for (path, says) in [
        (
            "taken.sock",
            "Address already in use (os error 98): stop the process that listens there, or choose another path",
        ),
        (
            "file",
            "Address already in use (os error 98): the path exists and is not a socket: choose another path",
        ),
        (
            "none/a.sock",
            "No such file or directory (os error 2): create the directory, or choose another path",
        ),
    ] {
        let toml = format!("[listen]\nproxy = \"unix:FOLDER/{path}\"\nadmin = \"127.0.0.1:0\"\n");
        let expected =
            format!("flowgate: cannot listen on unix:FOLDER/{path} (listen.proxy): {says}\n");
        assert_eq!(refused(&toml, &folder).await, (Some(1), expected));
    }
}

#[tokio::test]
async fn a_start_fails_on_an_unreadable_configuration() {
    let folder = tempfile::tempdir().unwrap();
    for (file, says) in [
        ("none.toml", "file not found"),
        ("", "expected a directory with at least one *.toml file"),
    ] {
        let file = folder.path().join(file);
        let mut command = Command::new(env!("CARGO_BIN_EXE_flowgate"));
        let said = command
            .env_clear()
            .arg("--config")
            .arg(&file)
            .output()
            .await
            .unwrap();
        let expected = format!("{}: {says} (--config, FLOWGATE_CONFIG)\n", file.display());
        assert_eq!(
            (said.status.code(), String::from_utf8(said.stderr).unwrap()),
            (Some(64), expected)
        );
    }
}

#[tokio::test]
async fn a_start_fails_on_missing_or_mismatched_secrets_and_keys() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["one", "two"] {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(folder.path().join(format!("{name}.pem")), made.cert.pem()).unwrap();
        std::fs::write(
            folder.path().join(format!("{name}.key")),
            made.signing_key.serialize_pem(),
        )
        .unwrap();
    }
    let toml = format!(
        "{FREE}tls = {{ cert = \"one.pem\", key = \"two.key\" }}\n[[accounts]]\nid = \"acme\"\naccess_key_id = \"LTAI\"\naccess_key_secret = {{ env = \"UNSET\" }}\n"
    );
    let expected = "\
FOLDER/flowgate.toml:4: listen.tls.key: expected the private key of the certificate in listen.tls.cert
FOLDER/flowgate.toml:8: accounts[0].access_key_secret.env: expected the name of an environment variable that is set and not empty (name not printed: it could be a secret)
";
    assert_eq!(
        refused(&toml, &folder).await,
        (Some(64), expected.to_owned())
    );
}

#[tokio::test]
async fn a_start_fails_on_a_journal_without_a_directory() {
    let folder = tempfile::tempdir().unwrap();
    let expected = "flowgate: cannot open the journal FOLDER/none/journal (journal): No such file or directory (os error 2): create the directory, or choose another path\n";
    let said = refused(&format!("journal = \"none/journal\"\n{FREE}"), &folder).await;
    assert_eq!(said, (Some(1), expected.to_owned()));
}

#[tokio::test]
async fn an_evicting_store_stops_the_start_and_an_unreachable_one_does_not() {
    let redis = Redis::with(&["--maxmemory-policy", "allkeys-lru"]).await;
    let folder = tempfile::tempdir().unwrap();
    let expected = "flowgate: quota.store: the shared store evicts keys (maxmemory-policy allkeys-lru), which would forget spent tokens: set it to noeviction\n";
    let said = refused(
        &format!("{FREE}[quota]\nstore = \"{}\"\n", redis.url()),
        &folder,
    )
    .await;
    assert_eq!(said, (Some(1), expected.to_owned()));

    let sim = Sim::start(Settings::default().with_key(KEY, SECRET, "acme"))
        .await
        .unwrap();
    let gone = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let process = Process::start(&sim, &format!("[quota]\nstore = \"redis://{gone}\"\n")).await;
    process
        .logged("the shared store cannot be reached; retrying", 1)
        .await;
}
