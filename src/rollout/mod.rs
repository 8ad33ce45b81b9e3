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

mod canonical;
mod course;
mod evidence;
mod judging;
mod keys;
mod ledger;
mod page;
mod plan;
pub mod policy;
mod replay;
mod report;
mod seen;
mod state;
mod values;

pub use evidence::{Pair, Verdict};
pub use ledger::{Entry, Operator, Transition};
pub use plan::{Plan, PlanError, PlannedRollback, PlannedStep, Promotes, plan};
pub use policy::{Gate, Mode, Policy, PolicyDraft};
pub use replay::{Bundle, Decided, ReplayError, Replayed, replay};
pub use report::{Counts, Elsewhere, GateReport, Point, Progress, Report, Why};
pub use seen::{Comparison, Marks, Outcome, OutcomeKind, Seen, Threshold};
pub use state::{
    Change, Checkpoint, Effect, Event, GuardKind, Order, OrderError, Rollout, Side, Start, State,
    Told,
};
pub use values::{Moment, Share, Span};

#[cfg(test)]
mod simulations;
#[cfg(test)]
mod tests;
