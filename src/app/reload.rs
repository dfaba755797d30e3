//! Reloads the configuration. On SIGHUP, or when one of its files changes, everything is read and
//! checked again. Then the new configuration takes effect as a whole, or, if it has a mistake, none
//! of it does. Queues, tokens, pauses and attempts in flight are kept.

use std::sync::{Arc, Weak};
use std::time::Duration;

use serde_json::Value;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::app::state::AppState;
use crate::call::current_config::{ConfigSnapshot, ReloadHandle};
use crate::config::{self, Loaded, Mistakes, Source, Stamps, stamp};
use crate::observe::metrics::Reload;
use crate::process::systemd;
use crate::upstream::TlsRoots;

/// The task that reads the configuration again, one reload at a time.
pub(crate) struct Reloader {
    work: ReloadWork,
    hangup: Signal,
    /// Number of requests so far.
    requests: watch::Receiver<u64>,
    /// Number of the last request that has been served.
    served: watch::Sender<u64>,
}

/// The blocking part of the task. With 100,000 accounts a reload reads as many files and builds and
/// drops long lists, so all of it runs on a blocking thread.
struct ReloadWork {
    source: Source,
    last: LoadedState,
    /// The files' stamps at the last look, while they are still changing.
    changing: Option<Stamps>,
    /// Replaced snapshots that a call may still use. Dropping the last reference frees long lists,
    /// which must not happen on a serving thread.
    retired: Vec<Arc<ConfigSnapshot>>,
}

/// Why the files are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    /// The interval has passed.
    Time,
    /// SIGHUP: the files are read whether they changed or not.
    Signal,
    /// A call waits for a change.
    Call,
}

/// The configuration that was read last.
struct LoadedState {
    /// As written: with the configured addresses, not the ones that were bound.
    written: Value,
    stamps: Stamps,
}

/// Interval between checks of the files. A changed file is read at the next check, when it is
/// complete.
const LOOK: Duration = Duration::from_secs(1);

/// A check that takes longer is logged.
const HANGS_AFTER: Duration = Duration::from_secs(10);

/// With thousands of files, the interval is this many times the duration of the last check.
const APART: u32 = 100;
/// Upper limit of the interval.
const FARTHEST: Duration = Duration::from_secs(10);

/// Keys and tables that only a restart can change.
const FIXED: [&str; 8] = [
    "mode",
    "listen.proxy",
    "listen.admin",
    "listen.socket_mode",
    "quota",
    "log.format",
    "journal",
    "telemetry",
];

/// This table cannot be added or removed by a reload; its files may change.
const FIXED_WHOLE: &str = "listen.tls";

/// Why a reload was rejected.
#[derive(Debug, thiserror::Error)]
enum ReloadError {
    #[error("{}", .0.summary())]
    Mistakes(Mistakes),
    #[error("{0:#}")]
    Endpoint(anyhow::Error),
    #[error("only a restart can change {}", .0.join(", "))]
    Fixed(Vec<String>),
}

/// Reads all files, including those that the configuration names. Also returns their stamps from
/// before the read. A configuration with mistakes has stamps too, because a missing file may be the
/// only mistake.
fn read(source: &Source) -> (Result<(Loaded, Option<TlsRoots>), ReloadError>, Stamps) {
    match source.load() {
        Err(mut mistakes) => {
            let files = std::mem::take(&mut mistakes.files);
            (Err(ReloadError::Mistakes(mistakes)), files)
        }
        Ok(mut loaded) => {
            let files = std::mem::take(&mut loaded.files);
            let tls_roots = TlsRoots::of(&loaded.config);
            (
                tls_roots
                    .map(|tls_roots| (loaded, tls_roots))
                    .map_err(|error| ReloadError::Endpoint(error.into())),
                files,
            )
        }
    }
}

/// Runs file work on a blocking thread. If a file system does not respond, waits for it: the work
/// cannot be cancelled, and a second one would block as well.
async fn on_files<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let mut work = tokio::task::spawn_blocking(work);
    let done = match timeout(HANGS_AFTER, &mut work).await {
        Ok(done) => done,
        Err(_) => {
            tracing::warn!("configuration files do not respond; the reload waits");
            work.await
        }
    };
    done.expect("reading files does not panic")
}

/// Interval until the next check, after one that took this long.
fn until_next(took: Duration) -> Duration {
    took.saturating_mul(APART).clamp(LOOK, FARTHEST)
}

/// Collects the paths of the keys that differ. A list is compared as one value.
fn differences(before: &Value, after: &Value, path: &str, found: &mut Vec<String>) {
    match (before, after) {
        (Value::Object(old), Value::Object(new)) => {
            let names = old
                .keys()
                .chain(new.keys().filter(|name| !old.contains_key(*name)));
            for name in names {
                let path = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}.{name}")
                };
                differences(&before[name], &after[name], &path, found);
            }
        }
        _ if before == after => {}
        _ => found.push(path.to_owned()),
    }
}

/// Whether only a restart can change this key.
fn is_fixed(key: &str) -> bool {
    key == FIXED_WHOLE
        || FIXED.iter().any(|fixed| {
            key.strip_prefix(fixed)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
}

// === impl Reloader ===

impl Reloader {
    /// `loaded` is the configuration at the start.
    pub(crate) fn new(source: Source, loaded: &Loaded) -> std::io::Result<(Self, ReloadHandle)> {
        let last = LoadedState::of(loaded, loaded.files.clone());
        let work = ReloadWork {
            source,
            last,
            changing: None,
            retired: Vec::new(),
        };
        let (reload_handle, requests, served) = ReloadHandle::channel();
        let reloader = Self {
            work,
            hangup: signal(SignalKind::hangup())?,
            requests,
            served,
        };
        Ok((reloader, reload_handle))
    }

    /// Reloads on SIGHUP, on request and when files change, until the process ends.
    pub(crate) async fn run(self, state: Weak<AppState>) {
        let Self {
            mut work,
            mut hangup,
            mut requests,
            served,
        } = self;
        let mut took = Duration::ZERO;
        loop {
            let mut reason = Reason::Time;
            tokio::select! {
                _ = hangup.recv() => reason = Reason::Signal,
                _ = requests.changed() => {}
                () = tokio::time::sleep(until_next(took)) => {}
            }
            let Some(state) = state.upgrade() else { return };
            // A request that comes later may be about a later change: the next check serves it.
            let number = *requests.borrow_and_update();
            if reason == Reason::Time && number > *served.borrow() {
                reason = Reason::Call;
            }
            (work, took) = on_files(move || {
                let took = work.step(reason, &state);
                (work, took)
            })
            .await;
            served.send_replace(number);
        }
    }
}

// === impl ReloadWork ===

impl ReloadWork {
    /// Checks the files, and reads them if due. Returns how long the check took.
    fn step(&mut self, reason: Reason, state: &AppState) -> Duration {
        self.retired
            .retain(|config_snapshot| Arc::strong_count(config_snapshot) > 1);
        let begun = Instant::now();
        let is_due = self.take_due(reason);
        let took = begun.elapsed();
        if is_due {
            systemd::reloading();
            self.reload(state);
            systemd::ready(&state.status());
        }
        took
    }

    /// A changed file may still be incomplete, so it is read when two checks in a row see the same
    /// stamps. A waiting call does not wait for that.
    fn take_due(&mut self, reason: Reason) -> bool {
        let seen = self.last.changed();
        let has_settled = seen.is_some() && (reason == Reason::Call || seen == self.changing);
        let is_due = reason == Reason::Signal || has_settled;
        self.changing = if is_due { None } else { seen };
        is_due
    }

    /// Reads everything, and puts it in force if it has no mistake.
    fn reload(&mut self, state: &AppState) {
        let (read, files) = read(&self.source);
        let read = read.and_then(|(loaded, tls_roots)| {
            let written = config::outline(&loaded.config);
            let changed = self.last.accept(&written)?;
            let endpoints = state
                .next_endpoints(&loaded.config, tls_roots.as_ref())
                .map_err(ReloadError::Endpoint)?;
            Ok((loaded, tls_roots, endpoints, written, changed))
        });
        self.last.stamps = files;
        match read {
            Ok((
                Loaded {
                    config, warnings, ..
                },
                tls_roots,
                endpoints,
                written,
                changed,
            )) => {
                self.last.written = written;
                self.retired.push(state.calls().current_config.load_full());
                state.apply(config, endpoints, tls_roots.as_ref());
                state.calls().metrics.reloaded(Reload::Done);
                let reload_status = state.calls().current_config.record_accepted(warnings);
                reload_status
                    .warnings
                    .iter()
                    .for_each(|warning| tracing::warn!(warning, "configuration"));
                let changed = changed.join(", ");
                tracing::info!(changed, "configuration reloaded");
            }
            Err(refused) => {
                state.calls().metrics.reloaded(Reload::Refused);
                let mistakes = refused.to_string();
                tracing::error!(
                    mistakes,
                    "configuration reload rejected; keeping the current one"
                );
                state.calls().current_config.record_rejected(mistakes);
            }
        }
    }
}

// === impl LoadedState ===

impl LoadedState {
    fn of(loaded: &Loaded, stamps: Stamps) -> Self {
        Self {
            written: config::outline(&loaded.config),
            stamps,
        }
    }

    /// The files' current stamps, if they differ from the ones that were read.
    fn changed(&self) -> Option<Stamps> {
        let same = self.stamps.iter().all(|(path, last)| stamp(path) == *last);
        (!same).then(|| {
            self.stamps
                .keys()
                .map(|path| (path.clone(), stamp(path)))
                .collect()
        })
    }

    /// The changed keys. Fails if one of them needs a restart.
    fn accept(&self, written: &Value) -> Result<Vec<String>, ReloadError> {
        let mut changed = Vec::new();
        differences(&self.written, written, "", &mut changed);
        let fixed: Vec<_> = changed
            .iter()
            .filter(|key| is_fixed(key))
            .cloned()
            .collect();
        if fixed.is_empty() {
            Ok(changed)
        } else {
            Err(ReloadError::Fixed(fixed))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use serde_json::json;

    use super::*;
    use crate::call::current_config::ReloadStatus;

    #[test]
    fn checks_that_take_long_are_made_less_often() {
        let cases = [
            (0, 1_000),
            (10, 1_000),
            (18, 1_800),
            (99, 9_900),
            (101, 10_000),
            (3_600_000, 10_000),
        ];
        for (took, next) in cases {
            assert_eq!(
                until_next(Duration::from_millis(took)),
                Duration::from_millis(next)
            );
        }
        assert_eq!(until_next(Duration::MAX), FARTHEST);
    }

    #[tokio::test]
    async fn requests_made_before_a_check_share_it() {
        let source = Source {
            file: None,
            environment: Some(Vec::new()),
        };
        let loaded = source.load().unwrap();
        let (reloader, reload_handle) = Reloader::new(source, &loaded).unwrap();
        let state = Arc::new(AppState::new(loaded.config).unwrap());
        let mut reloads: Vec<_> = (0..100).map(|_| Box::pin(reload_handle.reload())).collect();
        for reload in &mut reloads {
            assert!(futures_util::poll!(reload).is_pending());
        }
        let mut served = reload_handle.served.clone();
        let reloader = tokio::spawn(reloader.run(Arc::downgrade(&state)));
        served.changed().await.unwrap();
        assert_eq!(*served.borrow(), 100);
        for reload in reloads {
            reload.await;
        }
        reloader.abort();
    }

    #[test]
    fn a_file_named_by_a_rejected_configuration_is_watched() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("flowgate.toml");
        let secret = folder.path().join("secret");
        let account = "[[accounts]]\nid = \"acme\"\naccess_key_id = \"LTAI-managed-1\"\n";
        std::fs::write(
            &file,
            format!("{account}access_key_secret = {{ file = \"secret\" }}\n"),
        )
        .unwrap();
        let source = Source {
            file: Some(file.clone()),
            environment: Some(Vec::new()),
        };
        let (refused, files) = read(&source);
        assert!(matches!(refused, Err(ReloadError::Mistakes(_))));
        assert_eq!(
            files,
            [(file.clone(), stamp(&file)), (secret.clone(), None)].into()
        );
        std::fs::write(&secret, "a-secret").unwrap();
        let (done, files) = read(&source);
        assert!(done.is_ok());
        assert_eq!(
            files,
            [
                (file.clone(), stamp(&file)),
                (secret.clone(), stamp(&secret))
            ]
            .into()
        );
        // A file that cannot be parsed names no other files.
        std::fs::write(&file, "[[accounts").unwrap();
        assert_eq!(read(&source).1, [(file.clone(), stamp(&file))].into());
    }

    #[test]
    fn a_change_between_the_read_and_the_first_check_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("flowgate.toml");
        std::fs::write(&file, "mode = \"observe\"\n").unwrap();
        let loaded = Source {
            file: Some(file.clone()),
            environment: Some(Vec::new()),
        }
        .load()
        .unwrap();
        assert!(
            LoadedState::of(&loaded, loaded.files.clone())
                .changed()
                .is_none()
        );
        std::fs::write(&file, "mode = \"enforce\" # another one\n").unwrap();
        let last = LoadedState::of(&loaded, loaded.files.clone());
        assert_eq!(last.changed(), Some([(file.clone(), stamp(&file))].into()));
        // A change of permissions counts: the file may have been unreadable before.
        let last = LoadedState {
            stamps: [(file.clone(), stamp(&file))].into(),
            ..last
        };
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(last.changed(), Some([(file.clone(), stamp(&file))].into()));
    }

    #[test]
    fn a_directory_changes_when_one_of_its_files_changes_appears_or_disappears() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("a.toml"), "mode = \"observe\"\n").unwrap();
        let source = Source {
            file: Some(folder.path().to_owned()),
            environment: Some(Vec::new()),
        };
        let read = || {
            let loaded = source.load().unwrap();
            LoadedState::of(&loaded, loaded.files.clone())
        };
        let last = read();
        std::fs::write(path(".b.toml.swp"), "").unwrap();
        std::fs::write(path("a.toml~"), "").unwrap();
        assert!(
            last.changed().is_none(),
            "what editors leave is no configuration"
        );
        std::fs::write(path("b.toml"), "").unwrap();
        assert!(last.changed().is_some(), "a new file");
        let last = read();
        std::fs::write(path("a.toml"), "mode = \"enforce\" # another\n").unwrap();
        assert!(last.changed().is_some(), "a changed file");
        let last = read();
        std::fs::remove_file(path("b.toml")).unwrap();
        assert!(last.changed().is_some(), "a file that has gone");
        assert!(read().changed().is_none());
    }

    #[tokio::test]
    async fn replaced_snapshots_are_dropped_by_the_reloader_not_by_the_last_call() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("flowgate.toml");
        let listen = "[listen]\nproxy = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n";
        std::fs::write(&file, listen).unwrap();
        let source = Source {
            file: Some(file.clone()),
            environment: Some(Vec::new()),
        };
        let loaded = source.load().unwrap();
        let last = LoadedState::of(&loaded, loaded.files.clone());
        let state = crate::App::start(loaded.config).await.unwrap().state;
        let mut work = ReloadWork {
            source,
            last,
            changing: None,
            retired: Vec::new(),
        };
        let call = state.calls().current_config.load_full();
        let before = Arc::downgrade(&call);
        std::fs::write(&file, format!("{listen}[queue]\nhold = \"10s\"\n")).unwrap();
        work.step(Reason::Signal, &state);
        assert_eq!(state.calls().current_config.load().generation, 1);
        work.step(Reason::Time, &state);
        drop(call);
        assert!(
            before.upgrade().is_some(),
            "the call was not the last that had it"
        );
        work.step(Reason::Time, &state);
        assert!(before.upgrade().is_none());
    }

    #[test]
    fn an_outline_holds_a_list_as_a_number_that_changes_with_it() {
        let outline = |alias: &str| {
            let env = [("ACCOUNTS__0__ID", "acme"), ("ACCOUNTS__0__ALIASES", alias)];
            let env = env.map(|(name, value)| (format!("FLOWGATE_{name}").into(), value.into()));
            config::outline(&config::load(None, env).unwrap().config)
        };
        let before = outline("LTAI-first-01");
        let after = outline("STS.second-02");
        assert!(before["accounts"].is_u64());
        assert_eq!(before, outline("LTAI-first-01"));
        let mut found = Vec::new();
        differences(&before, &after, "", &mut found);
        assert_eq!(found, ["accounts"]);
    }

    fn warnings_of(count: usize) -> Vec<String> {
        let warnings = (0..count).map(|index| index.to_string()).collect();
        ReloadStatus::accepted(warnings).warnings
    }

    #[test]
    fn the_number_of_shown_warnings_is_limited() {
        let hundred = warnings_of(100);
        assert_eq!(hundred.len(), 100);
        assert_eq!(hundred[99], "99");
        let more = warnings_of(300);
        assert_eq!(more.len(), 101);
        assert_eq!(more[100], "and 200 more: flowgate check prints all of them");
    }

    #[test]
    fn differences_are_reported_by_key() {
        let before = json!({ "mode": "enforce", "queue": { "hold": "1s", "tenant": "none" }, "clients": [1, 2] });
        let after = json!({ "mode": "enforce", "queue": { "hold": "2s", "tenant": "none" }, "clients": [1], "log": {} });
        let mut found = Vec::new();
        differences(&before, &after, "", &mut found);
        assert_eq!(found, ["clients", "queue.hold", "log"]);
    }

    #[test]
    fn keys_that_need_a_restart_are_known_by_their_table() {
        assert!(
            ["mode", "quota.store.lease", "listen.proxy", "listen.tls"]
                .iter()
                .all(|key| is_fixed(key))
        );
        assert!(
            ![
                "modes",
                "listen.names",
                "listen.tls.cert",
                "listen.proxy_header",
                "log.level",
                "upstream.url",
                "upstream.proxy",
                "queue.hold"
            ]
            .iter()
            .any(|key| is_fixed(key))
        );
    }
}
