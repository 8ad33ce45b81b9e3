//! What operators want of the keeper: done at once, or waited for while a version is loaded.
//!
//! A decision about a version takes effect only once that version is loaded: until then it is on trial, wanted
//! beside what serves. So a rollback to something that cannot be served changes nothing.

use std::{collections::VecDeque, sync::Arc};

use crate::{
    model::{Alias, ModelName, VersionId},
    monitor::EventKind,
    registry::{Action, Cause, Entry, TrafficChange},
    serve::Evidence,
};

use super::{
    Done, OnNewVersion, Operation, OperationError, Reply,
    keeper::Keeper,
    kept::{Kept, KeptVersion},
};

/// An operator who waits for a load.
pub(super) struct Waiting {
    pub(super) model: ModelName,
    goal: Goal,
    asked: Asked,
    reply: Reply,
}

/// The circumstances of an operation.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) cause: Cause,
    /// True if a version may answer that the clients of the one before cannot use.
    pub(super) signature_may_change: bool,
    /// True if it is recorded only once it is done: a rollback.
    pub(super) acts_first: bool,
    /// The evidence of requests from then on for the rollout that asks; `None` in it ends it.
    pub(super) evidence: Option<(String, Option<Arc<Evidence>>)>,
}

pub(super) enum Goal {
    /// The model's default version serves.
    Serve,
    /// These versions are loaded; they stay until something is decided.
    Prepare(Vec<VersionId>),
    /// These versions are loaded, to decide this about them; the first is what it comes to.
    Decide(Vec<VersionId>, Box<Action>),
    /// The repository decides again, and its newest version cannot be served, for this reason: an older one serves.
    Fallback(String),
}

impl Keeper {
    /// Does what an operator wants, or begins it and keeps who waits for it.
    pub(super) fn operate(
        &mut self,
        model: &ModelName,
        operation: &Operation,
        mut asked: Asked,
        reply: Reply,
    ) {
        if let (Operation::Load, Some(blame)) = (operation, &self.loader.blame) {
            blame.forgive(model);
        }
        if matches!(operation, Operation::Load) && self.decisions(model).uploaded.is_some() {
            self.stage(model, None, (asked, reply), (None, None));
            return;
        }
        match self.begin(model, operation, &mut asked) {
            Ok(Some(goal)) => {
                self.state.waiting.push(Waiting { model: model.clone(), goal, asked, reply });
                self.state.jobs.rank_again();
                if self.reconcile(model, true) {
                    self.publish();
                }
            }
            Ok(None) => {
                // Whoever asked may be gone; it is done all the same.
                let _ = reply.send(Ok(self.done(None, None)));
            }
            Err(error) => {
                let _ = reply.send(Err(error));
            }
        }
    }

    fn done(&self, version: Option<VersionId>, note: Option<String>) -> Done {
        Done { version, durable: self.registry.is_durable(), note }
    }

    /// Does what can be done at once; gives what has to be waited for.
    fn begin(
        &mut self,
        model: &ModelName,
        operation: &Operation,
        asked: &mut Asked,
    ) -> Result<Option<Goal>, OperationError> {
        // What a rollout decides must not wait for the repository.
        let looks = match operation {
            Operation::Unload => false,
            Operation::Split(change) => change.rollout.is_none(),
            _ => true,
        };
        if looks {
            self.look(Some(model), true);
        }
        let known = self.state.models.contains_key(model);
        if let (false, Some(unreadable)) = (known, &self.state.unreadable) {
            return Err(failed(model, unreadable));
        }
        let before = self.served_before(model);
        let kept = self.state.models.get_mut(model);
        let kept = kept.ok_or_else(|| OperationError::Unknown(model.to_string()))?;
        match operation {
            Operation::Load => {
                // Tries again what failed.
                kept.versions
                    .values_mut()
                    .filter(|version| !version.reason.is_empty())
                    .for_each(KeptVersion::forget);
                let level = kept.listed.keys().next_back().map(|id| id.number());
                let holds = self.policy(model).on_new_version != OnNewVersion::Serve;
                self.release(model, Action::Load { level: level.filter(|_| holds) }, asked)
            }
            Operation::Unpin => self.release(model, Action::Unpin, asked),
            Operation::Unload => self.unload(model, asked).map(|()| None),
            Operation::Rollback { to } => {
                // The way back is open in an emergency.
                asked.signature_may_change |= to.is_none() && before.is_some();
                let to = target(model, kept, to.or(before))?;
                retry_failed(kept, to);
                Ok(Some(Goal::Decide(vec![to], Box::new(Action::Pin { version: to.number() }))))
            }
            Operation::SetAlias { alias, version } => {
                let to = target(model, kept, Some(*version))?;
                retry_failed(kept, to);
                let (alias, version) = (alias.as_str().to_owned(), version.number());
                Ok(Some(Goal::Decide(vec![to], Box::new(Action::SetAlias { alias, version }))))
            }
            Operation::Split(change) => self.begin_split(model, change, asked).map(Some),
            Operation::Prepare { versions } => {
                for version in versions {
                    target(model, kept, Some(*version))?;
                    retry_failed(kept, *version);
                }
                kept.prepared = versions.iter().copied().collect();
                Ok(Some(Goal::Prepare(versions.clone())))
            }
            Operation::RemoveAlias { alias } => {
                self.remove_alias(model, alias, asked).map(|()| None)
            }
        }
    }

    fn unload(&mut self, model: &ModelName, asked: &Asked) -> Result<(), OperationError> {
        self.write(model, Action::Unload, &asked.cause)?;
        self.state.jobs.retain(|job| job.model != *model);
        self.folder.put_over(model, None);
        self.look_soon();
        if self.reconcile(model, false) {
            self.publish();
        }
        // Also those of versions that another had taken the place of.
        self.serving.watchdog().end_runs(model);
        Ok(())
    }

    fn remove_alias(
        &mut self,
        model: &ModelName,
        alias: &Alias,
        asked: &mut Asked,
    ) -> Result<(), OperationError> {
        if !self.decisions(model).aliases.contains_key(alias) {
            let (model, alias) = (model.clone(), alias.to_string());
            return Err(OperationError::UnknownAlias { model, alias });
        }
        let action = Action::RemoveAlias { alias: alias.as_str().to_owned() };
        self.check_clients(model, &action, asked)?;
        self.write(model, action, &asked.cause)?;
        if self.reconcile(model, true) {
            self.publish();
        }
        Ok(())
    }

    /// Gives a model back to the repository, once the version is loaded that is to answer from then on.
    fn release(
        &mut self,
        model: &ModelName,
        action: Action,
        asked: &Asked,
    ) -> Result<Option<Goal>, OperationError> {
        if !self.changes(model, &action) {
            return Ok(Some(Goal::Serve));
        }
        let after = self.decisions(model).after(&action);
        let policy = self.policy(model);
        let kept = self.state.models.get_mut(model);
        let default = kept.and_then(|kept| {
            let default = kept.plan_for(after, policy)?.default?;
            // What was never loaded is, where clients rely on something that it must suit.
            let known = kept.signature(default).is_some() || kept.relied_on().is_none();
            if known && kept.versions.get(&default).is_some_and(KeptVersion::rests) {
                return None;
            }
            retry_failed(kept, default);
            Some(default)
        });
        let Some(default) = default else {
            // Nothing will answer whatever is decided, or it is loaded when it is asked for.
            self.check_clients(model, &action, asked)?;
            self.write(model, action, &asked.cause)?;
            return Ok(Some(Goal::Serve));
        };
        Ok(Some(Goal::Decide(vec![default], Box::new(action))))
    }

    /// Whether a decision is worth a record. To clear a pin always is: somebody wanted it so.
    fn changes(&self, model: &ModelName, action: &Action) -> bool {
        let decided = self.decisions(model);
        !matches!(action, Action::Load { .. }) || decided.after(action) != decided
    }

    /// Writes down what is done at once.
    fn write(
        &mut self,
        model: &ModelName,
        action: Action,
        cause: &Cause,
    ) -> Result<(), OperationError> {
        let (what, version) = (action.name(), action.version());
        let at = self.loader.monitor.clock().unix();
        let entry = Entry { at, model: model.clone(), action, cause: cause.clone() };
        self.registry.record(&[entry])?;
        self.decided(model, version, what, cause);
        Ok(())
    }

    pub(super) fn decided(
        &self,
        model: &ModelName,
        version: Option<VersionId>,
        what: &str,
        cause: &Cause,
    ) {
        let actor = &cause.actor;
        tracing::info!(%model, version = version.map(VersionId::number), %actor, reason = cause.reason, "{what}");
        self.tell(model, version, EventKind::Decided, &format!("{what} by {actor}"));
    }

    /// Answers operators whose loads have ended.
    pub(super) fn conclude(&mut self) {
        let mut waiting = VecDeque::from(std::mem::take(&mut self.state.waiting));
        while let Some(next) = waiting.pop_front() {
            // What is decided about one version waits for no other.
            let pending = match &next.goal {
                Goal::Serve | Goal::Fallback(_) => self.is_busy(&next.model),
                Goal::Prepare(versions) | Goal::Decide(versions, _) => {
                    versions.iter().any(|version| self.is_pending(&next.model, *version))
                }
            };
            if pending {
                self.state.waiting.push(next);
            } else {
                waiting.extend(self.conclude_one(next));
            }
        }
    }

    /// Answers an operator; gives one who has more to wait for.
    fn conclude_one(&mut self, waiting: Waiting) -> Option<Waiting> {
        let model = waiting.model.clone();
        let mut note = None;
        let answer = match waiting.goal {
            Goal::Serve => self.verdict(&model, None),
            Goal::Fallback(reason) => {
                let kept = self.state.models.get(&model);
                let answering = kept.and_then(Kept::answering).map(|(id, _)| id);
                let answer = answering.ok_or_else(|| failed(&model, &reason));
                note = Some(reason);
                answer
            }
            Goal::Prepare(versions) => {
                let ready = self.all_ready(&model, &versions);
                if ready.is_err()
                    && let Some(kept) = self.state.models.get_mut(&model)
                {
                    kept.prepared.clear();
                }
                if self.reconcile(&model, true) {
                    self.publish();
                }
                ready
            }
            Goal::Decide(versions, action) => {
                let releases = matches!(*action, Action::Load { .. } | Action::Unpin);
                let ready = self.all_ready(&model, &versions);
                // An unpin is not in vain where only the newest version is broken.
                let fallback = self.fallback_after(&model, &action).filter(|_| ready.is_err());
                let failure = ready.as_ref().err().map(|error| match error {
                    OperationError::Failed { reason, .. } => reason.clone(),
                    other => other.to_string(),
                });
                let decided = fallback
                    .map_or(ready, Ok)
                    .and_then(|version| self.decide(&model, version, *action, &waiting.asked));
                // Whatever came of it, the trial is over.
                if self.reconcile(&model, true) {
                    self.publish();
                }
                if releases && decided.is_ok() && (failure.is_some() || self.is_busy(&model)) {
                    // The model's other versions come too.
                    let goal = failure.map_or(Goal::Serve, Goal::Fallback);
                    return Some(Waiting { goal, ..waiting });
                }
                decided
            }
        };
        // Whoever asked may be gone.
        let _ = waiting.reply.send(answer.map(|version| self.done(Some(version), note)));
        None
    }

    /// The version that would answer after an unpin, while the one that should cannot be served.
    fn fallback_after(&self, model: &ModelName, action: &Action) -> Option<VersionId> {
        if !matches!(action, Action::Unpin) {
            return None;
        }
        let after = self.decisions(model).after(action);
        self.state.models.get(model)?.plan_for(after, self.policy(model))?.fallback
    }

    /// The first of these versions, if all of them answer.
    fn all_ready(
        &self,
        model: &ModelName,
        versions: &[VersionId],
    ) -> Result<VersionId, OperationError> {
        let mut ready = versions.iter().map(|id| self.verdict(model, Some(*id)));
        match (ready.find(Result::is_err), versions.first()) {
            (Some(error), _) => error,
            (None, Some(first)) => Ok(*first),
            // Nothing was to be waited for.
            (None, None) => {
                let kept = self.state.models.get(model);
                let meant = kept.and_then(Kept::meant).or_else(|| self.decisions(model).pinned);
                Ok(meant.unwrap_or(VersionId::new(0)))
            }
        }
    }

    /// Carries out a decision about a version that is loaded.
    fn decide(
        &mut self,
        model: &ModelName,
        version: VersionId,
        action: Action,
        asked: &Asked,
    ) -> Result<VersionId, OperationError> {
        self.check_clients(model, &action, asked)?;
        // A rollout that ends, or its last record, says nothing about what is being prepared for the next one.
        let splits = match &action {
            Action::Rollout { traffic, .. } => matches!(traffic, TrafficChange::Set(_)),
            _ => true,
        };
        if let Some(kept) = self.state.models.get_mut(model).filter(|_| splits) {
            kept.prepared.clear();
        }
        let cause = &asked.cause;
        let evidence = asked.evidence.clone();
        // A full disk must not stop a rollback: it acts, and is recorded at once after.
        let acts_first = matches!(action, Action::Pin { .. }) || asked.acts_first;
        if !acts_first {
            if self.changes(model, &action) {
                self.write(model, action, cause)?;
            }
            self.follow_evidence(model, evidence);
            return Ok(version);
        }
        self.follow_evidence(model, evidence);
        let what = action.name();
        let at = self.loader.monitor.clock().unix();
        let entry = Entry { at, model: model.clone(), action, cause: cause.clone() };
        let recorded = self.registry.act(&entry);
        if self.reconcile(model, true) {
            self.publish();
        }
        self.decided(model, Some(version), what, cause);
        recorded.map_err(|error| OperationError::NotDurable { reason: error.reason })?;
        Ok(version)
    }

    fn follow_evidence(
        &mut self,
        model: &ModelName,
        evidence: Option<(String, Option<Arc<Evidence>>)>,
    ) {
        match evidence {
            Some((id, Some(evidence))) => {
                self.state.evidence.insert(model.clone(), (id, evidence));
            }
            Some((_, None)) => {
                self.state.evidence.remove(model);
            }
            None => {}
        }
    }

    /// Refuses a decision after which clients would fail, unless whoever asks accepts that.
    fn check_clients(
        &mut self,
        model: &ModelName,
        action: &Action,
        asked: &Asked,
    ) -> Result<(), OperationError> {
        if let Some((id, reason)) = self.decision_breaks(model, action) {
            if !asked.signature_may_change {
                return Err(failed(model, &format!("version {id}: {reason}")));
            }
            tracing::warn!(%model, version = %id, "decided for although {reason}");
        }
        let (policy, after) = (self.policy(model), self.decisions(model).after(action));
        let about_default =
            matches!(action, Action::Load { .. } | Action::Pin { .. } | Action::Unpin);
        if let Some(kept) = self.state.models.get_mut(model).filter(|_| about_default) {
            kept.accepted = kept.plan_for(after, policy).and_then(|plan| plan.default);
        }
        Ok(())
    }

    /// The newest version that served, is older than what answers, and is still there.
    fn served_before(&self, model: &ModelName) -> Option<VersionId> {
        let kept = self.state.models.get(model)?;
        let (answering, _) = kept.answering()?;
        let decided = self.registry.decisions(model)?;
        let served = decided.served.keys().chain(decided.released.keys());
        served.filter(|id| **id < answering && kept.listed.contains_key(id)).max().copied()
    }

    /// Whether a model's default version, or this one, answers.
    fn verdict(
        &self,
        model: &ModelName,
        version: Option<VersionId>,
    ) -> Result<VersionId, OperationError> {
        let kept = self.state.models.get(model);
        let kept = kept.ok_or_else(|| OperationError::Unknown(model.to_string()))?;
        // What is meant by its number may be loaded without the repository.
        if let Some(unreadable) = self.state.unreadable.as_ref().filter(|_| version.is_none()) {
            return Err(failed(model, unreadable));
        }
        if let Some(problem) = &kept.problem {
            return Err(failed(model, problem));
        }
        // An older version that serves on does not make up for the one that was meant.
        let Some(id) = version.or(kept.plan.default) else {
            return Err(failed(model, "it has no versions"));
        };
        match kept.versions.get(&id) {
            Some(meant) if meant.version.is_some() && meant.reason.is_empty() => Ok(id),
            // Who asks for a version has it loaded; what is to serve by default may sleep until it is asked for.
            Some(meant) if version.is_none() && meant.rests() => Ok(id),
            Some(meant) => Err(failed(model, &format!("version {id}: {}", meant.reason))),
            None => Err(failed(model, "it is gone from the repository")),
        }
    }
}

impl Waiting {
    /// True if it accepts any version of this model, whatever its signature.
    pub(super) fn accepts(&self, model: &ModelName) -> bool {
        self.asked.signature_may_change && matches!(self.goal, Goal::Serve) && self.model == *model
    }

    /// The versions that are loaded for it.
    pub(super) fn trials(&self) -> &[VersionId] {
        match &self.goal {
            Goal::Prepare(versions) | Goal::Decide(versions, _) => versions,
            Goal::Serve | Goal::Fallback(_) => &[],
        }
    }
}

pub(super) fn failed(model: &ModelName, reason: &str) -> OperationError {
    OperationError::Failed { model: model.clone(), reason: reason.to_owned() }
}

/// The version that an operation is about, if the repository has it; without one, the next older than what answers.
pub(super) fn target(
    model: &ModelName,
    kept: &Kept,
    to: Option<VersionId>,
) -> Result<VersionId, OperationError> {
    let there = || kept.listed.keys().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if let Some(to) = to {
        return kept.listed.contains_key(&to).then_some(to).ok_or_else(|| {
            OperationError::UnknownVersion { model: model.clone(), version: to, there: there() }
        });
    }
    let answering = kept.answering().map(|(id, _)| id).or(kept.plan.default);
    let older = kept.listed.keys().rfind(|id| answering.is_some_and(|answering| **id < answering));
    older
        .copied()
        .ok_or_else(|| OperationError::NothingOlder { model: model.clone(), there: there() })
}

pub(super) fn retry_failed(kept: &mut Kept, id: VersionId) {
    if let Some(version) = kept.versions.get_mut(&id).filter(|version| version.version.is_none()) {
        version.forget();
    }
}
