//! No secret, signature or token leaves the program. All output, at the most verbose level, is
//! searched for every secret in use, the callers' and Flowgate's own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cams_sim::{Arrival, Key, Running, Settings, Sim};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::caller::{Call, KEY, SECRET, encode, exchange, read_reply};
use crate::harness::get;
use crate::process::Process;

const TEAM: (&str, &str) = ("team-a", "team-secret-1");
/// A key with another secret at CAMS than at Flowgate, so that CAMS rejects what Flowgate signs.
const ROTTEN: (&str, &str) = ("LTAI-rotten-1", "rotten-secret-1");
const PARTNER: (&str, &str) = ("LTAI-partner-1", "partner-secret-1");
const STS: (&str, &str, &str) = ("STS.NT-1", "sts-secret-1", "sts-token-CAIS/+a=");
/// A secret that a caller sends in a wrong place by mistake.
const SLIP: &str = "slipped-secret-1";
const FLOW: [(&str, &str); 2] = [("Categories", "[\"SIGN_UP\"]"), ("FlowName", "plain")];
const TALKATIVE: [(&str, &str); 2] = [("FLOWGATE_LOG__LEVEL", "trace"), ("RUST_LOG", "trace")];

/// The secrets, and all output by its source.
#[derive(Default)]
struct Search {
    hidden: BTreeSet<String>,
    /// Not secret, but useless in a log.
    nonces: BTreeSet<String>,
    pages: BTreeMap<String, String>,
    answers: BTreeMap<String, String>,
}

/// The value of a header or parameter, up to `end`.
fn after<'a>(text: &'a str, name: &str, end: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(name)?;
    rest.split(|char| end.contains(char)).next()
}

/// All encodings in which a text may appear in another.
pub(crate) fn forms(text: &str) -> [String; 4] {
    [
        text.to_owned(),
        encode(text),
        encode(&encode(text)),
        STANDARD.encode(text),
    ]
}

// === impl Search ===

impl Search {
    fn new() -> Self {
        let secrets = [SECRET, TEAM.1, ROTTEN.1, PARTNER.1, STS.1, STS.2, SLIP];
        Self {
            hidden: secrets.map(str::to_owned).into(),
            ..Self::default()
        }
    }

    /// Records the signature and the nonce of a call.
    fn bears(&mut self, target: &str, headers: &[(String, String)]) {
        let header = |name: &str| {
            headers
                .iter()
                .find(|(known, _)| known == name)
                .map(|(_, value)| value.as_str())
        };
        let v3 = header("authorization").and_then(|text| after(text, "Signature=", ","));
        let v1 = after(target, "&Signature=", "&");
        let signature = v3.or(v1).expect("a call is signed");
        self.hidden.insert(
            signature
                .replace("%2B", "+")
                .replace("%2F", "/")
                .replace("%3D", "="),
        );
        let nonce =
            header("x-acs-signature-nonce").or_else(|| after(target, "SignatureNonce=", "&"));
        self.nonces
            .insert(nonce.expect("a signed call has a nonce").to_owned());
    }

    fn call(&mut self, call: &Call) {
        self.bears(&call.target(), &call.headers);
    }

    fn arrival(&mut self, arrival: &Arrival) {
        self.bears(&arrival.target, &arrival.headers);
    }

    /// Sends a call and records the response; one process's endpoint at a time.
    async fn send(&mut self, name: &str, call: &Call, to: SocketAddr) -> u16 {
        self.call(call);
        let reply = call.send(to).await;
        self.answers.insert(
            name.to_owned(),
            format!("{:?}\n{}", reply.headers, reply.body),
        );
        reply.status
    }

    /// Records a process's pages and log.
    async fn look(&mut self, name: &str, process: &Process) {
        for path in ["/config", "/metrics", "/lanes", "/readyz"] {
            self.pages
                .insert(format!("{name}{path}"), get(process.admin, path).await.body);
        }
        self.pages.insert(format!("{name}'s log"), process.log());
    }

    /// Where a secret appears.
    fn found(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (place, text) in self.pages.iter().chain(&self.answers) {
            found.extend(secrets_in(place, text, &self.hidden));
        }
        for (place, text) in &self.pages {
            found.extend(secrets_in(place, text, &self.nonces));
        }
        found
    }
}

/// Which of these secrets the text contains, in any form.
fn secrets_in(place: &str, text: &str, secrets: &BTreeSet<String>) -> Vec<String> {
    secrets
        .iter()
        .filter(|secret| forms(secret).iter().any(|form| text.contains(form)))
        .map(|secret| format!("{secret} in {place}"))
        .collect()
}

fn key(id: &str, secret: &str, account: &str, token: Option<&str>) -> Key {
    Key {
        access_key_id: id.to_owned(),
        secret: secret.to_owned(),
        account: account.to_owned(),
        security_token: token.map(str::to_owned),
    }
}

async fn endpoint() -> Running {
    let keys = vec![
        key(KEY, SECRET, "acme", None),
        key(ROTTEN.0, "what-cams-knows", "rotten", None),
        key(PARTNER.0, PARTNER.1, "partner", None),
        key(STS.0, STS.1, "default", Some(STS.2)),
    ];
    let faults = [
        "named=lost,close-after",
        "named=odd,garbage",
        "named=throttled,throttle,status=429",
    ];
    let faults = faults.iter().map(|fault| fault.parse().unwrap()).collect();
    Sim::start(Settings {
        keys,
        faults,
        limits: BTreeMap::new(),
        ..Settings::default()
    })
    .await
    .unwrap()
}

/// The configuration after the account `acme`.
fn configured(journal: &Path) -> String {
    format!(
        "aliases = [\"LTAI-alias-1\"]\n[[accounts]]\nid = \"rotten\"\naccess_key_id = \"{}\"\naccess_key_secret = {{ env = \"ROTTEN\" }}\n\
         [[accounts]]\nid = \"partner\"\naliases = [\"{}\"]\n\
         [[clients]]\naccess_key_id = \"{}\"\naccess_key_secret = {{ env = \"TEAM\" }}\naccount = \"acme\"\nactions = [\"CreateFlow\"]\n\
         [limits]\npreset = \"none\"\n[queue]\nhold = \"5s\"\n[retry]\nmax_attempts = 2\nbase = \"1ms\"\nmax = \"1ms\"\n[journal]\npath = \"{}\"\n",
        ROTTEN.0,
        PARTNER.0,
        TEAM.0,
        journal.display()
    )
}

/// Sends valid and invalid calls of all kinds. Returns the number of their log lines.
async fn calls(search: &mut Search, proxy: SocketAddr) -> usize {
    let host = proxy.to_string();
    let upstream = "127.0.0.1";
    let mut count = 0;
    let named = |name: &'static str| [FLOW[0], ("FlowName", name)];
    for (key, who) in [((KEY, SECRET), "own"), (TEAM, "team"), (ROTTEN, "rotten")] {
        for name in ["plain", "lost", "odd", "throttled"] {
            let v3 = Call::v3_with(&host, &named(name), |_| {}, key);
            let v1 = Call::v1_with(&host, &named(name), |_| {}, key);
            for (version, call) in [("V3", v3), ("V1", v1)] {
                let status = search
                    .send(&format!("{who} {version} {name}"), &call, proxy)
                    .await;
                assert_eq!(
                    status == 200,
                    name == "plain" && who != "rotten",
                    "{who} {version} {name}"
                );
                count += 1;
            }
        }
        // The same call with the right signature, which Flowgate computes to compare and must not
        // reveal.
        let mut wrong = Call::v3_with(&host, &FLOW, |_| {}, key);
        search.call(&wrong);
        let (bare, _) = wrong
            .header("authorization")
            .split_once("Signature=")
            .unwrap();
        let authorization = format!("{bare}Signature={}", "0123456789abcdef".repeat(4));
        wrong.set("authorization", &authorization);
        assert_eq!(
            search.send(&format!("{who} V3 wrong"), &wrong, proxy).await,
            400
        );
        let mut wrong = Call::v1_with(&host, &FLOW, |_| {}, key);
        search.call(&wrong);
        wrong.query.last_mut().unwrap().1 = STANDARD.encode([7; 20]);
        assert_eq!(
            search.send(&format!("{who} V1 wrong"), &wrong, proxy).await,
            400
        );
        count += 2;
    }
    for (name, secret) in [("right", PARTNER.1), ("wrong", "another-secret")] {
        let call = Call::v1_with(upstream, &FLOW, |_| {}, (PARTNER.0, secret));
        search.send(&format!("partner {name}"), &call, proxy).await;
        count += 1;
    }
    count
}

/// Sends secrets in wrong places.
async fn slips(search: &mut Search, proxy: SocketAddr) -> usize {
    let host = proxy.to_string();
    let bad = |authorization: &str| {
        format!(
            "POST / HTTP/1.1\r\nhost: {host}\r\nauthorization: {authorization}\r\ncontent-length: 0\r\n\r\n"
        )
    };
    let with = |name: &str, value: &str| {
        Call::v3_with(&host, &[FLOW[0], FLOW[1], (name, value)], |_| {}, TEAM)
    };
    let mut twice = with("Other", SLIP);
    twice.query.push(("Other".into(), SLIP.into()));
    let mut json = Call::v3_with(
        &host,
        &[],
        |call| {
            call.push("content-type", "application/json");
            call.body = format!("{{\"a\":\"{SLIP}\",").into_bytes();
        },
        TEAM,
    );
    json.push("x-flowgate-hold", SLIP);
    for call in [&twice, &json] {
        search.call(call);
    }
    let slips = [
        ("in a header", bad(SLIP)),
        (
            "in V3's header",
            bad(&format!(
                "ACS3-HMAC-SHA256 Credential={SLIP},SignedHeaders=host,Signature={SLIP}"
            )),
        ),
        ("as a bearer", bad(&format!("Bearer {SLIP}"))),
        (
            "in the path",
            format!("GET /{SLIP} HTTP/1.1\r\nhost: {host}\r\n\r\n"),
        ),
        (
            "as a host",
            format!("GET / HTTP/1.1\r\nhost: {SLIP}\r\n\r\n"),
        ),
        (
            "as a method",
            format!("{SLIP} / HTTP/1.1\r\nhost: {host}\r\n\r\n"),
        ),
        (
            "in the query",
            format!(
                "GET /?AccessKeyId=x&Signature={SLIP}&AccessKeySecret={SLIP} HTTP/1.1\r\nhost: {host}\r\n\r\n"
            ),
        ),
        (
            "with a user",
            format!("GET http://x:{SLIP}@{host}/ HTTP/1.1\r\nhost: {host}\r\n\r\n"),
        ),
        ("twice", String::from_utf8(twice.bytes()).unwrap()),
        ("in JSON", String::from_utf8(json.bytes()).unwrap()),
    ];
    let count = slips.len();
    for (name, bytes) in slips {
        let reply = exchange(proxy, bytes.as_bytes()).await;
        assert!(
            reply.as_ref().is_none_or(|reply| reply.status >= 400),
            "{name}: {reply:?}"
        );
        // An error's `HostId` is the host of the request.
        let reply = reply.filter(|_| name != "as a host");
        search.answers.insert(name.to_owned(), format!("{reply:?}"));
    }
    let mut stream = TcpStream::connect(proxy).await.unwrap();
    stream
        .write_all(format!("\x16\x03\x01{SLIP}\r\n\r\n").as_bytes())
        .await
        .unwrap();
    search.answers.insert(
        "no HTTP".to_owned(),
        format!("{:?}", read_reply(&mut stream).await),
    );
    count
}

#[tokio::test]
async fn no_output_holds_a_secret_or_a_signature() {
    let sim = endpoint().await;
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("journal");
    let env = [("ROTTEN", ROTTEN.1), TALKATIVE[0], TALKATIVE[1]];
    let process = Process::with_env(&sim, &configured(&journal), &env).await;
    let mut search = Search::new();
    let count = calls(&mut search, process.proxy).await + slips(&mut search, process.proxy).await;
    process.logged("call", count - 1).await;
    search.look("gateway", &process).await;
    search.pages.insert(
        "the journal".to_owned(),
        std::fs::read_to_string(&journal).unwrap(),
    );
    let arrivals = sim.arrivals();
    let echoed = arrivals
        .iter()
        .filter(|arrival| arrival.account.as_deref() == Some("rotten"))
        .count();
    assert!(
        arrivals.len() > 20 && echoed >= 4,
        "{} arrived, {echoed} refused with an echo",
        arrivals.len()
    );
    arrivals.iter().for_each(|arrival| search.arrival(arrival));
    assert!(search.hidden.len() > 50 && search.pages.len() == 6 && search.answers.len() > 40);
    assert_eq!(search.found(), [""; 0]);
    // The search itself works: each encoding of a secret, a signature of each kind, a nonce.
    let hidden = search.hidden.iter().next_back().unwrap().clone();
    for planted in [
        SECRET.to_owned(),
        STANDARD.encode(TEAM.1),
        encode(STS.2),
        hidden,
        search.nonces.first().unwrap().clone(),
    ] {
        search
            .pages
            .insert("planted".to_owned(), format!("x{planted}x"));
        assert_eq!(search.found().len(), 1, "{planted}");
    }
}

#[tokio::test]
async fn no_output_holds_session_tokens_or_the_store_password() {
    let sim = endpoint().await;
    let url = sim.url();
    let mut env = vec![
        ("FLOWGATE_UPSTREAM__URL", url.as_str()),
        ("ALIBABA_CLOUD_ACCESS_KEY_ID", STS.0),
        ("ALIBABA_CLOUD_ACCESS_KEY_SECRET", STS.1),
        ("ALIBABA_CLOUD_SECURITY_TOKEN", STS.2),
    ];
    env.extend(TALKATIVE);
    let mut search = Search::new();
    let process = Process::from_env(&env).await;
    let host = process.proxy.to_string();
    for (name, call) in [
        ("V3", Call::v3_with(&host, &FLOW, |_| {}, (STS.0, STS.1))),
        ("V1", Call::v1_with(&host, &FLOW, |_| {}, (STS.0, STS.1))),
    ] {
        assert_eq!(search.send(name, &call, process.proxy).await, 200, "{name}");
    }
    process.logged("call", 2).await;
    search.look("sidecar", &process).await;
    // No server listens there.
    let store = [
        ("FLOWGATE_QUOTA__STORE", "redis://127.0.0.1:1"),
        ("FLOWGATE_QUOTA__STORE_PASSWORD__ENV", "STORE"),
        ("STORE", "store-secret-1"),
    ];
    env.extend(store);
    search.hidden.insert("store-secret-1".to_owned());
    let process = Process::from_env(&env).await;
    search.look("replica", &process).await;
    sim.arrivals()
        .iter()
        .for_each(|arrival| search.arrival(arrival));
    assert_eq!(search.found(), [""; 0]);
}

#[test]
fn check_and_a_failed_start_show_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("flowgate.toml");
    let account = |secret: &str| {
        format!(
            "[[accounts]]\nid = \"acme\"\naccess_key_id = \"{KEY}\"\naccess_key_secret = {secret}\n"
        )
    };
    let place = account("{ env = \"MANAGED\" }");
    let rows = [
        ("check", place.clone(), 0),
        ("check", account(&format!("\"{SECRET}\"")), 64),
        ("check", account(&format!("{{ env = \"{SECRET}\" }}")), 64),
        ("check", account(SECRET), 64),
        (
            "check",
            format!("{place}[upstream]\nurl = \"https://x:{SECRET}@cams\"\n"),
            64,
        ),
        (
            "check",
            format!("{place}[quota]\nstore = \"redis://:{SECRET}@127.0.0.1\"\n"),
            64,
        ),
        (
            "run",
            format!("{place}[listen]\nproxy = \"192.0.2.1:1\"\n"),
            1,
        ),
    ];
    for (command, text, code) in &rows {
        std::fs::write(&config, text).unwrap();
        let mut flowgate = std::process::Command::new(env!("CARGO_BIN_EXE_flowgate"));
        let arguments = if *command == "check" {
            &["check"][..]
        } else {
            &[]
        };
        flowgate
            .args(arguments)
            .arg("--config")
            .arg(&config)
            .env("MANAGED", SECRET)
            .envs(TALKATIVE);
        let output = flowgate.output().unwrap();
        let text_out = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(output.status.code(), Some(*code), "{text}: {text_out}");
        assert!(!text_out.contains(SECRET), "{text_out}");
    }
}

#[tokio::test]
async fn no_output_of_a_reload_holds_a_secret_or_the_operator_token() {
    let sim = endpoint().await;
    let folder = tempfile::tempdir().unwrap();
    let session = format!(
        "{{\"AccessKeyId\":\"{}\",\"AccessKeySecret\":\"{}\",\"SecurityToken\":\"{}\",\"Expiration\":\"2126-01-01T00:00:00Z\"}}",
        STS.0, STS.1, STS.2
    );
    std::fs::write(folder.path().join("session.json"), &session).unwrap();
    let toml = "[[accounts]]\nid = \"default\"\ncredentials = { file = \"session.json\" }\n[[clients]]\naccess_key_id = \"team-a\"\n\
                access_key_secret = { env = \"TEAM\" }\nprevious_access_key_secret = { env = \"FORMER\" }\naccount = \"default\"\n\
                actions = [\"*\"]\n";
    let former = "former-secret-1";
    let operator = "operator-token-1";
    let mut search = Search::new();
    search.hidden.extend([former, operator].map(str::to_owned));
    let mut env = vec![
        ("FORMER", former),
        ("OPERATOR", operator),
        ("FLOWGATE_LISTEN__ADMIN_TOKEN__ENV", "OPERATOR"),
    ];
    env.extend(TALKATIVE);
    let flowgate = Process::configured(&sim, toml, folder, &env).await;
    let host = flowgate.proxy.to_string();
    for (name, key) in [
        ("present", TEAM),
        ("former", (TEAM.0, former)),
        ("session", (STS.0, STS.1)),
    ] {
        let call = Call::v3_with(&host, &FLOW, |_| {}, key);
        assert_eq!(
            search.send(name, &call, flowgate.proxy).await,
            200,
            "{name}"
        );
    }
    for token in [operator, SLIP] {
        let ask = format!(
            "GET /config HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {token}\r\n\r\n",
            flowgate.admin
        );
        let page = exchange(flowgate.admin, ask.as_bytes()).await.unwrap();
        search
            .pages
            .insert(format!("/config for {token}"), format!("{page:?}"));
    }
    let kept = "configuration reload rejected; keeping the current one";
    let place = |secret: &str| toml.replace("{ env = \"FORMER\" }", secret);
    let wrong = [
        place(&format!("\"{former}\"")),
        place(former),
        format!("{toml}[queue]\nhold = \"{former}\"\n"),
    ];
    for (times, wrong) in wrong.iter().enumerate() {
        flowgate.write(wrong);
        flowgate.signal("-HUP").await;
        flowgate.logged(kept, times + 1).await;
    }
    flowgate.write(toml);
    let file = flowgate.folder.path().join("session.json");
    let broken = [
        session.replace('}', ""),
        session.replace("2126", STS.1),
        session.replace(STS.0, "a b"),
    ];
    for (times, broken) in broken.iter().enumerate() {
        std::fs::write(&file, broken).unwrap();
        flowgate.signal("-HUP").await;
        flowgate.logged(kept, wrong.len() + times + 1).await;
    }
    flowgate.logged("call", 3).await;
    search.look("reloaded", &flowgate).await;
    sim.arrivals()
        .iter()
        .for_each(|arrival| search.arrival(arrival));
    assert_eq!(search.found(), [""; 0]);
}
