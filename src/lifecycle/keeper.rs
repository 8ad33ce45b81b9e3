//! The keeper: one thread that owns what should be served and publishes tables.
//!
//! It never waits for a load: those run on the crew's threads and report back, so that an unload or a rollback
//! is done at once whatever else is being loaded.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Instant,
};

use tokio::sync::oneshot;

use crate::{
    model::{ModelName, VersionId},
    monitor::EventKind,
    registry::{Action, Cause, Decisions, Entry, Registry},
    serve::{Evidence, Model, Serving, Table, Version, Wish},
    source::{Digest, Folder, ListedModel, Listing, Store},
};

use super::{
    Code, LoadFailure, Loader, Operation, Policy, Reply,
    budget::{Admission, Budget},
    clients::breaks_clients,
    collect::{Collector, Needed},
    crew::{Crew, Job, Loaded, Origin},
    kept::{Due, Kept, KeptVersion},
    operate::{Asked, Waiting},
    queue::{Jobs, Running},
    reclaim::{Freed, Reclaim, Retired},
    rest::{Rest, thread_time},
    stage::{Next, Staged, Upload},
    vanished::{Sight, is_uploaded},
};

/// What reaches the keeper.
pub(super) enum Message {
    /// The folder may have changed.
    Look,
    /// Somebody wants something.
    Operate(ModelName, Operation, Asked, Reply),
    /// A request waits for a version that loads on demand.
    Wish(Wish),
    /// There may be room for what waits to be loaded.
    Retry,
    /// Somebody brings a model.
    Upload(Box<Upload>),
    /// A load has ended.
    Loaded(Box<(Job, Loaded)>),
    /// The last request has let a version go.
    Freed(Freed),
    /// The process ends.
    Stop,
}

pub(super) struct Keeper {
    pub(super) folder: Folder,
    pub(super) loader: Arc<Loader>,
    pub(super) serving: Arc<Serving>,
    pub(super) registry: Registry,
    pub(super) policies: BTreeMap<ModelName, Policy>,
    pub(super) frozen: Arc<AtomicBool>,
    /// Whether a look waits in the queue.
    pub(super) look_due: Arc<AtomicBool>,
    pub(super) rest: Arc<Rest>,
    pub(super) messages: mpsc::Sender<Message>,
    pub(super) crew: Crew,
    pub(super) budget: Budget,
    pub(super) reclaim: Reclaim,
    pub(super) state: Keeping,
}

/// What the keeper knows; starts empty.
#[derive(Default)]
pub(super) struct Keeping {
    pub(super) models: BTreeMap<ModelName, Kept>,
    /// The models as they were last published.
    published: HashMap<ModelName, Arc<Model>>,
    required: Arc<[ModelName]>,
    /// Loads to come, and those that run.
    pub(super) jobs: Jobs,
    pub(super) running: Vec<Running>,
    collector: Collector,
    pub(super) waiting: Vec<Waiting>,
    /// Changes that are loaded aside, and how many there have been.
    pub(super) staged: VecDeque<Staged>,
    pub(super) staged_so_far: u64,
    /// Whether every version that was there at the start has been tried.
    pub(super) complete: bool,
    /// Problems of the folder that were logged already.
    reported: BTreeSet<String>,
    /// Why the last look saw nothing that may be acted on.
    pub(super) unreadable: Option<String>,
    pub(super) sight: Sight,
    /// Evidence of requests for open rollouts, with their names.
    pub(super) evidence: BTreeMap<ModelName, (String, Arc<Evidence>)>,
    /// When to look again, unasked.
    look_at: Option<Instant>,
}

/// Problems of a folder that are logged; more are passed over.
const REPORTED_MAX: usize = 10_000;

impl Keeper {
    pub(super) fn run(mut self, messages: &mpsc::Receiver<Message>, passed: oneshot::Sender<()>) {
        let required = self.policies.iter().filter(|(_, policy)| policy.required);
        self.state.required = required.map(|(name, _)| name.clone()).collect();
        let mut passed = Some(passed);
        self.reinstate();
        // What lies there at the start is taken as it is; later changes must settle.
        self.look(None, true);
        loop {
            self.gauge();
            let idle = self.state.running.is_empty() && self.state.jobs.is_empty();
            if !self.state.complete && idle {
                self.state.complete = true;
                self.publish();
                // Nobody may be waiting for it.
                let _ = passed.take().map(|passed| passed.send(()));
            }
            match self.next(messages) {
                Some(Message::Look) => {
                    self.look_due.store(false, Ordering::Release);
                    let before = thread_time();
                    self.look(None, false);
                    self.rest.begin(self.now(), thread_time().saturating_sub(before));
                }
                Some(Message::Operate(model, operation, asked, reply)) => {
                    self.operate(&model, &operation, asked, reply);
                }
                Some(Message::Wish(wish)) => self.wish(wish),
                // Every message has what waits looked at.
                Some(Message::Retry) => {}
                Some(Message::Upload(upload)) => self.upload(*upload),
                Some(Message::Loaded(ended)) => {
                    let (job, loaded) = *ended;
                    self.ended(&job, loaded);
                }
                Some(Message::Freed(freed)) => self.freed(&freed),
                Some(Message::Stop) | None => break,
            }
            self.start_next();
            self.conclude();
            // What was decided may need a load.
            self.start_next();
            self.collect();
            self.grant();
        }
        self.crew.dismiss();
    }

    fn next(&mut self, messages: &mpsc::Receiver<Message>) -> Option<Message> {
        let (look, retry) = (self.state.look_at, self.budget.retry_at);
        let Some(at) = look.into_iter().chain(retry).min() else { return messages.recv().ok() };
        match messages.recv_timeout(at.saturating_duration_since(self.now())) {
            Err(mpsc::RecvTimeoutError::Timeout) if look != Some(at) => Some(Message::Retry),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                self.state.look_at = None;
                Some(Message::Look)
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => None,
            Ok(message) => Some(message),
        }
    }

    /// Tells the monitor what can only be read here.
    fn gauge(&self) {
        let (failures, problem) = self.registry.failures();
        self.loader.monitor.upkeep().remembers(self.registry.is_durable(), failures, problem);
    }

    pub(super) fn now(&self) -> Instant {
        self.loader.monitor.clock().now()
    }

    pub(super) fn policy(&self, model: &str) -> Policy {
        let policy = self.policies.get(model).copied().unwrap_or_default();
        Policy { frozen: self.frozen.load(Ordering::Acquire), ..policy }
    }

    pub(super) fn decisions(&self, model: &str) -> Decisions {
        self.registry.decisions(model).cloned().unwrap_or_default()
    }

    pub(super) fn tell(
        &self,
        model: &ModelName,
        version: Option<VersionId>,
        kind: EventKind,
        detail: &str,
    ) {
        let monitor = &self.loader.monitor;
        monitor.events().tell(monitor.clock().unix(), model, version, kind, detail);
    }

    /// The versions of a model that are being loaded.
    fn running(&self, name: &ModelName) -> Vec<VersionId> {
        let running = self.state.running.iter().filter(|running| running.model == *name);
        running.map(|running| running.id).collect()
    }

    /// Compares the folder with what is served, for all models or one, and makes good the difference.
    ///
    /// With `at_once`, folders need not settle.
    pub(super) fn look(&mut self, only: Option<&ModelName>, at_once: bool) {
        if only.is_none() {
            self.state.look_at = None;
        }
        let listing = self.folder.list();
        let listing = listing
            .map_err(|error| format!("the repository cannot be read: {}", error.chain()))
            .and_then(|listing| self.believe(listing));
        let listing = match listing {
            Ok(listing) => listing,
            Err(problem) => {
                // What serves goes on serving: a folder that cannot be read is not an empty folder.
                if !self.state.complete && self.state.models.is_empty() {
                    self.restore(&problem);
                }
                self.looked(Err(&problem));
                self.note_unreadable(Some(problem));
                return;
            }
        };
        self.note_unreadable(None);
        // What is wrong with a model stands with the model.
        let left_out =
            listing.problems.iter().filter(|left| !listing.models.contains_key(&*left.what));
        let left_out: Vec<_> =
            left_out.map(|left| format!("{}: {}", left.what, left.reason)).collect();
        self.looked(Ok((listing.problems.len(), left_out)));
        for problem in &listing.problems {
            self.report(&format!("{}: {}", problem.what, problem.reason));
        }
        let mut changed = self.remove_missing(&listing, only);
        for (name, listed) in &listing.models {
            if only.is_none_or(|only| only == name) {
                self.describe(name, listed, &listing);
                changed |= self.reconcile(name, at_once);
            }
        }
        if changed {
            self.publish();
        }
        self.start_next();
    }

    /// Tells what the last look came to, once for each time that it changes.
    fn note_unreadable(&mut self, problem: Option<String>) {
        if self.state.unreadable == problem {
            return;
        }
        if let Some(problem) = &problem {
            let root = &self.folder.settings().root;
            tracing::error!(root = %root.display(), "{problem}");
        } else {
            tracing::info!("the repository is readable again");
        }
        self.state.unreadable = problem;
        for name in self.state.models.keys().cloned().collect::<Vec<_>>() {
            self.refresh(&name);
        }
        self.publish();
    }

    /// Starts to remove from the content store what no version needs, if it is time.
    fn collect(&mut self) {
        let Some(store) = &self.loader.store else { return };
        if !self.state.complete || !self.state.collector.is_due() {
            return;
        }
        // First: what is put from here on is not known to be needed below.
        let hold = store.hold();
        let (mut manifests, mut blobs) = (BTreeSet::new(), BTreeSet::new());
        for (name, decided) in self.registry.models() {
            // Without a repository nobody knows which models are gone.
            let stays = self.state.unreadable.is_some() || self.state.models.contains_key(name);
            let released = decided.manifests().filter(|_| stays);
            manifests.extend(decided.needed().chain(released).filter_map(Digest::parse));
            let uploaded = decided.uploaded.as_ref();
            blobs.extend(uploaded.and_then(|uploaded| Digest::parse(&uploaded.config)));
        }
        for kept in self.state.models.values() {
            let loaded = kept.versions.values().filter_map(|kept| kept.version.as_ref());
            let identities = loaded.filter_map(|version| version.parts().identity.as_deref());
            manifests.extend(identities.filter_map(Digest::parse));
        }
        let needed = Needed { manifests, blobs, monitor: Arc::clone(&self.loader.monitor) };
        self.state.collector.start(hold, store.clone(), needed);
    }

    fn looked(&self, outcome: Result<(usize, Vec<String>), &str>) {
        let monitor = &self.loader.monitor;
        monitor.upkeep().looked(monitor.clock().unix(), outcome);
    }

    /// Serves what served last, from the content store: the repository cannot be reached at the start.
    fn restore(&mut self, problem: &str) {
        for (name, decided) in self.registry.models() {
            let served: Vec<_> = (decided.served.iter())
                .filter_map(|(id, digest)| Some((*id, Digest::parse(digest)?)))
                .collect();
            if decided.unloaded || served.is_empty() {
                continue;
            }
            let mut kept = Kept { problem: Some(problem.to_owned()), ..Kept::default() };
            kept.plan.wanted = served.iter().map(|(id, _)| *id).collect();
            kept.plan.default = decided.pinned.or(kept.plan.wanted.last().copied());
            for (id, digest) in served {
                let version = kept.versions.entry(id);
                version.or_insert_with(|| KeptVersion::unavailable("")).begin(None);
                let origin = Origin::Store(digest);
                self.state.jobs.push(Job::new(name, id, origin));
            }
            self.state.models.insert(name.clone(), kept);
        }
        let names: Vec<_> = self.state.models.keys().cloned().collect();
        if !names.is_empty() {
            tracing::warn!(
                models = names.len(),
                "serving what served last, from the content store"
            );
        }
        for name in names {
            self.refresh(&name);
        }
    }

    fn report(&mut self, problem: &str) {
        if self.state.reported.len() < REPORTED_MAX
            && self.state.reported.insert(problem.to_owned())
        {
            tracing::warn!("{problem}");
        }
    }

    /// Lets go of models that are gone from the folder.
    fn remove_missing(&mut self, listing: &Listing, only: Option<&ModelName>) -> bool {
        let gone: Vec<ModelName> = self.state.models.keys().cloned().collect();
        let mut changed = false;
        for name in gone {
            if listing.models.contains_key(&name) || only.is_some_and(|only| *only != name) {
                continue;
            }
            // What cannot be read is not gone.
            if let Some(reason) = trouble(listing, &name) {
                if let Some(kept) = self.state.models.get_mut(&name) {
                    kept.problem = Some(reason.to_owned());
                }
                self.refresh(&name);
            } else if let Some(mut kept) = self.state.models.remove(&name) {
                let retired = kept.versions.values_mut().filter_map(KeptVersion::retire);
                let retired: Vec<_> = retired.collect();
                self.state.published.remove(&name);
                self.state.jobs.retain(|job| job.model != name);
                tracing::info!(model = %name, "removed: it is gone from the repository");
                self.tell(&name, None, EventKind::Removed, "gone from the repository");
                self.retire(retired);
                // Nor is it brought back by a start without the repository.
                let decided = self.registry.decisions(&name);
                let served = decided.map(|decided| decided.served.clone()).unwrap_or_default();
                for id in served.into_keys() {
                    self.remember(&name, Action::Retire { version: id.number() });
                }
            }
            changed = true;
        }
        changed
    }

    /// Takes over what the repository says and has; a changed description makes versions be loaded again.
    fn describe(&mut self, name: &ModelName, listed: &ListedModel, listing: &Listing) {
        let (now, grace) = (self.now(), self.folder.settings().vanished_grace);
        let kept = self.state.models.entry(name.clone()).or_default();
        let mut there = listed.versions.clone();
        for (id, version) in &kept.listed {
            // What cannot be read is not gone.
            if trouble(listing, &format!("{name}/{id}")).is_some() {
                there.entry(*id).or_insert_with(|| version.clone());
            }
        }
        if kept.is_emptied(&there, now, grace) {
            let problem = "its folder has no version any more, taken for a lost volume: what serves goes on; put a version \
                           there, or remove the folder if the model is to go";
            if kept.problem.as_deref() != Some(problem) {
                tracing::error!(model = %name, "{problem}");
                kept.problem = Some(problem.to_owned());
            }
            return;
        }
        kept.listed = there;
        match &listed.description {
            Ok(description) => {
                kept.problem = None;
                if kept.description.as_deref() != Some(description) {
                    kept.versions.values_mut().for_each(KeptVersion::forget);
                    kept.description = Some(Arc::new(description.clone()));
                }
            }
            Err(error) => {
                let problem = error.chain();
                if kept.problem.as_ref() != Some(&problem) {
                    tracing::warn!(model = %name, "{problem}");
                    kept.problem = Some(problem);
                }
            }
        }
    }

    /// Versions that operators wait to decide about: they are wanted until then.
    fn trials(&self, name: &ModelName) -> Vec<VersionId> {
        let waiting = self.state.waiting.iter().filter(|waiting| waiting.model == *name);
        waiting.flat_map(Waiting::trials).copied().collect()
    }

    /// Plans for a model as it was last listed, queues loads that are due and lets go of what is not wanted.
    ///
    /// Gives whether the table has to be published.
    pub(super) fn reconcile(&mut self, name: &ModelName, at_once: bool) -> bool {
        let now = self.now();
        let (policy, decisions) = (self.policy(name), self.decisions(name));
        let trials = self.trials(name);
        let lost = self.state.unreadable.is_some() && self.loader.store.is_some();
        let running = self.running(name);
        let Some(kept) = self.state.models.get_mut(name) else { return false };
        if kept.shows_problem() {
            return self.refresh(name);
        }
        let Some(description) = kept.description.clone() else { return false };
        let there: BTreeSet<VersionId> = kept.listed.keys().copied().collect();
        let (unloaded, pinned) = (decisions.unloaded, decisions.pinned);
        let stored = if lost { stored(&decisions) } else { BTreeMap::new() };
        let Some(mut plan) = kept.plan_for(decisions, policy) else { return false };
        let starts = !self.state.complete && !kept.settled;
        let may_change = policy.signature_may_change || starts;
        let withheld = if may_change { None } else { kept.withhold(name, &mut plan, pinned) };
        kept.note_withheld(name, withheld);
        plan.wanted.extend(trials.iter().filter(|id| there.contains(id)));
        plan.wanted.extend(kept.prepared.iter().filter(|id| there.contains(id)));
        kept.stand_in = kept.stand_in_for(&plan);
        plan.wanted.extend(kept.stand_in);
        plan.held.retain(|id| !plan.wanted.contains(id));
        let news: Vec<_> = plan.held.difference(&kept.plan.held).copied().collect();
        let held_why = plan.held_why;
        kept.plan = plan;
        let mut jobs = Vec::new();
        for id in kept.plan.wanted.clone() {
            // What goes on although its folder is gone.
            let Some(listed) = kept.listed.get(&id).cloned() else { continue };
            let before = kept.before(id);
            let version = kept.versions.entry(id).or_insert_with(KeptVersion::discovered);
            if lost && (version.version.is_some() || running.contains(&id)) {
                // Nothing newer can be read.
                continue;
            }
            match version.due(listed.fingerprint, now, at_once) {
                Due::No => {}
                Due::At(at) => {
                    self.state.look_at =
                        Some(self.state.look_at.map_or(at, |sooner| sooner.min(at)));
                }
                Due::Now => {
                    // The way back is open without the repository, too.
                    let stored = stored.get(&id).copied();
                    version.begin(stored.is_none().then_some(listed.fingerprint));
                    let origin = stored.map_or_else(
                        || Origin::Repository(listed, Arc::clone(&description)),
                        Origin::Store,
                    );
                    jobs.push(Job {
                        before,
                        serving: version.lent(),
                        ..Job::new(name, id, origin)
                    });
                }
            }
        }
        let retired = kept.follow_plan(unloaded);
        for id in news {
            tracing::info!(model = %name, version = %id, "{held_why}");
            self.tell(name, Some(id), EventKind::Held, "an operator must let it in");
        }
        self.queue(name, jobs);
        let changed = self.refresh(name);
        self.retire(retired);
        changed
    }

    /// Queues loads of a model's versions in place of those that wait.
    fn queue(&mut self, name: &ModelName, jobs: Vec<Job>) {
        self.state.jobs.retain(|queued| {
            queued.model != *name || jobs.iter().all(|job: &Job| job.id != queued.id)
        });
        for job in &jobs {
            self.tell(name, Some(job.id), EventKind::Discovered, "");
        }
        self.state.jobs.extend(jobs);
    }

    /// Loads what comes next, as long as more may be loaded at a time and there is room for it.
    fn start_next(&mut self) {
        let mut refused = false;
        while self.state.running.len() < self.at_once() {
            // An operator waits for what is staged; its versions are loaded one by one.
            if self.state.running.iter().all(|running| running.staged.is_none()) {
                match self.next_staged() {
                    Next::Job(job) => {
                        self.start(*job);
                        continue;
                    }
                    Next::Later => break,
                    Next::Nothing => {}
                }
            }
            let Some(job) = self.next_job() else { break };
            let (model, id) = (job.model.clone(), job.id);
            let Some(kept) = self.state.models.get(&model) else { continue };
            let wanted = kept.plan.wanted.contains(&id);
            if !wanted || !kept.versions.contains_key(&id) {
                continue;
            }
            match self.admit(&job) {
                Admission::Now => {}
                Admission::Later => {
                    self.state.jobs.put_back(job);
                    break;
                }
                Admission::No => {
                    refused = true;
                    continue;
                }
            }
            let Some(version) = self.version_mut(&model, id) else { continue };
            if version.version.is_none() {
                "being fetched, proven, loaded and warmed".clone_into(&mut version.reason);
            }
            if self.refresh(&model) {
                self.publish();
            }
            self.start(job);
        }
        if refused {
            self.publish();
        }
    }

    /// Hands a version to the crew.
    fn start(&mut self, job: Job) {
        let (model, id, staged) = (job.model.clone(), job.id, job.clone());
        self.tell(&model, Some(id), EventKind::Loading, "");
        let hold = self.loader.store.as_ref().map(Store::hold);
        let rank = self.rank(&job);
        let report = self.messages.clone();
        let at_once = self.at_once();
        let started = self.crew.load(job, at_once, move |job, loaded| {
            // A keeper that is gone needs no report.
            let _ = report.send(Message::Loaded(Box::new((job, loaded))));
        });
        let Err(error) = started else {
            let staged = staged.staged;
            self.state.running.push(Running { model, id, staged, rank, hold });
            return;
        };
        tracing::error!(%model, version = %id, "not loaded: the system gives no thread: {error}");
        self.budget.load_ended();
        if let Some(number) = staged.staged {
            self.staged_ended(number, &staged, Err(Arc::new(LoadFailure::NoThread(error))));
            return;
        }
        let now = self.now();
        if let Some(version) = self.version_mut(&model, id) {
            let tried = version.loading;
            version.fail(tried, format!("the system gives no thread: {error}"), Some(now));
        }
    }

    /// Looks again as soon as nothing else is to be done.
    pub(super) fn look_soon(&mut self) {
        self.state.look_at = Some(self.now());
    }

    fn version_mut(&mut self, model: &str, id: VersionId) -> Option<&mut KeptVersion> {
        self.state.models.get_mut(model)?.versions.get_mut(&id)
    }

    /// A load has ended: the version takes over, or says why not.
    fn ended(&mut self, job: &Job, loaded: Loaded) {
        let at = self.state.running.iter().position(|running| running.is_of(job));
        let running = at.map(|at| self.state.running.swap_remove(at));
        debug_assert!(running.is_some(), "what ends was started");
        self.state.collector.count();
        // Let go at the end: by then it is written down if it serves.
        let _hold = running.and_then(|running| running.hold);
        self.budget.load_ended();
        if let Some(number) = job.staged {
            self.staged_ended(number, job, loaded);
            return;
        }
        let (name, id) = (&job.model, job.id);
        if matches!(&loaded, Err(failure) if matches!(**failure, LoadFailure::Unchanged)) {
            self.unchanged(job);
            return;
        }
        let now = self.now();
        let policy = self.policy(name);
        let loaded = loaded
            .map_err(|failure| (failure.code().as_str(), failure.to_string(), failure.may_pass()));
        let loaded = loaded.and_then(|version| self.check_loaded(job, version, 0));
        let accepted = self.state.waiting.iter().any(|waiting| waiting.accepts(name));
        let unwanted = |kept: &Kept| {
            // An upload may have taken its place while it was loaded.
            let replaced = kept.versions.get(&id).is_none_or(|kept| kept.loading.is_none());
            !kept.plan.wanted.contains(&id) || job.fingerprint().is_some() && replaced
        };
        let Some(kept) = self.state.models.get_mut(name).filter(|kept| !unwanted(kept)) else {
            // Decided otherwise meanwhile.
            self.loader.monitor.upkeep().loaded(name, "superseded");
            if let Ok(version) = loaded {
                self.let_go(Arc::new(version));
            }
            return;
        };
        let starts = !self.state.complete && !kept.settled;
        let policy = Policy {
            // An operator who waits for it may have said so; what lies there at the start is taken as it is.
            signature_may_change: policy.signature_may_change || accepted || starts,
            ..policy
        };
        let loaded = loaded.and_then(|version| {
            match breaks_clients(kept, kept.plan.default, &version, policy, true) {
                Some(reason) => Err(("signature", reason, false)),
                None => Ok(version),
            }
        });
        let outcome = loaded.as_ref().map_or_else(|(code, ..)| *code, |_| "ok");
        self.loader.monitor.upkeep().loaded(name, outcome);
        match loaded {
            Ok(version) => self.serve(job, version),
            Err((code, reason, may_pass)) => {
                self.not_served(job, code, &reason, may_pass.then_some(now));
            }
        }
    }

    /// A version's files were touched, and hold what serves.
    fn unchanged(&mut self, job: &Job) {
        let (name, id) = (&job.model, job.id);
        if let Some(version) = self.version_mut(name, id) {
            version.unchanged(job.fingerprint());
        }
        let detail = "touched: what serves is of the same bytes";
        tracing::info!(model = %name, version = %id, "{detail}");
        self.tell(name, Some(id), EventKind::Ready, detail);
        if self.reconcile(name, true) {
            self.publish();
        }
    }

    /// Lets a version that was loaded take its place.
    fn serve(&mut self, job: &Job, version: Version) {
        let (name, id) = (&job.model, job.id);
        let unloaded = self.registry.decisions(name).is_some_and(|decided| decided.unloaded);
        let Some(kept) = self.state.models.get_mut(name) else { return };
        let takes_over = kept.plan.default == Some(id);
        log_ready(&version, kept.answering().map(|(id, _)| id).filter(|_| takes_over));
        let (identity, detail) = (version.parts().identity.clone(), ready_detail(&version));
        let entry = kept.versions.entry(id).or_insert_with(|| KeptVersion::unavailable(""));
        let mut retired: Vec<_> = entry.succeed(job.fingerprint(), version).into_iter().collect();
        entry.loaded_at = self.loader.monitor.clock().unix();
        kept.settled |= kept.plan.default == Some(id);
        retired.extend(kept.follow_plan(unloaded));
        self.refresh(name);
        self.publish();
        self.tell(name, Some(id), EventKind::Ready, &detail);
        // What serves now is written before what served is written off: a start between the two needs one of them.
        if let Some(identity) = identity {
            self.remember_served(name, id, identity);
        }
        self.retire(retired);
        self.proven(name);
    }

    /// Says why a version is not served; `again` is the time of a failure that may pass.
    fn not_served(&mut self, job: &Job, code: &str, reason: &str, again: Option<Instant>) {
        let (name, id) = (&job.model, job.id);
        let Some(kept) = self.state.models.get_mut(name) else { return };
        let entry = kept.versions.entry(id).or_insert_with(|| KeptVersion::unavailable(""));
        let news = entry.fail(job.fingerprint(), reason.to_owned(), again);
        let is_blamed = code == Code::Blamed.as_str();
        if is_blamed {
            entry.hold_back();
        }
        let instead = kept.plan.default == Some(id) || kept.plan.fallback == Some(id);
        if news {
            tracing::error!(model = %name, version = %id, "not served: {reason}");
            self.tell(name, Some(id), EventKind::Failed, reason);
        }
        // A failure that may pass brings the next look forward; an older version that is to serve instead was there.
        self.reconcile(name, is_blamed || instead);
        self.refresh(name);
        self.publish();
    }

    /// Notes what serves, for a start without a repository.
    fn remember_served(&mut self, name: &ModelName, id: VersionId, digest: String) {
        let decided = self.registry.decisions(name);
        if decided.is_some_and(|decided| decided.served.get(&id) == Some(&digest)) {
            return;
        }
        let action = Action::Serve { version: id.number(), digest };
        self.remember(name, action);
    }

    pub(super) fn remember(&mut self, name: &ModelName, action: Action) {
        let at = self.loader.monitor.clock().unix();
        let cause = Cause::by("lifecycle");
        let entry = Entry { at, model: name.clone(), action, cause };
        if let Err(error) = self.registry.record(&[entry]) {
            // It serves all the same; only a start without the repository would not know.
            self.report(&format!("what serves is not remembered: {error}"));
        }
    }

    pub(super) fn retire(&mut self, retired: Vec<Arc<Version>>) {
        for version in retired {
            self.state.collector.count();
            let (name, id) = (version.parts().model.clone(), version.id());
            self.tell(&name, Some(id), EventKind::Retired, "its last requests finish");
            let stays = self.state.models.get(&name).is_some_and(|kept| kept.is_ready(id));
            let decided = self.registry.decisions(&name);
            let served = decided.is_some_and(|decided| decided.served.contains_key(&id));
            self.serving.watchdog().retire(&version);
            if decided.is_some_and(|decided| decided.unloaded) {
                self.serving.watchdog().end_runs(&name);
            }
            if !stays && served {
                self.remember(&name, Action::Retire { version: id.number() });
            }
            self.let_go(version);
        }
    }

    fn freed(&mut self, freed: &Freed) {
        let (model, id) = (&freed.model, freed.id);
        self.budget.freed(freed.cost_bytes);
        self.tell(model, Some(id), EventKind::Freed, "");
        let unloaded = self.registry.decisions(model).is_some_and(|decided| decided.unloaded);
        if let Some(kept) = self.state.models.get_mut(model) {
            kept.freed(id, unloaded);
            if self.refresh(model) {
                self.publish();
            }
        }
    }

    /// Brings the published form of a model in line; gives whether it differs from before.
    pub(super) fn refresh(&mut self, name: &ModelName) -> bool {
        let route_override = self.policy(name).route_override;
        let evidence = self.state.evidence.get(name);
        let Some(kept) = self.state.models.get_mut(name) else { return false };
        kept.answered = kept.answering().map(|(id, _)| id);
        let decisions = self.registry.decisions(name);
        let unreadable = self.state.unreadable.as_ref();
        let unreadable = unreadable.filter(|_| !decisions.is_some_and(is_uploaded));
        let model = Model {
            name: name.clone(),
            recorder: self.loader.monitor.model(name),
            versions: kept.entries(decisions.is_some_and(|decided| decided.unloaded)),
            default: kept.meant(),
            aliases: decisions.map(|decided| decided.aliases.clone()).unwrap_or_default(),
            pinned: decisions.and_then(pinned),
            problem: kept.problem.as_ref().or(unreadable).or(kept.withheld.as_ref()).cloned(),
            traffic: decisions.and_then(|decided| kept.traffic(decided, evidence)),
            traffic_revision: decisions.map_or(0, |decided| decided.traffic_revision),
            route_override,
            held_back: kept.plan.held.last().copied(),
        };
        let before = self.state.published.get(name);
        if before.is_some_and(|before| **before == model) {
            return false;
        }
        let answered = before.and_then(|before| before.answering());
        if let (Some(before), Some(now)) = (answered, model.answering())
            && !Arc::ptr_eq(before, now)
        {
            self.loader.monitor.upkeep().swapped(name);
        }
        self.state.published.insert(name.clone(), Arc::new(model));
        true
    }

    /// Publishes what is kept as the table of every request from now on.
    pub(super) fn publish(&self) {
        let state = &self.state;
        let table =
            Table::new(state.published.clone(), state.complete, Arc::clone(&state.required));
        let table = table.without_repository(state.unreadable.clone());
        let before = self.serving.publish(table);
        self.loader.monitor.upkeep().published();
        self.reclaim.take(Retired::Table(before));
    }
}

pub(super) fn trouble<'a>(listing: &'a Listing, what: &str) -> Option<&'a str> {
    let problem = listing.problems.iter().find(|problem| problem.what == what);
    problem.map(|problem| problem.reason.as_str())
}

fn pinned(decisions: &Decisions) -> Option<String> {
    if decisions.unloaded {
        return Some("unloaded by an operator".to_owned());
    }
    let pinned =
        decisions.pinned.map(|version| format!("pinned to version {version} by an operator"));
    let uploaded = || {
        let serves = "uploaded, in place of what the repository has; a load without parameters goes back to that";
        decisions.uploaded.as_ref().map(|_| serves.to_owned())
    };
    pinned.or_else(uploaded)
}

/// Logs that a version is ready, and which one answered before.
pub(super) fn log_ready(version: &Version, before: Option<VersionId>) {
    let parts = version.parts();
    let follows = before.filter(|before| *before != version.id());
    tracing::info!(
        model = %parts.model,
        version = %version.id(),
        after = follows.map(VersionId::number),
        engine = parts.engine,
        sessions = version.sessions(),
        load_ms = u64::try_from(parts.load.as_millis()).unwrap_or(u64::MAX),
        "ready"
    );
    for note in &parts.notes {
        tracing::warn!(model = %parts.model, version = %version.id(), "{note}");
    }
}

/// The text of the event that a version is ready: the time of its load, and its notes.
pub(super) fn ready_detail(version: &Version) -> String {
    let parts = version.parts();
    let loaded = format!("loaded in {:?}", parts.load);
    std::iter::once(&loaded).chain(&parts.notes).map(String::as_str).collect::<Vec<_>>().join("; ")
}

/// Versions of a model that the content store has, for a look without the repository.
fn stored(decisions: &Decisions) -> BTreeMap<VersionId, Digest> {
    let stored = decisions.served.iter().chain(&decisions.released);
    stored.filter_map(|(id, digest)| Some((*id, Digest::parse(digest)?))).collect()
}
