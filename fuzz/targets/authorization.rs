//! An `Authorization` header of signature version 3 and a query.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| flowgate::testing::fuzz::authorization(input));
