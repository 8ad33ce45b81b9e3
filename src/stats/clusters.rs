//! Cells of vectors: where many columns, such as an embedding's, are watched as one category.

use super::{random::Random, special::number};

/// Centres of clusters. A vector's cell is that of its nearest centre.
#[derive(Debug, Clone, PartialEq)]
pub struct KMeans {
    dimensions: usize,
    /// One centre after the other.
    centres: Vec<f32>,
    /// Half the squared length of each.
    halves: Vec<f32>,
}

impl KMeans {
    /// Up to `k` centres of `rows`, one row of `dimensions` numbers after the other: seeded by k-means++ (Arthur &
    /// Vassilvitskii, 2007), then moved to the means of their cells (Lloyd, 1982) until nothing changes, at most
    /// `iterations` times. Fewer centres where there are fewer distinct rows; `None` without a row. Rows with a
    /// number that is not finite are left out.
    ///
    /// The result follows from the seed. Takes `rows k dimensions` steps per iteration, and 16 bytes for each row.
    ///
    /// # Panics
    ///
    /// If `dimensions` is 0 or the numbers are not whole rows.
    pub fn fit(
        rows: &[f32],
        dimensions: usize,
        k: usize,
        seed: u64,
        iterations: usize,
    ) -> Option<Self> {
        assert!(dimensions > 0 && rows.len().is_multiple_of(dimensions), "whole rows");
        let is_finite = |row: &&[f32]| row.iter().all(|value| value.is_finite());
        let rows: Vec<&[f32]> = rows.chunks_exact(dimensions).filter(is_finite).collect();
        let mut fitted = Self::from_centres(seeded(&rows, k, seed), dimensions)?;
        let mut cells = vec![usize::MAX; rows.len()];
        for _ in 0..iterations {
            let mut has_moved = false;
            for (row, cell) in rows.iter().zip(&mut cells) {
                let nearest = fitted.nearest(row);
                has_moved |= nearest != *cell;
                *cell = nearest;
            }
            if !has_moved {
                break;
            }
            fitted = fitted.moved(&rows, &cells);
        }
        Some(fitted)
    }

    /// The cells of these centres, one after the other, as [`KMeans::centres`] gives them; `None` unless they are
    /// one or more whole rows of finite numbers.
    pub fn from_centres(centres: Vec<f32>, dimensions: usize) -> Option<Self> {
        let fits =
            dimensions > 0 && !centres.is_empty() && centres.len().is_multiple_of(dimensions);
        if !fits || !centres.iter().all(|value| value.is_finite()) {
            return None;
        }
        let half = |centre: &[f32]| 0.5 * dot(centre, centre);
        let halves = centres.chunks_exact(dimensions).map(half).collect();
        Some(Self { dimensions, centres, halves })
    }

    /// Centres, one after the other.
    pub fn centres(&self) -> &[f32] {
        &self.centres
    }

    /// Numbers in a vector.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// Number of cells, at least 1.
    #[expect(clippy::len_without_is_empty, reason = "there is always a centre")]
    pub fn len(&self) -> usize {
        self.halves.len()
    }

    /// The cell of a vector: the first of the nearest centres. Vectors with NaN are in cell 0.
    ///
    /// # Panics
    ///
    /// If the vector has another number of dimensions.
    pub fn nearest(&self, vector: &[f32]) -> usize {
        assert_eq!(vector.len(), self.dimensions, "a vector of other dimensions");
        // The squared distance is |v|^2 - 2 (v c - |c|^2 / 2).
        let (mut best, mut best_score) = (0, f32::NEG_INFINITY);
        let centres = self.centres.chunks_exact(self.dimensions).zip(&self.halves).enumerate();
        for (cell, (centre, half)) in centres {
            let score = dot(vector, centre) - half;
            if score > best_score {
                (best, best_score) = (cell, score);
            }
        }
        best
    }

    /// Each centre at the mean of its cell; one without rows stays.
    #[expect(clippy::cast_possible_truncation, reason = "a mean of such numbers is one of them")]
    fn moved(&self, rows: &[&[f32]], cells: &[usize]) -> Self {
        let mut sums = vec![0.0_f64; self.centres.len()];
        let mut counts = vec![0_u64; self.len()];
        for (row, cell) in rows.iter().zip(cells) {
            counts[*cell] += 1;
            let sums = &mut sums[cell * self.dimensions..(cell + 1) * self.dimensions];
            sums.iter_mut().zip(*row).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        let mut centres = self.centres.clone();
        let means = sums.chunks_exact(self.dimensions).zip(&counts);
        for (centre, (sums, count)) in centres.chunks_exact_mut(self.dimensions).zip(means) {
            if *count > 0 {
                let mean = |sum: &f64| (sum / number(*count)) as f32;
                centre.iter_mut().zip(sums).for_each(|(value, sum)| *value = mean(sum));
            }
        }
        let moved = Self::from_centres(centres, self.dimensions);
        moved.expect("means of finite numbers are finite")
    }
}

/// The sum of products, in eight lanes.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; 8];
    let (whole_a, whole_b) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest = whole_a.remainder().iter().zip(whole_b.remainder());
    let rest: f32 = rest.map(|(x, y)| x * y).sum();
    for (a, b) in whole_a.zip(whole_b) {
        for (lane, (x, y)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += x * y;
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// Squared distance between two rows.
fn apart(a: &[f32], b: &[f32]) -> f64 {
    let square = |(x, y): (&f32, &f32)| (f64::from(*x) - f64::from(*y)).powi(2);
    a.iter().zip(b).map(square).sum()
}

/// Rows as first centres: one at random, then each with a probability in proportion to its squared distance from the
/// nearest so far.
fn seeded(rows: &[&[f32]], k: usize, seed: u64) -> Vec<f32> {
    let (mut random, mut centres) = (Random::new(seed), Vec::new());
    if rows.is_empty() || k == 0 {
        return centres;
    }
    let mut chosen = rows[random.below(rows.len())];
    let mut distances = vec![f64::INFINITY; rows.len()];
    for count in 1.. {
        centres.extend_from_slice(chosen);
        if count == k {
            break;
        }
        for (row, distance) in rows.iter().zip(&mut distances) {
            *distance = distance.min(apart(row, chosen));
        }
        let mut rest = random.unit() * distances.iter().sum::<f64>();
        let drawn = distances.iter().position(|distance| {
            rest -= distance;
            rest < 0.0
        });
        // Rounding may leave a rest behind the last row that is apart from all centres.
        let last = || distances.iter().rposition(|distance| *distance > 0.0);
        let Some(drawn) = drawn.or_else(last) else { break };
        chosen = rows[drawn];
    }
    centres
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows around 4 corners of a square, and the corner of each.
    fn rows(seed: u64) -> (Vec<f32>, Vec<usize>) {
        let mut random = Random::new(seed);
        let mut rows = Vec::new();
        let corners: Vec<usize> = (0..400).map(|row| row % 4).collect();
        for corner in &corners {
            for axis in [corner % 2, corner / 2] {
                #[expect(clippy::cast_possible_truncation, reason = "a small number")]
                rows.push((10.0 * number(axis as u64) + random.unit()) as f32);
            }
        }
        (rows, corners)
    }

    #[test]
    fn clusters_are_found_from_any_seed() {
        for seed in 0..20 {
            let (rows, corners) = rows(seed);
            let fitted = KMeans::fit(&rows, 2, 4, seed, 50).unwrap();
            assert_eq!((fitted.len(), fitted.dimensions()), (4, 2));
            let cells: Vec<usize> = rows.chunks_exact(2).map(|row| fitted.nearest(row)).collect();
            for corner in 0..4 {
                let of_corner = || (0..400).filter(|row| corners[*row] == corner);
                let cell = cells[of_corner().next().unwrap()];
                assert!(of_corner().all(|row| cells[row] == cell), "seed {seed}");
            }
            let kept = KMeans::from_centres(fitted.centres().to_vec(), 2).unwrap();
            assert_eq!((kept, KMeans::fit(&rows, 2, 4, seed, 50)), (fitted.clone(), Some(fitted)));
        }
    }

    #[test]
    fn nearest_agrees_with_distances() {
        let mut random = Random::new(9);
        #[expect(clippy::cast_possible_truncation, reason = "a small number")]
        let rows: Vec<f32> = (0..19 * 300).map(|_| random.unit() as f32).collect();
        let fitted = KMeans::fit(&rows, 19, 12, 3, 10).unwrap();
        for row in rows.chunks_exact(19) {
            let distance = |cell: usize| apart(row, &fitted.centres()[cell * 19..(cell + 1) * 19]);
            let least = (0..12).map(distance).fold(f64::INFINITY, f64::min);
            assert!(distance(fitted.nearest(row)) <= least + 1e-5);
        }
    }

    #[test]
    fn few_rows_give_few_cells() {
        assert_eq!(KMeans::fit(&[], 3, 4, 0, 10), None);
        assert_eq!(KMeans::fit(&[f32::NAN, 1.0], 2, 4, 0, 10), None);
        assert_eq!(KMeans::fit(&[1.0], 1, 0, 0, 10), None);
        assert_eq!(KMeans::fit(&[2.0; 30], 3, 4, 0, 10).unwrap().len(), 1);
        let two = KMeans::fit(&[0.0, 5.0, 0.0, 5.0, f32::INFINITY], 1, 9, 7, 10).unwrap();
        assert_eq!((two.len(), two.nearest(&[f32::NAN])), (2, 0));
        assert_eq!(KMeans::from_centres(vec![1.0; 3], 2), None);
        assert_eq!(KMeans::from_centres(vec![f32::NAN], 1), None);
    }
}
