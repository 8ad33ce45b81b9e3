//! Report of a validation: for programs as JSON, for people as a table and as Markdown.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::{Metric, Task, Threshold, judge::Scored};

/// Result of a validation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The model.
    pub model: String,
    /// The version.
    pub version: u64,
    /// True if every threshold is reached and the version is not worse than the other.
    pub passed: bool,
    /// Reasons that it did not pass, a sentence each.
    pub failures: Vec<String>,
    /// Data that it was run on.
    pub data: DataReport,
    /// Kind of the version's answers.
    pub task: Task,
    /// The class that precision, recall and F1 are about; `None` where they are means over the classes.
    pub positive: Option<String>,
    /// The metrics of the task, the main one first.
    pub metrics: Vec<MetricReport>,
    /// The scores of each class, of the first 20.
    pub classes: Vec<ClassReport>,
    /// Rows by actual and predicted class, in the order of `classes`; `None` with more than 20.
    pub confusion: Option<Vec<Vec<u64>>>,
    /// Rows with a label whose answer is not a number.
    pub unanswered: u64,
    /// Durations of runs.
    pub latency: Latency,
    /// Thresholds, with the values reached.
    pub thresholds: Vec<ThresholdReport>,
    /// Comparison with another version on the same rows.
    pub comparison: Option<Comparison>,
    /// Notes for reading the numbers.
    pub notes: Vec<String>,
}

/// The data of a validation.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct DataReport {
    /// The file.
    pub path: String,
    /// The column or the file of the labels.
    pub labels: String,
    /// Rows that were run.
    pub rows: u64,
    /// Rows without a label, which were run and not judged.
    pub unlabelled: u64,
}

/// A metric.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct MetricReport {
    /// The metric.
    pub metric: Metric,
    /// Its value; `None` if it cannot be computed.
    pub value: Option<f64>,
}

/// The scores of one class against all others.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassReport {
    /// The class.
    pub class: String,
    /// Rows of the class.
    pub rows: u64,
    /// Rows that were said to be of it.
    pub predicted: u64,
    /// The share of the rows said to be of it that are.
    pub precision: f64,
    /// The share of its rows that were found.
    pub recall: f64,
    /// The harmonic mean of both.
    pub f1: f64,
}

/// Durations of runs, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Latency {
    /// Runs.
    pub runs: u64,
    /// The most rows of a run.
    pub rows_of_run: usize,
    /// The median of the runs.
    pub run_p50_us: f64,
    /// The 99th percentile of the runs.
    pub run_p99_us: f64,
    /// The median of a row's share of its run.
    pub row_p50_us: f64,
    /// The 99th percentile of a row's share of its run.
    pub row_p99_us: f64,
}

/// A threshold and what came of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ThresholdReport {
    /// The metric.
    pub metric: Metric,
    /// The least of a score, the most of an error.
    pub limit: f64,
    /// The metric's value.
    pub value: Option<f64>,
    /// True if it is reached.
    pub passed: bool,
}

/// Another version on the same rows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// The other version.
    pub version: u64,
    /// Verdict on the candidate beside it.
    pub verdict: Verdict,
    /// Its own metrics.
    pub metrics: Vec<MetricReport>,
    /// The candidate's accuracy less the other's, or the mean absolute error, with limits from the paired bootstrap.
    pub difference: Option<Difference>,
    /// Of `McNemar`'s exact test, for classes.
    pub p_value: Option<f64>,
    /// Rows that only the candidate has right, for classes.
    pub candidate_only: Option<u64>,
    /// Rows that only the other version has right, for classes.
    pub other_only: Option<u64>,
    /// Rows that both were judged on.
    pub rows: u64,
    /// Rows whose answer by the other version is not a number.
    pub unanswered: u64,
    /// Durations of its runs.
    pub latency: Latency,
    /// Notes on its numbers.
    pub notes: Vec<String>,
}

/// A difference between two versions, and its limits.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Difference {
    /// The metric.
    pub metric: Metric,
    /// The candidate's less the other's.
    pub mean: f64,
    /// The lower limit.
    pub lower: f64,
    /// The upper limit.
    pub upper: f64,
    /// The chance that the limits hold it, of any data like these.
    pub confidence: f64,
}

/// Verdict on a version beside another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Significantly better.
    Better,
    /// No difference that could not be chance.
    Alike,
    /// Significantly worse.
    Worse,
}

impl MetricReport {
    pub(super) fn new(metric: Metric, value: Option<f64>) -> Self {
        Self { metric, value: value.filter(|value| value.is_finite()) }
    }
}

impl Report {
    pub(super) fn new(
        model: String,
        version: u64,
        scored: Scored,
        comparison: Option<Comparison>,
        thresholds: &[Threshold],
    ) -> Self {
        let metrics: Vec<_> = scored
            .metrics
            .iter()
            .map(|(metric, value)| MetricReport::new(*metric, *value))
            .collect();
        let value = |metric: Metric| metrics.iter().find(|own| own.metric == metric)?.value;
        let thresholds = thresholds.iter().map(|threshold| {
            let value = value(threshold.metric);
            let (metric, limit) = (threshold.metric, threshold.limit);
            ThresholdReport { metric, limit, value, passed: threshold.is_reached_by(value) }
        });
        Self {
            model,
            version,
            passed: false,
            failures: Vec::new(),
            data: DataReport::default(),
            task: scored.task,
            positive: scored.positive,
            thresholds: thresholds.collect(),
            metrics,
            classes: scored.classes,
            confusion: scored.confusion,
            unanswered: scored.unanswered,
            latency: Latency::default(),
            comparison,
            notes: scored.notes,
        }
    }

    /// The value of a metric.
    pub fn metric(&self, metric: Metric) -> Option<f64> {
        self.metrics.iter().find(|own| own.metric == metric)?.value
    }

    /// Decides whether it passed.
    pub(super) fn settle(&mut self) {
        let mut failures = Vec::new();
        for threshold in self.thresholds.iter().filter(|threshold| !threshold.passed) {
            let (metric, limit) = (threshold.metric, threshold.limit);
            let beside = if metric.is_error() { "above" } else { "below" };
            failures.push(match threshold.value {
                Some(value) => format!("{metric} is {}, {beside} {limit}", shown(value)),
                None => format!("{metric} cannot be computed, and should be {limit}"),
            });
        }
        if let Some(comparison) = &self.comparison {
            if comparison.verdict == Verdict::Worse {
                failures.push(comparison.sentence());
            }
            if self.task == Task::Regression && self.unanswered > comparison.unanswered {
                failures.push(format!(
                    "{} rows got an answer that is not a number, of version {} {}",
                    self.unanswered, comparison.version, comparison.unanswered
                ));
            }
        }
        self.passed = failures.is_empty();
        self.failures = failures;
    }
}

impl Comparison {
    /// The verdict in words.
    pub fn sentence(&self) -> String {
        let verdict = match self.verdict {
            Verdict::Better => "significantly better than",
            Verdict::Alike => "not significantly different from",
            Verdict::Worse => "significantly worse than",
        };
        let mut text = format!("it is {verdict} version {}", self.version);
        if let Some(difference) = &self.difference {
            text += &format!(
                ": {} {:+.4}, between {:+.4} and {:+.4} at {} % confidence",
                difference.metric,
                difference.mean,
                difference.lower,
                difference.upper,
                shown(100.0 * difference.confidence)
            );
        }
        if let Some(p) = self.p_value {
            text += &format!(", McNemar p = {}", shown(p));
        }
        text
    }
}

/// A number for people: four digits that count, also of small ones.
pub(super) fn shown(value: f64) -> String {
    if value == 0.0 || (1e-3..1e6).contains(&value.abs()) {
        let text = format!("{value:.4}");
        return text.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    format!("{value:.2e}")
}

/// Times of runs.
#[derive(Debug)]
pub(super) struct Times {
    runs: Histogram<u64>,
    rows: Histogram<u64>,
    rows_of_run: usize,
}

impl Times {
    pub(super) fn new() -> Self {
        // From nanoseconds to an hour, in thousandths; what is longer counts as an hour.
        let histogram =
            || Histogram::new_with_max(3_600_000_000_000, 3).expect("the bounds are sound");
        Self { runs: histogram(), rows: histogram(), rows_of_run: 0 }
    }

    /// Adds a run of so many rows.
    pub(super) fn add(&mut self, took: Duration, rows: usize) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.runs.saturating_record(nanoseconds);
        self.rows.saturating_record_n(nanoseconds / (rows as u64).max(1), rows as u64);
        self.rows_of_run = self.rows_of_run.max(rows);
    }

    pub(super) fn report(&self) -> Latency {
        #[expect(clippy::cast_precision_loss, reason = "shown with four digits")]
        let at = |times: &Histogram<u64>, quantile| times.value_at_quantile(quantile) as f64 / 1e3;
        Latency {
            runs: self.runs.len(),
            rows_of_run: self.rows_of_run,
            run_p50_us: at(&self.runs, 0.5),
            run_p99_us: at(&self.runs, 0.99),
            row_p50_us: at(&self.rows, 0.5),
            row_p99_us: at(&self.rows, 0.99),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_shown_with_the_digits_that_count() {
        let shown: Vec<_> = [0.9, 0.97777, 0.0, 12.5, 3.02e-9, 1.0].map(shown).into();
        assert_eq!(shown, ["0.9", "0.9778", "0", "12.5", "3.02e-9", "1"]);
    }

    #[test]
    fn times_are_of_runs_and_of_rows() {
        let mut times = Times::new();
        (0..99).for_each(|_| times.add(Duration::from_micros(100), 10));
        times.add(Duration::from_millis(10), 10);
        let latency = times.report();
        let near = |actual: f64, expected: f64| (actual / expected - 1.0).abs() < 0.002;
        assert!(near(latency.run_p50_us, 100.0) && near(latency.row_p50_us, 10.0), "{latency:?}");
        assert_eq!((latency.runs, latency.rows_of_run), (100, 10));
    }
}
