//! Where does a secret come from? From its place, an environment variable or a file, and from nowhere else: a secret
//! that stands in the configuration itself is refused without showing it. Names of places are not shown either; they
//! may be the secret, in the wrong place.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek};
use std::path::Path;

use zeroize::Zeroizing;

use super::file::{Item, Node};
use super::mistakes::Origin;
use super::read::{Field, Place};
use super::units::Size;
use crate::primitives::secret::Secret;

/// Bytes of a secret's file.
pub(super) const MAX_FILE: usize = 64 * 1024;

/// Beyond a file's length: one byte more tells that it has grown, the rest is for the read that finds the end.
const ROOM: usize = 64;

/// Reads the secret whose place the key names.
pub(crate) fn secret(field: Field<'_>) -> Option<Secret> {
    let expected = "expected { env = \"NAME\" } or { file = \"path\" }";
    let Field {
        reader,
        key,
        place,
        item,
    } = field;
    let Some(item) = item else {
        reader.mistake(&place, format!("missing, {expected}"));
        return None;
    };
    let Some((name, node)) = only(item) else {
        reader.mistake(&place, expected);
        return None;
    };
    let place = Place {
        path: format!("{}.{name}", place.path),
        origin: node.origin,
    };
    let field = Field {
        reader,
        key,
        place,
        item: Some(node.item),
    };
    let text = field.text("text", |text| Some(text.to_owned()))?;
    let found = if name == "env" {
        variable(&field, &text)
    } else {
        file(&field.opens(Path::new(&text)))
    };
    found.map_err(|expectation| field.mistake(expectation)).ok()
}

/// The one place; where the file names one and the environment the other, the environment's.
fn only(item: Item) -> Option<(&'static str, Node)> {
    let Item::Table(mut nodes) = item else {
        return None;
    };
    let found = (nodes.remove("env"), nodes.remove("file"));
    let overrides = |node: &Node| matches!(node.origin, Origin::Variable(_));
    match found {
        _ if !nodes.is_empty() => None,
        (Some(node), None) => Some(("env", node)),
        (None, Some(node)) => Some(("file", node)),
        (Some(env), Some(file)) => match (overrides(&env), overrides(&file)) {
            (true, false) => Some(("env", env)),
            (false, true) => Some(("file", file)),
            _ => None,
        },
        (None, None) => None,
    }
}

fn variable(field: &Field<'_>, name: &str) -> Result<Secret, String> {
    let text = field.reader.environment.get(name);
    one_line(text.ok_or("expected the name of an environment variable that is set and not empty")?)
}

/// The secret in a file.
pub(crate) fn file(path: &Path) -> Result<Secret, String> {
    let bytes = regular(path, MAX_FILE)?;
    one_line(std::str::from_utf8(&bytes).map_err(|_| "expected a file in UTF-8")?)
}

/// What is in a regular file of at most `max` bytes; wiped when dropped.
pub(super) fn regular(path: &Path, max: usize) -> Result<Zeroizing<Vec<u8>>, String> {
    // Asked before it is opened, because opening a pipe waits for a writer.
    let about = std::fs::metadata(path).map_err(|error| unreadable(&error))?;
    if !about.is_file() {
        return Err("expected a regular file".to_owned());
    }
    let mut file = File::open(path).map_err(|error| unreadable(&error))?;
    // With room for all of it, so that growing leaves no copies behind; and, because all of it is wiped, for no more.
    let read = |file: &mut File, length: usize| {
        let mut bytes = Zeroizing::new(Vec::with_capacity(length + ROOM));
        file.take(length as u64 + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let length = usize::try_from(about.len()).unwrap_or(usize::MAX).min(max);
    let mut bytes = read(&mut file, length).map_err(|error| unreadable(&error))?;
    // It has grown meanwhile, or it says nothing of its length, as in /proc.
    if bytes.len() > length && length < max {
        file.rewind().map_err(|error| unreadable(&error))?;
        bytes = read(&mut file, max).map_err(|error| unreadable(&error))?;
    }
    if bytes.len() > max {
        return Err(format!("expected a file of at most {}", Size(max)));
    }
    Ok(bytes)
}

/// Why a file is not read.
pub(super) fn unreadable(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => "there is no such file".to_owned(),
        ErrorKind::PermissionDenied => {
            "the user that Flowgate runs as may not read the file".to_owned()
        }
        kind => format!("the file cannot be read: {kind}"),
    }
}

/// One line of text. The newline that editors and `echo` leave at the end is not part of it.
pub(crate) fn one_line(text: &str) -> Result<Secret, String> {
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    match text {
        "" => Err("the secret is empty".to_owned()),
        text if text.contains(char::is_control) => Err("expected a secret of one line".to_owned()),
        text => Ok(Secret::new(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_does_not_say_its_length_is_read_to_its_end() {
        let path = Path::new("/proc/self/environ");
        assert_eq!(std::fs::metadata(path).unwrap().len(), 0);
        // Tests run under cargo, which sets more variables than one read of a buffer for nothing holds.
        let expected = std::fs::read(path).unwrap();
        assert!(expected.len() > ROOM);
        assert_eq!(*regular(path, 1 << 20).unwrap(), expected);
        assert_eq!(
            regular(path, ROOM).unwrap_err(),
            "expected a file of at most 64B"
        );
    }

    #[test]
    fn a_short_secret_takes_a_short_buffer() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "secret").unwrap();
        assert!(regular(file.path(), MAX_FILE).unwrap().capacity() <= 2 * ROOM);
    }
}
