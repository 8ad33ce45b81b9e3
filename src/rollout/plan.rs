//! The plan of a rollout: what a policy will and will not see at a given traffic, and when.
//!
//! The schedule is played many times with made-up requests and the real gate `errors`: the same e-process, the same
//! limits. Requests come in small batches, which grow with what was seen, so that a plan takes a fraction of a second;
//! gates that know nothing yet, and differences that errors do not show, are not part of it. Always true:
//! - The same seed gives the same plan.
//! - A rollback's numbers are those of a step by itself: as if all traffic had begun at its weight.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    policy::{Gate, OnTimeout, Policy, Step},
    report::{as_f64, as_u64},
};
use crate::stats::{Direction, EventProcess, Stratum, rate_upper_limit, ratio_limits};

/// Forecast of what a policy will see.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Requests of both arms per second.
    pub rate_per_second: f64,
    /// Share of the baseline's requests without a valid answer, 0 to 1.
    pub base_rate: f64,
    /// By step.
    pub steps: Vec<PlannedStep>,
    /// Probability that a candidate is promoted before the schedule ends, by its ratio of error rates.
    pub promotes: Vec<Promotes>,
    /// Effects that the policy cannot see, for people.
    pub warnings: Vec<String>,
}

/// Forecast of what a step will see.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlannedStep {
    /// The candidate's share.
    pub weight: f64,
    /// Minutes until it passes when all is well; the last one until promotion. None: not before `max_duration`.
    pub pass_minutes: Option<f64>,
    /// Points of rollback, by the candidate's ratio of error rates.
    pub rollback: Vec<PlannedRollback>,
}

/// Point at which a step rolls back; medians.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlannedRollback {
    /// The candidate's error rate divided by the baseline's.
    pub ratio: f64,
    /// Requests of the candidate until then, the warm-up included. None: more than were tried.
    pub canary_requests: Option<u64>,
    /// Minutes until then.
    pub minutes: Option<f64>,
    /// Share of all requests, or of users with one request each, that meet an error of the candidate until then.
    pub users_share: f64,
}

/// Probability that a candidate is promoted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Promotes {
    /// The candidate's error rate divided by the baseline's.
    pub ratio: f64,
    /// 0 to 1.
    pub probability: f64,
}

/// Numbers that no plan can be made from.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// No traffic.
    #[error(
        "a plan needs traffic: {0} requests per second; give the rate that you expect, for example 10"
    )]
    Rate(f64),
    /// No rate.
    #[error("the base rate is a share of requests from 0 to 1, for example 0.01, and not {0}")]
    Base(f64),
}

/// Ratios whose rollback is planned.
const ROLLBACK_RATIOS: [f64; 3] = [1.5, 2.0, 5.0];
/// Ratios whose promotion is planned.
const PROMOTION_RATIOS: [f64; 5] = [1.0, 1.2, 1.5, 2.0, 5.0];
/// Schedules that are played per ratio.
const SCHEDULES: usize = 100;
/// Plays of a single step per ratio, over all steps and at least.
const PLAYS: usize = 120;
const PLAYS_MIN: usize = 15;
const PLAYS_MAX: usize = 41;
/// Requests of the candidate after which a play of a single step gives up.
const CANARY_MAX: u64 = 200_000;
/// The most traffic per second: more is planned as this.
const RATE_MAX: f64 = 1e6;

/// Plans a policy at this many requests per second, of which this share fails on the baseline.
pub fn plan(policy: &Policy, rate: f64, base_rate: f64, seed: u64) -> Result<Plan, PlanError> {
    if !(rate > 0.0 && rate.is_finite()) {
        return Err(PlanError::Rate(rate));
    }
    if !(0.0..=1.0).contains(&base_rate) {
        return Err(PlanError::Base(base_rate));
    }
    let traffic = Traffic { policy, rate: rate.min(RATE_MAX), base_rate };
    let mut random = Random(seed);
    let mut promotes = Vec::new();
    let mut last_step = None;
    for ratio in PROMOTION_RATIOS {
        let ends: Vec<_> =
            (0..SCHEDULES).map(|_| traffic.play_schedule(ratio, &mut random)).collect();
        let count = ends.iter().flatten().count();
        if ratio <= 1.0 {
            last_step = median(ends);
        }
        let probability = as_f64(count as u64) / as_f64(SCHEDULES as u64);
        promotes.push(Promotes { ratio, probability });
    }
    let count = policy.steps.len();
    let plays = (PLAYS / count).clamp(PLAYS_MIN, PLAYS_MAX);
    let steps = policy.steps.iter().enumerate().map(|(index, step)| {
        let is_last = index + 1 == count;
        let pass = if is_last { last_step } else { traffic.pass_seconds(index) };
        PlannedStep {
            weight: step.weight.in_effect(),
            pass_minutes: pass.map(|seconds| seconds / 60.0),
            rollback: ROLLBACK_RATIOS
                .map(|ratio| traffic.plan_rollback(step, ratio, plays, &mut random))
                .to_vec(),
        }
    });
    let steps: Vec<PlannedStep> = steps.collect();
    let warnings = traffic.warnings(&steps);
    Ok(Plan { rate_per_second: rate, base_rate, steps, promotes, warnings })
}

/// Expected traffic, and the policy that judges it.
struct Traffic<'a> {
    policy: &'a Policy,
    rate: f64,
    base_rate: f64,
}

/// Evidence of one play.
struct Play {
    process: EventProcess,
    strata: Vec<Stratum>,
    canary: u64,
    events: u64,
}

impl Play {
    fn new(policy: &Policy) -> Self {
        let delta = policy.gate(Gate::Errors).delta;
        Self {
            process: EventProcess::new(Direction::More, delta, None),
            strata: Vec::new(),
            canary: 0,
            events: 0,
        }
    }
}

impl Traffic<'_> {
    /// Seconds until a step but the last passes when all is well; none if that is after `max_duration`.
    fn pass_seconds(&self, index: usize) -> Option<f64> {
        let step = &self.policy.steps[index];
        let warm_up = if index == 0 { self.policy.warmup_requests } else { 0 };
        let canary = as_f64(step.min_requests.saturating_add(warm_up));
        let seconds = canary / (self.rate * step.weight.in_effect());
        let seconds = seconds.max(step.min_duration.as_secs_f64());
        (seconds <= step.max_duration.as_secs_f64()).then_some(seconds)
    }

    /// The gate's threshold, where it may roll back.
    fn threshold(&self) -> f64 {
        let decides = self.policy.gate(Gate::Errors).mode.decides();
        let threshold = self.policy.log_e_threshold(Gate::Errors);
        threshold.filter(|_| decides).unwrap_or(f64::INFINITY)
    }

    /// Lets that many requests of the candidate, and as many of the baseline as belong to them, happen; true if the
    /// gate fires.
    fn happen(
        &self,
        play: &mut Play,
        weight: f64,
        ratio: f64,
        canary: u64,
        random: &mut Random,
    ) -> bool {
        let others = as_u64(as_f64(canary) * (1.0 - weight) / weight);
        let bad = random.binomial(canary, (self.base_rate * ratio).min(1.0));
        let bad_others = random.binomial(others, self.base_rate);
        play.canary += canary;
        play.events += bad;
        play.process.add(weight, bad, bad_others);
        match play.strata.iter_mut().find(|stratum| stratum.share.to_bits() == weight.to_bits()) {
            Some(stratum) => {
                stratum.candidate += bad;
                stratum.baseline += bad_others;
            }
            None => {
                play.strata.push(Stratum { share: weight, candidate: bad, baseline: bad_others });
            }
        }
        bad > 0 && play.process.log_e() >= self.threshold()
    }

    /// Plays the whole schedule; seconds of the last step if the candidate is promoted.
    fn play_schedule(&self, ratio: f64, random: &mut Random) -> Option<f64> {
        let mut play = Play::new(self.policy);
        let steps = &self.policy.steps;
        for (index, step) in steps.iter().enumerate() {
            let weight = step.weight.in_effect();
            let per_second = self.rate * weight;
            let (mut seen, mut look_at) = (0, 0);
            loop {
                let batch = (play.canary / 33).max(10);
                if self.happen(&mut play, weight, ratio, batch, random) {
                    return None;
                }
                seen += batch;
                let seconds = as_f64(seen) / per_second;
                let is_over = seconds >= step.max_duration.as_secs_f64();
                let ready = seen >= step.min_requests && seconds >= step.min_duration.as_secs_f64();
                if index + 1 < steps.len() {
                    // A step that waits for requests passes once they have come.
                    match (ready, is_over, step.on_timeout) {
                        (true, ..) | (_, true, OnTimeout::Promote) => break,
                        (_, true, OnTimeout::Rollback) => return None,
                        _ => {}
                    }
                } else {
                    if ready && (play.canary >= look_at || is_over) {
                        if self.is_within_limits(&play) {
                            return Some(seconds);
                        }
                        look_at = play.canary + play.canary / 12;
                    }
                    if is_over {
                        let waived = step.on_timeout == OnTimeout::Promote;
                        return waived.then_some(seconds);
                    }
                }
            }
        }
        None
    }

    fn is_within_limits(&self, play: &Play) -> bool {
        let rules = self.policy.gate(Gate::Errors);
        if !rules.mode.decides() {
            return true;
        }
        let alpha = self.policy.promotion_alpha;
        let by_rate = rules.absolute_rate.is_some_and(|enough| {
            as_f64(play.events) < enough * as_f64(play.canary)
                && rate_upper_limit(play.canary, play.events, alpha, enough) < enough
        });
        by_rate || ratio_limits(&play.strata, alpha, None).upper < 1.0 + rules.margin
    }

    /// Plays a step by itself.
    fn plan_rollback(
        &self,
        step: &Step,
        ratio: f64,
        plays: usize,
        random: &mut Random,
    ) -> PlannedRollback {
        let weight = step.weight.in_effect();
        let plays = (0..plays).map(|_| {
            let mut play = Play::new(self.policy);
            let is_possible = self.base_rate > 0.0 && self.threshold().is_finite();
            while is_possible && play.canary < CANARY_MAX {
                let batch = (play.canary / 50).max(2);
                if self.happen(&mut play, weight, ratio, batch, random) {
                    return Some(as_f64(play.canary));
                }
            }
            None
        });
        let canary =
            median(plays.collect()).map(|canary| canary + as_f64(self.policy.warmup_requests));
        PlannedRollback {
            ratio,
            canary_requests: canary.map(as_u64),
            minutes: canary.map(|canary| canary / (self.rate * weight) / 60.0),
            users_share: weight * (self.base_rate * ratio).min(1.0),
        }
    }

    fn warnings(&self, steps: &[PlannedStep]) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.base_rate <= 0.0 {
            warnings.push(
                "no errors were seen, and a multiple of none is none; give the base rate that you expect".to_owned(),
            );
            return warnings;
        }
        if self.threshold().is_infinite() {
            warnings.push("gate errors decides nothing, so no error rolls back".to_owned());
            return warnings;
        }
        for (index, (planned, step)) in steps.iter().zip(&self.policy.steps).enumerate() {
            let window = step.max_duration;
            let (number, percent) = (index + 1, 100.0 * planned.weight);
            let doubling = planned.rollback.iter().find(|rollback| rollback.ratio >= 2.0);
            let minutes = doubling.and_then(|rollback| rollback.minutes);
            if minutes.is_none_or(|minutes| minutes * 60.0 > window.as_secs_f64()) {
                let takes = minutes.map_or("longer than was tried".to_owned(), |minutes| {
                    format!("some {}", rounded(Duration::from_secs_f64(minutes * 60.0)))
                });
                warnings.push(format!(
                    "step {number} ({percent:.2} %) cannot see a doubling of errors within its {}: it takes {takes}; \
                     give it more traffic or a longer max_duration, or leave it to the later steps",
                    rounded(window)
                ));
            }
            if planned.pass_minutes.is_none() {
                warnings.push(format!(
                    "step {number} ({percent:.2} %) does not pass within its {} when all is well; \
                     give it more traffic, fewer min_requests or a longer max_duration",
                    rounded(window)
                ));
            }
        }
        warnings
    }
}

/// A time for people: minutes up to two hours, then hours.
fn rounded(time: Duration) -> String {
    let minutes = time.as_secs_f64() / 60.0;
    if minutes < 120.0 { format!("{minutes:.0} min") } else { format!("{:.0} h", minutes / 60.0) }
}

/// The median, where none is more than any number.
fn median(mut values: Vec<Option<f64>>) -> Option<f64> {
    values.sort_by(|a, b| a.unwrap_or(f64::INFINITY).total_cmp(&b.unwrap_or(f64::INFINITY)));
    values.get(values.len() / 2).copied().flatten()
}

/// Random numbers that follow from a seed (`SplitMix64`: Steele, Lea & Flood, 2014).
pub(super) struct Random(pub(super) u64);

impl Random {
    /// A number above 0 and up to 1.
    pub(super) fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        as_f64(((mixed ^ (mixed >> 31)) >> 11) + 1) / as_f64(1 << 53)
    }

    /// Draws the number of `trials` with an event of this probability: exact where few are expected, else rounded from
    /// a normal distribution.
    fn binomial(&mut self, trials: u64, probability: f64) -> u64 {
        if probability > 0.5 {
            return trials - self.binomial(trials, 1.0 - probability);
        }
        if probability <= 0.0 || trials == 0 {
            return 0;
        }
        let expected = as_f64(trials) * probability;
        if expected > 20.0 {
            let angle = std::f64::consts::TAU * self.unit();
            let normal = (-2.0 * self.unit().ln()).sqrt() * angle.cos();
            let spread = (expected * (1.0 - probability)).sqrt();
            return as_u64((expected + spread * normal).max(0.0)).min(trials);
        }
        // Gaps between events are geometric.
        let per_trial = libm::log1p(-probability);
        let (mut events, mut at) = (0, 0.0);
        loop {
            at += (self.unit().ln() / per_trial).floor() + 1.0;
            if at > as_f64(trials) {
                return events;
            }
            events += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::rollout::{PolicyDraft, Share};

    fn plan_default(rate: f64, base: f64) -> Plan {
        plan(&Policy::default(), rate, base, 7).unwrap()
    }

    #[test]
    fn binomial_has_its_mean_and_spread() {
        let mut random = Random(1);
        for (trials, probability) in [(10, 0.3), (1000, 0.001), (1000, 0.3), (50, 0.9), (3, 1.0)] {
            let draws: Vec<f64> =
                (0..4000).map(|_| as_f64(random.binomial(trials, probability))).collect();
            let mean = draws.iter().sum::<f64>() / 4000.0;
            let variance = draws.iter().map(|draw| (draw - mean).powi(2)).sum::<f64>() / 4000.0;
            let expected = as_f64(trials) * probability;
            let spread = expected * (1.0 - probability);
            assert!((mean - expected).abs() < 5.0 * (spread / 4000.0).sqrt() + 1e-9, "{mean}");
            assert!((variance - spread).abs() < 0.15 * spread + 1e-9, "{variance} {spread}");
        }
    }

    /// The promises of the default policy: of a bad candidate, of a good one.
    #[test]
    fn default_policy_promotes_what_is_good_and_nothing_that_is_bad() {
        for rate in [10.0, 50.0, 5000.0] {
            let plan = plan_default(rate, 0.01);
            let probability = |index: usize| plan.promotes[index].probability;
            assert!(probability(0) >= 0.95, "as good: {plan:?}");
            assert!(probability(2) <= 0.08, "1.5 times the errors: {plan:?}");
            assert!(probability(3) <= 0.01, "twice the errors: {plan:?}");
            assert!(probability(4) <= 0.0, "five times the errors: {plan:?}");
            let fifth = plan.steps[0].rollback[2].canary_requests.unwrap();
            assert!(fifth <= 300, "five times the errors are seen at once: {plan:?}");
        }
        assert!(plan_default(10.0, 0.0).promotes[0].probability >= 1.0, "no errors at all");
    }

    #[test]
    fn five_times_a_rare_error_are_seen_within_the_promised_requests() {
        let policy = Policy::default();
        let step = Step { weight: Share(0.05), ..policy.steps[0].clone() };
        for (base_rate, most) in [(0.01, 300), (0.001, 2000)] {
            let traffic = Traffic { policy: &policy, rate: 10.0, base_rate };
            let planned = traffic.plan_rollback(&step, 5.0, 400, &mut Random(3));
            let canary = planned.canary_requests.unwrap();
            assert!(canary <= most, "base rate {base_rate}: {canary} requests of the canary");
        }
    }

    #[test]
    fn plan_says_what_a_step_cannot_see() {
        let plan = plan_default(1.0, 0.01);
        assert!(plan.warnings[0].contains("step 1 (1.00 %) cannot see a doubling"), "{plan:?}");
        assert_eq!(plan.steps[0].pass_minutes, None, "200 requests take hours");
        assert!(plan.warnings[1].contains("does not pass within its 60 min"), "{plan:?}");
        let step = &plan_default(1000.0, 0.01).steps[0];
        assert_eq!(step.pass_minutes, Some(2.0), "the shortest time");
        assert!((step.rollback[1].users_share - step.weight * 0.02).abs() < 1e-12);
        assert!(plan_default(10.0, 0.0).warnings[0].contains("give the base rate"));
        let off = json!({"gates": {"errors": {"mode": "signal"}}});
        let off = Policy::from_drafts(&[&PolicyDraft::read(&off).unwrap()]).unwrap();
        let blind = super::plan(&off, 10.0, 0.01, 1).unwrap();
        assert_eq!(blind.steps[0].rollback[2].canary_requests, None);
        assert!(blind.warnings[0].contains("decides nothing"));
        assert_eq!(super::plan(&off, 0.0, 0.01, 1), Err(PlanError::Rate(0.0)));
        assert_eq!(super::plan(&off, 1.0, 1.1, 1), Err(PlanError::Base(1.1)));
    }

    #[test]
    fn same_seed_gives_the_same_plan() {
        assert_eq!(plan_default(20.0, 0.02), plan_default(20.0, 0.02));
    }
}
