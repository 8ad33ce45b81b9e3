//! Proof: a version is loaded and run in a sandboxed process of its own before the serving process touches it.
//!
//! Loading a model is the most dangerous thing that an engine does: a few bytes can hang it for ever, take all
//! memory or end the process, and nothing inside that process can prevent it. So the server starts its own program
//! again (`tidegate prove-version`), hands it the bytes, and believes the answer, not the model. Always true:
//! - One process proves one version, and is gone when [`Prover::prove`] returns: killed at the deadline if need be,
//!   and reaped.
//! - The process that [`Prover::make_ready`] starts ahead of the next proof has seen no model.
//! - Nothing that it does harms the parent: not its end, not a closed pipe, not an endless answer.
//! - Where it cannot be started, nothing is proven and the version is refused.
//! - What ends it on ordinary values refuses the version. What ends it on a size from 0 to 3 becomes a guard of
//!   the version, and another process tries the other sizes.
//!
//! In reading order: this file is the parent's side, `child` the other one, `trial` what a version must show (the
//! serving process asks the same of it again), `samples` the inputs of that, `probes` what it is tried with beside,
//! `sandbox` what the child gives up first, `message` how the two speak, `verdicts` what is remembered of it.
//!
//! Not here: reading a version's files, loading it for service (`lifecycle::load`).

mod child;
mod hostility;
pub(super) mod message;
mod probes;
pub(super) mod samples;
mod sandbox;
pub(super) mod trial;
mod verdicts;

use std::{
    collections::VecDeque,
    fs::File,
    io::{ErrorKind, Read, Write},
    num::NonZeroUsize,
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::ExitStatusExt as _},
    },
    path::PathBuf,
    process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::OFlags,
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
use samples::Described;
use verdicts::Verdict;

/// The command under which the program proves a version.
const COMMAND: &str = "prove-version";

/// What an answer may hold: names and notes.
const ANSWER: Bounds = Bounds { head_bytes: 64 << 20, blobs: 0, blob_bytes: 0 };

/// The last words of a process that are shown to people.
const LAST_WORDS: usize = 4096;

/// How long a process may take to end after it closed its output.
const LAST_MOMENTS: Duration = Duration::from_millis(300);

/// The most probes that may end their process; after that no more are run.
const FATAL_MAX: usize = 6;

/// The share of a proof's time that probes may take, and the least that one may.
const PROBES_SHARE: u32 = 20;
const PROBE_TIME_MIN: Duration = Duration::from_secs(1);

/// The variables that the engine's library may need; no others are passed on.
const VARIABLES: [&str; 5] = ["ORT_DYLIB_PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "LOCPATH"];

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
    /// How much one proof may use.
    pub limits: ProofLimits,
}

impl Default for ProofSettings {
    fn default() -> Self {
        let at_once = NonZeroUsize::MIN.saturating_add(1);
        Self { enabled: true, remember: true, spare: true, at_once, limits: ProofLimits::default() }
    }
}

/// Proves versions, each in a process of its own.
#[derive(Debug)]
pub struct Prover {
    program: PathBuf,
    limits: ProofLimits,
    onnxruntime: Option<PathBuf>,
    clock: Arc<dyn Clock>,
    /// Started ahead, for the next proof.
    spare: Mutex<Option<Process>>,
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
        let (spare, warned) = (Mutex::new(None), AtomicBool::new(false));
        Self { program, limits, onnxruntime, clock, spare, warned, verdicts: None }
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

    /// Starts the process of the next proof ahead of time, if none waits.
    ///
    /// Loading the engine's library is most of what a proof of a small model costs; so nobody waits for it. It has the
    /// calling thread's priority, and ends with that thread at the latest.
    pub fn make_ready(&self) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if !spare.as_ref().is_some_and(Process::is_waiting) {
            // Without one the next proof starts its own, and says what is wrong.
            *spare = self.start().inspect_err(|error| tracing::debug!(%error, "no spare")).ok();
        }
    }

    /// The process that was made ready, if it lives.
    fn spare(&self) -> Option<Process> {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).take();
        spare.filter(Process::is_waiting)
    }

    fn start(&self) -> std::io::Result<Process> {
        let preparation = serde_json::to_vec(&self.preparation(std::process::id()))?;
        let preparation = message::encode(&preparation, &[]).map_err(std::io::Error::other)?;
        Process::start(&self.program, &preparation)
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
        let mut process = self.spare().map_or_else(|| self.start(), Ok).map_err(|error| {
            let reason = format!(
                "the proving process cannot be started: {error}; let this process start another one (program file, \
                 limits on processes and memory), or set proof.enabled = false and trust the repository"
            );
            ProofFailure::new(Code::Start, reason)
        })?;
        let mut told =
            Heard { probe_max: self.probes_time_max().max(PROBE_TIME_MIN), ..Heard::default() };
        let ended = process.converse(&mut parts, time_max, &mut told, &*self.clock);
        self.outcome(ended, told, process)
    }

    /// Ends the process, and says what it said or its end means.
    fn outcome(
        &self,
        ended: Result<(), Trouble>,
        heard: Heard,
        mut process: Process,
    ) -> Result<Heard, ProofFailure> {
        let status = process.end();
        match ended {
            // What came after is told by the last probe.
            Ok(()) | Err(Trouble::Deadline) if heard.answer.is_some() => Ok(heard),
            Ok(()) => Err(crashed(status, &process.last_words())),
            Err(Trouble::Deadline) => {
                let text = format!(
                    "it was not done after {:?} and was ended; find out what takes so long, or raise proof.time_max",
                    self.limits.time_max
                );
                Err(ProofFailure::new(Code::Timeout, text))
            }
            Err(Trouble::Answer(text)) => {
                let text = format!("the proving process gave no proper answer: {text}");
                Err(ProofFailure::new(Code::Crashed, text))
            }
        }
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

/// The parts that follow a request's head.
#[derive(Debug, Default)]
struct Parts<'a> {
    blobs: Vec<&'a [u8]>,
    /// Open files, which are handed over as they are.
    files: Vec<&'a File>,
}

/// The next part to write.
enum Part<'a> {
    Bytes(&'a [u8]),
    Files(&'a [&'a File]),
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

/// A running process with the parent's ends of its pipes; gone when dropped.
#[derive(Debug)]
struct Process {
    child: Child,
    /// A socket, so that open files can be handed over.
    input: Option<UnixStream>,
    output: Option<ChildStdout>,
    errors: Option<ChildStderr>,
    heard: Vec<u8>,
    words: VecDeque<u8>,
}

impl Process {
    fn start(program: &PathBuf, preparation: &[u8]) -> std::io::Result<Self> {
        let kept = VARIABLES.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
        let (input, theirs) = UnixStream::pair()?;
        let mut child = Command::new(program)
            .arg(COMMAND)
            .env_clear()
            .envs(kept)
            .current_dir("/")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let (output, errors) = (child.stdout.take(), child.stderr.take());
        let (input, heard, words) = (Some(input), Vec::new(), VecDeque::new());
        let mut process = Self { child, input, output, errors, heard, words };
        if let Some(input) = &mut process.input {
            // A socket takes this much at once; where nobody reads, the end of the process says more.
            let _ = input.write_all(preparation);
        }
        process.never_wait()?;
        Ok(process)
    }

    /// Only this side's ends: those of the child are other open files.
    fn never_wait(&self) -> std::io::Result<()> {
        if let Some(input) = &self.input {
            input.set_nonblocking(true)?;
        }
        if let Some(output) = &self.output {
            rustix::fs::fcntl_setfl(output, OFlags::NONBLOCK)?;
        }
        if let Some(errors) = &self.errors {
            rustix::fs::fcntl_setfl(errors, OFlags::NONBLOCK)?;
        }
        Ok(())
    }

    /// Whether it lives and has said nothing, so that it can be asked.
    fn is_waiting(&self) -> bool {
        let Some(output) = &self.output else { return false };
        // The end of a process closes its pipes; one that lives and has said nothing has nothing to be read.
        matches!(poll(&mut [PollFd::new(output, PollFlags::IN)], Some(&Timespec::default())), Ok(0))
    }

    /// Writes the request and reads what it says, whichever is possible, until it is done or ends.
    fn converse(
        &mut self,
        parts: &mut VecDeque<Part<'_>>,
        time_max: Duration,
        heard: &mut Heard,
        clock: &dyn Clock,
    ) -> Result<(), Trouble> {
        let mut deadline = clock.now() + time_max;
        loop {
            let due = heard.probe_due.map_or(deadline, |due| due.min(deadline));
            let left = due.saturating_duration_since(clock.now());
            if left.is_zero() {
                return Err(Trouble::Deadline);
            }
            self.wait(left).map_err(|error| Trouble::Answer(error.to_string()))?;
            if self.write(parts) {
                // Its own work begins when it has all that it was asked.
                let now = clock.now();
                deadline = now + time_max;
                heard.begun = Some(now);
            }
            read(&mut self.errors, |bytes| {
                self.words.extend(bytes);
                let surplus = self.words.len().saturating_sub(LAST_WORDS);
                self.words.drain(..surplus);
            });
            let ended = read(&mut self.output, |bytes| self.heard.extend_from_slice(bytes));
            while let Some(said) = self.said()? {
                heard.hear(said, clock.now())?;
            }
            if heard.done {
                return Ok(());
            }
            if ended {
                self.wait_for_end(left.min(LAST_MOMENTS));
                return Ok(());
            }
        }
    }

    /// Waits until something can be read or written, at most `left`.
    fn wait(&self, left: Duration) -> std::io::Result<()> {
        let mut all = Vec::with_capacity(3);
        all.extend(self.input.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::OUT)));
        all.extend(self.output.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        all.extend(self.errors.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        let left = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        match poll(&mut all, Some(&left)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes what the socket takes, and closes it at the end, or where nobody reads any more; true if anything went.
    fn write(&mut self, parts: &mut VecDeque<Part<'_>>) -> bool {
        let Some(input) = &mut self.input else { return false };
        let mut any = false;
        while let Some(part) = parts.front_mut() {
            let written = match part {
                Part::Bytes([]) => Ok(None),
                Part::Bytes(bytes) => input.write(bytes).map(|written| bytes.get(written..)),
                Part::Files(files) => message::send_files(input, files).map(|()| None),
            };
            match written {
                Ok(Some(rest)) => (*part, any) = (Part::Bytes(rest), true),
                Ok(None) => {
                    parts.pop_front();
                    any = true;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return any,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // It refuses before it has read everything, or it has ended: its answer or its end says more.
                Err(_) => break,
            }
        }
        self.input = None;
        any
    }

    /// The first whole message of what was read.
    fn said(&mut self) -> Result<Option<Said>, Trouble> {
        if self.heard.is_empty() {
            return Ok(None);
        }
        let told = |error: &dyn std::fmt::Display| Trouble::Answer(error.to_string());
        // Looked at without being copied; what follows is left for the next look.
        let bytes = Bytes::from(std::mem::take(&mut self.heard));
        let decoded = message::decode(&bytes, &ANSWER).map_err(|error| told(&error))?;
        let Some(message) = decoded else {
            self.heard = bytes.into();
            return Ok(None);
        };
        self.heard = bytes[message.encoded_bytes()..].to_vec();
        serde_json::from_slice(&message.head).map(Some).map_err(|error| told(&error))
    }

    /// A process that closed its output is about to end; how it does says more than that it was killed.
    #[cfg(target_os = "linux")]
    fn wait_for_end(&self, left: Duration) {
        use rustix::process::{Pid, PidfdFlags};
        let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) else { return };
        let Ok(process) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { return };
        let left = Timespec::try_from(left).unwrap_or_default();
        // An interruption only makes it less patient.
        let _ = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&left));
    }

    /// Elsewhere there is nothing to wait on.
    #[cfg(not(target_os = "linux"))]
    fn wait_for_end(&self, _left: Duration) {}

    /// Ends the process, whatever it does, and waits until it is gone.
    fn end(&mut self) -> Option<ExitStatus> {
        // It may have ended by itself: then this changes nothing, not even how it ended.
        let _ = self.child.kill();
        let status = self.child.wait().ok();
        // A pipe holds a little; a process that inherited it could hold it open for ever.
        for _ in 0..16 {
            read(&mut self.errors, |bytes| self.words.extend(bytes));
        }
        status
    }

    fn last_words(&self) -> String {
        let surplus = self.words.len().saturating_sub(LAST_WORDS);
        let words: Vec<u8> = self.words.iter().skip(surplus).copied().collect();
        let text = String::from_utf8_lossy(&words);
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // On every way out, also that of a panic.
        self.end();
    }
}

/// Reads what is there, once; true at the end of the pipe, which is then closed.
fn read<P: Read>(pipe: &mut Option<P>, mut each: impl FnMut(&[u8])) -> bool {
    let mut buffer = [0; 16 << 10];
    let Some(open) = pipe else { return true };
    loop {
        match open.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                each(&buffer[..count]);
                return false;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    *pipe = None;
    true
}
