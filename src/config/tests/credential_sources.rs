//! `accounts[].credentials`: one source, its keys, and the variables that fill them.

use std::os::unix::fs::PermissionsExt;

use super::*;

mod default_account;
mod sts;

const ROLE: &str = "acs:ram::123456789012:role/flowgate";
const PROVIDER: &str = "acs:ram::123456789012:oidc-provider/ack-rrsa-c0ffee";
const TOKEN_FILE: &str = "/var/run/secrets/ack.alibabacloud.com/rrsa-tokens/token";

/// What ACK's webhook sets.
const WEBHOOK: [(&str, &str); 6] = [
    ("ALIBABA_CLOUD_ROLE_ARN", ROLE),
    ("ALIBABA_CLOUD_OIDC_PROVIDER_ARN", PROVIDER),
    ("ALIBABA_CLOUD_OIDC_TOKEN_FILE", TOKEN_FILE),
    (
        "ALIBABA_CLOUD_STS_ENDPOINT",
        "sts-vpc.ap-southeast-1.aliyuncs.com",
    ),
    ("ALIBABA_CLOUD_STS_REGION", "ap-southeast-1"),
    ("ALIBABA_CLOUD_VPC_ENDPOINT_ENABLED", "true"),
];

/// The variables of OIDC alone.
fn oidc() -> Vec<(&'static str, &'static str)> {
    WEBHOOK[..3].to_vec()
}

fn variables(variables: &[(&str, &str)]) -> Result<Loaded, String> {
    load_text("", variables)
}

/// The source of the first account.
fn source(loaded: Result<Loaded, String>) -> SessionSource {
    let config = loaded.unwrap().config;
    let credentials = config.accounts[0].credentials.as_ref().unwrap();
    credentials.session().unwrap().clone()
}

fn written_source(credentials: &str, variables: &[(&str, &str)]) -> Result<Loaded, String> {
    load_text(
        &format!("[[accounts]]\nid = 'acme'\ncredentials = {credentials}\n"),
        variables,
    )
}

fn role_of(source: SessionSource) -> Role {
    match source {
        SessionSource::Oidc(oidc) => oidc.role,
        SessionSource::AssumeRole(assumed) => assumed.role,
        other => panic!("{other:?} has no role"),
    }
}

#[test]
fn variables_fill_the_keys_that_are_not_written() {
    let names = [
        ("ALIBABA_CLOUD_ROLE_SESSION_NAME", "named"),
        ("ALIBABA_CLOUD_EXTERNAL_ID", "external"),
    ];
    let mut set = oidc();
    set.extend(names);
    let role = role_of(source(written_source(
        "{ oidc = { session_name = 'own' } }",
        &set,
    )));
    assert_eq!((&*role.arn, &*role.session_name), (ROLE, "own"));

    let of_key = "{ assume_role = { from = { access_key_id = 'LTAI', access_key_secret = { env = 'SECRET' } } } }";
    let mut set = vec![("ALIBABA_CLOUD_ROLE_ARN", ROLE), ("SECRET", SENTINEL)];
    set.extend(names);
    let SessionSource::AssumeRole(assumed) = source(written_source(of_key, &set)) else {
        panic!("is AssumeRole")
    };
    assert_eq!(
        (&*assumed.role.arn, &*assumed.role.session_name),
        (ROLE, "named")
    );
    assert_eq!(assumed.external_id.as_deref(), Some("external"));
    assert!(!format!("{assumed:?}").contains(SENTINEL));

    // The role of the variables is the one of `from`, so it is not assumed from itself.
    let mut set = oidc();
    set.extend(names);
    let mistake = written_source("{ assume_role = { from = { oidc = {} } } }", &set).unwrap_err();
    assert_eq!(
        mistake,
        "3: accounts[0].credentials.assume_role.role_arn: missing, expected the ARN of a role: \
         acs:ram::<account>:role/<name>"
    );
}

#[test]
fn a_key_that_a_variable_could_set_says_so_if_it_is_missing() {
    let written = |source: &str, set: &[(&str, &str)]| written_source(source, set).unwrap_err();
    assert_eq!(
        written("{ oidc = {} }", &[]),
        "3: accounts[0].credentials.oidc: expected the variables that ACK's webhook sets \
         (ALIBABA_CLOUD_ROLE_ARN, ALIBABA_CLOUD_OIDC_PROVIDER_ARN, \
         ALIBABA_CLOUD_OIDC_TOKEN_FILE), none of which is set here, or role_arn, provider_arn and \
         token_file"
    );
    assert_eq!(
        written("{ oidc = {} }", &oidc()[..2]),
        "3: accounts[0].credentials.oidc.token_file: missing, expected the path of a file, not its content, or the \
         variable ALIBABA_CLOUD_OIDC_TOKEN_FILE"
    );
    assert_eq!(
        written("{ assume_role = { from = { ecs_role = {} } } }", &[]),
        "3: accounts[0].credentials.assume_role.role_arn: missing, expected the ARN of a role: \
         acs:ram::<account>:role/<name>, or the variable ALIBABA_CLOUD_ROLE_ARN"
    );
}

#[test]
fn a_variable_can_be_an_empty_table() {
    let id = ("FLOWGATE_ACCOUNTS__0__ID", "acme");
    let source_of = |name: &str, value: &str, more: &[(&str, &str)]| {
        let name = format!("FLOWGATE_ACCOUNTS__0__CREDENTIALS__{name}");
        source(variables(&[&[id, (name.as_str(), value)], more].concat()))
    };
    let SessionSource::EcsRole(role) = source_of("ECS_ROLE", "{}", &[]) else {
        panic!("is an ECS role")
    };
    assert_eq!(role.role, None);
    let more = (
        "FLOWGATE_ACCOUNTS__0__CREDENTIALS__ECS_ROLE__ROLE",
        "flowgate",
    );
    let SessionSource::EcsRole(role) = source_of("ECS_ROLE", " {} ", &[more]) else {
        panic!("is an ECS role")
    };
    assert_eq!(role.role.as_deref(), Some("flowgate"));
    assert!(matches!(
        source_of("OIDC", "{}", &oidc()),
        SessionSource::Oidc(_)
    ));
    let role = (
        "FLOWGATE_ACCOUNTS__0__CREDENTIALS__ASSUME_ROLE__ROLE_ARN",
        ROLE,
    );
    let SessionSource::AssumeRole(assumed) =
        source_of("ASSUME_ROLE__FROM__ECS_ROLE", "{}", &[role])
    else {
        panic!("is AssumeRole")
    };
    assert_eq!(assumed.role.arn, ROLE);
    // The name of a profile, not the empty table as a name.
    let profile = ("FLOWGATE_ACCOUNTS__0__CREDENTIALS__PROFILE", "{}");
    let mistake = variables(&[id, profile, ("HOME", "/none")]).unwrap_err();
    assert!(mistake.contains("/none/.aliyun/config.json"), "{mistake}");
    // Other keys have no tables.
    let key = ("FLOWGATE_ACCOUNTS__0__CREDENTIALS__ENV", "{}");
    let mistake = variables(&[id, key]).unwrap_err();
    assert!(
        mistake.contains("expected the first characters"),
        "{mistake}"
    );
}

#[test]
fn a_token_in_place_of_its_files_path_is_refused_and_not_shown() {
    let jwt = format!("eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.{SENTINEL}");
    let long = SENTINEL.repeat(40);
    for token in [&jwt, &long] {
        let written = format!("{{ oidc = {{ token_file = '{token}' }} }}");
        let mistake = written_source(&written, &oidc()).unwrap_err();
        let form = "expected the path of a file, not its content";
        assert_eq!(
            mistake,
            format!("3: accounts[0].credentials.oidc.token_file: {form}")
        );
        let mut set = oidc();
        set[2].1 = token;
        assert_eq!(
            written_source("{ oidc = {} }", &set).unwrap_err(),
            format!(
                "ALIBABA_CLOUD_OIDC_TOKEN_FILE: accounts[0].credentials.oidc.token_file: {form}"
            )
        );
    }
}

#[test]
fn a_uri_is_written_or_comes_from_a_variable_or_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("uri");
    std::fs::write(&file, "https://vault.example/s3cret\n").unwrap();
    let set = [("VAULT", "https://vault.example/s3cret")];
    for written in [
        "'https://vault.example/s3cret'".to_owned(),
        "{ env = 'VAULT' }".to_owned(),
        format!("{{ file = '{}' }}", file.display()),
    ] {
        let text = format!("{{ uri = {written} }}");
        let SessionSource::Uri(uri) = source(written_source(&text, &set)) else {
            panic!("is a URI")
        };
        assert_eq!(uri.target.as_str(), "/s3cret", "{written}");
    }
    let mistake = written_source("{ uri = { env = 'VAULT' } }", &[("VAULT", "ftp://s3cret")]);
    let mistake = mistake.unwrap_err();
    assert!(mistake.starts_with("3: accounts[0].credentials.uri: expected a URI such as"));
    assert!(!mistake.contains("s3cret"), "{mistake}");
}

#[test]
fn a_lifetime_is_15_minutes_to_12_hours_in_whole_seconds() {
    let duration = |text: &str| {
        let text = format!("{{ oidc = {{ duration = '{text}' }} }}");
        written_source(&text, &oidc()).map(|loaded| role_of(source(Ok(loaded))).duration)
    };
    for (text, seconds) in [("900s", 900), ("15m", 900), ("12h", 43_200)] {
        assert_eq!(duration(text), Ok(Some(Duration::from_secs(seconds))));
    }
    let place = "3: accounts[0].credentials.oidc.duration: expected";
    for text in ["899s", "43201s", "0s"] {
        assert_eq!(
            duration(text).unwrap_err(),
            format!("{place} a value from 15m to 12h")
        );
    }
    assert_eq!(
        duration("900500ms").unwrap_err(),
        format!("{place} whole seconds")
    );
}

#[test]
fn a_chain_has_at_most_five_sources() {
    let nested = |roles: usize| {
        (0..roles).fold("{ ecs_role = {} }".to_owned(), |from, _| {
            format!("{{ assume_role = {{ from = {from}, role_arn = '{ROLE}' }} }}")
        })
    };
    let found = source(written_source(&nested(4), &[]));
    assert_eq!(found.chain_length(), 5);
    let mistake = written_source(&nested(5), &[]).unwrap_err();
    assert!(
        mistake.ends_with("from: expected at most 5 sources in a chain"),
        "{mistake}"
    );
    // Deeper ones are not read.
    let deep = format!(
        "FLOWGATE_ACCOUNTS__0__CREDENTIALS{}__URI",
        "__ASSUME_ROLE__FROM".repeat(2000)
    );
    let mistakes = variables(&[("FLOWGATE_ACCOUNTS__0__ID", "acme"), (&deep, "x")]).unwrap_err();
    assert!(
        mistakes.contains("expected at most 5 sources in a chain"),
        "{mistakes}"
    );
}

#[test]
fn nested_keys_are_set_by_variables() {
    let from = |level: usize, key: &str| {
        format!(
            "FLOWGATE_ACCOUNTS__0__CREDENTIALS{}__{key}",
            "__ASSUME_ROLE__FROM".repeat(level)
        )
    };
    let set = [
        ("FLOWGATE_ACCOUNTS__0__ID".to_owned(), "acme"),
        (from(0, "ASSUME_ROLE__ROLE_ARN"), ROLE),
        (from(1, "ASSUME_ROLE__ROLE_ARN"), ROLE),
        (from(2, "ASSUME_ROLE__ROLE_ARN"), ROLE),
        (from(3, "ACCESS_KEY_ID"), "LTAI"),
        (from(3, "ACCESS_KEY_SECRET__ENV"), "SECRET"),
        ("SECRET".to_owned(), SENTINEL),
    ];
    let mut set: Vec<_> = set
        .iter()
        .map(|(name, value)| (name.as_str(), *value))
        .collect();
    let loaded = variables(&set).unwrap();
    assert!(
        loaded
            .warnings
            .iter()
            .all(|warning| !warning.contains("unknown variable"))
    );
    assert_eq!(source(Ok(loaded)).chain_length(), 4);
    set.truncate(2);
    set.push((
        "FLOWGATE_ACCOUNTS__0__CREDENTIALS__ASSUME_ROLE__FROM__ECS_ROLE__ROLE",
        "flowgate",
    ));
    assert_eq!(source(variables(&set)).chain_length(), 2);
    set.push((
        "FLOWGATE_ACCOUNTS__0__CREDENTIALS__ASSUME_ROLE__FROM__ECS_ROLE__ROLL",
        "x",
    ));
    let warnings = variables(&set).unwrap().warnings;
    assert!(
        warnings
            .iter()
            .any(|warning| warning.contains("ROLL: unknown variable, ignored")),
        "{warnings:?}"
    );
}

#[test]
fn the_environment_replaces_the_source_of_the_file() {
    let loaded = written_source(
        "{ ecs_role = {} }",
        &[(
            "FLOWGATE_ACCOUNTS__0__CREDENTIALS__URI",
            "https://vault.example/x",
        )],
    );
    assert!(matches!(source(loaded), SessionSource::Uri(_)));
    let two = [
        (
            "FLOWGATE_ACCOUNTS__0__CREDENTIALS__URI",
            "https://vault.example/x",
        ),
        ("FLOWGATE_ACCOUNTS__0__CREDENTIALS__ENV", "ACME"),
    ];
    assert_eq!(
        written_source("{ ecs_role = {} }", &two).unwrap_err(),
        "3: accounts[0].credentials: expected one source, found env and uri"
    );
}

#[test]
fn the_prefix_of_variables_names_an_access_key() {
    let set = [
        ("ACME_ACCESS_KEY_ID", "STS.acme"),
        ("ACME_ACCESS_KEY_SECRET", SENTINEL),
        ("ACME_SECURITY_TOKEN", "token"),
    ];
    let config = written_source("{ env = 'ACME' }", &set).unwrap().config;
    let credentials = config.accounts[0]
        .credentials
        .as_ref()
        .unwrap()
        .loaded()
        .unwrap();
    assert_eq!(credentials.access_key_id.as_str(), "STS.acme");
    assert_eq!(credentials.secret.expose(), SENTINEL);
    assert_eq!(
        credentials.security_token.as_ref().unwrap().expose(),
        "token"
    );
    for (set, expected) in [
        (&set[..1], "expected the first characters of two variables"),
        (
            &[("ACME_ACCESS_KEY_ID", "a b"), set[1]],
            "..._ACCESS_KEY_ID: expected an access key id",
        ),
        (
            &[set[0], ("ACME_ACCESS_KEY_SECRET", "x ")],
            "..._ACCESS_KEY_SECRET: the secret ends with a blank",
        ),
    ] {
        let mistake = written_source("{ env = 'ACME' }", set).unwrap_err();
        assert!(
            mistake.contains(&format!("3: accounts[0].credentials.env: {expected}")),
            "{mistake}"
        );
    }
}

#[test]
fn sessions_that_no_client_uses_are_one_warning() {
    let account =
        |index| format!("[[accounts]]\nid = 'a{index}'\ncredentials = {{ ecs_role = {{}} }}\n");
    let accounts: String = (0..8).map(account).collect();
    let client = "[[clients]]\naccess_key_id = 'team'\naccess_key_secret = { env = 'SECRET' }\n\
                  account = 'a0'\nactions = ['*']\n";
    let warnings = load_text(&format!("{accounts}{client}"), &[("SECRET", SENTINEL)])
        .unwrap()
        .warnings;
    assert_eq!(
        warnings,
        [
            "accounts without clients: a1, a2, a3, a4, a5, 2 more: no caller can use their temporary \
          credentials: add [[clients]] (flowgate client new)"
        ]
    );
}

#[test]
fn sessions_of_accounts_with_aliases_are_not_used_either() {
    let accounts = "[[accounts]]\nid = 'any'\naliases = ['*']\ncredentials = { ecs_role = {} }\n\
                    [[accounts]]\nid = 'sts'\naliases = ['STS.*']\ncredentials = { ecs_role = {} }\n\
                    [[accounts]]\nid = 'none'\ncredentials = { ecs_role = {} }\n";
    let warnings = load_text(accounts, &[]).unwrap().warnings;
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(
        warnings[0].starts_with("accounts without clients: any, sts: their temporary credentials"),
        "{warnings:?}"
    );
    assert!(
        warnings[1].starts_with("accounts without clients: none: no caller can use"),
        "{warnings:?}"
    );
}

#[test]
fn variables_that_only_other_programs_read_are_named_where_they_could_be_expected_to_work() {
    let version = ("ALIBABA_CLOUD_IMDSV1_DISABLED", "false");
    let warned = "ALIBABA_CLOUD_IMDSV1_DISABLED: not read by Flowgate: only allow_v1 decides \
                  whether version 1 of the metadata service is used";
    let has =
        |loaded: Result<Loaded, String>| loaded.unwrap().warnings.contains(&warned.to_owned());
    assert!(has(variables(&[
        ("ALIBABA_CLOUD_ECS_METADATA", "flowgate"),
        version
    ])));
    assert!(!has(written_source(
        "{ ecs_role = { allow_v1 = true } }",
        &[version]
    )));
    assert!(!has(written_source(
        "{ uri = 'https://vault.example/x' }",
        &[version]
    )));
}

#[test]
fn a_file_with_secrets_that_all_users_may_write_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let json = format!("{{\"AccessKeyId\": \"LTAI\", \"AccessKeySecret\": \"{SENTINEL}\"}}");
    std::fs::write(file.path(), json).unwrap();
    let load = |mode| {
        std::fs::set_permissions(file.path(), PermissionsExt::from_mode(mode)).unwrap();
        let path = file.path().display();
        [
            written_source(&format!("{{ file = '{path}' }}"), &[]),
            load_text(
                &format!("[listen]\nadmin_token = {{ file = '{path}' }}"),
                &[],
            ),
        ]
    };
    for mode in [0o600, 0o640, 0o644, 0o664] {
        let [credentials, secret] = load(mode);
        assert!(
            credentials.is_ok() && !secret.is_err_and(|it| it.contains("write")),
            "{mode:o}"
        );
    }
    let [credentials, secret] = load(0o646);
    let expected = "all users may write to the file: expected a mode such as 0600";
    assert_eq!(
        credentials.unwrap_err(),
        format!("3: accounts[0].credentials.file: {expected}")
    );
    assert_eq!(
        secret.unwrap_err(),
        format!("2: listen.admin_token.file: {expected}")
    );
}

#[test]
fn the_path_of_a_uri_is_not_shown() {
    let uri = format!("{{ uri = 'https://vault.example/{SENTINEL}?{SENTINEL}' }}");
    let config = written_source(&uri, &[]).unwrap().config;
    let shown = format!(
        "{config:?} {} {:?}",
        effective(&config),
        account_lines(&config)
    );
    assert!(
        shown.contains("https://vault.example:443") && !shown.contains(SENTINEL),
        "{shown}"
    );
}
