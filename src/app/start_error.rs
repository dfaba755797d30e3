//! Errors that stop the start: the operating system's error, the configuration key that it
//! concerns, and what to do about it.

use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use crate::config::Bind;

/// A listener or file of the configuration cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// A listener.
    #[error("cannot listen on {bind} ({key}): {error}{}", then(to_listen(.bind, .error.kind())))]
    Listen {
        /// The address.
        bind: Bind,
        /// The configuration key.
        key: &'static str,
        /// The operating system's error.
        error: io::Error,
    },
    /// The journal.
    #[error("cannot open the journal {} (journal): {error}{}", .path.display(), then(to_journal(.error.kind())))]
    Journal {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        error: io::Error,
    },
}

fn then(step: Option<&str>) -> String {
    step.map(|step| format!(": {step}")).unwrap_or_default()
}

/// Binding a port below this one needs a privilege, unless the system is configured otherwise.
const FIRST_FREE_PORT: u16 = 1024;

fn to_listen(bind: &Bind, kind: ErrorKind) -> Option<&'static str> {
    match (bind, kind) {
        (Bind::Tcp(_), ErrorKind::AddrInUse) => {
            Some("stop the process that listens there, or choose another port")
        }
        (Bind::Tcp(_), ErrorKind::AddrNotAvailable) => {
            Some("choose an address of this machine, or 0.0.0.0 for all of them")
        }
        (Bind::Tcp(address), ErrorKind::PermissionDenied) if address.port() < FIRST_FREE_PORT => {
            Some(
                "choose port 1024 or higher, grant CAP_NET_BIND_SERVICE, or use systemd socket activation",
            )
        }
        (Bind::Unix(path), ErrorKind::AddrInUse) if is_socket(path) => {
            Some("stop the process that listens there, or choose another path")
        }
        (Bind::Unix(_), ErrorKind::AddrInUse) => {
            Some("the path exists and is not a socket: choose another path")
        }
        (Bind::Unix(_), kind) => to_write(kind),
        _ => None,
    }
}

fn is_socket(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

fn to_journal(kind: ErrorKind) -> Option<&'static str> {
    match kind {
        ErrorKind::PermissionDenied => Some(
            "allow the user that runs Flowgate to write to the directory, and to read and write the files \
             whose names begin like that",
        ),
        kind => to_write(kind),
    }
}

fn to_write(kind: ErrorKind) -> Option<&'static str> {
    match kind {
        ErrorKind::NotFound => Some("create the directory, or choose another path"),
        ErrorKind::PermissionDenied => {
            Some("allow the user that runs Flowgate to write to the directory and the file")
        }
        ErrorKind::ReadOnlyFilesystem => {
            Some("mount a writable directory there, or choose another path")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_error_is_followed_by_the_next_step() {
        let tcp = |port: u16| Bind::Tcp(([127, 0, 0, 1], port).into());
        let unix = Bind::Unix("/run/flowgate.sock".into());
        for (bind, kind, step) in [
            (
                tcp(80),
                ErrorKind::PermissionDenied,
                "choose port 1024 or higher",
            ),
            (
                tcp(8080),
                ErrorKind::AddrInUse,
                "stop the process that listens there, or choose another port",
            ),
            (
                tcp(8080),
                ErrorKind::AddrNotAvailable,
                "choose an address of this machine",
            ),
            (
                unix.clone(),
                ErrorKind::AddrInUse,
                "the path exists and is not a socket",
            ),
            (
                unix.clone(),
                ErrorKind::PermissionDenied,
                "allow the user that runs Flowgate to write",
            ),
            (unix, ErrorKind::NotFound, "create the directory"),
        ] {
            let message = StartError::Listen {
                bind: bind.clone(),
                key: "listen.proxy",
                error: kind.into(),
            }
            .to_string();
            let expected = format!(
                "cannot listen on {bind} (listen.proxy): {}: {step}",
                io::Error::from(kind)
            );
            assert!(message.starts_with(&expected), "{message}");
        }
        let error = ErrorKind::ReadOnlyFilesystem.into();
        let message = StartError::Journal {
            path: "/j".into(),
            error,
        }
        .to_string();
        let expected = "cannot open the journal /j (journal): read-only filesystem or storage medium: mount a writable directory";
        assert!(message.starts_with(expected), "{message}");
        let odd = StartError::Listen {
            bind: tcp(8080),
            key: "listen.admin",
            error: io::Error::other("odd"),
        };
        assert_eq!(
            odd.to_string(),
            "cannot listen on 127.0.0.1:8080 (listen.admin): odd"
        );
    }
}
