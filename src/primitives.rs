//! Small values that every other folder uses: names, secrets, byte budgets, back-off, a timer.

pub(crate) mod backoff;
pub(crate) mod byte_budget;
pub(crate) mod fast_map;
pub mod id;
pub(crate) mod lazy_timer;
pub mod secret;
pub(crate) mod text;
