//! Configuration files: every invalid file in `tests/data/config/invalid` has its exact mistakes
//! beside it, every valid one its effective configuration. Environment variables override files in
//! the documented order.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flowgate::config::{self, AccountCredentials, Bind, Config, Loaded, UnknownKeys, effective};

/// The variables that the files in `tests/data/config` name.
const VARIABLES: [(&str, &str); 6] = [
    ("ACME_SECRET", "acme-secret"),
    ("ACME_ACCESS_KEY_ID", "LTAI-acme-9999"),
    ("ACME_ACCESS_KEY_SECRET", "acme-secret"),
    ("TEAM_SECRET", "team"),
    ("EMPTY_SECRET", ""),
    ("PROXY", "user:pass"),
];

fn env(variables: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    variables
        .iter()
        .map(|(name, value)| (name.into(), value.into()))
        .collect()
}

fn from_env(variables: &[(&str, &str)]) -> Result<Loaded, String> {
    config::load(None, env(variables)).map_err(|mistakes| mistakes.to_string())
}

fn config(variables: &[(&str, &str)]) -> Config {
    let Loaded {
        config, warnings, ..
    } = from_env(variables).expect("the variables are right");
    assert_eq!(warnings, [""; 0]);
    config
}

/// Relative to the package, where tests start, so that messages do not depend on the machine.
fn files(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new("tests/data/config").join(folder);
    let paths = std::fs::read_dir(folder)
        .expect("the folder is there")
        .flatten()
        .map(|entry| entry.path());
    let mut files: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|it| it == "toml"))
        .collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

#[test]
fn each_invalid_file_gets_exactly_its_mistakes() {
    for file in files("invalid") {
        let mistakes = config::load(Some(&file), env(&VARIABLES))
            .unwrap_err()
            .to_string();
        let shown = mistakes.replace("tests/data/config/invalid/", "");
        let expected = std::fs::read_to_string(file.with_extension("txt")).unwrap();
        assert_eq!(shown, expected.trim_end(), "{}", file.display());
    }
}

#[test]
fn each_valid_file_has_exactly_its_effective_configuration() {
    for file in files("valid") {
        let Loaded {
            config, warnings, ..
        } = config::load(Some(&file), env(&VARIABLES)).unwrap();
        let expected = std::fs::read_to_string(file.with_extension("json")).unwrap();
        assert_eq!(
            effective(&config),
            expected.parse::<serde_json::Value>().unwrap(),
            "{}",
            file.display()
        );
        let odd = file.ends_with("gateway.toml");
        let doubt = "limits.NewAction: no documented limit has this action: check the spelling";
        assert_eq!(
            warnings,
            if odd { vec![doubt] } else { vec![] },
            "{}",
            file.display()
        );
    }
}

#[test]
fn secrets_are_read_from_variables_and_files() {
    let Loaded { config, .. } = config::load(
        Some(Path::new("tests/data/config/valid/gateway.toml")),
        env(&VARIABLES),
    )
    .unwrap();
    assert_eq!(
        config.accounts[0]
            .credentials
            .as_ref()
            .and_then(AccountCredentials::loaded)
            .unwrap()
            .secret
            .expose(),
        "acme-secret"
    );
    let clients: Vec<_> = config
        .clients
        .iter()
        .map(|client| client.secrets[0].expose())
        .collect();
    assert_eq!(clients, ["file-secret", "team"]);
}

#[test]
fn the_example_file_states_the_defaults() {
    let secrets = env(&[("ACME_SECRET", "a"), ("FLOWGATE_CLIENT_TEAM_A_SECRET", "b")]);
    let Loaded {
        config: example,
        warnings,
        ..
    } = config::load(Some(Path::new("docs/flowgate.example.toml")), secrets).unwrap();
    assert_eq!(warnings, [""; 0]);
    let mut example = effective(&example);
    let mut without = effective(&config(&[]));
    for own in ["accounts", "clients", "unknown_keys"] {
        assert!(example.as_object_mut().unwrap().remove(own).is_some());
        without.as_object_mut().unwrap().remove(own);
    }
    assert_eq!(example, without);
}

#[test]
fn a_missing_file_is_one_mistake() {
    let mistakes = config::load(Some(Path::new("no/such.toml")), env(&[])).unwrap_err();
    assert_eq!(
        mistakes.to_string(),
        "no/such.toml: file not found (--config, FLOWGATE_CONFIG)"
    );
    assert_eq!(
        mistakes
            .iter()
            .map(|mistake| (mistake.line(), mistake.key()))
            .collect::<Vec<_>>(),
        [(None, "")]
    );
}

#[test]
fn alibabas_own_variables_are_one_account() {
    let key = ("ALIBABA_CLOUD_ACCESS_KEY_ID", "LTAI-first");
    let secret = ("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "first-secret");
    let token = ("ALIBABA_CLOUD_SECURITY_TOKEN", "first-token");

    let config = config(&[key, secret]);
    assert_eq!(config.unknown_keys, UnknownKeys::Refuse);
    let [account] = &config.accounts[..] else {
        panic!("{:?}", config.accounts)
    };
    let credentials = account.credentials.as_ref().unwrap().loaded().unwrap();
    assert_eq!((account.id.as_str(), account.aliases.len()), ("default", 0));
    assert_eq!(
        (
            credentials.access_key_id.as_str(),
            credentials.secret.expose()
        ),
        ("LTAI-first", "first-secret")
    );
    assert!(credentials.security_token.is_none());

    let with_token = self::config(&[key, secret, token]);
    let credentials = with_token.accounts[0].credentials.as_ref().unwrap();
    let credentials = credentials.loaded().unwrap();
    assert_eq!(
        credentials.security_token.as_ref().unwrap().expose(),
        "first-token"
    );

    // Kubernetes sets an optional variable to the empty string.
    let Loaded {
        config, warnings, ..
    } = from_env(&[(key.0, ""), (secret.0, "")]).unwrap();
    assert!(config.accounts.is_empty());
    let empty = |name| format!("{name}: set but empty, so it defines no account");
    assert_eq!(warnings, [empty(key.0), empty(secret.0)]);
    let mistake =
        "ALIBABA_CLOUD_ACCESS_KEY_ID: expected ALIBABA_CLOUD_ACCESS_KEY_SECRET to be set too";
    assert_eq!(from_env(&[key]).unwrap_err(), mistake);
    let mistake =
        "ALIBABA_CLOUD_ACCESS_KEY_SECRET: expected ALIBABA_CLOUD_ACCESS_KEY_ID to be set too";
    assert_eq!(from_env(&[secret]).unwrap_err(), mistake);

    // A configured account takes precedence.
    let written = [
        key,
        secret,
        ("FLOWGATE_ACCOUNTS__0__ID", "acme"),
        ("FLOWGATE_ACCOUNTS__0__ALIASES", "LTAI-second"),
    ];
    let Loaded {
        config, warnings, ..
    } = from_env(&written).unwrap();
    let ids: Vec<_> = config
        .accounts
        .iter()
        .map(|account| account.id.to_string())
        .collect();
    assert_eq!(ids, ["acme"]);
    assert_eq!(
        warnings,
        [
            "ALIBABA_CLOUD_ACCESS_KEY_ID: not used, because the configuration has [[accounts]] with other keys"
        ]
    );
}

#[test]
fn every_kind_of_key_can_be_set_by_environment() {
    let Loaded { config, .. } = from_env(&[
        ("FLOWGATE_CONFIG", "read by the command line"),
        ("FLOWGATE_UNKNOWN_KEYS", "relay"),
        ("FLOWGATE_LISTEN__PROXY", "0.0.0.0:1"),
        ("FLOWGATE_LISTEN__NAMES", "flowgate, Flowgate.Internal"),
        ("FLOWGATE_LISTEN__MAX_CONNECTIONS", "7"),
        ("FLOWGATE_UPSTREAM__PLAINTEXT", "true"),
        ("FLOWGATE_UPSTREAM__URL", "http://cams.test"),
        ("FLOWGATE_UPSTREAM__CONNECT_TO__0", "203.0.113.7:80"),
        ("FLOWGATE_QUEUE__MAX_BYTES", "2MiB"),
        ("FLOWGATE_LEARN__GAP", "20ms"),
        ("FLOWGATE_LIMITS__PRESET", "none"),
        ("FLOWGATE_LIMITS__CREATEFLOW", "4/1s"),
        ("FLOWGATE_LIMITS__ListFlow__RATE", "6/1s"),
        ("FLOWGATE_LIMITS__LISTFLOW__BURST", "3"),
        ("FLOWGATE_LIMITS__NewAction", "1/1s"),
    ])
    .unwrap();
    assert_eq!(config.unknown_keys, UnknownKeys::Relay);
    assert_eq!(config.listen.proxy, Bind::Tcp("0.0.0.0:1".parse().unwrap()));
    assert_eq!(config.listen.names, ["flowgate", "flowgate.internal"]);
    assert_eq!(config.listen.max_connections, 7);
    assert_eq!(
        config.upstream.connect_to,
        ["203.0.113.7:80".parse().unwrap()]
    );
    assert_eq!(config.queue.max_bytes, 2 << 20);
    assert_eq!(config.learn.gap, Duration::from_millis(20));
    let limits = config
        .limits
        .iter()
        .map(|(action, limit)| (action.as_str(), limit.count.get(), limit.window.as_millis()));
    assert_eq!(
        limits.collect::<Vec<_>>(),
        [
            ("CreateFlow", 4, 1000),
            ("ListFlow", 3, 500),
            ("NewAction", 1, 1000)
        ]
    );
}

#[test]
fn accounts_and_clients_can_be_written_in_the_environment_alone() {
    let variables: Vec<_> = (0..11)
        .flat_map(|index| {
            let name = |key: &str| format!("FLOWGATE_ACCOUNTS__{index}__{key}");
            [
                (name("ID"), format!("account-{index}")),
                (name("ALIASES"), format!("LTAI-{index}")),
            ]
        })
        .collect();
    let mut variables: Vec<_> = variables
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    variables.extend([
        ("FLOWGATE_ACCOUNTS__11__ID", "acme"),
        ("FLOWGATE_ACCOUNTS__11__ACCESS_KEY_ID", "LTAI-acme"),
        (
            "FLOWGATE_ACCOUNTS__11__ACCESS_KEY_SECRET__ENV",
            "FLOWGATE_ACME_SECRET",
        ),
        ("FLOWGATE_ACME_SECRET", "acme-secret\n"),
        ("FLOWGATE_CLIENTS__0__ACCESS_KEY_ID", "team-a"),
        (
            "FLOWGATE_CLIENTS__0__ACCESS_KEY_SECRET__FILE",
            "tests/data/config/secrets/one-line",
        ),
        ("FLOWGATE_CLIENTS__0__ACCOUNT", "acme"),
        ("FLOWGATE_CLIENTS__0__ACTIONS", "*"),
    ]);
    let config = config(&variables);
    assert_eq!(config.accounts.len(), 12);
    assert_eq!(config.accounts[10].aliases[0].as_str(), "LTAI-10");
    assert_eq!(
        config.accounts[11]
            .credentials
            .as_ref()
            .and_then(AccountCredentials::loaded)
            .unwrap()
            .secret
            .expose(),
        "acme-secret"
    );
    assert_eq!(config.clients[0].secrets[0].expose(), "file-secret");
}

#[test]
fn the_environment_wins_over_the_file() {
    let variables = [
        ("ACME_SECRET", "acme-secret"),
        ("TEAM_SECRET", "team"),
        ("NEW_SECRET", "new"),
        ("FLOWGATE_LISTEN__PROXY", "127.0.0.1:1"),
        ("FLOWGATE_LISTEN__NAMES__1", "second"),
        ("FLOWGATE_ACCOUNTS__0__ID", "renamed"),
        ("FLOWGATE_CLIENTS__0__ACCOUNT", "renamed"),
        ("FLOWGATE_CLIENTS__0__ACCESS_KEY_SECRET__ENV", "NEW_SECRET"),
        ("FLOWGATE_CLIENTS__1__ACCOUNT", "renamed"),
        ("FLOWGATE_LIMITS__CREATEFLOW__BURST", "2"),
        ("FLOWGATE_LIMITS__LISTFLOW", "off"),
    ];
    let file = Path::new("tests/data/config/valid/gateway.toml");
    let config = config::load(Some(file), env(&variables)).unwrap().config;
    assert_eq!(config.listen.proxy.to_string(), "127.0.0.1:1");
    assert_eq!(config.listen.admin.to_string(), "[::1]:0");
    assert_eq!(config.listen.names, ["flowgate.internal", "second"]);
    assert_eq!(config.accounts[0].id.as_str(), "renamed");
    assert_eq!(config.accounts[0].aliases[0].as_str(), "LTAI-acme-5678");
    assert_eq!(config.clients[0].secrets[0].expose(), "new");
    assert_eq!(config.limits["CreateFlow"].count.get(), 2);
    assert!(!config.limits.contains_key("ListFlow"));
}

#[test]
fn unknown_variables_are_warnings() {
    let injected = [
        ("FLOWGATE_PORT", "tcp://10.0.0.1:8080"),
        ("FLOWGATE_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ("FLOWGATE_SERVICE_HOST", "10.0.0.1"),
        ("FLOWGATE_LISTEN", "tcp://10.0.0.1:8080"),
        ("FLOWGATE_ACCOUNTS__ID", "no index"),
        ("FLOWGATE_LISTEN__PROXY__0", "no list"),
        ("FLOWGATE_LISTEN__PROXXY", "127.0.0.1:1"),
        ("FLOWGATE_", ""),
        ("FLOWGATE___", ""),
        ("OTHER_LISTEN__PROXY", "127.0.0.1:1"),
    ];
    let Loaded {
        config, warnings, ..
    } = from_env(&injected).unwrap();
    let known = ["OTHER_LISTEN__PROXY"];
    let mut names: Vec<_> = injected
        .map(|(name, _)| name)
        .into_iter()
        .filter(|name| !known.contains(name))
        .collect();
    names.sort_unstable();
    assert_eq!(warnings.len(), names.len(), "{warnings:?}");
    for (warning, name) in warnings.iter().zip(names) {
        let expected = format!("{name}: unknown variable, ignored");
        assert!(warning.starts_with(&expected), "{warning}");
    }
    assert_eq!(effective(&config), effective(&self::config(&[])));
}

#[test]
fn mistakes_in_variables_name_the_variable() {
    let variables = [
        ("FLOWGATE_ACCOUNTS__0__ACCESS_KEY_SECRET", "hunter2"),
        ("FLOWGATE_ACCOUNTS__0__ACCESS_KEY_ID", "LTAI"),
        ("FLOWGATE_ACCOUNTS__0__ID", "acme"),
        ("FLOWGATE_ACCOUNTS__2__ID", "third"),
        ("FLOWGATE_LISTEN__MAX_CONNECTIONS", "1e3"),
        ("FLOWGATE_MODE", "watch"),
        ("FLOWGATE_QUEUE__HOLD", "3m"),
    ];
    let expected = [
        r#"FLOWGATE_ACCOUNTS__0__ACCESS_KEY_SECRET: accounts[0].access_key_secret: expected { env = "NAME" } or { file = "path" }, never the secret itself"#,
        "FLOWGATE_ACCOUNTS__2__ID: accounts[2].id: expected the entries before this one to be set too: indices start at 0",
        "FLOWGATE_LISTEN__MAX_CONNECTIONS: listen.max_connections: expected a whole number from 1 to 1000000",
        r#"FLOWGATE_MODE: mode: expected "enforce" or "observe""#,
        "FLOWGATE_QUEUE__HOLD: queue.hold: expected at most 2m (queue.max_hold)",
    ];
    assert_eq!(
        from_env(&variables)
            .unwrap_err()
            .lines()
            .collect::<Vec<_>>(),
        expected
    );
}

#[cfg(unix)]
#[test]
fn a_variable_must_be_utf8() {
    use std::os::unix::ffi::OsStringExt;
    let variable = (
        "FLOWGATE_LISTEN__PROXY".into(),
        OsString::from_vec(vec![0xff]),
    );
    let mistakes = config::load(None, [variable]).unwrap_err();
    assert_eq!(
        mistakes.to_string(),
        "FLOWGATE_LISTEN__PROXY: listen.proxy: expected a value in UTF-8"
    );
}

#[test]
fn a_secret_file_has_a_size_limit_and_its_last_newline_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let secret = |content: &[u8]| {
        std::fs::write(folder.path().join("secret"), content).unwrap();
        let text = "[[accounts]]\nid = 'a'\naccess_key_id = 'LTAI'\naccess_key_secret = { file = 'secret' }\n";
        let file = folder.path().join("flowgate.toml");
        std::fs::write(&file, text).unwrap();
        let loaded = config::load(Some(&file), env(&[])).map_err(|mistakes| {
            mistakes
                .iter()
                .map(|mistake| mistake.expectation().to_owned())
                .collect::<Vec<_>>()
                .join("\n")
        })?;
        Ok::<_, String>(
            loaded.config.accounts[0]
                .credentials
                .as_ref()
                .and_then(AccountCredentials::loaded)
                .unwrap()
                .secret
                .expose()
                .to_owned(),
        )
    };
    assert_eq!(secret(b"a b\r\n").unwrap(), "a b");
    // An invisible blank would make every signature wrong.
    assert_eq!(secret(b"a b ").unwrap_err(), "the secret ends with a blank");
    assert_eq!(secret(b"\n").unwrap_err(), "the secret is empty");
    assert_eq!(secret(&[b'x'; 65_536]).unwrap().len(), 65_536);
    assert_eq!(
        secret(&[b'x'; 65_537]).unwrap_err(),
        "expected a file of at most 64KiB"
    );
}

#[test]
fn check_prints_every_mistake_and_exits_with_64() {
    let check = |file: &str| {
        let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_flowgate"));
        command
            .env_clear()
            .envs(VARIABLES)
            .args(["check", "--config", file])
            .assert()
    };
    check("tests/data/config/valid/gateway.toml").code(0);
    let expected = std::fs::read_to_string("tests/data/config/invalid/relations.txt").unwrap();
    let printed = check("tests/data/config/invalid/relations.toml").code(64);
    let shown = String::from_utf8_lossy(&printed.get_output().stderr)
        .replace("tests/data/config/invalid/", "");
    assert_eq!(shown, expected);
}

#[test]
fn an_empty_variable_is_as_unset() {
    let Loaded {
        config, warnings, ..
    } = from_env(&[
        ("FLOWGATE_CONFIG", ""),
        ("FLOWGATE_LISTEN__PROXY", ""),
        ("FLOWGATE_LIMITS__CREATEFLOW", ""),
        ("FLOWGATE_QUEUE__HOLD", ""),
    ])
    .unwrap();
    let ignored = |name| format!("{name}: set but empty, so it is ignored");
    assert_eq!(
        warnings,
        [
            ignored("FLOWGATE_LIMITS__CREATEFLOW"),
            ignored("FLOWGATE_LISTEN__PROXY"),
            ignored("FLOWGATE_QUEUE__HOLD")
        ]
    );
    assert_eq!(effective(&config), effective(&self::config(&[])));
    // An unset shell variable must not open a listener.
    for name in [
        "FLOWGATE_LISTEN__TLS__CLIENT_CA",
        "FLOWGATE_LISTEN__ADMIN_TOKEN__FILE",
        "FLOWGATE_LISTEN__ADMIN_TOKEN__ENV",
    ] {
        assert!(from_env(&[(name, "")]).unwrap_err().contains(name));
    }
}

#[test]
fn a_limit_of_zero_says_that_zero_is_the_fault() {
    assert_eq!(
        from_env(&[("FLOWGATE_LIMITS__CREATEFLOW", "0/1s")]).unwrap_err(),
        "FLOWGATE_LIMITS__CREATEFLOW: limits.CreateFlow: expected a rate of at least one call: a limit \
         cannot be 0"
    );
}
