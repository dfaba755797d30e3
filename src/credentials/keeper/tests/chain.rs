//! AssumeRole with the session of another keeper.

use super::*;

const SECOND: &str = "acs:ram::210987654321:role/second";

/// The fakes and keepers of a role, and of the second role that it assumes.
fn chain(first: Behaviour, second: Behaviour) -> [(Arc<Fake>, Arc<Keeper>); 2] {
    let (first, second) = (
        Fake::new("STS.first", first),
        Fake::new("STS.second", second),
    );
    let source = assumed_with_key(ROLE);
    let from = keep(&first, source.clone());
    let keeper = keep_from(&second, assumed_from(source, SECOND), Some(&from));
    [(first, from), (second, keeper)]
}

fn assuming(fake: &Fake) -> Vec<String> {
    fake.assuming.lock().iter().flatten().cloned().collect()
}

#[tokio::test(start_paused = true)]
async fn a_chain_asks_each_once_and_a_refresh_of_the_second_costs_one_request() {
    let [(first, _from), (second, keeper)] =
        chain(Behaviour::Session(3600), Behaviour::Session(3600));
    first.set(Behaviour::Session(3600), 500);
    assert_eq!(keeper.ready(within(1)).await, Ok(()));
    assert_eq!(
        (assuming(&first), assuming(&second)),
        (
            vec!["LTAI-test-key-id-1".to_owned()],
            vec!["STS.first1".to_owned()],
        )
    );
    // The first has 30 minutes left.
    seconds(1800).await;
    let refused = credentials("STS.second1");
    assert!(keeper.replace(&refused, within(1)).await);
    assert_eq!((first.requests(), second.requests()), (1, 2));
    assert_eq!(assuming(&second)[1], "STS.first1");
}

#[tokio::test(start_paused = true)]
async fn a_shorter_second_session_is_refreshed_with_the_first_one_that_holds() {
    let [(first, _from), (second, keeper)] =
        chain(Behaviour::Session(3600), Behaviour::Session(900));
    assert_eq!(keeper.ready(within(1)).await, Ok(()));
    seconds(2600).await;
    assert_eq!((first.requests(), second.requests()), (1, 5));
    assert!(assuming(&second).iter().all(|key| key == "STS.first1"));
    seconds(1000).await;
    assert_eq!(first.requests(), 2);
    assert_eq!(assuming(&second).last().unwrap(), "STS.first2");
}

#[tokio::test(start_paused = true)]
async fn without_the_first_session_the_second_is_not_asked_and_says_why() {
    let [(first, from), (second, keeper)] = chain(
        Behaviour::Fails(FailureKind::Refused),
        Behaviour::Session(3600),
    );
    let error = keeper.ready(within(5)).await.unwrap_err().unwrap();
    assert_eq!(error.kind, FailureKind::NoSource);
    assert_eq!(
        error.to_string(),
        "no session of AssumeRole acs:ram::123456789012:role/flowgate: sts.aliyuncs.com: scripted, status 503"
    );
    assert_eq!(second.requests(), 0);
    assert_eq!(keeper.view().failed[FailureKind::NoSource as usize], 1);
    first.set(Behaviour::Session(3600), 0);
    assert_eq!(from.ready(within(60)).await, Ok(()));
    assert_eq!(
        keeper.ready(within(0) + Duration::from_millis(1)).await,
        Ok(())
    );
    assert_eq!((first.requests(), second.requests()), (2, 1));
    assert_eq!(keeper.view().failure, None);
}

#[tokio::test(start_paused = true)]
async fn a_broken_chain_names_the_source_at_which_it_is_broken() {
    let first = Fake::new("STS.first", Behaviour::Fails(FailureKind::Unreachable));
    let third = Fake::new("STS.third", Behaviour::Session(3600));
    let role = ecs_role("flowgate-role");
    let from = keep(&first, role.clone());
    let assumed = assumed_from(role, ROLE);
    let second = keep_from(&third, assumed.clone(), Some(&from));
    let last = keep_from(&third, assumed_from(assumed, SECOND), Some(&second));
    let error = last.ready(within(5)).await.unwrap_err().unwrap();
    assert_eq!(error.kind, FailureKind::NoSource);
    assert_eq!(
        error.to_string(),
        "no session of the ECS role flowgate-role: sts.aliyuncs.com: scripted, status 503"
    );
    assert_eq!(error.status, Some(503));
}

#[tokio::test(start_paused = true)]
async fn the_second_session_is_used_to_its_end_while_the_first_cannot_be_obtained() {
    let [(first, from), (second, keeper)] =
        chain(Behaviour::Session(3600), Behaviour::Session(43_200));
    assert_eq!(keeper.ready(within(1)).await, Ok(()));
    first.set(Behaviour::Fails(FailureKind::Unreachable), 0);
    seconds(43_199).await;
    assert_eq!(
        (key(&from), key(&keeper).as_deref()),
        (None, Some("STS.second1"))
    );
    assert_eq!(second.requests(), 1);
    seconds(1).await;
    assert_eq!(key(&keeper), None);
    first.set(Behaviour::Session(3600), 0);
    assert_eq!(keeper.ready(within(31)).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_first_session_that_sts_refuses_is_replaced_and_the_second_asked_once_more() {
    let [(first, from), (second, keeper)] =
        chain(Behaviour::Session(3600), Behaviour::Session(900));
    assert_eq!(keeper.ready(within(1)).await, Ok(()));
    seconds(500).await;
    second.set(Behaviour::Fails(FailureKind::OldToken), 0);
    seconds(101).await;
    assert_eq!(
        assuming(&second),
        ["STS.first1", "STS.first1", "STS.first2"]
    );
    assert_eq!(
        (first.requests(), key(&from).as_deref()),
        (2, Some("STS.first2"))
    );
    assert_eq!(
        keeper.view().failed[FailureKind::OldToken as usize],
        1,
        "of one refresh"
    );
    assert_eq!(key(&keeper).as_deref(), Some("STS.second1"));
    // Refused twice: asked again after a minute, each time with one forced refresh.
    seconds(130).await;
    assert_eq!((first.requests(), second.requests()), (4, 7));
    second.set(Behaviour::Session(900), 0);
    seconds(60).await;
    assert_eq!(key(&keeper).as_deref(), Some("STS.second2"));
}

#[tokio::test(start_paused = true)]
async fn a_refused_first_session_is_tried_again_as_soon_as_there_is_another() {
    let [(first, from), (second, keeper)] =
        chain(Behaviour::Session(3600), Behaviour::Session(900));
    assert_eq!(keeper.ready(within(1)).await, Ok(()));
    seconds(500).await;
    second.set(Behaviour::Fails(FailureKind::OldToken), 0);
    first.set(Behaviour::Fails(FailureKind::Unreachable), 0);
    seconds(110).await;
    assert_eq!(second.requests(), 2);
    second.set(Behaviour::Session(900), 0);
    first.set(Behaviour::Session(3600), 0);
    seconds(31).await;
    assert_eq!(key(&from).as_deref(), Some("STS.first2"));
    assert_eq!(assuming(&second)[2], "STS.first2");
    assert_eq!(key(&keeper).as_deref(), Some("STS.second2"));
}

/// As after a session was revoked: all roles hold a permit when STS refuses the session that they
/// share, and that one needs a permit of the same service.
#[tokio::test(start_paused = true)]
async fn many_roles_of_a_refused_session_do_not_block_its_replacement() {
    let (first, second) = (
        Fake::new("STS.first", Behaviour::Session(3600)),
        Fake::new("STS.second", Behaviour::Fails(FailureKind::OldToken)),
    );
    let limits = Arc::new(ServiceLimits::new());
    let source = assumed_with_key(ROLE);
    let from = keep_within(&first, source.clone(), None, &limits);
    second.set(Behaviour::Fails(FailureKind::OldToken), 100);
    let keepers: Vec<_> = (0..100)
        .map(|number| {
            let role = assumed_from(source.clone(), &format!("{SECOND}-{number}"));
            keep_within(&second, role, Some(&from), &limits)
        })
        .collect();
    let calls = keepers.iter().map(|keeper| keeper.ready(within(4)));
    let service = async {
        sleep(Duration::from_millis(900)).await;
        second.set(Behaviour::Session(3600), 100);
    };
    let (ready, ()) = tokio::join!(join_all(calls), service);
    assert!(first.begun.lock()[1] < 1500, "{:?}", first.begun.lock());
    assert!(ready.iter().all(Result::is_ok), "{ready:?}");
    assert_eq!(first.requests(), 2);
}
