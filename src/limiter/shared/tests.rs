//! The shared quota: what a replica withholds, and the script on a real server.

use super::*;

mod deal;

#[tokio::test(start_paused = true)]
async fn only_who_may_use_a_part_is_withheld_one() {
    let limit = Limit { count: NonZeroU32::new(4).unwrap(), window: Duration::from_secs(1) };
    let settings = config::Store::on(config::Topology::Single, &[1]);
    let cap = |on_failure| {
        let quota = Quota::open(&settings, on_failure, Arc::new(Metrics::new())).unwrap();
        let seen = [(quota.replica(), 0), ("vanished", 5)].map(|(name, silent)| members::Seen {
            name: name.to_owned(),
            through: UNKNOWN,
            silent: Duration::from_secs(silent),
            has_left: false,
        });
        quota.members.lock().heard(seen, Instant::now());
        quota.cap(limit)
    };
    assert_eq!((cap(OnStoreFailure::Share), cap(OnStoreFailure::Refuse)), (2, 4));
}
