//! What a balancer states about a caller: a PROXY header, or `X-Forwarded-For`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| flowgate::testing::fuzz::balancer(input));
