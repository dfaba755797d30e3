//! Environment variables that are set as if Flowgate read them: misspelt keys, and the variables of
//! other programs. Each is a warning, with the right name if there is one. For proxies see
//! `check/upstream.rs`.

use std::path::Path;

use super::Config;
use super::check::accounts::DEFAULT_ACCOUNT;
use super::check::credentials::variables::{ACCESS_KEY_ID, NOT_READ, READ};
use super::env::{Environment, FILE, PREFIX};
use super::keys::{self, FROM, KEYS, Key};
use crate::acs::limits::DOCUMENTED;

/// The first characters of the variables of Alibaba's SDKs and tools.
const ALIBABA: [&str; 3] = ["ALIBABA_CLOUD", "ALIBABACLOUD", "ALICLOUD"];

/// The variables of OpenTelemetry for what is a key here.
const COLLECTORS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
];

/// Maximum number of names that a warning suggests.
const SUGGESTED: usize = 3;

/// A variable name in parts, so that names compare without case and the number of underscores.
struct Spelling {
    /// The parts joined with one underscore; `#` stands for an index.
    text: String,
    indices: Vec<String>,
}

/// A name that Flowgate reads.
struct Candidate {
    /// With `#` for each index.
    name: String,
    spelling: String,
}

/// Returns the warnings. Without a configuration, which had mistakes, only those that depend on
/// names alone.
pub(super) fn warnings(
    environment: &Environment,
    file: Option<&Path>,
    config: Option<&Config>,
) -> Vec<String> {
    let mut warnings: Vec<_> = environment.unknown().into_iter().map(unknown).collect();
    let configured = environment.value(FILE).map(Path::new);
    if configured.is_some() && file.is_some() && configured != file {
        warnings.push(format!(
            "{FILE}: not read, because --config names the configuration"
        ));
    }
    let is_written = config.is_some_and(|config| {
        let mut ids = config.accounts.iter().map(|account| account.id.as_str());
        ids.any(|id| id != DEFAULT_ACCOUNT)
    });
    if !is_written {
        warnings.extend(misspelt_alibaba(environment));
    }
    if let Some(config) = config {
        warnings.extend(unused_access_key(environment, config).filter(|_| is_written));
        warnings.extend(unused_settings(environment, config));
    }
    warnings
}

/// The warning of a variable with Flowgate's prefix that is not a key.
fn unknown(name: &str) -> String {
    let spelling = Spelling::of(&name[PREFIX.len()..]);
    let suggestions: Vec<_> = suggested(&spelling)
        .into_iter()
        .map(|name| spelling.with_indices(name))
        .collect();
    let name = name.escape_debug();
    if suggestions.is_empty() {
        format!("{name}: unknown variable, ignored")
    } else {
        let suggestions = suggestions.join(" or ");
        format!("{name}: unknown variable, ignored: did you mean {suggestions}?")
    }
}

/// The names that are most like this one: equal but for underscores and case, then with a typing
/// mistake, then without the name of their table, then longer ones.
fn suggested(spelling: &Spelling) -> Vec<String> {
    let text = &*spelling.text;
    if text.starts_with("CONF") {
        return vec![FILE.to_owned()];
    }
    let candidates = candidates();
    let nearest = nearest(text, &candidates);
    if !nearest.is_empty() {
        return nearest;
    }
    let without_table = |candidate: &&Candidate| {
        let parts = candidate.name[PREFIX.len()..].split_once("__");
        parts.is_some_and(|(_, key)| !key.contains("__") && Spelling::of(key).text == text)
    };
    let of_key: Vec<_> = candidates
        .iter()
        .filter(without_table)
        .map(|candidate| candidate.name.clone())
        .collect();
    let mut names = if of_key.is_empty() {
        longer(text, &candidates)
    } else {
        of_key
    };
    names.truncate(SUGGESTED);
    names
}

/// The candidates that begin with this name.
fn longer(text: &str, candidates: &[Candidate]) -> Vec<String> {
    let start = format!("{text}_");
    candidates
        .iter()
        .filter(|candidate| candidate.spelling.starts_with(&start))
        .map(|candidate| candidate.name.clone())
        .collect()
}

/// The candidates with the least distance, if it is small for a name of this length.
fn nearest(text: &str, candidates: &[Candidate]) -> Vec<String> {
    let tolerated = (text.len() / 5).clamp(1, 3);
    let near: Vec<_> = candidates
        .iter()
        .map(|candidate| {
            let distance = strsim::osa_distance(text, &candidate.spelling);
            (distance, candidate)
        })
        .filter(|(distance, _)| *distance <= tolerated)
        .collect();
    let least = near.iter().map(|(distance, _)| *distance).min();
    near.into_iter()
        .filter(|(distance, _)| Some(*distance) == least)
        .map(|(_, candidate)| candidate.name.clone())
        .take(SUGGESTED)
        .collect()
}

/// The variables of all keys.
fn candidates() -> Vec<Candidate> {
    let mut candidates = Vec::new();
    for key in KEYS {
        candidates.extend(of_path(key, key.path));
        let source = key.path.strip_prefix(keys::CREDENTIALS);
        if let Some(rest) = source.filter(|_| !key.path.starts_with(FROM)) {
            candidates.extend(of_path(key, &format!("{FROM}{rest}")));
        }
    }
    candidates
}

fn of_path(key: &Key, path: &str) -> Vec<Candidate> {
    let mut paths = vec![path.to_owned()];
    if path.contains("<Action>") {
        let actions = DOCUMENTED.iter();
        paths = actions
            .map(|(action, _)| path.replace("<Action>", action))
            .collect();
    }
    if key.is_secret() {
        paths = ["env", "file"]
            .map(|place| format!("{path}.{place}"))
            .into();
    }
    let candidate = |path: String| {
        let path = path.replace("[]", ".#");
        let name = path.to_ascii_uppercase().replace('.', "__");
        Candidate {
            spelling: Spelling::of(&name).text,
            name: format!("{PREFIX}{name}"),
        }
    };
    paths.into_iter().map(candidate).collect()
}

/// Variables that are nearly one of those that define the account `default`.
fn misspelt_alibaba(environment: &Environment) -> Vec<String> {
    let tail = |name: &str| {
        let upper = name.to_ascii_uppercase();
        let rest = ALIBABA
            .iter()
            .find_map(|prefix| upper.strip_prefix(prefix)?.strip_prefix('_'))?;
        Some(Spelling::of(rest).text)
    };
    let candidates: Vec<_> = READ
        .iter()
        .filter_map(|name| {
            Some(Candidate {
                name: (*name).to_owned(),
                spelling: tail(name)?,
            })
        })
        .collect();
    let mut warnings = Vec::new();
    for name in environment.names() {
        if READ.contains(&name) || NOT_READ.contains(&name) {
            continue;
        }
        let Some(text) = tail(name) else { continue };
        let mut suggestions = nearest(&text, &candidates);
        if suggestions.is_empty() {
            suggestions = longer(&text, &candidates);
        }
        suggestions.retain(|suggested| environment.value(suggested).is_none());
        if (1..=SUGGESTED).contains(&suggestions.len()) {
            warnings.push(format!(
                "{}: not read by Flowgate: did you mean {}?",
                name.escape_debug(),
                suggestions.join(" or ")
            ));
        }
    }
    warnings
}

/// Alibaba's access key, which defines no account beside `[[accounts]]`.
fn unused_access_key(environment: &Environment, config: &Config) -> Option<String> {
    let key = environment.value(ACCESS_KEY_ID)?;
    let mut loaded = config
        .accounts
        .iter()
        .filter_map(|account| account.credentials.as_ref()?.loaded());
    let is_used = environment.was_asked(ACCESS_KEY_ID)
        || loaded.any(|credentials| credentials.access_key_id.as_str() == key);
    (!is_used).then(|| {
        format!(
            "{ACCESS_KEY_ID}: not used, because the configuration has [[accounts]] with other keys"
        )
    })
}

/// Variables that other programs read for what is a key here.
fn unused_settings(environment: &Environment, config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    let collector = COLLECTORS
        .into_iter()
        .find(|name| environment.value(name).is_some());
    if let Some(name) = collector.filter(|_| config.telemetry.otlp.is_none()) {
        warnings.push(format!(
            "{name}: not read by Flowgate: a collector is set by telemetry.otlp \
             ({PREFIX}TELEMETRY__OTLP)"
        ));
    }
    if environment.value("RUST_LOG").is_some() {
        warnings.push(format!(
            "RUST_LOG: not read by Flowgate: the level is set by log.level ({PREFIX}LOG__LEVEL)"
        ));
    }
    warnings
}

// === impl Spelling ===

impl Spelling {
    fn of(name: &str) -> Self {
        let mut indices = Vec::new();
        let parts: Vec<_> = name
            .split('_')
            .filter(|part| !part.is_empty())
            .map(|part| {
                if part.bytes().all(|b| b.is_ascii_digit()) {
                    indices.push(part.to_owned());
                    "#".to_owned()
                } else {
                    part.to_ascii_uppercase()
                }
            })
            .collect();
        Self {
            text: parts.join("_"),
            indices,
        }
    }

    /// Puts the indices of this name into another one; 0 where it has none.
    fn with_indices(&self, name: String) -> String {
        let mut indices = self.indices.iter();
        let parts = name.split('#').enumerate().map(|(position, part)| {
            let index = match position {
                0 => "",
                _ => indices.next().map_or("0", String::as_str),
            };
            format!("{index}{part}")
        });
        parts.collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::config::load;

    /// The warnings of a valid configuration.
    fn warned(variables: &[(&str, &str)]) -> Vec<String> {
        warned_with("", variables)
    }

    fn warned_with(text: &str, variables: &[(&str, &str)]) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("flowgate.toml");
        std::fs::write(&file, text).unwrap();
        let env = variables
            .iter()
            .map(|(name, value)| (name.into(), value.into()));
        load(Some(&file), env).unwrap().warnings
    }

    #[test]
    fn a_misspelt_variable_is_named_with_the_right_one() {
        for (name, right) in [
            ("LISTEN_PROXY", "LISTEN__PROXY"),
            ("_LISTEN__PROXY", "LISTEN__PROXY"),
            ("LISTEN___PROXY", "LISTEN__PROXY"),
            ("LISTEN__PROXI", "LISTEN__PROXY"),
            ("QUEUE_MAXHOLD", "QUEUE__MAX_HOLD"),
            ("ACCOUNTS_1_ID", "ACCOUNTS__1__ID"),
            ("ACCOUNT__0__ID", "ACCOUNTS__0__ID"),
            (
                "CLIENTS_12_ACCESS_KEY_SECRET_FILE",
                "CLIENTS__12__ACCESS_KEY_SECRET__FILE",
            ),
            ("LIMITS_CREATEFLOW", "LIMITS__CREATEFLOW"),
            (
                "LIMITS__SENDCHATAPPMESSAGE__BRUST",
                "LIMITS__SENDCHATAPPMESSAGE__BURST",
            ),
            (
                "ACCOUNTS__3__CREDENTIALS__ASSUME_ROLE__FROM__ECS_ROLE__ROLL",
                "ACCOUNTS__3__CREDENTIALS__ASSUME_ROLE__FROM__ECS_ROLE__ROLE",
            ),
            ("MODES", "MODE"),
            ("HOLD", "QUEUE__HOLD"),
            ("LOG", "LOG__FORMAT or FLOWGATE_LOG__LEVEL"),
            ("PROXY", "LISTEN__PROXY or FLOWGATE_UPSTREAM__PROXY"),
            (
                "LISTEN_ADMIN_TOKEN",
                "LISTEN__ADMIN_TOKEN__ENV or FLOWGATE_LISTEN__ADMIN_TOKEN__FILE",
            ),
            ("CONFIG_FILE", "CONFIG"),
        ] {
            let warnings = warned(&[(&format!("FLOWGATE_{name}"), "x")]);
            let expected = format!(
                "FLOWGATE_{name}: unknown variable, ignored: did you mean FLOWGATE_{right}?"
            );
            assert_eq!(warnings, [expected]);
        }
        let warnings = warned(&[("flowgate_listen__proxy", "x")]);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(
            warnings[0].ends_with("did you mean FLOWGATE_LISTEN__PROXY?"),
            "{warnings:?}"
        );
    }

    #[test]
    fn the_variables_of_a_kubernetes_service_get_no_suggestion() {
        for name in [
            "PORT",
            "PORT_8080_TCP",
            "PORT_8080_TCP_ADDR",
            "PORT_8080_TCP_PORT",
            "PORT_8080_TCP_PROTO",
            "SERVICE_HOST",
            "SERVICE_PORT",
            "SERVICE_PORT_PROXY",
            "SERVICE_PORT_ADMIN",
            "ADMIN_SERVICE_HOST",
            "ADMIN_PORT_9900_TCP_PROTO",
            "",
        ] {
            let name = format!("FLOWGATE_{name}");
            let warnings = warned(&[(&name, "tcp://10.0.0.1:8080")]);
            assert_eq!(warnings, [format!("{name}: unknown variable, ignored")]);
        }
    }

    #[test]
    fn another_path_in_flowgate_config_is_a_warning() {
        let expected = "FLOWGATE_CONFIG: not read, because --config names the configuration";
        assert_eq!(
            warned(&[("FLOWGATE_CONFIG", "/etc/flowgate.toml")]),
            [expected]
        );
        assert_eq!(warned(&[("FLOWGATE_CONFIG", "")]), [""; 0]);
        let env = [("FLOWGATE_CONFIG".into(), "/dev/null".into())];
        let same = load(Some("/dev/null".as_ref()), env.clone()).unwrap();
        assert_eq!(same.warnings, [""; 0]);
    }

    #[test]
    fn misspelt_variables_of_alibaba_are_named_with_the_right_ones() {
        let expect = |variables: &[(&str, &str)], expected: &str| {
            let warnings = warned(variables);
            assert!(warnings.contains(&expected.to_owned()), "{warnings:?}");
        };
        expect(
            &[("ALIBABA_CLOUD_ACCESS_KEY", "LTAI")],
            "ALIBABA_CLOUD_ACCESS_KEY: not read by Flowgate: did you mean \
             ALIBABA_CLOUD_ACCESS_KEY_ID or ALIBABA_CLOUD_ACCESS_KEY_SECRET?",
        );
        expect(
            &[("ALIBABA_CLOUD_ACCES_KEY_ID", "LTAI")],
            "ALIBABA_CLOUD_ACCES_KEY_ID: not read by Flowgate: did you mean ALIBABA_CLOUD_ACCESS_KEY_ID?",
        );
        expect(
            &[("ALICLOUD_SECURITY_TOKEN", "x")],
            "ALICLOUD_SECURITY_TOKEN: not read by Flowgate: did you mean ALIBABA_CLOUD_SECURITY_TOKEN?",
        );
        for name in [
            "ALIBABA_CLOUD_REGION_ID",
            "ALICLOUD_REGION",
            "ALIBABA_CLOUD_CA_BUNDLE",
        ] {
            assert_eq!(warned(&[(name, "x")]), [""; 0]);
        }
        let key = [
            ("ALIBABA_CLOUD_ACCESS_KEY_ID", "LTAI"),
            ("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "k3y"),
            ("ALIBABA_CLOUD_ACCESS_KEY", "LTAI"),
        ];
        assert_eq!(warned(&key), [""; 0]);
    }

    #[test]
    fn a_mistake_has_the_misspelt_variables_beside_it() {
        let env = [
            ("ALIBABA_CLOUD_ACCESS_KEY_ID", "LTAI"),
            ("ALIBABA_CLOUD_ACCESS_KEY_SECRT", "k3y"),
            ("FLOWGATE_LISTEN_PROXY", "127.0.0.1:1"),
        ];
        let env = env.map(|(name, value)| (name.into(), value.into()));
        let mistakes = load(None, env).unwrap_err();
        assert_eq!(
            mistakes.warnings(),
            [
                "FLOWGATE_LISTEN_PROXY: unknown variable, ignored: did you mean FLOWGATE_LISTEN__PROXY?",
                "ALIBABA_CLOUD_ACCESS_KEY_SECRT: not read by Flowgate: did you mean ALIBABA_CLOUD_ACCESS_KEY_SECRET?",
            ]
        );
    }

    #[test]
    fn an_access_key_that_no_account_uses_is_a_warning() {
        let variables = [
            ("ALIBABA_CLOUD_ACCESS_KEY_ID", "LTAI"),
            ("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "k3y"),
        ];
        let with = |account: &str| {
            warned_with(&format!("[[accounts]]\nid = 'acme'\n{account}"), &variables)
        };
        let secret = "access_key_secret = { env = 'ALIBABA_CLOUD_ACCESS_KEY_SECRET' }";
        assert_eq!(with(&format!("access_key_id = 'LTAI'\n{secret}")), [""; 0]);
        assert_eq!(with("credentials = { env = 'ALIBABA_CLOUD' }"), [""; 0]);
        assert_eq!(
            with(&format!("access_key_id = 'LTAI-2'\n{secret}")),
            [
                "ALIBABA_CLOUD_ACCESS_KEY_ID: not used, because the configuration has [[accounts]] with other keys"
            ]
        );
    }

    #[test]
    fn settings_of_other_programs_are_named_with_their_keys() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318");
        assert_eq!(
            warned(&[endpoint, ("RUST_LOG", "debug")]),
            [
                "OTEL_EXPORTER_OTLP_ENDPOINT: not read by Flowgate: a collector is set by telemetry.otlp (FLOWGATE_TELEMETRY__OTLP)",
                "RUST_LOG: not read by Flowgate: the level is set by log.level (FLOWGATE_LOG__LEVEL)",
            ]
        );
        let own = ("FLOWGATE_TELEMETRY__OTLP", "http://127.0.0.1:4318");
        assert_eq!(warned(&[endpoint, own]), [""; 0]);
    }
}
