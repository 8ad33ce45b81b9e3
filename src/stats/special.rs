//! Special functions, in logarithms where they overflow.

use libm::{exp, lgamma, log, log1p};

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

/// The logarithm of the Beta function; both arguments positive.
pub(super) fn ln_beta(a: f64, b: f64) -> f64 {
    lgamma(a) + lgamma(b) - lgamma(a + b)
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
