//! What does the process keep to itself, and what must not end it? Its memory holds secrets, so it leaves no core dump and
//! nobody but root may look into it; a file that reaches its limit is an error of the write and no reason to die.

use rustix::process::{
    DumpableBehavior, Resource, Rlimit, Signal, getrlimit, set_dumpable_behavior, setrlimit,
};
use tokio::signal::unix::{SignalKind, signal};

/// No core dump, neither into a file nor into a pipe, and no debugger of the same user.
pub fn no_core_dumps() -> std::io::Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)?;
    // A core pattern that is a pipe does not ask for the limit.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

/// Raises the limit of open files to the most that is allowed, and returns the limit that holds then.
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

/// SIGXFSZ is caught for as long as the process lives, so that the write fails instead. Must be called inside a tokio
/// runtime.
pub(crate) fn survive_file_limits() -> std::io::Result<()> {
    signal(SignalKind::from_raw(Signal::XFSZ.as_raw())).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_a_file_nor_a_pipe_gets_a_core_dump() {
        no_core_dumps().unwrap();
        let core = getrlimit(Resource::Core);
        assert_eq!((core.current, core.maximum), (Some(0), Some(0)));
        assert_eq!(
            rustix::process::dumpable_behavior().unwrap(),
            DumpableBehavior::NotDumpable
        );
    }
}
