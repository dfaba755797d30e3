//! What does it hold? A million accounts that call one after another, and fifteen thousand calls that wait, each on a
//! connection of its own.

use std::net::SocketAddr;
use std::time::Duration;

use crate::contenders::{self, Contender, Kind};
use crate::process::{Process, say};
use crate::{CONNECTIONS, OTHERS, load};

const ACCOUNTS: usize = 1_000_000;
const WAITING: usize = 15_000;
/// Lanes are forgotten within two sweeps of two seconds; the allocator gives pages back later.
const IDLE: Duration = Duration::from_secs(25);

/// Prints what is resident before, at the peak, and after the idle time, twice.
pub(crate) fn accounts() {
    with(Kind::Relayed, |contender, upstream| {
        say("| million | before MiB | peak MiB | after MiB | requests/s |\n|--:|--:|--:|--:|--:|");
        for million in 1..=2 {
            let before = contender.process.rss_mib();
            let (to, host) = (contender.address.to_string(), upstream.to_string());
            let arguments = ["load", "--calls", &ACCOUNTS.to_string(), &to, &host, &CONNECTIONS.to_string(), "1"];
            let mut load = Process::this(OTHERS, &arguments.map(ToOwned::to_owned));
            load.line();
            load.go();
            let seen: load::Seen = serde_json::from_str(&load.line()).unwrap();
            load.wait();
            assert_eq!((seen.answered, seen.failed), (ACCOUNTS, 0));
            std::thread::sleep(IDLE);
            let (peak, after) = (contender.process.peak_mib(), contender.process.rss_mib());
            let per_second = ACCOUNTS as f64 / seen.seconds;
            say(&format!("| {million} | {before:.0} | {peak:.0} | {after:.0} | {per_second:.0} |"));
        }
    });
}

/// Prints what a waiting call adds to what is resident.
pub(crate) fn waiting() {
    say("| | before MiB | with 15,000 waiting MiB | KiB a call |\n|---|--:|--:|--:|");
    for kind in [Kind::NginxLimit, Kind::Relayed] {
        with(kind, |contender, upstream| {
            let before = contender.process.rss_mib();
            let arguments = [contender.address.to_string(), upstream.to_string(), WAITING.to_string()];
            let mut crowd = Process::this(OTHERS, &[["crowd".into()].as_slice(), &arguments].concat());
            assert_eq!(crowd.line(), "waiting");
            std::thread::sleep(Duration::from_secs(2));
            let with = contender.process.rss_mib();
            crowd.go();
            crowd.wait();
            let each = (with - before) * 1024.0 / WAITING as f64;
            say(&format!("| {} | {before:.0} | {with:.0} | {each:.1} |", kind.name()));
        });
    }
}

fn with(kind: Kind, measure: impl FnOnce(&Contender, SocketAddr)) {
    let mut backend = Process::this(OTHERS, &["backend".into()]);
    let upstream = backend.address();
    let folder = tempfile::tempdir().unwrap();
    let mut contender = contenders::start(kind, upstream, folder.path(), None).unwrap();
    measure(&contender, upstream);
    contender.process.stop();
    backend.stop();
}
