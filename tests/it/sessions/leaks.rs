//! No token, session secret or signature leaves the program. All output at the most verbose level,
//! in both formats of the log, is searched for every secret of the run.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;

use cams_sim::{Fault, Rule, When, fingerprint};
use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use super::cloud::{Cloud, ROLE, TEAM, create_as, oidc_token, send};
use crate::caller::{KEY, SECRET, encode};
use crate::harness::get;
use crate::secrets::forms;
use crate::status::Stream;

/// What a broken service may quote.
const QUOTED: [&str; 2] = ["quoted-secret-1", "quoted-token-1"];

/// A Flowgate whose whole output is kept.
struct Verbose {
    _child: Child,
    output: Arc<Mutex<String>>,
    proxy: SocketAddr,
    admin: SocketAddr,
}

// === impl Verbose ===

impl Verbose {
    async fn start(config: &std::path::Path, format: &str) -> Self {
        let mut command = flowgate();
        command
            .arg("--config")
            .arg(config)
            .env("FLOWGATE_LOG__FORMAT", format)
            .env("FLOWGATE_LOG__LEVEL", "trace")
            .env("RUST_LOG", "trace")
            .env("RUST_BACKTRACE", "full")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let output = Arc::<Mutex<String>>::default();
        let mut errors = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut prints = BufReader::new(child.stdout.take().unwrap()).lines();
        let printed = output.clone();
        tokio::spawn(async move {
            while let Ok(Some(line)) = prints.next_line().await {
                printed.lock().push_str(&line);
            }
        });
        let ready = loop {
            let line = errors.next_line().await.unwrap();
            let line = line.expect("flowgate says that it is ready");
            output.lock().push_str(&line);
            if line.contains("flowgate is ready") {
                break line;
            }
        };
        let logged = output.clone();
        tokio::spawn(async move {
            while let Ok(Some(line)) = errors.next_line().await {
                let mut logged = logged.lock();
                logged.push_str(&line);
                logged.push('\n');
            }
        });
        Self {
            _child: child,
            output,
            proxy: address(&ready, "proxy"),
            admin: address(&ready, "admin"),
        }
    }
}

/// The address with this name in a line of the log, in JSON or as text.
fn address(line: &str, name: &str) -> SocketAddr {
    let (_, rest) = line
        .split_once(&format!("{name}="))
        .or_else(|| line.split_once(&format!("\"{name}\":")))
        .unwrap_or_else(|| panic!("no {name} in {line}"));
    let rest = rest.trim_start_matches('"');
    let end = |char: char| !char.is_ascii_digit() && !".:".contains(char);
    rest.split(end).next().unwrap().parse().unwrap()
}

fn flowgate() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flowgate"));
    command.env("MANAGED", SECRET).env("TEAM", TEAM.1);
    command
}

/// All secrets that were sent or received so far.
fn secrets(cloud: &Cloud) -> BTreeSet<String> {
    let mut secrets: BTreeSet<String> = cloud.sim.issued_secrets().into_iter().collect();
    for number in 1..=cloud.token.generation() {
        let token = oidc_token(number);
        // Its parts as well: a shortened token would still tell its claims and its signature.
        secrets.extend(token.split('.').skip(1).map(str::to_owned));
    }
    secrets.extend([SECRET, TEAM.1, "uri-secret-1"].map(str::to_owned));
    secrets.extend(QUOTED.map(str::to_owned));
    secrets
}

/// The secrets and the signatures of requests for credentials that a text contains.
fn leaks(cloud: &Cloud, place: &str, text: &str) -> Vec<String> {
    let secrets = secrets(cloud);
    let contained = |secret: &&String| forms(secret).iter().any(|form| text.contains(form));
    let mut leaks: Vec<_> = secrets
        .iter()
        .filter(contained)
        .map(|secret| format!("{secret} in {place}"))
        .collect();
    // The simulator keeps a signature's fingerprint only.
    let signatures: BTreeSet<_> = cloud
        .sim
        .credential_requests()
        .iter()
        .filter_map(|request| request.value("authorization"))
        .filter_map(|value| {
            value
                .split_once("Signature=")
                .map(|(_, sum)| sum.to_owned())
        })
        .collect();
    let words = text.split(|char: char| !char.is_ascii_hexdigit());
    for word in words.filter(|word| word.len() == 64) {
        if signatures.contains(&fingerprint(word)) {
            leaks.push(format!("the signature {word} in {place}"));
        }
    }
    leaks
}

/// Accounts with each source whose requests or answers hold a secret.
fn accounts(cloud: &Cloud) -> Vec<(&'static str, String)> {
    let by_key = format!(
        "{{ assume_role = {{ from = {{ access_key_id = \"{KEY}\", access_key_secret = {{ env = \"MANAGED\" }} }}, \
         role_arn = \"{ROLE}\", session_name = \"by-key\" }} }}"
    );
    let chain = format!(
        "{{ assume_role = {{ from = {}, role_arn = \"acs:ram::210987654321:role/second\", session_name = \"chain\" }} }}",
        cloud.oidc()
    );
    let ecs = format!(
        "{{ ecs_role = {{ address = \"{}\" }} }}",
        cloud.metadata_address()
    );
    vec![
        ("oidc", cloud.oidc()),
        ("by-key", by_key),
        ("chain", chain),
        ("ecs", ecs),
        ("uri", format!("{{ uri = \"{}\" }}", cloud.uri())),
    ]
}

/// A fault of all services of credentials.
fn faults(fault: &Fault) -> Vec<Rule> {
    let rule = |action: &str| Rule {
        when: When::Always,
        action: Some(action.to_owned()),
        fault: fault.clone(),
    };
    ["sts", "metadata"].map(rule).into()
}

/// Answers that break the services, and whether a process started with them gets no session.
fn broken() -> Vec<Fault> {
    let [secret, token] = QUOTED;
    let quoting = format!(
        r#"{{"RequestId":"R-1","Code":"NoPermission","Message":"{secret}","AccessKeySecret":"{secret}","SecurityToken":"{token}"}}"#
    );
    let incomplete = format!(
        r#"{{"RequestId":"R-1","Code":"Success","Credentials":{{"AccessKeySecret":"{secret}","SecurityToken":"{token}"}},"AccessKeySecret":"{secret}","SecurityToken":"{token}"}}"#
    );
    let body = |text: &str, status| Fault::Body {
        text: text.to_owned(),
        status,
    };
    vec![
        body(&quoting, 403),
        body(&incomplete, 200),
        body(&format!("{secret} {token}"), 500),
        Fault::Half,
        Fault::Cut,
        Fault::Garbage,
        Fault::Html,
        Fault::Redirect,
        Fault::CloseBefore,
        Fault::Expired,
        Fault::NoExpiration,
    ]
}

/// Sends a call of each account at the same time; returns the statuses, and records what the callers
/// were told.
async fn call_all(
    cloud: &Cloud,
    process: &Verbose,
    hold: &str,
    texts: &mut BTreeMap<String, String>,
) -> Vec<u16> {
    let mut calls = JoinSet::new();
    for (id, _) in accounts(cloud) {
        let proxy = process.proxy;
        let name = format!("{id}-{}", texts.len());
        let call = create_as(&format!("team-{id}"), &proxy.to_string(), &name, hold);
        calls.spawn(async move { (name, call.send(proxy).await) });
    }
    let mut statuses = Vec::new();
    for (name, reply) in calls.join_all().await {
        let text = format!("{:?} {}", reply.headers, reply.body);
        texts.insert(format!("answer to {name}"), text);
        statuses.push(reply.status);
    }
    statuses
}

/// Searches the process's pages, its log, and the texts.
async fn assert_no_leak(cloud: &Cloud, process: &Verbose, mut texts: BTreeMap<String, String>) {
    for path in ["/config", "/metrics", "/lanes", "/readyz", "/"] {
        texts.insert(path.to_owned(), get(process.admin, path).await.body);
    }
    let page = Stream::open(process.admin).await.next().await.unwrap();
    texts.insert("page".to_owned(), page.to_string());
    let log = process.output.lock().clone();
    texts.insert("log".to_owned(), log);
    let found: Vec<_> = texts
        .iter()
        .flat_map(|(place, text)| leaks(cloud, place, text))
        .collect();
    assert_eq!(found, <[String; 0]>::default());
}

/// What is told about a refusal: the service, its status, its code and its request id.
fn assert_told(cloud: &Cloud, process: &Verbose, texts: &BTreeMap<String, String>) {
    let log = process.output.lock().clone();
    let answer = &texts["answer to oidc-0"];
    for told in [&cloud.sts_address(), "403", "NoPermission", "R-1"] {
        assert!(log.contains(told), "{told} in {log}");
        assert!(answer.contains(told), "{told} in {answer}");
    }
}

fn write_config(cloud: &Cloud) -> std::path::PathBuf {
    let path = cloud.folder.path().join("flowgate.toml");
    let upstream = cloud.api_url();
    let toml = cloud.toml(&accounts(cloud));
    let head = "[listen]\nproxy = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n";
    let text = format!("{head}[upstream]\nurl = \"{upstream}\"\n{toml}");
    std::fs::write(&path, text).unwrap();
    path
}

#[tokio::test]
async fn the_search_finds_tokens_sessions_and_signatures() {
    let cloud = Cloud::start(None).await;
    let signature = "0123456789abcdef".repeat(4);
    let request = hyper::Request::post("/?Action=AssumeRole&Version=2015-04-01")
        .header("host", "sts")
        .header(
            "authorization",
            format!("ACS3-HMAC-SHA256 Credential=a,SignedHeaders=host,Signature={signature}"),
        )
        .body(bytes::Bytes::new());
    cloud.sim.answer(request.unwrap()).await;
    let process = cloud.sidecar().await;
    assert_eq!(send(&process, "any", "30s").await.status, 200);
    let issued = cloud.sim.issued_secrets();
    assert_eq!(issued.len(), 2);
    for secret in [
        &oidc_token(1),
        &issued[0],
        &issued[1],
        &encode(&issued[0]),
        &signature,
    ] {
        let text = format!("error: {secret}, and more");
        assert!(!leaks(&cloud, "a text", &text).is_empty(), "{secret}");
    }
    assert!(leaks(&cloud, "a text", "nothing").is_empty());
}

#[tokio::test]
async fn no_output_of_a_healthy_process_holds_a_token_or_a_session() {
    let cloud = Cloud::start(None).await;
    let config = write_config(&cloud);
    for format in ["json", "text"] {
        let process = Verbose::start(&config, format).await;
        let mut texts = BTreeMap::new();
        let statuses = call_all(&cloud, &process, "30s", &mut texts).await;
        assert_eq!(statuses, [200; 5], "{texts:?}");
        // A forced refresh, and calls that are signed twice.
        cloud.sim.end_sessions();
        let statuses = call_all(&cloud, &process, "30s", &mut texts).await;
        assert_eq!(statuses, [200; 5], "{texts:?}");
        assert!(!process.output.lock().is_empty());
        assert_no_leak(&cloud, &process, texts).await;
    }
}

#[tokio::test]
async fn no_output_holds_what_a_broken_service_quotes() {
    let cloud = Cloud::start(None).await;
    let config = write_config(&cloud);
    for (number, fault) in broken().iter().enumerate() {
        cloud.sim.set_faults(faults(fault));
        let format = if number % 2 == 0 { "json" } else { "text" };
        let process = Verbose::start(&config, format).await;
        let mut texts = BTreeMap::new();
        let statuses = call_all(&cloud, &process, "1s", &mut texts).await;
        assert_eq!(statuses, [403; 5], "{fault:?}: {texts:?}");
        if number == 0 {
            assert_told(&cloud, &process, &texts);
        }
        assert_no_leak(&cloud, &process, texts).await;
    }
}

#[tokio::test]
async fn check_prints_no_token_and_no_session() {
    let cloud = Cloud::start(None).await;
    let config = write_config(&cloud);
    let mut texts = BTreeMap::new();
    let refusal = broken().into_iter().next();
    for (argument, fault, code) in [
        ("--print", None, 0),
        ("--live", None, 0),
        ("--live", refusal, 1),
    ] {
        let faults = fault.as_ref().map(faults).unwrap_or_default();
        cloud.sim.set_faults(faults);
        let mut command = flowgate();
        command.args(["check", argument, "--config"]).arg(&config);
        let output = command.output().await.unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(output.status.code(), Some(code), "{argument}: {text}");
        texts.insert(format!("{argument} {code}"), text);
    }
    let found: Vec<_> = texts
        .iter()
        .flat_map(|(place, text)| leaks(&cloud, place, text))
        .collect();
    assert_eq!(found, <[String; 0]>::default());
    // Each account with its identity.
    let live = &texts["--live 0"];
    for (id, _) in accounts(&cloud) {
        assert!(live.contains(id), "{live}");
    }
    assert!(live.contains("assumed-role/flowgate"), "{live}");
}
