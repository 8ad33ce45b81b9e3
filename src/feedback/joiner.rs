//! The thread that joins: it drains the workers' rings, answers those who bring outcomes, and writes both down.
//!
//! Requests that wait are joined together and written with one sync per model. Not here: what joins (`ledger`).

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::PathBuf,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use crate::{
    model::{ArmName, ModelName, PredictionKey, VersionId},
    monitor::{EventKind, Monitor},
    serve::{AnswerReading, Model, Recall, Recalled, Samples, Serving},
};

use super::{
    Answer, Command, FeedbackError, JUDGED_MAX, Outcome, Parts, Policy, QualityReport, Reply,
    Settings, Shared, Status,
    journal::Joined,
    ledger::{Ledger, Verdict},
    lock,
    quality::{self, Drop, VersionQuality},
    watch::Rise,
};

/// Time between two looks at rings: the least, for those that fill fast.
const SOON: Duration = Duration::from_millis(5);
/// And the most; where a ring fills sooner, its worker says so.
const LOOK: Duration = Duration::from_millis(250);
/// Time between two looks while there is nothing to find: each one wakes a core that sleeps.
const REST: Duration = SECOND;
/// Entries that a look should find at most: a sixteenth of a ring, which stays in the caches; a burst has room.
const MUCH: u32 = 1 << 10;
/// Requests that are joined together.
const TOGETHER_MAX: usize = 64;
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
const DAY: Duration = Duration::from_hours(24);

pub(super) struct Joiner {
    serving: Arc<Serving>,
    monitor: Arc<Monitor>,
    recall: Arc<Recall>,
    commands: mpsc::Receiver<Command>,
    shared: Arc<Shared>,
    key: PredictionKey,
    settings: Settings,
    policies: BTreeMap<ModelName, Policy>,
    samples: Option<Arc<Samples>>,
    folder: Option<PathBuf>,
    ledgers: Vec<Ledger>,
    /// Ledger and series of a place and segment; `None` where nobody knows whose it is.
    places: HashMap<(u32, u8), Option<(usize, u32)>>,
    flushed_at: Duration,
    snapshot_at: Duration,
}

/// A request that waits for the disk.
struct Waiting {
    ledger: usize,
    outcomes: Vec<Outcome>,
    answers: Vec<Answer>,
    /// Outcomes that join, with the index of the answer and the position of the prediction.
    joined: Vec<(usize, Joined, u64)>,
    reply: Reply<Vec<Answer>>,
}

/// The time until the next look, where the last one found this many entries, of this much time.
fn pause(taken: usize, since: Duration) -> Duration {
    if taken == 0 {
        return REST;
    }
    let taken = u32::try_from(taken).unwrap_or(u32::MAX);
    (since * MUCH / taken).clamp(SOON, LOOK)
}

impl Joiner {
    pub(super) fn new(
        parts: Parts,
        commands: mpsc::Receiver<Command>,
        shared: Arc<Shared>,
        recall: Arc<Recall>,
    ) -> Self {
        Self {
            serving: parts.serving,
            monitor: parts.monitor,
            recall,
            commands,
            shared,
            key: parts.key,
            settings: parts.settings,
            policies: parts.policies,
            samples: parts.samples,
            folder: parts.state.map(|state| state.join("feedback")),
            ledgers: Vec::new(),
            places: HashMap::new(),
            flushed_at: Duration::ZERO,
            snapshot_at: Duration::ZERO,
        }
    }

    pub(super) fn run(mut self) {
        self.recall.read_by(thread::current());
        // Nobody else sets it.
        let _ = self.shared.thread.set(thread::current());
        self.restore();
        let (mut patience, mut looked_at) = (LOOK, self.serving.unix_now());
        loop {
            let mut commands = Vec::new();
            match self.commands.try_recv() {
                Ok(command) => commands.push(command),
                // Whoever sends a command afterwards wakes this thread; so does a worker whose ring fills.
                Err(mpsc::TryRecvError::Empty) => thread::park_timeout(patience),
                Err(mpsc::TryRecvError::Disconnected) => break,
            }
            while commands.len() < TOGETHER_MAX
                && let Ok(command) = self.commands.try_recv()
            {
                commands.push(command);
            }
            // Before the commands: whoever has an answer may bring its outcome.
            let taken = self.drain();
            let now = self.serving.unix_now();
            patience = pause(taken, now.saturating_sub(looked_at));
            looked_at = now;
            if self.obey(commands) {
                break;
            }
            self.look_after();
        }
        self.drain();
        let now = self.serving.unix_now();
        self.ledgers.iter_mut().for_each(|ledger| ledger.snapshot(now));
    }

    /// Reads what is on disk of every model.
    fn restore(&mut self) {
        let Some(entries) = self.folder.as_ref().and_then(|folder| fs::read_dir(folder).ok())
        else {
            return;
        };
        for entry in entries.flatten() {
            let model = entry.file_name().to_str().map(ModelName::parse);
            if let Some(Ok(model)) = model {
                self.ledger(&model);
            }
        }
        self.bound();
    }

    /// The index of a model's ledger, which is made where it is missing.
    fn ledger(&mut self, model: &ModelName) -> usize {
        if let Some(index) = self.ledgers.iter().position(|ledger| ledger.model == *model) {
            return index;
        }
        let policy = self.policies.get(model).cloned().unwrap_or_default();
        let folder = self.folder.as_ref().map(|folder| folder.join(model.as_str()));
        self.ledgers.push(Ledger::open(model.clone(), policy, folder, self.serving.unix_now()));
        self.ledgers.len() - 1
    }

    /// Takes what workers left in their rings.
    fn drain(&mut self) -> usize {
        let now = self.serving.unix_now();
        let recall = Arc::clone(&self.recall);
        let taken = recall.take(|entry| self.remember(entry, now));
        if taken > MUCH as usize {
            // A second may bring more than there is room for.
            self.bound();
        }
        taken
    }

    fn remember(&mut self, mut entry: Recalled, now: Duration) {
        let place = (entry.place, entry.segment);
        let known = self.places.get(&place).copied();
        let known = known.filter(|known| {
            known.is_none_or(|(ledger, series)| self.ledgers[ledger].has_series(series))
        });
        let found = known.unwrap_or_else(|| {
            let found = self.find(place);
            self.places.insert(place, found);
            found
        });
        if let Some((ledger, series)) = found {
            entry.place = series;
            self.ledgers[ledger].push(&entry, now);
        }
    }

    /// The ledger and series of a place.
    fn find(&mut self, (place, segment): (u32, u8)) -> Option<(usize, u32)> {
        let (model, version, arm) = self.monitor.placed(place)?;
        let (reading, segment) = self.reading(&model, version, segment);
        let ledger = self.ledger(&model);
        let of: (VersionId, ArmName, &str) = (version, arm, &segment);
        Some((ledger, self.ledgers[ledger].series_of(of, reading.as_ref())))
    }

    /// Reading of a version's outputs, `None` if it has left; and the name of a segment, empty for none.
    fn reading(
        &self,
        model: &ModelName,
        version: VersionId,
        segment: u8,
    ) -> (Option<AnswerReading>, String) {
        let table = self.serving.table();
        let ready = || table.model(model.as_str()).into_iter().flat_map(Model::ready);
        let loaded = ready().find(|loaded| loaded.id() == version);
        // All versions of a model have the same segments.
        let segment = ready().find_map(|loaded| loaded.segment_name(segment));
        (loaded.map(|loaded| loaded.parts().answers.clone()), segment.unwrap_or_default())
    }

    /// Does what was asked; true if it is over.
    fn obey(&mut self, commands: Vec<Command>) -> bool {
        let mut waiting = Vec::new();
        let mut is_over = false;
        for command in commands {
            match command {
                Command::Join { model, outcomes, reply } => match self.known(&model) {
                    Ok(ledger) => waiting.push(self.judge(ledger, outcomes, reply)),
                    Err(error) => drop(reply.send(Err(error))),
                },
                Command::Quality { model, window, reply } => {
                    // Whoever asked may be gone.
                    let _ = reply.send(self.quality(model.as_deref(), window));
                }
                Command::Stop => is_over = true,
            }
        }
        self.settle(waiting);
        is_over
    }

    /// The ledger of a model that is served or was.
    fn known(&mut self, model: &str) -> Result<usize, FeedbackError> {
        let unknown = || FeedbackError::UnknownModel(model.chars().take(128).collect());
        let name = ModelName::parse(model).map_err(|_| unknown())?;
        let policy = self.policies.get(&name);
        if policy.is_some_and(|policy| !policy.rule.enabled) {
            return Err(FeedbackError::Off(name));
        }
        let is_known = self.ledgers.iter().any(|ledger| ledger.model == name)
            || self.serving.table().model(model).is_some();
        if is_known { Ok(self.ledger(&name)) } else { Err(unknown()) }
    }

    fn judge(
        &mut self,
        ledger: usize,
        outcomes: Vec<Outcome>,
        reply: Reply<Vec<Answer>>,
    ) -> Waiting {
        let now = self.serving.unix_now();
        let (mut answers, mut joins) = (Vec::new(), Vec::new());
        for outcome in &outcomes {
            let answer = if self.key.knows(outcome.prediction) {
                match self.ledgers[ledger].judge(outcome, now) {
                    Verdict::Answered(answer) => answer,
                    Verdict::Joins(joined, position) => {
                        joins.push((answers.len(), joined, position));
                        Answer { status: Status::Joined, detail: None, of: None }
                    }
                }
            } else {
                let detail = Some("no prediction of this server".to_owned());
                Answer { status: Status::Unknown, detail, of: None }
            };
            answers.push(answer);
        }
        Waiting { ledger, outcomes, answers, joined: joins, reply }
    }

    /// Writes down what joined, model by model, then counts it and answers.
    fn settle(&mut self, waiting: Vec<Waiting>) {
        let mut by_ledger: BTreeMap<usize, Vec<Waiting>> = BTreeMap::new();
        for request in waiting {
            by_ledger.entry(request.ledger).or_default().push(request);
        }
        let now = self.serving.unix_now();
        for (index, requests) in by_ledger {
            let joined = requests.iter().flat_map(|request| &request.joined);
            let joined: Vec<Joined> = joined.map(|(_, joined, _)| *joined).collect();
            let written = self.ledgers[index].write(&joined);
            for request in requests {
                match &written {
                    Ok(()) => self.answer(request, now),
                    Err(error) => self.take_back(request, error),
                }
            }
        }
    }

    fn answer(&mut self, mut request: Waiting, now: Duration) {
        let ledger = &mut self.ledgers[request.ledger];
        let mut told = Vec::new();
        let mut rises = BTreeMap::new();
        for (index, joined, position) in &request.joined {
            let Some(settled) = ledger.settle((joined, *position), now) else { continue };
            if let Some(rise) = settled.rise {
                rises.entry(settled.of.clone()).or_insert(rise);
            }
            request.answers[*index].of = Some(settled.of);
            if let Some(samples) = &self.samples {
                samples.tell(request.outcomes[*index].sampled(&ledger.model, now));
            }
            told.extend(settled.judged);
        }
        let model = ledger.model.clone();
        for ((version, arm), Rise { before, after }) in rises {
            let told = Drop {
                by: "change".into(),
                metric: "error".into(),
                before: Some(before),
                after,
                limit: None,
                quality: None,
            };
            self.tell_drop(request.ledger, version, &arm, told);
        }
        if !told.is_empty() {
            let mut judged = lock(&self.shared.judged);
            let waiting = judged.entry(model.clone()).or_default();
            let room = JUDGED_MAX.saturating_sub(waiting.len());
            waiting.extend(told.into_iter().take(room));
        }
        let mut counts = lock(&self.shared.counts);
        for answer in &request.answers {
            let (version, arm) = answer.of.clone().map_or_else(
                || (String::new(), String::new()),
                |(version, arm)| (version.to_string(), arm),
            );
            *counts.entry((model.clone(), version, arm, answer.status)).or_default() += 1;
        }
        drop(counts);
        // Whoever brought them may be gone; then they are sent again, and are duplicates.
        let _ = request.reply.send(Ok(request.answers));
    }

    /// Tells that a version became worse, unless that was told lately.
    fn tell_drop(&mut self, index: usize, version: VersionId, arm: &str, mut drop: Drop) {
        let now = self.serving.unix_now();
        // Late outcomes of a version that is gone are no reason for anything.
        let is_here = self.reading(&self.ledgers[index].model, version, 0).0.is_some();
        let ledger = &mut self.ledgers[index];
        if !is_here || !ledger.may_tell(version, now) {
            return;
        }
        let report = quality::report(ledger, DAY, now);
        let is_it =
            |shown: &VersionQuality| shown.version == version.to_string() && shown.arm == arm;
        drop.quality = report.versions.into_iter().find(is_it);
        let (model, detail) = (ledger.model.clone(), drop.detail());
        tracing::warn!(%model, %version, arm, "predictions became worse: {detail}; see `tidegate quality {model}`");
        let object = ledger.stands(version, (arm, &drop), now).object(None);
        let (events, kind) = (self.monitor.events(), EventKind::PerformanceDropped);
        events.tell_about(now, (&model, Some(version)), kind, detail, object);
    }

    /// Tells of drops that are over, and again of those that an earlier process told and that stand.
    fn review(&mut self, index: usize, now: Duration) {
        let ledger = &self.ledgers[index];
        let model = ledger.model.clone();
        let versions: Vec<VersionId> = ledger.drops.keys().copied().map(VersionId::new).collect();
        for version in versions {
            // One that is gone says nothing, and all of it again once it is back.
            let is_here = self.reading(&model, version, 0).0.is_some();
            let ledger = &mut self.ledgers[index];
            let Some(standing) = ledger.drops.get_mut(&version.number()) else { continue };
            let was_told = std::mem::replace(&mut standing.is_told, is_here);
            let standing = standing.clone();
            let detail = standing.drop.detail();
            let told = if !is_here {
                None
            } else if standing.is_over(ledger, version, now) {
                tracing::info!(%model, %version, "predictions are as good again as they were: {detail}, before");
                let over = ledger.is_over(version, now).and_then(|over| over.object(Some(now)));
                Some((format!("it is over: {detail}, before"), over))
            } else if was_told {
                None
            } else {
                tracing::warn!(%model, %version, "predictions are still worse: {detail}; see `tidegate quality {model}`");
                let mut object = standing.object(None).unwrap_or_default();
                object["standing"] = true.into();
                Some((format!("it still stands: {detail}"), Some(object)))
            };
            if let Some((detail, object)) = told {
                let (events, kind) = (self.monitor.events(), EventKind::PerformanceDropped);
                events.tell_about(now, (&model, Some(version)), kind, detail, object);
            }
        }
    }

    /// Compares accuracy with what operators ask for.
    fn check(&mut self, now: Duration) {
        (0..self.ledgers.len()).for_each(|index| self.review(index, now));
        let asks = |index: &usize| self.ledgers[*index].policy.accuracy_min.is_some();
        let asked: Vec<usize> = (0..self.ledgers.len()).filter(asks).collect();
        for index in asked {
            let ledger = &self.ledgers[index];
            let Some(limit) = ledger.policy.accuracy_min else { continue };
            let below = |by| {
                let report = quality::report(ledger, quality::window(by), now);
                quality::below(&report, limit, by)
            };
            let drops = [below("limit"), below("estimate")];
            for (version, arm, drop) in drops.into_iter().flatten() {
                self.tell_drop(index, version, &arm, drop);
            }
        }
    }

    fn take_back(&mut self, request: Waiting, error: &std::io::Error) {
        let ledger = &mut self.ledgers[request.ledger];
        for (_, _, position) in &request.joined {
            ledger.mark(*position, None);
        }
        let model = ledger.model.clone();
        tracing::error!(%model, %error, "outcomes could not be written down; make room below state.path");
        let source = std::io::Error::new(error.kind(), error.to_string());
        let _ = request.reply.send(Err(FeedbackError::Unwritten { model, source }));
    }

    fn quality(
        &mut self,
        model: Option<&str>,
        window: Duration,
    ) -> Result<Vec<QualityReport>, FeedbackError> {
        let now = self.serving.unix_now();
        let report = |ledger: &Ledger| quality::report(ledger, window, now);
        match model {
            None => Ok(self.ledgers.iter().map(report).collect()),
            Some(model) => self.known(model).map(|index| vec![report(&self.ledgers[index])]),
        }
    }

    /// Does what is due each second and each minute.
    fn look_after(&mut self) {
        let now = self.serving.unix_now();
        if now >= self.flushed_at + SECOND {
            self.flushed_at = now;
            self.ledgers.iter_mut().for_each(Ledger::flush);
            self.ledgers.iter_mut().for_each(|ledger| ledger.age(now));
            self.check(now);
            self.bound();
        }
        if now >= self.snapshot_at + MINUTE {
            self.snapshot_at = now;
            self.ledgers.iter_mut().for_each(|ledger| ledger.snapshot(now));
            self.forget();
        }
    }

    /// Drops the oldest of the largest model until all have room.
    fn bound(&mut self) {
        while self.ledgers.iter().map(Ledger::bytes).sum::<u64>() > self.settings.memory_max
            && let Some(largest) = self.ledgers.iter_mut().max_by_key(|ledger| ledger.bytes())
        {
            largest.shrink();
        }
        for ledger in &mut self.ledgers {
            if ledger.bytes() > ledger.policy.memory_max {
                ledger.shrink();
            }
        }
    }

    /// Removes what is left of models that are long gone.
    fn forget(&mut self) {
        let table = self.serving.table();
        let is_gone =
            |ledger: &Ledger| ledger.is_empty() && table.model(ledger.model.as_str()).is_none();
        let gone: Vec<usize> =
            (0..self.ledgers.len()).filter(|index| is_gone(&self.ledgers[*index])).collect();
        drop(table);
        if !gone.is_empty() {
            self.places.clear();
        }
        for index in gone.into_iter().rev() {
            self.ledgers.remove(index).remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_that_fill_fast_are_looked_at_sooner() {
        let pause = |taken, millis| pause(taken, Duration::from_millis(millis)).as_millis();
        assert_eq!([pause(0, 50), pause(0, 1000)], [1000; 2]);
        assert_eq!([pause(1, 250), pause(1024, 250), pause(700, 250), pause(100, 50)], [250; 4]);
        assert_eq!([pause(2048, 50), pause(4096, 20), pause(100_000, 50)], [25, 5, 5]);
        assert_eq!(pause(100, 3_600_000), 250);
    }
}
