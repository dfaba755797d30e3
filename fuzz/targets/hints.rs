//! A caller's hold and a server's hints: headers.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| flowgate::testing::fuzz::hints(input));
