//! `flowgate check --live`: obtains the credentials of each managed account once, and asks STS who
//! they belong to.

use std::borrow::Cow;
use std::collections::HashMap;
use std::future::{Future, ready};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{self, StreamExt};
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep, timeout_at};

use super::error::{FailureKind, FetchError};
use super::fetch::{self, Fetcher};
use super::http::{self, Roots};
use super::pacing::{AWAITED_AT_ONCE, Asked, MAX_RATE, Pacing};
use crate::acs::time;
use crate::config::{
    self, Account, AccountCredentials, Config, Credentials, SessionSource, StsEndpoint,
};
use crate::upstream::TlsRoots;

/// Accounts that are checked at a time. Their requests are paced as those of a running Flowgate.
const AT_A_TIME: usize = AWAITED_AT_ONCE;

/// The time that the check may take, besides twice what the pace of the requests needs.
const BASE_LIMIT: Duration = Duration::from_secs(60);

/// A check that takes longer at the pace of the requests says so before it begins.
const ANNOUNCED: Duration = Duration::from_secs(10);

/// The least time until a throttled request is repeated.
const REPEAT_AFTER: Duration = Duration::from_secs(1);

/// How often a throttled request is repeated. Each time the pace of all is slower.
const MAX_THROTTLED: u32 = 10;

/// The credentials, or why there are none: of a chain, where it broke.
type Fetched = Result<Arc<Credentials>, FetchError>;

/// The sources of a configuration, each of which is asked at most once.
struct Sources<'a> {
    roots: Arc<Roots>,
    /// The paces of the services, by host and port.
    pacing: Mutex<HashMap<String, Arc<Pacing>>>,
    sessions: HashMap<&'a SessionSource, OnceCell<Fetched>>,
    /// The number of accounts with credentials.
    accounts: usize,
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
    let paced = sources.paced_time();
    let limit = BASE_LIMIT + 2 * paced;
    if paced > ANNOUNCED {
        print(&format!(
            "the requests are paced: this takes about {} s, at most {} s",
            paced.as_secs(),
            limit.as_secs()
        ));
    }
    check_within(limit, config, &sources, print).await
}

/// The same, within this time. What is not checked by then is not usable.
async fn check_within(
    limit: Duration,
    config: &Config,
    sources: &Sources<'_>,
    mut print: impl FnMut(&str),
) -> bool {
    let deadline = Instant::now() + limit;
    let checks = config.accounts.iter().map(|account| async move {
        let checked = timeout_at(deadline, sources.check(account)).await;
        checked.unwrap_or_else(|_elapsed| {
            let seconds = limit.as_secs();
            let line = format!("account {}: not checked within {seconds} s", account.id);
            (line, false)
        })
    });
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

/// Sends a request at the pace of its service, and repeats it as long as the service throttles it,
/// at most [`MAX_THROTTLED`] times.
async fn paced<T, F>(pacing: &Arc<Pacing>, mut request: impl FnMut() -> F) -> Result<T, FetchError>
where
    F: Future<Output = Result<T, FetchError>>,
{
    let mut throttled = 0;
    loop {
        let asked = match throttled {
            0 => Asked::Healthy,
            _ => Asked::Failed,
        };
        let permit = pacing.permit(asked, ready(())).await;
        let outcome = request().await.inspect_err(|error| permit.failed(error));
        drop(permit);
        match outcome {
            Err(error) if error.kind == FailureKind::Throttled && throttled < MAX_THROTTLED => {
                throttled += 1;
                sleep(REPEAT_AFTER).await;
            }
            outcome => return outcome,
        }
    }
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
        let accounts = config.accounts.iter();
        Self {
            roots: Roots::new(Some(roots)),
            pacing: Mutex::default(),
            accounts: accounts.filter(|it| it.credentials.is_some()).count(),
            sts: &config.sts,
            sessions,
        }
    }

    /// How long the requests take at their pace, if one service gets all of them.
    fn paced_time(&self) -> Duration {
        let requests = self.sessions.len() + self.accounts;
        Duration::from_secs_f64(requests as f64 / MAX_RATE)
    }

    /// The pace of a service.
    fn pacing(&self, place: String) -> Arc<Pacing> {
        let mut pacing = self.pacing.lock();
        pacing.entry(place).or_insert_with(Pacing::new).clone()
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
        let pacing = self.pacing(sts.to_string());
        let ask = || fetch::caller_identity(sts, &self.roots, &credentials);
        match paced(&pacing, ask).await {
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
        let pacing = self.pacing(http::place(source));
        let obtained = paced(&pacing, || fetcher.fetch(assuming)).await;
        obtained.map(|obtained| Arc::new(obtained.credentials))
    }
}

#[cfg(test)]
mod tests;
