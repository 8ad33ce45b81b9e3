//! The split of a model's requests between its versions.
//!
//! A keyed hash of the request's sticky key gives a slot, and the slot an arm: the same in every process with the same
//! salt, without a store. Always true:
//! - A request whose arm cannot answer goes to the baseline.
//! - Once a rollout's valve is shut, no further request is assigned to its candidate.
//!
//! Not here: which split is right (`rollout`, `registry`), where a request's key stands (`edge`).

use std::{hash::Hasher as _, sync::Arc};

use siphasher::sip::SipHasher24;

use crate::{
    model::{ArmName, PredictionId, SLOTS, Split, StickyBy, TrafficSpec, VersionId},
    monitor::ArmRecorder,
};

use super::{Evidence, Shadow, Version};

/// A model's arms and how requests are assigned to them.
#[derive(Debug)]
pub struct Traffic {
    spec: Arc<TrafficSpec>,
    split: Split,
    arms: Box<[Arm]>,
    evidence: Option<Arc<Evidence>>,
    shadow: Option<Arc<Shadow>>,
}

/// An arm, resolved against what is loaded.
#[derive(Debug)]
pub struct Arm {
    /// Its name.
    pub name: ArmName,
    /// Its version's number.
    pub id: VersionId,
    /// Its share of the slots.
    pub slots: u32,
    /// Its version, if that is loaded.
    pub(super) version: Option<Arc<Version>>,
    /// Counters of its requests.
    pub(super) recorder: Option<Arc<ArmRecorder>>,
}

/// A key's hash, and so its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hashed(u64);

impl Hashed {
    /// Hashes a key: SipHash-2-4 under the salt (Aumasson and Bernstein, 2012).
    pub fn of(salt: [u64; 2], key: &[u8]) -> Self {
        let mut hasher = SipHasher24::new_with_keys(salt[0], salt[1]);
        hasher.write(key);
        Self(hasher.finish())
    }

    /// The slot of the split.
    pub fn slot(self) -> u32 {
        let slot = (self.0 >> 48) as u32;
        debug_assert!(slot < SLOTS, "16 bits make a slot");
        slot
    }

    /// All 64 bits.
    pub fn bits(self) -> u64 {
        self.0
    }
}

impl Traffic {
    /// The split as it was decided; `loaded` gives an arm's version where it is loaded.
    #[must_use]
    pub fn new(
        spec: Arc<TrafficSpec>,
        evidence: Option<Arc<Evidence>>,
        loaded: impl Fn(VersionId) -> Option<Arc<Version>>,
    ) -> Self {
        let split = spec.split();
        let arm = |(index, (name, arm)): (usize, (ArmName, &crate::model::ArmSpec))| {
            let id = VersionId::new(arm.version);
            let version = loaded(id);
            let recorder = version.as_ref().map(|version| version.parts().recorder.arm(name));
            Arm { name, id, slots: split.slots(index), version, recorder }
        };
        let arms: Box<[Arm]> = spec.names().zip(&spec.arms).enumerate().map(arm).collect();
        let answering = arms.iter().filter_map(|arm| arm.version.as_deref());
        let shadow = spec.shadow.first().and_then(|shadow| {
            let version = loaded(VersionId::new(shadow.version))?;
            Some(Arc::new(Shadow::new(shadow.slots, &version, evidence.clone(), answering)))
        });
        Self { spec, split, arms, evidence, shadow }
    }

    /// The split as it was decided.
    pub fn spec(&self) -> &TrafficSpec {
        &self.spec
    }

    /// The part of a request that keeps it in its arm.
    pub fn sticky(&self) -> &StickyBy {
        &self.spec.sticky
    }

    /// The arms, the baseline first.
    pub fn arms(&self) -> &[Arm] {
        &self.arms
    }

    /// Evidence of requests for the rollout that judges it, if one does.
    pub fn evidence(&self) -> Option<&Arc<Evidence>> {
        self.evidence.as_ref()
    }

    /// The version that gets copies of requests, if it is loaded.
    pub fn shadow(&self) -> Option<&Arc<Shadow>> {
        self.shadow.as_ref()
    }

    /// The shadow that gets a copy of the prediction of this name.
    ///
    /// The name decides, not the sticky key, so that every client is sampled; under a key of its own, so that the
    /// sample is one of each arm.
    pub(super) fn copies(&self, prediction: &PredictionId) -> Option<&Arc<Shadow>> {
        let shadow = self.shadow.as_ref()?;
        let [first, second] = self.spec.salt;
        let hashed = Hashed::of([!first, second], prediction.as_str().as_bytes());
        (hashed.slot() < shadow.slots()).then_some(shadow)
    }

    /// Hashes a key.
    pub fn hash(&self, key: &[u8]) -> Hashed {
        Hashed::of(self.spec.salt, key)
    }

    /// The arm of a key.
    pub fn assign(&self, key: Hashed) -> &Arm {
        &self.arms[self.index(key)]
    }

    /// The index of a key's arm.
    pub(super) fn index(&self, key: Hashed) -> usize {
        let shut = self.evidence.as_ref().is_some_and(|evidence| evidence.is_shut());
        if shut { 0 } else { self.split.arm(key.slot()) }
    }

    /// The arm of this name.
    pub fn named(&self, name: &str) -> Option<&Arm> {
        self.arms.iter().find(|arm| arm.name.as_str() == name)
    }

    /// The candidate's weight among the two arms of a rollout: the share of the slots that are not another arm's.
    pub(super) fn share(&self) -> f64 {
        let slots =
            |index: usize| self.arms.get(index).map_or(0.0, |arm: &Arm| f64::from(arm.slots));
        let both = slots(0) + slots(1);
        if both > 0.0 { slots(1) / both } else { 0.0 }
    }
}

/// Two are equal if requests would go the same way with either.
impl PartialEq for Traffic {
    fn eq(&self, other: &Self) -> bool {
        let same = |a: &Option<Arc<Version>>, b: &Option<Arc<Version>>| match (a, b) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        let evidence = match (&self.evidence, &other.evidence) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        let shadow = |traffic: &Self| traffic.shadow.as_ref().map(|shadow| shadow.serial());
        evidence
            && self.spec == other.spec
            && shadow(self) == shadow(other)
            && self.arms.iter().zip(&other.arms).all(|(a, b)| same(&a.version, &b.version))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ArmSpec, TrafficSource, slots_of};

    fn traffic(weights: &[f64], salt: u64) -> Traffic {
        let names = ["baseline", "canary", "blue"];
        let arms = names.iter().zip(1..).take(weights.len() + 1);
        let slots: Vec<_> = weights.iter().map(|weight| slots_of(*weight)).collect();
        let spec = TrafficSpec {
            source: TrafficSource::Operator,
            rollout: None,
            salt: [salt, 0],
            sticky: StickyBy::default(),
            arms: arms
                .map(|(name, version)| ArmSpec { name: (*name).to_owned(), version })
                .collect(),
            runs: Split::of(&slots).runs().collect(),
            shadow: Vec::new(),
            keep: Vec::new(),
        };
        Traffic::new(Arc::new(spec), None, |_| None)
    }

    #[test]
    fn the_hash_is_siphash_2_4() {
        // The reference vector of the algorithm's authors: key 00..0f, message 00..0e.
        let salt = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        let message: Vec<u8> = (0..15).collect();
        assert_eq!(Hashed::of(salt, &message).bits(), 0xa129_ca61_49be_45e5);
    }

    #[test]
    fn shares_are_met_within_three_sigma() {
        let (traffic, count) = (traffic(&[0.1, 0.02], 7), 200_000u32);
        let mut seen = [0u32; 3];
        for key in 0..count {
            seen[traffic.index(traffic.hash(&key.to_le_bytes()))] += 1;
        }
        for (index, seen) in seen.iter().enumerate() {
            let p = f64::from(traffic.arms()[index].slots) / f64::from(SLOTS);
            let sigma = (f64::from(count) * p * (1.0 - p)).sqrt();
            let off = (f64::from(*seen) - f64::from(count) * p).abs();
            assert!(off <= 3.0 * sigma, "arm {index}: {seen}, off by {off}, sigma {sigma}");
        }
    }

    #[test]
    fn a_growing_weight_moves_nobody_out_and_another_salt_everybody() {
        let (before, after) = (traffic(&[0.05], 1), traffic(&[0.2], 1));
        let other = traffic(&[0.05], 2);
        let mut met_again = 0;
        for key in 0..20_000u32 {
            let key = key.to_le_bytes();
            let is_in =
                |traffic: &Traffic| traffic.assign(traffic.hash(&key)).name == ArmName::CANARY;
            assert!(!is_in(&before) || is_in(&after));
            met_again += u32::from(is_in(&before) && is_in(&other));
        }
        assert!((20..90).contains(&met_again), "5 % of 5 % of 20,000 are 50: {met_again}");
    }

    #[test]
    fn a_shut_valve_sends_everything_to_the_baseline() {
        let mut traffic = traffic(&[0.5], 1);
        let evidence = Arc::new(Evidence::new(1));
        traffic.evidence = Some(Arc::clone(&evidence));
        let canaries = |traffic: &Traffic| {
            let key = |key: &u32| traffic.assign(traffic.hash(&key.to_le_bytes())).name;
            (0..100u32).filter(|k| key(k) == ArmName::CANARY).count()
        };
        assert!(canaries(&traffic) > 20);
        evidence.shut();
        assert_eq!(canaries(&traffic), 0);
    }
}
