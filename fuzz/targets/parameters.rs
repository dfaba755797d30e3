//! A query and a form.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| flowgate::testing::fuzz::parameters(input));
