//! The course of a rollout: its states, what moves it on, and what has to be done about it.
//!
//! [`Rollout::hear`] is the decision: it takes an event and the time, changes the state and says what to do. A dumb driver
//! carries out the effects in their order, each only after the one before succeeded: so what stands behind
//! [`Effect::Record`] takes effect only once it cannot be forgotten, and a rollback stands before it.
//!
//! | state | left for |
//! | --- | --- |
//! | `pending` | the first of the next three that the policy has, once the candidate is loaded; `failed` |
//! | `validating` | `shadow` or `canary` if the candidate does well on labelled data; `failed` |
//! | `shadow` | `canary`, after enough copied requests or long enough |
//! | `canary` | its next step; `awaiting_approval`; `held`; `promoting` |
//! | `awaiting_approval` | `canary` by `approve` |
//! | `held` | `canary`, by itself if it lacked time or data, else by `resume` |
//! | `paused` | the state before, by `resume` |
//! | `promoting` | `promoted`, or `held` if that failed |
//!
//! Every state in which the candidate has a share, and `shadow`, is left for `rolled_back` the moment a gate or guard
//! fires or an operator aborts, and every one for `superseded`. Always true:
//! - While frozen nothing advances by itself; gates and guards still roll back.
//! - A gate decides on the request that proves it; what comes after in the same batch is no evidence any more.
//! - Nothing here asks for the time, draws a number or waits.
//!
//! Not here: what gates compute (`evidence`), how it is shown (`report`).

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    evidence::{
        ERRORS, Evidence, INVALID, LABELS, OUTCOMES, POSITIVES, Pair, SLOTS, SLOW, differs,
        gate_of, slot_name, slots_of,
    },
    keys::{Kept, Keys},
    ledger::{Body, Entry, Ledger, Open, Operator, Said, Sampled, Transition, usual_trials},
    policy::{Approval, Gate, Mode, OnSampleRatio, OnTimeout, Policy, QUANTILES_MAX, Validation},
    seen::{Comparison, Marks, Outcome, OutcomeKind, Seen, Threshold},
    values::{Moment, Share},
};

/// Everything that a rollout is, as it outlives the process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Rollout {
    pub(super) head: Head,
    pub(super) keys: Keys,
    pub(super) ledger: Ledger,
}

/// What a rollout is without the parts that only grow.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) id: String,
    pub(super) model: String,
    pub(super) baseline: Side,
    pub(super) candidate: Side,
    pub(super) policy: Policy,
    pub(super) salt: String,
    pub(super) state: State,
    pub(super) step: usize,
    /// The candidate's share in effect; after promotion the new version's.
    pub(super) weight: f64,
    pub(super) revision: u64,
    pub(super) reason: String,
    /// The gate that rolled back.
    pub(super) gate: Option<Gate>,
    pub(super) started_at: Moment,
    pub(super) updated_at: Moment,
    pub(super) ended_at: Option<Moment>,
    /// Why it is held.
    held: Option<Held>,
    /// The state to which `resume` goes back.
    paused_from: Option<State>,
    /// The step's approval was given.
    approved: bool,
    loaded: bool,
    frozen: bool,
    /// The candidate left memory, or need not stay.
    released: bool,
    /// Time of the step (or of the shadow) that counts.
    pub(super) step_elapsed: Duration,
    /// Judged requests of the candidate in the step.
    pub(super) step_requests: u64,
    /// The time of the last event.
    heard_at: Duration,
    warm_up: WarmUp,
    /// Slowness counts for requests that were assigned after this.
    timed_after: Option<Duration>,
    guard: Guarded,
    pub(super) evidence: Evidence,
    open: Open,
    open_since: Duration,
    limits_read_at: Duration,
    /// Judged requests in all, for people.
    pub(super) requests: Pair,
    pub(super) history: Vec<Change>,
    /// The report of the validation.
    pub(super) validation: Option<Value>,
}

/// A version, by its number and the digest of its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    /// The version's number, as text.
    pub version: String,
    /// The digest of its files.
    pub digest: String,
}

/// Where a rollout stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The candidate is being loaded.
    Pending,
    /// The candidate is measured on labelled data.
    Validating,
    /// The candidate gets copies of requests.
    Shadow,
    /// The candidate has a share of the traffic.
    Canary,
    /// A step has passed and a person must agree.
    AwaitingApproval,
    /// Something lacks; the split stays.
    Held,
    /// An operator stopped it; the split stays.
    Paused,
    /// The candidate takes over.
    Promoting,
    /// The candidate took over.
    Promoted,
    /// The candidate was taken out.
    RolledBack,
    /// The candidate could not be loaded or failed its validation.
    Failed,
    /// An operator changed what serves meanwhile.
    Superseded,
}

/// Why a rollout is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Held {
    /// `max_duration` passed; left by itself when the step passes.
    Time,
    /// A required gate has no data; left by itself when it has.
    Data,
    /// Assignments do not follow the weights; left by an operator.
    SampleRatio,
    /// The promotion failed; left by an operator.
    Promotion,
}

/// The candidate's first requests, which are no evidence.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct WarmUp {
    requests: u64,
    /// Requests that were assigned after this count.
    ended: Option<Duration>,
}

/// Failures of the candidate in a row.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Guarded {
    failures: u32,
    /// The baseline answered since the last one.
    baseline_answered: bool,
}

/// A change of state or step, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// When.
    pub at: Moment,
    /// The state before.
    pub from: State,
    /// The state after.
    pub to: State,
    /// The step after, counted from 0.
    pub step: usize,
    /// Who: `tidegate` or an operator.
    pub by: String,
    /// Why.
    pub why: String,
}

/// What a rollout hears.
#[derive(Debug, Clone)]
pub enum Event<'a> {
    /// The candidate is loaded and can answer.
    Loaded,
    /// Requests that ended, in the order of assignment, each once everything assigned before it has ended.
    Requests(&'a [Seen]),
    /// Copied requests that were compared.
    Shadowed(&'a [Comparison]),
    /// Copies that were dropped.
    ShadowDropped(u64),
    /// What came back about predictions, in the order of arrival.
    Outcomes(&'a [Outcome]),
    /// Time has passed; comes at least each second.
    Tick,
    /// The validation ended.
    Validated {
        /// Its report, kept as it is.
        report: Value,
        /// True if the candidate did well enough.
        pass: bool,
        /// What it failed by, or what it reached.
        why: String,
    },
    /// The quantiles that [`Effect::FreezeQuantiles`] asked for; slowness is marked from now on.
    Thresholds(&'a [Threshold]),
    /// An operator asks for something that [`Rollout::check`] allows; else nothing happens.
    Order {
        /// What.
        order: Order,
        /// Who.
        actor: &'a str,
        /// Why, in their words; may be empty.
        reason: &'a str,
    },
    /// Everything was frozen, or thawed.
    Frozen(bool),
    /// The candidate failed as a whole.
    Guard {
        /// How.
        kind: GuardKind,
        /// What is known about it.
        why: &'a str,
    },
    /// An operator gave the candidate another share while it is paused.
    Weighed(f64),
    /// What serves was changed by an operator.
    Superseded {
        /// By what.
        why: &'a str,
    },
    /// The candidate took over.
    Promoted,
    /// The candidate could not take over.
    PromotionFailed {
        /// Why.
        why: &'a str,
    },
    /// The process started again and the rollout was read back.
    Restarted {
        /// What was lost, in words.
        lost: &'a str,
    },
}

/// How a candidate failed as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuardKind {
    /// It ended its process or an engine.
    Crash,
    /// It cannot be loaded.
    LoadFailure,
}

/// What an operator may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Stop where it is.
    Pause,
    /// Go on.
    Resume,
    /// Agree to the step.
    Approve,
    /// Let the candidate take over now.
    Promote,
    /// Roll back.
    Abort,
}

/// What has to be done, in this order, each only after the one before succeeded.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Measure the candidate on labelled data, then tell [`Event::Validated`].
    Validate(Validation),
    /// Copy this share of requests to the candidate.
    Shadow {
        /// 0 to 1.
        share: f64,
    },
    /// Copy no more requests.
    NoShadow,
    /// Give the candidate this share of the traffic, the baseline the rest. Stands behind [`Effect::Record`].
    SetWeight(f64),
    /// Freeze these quantiles of the baseline, mark what is slower from then on, then tell [`Event::Thresholds`].
    FreezeQuantiles(Vec<f64>),
    /// Let the candidate take over, then tell [`Event::Promoted`] or [`Event::PromotionFailed`]. Stands behind
    /// [`Effect::Record`].
    Promote {
        /// Share that stays on the old version through the rollback window.
        holdback: f64,
    },
    /// Take the candidate out of the split and end its copies. Stands before [`Effect::Record`].
    Rollback {
        /// Why.
        reason: String,
    },
    /// Write the rollout down as it stands.
    Record,
    /// Tell who listens.
    Tell {
        /// What kind of thing happened.
        kind: Told,
        /// More about it.
        detail: String,
    },
    /// The rollout is over: no more requests need be judged. Both versions stay loaded.
    End,
    /// The rollback window has passed: the version that lost need not stay loaded, a hold-back ends.
    Release,
}

/// Kinds of what is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// `rollout.started`
    Started,
    /// `rollout.step`
    Step,
    /// `rollout.held`: something lacks, an operator's approval for example.
    Held,
    /// `rollout.promoted`
    Promoted,
    /// `rollout.rolled_back`
    RolledBack,
    /// `rollout.failed`: it failed before it began, or was superseded.
    Failed,
}

/// An operator asked for something that the state does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// The state is another.
    #[error("`{order}` is not possible while the rollout is `{state}`; it is {possible}", order = order.name(), state = state.name())]
    WrongState {
        /// What was asked for.
        order: Order,
        /// The state.
        state: State,
        /// When it is possible.
        possible: &'static str,
    },
    /// There were as many changes as are recorded.
    #[error(
        "the rollout has changed {CHANGES_MAX} times, which is as many as it records; promote or abort it"
    )]
    TooMany,
}

/// What is needed to start.
#[derive(Debug, Clone)]
pub struct Start<'a> {
    /// The rollout's id, such as `r-01j...`.
    pub id: String,
    /// The model's name.
    pub model: String,
    /// The version that serves.
    pub baseline: Side,
    /// The version that wants to.
    pub candidate: Side,
    /// The policy, which stays as it is.
    pub policy: Policy,
    /// The salt of the assignment, in hexadecimal.
    pub salt: String,
    /// Who started it: `tidegate` or an operator.
    pub actor: &'a str,
    /// Why, in their words; may be empty.
    pub reason: &'a str,
}

/// What changed since the last checkpoint: small enough to be written each second.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Checkpoint {
    head: Head,
    keys: Kept,
    entries: Vec<Entry>,
}

/// Most changes of state, steps aside, that operators can make.
pub(super) const CHANGES_MAX: usize = 1000;
/// Changes that are shown: the first and the last ones.
const HISTORY_MAX: usize = 200;
/// An entry of the ledger closes after this time.
const ENTRY_TIME: Duration = Duration::from_secs(1);
/// Limits are read again after this time: they cost some hundred logarithms.
const LIMITS_TIME: Duration = Duration::from_millis(100);
/// Who decides where no operator does.
const TIDEGATE: &str = "tidegate";

impl State {
    /// The word for it, such as `canary`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Validating => "validating",
            Self::Shadow => "shadow",
            Self::Canary => "canary",
            Self::AwaitingApproval => "awaiting_approval",
            Self::Held => "held",
            Self::Paused => "paused",
            Self::Promoting => "promoting",
            Self::Promoted => "promoted",
            Self::RolledBack => "rolled_back",
            Self::Failed => "failed",
            Self::Superseded => "superseded",
        }
    }

    /// True if nothing is decided any more.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Promoted | Self::RolledBack | Self::Failed | Self::Superseded)
    }
}

impl Order {
    /// The word for it, such as `pause`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Approve => "approve",
            Self::Promote => "promote",
            Self::Abort => "abort",
        }
    }
}

/// What serves and what is recorded about it.
impl Rollout {
    /// A rollout whose candidate is being loaded, at a time since 1970.
    pub fn start(start: Start<'_>, now: Duration) -> (Self, Vec<Effect>) {
        let at = Moment::at(now);
        let head = Head {
            id: start.id,
            model: start.model,
            baseline: start.baseline,
            candidate: start.candidate,
            policy: start.policy,
            salt: start.salt,
            state: State::Pending,
            step: 0,
            weight: 0.0,
            revision: 0,
            reason: String::new(),
            gate: None,
            started_at: at,
            updated_at: at,
            ended_at: None,
            held: None,
            paused_from: None,
            approved: false,
            loaded: false,
            frozen: false,
            released: false,
            step_elapsed: Duration::ZERO,
            step_requests: 0,
            heard_at: now,
            warm_up: WarmUp::default(),
            timed_after: None,
            guard: Guarded::default(),
            evidence: Evidence::default(),
            open: Open::default(),
            open_since: now,
            limits_read_at: Duration::ZERO,
            requests: Pair::default(),
            history: Vec::new(),
            validation: None,
        };
        let mut rollout = Self { head, keys: Keys::default(), ledger: Ledger::default() };
        let why = if start.reason.is_empty() { "started" } else { start.reason };
        rollout.enter(State::Pending, start.actor, why);
        let detail = rollout.head.reason.clone();
        (rollout, vec![Effect::Record, Effect::Tell { kind: Told::Started, detail }])
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        self.head.state
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.head.id
    }

    /// The model's name.
    pub fn model(&self) -> &str {
        &self.head.model
    }

    /// The version that serves.
    pub fn baseline(&self) -> &Side {
        &self.head.baseline
    }

    /// The version that wants to.
    pub fn candidate(&self) -> &Side {
        &self.head.candidate
    }

    /// The policy.
    pub fn policy(&self) -> &Policy {
        &self.head.policy
    }

    /// The salt of the assignment.
    pub fn salt(&self) -> &str {
        &self.head.salt
    }

    /// The candidate's share in effect, a multiple of 1/65536.
    pub fn weight(&self) -> f64 {
        self.head.weight
    }

    /// The share of requests that is copied to the candidate now.
    pub fn shadow_share(&self) -> f64 {
        let is_shadow = self.head.state == State::Shadow
            || (self.head.state == State::Paused && self.head.paused_from == Some(State::Shadow));
        let shadow = self.head.policy.shadow.as_ref().filter(|_| is_shadow);
        shadow.map_or(0.0, |shadow| shadow.share.in_effect())
    }

    /// Grows by every change.
    pub fn revision(&self) -> u64 {
        self.head.revision
    }

    /// The frozen quantiles of the baseline, in the policy's order; the first has [`Marks::SLOW_0`].
    pub fn thresholds(&self) -> Option<Vec<Threshold>> {
        self.head.evidence.thresholds(&self.head.policy)
    }

    /// When it ended, since 1970.
    pub fn ended_at(&self) -> Option<Duration> {
        self.head.ended_at.map(Moment::since_1970)
    }

    /// True once the rollback window has passed, or if the state needs none.
    pub fn is_released(&self) -> bool {
        self.head.released
    }

    /// Why files that lost here may not start again, if they may not: by itself never, by an operator after the
    /// cooldown or with force.
    pub fn forbids(
        &self,
        digest: &str,
        by_itself: bool,
        force: bool,
        now: Duration,
    ) -> Option<String> {
        let head = &self.head;
        if head.state != State::RolledBack || head.candidate.digest != digest || force {
            return None;
        }
        let lost = format!("the same files were rolled back by {}: {}", head.id, head.reason);
        if by_itself {
            return Some(format!("{lost}; start the rollout by hand, or bring another version"));
        }
        let until = head.ended_at?.since_1970() + head.policy.cooldown;
        (now < until).then(|| {
            format!("{lost}; wait until {}, or start it with \"force\": true", Moment::at(until))
        })
    }

    /// Tells whether an operator may ask for this now.
    pub fn check(&self, order: Order) -> Result<(), OrderError> {
        use State::{AwaitingApproval, Canary, Held, Paused, Pending, Promoting, Shadow};
        let state = self.head.state;
        let (allowed, possible) = match order {
            Order::Pause => (
                matches!(state, Shadow | Canary | Held | AwaitingApproval),
                "possible in shadow, canary, held and awaiting_approval",
            ),
            Order::Resume => (matches!(state, Paused | Held), "possible in paused and held"),
            Order::Approve => (state == AwaitingApproval, "possible in awaiting_approval"),
            Order::Promote => (
                !state.is_over() && !matches!(state, Pending | Promoting),
                "possible once the candidate is loaded and until the end",
            ),
            Order::Abort => (
                !state.is_over() && state != Promoting,
                "possible until the end; afterwards roll the model back",
            ),
        };
        if !allowed {
            return Err(OrderError::WrongState { order, state, possible });
        }
        let is_end = matches!(order, Order::Promote | Order::Abort);
        if !is_end && self.head.revision >= CHANGES_MAX as u64 {
            return Err(OrderError::TooMany);
        }
        Ok(())
    }

    /// What changed since the last checkpoint; what lies behind it is evidence that no entry has yet.
    pub fn checkpoint(&mut self) -> Checkpoint {
        self.close();
        Checkpoint {
            head: self.head.clone(),
            keys: self.keys.take_fresh(),
            entries: self.ledger.take_fresh(),
        }
    }

    /// Lays a checkpoint over an older state, as it was written down or as the checkpoint before left it.
    pub fn restore(&mut self, checkpoint: Checkpoint) {
        self.head = checkpoint.head;
        self.keys.put(checkpoint.keys);
        for entry in checkpoint.entries {
            self.ledger.put(&self.head.policy, entry);
        }
    }
}

/// The decision.
impl Rollout {
    /// Hears an event at a time since 1970, and says what has to be done.
    pub fn hear(&mut self, event: &Event<'_>, now: Duration) -> Vec<Effect> {
        let mut out = Vec::new();
        if let Event::Restarted { lost } = event {
            self.restart(lost, now, &mut out);
            return out;
        }
        self.pass_time(now);
        if self.head.state.is_over() {
            self.after_the_end(&mut out);
            return out;
        }
        match event {
            Event::Loaded => self.head.loaded = true,
            Event::Requests(seen) => self.judge_requests(seen, &mut out),
            Event::Shadowed(comparisons) => self.judge_copies(comparisons, &mut out),
            Event::ShadowDropped(copies) => {
                self.head.evidence.drop_copies(*copies);
                self.open(0.0, false).copies.dropped += copies;
            }
            Event::Outcomes(outcomes) => self.judge_outcomes(outcomes, &mut out),
            Event::Validated { report, pass, why } if self.head.state == State::Validating => {
                self.head.validation = Some(report.clone());
                if *pass {
                    self.after_validation(why, &mut out);
                } else {
                    self.fail(&format!("validation: {why}"), &mut out);
                }
            }
            Event::Thresholds(thresholds) => self.freeze(thresholds),
            Event::Order { order, actor, reason } => self.obey(*order, actor, reason, &mut out),
            Event::Frozen(frozen) => self.head.frozen = *frozen,
            Event::Guard { kind, why } => self.guard(*kind, why, &mut out),
            Event::Weighed(weight) if self.head.state == State::Paused => {
                self.close();
                self.head.weight = *weight;
                self.head.revision += 1;
                out.push(Effect::Record);
            }
            Event::Superseded { why } => {
                let reason = format!("superseded: {why}");
                self.head.weight = 0.0;
                self.end(State::Superseded, TIDEGATE, &reason, &mut out);
                out.extend([Effect::Tell { kind: Told::Failed, detail: reason }, Effect::End]);
            }
            Event::Promoted if self.head.state == State::Promoting => {
                self.head.weight = 1.0 - self.holdback();
                let why = "the candidate took over";
                self.end(State::Promoted, TIDEGATE, why, &mut out);
                let detail = why.to_owned();
                out.extend([Effect::Tell { kind: Told::Promoted, detail }, Effect::End]);
            }
            Event::PromotionFailed { why } if self.head.state == State::Promoting => {
                let why = format!("promotion failed: {why}; resume to try again, or abort");
                self.hold(Held::Promotion, &why, &mut out);
            }
            Event::Tick
            | Event::Restarted { .. }
            | Event::Validated { .. }
            | Event::Weighed(_)
            | Event::Promoted
            | Event::PromotionFailed { .. } => {}
        }
        // Each round enters another state or step, so there are few.
        while self.advance(&mut out) {}
        if self.head.heard_at.saturating_sub(self.head.open_since) >= ENTRY_TIME {
            self.close();
        }
        out
    }

    /// Counts the time since the last event, where it counts.
    fn pass_time(&mut self, now: Duration) {
        let head = &mut self.head;
        // A clock that was set back stands still; what waits for a later time must not wait for long.
        if now < head.heard_at {
            for after in [&mut head.warm_up.ended, &mut head.timed_after].into_iter().flatten() {
                *after = (*after).min(now);
            }
            head.limits_read_at = head.limits_read_at.min(now);
            head.open_since = head.open_since.min(now);
        }
        let passed = now.saturating_sub(head.heard_at);
        head.heard_at = now;
        if !head.frozen && matches!(head.state, State::Shadow | State::Canary) {
            head.step_elapsed += passed;
        }
    }

    /// The time of the step that counts, with what passed since the last event.
    pub(super) fn elapsed(&self, now: Duration) -> Duration {
        let head = &self.head;
        let counts = !head.frozen && matches!(head.state, State::Shadow | State::Canary);
        let since = if counts { now.saturating_sub(head.heard_at) } else { Duration::ZERO };
        head.step_elapsed + since
    }

    fn after_the_end(&mut self, out: &mut Vec<Effect>) {
        let head = &mut self.head;
        let Some(ended_at) = head.ended_at else { return };
        let window = ended_at.since_1970() + head.policy.rollback_window;
        if !head.released && head.heard_at >= window {
            head.released = true;
            if head.state == State::Promoted && head.weight < 1.0 {
                head.weight = 1.0;
                head.revision += 1;
            }
            out.extend([Effect::Record, Effect::Release]);
        }
    }

    /// Goes on after the process started again, as the state stands: with another warm-up.
    fn restart(&mut self, lost: &str, now: Duration, out: &mut Vec<Effect>) {
        let body = Body::Restarted { restarted: lost.to_owned() };
        self.head.heard_at = now;
        self.close();
        if self.head.state.is_over() {
            return;
        }
        self.ledger.push(&self.head.policy, Moment::at(now), body);
        self.head.warm_up = WarmUp::default();
        self.head.guard = Guarded::default();
        self.head.timed_after = self.head.timed_after.map(|_| now);
        self.head.open_since = now;
        out.push(Effect::Record);
        let shadow = self.shadow_share();
        match (self.head.state, self.head.policy.validate.clone()) {
            (State::Validating, Some(validation)) => out.push(Effect::Validate(validation)),
            (State::Promoting, _) => out.push(Effect::Promote { holdback: self.holdback() }),
            _ if shadow > 0.0 => out.push(Effect::Shadow { share: shadow }),
            _ if self.head.weight > 0.0 => out.push(Effect::SetWeight(self.head.weight)),
            _ => {}
        }
    }

    fn holdback(&self) -> f64 {
        Share(self.head.policy.holdback).in_effect()
    }
}

/// Evidence.
impl Rollout {
    /// True while the candidate has a share that is judged.
    fn is_judging(&self) -> bool {
        let state = self.head.state;
        matches!(state, State::Canary | State::AwaitingApproval | State::Held)
            || (state == State::Paused && self.head.paused_from != Some(State::Shadow))
    }

    fn judge_requests(&mut self, seen: &[Seen], out: &mut Vec<Effect>) {
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

    fn freeze(&mut self, thresholds: &[Threshold]) {
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
        let judged = !left && !marks.has(Marks::CAPACITY);
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
        fired
    }

    fn judge_outcomes(&mut self, outcomes: &[Outcome], out: &mut Vec<Effect>) {
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

    fn judge_copies(&mut self, comparisons: &[Comparison], out: &mut Vec<Effect>) {
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
        if unit.candidate && unit.prediction[0] != 0 {
            head.evidence.note(slot, String::from_utf8_lossy(&unit.prediction).into_owned());
        }
        head.evidence.count(&head.policy, slot, unit.share, unit.candidate, 1);
        head.open.event(slot, unit.candidate);
        head.evidence.fires(&head.policy, gate_of(slot))
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
    fn open(&mut self, weight: f64, outcomes: bool) -> &mut Open {
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
        let counted = open.counted(&head.policy, |slot| Evidence::is_on(&head.policy, slot));
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

/// What is counted: a request, or a key.
struct Unit {
    candidate: bool,
    share: f64,
    key: u64,
    sticky: bool,
    prediction: [u8; 24],
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

/// Steps and states.
impl Rollout {
    /// Goes on by itself where the conditions hold; true if something changed.
    fn advance(&mut self, out: &mut Vec<Effect>) -> bool {
        let (state, frozen) = (self.head.state, self.head.frozen);
        match state {
            State::Canary | State::AwaitingApproval if self.is_sample_ratio_wrong() => {
                let why = format!(
                    "the arms' shares of assignments are not {} and {}: requests are lost or routed wrongly, and no \
                     gate can be trusted; find out why, then resume, promote or abort",
                    1.0 - self.head.weight,
                    self.head.weight
                );
                self.hold(Held::SampleRatio, &why, out);
                true
            }
            _ if frozen => false,
            State::Pending if self.head.loaded => {
                self.begin(out);
                true
            }
            State::Shadow if self.is_shadow_done() => {
                out.push(Effect::NoShadow);
                self.enter_step(0, TIDEGATE, "the shadow has seen enough", None, out);
                true
            }
            State::Canary => self.advance_step(out),
            State::Held => self.leave_hold(out),
            _ => false,
        }
    }

    fn begin(&mut self, out: &mut Vec<Effect>) {
        match self.head.policy.validate.clone() {
            Some(validation) => {
                self.enter(State::Validating, TIDEGATE, "the candidate is loaded");
                out.extend([Effect::Record, Effect::Validate(validation)]);
            }
            None => self.after_validation("the candidate is loaded", out),
        }
    }

    fn after_validation(&mut self, why: &str, out: &mut Vec<Effect>) {
        match self.head.policy.shadow.clone() {
            Some(shadow) => {
                self.head.step_elapsed = Duration::ZERO;
                self.enter(State::Shadow, TIDEGATE, why);
                out.extend([Effect::Record, Effect::Shadow { share: shadow.share.in_effect() }]);
            }
            None => self.enter_step(0, TIDEGATE, why, None, out),
        }
    }

    fn is_shadow_done(&self) -> bool {
        let (compared, ..) = self.head.evidence.copies();
        self.head.policy.shadow.as_ref().is_none_or(|shadow| {
            compared >= shadow.requests || self.head.step_elapsed >= shadow.duration.0
        })
    }

    /// Looks whether the step passes or its time is over.
    fn advance_step(&mut self, out: &mut Vec<Effect>) -> bool {
        let step = self.head.policy.steps[self.head.step].clone();
        if self.has_seen_enough() {
            if let Some(gate) = self.lacking() {
                self.hold_for_data(gate, out);
                return true;
            }
            if !self.is_last() || self.is_within_limits() {
                let why = "the step has seen enough and no gate fired";
                self.pass(TIDEGATE, why, None, out);
                return true;
            }
        }
        if self.head.step_elapsed < step.max_duration {
            return false;
        }
        let spent = format!("after {:.0} s", self.head.step_elapsed.as_secs_f64());
        match (step.on_timeout, self.lacking()) {
            (OnTimeout::Rollback, _) => {
                let reason = format!("timeout: step {} has not passed {spent}", self.head.step + 1);
                self.roll_back(None, TIDEGATE, &reason, out);
            }
            (OnTimeout::Promote, None) => {
                let why = format!("{spent} the step passes as its policy says (on_timeout)");
                self.pass(TIDEGATE, &why, Some("on_timeout"), out);
            }
            (OnTimeout::Promote, Some(gate)) => self.hold_for_data(gate, out),
            (OnTimeout::Hold, _) => {
                let why =
                    format!("{spent} {}; it goes on by itself once that changes", self.wanting());
                self.hold(Held::Time, &why, out);
            }
        }
        true
    }

    fn leave_hold(&mut self, out: &mut Vec<Effect>) -> bool {
        let ready = match self.head.held {
            Some(Held::Data) => self.lacking().is_none(),
            Some(Held::Time) => {
                self.has_seen_enough()
                    && self.lacking().is_none()
                    && (!self.is_last() || self.is_within_limits())
            }
            Some(Held::SampleRatio | Held::Promotion) | None => false,
        };
        if ready {
            self.enter(State::Canary, TIDEGATE, "what lacked has come");
            out.push(Effect::Record);
        }
        ready
    }

    fn is_last(&self) -> bool {
        self.head.step + 1 >= self.head.policy.steps.len()
    }

    fn has_seen_enough(&self) -> bool {
        let step = &self.head.policy.steps[self.head.step];
        self.head.step_elapsed >= step.min_duration && self.head.step_requests >= step.min_requests
    }

    /// A required gate without data.
    fn lacking(&self) -> Option<Gate> {
        let Head { policy, evidence, .. } = &self.head;
        Gate::ALL.into_iter().find(|gate| {
            policy.gate(*gate).mode == Mode::Required && !evidence.has_data(policy, *gate)
        })
    }

    /// True if every gate's limits say that the candidate is good enough; read again after a while only.
    fn is_within_limits(&mut self) -> bool {
        let head = &mut self.head;
        if head.heard_at < head.limits_read_at + LIMITS_TIME {
            return false;
        }
        head.limits_read_at = head.heard_at;
        self.blocking().is_none()
    }

    /// A gate whose limits stand in the way of promotion.
    fn blocking(&self) -> Option<Gate> {
        let Head { policy, evidence, .. } = &self.head;
        let min_requests = policy.steps[self.head.step].min_requests;
        Gate::ALL.into_iter().find(|gate| evidence.blocks(policy, *gate, min_requests))
    }

    /// What keeps the step from passing, in words.
    fn wanting(&self) -> String {
        let step = &self.head.policy.steps[self.head.step];
        if self.head.step_requests < step.min_requests {
            let seen = self.head.step_requests;
            return format!("the canary has had {seen} of {} requests", step.min_requests);
        }
        match self.lacking().or_else(|| self.blocking()) {
            Some(gate) => format!("gate {} has not seen enough to pass", gate.name()),
            None => "the step has not passed".to_owned(),
        }
    }

    fn is_sample_ratio_wrong(&self) -> bool {
        self.head.policy.on_srm == OnSampleRatio::Hold && self.head.evidence.is_sample_ratio_wrong()
    }

    /// Leaves a step that has passed, unless a person must agree first.
    fn pass(&mut self, by: &str, why: &str, waived: Option<&str>, out: &mut Vec<Effect>) {
        let manual = self.head.policy.steps[self.head.step].approval == Approval::Manual;
        if manual && !self.head.approved {
            let why = format!("{why}; it waits for approve");
            self.enter(State::AwaitingApproval, by, &why);
            out.extend([Effect::Record, Effect::Tell { kind: Told::Held, detail: why }]);
        } else if self.is_last() {
            self.promote(by, why, waived, out);
        } else {
            self.enter_step(self.head.step + 1, by, why, waived, out);
        }
    }

    fn enter_step(
        &mut self,
        step: usize,
        by: &str,
        why: &str,
        waived: Option<&str>,
        out: &mut Vec<Effect>,
    ) {
        // What was counted until now belongs to the step before.
        self.close();
        let elapsed = self.head.step_elapsed;
        self.head.step = step;
        self.head.weight = self.head.policy.steps[step].weight.in_effect();
        self.change(State::Canary, by, why, waived, elapsed);
        self.head.step_elapsed = Duration::ZERO;
        self.head.step_requests = 0;
        self.head.approved = false;
        let weight = self.head.weight;
        let steps = self.head.policy.steps.len();
        let detail = format!("step {} of {steps}, weight {weight}: {why}", step + 1);
        out.extend([
            Effect::Record,
            Effect::SetWeight(weight),
            Effect::Tell { kind: Told::Step, detail },
        ]);
    }

    fn promote(&mut self, by: &str, why: &str, waived: Option<&str>, out: &mut Vec<Effect>) {
        self.change(State::Promoting, by, why, waived, self.head.step_elapsed);
        out.extend([Effect::Record, Effect::Promote { holdback: self.holdback() }]);
    }

    fn hold_for_data(&mut self, gate: Gate, out: &mut Vec<Effect>) {
        let why = format!(
            "gate {} is required and has no data; it goes on by itself once there are, or promote or abort",
            gate.name()
        );
        self.hold(Held::Data, &why, out);
    }

    fn hold(&mut self, held: Held, why: &str, out: &mut Vec<Effect>) {
        self.enter(State::Held, TIDEGATE, why);
        self.head.held = Some(held);
        out.extend([Effect::Record, Effect::Tell { kind: Told::Held, detail: why.to_owned() }]);
    }

    fn fire(&mut self, gate: Gate, out: &mut Vec<Effect>) {
        let Head { policy, evidence, .. } = &self.head;
        let standing = evidence.standing(policy, gate);
        let threshold = policy.log_e_threshold(gate).unwrap_or(f64::INFINITY);
        let (events, trials) = (standing.events, standing.trials);
        let of_baseline = if gate == Gate::Disagreement {
            format!("at most {} may differ", policy.gate(gate).rate_max)
        } else {
            format!("{} of {} of the baseline", events.baseline, trials.baseline)
        };
        let reason = format!(
            "gate {}: {} of {} of the canary against {of_baseline} (log_e {:.2}, threshold {threshold:.2})",
            gate.name(),
            events.candidate,
            trials.candidate,
            standing.log_e,
        );
        self.roll_back(Some(gate), TIDEGATE, &reason, out);
    }

    fn guard(&mut self, kind: GuardKind, why: &str, out: &mut Vec<Effect>) {
        let state = self.head.state;
        let reason = match kind {
            GuardKind::Crash => format!("guard crash: {why}"),
            GuardKind::LoadFailure => format!("load failed: {why}"),
        };
        if state == State::Pending {
            self.fail(&reason, out);
        } else {
            self.roll_back(None, TIDEGATE, &reason, out);
        }
    }

    fn roll_back(&mut self, gate: Option<Gate>, by: &str, reason: &str, out: &mut Vec<Effect>) {
        // Acts first: whatever was about to be done is overtaken.
        out.clear();
        self.head.gate = gate;
        self.head.weight = 0.0;
        out.push(Effect::Rollback { reason: reason.to_owned() });
        self.end(State::RolledBack, by, reason, out);
        let detail = reason.to_owned();
        out.extend([Effect::Tell { kind: Told::RolledBack, detail }, Effect::End]);
    }

    fn fail(&mut self, reason: &str, out: &mut Vec<Effect>) {
        self.end(State::Failed, TIDEGATE, reason, out);
        let detail = reason.to_owned();
        out.extend([Effect::Tell { kind: Told::Failed, detail }, Effect::End]);
    }

    fn end(&mut self, state: State, by: &str, why: &str, out: &mut Vec<Effect>) {
        self.enter(state, by, why);
        self.head.ended_at = Some(self.head.updated_at);
        out.push(Effect::Record);
    }

    fn obey(&mut self, order: Order, actor: &str, reason: &str, out: &mut Vec<Effect>) {
        if self.check(order).is_err() {
            return;
        }
        self.close();
        let operator = Operator { order, by: actor.to_owned(), reason: reason.to_owned() };
        let at = Moment::at(self.head.heard_at);
        self.ledger.push(&self.head.policy, at, Body::Operator { operator });
        let words = if reason.is_empty() { order.name() } else { reason };
        match order {
            Order::Pause => {
                self.head.paused_from = Some(self.head.state);
                self.enter(State::Paused, actor, words);
                out.push(Effect::Record);
            }
            Order::Resume => self.resume(actor, words, out),
            Order::Approve => {
                self.head.approved = true;
                self.enter(State::Canary, actor, words);
                out.push(Effect::Record);
            }
            Order::Promote => {
                if self.shadow_share() > 0.0 {
                    out.push(Effect::NoShadow);
                }
                self.promote(actor, words, Some("operator"), out);
            }
            Order::Abort => {
                self.roll_back(None, actor, &format!("operator: {words} ({actor})"), out);
            }
        }
    }

    /// Goes back to the state before a pause; out of a hold it begins the step's time anew.
    fn resume(&mut self, actor: &str, words: &str, out: &mut Vec<Effect>) {
        let paused_from = self.head.paused_from.take().filter(|_| self.head.state == State::Paused);
        match paused_from {
            Some(State::Shadow) => self.enter(State::Shadow, actor, words),
            Some(State::AwaitingApproval) => self.enter(State::AwaitingApproval, actor, words),
            Some(State::Held) => {
                let held = self.head.held;
                self.enter(State::Held, actor, words);
                self.head.held = held;
            }
            Some(_) => self.enter(State::Canary, actor, words),
            None => {
                if self.head.held == Some(Held::SampleRatio) {
                    self.head.evidence.restart_sample_ratio();
                }
                self.enter(State::Canary, actor, words);
                self.head.step_elapsed = Duration::ZERO;
            }
        }
        out.push(Effect::Record);
        if self.head.state != State::Shadow {
            self.head.weight = self.head.policy.steps[self.head.step].weight.in_effect();
            out.push(Effect::SetWeight(self.head.weight));
        }
    }

    fn enter(&mut self, to: State, by: &str, why: &str) {
        self.change(to, by, why, None, self.head.step_elapsed);
    }

    /// Enters a state or step, and records what every gate says at this moment.
    fn change(&mut self, to: State, by: &str, why: &str, waived: Option<&str>, elapsed: Duration) {
        self.close();
        let head = &mut self.head;
        let at = Moment::at(head.heard_at);
        let from = head.state;
        let elapsed = u32::try_from(elapsed.as_millis()).unwrap_or(u32::MAX);
        let transition = Transition {
            from,
            to,
            step: head.step,
            weight: head.weight,
            by: by.to_owned(),
            why: why.to_owned(),
            gate: head.gate,
            waived: waived.map(str::to_owned),
            elapsed_seconds: f64::from(elapsed) / 1000.0,
            gates: said(&head.policy, &head.evidence),
        };
        self.ledger.push(&head.policy, at, Body::Transition { transition });
        if head.history.len() >= HISTORY_MAX {
            head.history.remove(HISTORY_MAX / 2);
        }
        head.history.push(Change {
            at,
            from,
            to,
            step: head.step,
            by: by.to_owned(),
            why: why.to_owned(),
        });
        head.state = to;
        head.held = None;
        head.reason = why.to_owned();
        head.revision += 1;
        head.updated_at = at;
    }
}

/// What every gate that is on says.
pub(super) fn said(policy: &Policy, evidence: &Evidence) -> BTreeMap<Gate, Said> {
    let on = Gate::ALL.into_iter().filter(|gate| policy.gate(*gate).mode != Mode::Off);
    let gates = on.filter(|gate| *gate != Gate::OutputShift).map(|gate| {
        let mut counts: BTreeMap<_, _> = slots_of(gate, policy)
            .map(|slot| {
                let (trials, events) = evidence.counts(slot);
                let counts = [trials.baseline, trials.candidate, events.baseline, events.candidate];
                (slot_name(slot, policy), counts)
            })
            .collect();
        if gate == Gate::Disagreement {
            let (compared, differing, _) = evidence.copies();
            counts.insert(gate.name().to_owned(), [0, compared, 0, differing]);
        }
        (gate, Said { log_e: evidence.log_e(policy, gate), counts })
    });
    gates.collect()
}

/// Trials that an entry has of a meter.
pub(super) fn trials_of(entry: &super::ledger::Counted, slot: usize, policy: &Policy) -> Pair {
    let said = entry.trials.get(&slot_name(slot, policy)).copied();
    said.unwrap_or_else(|| usual_trials(slot, entry.requests))
}
