//! Reads secrets from an environment variable or a file. A secret in the configuration itself is
//! refused without showing it. The names of variables and files are not shown either, because they
//! may be a misplaced secret.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::StatVfsMountFlags;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::file::{Item, Node};
use super::mistakes::Origin;
use super::read::{Field, KeyLocation};
use super::units::Size;
use crate::primitives::secret::Secret;

/// Maximum size of a secret's file, in bytes.
const MAX_FILE: usize = 64 * 1024;

/// Capacity beyond a file's length: one byte detects that the file has grown, the others let the
/// last read find the end without a reallocation.
const ROOM: usize = 64;

/// U+FEFF, which some editors write at the start of a file.
pub(super) const BYTE_ORDER_MARK: char = '\u{feff}';

/// What is wrong with text that starts with a byte order mark.
pub(super) const STARTS_WITH_MARK: &str =
    "starts with a byte order mark: save the file in UTF-8 without it";

/// The accepted form, for error messages.
const FORM: &str = "expected { env = \"NAME\" } or { file = \"path\" }";

/// Reads the secret that the key refers to.
pub(crate) fn secret(field: Field<'_>) -> Option<Secret> {
    let Field {
        reader,
        key,
        place,
        item,
        variable: _,
    } = field;
    let Some(item) = item else {
        reader.mistake(&place, format!("missing, {FORM}"));
        return None;
    };
    let Some((name, node)) = only(item) else {
        reader.mistake(&place, format!("{FORM}, never the secret itself"));
        return None;
    };
    let place = KeyLocation {
        path: format!("{}.{name}", place.path),
        origin: node.origin,
    };
    let field = Field {
        reader,
        key,
        place,
        item: Some(node.item),
        variable: None,
    };
    let text = field.text("text", |text| Some(text.to_owned()))?;
    let found = if name == "env" {
        variable(&field, &text)
    } else {
        file(&field.opens(Path::new(&text)))
    };
    found.map_err(|expectation| field.mistake(expectation)).ok()
}

/// Returns the one location. If the configuration file gives one and the environment the other,
/// the environment wins.
fn only(item: Item) -> Option<(&'static str, Node)> {
    let Item::Table(mut nodes) = item else {
        return None;
    };
    let env = nodes.remove("env");
    let file = nodes.remove("file");
    if !nodes.is_empty() {
        return None;
    }
    match (env, file) {
        (Some(node), None) => Some(("env", node)),
        (None, Some(node)) => Some(("file", node)),
        (Some(env), Some(file)) => match (is_variable(&env), is_variable(&file)) {
            (true, false) => Some(("env", env)),
            (false, true) => Some(("file", file)),
            _ => None,
        },
        (None, None) => None,
    }
}

fn is_variable(node: &Node) -> bool {
    matches!(node.origin, Origin::Variable(_))
}

fn variable(field: &Field<'_>, name: &str) -> Result<Secret, String> {
    let text = field.reader.environment.get(name);
    one_line(text.ok_or(
        "expected the name of an environment variable that is set and not empty (name not printed: \
         it could be a secret)",
    )?)
}

/// Reads the secret in a file.
pub(crate) fn file(path: &Path) -> Result<Secret, String> {
    let bytes = private(path)?;
    one_line(utf8(&bytes)?)
}

/// Reads a JSON file with secrets. `shape` describes what is expected: serde's own message would
/// contain values.
pub(super) fn json<T: DeserializeOwned>(path: &Path, shape: &str) -> Result<T, String> {
    let bytes = private(path)?;
    let text = utf8(&bytes)?;
    if text.starts_with(BYTE_ORDER_MARK) {
        return Err(format!("the file {STARTS_WITH_MARK}"));
    }
    serde_json::from_str(text).map_err(|_| shape.to_owned())
}

/// Reads a file with secrets. Other users must not be able to replace them.
pub(crate) fn private(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let metadata = std::fs::metadata(path).map_err(|error| unreadable(&error))?;
    if metadata.is_file() && metadata.mode() & 0o002 != 0 && !is_read_only(path) {
        return Err("all users may write to the file: expected a mode such as 0600".to_owned());
    }
    regular(path, MAX_FILE)
}

/// Whether the file system is mounted read-only, as Kubernetes mounts secrets. The modes of its
/// files then allow nothing that changes them.
pub(super) fn is_read_only(path: &Path) -> bool {
    rustix::fs::statvfs(path).is_ok_and(|mount| mount.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// Reads the bytes of a file as text, or explains why they are none.
pub(super) fn utf8(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|error| {
        if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
            "expected a file in UTF-8, found UTF-16: save it in UTF-8 without a byte order mark"
                .to_owned()
        } else {
            format!(
                "expected a file in UTF-8: byte {} is not",
                error.valid_up_to() + 1
            )
        }
    })
}

/// Reads a regular file of at most `max` bytes. The buffer is wiped when dropped.
pub(crate) fn regular(path: &Path, max: usize) -> Result<Zeroizing<Vec<u8>>, String> {
    // Checked before the file is opened, because opening a pipe waits for a writer.
    let metadata = std::fs::metadata(path).map_err(|error| unreadable(&error))?;
    if !metadata.is_file() {
        return Err("expected a regular file".to_owned());
    }
    let mut file = File::open(path).map_err(|error| unreadable(&error))?;
    let length = usize::try_from(metadata.len())
        .unwrap_or(usize::MAX)
        .min(max);
    let mut bytes = read(&mut file, length).map_err(|error| unreadable(&error))?;
    // The file has grown, or its metadata has no length, as in /proc.
    if bytes.len() > length && length < max {
        file.rewind().map_err(|error| unreadable(&error))?;
        bytes = read(&mut file, max).map_err(|error| unreadable(&error))?;
    }
    if bytes.len() > max {
        return Err(format!("expected a file of at most {}", Size(max)));
    }
    Ok(bytes)
}

/// Reads up to `length` bytes and one more.
///
/// The buffer has the capacity for all of them, because a reallocation would leave a copy of the
/// secret in freed memory; and not much more, because the whole capacity is wiped.
fn read(file: &mut File, length: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(length + ROOM));
    file.take(length as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Explains why a file cannot be read.
pub(super) fn unreadable(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => "file not found".to_owned(),
        ErrorKind::PermissionDenied => {
            "permission denied: the user that runs Flowgate may not read the file".to_owned()
        }
        kind => format!("cannot read the file: {kind}"),
    }
}

/// Checks that a secret has only what a person would see: one line of ASCII, without blanks or
/// quotes around it. The final newline that editors and `echo` write is removed. With any other
/// byte too many, every signature would be wrong.
///
/// The reason names what is odd and where, and nothing of the rest.
pub(crate) fn one_line(text: &str) -> Result<Secret, String> {
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    match oddity(text) {
        None => Ok(Secret::new(text)),
        Some(oddity) => Err(oddity),
    }
}

fn oddity(text: &str) -> Option<String> {
    if text.is_empty() {
        return Some("the secret is empty".to_owned());
    }
    if text.starts_with(BYTE_ORDER_MARK) {
        return Some(format!("the secret {STARTS_WITH_MARK}"));
    }
    let odd_char = text.chars().enumerate().find_map(|(before, char)| {
        let place = format!("as character {}", before + 1);
        match char {
            '\n' | '\r' => Some(format!(
                "expected a secret of one line, found a line break {place}"
            )),
            '\0' => Some(format!("the secret has a NUL {place}")),
            '\t' => Some(format!("the secret has a tab {place}")),
            char if char.is_control() => {
                Some(format!("the secret has a control character {place}"))
            }
            char if char.is_whitespace() && !char.is_ascii() => {
                Some(format!("the secret has a blank that is not ASCII {place}"))
            }
            char if !char.is_ascii() => Some(format!(
                "the secret has a character that is not ASCII {place}"
            )),
            _ => None,
        }
    });
    odd_char
        .or_else(|| {
            text.starts_with(' ')
                .then(|| "the secret starts with a blank".to_owned())
        })
        .or_else(|| {
            text.ends_with(' ')
                .then(|| "the secret ends with a blank".to_owned())
        })
        .or_else(|| {
            ['"', '\'', '`']
                .into_iter()
                .any(|quote| text.starts_with(quote) || text.ends_with(quote))
                .then(|| "the secret starts or ends with a quote: write it without".to_owned())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_known_length_is_read_to_its_end() {
        let path = Path::new("/proc/self/environ");
        assert_eq!(std::fs::metadata(path).unwrap().len(), 0);
        // Cargo sets enough variables to exceed the first buffer.
        let expected = std::fs::read(path).unwrap();
        assert!(expected.len() > ROOM);
        assert_eq!(*regular(path, 1 << 20).unwrap(), expected);
        assert_eq!(
            regular(path, ROOM).unwrap_err(),
            "expected a file of at most 64B"
        );
    }

    #[test]
    fn a_short_secret_gets_a_short_buffer() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "secret").unwrap();
        assert!(regular(file.path(), MAX_FILE).unwrap().capacity() <= 2 * ROOM);
    }

    #[test]
    fn invisible_characters_in_a_secret_are_named_and_never_shown() {
        for (written, expected) in [
            ("", "the secret is empty"),
            ("\r\n", "the secret is empty"),
            (
                "\u{feff}k3y",
                "the secret starts with a byte order mark: save the file in UTF-8 without it",
            ),
            ("k3y ", "the secret ends with a blank"),
            ("k3y \n", "the secret ends with a blank"),
            (" k3y", "the secret starts with a blank"),
            ("k3y\t\r\n", "the secret has a tab as character 4"),
            (
                "\"k3y\"\n",
                "the secret starts or ends with a quote: write it without",
            ),
            (
                "'k3y'",
                "the secret starts or ends with a quote: write it without",
            ),
            (
                "k3y\"",
                "the secret starts or ends with a quote: write it without",
            ),
            ("k\u{0}3y", "the secret has a NUL as character 2"),
            (
                "k3y\n\n",
                "expected a secret of one line, found a line break as character 4",
            ),
            (
                "k3y\nk3y",
                "expected a secret of one line, found a line break as character 4",
            ),
            (
                "k3y\r\r\n",
                "expected a secret of one line, found a line break as character 4",
            ),
            (
                "k\u{7f}3y",
                "the secret has a control character as character 2",
            ),
            (
                "k3y\u{a0}",
                "the secret has a blank that is not ASCII as character 4",
            ),
            (
                "k3\u{200b}y",
                "the secret has a character that is not ASCII as character 3",
            ),
            (
                "k\u{e9}y",
                "the secret has a character that is not ASCII as character 2",
            ),
        ] {
            let found = one_line(written).err().unwrap();
            assert_eq!(found, expected, "{written:?}");
            assert!(!found.contains("k3"), "{found}");
        }
        for whole in ["k3y", "k3y\n", "k3y\r\n", "correct horse/battery+staple="] {
            assert_eq!(one_line(whole).unwrap().expose(), whole.trim_end());
        }
    }

    #[test]
    fn a_file_in_another_encoding_is_named() {
        for (bytes, expected) in [
            (
                b"\xff\xfek\0e\0y\0".as_slice(),
                "expected a file in UTF-8, found UTF-16: save it in UTF-8 without a byte order mark",
            ),
            (b"k\xe9y", "expected a file in UTF-8: byte 2 is not"),
        ] {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), bytes).unwrap();
            assert_eq!(super::file(file.path()).err().unwrap(), expected);
        }
    }
}
