//! Process hardening. Memory holds secrets, so core dumps are disabled and only root can trace the
//! process. SIGXFSZ is caught, so that a file at its size limit is a write error.

use rustix::process::{
    DumpableBehavior, Resource, Rlimit, Signal, getrlimit, set_dumpable_behavior, setrlimit,
};
use tokio::signal::unix::{SignalKind, signal};

/// Disables core dumps, to files and pipes, and tracing by the same user.
pub fn no_core_dumps() -> std::io::Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)?;
    // The limit does not apply to a core pattern that is a pipe (core(5)).
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

/// Raises the limit of open files to the hard limit and returns it.
pub fn raise_open_files() -> std::io::Result<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        let most = Rlimit {
            current: maximum,
            maximum,
        };
        setrlimit(Resource::Nofile, most)?;
    }
    Ok(maximum.unwrap_or(u64::MAX))
}

/// Catches SIGXFSZ for the life of the process, so that the write fails with EFBIG instead. Must be
/// called within a tokio runtime.
pub(crate) fn survive_file_limits() -> std::io::Result<()> {
    signal(SignalKind::from_raw(Signal::XFSZ.as_raw())).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn core_dumps_to_files_and_pipes_are_disabled() {
        no_core_dumps().unwrap();
        let core = getrlimit(Resource::Core);
        assert_eq!((core.current, core.maximum), (Some(0), Some(0)));
        assert_eq!(
            rustix::process::dumpable_behavior().unwrap(),
            DumpableBehavior::NotDumpable
        );
    }
}
