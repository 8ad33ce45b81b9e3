//! Any bytes as webhooks, URLs, hosts and blocks of addresses: no panic, no secret in a message, no private address.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidegate::notify::fuzzing::webhooks(bytes));
