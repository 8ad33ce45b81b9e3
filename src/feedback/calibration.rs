//! Labels against a version's scores: the chances that these stand for, and whether estimates may be believed.
//!
//! The estimate of performance without labels takes a score for the chance that its class is the actual one. Labels
//! correct it (isotonic regression), and test it: each label is a bet against the table as it stood before, that the
//! odds are [`SHIFT`] times those of the table: all higher, all lower, all nearer to even, or all further from it. Bets
//! begin anew at each label (Shiryaev and Roberts), so that labels which agreed for long do not hide those that do not
//! any more. Always true:
//! - As long as the odds lie within [`TOLERANCE`] times the table's, [`LABELS_TO_FALSE`] labels come, on average and at
//!   least, before a false rejection: each sum of products less the number of labels is a supermartingale.
//! - Once it has rejected, nothing is estimated until so many labels have come again that a new table is fitted.
//!
//! Not here: what is estimated (`quality`).

use serde::{Deserialize, Serialize};

use crate::stats::{CALIBRATION_STEPS, Calibration as Table, LabelledScores, mean_log_e};

/// From so many labels on, the scores are corrected by them.
const LABELS_MIN: f64 = 200.0;
/// Labels between two fits.
const REFIT: u64 = 50;
/// Labels before a false rejection, on average.
const LABELS_TO_FALSE: f64 = 10_000.0;
/// Odds this many times the table's, or this part of them, are no error of the table.
const TOLERANCE: f64 = 1.5;
/// The error of the odds that is bet on.
const SHIFT: f64 = 3.0;
/// Labels for each step of the score that say what the score itself does: a table of few labels believes it.
const PRIOR: f64 = 0.5;
/// A table's probabilities are held for no smaller, and no larger than the rest, in a bet.
const PROBABILITY_MIN: f64 = 0.02;
/// The logarithm of no evidence.
const NOTHING: f64 = -700.0;

/// Labels of a version, by score.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Calibration {
    labelled: LabelledScores,
    /// Probabilities by score; of scores that are taken as they are before the first fit.
    table: Table,
    is_fitted: bool,
    /// True while the labels contradict the table.
    is_rejected: bool,
    /// Logarithms of the evidence that odds are above the table's, below, nearer to even, and further from it.
    evidence: [f64; 4],
    labels: u64,
}

/// A calibration as snapshots have it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Written {
    sums: [Vec<f64>; 3],
    table: Vec<f64>,
    is_fitted: bool,
    is_rejected: bool,
    evidence: [f64; 4],
    labels: u64,
}

impl Default for Calibration {
    fn default() -> Self {
        Self {
            labelled: LabelledScores::new(),
            table: Table::identity(),
            is_fitted: false,
            is_rejected: false,
            evidence: [NOTHING; 4],
            labels: 0,
        }
    }
}

impl Calibration {
    /// Adds a label: the score, from 0 to 1, and whether its class was the actual one.
    pub(super) fn add(&mut self, score: f64, is_hit: bool) {
        self.test(self.table.probability(score), is_hit);
        self.labelled.add(score, f64::from(u8::from(is_hit)), 1.0);
        self.labels += 1;
        if mean_log_e(&self.evidence) >= LABELS_TO_FALSE.ln() {
            self.is_rejected = true;
            self.evidence = [NOTHING; 4];
            if self.is_fitted {
                // What they said before holds no more.
                (self.labelled, self.is_fitted) = (LabelledScores::new(), false);
            }
        }
        if self.labelled.weight() >= LABELS_MIN
            && (!self.is_fitted || self.labels.is_multiple_of(REFIT))
            && let Some(table) = self.with_prior().fit()
        {
            if !self.is_fitted {
                (self.is_rejected, self.evidence) = (false, [NOTHING; 4]);
            }
            (self.table, self.is_fitted) = (table, true);
        }
    }

    /// The labels, and a few for each step that say what the score does.
    fn with_prior(&self) -> LabelledScores {
        let mut labelled = self.labelled.clone();
        for score in Table::identity().table() {
            labelled.add(*score, *score, PRIOR);
        }
        labelled
    }

    /// Bets against the table.
    fn test(&mut self, probability: f64, is_hit: bool) {
        let probability = probability.clamp(PROBABILITY_MIN, 1.0 - PROBABILITY_MIN);
        let odds = |times: f64| {
            let odds = probability / (1.0 - probability) * times;
            odds / (1.0 + odds)
        };
        let (above, below) = ((TOLERANCE, SHIFT), (1.0 / TOLERANCE, 1.0 / SHIFT));
        let (nearer, further) = if probability < 0.5 { (above, below) } else { (below, above) };
        for (evidence, (null, bet)) in self.evidence.iter_mut().zip([above, below, nearer, further])
        {
            let (null, bet) = (odds(null), odds(bet));
            let ratio = if is_hit { bet / null } else { (1.0 - bet) / (1.0 - null) };
            // The logarithm of e^x + 1, whichever of the two is larger.
            let anew = evidence.max(0.0) + (-evidence.abs()).exp().ln_1p();
            *evidence = (anew + ratio.ln()).clamp(NOTHING, -NOTHING);
        }
    }

    /// The probability of each step of the score; `None` while the labels contradict it.
    pub(super) fn table(&self) -> Option<&[f64; CALIBRATION_STEPS]> {
        (!self.is_rejected).then(|| self.table.table())
    }

    /// The expected calibration error of the scores as they are; `None` without labels.
    pub(super) fn error(&self) -> Option<f64> {
        self.labelled.calibration_error(None)
    }

    pub(super) fn write(&self) -> Written {
        Written {
            sums: self.labelled.parts().map(|part| part.to_vec()),
            table: self.table.table().to_vec(),
            is_fitted: self.is_fitted,
            is_rejected: self.is_rejected,
            evidence: self.evidence,
            labels: self.labels,
        }
    }

    /// Reads what was written; nothing learnt if that makes no sense.
    pub(super) fn read(written: &Written) -> Self {
        let labelled = LabelledScores::from_parts([0, 1, 2].map(|part| &written.sums[part][..]));
        let table = Table::from_table(&written.table);
        let (Some(labelled), Some(table)) = (labelled, table) else { return Self::default() };
        let Written { is_fitted, is_rejected, evidence, labels, .. } = *written;
        Self { labelled, table, is_fitted, is_rejected, evidence, labels }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Random;

    fn unit(random: &mut Random) -> f64 {
        f64::from(u32::try_from(random.below(1 << 30)).unwrap()) / f64::from(1 << 30)
    }

    /// Adds labels whose chance is a function of the score; true if there is an estimate after each.
    fn feed(
        calibration: &mut Calibration,
        random: &mut Random,
        labels: u32,
        chance: fn(f64) -> f64,
    ) -> bool {
        (0..labels).fold(true, |is_believed, _| {
            let score = unit(random);
            calibration.add(score, unit(random) < chance(score));
            is_believed && calibration.table().is_some()
        })
    }

    #[test]
    fn estimates_are_withheld_where_labels_contradict_them_until_enough_came_again() {
        let honest = |score: f64| score;
        let turned = |score: f64| 0.9 - 0.8 * score;
        for seed in 0..20 {
            let (mut calibration, mut random) = (Calibration::default(), Random::new(seed));
            assert!(feed(&mut calibration, &mut random, 3000, honest), "seed {seed}");
            assert!(!feed(&mut calibration, &mut random, 100, turned), "seed {seed}");
            let withheld = calibration.table().is_none();
            assert!(withheld, "seed {seed}: the old labels are forgotten");
            feed(&mut calibration, &mut random, 300, turned);
            assert!(calibration.table().is_some(), "seed {seed}");
            let written = serde_json::to_string(&calibration.write()).unwrap();
            let read = Calibration::read(&serde_json::from_str(&written).unwrap());
            assert_eq!(read.labels, calibration.labels);
            assert_eq!(read.table, calibration.table);
        }
    }

    #[test]
    fn scores_that_say_too_much_are_corrected_after_their_first_labels() {
        let (mut calibration, mut random) = (Calibration::default(), Random::new(1));
        // Each score is sure, and right in two of three.
        for _ in 0..1000 {
            calibration.add(0.99, unit(&mut random) < 2.0 / 3.0);
        }
        let table = calibration.table().unwrap();
        assert!((table[CALIBRATION_STEPS - 1] - 2.0 / 3.0).abs() < 0.05, "{table:?}");
        assert!((calibration.error().unwrap() - 0.32).abs() < 0.05);
    }
}
