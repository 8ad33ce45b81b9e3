//! What the control plane did and how it stands: loads, swaps, versions let go, the repository, what is written down.
//!
//! Written by the threads that load, publish and free, read by whoever scrapes; no thread that answers requests
//! comes here, so one lock does. Always true:
//! - Series are bounded: by models that were registered, by outcomes and phases that stand in the code.
//! - What is wrong now is said once more for people, in [`Upkeep::notes`].
//!
//! Not here: counts of requests ([`super::Monitor`]), which versions there are (`serve`).

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::model::ModelName;

/// The control plane's recorder.
#[derive(Debug, Default)]
pub struct Upkeep {
    ledger: Mutex<Ledger>,
    /// Counts log lines that were dropped.
    dropped_lines: OnceLock<Arc<AtomicU64>>,
    /// Counts sampled requests whose spans were dropped.
    dropped_traces: OnceLock<Arc<AtomicU64>>,
    /// Counts lines of the access log that were dropped.
    dropped_access_lines: OnceLock<Arc<AtomicU64>>,
}

/// A part of loading a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Reading and keeping its files.
    Fetch,
    /// The process that proves it.
    Proof,
    /// Making its sessions.
    Sessions,
    /// Its first runs.
    Warmup,
}

/// What [`Upkeep`] holds, as of one look.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    /// By model.
    pub(super) models: BTreeMap<ModelName, ModelUpkeep>,
    /// How long each phase took, in the order of [`Phase::ALL`].
    pub(super) phases: [Durations; Phase::ALL.len()],
    /// Proofs by what came of them.
    pub(super) proofs: BTreeMap<&'static str, u64>,
    /// Tables published.
    pub(super) generation: u64,
    /// Versions that left the table.
    pub(super) retired: Freed,
    /// Of these, those whose memory was given back.
    pub(super) freed: Freed,
    pub(super) repository: Standing,
    /// What the repository's last listing left out.
    pub(super) left_out: u64,
    /// Items of that which stand in no table, with the reason.
    left_out_why: Vec<String>,
    /// The mirror, where there is one.
    pub(super) mirror: Option<Standing>,
    /// Files of predictions on their way to an object store, where there is one.
    pub(super) uploads: Option<Uploads>,
    pub(super) memory: Option<Memory>,
    /// Collections of the content store that went well, and that did not.
    pub(super) collections: (u64, u64),
    pub(super) collected_bytes: u64,
    /// Threads of the control plane that ended, and must not.
    broken: Vec<String>,
}

/// What happened to one model.
#[derive(Debug, Clone, Default)]
pub(super) struct ModelUpkeep {
    /// Loads by what came of them.
    pub(super) loads: BTreeMap<&'static str, u64>,
    pub(super) swaps: u64,
}

/// Versions, and the bytes of their files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Freed {
    pub(super) versions: u64,
    pub(super) bytes: u64,
}

/// How something stands that is looked at again and again.
#[derive(Debug, Clone, Default)]
pub(super) struct Standing {
    /// What is wrong, by the last look.
    pub(super) problem: Option<String>,
    /// The last look that went well, since 1970.
    pub(super) well: Option<Duration>,
}

/// Files of predictions on their way to an object store.
#[derive(Debug, Clone, Default)]
pub struct Uploads {
    /// Files that wait, by the last look, and those uploaded since taken off.
    pub files: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// Files that were uploaded.
    pub uploaded: u64,
    /// Bytes of these.
    pub uploaded_bytes: u64,
    /// Tries that failed.
    pub failed: u64,
    /// Files that were removed before they were uploaded, as all together had too many bytes.
    pub lost: u64,
    /// The fault by the last look, if there was one.
    pub problem: Option<String>,
}

/// How what is decided is written down.
#[derive(Debug, Clone)]
pub(super) struct Memory {
    pub(super) durable: bool,
    pub(super) failures: u64,
    problem: Option<String>,
}

/// Upper edges of the histograms of durations, in seconds.
pub(super) const EDGES: [f64; 15] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];

/// Durations below each of [`EDGES`], and all of them.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Durations {
    pub(super) below: [u64; EDGES.len()],
    pub(super) count: u64,
    pub(super) sum: Duration,
}

impl Phase {
    /// All, in the order in which they pass.
    pub const ALL: [Self; 4] = [Self::Fetch, Self::Proof, Self::Sessions, Self::Warmup];

    /// Its label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fetch => "fetch",
            Self::Proof => "proof",
            Self::Sessions => "sessions",
            Self::Warmup => "warmup",
        }
    }
}

impl Upkeep {
    /// A load ended: `outcome` is `ok` or why it was refused, in one of few words.
    pub fn loaded(&self, model: &ModelName, outcome: &'static str) {
        let mut ledger = self.ledger();
        *ledger.models.entry(model.clone()).or_default().loads.entry(outcome).or_default() += 1;
    }

    /// Another version answers for a model in the place of the one before.
    pub fn swapped(&self, model: &ModelName) {
        self.ledger().models.entry(model.clone()).or_default().swaps += 1;
    }

    /// A version was to be proven: what came of it, in one of few words.
    pub fn proven(&self, outcome: &'static str) {
        *self.ledger().proofs.entry(outcome).or_default() += 1;
    }

    /// A phase of a load is over.
    pub fn took(&self, phase: Phase, duration: Duration) {
        self.ledger().phases[phase as usize].record(duration);
    }

    /// A table was published.
    pub fn published(&self) {
        self.ledger().generation += 1;
    }

    /// A version of this size left the table, or never came into it.
    pub fn retired(&self, bytes: u64) {
        self.ledger().retired.add(bytes);
    }

    /// Its memory was given back.
    pub fn freed(&self, bytes: u64) {
        self.ledger().freed.add(bytes);
    }

    /// The repository was looked at: the problem as a whole, or how many of its files and folders cannot be used, and
    /// which of them stand in no table, with the reason.
    pub fn looked(&self, at: Duration, outcome: Result<(usize, Vec<String>), &str>) {
        let mut ledger = self.ledger();
        ledger.repository.looked(at, outcome.as_ref().err().copied());
        if let Ok((count, left_out)) = outcome {
            ledger.left_out = count as u64;
            ledger.left_out_why = told(left_out);
        }
    }

    /// The object store was compared with its mirror.
    pub fn mirrored(&self, at: Duration, problem: Option<&str>) {
        self.ledger().mirror.get_or_insert_default().looked(at, problem);
    }

    /// Changes the account of files that are uploaded, and opens it.
    pub fn uploads(&self, change: impl FnOnce(&mut Uploads)) {
        change(self.ledger().uploads.get_or_insert_default());
    }

    /// Whether decisions outlive the process, how many could not be written down, and why the last one could not.
    pub fn remembers(&self, durable: bool, failures: u64, problem: Option<&str>) {
        let problem = problem.map(str::to_owned);
        self.ledger().memory = Some(Memory { durable, failures, problem });
    }

    /// A collection of the content store ended: the bytes that it removed, or nothing where it failed.
    pub fn collected(&self, bytes: Option<u64>) {
        let mut ledger = self.ledger();
        match bytes {
            Some(bytes) => {
                ledger.collections.0 += 1;
                ledger.collected_bytes = ledger.collected_bytes.saturating_add(bytes);
            }
            None => ledger.collections.1 += 1,
        }
    }

    /// Something ended in a panic that the server cannot do without; says so in the log, too. The process is not alive
    /// any more for whoever asks, though predictions go on.
    pub fn broke(&self, what: &str) {
        let text =
            format!("{what} ended in a panic, a bug of tidegate; predictions go on, restart it");
        let mut ledger = self.ledger();
        if !ledger.broken.contains(&text) {
            ledger.broken.push(text.clone());
        }
        drop(ledger);
        // After it can be seen elsewhere: whoever reads the line looks there.
        tracing::error!("{text}");
    }

    /// Reasons to start the process anew; empty if it is alive.
    pub fn broken(&self) -> Vec<String> {
        self.ledger().broken.clone()
    }

    /// Says what counts the log lines that are dropped; the first to say so does.
    pub fn drops_lines(&self, counter: Arc<AtomicU64>) {
        // A second log would be a second process.
        let _ = self.dropped_lines.set(counter);
    }

    /// Log lines that were dropped so far.
    pub fn dropped_lines(&self) -> u64 {
        self.dropped_lines.get().map_or(0, |counter| counter.load(Relaxed))
    }

    /// Says what counts the sampled requests whose spans are dropped; the first to say so does.
    pub fn drops_traces(&self, counter: Arc<AtomicU64>) {
        // A second one would be a second process's.
        let _ = self.dropped_traces.set(counter);
    }

    /// Sampled requests whose spans were dropped so far; `None` where none are sent.
    pub fn dropped_traces(&self) -> Option<u64> {
        self.dropped_traces.get().map(|counter| counter.load(Relaxed))
    }

    /// Says what counts the lines of the access log that are dropped; the first to say so does.
    pub fn drops_access_lines(&self, counter: Arc<AtomicU64>) {
        // A second one would be a second process's.
        let _ = self.dropped_access_lines.set(counter);
    }

    /// Lines of the access log that were dropped so far; `None` where there is no such log.
    pub fn dropped_access_lines(&self) -> Option<u64> {
        self.dropped_access_lines.get().map(|counter| counter.load(Relaxed))
    }

    /// What is wrong now and stops nothing, for people.
    pub fn notes(&self) -> Vec<String> {
        let ledger = self.ledger();
        let mut notes = ledger.broken.clone();
        notes.extend(ledger.repository.problem.clone());
        notes.extend(ledger.left_out_why.iter().map(|why| format!("left out: {why}")));
        if let Some(problem) = ledger.mirror.as_ref().and_then(|mirror| mirror.problem.as_ref()) {
            notes.push(format!("the repository's mirror is behind its object store: {problem}"));
        }
        if let Some(uploads) = &ledger.uploads
            && let Some(problem) = &uploads.problem
        {
            let files = uploads.files;
            notes.push(format!("files of predictions are not uploaded, {files} wait: {problem}"));
        }
        if let Some(memory) = &ledger.memory {
            if !memory.durable {
                let text = "decisions of operators end with this process; make the folder of state.path writable";
                notes.push(text.to_owned());
            }
            if let Some(problem) = &memory.problem {
                notes.push(format!("the last decision could not be written down: {problem}"));
            }
        }
        notes
    }

    /// What was counted so far.
    pub fn read(&self) -> Ledger {
        self.ledger().clone()
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ledger {
    /// Versions that left the table while requests hold them, and the bytes of their files.
    pub fn draining(&self) -> (u64, u64) {
        let versions = self.retired.versions.saturating_sub(self.freed.versions);
        (versions, self.retired.bytes.saturating_sub(self.freed.bytes))
    }
}

impl Freed {
    fn add(&mut self, bytes: u64) {
        self.versions += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

impl Standing {
    fn looked(&mut self, at: Duration, problem: Option<&str>) {
        self.problem = problem.map(str::to_owned);
        if problem.is_none() {
            self.well = Some(at);
        }
    }
}

impl Durations {
    fn record(&mut self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        for (edge, below) in EDGES.iter().zip(&mut self.below) {
            *below += u64::from(seconds <= *edge);
        }
        self.count += 1;
        self.sum = self.sum.saturating_add(duration);
    }
}

/// Reasons that are told; of more, only how many.
const TOLD_MAX: usize = 20;

/// As many of these as people read.
pub fn told(mut all: Vec<String>) -> Vec<String> {
    if let Some(more) = all.len().checked_sub(TOLD_MAX).filter(|more| *more > 0) {
        all.truncate(TOLD_MAX);
        all.push(format!("and {more} more; `tidegate check` names all"));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_say_what_is_wrong_now_and_nothing_else() {
        let upkeep = Upkeep::default();
        assert_eq!(upkeep.notes(), Vec::<String>::new());
        upkeep.looked(Duration::from_secs(1), Ok((0, Vec::new())));
        upkeep.looked(Duration::from_secs(2), Err("the repository cannot be read"));
        upkeep.mirrored(Duration::from_secs(2), Some("connection refused"));
        upkeep.remembers(false, 1, Some("disk full"));
        let notes = upkeep.notes();
        assert_eq!(notes.len(), 4, "{notes:?}");
        assert!(notes[1].ends_with("object store: connection refused"), "{notes:?}");
        assert_eq!(upkeep.read().repository.well, Some(Duration::from_secs(1)));

        upkeep.looked(Duration::from_secs(3), Ok((2, vec!["a b: no model name".to_owned()])));
        upkeep.mirrored(Duration::from_secs(3), None);
        upkeep.remembers(true, 1, None);
        assert_eq!(upkeep.notes(), ["left out: a b: no model name"]);
        assert_eq!(upkeep.read().repository.well, Some(Duration::from_secs(3)));
        assert_eq!(upkeep.read().left_out, 2);
    }

    #[test]
    fn what_drains_is_what_was_retired_and_not_freed() {
        let upkeep = Upkeep::default();
        upkeep.retired(10);
        upkeep.retired(5);
        assert_eq!(upkeep.read().draining(), (2, 15));
        upkeep.freed(10);
        assert_eq!(upkeep.read().draining(), (1, 5));
    }
}
