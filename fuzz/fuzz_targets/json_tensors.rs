//! Runs `tidegate::wire::fuzzing::json_tensors`; the corpus runs as a plain test too.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidegate::wire::fuzzing::json_tensors(bytes));
