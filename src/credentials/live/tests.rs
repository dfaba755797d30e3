//! What `flowgate check --live` asks and prints.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::acs::decode::Params;
use crate::config::{self, AssumeRole, FlowNames, LoadedFrom};
use crate::credentials::keeper::fake::error;
use crate::credentials::scripted::{
    self, ROLE, Received, SESSION_SECRET, SESSION_TOKEN, Scripted, plain, sts_body,
};
use crate::primitives::id::AccountId;

const END: &str = "2999-01-01T00:00:00Z";
const SECOND: &str = "acs:ram::210987654321:role/second";

fn account(id: &str, credentials: AccountCredentials) -> Account {
    Account {
        id: AccountId::new(id),
        credentials: Some(credentials),
        profile: None,
        aliases: Vec::new(),
        upstream: None,
        flow_names: FlowNames::Any,
        adopt_repeats: false,
    }
}

fn keys() -> AccountCredentials {
    AccountCredentials::Loaded(scripted::long_lived(), LoadedFrom::Keys)
}

fn config(accounts: Vec<Account>) -> Config {
    let mut config = config::load(None, []).unwrap().config;
    config.accounts = accounts;
    config
}

/// A session of another role, which this source's session assumes.
fn second(from: &SessionSource, sts: StsEndpoint) -> SessionSource {
    let mut role = scripted::role(sts);
    role.arn = SECOND.to_owned();
    SessionSource::AssumeRole(AssumeRole {
        from: Box::new(AccountCredentials::Session(from.clone())),
        external_id: None,
        role,
    })
}

/// The begin of the line of the account `role`.
fn of_role(server: &Scripted) -> String {
    format!(
        "account role: AssumeRole {ROLE}, from the access key LTAI***-1; STS at {}; \
         valid until 2999-01-01T00:00:00Z",
        server.sts()
    )
}

/// The key id that has signed.
fn key(request: &Received) -> &str {
    let authorization = request.header("authorization").unwrap();
    let (_, rest) = authorization.split_once("Credential=").unwrap();
    rest.split(',').next().unwrap()
}

fn asked_role(request: &Received) -> String {
    let query = request.line.split_once('?').map_or("", |(_, query)| query);
    let params = Params::from_query(query).unwrap();
    params.get("RoleArn").unwrap_or_default().to_owned()
}

/// An STS that knows two roles.
fn sts(request: &Received) -> Option<String> {
    let role = asked_role(request);
    if role.is_empty() {
        let body = format!(
            r#"{{"AccountId":"1","Arn":"acs:ram::1:x/{}","RequestId":"R"}}"#,
            key(request)
        );
        return Some(plain(200, &body));
    }
    let id = if role.ends_with("second") {
        "STS.fake2"
    } else {
        "STS.fake1"
    };
    Some(plain(200, &sts_body(END).replace("STS.fake1", id)))
}

async fn checked(mut config: Config, server: &Scripted) -> (Vec<String>, bool) {
    let mut lines = Vec::new();
    config.sts = server.sts();
    let roots = server.roots.clone().unwrap();
    let all_usable = check_all(&config, roots, |line| lines.push(line.to_owned())).await;
    let text = lines.join("\n");
    for secret in [SESSION_SECRET, SESSION_TOKEN, "test-secret-1"] {
        assert!(!text.contains(secret), "{text}");
    }
    (lines, all_usable)
}

#[test]
fn a_name_cannot_forge_a_line() {
    let name = "k\u{1b}[31m\naccount z: ok\u{202e}, identity \u{4e2d}";
    let expected = "k\\u{1b}[31m\\u{a}account z: ok\\u{202e}, identity \u{4e2d}";
    assert_eq!(shown(name), expected);
    assert_eq!(shown("account acme: keys"), "account acme: keys");
}

#[tokio::test]
async fn each_source_is_asked_once_and_each_account_says_who_it_is() {
    let server = Scripted::answering_tls(sts).await;
    let first = server.assume_role();
    let chained = second(&first, server.sts());
    let config = config(vec![
        account("chained", AccountCredentials::Session(chained)),
        account("keys", keys()),
        account("role", AccountCredentials::Session(first)),
    ]);
    let (lines, all_usable) = checked(config, &server).await;
    let (sts_address, role) = (server.sts(), of_role(&server));
    assert_eq!(
        lines,
        [
            format!(
                "account chained: AssumeRole {SECOND}, from AssumeRole {ROLE}, \
                 from the access key LTAI***-1; STS at {sts_address}; \
                 valid until 2999-01-01T00:00:00Z; identity acs:ram::1:x/STS.fake2 of account 1"
            ),
            "account keys: the access key LTAI***-1; \
             identity acs:ram::1:x/LTAI-test-key-id-1 of account 1"
                .to_owned(),
            format!("{role}; identity acs:ram::1:x/STS.fake1 of account 1"),
        ]
    );
    assert!(all_usable);
    let requests = server.requests();
    let mut assumed: Vec<_> = requests
        .iter()
        .map(|request| (asked_role(request), key(request).to_owned()))
        .filter(|(role, _)| !role.is_empty())
        .collect();
    assumed.sort_unstable();
    let expected = [
        (ROLE.to_owned(), "LTAI-test-key-id-1".to_owned()),
        (SECOND.to_owned(), "STS.fake1".to_owned()),
    ];
    assert_eq!(assumed, expected);
    assert_eq!(requests.len(), 5);
}

#[tokio::test]
async fn a_failure_is_printed_without_secrets_and_the_others_are_checked() {
    let server = Scripted::answering_tls(|request| {
        let is_refused = asked_role(request).ends_with("second")
            || (asked_role(request).is_empty() && key(request).starts_with("LTAI"));
        if is_refused {
            let body = format!(
                r#"{{"Code":"NoPermission","RequestId":"R-1","Message":"{SESSION_SECRET} {SESSION_TOKEN}"}}"#
            );
            return Some(plain(403, &body));
        }
        sts(request)
    })
    .await;
    let first = server.assume_role();
    let chained = second(&first, server.sts());
    let third = second(&chained, server.sts());
    let config = config(vec![
        account("third", AccountCredentials::Session(third)),
        account("keys", keys()),
        account("role", AccountCredentials::Session(first)),
    ]);
    let (lines, all_usable) = checked(config, &server).await;
    let refusal = format!(
        "{}: the service refuses the request, status 403, code NoPermission, request id R-1",
        server.address
    );
    assert_eq!(
        lines,
        [
            format!(
                "account third: AssumeRole {SECOND}, from AssumeRole {SECOND}, from AssumeRole {ROLE}, \
                 from the access key LTAI***-1; STS at {}; no credentials: \
                 no session of AssumeRole {SECOND}: {refusal}",
                server.sts()
            ),
            format!("account keys: the access key LTAI***-1; GetCallerIdentity failed: {refusal}"),
            format!(
                "{}; identity acs:ram::1:x/STS.fake1 of account 1",
                of_role(&server)
            ),
        ]
    );
    assert!(!all_usable);
}

#[tokio::test]
async fn many_accounts_of_one_source_cause_one_session() {
    let server = Scripted::answering_tls(sts).await;
    let source = server.assume_role();
    let accounts = (0..200)
        .map(|number| {
            let credentials = AccountCredentials::Session(source.clone());
            account(&format!("a{number}"), credentials)
        })
        .collect();
    let (lines, all_usable) = checked(config(accounts), &server).await;
    assert!(all_usable);
    assert_eq!(lines.len(), 200);
    assert!(lines[199].starts_with("account a199: "));
    let requests = server.requests();
    let assumed = requests.iter().filter(|it| !asked_role(it).is_empty());
    assert_eq!((assumed.count(), requests.len()), (1, 201));
}

#[tokio::test]
async fn a_relayed_account_has_a_line_and_nothing_is_asked() {
    let server = Scripted::answering_tls(sts).await;
    let relayed = Account {
        credentials: None,
        ..account("relayed", keys())
    };
    let (lines, all_usable) = checked(config(vec![relayed]), &server).await;
    assert_eq!(
        (lines, all_usable),
        (
            vec![
                "account relayed: no credentials: calls are relayed as their callers sign them"
                    .to_owned()
            ],
            true
        )
    );
    assert!(server.requests().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_throttled_request_is_repeated_at_a_slower_pace() {
    let pacing = Pacing::new();
    let requests = AtomicU32::new(0);
    let answer = || async {
        match requests.fetch_add(1, Ordering::Relaxed) {
            0..3 => Err(error(FailureKind::Throttled)),
            number => Ok(number),
        }
    };
    assert_eq!(paced(&pacing, answer).await, Ok(3));
    assert!(pacing.rate() < 12.0, "{}", pacing.rate());
    let start = Instant::now();
    let refused = || async { Err::<(), _>(error(FailureKind::Refused)) };
    assert_eq!(
        paced(&pacing, refused).await,
        Err(error(FailureKind::Refused)),
        "not repeated"
    );
    let throttled = || async { Err::<(), _>(error(FailureKind::Throttled)) };
    assert_eq!(
        paced(&pacing, throttled).await,
        Err(error(FailureKind::Throttled))
    );
    assert!(start.elapsed() < Duration::from_secs(30));
}

/// STS accepts 100 requests a second, a half of which others need.
#[tokio::test(start_paused = true)]
async fn two_thousand_accounts_stay_within_the_quota_of_sts() {
    let pacing = Pacing::new();
    let begun = Mutex::new(Vec::new());
    let start = Instant::now();
    let request = || async {
        begun.lock().push(start.elapsed().as_millis());
        sleep(Duration::from_millis(100)).await;
        Ok(())
    };
    let requests = stream::iter(0..2000).map(|_| paced(&pacing, request));
    let outcomes: Vec<_> = requests.buffered(AT_A_TIME).collect().await;
    assert!(outcomes.iter().all(Result::is_ok));
    let begun = begun.lock();
    let busiest = begun.iter().map(|from| {
        let second = begun.iter().filter(|at| (*from..from + 1000).contains(at));
        second.count()
    });
    assert!(busiest.max() <= Some(51));
    assert!((39..42).contains(&start.elapsed().as_secs()));
}

#[tokio::test]
async fn what_is_not_checked_within_the_limit_is_said_and_is_not_usable() {
    let server = Scripted::answering_tls(sts).await;
    let mut config = config(vec![
        account("role", AccountCredentials::Session(server.assume_role())),
        account("keys", keys()),
    ]);
    config.sts = server.sts();
    let sources = Sources::of(&config, server.roots.clone().unwrap());
    let mut lines = Vec::new();
    let print = |line: &str| lines.push(line.to_owned());
    assert!(!check_within(Duration::ZERO, &config, &sources, print).await);
    assert_eq!(
        lines,
        [
            "account role: not checked within 0 s",
            "account keys: not checked within 0 s",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn the_time_of_many_accounts_is_known_before() {
    let sources = (0..2000)
        .map(|number| {
            let role = crate::credentials::keeper::fake::assumed_with_key(&number.to_string());
            account(&format!("a{number}"), AccountCredentials::Session(role))
        })
        .collect();
    let config = config(sources);
    let sources = Sources::of(&config, TlsRoots::load(None).unwrap());
    assert_eq!(sources.paced_time(), Duration::from_secs(80));
}
