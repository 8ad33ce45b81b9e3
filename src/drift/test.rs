//! The batch test on demand: a window's raw rows against the reference's.
//!
//! Kolmogorov-Smirnov for numbers and chi-square for categories, feature by feature, with a correction for their
//! number; the answer has the shape of alibi-detect's `KSDrift` and `ChiSquareDrift`. It tests one moment that somebody
//! chose: to look again and again and alarm at the first small p-value is what the e-detectors are there for.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::stats::{
    Divergence, Method, Sample, Side, bonferroni_threshold, independence, kolmogorov_smirnov,
    step_up_threshold,
};

use super::{judge::Watched, layout::Source, profile::Bins, version::Tracked};

/// Request for a test.
#[derive(Debug, Clone, PartialEq)]
pub struct TestRequest {
    /// The window; `None`: that of the settings.
    pub window: Option<Duration>,
    /// The level, between 0 and 1.
    pub p_value: f64,
    /// The correction for the number of features, for a verdict on the whole.
    pub correction: Correction,
    /// A verdict on each feature, or one on the whole.
    pub scope: Scope,
    /// The features that take part.
    pub include: Include,
}

impl Default for TestRequest {
    /// Level 0.05 with Bonferroni's correction, one verdict on all inputs.
    fn default() -> Self {
        Self {
            window: None,
            p_value: 0.05,
            correction: Correction::default(),
            scope: Scope::default(),
            include: Include::default(),
        }
    }
}

/// Corrections for the number of features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Correction {
    /// The level divided by their number: bounds the chance of any false finding.
    #[default]
    Bonferroni,
    /// Benjamini and Hochberg: bounds the expected share of false findings.
    Fdr,
}

/// Scope of the verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Each feature, at the level itself.
    Feature,
    /// All features together, at the corrected threshold.
    #[default]
    Batch,
}

/// Features that take part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Include {
    /// Those of inputs, or worked out from them.
    #[default]
    Inputs,
    /// Those of outputs.
    Outputs,
    /// All.
    All,
}

/// The result of a test.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TestReport {
    /// The statistics.
    pub data: TestData,
    /// Names of the features that were tested, in the order of `p_val` and `distance`.
    pub features: Vec<String>,
    /// Rows of the window that were tested, at most: a sample where there were more.
    pub rows: usize,
    /// Features without values or without a reference, which were left out.
    pub skipped: Vec<String>,
}

/// The statistics of a test.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TestData {
    /// 1 where the distributions differ: for each feature, or for all together.
    pub is_drift: Drifts,
    /// p-values.
    pub p_val: Vec<f64>,
    /// Statistics: the largest distance of the distribution functions, or chi-square.
    pub distance: Vec<f64>,
    /// Threshold that a p-value must be below.
    pub threshold: f64,
}

/// A verdict on each feature, or one on all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Drifts {
    /// One for each feature.
    Each(Vec<u8>),
    /// One for all.
    All(u8),
}

/// Rows of a window below which nothing is tested.
const ROWS_MIN: usize = 2;

/// Tests the features of a version.
pub(super) fn test(tracked: &Tracked, now: Duration, asked: &TestRequest) -> TestReport {
    let window = asked.window.unwrap_or(tracked.settings.window);
    let (mut features, mut skipped) = (Vec::new(), Vec::new());
    let (mut p_val, mut distance, mut rows) = (Vec::new(), Vec::new(), 0);
    for (index, known) in tracked.layout.features.iter().enumerate() {
        let is_output = known.source == Source::Output;
        let takes_part = match asked.include {
            Include::All => true,
            Include::Inputs => !is_output,
            Include::Outputs => is_output,
        };
        if !takes_part {
            continue;
        }
        let tested = tracked.judge.features[index]
            .as_ref()
            .and_then(|watched| of_feature(tracked, index, watched, now, window));
        let Some((p, statistic, used)) = tested else {
            skipped.push(known.name.clone());
            continue;
        };
        features.push(known.name.clone());
        p_val.push(p);
        distance.push(statistic);
        rows = rows.max(used);
    }
    let threshold = match (asked.scope, asked.correction) {
        (Scope::Feature, _) => asked.p_value,
        (Scope::Batch, Correction::Bonferroni) => bonferroni_threshold(asked.p_value, p_val.len()),
        (Scope::Batch, Correction::Fdr) => {
            let least = asked.p_value / count(p_val.len().max(1));
            step_up_threshold(&p_val, asked.p_value).unwrap_or(least)
        }
    };
    let found = |p: &f64| match (asked.scope, asked.correction) {
        // The threshold is the largest that passes.
        (Scope::Batch, Correction::Fdr) => {
            step_up_threshold(&p_val, asked.p_value).is_some_and(|threshold| *p <= threshold)
        }
        _ => *p < threshold,
    };
    let is_drift = match asked.scope {
        Scope::Feature => Drifts::Each(p_val.iter().map(|p| u8::from(found(p))).collect()),
        Scope::Batch => Drifts::All(u8::from(p_val.iter().any(found))),
    };
    TestReport { data: TestData { is_drift, p_val, distance, threshold }, features, rows, skipped }
}

#[expect(clippy::cast_precision_loss, reason = "small numbers")]
fn count(number: usize) -> f64 {
    number as f64
}

/// p-value, statistic and rows; `None` where there is too little to compare.
fn of_feature(
    tracked: &Tracked,
    index: usize,
    watched: &Watched,
    now: Duration,
    window: Duration,
) -> Option<(f64, f64, usize)> {
    match &watched.reference.bins {
        Bins::Numeric { .. } => {
            let values = tracked.sampled(index, now, window);
            let (own, live) = (Sample::new(&watched.reference.sample), Sample::new(&values));
            if own.len() < ROWS_MIN || live.len() < ROWS_MIN {
                return None;
            }
            let effective = count(own.len()) * count(live.len()) / count(own.len() + live.len());
            // The limit of large samples is far off where they are tiny.
            let method = if effective < 8.0 { Method::Exact } else { Method::Asymptotic };
            let tested = kolmogorov_smirnov(&own, &live, Side::TwoSided, method).ok()?;
            Some((tested.p_value, tested.statistic, live.len()))
        }
        Bins::Categorical { .. } => {
            let (_, counts) = watched.windows.over(now, window, watched.roles.len());
            let rows = usize::try_from(counts.iter().sum::<u64>()).unwrap_or(usize::MAX);
            if rows < ROWS_MIN {
                return None;
            }
            let table = [&watched.reference.counts[..], &counts[..]];
            let tested = independence(&table, Divergence::Pearson, false).ok()?;
            Some((tested.p_value, tested.statistic, rows))
        }
    }
}
