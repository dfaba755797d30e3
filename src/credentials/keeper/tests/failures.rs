//! Sources that fail, hang, refuse or panic.

use super::*;

/// The gaps are within these steps: up to a fifth less, never less than a second.
fn assert_back_off(gaps: &[u64]) {
    let steps = [1000, 2000, 4000, 8000, 16_000]
        .into_iter()
        .chain(std::iter::repeat(30_000));
    for (gap, step) in gaps.iter().zip(steps) {
        let least = (step * 8 / 10).max(1000);
        assert!((least..=step).contains(gap), "{gap} of {step}: {gaps:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_file_that_does_not_respond_is_the_cause_and_not_the_service() {
    let fake = Fake::new("STS.", Behaviour::Session(3600));
    fake.file_hangs.store(true, Ordering::Relaxed);
    let keeper = keep(&fake, oidc());
    let error = keeper.ready(within(60)).await.unwrap_err().unwrap();
    assert_eq!(error.kind, FailureKind::TokenFile);
    let text = "the token file: the file system does not respond";
    assert_eq!(error.to_string(), text);
    assert_eq!(fake.requests(), 0);
    fake.file_hangs.store(false, Ordering::Relaxed);
    assert_eq!(keeper.ready(within(60)).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn the_old_session_is_used_to_its_end_and_the_source_is_tried_with_back_off() {
    let fake = Fake::new("STS.", Behaviour::Session(600));
    let keeper = ready(&fake, oidc()).await;
    fake.set(Behaviour::Fails(FailureKind::ServiceError), 0);
    for second in 0..600 {
        assert_eq!(key(&keeper).as_deref(), Some("STS.1"), "{second}");
        assert_eq!(keeper.ready(within(0)).await, Ok(()));
        seconds(1).await;
    }
    assert_eq!(key(&keeper), None);
    let gaps = fake.gaps();
    assert!((380_000..=400_000).contains(&gaps[0]), "{gaps:?}");
    assert!(gaps.len() > 8, "{gaps:?}");
    assert_back_off(&gaps[1..]);
    // Calls wait within their hold, and get the last failure.
    let error = super::super::fake::error(FailureKind::ServiceError);
    let begun = Instant::now();
    assert_eq!(keeper.ready(within(10)).await, Err(Some(error)));
    assert_eq!(begun.elapsed(), Duration::from_secs(10));
    // A call that waits is ready within 30 s after the service works again.
    seconds(100).await;
    fake.set(Behaviour::Session(600), 0);
    assert_eq!(keeper.ready(within(30)).await, Ok(()));
    assert_eq!(key(&keeper).as_deref(), Some("STS.2"));
    // The back-off begins again at its start.
    fake.set(Behaviour::Fails(FailureKind::ServiceError), 0);
    let before = fake.requests();
    seconds(420).await;
    assert_back_off(&fake.gaps()[before..]);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_cannot_be_used_keeps_the_old_session() {
    let fake = Fake::new("STS.", Behaviour::Session(600));
    let keeper = ready(&fake, ecs_role("flowgate-role")).await;
    // Ended when it is received; then none that could be read.
    for (answer, until) in [
        (Behaviour::Session(0), 430),
        (Behaviour::Fails(FailureKind::BadAnswer), 599),
    ] {
        fake.set(answer, 0);
        while fake.millis() < until * 1000 {
            seconds(1).await;
            assert_eq!(key(&keeper).as_deref(), Some("STS.1"));
        }
    }
    assert_back_off(&fake.gaps()[1..]);
    assert!(fake.requests() > 7);
    let view = keeper.view();
    assert_eq!(view.succeeded, 1);
    assert_eq!(
        view.failed[FailureKind::BadAnswer as usize],
        fake.requests() as u64 - 1
    );
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_repeated_once_a_minute_whatever_calls_do_and_counted_apart() {
    let fake = Fake::new("STS.", Behaviour::Fails(FailureKind::Throttled));
    let keeper = keep(&fake, oidc());
    let calls = async {
        loop {
            // A hundred calls a second, each of which waits for a while.
            let waits = (0..100).map(|_| keeper.ready(within(1)));
            assert!(join_all(waits).await.iter().all(Result::is_err));
        }
    };
    let service = async {
        seconds(40).await;
        fake.set(Behaviour::Fails(FailureKind::Refused), 0);
        seconds(600).await;
    };
    tokio::select! { () = calls => {}, () = service => {} }
    let view = keeper.view();
    let throttled = view.failed[FailureKind::Throttled as usize];
    let refused = view.failed[FailureKind::Refused as usize];
    assert!((5..=7).contains(&throttled), "{throttled}");
    assert!((9..=11).contains(&refused), "{refused}");
    assert_eq!(fake.requests() as u64, throttled + refused);
    let gaps = fake.gaps();
    assert_back_off(&gaps[..usize::try_from(throttled).unwrap()]);
    let slow = &gaps[usize::try_from(throttled).unwrap()..];
    assert!(slow.iter().all(|gap| *gap == 60_000), "{gaps:?}");
}

#[tokio::test(start_paused = true)]
async fn a_service_that_hangs_is_given_up_after_10_seconds() {
    let fake = Fake::new("STS.", Behaviour::Session(3600));
    fake.set(Behaviour::Session(3600), 1_000_000);
    let keeper = keep(&fake, oidc());
    let error = keeper.ready(within(11)).await.unwrap_err().unwrap();
    assert_eq!(error.kind, FailureKind::Unreachable);
    assert_eq!(
        error.to_string(),
        "sts.aliyuncs.com: no complete answer within 10 s"
    );
    seconds(200).await;
    // A second after its end at least; then the steps, counted from the begin.
    let gaps = fake.gaps();
    assert_eq!(gaps[..4], [11_000; 4], "{gaps:?}");
    assert!(
        gaps[5..].iter().all(|gap| (24_000..=30_000).contains(gap)),
        "{gaps:?}"
    );
    assert_eq!(fake.most.load(Ordering::Relaxed), 1);
    fake.set(Behaviour::Session(3600), 0);
    assert_eq!(keeper.ready(within(30)).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_panics_does_not_end_refreshing() {
    let fake = Fake::new("STS.", Behaviour::Panics);
    let keeper = keep(&fake, oidc());
    let error = keeper.ready(within(5)).await.unwrap_err().unwrap();
    assert_eq!(
        (error.kind, error.to_string().as_str()),
        (
            FailureKind::Internal,
            "sts.aliyuncs.com: the request panicked"
        )
    );
    assert_back_off(&fake.gaps());
    fake.set(Behaviour::Session(3600), 0);
    assert_eq!(keeper.ready(within(30)).await, Ok(()));
    assert_eq!(fake.under_way.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn a_refused_oidc_token_is_sent_again_when_its_file_changes_or_after_a_minute() {
    for kind in [FailureKind::OldToken, FailureKind::Refused] {
        let fake = Fake::new("STS.", Behaviour::Fails(kind));
        *fake.file.lock() = Some(100);
        let keeper = keep(&fake, oidc());
        seconds(130).await;
        assert_eq!(*fake.begun.lock(), [0, 60_000, 120_000]);
        *fake.file.lock() = Some(101);
        fake.set(Behaviour::Session(3600), 0);
        assert_eq!(keeper.ready(within(2)).await, Ok(()));
        assert_eq!(fake.requests(), 4);
        // No look at the file without a failure.
        *fake.file.lock() = Some(102);
        seconds(2600).await;
        assert_eq!(fake.requests(), 4);
    }
}

#[tokio::test(start_paused = true)]
async fn a_missing_oidc_token_is_used_within_two_seconds_of_its_arrival() {
    let fake = Fake::new("STS.", Behaviour::Fails(FailureKind::TokenFile));
    let keeper = keep(&fake, oidc());
    seconds(100).await;
    *fake.file.lock() = Some(100);
    fake.set(Behaviour::Session(3600), 0);
    assert_eq!(keeper.ready(within(2)).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_refused_key_of_the_configuration_is_repeated_once_a_minute() {
    let fake = Fake::new("STS.", Behaviour::Fails(FailureKind::OldToken));
    let keeper = keep(&fake, assumed_with_key(ROLE));
    seconds(130).await;
    assert_eq!(*fake.begun.lock(), [0, 60_000, 120_000]);
    let assuming = fake.assuming.lock().clone();
    assert_eq!(assuming, vec![Some("LTAI-test-key-id-1".to_owned()); 3]);
    assert_eq!(key(&keeper), None);
}

#[tokio::test(start_paused = true)]
async fn each_kind_of_failure_is_logged_once_and_the_end_of_the_session_and_the_recovery() {
    let (log, _guard) = super::super::fake::captured();
    let fake = Fake::new("STS.", Behaviour::Session(600));
    let keeper = ready(&fake, oidc()).await;
    fake.set(Behaviour::Fails(FailureKind::ServiceError), 0);
    seconds(420).await;
    fake.set(Behaviour::Fails(FailureKind::Throttled), 0);
    seconds(400).await;
    fake.set(Behaviour::Session(600), 0);
    assert_eq!(keeper.ready(within(30)).await, Ok(()));
    let lines: Vec<_> = log.lines();
    let lines: Vec<_> = lines.iter().map(String::as_str).collect();
    let [first, warned, throttled, ended, recovered] = lines[..] else {
        panic!("{lines:#?}")
    };
    let role = "source=\"oidc\" role=\"acs:ram::123456789012:role/flowgate\"";
    for (line, begin) in [
        (first, "INFO a session is obtained accounts="),
        (
            warned,
            "WARN a session cannot be refreshed; it is used until its end",
        ),
        (
            throttled,
            "WARN a session cannot be refreshed; it is used until its end",
        ),
        (ended, "ERROR no valid session: calls cannot be signed"),
        (recovered, "INFO a session is obtained again accounts="),
    ] {
        assert!(line.contains(begin) && line.contains(role), "{line}");
    }
    assert!(
        lines
            .iter()
            .all(|line| line.contains("place=\"sts.aliyuncs.com\"")),
        "{lines:#?}"
    );
    assert!(warned.contains("kind=\"service_error\""), "{warned}");
    assert!(throttled.contains("kind=\"throttled\""), "{throttled}");
    assert!(ended.contains("kind=\"throttled\""), "{ended}");
    assert!(
        ended.contains("sts.aliyuncs.com: scripted, status 503"),
        "{ended}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_first_session_after_failures_is_not_called_a_recovery_and_is_logged_once() {
    let (log, _guard) = super::super::fake::captured();
    let fake = Fake::new("STS.", Behaviour::Fails(FailureKind::Unreachable));
    let keeper = keep(&fake, ecs_role("flowgate-role"));
    seconds(1).await;
    fake.set(Behaviour::Session(600), 0);
    assert_eq!(keeper.ready(within(30)).await, Ok(()));
    seconds(3000).await;
    assert!(fake.requests() > 5, "{:?}", fake.begun.lock());
    let lines = log.lines();
    let [failed, first] = &lines[..] else {
        panic!("{lines:#?}")
    };
    assert!(failed.starts_with("ERROR no valid session"), "{failed}");
    assert!(
        first.starts_with("INFO a session is obtained accounts="),
        "{first}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_thousand_first_sessions_log_a_bounded_number_of_lines_and_displace_no_failure() {
    let (log, _guard) = super::super::fake::captured();
    let working = Fake::new("STS.", Behaviour::Session(3600));
    let limits = Arc::new(ServiceLimits::new());
    let _keepers: Vec<_> = (0..1000)
        .map(|number| {
            let source = assumed_with_key(&format!("{ROLE}-{number}"));
            keep_within(&working, source, None, &limits)
        })
        .collect();
    sleep(Duration::from_millis(9_000)).await;
    let broken = Fake::new("STS.", Behaviour::Fails(FailureKind::Unreachable));
    let call = keep_within(&broken, oidc(), None, &limits);
    assert!(
        call.ready(within(0) + Duration::from_millis(900))
            .await
            .is_err()
    );
    let lines = log.lines();
    let (failures, first): (Vec<_>, Vec<_>) =
        lines.iter().partition(|line| line.starts_with("ERROR"));
    assert_eq!((failures.len(), first.len()), (1, 20), "{lines:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_thousand_sources_that_fail_together_log_a_bounded_number_of_lines() {
    let (log, _guard) = super::super::fake::captured();
    let fake = Fake::new("STS.", Behaviour::Fails(FailureKind::Unreachable));
    let limits = Arc::new(ServiceLimits::new());
    let _keepers: Vec<_> = (0..1000)
        .map(|number| {
            let source = assumed_with_key(&format!("{ROLE}-{number}"));
            keep_within(&fake, source, None, &limits)
        })
        .collect();
    sleep(Duration::from_millis(9_990)).await;
    assert_eq!(log.lines().len(), 20);
    let failed = fake.requests();
    assert!(failed > 400, "{failed}");
    sleep(Duration::from_millis(300)).await;
    let lines = log.lines();
    let left_out: u64 = lines[20]
        .split_once("left_out=")
        .unwrap()
        .1
        .parse()
        .unwrap();
    assert!((200..500).contains(&left_out), "{left_out} of {failed}");
}

#[tokio::test(start_paused = true)]
async fn a_thousand_sources_have_sessions_30_seconds_after_the_service_works_again() {
    let fake = Fake::new("STS.", Behaviour::Fails(FailureKind::ServiceError));
    let flights = Arc::new(ServiceLimits::new());
    let keepers: Vec<_> = (0..1000)
        .map(|number| {
            let source = assumed_with_key(&format!("{ROLE}-{number}"));
            keep_within(&fake, source, None, &flights)
        })
        .collect();
    let calls = keepers.iter().map(|keeper| keeper.ready(within(330)));
    let service = async {
        seconds(300).await;
        fake.set(Behaviour::Session(43_200), 100);
    };
    let (calls, ()) = tokio::join!(join_all(calls), service);
    assert!(calls.iter().all(Result::is_ok));
}
