//! Profiles of Alibaba's command line tool.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;

const ROLE: &str = "acs:ram::123456789012:role/flowgate";

/// Loads an account of a profile, and the profiles from a file of mode 0600.
fn load_profile(name: &str, profiles: &str, more: &[(&str, &str)]) -> Result<Loaded, String> {
    let home = tempfile::tempdir().unwrap();
    write(
        home.path(),
        &format!("{{\"current\": \"first\", \"profiles\": [{profiles}], \"meta_path\": \"\"}}"),
    );
    let mut variables = vec![("HOME", home.path().to_str().unwrap())];
    variables.extend(more);
    load_text(
        &format!("[[accounts]]\nid = 'acme'\ncredentials = {{ profile = {name} }}\n"),
        &variables,
    )
}

fn write(home: &Path, text: &str) {
    let folder = home.join(".aliyun");
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("config.json");
    std::fs::write(&file, text).unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
}

fn credentials(loaded: Result<Loaded, String>) -> AccountCredentials {
    let Loaded {
        config, warnings, ..
    } = loaded.unwrap();
    assert!(
        warnings
            .iter()
            .all(|it| it.starts_with("accounts without clients")),
        "{warnings:?}"
    );
    assert!(!format!("{config:?} {}", effective(&config)).contains(SENTINEL));
    config.accounts[0].credentials.clone().unwrap()
}

fn session(loaded: Result<Loaded, String>) -> SessionSource {
    credentials(loaded).session().unwrap().clone()
}

fn refused(profiles: &str) -> String {
    let mistake = load_profile("{}", profiles, &[]).unwrap_err();
    assert!(!mistake.contains(SENTINEL), "{mistake}");
    mistake
        .strip_prefix("3: accounts[0].credentials.profile: ")
        .unwrap_or_else(|| panic!("{mistake}"))
        .to_owned()
}

fn access_key(mode: &str, more: &str) -> String {
    format!(
        r#"{{"name": "first", "mode": "{mode}", "access_key_id": "LTAI-first", "access_key_secret": "{SENTINEL}"{more}}}"#
    )
}

#[test]
fn access_keys_and_tokens_are_read() {
    let AccountCredentials::Loaded(key, from) = credentials(load_profile(
        "'first'",
        &access_key("AK", r#", "sts_token": """#),
        &[],
    )) else {
        panic!("is an access key")
    };
    assert_eq!(
        (key.access_key_id.as_str(), key.secret.expose()),
        ("LTAI-first", SENTINEL)
    );
    assert!(key.security_token.is_none());
    assert_eq!(from, LoadedFrom::Profile("first".to_owned()));
    let token = credentials(load_profile(
        "{}",
        &access_key("StsToken", r#", "sts_token": "token""#),
        &[],
    ));
    assert_eq!(
        token
            .loaded()
            .unwrap()
            .security_token
            .as_ref()
            .unwrap()
            .expose(),
        "token"
    );
    assert_eq!(
        refused(&access_key("StsToken", "")),
        "profile first of the file: sts_token is missing"
    );
    assert_eq!(
        refused(r#"{"name": "first", "mode": "AK", "access_key_id": "LTAI"}"#),
        "profile first of the file: access_key_secret is missing"
    );
}

#[test]
fn a_role_has_the_settings_of_its_profile() {
    let fields = format!(
        r#", "sts_token": "token", "ram_role_arn": "{ROLE}", "ram_session_name": "named", "expired_seconds": 900,
           "policy": "{{}}", "external_id": "external", "sts_region": "cn-hangzhou", "enable_vpc": true"#
    );
    let SessionSource::AssumeRole(assumed) =
        session(load_profile("{}", &access_key("RamRoleArn", &fields), &[]))
    else {
        panic!("is AssumeRole")
    };
    let AccountCredentials::Loaded(from, _) = &*assumed.from else {
        panic!("is an access key")
    };
    assert_eq!(from.security_token.as_ref().unwrap().expose(), "token");
    assert_eq!(assumed.external_id.as_deref(), Some("external"));
    assert_eq!(
        assumed.role,
        Role {
            arn: ROLE.to_owned(),
            session_name: "named".to_owned(),
            policy: Some("{}".to_owned()),
            duration: Some(Duration::from_secs(900)),
            sts: StsEndpoint {
                host: "sts-vpc.cn-hangzhou.aliyuncs.com".to_owned(),
                port: 443
            },
        }
    );
    let of = |more: &str, variables: &[(&str, &str)]| {
        let fields = format!(r#", "ram_role_arn": "{ROLE}"{more}"#);
        load_profile("{}", &access_key("RamRoleArn", &fields), variables).map(
            |loaded| match session(Ok(loaded)) {
                SessionSource::AssumeRole(assumed) => assumed.role,
                other => panic!("{other:?}"),
            },
        )
    };
    let region = ("ALIBABA_CLOUD_STS_REGION", "ap-southeast-1");
    assert_eq!(
        of("", &[region]).unwrap().sts.host,
        "sts.ap-southeast-1.aliyuncs.com"
    );
    let endpoint = r#", "sts_endpoint": "sts.test:8443", "sts_region": "cn-hangzhou""#;
    assert_eq!(
        of(endpoint, &[region]).unwrap().sts.to_string(),
        "sts.test:8443"
    );
    assert_eq!(of(r#", "expired_seconds": 0"#, &[]).unwrap().duration, None);
    let name = ("ALIBABA_CLOUD_ROLE_SESSION_NAME", "variable");
    assert_eq!(of("", &[name]).unwrap().session_name, "variable");
    for (more, expected) in [
        (
            r#", "expired_seconds": 899"#,
            "expired_seconds: expected a number from 900 to 43200",
        ),
        (
            r#", "expired_seconds": 43201"#,
            "expired_seconds: expected a number from 900 to 43200",
        ),
        (
            r#", "ram_session_name": "a b""#,
            "ram_session_name: expected a session's name",
        ),
        (
            r#", "sts_endpoint": "http://sts.test""#,
            "sts_endpoint: expected a host",
        ),
        (r#", "sts_region": "AP""#, "sts_region: expected a region"),
        (
            r#", "enable_vpc": true"#,
            "enable_vpc: expected a region or an endpoint of STS too",
        ),
        (r#", "policy": "all""#, "policy: expected a policy"),
        (
            r#", "external_id": "a b""#,
            "external_id: expected an external id",
        ),
    ] {
        let mistake = of(more, &[]).unwrap_err();
        assert!(
            mistake.contains(&format!("profile first of the file: {expected}")),
            "{mistake}"
        );
    }
}

#[test]
fn sessions_of_the_instance_the_cluster_and_a_uri_are_read() {
    let ecs = session(load_profile(
        "{}",
        r#"{"name": "first", "mode": "EcsRamRole", "ram_role_name": "flowgate"}"#,
        &[],
    ));
    assert!(
        matches!(ecs, SessionSource::EcsRole(EcsRole { role: Some(role), .. }) if role == "flowgate")
    );
    let disabled = ("ALIBABA_CLOUD_ECS_METADATA_DISABLED", "true");
    let mistake = load_profile(
        "{}",
        r#"{"name": "first", "mode": "EcsRamRole"}"#,
        &[disabled],
    )
    .unwrap_err();
    assert!(
        mistake.ends_with("ALIBABA_CLOUD_ECS_METADATA_DISABLED is true"),
        "{mistake}"
    );
    let oidc = format!(
        r#"{{"name": "first", "mode": "OIDC", "oidc_provider_arn": "acs:ram::1:oidc-provider/p",
            "oidc_token_file": "/run/token", "ram_role_arn": "{ROLE}"}}"#
    );
    assert!(matches!(
        session(load_profile("{}", &oidc, &[])),
        SessionSource::Oidc(_)
    ));
    assert_eq!(
        refused(&oidc.replace("oidc_token_file", "token_file")),
        "profile first of the file: oidc_token_file is missing"
    );
    let uri = |text: &str| {
        format!(r#"{{"name": "first", "mode": "CredentialsURI", "credentials_uri": "{text}"}}"#)
    };
    assert!(matches!(
        session(load_profile("{}", &uri("http://127.0.0.1:1/x"), &[])),
        SessionSource::Uri(_)
    ));
    let mistake = refused(&uri(&format!("http://127.0.0.1@{SENTINEL}/")));
    assert!(
        mistake.starts_with("profile first of the file: credentials_uri: expected"),
        "{mistake}"
    );
}

fn chained(name: &str, source: &str) -> String {
    format!(
        r#"{{"name": "{name}", "mode": "ChainableRamRoleArn", "ram_role_arn": "{ROLE}", "source_profile": "{source}"}}"#
    )
}

/// A chain of profiles, of which the last has an access key.
fn chain(length: usize) -> String {
    let names: Vec<_> = (1..length)
        .map(|index| format!("p{index}"))
        .chain(["first".to_owned()])
        .collect();
    let mut profiles: Vec<_> = names
        .windows(2)
        .map(|pair| chained(&pair[0], &pair[1]))
        .collect();
    profiles.push(access_key("AK", ""));
    profiles.join(",")
}

#[test]
fn loops_and_long_chains_of_profiles_are_refused_at_load() {
    let place = "3: accounts[0].credentials.profile";
    let two = [chained("a", "b"), chained("b", "a")].join(",");
    assert_eq!(
        load_profile("'a'", &two, &[]).unwrap_err(),
        format!("{place}: the profiles of the file are each other's source_profile: a -> b -> a")
    );
    let itself = chained("a", "a");
    assert_eq!(
        load_profile("'a'", &itself, &[]).unwrap_err(),
        format!("{place}: the profiles of the file are each other's source_profile: a -> a")
    );
    // The loop begins after the first profile.
    let later = [chained("x", "a"), chained("a", "b"), chained("b", "a")].join(",");
    assert!(
        load_profile("'x'", &later, &[])
            .unwrap_err()
            .ends_with(": a -> b -> a")
    );
    let long: Vec<_> = (0..400)
        .map(|index| chained(&format!("p{index}"), &format!("p{}", (index + 1) % 400)))
        .collect();
    let mistake = load_profile("'p0'", &long.join(","), &[]).unwrap_err();
    assert!(mistake.ends_with("p8 -> p9 -> ... -> p0"), "{mistake}");

    assert_eq!(
        session(load_profile("'p1'", &chain(5), &[])).chain_length(),
        5
    );
    assert_eq!(
        load_profile("'p1'", &chain(6), &[]).unwrap_err(),
        format!("{place}: expected at most 5 sources in a chain (source_profile)")
    );
    // A role of mode RamRoleArn counts with its access key, and a profile with what surrounds it.
    let role = format!(r#", "ram_role_arn": "{ROLE}""#);
    let six = chain(5).replace(&access_key("AK", ""), &access_key("RamRoleArn", &role));
    assert_eq!(
        load_profile("'p1'", &six, &[]).unwrap_err(),
        "3: accounts[0].credentials: expected at most 5 sources in a chain"
    );
    let home = tempfile::tempdir().unwrap();
    write(home.path(), &format!("{{\"profiles\": [{six}]}}"));
    let by_variable = [
        ("ALIBABA_CLOUD_PROFILE", "p1"),
        ("HOME", home.path().to_str().unwrap()),
    ];
    assert_eq!(
        load_text("", &by_variable).unwrap_err(),
        "ALIBABA_CLOUD_PROFILE: expected at most 5 sources in a chain"
    );
    assert_eq!(
        refused(&chained("first", "none")),
        "profile first of the file: source_profile is none of its profiles"
    );
}

#[test]
fn modes_that_are_not_supported_are_named_with_what_to_do_instead() {
    for (mode, expected) in [
        (
            "External",
            "mode External is not supported: run the command elsewhere and use file or uri",
        ),
        (
            "CloudSSO",
            "mode CloudSSO is not supported: its login is a person's: use a RAM role",
        ),
        (
            "OAuth",
            "mode OAuth is not supported: its login is a person's: use a RAM role",
        ),
        (
            "RsaKeyPair",
            "mode RsaKeyPair is not supported: use an access key or a RAM role",
        ),
        (
            "BearerToken",
            "mode BearerToken is not supported: CAMS takes signed calls only",
        ),
        (
            SENTINEL,
            "mode: expected AK, StsToken, RamRoleArn, EcsRamRole, OIDC, ChainableRamRoleArn or CredentialsURI",
        ),
        (
            "ak",
            "mode: expected AK, StsToken, RamRoleArn, EcsRamRole, OIDC, ChainableRamRoleArn or CredentialsURI",
        ),
    ] {
        assert_eq!(
            refused(&access_key(mode, "")),
            format!("profile first of the file: {expected}")
        );
    }
}

#[test]
fn a_profile_is_the_written_one_or_that_of_the_variable_or_the_current_one() {
    let profiles = [
        access_key("AK", ""),
        access_key("AK", "").replace("first", "second"),
        access_key("AK", "").replace("first", "third"),
    ]
    .join(",");
    let of = |name: &str, more: &[(&str, &str)]| {
        let found = credentials(load_profile(name, &profiles, more));
        found.loaded().unwrap().access_key_id.as_str().to_owned()
    };
    let variable = ("ALIBABA_CLOUD_PROFILE", "third");
    assert_eq!(of("{}", &[]), "LTAI-first");
    assert_eq!(of("{}", &[variable]), "LTAI-third");
    assert_eq!(of("'second'", &[variable]), "LTAI-second");
    assert_eq!(of("{ name = 'second' }", &[variable]), "LTAI-second");
    let unknown = load_profile(&format!("'{SENTINEL}'"), &profiles, &[]).unwrap_err();
    assert_eq!(
        unknown,
        "3: accounts[0].credentials.profile: no profile of this name is in the file: expected the name of one"
    );
    let disabled = load_profile(
        "{}",
        &profiles,
        &[("ALIBABA_CLOUD_CLI_PROFILE_DISABLED", "true")],
    );
    assert!(
        disabled
            .unwrap_err()
            .ends_with("expected another source: ALIBABA_CLOUD_CLI_PROFILE_DISABLED is true")
    );
}

#[test]
fn the_variable_of_a_profile_alone_is_one_account_and_its_file_is_watched() {
    let home = tempfile::tempdir().unwrap();
    write(
        home.path(),
        &format!("{{\"profiles\": [{}]}}", access_key("AK", "")),
    );
    let other = home.path().join(".aliyun/config.json");
    let by_home = [
        ("ALIBABA_CLOUD_PROFILE", "first"),
        ("HOME", home.path().to_str().unwrap()),
    ];
    let by_file = [
        ("ALIBABA_CLOUD_PROFILE", "first"),
        ("ALIBABA_CLOUD_CONFIG_FILE", other.to_str().unwrap()),
    ];
    for set in [by_home, by_file] {
        let loaded = load_text("", &set).unwrap();
        assert!(loaded.files.get(&other).unwrap().is_some());
        assert_eq!(loaded.config.accounts[0].id.as_str(), "default");
        assert!(credentials(Ok(loaded)).are_replaced());
    }
    assert_eq!(
        load_text("", &by_home[..1]).unwrap_err(),
        "ALIBABA_CLOUD_PROFILE: expected the path of the file: neither file, \
         ALIBABA_CLOUD_CONFIG_FILE nor HOME is set"
    );
    assert_eq!(
        load_text("", &[by_home[0], ("HOME", "/none")]).unwrap_err(),
        "ALIBABA_CLOUD_PROFILE: the profiles' file /none/.aliyun/config.json (by HOME): file not found"
    );
    // A path that was written may be a misplaced secret.
    let by_file = [by_home[0], ("ALIBABA_CLOUD_CONFIG_FILE", SENTINEL)];
    assert_eq!(
        load_text("", &by_file).unwrap_err(),
        "ALIBABA_CLOUD_PROFILE: the profiles' file, which ALIBABA_CLOUD_CONFIG_FILE names: file not found"
    );
    let account = format!(
        "[[accounts]]\nid = 'acme'\ncredentials = {{ profile = {{ file = '{SENTINEL}' }} }}\n"
    );
    assert_eq!(
        load_text(&account, &[]).unwrap_err(),
        "3: accounts[0].credentials.profile: the profiles' file that the key file names: file not found"
    );
}

#[test]
fn a_malformed_file_of_profiles_is_never_shown() {
    let home = tempfile::tempdir().unwrap();
    let set = [
        ("ALIBABA_CLOUD_PROFILE", "first"),
        ("HOME", home.path().to_str().unwrap()),
    ];
    let shape = "expected the file of Alibaba's command line tool: a JSON object with \"current\" and \"profiles\"";
    for text in [
        SENTINEL.to_owned(),
        format!("{{\"profiles\": \"{SENTINEL}\"}}"),
        format!("{{\"profiles\": [{{\"name\": {{\"{SENTINEL}\": 1}}}}]}}"),
        format!("{{\"profiles\": [{}", access_key("AK", "")),
        format!("{{\"profiles\": [{}]}} {SENTINEL}", access_key("AK", "")),
        String::new(),
    ] {
        write(home.path(), &text);
        let mistake = load_text("", &set).unwrap_err();
        assert_eq!(
            mistake,
            format!(
                "ALIBABA_CLOUD_PROFILE: the profiles' file {}/.aliyun/config.json (by HOME): {shape}",
                home.path().display()
            )
        );
    }
    write(home.path(), &" ".repeat(65_537));
    assert!(
        load_text("", &set)
            .unwrap_err()
            .ends_with("expected a file of at most 64KiB")
    );
}

#[test]
fn a_secret_in_a_file_of_profiles_that_other_users_can_read_is_a_warning() {
    let home = tempfile::tempdir().unwrap();
    let set = [
        ("ALIBABA_CLOUD_PROFILE", "first"),
        ("HOME", home.path().to_str().unwrap()),
    ];
    let file = home.path().join(".aliyun/config.json");
    let warnings = |profile: &str, mode| {
        write(home.path(), &format!("{{\"profiles\": [{profile}]}}"));
        std::fs::set_permissions(&file, PermissionsExt::from_mode(mode)).unwrap();
        load_text("", &set).unwrap().warnings
    };
    let open = "ALIBABA_CLOUD_PROFILE: other users can read the secrets in the profiles' file: set its mode to 0600";
    let token = access_key("StsToken", r#", "sts_token": "token""#);
    assert_eq!(warnings(&access_key("AK", ""), 0o600), [""; 0]);
    assert_eq!(warnings(&access_key("AK", ""), 0o640), [open]);
    assert_eq!(warnings(&access_key("AK", ""), 0o644), [open]);
    assert_eq!(warnings(&token, 0o644), [""; 0]);
    let writable =
        "ALIBABA_CLOUD_PROFILE: other users can write to the profiles' file: set its mode to 0600";
    assert_eq!(warnings(&access_key("AK", ""), 0o660), [writable]);
    assert_eq!(warnings(&token, 0o620), [writable]);
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o666)).unwrap();
    assert!(
        load_text("", &set)
            .unwrap_err()
            .ends_with("all users may write to the file: expected a mode such as 0600")
    );
}

#[test]
fn the_table_of_sts_precedes_a_profile_and_the_profile_precedes_variables() {
    let profile = |more: &str| {
        access_key(
            "RamRoleArn",
            &format!(r#", "ram_role_arn": "{ROLE}"{more}"#),
        )
    };
    let region = r#", "sts_region": "cn-hangzhou""#;
    let in_vpc = r#", "sts_region": "cn-hangzhou", "enable_vpc": true"#;
    // What the tool writes if the flag is not set.
    let unset = r#", "sts_region": "cn-hangzhou", "enable_vpc": false"#;
    let only_vpc = r#", "enable_vpc": true"#;
    let endpoint = r#", "sts_endpoint": "sts.test", "sts_region": "cn-hangzhou""#;
    let written_endpoint = ("FLOWGATE_STS__ENDPOINT", "127.0.0.1:47143");
    let written_region = ("FLOWGATE_STS__REGION", "eu-central-1");
    let written_vpc = ("FLOWGATE_STS__VPC", "true");
    let not_vpc = ("FLOWGATE_STS__VPC", "false");
    let variable = ("ALIBABA_CLOUD_STS_REGION", "us-east-1");
    let variable_endpoint = ("ALIBABA_CLOUD_STS_ENDPOINT", "sts.us-west-1.aliyuncs.com");
    let variable_vpc = ("ALIBABA_CLOUD_VPC_ENDPOINT_ENABLED", "true");
    for (fields, more, host) in [
        (region, vec![], "sts.cn-hangzhou.aliyuncs.com"),
        (region, vec![written_endpoint], "127.0.0.1:47143"),
        (endpoint, vec![written_endpoint], "127.0.0.1:47143"),
        (
            region,
            vec![written_region],
            "sts.eu-central-1.aliyuncs.com",
        ),
        (
            endpoint,
            vec![written_region],
            "sts.eu-central-1.aliyuncs.com",
        ),
        (
            in_vpc,
            vec![written_region],
            "sts-vpc.eu-central-1.aliyuncs.com",
        ),
        (
            in_vpc,
            vec![written_region, not_vpc],
            "sts.eu-central-1.aliyuncs.com",
        ),
        (in_vpc, vec![not_vpc], "sts.cn-hangzhou.aliyuncs.com"),
        (
            region,
            vec![written_vpc, variable],
            "sts-vpc.cn-hangzhou.aliyuncs.com",
        ),
        (
            region,
            vec![variable, variable_endpoint],
            "sts.cn-hangzhou.aliyuncs.com",
        ),
        (
            region,
            vec![variable_vpc, variable],
            "sts-vpc.cn-hangzhou.aliyuncs.com",
        ),
        (
            unset,
            vec![variable_vpc, variable],
            "sts-vpc.cn-hangzhou.aliyuncs.com",
        ),
        (only_vpc, vec![variable], "sts-vpc.us-east-1.aliyuncs.com"),
        (
            only_vpc,
            vec![variable_endpoint],
            "sts.us-west-1.aliyuncs.com",
        ),
        (
            only_vpc,
            vec![variable, not_vpc],
            "sts.us-east-1.aliyuncs.com",
        ),
        ("", vec![variable], "sts.us-east-1.aliyuncs.com"),
    ] {
        let loaded = load_profile("{}", &profile(fields), &more);
        let asked = session(loaded).sts().unwrap().to_string();
        assert_eq!(asked, host, "{fields} {more:?}");
    }
    let wrong = ("ALIBABA_CLOUD_STS_REGION", "A");
    let mistake = load_profile("{}", &profile(only_vpc), &[wrong]).unwrap_err();
    assert!(
        mistake.starts_with("ALIBABA_CLOUD_STS_REGION: expected a region"),
        "{mistake}"
    );
    assert_eq!(mistake.lines().count(), 1, "{mistake}");
}

#[test]
fn a_profile_is_shown_as_the_source_also_in_a_chain() {
    let oidc = format!(
        r#"{{"name": "first", "mode": "OIDC", "ram_role_arn": "{ROLE}", "oidc_token_file": "/token",
           "oidc_provider_arn": "acs:ram::1:oidc-provider/p"}}"#
    );
    let home = tempfile::tempdir().unwrap();
    write(
        home.path(),
        &format!("{{\"current\": \"first\", \"profiles\": [{oidc}]}}"),
    );
    let home = [("HOME", home.path().to_str().unwrap())];
    let second = "acs:ram::1:role/second";
    for (source, words) in [
        (
            "{ profile = 'first' }".to_owned(),
            format!(
                "account acme: AssumeRoleWithOIDC {ROLE}; STS at sts.aliyuncs.com; profile first"
            ),
        ),
        (
            format!("{{ assume_role = {{ from = {{ profile = {{}} }}, role_arn = '{second}' }} }}"),
            format!(
                "account acme: AssumeRole {second}, from AssumeRoleWithOIDC {ROLE}; \
                 STS at sts.aliyuncs.com; profile first"
            ),
        ),
    ] {
        let other = "[[accounts]]\nid = 'other'\ncredentials = { ecs_role = {} }";
        let text = format!("[[accounts]]\nid = 'acme'\ncredentials = {source}\n{other}");
        let config = load_text(&text, &home).unwrap().config;
        assert_eq!(account_lines(&config)[0], words);
        let shown = effective(&config);
        assert_eq!(shown["accounts"][0]["profile"], "first");
        assert_eq!(shown["accounts"][1].get("profile"), None);
    }
}
