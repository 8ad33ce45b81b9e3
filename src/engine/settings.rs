//! What the engines may be told.

use std::{
    num::{NonZeroU64, NonZeroUsize},
    path::PathBuf,
};

use crate::model::EngineChoice;

/// How models are loaded and run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// ONNX Runtime's library. `None`: looked for at `ORT_DYLIB_PATH`, in `lib/` beside the executable, on the system.
    pub onnxruntime: Option<PathBuf>,
    /// The engine of models that name none.
    pub default: EngineChoice,
    /// Sessions per version. `None`: one per worker.
    pub sessions: Option<NonZeroUsize>,
    /// Threads that one run of a model uses.
    pub intra_op_threads: NonZeroUsize,
    /// Bytes that one run may allocate where a request's values choose how many. `None`: a quarter of the memory that
    /// the process may use, 1 GiB at most.
    pub run_memory_max: Option<NonZeroU64>,
    /// Runs on made-up input before a version takes traffic; 0 skips warming.
    pub warmup_runs: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            onnxruntime: None,
            default: EngineChoice::Auto,
            sessions: None,
            // Workers already fill the CPUs; threads inside a run would fight them.
            intra_op_threads: NonZeroUsize::MIN,
            run_memory_max: None,
            warmup_runs: 3,
        }
    }
}
