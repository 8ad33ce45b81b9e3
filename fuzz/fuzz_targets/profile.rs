//! Any bytes as a version's profile: no panic, it is used as a whole or not at all, and each value has one bin.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidegate::drift::fuzzing::profile(bytes));
