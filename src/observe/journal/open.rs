//! Reads a journal, from the oldest file to the latest, and lists the attempts without an end: they
//! are still in flight, or a crash interrupted them. Damaged lines are counted and skipped.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind};
use std::path::Path;
use std::time::SystemTime;

use super::JournalOrder;
use super::file::{Identity, older};
use super::line::{Line, Outcome, ResolvedAs, SentLine};
use crate::acs::time;

/// The content of a journal.
pub struct JournalContent {
    /// Open attempts in the order in which they were sent.
    pub(super) open: Vec<SentLine<'static>>,
    damaged: u64,
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
    pub(crate) result: ResolvedAs,
    pub(crate) flow_id: Option<String>,
    /// What only an operator can judge.
    pub(crate) found: Option<String>,
}

/// How an attempt of a call with a record has ended.
#[derive(Debug)]
pub(crate) struct KeyedEnd {
    pub(crate) outcome: Outcome,
    pub(crate) flow_id: Option<String>,
    /// CAMS's request id.
    pub(crate) request_id: Option<String>,
    /// Why the outcome is unknown.
    pub(crate) reason: Option<String>,
}

/// Reads the attempts of calls with a record, in the order in which they were sent. Damaged lines
/// are skipped.
pub(crate) fn keyed(path: &Path) -> io::Result<Vec<KeyedAttempt>> {
    let mut attempts: Vec<KeyedAttempt> = Vec::new();
    let mut by_name = HashMap::new();
    for_each_line(path, |line| match serde_json::from_slice(line) {
        Ok(Line::Sent(sent)) => {
            let name = sent.attempt.clone().into_owned();
            if let Some(attempt) = KeyedAttempt::of(sent) {
                by_name.insert(name, attempts.len());
                attempts.push(attempt);
            }
        }
        Ok(Line::Done(done)) => {
            if let Some(&index) = by_name.get(&*done.attempt) {
                attempts[index].end = Some(KeyedEnd {
                    outcome: done.outcome,
                    flow_id: done.flow_id.map(Cow::into_owned),
                    request_id: done.cams_request_id.map(Cow::into_owned),
                    reason: done.reason.map(Cow::into_owned),
                });
            }
        }
        Ok(Line::Resolved(resolved)) => {
            if let Some(&index) = by_name.get(&*resolved.attempt) {
                attempts[index].resolution = Some(KeyedResolution {
                    result: resolved.result,
                    flow_id: resolved.flow_id.map(Cow::into_owned),
                    found: resolved.found.map(Cow::into_owned),
                });
            }
        }
        Err(_) => {}
    })?;
    Ok(attempts)
}

/// Reads the journal with its rotated files. With `unknown`, attempts that ended with an unknown
/// outcome are included.
pub fn read(path: &Path, unknown: bool) -> io::Result<JournalContent> {
    let mut sent = HashMap::new();
    let mut damaged = 0;
    let mut number = 0_u64;
    for_each_line(path, |line| {
        number += 1;
        match serde_json::from_slice::<Line<'static>>(line) {
            Ok(Line::Sent(attempt)) => {
                sent.insert(attempt.attempt.clone().into_owned(), (number, attempt));
            }
            Ok(Line::Done(done)) if unknown && done.outcome == Outcome::Unknown => {}
            Ok(Line::Done(done)) => {
                sent.remove(&*done.attempt);
            }
            Ok(Line::Resolved(resolved)) if resolved.result == ResolvedAs::Ambiguous => {}
            Ok(Line::Resolved(resolved)) => {
                sent.remove(&*resolved.attempt);
            }
            Err(_) if line.is_empty() => {}
            Err(_) => damaged += 1,
        }
    })?;
    let mut open: Vec<_> = sent.into_values().collect();
    open.sort_by_key(|(number, _)| *number);
    Ok(JournalContent {
        open: open.into_iter().map(|(_, attempt)| attempt).collect(),
        damaged,
    })
}

/// Reads all lines, those of the oldest file first.
fn for_each_line(path: &Path, mut read: impl FnMut(&[u8])) -> io::Result<()> {
    for file in files(path)?.into_iter().rev() {
        for line in BufReader::new(file).split(b'\n') {
            read(&line?);
        }
    }
    Ok(())
}

/// Opens all files, the latest first. With this order, a concurrent rotation cannot hide a file: a
/// file that it moves is found twice and used once.
fn files(path: &Path) -> io::Result<Vec<File>> {
    let mut files = vec![File::open(path)];
    // A rotation in progress leaves a gap of one.
    let mut number = 1;
    let mut gap = 0;
    while gap < 2 {
        let file = File::open(older(path, number));
        gap = if file.is_err() { gap + 1 } else { 0 };
        files.push(file);
        number += 1;
    }
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
    /// Whether every attempt has ended.
    pub fn is_settled(&self) -> bool {
        self.open.is_empty()
    }

    /// Returns the number of damaged lines.
    pub fn damaged(&self) -> u64 {
        self.damaged
    }

    /// The open attempts, in the order in which they were sent.
    pub(crate) fn open(&self) -> &[SentLine<'static>] {
        &self.open
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
}
