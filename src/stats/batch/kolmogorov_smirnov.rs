//! The test of Kolmogorov and Smirnov: the largest distance between two distribution functions.

use std::f64::consts::PI;

use libm::{exp, ldexp, log, pow};

use super::{
    super::special::{ln_factorial, number},
    sample::{Method, Sample, SampleError, Side, Step, steps},
};

/// Result of the test of Kolmogorov and Smirnov.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KolmogorovSmirnov {
    /// The largest distance between the distribution functions, from 0 to 1.
    pub statistic: f64,
    /// The probability of at least this distance if both samples have one distribution.
    pub p_value: f64,
    /// A value at which the distance is reached.
    pub location: f64,
    /// True if the reference's function is the larger one there, or both are equal: current values are larger.
    pub is_above: bool,
    /// True if the p-value was counted, false if it is the limit of large samples.
    pub is_exact: bool,
}

/// Steps of counting that `Auto` and `Exact` take at most, some nanoseconds each.
const AUTO_STEPS_MAX: u128 = 10_000_000;
const EXACT_STEPS_MAX: u128 = 400_000_000;

/// Below this effective size `n m / (n + m)` the limit of large samples is too far off.
const EFFECTIVE_SIZE_MIN: f64 = 8.0;

/// The two-sample test of Kolmogorov and Smirnov. The statistic is the supremum of the distance between the empirical
/// distribution functions, both right-continuous: of `F - G` for [`Side::Greater`], with `F` the reference's, of
/// `G - F` for [`Side::Less`], of the larger for [`Side::TwoSided`].
///
/// The exact p-value is the share of lattice paths that leave the band of this width (Hodges, "The significance
/// probability of the Smirnov two-sample test", 1958; summed as in Viehmann, arXiv 2102.08037); it takes some
/// `n m` steps. The asymptotic one is that of the one-sample statistic at the rounded effective size (two-sided; see
/// [`kolmogorov_two_sided_sf`]), or Hodges' equation 5.3. `Auto` counts up to ten million steps, and wherever the
/// effective size is below 8.
pub fn kolmogorov_smirnov(
    reference: &Sample,
    current: &Sample,
    side: Side,
    method: Method,
) -> Result<KolmogorovSmirnov, SampleError> {
    let (x, y) = (reference.sorted(), current.sorted());
    SampleError::check(1, x, y)?;
    let sizes = [x.len() as u64, y.len() as u64];
    let common = gcd(sizes[0], sizes[1]);
    let [m, n] = sizes.map(|size| i128::from(size / common));
    // Distances as whole numbers of 1 / (m n common).
    let difference = |step: &Step| step.up_to[0] as i128 * n - step.up_to[1] as i128 * m;
    let (above, above_at) = first_largest(x, y, difference);
    let (below, below_at) = first_largest(x, y, |step| -difference(step));
    let is_below = side == Side::Less || side == Side::TwoSided && below > above;
    let (distance, location) = if is_below { (below, below_at) } else { (above, above_at) };
    let distance = distance.max(0);
    let statistic = distance as f64 / (m * n * i128::from(common)) as f64;
    let [first, second] = sizes.map(number);
    let effective = first * second / (first + second);
    let cost = u128::from(sizes[0]) * u128::from(sizes[1]);
    let is_exact = match method {
        Method::Auto => cost <= AUTO_STEPS_MAX || effective < EFFECTIVE_SIZE_MIN,
        Method::Exact => true,
        Method::Asymptotic => false,
    } && cost <= EXACT_STEPS_MAX;
    let p_value = match side {
        _ if is_exact => counted(sizes, distance, side),
        Side::TwoSided => kolmogorov_two_sided_sf(effective.round() as u64, statistic),
        Side::Less | Side::Greater => {
            let (larger, smaller) = (first.max(second), first.min(second));
            let z = effective.sqrt() * statistic;
            let skew = (larger + 2.0 * smaller) / (first * second * (first + second)).sqrt();
            exp(-2.0 * z * z - 2.0 * z * skew / 3.0)
        }
    };
    let p_value = p_value.clamp(0.0, 1.0);
    Ok(KolmogorovSmirnov { statistic, p_value, location, is_above: !is_below, is_exact })
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The largest height over all values, and the first value that has it: the first sample's before the second's.
fn first_largest(x: &[f64], y: &[f64], height: impl Fn(&Step) -> i128) -> (i128, f64) {
    let mut best: [Option<(i128, f64)>; 2] = [None; 2];
    for step in steps(x, y) {
        let height = height(&step);
        for (best, equal) in best.iter_mut().zip(step.equal) {
            if equal > 0 && best.is_none_or(|(most, _)| height > most) {
                *best = Some((height, step.value));
            }
        }
    }
    match best {
        [Some(first), Some(second)] => {
            if second.0 > first.0 {
                second
            } else {
                first
            }
        }
        _ => unreachable!("neither sample is empty"),
    }
}

/// The share of lattice paths from (0, 0) to the sizes on which the distance is reached somewhere.
///
/// With `a[j]` the share among the paths to (i, j), a path came from (i-1, j) with probability `i / (i + j)`.
fn counted(sizes: [u64; 2], distance: i128, side: Side) -> f64 {
    if distance == 0 {
        return 1.0;
    }
    // The second axis is the shorter one: it is what is kept.
    let is_swapped = sizes[0] < sizes[1];
    let [m, n] = if is_swapped { [sizes[1], sizes[0]] } else { sizes };
    let common = gcd(m, n);
    let (step_i, step_j) = (i128::from(n / common), i128::from(m / common));
    let (bounds_low, bounds_high) = match side {
        Side::TwoSided => (true, true),
        Side::Greater => (!is_swapped, is_swapped),
        Side::Less => (is_swapped, !is_swapped),
    };
    let last = n as usize;
    let mut shares = vec![1.0_f64; last + 1];
    let mut low_before = 0;
    for i in 0..=m {
        let at = i128::from(i) * step_i;
        // Inside are the j with |i step_i - j step_j| < distance.
        let low = if bounds_low { (at - distance).div_euclid(step_j) + 1 } else { 0 };
        let high =
            if bounds_high { (at + distance + step_j - 1).div_euclid(step_j) } else { i128::MAX };
        let (low, high) = (low.max(0) as usize, high.min(i128::from(n) + 1) as usize);
        if high <= low {
            return 1.0;
        }
        shares[low_before.min(low)..low].fill(1.0);
        low_before = low;
        let mut before = if low == 0 { 0.0 } else { 1.0 };
        let i = number(i);
        for (j, share) in (low as u64..).zip(&mut shares[low..high]) {
            let j = number(j);
            before = if i + j > 0.0 {
                (if i > 0.0 { *share * i } else { 0.0 } + before * j) / (i + j)
            } else {
                0.0
            };
            *share = before;
        }
    }
    shares[last]
}

/// The probability that `sqrt(n)` times the one-sample statistic exceeds `z` in the limit of many values
/// (Kolmogorov, 1933).
pub fn kolmogorov_sf(z: f64) -> f64 {
    if z.is_nan() || z <= 0.0 {
        return 1.0;
    }
    if z < 1.0 {
        let term = |k: u32| {
            let odd = f64::from(2 * k - 1);
            exp(-odd * odd * PI * PI / (8.0 * z * z))
        };
        return 1.0 - (2.0 * PI).sqrt() / z * (1..=6).map(term).sum::<f64>();
    }
    let term = |k: u32| {
        let size = 2.0 * exp(-2.0 * f64::from(k * k) * z * z);
        if k % 2 == 1 { size } else { -size }
    };
    (1..=6).map(term).sum()
}

/// The probability that the one-sample statistic of `n` values exceeds `x`. Chooses among exact and approximate
/// formulas as Simard & L'Ecuyer, "Computing the two-sided Kolmogorov-Smirnov distribution" (Journal of Statistical
/// Software 39, 2011): Ruben & Gambino at the ends; the one-sided probability twice where both sides hardly ever
/// meet (Miller, 1956); the matrix of Marsaglia, Tsang & Wang (2003); Pelz & Good (1976) for the rest. Beyond a
/// million values the one-sided probability is Maag & Dicaire's.
///
/// 1 for no values.
pub fn kolmogorov_two_sided_sf(n: u64, x: f64) -> f64 {
    let values = number(n);
    let t = values * x;
    if n == 0 || x.is_nan() || t <= 0.5 {
        return 1.0;
    }
    if x >= 1.0 {
        return 0.0;
    }
    if t <= 1.0 {
        return 1.0 - exp(ln_factorial(n) - values * log(values) + values * log(2.0 * t - 1.0));
    }
    if t >= values - 1.0 {
        return (2.0 * pow(1.0 - x, values)).min(1.0);
    }
    let square = t * x;
    if square >= 370.0 {
        return 0.0;
    }
    let is_one_sided = x >= 0.5 || square >= if n <= 140 { 4.0 } else { 2.2 };
    if is_one_sided {
        (2.0 * one_sided_sf(n, x)).min(1.0)
    } else if n <= 140 || n <= 100_000 && values * pow(x, 1.5) <= 1.4 {
        (1.0 - matrix_cdf(n, x)).clamp(0.0, 1.0)
    } else {
        (1.0 - pelz_good_cdf(values, x)).clamp(0.0, 1.0)
    }
}

/// The probability that the one-sided one-sample statistic exceeds `x` (Birnbaum & Tingey, 1951).
fn one_sided_sf(n: u64, x: f64) -> f64 {
    let values = number(n);
    if n > 1_000_000 {
        let t = 6.0 * values * x + 1.0;
        return exp(-t * t / (18.0 * values));
    }
    let term = |j: u64| {
        let share = number(j) / values;
        let rest = 1.0 - x - share;
        if rest <= 0.0 {
            return 0.0;
        }
        let ways = ln_factorial(n) - ln_factorial(j) - ln_factorial(n - j);
        exp(ways + (number(j) - 1.0) * log(x + share) + (values - number(j)) * log(rest))
    };
    x * (0..=(values * (1.0 - x)) as u64).map(term).sum::<f64>()
}

/// The probability that the one-sample statistic does not exceed `x`, exactly: `n! / n^n` times an element of the
/// `n`-th power of a matrix (Durbin, 1968; Marsaglia, Tsang & Wang, "Evaluating Kolmogorov's distribution", 2003).
fn matrix_cdf(n: u64, x: f64) -> f64 {
    let t = number(n) * x;
    let k = t.ceil() as usize;
    let h = k as f64 - t;
    let size = 2 * k - 1;
    let mut inverse = vec![1.0; size + 1];
    for i in 1..=size {
        inverse[i] = inverse[i - 1] / i as f64;
    }
    let mut matrix = vec![0.0; size * size];
    for row in 0..size {
        for column in 1..size.min(row + 2) {
            matrix[row * size + column] = inverse[row + 1 - column];
        }
    }
    for row in 0..size {
        let corner = if row + 1 == size {
            1.0 - 2.0 * pow(h, size as f64) + pow((2.0 * h - 1.0).max(0.0), size as f64)
        } else {
            1.0 - pow(h, (row + 1) as f64)
        };
        let value = corner * inverse[row + 1];
        matrix[row * size] = value;
        matrix[(size - 1) * size + (size - 1 - row)] = value;
    }
    let (power, mut exponent) = matrix_power(matrix, size, n, k - 1);
    let mut p = power;
    for i in 1..=n {
        p *= number(i) / number(n);
        if p < 1e-140 && p > 0.0 {
            p = ldexp(p, 512);
            exponent -= 512;
        }
    }
    ldexp(p, exponent)
}

/// The element of a power at (`at`, `at`), as a number times a power of two: only its row is carried along.
fn matrix_power(mut square: Vec<f64>, size: usize, mut power: u64, at: usize) -> (f64, i32) {
    let mut row = vec![0.0; size];
    row[at] = 1.0;
    let (mut exponent, mut square_exponent) = (0, 0);
    while power > 0 {
        if power % 2 == 1 {
            row = product(&row, &square, size);
            exponent += square_exponent;
            exponent += rescale(&mut row);
        }
        power /= 2;
        if power > 0 {
            square = product(&square, &square, size);
            square_exponent = 2 * square_exponent + rescale(&mut square);
        }
    }
    (row[at], exponent)
}

/// The product of rows with a square matrix.
fn product(rows: &[f64], square: &[f64], size: usize) -> Vec<f64> {
    let mut product = vec![0.0; rows.len()];
    for (row, target) in rows.chunks_exact(size).zip(product.chunks_exact_mut(size)) {
        for (factor, line) in row.iter().zip(square.chunks_exact(size)).filter(|(f, _)| **f != 0.0)
        {
            target.iter_mut().zip(line).for_each(|(sum, value)| *sum += factor * value);
        }
    }
    product
}

/// Divides by a power of two, where numbers grew large, and gives its exponent.
fn rescale(values: &mut [f64]) -> i32 {
    if values.iter().all(|value| *value < 1e140) {
        return 0;
    }
    for value in values {
        *value = ldexp(*value, -256);
    }
    256
}

/// The approximation of Pelz & Good, "Approximating the lower tail-areas of the Kolmogorov-Smirnov one-sample
/// statistic" (1976): `K0 + K1 / sqrt(n) + K2 / n + K3 / n^1.5` at `z = sqrt(n) x`, each a sum over powers of
/// `exp(-pi^2 / (8 z^2))`.
fn pelz_good_cdf(n: f64, x: f64) -> f64 {
    let z = n.sqrt() * x;
    let z2 = z * z;
    let (z4, z6) = (z2 * z2, z2 * z2 * z2);
    let (pi2, root) = (PI * PI, (2.0 * PI).sqrt());
    let (pi4, pi6) = (pi2 * pi2, pi2 * pi2 * pi2);
    let mut sums = [0.0; 4];
    let terms = (16.0 * z / PI).ceil() as u32;
    for k in 1..=terms {
        let m2 = f64::from(2 * k - 1) * f64::from(2 * k - 1);
        let (m4, m6) = (m2 * m2, m2 * m2 * m2);
        let size = exp(-pi2 * m2 / (8.0 * z2));
        let second = 6.0 * z6
            + 2.0 * z4
            + (2.0 * z4 - 5.0 * z2) * pi2 / 4.0 * m2
            + pi4 * (1.0 - 2.0 * z2) / 16.0 * m4;
        let third = -30.0 * z6 - 90.0 * z4 * z4
            + pi2 * (135.0 * z4 - 96.0 * z6) / 4.0 * m2
            + pi4 * (212.0 * z4 - 60.0 * z2) / 16.0 * m4
            + pi6 * (5.0 - 30.0 * z2) / 64.0 * m6;
        for (sum, part) in sums.iter_mut().zip([1.0, pi2 / 4.0 * m2 - z2, second, third]) {
            *sum += size * part;
        }
    }
    let scales = [z, 6.0 * z4, 72.0 * z4 * z2 * z, 6480.0 * z4 * z6];
    for (sum, scale) in sums.iter_mut().zip(scales) {
        *sum *= root / scale;
    }
    for k in 1..=terms {
        let k2 = f64::from(k) * f64::from(k);
        let size = k2 * exp(-pi2 * k2 / (2.0 * z2)) * pi2 * root;
        sums[2] -= size / (36.0 * z2 * z);
        sums[3] += size * (3.0 * z2 - pi2 * k2) / (216.0 * z6);
    }
    sums[0] + (sums[1] + (sums[2] + sums[3] / n.sqrt()) / n.sqrt()) / n.sqrt()
}

#[cfg(test)]
mod tests {
    use super::{super::super::special::tests::assert_close, *};

    const SEVEN: [f64; 7] = [0.1, 0.4, 0.7, 1.1, 1.9, 2.3, 3.0];

    /// Reference values: scipy's `ks_2samp`.
    #[test]
    fn one_sided_counts_agree_with_a_library() {
        let check = |x: &[f64], y: &[f64], [less, greater]: [[f64; 2]; 2]| {
            let (x, y) = (Sample::new(x), Sample::new(y));
            for (side, expected) in [(Side::Less, less), (Side::Greater, greater)] {
                let got = kolmogorov_smirnov(&x, &y, side, Method::Auto).unwrap();
                assert_close(got.statistic, expected[0]);
                assert_close(got.p_value, expected[1]);
                assert!(got.is_exact);
            }
        };
        let five = [0.6, 1.5, 2.2, 3.1, 4.0];
        let larger = [0.4, 0.330_808_080_808_080_83];
        check(&SEVEN, &five, [[0.0, 1.0], larger]);
        check(&five, &SEVEN, [larger, [0.0, 1.0]]);
        let seven = [0.05, 0.2, 0.3, 0.35, 0.5, 0.65, 0.9];
        let larger = [0.571_428_571_428_571_4, 0.106_060_606_060_606_05];
        check(&SEVEN, &seven, [larger, [0.0, 1.0]]);
        check(&seven, &SEVEN, [[0.0, 1.0], larger]);
    }

    #[test]
    fn tiny_samples_are_counted_and_empty_ones_refused() {
        let (one, seven) = (Sample::new(&[0.0]), Sample::new(&SEVEN));
        let test = |x: &Sample, y: &Sample| kolmogorov_smirnov(x, y, Side::TwoSided, Method::Auto);
        let got = test(&one, &seven).unwrap();
        assert_close(got.p_value, 0.25);
        assert!(got.is_exact && got.is_above);
        let many: Vec<f64> = (0..20_000).map(f64::from).collect();
        assert!(test(&one, &Sample::new(&many)).unwrap().is_exact);
        let half: Vec<f64> = many.iter().map(|value| value + 0.5).collect();
        assert!(!test(&Sample::new(&half), &Sample::new(&many)).unwrap().is_exact);
        let none = Sample::new(&[f64::NAN]);
        let error = SampleError::TooFew { needed: 1, reference: 7, current: 0 };
        assert_eq!(test(&seven, &none), Err(error));
        // Infinite values have their place in the order.
        let infinite = Sample::new(&[f64::NEG_INFINITY, f64::INFINITY]);
        assert_close(test(&infinite, &infinite).unwrap().p_value, 1.0);
    }

    /// Reference values: scipy's `kstwo.sf`, in each of its ranges.
    #[test]
    fn one_sample_probabilities_agree_with_a_library() {
        for (n, x, expected) in [
            (1, 0.6, 0.8),
            (2, 0.3, 0.98),
            (10, 0.06, 0.999_999_999_962_841_1),
            (10, 0.95, 1.953_125_000_000_017_2e-13),
            (50, 0.6, 9.634_070_456_142_374e-18),
            (140, 0.05, 0.857_648_029_765_611_4),
            (141, 0.05, 0.854_845_693_009_663),
            (150, 0.004, 1.0),
            (1000, 0.01, 0.999_949_674_537_061_1),
            (1000, 0.03, 0.322_690_214_391_463_6),
            (1000, 0.06, 0.001_428_597_887_952_891),
            (200_000, 0.000_5, 0.999_999_999_766_341),
            (200_000, 0.002, 0.399_950_853_690_380_97),
            (200_000, 0.005, 9.049_367_287_273_853e-5),
        ] {
            assert_close(kolmogorov_two_sided_sf(n, x), expected);
        }
        let large = kolmogorov_two_sided_sf(3_000_000, 0.001);
        assert!((large / 0.004_954_200_360_108_9 - 1.0).abs() < 1e-6, "{large}");
        for (n, x) in [(0, 0.5), (5, 0.0), (5, -1.0), (5, f64::NAN)] {
            assert_close(kolmogorov_two_sided_sf(n, x), 1.0);
        }
        assert_close(kolmogorov_two_sided_sf(5, 2.0), 0.0);
        assert_close(kolmogorov_sf(-1.0), 1.0);
    }
}
