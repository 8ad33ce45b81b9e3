//! Changes of how a model's requests are split: what an operator or a rollout wants becomes the split that is recorded.
//!
//! Every version of a split is loaded before the split takes effect, as with any decision (`operate`).

use crate::{
    model::{ArmName, ArmSpec, ModelName, Split, StickyBy, TrafficSource, TrafficSpec, VersionId},
    registry::{Action, Decisions, TrafficChange},
};

use super::{
    OperationError, RolloutStep, SplitChange,
    keeper::Keeper,
    operate::{Asked, Goal, failed, retry_failed, target},
};

impl Keeper {
    /// Begins to change a split; what is left to wait for are its versions.
    pub(super) fn begin_split(
        &mut self,
        model: &ModelName,
        change: &SplitChange,
        asked: &mut Asked,
    ) -> Result<Goal, OperationError> {
        let decided = self.decisions(model);
        let current = decided.traffic_revision;
        if change.if_revision.is_some_and(|revision| revision != current) {
            return Err(OperationError::Revision { model: model.clone(), current });
        }
        if decided.unloaded {
            return Err(OperationError::Unloaded(model.clone()));
        }
        let kept = self.state.models.get(model);
        let answering =
            kept.and_then(|kept| kept.relied_on().map(|(id, _)| id).or(kept.plan.default));
        let answering = answering.ok_or_else(|| failed(model, "it has no version that answers"))?;
        if let Some(rollout) = decided.traffic.as_ref().and_then(|traffic| traffic.rollout.as_ref())
        {
            let own = change.rollout.as_ref().is_some_and(|step| step.id == *rollout);
            if !own && !change.overrides {
                return Err(OperationError::InRollout {
                    model: model.clone(),
                    id: rollout.clone(),
                });
            }
        }
        let spec = change.after(&decided, answering);
        let mut spec = spec;
        let ready = |id: u64| kept.is_some_and(|kept| kept.is_ready(VersionId::new(id)));
        if let Some(spec) = &mut spec {
            spec.keep.retain(|id| ready(*id));
        }
        let versions: Vec<_> = match &spec {
            // A rollout had its versions loaded before it began, and must wait for nobody's load.
            Some(_) if change.rollout.is_some() => Vec::new(),
            Some(spec) => spec.versions().collect(),
            None => Vec::new(),
        };
        let action = match &change.rollout {
            None => Action::Split { traffic: spec },
            Some(step) => {
                asked.acts_first = step.acts_first;
                let evidence = step.evidence.clone().filter(|_| !step.is_over);
                let changes = step.is_over || evidence.is_some();
                asked.evidence = changes.then(|| (step.id.clone(), evidence));
                self.rollout(model, step, change.keeps_all(), spec, &decided)
            }
        };
        let Some(kept) = self.state.models.get_mut(model) else {
            return Err(OperationError::Unknown(model.to_string()));
        };
        for version in &versions {
            target(model, kept, Some(*version))?;
            retry_failed(kept, *version);
        }
        Ok(Goal::Decide(versions, Box::new(action)))
    }

    /// The record of a rollout's step, which is one with what it means for the split.
    fn rollout(
        &mut self,
        model: &ModelName,
        step: &RolloutStep,
        keeps: bool,
        spec: Option<TrafficSpec>,
        decided: &Decisions,
    ) -> Action {
        let traffic = match spec {
            _ if keeps => TrafficChange::Keep,
            None => TrafficChange::Clear,
            Some(spec) => TrafficChange::Set(spec),
        };
        let record = |pin| Action::Rollout {
            id: step.id.clone(),
            version: step.candidate.number(),
            record: step.record.clone(),
            traffic: traffic.clone(),
            serve: step.serve.map(VersionId::number),
            pin,
        };
        let free = record(false);
        let Some(serve) = step.serve else { return free };
        // Once the split is gone, the repository must not have another version answer.
        let mut after = decided.after(&free);
        after.traffic = None;
        let policy = self.policy(model);
        let kept = self.state.models.get(model);
        let planned = kept.and_then(|kept| kept.plan_for(after, policy)?.default);
        if planned == Some(serve) { free } else { record(true) }
    }
}

impl SplitChange {
    /// True if the split stays as it is.
    fn keeps_all(&self) -> bool {
        !self.reset
            && self.sticky.is_none()
            && self.arms.is_none()
            && self.shadow.is_none()
            && self.keep.is_none()
    }

    /// The split that this makes of what was decided.
    fn after(&self, decided: &Decisions, answering: VersionId) -> Option<TrafficSpec> {
        if self.reset {
            return None;
        }
        let before = decided.traffic.as_ref();
        let rollout = self.rollout.as_ref().map(|step| step.id.clone());
        let begins = rollout.is_some()
            && before.and_then(|before| before.rollout.as_ref()) != rollout.as_ref();
        let mut spec = before.cloned().unwrap_or_else(|| TrafficSpec {
            source: TrafficSource::Operator,
            rollout: None,
            salt: self.salt,
            sticky: StickyBy::default(),
            arms: vec![ArmSpec {
                name: ArmName::BASELINE.to_string(),
                version: answering.number(),
            }],
            runs: Split::whole().runs().collect(),
            shadow: Vec::new(),
            keep: Vec::new(),
        });
        if let Some(sticky) = self.sticky.clone().filter(|sticky| *sticky != spec.sticky) {
            (spec.sticky, spec.salt) = (sticky, self.salt);
        }
        if begins {
            // The same users must not be the guinea pigs every time.
            spec.salt = self.salt;
        }
        if let Some(arms) = &self.arms {
            let is_same = |old: &ArmSpec, name: &ArmName| old.name == name.as_str();
            let index = |name| spec.arms.iter().position(|old| is_same(old, name));
            let indexes: Vec<_> = arms.iter().map(|arm| index(&arm.name)).collect();
            let slots: Vec<_> = arms.iter().skip(1).map(|arm| arm.slots).collect();
            let split = spec.split();
            let split = if begins { Split::of(&slots) } else { split.changed(&indexes, &slots) };
            spec.runs = split.runs().collect();
            spec.arms = (arms.iter())
                .map(|arm| ArmSpec { name: arm.name.to_string(), version: arm.version.number() })
                .collect();
        }
        if let Some(shadow) = &self.shadow {
            spec.shadow.clone_from(shadow);
        }
        if let Some(keep) = &self.keep {
            spec.keep = keep.iter().map(|version| version.number()).collect();
        }
        if let Some(rollout) = rollout {
            (spec.rollout, spec.source) = (Some(rollout), TrafficSource::Rollout);
        } else {
            spec.source = TrafficSource::Operator;
            spec.rollout = spec.rollout.filter(|_| !self.forgets_rollout);
        }
        Some(spec)
    }
}
