//! Any bytes as the beginning of a `.npy` file: no panic, and no shape that does not fit into a file.

#![no_main]

use tidegate::dataset::Header;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(header) = Header::parse(bytes) {
        assert!(header.length <= bytes.len());
        if let Some((rows, columns)) = header.rows_and_columns() {
            assert!(rows.checked_mul(columns).is_some());
        }
    }
});
