//! Proof: a version is loaded and run in a sandboxed process of its own before the serving process touches it.
//!
//! Loading a model is the most dangerous thing that an engine does: a few bytes can hang it for ever, take all
//! memory or end the process, and nothing inside that process can prevent it. So the server starts its own program
//! again (`tidegate prove-version`), hands it the bytes, and believes the answer, not the model. Always true:
//! - One process proves one version, and is gone when [`Prover::prove`] returns: killed at the deadline if need be,
//!   and reaped.
//! - It is a copy of a template, a process that has loaded the engine and sees no model. Copies share nothing that one
//!   of them could change, so that no version has a say in the verdict on another.
//! - Nothing that it does harms the parent: not its end, not a closed pipe, not an endless answer.
//! - Where it cannot be started, nothing is proven and the version is refused.
//! - What ends it on ordinary values refuses the version. What ends it on a size from 0 to 3 becomes a guard of
//!   the version, and another process tries the other sizes.
//!
//! In reading order: this file asks and understands, `process` starts and ends, `child` is the other side, `trial` what
//! a version must show (the serving process asks the same of it again), `samples` the inputs of that, `probes` what it
//! is tried with beside, `sandbox` what the child gives up first, `message` how the two speak, `verdicts` what is
//! remembered of it.
//!
//! Not here: reading a version's files, loading it for service (`lifecycle::load`).

mod child;
mod hostility;
pub(super) mod message;
mod probes;
mod process;
pub(super) mod samples;
mod sandbox;
pub(super) mod trial;
mod verdicts;

use std::{
    num::NonZeroUsize,
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    process::ExitStatus,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

pub use child::prove_version;
pub use hostility::Attempt;
pub use sandbox::{Layer, Sandbox};
pub use verdicts::Verdicts;

use super::Code;
use crate::{
    engine::{self, ModelFile},
    model::{EngineChoice, Guards, ModelDescription, Signature},
    monitor::Clock,
};
use child::{Answer, Location, Outcome, Preparation, Probing, Request, Said};
use message::Bounds;
use probes::{Fate, PROBES_MAX, Probe};
use process::{NoCopy, Part, Parts, Process, Template};
use samples::Described;
use verdicts::Verdict;

/// What an answer may hold: names and notes.
const ANSWER: Bounds = Bounds { head_bytes: 64 << 20, blobs: 0, blob_bytes: 0 };

/// The most probes that may end their process; after that no more are run.
const FATAL_MAX: usize = 6;

/// The share of a proof's time that probes may take, and the least that one may.
const PROBES_SHARE: u32 = 20;
const PROBE_TIME_MIN: Duration = Duration::from_secs(1);

/// How much one proof may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProofLimits {
    /// Bytes of memory beyond the program itself.
    pub memory_max: u64,
    /// Time by the clock, from start to answer.
    pub time_max: Duration,
    /// Time on CPUs, all threads together.
    pub cpu_time_max: Duration,
}

impl Default for ProofLimits {
    fn default() -> Self {
        Self {
            memory_max: 8 << 30,
            time_max: Duration::from_mins(1),
            cpu_time_max: Duration::from_mins(2),
        }
    }
}

/// Whether and how versions are proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProofSettings {
    /// Whether a version is proven in a process of its own before it is loaded.
    pub enabled: bool,
    /// Whether what was proven is remembered beyond the process.
    pub remember: bool,
    /// Whether a process waits for the next version, its engine loaded.
    pub spare: bool,
    /// How many versions are proven at a time.
    pub at_once: NonZeroUsize,
    /// Number at the start; `None` for what the CPUs allow.
    pub at_start: Option<NonZeroUsize>,
    /// How much one proof may use.
    pub limits: ProofLimits,
}

impl ProofSettings {
    /// Number of versions that are proven at a time while nothing serves yet, with so many CPUs.
    #[must_use]
    pub fn at_start(&self, cpus: usize) -> NonZeroUsize {
        /// Each may take the memory that one may.
        const MAX: usize = 8;
        let by_cpus = NonZeroUsize::new((cpus + 2).min(MAX)).unwrap_or(NonZeroUsize::MIN);
        let one = self.at_once == NonZeroUsize::MIN;
        let chosen = self.at_start.unwrap_or(if one { self.at_once } else { by_cpus });
        chosen.max(self.at_once)
    }
}

impl Default for ProofSettings {
    fn default() -> Self {
        let at_once = NonZeroUsize::MIN.saturating_add(1);
        let limits = ProofLimits::default();
        Self { enabled: true, remember: true, spare: true, at_once, at_start: None, limits }
    }
}

/// Proves versions, each in a process of its own.
#[derive(Debug)]
pub struct Prover {
    program: PathBuf,
    limits: ProofLimits,
    onnxruntime: Option<PathBuf>,
    clock: Arc<dyn Clock>,
    /// Wait for the next proofs.
    templates: Mutex<Vec<Template>>,
    /// The log has said which layers of the sandbox are missing.
    warned: AtomicBool,
    /// What was proven before; without it each start proves.
    verdicts: Option<Verdicts>,
}

/// A version to prove.
#[derive(Debug)]
pub struct Case<'a> {
    /// The model with its external data.
    pub file: &'a ModelFile,
    /// `golden.json`, where there is one.
    pub golden: Option<&'a [u8]>,
    /// Its description, for the requests of `model_warmup`.
    pub description: &'a ModelDescription,
    /// The engine; already chosen, so that both processes take the same.
    pub engine: EngineChoice,
    /// Threads within one run.
    pub intra_op_threads: usize,
    /// Runs before it is believed.
    pub warmup_runs: u32,
    /// The digest of the manifest of its files, where it is known; without it nothing is remembered.
    pub identity: Option<&'a str>,
    /// True to forget an earlier proof and prove it again.
    pub anew: bool,
}

/// What a version showed.
#[derive(Debug, Clone)]
pub struct Proof {
    /// The engine that ran it.
    pub engine: String,
    /// Its inputs and outputs.
    pub signature: Signature,
    /// How long one session took to load.
    pub load: Duration,
    /// The fastest warm-up run.
    pub run: Option<Duration>,
    /// Most memory that was resident, in bytes, the program included.
    pub memory_peak: Option<u64>,
    /// What people should know.
    pub notes: Vec<String>,
    /// The inputs that requests must not bring.
    pub guards: Guards,
    /// What protected the machine meanwhile.
    pub sandbox: Sandbox,
    /// Whether it was shown to an earlier process.
    pub remembered: bool,
    /// To be kept once the version is loaded.
    pub(super) verdict: Option<Verdict>,
}

/// Why a version is not proven.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("proof failed ({}): {reason}", code.as_str())]
pub struct ProofFailure {
    /// Which kind of failure it is, for programs.
    pub code: Code,
    /// What happened and what to do about it, for people.
    pub reason: String,
}

impl ProofFailure {
    fn new(code: Code, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into() }
    }
}

impl Prover {
    /// A prover that starts `program`, which must be this very build of tidegate; see [`Prover::own_program`].
    pub fn new(
        program: PathBuf,
        limits: ProofLimits,
        onnxruntime: Option<PathBuf>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        // The child is no place to resolve a relative path: only the parent knows where that was meant.
        let onnxruntime = onnxruntime.map(|path| std::path::absolute(&path).unwrap_or(path));
        let (templates, warned) = (Mutex::default(), AtomicBool::new(false));
        Self { program, limits, onnxruntime, clock, templates, warned, verdicts: None }
    }

    /// Believes what was proven before, and remembers what is.
    pub fn remember(&mut self, verdicts: Verdicts) {
        self.verdicts = Some(verdicts);
    }

    /// The program that this process runs, also after its file was replaced by another version.
    pub fn own_program() -> std::io::Result<PathBuf> {
        if cfg!(target_os = "linux") {
            return Ok("/proc/self/exe".into());
        }
        std::env::current_exe()
    }

    /// Loads and runs a version in a process of its own, and tells what it showed.
    ///
    /// Blocks until that process has ended: at the latest when its time has passed since it had all that was asked.
    /// Where all of it was shown before, no process is started.
    pub fn prove(&self, case: &Case<'_>) -> Result<Proof, ProofFailure> {
        let described = Described::of(case.description);
        let locations = case.file.external.iter().map(|external| Location {
            location: external.location.clone(),
            mapped: external.file.as_ref().map(|_| external.bytes.len() as u64),
        });
        let mut request = Request {
            engine: Some(case.engine.as_str().to_owned()),
            intra_op_threads: case.intra_op_threads,
            warmup_runs: case.warmup_runs,
            locations: locations.collect(),
            golden: case.golden.is_some(),
            shapes: case.description.into(),
            described: described.requests,
            probing: Probing { time_max: self.probes_time_max(), ..Probing::default() },
            self_test: false,
        };
        let known = self.verdicts.as_ref().zip(case.identity).and_then(|(verdicts, identity)| {
            // Who asks makes no difference.
            let asked = serde_json::to_vec(&(self.preparation(0), &request)).ok()?;
            Some((verdicts, verdicts.key(identity, &asked)))
        });
        if let Some((verdicts, key)) = &known
            && let Some(before) = verdicts.take(key).filter(|_| !case.anew)
            && let Some(mut proof) = proven(&before)
        {
            proof.remembered = true;
            proof.verdict = Some(verdicts.of(*key, before));
            return Ok(proof);
        }
        let (mapped, sent): (Vec<_>, Vec<_>) =
            case.file.external.iter().partition(|external| external.file.is_some());
        let external = sent.iter().map(|external| &*external.bytes);
        let blobs = std::iter::once(&*case.file.bytes).chain(external).chain(case.golden);
        let blobs = blobs.chain(described.files.iter().map(|file| &**file));
        let parts = Parts {
            blobs: blobs.collect(),
            files: mapped.iter().filter_map(|external| external.file.as_deref()).collect(),
        };
        let mut heard = self.ask(&request, &parts, self.limits.time_max)?;
        let mut answer = heard.answer.take().ok_or_else(unreadable)?;
        if let Outcome::Proven(report) = &mut answer.outcome {
            request.probing.base = report.base;
            report.guards = self.guards(heard, request, &parts);
        }
        let verdict = known
            .and_then(|(verdicts, key)| Some(verdicts.of(key, serde_json::to_vec(&answer).ok()?)));
        let mut proof = proof_of(answer)?;
        self.warn_of(&proof.sandbox);
        proof.verdict = verdict;
        Ok(proof)
    }

    /// Starts a process that tries to break out of its sandbox, and tells what came of it.
    pub fn self_test(&self) -> Result<(Sandbox, Vec<Attempt>), ProofFailure> {
        let heard = self.ask(&Request::self_test(), &Parts::default(), self.limits.time_max)?;
        let answer = heard.answer.ok_or_else(unreadable)?;
        match (answer.sandbox, answer.outcome) {
            (Some(sandbox), Outcome::SelfTest(attempts)) => Ok((sandbox, attempts)),
            _ => Err(ProofFailure::new(Code::Internal, "the process did not test itself")),
        }
    }

    /// Starts a template ahead of the next proof, if none waits; one that was, waits again after each proof.
    ///
    /// Loading the engine's library is most of what a proof of a small model costs; so it is done once, and nobody
    /// waits for it. A template has the calling thread's priority, and ends with that thread at the latest.
    pub fn make_ready(&self) {
        let mut templates = self.waiting();
        if templates.is_empty() {
            // Without one the next proof starts its own, and says what is wrong.
            match self.start() {
                Ok(mut template) => {
                    template.is_kept = true;
                    templates.push(template);
                }
                Err(error) => tracing::debug!(%error, "no template"),
            }
        }
    }

    /// Ends all templates that wait but one: there is nothing left to prove.
    pub fn rest(&self) {
        self.waiting().truncate(1);
    }

    /// The templates that wait and live.
    fn waiting(&self) -> MutexGuard<'_, Vec<Template>> {
        let mut templates = self.templates.lock().unwrap_or_else(PoisonError::into_inner);
        templates.retain(Template::is_waiting);
        templates
    }

    fn start(&self) -> std::io::Result<Template> {
        let preparation = serde_json::to_vec(&self.preparation(std::process::id()))?;
        let preparation = message::encode(&preparation, &[]).map_err(std::io::Error::other)?;
        Template::start(&self.program, &preparation, Arc::clone(&self.clock))
    }

    /// A process for one version.
    fn process(&self) -> Result<Process, ProofFailure> {
        let kept = self.waiting().pop();
        // One that waited may have been ended by the system meanwhile, which says nothing about the version.
        if let Some(process) = kept.and_then(|kept| kept.copied(self.limits.time_max).ok()) {
            return Ok(process);
        }
        let template = self.start().map_err(NoCopy::Refused);
        template.and_then(|template| template.copied(self.limits.time_max)).map_err(|none| match none {
            NoCopy::Refused(error) => ProofFailure::new(
                Code::Start,
                format!(
                    "the proving process cannot be started: {error}; let this process start another one (program file, \
                     limits on processes and memory), or set proof.enabled = false and trust the repository"
                ),
            ),
            NoCopy::Ended(status, words) => crashed(status, &words),
            NoCopy::Trouble(trouble) => self.troubled(trouble),
        })
    }

    fn preparation(&self, parent: u32) -> Preparation {
        let onnxruntime = self.onnxruntime.clone();
        Preparation { parent, limits: self.limits, onnxruntime }
    }

    fn warn_of(&self, sandbox: &Sandbox) {
        if let Some(gaps) = sandbox.gaps()
            && !self.warned.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(
                gaps,
                "versions are proven with less than the whole sandbox; run on a kernel that has these layers, or serve \
                 only repositories that you trust"
            );
        }
    }

    /// Makes guards of the probes; those that follow a fatal one are run by another process.
    fn guards(&self, first: Heard, mut request: Request, parts: &Parts<'_>) -> Guards {
        let begin = first.begun.unwrap_or_else(|| self.clock.now());
        let mut tried = first.tried;
        let (half, deadline) = (begin + self.limits.time_max / 2, begin + self.limits.time_max);
        for _ in 1..FATAL_MAX {
            let Some(Tried { index, probe, fate: Fate::Fatal }) = tried.last() else { break };
            let now = self.clock.now();
            if now >= half {
                break;
            }
            request.probing.from = index + 1;
            request.probing.fatal.push(probe.clone());
            match self.ask(&request, parts, deadline.saturating_duration_since(now)) {
                Ok(heard) => tried.extend(heard.tried),
                // The version is proven; what is not known of it is kept from it.
                Err(_) => break,
            }
        }
        let tried: Vec<_> = tried.iter().map(|tried| (&tried.probe, tried.fate)).collect();
        probes::guards(&tried)
    }

    /// The time for all probes of one process together.
    fn probes_time_max(&self) -> Duration {
        self.limits.time_max / PROBES_SHARE
    }

    /// Has one process answer one request; `time_max` begins when the process has all of it.
    fn ask(
        &self,
        request: &Request,
        parts: &Parts<'_>,
        time_max: Duration,
    ) -> Result<Heard, ProofFailure> {
        let internal = |error: &dyn std::fmt::Display| {
            ProofFailure::new(Code::Internal, format!("the request cannot be written: {error}"))
        };
        let head = serde_json::to_vec(request).map_err(|error| internal(&error))?;
        let head = message::encode(&head, &parts.blobs).map_err(|error| internal(&error))?;
        let bytes = std::iter::once(&*head).chain(parts.blobs.iter().copied());
        let files = parts.files.chunks(message::FILES_AT_ONCE);
        let mut parts = bytes.map(Part::Bytes).chain(files.map(Part::Files)).collect();
        let mut process = self.process()?;
        let mut told =
            Heard { probe_max: self.probes_time_max().max(PROBE_TIME_MIN), ..Heard::default() };
        let ended = process.converse(&mut parts, time_max, &mut told);
        self.outcome(ended, told, process)
    }

    /// Ends the process, and says what it said or its end means.
    fn outcome(
        &self,
        ended: Result<(), Trouble>,
        heard: Heard,
        mut process: Process,
    ) -> Result<Heard, ProofFailure> {
        let (status, template) = process.end();
        if let Some(template) = template.filter(|template| template.is_kept) {
            self.waiting().push(template);
        }
        match ended {
            // What came after is told by the last probe.
            Ok(()) | Err(Trouble::Deadline) if heard.answer.is_some() => Ok(heard),
            Ok(()) => Err(crashed(status, &process.last_words())),
            Err(trouble) => Err(self.troubled(trouble)),
        }
    }

    /// Names the failure of a process that gives no answer.
    fn troubled(&self, trouble: Trouble) -> ProofFailure {
        let (code, text) = match trouble {
            Trouble::Deadline => (
                Code::Timeout,
                format!(
                    "it was not done after {:?} and was ended; find out what takes so long, or raise proof.time_max",
                    self.limits.time_max
                ),
            ),
            Trouble::Answer(text) => {
                (Code::Crashed, format!("the proving process gave no proper answer: {text}"))
            }
        };
        ProofFailure::new(code, text)
    }
}

fn unreadable() -> ProofFailure {
    ProofFailure::new(Code::Internal, "the proving process gave an answer without a meaning")
}

/// What an answer shows.
fn proof_of(answer: Answer) -> Result<Proof, ProofFailure> {
    let sandbox = answer.sandbox.ok_or_else(unreadable)?;
    match answer.outcome {
        Outcome::Proven(report) => Ok(Proof {
            signature: report.signature().ok_or_else(unreadable)?,
            engine: report.engine,
            load: report.load,
            run: report.run,
            memory_peak: answer.memory_peak,
            notes: report.notes,
            guards: report.guards,
            sandbox,
            remembered: false,
            verdict: None,
        }),
        Outcome::Refused { code, reason } => Err(ProofFailure { code, reason }),
        Outcome::SelfTest(_) => Err(unreadable()),
    }
}

/// What an answer that was kept shows; `None` where it is none.
fn proven(answer: &[u8]) -> Option<Proof> {
    proof_of(serde_json::from_slice(answer).ok()?).ok()
}

/// What an end without an answer means.
fn crashed(status: Option<ExitStatus>, last_words: &str) -> ProofFailure {
    let signal = status.and_then(|status| status.signal());
    let (code, what) = match signal {
        _ if engine::starved(last_words) => (
            Code::Memory,
            "it needs more memory than proof.memory_max; raise that, or make it smaller",
        ),
        Some(libc::SIGKILL) => (
            Code::Memory,
            "the system ended the proving process, which it does when memory is short",
        ),
        Some(libc::SIGXCPU) => (
            Code::Timeout,
            "it took more time on CPUs than proof.cpu_time_max; find out what takes so long, or raise that",
        ),
        _ => (
            Code::Crashed,
            "loading or running it ended the process; export the model again, or mend it",
        ),
    };
    let end = status.map_or_else(|| "unknown".to_owned(), |status| status.to_string());
    let words = match last_words.trim() {
        "" => String::new(),
        words => format!(", saying: {words}"),
    };
    ProofFailure::new(code, format!("{what} ({end}{words})"))
}

/// Why there is no answer although the process may live.
enum Trouble {
    Deadline,
    Answer(String),
}

/// The messages of a process so far.
#[derive(Debug, Default)]
struct Heard {
    answer: Option<Answer>,
    tried: Vec<Tried>,
    /// When the probe that runs has to be over, and how long each may take.
    probe_due: Option<Instant>,
    probe_max: Duration,
    /// Nothing more is expected.
    done: bool,
    /// The time at which the process had the whole request.
    begun: Option<Instant>,
}

/// A probe that a process has begun.
#[derive(Debug)]
struct Tried {
    index: usize,
    probe: Probe,
    fate: Fate,
}

impl Heard {
    fn hear(&mut self, said: Said, now: Instant) -> Result<(), Trouble> {
        // What is followed by a word was not fatal.
        if let (Some(last), true) = (self.tried.last_mut(), !matches!(said, Said::Well))
            && last.fate == Fate::Fatal
        {
            last.fate = Fate::Error;
        }
        self.probe_due = None;
        match (said, &self.answer) {
            (Said::Answer(answer), None) => {
                self.done = !matches!(answer.outcome, Outcome::Proven(_));
                self.answer = Some(*answer);
            }
            (Said::Trying(index, probe), Some(_)) if self.tried.len() < PROBES_MAX => {
                self.tried.push(Tried { index, probe, fate: Fate::Fatal });
                self.probe_due = Some(now + self.probe_max);
            }
            (Said::Well, Some(_)) => {
                self.tried.last_mut().into_iter().for_each(|last| last.fate = Fate::Well);
            }
            (Said::Done, Some(_)) => self.done = true,
            _ => return Err(Trouble::Answer("it says things out of their order".to_owned())),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_proves_on_all_cpus_unless_an_operator_wants_one_at_a_time() {
        let of = |at_once, at_start| ProofSettings {
            at_once: NonZeroUsize::new(at_once).unwrap(),
            at_start: NonZeroUsize::new(at_start),
            ..ProofSettings::default()
        };
        let cases = [(2, 0, 2, 4), (2, 0, 1, 3), (2, 0, 64, 8), (16, 0, 2, 16), (1, 0, 64, 1)];
        let chosen = [(1, 3, 64, 3), (4, 2, 64, 4)];
        for (at_once, at_start, cpus, expected) in cases.into_iter().chain(chosen) {
            assert_eq!(
                of(at_once, at_start).at_start(cpus).get(),
                expected,
                "{at_once} {at_start} {cpus}"
            );
        }
    }
}
