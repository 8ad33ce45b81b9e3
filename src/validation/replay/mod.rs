//! A version on recorded requests: are its answers those that were given, or those of another version?
//!
//! [`Replay::next_job`] gives one run after the other, [`Replay::take`] compares what came of it; between the two
//! stands whoever runs versions: [`Replay::run`] in this process, or a client of a server, with many runs at once.
//! Always true:
//! - Memory is bounded, whatever the size of the files: a batch of rows, sums for each output, and a few rows.
//! - A run that fails is counted with its reason and does not end the replay.
//! - Rows of predictions that failed are left out and counted by their code.
//!
//! Not here: the format of tables (`dataset`), loading versions, sending requests.

mod agreement;
mod picks;
mod recorded;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use serde::Serialize;

use crate::{model::Input, tensor::Tensor};

pub use agreement::{OutputAgreement, Tolerance, WorstRow};
pub use picks::Pick;

use super::{Settings, Subject, ValidationError};
use agreement::RowDifference;
use picks::Picks;
use recorded::{Next, Reading, Recorded};

/// Reasons of failures that are told apart.
const REASONS_MAX: usize = 16;

/// Options of a replay.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplayRequest {
    /// A file, or the folder of a table of predictions.
    pub data: PathBuf,
    /// Columns that are neither inputs nor outputs.
    pub ignored: Vec<String>,
    /// Rows of one run, where they do not belong to a prediction.
    pub batch_rows: usize,
    /// Rows to stop after; `None` for all.
    pub rows_max: Option<u64>,
    /// The distance that numbers may be apart.
    pub tolerance: Tolerance,
    /// Rows that are shown.
    pub worst_max: usize,
    /// Requests of one row to give back at the end, spread over all of them.
    pub picks: usize,
    /// By subject: names of the features of each input, where they are known.
    pub names: Vec<Vec<Option<Vec<String>>>>,
    /// Bounds of the data.
    pub settings: Settings,
}

/// Result of a replay.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReplayReport {
    /// The model.
    pub model: String,
    /// The version.
    pub version: u64,
    /// The version that it is compared with; `None` for the recorded outputs.
    pub against: Option<u64>,
    /// The files.
    pub data: String,
    /// Requests that were made.
    pub requests: u64,
    /// Rows of these.
    pub rows: u64,
    /// Rows of which every output that was compared is within the tolerance.
    pub within: u64,
    /// Rows that were left out, by the code of their prediction.
    pub left_out: BTreeMap<i64, u64>,
    /// The distance that numbers may be apart.
    pub tolerance: Tolerance,
    /// Each output that was compared.
    pub outputs: Vec<OutputAgreement>,
    /// Outputs to compare with that the version does not have: its clients would lack them.
    pub missing: Vec<String>,
    /// The rows that differ most, the worst first.
    pub worst: Vec<WorstRow>,
    /// Runs without an answer, by version and reason.
    pub failures: Vec<FailedRuns>,
    /// Remarks.
    pub notes: Vec<String>,
    /// True if all is within the tolerance and nothing failed.
    pub passed: bool,
}

/// Runs without an answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FailedRuns {
    /// The version.
    pub version: u64,
    /// Message of the engine, or the code of a server.
    pub reason: String,
    /// The number of them.
    pub requests: u64,
}

/// A run: rows that are asked together.
#[derive(Debug)]
pub struct Job {
    /// By subject: the inputs, in the signature's order.
    pub inputs: Vec<Vec<Input>>,
    /// The arrival of the recorded request, since 1970.
    pub at: Option<Duration>,
    /// Rows.
    pub rows: usize,
    file: PathBuf,
    row: u64,
    prediction: Option<String>,
    /// The recorded outputs, by their place; `None` where there is none.
    expected: Vec<Option<Tensor>>,
}

/// Answers to a run, by subject: its outputs in the signature's order, or why there are none.
pub type Answers = Vec<Result<Vec<Tensor>, String>>;

/// A replay that goes on.
pub struct Replay<'s> {
    request: ReplayRequest,
    subjects: Vec<Subject<'s>>,
    recorded: Recorded,
    sums: Sums,
    picks: Picks,
}

/// Counts and sums.
struct Sums {
    /// By the place of the output.
    outputs: Vec<OutputAgreement>,
    requests: u64,
    rows: u64,
    within: u64,
    left_out: BTreeMap<i64, u64>,
    missing: BTreeSet<String>,
    worst: Vec<WorstRow>,
    failures: BTreeMap<(u64, String), u64>,
}

impl std::fmt::Debug for Replay<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replay").field("request", &self.request).finish_non_exhaustive()
    }
}

impl<'s> Replay<'s> {
    /// Opens the files; `against` answers the same rows.
    ///
    /// # Errors
    /// If there is nothing to read, or nothing to compare with.
    pub fn open(
        request: ReplayRequest,
        subject: Subject<'s>,
        against: Option<Subject<'s>>,
    ) -> Result<Self, ValidationError> {
        let subjects: Vec<_> = std::iter::once(subject).chain(against).collect();
        let mut names = request.names.clone();
        names.resize(subjects.len(), Vec::new());
        let reading = Reading {
            limits: request.settings.limits(),
            ignored: request.ignored.clone(),
            batch_rows: request.batch_rows.max(1),
            names,
            wants_outputs: subjects.len() == 1,
        };
        let recorded = Recorded::find(&request.data, &subjects[0].model, reading)?;
        let outputs = &subjects[0].signature.outputs;
        let sums = Sums {
            outputs: outputs.iter().map(|spec| OutputAgreement::new(&spec.name)).collect(),
            requests: 0,
            rows: 0,
            within: 0,
            left_out: BTreeMap::new(),
            missing: BTreeSet::new(),
            worst: Vec::new(),
            failures: BTreeMap::new(),
        };
        let picks = Picks::new(request.picks);
        let mut replay = Self { request, subjects, recorded, sums, picks };
        if let [own, other] = replay.subjects.as_slice() {
            let has = |name: &str| own.signature.outputs.iter().any(|spec| spec.name == name);
            let missing = other.signature.outputs.iter().filter(|spec| !has(&spec.name));
            replay.sums.missing.extend(missing.map(|spec| spec.name.clone()));
        }
        Ok(replay)
    }

    /// Rows that were read, and how many there are where that is known.
    pub fn progress(&self) -> (u64, Option<u64>) {
        let (done, total) = self.recorded.progress();
        (done, total.map(|total| total.min(self.request.rows_max.unwrap_or(u64::MAX))))
    }

    /// The next run; `None` after the last.
    ///
    /// # Errors
    /// If a file cannot be read, or its rows do not fit the version.
    pub fn next_job(&mut self) -> Result<Option<Job>, ValidationError> {
        loop {
            if self.request.rows_max.is_some_and(|most| self.recorded.progress().0 >= most) {
                return Ok(None);
            }
            let run = match self.recorded.next(&self.subjects)? {
                None => return Ok(None),
                Some(Next::LeftOut(code, rows)) => {
                    *self.sums.left_out.entry(code).or_default() += rows;
                    continue;
                }
                Some(Next::Run(run)) => *run,
            };
            for foreign in self.recorded.foreign() {
                if !self.sums.missing.contains(foreign) {
                    self.sums.missing.insert(foreign.clone());
                }
            }
            self.sums.requests += 1;
            let outputs = run.outputs.iter().map(Option::as_ref);
            self.picks.offer(&run.inputs[0], outputs.collect(), run.rows)?;
            return Ok(Some(Job {
                inputs: run.inputs,
                at: run.at,
                rows: run.rows,
                file: run.file,
                row: run.row,
                prediction: run.prediction,
                expected: run.outputs,
            }));
        }
    }

    /// Runs the versions in this process, and compares.
    pub fn run(&mut self, mut job: Job) {
        let inputs = std::mem::take(&mut job.inputs);
        let both = self.subjects.iter_mut().zip(inputs);
        let answers = both.map(|(subject, inputs)| (subject.predict)(inputs)).collect();
        self.take(&job, answers);
    }

    /// Compares the answers to a run.
    pub fn take(&mut self, job: &Job, answers: Answers) {
        self.sums.rows += job.rows as u64;
        let mut all = Vec::with_capacity(answers.len());
        for (subject, answer) in self.subjects.iter().zip(answers) {
            match answer {
                Ok(outputs) => all.push(outputs),
                Err(reason) => self.sums.fail(subject.version, reason),
            }
        }
        if all.len() < self.subjects.len() {
            return;
        }
        let mut is_within = vec![true; job.rows];
        for (place, sums) in self.sums.outputs.iter_mut().enumerate() {
            let expected = match self.subjects.get(1) {
                Some(other) => {
                    let theirs = other.signature.output(&sums.output).ok();
                    theirs.and_then(|theirs| all[1].get(theirs))
                }
                None => job.expected.get(place).and_then(Option::as_ref),
            };
            let (Some(expected), Some(actual)) = (expected, all[0].get(place)) else {
                sums.unrecorded += job.rows as u64;
                continue;
            };
            let differing = sums.add(expected, actual, job.rows, self.request.tolerance);
            for (row, found) in differing {
                is_within[row] &= found.within;
                note(&mut self.sums.worst, job, &sums.output, row, found, self.request.worst_max);
            }
        }
        self.sums.within += is_within.iter().filter(|within| **within).count() as u64;
    }

    /// The report, and the requests that were picked.
    ///
    /// # Errors
    /// If nothing was compared.
    pub fn finish(self) -> Result<(ReplayReport, Vec<Pick>), ValidationError> {
        let Self { request, subjects, sums, picks, .. } = self;
        let (own, against) = (&subjects[0], subjects.get(1).map(|subject| subject.version));
        let data = request.data.display();
        if sums.rows == 0 {
            return Err(ValidationError::Columns(format!(
                "`{data}` has no rows of predictions that succeeded"
            )));
        }
        let mut notes = Vec::new();
        let (compared, without): (Vec<_>, Vec<_>) =
            sums.outputs.into_iter().partition(|output| output.rows > 0);
        for output in without.iter().filter(|_| sums.failures.is_empty()) {
            notes.push(match against {
                Some(other) => format!("version {other} has no output `{}`", output.output),
                None => format!("output `{}` was not recorded, or is redacted", output.output),
            });
        }
        let nothing = compared.is_empty() && sums.failures.is_empty() && sums.missing.is_empty();
        if nothing && request.picks == 0 {
            return Err(ValidationError::Columns(format!(
                "`{data}` has no recorded outputs of {} version {} (columns `output:NAME`); name a version to compare with \
                 by --against",
                own.model, own.version
            )));
        }
        let failures = sums.failures.into_iter();
        let failures: Vec<_> = failures
            .map(|((version, reason), requests)| FailedRuns { version, reason, requests })
            .collect();
        let is_within = compared.iter().all(|output| output.within == output.rows);
        let passed = is_within && failures.is_empty() && sums.missing.is_empty();
        let report = ReplayReport {
            model: own.model.clone(),
            version: own.version,
            against,
            data: data.to_string(),
            requests: sums.requests,
            rows: sums.rows,
            within: sums.within,
            left_out: sums.left_out,
            tolerance: request.tolerance,
            outputs: compared,
            missing: sums.missing.into_iter().collect(),
            worst: sums.worst,
            failures,
            notes,
            passed,
        };
        Ok((report, picks.finish()))
    }
}

impl Sums {
    /// Counts a run without an answer.
    fn fail(&mut self, version: u64, reason: String) {
        let is_known = self.failures.contains_key(&(version, reason.clone()));
        let is_full = !is_known && self.failures.len() >= REASONS_MAX;
        let reason = if is_full { "other reasons".to_owned() } else { reason };
        *self.failures.entry((version, reason)).or_default() += 1;
    }
}

/// Keeps a row among the worst if it is one of them.
fn note(
    worst: &mut Vec<WorstRow>,
    job: &Job,
    output: &str,
    row: usize,
    found: RowDifference,
    most: usize,
) {
    let flipped = found.flipped == Some(true);
    let before = |other: &WorstRow| match (other.flipped, flipped) {
        (true, false) => true,
        (false, true) => false,
        _ => other.tolerances >= found.tolerances,
    };
    let place = worst.partition_point(before);
    if place >= most {
        return;
    }
    worst.truncate(most - 1);
    let new = WorstRow {
        file: job.file.display().to_string(),
        row: job.row + row as u64,
        prediction_id: job.prediction.clone(),
        output: output.to_owned(),
        element: found.element,
        expected: found.expected,
        actual: found.actual,
        flipped,
        tolerances: found.tolerances,
    };
    worst.insert(place, new);
}
