//! Any bytes as the body of a load that may bring files: no panic, and what is taken is within its limits.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidegate::wire::fuzzing::upload(bytes));
