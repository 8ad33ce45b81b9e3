//! Scores turned into probabilities, and performance estimated from them while labels are still missing.
//!
//! A score is calibrated if, among rows with the score `s`, a share `s` is positive. Isotonic regression makes it so
//! on labelled rows, for any score that orders rows well; what is expected of unlabelled rows follows from their
//! calibrated probabilities. Always true: scores lie between 0 and 1 and are looked up in 64 equal steps, so that
//! labels can be added, and states merged, in memory that does not grow.
//!
//! Not here: joining labels to predictions (the caller). An estimate knows nothing of labels that changed their
//! meaning: where the same scores come with other outcomes, only labels tell.

use super::special::number;

/// Steps of a calibration, equal in width between 0 and 1.
pub const STEPS: usize = 64;

/// Bins of the calibration error.
const ERROR_BINS: usize = 16;

/// The step of a score: 0 up to, and without, [`STEPS`]. Scores outside of 0 to 1 count as the nearer end, NaN as 0.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "casts saturate")]
pub fn step(score: f64) -> usize {
    ((score * number(STEPS as u64)) as usize).min(STEPS - 1)
}

/// The non-decreasing values nearest to these by weighted squares, in order (pool adjacent violators: Ayer, Brunk,
/// Ewing, Reid & Silverman, 1955). A value without weight takes what lies between its neighbours, in equal steps.
///
/// # Panics
///
/// If there are not as many weights as values, or a weight is negative or not finite.
pub fn isotonic(values: &[f64], weights: &[f64]) -> Vec<f64> {
    assert_eq!(values.len(), weights.len(), "each value has a weight");
    assert!(weights.iter().all(|weight| (0.0..f64::INFINITY).contains(weight)), "a weight");
    // Blocks that have one value: its weighted mean, their weight, and their members.
    let mut blocks: Vec<(f64, f64, usize)> = Vec::new();
    let places: Vec<usize> = (0..values.len()).filter(|place| weights[*place] > 0.0).collect();
    for place in &places {
        let mut block = (values[*place], weights[*place], 1);
        while let Some((mean, weight, members)) = blocks.pop_if(|before| before.0 >= block.0) {
            let whole = weight + block.1;
            block = (mean + (block.0 - mean) * (block.1 / whole), whole, members + block.2);
        }
        blocks.push(block);
    }
    let fitted = blocks.iter().flat_map(|(mean, _, members)| std::iter::repeat_n(*mean, *members));
    let known: Vec<(usize, f64)> = places.iter().copied().zip(fitted).collect();
    interpolated(values.len(), &known)
}

/// Values at all places from those known at some, in ascending order of place: linear between them, level outside.
/// All 0 if none is known.
fn interpolated(places: usize, known: &[(usize, f64)]) -> Vec<f64> {
    let value = |place: usize| {
        let after = known.partition_point(|(at, _)| *at < place);
        match (after.checked_sub(1).map(|before| known[before]), known.get(after)) {
            (_, Some((at, value))) if *at == place => *value,
            (Some((from, low)), Some((to, high))) => {
                let share = number((place - from) as u64) / number((to - from) as u64);
                low + (high - low) * share
            }
            (Some((_, value)), None) => value,
            (None, Some((_, value))) => *value,
            (None, None) => 0.0,
        }
    };
    (0..places).map(value).collect()
}

/// Labelled scores, summed up by step: what a calibration is fitted from and judged by. Holds 1.5 KiB.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelledScores {
    weights: [f64; STEPS],
    scores: [f64; STEPS],
    positives: [f64; STEPS],
}

impl Default for LabelledScores {
    fn default() -> Self {
        Self { weights: [0.0; STEPS], scores: [0.0; STEPS], positives: [0.0; STEPS] }
    }
}

impl LabelledScores {
    /// No rows.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a row: its score, its outcome from 0 (negative) to 1 (positive), and its weight, usually 1. A row with
    /// anything that is not finite, or without weight, is passed over.
    pub fn add(&mut self, score: f64, outcome: f64, weight: f64) {
        if !(score.is_finite() && outcome.is_finite() && weight.is_finite() && weight > 0.0) {
            return;
        }
        let (score, outcome) = (score.clamp(0.0, 1.0), outcome.clamp(0.0, 1.0));
        let step = step(score);
        self.weights[step] += weight;
        self.scores[step] += weight * score;
        self.positives[step] += weight * outcome;
    }

    /// Adds the rows of another.
    pub fn merge(&mut self, other: &Self) {
        let add = |sums: &mut [f64; STEPS], others: &[f64; STEPS]| {
            sums.iter_mut().zip(others).for_each(|(sum, other)| *sum += other);
        };
        add(&mut self.weights, &other.weights);
        add(&mut self.scores, &other.scores);
        add(&mut self.positives, &other.positives);
    }

    /// Sum of the weights.
    pub fn weight(&self) -> f64 {
        self.weights.iter().sum()
    }

    /// The isotonic calibration of these rows; `None` without rows.
    pub fn fit(&self) -> Option<Calibration> {
        if self.weight() <= 0.0 {
            return None;
        }
        let share = |step: usize| self.positives[step] / self.weights[step].max(f64::MIN_POSITIVE);
        let shares: [f64; STEPS] = std::array::from_fn(share);
        let mut calibration = Calibration { probabilities: [0.0; STEPS] };
        calibration.probabilities.copy_from_slice(&isotonic(&shares, &self.weights));
        Some(calibration)
    }

    /// The expected calibration error of a calibration, or of the scores as they are: the mean over 16 bins, by their
    /// weight, of the distance between the share of positives and the mean probability (Naeini, Cooper & Hauskrecht,
    /// 2015). From 0 to 1; `None` without rows.
    pub fn calibration_error(&self, calibration: Option<&Calibration>) -> Option<f64> {
        let expected = |step: usize| match calibration {
            Some(calibration) => self.weights[step] * calibration.probabilities[step],
            None => self.scores[step],
        };
        let gap = |bin: usize| {
            let steps = bin * STEPS / ERROR_BINS..(bin + 1) * STEPS / ERROR_BINS;
            steps.map(|step| self.positives[step] - expected(step)).sum::<f64>().abs()
        };
        let weight = self.weight();
        (weight > 0.0).then(|| (0..ERROR_BINS).map(gap).sum::<f64>() / weight)
    }

    /// The state, to be kept: weights, sums of scores and sums of outcomes, by step.
    pub fn parts(&self) -> [&[f64; STEPS]; 3] {
        [&self.weights, &self.scores, &self.positives]
    }

    /// The state from its parts; `None` unless they are three times [`STEPS`] finite numbers, none negative.
    pub fn from_parts(parts: [&[f64]; 3]) -> Option<Self> {
        let sound = |sums: &[f64]| -> Option<[f64; STEPS]> {
            let fits = sums.iter().all(|sum| (0.0..f64::INFINITY).contains(sum));
            sums.try_into().ok().filter(|_| fits)
        };
        let [weights, scores, positives] = parts.map(sound);
        Some(Self { weights: weights?, scores: scores?, positives: positives? })
    }
}

/// The probability of the positive class by score, in 64 steps; non-decreasing.
#[derive(Debug, Clone, PartialEq)]
pub struct Calibration {
    probabilities: [f64; STEPS],
}

impl Calibration {
    /// Scores that are probabilities already: each step's middle.
    pub fn identity() -> Self {
        let middle = |step: usize| (number(step as u64) + 0.5) / number(STEPS as u64);
        Self { probabilities: std::array::from_fn(middle) }
    }

    /// A calibration from its table; `None` unless it has [`STEPS`] probabilities that do not decrease.
    pub fn from_table(table: &[f64]) -> Option<Self> {
        let probabilities: [f64; STEPS] = table.try_into().ok()?;
        let sound = probabilities.iter().all(|p| (0.0..=1.0).contains(p));
        (sound && probabilities.is_sorted()).then_some(Self { probabilities })
    }

    /// Probabilities by step.
    pub fn table(&self) -> &[f64; STEPS] {
        &self.probabilities
    }

    /// The probability that a row with this score is positive.
    pub fn probability(&self, score: f64) -> f64 {
        self.probabilities[step(score)]
    }
}

/// The confusion that is expected of rows without labels, from their calibrated probabilities (confidence-based
/// performance estimation): a row predicted positive is a true positive with its probability `c`, and a false one
/// with `1 - c`.
///
/// Holds as long as scores keep their meaning; for several classes take one of these for each against the rest.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ExpectedConfusion {
    /// Expected true positives.
    pub true_positives: f64,
    /// Expected false positives.
    pub false_positives: f64,
    /// Expected false negatives.
    pub false_negatives: f64,
    /// Expected true negatives.
    pub true_negatives: f64,
    /// Variance of the number of right predictions: the sum of `c (1 - c)`.
    pub variance: f64,
}

impl ExpectedConfusion {
    /// No rows.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a row: the calibrated probability that it is positive, and true if it was predicted as positive.
    pub fn add(&mut self, probability: f64, is_predicted: bool) {
        let rest = 1.0 - probability;
        if is_predicted {
            self.true_positives += probability;
            self.false_positives += rest;
        } else {
            self.false_negatives += probability;
            self.true_negatives += rest;
        }
        self.variance += probability * rest;
    }

    /// Adds the rows of another.
    pub fn merge(&mut self, other: &Self) {
        self.true_positives += other.true_positives;
        self.false_positives += other.false_positives;
        self.false_negatives += other.false_negatives;
        self.true_negatives += other.true_negatives;
        self.variance += other.variance;
    }

    /// Number of rows.
    pub fn rows(&self) -> f64 {
        let wrong = self.false_positives + self.false_negatives;
        self.true_positives + self.true_negatives + wrong
    }

    /// The expected accuracy and its standard deviation, `sqrt(sum of c (1 - c)) / n`; `None` without rows.
    pub fn accuracy(&self) -> Option<(f64, f64)> {
        let rows = self.rows();
        let right = self.true_positives + self.true_negatives;
        (rows > 0.0).then(|| (right / rows, self.variance.max(0.0).sqrt() / rows))
    }

    /// Expected true positives by expected rows predicted as positive; `None` if there is none.
    pub fn precision(&self) -> Option<f64> {
        share(self.true_positives, self.true_positives + self.false_positives)
    }

    /// Expected true positives by expected positives; `None` if none is expected.
    pub fn recall(&self) -> Option<f64> {
        share(self.true_positives, self.true_positives + self.false_negatives)
    }

    /// `2 TP / (2 TP + FP + FN)` of the expected counts; `None` if nothing is, or is expected to be, positive.
    pub fn f1(&self) -> Option<f64> {
        let hits = 2.0 * self.true_positives;
        share(hits, hits + self.false_positives + self.false_negatives)
    }
}

fn share(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then(|| part / whole)
}

#[cfg(test)]
mod tests {
    use super::{super::random::Random, super::special::tests::assert_close, *};

    /// Reference values: scikit-learn's `IsotonicRegression`, and by hand.
    #[test]
    fn isotonic_regression_pools_what_decreases() {
        let check = |values: &[f64], weights: &[f64], expected: &[f64]| {
            let fitted = isotonic(values, weights);
            assert_eq!(fitted.len(), expected.len());
            fitted.iter().zip(expected).for_each(|(got, expected)| assert_close(*got, *expected));
        };
        check(&[], &[], &[]);
        check(&[1.0, 2.0, 3.0], &[1.0; 3], &[1.0, 2.0, 3.0]);
        check(&[3.0, 2.0, 1.0], &[1.0; 3], &[2.0; 3]);
        check(&[1.0, 3.0, 2.0, 4.0, 3.0], &[1.0, 1.0, 3.0, 1.0, 1.0], &[1.0, 2.25, 2.25, 3.5, 3.5]);
        check(&[0.5, 9.0, 9.0, 2.0], &[1.0, 0.0, 0.0, 1.0], &[0.5, 1.0, 1.5, 2.0]);
        check(&[9.0, 1.0, 9.0], &[0.0, 2.0, 0.0], &[1.0; 3]);
        check(&[9.0, 1.0], &[0.0; 2], &[0.0; 2]);
    }

    /// Rows whose probability is the square of their score.
    fn labelled(seed: u64, rows: u32) -> LabelledScores {
        let (mut random, mut labelled) = (Random::new(seed), LabelledScores::new());
        for _ in 0..rows {
            let score = random.unit();
            let outcome = if random.unit() < score * score { 1.0 } else { 0.0 };
            labelled.add(score, outcome, 1.0);
        }
        labelled
    }

    #[test]
    fn calibration_learns_what_scores_mean() {
        let labelled_once = labelled(1, 40_000);
        let calibration = labelled_once.fit().unwrap();
        for score in [0.1, 0.3, 0.5, 0.7, 0.9] {
            let probability = calibration.probability(score);
            assert!((probability - score * score).abs() < 0.04, "{probability} at {score}");
        }
        let error = |calibration| labelled(2, 40_000).calibration_error(calibration).unwrap();
        // The mean of |s - s^2| is 1/6.
        assert!((error(None) - 1.0 / 6.0).abs() < 0.01, "{}", error(None));
        assert!(error(Some(&calibration)) < 0.02, "{}", error(Some(&calibration)));
        assert_eq!(Calibration::from_table(calibration.table()), Some(calibration));

        let mut merged = labelled(1, 100);
        merged.merge(&labelled(2, 100));
        assert_close(merged.weight(), 200.0);
        assert_eq!(LabelledScores::from_parts(merged.parts().map(|part| &part[..])), Some(merged));
    }

    #[test]
    fn odd_scores_are_bounded_or_passed_over() {
        assert_eq!([-1.0, 0.0, 0.999, 1.0, 7.0, f64::NAN].map(step), [0, 0, 63, 63, 63, 0]);
        let mut labelled = LabelledScores::new();
        for (score, outcome, weight) in [(f64::NAN, 1.0, 1.0), (0.5, f64::INFINITY, 1.0)] {
            labelled.add(score, outcome, weight);
        }
        labelled.add(0.5, 1.0, 0.0);
        assert_eq!((labelled.fit(), labelled.calibration_error(None)), (None, None));
        labelled.add(2.0, 3.0, 1.0);
        assert_eq!(Calibration::from_table(&[1.0; STEPS]), labelled.fit());
        assert_eq!(Calibration::from_table(&[0.5; 3]), None);
        assert_eq!(Calibration::from_table(&[1.5; STEPS]), None);
        assert_eq!(step(Calibration::identity().probability(0.3)), step(0.3));
        assert_eq!(LabelledScores::from_parts([&[-1.0; STEPS]; 3]), None);
    }

    /// Reference values: the definition evaluated with numpy.
    #[test]
    fn expected_confusion_agrees_with_the_definition() {
        let mut expected = ExpectedConfusion::new();
        assert_eq!((expected.accuracy(), expected.precision()), (None, None));
        let mut other = ExpectedConfusion::new();
        for (row, probability) in [0.05, 0.2, 0.45, 0.55, 0.7, 0.9, 0.97].into_iter().enumerate() {
            let part = if row % 2 == 0 { &mut expected } else { &mut other };
            part.add(probability, probability >= 0.5);
        }
        expected.merge(&other);
        assert_close(expected.true_positives, 3.12);
        assert_close(expected.false_positives, 0.88);
        assert_close(expected.false_negatives, 0.7);
        assert_close(expected.true_negatives, 2.3);
        let (accuracy, deviation) = expected.accuracy().unwrap();
        assert_close(accuracy, 0.774_285_714_285_714_2);
        assert_close(deviation, 0.145_096_730_578_224_28);
        assert_close(expected.precision().unwrap(), 3.12 / 4.0);
        assert_close(expected.recall().unwrap(), 3.12 / 3.82);
        assert_close(expected.f1().unwrap(), 6.24 / 7.82);
    }
}
