//! Which files make up the configuration, and what do they say together? One file, or those of a directory, merged in order
//! of name. A slip in the syntax of one ends it: what follows would only repeat it.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::directory;
use super::entries::Entries;
use super::file::{self, Item, Node};
use super::merge::Merge;
use super::mistakes::{FileNames, Mistake, Mistakes, Origin};
use super::secrets::unreadable;
use super::stamps::{Stamp, Stamps, stamp};
use super::units::Size;

/// What the configuration's files say.
pub(super) struct Sources {
    pub(super) names: FileNames,
    /// Where relative paths start.
    pub(super) folder: PathBuf,
    /// What the files were before they were read.
    pub(super) stamps: Stamps,
    pub(super) root: Node,
    /// What two files say of the same key.
    pub(super) mistakes: Vec<Mistake>,
}

/// Bytes of all files together.
const MAX_BYTES: u64 = 64 << 20;

/// Where the path comes from.
const PATH: &str = "(--config, FLOWGATE_CONFIG)";

/// Reads the file or the directory; without either, nothing is written.
pub(super) fn read(path: Option<&Path>) -> Result<Sources, Mistakes> {
    let (names, stamps) = (FileNames::default(), Stamps::new());
    let root = Node {
        origin: Origin::Nowhere,
        item: Item::Table(Entries::default()),
    };
    match path {
        None => Ok(Sources {
            names,
            folder: PathBuf::new(),
            stamps,
            root,
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
    let read = || {
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
        let text = text(opened, length, max).map_err(|wrong| match wrong {
            Wrong::Unreadable(error) => format!("{} {PATH}", unreadable(&error)),
            Wrong::TooLong => format!("expected a file of at most {}, found more", bytes(max)),
            Wrong::NotUtf8 => "expected a file in UTF-8".to_owned(),
        })?;
        Ok(text)
    };
    let mistake = |expectation: String| {
        vec![Mistake {
            origin: file.whole(),
            key: String::new(),
            expectation,
        }]
    };
    let folder = path.parent().map_or_else(PathBuf::new, Path::to_owned);
    match read()
        .map_err(mistake)
        .and_then(|text| file::parse(&text, file))
    {
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

fn all_of(path: &Path, max: u64) -> Result<Sources, Mistakes> {
    let mut names = FileNames::default();
    let whole = |names: &mut FileNames, expectation: String| {
        vec![Mistake {
            origin: names.add(path).whole(),
            key: String::new(),
            expectation,
        }]
    };
    let listed = match directory::list(path) {
        Ok(listed) => listed,
        Err(error) => {
            let why = match error.kind() {
                ErrorKind::PermissionDenied => {
                    "the user that Flowgate runs as may not list the directory".to_owned()
                }
                kind => format!("the directory cannot be read: {kind}"),
            };
            let mistakes = whole(&mut names, format!("{why} {PATH}"));
            return Err(Mistakes::new(
                names,
                mistakes,
                [(path.to_owned(), None)].into(),
            ));
        }
    };
    let mut stamps: Stamps = [(path.to_owned(), Some(Stamp::Directory(listed.clone())))].into();
    // Without a file it is a directory of something else, or one that is not mounted yet.
    if listed.is_empty() {
        let mistakes = whole(
            &mut names,
            format!("expected a directory with at least one *.toml file {PATH}"),
        );
        return Err(Mistakes::new(names, mistakes, stamps));
    }
    let (mut roots, mut mistakes, mut total) = (Vec::new(), Vec::new(), 0);
    for name in listed {
        let path = path.join(name);
        let file = names.add(&path);
        stamps.insert(path.clone(), stamp(&path));
        let read = part(&path, &mut total, max);
        let mistake = |expectation: String| {
            vec![Mistake {
                origin: file.whole(),
                key: String::new(),
                expectation,
            }]
        };
        match read
            .map_err(mistake)
            .and_then(|text| file::parse(&text, file))
        {
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

/// What is in a file of the directory; `total` counts the bytes of all of them.
fn part(path: &Path, total: &mut u64, max: u64) -> Result<String, String> {
    // Asked before it is opened, because opening a pipe waits for a writer.
    let about = std::fs::metadata(path).map_err(|error| unreadable(&error))?;
    if !about.is_file() {
        return Err("expected a regular file: every *.toml of the directory is read".to_owned());
    }
    let too_long = |total: u64| {
        format!(
            "expected at most {} in all files of the directory, found {} with this one",
            bytes(max),
            bytes(total)
        )
    };
    *total += about.len();
    if *total > max {
        return Err(too_long(*total));
    }
    let opened = File::open(path).map_err(|error| unreadable(&error))?;
    text(opened, Some(about.len()), max).map_err(|wrong| match wrong {
        Wrong::Unreadable(error) => unreadable(&error),
        Wrong::TooLong => too_long(max + 1),
        Wrong::NotUtf8 => "expected a file in UTF-8".to_owned(),
    })
}

/// Why there is no text.
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
    fn the_bound_is_on_all_files_of_a_directory_together() {
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
    fn a_pipe_has_the_bound_too() {
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
