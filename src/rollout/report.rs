//! A rollout as people and programs see it, and why it ended as it did.
//!
//! Not here: sending it, drawing it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::model::Moment;

use super::{
    evidence::{Pair, Verdict, direction, slots_of},
    ledger::Body,
    outputs::OutputsReport,
    policy::{Gate, Mode, Policy},
    replay::Playback,
    state::{Change, Rollout, State},
};
use crate::stats::{Direction, EventProcess, rate_limits};

/// The JSON of a rollout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The id.
    pub id: String,
    /// The model's name.
    pub model: String,
    /// The version that serves.
    pub baseline: String,
    /// The version that wants to.
    pub candidate: String,
    /// Grows by every change.
    pub revision: u64,
    /// State of the rollout.
    pub state: State,
    /// The step, counted from 0.
    pub step: usize,
    /// Number of steps.
    pub steps: usize,
    /// The candidate's share in effect.
    pub weight: f64,
    /// Reason for the state, for people.
    pub reason: String,
    /// The gate that rolled back.
    pub gate: Option<Gate>,
    /// Start of the rollout.
    pub started_at: Moment,
    /// Last change of state, step or weight.
    pub updated_at: Moment,
    /// End of the rollout.
    pub ended_at: Option<Moment>,
    /// The policy.
    pub policy: Policy,
    /// Progress of the step.
    pub progress: Progress,
    /// Every gate that is not off.
    pub gates: Vec<GateReport>,
    /// Changes of state and step.
    pub history: Vec<Change>,
    /// Judged requests since the warm-up.
    pub requests: Pair,
    /// Test of assignments against the weights.
    pub sample_ratio: SampleRatioReport,
    /// Results of copied requests.
    pub shadow: Option<ShadowReport>,
    /// The report of the validation.
    pub validation: Option<Value>,
    /// Users among those who were judged, where requests of a user stay together.
    pub keys: Option<KeysReport>,
    /// Cause of the rollback, in detail.
    pub why: Option<Why>,
}

/// Progress of a step or of the shadow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Seconds that count: without pauses and holds.
    pub elapsed_seconds: f64,
    /// Seconds that are asked for.
    pub min_duration_seconds: f64,
    /// The candidate's judged requests in the step; compared copies in the shadow.
    pub requests: u64,
    /// Number that is asked for.
    pub min_requests: u64,
}

/// A gate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GateReport {
    /// The gate.
    pub gate: Gate,
    /// Decisions that it may make.
    pub mode: Mode,
    /// True if it may roll back.
    pub decides: bool,
    /// Natural logarithm of its evidence that the candidate is worse.
    pub log_e: f64,
    /// Value of `log_e` at which it fires, or would.
    pub log_e_threshold: f64,
    /// Verdict of the gate.
    pub verdict: Verdict,
    /// Judged units of the baseline; of copied requests none.
    pub baseline: Counts,
    /// Judged units of the candidate.
    pub candidate: Counts,
    /// The likeliest ratio of the rates; none without events.
    pub ratio: Option<f64>,
    /// Its lower limit.
    pub ratio_lower: Option<f64>,
    /// Its upper limit; none where no large ratio is excluded.
    pub ratio_upper: Option<f64>,
    /// Upper limit of the candidate's own rate, where a rate can be good enough by itself.
    pub rate_upper: Option<f64>,
    /// Answers by their outputs: of `output_shift` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outputs: Option<OutputsReport>,
}

/// Units of one arm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Requests, or keys where requests of a key stay together.
    pub requests: u64,
    /// Of these, with an event.
    pub events: u64,
}

/// Test of assignments against the weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SampleRatioReport {
    /// Natural logarithm of the evidence that they do not.
    pub log_e: f64,
    /// Value of `log_e` at which the rollout is held.
    pub log_e_threshold: f64,
}

/// Results of copied requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShadowReport {
    /// Compared.
    pub compared: u64,
    /// Of these, with other outputs.
    pub differing: u64,
    /// Dropped before they were compared.
    pub dropped: u64,
    /// Limits of the share that differs, which hold at all times at once with probability 0.95.
    pub rate_lower: f64,
    /// The upper one.
    pub rate_upper: f64,
}

/// Users among those who were judged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeysReport {
    /// Keys that are known.
    pub known: usize,
    /// Share of all keys that is sampled: 1, or less where there are too many to know them all.
    pub sampled: f64,
}

/// Cause of a rollback.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Why {
    /// Beginning of the reason: `gate`, `guard`, `operator`, `load failed` or `timeout`.
    pub kind: String,
    /// The whole reason, for people.
    pub text: String,
    /// The gate that fired; the path is that of `errors` where none did.
    pub gate: Option<Gate>,
    /// Time of the rollback.
    pub at: Moment,
    /// The step, counted from 0.
    pub step: usize,
    /// The candidate's share until then.
    pub weight: f64,
    /// Units and events of the baseline.
    pub baseline: Counts,
    /// Units and events of the candidate.
    pub candidate: Counts,
    /// Natural logarithm of the evidence.
    pub log_e: f64,
    /// Value of `log_e` at which it fired.
    pub log_e_threshold: f64,
    /// Prediction ids of the candidate's last events, at most 20.
    pub worst: Vec<String>,
    /// Units of the candidate that met the event: users where requests of a user stay together, else requests.
    pub users_met: u64,
    /// The same as a share of all units that were judged.
    pub users_met_share: f64,
    /// Growth of the evidence, at most 500 points.
    pub path: Vec<Point>,
    /// Expectation at each step, had all traffic been at its weight.
    pub elsewhere: Vec<Elsewhere>,
}

/// Evidence at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Time of the point.
    pub at: Moment,
    /// The candidate's judged requests until then.
    pub requests: u64,
    /// Natural logarithm of the evidence.
    pub log_e: f64,
}

/// Expected result of the same rates at another weight.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Elsewhere {
    /// The step, counted from 0.
    pub step: usize,
    /// Its weight.
    pub weight: f64,
    /// Requests of the candidate until the gate fires; none if it would not within a billion requests.
    pub canary_requests: Option<u64>,
    /// Requests of both arms.
    pub requests: Option<u64>,
    /// Units of the candidate that meet the event.
    pub users_met: Option<u64>,
}

/// Most points of a path.
const PATH_MAX: usize = 500;
/// Error of the limits of what differs in the shadow.
const SHADOW_ALPHA: f64 = 0.05;
/// Error of the test of assigned shares.
const SAMPLE_RATIO_ALPHA: f64 = 1e-4;
/// Traffic beyond which nothing is expected any more.
const REQUESTS_MAX: u64 = 1_000_000_000;

impl Rollout {
    /// The rollout as it stands at a time since 1970.
    pub fn report(&self, now: Duration) -> Report {
        let head = &self.head;
        let on = Gate::ALL.into_iter().filter(|gate| head.policy.gate(*gate).mode != Mode::Off);
        Report {
            id: head.id.clone(),
            model: head.model.clone(),
            baseline: head.baseline.version.clone(),
            candidate: head.candidate.version.clone(),
            revision: head.revision,
            state: head.state,
            step: head.step,
            steps: head.policy.steps.len(),
            weight: head.weight,
            reason: head.reason.clone(),
            gate: head.gate,
            started_at: head.started_at,
            updated_at: head.updated_at,
            ended_at: head.ended_at,
            policy: head.policy.clone(),
            progress: self.progress(now),
            gates: on.map(|gate| self.gate_report(gate)).collect(),
            history: head.history.clone(),
            requests: head.requests,
            sample_ratio: SampleRatioReport {
                log_e: head.evidence.sample_ratio_log_e(),
                log_e_threshold: -SAMPLE_RATIO_ALPHA.ln(),
            },
            shadow: self.shadow_report(),
            validation: head.validation.clone(),
            keys: (self.keys.len() > 0)
                .then(|| KeysReport { known: self.keys.len(), sampled: self.keys.share() }),
            why: self.why(),
        }
    }

    fn progress(&self, now: Duration) -> Progress {
        let head = &self.head;
        let elapsed = self.elapsed(now).as_secs_f64();
        match head.policy.shadow.as_ref().filter(|_| head.state == State::Shadow) {
            Some(shadow) => Progress {
                elapsed_seconds: elapsed,
                min_duration_seconds: shadow.duration.0.as_secs_f64(),
                requests: head.evidence.copies().0,
                min_requests: shadow.requests,
            },
            None => Progress {
                elapsed_seconds: elapsed,
                min_duration_seconds: head.policy.steps[head.step].min_duration.as_secs_f64(),
                requests: head.step_requests,
                min_requests: head.policy.steps[head.step].min_requests,
            },
        }
    }

    fn gate_report(&self, gate: Gate) -> GateReport {
        let policy = &self.head.policy;
        let standing = self.head.evidence.standing(policy, gate);
        let outputs = &self.head.evidence.outputs;
        GateReport {
            gate,
            mode: policy.gate(gate).mode,
            decides: policy.gate(gate).mode.decides(),
            log_e: standing.log_e,
            log_e_threshold: policy.log_e_threshold(gate).unwrap_or(f64::MAX),
            verdict: standing.verdict,
            baseline: Counts {
                requests: standing.trials.baseline,
                events: standing.events.baseline,
            },
            candidate: Counts {
                requests: standing.trials.candidate,
                events: standing.events.candidate,
            },
            ratio: standing.ratio,
            ratio_lower: standing.ratio_lower,
            ratio_upper: standing.ratio_upper,
            rate_upper: standing.rate_upper,
            outputs: (gate == Gate::OutputShift && !outputs.is_empty())
                .then(|| outputs.report(standing.verdict == Verdict::Fail)),
        }
    }

    fn shadow_report(&self) -> Option<ShadowReport> {
        let (compared, differing, dropped) = self.head.evidence.copies();
        if self.head.policy.shadow.is_none() && compared + dropped == 0 {
            return None;
        }
        let (rate_lower, rate_upper) = rate_limits(compared, differing, SHADOW_ALPHA);
        Some(ShadowReport { compared, differing, dropped, rate_lower, rate_upper })
    }

    /// Returns why the candidate was rolled back; none if it was not. Costs a playback of the ledger the first time.
    pub fn why(&self) -> Option<Why> {
        if !self.head.state.is_over() {
            return None;
        }
        self.explained.get_or_init(|| self.explain()).clone()
    }

    fn explain(&self) -> Option<Why> {
        let head = &self.head;
        if head.state != State::RolledBack {
            return None;
        }
        let gate = head.gate.unwrap_or(Gate::Errors);
        let report = self.gate_report(gate);
        let units = report.baseline.requests.saturating_add(report.candidate.requests).max(1);
        let kinds = ["gate", "guard", "operator", "load failed", "timeout"];
        let kind = kinds.into_iter().find(|kind| head.reason.starts_with(kind));
        Some(Why {
            kind: kind.unwrap_or("other").to_owned(),
            text: head.reason.clone(),
            gate: head.gate,
            at: head.ended_at.unwrap_or(head.updated_at),
            step: head.step,
            weight: self.last_weight(),
            baseline: report.baseline,
            candidate: report.candidate,
            log_e: report.log_e,
            log_e_threshold: report.log_e_threshold,
            worst: head.evidence.worst(&head.policy, gate),
            users_met: report.candidate.events,
            users_met_share: as_f64(report.candidate.events) / as_f64(units),
            path: self.path(gate),
            elsewhere: self.elsewhere(gate, &report),
        })
    }

    /// The candidate's share before the last transition.
    fn last_weight(&self) -> f64 {
        let weights = self.ledger.entries().iter().rev().filter_map(|entry| match &entry.body {
            Body::Transition { transition } => Some(transition.weight),
            _ => None,
        });
        weights.into_iter().nth(1).unwrap_or(0.0)
    }

    /// Returns how a gate's evidence grew, played back from the ledger and thinned.
    fn path(&self, gate: Gate) -> Vec<Point> {
        let mut playback = Playback::new(&self.head.policy);
        let mut path: Vec<Point> = Vec::new();
        for entry in self.ledger.entries() {
            playback.play(entry);
            if matches!(entry.body, Body::Evidence(_)) {
                path.push(Point {
                    at: entry.at,
                    requests: playback.requests.candidate,
                    log_e: playback.evidence.log_e(&self.head.policy, gate),
                });
            }
        }
        let stride = path.len().div_ceil(PATH_MAX).max(1);
        let last = path.len();
        // Counted from the end, as the end is what decided.
        let kept = path.into_iter().enumerate();
        kept.filter(|(index, _)| (last - 1 - index).is_multiple_of(stride))
            .map(|(_, point)| point)
            .collect()
    }

    /// Expected traffic until the gate fires at each step's weight, at the rates that were seen.
    fn elsewhere(&self, gate: Gate, report: &GateReport) -> Vec<Elsewhere> {
        let policy = &self.head.policy;
        let Some(slot) = slots_of(gate, policy).next() else { return Vec::new() };
        let rate = |counts: Counts| as_f64(counts.events) / as_f64(counts.requests.max(1));
        // A baseline without events has some all the same, once in a while.
        let half = 0.5 / (as_f64(report.baseline.requests) + 1.0);
        let rates = (rate(report.baseline).max(half), rate(report.candidate));
        let per_unit =
            as_f64(self.head.requests.candidate.max(1)) / as_f64(report.candidate.requests.max(1));
        let steps = policy.steps.iter().enumerate();
        let step = |(step, weight): (usize, f64)| {
            let rule = (direction(slot), policy.gate(gate).delta, report.log_e_threshold);
            let units = expected_units(rule, weight, rates);
            let canary = units.map(|units| units * weight);
            Elsewhere {
                step,
                weight,
                canary_requests: canary.map(|canary| as_u64(canary * per_unit)),
                requests: units.map(|units| as_u64(units * per_unit)),
                users_met: canary.map(|canary| as_u64(canary * rates.1)),
            }
        };
        steps.map(|(index, at)| step((index, at.weight.in_effect()))).collect()
    }
}

/// Units of both arms until the evidence reaches the threshold, if events come exactly as expected.
fn expected_units(
    (direction, delta, threshold): (Direction, f64, f64),
    weight: f64,
    (baseline, candidate): (f64, f64),
) -> Option<f64> {
    let reaches = |units: f64| {
        let mut process = EventProcess::new(direction, delta, None);
        let events = |rate: f64, share: f64| as_u64(units * share * rate);
        process.add(weight, events(candidate, weight), events(baseline, 1.0 - weight));
        process.log_e() >= threshold
    };
    let (mut low, mut high) = (1.0, as_f64(REQUESTS_MAX));
    if !reaches(high) {
        return None;
    }
    while high / low > 1.01 {
        let middle = (low * high).sqrt();
        *(if reaches(middle) { &mut high } else { &mut low }) = middle;
    }
    Some(high)
}

#[expect(clippy::cast_precision_loss, reason = "counts of requests are far below 2^53")]
pub(super) fn as_f64(number: u64) -> f64 {
    number as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a cast saturates, and counts are not negative"
)]
pub(super) fn as_u64(number: f64) -> u64 {
    number.round() as u64
}
