//! Any bytes as a version's manifest: no panic, and what is read has exactly one spelling.

#![no_main]

use tidegate::source::Manifest;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(manifest) = Manifest::parse(bytes) {
        assert_eq!(manifest.to_string().as_bytes(), bytes);
        assert!(manifest.files().keys().all(|path| !path.split('/').any(|part| part == "..")));
    }
});
