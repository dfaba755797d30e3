//! The OIDC token that Kubernetes writes into a file. The kubelet replaces the file by exchanging a
//! symbolic link, so the path is opened again for each request. Errors say what is wrong with the
//! file and nothing of its content.

use std::path::Path;

use tokio::time::{Instant, timeout_at};

use super::error::{FailureKind, FetchError};
use crate::config::regular_file;
use crate::primitives::secret::Secret;

/// Largest file in bytes.
const MAX_FILE: usize = 64 * 1024;
/// The length that STS accepts, in characters.
const LENGTH: std::ops::RangeInclusive<usize> = 4..=20_000;

/// Reads the token on a thread that may block, because the file may be on a network.
pub(super) async fn read(path: &Path, deadline: Instant) -> Result<Secret, FetchError> {
    let owned = path.to_owned();
    let reading = tokio::task::spawn_blocking(move || read_blocking(&owned));
    let reason = match timeout_at(deadline, reading).await {
        Ok(Ok(Ok(token))) => return Ok(token),
        Ok(Ok(Err(reason))) => reason,
        Ok(Err(_ended)) => "Flowgate is shutting down".to_owned(),
        Err(_elapsed) => "the file cannot be read in time".to_owned(),
    };
    let place = path.display().to_string();
    Err(FetchError::new(FailureKind::TokenFile, &place, reason))
}

fn read_blocking(path: &Path) -> Result<Secret, String> {
    let bytes = regular_file(path, MAX_FILE)?;
    let text = std::str::from_utf8(&bytes)
        .map_err(|_| "the token has a character that is not ASCII".to_owned())?
        .trim_end_matches(['\r', '\n']);
    if text.is_empty() {
        return Err("the file is empty".to_owned());
    }
    if let Some(at) = text.chars().position(|char| !char.is_ascii_graphic()) {
        return Err(format!(
            "the token has a blank or an unprintable character as character {}",
            at + 1
        ));
    }
    if !LENGTH.contains(&text.len()) {
        return Err(format!(
            "expected a token of {} to {} characters, found {}",
            LENGTH.start(),
            LENGTH.end(),
            text.len()
        ));
    }
    Ok(Secret::new(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_4_to_20000_printable_characters_and_line_ends_do_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let longest = "x".repeat(20_000);
        for (content, token) in [
            ("a.b.c", "a.b.c"),
            ("a.b.c\n", "a.b.c"),
            ("a.b.c\r\n\n", "a.b.c"),
            ("abcd", "abcd"),
            (&format!("{longest}\n"), &longest),
        ] {
            std::fs::write(&path, content).unwrap();
            assert_eq!(read_blocking(&path).unwrap().expose(), token);
        }
    }

    #[tokio::test]
    async fn an_unusable_token_file_is_named_and_its_content_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let too_long = "s3cret".repeat(3_334)[..20_001].to_owned();
        let beyond_file = "s3cret".repeat(20_000);
        for (content, expected) in [
            ("", "the file is empty"),
            ("\n", "the file is empty"),
            ("s3c", "expected a token of 4 to 20000 characters, found 3"),
            (
                &too_long,
                "expected a token of 4 to 20000 characters, found 20001",
            ),
            (&beyond_file, "expected a file of at most 64KiB"),
            (
                "s3cret s3cret",
                "the token has a blank or an unprintable character as character 7",
            ),
            (
                "s3cret\ns3cret\n",
                "the token has a blank or an unprintable character as character 7",
            ),
            (
                "s3cret\u{7f}",
                "the token has a blank or an unprintable character as character 7",
            ),
            (
                "s3cr\u{e9}t",
                "the token has a blank or an unprintable character as character 5",
            ),
        ] {
            std::fs::write(&path, content).unwrap();
            assert_refused(&path, expected).await;
        }
        std::fs::write(&path, b"s3cret\xff").unwrap();
        assert_refused(&path, "the token has a character that is not ASCII").await;
        assert_refused(folder.path(), "expected a regular file").await;
        assert_refused(&folder.path().join("absent"), "file not found").await;
    }

    async fn assert_refused(path: &Path, expected: &str) {
        let error = read(path, Instant::now() + std::time::Duration::from_secs(60))
            .await
            .err()
            .unwrap();
        assert_eq!(error.kind, FailureKind::TokenFile);
        assert_eq!(error.to_string(), format!("{}: {expected}", path.display()));
        assert!(!format!("{error:?}").contains("s3c"));
    }
}
