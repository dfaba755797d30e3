//! The account `default`, which the variables of Alibaba's SDKs define.

use super::*;

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
