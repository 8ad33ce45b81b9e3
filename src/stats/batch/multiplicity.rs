//! Many p-values at once: thresholds and corrections.

use super::super::special::number;

/// The level for each of `tests` p-values at which the chance of any false one is at most `alpha` (Bonferroni).
pub fn bonferroni_threshold(alpha: f64, tests: usize) -> f64 {
    alpha / number(tests.max(1) as u64)
}

/// P-values corrected so that those up to `q` have an expected share of false ones of at most `q`, where tests are
/// independent or positively dependent (Benjamini & Hochberg, "Controlling the false discovery rate", 1995).
pub fn benjamini_hochberg(p_values: &[f64]) -> Vec<f64> {
    adjusted(p_values, 1.0)
}

/// As [`benjamini_hochberg`], under any dependence (Benjamini & Yekutieli, 2001).
pub fn benjamini_yekutieli(p_values: &[f64]) -> Vec<f64> {
    adjusted(p_values, (1..=p_values.len() as u64).map(|i| 1.0 / number(i)).sum())
}

fn adjusted(p_values: &[f64], factor: f64) -> Vec<f64> {
    let order = ascending(p_values);
    let tests = number(p_values.len() as u64);
    let mut adjusted = vec![1.0; p_values.len()];
    let mut least = 1.0_f64;
    for (place, index) in order.into_iter().enumerate().rev() {
        least = least.min(p_values[index] * factor * tests / number(place as u64 + 1));
        adjusted[index] = least;
    }
    adjusted
}

/// The threshold of Benjamini & Hochberg's step-up rule at the level `q`: the largest `q i / d` that exceeds the
/// `i`-th smallest of `d` p-values; reported are the `i` smallest. `None` if none does.
pub fn step_up_threshold(p_values: &[f64], q: f64) -> Option<f64> {
    let tests = number(p_values.len() as u64);
    let line = |place: usize| q * number(place as u64 + 1) / tests;
    let order = ascending(p_values);
    let mut passing =
        order.into_iter().enumerate().filter(|(place, index)| p_values[*index] < line(*place));
    passing.next_back().map(|(place, _)| line(place))
}

fn ascending(p_values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|a, b| p_values[*a].total_cmp(&p_values[*b]));
    order
}
