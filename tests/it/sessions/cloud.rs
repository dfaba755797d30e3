//! What Alibaba Cloud has around Flowgate: CAMS and STS over TLS, the metadata service and a
//! credentials URI, all of one simulator; and a Kubernetes token file that is replaced.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cams_sim::{Arrival, CredentialRequest, Limit, Rule, Running, Settings, Sim};
use rcgen::{CertificateParams, DnType};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::caller::{Call, KEY, Reply, SECRET};
use crate::harness::Metrics;
use crate::process::Process;
use crate::relay::Relay;
use crate::tls::Authority;

pub(super) const ROLE: &str = "acs:ram::123456789012:role/flowgate";
pub(super) const PROVIDER: &str = "acs:ram::123456789012:oidc-provider/ack-rrsa-c1";
pub(super) const OIDC: &str = "AssumeRoleWithOIDC";
/// The client's key; `process.rs` sets its secret as the variable `TEAM`.
pub(super) const TEAM: (&str, &str) = ("team-a", "team-secret-1");

/// The services of Alibaba Cloud.
pub(super) struct Cloud {
    pub(super) sim: Sim,
    api: Running,
    metadata: Running,
    /// On the way to STS.
    pub(super) sts: Relay,
    /// The root certificate and the token.
    pub(super) folder: TempDir,
    pub(super) token: TokenFile,
}

/// A projected token of Kubernetes: the file is a symlink, and the kubelet replaces a symlink of
/// its folder.
pub(super) struct TokenFile {
    folder: PathBuf,
    generation: usize,
}

/// Calls of one client at a constant rate.
pub(super) struct Load {
    calls: JoinSet<Vec<Reply>>,
    stop: tokio::sync::watch::Sender<bool>,
}

// === impl Cloud ===

impl Cloud {
    /// `lifetime` is that of all sessions; by default STS issues what is asked for.
    pub(super) async fn start(lifetime: Option<Duration>) -> Self {
        let mut settings = Settings::default()
            .with_key(KEY, SECRET, "123456789012")
            .with_limit(Limit {
                per_window: 1_000,
                ..Limit::default()
            });
        settings.sts.lifetime = lifetime;
        settings.metadata.tokens_required = true;
        settings.metadata.newline = true;
        let sim = Sim::new(settings);

        let authority = Authority::new();
        let identity = authority.issue(|params| {
            *params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
            // Another name than the authority's, whose default is the same.
            let name = &mut params.distinguished_name;
            name.push(DnType::CommonName, "services");
        });
        let (pem, key) = (identity.pem, identity.key.serialize_pem());
        let api = sim.clone();
        let api = api.listen_tls(free_port().await, pem.as_bytes(), key.as_bytes());
        let api = api.unwrap();
        let metadata = sim.metadata().listen(free_port().await).unwrap();
        let address = api.url().strip_prefix("https://").unwrap().parse().unwrap();

        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), authority.pem).unwrap();
        Self {
            sim,
            api,
            metadata,
            sts: Relay::to(address),
            token: TokenFile::new(&folder.path().join("rrsa-tokens")),
            folder,
        }
    }

    /// The endpoint of CAMS.
    pub(super) fn api_url(&self) -> String {
        self.api.url()
    }

    /// The names of the sessions that were issued, by their key: the session's name at STS, or the
    /// role of the instance.
    pub(super) fn holders(&self) -> BTreeMap<String, String> {
        let requests = self.sim.credential_requests().into_iter();
        requests
            .filter_map(|request| {
                let name = request.value("RoleSessionName").unwrap_or("flowgate-role");
                Some((request.issued.clone()?, name.to_owned()))
            })
            .collect()
    }

    /// `host:port` of STS.
    pub(super) fn sts_address(&self) -> String {
        self.sts.url().strip_prefix("http://").unwrap().to_owned()
    }

    /// `host:port` of the metadata service.
    pub(super) fn metadata_address(&self) -> String {
        let url = self.metadata.url();
        url.strip_prefix("http://").unwrap().to_owned()
    }

    /// The credentials URI, with a secret in its query.
    pub(super) fn uri(&self) -> String {
        format!("{}/credentials?key=uri-secret-1", self.metadata.url())
    }

    /// The variables that ack-pod-identity-webhook sets.
    fn webhook(&self) -> Vec<(&'static str, String)> {
        let token = self.token.path().display().to_string();
        vec![
            ("ALIBABA_CLOUD_ROLE_ARN", ROLE.to_owned()),
            ("ALIBABA_CLOUD_OIDC_PROVIDER_ARN", PROVIDER.to_owned()),
            ("ALIBABA_CLOUD_OIDC_TOKEN_FILE", token),
            ("ALIBABA_CLOUD_STS_ENDPOINT", self.sts_address()),
            ("ALIBABA_CLOUD_STS_REGION", "ap-southeast-1".to_owned()),
            ("ALIBABA_CLOUD_VPC_ENDPOINT_ENABLED", "true".to_owned()),
        ]
    }

    /// Where the simulator is.
    fn upstream(&self) -> Vec<(&'static str, String)> {
        let ca = self.folder.path().join("ca.pem").display().to_string();
        vec![
            ("FLOWGATE_UPSTREAM__URL", self.api.url()),
            ("FLOWGATE_UPSTREAM__CA_FILE", ca),
        ]
    }

    /// The variables of a sidecar without a configuration file.
    pub(super) fn sidecar_variables(&self, with_client: bool) -> Vec<(&'static str, String)> {
        let client = [
            ("FLOWGATE_CLIENTS__0__ACCESS_KEY_ID", TEAM.0),
            ("FLOWGATE_CLIENTS__0__ACCESS_KEY_SECRET__ENV", "TEAM"),
            ("FLOWGATE_CLIENTS__0__ACCOUNT", "default"),
            ("FLOWGATE_CLIENTS__0__ACTIONS", "*"),
        ];
        let client = client.map(|(name, value)| (name, value.to_owned()));
        let mut variables = [self.webhook(), self.upstream()].concat();
        variables.extend(client.into_iter().filter(|_| with_client));
        variables
    }

    /// A sidecar with the webhook's variables, a client, and these variables.
    pub(super) async fn sidecar_with(&self, more: &[(&str, &str)]) -> Process {
        let variables = self.sidecar_variables(true);
        let mut variables = borrowed(&variables);
        variables.extend(more);
        Process::from_env(&variables).await
    }

    pub(super) async fn sidecar(&self) -> Process {
        self.sidecar_with(&[]).await
    }

    /// A configuration file with these accounts, and a client for each. Continues `[upstream]`.
    pub(super) fn toml(&self, accounts: &[(&str, String)]) -> String {
        let ca = self.folder.path().join("ca.pem");
        let mut toml = format!(
            "ca_file = \"{}\"\n[sts]\nendpoint = \"{}\"\n",
            ca.display(),
            self.sts_address()
        );
        for (id, credentials) in accounts {
            toml.push_str(&format!(
                "[[accounts]]\nid = \"{id}\"\ncredentials = {credentials}\n\
                 [[clients]]\naccess_key_id = \"team-{id}\"\naccess_key_secret = {{ env = \"TEAM\" }}\n\
                 account = \"{id}\"\nactions = [\"*\"]\n"
            ));
        }
        toml
    }

    /// Starts a process with these accounts, and a client for each, whose key is `team-<account>`.
    pub(super) async fn process(
        &self,
        accounts: &[(&str, String)],
        env: &[(&str, &str)],
    ) -> Process {
        let folder = tempfile::tempdir().unwrap();
        Process::towards(&self.api.url(), &self.toml(accounts), folder, env).await
    }

    /// The credentials of an account with the token of Kubernetes.
    pub(super) fn oidc(&self) -> String {
        format!(
            "{{ oidc = {{ role_arn = \"{ROLE}\", provider_arn = \"{PROVIDER}\", token_file = \"{}\" }} }}",
            self.token.path().display()
        )
    }

    /// The requests for credentials with this action.
    pub(super) fn requests(&self, action: &str) -> Vec<CredentialRequest> {
        let requests = self.sim.credential_requests().into_iter();
        requests
            .filter(|request| request.action == action)
            .collect()
    }

    /// Waits until this many requests with this action have come.
    pub(super) async fn until_requested(&self, action: &str, times: usize) {
        let give_up = Instant::now() + Duration::from_secs(60);
        while self.requests(action).len() < times {
            assert!(Instant::now() < give_up, "{:?}", self.requests(action));
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until CAMS has created this many flows.
    pub(super) async fn until_created(&self, flows: u64) {
        let give_up = Instant::now() + Duration::from_secs(60);
        while self.sim.report().created < flows {
            assert!(Instant::now() < give_up, "{:?}", self.sim.report());
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Breaks STS as these rules say; none repairs it.
    pub(super) fn break_sts(&self, rules: &[&str]) {
        let rule = |text: &&str| format!("action=sts,{text}").parse::<Rule>().unwrap();
        self.sim.set_faults(rules.iter().map(rule).collect());
    }
}

// === impl TokenFile ===

impl TokenFile {
    fn new(folder: &Path) -> Self {
        std::fs::create_dir(folder).unwrap();
        let mut file = Self {
            folder: folder.to_owned(),
            generation: 0,
        };
        file.replace();
        symlink("..data/token", file.path()).unwrap();
        file
    }

    pub(super) fn path(&self) -> PathBuf {
        self.folder.join("token")
    }

    /// The number of tokens so far.
    pub(super) fn generation(&self) -> usize {
        self.generation
    }

    /// Replaces the token as the kubelet does.
    pub(super) fn replace(&mut self) {
        let old = format!("..generation-{}", self.generation);
        self.generation += 1;
        let new = format!("..generation-{}", self.generation);
        let data = self.folder.join(&new);
        std::fs::create_dir(&data).unwrap();
        std::fs::write(data.join("token"), oidc_token(self.generation)).unwrap();
        symlink(&new, self.folder.join("..data_tmp")).unwrap();
        std::fs::rename(self.folder.join("..data_tmp"), self.folder.join("..data")).unwrap();
        // The first generation replaces none.
        drop(std::fs::remove_dir_all(self.folder.join(old)));
    }
}

// === impl Load ===

impl Load {
    /// Starts five calls per second.
    pub(super) fn start(process: &Process) -> Self {
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let proxy = process.proxy;
        let mut calls = JoinSet::new();
        calls.spawn(async move {
            let mut under_way = JoinSet::new();
            for number in 0.. {
                if *stopped.borrow() {
                    break;
                }
                let call = create(&proxy.to_string(), &format!("flow-{number}"), "30s");
                under_way.spawn(async move { call.send(proxy).await });
                sleep(Duration::from_millis(200)).await;
            }
            under_way.join_all().await
        });
        Self { calls, stop }
    }

    /// Ends the load and returns all replies.
    pub(super) async fn end(self) -> Vec<Reply> {
        self.stop.send_replace(true);
        self.calls.join_all().await.into_iter().flatten().collect()
    }

    /// Ends the load; every call must have succeeded. Returns their number.
    pub(super) async fn end_without_failures(self) -> usize {
        let replies = self.end().await;
        let failed: Vec<_> = replies.iter().filter(|reply| reply.status != 200).collect();
        assert!(failed.is_empty(), "{failed:?}");
        replies.len()
    }
}

/// A token like those that Kubernetes issues for STS.
pub(super) fn oidc_token(number: usize) -> String {
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let claims = format!(
        r#"{{"aud":["sts.aliyuncs.com"],"jti":"{number}","sub":"system:serviceaccount:messaging:application"}}"#
    );
    let signature = format!("signature of token {number}");
    [r#"{"alg":"RS256"}"#, &claims, &signature]
        .map(part)
        .join(".")
}

/// CreateFlow of the client `team-a`.
pub(super) fn create(host: &str, name: &str, hold: &str) -> Call {
    create_as(TEAM.0, host, name, hold)
}

/// CreateFlow of another client with the same secret.
pub(super) fn create_as(key: &str, host: &str, name: &str, hold: &str) -> Call {
    let query = [("Categories", "[\"SIGN_UP\"]"), ("FlowName", name)];
    let hold = |call: &mut Call| call.push("x-flowgate-hold", hold);
    Call::v3_with(host, &query, hold, (key, TEAM.1))
}

/// Sends CreateFlow of the client `team-a`.
pub(super) async fn send(process: &Process, name: &str, hold: &str) -> Reply {
    let call = create(&process.proxy.to_string(), name, hold);
    call.send(process.proxy).await
}

/// The access key that a call was signed with.
pub(super) fn key_of(arrival: &Arrival) -> &str {
    let authorization = arrival.headers.iter();
    let mut authorization = authorization.filter(|(name, _)| name == "authorization");
    let (_, value) = authorization.next().expect("a call is signed");
    let (_, rest) = value.split_once("Credential=").unwrap();
    rest.split(',').next().unwrap()
}

/// `flowgate_credentials_refreshes_total` of an account and a result.
pub(super) fn refreshes(metrics: &Metrics, account: &str, result: &str) -> f64 {
    metrics.get(&refreshes_series(account, result))
}

pub(super) fn refreshes_series(account: &str, result: &str) -> String {
    format!("flowgate_credentials_refreshes_total{{account=\"{account}\",result=\"{result}\"}}")
}

pub(super) fn borrowed<'a>(variables: &'a [(&'a str, String)]) -> Vec<(&'a str, &'a str)> {
    let pairs = variables.iter();
    pairs.map(|(name, value)| (*name, value.as_str())).collect()
}

async fn free_port() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}
