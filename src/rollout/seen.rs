//! The decision's food: requests, comparisons and outcomes as the judge hears of them.
//!
//! A request is heard once everything that was assigned before it has ended, so the order of evidence does not
//! depend on how fast an arm fails. Whatever is here is a value; nobody waits for it.

use std::time::Duration;

use crate::{
    model::PredictionId,
    serve::{Marks, Output},
};

/// A request that was assigned to one of the two arms and has ended, in the order of assignment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seen {
    /// True if it was assigned to the candidate, whoever answered in the end.
    pub candidate: bool,
    /// Probability of the candidate among the two arms, as of assignment, 0 to 1.
    pub share: f64,
    /// Hash of what it was assigned by.
    pub key: u64,
    /// True if the key stands for a user whose requests stay together: then the key is the unit of evidence, and
    /// the request otherwise.
    pub sticky: bool,
    /// Time of assignment since 1970.
    pub at: Duration,
    /// The prediction's name.
    pub prediction: PredictionId,
    /// Result on the arm that the request was assigned to.
    pub marks: Marks,
    /// Answer of that arm to the first row.
    pub output: Output,
}

/// A copied request: the candidate's outputs beside the baseline's.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Comparison {
    /// Largest absolute difference of two values.
    pub max_abs: f64,
    /// Largest relative difference of two values; NaN where outputs cannot be compared, which is a difference.
    pub max_rel: f64,
    /// True if a label or the best class is another.
    pub flipped: bool,
}

/// Feedback about a prediction after its answer, credited with the weight of its assignment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// True if the request was assigned to the candidate.
    pub candidate: bool,
    /// Probability of the candidate, as of assignment.
    pub share: f64,
    /// Hash of what it was assigned by.
    pub key: u64,
    /// True if the key is the unit of evidence.
    pub sticky: bool,
    /// Time of assignment since 1970.
    pub at: Duration,
    /// The prediction's name.
    pub prediction: PredictionId,
    /// Kind of the feedback.
    pub kind: OutcomeKind,
}

/// Feedback about a prediction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutcomeKind {
    /// A label was joined.
    Label {
        /// True if the prediction was another.
        wrong: bool,
    },
    /// The good outcome that users of either arm should have equally often happened.
    Happened,
    /// A class was predicted.
    Predicted {
        /// True if it was the positive one.
        positive: bool,
    },
}

/// A frozen quantile of the baseline: what counts as slow.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Threshold {
    /// The quantile, as the policy lists it.
    pub quantile: f64,
    /// Slower than this many seconds is slow: the frozen quantile and the policy's least difference.
    pub seconds: f64,
    /// Share of the baseline's frozen histogram above it, 0 to 1.
    pub share_above: f64,
}
