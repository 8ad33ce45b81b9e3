//! Errors of predicted numbers against the true ones.

use super::special::number;

/// Errors of a regression, summed row by row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RegressionErrors {
    rows: u64,
    absolute: f64,
    squared: f64,
    /// The running mean of the actual values, and their squared distances from it (Welford).
    mean: f64,
    spread: f64,
}

impl RegressionErrors {
    /// Errors of no rows.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a row of finite numbers.
    pub fn add(&mut self, actual: f64, predicted: f64) {
        let error = predicted - actual;
        self.rows += 1;
        self.absolute += error.abs();
        self.squared += error * error;
        let away = actual - self.mean;
        self.mean += away / number(self.rows);
        self.spread += away * (actual - self.mean);
    }

    /// Rows so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The mean absolute error; `None` without rows.
    pub fn mean_absolute(&self) -> Option<f64> {
        (self.rows > 0).then(|| self.absolute / number(self.rows))
    }

    /// The root of the mean squared error; `None` without rows.
    pub fn root_mean_squared(&self) -> Option<f64> {
        (self.rows > 0).then(|| (self.squared / number(self.rows)).sqrt())
    }

    /// The coefficient of determination: 1 less the squared errors over the squared distances of the actual values
    /// from their mean. `None` with fewer than two rows; where all actual values are equal, 1 if every
    /// prediction is exact, else 0.
    pub fn r_squared(&self) -> Option<f64> {
        if self.rows < 2 {
            return None;
        }
        Some(match (self.spread > 0.0, self.squared > 0.0) {
            (true, _) => 1.0 - self.squared / self.spread,
            (false, true) => 0.0,
            (false, false) => 1.0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{super::special::tests::assert_close, *};

    fn errors(rows: impl Iterator<Item = (f64, f64)>) -> RegressionErrors {
        let mut errors = RegressionErrors::new();
        rows.for_each(|(actual, predicted)| errors.add(actual, predicted));
        errors
    }

    /// Reference values: scikit-learn 1.9.1.
    #[test]
    fn errors_agree_with_a_library() {
        let errors = errors((0..500_u32).map(|row| {
            let actual = f64::from(row * 53 % 97) * 0.25;
            (actual, actual + (f64::from(row * 37 % 101) - 50.0) * 0.125)
        }));
        assert_eq!(errors.rows(), 500);
        assert_close(errors.mean_absolute().unwrap(), 3.158_75);
        assert_close(errors.root_mean_squared().unwrap(), 3.647_511_994_497_070_6);
        assert_close(errors.r_squared().unwrap(), 0.729_109_692_652_304_5);
    }

    #[test]
    fn constant_values_and_few_rows_have_an_answer() {
        let constant = |predicted: [f64; 3]| errors(predicted.into_iter().map(|p| (3.0, p)));
        assert_eq!(constant([3.0, 3.0, 4.0]).r_squared(), Some(0.0));
        assert_eq!(constant([3.0, 3.0, 3.0]).r_squared(), Some(1.0));
        assert_eq!(errors([(1.0, 2.0)].into_iter()).r_squared(), None);
        assert_eq!(RegressionErrors::new().mean_absolute(), None);
        assert_eq!(RegressionErrors::new().root_mean_squared(), None);
    }

    #[test]
    fn a_large_offset_costs_no_precision() {
        let rows = |offset: f64| {
            let row = move |row: u32| (offset + f64::from(row % 7), offset + f64::from(row % 5));
            errors((0..1000).map(row)).r_squared().unwrap()
        };
        assert_close(rows(1e8), rows(0.0));
    }
}
