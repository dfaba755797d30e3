//! Reads the configuration's files: one file, or those of a directory, merged in order of name. A
//! syntax error in any of them ends the check, because later mistakes would only follow from it.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::directory;
use super::entries::Entries;
use super::file::{self, Item, Node};
use super::merge::Merge;
use super::mistakes::{FileId, FileNames, Mistake, Mistakes, Origin};
use super::secrets::unreadable;
use super::stamps::{Stamp, Stamps, stamp};
use super::units::Size;

/// The merged content of the configuration's files.
pub(super) struct Sources {
    pub(super) names: FileNames,
    /// The directory that relative paths start from.
    pub(super) folder: PathBuf,
    /// The stamps of the files, taken before they were read.
    pub(super) stamps: Stamps,
    pub(super) root: Node,
    /// Keys that are set in more than one file.
    pub(super) mistakes: Vec<Mistake>,
}

/// Maximum size of all files together, in bytes.
const MAX_BYTES: u64 = 64 << 20;

/// How the path was given, for error messages.
const PATH: &str = "(--config, FLOWGATE_CONFIG)";

/// Reads the file or the directory. Without a path, the tree is empty.
pub(super) fn read(path: Option<&Path>) -> Result<Sources, Mistakes> {
    match path {
        None => Ok(Sources {
            names: FileNames::default(),
            folder: PathBuf::new(),
            stamps: Stamps::new(),
            root: Node {
                origin: Origin::Nowhere,
                item: Item::Table(Entries::default()),
            },
            mistakes: Vec::new(),
        }),
        Some(path) if path.is_dir() => all_of(path, MAX_BYTES),
        Some(path) => one(path, MAX_BYTES),
    }
}

fn one(path: &Path, max: u64) -> Result<Sources, Mistakes> {
    let stamps: Stamps = [(path.to_owned(), stamp(path))].into();
    let mut names = FileNames::default();
    let file = names.add(path);
    let folder = path.parent().map_or_else(PathBuf::new, Path::to_owned);
    match parse(read_one(path, max), file) {
        Ok(root) => Ok(Sources {
            names,
            folder,
            stamps,
            root,
            mistakes: Vec::new(),
        }),
        Err(mistakes) => Err(Mistakes::new(names, mistakes, stamps)),
    }
}

fn read_one(path: &Path, max: u64) -> Result<String, String> {
    let opened = File::open(path).map_err(|error| format!("{} {PATH}", unreadable(&error)))?;
    let length = opened
        .metadata()
        .ok()
        .filter(std::fs::Metadata::is_file)
        .map(|about| about.len());
    if let Some(length) = length.filter(|length| *length > max) {
        return Err(format!(
            "expected a file of at most {}, found {}",
            bytes(max),
            bytes(length)
        ));
    }
    text(opened, length, max).map_err(|wrong| match wrong {
        Wrong::Unreadable(error) => format!("{} {PATH}", unreadable(&error)),
        Wrong::TooLong => format!("expected a file of at most {}, found more", bytes(max)),
        Wrong::NotUtf8 => "expected a file in UTF-8".to_owned(),
    })
}

/// Parses what was read, or turns the reason why it could not be read into a mistake.
fn parse(read: Result<String, String>, file: FileId) -> Result<Node, Vec<Mistake>> {
    match read {
        Ok(text) => file::parse(&text, file),
        Err(expectation) => Err(vec![in_whole_file(file, expectation)]),
    }
}

fn in_whole_file(file: FileId, expectation: String) -> Mistake {
    Mistake {
        origin: file.whole(),
        key: String::new(),
        expectation,
    }
}

fn all_of(path: &Path, max: u64) -> Result<Sources, Mistakes> {
    let mut names = FileNames::default();
    let listed = match directory::list(path) {
        Ok(listed) => listed,
        Err(error) => {
            let why = match error.kind() {
                ErrorKind::PermissionDenied => {
                    "permission denied: the user that runs Flowgate may not list the directory"
                        .to_owned()
                }
                kind => format!("cannot read the directory: {kind}"),
            };
            let mistake = in_whole_file(names.add(path), format!("{why} {PATH}"));
            let stamps = [(path.to_owned(), None)].into();
            return Err(Mistakes::new(names, vec![mistake], stamps));
        }
    };
    let mut stamps: Stamps = [(path.to_owned(), Some(Stamp::Directory(listed.clone())))].into();
    // A directory without files belongs to something else, or its volume is not mounted yet.
    if listed.is_empty() {
        let expectation = format!("expected a directory with at least one *.toml file {PATH}");
        let mistake = in_whole_file(names.add(path), expectation);
        return Err(Mistakes::new(names, vec![mistake], stamps));
    }
    let mut roots = Vec::new();
    let mut mistakes = Vec::new();
    let mut total = 0;
    for name in listed {
        let path = path.join(name);
        let file = names.add(&path);
        stamps.insert(path.clone(), stamp(&path));
        match parse(part(&path, &mut total, max), file) {
            Ok(root) => roots.push(root),
            Err(found) => mistakes.extend(found),
        }
    }
    if !mistakes.is_empty() {
        return Err(Mistakes::new(names, mistakes, stamps));
    }
    let mut merge = Merge::new(&names);
    roots.into_iter().for_each(|root| merge.add(root));
    let (root, mistakes) = merge.done();
    Ok(Sources {
        names,
        folder: path.to_owned(),
        stamps,
        root,
        mistakes,
    })
}

/// Reads a file of the directory. `total` counts the bytes of all of them.
fn part(path: &Path, total: &mut u64, max: u64) -> Result<String, String> {
    // Checked before the file is opened, because opening a pipe waits for a writer.
    let metadata = std::fs::metadata(path).map_err(|error| unreadable(&error))?;
    if !metadata.is_file() {
        return Err("expected a regular file: every *.toml of the directory is read".to_owned());
    }
    *total += metadata.len();
    if *total > max {
        return Err(too_long(*total, max));
    }
    let opened = File::open(path).map_err(|error| unreadable(&error))?;
    text(opened, Some(metadata.len()), max).map_err(|wrong| match wrong {
        Wrong::Unreadable(error) => unreadable(&error),
        Wrong::TooLong => too_long(max + 1, max),
        Wrong::NotUtf8 => "expected a file in UTF-8".to_owned(),
    })
}

fn too_long(total: u64, max: u64) -> String {
    format!(
        "expected at most {} in all files of the directory, found {} with this one",
        bytes(max),
        bytes(total)
    )
}

/// Why a file has no usable text.
enum Wrong {
    Unreadable(std::io::Error),
    TooLong,
    NotUtf8,
}

fn text(file: File, length: Option<u64>, max: u64) -> Result<String, Wrong> {
    let mut bytes = Vec::with_capacity(
        length
            .and_then(|length| usize::try_from(length + 1).ok())
            .unwrap_or(0),
    );
    file.take(max + 1)
        .read_to_end(&mut bytes)
        .map_err(Wrong::Unreadable)?;
    if bytes.len() as u64 > max {
        return Err(Wrong::TooLong);
    }
    String::from_utf8(bytes).map_err(|_| Wrong::NotUtf8)
}

fn bytes(bytes: u64) -> Size {
    Size(usize::try_from(bytes).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_limit_applies_to_all_files_of_a_directory_together() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["a.toml", "b.toml", "c.toml"] {
            std::fs::write(directory.path().join(name), "# ".repeat(16)).unwrap();
        }
        assert!(all_of(directory.path(), 96).is_ok());
        let mistakes = all_of(directory.path(), 95).err().unwrap();
        let expected =
            "expected at most 95B in all files of the directory, found 96B with this one";
        assert_eq!(
            mistakes.to_string(),
            format!("{}: {expected}", directory.path().join("c.toml").display())
        );
    }

    #[test]
    fn the_size_limit_applies_to_a_pipe() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        assert!(
            std::process::Command::new("mkfifo")
                .arg(&pipe)
                .status()
                .unwrap()
                .success()
        );
        let writer = std::thread::spawn({
            let pipe = pipe.clone();
            move || std::fs::write(pipe, "# more than ten")
        });
        let mistakes = one(&pipe, 10).err().unwrap();
        writer.join().unwrap().unwrap();
        let expected = "expected a file of at most 10B, found more";
        assert_eq!(
            mistakes.to_string(),
            format!("{}: {expected}", pipe.display())
        );
    }
}
