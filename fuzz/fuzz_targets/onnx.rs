//! Any bytes as an ONNX file: no panic, no time or memory beyond the limits, and messages fit to be shown.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidegate::engine::onnx::check_bytes(bytes));
