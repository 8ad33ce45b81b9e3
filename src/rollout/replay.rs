//! The evidence bundle of a rollout, and its verdict once more from the bundle alone.
//!
//! Whoever doubts a verdict takes the bundle and replays it: every gate's evidence is summed again from the ledger, and
//! every transition must follow from it. Always true: a replay looks at the bundle and at nothing else.
//!
//! Not here: fetching a bundle, printing what differs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::model::Moment;

use super::{
    canonical::digest,
    evidence::{Evidence, Pair, SLOTS, direction, gate_of, slot_name},
    ledger::{Body, Counted, Entry, Runs, Said, Transition, said, trials_of},
    policy::{Gate, Mode, Policy},
    state::{Rollout, Side, State},
};
use crate::stats::Direction;

/// Verdict of a rollout, and all the evidence that led to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bundle {
    /// The form: 1.
    pub schema: u32,
    /// The rollout's id.
    pub rollout: String,
    /// The model's name.
    pub model: String,
    /// The version that served.
    pub baseline: Side,
    /// The version that wanted to.
    pub candidate: Side,
    /// The policy.
    pub policy: Policy,
    /// The salt of the assignment.
    pub salt: String,
    /// Entries that the decision saw, all of them and in order.
    pub ledger: Vec<Entry>,
    /// Last decision.
    pub verdict: Decided,
    /// SHA-256 of the canonical form (RFC 8785) of all other fields, in hexadecimal.
    pub sha256: String,
}

/// The state that the last transition led to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decided {
    /// The state.
    pub state: State,
    /// The gate that rolled back, if one did.
    pub gate: Option<Gate>,
    /// The step, counted from 0.
    pub step: usize,
    /// Time of the transition.
    pub at: Moment,
}

/// A replayed bundle.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Replayed {
    /// The verdict that the ledger leads to.
    pub verdict: Option<Decided>,
    /// Natural logarithm of each gate's evidence at the end.
    pub log_e: BTreeMap<Gate, f64>,
    /// Differences from the bundle, in order; at most 100.
    pub differences: Vec<String>,
}

/// A file that is no bundle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// Its form is not that of a bundle.
    #[error("this is no evidence bundle: {0}; fetch one from /api/v1/rollouts/ID/evidence")]
    Form(String),
    /// Its form is of another time.
    #[error("the bundle has schema {0}, this program reads schema 1; use the one that wrote it")]
    Schema(u32),
}

const SCHEMA: u32 = 1;
const DIFFERENCES_MAX: usize = 100;
/// Sums in another order differ by less, relative to what was summed.
const TOLERANCE: f64 = 1e-6;

impl Rollout {
    /// The evidence bundle, also of a rollout that is not over.
    pub fn bundle(&self) -> Bundle {
        // What has no entry yet is evidence as well.
        let mut closed = Self::bare(self.head.clone(), self.ledger.clone());
        closed.close();
        let ledger = closed.ledger.entries().to_vec();
        let verdict = decided(&ledger).expect("the first entry of a rollout is a transition");
        let head = &self.head;
        let mut bundle = Bundle {
            schema: SCHEMA,
            rollout: head.id.clone(),
            model: head.model.clone(),
            baseline: head.baseline.clone(),
            candidate: head.candidate.clone(),
            policy: head.policy.clone(),
            salt: head.salt.clone(),
            ledger,
            verdict,
            sha256: String::new(),
        };
        let value = serde_json::to_value(&bundle).expect("a bundle is plain JSON");
        bundle.sha256 = digest_of(value);
        bundle
    }
}

fn digest_of(mut bundle: Value) -> String {
    if let Some(fields) = bundle.as_object_mut() {
        fields.remove("sha256");
    }
    digest(&bundle)
}

fn decided(ledger: &[Entry]) -> Option<Decided> {
    let transition = |entry: &Entry| match &entry.body {
        Body::Transition { transition } => Some(Decided {
            state: transition.to,
            gate: transition.gate,
            step: transition.step,
            at: entry.at,
        }),
        _ => None,
    };
    ledger.iter().rev().find_map(transition)
}

/// Sums the ledger of a bundle again and compares every step with what the bundle says.
pub fn replay(bundle: &Value) -> Result<Replayed, ReplayError> {
    let form = |error: serde_json::Error| ReplayError::Form(error.to_string());
    let schema = bundle.get("schema").and_then(Value::as_u64).unwrap_or(u64::from(SCHEMA));
    if schema != u64::from(SCHEMA) {
        return Err(ReplayError::Schema(u32::try_from(schema).unwrap_or(u32::MAX)));
    }
    let sha256 = digest_of(bundle.clone());
    let bundle: Bundle = serde_json::from_value(bundle.clone()).map_err(form)?;
    let mut playback = Playback::new(&bundle.policy);
    if sha256 != bundle.sha256 {
        playback.differ(format!("sha256 is {sha256}, the bundle says {}", bundle.sha256));
    }
    for entry in &bundle.ledger {
        playback.play(entry);
    }
    if let Some((gate, seq)) = playback.fired {
        playback.differ(format!("entry {seq}: gate {} fired and nothing followed", gate.name()));
    }
    let verdict = decided(&bundle.ledger);
    if verdict.as_ref() != Some(&bundle.verdict) {
        playback.differ(format!(
            "the ledger leads to {}, the bundle says {}",
            verdict.as_ref().map_or("nothing".to_owned(), shown),
            shown(&bundle.verdict)
        ));
    }
    let log_e = said(&bundle.policy, &playback.evidence);
    let log_e = log_e.into_iter().map(|(gate, said)| (gate, said.log_e)).collect();
    Ok(Replayed { verdict, log_e, differences: playback.differences })
}

fn shown(decided: &Decided) -> String {
    let gate = decided.gate.map_or(String::new(), |gate| format!(" by gate {}", gate.name()));
    format!("{}{gate} at step {} at {}", decided.state.name(), decided.step, decided.at)
}

impl Replayed {
    /// True if everything is as the bundle says.
    pub fn is_equal(&self) -> bool {
        self.differences.is_empty()
    }
}

/// Evidence as it is summed from a ledger.
pub(super) struct Playback<'a> {
    policy: &'a Policy,
    pub(super) evidence: Evidence,
    pub(super) requests: Pair,
    step: usize,
    step_requests: u64,
    /// The gate that has reached its threshold, and the entry.
    fired: Option<(Gate, u64)>,
    differences: Vec<String>,
}

impl<'a> Playback<'a> {
    pub(super) fn new(policy: &'a Policy) -> Self {
        Self {
            policy,
            evidence: Evidence::default(),
            requests: Pair::default(),
            step: 0,
            step_requests: 0,
            fired: None,
            differences: Vec::new(),
        }
    }

    fn differ(&mut self, difference: String) {
        if self.differences.len() < DIFFERENCES_MAX {
            self.differences.push(difference);
        }
    }

    /// Takes the next entry.
    pub(super) fn play(&mut self, entry: &Entry) {
        if let Some((gate, seq)) = self.fired
            && !matches!(entry.body, Body::Transition { .. })
        {
            self.differ(format!("entry {seq}: gate {} fired and nothing followed", gate.name()));
            self.fired = None;
        }
        match &entry.body {
            Body::Evidence(counted) => self.count(entry.seq, counted),
            Body::Transition { transition } => self.turn(entry.seq, transition),
            Body::Thresholds { thresholds } => self.evidence.freeze(self.policy, thresholds),
            Body::Sampled { sampled } => {
                for slot in 0..SLOTS {
                    let name = slot_name(slot, self.policy);
                    let left = [&sampled.trials, &sampled.events].map(|left| left.get(&name));
                    if let [Some(trials), Some(events)] = left {
                        self.evidence.set_counts(slot, *trials, *events);
                    }
                }
            }
            Body::Operator { .. } | Body::Restarted { .. } => {}
        }
    }

    fn count(&mut self, seq: u64, counted: &Counted) {
        self.requests = self.requests.plus(counted.requests);
        self.step_requests = self.step_requests.saturating_add(counted.requests.candidate);
        for slot in (0..SLOTS).filter(|slot| Evidence::is_on(self.policy, *slot)) {
            self.evidence.try_units(slot, trials_of(counted, slot, self.policy));
            let Some(text) = counted.events.get(&slot_name(slot, self.policy)) else { continue };
            let Some(runs) = Runs::parse(text) else {
                self.differ(format!("entry {seq}: {text:?} is not run lengths such as b3c1"));
                continue;
            };
            for (candidate, events) in runs.iter() {
                // The last event of a run reaches furthest, and only it may be the one that fires.
                self.add(seq, slot, counted.weight, candidate, events - 1);
                self.add(seq, slot, counted.weight, candidate, 1);
            }
        }
        for (name, counts) in &counted.outputs {
            if !self.evidence.outputs.add(name, counted.weight, *counts) {
                self.differ(format!("entry {seq}: {name:?} is one bin of outputs too many"));
            }
        }
        if let Some(copies) = counted.copies {
            self.evidence.drop_copies(copies.dropped);
            self.evidence.compare(copies.compared, copies.differing);
            if self.evidence.fires(self.policy, Gate::Disagreement) {
                self.fired = self.fired.or(Some((Gate::Disagreement, seq)));
            }
        }
    }

    fn add(&mut self, seq: u64, slot: usize, share: f64, candidate: bool, events: u64) {
        if events == 0 {
            return;
        }
        if let Some((gate, seq)) = self.fired.filter(|(gate, _)| *gate == gate_of(slot)) {
            self.differ(format!("entry {seq}: gate {} fired before the entry's end", gate.name()));
        }
        self.evidence.count(self.policy, slot, share, candidate, events);
        let is_bad = candidate == (direction(slot) == Direction::More);
        if is_bad && self.evidence.fires(self.policy, gate_of(slot)) {
            self.fired = self.fired.or(Some((gate_of(slot), seq)));
        }
    }

    /// Compares a transition with the evidence so far.
    fn turn(&mut self, seq: u64, transition: &Transition) {
        let now = said(self.policy, &self.evidence);
        for (gate, said) in &now {
            match transition.gates.get(gate) {
                Some(then) if is_same(then, said) => {}
                then => self.differ(format!(
                    "entry {seq}: gate {} is {}, the ledger says {}",
                    gate.name(),
                    spelled(said),
                    then.map_or("nothing".to_owned(), spelled),
                )),
            }
        }
        match (self.fired.take(), transition.gate) {
            (None, None) => {}
            (Some((fired, _)), Some(gate))
                if fired == gate && transition.to == State::RolledBack => {}
            (Some((fired, _)), _) => {
                self.differ(format!(
                    "entry {seq}: gate {} fired, and the rollout became {}",
                    fired.name(),
                    transition.to.name()
                ));
            }
            (None, Some(gate)) => self.differ(format!(
                "entry {seq}: rolled back by gate {}, which has not reached its threshold",
                gate.name()
            )),
        }
        let is_next = transition.to == State::Canary && transition.step > self.step;
        let is_end = transition.to == State::Promoting;
        if transition.from == State::Canary && (is_next || is_end) && transition.waived.is_none() {
            self.check_step(seq, transition, is_end);
        }
        if transition.step != self.step {
            (self.step, self.step_requests) = (transition.step, 0);
        }
    }

    /// Checks that a step passed by its conditions.
    fn check_step(&mut self, seq: u64, transition: &Transition, is_end: bool) {
        let Some(step) = self.policy.steps.get(self.step) else {
            self.differ(format!("entry {seq}: the policy has no step {}", self.step));
            return;
        };
        let policy = self.policy;
        if self.step_requests < step.min_requests {
            let seen = self.step_requests;
            self.differ(format!(
                "entry {seq}: step {} passed with {seen} of {} requests",
                self.step, step.min_requests
            ));
        }
        if transition.elapsed_seconds < step.min_duration.as_secs_f64() {
            self.differ(format!("entry {seq}: step {} passed too early", self.step));
        }
        for gate in Gate::ALL {
            let required = policy.gate(gate).mode == Mode::Required;
            if required && !self.evidence.has_data(policy, gate) {
                self.differ(format!("entry {seq}: gate {} had no data", gate.name()));
            } else if is_end && self.evidence.blocks(policy, gate, step.min_requests) {
                self.differ(format!(
                    "entry {seq}: promoted over gate {}, whose limits do not allow it",
                    gate.name()
                ));
            }
        }
    }
}

fn is_same(then: &Said, now: &Said) -> bool {
    let near = (then.log_e - now.log_e).abs() <= TOLERANCE * (1.0 + now.log_e.abs());
    near && then.counts == now.counts
}

fn spelled(said: &Said) -> String {
    let counts = said.counts.iter().map(|(name, [bt, ct, be, ce])| {
        format!("{name}: {be} of {bt} of the baseline, {ce} of {ct} of the candidate")
    });
    format!("log_e {:.6} ({})", said.log_e, counts.collect::<Vec<_>>().join("; "))
}
