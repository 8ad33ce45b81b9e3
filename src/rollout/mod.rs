//! The decision about a candidate: which share of a model's traffic it gets, and whether it wins or goes.
//!
//! A rollout takes a candidate through validation, a shadow and growing shares, and judges it by evidence that holds
//! at every look: requests enter in the order of assignment, and each gate is a bet against "the candidate is no worse"
//! that wins only if it is. Always true:
//! - The decision is a pure function: the same events in the same order give the same states and effects, on any
//!   machine and at any time; [`replay`] repeats it from the ledger alone.
//! - A rollback is decided on the event that proves it, and carried out before it is written; everything else is
//!   written first.
//! - Whatever is kept is bounded: evidence is sums, the ledger merges its oldest entries, keys are sampled.
//!
//! Not here: assigning requests and counting how they end (`serve`), mathematics (`stats`), carrying out effects.

mod backtest;
mod canonical;
mod commands;
mod course;
mod driver;
mod evidence;
mod handle;
mod judging;
mod keys;
mod ledger;
mod outputs;
pub mod page;
mod past;
mod plan;
mod plot;
pub mod policy;
mod record;
mod replay;
mod report;
mod seen;
mod state;
mod store;
mod trace;
mod traffic;
mod validating;
mod values;
pub mod words;

pub use crate::serve::{Marks, Output};
pub use backtest::{Backtest, BacktestError, Past, PastOutcome, PastRequest, backtest};
pub use evidence::{Pair, Verdict};
pub use ledger::{Entry, Operator, Transition};
pub use outputs::{BinReport, OutputsReport};
pub use past::{PastError, PastSource, past};
pub use plot::{Size, svg};
pub use policy::{Gate, Mode, Policy, PolicyDraft};
pub use replay::{Bundle, Decided, ReplayError, Replayed, replay};
pub use report::{Counts, Elsewhere, GateReport, Point, Progress, Report, Why};
pub use seen::{Comparison, Outcome, OutcomeKind, Seen, Threshold};
pub use state::{
    Change, Checkpoint, Effect, Event, GuardKind, Order, OrderError, Rollout, Side, Start, State,
    Told,
};
pub use trace::{Entered, GateTrace, Trace};
pub use traffic::{ArmReport, CopiesReport, StickyReport, TrafficReport};
pub use validating::subject;
pub use values::{Share, Span};

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, mpsc},
    thread::JoinHandle,
};

use crate::{
    feedback::Feedback,
    lifecycle,
    model::{ModelName, VersionId},
    monitor::Monitor,
    registry::RolloutRecord,
    serve::Serving,
};

pub use handle::{RolloutError, Rollouts, Wanted};
pub use plan::{Plan, PlanError, PlannedRollback, PlannedStep, Promotes, plan};
pub use store::{Frozen, is_frozen};

/// Runs rollouts until it is dropped.
#[derive(Debug)]
pub struct Running {
    rollouts: Rollouts,
    thread: Option<JoinHandle<()>>,
}

/// Parts of the process that rollouts need.
pub struct Parts {
    /// Loads versions and publishes splits.
    pub lifecycle: lifecycle::Handle,
    /// Versions that are served.
    pub serving: Arc<Serving>,
    /// Counters of requests and outcomes; the clock.
    pub monitor: Arc<Monitor>,
    /// Outcomes of predictions.
    pub feedback: Feedback,
    /// The log and its folder, if state is kept.
    pub state: Option<(crate::state::State, PathBuf)>,
    /// Records of rollouts in the log, the oldest first.
    pub records: Vec<(String, RolloutRecord)>,
    /// The operator's policies by model, and whether a new version starts a rollout by itself.
    pub drafts: BTreeMap<ModelName, (PolicyDraft, bool)>,
    /// Versions in whose runs the process before ended: model, version, digest.
    pub blamed: Vec<(String, VersionId, String)>,
    /// Bounds of labelled data.
    pub validation: crate::validation::Settings,
    /// Threads that serve.
    pub workers: usize,
    /// Gives random bits.
    pub random: fn() -> u64,
}

impl Running {
    /// Starts the driver, with the rollouts that were open when the process before ended.
    ///
    /// Call it on a runtime: rollouts that begin by themselves wait for their loads there.
    pub fn start(parts: Parts) -> std::io::Result<Self> {
        let (sender, commands) = mpsc::channel();
        let shared = Arc::new(handle::Shared::default());
        let (ready, given) = mpsc::channel();
        let lifecycle = parts.lifecycle.clone();
        let (own, monitor) = (Arc::clone(&shared), Arc::clone(&parts.monitor));
        let thread = std::thread::Builder::new().name("rollouts".to_owned()).spawn(move || {
            let rollouts = Rollouts {
                commands: sender,
                thread: std::thread::current(),
                lifecycle,
                shared: own,
            };
            // Whoever started the thread waits for this.
            let _ = ready.send(rollouts.clone());
            let run = || driver::Driver::new(parts, commands, rollouts).run();
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err() {
                monitor.upkeep().broke("the thread that judges rollouts");
            }
        })?;
        let rollouts = given.recv().map_err(std::io::Error::other)?;
        let (runtime, starter) = (tokio::runtime::Handle::current(), rollouts.clone());
        shared.start_by(move |wanted| {
            let rollouts = starter.clone();
            runtime.spawn(async move {
                // The driver tells why one that nobody asked for did not start.
                let _ = rollouts.start(wanted).await;
            });
        });
        Ok(Self { rollouts, thread: Some(thread) })
    }

    /// Asks for rollouts.
    pub fn handle(&self) -> Rollouts {
        self.rollouts.clone()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.rollouts.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic has been told already
        }
    }
}

#[cfg(test)]
mod simulations;
#[cfg(test)]
mod tests;
