//! Detects that another process writes the same journal. Each process locks the file `path.lock`
//! until it ends: a lock on the journal itself would not survive a rotation, and is used by it
//! (`journal/file.rs`). Readers keep no lock.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, retry_on_intr};

use super::file::MODE;

/// The lock of a journal; released when it is dropped.
pub(super) struct JournalLock {
    /// `None`: the file cannot be created, or its file system has no locks.
    file: Option<File>,
}

/// Returns the name of the lock's file.
fn lock_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

fn open(path: &Path) -> io::Result<File> {
    // Some network file systems lock only files that are open for writing.
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(MODE)
        .open(path)
}

// === impl JournalLock ===

impl JournalLock {
    /// Takes the lock of the journal at `path`. Returns it, and whether another process has it.
    ///
    /// Without locks it cannot be known whether there is another process. That is no error.
    pub(super) fn take(path: &Path) -> (Self, bool) {
        let path = lock_path(path);
        let opened = open(&path).and_then(|file| {
            let lock = Self { file: Some(file) };
            let is_taken = lock.retry()?;
            Ok((lock, !is_taken))
        });
        opened.unwrap_or_else(|error| {
            tracing::info!(
                path = %path.display(),
                %error,
                "the journal cannot be locked; another process that writes it is not noticed"
            );
            (Self { file: None }, false)
        })
    }

    /// Whether a process has the lock of the journal at `path`. A process that starts at the same moment may
    /// take this question for another process.
    pub(super) fn is_held(path: &Path) -> bool {
        let Ok(file) = File::open(lock_path(path)) else {
            return false;
        };
        let tried = retry_on_intr(|| flock(&file, FlockOperation::NonBlockingLockShared));
        tried == Err(Errno::WOULDBLOCK)
    }

    /// Takes the lock if it is free. Returns whether this process has it.
    pub(super) fn retry(&self) -> io::Result<bool> {
        let Some(file) = &self.file else {
            return Ok(false);
        };
        match retry_on_intr(|| flock(file, FlockOperation::NonBlockingLockExclusive)) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn the_second_lock_of_a_journal_is_taken_when_the_first_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let (first, is_shared) = JournalLock::take(&path);
        assert!(!is_shared);
        let (second, is_shared) = JournalLock::take(&path);
        assert!(is_shared && !second.retry().unwrap());
        assert!(JournalLock::is_held(&path));
        drop(first);
        assert!(!JournalLock::is_held(&path));
        assert!(second.retry().unwrap());
        let (_third, is_shared) = JournalLock::take(&path);
        assert!(is_shared);
        let mode = std::fs::metadata(lock_path(&path)).unwrap().mode();
        assert_eq!(mode & 0o777, MODE);
    }

    #[test]
    fn journals_in_one_folder_have_locks_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let (_one, _) = JournalLock::take(&folder.path().join("one"));
        let (_two, is_shared) = JournalLock::take(&folder.path().join("two"));
        assert!(!is_shared);
    }

    #[test]
    fn a_journal_whose_lock_cannot_be_created_counts_as_not_shared() {
        let folder = tempfile::tempdir().unwrap();
        let (lock, is_shared) = JournalLock::take(&folder.path().join("missing/journal"));
        assert!(!is_shared && !lock.retry().unwrap());
    }
}
