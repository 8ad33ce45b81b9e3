//! Commands to the driver: start, order, show, freeze.
//!
//! Not here: the decisions (`course`), the loop (`driver`).

use std::{sync::Arc, time::Duration};

use crate::{
    lifecycle::{ArmChange, RolloutStep, SplitChange},
    model::{ArmName, ModelName, Moment, SLOTS, ShadowSpec, VersionId, slots_of},
    registry::Cause,
    serve::Evidence,
};

use super::{
    driver::{Driver, Run},
    handle::{Command, Reply, RolloutError, Wanted},
    policy::{Policy, PolicyDraft},
    report::Report,
    state::{Effect, Event, GuardKind, Order, OrderError, Rollout, Side, Start, State},
    store::Frozen,
};

impl Driver {
    /// Does what was asked; whoever asked may be gone.
    pub(super) fn command(&mut self, command: Command) {
        if self.must_wait(&command) {
            self.deferred.push_back(command);
            return;
        }
        match command {
            Command::Reserve(wanted, reply) => drop(reply.send(self.reserve(&wanted))),
            Command::Begin(wanted, reply) => match self.begin(&wanted) {
                Ok(id) => self.answer_later(&id, reply),
                Err(error) => drop(reply.send(Err(error))),
            },
            Command::Release(wanted, why) => self.release(&wanted, &why),
            Command::Order { id, order, cause, revision, reply } => {
                match self.order(&id, order, &cause, revision) {
                    Ok(id) => self.answer_later(&id, reply),
                    Err(error) => drop(reply.send(Err(error))),
                }
            }
            Command::Show { id, reply } => drop(reply.send(self.show(&id))),
            Command::List { model, before, limit, reply } => {
                drop(reply.send(Ok(self.list(model.as_deref(), before.as_deref(), limit))));
            }
            Command::Evidence { id, reply } => {
                let found = self.find(&id).map(|run| run.rollout.bundle());
                drop(reply.send(found));
            }
            Command::Plan { model, policy, rate, base, reply } => {
                drop(reply.send(self.plan(&model, &policy, rate, base)));
            }
            Command::Freeze { freeze, cause, reply } => {
                drop(reply.send(self.freeze(freeze, &cause)));
            }
            Command::IsFrozen(reply) => drop(reply.send(Ok(self.frozen.clone()))),
            Command::Validated { id, report, pass, why } => {
                self.hear(&id, &Event::Validated { report, pass, why });
            }
            Command::Weighed { id, weight } => self.hear(&id, &Event::Weighed(weight)),
            // The loop sees that nobody can ask any more.
            Command::Stop => self.is_stopping = true,
        }
    }

    /// True if a command is about a rollout that the keeper works for: its answer would run ahead of what is served.
    fn must_wait(&self, command: &Command) -> bool {
        let about = match command {
            Command::Reserve(wanted, _)
            | Command::Begin(wanted, _)
            | Command::Release(wanted, _) => Some(wanted.model.as_str()),
            Command::Order { id, .. }
            | Command::Show { id, .. }
            | Command::Evidence { id, .. }
            | Command::Weighed { id, .. } => Some(id.as_str()),
            Command::List { model, .. } => model.as_deref(),
            Command::Plan { .. }
            | Command::Freeze { .. }
            | Command::IsFrozen(_)
            | Command::Validated { .. }
            | Command::Stop => return false,
        };
        let is_meant = |(id, run): (&String, &Run)| {
            run.is_underway()
                && about.is_none_or(|about| id == about || run.model.as_str() == about)
        };
        self.runs.iter().any(is_meant)
    }

    /// Takes up what had to wait, in its order.
    pub(super) fn answer_deferred(&mut self) {
        for command in std::mem::take(&mut self.deferred) {
            self.command(command);
        }
    }

    /// Answers with the rollout once everything that it decided is carried out.
    fn answer_later(&mut self, id: &str, reply: Reply<Report>) {
        if let Some(run) = self.runs.get_mut(id) {
            run.answer_later(reply);
        }
        self.reply(id);
    }

    /// A rollout by its id, or the newest of a model.
    fn find(&self, id: &str) -> Result<&Run, RolloutError> {
        let newest = || self.runs.values().rev().find(|run| run.model.as_str() == id);
        self.runs.get(id).or_else(newest).ok_or_else(|| {
            RolloutError::Unknown("no such rollout; see /api/v1/rollouts".to_owned())
        })
    }

    fn show(&self, id: &str) -> Result<Report, RolloutError> {
        Ok(self.find(id)?.rollout.report(self.now()))
    }

    fn list(&self, model: Option<&str>, before: Option<&str>, limit: usize) -> Vec<Report> {
        let now = self.now();
        let runs = self.runs.iter().rev();
        let runs = runs.filter(|(id, _)| before.is_none_or(|before| id.as_str() < before));
        let runs = runs.filter(|(_, run)| model.is_none_or(|model| run.model.as_str() == model));
        // The paths of evidence are for who asks for one rollout.
        let short = |run: &Run| Report { why: None, ..run.rollout.report(now) };
        runs.take(limit).map(|(_, run)| short(run)).collect()
    }

    /// The policy of a model's rollout.
    fn policy(&self, model: &ModelName, draft: &PolicyDraft) -> Result<Policy, RolloutError> {
        let own = self.drafts.get(model).map(|(draft, _)| draft);
        let drafts: Vec<_> = std::iter::once(draft).chain(own).collect();
        Policy::from_drafts(&drafts).map_err(RolloutError::Malformed)
    }

    /// Checks whether a rollout may start, and keeps the place for it; gives the versions that must be loaded.
    fn reserve(&mut self, wanted: &Wanted) -> Result<Vec<VersionId>, RolloutError> {
        self.policy(&wanted.model, &wanted.policy)?;
        let conflict = |why: String| RolloutError::Conflict { why, current: None };
        if let Some(frozen) = &self.frozen {
            return Err(conflict(format!(
                "automation is frozen by {}: {}; `tidegate freeze --off` lets it go on",
                frozen.by, frozen.reason
            )));
        }
        if let Some(open) = self.open(&wanted.model) {
            let current = open.rollout.report(self.now());
            let why = format!(
                "rollout {} of model '{}' is {}; one at a time: wait for its end, or abort it",
                current.id,
                wanted.model,
                open.rollout.state().name()
            );
            return Err(RolloutError::Conflict { why, current: Some(Box::new(current)) });
        }
        if self.reserved.contains_key(&wanted.model) {
            return Err(conflict("a rollout of this model is just being started".to_owned()));
        }
        let baseline = self.baseline(wanted)?;
        if baseline == wanted.candidate {
            return Err(conflict(format!(
                "version {baseline} answers already; it cannot be held against itself"
            )));
        }
        let table = self.serving.table();
        let split = table.model(&wanted.model).and_then(|model| model.traffic.as_deref());
        if split.is_some_and(|split| split.spec().rollout.is_none() && split.arms().len() > 1) {
            let model = &wanted.model;
            return Err(conflict(format!(
                "an operator split its traffic; `tidegate traffic reset {model}` makes room for a rollout"
            )));
        }
        self.reserved.insert(wanted.model.clone(), wanted.candidate);
        Ok(vec![baseline, wanted.candidate])
    }

    /// The version that a candidate is held against.
    fn baseline(&self, wanted: &Wanted) -> Result<VersionId, RolloutError> {
        let table = self.serving.table();
        let model = table.model(&wanted.model);
        let model = model.ok_or_else(|| {
            RolloutError::Unknown(format!("the repository has no model '{}'", wanted.model))
        })?;
        let traffic = model.traffic.as_deref().and_then(|traffic| traffic.spec().baseline());
        let serves = traffic.or_else(|| model.standing().map(|entry| entry.id));
        match (wanted.baseline, serves) {
            (Some(named), Some(serves)) if named != serves => Err(RolloutError::Conflict {
                why: format!("version {serves} serves, not {named}; roll back to that first, or leave `baseline` out"),
                current: None,
            }),
            (_, Some(serves)) => Ok(serves),
            (_, None) => Err(RolloutError::Conflict {
                why: "no version serves that a candidate could be held against; see `tidegate models list`".to_owned(),
                current: None,
            }),
        }
    }

    fn side(&self, model: &ModelName, version: VersionId) -> Side {
        let table = self.serving.table();
        let entry = table.model(model).and_then(|model| {
            model.versions.iter().find(|entry| entry.id == version)?.version.clone()
        });
        let digest = entry.map(|version| {
            let parts = version.parts();
            parts.identity.clone().unwrap_or_else(|| parts.digest.clone())
        });
        Side { version: version.to_string(), digest: digest.unwrap_or_default() }
    }

    /// Starts a rollout whose versions are loaded; gives its id.
    fn begin(&mut self, wanted: &Wanted) -> Result<String, RolloutError> {
        self.reserved.remove(&wanted.model);
        let baseline = self.baseline(wanted)?;
        let policy = self.policy(&wanted.model, &wanted.policy)?;
        let (model, candidate) = (wanted.model.clone(), wanted.candidate);
        let sides = (self.side(&model, baseline), self.side(&model, candidate));
        if sides.1.digest.is_empty() {
            let why = format!("version {candidate} left the table meanwhile; try again");
            return Err(RolloutError::Conflict { why, current: None });
        }
        let now = self.now();
        let forbids = |run: &Run| {
            let is_own = run.model == model;
            let forbids = run.rollout.forbids(&sides.1.digest, wanted.by_itself, wanted.force, now);
            forbids.filter(|_| is_own)
        };
        if let Some(why) = self.runs.values().rev().find_map(forbids) {
            if wanted.by_itself {
                tracing::warn!(%model, version = %candidate, "no rollout: {why}");
            }
            return Err(RolloutError::Conflict { why, current: None });
        }
        let salt = [(self.random)(), (self.random)()];
        let start = Start {
            id: self.id(now),
            model: model.to_string(),
            baseline: sides.0,
            candidate: sides.1,
            policy,
            salt: format!("{:016x}{:016x}", salt[0], salt[1]),
            actor: &wanted.cause.actor,
            reason: &wanted.cause.reason,
        };
        let id = start.id.clone();
        let (rollout, effects) = Rollout::start(start, now);
        let mut run = Run::new(rollout, (model, baseline, candidate), salt);
        run.evidence = Some(Arc::new(Evidence::new(self.workers)));
        self.runs.insert(id.clone(), run);
        self.carry_out(&id, effects);
        Ok(id)
    }

    /// Returns the place of a rollout whose candidate cannot be loaded; one that began by itself is recorded as
    /// failed.
    fn release(&mut self, wanted: &Wanted, why: &str) {
        self.reserved.remove(&wanted.model);
        if !wanted.by_itself {
            return;
        }
        let (Ok(baseline), Ok(policy)) =
            (self.baseline(wanted), self.policy(&wanted.model, &wanted.policy))
        else {
            return;
        };
        let (now, model, candidate) = (self.now(), wanted.model.clone(), wanted.candidate);
        let start = Start {
            id: self.id(now),
            model: model.to_string(),
            baseline: self.side(&model, baseline),
            candidate: Side { version: candidate.to_string(), digest: String::new() },
            policy,
            salt: String::new(),
            actor: &wanted.cause.actor,
            reason: &wanted.cause.reason,
        };
        let id = start.id.clone();
        let (rollout, effects) = Rollout::start(start, now);
        let mut run = Run::new(rollout, (model, baseline, candidate), [0, 0]);
        // There is no split to be made: the model goes on as it is.
        run.is_placed = true;
        self.runs.insert(id.clone(), run);
        self.carry_out(&id, effects);
        self.hear(&id, &Event::Guard { kind: GuardKind::LoadFailure, why });
    }

    /// Does what an operator asks for; gives the rollout's id.
    fn order(
        &mut self,
        id: &str,
        order: Order,
        cause: &Cause,
        revision: Option<u64>,
    ) -> Result<String, RolloutError> {
        let run = self.find(id)?;
        let (id, current) = (run.rollout.id().to_owned(), run.rollout.revision());
        if revision.is_some_and(|revision| revision != current) {
            let current = Box::new(self.show(&id)?);
            return Err(RolloutError::Revision { current });
        }
        let checked: Result<(), OrderError> = run.rollout.check(order);
        if let Err(error) = checked {
            let current = Some(Box::new(self.show(&id)?));
            return Err(RolloutError::Conflict { why: error.to_string(), current });
        }
        let (actor, reason) = (cause.actor.as_str(), cause.reason.as_str());
        self.hear(&id, &Event::Order { order, actor, reason });
        Ok(id)
    }

    fn freeze(&mut self, freeze: bool, cause: &Cause) -> Result<Option<Frozen>, RolloutError> {
        if freeze == self.frozen.is_some() {
            return Ok(self.frozen.clone());
        }
        let now = self.now();
        let (by, reason) = (cause.actor.clone(), cause.reason.clone());
        let frozen = freeze.then(|| Frozen { since: Moment::at(now), by, reason });
        let words = (cause.actor.as_str(), cause.reason.as_str());
        let written = self.store.freeze(frozen.as_ref(), words, now);
        written.map_err(|error| RolloutError::Unrecorded(error.to_string()))?;
        self.frozen = frozen;
        self.lifecycle.freeze(freeze);
        tracing::info!(actor = cause.actor, reason = cause.reason, freeze, "automation");
        let open = self.runs.iter().filter(|(_, run)| !run.rollout.state().is_over());
        for id in open.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            self.hear(&id, &Event::Frozen(freeze));
        }
        Ok(self.frozen.clone())
    }

    /// The policy to plan with, and its traffic: what the baseline sees, or this.
    fn plan(
        &self,
        model: &ModelName,
        draft: &PolicyDraft,
        rate: Option<f64>,
        base: Option<f64>,
    ) -> Result<(Policy, f64, f64), RolloutError> {
        let policy = self.policy(model, draft)?;
        let table = self.serving.table();
        let known = table.model(model);
        let known = known.ok_or_else(|| {
            RolloutError::Unknown(format!("the repository has no model '{model}'"))
        })?;
        let seen = known.answering().map(|version| version.parts().recorder.totals());
        let requests = seen.as_ref().map_or(0, |seen| seen.success + seen.failed);
        let errors = seen.as_ref().map_or(0, |seen| {
            let bad = seen.codes.iter().filter(|(code, _)| [500, 504].contains(&code.status()));
            bad.map(|(_, count)| count).sum::<u64>()
        });
        drop(table);
        let uptime = self.now().saturating_sub(self.started).as_secs_f64().max(1.0);
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let (rate, base) = (
            rate.unwrap_or((requests as f64 / uptime).max(0.001)),
            // Without any error so far, as many as one more request may have.
            base.unwrap_or((errors.max(1) as f64 / requests.max(1000) as f64).min(0.5)),
        );
        Ok((policy, rate, base))
    }

    /// A fresh id, later than all before it: 48 bits of milliseconds and 80 random ones, as a ULID has them.
    fn id(&self, now: Duration) -> String {
        const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
        let millis = now.as_millis() & ((1 << 48) - 1);
        let random =
            (u128::from((self.random)()) << 64 | u128::from((self.random)())) & ((1 << 80) - 1);
        let bits = millis << 80 | random;
        let digit = |place: u32| char::from(DIGITS[((bits >> (5 * place)) & 31) as usize]);
        format!("r-{}", (0..26).rev().map(digit).collect::<String>())
    }
}

impl Run {
    /// The change of the split that a group of effects means, with the record of the rollout; `is_own` is true if the
    /// split is the rollout's, and not what somebody made of it since.
    pub(super) fn change(&self, group: &[Effect], is_own: bool) -> SplitChange {
        let rollout = &self.rollout;
        let mut step = RolloutStep {
            id: rollout.id().to_owned(),
            candidate: self.candidate,
            record: rollout.record(),
            evidence: None,
            serve: None,
            acts_first: false,
            is_over: false,
        };
        let mut change = SplitChange { salt: self.salt, overrides: true, ..SplitChange::default() };
        let arm = |name, version, slots| ArmChange { name, version, slots };
        let arms = |weight: f64| {
            let slots = slots_of(weight);
            vec![
                arm(ArmName::BASELINE, self.baseline, SLOTS - slots),
                arm(ArmName::CANARY, self.candidate, slots),
            ]
        };
        if !rollout.state().is_over() {
            step.evidence.clone_from(&self.evidence);
            if !self.is_placed {
                change.arms = Some(arms(0.0));
            }
        }
        for effect in group {
            match effect {
                Effect::SetWeight(weight) => change.arms = Some(arms(*weight)),
                Effect::Shadow { share } => {
                    let (version, slots) = (self.candidate.number(), slots_of(*share));
                    change.shadow = Some(vec![ShadowSpec { version, slots }]);
                }
                Effect::NoShadow => change.shadow = Some(Vec::new()),
                Effect::Promote { holdback } => {
                    let slots = slots_of(*holdback);
                    let mut arms = vec![arm(ArmName::BASELINE, self.candidate, SLOTS - slots)];
                    arms.extend((slots > 0).then(|| arm(ArmName::HOLDBACK, self.baseline, slots)));
                    (change.arms, change.shadow) = (Some(arms), Some(Vec::new()));
                    change.keep = Some(vec![self.baseline]);
                    (step.serve, step.is_over) = (Some(self.candidate), true);
                }
                Effect::Rollback { .. } => {
                    change.arms = Some(vec![arm(ArmName::BASELINE, self.baseline, SLOTS)]);
                    change.shadow = Some(Vec::new());
                    change.keep = Some(vec![self.candidate]);
                    (step.serve, step.acts_first) = (Some(self.baseline), true);
                    step.is_over = true;
                }
                Effect::Release => change.reset = is_own,
                _ => {}
            }
        }
        if rollout.state() == State::Failed && is_own {
            (change.reset, step.serve, step.is_over) = (true, Some(self.baseline), true);
        }
        change.rollout = Some(step);
        change
    }
}
