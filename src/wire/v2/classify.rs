//! The best classes instead of the scores.
//!
//! Source: Triton's classification extension; the text of an element follows its implementation, which writes
//! `value:index` and, if the class has a name, `:name`, floats with six decimals.

use std::{cmp::Ordering, io::Write as _};

use crate::{
    tensor::{Data, DataType, Element, Shape, Strings, Tensor},
    wire::json::number::write_integer,
};

/// Larger outputs are not classified: no list of classes is that long.
const ELEMENTS_MAX: usize = 1_000_000;

/// Most classes of one answer, all rows together: each costs several times the element that it stands for.
const CLASSES_MAX: usize = 1 << 16;

/// Most bytes of their texts: a float in decimals may have 300 digits, a class a long name.
const TEXT_BYTES_MAX: usize = 4 << 20;

/// Why an output cannot be classified; the client can ask for its values instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClassifyError {
    /// Elements of this datatype have no order here.
    #[error("{0} cannot be classified; only whole numbers, FP32 and FP64 can")]
    DataType(DataType),
    /// Too many elements.
    #[error("{actual} elements cannot be classified; at most {} can", ELEMENTS_MAX)]
    TooLarge {
        /// The elements of the output.
        actual: usize,
    },
    /// More classes are asked for than one answer holds.
    #[error(
        "{rows} rows with {classes} classes each are too many; ask for fewer, {} in all and {} bytes as text",
        CLASSES_MAX,
        TEXT_BYTES_MAX
    )]
    TooMany {
        /// Rows of the output.
        rows: usize,
        /// Classes of each row.
        classes: usize,
    },
}

/// The `classes` highest elements of `tensor`, highest first, as BYTES such as `0.900000:3:cat`.
///
/// The shape is `[k]`, or `[rows, k]` if `batched`, with k = `classes` or the number of elements if there are
/// fewer; a batched tensor's rows are its first dimension. Equal elements come in the order of their index,
/// NaN last. `names` are the names of the classes by index; one without a name is written without it.
pub fn classify(
    tensor: &Tensor,
    classes: usize,
    batched: bool,
    names: Option<&[String]>,
) -> Result<Tensor, ClassifyError> {
    if tensor.len() > ELEMENTS_MAX {
        return Err(ClassifyError::TooLarge { actual: tensor.len() });
    }
    let ranking = Ranking { tensor, classes, batched, names: names.unwrap_or_default() };
    match tensor.datatype() {
        DataType::Uint8 => ranking.of(u8::cmp, write_integer),
        DataType::Uint16 => ranking.of(u16::cmp, write_integer),
        DataType::Uint32 => ranking.of(u32::cmp, write_integer),
        DataType::Uint64 => ranking.of(u64::cmp, write_integer),
        DataType::Int8 => ranking.of(i8::cmp, write_integer),
        DataType::Int16 => ranking.of(i16::cmp, write_integer),
        DataType::Int32 => ranking.of(i32::cmp, write_integer),
        DataType::Int64 => ranking.of(i64::cmp, write_integer),
        DataType::Fp32 => ranking.of(
            |a: &f32, b| by_value(f64::from(*a), f64::from(*b)),
            |out, value: f32| write_decimals(out, value.into()),
        ),
        DataType::Fp64 => ranking.of(|a: &f64, b| by_value(*a, *b), write_decimals),
        other @ (DataType::Bool | DataType::Fp16 | DataType::Bf16 | DataType::Bytes) => {
            Err(ClassifyError::DataType(other))
        }
    }
}

struct Ranking<'a> {
    tensor: &'a Tensor,
    classes: usize,
    batched: bool,
    names: &'a [String],
}

impl Ranking<'_> {
    fn of<T: Element>(
        &self,
        compare: impl Fn(&T, &T) -> Ordering,
        write: impl Fn(&mut Vec<u8>, T),
    ) -> Result<Tensor, ClassifyError> {
        let values = self.tensor.view::<T>().expect("the element type was chosen by the datatype");
        let batch = self.tensor.shape().first().copied().filter(|_| self.batched);
        let rows = batch.map_or(1, |rows| usize::try_from(rows).unwrap_or(0));
        let per_row = values.len().checked_div(rows).unwrap_or(0);
        let kept = self.classes.min(per_row);
        let too_many = ClassifyError::TooMany { rows, classes: kept };
        if rows.min(values.len()) * kept > CLASSES_MAX {
            return Err(too_many);
        }
        let mut strings = Strings::with_capacity(rows.min(values.len()) * kept, 0);
        if kept > 0 {
            for row in values.chunks_exact(per_row) {
                for index in best(row, kept, &compare) {
                    self.push(&mut strings, index, |out| write(out, row[index]));
                    if strings.byte_len() > TEXT_BYTES_MAX {
                        return Err(too_many);
                    }
                }
            }
        }
        let kept = i64::try_from(kept).expect("a tensor has fewer elements than i64::MAX");
        let dims: &[i64] = if let Some(rows) = batch { &[rows, kept] } else { &[kept] };
        let shape = Shape::new(dims).expect("counts are not negative");
        Ok(Tensor::new(shape, Data::Bytes(strings)).expect("each row gave as many classes as kept"))
    }

    fn push(&self, strings: &mut Strings, index: usize, value: impl FnOnce(&mut Vec<u8>)) {
        strings
            .push_with(|out| {
                value(out);
                out.push(b':');
                write_integer(out, index);
                if let Some(name) = self.names.get(index).filter(|name| !name.is_empty()) {
                    out.push(b':');
                    out.extend_from_slice(name.as_bytes());
                }
                Ok::<_, std::convert::Infallible>(())
            })
            .expect("nothing there can fail");
    }
}

/// The indices of the `kept` highest values, highest first; `kept` is 1 to the number of values.
fn best<T>(values: &[T], kept: usize, compare: impl Fn(&T, &T) -> Ordering) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..values.len()).collect();
    let order = |a: &usize, b: &usize| compare(&values[*b], &values[*a]).then_with(|| a.cmp(b));
    if kept < indices.len() {
        indices.select_nth_unstable_by(kept, order);
        indices.truncate(kept);
    }
    indices.sort_unstable_by(order);
    indices
}

/// By value, the zeros equal, NaN below everything.
fn by_value(a: f64, b: f64) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| b.is_nan().cmp(&a.is_nan()))
}

/// As C's `%f`.
fn write_decimals(out: &mut Vec<u8>, value: f64) {
    let written = if value.is_nan() {
        out.extend_from_slice(b"nan");
        Ok(())
    } else {
        write!(out, "{value:.6}")
    };
    written.expect("writing to memory does not fail");
}
