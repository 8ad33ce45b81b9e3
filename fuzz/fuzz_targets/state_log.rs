//! Any bytes as a log of records: no panic, damage lies inside the file, and what is whole is never longer than it.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    match tidegate::state::verify_bytes(bytes) {
        Ok(verified) => assert_eq!(verified.bytes + verified.tail_bytes, bytes.len() as u64),
        Err(damage) => assert!(damage.offset <= bytes.len() as u64, "{damage}"),
    }
});
