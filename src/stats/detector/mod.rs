//! Drift of a stream against a reference: a detector that promises how rarely it is wrong.
//!
//! For each alternative `j` (a likelihood ratio `L_j` of bins, see `alternatives`) the evidence of Shiryaev and
//! Roberts is kept, `M_j <- (M_j + dt) * product of L_j over the values of the interval`: the sum, over all moments
//! at which the drift could have begun, of the likelihood ratio since. As long as the reference holds,
//! `M_j(t) - t` is a martingale, so if an alarm is raised once the mean of all `M_j` reaches `A`, the expected time
//! until a false one is at least `A`, in the unit of `dt`, at any rate of values and however features depend on each
//! other (Shin, Ramdas & Rinaldo, "E-detectors: a nonparametric framework for sequential change detection",
//! arXiv 2203.03532). It takes that values, given the past, follow the reference: under seasons or autocorrelation
//! the promise does not hold.
//! Always true:
//! - The state is finite, whatever counts come; a clamp only ever lowers evidence, or moves it at the floor.
//! - Counts may be split over workers in any way: the sum of an interval decides.
//!
//! Not here: time (the caller's seconds), which threshold, and what follows from an alarm.

use libm::{exp, log};

use super::{
    alternatives::Alternatives,
    special::{mean_log_e, number},
};

mod plug_in;

pub use plug_in::PlugIn;

/// Logarithm of no evidence: what stands for 0.
pub const LOG_FLOOR: f64 = -690.0;

/// The largest evidence kept.
const EVIDENCE_MAX: f64 = 1e299;

/// Evidence of one feature, for each of its alternatives.
///
/// What begins at each moment is `w_j dt` with the alternative's weight: as weights are 1 on average, the mean over all
/// keeps the promise.
#[derive(Debug, Clone, PartialEq)]
pub struct ShiryaevRoberts {
    /// `M_j`, from 0 on.
    evidence: Vec<f64>,
    /// Rise of the log-likelihood ratio of each alternative above its lowest point (Page's statistic).
    rises: Vec<f64>,
    /// The time of that lowest point.
    lowest: Vec<f64>,
    /// Room for the sums of an interval; zeros between intervals.
    sums: Vec<f64>,
}

impl ShiryaevRoberts {
    /// No evidence, for a number of alternatives.
    pub fn new(alternatives: usize) -> Self {
        let zeros = || vec![0.0; alternatives];
        Self { evidence: zeros(), rises: zeros(), lowest: zeros(), sums: zeros() }
    }

    /// Takes in the counts of an interval that ended at `now`, in bins. `dt` is the time since the last interval that
    /// had values, this one included; `now` has the same unit. An interval without values changes nothing, as
    /// silence is no evidence.
    ///
    /// Costs a multiplication per alternative for each bin with values, and an exponential per alternative.
    ///
    /// # Panics
    ///
    /// If the alternatives are not as many as those of the state, or the counts not as many as bins.
    pub fn advance(&mut self, alternatives: &Alternatives, counts: &[u64], dt: f64, now: f64) {
        assert_eq!(alternatives.len(), self.evidence.len(), "alternatives of another feature");
        assert_eq!(alternatives.bins(), counts.len(), "counts of another feature");
        let mut is_silent = true;
        for (bin, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            is_silent = false;
            let count = number(*count);
            for (sum, log_ratio) in self.sums.iter_mut().zip(alternatives.row(bin)) {
                *sum += count * log_ratio;
            }
        }
        if is_silent {
            return;
        }
        let dt = if dt > 0.0 { dt } else { 0.0 };
        let weights = alternatives.weights();
        for ((evidence, sum), weight) in self.evidence.iter_mut().zip(&self.sums).zip(weights) {
            *evidence = grown(*evidence + weight * dt, *sum);
        }
        for ((rise, lowest), sum) in self.rises.iter_mut().zip(&mut self.lowest).zip(&self.sums) {
            if *rise <= 0.0 {
                *lowest = now - dt;
            }
            *rise = (*rise + sum).min(EVIDENCE_MAX);
            if *rise <= 0.0 {
                (*rise, *lowest) = (0.0, now);
            }
        }
        self.sums.fill(0.0);
    }

    /// Natural logarithm of the mean evidence over alternatives; [`LOG_FLOOR`] where there is none. An alarm at `ln A`
    /// and above has an expected time to a false one of at least `A`.
    pub fn log_m(&self) -> f64 {
        let share = 1.0 / number(self.evidence.len().max(1) as u64);
        logarithm(self.evidence.iter().map(|evidence| evidence * share).sum())
    }

    /// The alternative with the most evidence, the natural logarithm of its evidence, and the time at which it began
    /// to rise: the estimate of when the drift began (Page, 1954). The first of equals; alternative 0 if there is none.
    pub fn likeliest(&self) -> (usize, f64, f64) {
        let mut best = 0;
        for (index, evidence) in self.evidence.iter().enumerate() {
            if *evidence > self.evidence[best] {
                best = index;
            }
        }
        let at = |values: &[f64]| values.get(best).copied().unwrap_or(0.0);
        (best, logarithm(at(&self.evidence)), at(&self.lowest))
    }

    /// Forgets all evidence.
    pub fn reset(&mut self) {
        for values in [&mut self.evidence, &mut self.rises, &mut self.lowest] {
            values.fill(0.0);
        }
    }

    /// The state, to be kept: evidence, rises and times of the lowest points, one number per alternative.
    pub fn parts(&self) -> [&[f64]; 3] {
        [&self.evidence, &self.rises, &self.lowest]
    }

    /// The state from its parts; `None` if they differ in length or hold numbers that no state has.
    pub fn from_parts([evidence, rises, lowest]: [Vec<f64>; 3]) -> Option<Self> {
        let fits = evidence.len() == rises.len() && evidence.len() == lowest.len();
        let sound = evidence.iter().chain(&rises).all(|value| (0.0..=EVIDENCE_MAX).contains(value));
        let sums = vec![0.0; evidence.len()];
        (fits && sound && lowest.iter().all(|time| time.is_finite())).then_some(Self {
            evidence,
            rises,
            lowest,
            sums,
        })
    }
}

/// `evidence * e^sum`, within 0 and the largest.
fn grown(evidence: f64, sum: f64) -> f64 {
    // Beyond either the product is 0, or the largest.
    (evidence * exp(sum.clamp(-1400.0, 700.0))).min(EVIDENCE_MAX)
}

fn logarithm(evidence: f64) -> f64 {
    log(evidence).max(LOG_FLOOR)
}

/// The logarithm of the mean of evidence given by its logarithms, such as that of several features; [`LOG_FLOOR`]
/// of none. The mean keeps the promise of its parts, however they depend on each other.
pub fn mean_log(values: &[f64]) -> f64 {
    if values.is_empty() { LOG_FLOOR } else { mean_log_e(values).max(LOG_FLOOR) }
}

/// The features that drifted, by descending evidence: the `k` largest for the largest `k` with
/// `M_[k] >= K A / k` among `K` features, all as logarithms.
///
/// Under any dependence the expected share of false ones among them, at any time, is at most that time divided by
/// `A`: the error grows at most in proportion to patience. It is not a false discovery rate, which no detector with
/// a finite run length controls (Dandapanthula & Ramdas, "Multiple testing in multi-stream sequential change
/// detection", arXiv 2501.04130).
pub fn e_d_bh(log_m: &[f64], log_a: f64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..log_m.len()).collect();
    order.sort_by(|a, b| log_m[*b].total_cmp(&log_m[*a]).then(a.cmp(b)));
    let log_features = log(number(log_m.len() as u64));
    let reached = |k: &usize| log_m[order[*k - 1]] >= log_a + log_features - log(number(*k as u64));
    let reported = (1..=order.len()).rev().find(reached).unwrap_or(0);
    order.truncate(reported);
    order
}

#[cfg(test)]
mod tests;
