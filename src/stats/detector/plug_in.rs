//! The detector for features whose drift nobody can picture: it bets on the values that came last.

use libm::{exp, log, log1p};

use super::{
    super::{alternatives::Correction, special::number},
    EVIDENCE_MAX, grown, logarithm,
};

/// Weights of the newest value in the histograms that [`PlugIn`] bets on.
pub(super) const DECAYS: [f64; 3] = [1.0 / 16.0, 1.0 / 64.0, 1.0 / 256.0];

/// Share of the reference in each of its bets.
const SHRINK: f64 = 0.1;

/// A detector without alternatives: it bets on the values that came last.
///
/// The likelihood ratio of an interval is that of a decayed histogram of what came before, a tenth of it the
/// reference, to the reference; the evidence is the mean over three decays, of 16, 64 and 256 values. It needs no
/// idea of what a drift looks like, which suits cells of clusters, and takes 1.6 to 1.9 times as many values to see
/// a shift that [`ShiryaevRoberts`] has an alternative for. The promise is the same.
#[derive(Debug, Clone, PartialEq)]
pub struct PlugIn {
    masses: Vec<f64>,
    correction: Correction,
    /// Shares of bins among the last values, for each decay.
    histograms: [Vec<f64>; 3],
    evidence: [f64; 3],
}

impl PlugIn {
    /// No evidence, for a reference with these masses, all positive.
    ///
    /// # Panics
    ///
    /// If a mass is not positive.
    pub fn new(masses: Vec<f64>, correction: Correction) -> Self {
        assert!(masses.iter().all(|mass| *mass > 0.0), "a bin without mass");
        let histograms = std::array::from_fn(|_| masses.clone());
        Self { masses, correction, histograms, evidence: [0.0; 3] }
    }

    /// Takes in the counts of an interval; `dt` as for [`ShiryaevRoberts::advance`]. All values of an interval are
    /// judged by what came before it. Costs a few operations per bin and decay, and a logarithm for each bin with
    /// values.
    ///
    /// # Panics
    ///
    /// If the counts are not as many as bins.
    pub fn advance(&mut self, counts: &[u64], dt: f64) {
        assert_eq!(self.masses.len(), counts.len(), "counts of another feature");
        let values = number(counts.iter().fold(0, |sum, count| sum.saturating_add(*count)));
        if values == 0.0 {
            return;
        }
        let dt = if dt > 0.0 { dt } else { 0.0 };
        let parts = DECAYS.iter().zip(&mut self.histograms).zip(&mut self.evidence);
        for ((decay, histogram), evidence) in parts {
            let (mut sum, mut squares) = (0.0, 0.0);
            for ((mass, share), count) in self.masses.iter().zip(&*histogram).zip(counts) {
                let ratio = (1.0 - SHRINK) * (share / mass) + SHRINK;
                squares += mass * ratio * ratio;
                if *count > 0 {
                    sum += number(*count) * log(ratio);
                }
            }
            sum -= values * log(self.correction.divisor(squares));
            *evidence = grown(*evidence + dt, sum);
            let kept = exp(values * log1p(-decay));
            for (share, count) in histogram.iter_mut().zip(counts) {
                *share = kept * *share + (1.0 - kept) * (number(*count) / values);
            }
        }
    }

    /// Natural logarithm of the mean evidence; [`LOG_FLOOR`] where there is none.
    pub fn log_m(&self) -> f64 {
        logarithm(self.evidence.iter().sum::<f64>() / 3.0)
    }

    /// The bin whose share rose most over the last 64 values or so, by its term `q ln(q/p)` of the Kullback-Leibler
    /// divergence from the reference; the first of equals, 0 without bins.
    pub fn likeliest(&self) -> usize {
        let term = |bin: usize| {
            let (p, q) = (self.masses[bin], self.histograms[1][bin]);
            if q > 0.0 { q * log(q / p) } else { 0.0 }
        };
        let bins = 0..self.masses.len();
        bins.max_by(|a, b| term(*a).total_cmp(&term(*b)).then(b.cmp(a))).unwrap_or(0)
    }

    /// Forgets all evidence, and what came last.
    pub fn reset(&mut self) {
        self.evidence = [0.0; 3];
        for histogram in &mut self.histograms {
            histogram.copy_from_slice(&self.masses);
        }
    }

    /// The state, to be kept: the evidence of the three decays, then their histograms one after the other.
    pub fn parts(&self) -> Vec<f64> {
        let histograms = self.histograms.iter().flatten();
        self.evidence.iter().chain(histograms).copied().collect()
    }

    /// Takes over a state that was kept; false, and nothing changes, if it is not one of as many bins.
    pub fn restore(&mut self, parts: &[f64]) -> bool {
        let bins = self.masses.len();
        let sound = parts.iter().all(|value| (0.0..=EVIDENCE_MAX).contains(value));
        if parts.len() != 3 + 3 * bins || !sound {
            return false;
        }
        self.evidence.copy_from_slice(&parts[..3]);
        for (index, histogram) in self.histograms.iter_mut().enumerate() {
            histogram.copy_from_slice(&parts[3 + index * bins..3 + (index + 1) * bins]);
        }
        true
    }
}
