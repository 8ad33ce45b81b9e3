//! The test of Cramér and von Mises: the mean squared distance between two distribution functions.

use std::{collections::BTreeMap, f64::consts::PI};

use libm::{cosh, exp, lgamma};

use super::{
    super::special::number,
    sample::{Method, Sample, SampleError, TestResult, steps},
};

/// Values in both samples together up to which `Auto` and `Exact` count.
const COUNTED_MAX: usize = 20;

/// The two-sample test of Cramér and von Mises, with mid-ranks for ties (Anderson, "On the distribution of the
/// two-sample Cramér-von Mises criterion", 1962): `T = U / (n m (n + m)) - (4 n m - 1) / (6 (n + m))`,
/// `U = n sum of (r_i - i)^2 + m sum of (s_j - j)^2` over the ranks of either sample in both. Needs two values in each.
///
/// The exact p-value counts the orders of values (Xiao, Gordon & Yakovlev, "A C++ program for the Cramér-von Mises
/// two-sample test", 2007), for up to 20 values in all; the asymptotic one is the limit at the standardised
/// statistic.
pub fn cramer_von_mises(
    reference: &Sample,
    current: &Sample,
    method: Method,
) -> Result<TestResult, SampleError> {
    let (x, y) = (reference.sorted(), current.sorted());
    SampleError::check(2, x, y)?;
    let u = four_times_u(x, y);
    let [n, m] = [x.len(), y.len()].map(|size| number(size as u64));
    let (k, all) = (n * m, n + m);
    let statistic = u as f64 / 4.0 / (k * all) - (4.0 * k - 1.0) / (6.0 * all);
    let p_value = if method != Method::Asymptotic && x.len() + y.len() <= COUNTED_MAX {
        counted(u, x.len() as u64, y.len() as u64)
    } else {
        let mean = (1.0 + 1.0 / all) / 6.0;
        let spread = 4.0 * k * all - 3.0 * (n * n + m * m) - 2.0 * k;
        let variance = (all + 1.0) * spread / (45.0 * all * all * 4.0 * k);
        let standard = 1.0 / 6.0 + (statistic - mean) / (45.0 * variance).sqrt();
        // Below this the limit's series does not converge, and it is 1 to all digits.
        if standard < 0.003 { 1.0 } else { (1.0 - limit_cdf(standard)).clamp(0.0, 1.0) }
    };
    Ok(TestResult { statistic, p_value })
}

/// `4 U`, which is a whole number also where ranks are halves.
fn four_times_u(x: &[f64], y: &[f64]) -> u128 {
    let mut squares = [0_u128; 2];
    for step in steps(x, y) {
        let up_to = step.up_to[0] + step.up_to[1];
        let twice_rank = 2 * up_to + 1 - (step.equal[0] + step.equal[1]);
        for ((squares, up_to), equal) in squares.iter_mut().zip(step.up_to).zip(step.equal) {
            let own = up_to - equal + 1..=up_to;
            *squares += own.map(|i| (twice_rank.abs_diff(2 * i) as u128).pow(2)).sum::<u128>();
        }
    }
    x.len() as u128 * squares[0] + y.len() as u128 * squares[1]
}

/// The share of orders of `n + m` values whose `U` is at least as large.
fn counted(four_u: u128, n: u64, m: u64) -> f64 {
    let common = (1..=n).rev().find(|d| n.is_multiple_of(*d) && m.is_multiple_of(*d)).unwrap_or(1);
    let multiple = i128::from(n / common * m);
    let (a, b) = (multiple as u64 / n, multiple as u64 / m);
    let product = i128::from(n * m);
    let excess = 6 * four_u as i128 - 4 * product * (4 * product - 1);
    let least =
        (multiple * multiple * i128::from(n + m) * excess).div_euclid(24 * product * product);
    // For each number of values taken from the first sample: sums of squared distances so far, and in how many orders.
    let mut orders: Vec<BTreeMap<u64, f64>> = vec![BTreeMap::new(); n as usize + 1];
    for second in 0..=m {
        for first in 0..=n {
            let mut sums = std::mem::take(&mut orders[first as usize]);
            if first > 0 {
                for (sum, ways) in orders[first as usize - 1].clone() {
                    *sums.entry(sum).or_default() += ways;
                }
            } else if second == 0 {
                sums.insert(0, 1.0);
            }
            let square = (a * first).abs_diff(b * second).pow(2);
            orders[first as usize] =
                sums.into_iter().map(|(sum, ways)| (sum + square, ways)).collect();
        }
    }
    let whole = &orders[n as usize];
    let reached = whole.iter().filter(|(sum, _)| i128::from(**sum) >= least);
    reached.map(|(_, ways)| ways).sum::<f64>() / whole.values().sum::<f64>()
}

/// The distribution function of the statistic in the limit of many values (Csörgő & Faraway, "The exact and asymptotic
/// distributions of Cramér-von Mises statistics", 1996, equation 1.3). The sum ends with its first term below 1e-7, as
/// scipy's does, for equal digits: what is left out is small beside the limit's own error.
fn limit_cdf(x: f64) -> f64 {
    let mut sum = 0.0;
    for k in 0..100_u32 {
        let y = f64::from(4 * k + 1);
        let ways = exp(lgamma(f64::from(k) + 0.5) - lgamma(f64::from(k) + 1.0));
        let bessel = scaled_bessel(y * y / (16.0 * x));
        let term = ways / (PI * PI.sqrt() * x.sqrt()) * y.sqrt() * bessel;
        sum += term;
        if term < 1e-7 {
            break;
        }
    }
    sum
}

/// `e^-q K(1/4, q)` of the modified Bessel function: the integral of `exp(-q (1 + cosh t)) cosh(t / 4)` over positive
/// `t` (DLMF 10.32.9), by the trapezoidal rule, whose error at this step is below the rounding.
fn scaled_bessel(q: f64) -> f64 {
    const STEP: f64 = 0.125;
    let mut sum = 0.5 * exp(-2.0 * q);
    for step in 1..1000_u32 {
        let t = STEP * f64::from(step);
        let term = exp(-q * (1.0 + cosh(t))) * cosh(t / 4.0);
        sum += term;
        if term <= 1e-18 * sum {
            break;
        }
    }
    sum * STEP
}

#[cfg(test)]
mod tests {
    use super::{super::super::special::tests::assert_close, *};

    /// Reference values: scipy's `cramervonmises_2samp`.
    #[test]
    fn counts_agree_with_a_library() {
        let check = |x: &[f64], y: &[f64], statistic, p_value| {
            let got = cramer_von_mises(&Sample::new(x), &Sample::new(y), Method::Auto).unwrap();
            assert_close(got.statistic, statistic);
            assert_close(got.p_value, p_value);
        };
        let (tied, other) = ([1.0, 2.0, 2.0, 3.0, 5.0], [2.0, 2.0, 4.0, 6.0]);
        check(&tied, &other, 0.067_592_592_592_592_43, 0.888_888_888_888_888_8);
        check(&[1.0, 2.0], &[3.0, 4.0], 0.375, 0.333_333_333_333_333_3);
        let nine: Vec<f64> = (0..9).map(f64::from).collect();
        let ten: Vec<f64> = (0..10).map(|value| f64::from(value) + 3.5).collect();
        check(&nine, &ten, 0.619_883_040_935_672_8, 0.019_355_257_745_350_626);
    }
}
