//! What an operator may set about drift.

use std::time::Duration;

use super::{contract::Contract, segments::SegmentRule};

/// Settings of one model's drift detection.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// True if drift is watched.
    pub enabled: bool,
    /// The promise: the expected time to a false page alarm of a model is at least this.
    pub false_alarm_every: Duration,
    /// Drift that is too small to matter: an alternative counts only as far as it explains live values better than
    /// the reference by this share, such as 0.02. 0 finds the smallest drift.
    pub tolerance: f64,
    /// Caution for a reference of few rows, in standard deviations of its error.
    pub caution: f64,
    /// Rows that teach a reference where there is no profile.
    pub learn_rows: u64,
    /// Time after an alarm in which none is raised.
    pub cooldown: Duration,
    /// The window that gauges show, and that must have been inconspicuous before an alarm clears.
    pub window: Duration,
    /// Values per row up to which each is a feature of its own.
    pub features_max: usize,
    /// Raw rows that are kept for exact tests.
    pub sample_rows: usize,
    /// Values of one request that are counted; of a larger one, evenly spaced rows are.
    pub values_max: usize,
    /// Values of a version that are counted in a second; of more, random rows are.
    pub rate_max: usize,
    /// Features of a version that have gauges of their own.
    pub metric_features_max: usize,
    /// Features that are not watched, by name.
    pub ignored: Vec<String>,
    /// Demands on the inputs.
    pub contract: Option<Contract>,
    /// Rows that are also counted apart.
    pub segments: Option<SegmentRule>,
}

impl Default for Settings {
    /// One false alarm in 30 days at most, tolerance 0.02, caution 2, 10,000 rows to learn from, an hour of cool-down
    /// and of window, 256 features, 10,000 sampled rows, 4,096 values a request and
    /// 100,000 a second, gauges of 64 features.
    fn default() -> Self {
        Self {
            enabled: true,
            false_alarm_every: Duration::from_hours(30 * 24),
            tolerance: 0.02,
            caution: 2.0,
            learn_rows: 10_000,
            cooldown: Duration::from_hours(1),
            window: Duration::from_hours(1),
            features_max: 256,
            sample_rows: 10_000,
            values_max: 4096,
            rate_max: 100_000,
            metric_features_max: 64,
            ignored: Vec::new(),
            contract: None,
            segments: None,
        }
    }
}
