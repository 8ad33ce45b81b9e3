//! Counts of the copies of requests that one version got.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counts of the copies that one version got; its answers to them are compared and never returned.
#[derive(Debug, Default)]
pub struct ShadowRecorder {
    requests: AtomicU64,
    dropped: AtomicU64,
    disagreements: AtomicU64,
    failed: AtomicU64,
    argmax_flips: AtomicU64,
    label_flips: AtomicU64,
    /// Bits of the largest differences: numbers from 0 to infinity have the order of their bits.
    max_absolute: AtomicU64,
    max_relative: AtomicU64,
}

/// Difference between one answer to a copy and the answer that a client got.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ShadowSample {
    /// True if the two disagree.
    pub disagrees: bool,
    /// True if there was no answer to compare.
    pub failed: bool,
    /// Rows whose largest element is another.
    pub argmax_flips: u64,
    /// Rows with another label.
    pub label_flips: u64,
    /// The largest absolute difference, from 0 to infinity.
    pub max_absolute: f64,
    /// The largest relative difference, from 0 to infinity.
    pub max_relative: f64,
}

/// Totals of a version's copies so far.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ShadowTotals {
    /// Copies that were answered and compared, or failed.
    pub requests: u64,
    /// Copies that were not run.
    pub dropped: u64,
    /// Copies whose answers disagree, those that failed included; at most `requests`.
    pub disagreements: u64,
    /// Copies without an answer.
    pub failed: u64,
    /// Rows whose largest element is another.
    pub argmax_flips: u64,
    /// Rows with another label.
    pub label_flips: u64,
    /// The largest absolute difference, from 0 to infinity.
    pub max_absolute: f64,
    /// The largest relative difference, from 0 to infinity.
    pub max_relative: f64,
}

impl ShadowTotals {
    /// Adds another version's.
    pub(super) fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.dropped += other.dropped;
        self.disagreements += other.disagreements;
        self.failed += other.failed;
        self.argmax_flips += other.argmax_flips;
        self.label_flips += other.label_flips;
        self.max_absolute = self.max_absolute.max(other.max_absolute);
        self.max_relative = self.max_relative.max(other.max_relative);
    }
}

impl ShadowRecorder {
    /// Counts a copy that was run.
    pub fn compared(&self, sample: &ShadowSample) {
        debug_assert!(sample.max_absolute >= 0.0 && sample.max_relative >= 0.0, "{sample:?}");
        self.requests.fetch_add(1, Relaxed);
        self.argmax_flips.fetch_add(sample.argmax_flips, Relaxed);
        self.label_flips.fetch_add(sample.label_flips, Relaxed);
        self.max_absolute.fetch_max(sample.max_absolute.to_bits(), Relaxed);
        self.max_relative.fetch_max(sample.max_relative.to_bits(), Relaxed);
        self.failed.fetch_add(u64::from(sample.failed), Relaxed);
        self.disagreements.fetch_add(u64::from(sample.disagrees), Relaxed);
    }

    /// Counts a copy that is not run.
    pub fn dropped(&self) {
        self.dropped.fetch_add(1, Relaxed);
    }

    /// Totals so far.
    pub fn totals(&self) -> ShadowTotals {
        let requests = self.requests.load(Relaxed);
        ShadowTotals {
            requests,
            dropped: self.dropped.load(Relaxed),
            disagreements: self.disagreements.load(Relaxed).min(requests),
            failed: self.failed.load(Relaxed),
            argmax_flips: self.argmax_flips.load(Relaxed),
            label_flips: self.label_flips.load(Relaxed),
            max_absolute: f64::from_bits(self.max_absolute.load(Relaxed)),
            max_relative: f64::from_bits(self.max_relative.load(Relaxed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_differences_stay() {
        let recorder = ShadowRecorder::default();
        for (absolute, relative) in [(0.5, 2.0), (f64::INFINITY, 0.0), (7.0, 1e-9)] {
            let sample = ShadowSample {
                max_absolute: absolute,
                max_relative: relative,
                disagrees: relative > 1.0,
                ..ShadowSample::default()
            };
            recorder.compared(&sample);
        }
        let totals = recorder.totals();
        assert_eq!((totals.max_absolute, totals.max_relative), (f64::INFINITY, 2.0));
        assert_eq!((totals.requests, totals.disagreements, totals.dropped), (3, 1, 0));
    }
}
