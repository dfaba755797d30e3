//! All bytes of one connection, through hyper's reader and every step before the queue. A request
//! signed for CAMS must pass the simulated endpoint's own checks.

#![no_main]

#[path = "../endpoint.rs"]
mod endpoint;

use std::sync::LazyLock;

use flowgate::testing::fuzz::Gate;

thread_local!(static GATE: LazyLock<Gate> = const { LazyLock::new(Gate::default) });

libfuzzer_sys::fuzz_target!(
    |input: &[u8]| GATE.with(|gate| endpoint::takes(gate.connection(input), gate.now()))
);
