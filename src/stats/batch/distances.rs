//! Distances between samples, and between shares of bins: how large a drift is, not whether it is one.

use std::f64::consts::LN_2;

use libm::log;

use super::{
    super::special::number,
    sample::{Sample, SampleError, steps},
};

/// Integral of a power of the distance between two distribution functions, over finite values.
fn integral(
    reference: &Sample,
    current: &Sample,
    power: impl Fn(f64) -> f64,
) -> Result<f64, SampleError> {
    let (x, y) = (reference.finite(), current.finite());
    SampleError::check(1, x, y)?;
    let [n, m] = [x.len(), y.len()].map(|size| number(size as u64));
    let (mut sum, mut before) = (0.0, None);
    let mut distance: f64 = 0.0;
    for step in steps(x, y) {
        if let Some(before) = before {
            sum += power(distance.abs()) * (step.value - before);
        }
        distance = number(step.up_to[0] as u64) / n - number(step.up_to[1] as u64) / m;
        before = Some(step.value);
    }
    Ok(sum)
}

/// Wasserstein's distance of order 1: the integral of the distance between the distribution functions, in the unit of
/// the values. Infinite values are left out.
pub fn wasserstein(reference: &Sample, current: &Sample) -> Result<f64, SampleError> {
    integral(reference, current, |distance| distance)
}

/// [`wasserstein`] in standard deviations of the reference (of its finite values, with `n` in the denominator), which
/// count as 0.001 at least: the rule of Evidently.
pub fn normed_wasserstein(reference: &Sample, current: &Sample) -> Result<f64, SampleError> {
    let distance = wasserstein(reference, current)?;
    let values = reference.finite();
    let n = number(values.len() as u64);
    let mean = values.iter().map(|value| value / n).sum::<f64>();
    let variance = values.iter().map(|value| (value - mean) * (value - mean)).sum::<f64>() / n;
    Ok(distance / variance.sqrt().max(0.001))
}

/// The energy distance, `sqrt(2 integral of (F - G)^2)` (Székely & Rizzo, 2013). Infinite values are left out.
pub fn energy_distance(reference: &Sample, current: &Sample) -> Result<f64, SampleError> {
    Ok((2.0 * integral(reference, current, |distance| distance * distance)?).sqrt())
}

/// Inner edges of `bins` bins that hold equal shares of sorted values: quantiles, interpolated linearly, without
/// duplicates, so that integers and constants have fewer. None without values or for fewer than two bins.
pub fn quantile_edges(sorted: &[f64], bins: usize) -> Vec<f64> {
    let Some(last) = sorted.len().checked_sub(1) else { return Vec::new() };
    let edge = |bin: usize| {
        let place = last as u128 * bin as u128;
        let (index, part) = ((place / bins as u128) as usize, place % bins as u128);
        let (from, to) = (sorted[index], sorted[(index + 1).min(last)]);
        if part == 0 { from } else { from + (to - from) * (part as f64 / bins as f64) }
    };
    let mut edges: Vec<f64> = (1..bins).map(edge).collect();
    edges.dedup();
    edges
}

/// Shares of bins with half a count more in each: `(c + 1/2) / (n + K/2)`, so that none is 0.
pub fn smoothed_shares(counts: &[u64]) -> Vec<f64> {
    super::super::alternatives::masses(counts)
}

/// The population stability index, `sum of (p - q) ln(p / q)` over positive shares, in nats. Depends wholly on the
/// bins and on what is done with empty ones: take [`smoothed_shares`]. Where a share is 0 on one side only it is
/// infinite.
///
/// # Panics
///
/// If there are not as many shares in both.
pub fn population_stability(p: &[f64], q: &[f64]) -> f64 {
    pairs(p, q).map(|(p, q)| if (p - q).abs() > 0.0 { (p - q) * log(p / q) } else { 0.0 }).sum()
}

/// The population stability index that two samples of one distribution have on average: about
/// `(K - 1) (1/n + 1/m)` for `K` bins and `n` and `m` rows. What does not exceed it by far is noise.
pub fn population_stability_null(bins: usize, reference_rows: u64, current_rows: u64) -> f64 {
    let rows = [reference_rows, current_rows].map(|rows| 1.0 / number(rows.max(1)));
    number(bins.saturating_sub(1) as u64) * (rows[0] + rows[1])
}

/// The distance of Jensen and Shannon with base 2, from 0 to 1: the root of the mean divergence of both shares from
/// their middle (Endres & Schindelin, 2003). Counts are as good as shares. Times `sqrt(ln 2)` it is the one with
/// base e. 0 where one side has nothing.
///
/// # Panics
///
/// If there are not as many shares in both.
pub fn jensen_shannon(p: &[f64], q: &[f64]) -> f64 {
    let sums = [p, q].map(|shares| shares.iter().sum::<f64>());
    if !(sums[0] > 0.0 && sums[1] > 0.0) {
        return 0.0;
    }
    let term =
        |share: f64, middle: f64| if share > 0.0 { share * log(share / middle) } else { 0.0 };
    let divergence: f64 = pairs(p, q)
        .map(|(p, q)| {
            let (p, q) = (p / sums[0], q / sums[1]);
            let middle = f64::midpoint(p, q);
            term(p, middle) + term(q, middle)
        })
        .sum();
    (divergence / (2.0 * LN_2)).clamp(0.0, 1.0).sqrt()
}

/// The divergence of Kullback and Leibler of `p` from `q`, `sum of p ln(p / q)`, in nats; infinite where only `q` is 0.
///
/// # Panics
///
/// If there are not as many shares in both.
pub fn kullback_leibler(p: &[f64], q: &[f64]) -> f64 {
    pairs(p, q).map(|(p, q)| if p > 0.0 { p * log(p / q) } else { 0.0 }).sum()
}

/// The total variation, half the sum of all differences: from 0 to 1.
///
/// # Panics
///
/// If there are not as many shares in both.
pub fn total_variation(p: &[f64], q: &[f64]) -> f64 {
    0.5 * pairs(p, q).map(|(p, q)| (p - q).abs()).sum::<f64>()
}

/// The largest difference between shares, from 0 to 1.
///
/// # Panics
///
/// If there are not as many shares in both.
pub fn largest_difference(p: &[f64], q: &[f64]) -> f64 {
    pairs(p, q).map(|(p, q)| (p - q).abs()).fold(0.0, f64::max)
}

/// Hellinger's distance, `sqrt(1/2 sum of (sqrt p - sqrt q)^2)`: from 0 to 1.
///
/// # Panics
///
/// If there are not as many shares in both.
pub fn hellinger(p: &[f64], q: &[f64]) -> f64 {
    let square = |(p, q): (f64, f64)| (p.sqrt() - q.sqrt()) * (p.sqrt() - q.sqrt());
    (0.5 * pairs(p, q).map(square).sum::<f64>()).sqrt()
}

/// The statistic of Kolmogorov and Smirnov at the edges of ordered bins. The full one is at least this, and at most
/// this plus the largest share of a bin.
///
/// # Panics
///
/// If there are not as many shares in both.
pub fn binned_kolmogorov(p: &[f64], q: &[f64]) -> f64 {
    cumulative(p, q).map(f64::abs).fold(0.0, f64::max)
}

/// Wasserstein's distance of order 1 from shares of ordered bins with one more edge than bins: the integral of
/// the distance between distribution functions that are straight within each bin, in the unit of the edges.
///
/// # Panics
///
/// If there are not as many shares in both, or not one edge more.
pub fn binned_wasserstein(p: &[f64], q: &[f64], edges: &[f64]) -> f64 {
    assert_eq!(edges.len(), p.len() + 1, "one edge more than bins");
    let (mut sum, mut before) = (0.0, 0.0);
    for (distance, edge) in cumulative(p, q).zip(edges.windows(2)) {
        let (width, from, to) = (edge[1] - edge[0], f64::abs(before), f64::abs(distance));
        // Where the functions cross, two triangles are left of the trapezium.
        let mean = if before * distance < 0.0 {
            (from * from + to * to) / (from + to) / 2.0
        } else {
            f64::midpoint(from, to)
        };
        sum += width * mean;
        before = distance;
    }
    sum
}

fn pairs<'a>(p: &'a [f64], q: &'a [f64]) -> impl Iterator<Item = (f64, f64)> + 'a {
    assert_eq!(p.len(), q.len(), "shares of the same bins");
    p.iter().copied().zip(q.iter().copied())
}

/// Differences of the distribution functions at the upper ends of bins.
fn cumulative<'a>(p: &'a [f64], q: &'a [f64]) -> impl Iterator<Item = f64> + 'a {
    pairs(p, q).scan([0.0, 0.0], |sums, (p, q)| {
        *sums = [sums[0] + p, sums[1] + q];
        Some(sums[0] - sums[1])
    })
}

#[cfg(test)]
mod tests {
    use super::{super::super::special::tests::assert_close, *};

    #[test]
    fn infinite_values_are_left_out_of_distances() {
        let reference = Sample::new(&[0.0, 1.0, f64::INFINITY, f64::NAN]);
        let current = Sample::new(&[1.0, 2.0, f64::NEG_INFINITY]);
        assert_close(wasserstein(&reference, &current).unwrap(), 1.0);
        assert_close(normed_wasserstein(&reference, &current).unwrap(), 2.0);
        let none = Sample::new(&[f64::INFINITY]);
        let error = SampleError::TooFew { needed: 1, reference: 0, current: 2 };
        assert_eq!(wasserstein(&none, &current), Err(error));
    }

    #[test]
    fn edges_of_constants_and_integers_are_fewer() {
        assert!(quantile_edges(&[], 16).is_empty());
        assert_eq!(quantile_edges(&[3.0; 9], 16), [3.0]);
        assert_eq!(quantile_edges(&[1.0, 2.0, 3.0, 4.0, 5.0], 4), [2.0, 3.0, 4.0]);
        assert_eq!(quantile_edges(&[1.0, 1.0, 1.0, 2.0], 4), [1.0, 1.25]);
        assert!(quantile_edges(&[1.0, 2.0], 1).is_empty());
        assert!(quantile_edges(&[1.0, 2.0], 0).is_empty());
    }

    #[test]
    fn binned_wasserstein_agrees_with_straight_distribution_functions() {
        // All mass moves from the first bin of width 1 to the last.
        assert_close(binned_wasserstein(&[1.0, 0.0], &[0.0, 1.0], &[0.0, 1.0, 2.0]), 1.0);
        // Uniform on 0..2 against uniform on 0..1: the mean moves from 1 to 1/2.
        assert_close(binned_wasserstein(&[0.5, 0.5], &[1.0, 0.0], &[0.0, 1.0, 2.0]), 0.5);
        // A crossing in the middle of the second bin: triangles of 1/8, two of 1/16, and 1/8.
        let (p, q) = ([0.25, 0.5, 0.25], [0.5, 0.0, 0.5]);
        assert_close(binned_wasserstein(&p, &q, &[0.0, 1.0, 2.0, 3.0]), 0.375);
        assert_close(binned_kolmogorov(&p, &q), 0.25);
    }

    #[test]
    fn odd_shares_give_numbers() {
        assert_close(jensen_shannon(&[0.0; 2], &[1.0; 2]), 0.0);
        assert_close(jensen_shannon(&[1.0, 0.0], &[0.0, 7.0]), 1.0);
        assert_close(population_stability(&[0.0, 1.0], &[0.0, 1.0]), 0.0);
        assert!(population_stability(&[0.0, 1.0], &[0.5, 0.5]).is_infinite());
        assert_close(population_stability_null(10, 200, 150), 0.105);
        assert_close(smoothed_shares(&[0, 9])[0], 0.05);
    }
}
