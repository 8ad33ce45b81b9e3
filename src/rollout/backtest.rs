//! A policy on recorded predictions: what its gates would have decided, and when.
//!
//! The past is played through the decision that the driver asks, [`Rollout::hear`]. Each request is drawn for an arm
//! with the weight of the step, by random numbers that follow from a seed, and is the next recorded one of that arm;
//! those of the other arm that are older are passed over. So the arms stay side by side in time, whatever they share,
//! and the candidate's share is the policy's, whatever it was. Requests and outcomes of a tenth of a second are
//! heard together, so a decision falls at the end of one. Always true: the same past, policy and seed give the same
//! decision.
//!
//! What the table does not hold cannot decide: copies of requests, the validation, whose requests they were (each
//! counts by itself). A person's approval is given at once.
//!
//! Not here: reading the table (`past`).

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    time::Duration,
};

use serde::Serialize;

use crate::{
    model::{Moment, PredictionId},
    serve::{Marks, Output},
};

use super::{
    evidence::Pair,
    plan::Random,
    policy::{Gate, Policy},
    report::{Report, as_f64},
    seen::{Outcome, OutcomeKind, Seen, Threshold},
    state::{Effect, Event, Order, Rollout, Side, Start, State},
};

/// A recorded prediction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PastRequest {
    /// Its arrival, since 1970.
    pub at: Duration,
    /// Its name, as bits.
    pub prediction: u128,
    /// The status of its answer.
    pub code: u16,
    /// Time to its answer.
    pub took: Duration,
    /// True if a floating-point output held NaN or an infinity.
    pub is_invalid: bool,
}

/// An outcome of a recorded prediction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PastOutcome {
    /// The time when it was known, since 1970.
    pub known_at: Duration,
    /// True if the prediction was another; `None` without a label.
    pub wrong: Option<bool>,
    /// True if what was hoped for happened.
    pub happened: bool,
}

/// Recorded predictions of two versions.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Past {
    /// Those of the version that served, in the order of time.
    pub baseline: Vec<PastRequest>,
    /// Those of the version that wanted to.
    pub candidate: Vec<PastRequest>,
    /// Outcomes by the bits of their prediction's name.
    pub outcomes: BTreeMap<u128, Vec<PastOutcome>>,
}

/// Decision of a policy about the past.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Backtest {
    /// The state at the end: `promoted`, `rolled_back`, or where the recorded predictions ended.
    pub state: State,
    /// The gate that rolled back.
    pub gate: Option<Gate>,
    /// Time of the decision; of the last prediction where there was none.
    pub at: Moment,
    /// Seconds from the first prediction until then.
    pub after_seconds: f64,
    /// Recorded predictions of each version.
    pub recorded: Pair,
    /// Of these, those that were taken until the decision.
    pub taken: Pair,
    /// Outcomes that were known until the decision.
    pub outcomes: u64,
    /// The rollout, as a server would show it.
    pub rollout: Report,
    /// Parts of the policy that the past cannot judge.
    pub notes: Vec<String>,
}

/// Why there is nothing to decide about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BacktestError {
    /// A version without predictions.
    #[error(
        "the table has no predictions of version {0}; its folder is PATH/predictions/MODEL/{0}"
    )]
    Empty(String),
    /// The versions did not serve at the same time.
    #[error(
        "the predictions of version {baseline} end before those of version {candidate} begin, or the other way round; with \
         --shift they are taken as if both had begun together"
    )]
    Apart {
        /// The version that served.
        baseline: String,
        /// The version that wanted to.
        candidate: String,
    },
}

/// An outcome that is not known yet: when it will be, and its place.
type Coming = Reverse<(Duration, usize)>;

/// The past while it is played.
struct Player<'p> {
    past: &'p Past,
    rollout: Rollout,
    random: Random,
    now: Duration,
    /// Next of the baseline and of the candidate.
    next: [usize; 2],
    taken: Pair,
    coming: BinaryHeap<Coming>,
    /// Words of the coming outcomes, by their place; true for the first word of each.
    told: Vec<(Outcome, bool)>,
    heard: u64,
    /// Requests and outcomes that are heard next, and the time when others were heard.
    requests: Vec<Seen>,
    outcomes: Vec<Outcome>,
    heard_at: Duration,
    limits: Vec<Duration>,
    /// Seconds of the baseline's answers so far.
    latencies: Vec<f64>,
}

/// Plays a past through a policy.
///
/// # Errors
/// If a version has no predictions, or the two never served at the same time.
pub fn backtest(
    policy: &Policy,
    past: &Past,
    (model, baseline, candidate): (&str, &str, &str),
    seed: u64,
) -> Result<Backtest, BacktestError> {
    for (arm, version) in [(&past.baseline, baseline), (&past.candidate, candidate)] {
        if arm.is_empty() {
            return Err(BacktestError::Empty(version.to_owned()));
        }
    }
    let span = |arm: &[PastRequest]| Some((arm.first()?.at, arm.last()?.at));
    if let (Some(own), Some(other)) = (span(&past.baseline), span(&past.candidate))
        && (own.1 < other.0 || other.1 < own.0)
    {
        let (baseline, candidate) = (baseline.to_owned(), candidate.to_owned());
        return Err(BacktestError::Apart { baseline, candidate });
    }
    let begin = past.baseline[0].at.max(past.candidate[0].at);
    let side = |version: &str| Side { version: version.to_owned(), digest: String::new() };
    let start = Start {
        id: "backtest".to_owned(),
        model: model.to_owned(),
        baseline: side(baseline),
        candidate: side(candidate),
        policy: Policy { validate: None, shadow: None, ..policy.clone() },
        salt: String::new(),
        actor: ACTOR,
        reason: "",
    };
    let (rollout, _) = Rollout::start(start, begin);
    let mut player = Player {
        past,
        rollout,
        random: Random(seed),
        now: begin,
        next: [0; 2],
        taken: Pair::default(),
        coming: BinaryHeap::new(),
        told: Vec::new(),
        heard: 0,
        requests: Vec::new(),
        outcomes: Vec::new(),
        heard_at: begin,
        limits: Vec::new(),
        latencies: Vec::new(),
    };
    player.play();
    Ok(player.ended(policy, begin))
}

/// Author of what a person would have done.
const ACTOR: &str = "backtest";

/// Time in which what comes is heard together.
const TOGETHER: Duration = Duration::from_millis(100);

/// Latencies of the baseline that are kept for its quantiles.
const LATENCIES_MAX: usize = 1 << 20;

impl Player<'_> {
    fn play(&mut self) {
        self.hear(&Event::Loaded);
        while !self.is_decided() {
            let share = self.rollout.weight();
            let is_candidate = self.random.unit() <= share;
            let Some(request) = self.take(is_candidate) else { break };
            self.pass(request.at);
            if self.is_decided() {
                return;
            }
            let seen = self.seen(&request, is_candidate, share);
            self.requests.push(seen);
        }
        // Outcomes come after the last request as well.
        self.pass(Duration::MAX);
        self.hear_all();
    }

    /// Lets the decision hear what has come.
    fn hear_all(&mut self) {
        let (requests, outcomes) =
            (std::mem::take(&mut self.requests), std::mem::take(&mut self.outcomes));
        self.heard_at = self.now;
        self.hear(&Event::Requests(&requests));
        if !self.is_decided() {
            self.hear(&Event::Outcomes(&outcomes));
        }
    }

    fn is_decided(&self) -> bool {
        self.rollout.state().is_over()
    }

    /// The next request of an arm that is not older than what was taken.
    fn take(&mut self, is_candidate: bool) -> Option<PastRequest> {
        let place = &mut self.next[usize::from(is_candidate)];
        let arm = if is_candidate { &self.past.candidate } else { &self.past.baseline };
        *place += arm[*place..].partition_point(|request| request.at < self.now);
        let request = *arm.get(*place)?;
        *place += 1;
        self.taken.add(is_candidate, 1);
        Some(request)
    }

    /// Lets time pass: what became known meanwhile is heard.
    fn pass(&mut self, until: Duration) {
        while let Some(Reverse((at, place))) = self.coming.peek().copied()
            && at <= until
            && !self.is_decided()
        {
            self.coming.pop();
            self.turn_to(at);
            let (outcome, is_first) = self.told[place];
            self.heard += u64::from(is_first);
            self.outcomes.push(outcome);
        }
        if until < Duration::MAX {
            self.turn_to(until);
        }
    }

    /// Moves the time on.
    fn turn_to(&mut self, at: Duration) {
        if at >= self.heard_at + TOGETHER && !self.is_decided() {
            // What has come is heard before the time of what comes.
            self.hear_all();
        }
        self.now = self.now.max(at);
    }

    fn seen(&mut self, request: &PastRequest, candidate: bool, share: f64) -> Seen {
        let (at, key) = (self.now, request.prediction);
        #[expect(clippy::cast_possible_truncation, reason = "a number that tells requests apart")]
        let key = (key ^ (key >> 64)) as u64;
        let prediction = PredictionId::from_bits(request.prediction);
        let mut marks = match request.code {
            200..300 => Marks::ANSWERED,
            500 => Marks::ERROR | Marks::FAULT,
            _ => Marks::ERROR,
        };
        if marks.has(Marks::ANSWERED) {
            for (index, limit) in self.limits.iter().enumerate() {
                if request.took > *limit {
                    marks = marks | Marks::slow(index);
                }
            }
            if request.is_invalid {
                marks = marks | Marks::INVALID;
            }
            if !candidate && self.limits.is_empty() && self.latencies.len() < LATENCIES_MAX {
                self.latencies.push(request.took.as_secs_f64());
            }
        }
        for outcome in self.past.outcomes.get(&request.prediction).into_iter().flatten() {
            let happened = outcome.happened.then_some(OutcomeKind::Happened);
            let label = outcome.wrong.map(|wrong| OutcomeKind::Label { wrong });
            for (nth, kind) in happened.into_iter().chain(label).enumerate() {
                let place = self.told.len();
                let known_at = outcome.known_at.max(at);
                let word = Outcome { candidate, share, key, sticky: false, at, prediction, kind };
                self.told.push((word, nth == 0));
                self.coming.push(Reverse((known_at, place)));
            }
        }
        let output = Output::Nothing;
        Seen { candidate, share, key, sticky: false, at, prediction, marks, output }
    }

    /// Lets the decision hear of something, and does what it asks for.
    fn hear(&mut self, event: &Event<'_>) {
        let mut effects = self.rollout.hear(event, self.now);
        while !effects.is_empty() {
            let mut more = Vec::new();
            for effect in effects {
                match effect {
                    Effect::FreezeQuantiles(quantiles) => {
                        let thresholds = self.freeze(&quantiles);
                        more.extend(self.rollout.hear(&Event::Thresholds(&thresholds), self.now));
                    }
                    Effect::Promote { .. } => {
                        more.extend(self.rollout.hear(&Event::Promoted, self.now));
                    }
                    _ => {}
                }
            }
            if self.rollout.state() == State::AwaitingApproval {
                let approval =
                    Event::Order { order: Order::Approve, actor: ACTOR, reason: "given at once" };
                more.extend(self.rollout.hear(&approval, self.now));
            }
            effects = more;
        }
    }

    /// The quantiles of the baseline's latencies so far.
    fn freeze(&mut self, quantiles: &[f64]) -> Vec<Threshold> {
        self.latencies.sort_by(f64::total_cmp);
        let gates = &self.rollout.policy().gates;
        let least = gates.get(&Gate::Slow).map_or(Duration::ZERO, |slow| slow.min_difference);
        let (all, count) = (&self.latencies, self.latencies.len());
        let threshold = |quantile: &f64| {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a place in a list"
            )]
            let place = (quantile * as_f64(count as u64)).ceil() as usize;
            let frozen = all.get(place.saturating_sub(1)).or(all.last()).copied();
            let seconds = frozen.unwrap_or(0.0) + least.as_secs_f64();
            let above = count - all.partition_point(|latency| *latency <= seconds);
            let share_above = as_f64(above as u64) / as_f64(count.max(1) as u64);
            Threshold { quantile: *quantile, seconds, share_above }
        };
        let thresholds: Vec<_> = quantiles.iter().map(threshold).collect();
        self.limits =
            thresholds.iter().map(|found| Duration::from_secs_f64(found.seconds)).collect();
        thresholds
    }

    fn ended(self, policy: &Policy, begin: Duration) -> Backtest {
        let rollout = self.rollout.report(self.now);
        let recorded = Pair {
            baseline: self.past.baseline.len() as u64,
            candidate: self.past.candidate.len() as u64,
        };
        let mut notes = Vec::new();
        if policy.validate.is_some() {
            notes.push("the validation on labelled data was passed over".to_owned());
        }
        if policy.shadow.is_some() {
            notes
                .push("the shadow was passed over: copies of requests are not recorded".to_owned());
        }
        let decides = |gate: Gate| policy.gate(gate).mode.decides();
        for gate in
            [Gate::Disagreement, Gate::FewerPositives].into_iter().filter(|gate| decides(*gate))
        {
            notes.push(format!("gate {} has nothing to judge by in the table", gate.name()));
        }
        if self.past.outcomes.is_empty() && decides(Gate::WrongLabel) {
            notes.push("there are no outcomes, so that no gate judges quality".to_owned());
        }
        Backtest {
            state: rollout.state,
            gate: rollout.gate,
            at: Moment::at(self.now),
            after_seconds: self.now.saturating_sub(begin).as_secs_f64(),
            recorded,
            taken: self.taken,
            outcomes: self.heard,
            rollout,
            notes,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::policy::PolicyDraft, *};

    const BEGIN: Duration = Duration::from_secs(1_700_000_000);

    /// Ten requests a second on each arm, and an outcome a minute after each.
    fn past(seed: u64, requests: u32, wrong: [f64; 2], failing: [f64; 2]) -> Past {
        let mut random = Random(seed);
        let mut past = Past::default();
        for number in 0..requests {
            for arm in 0..2_u8 {
                let (place, prediction) =
                    (usize::from(arm), u128::from(number) << 8 | u128::from(arm) | 1 << 100);
                let at = BEGIN + Duration::from_millis(u64::from(number) * 100 + u64::from(arm));
                let code = if random.unit() < failing[place] { 500 } else { 200 };
                let took = Duration::from_secs_f64(0.002 + 0.001 * random.unit());
                let request = PastRequest { at, prediction, code, took, is_invalid: false };
                let own = if arm == 0 { &mut past.baseline } else { &mut past.candidate };
                own.push(request);
                let outcome = PastOutcome {
                    known_at: at + Duration::from_mins(1),
                    wrong: Some(random.unit() < wrong[place]),
                    happened: true,
                };
                past.outcomes.insert(prediction, vec![outcome]);
            }
        }
        past
    }

    fn policy() -> Policy {
        let step = |weight: f64, requests: u64| {
            json!({"weight": weight, "min_duration": "1s", "min_requests": requests,
                   "max_duration": "30d"})
        };
        let written = json!({
            "steps": [step(0.1, 200), step(0.5, 2000)],
            "warmup_requests": 10,
            "gates": {"wrong_label": {"mode": "required"}, "disagreement": {"mode": "off"}}
        });
        Policy::from_drafts(&[&PolicyDraft::read(&written).unwrap()]).unwrap()
    }

    fn play(past: &Past, seed: u64) -> Backtest {
        backtest(&policy(), past, ("fraud", "3", "4"), seed).unwrap()
    }

    #[test]
    fn worse_outcomes_are_rolled_back_by_the_gate_of_quality_and_equal_ones_promoted() {
        let worse = play(&past(1, 30_000, [0.1, 0.3], [0.0; 2]), 7);
        assert_eq!((worse.state, worse.gate), (State::RolledBack, Some(Gate::WrongLabel)));
        assert!(worse.taken.candidate < 1000 && worse.outcomes > 50, "{worse:#?}");
        // Outcomes come a minute later, so that no decision by them is earlier.
        assert!(worse.after_seconds > 60.0);
        let equal = play(&past(2, 30_000, [0.1, 0.1], [0.01; 2]), 7);
        assert_eq!((equal.state, equal.gate), (State::Promoted, None), "{:#?}", equal.rollout);
        let again = play(&past(2, 30_000, [0.1, 0.1], [0.01; 2]), 7);
        assert_eq!(equal, again);
    }

    #[test]
    fn more_failures_are_rolled_back_by_the_gate_of_errors() {
        let worse = play(&past(3, 30_000, [0.1; 2], [0.01, 0.2]), 1);
        assert_eq!(worse.state, State::RolledBack);
        assert_eq!(worse.gate, Some(Gate::Errors), "{}", worse.rollout.reason);
    }

    #[test]
    fn invalid_outputs_are_rolled_back_by_their_gate() {
        let mut worse = past(6, 30_000, [0.1; 2], [0.0; 2]);
        worse.candidate.iter_mut().step_by(5).for_each(|request| request.is_invalid = true);
        let worse = play(&worse, 1);
        assert_eq!((worse.state, worse.gate), (State::RolledBack, Some(Gate::InvalidOutput)));
    }

    #[test]
    fn a_past_that_ends_too_early_decides_nothing() {
        let short = play(&past(4, 300, [0.1; 2], [0.0; 2]), 1);
        assert!(!short.state.is_over(), "{short:#?}");
        assert_eq!(short.recorded.candidate, 300);
    }

    #[test]
    fn versions_that_never_served_together_are_told_apart() {
        let mut apart = past(5, 300, [0.1; 2], [0.0; 2]);
        apart.candidate.iter_mut().for_each(|request| request.at += Duration::from_hours(24));
        let error = backtest(&policy(), &apart, ("fraud", "3", "4"), 1).unwrap_err();
        assert!(error.to_string().contains("--shift"), "{error}");
        apart.candidate.clear();
        let error = backtest(&policy(), &apart, ("fraud", "3", "4"), 1).unwrap_err();
        assert_eq!(error, BacktestError::Empty("4".to_owned()));
    }
}
