//! The split of a model's requests between its versions, as people and scripts see it.
//!
//! Not here: the split itself (`serve`), who changes it (`lifecycle`).

use serde::{Deserialize, Serialize};

use crate::{
    model::{ArmName, SLOTS, ShadowSpec, VersionId},
    monitor::ShadowTotals,
    serve::{Model, Traffic},
    stats::rate_limits,
};

/// The chance that a shadow's rate ever lies outside its limits.
const RATE_ALPHA: f64 = 0.05;

/// The split of a model's requests, as the admin API, its events and the command line give it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrafficReport {
    /// The model.
    pub model: String,
    /// Counts changes.
    pub revision: u64,
    /// `default`, `operator` or `rollout`.
    pub source: String,
    /// The rollout that decides about it.
    pub rollout: Option<String>,
    /// The part of a request that keeps its client in an arm.
    pub sticky: StickyReport,
    /// The arms, the baseline first.
    pub arms: Vec<ArmReport>,
    /// Versions that get copies.
    pub shadow: Vec<CopiesReport>,
}

/// The part of a request that keeps it in its arm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StickyReport {
    /// `header`, `cookie`, `parameter`, `request_id` or `none`.
    pub by: String,
    /// The header's, cookie's or parameter's name.
    pub name: Option<String>,
}

/// An arm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ArmReport {
    /// Its name.
    pub name: String,
    /// Its version's number.
    pub version: String,
    /// Its share, in multiples of 1/65536.
    pub weight: f64,
}

/// A version that gets copies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CopiesReport {
    /// Its number.
    pub version: String,
    /// The share of requests that is copied.
    pub share: f64,
    /// Copies that it ran since the process started.
    pub requests: u64,
    /// Copies that it did not run.
    pub dropped: u64,
    /// Copies whose answers disagree with those returned, or that failed.
    pub disagreements: u64,
    /// Disagreements per request; `None` before the first.
    pub rate: Option<f64>,
    /// The lower limit of the rate; both hold at all times at once with a probability of 95 %.
    pub rate_lower: f64,
    /// The upper limit of the rate.
    pub rate_upper: f64,
    /// The largest absolute difference; `None` if it is no number.
    pub max_absolute: Option<f64>,
    /// The largest relative difference; `None` if it is no number.
    pub max_relative: Option<f64>,
    /// Rows whose largest element is another.
    pub argmax_flips: u64,
    /// Rows with another label.
    pub label_flips: u64,
    /// Copies that it gave no answer to.
    pub failed: u64,
}

impl TrafficReport {
    /// The split of a model, and what its copies showed so far.
    pub fn of(model: &Model) -> Self {
        let traffic = model.traffic.as_deref();
        let spec = traffic.map(Traffic::spec);
        let sticky = spec.map(|spec| spec.sticky.clone()).unwrap_or_default();
        let arm = |name: ArmName, version: VersionId, weight| ArmReport {
            name: name.to_string(),
            version: version.to_string(),
            weight,
        };
        let arms = if let Some(traffic) = traffic {
            traffic.arms().iter().map(|own| arm(own.name, own.id, share(own.slots))).collect()
        } else {
            let answering = model.standing().map(|entry| entry.id).or(model.default);
            answering.map(|id| arm(ArmName::BASELINE, id, 1.0)).into_iter().collect()
        };
        let seen = traffic.and_then(|traffic| Some(traffic.shadow()?.totals())).unwrap_or_default();
        let shadow = spec.into_iter().flat_map(|spec| &spec.shadow);
        let shadow = shadow.map(|shadow| CopiesReport::of(*shadow, &seen));
        Self {
            model: model.name.to_string(),
            revision: model.traffic_revision,
            source: spec.map_or("default", |spec| spec.source.word()).to_owned(),
            rollout: spec.and_then(|spec| spec.rollout.clone()),
            sticky: StickyReport {
                by: sticky.word().to_owned(),
                name: sticky.name().map(str::to_owned),
            },
            arms,
            shadow: shadow.collect(),
        }
    }
}

impl CopiesReport {
    fn of(spec: ShadowSpec, seen: &ShadowTotals) -> Self {
        let limits = rate_limits(seen.requests, seen.disagreements, RATE_ALPHA);
        #[expect(clippy::cast_precision_loss, reason = "a ratio of counts")]
        let rate = seen.disagreements as f64 / seen.requests as f64;
        Self {
            version: spec.version.to_string(),
            share: share(spec.slots),
            requests: seen.requests,
            dropped: seen.dropped,
            disagreements: seen.disagreements,
            rate: (seen.requests > 0).then_some(rate),
            rate_lower: limits.0,
            rate_upper: limits.1,
            max_absolute: Some(seen.max_absolute).filter(|number| number.is_finite()),
            max_relative: Some(seen.max_relative).filter(|number| number.is_finite()),
            argmax_flips: seen.argmax_flips,
            label_flips: seen.label_flips,
            failed: seen.failed,
        }
    }
}

/// A share of the slots.
fn share(slots: u32) -> f64 {
    f64::from(slots) / f64::from(SLOTS)
}
