//! The engines that run models, behind one trait: ONNX Runtime and tract.
//!
//! An engine turns the bytes of a model into sessions. A session belongs to one thread at a time, takes
//! tensors in the signature's order and gives owned tensors or an owned error, so that it could as well live
//! in another process. Always true:
//! - Files are read elsewhere: an engine sees bytes, never a path.
//! - What cannot be served (a datatype, an output that is no tensor) is refused at load, with the reason.
//! - A missing or unfit library is an error with the next step, never a panic.
//!
//! Not here: which version runs (`serve`), how versions are proven and warmed (`lifecycle`). The only room
//! where `unsafe` may stand.

pub mod onnx;

mod arena;
mod blame;
mod copies;
mod descriptor;
mod leash;
mod memory;
mod onnxruntime;
mod refusal;
mod settings;
mod telemetry;
#[cfg(feature = "tract")]
mod tract;
mod weights;

use std::{borrow::Cow, path::PathBuf, sync::Arc};

use bytes::Bytes;

pub use arena::Arena;
pub use blame::{Tag, write_crashes_to};
pub use copies::{Copied, Copier, memory_peak};
pub use descriptor::{peer_is_gone, shut_down};
pub use leash::{Bell, Generation, Leash};
pub use memory::{Allocator, hand_back_memory};
pub use onnxruntime::OnnxRuntime;
pub use settings::Settings;
pub use telemetry::forbid_telemetry;
#[cfg(feature = "tract")]
pub use tract::Tract;
pub use weights::{ExternalFile, Packed};

use crate::{
    model::{EngineChoice, Input, Signature},
    tensor::Tensor,
};

/// Turns models into sessions.
pub trait Engine: std::fmt::Debug + Send + Sync {
    /// The name that settings and reports use.
    fn name(&self) -> &'static str;

    /// Which build runs, for reports.
    fn version(&self) -> String;

    /// Makes a session. May take seconds; not for a thread that answers requests.
    fn load(
        &self,
        file: &ModelFile,
        options: SessionOptions<'_>,
    ) -> Result<Box<dyn Session>, LoadError>;

    /// An arena for so many sessions of a version, so that none of their runs allocates more than `run_memory_max`
    /// bytes; `None` where the engine has none. May take as long as a load.
    fn arena(
        &self,
        _file: &ModelFile,
        _options: SessionOptions<'_>,
        _sessions: usize,
        _run_memory_max: u64,
    ) -> Result<Option<Arena>, LoadError> {
        Ok(None)
    }
}

/// One loaded copy of a model, used by one thread at a time.
pub trait Session: Send {
    /// The model's inputs and outputs.
    fn signature(&self) -> &Signature;

    /// Runs the model.
    ///
    /// `inputs` are in the signature's order and fit it. Owned ones are freed before outputs are copied, so that a
    /// large request is not held twice; borrowed ones can be run again. `wanted` are indexes of outputs, ascending
    /// and without repetition; the answer has one tensor for each, in that order.
    fn run(&mut self, inputs: Cow<'_, [Input]>, wanted: &[usize]) -> Result<Vec<Tensor>, RunError>;

    /// Runs the model as [`Session::run`] does; whoever pulls the leash meanwhile ends the run early, where the engine
    /// can.
    fn run_leashed(
        &mut self,
        inputs: Cow<'_, [Input]>,
        wanted: &[usize],
        leash: &Leash,
    ) -> Result<Vec<Tensor>, RunError> {
        let _running = leash.begin(std::ptr::null_mut());
        self.run(inputs, wanted)
    }
}

/// A model as bytes.
#[derive(Debug, Clone)]
pub struct ModelFile {
    /// The ONNX file.
    pub bytes: Bytes,
    /// Files with external data.
    pub external: Vec<ExternalFile>,
    /// Our own look at the file: engines tell less of what it declares. Empty, engines are believed.
    pub summary: Arc<onnx::Summary>,
    /// The part of external data that its sessions share.
    pub packed: Packed,
}

impl ModelFile {
    /// Bytes of the model and its external data.
    pub fn size_bytes(&self) -> u64 {
        let external = self.external.iter().map(|external| external.bytes.len());
        (self.bytes.len() + external.sum::<usize>()) as u64
    }
}

/// How a session runs.
#[derive(Debug, Clone, Copy)]
pub struct SessionOptions<'a> {
    /// Threads within one run.
    pub intra_op_threads: usize,
    /// Where runs allocate; `None` for an arena of the session's own, without a bound.
    pub arena: Option<&'a Arena>,
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The engine refused the model.
    #[error("{engine} cannot load the model: {reason}")]
    Refused {
        /// The engine.
        engine: &'static str,
        /// What it said, shortened.
        reason: String,
    },
    /// A text model asks for a locale that this machine lacks.
    #[error(
        "the model's text normaliser needs the locale `{locale}`, which this machine lacks; export the model with \
         the attribute locale=\"C\" on StringNormalizer, or install the locale"
    )]
    Locale {
        /// The locale.
        locale: String,
    },
    /// The engine is known to compute an operator of the model wrongly.
    #[error(
        "tract is wrong about the `{operator}` that gives `{output}`: {reason}; {advice}, or add golden.json with all \
         outputs to show that it is right for this model"
    )]
    Misread {
        /// The operator.
        operator: &'static str,
        /// The name of its first output.
        output: String,
        /// The fault, and when it shows.
        reason: &'static str,
        /// The way to the other engine.
        advice: String,
    },
    /// The format of the file is newer than the library.
    #[error(
        "the model has IR version {found}, and {library} reads up to {highest}; export it with an older `onnx`, or set \
         `model.ir_version = {highest}` and save it again, or name a newer library in ORT_DYLIB_PATH"
    )]
    IrVersion {
        /// The library and its version.
        library: String,
        /// The version of the file.
        found: i64,
        /// The highest version that the library reads.
        highest: i64,
    },
    /// An operator set is newer than the library.
    #[error(
        "the model imports version {found} of operator set {domain}, and {library} reads up to {highest}; export it \
         {}, or name a newer library in ORT_DYLIB_PATH", opset_advice(domain, *highest)
    )]
    Opset {
        /// The library and its version.
        library: String,
        /// The domain of the operator set.
        domain: String,
        /// The version that the model imports.
        found: i64,
        /// The highest version that the library reads.
        highest: i64,
    },
    /// An operator set is so old that the library has no kernels for it.
    #[error(
        "the model's `{operator}` is one of opset {opset} of ai.onnx, and {library} has kernels from opset {lowest} on; \
         export it anew, or convert it: `onnx.version_converter.convert_version(model, 17)`"
    )]
    OldOpset {
        /// The library and its version.
        library: String,
        /// The operator that lacks a kernel.
        operator: String,
        /// The version of ONNX's operator set that the model imports.
        opset: i64,
        /// The first version that the library has kernels for.
        lowest: i64,
    },
    /// An input or output cannot be served.
    #[error("{role} `{name}` is {kind}, which cannot be served: {advice}")]
    Unservable {
        /// `input` or `output`.
        role: &'static str,
        /// Its name.
        name: String,
        /// What it is.
        kind: String,
        /// What would be right.
        advice: &'static str,
    },
    /// No engine is there that could run it.
    #[error("{0}")]
    NoEngine(String),
}

/// Advice to export a model with an older operator set; ONNX's converter knows only its own.
fn opset_advice(domain: &str, highest: i64) -> String {
    match domain {
        "ai.onnx" => format!(
            "for opset {highest}, or convert it (`onnx.version_converter.convert_version(model, {highest})`)"
        ),
        _ => format!(
            "for version {highest} of it (with skl2onnx: target_opset={{'{domain}': {highest}}})"
        ),
    }
}

/// Why a run gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The request's values cannot be run: the caller's mistake.
    #[error("the model cannot run on these inputs: {0}")]
    Inputs(String),
    /// The engine failed: our fault, or the model's.
    #[error("the engine failed: {0}")]
    Failed(String),
    /// It needs more memory than a run may have: the caller's mistake.
    #[error(
        "they need more than the {run_memory_max} bytes that one run may allocate; send smaller values, or raise \
         engine.run_memory"
    )]
    Oversized {
        /// The bytes that one run may allocate.
        run_memory_max: u64,
    },
    /// Other runs of the version had taken the memory that they share with it.
    #[error(
        "runs of this version together need more than the {run_memory_max} bytes that they may allocate; try again, \
         or raise engine.run_memory"
    )]
    Crowded {
        /// The bytes that one run may allocate.
        run_memory_max: u64,
    },
    /// It was told to end before it was done.
    #[error("the run was ended before it was done")]
    Ended,
    /// An output has a type that its signature did not say.
    #[error("output `{name}` came as {actual}")]
    Output {
        /// The output.
        name: String,
        /// What came.
        actual: String,
    },
}

/// The engines of this process.
#[derive(Debug)]
pub struct Engines {
    onnxruntime: Option<OnnxRuntime>,
    missing: Option<String>,
    #[cfg(feature = "tract")]
    tract: Tract,
    default: EngineChoice,
}

/// ONNX Runtime's library was named and cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "ONNX Runtime cannot be loaded from `{}`: {reason}; `make build` fetches a fitting one, or leave the setting out to \
     look elsewhere", path.display()
)]
pub struct LibraryError {
    path: PathBuf,
    reason: String,
}

impl Engines {
    /// Looks for ONNX Runtime; without it only tract runs models.
    ///
    /// # Errors
    /// If a library that was named by setting or environment cannot be used: the operator asked for it.
    pub fn open(settings: &Settings) -> Result<Self, LibraryError> {
        let found = onnxruntime::find(settings.onnxruntime.as_deref())?;
        let (onnxruntime, missing) = match found {
            onnxruntime::Found::Library(library) => (Some(library), None),
            onnxruntime::Found::Nothing(reason) => (None, Some(reason)),
        };
        Ok(Self {
            onnxruntime,
            missing,
            #[cfg(feature = "tract")]
            tract: Tract,
            default: settings.default,
        })
    }

    /// The engine for a model that makes this choice.
    pub fn choose(&self, choice: EngineChoice) -> Result<&dyn Engine, LoadError> {
        let choice = if choice == EngineChoice::Auto { self.default } else { choice };
        match (choice, &self.onnxruntime) {
            (EngineChoice::Auto | EngineChoice::OnnxRuntime, Some(library)) => Ok(library),
            (EngineChoice::OnnxRuntime, None) => Err(LoadError::NoEngine(format!(
                "the model asks for onnxruntime, {}",
                self.missing.as_deref().unwrap_or("which is not there")
            ))),
            (EngineChoice::Auto | EngineChoice::Tract, _) => self.pure_rust(),
        }
    }

    /// The choice that leads to this engine wherever it is there.
    pub fn choice_of(engine: &dyn Engine) -> EngineChoice {
        match engine.name() {
            "tract" => EngineChoice::Tract,
            _ => EngineChoice::OnnxRuntime,
        }
    }

    /// One line for people about what is missing, and how to get it; `None` if nothing is.
    pub fn notice(&self) -> Option<&str> {
        self.missing.as_deref()
    }

    /// The file of ONNX Runtime's library, where it is loaded; relative where the system found it by its name.
    pub fn library(&self) -> Option<&std::path::Path> {
        self.onnxruntime.as_ref().map(OnnxRuntime::path)
    }

    /// Name and version of each engine that is there.
    pub fn available(&self) -> Vec<(&'static str, String)> {
        let library = self.onnxruntime.iter().map(|engine| (engine.name(), engine.version()));
        let rust = self.pure_rust().ok().map(|engine| (engine.name(), engine.version()));
        library.chain(rust).collect()
    }

    #[cfg(feature = "tract")]
    #[expect(clippy::unnecessary_wraps, reason = "without the feature there is an error")]
    fn pure_rust(&self) -> Result<&dyn Engine, LoadError> {
        Ok(&self.tract)
    }

    #[cfg(not(feature = "tract"))]
    fn pure_rust(&self) -> Result<&dyn Engine, LoadError> {
        let missing = self.missing.as_deref().unwrap_or("the model asks for tract");
        Err(LoadError::NoEngine(format!(
            "{missing}; this build has no tract (cargo feature `tract`)"
        )))
    }
}

/// True if an engine's words mean that memory ran out.
pub fn starved(text: &str) -> bool {
    let signs = [
        "Failed to allocate memory",
        "bad_alloc",
        "bad allocation",
        "memory allocation of",
        "Cannot allocate memory",
    ];
    signs.iter().any(|sign| text.contains(sign))
}

/// What an engine said, for people: one line, without paths of this machine, and not endless.
fn shortened(text: &str) -> String {
    const SHOWN_MAX: usize = 400;
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let words = line.split(' ').filter(|word| !is_source_path(word)).collect::<Vec<_>>().join(" ");
    if words.chars().count() <= SHOWN_MAX {
        return words;
    }
    words.chars().take(SHOWN_MAX).chain("...".chars()).collect()
}

/// ONNX Runtime prefixes its messages with the path of its own source file.
fn is_source_path(word: &str) -> bool {
    word.starts_with('/') && (word.contains(".cc:") || word.contains(".h:"))
}
