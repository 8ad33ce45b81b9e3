//! Scores as probabilities: the share of the labelled rows of each step of the score that were of its class.
//!
//! The estimate of performance without labels takes a score for a probability; what the labels so far say about the
//! scores corrects them, by isotonic regression.
//!
//! Not here: what is estimated with it (`quality`).

use serde::{Deserialize, Serialize};

use super::tally::STEPS;

/// Labelled rows by step of the score.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Calibration {
    /// Rows of each step; empty before the first.
    rows: Vec<u64>,
    /// Those of the score's class.
    hits: Vec<u64>,
}

/// From so many labels on, the scores are corrected by them.
const LABELS_MIN: u64 = 200;

impl Calibration {
    pub(super) fn add(&mut self, step: usize, is_hit: bool) {
        if self.rows.is_empty() {
            (self.rows, self.hits) = (vec![0; STEPS], vec![0; STEPS]);
        }
        self.rows[step] += 1;
        self.hits[step] += u64::from(is_hit);
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for (step, (rows, hits)) in other.rows.iter().zip(&other.hits).enumerate() {
            if self.rows.is_empty() {
                (self.rows, self.hits) = (vec![0; STEPS], vec![0; STEPS]);
            }
            self.rows[step] += rows;
            self.hits[step] += hits;
        }
    }

    /// The probability of each step of the score.
    pub(super) fn table(&self) -> Vec<f64> {
        let middles: Vec<f64> = (0..STEPS).map(middle).collect();
        if self.rows.iter().sum::<u64>() < LABELS_MIN {
            return middles;
        }
        isotonic(&self.rows, &self.hits, &middles)
    }

    /// The expected calibration error of the scores as they are: the mean distance, by rows, of each step's middle from
    /// its share of hits (Naeini, Cooper & Hauskrecht, 2015). `None` without labels.
    #[expect(clippy::cast_precision_loss, reason = "counts in shares")]
    pub(super) fn error(&self) -> Option<f64> {
        let total: u64 = self.rows.iter().sum();
        let distance = self
            .rows
            .iter()
            .zip(&self.hits)
            .enumerate()
            .map(|(step, (rows, hits))| (middle(step) * *rows as f64 - *hits as f64).abs());
        (total > 0).then(|| distance.sum::<f64>() / total as f64)
    }
}

#[expect(clippy::cast_precision_loss, reason = "small whole numbers")]
fn middle(step: usize) -> f64 {
    (step as f64 + 0.5) / STEPS as f64
}

/// Pool adjacent violators: the closest rates that never fall (Ayer et al., 1955). A step without rows lies between its
/// neighbours.
#[expect(clippy::cast_precision_loss, reason = "counts in rates")]
fn isotonic(rows: &[u64], hits: &[u64], middles: &[f64]) -> Vec<f64> {
    // Rate, weight, and the steps of each block.
    let mut blocks: Vec<(f64, f64, Vec<usize>)> = Vec::new();
    for step in (0..rows.len()).filter(|step| rows[*step] > 0) {
        blocks.push((hits[step] as f64 / rows[step] as f64, rows[step] as f64, vec![step]));
        while let [.., before, last] = &mut blocks[..]
            && before.0 > last.0
        {
            let weight = before.1 + last.1;
            before.0 = (before.0 * before.1 + last.0 * last.1) / weight;
            before.1 = weight;
            before.2.append(&mut last.2);
            blocks.pop();
        }
    }
    let known: Vec<(usize, f64)> = blocks
        .iter()
        .flat_map(|(rate, _, steps)| steps.iter().map(|step| (*step, *rate)))
        .collect();
    let table = (0..rows.len()).map(|step| {
        let after = known.partition_point(|(known, _)| *known < step);
        match (known.get(after.wrapping_sub(1)), known.get(after)) {
            (_, Some((at, rate))) if *at == step => *rate,
            (Some((below, low)), Some((above, high))) => {
                let share = (step - below) as f64 / (above - below) as f64;
                low + share * (high - low)
            }
            // Beyond what labels reach, the score is taken for what it says, and never against the order.
            (Some((_, low)), None) => middles[step].max(*low),
            (None, Some((_, high))) => middles[step].min(*high),
            (None, None) => middles[step],
        }
    });
    table.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_never_fall_and_steps_without_labels_lie_between() {
        let mut rows = vec![0; STEPS];
        let mut hits = vec![0; STEPS];
        for (step, of, hit) in [(10, 100, 30), (11, 100, 10), (20, 100, 60), (30, 100, 60)] {
            (rows[step], hits[step]) = (of, hit);
        }
        let table = isotonic(&rows, &hits, &(0..STEPS).map(middle).collect::<Vec<_>>());
        assert!(table.is_sorted(), "{table:?}");
        assert!((table[10] - 0.2).abs() < 1e-12 && (table[11] - 0.2).abs() < 1e-12);
        assert!((table[20] - 0.6).abs() < 1e-12 && (table[25] - 0.6).abs() < 1e-12);
        assert!((table[16] - (0.2 + 0.4 * 5.0 / 9.0)).abs() < 1e-12);
        assert!((table[63] - middle(63)).abs() < 1e-12);
    }
}
