//! A version against labelled data: how good its answers are, how fast, and whether another version is better.
//!
//! The data are read twice: once for the labels alone, so that it is known which classes there are and how many rows,
//! and once to run the version on batches of rows. Always true:
//! - Memory is bounded, whatever the size of the data: sums for most metrics; for the area under the ROC curve and for
//!   the bootstrap a sample of rows, drawn with a fixed seed, where there are more than fit.
//! - The same versions, data and settings give the same report, times aside.
//! - A metric that cannot be computed is absent and says why; a threshold on it fails.
//!
//! Versions come as closures, so that a server can validate what it has loaded, and a command what it loads for this.
//! Not here: loading versions (`lifecycle`), files (`dataset`), formulas (`stats`).

mod answers;
mod binding;
mod classes;
mod compare;
mod judge;
mod markdown;
mod metric;
pub mod replay;
mod report;
mod sample;
mod survey;
#[cfg(test)]
mod tests;

use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use crate::{
    dataset::{Batch, Dataset, DatasetError, Limits},
    model::{Input, Signature},
    tensor::Tensor,
};

pub use metric::{Metric, Task, Threshold, ThresholdError};
pub use report::{
    ClassReport, Comparison, DataReport, Difference, Latency, MetricReport, Report,
    ThresholdReport, Verdict,
};

use binding::Binding;
use compare::Pairs;
use judge::Judge;
use survey::Survey;

/// The most that data may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Columns of a file.
    pub columns_max: usize,
    /// Bytes of one text, or of one cell of a CSV file.
    pub text_bytes_max: usize,
    /// Bytes of a line of a CSV file.
    pub row_bytes_max: usize,
    /// Bytes of rows that are read at a time.
    pub batch_bytes_max: usize,
    /// Classes of labels and predictions together; 8 bytes for each pair of them.
    pub classes_max: usize,
}

impl Settings {
    /// Returns the limits for files.
    pub fn limits(&self) -> Limits {
        let Self { columns_max, text_bytes_max, row_bytes_max, batch_bytes_max, classes_max: _ } =
            *self;
        Limits { columns_max, text_bytes_max, row_bytes_max, batch_bytes_max }
    }
}

impl Default for Settings {
    fn default() -> Self {
        let Limits { columns_max, text_bytes_max, row_bytes_max, batch_bytes_max } =
            Limits::default();
        Self { columns_max, text_bytes_max, row_bytes_max, batch_bytes_max, classes_max: 1_000 }
    }
}

/// Options of a validation.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// A file with the labels, one a row, where they are not a column of the data.
    pub labels: Option<PathBuf>,
    /// The column with the labels, or `last`; `None` for the only one named `label`, `target`, `class` or `y`.
    pub label: Option<String>,
    /// Columns that are neither label nor input.
    pub ignored: Vec<String>,
    /// The names of the classes by number or column of scores; empty to take those that come with the model.
    pub classes: Vec<String>,
    /// The class that precision, recall and F1 are about; `None` for the second of two.
    pub positive: Option<String>,
    /// `None` to tell by outputs and labels.
    pub task: Option<Task>,
    /// The output with the prediction; `None` for the only one that can be it.
    pub output: Option<String>,
    /// Thresholds to reach.
    pub thresholds: Vec<Threshold>,
    /// Rows of one run; fewer where the version takes fewer.
    pub batch_rows: usize,
    /// Rows to stop after; `None` for all.
    pub rows_max: Option<u64>,
    /// Chance of calling a version worse that is as good as the other.
    pub alpha: f64,
    /// Bounds of data and classes.
    pub settings: Settings,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            labels: None,
            label: None,
            ignored: Vec::new(),
            classes: Vec::new(),
            positive: None,
            task: None,
            output: None,
            thresholds: Vec::new(),
            batch_rows: 64,
            rows_max: None,
            alpha: 0.05,
            settings: Settings::default(),
        }
    }
}

/// Runs a version on inputs in the signature's order; gives all outputs, or why it does not run.
pub type Predict<'a> = Box<dyn FnMut(Vec<Input>) -> Result<Vec<Tensor>, String> + 'a>;

/// A version that can be asked.
pub struct Subject<'a> {
    /// The model.
    pub model: String,
    /// The version.
    pub version: u64,
    /// Its inputs and outputs.
    pub signature: &'a Signature,
    /// The most rows of one run; 0 if its tensors have no dimension for rows.
    pub rows_max: u64,
    /// Names of classes by the columns of an output, as `Signature::outputs` has them; empty where not known.
    pub class_names: &'a [Option<Vec<String>>],
    /// The names of the columns of its only input, in order; empty where not known.
    pub feature_names: Vec<String>,
    /// Runs it.
    pub predict: Predict<'a>,
}

impl std::fmt::Debug for Subject<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subject")
            .field("model", &self.model)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// The world that a validation runs in.
pub struct Surroundings<'a> {
    /// The monotonic time.
    pub clock: &'a dyn Fn() -> Instant,
    /// Ends the validation at the next batch once it is true.
    pub cancel: &'a AtomicBool,
    /// Hears of rows done, and of how many there are; first of the pass over the labels, for which the number of
    /// rows may not be known.
    pub progress: &'a mut dyn FnMut(u64, Option<u64>),
}

impl std::fmt::Debug for Surroundings<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Surroundings").finish_non_exhaustive()
    }
}

/// Errors of a validation.
#[derive(Debug, thiserror::Error)]
pub enum ValidationError {
    /// The data cannot be read, or a cell is not what it should be.
    #[error(transparent)]
    Data(#[from] DatasetError),
    /// Columns and inputs do not fit together.
    #[error("{0}")]
    Columns(String),
    /// The outputs cannot be read as predictions of these labels.
    #[error("{0}")]
    Outputs(String),
    /// A threshold is about a metric that this task does not have.
    #[error(transparent)]
    Threshold(#[from] ThresholdError),
    /// No rows with labels.
    #[error("`{}` has no rows with a label", .0.display())]
    NoRows(PathBuf),
    /// The version does not run on rows that fit it: its own fault.
    #[error("version {version} cannot run on rows {first} to {last}: {reason}")]
    Run {
        /// The version.
        version: u64,
        /// The first row of the batch, counted from 1.
        first: u64,
        /// The last row.
        last: u64,
        /// Message of the engine.
        reason: String,
    },
    /// Inputs that were recorded without their values.
    #[error(
        "`{}` has no values in {}, which the version needs: models.NAME.predictions.redact leaves them out; rows recorded without it \
         can be replayed", path.display(), listed(columns)
    )]
    Redacted {
        /// The file.
        path: PathBuf,
        /// The columns.
        columns: Vec<String>,
    },
    /// Cancellation before the end.
    #[error("the validation was cancelled")]
    Cancelled,
}

fn listed(columns: &[String]) -> String {
    const LISTED_MAX: usize = 12;
    let more = columns.len().saturating_sub(LISTED_MAX);
    let listed: Vec<_> = columns.iter().take(LISTED_MAX).map(|name| format!("`{name}`")).collect();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let plural = if columns.len() == 1 { "" } else { "s" };
    format!("column{plural} {}{more}", listed.join(", "))
}

impl ValidationError {
    /// True if the version is to blame, not the data or the request.
    pub fn is_the_versions_fault(&self) -> bool {
        matches!(self, Self::Run { .. })
    }
}

/// Runs a version on every row of `data` and judges its answers; `against` runs on the same rows.
///
/// May take as long as the data is large; not for a thread that answers requests. Memory: a batch of rows, some
/// megabytes of samples, and 8 MB of counts for each version.
pub fn validate(
    request: &Request,
    mut data: Dataset,
    candidate: Subject<'_>,
    against: Option<Subject<'_>>,
    mut around: Surroundings<'_>,
) -> Result<Report, ValidationError> {
    let mut labels = survey::Labels::find(request, &data)?;
    let survey = Survey::of(&labels, &data, request, &mut around)?;
    let features = labels.features(request, &data)?;
    let mut asked = Asked::new(request, &data, &features, &survey, candidate)?;
    let other = against.map(|subject| Asked::new(request, &data, &features, &survey, subject));
    let mut other = other.transpose()?;
    for threshold in &request.thresholds {
        threshold.check(asked.judge.task())?;
    }
    if let Some(other) = &other
        && other.judge.task() != asked.judge.task()
    {
        return Err(ValidationError::Outputs(format!(
            "version {} is for {}, version {} for {}; name the task",
            asked.version(),
            asked.judge.task().name(),
            other.version(),
            other.judge.task().name()
        )));
    }
    data.take_lists();
    let needed = asked.columns().chain(other.iter().flat_map(Asked::columns));
    data.select(needed.chain(labels.column()).collect::<Vec<_>>())?;
    let task = asked.judge.task();
    let mut pairs = Pairs::new(task);
    let (mut done, total) = (0, survey.rows);
    let most =
        asked.rows_max(request).min(other.as_ref().map_or(usize::MAX, |o| o.rows_max(request)));
    while done < total {
        if around.cancel.load(Ordering::Relaxed) {
            return Err(ValidationError::Cancelled);
        }
        let left = usize::try_from(total - done).unwrap_or(usize::MAX);
        let Some(batch) = data.next(most.min(left))? else { break };
        let truth = labels.of(&data, &batch, task)?;
        let outcome = asked.run(&data, &batch, &truth, around.clock)?;
        if let Some(other) = &mut other {
            let theirs = other.run(&data, &batch, &truth, around.clock)?;
            pairs.add(&outcome, &theirs);
        }
        done += batch.rows as u64;
        (around.progress)(done, Some(total));
    }
    labels.check_end(&mut data, done, &survey, request.rows_max)?;
    let scored = asked.judge.finish();
    let others = other.map(|other| (other.version(), other.judge.finish(), other.latency));
    let comparison = others.map(|(version, scored, latency)| {
        pairs.compare(version, scored, latency.report(), request.alpha)
    });
    let Subject { model, version, .. } = asked.subject;
    let mut report = Report::new(model, version, scored, comparison, &request.thresholds);
    report.data = survey.report(&data, &labels);
    report.latency = asked.latency.report();
    report.settle();
    Ok(report)
}

/// A version on its way through the data.
struct Asked<'a> {
    subject: Subject<'a>,
    binding: Binding,
    judge: Judge,
    latency: report::Times,
}

impl<'a> Asked<'a> {
    fn new(
        request: &Request,
        data: &Dataset,
        features: &[usize],
        survey: &Survey,
        subject: Subject<'a>,
    ) -> Result<Self, ValidationError> {
        let binding = Binding::new(&subject, data, features)?;
        let judge = Judge::new(request, &subject, survey)?;
        Ok(Self { subject, binding, judge, latency: report::Times::new() })
    }

    fn version(&self) -> u64 {
        self.subject.version
    }

    /// The columns of the data that it needs.
    fn columns(&self) -> impl Iterator<Item = usize> + '_ {
        self.binding.columns()
    }

    fn rows_max(&self, request: &Request) -> usize {
        if self.binding.is_one_row() {
            return 1;
        }
        let own = usize::try_from(self.subject.rows_max).unwrap_or(usize::MAX);
        request.batch_rows.min(own).max(1)
    }

    /// Runs a batch; what comes back is one number a row: 1 for a right class and 0 for a wrong one, or the absolute
    /// error; `None` without a label.
    fn run(
        &mut self,
        data: &Dataset,
        batch: &Batch,
        truth: &survey::Truth,
        clock: &dyn Fn() -> Instant,
    ) -> Result<Vec<Option<f64>>, ValidationError> {
        let inputs = self.binding.inputs(data, batch, 0..batch.rows)?;
        let begin = clock();
        let ran = (self.subject.predict)(inputs);
        let took = clock().saturating_duration_since(begin);
        let outputs = ran.map_err(|reason| ValidationError::Run {
            version: self.subject.version,
            first: batch.first_row,
            last: batch.first_row + batch.rows as u64 - 1,
            reason,
        })?;
        self.latency.add(took, batch.rows);
        self.judge.take(&outputs, batch.rows, batch.first_row, truth)
    }
}
