//! Busy loops that use all CPU time of the machine until they are dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Busy loops, one thread each.
pub(crate) struct BusyLoops {
    ends: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

// === impl BusyLoops ===

impl BusyLoops {
    pub(crate) fn start(count: usize) -> Self {
        let ends = Arc::<AtomicBool>::default();
        let spin = |ends: Arc<AtomicBool>| {
            move || {
                while !ends.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            }
        };
        let threads = (0..count)
            .map(|_| std::thread::spawn(spin(ends.clone())))
            .collect();
        Self { ends, threads }
    }
}

impl Drop for BusyLoops {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        self.threads
            .drain(..)
            .for_each(|thread| drop(thread.join()));
    }
}
