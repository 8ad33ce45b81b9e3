//! Wide inputs in a few numbers a row: what is worked out where a row has too many values to watch each.

/// Measures of one row, in the order of [`Summary::NAMES`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// Mean of the values.
    pub mean: f64,
    /// Standard deviation of the values around their mean, with their number as the divisor.
    pub sd: f64,
    /// Smallest value.
    pub min: f64,
    /// Largest value.
    pub max: f64,
    /// Share of values that are exactly 0, from 0 to 1.
    pub zeros: f64,
}

impl Summary {
    /// Names of the measures: the feature of an input `image` is `image.mean`.
    pub const NAMES: [&str; 5] = ["mean", "sd", "min", "max", "zeros"];

    /// Measures a row. All are NaN, that is missing, if one of its values is or if it has none; mean and deviation
    /// are infinite if one of its values is.
    #[expect(clippy::cast_precision_loss, reason = "rows have fewer than 2^53 values")]
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values = values.into_iter().peekable();
        let mut row =
            Self { mean: 0.0, sd: 0.0, min: f64::INFINITY, max: f64::NEG_INFINITY, zeros: 0.0 };
        // Distances from one of the values: squares of the values themselves cancel where the mean is large.
        let first = values.peek().copied().unwrap_or(f64::NAN);
        let (mut sum, mut squares, mut zeros, mut count) = (0.0, 0.0, 0_u64, 0_u64);
        let mut is_missing = first.is_nan();
        for value in values {
            let distance = value - first;
            sum += distance;
            squares += distance * distance;
            row.min = if value < row.min { value } else { row.min };
            row.max = if value > row.max { value } else { row.max };
            zeros += u64::from(value == 0.0);
            is_missing |= value.is_nan();
            count += 1;
        }
        let rows = count as f64;
        (row.mean, row.sd) =
            (first + sum / rows, ((squares - sum * sum / rows) / rows).max(0.0).sqrt());
        row.zeros = zeros as f64 / rows;
        if is_missing {
            let none = f64::NAN;
            return Self { mean: none, sd: none, min: none, max: none, zeros: none };
        }
        if row.min.is_infinite()
            || row.max.is_infinite()
            || !row.mean.is_finite()
            || !squares.is_finite()
        {
            row.mean = if row.min == f64::NEG_INFINITY { row.min } else { f64::INFINITY };
            row.sd = f64::INFINITY;
        }
        row
    }

    /// The measures, in the order of [`Self::NAMES`].
    pub fn values(&self) -> [f64; 5] {
        [self.mean, self.sd, self.min, self.max, self.zeros]
    }
}

/// The length of a vector: the root of the sum of its squares.
pub fn norm(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().map(|value| value * value).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rows_are_measured_as_numpy_does() {
        let row = Summary::of([0.0, 1.0, 2.0, 0.0, 7.0]);
        let expected =
            Summary { mean: 2.0, sd: 2.607_680_962_081_059_6, min: 0.0, max: 7.0, zeros: 0.4 };
        assert_eq!(row, expected);
        let large = Summary::of([1e9, 1e9 + 1.0, 1e9 + 2.0]);
        assert!((large.sd - (2.0_f64 / 3.0).sqrt()).abs() < 1e-12, "{large:?}");
        assert!((norm([3.0, -4.0]) - 5.0).abs() < 1e-15);
    }

    #[test]
    fn missing_and_infinite_values_show() {
        for row in [&[][..], &[f64::NAN], &[1.0, f64::NAN], &[f64::INFINITY, f64::NAN, 0.0]] {
            assert!(Summary::of(row.iter().copied()).values().iter().all(|value| value.is_nan()));
        }
        let (low, high) = (f64::NEG_INFINITY, f64::INFINITY);
        let of = |row: &[f64]| Summary::of(row.iter().copied()).values().map(|v| v.to_string());
        assert_eq!(of(&[1.0, high]), ["inf", "inf", "1", "inf", "0"]);
        assert_eq!(of(&[low, 0.0]), ["-inf", "inf", "-inf", "0", "0.5"]);
    }

    proptest! {
        #[test]
        fn measures_are_those_of_two_passes(row in prop::collection::vec(-1e6..1e6_f64, 1..50)) {
            let rows = f64::from(u32::try_from(row.len()).unwrap());
            let own = Summary::of(row.iter().copied());
            let mean = row.iter().sum::<f64>() / rows;
            let sd = (row.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / rows).sqrt();
            prop_assert!((own.mean - mean).abs() < 1e-6 && (own.sd - sd).abs() < 1e-3);
            prop_assert!(own.min <= own.mean + 1e-6 && own.mean <= own.max + 1e-6);
        }
    }
}
