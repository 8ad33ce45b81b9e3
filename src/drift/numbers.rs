//! References of numbers: what is kept while values come in, the edges of their bins, and exact counts in them.
//!
//! The first pass ([`Numbers`]) keeps moments, extremes, a bounded random sample and, as long as there are few, all
//! distinct values; the second ([`Tally`]) counts. Always true: memory does not grow with the values, the same values
//! in the same order and the same seed give the same bins, and edges are values that were seen or lie between two.

use super::profile::{Bins, Feature, Moments, ORDERED_MAX, written};
use crate::stats::Random;

/// Distinct values that are counted exactly.
pub(super) const DISTINCT_MAX: usize = 20;

/// Values of one numeric feature, as far as they are kept.
#[derive(Debug, Clone)]
pub(super) struct Numbers {
    missing: u64,
    infinite: u64,
    spread: Spread,
    min: f64,
    max: f64,
    /// Each distinct value and its count, ascending; `None` once there are too many.
    distinct: Option<Vec<(f64, u64)>>,
    sample: Vec<f64>,
    capacity: usize,
    random: Random,
}

/// Mean and spread by Welford's recurrence (Technometrics 4, 1962).
#[derive(Debug, Clone, Copy, Default)]
struct Spread {
    count: u64,
    mean: f64,
    /// Sum of squared distances from the mean.
    squares: f64,
}

impl Spread {
    #[expect(clippy::cast_precision_loss, reason = "fewer than 2^53 values")]
    fn push(&mut self, value: f64) {
        self.count += 1;
        let before = value - self.mean;
        self.mean += before / self.count as f64;
        self.squares += before * (value - self.mean);
    }

    /// Mean and standard deviation, with the number of values as its divisor; `None` if a number is too large.
    #[expect(clippy::cast_precision_loss, reason = "fewer than 2^53 values")]
    fn moments(self) -> Option<Moments> {
        let sd = (self.squares / self.count as f64).max(0.0).sqrt();
        let moments = Moments { mean: self.mean, sd };
        (self.count > 0 && self.mean.is_finite() && self.squares.is_finite()).then_some(moments)
    }
}

impl Numbers {
    /// No values yet; the sample will have at most `capacity`, drawn by the seed.
    pub(super) fn new(capacity: usize, seed: u64) -> Self {
        Self {
            missing: 0,
            infinite: 0,
            spread: Spread::default(),
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            distinct: Some(Vec::new()),
            sample: Vec::new(),
            capacity,
            random: Random::new(seed),
        }
    }

    /// Takes a value; NaN is a missing one.
    pub(super) fn push(&mut self, value: f64) {
        if !value.is_finite() {
            self.missing += u64::from(value.is_nan());
            self.infinite += u64::from(value.is_infinite());
            return;
        }
        // No negative zero: it is equal to the other and written differently.
        let value = value + 0.0;
        self.spread.push(value);
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        if let Some(distinct) = &mut self.distinct {
            match distinct.binary_search_by(|(own, _)| own.total_cmp(&value)) {
                Ok(place) => distinct[place].1 += 1,
                Err(_) if distinct.len() == DISTINCT_MAX => self.distinct = None,
                Err(place) => distinct.insert(place, (value, 1)),
            }
        }
        // Vitter's algorithm R (ACM TOMS 11, 1985): every value is as likely to be in the sample.
        if self.sample.len() < self.capacity {
            self.sample.push(value);
        } else {
            let place = self.random.below(usize::try_from(self.spread.count).unwrap_or(usize::MAX));
            if let Some(old) = self.sample.get_mut(place) {
                *old = value;
            }
        }
    }

    /// Takes so many missing values.
    pub(super) fn miss(&mut self, count: u64) {
        self.missing += count;
    }

    /// True if the second pass has to count.
    pub(super) fn needs_counting(&self) -> bool {
        self.distinct.as_ref().is_none_or(|distinct| distinct.len() > ORDERED_MAX)
    }

    /// Edges of the bins: the extremes, and 15 quantiles between; every value where there are at most 16.
    fn edges(&self, sorted: &[f64]) -> Vec<f64> {
        let few = self.distinct.as_ref().filter(|distinct| distinct.len() <= ORDERED_MAX);
        let inner: Vec<f64> = match few {
            Some(distinct) => distinct.iter().map(|(value, _)| *value).collect(),
            None => (1..ORDERED_MAX).map(|i| sorted[i * sorted.len() / ORDERED_MAX]).collect(),
        };
        let below = match few {
            Some(distinct) => distinct.iter().rev().nth(1).map(|(value, _)| *value),
            None => sorted.iter().rev().copied().find(|value| *value < self.max),
        };
        if self.spread.count == 0 {
            return Vec::new();
        }
        let is_heavy = inner.last() == Some(&self.max);
        let mut edges = vec![self.min];
        edges.extend(inner.into_iter().filter(|value| *value > self.min && *value < self.max));
        edges.dedup();
        // The last bin is closed above: what equals the largest has a bin of its own only with an edge before it.
        if let Some(below) = below.filter(|_| is_heavy) {
            let between = below / 2.0 + self.max / 2.0;
            let last = edges.last().copied().unwrap_or(self.max);
            edges.extend((between > last && between < self.max).then_some(between));
        }
        if self.max > self.min {
            edges.push(self.max);
        }
        edges
    }

    /// The feature with its bins and all that the first pass knows: counts where there are few values. The sample is
    /// cut to so many values.
    pub(super) fn settle(mut self, name: String, sample_max: usize) -> Tally {
        let moments = self.spread.moments();
        let mut sorted = std::mem::take(&mut self.sample);
        sorted.sort_by(f64::total_cmp);
        let edges = self.edges(&sorted);
        let sample = thinned(sorted, sample_max, &mut self.random);
        let mut tally = Tally::new(name, edges, sample);
        tally.feature.moments = moments;
        if !self.needs_counting() {
            for (value, count) in self.distinct.iter().flatten() {
                let bin = tally.feature.bins.of_number(*value);
                tally.feature.counts[bin] += count;
            }
            let last = tally.feature.counts.len() - 1;
            tally.feature.counts[last] = self.missing;
            tally.feature.counts[last - 1] = self.infinite;
            tally.is_complete = true;
        }
        tally
    }

    /// The feature with each distinct value as a category; only where they are few.
    pub(super) fn categorical(&self, name: String) -> Option<Feature> {
        let mut distinct = self.distinct.clone()?;
        // Most frequent first.
        distinct.sort_by(|(a, first), (b, second)| second.cmp(first).then(a.total_cmp(b)));
        let categories = distinct.iter().map(|(value, _)| written(*value)).collect();
        let mut counts: Vec<u64> = distinct.iter().map(|(_, count)| *count).collect();
        counts.extend([0, self.infinite, self.missing]);
        let bins = Bins::Categorical { categories, others: Vec::new() };
        Some(Feature { name, bins, counts, moments: None, sample: Vec::new() })
    }
}

/// So many of the values, drawn without replacement; they stay in their order.
fn thinned(values: Vec<f64>, max: usize, random: &mut Random) -> Vec<f64> {
    let (mut left, mut wanted) = (values.len(), max.min(values.len()));
    // Knuth's algorithm S (The Art of Computer Programming 2, 3.4.2).
    let is_drawn = |_: &f64| {
        let is_drawn = random.below(left) < wanted;
        wanted -= usize::from(is_drawn);
        left -= 1;
        is_drawn
    };
    let mut values = values;
    let mut is_drawn = is_drawn;
    values.retain(|value| is_drawn(value));
    values
}

/// A numeric feature whose values are being counted.
#[derive(Debug, Clone)]
pub(super) struct Tally {
    feature: Feature,
    spread: Spread,
    /// True if the first pass has counted already.
    is_complete: bool,
}

impl Tally {
    /// A feature with these edges and no counts yet.
    pub(super) fn new(name: String, edges: Vec<f64>, sample: Vec<f64>) -> Self {
        let bins = Bins::Numeric { edges };
        let counts = vec![0; bins.len()];
        let feature = Feature { name, bins, counts, moments: None, sample };
        Self { feature, spread: Spread::default(), is_complete: false }
    }

    /// The same with bins that reach from one number to the other, which no value can pass.
    pub(super) fn within(self, min: f64, max: f64) -> Self {
        let Bins::Numeric { edges } = self.feature.bins else { return self };
        let inner = match edges.as_slice() {
            [] => Vec::new(),
            // What is always the same has a bin of its own.
            [one] => vec![one.clamp(min + (max - min) / 128.0, max - (max - min) / 128.0)],
            [_, inner @ .., _] => inner.to_vec(),
        };
        let edges = [vec![min], inner, vec![max]].concat();
        Self::new(self.feature.name, edges, self.feature.sample)
    }

    /// True if it has to be given values.
    pub(super) fn needs_counting(&self) -> bool {
        !self.is_complete
    }

    /// Counts a value, if the first pass has not.
    pub(super) fn count(&mut self, value: f64) {
        if self.is_complete {
            return;
        }
        self.feature.counts[self.feature.bins.of_number(value)] += 1;
        if value.is_finite() && self.feature.moments.is_none() {
            self.spread.push(value);
        }
    }

    /// The feature.
    pub(super) fn finish(mut self) -> Feature {
        self.feature.moments = self.feature.moments.or_else(|| self.spread.moments());
        self.feature
    }
}

/// Learns the reference of a numeric feature from values that are all at hand; NaN is a missing one.
///
/// At most 20 distinct whole numbers become categories, if the feature has whole numbers only.
pub fn learn_numeric(name: &str, values: &[f64], is_integer: bool) -> Feature {
    let mut numbers = Numbers::new(values.len(), 0);
    for value in values {
        numbers.push(*value);
    }
    let is_categorical = is_integer && numbers.spread.count > 0;
    if is_categorical && let Some(feature) = numbers.categorical(name.to_owned()) {
        return feature;
    }
    let mut tally = numbers.settle(name.to_owned(), values.len());
    for value in values {
        tally.count(*value);
    }
    tally.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edges(feature: &Feature) -> &[f64] {
        let Bins::Numeric { edges } = &feature.bins else { panic!("{feature:?}") };
        edges
    }

    #[test]
    fn bins_have_equal_masses_where_values_differ() {
        let values: Vec<f64> = (0..1600).map(|i| f64::from((i * 7) % 1600) / 10.0).collect();
        let feature = learn_numeric("a", &values, false);
        let expected: Vec<f64> = (0..16).map(|i| f64::from(i * 10)).chain([159.9]).collect();
        assert_eq!(edges(&feature), expected);
        assert_eq!(feature.counts, [vec![0], vec![100; 16], vec![0; 3]].concat());
        let moments = feature.moments.unwrap();
        assert!((moments.mean - 79.95).abs() < 1e-9, "{moments:?}");
        assert_eq!(feature.sample.len(), 1600);
    }

    #[test]
    fn few_values_have_a_bin_each() {
        let check = |values: &[f64], wanted: &[f64], counts: &[u64]| {
            let feature = learn_numeric("a", values, false);
            assert_eq!(
                (edges(&feature), feature.counts.as_slice()),
                (wanted, counts),
                "{values:?}"
            );
            let profile = crate::drift::Profile {
                schema: 1,
                rows: 1,
                digest: String::new(),
                source: String::new(),
                derived: Vec::new(),
                features: vec![feature],
            };
            profile.check().unwrap();
        };
        check(&[3.0, 1.0, 3.0, 3.0], &[1.0, 2.0, 3.0], &[0, 1, 3, 0, 0, 0]);
        check(&[3.0, 3.0], &[3.0], &[0, 2, 0, 0, 0]);
        check(&[-0.0, 0.0, f64::NAN, f64::INFINITY], &[0.0], &[0, 2, 0, 1, 1]);
        check(&[f64::NAN], &[], &[0, 0, 0, 0, 1]);
        check(&[], &[], &[0; 5]);
        check(&[f64::MAX, -f64::MAX], &[-f64::MAX, 0.0, f64::MAX], &[0, 1, 1, 0, 0, 0]);
        let sixteen: Vec<f64> = (0..16).map(f64::from).collect();
        let wanted = [&sixteen[..15], &[14.5, 15.0]].concat();
        check(&sixteen, &wanted, &[vec![0], vec![1; 16], vec![0; 3]].concat());
    }

    #[test]
    fn an_atom_at_either_end_has_a_bin_of_its_own() {
        let spread = (0..1000).map(|i| f64::from(i) / 1000.0);
        let values: Vec<f64> = spread.chain([0.0; 500]).chain([1.0; 500]).collect();
        let feature = learn_numeric("a", &values, false);
        let (edges, counts) = (edges(&feature), &feature.counts);
        assert_eq!((edges[0], edges[edges.len() - 1]), (0.0, 1.0));
        assert!(edges[edges.len() - 2] > 0.999 && counts[edges.len() - 1] == 500, "{feature:?}");
        assert!(counts[1] < 630 && counts.iter().sum::<u64>() == 2000, "{counts:?}");
    }

    #[test]
    fn few_whole_numbers_are_categories_where_they_are_learned() {
        let feature = learn_numeric("a", &[2.0, 7.0, 7.0, f64::NAN], true);
        let bins = Bins::Categorical { categories: vec!["7".into(), "2".into()], others: vec![] };
        assert_eq!((feature.bins, feature.counts), (bins, vec![2, 1, 0, 0, 1]));
        let many: Vec<f64> = (0..21).map(f64::from).collect();
        assert!(matches!(learn_numeric("a", &many, true).bins, Bins::Numeric { .. }));
        assert!(learn_numeric("a", &[f64::NAN], true).is_unmonitorable());
    }

    #[test]
    fn samples_are_drawn_evenly_and_by_the_seed() {
        let draw = |seed| {
            let mut numbers = Numbers::new(1000, seed);
            (0..100_000).for_each(|i| numbers.push(f64::from(i)));
            numbers.settle("a".into(), 200).finish()
        };
        let first = draw(1);
        assert_eq!(first, draw(1));
        assert_ne!(first.sample, draw(2).sample);
        assert_eq!(first.sample.len(), 200);
        let mean = first.sample.iter().sum::<f64>() / 200.0;
        assert!((mean - 50_000.0).abs() < 8000.0, "{mean}");
        // Quantiles of 1000 drawn values: off by 4 of their standard errors at most.
        for (place, edge) in edges(&first).iter().enumerate() {
            let wanted = 100_000.0 * f64::from(u32::try_from(place).unwrap()) / 16.0;
            assert!((edge - wanted).abs() < 6400.0, "{edge}, expected {wanted}");
        }
    }
}
