//! Confidence sequences of a mean: limits that may be looked at after every value.

use libm::{log, log1p};

use super::special::number;

/// The normal mixture of the sequential probability ratio test: evidence that the mean of approximately normal
/// values differs from a point (Johari, Koomen, Pekelis & Walsh, "Always Valid Inference", 2022, equation 11).
///
/// Exact for normal values of known variance; with an estimated variance or other values an approximation that needs
/// some hundred values, and more where tails are heavy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormalMixture {
    /// The variance of a value.
    variance: f64,
    /// The variance of the effects that are looked for, about 0.
    effect_variance: f64,
}

impl NormalMixture {
    /// A test for values of this variance. `effect_variance` is the square of a typical effect worth finding.
    ///
    /// # Panics
    ///
    /// If one of the two is not positive and finite.
    pub fn new(variance: f64, effect_variance: f64) -> Self {
        for value in [variance, effect_variance] {
            assert!(value > 0.0 && value.is_finite(), "a variance of {value}");
        }
        Self { variance, effect_variance }
    }

    /// The natural logarithm of the e-value after `count` values whose mean is `difference` away from the point; an
    /// always valid p-value is `min(1, 1 / the largest e-value so far)`.
    pub fn log_e(&self, count: u64, difference: f64) -> f64 {
        let n = number(count);
        let (v, tau) = (self.variance, self.effect_variance);
        let total = v + n * tau;
        (n * difference) * (n * difference) * tau / (2.0 * v * total) - 0.5 * log(total / v)
    }

    /// Half the width of the confidence sequence around the mean of `count` values, at the error probability `alpha`;
    /// infinite before the first.
    ///
    /// # Panics
    ///
    /// If `alpha` does not lie strictly between 0 and 1.
    pub fn half_width(&self, count: u64, alpha: f64) -> f64 {
        assert!(alpha > 0.0 && alpha < 1.0, "an error probability of {alpha}");
        let n = number(count);
        let (v, tau) = (self.variance, self.effect_variance);
        let total = v + n * tau;
        (v * total / tau * (log(total / v) - 2.0 * log(alpha))).sqrt() / n
    }
}

/// The asymptotic confidence sequence of a mean: for values of any distribution with a variance, valid in the limit
/// of late looks (Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas, "Time-uniform central limit theory and asymptotic
/// confidence sequences", arXiv 2103.06476, theorem 2.2).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AsymptoticSequence {
    alpha: f64,
    /// The squared parameter of the normal mixture.
    rho2: f64,
}

impl AsymptoticSequence {
    /// A sequence at the error probability `alpha`, tightest after some `tightest_at` values.
    ///
    /// # Panics
    ///
    /// If `alpha` does not lie strictly between 0 and 1, or `tightest_at` is 0.
    pub fn new(alpha: f64, tightest_at: u64) -> Self {
        assert!(alpha > 0.0 && alpha < 1.0, "an error probability of {alpha}");
        assert!(tightest_at > 0, "limits are infinite before the first value");
        // The best rho^2 is (x - 1) / n with x - ln x = 1 - ln alpha^2, x > 1 (x = -W(-alpha^2 / e) on the lower
        // branch). Newton's method from the right: the left side is convex.
        let target = 1.0 - 2.0 * log(alpha);
        let mut x = 2.0 * target;
        for _ in 0..50 {
            let step = (x - log(x) - target) / (1.0 - 1.0 / x);
            x -= step;
            if step.abs() <= 1e-15 * x {
                break;
            }
        }
        Self { alpha, rho2: (x - 1.0) / number(tightest_at) }
    }

    /// Half the width around the mean of `count` values with this standard deviation; infinite before the first.
    pub fn half_width(&self, count: u64, deviation: f64) -> f64 {
        let n = number(count);
        let spread = n * self.rho2 + 1.0;
        deviation * (spread / self.rho2 * (log(spread) - 2.0 * log(self.alpha))).sqrt() / n
    }
}

/// Confidence sequence of the mean of values between 0 and 1, for any distribution and any number of values: the
/// predictable plug-in empirical Bernstein bound (Waudby-Smith & Ramdas, "Estimating means of bounded random
/// variables by betting", arXiv 2010.09686, theorem 2).
///
/// With `L = ln(2/alpha)`, bets `b = min(1/2, sqrt(2 L / (v t ln(1 + t))))` on the variance `v` so far and
/// the mean `m` so far, the limits are `(sum of b x -+ (L + sum of (x - m)^2 (-ln(1 - b) - b))) / sum of b`.
#[derive(Debug, Clone, PartialEq)]
pub struct BoundedMean {
    /// `ln(2 / alpha)`.
    level: f64,
    /// True if the mean so far is taken as it is, and begins at the end that a limit points to.
    raw: bool,
    count: u64,
    sum: f64,
    /// Squared distances from the mean of the time.
    squares: f64,
    bets: f64,
    bets_on_values: f64,
    /// Cost of the variance for the lower and the upper limit.
    costs: [f64; 2],
}

/// The largest bet: below 1, and far enough for a limit to recover from a value at the other end.
const BET_MAX: f64 = 0.5;

impl BoundedMean {
    /// A sequence without values, at the error probability `alpha` for both limits together. Means so far are drawn
    /// towards 1/2, as in the paper's theorem.
    ///
    /// # Panics
    ///
    /// If `alpha` does not lie strictly between 0 and 1.
    pub fn new(alpha: f64) -> Self {
        assert!(alpha > 0.0 && alpha < 1.0, "an error probability of {alpha}");
        Self {
            level: log(2.0 / alpha),
            raw: false,
            count: 0,
            sum: 0.0,
            squares: 0.0,
            bets: 0.0,
            bets_on_values: 0.0,
            costs: [0.0; 2],
        }
    }

    /// As [`BoundedMean::new`], with the plain mean so far, which begins at 0 for the lower and at 1 for the upper
    /// limit: the same limits as `confseq.predmix.predmix_empbern_cs` without its running intersection.
    ///
    /// # Panics
    ///
    /// If `alpha` does not lie strictly between 0 and 1.
    pub fn with_raw_mean(alpha: f64) -> Self {
        Self { raw: true, ..Self::new(alpha) }
    }

    /// Adds a value.
    ///
    /// # Panics
    ///
    /// If the value does not lie between 0 and 1.
    pub fn push(&mut self, value: f64) {
        assert!((0.0..=1.0).contains(&value), "{value} is not a value between 0 and 1");
        let before = number(self.count);
        let t = before + 1.0;
        let variance = (0.25 + self.squares) / t;
        let bet = (2.0 * self.level / (variance * t * log1p(t))).sqrt().min(BET_MAX);
        let means = match (self.raw, self.count) {
            (true, 0) => [0.0, 1.0],
            (true, _) => [self.sum / before; 2],
            (false, _) => [(0.5 + self.sum) / t; 2],
        };
        let price = -log1p(-bet) - bet;
        for (cost, mean) in self.costs.iter_mut().zip(means) {
            *cost += (value - mean) * (value - mean) * price;
        }
        self.bets += bet;
        self.bets_on_values += bet * value;
        self.count += 1;
        self.sum += value;
        let mean = (0.5 + self.sum) / (t + 1.0);
        self.squares += (value - mean) * (value - mean);
    }

    /// The limits of the mean, lower and upper, within 0 and 1.
    pub fn limits(&self) -> (f64, f64) {
        if self.count == 0 {
            return (0.0, 1.0);
        }
        let lower = (self.bets_on_values - self.level - self.costs[0]) / self.bets;
        let upper = (self.bets_on_values + self.level + self.costs[1]) / self.bets;
        (lower.clamp(0.0, 1.0), upper.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::random::Random, super::special::tests::assert_close, *};

    /// Reference values: the definition evaluated with numpy.
    #[test]
    fn normal_mixture_agrees_with_the_definition() {
        for (count, mean, variance, effect_variance, e, half_width) in [
            (100, 0.1, 1.0, 0.04, 0.667_164_286_887_790_2_f64, 0.308_238_999_388_909_3),
            (1000, 0.1, 1.0, 0.04, 20.517_183_347_944_66, 0.099_737_969_345_468_41),
            (1000, 0.0, 1.0, 0.04, 0.156_173_761_888_606_07, 0.099_737_969_345_468_41),
            (10_000, 0.03, 2.0, 0.01, 1.271_210_424_313_226_3, 0.044_992_790_496_765_044),
        ] {
            let mixture = NormalMixture::new(variance, effect_variance);
            assert_close(libm::exp(mixture.log_e(count, mean)), e);
            assert_close(mixture.half_width(count, 0.05), half_width);
        }
        let mixture = NormalMixture::new(1.0, 0.04);
        // A point at the end of the interval has an e-value of 1/alpha.
        assert_close(mixture.log_e(50, mixture.half_width(50, 0.01)), 100.0_f64.ln());
        assert!(mixture.half_width(0, 0.05).is_infinite());
        assert_eq!(mixture.log_e(0, 3.0).to_bits(), 0.0_f64.to_bits());
    }

    /// Reference values: the definition with scipy's Lambert W.
    #[test]
    fn asymptotic_sequence_agrees_with_the_definition() {
        let sequence = AsymptoticSequence::new(0.05, 1000);
        assert_close(sequence.rho2, 0.008_211_968_062_068_253);
        assert_close(sequence.half_width(100, 1.0), 0.382_321_833_303_780_1);
        assert_close(sequence.half_width(1000, 1.0), 0.095_978_998_025_965_31);
        assert_close(sequence.half_width(100_000, 2.0), 2.0 * 0.011_277_816_173_564_091);
        assert!(sequence.half_width(0, 1.0).is_infinite());
        for alpha in [1e-12, 0.5, 0.999_999] {
            let tightest = AsymptoticSequence::new(alpha, 1000);
            let others = [100, 10_000].map(|at| AsymptoticSequence::new(alpha, at));
            let width = tightest.half_width(1000, 1.0);
            assert!(others.iter().all(|other| other.half_width(1000, 1.0) > width), "{alpha}");
        }
    }

    /// The ones among 500 values of `numpy.random.default_rng(11).random(500) < 0.1`.
    const ONES: [usize; 57] = [
        3, 6, 32, 40, 47, 52, 53, 58, 60, 66, 69, 72, 73, 87, 88, 105, 112, 117, 120, 132, 137,
        142, 168, 171, 191, 201, 215, 216, 219, 235, 239, 240, 245, 246, 258, 288, 300, 303, 310,
        316, 317, 320, 329, 333, 348, 355, 357, 365, 367, 378, 414, 454, 469, 478, 487, 488, 489,
    ];

    fn after(mut sequence: BoundedMean, count: usize) -> (f64, f64) {
        for index in 0..count {
            sequence.push(if ONES.contains(&index) { 1.0 } else { 0.0 });
        }
        sequence.limits()
    }

    /// Reference values: the definition evaluated with numpy, and the library confseq.
    #[test]
    fn bounded_mean_agrees_with_the_definition_and_a_library() {
        for (count, centre, half_width) in [
            (100, 0.151_978_325_898_747_05, 0.128_604_147_383_649_56),
            (500, 0.123_749_558_935_783_13, 0.054_076_111_394_643_155),
        ] {
            let (lower, upper) = after(BoundedMean::new(0.05), count);
            assert_close(lower.midpoint(upper), centre);
            assert_close((upper - lower) / 2.0, half_width);
        }
        for (count, lower, upper) in [
            (100, 0.024_039_047_609_333_918, 0.284_087_758_192_847_04),
            (500, 0.069_913_429_076_662_6, 0.179_050_225_096_001_33),
        ] {
            let limits = after(BoundedMean::with_raw_mean(0.05), count);
            assert_close(limits.0, lower);
            assert_close(limits.1, upper);
        }
        assert_close(after(BoundedMean::new(0.05), 0).1, 1.0);
    }

    #[test]
    fn sequences_keep_to_alpha_with_a_look_at_every_value() {
        let (mut bounded, mut normal) = (0, 0);
        for seed in 0..200 {
            let mut random = Random::new(seed);
            let (mut mean, mut sum) = (BoundedMean::new(0.05), 0.0);
            let mixture = NormalMixture::new(1.0, 0.04);
            let (mut left, mut fired) = (false, false);
            for count in 1..=500 {
                mean.push(random.unit() * random.unit());
                let limits = mean.limits();
                left |= !(limits.0..=limits.1).contains(&0.25);
                // The sum of twelve is close to normal, with variance 1.
                sum += (0..12).map(|_| random.unit() - 0.5).sum::<f64>();
                fired |= mixture.log_e(count, sum / number(count)) >= -log(0.05);
            }
            bounded += u32::from(left);
            normal += u32::from(fired);
        }
        assert!(bounded <= 10 && normal <= 10, "{bounded} and {normal} of 200");
    }
}
