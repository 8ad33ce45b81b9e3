//! Quality of predicted classes and probabilities, against labels.

use libm::log;

use super::special::number;

/// Rows by actual and predicted class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confusion {
    classes: usize,
    /// Row by row: the actual class, then the predicted one.
    counts: Vec<u64>,
}

/// Precision, recall and F1, of one class or averaged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClassScores {
    /// The share of rows predicted as the class that are of it; 0 if none was predicted.
    pub precision: f64,
    /// The share of rows of the class that were predicted as it; 0 if there was none.
    pub recall: f64,
    /// `2 TP / (2 TP + FP + FN)`; 0 if the class is neither among the labels nor among the predictions.
    pub f1: f64,
    /// Rows of the class.
    pub support: u64,
    /// Rows predicted as the class.
    pub predicted: u64,
}

impl Confusion {
    /// A matrix without rows, for classes 0 up to, and without, `classes`. Holds 8 bytes per pair of classes.
    pub fn new(classes: usize) -> Self {
        Self { classes, counts: vec![0; classes * classes] }
    }

    /// Adds a row.
    ///
    /// # Panics
    ///
    /// If there is no such class.
    pub fn add(&mut self, actual: usize, predicted: usize) {
        let place = self.place(actual, predicted);
        self.counts[place] += 1;
    }

    /// Rows of class `actual` that were predicted as `predicted`.
    ///
    /// # Panics
    ///
    /// If there is no such class.
    pub fn count(&self, actual: usize, predicted: usize) -> u64 {
        self.counts[self.place(actual, predicted)]
    }

    /// All rows.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The share of rows whose class was predicted; `None` without rows.
    pub fn accuracy(&self) -> Option<f64> {
        let right: u64 = (0..self.classes).map(|class| self.count(class, class)).sum();
        let total = self.total();
        (total > 0).then(|| number(right) / number(total))
    }

    /// The scores of one class against all others.
    ///
    /// # Panics
    ///
    /// If there is no such class.
    pub fn class(&self, class: usize) -> ClassScores {
        let hits = self.count(class, class);
        let support = (0..self.classes).map(|other| self.count(class, other)).sum();
        let predicted: u64 = (0..self.classes).map(|other| self.count(other, class)).sum();
        let share = |part: u64, whole: u64| match whole {
            0 => 0.0,
            _ => number(part) / number(whole),
        };
        ClassScores {
            precision: share(hits, predicted),
            recall: share(hits, support),
            f1: share(2 * hits, support + predicted),
            support,
            predicted,
        }
    }

    /// The mean of the scores over the classes that occur as label or prediction; `None` without rows.
    pub fn macro_average(&self) -> Option<ClassScores> {
        self.average(|class| if class.support + class.predicted > 0 { 1.0 } else { 0.0 })
    }

    /// The mean of the scores, each class weighted with its support; `None` without rows.
    pub fn weighted_average(&self) -> Option<ClassScores> {
        self.average(|class| number(class.support))
    }

    fn average(&self, weight: impl Fn(&ClassScores) -> f64) -> Option<ClassScores> {
        let total = self.total();
        if total == 0 {
            return None;
        }
        let (mut sums, mut weights) = ([0.0; 3], 0.0);
        for class in (0..self.classes).map(|class| self.class(class)) {
            let weight = weight(&class);
            weights += weight;
            for (sum, score) in sums.iter_mut().zip([class.precision, class.recall, class.f1]) {
                *sum += weight * score;
            }
        }
        let [precision, recall, f1] = sums.map(|sum| sum / weights);
        Some(ClassScores { precision, recall, f1, support: total, predicted: total })
    }

    fn place(&self, actual: usize, predicted: usize) -> usize {
        let known = actual < self.classes && predicted < self.classes;
        assert!(known, "class {actual} or {predicted} of {}", self.classes);
        actual * self.classes + predicted
    }
}

/// The area under the ROC curve: the chance that a row of the positive class has a higher score than one of the
/// negative class, ties counted half (Mann & Whitney). Takes (score, is positive) in any order and sorts them. `None`
/// without rows of both classes, or if a score is NaN.
pub fn roc_auc(rows: &mut [(f64, bool)]) -> Option<f64> {
    if rows.iter().any(|(score, _)| score.is_nan()) {
        return None;
    }
    rows.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let (mut negatives, mut positives, mut above) = (0, 0, 0.0);
    // In ascending order, not less means equal.
    for tied in rows.chunk_by(|a, b| a.0 >= b.0) {
        let hits = tied.iter().filter(|(_, positive)| *positive).count() as u64;
        let misses = tied.len() as u64 - hits;
        above += number(hits) * (number(negatives) + 0.5 * number(misses));
        negatives += misses;
        positives += hits;
    }
    (negatives > 0 && positives > 0).then(|| above / (number(negatives) * number(positives)))
}

/// The mean of `-ln p` over rows, with `p` the probability that was predicted for the row's class.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LogLoss {
    rows: u64,
    sum: f64,
}

impl LogLoss {
    /// The loss of no rows.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a row by the probability predicted for its class. Probabilities are kept `f64::EPSILON` away from 0
    /// and 1, so that one row that was sure and wrong counts much, not infinitely.
    pub fn add(&mut self, probability: f64) {
        self.rows += 1;
        self.sum -= log(probability.clamp(f64::EPSILON, 1.0 - f64::EPSILON));
    }

    /// The loss in nats; `None` without rows.
    pub fn mean(&self) -> Option<f64> {
        (self.rows > 0).then(|| self.sum / number(self.rows))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::special::tests::assert_close, *};

    /// 500 rows of four classes, of which class 3 never occurs and class 4 is only predicted.
    fn confusion() -> Confusion {
        let mut confusion = Confusion::new(5);
        for row in 0..500 {
            let actual = (row * row + row / 7) % 3;
            let predicted = if row * 29 % 11 < 7 { actual } else { row * 5 % 3 };
            confusion.add(actual, if row % 50 == 49 { 4 } else { predicted });
        }
        confusion
    }

    /// Reference values: scikit-learn 1.9.1.
    #[test]
    fn scores_agree_with_a_library() {
        let confusion = confusion();
        assert_eq!(confusion.total(), 500);
        assert_eq!([0, 1, 2, 3, 4].map(|class| confusion.count(1, class)), [18, 106, 18, 0, 2]);
        assert_close(confusion.accuracy().unwrap(), 0.758);
        let check = |scores: ClassScores, [precision, recall, f1]: [f64; 3], rows| {
            assert_close(scores.precision, precision);
            assert_close(scores.recall, recall);
            assert_close(scores.f1, f1);
            assert_eq!((scores.support, scores.predicted), rows);
        };
        let first = [0.804_469_273_743_016_8, 0.761_904_761_904_761_9, 0.782_608_695_652_174];
        check(confusion.class(0), first, (189, 179));
        let second = [0.716_216_216_216_216_2, 0.736_111_111_111_111_2, 0.726_027_397_260_274];
        check(confusion.class(1), second, (144, 148));
        check(confusion.class(3), [0.0; 3], (0, 0));
        check(confusion.class(4), [0.0; 3], (0, 10));
        let average = [0.578_024_133_226_004_5, 0.567_617_740_709_058_1, 0.572_613_568_682_657_4];
        check(confusion.macro_average().unwrap(), average, (500, 500));
        let weighted = [0.774_690_944_088_688_9, 0.758, 0.766_049_250_094_753_3];
        check(confusion.weighted_average().unwrap(), weighted, (500, 500));
    }

    #[test]
    fn a_matrix_without_rows_has_no_scores() {
        for empty in [Confusion::new(0), Confusion::new(3)] {
            assert_eq!(empty.accuracy(), None);
            assert_eq!(empty.macro_average(), None);
            assert_eq!(empty.weighted_average(), None);
        }
    }

    /// Scores with many ties, and labels that depend on them.
    fn scored() -> Vec<(f64, bool)> {
        let row = |row: u32| {
            let score = f64::from(row * 37 % 101 / 4) / 25.0;
            (score, f64::from(row * 53 % 97) < 20.0 + score * 50.0)
        };
        (0..500).map(row).collect()
    }

    /// Reference values: scikit-learn 1.9.1.
    #[test]
    fn curve_and_loss_agree_with_a_library() {
        let mut rows = scored();
        let mut loss = LogLoss::new();
        for (score, positive) in &rows {
            loss.add(if *positive { *score } else { 1.0 - score });
        }
        assert_close(loss.mean().unwrap(), 1.331_524_734_633_306_3);
        assert_close(roc_auc(&mut rows).unwrap(), 0.615_930_852_772_958);
        assert_eq!(LogLoss::new().mean(), None);
    }

    #[test]
    fn curve_counts_ties_half_and_needs_both_classes() {
        assert_eq!(roc_auc(&mut [(0.1, false), (0.9, true)]), Some(1.0));
        assert_eq!(roc_auc(&mut [(0.9, false), (0.1, true)]), Some(0.0));
        assert_eq!(roc_auc(&mut [(-0.0, false), (0.0, true)]), Some(0.5));
        assert_eq!(roc_auc(&mut [(f64::NEG_INFINITY, false), (f64::INFINITY, true)]), Some(1.0));
        assert_eq!(roc_auc(&mut [(0.5, true)]), None);
        assert_eq!(roc_auc(&mut [(0.5, true), (f64::NAN, false)]), None);
        assert_eq!(roc_auc(&mut []), None);
    }
}
