//! The `tidegate` program.

use std::process::ExitCode;

/// Rust's own memory; ONNX Runtime allocates with the system's.
#[global_allocator]
static ALLOCATOR: tidegate::engine::Allocator = tidegate::engine::Allocator;

fn main() -> ExitCode {
    tidegate::engine::forbid_telemetry();
    tidegate::cli::run()
}
