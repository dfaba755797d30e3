//! Carries idempotency keys over the end of the oldest file. Before a rotation drops a file, the
//! lines of its attempts that must still be known are copied into `path.keys`, which is read first.
//!
//! The rotation renames the oldest file to `path.dropped`. A thread copies `path.keys` and the lines
//! of the dropped file into `path.keys.new`, renames that to `path.keys`, and removes the dropped
//! file. Until then there is no other rotation. If the process ends in between, the next rotation
//! begins again: a line that is there twice means the same.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tokio::time::Instant;

use super::file::{Identity, MODE, with_suffix};
use super::health::Health;
use super::known::{Known, known};
use super::line::{DoneLine, Line, OrderKind, Outcome, ResolvedAs, ResolvedLine, SentLine};
use crate::acs::time;

/// How long an unknown outcome is remembered. No finished key is remembered for longer.
const KEEP_UNKNOWN: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long after a failure it is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// Starts the thread that carries keys, one at a time.
pub(super) struct Carrier {
    path: PathBuf,
    health: Arc<Health>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// How long a finished key is remembered; `None`: there are no keys.
    keep: Option<Duration>,
    thread: Option<JoinHandle<()>>,
    /// After a failure.
    not_before: Option<Instant>,
}

/// The attempts whose lines are carried.
#[derive(Default)]
struct Carried {
    attempts: HashMap<Box<str>, Attempt>,
    /// The number of lines that were read.
    lines: u64,
}

/// An attempt that may have to be known, and which of its lines say so.
struct Attempt {
    kind: OrderKind,
    /// The time of its last line.
    time: Option<SystemTime>,
    end: Option<(Outcome, bool)>,
    resolution: Option<(ResolvedAs, bool)>,
    /// The numbers of its lines.
    sent: u64,
    done: Option<u64>,
    resolved: Option<u64>,
}

/// Returns the name of the file that is dropped when its keys are carried.
pub(super) fn dropped(path: &Path) -> PathBuf {
    with_suffix(path, ".dropped")
}

/// Returns the name of the file with the lines of dropped files.
pub(super) fn keys(path: &Path) -> PathBuf {
    with_suffix(path, ".keys")
}

/// Carries the keys of the dropped file, if there is one and no other process does so, and removes
/// it. `keep` is how long a finished key is remembered.
fn carry(path: &Path, keep: Duration, now: SystemTime) -> io::Result<()> {
    let dropped = dropped(path);
    let file = match File::open(&dropped) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    // Other errors mean that the file system has no locks; there, only one process may write the
    // journal.
    if flock(&file, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
        return Ok(());
    }
    // Another process may have carried it since it was opened.
    let is_named = std::fs::metadata(&dropped).is_ok_and(|found| {
        file.metadata()
            .is_ok_and(|own| Identity::of(&own) == Identity::of(&found))
    });
    if !is_named {
        return Ok(());
    }
    write_keys(path, keep, now)?;
    // The name must be on the disk before the lines are gone from it.
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
    std::fs::remove_file(&dropped)
}

/// Replaces the file of keys by one that has those of the dropped file, too.
fn write_keys(path: &Path, keep: Duration, now: SystemTime) -> io::Result<()> {
    let mut carried = Carried::default();
    for_each_line(path, |line| {
        carried.read(line);
        Ok(())
    })?;
    let wanted = carried.wanted(keep, now);
    let new = with_suffix(path, ".keys.new");
    let written = copy(path, &new, &wanted).and_then(|()| std::fs::rename(&new, keys(path)));
    if written.is_err() {
        // The disk may be full.
        drop(std::fs::remove_file(new));
    }
    written
}

/// Copies the lines with these numbers to a new file.
fn copy(path: &Path, to: &Path, wanted: &HashSet<u64>) -> io::Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(MODE)
        .open(to)?;
    let mut file = BufWriter::new(file);
    let mut number = 0;
    for_each_line(path, |line| {
        number += 1;
        if wanted.contains(&number) {
            file.write_all(line)?;
            file.write_all(b"\n")?;
        }
        Ok(())
    })?;
    file.into_inner()?.sync_all()
}

/// Reads the lines that were carried before, then those of the dropped file.
fn for_each_line(path: &Path, mut read: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    for path in [keys(path), dropped(path)] {
        let file = match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            opened => opened?,
        };
        for line in BufReader::new(file).split(b'\n') {
            read(&line?)?;
        }
    }
    Ok(())
}

// === impl Carrier ===

impl Carrier {
    pub(super) fn new(path: &Path, health: Arc<Health>) -> Self {
        Self {
            path: path.to_owned(),
            health,
            state: Mutex::default(),
        }
    }

    /// Sets how long a finished key is remembered; `None`: nothing is carried.
    pub(super) fn set_keep(&self, keep: Option<Duration>) {
        self.state.lock().keep = keep;
    }

    /// Whether keys must be carried.
    pub(super) fn is_on(&self) -> bool {
        self.state.lock().keep.is_some()
    }

    /// Carries the keys of the dropped file on another thread, unless that is under way or has just
    /// failed.
    pub(super) fn start(self: &Arc<Self>) {
        let now = Instant::now();
        let mut state = self.state.lock();
        let Some(keep) = state.keep else { return };
        let is_running = state.thread.as_ref().is_some_and(|it| !it.is_finished());
        if is_running || state.not_before.is_some_and(|then| now < then) {
            return;
        }
        // Also after a panic.
        state.not_before = Some(now + RETRY);
        let carrier = self.clone();
        let started = thread::Builder::new()
            .name("journal-keys".to_owned())
            .spawn(move || carrier.run(keep));
        match started {
            Ok(thread) => state.thread = Some(thread),
            Err(error) => self.health.not_carried(&error),
        }
    }

    fn run(&self, keep: Duration) {
        match carry(&self.path, keep, SystemTime::now()) {
            Ok(()) => self.state.lock().not_before = None,
            Err(error) => self.health.not_carried(&error),
        }
    }

    /// Waits until the thread has ended.
    #[cfg(test)]
    pub(super) fn wait(&self) {
        let thread = self.state.lock().thread.take();
        if let Some(thread) = thread {
            thread.join().unwrap();
        }
    }
}

// === impl Carried ===

impl Carried {
    fn read(&mut self, line: &[u8]) {
        self.lines += 1;
        match serde_json::from_slice(line) {
            Ok(Line::Sent(sent)) => self.sent(&sent),
            Ok(Line::Done(done)) => self.done(&done),
            Ok(Line::Resolved(resolved)) => self.resolved(&resolved),
            Err(_) => {}
        }
    }

    fn sent(&mut self, line: &SentLine<'_>) {
        if line.key.is_none() || line.print.is_none() {
            return;
        }
        let sent = self.lines;
        let attempt = self.attempts.entry((&*line.attempt).into());
        attempt.or_insert_with(|| Attempt {
            kind: line.kind,
            time: time::parse(&line.time),
            end: None,
            resolution: None,
            sent,
            done: None,
            resolved: None,
        });
    }

    fn done(&mut self, line: &DoneLine<'_>) {
        let Some(attempt) = self.attempts.get_mut(&*line.attempt) else {
            return;
        };
        // After a crash a line may be read twice.
        if attempt.done.is_none() {
            attempt.done = Some(self.lines);
            attempt.end = Some((line.outcome, line.flow_id.is_some()));
            attempt.time = time::parse(&line.time);
        }
    }

    fn resolved(&mut self, line: &ResolvedLine<'_>) {
        let Some(attempt) = self.attempts.get_mut(&*line.attempt) else {
            return;
        };
        if !line
            .result
            .may_follow(attempt.resolution.map(|(result, _)| result))
        {
            return;
        }
        attempt.resolved = Some(self.lines);
        attempt.resolution = Some((line.result, line.flow_id.is_some()));
        if line.result != ResolvedAs::Ambiguous {
            attempt.time = time::parse(&line.time);
        }
    }

    /// The numbers of the lines that must be known after `now`.
    fn wanted(self, keep: Duration, now: SystemTime) -> HashSet<u64> {
        let attempts = self.attempts.into_values();
        attempts
            .filter(|attempt| attempt.is_needed(keep, now))
            .flat_map(|it| [Some(it.sent), it.done, it.resolved])
            .flatten()
            .collect()
    }
}

// === impl Attempt ===

impl Attempt {
    /// Whether its key answers with its flow, or its outcome is unknown.
    fn is_needed(&self, keep: Duration, now: SystemTime) -> bool {
        let is_forgotten = matches!(self.resolution, Some((ResolvedAs::Forgotten, _)));
        let keep = match known(self.end, self.resolution) {
            Known::Created if self.kind == OrderKind::Keyed => keep,
            // Another process has concluded that. CAMS's answer may follow, in a later file.
            Known::NotCreated if self.end.is_none() && !is_forgotten => KEEP_UNKNOWN,
            Known::Created | Known::NotCreated => return false,
            Known::Unknown => KEEP_UNKNOWN,
        };
        let age = self.time.and_then(|time| now.duration_since(time).ok());
        age.is_none_or(|age| age < keep)
    }
}

#[cfg(test)]
mod tests;
