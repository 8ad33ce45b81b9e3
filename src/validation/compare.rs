//! Two versions on the same rows: is one better, or is it chance?

use crate::stats::{bootstrap_mean, mcnemar};

use super::{
    Comparison, Difference, Latency, Metric, Task, Verdict, judge::Scored, report::MetricReport,
    sample::Sample,
};

/// Rows whose differences are kept for the bootstrap.
const ROWS_MAX: usize = 100_000;
const RESAMPLES: u32 = 1_000;
const SEED: u64 = 1;

/// Results of both versions on each row.
#[derive(Debug)]
pub(super) struct Pairs {
    task: Task,
    /// Rows that only the candidate, and only the other version, has right.
    only: [u64; 2],
    rows: u64,
    sum: f64,
    differences: Sample,
}

impl Pairs {
    pub(super) fn new(task: Task) -> Self {
        Self { task, only: [0; 2], rows: 0, sum: 0.0, differences: Sample::new(1, ROWS_MAX) }
    }

    /// Adds rows: for each 1 or 0 for a right or wrong class, or an absolute error.
    pub(super) fn add(&mut self, candidate: &[Option<f64>], other: &[Option<f64>]) {
        for (own, their) in candidate.iter().zip(other) {
            let (Some(own), Some(their)) = (own, their) else { continue };
            let difference = own - their;
            if self.task == Task::Classification && difference != 0.0 {
                self.only[usize::from(difference < 0.0)] += 1;
            }
            self.rows += 1;
            self.sum += difference;
            self.differences.add(&[difference], 0);
        }
    }

    /// Compares the candidate with the other version, at a chance of error of `alpha`.
    pub(super) fn compare(
        self,
        version: u64,
        other: Scored,
        latency: Latency,
        alpha: f64,
    ) -> Comparison {
        let metric = match self.task {
            Task::Classification => Metric::Accuracy,
            Task::Regression => Metric::Mae,
        };
        let limits = bootstrap_mean(self.differences.values(), RESAMPLES, 1.0 - alpha, SEED);
        #[expect(clippy::cast_precision_loss, reason = "a mean has no more digits than its sum")]
        let mean = if self.rows > 0 { self.sum / self.rows as f64 } else { 0.0 };
        let difference = limits.map(|limits| Difference {
            metric,
            mean,
            lower: limits.lower,
            upper: limits.upper,
            confidence: 1.0 - alpha,
        });
        let p_value =
            (self.task == Task::Classification).then(|| mcnemar(self.only[0], self.only[1]));
        let verdict = match (p_value, limits) {
            (Some(p), _) if p < alpha && self.only[0] < self.only[1] => Verdict::Worse,
            (Some(p), _) if p < alpha => Verdict::Better,
            (None, Some(limits)) if limits.lower > 0.0 => Verdict::Worse,
            (None, Some(limits)) if limits.upper < 0.0 => Verdict::Better,
            _ => Verdict::Alike,
        };
        let [candidate_only, other_only] = self.only;
        Comparison {
            version,
            verdict,
            metrics: other
                .metrics
                .iter()
                .map(|(metric, value)| MetricReport::new(*metric, *value))
                .collect(),
            difference,
            p_value,
            candidate_only: p_value.map(|_| candidate_only),
            other_only: p_value.map(|_| other_only),
            rows: self.rows,
            unanswered: other.unanswered,
            latency,
            notes: other.notes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compared(task: Task, rows: &[(f64, f64)]) -> Comparison {
        let mut pairs = Pairs::new(task);
        let (own, their): (Vec<_>, Vec<_>) =
            rows.iter().map(|(own, their)| (Some(*own), Some(*their))).unzip();
        pairs.add(&own, &their);
        let scored = Scored {
            task,
            metrics: Vec::new(),
            positive: None,
            classes: Vec::new(),
            confusion: None,
            unanswered: 0,
            notes: Vec::new(),
        };
        pairs.compare(1, scored, Latency::default(), 0.05)
    }

    #[test]
    fn classes_are_compared_by_rows_that_one_version_alone_has_right() {
        let check = |worse: usize, better: usize, verdict: Verdict| {
            let mut rows = vec![(1.0, 1.0); 50];
            rows.extend(vec![(0.0, 1.0); worse]);
            rows.extend(vec![(1.0, 0.0); better]);
            let found = compared(Task::Classification, &rows);
            assert_eq!((found.verdict, found.candidate_only), (verdict, Some(better as u64)));
        };
        check(0, 0, Verdict::Alike);
        check(5, 0, Verdict::Alike);
        check(6, 0, Verdict::Worse);
        check(0, 6, Verdict::Better);
        check(12, 8, Verdict::Alike);
    }

    #[test]
    fn errors_are_compared_by_the_interval_of_their_difference() {
        let rows = |shift: f64| -> Vec<(f64, f64)> {
            (0..100)
                .map(|row| (f64::from(row * 37 % 11) + shift, f64::from(row * 53 % 11)))
                .collect()
        };
        let check = |shift: f64, verdict: Verdict| {
            let found = compared(Task::Regression, &rows(shift));
            assert_eq!(found.verdict, verdict, "{found:?}");
            assert_eq!(found.p_value, None);
        };
        check(0.0, Verdict::Alike);
        check(3.0, Verdict::Worse);
        check(-3.0, Verdict::Better);
    }
}
