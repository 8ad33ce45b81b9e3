//! A sample made ready for tests, and what they answer with.

use std::fmt;

/// The values of a sample in ascending order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sample {
    sorted: Vec<f64>,
    missing: usize,
}

impl Sample {
    /// The sample of these values; NaN is left out and counted. Sorts a copy: 8 bytes per value.
    pub fn new(values: &[f64]) -> Self {
        // Adding 0 makes both zeros one value.
        let mut sorted: Vec<f64> =
            values.iter().filter(|value| !value.is_nan()).map(|value| value + 0.0).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let missing = values.len() - sorted.len();
        Self { sorted, missing }
    }

    /// Values in ascending order, infinite ones included.
    pub fn sorted(&self) -> &[f64] {
        &self.sorted
    }

    /// Finite values in ascending order.
    pub fn finite(&self) -> &[f64] {
        let first = self.sorted.partition_point(|value| *value == f64::NEG_INFINITY);
        let end = self.sorted.partition_point(|value| *value < f64::INFINITY);
        &self.sorted[first..end]
    }

    /// Number of values without NaN.
    pub fn len(&self) -> usize {
        self.sorted.len()
    }

    /// True if there is no value but NaN.
    pub fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    /// Number of NaN that were left out.
    pub fn missing(&self) -> usize {
        self.missing
    }
}

/// Why two samples were not compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SampleError {
    /// A sample has too few values.
    TooFew {
        /// Values needed in each.
        needed: usize,
        /// Values of the reference that could be used.
        reference: usize,
        /// Values of the current sample that could be used.
        current: usize,
    },
    /// A table has no counts, or rows of different length.
    Table,
}

impl fmt::Display for SampleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooFew { needed, reference, current } => write!(
                f,
                "a comparison needs {needed} or more usable values in each sample, but the reference has \
                 {reference} and the current one {current}; NaN does not count"
            ),
            Self::Table => write!(
                f,
                "a table of counts needs two or more rows of one length, and a count in it"
            ),
        }
    }
}

impl std::error::Error for SampleError {}

impl SampleError {
    /// Refuses samples with fewer values than needed.
    pub(super) fn check(
        needed: usize,
        reference: &[f64],
        current: &[f64],
    ) -> Result<(), SampleError> {
        let (reference, current) = (reference.len(), current.len());
        if reference.min(current) < needed {
            return Err(Self::TooFew { needed, reference, current });
        }
        Ok(())
    }
}

/// The alternative that a test is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The samples differ in either direction.
    TwoSided,
    /// As scipy's `less`, said of the reference: its distribution function lies below (Kolmogorov-Smirnov), its ranks
    /// are smaller (Mann-Whitney), the odds ratio is below 1 (Fisher).
    Less,
    /// The opposite of [`Side::Less`].
    Greater,
}

/// Where a p-value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Exact for small samples, else asymptotic.
    Auto,
    /// By counting, as far as that is feasible.
    Exact,
    /// The limit of large samples, whatever their size.
    Asymptotic,
}

/// A test statistic and its p-value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TestResult {
    /// The statistic.
    pub statistic: f64,
    /// The probability of a statistic at least as extreme if both samples have one distribution.
    pub p_value: f64,
}

/// A value that one or both samples have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub(super) value: f64,
    /// How often it occurs, in the first and the second sample.
    pub(super) equal: [usize; 2],
    /// Number of values up to and including it, in each.
    pub(super) up_to: [usize; 2],
}

/// The distinct values of two sorted samples, in ascending order.
pub(super) fn steps<'a>(first: &'a [f64], second: &'a [f64]) -> impl Iterator<Item = Step> + 'a {
    let mut at = [0, 0];
    std::iter::from_fn(move || {
        let value = match (first.get(at[0]), second.get(at[1])) {
            (Some(a), Some(b)) => a.min(*b),
            (Some(value), None) | (None, Some(value)) => *value,
            (None, None) => return None,
        };
        let run = |rest: &[f64]| rest.iter().take_while(|other| **other <= value).count();
        let equal = [run(&first[at[0]..]), run(&second[at[1]..])];
        at = [at[0] + equal[0], at[1] + equal[1]];
        Some(Step { value, equal, up_to: at })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_count_what_they_leave_out() {
        let sample = Sample::new(&[f64::NAN, 0.0, f64::INFINITY, -1.0, -0.0, f64::NEG_INFINITY]);
        assert_eq!((sample.len(), sample.missing(), sample.is_empty()), (5, 1, false));
        assert_eq!(sample.finite(), [-1.0, 0.0, 0.0]);
        let both: Vec<_> = steps(sample.sorted(), &[0.0, 2.0]).map(|step| step.up_to).collect();
        assert_eq!(both, [[1, 0], [2, 0], [4, 1], [4, 2], [5, 2]]);
        assert!(Sample::new(&[f64::NAN]).is_empty());
        let few = SampleError::check(2, &[1.0], &[]).unwrap_err().to_string();
        assert!(few.contains("needs 2 or more") && few.contains("has 1"), "{few}");
    }
}
