//! Makes the served set match the repository: lists, loads, proves, warms, publishes, lets go.
//!
//! One thread keeps it: it hears of changes (file events, polling, requests of operators), loads what is new
//! beside what serves, and publishes a whole table each time something changed. Always true:
//! - A version is loaded and run in a sandboxed process of its own before this one touches it, unless that is turned off.
//! - A version answers only after it loaded, ran, and reproduced its golden outputs where it has any.
//! - A folder that is still being written is not loaded: two looks must agree first.
//! - A version that cannot be loaded costs nobody else anything, and the table says why.
//! - An acknowledged load or unload is in the published table.
//!
//! Not here: reading files (`source`), running models (`engine`), answering (`serve`).

mod golden;
mod keeper;
mod load;
mod proof;

pub use golden::{Golden, GoldenError};
pub use keeper::{Handle, Lifecycle, OperationError, StartError};
pub use load::{Code, LoadFailure, Loader};
pub use proof::{
    Attempt, Case, Layer, Proof, ProofFailure, ProofLimits, ProofSettings, Prover, Sandbox,
    prove_version,
};
