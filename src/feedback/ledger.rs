//! One model's predictions and outcomes: what is remembered, what is summed, what is on disk.
//!
//! An outcome is judged first, which marks its prediction, then written down, and only then counted; where it cannot be
//! written, the mark is taken back. Always true:
//! - An outcome counts once, however often it is sent, also across restarts.
//! - What is remembered and what is summed follow from the journal and its snapshot alone.
//!
//! Not here: threads and clients (`joiner`), files (`journal`), what sums show (`quality`).

use std::{collections::BTreeMap, io, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    model::{ArmName, ModelName, VersionId},
    serve::{AnswerReading, ClassName, Predicted, PredictedKind, Recalled},
};

use super::{
    Answer, Judged, Outcome, Policy, Status, Told,
    calibration::{Calibration, Written},
    drops::Standing,
    journal::{FRAME_MAX, Frame, Frames, Joined, Journal, Mark},
    memory::{Kept, Memory},
    quality::Drop,
    tally::{Truth, class_of, step},
    watch::{Miss, Rise, Watch},
    windows::Windows,
};

/// Versions, arms and segments of a model that are summed apart.
const SERIES_MAX: usize = 256;

/// Time between two snapshots that let old segments go: they cost a sync each.
const SNAPSHOT_PAUSE: Duration = Duration::from_secs(10);

/// A model's part.
#[derive(Debug)]
pub(super) struct Ledger {
    pub(super) model: ModelName,
    pub(super) policy: Policy,
    memory: Memory,
    series: BTreeMap<u32, Series>,
    /// Labels against scores, by version.
    calibrations: BTreeMap<u64, Calibration>,
    /// Errors, by version.
    watches: BTreeMap<u64, Watch>,
    /// Drops that stand, by version.
    pub(super) drops: BTreeMap<u64, Standing>,
    next_series: u32,
    journal: Option<Journal>,
    /// Room for what is written next.
    frames: Frames,
    /// The position up to which predictions are written down.
    written: u64,
    /// Series that the open segment does not have yet.
    new_series: Vec<u32>,
    /// True if the sums changed since the snapshot.
    is_changed: bool,
    /// The time of the last snapshot.
    snapshot_at: Duration,
    /// True if something could not be written; told once.
    is_troubled: bool,
}

/// The predictions of a version on an arm, in a segment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Series {
    pub(super) version: u64,
    pub(super) arm: String,
    /// The segment's value; empty for rows of none.
    #[serde(default)]
    pub(super) segment: String,
    /// The positive class's bits.
    pub(super) positive: Option<u64>,
    /// True if the operator named it.
    pub(super) is_positive_named: bool,
    /// True if scores are the positive class's.
    #[serde(default)]
    pub(super) is_binary: bool,
    /// Names of the classes that numbers stand for.
    pub(super) names: Vec<String>,
    /// The time of its newest prediction.
    #[serde(default)]
    newest: Duration,
    #[serde(default)]
    pub(super) windows: Windows,
}

/// A snapshot of the sums.
#[derive(Default, Serialize, Deserialize)]
struct Sums {
    /// The segment and byte up to which they hold.
    mark: Mark,
    series: BTreeMap<u32, Series>,
    #[serde(default)]
    calibrations: BTreeMap<u64, Written>,
    #[serde(default)]
    drops: BTreeMap<u64, Standing>,
}

/// An outcome that counts.
pub(super) struct Settled {
    /// The version and arm that predicted.
    pub(super) of: (VersionId, String),
    /// News for a rollout.
    pub(super) judged: Option<Judged>,
    /// The version's errors rose.
    pub(super) rise: Option<Rise>,
}

/// An outcome against its prediction.
struct Counted {
    of: (VersionId, String),
    wrong: Option<bool>,
    rise: Option<Rise>,
}

/// Consequence of an outcome.
pub(super) enum Verdict {
    /// Nothing changes.
    Answered(Answer),
    /// It joins the prediction at this position.
    Joins(Joined, u64),
}

impl Series {
    fn new(version: VersionId, arm: ArmName, segment: &str, reading: &AnswerReading) -> Self {
        Self {
            version: version.number(),
            arm: arm.as_str().to_owned(),
            segment: segment.to_owned(),
            positive: reading.positive(),
            is_positive_named: reading.is_positive_named(),
            is_binary: false,
            names: reading.names().to_vec(),
            newest: Duration::ZERO,
            windows: Windows::default(),
        }
    }

    /// It without its sums, as segments have it.
    fn head(&self, index: u32) -> serde_json::Value {
        let Self { version, arm, segment, positive, is_positive_named, is_binary, names, .. } =
            self;
        json!({
            "index": index, "version": version, "arm": arm, "segment": segment, "positive": positive,
            "is_positive_named": is_positive_named, "is_binary": is_binary, "names": names,
        })
    }
}

impl Ledger {
    /// A model's ledger, with what is on disk.
    pub(super) fn open(
        model: ModelName,
        policy: Policy,
        folder: Option<PathBuf>,
        now: Duration,
    ) -> Self {
        let mut ledger = Self {
            model,
            policy,
            memory: Memory::default(),
            series: BTreeMap::new(),
            calibrations: BTreeMap::new(),
            watches: BTreeMap::new(),
            drops: BTreeMap::new(),
            next_series: 0,
            journal: None,
            written: 0,
            new_series: Vec::new(),
            is_changed: false,
            snapshot_at: now,
            frames: Frames::default(),
            is_troubled: false,
        };
        if let Some(folder) = folder {
            let opened = Journal::open(folder.clone());
            match opened.and_then(|journal| ledger.restore(journal, now)) {
                Ok(journal) => ledger.journal = Some(journal),
                Err(error) => tracing::warn!(
                    model = %ledger.model,
                    "outcomes are not kept: {}: {error}; make it readable and writable, and restart",
                    folder.display()
                ),
            }
        }
        ledger
    }

    /// Reads the snapshot, and what was written behind it.
    fn restore(&mut self, mut journal: Journal, now: Duration) -> io::Result<Journal> {
        let sums = journal.sums().and_then(|sums| serde_json::from_value::<Sums>(sums).ok());
        let Sums { mark, series, calibrations, drops } = sums.unwrap_or_default();
        self.watches = drops.iter().map(|(version, drop)| (*version, drop.watch())).collect();
        self.drops = drops;
        let read = |(version, written): (&u64, &Written)| (*version, Calibration::read(written));
        self.calibrations = calibrations.iter().map(read).collect();
        self.next_series = series.keys().next_back().map_or(0, |last| last + 1);
        self.series = series;
        let each = |ledger: &mut Self, frame, at: Mark| {
            ledger.replay(frame, at > mark, now);
            ledger.memory.trim(Duration::ZERO, ledger.policy.memory_max);
        };
        journal.replay(self, each, |ledger| ledger.memory.end())?;
        self.memory.trim(now.saturating_sub(self.policy.ttl), u64::MAX);
        self.written = self.memory.end();
        self.is_changed = true;
        Ok(journal)
    }

    fn replay(&mut self, frame: Frame, is_new: bool, now: Duration) {
        match frame {
            Frame::Series(head) => {
                let index = head["index"].as_u64().and_then(|index| u32::try_from(index).ok());
                let series = serde_json::from_value::<Series>(head);
                if let (Some(index), Ok(series)) = (index, series) {
                    self.series.entry(index).or_insert(series);
                    self.next_series = self.next_series.max(index + 1);
                }
            }
            Frame::Predictions(entries) => {
                for entry in &entries {
                    self.memory.push(entry);
                    if is_new {
                        self.serve(entry, now);
                    }
                }
            }
            Frame::Outcomes(outcomes) => {
                for joined in &outcomes {
                    let position = self.memory.find(joined.prediction, joined.row);
                    if let Some(kept) = position.and_then(|at| self.memory.at_mut(at)) {
                        kept.join(Some(joined.truth));
                        let recalled = kept.recalled();
                        self.memory.may_speak(joined.prediction);
                        if is_new {
                            self.count(joined, &recalled, now);
                        }
                    }
                }
            }
        }
    }

    /// The series of a version on an arm, in a segment; made where it is new, or its outputs are read in another way by
    /// now. Without a reading, whichever there is.
    pub(super) fn series_of(
        &mut self,
        (version, arm, segment): (VersionId, ArmName, &str),
        reading: Option<&AnswerReading>,
    ) -> u32 {
        let is_read_alike = |series: &Series, reading: &AnswerReading| {
            (series.positive, series.is_positive_named, &series.names[..])
                == (reading.positive(), reading.is_positive_named(), reading.names())
        };
        let is_it = |series: &Series| {
            series.version == version.number()
                && series.arm == arm.as_str()
                && series.segment == segment
                && reading.is_none_or(|reading| is_read_alike(series, reading))
        };
        // The newest: an older one may be of other files of the same version.
        let found = self.series.iter().rev().find(|(_, series)| is_it(series));
        if let Some((index, _)) = found {
            return *index;
        }
        if self.series.len() >= SERIES_MAX
            && let Some(oldest) = self.series.iter().min_by_key(|(_, series)| series.newest)
        {
            let oldest = *oldest.0;
            self.series.remove(&oldest);
        }
        let index = self.next_series;
        self.next_series += 1;
        let unknown = AnswerReading::default();
        let reading = reading.unwrap_or(&unknown);
        self.series.insert(index, Series::new(version, arm, segment, reading));
        self.new_series.push(index);
        index
    }

    pub(super) fn has_series(&self, index: u32) -> bool {
        self.series.contains_key(&index)
    }

    pub(super) fn series(&self) -> impl Iterator<Item = &Series> {
        self.series.values()
    }

    /// Remembers and counts a prediction; its place is the index of its series.
    pub(super) fn push(&mut self, entry: &Recalled, now: Duration) {
        self.memory.push(entry);
        self.serve(entry, now);
    }

    fn serve(&mut self, entry: &Recalled, now: Duration) {
        let Some(series) = self.series.get_mut(&entry.place) else { return };
        series.newest = series.newest.max(entry.at);
        series.is_binary |= entry.predicted.is_positives;
        let rows = match entry.row {
            _ if entry.is_apart => 1,
            0 => entry.rows.max(1),
            _ => 0,
        };
        let positive = series.positive;
        if let Some(tally) = series.windows.of(entry.at, now) {
            tally.serve(&entry.predicted, rows.into(), positive);
            self.is_changed = true;
        }
    }

    /// Says what an outcome comes to, and marks the prediction that it joins.
    pub(super) fn judge(&mut self, outcome: &Outcome, now: Duration) -> Verdict {
        let name = outcome.prediction;
        let answered = |status, detail: String| {
            Verdict::Answered(Answer { status, detail: Some(detail), of: None })
        };
        if name.made_at() + self.policy.ttl < now {
            let ttl = self.policy.ttl.as_secs();
            return answered(Status::Late, format!("older than feedback.ttl, {ttl} s"));
        }
        let Some(position) = self.memory.find(name, outcome.row) else {
            return match self.memory.rows(name) {
                Some(rows) if outcome.row >= rows => answered(
                    Status::Invalid,
                    format!("row {} of a request of {rows}; rows count from 0", outcome.row),
                ),
                _ => answered(Status::Late, "gone from memory, or of another model".to_owned()),
            };
        };
        let Some(kept) = self.memory.at(position) else { unreachable!("it was found") };
        let (recalled, before) = (kept.recalled(), kept.joined());
        let Some(series) = self.series.get(&recalled.place) else {
            return answered(Status::Late, "its version is not counted any more".to_owned());
        };
        let of = Some((VersionId::new(series.version), series.arm.clone()));
        let (truth, echo) = match translate(outcome, &recalled.predicted, &series.names) {
            Ok(translated) => translated,
            Err(detail) => {
                let detail = Some(detail);
                return Verdict::Answered(Answer { status: Status::Invalid, detail, of });
            }
        };
        if let Some(before) = before {
            let detail = (before != truth)
                .then(|| "another outcome was joined before; the first stays".to_owned());
            return Verdict::Answered(Answer { status: Status::Duplicate, detail, of });
        }
        let at = outcome.at.unwrap_or(now).min(now);
        let delay = at.saturating_sub(recalled.at);
        let joined = Joined { prediction: name, row: outcome.row, truth, echo, delay };
        self.mark(position, Some(truth));
        Verdict::Joins(joined, position)
    }

    /// Marks a prediction as joined, or takes the mark back.
    pub(super) fn mark(&mut self, position: u64, truth: Option<Truth>) {
        if let Some(kept) = self.memory.at_mut(position) {
            kept.join(truth);
        }
    }

    /// Counts an outcome that was written down.
    pub(super) fn settle(
        &mut self,
        (joined, position): (&Joined, u64),
        now: Duration,
    ) -> Option<Settled> {
        let recalled = self.memory.at(position)?.recalled();
        let counted = self.count(joined, &recalled, now)?;
        let wrong = counted.wrong;
        let speaks = recalled.assigned.is_some() && self.memory.may_speak(joined.prediction);
        let judged = recalled.assigned.filter(|_| speaks).map(|assigned| {
            let told = match joined.truth {
                Truth::Class(_) => Told { happened: true, wrong },
                Truth::Value(_) => Told { happened: true, wrong: None },
                Truth::Reward(reward) => Told { happened: reward > 0.0, wrong: None },
            };
            Judged { prediction: joined.prediction, at: recalled.at, assigned, told }
        });
        Some(Settled { of: counted.of, judged, rise: counted.rise })
    }

    /// Adds an outcome to the sums.
    fn count(&mut self, joined: &Joined, recalled: &Recalled, now: Duration) -> Option<Counted> {
        let series = self.series.get_mut(&recalled.place)?;
        self.is_changed = true;
        let predicted = match (recalled.predicted.kind, joined.echo) {
            (PredictedKind::Nothing, Some(Truth::Class(bits))) => {
                Predicted { kind: PredictedKind::Number, bits, ..Predicted::NOTHING }
            }
            (PredictedKind::Nothing, Some(Truth::Value(value))) => {
                let bits = value.to_bits();
                Predicted { kind: PredictedKind::Value, bits, ..Predicted::NOTHING }
            }
            _ => recalled.predicted,
        };
        if let Some(tally) = series.windows.of(recalled.at, now) {
            tally.join(&predicted, joined.truth, series.positive, joined.delay.as_secs_f64());
        }
        let class = class_of(&predicted);
        let miss = match joined.truth {
            Truth::Class(actual) => class.map(|class| Miss::Class(class != actual)),
            Truth::Value(actual) if predicted.kind == PredictedKind::Value => {
                Some(Miss::Value(f64::from_bits(predicted.bits) - actual))
            }
            Truth::Value(_) | Truth::Reward(_) => None,
        };
        if let Truth::Class(actual) = joined.truth
            && step(predicted.score).is_some()
        {
            let of_score = if predicted.is_positives { series.positive } else { class };
            let calibration = self.calibrations.entry(series.version).or_default();
            calibration.add(predicted.score.into(), of_score == Some(actual));
        }
        let watch = self.watches.entry(series.version).or_default();
        let rise = miss.and_then(|miss| watch.add(miss));
        let wrong = match miss {
            Some(Miss::Class(wrong)) => Some(wrong),
            _ => None,
        };
        let of = (VersionId::new(series.version), series.arm.clone());
        Some(Counted { of, wrong, rise })
    }

    /// Writes predictions that are not written yet, and outcomes, which are synced.
    pub(super) fn write(&mut self, outcomes: &[Joined]) -> io::Result<()> {
        let end = self.memory.end();
        let from = self.written.max(self.memory.first());
        let Some(journal) = &mut self.journal else {
            self.written = end;
            return Ok(());
        };
        if from == end && outcomes.is_empty() {
            return Ok(());
        }
        for index in &self.new_series {
            if let Some(series) = self.series.get(index) {
                self.frames.series(&series.head(*index));
            }
        }
        let series = &self.series;
        let head = || {
            let mut head = Frames::default();
            for (index, series) in series {
                head.series(&series.head(*index));
            }
            head
        };
        let mut at = from;
        loop {
            let next = end.min(at + FRAME_MAX as u64);
            if next > at {
                let fresh = (at..next).filter_map(|position| self.memory.at(position));
                self.frames.predictions(fresh.map(Kept::words));
            }
            let is_last = next == end;
            if is_last {
                self.frames.outcomes(outcomes);
            }
            let synced = is_last && !outcomes.is_empty();
            let done = journal.append(&self.frames, synced, head, self.written);
            self.frames.clear();
            done?;
            self.new_series.clear();
            (at, self.written) = (next, next);
            if is_last {
                return Ok(());
            }
        }
    }

    /// Writes predictions that are not written yet; what fails is told once, and tried again.
    pub(super) fn flush(&mut self) {
        match self.write(&[]) {
            Ok(()) => self.is_troubled = false,
            Err(error) => self.complain(&error),
        }
    }

    fn complain(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.is_troubled, true) {
            let folder = self.journal.as_ref().map(|journal| journal.folder().display());
            tracing::warn!(
                model = %self.model,
                "predictions for outcomes are not written down: {}: {error}; make room or make it writable",
                folder.map_or_else(String::new, |folder| folder.to_string()),
            );
        }
    }

    /// Lets time pass: windows grow longer, and old predictions are dropped.
    pub(super) fn age(&mut self, now: Duration) {
        self.memory.trim(now.saturating_sub(self.policy.ttl), self.policy.memory_max);
        for series in self.series.values_mut() {
            series.windows.age(now);
        }
        let written = self.written;
        let first = self.memory.first();
        // What was never written and is gone needs no writing.
        self.written = written.max(first);
        self.series.retain(|_, series| {
            !series.windows.is_empty() || series.newest + super::windows::AGE_MAX > now
        });
        let is_summed = |version: &u64| self.series.values().any(|it| it.version == *version);
        self.calibrations.retain(|version, _| is_summed(version));
        self.watches.retain(|version, _| is_summed(version));
        self.drops.retain(|version, _| is_summed(version));
        let has_old = self.journal.as_ref().is_some_and(|journal| journal.has_old(first));
        if has_old && now >= self.snapshot_at + SNAPSHOT_PAUSE {
            self.snapshot(now);
        }
    }

    /// Writes the sums down where they changed, and removes segments that nobody needs.
    pub(super) fn snapshot(&mut self, now: Duration) {
        self.snapshot_at = now;
        self.flush();
        let first = self.memory.first();
        let Some(journal) = &mut self.journal else { return };
        if !self.is_changed && !journal.has_old(first) || self.is_troubled {
            return;
        }
        let calibrations = self.calibrations.iter();
        let calibrations = calibrations.map(|(version, it)| (*version, it.write())).collect();
        let (mark, drops) = (journal.mark(), self.drops.clone());
        let sums = Sums { mark, series: self.series.clone(), calibrations, drops };
        let sums = serde_json::to_value(&sums).expect("sums are plain JSON");
        match journal.snapshot(&sums, first) {
            Ok(()) => self.is_changed = false,
            Err(error) => self.complain(&error),
        }
    }

    /// Labels against a version's scores.
    pub(super) fn calibration(&self, version: u64) -> Option<&Calibration> {
        self.calibrations.get(&version)
    }

    /// True if it may be told now that a version became worse.
    pub(super) fn may_tell(&mut self, version: VersionId, now: Duration) -> bool {
        let watch = self.watches.entry(version.number()).or_default();
        watch.may_tell(now, self.policy.cooldown)
    }

    /// The mean error of a version since it last changed; `None` while it is of few.
    pub(super) fn mean_error(&self, version: VersionId) -> Option<f64> {
        self.watches.get(&version.number())?.mean()
    }

    /// Keeps a drop that is told now, until it is over; returns it.
    pub(super) fn stands(
        &mut self,
        version: VersionId,
        of: (&str, &Drop),
        now: Duration,
    ) -> &Standing {
        let watch = self.watches.entry(version.number()).or_default();
        let drop = Standing::new(of, watch, self.drops.get(&version.number()), now);
        self.drops.insert(version.number(), drop);
        // At once: a process that is killed must not tell it anew.
        self.is_changed = true;
        self.snapshot(now);
        &self.drops[&version.number()]
    }

    /// Takes a drop that is over out.
    pub(super) fn is_over(&mut self, version: VersionId, now: Duration) -> Option<Standing> {
        let over = self.drops.remove(&version.number())?;
        self.is_changed = true;
        self.snapshot(now);
        Some(over)
    }

    /// Drops the oldest part of what is remembered.
    pub(super) fn shrink(&mut self) {
        self.memory.trim(Duration::ZERO, self.memory.bytes() / 16 * 15);
        self.written = self.written.max(self.memory.first());
    }

    /// Bytes that what is remembered is taken to occupy.
    pub(super) fn bytes(&self) -> u64 {
        self.memory.bytes()
    }

    /// True if nothing is left of the model.
    pub(super) fn is_empty(&self) -> bool {
        self.series.is_empty() && self.memory.bytes() == 0
    }

    /// Removes its files.
    pub(super) fn remove(self) {
        if let Some(journal) = self.journal {
            journal.remove();
        }
    }
}

/// An outcome in the terms of its prediction, and what the client says was predicted; or what is wrong with it.
fn translate(
    outcome: &Outcome,
    predicted: &Predicted,
    names: &[String],
) -> Result<(Truth, Option<Truth>), String> {
    let class = |class: &ClassName| {
        let bits = match predicted.kind {
            PredictedKind::Text => class.bits(true, names),
            PredictedKind::Number | PredictedKind::Value => class.bits(false, names),
            // The client's word is all there is.
            PredictedKind::Nothing => class.bits(false, names).or_else(|| class.bits(true, names)),
        };
        bits.ok_or_else(|| {
            let known = if names.is_empty() { "numbers".to_owned() } else { names.join(", ") };
            format!("`label` {class} is none of the model's classes: {known}")
        })
    };
    let truth = match &outcome.truth {
        super::Actual::Label(label) => Truth::Class(class(label)?),
        super::Actual::Value(value) => Truth::Value(*value),
        super::Actual::Reward(reward) => Truth::Reward(*reward),
    };
    match (truth, predicted.kind) {
        (Truth::Value(_), PredictedKind::Number | PredictedKind::Text) => {
            return Err("the model predicts classes; send `label`".to_owned());
        }
        (Truth::Class(bits), PredictedKind::Value) if bits > 1 => {
            return Err("the model predicts a number; send `value`, or the label 0 or 1".to_owned());
        }
        _ => {}
    }
    let echo = match &outcome.echo {
        None => None,
        Some(super::Echo::Number(value)) if matches!(truth, Truth::Value(_)) => {
            Some(Truth::Value(*value))
        }
        Some(super::Echo::Number(value)) => whole(*value)
            .map(|number| class(&ClassName::Number(number)).map(Truth::Class))
            .transpose()?,
        Some(super::Echo::Text(text)) => Some(Truth::Class(class(&ClassName::Text(text.clone()))?)),
    };
    let differs = match (echo, predicted.kind) {
        (Some(Truth::Class(echo)), PredictedKind::Number | PredictedKind::Text) => {
            echo != predicted.bits
        }
        (Some(Truth::Value(echo)), PredictedKind::Value) => {
            let own = f64::from_bits(predicted.bits);
            (echo - own).abs() > 1e-6 * own.abs().max(1e-6)
        }
        _ => false,
    };
    if differs {
        return Err(
            "`prediction` is not what was predicted: is it another prediction's?".to_owned()
        );
    }
    let is_unread = predicted.kind == PredictedKind::Nothing;
    Ok((truth, echo.filter(|_| is_unread)))
}

/// A number that is whole, as one.
fn whole(value: f64) -> Option<i64> {
    let is_whole = value.fract() == 0.0 && value.abs() < 9_007_199_254_740_992.0;
    #[expect(clippy::cast_possible_truncation, reason = "whole numbers of 53 bits")]
    let number = value as i64;
    is_whole.then_some(number)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::{feedback::Actual, model::PredictionId};

    const NOW: Duration = Duration::from_hours(500_000);

    fn open(folder: &Path) -> Ledger {
        let model = ModelName::parse("m").unwrap();
        Ledger::open(model, Policy::default(), Some(folder.to_owned()), NOW)
    }

    fn predict(ledger: &mut Ledger, name: PredictionId) {
        let of = (VersionId::new(1), ArmName::BASELINE, "");
        let place = ledger.series_of(of, None);
        let predicted =
            Predicted { kind: PredictedKind::Number, bits: 1, score: 0.75, is_positives: true };
        let entry = Recalled {
            prediction: name,
            row: 0,
            rows: 1,
            place,
            at: NOW,
            predicted,
            segment: 0,
            is_apart: false,
            assigned: None,
        };
        ledger.push(&entry, NOW);
    }

    fn outcome(prediction: PredictionId, label: i64) -> Outcome {
        let truth = Actual::Label(ClassName::Number(label));
        Outcome { prediction, row: 0, truth, echo: None, at: None }
    }

    fn status(verdict: &Verdict) -> Status {
        match verdict {
            Verdict::Answered(answer) => answer.status,
            Verdict::Joins(..) => Status::Joined,
        }
    }

    /// Judges and writes an outcome; its status.
    fn join(ledger: &mut Ledger, outcome: &Outcome) -> io::Result<Status> {
        let verdict = ledger.judge(outcome, NOW);
        if let Verdict::Joins(joined, position) = &verdict {
            let written = ledger.write(std::slice::from_ref(joined));
            if written.is_err() {
                ledger.mark(*position, None);
            }
            written?;
            ledger.settle((joined, *position), NOW).unwrap();
        }
        Ok(status(&verdict))
    }

    fn labelled(ledger: &Ledger) -> (u64, u64) {
        let tally = ledger.series().next().unwrap().windows.since(Duration::ZERO);
        (tally.served, tally.labelled)
    }

    fn name(count: u128) -> PredictionId {
        PredictionId::from_bits(u128::from(NOW.as_secs()) << 96 | count << 32)
    }

    #[test]
    fn what_cannot_be_written_does_not_count_and_may_be_sent_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = open(folder.path());
        predict(&mut ledger, name(1));
        let obstacle = folder.path().join("00000001.segment");
        fs::create_dir(&obstacle).unwrap();
        join(&mut ledger, &outcome(name(1), 1)).unwrap_err();
        assert_eq!(labelled(&ledger), (1, 0));
        fs::remove_dir(&obstacle).unwrap();
        assert_eq!(join(&mut ledger, &outcome(name(1), 1)).unwrap(), Status::Joined);
        assert_eq!(labelled(&ledger), (1, 1));
    }

    #[test]
    fn sums_and_memory_follow_from_what_is_on_disk_with_and_without_a_snapshot() {
        let folder = tempfile::tempdir().unwrap();
        for round in 0..4_u64 {
            let mut ledger = open(folder.path());
            if round > 0 {
                assert_eq!(labelled(&ledger), (2 * round, round), "round {round}");
                let before = name(u128::from(round) * 2);
                let status = join(&mut ledger, &outcome(before, 1)).unwrap();
                assert_eq!(status, Status::Duplicate, "round {round}");
            }
            let own = u128::from(round + 1) * 2;
            predict(&mut ledger, name(own));
            predict(&mut ledger, name(own + 1));
            assert_eq!(join(&mut ledger, &outcome(name(own), 0)).unwrap(), Status::Joined);
            if round % 2 == 0 {
                ledger.snapshot(NOW);
            }
            // One that is forgotten is late, and so is one that is too old.
            assert_eq!(status(&ledger.judge(&outcome(name(99), 1), NOW)), Status::Late);
            let later = NOW + Duration::from_hours(24 * 8);
            assert_eq!(status(&ledger.judge(&outcome(name(own + 1), 1), later)), Status::Late);
        }
        let mut ledger = open(folder.path());
        ledger.age(NOW + Duration::from_hours(24 * 40));
        assert!(ledger.is_empty());
        ledger.remove();
        assert!(!fs::exists(folder.path()).unwrap());
    }
}
