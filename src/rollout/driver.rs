//! The driver: one thread that lets rollouts hear what happens, and carries out what they decide.
//!
//! It decides nothing. Evidence of the candidate's errors wakes it at once; the rest it reads every few milliseconds.
//! Always true:
//! - A rollback shuts the valve first: the next request goes to the baseline, before anything is written.
//! - A raised weight or a promotion is one record with the state and evidence that led to it, and takes effect after
//!   it.
//! - The thread waits for no other: what the keeper has to do is begun, and looked after, and evidence is heard
//!   meanwhile.
//! - What could not be carried out is tried again; what the rollout was in memory is what it will be on the disk.
//!
//! Not here: decisions (`course`), who asks for them (`handle`), files (`store`).

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, atomic::AtomicBool, mpsc},
    time::{Duration, Instant},
};

use crate::{
    feedback::{Feedback, Judged},
    lifecycle::{self, Operation, OperationError, Pending},
    model::{ArmName, ModelName, VersionId, VersionState},
    monitor::{EventKind, Monitor},
    registry::Cause,
    serve::{Compared, Evidence, Evident, Reading, Serving},
};

use super::{
    Parts, Rollouts,
    handle::{Command, Reply, RolloutError, Shared},
    policy::{Gate, PolicyDraft, Validation},
    report::Report,
    seen::{Comparison, Outcome, OutcomeKind, Seen, Threshold},
    state::{Effect, Event, GuardKind, Rollout, Side, State, Told},
    store::{Frozen, Store},
    traffic::TrafficReport,
    validating::{self, Task},
};

/// Time between two looks at what is not urgent: errors and invalid outputs of the candidate wake the thread at once.
const LOOK: Duration = Duration::from_millis(20);
/// Time between two looks while the keeper works for a rollout, or evidence waits for what was assigned before it.
const SOON: Duration = Duration::from_millis(1);
/// Time between two looks while no rollout judges requests.
const REST: Duration = Duration::from_millis(200);
/// Time between checkpoints, and between tries of what failed.
const SECOND: Duration = Duration::from_secs(1);
/// Time between checkpoints where nothing was heard, and between two looks where nothing is left to do.
const MINUTE: Duration = Duration::from_mins(1);
/// Rollouts that are shown; older ones stay in the log.
const KNOWN_MAX: usize = 200;
/// Entries that are heard at a time.
const HEARD_MAX: usize = 4096;

/// The driver, and all that it works with.
pub(super) struct Driver {
    pub(super) lifecycle: lifecycle::Handle,
    pub(super) serving: Arc<Serving>,
    pub(super) monitor: Arc<Monitor>,
    feedback: Feedback,
    pub(super) store: Store,
    /// The operator's drafts by model, and whether a new version starts a rollout by itself.
    pub(super) drafts: BTreeMap<ModelName, (PolicyDraft, bool)>,
    pub(super) workers: usize,
    pub(super) random: fn() -> u64,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) shared: Arc<Shared>,
    pub(super) runs: BTreeMap<String, Run>,
    pub(super) frozen: Option<Frozen>,
    /// Models whose versions are being loaded for a rollout.
    pub(super) reserved: BTreeMap<ModelName, VersionId>,
    /// Versions that were tried by themselves.
    pub(super) tried: BTreeMap<ModelName, VersionId>,
    pub(super) looked_at: Option<Instant>,
    published_at: Option<Instant>,
    /// True if that told the last of what happened.
    is_told: bool,
    /// Commands about rollouts that the keeper works for.
    pub(super) deferred: VecDeque<Command>,
    /// The start of the process, since 1970.
    pub(super) started: Duration,
    pub(super) is_stopping: bool,
    pub(super) rollouts: Rollouts,
    pub(super) validation: crate::validation::Settings,
}

/// A rollout, and what the driver knows about it.
pub(super) struct Run {
    pub(super) rollout: Rollout,
    pub(super) model: ModelName,
    pub(super) baseline: VersionId,
    pub(super) candidate: VersionId,
    pub(super) evidence: Option<Arc<Evidence>>,
    reading: Reading,
    /// Effects that are still to be carried out.
    todo: Vec<Effect>,
    /// Effects that the keeper is carrying out.
    underway: Option<Underway>,
    /// Requests that are answered once everything is carried out.
    asked: Vec<Reply<Report>>,
    retry_at: Option<Duration>,
    saved_at: Duration,
    /// True if it has heard of requests since.
    has_heard: bool,
    /// True if the split was given to the model once.
    pub(super) is_placed: bool,
    /// True if it was brought back after a restart and has not gone on.
    pub(super) is_asleep: bool,
    pub(super) salt: [u64; 2],
    problem: Option<String>,
    heard: Vec<Seen>,
    /// Texts of classes that it has heard.
    texts_heard: usize,
    /// Ends a validation of it.
    cancel: Arc<AtomicBool>,
}

/// Effects that the keeper is carrying out.
struct Underway {
    group: Vec<Effect>,
    pending: Pending,
    /// True if a rollback was decided meanwhile: if they fail, they are not tried again.
    is_overruled: bool,
}

impl Run {
    pub(super) fn new(
        rollout: Rollout,
        (model, baseline, candidate): (ModelName, VersionId, VersionId),
        salt: [u64; 2],
    ) -> Self {
        Self {
            rollout,
            model,
            baseline,
            candidate,
            evidence: None,
            reading: Reading::default(),
            todo: Vec::new(),
            underway: None,
            asked: Vec::new(),
            retry_at: None,
            saved_at: Duration::ZERO,
            has_heard: false,
            is_placed: false,
            is_asleep: false,
            salt,
            problem: None,
            heard: Vec::new(),
            texts_heard: 0,
            cancel: Arc::default(),
        }
    }

    /// True if everything that it decided is carried out.
    fn is_idle(&self) -> bool {
        self.todo.is_empty() && self.underway.is_none()
    }

    /// True if what it decided last is only just being carried out: what is shown of it would run ahead of what is
    /// served.
    pub(super) fn is_underway(&self) -> bool {
        self.underway.is_some()
    }

    /// Has somebody answered once everything is carried out.
    pub(super) fn answer_later(&mut self, reply: Reply<Report>) {
        self.asked.push(reply);
    }
}

impl Driver {
    /// A driver with the rollouts that the log knows.
    pub(super) fn new(parts: Parts, commands: mpsc::Receiver<Command>, rollouts: Rollouts) -> Self {
        let mut store = Store::open(parts.state);
        store.blamed = parts.blamed.into_iter().collect();
        let (mut runs, mut tried) = (BTreeMap::new(), BTreeMap::new());
        for (id, recorded) in parts.records {
            let Some(mut rollout) = store.restore(&id, &recorded.record) else {
                tracing::warn!(
                    rollout = id,
                    "passed over: its record is of another version of tidegate"
                );
                continue;
            };
            let version = |side: &Side| VersionId::parse(&side.version);
            let versions = version(rollout.baseline()).zip(version(rollout.candidate()));
            let Some((baseline, candidate)) = versions else { continue };
            let salt = u128::from_str_radix(rollout.salt(), 16).unwrap_or_default();
            #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
            let salt = [(salt >> 64) as u64, salt as u64];
            let is_over = rollout.state().is_over();
            if is_over {
                rollout.settle();
            }
            let mut run = Run::new(rollout, (recorded.model, baseline, candidate), salt);
            (run.is_placed, run.is_asleep) = (true, !is_over);
            let tried = tried.entry(run.model.clone()).or_insert(candidate);
            *tried = candidate.max(*tried);
            runs.insert(id, run);
        }
        store.forget_others(|id| runs.contains_key(id));
        let serving_now = parts.serving.unix_now();
        Self {
            lifecycle: parts.lifecycle,
            serving: parts.serving,
            started: serving_now,
            monitor: parts.monitor,
            feedback: parts.feedback,
            frozen: store.frozen(),
            store,
            drafts: parts.drafts,
            workers: parts.workers,
            random: parts.random,
            commands,
            shared: Arc::clone(&rollouts.shared),
            runs,
            reserved: BTreeMap::new(),
            tried,
            looked_at: None,
            published_at: None,
            is_told: false,
            deferred: VecDeque::new(),
            is_stopping: false,
            rollouts,
            validation: parts.validation,
        }
    }

    pub(super) fn run(mut self) {
        if self.frozen.is_some() {
            self.lifecycle.freeze(true);
        }
        loop {
            match self.next() {
                Next::Stop => break,
                Next::Command(command) => {
                    self.is_told = false;
                    self.command(*command);
                }
                Next::Look => {}
            }
            if self.is_stopping {
                break;
            }
            self.look();
            self.answer_deferred();
        }
        self.finish();
    }

    /// Leaves nothing half done.
    fn finish(&mut self) {
        // A keeper that stopped answers as well: its end of the channel is gone.
        while self.runs.values().any(Run::is_underway) {
            std::thread::park_timeout(SOON);
            for id in self.runs.keys().cloned().collect::<Vec<_>>() {
                self.look_after(&id);
            }
        }
        // What was learnt since the last second goes on in the next process.
        let now = self.now();
        let open = |run: &&mut Run| !run.rollout.state().is_over() && run.is_idle();
        for run in self.runs.values_mut().filter(open) {
            run.saved_at = now;
            self.store.checkpoint(&mut run.rollout);
        }
    }

    fn next(&mut self) -> Next {
        let soon = |run: &Run| run.is_underway() || run.reading.is_waiting();
        let judges = |run: &Run| run.evidence.is_some();
        let patience = if self.runs.values().any(soon) {
            SOON
        } else if self.runs.values().any(judges) {
            LOOK
        } else if self.awaits() {
            REST
        } else if self.is_told {
            MINUTE
        } else {
            SECOND
        };
        match self.commands.try_recv() {
            Ok(command) => return Next::Command(Box::new(command)),
            Err(mpsc::TryRecvError::Disconnected) => return Next::Stop,
            Err(mpsc::TryRecvError::Empty) => {}
        }
        for run in self.runs.values() {
            run.evidence.iter().for_each(|evidence| evidence.sleep(std::thread::current()));
        }
        // Whoever sends a command or hands in urgent evidence unparks this thread.
        std::thread::park_timeout(patience);
        match self.commands.try_recv() {
            Ok(command) => Next::Command(Box::new(command)),
            Err(mpsc::TryRecvError::Disconnected) => Next::Stop,
            Err(mpsc::TryRecvError::Empty) => Next::Look,
        }
    }

    /// True if something may have to be done of which no command tells.
    fn awaits(&self) -> bool {
        let over = |run: &Run| run.rollout.state().is_over() && run.is_idle();
        !self.runs.values().all(over) || self.drafts.values().any(|(_, by_itself)| *by_itself)
    }

    pub(super) fn now(&self) -> Duration {
        self.serving.unix_now()
    }

    /// Lets every open rollout hear what came in.
    fn look(&mut self) {
        let ids: Vec<String> = self.runs.keys().cloned().collect();
        for id in &ids {
            self.look_after(id);
            self.read(id);
        }
        let now = self.monitor.clock().now();
        let is_due = |at: Option<Instant>, pause| {
            at.is_none_or(|at| now.saturating_duration_since(at) >= pause)
        };
        if is_due(self.looked_at, SECOND / 10) {
            self.looked_at = Some(now);
            for id in &ids {
                self.check(id);
            }
            self.start_by_itself();
        }
        if is_due(self.published_at, SECOND) {
            self.published_at = Some(now);
            self.publish();
            self.is_told = !self.awaits();
        }
    }

    /// Reads the evidence of a rollout; what comes meanwhile is for the next look.
    fn read(&mut self, id: &str) {
        self.read_copies(id);
        let Some(run) = self.runs.get_mut(id) else { return };
        let Some(evidence) = run.evidence.clone() else { return };
        if run.rollout.state().is_over() {
            return;
        }
        let mut heard = std::mem::take(&mut run.heard);
        heard.clear();
        heard.extend(evidence.read(&mut run.reading).iter().map(seen));
        // An entry's text is there before the entry.
        let texts: Vec<_> = evidence.texts().skip(run.texts_heard).collect();
        run.texts_heard += texts.len();
        if !texts.is_empty() {
            self.hear(id, &Event::Texts(&texts));
        }
        for heard in heard.chunks(HEARD_MAX) {
            self.hear(id, &Event::Requests(heard));
        }
        if let Some(run) = self.runs.get_mut(id) {
            run.heard = heard;
        }
        self.read_outcomes(id);
    }

    /// Reads what came of requests, in the order in which it came.
    fn read_outcomes(&mut self, id: &str) {
        let Some(run) = self.runs.get(id) else { return };
        let judged = self.feedback.judged(&run.model);
        let outcomes: Vec<Outcome> = judged.iter().flat_map(outcomes_of).collect();
        for outcomes in outcomes.chunks(HEARD_MAX) {
            self.hear(id, &Event::Outcomes(outcomes));
        }
    }

    /// Reads what copied requests showed.
    fn read_copies(&mut self, id: &str) {
        let run = self.runs.get(id).and_then(|run| Some((run.evidence.clone()?, run.candidate)));
        let Some((evidence, candidate)) = run else { return };
        let comparison = |compared: Compared| Comparison {
            max_abs: compared.sample.max_absolute,
            // What cannot be compared differs.
            max_rel: if compared.sample.failed || compared.shape_differs {
                f64::NAN
            } else {
                compared.sample.max_relative
            },
            flipped: compared.sample.label_flips > 0,
        };
        let own = |compared: &Compared| compared.version == candidate;
        let compared: Vec<_> = evidence.compared().filter(own).map(comparison).collect();
        if !compared.is_empty() {
            self.hear(id, &Event::Shadowed(&compared));
        }
        let dropped = evidence.copies_dropped();
        if dropped > 0 {
            self.hear(id, &Event::ShadowDropped(dropped));
        }
    }

    /// Lets a rollout hear an event, and carries out what follows.
    pub(super) fn hear(&mut self, id: &str, event: &Event<'_>) {
        let now = self.now();
        let Some(run) = self.runs.get_mut(id) else { return };
        run.has_heard |= !matches!(event, Event::Tick);
        let effects = run.rollout.hear(event, now);
        self.carry_out(id, effects);
    }

    /// Carries out effects in their order; what fails is kept, and tried again.
    pub(super) fn carry_out(&mut self, id: &str, effects: Vec<Effect>) {
        let Some(run) = self.runs.get_mut(id) else { return };
        // Whatever else waits: a rollback acts at once.
        if effects.iter().any(|effect| matches!(effect, Effect::Rollback { .. })) {
            run.evidence.iter().for_each(|evidence| evidence.shut());
            run.todo.clear();
            run.retry_at = None;
            run.underway.iter_mut().for_each(|underway| underway.is_overruled = true);
        }
        run.todo.extend(effects);
        self.go_on(id);
    }

    /// Carries out what waits, up to where the keeper has to work.
    fn go_on(&mut self, id: &str) {
        let now = self.now();
        while let Some(run) = self.runs.get_mut(id)
            && run.underway.is_none()
            && !run.todo.is_empty()
            && run.retry_at.is_none_or(|at| at <= now)
        {
            run.retry_at = None;
            let group = take_group(&mut run.todo);
            match self.begin_group(id, &group) {
                Some(pending) => {
                    if let Some(run) = self.runs.get_mut(id) {
                        run.underway = Some(Underway { group, pending, is_overruled: false });
                    }
                }
                None => self.follow(id, &group),
            }
        }
    }

    /// Looks after what the keeper carries out, and answers whoever waits for it.
    fn look_after(&mut self, id: &str) {
        while let Some(run) = self.runs.get_mut(id)
            && let Some(answer) = run.underway.as_mut().and_then(|it| it.pending.answer())
            && let Some(Underway { group, is_overruled, .. }) = run.underway.take()
        {
            let error = answer.err();
            // A rollback holds although it could not be recorded, and whoever listens must hear of it.
            let holds =
                error.as_ref().is_none_or(|it| matches!(it, OperationError::NotDurable { .. }));
            if holds {
                self.carried_out(id, &group);
            }
            if let Some(error) = error.filter(|_| !is_overruled) {
                let is_left =
                    |effect: &Effect| !holds || is_about_split(effect) || *effect == Effect::Record;
                self.postpone(id, group.into_iter().filter(is_left).collect(), &error);
            }
            self.go_on(id);
        }
        self.reply(id);
    }

    /// Answers whoever waits until everything is carried out.
    pub(super) fn reply(&mut self, id: &str) {
        let now = self.now();
        let Some(run) = self.runs.get_mut(id) else { return };
        if run.asked.is_empty() || run.underway.is_some() {
            return;
        }
        let problem = run.problem.clone();
        if problem.is_none() && !run.todo.is_empty() {
            return;
        }
        let never = !run.is_placed;
        for reply in std::mem::take(&mut run.asked) {
            let answer = match &problem {
                None => Ok(run.rollout.report(now)),
                Some(problem) if never => {
                    Err(RolloutError::Unrecorded(format!("nothing was changed: {problem}")))
                }
                Some(problem) => Err(RolloutError::NotYetRecorded(problem.clone())),
            };
            // Whoever asked may be gone.
            let _ = reply.send(answer);
        }
        if never {
            self.runs.remove(id);
        }
    }

    /// Puts effects back that could not be carried out.
    fn postpone(&mut self, id: &str, group: Vec<Effect>, error: &OperationError) {
        let now = self.now();
        let is_promotion = group.iter().any(|effect| matches!(effect, Effect::Promote { .. }));
        let Some(run) = self.runs.get_mut(id) else { return };
        let problem = error.to_string();
        if run.problem.as_ref() != Some(&problem) {
            tracing::error!(model = %run.model, rollout = id, "not carried out, and tried again: {problem}");
            run.problem = Some(problem.clone());
        }
        if is_promotion {
            self.hear(id, &Event::PromotionFailed { why: &problem });
            return;
        }
        run.retry_at = Some(now + SECOND);
        let later = std::mem::replace(&mut run.todo, group);
        run.todo.extend(later);
    }

    /// Has the keeper carry out effects that belong together: one record, and what it means for the split. `None` if
    /// there is nothing for it to do.
    fn begin_group(&mut self, id: &str, group: &[Effect]) -> Option<Pending> {
        let run = self.runs.get(id)?;
        if !group.iter().any(|effect| is_about_split(effect) || *effect == Effect::Record) {
            return None;
        }
        let table = self.serving.table();
        let split = table.model(&run.model).and_then(|model| model.traffic.as_ref());
        let is_own = split.is_some_and(|split| split.spec().rollout.as_deref() == Some(id));
        let operation = Operation::Split(Box::new(run.change(group, is_own)));
        let (actor, reason) = (run.rollout.actor().to_owned(), run.rollout.reason().to_owned());
        Some(self.lifecycle.begin(run.model.clone(), operation, Cause { actor, reason }))
    }

    /// Goes on behind the record of a group.
    fn carried_out(&mut self, id: &str, group: &[Effect]) {
        let now = self.now();
        let Some(run) = self.runs.get_mut(id) else { return };
        let is_first = !std::mem::replace(&mut run.is_placed, true);
        run.problem = None;
        // What the file says is never ahead of the log; what was decided meanwhile has no record yet.
        if run.todo.is_empty() {
            run.saved_at = now;
            self.store.checkpoint(&mut run.rollout);
        }
        let model = run.model.clone();
        if group.iter().any(is_about_split) {
            self.tell_traffic(&model);
        }
        self.follow(id, group);
        if is_first {
            self.hear(id, &Event::Loaded);
        }
    }

    /// Does what needs no record.
    fn follow(&mut self, id: &str, group: &[Effect]) {
        for effect in group {
            match effect {
                Effect::Promote { .. } => self.hear(id, &Event::Promoted),
                Effect::FreezeQuantiles(quantiles) => self.freeze_quantiles(id, quantiles),
                Effect::Validate(validation) => self.validate(id, validation),
                Effect::Tell { kind, detail } => self.tell(id, *kind, detail),
                Effect::End => self.end(id),
                Effect::Record
                | Effect::SetWeight(_)
                | Effect::Shadow { .. }
                | Effect::NoShadow
                | Effect::Rollback { .. }
                | Effect::Release => {}
            }
        }
    }

    /// Begins to measure the candidate on labelled data.
    fn validate(&mut self, id: &str, wanted: &Validation) {
        let Some(run) = self.runs.get_mut(id) else { return };
        let table = self.serving.table();
        let loaded = |version: VersionId| {
            let model = table.model(&run.model)?;
            model.versions.iter().find(|entry| entry.id == version)?.version.clone()
        };
        let settings = self.serving.settings();
        let started = match (loaded(run.candidate), loaded(run.baseline)) {
            (Some(candidate), Some(baseline)) => {
                let task = Task {
                    id: id.to_owned(),
                    wanted: wanted.clone(),
                    rows_max: (candidate.rows_max(settings), baseline.rows_max(settings)),
                    candidate,
                    baseline,
                    settings: self.validation,
                    monitor: Arc::clone(&self.monitor),
                    cancel: Arc::clone(&run.cancel),
                };
                task.start(self.rollouts.clone()).map_err(|error| error.to_string())
            }
            _ => Err("its versions are not loaded".to_owned()),
        };
        if let Err(why) = started {
            let event = Event::Validated { report: serde_json::Value::Null, pass: false, why };
            self.hear(id, &event);
        }
    }

    /// Ends all learning about it.
    fn end(&mut self, id: &str) {
        let Some(run) = self.runs.get_mut(id) else { return };
        run.evidence = None;
        run.rollout.settle();
        validating::cancel(&run.cancel);
        self.shared.ended(&run.model, run.rollout.state());
        self.tried.insert(run.model.clone(), run.candidate);
    }

    fn freeze_quantiles(&mut self, id: &str, quantiles: &[f64]) {
        let Some(run) = self.runs.get_mut(id) else { return };
        let slow = run.rollout.policy().gates.get(&Gate::Slow);
        let least = slow.map_or(Duration::ZERO, |slow| slow.min_difference);
        let arm = self.monitor.version(&run.model, run.baseline).arm(ArmName::BASELINE);
        let latencies = arm.totals().total;
        let threshold = |quantile: &f64| {
            let frozen = Duration::from_nanos(latencies.quantile(*quantile));
            let limit = frozen + least;
            let nanoseconds = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
            #[expect(clippy::cast_precision_loss, reason = "a share of counts")]
            let above = latencies.above(nanoseconds) as f64 / latencies.count().max(1) as f64;
            (
                limit,
                Threshold { quantile: *quantile, seconds: limit.as_secs_f64(), share_above: above },
            )
        };
        let (limits, thresholds): (Vec<_>, Vec<_>) = quantiles.iter().map(threshold).unzip();
        run.evidence.iter().for_each(|evidence| evidence.freeze(&limits));
        self.hear(id, &Event::Thresholds(&thresholds));
    }

    fn tell_traffic(&self, model: &ModelName) {
        let report = self.serving.table().model(model).map(TrafficReport::of);
        let object = report.and_then(|report| serde_json::to_value(report).ok());
        let about = (model, None);
        let events = self.monitor.events();
        events.tell_about(self.now(), about, EventKind::TrafficChanged, "by a rollout", object);
    }

    fn tell(&self, id: &str, kind: Told, detail: &str) {
        let Some(run) = self.runs.get(id) else { return };
        let now = self.now();
        let object = serde_json::to_value(run.rollout.report(now)).ok();
        let kind = match kind {
            Told::Started => EventKind::RolloutStarted,
            Told::Step => EventKind::RolloutStep,
            Told::Held => EventKind::RolloutHeld,
            Told::Promoted => EventKind::RolloutPromoted,
            Told::RolledBack => EventKind::RolloutRolledBack,
            Told::Failed => EventKind::RolloutFailed,
        };
        let (model, version) = (&run.model, Some(run.candidate));
        tracing::info!(%model, version = %run.candidate, rollout = id, state = run.rollout.state().name(), "{}: {detail}", kind.name());
        self.monitor.events().tell_about(now, (model, version), kind, detail, object);
    }

    /// Looks whether a rollout can go on, and lets time pass for it.
    fn check(&mut self, id: &str) {
        let now = self.now();
        let Some(run) = self.runs.get_mut(id) else { return };
        if run.rollout.state().is_over() && run.rollout.is_released() && run.is_idle() {
            return;
        }
        let is_over = run.rollout.state().is_over();
        self.go_on(id);
        if self.runs.get(id).is_some_and(Run::is_underway) {
            // The table is about to change.
            return;
        }
        if !is_over && let Some(wrong) = self.look_at_table(id) {
            match wrong {
                Wrong::Waits => return,
                Wrong::Superseded(why) => self.hear(id, &Event::Superseded { why: &why }),
                Wrong::Failed(why) => {
                    self.hear(id, &Event::Guard { kind: GuardKind::LoadFailure, why: &why });
                }
            }
        }
        self.hear(id, &Event::Tick);
        let Some(run) = self.runs.get_mut(id) else { return };
        let since = now.saturating_sub(run.saved_at);
        let due = since >= SECOND && run.has_heard || since >= MINUTE;
        if !run.rollout.state().is_over() && due && run.is_idle() {
            (run.saved_at, run.has_heard) = (now, false);
            self.store.checkpoint(&mut run.rollout);
        }
    }

    /// Compares a rollout with what is served; tells what is wrong.
    fn look_at_table(&mut self, id: &str) -> Option<Wrong> {
        let table = self.serving.table();
        let run = self.runs.get_mut(id)?;
        let Some(model) = table.model(&run.model) else {
            let settles = self.serving.is_settling(&run.model);
            let gone = || Wrong::Superseded("the model is gone from the repository".to_owned());
            return Some(if settles { Wrong::Waits } else { gone() });
        };
        let entry = model.versions.iter().find(|entry| entry.id == run.candidate);
        let loaded = entry.is_some_and(|entry| entry.version.is_some());
        if self.serving.is_settling(&run.model) && !loaded {
            return Some(Wrong::Waits);
        }
        if !run.is_placed {
            return Some(Wrong::Waits);
        }
        let own = model
            .traffic
            .as_ref()
            .is_some_and(|traffic| traffic.spec().rollout.as_deref() == Some(id));
        if !own {
            let why = "an operator changed what the model serves".to_owned();
            return Some(Wrong::Superseded(why));
        }
        for (version, side) in
            [(run.candidate, run.rollout.candidate()), (run.baseline, run.rollout.baseline())]
        {
            let entry = model.versions.iter().find(|entry| entry.id == version);
            let Some(loaded) = entry.and_then(|entry| entry.version.as_ref()) else {
                if version == run.baseline {
                    // Without it there is nothing to be held against.
                    return Some(Wrong::Waits);
                }
                continue;
            };
            let parts = loaded.parts();
            if parts.identity.as_ref().unwrap_or(&parts.digest) != &side.digest {
                let why = format!(
                    "the files of version {version} were replaced while it was judged; start it again"
                );
                return Some(Wrong::Failed(why));
            }
        }
        if loaded {
            if std::mem::take(&mut run.is_asleep) {
                self.wake(id);
            } else if run.rollout.state() == State::Pending {
                self.hear(id, &Event::Loaded);
            }
            return None;
        }
        match entry {
            Some(entry) if entry.state == VersionState::Loading => Some(Wrong::Waits),
            Some(entry) => Some(Wrong::Failed(entry.reason.clone())),
            None => Some(Wrong::Failed("the version is gone from the repository".to_owned())),
        }
    }

    /// Goes on after a restart: with new evidence, from what was written down.
    fn wake(&mut self, id: &str) {
        let evidence = Arc::new(Evidence::new(self.workers));
        let Some(run) = self.runs.get_mut(id) else { return };
        if let Some(thresholds) = run.rollout.thresholds() {
            let limit = |threshold: &Threshold| Duration::from_secs_f64(threshold.seconds);
            evidence.freeze(&thresholds.iter().map(limit).collect::<Vec<_>>());
        }
        (run.evidence, run.texts_heard) = (Some(evidence), 0);
        let candidate =
            (run.model.to_string(), run.candidate, run.rollout.candidate().digest.clone());
        let crashed = self.store.blamed.contains(&candidate);
        let lost = "what was seen in the last second before the process ended";
        self.hear(id, &Event::Restarted { lost });
        if crashed {
            let why = "the server ended in a run of it";
            self.hear(id, &Event::Guard { kind: GuardKind::Crash, why });
        }
        if self.frozen.is_some() {
            self.hear(id, &Event::Frozen(true));
        }
    }

    /// Starts rollouts of new versions, where the policy says so.
    fn start_by_itself(&mut self) {
        if self.frozen.is_some() {
            return;
        }
        let table = self.serving.table();
        let mut starts = Vec::new();
        for (name, (_, by_itself)) in self.drafts.iter().filter(|(_, (_, by_itself))| *by_itself) {
            debug_assert!(by_itself, "the others were filtered out");
            let Some(model) = table.model(name) else { continue };
            let Some(candidate) =
                model.held_back.filter(|id| model.default.is_some_and(|own| *id > own))
            else {
                continue;
            };
            let busy = self.open(name).is_some() || self.reserved.contains_key(name);
            // What an operator split stays split; what a rollout left behind gives way to the next one.
            let split =
                model.traffic.as_ref().is_some_and(|traffic| traffic.spec().rollout.is_none());
            let tried = self.tried.get(name).is_some_and(|tried| *tried >= candidate);
            // What an operator pinned stays.
            if !busy && !split && !tried && model.pinned.is_none() {
                starts.push((name.clone(), candidate));
            }
        }
        drop(table);
        for (model, candidate) in starts {
            tracing::info!(%model, version = %candidate, "a new version: its rollout starts");
            self.tried.insert(model.clone(), candidate);
            self.shared.start_by_itself(model, candidate);
        }
    }

    /// The rollout of a model that is not over.
    pub(super) fn open(&self, model: &str) -> Option<&Run> {
        self.runs.values().find(|run| run.model.as_str() == model && !run.rollout.state().is_over())
    }

    /// Shows what stands, for pages of metrics.
    fn publish(&mut self) {
        while self.runs.len() > KNOWN_MAX {
            let oldest = self.runs.iter().find(|(_, run)| run.rollout.state().is_over());
            let Some(id) = oldest.map(|(id, _)| id.clone()) else { break };
            self.runs.remove(&id);
        }
        let newest =
            self.runs.values().map(|run| (run.model.clone(), run)).collect::<BTreeMap<_, _>>();
        let now = self.now();
        self.shared.publish(newest.values().map(|run| run.rollout.report(now)).collect());
    }
}

enum Next {
    Command(Box<Command>),
    Look,
    Stop,
}

/// Reasons for which a rollout cannot go on.
enum Wrong {
    /// Its versions are not loaded yet.
    Waits,
    Superseded(String),
    Failed(String),
}

/// An entry of evidence, as the rollout hears it.
fn seen(entry: &Evident) -> Seen {
    Seen {
        candidate: entry.is_candidate,
        share: entry.share,
        key: entry.key,
        sticky: entry.is_sticky,
        at: entry.at,
        prediction: entry.prediction,
        marks: entry.marks,
        output: entry.output,
    }
}

/// What an outcome says about an arm: that it happened, and whether the label was another.
fn outcomes_of(judged: &Judged) -> impl Iterator<Item = Outcome> + use<> {
    let Judged { prediction, at, assigned, told } = *judged;
    let happened = told.happened.then_some(OutcomeKind::Happened);
    let label = told.wrong.map(|wrong| OutcomeKind::Label { wrong });
    happened.into_iter().chain(label).map(move |kind| Outcome {
        candidate: assigned.is_candidate,
        share: assigned.share,
        key: assigned.key,
        sticky: assigned.is_sticky,
        at,
        prediction,
        kind,
    })
}

fn is_about_split(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::SetWeight(_)
            | Effect::Shadow { .. }
            | Effect::NoShadow
            | Effect::Promote { .. }
            | Effect::Rollback { .. }
            | Effect::Release
    )
}

/// Takes effects up to where another record begins.
fn take_group(todo: &mut Vec<Effect>) -> Vec<Effect> {
    let mut seen = false;
    let end = todo.iter().position(|effect| {
        let again = seen && matches!(effect, Effect::Record);
        seen |= matches!(effect, Effect::Record);
        again
    });
    let rest = todo.split_off(end.unwrap_or(todo.len()));
    std::mem::replace(todo, rest)
}
