//! The OIDC token that Kubernetes writes into a file. The kubelet replaces the file by exchanging a
//! symbolic link, so the path is opened again for each request. Errors say what is wrong with the
//! file and nothing of its content, and not its path either: a token may be written where its path
//! belongs, and callers read these errors.
//!
//! A look at a file on a network may block its thread for good. Name look-ups use the same threads,
//! so at most one thread looks at a file, and never more than half of all threads look at files.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::error::{FailureKind, FetchError};
use crate::config::private_file;
use crate::primitives::secret::Secret;

/// The file in errors.
const PLACE: &str = "the token file";
/// How long one look at the file may take. A request makes two, for the stamp and for the content,
/// and has 10 s in all.
pub(super) const WITHIN: Duration = Duration::from_secs(4);
/// The maximum of threads that look at files: half of tokio's default of 512.
const MAX_THREADS: usize = 256;
/// The length that STS accepts, in characters.
const LENGTH: std::ops::RangeInclusive<usize> = 4..=20_000;

/// One permit for each file that is looked at.
static LOOKS: LazyLock<Mutex<HashMap<PathBuf, Weak<Semaphore>>>> = LazyLock::new(Mutex::default);

static THREADS: Semaphore = Semaphore::const_new(MAX_THREADS);

/// Reads the token.
pub(super) async fn read(path: &Path, deadline: Instant) -> Result<Secret, FetchError> {
    let deadline = deadline.min(Instant::now() + WITHIN);
    let Ok(read) = timeout_at(deadline, look(path, read_blocking)).await else {
        return Err(unresponsive());
    };
    read.unwrap_or_else(|| Err("Flowgate is shutting down".to_owned()))
        .map_err(|reason| FetchError::new(FailureKind::TokenFile, PLACE, reason))
}

/// The failure if the file system does not respond.
pub(super) fn unresponsive() -> FetchError {
    let reason = "the file system does not respond";
    FetchError::new(FailureKind::TokenFile, PLACE, reason)
}

/// Looks at the file on a thread that may block. Waits as long as another look at the same file is
/// under way, also one that nothing waits for any more. `None` if the process is shutting down.
pub(super) async fn look<T: Send + 'static>(path: &Path, look: fn(&Path) -> T) -> Option<T> {
    let permit = permit_of(path).acquire_owned().await.ok()?;
    let thread = THREADS.acquire().await.ok()?;
    let path = path.to_owned();
    let looking = tokio::task::spawn_blocking(move || {
        let found = look(&path);
        drop((permit, thread));
        found
    });
    looking.await.ok()
}

/// The permit to look at the file. It exists while something waits for it or has it.
fn permit_of(path: &Path) -> Arc<Semaphore> {
    let mut looks = LOOKS.lock();
    if let Some(known) = looks.get(path).and_then(Weak::upgrade) {
        return known;
    }
    looks.retain(|_, permit| permit.strong_count() > 0);
    let permit = Arc::new(Semaphore::new(1));
    looks.insert(path.to_owned(), Arc::downgrade(&permit));
    permit
}

fn read_blocking(path: &Path) -> Result<Secret, String> {
    let bytes = private_file(path)?;
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
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::{AtomicUsize, Ordering};

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
    async fn an_unusable_token_file_is_explained_without_its_content_and_its_path() {
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

    #[test]
    fn a_file_that_all_users_may_write_to_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "a.b.c").unwrap();
        for (mode, is_read) in [(0o644, true), (0o664, true), (0o666, false)] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            assert_eq!(read_blocking(&path).is_ok(), is_read, "{mode:o}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_thread_looks_at_a_file_that_does_not_respond_and_other_files_are_read() {
        static BEGUN: AtomicUsize = AtomicUsize::new(0);
        fn hang(path: &Path) {
            BEGUN.fetch_add(1, Ordering::Relaxed);
            // Opening a pipe waits for a writer.
            std::fs::read(path).unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        let mut first = std::pin::pin!(look(&pipe, hang));
        assert!(futures_util::poll!(&mut first).is_pending());
        // As another source with the same file would, again and again.
        for _ in 0..3 {
            let deadline = Instant::now() + Duration::from_secs(60);
            let mut second = std::pin::pin!(read(&pipe, deadline));
            assert!(futures_util::poll!(&mut second).is_pending());
            tokio::time::advance(WITHIN).await;
            let error = second.await.err().unwrap();
            assert_eq!(error, unresponsive());
            let text = "the token file: the file system does not respond";
            assert_eq!(
                (error.kind, &*error.to_string()),
                (FailureKind::TokenFile, text)
            );
        }
        let other = folder.path().join("other");
        std::fs::write(&other, "a.b.c").unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        assert_eq!(read(&other, deadline).await.ok().unwrap().expose(), "a.b.c");
        // It responds again.
        std::fs::write(&pipe, "x").unwrap();
        assert_eq!(first.await, Some(()));
        assert_eq!(BEGUN.load(Ordering::Relaxed), 1);
        let error = read(&pipe, Instant::now() + WITHIN).await.err().unwrap();
        assert_eq!(error.reason, "expected a regular file");
    }

    async fn assert_refused(path: &Path, expected: &str) {
        let error = read(path, Instant::now() + std::time::Duration::from_secs(60))
            .await
            .err()
            .unwrap();
        assert_eq!(error.kind, FailureKind::TokenFile);
        assert_eq!(error.to_string(), format!("the token file: {expected}"));
        assert!(!format!("{error:?}").contains("s3c"));
    }
}
