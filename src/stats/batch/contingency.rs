//! Tables of counts: do rows share one distribution over columns?

use libm::log;

use super::{
    super::special::{chi_square_sf, normal_sf, number},
    sample::{SampleError, Side},
};

/// How far observed counts are from expected ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Divergence {
    /// Pearson's chi-square, `sum of (o - e)^2 / e`.
    Pearson,
    /// The G-test, `2 sum of o ln(o / e)`.
    LogLikelihood,
}

/// Result of a test of independence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Contingency {
    /// The divergence between observed and expected counts.
    pub statistic: f64,
    /// The probability of at least this divergence, in the limit of many counts.
    pub p_value: f64,
    /// Degrees of freedom, over rows and columns that are not empty.
    pub degrees: usize,
    /// The smallest expected count: below 5 the p-value is a rough one, and rare columns are better merged.
    pub expected_min: f64,
}

/// The chi-square or G-test that all rows have one distribution over the columns. Empty rows and columns are left
/// out, so a category that one row does not have is a column like any other. `corrects` asks for Yates' correction
/// (counts moved towards the expected ones by up to 1/2), which applies to two rows with two columns only.
///
/// With a single column left there is nothing to differ: 0 degrees of freedom, and a p-value of 1.
pub fn independence(
    rows: &[&[u64]],
    divergence: Divergence,
    corrects: bool,
) -> Result<Contingency, SampleError> {
    let width = rows.first().map_or(0, |row| row.len());
    let sum = |counts: &mut dyn Iterator<Item = u64>| counts.map(number).sum::<f64>();
    let row_sums: Vec<f64> = rows.iter().map(|row| sum(&mut row.iter().copied())).collect();
    let whole: f64 = row_sums.iter().sum();
    if rows.len() < 2 || rows.iter().any(|row| row.len() != width) || whole <= 0.0 {
        return Err(SampleError::Table);
    }
    let column_sums: Vec<f64> =
        (0..width).map(|column| sum(&mut rows.iter().map(|row| row[column]))).collect();
    let filled = |sums: &[f64]| sums.iter().filter(|sum| **sum > 0.0).count();
    let degrees = (filled(&row_sums) - 1) * (filled(&column_sums) - 1);
    let (mut statistic, mut expected_min) = (0.0, f64::INFINITY);
    for (row, row_sum) in rows.iter().zip(&row_sums) {
        for (count, column_sum) in row.iter().zip(&column_sums) {
            let expected = row_sum * column_sum / whole;
            if expected <= 0.0 {
                continue;
            }
            expected_min = expected_min.min(expected);
            let mut observed = number(*count);
            if corrects && degrees == 1 {
                observed += (expected - observed).clamp(-0.5, 0.5);
            }
            let difference = observed - expected;
            statistic += match divergence {
                Divergence::Pearson => difference * difference / expected,
                Divergence::LogLikelihood if observed > 0.0 => {
                    2.0 * observed * log(observed / expected)
                }
                Divergence::LogLikelihood => 0.0,
            };
        }
    }
    // Rounding may leave a sum of logarithms below 0.
    let statistic = f64::max(statistic, 0.0);
    let p_value = if degrees == 0 { 1.0 } else { chi_square_sf(number(degrees as u64), statistic) };
    Ok(Contingency { statistic, p_value, degrees, expected_min })
}

/// Result of Fisher's exact test.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fisher {
    /// `a d / (b c)` of the table `[[a, b], [c, d]]`: infinite if only `b c` is 0; `None` if a row or column is empty.
    pub odds_ratio: Option<f64>,
    /// The probability of a table at least as extreme among those with the same sums.
    pub p_value: f64,
}

/// Counts in a table, at most, for which tables are counted.
const COUNTED_MAX: f64 = 1e10;

/// The share of the likeliest table's probability at which others no longer count.
const VANISHING: f64 = 1e-300;

/// Fisher's exact test of a table with two rows and two columns. Two-sided, as scipy: all tables that are not
/// more likely than the given one. Takes time and memory in proportion to the standard deviation of a count; beyond
/// ten thousand million counts in all, where it makes no difference, the normal limit takes its place.
pub fn fisher_exact(table: [[u64; 2]; 2], side: Side) -> Fisher {
    let [[a, b], [c, d]] = table.map(|row| row.map(u128::from));
    if a + b == 0 || c + d == 0 || a + c == 0 || b + d == 0 {
        return Fisher { odds_ratio: None, p_value: 1.0 };
    }
    let (least, most) = ((a + c).saturating_sub(c + d), (a + b).min(a + c));
    // The ratio of the probability of one more in the corner to that of `corner`.
    let rise = |corner: u128| {
        let rest = (c + d + corner - (a + c) + 1) as f64;
        ((a + b - corner) as f64 / (corner + 1) as f64) * ((a + c - corner) as f64 / rest)
    };
    let whole = (a + b + c + d) as f64;
    let odds_ratio = Some((a as f64 * d as f64) / (b as f64 * c as f64));
    if whole > COUNTED_MAX {
        let p_value = normal_limit([[a, b], [c, d]].map(|row| row.map(|count| count as f64)), side);
        return Fisher { odds_ratio, p_value };
    }
    let guess = ((a + b + 1) as f64 * ((a + c + 1) as f64 / (whole + 2.0))) as u128;
    let mode = guess.clamp(least, most);
    // Probabilities relative to the mode's, outwards until they vanish.
    let mut upwards = vec![1.0];
    let mut weight = 1.0;
    for corner in mode..most {
        weight *= rise(corner);
        if weight < VANISHING {
            break;
        }
        upwards.push(weight);
    }
    let mut downwards = Vec::new();
    weight = 1.0;
    for corner in (least..mode).rev() {
        weight /= rise(corner);
        if weight < VANISHING {
            break;
        }
        downwards.push(weight);
    }
    let first = mode - downwards.len() as u128;
    let weights: Vec<f64> = downwards.into_iter().rev().chain(upwards).collect();
    let total: f64 = weights.iter().sum();
    let own = a.checked_sub(first).map(|place| usize::try_from(place).unwrap_or(usize::MAX));
    let own_weight = own.and_then(|own| weights.get(own)).copied().unwrap_or(0.0);
    let own = own.unwrap_or(0).min(weights.len());
    let tail: f64 = match side {
        Side::TwoSided => weights.iter().filter(|w| **w <= own_weight * (1.0 + 1e-14)).sum(),
        Side::Greater => weights[own..].iter().sum(),
        Side::Less => weights[..weights.len().min(own + 1)].iter().sum(),
    };
    Fisher { odds_ratio, p_value: (tail / total).min(1.0) }
}

/// The p-value by the normal distribution with the mean and variance of the corner, corrected for continuity.
fn normal_limit([[a, b], [c, d]]: [[f64; 2]; 2], side: Side) -> f64 {
    let whole = a + b + c + d;
    let mean = (a + b) * ((a + c) / whole);
    let deviation = (mean * ((c + d) / whole) * ((b + d) / whole)).sqrt();
    let (excess, sides) = match side {
        Side::TwoSided => ((a - mean).abs(), 2.0),
        Side::Greater => (a - mean, 1.0),
        Side::Less => (mean - a, 1.0),
    };
    (sides * normal_sf((excess - 0.5) / deviation)).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::{super::super::special::tests::assert_close, *};

    /// Reference values: scipy's `fisher_exact`.
    #[test]
    fn exact_tests_agree_with_a_library() {
        let check = |table, expected: [f64; 3]| {
            for (side, expected) in
                [Side::TwoSided, Side::Less, Side::Greater].into_iter().zip(expected)
            {
                assert_close(fisher_exact(table, side).p_value, expected);
            }
        };
        check([[0, 5], [7, 2]], [0.020_979_020_979_020_983, 0.010_489_510_489_510_49, 1.0]);
        check([[1, 0], [0, 1]], [1.0, 1.0, 0.5]);
        let expected =
            [0.080_268_552_074_104_63, 0.044_554_737_835_076_88, 0.994_525_206_021_882_2];
        check([[12, 5], [29, 2]], expected);
        let expected =
            [9.715_880_156_668_495e-6, 0.999_995_917_000_483_8, 5.430_167_437_747_687_5e-6];
        check([[1000, 900], [1100, 1300]], expected);
        let expected =
            [0.004_677_697_033_719_897, 0.997_681_746_130_859_7, 0.002_338_848_516_859_947];
        check([[500_000, 499_000], [498_000, 501_000]], expected);
        let huge = fisher_exact([[u64::MAX, 1], [1, u64::MAX]], Side::TwoSided);
        assert!(huge.p_value < 1e-9);
        // On either side of the limit.
        let near = [9_990, 10_010].map(|part: u64| {
            let table =
                [[part * 100_000, part * 150_000], [part * 100_000 + 50_000, part * 149_980]];
            fisher_exact(table, Side::TwoSided).p_value
        });
        assert!(near[0] > 1e-3 && (near[0] / near[1] - 1.0).abs() < 0.2, "{near:?}");
        assert_eq!(fisher_exact([[0, 0], [3, 4]], Side::TwoSided).odds_ratio, None);
        assert_eq!(fisher_exact([[3, 0], [0, 4]], Side::Less).odds_ratio, Some(f64::INFINITY));
    }

    #[test]
    fn tables_without_a_difference_or_without_counts_are_told_apart() {
        let test = |rows: &[&[u64]]| independence(rows, Divergence::Pearson, true);
        let same = test(&[&[5, 0, 0], &[9, 0, 0]]).unwrap();
        assert_eq!((same.degrees, same.p_value.to_bits()), (0, 1.0_f64.to_bits()));
        for rows in [&[&[5_u64, 1][..]][..], &[&[5, 1], &[1]], &[&[0, 0], &[0, 0]], &[]] {
            assert_eq!(test(rows), Err(SampleError::Table));
        }
        // A row without counts leaves nothing to compare, and an unseen category is a column.
        assert_eq!(test(&[&[5, 1], &[0, 0]]).unwrap().degrees, 0);
        let unseen = test(&[&[100, 50, 0], &[80, 60, 10]]).unwrap();
        assert_eq!(unseen.degrees, 2);
        assert_close(unseen.expected_min, 5.0);
    }
}
