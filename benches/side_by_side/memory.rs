//! Memory of a waiting call: fifteen thousand, each on a connection of its own, or as many as
//! Flowgate accepts with the limit of open files, beside nginx and hyper's server alone.

use std::time::Duration;

use crate::contenders::{self, Kind, Programs};
use crate::process::{Process, say};
use crate::{CONTENDER, OTHERS};

const WAITING: usize = 15_000;
/// Flowgate keeps a second descriptor for each caller's connection, and these for itself.
const KEPT_DESCRIPTORS: usize = 128;

/// Prints the resident memory added by a waiting call.
pub(crate) fn waiting(programs: Programs<'_>) {
    let descriptors =
        usize::try_from(flowgate::process::hardening::raise_open_files().unwrap()).unwrap();
    let calls = WAITING.min((descriptors - KEPT_DESCRIPTORS) / 2);
    say(&format!(
        "| | before MiB | with {calls} waiting MiB | KiB a call |\n|---|--:|--:|--:|"
    ));
    let mut backend = Process::this(OTHERS, &["backend".into()]);
    let upstream = backend.address();
    for kind in [Kind::NginxLimit, Kind::Floor, Kind::Relayed] {
        let folder = tempfile::tempdir().unwrap();
        let (mut process, address) = if kind == Kind::Floor {
            // Without an upstream it never answers.
            let mut process = Process::this(CONTENDER, &["floor".into()]);
            let address = process.address();
            (process, address)
        } else {
            let contender = contenders::start(kind, upstream, folder.path(), programs).unwrap();
            (contender.process, contender.address)
        };
        let before = process.rss_mib();
        let arguments = [address.to_string(), upstream.to_string(), calls.to_string()];
        let mut crowd = Process::this(OTHERS, &[["crowd".into()].as_slice(), &arguments].concat());
        assert_eq!(crowd.line(), "waiting");
        std::thread::sleep(Duration::from_secs(2));
        let with = process.rss_mib();
        crowd.go();
        crowd.wait();
        process.stop();
        let each = (with - before) * 1024.0 / calls as f64;
        say(&format!(
            "| {} | {before:.0} | {with:.0} | {each:.1} |",
            kind.name()
        ));
    }
    backend.stop();
}
