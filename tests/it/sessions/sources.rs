//! Every source of credentials, each used for a call.

use std::collections::BTreeMap;
use std::path::Path;

use cams_sim::{Answer, fingerprint};
use hyper::Request;

use super::cloud::{Cloud, OIDC, PROVIDER, ROLE, TEAM, borrowed, create_as, key_of, oidc_token};
use crate::caller::{Call, KEY, SECRET, encode};
use crate::harness::Metrics;
use crate::process::Process;

const SECOND: &str = "acs:ram::210987654321:role/second";
const THIRD: &str = "acs:ram::210987654321:role/third";

/// An account with each source.
fn accounts(cloud: &Cloud) -> Vec<(&'static str, String)> {
    let ecs = format!(
        "{{ ecs_role = {{ address = \"{}\" }} }}",
        cloud.metadata_address()
    );
    let known_role = format!(
        "{{ ecs_role = {{ role = \"flowgate-role\", address = \"{}\" }} }}",
        cloud.metadata_address()
    );
    let key =
        format!("{{ access_key_id = \"{KEY}\", access_key_secret = {{ env = \"MANAGED\" }} }}");
    let by_key = assume(&key, ROLE, "by-key", ", external_id = \"abc/1=2:3@x\"");
    let by_ecs = assume(&ecs, SECOND, "by-ecs", ", duration = \"15m\"");
    let chain = assume(
        &assume(&by_oidc(cloud), SECOND, "link", ""),
        THIRD,
        "chain",
        "",
    );
    vec![
        ("oidc", cloud.oidc()),
        ("ecs", ecs.clone()),
        ("known-role", known_role),
        ("by-key", by_key),
        ("by-ecs", by_ecs),
        ("chain", chain),
        ("uri", format!("{{ uri = \"{}\" }}", cloud.uri())),
        ("env", "{ env = \"SHOP\" }".to_owned()),
        (
            "profile",
            "{ profile = { name = \"dev\", file = \"config.json\" } }".to_owned(),
        ),
    ]
}

fn assume(from: &str, role: &str, name: &str, more: &str) -> String {
    format!(
        "{{ assume_role = {{ from = {from}, role_arn = \"{role}\", session_name = \"{name}\"{more} }} }}"
    )
}

/// Another session name than that of the account with the token alone.
fn by_oidc(cloud: &Cloud) -> String {
    cloud
        .oidc()
        .replace("oidc = {", "oidc = { session_name = \"root\",")
}

/// Alibaba's command line tool's file with a profile that assumes a role.
fn write_profiles(folder: &Path) {
    let profiles = serde_json::json!({ "current": "other", "profiles": [
        { "name": "other", "mode": "AK", "access_key_id": "LTAI-other", "access_key_secret": "other-secret-1" },
        {
            "name": "dev", "mode": "RamRoleArn", "access_key_id": KEY, "access_key_secret": SECRET,
            "ram_role_arn": ROLE, "ram_session_name": "by-profile", "region_id": "ap-southeast-1",
        },
    ] });
    std::fs::write(folder.join("config.json"), profiles.to_string()).unwrap();
}

#[tokio::test]
async fn a_call_of_an_account_with_each_source_succeeds() {
    let cloud = Cloud::start(None).await;
    let accounts = accounts(&cloud);
    let folder = tempfile::tempdir().unwrap();
    write_profiles(folder.path());
    let env = [
        ("SHOP_ACCESS_KEY_ID", KEY),
        ("SHOP_ACCESS_KEY_SECRET", SECRET),
    ];
    let toml = cloud.toml(&accounts);
    let process = Process::towards(&cloud.api_url(), &toml, folder, &env).await;
    for (id, _) in &accounts {
        let host = process.proxy.to_string();
        let call = create_as(&format!("team-{id}"), &host, id, "30s");
        let reply = call.send(process.proxy).await;
        assert_eq!(reply.status, 200, "{id}: {reply:?}");
    }

    // Which sessions the calls were signed with.
    let holders: BTreeMap<String, String> = cloud.holders();
    let arrivals = cloud.sim.arrivals();
    let used: Vec<_> = arrivals
        .iter()
        .map(|arrival| {
            let key = key_of(arrival);
            holders.get(key).map_or(key, String::as_str)
        })
        .collect();
    let instance = "flowgate-role";
    let token = holders[key_of(&arrivals[0])].as_str();
    assert_eq!(
        used,
        [
            token,
            instance,
            instance,
            "by-key",
            "by-ecs",
            "chain",
            instance,
            KEY,
            "by-profile"
        ]
    );
    assert!(token.starts_with("flowgate"), "{token}");
    assert_eq!(cloud.requests("AssumeRole").len(), 5);
    assert_eq!(cloud.requests(OIDC).len(), 2);
    for request in cloud.sim.credential_requests() {
        assert!(request.tokens_in_url().is_empty(), "{request:?}");
    }
}

/// Its own session, as an SDK with the same service account obtains it, is not known to Flowgate.
#[tokio::test]
async fn a_sidecar_without_clients_relays_an_applications_own_session_as_its_account() {
    let cloud = Cloud::start(None).await;
    let process = Process::from_env(&borrowed(&cloud.sidecar_variables(false))).await;
    let [key, secret, token] = session_of_application(&cloud).await;
    let fields = [("Categories", "[\"SIGN_UP\"]"), ("FlowName", "own")];
    let with_token = |call: &mut Call| call.query.push(("SecurityToken".into(), token));
    let host = process.proxy.to_string();
    // Flowgate says what is needed: at the start, and to a call that it cannot sign again.
    let warnings = process.logged("configuration", 1).await;
    let warning = warnings[0]["warning"].as_str().unwrap();
    assert!(
        warning.contains("[[clients]] (flowgate client new)"),
        "{warning}"
    );
    let call = Call::v3_with(&host, &fields, |_| {}, (&key, &secret));
    let reply = call.send(process.proxy).await;
    assert_eq!(reply.code(), "Flowgate.SignedHostMismatch", "{reply:?}");
    assert!(
        reply.body.contains("[[clients]], flowgate client new"),
        "{reply:?}"
    );

    let call = Call::v1_with(&host, &fields, with_token, (&key, &secret));
    let reply = call.send(process.proxy).await;
    assert_eq!(reply.status, 200, "{reply:?}");

    let metrics = Metrics::of(process.admin).await;
    assert_eq!(metrics.outcome("default", "CreateFlow", "ok"), 1.0);
    // The application's: nothing needs a session of Flowgate's own.
    assert_eq!(cloud.requests(OIDC).len(), 1);
}

/// Id, secret and token of a session that was obtained directly from STS.
async fn session_of_application(cloud: &Cloud) -> [String; 3] {
    let fields = [
        ("Action", OIDC),
        ("Version", "2015-04-01"),
        ("Format", "JSON"),
        ("RoleArn", ROLE),
        ("OIDCProviderArn", PROVIDER),
        ("OIDCToken", &oidc_token(1)),
        ("RoleSessionName", "application"),
    ];
    let form = fields.map(|(name, value)| format!("{name}={}", encode(value)));
    let request = Request::post("/")
        .header("host", "sts.aliyuncs.com")
        .header("content-type", "application/x-www-form-urlencoded")
        .body(form.join("&").into());
    let Answer::Http(answer) = cloud.sim.answer(request.unwrap()).await else {
        panic!("STS answers")
    };
    let body: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
    ["AccessKeyId", "AccessKeySecret", "SecurityToken"]
        .map(|name| body["Credentials"][name].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn a_partial_set_of_the_webhooks_variables_is_refused_and_what_is_missing_is_named() {
    let cloud = Cloud::start(None).await;
    let variables = cloud.sidecar_variables(true);
    for missing in [
        "ALIBABA_CLOUD_ROLE_ARN",
        "ALIBABA_CLOUD_OIDC_PROVIDER_ARN",
        "ALIBABA_CLOUD_OIDC_TOKEN_FILE",
    ] {
        let variables = borrowed(&variables).into_iter();
        let variables = variables.filter(|(name, _)| *name != missing);
        let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_flowgate"))
            .arg("check")
            .env("TEAM", TEAM.1)
            .envs(variables)
            .output()
            .await
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{missing}: {text}");
        assert!(text.contains(missing), "{missing}: {text}");
    }
    assert!(cloud.sim.credential_requests().is_empty());
}

#[tokio::test]
async fn the_projected_token_is_sent_as_it_is_read() {
    let cloud = Cloud::start(None).await;
    std::fs::write(cloud.token.path(), format!("{}\n", oidc_token(1))).unwrap();
    let _process = cloud.sidecar().await;
    cloud.until_requested(OIDC, 1).await;
    let request = &cloud.requests(OIDC)[0];
    // Without the newline; nothing else of the request is a secret.
    assert_eq!(
        request.value("OIDCToken"),
        Some(&*fingerprint(&oidc_token(1)))
    );
    for absent in ["authorization", "AccessKeyId", "Signature"] {
        assert_eq!(request.value(absent), None, "{absent}");
    }
}
