//! What a drift may look like: likelihood ratios of shifted distributions to the reference, bin by bin.
//!
//! Each alternative `j` is a table of factors `L[b]`, one per bin `b`, with `sum of p_b L[b] = 1` over the reference
//! masses `p`: the likelihood ratio of some shifted distribution. A value in bin `b` multiplies the evidence for `j`
//! by `L[b]`, whose mean under the reference is 1. Always true:
//! - Every factor is positive and finite: a fiftieth of each alternative is the reference itself, and the quantiles
//!   that shifts are computed from are bounded.
//! - Where the masses come from a sample, the factors are divided by what its error can add, so that their mean
//!   stays at or below 1 for nearly every sample.
//!
//! Not here: the evidence itself (`detector`), where the bins of a feature lie (the caller).

use libm::{exp, log};

use super::special::{normal_quantile, number};

/// Place of a bin among those of a feature.
///
/// A numeric feature has `Below`, any number of `Ordered` in ascending order, `Above`, `NonFinite` and `Missing`; a
/// categorical one `Category` for each, `Other`, `Unseen` and `Missing`. Each may be absent or occur more than once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BinRole {
    /// Values between two edges; ascending.
    Ordered,
    /// Values below all that the reference has.
    Below,
    /// Values above all that the reference has.
    Above,
    /// Infinite values.
    NonFinite,
    /// Absent values and NaN.
    Missing,
    /// One category.
    Category,
    /// All known categories without a bin of their own.
    Other,
    /// Categories that the reference does not have.
    Unseen,
}

/// Direction in which an alternative moves a feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShiftKind {
    /// Larger values.
    Up,
    /// Smaller values.
    Down,
    /// Values farther from the middle.
    Wider,
    /// Values closer to the middle.
    Narrower,
    /// More values at or beyond an end.
    Tail,
    /// Another share of missing values, or more infinite ones.
    Missing,
    /// More values of categories that the reference does not have.
    Unseen,
    /// Another share of a category, or of the rarer ones together.
    Category,
}

impl ShiftKind {
    /// The word for it, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Wider => "wider",
            Self::Narrower => "narrower",
            Self::Tail => "tail",
            Self::Missing => "missing",
            Self::Unseen => "unseen",
            Self::Category => "category",
        }
    }
}

/// Allowance for a reference that is itself a sample, and for drift too small to matter.
///
/// Factors of alternative `j` are divided by `1 + kappa sd_j + tolerance` with
/// `sd_j = sqrt((sum of p L^2 - 1) / rows)`, the standard deviation of their mean over reference samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Correction {
    /// Standard deviations allowed for; 2 covers the error of one alternative in most samples. At least 0.
    pub kappa: f64,
    /// Excess of a factor's mean that does not count as drift; at least 0. A drift under which no alternative's
    /// mean exceeds `1 + tolerance` raises alarms no more often than none.
    pub tolerance: f64,
    /// Rows of the reference sample; `None` if the masses are exact.
    pub rows: Option<f64>,
}

impl Correction {
    /// No allowance: the masses are exact, and any drift counts.
    pub const NONE: Self = Self { kappa: 0.0, tolerance: 0.0, rows: None };

    /// The divisor for factors whose square has the mean `second_moment` under the reference.
    pub(super) fn divisor(&self, second_moment: f64) -> f64 {
        let variance = (second_moment - 1.0).max(0.0);
        let deviation = self.rows.map_or(0.0, |rows| (variance / rows.max(1.0)).sqrt());
        1.0 + self.kappa.max(0.0) * deviation + self.tolerance.max(0.0)
    }
}

/// Masses of bins from the counts of a reference of `n` rows: `(c + 1/2) / (n + K/2)` for `K` bins (Krichevsky &
/// Trofimov, 1981), so that none is 0. Empty for no bins.
pub fn masses(counts: &[u64]) -> Vec<f64> {
    let rows = counts.iter().fold(0_u64, |sum, count| sum.saturating_add(*count));
    let whole = number(rows) + 0.5 * number(counts.len() as u64);
    counts.iter().map(|count| (number(*count) + 0.5) / whole).collect()
}

/// Share of each alternative that is the reference itself: no factor falls below it.
const REFERENCE_SHARE: f64 = 0.02;

/// The largest distance from the middle at which a bin counts, in standard deviations. Farther out, the square of a
/// factor would have so large a mean that the correction for a finite reference outweighs what it tells.
const QUANTILE_MAX: f64 = 2.5;

/// Categories that have alternatives of their own, the likeliest ones; the others have one together.
const CATEGORIES_MAX: usize = 32;

/// Alternatives of categories, at most: first each one's rise, then the finer ones of the likeliest.
const CATEGORY_ALTERNATIVES_MAX: usize = 40;

/// The alternatives of one feature: a table of the logarithms of their factors, of size `len() x bins()`.
#[derive(Debug, Clone, PartialEq)]
pub struct Alternatives {
    bins: usize,
    kinds: Vec<(ShiftKind, Option<usize>)>,
    /// Share of each alternative in the mean over all, times their number: 1 on average.
    weights: Vec<f64>,
    /// Bin by bin, the alternatives beside each other: one count multiplies one row.
    table: Vec<f64>,
}

impl Alternatives {
    /// The alternatives of a numeric feature: location moved by .25, .5 and 1 standard deviation either way, as
    /// `exp(k z)`; scale as `exp(k (z^2 - 1))` for `k` of -.6, -.25, .2 and .35; each end (with what lies beyond)
    /// four times as likely, and what lies beyond both sixteen times; missing values four times, and sixteen times
    /// or, where the reference has many, .3 times; infinite ones four times, as kind [`ShiftKind::Missing`]. Here
    /// `z` is the normal quantile of a bin's mid-rank, within +-2.5, so any distribution is shifted as a normal one
    /// would be. Alternatives that the bins cannot tell from the reference are left out, so there may be none.
    ///
    /// # Panics
    ///
    /// If there are not as many masses as roles.
    pub fn numeric(masses: &[f64], roles: &[BinRole], correction: Correction) -> Self {
        let mut made = Builder::new(masses, roles, correction);
        let quantiles = value_quantiles(masses, roles);
        let shift = |of: &dyn Fn(f64) -> f64| -> Vec<f64> {
            quantiles.iter().map(|z| z.map_or(1.0, of)).collect()
        };
        for (kind, k) in [
            (ShiftKind::Down, -1.0),
            (ShiftKind::Down, -0.5),
            (ShiftKind::Down, -0.25),
            (ShiftKind::Up, 0.25),
            (ShiftKind::Up, 0.5),
            (ShiftKind::Up, 1.0),
        ] {
            made.add_among_values(kind, shift(&|z| exp(k * z)));
        }
        for (kind, k) in [
            (ShiftKind::Narrower, -0.6),
            (ShiftKind::Narrower, -0.25),
            (ShiftKind::Wider, 0.2),
            (ShiftKind::Wider, 0.35),
        ] {
            made.add_among_values(kind, shift(&|z| exp(k * (z * z - 1.0))));
        }
        let ordered = |bin: &usize| roles[*bin] == BinRole::Ordered;
        let lowest = (0..roles.len()).find(ordered);
        let highest = (0..roles.len()).rev().find(ordered);
        let beyond = |bin: usize| matches!(roles[bin], BinRole::Below | BinRole::Above);
        made.add(ShiftKind::Tail, 4.0, |bin| roles[bin] == BinRole::Below || Some(bin) == lowest);
        made.add(ShiftKind::Tail, 4.0, |bin| roles[bin] == BinRole::Above || Some(bin) == highest);
        made.add(ShiftKind::Tail, 16.0, beyond);
        made.add_missing();
        made.add(ShiftKind::Missing, 4.0, |bin| roles[bin] == BinRole::NonFinite);
        made.add(ShiftKind::Unseen, 4.0, |bin| roles[bin] == BinRole::Unseen);
        made.finish()
    }

    /// The alternatives of a categorical feature: each of the 32 likeliest categories three times as likely, the
    /// likeliest also half as likely again and .3 times, as far as there is room for 40; the rarer ones together
    /// three times; the other, the unseen and the missing ones four times, and missing ones as for a numeric
    /// feature. Alternatives that the bins cannot tell from the reference are left out, so there may be none.
    ///
    /// # Panics
    ///
    /// If there are not as many masses as roles.
    pub fn categorical(masses: &[f64], roles: &[BinRole], correction: Correction) -> Self {
        let mut made = Builder::new(masses, roles, correction);
        let mut categories: Vec<usize> =
            (0..roles.len()).filter(|bin| roles[*bin] == BinRole::Category).collect();
        categories.sort_by(|a, b| masses[*b].total_cmp(&masses[*a]).then(a.cmp(b)));
        let rare = categories.split_off(categories.len().min(CATEGORIES_MAX));
        for category in &categories {
            made.add(ShiftKind::Category, 3.0, |bin| bin == *category);
        }
        let finer = categories.iter().flat_map(|category| [(*category, 0.3), (*category, 1.5)]);
        for (category, factor) in finer.take(CATEGORY_ALTERNATIVES_MAX - categories.len()) {
            made.add(ShiftKind::Category, factor, |bin| bin == category);
        }
        made.add(ShiftKind::Category, 3.0, |bin| rare.contains(&bin));
        made.add(ShiftKind::Category, 4.0, |bin| roles[bin] == BinRole::Other);
        made.add(ShiftKind::Unseen, 4.0, |bin| roles[bin] == BinRole::Unseen);
        made.add(ShiftKind::Unseen, 16.0, |bin| roles[bin] == BinRole::Unseen);
        made.add_missing();
        made.finish()
    }

    /// Number of alternatives; 0 where the bins tell nothing.
    pub fn len(&self) -> usize {
        self.kinds.len()
    }

    /// True if there is no alternative.
    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    /// Number of bins.
    pub fn bins(&self) -> usize {
        self.bins
    }

    /// Direction of alternative `j`.
    ///
    /// # Panics
    ///
    /// If there is no such alternative.
    pub fn kind(&self, j: usize) -> ShiftKind {
        self.kinds[j].0
    }

    /// The one bin that alternative `j` is about, such as a category; `None` if it moves more than one.
    ///
    /// # Panics
    ///
    /// If there is no such alternative.
    pub fn bin(&self, j: usize) -> Option<usize> {
        self.kinds[j].1
    }

    /// What alternative `j` counts for in the mean over all, 1 on average. Those of missing and unseen values
    /// count a quarter of the others: they find what they are for within few values anyway, and so the others find
    /// theirs sooner.
    ///
    /// # Panics
    ///
    /// If there is no such alternative.
    pub fn weight(&self, j: usize) -> f64 {
        self.weights[j]
    }

    /// Natural logarithm of the factor of a value in `bin` for alternative `j`, correction included.
    ///
    /// # Panics
    ///
    /// If there is no such bin or alternative.
    pub fn log_ratio(&self, bin: usize, j: usize) -> f64 {
        assert!(j < self.len(), "alternative {j} of {}", self.len());
        self.table[bin * self.len() + j]
    }

    /// All weights.
    pub(super) fn weights(&self) -> &[f64] {
        &self.weights
    }

    /// The logarithms of the factors of a value in `bin`, one per alternative.
    pub(super) fn row(&self, bin: usize) -> &[f64] {
        &self.table[bin * self.len()..(bin + 1) * self.len()]
    }
}

/// The normal quantile of each value bin's mid-rank among the values; `None` for the other bins.
fn value_quantiles(masses: &[f64], roles: &[BinRole]) -> Vec<Option<f64>> {
    let in_order = [BinRole::Below, BinRole::Ordered, BinRole::Above];
    let bins: Vec<usize> = in_order
        .iter()
        .flat_map(|role| (0..roles.len()).filter(move |bin| roles[*bin] == *role))
        .collect();
    let whole: f64 = bins.iter().map(|bin| masses[*bin]).sum();
    let mut quantiles = vec![None; roles.len()];
    let mut below = 0.0;
    for bin in bins {
        let rank = ((below + 0.5 * masses[bin]) / whole).clamp(1e-9, 1.0 - 1e-9);
        // Without any mass among the values there is no rank either.
        let quantile = if rank.is_nan() { 0.0 } else { normal_quantile(rank) };
        quantiles[bin] = Some(quantile.clamp(-QUANTILE_MAX, QUANTILE_MAX));
        below += masses[bin];
    }
    quantiles
}

/// Collects alternatives one after the other.
struct Builder<'a> {
    masses: &'a [f64],
    roles: &'a [BinRole],
    correction: Correction,
    kinds: Vec<(ShiftKind, Option<usize>)>,
    /// Logarithms of the factors, alternative by alternative.
    columns: Vec<Vec<f64>>,
}

impl<'a> Builder<'a> {
    fn new(masses: &'a [f64], roles: &'a [BinRole], correction: Correction) -> Self {
        assert_eq!(masses.len(), roles.len(), "each bin has a mass and a role");
        Self { masses, roles, correction, kinds: Vec::new(), columns: Vec::new() }
    }

    /// Adds an alternative that makes some bins `factor` times as likely, compared with the others.
    fn add(&mut self, kind: ShiftKind, factor: f64, chosen: impl Fn(usize) -> bool) {
        let raw = (0..self.masses.len()).map(|bin| if chosen(bin) { factor } else { 1.0 });
        let mut those = (0..self.masses.len()).filter(|bin| chosen(*bin));
        let only = those.next().filter(|_| those.next().is_none());
        self.push(kind, only, raw.collect(), |_| true);
    }

    /// Adds the alternatives of missing values.
    fn add_missing(&mut self) {
        let roles = self.roles;
        let missing = |bin: usize| roles[bin] == BinRole::Missing;
        let mass: f64 = (0..roles.len()).filter(|bin| missing(*bin)).map(|b| self.masses[b]).sum();
        self.add(ShiftKind::Missing, 4.0, missing);
        // Where many values are missing, sixteen times as many would be nearly all; fewer are a drift, too.
        let factor = if mass < 1.0 / 32.0 { 16.0 } else { 0.3 };
        self.add(ShiftKind::Missing, factor, missing);
    }

    /// Adds an alternative that moves values among the value bins; the share of all others stays.
    fn add_among_values(&mut self, kind: ShiftKind, raw: Vec<f64>) {
        let roles = self.roles;
        let is_value =
            |bin: usize| matches!(roles[bin], BinRole::Below | BinRole::Ordered | BinRole::Above);
        self.push(kind, None, raw, is_value);
    }

    /// Scales the raw factors of the `moved` bins to a mean of 1, mixes in the reference and corrects.
    fn push(
        &mut self,
        kind: ShiftKind,
        bin: Option<usize>,
        mut ratios: Vec<f64>,
        moved: impl Fn(usize) -> bool,
    ) {
        let among = || (0..self.masses.len()).filter(|bin| moved(*bin));
        let mass: f64 = among().map(|bin| self.masses[bin]).sum();
        let mean = among().map(|bin| self.masses[bin] * ratios[bin]).sum::<f64>() / mass;
        if !(mean > 0.0 && mean.is_finite()) {
            return;
        }
        for bin in among() {
            ratios[bin] = (1.0 - REFERENCE_SHARE) * (ratios[bin] / mean) + REFERENCE_SHARE;
        }
        if ratios.iter().all(|ratio| (ratio - 1.0).abs() < 1e-9) {
            return;
        }
        let squares = self.masses.iter().zip(&ratios).map(|(p, ratio)| p * ratio * ratio).sum();
        let divisor = log(self.correction.divisor(squares));
        self.kinds.push((kind, bin));
        self.columns.push(ratios.iter().map(|ratio| log(*ratio) - divisor).collect());
    }

    fn finish(self) -> Alternatives {
        let bins = self.masses.len();
        let weight = |(kind, _): &(ShiftKind, Option<usize>)| match kind {
            ShiftKind::Missing | ShiftKind::Unseen => 0.25,
            _ => 1.0,
        };
        let raw: Vec<f64> = self.kinds.iter().map(weight).collect();
        let mean = raw.iter().sum::<f64>() / number(raw.len().max(1) as u64);
        let weights = raw.iter().map(|weight| weight / mean).collect();
        let table = (0..bins).flat_map(|bin| self.columns.iter().map(move |column| column[bin]));
        let table = table.collect();
        Alternatives { bins, kinds: self.kinds, weights, table }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUMERIC: [BinRole; 8] = [
        BinRole::Below,
        BinRole::Ordered,
        BinRole::Ordered,
        BinRole::Ordered,
        BinRole::Ordered,
        BinRole::Above,
        BinRole::NonFinite,
        BinRole::Missing,
    ];

    fn mean(alternatives: &Alternatives, masses: &[f64], j: usize) -> f64 {
        masses.iter().enumerate().map(|(bin, p)| p * exp(alternatives.log_ratio(bin, j))).sum()
    }

    #[test]
    fn factors_have_a_mean_of_one_under_the_reference() {
        for counts in [[0, 250, 250, 250, 250, 0, 0, 0], [3, 900, 7, 0, 12, 0, 5, 500], [0; 8]] {
            let masses = masses(&counts);
            let numeric = Alternatives::numeric(&masses, &NUMERIC, Correction::NONE);
            assert_eq!((numeric.len(), numeric.bins()), (16, 8));
            let roles = [BinRole::Category; 8];
            let categorical = Alternatives::categorical(&masses, &roles, Correction::NONE);
            assert_eq!(categorical.len(), 24);
            for made in [&numeric, &categorical] {
                for j in 0..made.len() {
                    let mean = mean(made, &masses, j);
                    assert!((mean - 1.0).abs() < 1e-12, "{:?}: {mean}", made.kind(j));
                    assert!((0..8).all(|bin| made.log_ratio(bin, j).is_finite()));
                }
            }
        }
    }

    #[test]
    fn correction_divides_by_the_error_of_the_reference() {
        let masses = [0.25; 4];
        let roles = [BinRole::Category; 4];
        let exact = Alternatives::categorical(&masses, &roles, Correction::NONE);
        let correction = Correction { kappa: 2.0, tolerance: 0.02, rows: Some(400.0) };
        let sampled = Alternatives::categorical(&masses, &roles, correction);
        // A category three times as likely: half of the mass there, a sixth elsewhere.
        let (high, low) = (0.98 * 2.0 + 0.02, 0.98 * 2.0 / 3.0 + 0.02);
        let second_moment: f64 = 0.25 * (high * high + 3.0 * low * low);
        let divisor = 1.02 + 2.0 * ((second_moment - 1.0) / 400.0).sqrt();
        assert!((exact.log_ratio(0, 0) - log(high)).abs() < 1e-12);
        assert!((exact.log_ratio(1, 0) - log(low)).abs() < 1e-12);
        assert!((sampled.log_ratio(1, 0) - log(low / divisor)).abs() < 1e-12);
        assert_eq!((sampled.kind(0).name(), sampled.bin(0)), ("category", Some(0)));
    }

    #[test]
    fn degenerate_features_have_the_alternatives_that_their_bins_can_tell() {
        let none = Alternatives::numeric(&[], &[], Correction::NONE);
        assert!(none.is_empty() && none.bins() == 0);
        assert!(Alternatives::numeric(&[1.0], &[BinRole::Ordered], Correction::NONE).is_empty());
        assert!(
            Alternatives::categorical(&[1.0], &[BinRole::Category], Correction::NONE).is_empty()
        );
        // A constant: equal or not, and missing or not.
        let roles = [BinRole::Below, BinRole::Ordered, BinRole::Above, BinRole::Missing];
        let constant = Alternatives::numeric(&masses(&[0, 1000, 0, 0]), &roles, Correction::NONE);
        assert!(constant.len() >= 12, "{}", constant.len());
        // Nothing but missing values, and masses of 0.
        let missing = Alternatives::numeric(&[0.0, 0.0, 0.0, 1.0], &roles, Correction::NONE);
        for made in [constant, missing] {
            let finite = (0..made.len()).all(|j| (0..4).all(|b| made.log_ratio(b, j).is_finite()));
            assert!(finite);
        }
    }

    #[test]
    fn many_categories_keep_a_bounded_table() {
        let counts: Vec<u64> = (0..64).map(|bin| 1000 - 10 * bin).collect();
        let roles = vec![BinRole::Category; 64];
        let made = Alternatives::categorical(&masses(&counts), &roles, Correction::NONE);
        assert_eq!(made.len(), CATEGORY_ALTERNATIVES_MAX + 1);
        // The rarer half rises together.
        let last = made.len() - 1;
        assert_eq!(made.bin(last), None);
        assert!(made.log_ratio(63, last) > 0.5 && made.log_ratio(0, last) < 0.0);
    }
}
