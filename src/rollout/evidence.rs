//! The evidence of a rollout: sums per gate, and what they prove.
//!
//! A meter counts one kind of event on both arms: trials and events for rates, and events by the share that was in
//! force for the ratio of the rates. `slow` has a meter per quantile, every other gate one; `disagreement` looks at
//! copied requests and has no two arms. A gate fires at `log_e >= ln(1/alpha_g)`: its e-process reaches that with
//! probability `alpha_g` at most while the candidate is no worse, however often one looks (Ville's inequality).
//! Always true: what a gate says depends on these sums alone.
//!
//! Not here: which requests count and once per what (`course`, `keys`), thresholds and modes (`policy`).

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::{
    outputs::Outputs,
    policy::{Gate, Mode, Policy, QUANTILES_MAX},
    seen::{Comparison, Threshold},
};
use crate::stats::{
    Direction, EventProcess, RatioLimits, SampleRatio, Stratum, rate_above_log_e, rate_upper_limit,
    ratio_limits,
};

/// Meters there are.
pub(super) const SLOTS: usize = 5 + QUANTILES_MAX;
pub(super) const ERRORS: usize = 0;
/// The first quantile of `slow`; the others follow.
pub(super) const SLOW: usize = 1;
pub(super) const INVALID: usize = SLOW + QUANTILES_MAX;
pub(super) const LABELS: usize = INVALID + 1;
pub(super) const OUTCOMES: usize = LABELS + 1;
pub(super) const POSITIVES: usize = OUTCOMES + 1;

/// Most shares whose events are kept apart: the steps and what operators set meanwhile. What comes at a further share
/// is no evidence.
const STRATA_MAX: usize = 64;
/// Prediction ids kept per gate: the last ones.
const WORST_MAX: usize = 20;
/// Error of the test of assigned shares.
const SAMPLE_RATIO_ALPHA: f64 = 1e-4;

/// A number for each arm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Pair {
    /// The baseline's.
    pub baseline: u64,
    /// The candidate's.
    pub candidate: u64,
}

impl Pair {
    pub(super) const fn new(baseline: u64, candidate: u64) -> Self {
        Self { baseline, candidate }
    }

    pub(super) fn add(&mut self, candidate: bool, count: u64) {
        let number = if candidate { &mut self.candidate } else { &mut self.baseline };
        *number = number.saturating_add(count);
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Self::new(
            self.baseline.saturating_add(other.baseline),
            self.candidate.saturating_add(other.candidate),
        )
    }

    pub(super) fn minus(self, other: Self) -> Self {
        Self::new(
            self.baseline.saturating_sub(other.baseline),
            self.candidate.saturating_sub(other.candidate),
        )
    }

    pub(super) fn both_reach(self, least: u64) -> bool {
        self.baseline >= least && self.candidate >= least
    }
}

/// Numbers of both arms at one share of the candidate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct AtShare {
    pub(super) share: f64,
    #[serde(flatten)]
    pub(super) counts: Pair,
}

/// The sums of one kind of event.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
struct Meter {
    /// Units that could have had the event.
    trials: Pair,
    /// Units that had it.
    events: Pair,
    /// Events that count for the ratio, by share.
    strata: Vec<AtShare>,
    /// Prediction ids of the candidate's last events.
    #[serde(default, skip_serializing_if = "VecDeque::is_empty")]
    worst: VecDeque<String>,
}

/// All evidence of a rollout.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Evidence {
    meters: [Meter; SLOTS],
    /// By the policy's quantiles; `None` until the quantile is frozen.
    thresholds: [Option<Threshold>; QUANTILES_MAX],
    /// Copied requests that were compared, and those that differed.
    compared: u64,
    differing: u64,
    /// Copies that were dropped.
    dropped: u64,
    /// First assignments of units by share.
    assigned: Vec<AtShare>,
    /// Answers by their outputs.
    #[serde(default)]
    pub(super) outputs: Outputs,
    /// The processes of the meters; made from the strata when they are needed.
    #[serde(skip)]
    processes: [Option<EventProcess>; SLOTS],
}

/// Evidence and verdict of a gate.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Standing {
    pub(super) log_e: f64,
    pub(super) verdict: Verdict,
    pub(super) trials: Pair,
    pub(super) events: Pair,
    pub(super) ratio: Option<f64>,
    pub(super) ratio_lower: Option<f64>,
    pub(super) ratio_upper: Option<f64>,
    pub(super) rate_upper: Option<f64>,
}

/// Verdict of a gate's evidence on the candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Neither is proven yet.
    Collecting,
    /// Good enough for promotion.
    Pass,
    /// Worse, beyond the threshold.
    Fail,
    /// No unit judged yet on an arm that must have one.
    NoData,
}

/// The gate that a meter belongs to.
pub(super) fn gate_of(slot: usize) -> Gate {
    match slot {
        ERRORS => Gate::Errors,
        INVALID => Gate::InvalidOutput,
        LABELS => Gate::WrongLabel,
        OUTCOMES => Gate::FewerOutcomes,
        POSITIVES => Gate::FewerPositives,
        _ => Gate::Slow,
    }
}

/// The meters of a gate.
pub(super) fn slots_of(gate: Gate, policy: &Policy) -> std::ops::Range<usize> {
    let one = |slot: usize| slot..slot + 1;
    match gate {
        Gate::Errors => one(ERRORS),
        Gate::Slow => SLOW..SLOW + policy.gate(Gate::Slow).quantiles.len(),
        Gate::InvalidOutput => one(INVALID),
        Gate::WrongLabel => one(LABELS),
        Gate::FewerOutcomes => one(OUTCOMES),
        Gate::FewerPositives => one(POSITIVES),
        Gate::Disagreement | Gate::OutputShift => 0..0,
    }
}

/// The name of a meter in the ledger: its gate's, with the quantile where there are several.
pub(super) fn slot_name(slot: usize, policy: &Policy) -> String {
    match policy.gate(Gate::Slow).quantiles.get(slot.wrapping_sub(SLOW)) {
        Some(quantile) => format!("slow@{quantile}"),
        None => gate_of(slot).name().to_owned(),
    }
}

/// The direction in which a meter's events are bad.
pub(super) fn direction(slot: usize) -> Direction {
    if slot == OUTCOMES || slot == POSITIVES { Direction::Fewer } else { Direction::More }
}

impl Evidence {
    /// True if the gate's meters count.
    pub(super) fn is_on(policy: &Policy, slot: usize) -> bool {
        let gate = gate_of(slot);
        policy.gate(gate).mode != Mode::Off && slots_of(gate, policy).contains(&slot)
    }

    /// Takes frozen quantiles; the first ones stay.
    pub(super) fn freeze(&mut self, policy: &Policy, thresholds: &[Threshold]) {
        for (index, quantile) in policy.gate(Gate::Slow).quantiles.iter().enumerate() {
            let same = |threshold: &&Threshold| (threshold.quantile - quantile).abs() < 1e-9;
            let found = thresholds.iter().find(same).copied();
            self.thresholds[index] = self.thresholds[index].or(found);
        }
    }

    /// Frozen quantiles, by the policy's order; `None` at the first that is not frozen.
    pub(super) fn thresholds(&self, policy: &Policy) -> Option<Vec<Threshold>> {
        let count = policy.gate(Gate::Slow).quantiles.len();
        self.thresholds[..count].iter().copied().collect()
    }

    /// True if the quantile at this place is frozen.
    pub(super) fn is_frozen(&self, index: usize) -> bool {
        self.thresholds[index].is_some()
    }

    /// Counts units that an event could have happened to.
    pub(super) fn try_units(&mut self, slot: usize, units: Pair) {
        let trials = &mut self.meters[slot].trials;
        *trials = trials.plus(units);
    }

    /// Notes the prediction of a request of the candidate that had an event.
    pub(super) fn note(&mut self, slot: usize, prediction: String) {
        let worst = &mut self.meters[slot].worst;
        if worst.len() >= WORST_MAX {
            worst.pop_front();
        }
        worst.push_back(prediction);
    }

    /// Counts events of one arm at a share.
    pub(super) fn count(
        &mut self,
        policy: &Policy,
        slot: usize,
        share: f64,
        candidate: bool,
        events: u64,
    ) {
        self.meters[slot].events.add(candidate, events);
        let mut counts = Pair::default();
        counts.add(candidate, events);
        if self.processes[slot].is_none() {
            self.processes[slot] = Some(self.process(policy, slot));
        }
        if at_share(&mut self.meters[slot].strata, share, counts) {
            let process = self.processes[slot].as_mut().expect("it was made above");
            process.add(share, counts.candidate, counts.baseline);
        }
    }

    /// Counts first assignments of units.
    pub(super) fn assign(&mut self, share: f64, units: Pair) {
        at_share(&mut self.assigned, share, units);
    }

    /// Counts copied requests.
    pub(super) fn compare(&mut self, compared: u64, differing: u64) {
        self.compared = self.compared.saturating_add(compared);
        self.differing = self.differing.saturating_add(differing).min(self.compared);
    }

    /// Counts copies that were dropped.
    pub(super) fn drop_copies(&mut self, copies: u64) {
        self.dropped = self.dropped.saturating_add(copies);
    }

    /// Copied requests that were compared, that differed, and copies that were dropped.
    pub(super) fn copies(&self) -> (u64, u64, u64) {
        (self.compared, self.differing, self.dropped)
    }

    /// Takes away units that left the sample of keys.
    pub(super) fn forget(&mut self, slot: usize, trials: Pair, events: Pair) {
        let meter = &mut self.meters[slot];
        meter.trials = meter.trials.minus(trials);
        meter.events = meter.events.minus(events);
    }

    /// Trials and events of a meter.
    pub(super) fn counts(&self, slot: usize) -> (Pair, Pair) {
        (self.meters[slot].trials, self.meters[slot].events)
    }

    /// Sets trials and events of a meter, as the ledger has them after the sample of keys was halved.
    pub(super) fn set_counts(&mut self, slot: usize, trials: Pair, events: Pair) {
        (self.meters[slot].trials, self.meters[slot].events) = (trials, events);
    }

    /// Prediction ids of the candidate's last events of a gate.
    pub(super) fn worst(&self, policy: &Policy, gate: Gate) -> Vec<String> {
        let slots = slots_of(gate, policy);
        let slot = slots
            .max_by(|a, b| self.slot_log_e(policy, *a).total_cmp(&self.slot_log_e(policy, *b)));
        slot.map(|slot| self.meters[slot].worst.iter().cloned().collect()).unwrap_or_default()
    }

    /// A meter's process, from its sums.
    fn process(&self, policy: &Policy, slot: usize) -> EventProcess {
        let delta = policy.gate(gate_of(slot)).delta;
        let mut process = EventProcess::new(direction(slot), delta, self.base_probability(slot));
        for stratum in &self.meters[slot].strata {
            process.add(stratum.share, stratum.counts.candidate, stratum.counts.baseline);
        }
        process
    }

    /// The baseline's probability of an event where it is known beforehand: of an answer beyond a frozen quantile.
    fn base_probability(&self, slot: usize) -> Option<f64> {
        let threshold = self.thresholds.get(slot.wrapping_sub(SLOW)).copied().flatten();
        threshold.map(|threshold| threshold.share_above)
    }

    pub(super) fn slot_log_e(&self, policy: &Policy, slot: usize) -> f64 {
        match &self.processes[slot] {
            Some(process) => process.log_e(),
            None => self.process(policy, slot).log_e(),
        }
    }

    /// Natural logarithm of a gate's e-process; of `slow` the mean of E over its quantiles.
    pub(super) fn log_e(&self, policy: &Policy, gate: Gate) -> f64 {
        if gate == Gate::Disagreement {
            let rate_max = policy.gate(gate).rate_max;
            return rate_above_log_e(self.compared, self.differing, rate_max);
        }
        if gate == Gate::OutputShift {
            return self.outputs.log_e();
        }
        let logs: Vec<f64> =
            slots_of(gate, policy).map(|slot| self.slot_log_e(policy, slot)).collect();
        mean_of_logs(&logs)
    }

    /// True if the gate may decide and its evidence has reached the threshold.
    pub(super) fn fires(&self, policy: &Policy, gate: Gate) -> bool {
        let threshold = policy.log_e_threshold(gate);
        policy.gate(gate).mode.decides()
            && threshold.is_some_and(|threshold| self.log_e(policy, gate) >= threshold)
    }

    /// True if something was judged on both arms, by every meter of the gate.
    ///
    /// A candidate whose outcomes fail to come has none: there the baseline's are data enough.
    pub(super) fn has_data(&self, policy: &Policy, gate: Gate) -> bool {
        let judged = |slot: usize| self.meters[slot].trials.both_reach(1);
        match gate {
            Gate::Disagreement => self.compared > 0,
            Gate::FewerOutcomes => self.meters[OUTCOMES].events.baseline > 0,
            Gate::OutputShift => self.outputs.totals().both_reach(1),
            _ => slots_of(gate, policy).all(judged),
        }
    }

    /// True if both arms have that many judged units.
    fn has_judged(&self, policy: &Policy, gate: Gate, least: u64) -> bool {
        match gate {
            Gate::Disagreement => self.compared >= least,
            Gate::FewerOutcomes => self.meters[OUTCOMES].events.both_reach(least),
            Gate::OutputShift => self.outputs.totals().both_reach(least),
            _ => slots_of(gate, policy).all(|slot| self.meters[slot].trials.both_reach(least)),
        }
    }

    /// True if the gate's limits stand in the way of promotion, where a step asks for `min_requests`.
    pub(super) fn blocks(&self, policy: &Policy, gate: Gate, min_requests: u64) -> bool {
        let counts = match policy.gate(gate).mode {
            Mode::Required => true,
            Mode::IfPresent => self.has_judged(policy, gate, min_requests),
            Mode::Signal | Mode::Off => false,
        };
        counts && !self.is_within_limits(policy, gate)
    }

    /// True if the limits at `promotion_alpha` say that the candidate is good enough.
    fn is_within_limits(&self, policy: &Policy, gate: Gate) -> bool {
        let rules = policy.gate(gate);
        if gate == Gate::Disagreement {
            let limit = self.rate_upper(policy, gate, 0);
            return self.compared > 0 && limit.is_some_and(|limit| limit < rules.rate_max);
        }
        let mut slots = slots_of(gate, policy);
        !slots.is_empty()
            && slots.all(|slot| {
                let limits = self.ratio_limits(policy, slot);
                let by_ratio = match direction(slot) {
                    Direction::More => limits.upper < 1.0 + rules.margin,
                    Direction::Fewer => limits.lower > 1.0 / (1.0 + rules.margin),
                };
                let by_rate = || {
                    let enough = good_enough_rate(policy, slot);
                    let limit = self.rate_upper(policy, gate, slot);
                    limit.zip(enough).is_some_and(|(limit, enough)| limit < enough)
                };
                by_ratio || by_rate()
            })
    }

    fn ratio_limits(&self, policy: &Policy, slot: usize) -> RatioLimits {
        limits_of(&self.meters[slot].strata, policy.promotion_alpha, self.base_probability(slot))
    }

    /// Upper limit of the candidate's own rate, where a rate can be good enough by itself.
    fn rate_upper(&self, policy: &Policy, gate: Gate, slot: usize) -> Option<f64> {
        let alpha = policy.promotion_alpha;
        if gate == Gate::Disagreement {
            let scale = policy.gate(gate).rate_max;
            return Some(rate_upper_limit(self.compared, self.differing, alpha, scale));
        }
        let Meter { trials, events, .. } = &self.meters[slot];
        // Units of the sample of keys may have had their trial before they could have an event.
        let trials = trials.candidate.max(events.candidate);
        let scale = good_enough_rate(policy, slot)?;
        Some(rate_upper_limit(trials, events.candidate, alpha, scale))
    }

    /// Returns the evidence and verdict of a gate, with limits at `promotion_alpha`.
    pub(super) fn standing(&self, policy: &Policy, gate: Gate) -> Standing {
        let log_e = self.log_e(policy, gate);
        let by_evidence = |a: &usize, b: &usize| {
            self.slot_log_e(policy, *a).total_cmp(&self.slot_log_e(policy, *b))
        };
        let slot = slots_of(gate, policy).max_by(by_evidence);
        let moved = self.outputs.most_moved().filter(|_| gate == Gate::OutputShift);
        let (trials, events) = match slot {
            Some(slot) => self.counts(slot),
            None if gate == Gate::Disagreement => {
                (Pair::new(0, self.compared), Pair::new(0, self.differing))
            }
            None => (self.outputs.totals(), moved.map_or(Pair::default(), sum_of)),
        };
        let limits = match slot {
            Some(slot) => Some(self.ratio_limits(policy, slot)),
            None => moved.map(|strata| limits_of(strata, policy.promotion_alpha, None)),
        };
        let finite = |number: f64| number.is_finite().then_some(number);
        let verdict = if policy.log_e_threshold(gate).is_some_and(|threshold| log_e >= threshold) {
            Verdict::Fail
        } else if !self.has_data(policy, gate) {
            Verdict::NoData
        } else if self.is_within_limits(policy, gate) {
            Verdict::Pass
        } else {
            Verdict::Collecting
        };
        Standing {
            log_e,
            verdict,
            trials,
            events,
            ratio: limits.and_then(|limits| limits.ratio),
            ratio_lower: limits.map(|limits| limits.lower),
            ratio_upper: limits.and_then(|limits| finite(limits.upper)),
            rate_upper: slot
                .or((gate == Gate::Disagreement).then_some(0))
                .and_then(|slot| self.rate_upper(policy, gate, slot)),
        }
    }

    /// Natural logarithm of the evidence that assignments do not follow the shares that were asked for: the product
    /// of one test per share.
    pub(super) fn sample_ratio_log_e(&self) -> f64 {
        let mut test = SampleRatio::new();
        for AtShare { share, counts } in &self.assigned {
            test.add(*share, counts.candidate, counts.baseline.saturating_add(counts.candidate));
        }
        test.log_e()
    }

    /// True if the arms' shares are not those that were asked for.
    pub(super) fn is_sample_ratio_wrong(&self) -> bool {
        self.sample_ratio_log_e() >= -SAMPLE_RATIO_ALPHA.ln()
    }

    /// Begins the test of assigned shares anew.
    pub(super) fn restart_sample_ratio(&mut self) {
        self.assigned.clear();
    }
}

/// A rate of the candidate below which the ratio does not matter.
fn good_enough_rate(policy: &Policy, slot: usize) -> Option<f64> {
    let rules = policy.gate(gate_of(slot));
    match rules.quantiles.get(slot.wrapping_sub(SLOW)) {
        Some(quantile) => {
            let rate = (1.0 - quantile) * (1.0 + rules.margin);
            (rate < 1.0).then_some(rate)
        }
        None => rules.absolute_rate,
    }
}

/// Limits of the ratio of rates from events by share.
fn limits_of(strata: &[AtShare], alpha: f64, base_probability: Option<f64>) -> RatioLimits {
    let strata = strata.iter().map(|at| Stratum {
        share: at.share,
        candidate: at.counts.candidate,
        baseline: at.counts.baseline,
    });
    ratio_limits(&strata.collect::<Vec<_>>(), alpha, base_probability)
}

/// Events at all shares.
pub(super) fn sum_of(strata: &[AtShare]) -> Pair {
    strata.iter().fold(Pair::default(), |sum, at| sum.plus(at.counts))
}

/// Adds counts at a share; false if there are too many shares.
pub(super) fn at_share(strata: &mut Vec<AtShare>, share: f64, counts: Pair) -> bool {
    let same = |at: &&mut AtShare| at.share.to_bits() == share.to_bits();
    if let Some(at) = strata.iter_mut().rev().find(same) {
        at.counts = at.counts.plus(counts);
        return true;
    }
    let is_room = strata.len() < STRATA_MAX;
    if is_room {
        strata.push(AtShare { share, counts });
    }
    is_room
}

/// The logarithm of the mean of numbers that are given by their logarithms; 0 of none.
fn mean_of_logs(logs: &[f64]) -> f64 {
    let count = f64::from(u32::try_from(logs.len()).unwrap_or(u32::MAX));
    match logs {
        [] => 0.0,
        [only] => *only,
        _ => {
            let most = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = logs.iter().map(|log| libm::exp(log - most)).sum();
            most + libm::log(sum / count)
        }
    }
}

/// True if outputs differ by more than the policy tolerates.
pub(super) fn differs(policy: &Policy, comparison: &Comparison) -> bool {
    let tolerance = policy.gate(Gate::Disagreement).tolerance;
    // NaN is a difference.
    comparison.flipped || comparison.max_rel.is_nan() || comparison.max_rel > tolerance
}
