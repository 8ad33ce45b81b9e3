//! ONNX Runtime through `ort`, loaded as a shared library when the process starts.
//!
//! Sessions run sequentially on the caller's thread with spinning off: measured, a shared or spinning session
//! costs throughput as soon as two callers meet. String tensors go through the C interface, because the
//! crate's own conversions refuse what the protocol allows (bytes that are not UTF-8) and copy twice.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    hash::Hash,
    path::{Path, PathBuf},
    sync::Arc,
};

use ort::{
    AsPointer as _,
    environment::Environment,
    memory::Allocator,
    session::{
        HasSelectedOutputs, OutputSelector, RunOptions, Session as OrtSession, SessionInputValue,
        SessionInputs, SessionOutputs,
    },
    value::{
        DynMapValueType, DynTensor, DynValue, PrimitiveTensorElementType, TensorElementType,
        TensorRef, ValueType,
    },
};
use smallvec::SmallVec;

use crate::{
    model::{Input, Signature, TensorSpec},
    tensor::{Data, DataType, Element, Shape, Strings, Tensor},
};

use super::{
    Arena, Engine, Leash, LibraryError, LoadError, ModelFile, RunError, Session, SessionOptions,
    arena::{Crowd, is_full},
    memory::trim,
    onnx::{Classes, Summary},
    refusal::explained,
    shortened, starved,
    weights::{self, Lent},
};

const NAME: &str = "onnxruntime";
#[cfg(target_os = "macos")]
const LIBRARY: &str = "libonnxruntime.dylib";
#[cfg(not(target_os = "macos"))]
const LIBRARY: &str = "libonnxruntime.so";

/// The loaded library and its one environment.
#[derive(Debug)]
pub struct OnnxRuntime {
    environment: Env,
    path: PathBuf,
    version: Option<String>,
}

/// Names the environment in debug output; it has no form of its own.
struct Env(Environment);

impl std::fmt::Debug for Env {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Environment")
    }
}

/// What the search for the library came to.
pub(super) enum Found {
    /// Loaded.
    Library(OnnxRuntime),
    /// Nowhere; one line for people that says how to get it.
    Nothing(String),
}

/// Looks for the library: the setting, `ORT_DYLIB_PATH`, `lib/` beside the executable, the system.
///
/// # Errors
/// If the setting or the variable names a library that cannot be used.
pub(super) fn find(setting: Option<&Path>) -> Result<Found, LibraryError> {
    let variable = std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty());
    if let Some(path) = setting.map(Path::to_owned).or(variable.map(PathBuf::from)) {
        // A relative path means the current directory, not the one of the executable.
        let path = std::path::absolute(&path).unwrap_or(path);
        return match open(&path) {
            Ok(library) => Ok(Found::Library(library)),
            Err(reason) => Err(LibraryError { path, reason }),
        };
    }
    let beside =
        std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("lib").join(LIBRARY)));
    let mut last = String::new();
    for path in beside.into_iter().filter(|path| path.is_file()).chain([LIBRARY.into()]) {
        match open(&path) {
            Ok(library) => return Ok(Found::Library(library)),
            Err(reason) => last = reason,
        }
    }
    tracing::debug!(reason = last, "ONNX Runtime not found");
    Ok(Found::Nothing(
        "ONNX Runtime's library was not found; `make build` fetches it, or point ORT_DYLIB_PATH to one (for \
         example of `pip install onnxruntime`)"
            .to_owned(),
    ))
}

fn open(path: &Path) -> Result<OnnxRuntime, String> {
    let builder = ort::init_from(path).map_err(|error| error.to_string())?;
    let environment = builder
        .with_name("tidegate")
        .with_telemetry(false)
        .build()
        .map_err(|error| error.to_string())?;
    // Its own log lines would mix with ours; what it says when it refuses is in the errors.
    environment.set_log_level(ort::logging::LogLevel::Fatal);
    let version = version_of(path);
    Ok(OnnxRuntime { environment: Env(environment), path: path.to_owned(), version })
}

/// The library's own version, such as `1.32.0`, which the crate checks and does not tell.
#[expect(unsafe_code, reason = "a C function of the library")]
fn version_of(path: &Path) -> Option<String> {
    type Getter = unsafe extern "system" fn() -> *const ort::sys::OrtApiBase;
    // SAFETY: the library at `path` has just been loaded by the crate, which found `OrtGetApiBase` in it and called it
    // with this very signature; so opening it again runs no initialiser, and both calls are the ones that went well.
    // The string is constant and ends with a NUL; it is copied before our handle is dropped, and the crate keeps its
    // own.
    unsafe {
        let library = libloading::Library::new(path).ok()?;
        let base = library.get::<Getter>(b"OrtGetApiBase").ok()?();
        let version = std::ffi::CStr::from_ptr(((*base).GetVersionString)());
        Some(version.to_str().ok()?.to_owned())
    }
}

impl OnnxRuntime {
    /// The library's file, as it was found.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn refused(&self, file: &ModelFile, error: &ort::Error) -> LoadError {
        let version = self.version.as_ref().map(|version| format!(" {version}"));
        let library = format!("ONNX Runtime{}", version.unwrap_or_default());
        explained(NAME, library, &file.summary, error.message())
    }
}

impl Engine for OnnxRuntime {
    fn name(&self) -> &'static str {
        NAME
    }

    fn version(&self) -> String {
        self.version.clone().unwrap_or_else(|| self.path.display().to_string())
    }

    fn load(
        &self,
        file: &ModelFile,
        options: SessionOptions<'_>,
    ) -> Result<Box<dyn Session>, LoadError> {
        let crowd = options.arena.map(Arena::crowd);
        let refused = |error| self.refused(file, &error);
        // In this order: what was bound last is let go of first.
        let (lent, session) = open_session(&self.environment.0, file, options).map_err(refused)?;
        let inputs =
            session.inputs().iter().map(|outlet| input_spec(outlet.name(), outlet.dtype()));
        let inputs = inputs.collect::<Result<_, _>>()?;
        let outputs = session
            .outputs()
            .iter()
            .map(|outlet| output_spec(outlet.name(), outlet.dtype(), &file.summary));
        let (outputs, readers): (Vec<_>, Vec<_>) =
            outputs.collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
        let optional = session
            .overridable_initializers()
            .into_iter()
            .filter_map(|initializer| input_spec(initializer.name(), initializer.dtype()).ok());
        let signature =
            Signature { inputs, outputs, optional: optional.collect(), ..Signature::default() };
        let signature = file.summary.complete(signature);
        let options = run_options(crowd.is_some()).map_err(refused)?;
        Ok(Box::new(Loaded {
            session,
            signature,
            readers,
            options,
            selection: None,
            crowd,
            _lent: lent,
        }))
    }

    fn arena(
        &self,
        file: &ModelFile,
        options: SessionOptions<'_>,
        sessions: usize,
        run_memory_max: u64,
    ) -> Result<Option<Arena>, LoadError> {
        let environment = &self.environment.0;
        let measure = || {
            let arena = Arena::new(environment, u64::MAX, run_memory_max)?;
            let options = SessionOptions { arena: Some(&arena), ..options };
            let opened = open_session(environment, file, options)?;
            let kept = arena.in_use();
            drop(opened);
            // Where the library does not tell: weights, as large as their files.
            Ok(kept.unwrap_or_else(|| file.size_bytes()))
        };
        let refused = |error| self.refused(file, &error);
        let kept = measure().map_err(refused)?;
        let bytes_max = kept.saturating_mul(sessions as u64).saturating_add(run_memory_max);
        tracing::debug!(kept, sessions, bytes_max, "an arena");
        Arena::new(environment, bytes_max, run_memory_max).map(Some).map_err(refused)
    }
}

/// Options of runs; those in an arena with a bound leave none of it taken.
fn run_options(is_bounded: bool) -> ort::Result<RunOptions> {
    let mut options = RunOptions::new()?;
    if is_bounded {
        shrink_after(&mut options)?;
    }
    Ok(options)
}

/// Has a run give the regions of its arena back that are free when it ends.
#[expect(unsafe_code, reason = "the crate sets no entries of a run's configuration")]
fn shrink_after<O: ort::session::SelectedOutputMarker>(
    options: &mut RunOptions<O>,
) -> ort::Result<()> {
    let (key, value) = (c"memory.enable_memory_arena_shrinkage", c"cpu:0");
    // SAFETY: the options are alive and borrowed mutably, so that no run uses them; both strings are constant, end with
    // a NUL and are copied.
    unsafe {
        let options = options.ptr().cast_mut();
        let status = (ort::api().AddRunConfigEntry)(options, key.as_ptr(), value.as_ptr());
        ort::Error::result_from_status(status)
    }
}

fn open_session(
    environment: &Environment,
    file: &ModelFile,
    options: SessionOptions<'_>,
) -> ort::Result<(Lent, OrtSession)> {
    let mut builder = OrtSession::builder(environment)?
        .with_intra_threads(options.intra_op_threads)?
        .with_inter_threads(1)?
        .with_intra_op_spinning(false)?
        .with_inter_op_spinning(false)?;
    if options.arena.is_some() {
        builder = builder.with_env_allocators()?;
    }
    let (mut builder, lent) = weights::lend(builder, file)?;
    Ok((lent, builder.commit_from_memory(&file.bytes)?))
}

/// How an output's value becomes a tensor.
#[derive(Debug, Clone, PartialEq)]
enum Reader {
    Tensor,
    /// What a classifier's `ZipMap` gives: a map from class to score for each row.
    RowsOfMaps {
        key: TensorElementType,
        /// The classes in the order of the columns, where the file tells them.
        classes: Option<Classes>,
    },
}

fn input_spec(name: &str, kind: &ValueType) -> Result<TensorSpec, LoadError> {
    let advice = "export the model with tensors of the protocol's datatypes";
    tensor_spec(name, kind).ok_or_else(|| LoadError::Unservable {
        role: "input",
        name: name.to_owned(),
        kind: kind.to_string(),
        advice,
    })
}

fn output_spec(
    name: &str,
    kind: &ValueType,
    summary: &Summary,
) -> Result<(TensorSpec, Reader), LoadError> {
    if let Some(spec) = tensor_spec(name, kind) {
        return Ok((spec, Reader::Tensor));
    }
    if let ValueType::Sequence(element) = kind
        && let ValueType::Map { key, value: TensorElementType::Float32 } = **element
        && matches!(key, TensorElementType::Int64 | TensorElementType::String)
    {
        let dims = Some(vec![-1, -1]);
        let spec = TensorSpec::new(name, DataType::Fp32, dims);
        let are_of_it = |classes: &&Classes| match classes {
            Classes::Integers(_) => key == TensorElementType::Int64,
            Classes::Texts(_) => key == TensorElementType::String,
        };
        let classes = summary.classes.get(name).filter(are_of_it).cloned();
        return Ok((spec, Reader::RowsOfMaps { key, classes }));
    }
    let advice = match kind {
        ValueType::Sequence(element) if matches!(**element, ValueType::Map { .. }) => {
            "export the model with plain tensors as outputs (with skl2onnx: options={\"zipmap\": False})"
        }
        _ => "export the model with tensors of the protocol's datatypes as outputs",
    };
    Err(LoadError::Unservable {
        role: "output",
        name: name.to_owned(),
        kind: kind.to_string(),
        advice,
    })
}

fn tensor_spec(name: &str, kind: &ValueType) -> Option<TensorSpec> {
    let ValueType::Tensor { ty, shape, .. } = kind else { return None };
    let dims = shape.iter().map(|dim| (*dim).max(-1)).collect();
    Some(TensorSpec::new(name, datatype(*ty)?, Some(dims)))
}

fn datatype(element: TensorElementType) -> Option<DataType> {
    Some(match element {
        TensorElementType::Bool => DataType::Bool,
        TensorElementType::Uint8 => DataType::Uint8,
        TensorElementType::Uint16 => DataType::Uint16,
        TensorElementType::Uint32 => DataType::Uint32,
        TensorElementType::Uint64 => DataType::Uint64,
        TensorElementType::Int8 => DataType::Int8,
        TensorElementType::Int16 => DataType::Int16,
        TensorElementType::Int32 => DataType::Int32,
        TensorElementType::Int64 => DataType::Int64,
        TensorElementType::Float16 => DataType::Fp16,
        TensorElementType::Bfloat16 => DataType::Bf16,
        TensorElementType::Float32 => DataType::Fp32,
        TensorElementType::Float64 => DataType::Fp64,
        TensorElementType::String => DataType::Bytes,
        _ => return None,
    })
}

struct Loaded {
    session: OrtSession,
    signature: Signature,
    readers: Vec<Reader>,
    /// The options of runs that want all outputs.
    options: RunOptions,
    /// The options of the last run that wanted only some outputs: clients tend to ask for the same ones.
    selection: Option<(SmallVec<[usize; 8]>, RunOptions<HasSelectedOutputs>)>,
    /// The runs that share its arena, where that has a bound.
    crowd: Option<Arc<Crowd>>,
    /// Let go of after the session, which stands before it.
    _lent: Lent,
}

impl Session for Loaded {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn run(&mut self, inputs: Cow<'_, [Input]>, wanted: &[usize]) -> Result<Vec<Tensor>, RunError> {
        self.run_leashed(inputs, wanted, &Leash::default())
    }

    fn run_leashed(
        &mut self,
        inputs: Cow<'_, [Input]>,
        wanted: &[usize],
        leash: &Leash,
    ) -> Result<Vec<Tensor>, RunError> {
        let views: SmallVec<[View<'_>; 4]> =
            inputs.iter().map(|input| View::of(&input.tensor)).collect::<Result<_, _>>()?;
        let values: SmallVec<[SessionInputValue<'_>; 4]> =
            views.iter().map(View::value).collect::<Result<_, _>>()?;
        // Positions are those of the inputs that must be there.
        let name = |input: &Input| {
            self.signature.any_input(&input.name).map_or("", |spec| spec.name.as_str())
        };
        let is_more = values.len() > self.signature.inputs.len();
        let names = is_more.then(|| inputs.iter().map(name).collect());
        let values = Values { values, names };
        let all = wanted.len() == self.signature.outputs.len();
        if !all && self.selection.as_ref().is_none_or(|(selected, _)| selected[..] != *wanted) {
            let selection = select(&self.signature, wanted, self.crowd.is_some());
            self.selection = Some((wanted.into(), selection.map_err(|e| failed(&e))?));
        }
        let selection = self.selection.as_ref().filter(|_| !all).map(|(_, options)| options);
        let options = selection.map_or(self.options.ptr(), ort::AsPointer::ptr);
        let visit = self.crowd.as_deref().map(Crowd::enter);
        let running = leash.begin(options.cast_mut());
        let mut again = visit.is_some();
        let outputs = loop {
            match values.run(&mut self.session, &self.options, selection) {
                Ok(outputs) => break Ok(outputs),
                // A run gives back what is free in the arena, also what earlier answers took, but only when it ends.
                Err(error) if again && is_full(error.message()) && !running.was_ended() => {
                    again = false;
                }
                Err(error) => break Err(error),
            }
        };
        let was_ended = running.was_ended();
        drop(running);
        let ended = |error: ort::Error| match &visit {
            _ if was_ended => RunError::Ended,
            Some(visit) if is_full(error.message()) => visit.full(),
            _ => failed(&error),
        };
        let outputs = outputs.map_err(ended);
        if visit.is_some() && outputs.as_ref().is_err_and(was_cut) {
            trim();
        }
        let outputs = outputs?;
        let large = inputs.iter().map(|input| input.tensor.raw_len()).sum::<usize>() > LARGE_BYTES;
        if large && !shares_memory(&views, &outputs) {
            // Before outputs are copied, owned inputs go: a large request should not be held twice.
            drop(values);
            drop(views);
            drop(inputs);
        }
        read_outputs(&outputs, wanted, &self.readers, &self.signature)
    }
}

/// The inputs of a run.
struct Values<'v> {
    values: SmallVec<[SessionInputValue<'v>; 4]>,
    /// Their names, where they are more than those that must be there.
    names: Option<Vec<&'v str>>,
}

impl Values<'_> {
    fn run<'s>(
        &self,
        session: &'s mut OrtSession,
        options: &'s RunOptions,
        selection: Option<&'s RunOptions<HasSelectedOutputs>>,
    ) -> ort::Result<SessionOutputs<'s>> {
        let values = match &self.names {
            None => SessionInputs::<0>::ValueSlice(&self.values),
            Some(names) => {
                let all = names.iter().zip(&self.values);
                let together =
                    all.map(|(name, value)| (Cow::Borrowed(*name), (**value).view().into()));
                SessionInputs::ValueMap(together.collect())
            }
        };
        match selection {
            Some(options) => session.run_with_options(values, options),
            None => session.run_with_options(values, options),
        }
    }
}

/// True if a run was cut short, however much it had allocated by then.
///
/// glibc keeps what such a run has freed for the next one of the same thread: as often `engine.run_memory` as there are
/// threads that run.
fn was_cut(error: &RunError) -> bool {
    matches!(error, RunError::Ended | RunError::Oversized { .. } | RunError::Crowded { .. })
}

/// Inputs above this are worth letting go early.
const LARGE_BYTES: usize = 64 * 1024;

fn select(
    signature: &Signature,
    wanted: &[usize],
    is_bounded: bool,
) -> ort::Result<RunOptions<HasSelectedOutputs>> {
    let selector = wanted.iter().fold(OutputSelector::no_default(), |selector, index| {
        selector.with(&*signature.outputs[*index].name)
    });
    Ok(run_options(is_bounded)?.with_outputs(selector))
}

fn failed(error: &ort::Error) -> RunError {
    let text = shortened(error.message());
    // A kernel that refuses the values it got says so with one of these codes; the signature was checked before.
    if starved(&text) {
        return RunError::Failed(text);
    }
    match error.code() {
        ort::ErrorCode::InvalidArgument | ort::ErrorCode::GenericFailure => RunError::Inputs(text),
        _ if text.contains("Non-zero status code returned while running") => RunError::Inputs(text),
        _ => RunError::Failed(text),
    }
}

/// An input in a form that the runtime can borrow: aligned elements or a string tensor of its own.
enum View<'a> {
    Bool(&'a Shape, Cow<'a, [bool]>),
    Uint8(&'a Shape, Cow<'a, [u8]>),
    Uint16(&'a Shape, Cow<'a, [u16]>),
    Uint32(&'a Shape, Cow<'a, [u32]>),
    Uint64(&'a Shape, Cow<'a, [u64]>),
    Int8(&'a Shape, Cow<'a, [i8]>),
    Int16(&'a Shape, Cow<'a, [i16]>),
    Int32(&'a Shape, Cow<'a, [i32]>),
    Int64(&'a Shape, Cow<'a, [i64]>),
    Fp16(&'a Shape, Cow<'a, [half::f16]>),
    Bf16(&'a Shape, Cow<'a, [half::bf16]>),
    Fp32(&'a Shape, Cow<'a, [f32]>),
    Fp64(&'a Shape, Cow<'a, [f64]>),
    Strings(DynValue),
}

macro_rules! each_view {
    ($view:expr, $shape:ident, $values:ident => $numbers:expr, $strings:ident => $text:expr) => {
        match $view {
            View::Bool($shape, $values) => $numbers,
            View::Uint8($shape, $values) => $numbers,
            View::Uint16($shape, $values) => $numbers,
            View::Uint32($shape, $values) => $numbers,
            View::Uint64($shape, $values) => $numbers,
            View::Int8($shape, $values) => $numbers,
            View::Int16($shape, $values) => $numbers,
            View::Int32($shape, $values) => $numbers,
            View::Int64($shape, $values) => $numbers,
            View::Fp16($shape, $values) => $numbers,
            View::Bf16($shape, $values) => $numbers,
            View::Fp32($shape, $values) => $numbers,
            View::Fp64($shape, $values) => $numbers,
            View::Strings($strings) => $text,
        }
    };
}

impl<'a> View<'a> {
    fn of(tensor: &'a Tensor) -> Result<Self, RunError> {
        let shape = tensor.shape();
        macro_rules! seen {
            ($variant:ident) => {
                Self::$variant(
                    shape,
                    tensor.view().expect("the view is of the tensor's own datatype"),
                )
            };
        }
        Ok(match tensor.datatype() {
            DataType::Bool => seen!(Bool),
            DataType::Uint8 => seen!(Uint8),
            DataType::Uint16 => seen!(Uint16),
            DataType::Uint32 => seen!(Uint32),
            DataType::Uint64 => seen!(Uint64),
            DataType::Int8 => seen!(Int8),
            DataType::Int16 => seen!(Int16),
            DataType::Int32 => seen!(Int32),
            DataType::Int64 => seen!(Int64),
            DataType::Fp16 => seen!(Fp16),
            DataType::Bf16 => seen!(Bf16),
            DataType::Fp32 => seen!(Fp32),
            DataType::Fp64 => seen!(Fp64),
            DataType::Bytes => {
                let strings = tensor.strings().expect("BYTES holds strings");
                Self::Strings(string_value(shape, strings).map_err(|error| failed(&error))?)
            }
        })
    }

    fn value(&self) -> Result<SessionInputValue<'_>, RunError> {
        each_view!(self, shape, values => number_value(shape, values).map_err(|error| failed(&error)),
            strings => Ok(SessionInputValue::from(strings)))
    }
}

/// Whether an output's elements are an input's: a graph may pass one straight through.
fn shares_memory(views: &[View<'_>], outputs: &SessionOutputs<'_>) -> bool {
    let lies_in = |address: usize, view: &View<'_>| {
        each_view!(view, _shape, values => {
            let range = values.as_ptr_range();
            (range.start.addr()..range.end.addr()).contains(&address)
        // The runtime's own, and counted by it.
        }, _strings => false)
    };
    outputs.values().any(|value| match address(&value) {
        Some(address) => views.iter().any(|view| lies_in(address, view)),
        // What it cannot tell may be anything; strings are the runtime's own.
        None => !matches!(value.dtype(), ValueType::Tensor { ty: TensorElementType::String, .. }),
    })
}

/// Where an output's elements begin.
fn address(value: &DynValue) -> Option<usize> {
    let ValueType::Tensor { ty, .. } = value.dtype() else { return None };
    macro_rules! begin {
        ($rust:ty) => {
            value.try_extract_tensor::<$rust>().ok()?.1.as_ptr().addr()
        };
    }
    Some(match datatype(*ty)? {
        DataType::Bool => begin!(bool),
        DataType::Uint8 => begin!(u8),
        DataType::Uint16 => begin!(u16),
        DataType::Uint32 => begin!(u32),
        DataType::Uint64 => begin!(u64),
        DataType::Int8 => begin!(i8),
        DataType::Int16 => begin!(i16),
        DataType::Int32 => begin!(i32),
        DataType::Int64 => begin!(i64),
        DataType::Fp16 => begin!(half::f16),
        DataType::Bf16 => begin!(half::bf16),
        DataType::Fp32 => begin!(f32),
        DataType::Fp64 => begin!(f64),
        DataType::Bytes => return None,
    })
}

fn number_value<'a, T: PrimitiveTensorElementType + Clone + std::fmt::Debug + 'static>(
    shape: &'a Shape,
    values: &'a [T],
) -> ort::Result<SessionInputValue<'a>> {
    Ok(TensorRef::from_array_view((&**shape, values))?.into())
}

/// A string tensor of the runtime's own, filled with these bytes.
fn string_value(shape: &Shape, strings: &Strings) -> ort::Result<DynValue> {
    let mut tensor = DynTensor::new(&Allocator::default(), TensorElementType::String, &**shape)?;
    for (index, string) in strings.iter().enumerate() {
        fill_string(&mut tensor, index, string)?;
    }
    Ok(tensor.into_dyn())
}

#[expect(unsafe_code, reason = "the crate fills string tensors only with UTF-8 that has no NUL")]
fn fill_string(tensor: &mut DynTensor, index: usize, string: &[u8]) -> ort::Result<()> {
    let mut buffer = std::ptr::null_mut();
    // SAFETY: `tensor` is a live string tensor of at least `index + 1` elements (it was made with the shape whose
    // strings these are), borrowed mutably, so nothing else reads or writes it. The call gives a buffer of exactly
    // `string.len()` bytes inside that element, or an error and no buffer.
    unsafe {
        let status = (ort::api().GetResizedStringTensorElementBuffer)(
            tensor.ptr().cast_mut(),
            index,
            string.len(),
            &raw mut buffer,
        );
        ort::Error::result_from_status(status)?;
        if !string.is_empty() {
            std::ptr::copy_nonoverlapping(string.as_ptr(), buffer.cast::<u8>(), string.len());
        }
    }
    Ok(())
}

fn read_outputs(
    outputs: &SessionOutputs<'_>,
    wanted: &[usize],
    readers: &[Reader],
    signature: &Signature,
) -> Result<Vec<Tensor>, RunError> {
    let mut tensors = Vec::with_capacity(wanted.len());
    for ((_, value), index) in outputs.iter().zip(wanted) {
        let name = &signature.outputs[*index].name;
        tensors.push(match &readers[*index] {
            Reader::Tensor => read_tensor(name, &value)?,
            Reader::RowsOfMaps { key, classes } => {
                read_rows_of_maps(name, &value, *key, classes.as_ref())?
            }
        });
    }
    Ok(tensors)
}

fn read_tensor(name: &str, value: &DynValue) -> Result<Tensor, RunError> {
    let wrong = || RunError::Output { name: name.to_owned(), actual: value.dtype().to_string() };
    let ValueType::Tensor { ty, shape, .. } = value.dtype() else { return Err(wrong()) };
    let shape = Shape::new(shape).ok_or_else(wrong)?;
    macro_rules! copied {
        ($rust:ty) => {{
            let (_, values) =
                value.try_extract_tensor::<$rust>().map_err(|error| failed(&error))?;
            <$rust>::wrap(values.to_vec())
        }};
    }
    let data = match datatype(*ty).ok_or_else(wrong)? {
        DataType::Bool => copied!(bool),
        DataType::Uint8 => copied!(u8),
        DataType::Uint16 => copied!(u16),
        DataType::Uint32 => copied!(u32),
        DataType::Uint64 => copied!(u64),
        DataType::Int8 => copied!(i8),
        DataType::Int16 => copied!(i16),
        DataType::Int32 => copied!(i32),
        DataType::Int64 => copied!(i64),
        DataType::Fp32 => copied!(f32),
        DataType::Fp64 => copied!(f64),
        DataType::Bytes => Data::Bytes(read_strings(value).map_err(|error| failed(&error))?),
        half @ (DataType::Fp16 | DataType::Bf16) => {
            let Data::Raw(raw) =
                (if half == DataType::Fp16 { copied!(half::f16) } else { copied!(half::bf16) })
            else {
                return Err(wrong());
            };
            return Tensor::from_raw(half, shape, raw).map_err(|_| wrong());
        }
    };
    Tensor::new(shape, data).map_err(|_| wrong())
}

#[expect(unsafe_code, reason = "the crate reads string tensors only as UTF-8")]
fn read_strings(value: &DynValue) -> ort::Result<Strings> {
    let ValueType::Tensor { ty: TensorElementType::String, shape, .. } = value.dtype() else {
        return Err(ort::Error::new("not a string tensor"));
    };
    let count = shape.num_elements();
    let mut length = 0usize;
    let mut offsets = vec![0usize; count];
    // SAFETY: `value` is a live string tensor (checked above) that is only read. The runtime says how many bytes all
    // strings take together; `bytes` has that length and `offsets` one place for each of the `count` elements, which
    // is all that the second call writes.
    let bytes = unsafe {
        let api = ort::api();
        ort::Error::result_from_status((api.GetStringTensorDataLength)(
            value.ptr(),
            &raw mut length,
        ))?;
        let mut bytes = vec![0u8; length];
        let status = (api.GetStringTensorContent)(
            value.ptr(),
            bytes.as_mut_ptr().cast(),
            length,
            offsets.as_mut_ptr(),
            count,
        );
        ort::Error::result_from_status(status)?;
        bytes
    };
    let unordered = || ort::Error::new("string offsets are not ascending");
    // Where one begins, the one before ends.
    if count > 0 {
        if offsets.remove(0) != 0 {
            return Err(unordered());
        }
        offsets.push(length);
    }
    Strings::from_ends(bytes, offsets).ok_or_else(unordered)
}

/// Rows of maps from class to score become a matrix, with a column for each class also where there are no rows.
fn read_rows_of_maps(
    name: &str,
    value: &DynValue,
    key: TensorElementType,
    classes: Option<&Classes>,
) -> Result<Tensor, RunError> {
    let wrong = || RunError::Output { name: name.to_owned(), actual: value.dtype().to_string() };
    let maps = value.try_extract_sequence::<DynMapValueType>().map_err(|error| failed(&error))?;
    let mut scores = Vec::new();
    let mut columns = classes.map_or(0, Classes::len);
    let (integers, texts) = match classes {
        Some(Classes::Integers(all)) => (Some(&all[..]), None),
        Some(Classes::Texts(all)) => (None, Some(&all[..])),
        None => (None, None),
    };
    for map in &maps {
        let before = scores.len();
        let row = if key == TensorElementType::String {
            let row = map.try_extract_map::<String, f32>().map_err(|error| failed(&error))?;
            add_row(row, texts, &mut scores)
        } else {
            let row = map.try_extract_map::<i64, f32>().map_err(|error| failed(&error))?;
            add_row(row, integers, &mut scores)
        };
        row.ok_or_else(wrong)?;
        columns = scores.len() - before;
    }
    let dim = |n: usize| i64::try_from(n).expect("a length in memory fits");
    let shape = Shape::new(&[dim(maps.len()), dim(columns)]).expect("lengths are not negative");
    Tensor::new(shape, Data::Fp32(scores)).map_err(|_| wrong())
}

/// Appends the scores of a row in the order of the classes, or in the ascending order of its own where that is not
/// known; `None` if a class is missing.
fn add_row<K: Eq + Hash + Ord>(
    row: HashMap<K, f32>,
    classes: Option<&[K]>,
    scores: &mut Vec<f32>,
) -> Option<()> {
    let Some(classes) = classes else {
        scores.extend(row.into_iter().collect::<BTreeMap<_, _>>().into_values());
        return Some(());
    };
    for class in classes {
        scores.push(*row.get(class)?);
    }
    Some(())
}
