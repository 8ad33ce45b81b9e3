//! Telemetry of ONNX Runtime's builds: off before the library is loaded.

/// Forbids ONNX Runtime to collect telemetry in this process and in those it starts.
///
/// Newer builds keep a database below the user's cache folder, write to it durably with every session, and send it
/// on. The interface's own switch only comes after that database was opened; the variable is read before.
///
/// To be called first in `main`, while the process has one thread.
#[expect(unsafe_code, clippy::disallowed_methods, reason = "no other switch is early enough")]
pub fn forbid_telemetry() {
    // SAFETY: no other thread exists yet that could read the environment meanwhile; `main` calls this first.
    unsafe { std::env::set_var("ORT_DISABLE_TELEMETRY", "1") }
}
