//! Any bytes as a `config.pbtxt`: no panic, and what is read reads the same in its canonical form.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidegate::source::pbtxt::check_text(bytes));
