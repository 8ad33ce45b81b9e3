//! Special functions, in logarithms where they overflow.

use libm::{erfc, exp, lgamma, log, log1p};

/// A count as a number to compute with.
#[expect(clippy::cast_precision_loss, reason = "beyond 2^53 events the last one no longer matters")]
pub(super) fn number(count: u64) -> f64 {
    count as f64
}

/// `ln(1 + e^x)` without overflow; `-softplus(-x)` is the logarithm of the logistic function.
pub(super) fn softplus(x: f64) -> f64 {
    x.max(0.0) + log1p(exp(-x.abs()))
}

/// The logistic function `1 / (1 + e^-x)`.
pub(super) fn logistic(x: f64) -> f64 {
    1.0 / (1.0 + exp(-x))
}

/// `ln(sum of e^x)` without overflow.
pub(super) fn log_sum_exp(logs: &[f64]) -> f64 {
    let largest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    largest + log(logs.iter().map(|x| exp(x - largest)).sum())
}

/// The natural logarithm of the mean of e-values that are given by theirs; 0 of none. The mean is an e-value, too,
/// however the others depend on each other (Vovk & Wang, "E-values: Calibration, combination and applications", 2021).
pub fn mean_log_e(logs: &[f64]) -> f64 {
    if logs.is_empty() { 0.0 } else { log_sum_exp(logs) - log(number(logs.len() as u64)) }
}

/// The normal distribution's quantile of a probability strictly between 0 and 1 (Wichura, "Algorithm AS 241: The
/// percentage points of the normal distribution", Applied Statistics 37, 1988, `PPND16`: a relative error of 1e-16).
pub(super) fn normal_quantile(p: f64) -> f64 {
    let ratio =
        |[above, below]: [[f64; 8]; 2], r: f64| polynomial(&above, r) / polynomial(&below, r);
    let q = p - 0.5;
    if q.abs() <= 0.425 {
        return q * ratio(CENTRE, 0.180_625 - q * q);
    }
    let r = (-log(p.min(1.0 - p))).sqrt();
    let size = if r <= 5.0 { ratio(MIDDLE, r - 1.6) } else { ratio(TAIL, r - 5.0) };
    size.copysign(q)
}

/// Coefficients of [`normal_quantile`] within 0.425 of the middle, above and below the line.
#[expect(clippy::excessive_precision, reason = "the published coefficients")]
const CENTRE: [[f64; 8]; 2] = [
    [
        3.387_132_872_796_366_608_0,
        1.331_416_678_917_843_774_5e2,
        1.971_590_950_306_551_442_7e3,
        1.373_169_376_550_946_112_5e4,
        4.592_195_393_154_987_145_7e4,
        6.726_577_092_700_870_085_3e4,
        3.343_057_558_358_812_810_5e4,
        2.509_080_928_730_122_672_7e3,
    ],
    [
        1.0,
        4.231_333_070_160_091_125_2e1,
        6.871_870_074_920_579_083_0e2,
        5.394_196_021_424_751_107_7e3,
        2.121_379_430_158_659_586_7e4,
        3.930_789_580_009_271_061_0e4,
        2.872_908_573_572_194_267_4e4,
        5.226_495_278_852_854_561_0e3,
    ],
];

/// Those further out.
#[expect(clippy::excessive_precision, reason = "the published coefficients")]
const MIDDLE: [[f64; 8]; 2] = [
    [
        1.423_437_110_749_683_577_34,
        4.630_337_846_156_545_295_90,
        5.769_497_221_460_691_405_50,
        3.647_848_324_763_204_605_04,
        1.270_458_252_452_368_382_58,
        2.417_807_251_774_506_117_70e-1,
        2.272_384_498_926_918_458_33e-2,
        7.745_450_142_783_414_076_40e-4,
    ],
    [
        1.0,
        2.053_191_626_637_758_821_87,
        1.676_384_830_183_803_849_40,
        6.897_673_349_851_000_045_50e-1,
        1.481_039_764_274_800_745_90e-1,
        1.519_866_656_361_645_719_66e-2,
        5.475_938_084_995_344_946_00e-4,
        1.050_750_071_644_416_843_24e-9,
    ],
];

/// Those from exp(-25) on.
#[expect(clippy::excessive_precision, reason = "the published coefficients")]
const TAIL: [[f64; 8]; 2] = [
    [
        6.657_904_643_501_103_777_20,
        5.463_784_911_164_114_369_90,
        1.784_826_539_917_291_335_80,
        2.965_605_718_285_048_912_30e-1,
        2.653_218_952_657_612_309_30e-2,
        1.242_660_947_388_078_438_60e-3,
        2.711_555_568_743_487_578_15e-5,
        2.010_334_399_292_288_132_65e-7,
    ],
    [
        1.0,
        5.998_322_065_558_879_376_90e-1,
        1.369_298_809_227_358_053_10e-1,
        1.487_536_129_085_061_485_25e-2,
        7.868_691_311_456_132_591_00e-4,
        1.846_318_317_510_054_681_80e-5,
        1.421_511_758_316_445_888_70e-7,
        2.044_263_103_389_939_785_64e-15,
    ],
];

/// The sum of `coefficients[i] x^i`.
fn polynomial(coefficients: &[f64], x: f64) -> f64 {
    coefficients.iter().rev().fold(0.0, |sum, coefficient| sum * x + coefficient)
}

/// The probability that a normal variable exceeds `z`.
pub(super) fn normal_sf(z: f64) -> f64 {
    0.5 * erfc(z * std::f64::consts::FRAC_1_SQRT_2)
}

/// The logarithm of the Beta function; both arguments positive.
pub(super) fn ln_beta(a: f64, b: f64) -> f64 {
    lgamma(a) + lgamma(b) - lgamma(a + b)
}

/// `ln(n!)`.
pub(super) fn ln_factorial(n: u64) -> f64 {
    lgamma(number(n) + 1.0)
}

/// The probability that a chi-square variable with these degrees of freedom exceeds `x`.
pub(super) fn chi_square_sf(degrees: f64, x: f64) -> f64 {
    upper_gamma(degrees / 2.0, x / 2.0)
}

/// The upper incomplete Gamma function, divided by the full one: the series of DLMF 8.11.4 for its complement below
/// `a + 1`, the continued fraction of DLMF 8.9.2 above, by Lentz's method. `a` is positive.
fn upper_gamma(a: f64, x: f64) -> f64 {
    const ROUNDS_MAX: u32 = 100_000;
    if x.is_nan() || x <= 0.0 {
        return 1.0;
    }
    let front = exp(a * log(x) - x - lgamma(a));
    if x < a + 1.0 {
        let (mut term, mut sum) = (1.0 / a, 1.0 / a);
        for round in 1..ROUNDS_MAX {
            term *= x / (a + f64::from(round));
            sum += term;
            if term < 1e-17 * sum {
                break;
            }
        }
        return (1.0 - front * sum).clamp(0.0, 1.0);
    }
    let mut partial = x + 1.0 - a;
    let (mut numerator, mut denominator) = (1e300, 1.0 / partial);
    let mut fraction = denominator;
    for round in 1..ROUNDS_MAX {
        let coefficient = f64::from(round) * (a - f64::from(round));
        partial += 2.0;
        denominator = 1.0 / (coefficient * denominator + partial);
        numerator = partial + coefficient / numerator;
        let step = numerator * denominator;
        fraction *= step;
        if (step - 1.0).abs() < 1e-16 {
            break;
        }
    }
    (front * fraction).clamp(0.0, 1.0)
}

/// The continued fraction of the incomplete Beta function (DLMF 8.17.22), by Lentz's method:
/// `B(x; a, b) = x^a (1-x)^b / a * fraction`.
///
/// Converges in some `sqrt(a + b)` rounds for `x < (a + 1) / (a + b + 2)`; beyond that use
/// `B(x; a, b) = B(a, b) - B(1-x; b, a)`.
pub(super) fn beta_fraction(x: f64, a: f64, b: f64) -> f64 {
    const TINY: f64 = 1e-300;
    const ROUNDS_MAX: u32 = 1_000_000;
    let away_from_zero = |value: f64| if value.abs() < TINY { TINY } else { value };

    let mut numerator = 1.0;
    let mut denominator = 1.0 / away_from_zero(1.0 - (a + b) * x / (a + 1.0));
    let mut fraction = denominator;
    for round in 1..=ROUNDS_MAX {
        let m = f64::from(round);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let mut step = 1.0;
        for coefficient in [even, odd] {
            denominator = 1.0 / away_from_zero(1.0 + coefficient * denominator);
            numerator = away_from_zero(1.0 + coefficient / numerator);
            step = numerator * denominator;
            fraction *= step;
        }
        if (step - 1.0).abs() < 1e-15 {
            break;
        }
    }
    fraction
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Fails unless both agree to a relative error of 1e-9.
    #[track_caller]
    pub(crate) fn assert_close(got: f64, expected: f64) {
        let close =
            (got - expected).abs() <= 1e-9 * expected.abs() || got.to_bits() == expected.to_bits();
        assert!(close, "{got:e} instead of {expected:e}");
    }

    #[test]
    fn sums_of_exponentials_do_not_overflow() {
        assert_close(log_sum_exp(&[1000.0, 1000.0]), 1000.0 + 2.0_f64.ln());
        assert_close(log_sum_exp(&[-5000.0, -5001.0]), -5000.0 + (-1.0_f64).exp().ln_1p());
        assert_close(mean_log_e(&[1000.0, 1000.0]), 1000.0);
        assert_close(mean_log_e(&[]), 0.0);
        assert_close(softplus(800.0), 800.0);
        assert_close(softplus(-800.0), 0.0);
        assert_close(softplus(-1.0), 0.313_261_687_518_222_8);
        assert_close(logistic(-1.0), 0.268_941_421_369_995_1);
    }

    /// Reference values: scipy's `chi2.sf`, `norm.ppf` and `norm.sf`.
    #[test]
    fn distributions_agree_with_a_library() {
        for (degrees, x, expected) in [
            (1.0, 0.0, 1.0),
            (1.0, 1e-8, 0.999_920_211_544_052_6),
            (1.0, 700.0, 2.990_226_975_124_623e-154),
            (2.0, 3.0, 0.223_130_160_148_429_82),
            (500.0, 400.0, 0.999_637_929_541_710_3),
            (500.0, 700.0, 7.728_992_111_216_604e-9),
            (10_000.0, 10_300.0, 0.017_638_117_447_345_406),
        ] {
            assert_close(chi_square_sf(degrees, x), expected);
        }
        for p in [1e-300, 1e-10, 0.02, 0.075, 0.3, 0.5, 0.8, 0.999] {
            assert_close(1.0 - normal_sf(normal_quantile(p)) + 1.0, 1.0 + p);
            assert_close(normal_sf(-normal_quantile(p)), p);
        }
    }

    #[test]
    fn beta_functions_agree_with_closed_forms() {
        // B(a, 1) = 1/a; B(x; 1, b) = (1 - (1-x)^b) / b; B(1/2, 1/2) = pi.
        assert_close(ln_beta(7.5, 1.0), -7.5_f64.ln());
        assert_close(ln_beta(0.5, 0.5), std::f64::consts::PI.ln());
        let (x, b): (f64, f64) = (0.01, 40.0);
        let incomplete = x * (1.0 - x).powf(b) * beta_fraction(x, 1.0, b);
        assert_close(incomplete, (1.0 - (1.0 - x).powf(b)) / b);
    }
}
