//! Any bytes as a configuration: no panic, and whatever is refused is told in whole, printable lines.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Err(findings) = tidegate::config::check_text(text)
    {
        let told = findings.to_string();
        assert!(!told.chars().any(|c| c.is_control() && c != '\n'), "{told:?}");
    }
});
