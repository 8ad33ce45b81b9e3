//! Keys whose requests stay together: each counts once per gate, and the set of them is bounded.
//!
//! Of a key the first bad event of a gate in the whole rollout counts: what follows is not independent of it. When
//! [`KEYS_MAX`] keys are known, half of them are let go: those whose second hash is in the upper half of what is
//! still sampled. Which keys are sampled depends on hashes and on their number alone, never on an arm or an outcome,
//! so what is counted later is as good as before, and a key that was let go never comes back to count again.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::evidence::{Pair, SLOTS};

/// Most keys that are known at once.
pub(super) const KEYS_MAX: usize = 131_072;

/// Facts about each key, as bits: four per meter, one for its first assignment and one for its first answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Kept", into = "Kept")]
pub(super) struct Keys {
    known: HashMap<u64, u64>,
    /// Number of times that the sample was halved.
    halvings: u32,
    /// Keys that changed since they were last taken.
    fresh: HashSet<u64>,
    /// Number of keys that were known at the end; 0 before.
    at_end: usize,
}

/// Keys as they are kept: pairs of key and bits.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Kept {
    halvings: u32,
    keys: Vec<(u64, u64)>,
    #[serde(default)]
    at_end: usize,
}

/// Trials and events per meter, over the keys of the sample.
pub(super) type Recount = [(Pair, Pair); SLOTS];

const TRIED_BASELINE: u64 = 1;
const TRIED_CANDIDATE: u64 = 1 << 1;
const COUNTED: u64 = 1 << 2;
const COUNTED_CANDIDATE: u64 = 1 << 3;
const BITS: usize = 4;
const ASSIGNED: u64 = 1 << (BITS * SLOTS);
const ANSWERED: u64 = ASSIGNED << 1;

impl Keys {
    /// True if the key is in the sample; it is known from then on.
    pub(super) fn admit(&mut self, key: u64) -> bool {
        if !is_sampled(key, self.halvings) {
            return false;
        }
        self.known.entry(key).or_default();
        true
    }

    /// True if there are too many keys: [`Self::halve`] is due.
    pub(super) fn is_full(&self) -> bool {
        self.known.len() > KEYS_MAX
    }

    /// Lets half of the keys go.
    pub(super) fn halve(&mut self) {
        while self.is_full() {
            self.halvings += 1;
            let halvings = self.halvings;
            self.known.retain(|key, _| is_sampled(*key, halvings));
        }
        self.fresh.retain(|key| self.known.contains_key(key));
    }

    /// Share of all keys that are sampled: 1, or a power of one half.
    pub(super) fn share(&self) -> f64 {
        0.5_f64.powi(i32::try_from(self.halvings).unwrap_or(i32::MAX))
    }

    /// True the first time that the key is assigned.
    pub(super) fn is_first(&mut self, key: u64) -> bool {
        self.set(key, ASSIGNED, 0)
    }

    /// True the first time that the key has an answer with a known output.
    pub(super) fn is_answered(&mut self, key: u64) -> bool {
        self.set(key, ANSWERED, 0)
    }

    /// True the first time that the key is tried on this arm by this meter, unless its event was counted before: then
    /// it can have none any more.
    pub(super) fn is_tried(&mut self, slot: usize, key: u64, candidate: bool) -> bool {
        let tried = if candidate { TRIED_CANDIDATE } else { TRIED_BASELINE };
        self.set(key, tried << (BITS * slot), COUNTED << (BITS * slot))
    }

    /// True for the first event of the key that this meter sees.
    pub(super) fn is_counted(&mut self, slot: usize, key: u64, candidate: bool) -> bool {
        let arm = if candidate { COUNTED_CANDIDATE } else { 0 };
        self.set(key, (COUNTED | arm) << (BITS * slot), COUNTED << (BITS * slot))
    }

    /// Sets bits of a known key, unless it has any of `unless`; true if something was new.
    fn set(&mut self, key: u64, bits: u64, unless: u64) -> bool {
        let Some(known) = self.known.get_mut(&key) else { return false };
        if *known & unless != 0 || *known & bits == bits {
            return false;
        }
        *known |= bits;
        self.fresh.insert(key);
        true
    }

    /// Trials and events of the keys that are still in the sample.
    pub(super) fn recount(&self) -> Recount {
        let mut counts = Recount::default();
        for known in self.known.values() {
            for (slot, (trials, events)) in counts.iter_mut().enumerate() {
                let bits = known >> (BITS * slot);
                trials.baseline += bits & TRIED_BASELINE;
                trials.candidate += (bits & TRIED_CANDIDATE) >> 1;
                if bits & COUNTED != 0 {
                    events.add(bits & COUNTED_CANDIDATE != 0, 1);
                }
            }
        }
        counts
    }

    /// Number of keys in the sample.
    pub(super) fn len(&self) -> usize {
        self.known.len().max(self.at_end)
    }

    /// Lets all keys go once nothing is counted any more; their number stays.
    pub(super) fn end(&mut self) {
        let (halvings, at_end) = (self.halvings, self.len());
        *self = Self { halvings, at_end, ..Self::default() };
    }

    /// Every key that is known.
    pub(super) fn all(&self) -> Kept {
        let mut keys: Vec<_> = self.known.iter().map(|(key, bits)| (*key, *bits)).collect();
        keys.sort_unstable();
        Kept { halvings: self.halvings, keys, at_end: self.at_end }
    }

    /// Takes what changed since the last time.
    pub(super) fn take_fresh(&mut self) -> Kept {
        let mut keys: Vec<_> = self.fresh.drain().map(|key| (key, self.known[&key])).collect();
        keys.sort_unstable();
        Kept { halvings: self.halvings, keys, at_end: self.at_end }
    }

    /// Lays changes over what is known.
    pub(super) fn put(&mut self, fresh: Kept) {
        self.known.extend(fresh.keys);
        self.halvings = self.halvings.max(fresh.halvings);
        let halvings = self.halvings;
        self.known.retain(|key, _| is_sampled(*key, halvings));
        if fresh.at_end > 0 {
            self.at_end = fresh.at_end;
            self.end();
        }
    }
}

impl From<Kept> for Keys {
    fn from(kept: Kept) -> Self {
        let mut keys = Self::default();
        keys.put(kept);
        keys
    }
}

impl From<Keys> for Kept {
    fn from(keys: Keys) -> Self {
        let mut known: Vec<_> = keys.known.into_iter().collect();
        known.sort_unstable();
        Self { halvings: keys.halvings, keys: known, at_end: keys.at_end }
    }
}

/// True if the first bits of the key's second hash are all 0.
fn is_sampled(key: u64, halvings: u32) -> bool {
    // The finaliser of SplitMix64: keys that differ in a bit differ in half of these.
    let mixed = key.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)).leading_zeros() >= halvings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_counts_once_per_meter_and_then_is_at_risk_no_more() {
        let mut keys = Keys::default();
        assert!(!keys.is_tried(0, 7, true), "unknown");
        assert!(keys.admit(7) && keys.is_first(7) && !keys.is_first(7));
        assert!(keys.is_tried(0, 7, false) && !keys.is_tried(0, 7, false));
        assert!(keys.is_tried(0, 7, true), "moved to the other arm");
        assert!(keys.is_counted(0, 7, true) && !keys.is_counted(0, 7, false));
        assert!(keys.is_tried(1, 7, true) && keys.is_counted(1, 7, true), "another meter");
        let counts = keys.recount();
        assert_eq!(counts[0], (Pair::new(1, 1), Pair::new(0, 1)));
        assert_eq!(counts[1], (Pair::new(0, 1), Pair::new(0, 1)));
        assert_eq!(counts[2], (Pair::default(), Pair::default()));
    }

    #[test]
    fn too_many_keys_are_halved_and_what_went_stays_away() {
        let mut keys = Keys::default();
        let mut number = 0;
        while !keys.is_full() {
            assert!(keys.admit(number));
            number += 1;
        }
        keys.halve();
        assert_eq!(keys.halvings, 1);
        let left = keys.len();
        assert!(left.abs_diff(KEYS_MAX / 2) < 1000, "{left}");
        let again = (0..number).filter(|key| keys.admit(*key)).count();
        assert_eq!((again, keys.len()), (left, left));
    }

    #[test]
    fn changes_laid_over_each_other_are_the_whole() {
        let (mut keys, mut copy) = (Keys::default(), Keys::default());
        for key in 0..10_u64 {
            keys.admit(key);
            keys.is_first(key);
            keys.is_tried(0, key / 2, key % 2 == 0);
            copy.put(keys.take_fresh());
        }
        assert_eq!(keys.known, copy.known);
        let text = serde_json::to_string(&keys).unwrap();
        assert_eq!(serde_json::from_str::<Keys>(&text).unwrap().known, keys.known);
        keys.end();
        copy.put(keys.take_fresh());
        assert_eq!((copy.len(), copy.known.len()), (10, 0), "the end is a change, too");
        let text = serde_json::to_string(&keys).unwrap();
        assert_eq!(serde_json::from_str::<Keys>(&text).unwrap(), keys);
    }
}
