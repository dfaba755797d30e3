//! The commands that print: version, effective configuration, status of a running Flowgate,
//! completions and manual pages.

use std::process::{Output, Stdio};
use std::time::Duration;

use cams_sim::{Running, Settings, Sim};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use crate::caller::{KEY, SECRET};
use crate::harness::{Metrics, get};
use crate::process::{ACME, Process};

fn flowgate(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flowgate"));
    command.env_clear().args(args).kill_on_drop(true);
    command
}

/// Exit code, standard output and standard error.
async fn said(args: &[&str]) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = flowgate(args).output().await.unwrap();
    (
        status.code(),
        String::from_utf8(stdout).unwrap(),
        String::from_utf8(stderr).unwrap(),
    )
}

async fn sim() -> Running {
    Sim::start(Settings::default().with_key(KEY, SECRET, "acme"))
        .await
        .unwrap()
}

/// Two calls of one lane: the first is refused with a long pause, so that both wait.
async fn two_wait(sim: &Running, process: &Process) -> [tokio::net::TcpStream; 2] {
    sim.set_faults(vec![
        "next=1,throttle,acs-retry-after=20000".parse().unwrap(),
    ]);
    let queued = async |calls: f64| {
        Metrics::until(
            process.admin,
            "flowgate_queued{account=\"acme\",action=\"CreateFlow\"}",
            |now| now == calls,
        )
        .await;
    };
    let first = process.come("first").await;
    Metrics::until(
        process.admin,
        "flowgate_pause_remaining_seconds{account=\"acme\",action=\"CreateFlow\"}",
        |left| left > 1.0,
    )
    .await;
    queued(1.0).await;
    let second = process.come("second").await;
    queued(2.0).await;
    [first, second]
}

#[tokio::test]
async fn the_version_names_the_commit() {
    let (code, version, _) = said(&["--version"]).await;
    assert_eq!(
        (code, version.trim()),
        (Some(0), &*format!("flowgate {}", flowgate::VERSION))
    );
    let (number, commit) = flowgate::VERSION.split_once(" (").unwrap();
    assert_eq!(number, env!("CARGO_PKG_VERSION"));
    let is_commit =
        |text: &str| text.len() >= 12 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    let commit = commit.strip_suffix(')').unwrap();
    assert!(commit == "unknown" || is_commit(commit), "{commit}");
}

#[tokio::test]
async fn check_prints_the_effective_configuration_without_secrets() {
    let file = "tests/data/config/valid/gateway.toml";
    let mut command = flowgate(&["check", "--print", "--config", file]);
    let printed = command
        .envs([
            ("ACME_SECRET", "acme-secret"),
            ("TEAM_SECRET", "team-secret"),
        ])
        .output()
        .await
        .unwrap();
    let text = String::from_utf8(printed.stdout).unwrap();
    let expected = std::fs::read_to_string("tests/data/config/valid/gateway.json").unwrap();
    assert_eq!(
        text.parse::<Value>().unwrap(),
        expected.parse::<Value>().unwrap()
    );
    assert!(
        !text.contains("acme-secret") && !text.contains("team-secret"),
        "{text}"
    );
    let (code, stdout, _) = said(&[
        "check",
        "--print",
        "--config",
        "tests/data/config/invalid/relations.toml",
    ])
    .await;
    assert_eq!((code, stdout.as_str()), (Some(64), ""));
}

#[tokio::test]
async fn check_live_without_accounts_asks_nothing_and_does_not_mix_with_print() {
    let (code, stdout, stderr) = said(&["check", "--live"]).await;
    assert_eq!(
        (code, &*stdout),
        (Some(0), "no account has credentials\n"),
        "{stderr}"
    );
    let (code, stdout, _) = said(&["check", "--live", "--print"]).await;
    assert_eq!((code, &*stdout), (Some(64), ""));
}

#[tokio::test]
async fn status_shows_lanes_and_their_queues() {
    let sim = sim().await;
    let process = Process::start(&sim, "").await;
    let _calls = two_wait(&sim, &process).await;
    let admin = process.admin.to_string();
    let file = process.folder.path().join("flowgate.toml");
    let (code, table, _) = said(&["status", "--tenants", "--admin", &admin]).await;
    let lines: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        (code, lines[0].join(" ").as_str()),
        (
            Some(0),
            "mode enforce, lanes 1, waiting 2; CAMS is reachable"
        )
    );
    assert_eq!(
        lines[1],
        [
            "ACCOUNT", "ACTION", "QUEUED", "OLDEST", "WAIT", "PAUSE", "RATE", "LIMIT"
        ]
    );
    assert_eq!(lines[2][..3], ["acme", "CreateFlow", "2"]);
    assert_eq!(lines[2][7], "5/s");
    assert_eq!(lines[3][..3], ["LTAI***-1", "-", "2"]);
    let (_, json, _) = said(&["status", "--json", "--admin", &admin]).await;
    assert_eq!(json.parse::<Value>().unwrap()["lanes"][0]["queued"], 2);
    assert_eq!(json.lines().count(), 1);
    // The configuration has port 0; the variable names the port that the system chose.
    let mut command = flowgate(&["status", "--config", file.to_str().unwrap()]);
    let by_config = command
        .env("FLOWGATE_LISTEN__ADMIN", &admin)
        .output()
        .await
        .unwrap();
    assert!(by_config.status.success(), "{by_config:?}");
}

#[tokio::test]
async fn why_tells_the_way_of_a_call_and_fails_for_a_call_that_is_not_kept() {
    let sim = sim().await;
    let process = Process::start(&sim, "").await;
    let admin = process.admin.to_string();
    let caller = process.come("one").await;
    let ended = "flowgate_requests_total{account=\"acme\",action=\"CreateFlow\",outcome=\"ok\"}";
    Metrics::until(process.admin, ended, |ended| ended == 1.0).await;
    drop(caller);
    let calls = get(process.admin, "/calls").await.json();
    let id = calls["calls"][0]["request_id"].as_str().unwrap();
    let (code, text, _) = said(&["why", id, "--admin", &admin]).await;
    assert_eq!(code, Some(0));
    assert!(
        text.starts_with(&format!("{id}\nacme / CreateFlow of ")),
        "{text}"
    );
    assert!(text.contains("attempt 1: CAMS answered OK"), "{text}");
    let (_, json, _) = said(&["why", id, "--json", "--admin", &admin]).await;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["request_id"], id);
    let (code, text, why) = said(&["why", "no such/id", "--admin", &admin]).await;
    assert_eq!((code, &*text), (Some(1), ""));
    assert!(why.contains("No call with this request id"), "{why}");
}

#[tokio::test]
async fn status_watches_until_its_output_is_closed() {
    let sim = sim().await;
    let process = Process::start(&sim, "").await;
    let admin = process.admin.to_string();
    let mut watching = flowgate(&["status", "--watch", "--admin", &admin])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        let line = lines.next_line().await.unwrap().unwrap();
        assert_eq!(line, "mode enforce, lanes 0, waiting 0; CAMS is reachable");
    }
    process.kill().await;
    let gone = format!("cannot connect to {admin} (listen.admin): ");
    let goes_on = async { while !lines.next_line().await.unwrap().unwrap().starts_with(&gone) {} };
    timeout(Duration::from_secs(30), goes_on)
        .await
        .expect("it reports the failure and retries");
    drop(lines);
    assert!(watching.wait().await.unwrap().success());
}

#[tokio::test]
async fn status_sends_the_token_only_to_its_own_listener() {
    let sim = sim().await;
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "a-long-token\n").unwrap();
    let env = [
        ("FLOWGATE_LISTEN__ADMIN", "0.0.0.0:0"),
        (
            "FLOWGATE_LISTEN__ADMIN_TOKEN__FILE",
            token.to_str().unwrap(),
        ),
    ];
    let process = Process::configured(&sim, ACME, tempfile::tempdir().unwrap(), &env).await;
    let admin = format!("127.0.0.1:{}", process.admin.port());
    let mut asked = flowgate(&["status", "--admin", &admin]);
    let Output { status, stderr, .. } = asked.env(env[1].0, env[1].1).output().await.unwrap();
    let code = status.code();
    let why = String::from_utf8(stderr).unwrap();
    let expected = format!(
        "flowgate: {admin}/lanes returned 401: The token of listen.admin_token is required: Authorization: Bearer ... (--token-file)\n"
    );
    assert_eq!((code, why), (Some(1), expected));
    let args = [
        "status",
        "--admin",
        &admin,
        "--token-file",
        token.to_str().unwrap(),
    ];
    assert_eq!(said(&args).await.0, Some(0));
    let mut command = flowgate(&["status"]);
    command
        .env("FLOWGATE_LISTEN__ADMIN", &admin)
        .env(env[1].0, env[1].1);
    assert!(
        command.output().await.unwrap().status.success(),
        "the configuration's own token"
    );
    let (code, _, why) = said(&["status", "--token-file", "none"]).await;
    assert_eq!(
        (code, why.as_str()),
        (Some(64), "--token-file: file not found\n")
    );
}

#[tokio::test]
async fn status_explains_a_refused_connection() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let (code, _, why) = said(&["status", "--admin", &gone]).await;
    let expected = format!(
        "flowgate: cannot connect to {gone} (listen.admin): Connection refused (os error 111): does Flowgate run there?\n"
    );
    assert_eq!((code, why), (Some(1), expected));
    let (code, _, why) = said(&["status", "--admin", "localhost"]).await;
    assert_eq!(code, Some(64));
    assert!(
        why.contains("expected ip:port, name:port, or unix: and an absolute path"),
        "{why}"
    );
}

#[tokio::test]
async fn completions_and_manual_pages_have_every_command() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let (code, script, _) = said(&["completions", shell]).await;
        assert!(
            code == Some(0) && script.contains("token-file") && script.contains("access-key-id"),
            "{shell}: {script}"
        );
    }
    let (code, page, _) = said(&["man"]).await;
    assert!(
        code == Some(0)
            && page.contains("FLOWGATE_CONFIG")
            && page.contains("flowgate\\-status(1)"),
        "{page}"
    );
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(
        said(&["man", folder.path().to_str().unwrap()]).await.0,
        Some(0)
    );
    let pages = [
        "",
        "-check",
        "-client",
        "-client-new",
        "-completions",
        "-health",
        "-init",
        "-init-gateway",
        "-init-sidecar",
        "-journal",
        "-man",
        "-status",
        "-why",
    ];
    for page in pages.map(|name| folder.path().join(format!("flowgate{name}.1"))) {
        assert!(page.exists(), "{}", page.display());
    }
    let written = std::fs::read_to_string(folder.path().join("flowgate.1")).unwrap();
    assert_eq!(written, page);
    let sections: Vec<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix(".SH "))
        .map(|title| title.trim_matches('"'))
        .collect();
    assert_eq!(
        sections,
        [
            "NAME",
            "SYNOPSIS",
            "DESCRIPTION",
            "OPTIONS",
            "SUBCOMMANDS",
            "EXIT STATUS",
            "ENVIRONMENT",
            "FILES",
            "SIGNALS",
            "EXAMPLES",
            "VERSION"
        ]
    );
    let (code, _, why) = said(&["man", "/none"]).await;
    assert_eq!(
        (code, why.as_str()),
        (
            Some(1),
            "flowgate: /none: No such file or directory (os error 2)\n"
        )
    );
}

#[tokio::test]
async fn help_lists_the_exit_codes() {
    let (code, help, _) = said(&["--help"]).await;
    assert_eq!(code, Some(0));
    for line in [
        "-c, --config <PATH>",
        "\n  1   a failed start or a negative result of a command\n",
        "\n  64  an invalid command line, configuration or journal file\n",
    ] {
        assert!(help.contains(line), "{help}");
    }
}

#[tokio::test]
async fn an_initial_configuration_passes_the_check_once_its_secrets_are_there() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("flowgate.toml");
    let file = file.to_str().unwrap();
    let secrets = folder.path().join("secrets");
    let mut args: Vec<_> =
        "init gateway --account acme --access-key-id LTAI-acme --secrets secrets -o"
            .split(' ')
            .collect();
    args.push(file);
    let (code, stdout, next) = said(&args).await;
    assert_eq!((code, &*stdout), (Some(0), ""), "{next}");
    let text = std::fs::read_to_string(file).unwrap();
    let (code, _, says) = said(&["check", "-c", file]).await;
    assert_eq!(code, Some(64));
    assert_eq!(
        says.matches("access_key_secret.file: file not found")
            .count(),
        2,
        "{says}"
    );
    // The steps that it prints.
    let folder = next
        .lines()
        .find_map(|line| line.trim().strip_prefix("mkdir -p -m 0700 "));
    assert_eq!(folder, secrets.to_str());
    std::fs::create_dir(&secrets).unwrap();
    std::fs::write(secrets.join("acme"), "k3y").unwrap();
    let new = next
        .lines()
        .find_map(|line| line.trim().strip_prefix("flowgate client new "));
    let new = ["client", "new"].into_iter().chain(new.unwrap().split(' '));
    let (code, _, says) = said(&new.collect::<Vec<_>>()).await;
    assert_eq!(code, Some(0), "{says}");
    let checked = said(&["check", "-c", file]).await;
    assert_eq!(
        (checked.0, &*checked.2),
        (Some(0), "the configuration is valid\n")
    );
    let (code, _, says) = said(&args).await;
    let expected = format!("flowgate: --output: {file}: the file exists (--force overwrites it)\n");
    assert_eq!((code, says), (Some(64), expected));
    args.push("--force");
    assert_eq!(said(&args).await.0, Some(0));
    assert_eq!(std::fs::read_to_string(file).unwrap(), text);
}

#[tokio::test]
async fn an_initial_configuration_is_printed_without_an_output_file() {
    let (code, text, next) = said(&["init", "sidecar"]).await;
    assert_eq!(
        (code, &*next),
        (Some(0), "next:\n  flowgate check -c FILE\n")
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let checked = said(&["check", "-c", file.path().to_str().unwrap()]).await;
    assert_eq!(
        (checked.0, &*checked.2),
        (Some(0), "the configuration is valid\n")
    );
    let (code, text, says) = said(&["init", "gateway"]).await;
    let expected =
        "flowgate: expected --access-key-id or --credentials: what Flowgate signs with\n";
    assert_eq!((code, &*text, &*says), (Some(64), "", expected));
}

#[tokio::test]
async fn check_names_misspelt_variables_also_beside_a_mistake() {
    let warning = "warning: FLOWGATE_LISTEN_PROXY: unknown variable, ignored: did you mean \
                   FLOWGATE_LISTEN__PROXY?\n";
    let says = async |mode: &str| {
        let mut command = flowgate(&["check"]);
        let output = command
            .env("FLOWGATE_LISTEN_PROXY", "127.0.0.1:1")
            .env("FLOWGATE_MODE", mode)
            .output()
            .await
            .unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (code, valid) = says("enforce").await;
    assert!(code == Some(0) && valid.starts_with(warning), "{valid}");
    let (code, invalid) = says("watch").await;
    assert!(
        code == Some(64) && invalid.starts_with(&format!("{warning}FLOWGATE_MODE: mode: ")),
        "{invalid}"
    );
}

#[tokio::test]
async fn an_empty_flowgate_config_is_as_unset_and_an_empty_argument_a_mistake() {
    let check = |args: &'static [&'static str]| async move {
        let mut command = flowgate(args);
        let Output { status, stderr, .. } =
            command.env("FLOWGATE_CONFIG", "").output().await.unwrap();
        (status.code(), String::from_utf8(stderr).unwrap())
    };
    assert_eq!(
        check(&["check"]).await,
        (
            Some(0),
            "the configuration (environment variables only) is valid\n".into()
        )
    );
    let (code, says) = check(&["check", "--config", ""]).await;
    assert_eq!(code, Some(64));
    assert!(says.contains("--config: expected a path"), "{says}");
}

#[tokio::test]
async fn sources_of_credentials_that_are_not_supported_are_a_warning() {
    let unsupported = "ALIBABA_CLOUD_CREDENTIALS_FILE, ALICLOUD_ROLE_ARN: \
                       not supported, so there is no account";
    let warns = |more: &'static [(&'static str, &'static str)]| async move {
        let Output { status, stderr, .. } = flowgate(&["check"])
            .env("ALIBABA_CLOUD_CREDENTIALS_FILE", "/hidden")
            .env("ALICLOUD_ROLE_ARN", "acs:ram::1:role/hidden")
            .envs(more.iter().copied())
            .output()
            .await
            .unwrap();
        assert_eq!(status.code(), Some(0));
        String::from_utf8(stderr).unwrap()
    };
    let says = warns(&[]).await;
    assert!(says.contains(&format!("warning: {unsupported}")), "{says}");
    assert!(!says.contains("hidden"), "{says}");
    let key = [
        ("ALIBABA_CLOUD_ACCESS_KEY_ID", "LTAI"),
        ("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "k3y"),
    ];
    let says = warns(Box::leak(Box::new(key))).await;
    assert!(!says.contains("not supported"), "{says}");
}

#[tokio::test]
async fn check_prints_the_source_of_each_account() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("flowgate.toml");
    let source = "credentials = { assume_role = { from = { ecs_role = { role = \"flowgate\" } }, \
                  role_arn = \"acs:ram::123456789012:role/x\" } }";
    let account =
        |index| format!("[[accounts]]\nid = \"relayed-{index}\"\naliases = [\"LTAI-{index}\"]\n");
    let others: String = (0..21).map(account).collect();
    let toml = format!(
        "[sts]\nregion = \"ap-southeast-1\"\n[[accounts]]\nid = \"acme\"\n{source}\n{others}"
    );
    std::fs::write(&file, toml).unwrap();
    let Output {
        status,
        stdout,
        stderr,
    } = flowgate(&["check", "--config", file.to_str().unwrap()])
        .output()
        .await
        .unwrap();
    assert_eq!(status.code(), Some(0));
    let stdout = String::from_utf8(stdout).unwrap();
    let lines: Vec<_> = stdout.lines().collect();
    assert_eq!(lines.len(), 21, "{stdout}");
    assert_eq!(
        lines[0],
        "account acme: AssumeRole acs:ram::123456789012:role/x, from the ECS role flowgate; \
         STS at sts.ap-southeast-1.aliyuncs.com"
    );
    assert_eq!(
        lines[1],
        "account relayed-0: no credentials: calls are relayed as their callers sign them"
    );
    assert_eq!(lines[20], "and 2 more accounts");
    assert_eq!(
        String::from_utf8(stderr).unwrap(),
        "warning: accounts without clients: acme: no caller can use their temporary credentials: \
         add [[clients]] (flowgate client new)\nthe configuration is valid\n"
    );
}

#[tokio::test]
async fn a_new_client_must_fit_into_the_configuration_that_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("flowgate.toml");
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "k3y").unwrap();
    let toml = "[[accounts]]\nid = \"acme\"\naccess_key_id = \"LTAI-acme\"\naccess_key_secret = { file = \"secret\" }\n\
                aliases = [\"LTAI-second\"]\n[[accounts]]\nid = \"partner\"\naliases = [\"LTAI-third\"]\n";
    std::fs::write(&file, toml).unwrap();
    let config = file.to_str().unwrap();
    for (id, account, mistake) in [
        ("team-a", "acme", None),
        (
            "LTAI-acme",
            "acme",
            Some("--id: the configuration has this access key id already"),
        ),
        (
            "LTAI-second",
            "acme",
            Some("--id: the configuration has this access key id already"),
        ),
        (
            "team-a",
            "acne",
            Some("--account: no account of the configuration has this id"),
        ),
        (
            "team-a",
            "partner",
            Some(
                "--account: this account has no secret in the configuration, so it cannot have clients",
            ),
        ),
    ] {
        let args = [
            "client",
            "new",
            "--id",
            id,
            "--account",
            account,
            "--config",
            config,
        ];
        let (code, shown, says) = said(&args).await;
        match mistake {
            None => assert!(code == Some(0) && shown.contains("[[clients]]"), "{says}"),
            Some(mistake) => assert_eq!(
                (code, shown.as_str(), says),
                (Some(64), "", format!("flowgate: {mistake}\n"))
            ),
        }
    }
    // The account of a sidecar is defined by the variables of its pod, which are not set here.
    std::fs::write(&file, "").unwrap();
    let args = ["client", "new", "--id", "a", "--config", config];
    let (code, shown, says) = said(&args).await;
    assert!(
        code == Some(0) && shown.contains("account = \"default\""),
        "{says}"
    );
    std::fs::write(&file, "mode = 7").unwrap();
    let (code, shown, says) = said(&args).await;
    assert!(code == Some(0) && shown.contains("[[clients]]"));
    assert!(
        says.starts_with("warning: the configuration has mistakes"),
        "{says}"
    );
}

#[tokio::test]
async fn status_uses_the_token_of_a_configuration_with_other_mistakes() {
    let sim = sim().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "admin-token-1").unwrap();
    let token = format!(
        "[listen]\nproxy = \"127.0.0.1:0\"\nadmin = \"0.0.0.0:0\"\nadmin_token = {{ file = \"{}\" }}\n",
        file.display()
    );
    let running = folder.path().join("running.toml");
    let toml = format!(
        "log = {{ format = \"json\" }}\n{token}[upstream]\nurl = \"{}\"\n{ACME}",
        sim.url()
    );
    std::fs::write(&running, toml).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_flowgate"));
    command.arg("--config").arg(&running);
    let process = Process::launch(command, folder).await;
    let edited = process.folder.path().join("edited.toml");
    let token = token.replace("0.0.0.0:0", &process.admin.to_string());
    std::fs::write(&edited, format!("mode = \"watch\"\n{token}")).unwrap();
    let (code, shown, says) =
        said(&["status", "--json", "--config", edited.to_str().unwrap()]).await;
    assert_eq!(code, Some(0), "{says}");
    assert!(shown.contains("\"lanes\""), "{shown}");
    // A mistake in the token itself is said.
    std::fs::write(&file, "admin-token-1 ").unwrap();
    let (code, _, says) = said(&["status", "--json", "--config", edited.to_str().unwrap()]).await;
    assert_eq!(code, Some(64));
    assert!(
        says.contains("listen.admin_token.file: the secret ends with a blank"),
        "{says}"
    );
}
