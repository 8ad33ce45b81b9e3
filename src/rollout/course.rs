//! The course of a rollout: what moves it from state to state, and what has to be done about it.
//!
//! [`Rollout::hear`] is the decision: it takes an event and the time, changes the state and says what to do. A dumb
//! driver carries out the effects in their order, each only after the one before succeeded: so what stands behind
//! [`Effect::Record`] takes effect only once it cannot be forgotten, and a rollback stands before it. Always true:
//! - While frozen nothing advances by itself; gates and guards still roll back.
//! - Time counts in `shadow` and `canary` only, and not while frozen.
//! - Nothing here asks for the time, draws a number or waits.
//!
//! Not here: which requests count (`judging`), what gates compute (`evidence`).

use std::time::Duration;

use crate::model::Moment;

use super::{
    ledger::{Body, Operator, Transition, said},
    policy::{Approval, Gate, Mode, OnSampleRatio, OnTimeout},
    state::{
        Change, Effect, Event, GuardKind, Guarded, Head, Held, Order, Rollout, State, Told, WarmUp,
    },
    values::Share,
};

/// Changes that are shown: the first and the last ones.
const HISTORY_MAX: usize = 200;
/// An entry of the ledger closes after this time.
const ENTRY_TIME: Duration = Duration::from_secs(1);
/// Limits are read again after this time: they cost some hundred logarithms.
const LIMITS_TIME: Duration = Duration::from_millis(100);
/// A gate without data may lack it for this long before the rollout is held: quantiles were frozen just now.
const LACKING_TIME: Duration = Duration::from_secs(5);
/// Actor of decisions that no operator made.
pub(super) const TIDEGATE: &str = "tidegate";

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
            Event::Texts(texts) => self.head.evidence.outputs.learn_texts(texts),
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
                let since = *self.head.lacking_since.get_or_insert(self.head.heard_at);
                if self.head.heard_at.saturating_sub(since) >= LACKING_TIME {
                    self.hold_for_data(gate, out);
                    return true;
                }
            } else if !self.is_last() || self.is_within_limits() {
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
        let read_at = head.limits_read_at;
        if head.heard_at > read_at && head.heard_at < read_at + LIMITS_TIME {
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

    /// Describes what keeps the step from passing.
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

    pub(super) fn fire(&mut self, gate: Gate, out: &mut Vec<Effect>) {
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

    pub(super) fn roll_back(
        &mut self,
        gate: Option<Gate>,
        by: &str,
        reason: &str,
        out: &mut Vec<Effect>,
    ) {
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
                self.head.held_before = self.head.held;
                self.enter(State::Paused, actor, words);
                out.push(Effect::Record);
            }
            Order::Resume => self.resume(actor, words, out),
            Order::Approve => self.approve(actor, words, out),
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

    /// Passes the step that waited for it, also while frozen; the last one only within the limits of this moment.
    fn approve(&mut self, actor: &str, words: &str, out: &mut Vec<Effect>) {
        self.head.approved = true;
        self.enter(State::Canary, actor, words);
        out.push(Effect::Record);
        let waived = (!self.has_seen_enough()).then_some("on_timeout");
        let ready = self.lacking().is_none();
        if ready && (waived.is_some() || !self.is_last() || self.blocking().is_none()) {
            self.pass(actor, words, waived, out);
        }
    }

    /// Goes back to the state before a pause; out of a hold it begins the step's time anew.
    fn resume(&mut self, actor: &str, words: &str, out: &mut Vec<Effect>) {
        let held = self.head.held_before.take();
        let paused_from = self.head.paused_from.take().filter(|_| self.head.state == State::Paused);
        match paused_from {
            Some(State::Shadow) => self.enter(State::Shadow, actor, words),
            Some(State::AwaitingApproval) => self.enter(State::AwaitingApproval, actor, words),
            Some(State::Held) => {
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
        if self.head.state == State::Shadow {
            // Whatever an operator made of it meanwhile.
            out.push(Effect::Shadow { share: self.shadow_share() });
        } else {
            self.head.weight = self.head.policy.steps[self.head.step].weight.in_effect();
            out.push(Effect::SetWeight(self.head.weight));
        }
    }

    pub(super) fn enter(&mut self, to: State, by: &str, why: &str) {
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
        head.lacking_since = None;
        why.clone_into(&mut head.reason);
        head.revision += 1;
        head.updated_at = at;
    }
}
