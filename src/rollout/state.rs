//! The rollout itself: its state, what it hears and what it asks for.
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
//! Every state but `pending` and `promoting` is left for `rolled_back` the moment a gate or guard fires or an operator
//! aborts, and every one for `superseded`.
//!
//! Not here: what moves it on (`course`, `judging`), how it is shown (`report`).

use std::{sync::OnceLock, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::model::Moment;

use super::{
    evidence::{Evidence, Pair},
    keys::{Kept, Keys},
    ledger::{Entry, Ledger, Open},
    policy::{Gate, Policy, Validation},
    report::Why,
    seen::{Comparison, Outcome, Seen, Threshold},
};

/// State of a rollout, complete, as it outlives the process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Rollout {
    pub(super) head: Head,
    pub(super) keys: Keys,
    pub(super) ledger: Ledger,
    /// Explanation of the rollback, made on the first request: it takes a playback of the ledger.
    #[serde(skip)]
    pub(super) explained: OnceLock<Option<Why>>,
}

/// State of a rollout without the parts that only grow.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "facts that do not depend on each other")]
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
    /// Reason for which it is held.
    pub(super) held: Option<Held>,
    /// Since when the step could pass but for a gate without data.
    #[serde(default)]
    pub(super) lacking_since: Option<Duration>,
    /// Reason for which it was held before a pause.
    #[serde(default)]
    pub(super) held_before: Option<Held>,
    /// The state to which `resume` goes back.
    pub(super) paused_from: Option<State>,
    /// The step's approval was given.
    pub(super) approved: bool,
    pub(super) loaded: bool,
    pub(super) frozen: bool,
    /// The candidate left memory, or need not stay.
    pub(super) released: bool,
    /// Time of the step (or of the shadow) that counts.
    pub(super) step_elapsed: Duration,
    /// Judged requests of the candidate in the step.
    pub(super) step_requests: u64,
    /// The time of the last event.
    pub(super) heard_at: Duration,
    pub(super) warm_up: WarmUp,
    /// Slowness counts for requests that were assigned after this.
    pub(super) timed_after: Option<Duration>,
    pub(super) guard: Guarded,
    pub(super) evidence: Evidence,
    pub(super) open: Open,
    pub(super) open_since: Duration,
    pub(super) limits_read_at: Duration,
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

/// State of a rollout.
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
    /// The rollout lacks something; the split stays.
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

/// Reasons to hold a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Held {
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
pub(super) struct WarmUp {
    pub(super) requests: u64,
    /// Requests that were assigned after this count.
    pub(super) ended: Option<Duration>,
}

/// Failures of the candidate in a row.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Guarded {
    pub(super) failures: u32,
    /// The baseline answered since the last one.
    pub(super) baseline_answered: bool,
}

/// A change of state or step, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Time of the change.
    pub at: Moment,
    /// The state before.
    pub from: State,
    /// The state after.
    pub to: State,
    /// The step after, counted from 0.
    pub step: usize,
    /// Author: `tidegate` or an operator.
    pub by: String,
    /// Reason for the change.
    pub why: String,
}

/// Events that a rollout hears of.
#[derive(Debug, Clone)]
pub enum Event<'a> {
    /// The candidate is loaded and can answer.
    Loaded,
    /// Requests that ended, in the order of assignment, each once everything assigned before it has ended.
    Requests(&'a [Seen]),
    /// Texts of classes by their hashes; they stand before the first requests that were answered so.
    Texts(&'a [(u64, &'a str)]),
    /// Copied requests that were compared.
    Shadowed(&'a [Comparison]),
    /// Copies that were dropped.
    ShadowDropped(u64),
    /// Outcomes of predictions, in the order of arrival.
    Outcomes(&'a [Outcome]),
    /// Time has passed; comes at least each second.
    Tick,
    /// The validation ended.
    Validated {
        /// Its report, kept as it is.
        report: Value,
        /// True if the candidate did well enough.
        pass: bool,
        /// Reason for the failure, or the result that was reached.
        why: String,
    },
    /// The quantiles that [`Effect::FreezeQuantiles`] asked for; slowness is marked from now on.
    Thresholds(&'a [Threshold]),
    /// An operator asks for something that [`Rollout::check`] allows; else nothing happens.
    Order {
        /// Order given.
        order: Order,
        /// Author of the order.
        actor: &'a str,
        /// Reason, in the author's words; may be empty.
        reason: &'a str,
    },
    /// Freeze (true) or thaw (false) of all automation.
    Frozen(bool),
    /// The candidate failed as a whole.
    Guard {
        /// Kind of the failure.
        kind: GuardKind,
        /// Description of the failure.
        why: &'a str,
    },
    /// An operator gave the candidate another share while it is paused.
    Weighed(f64),
    /// An operator changed what serves.
    Superseded {
        /// By what.
        why: &'a str,
    },
    /// The candidate took over.
    Promoted,
    /// The candidate could not take over.
    PromotionFailed {
        /// Reason for the failure.
        why: &'a str,
    },
    /// The process started again and the rollout was read back.
    Restarted {
        /// Description of what was lost.
        lost: &'a str,
    },
}

/// Failures of a candidate as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuardKind {
    /// Crash of its process or of an engine.
    Crash,
    /// Failure to load.
    LoadFailure,
}

/// Orders that an operator may give.
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

/// Actions that a rollout asks for, in this order, each only after the one before succeeded.
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
        /// Reason for the rollback.
        reason: String,
    },
    /// Write the rollout down as it stands.
    Record,
    /// Tell who listens.
    Tell {
        /// Kind of the event.
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
    #[error(
        "`{order}` is not possible while the rollout is `{state}`; it is {possible}",
        order = order.name(),
        state = state.name()
    )]
    WrongState {
        /// Order that was asked for.
        order: Order,
        /// The state.
        state: State,
        /// States in which it is possible, in words.
        possible: &'static str,
    },
    /// Too many changes: as many as are recorded.
    #[error(
        "the rollout has changed {CHANGES_MAX} times, which is as many as it records; promote or abort it"
    )]
    TooMany,
}

/// Inputs of a start.
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
    /// Author of the start: `tidegate` or an operator.
    pub actor: &'a str,
    /// Reason, in the author's words; may be empty.
    pub reason: &'a str,
}

/// Changes since the last checkpoint: small enough to be written each second.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Checkpoint {
    head: Head,
    keys: Kept,
    entries: Vec<Entry>,
}

/// Most changes of state, steps aside, that operators can make.
pub(super) const CHANGES_MAX: usize = 1000;

impl State {
    /// All states, in the order in which a rollout meets them.
    pub const ALL: [Self; 12] = [
        Self::Pending,
        Self::Validating,
        Self::Shadow,
        Self::Canary,
        Self::AwaitingApproval,
        Self::Held,
        Self::Paused,
        Self::Promoting,
        Self::Promoted,
        Self::RolledBack,
        Self::Failed,
        Self::Superseded,
    ];

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
            lacking_since: None,
            held_before: None,
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
        let mut rollout = Self::bare(head, Ledger::default());
        let why = if start.reason.is_empty() { "started" } else { start.reason };
        rollout.enter(State::Pending, start.actor, why);
        let detail = rollout.head.reason.clone();
        (rollout, vec![Effect::Record, Effect::Tell { kind: Told::Started, detail }])
    }

    /// A rollout without keys.
    pub(super) fn bare(head: Head, ledger: Ledger) -> Self {
        Self { head, keys: Keys::default(), ledger, explained: OnceLock::new() }
    }

    /// Current state.
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

    /// The frozen quantiles of the baseline, in the policy's order; the first has [`Marks::slow`] of 0.
    pub fn thresholds(&self) -> Option<Vec<Threshold>> {
        self.head.evidence.thresholds(&self.head.policy)
    }

    /// Time of the end, since 1970.
    pub fn ended_at(&self) -> Option<Duration> {
        self.head.ended_at.map(Moment::since_1970)
    }

    /// True once the rollback window has passed, or if the state needs none.
    pub fn is_released(&self) -> bool {
        self.head.released
    }

    /// Reason that files that lost here may not start again, if they may not: by itself never, by an operator after the
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

    /// Closes the open entry and returns the changes since the last checkpoint.
    pub fn checkpoint(&mut self) -> Checkpoint {
        self.close();
        Checkpoint {
            head: self.head.clone(),
            keys: self.keys.take_fresh(),
            entries: self.ledger.take_fresh(),
        }
    }

    /// Lets go of what only counting needs, once it is over.
    pub fn settle(&mut self) {
        debug_assert!(self.head.state.is_over(), "it still counts");
        self.keys.end();
    }

    /// Returns the whole state as one checkpoint.
    pub fn whole(&self) -> Checkpoint {
        Checkpoint {
            head: self.head.clone(),
            keys: self.keys.all(),
            entries: self.ledger.entries().to_vec(),
        }
    }

    /// Lays a checkpoint over an older state, as it was written down or as the checkpoint before left it.
    pub fn restore(&mut self, checkpoint: Checkpoint) {
        self.head = checkpoint.head;
        self.explained = OnceLock::new();
        self.keys.put(checkpoint.keys);
        for entry in checkpoint.entries {
            self.ledger.put(&self.head.policy, entry);
        }
    }
}
