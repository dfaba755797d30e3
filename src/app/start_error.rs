//! Why does it not start, and what is to be done? What the system says of a listener or a file, with the key that names it
//! and the next step of whoever reads it.

use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use crate::config::Bind;

/// Something that the configuration names cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// A listener.
    #[error("cannot listen on {bind} ({key}): {error}{}", then(to_listen(.bind, .error.kind())))]
    Listen {
        /// Where.
        bind: Bind,
        /// What says so.
        key: &'static str,
        /// What the system says.
        error: io::Error,
    },
    /// The journal.
    #[error("cannot write the journal {} (journal): {error}{}", .path.display(), then(to_write(.error.kind())))]
    Journal {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
}

fn then(step: Option<&str>) -> String {
    step.map(|step| format!(": {step}")).unwrap_or_default()
}

/// Ports below this one are the system's, unless it is told otherwise.
const FIRST_FREE_PORT: u16 = 1024;

fn to_listen(bind: &Bind, kind: ErrorKind) -> Option<&'static str> {
    match (bind, kind) {
        (Bind::Tcp(_), ErrorKind::AddrInUse) => {
            Some("stop who listens there, or choose another port")
        }
        (Bind::Tcp(_), ErrorKind::AddrNotAvailable) => {
            Some("choose an address of this machine, or 0.0.0.0 for all")
        }
        (Bind::Tcp(address), ErrorKind::PermissionDenied) if address.port() < FIRST_FREE_PORT => {
            Some(
                "choose a port from 1024 on, give CAP_NET_BIND_SERVICE, or have systemd pass the socket",
            )
        }
        (Bind::Unix(path), ErrorKind::AddrInUse) if is_socket(path) => {
            Some("stop who listens there, or choose another path")
        }
        (Bind::Unix(_), ErrorKind::AddrInUse) => {
            Some("what stands there is no socket: choose another path")
        }
        (Bind::Unix(_), kind) => to_write(kind),
        _ => None,
    }
}

fn is_socket(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

fn to_write(kind: ErrorKind) -> Option<&'static str> {
    match kind {
        ErrorKind::NotFound => Some("make the folder, or choose another path"),
        ErrorKind::PermissionDenied => {
            Some("let the user that Flowgate runs as write to the folder and the file")
        }
        ErrorKind::ReadOnlyFilesystem => {
            Some("mount a folder there that can be written to, or choose another path")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says_is_followed_by_the_next_step() {
        let tcp = |port: u16| Bind::Tcp(([127, 0, 0, 1], port).into());
        let unix = Bind::Unix("/run/flowgate.sock".into());
        for (bind, kind, step) in [
            (
                tcp(80),
                ErrorKind::PermissionDenied,
                "choose a port from 1024 on",
            ),
            (
                tcp(8080),
                ErrorKind::AddrInUse,
                "stop who listens there, or choose another port",
            ),
            (
                tcp(8080),
                ErrorKind::AddrNotAvailable,
                "choose an address of this machine",
            ),
            (
                unix.clone(),
                ErrorKind::AddrInUse,
                "what stands there is no socket",
            ),
            (
                unix.clone(),
                ErrorKind::PermissionDenied,
                "let the user that Flowgate runs as write",
            ),
            (unix, ErrorKind::NotFound, "make the folder"),
        ] {
            let said = StartError::Listen {
                bind: bind.clone(),
                key: "listen.proxy",
                error: kind.into(),
            }
            .to_string();
            let expected = format!(
                "cannot listen on {bind} (listen.proxy): {}: {step}",
                io::Error::from(kind)
            );
            assert!(said.starts_with(&expected), "{said}");
        }
        let error = ErrorKind::ReadOnlyFilesystem.into();
        let said = StartError::Journal {
            path: "/j".into(),
            error,
        }
        .to_string();
        let expected = "cannot write the journal /j (journal): read-only filesystem or storage medium: mount a folder";
        assert!(said.starts_with(expected), "{said}");
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
