//! What the engines may be told.

use std::{fmt, num::NonZeroUsize, path::PathBuf};

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
    /// Runs on made-up input before a version takes traffic; 0 skips warming.
    pub warmup_runs: u32,
}

/// Which engine runs a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum EngineChoice {
    /// ONNX Runtime where its library is found, else tract.
    #[default]
    Auto,
    /// ONNX Runtime or nothing.
    OnnxRuntime,
    /// tract, in pure Rust.
    Tract,
}

impl EngineChoice {
    /// The word for it in configuration: `auto`, `onnxruntime` or `tract`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::OnnxRuntime => "onnxruntime",
            Self::Tract => "tract",
        }
    }
}

impl fmt::Display for EngineChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            onnxruntime: None,
            default: EngineChoice::Auto,
            sessions: None,
            // Workers already fill the CPUs; threads inside a run would fight them.
            intra_op_threads: NonZeroUsize::MIN,
            warmup_runs: 3,
        }
    }
}
