//! The keeper: one thread that owns what should be served and publishes tables.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use crate::{
    model::{ModelDescription, ModelName, VersionId, VersionState},
    serve::{Entry, Model, Serving, Table, Version},
    source::{
        Fingerprint, Folder, ListedModel, ListedVersion, Listing, Settings, WatchError, Watcher,
    },
};

use super::{LoadFailure, Loader};

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
    wishes: mpsc::SyncSender<Wish>,
}

/// Why an operation on a model was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OperationError {
    /// The repository has no such model.
    #[error("the repository has no model '{0}'")]
    Unknown(String),
    /// The model is there and none of its versions can be served.
    #[error("failed to load '{model}': {reason}")]
    Failed {
        /// The model.
        model: ModelName,
        /// Why.
        reason: String,
    },
    /// The keeper has too much to do, or has stopped; worth retrying.
    #[error("the server is busy with other changes or shutting down; try again")]
    Busy,
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

enum Wish {
    Look,
    Load(ModelName, Reply),
    Unload(ModelName, Reply),
    Stop,
}

type Reply = oneshot::Sender<Result<(), OperationError>>;

/// Operations that may wait for the keeper.
const WISHES_MAX: usize = 64;

/// How long a new folder must look the same before it is loaded.
const SETTLE: Duration = Duration::from_millis(200);

impl Lifecycle {
    /// Starts the keeper and the watching of its folder.
    pub fn start(
        settings: Settings,
        loader: Loader,
        serving: Arc<Serving>,
        required: Arc<[ModelName]>,
    ) -> Result<Self, StartError> {
        let (wishes, incoming) = mpsc::sync_channel(WISHES_MAX);
        let handle = Handle { wishes: wishes.clone() };
        let changed = wishes.clone();
        let look_due = Arc::new(AtomicBool::new(false));
        let due = Arc::clone(&look_due);
        let watcher = Watcher::start(&settings.root, settings.poll_interval, move || {
            // One look covers every change before it, so one waits at most.
            if !due.swap(true, Ordering::AcqRel) && changed.try_send(Wish::Look).is_err() {
                due.store(false, Ordering::Release);
            }
        })?;
        let (passed, first_pass) = oneshot::channel();
        let keeper = Keeper {
            folder: Folder::new(settings),
            loader,
            serving,
            required,
            models: BTreeMap::new(),
            unloaded: BTreeSet::new(),
            seen: BTreeMap::new(),
            complete: false,
            reported: BTreeSet::new(),
            look_due,
            unreadable: None,
        };
        let keeper = std::thread::Builder::new()
            .name("lifecycle".to_owned())
            .spawn(move || keeper.run(&incoming, passed))
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
        let _ = self.handle.wishes.send(Wish::Stop);
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
    }
}

impl Handle {
    /// Loads a model's versions; done when this returns: later requests meet them.
    ///
    /// # Cancel safety
    /// Dropped while it waits, the load still happens.
    pub async fn load(&self, model: ModelName) -> Result<(), OperationError> {
        self.ask(|reply| Wish::Load(model, reply)).await
    }

    /// Takes a model out of service until it is loaded again; requests in flight finish.
    ///
    /// # Cancel safety
    /// Dropped while it waits, the unload still happens.
    pub async fn unload(&self, model: ModelName) -> Result<(), OperationError> {
        self.ask(|reply| Wish::Unload(model, reply)).await
    }

    async fn ask(&self, wish: impl FnOnce(Reply) -> Wish) -> Result<(), OperationError> {
        let (reply, answer) = oneshot::channel();
        self.wishes.try_send(wish(reply)).map_err(|_| OperationError::Busy)?;
        answer.await.unwrap_or(Err(OperationError::Busy))
    }
}

struct Keeper {
    folder: Folder,
    loader: Loader,
    serving: Arc<Serving>,
    required: Arc<[ModelName]>,
    models: BTreeMap<ModelName, Kept>,
    /// Models that an operator took out of service.
    unloaded: BTreeSet<ModelName>,
    /// What a version that is not loaded yet looked like the last time.
    /// and since when it looks so.
    seen: BTreeMap<(ModelName, VersionId), (Fingerprint, Instant)>,
    complete: bool,
    /// Problems of the folder that were logged already.
    reported: BTreeSet<String>,
    /// Whether a look waits in the queue.
    look_due: Arc<AtomicBool>,
    /// Why the last look saw nothing.
    unreadable: Option<String>,
}

/// A model as the keeper has it.
struct Kept {
    description: Option<Arc<ModelDescription>>,
    problem: Option<String>,
    versions: BTreeMap<VersionId, KeptVersion>,
}

struct KeptVersion {
    fingerprint: Option<Fingerprint>,
    state: VersionState,
    reason: String,
    version: Option<Arc<Version>>,
}

impl KeptVersion {
    fn unavailable(reason: impl Into<String>) -> Self {
        let state = VersionState::Unavailable;
        Self { fingerprint: None, state, reason: reason.into(), version: None }
    }
}

impl Keeper {
    fn run(mut self, wishes: &mpsc::Receiver<Wish>, passed: oneshot::Sender<()>) {
        // What lies there at the start is taken as it is; later changes must settle.
        let mut unsettled = self.look(None, true);
        self.complete = true;
        self.publish();
        // Nobody may be waiting for it.
        let _ = passed.send(());
        loop {
            let wish = if unsettled {
                match wishes.recv_timeout(SETTLE) {
                    Err(mpsc::RecvTimeoutError::Timeout) => Ok(Wish::Look),
                    Err(mpsc::RecvTimeoutError::Disconnected) => Err(mpsc::RecvError),
                    Ok(wish) => Ok(wish),
                }
            } else {
                wishes.recv()
            };
            match wish {
                Ok(Wish::Look) => {
                    self.look_due.store(false, Ordering::Release);
                    unsettled = self.look(None, false);
                }
                Ok(Wish::Load(model, reply)) => {
                    // Whoever asked may be gone; the load is done all the same.
                    let _ = reply.send(self.load(&model));
                }
                Ok(Wish::Unload(model, reply)) => {
                    let _ = reply.send(self.unload(&model));
                }
                Ok(Wish::Stop) | Err(mpsc::RecvError) => return,
            }
        }
    }

    fn load(&mut self, model: &ModelName) -> Result<(), OperationError> {
        self.unloaded.remove(model);
        self.forget_failures(model);
        self.look(Some(model), true);
        let failed = |reason: &str| {
            Err(OperationError::Failed { model: model.clone(), reason: reason.to_owned() })
        };
        if let Some(unreadable) = &self.unreadable {
            return failed(unreadable);
        }
        let kept =
            self.models.get(model).ok_or_else(|| OperationError::Unknown(model.to_string()))?;
        if let Some(problem) = &kept.problem {
            return failed(problem);
        }
        // The newest version is what a load is for; an older one that serves on does not make up for it.
        match kept.versions.values().next_back() {
            Some(newest) if newest.version.is_some() && newest.reason.is_empty() => Ok(()),
            Some(newest) => failed(&newest.reason),
            None => failed("it has no versions"),
        }
    }

    fn unload(&mut self, model: &ModelName) -> Result<(), OperationError> {
        let kept =
            self.models.get_mut(model).ok_or_else(|| OperationError::Unknown(model.to_string()))?;
        for version in kept.versions.values_mut() {
            *version = KeptVersion::unavailable("unloaded");
        }
        self.unloaded.insert(model.clone());
        self.publish();
        tracing::info!(%model, "unloaded");
        Ok(())
    }

    /// An operator's load tries again what failed.
    fn forget_failures(&mut self, model: &ModelName) {
        let Some(kept) = self.models.get_mut(model) else { return };
        for version in kept.versions.values_mut().filter(|version| !version.reason.is_empty()) {
            version.fingerprint = None;
        }
    }

    /// Compares the folder with what is served, for all models or one, and makes good the difference.
    ///
    /// With `at_once`, folders need not settle. Gives whether one has yet to settle.
    fn look(&mut self, only: Option<&ModelName>, at_once: bool) -> bool {
        let listing = match self.folder.list() {
            Ok(listing) => listing,
            Err(error) => {
                // What serves goes on serving: a folder that cannot be read is not an empty folder.
                let problem = format!("the repository cannot be read: {}", error.chain());
                self.report(&problem);
                self.unreadable = Some(problem);
                return false;
            }
        };
        self.unreadable = None;
        for problem in &listing.problems {
            self.report(&format!("{}: {}", problem.what, problem.reason));
        }
        let mut changed = self.remove_missing(&listing, only);
        let mut unsettled = false;
        let mut due = Vec::new();
        for (name, listed) in &listing.models {
            if only.is_some_and(|only| only != name) || self.unloaded.contains(name) {
                continue;
            }
            changed |= self.describe(name, listed);
            let Some(description) = self.models[name].description.clone() else { continue };
            let wanted = description.version_policy.select(listed.versions.keys().copied());
            changed |= self.retire_unwanted(name, &wanted);
            for id in wanted {
                let version = &listed.versions[&id];
                match self.judge(name, id, version, at_once) {
                    Due::No => {}
                    Due::Settling => unsettled = true,
                    Due::Yes => {
                        due.push((name.clone(), id, version.clone(), Arc::clone(&description)));
                    }
                }
            }
        }
        if changed || !due.is_empty() {
            self.publish();
        }
        for (name, id, version, description) in due {
            self.take(&name, id, &version, &description);
            let listed = listing.models[&name].versions.keys().copied();
            self.retire_unwanted(&name, &description.version_policy.select(listed));
            self.publish();
        }
        unsettled
    }

    fn report(&mut self, problem: &str) {
        if self.reported.len() < 10_000 && self.reported.insert(problem.to_owned()) {
            tracing::warn!("{problem}");
        }
    }

    /// Lets go of models and versions that are gone from the folder.
    fn remove_missing(&mut self, listing: &Listing, only: Option<&ModelName>) -> bool {
        let mut changed = false;
        self.models.retain(|name, kept| {
            if only.is_some_and(|only| only != name) {
                return true;
            }
            // What cannot be read is not gone.
            let trouble = |what: &str| listing.problems.iter().find(|problem| problem.what == what);
            let Some(listed) = listing.models.get(name) else {
                if let Some(problem) = trouble(name) {
                    kept.problem = Some(problem.reason.clone());
                    return true;
                }
                tracing::info!(model = %name, "removed: it is gone from the repository");
                changed = true;
                return false;
            };
            // A version that is gone serves on until one that is there can take its place.
            let replaceable = !listed.versions.is_empty();
            kept.versions.retain(|id, version| {
                let stays = listed.versions.contains_key(id)
                    || (replaceable && version.version.is_some())
                    || trouble(&format!("{name}/{id}")).is_some();
                if !stays {
                    tracing::info!(model = %name, version = %id, "removed: it is gone from the repository");
                    changed = true;
                }
                stays
            });
            true
        });
        self.seen.retain(|(name, id), _| {
            listing.models.get(name).is_some_and(|listed| listed.versions.contains_key(id))
        });
        changed
    }

    /// Takes over a model's description; a changed one makes its versions be loaded again.
    fn describe(&mut self, name: &ModelName, listed: &ListedModel) -> bool {
        let kept = self.models.entry(name.clone()).or_insert_with(|| Kept {
            description: None,
            problem: None,
            versions: BTreeMap::new(),
        });
        match &listed.description {
            Ok(description) => {
                if kept.description.as_deref() == Some(description) {
                    return kept.problem.take().is_some();
                }
                for version in kept.versions.values_mut() {
                    version.fingerprint = None;
                }
                kept.description = Some(Arc::new(description.clone()));
                kept.problem = None;
                true
            }
            Err(error) => {
                let problem = error.chain();
                if kept.problem.as_ref() == Some(&problem) {
                    return false;
                }
                tracing::warn!(model = %name, "{problem}");
                // Versions that serve go on; those that do not say why.
                for id in listed.versions.keys() {
                    let version = kept.versions.entry(*id);
                    let version = version.or_insert_with(|| KeptVersion::unavailable(""));
                    if version.version.is_none() {
                        version.reason.clone_from(&problem);
                    }
                }
                kept.description = None;
                kept.problem = Some(problem);
                true
            }
        }
    }

    fn retire_unwanted(&mut self, name: &ModelName, wanted: &[VersionId]) -> bool {
        let Some(kept) = self.models.get_mut(name) else { return false };
        let newest_ready = kept.versions.iter().rfind(|(_, version)| version.version.is_some());
        let newest_ready = newest_ready.map(|(id, _)| *id);
        let answers = |id: &VersionId, versions: &BTreeMap<VersionId, KeptVersion>| {
            versions.get(id).is_some_and(|version| version.version.is_some())
        };
        // A version goes only when one that is wanted answers in its place.
        let replaced = wanted.iter().any(|id| answers(id, &kept.versions));
        let before = kept.versions.len();
        kept.versions
            .retain(|id, _| wanted.contains(id) || (!replaced && newest_ready == Some(*id)));
        before != kept.versions.len()
    }

    fn judge(
        &mut self,
        name: &ModelName,
        id: VersionId,
        listed: &ListedVersion,
        at_once: bool,
    ) -> Due {
        let kept = self.models.get(name).and_then(|kept| kept.versions.get(&id));
        if kept.is_some_and(|kept| kept.fingerprint.as_ref() == Some(&listed.fingerprint)) {
            return Due::No;
        }
        let now = self.loader.monitor.clock().now();
        let seen = self.seen.entry((name.clone(), id)).or_insert((listed.fingerprint, now));
        if seen.0 != listed.fingerprint {
            *seen = (listed.fingerprint, now);
        }
        if at_once || now.saturating_duration_since(seen.1) >= SETTLE {
            Due::Yes
        } else {
            Due::Settling
        }
    }

    /// Loads a version beside what serves; what served under its number goes on if it fails.
    fn take(
        &mut self,
        name: &ModelName,
        id: VersionId,
        listed: &ListedVersion,
        description: &Arc<ModelDescription>,
    ) {
        self.seen.remove(&(name.clone(), id));
        self.enter_loading(name, id);
        let loaded = self.loader.load(name, id, listed, description);
        let Some(kept) = self.models.get_mut(name) else { return };
        let entry = kept.versions.entry(id).or_insert_with(|| KeptVersion::unavailable(""));
        entry.fingerprint = Some(listed.fingerprint);
        match loaded {
            Ok(version) => {
                let parts = version.parts();
                tracing::info!(
                    model = %name,
                    version = %id,
                    engine = parts.engine,
                    sessions = version.sessions(),
                    load_ms = parts.load.as_millis(),
                    "ready"
                );
                for note in &parts.notes {
                    tracing::warn!(model = %name, version = %id, "{note}");
                }
                entry.state = VersionState::Ready;
                entry.reason = String::new();
                entry.version = Some(Arc::new(version));
            }
            Err(error) => {
                tracing::error!(model = %name, version = %id, "not served: {error}");
                entry.reason = error.to_string();
                if matches!(&error, LoadFailure::Source(_, cause) if cause.retry_helps()) {
                    entry.fingerprint = None;
                }
                if entry.version.is_none() {
                    entry.state = VersionState::Unavailable;
                }
            }
        }
    }

    fn enter_loading(&mut self, name: &ModelName, id: VersionId) {
        let Some(kept) = self.models.get_mut(name) else { return };
        let entry = kept.versions.entry(id).or_insert_with(|| KeptVersion::unavailable(""));
        if entry.version.is_none() {
            entry.state = VersionState::Loading;
            entry.reason = String::new();
            self.publish();
        }
    }

    /// Publishes what is kept as the table of every request from now on.
    fn publish(&self) {
        let models = self.models.iter().map(|(name, kept)| Model {
            name: name.clone(),
            recorder: self.loader.monitor.model(name),
            versions: kept.versions.iter().map(|(id, version)| entry(*id, version)).collect(),
            problem: kept.problem.clone(),
        });
        self.serving.publish(Table::new(models, self.complete, Arc::clone(&self.required)));
    }
}

enum Due {
    No,
    Settling,
    Yes,
}

fn entry(id: VersionId, kept: &KeptVersion) -> Entry {
    Entry { id, state: kept.state, reason: kept.reason.clone(), version: kept.version.clone() }
}
