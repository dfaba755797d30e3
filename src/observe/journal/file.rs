//! The rotating file of the journal. Several processes may write it.
//!
//! Each batch is one write of whole lines in append mode, so that lines of different processes do
//! not mix. A partly written line is terminated by the next write of any process, so that a reader
//! loses one line at most. The file is checked before each write: a full file is rotated under its
//! lock, and a file that was moved or removed is replaced.

use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::carry::{self, Carrier};
use super::line::Line;
use super::writer::{Sink, WriteResult};
use crate::config;

/// File mode: only the owner may read and write.
pub(super) const MODE: u32 = 0o600;

/// The current file of a journal.
pub(crate) struct RotatingFile {
    path: PathBuf,
    max_size: u64,
    keep: u32,
    file: File,
    identity: Identity,
    /// The file's length when it was last checked.
    size: u64,
    /// The lines of one write.
    buffer: Vec<u8>,
    /// Carries the keys of the oldest file before it is dropped.
    carrier: Option<Arc<Carrier>>,
}

/// Device and inode of a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity(u64, u64);

/// Returns the name of a rotated file. Higher numbers are older.
pub(super) fn older(path: &Path, number: u32) -> PathBuf {
    with_suffix(path, &format!(".{number}"))
}

/// Returns the name of another file of the journal at `path`.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Checked before a file is opened, because opening a pipe waits for a reader.
fn check_regular(path: &Path) -> io::Result<()> {
    match std::fs::metadata(path) {
        Ok(found) if !found.is_file() => Err(io::Error::new(
            ErrorKind::InvalidInput,
            "expected a regular file",
        )),
        _ => Ok(()),
    }
}

/// Opens a file beside the journal for reading; the error names it.
pub(super) fn open_other(path: &Path) -> io::Result<File> {
    let opened = check_regular(path).and_then(|()| File::open(path));
    opened.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

/// How much of a file is read to see whether it is a journal.
const HEAD: usize = 64 * 1024;

/// Returns an error if this is a file of something else, whose lines a journal would be mixed with.
pub(super) fn check_kind(path: &Path) -> io::Result<()> {
    check_regular(path)?;
    let mut head = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(HEAD as u64).read_to_end(&mut head)?,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if is_foreign(&head) {
        let why =
            "it is another file, without a line of a journal: name another one, or move it away";
        return Err(io::Error::new(ErrorKind::InvalidData, why));
    }
    Ok(())
}

/// Whether there are lines, and none is of a journal. A crash may leave torn lines, and zeros before or after
/// them.
fn is_foreign(head: &[u8]) -> bool {
    const BEGIN: &[u8] = b"{\"event\":\"";
    let mut lines = head
        .split(|byte| *byte == b'\n')
        .map(|line| line.split(|byte| *byte == 0).next().unwrap_or_default())
        .map(<[u8]>::trim_ascii)
        .filter(|line| !line.is_empty())
        .peekable();
    let is_own = |line: &[u8]| {
        line.starts_with(BEGIN)
            || line.len() > 1 && BEGIN.starts_with(line)
            || serde_json::from_slice::<Line<'_>>(line).is_ok()
    };
    lines.peek().is_some() && !lines.any(is_own)
}

/// Opens or creates a file for appending, readable only by its owner.
fn open(path: &Path) -> io::Result<File> {
    check_regular(path)?;
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(MODE)
        .open(path)?;
    if file.metadata()?.mode() & 0o777 & !MODE != 0 {
        file.set_permissions(Permissions::from_mode(MODE))?;
        tracing::warn!(path = %path.display(), "the journal was accessible to others; restricted to its owner");
    }
    Ok(file)
}

/// Whether the file's last line is incomplete: its writer was killed, or the disk was full.
fn is_torn(file: &File, size: u64) -> io::Result<bool> {
    let Some(last) = size.checked_sub(1) else {
        return Ok(false);
    };
    let mut byte = [0];
    file.read_exact_at(&mut byte, last)?;
    Ok(byte != *b"\n")
}

// === impl Identity ===

impl Identity {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self(metadata.dev(), metadata.ino())
    }
}

// === impl WriteResult ===

impl WriteResult {
    /// All lines are lost.
    fn all_lost(lines: &[Bytes], error: io::Error) -> Self {
        Self {
            lines: lines.len(),
            lost: lines.len(),
            error: Some(error),
        }
    }
}

// === impl RotatingFile ===

impl RotatingFile {
    pub(crate) fn open(config: &config::Journal) -> io::Result<Self> {
        Self::on(open(&config.path)?, config)
    }

    /// Uses a file that is already open.
    fn on(file: File, config: &config::Journal) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self {
            path: config.path.clone(),
            max_size: config.max_size as u64,
            keep: config.keep,
            file,
            identity: Identity::of(&metadata),
            size: metadata.len(),
            buffer: Vec::new(),
            carrier: None,
        })
    }

    /// Lets no file be dropped before its keys are carried.
    pub(super) fn carry_with(&mut self, carrier: Arc<Carrier>) {
        self.carrier = Some(carrier);
    }

    /// Fills the buffer with the first line and as many more as fit into the file. Returns where
    /// each line ends in the buffer.
    fn fill(&mut self, lines: &[Bytes], prepared: &io::Result<()>) -> io::Result<Vec<usize>> {
        // After an error, `self.size` may be the length of another file with this name.
        let size = if prepared.is_ok() {
            self.size
        } else {
            self.file.metadata()?.len()
        };
        self.buffer.clear();
        // An error here does not prevent the write.
        if is_torn(&self.file, size).unwrap_or(false) {
            self.buffer.push(b'\n');
        }
        let mut ends = Vec::with_capacity(lines.len());
        for line in lines {
            let end = self.buffer.len() + line.len();
            if !ends.is_empty() && size + end as u64 > self.max_size {
                break;
            }
            self.buffer.extend_from_slice(line);
            ends.push(end);
        }
        Ok(ends)
    }

    /// Makes one write; retries only if a signal interrupted it before it began.
    fn write_once(&self) -> io::Result<usize> {
        loop {
            match (&self.file).write(&self.buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                written => return written,
            }
        }
    }

    /// Rotates the file if it is full, and reopens it if the path no longer names this file.
    fn prepare(&mut self, more: u64) -> io::Result<()> {
        match self.look_for_room(more) {
            Some(true) => Ok(()),
            Some(false) => self.rotate(more),
            None => self.reopen(),
        }
    }

    /// Whether `more` bytes fit into the file; `None` if the path no longer names this file.
    fn look_for_room(&mut self, more: u64) -> Option<bool> {
        let found = std::fs::metadata(&self.path)
            .ok()
            .filter(|found| Identity::of(found) == self.identity)?;
        self.size = found.len();
        Some(self.size == 0 || self.size + more <= self.max_size)
    }

    fn reopen(&mut self) -> io::Result<()> {
        let file = open(&self.path)?;
        let metadata = file.metadata()?;
        self.file = file;
        self.identity = Identity::of(&metadata);
        self.size = metadata.len();
        Ok(())
    }

    /// Rotates the full file, unless another process does so or has done so since the check: if
    /// both did, an almost empty file would push out an older one. Does not wait for the lock,
    /// because its holder may be stopped: in that case the line is written to the full file.
    fn rotate(&mut self, more: u64) -> io::Result<()> {
        // Other errors mean that the file system has no locks; there, only one process may write
        // the journal.
        if flock(&self.file, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
            return Ok(());
        }
        let moved = match self.look_for_room(more) {
            Some(true) => Ok(()),
            Some(false) => match self.shift_files() {
                Ok(true) => self.reopen(),
                Ok(false) => Ok(()),
                Err(error) => Err(error),
            },
            None => self.reopen(),
        };
        // If the file was reopened, the lock ended with the old descriptor.
        let _unlocked = flock(&self.file, FlockOperation::Unlock);
        moved
    }

    /// Renames the files, the oldest first. The last one is overwritten, or its keys are carried.
    /// Returns false if the files must stay where they are, because keys are still being carried.
    fn shift_files(&self) -> io::Result<bool> {
        if !self.drop_oldest()? {
            return Ok(false);
        }
        for number in (1..self.keep).rev() {
            match std::fs::rename(older(&self.path, number), older(&self.path, number + 1)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        std::fs::rename(&self.path, older(&self.path, 1))?;
        Ok(true)
    }

    /// Makes room for the last file but one. Returns whether there is room.
    fn drop_oldest(&self) -> io::Result<bool> {
        let Some(carrier) = self.carrier.as_ref().filter(|it| it.is_on()) else {
            return Ok(true);
        };
        let dropped = carry::dropped(&self.path);
        if dropped.try_exists()? {
            carrier.start();
            return Ok(false);
        }
        // There are more files than `keep` if it was larger before. Each is read before the newer
        // ones, so the oldest must go first.
        let oldest = (self.keep..).take_while(|number| older(&self.path, *number).exists());
        let Some(oldest) = oldest.last() else {
            return Ok(true);
        };
        std::fs::rename(older(&self.path, oldest), dropped)?;
        carrier.start();
        Ok(oldest == self.keep)
    }
}

impl Sink for RotatingFile {
    fn append(&mut self, lines: &[Bytes]) -> WriteResult {
        let prepared = self.prepare(lines.first().map_or(0, |line| line.len() as u64));
        let ends = match self.fill(lines, &prepared) {
            Ok(ends) => ends,
            Err(error) => return WriteResult::all_lost(lines, error),
        };
        let written = match self.write_once() {
            Ok(written) => written,
            Err(error) => return WriteResult::all_lost(lines, error),
        };
        let whole = ends.iter().take_while(|end| **end <= written).count();
        if whole == ends.len() {
            return WriteResult {
                lines: whole,
                lost: 0,
                error: prepared.err(),
            };
        }
        let error = io::Error::new(ErrorKind::WriteZero, "only part of a line was written");
        WriteResult {
            lines: whole + 1,
            lost: 1,
            error: Some(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_file_is_recognised_and_a_damaged_journal_is_not_taken_for_one() {
        let line = "{\"event\":\"sent\"}\n";
        let zeros = "\0\0\0\"flow_id\":\"1\"}\n";
        let torn = "{\"event\":\"sent\",\"att\0\0\0";
        for journal in ["", "\n", "\r\n", "{\"ev\n", "\0\0\0\0", zeros, torn, line] {
            assert!(!is_foreign(journal.as_bytes()), "{journal:?}");
            assert!(!is_foreign(format!("torn\n{line}{journal}").as_bytes()));
        }
        for other in [
            "hello\nworld",
            "hello",
            "root:x:0:0\n",
            "[]\n[1]\n",
            "{\n  \"a\": 1\n}\n",
            "{\"level\":\"INFO\",\"event\":\"sent\"}\n",
            "server\n{\n  listen 80;\n}\n",
            "\u{7f}ELF\0\0\0\0",
        ] {
            assert!(is_foreign(other.as_bytes()), "{other:?}");
        }
    }

    impl RotatingFile {
        /// Writes one line.
        fn write(&mut self, line: &[u8]) -> io::Result<()> {
            let WriteResult { lines, error, .. } = self.append(&[Bytes::copy_from_slice(line)]);
            assert_eq!(lines, 1);
            error.map_or(Ok(()), Err)
        }
    }

    /// A file of at most `max_size` bytes in this folder.
    fn file(folder: &tempfile::TempDir, max_size: usize) -> (PathBuf, RotatingFile) {
        let path = folder.path().join("journal");
        let file = RotatingFile::open(&config::Journal {
            path: path.clone(),
            max_size,
            keep: 2,
        })
        .unwrap();
        (path, file)
    }

    fn text(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap()
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn full_files_are_rotated_and_the_oldest_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let (path, mut file) = file(&folder, 8);
        for line in [
            "one\n",
            "two\n",
            "three\n",
            "longer than a file\n",
            "five\n",
        ] {
            file.write(line.as_bytes()).unwrap();
        }
        let kept = [path.clone(), older(&path, 1), older(&path, 2)];
        assert_eq!(
            kept.each_ref().map(|path| text(path)),
            ["five\n", "longer than a file\n", "three\n"]
        );
        assert_eq!(kept.each_ref().map(|path| mode(path)), [MODE; 3]);
        assert!(!older(&path, 3).exists());
    }

    #[test]
    fn an_existing_file_is_restricted_to_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        std::fs::write(&path, "before\n").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let (path, mut file) = file(&folder, 100);
        file.write(b"after\n").unwrap();
        assert_eq!(
            (text(&path).as_str(), mode(&path)),
            ("before\nafter\n", MODE)
        );
    }

    #[test]
    fn an_incomplete_line_is_terminated_before_the_next() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("journal"), "whole\nto").unwrap();
        let (path, mut file) = file(&folder, 100);
        file.write(b"next\n").unwrap();
        file.write(b"last\n").unwrap();
        assert_eq!(text(&path), "whole\nto\nnext\nlast\n");
    }

    #[test]
    fn an_incomplete_line_of_another_process_is_terminated_before_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let (path, mut file) = file(&folder, 100);
        file.write(b"one\n").unwrap();
        let mut other = OpenOptions::new().append(true).open(&path).unwrap();
        other.write_all(b"tw").unwrap();
        file.write(b"three\n").unwrap();
        other.write_all(b"four\n").unwrap();
        file.write(b"five\n").unwrap();
        assert_eq!(text(&path), "one\ntw\nthree\nfour\nfive\n");
    }

    #[test]
    fn a_file_that_two_writers_find_full_is_rotated_once() {
        let folder = tempfile::tempdir().unwrap();
        let (path, mut first) = file(&folder, 8);
        first.write(b"one\n").unwrap();
        first.write(b"two\n").unwrap();
        let (_, mut second) = file(&folder, 8);
        assert_eq!(
            [&mut first, &mut second].map(|file| file.look_for_room(6)),
            [Some(false); 2]
        );
        first.rotate(6).unwrap();
        first.write(b"three\n").unwrap();
        second.rotate(5).unwrap();
        second.write(b"4\n").unwrap();
        assert_eq!(
            (text(&path).as_str(), text(&older(&path, 1)).as_str()),
            ("three\n4\n", "one\ntwo\n")
        );
        assert!(!older(&path, 2).exists());
    }

    #[test]
    fn concurrent_writers_lose_no_line_and_rotate_only_full_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let config = config::Journal {
            path: path.clone(),
            max_size: 80,
            keep: 200,
        };
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let mut file = RotatingFile::open(&config).unwrap();
                scope.spawn(move || {
                    for line in 0..500 {
                        file.write(format!("{writer}-{line:05}\n").as_bytes())
                            .unwrap();
                    }
                });
            }
        });
        let older: Vec<_> = (1..)
            .map(|number| older(&path, number))
            .take_while(|path| path.exists())
            .collect();
        assert!(older.len() > 5, "{}", older.len());
        for path in &older {
            assert!(
                text(path).len() > 80 - 8,
                "{}: {}",
                path.display(),
                text(path)
            );
        }
        let all: String = older.iter().chain([&path]).map(|path| text(path)).collect();
        let lines: std::collections::BTreeSet<_> = all.lines().collect();
        assert_eq!((lines.len(), all.lines().count()), (2000, 2000));
    }

    #[test]
    fn a_writer_does_not_wait_for_another_rotation() {
        let folder = tempfile::tempdir().unwrap();
        let (path, mut file) = file(&folder, 8);
        file.write(b"one\n").unwrap();
        let other = File::open(&path).unwrap();
        flock(&other, FlockOperation::LockExclusive).unwrap();
        file.write(b"two too many\n").unwrap();
        assert_eq!(text(&path), "one\ntwo too many\n");
        drop(other);
        file.write(b"three\n").unwrap();
        assert_eq!(
            (text(&path).as_str(), text(&older(&path, 1)).as_str()),
            ("three\n", "one\ntwo too many\n")
        );
    }

    #[test]
    fn a_file_that_was_moved_or_removed_is_created_again() {
        let folder = tempfile::tempdir().unwrap();
        let (path, mut file) = file(&folder, 100);
        file.write(b"one\n").unwrap();
        std::fs::rename(&path, older(&path, 1)).unwrap();
        file.write(b"two\n").unwrap();
        std::fs::remove_file(&path).unwrap();
        file.write(b"three\n").unwrap();
        assert_eq!(
            (text(&path).as_str(), text(&older(&path, 1)).as_str()),
            ("three\n", "one\n")
        );
        assert_eq!(mode(&path), MODE);
    }

    #[test]
    fn if_the_rotation_fails_the_full_file_is_written_and_the_error_is_returned() {
        let folder = tempfile::tempdir().unwrap();
        let (path, mut file) = file(&folder, 8);
        file.write(b"one\n").unwrap();
        // A file cannot take a folder's name.
        std::fs::write(older(&path, 1), "").unwrap();
        std::fs::create_dir(older(&path, 2)).unwrap();
        file.write(b"two too many\n").unwrap_err();
        assert_eq!(text(&path), "one\ntwo too many\n");
        std::fs::remove_dir(older(&path, 2)).unwrap();
        file.write(b"three\n").unwrap();
        assert_eq!(
            (text(&path).as_str(), text(&older(&path, 1)).as_str()),
            ("three\n", "one\ntwo too many\n")
        );
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let config = config::Journal {
            path: "/dev/full".into(),
            max_size: 100,
            keep: 1,
        };
        let file = OpenOptions::new().append(true).open(&config.path).unwrap();
        let mut file = RotatingFile::on(file, &config).unwrap();
        assert_eq!(
            file.write(b"line\n").unwrap_err().kind(),
            ErrorKind::StorageFull
        );
    }

    #[test]
    fn only_a_regular_file_is_accepted() {
        for path in ["/dev/null", "/tmp"] {
            let config = config::Journal {
                path: path.into(),
                max_size: 100,
                keep: 1,
            };
            let refused = RotatingFile::open(&config).err().unwrap();
            assert_eq!(refused.to_string(), "expected a regular file");
        }
    }
}
