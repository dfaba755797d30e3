//! How does a changed configuration come into force? On SIGHUP, or when a file changes that it was read from, all of it is
//! read and checked anew; then all of it holds at once, or, with a mistake in it, nothing of it. What waits, what was
//! spent, what pauses and what is under way goes on.

use std::sync::{Arc, Weak};
use std::time::Duration;

use serde_json::Value;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::app::state::AppState;
use crate::call::settings::{Ask, Settings};
use crate::config::{self, Loaded, Mistakes, Scheme, Source, Stamps, stamp};
use crate::observe::metrics::Reload;
use crate::process::systemd;
use crate::upstream::{Trust, UpstreamError};

/// The task that reads the configuration again, one time after the other.
pub(crate) struct Reloader {
    work: Work,
    hangup: Signal,
    /// How many have asked.
    asked: watch::Receiver<u64>,
    /// For how many of these the files have been looked at.
    answered: watch::Sender<u64>,
}

/// What the task does. With 100,000 accounts it reads as many files and builds and drops lists of that length, so all of it
/// runs on a thread that serves no call.
struct Work {
    source: Source,
    last: Last,
    /// What the files were at the last look, while they are written.
    changing: Option<Stamps>,
    /// What held before and a call may still use. The last user drops the lists, and that must not be a serving thread.
    retired: Vec<Arc<Settings>>,
}

/// Why the files are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    /// A second has passed.
    Time,
    /// SIGHUP: they are read, whether they have changed or not.
    Signal,
    /// A call needs what has changed.
    Call,
}

/// What was read last.
struct Last {
    /// As it was written: with the addresses that were asked for, not those that were bound.
    written: Value,
    stamps: Stamps,
}

/// How often the files are looked at. One that has changed is read at the look after, when it is whole.
const LOOK: Duration = Duration::from_secs(1);

/// Files that take longer hang, and that is logged.
const HANGS_AFTER: Duration = Duration::from_secs(10);

/// Where there are thousands of files, so many times as long as a look takes passes until the next.
const APART: u32 = 100;
/// But not more than this.
const FARTHEST: Duration = Duration::from_secs(10);

/// What a running process cannot change: these keys, and those in these tables.
const FIXED: [&str; 9] = [
    "mode",
    "listen.proxy",
    "listen.admin",
    "listen.socket_mode",
    "upstream",
    "quota",
    "log.format",
    "journal",
    "telemetry",
];

/// This one as a whole; its files may be others.
const FIXED_WHOLE: &str = "listen.tls";

/// Why nothing has changed.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("{}", .0.summary())]
    Mistakes(Mistakes),
    #[error("{0}")]
    Trust(UpstreamError),
    #[error("only a restart can change {}", .0.join(", "))]
    Fixed(Vec<String>),
}

/// All that the files say, also those that the configuration only names; and what the files were before they were read,
/// also those that a configuration with mistakes names, because it may lack nothing but one of them.
fn read(source: &Source) -> (Result<(Loaded, Option<Trust>), Refused>, Stamps) {
    match source.load() {
        Err(mut mistakes) => {
            let files = std::mem::take(&mut mistakes.files);
            (Err(Refused::Mistakes(mistakes)), files)
        }
        Ok(mut loaded) => {
            let files = std::mem::take(&mut loaded.files);
            let upstream = &loaded.config.upstream;
            let trust = (upstream.scheme == Scheme::Https)
                .then(|| Trust::load(upstream.ca_file.as_deref()));
            (
                trust
                    .transpose()
                    .map(|trust| (loaded, trust))
                    .map_err(Refused::Trust),
                files,
            )
        }
    }
}

/// Works on files, one at a time, off the threads that serve. A file system that hangs is waited for: the work cannot be
/// stopped, and more of it would hang, too.
async fn on_files<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let mut work = tokio::task::spawn_blocking(work);
    let done = match timeout(HANGS_AFTER, &mut work).await {
        Ok(done) => done,
        Err(_) => {
            tracing::warn!("the configuration's files hang; nothing is read until they answer");
            work.await
        }
    };
    done.expect("reading files does not panic")
}

/// How long the files are not looked at after a look that took so long.
fn until_next(took: Duration) -> Duration {
    took.saturating_mul(APART).clamp(LOOK, FARTHEST)
}

/// The keys that are not the same in both, by their paths; a list is one.
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

/// Whether a key is one of these or stands in one of these tables.
fn is_fixed(key: &str) -> bool {
    key == FIXED_WHOLE
        || FIXED.iter().any(|fixed| {
            key.strip_prefix(fixed)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
}

// === impl Reloader ===

impl Reloader {
    /// `loaded` is what the source said at the start.
    pub(crate) fn new(source: Source, loaded: &Loaded) -> std::io::Result<(Self, Ask)> {
        let last = Last::of(loaded, loaded.files.clone());
        let work = Work {
            source,
            last,
            changing: None,
            retired: Vec::new(),
        };
        let (ask, asked, answered) = Ask::channel();
        let reloader = Self {
            work,
            hangup: signal(SignalKind::hangup())?,
            asked,
            answered,
        };
        Ok((reloader, ask))
    }

    /// Reads again on SIGHUP, when it is asked and when files change, until the process ends.
    pub(crate) async fn run(self, state: Weak<AppState>) {
        let Self {
            mut work,
            mut hangup,
            mut asked,
            answered,
        } = self;
        let mut took = Duration::ZERO;
        loop {
            let mut reason = Reason::Time;
            tokio::select! {
                _ = hangup.recv() => reason = Reason::Signal,
                _ = asked.changed() => {}
                () = tokio::time::sleep(until_next(took)) => {}
            }
            let Some(state) = state.upgrade() else { return };
            // A call that asks later may know of a later change: the next look is for it.
            let number = *asked.borrow_and_update();
            if reason == Reason::Time && number > *answered.borrow() {
                reason = Reason::Call;
            }
            let step = move || {
                let took = work.step(reason, &state);
                (work, took)
            };
            (work, took) = on_files(step).await;
            answered.send_replace(number);
        }
    }
}

// === impl Work ===

impl Work {
    /// Looks at the files, and reads them if that is due. Returns how long the look took.
    fn step(&mut self, reason: Reason, state: &AppState) -> Duration {
        self.retired
            .retain(|settings| Arc::strong_count(settings) > 1);
        let begun = Instant::now();
        let is_due = self.is_due(reason);
        let took = begun.elapsed();
        if is_due {
            systemd::reloading();
            self.reload(state);
            systemd::ready(&state.status());
        }
        took
    }

    /// A file that has changed may not be whole yet, so it is read when it is the same at two looks; a call cannot wait for
    /// that.
    fn is_due(&mut self, reason: Reason) -> bool {
        let seen = self.last.changed();
        let has_settled = seen.is_some() && (reason == Reason::Call || seen == self.changing);
        let is_due = reason == Reason::Signal || has_settled;
        self.changing = if is_due { None } else { seen };
        is_due
    }

    /// Reads everything, and has it hold if there is no mistake in it.
    fn reload(&mut self, state: &AppState) {
        let (read, files) = read(&self.source);
        let read = read.and_then(|(loaded, trust)| {
            let written = config::outline(&loaded.config);
            let changed = self.last.accept(&written)?;
            Ok((loaded, trust, written, changed))
        });
        self.last.stamps = files;
        match read {
            Ok((
                Loaded {
                    config, warnings, ..
                },
                trust,
                written,
                changed,
            )) => {
                self.last.written = written;
                self.retired.push(state.calls().settings.load_full());
                state.apply(config, trust);
                state.calls().metrics.reloaded(Reload::Done);
                let reading = state.calls().settings.was_read(warnings);
                reading
                    .warnings
                    .iter()
                    .for_each(|warning| tracing::warn!(warning, "configuration"));
                let changed = changed.join(", ");
                tracing::info!(changed, "the configuration was read anew");
            }
            Err(refused) => {
                state.calls().metrics.reloaded(Reload::Refused);
                let mistakes = refused.to_string();
                tracing::error!(
                    mistakes,
                    "the configuration cannot be used, the one before stays"
                );
                state.calls().settings.was_refused(mistakes);
            }
        }
    }
}

// === impl Last ===

impl Last {
    fn of(loaded: &Loaded, stamps: Stamps) -> Self {
        Self {
            written: config::outline(&loaded.config),
            stamps,
        }
    }

    /// What the files are now, if that is not what was read.
    fn changed(&self) -> Option<Stamps> {
        let same = self.stamps.iter().all(|(path, last)| stamp(path) == *last);
        (!same).then(|| {
            self.stamps
                .keys()
                .map(|path| (path.clone(), stamp(path)))
                .collect()
        })
    }

    /// What is not as it was, if a running process can change it.
    fn accept(&self, written: &Value) -> Result<Vec<String>, Refused> {
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
            Err(Refused::Fixed(fixed))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use serde_json::json;

    use super::*;
    use crate::call::settings::Reading;

    #[test]
    fn what_takes_long_to_look_at_is_looked_at_less_often() {
        let next = |millis| until_next(Duration::from_millis(millis)).as_millis();
        assert_eq!(
            [0, 10, 18, 99, 101, 3_600_000].map(next),
            [1_000, 1_000, 1_800, 9_900, 10_000, 10_000]
        );
        assert_eq!(until_next(Duration::MAX), FARTHEST);
    }

    #[tokio::test]
    async fn all_that_have_asked_before_a_look_share_it() {
        let source = Source {
            file: None,
            environment: Some(Vec::new()),
        };
        let loaded = source.load().unwrap();
        let (reloader, ask) = Reloader::new(source, &loaded).unwrap();
        let state = Arc::new(AppState::new(loaded.config).unwrap());
        let mut asks: Vec<_> = (0..100).map(|_| Box::pin(ask.changed())).collect();
        for ask in &mut asks {
            assert!(futures_util::poll!(ask).is_pending());
        }
        let mut answered = ask.answered.clone();
        let reloader = tokio::spawn(reloader.run(Arc::downgrade(&state)));
        answered.changed().await.unwrap();
        assert_eq!(*answered.borrow(), 100);
        for ask in asks {
            ask.await;
        }
        reloader.abort();
    }

    #[test]
    fn a_file_that_only_a_refused_configuration_names_is_looked_for() {
        let folder = tempfile::tempdir().unwrap();
        let (file, secret) = (
            folder.path().join("flowgate.toml"),
            folder.path().join("secret"),
        );
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
        assert!(matches!(refused, Err(Refused::Mistakes(_))));
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
        // What cannot even be parsed names nothing else.
        std::fs::write(&file, "[[accounts").unwrap();
        assert_eq!(read(&source).1, [(file.clone(), stamp(&file))].into());
    }

    #[test]
    fn what_changes_between_the_reading_and_the_first_look_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("flowgate.toml");
        std::fs::write(&file, "mode = \"observe\"\n").unwrap();
        let loaded = Source {
            file: Some(file.clone()),
            environment: Some(Vec::new()),
        }
        .load()
        .unwrap();
        assert!(Last::of(&loaded, loaded.files.clone()).changed().is_none());
        std::fs::write(&file, "mode = \"enforce\" # another one\n").unwrap();
        let last = Last::of(&loaded, loaded.files.clone());
        assert_eq!(last.changed(), Some([(file.clone(), stamp(&file))].into()));
        // Whoever may read it now could not before, perhaps.
        let last = Last {
            stamps: [(file.clone(), stamp(&file))].into(),
            ..last
        };
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(last.changed(), Some([(file.clone(), stamp(&file))].into()));
    }

    #[test]
    fn a_directory_has_changed_when_one_of_its_files_has_or_comes_or_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("a.toml"), "mode = \"observe\"\n").unwrap();
        let source = Source {
            file: Some(folder.path().to_owned()),
            environment: Some(Vec::new()),
        };
        let read = || {
            let loaded = source.load().unwrap();
            Last::of(&loaded, loaded.files.clone())
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
    async fn what_held_before_is_dropped_by_the_reader_and_not_by_the_last_call_that_uses_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("flowgate.toml");
        let listen = "[listen]\nproxy = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n";
        std::fs::write(&file, listen).unwrap();
        let source = Source {
            file: Some(file.clone()),
            environment: Some(Vec::new()),
        };
        let loaded = source.load().unwrap();
        let last = Last::of(&loaded, loaded.files.clone());
        let state = crate::App::start(loaded.config).await.unwrap().state;
        let mut work = Work {
            source,
            last,
            changing: None,
            retired: Vec::new(),
        };
        let call = state.calls().settings.load_full();
        let before = Arc::downgrade(&call);
        std::fs::write(&file, format!("{listen}[queue]\nhold = \"10s\"\n")).unwrap();
        work.step(Reason::Signal, &state);
        assert_eq!(state.calls().settings.load().generation, 1);
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
    fn a_list_in_an_outline_is_a_number_that_changes_with_it() {
        let outline = |alias: &str| {
            let env = [("ACCOUNTS__0__ID", "acme"), ("ACCOUNTS__0__ALIASES", alias)];
            let env = env.map(|(name, value)| (format!("FLOWGATE_{name}").into(), value.into()));
            config::outline(&config::load(None, env).unwrap().config)
        };
        let (before, after) = (outline("LTAI-first-01"), outline("STS.second-02"));
        assert!(before["accounts"].is_u64());
        assert_eq!(before, outline("LTAI-first-01"));
        let mut found = Vec::new();
        differences(&before, &after, "", &mut found);
        assert_eq!(found, ["accounts"]);
    }

    #[test]
    fn warnings_that_are_shown_have_a_bound() {
        let warnings = |count: usize| {
            Reading::done((0..count).map(|index| index.to_string()).collect()).warnings
        };
        assert_eq!(
            (warnings(100).len(), warnings(100)[99].as_str()),
            (100, "99")
        );
        assert_eq!(warnings(300).len(), 101);
        assert_eq!(
            warnings(300)[100],
            "and 200 more: flowgate check prints all of them"
        );
    }

    #[test]
    fn differences_are_told_by_their_keys() {
        let before = json!({ "mode": "enforce", "queue": { "hold": "1s", "tenant": "none" }, "clients": [1, 2] });
        let after = json!({ "mode": "enforce", "queue": { "hold": "2s", "tenant": "none" }, "clients": [1], "log": {} });
        let mut found = Vec::new();
        differences(&before, &after, "", &mut found);
        assert_eq!(found, ["clients", "queue.hold", "log"]);
    }

    #[test]
    fn what_a_running_process_cannot_change_is_known_by_its_table() {
        assert!(
            [
                "mode",
                "upstream.url",
                "upstream.connect_to",
                "quota.store.lease",
                "listen.proxy",
                "listen.tls"
            ]
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
                "queue.hold"
            ]
            .iter()
            .any(|key| is_fixed(key))
        );
    }
}
