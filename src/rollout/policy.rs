//! The policy of a rollout: its steps, its gates and what each may decide.
//!
//! A [`PolicyDraft`] is what somebody wrote, with every field optional: in a request, in `[models.NAME.rollout]`.
//! [`Policy::from_drafts`] lays drafts over each other and over the defaults, field by field, and finds everything
//! that is wrong at once. Always true of a [`Policy`]: it is complete and every number is within its bounds.
//!
//! Not here: what gates compute (`evidence`), when steps pass (`course`).

use std::{collections::BTreeMap, fmt::Display, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::{serve::SLOW_MAX, validation::Threshold};

use super::values::{Share, Span};

/// Policy, complete and within bounds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "PolicyDraft", into = "PolicyDraft")]
pub struct Policy {
    /// Shares of the candidate, increasing, and when each has been seen enough.
    pub steps: Vec<Step>,
    /// Bound of the probability that a candidate as good as the baseline is rolled back, 0 to 1.
    pub alpha: f64,
    /// Error of each gate's limits for promotion, 0 to 1.
    pub promotion_alpha: f64,
    /// Requests of the candidate before anything counts.
    pub warmup_requests: u64,
    /// Validation on labelled data before any request.
    pub validate: Option<Validation>,
    /// Copies of requests to the candidate before it answers any.
    pub shadow: Option<Shadow>,
    /// Effect of a wrong share of assignments.
    pub on_srm: OnSampleRatio,
    /// All gates there are.
    pub gates: BTreeMap<Gate, GatePolicy>,
    /// Failures of the candidate in a row, the baseline succeeding in between, that roll back at once.
    pub consecutive_failures: u32,
    /// Time for which the other version stays loaded after the end.
    pub rollback_window: Duration,
    /// Time after a rollback in which the same files may not start again without force.
    pub cooldown: Duration,
    /// Share that stays on the old version through the rollback window, 0 to 0.05.
    pub holdback: f64,
}

/// One share of the candidate.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The candidate's share as the policy has it; [`Share::in_effect`] of it is what assignment realises.
    pub weight: Share,
    /// The shortest time of the step.
    pub min_duration: Duration,
    /// The fewest requests of the candidate in the step.
    pub min_requests: u64,
    /// Time after which `on_timeout` happens.
    pub max_duration: Duration,
    /// Action at `max_duration`.
    pub on_timeout: OnTimeout,
    /// Approval by a person, if the step needs one.
    pub approval: Approval,
}

/// Settings of one gate: what it looks for and may decide; fields that mean nothing for a gate have no effect.
#[derive(Debug, Clone, PartialEq)]
pub struct GatePolicy {
    /// Decisions that it may make.
    pub mode: Mode,
    /// Ratio of rates above 1 that is still no reason to roll back.
    pub delta: f64,
    /// Ratio of rates above 1 that must be excluded before promotion.
    pub margin: f64,
    /// A rate of the candidate that is good enough for promotion whatever the ratio.
    pub absolute_rate: Option<f64>,
    /// Quantiles of the baseline beyond which an answer is slow.
    pub quantiles: Vec<f64>,
    /// Least time beyond a quantile that counts as slow.
    pub min_difference: Duration,
    /// Largest relative difference of outputs that is none.
    pub tolerance: f64,
    /// Highest share of copied requests whose outputs may differ.
    pub rate_max: f64,
}

/// Labelled data that the candidate must do well on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Validation {
    /// Path of the data.
    pub data: String,
    /// Least values of metrics by their names; for errors and losses the largest.
    #[serde(default)]
    pub thresholds: BTreeMap<String, f64>,
    /// True if the serving version is measured on the same rows and must not be better.
    #[serde(default = "yes")]
    pub compare: bool,
}

/// The shadow phase: ends at `requests` or after `duration`, whichever comes first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Shadow {
    /// Share of requests that are copied.
    pub share: Share,
    /// Compared requests that are enough.
    pub requests: u64,
    /// The longest time.
    pub duration: Span,
}

macro_rules! words {
    ($(#[$about:meta])* $name:ident { $($(#[$meaning:meta])* $word:ident,)+ }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$meaning])* $word,)+ }
    };
}

words! {
    /// A gate.
    Gate {
        /// Requests without a valid answer.
        Errors,
        /// Answers slower than the baseline's frozen quantiles.
        Slow,
        /// Outputs that are not finite or not in their range.
        InvalidOutput,
        /// Copied requests whose outputs differ.
        Disagreement,
        /// Predictions whose label came and was another.
        WrongLabel,
        /// Good outcomes that fail to come.
        FewerOutcomes,
        /// Predictions of the positive class that fail to come.
        FewerPositives,
        /// Outputs in other bins; shown, never decides.
        OutputShift,
    }
}

words! {
    /// Decisions that a gate may make.
    Mode {
        /// Rolls back, and without data nothing advances.
        Required,
        /// Rolls back, and stands in the way of promotion once both arms have data.
        IfPresent,
        /// Is computed and shown, and decides nothing.
        Signal,
        /// Is not computed.
        Off,
    }
}

words! {
    /// Action when a step has not passed in time.
    OnTimeout {
        /// The rollout waits for what lacks, or for an operator.
        Hold,
        /// The step passes.
        Promote,
        /// The candidate is rolled back.
        Rollback,
    }
}

words! {
    /// Approval by a person, if a step waits for it.
    Approval {
        /// Does not wait.
        None,
        /// Waits for `approve`.
        Manual,
    }
}

words! {
    /// Action when the arms' shares of assignments are not those that were asked for.
    OnSampleRatio {
        /// The rollout waits for an operator.
        Hold,
        /// The rollout only shows it.
        Ignore,
    }
}

/// A policy as somebody wrote it: every field may be left out.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyDraft {
    /// Shares of the candidate, increasing up to 0.5, and when each has been seen enough: 1 to 20.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<Vec<StepDraft>>,
    /// Bound of the probability that a candidate as good as the baseline is rolled back. Default 0.01.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// Error of each gate's limits for promotion. Default 0.05.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub promotion_alpha: Option<f64>,
    /// Requests of the candidate before anything counts: cold caches are no evidence. Default 20.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_requests: Option<u64>,
    /// Validation on labelled data before any request. Default null: none.
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub validate: Option<Option<Validation>>,
    /// Copies of requests to the candidate before it answers any. Default null: none.
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub shadow: Option<Option<Shadow>>,
    /// Action on a wrong share of assignments: "hold" or "ignore". Default "hold".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_srm: Option<OnSampleRatio>,
    /// The gates by name; each field falls back by itself.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub gates: BTreeMap<Gate, GateDraft>,
    /// Conditions that roll back at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guards: Option<GuardsDraft>,
    /// Time that the other version stays loaded after the end. Default "1h".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollback_window: Option<Span>,
    /// Time after a rollback in which the same files may not start again without force. Default "1h".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cooldown: Option<Span>,
    /// Share that stays on the old version through the rollback window, up to 0.05. Default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holdback: Option<Share>,
}

/// A step as somebody wrote it: all but the weight may be left out.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StepDraft {
    /// The candidate's share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<Share>,
    /// The shortest time of the step. Default "2m".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_duration: Option<Span>,
    /// The fewest requests of the candidate in the step. Default 200.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_requests: Option<u64>,
    /// Time after which `on_timeout` happens. Default "1h".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_duration: Option<Span>,
    /// Action then: "hold", "promote" (the step passes) or "rollback". Default "hold".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_timeout: Option<OnTimeout>,
    /// Agreement that a person must give: "none" or "manual". Default "none".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approval: Option<Approval>,
}

/// A gate as somebody wrote it; which fields a gate has, its defaults show.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GateDraft {
    /// Decisions that it may make: "required", "`if_present`", "signal" or "off".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Ratio of rates above 1 that is still no reason to roll back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta: Option<f64>,
    /// Ratio of rates above 1 that must be excluded before promotion.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub margin: Option<f64>,
    /// A rate of the candidate that is good enough for promotion whatever the ratio; null: none is.
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub absolute_rate: Option<Option<f64>>,
    /// Quantiles of the baseline beyond which an answer is slow: 1 to 4, increasing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantiles: Option<Vec<f64>>,
    /// Least time beyond a quantile that counts as slow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_difference: Option<Span>,
    /// Largest relative difference of outputs that is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tolerance: Option<f64>,
    /// Highest share of copied requests whose outputs may differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_max: Option<f64>,
}

/// Guards as somebody wrote them.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GuardsDraft {
    /// Crashes, load failures and engine faults in a row, the baseline succeeding in between. Default 5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consecutive_failures: Option<u32>,
}

/// Most steps of a policy.
pub const STEPS_MAX: usize = 20;
/// Largest share of a candidate: beyond one half the baseline is the smaller arm.
pub const WEIGHT_MAX: f64 = 0.5;
/// Most quantiles of the gate `slow`: each has a mark of its own.
pub const QUANTILES_MAX: usize = SLOW_MAX;
const THRESHOLDS_MAX: usize = 32;
const PATH_BYTES_MAX: usize = 4096;
const DAY: Duration = Duration::from_hours(24);
const MONTH: Duration = Duration::from_hours(30 * 24);
const REQUESTS_MAX: u64 = 1_000_000_000;
/// Words longer than this are no misspellings.
const MISSPELT_BYTES_MAX: usize = 64;

fn yes() -> bool {
    true
}

/// Reads a field that may be null: absent and null are different things.
#[expect(clippy::option_option, reason = "left out, null and a value are three things")]
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(deserializer).map(Some)
}

impl Gate {
    /// All gates, in the order in which answers list them.
    pub const ALL: [Self; 8] = [
        Self::Errors,
        Self::Slow,
        Self::InvalidOutput,
        Self::Disagreement,
        Self::WrongLabel,
        Self::FewerOutcomes,
        Self::FewerPositives,
        Self::OutputShift,
    ];

    /// The word for it, such as `errors`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Errors => "errors",
            Self::Slow => "slow",
            Self::InvalidOutput => "invalid_output",
            Self::Disagreement => "disagreement",
            Self::WrongLabel => "wrong_label",
            Self::FewerOutcomes => "fewer_outcomes",
            Self::FewerPositives => "fewer_positives",
            Self::OutputShift => "output_shift",
        }
    }

    /// Returns the gate's defaults; the fields that are `Some` are those that it has.
    fn defaults(self) -> GateDraft {
        let ratio = |mode, delta| GateDraft {
            mode: Some(mode),
            delta: Some(delta),
            margin: Some(0.5),
            ..GateDraft::default()
        };
        let rate =
            |mode, delta| GateDraft { absolute_rate: Some(Some(0.005)), ..ratio(mode, delta) };
        match self {
            Self::Errors => rate(Mode::Required, 0.2),
            Self::Slow => GateDraft {
                quantiles: Some(vec![0.5, 0.95]),
                min_difference: Some(Span(Duration::from_micros(200))),
                ..ratio(Mode::Required, 0.2)
            },
            Self::InvalidOutput => rate(Mode::Required, 0.0),
            Self::Disagreement => GateDraft {
                mode: Some(Mode::IfPresent),
                tolerance: Some(0.001),
                rate_max: Some(0.05),
                ..GateDraft::default()
            },
            Self::WrongLabel => rate(Mode::IfPresent, 0.0),
            Self::FewerOutcomes => ratio(Mode::IfPresent, 0.2),
            Self::FewerPositives => ratio(Mode::Signal, 0.2),
            Self::OutputShift => GateDraft { mode: Some(Mode::Signal), ..GateDraft::default() },
        }
    }
}

impl Default for Shadow {
    fn default() -> Self {
        Self { share: Share(1.0), requests: 1000, duration: Span(Duration::from_mins(5)) }
    }
}

impl PolicyDraft {
    /// Reads a draft, finding everything that is wrong with its form at once.
    ///
    /// # Errors
    /// One text for each unknown field, with the nearest known one, and for each value of a wrong form.
    pub fn read(written: &Value) -> Result<Self, Vec<String>> {
        let mut wrong = Vec::new();
        unknown(written, &Self::sample(), "", &mut wrong);
        if wrong.is_empty() {
            ill_formed(written, "", &|value| value, &mut wrong);
        }
        if !wrong.is_empty() {
            return Err(wrong);
        }
        serde_json::from_value(written.clone()).map_err(|error| vec![error.to_string()])
    }

    /// A draft in which every field stands, as JSON.
    fn sample() -> Value {
        let validation =
            Validation { data: String::new(), thresholds: BTreeMap::new(), compare: true };
        let policy = Policy {
            shadow: Some(Shadow::default()),
            validate: Some(validation),
            ..Policy::default()
        };
        serde_json::to_value(policy).expect("a policy is plain JSON")
    }
}

/// Lists fields that the sample does not have.
fn unknown(written: &Value, sample: &Value, path: &str, wrong: &mut Vec<String>) {
    match (written, sample) {
        (Value::Object(_), Value::Object(_)) if path == "validate.thresholds" => {}
        (Value::Object(fields), Value::Object(known)) => {
            for (name, value) in fields {
                let place = join(path, name);
                match known.get(name) {
                    Some(sample) => unknown(value, sample, &place, wrong),
                    None => wrong.push(format!(
                        "{}: unknown field, {}",
                        shortened(&place),
                        meant(name, known.keys().map(String::as_str))
                    )),
                }
            }
        }
        (Value::Array(items), Value::Array(samples)) => {
            for (index, item) in items.iter().enumerate() {
                if let Some(sample) = samples.first() {
                    unknown(item, sample, &format!("{path}[{index}]"), wrong);
                }
            }
        }
        _ => {}
    }
}

/// Lists values that no draft can have, by trying each alone in its place.
fn ill_formed(
    written: &Value,
    path: &str,
    place: &dyn Fn(Value) -> Value,
    wrong: &mut Vec<String>,
) {
    let whole = ["validate", "shadow"].contains(&path);
    match written {
        Value::Object(fields) if !whole => {
            for (name, value) in fields {
                let inside = |value| place(serde_json::json!({ name: value }));
                ill_formed(value, &join(path, name), &inside, wrong);
            }
        }
        Value::Array(items) if path == "steps" && items.iter().all(Value::is_object) => {
            for (index, item) in items.iter().enumerate() {
                let inside = |value| place(serde_json::json!([value]));
                ill_formed(item, &format!("{path}[{index}]"), &inside, wrong);
            }
        }
        leaf => {
            if let Err(error) = serde_json::from_value::<PolicyDraft>(place(leaf.clone())) {
                let path = if path.is_empty() { "policy" } else { path };
                wrong.push(format!("{path} = {}: {error}", shortened(&leaf.to_string())));
            }
        }
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// One line of at most 80 characters.
fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(80).filter(|c| !c.is_control()).collect();
    if text.chars().count() > 80 {
        short.push_str(" ...");
    }
    short
}

fn meant<'a>(word: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    let distance = |name: &&str| strsim::osa_distance(word, name);
    let near = (word.chars().count() / 3).max(2);
    match known.clone().min_by_key(distance) {
        Some(name) if word.len() <= MISSPELT_BYTES_MAX && distance(&name) <= near => {
            format!("did you mean `{name}`?")
        }
        _ => format!("there are {}", known.collect::<Vec<_>>().join(", ")),
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::from_drafts(&[]).expect("the defaults are a policy")
    }
}

impl Policy {
    /// Lays drafts over the defaults: of each field the first draft that has it counts.
    ///
    /// # Errors
    /// One text for each value that is out of its bounds or contradicts another, with what would be right.
    pub fn from_drafts(drafts: &[&PolicyDraft]) -> Result<Self, Vec<String>> {
        let mut check = Check { wrong: Vec::new() };
        let step = |weight, min_requests, hours: u64| StepDraft {
            weight: Some(Share(weight)),
            min_requests: Some(min_requests),
            max_duration: Some(Span(Duration::from_secs(3600 * hours))),
            ..StepDraft::default()
        };
        let steps = first(drafts, |draft| draft.steps.clone())
            .unwrap_or_else(|| vec![step(0.01, 200, 1), step(0.1, 500, 1), step(0.25, 500, 2)]);
        let policy = Self {
            steps: check.steps(&steps),
            alpha: check.level("alpha", first(drafts, |draft| draft.alpha).unwrap_or(0.01)),
            promotion_alpha: check.level(
                "promotion_alpha",
                first(drafts, |draft| draft.promotion_alpha).unwrap_or(0.05),
            ),
            warmup_requests: check.within(
                "warmup_requests",
                first(drafts, |draft| draft.warmup_requests).unwrap_or(20),
                (0, 1_000_000),
            ),
            validate: check
                .validation(first(drafts, |draft| draft.validate.clone()).unwrap_or_default()),
            shadow: check.shadow(first(drafts, |draft| draft.shadow.clone()).unwrap_or_default()),
            on_srm: first(drafts, |draft| draft.on_srm).unwrap_or(OnSampleRatio::Hold),
            gates: Gate::ALL.iter().map(|gate| (*gate, check.gate(*gate, drafts))).collect(),
            consecutive_failures: check.within(
                "guards.consecutive_failures",
                first(drafts, |draft| draft.guards.as_ref()?.consecutive_failures).unwrap_or(5),
                (1, 1000),
            ),
            rollback_window: check.span(
                "rollback_window",
                first(drafts, |draft| draft.rollback_window).map_or(DAY / 24, |span| span.0),
                (Duration::ZERO, MONTH),
            ),
            cooldown: check.span(
                "cooldown",
                first(drafts, |draft| draft.cooldown).map_or(DAY / 24, |span| span.0),
                (Duration::ZERO, MONTH),
            ),
            holdback: check.within(
                "holdback",
                first(drafts, |draft| draft.holdback).map_or(0.0, |share| share.0),
                (0.0, 0.05),
            ),
        };
        if policy.gate(Gate::Disagreement).mode == Mode::Required && policy.shadow.is_none() {
            check.say(
                "gates.disagreement.mode",
                "\"required\"",
                "needs `shadow`, which gives it data",
            );
        }
        if check.wrong.is_empty() { Ok(policy) } else { Err(check.wrong) }
    }

    /// Returns the settings of a gate.
    pub fn gate(&self, gate: Gate) -> &GatePolicy {
        &self.gates[&gate]
    }

    /// Natural logarithm of the evidence at which a gate fires, or would fire if it could decide: `ln(1/alpha_g)`.
    ///
    /// `errors` has half of `alpha`, the other gates that decide share the rest equally, whether or not data come; a
    /// gate that decides nothing shows what it would need at `alpha`/10. `None`: the gate is off.
    pub fn log_e_threshold(&self, gate: Gate) -> Option<f64> {
        let decides = |gate: &Gate| self.gate(*gate).mode.decides();
        let alpha = match self.gate(gate).mode {
            Mode::Off => return None,
            Mode::Signal => self.alpha / 10.0,
            _ if gate == Gate::Errors => self.alpha / 2.0,
            _ => {
                let others =
                    Gate::ALL.iter().filter(|gate| **gate != Gate::Errors && decides(gate));
                let rest = if decides(&Gate::Errors) { self.alpha / 2.0 } else { self.alpha };
                rest / f64::from(u32::try_from(others.count()).expect("there are eight gates"))
            }
        };
        Some(-alpha.ln())
    }
}

impl Mode {
    /// True if the gate may roll back.
    pub fn decides(self) -> bool {
        matches!(self, Self::Required | Self::IfPresent)
    }
}

fn first<T>(drafts: &[&PolicyDraft], field: impl Fn(&PolicyDraft) -> Option<T>) -> Option<T> {
    drafts.iter().find_map(|draft| field(draft))
}

/// Collects what is out of bounds.
struct Check {
    wrong: Vec<String>,
}

impl Check {
    fn say(&mut self, key: &str, value: impl Display, advice: impl Display) {
        self.wrong.push(format!("{key} = {}: {advice}", shortened(&value.to_string())));
    }

    fn within<T: PartialOrd + Display + Copy>(&mut self, key: &str, value: T, bounds: (T, T)) -> T {
        // Written so that NaN is outside.
        if !(value >= bounds.0 && value <= bounds.1) {
            self.say(key, value, format!("must lie between {} and {}", bounds.0, bounds.1));
        }
        value
    }

    fn inside(&mut self, key: &str, value: f64) -> f64 {
        if !(value > 0.0 && value < 1.0) {
            self.say(key, value, "must lie between 0 and 1, without either");
        }
        value
    }

    fn level(&mut self, key: &str, value: f64) -> f64 {
        self.inside(key, value)
    }

    fn span(&mut self, key: &str, value: Duration, bounds: (Duration, Duration)) -> Duration {
        if value < bounds.0 || value > bounds.1 {
            let (least, most) = (Span(bounds.0), Span(bounds.1));
            self.say(key, Span(value), format!("must lie between {least} and {most}"));
        }
        value
    }

    fn steps(&mut self, drafts: &[StepDraft]) -> Vec<Step> {
        if drafts.is_empty() || drafts.len() > STEPS_MAX {
            let advice = format!("a rollout has 1 to {STEPS_MAX} steps");
            self.say("steps", format!("{} steps", drafts.len()), advice);
        }
        let mut below = 0.0;
        let mut steps = Vec::new();
        for (index, draft) in drafts.iter().enumerate().take(STEPS_MAX) {
            let key = |name: &str| format!("steps[{index}].{name}");
            match draft.weight {
                None => self.wrong.push(format!(
                    "{}: is missing; a step needs the share of its canary, for example 0.01",
                    key("weight")
                )),
                Some(weight) if !(weight.in_effect() > 0.0 && weight.0 <= WEIGHT_MAX) => {
                    let advice =
                        format!("must lie above 0 (at least 1/65536) and be at most {WEIGHT_MAX}");
                    self.say(&key("weight"), weight.0, advice);
                }
                Some(weight) if weight.in_effect() <= below => {
                    let advice = "must be larger than the weight of the step before it";
                    self.say(&key("weight"), weight.0, advice);
                }
                Some(weight) => below = weight.in_effect(),
            }
            let time = |span: Option<Span>, seconds| {
                span.map_or(Duration::from_secs(seconds), |span: Span| span.0)
            };
            let min_duration = time(draft.min_duration, 120);
            let max_duration = time(draft.max_duration, 3600);
            let min_requests = draft.min_requests.unwrap_or(200);
            self.span(&key("max_duration"), max_duration, (min_duration, MONTH));
            self.within(&key("min_requests"), min_requests, (1, REQUESTS_MAX));
            steps.push(Step {
                weight: draft.weight.unwrap_or(Share(0.0)),
                min_duration,
                min_requests,
                max_duration,
                on_timeout: draft.on_timeout.unwrap_or(OnTimeout::Hold),
                approval: draft.approval.unwrap_or(Approval::None),
            });
        }
        steps
    }

    fn validation(&mut self, validation: Option<Validation>) -> Option<Validation> {
        let validation = validation?;
        if validation.data.is_empty() || validation.data.len() > PATH_BYTES_MAX {
            let advice = "must be a path, for example \"labelled.csv\"";
            self.say("validate.data", format!("{:?}", validation.data), advice);
        }
        if validation.thresholds.len() > THRESHOLDS_MAX {
            let advice = format!("at most {THRESHOLDS_MAX} metrics have thresholds");
            self.say("validate.thresholds", validation.thresholds.len(), advice);
        }
        for (name, limit) in validation.thresholds.iter().take(THRESHOLDS_MAX) {
            if let Err(error) = Threshold::new(name, *limit) {
                self.say(&format!("validate.thresholds.{}", shortened(name)), limit, error);
            }
        }
        Some(validation)
    }

    fn shadow(&mut self, shadow: Option<Shadow>) -> Option<Shadow> {
        let shadow = shadow?;
        if shadow.share.in_effect() <= 0.0 {
            self.say(
                "shadow.share",
                shadow.share.0,
                "must lie above 0; for none leave `shadow` out",
            );
        }
        self.within("shadow.requests", shadow.requests, (1, REQUESTS_MAX));
        self.span("shadow.duration", shadow.duration.0, (Duration::from_secs(1), DAY * 7));
        Some(shadow)
    }

    fn gate(&mut self, gate: Gate, drafts: &[&PolicyDraft]) -> GatePolicy {
        let defaults = gate.defaults();
        let given = |field: &dyn Fn(&GateDraft) -> Option<f64>| {
            let found = first(drafts, |draft| field(draft.gates.get(&gate)?));
            found.or_else(|| field(&defaults)).unwrap_or(0.0)
        };
        let key = |name: &str| format!("gates.{}.{name}", gate.name());
        let mode = first(drafts, |draft| draft.gates.get(&gate)?.mode).or(defaults.mode);
        let absolute_rate = first(drafts, |draft| draft.gates.get(&gate)?.absolute_rate)
            .or(defaults.absolute_rate)
            .flatten();
        let quantiles = first(drafts, |draft| draft.gates.get(&gate)?.quantiles.clone())
            .or_else(|| defaults.quantiles.clone());
        let min_difference = first(drafts, |draft| draft.gates.get(&gate)?.min_difference)
            .or(defaults.min_difference);
        let policy = GatePolicy {
            mode: mode.expect("every gate has a default mode"),
            delta: self.within(&key("delta"), given(&|gate| gate.delta), (0.0, 10.0)),
            margin: self.within(&key("margin"), given(&|gate| gate.margin), (0.0, 10.0)),
            absolute_rate: absolute_rate.map(|rate| self.inside(&key("absolute_rate"), rate)),
            quantiles: quantiles.unwrap_or_default(),
            min_difference: min_difference.map_or(Duration::ZERO, |span| span.0),
            tolerance: self.within(&key("tolerance"), given(&|gate| gate.tolerance), (0.0, 1e6)),
            rate_max: given(&|gate| gate.rate_max),
        };
        if defaults.margin.is_some() && policy.margin <= 0.0 {
            self.say(
                &key("margin"),
                policy.margin,
                "must lie above 0: no amount of data excludes a ratio of 1",
            );
        }
        match gate {
            Gate::Slow => self.slow(&policy),
            Gate::Disagreement => drop(self.inside(&key("rate_max"), policy.rate_max)),
            Gate::OutputShift if policy.mode.decides() => {
                self.say(
                    &key("mode"),
                    "\"required\"",
                    "must be \"signal\" or \"off\"; it never decides",
                );
            }
            _ => {}
        }
        policy
    }

    fn slow(&mut self, policy: &GatePolicy) {
        let quantiles = &policy.quantiles;
        let increase = quantiles.windows(2).all(|pair| pair[0] < pair[1]);
        let inside = quantiles.iter().all(|quantile| *quantile > 0.0 && *quantile < 1.0);
        if !increase || !inside || !(1..=QUANTILES_MAX).contains(&quantiles.len()) {
            let advice = format!("must be 1 to {QUANTILES_MAX} increasing numbers between 0 and 1");
            self.say("gates.slow.quantiles", format!("{quantiles:?}"), advice);
        }
        let most = Duration::from_mins(1);
        self.span("gates.slow.min_difference", policy.min_difference, (Duration::ZERO, most));
    }
}

impl TryFrom<PolicyDraft> for Policy {
    type Error = String;

    fn try_from(draft: PolicyDraft) -> Result<Self, String> {
        Self::from_drafts(&[&draft]).map_err(|wrong| wrong.join("; "))
    }
}

impl From<Policy> for PolicyDraft {
    fn from(policy: Policy) -> Self {
        let step = |step: &Step| StepDraft {
            weight: Some(step.weight),
            min_duration: Some(Span(step.min_duration)),
            min_requests: Some(step.min_requests),
            max_duration: Some(Span(step.max_duration)),
            on_timeout: Some(step.on_timeout),
            approval: Some(step.approval),
        };
        let gate = |(name, gate): (&Gate, &GatePolicy)| {
            let has = name.defaults();
            let draft = GateDraft {
                mode: Some(gate.mode),
                delta: has.delta.map(|_| gate.delta),
                margin: has.margin.map(|_| gate.margin),
                absolute_rate: has.absolute_rate.map(|_| gate.absolute_rate),
                quantiles: has.quantiles.map(|_| gate.quantiles.clone()),
                min_difference: has.min_difference.map(|_| Span(gate.min_difference)),
                tolerance: has.tolerance.map(|_| gate.tolerance),
                rate_max: has.rate_max.map(|_| gate.rate_max),
            };
            (*name, draft)
        };
        Self {
            steps: Some(policy.steps.iter().map(step).collect()),
            alpha: Some(policy.alpha),
            promotion_alpha: Some(policy.promotion_alpha),
            warmup_requests: Some(policy.warmup_requests),
            gates: policy.gates.iter().map(gate).collect(),
            validate: Some(policy.validate),
            shadow: Some(policy.shadow),
            on_srm: Some(policy.on_srm),
            guards: Some(GuardsDraft { consecutive_failures: Some(policy.consecutive_failures) }),
            rollback_window: Some(Span(policy.rollback_window)),
            cooldown: Some(Span(policy.cooldown)),
            holdback: Some(Share(policy.holdback)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(written: &Value) -> Result<Policy, Vec<String>> {
        Policy::from_drafts(&[&PolicyDraft::read(written)?])
    }

    #[test]
    fn defaults_are_those_of_the_manual() {
        let step = |weight: f64, requests: u64, most: &str| {
            json!({"weight": weight, "min_duration": "2m", "min_requests": requests,
                   "max_duration": most, "on_timeout": "hold", "approval": "none"})
        };
        let expected = json!({
            "steps": [step(0.01, 200, "1h"), step(0.1, 500, "1h"), step(0.25, 500, "2h")],
            "alpha": 0.01, "promotion_alpha": 0.05, "warmup_requests": 20,
            "validate": null, "shadow": null, "on_srm": "hold",
            "gates": {
                "errors": {"mode": "required", "delta": 0.2, "margin": 0.5, "absolute_rate": 0.005},
                "slow": {"mode": "required", "delta": 0.2, "margin": 0.5,
                         "quantiles": [0.5, 0.95], "min_difference": "200us"},
                "invalid_output":
                    {"mode": "required", "delta": 0.0, "margin": 0.5, "absolute_rate": 0.005},
                "disagreement": {"mode": "if_present", "tolerance": 0.001, "rate_max": 0.05},
                "wrong_label":
                    {"mode": "if_present", "delta": 0.0, "margin": 0.5, "absolute_rate": 0.005},
                "fewer_outcomes": {"mode": "if_present", "delta": 0.2, "margin": 0.5},
                "fewer_positives": {"mode": "signal", "delta": 0.2, "margin": 0.5},
                "output_shift": {"mode": "signal"},
            },
            "guards": {"consecutive_failures": 5},
            "rollback_window": "1h", "cooldown": "1h", "holdback": 0.0,
        });
        let policy = Policy::default();
        assert_eq!(serde_json::to_value(&policy).unwrap(), expected);
        assert_eq!(read(&expected), Ok(policy), "a policy reads what it writes");
    }

    #[test]
    fn every_field_falls_back_by_itself() {
        let request = json!({"alpha": 0.02, "gates": {"errors": {"delta": 0.5}}, "shadow": null});
        let file = json!({"alpha": 0.05, "cooldown": "5m", "shadow": {"share": "10%"},
                          "gates": {"errors": {"delta": 0.1, "margin": 1.0}}});
        let drafts = [request, file].map(|draft| PolicyDraft::read(&draft).unwrap());
        let policy = Policy::from_drafts(&[&drafts[0], &drafts[1]]).unwrap();
        assert!((policy.alpha - 0.02).abs() < 1e-12);
        assert_eq!(policy.shadow, None, "null is an answer");
        assert_eq!(policy.cooldown, Duration::from_mins(5));
        let errors = policy.gate(Gate::Errors);
        assert_eq!((errors.delta, errors.margin, errors.absolute_rate), (0.5, 1.0, Some(0.005)));
        let policy = Policy::from_drafts(&[&drafts[1]]).unwrap();
        assert_eq!(policy.shadow.unwrap().share, Share(0.1));
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once() {
        for (written, expected) in [
            (
                json!({"alhpa": 1, "gates": {"error": {}, "slow": {"absolute_rate": 1}}}),
                vec![
                    "alhpa: unknown field, did you mean `alpha`?",
                    "gates.error: unknown field, did you mean `errors`?",
                    "gates.slow.absolute_rate: unknown field, there are delta, margin",
                ],
            ),
            (
                json!({"steps": [{"weight": "x"}, {"wieght": 1}]}),
                vec!["steps[1].wieght: unknown field, did you mean `weight`?"],
            ),
            (
                json!({"steps": [{"weight": "x"}, {"min_duration": 5}], "alpha": "small"}),
                vec![
                    "steps[0].weight = \"x\": must be a number from 0 to 1, or a percentage",
                    "steps[1].min_duration = 5: needs a number and a unit",
                    "alpha = \"small\": invalid type",
                ],
            ),
            (
                json!({"steps": [{"weight": 0.2}, {"weight": 0.2}, {"weight": 0.6}, {}],
                       "alpha": 1, "holdback": 0.2, "cooldown": "90d",
                       "gates": {"slow": {"quantiles": [0.9, 0.5]}, "errors": {"margin": 0},
                                 "output_shift": {"mode": "required"},
                                 "disagreement": {"mode": "required", "rate_max": 0}}}),
                vec![
                    "steps[1].weight = 0.2: must be larger",
                    "steps[2].weight = 0.6: must lie above 0",
                    "steps[3].weight: is missing",
                    "alpha = 1: must lie between",
                    "gates.errors.margin = 0: must lie above 0",
                    "gates.slow.quantiles = [0.9, 0.5]: must be 1 to 4",
                    "gates.disagreement.rate_max = 0: must lie between",
                    "gates.output_shift.mode = \"required\": must be \"signal\" or \"off\"",
                    "cooldown = 90d: must lie between 0s and 30d",
                    "holdback = 0.2: must lie between 0 and 0.05",
                    "gates.disagreement.mode = \"required\": needs `shadow`",
                ],
            ),
            (json!({"steps": []}), vec!["steps = 0 steps: a rollout has 1 to 20 steps"]),
            (json!(5), vec!["policy = 5: invalid type"]),
            (json!({"shadow": {"share": 0}}), vec!["shadow.share = 0: must lie above 0"]),
            (json!({"validate": {}}), vec!["validate = {}: missing field `data`"]),
            (
                json!({"steps": [{"weight": 0.1, "min_duration": "2h"}]}),
                vec!["steps[0].max_duration = 1h: must lie between 2h and 30d"],
            ),
        ] {
            let mut wrong = read(&written).expect_err(&written.to_string());
            let mut expected = expected;
            wrong.sort();
            expected.sort_unstable();
            assert_eq!(wrong.len(), expected.len(), "{wrong:#?}");
            for (wrong, expected) in wrong.iter().zip(expected) {
                assert!(wrong.starts_with(expected), "{wrong} / {expected}");
            }
        }
    }

    #[test]
    fn gates_share_the_error_of_a_rollback() {
        let policy = Policy::default();
        let threshold = |gate| policy.log_e_threshold(gate).unwrap();
        assert!((threshold(Gate::Errors) - 200_f64.ln()).abs() < 1e-12);
        assert!((threshold(Gate::Slow) - 1000_f64.ln()).abs() < 1e-12, "five share the other half");
        assert!((threshold(Gate::FewerPositives) - 1000_f64.ln()).abs() < 1e-12, "alpha/10");
        let spent: f64 = Gate::ALL
            .into_iter()
            .filter(|gate| policy.gate(*gate).mode.decides())
            .map(|gate| (-threshold(gate)).exp())
            .sum();
        assert!((spent - policy.alpha).abs() < 1e-12);
        let off = read(&json!({"gates": {"slow": {"mode": "off"}}})).unwrap();
        assert_eq!(off.log_e_threshold(Gate::Slow), None);
        assert!((off.log_e_threshold(Gate::WrongLabel).unwrap() - 800_f64.ln()).abs() < 1e-12);
    }
}
