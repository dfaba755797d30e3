//! An answer of STS, of the metadata service or of a credentials URI.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| flowgate::testing::fuzz::session(input));
