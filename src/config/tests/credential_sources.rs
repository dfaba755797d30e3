//! Sources of credentials: from `[[accounts]]`, and from the variables of Alibaba's SDKs.

use std::os::unix::fs::PermissionsExt;

use super::*;

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
fn the_variables_of_ack_s_webhook_are_one_account_whose_application_keeps_its_sessions() {
    let Loaded {
        config, warnings, ..
    } = variables(&WEBHOOK).unwrap();
    assert_eq!(warnings, [""; 0]);
    let [account] = &config.accounts[..] else {
        panic!("{:?}", config.accounts)
    };
    assert_eq!(account.id.as_str(), "default");
    assert_eq!(account.aliases, [KeyPattern::new("STS.*")]);
    assert_eq!(config.unknown_keys, UnknownKeys::Relay);
    assert_eq!(
        config.sts.to_string(),
        "sts-vpc.ap-southeast-1.aliyuncs.com"
    );
    let Some(SessionSource::Oidc(oidc)) = account.credentials.as_ref().unwrap().session() else {
        panic!("{account:?}")
    };
    assert_eq!(oidc.provider_arn, PROVIDER);
    assert_eq!(oidc.token_file, std::path::Path::new(TOKEN_FILE));
    assert_eq!(oidc.role.arn, ROLE);
    assert_eq!(oidc.role.sts, config.sts);
    assert!(oidc.role.session_name.starts_with("flowgate"), "{oidc:?}");
    assert_eq!((&oidc.role.policy, oidc.role.duration), (&None, None));
}

#[test]
fn only_a_local_sidecar_without_clients_relays_sessions_by_default() {
    let aliases = |text: &str| {
        let mut variables = oidc();
        variables.push(("SECRET", SENTINEL));
        let config = load_text(text, &variables).unwrap().config;
        (config.accounts[0].aliases.len(), config.unknown_keys)
    };
    assert_eq!(aliases(""), (1, UnknownKeys::Relay));
    assert_eq!(
        aliases("[listen]\nproxy = 'unix:/run/x.sock'"),
        (1, UnknownKeys::Relay)
    );
    assert_eq!(
        aliases("[listen]\nproxy = '0.0.0.0:8080'"),
        (0, UnknownKeys::Refuse)
    );
    let client = "[[clients]]\naccess_key_id = 'team'\naccess_key_secret = { env = 'SECRET' }\n\
                  account = 'default'\nactions = ['*']";
    assert_eq!(aliases(client), (0, UnknownKeys::Refuse));
    assert_eq!(
        written_source("{ oidc = {} }", &oidc())
            .unwrap()
            .config
            .accounts[0]
            .aliases,
        []
    );
}

#[test]
fn a_partial_set_of_oidc_variables_is_refused_and_names_what_is_missing() {
    let without = |missing: &[&str]| {
        let mut set = oidc();
        set.retain(|(name, _)| !missing.contains(name));
        // An ECS role at hand is not used instead.
        set.push(("ALIBABA_CLOUD_ECS_METADATA", "flowgate"));
        variables(&set).unwrap_err()
    };
    assert_eq!(
        without(&["ALIBABA_CLOUD_OIDC_TOKEN_FILE"]),
        "ALIBABA_CLOUD_ROLE_ARN: expected ALIBABA_CLOUD_OIDC_TOKEN_FILE to be set too"
    );
    assert_eq!(
        without(&["ALIBABA_CLOUD_ROLE_ARN", "ALIBABA_CLOUD_OIDC_PROVIDER_ARN"]),
        "ALIBABA_CLOUD_OIDC_TOKEN_FILE: expected ALIBABA_CLOUD_ROLE_ARN and \
         ALIBABA_CLOUD_OIDC_PROVIDER_ARN to be set too"
    );
    let mut empty = oidc();
    empty[2].1 = "";
    assert_eq!(
        variables(&empty).unwrap_err(),
        "ALIBABA_CLOUD_ROLE_ARN: expected ALIBABA_CLOUD_OIDC_TOKEN_FILE to be set too"
    );
}

#[test]
fn several_sources_in_variables_are_refused_and_named() {
    let mut set = oidc();
    set.extend([
        ("ALIBABA_CLOUD_CREDENTIALS_URI", "https://vault.example/x"),
        ("ALIBABA_CLOUD_ECS_METADATA", "flowgate"),
        ("ALIBABA_CLOUD_PROFILE", "prod"),
    ]);
    assert_eq!(
        variables(&set).unwrap_err(),
        "ALIBABA_CLOUD_ROLE_ARN: expected one source of credentials, found ALIBABA_CLOUD_ROLE_ARN \
         and ALIBABA_CLOUD_CREDENTIALS_URI and ALIBABA_CLOUD_ECS_METADATA and \
         ALIBABA_CLOUD_PROFILE: unset all but one, or configure [[accounts]]"
    );
    // What the environment forbids is not a second source.
    let mut set = oidc();
    set.extend([
        ("ALIBABA_CLOUD_ECS_METADATA", "flowgate"),
        ("ALIBABA_CLOUD_ECS_METADATA_DISABLED", "TRUE"),
        ("ALIBABA_CLOUD_PROFILE", "prod"),
        ("ALIBABA_CLOUD_CLI_PROFILE_DISABLED", "true"),
    ]);
    assert!(matches!(source(variables(&set)), SessionSource::Oidc(_)));
}

#[test]
fn an_access_key_in_variables_precedes_other_sources_with_a_warning() {
    let mut set = oidc();
    set.extend([
        ("ALIBABA_CLOUD_ACCESS_KEY_ID", "LTAI-first"),
        ("ALIBABA_CLOUD_ACCESS_KEY_SECRET", SENTINEL),
        ("ALIBABA_CLOUD_PROFILE", "prod"),
    ]);
    let Loaded {
        config, warnings, ..
    } = variables(&set).unwrap();
    let credentials = config.accounts[0].credentials.as_ref().unwrap();
    assert_eq!(
        credentials.loaded().unwrap().access_key_id.as_str(),
        "LTAI-first"
    );
    assert_eq!(config.accounts[0].aliases, []);
    assert_eq!(config.unknown_keys, UnknownKeys::Refuse);
    assert_eq!(
        warnings,
        [
            "ALIBABA_CLOUD_ROLE_ARN, ALIBABA_CLOUD_OIDC_PROVIDER_ARN, ALIBABA_CLOUD_OIDC_TOKEN_FILE, \
          ALIBABA_CLOUD_PROFILE: ignored, because ALIBABA_CLOUD_ACCESS_KEY_ID is set"
        ]
    );
}

#[test]
fn an_ecs_role_and_a_uri_come_from_variables() {
    let role = ("ALIBABA_CLOUD_ECS_METADATA", "flowgate");
    let SessionSource::EcsRole(found) = source(variables(&[role])) else {
        panic!("is an ECS role")
    };
    assert_eq!(found.role.as_deref(), Some("flowgate"));
    assert_eq!(
        (found.allow_v1, found.address.to_string().as_str()),
        (false, "100.100.100.200:80")
    );
    for (disabled, is_refused) in [
        ("true", true),
        ("True", true),
        ("false", false),
        ("1", false),
    ] {
        let loaded = variables(&[role, ("ALIBABA_CLOUD_ECS_METADATA_DISABLED", disabled)]);
        if is_refused {
            assert_eq!(
                loaded.unwrap_err(),
                "ALIBABA_CLOUD_ECS_METADATA: expected another source: \
                 ALIBABA_CLOUD_ECS_METADATA_DISABLED is true"
            );
            continue;
        }
        let odd = "ALIBABA_CLOUD_ECS_METADATA_DISABLED: has no effect, because only true has: \
                   expected true or false";
        let expected = if disabled == "1" { vec![odd] } else { vec![] };
        assert_eq!(loaded.unwrap().warnings, expected, "{disabled}");
    }
    assert_eq!(
        variables(&[("ALIBABA_CLOUD_ECS_METADATA", "../x")]).unwrap_err(),
        "ALIBABA_CLOUD_ECS_METADATA: role: expected the name of a role: 1 to 64 letters, digits, \
         '.', '_' or '-'"
    );

    let uri = "http://127.0.0.1:8082/c?x=a%20b";
    let SessionSource::Uri(uri) = source(variables(&[("ALIBABA_CLOUD_CREDENTIALS_URI", uri)]))
    else {
        panic!("is a URI")
    };
    assert_eq!((uri.target.as_str(), uri.port), ("/c?x=a%20b", 8082));
    let refused = variables(&[("ALIBABA_CLOUD_CREDENTIALS_URI", "http://169.254.169.254/x")]);
    assert!(
        refused
            .unwrap_err()
            .starts_with("ALIBABA_CLOUD_CREDENTIALS_URI: uri: expected another address"),
    );
}

#[test]
fn the_endpoint_of_sts_is_written_or_made_of_a_region() {
    let sts = |text: &str, more: &[(&str, &str)]| {
        let set = [&oidc(), more].concat();
        let loaded = load_text(&format!("[sts]\n{text}"), &set)?;
        let host = loaded.config.sts.to_string();
        assert_eq!(role_of(source(Ok(loaded))).sts.to_string(), host);
        Ok::<_, String>(host)
    };
    let endpoint = (
        "ALIBABA_CLOUD_STS_ENDPOINT",
        "sts-vpc.cn-hangzhou.aliyuncs.com",
    );
    let region = ("ALIBABA_CLOUD_STS_REGION", "ap-southeast-1");
    let vpc = ("ALIBABA_CLOUD_VPC_ENDPOINT_ENABLED", "TRUE");
    for (text, more, host) in [
        ("", &[][..], "sts.aliyuncs.com"),
        ("", &[region], "sts.ap-southeast-1.aliyuncs.com"),
        ("", &[region, vpc], "sts-vpc.ap-southeast-1.aliyuncs.com"),
        (
            "",
            &[endpoint, region, vpc],
            "sts-vpc.cn-hangzhou.aliyuncs.com",
        ),
        ("", &[endpoint, vpc], "sts-vpc.cn-hangzhou.aliyuncs.com"),
        (
            "region = 'eu-central-1'",
            &[endpoint, region, vpc],
            "sts-vpc.eu-central-1.aliyuncs.com",
        ),
        (
            "region = 'eu-central-1'\nvpc = false",
            &[vpc],
            "sts.eu-central-1.aliyuncs.com",
        ),
        (
            "vpc = true",
            &[region],
            "sts-vpc.ap-southeast-1.aliyuncs.com",
        ),
        (
            "vpc = true",
            &[endpoint],
            "sts-vpc.cn-hangzhou.aliyuncs.com",
        ),
        (
            "endpoint = 'sts.test:8443'\nregion = 'eu-central-1'",
            &[endpoint],
            "sts.test:8443",
        ),
        ("endpoint = 'https://STS.test:443/'", &[], "sts.test"),
        ("endpoint = '[::1]:9'", &[], "[::1]:9"),
    ] {
        assert_eq!(sts(text, more).as_deref(), Ok(host), "{text} {more:?}");
    }
    let form = "expected a host with or without a port, such as sts.ap-southeast-1.aliyuncs.com; \
                STS is asked over HTTPS only";
    for wrong in [
        "http://sts.aliyuncs.com",
        "sts.aliyuncs.com/x",
        "a@sts.test",
        "https://sts.test?x",
        "",
        "sts.test:0",
    ] {
        let mistake = sts(&format!("endpoint = '{wrong}'"), &[]).unwrap_err();
        assert_eq!(mistake, format!("2: sts.endpoint: {form}"), "{wrong}");
    }
    assert_eq!(
        sts(
            "",
            &[("ALIBABA_CLOUD_STS_ENDPOINT", "http://sts.aliyuncs.com")]
        )
        .unwrap_err(),
        format!("ALIBABA_CLOUD_STS_ENDPOINT: {form}")
    );
    let no_region = "expected a region or an endpoint of STS too: the endpoint within a VPC has \
                     the region in its name";
    assert_eq!(
        sts("vpc = true", &[]).unwrap_err(),
        format!("2: sts.vpc: {no_region}")
    );
    assert_eq!(
        sts("", &[vpc]).unwrap_err(),
        format!(
            "ALIBABA_CLOUD_VPC_ENDPOINT_ENABLED: {no_region}: set ALIBABA_CLOUD_STS_REGION, \
             ALIBABA_CLOUD_STS_ENDPOINT, sts.region or sts.endpoint"
        )
    );
    let region = "expected a region such as ap-southeast-1: 2 to 40 lower-case letters, digits \
                  and '-'";
    for wrong in ["a", "AP-southeast-1", "a.b", "a/b", "-ab", &"a".repeat(41)] {
        let mistake = sts(&format!("region = '{wrong}'"), &[]).unwrap_err();
        assert_eq!(mistake, format!("2: sts.region: {region}"), "{wrong}");
    }
}

#[test]
fn a_mistake_in_a_variable_of_sts_counts_only_if_a_source_asks_sts() {
    let set = [
        ("ALIBABA_CLOUD_ECS_METADATA", "flowgate"),
        ("ALIBABA_CLOUD_VPC_ENDPOINT_ENABLED", "true"),
    ];
    let Loaded {
        config, warnings, ..
    } = variables(&set).unwrap();
    assert_eq!(config.sts.to_string(), "sts.aliyuncs.com");
    assert_eq!(warnings.len(), 1);
    assert!(
        warnings[0].starts_with("ALIBABA_CLOUD_VPC_ENDPOINT_ENABLED: ignored, because"),
        "{warnings:?}"
    );
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
            .any(|warning| warning.ends_with("ROLL: unknown variable, ignored")),
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
