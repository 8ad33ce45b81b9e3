//! Makes the served set match the repository and what operators decided: lists, loads, proves, warms,
//! publishes, lets go.
//!
//! One thread keeps it: it hears of changes (file events, polling, requests of operators) and publishes a whole
//! table each time something changed; loading and freeing have threads of their own. Always true:
//! - A version is loaded and run in a sandboxed process of its own before this one touches it, unless that is turned
//!   off.
//! - A version answers only after it loaded, ran, and reproduced its golden outputs where it has any.
//! - A folder that is still being written is not loaded: two looks must agree first.
//! - A version that cannot be loaded costs nobody else anything, and the table says why.
//! - An acknowledged operation is in the published table, and beats the repository until it is cleared.
//! - What answers goes on until the version that takes its place answers.
//!
//! Not here: reading files (`source`), running models (`engine`), answering (`serve`), what is decided
//! (`registry`).

mod blame;
mod budget;
mod clients;
mod collect;
mod crew;
mod drain;
mod golden;
mod keeper;
mod kept;
mod load;
mod operate;
mod plan;
mod proof;
mod queue;
mod reclaim;
mod rest;
mod split;
mod stage;
mod vanished;

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread::JoinHandle,
};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

pub use golden::{Golden, GoldenError};
pub use load::{Code, LoadFailure, Loader};
pub use plan::OnNewVersion;
pub use proof::{
    Attempt, Case, Layer, Proof, ProofFailure, ProofLimits, ProofSettings, Prover, Sandbox,
    Verdicts, prove_version,
};

use crate::{
    model::{Alias, ArmName, ModelName, ShadowSpec, StickyBy, VersionId},
    registry::{Cause, Registry, Unrecorded},
    serve::{Evidence, Serving, Version},
    source::{
        Digest, Folder, Override, Settings, Store, UploadError, WatchCause, WatchError, Watcher,
    },
};

pub use blame::Blame;
pub use crew::Origin;

use budget::Budget;
use crew::Crew;
use keeper::{Keeper, Keeping, Message};
use operate::Asked;
use reclaim::Reclaim;
use rest::Rest;
use stage::Upload;

/// The running keeper; it stops when this is dropped.
#[derive(Debug)]
pub struct Lifecycle {
    handle: Handle,
    keeper: Option<JoinHandle<()>>,
    /// Its drop stops the watching before the keeper is joined.
    watcher: Option<Watcher>,
    first_pass: Option<oneshot::Receiver<()>>,
}

/// Asks the keeper for something; cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    messages: mpsc::Sender<Message>,
    /// Operations that wait for the keeper.
    waiting: Arc<AtomicUsize>,
    /// True if the keeper ended in a panic.
    broken: Arc<AtomicBool>,
    /// True if nothing takes over by itself.
    frozen: Arc<AtomicBool>,
    /// One upload at a time: each takes memory for all its files.
    uploading: Arc<Semaphore>,
    /// Where uploads are kept, and the most bytes of a version.
    keep: (Option<Store>, u64),
}

/// The right to upload; there is one.
#[derive(Debug)]
pub struct UploadPlace(
    #[expect(dead_code, reason = "its drop gives the place back")] OwnedSemaphorePermit,
);

/// What holds for one model, by the operator's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "switches that have nothing to do with each other"
)]
pub struct Policy {
    /// Whether readiness waits until the model is served.
    pub required: bool,
    /// What happens to new versions.
    pub on_new_version: OnNewVersion,
    /// Whether a new version may have other inputs and outputs than the one that it replaces.
    pub signature_may_change: bool,
    /// True if a header of a request may choose the arm or version.
    pub route_override: bool,
    /// True while automation is frozen: what answers goes on, whatever appears.
    pub(crate) frozen: bool,
}

/// Something that an operator may want of a model.
#[derive(Debug, Clone)]
pub enum Operation {
    /// Into service; versions that were held back are let in, and what failed is tried again.
    Load,
    /// Out of service until it is loaded again; requests in flight finish.
    Unload,
    /// Back to a version, which is pinned; without one, to the newest older one that served, else the next older.
    Rollback {
        /// The version.
        to: Option<VersionId>,
    },
    /// The repository decides again.
    Unpin,
    /// A name for a version, which is loaded and stays loaded.
    SetAlias {
        /// The name.
        alias: Alias,
        /// The version.
        version: VersionId,
    },
    /// A name less.
    RemoveAlias {
        /// The name.
        alias: Alias,
    },
    /// Another split of its requests.
    Split(Box<SplitChange>),
    /// Loads these versions, and keeps them loaded until an operator decides about the model, or a rollout splits its
    /// traffic.
    Prepare {
        /// The versions.
        versions: Vec<VersionId>,
    },
}

/// A change of how a model's requests are split; what is `None` stays as it is.
#[derive(Debug, Clone, Default)]
pub struct SplitChange {
    /// The revision that the change is meant for; any if `None`.
    pub if_revision: Option<u64>,
    /// True to send everything to the baseline.
    pub reset: bool,
    /// Fresh random bits, for where the hash needs a new key.
    pub salt: [u64; 2],
    /// The part of a request that keeps it in its arm.
    pub sticky: Option<StickyBy>,
    /// The arms, the baseline first.
    pub arms: Option<Vec<ArmChange>>,
    /// Versions that get copies.
    pub shadow: Option<Vec<ShadowSpec>>,
    /// Versions that stay loaded without a share.
    pub keep: Option<Vec<VersionId>>,
    /// True if what a rollout decided may be changed: it is paused or over.
    pub overrides: bool,
    /// True if the rollout that decided before is over, and has no more say.
    pub forgets_rollout: bool,
    /// The rollout whose step this is.
    pub rollout: Option<RolloutStep>,
}

/// An arm as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArmChange {
    /// Its name.
    pub name: ArmName,
    /// Its version.
    pub version: VersionId,
    /// Its slots of the split; the baseline has what the others have not.
    pub slots: u32,
}

/// A rollout that began, went on or ended: recorded together with what it means for the split.
#[derive(Debug, Clone)]
pub struct RolloutStep {
    /// The rollout's name.
    pub id: String,
    /// The version that it tries.
    pub candidate: VersionId,
    /// Complete record of the rollout.
    pub record: serde_json::Value,
    /// Evidence from which it reads the results of requests, if that is new.
    pub evidence: Option<Arc<Evidence>>,
    /// The version that answers by default from now on, where that was decided.
    pub serve: Option<VersionId>,
    /// True for a rollback: it is done, and recorded at once after.
    pub acts_first: bool,
    /// True if nothing more is to be learnt from requests.
    pub is_over: bool,
}

/// An operation that was carried out: requests that are sent from now on meet it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// The version that it came to, where one is meant.
    pub version: Option<VersionId>,
    /// Whether it outlives the process.
    pub durable: bool,
    /// Why it came to no newer version, where one cannot be served.
    pub note: Option<String>,
}

/// An operation that was begun.
#[derive(Debug)]
pub struct Pending(oneshot::Receiver<Result<Done, OperationError>>);

impl Pending {
    /// Its answer, once it is there.
    pub fn answer(&mut self) -> Option<Result<Done, OperationError>> {
        match self.0.try_recv() {
            Ok(answer) => Some(answer),
            Err(oneshot::error::TryRecvError::Empty) => None,
            Err(oneshot::error::TryRecvError::Closed) => Some(Err(OperationError::Busy)),
        }
    }
}

/// Why an operation on a model was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OperationError {
    /// The repository has no such model.
    #[error("the repository has no model '{0}'")]
    Unknown(String),
    /// The repository has no such version.
    #[error("model '{model}' has no version {version} in the repository, which has {there}")]
    UnknownVersion {
        /// The model.
        model: ModelName,
        /// The version.
        version: VersionId,
        /// The versions that are there.
        there: String,
    },
    /// The model has no such alias.
    #[error("model '{model}' has no alias '{alias}'")]
    UnknownAlias {
        /// The model.
        model: ModelName,
        /// The alias.
        alias: String,
    },
    /// There is nothing to roll back to.
    #[error(
        "model '{model}' has no version older than the one that answers; the repository has {there}; put an older one \
         there, or name one"
    )]
    NothingOlder {
        /// The model.
        model: ModelName,
        /// The versions that are there.
        there: String,
    },
    /// The model is there and the version that is meant cannot be served.
    #[error("failed to load '{model}': {reason}")]
    Failed {
        /// The model.
        model: ModelName,
        /// Why.
        reason: String,
    },
    /// The split was changed meanwhile.
    #[error(
        "the traffic of model '{model}' is at revision {current} by now; look at it, and try again with that"
    )]
    Revision {
        /// The model.
        model: ModelName,
        /// The revision that the split has.
        current: u64,
    },
    /// A rollout decides about the split.
    #[error("rollout {id} of model '{model}' decides about its traffic; pause or abort that first")]
    InRollout {
        /// The model.
        model: ModelName,
        /// The rollout.
        id: String,
    },
    /// The model is out of service.
    #[error("model '{0}' is unloaded; `tidegate models load {0}` brings it back")]
    Unloaded(ModelName),
    /// What was brought cannot be used.
    #[error("failed to load '{model}': {reason}")]
    Unfit {
        /// The model.
        model: ModelName,
        /// Why.
        reason: String,
    },
    /// Nothing was done, because it could not be kept.
    #[error("nothing was changed: what was uploaded could not be kept: {reason}")]
    NotKept {
        /// Why.
        reason: String,
    },
    /// Nothing was done, because it could not be recorded.
    #[error("nothing was changed: {0}")]
    Unrecorded(#[from] Unrecorded),
    /// It was done, and a restart would undo it.
    #[error("it is done, but a restart would undo it: it could not be recorded: {reason}")]
    NotDurable {
        /// Why.
        reason: String,
    },
    /// The keeper has too much to do, or has stopped; worth retrying.
    #[error("the server is busy with other changes or shutting down; try again")]
    Busy,
    /// The keeper ended in a panic; only another process helps.
    #[error(
        "nothing can be changed any more because of a bug of tidegate, which the log has; restart it"
    )]
    Broken,
}

/// Why the keeper could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its folder cannot be watched.
    #[error("the repository cannot be watched")]
    Watch(#[from] WatchError),
    /// The system gives no thread.
    #[error("the lifecycle has no thread")]
    Thread(#[source] std::io::Error),
}

type Reply = oneshot::Sender<Result<Done, OperationError>>;

/// Operations that may wait for the keeper.
const WAITING_MAX: usize = 64;

/// Has the keeper look at each sign of a change, and at each poll for which it has rested enough.
fn watch(
    settings: &Settings,
    messages: mpsc::Sender<Message>,
    due: Arc<AtomicBool>,
    is_rested: impl Fn() -> bool + Send + 'static,
) -> Result<Watcher, WatchError> {
    Watcher::start(&settings.root, settings.poll_interval, move |cause| {
        if cause == WatchCause::Poll && !is_rested() {
            return;
        }
        // One look covers every change before it, so one waits at most.
        if !due.swap(true, Ordering::AcqRel) && messages.send(Message::Look).is_err() {
            due.store(false, Ordering::Release);
        }
    })
}

impl Lifecycle {
    /// Starts the keeper and the watching of its folder.
    ///
    /// With `loaded_bytes_max`, versions that do not fit are loaded on demand; `frozen` keeps new ones from taking
    /// over.
    pub fn start(
        settings: Settings,
        loader: Loader,
        serving: Arc<Serving>,
        registry: Registry,
        policies: BTreeMap<ModelName, Policy>,
        (loaded_bytes_max, frozen): (Option<u64>, bool),
    ) -> Result<Self, StartError> {
        let (messages, incoming) = mpsc::channel();
        let look_due = Arc::new(AtomicBool::new(false));
        let handle = Handle {
            messages: messages.clone(),
            waiting: Arc::default(),
            broken: Arc::default(),
            frozen: Arc::new(AtomicBool::new(frozen)),
            uploading: Arc::new(Semaphore::new(1)),
            keep: (loader.store.clone(), loader.artifact_bytes_max),
        };
        let rest = Arc::new(Rest::default());
        let (due, rests) = (Arc::clone(&look_due), Arc::clone(&rest));
        let clock = Arc::clone(loader.monitor.clock());
        let watcher = watch(&settings, messages.clone(), due, move || rests.is_over(clock.now()))?;
        let wished = messages.clone();
        serving.demand().grant_by(move |wish| {
            // A wish that nobody takes answers by itself.
            let _ = wished.send(Message::Wish(wish));
        });
        let freed = messages.clone();
        let reclaim = Reclaim::start(Arc::clone(&loader.monitor), move |version| {
            // A keeper that is gone has nobody to tell.
            let _ = freed.send(Message::Freed(version));
        });
        let (passed, first_pass) = oneshot::channel();
        let loader = Arc::new(loader);
        let keeper = Keeper {
            folder: Folder::new(settings),
            crew: Crew::new(Arc::clone(&loader)),
            budget: Budget::new(loaded_bytes_max),
            loader,
            serving,
            registry,
            policies,
            frozen: Arc::clone(&handle.frozen),
            look_due,
            rest,
            messages,
            reclaim: reclaim.map_err(StartError::Thread)?,
            state: Keeping::default(),
        };
        let (broken, monitor) = (Arc::clone(&handle.broken), Arc::clone(&keeper.loader.monitor));
        let keeper = std::thread::Builder::new()
            .name("lifecycle".to_owned())
            .spawn(move || {
                let kept = catch_unwind(AssertUnwindSafe(|| keeper.run(&incoming, passed)));
                if kept.is_err() {
                    broken.store(true, Ordering::Release);
                    monitor.upkeep().broke("the thread that loads and swaps models");
                }
            })
            .map_err(StartError::Thread)?;
        Ok(Self {
            handle,
            keeper: Some(keeper),
            watcher: Some(watcher),
            first_pass: Some(first_pass),
        })
    }

    /// Waits until every version that was there at the start has been tried.
    pub async fn first_pass(&mut self) {
        if let Some(first_pass) = &mut self.first_pass {
            // A keeper that is gone has passed for good.
            let _ = first_pass.await;
        }
        self.first_pass = None;
    }

    /// A handle for those who operate it.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }
}

impl Drop for Lifecycle {
    fn drop(&mut self) {
        drop(self.watcher.take());
        // A keeper that is already gone has nothing to be told.
        let _ = self.handle.messages.send(Message::Stop);
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
    }
}

impl Handle {
    /// Does something to a model; done when this returns: later requests meet it. A version that the clients of the
    /// one before cannot use is refused, unless `signature_may_change`.
    ///
    /// # Cancel safety
    /// Dropped while it waits, it still happens.
    pub async fn operate(
        &self,
        model: ModelName,
        operation: Operation,
        signature_may_change: bool,
        cause: Cause,
    ) -> Result<Done, OperationError> {
        let _place = Place::take(&self.waiting).ok_or(OperationError::Busy)?;
        let (reply, answer) = oneshot::channel();
        self.messages
            .send(Message::Operate(
                model,
                operation,
                Asked { cause, signature_may_change, acts_first: false, evidence: None },
                reply,
            ))
            .map_err(|_| self.gone())?;
        answer.await.unwrap_or_else(|_| Err(self.gone()))
    }

    /// The `golden.json` of a loaded version, from the content store; may wait for the disk.
    ///
    /// # Errors
    /// The reason for people, where it cannot be told.
    pub fn golden(&self, version: &Version) -> Result<Option<Vec<u8>>, String> {
        let identity = version.parts().identity.as_deref().and_then(Digest::parse);
        let (Some(store), Some(identity)) = (&self.keep.0, identity) else {
            return Err("the server keeps no copies of what it loads; set state.path".to_owned());
        };
        store.golden(&identity).map_err(|error| error.chain())
    }

    /// Has something done to a model as [`Handle::operate`] does, for a thread that waits for nothing: the answer comes
    /// through the channel.
    pub fn begin(&self, model: ModelName, operation: Operation, cause: Cause) -> Pending {
        let (reply, answer) = oneshot::channel();
        let asked = Asked { cause, signature_may_change: false, acts_first: false, evidence: None };
        // A keeper that is gone drops the channel, which is an answer.
        let _ = self.messages.send(Message::Operate(model, operation, asked, reply));
        Pending(answer)
    }

    /// Keeps new versions from taking over by themselves, or lets them again.
    pub fn freeze(&self, freeze: bool) {
        self.frozen.store(freeze, Ordering::Release);
        // A keeper that is gone has nothing to look at.
        let _ = self.messages.send(Message::Look);
    }

    /// The right to upload, if nobody has it.
    pub fn upload_place(&self) -> Option<UploadPlace> {
        Arc::clone(&self.uploading).try_acquire_owned().ok().map(UploadPlace)
    }

    /// Serves what a request brought in place of what the repository has: a configuration as JSON, and files by their
    /// path in the model's folder. As with [`Handle::operate`], it is done when this returns.
    ///
    /// # Cancel safety
    /// Dropped while it waits, it may still happen.
    pub async fn upload(
        &self,
        place: UploadPlace,
        model: ModelName,
        (config, files): (String, Vec<(String, Bytes)>),
        cause: Cause,
    ) -> Result<Done, OperationError> {
        let _waits = Place::take(&self.waiting).ok_or(OperationError::Busy)?;
        let (store, bytes_max) = self.keep.clone();
        let name = model.clone();
        // Files are hashed and written to the disk: nothing for a thread that answers requests.
        let kept = tokio::task::spawn_blocking(move || {
            let unfit = |error: UploadError| OperationError::Unfit {
                model: name.clone(),
                reason: error.to_string(),
            };
            // What is put from here on stays until it is recorded.
            let hold = store.as_ref().map(Store::hold);
            let mut instead = Override::brought(&name, &config, files, bytes_max).map_err(unfit)?;
            if let Some(store) = store {
                let kept = instead.keep(&store);
                kept.map_err(|error| OperationError::NotKept { reason: error.chain() })?;
            }
            Ok::<_, OperationError>((instead, hold))
        });
        let (instead, hold) = kept.await.unwrap_or(Err(OperationError::Busy))?;
        let (reply, answer) = oneshot::channel();
        let upload = Upload { model, instead, cause, place, hold, reply };
        self.messages.send(Message::Upload(Box::new(upload))).map_err(|_| self.gone())?;
        answer.await.unwrap_or_else(|_| Err(self.gone()))
    }

    /// The reason that nobody answers.
    fn gone(&self) -> OperationError {
        if self.broken.load(Ordering::Acquire) {
            OperationError::Broken
        } else {
            OperationError::Busy
        }
    }
}

/// One of the places for operations that wait.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(waiting: &Arc<AtomicUsize>) -> Option<Self> {
        let place = Self(Arc::clone(waiting));
        (waiting.fetch_add(1, Ordering::Relaxed) < WAITING_MAX).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
