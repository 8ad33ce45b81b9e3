//! Sums over the predictions of a span of time, and over the outcomes that came to them.
//!
//! Always true: sums of two spans add up to those of both together. Whatever is kept per class is bounded.
//!
//! Not here: which span a prediction belongs to (`windows`), what the sums show (`quality`).

use serde::{Deserialize, Serialize};

use crate::{
    serve::{Predicted, PredictedKind},
    stats::{CALIBRATION_STEPS, calibration_step},
};

/// Steps of a score between 0 and 1.
pub(super) const STEPS: usize = CALIBRATION_STEPS;

/// Classes that are counted apart.
const CLASSES_MAX: usize = 64;

/// Parts of a doubling of the delay that are told apart.
const DELAY_PARTS: f64 = 4.0;
/// The smallest delay that is told from none, in seconds.
const DELAY_MIN: f64 = 1e-3;
const DELAYS: usize = 128;

/// Sums of a span.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Tally {
    /// Rows that were answered.
    pub(super) served: u64,
    /// Rows to which an outcome came.
    pub(super) labelled: u64,
    /// Rows whose class was held against a label, and those where it was the label.
    pub(super) compared: u64,
    pub(super) correct: u64,
    pub(super) classes: Vec<ClassCount>,
    /// True if there were more classes than are counted apart.
    pub(super) crowded: bool,
    pub(super) brier: Moments,
    pub(super) log_loss: Moments,
    pub(super) absolute: Moments,
    pub(super) squared: Moments,
    pub(super) error: Moments,
    pub(super) actual: Moments,
    pub(super) reward: Moments,
    /// Answered rows by step of the score: those predicted as another class than the score's, then those predicted as
    /// it; empty before the first.
    pub(super) scored: Vec<u64>,
    /// Outcomes by their delay; empty before the first.
    pub(super) delays: Vec<u64>,
}

/// Rows of a class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct ClassCount {
    pub(super) bits: u64,
    /// Predicted as it, and of it.
    pub(super) hits: u64,
    /// Predicted as it, and of another.
    pub(super) false_hits: u64,
    /// Of it, and predicted as another.
    pub(super) misses: u64,
}

/// Count, sum and sum of squares.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Moments {
    pub(super) count: u64,
    pub(super) sum: f64,
    pub(super) squares: f64,
}

/// An outcome, in the terms of the prediction that it is about.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Truth {
    /// A class's bits.
    Class(u64),
    /// A number.
    Value(f64),
    /// A reward.
    Reward(f64),
}

impl Moments {
    pub(super) fn add(&mut self, value: f64) {
        self.count += 1;
        self.sum += value;
        self.squares += value * value;
    }

    fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.sum += other.sum;
        self.squares += other.squares;
    }

    /// The mean; `None` of nothing.
    #[expect(clippy::cast_precision_loss, reason = "a count in a mean")]
    pub(super) fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }

    /// The standard deviation about the mean; 0 of nothing.
    #[expect(clippy::cast_precision_loss, reason = "a count in a mean")]
    pub(super) fn deviation(&self) -> f64 {
        let Some(mean) = self.mean() else { return 0.0 };
        (self.squares / self.count as f64 - mean * mean).max(0.0).sqrt()
    }
}

/// The step of a score; `None` if that is no probability.
pub(super) fn step(score: f32) -> Option<usize> {
    if !(0.0..=1.0).contains(&score) {
        return None;
    }
    Some(calibration_step(score.into()))
}

/// True if a row was predicted as the class that its score belongs to.
pub(super) fn is_scored_class(predicted: &Predicted, positive: Option<u64>) -> bool {
    if !predicted.is_positives {
        return true;
    }
    match predicted.kind {
        PredictedKind::Nothing => false,
        PredictedKind::Value => f64::from_bits(predicted.bits) >= 0.5,
        PredictedKind::Number | PredictedKind::Text => Some(predicted.bits) == positive,
    }
}

impl Tally {
    /// Counts an answered row, of so many rows that its request had, if it is their first.
    pub(super) fn serve(&mut self, predicted: &Predicted, rows: u64, positive: Option<u64>) {
        self.served += rows;
        let Some(step) = step(predicted.score) else { return };
        if self.scored.is_empty() {
            self.scored = vec![0; 2 * STEPS];
        }
        let side = usize::from(is_scored_class(predicted, positive));
        self.scored[side * STEPS + step] += 1;
    }

    /// Counts an outcome; `delay` is the time in seconds since the prediction.
    pub(super) fn join(
        &mut self,
        predicted: &Predicted,
        truth: Truth,
        positive: Option<u64>,
        delay: f64,
    ) {
        self.labelled += 1;
        if self.delays.is_empty() {
            self.delays = vec![0; DELAYS];
        }
        self.delays[delay_bucket(delay)] += 1;
        match truth {
            Truth::Reward(reward) => self.reward.add(reward),
            Truth::Value(actual) => {
                if predicted.kind == PredictedKind::Value {
                    self.miss(actual, f64::from_bits(predicted.bits));
                }
            }
            Truth::Class(actual) => {
                let Some(class) = class_of(predicted) else { return };
                self.compare(class, actual);
                if predicted.is_positives && step(predicted.score).is_some() {
                    self.score(predicted.score.into(), Some(actual) == positive);
                }
            }
        }
    }

    fn compare(&mut self, predicted: u64, actual: u64) {
        self.compared += 1;
        if predicted == actual {
            self.correct += 1;
            self.class(actual, |class| class.hits += 1);
        } else {
            self.class(predicted, |class| class.false_hits += 1);
            self.class(actual, |class| class.misses += 1);
        }
    }

    fn class(&mut self, bits: u64, count: impl FnOnce(&mut ClassCount)) {
        if let Some(class) = self.classes.iter_mut().find(|class| class.bits == bits) {
            return count(class);
        }
        if self.classes.len() == CLASSES_MAX {
            self.crowded = true;
            return;
        }
        let mut class = ClassCount { bits, ..ClassCount::default() };
        count(&mut class);
        self.classes.push(class);
    }

    /// The Brier score of a probability, and the logarithm of what it gave to the actual class (Brier, 1950; Good,
    /// 1952).
    fn score(&mut self, probability: f64, is_positive: bool) {
        let actual = f64::from(u8::from(is_positive));
        self.brier.add((probability - actual) * (probability - actual));
        let of_actual = if is_positive { probability } else { 1.0 - probability };
        self.log_loss.add(-of_actual.clamp(f64::EPSILON, 1.0 - f64::EPSILON).ln());
    }

    fn miss(&mut self, actual: f64, predicted: f64) {
        let error = predicted - actual;
        if !error.is_finite() {
            return;
        }
        self.absolute.add(error.abs());
        self.squared.add(error * error);
        self.error.add(error);
        self.actual.add(actual);
    }

    /// Adds the sums of another span.
    pub(super) fn merge(&mut self, other: &Self) {
        self.served += other.served;
        self.labelled += other.labelled;
        self.compared += other.compared;
        self.correct += other.correct;
        self.crowded |= other.crowded;
        for theirs in &other.classes {
            self.class(theirs.bits, |class| {
                class.hits += theirs.hits;
                class.false_hits += theirs.false_hits;
                class.misses += theirs.misses;
            });
        }
        self.brier.merge(&other.brier);
        self.log_loss.merge(&other.log_loss);
        self.absolute.merge(&other.absolute);
        self.squared.merge(&other.squared);
        self.error.merge(&other.error);
        self.actual.merge(&other.actual);
        self.reward.merge(&other.reward);
        add(&mut self.scored, &other.scored);
        add(&mut self.delays, &other.delays);
    }

    /// The delay in seconds below which a share of the outcomes came; `None` without any.
    pub(super) fn delay(&self, share: f64) -> Option<f64> {
        let total: u64 = self.delays.iter().sum();
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rank among counts"
        )]
        let rank = ((total as f64 * share).ceil() as u64).max(1);
        let mut below = 0;
        let bucket = self.delays.iter().position(|count| {
            below += count;
            below >= rank
        })?;
        #[expect(clippy::cast_precision_loss, reason = "a small index")]
        let middle = DELAY_MIN * ((bucket as f64 - 0.5) / DELAY_PARTS).exp2();
        Some(if bucket == 0 { 0.0 } else { middle })
    }
}

/// The class that was predicted; a number is the class 1 from 1/2 on.
pub(super) fn class_of(predicted: &Predicted) -> Option<u64> {
    match predicted.kind {
        PredictedKind::Nothing => None,
        PredictedKind::Number | PredictedKind::Text => Some(predicted.bits),
        PredictedKind::Value => Some(u64::from(f64::from_bits(predicted.bits) >= 0.5)),
    }
}

/// Buckets grow by a quarter of a doubling; the first one is for delays below a millisecond.
fn delay_bucket(seconds: f64) -> usize {
    if seconds < DELAY_MIN {
        return 0;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a small positive number"
    )]
    let bucket = 1 + ((seconds / DELAY_MIN).log2() * DELAY_PARTS) as usize;
    bucket.min(DELAYS - 1)
}

fn add(own: &mut Vec<u64>, others: &[u64]) {
    if own.len() < others.len() {
        own.resize(others.len(), 0);
    }
    for (own, other) in own.iter_mut().zip(others) {
        *own += other;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn class(bits: u64, score: f32) -> Predicted {
        Predicted { kind: PredictedKind::Number, bits, score, is_positives: true }
    }

    #[test]
    fn parts_add_up_to_the_whole() {
        let rows = [(0u64, 0.2f32, 0u64), (1, 0.9, 1), (1, 0.6, 0), (0, 0.4, 1), (1, 1.0, 1)];
        let fill = |tally: &mut Tally, rows: &[(u64, f32, u64)]| {
            for (predicted, score, actual) in rows {
                let predicted = class(*predicted, *score);
                tally.serve(&predicted, 1, Some(1));
                tally.join(&predicted, Truth::Class(*actual), Some(1), 3.0);
            }
        };
        let (mut whole, mut first, mut second) = <(Tally, Tally, Tally)>::default();
        fill(&mut whole, &rows);
        fill(&mut first, &rows[..2]);
        fill(&mut second, &rows[2..]);
        first.merge(&second);
        assert_eq!((first.served, first.compared, first.correct), (5, 5, 3));
        assert_eq!((&first.scored, &first.delays), (&whole.scored, &whole.delays));
        let positive = first.classes.iter().find(|class| class.bits == 1).unwrap();
        assert_eq!((positive.hits, positive.false_hits, positive.misses), (2, 1, 1));
        let brier = first.brier.mean().unwrap();
        assert!((brier - (0.04 + 0.01 + 0.36 + 0.36) / 5.0).abs() < 1e-6, "{brier}");
    }

    #[test]
    fn delays_are_told_to_a_tenth() {
        let mut tally = Tally::default();
        for delay in [0.0, 5.0, 5.0, 3600.0] {
            tally.join(&Predicted::NOTHING, Truth::Reward(1.0), None, delay);
        }
        assert!((tally.delay(0.5).unwrap() / 5.0 - 1.0).abs() < 0.1, "{:?}", tally.delay(0.5));
        assert!((tally.delay(0.99).unwrap() / 3600.0 - 1.0).abs() < 0.1);
        assert_eq!(Tally::default().delay(0.5), None);
    }
}
