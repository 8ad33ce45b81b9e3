//! Any bytes as a body of outcomes: no panic, and messages fit to be shown.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidegate::admin::check_outcomes(bytes));
