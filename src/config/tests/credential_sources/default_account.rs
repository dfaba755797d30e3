//! The account `default`, which the variables of Alibaba's SDKs define.

use super::*;

#[test]
fn the_variables_of_ack_s_webhook_are_one_account_whose_application_keeps_its_sessions() {
    let Loaded {
        config, warnings, ..
    } = variables(&WEBHOOK).unwrap();
    // What works, what does not, and what to do.
    assert_eq!(warnings.len(), 1);
    for part in [
        "accounts without clients: default: their temporary credentials are not used",
        "are relayed, and must be signed for CAMS's host or with version 1",
        "docs/faq.md",
        "[[clients]] (flowgate client new)",
    ] {
        assert!(warnings[0].contains(part), "{warnings:?}");
    }
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
        let mut warnings = loaded.unwrap().warnings;
        warnings.retain(|warning| !warning.starts_with("accounts without clients: default: "));
        assert_eq!(warnings, expected, "{disabled}");
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

/// A client of the account `default`, with variables.
fn with_client(account: &str, set: &[(&str, &str)], more: &str) -> Vec<String> {
    let client = format!(
        "[[clients]]\naccess_key_id = 'team'\naccess_key_secret = {{ env = 'SECRET' }}\n\
         account = '{account}'\nactions = ['*']\n{more}"
    );
    let set = [set, &[("SECRET", SENTINEL)]].concat();
    let mistakes = load_text(&client, &set).unwrap_err();
    mistakes.lines().map(str::to_owned).collect()
}

#[test]
fn a_client_of_the_account_of_variables_is_told_what_is_not_set() {
    let client = |account, set: &[(&str, &str)], more| {
        let [mistake] = &with_client(account, set, more)[..] else {
            panic!("is one mistake")
        };
        let place = "4: clients[0].account: no account has this id: expected ";
        mistake.strip_prefix(place).unwrap().to_owned()
    };
    assert_eq!(
        client("default", &[], ""),
        "Alibaba's variables to define the account \"default\", such as those that ACK's webhook \
         sets (ALIBABA_CLOUD_ROLE_ARN, ALIBABA_CLOUD_OIDC_PROVIDER_ARN, \
         ALIBABA_CLOUD_OIDC_TOKEN_FILE), but none of them is set here; or expected [[accounts]]"
    );
    assert_eq!(
        client("acme", &[], ""),
        "[[accounts]], or \"default\" and Alibaba's variables, which define that account"
    );
    assert_eq!(
        client("acme", &oidc(), ""),
        "\"default\", which Alibaba's variables define, or [[accounts]]"
    );
    let written = "[[accounts]]\nid = 'acme'\ncredentials = { ecs_role = {} }\n";
    assert_eq!(
        client("default", &oidc(), written),
        "the id of one of [[accounts]], beside which Alibaba's variables define no account \
         \"default\""
    );
    assert_eq!(
        client("other", &[], written),
        "the id of one of [[accounts]]"
    );
}

#[test]
fn a_mistake_in_the_variables_or_the_accounts_is_the_only_one() {
    let uri = ("ALIBABA_CLOUD_CREDENTIALS_URI", "https://vault.example/x");
    let key = ("ALIBABA_CLOUD_ACCESS_KEY_ID", "LTAI");
    let [role, ..] = oidc()[..] else {
        unreachable!()
    };
    let vpc = ("ALIBABA_CLOUD_VPC_ENDPOINT_ENABLED", "true");
    let endpoint = ("ALIBABA_CLOUD_STS_ENDPOINT", "http://sts.aliyuncs.com");
    for set in [
        oidc()[..2].to_vec(),
        [oidc(), vec![uri]].concat(),
        [oidc(), vec![vpc]].concat(),
        [oidc(), vec![endpoint]].concat(),
        vec![key],
        vec![("ALIBABA_CLOUD_ACCESS_KEY_SECRET", SENTINEL)],
        vec![role],
        vec![("ALIBABA_CLOUD_ECS_METADATA", "../x")],
        vec![("ALIBABA_CLOUD_CREDENTIALS_URI", "ftp://x")],
        vec![("ALIBABA_CLOUD_PROFILE", "first"), ("HOME", "/none")],
    ] {
        let [mistake] = &with_client("default", &set, "")[..] else {
            panic!("{set:?} is one mistake")
        };
        assert!(mistake.starts_with("ALIBABA_CLOUD_"), "{mistake}");
    }
    for accounts in ["[accounts]\nid = 'acme'", "[accounts.acme]"] {
        let mistakes = with_client("acme", &[], accounts);
        assert_eq!(mistakes.len(), 1, "{mistakes:?}");
        assert!(
            mistakes[0].contains("accounts: expected an array of tables"),
            "{mistakes:?}"
        );
    }
}

#[test]
fn a_variable_that_is_of_use_only_beside_another_is_a_warning() {
    for (name, needed) in [
        ("ALIBABA_CLOUD_CONFIG_FILE", "ALIBABA_CLOUD_PROFILE"),
        (
            "ALIBABA_CLOUD_SECURITY_TOKEN",
            "ALIBABA_CLOUD_ACCESS_KEY_ID",
        ),
    ] {
        let loaded = variables(&[(name, SENTINEL)]).unwrap();
        assert_eq!(loaded.config.accounts.len(), 0);
        assert_eq!(
            loaded.warnings,
            [format!(
                "{name}: defines no account without {needed}: set {needed} too, or configure [[accounts]]"
            )]
        );
    }
}
