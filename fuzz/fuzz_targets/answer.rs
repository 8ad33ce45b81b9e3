//! Runs `tidegate::wire::fuzzing::answer`; the corpus runs as a plain test too.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidegate::wire::fuzzing::answer(bytes));
