//! Recorders on the path, and what is read from them.
//!
//! A prediction is counted in the shard of the worker that ran it: plain numbers with one writer, stored
//! relaxed, found through a handle that was resolved when the version was loaded. Readers merge the shards
//! when somebody looks. Always true:
//! - A request is counted before its answer can be seen.
//! - Recording takes no lock, and allocates only the first time a latency falls into a new range.
//! - Labels are registered names only; no text from a client ever becomes one.
//!
//! What the control plane does is recorded apart ([`Upkeep`]), by threads that nobody waits for.
//!
//! Not here: who is served (`serve`), HTTP (`edge`, `admin`).

mod clock;
mod events;
mod exposition;
mod histogram;
mod outcome;
mod page;
mod process;
mod reason;
mod recorder;
mod saturation;
mod settings;
mod shadow;
mod upkeep;

pub use clock::Clock;
pub use events::{Event, EventKind, Events};
pub use exposition::Exposition;
pub use histogram::{Latencies, Spread};
pub use outcome::Outcome;
pub use page::Format;
pub use reason::Reason;
pub use recorder::{
    ArmRecorder, Code, InFlight, ModelRecorder, ModelTotals, Monitor, Part, Retired, Sample,
    ServerRecorder, Traced, VersionRecorder, VersionTotals, WorkerId,
};
pub use saturation::Pace;
pub use settings::{Compat, Settings};
pub use shadow::{ShadowRecorder, ShadowSample, ShadowTotals};
pub use upkeep::{Ledger, Phase, Upkeep, Uploads, told};
