//! The first step of a rollout: its candidate on labelled data, on a thread of its own.
//!
//! Always true: whatever happens to the thread, the rollout hears of an end.
//!
//! Not here: metrics and verdicts (`validation`).

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use serde_json::Value;

use crate::{
    dataset::Dataset,
    monitor::Monitor,
    serve::{PredictError, Version},
    validation::{self, Request, Subject, Surroundings, Threshold},
};

use super::{Rollouts, policy::Validation};

/// End of a validation: its report, true if it passed, and the reason.
type Ended = (Value, bool, String);

/// Inputs of a validation.
pub(super) struct Task {
    pub(super) id: String,
    pub(super) wanted: Validation,
    pub(super) candidate: Arc<Version>,
    pub(super) baseline: Arc<Version>,
    pub(super) settings: validation::Settings,
    pub(super) rows_max: (u64, u64),
    pub(super) monitor: Arc<Monitor>,
    pub(super) cancel: Arc<AtomicBool>,
}

/// A loaded version as a subject of validation, with the most rows of one run.
pub fn subject(version: &Version, rows_max: u64) -> Subject<'_> {
    let parts = version.parts();
    let names = parts.description.parameters.get("feature_names");
    let names = names.map(|names| names.split(',').map(|name| name.trim().to_owned()).collect());
    Subject {
        model: parts.model.to_string(),
        version: parts.id.number(),
        signature: version.signature(),
        rows_max,
        class_names: &parts.class_names,
        feature_names: names.unwrap_or_default(),
        predict: Box::new(|inputs| {
            version.evaluate(inputs).map_err(|error| match error {
                PredictError::Engine(cause) => cause.to_string(),
                error => error.to_string(),
            })
        }),
    }
}

impl Task {
    /// Runs on a thread of its own, and tells the rollout how it ended.
    pub(super) fn start(self, rollouts: Rollouts) -> std::io::Result<()> {
        let run = move || {
            // What answers clients goes first; where that fails, the thread is only less polite.
            let _ = rustix::process::nice(10);
            let id = self.id.clone();
            let run = std::panic::AssertUnwindSafe(|| self.run());
            let ended = std::panic::catch_unwind(run);
            let (report, pass, why) = ended.unwrap_or_else(|_| {
                (
                    Value::Null,
                    false,
                    "it ended in a panic, a bug of tidegate; the log has it".to_owned(),
                )
            });
            rollouts.validated(id, report, pass, why);
        };
        std::thread::Builder::new().name("validation".to_owned()).spawn(run).map(|_| ())
    }

    fn run(&self) -> Ended {
        let failed = |why: String| (Value::Null, false, why);
        let thresholds = self.wanted.thresholds.iter();
        let thresholds = thresholds.map(|(name, limit)| Threshold::new(name, *limit));
        let thresholds = match thresholds.collect::<Result<Vec<_>, _>>() {
            Ok(thresholds) => thresholds,
            Err(error) => return failed(error.to_string()),
        };
        let request = Request { thresholds, settings: self.settings, ..Request::default() };
        let data = match Dataset::open(&PathBuf::from(&self.wanted.data), self.settings.limits()) {
            Ok(data) => data,
            Err(error) => return failed(error.to_string()),
        };
        let candidate = subject(&self.candidate, self.rows_max.0);
        let baseline = self.wanted.compare.then(|| subject(&self.baseline, self.rows_max.1));
        let clock = || self.monitor.clock().now();
        let mut progress = |_, _| {};
        let around = Surroundings { clock: &clock, cancel: &self.cancel, progress: &mut progress };
        match validation::validate(&request, data, candidate, baseline, around) {
            Ok(report) => {
                let pass = report.passed;
                let why = if pass { "passed".to_owned() } else { report.failures.join("; ") };
                (serde_json::to_value(&report).unwrap_or_default(), pass, why)
            }
            Err(error) => failed(error.to_string()),
        }
    }
}

/// Ends a validation at its next batch.
pub(super) fn cancel(flag: &AtomicBool) {
    flag.store(true, Relaxed);
}
