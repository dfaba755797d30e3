//! `flowgate check --live`: obtains the credentials of each managed account once, and asks STS who
//! they belong to.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{self, StreamExt};
use tokio::sync::OnceCell;

use super::error::FetchError;
use super::fetch::{self, Fetcher};
use super::http::Roots;
use crate::acs::time;
use crate::config::{
    self, Account, AccountCredentials, Config, Credentials, SessionSource, StsEndpoint,
};
use crate::upstream::TlsRoots;

/// Accounts that are checked at a time. STS permits 100 requests a second for each account.
const AT_A_TIME: usize = 4;

/// The credentials, or why there are none: of a chain, where it broke.
type Fetched = Result<Arc<Credentials>, FetchError>;

/// The sources of a configuration, each of which is asked at most once.
struct Sources<'a> {
    roots: Arc<Roots>,
    sessions: HashMap<&'a SessionSource, OnceCell<Fetched>>,
    /// Where accounts whose source does not name STS ask for their identity.
    sts: &'a StsEndpoint,
}

/// Checks the credentials of each account. `print` gets a line for each, in the order of the
/// configuration. Returns whether all are usable.
pub async fn check_live(config: &Config, print: impl FnMut(&str)) -> anyhow::Result<bool> {
    let roots = TlsRoots::load(config.upstream.ca_file.as_deref())?;
    Ok(check_all(config, roots, print).await)
}

async fn check_all(config: &Config, roots: TlsRoots, mut print: impl FnMut(&str)) -> bool {
    let sources = Sources::of(config, roots);
    let checks = config.accounts.iter().map(|account| sources.check(account));
    let mut all_usable = true;
    let mut checked = stream::iter(checks).buffered(AT_A_TIME);
    while let Some((line, is_usable)) = checked.next().await {
        print(&shown(&line));
        all_usable &= is_usable;
    }
    if config.accounts.is_empty() {
        print("no account has credentials");
    }
    all_usable
}

/// The line without what could forge another one: names and paths are the operator's own.
fn shown(line: &str) -> Cow<'_, str> {
    if !line.contains(is_unprintable) {
        return line.into();
    }
    let mut shown = String::with_capacity(line.len() + 8);
    for char in line.chars() {
        if is_unprintable(char) {
            shown.extend(char.escape_unicode());
        } else {
            shown.push(char);
        }
    }
    shown.into()
}

/// Whether a terminal or a viewer acts upon the character: controls, line and paragraph separators,
/// and marks of direction.
fn is_unprintable(char: char) -> bool {
    char.is_control()
        || matches!(char, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn until(expires: Option<SystemTime>) -> String {
    expires.map_or_else(String::new, |expires| {
        format!("; valid until {}", time::format(expires))
    })
}

// === impl Sources ===

impl<'a> Sources<'a> {
    fn of(config: &'a Config, roots: TlsRoots) -> Self {
        let mut sessions = HashMap::new();
        let configured = config
            .accounts
            .iter()
            .filter_map(|account| account.credentials.as_ref()?.session());
        for source in configured.flat_map(SessionSource::chain) {
            sessions.entry(source).or_insert_with(OnceCell::new);
        }
        Self {
            roots: Roots::new(Some(roots)),
            sts: &config.sts,
            sessions,
        }
    }

    /// The line of an account, and whether its credentials are usable.
    async fn check(&self, account: &Account) -> (String, bool) {
        let source = format!(
            "account {}: {}",
            account.id,
            config::source_in_words(account)
        );
        let Some(credentials) = &account.credentials else {
            return (source, true);
        };
        let (obtained, sts) = match credentials {
            AccountCredentials::Loaded(credentials, _) => (Ok(Arc::new(credentials.clone())), None),
            AccountCredentials::Session(session) => (self.session(session).await, session.sts()),
        };
        let credentials = match obtained {
            Ok(credentials) => credentials,
            Err(error) => return (format!("{source}; no credentials: {error}"), false),
        };
        let source = source + &until(credentials.expires);
        let sts = sts.unwrap_or(self.sts);
        match fetch::caller_identity(sts, &self.roots, &credentials).await {
            Ok(identity) => {
                let line = format!(
                    "{source}; identity {} of account {}",
                    identity.arn, identity.account
                );
                (line, true)
            }
            Err(error) => (
                format!("{source}; GetCallerIdentity failed: {error}"),
                false,
            ),
        }
    }

    /// The session of a source, after those that assume its role.
    fn session<'b>(&'b self, source: &'b SessionSource) -> BoxFuture<'b, Fetched> {
        async move {
            match self.sessions.get(source) {
                Some(known) => known.get_or_init(|| self.obtain(source)).await.clone(),
                None => self.obtain(source).await,
            }
        }
        .boxed()
    }

    async fn obtain(&self, source: &SessionSource) -> Fetched {
        let fetcher = Fetcher::new(Arc::new(source.clone()), self.roots.clone());
        let from;
        let assuming = match source.session_from() {
            Some(assuming) => {
                let session = self.session(assuming).await;
                from = session.map_err(|error| FetchError::of_broken_chain(assuming, error))?;
                Some(&*from)
            }
            None => source.loaded_from(),
        };
        let obtained = fetcher.fetch(assuming).await;
        obtained.map(|obtained| Arc::new(obtained.credentials))
    }
}

#[cfg(test)]
mod tests;
