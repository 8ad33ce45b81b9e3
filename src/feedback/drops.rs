//! Drops of performance that were told and are not over: kept with the sums, so that a restart knows them.
//!
//! Not here: how a drop is found (`watch`, `quality`), who hears of it (`joiner`).

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::model::{Moment, VersionId};

use super::{
    ledger::Ledger,
    quality::{self, Drop, VersionQuality},
    watch::Watch,
};

/// A drop that stands.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Standing {
    pub(super) arm: String,
    pub(super) drop: Drop,
    /// When it was told first, and last.
    at: Duration,
    told_at: Duration,
    /// By which errors of numbers are measured.
    scale: (u64, f64),
    /// True if this process told of it while the version was there.
    #[serde(skip)]
    pub(super) is_told: bool,
}

impl Standing {
    /// A drop that is told now; one that stood before goes on.
    pub(super) fn new(
        (arm, drop): (&str, &Drop),
        watch: &Watch,
        before: Option<&Self>,
        now: Duration,
    ) -> Self {
        Self {
            arm: arm.to_owned(),
            drop: drop.clone(),
            at: before.map_or(now, |before| before.at),
            told_at: now,
            scale: watch.scale(),
            is_told: true,
        }
    }

    /// The errors of its version after a restart.
    pub(super) fn watch(&self) -> Watch {
        Watch::resumed(self.told_at, self.scale)
    }

    /// The object of its event; `cleared` is the time at which it was over.
    pub(super) fn object(&self, cleared: Option<Duration>) -> Option<Value> {
        let mut object = serde_json::to_value(&self.drop).ok()?;
        object["raised_at"] = Moment::at(self.at).to_string().into();
        object["cleared_at"] = cleared.map(|at| Moment::at(at).to_string()).into();
        Some(object)
    }

    /// True once errors are nearer to those before than to those since, or accuracy is what the operator asks for.
    pub(super) fn is_over(&self, ledger: &Ledger, version: VersionId, now: Duration) -> bool {
        if let Some(before) = self.drop.before {
            let mean = ledger.mean_error(version);
            return mean.is_some_and(|mean| mean <= f64::midpoint(before, self.drop.after));
        }
        let Some(limit) = ledger.policy.accuracy_min else { return true };
        let report = quality::report(ledger, quality::window(&self.drop.by), now);
        let is_it =
            |shown: &VersionQuality| shown.version == version.to_string() && shown.arm == self.arm;
        let shown = report.versions.into_iter().find(is_it);
        shown.and_then(|shown| quality::accuracy(&shown)).is_some_and(|accuracy| accuracy >= limit)
    }
}
