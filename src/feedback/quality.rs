//! Quality of a model's versions, as their sums show it.
//!
//! Limits hold at every look at once with probability .95, for a window that grows. Estimates need no labels: each
//! score, corrected by the labels so far, is the chance that its class is the actual one, and the expected confusion
//! follows (confidence-based performance estimation). They are blind to a change of what the inputs mean.
//!
//! Not here: sums (`tally`), the page's place (`admin`).

use std::{borrow::Cow, collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    model::VersionId,
    stats::{AsymptoticSequence, Calibration, rate_limits},
};

use super::{
    calibration::Calibration as Calibrated,
    ledger::{Ledger, Series},
    tally::{Moments, STEPS, Tally},
};

/// The error probability of limits.
const ALPHA: f64 = 0.05;
/// Values at which the limits of means are tightest.
const TIGHTEST_AT: u64 = 1000;

/// Quality of a model's versions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QualityReport {
    /// The model.
    pub model: String,
    /// The window: predictions of so many seconds before now.
    pub window_seconds: f64,
    /// Versions by arm, the newest version first.
    pub versions: Vec<VersionQuality>,
}

/// Quality of a version on an arm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VersionQuality {
    /// The version.
    pub version: String,
    /// The arm.
    pub arm: String,
    /// Rows that were answered.
    pub served: u64,
    /// Rows to which an outcome came.
    pub labelled: u64,
    /// The share of those, 0 to 1.
    pub coverage: f64,
    /// Time from prediction to outcome.
    pub delay_seconds: Delays,
    /// Metrics by name.
    pub metrics: BTreeMap<String, Metric>,
    /// The mean distance of scores from the shares of their class among all labelled rows; `None` without both.
    pub calibration_error: Option<f64>,
    /// True if labels contradict the scores, so that nothing is estimated until more have come.
    pub estimates_withheld: bool,
    /// The same by segment of the rows; empty where no segments are declared.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub segments: Vec<SegmentQuality>,
}

/// Quality of a version on the rows of a segment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SegmentQuality {
    /// The value of the header or feature.
    pub segment: String,
    /// Rows that were answered.
    pub served: u64,
    /// Rows to which an outcome came.
    pub labelled: u64,
    /// The share of those, 0 to 1.
    pub coverage: f64,
    /// Metrics by name.
    pub metrics: BTreeMap<String, Metric>,
}

/// Quantiles of the delay of outcomes in seconds; `None` without any.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Delays {
    /// The median.
    pub p50: Option<f64>,
    /// The 99th percentile.
    pub p99: Option<f64>,
}

/// A version predicts worse than it did, or than it must.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Drop {
    /// Evidence: `change` of the errors, `limit` of the accuracy by outcomes, or by `estimate` where there are
    /// none.
    pub(super) by: Cow<'static, str>,
    pub(super) metric: Cow<'static, str>,
    /// Before the change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) before: Option<f64>,
    /// Since, or at most, or as estimated.
    pub(super) after: f64,
    /// The least that the operator asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) limit: Option<f64>,
    /// The last day.
    pub(super) quality: Option<VersionQuality>,
}

impl Drop {
    /// Describes it for people.
    pub(super) fn detail(&self) -> String {
        let Self { by, metric, before, after, limit, .. } = self;
        match (before, limit.unwrap_or_default()) {
            (Some(before), _) => format!("mean {metric} rose from {before:.4} to {after:.4}"),
            (None, limit) if by == "estimate" => {
                format!(
                    "{metric} is estimated at {after:.4}, below feedback.accuracy_min = {limit}"
                )
            }
            (None, limit) => {
                format!("{metric} is at most {after:.4}, below feedback.accuracy_min = {limit}")
            }
        }
    }
}

/// A metric.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Metric {
    /// By outcomes; `None` without any.
    pub value: Option<f64>,
    /// Its lower limit, where there is one.
    pub lower: Option<f64>,
    /// Its upper limit.
    pub upper: Option<f64>,
    /// By scores alone, over all answered rows.
    pub estimated: Option<f64>,
}

/// The quality of a model's versions over the window before now.
pub(super) fn report(ledger: &Ledger, window: Duration, now: Duration) -> QualityReport {
    let begin = now.saturating_sub(window);
    let mut sums: BTreeMap<_, Summed<'_>> = BTreeMap::new();
    for series in ledger.series() {
        let tally = series.windows.since(begin);
        let of = (std::cmp::Reverse(series.version), series.arm.clone());
        let (all, segments) =
            sums.entry(of).or_insert_with(|| ((Tally::default(), series), BTreeMap::new()));
        add(all, &tally, series);
        if !series.segment.is_empty() {
            let none = || (Tally::default(), series);
            add(segments.entry(&*series.segment).or_insert_with(none), &tally, series);
        }
    }
    let is_seen = |tally: &Tally| tally.served > 0 || tally.labelled > 0;
    let seen = sums.into_values().filter(|((tally, _), _)| is_seen(tally));
    let versions = seen.map(|((tally, series), segments)| {
        let seen = segments.into_values().filter(|(tally, _)| is_seen(tally));
        let part = |(tally, series): (Tally, &Series)| {
            let VersionQuality { served, labelled, coverage, metrics, .. } =
                version(&tally, series, ledger);
            SegmentQuality { segment: series.segment.clone(), served, labelled, coverage, metrics }
        };
        let segments = seen.map(part).collect();
        VersionQuality { segments, ..version(&tally, series, ledger) }
    });
    QualityReport {
        model: ledger.model.to_string(),
        window_seconds: window.as_secs_f64(),
        versions: versions.collect(),
    }
}

/// Sums of a version on an arm, with its newest series; of all rows, and by segment.
type Summed<'l> = ((Tally, &'l Series), BTreeMap<&'l str, (Tally, &'l Series)>);

fn add<'l>(sum: &mut (Tally, &'l Series), tally: &Tally, series: &'l Series) {
    sum.0.merge(tally);
    sum.1 = series;
}

#[expect(clippy::cast_precision_loss, reason = "counts in shares")]
fn version(tally: &Tally, series: &Series, ledger: &Ledger) -> VersionQuality {
    let mut metrics = BTreeMap::new();
    classification(tally, series, &mut metrics);
    let calibration = ledger.calibration(series.version);
    // Before the first label, scores are taken as they are.
    let table = calibration
        .map_or_else(|| Some(*Calibration::identity().table()), |it| it.table().copied());
    if let Some(table) = table {
        estimates(tally, series, &table, &mut metrics);
    }
    regression(tally, &mut metrics);
    let mut mean = |name: &str, moments: &Moments| {
        if moments.count > 0 {
            metrics.insert(name.to_owned(), of_mean(moments));
        }
    };
    mean("brier", &tally.brier);
    mean("log_loss", &tally.log_loss);
    mean("reward", &tally.reward);
    VersionQuality {
        version: series.version.to_string(),
        arm: series.arm.clone(),
        served: tally.served,
        labelled: tally.labelled,
        coverage: if tally.served == 0 { 0.0 } else { tally.labelled as f64 / tally.served as f64 },
        delay_seconds: Delays { p50: tally.delay(0.5), p99: tally.delay(0.99) },
        metrics,
        calibration_error: calibration.and_then(Calibrated::error),
        estimates_withheld: calibration.is_some_and(|it| it.table().is_none()),
        segments: Vec::new(),
    }
}

/// Versions whose accuracy is below what is asked for: by outcomes at the confidence of limits, or by estimate where no
/// outcome came.
pub(super) fn below(
    report: &QualityReport,
    limit: f64,
    by: &'static str,
) -> Vec<(VersionId, String, Drop)> {
    let drop = |shown: &VersionQuality| {
        let accuracy = shown.metrics.get("accuracy")?;
        let after = match by {
            "limit" => accuracy.upper,
            _ => {
                accuracy.estimated.filter(|_| shown.labelled == 0 && shown.served >= ESTIMATED_MIN)
            }
        };
        let after = after.filter(|after| *after < limit)?;
        let limit = Some(limit);
        let (by, metric) = (by.into(), "accuracy".into());
        let drop = Drop { by, metric, before: None, after, limit, quality: None };
        Some((VersionId::parse(&shown.version)?, shown.arm.clone(), drop))
    };
    report.versions.iter().filter_map(drop).collect()
}

/// The window in which accuracy is held against what is asked for: by outcomes the last day, by estimate the last hour.
pub(super) fn window(by: &str) -> Duration {
    Duration::from_hours(if by == "limit" { 24 } else { 1 })
}

/// A version's accuracy by outcomes, or as estimated where none came; `None` while too little is known.
pub(super) fn accuracy(shown: &VersionQuality) -> Option<f64> {
    let accuracy = shown.metrics.get("accuracy")?;
    let estimated = || accuracy.estimated.filter(|_| shown.served >= ESTIMATED_MIN);
    if shown.labelled > 0 { accuracy.value } else { estimated() }
}

/// Rows from which on an estimate is held against what is asked for.
const ESTIMATED_MIN: u64 = 1000;

/// A rate with its limits; nothing of no trials.
#[expect(clippy::cast_precision_loss, reason = "counts in shares")]
fn of_rate(trials: u64, events: u64, alpha: f64) -> Metric {
    if trials == 0 {
        return Metric::default();
    }
    let (lower, upper) = rate_limits(trials, events, alpha);
    let value = Some(events as f64 / trials as f64);
    Metric { value, lower: Some(lower), upper: Some(upper), estimated: None }
}

/// A mean with its limits.
fn of_mean(moments: &Moments) -> Metric {
    let Some(mean) = moments.mean() else { return Metric::default() };
    let sequence = AsymptoticSequence::new(ALPHA, TIGHTEST_AT);
    // Two equal values say nothing about how far others may lie.
    let width = sequence.half_width(moments.count, moments.deviation());
    let limit = |limit: f64| Some(limit).filter(|_| moments.count > 1);
    let (lower, upper) = (limit(mean - width), limit(mean + width));
    Metric { value: Some(mean), lower, upper, estimated: None }
}

/// True if one class is the one that matters.
fn is_binary(tally: &Tally, series: &Series) -> bool {
    series.is_positive_named
        || series.positive.is_some() && tally.classes.iter().all(|class| class.bits <= 1)
}

fn classification(tally: &Tally, series: &Series, metrics: &mut BTreeMap<String, Metric>) {
    if tally.compared == 0 {
        return;
    }
    let mut put = |name: &str, metric: Metric| metrics.insert(name.to_owned(), metric);
    put("accuracy", of_rate(tally.compared, tally.correct, ALPHA));
    if is_binary(tally, series) {
        let class = tally.classes.iter().find(|class| Some(class.bits) == series.positive);
        let class = class.copied().unwrap_or_default();
        let hits = class.hits;
        put("precision", of_rate(hits + class.false_hits, hits, ALPHA));
        put("recall", of_rate(hits + class.misses, hits, ALPHA));
        // Both hold at once; F1 grows with either.
        let precision = of_rate(hits + class.false_hits, hits, ALPHA / 2.0);
        let recall = of_rate(hits + class.misses, hits, ALPHA / 2.0);
        let both = |a: Option<f64>, b: Option<f64>| Some(harmonic(a?, b?));
        put(
            "f1",
            Metric {
                value: both(precision.value, recall.value),
                lower: both(precision.lower, recall.lower),
                upper: both(precision.upper, recall.upper),
                estimated: None,
            },
        );
    } else if !tally.crowded {
        // The mean over the classes, without limits.
        let mean = |of: &dyn Fn(f64, f64, f64) -> f64| {
            #[expect(clippy::cast_precision_loss, reason = "counts in shares")]
            let values = tally
                .classes
                .iter()
                .map(|class| of(class.hits as f64, class.false_hits as f64, class.misses as f64));
            #[expect(clippy::cast_precision_loss, reason = "a few classes")]
            let value = values.sum::<f64>() / tally.classes.len() as f64;
            Metric { value: Some(value), ..Metric::default() }
        };
        let share =
            |part: f64, rest: f64| if part + rest > 0.0 { part / (part + rest) } else { 0.0 };
        put("precision", mean(&|hits, false_hits, _| share(hits, false_hits)));
        put("recall", mean(&|hits, _, misses| share(hits, misses)));
        put("f1", mean(&|hits, false_hits, misses| share(2.0 * hits, false_hits + misses)));
    }
}

fn harmonic(a: f64, b: f64) -> f64 {
    if a + b > 0.0 { 2.0 * a * b / (a + b) } else { 0.0 }
}

#[expect(clippy::cast_precision_loss, reason = "counts in shares")]
fn estimates(
    tally: &Tally,
    series: &Series,
    table: &[f64; STEPS],
    metrics: &mut BTreeMap<String, Metric>,
) {
    if tally.scored.is_empty() {
        return;
    }
    let (others, own) = tally.scored.split_at(STEPS);
    let sum = |rows: &[u64], of: fn(f64) -> f64| -> f64 {
        rows.iter().zip(table).map(|(rows, chance)| *rows as f64 * of(*chance)).sum()
    };
    let total: u64 = tally.scored.iter().sum();
    let hits = sum(own, |chance| chance);
    let false_hits = sum(own, |chance| 1.0 - chance);
    let misses = sum(others, |chance| chance);
    let rest = sum(others, |chance| 1.0 - chance);
    let mut put = |name: &str, value: f64| {
        metrics.entry(name.to_owned()).or_default().estimated = Some(value);
    };
    put("accuracy", (hits + rest) / total as f64);
    if series.is_binary && is_binary(tally, series) {
        let share = |part: f64, of: f64| if of > 0.0 { part / of } else { 0.0 };
        put("precision", share(hits, hits + false_hits));
        put("recall", share(hits, hits + misses));
        put("f1", share(2.0 * hits, 2.0 * hits + false_hits + misses));
    }
}

fn regression(tally: &Tally, metrics: &mut BTreeMap<String, Metric>) {
    if tally.absolute.count == 0 {
        return;
    }
    let squared = of_mean(&tally.squared);
    let root = |value: Option<f64>| value.map(|value| value.max(0.0).sqrt());
    let rmse = Metric {
        value: root(squared.value),
        lower: root(squared.lower),
        upper: root(squared.upper),
        estimated: None,
    };
    metrics.insert("mae".to_owned(), of_mean(&tally.absolute));
    metrics.insert("rmse".to_owned(), rmse);
    metrics.insert("bias".to_owned(), of_mean(&tally.error));
    let variance = tally.actual.deviation() * tally.actual.deviation();
    let explained = tally.squared.mean().filter(|_| tally.absolute.count > 1 && variance > 0.0);
    let value = explained.map(|squared| 1.0 - squared / variance);
    metrics.insert("r2".to_owned(), Metric { value, ..Metric::default() });
}
