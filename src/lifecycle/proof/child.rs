//! The processes that prove versions: a template, which sees no model, and its copies, each of which sees one.
//!
//! Their order is their safety. The template reads the preparation, which the server wrote; closes files; loads the
//! engine's library; then waits to be copied, with the streams of the copy as open files. A copy lets go of the
//! template's streams, puts the rest of the sandbox on, and only then reads its request and the model: one request on
//! standard input, one answer on standard output, and after it what it is about to try. What goes wrong is an answer as
//! long as there is somebody to write it; a crash is seen by the server, which has the template end and reap the copy.
//! Nothing that a copy does reaches the template: its memory is its own, and the template reads nothing of it.
//!
//! Not here: starting and ending them (`process`).

use std::{
    collections::BTreeSet,
    fs::File,
    io::{Read, Write},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    engine::{
        self, Copied, Copier, Engines, ExternalFile, LibraryError, ModelFile, Packed, Session,
        SessionOptions,
    },
    model::{
        DeclaredTensor, EngineChoice, Guards, Input, ModelDescription, Rows, Signature, TensorSpec,
    },
    monitor::Clock,
    tensor::DataType,
};

use super::{
    super::{Golden, LoadFailure},
    ProofLimits, Sandbox, hostility,
    message::{self, Bounds, MessageError, Opened, ReceivedFiles},
    probes::{self, Probe},
    samples::{self, Blank, Described, Kind},
    sandbox,
    trial::{self, Trial},
};
use crate::lifecycle::Code;

/// What a request may hold: protobuf's 2 GiB, external data, golden outputs.
const REQUEST: Bounds =
    Bounds { head_bytes: 256 << 20, blobs: 1_000_000, blob_bytes: u64::MAX >> 1 };

/// What a preparation may hold: a path.
const PREPARATION: Bounds = Bounds { head_bytes: 1 << 20, blobs: 0, blob_bytes: 0 };

/// Message of a template.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Word {
    /// The process that reads the request: its copy, or itself where it cannot be copied.
    Copied(u32),
    /// The copy has ended and was reaped; how, as the system says it.
    Ended(i32),
}

/// The streams of a copy, which the template is handed: its standard input, output and error.
pub(super) const STREAMS: usize = 3;

/// What must be known before the sandbox is closed.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Preparation {
    /// The process that asks.
    pub(super) parent: u32,
    pub(super) limits: ProofLimits,
    /// ONNX Runtime's library, where it was named.
    pub(super) onnxruntime: Option<PathBuf>,
}

/// What the parent asks for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Request {
    /// The engine, where one was chosen.
    pub(super) engine: Option<String>,
    pub(super) intra_op_threads: usize,
    pub(super) warmup_runs: u32,
    /// The blobs after the model: files with external data that are not mapped, then golden outputs if there are any.
    pub(super) locations: Vec<Location>,
    pub(super) golden: bool,
    /// The shapes of its description.
    pub(super) shapes: Shapes,
    /// The requests of `model_warmup`.
    pub(super) described: Vec<Vec<Blank>>,
    pub(super) probing: Probing,
    /// Tries to break out instead of proving a model.
    pub(super) self_test: bool,
}

impl Request {
    /// To try to break out of the sandbox.
    pub(super) fn self_test() -> Self {
        Self {
            engine: None,
            intra_op_threads: 1,
            warmup_runs: 0,
            locations: Vec::new(),
            golden: false,
            shapes: Shapes::default(),
            described: Vec::new(),
            probing: Probing::default(),
            self_test: true,
        }
    }
}

/// A file with external data.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Location {
    /// As the model names it.
    pub(super) location: String,
    /// Its length, where it comes as an open file.
    pub(super) mapped: Option<u64>,
}

/// The runs to try after a version is proven.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Probing {
    /// The first probe of the plan that is run; above 0, an earlier process has shown the rest.
    pub(super) from: usize,
    /// Probes that ended earlier processes.
    pub(super) fatal: Vec<Probe>,
    /// The sample whose sizes are changed, as the first process found it.
    pub(super) base: usize,
    /// When to begin no further one.
    pub(super) time_max: Duration,
}

/// A message of the process; in this order: an answer and, if the version is proven, its probes and the end of them.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Said {
    /// The answer to the request.
    Answer(Box<Answer>),
    /// It is about to run this probe, of this number in the plan.
    Trying(usize, Probe),
    /// The probe gave outputs.
    Well,
    /// There are no more.
    Done,
}

/// What comes back.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Answer {
    /// `None`: it was not put on.
    pub(super) sandbox: Option<Sandbox>,
    pub(super) memory_peak: Option<u64>,
    pub(super) outcome: Outcome,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    Proven(Box<Report>),
    Refused { code: Code, reason: String },
    SelfTest(Vec<hostility::Attempt>),
}

/// What was found about a version that can be served.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Report {
    pub(super) engine: String,
    inputs: Vec<Spec>,
    outputs: Vec<Spec>,
    optional: Vec<Spec>,
    rows: Rows,
    pub(super) load: Duration,
    pub(super) warmup: Duration,
    pub(super) run: Option<Duration>,
    pub(super) notes: Vec<String>,
    /// Filled in by the parent, who outlives what the probes find.
    pub(super) guards: Guards,
    /// The sample that the probes change.
    pub(super) base: usize,
}

/// The shapes of a description.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Shapes {
    max_batch_size: Option<u32>,
    inputs: Vec<Shaped>,
    outputs: Vec<Shaped>,
}

/// The shape that a description gives a tensor.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Shaped {
    name: String,
    dims: Option<Vec<i64>>,
    reshape: Option<Vec<i64>>,
}

impl From<&ModelDescription> for Shapes {
    fn from(description: &ModelDescription) -> Self {
        let of = |all: &[DeclaredTensor]| {
            let shape = |tensor: &DeclaredTensor| Shaped {
                name: tensor.name.clone(),
                dims: tensor.dims.clone(),
                reshape: tensor.reshape.clone(),
            };
            all.iter().map(shape).collect()
        };
        Self {
            max_batch_size: description.max_batch_size,
            inputs: of(&description.inputs),
            outputs: of(&description.outputs),
        }
    }
}

impl Shapes {
    /// A description that says so much and no more.
    fn description(&self) -> ModelDescription {
        let of = |all: &[Shaped]| {
            let tensor = |shaped: &Shaped| DeclaredTensor {
                name: shaped.name.clone(),
                dims: shaped.dims.clone(),
                reshape: shaped.reshape.clone(),
                ..DeclaredTensor::default()
            };
            all.iter().map(tensor).collect()
        };
        ModelDescription {
            max_batch_size: self.max_batch_size,
            inputs: of(&self.inputs),
            outputs: of(&self.outputs),
            ..ModelDescription::default()
        }
    }
}

/// A [`TensorSpec`] as it is written.
#[derive(Debug, Serialize, Deserialize)]
struct Spec {
    name: String,
    datatype: String,
    dims: Option<Vec<i64>>,
}

impl Report {
    /// The version's inputs and outputs; `None` where they make no sense.
    pub(super) fn signature(&self) -> Option<Signature> {
        let specs = |all: &[Spec]| all.iter().map(Spec::read).collect::<Option<_>>();
        Some(Signature {
            inputs: specs(&self.inputs)?,
            outputs: specs(&self.outputs)?,
            optional: specs(&self.optional)?,
            rows: self.rows,
        })
    }
}

impl Spec {
    fn of(spec: &TensorSpec) -> Self {
        let datatype = spec.datatype.name().to_owned();
        Self { name: spec.name.clone(), datatype, dims: spec.dims.clone() }
    }

    fn read(&self) -> Option<TensorSpec> {
        let datatype = DataType::parse(&self.datatype)?;
        Some(TensorSpec::new(&*self.name, datatype, self.dims.clone()))
    }
}

/// Has itself copied and each copy answer one request: `tidegate prove-version`, which the server starts.
///
/// # Errors
/// If there is nobody to answer; then the process should end.
pub fn prove_version(clock: &dyn Clock, mut from: File, mut to: impl Write) -> Result<(), String> {
    let (preparation, _) = read::<Preparation>(&mut from, &PREPARATION)?;
    let settings = engine::Settings {
        onnxruntime: preparation.onnxruntime.clone(),
        ..engine::Settings::default()
    };
    let status = File::open("/proc/self/status").ok();
    let copier = Copier::open();
    let begun = sandbox::begin(preparation.parent, preparation.onnxruntime.as_deref())?;
    let engines = Engines::open(&settings);
    if let Ok(engines) = &engines {
        warm_up(engines);
    }
    let template = std::process::id();
    // At the end of the socket the server is gone, or needs no more copies.
    while let Ok(streams) = ReceivedFiles::new(&from, STREAMS).collect::<Result<Vec<_>, _>>() {
        let made = copier.as_ref().ok().and_then(|copier| copier.copy().ok());
        if let Some(Copied::Original(copy)) = made {
            drop(streams);
            write(&Word::Copied(copy), &mut to)?;
            await_end(copy, &mut from, &mut to)?;
            continue;
        }
        if made.is_none() {
            // Where it cannot be copied it is the one that sees a model, and the last thing it sees.
            write(&Word::Copied(template), &mut to)?;
        } else {
            sandbox::end_with(template)?;
        }
        let from = take_over(from, streams)?;
        let sandbox = begun.complete(status.as_ref(), &preparation.limits);
        drop((status, copier));
        return answer(&preparation, &sandbox, engines, clock, from, to);
    }
    Ok(())
}

/// Loads and runs the smallest model: what an engine sets up with its first session is there before it is copied.
fn warm_up(engines: &Engines) {
    /// An `Identity` of one number.
    const SMALLEST: &[u8] = b"\x08\x08\x42\x02\x10\x0d\x3a\x37\
        \x0a\x10\x0a\x01x\x12\x01y\x22\x08Identity\x12\x01g\
        \x5a\x0f\x0a\x01x\x12\x0a\x0a\x08\x08\x01\x12\x04\x0a\x02\x08\x01\
        \x62\x0f\x0a\x01y\x12\x0a\x0a\x08\x08\x01\x12\x04\x0a\x02\x08\x01";
    let Ok((summary, _)) = trial::preflight(&Bytes::from_static(SMALLEST)) else { return };
    let (summary, packed) = (Arc::new(summary), Packed::default());
    let file =
        ModelFile { bytes: Bytes::from_static(SMALLEST), external: Vec::new(), summary, packed };
    let options = SessionOptions { intra_op_threads: 1, arena: None };
    // It only saves time: what is wrong with an engine is told of a model that somebody wants.
    let Ok(mut session) =
        engines.choose(EngineChoice::Auto).and_then(|engine| engine.load(&file, options))
    else {
        return;
    };
    let samples = samples::samples(session.signature(), None, &Described::default());
    for sample in samples {
        let _ = session.run(sample.inputs.into(), &[0]);
    }
}

/// Waits for the server's word, which ends the copy, and tells how it ended.
fn await_end(copy: u32, from: &mut File, to: &mut impl Write) -> Result<(), String> {
    let unknown = || "the copy has no number".to_owned();
    let copy = i32::try_from(copy).ok().and_then(Pid::from_raw).ok_or_else(unknown)?;
    let told = |error: std::io::Error| error.to_string();
    from.read_exact(&mut [0]).map_err(told)?;
    // It may have ended by itself; until it is waited for, its number means no other process.
    let _ = kill_process(copy, Signal::KILL);
    let ended = waitpid(Some(copy), WaitOptions::empty()).map_err(|error| told(error.into()))?;
    let status = ended.map(|(_, status)| status.as_raw()).ok_or_else(unknown)?;
    write(&Word::Ended(status), to)
}

/// Lets go of the template's streams for those of the copy; gives what the request is read from.
fn take_over(from: File, streams: Vec<File>) -> Result<File, String> {
    drop(from);
    let told = |error: rustix::io::Errno| format!("it gets no streams: {error}");
    let [input, output, errors] =
        <[File; STREAMS]>::try_from(streams).map_err(|_| "it gets no streams".to_owned())?;
    rustix::stdio::dup2_stdin(&input).map_err(told)?;
    rustix::stdio::dup2_stdout(&output).map_err(told)?;
    rustix::stdio::dup2_stderr(&errors).map_err(told)?;
    Ok(input)
}

/// Answers one request, in the sandbox.
fn answer(
    preparation: &Preparation,
    sandbox: &Sandbox,
    engines: Result<Engines, LibraryError>,
    clock: &dyn Clock,
    mut from: File,
    mut to: impl Write,
) -> Result<(), String> {
    let (request, opened) = read::<Request>(&mut from, &REQUEST)?;
    let answer = |outcome| {
        let (sandbox, memory_peak) = (Some(sandbox.clone()), engine::memory_peak());
        Said::Answer(Box::new(Answer { sandbox, memory_peak, outcome }))
    };
    if request.self_test {
        return write(&answer(Outcome::SelfTest(hostility::attempts(preparation))), &mut to);
    }
    let outcome = || -> Result<(Report, Probed), LoadFailure> {
        let engines = engines.map_err(|error| LoadFailure::Library(error.to_string()))?;
        let blobs = opened.blobs(&mut from).map_err(LoadFailure::from)?;
        let count = request.locations.iter().filter(|location| location.mapped.is_some()).count();
        prove(&request, &engines, blobs, ReceivedFiles::new(&from, count), clock)
    };
    // The panic itself is told on standard error.
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(outcome))
        .unwrap_or(Err(LoadFailure::Panicked));
    match outcome {
        Ok((report, probed)) => {
            write(&answer(Outcome::Proven(Box::new(report))), &mut to)?;
            probed.run(&request.probing, clock, &mut to)
        }
        Err(failure) => {
            let (code, reason) = (failure.code(), failure.to_string());
            write(&answer(Outcome::Refused { code, reason }), &mut to)
        }
    }
}

/// A version that has shown what it must, and what is to be tried with it.
struct Probed {
    session: Box<dyn Session>,
    sample: Vec<Input>,
    /// Zeros of the same shapes: where a value is a size, empty inputs may fit no other.
    zeros: Option<Vec<Input>>,
    probes: Vec<Probe>,
}

impl Probed {
    /// Runs the probes, saying before each which it is.
    fn run(
        mut self,
        probing: &Probing,
        clock: &dyn Clock,
        to: &mut impl Write,
    ) -> Result<(), String> {
        let begin = clock.now();
        let mut well = BTreeSet::new();
        for (index, probe) in self.probes.iter().enumerate().skip(probing.from) {
            if clock.now() - begin >= probing.time_max {
                break;
            }
            if probe.is_settled_by(&well)
                || probing.fatal.iter().any(|fatal| probe.is_as_bad_as(fatal))
            {
                continue;
            }
            write(&Said::Trying(index, probe.clone()), to)?;
            let mut samples = std::iter::once(&self.sample).chain(&self.zeros);
            if samples.any(|sample| probe.run(&mut *self.session, sample)) {
                well.insert(probe.empty().to_vec());
                write(&Said::Well, to)?;
            }
        }
        write(&Said::Done, to)
    }
}

/// Reads a message up to its blobs.
fn read<T: DeserializeOwned>(from: &mut impl Read, bounds: &Bounds) -> Result<(T, Opened), String> {
    let opened = message::open(from, bounds).map_err(|error| error.to_string())?;
    let head = serde_json::from_slice(&opened.head).map_err(|error| error.to_string())?;
    Ok((head, opened))
}

fn write(said: &impl Serialize, to: &mut impl Write) -> Result<(), String> {
    let head = serde_json::to_vec(said).map_err(|error| error.to_string())?;
    let bytes = message::encode(&head, &[]).map_err(|error| error.to_string())?;
    to.write_all(&bytes).and_then(|()| to.flush()).map_err(|error| error.to_string())
}

/// External data, in the order of their locations: blobs, and files that are handed over.
fn external(
    locations: &[Location],
    blobs: &mut impl Iterator<Item = Bytes>,
    mut files: ReceivedFiles<'_>,
) -> Result<Vec<ExternalFile>, LoadFailure> {
    let incomplete = || LoadFailure::Request("it lacks a file".to_owned());
    let mut external = Vec::with_capacity(locations.len());
    for Location { location, mapped } in locations {
        let location = location.clone();
        external.push(if let Some(length) = *mapped {
            let file = files.next().ok_or_else(incomplete)?.map_err(MessageError::Read)?;
            let file = ExternalFile::map(location, Arc::new(file), length);
            // The mapping stays; a process may have few open files.
            ExternalFile { file: None, ..file.map_err(LoadFailure::Map)? }
        } else {
            ExternalFile { location, bytes: blobs.next().ok_or_else(incomplete)?, file: None }
        });
    }
    Ok(external)
}

fn prove(
    request: &Request,
    engines: &Engines,
    blobs: Vec<Bytes>,
    files: ReceivedFiles<'_>,
    clock: &dyn Clock,
) -> Result<(Report, Probed), LoadFailure> {
    let mut blobs = blobs.into_iter();
    let incomplete = || LoadFailure::Request("it lacks a file".to_owned());
    let model = blobs.next().ok_or_else(incomplete)?;
    let external = external(&request.locations, &mut blobs, files)?;
    let golden = if request.golden { Some(blobs.next().ok_or_else(incomplete)?) } else { None };
    let golden = golden.as_deref().map(Golden::parse).transpose()?;
    let (summary, hazards) = trial::preflight(&model)?;
    for tensor in &summary.external_data {
        let file = external.iter().find(|file| file.location == tensor.location);
        trial::external_fits(tensor, file.map_or(0, |file| file.bytes.len() as u64))?;
    }
    let choices = [EngineChoice::OnnxRuntime, EngineChoice::Tract];
    let named = |choice: &EngineChoice| request.engine.as_deref() == Some(choice.as_str());
    let choice = choices.into_iter().find(named).unwrap_or(EngineChoice::Auto);
    let engine = engines.choose(choice)?;
    let options = SessionOptions { intra_op_threads: request.intra_op_threads, arena: None };
    let begin = clock.now();
    let summary = Arc::new(summary);
    let packed = Packed::default();
    let file = ModelFile { bytes: model, external, summary: Arc::clone(&summary), packed };
    let mut session = engine.load(&file, options)?;
    let load = clock.now() - begin;
    let own = session.signature().clone();
    // Where the two disagree, the parent says so.
    let signature = own.clone().described(&request.shapes.description());
    let signature = signature.unwrap_or_else(|_| own.clone());
    let described = Described { requests: request.described.clone(), files: blobs.collect() };
    let samples = samples::samples(&signature, golden.as_ref(), &described);
    let mut warmed = trial::Warmed::default();
    if request.probing.from == 0 {
        let (golden, signature) = (golden.as_ref(), &signature);
        let trial = Trial { engine, summary: &summary, signature, golden, samples: &samples };
        warmed = trial.run(&mut *session, request.warmup_runs, clock)?;
    }
    let zeros = samples.iter().rfind(|sample| sample.kind == Kind::Zeros);
    let zeros = zeros.map(|sample| sample.inputs.clone());
    let base = warmed.best.unwrap_or(request.probing.base);
    let sample = samples.into_iter().nth(base);
    let mut sample = sample.map(|sample| sample.inputs).unwrap_or_default();
    // Guards know the inputs that must be there, by their places.
    sample.truncate(own.inputs.len());
    let mut probes = probes::plan(&summary, &signature, &sample);
    // Known to be kept from it in any case.
    let is_guarded = hazards.iter().any(|hazard| !hazard.settled_by_proof);
    probes.retain(|probe| !is_guarded || !probe.is_empty());
    let report = Report {
        engine: engine.name().to_owned(),
        inputs: own.inputs.iter().map(Spec::of).collect(),
        outputs: own.outputs.iter().map(Spec::of).collect(),
        optional: own.optional.iter().map(Spec::of).collect(),
        rows: own.rows,
        load,
        warmup: warmed.total,
        run: warmed.fastest,
        notes: warmed.notes,
        guards: Guards::NONE,
        base,
    };
    Ok((report, Probed { session, sample, zeros, probes }))
}
