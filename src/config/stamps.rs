//! Detects whether a file has changed since it was read. The stamp is taken before the file is
//! opened, so a change during the read is detected.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::directory;

/// The identity and version of a file or directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stamp {
    /// mtime, ctime (seconds and nanoseconds), length, device and inode.
    File(SystemTime, [i64; 2], u64, u64, u64),
    /// The names of the configuration files in a directory. Other files, such as those that
    /// editors create, do not matter.
    Directory(Vec<OsString>),
}

/// The stamp of each path. `None`: the path does not exist, or is a pipe, which is read once.
pub(crate) type Stamps = BTreeMap<PathBuf, Option<Stamp>>;

/// Returns the current stamp of a path.
pub(crate) fn stamp(path: &Path) -> Option<Stamp> {
    let file = std::fs::metadata(path).ok()?;
    if file.is_dir() {
        return directory::list(path).ok().map(Stamp::Directory);
    }
    let written = file.is_file().then(|| file.modified().ok())??;
    Some(Stamp::File(
        written,
        [file.ctime(), file.ctime_nsec()],
        file.len(),
        file.dev(),
        file.ino(),
    ))
}
