//! Is a file still what was read? Its stamp is taken before it is opened, so a change while it is read is one.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What tells that a file is another one now: when it was written, when that or who may read it was changed (seconds and
/// nanoseconds), its length, its device and its number there.
pub(crate) type Stamp = (SystemTime, [i64; 2], u64, u64, u64);

/// Of each file; none if it is not there, or is a pipe, which is read once.
pub(crate) type Stamps = BTreeMap<PathBuf, Option<Stamp>>;

/// The file's stamp now.
pub(crate) fn stamp(path: &Path) -> Option<Stamp> {
    let file = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
    Some((file.modified().ok()?, [file.ctime(), file.ctime_nsec()], file.len(), file.dev(), file.ino()))
}
