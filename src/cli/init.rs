//! `flowgate init`: writes a commented configuration for a sidecar or a gateway. Secrets are never
//! written, only the variables or files that they are in. Commented keys show their defaults.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};

use super::new_client;
use crate::config::{self, Bind};

/// What is deployed.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Init {
    /// For a Flowgate beside one application, on the same host or in the same pod.
    ///
    /// Without --access-key-id and --credentials the variables of Alibaba's SDKs define the account.
    Sidecar(Options),
    /// For a Flowgate that several applications share, each with a key of its own.
    ///
    /// Needs --access-key-id or --credentials.
    Gateway(Gateway),
}

/// The options of both.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Options {
    /// The account's name in metrics and logs.
    #[arg(long, value_name = "ID", default_value = "main")]
    account: String,
    /// The account's access key id. Its secret is in the variable `FLOWGATE_ACCOUNT_<ID>_SECRET`, or in
    /// the folder of --secrets.
    #[arg(long, value_name = "ID")]
    access_key_id: Option<String>,
    /// Where temporary credentials come from, instead of an access key.
    #[arg(long, value_enum, conflicts_with = "access_key_id")]
    credentials: Option<Source>,
    /// A client: an access key id for one application or team; may be repeated. Default: "team-a" for a
    /// gateway, "application" for a sidecar with --credentials.
    #[arg(long = "client", value_name = "ID")]
    clients: Vec<String>,
    /// Refer to secrets as files in this folder, named after the account and the clients, instead of
    /// variables. A relative path starts at the configuration's folder.
    #[arg(long, value_name = "FOLDER")]
    secrets: Option<PathBuf>,
    /// Write to this file instead of standard output. An existing file is not overwritten.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Overwrite the file of --output.
    #[arg(long, requires = "output")]
    force: bool,
}

/// The options of a gateway.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Gateway {
    /// The address of the proxy port, ip:port or unix:/path.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:8080")]
    listen: Bind,
    /// A host name by which applications reach Flowgate; may be repeated.
    #[arg(long = "name", value_name = "HOST")]
    names: Vec<String>,
    /// The options that a sidecar has, too.
    #[command(flatten)]
    options: Options,
}

/// A source of temporary credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Source {
    /// A pod of ACK or ACS with RRSA.
    Oidc,
    /// The RAM role of the ECS instance.
    EcsRole,
}

/// A configuration, and what its user has to do.
#[derive(Debug)]
pub struct Written {
    /// The text for standard output; empty if it was written to a file.
    pub text: String,
    /// The next steps, for standard error.
    pub next: String,
}

/// Where a secret is.
struct Place {
    /// As TOML.
    toml: String,
    /// For a person.
    name: String,
}

/// The text of a configuration.
struct Text(String);

/// The column at which comments behind a value start.
const COMMENTS: usize = 44;

// === impl Init ===

impl Init {
    /// Writes the configuration, or returns what is wrong with the options or the file.
    pub fn write(&self) -> Result<Written, String> {
        let (options, gateway) = match self {
            Self::Sidecar(options) => (options, None),
            Self::Gateway(gateway) => (&gateway.options, Some(gateway)),
        };
        options.check(gateway)?;
        let text = options.text(gateway)?;
        let next = options.next(gateway.is_some())?;
        let Some(path) = &options.output else {
            return Ok(Written { text, next });
        };
        write(path, &text, options.force)
            .map_err(|error| match error.kind() {
                ErrorKind::AlreadyExists => "the file exists (--force overwrites it)".to_owned(),
                ErrorKind::NotFound => "the folder does not exist".to_owned(),
                _ => error.to_string(),
            })
            .map_err(|reason| format!("--output: {}: {reason}", path.display()))?;
        Ok(Written {
            text: String::new(),
            next: format!("{} is written\n{next}", path.display()),
        })
    }
}

// === impl Options ===

impl Options {
    fn check(&self, gateway: Option<&Gateway>) -> Result<(), String> {
        config::check_account_id(&self.account)
            .map_err(|expectation| format!("--account: {expectation}"))?;
        if let Some(id) = &self.access_key_id {
            config::check_client_id(id)
                .map_err(|expectation| format!("--access-key-id: {expectation}"))?;
        }
        let has_source = self.access_key_id.is_some() || self.credentials.is_some();
        if !has_source && gateway.is_some() {
            return Err(
                "expected --access-key-id or --credentials: what Flowgate signs with".to_owned(),
            );
        }
        if !has_source && !self.clients.is_empty() {
            return Err("--client: expected --access-key-id or --credentials, too".to_owned());
        }
        let clients = self.clients(gateway.is_some());
        for (index, id) in clients.iter().enumerate() {
            config::check_client_id(id)
                .map_err(|expectation| format!("--client: {expectation}"))?;
            if clients[..index].contains(id) || self.access_key_id.as_deref() == Some(id) {
                return Err(
                    "--client: expected ids that differ from each other and from --access-key-id"
                        .to_owned(),
                );
            }
            if self.secrets.is_some() && *id == self.account {
                return Err("--client: expected an id that differs from --account: with --secrets both name a file".to_owned());
            }
        }
        let names = gateway.map_or(&[][..], |gateway| &gateway.names);
        names
            .iter()
            .try_for_each(|name| config::check_host_name(name))
            .map_err(|expectation| format!("--name: {expectation}"))
    }

    fn clients(&self, is_gateway: bool) -> Vec<&str> {
        if self.clients.is_empty() && is_gateway {
            vec!["team-a"]
        } else if self.clients.is_empty() && self.credentials.is_some() {
            vec!["application"]
        } else {
            self.clients.iter().map(String::as_str).collect()
        }
    }

    /// The place of the secret of an account or a client.
    fn place(&self, id: &str, variable: String) -> Result<Place, String> {
        let Some(folder) = &self.secrets else {
            return Ok(Place {
                toml: format!("{{ env = {} }}", quoted(&variable)),
                name: variable,
            });
        };
        let path = folder.join(id);
        let name = path
            .to_str()
            .ok_or("--secrets: expected a path in UTF-8")?
            .to_owned();
        Ok(Place {
            toml: format!("{{ file = {} }}", quoted(&name)),
            name,
        })
    }

    fn account_place(&self) -> Result<Place, String> {
        self.place(
            &self.account,
            new_client::variable("ACCOUNT", &self.account),
        )
    }

    fn client_place(&self, id: &str) -> Result<Place, String> {
        self.place(id, new_client::variable("CLIENT", id))
    }

    fn text(&self, gateway: Option<&Gateway>) -> Result<String, String> {
        let mut text = Text(String::new());
        match gateway {
            None => text.comment(
                "Flowgate as a sidecar: the application sets its SDK's endpoint to 127.0.0.1:8080, protocol HTTP.",
            ),
            Some(_) => text.comment(
                "Flowgate as a gateway: each application sets its SDK's endpoint to it, protocol HTTP, and signs with its\n\
                 client's key.",
            ),
        }
        text.comment(
            "Commented keys have their defaults. docs/configuration.md lists every key; `flowgate check -c FILE` prints every\n\
             mistake.",
        );
        text.blank();
        text.commented(
            "mode",
            "\"observe\" delays no call and counts what the limits would do",
        );
        text.comment("To know after a crash which calls were in flight: journal = \"/var/lib/flowgate/attempts.jsonl\"");
        self.listen(&mut text, gateway);
        text.table("upstream");
        text.commented("upstream.url", "CAMS's endpoint");
        text.comment("Through a proxy, because HTTPS_PROXY is not read: proxy = \"http://proxy.example:3128\"");
        self.account(&mut text)?;
        for id in self.clients(gateway.is_some()) {
            self.client(&mut text, id)?;
        }
        text.table("limits");
        text.commented("limits.preset", "the limits that CAMS documents");
        text.comment("A limit that Alibaba has raised, less one call a second for the console:");
        text.comment("CreateFlow = { rate = \"10/1s\", reserve = 1 }");
        text.table("queue");
        text.commented(
            "queue.hold",
            "how long a call may wait: as long as its SDK; or a duration",
        );
        text.commented("queue.max_hold", "");
        text.commented("queue.max_waiting", "calls per account and action");
        if gateway.is_some() {
            text.commented("queue.max_waiting_per_client", "");
            text.table("quota");
            text.commented(
                "quota.store",
                "replicas share one: \"rediss://redis.internal:6379\"",
            );
        }
        text.table("drain");
        text.commented(
            "drain.delay",
            "after SIGTERM: not ready, calls are still accepted",
        );
        text.commented("drain.grace", "then queued and running calls may finish");
        text.table("log");
        text.commented("log.format", "or \"json\"");
        text.commented("log.level", "");
        Ok(text.0)
    }

    fn listen(&self, text: &mut Text, gateway: Option<&Gateway>) {
        text.table("listen");
        match gateway {
            None => text.commented(
                "listen.proxy",
                "for the application; or \"unix:/run/flowgate.sock\"",
            ),
            Some(gateway) => {
                text.set(
                    "proxy",
                    &quoted(&gateway.listen.to_string()),
                    "for the applications",
                );
                let names: Vec<_> = gateway.names.iter().map(|name| quoted(name)).collect();
                if names.is_empty() {
                    text.commented(
                        "listen.names",
                        "the host names that applications use for Flowgate",
                    );
                } else {
                    let names = format!("[{}]", names.join(", "));
                    text.set(
                        "names",
                        &names,
                        "the host names that applications use for Flowgate",
                    );
                }
            }
        }
        text.commented("listen.admin", "status page, /metrics, /livez and /readyz");
        if gateway.is_some() {
            text.comment("If admin is not a loopback address, its pages need a token: admin_token = { file = \"admin-token\" }");
            text.comment(
                "TLS for the applications: tls = { cert = \"cert.pem\", key = \"key.pem\" }",
            );
        }
    }

    fn account(&self, text: &mut Text) -> Result<(), String> {
        if self.access_key_id.is_none() && self.credentials.is_none() {
            text.blank();
            text.comment(
                "Without [[accounts]] the variables of Alibaba's SDKs define the account \"default\": ALIBABA_CLOUD_ACCESS_KEY_ID\n\
                 and ALIBABA_CLOUD_ACCESS_KEY_SECRET, or those of RRSA, an ECS role or a profile (docs/credentials.md).",
            );
            return Ok(());
        }
        text.table("[accounts]");
        text.set("id", &quoted(&self.account), "in metrics and logs");
        if let Some(id) = &self.access_key_id {
            text.set("access_key_id", &quoted(id), "");
            text.set("access_key_secret", &self.account_place()?.toml, "");
        }
        match self.credentials {
            Some(Source::Oidc) => text.set(
                "credentials",
                "{ oidc = {} }",
                "RRSA; from the variables of ACK's webhook",
            ),
            Some(Source::EcsRole) => text.set(
                "credentials",
                "{ ecs_role = {} }",
                "from the metadata service",
            ),
            None => {}
        }
        text.comment("Keys of this account whose secrets Flowgate does not get: aliases = [\"LTAI-other\", \"STS.*\"]");
        Ok(())
    }

    fn client(&self, text: &mut Text, id: &str) -> Result<(), String> {
        text.table("[clients]");
        text.set(
            "access_key_id",
            &quoted(id),
            "the application signs with this key",
        );
        text.set("access_key_secret", &self.client_place(id)?.toml, "");
        text.set("account", &quoted(&self.account), "");
        text.set(
            "actions",
            "[\"CreateFlow\", \"ListFlow\"]",
            "what it may call; [\"*\"] for all",
        );
        text.commented(
            "clients[].weight",
            "share among the account's waiting clients",
        );
        Ok(())
    }

    /// What is left to do.
    fn next(&self, is_gateway: bool) -> Result<String, String> {
        let mut steps = Vec::new();
        // The paths in the configuration start at its folder.
        let folder = self.output.as_deref().and_then(Path::parent);
        let from_here = |path: &Path| {
            let path = folder.unwrap_or(Path::new("")).join(path);
            path.display().to_string()
        };
        let clients = self.clients(is_gateway);
        if let Some(secrets) = &self.secrets
            && (self.access_key_id.is_some() || !clients.is_empty())
        {
            steps.push(format!("mkdir -p -m 0700 {}", from_here(secrets)));
        }
        if self.access_key_id.is_some() {
            let place = self.account_place()?;
            steps.push(match self.secrets {
                None => format!("set {} to the secret of the access key", place.name),
                Some(_) => format!(
                    "write the secret of the access key to {}, with mode 0600",
                    from_here(place.name.as_ref())
                ),
            });
        }
        for id in clients {
            let place = self.client_place(id)?;
            let new = format!("flowgate client new --id {id} --account {}", self.account);
            steps.push(match self.secrets {
                None => format!("{new}    # and set {} to the secret", place.name),
                Some(_) => format!("{new} --secret-file {}", from_here(place.name.as_ref())),
            });
        }
        let file = self.output.as_deref().unwrap_or(Path::new("FILE"));
        steps.push(format!("flowgate check -c {}", file.display()));
        Ok(format!("next:\n  {}", steps.join("\n  ")))
    }
}

// === impl Text ===

impl Text {
    fn blank(&mut self) {
        self.0.push('\n');
    }

    fn comment(&mut self, text: &str) {
        for line in text.lines() {
            self.0.push_str(&format!("# {line}\n"));
        }
    }

    fn table(&mut self, name: &str) {
        self.0.push_str(&format!("\n[{name}]\n"));
    }

    fn set(&mut self, key: &str, value: &str, comment: &str) {
        self.line(&format!("{key} = {value}"), comment);
    }

    /// A commented key with its default.
    fn commented(&mut self, path: &str, comment: &str) {
        let name = path.rsplit('.').next().unwrap_or(path);
        let value = config::default_in_toml(path);
        self.line(&format!("# {name} = {value}"), comment);
    }

    fn line(&mut self, text: &str, comment: &str) {
        let line = match comment {
            "" => text.to_owned(),
            comment => format!("{text:COMMENTS$}  # {comment}"),
        };
        self.0.push_str(&line);
        self.0.push('\n');
    }
}

/// Text as a TOML string.
fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

/// Writes the file, which must not exist unless `force` is set.
fn write(path: &Path, text: &str, force: bool) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .create_new(!force)
        .truncate(force)
        .open(path)?;
    file.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};
    use crate::config::{Config, effective};

    /// The result of a command line without `flowgate init`.
    fn init(line: &str) -> Result<Written, String> {
        let line = ["flowgate", "init"].into_iter().chain(line.split(' '));
        match Cli::try_parse_from(line).unwrap().command {
            Some(Command::Init(init)) => init.write(),
            other => panic!("{other:?}"),
        }
    }

    /// Loads the text, with the secrets of the account acme and of the clients set.
    fn load(text: &str) -> Config {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("flowgate.toml");
        std::fs::write(&file, text).unwrap();
        std::fs::create_dir(folder.path().join("secrets")).unwrap();
        for name in ["acme", "team-a", "team-b"] {
            std::fs::write(folder.path().join("secrets").join(name), "k3y").unwrap();
        }
        let env = [
            "FLOWGATE_ACCOUNT_ACME_SECRET",
            "FLOWGATE_CLIENT_TEAM_A_SECRET",
            "FLOWGATE_CLIENT_TEAM_B_SECRET",
            "FLOWGATE_CLIENT_APPLICATION_SECRET",
        ];
        let rrsa = [
            ("ALIBABA_CLOUD_ROLE_ARN", "acs:ram::1:role/flowgate"),
            (
                "ALIBABA_CLOUD_OIDC_PROVIDER_ARN",
                "acs:ram::1:oidc-provider/p",
            ),
            ("ALIBABA_CLOUD_OIDC_TOKEN_FILE", "/token"),
        ];
        let env = env
            .map(|name| (name, "k3y"))
            .into_iter()
            .filter(|(name, _)| text.contains(name))
            .chain(rrsa.into_iter().filter(|_| text.contains("oidc")));
        let env = env.map(|(name, value)| (name.into(), value.into()));
        let loaded = config::load(Some(&file), env);
        let loaded = loaded.unwrap_or_else(|mistakes| panic!("{mistakes}\n{text}"));
        assert_eq!(loaded.warnings, [""; 0], "{text}");
        loaded.config
    }

    /// The text with its commented keys set.
    fn uncommented(text: &str) -> String {
        let line = |line: &str| {
            let key = line.strip_prefix("# ").filter(|rest| {
                rest.split_once(" = ").is_some_and(|(key, _)| {
                    key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
                })
            });
            key.unwrap_or(line).to_owned() + "\n"
        };
        text.lines().map(line).collect()
    }

    #[test]
    fn every_configuration_is_valid_and_its_commented_keys_have_their_defaults() {
        for line in [
            "sidecar",
            "sidecar --account acme --access-key-id LTAI-acme",
            "sidecar --account acme --access-key-id LTAI-acme --client team-b --secrets secrets",
            "sidecar --credentials oidc",
            "gateway --account acme --access-key-id LTAI-acme",
            "gateway --credentials ecs-role --listen unix:/run/flowgate.sock",
            "gateway --account acme --access-key-id LTAI-acme --secrets secrets --client team-a --client team-b \
             --listen [::]:80 --name flowgate.internal --name gate",
        ] {
            let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
            let text = init(&line).unwrap().text;
            let set = uncommented(&text);
            assert!(set.len() + 20 < text.len(), "{text}");
            assert_eq!(effective(&load(&text)), effective(&load(&set)), "{text}");
            let widest = text.lines().map(str::len).max();
            assert!(widest < Some(130), "{widest:?} {text}");
        }
    }

    #[test]
    fn the_options_are_in_the_configuration() {
        let config = load(
            &init("gateway --account acme --access-key-id LTAI-acme --client team-b --listen 127.0.0.1:81 --name gate").unwrap().text,
        );
        assert_eq!(config.listen.proxy.to_string(), "127.0.0.1:81");
        assert_eq!(config.listen.names, ["gate"]);
        assert_eq!(config.accounts[0].id.as_str(), "acme");
        assert_eq!(config.clients.len(), 1);
        assert_eq!(config.clients[0].id.as_str(), "team-b");
    }

    #[test]
    fn what_is_missing_or_invalid_is_named() {
        for (line, expected) in [
            ("gateway", "expected --access-key-id or --credentials"),
            (
                "sidecar --client team-a",
                "--client: expected --access-key-id or --credentials",
            ),
            ("sidecar --account a\"b", "--account: expected a name"),
            (
                "sidecar --access-key-id unknown",
                "--access-key-id: expected an access key id",
            ),
            (
                "sidecar --access-key-id a --client a",
                "--client: expected ids that differ",
            ),
            (
                "gateway --access-key-id a --client b --client b",
                "--client: expected ids that differ",
            ),
            (
                "gateway --access-key-id a --client main --secrets s",
                "--client: expected an id that differs from --account",
            ),
            (
                "gateway --access-key-id a --client b\nc",
                "--client: expected an access key id",
            ),
            (
                "gateway --access-key-id a --name http://gate",
                "--name: expected a host name",
            ),
            (
                "sidecar --output /none/flowgate.toml",
                "--output: /none/flowgate.toml: the folder does not exist",
            ),
        ] {
            let mistake = init(line).unwrap_err();
            assert!(mistake.starts_with(expected), "{line:?}: {mistake}");
        }
    }

    #[test]
    fn the_next_steps_name_each_secret() {
        let next = init("gateway --account acme --access-key-id LTAI")
            .unwrap()
            .next;
        assert_eq!(
            next,
            "next:\n  set FLOWGATE_ACCOUNT_ACME_SECRET to the secret of the access key\n  \
             flowgate client new --id team-a --account acme    # and set FLOWGATE_CLIENT_TEAM_A_SECRET to the secret\n  \
             flowgate check -c FILE"
        );
    }

    #[test]
    fn an_existing_file_is_overwritten_only_with_force() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("flowgate.toml");
        let line = format!(
            "gateway --credentials ecs-role --secrets keys -o {}",
            file.display()
        );
        let written = init(&line).unwrap();
        assert_eq!(written.text, "");
        let secrets = folder.path().join("keys");
        let secrets = secrets.display();
        assert_eq!(
            written.next,
            format!(
                "{0} is written\nnext:\n  mkdir -p -m 0700 {secrets}\n  \
                 flowgate client new --id team-a --account main --secret-file {secrets}/team-a\n  \
                 flowgate check -c {0}",
                file.display()
            )
        );
        let first = std::fs::read_to_string(&file).unwrap();
        let sidecar = format!("sidecar -o {}", file.display());
        let mistake = init(&sidecar).unwrap_err();
        assert!(
            mistake.ends_with("the file exists (--force overwrites it)"),
            "{mistake}"
        );
        assert_eq!(std::fs::read_to_string(&file).unwrap(), first);
        init(&format!("{sidecar} --force")).unwrap();
        let second = std::fs::read_to_string(&file).unwrap();
        assert_eq!(second, init("sidecar").unwrap().text);
    }
}
