//! Two answers to the same rows: equal, equal within a tolerance, or another label.
//!
//! Numbers agree where `|answer - other| <= absolute + relative * |other|`, as golden outputs do, and one that is none
//! where both are the same; whole numbers and texts must be equal. An output with one whole number or text a row is a
//! label; of one with several floating-point numbers a row, the place of the largest is the class.

use half::{bf16, f16};
use serde::Serialize;

use crate::tensor::{DataType, Strings, Tensor};

/// The distance that numbers may be apart.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Tolerance {
    /// As a share of the other number.
    pub relative: f64,
    /// In its own unit.
    pub absolute: f64,
}

impl Default for Tolerance {
    /// That of golden outputs: FP32 arithmetic in another order differs by about this much.
    fn default() -> Self {
        Self { relative: 1e-4, absolute: 1e-5 }
    }
}

/// Agreement of the rows of an output.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OutputAgreement {
    /// The output.
    pub output: String,
    /// Rows that were compared.
    pub rows: u64,
    /// Rows of which every value is the same.
    pub exact: u64,
    /// Rows of which every value is within the tolerance, those that are the same included.
    pub within: u64,
    /// Rows with another class; `None` for an output that has none.
    pub flips: Option<u64>,
    /// The largest absolute difference of two numbers; `None` without numbers.
    pub largest: Option<f64>,
    /// Rows with more or fewer values than the other.
    pub other_shape: u64,
    /// Rows without a value to compare with.
    pub unrecorded: u64,
}

/// A row whose answers differ.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WorstRow {
    /// The file.
    pub file: String,
    /// The row in the file, counted from 1.
    pub row: u64,
    /// The prediction that was recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prediction_id: Option<String>,
    /// The output.
    pub output: String,
    /// The element of the row's values that differs most, counted from 0.
    pub element: usize,
    /// The value that was recorded, or that the other version gives.
    pub expected: String,
    /// The value that the version gives.
    pub actual: String,
    /// True if the class is another.
    pub flipped: bool,
    /// The difference as a multiple of the tolerance; infinite (JSON: null) where no tolerance would do.
    pub tolerances: f64,
}

/// Difference of the answers to one row.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RowDifference {
    pub(super) exact: bool,
    pub(super) within: bool,
    pub(super) flipped: Option<bool>,
    pub(super) other_shape: bool,
    /// The largest absolute difference.
    pub(super) largest: Option<f64>,
    /// The element's difference as a multiple of the tolerance.
    pub(super) tolerances: f64,
    pub(super) element: usize,
    pub(super) expected: String,
    pub(super) actual: String,
}

/// The elements of a tensor, by what makes two of them equal.
enum Values<'t> {
    /// True if they have 32 bits or fewer.
    Floats(Vec<f64>, bool),
    Wholes(Vec<i128>),
    Texts(&'t Strings),
}

impl OutputAgreement {
    pub(super) fn new(output: &str) -> Self {
        Self {
            output: output.to_owned(),
            rows: 0,
            exact: 0,
            within: 0,
            flips: None,
            largest: None,
            other_shape: 0,
            unrecorded: 0,
        }
    }

    /// Adds the answers to so many rows; gives the difference of each row that is not exact, with its place.
    pub(super) fn add(
        &mut self,
        expected: &Tensor,
        actual: &Tensor,
        rows: usize,
        tolerance: Tolerance,
    ) -> Vec<(usize, RowDifference)> {
        let (expected, actual) = (Values::of(expected), Values::of(actual));
        let mut differing = Vec::new();
        for row in 0..rows {
            let found = difference(&expected, &actual, (row, rows), tolerance);
            self.rows += 1;
            self.exact += u64::from(found.exact);
            self.within += u64::from(found.within);
            self.other_shape += u64::from(found.other_shape);
            if let Some(flipped) = found.flipped {
                *self.flips.get_or_insert(0) += u64::from(flipped);
            }
            if let Some(largest) = found.largest {
                self.largest = Some(self.largest.unwrap_or(0.0).max(largest));
            }
            if !found.exact {
                differing.push((row, found));
            }
        }
        differing
    }
}

impl<'t> Values<'t> {
    fn of(tensor: &'t Tensor) -> Self {
        macro_rules! wholes {
            ($element:ty) => {
                Self::Wholes(tensor.view::<$element>().map_or_else(
                    |_| Vec::new(),
                    |all| all.iter().map(|value| i128::from(*value)).collect(),
                ))
            };
        }
        macro_rules! floats {
            ($element:ty, $is_short:expr) => {
                Self::Floats(
                    tensor.view::<$element>().map_or_else(
                        |_| Vec::new(),
                        |all| all.iter().map(|value| f64::from(*value)).collect(),
                    ),
                    $is_short,
                )
            };
        }
        match tensor.datatype() {
            DataType::Bool => wholes!(bool),
            DataType::Uint8 => wholes!(u8),
            DataType::Uint16 => wholes!(u16),
            DataType::Uint32 => wholes!(u32),
            DataType::Uint64 => wholes!(u64),
            DataType::Int8 => wholes!(i8),
            DataType::Int16 => wholes!(i16),
            DataType::Int32 => wholes!(i32),
            DataType::Int64 => wholes!(i64),
            DataType::Fp16 => floats!(f16, true),
            DataType::Bf16 => floats!(bf16, true),
            DataType::Fp32 => floats!(f32, true),
            DataType::Fp64 => floats!(f64, false),
            DataType::Bytes => match tensor.strings() {
                Some(strings) => Self::Texts(strings),
                None => Self::Wholes(Vec::new()),
            },
        }
    }

    /// The elements of a row of so many: from and to. Values that rows do not share are the first row's.
    fn of_row(&self, row: usize, rows: usize) -> std::ops::Range<usize> {
        let all = match self {
            Self::Floats(values, _) => values.len(),
            Self::Wholes(values) => values.len(),
            Self::Texts(strings) => strings.len(),
        };
        if !all.is_multiple_of(rows) {
            return if row == 0 { 0..all } else { 0..0 };
        }
        let each = all / rows;
        row * each..(row + 1) * each
    }

    fn shown(&self, at: usize) -> String {
        match self {
            Self::Floats(values, is_short) => values.get(at).map(|value| number(*value, *is_short)),
            Self::Wholes(values) => values.get(at).map(ToString::to_string),
            Self::Texts(strings) => strings.get(at).map(shown),
        }
        .unwrap_or_default()
    }

    /// The place of the largest of these floating-point numbers, the first of equal ones.
    fn class(&self, own: std::ops::Range<usize>) -> Option<usize> {
        let Self::Floats(values, _) = self else { return None };
        let values = &values[own];
        let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        values.iter().position(|value| value.total_cmp(&largest).is_eq())
    }
}

/// A number with the digits of its own type.
fn number(value: f64, is_short: bool) -> String {
    #[expect(clippy::cast_possible_truncation, reason = "it was a number of 32 bits")]
    let short = value as f32;
    if is_short { format!("{short}") } else { format!("{value}") }
}

/// A text for people: not endless.
fn shown(text: &[u8]) -> String {
    const SHOWN_MAX: usize = 32;
    let text = String::from_utf8_lossy(text);
    let mut short: String = text.chars().take(SHOWN_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN_MAX).is_some() {
        short += "...";
    }
    short
}

/// Compares the answers to one row of several.
fn difference(
    expected: &Values<'_>,
    actual: &Values<'_>,
    (row, rows): (usize, usize),
    tolerance: Tolerance,
) -> RowDifference {
    let (theirs, own) = (expected.of_row(row, rows), actual.of_row(row, rows));
    let mut found = RowDifference {
        exact: true,
        within: true,
        flipped: None,
        other_shape: false,
        largest: None,
        tolerances: 0.0,
        element: 0,
        expected: String::new(),
        actual: String::new(),
    };
    let is_other_kind = std::mem::discriminant(expected) != std::mem::discriminant(actual);
    if theirs.len() != own.len() || is_other_kind {
        let values = |range: &std::ops::Range<usize>| format!("{} values", range.len());
        let (expected, actual) = (values(&theirs), values(&own));
        let tolerances = f64::INFINITY;
        let (exact, within, other_shape) = (false, false, true);
        return RowDifference { exact, within, other_shape, tolerances, expected, actual, ..found };
    }
    let is_label = theirs.len() == 1 && !matches!(expected, Values::Floats(..));
    for (place, (their, own)) in theirs.clone().zip(own.clone()).enumerate() {
        let (is_same, tolerances, apart) = compare(expected, actual, (their, own), tolerance);
        found.exact &= is_same;
        found.within &= tolerances <= 1.0;
        if let Some(apart) = apart {
            found.largest = Some(found.largest.unwrap_or(0.0).max(apart));
        }
        if !is_same && (tolerances > found.tolerances || found.expected.is_empty()) {
            (found.tolerances, found.element) = (tolerances, place);
            (found.expected, found.actual) = (expected.shown(their), actual.shown(own));
        }
    }
    if is_label {
        found.flipped = Some(!found.exact);
    } else if theirs.len() > 1
        && let (Some(before), Some(now)) =
            (expected.class(theirs.clone()), actual.class(own.clone()))
    {
        found.flipped = Some(before != now);
        if before != now {
            found.element = now;
            let score = |values: &Values<'_>, class: usize, start: usize| {
                format!("class {class} ({})", values.shown(start + class))
            };
            found.expected = score(expected, before, theirs.start);
            found.actual = score(actual, now, own.start);
        }
    }
    found
}

/// Compares two elements: true if they are the same, their difference as a multiple of the tolerance,
/// and the difference.
fn compare(
    expected: &Values<'_>,
    actual: &Values<'_>,
    (their, own): (usize, usize),
    tolerance: Tolerance,
) -> (bool, f64, Option<f64>) {
    let equal = |is_same: bool| if is_same { 0.0 } else { f64::INFINITY };
    match (expected, actual) {
        (Values::Floats(expected, _), Values::Floats(actual, _)) => {
            apart(expected[their], actual[own], tolerance)
        }
        (Values::Wholes(expected), Values::Wholes(actual)) => {
            let apart = actual[own].abs_diff(expected[their]);
            #[expect(clippy::cast_precision_loss, reason = "a difference for people")]
            let number = apart as f64;
            (apart == 0, equal(apart == 0), Some(number))
        }
        (Values::Texts(expected), Values::Texts(actual)) => {
            let is_same = expected.get(their) == actual.get(own);
            (is_same, equal(is_same), None)
        }
        _ => (false, f64::INFINITY, None),
    }
}

/// Compares two numbers: true if they are the same, their difference as a multiple of the tolerance,
/// and the difference.
fn apart(expected: f64, actual: f64, tolerance: Tolerance) -> (bool, f64, Option<f64>) {
    if expected.total_cmp(&actual).is_eq() || (expected.is_nan() && actual.is_nan()) {
        return (true, 0.0, expected.is_finite().then_some(0.0));
    }
    let apart = (actual - expected).abs();
    // Any number would be close to an infinite one.
    if !expected.is_finite() || !apart.is_finite() {
        return (false, f64::INFINITY, None);
    }
    let allowed = tolerance.absolute + tolerance.relative * expected.abs();
    let tolerances = if apart > 0.0 { apart / allowed } else { 0.0 };
    (apart <= 0.0, tolerances, Some(apart))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Data, Shape};

    fn tensor(rows: i64, data: &Data) -> Tensor {
        let new = |columns| Tensor::new(Shape::new(&[rows, columns]).unwrap(), data.clone()).ok();
        (1..9).find_map(new).unwrap()
    }

    fn add(expected: &Data, actual: &Data, rows: i64) -> (OutputAgreement, Vec<RowDifference>) {
        let tolerance = Tolerance { relative: 0.01, absolute: 0.1 };
        let mut agreement = OutputAgreement::new("y");
        let count = usize::try_from(rows).unwrap();
        let differing =
            agreement.add(&tensor(rows, expected), &tensor(rows, actual), count, tolerance);
        (agreement, differing.into_iter().map(|(_, found)| found).collect())
    }

    #[test]
    fn numbers_are_equal_within_the_tolerance_or_not() {
        let expected = vec![100.0, 100.0, f32::NAN, 0.0, 1.0, f32::INFINITY];
        let actual = vec![101.0, 102.0, f32::NAN, -0.0, f32::NAN, 7.0];
        let (all, differing) = add(&Data::Fp32(expected), &Data::Fp32(actual), 6);
        assert_eq!((all.rows, all.exact, all.within, all.flips), (6, 2, 3, None));
        assert_eq!(all.largest, Some(2.0));
        let tolerances: Vec<_> = differing.iter().map(|row| row.tolerances).collect();
        assert!(tolerances[0] < 1.0 && tolerances[1] > 1.0 && tolerances[2].is_infinite());
        assert_eq!((&*differing[1].expected, &*differing[1].actual), ("100", "102"));
    }

    #[test]
    fn classes_flip_by_label_and_by_the_largest_score() {
        let (labels, differing) = add(&Data::Int64(vec![1, 2, 3]), &Data::Int64(vec![1, 3, 3]), 3);
        assert_eq!((labels.exact, labels.within, labels.flips), (2, 2, Some(1)));
        assert_eq!((&*differing[0].expected, &*differing[0].actual), ("2", "3"));
        let scores = vec![0.4, 0.6, 0.5, 0.5];
        let moved = vec![0.45, 0.55, 0.49, 0.51];
        let (scores, differing) = add(&Data::Fp32(scores), &Data::Fp32(moved), 2);
        assert_eq!((scores.within, scores.flips), (2, Some(1)));
        assert!(differing[1].expected.starts_with("class 0 (0.5)"), "{differing:?}");
    }

    #[test]
    fn other_numbers_of_values_are_another_shape() {
        let (all, _) = add(&Data::Fp32(vec![1.0; 4]), &Data::Fp32(vec![1.0; 2]), 2);
        assert_eq!((all.other_shape, all.within), (2, 0));
        let (all, _) = add(&Data::Fp32(vec![1.0; 2]), &Data::Int64(vec![1; 2]), 2);
        assert_eq!((all.other_shape, all.within), (2, 0));
    }
}
