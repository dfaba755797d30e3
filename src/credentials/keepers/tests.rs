//! Which keepers a configuration has, and which ones a reload keeps.

use std::num::NonZeroU32;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use super::super::error::FailureKind;
use super::super::keeper::fake::{
    Behaviour, Fake, ROLE, assumed_from, assumed_with_key, ecs_role, oidc,
};
use super::super::pacing::BACKGROUND_AT_ONCE;
use super::*;
use crate::config::{Account, AccountCredentials, Actions, Client, FlowNames};
use crate::primitives::id::{AccountId, ClientId};

/// The fake of every source, and the sources that keepers were made for.
struct World {
    fake: Arc<Fake>,
    made: Mutex<Vec<SessionSource>>,
    /// The source of each account of the last configuration.
    sources: Mutex<HashMap<String, SessionSource>>,
}

impl World {
    fn new(answer: Behaviour) -> Self {
        Self {
            fake: Fake::new("STS.", answer),
            made: Mutex::default(),
            sources: Mutex::default(),
        }
    }

    fn build(&self, config: &Config, before: Option<&Keepers>) -> Keepers {
        let roots = Roots::new(None);
        let sources = config.accounts.iter().map(|account| {
            let credentials = account.credentials.as_ref().unwrap();
            (
                account.id.to_string(),
                credentials.session().unwrap().clone(),
            )
        });
        *self.sources.lock() = sources.collect();
        Keepers::build(config, roots, before, &|source| {
            self.made.lock().push(SessionSource::clone(source));
            Box::new(self.fake.clone())
        })
    }

    /// The keeper of an account of the last configuration.
    fn of<'a>(&self, keepers: &'a Keepers, account: &str) -> &'a Arc<Keeper> {
        keepers.get(&self.sources.lock()[account]).unwrap()
    }

    fn take_made(&self) -> Vec<SessionSource> {
        std::mem::take(&mut *self.made.lock())
    }
}

/// Accounts with these names and sources; clients use those that do not begin with `unused`.
fn config(accounts: &[(&str, SessionSource)]) -> Config {
    let mut config = crate::config::load(None, []).unwrap().config;
    config.accounts.clear();
    config.clients.clear();
    for (name, source) in accounts {
        config.accounts.push(Account {
            id: AccountId::new(*name),
            credentials: Some(AccountCredentials::Session(source.clone())),
            profile: None,
            aliases: Vec::new(),
            upstream: None,
            flow_names: FlowNames::Any,
            adopt_repeats: false,
        });
        if !name.starts_with("unused") {
            config.clients.push(client(name));
        }
    }
    config
}

fn client(account: &str) -> Client {
    Client {
        id: ClientId::new(format!("client-of-{account}")),
        secrets: Vec::new(),
        disabled: false,
        account: AccountId::new(account),
        actions: Actions::All,
        cust_space_ids: Vec::new(),
        weight: NonZeroU32::MIN,
        hold: None,
    }
}

#[tokio::test(start_paused = true)]
async fn accounts_with_one_source_share_a_keeper_and_unused_ones_have_none() {
    let world = World::new(Behaviour::Session(3600));
    let role = assumed_with_key(ROLE);
    let second = assumed_from(role.clone(), "acs:ram::1:role/second");
    let keepers = world.build(
        &config(&[
            ("a", second.clone()),
            ("b", second.clone()),
            ("c", role.clone()),
            ("unused", oidc()),
        ]),
        None,
    );
    assert_eq!(world.take_made(), [role.clone(), second.clone()]);
    assert!(Arc::ptr_eq(
        world.of(&keepers, "a"),
        world.of(&keepers, "b")
    ));
    assert!(Arc::ptr_eq(
        world.of(&keepers, "a"),
        keepers.get(&second).unwrap()
    ));
    assert!(Arc::ptr_eq(
        world.of(&keepers, "c"),
        keepers.get(&role).unwrap()
    ));
    assert!(keepers.get(&oidc()).is_none());
    assert_eq!(keepers.by_source.len(), 2);
    sleep(Duration::from_secs(1)).await;
    let assuming: Vec<_> = world
        .fake
        .assuming
        .lock()
        .iter()
        .flatten()
        .cloned()
        .collect();
    assert_eq!(assuming, ["LTAI-test-key-id-1", "STS.1"]);
}

#[tokio::test(start_paused = true)]
async fn a_source_whose_assuming_secret_differs_is_another_one() {
    let world = World::new(Behaviour::Session(3600));
    let role = assumed_with_key(ROLE);
    let mut rotated = role.clone();
    let SessionSource::AssumeRole(assume) = &mut rotated else {
        unreachable!()
    };
    let AccountCredentials::Loaded(credentials, _) = &mut *assume.from else {
        unreachable!()
    };
    credentials.secret = crate::primitives::secret::Secret::new("another");
    let keepers = world.build(&config(&[("a", role), ("b", rotated)]), None);
    assert_eq!(keepers.by_source.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_reload_keeps_a_session_and_a_request_under_way() {
    let world = World::new(Behaviour::Session(3600));
    let role = assumed_with_key(ROLE);
    let first = world.build(&config(&[("a", role.clone())]), None);
    let give_up = Instant::now() + Duration::from_secs(60);
    assert_eq!(world.of(&first, "a").ready(give_up).await, Ok(()));
    sleep(Duration::from_secs(1)).await;
    world.fake.set(Behaviour::Session(3600), 5000);
    let second_role = assumed_from(role.clone(), "acs:ram::1:role/second");
    let accounts = [("a", role.clone()), ("b", second_role.clone())];
    let second = world.build(&config(&accounts), Some(&first));
    drop(first);
    assert_eq!(world.take_made(), [role.clone(), second_role]);
    assert!(world.of(&second, "a").current().is_some());
    // While the request of `b` is under way.
    sleep(Duration::from_secs(2)).await;
    let third = world.build(&config(&accounts), Some(&second));
    drop(second);
    let begun = Instant::now();
    assert_eq!(world.of(&third, "b").ready(give_up).await, Ok(()));
    assert_eq!(begun.elapsed(), Duration::from_secs(3));
    assert_eq!((world.fake.requests(), world.take_made().len()), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_reload_to_another_source_starts_it_and_ends_the_old_one_with_its_calls() {
    let world = World::new(Behaviour::Session(3600));
    let first = world.build(&config(&[("a", ecs_role("old"))]), None);
    let give_up = Instant::now() + Duration::from_secs(60);
    assert_eq!(world.of(&first, "a").ready(give_up).await, Ok(()));
    let call = world.of(&first, "a").clone();
    let second = world.build(&config(&[("a", ecs_role("new"))]), Some(&first));
    drop(first);
    assert!(second.get(&ecs_role("old")).is_none());
    assert_eq!(world.of(&second, "a").ready(give_up).await, Ok(()));
    assert_eq!(world.fake.requests(), 2);
    // A call that began before keeps its session, which is refreshed; then nothing asks for it.
    assert!(call.current().is_some());
    sleep(Duration::from_secs(2701)).await;
    assert_eq!(world.fake.requests(), 4);
    drop(call);
    sleep(Duration::from_secs(2701)).await;
    assert_eq!(world.fake.requests(), 5);
    assert_eq!(world.of(&second, "a").view().succeeded, 3);
}

/// A source that asks for a session of this name.
fn named(mut source: SessionSource, name: &str) -> SessionSource {
    match &mut source {
        SessionSource::Oidc(source) => source.role.session_name = name.to_owned(),
        SessionSource::AssumeRole(source) => source.role.session_name = name.to_owned(),
        SessionSource::EcsRole(_) | SessionSource::Uri(_) => unreachable!(),
    }
    source
}

fn key(keepers: &Keepers, source: &SessionSource) -> Option<String> {
    let current = keepers.get(source).unwrap().current()?;
    Some(current.access_key_id.as_str().to_owned())
}

#[tokio::test(start_paused = true)]
async fn a_reload_that_changes_how_a_role_is_asked_for_keeps_its_session_until_the_new_one() {
    let world = World::new(Behaviour::Session(3600));
    let first = world.build(&config(&[("a", oidc())]), None);
    sleep(Duration::from_secs(100)).await;
    let SessionSource::Oidc(mut changed) = named(oidc(), "other") else {
        unreachable!()
    };
    changed.role.duration = Some(Duration::from_secs(1800));
    changed.role.sts.host = "sts-vpc.cn-hangzhou.aliyuncs.com".to_owned();
    changed.token_file = "/other".into();
    let changed = SessionSource::Oidc(changed);
    // STS does not answer for a while.
    world.fake.set(Behaviour::Session(3600), 5_000);
    let second = world.build(&config(&[("a", changed.clone())]), Some(&first));
    let before = first.get(&oidc()).unwrap().view();
    drop(first);
    assert_eq!(key(&second, &changed).as_deref(), Some("STS.1"));
    let view = second.get(&changed).unwrap().view();
    assert_eq!(view.ends_at, before.ends_at);
    assert_eq!(view.succeeded, 1);
    sleep(Duration::from_millis(4_990)).await;
    assert_eq!(key(&second, &changed).as_deref(), Some("STS.1"));
    assert_eq!(world.fake.begun.lock()[1], 100_000, "at once");
    sleep(Duration::from_millis(20)).await;
    assert_eq!(key(&second, &changed).as_deref(), Some("STS.2"));
}

#[tokio::test(start_paused = true)]
async fn a_session_that_was_kept_over_a_reload_is_used_to_its_end_and_not_after() {
    let world = World::new(Behaviour::Session(3600));
    let first = world.build(&config(&[("a", oidc())]), None);
    sleep(Duration::from_secs(100)).await;
    world
        .fake
        .set(Behaviour::Fails(FailureKind::Unreachable), 0);
    let changed = named(oidc(), "other");
    let second = world.build(&config(&[("a", changed.clone())]), Some(&first));
    drop(first);
    sleep(Duration::from_millis(3_499_990)).await;
    assert_eq!(key(&second, &changed).as_deref(), Some("STS.1"));
    sleep(Duration::from_millis(20)).await;
    assert_eq!(key(&second, &changed), None);
}

#[tokio::test(start_paused = true)]
async fn reloads_while_the_service_fails_continue_the_back_off() {
    let world = World::new(Behaviour::Fails(FailureKind::Unreachable));
    let sources = [oidc(), named(oidc(), "other")];
    let mut keepers = world.build(&config(&[("a", sources[0].clone())]), None);
    for number in 1..=40 {
        sleep(Duration::from_millis(1500)).await;
        let source = sources[number % 2].clone();
        keepers = world.build(&config(&[("a", source)]), Some(&keepers));
    }
    // At 0, 1, 3, 7, 15, 31 and 61 seconds, or up to a fifth earlier.
    assert!(world.fake.requests() <= 7, "{:?}", world.fake.begun.lock());
    let view = keepers.get(&sources[0]).unwrap().view();
    assert_eq!(
        view.failed.iter().sum::<u64>(),
        world.fake.requests() as u64
    );
}

#[tokio::test(start_paused = true)]
async fn a_reload_that_may_end_a_refusal_asks_at_once() {
    let world = World::new(Behaviour::Fails(FailureKind::Refused));
    let first = world.build(&config(&[("a", oidc())]), None);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(world.fake.requests(), 1);
    world.fake.set(Behaviour::Session(3600), 0);
    let changed = named(oidc(), "other");
    let second = world.build(&config(&[("a", changed.clone())]), Some(&first));
    sleep(Duration::from_millis(1)).await;
    assert_eq!(key(&second, &changed).as_deref(), Some("STS.1"));
}

#[tokio::test(start_paused = true)]
async fn a_session_with_other_rights_is_not_used_after_a_reload() {
    let role = assumed_with_key(ROLE);
    let mut limited = role.clone();
    let mut other_key = role.clone();
    for source in [&mut limited, &mut other_key] {
        let SessionSource::AssumeRole(assume) = source else {
            unreachable!()
        };
        assume.role.policy = Some("{}".to_owned());
    }
    if let SessionSource::AssumeRole(assume) = &mut other_key {
        assume.role.policy = None;
        if let AccountCredentials::Loaded(credentials, _) = &mut *assume.from {
            credentials.access_key_id = crate::primitives::id::AccessKeyId::new("LTAI-other");
        }
    }
    let second = assumed_from(role.clone(), "acs:ram::1:role/second");
    let second_of_other = assumed_from(other_key.clone(), "acs:ram::1:role/second");
    for (before, after) in [
        (role.clone(), assumed_with_key("acs:ram::1:role/other")),
        (role.clone(), limited.clone()),
        (limited, role.clone()),
        (role.clone(), other_key),
        (second, second_of_other),
        (role, oidc()),
        (ecs_role("a"), ecs_role("b")),
    ] {
        let world = World::new(Behaviour::Session(3600));
        let first = world.build(&config(&[("a", before.clone())]), None);
        sleep(Duration::from_secs(2)).await;
        assert!(key(&first, &before).is_some());
        let second = world.build(&config(&[("a", after.clone())]), Some(&first));
        assert_eq!(key(&second, &after), None, "{after:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_chain_keeps_its_sessions_when_its_first_source_is_asked_elsewhere() {
    let world = World::new(Behaviour::Session(3600));
    let role = assumed_with_key(ROLE);
    let chained = assumed_from(role.clone(), "acs:ram::1:role/second");
    let first = world.build(&config(&[("a", chained)]), None);
    sleep(Duration::from_secs(2)).await;
    let role = named(role, "other");
    let chained = assumed_from(role.clone(), "acs:ram::1:role/second");
    let second = world.build(&config(&[("a", chained.clone())]), Some(&first));
    assert_eq!(key(&second, &role).as_deref(), Some("STS.1"));
    assert_eq!(key(&second, &chained).as_deref(), Some("STS.2"));
}

#[tokio::test(start_paused = true)]
async fn log_lines_name_the_accounts_of_a_source_also_after_a_reload() {
    let (log, _guard) = super::super::keeper::fake::captured();
    let world = World::new(Behaviour::Session(3600));
    let role = assumed_with_key(ROLE);
    let second = assumed_from(role.clone(), "acs:ram::1:role/second");
    let first = world.build(
        &config(&[("a", second.clone()), ("unused", role.clone())]),
        None,
    );
    sleep(Duration::from_secs(1)).await;
    // The session that assumes the role is of the account, too.
    let lines = log.lines();
    assert_eq!(lines.len(), 2, "{lines:#?}");
    for line in &lines {
        assert!(
            line.starts_with("INFO a session is obtained accounts=\"a\" source"),
            "{line}"
        );
    }
    let accounts = ["b", "c", "d", "e", "f"].map(|name| (name, second.clone()));
    let _reloaded = world.build(&config(&accounts), Some(&first));
    drop(first);
    world
        .fake
        .set(Behaviour::Fails(FailureKind::Unreachable), 0);
    sleep(Duration::from_secs(2701)).await;
    let lines = log.lines();
    let warned = &lines[2];
    assert!(
        warned.starts_with("WARN a session cannot be refreshed"),
        "{warned}"
    );
    assert!(
        warned.contains(" accounts=\"b, c, d and 2 more\" "),
        "{warned}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_service_that_hangs_delays_no_other_service() {
    let world = World::new(Behaviour::Session(3600));
    world.fake.set(Behaviour::Session(3600), 1_000_000);
    let accounts: Vec<_> = (0..100).map(|number| format!("a{number}")).collect();
    let accounts: Vec<_> = accounts
        .iter()
        .map(|name| {
            (
                name.as_str(),
                assumed_with_key(&format!("acs:ram::1:role/{name}")),
            )
        })
        .collect();
    let first = world.build(&config(&accounts), None);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(
        world.fake.under_way.load(Ordering::Relaxed),
        BACKGROUND_AT_ONCE
    );
    world.fake.set(Behaviour::Session(3600), 0);
    let with_ecs = [accounts, vec![("ecs", ecs_role("role"))]].concat();
    let second = world.build(&config(&with_ecs), Some(&first));
    sleep(Duration::from_millis(1)).await;
    assert!(world.of(&second, "ecs").current().is_some());
    // The others keep the bounds that they had before the reload.
    assert_eq!(
        world.fake.under_way.load(Ordering::Relaxed),
        BACKGROUND_AT_ONCE
    );
}

#[tokio::test(start_paused = true)]
async fn only_sources_over_tls_load_roots() {
    let without_tls = config(&[("a", ecs_role("role"))]);
    let keepers = Keepers::new(&without_tls, None).unwrap();
    assert!(keepers.roots.get("").is_err());
    let mut with_tls = config(&[("a", oidc())]);
    let keepers = keepers.reloaded(&with_tls, None).unwrap();
    let loaded = keepers.roots.get("").unwrap();
    let other = TlsRoots::load(None).unwrap();
    keepers.set_tls_roots(&other);
    let now = keepers.roots.get("").unwrap();
    assert!(now.is_same(&other) && !now.is_same(&loaded));
    with_tls.upstream.ca_file = Some("/no/such/roots.pem".into());
    let error = Keepers::new(&with_tls, None).err().unwrap();
    assert!(error.to_string().contains("/no/such/roots.pem"), "{error}");
}
