//! The metrics by name, and thresholds on them.

use std::{fmt, str::FromStr};

use serde::{Serialize, Serializer};

/// Kinds of a model's answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Classes.
    Classification,
    /// Numbers.
    Regression,
}

/// A number that says how good answers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Metric {
    /// The share of rows whose class is right.
    Accuracy,
    /// The share of rows said to be of a class that are; of the positive class, or the mean over classes.
    Precision,
    /// The share of rows of a class that are found; of the positive class, or the mean over classes.
    Recall,
    /// The harmonic mean of precision and recall; of the positive class, or the mean over classes.
    F1,
    /// The area under the ROC curve; with more than two classes the mean over each class against the rest.
    RocAuc,
    /// The mean of `-ln p` of the right class.
    LogLoss,
    /// The mean absolute error.
    Mae,
    /// The root of the mean squared error.
    Rmse,
    /// The share of the variance that is explained, at most 1.
    R2,
}

impl Task {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Classification => "classification",
            Self::Regression => "regression",
        }
    }

    /// The metrics of a task, the main one first.
    pub fn metrics(self) -> &'static [Metric] {
        match self {
            Self::Classification => &[
                Metric::Accuracy,
                Metric::Precision,
                Metric::Recall,
                Metric::F1,
                Metric::RocAuc,
                Metric::LogLoss,
            ],
            Self::Regression => &[Metric::Mae, Metric::Rmse, Metric::R2],
        }
    }
}

impl Metric {
    /// Every metric.
    pub const ALL: [Self; 9] = [
        Self::Accuracy,
        Self::Precision,
        Self::Recall,
        Self::F1,
        Self::RocAuc,
        Self::LogLoss,
        Self::Mae,
        Self::Rmse,
        Self::R2,
    ];

    /// The name in thresholds and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::Precision => "precision",
            Self::Recall => "recall",
            Self::F1 => "f1",
            Self::RocAuc => "roc_auc",
            Self::LogLoss => "log_loss",
            Self::Mae => "mae",
            Self::Rmse => "rmse",
            Self::R2 => "r2",
        }
    }

    /// True if less is better: the threshold is a maximum.
    pub fn is_error(self) -> bool {
        matches!(self, Self::LogLoss | Self::Mae | Self::Rmse)
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Metric {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// Value that a metric must reach: at least for scores, at most for errors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Threshold {
    /// The metric.
    pub metric: Metric,
    /// The number that it must reach; finite.
    pub limit: f64,
}

/// Errors of a threshold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ThresholdError {
    /// Text that is not a metric and a number.
    #[error("`{0}` is not a threshold; write a metric and a number, such as accuracy=0.9")]
    Form(String),
    /// Name that no metric has.
    #[error("there is no metric `{name}`; there are {}", names(&Metric::ALL))]
    Metric {
        /// The name given.
        name: String,
    },
    /// The number cannot be reached, or is always reached.
    #[error("{metric}={limit} is no threshold: {range}")]
    Limit {
        /// The metric.
        metric: Metric,
        /// The number, as text.
        limit: String,
        /// Range that the number must lie in, in words.
        range: &'static str,
    },
    /// The task has other metrics.
    #[error("{metric} is no metric of {}, which has {}", task.name(), names(task.metrics()))]
    Task {
        /// The metric.
        metric: Metric,
        /// The task.
        task: Task,
    },
}

fn names(metrics: &[Metric]) -> String {
    metrics.iter().map(|metric| metric.name()).collect::<Vec<_>>().join(", ")
}

impl Threshold {
    /// A threshold by the metric's name.
    pub fn new(name: &str, limit: f64) -> Result<Self, ThresholdError> {
        let known = Metric::ALL.into_iter().find(|metric| metric.name() == name);
        let metric = known.ok_or_else(|| ThresholdError::Metric {
            name: name.chars().take(64).flat_map(char::escape_debug).collect(),
        })?;
        let range = match metric {
            _ if !limit.is_finite() => Some("it must be a finite number"),
            Metric::LogLoss | Metric::Mae | Metric::Rmse => {
                (limit < 0.0).then_some("an error is at least 0")
            }
            Metric::R2 => (limit > 1.0).then_some("r2 is at most 1"),
            _ => (!(0.0..=1.0).contains(&limit)).then_some("a score lies between 0 and 1"),
        };
        match range {
            None => Ok(Self { metric, limit }),
            Some(range) => Err(ThresholdError::Limit { metric, limit: limit.to_string(), range }),
        }
    }

    /// True if a metric reaches it; one that could not be computed does not.
    pub fn is_reached_by(self, value: Option<f64>) -> bool {
        value.is_some_and(|value| {
            if self.metric.is_error() { value <= self.limit } else { value >= self.limit }
        })
    }

    pub(super) fn check(self, task: Task) -> Result<(), ThresholdError> {
        if task.metrics().contains(&self.metric) {
            return Ok(());
        }
        Err(ThresholdError::Task { metric: self.metric, task })
    }
}

/// Reads `accuracy=0.9`.
impl FromStr for Threshold {
    type Err = ThresholdError;

    fn from_str(text: &str) -> Result<Self, ThresholdError> {
        let form = || ThresholdError::Form(text.chars().take(64).collect());
        let (name, limit) = text.split_once('=').ok_or_else(form)?;
        Self::new(name.trim(), limit.trim().parse().map_err(|_| form())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_minima_for_scores_and_maxima_for_errors() {
        let reached = |text: &str, value| text.parse::<Threshold>().unwrap().is_reached_by(value);
        assert!(reached("accuracy=0.9", Some(0.9)) && !reached("accuracy=0.9", Some(0.899)));
        assert!(reached("log_loss = 0.3", Some(0.3)) && !reached("log_loss=0.3", Some(0.31)));
        assert!(!reached("mae=1", None) && !reached("r2=-1", Some(f64::NAN)));
    }

    #[test]
    fn wrong_thresholds_say_what_would_be_right() {
        let check = |text: &str, expected: &str| {
            let error = text.parse::<Threshold>().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check("accuracy", "such as accuracy=0.9");
        check("accuracy=much", "such as accuracy=0.9");
        check("acuracy=0.9", "there are accuracy, precision");
        check("accuracy=90", "between 0 and 1");
        check("mae=-1", "at least 0");
        check("r2=inf", "finite");
        let f1: Threshold = "f1=0.5".parse().unwrap();
        let error = f1.check(Task::Regression).unwrap_err().to_string();
        assert_eq!(error, "f1 is no metric of regression, which has mae, rmse, r2");
    }
}
