//! From a listed version to one that can answer.

use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    drift::{Drift, Given, Newcomer, Profile},
    engine::{
        self, Engine, Engines, ExternalFile, LoadError, ModelFile, Packed, Session, SessionOptions,
        Tag,
        onnx::{self, Hazard, Misread, OnnxError},
    },
    model::{
        EngineChoice, Growth, Guards, ModelDescription, ModelName, Quotient, Signature, TensorSpec,
        VersionId,
    },
    monitor::{Monitor, Phase},
    serve::{AnswerReading, AnswerRule, Samples, Version, VersionParts},
    source::{Artifact, Content, SourceError, Store},
};

use super::{
    Blame, Case, Golden, GoldenError, Origin, Proof, ProofFailure, Prover,
    blame::Suspicion,
    proof::{
        message::MessageError,
        samples::{self, Described, Kind, Sample},
        trial::{self, NotNumber, Trial},
    },
};

/// Loads versions.
#[derive(Debug)]
pub struct Loader {
    /// The engines of this process.
    pub engines: Engines,
    /// Where versions are counted.
    pub monitor: Arc<Monitor>,
    /// Sessions of each version.
    pub sessions: usize,
    /// Threads within one run, where a description says nothing.
    pub intra_op_threads: usize,
    /// Bytes that one run may allocate where a request's values choose how many.
    pub run_memory_max: u64,
    /// Runs before a version answers.
    pub warmup_runs: u32,
    /// Engines that the operator chose; they win over what a repository says.
    pub chosen: BTreeMap<ModelName, EngineChoice>,
    /// The operator's word about which outputs are predictions.
    pub answers: BTreeMap<ModelName, AnswerRule>,
    /// Proves each version in a process of its own first; `None` where the operator trusts what is loaded.
    pub prover: Option<Prover>,
    /// Whether a process waits for the next version to prove.
    pub spare_prover: bool,
    /// How many versions are fetched and proven at a time; one at a time is then loaded into this process.
    pub loads_at_once: NonZeroUsize,
    /// The same while the versions that are there at the start are tried.
    pub loads_at_start: NonZeroUsize,
    /// The versions that ended this server before; `None` if that is not known.
    pub blame: Option<Blame>,
    /// Watches the drift of what it loads; `None` where nothing is served.
    pub drift: Option<Drift>,
    /// Takes samples of predictions of what it loads; `None` where none are taken.
    pub samples: Option<Arc<Samples>>,
    /// Where versions are kept once they are read; without it they are not.
    pub store: Option<Store>,
    /// The most bytes of a version.
    pub artifact_bytes_max: u64,
    /// The most bytes of a request's body.
    pub body_bytes_max: usize,
}

/// True if what serves is of these bytes and described so.
fn is_what_serves(
    serving: Option<&Weak<Version>>,
    identity: Option<&String>,
    description: &ModelDescription,
) -> bool {
    serving.and_then(Weak::upgrade).is_some_and(|serving| {
        let parts = serving.parts();
        identity.is_some()
            && parts.identity.as_ref() == identity
            && *parts.description == *description
    })
}

/// Held while a version is loaded into this process and warmed: proofs overlap, loads do not.
static IN_PROCESS: Mutex<()> = Mutex::new(());

/// Which kind of failure kept a version from being served; stable, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// Its files cannot be read.
    Source,
    /// Its file is no model.
    Malformed,
    /// It holds more than a model may.
    Limits,
    /// It needs an operator that no engine brings.
    UnsupportedOperator,
    /// Its external data are not where or what they should be.
    ExternalData,
    /// It may divide integers in a way that ends the process.
    Division,
    /// It has an operator that may end the process.
    DangerousOperator,
    /// The engine refuses it, or it has inputs or outputs that cannot be served.
    EngineRefused,
    /// No engine is there for it.
    NoEngine,
    /// Its description says something else.
    Description,
    /// It does not reproduce its golden outputs, or they cannot be used.
    Golden,
    /// It gives numbers that are none, where the version that serves gives finite ones.
    NotFinite,
    /// It needs more memory than it may have.
    Memory,
    /// It takes longer than it may.
    Timeout,
    /// It ended the process that proved it.
    Crashed,
    /// The process that proves cannot be started.
    Start,
    /// It ended this server twice within an hour.
    Blamed,
    /// A mistake of ours.
    Internal,
}

impl Code {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Malformed => "malformed",
            Self::Limits => "limits",
            Self::UnsupportedOperator => "unsupported_operator",
            Self::ExternalData => "external_data",
            Self::Division => "division",
            Self::DangerousOperator => "dangerous_operator",
            Self::EngineRefused => "engine_refused",
            Self::NoEngine => "no_engine",
            Self::Description => "description",
            Self::Golden => "golden",
            Self::NotFinite => "not_finite",
            Self::Memory => "memory",
            Self::Timeout => "timeout",
            Self::Crashed => "crashed",
            Self::Start => "start",
            Self::Blamed => "blamed",
            Self::Internal => "internal",
        }
    }
}

/// Why a version cannot answer.
#[derive(Debug, thiserror::Error)]
pub enum LoadFailure {
    /// Its files cannot be read.
    #[error("{0}")]
    Source(String, #[source] SourceError),
    /// Its file is not a model that may be given to an engine.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    /// It needs operators that are not there.
    #[error("{0}")]
    Operators(String),
    /// External data are shorter than the model says.
    #[error(
        "tensor `{tensor}` needs {needed} bytes of `{location}`, which has {actual}; export the model again"
    )]
    ExternalData {
        /// The tensor.
        tensor: String,
        /// The file, as the model names it.
        location: String,
        /// Bytes that the tensor needs from the file's start.
        needed: u64,
        /// Bytes that the file has.
        actual: u64,
    },
    /// External data cannot be mapped.
    #[error(
        "its external data cannot be mapped into memory: {0}; make room, or raise proof.memory_max"
    )]
    Map(std::io::Error),
    /// The engine refuses it.
    #[error(transparent)]
    Engine(#[from] LoadError),
    /// It is not what its description says.
    #[error("the description and the model disagree: {0}")]
    Description(String),
    /// It should come from the content store, and there is none.
    #[error("it is not in the repository, and there is no content store; set state.path")]
    NoStore,
    /// The version that serves under this number has the same bytes and description: the files were only touched.
    #[error("it is what serves already")]
    Unchanged,
    /// Nothing can load it.
    #[error("the system gives no thread: {0}")]
    NoThread(std::io::Error),
    /// Loading it ran into a mistake of ours.
    #[error("loading it ended in a panic, which is a bug of tidegate; the log has it")]
    Panicked,
    /// It does not give the outputs that it should.
    #[error(transparent)]
    Golden(#[from] GoldenError),
    /// It gives numbers that are none, where the version that serves gives finite ones.
    #[error(
        "output `{output}` is {number} at element {element} on {inputs}, where version {before}, which serves, gives \
         finite numbers; mend the model, or let golden.json say that this is right"
    )]
    NotFinite {
        /// The output.
        output: String,
        /// What it is instead.
        number: f64,
        /// Where.
        element: usize,
        /// The inputs.
        inputs: String,
        /// The version that serves.
        before: VersionId,
    },
    /// There is not enough memory for it.
    #[error(
        "it needs more memory than there is for it ({0}); raise proof.memory_max, or make it smaller"
    )]
    Memory(String),
    /// The process that proves it was asked in a way that it does not understand.
    #[error("the request to prove it is wrong: {0}")]
    Request(String),
    /// The process that proves it could not load the engine's library.
    #[error("the engine's library cannot be loaded by the process that proves versions: {0}")]
    Library(String),
    /// It was not proven.
    #[error(transparent)]
    Proof(#[from] ProofFailure),
    /// It is held back for what it did to this server.
    #[error(
        "it ended the server twice within an hour ({signal} while a request or a load ran it); mend it and publish it again, \
         or let it in with `tidegate models load {model}`"
    )]
    Blamed {
        /// The model.
        model: ModelName,
        /// The last signal.
        signal: String,
    },
}

impl LoadFailure {
    /// Which kind of failure it is.
    pub fn code(&self) -> Code {
        match self {
            Self::Source(..) => Code::Source,
            Self::Onnx(error) => of_onnx(error),
            Self::Operators(_) => Code::UnsupportedOperator,
            Self::ExternalData { .. } => Code::ExternalData,
            Self::Engine(LoadError::NoEngine(_)) | Self::Library(_) => Code::NoEngine,
            Self::Engine(LoadError::Refused { reason, .. }) if engine::starved(reason) => {
                Code::Memory
            }
            Self::Engine(_) => Code::EngineRefused,
            Self::Description(_) => Code::Description,
            Self::Golden(GoldenError::Run { source, .. })
                if engine::starved(&source.to_string()) =>
            {
                Code::Memory
            }
            Self::Golden(_) => Code::Golden,
            Self::NotFinite { .. } => Code::NotFinite,
            Self::Memory(_) | Self::Map(_) => Code::Memory,
            Self::Panicked
            | Self::Request(_)
            | Self::NoStore
            | Self::NoThread(_)
            | Self::Unchanged => Code::Internal,
            Self::Proof(failure) => failure.code,
            Self::Blamed { .. } => Code::Blamed,
        }
    }
}

fn of_onnx(error: &OnnxError) -> Code {
    match error {
        OnnxError::Division { .. } => Code::Division,
        OnnxError::Killer { .. } => Code::DangerousOperator,
        OnnxError::Limit { .. } | OnnxError::Expansion { .. } => Code::Limits,
        OnnxError::Location { .. }
        | OnnxError::Range { .. }
        | OnnxError::ExternalText { .. }
        | OnnxError::DataLocation { .. } => Code::ExternalData,
        _ => Code::Malformed,
    }
}

impl From<MessageError> for LoadFailure {
    fn from(error: MessageError) -> Self {
        match error {
            MessageError::Memory(_) => Self::Memory(error.to_string()),
            _ => Self::Request(error.to_string()),
        }
    }
}

impl LoadFailure {
    /// Whether trying again may help although the folder looks the same.
    pub(super) fn may_pass(&self) -> bool {
        matches!(self, Self::Source(_, cause) if cause.retry_helps())
    }
}

impl From<SourceError> for LoadFailure {
    fn from(error: SourceError) -> Self {
        Self::Source(error.chain(), error)
    }
}

/// A version whose sessions are to be opened.
struct Opening<'a> {
    tag: &'a Tag,
    engine: &'a dyn Engine,
    file: &'a ModelFile,
    options: SessionOptions<'a>,
    /// True if a request's values choose how much memory a run takes.
    grows: bool,
    golden: Option<&'a Golden>,
    /// The version that it is to follow.
    before: Option<&'a Weak<Version>>,
}

/// The sessions of a version.
struct Opened {
    sessions: Vec<Box<dyn Session>>,
    signature: Signature,
    /// Time that the loads took.
    load: Duration,
    warmed: trial::Warmed,
}

impl Loader {
    /// Threads within one run of a model.
    pub(super) fn intra_op_threads(&self, description: &ModelDescription) -> usize {
        let declared = description.intra_op_threads.and_then(|n| usize::try_from(n).ok());
        declared.unwrap_or(self.intra_op_threads)
    }

    /// Lets go of what the last load needed and prepares for the next one, when nobody waits.
    pub(super) fn make_ready(&self) {
        engine::hand_back_memory();
        if let Some(prover) = self.prover.as_ref().filter(|_| self.spare_prover) {
            prover.make_ready();
        }
    }

    /// Lets go of what is only needed while versions are loaded at a time.
    pub(super) fn rest(&self) {
        if let Some(prover) = &self.prover {
            prover.rest();
        }
    }

    /// Reads, proves, loads and warms a version. May take long; not for a thread that answers requests.
    ///
    /// Where `before`, the version that it is to follow, still serves, it must give numbers where that does. `serving`
    /// serves under its number: of the same bytes nothing is loaded again. A panic on the way costs this version only.
    pub fn load(
        &self,
        model: &ModelName,
        id: VersionId,
        origin: &Origin,
        before: Option<&Weak<Version>>,
        serving: Option<&Weak<Version>>,
    ) -> Result<Version, LoadFailure> {
        let load = AssertUnwindSafe(|| self.try_load(model, id, origin, (before, serving)));
        catch_unwind(load).unwrap_or(Err(LoadFailure::Panicked))
    }

    fn try_load(
        &self,
        model: &ModelName,
        id: VersionId,
        origin: &Origin,
        (before, serving): (Option<&Weak<Version>>, Option<&Weak<Version>>),
    ) -> Result<Version, LoadFailure> {
        let Fetched { artifact, checked, description, identity } = self.fetch(origin)?;
        let Checked { file, hazards, growth, quotients } = checked;
        if is_what_serves(serving, identity.as_ref(), &description) {
            return Err(LoadFailure::Unchanged);
        }
        let (digest, description) = (identity.as_deref().unwrap_or(&artifact.sha256), &description);
        let anew = self.is_proven_anew(model, id, digest)?;
        let tag = Tag::new(model.as_str(), id.number(), digest);
        let golden = artifact.golden.as_deref().map(Golden::parse).transpose()?;
        let engine = self.engine(model, description)?;
        let unlike = self.misread(engine, &file, golden.as_ref())?;
        let intra_op_threads = self.intra_op_threads(description);
        let case = Case {
            file: &file,
            golden: artifact.golden.as_deref(),
            description,
            engine: Engines::choice_of(engine),
            intra_op_threads,
            warmup_runs: self.warmup_runs,
            identity: identity.as_deref(),
            anew,
        };
        let proof = self.prove(&case, description)?;
        let opening = Opening {
            tag: &tag,
            engine,
            file: &file,
            options: SessionOptions { intra_op_threads, arena: None },
            grows: growth.is_some(),
            golden: golden.as_ref(),
            before,
        };
        let Opened { sessions, signature, load, warmed } = self.open(&opening, description)?;
        let guards = proof.as_ref().map(|proof| &proof.guards);
        let guards = guarded(guards, &hazards).with_quotients(quotients);
        let mut notes = notes(description, &guards, &signature, &hazards);
        let large = unreachable(&signature, self.body_bytes_max);
        notes.extend(large.into_iter().chain(unlike).chain(warmed.notes));
        let class_names = class_names(description, &signature);
        let answers = self.answers(model, &signature, &class_names, &mut notes);
        let recorder = self.monitor.version(model, id);
        let mut parts = VersionParts {
            class_names,
            answers,
            growth: growth.unwrap_or_default().fitted(&signature, self.run_memory_max),
            guards,
            description: Arc::clone(description),
            engine: engine.name(),
            digest: artifact.sha256.clone(),
            identity,
            size_bytes: file.size_bytes(),
            shared_bytes: file.size_bytes() - file.bytes.len() as u64,
            load,
            warmup: warmed.total,
            run: warmed.fastest,
            notes,
            ..VersionParts::new(model.clone(), id, signature, recorder)
        };
        self.watch(&mut parts, artifact.profile.as_deref());
        // Not before: a version that ends this process has to be proven to the next one.
        keep(proof);
        Ok(Version::new(parts, sessions))
    }

    /// Reads a version's outputs by the operator's rule; one that does not fit becomes a note.
    fn answers(
        &self,
        model: &ModelName,
        signature: &Signature,
        class_names: &[Option<Vec<String>>],
        notes: &mut Vec<String>,
    ) -> AnswerReading {
        let rule = self.answers.get(model).cloned().unwrap_or_default();
        rule.resolve(signature, class_names).unwrap_or_else(|(problem, answers)| {
            notes.push(problem);
            answers
        })
    }

    /// Has the drift of a version watched and its predictions sampled, as the operator wants.
    fn watch(&self, parts: &mut VersionParts, profile: Option<&[u8]>) {
        self.watch_drift(parts, profile);
        self.sample(parts);
    }

    /// Has the drift of a version watched and its contract kept; a profile that cannot be used becomes a note.
    fn watch_drift(&self, parts: &mut VersionParts, profile: Option<&[u8]>) {
        let Some(drift) = &self.drift else { return };
        let names = parts.description.feature_names();
        let Given { recorder, terms, splitter, notes } = drift.watch(&Newcomer {
            model: &parts.model,
            version: parts.id,
            signature: &parts.signature,
            is_batched: parts.is_batched(),
            names: &names,
            identity: parts.identity.as_deref().unwrap_or(&parts.digest),
            profile: profile.map(|bytes| Profile::read(bytes).map_err(|wrong| wrong.to_string())),
        });
        (parts.drift, parts.terms, parts.splitter) = (recorder, terms, splitter);
        parts.notes.extend(notes);
    }

    /// Has predictions of a version sampled, where the operator wants them.
    fn sample(&self, parts: &mut VersionParts) {
        let Some(samples) = &self.samples else { return };
        let of = (&parts.model, parts.id, &*parts.digest);
        let tensors = (&parts.signature, parts.is_batched());
        let names = parts.description.feature_names();
        parts.sampling = samples.of(of, tensors, names, parts.drift.as_deref());
    }

    /// The engine of a model: the operator's choice, else its description's.
    fn engine(
        &self,
        model: &ModelName,
        description: &ModelDescription,
    ) -> Result<&dyn Engine, LoadError> {
        let chosen = self.chosen.get(model).copied();
        self.engines.choose(chosen.unwrap_or(description.engine))
    }

    /// Refuses what tract is known to compute wrongly, unless golden outputs vouch for it; gives notes about the rest.
    fn misread(
        &self,
        engine: &dyn Engine,
        file: &ModelFile,
        golden: Option<&Golden>,
    ) -> Result<Vec<String>, LoadFailure> {
        if Engines::choice_of(engine) != EngineChoice::Tract {
            return Ok(Vec::new());
        }
        let found = onnx::misread(&file.bytes, &onnx::Limits::default())?;
        let (wrong, failing): (Vec<_>, Vec<_>) = found.into_iter().partition(|one| one.is_wrong);
        let mut outputs = file.summary.outputs.iter();
        let is_shown =
            golden.is_some_and(|golden| outputs.all(|output| golden.vouches_for(&output.name)));
        if let Some(Misread { operator, output, reason, .. }) =
            wrong.into_iter().next().filter(|_| !is_shown)
        {
            let missing = self.engines.notice().map(str::to_owned);
            let advice = missing
                .unwrap_or_else(|| "use onnxruntime (`engine = \"onnxruntime\"`)".to_owned());
            return Err(LoadError::Misread { operator, output, reason, advice }.into());
        }
        let note = |one: Misread| format!("tract runs `{}`: {}", one.operator, one.reason);
        Ok(failing.into_iter().map(note).collect())
    }

    /// True if a version ended this server before and has to be proven again; an error if it did so too often.
    fn is_proven_anew(
        &self,
        model: &ModelName,
        id: VersionId,
        digest: &str,
    ) -> Result<bool, LoadFailure> {
        match self.blame.as_ref().map(|blame| blame.suspicion(model, id, digest)) {
            Some(Suspicion::Held(signal)) => {
                Err(LoadFailure::Blamed { model: model.clone(), signal })
            }
            suspicion => Ok(suspicion == Some(Suspicion::Once)),
        }
    }

    /// Opens the sessions of a version, and warms the first up before there are others.
    fn open(
        &self,
        opening: &Opening<'_>,
        description: &ModelDescription,
    ) -> Result<Opened, LoadFailure> {
        let Opening { tag, engine, file, options, grows, golden, before } = *opening;
        let clock = self.monitor.clock();
        // Memory that a load takes beside the version itself is taken once, not once for each load.
        let _alone = IN_PROCESS.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = clock.now();
        let arena = grows.then(|| {
            tag.during(|| engine.arena(file, options, self.sessions, self.run_memory_max))
        });
        let arena = arena.transpose()?.flatten();
        let options = SessionOptions { arena: arena.as_ref(), ..options };
        let mut first = tag.during(|| engine.load(file, options))?;
        let signature = first.signature().clone().described(description);
        let signature = signature.map_err(LoadFailure::Description)?;
        let mut load = clock.now() - begin;
        let samples = serving_samples(&signature, golden, description, before.is_some());
        let runs = self.warmup_runs;
        let (summary, seen) = (&*file.summary, &signature);
        let trial = Trial { engine, summary, signature: seen, golden, samples: &samples };
        let mut warmed = tag.during(|| trial.run(&mut *first, runs, &**clock))?;
        if let Some(before) = before.and_then(Weak::upgrade).filter(|_| golden.is_none()) {
            contradicted(&before, &signature, &samples, &warmed.not_numbers)?;
        }
        warmed.notes.extend(unfit_requests(description, &samples));
        let begin = clock.now();
        let mut sessions = vec![first];
        // Fewer than one per worker would make requests wait for each other: a repository's count is not followed.
        for _ in 1..self.sessions {
            sessions.push(tag.during(|| engine.load(file, options))?);
        }
        load += clock.now() - begin;
        self.monitor.upkeep().took(Phase::Sessions, load);
        self.monitor.upkeep().took(Phase::Warmup, warmed.total);
        Ok(Opened { sessions, signature, load, warmed })
    }

    /// Proves a version in a process of its own, where versions are proven.
    fn prove(
        &self,
        case: &Case<'_>,
        description: &ModelDescription,
    ) -> Result<Option<Proof>, LoadFailure> {
        let Some(prover) = &self.prover else { return Ok(None) };
        let (clock, upkeep) = (self.monitor.clock(), self.monitor.upkeep());
        let begin = clock.now();
        let proof = prover.prove(case);
        upkeep.proven(match &proof {
            Ok(proof) if proof.remembered => "remembered",
            Ok(_) => "proven",
            Err(_) => "failed",
        });
        let proof = proof?;
        if !proof.remembered {
            upkeep.took(Phase::Proof, clock.now() - begin);
        }
        tracing::debug!(load = ?proof.load, memory = proof.memory_peak, "proven");
        // A description that does not fit is told in either case; what harms is told only here.
        let signature = proof.signature.clone().described(description);
        signature.map_err(LoadFailure::Description)?;
        Ok(Some(proof))
    }

    /// The bytes of a version, kept in the content store where there is one.
    fn fetch(&self, origin: &Origin) -> Result<Fetched, LoadFailure> {
        let clock = self.monitor.clock();
        let begin = clock.now();
        let fetched = self.fetch_from(origin)?;
        self.monitor.upkeep().took(Phase::Fetch, clock.now() - begin);
        Ok(fetched)
    }

    fn fetch_from(&self, origin: &Origin) -> Result<Fetched, LoadFailure> {
        let (listed, description) = match (origin, &self.store) {
            (Origin::Repository(listed, description), _) => (listed, Arc::clone(description)),
            (Origin::Store(digest), Some(store)) => {
                let stored = store.version(digest, self.artifact_bytes_max)?;
                let (artifact, description) = (stored.artifact, Arc::new(stored.description));
                let (checked, identity) = (checked(&artifact)?, Some(digest.to_string()));
                return Ok(Fetched { artifact, checked, description, identity });
            }
            (Origin::Store(_), None) => return Err(LoadFailure::NoStore),
        };
        let read = |store: Option<&Store>| {
            let artifact = listed.fetch(store)?;
            let checked = checked(&artifact)?;
            let identity = store.map(|store| artifact.keep(store)).transpose()?;
            Ok((artifact, checked, identity.map(|digest| digest.to_string())))
        };
        let (artifact, checked, identity) = match read(self.store.as_ref()) {
            // A store that is full or broken must not keep a version from serving.
            Err(LoadFailure::Source(reason, error)) if error.is_of_the_store() => {
                tracing::error!("a version is loaded without being kept: {reason}");
                read(None)?
            }
            read => read?,
        };
        Ok(Fetched { artifact, checked, description, identity })
    }
}

/// A version's bytes, as one state of its folder.
struct Fetched {
    artifact: Artifact,
    checked: Checked,
    description: Arc<ModelDescription>,
    /// The digest of its manifest in the content store.
    identity: Option<String>,
}

/// The bytes for the engine, and what our own look at them found.
struct Checked {
    file: ModelFile,
    hazards: Vec<Hazard>,
    /// What grows by the values of a request; `None` if nothing does.
    growth: Option<Growth>,
    /// Divisions that requests must be kept from.
    quotients: Vec<Quotient>,
}

/// The bytes for the engine, after our own look at them; external data are resolved here, never by an engine.
fn checked(artifact: &Artifact) -> Result<Checked, LoadFailure> {
    let (summary, hazards) = trial::preflight(&artifact.model)?;
    let limits = onnx::Limits::default();
    let growth = onnx::growth(&artifact.model, &summary, &limits)?;
    // A function may have the operator's name.
    let may_divide =
        summary.functions > 0 || summary.operators.contains(&(String::new(), "Div".to_owned()));
    let quotients =
        if may_divide { onnx::quotients(&artifact.model, &limits)? } else { Vec::new() };
    let mut files: BTreeMap<String, ExternalFile> = BTreeMap::new();
    for tensor in &summary.external_data {
        if !files.contains_key(&tensor.location) {
            let file = external(&tensor.location, artifact.read_beside(&tensor.location)?)?;
            files.insert(tensor.location.clone(), file);
        }
        trial::external_fits(tensor, files[&tensor.location].bytes.len() as u64)?;
    }
    // All of it from one state of the folder.
    artifact.confirm()?;
    let external = files.into_values().collect();
    let summary = Arc::new(summary);
    let bytes = artifact.model.clone();
    let file = ModelFile { bytes, external, summary, packed: Packed::default() };
    Ok(Checked { file, hazards, growth, quotients })
}

/// External data for the engine; what lies in a file is mapped.
fn external(location: &str, content: Content) -> Result<ExternalFile, LoadFailure> {
    let location = location.to_owned();
    match content {
        Content::Memory(bytes) => Ok(ExternalFile { location, bytes, file: None }),
        Content::File(file, length) => {
            ExternalFile::map(location, file, length).map_err(LoadFailure::Map)
        }
    }
}

/// Combines the guards that the proof found with one against all empty inputs if an operator ends the process on them.
fn guarded(proven: Option<&Guards>, hazards: &[Hazard]) -> Guards {
    let found = proven.cloned().unwrap_or(Guards::NONE);
    let reasons: Vec<_> = (hazards.iter())
        .filter(|hazard| proven.is_none() || !hazard.settled_by_proof)
        .map(|hazard| format!("in `{}`, {}", hazard.operator, hazard.reason))
        .collect();
    if reasons.is_empty() { found } else { found.never_empty(reasons.join("; ")) }
}

/// Words for the operator about a version before its first run.
fn notes(
    description: &ModelDescription,
    guards: &Guards,
    signature: &Signature,
    hazards: &[Hazard],
) -> Vec<String> {
    let mut notes = description.notes.clone();
    notes.extend(signature.without_default(description));
    notes.extend(guards.notes(signature));
    notes.extend(hazards.iter().filter(|hazard| hazard.by_values).map(by_values));
    notes
}

/// The inputs that a version is run with in this process: real ones, or ones and small values.
fn serving_samples(
    signature: &Signature,
    golden: Option<&Golden>,
    description: &ModelDescription,
    is_compared: bool,
) -> Vec<Sample> {
    let mut all = samples::samples(signature, golden, &Described::of(description));
    let has_real = all.first().is_some_and(|sample| !sample.kind.is_made_up());
    all.retain(|sample| match sample.kind {
        Kind::Golden | Kind::Described => true,
        Kind::Ones | Kind::Small => !has_real || is_compared,
        Kind::Zeros => false,
    });
    all
}

/// Remembers what was proven.
fn keep(proof: Option<Proof>) {
    if let Some(verdict) = proof.and_then(|proof| proof.verdict) {
        verdict.keep();
    }
}

/// Refuses a version that gives no numbers where the one that serves gives only finite ones.
fn contradicted(
    before: &Version,
    signature: &Signature,
    samples: &[Sample],
    found: &[NotNumber],
) -> Result<(), LoadFailure> {
    for NotNumber { sample, output, element, number } in found {
        let (sample, spec) = (&samples[*sample], &signature.outputs[*output]);
        let Ok(own) = before.signature().output(&spec.name) else { continue };
        // Its own proof has run what is made up for the same inputs, and nothing else.
        if !sample.kind.is_made_up() || before.signature().inputs != signature.inputs {
            continue;
        }
        let mut inputs = sample.inputs.clone();
        signature.restore(&mut inputs);
        let evaluated = catch_unwind(AssertUnwindSafe(|| before.evaluate(inputs)));
        let Ok(Ok(outputs)) = evaluated else { continue };
        if trial::not_finite(&outputs[own]).is_none() {
            return Err(LoadFailure::NotFinite {
                output: spec.name.clone(),
                number: *number,
                element: *element,
                inputs: sample.kind.to_string(),
                before: before.id(),
            });
        }
    }
    Ok(())
}

/// A note about a version whose smallest request is larger than a body may be.
fn unreachable(signature: &Signature, body_bytes_max: usize) -> Option<String> {
    let bytes = |spec: &TensorSpec| {
        let size = spec.datatype.size().unwrap_or(0) as u64;
        let dims = spec.dims.as_deref().unwrap_or_default();
        dims.iter().fold(size, |bytes, dim| bytes.saturating_mul(u64::try_from(*dim).unwrap_or(1)))
    };
    let needed = signature.inputs.iter().map(bytes).fold(0, u64::saturating_add);
    (needed > body_bytes_max as u64).then(|| {
        format!(
            "a request has {needed} bytes of inputs at least, more than the {body_bytes_max} that a body may have: raise \
             limits.body"
        )
    })
}

/// A note about the requests of `model_warmup` that are not run.
fn unfit_requests(description: &ModelDescription, samples: &[Sample]) -> Option<String> {
    let described = description.warmup.len();
    let run = samples.iter().filter(|sample| sample.kind == Kind::Described).count();
    (run < described).then(|| {
        format!(
            "{run} of {described} requests of model_warmup are run: the others do not fit the model, or their files cannot \
             be read from the folder `warmup`"
        )
    })
}

/// A note about an operator that no guard of the inputs covers.
fn by_values(hazard: &Hazard) -> String {
    format!(
        "the size of what `{}` is given follows from a request's values: where it becomes 0, {}; serve this version only \
         to clients that you trust",
        hazard.operator, hazard.reason
    )
}

fn class_names(description: &ModelDescription, signature: &Signature) -> Vec<Option<Vec<String>>> {
    signature.outputs.iter().map(|spec| description.class_names.get(&spec.name).cloned()).collect()
}
