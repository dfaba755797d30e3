//! What does the service manager hand over, and what does it want to know? Sockets that it has bound before, so that a
//! restart refuses nobody; and in return when Flowgate is ready, reloads, stops, and that it still moves.

use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;

/// Sockets that were bound for Flowgate before it started; what is missing it binds itself.
#[derive(Debug, Default)]
pub struct Handed {
    pub(crate) proxy: Option<Passed>,
    pub(crate) admin: Option<Passed>,
}

/// One of them.
#[derive(Debug)]
pub(crate) enum Passed {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Why the sockets cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HandedError {
    /// The variables do not fit together, or name descriptors that are not open.
    #[error("the sockets of LISTEN_FDS cannot be taken: {0}")]
    Variables(io::Error),
    /// More of them than there are listeners, or a name that is none.
    #[error(
        "expected at most two sockets, the proxy's and the admin's, or the names proxy and admin, each once"
    )]
    Roles,
    /// Not a socket, or one of another kind.
    #[error("the descriptor passed for {0} is no TCP or Unix stream socket")]
    Kind(&'static str),
}

/// Which listener a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Proxy,
    Admin,
}

/// How often it is told where Flowgate stands when there is no watchdog to be quicker.
const EVERY: Duration = Duration::from_secs(10);

// === impl Handed ===

impl Handed {
    /// Takes what the variables name. Once, and before there is a second thread: the variables go with it.
    pub fn take() -> Result<Self, HandedError> {
        let names = sd_notify::listen_fds_with_names().map_err(HandedError::Variables)?;
        let names: Vec<String> = names.map(|(_, name)| name).collect();
        let mut handed = Self::default();
        if names.is_empty() {
            return Ok(handed);
        }
        let roles = roles(&names).ok_or(HandedError::Roles)?;
        let mut descriptors = ListenFd::from_env();
        for (index, role) in roles.into_iter().enumerate() {
            let passed = passed(&mut descriptors, index).ok_or(HandedError::Kind(role.name()))?;
            match role {
                Role::Proxy => handed.proxy = Some(passed),
                Role::Admin => handed.admin = Some(passed),
            }
        }
        Ok(handed)
    }
}

fn passed(descriptors: &mut ListenFd, index: usize) -> Option<Passed> {
    let tcp = descriptors
        .take_tcp_listener(index)
        .ok()
        .flatten()
        .map(Passed::Tcp);
    tcp.or_else(|| {
        descriptors
            .take_unix_listener(index)
            .ok()
            .flatten()
            .map(Passed::Unix)
    })
}

/// By name if one of them says so; else the first is the proxy's: unnamed sockets are called after their unit.
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
    let is_once = |role| roles.iter().filter(|other| **other == role).count() <= 1;
    (roles.len() == names.len() && is_once(Role::Proxy) && is_once(Role::Admin)).then_some(roles)
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

/// Both listeners serve, or a reload is over.
pub(crate) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// A reload begins; [`ready`] ends it, whatever came of it.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "the time of a reload cannot be told"),
    }
}

/// A drain begins.
pub(crate) fn stopping(status: &str) {
    tell(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

/// Says that Flowgate still moves and where it stands, twice in the watchdog's time, for as long as there is a status.
/// A status that cannot be had, because a lock is never given back, ends that, and then the process.
pub(crate) async fn keep_telling(status: impl Fn() -> Option<String> + Send + Sync + 'static) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let watchdog = sd_notify::watchdog_enabled().filter(|time| !time.is_zero());
    let every = watchdog.map_or(EVERY, |time| time / 2);
    let status = Arc::new(status);
    loop {
        tokio::time::sleep(every).await;
        let status = status.clone();
        // It goes through all lanes: not on a thread that serves calls.
        let Ok(Some(status)) = tokio::task::spawn_blocking(move || status()).await else {
            return;
        };
        tell(&[NotifyState::Watchdog, NotifyState::Status(&status)]);
    }
}

/// Nothing, where there is no service manager.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager cannot be told");
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
    fn names_go_before_the_order() {
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
