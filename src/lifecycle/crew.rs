//! The threads that load: one version at a time, beside what serves and below it in priority.

use std::{
    sync::{Arc, mpsc},
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
    /// Sessions that run on the caller's thread are made at low priority.
    plain: Option<Hand>,
    /// Threads that a session makes for itself inherit the priority, so these are made at the usual one.
    parallel: Option<Hand>,
}

#[derive(Debug)]
struct Hand {
    jobs: mpsc::Sender<(Job, Done)>,
    thread: JoinHandle<()>,
}

type Done = Box<dyn FnOnce(Job, Loaded) + Send>;

/// Below what answers requests, and not so low that a saturated machine never gets to it: about a quarter of a core
/// against one worker.
const NICE: i32 = 5;

impl Crew {
    pub(super) fn new(loader: Arc<Loader>) -> Self {
        Self { loader, plain: None, parallel: None }
    }

    /// Loads a version and says what it came to, later and on another thread.
    pub(super) fn load(
        &mut self,
        job: Job,
        done: impl FnOnce(Job, Loaded) + Send + 'static,
    ) -> std::io::Result<()> {
        let parallel = match &job.origin {
            Origin::Repository(_, description) => self.loader.intra_op_threads(description) > 1,
            // Not known before it is read.
            Origin::Store(_) => true,
        };
        let hand = if parallel { &mut self.parallel } else { &mut self.plain };
        let hand = match hand {
            Some(hand) if !hand.thread.is_finished() => hand,
            gone => gone.insert(Hand::start(Arc::clone(&self.loader), !parallel)?),
        };
        hand.jobs
            .send((job, Box::new(done)))
            .map_err(|_| std::io::Error::other("the loading thread has ended"))
    }

    /// Waits for the job that runs and lets the threads go.
    pub(super) fn dismiss(self) {
        for hand in [self.plain, self.parallel].into_iter().flatten() {
            drop(hand.jobs);
            let _ = hand.thread.join();
        }
    }
}

impl Hand {
    fn start(loader: Arc<Loader>, low_priority: bool) -> std::io::Result<Self> {
        let (jobs, incoming) = mpsc::channel::<(Job, Done)>();
        let thread = std::thread::Builder::new().name("loader".to_owned()).spawn(move || {
            if low_priority {
                // On Linux a thread has a priority of its own; where not, loading is only less polite.
                let _ = rustix::process::nice(NICE);
            }
            for (job, done) in incoming {
                let outcome = loader.load(&job.model, job.id, &job.origin);
                done(job, outcome.map_err(Arc::new));
                loader.make_ready();
            }
        })?;
        Ok(Self { jobs, thread })
    }
}
