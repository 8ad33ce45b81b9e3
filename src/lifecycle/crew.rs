//! The threads that load: a few versions at a time, beside what serves and below it in priority.
//!
//! Always true: a job is reported once, also where its thread ends in a panic.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread::JoinHandle,
};

use crate::{
    model::{ModelDescription, ModelName, VersionId},
    serve::Version,
    source::{Digest, Fingerprint, ListedVersion},
};

use super::{LoadFailure, Loader};

/// A version to load.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub(super) model: ModelName,
    pub(super) id: VersionId,
    pub(super) origin: Origin,
    /// The change that it is loaded aside for, if it is.
    pub(super) staged: Option<u64>,
    /// The version that serves and that it is to follow, if it still serves then.
    pub(super) before: Option<Weak<Version>>,
    /// The version that serves under this number, if one does.
    pub(super) serving: Option<Weak<Version>>,
}

/// Where a version is taken from.
#[derive(Debug, Clone)]
pub enum Origin {
    /// The repository, with what it says about the model.
    Repository(ListedVersion, Arc<ModelDescription>),
    /// The content store, by the digest of its manifest: the last good state.
    Store(Digest),
}

impl Job {
    pub(super) fn new(model: &ModelName, id: VersionId, origin: Origin) -> Self {
        Self { model: model.clone(), id, origin, staged: None, before: None, serving: None }
    }

    /// What its folder looked like, where it has one.
    pub(super) fn fingerprint(&self) -> Option<Fingerprint> {
        match &self.origin {
            Origin::Repository(listed, _) => Some(listed.fingerprint),
            Origin::Store(_) => None,
        }
    }
}

/// What a job came to.
pub(super) type Loaded = Result<Version, Arc<LoadFailure>>;

/// The threads, started when they are first needed.
#[derive(Debug)]
pub(super) struct Crew {
    loader: Arc<Loader>,
    hands: Vec<Hand>,
    /// Jobs that nobody has done with, of all hands.
    pending: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Hand {
    /// Sessions that run on the caller's thread are made at low priority. Threads that a session makes for itself
    /// inherit the priority, so those are made at the usual one.
    low_priority: bool,
    jobs: mpsc::Sender<Report>,
    /// Jobs that it has not done with.
    pending: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

/// A job that has to be reported, whatever becomes of it.
struct Report {
    job: Job,
    done: Option<Done>,
    /// Of its hand, and of all.
    pending: [Arc<AtomicUsize>; 2],
}

type Done = Box<dyn FnOnce(Job, Loaded) + Send>;

/// Below what answers requests, and not so low that a saturated machine never gets to it: about a quarter of a core
/// against one worker.
const NICE: i32 = 5;

impl Crew {
    pub(super) fn new(loader: Arc<Loader>) -> Self {
        Self { loader, hands: Vec::new(), pending: Arc::default() }
    }

    /// Loads a version beside others, so many at a time, and says what it came to, later and on another thread.
    pub(super) fn load(
        &mut self,
        job: Job,
        at_once: usize,
        done: impl FnOnce(Job, Loaded) + Send + 'static,
    ) -> std::io::Result<()> {
        let low_priority = match &job.origin {
            Origin::Repository(_, description) => self.loader.intra_op_threads(description) <= 1,
            // Not known before it is read.
            Origin::Store(_) => false,
        };
        let all = Arc::clone(&self.pending);
        let hand = self.hand(low_priority, at_once)?;
        let pending = [Arc::clone(&hand.pending), all];
        for count in &pending {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let report = Report { job, done: Some(Box::new(done)), pending };
        // A thread that has ended reports by letting go of it.
        let _ = hand.jobs.send(report);
        Ok(())
    }

    /// The thread that has the least to do; a new one while all have something and there may be more.
    fn hand(&mut self, low_priority: bool, at_once: usize) -> std::io::Result<&mut Hand> {
        self.hands.retain(|hand| !hand.thread.is_finished());
        let alike = || self.hands.iter().filter(|hand| hand.low_priority == low_priority);
        let busy = alike().all(|hand| hand.pending.load(Ordering::Relaxed) > 0);
        if busy && alike().count() < at_once {
            self.hands.push(Hand::start(Arc::clone(&self.loader), low_priority)?);
        }
        let alike = self.hands.iter_mut().filter(|hand| hand.low_priority == low_priority);
        alike
            .min_by_key(|hand| hand.pending.load(Ordering::Relaxed))
            .ok_or_else(|| std::io::Error::other("no thread loads"))
    }

    /// Waits for the jobs that run and lets the threads go.
    pub(super) fn dismiss(self) {
        for hand in self.hands {
            drop(hand.jobs);
            let _ = hand.thread.join();
        }
    }
}

impl Hand {
    fn start(loader: Arc<Loader>, low_priority: bool) -> std::io::Result<Self> {
        let (jobs, incoming) = mpsc::channel::<Report>();
        let thread = std::thread::Builder::new().name("loader".to_owned()).spawn(move || {
            if low_priority {
                // On Linux a thread has a priority of its own; where not, loading is only less polite.
                let _ = rustix::process::nice(NICE);
            }
            for mut report in incoming {
                let job = &report.job;
                let outcome = loader.load(
                    &job.model,
                    job.id,
                    &job.origin,
                    job.before.as_ref(),
                    job.serving.as_ref(),
                );
                report.tell(outcome.map_err(Arc::new));
                loader.make_ready();
                let [_, all] = report.pending.clone();
                drop(report);
                if all.load(Ordering::Relaxed) == 0 {
                    loader.rest();
                }
            }
        })?;
        Ok(Self { low_priority, jobs, pending: Arc::default(), thread })
    }
}

impl Report {
    fn tell(&mut self, loaded: Loaded) {
        if let Some(done) = self.done.take() {
            done(self.job.clone(), loaded);
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        // A job that nobody did: the thread ended in a panic.
        self.tell(Err(Arc::new(LoadFailure::Panicked)));
        for count in &self.pending {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
