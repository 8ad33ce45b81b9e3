//! Evidence: which requests, copies and outcomes count, and the gate that they prove.
//!
//! Always true:
//! - Requests count on both arms alike: those that were assigned after the warm-up had ended.
//! - A gate decides on the request that proves it; what comes after in the same batch is no evidence any more.
//! - Whatever is summed is in an entry of the ledger before the state changes.
//!
//! Not here: what the sums prove (`evidence`), what follows (`course`).

use std::{collections::BTreeMap, time::Duration};

use crate::model::Moment;

use super::{
    course::TIDEGATE,
    evidence::{
        ERRORS, Evidence, INVALID, LABELS, OUTCOMES, POSITIVES, Pair, SLOTS, SLOW, differs,
        direction, gate_of, slot_name,
    },
    ledger::{Body, Open, Sampled},
    policy::{Gate, Mode, QUANTILES_MAX},
    seen::{Comparison, Outcome, OutcomeKind, Seen, Threshold},
    state::{Effect, Rollout, State},
};
use crate::{
    model::PredictionId,
    serve::{Marks, Output},
    stats::Direction,
};

impl Rollout {
    /// True while the candidate has a share that is judged.
    pub(super) fn is_judging(&self) -> bool {
        let state = self.head.state;
        matches!(state, State::Canary | State::AwaitingApproval | State::Held)
            || state == State::Paused && self.head.weight > 0.0
    }

    pub(super) fn judge_requests(&mut self, seen: &[Seen], out: &mut Vec<Effect>) {
        for request in seen {
            if !self.is_judging() {
                return;
            }
            if let Some(reason) = self.count_failures(request) {
                self.roll_back(None, TIDEGATE, &reason, out);
            } else if self.is_evidence(request, out)
                && let Some(gate) = self.judge(request)
            {
                self.fire(gate, out);
            }
        }
    }

    /// Counts engine faults of the candidate in a row; says why to roll back if there are too many.
    fn count_failures(&mut self, request: &Seen) -> Option<String> {
        let guard = &mut self.head.guard;
        let answered = request.marks.has(Marks::ANSWERED) && !request.marks.has(Marks::ERROR);
        if !request.candidate {
            guard.baseline_answered |= answered;
        } else if answered {
            guard.failures = 0;
        } else if request.marks.has(Marks::FAULT) && guard.baseline_answered {
            guard.failures += 1;
            guard.baseline_answered = false;
        }
        (guard.failures >= self.head.policy.consecutive_failures).then(|| {
            format!(
                "guard consecutive_failures: {} failures of the canary in a row, while the baseline answered",
                guard.failures
            )
        })
    }

    /// True if the request counts: the warm-up was over when it was assigned.
    fn is_evidence(&mut self, request: &Seen, out: &mut Vec<Effect>) -> bool {
        let head = &mut self.head;
        if head.warm_up.ended.is_none() {
            head.warm_up.requests += u64::from(request.candidate);
            if head.warm_up.requests < head.policy.warmup_requests {
                return false;
            }
            // Everything that is assigned later meets a candidate that is warm, on both arms alike.
            head.warm_up.ended =
                Some(if head.policy.warmup_requests == 0 { Duration::ZERO } else { head.heard_at });
            let slow = head.policy.gate(Gate::Slow);
            if slow.mode != Mode::Off && head.timed_after.is_none() {
                out.push(Effect::FreezeQuantiles(slow.quantiles.clone()));
            }
        }
        let inside = request.share > 0.0 && request.share < 1.0;
        inside && head.warm_up.ended.is_some_and(|ended| request.at > ended)
    }

    pub(super) fn freeze(&mut self, thresholds: &[Threshold]) {
        self.close();
        let head = &mut self.head;
        head.evidence.freeze(&head.policy, thresholds);
        if let Some(thresholds) = head.evidence.thresholds(&head.policy)
            && head.timed_after.is_none()
        {
            head.timed_after = Some(head.heard_at);
            let body = Body::Thresholds { thresholds };
            self.ledger.push(&head.policy, Moment::at(head.heard_at), body);
        }
    }

    /// Counts a request by every meter; says which gate fired, if one did.
    fn judge(&mut self, request: &Seen) -> Option<Gate> {
        let Seen { candidate, share, marks, .. } = *request;
        let unit = Unit::of(request);
        let left = marks.has(Marks::ABANDONED);
        // Without any mark it did not fit the signature: the caller's mistake, on either arm.
        let judged = !left && !marks.has(Marks::CAPACITY) && marks != Marks::default();
        let answered = judged && marks.has(Marks::ANSWERED) && !marks.has(Marks::ERROR);
        let in_sample = self.admit(&unit);
        let open = self.open(share, false);
        open.requests.add(candidate, u64::from(judged));
        self.head.requests.add(candidate, u64::from(judged));
        self.head.step_requests += u64::from(judged && candidate);
        if !in_sample {
            return None;
        }
        if !unit.sticky || self.keys.is_first(unit.key) {
            let mut one = Pair::default();
            one.add(candidate, 1);
            self.head.open.assigned.add(candidate, 1);
            self.head.evidence.assign(share, one);
        }
        let mut fired = None;
        let mut meter = |rollout: &mut Self, slot: usize, tried: bool, event: bool| {
            if fired.is_none() && tried && rollout.count(&unit, slot, event) {
                fired = Some(gate_of(slot));
            }
        };
        meter(self, ERRORS, judged, marks.has(Marks::ERROR));
        let timed = self.head.timed_after.is_some_and(|after| request.at > after);
        for index in 0..QUANTILES_MAX {
            let slow = marks.has(Marks::slow(index));
            let tried = timed && self.head.evidence.is_frozen(index);
            // Who left after the threshold waited too long; who left before tells nothing.
            meter(self, SLOW + index, tried && (answered || (left && slow)), slow);
        }
        meter(self, INVALID, answered, marks.has(Marks::INVALID));
        meter(self, OUTCOMES, judged, false);
        let is_classed = answered && marks.has(Marks::CLASSED);
        meter(self, POSITIVES, is_classed, marks.has(Marks::POSITIVE));
        if answered && fired.is_none() {
            self.bin(&unit, request.output);
        }
        fired
    }

    /// Counts an answer in the bin of its output; before there are bins, it says which there will be.
    fn bin(&mut self, unit: &Unit, output: Output) {
        let head = &mut self.head;
        if output == Output::Nothing || head.policy.gate(Gate::OutputShift).mode == Mode::Off {
            return;
        }
        // Of a key that was there before counting began, neither arm's answers count.
        let is_new = !unit.sticky || self.keys.is_answered(unit.key);
        let outputs = &mut head.evidence.outputs;
        if !outputs.is_counting() {
            outputs.learn(unit.candidate, output);
        } else if is_new {
            let bin = outputs.count(output, unit.share, unit.candidate);
            head.open.outputs[bin].add(unit.candidate, 1);
        }
    }

    pub(super) fn judge_outcomes(&mut self, outcomes: &[Outcome], out: &mut Vec<Effect>) {
        for outcome in outcomes {
            let counts = self.head.warm_up.ended.is_some_and(|ended| outcome.at > ended);
            let inside = outcome.share > 0.0 && outcome.share < 1.0;
            if !self.is_judging() || !counts || !inside {
                continue;
            }
            let unit = Unit::of_outcome(outcome);
            if !self.admit(&unit) {
                continue;
            }
            self.open(outcome.share, true);
            let (slot, event) = match outcome.kind {
                OutcomeKind::Label { wrong } => (LABELS, wrong),
                OutcomeKind::Happened => (OUTCOMES, true),
                OutcomeKind::Predicted { positive } => (POSITIVES, positive),
            };
            if self.count(&unit, slot, event) {
                self.fire(gate_of(slot), out);
            }
        }
    }

    pub(super) fn judge_copies(&mut self, comparisons: &[Comparison], out: &mut Vec<Effect>) {
        for comparison in comparisons {
            if self.head.policy.gate(Gate::Disagreement).mode == Mode::Off
                || self.head.state.is_over()
            {
                return;
            }
            let differing = u64::from(differs(&self.head.policy, comparison));
            self.head.evidence.compare(1, differing);
            let copies = &mut self.open(0.0, false).copies;
            copies.compared += 1;
            copies.differing += differing;
            if differing > 0
                && self.head.state != State::Promoting
                && self.head.evidence.fires(&self.head.policy, Gate::Disagreement)
            {
                self.fire(Gate::Disagreement, out);
            }
        }
    }

    /// Counts a unit by one meter, once; true if its gate fires.
    fn count(&mut self, unit: &Unit, slot: usize, event: bool) -> bool {
        let head = &mut self.head;
        if !Evidence::is_on(&head.policy, slot) {
            return false;
        }
        // An outcome is of a unit that was tried when it was assigned.
        let is_trial = slot != OUTCOMES || !event;
        if is_trial && (!unit.sticky || self.keys.is_tried(slot, unit.key, unit.candidate)) {
            let mut one = Pair::default();
            one.add(unit.candidate, 1);
            head.evidence.try_units(slot, one);
            head.open.trials[slot].add(unit.candidate, 1);
        }
        if !event || (unit.sticky && !self.keys.is_counted(slot, unit.key, unit.candidate)) {
            return false;
        }
        if unit.candidate && unit.prediction != PredictionId::UNKNOWN {
            head.evidence.note(slot, unit.prediction.as_str().to_owned());
        }
        head.evidence.count(&head.policy, slot, unit.share, unit.candidate, 1);
        head.open.event(slot, unit.candidate);
        // An event of the other arm speaks for the candidate.
        let is_bad = unit.candidate == (direction(slot) == Direction::More);
        is_bad && head.evidence.fires(&head.policy, gate_of(slot))
    }

    /// True if the unit is in the sample; halves the sample where it has grown too large.
    fn admit(&mut self, unit: &Unit) -> bool {
        if !unit.sticky {
            return true;
        }
        let admitted = self.keys.admit(unit.key);
        if self.keys.is_full() {
            self.halve();
            return admitted && self.keys.admit(unit.key);
        }
        admitted
    }

    fn halve(&mut self) {
        self.close();
        let before = self.keys.recount();
        self.keys.halve();
        let after = self.keys.recount();
        let (mut trials, mut events) = (BTreeMap::new(), BTreeMap::new());
        for slot in (0..SLOTS).filter(|slot| Evidence::is_on(&self.head.policy, *slot)) {
            let (before, after) = (before[slot], after[slot]);
            let gone = (before.0.minus(after.0), before.1.minus(after.1));
            self.head.evidence.forget(slot, gone.0, gone.1);
            let left = self.head.evidence.counts(slot);
            let name = slot_name(slot, &self.head.policy);
            trials.insert(name.clone(), left.0);
            events.insert(name, left.1);
        }
        let sampled = Sampled { share: self.keys.share(), trials, events };
        let at = Moment::at(self.head.heard_at);
        self.ledger.push(&self.head.policy, at, Body::Sampled { sampled });
    }

    /// The open entry for evidence at this share.
    pub(super) fn open(&mut self, weight: f64, outcomes: bool) -> &mut Open {
        let step = self.head.step;
        if self.head.open.is_other(step, weight, outcomes) {
            self.close();
            self.head.open = Open { step, weight, outcomes, ..Open::default() };
        }
        &mut self.head.open
    }

    /// Writes the open entry.
    pub(super) fn close(&mut self) {
        let head = &mut self.head;
        head.open_since = head.heard_at;
        if head.open.is_empty() {
            return;
        }
        let open = std::mem::take(&mut head.open);
        let mut counted = open.counted(&head.policy, |slot| Evidence::is_on(&head.policy, slot));
        counted.outputs = head.evidence.outputs.named(&open.outputs);
        let body = Body::Evidence(counted);
        self.ledger.push(&head.policy, Moment::at(head.heard_at), body);
        self.head.open = Open {
            step: open.step,
            weight: open.weight,
            outcomes: open.outcomes,
            ..Open::default()
        };
    }
}

/// Unit of counting: a request, or a key.
struct Unit {
    candidate: bool,
    share: f64,
    key: u64,
    sticky: bool,
    prediction: PredictionId,
}

impl Unit {
    fn of(request: &Seen) -> Self {
        let Seen { candidate, share, key, sticky, prediction, .. } = *request;
        Self { candidate, share, key, sticky, prediction }
    }

    fn of_outcome(outcome: &Outcome) -> Self {
        let Outcome { candidate, share, key, sticky, prediction, .. } = *outcome;
        Self { candidate, share, key, sticky, prediction }
    }
}
