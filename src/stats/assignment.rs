//! The split checked against its own promise: does each arm get its share?
//!
//! A sample ratio that differs from the share means that units were lost or misrouted on one arm, and no comparison
//! of the arms can be trusted.

use libm::{lgamma, log, log1p};

use super::special::number;

/// Weight of the prior, in assignments: the mixture expects a ratio near the share.
const PRIOR: f64 = 100.0;

/// Evidence that assignments do not follow the share: an e-process over the assignments.
///
/// At one share `s` it is the sequential multinomial test with a Dirichlet prior of weight 100 around the share
/// (Lindon & Malek, "Anytime-Valid Inference for Multinomial Count Data", arXiv 2011.03567): with `c` of `n`
/// assignments to the candidate, `B(100 s + c, 100 (1-s) + n - c) / (B(100 s, 100 (1-s)) s^c (1-s)^(n-c))`. At every
/// change of the share a new such test begins, and the e-value is the product of all: each is, given what was
/// before it, an e-process of its own. So a fault that begins with a new weight is found as fast as one at the start.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SampleRatio {
    /// The logarithm of the product over the shares before.
    settled: f64,
    /// The share of the last assignments, 0 before any.
    share: f64,
    candidate: u64,
    total: u64,
}

impl SampleRatio {
    /// A check without assignments.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `total` assignments with the candidate's probability `share`, strictly between 0 and 1, of which
    /// `candidate` went to the candidate; at any other share nothing is added.
    ///
    /// # Panics
    ///
    /// If the candidate has more assignments than there are.
    pub fn add(&mut self, share: f64, candidate: u64, total: u64) {
        assert!(candidate <= total, "{candidate} of {total} assignments");
        if !(share > 0.0 && share < 1.0) || total == 0 {
            return;
        }
        if share.to_bits() != self.share.to_bits() {
            self.settled = self.log_e();
            (self.share, self.candidate, self.total) = (share, 0, 0);
        }
        self.candidate = self.candidate.saturating_add(candidate);
        self.total = self.total.saturating_add(total);
    }

    /// The natural logarithm of the e-value: 0 before any assignment, and finite.
    pub fn log_e(&self) -> f64 {
        if self.total == 0 {
            return self.settled;
        }
        let (candidate, total) = (number(self.candidate), number(self.total));
        let baseline = number(self.total - self.candidate);
        let (a, b) = (PRIOR * self.share, PRIOR * (1.0 - self.share));
        let mixture = lgamma(PRIOR) - lgamma(PRIOR + total) + lgamma(a + candidate) - lgamma(a)
            + lgamma(b + baseline)
            - lgamma(b);
        self.settled + mixture - candidate * log(self.share) - baseline * log1p(-self.share)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::random::Random, super::special::tests::assert_close, *};

    fn log_e(counts: &[(f64, u64, u64)]) -> f64 {
        let mut check = SampleRatio::new();
        for (share, candidate, total) in counts {
            check.add(*share, *candidate, *total);
        }
        check.log_e()
    }

    /// Reference values: the definition evaluated with scipy.
    #[test]
    fn log_e_agrees_with_the_definition() {
        assert_close(log_e(&[(0.05, 520, 10_000)]), -1.930_695_067_193_482_8);
        assert_close(log_e(&[(0.05, 620, 10_000)]), 11.574_882_732_074_002);
        assert_close(log_e(&[(0.05, 50, 1000)]), -1.214_117_064_714_514_5);
        assert_close(log_e(&[(0.01, 9, 1000), (0.1, 120, 1000)]), -0.536_749_596_611_628);
        assert_close(log_e(&[(1.0 / 65536.0, 3, 20_000)]), -1.946_779_504_606_695_4);
        assert_eq!(log_e(&[(0.0, 3, 10), (1.0, 3, 10), (f64::NAN, 3, 10)]).to_bits(), 0);
        assert!(log_e(&[(0.5, u64::MAX, u64::MAX), (0.5, 1, 1), (0.1, 0, u64::MAX)]).is_finite());
    }

    /// Looks at every assignment while the share changes; `bias` multiplies the odds of the candidate.
    fn alarms(bias: f64, assignments: u32) -> usize {
        let alarm = |seed: &u64| {
            let (mut random, mut check) = (Random::new(*seed), SampleRatio::new());
            (0..assignments).any(|number| {
                let share = [0.01, 0.1, 0.25][(3 * number / assignments) as usize];
                let odds = bias * share;
                let is_candidate = random.unit() < odds / (odds + 1.0 - share);
                check.add(share, u64::from(is_candidate), 1);
                check.log_e() >= -log(0.05)
            })
        };
        (0..200).filter(alarm).count()
    }

    #[test]
    fn only_a_biased_split_raises_the_alarm() {
        assert!(alarms(1.0, 3000) <= 10);
        assert_eq!(alarms(1.5, 9000), 200);
    }
}
