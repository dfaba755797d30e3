//! A directory of files as configuration: which files are read, how they are merged, which file a
//! mistake names, and that a running Flowgate notices files that appear, change and disappear.

use std::ffi::OsString;
use std::os::unix::fs::symlink;
use std::path::Path;

use cams_sim::{Running, Settings, Sim};
use flowgate::config::{self, Loaded, effective};
use tokio::process::Command;

use crate::caller::{Call, KEY, SECRET};
use crate::harness::{self, Metrics};
use crate::process::{ACME, Process};

const TEAMS: &str = "tests/data/config/directories/teams";
const SUCCESSFUL: &str = "flowgate_config_last_reload_successful";

/// The variables that the files name.
fn env(more: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    let secrets = [
        ("ACME_SECRET", "acme-secret"),
        ("TEAM_SECRET", "team"),
        ("MANAGED", SECRET),
    ];
    secrets
        .iter()
        .chain(more)
        .map(|(name, value)| (name.into(), value.into()))
        .collect()
}

/// The mistakes of a directory, without its path.
fn mistakes(directory: &Path) -> String {
    let mistakes = config::load(Some(directory), env(&[]))
        .unwrap_err()
        .to_string();
    let directory = directory.display().to_string();
    mistakes
        .replace(&format!("{directory}/"), "")
        .replace(&directory, "DIRECTORY")
}

/// A directory with these files.
fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    files
        .iter()
        .for_each(|(name, text)| std::fs::write(directory.path().join(name), text).unwrap());
    directory
}

#[test]
fn the_files_of_a_directory_are_equal_to_one_file() {
    let Loaded {
        config, warnings, ..
    } = config::load(Some(Path::new(TEAMS)), env(&[])).unwrap();
    assert_eq!(warnings, [""; 0]);
    let ids: Vec<_> = config
        .accounts
        .iter()
        .map(|account| account.id.as_str())
        .collect();
    assert_eq!(ids, ["team-a", "team-b"]);
    let secrets: Vec<_> = config
        .clients
        .iter()
        .map(|client| (client.id.as_str(), client.secrets[0].expose()))
        .collect();
    assert_eq!(secrets, [("a-shop", "file-secret"), ("b-shop", "team")]);
    let together = directory(&[(
        "flowgate.toml",
        r#"
        unknown_keys = "refuse"
        [listen]
        proxy = "127.0.0.1:0"
        names = ["gateway.internal"]
        admin = "[::1]:0"
        [limits]
        preset = "none"
        CreateFlow = { rate = "5/1s", burst = 1 }
        ListFlow = "10/1s"
        [[accounts]]
        id = "team-a"
        access_key_id = "LTAI-team-a-1"
        access_key_secret = { env = "ACME_SECRET" }
        [[accounts]]
        id = "team-b"
        access_key_id = "LTAI-team-b-1"
        access_key_secret = { env = "TEAM_SECRET" }
        [[clients]]
        access_key_id = "a-shop"
        access_key_secret = { env = "TEAM_SECRET" }
        account = "team-a"
        actions = ["CreateFlow"]
        [[clients]]
        access_key_id = "b-shop"
        access_key_secret = { env = "TEAM_SECRET" }
        account = "team-a"
        actions = ["*"]
        "#,
    )]);
    let one = config::load(Some(&together.path().join("flowgate.toml")), env(&[]))
        .unwrap()
        .config;
    assert_eq!(effective(&config), effective(&one));
}

#[test]
fn a_key_in_two_files_is_a_mistake_that_names_both() {
    let expected = std::fs::read_to_string("tests/data/config/directories/conflicts.txt").unwrap();
    assert_eq!(
        mistakes(Path::new("tests/data/config/directories/conflicts")),
        expected.trim_end()
    );
}

#[test]
fn an_unreadable_file_is_a_mistake_of_that_file() {
    let wrong = directory(&[
        ("good.toml", "mode = \"observe\"\n"),
        ("slip.toml", "\n[queue\nhold = \"hunter2\"\n"),
    ]);
    let path = |name: &str| wrong.path().join(name);
    std::fs::write(path("latin1.toml"), b"# \xe4\n").unwrap();
    // Docker creates a directory for a mounted file that does not exist.
    std::fs::create_dir(path("mounted.toml")).unwrap();
    symlink("nowhere.toml", path("dangling.toml")).unwrap();
    assert!(
        std::process::Command::new("mkfifo")
            .arg(path("pipe.toml"))
            .status()
            .unwrap()
            .success()
    );
    let regular = "expected a regular file: every *.toml of the directory is read";
    let expected = [
        "dangling.toml: file not found",
        "latin1.toml: expected a file in UTF-8",
        &format!("mounted.toml: {regular}"),
        &format!("pipe.toml: {regular}"),
        "slip.toml:2: invalid TOML: ",
    ];
    let mistakes = mistakes(wrong.path());
    let lines: Vec<_> = mistakes.lines().collect();
    assert_eq!(lines.len(), expected.len(), "{mistakes}");
    assert!(
        lines
            .iter()
            .zip(expected)
            .all(|(line, expected)| line.starts_with(expected)),
        "{mistakes}"
    );
    assert!(!mistakes.contains("hunter2"), "{mistakes}");
}

#[test]
fn a_directory_without_files_is_a_mistake() {
    let none =
        "DIRECTORY: expected a directory with at least one *.toml file (--config, FLOWGATE_CONFIG)";
    assert_eq!(mistakes(directory(&[]).path()), none);
    assert_eq!(
        mistakes(directory(&[(".acme.toml", ""), ("acme.toml~", ""), ("acme.conf", "")]).path()),
        none
    );
    // An empty file is valid, as it is alone.
    assert!(config::load(Some(directory(&[("empty.toml", "")]).path()), env(&[])).is_ok());
}

#[test]
fn the_environment_counts_the_entries_of_all_files_in_their_order() {
    let variables = [
        ("FLOWGATE_ACCOUNTS__1__ID", "renamed"),
        ("FLOWGATE_LISTEN__NAMES", "other.internal"),
    ];
    let config = config::load(Some(Path::new(TEAMS)), env(&variables))
        .unwrap()
        .config;
    assert_eq!(config.accounts[1].id.as_str(), "renamed");
    assert_eq!(config.listen.names, ["other.internal"]);
    let added = [
        ("FLOWGATE_ACCOUNTS__2__ID", "third"),
        ("FLOWGATE_ACCOUNTS__2__ALIASES", "LTAI-third"),
    ];
    let config = config::load(Some(Path::new(TEAMS)), env(&added))
        .unwrap()
        .config;
    assert_eq!(config.accounts[2].aliases[0].as_str(), "LTAI-third");
}

#[test]
fn files_of_a_config_map_are_read_once() {
    let mount = tempfile::tempdir().unwrap();
    let path = |name: &str| mount.path().join(name);
    std::fs::create_dir(path("..2026_11_29")).unwrap();
    std::fs::write(path("..2026_11_29/acme.toml"), ACME).unwrap();
    symlink("..2026_11_29", path("..data")).unwrap();
    symlink("..data/acme.toml", path("acme.toml")).unwrap();
    let config = config::load(Some(mount.path()), env(&[])).unwrap().config;
    assert_eq!(config.accounts.len(), 1);
}

#[test]
fn check_takes_a_directory_from_the_flag_and_from_the_variable() {
    let check = |variable: Option<&str>, arguments: &[&str]| {
        let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_flowgate"));
        command
            .env_clear()
            .envs(env(&[]))
            .envs(variable.map(|path| ("FLOWGATE_CONFIG", path)));
        command.arg("check").args(arguments).assert()
    };
    check(None, &["--config", TEAMS]).code(0);
    check(Some(TEAMS), &[]).code(0);
    let conflicts = "tests/data/config/directories/conflicts";
    let printed = check(Some(conflicts), &[]).code(64);
    let shown =
        String::from_utf8_lossy(&printed.get_output().stderr).replace(&format!("{conflicts}/"), "");
    assert_eq!(
        shown,
        std::fs::read_to_string(format!("{conflicts}.txt")).unwrap()
    );
}

async fn sim() -> Running {
    Sim::start(Settings::default().with_key(KEY, SECRET, "acme"))
        .await
        .unwrap()
}

/// A Flowgate that reads the directory `conf.d`, with the process's own settings in `00-own.toml`.
async fn running(sim: &Running, mount: tempfile::TempDir) -> Process {
    let directory = mount.path().join("conf.d");
    let own = format!(
        "log = {{ format = \"json\" }}\n[listen]\nproxy = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n[upstream]\nurl = \"{}\"\n",
        sim.url()
    );
    std::fs::write(directory.join("00-own.toml"), own).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_flowgate"));
    command.arg("--config").arg(&directory);
    Process::launch(command, mount).await
}

/// Number of accounts in the effective configuration.
async fn accounts(flowgate: &Process) -> usize {
    harness::get(flowgate.admin, "/config").await.json()["accounts"]
        .as_array()
        .unwrap()
        .len()
}

/// Replaces a file atomically, as editors do. The temporary file is hidden, so it is never read.
fn write(directory: &Path, name: &str, text: &str) {
    let new = directory.join(format!(".{name}"));
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, directory.join(name)).unwrap();
}

fn alias(name: &str) -> String {
    format!("[[accounts]]\nid = \"{name}\"\naliases = [\"LTAI-{name}\"]\n")
}

#[tokio::test]
async fn files_that_appear_change_or_disappear_are_noticed() {
    let sim = sim().await;
    let mount = tempfile::tempdir().unwrap();
    let directory = mount.path().join("conf.d");
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("10-acme.toml"), ACME).unwrap();
    let flowgate = running(&sim, mount).await;
    let reads = async |times| flowgate.logged("configuration reloaded", times).await;
    // A new file.
    write(&directory, "20-other.toml", &alias("other"));
    assert_eq!(reads(1).await[0]["changed"], "accounts");
    assert_eq!(accounts(&flowgate).await, 2);
    // A changed file.
    write(
        &directory,
        "20-other.toml",
        &(alias("other") + &alias("third")),
    );
    reads(2).await;
    assert_eq!(accounts(&flowgate).await, 3);
    // A mistake in one file: the previous configuration stays in force for all of them.
    write(&directory, "30-third.toml", &alias("third"));
    let refused = flowgate
        .logged("configuration reload rejected; keeping the current one", 1)
        .await;
    let mistakes = refused[0]["mistakes"]
        .as_str()
        .unwrap()
        .replace(&format!("{}/", directory.display()), "");
    assert_eq!(
        mistakes,
        "30-third.toml:2: accounts[3].id: already used by accounts[2].id (20-other.toml:5): expected another id\n\
         30-third.toml:3: accounts[3].aliases[0]: already used by accounts[2].aliases[0] (20-other.toml:6): expected another access key id"
    );
    assert_eq!(accounts(&flowgate).await, 3);
    // A removed file.
    std::fs::remove_file(directory.join("20-other.toml")).unwrap();
    reads(3).await;
    assert_eq!(accounts(&flowgate).await, 2);
    let query = [("Categories", "[\"SIGN_UP\"]"), ("FlowName", "one")];
    let call = Call::v3_with(&flowgate.proxy.to_string(), &query, |_| {}, (KEY, SECRET));
    assert_eq!(call.send(flowgate.proxy).await.status, 200);
}

#[tokio::test]
async fn a_config_map_that_kubernetes_swaps_is_noticed() {
    let sim = sim().await;
    let mount = tempfile::tempdir().unwrap();
    let directory = mount.path().join("conf.d");
    let path = |name: &str| directory.join(name);
    std::fs::create_dir_all(path("..first")).unwrap();
    std::fs::write(path("..first/10-acme.toml"), ACME).unwrap();
    symlink("..first", path("..data")).unwrap();
    symlink("..data/10-acme.toml", path("10-acme.toml")).unwrap();
    let flowgate = running(&sim, mount).await;
    // As kubelet does it: a new directory, and the link to it renamed into place.
    std::fs::create_dir(path("..second")).unwrap();
    std::fs::write(
        path("..second/10-acme.toml"),
        format!("{ACME}{}", alias("other")),
    )
    .unwrap();
    symlink("..second", path("..data_tmp")).unwrap();
    std::fs::rename(path("..data_tmp"), path("..data")).unwrap();
    flowgate.logged("configuration reloaded", 1).await;
    assert_eq!(accounts(&flowgate).await, 2);
    assert_eq!(Metrics::of(flowgate.admin).await.get(SUCCESSFUL), 1.0);
}
