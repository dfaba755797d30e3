//! A call with signature version 1: its query and its form, alone and through every step before the
//! queue.

#![no_main]

#[path = "../endpoint.rs"]
mod endpoint;

use std::sync::LazyLock;

use flowgate::testing::fuzz::{self, Gate};

thread_local!(static GATE: LazyLock<Gate> = const { LazyLock::new(Gate::default) });

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    fuzz::rpc(input);
    GATE.with(|gate| endpoint::takes(gate.rpc(input), gate.now()));
});
