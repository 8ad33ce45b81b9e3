//! The ledger: everything that the decision saw, in order, small enough to keep and to send.
//!
//! An entry of evidence has the requests of one share and the events of each meter as run lengths of `b` and `c` in
//! the order of assignment (`"b3c1b2"`), and the number of answers in each bin of outputs; it closes at each decision,
//! else each second. What changed the state and what operators asked for are entries of their own. Always true:
//! - Played back, the entries give every sum that the decision had, and the order of events within a meter.
//! - It is bounded: beyond [`ENTRIES_MAX`] entries or [`BYTES_MAX`] bytes the older half is thinned. Neighbours of one
//!   step and share become one entry, whose events lose their order: those that speak for the candidate come first, so
//!   that playing them back never reaches further than the entry's end. Restarts, which change no sum, are left out.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::{Deserialize, Serialize};

use crate::model::Moment;

use super::{
    evidence::{Evidence, Pair, SLOTS, direction, slot_name, slots_of},
    outputs::BINS,
    policy::{Gate, Mode, Policy},
    seen::Threshold,
    state::{Order, State},
};
use crate::stats::Direction;

/// Most entries before the older half is thinned.
pub(super) const ENTRIES_MAX: usize = 2048;
/// Most bytes of run lengths and names before the older half is thinned.
pub(super) const BYTES_MAX: usize = 1 << 20;
/// Bytes of run lengths after which an entry closes early.
const ENTRY_BYTES_MAX: usize = 4096;
/// Bytes that an entry takes beside its run lengths, roughly.
const ENTRY_BYTES: usize = 128;

/// An entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Counts entries of a rollout from 1; of thinned entries the first.
    pub seq: u64,
    /// Time at which it closed.
    pub at: Moment,
    /// Event or evidence that it records.
    #[serde(flatten)]
    pub body: Body,
}

/// Contents of an entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Body {
    /// The state or the step changed.
    Transition {
        /// States before and after, and the evidence at that moment.
        transition: Transition,
    },
    /// An operator asked for something.
    Operator {
        /// Order, its author and the reason.
        operator: Operator,
    },
    /// Quantiles of the baseline were frozen.
    Thresholds {
        /// Each of them.
        thresholds: Vec<Threshold>,
    },
    /// The sample of keys was halved: trials and events are now over the keys that are left.
    Sampled {
        /// Share and counts of the keys that are left.
        sampled: Sampled,
    },
    /// The process started again: what is counted next begins after another warm-up.
    Restarted {
        /// Description of what was lost.
        restarted: String,
    },
    /// Evidence at one share.
    Evidence(Counted),
}

/// A change of state or step, with what every gate said at that moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Transition {
    /// The state before.
    pub from: State,
    /// The state after.
    pub to: State,
    /// The step after, counted from 0.
    pub step: usize,
    /// The candidate's share after.
    pub weight: f64,
    /// Author: `tidegate` or an operator.
    pub by: String,
    /// Reason, for people.
    pub why: String,
    /// The gate that fired, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<Gate>,
    /// Way in which a step was left, where by other means than its conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waived: Option<String>,
    /// Seconds of the step that counted so far.
    pub elapsed_seconds: f64,
    /// Evidence of each gate.
    pub gates: BTreeMap<Gate, Said>,
}

/// Evidence of a gate at a transition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Said {
    /// Natural logarithm of its e-process.
    pub log_e: f64,
    /// Trials and events of each of its meters, baseline and candidate, by the meter's name.
    pub counts: BTreeMap<String, [u64; 4]>,
}

/// Order of an operator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Operator {
    /// Order given.
    pub order: Order,
    /// Author of the order.
    pub by: String,
    /// Reason, in the author's words; may be empty.
    pub reason: String,
}

/// Trials and events after the sample of keys was halved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sampled {
    /// Share of all keys that are left.
    pub share: f64,
    /// Trials by the meter's name.
    pub trials: BTreeMap<String, Pair>,
    /// Events by the meter's name.
    pub events: BTreeMap<String, Pair>,
}

/// Evidence at one share.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Counted {
    /// The step.
    pub step: usize,
    /// The candidate's share as of assignment.
    pub weight: f64,
    /// Requests that were judged.
    pub requests: Pair,
    /// First assignments of units, where they are not the judged requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assigned: Option<Pair>,
    /// Units that could have had an event, by meter, where they are not the judged requests (of `errors`, `slow`,
    /// `invalid_output` and `fewer_outcomes`) or none (of the others).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub trials: BTreeMap<String, Pair>,
    /// Events by meter, as run lengths of `b` (baseline) and `c` (candidate).
    pub events: BTreeMap<String, String>,
    /// Copied requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copies: Option<Copies>,
    /// Answers by the bin of their output.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub outputs: BTreeMap<String, Pair>,
    /// True if it is outcomes that came later, credited with the share of their assignment.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub outcomes: bool,
}

/// Copied requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Copies {
    /// Compared.
    pub compared: u64,
    /// Of these, with other outputs.
    pub differing: u64,
    /// Dropped before they were compared.
    pub dropped: u64,
}

/// Events in order, as runs of one arm.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Runs(Vec<(bool, u64)>);

/// Evidence that no entry has yet.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Open {
    pub(super) step: usize,
    pub(super) weight: f64,
    pub(super) outcomes: bool,
    pub(super) requests: Pair,
    pub(super) assigned: Pair,
    pub(super) trials: [Pair; SLOTS],
    pub(super) runs: [Runs; SLOTS],
    pub(super) copies: Copies,
    #[serde(default)]
    pub(super) outputs: [Pair; BINS],
    pub(super) runs_count: usize,
}

/// All entries of a rollout.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Ledger {
    entries: Vec<Entry>,
    last_seq: u64,
    /// The last entry that was taken by [`Self::take_fresh`].
    #[serde(skip)]
    taken: u64,
    /// Bytes that the entries since the last thinning take, roughly.
    #[serde(skip)]
    bytes: usize,
}

impl Runs {
    pub(super) fn push(&mut self, candidate: bool, count: u64) {
        match self.0.last_mut() {
            Some((arm, length)) if *arm == candidate => *length += count,
            _ if count > 0 => self.0.push((candidate, count)),
            _ => {}
        }
    }

    /// Runs in order: true for the candidate, and their lengths.
    pub(super) fn iter(&self) -> impl Iterator<Item = (bool, u64)> + '_ {
        self.0.iter().copied()
    }

    /// Reads `"b3c1b2"`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut runs = Self::default();
        let mut rest = text;
        while !rest.is_empty() {
            let (arm, after) = rest.split_at_checked(1)?;
            let digits = after.bytes().take_while(u8::is_ascii_digit).count();
            let count = after[..digits].parse().ok().filter(|count| *count > 0)?;
            runs.0.push((["b", "c"].iter().position(|name| *name == arm)? == 1, count));
            rest = &after[digits..];
        }
        Some(runs)
    }

    fn text(&self) -> String {
        self.0.iter().fold(String::new(), |mut text, (candidate, count)| {
            let arm = if *candidate { 'c' } else { 'b' };
            write!(text, "{arm}{count}").expect("writing to a string succeeds");
            text
        })
    }

    fn totals(&self) -> Pair {
        let mut totals = Pair::default();
        for (candidate, count) in self.iter() {
            totals.add(candidate, count);
        }
        totals
    }
}

/// Trials of a meter where the entry does not say: those that nearly every judged request is one of.
pub(super) fn usual_trials(slot: usize, requests: Pair) -> Pair {
    let of_every_request = slot <= super::evidence::INVALID || slot == super::evidence::OUTCOMES;
    if of_every_request { requests } else { Pair::default() }
}

impl Open {
    /// True if nothing was counted.
    pub(super) fn is_empty(&self) -> bool {
        let nothing = Self {
            step: self.step,
            weight: self.weight,
            outcomes: self.outcomes,
            ..Self::default()
        };
        *self == nothing
    }

    /// True if evidence at another step or share must go into another entry, or this one is long.
    pub(super) fn is_other(&self, step: usize, weight: f64, outcomes: bool) -> bool {
        self.step != step
            || self.weight.to_bits() != weight.to_bits()
            || self.outcomes != outcomes
            || self.runs_count > ENTRY_BYTES_MAX / 4
    }

    pub(super) fn event(&mut self, slot: usize, candidate: bool) {
        let before = self.runs[slot].0.len();
        self.runs[slot].push(candidate, 1);
        self.runs_count += self.runs[slot].0.len() - before;
    }

    /// The entry of what was counted; `is_on` says which meters the policy has.
    pub(super) fn counted(&self, policy: &Policy, is_on: impl Fn(usize) -> bool) -> Counted {
        let mut counted = Counted {
            step: self.step,
            weight: self.weight,
            requests: self.requests,
            assigned: (self.assigned != self.requests).then_some(self.assigned),
            copies: (self.copies != Copies::default()).then_some(self.copies),
            outcomes: self.outcomes,
            ..Counted::default()
        };
        for slot in (0..SLOTS).filter(|slot| is_on(*slot)) {
            if self.trials[slot] != usual_trials(slot, self.requests) {
                counted.trials.insert(slot_name(slot, policy), self.trials[slot]);
            }
            if !self.runs[slot].0.is_empty() {
                counted.events.insert(slot_name(slot, policy), self.runs[slot].text());
            }
        }
        counted
    }
}

impl Entry {
    /// The kind of evidence: 0 of requests, 1 of outcomes; `None` for an entry that is none.
    fn kind(&self) -> Option<usize> {
        match &self.body {
            Body::Evidence(counted) => Some(usize::from(counted.outcomes)),
            _ => None,
        }
    }

    fn bytes(&self) -> usize {
        match &self.body {
            Body::Evidence(counted) => {
                let texts = counted.events.iter().map(|(name, runs)| name.len() + runs.len());
                let trials = counted.trials.keys().map(|name| name.len() + 40);
                let outputs = counted.outputs.keys().map(|name| name.len() + 40);
                ENTRY_BYTES + texts.sum::<usize>() + trials.sum::<usize>() + outputs.sum::<usize>()
            }
            _ => ENTRY_BYTES,
        }
    }
}

impl Ledger {
    /// Entries, the oldest first.
    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Writes an entry.
    pub(super) fn push(&mut self, policy: &Policy, at: Moment, body: Body) {
        self.last_seq += 1;
        self.lay(policy, Entry { seq: self.last_seq, at, body });
    }

    fn lay(&mut self, policy: &Policy, entry: Entry) {
        self.bytes += entry.bytes();
        self.entries.push(entry);
        if self.entries.len() > ENTRIES_MAX || self.bytes > BYTES_MAX {
            self.thin(policy);
            self.bytes = self.entries.iter().map(Entry::bytes).sum();
        }
    }

    /// Puts an entry that was taken by [`Self::take_fresh`] behind the others.
    pub(super) fn put(&mut self, policy: &Policy, entry: Entry) {
        if entry.seq <= self.last_seq {
            return;
        }
        self.last_seq = entry.seq;
        self.taken = entry.seq;
        self.lay(policy, entry);
    }

    /// Takes copies of the entries since the last time.
    pub(super) fn take_fresh(&mut self) -> Vec<Entry> {
        let from = self.entries.partition_point(|entry| entry.seq <= self.taken);
        self.taken = self.last_seq;
        self.entries[from..].to_vec()
    }

    /// Merges neighbours of one step and share in the older half.
    fn thin(&mut self, policy: &Policy) {
        let half = self.entries.len() / 2;
        let newer = self.entries.split_off(half);
        let mut thinned: Vec<Entry> = Vec::with_capacity(half);
        let mut merged = [false; 2];
        for entry in std::mem::take(&mut self.entries) {
            if matches!(entry.body, Body::Restarted { .. }) {
                continue;
            }
            let Some(kind) = entry.kind() else {
                merged = [false; 2];
                thinned.push(entry);
                continue;
            };
            // Where requests and outcomes take turns, neighbours are those of one kind: a meter hears of one only.
            let last = thinned.last().and_then(Entry::kind);
            let back = match last {
                Some(last) if last == kind => Some(1),
                Some(_) if thinned.iter().rev().nth(1).and_then(Entry::kind) == Some(kind) => {
                    Some(2)
                }
                _ => None,
            };
            let before = back.and_then(|back| thinned.iter_mut().rev().nth(back - 1));
            // Pairs, so that every thinning halves the resolution and no more.
            let joined = !merged[kind] && before.is_some_and(|before| join(policy, before, &entry));
            if !joined {
                thinned.push(entry);
            }
            merged[kind] = joined;
        }
        thinned.extend(newer);
        self.entries = thinned;
    }
}

/// Adds an entry to the one before it, if both are evidence of one step and share.
fn join(policy: &Policy, entry: &mut Entry, next: &Entry) -> bool {
    let (Body::Evidence(into), Body::Evidence(from)) = (&mut entry.body, &next.body) else {
        return false;
    };
    if into.step != from.step
        || into.weight.to_bits() != from.weight.to_bits()
        || into.outcomes != from.outcomes
    {
        return false;
    }
    let mut sum = Counted {
        step: into.step,
        weight: into.weight,
        requests: into.requests.plus(from.requests),
        outcomes: into.outcomes,
        ..Counted::default()
    };
    let assigned = |counted: &Counted| counted.assigned.unwrap_or(counted.requests);
    let both = assigned(into).plus(assigned(from));
    sum.assigned = (both != sum.requests).then_some(both);
    let copies = [into.copies, from.copies].map(Option::unwrap_or_default);
    let copies = Copies {
        compared: copies[0].compared + copies[1].compared,
        differing: copies[0].differing + copies[1].differing,
        dropped: copies[0].dropped + copies[1].dropped,
    };
    sum.copies = (copies != Copies::default()).then_some(copies);
    sum.outputs = std::mem::take(&mut into.outputs);
    for (name, counts) in &from.outputs {
        let into = sum.outputs.entry(name.clone()).or_default();
        *into = into.plus(*counts);
    }
    for slot in 0..SLOTS {
        let name = slot_name(slot, policy);
        let trials = |counted: &Counted| {
            counted.trials.get(&name).copied().unwrap_or(usual_trials(slot, counted.requests))
        };
        let tried = trials(into).plus(trials(from));
        if tried != usual_trials(slot, sum.requests) {
            sum.trials.insert(name.clone(), tried);
        }
        let totals = |counted: &Counted| {
            let runs = counted.events.get(&name).and_then(|runs| Runs::parse(runs));
            runs.map_or(Pair::default(), |runs| runs.totals())
        };
        let totals = totals(into).plus(totals(from));
        let mut runs = Runs::default();
        let candidate_first = direction(slot) == Direction::Fewer;
        runs.push(
            candidate_first,
            if candidate_first { totals.candidate } else { totals.baseline },
        );
        runs.push(
            !candidate_first,
            if candidate_first { totals.baseline } else { totals.candidate },
        );
        if !runs.0.is_empty() {
            sum.events.insert(name, runs.text());
        }
    }
    *into = sum;
    entry.at = next.at;
    true
}

/// Returns the evidence of every gate that is on; of `output_shift` once outputs were counted.
pub(super) fn said(policy: &Policy, evidence: &Evidence) -> BTreeMap<Gate, Said> {
    let on = Gate::ALL.into_iter().filter(|gate| policy.gate(*gate).mode != Mode::Off);
    let is_said = |gate: &Gate| *gate != Gate::OutputShift || !evidence.outputs.is_empty();
    let gates = on.filter(is_said).map(|gate| {
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
        if gate == Gate::OutputShift {
            counts.extend(evidence.outputs.counts());
        }
        (gate, Said { log_e: evidence.log_e(policy, gate), counts })
    });
    gates.collect()
}

/// Trials that an entry has of a meter.
pub(super) fn trials_of(entry: &Counted, slot: usize, policy: &Policy) -> Pair {
    let said = entry.trials.get(&slot_name(slot, policy)).copied();
    said.unwrap_or_else(|| usual_trials(slot, entry.requests))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::rollout::evidence::{ERRORS, LABELS, OUTCOMES};

    #[test]
    fn runs_are_read_as_they_are_written() {
        for text in ["", "b3c1b2", "c18446744073709551615"] {
            assert_eq!(Runs::parse(text).unwrap().text(), text);
        }
        for wrong in ["b", "b0", "d1", "3b", "b1 c1", "b-1", "c18446744073709551616", "é1"] {
            assert_eq!(Runs::parse(wrong), None, "{wrong}");
        }
    }

    fn open(policy: &Policy, ledger: &mut Ledger, second: u64) {
        let mut open = Open { weight: 0.25, requests: Pair::new(3, 1), ..Open::default() };
        open.assigned = open.requests;
        for slot in 0..SLOTS {
            open.trials[slot] = usual_trials(slot, open.requests);
        }
        open.trials[LABELS] = Pair::new(1, 0);
        open.event(ERRORS, true);
        open.event(ERRORS, false);
        open.event(OUTCOMES, false);
        open.event(OUTCOMES, true);
        let body = Body::Evidence(open.counted(policy, |_| true));
        ledger.push(policy, Moment::at(Duration::from_secs(second)), body);
    }

    #[test]
    fn full_ledger_merges_old_neighbours_and_keeps_every_sum() {
        let (policy, mut ledger) = (Policy::default(), Ledger::default());
        let count = 3 * ENTRIES_MAX as u64;
        for second in 0..count {
            open(&policy, &mut ledger, second);
        }
        assert!(ledger.entries().len() <= ENTRIES_MAX);
        let (mut requests, mut labels, mut errors) = (Pair::default(), 0, Pair::default());
        for entry in ledger.entries() {
            let Body::Evidence(counted) = &entry.body else { panic!("{entry:?}") };
            requests = requests.plus(counted.requests);
            labels += counted.trials["wrong_label"].baseline;
            errors = errors.plus(Runs::parse(&counted.events["errors"]).unwrap().totals());
            assert_eq!(counted.assigned, None, "as many as requests");
        }
        assert_eq!(requests, Pair::new(3 * count, count));
        assert_eq!((labels, errors), (count, Pair::new(count, count)));

        let Body::Evidence(old) = &ledger.entries()[0].body else { panic!() };
        assert!(old.events["errors"].starts_with('b'), "an error of the baseline is good for it");
        assert!(old.events["fewer_outcomes"].starts_with('c'), "an outcome as well");
        let last = ledger.entries().last().unwrap();
        assert_eq!(last.seq, count);
        let text = serde_json::to_string(&last).unwrap();
        assert_eq!(serde_json::from_str::<Entry>(&text).unwrap(), *last, "{text}");
    }

    #[test]
    fn outcomes_that_take_turns_with_requests_are_merged_as_well() {
        let (policy, mut ledger) = (Policy::default(), Ledger::default());
        let count = 3 * ENTRIES_MAX as u64;
        for second in 0..count {
            open(&policy, &mut ledger, second);
            let mut outcomes = Open { weight: 0.25, outcomes: true, ..Open::default() };
            outcomes.trials[LABELS] = Pair::new(1, 1);
            outcomes.event(LABELS, second % 2 == 0);
            let body = Body::Evidence(outcomes.counted(&policy, |_| true));
            ledger.push(&policy, Moment::at(Duration::from_secs(second)), body);
        }
        assert!(ledger.entries().len() <= ENTRIES_MAX, "{}", ledger.entries().len());
        let (mut requests, mut labels) = (Pair::default(), Pair::default());
        for entry in ledger.entries() {
            let Body::Evidence(counted) = &entry.body else { panic!("{entry:?}") };
            requests = requests.plus(counted.requests);
            if let Some(runs) = counted.events.get("wrong_label") {
                assert!(counted.outcomes);
                labels = labels.plus(Runs::parse(runs).unwrap().totals());
            }
        }
        assert_eq!(requests, Pair::new(3 * count, count));
        assert_eq!(labels, Pair::new(count / 2, count / 2));
    }

    #[test]
    fn fresh_entries_laid_behind_each_other_are_the_same_ledger() {
        let (policy, mut ledger, mut copy) =
            (Policy::default(), Ledger::default(), Ledger::default());
        for second in 0..2 * ENTRIES_MAX as u64 {
            open(&policy, &mut ledger, second);
            if second % 7 == 0 {
                for entry in ledger.take_fresh() {
                    copy.put(&policy, entry);
                }
            }
        }
        ledger.take_fresh().into_iter().for_each(|entry| copy.put(&policy, entry));
        assert!(copy.take_fresh().is_empty(), "what was read back is written already");
        assert_eq!(copy.entries(), ledger.entries());
    }
}
