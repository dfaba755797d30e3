//! `flowgate status`: prints the lanes of a running Flowgate as a table, the fullest first, once or
//! every second. Fields that another version does not report have their default.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde::Deserialize;

use super::ask::{Admin, AdminAddress, ask};
use super::table::{shown, table};
use crate::config::{Source, secret_file};
use crate::limiter::shared::NEVER;
use crate::limiter::{LaneView, OperatorPauseView, TenantView};

/// The options of `flowgate status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct Status {
    /// The admin address, ip:port, name:port or unix:/path [default: listen.admin of the configuration].
    #[arg(long, value_name = "ADDRESS")]
    pub admin: Option<AdminAddress>,
    /// The file with the admin token [default: listen.admin_token of the configuration, unless
    /// --admin is given].
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Also show the tenants that wait in each lane, with their client and their share of the rate.
    #[arg(long)]
    pub tenants: bool,
    /// Refresh every second.
    #[arg(long)]
    pub watch: bool,
    /// Print everything as one line of JSON.
    #[arg(long, conflicts_with = "tenants")]
    pub json: bool,
}

/// The fields of `/lanes` that are printed.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Page {
    mode: String,
    upstream: Upstream,
    upstreams: Vec<Upstream>,
    store: Option<Store>,
    sessions: Vec<Session>,
    lanes: Vec<LaneView>,
}

/// The store that replicas share.
#[derive(Deserialize)]
struct Store {
    up: bool,
    replicas: usize,
}

/// An account whose session is missing or could not be refreshed.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Session {
    account: String,
    source: String,
    /// The time until its end; `None` before the first session.
    seconds: Option<i64>,
    /// The number of calls that wait for it.
    waiting: usize,
    failure: Option<RefreshFailure>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RefreshFailure {
    seconds_ago: u64,
    text: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Upstream {
    url: String,
    reachable: bool,
    down_seconds: f64,
    reason: String,
}

/// The table's header.
const HEAD: [&str; 8] = [
    "ACCOUNT", "ACTION", "QUEUED", "OLDEST", "WAIT", "PAUSE", "RATE", "LIMIT",
];
/// Maximum number of lanes in the table.
const MOST: usize = 100;
/// Maximum number of sessions above the table.
const MOST_SESSIONS: usize = 20;
/// Interval of `--watch`.
const EVERY: Duration = Duration::from_secs(1);
/// ANSI: moves the cursor home and clears the screen.
const CLEAR: &str = "\x1b[H\x1b[J";

/// Returns the address and token to use. The token of the configuration is sent only to the
/// listener of the configuration.
pub(super) fn listener(
    admin: Option<&AdminAddress>,
    token_file: Option<&Path>,
    source: &Source,
) -> Result<Admin, String> {
    let token = token_file
        .map(secret_file)
        .transpose()
        .map_err(|mistake| format!("--token-file: {mistake}"))?;
    if let Some(address) = admin {
        return Ok(Admin {
            address: address.clone(),
            token,
        });
    }
    let bind = source.admin().map_err(|mistakes| mistakes.to_string())?;
    let address = AdminAddress::Bind(bind);
    if token.is_some() {
        return Ok(Admin { address, token });
    }
    let token = source.admin_token();
    let token = token.map_err(|mistakes| format!("{mistakes}\n(or use --token-file)"))?;
    Ok(Admin { address, token })
}

// === impl Status ===

impl Status {
    /// The admin port that is asked, by the options or the configuration of `source`.
    ///
    /// # Errors
    /// The configuration does not say which, or its token cannot be read.
    pub fn admin(&self, source: &Source) -> Result<Admin, String> {
        listener(self.admin.as_ref(), self.token_file.as_deref(), source)
    }

    /// Queries the lanes once and formats them.
    pub async fn query(&self, admin: &Admin) -> Result<String, String> {
        let response = ask(admin, "/lanes")
            .await
            .map_err(|error| format!("{error}: does Flowgate run there?"))?;
        if !response.status.is_success() {
            let why = shown(response.body.trim_end());
            return Err(format!(
                "{}/lanes returned {}: {why} (--token-file)",
                admin.address,
                response.status.as_u16()
            ));
        }
        if self.json {
            return Ok(format!("{}\n", response.body.trim_end()));
        }
        let page = serde_json::from_str::<Page>(&response.body);
        page.map(|page| page.table(self.tenants))
            .map_err(|_| format!("{}/lanes is not Flowgate's page", admin.address))
    }

    /// Prints the lanes every second until the output is closed. Failed queries are printed and
    /// repeated.
    pub async fn watch(
        &self,
        admin: &Admin,
        out: &mut impl Write,
        is_terminal: bool,
    ) -> io::Result<()> {
        let clear = if is_terminal && !self.json { CLEAR } else { "" };
        loop {
            match self.query(admin).await {
                Ok(text) => write!(out, "{clear}{text}")?,
                // With --json, standard output has only JSON lines.
                Err(error) if self.json => tracing::debug!(error, "no answer"),
                Err(error) => writeln!(out, "{clear}{error}")?,
            }
            out.flush()?;
            tokio::time::sleep(EVERY).await;
        }
    }
}

// === impl Page ===

impl Page {
    fn table(mut self, tenants: bool) -> String {
        self.lanes.sort_by(|a, b| {
            b.waiting()
                .cmp(&a.waiting())
                .then_with(|| (&a.account, &a.action).cmp(&(&b.account, &b.action)))
        });
        let mut rows = vec![HEAD.map(str::to_owned)];
        for lane in self.lanes.iter().take(MOST) {
            rows.push(lane.row());
            let tenants = if tenants { &lane.tenants[..] } else { &[] };
            rows.extend(
                tenants
                    .iter()
                    .map(|tenant| tenant.row(lane.effective_per_second)),
            );
        }
        let table = if rows.len() > 1 {
            table(&rows)
        } else {
            String::new()
        };
        let more = self.lanes.len().saturating_sub(MOST);
        let rest = if more > 0 {
            format!("and {more} more lanes\n")
        } else {
            String::new()
        };
        format!("{}\n{}{table}{rest}", self.summary(), self.sessions())
    }

    /// A line for each session that is missing or failing; those that most calls wait for first.
    fn sessions(&self) -> String {
        let mut sessions: Vec<_> = self.sessions.iter().collect();
        sessions.sort_by_key(|session| std::cmp::Reverse(session.waiting));
        let lines = sessions.iter().take(MOST_SESSIONS);
        let mut text: String = lines.map(|session| session.line()).collect();
        if let Some(more @ 1..) = sessions.len().checked_sub(MOST_SESSIONS) {
            text.push_str(&format!(
                "and {more} more accounts whose session is missing or failing\n"
            ));
        }
        text
    }

    fn summary(&self) -> String {
        let upstream = match &self.upstreams[..] {
            [] | [_] => self.upstream.summary("CAMS"),
            several => several
                .iter()
                .map(|upstream| upstream.summary(&shown(&upstream.url)))
                .collect::<Vec<_>>()
                .join("; "),
        };
        let waiting: usize = self.lanes.iter().map(LaneView::waiting).sum();
        let for_session: usize = self.sessions.iter().map(|session| session.waiting).sum();
        let for_session = if for_session > 0 {
            format!(", waiting for a session {for_session}")
        } else {
            String::new()
        };
        format!(
            "mode {}, lanes {}, waiting {waiting}{for_session}; {upstream}{}",
            shown(&self.mode),
            self.lanes.len(),
            self.store.as_ref().map(Store::summary).unwrap_or_default()
        )
    }
}

// === impl Store ===

impl Store {
    fn summary(&self) -> String {
        match self {
            Self { up: false, .. } => "; the store does not respond".to_owned(),
            Self { replicas: 1, .. } => "; the store responds, 1 replica".to_owned(),
            Self { replicas, .. } => format!("; the store responds, {replicas} replicas"),
        }
    }
}

// === impl Session ===

impl Session {
    fn line(&self) -> String {
        let state = match self.seconds {
            None => "no session".to_owned(),
            Some(left @ 1..) => format!("the session ends in {left}s"),
            Some(left) => format!("the session ended {}s ago", left.unsigned_abs()),
        };
        let failure = match &self.failure {
            None => String::new(),
            Some(RefreshFailure { seconds_ago, text }) => {
                format!(
                    "; the last request failed {seconds_ago}s ago: {}",
                    shown(text)
                )
            }
        };
        format!(
            "account {} ({}): {state}, calls waiting {}{failure}\n",
            shown(&self.account),
            shown(&self.source),
            self.waiting
        )
    }
}

// === impl Upstream ===

impl Upstream {
    fn summary(&self, name: &str) -> String {
        if self.reachable {
            return format!("{name} is reachable");
        }
        format!(
            "{name} has not been reachable for {}: {}",
            seconds(self.down_seconds),
            shown(&self.reason)
        )
    }
}

// === impl LaneView ===

impl LaneView {
    /// Returns the number of waiting calls; in observe mode, of those that would wait.
    fn waiting(&self) -> usize {
        self.shadow
            .as_ref()
            .map_or(self.queued, |shadow| shadow.queued)
    }

    /// Formats the pause. An operator's pause is marked as `ordered`.
    fn pause(&self) -> String {
        match &self.operator_pause {
            None => seconds(self.pause_remaining_seconds),
            Some(OperatorPauseView {
                remaining_seconds: None,
            }) => "ordered".to_owned(),
            Some(OperatorPauseView {
                remaining_seconds: Some(left),
            }) => format!("ordered {}", seconds(*left)),
        }
    }

    fn row(&self) -> [String; 8] {
        let wait = self
            .shadow
            .as_ref()
            .map_or(self.predicted_wait_seconds, |shadow| {
                shadow.predicted_wait_seconds
            });
        [
            shown(&self.account),
            shown(&self.action),
            self.waiting().to_string(),
            seconds(self.oldest_wait_seconds),
            predicted(wait),
            self.pause(),
            per_second(self.effective_per_second),
            per_second(self.limit_per_second),
        ]
    }
}

// === impl TenantView ===

impl TenantView {
    fn row(&self, rate: f64) -> [String; 8] {
        [
            format!("  {}", shown(&self.client)),
            if self.tenant.is_empty() {
                "  -".to_owned()
            } else {
                format!("  {}", shown(&self.tenant))
            },
            self.queued.to_string(),
            seconds(self.oldest_wait_seconds),
            String::new(),
            String::new(),
            per_second(self.share * rate),
            String::new(),
        ]
    }
}

fn seconds(seconds: f64) -> String {
    if seconds > 0.0 {
        format!("{seconds:.1}s")
    } else {
        "-".to_owned()
    }
}

/// How long a new call waits.
fn predicted(wait: f64) -> String {
    if wait < NEVER.as_secs_f64() {
        seconds(wait)
    } else {
        "unknown".to_owned()
    }
}

fn per_second(rate: f64) -> String {
    // Two decimals without trailing zeros: 5 and 4.93.
    format!("{}/s", (rate * 100.0).round() / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table_of(page: &str, tenants: bool) -> String {
        serde_json::from_str::<Page>(page).unwrap().table(tenants)
    }

    #[test]
    fn the_fullest_lane_is_first_with_its_tenants_below_it() {
        let page = r#"{"mode":"enforce","upstream":{"reachable":true},"later":1,"lanes":[
            {"account":"b","action":"ListFlow","limit_per_second":5,"effective_per_second":4.975},
            {"account":"acme","action":"CreateFlow","queued":3,"limit_per_second":5.0,"effective_per_second":2,
             "oldest_wait_seconds":1.25,"predicted_wait_seconds":2,"pause_remaining_seconds":0.04,
             "tenants":[{"client":"team-a","tenant":"a\u001b[2J","queued":3,"share":0.5,"oldest_wait_seconds":1.25}]}]}"#;
        let expected = "\
mode enforce, lanes 2, waiting 3; CAMS is reachable
ACCOUNT   ACTION        QUEUED  OLDEST  WAIT  PAUSE  RATE    LIMIT
acme      CreateFlow    3       1.2s    2.0s  0.0s   2/s     5/s
  team-a    a\\u{1b}[2J  3       1.2s                 1/s
b         ListFlow      0       -       -     -      4.97/s  5/s
";
        assert_eq!(table_of(page, true), expected);
        assert_eq!(table_of(page, false).lines().count(), 4);
    }

    #[test]
    fn observe_mode_shows_calls_that_would_wait_and_since_when_cams_is_unreachable() {
        let page = r#"{"mode":"observe","upstream":{"reachable":false,"down_seconds":12,"reason":"refused"},"lanes":[
            {"account":"acme","action":"CreateFlow","shadow":{"queued":7,"predicted_wait_seconds":1.5}}]}"#;
        let table = table_of(page, false);
        let summary =
            "mode observe, lanes 1, waiting 7; CAMS has not been reachable for 12.0s: refused";
        assert_eq!(table.lines().next(), Some(summary));
        assert!(
            table.contains("CreateFlow  7       -       1.5s"),
            "{table}"
        );
        assert_eq!(table_of("{}", true).lines().count(), 1);
    }

    #[test]
    fn the_first_line_says_whether_the_store_responds() {
        for (store, expected) in [
            ("null", ""),
            (
                r#"{"up":true,"replicas":1}"#,
                "; the store responds, 1 replica",
            ),
            (
                r#"{"up":true,"replicas":3}"#,
                "; the store responds, 3 replicas",
            ),
            (
                r#"{"up":false,"replicas":3}"#,
                "; the store does not respond",
            ),
        ] {
            let page = format!(r#"{{"upstream":{{"reachable":true}},"store":{store}}}"#);
            let table = table_of(&page, false);
            let state = table.split_once("CAMS is reachable").unwrap().1;
            assert_eq!(state.lines().next().unwrap_or_default(), expected);
        }
    }

    #[test]
    fn sessions_that_are_missing_or_failing_are_above_the_lanes() {
        let page = r#"{"mode":"enforce","upstream":{"reachable":true},"lanes":[],"sessions":[
            {"account":"a","source":"uri","seconds":240,"failure":{"seconds_ago":3,"text":"x\u001b: down"}},
            {"account":"b","source":"oidc","seconds":null,"waiting":20,"failure":null},
            {"account":"c","source":"ecs_role","seconds":-5,"waiting":2}]}"#;
        let expected = "\
mode enforce, lanes 0, waiting 0, waiting for a session 22; CAMS is reachable
account b (oidc): no session, calls waiting 20
account c (ecs_role): the session ended 5s ago, calls waiting 2
account a (uri): the session ends in 240s, calls waiting 0; the last request failed 3s ago: x\\u{1b}: down
";
        assert_eq!(table_of(page, false), expected);
        let many: Vec<_> = (0..23)
            .map(|number| format!(r#"{{"account":"{number}"}}"#))
            .collect();
        let table = table_of(&format!(r#"{{"sessions":[{}]}}"#, many.join(",")), false);
        let last = "and 3 more accounts whose session is missing or failing";
        assert_eq!(
            (table.lines().count(), table.lines().last()),
            (22, Some(last))
        );
    }

    #[test]
    fn an_operators_pause_is_marked() {
        for (ordered, shown) in [
            ("null", "2.0s"),
            ("{}", "ordered"),
            (r#"{"remaining_seconds":1.5}"#, "ordered 1.5s"),
        ] {
            let lane = format!(
                r#"{{"lanes":[{{"pause_remaining_seconds":2,"operator_pause":{ordered}}}]}}"#
            );
            let table = table_of(&lane, false);
            assert!(
                table
                    .lines()
                    .last()
                    .is_some_and(|row| row.contains(&format!("  {shown}  "))),
                "{table}"
            );
        }
    }

    #[test]
    fn at_most_a_hundred_lanes_are_shown() {
        let lanes: Vec<String> = (0..103)
            .map(|lane| format!(r#"{{"account":"{lane}"}}"#))
            .collect();
        let table = table_of(&format!(r#"{{"lanes":[{}]}}"#, lanes.join(",")), false);
        assert_eq!(
            (table.lines().count(), table.lines().last()),
            (103, Some("and 3 more lanes"))
        );
    }
}
