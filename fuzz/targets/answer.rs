//! An answer of CAMS, from its status to its body in JSON or XML.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| flowgate::testing::fuzz::answer(input));
