//! Reads a journal, from the oldest file to the latest, and lists the attempts without an end: they
//! are still in flight, or a crash interrupted them. On request it also lists those whose outcome
//! was unknown, with their resolutions. Damaged lines are counted and skipped.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind};
use std::path::Path;
use std::time::SystemTime;

use serde::Serialize;

use super::JournalOrder;
use super::carry;
use super::file::{Identity, older, open_other};
use super::known::{Known, known};
use super::line::{Line, Outcome, ResolvedAs, ResolvedLine, SentLine};
use super::lock::JournalLock;
use crate::acs::time;

/// The content of a journal.
pub struct JournalContent {
    /// The listed attempts in the order in which they were sent.
    attempts: Vec<ListedAttempt>,
    lists_unknown: bool,
    damaged: u64,
}

/// An attempt that has no end, or whose outcome was unknown.
#[derive(Debug, Serialize)]
pub(crate) struct ListedAttempt {
    #[serde(flatten)]
    pub(crate) sent: SentLine<'static>,
    /// Why its outcome was unknown; `None`: the journal has no end of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<Cow<'static, str>>,
    /// How its unknown outcome has ended, if it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) resolution: Option<Resolution>,
}

/// How an unknown outcome has ended.
#[derive(Debug, Serialize)]
pub(crate) struct Resolution {
    pub(crate) time: Cow<'static, str>,
    pub(crate) result: ResolvedAs,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) flow_id: Option<Cow<'static, str>>,
    /// What only an operator can judge.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) found: Option<Cow<'static, str>>,
}

/// What a later process takes over from a journal.
pub(crate) struct KeyedAttempts {
    /// In the order in which they were sent.
    pub(crate) attempts: Vec<KeyedAttempt>,
    /// The number of damaged lines: keys that only they name are not known.
    pub(crate) damaged: u64,
}

/// An attempt of a call with a record.
#[derive(Debug)]
pub(crate) struct KeyedAttempt {
    pub(crate) key: JournalOrder,
    /// The journal's name of the attempt.
    pub(crate) attempt: String,
    /// Flowgate's request id of its call.
    pub(crate) request_id: String,
    pub(crate) account: String,
    pub(crate) client: String,
    /// When it was sent.
    pub(crate) time: Option<SystemTime>,
    /// `None`: the journal has no end of it.
    pub(crate) end: Option<KeyedEnd>,
    /// How its unknown outcome has ended, if it has.
    pub(crate) resolution: Option<KeyedResolution>,
}

/// How the unknown outcome of an attempt has ended.
#[derive(Debug)]
pub(crate) struct KeyedResolution {
    /// When it was learned.
    pub(crate) time: Option<SystemTime>,
    pub(crate) result: ResolvedAs,
    pub(crate) flow_id: Option<String>,
    /// What only an operator can judge.
    pub(crate) found: Option<String>,
}

/// How an attempt of a call with a record has ended.
#[derive(Debug)]
pub(crate) struct KeyedEnd {
    pub(crate) time: Option<SystemTime>,
    pub(crate) outcome: Outcome,
    pub(crate) flow_id: Option<String>,
    /// CAMS's request id.
    pub(crate) request_id: Option<String>,
    /// Why the outcome is unknown.
    pub(crate) reason: Option<String>,
}

/// Reads the attempts of calls with a record. `is_written`: a process writes the journal, so that its last line
/// may be seen in part.
pub(crate) fn keyed(path: &Path, is_written: bool) -> io::Result<KeyedAttempts> {
    let mut attempts: Vec<KeyedAttempt> = Vec::new();
    let mut by_name = HashMap::new();
    let is_written = || is_written;
    let damaged = for_each_line(path, is_written, |line| match line {
        Line::Sent(sent) => {
            let name = sent.attempt.clone().into_owned();
            if let Some(attempt) = KeyedAttempt::of(sent) {
                by_name.insert(name, attempts.len());
                attempts.push(attempt);
            }
        }
        Line::Done(done) => {
            if let Some(&index) = by_name.get(&*done.attempt) {
                attempts[index].end = Some(KeyedEnd {
                    time: time::parse(&done.time),
                    outcome: done.outcome,
                    flow_id: done.flow_id.map(Cow::into_owned),
                    request_id: done.cams_request_id.map(Cow::into_owned),
                    reason: done.reason.map(Cow::into_owned),
                });
            }
        }
        Line::Resolved(resolved) => {
            if let Some(&index) = by_name.get(&*resolved.attempt)
                && resolved
                    .result
                    .may_follow(attempts[index].resolution.as_ref().map(|it| it.result))
            {
                attempts[index].resolution = Some(KeyedResolution {
                    time: time::parse(&resolved.time),
                    result: resolved.result,
                    flow_id: resolved.flow_id.map(Cow::into_owned),
                    found: resolved.found.map(Cow::into_owned),
                });
            }
        }
    })?;
    Ok(KeyedAttempts { attempts, damaged })
}

/// Reads the journal with its rotated files. With `unknown`, attempts whose outcome was unknown are
/// included, also those whose outcome has been learned since.
pub fn read(path: &Path, unknown: bool) -> io::Result<JournalContent> {
    let mut listed: HashMap<String, (u64, ListedAttempt)> = HashMap::new();
    let mut number = 0_u64;
    let is_written = || JournalLock::is_held(path);
    let damaged = for_each_line(path, is_written, |line| {
        number += 1;
        match line {
            Line::Sent(sent) => {
                let name = sent.attempt.clone().into_owned();
                listed.insert(name, (number, ListedAttempt::of(sent)));
            }
            Line::Done(done) if unknown && done.outcome == Outcome::Unknown => {
                if let Some((_, attempt)) = listed.get_mut(&*done.attempt) {
                    attempt.reason = Some(done.reason.unwrap_or("no certain answer".into()));
                }
            }
            Line::Done(done) => {
                listed.remove(&*done.attempt);
            }
            Line::Resolved(resolved) if unknown => {
                if let Some((_, attempt)) = listed.get_mut(&*resolved.attempt)
                    && resolved
                        .result
                        .may_follow(attempt.resolution.as_ref().map(|it| it.result))
                {
                    attempt.resolution = Some(resolved.into());
                }
            }
            Line::Resolved(resolved) if resolved.result == ResolvedAs::Ambiguous => {}
            Line::Resolved(resolved) => {
                listed.remove(&*resolved.attempt);
            }
        }
    })?;
    if damaged > 0 && number == 0 {
        let why = "it has no line of a journal";
        return Err(io::Error::new(ErrorKind::InvalidData, why));
    }
    let mut attempts: Vec<_> = listed.into_values().collect();
    attempts.sort_by_key(|(number, _)| *number);
    Ok(JournalContent {
        attempts: attempts.into_iter().map(|(_, attempt)| attempt).collect(),
        lists_unknown: unknown,
        damaged,
    })
}

/// Reads all lines: those that were carried from dropped files, then those of the oldest file first.
/// Returns the number of damaged ones, which are skipped. The last line is none of them if the journal
/// `is_written`.
fn for_each_line(
    path: &Path,
    is_written: impl Fn() -> bool,
    mut read: impl FnMut(Line<'static>),
) -> io::Result<u64> {
    let mut damaged = 0;
    let mut line = Vec::new();
    let mut is_last_torn = false;
    for file in files(path)?.into_iter().rev() {
        let mut file = BufReader::new(file);
        is_last_torn = false;
        while file.read_until(b'\n', &mut line)? > 0 {
            match serde_json::from_slice(&line) {
                Ok(line) => read(line),
                Err(_) if line == b"\n" => {}
                Err(_) => {
                    damaged += 1;
                    is_last_torn = !line.ends_with(b"\n");
                }
            }
            line.clear();
        }
    }
    Ok(damaged - u64::from(is_last_torn && is_written()))
}

/// Opens all files, the latest first, the carried lines last. With this order, a concurrent rotation
/// cannot hide a file: a file that it moves is found twice and used once. A line that is carried
/// meanwhile may be read twice.
fn files(path: &Path) -> io::Result<Vec<File>> {
    let mut files = vec![File::open(path)];
    // A rotation in progress leaves a gap of one.
    let mut number = 1;
    let mut gap = 0;
    while gap < 2 {
        let file = open_other(&older(path, number));
        gap = if file.is_err() { gap + 1 } else { 0 };
        files.push(file);
        number += 1;
    }
    files.extend([carry::dropped(path), carry::keys(path)].map(|path| open_other(&path)));
    let mut seen = Vec::new();
    let mut found = Vec::new();
    let mut missing = None;
    for file in files {
        match file {
            Ok(file) => {
                let identity = Identity::of(&file.metadata()?);
                if !seen.contains(&identity) {
                    seen.push(identity);
                    found.push(file);
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => missing = missing.or(Some(error)),
            Err(error) => return Err(error),
        }
    }
    match missing {
        Some(error) if found.is_empty() => Err(error),
        _ => Ok(found),
    }
}

// === impl JournalContent ===

impl JournalContent {
    /// Whether no attempt is open.
    pub fn is_settled(&self) -> bool {
        self.attempts.iter().all(|attempt| !attempt.is_open())
    }

    /// Returns the number of damaged lines.
    pub fn damaged(&self) -> u64 {
        self.damaged
    }

    /// Whether attempts whose outcome was unknown are listed.
    pub(crate) fn lists_unknown(&self) -> bool {
        self.lists_unknown
    }

    /// The listed attempts, in the order in which they were sent.
    pub(crate) fn attempts(&self) -> &[ListedAttempt] {
        &self.attempts
    }
}

// === impl ListedAttempt ===

impl ListedAttempt {
    fn of(sent: SentLine<'static>) -> Self {
        Self {
            sent,
            reason: None,
            resolution: None,
        }
    }

    /// Whether it is not known what CAMS has done.
    pub(crate) fn is_open(&self) -> bool {
        let mut results = self.resolution.iter().map(|resolution| resolution.result);
        results.all(|result| result == ResolvedAs::Ambiguous)
    }
}

// === impl Resolution ===

impl From<ResolvedLine<'static>> for Resolution {
    fn from(line: ResolvedLine<'static>) -> Self {
        Self {
            time: line.time,
            result: line.result,
            flow_id: line.flow_id,
            found: line.found,
        }
    }
}

// === impl KeyedAttempt ===

impl KeyedAttempt {
    fn of(sent: SentLine<'_>) -> Option<Self> {
        Some(Self {
            key: JournalOrder {
                name: sent.key?.into_owned(),
                fingerprint: sent.print?.into_owned(),
                kind: sent.kind,
                is_required: false,
                is_in_store: !sent.unprotected,
                flow_name: sent.flow_name.map(Cow::into_owned).unwrap_or_default(),
                space: sent.space.map(Cow::into_owned).unwrap_or_default(),
                categories: sent.categories.into_iter().map(Cow::into_owned).collect(),
            },
            attempt: sent.attempt.into_owned(),
            request_id: sent.request_id.into_owned(),
            account: sent.account.into_owned(),
            client: sent.client.into_owned(),
            time: time::parse(&sent.time),
            end: None,
            resolution: None,
        })
    }

    /// What its lines say together.
    pub(crate) fn known(&self) -> Known {
        let done = self.end.as_ref();
        let resolved = self.resolution.as_ref();
        known(
            done.map(|end| (end.outcome, end.flow_id.is_some())),
            resolved.map(|it| (it.result, it.flow_id.is_some())),
        )
    }
}
