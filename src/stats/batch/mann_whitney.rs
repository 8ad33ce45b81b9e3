//! The rank-sum test of Mann, Whitney and Wilcoxon: are values of one sample larger?

use super::{
    super::special::{normal_sf, number},
    sample::{Sample, SampleError, Side, TestResult, steps},
};

/// The test of Mann & Whitney ("On a test of whether one of two random variables is stochastically larger than the
/// other", 1947). The statistic is the number of pairs in which the reference's value is the larger one, ties
/// counted half; the p-value is the normal limit's, with continuity and tie correction. 1 if all values are equal.
pub fn mann_whitney(
    reference: &Sample,
    current: &Sample,
    side: Side,
) -> Result<TestResult, SampleError> {
    let (x, y) = (reference.sorted(), current.sorted());
    SampleError::check(1, x, y)?;
    let (mut twice_pairs, mut ties) = (0_u128, 0.0);
    for step in steps(x, y) {
        let below = (step.up_to[1] - step.equal[1]) as u128;
        twice_pairs += step.equal[0] as u128 * (2 * below + step.equal[1] as u128);
        let equal = number((step.equal[0] + step.equal[1]) as u64);
        ties += equal * (equal * equal - 1.0);
    }
    let [n, m] = [x.len(), y.len()].map(|size| number(size as u64));
    let (pairs, all) = (n * m, n + m);
    let statistic = twice_pairs as f64 / 2.0;
    let (tail, sides) = match side {
        Side::TwoSided => (statistic.max(pairs - statistic), 2.0),
        Side::Greater => (statistic, 1.0),
        Side::Less => (pairs - statistic, 1.0),
    };
    let spread = (pairs / 12.0 * (all + 1.0 - ties / (all * (all - 1.0)))).sqrt();
    let excess = tail - pairs / 2.0 - 0.5;
    let p_value = if spread > 0.0 { (sides * normal_sf(excess / spread)).min(1.0) } else { 1.0 };
    Ok(TestResult { statistic, p_value })
}

#[cfg(test)]
mod tests {
    use super::{super::super::special::tests::assert_close, *};

    /// Reference values: scipy's `mannwhitneyu`.
    #[test]
    fn smaller_ranks_agree_with_a_library() {
        let x = Sample::new(&[1.0, 2.0, 2.0, 3.0, 5.0]);
        let y = Sample::new(&[2.0, 2.0, 4.0, 6.0]);
        let got = mann_whitney(&x, &y, Side::Less).unwrap();
        assert_close(got.statistic, 7.0);
        assert_close(got.p_value, 0.261_215_642_480_782_2);
        let constant = Sample::new(&[3.0; 4]);
        assert_close(mann_whitney(&constant, &constant, Side::TwoSided).unwrap().p_value, 1.0);
        assert!(mann_whitney(&constant, &Sample::default(), Side::TwoSided).is_err());
    }
}
