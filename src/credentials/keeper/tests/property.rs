//! Random scripts: a source that fails in any order, a host that sleeps, calls that wait or are
//! refused. The bounds hold, and the keeper recovers.

use proptest::prelude::*;
use tokio::time::sleep_until;

use super::*;

#[derive(Clone, Debug)]
enum Event {
    /// Nothing for a number of seconds.
    Wait(u64),
    /// The source answers this from now on, each time after a number of milliseconds.
    Set(Behaviour, u64),
    /// A call waits at most this number of seconds.
    Call(u64),
    /// CAMS refuses the session in use.
    Refuse,
    /// The host sleeps for a number of seconds.
    Sleep(u64),
    /// The token's file is replaced.
    File(u64),
}

fn answer() -> impl Strategy<Value = Behaviour> {
    let lifetime = prop_oneof![2 => 0..5_u64, 2 => 60..1000_u64, 2 => 3600..43_201_u64];
    prop_oneof![
        4 => lifetime.prop_map(Behaviour::Session),
        6 => proptest::sample::select(&FailureKind::ALL).prop_map(Behaviour::Fails),
        1 => Just(Behaviour::Panics),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let after = prop_oneof![3 => Just(0_u64), 3 => 0..9000_u64, 1 => 11_000..60_000_u64];
    prop_oneof![
        4 => (0..200_u64).prop_map(Event::Wait),
        1 => (200..40_000_u64).prop_map(Event::Wait),
        4 => (answer(), after).prop_map(|(answer, after)| Event::Set(answer, after)),
        3 => (0..20_u64).prop_map(Event::Call),
        3 => Just(Event::Refuse),
        1 => (1..5000_u64).prop_map(Event::Sleep),
        1 => (0..5_u64).prop_map(Event::File),
    ]
}

/// A session is in use only before its end, by both clocks.
fn assert_valid(fake: &Fake, keeper: &Keeper) {
    let Some(key) = key(keeper) else { return };
    let ends = fake.ends.lock();
    let (ends, ends_at) = ends[&key];
    assert!(Instant::now() < ends, "{key}");
    assert!(fake.clock() < ends_at, "{key}");
}

/// Looks each second, and at other times than the timers.
async fn wait(fake: &Fake, keeper: &Keeper, time: u64) {
    for _ in 0..time {
        assert_valid(fake, keeper);
        sleep(Duration::from_millis(997)).await;
    }
    assert_valid(fake, keeper);
}

/// The milliseconds at which something may end the wait of a minute: a refused session, or another
/// file.
async fn play(fake: &Arc<Fake>, keeper: &Arc<Keeper>, events: Vec<Event>) -> Vec<u64> {
    let mut exceptions = Vec::new();
    for event in events {
        match event {
            Event::Wait(time) => wait(fake, keeper, time).await,
            Event::Set(answer, after) => fake.set(answer, after),
            Event::Call(hold) => {
                let is_ready = keeper.ready(within(hold)).await.is_ok();
                assert_eq!(is_ready, keeper.current().is_some());
            }
            Event::Refuse => {
                let refused = key(keeper).unwrap_or_else(|| "STS.0".to_owned());
                let from = fake.millis();
                let replaced = keeper.replace(&credentials(&refused), within(12)).await;
                assert!(!replaced || key(keeper).is_some());
                exceptions.push(from);
            }
            Event::Sleep(time) => {
                fake.slept.fetch_add(time, Ordering::Relaxed);
            }
            Event::File(length) => {
                *fake.file.lock() = Some(length);
                exceptions.push(fake.millis());
            }
        }
    }
    exceptions
}

/// Whether the source is asked slowly after this answer.
fn is_slow(answer: (Behaviour, u64)) -> bool {
    let (answer, after) = answer;
    let slow = matches!(
        answer,
        Behaviour::Fails(FailureKind::Refused | FailureKind::OldToken)
    );
    slow && after < 10_000
}

fn assert_rates(fake: &Fake, exceptions: &[u64]) {
    let (begun, answers) = (fake.begun.lock(), fake.answers.lock());
    for (pair, answer) in begun.windows(2).zip(answers.iter()) {
        let gap = pair[1] - pair[0];
        assert!(gap >= 1000, "{begun:?}");
        // A change of the file is seen within a second.
        let is_excepted = exceptions.iter().any(|at| (pair[0]..=pair[1]).contains(at));
        assert!(
            !is_slow(*answer) || is_excepted || gap >= 60_000,
            "{pair:?} after {answer:?}, {exceptions:?}"
        );
    }
    assert!(fake.most.load(Ordering::Relaxed) <= 1);
}

async fn run(events: Vec<Event>) {
    let fake = Fake::new("STS.", Behaviour::Session(3600));
    let keeper = keep(&fake, oidc());
    let exceptions = play(&fake, &keeper, events).await;
    // The source works again.
    let is_slow = fake.answers.lock().last().copied().is_some_and(is_slow);
    fake.set(Behaviour::Session(3600), 0);
    let (requests, begun) = (fake.requests(), Instant::now());
    let is_asked = fake.under_way.load(Ordering::Relaxed) > 0;
    // A retry that is due at the last moment is answered in the same millisecond.
    let recovered = within(if is_slow { 60 } else { 30 }) + Duration::from_millis(1);
    let is_ready = keeper.ready(recovered).await;
    assert_eq!(
        is_ready,
        Ok(()),
        "{:?}, {:?}",
        fake.begun.lock(),
        fake.answers.lock()
    );
    // A failing source is asked within that time also if nothing waits.
    if keeper.view().failure.is_some() {
        sleep_until(begun + Duration::from_secs(60)).await;
        sleep(Duration::from_millis(1)).await;
        assert!(is_asked || fake.requests() > requests);
        assert_eq!(keeper.view().failure, None);
    }
    assert_rates(&fake, &exceptions);
    assert_eq!(keeper.shared.waiting.load(Ordering::Relaxed), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_source_does_its_bounds_hold_and_it_recovers(
        events in proptest::collection::vec(event(), 1..40),
        seed in any::<u64>(),
    ) {
        fastrand::seed(seed);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(run(events));
    }
}
