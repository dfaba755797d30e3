//! systemd: socket activation, so that a restart refuses no connection, and notifications of
//! readiness, reloads, the drain and the watchdog.

use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;

/// Sockets that the service manager has bound. Flowgate binds the missing ones itself.
#[derive(Debug, Default)]
pub struct InheritedSockets {
    pub(crate) proxy: Option<InheritedSocket>,
    pub(crate) admin: Option<InheritedSocket>,
}

/// One inherited socket.
#[derive(Debug)]
pub(crate) enum InheritedSocket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Why the inherited sockets cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InheritedSocketsError {
    /// The variables are inconsistent, or name descriptors that are not open.
    #[error("cannot use the sockets of LISTEN_FDS: {0}")]
    Variables(io::Error),
    /// More sockets than listeners, or an unknown name.
    #[error(
        "expected at most two sockets in LISTEN_FDS, either unnamed (first proxy, then admin) or named proxy and admin (FileDescriptorName=), each once"
    )]
    Roles,
    /// Not a listening socket of a supported kind.
    #[error("the socket passed for {0} in LISTEN_FDS is not a TCP or Unix stream socket")]
    Kind(&'static str),
}

/// The listener that a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Proxy,
    Admin,
}

/// Interval of status notifications without a watchdog.
const EVERY: Duration = Duration::from_secs(10);

// === impl InheritedSockets ===

impl InheritedSockets {
    /// Takes the sockets that the environment names and removes the variables. Call it once, before
    /// a second thread is started.
    pub fn take() -> Result<Self, InheritedSocketsError> {
        let names = sd_notify::listen_fds_with_names().map_err(InheritedSocketsError::Variables)?;
        let names: Vec<String> = names.map(|(_, name)| name).collect();
        let mut inherited = Self::default();
        if names.is_empty() {
            return Ok(inherited);
        }
        let roles = roles(&names).ok_or(InheritedSocketsError::Roles)?;
        let mut descriptors = ListenFd::from_env();
        for (index, role) in roles.into_iter().enumerate() {
            let passed =
                passed(&mut descriptors, index).ok_or(InheritedSocketsError::Kind(role.name()))?;
            match role {
                Role::Proxy => inherited.proxy = Some(passed),
                Role::Admin => inherited.admin = Some(passed),
            }
        }
        Ok(inherited)
    }
}

fn passed(descriptors: &mut ListenFd, index: usize) -> Option<InheritedSocket> {
    let tcp = descriptors
        .take_tcp_listener(index)
        .ok()
        .flatten()
        .map(InheritedSocket::Tcp);
    tcp.or_else(|| {
        descriptors
            .take_unix_listener(index)
            .ok()
            .flatten()
            .map(InheritedSocket::Unix)
    })
}

/// Assigns sockets by name if any of them has a known name, otherwise by order: systemd names
/// unnamed sockets after their unit.
fn roles(names: &[String]) -> Option<Vec<Role>> {
    let named: Vec<Option<Role>> = names.iter().map(|name| Role::of(name)).collect();
    let roles = if named.iter().any(Option::is_some) {
        named.into_iter().collect::<Option<Vec<_>>>()?
    } else {
        [Role::Proxy, Role::Admin]
            .into_iter()
            .take(names.len())
            .collect()
    };
    let proxies = roles.iter().filter(|role| **role == Role::Proxy).count();
    let admins = roles.iter().filter(|role| **role == Role::Admin).count();
    (roles.len() == names.len() && proxies <= 1 && admins <= 1).then_some(roles)
}

// === impl Role ===

impl Role {
    fn of(name: &str) -> Option<Self> {
        [Self::Proxy, Self::Admin]
            .into_iter()
            .find(|role| role.name() == name)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::Admin => "admin",
        }
    }
}

/// Notifies that both listeners serve, or that a reload has ended.
pub(crate) fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Notifies that a reload begins. [`ready`] ends it, whether it succeeds or not.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "cannot notify the service manager of a reload"),
    }
}

/// Notifies that a drain begins.
pub(crate) fn stopping(status: &str) {
    notify(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

/// Sends the status and the watchdog's keep-alive, twice per watchdog interval, until `status`
/// returns `None`. If `status` hangs on a lock, the keep-alive stops and the service manager ends
/// the process.
pub(crate) async fn notify_periodically(
    status: impl Fn() -> Option<String> + Send + Sync + 'static,
) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let watchdog = sd_notify::watchdog_enabled().filter(|time| !time.is_zero());
    let every = watchdog.map_or(EVERY, |time| time / 2);
    let status = Arc::new(status);
    loop {
        tokio::time::sleep(every).await;
        let status = status.clone();
        // `status` visits all lanes, so it does not run on a thread that serves calls.
        let Ok(Some(status)) = tokio::task::spawn_blocking(move || status()).await else {
            return;
        };
        notify(&[NotifyState::Watchdog, NotifyState::Status(&status)]);
    }
}

/// Sends a notification. Does nothing without a service manager.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roles_of(names: &[&str]) -> Option<Vec<Role>> {
        roles(
            &names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn sockets_are_assigned_by_name_before_order() {
        use Role::{Admin, Proxy};
        assert_eq!(roles_of(&["admin", "proxy"]), Some(vec![Admin, Proxy]));
        assert_eq!(roles_of(&["admin"]), Some(vec![Admin]));
        assert_eq!(
            roles_of(&["flowgate.socket", "flowgate.socket"]),
            Some(vec![Proxy, Admin])
        );
        assert_eq!(roles_of(&["unknown"]), Some(vec![Proxy]));
        assert_eq!(roles_of(&["proxy", "flowgate.socket"]), None);
        assert_eq!(roles_of(&["proxy", "proxy"]), None);
        assert_eq!(roles_of(&["", "", ""]), None);
    }
}
