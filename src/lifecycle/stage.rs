//! Changes of what a model consists of: an upload takes the repository's place, or the repository an upload's.
//!
//! All versions that would serve are loaded aside, beside what serves. Then they take over together: recorded, and
//! published with one table. Where anything fails, nothing has changed.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use crate::{
    model::{ModelDescription, ModelName, VersionId},
    monitor::EventKind,
    registry::{Action, Cause, Decisions, Entry},
    serve::Version,
    source::{Digest, Hold, ListedModel, Override, SourceError, StoreError},
};

use super::{
    Done, OnNewVersion, OperationError, Reply, UploadPlace,
    clients::breaks_clients,
    crew::{Job, Loaded, Origin},
    keeper::{Keeper, log_ready, ready_detail, trouble},
    kept::KeptVersion,
    operate::{Asked, failed},
    plan::Plan,
};

/// What a request brought, on its way to the keeper.
pub(super) struct Upload {
    pub(super) model: ModelName,
    pub(super) instead: Override,
    pub(super) cause: Cause,
    pub(super) place: UploadPlace,
    pub(super) hold: Option<Hold>,
    pub(super) reply: Reply,
}

/// A change that is being loaded.
pub(super) struct Staged {
    /// Tells its loads from others.
    number: u64,
    model: ModelName,
    /// What is to be served in place of the repository's; `None` for the repository's own.
    instead: Option<Override>,
    listed: ListedModel,
    description: Arc<ModelDescription>,
    plan: Plan,
    /// What was decided when it began.
    decided: Decisions,
    todo: VecDeque<Job>,
    loaded: BTreeMap<VersionId, Version>,
    asked: Asked,
    reply: Reply,
    /// Given back when this is over.
    place: Option<UploadPlace>,
    /// Keeps what was put into the content store for it until it is recorded.
    hold: Option<Hold>,
}

/// What to load aside next.
pub(super) enum Next {
    /// This.
    Job(Box<Job>),
    /// There is no room for it yet.
    Later,
    /// Nothing is staged.
    Nothing,
}

impl Staged {
    /// What the versions cost that were loaded already.
    fn cost_bytes(&self) -> u64 {
        self.loaded.values().map(Version::cost_bytes).fold(0, u64::saturating_add)
    }
}

impl Keeper {
    /// Serves again what was uploaded before the process began.
    pub(super) fn reinstate(&mut self) {
        let uploaded: Vec<_> = (self.registry.models())
            .filter_map(|(name, decided)| Some((name.clone(), decided.uploaded.clone()?)))
            .collect();
        for (name, uploaded) in uploaded {
            let digest = |text: &str| Digest::parse(text).unwrap_or_else(|| Digest::of(b""));
            let config = digest(&uploaded.config);
            let versions = uploaded.versions.iter().map(|(id, text)| (*id, digest(text))).collect();
            let bytes_max = self.loader.artifact_bytes_max;
            let kept = match &self.loader.store {
                Some(store) => Override::kept(store, &config, &versions, bytes_max),
                None => Err(SourceError::Store {
                    path: "what was uploaded".to_owned(),
                    source: Box::new(StoreError::Missing(config)),
                }),
            };
            // The repository's model must not take the place of an acknowledged upload in silence.
            let instead = kept.unwrap_or_else(|error| {
                tracing::error!(model = %name, "what was uploaded cannot be served: {}", error.chain());
                Override::broken(error)
            });
            self.folder.put_over(&name, Some(instead));
        }
    }

    /// Begins to serve what a request brought.
    pub(super) fn upload(&mut self, upload: Upload) {
        let Upload { model, instead, cause, place, hold, reply } = upload;
        let asked = Asked { cause, signature_may_change: false, acts_first: false, evidence: None };
        self.stage(&model, Some(instead), (asked, reply), (Some(place), hold));
    }

    /// Begins to serve something else, or the repository's own again.
    pub(super) fn stage(
        &mut self,
        model: &ModelName,
        instead: Option<Override>,
        (asked, reply): (Asked, Reply),
        (place, hold): (Option<UploadPlace>, Option<Hold>),
    ) {
        let (listed, description, plan) = match self.prospect(model, instead.as_ref()) {
            Ok(prospect) => prospect,
            Err(error) => {
                drop(place);
                // Whoever asked may be gone; nothing was changed.
                let _ = reply.send(Err(error));
                return;
            }
        };
        let number = self.state.staged_so_far;
        self.state.staged_so_far += 1;
        let before = |id: &VersionId| self.state.models.get(model)?.before(*id);
        let job = |id: &VersionId| {
            let listed = listed.versions[id].clone();
            let origin = Origin::Repository(listed, Arc::clone(&description));
            Job { staged: Some(number), before: before(id), ..Job::new(model, *id, origin) }
        };
        let todo = plan.wanted.iter().map(job).collect();
        self.state.staged.push_back(Staged {
            number,
            model: model.clone(),
            instead,
            decided: self.decisions(model),
            listed,
            description,
            plan,
            todo,
            loaded: BTreeMap::new(),
            asked,
            reply,
            place,
            hold,
        });
    }

    /// What would be there and what of it would serve.
    fn prospect(
        &self,
        model: &ModelName,
        instead: Option<&Override>,
    ) -> Result<(ListedModel, Arc<ModelDescription>, Plan), OperationError> {
        if instead.is_some() && self.registry.is_durable() && self.loader.store.is_none() {
            return Err(OperationError::NotKept {
                reason: "there is no content store; the log of the start says why".to_owned(),
            });
        }
        let listed = if let Some(Override::Model(listed)) = instead {
            (**listed).clone()
        } else {
            let mut folder = self.folder.clone();
            folder.put_over(model, instead.cloned());
            let mut listing = folder.list().map_err(|error| {
                failed(model, &format!("the repository cannot be read: {}", error.chain()))
            })?;
            listing.models.remove(model).ok_or_else(|| match trouble(&listing, model) {
                Some(reason) => failed(model, reason),
                None => OperationError::Unknown(model.to_string()),
            })?
        };
        let description = match &listed.description {
            Ok(description) => Arc::new(description.clone()),
            Err(error) => return Err(failed(model, &error.chain())),
        };
        let there: BTreeSet<VersionId> = listed.versions.keys().copied().collect();
        let policy = self.policy(model);
        let mut decisions = self.decisions(model);
        decisions.unloaded = false;
        decisions.traffic = None;
        if policy.on_new_version != OnNewVersion::Serve {
            decisions.level = there.last().copied();
        }
        let plan = Plan::of(&there, &description.version_policy, &decisions, policy.on_new_version);
        if plan.wanted.is_empty() {
            let there: Vec<_> = there.iter().map(ToString::to_string).collect();
            let reason = format!(
                "of its versions ({}) none would serve; look at its version_policy, and at a pin, which `tidegate models \
                 unpin` clears",
                there.join(", ")
            );
            return Err(failed(model, &reason));
        }
        Ok((listed, description, plan))
    }

    /// The next load of a change, once there is room for it.
    pub(super) fn next_staged(&mut self) -> Next {
        while let Some(staged) = self.state.staged.front_mut() {
            let aside = staged.cost_bytes();
            // A change whose loads have all ended is gone from here.
            let Some(job) = staged.todo.pop_front() else { return Next::Nothing };
            match self.admit_aside(&job, aside) {
                Ok(true) => return Next::Job(Box::new(job)),
                Ok(false) => {
                    if let Some(staged) = self.state.staged.front_mut() {
                        staged.todo.push_front(job);
                    }
                    return Next::Later;
                }
                Err(reason) => {
                    if let Some(staged) = self.state.staged.pop_front() {
                        let failed = failed(&job.model, &format!("version {}: {reason}", job.id));
                        self.conclude_staged(staged, Err(failed));
                    }
                }
            }
        }
        Next::Nothing
    }

    /// A load of a change has ended: once all have, the change takes effect.
    pub(super) fn staged_ended(&mut self, number: u64, job: &Job, loaded: Loaded) {
        let outcome = loaded.as_ref().map_or_else(|failure| failure.code().as_str(), |_| "ok");
        self.loader.monitor.upkeep().loaded(&job.model, outcome);
        let at = self.state.staged.iter().position(|staged| staged.number == number);
        let Some(at) = at else {
            debug_assert!(false, "a change is there until its loads have ended");
            return;
        };
        let loaded = loaded.map_err(|failure| failure.to_string());
        let aside = self.state.staged[at].cost_bytes();
        let loaded = loaded.and_then(|version| {
            self.check_loaded(job, version, aside).map_err(|(_, reason, _)| reason)
        });
        let staged = &mut self.state.staged[at];
        let problem = match loaded {
            Ok(version) => {
                staged.loaded.insert(job.id, version);
                if !staged.todo.is_empty() {
                    return;
                }
                None
            }
            Err(reason) => Some(format!("version {}: {reason}", job.id)),
        };
        let Some(mut staged) = self.state.staged.remove(at) else { return };
        let done = match problem {
            Some(problem) => Err(failed(&staged.model, &problem)),
            None => self.take_over(&mut staged),
        };
        self.conclude_staged(staged, done);
    }

    /// Lets go of what did not take over, and answers.
    fn conclude_staged(&mut self, staged: Staged, done: Result<Done, OperationError>) {
        let Staged { model, loaded, reply, place, hold, .. } = staged;
        if let Err(error) = &done {
            tracing::error!(%model, "nothing was changed: {error}");
            self.tell(&model, None, EventKind::Failed, &error.to_string());
        }
        for version in loaded.into_values() {
            self.let_go(Arc::new(version));
        }
        // Whoever hears of it may upload again.
        drop((place, hold));
        // Whoever asked may be gone; it is done all the same.
        let _ = reply.send(done);
    }

    /// The loaded versions take over, all at once.
    fn take_over(&mut self, staged: &mut Staged) -> Result<Done, OperationError> {
        let model = staged.model.clone();
        self.may_take_over(staged)?;
        self.registry.record(&self.entries_of(staged))?;
        let what = if staged.instead.is_some() { "upload" } else { "load" };
        self.decided(&model, None, what, &staged.asked.cause);
        if staged.instead.is_some() && !self.registry.is_durable() {
            tracing::warn!(%model, "what was uploaded is in memory only and ends with this process; set state.path");
        }
        self.folder.put_over(&model, staged.instead.take());
        self.state.jobs.retain(|job| job.model != model);
        let kept = self.state.models.entry(model.clone()).or_default();
        kept.listed.clone_from(&staged.listed.versions);
        kept.description = Some(Arc::clone(&staged.description));
        kept.problem = None;
        kept.plan = std::mem::take(&mut staged.plan);
        kept.versions.values_mut().for_each(|version| version.loading = None);
        let mut retired = Vec::new();
        let mut ready = Vec::new();
        for (id, version) in std::mem::take(&mut staged.loaded) {
            log_ready(&version, kept.answering().map(|(id, _)| id));
            ready.push((id, ready_detail(&version)));
            let entry = kept.versions.entry(id).or_insert_with(|| KeptVersion::unavailable(""));
            let looked = kept.listed.get(&id).map(|listed| listed.fingerprint);
            retired.extend(entry.succeed(looked, version));
            entry.loaded_at = self.loader.monitor.clock().unix();
        }
        retired.extend(kept.follow_plan(false));
        let version = kept.plan.default;
        self.refresh(&model);
        self.publish();
        for (id, detail) in ready {
            self.tell(&model, Some(id), EventKind::Ready, &detail);
        }
        self.retire(retired);
        self.proven(&model);
        // The repository may have changed meanwhile.
        self.look_soon();
        Ok(Done { version, durable: self.registry.is_durable(), note: None })
    }

    /// Whether the loaded versions may take over.
    fn may_take_over(&self, staged: &Staged) -> Result<(), OperationError> {
        let model = &staged.model;
        let now = self.decisions(model);
        let then = &staged.decided;
        let same = now.unloaded == then.unloaded
            && (now.pinned, now.level) == (then.pinned, then.level)
            && now.aliases == then.aliases;
        if !same {
            return Err(failed(model, "something else was decided about it meanwhile; try again"));
        }
        let keeps = staged.instead.is_some() && self.registry.is_durable();
        for version in staged.loaded.values() {
            if keeps && version.parts().identity.is_none() {
                let reason = "the content store did not take it; the log says why".to_owned();
                return Err(OperationError::NotKept { reason });
            }
            let Some(kept) = self.state.models.get(model) else { continue };
            let (default, mut policy) = (staged.plan.default, self.policy(model));
            policy.signature_may_change |= staged.asked.signature_may_change;
            // An upload cannot say that it may.
            let by_load = staged.instead.is_none();
            if let Some(reason) = breaks_clients(kept, default, version, policy, by_load) {
                return Err(failed(model, &reason));
            }
        }
        Ok(())
    }

    /// The records of a change: what was decided, and what serves because of it.
    fn entries_of(&self, staged: &Staged) -> Vec<Entry> {
        let at = self.loader.monitor.clock().unix();
        let entry = |action, cause: &Cause| Entry {
            at,
            model: staged.model.clone(),
            action,
            cause: cause.clone(),
        };
        let holds = self.policy(&staged.model).on_new_version != OnNewVersion::Serve;
        let level = staged.listed.versions.keys().next_back().map(|id| id.number());
        let mut entries =
            vec![entry(Action::Load { level: level.filter(|_| holds) }, &staged.asked.cause)];
        if let Some(instead) = &staged.instead {
            let versions = instead.versions().into_iter();
            let action = Action::Upload {
                config: Digest::of(&instead.config()).to_string(),
                versions: versions
                    .map(|(id, digest)| (id.to_string(), digest.to_string()))
                    .collect(),
            };
            entries.push(entry(action, &staged.asked.cause));
        }
        for (id, version) in &staged.loaded {
            if let Some(digest) = version.parts().identity.clone() {
                let action = Action::Serve { version: id.number(), digest };
                entries.push(entry(action, &Cause::by("lifecycle")));
            }
        }
        entries
    }
}
