//! The state of a version's drift, as the admin API gives it and the commands read it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::Moment;

use super::contract::Action;

/// Drift of one version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DriftReport {
    /// The model.
    pub model: String,
    /// The version's number.
    pub version: String,
    /// The segment that the page is about; `None`: all rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment: Option<SegmentName>,
    /// The segments that are watched apart; empty on the page of one, and where none are declared.
    #[serde(default)]
    pub segments: Vec<SegmentReport>,
    /// `off`, `learning`, `watching`, `drifting` or `unmonitorable`.
    pub status: Status,
    /// More about it, for people.
    pub detail: String,
    /// Reference of live values.
    pub reference: ReferenceReport,
    /// The promise: the expected time to a false page alarm of the model is at least this, in seconds.
    pub false_alarm_every_seconds: f64,
    /// Natural logarithm of the evidence, over all features.
    pub log_m: f64,
    /// An alarm is raised at this `log_m`.
    pub log_m_threshold: f64,
    /// Length of the window that the features below are about, in seconds.
    pub window_seconds: f64,
    /// Rows in the window.
    pub rows: u64,
    /// Rows in the window whose values were counted; the others were passed over to bound the cost of a request.
    pub rows_counted: u64,
    /// Alarms, newest first.
    pub alarms: Vec<Alarm>,
    /// The features, in the order of the version's tensors.
    pub features: Vec<FeatureReport>,
    /// Rules of the contract and what they counted; empty without one.
    #[serde(default)]
    pub contract: Vec<RuleReport>,
}

/// A segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentName {
    /// The header or feature that says which segment a row is of.
    pub by: String,
    /// Its value.
    pub value: String,
}

/// A segment in a few numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SegmentReport {
    /// The value of the header or feature.
    pub value: String,
    /// Its state.
    pub status: Status,
    /// Rows in the window.
    pub rows: u64,
    /// Natural logarithm of the evidence, over all its features.
    pub log_m: f64,
    /// Share of what is to be learned that was, from 0 to 1.
    pub progress: f64,
    /// Features with an alarm of the page tier that has not cleared.
    pub drifting: Vec<String>,
}

/// A rule of the contract.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RuleReport {
    /// The feature.
    pub feature: String,
    /// Treatment of a request that breaks it, were this no dry run.
    pub action: Action,
    /// True if nothing is flagged or refused.
    pub dry_run: bool,
    /// Values checked since the version was loaded.
    pub values: u64,
    /// Values that broke it, by rule: `min`, `max`, `categories`, `missing_max`, `finite`.
    pub broken: BTreeMap<String, u64>,
}

/// State of a version or feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Drift is not watched.
    Off,
    /// The reference is being learned.
    Learning,
    /// Compared with the reference.
    Watching,
    /// An alarm was raised and has not cleared.
    Drifting,
    /// There is nothing to compare.
    Unmonitorable,
}

impl Status {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Learning => "learning",
            Self::Watching => "watching",
            Self::Drifting => "drifting",
            Self::Unmonitorable => "unmonitorable",
        }
    }
}

/// Reference of live values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReferenceReport {
    /// `profile`, `learned`, `inherited` or `none`.
    pub kind: ReferenceKind,
    /// Rows of it.
    pub rows: u64,
    /// SHA-256 of the data of a profile.
    pub digest: String,
    /// Share of what is to be learned that was, from 0 to 1.
    pub progress: f64,
}

/// Origin of a reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReferenceKind {
    /// `profile.json` beside the version.
    Profile,
    /// The version's first rows.
    Learned,
    /// The reference of the version before.
    Inherited,
    /// None yet.
    None,
}

/// An alarm about one feature.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Alarm {
    /// Its name, `d-...`.
    pub id: String,
    /// The feature.
    pub feature: String,
    /// `up`, `down`, `wider`, `narrower`, `tail`, `missing`, `unseen` or `category`.
    pub kind: String,
    /// The category, where the alarm is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<String>,
    /// `page`: with the promise about false alarms; `warn`: without.
    pub tier: Tier,
    /// `set`: one of those that are named with a bound on the false ones; `likeliest`: the feature with the most
    /// evidence, where no set could be named.
    pub named_by: NamedBy,
    /// When it was raised.
    pub raised_at: Moment,
    /// When the drift probably began.
    pub since: Moment,
    /// When the feature was back.
    pub cleared_at: Option<Moment>,
    /// Population stability index of the window in which it was raised.
    pub psi: f64,
    /// Jensen-Shannon distance of that window, base 2, from 0 to 1.
    pub js: f64,
    /// Natural logarithm of the feature's evidence.
    pub log_m: f64,
}

/// Strength of an alarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// With the promise about false alarms.
    Page,
    /// At a hundredth of the evidence: to look at, without a promise.
    Warn,
}

/// How an alarm's feature was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamedBy {
    /// One of a set with a bound on the false ones.
    Set,
    /// The one with the most evidence.
    Likeliest,
}

/// One feature in a window.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FeatureReport {
    /// Its name.
    pub name: String,
    /// `input`, `output` or `derived`.
    pub source: String,
    /// `numeric`, `categorical` or `text`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its state.
    pub status: Status,
    /// Values in the window.
    pub rows: u64,
    /// Share of them that is missing.
    pub missing: f64,
    /// Share of them that the reference has not: unseen categories, values beyond its extremes, infinities.
    pub unseen: f64,
    /// Population stability index; `None` without values.
    pub psi: Option<f64>,
    /// Expected index if nothing had drifted, from the numbers of values and bins alone.
    pub psi_noise: Option<f64>,
    /// Jensen-Shannon distance, base 2, from 0 to 1.
    pub js: Option<f64>,
    /// Kolmogorov-Smirnov distance of the binned distributions; `None` for categories.
    pub ks: Option<f64>,
    /// Wasserstein distance of the binned distributions, in the feature's unit; `None` for categories.
    pub wasserstein: Option<f64>,
    /// Mean of sampled values; `None` for categories.
    pub mean: Option<f64>,
    /// Mean of the reference.
    pub reference_mean: Option<f64>,
    /// Natural logarithm of the feature's evidence.
    pub log_m: f64,
    /// Kind of change that has most of the evidence, as in [`Alarm::kind`]; `None` where there is little.
    pub tendency: Option<String>,
    /// Edges of the bins; empty for categories.
    pub edges: Vec<f64>,
    /// Names of the bins.
    pub bins: Vec<String>,
    /// Values of the reference by bin.
    pub reference: Vec<u64>,
    /// Values of the window by bin.
    pub current: Vec<u64>,
    /// Population stability index of each of the last minutes with values, oldest first; at most 60.
    #[serde(default)]
    pub psi_minutes: Vec<f64>,
}

impl DriftReport {
    /// The page of a version that nothing is known of, and why.
    pub fn empty(model: &str, version: String, status: Status, detail: &str) -> Self {
        let kind = ReferenceKind::None;
        Self {
            model: model.to_owned(),
            version,
            segment: None,
            segments: Vec::new(),
            status,
            detail: detail.to_owned(),
            reference: ReferenceReport { kind, rows: 0, digest: String::new(), progress: 0.0 },
            false_alarm_every_seconds: 0.0,
            log_m: 0.0,
            log_m_threshold: 0.0,
            window_seconds: 0.0,
            rows: 0,
            rows_counted: 0,
            alarms: Vec::new(),
            features: Vec::new(),
            contract: Vec::new(),
        }
    }
}
