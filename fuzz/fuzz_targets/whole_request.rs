//! Runs `tidegate::wire::fuzzing::whole_request`; the corpus runs as a plain test too.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidegate::wire::fuzzing::whole_request(bytes));
