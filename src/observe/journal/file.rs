//! How do lines get into the file, and which file? By one write of whole lines at its end, so that none is mixed with
//! another process's; into a new file when this one is full, was moved or is gone. A write that got only a part of a line
//! in is ended by the next one, of any process, so that a reader loses one line and no more. Others may write the same
//! file: what it is now is looked at before each write, and a process that moves a full one holds its lock meanwhile.

use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::writer::{Appended, Sink};
use crate::config;

/// Read and written by its owner alone.
const MODE: u32 = 0o600;

/// The file that is written now.
pub(crate) struct RotatingFile {
    path: PathBuf,
    max_size: u64,
    keep: u32,
    file: File,
    identity: Identity,
    /// Its length, as it was seen last.
    size: u64,
    /// What is written at once.
    buffer: Vec<u8>,
}

/// What tells a file from another one of the same name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity(u64, u64);

/// The older files' names: the number grows with the age.
pub(super) fn older(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// Opens a file for appending, or makes it, and sees to it that only its owner can read it.
fn open(path: &Path) -> io::Result<File> {
    match std::fs::metadata(path) {
        // Asked before it is opened, because opening a pipe waits for a reader.
        Ok(found) if !found.is_file() => {
            return Err(io::Error::new(
                ErrorKind::InvalidInput,
                "expected a regular file",
            ));
        }
        _ => {}
    }
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(MODE)
        .open(path)?;
    if file.metadata()?.mode() & 0o777 & !MODE != 0 {
        file.set_permissions(Permissions::from_mode(MODE))?;
        tracing::warn!(path = %path.display(), "others could read the journal: now only its owner can");
    }
    Ok(file)
}

/// Whether the file's last line has no end: its writer was stopped, or its disk was full.
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

// === impl RotatingFile ===

impl RotatingFile {
    pub(crate) fn open(config: &config::Journal) -> io::Result<Self> {
        let config::Journal {
            path,
            max_size,
            keep,
        } = config;
        Self::on(open(path)?, path, (*max_size as u64, *keep))
    }

    /// On a file that is open.
    fn on(file: File, path: &Path, (max_size, keep): (u64, u32)) -> io::Result<Self> {
        let found = file.metadata()?;
        let (identity, size) = (Identity::of(&found), found.len());
        Ok(Self {
            path: path.to_owned(),
            max_size,
            keep,
            file,
            identity,
            size,
            buffer: Vec::new(),
        })
    }

    /// Puts the first of these lines into the buffer, and as many more as the file has room for. Where each one ends there.
    fn fill(&mut self, lines: &[Bytes], prepared: &io::Result<()>) -> io::Result<Vec<usize>> {
        // What was seen is the file of this name, and that may be another one still.
        let size = if prepared.is_ok() {
            self.size
        } else {
            self.file.metadata()?.len()
        };
        self.buffer.clear();
        // A file that cannot be read is no reason to lose the line.
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

    /// One write, however often a signal comes before it has begun.
    fn write_once(&self) -> io::Result<usize> {
        loop {
            match (&self.file).write(&self.buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                written => return written,
            }
        }
    }

    /// Takes the next file when this one is full, and the file of this name when that is another one now.
    fn prepare(&mut self, more: u64) -> io::Result<()> {
        match self.has_room(more) {
            Some(true) => Ok(()),
            Some(false) => self.move_on(more),
            None => self.reopen(),
        }
    }

    /// Whether so many bytes more may go into the file; none if another one has its name, or none has.
    fn has_room(&mut self, more: u64) -> Option<bool> {
        let found = std::fs::metadata(&self.path)
            .ok()
            .filter(|found| Identity::of(found) == self.identity)?;
        self.size = found.len();
        Some(self.size == 0 || self.size + more <= self.max_size)
    }

    fn reopen(&mut self) -> io::Result<()> {
        let buffer = std::mem::take(&mut self.buffer);
        *self = Self {
            buffer,
            ..Self::on(open(&self.path)?, &self.path, (self.max_size, self.keep))?
        };
        Ok(())
    }

    /// Moves the full file on and takes a new one, unless another process does so, or has done so since it was seen full:
    /// moved by both, a file with a line or two would push out an older one. Nobody waits for the lock, because who holds
    /// it may have been stopped: the line goes into the full file then.
    fn move_on(&mut self, more: u64) -> io::Result<()> {
        // Where there are no locks, which is another error, one process at a time writes the journal.
        if flock(&self.file, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
            return Ok(());
        }
        let moved = match self.has_room(more) {
            Some(true) => Ok(()),
            Some(false) => self.make_room().and_then(|()| self.reopen()),
            None => self.reopen(),
        };
        // That of a file that is open no more has gone with it.
        let _unlocked = flock(&self.file, FlockOperation::Unlock);
        moved
    }

    /// Renames the files, the oldest first, which is overwritten.
    fn make_room(&self) -> io::Result<()> {
        for number in (1..self.keep).rev() {
            match std::fs::rename(older(&self.path, number), older(&self.path, number + 1)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        std::fs::rename(&self.path, older(&self.path, 1))
    }
}

impl Sink for RotatingFile {
    fn append(&mut self, lines: &[Bytes]) -> Appended {
        let prepared = self.prepare(lines.first().map_or(0, |line| line.len() as u64));
        let all_lost = |error| Appended {
            lines: lines.len(),
            lost: lines.len(),
            error: Some(error),
        };
        let ends = match self.fill(lines, &prepared) {
            Ok(ends) => ends,
            Err(error) => return all_lost(error),
        };
        let written = match self.write_once() {
            Ok(written) => written,
            Err(error) => return all_lost(error),
        };
        let whole = ends.iter().take_while(|end| **end <= written).count();
        if whole == ends.len() {
            return Appended {
                lines: whole,
                lost: 0,
                error: prepared.err(),
            };
        }
        let error = io::Error::new(
            ErrorKind::WriteZero,
            "only a part of a line could be written",
        );
        Appended {
            lines: whole + 1,
            lost: 1,
            error: Some(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl RotatingFile {
        /// Writes one line.
        fn write(&mut self, line: &[u8]) -> io::Result<()> {
            let Appended { lines, error, .. } = self.append(&[Bytes::copy_from_slice(line)]);
            assert_eq!(lines, 1);
            error.map_or(Ok(()), Err)
        }
    }

    /// A file in this folder, of so many bytes at most.
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
    fn full_files_move_on_and_the_oldest_goes() {
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
    fn what_others_could_read_they_can_read_no_more() {
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
    fn a_line_that_was_torn_is_ended_before_the_next() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("journal"), "whole\nto").unwrap();
        let (path, mut file) = file(&folder, 100);
        file.write(b"next\n").unwrap();
        file.write(b"last\n").unwrap();
        assert_eq!(text(&path), "whole\nto\nnext\nlast\n");
    }

    #[test]
    fn a_line_that_another_process_has_torn_is_ended_before_the_next() {
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
    fn a_file_that_two_have_seen_full_moves_on_once() {
        let folder = tempfile::tempdir().unwrap();
        let (path, mut first) = file(&folder, 8);
        first.write(b"one\n").unwrap();
        first.write(b"two\n").unwrap();
        let (_, mut second) = file(&folder, 8);
        assert_eq!(
            [&mut first, &mut second].map(|file| file.has_room(6)),
            [Some(false); 2]
        );
        first.move_on(6).unwrap();
        first.write(b"three\n").unwrap();
        second.move_on(5).unwrap();
        second.write(b"4\n").unwrap();
        assert_eq!(
            (text(&path).as_str(), text(&older(&path, 1)).as_str()),
            ("three\n4\n", "one\ntwo\n")
        );
        assert!(!older(&path, 2).exists());
    }

    #[test]
    fn many_at_once_lose_no_line_and_move_only_full_files_on() {
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
    fn who_moves_the_file_on_is_not_waited_for() {
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
    fn a_file_that_was_moved_or_removed_is_made_anew() {
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
    fn where_no_new_file_can_be_made_the_open_one_is_written_and_the_error_told() {
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
        let full = Path::new("/dev/full");
        let file = OpenOptions::new().append(true).open(full).unwrap();
        let mut file = RotatingFile::on(file, full, (100, 1)).unwrap();
        assert_eq!(
            file.write(b"line\n").unwrap_err().kind(),
            ErrorKind::StorageFull
        );
    }

    #[test]
    fn only_a_regular_file_will_do() {
        let config = |path: &str| config::Journal {
            path: path.into(),
            max_size: 100,
            keep: 1,
        };
        for path in ["/dev/null", "/tmp"] {
            let refused = RotatingFile::open(&config(path)).err().unwrap();
            assert_eq!(refused.to_string(), "expected a regular file");
        }
    }
}
