//! Is a file still what was read? Its stamp is taken before it is opened, so a change while it is read is one.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::directory;

/// What tells that a file is another one now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stamp {
    /// When it was written, when that or who may read it was changed (seconds and nanoseconds), its length, its device
    /// and its number there.
    File(SystemTime, [i64; 2], u64, u64, u64),
    /// Which files of a directory are read: one more or one less is a change, what editors leave beside them is none.
    Directory(Vec<OsString>),
}

/// Of each file; none if it is not there, or is a pipe, which is read once.
pub(crate) type Stamps = BTreeMap<PathBuf, Option<Stamp>>;

/// The file's stamp now.
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
