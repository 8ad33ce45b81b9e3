//! Two predictions compared: how far a candidate's outputs are from the baseline's, and whether outputs are finite.
//!
//! Pure and without allocations: elements are read in blocks on the stack, whatever form they have. Always true:
//! - Floating outputs are compared as numbers; all others are labels, which are equal or not.
//! - NaN agrees with NaN, and an infinity with one of its sign; from anything else they differ infinitely.
//! - A row is one index of an output's first dimension, its columns are all elements of it; a scalar is one row.
//!
//! Not here: which requests are compared, and what a disagreement leads to.

use crate::tensor::{Data, DataType, Strings, Tensor};

/// Elements that are read at a time.
const BLOCK: usize = 256;

/// Smallest magnitude that a difference is relative to, as a share of the row's largest.
///
/// Engines and devices add in different orders, so elements near zero carry errors relative to the whole row. A
/// probability of 1e-9 that becomes 2e-9 beside one of 1 is no disagreement.
const SCALE_MIN: f64 = 0.01;

/// Differences of a candidate's outputs from the baseline's, over all outputs.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Difference {
    /// Rows compared: those of the output with the most.
    pub rows: u64,
    /// The largest `|c - b|` of any element of a floating output.
    pub max_abs: f64,
    /// The largest `|c - b| / max(|c|, |b|)` of any element of a floating output: symmetric and at most 2 for finite
    /// numbers, as in PEP 485; magnitudes count as at least a hundredth of the row's largest.
    pub max_relative: f64,
    /// Rows of floating outputs with two or more columns whose largest element is another: the first of equals.
    pub argmax_flips: u64,
    /// Rows of other outputs (whole numbers, strings, truth values) with another element.
    pub label_flips: u64,
    /// The first output that cannot be compared, or the number of outputs, in words; `None` if all could be.
    pub shape: Option<String>,
}

impl Difference {
    /// True if an element differs by more than `tolerance` (relative, such as 0.001), or a label or a shape differs.
    ///
    /// Another argmax within the tolerance is a tie, and no disagreement.
    #[must_use]
    pub fn disagrees(&self, tolerance: f64) -> bool {
        self.max_relative > tolerance || self.label_flips > 0 || self.shape.is_some()
    }
}

/// Compares the outputs of two predictions that want the same ones.
#[must_use]
pub fn compare(candidate: &[Tensor], baseline: &[Tensor]) -> Difference {
    let mut difference = Difference::default();
    if candidate.len() != baseline.len() {
        let (own, others) = (candidate.len(), baseline.len());
        difference.shape = Some(format!("outputs: {own}, the baseline's: {others}"));
    }
    for (index, (candidate, baseline)) in candidate.iter().zip(baseline).enumerate() {
        let rows = baseline.shape().first().map_or(1, |rows| usize::try_from(*rows).unwrap_or(0));
        difference.rows = difference.rows.max(rows as u64);
        if candidate.datatype() != baseline.datatype() || candidate.shape() != baseline.shape() {
            difference.shape.get_or_insert_with(|| {
                let text = |tensor: &Tensor| format!("{}{}", tensor.datatype(), tensor.shape());
                let (own, others) = (text(candidate), text(baseline));
                format!("output {index} is {own}, the baseline's {others}")
            });
        } else if candidate.data() != baseline.data() && rows > 0 {
            let pair = Pair { candidate, baseline, rows, columns: baseline.len() / rows };
            match (candidate.strings(), baseline.strings()) {
                (Some(own), Some(others)) => difference.label_flips += pair.strings(own, others),
                _ if is_floating(baseline) => pair.numbers(&mut difference),
                _ => difference.label_flips += pair.labels(),
            }
        }
    }
    difference
}

/// True if a floating output holds NaN or an infinity.
#[must_use]
pub fn non_finite(outputs: &[Tensor]) -> bool {
    // A number is none if all bits of its exponent are set (IEEE 754-2019, 3.4).
    outputs.iter().any(|tensor| match (tensor.data(), tensor.datatype()) {
        (Data::Fp32(values), _) => any(values, |value| !value.is_finite()),
        (Data::Fp64(values), _) => any(values, |value| !value.is_finite()),
        (Data::Raw(raw), DataType::Fp16) => {
            any(raw.as_chunks().0, |bytes| u16::from_le_bytes(bytes) & 0x7C00 == 0x7C00)
        }
        (Data::Raw(raw), DataType::Bf16) => {
            any(raw.as_chunks().0, |bytes| u16::from_le_bytes(bytes) & 0x7F80 == 0x7F80)
        }
        (Data::Raw(raw), DataType::Fp32) => {
            any(raw.as_chunks().0, |bytes| !f32::from_le_bytes(bytes).is_finite())
        }
        (Data::Raw(raw), DataType::Fp64) => {
            any(raw.as_chunks().0, |bytes| !f64::from_le_bytes(bytes).is_finite())
        }
        _ => false,
    })
}

/// Looks at whole blocks without a branch, which compilers make vector instructions of.
fn any<T: Copy>(values: &[T], is_wrong: impl Fn(T) -> bool) -> bool {
    values
        .chunks(BLOCK)
        .any(|block| block.iter().fold(false, |found, value| found | is_wrong(*value)))
}

fn is_floating(tensor: &Tensor) -> bool {
    use DataType::{Bf16, Fp16, Fp32, Fp64};
    matches!(tensor.datatype(), Fp16 | Bf16 | Fp32 | Fp64)
}

/// One output of both, of the same datatype and shape.
struct Pair<'a> {
    candidate: &'a Tensor,
    baseline: &'a Tensor,
    rows: usize,
    columns: usize,
}

impl Pair<'_> {
    /// Compares floating elements: each row once for its magnitude and its largest elements, once for differences.
    fn numbers(&self, difference: &mut Difference) {
        for row in 0..self.rows {
            let mut magnitude = 0.0f64;
            let mut tops = [Top::default(), Top::default()];
            self.each(row, read_numbers, |column, own, other| {
                let finite = |value: f64| if value.is_finite() { value.abs() } else { 0.0 };
                magnitude = magnitude.max(finite(own)).max(finite(other));
                tops[0].look(column, own);
                tops[1].look(column, other);
            });
            difference.argmax_flips += u64::from(tops[0].column != tops[1].column);
            self.each(row, read_numbers, |_, own, other| {
                let is_same = own.to_bits() == other.to_bits() || own - other == 0.0;
                if is_same || (own.is_nan() && other.is_nan()) {
                    return;
                }
                let (mut by, mut relative) = (f64::INFINITY, f64::INFINITY);
                if own.is_finite() && other.is_finite() {
                    let scale = own.abs().max(other.abs()).max(SCALE_MIN * magnitude);
                    by = (own - other).abs();
                    // The difference of large numbers may be too large for one.
                    relative = (by / scale).min(2.0);
                }
                difference.max_abs = difference.max_abs.max(by);
                difference.max_relative = difference.max_relative.max(relative);
            });
        }
    }

    /// Counts rows with another whole number or truth value.
    fn labels(&self) -> u64 {
        let flips = (0..self.rows).filter(|row| {
            let mut flips = false;
            self.each(*row, read_labels, |_, own, other| flips |= own != other);
            flips
        });
        flips.count() as u64
    }

    /// Counts rows with another string.
    fn strings(&self, own: &Strings, others: &Strings) -> u64 {
        let mut pairs = own.iter().zip(others.iter());
        let flips = (0..self.rows).filter(|_| {
            let row = pairs.by_ref().take(self.columns);
            row.filter(|(own, other)| own != other).count() > 0
        });
        flips.count() as u64
    }

    /// Visits the elements of a row: column, the candidate's, the baseline's.
    fn each<T: Copy + Default>(
        &self,
        row: usize,
        read: impl Fn(&Tensor, usize, &mut [T]),
        mut visit: impl FnMut(usize, T, T),
    ) {
        let (mut own, mut others) = ([T::default(); BLOCK], [T::default(); BLOCK]);
        for begin in (0..self.columns).step_by(BLOCK) {
            let count = BLOCK.min(self.columns - begin);
            let from = row * self.columns + begin;
            read(self.candidate, from, &mut own[..count]);
            read(self.baseline, from, &mut others[..count]);
            for (offset, (own, other)) in own.iter().zip(&others).take(count).enumerate() {
                visit(begin + offset, *own, *other);
            }
        }
    }
}

/// The largest element of a row so far; NaN is none.
#[derive(Default)]
struct Top {
    column: Option<usize>,
    value: f64,
}

impl Top {
    fn look(&mut self, column: usize, value: f64) {
        if value > self.value || (self.column.is_none() && !value.is_nan()) {
            *self = Self { column: Some(column), value };
        }
    }
}

/// Reads floating elements from the one at `from` on.
fn read_numbers(tensor: &Tensor, from: usize, out: &mut [f64]) {
    match (tensor.data(), tensor.datatype()) {
        (Data::Fp32(values), _) => fill(out, &values[from..], f64::from),
        (Data::Fp64(values), _) => fill(out, &values[from..], |value| value),
        (Data::Raw(raw), DataType::Fp16) => {
            fill(out, &raw.as_chunks().0[from..], |bytes| half::f16::from_le_bytes(bytes).to_f64());
        }
        (Data::Raw(raw), DataType::Bf16) => {
            fill(out, &raw.as_chunks().0[from..], |bytes| {
                half::bf16::from_le_bytes(bytes).to_f64()
            });
        }
        (Data::Raw(raw), DataType::Fp32) => {
            fill(out, &raw.as_chunks().0[from..], |bytes| f32::from_le_bytes(bytes).into());
        }
        (Data::Raw(raw), DataType::Fp64) => {
            fill(out, &raw.as_chunks().0[from..], f64::from_le_bytes);
        }
        _ => unreachable!("only floating outputs are read as numbers"),
    }
}

/// Reads other elements from the one at `from` on, as numbers that are equal where the elements are.
fn read_labels(tensor: &Tensor, from: usize, out: &mut [u64]) {
    match tensor.data() {
        Data::Bool(values) => fill(out, &values[from..], u64::from),
        Data::Uint8(values) => fill(out, &values[from..], u64::from),
        Data::Uint16(values) => fill(out, &values[from..], u64::from),
        Data::Uint32(values) => fill(out, &values[from..], u64::from),
        Data::Uint64(values) => fill(out, &values[from..], |value| value),
        Data::Int8(values) => fill(out, &values[from..], |value| value.cast_unsigned().into()),
        Data::Int16(values) => fill(out, &values[from..], |value| value.cast_unsigned().into()),
        Data::Int32(values) => fill(out, &values[from..], |value| value.cast_unsigned().into()),
        Data::Int64(values) => fill(out, &values[from..], i64::cast_unsigned),
        Data::Raw(raw) => match tensor.datatype().size() {
            Some(1) => fill(out, &raw[from..], u64::from),
            Some(2) => fill(out, &raw.as_chunks().0[from..], |b| u16::from_le_bytes(b).into()),
            Some(4) => fill(out, &raw.as_chunks().0[from..], |b| u32::from_le_bytes(b).into()),
            _ => fill(out, &raw.as_chunks().0[from..], u64::from_le_bytes),
        },
        Data::Fp32(_) | Data::Fp64(_) | Data::Bytes(_) => {
            unreachable!("floating outputs and strings are read elsewhere")
        }
    }
}

fn fill<T: Copy, O>(out: &mut [O], values: &[T], read: impl Fn(T) -> O) {
    for (out, value) in out.iter_mut().zip(values) {
        *out = read(*value);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tensor::{Element, Shape};

    const NAN: f64 = f64::NAN;
    const INF: f64 = f64::INFINITY;

    fn tensor(dims: &[i64], data: Data) -> Tensor {
        Tensor::new(Shape::new(dims).unwrap(), data).unwrap()
    }

    fn fp64(columns: i64, values: &[f64]) -> Tensor {
        let rows = i64::try_from(values.len()).unwrap() / columns;
        tensor(&[rows, columns], Data::Fp64(values.to_vec()))
    }

    /// The same elements as raw bytes that are not aligned.
    fn raw(tensor: &Tensor) -> Tensor {
        let mut bytes = vec![0];
        tensor.write_raw(&mut bytes);
        let bytes = bytes::Bytes::from(bytes).slice(1..);
        Tensor::from_raw(tensor.datatype(), tensor.shape().clone(), bytes).unwrap()
    }

    fn is_close(one: f64, other: f64) -> bool {
        one.to_bits() == other.to_bits() || (one - other).abs() < 1e-12
    }

    fn halves<T: Element>(values: impl Iterator<Item = T>) -> Tensor {
        let Data::Raw(raw) = T::wrap(values.collect()) else { unreachable!() };
        let shape = Shape::new(&[i64::try_from(raw.len() / 2).unwrap()]).unwrap();
        Tensor::from_raw(T::DATATYPE, shape, raw).unwrap()
    }

    #[test]
    fn numbers_differ_absolutely_and_relatively_and_tops_move() {
        let check = |columns, own: &[f64], others: &[f64], expected: (f64, f64, u64)| {
            let (own, others) = (fp64(columns, own), fp64(columns, others));
            for own in [&own, &raw(&own)] {
                let seen = compare(std::slice::from_ref(own), std::slice::from_ref(&others));
                let (abs, relative, flips) = expected;
                assert!(is_close(seen.max_abs, abs), "{seen:?}");
                assert!(is_close(seen.max_relative, relative), "{seen:?}");
                assert_eq!(seen.argmax_flips, flips, "{seen:?}");
                assert_eq!((seen.label_flips, &seen.shape), (0, &None));
            }
        };
        check(1, &[1.0, 2.0], &[1.0, 2.0], (0.0, 0.0, 0));
        check(1, &[1.0, 2.5, -4.0], &[1.0, 2.0, -5.0], (1.0, 0.2, 0));
        check(2, &[0.4, 0.6, 0.4, 0.6], &[0.6, 0.4, 0.4, 0.6], (0.2, 1.0 / 3.0, 1));
        // What is small in its row is measured against a hundredth of the largest.
        check(2, &[1.0, 2e-9], &[1.0, 1e-9], (1e-9, 1e-7, 0));
        check(1, &[1.0, 2e-9], &[1.0, 1e-9], (1e-9, 0.5, 0));
        // Opposite signs, zeros, and numbers whose difference is none.
        check(1, &[1.0, -0.0], &[-1.0, 0.0], (2.0, 2.0, 0));
        check(1, &[0.0], &[3.0], (3.0, 1.0, 0));
        check(1, &[f64::MAX], &[f64::MIN], (INF, 2.0, 0));
        check(1, &[f64::from_bits(1)], &[0.0], (f64::from_bits(1), 1.0, 0));
        // Not numbers.
        check(2, &[NAN, 1.0, INF, -INF], &[NAN, 1.0, INF, -INF], (0.0, 0.0, 0));
        check(1, &[NAN], &[1.0], (INF, INF, 1));
        check(1, &[INF], &[-INF], (INF, INF, 0));
        check(1, &[7.0], &[INF], (INF, INF, 0));
        check(3, &[NAN, 1.0, 2.0], &[NAN, 2.0, 2.0], (1.0, 0.5, 1));
        check(2, &[-INF, -INF], &[-INF, -INF], (0.0, 0.0, 0));
    }

    #[test]
    fn labels_flip_by_row_in_every_datatype() {
        let strings = |texts: [&str; 4]| Data::Bytes(texts.into_iter().collect());
        let pairs = [
            (Data::Bool(vec![true, false, true, true]), Data::Bool(vec![true, true, false, true])),
            (Data::Uint8(vec![1, 2, 3, 4]), Data::Uint8(vec![1, 0, 0, 4])),
            (Data::Uint16(vec![1, 2, 3, 4]), Data::Uint16(vec![1, 0, 0, 4])),
            (Data::Uint32(vec![1, 2, 3, 4]), Data::Uint32(vec![1, 0, 0, 4])),
            (Data::Uint64(vec![1, 2, 3, u64::MAX]), Data::Uint64(vec![1, 2, 0, u64::MAX - 1])),
            (Data::Int8(vec![-1, 2, 3, 4]), Data::Int8(vec![-1, 0, 0, 4])),
            (Data::Int16(vec![-1, 2, 3, 4]), Data::Int16(vec![-1, 0, 0, 4])),
            (Data::Int32(vec![-1, 2, 3, 4]), Data::Int32(vec![-1, 0, 0, 4])),
            (Data::Int64(vec![-1, 2, 3, 4]), Data::Int64(vec![-1, 0, 0, 4])),
            (strings(["a", "", "c", "d"]), strings(["a", "b", "", "d"])),
        ];
        for (own, others) in pairs {
            for (dims, flips) in [(&[4][..], 2), (&[1, 4], 1), (&[4, 1, 1], 2)] {
                let (own, others) = (tensor(dims, own.clone()), tensor(dims, others.clone()));
                let seen = compare(std::slice::from_ref(&own), std::slice::from_ref(&others));
                assert_eq!(seen.label_flips, flips, "{seen:?}");
                assert!(seen.disagrees(1.0) && seen.max_abs == 0.0 && seen.argmax_flips == 0);
                if own.datatype() != DataType::Bytes {
                    let seen = compare(&[raw(&own)], &[others]);
                    assert_eq!(seen.label_flips, flips, "{seen:?}");
                }
                assert!(!compare(&[own.clone(), own.clone()], &[own.clone(), own]).disagrees(0.0));
            }
        }
    }

    #[test]
    fn what_cannot_be_compared_disagrees_and_says_why() {
        let one = || fp64(1, &[1.0]);
        let check = |own: &[Tensor], others: &[Tensor], text: &str| {
            let seen = compare(own, others);
            assert_eq!(seen.shape.as_deref(), Some(text));
            assert!(seen.disagrees(1e9));
        };
        check(&[one()], &[one(), one()], "outputs: 1, the baseline's: 2");
        let other = tensor(&[1, 1], Data::Fp32(vec![1.0]));
        check(&[one(), other], &[one(), one()], "output 1 is FP32[1,1], the baseline's FP64[1,1]");
        check(&[fp64(2, &[1.0; 4])], &[one()], "output 0 is FP64[2,2], the baseline's FP64[1,1]");
        let empty = || tensor(&[0, 3], Data::Fp32(Vec::new()));
        assert_eq!(compare(&[empty()], &[empty()]), Difference::default());
        let scalar = |value| tensor(&[], Data::Int64(vec![value]));
        let seen = compare(&[scalar(1)], &[scalar(2)]);
        assert_eq!((seen.rows, seen.label_flips), (1, 1));
    }

    #[test]
    fn another_argmax_within_the_tolerance_is_a_tie() {
        let (own, others) = (fp64(2, &[0.5, 0.5001]), fp64(2, &[0.5001, 0.5]));
        let seen = compare(&[own], &[others]);
        assert_eq!((seen.rows, seen.argmax_flips), (1, 1));
        assert!(!seen.disagrees(0.001) && seen.disagrees(0.0001));
    }

    #[test]
    fn one_value_that_is_no_number_is_found_wherever_it_is() {
        for wrong in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for length in [1, 255, 256, 257, 1000] {
                for place in [0, length / 2, length - 1] {
                    let mut values = vec![f32::MAX; length];
                    let wide = |values: &[f32]| -> Vec<f64> {
                        values.iter().map(|value| f64::from(*value)).collect()
                    };
                    let forms = |values: &[f32]| {
                        let fp32 =
                            tensor(&[i64::try_from(length).unwrap()], f32::wrap(values.to_vec()));
                        let small = values.iter().map(|value| value / 1e36);
                        let f16 = halves(small.clone().map(half::f16::from_f32));
                        let bf16 = halves(small.map(half::bf16::from_f32));
                        let fp64 = fp64(1, &wide(values));
                        [raw(&fp32), raw(&fp64), raw(&f16), raw(&bf16), fp32, fp64, f16, bf16]
                    };
                    let label = || tensor(&[1], Data::Int64(vec![i64::MAX]));
                    for sound in forms(&values) {
                        assert!(!non_finite(&[sound, label()]));
                    }
                    values[place] = wrong;
                    for unsound in forms(&values) {
                        assert!(non_finite(&[label(), unsound.clone()]), "{unsound:?}");
                    }
                }
            }
        }
    }

    /// As `compare`, element by element and with all in memory.
    fn naive(columns: usize, own: &[f64], others: &[f64]) -> Difference {
        let mut seen = Difference { rows: (own.len() / columns) as u64, ..Difference::default() };
        for (own, others) in own.chunks(columns).zip(others.chunks(columns)) {
            let finite = || own.iter().chain(others).filter(|value| value.is_finite());
            let magnitude = finite().map(|value| value.abs()).fold(0.0, f64::max);
            for (own, other) in own.iter().zip(others) {
                if own.to_bits() != other.to_bits() && own - other != 0.0 {
                    let scale = own.abs().max(other.abs()).max(magnitude / 100.0);
                    let is_number = (own - other).is_finite();
                    let by = if is_number { (own - other).abs() } else { INF };
                    seen.max_abs = seen.max_abs.max(by);
                    let relative = if is_number { by / scale } else { INF };
                    seen.max_relative = seen.max_relative.max(relative);
                }
            }
            let top = |values: &[f64]| {
                let largest = values.iter().copied().fold(NAN, f64::max);
                values.iter().position(|value| *value >= largest)
            };
            seen.argmax_flips += u64::from(top(own) != top(others));
        }
        seen
    }

    proptest! {
        #[test]
        fn agrees_with_a_naive_comparison(
            columns in prop::sample::select(vec![1usize, 2, 7, 256, 300]),
            rows in 1usize..4,
            pool in prop::collection::vec((
                prop::sample::select(vec![0.0, -0.0, 1.0, -2.5, 1e-9, 1e9, NAN, INF, -INF]),
                prop::sample::select(vec![0.0, 1.0, 1e-6, NAN, INF]),
            ), 1..40),
        ) {
            let pairs = pool.iter().cycle().take(rows * columns);
            let (others, own): (Vec<f64>, Vec<f64>) =
                pairs.map(|(value, change)| (*value, value + change)).unzip();
            let expected = naive(columns, &own, &others);
            let columns = i64::try_from(columns).unwrap();
            let seen = compare(&[fp64(columns, &own)], &[raw(&fp64(columns, &others))]);
            prop_assert!(is_close(seen.max_abs, expected.max_abs));
            prop_assert!(is_close(seen.max_relative, expected.max_relative));
            prop_assert_eq!(seen.argmax_flips, expected.argmax_flips);
            prop_assert_eq!(seen.rows, expected.rows);
        }
    }
}
