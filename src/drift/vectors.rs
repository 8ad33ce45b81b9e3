//! References of embeddings: the cell of the nearest of some centres, and the length of the vector.
//!
//! Single numbers of an embedding mean nothing; where in its space rows lie does. The first pass keeps a random
//! sample of rows, to which centres are fitted, the second counts all rows by their nearest centre.

use super::{
    numbers::{Numbers, Tally},
    profile::{Bins, Derivation, Feature},
    summary::norm,
};
use crate::stats::{KMeans, Random};

/// Centres, if there are rows enough.
const CENTRES: usize = 32;

/// Rows for each centre at least, so that its cell is not empty by chance.
const ROWS_OF_CENTRE: usize = 50;

/// Numbers of the rows that centres are fitted to: 16 MiB.
const FITTED_MAX: usize = 4 << 20;

/// Steps of the fit at most.
const ITERATIONS: usize = 25;

/// Rows of one embedding, as far as they are kept.
#[derive(Debug, Clone)]
pub(super) struct Vectors {
    dimensions: usize,
    norms: Numbers,
    /// Rows of the sample, one after the other.
    sample: Vec<f32>,
    /// Rows that were whole: candidates for the sample.
    whole: u64,
    seed: u64,
    random: Random,
}

impl Vectors {
    /// No rows yet, of so many dimensions; lengths are sampled up to the capacity.
    pub(super) fn new(dimensions: usize, capacity: usize, seed: u64) -> Self {
        let norms = Numbers::new(capacity, seed);
        let random = Random::new(seed);
        Self { dimensions, norms, sample: Vec::new(), whole: 0, seed, random }
    }

    /// Takes a row; it is missing if one of its numbers is.
    pub(super) fn push(&mut self, row: &[f64]) {
        let length = norm(row.iter().copied());
        self.norms.push(length);
        if !length.is_finite() {
            return;
        }
        self.whole += 1;
        if self.sample.len() + self.dimensions <= FITTED_MAX.max(self.dimensions) {
            self.sample.extend(row.iter().map(|value| single(*value)));
        } else {
            let place = self.random.below(usize::try_from(self.whole).unwrap_or(usize::MAX));
            let old = self.sample.chunks_exact_mut(self.dimensions).nth(place);
            for (old, value) in old.into_iter().flatten().zip(row) {
                *old = single(*value);
            }
        }
    }

    /// Fits centres to the sample.
    pub(super) fn settle(self, name: &str, sample_max: usize) -> VectorTally {
        let rows = self.sample.len() / self.dimensions;
        let k = (rows / ROWS_OF_CENTRE).clamp(1, CENTRES);
        let means = KMeans::fit(&self.sample, self.dimensions, k, self.seed, ITERATIONS);
        let cells = means.as_ref().map_or(0, KMeans::len);
        VectorTally {
            input: name.to_owned(),
            counts: vec![0; cells + 3],
            means,
            norm: self.norms.settle(format!("{name}.norm"), sample_max),
            row: Vec::new(),
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "models take single precision")]
fn single(value: f64) -> f32 {
    value as f32
}

/// An embedding whose rows are being counted.
#[derive(Debug)]
pub(super) struct VectorTally {
    input: String,
    /// `None` if no row is whole.
    means: Option<KMeans>,
    /// Rows by centre, then none, none, and those without one.
    counts: Vec<u64>,
    norm: Tally,
    row: Vec<f32>,
}

impl VectorTally {
    /// Counts a row.
    pub(super) fn count(&mut self, row: &[f64]) {
        let length = norm(row.iter().copied());
        self.norm.count(length);
        let missing = self.counts.len() - 1;
        let cell = self.means.as_ref().filter(|_| length.is_finite()).map(|means| {
            self.row.clear();
            self.row.extend(row.iter().map(|value| single(*value)));
            means.nearest(&self.row)
        });
        self.counts[cell.unwrap_or(missing)] += 1;
    }

    /// The derivation, where there is one, and the features.
    pub(super) fn finish(self) -> (Option<Derivation>, [Feature; 2]) {
        let input = self.input;
        let cells = self.means.as_ref().map_or(0, KMeans::len);
        let bins = Bins::Categorical {
            categories: (0..cells).map(|cell| cell.to_string()).collect(),
            others: Vec::new(),
        };
        let cluster = Feature {
            name: format!("{input}.cluster"),
            bins,
            counts: self.counts,
            moments: None,
            sample: Vec::new(),
        };
        let derivation = self.means.map(|means| {
            let centres = means.centres().chunks_exact(means.dimensions());
            Derivation::Clusters { input, centres: centres.map(<[f32]>::to_vec).collect() }
        });
        (derivation, [cluster, self.norm.finish()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_counted_by_their_nearest_centre() {
        let clump = |i: u32| [[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]][i as usize % 4];
        let rows: Vec<[f64; 2]> = (0..400)
            .map(|i| clump(i).map(|at: f64| at + f64::from(i / 4 % 10) / 20.0))
            .chain([[f64::NAN, 1.0], [f64::INFINITY, 1.0]])
            .collect();
        let mut vectors = Vectors::new(2, 1000, 7);
        for row in &rows {
            vectors.push(row);
        }
        let mut tally = vectors.settle("e", 10);
        for row in &rows {
            tally.count(row);
        }
        let (derivation, [cluster, norm]) = tally.finish();
        let Some(Derivation::Clusters { input, centres }) = derivation else { panic!("fitted") };
        assert_eq!((input.as_str(), centres.len(), centres[0].len()), ("e", 8, 2));
        assert_eq!((cluster.name.as_str(), cluster.rows()), ("e.cluster", 402));
        assert_eq!(cluster.counts[8..], [0, 0, 2]);
        assert!(cluster.counts[..8].iter().all(|count| *count >= 10), "{cluster:?}");
        assert_eq!((norm.rows(), norm.counts[norm.counts.len() - 2..].to_vec()), (402, vec![1, 1]));
    }
}
