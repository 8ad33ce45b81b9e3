//! How large a run's tensors become where the values of a request choose it, worked out before the run.
//!
//! A few bytes can ask for gigabytes: `ConstantOfShape` of `[2147483648]`. Where the shape of such an output follows
//! from the inputs by simple arithmetic, a version has a short program of that arithmetic, and each request is put
//! through it before an engine sees it. Always true:
//! - What the program cannot work out (an overflow, too many numbers) refuses nothing: the engine bounds such runs.
//! - A version without such outputs pays one look at an empty list.
//!
//! Not here: reading the program out of a model (`engine::onnx`), the bound on what an engine allocates (`engine`).

use smallvec::{SmallVec, smallvec};

use crate::tensor::{DataType, Shape, Tensor};

use super::{Input, Signature};

/// The outputs of a version whose size the values of a request choose.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Growth {
    /// The inputs that steps mean, by name; by their place in the signature once they are fitted.
    inputs: Vec<String>,
    steps: Vec<Step>,
    outputs: Vec<Grown>,
    bytes_max: u64,
}

/// An output whose size the values of a request choose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grown {
    /// The operator that gives it.
    pub operator: String,
    /// Its name in the model.
    pub output: String,
    /// The step that gives its shape.
    pub shape: usize,
    /// Bytes of an element; 1 where its type is not known.
    pub element_bytes: u64,
    /// The step that gives the bytes of an element's text beside it.
    pub text: Option<usize>,
}

/// One step of the arithmetic; a number in it is an earlier step.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Always these.
    Constant(Numbers),
    /// The elements of the input at this index.
    Elements(usize),
    /// The dimensions of the input at this index.
    Shape(usize),
    /// Bytes that the text of an element of the input at this index takes beside the element, on average.
    Text(usize),
    /// Whole numbers, towards zero.
    Whole(usize),
    /// Floating point.
    Real(usize),
    /// One after the other.
    Join(Vec<usize>),
    /// The elements of the first at the indexes of the second; negative ones count from the end.
    Pick(usize, usize),
    /// The elements of the first from the second on and before the third, by steps of the fourth.
    Slice([usize; 4]),
    /// The one element.
    Sole(usize),
    /// The product of all elements.
    Product(usize),
    /// Element by element; a single one serves for all.
    Pair(Operation, usize, usize),
    /// The elements of a `Range`: how many there are between the first and the second by steps of the third.
    Count([usize; 3]),
    /// Two shapes, the one stretched to the other.
    Broadcast(usize, usize),
    /// A shape, and the elements to put before and behind each dimension.
    Padded(usize, usize),
    /// A shape, and the factor of each dimension.
    Scaled(usize, usize),
}

/// An operation on two numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Their sum.
    Add,
    /// Their difference.
    Subtract,
    /// Their product.
    Multiply,
    /// Their quotient; of whole numbers, towards zero.
    Divide,
    /// The larger one.
    Larger,
    /// The smaller one.
    Smaller,
}

/// A vector of numbers.
#[derive(Debug, Clone, PartialEq)]
pub enum Numbers {
    /// Whole ones.
    Whole(SmallVec<[i64; 8]>),
    /// Floating point.
    Real(SmallVec<[f64; 8]>),
}

/// A request would make a run allocate too much; the caller's mistake.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "with these values `{operator}` makes `{output}` of shape {shape}, {} bytes; {bytes_max} are the most that one run \
     may take: send smaller values, or raise engine.run_memory",
    Bytes(*bytes)
)]
pub struct GrowthError {
    /// The operator.
    pub operator: String,
    /// What it gives.
    pub output: String,
    /// The shape that it would have, in the protocol's form.
    pub shape: String,
    /// The bytes that it would take; `u64::MAX` stands for that and more.
    pub bytes: u64,
    /// The bytes that one run may take.
    pub bytes_max: u64,
}

/// A count of bytes for people.
struct Bytes(u64);

impl std::fmt::Display for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0 == u64::MAX {
            return f.write_str("more than 2^64");
        }
        write!(f, "{}", self.0)
    }
}

/// The most numbers that a step works with; shapes are shorter.
const NUMBERS_MAX: usize = 64;

impl Growth {
    /// Nothing to work out.
    pub const NONE: Self =
        Self { inputs: Vec::new(), steps: Vec::new(), outputs: Vec::new(), bytes_max: 0 };

    /// A program whose steps mean these inputs by their index; each step uses earlier ones only.
    pub fn new(inputs: Vec<String>, steps: Vec<Step>, outputs: Vec<Grown>) -> Self {
        Self { inputs, steps, outputs, bytes_max: u64::MAX }
    }

    /// True if no output's size can be worked out.
    pub fn is_empty(&self) -> bool {
        self.outputs.is_empty()
    }

    /// The same for inputs in the signature's order, with the most bytes that an output may take.
    #[must_use]
    pub fn fitted(mut self, signature: &Signature, bytes_max: u64) -> Self {
        let place = |name: &String| signature.inputs.iter().position(|spec| spec.name == *name);
        let places: Vec<_> = self.inputs.iter().map(place).collect();
        for step in &mut self.steps {
            if let Step::Elements(input) | Step::Shape(input) | Step::Text(input) = step {
                // Of an input that may be left out nothing is known: the engine bounds such runs.
                *input = places.get(*input).copied().flatten().unwrap_or(usize::MAX);
            }
        }
        Self { bytes_max, ..self }
    }

    /// Works out how large outputs become with a request's inputs, in the signature's order.
    ///
    /// # Errors
    /// If one becomes larger than a run may take.
    #[inline]
    pub fn check(&self, inputs: &[Input]) -> Result<(), GrowthError> {
        if self.outputs.is_empty() {
            return Ok(());
        }
        self.work_out(inputs)
    }

    #[cold]
    fn work_out(&self, inputs: &[Input]) -> Result<(), GrowthError> {
        let mut known: Vec<Option<Numbers>> = Vec::with_capacity(self.steps.len());
        for step in &self.steps {
            let numbers = step.numbers(&known, inputs);
            known.push(numbers.filter(|numbers| numbers.len() <= NUMBERS_MAX));
        }
        for grown in &self.outputs {
            let Some(Numbers::Whole(dims)) = &known[grown.shape] else { continue };
            // What is negative the engine refuses.
            let Some(shape) = Shape::new(dims) else { continue };
            let product = |bytes: u64, dim: &i64| bytes.saturating_mul(dim.unsigned_abs());
            let text = match grown.text.and_then(|text| known[text].as_ref()) {
                Some(Numbers::Whole(bytes)) => bytes.iter().fold(1, product),
                _ => 0,
            };
            let element_bytes = grown.element_bytes.saturating_add(text);
            let bytes =
                if shape.contains(&0) { 0 } else { dims.iter().fold(element_bytes, product) };
            if bytes > self.bytes_max {
                return Err(GrowthError {
                    operator: grown.operator.clone(),
                    output: grown.output.clone(),
                    shape: shape.to_string(),
                    bytes,
                    bytes_max: self.bytes_max,
                });
            }
        }
        Ok(())
    }
}

impl Step {
    /// The steps that it uses.
    pub fn uses(&self) -> SmallVec<[usize; 4]> {
        match self {
            Self::Constant(_) | Self::Elements(_) | Self::Shape(_) | Self::Text(_) => smallvec![],
            Self::Whole(from) | Self::Real(from) | Self::Sole(from) | Self::Product(from) => {
                smallvec![*from]
            }
            Self::Join(parts) => parts.as_slice().into(),
            Self::Pick(one, other)
            | Self::Pair(_, one, other)
            | Self::Broadcast(one, other)
            | Self::Padded(one, other)
            | Self::Scaled(one, other) => smallvec![*one, *other],
            Self::Slice(all) => all.as_slice().into(),
            Self::Count(all) => all.as_slice().into(),
        }
    }

    /// The same with other numbers for the steps that it uses.
    #[must_use]
    pub fn moved(mut self, places: &[usize]) -> Self {
        let mut all: SmallVec<[&mut usize; 4]> = match &mut self {
            Self::Constant(_) | Self::Elements(_) | Self::Shape(_) | Self::Text(_) => smallvec![],
            Self::Whole(from) | Self::Real(from) | Self::Sole(from) | Self::Product(from) => {
                smallvec![from]
            }
            Self::Join(parts) => parts.iter_mut().collect(),
            Self::Pick(one, other)
            | Self::Pair(_, one, other)
            | Self::Broadcast(one, other)
            | Self::Padded(one, other)
            | Self::Scaled(one, other) => smallvec![one, other],
            Self::Slice(all) => all.iter_mut().collect(),
            Self::Count(all) => all.iter_mut().collect(),
        };
        all.iter_mut().for_each(|used| **used = places[**used]);
        drop(all);
        self
    }

    /// What it gives; `None` if that cannot be worked out.
    fn numbers(&self, known: &[Option<Numbers>], inputs: &[Input]) -> Option<Numbers> {
        let get = |step: &usize| known.get(*step)?.as_ref();
        let whole = |step: &usize| get(step)?.whole();
        match self {
            Self::Constant(numbers) => Some(numbers.clone()),
            Self::Elements(input) => Numbers::of(&inputs.get(*input)?.tensor),
            Self::Shape(input) => {
                Some(Numbers::Whole(inputs.get(*input)?.tensor.shape().iter().copied().collect()))
            }
            Self::Text(input) => text(&inputs.get(*input)?.tensor),
            Self::Whole(from) => get(from)?.to_whole(),
            Self::Real(from) => Some(Numbers::Real(get(from)?.to_real())),
            Self::Join(parts) => join(parts.iter().map(get)),
            Self::Pick(from, at) => get(from)?.pick(whole(at)?),
            Self::Slice([from, start, end, step]) => {
                get(from)?.slice(sole(whole(start)?)?, sole(whole(end)?)?, sole(whole(step)?)?)
            }
            Self::Sole(from) => get(from).filter(|numbers| numbers.len() == 1).cloned(),
            Self::Product(from) => {
                let product = whole(from)?.iter().try_fold(1i64, |all, one| all.checked_mul(*one));
                Some(Numbers::Whole(smallvec![product?]))
            }
            Self::Pair(operation, one, other) => operation.of(get(one)?, get(other)?),
            Self::Count([start, limit, delta]) => count(get(start)?, get(limit)?, get(delta)?),
            Self::Broadcast(one, other) => broadcast(whole(one)?, whole(other)?),
            Self::Padded(shape, pads) => padded(whole(shape)?, whole(pads)?),
            Self::Scaled(shape, scales) => scaled(whole(shape)?, &get(scales)?.to_real()),
        }
    }
}

impl Numbers {
    /// Whole numbers.
    pub fn whole_of(numbers: impl IntoIterator<Item = i64>) -> Self {
        Self::Whole(numbers.into_iter().collect())
    }

    /// Floating-point numbers.
    pub fn real_of(numbers: impl IntoIterator<Item = f64>) -> Self {
        Self::Real(numbers.into_iter().collect())
    }

    /// How many there are.
    fn len(&self) -> usize {
        match self {
            Self::Whole(all) => all.len(),
            Self::Real(all) => all.len(),
        }
    }

    /// The elements of a tensor of at most one dimension.
    fn of(tensor: &Tensor) -> Option<Self> {
        if tensor.shape().len() > 1 || tensor.len() > NUMBERS_MAX {
            return None;
        }
        macro_rules! whole {
            ($rust:ty) => {
                Self::whole_of(tensor.view::<$rust>().ok()?.iter().map(|one| i64::from(*one)))
            };
        }
        Some(match tensor.datatype() {
            DataType::Int64 => whole!(i64),
            DataType::Int32 => whole!(i32),
            DataType::Int16 => whole!(i16),
            DataType::Int8 => whole!(i8),
            DataType::Uint32 => whole!(u32),
            DataType::Uint16 => whole!(u16),
            DataType::Uint8 => whole!(u8),
            DataType::Fp32 => {
                Self::real_of(tensor.view::<f32>().ok()?.iter().map(|one| f64::from(*one)))
            }
            DataType::Fp64 => Self::real_of(tensor.view::<f64>().ok()?.iter().copied()),
            _ => return None,
        })
    }

    fn whole(&self) -> Option<&[i64]> {
        match self {
            Self::Whole(all) => Some(all),
            Self::Real(_) => None,
        }
    }

    fn to_whole(&self) -> Option<Self> {
        match self {
            Self::Whole(_) => Some(self.clone()),
            Self::Real(all) => {
                all.iter().map(|one| whole_number(*one)).collect::<Option<_>>().map(Self::Whole)
            }
        }
    }

    fn to_real(&self) -> SmallVec<[f64; 8]> {
        match self {
            Self::Whole(all) => all.iter().map(|one| real_number(*one)).collect(),
            Self::Real(all) => all.clone(),
        }
    }

    fn pick(&self, at: &[i64]) -> Option<Self> {
        fn picked<T: Copy, C: FromIterator<T>>(all: &[T], at: &[i64]) -> Option<C> {
            let place = |index: &i64| {
                let length = i64::try_from(all.len()).ok()?;
                let index = if *index < 0 { index.checked_add(length)? } else { *index };
                all.get(usize::try_from(index).ok()?).copied()
            };
            at.iter().map(place).collect()
        }
        match self {
            Self::Whole(all) => picked(all, at).map(Self::Whole),
            Self::Real(all) => picked(all, at).map(Self::Real),
        }
    }

    fn slice(&self, start: i64, end: i64, step: i64) -> Option<Self> {
        if step != 1 {
            return None;
        }
        let length = i64::try_from(self.len()).ok()?;
        let place =
            |at: i64| (if at < 0 { at.saturating_add(length) } else { at }).clamp(0, length);
        self.pick(&(place(start)..place(end)).collect::<SmallVec<[i64; 8]>>())
    }
}

/// What the strings of a tensor take on average beyond those that lie within an element.
fn text(tensor: &Tensor) -> Option<Numbers> {
    const WITHIN: usize = 15;
    let strings = tensor.strings()?;
    let bytes = strings.byte_len().checked_div(strings.len())?.saturating_sub(WITHIN);
    Some(Numbers::Whole(smallvec![i64::try_from(bytes).ok()?]))
}

/// The whole part; `None` if that is no integer of 64 bits.
fn whole_number(number: f64) -> Option<i64> {
    const END: f64 = 9_223_372_036_854_775_808.0;
    #[expect(clippy::cast_possible_truncation, reason = "the range is checked")]
    (number > -END && number < END).then_some(number as i64)
}

#[expect(clippy::cast_precision_loss, reason = "a size of 2^53 and more is too large either way")]
fn real_number(number: i64) -> f64 {
    number as f64
}

fn sole(numbers: &[i64]) -> Option<i64> {
    let [one] = *numbers else { return None };
    Some(one)
}

fn join<'n>(parts: impl Iterator<Item = Option<&'n Numbers>>) -> Option<Numbers> {
    let mut joined: Option<Numbers> = None;
    for part in parts {
        match (&mut joined, part?) {
            (None, part) => joined = Some(part.clone()),
            (Some(Numbers::Whole(all)), Numbers::Whole(part)) => all.extend_from_slice(part),
            (Some(Numbers::Real(all)), Numbers::Real(part)) => all.extend_from_slice(part),
            _ => return None,
        }
    }
    joined
}

impl Operation {
    fn of(self, one: &Numbers, other: &Numbers) -> Option<Numbers> {
        match (one, other) {
            (Numbers::Whole(one), Numbers::Whole(other)) => {
                paired(one, other, |one, other| self.whole(one, other)).map(Numbers::Whole)
            }
            (Numbers::Real(one), Numbers::Real(other)) => {
                paired(one, other, |one, other| Some(self.real(one, other))).map(Numbers::Real)
            }
            _ => None,
        }
    }

    fn whole(self, one: i64, other: i64) -> Option<i64> {
        match self {
            Self::Add => one.checked_add(other),
            Self::Subtract => one.checked_sub(other),
            Self::Multiply => one.checked_mul(other),
            Self::Divide => one.checked_div(other),
            Self::Larger => Some(one.max(other)),
            Self::Smaller => Some(one.min(other)),
        }
    }

    fn real(self, one: f64, other: f64) -> f64 {
        match self {
            Self::Add => one + other,
            Self::Subtract => one - other,
            Self::Multiply => one * other,
            Self::Divide => one / other,
            Self::Larger => one.max(other),
            Self::Smaller => one.min(other),
        }
    }
}

fn paired<T: Copy, C: FromIterator<T>>(
    one: &[T],
    other: &[T],
    operation: impl Fn(T, T) -> Option<T>,
) -> Option<C> {
    match (one, other) {
        ([one], _) => other.iter().map(|other| operation(*one, *other)).collect(),
        (_, [other]) => one.iter().map(|one| operation(*one, *other)).collect(),
        _ if one.len() == other.len() => {
            one.iter().zip(other).map(|(one, other)| operation(*one, *other)).collect()
        }
        _ => None,
    }
}

/// Source: ONNX, `Range`: max(ceil((limit - start) / delta), 0).
fn count(start: &Numbers, limit: &Numbers, delta: &Numbers) -> Option<Numbers> {
    let count = if let (Some(start), Some(limit), Some(delta)) =
        (start.whole(), limit.whole(), delta.whole())
    {
        let span = i128::from(sole(limit)?) - i128::from(sole(start)?);
        let delta = i128::from(sole(delta)?);
        if delta == 0 {
            return None;
        }
        let beyond = span % delta != 0 && (span < 0) == (delta < 0);
        i64::try_from(span / delta + i128::from(beyond)).unwrap_or(i64::MAX)
    } else {
        let (start, limit, delta) = (start.to_real(), limit.to_real(), delta.to_real());
        let ([start], [limit], [delta]) = (&start[..], &limit[..], &delta[..]) else { return None };
        whole_number(((limit - start) / delta).ceil())?
    };
    Some(Numbers::Whole(smallvec![count.max(0)]))
}

fn broadcast(one: &[i64], other: &[i64]) -> Option<Numbers> {
    let (long, short) = if one.len() < other.len() { (other, one) } else { (one, other) };
    let mut dims: SmallVec<[i64; 8]> = long.into();
    let from = long.len() - short.len();
    for (dim, other) in dims[from..].iter_mut().zip(short) {
        *dim = match (*dim, *other) {
            (1, other) => other,
            (dim, 1) => dim,
            (dim, other) if dim == other => dim,
            _ => return None,
        };
    }
    Some(Numbers::Whole(dims))
}

fn padded(shape: &[i64], pads: &[i64]) -> Option<Numbers> {
    let (before, behind) = pads.split_at_checked(shape.len())?;
    if behind.len() != shape.len() {
        return None;
    }
    let dims = shape.iter().zip(before).zip(behind);
    let dims = dims.map(|((dim, before), behind)| dim.checked_add(*before)?.checked_add(*behind));
    dims.collect::<Option<_>>().map(Numbers::Whole)
}

fn scaled(shape: &[i64], scales: &[f64]) -> Option<Numbers> {
    if shape.len() != scales.len() {
        return None;
    }
    let dims = shape.iter().zip(scales);
    let dims = dims.map(|(dim, scale)| whole_number((real_number(*dim) * scale).floor()));
    dims.collect::<Option<_>>().map(Numbers::Whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::TensorSpec, tensor::Data};

    fn whole(numbers: &[i64]) -> Numbers {
        Numbers::whole_of(numbers.iter().copied())
    }

    fn real(numbers: &[f64]) -> Numbers {
        Numbers::real_of(numbers.iter().copied())
    }

    /// What a step gives of these numbers.
    fn worked_out(step: &Step, operands: &[Numbers]) -> Option<Numbers> {
        let known: Vec<_> = operands.iter().cloned().map(Some).collect();
        step.numbers(&known, &[])
    }

    #[test]
    fn each_step_works_out_what_the_operator_does() {
        use Operation::{Add, Divide, Larger, Multiply, Smaller, Subtract};
        let pair = |operation| Step::Pair(operation, 0, 1);
        let (slice, count) = (Step::Slice([0, 1, 2, 3]), Step::Count([0, 1, 2]));
        let [w, r] = [
            |numbers: &[i64]| whole(numbers),
            |numbers: &[i64]| {
                real(&numbers.iter().map(|one| real_number(*one)).collect::<Vec<_>>())
            },
        ];
        let table: Vec<(Step, Vec<Numbers>, Option<Numbers>)> = vec![
            (Step::Join(vec![0, 1]), vec![w(&[1, 2]), w(&[3])], Some(w(&[1, 2, 3]))),
            (Step::Join(vec![0, 1]), vec![w(&[1]), r(&[3])], None),
            (Step::Pick(0, 1), vec![w(&[5, 6, 7]), w(&[-1, 0])], Some(w(&[7, 5]))),
            (Step::Pick(0, 1), vec![w(&[5]), w(&[1])], None),
            (
                slice.clone(),
                vec![w(&[4, 5, 6]), w(&[-2]), w(&[i64::MAX]), w(&[1])],
                Some(w(&[5, 6])),
            ),
            (slice, vec![w(&[4, 5]), w(&[0]), w(&[2]), w(&[-1])], None),
            (Step::Sole(0), vec![w(&[4])], Some(w(&[4]))),
            (Step::Sole(0), vec![w(&[4, 5])], None),
            (Step::Product(0), vec![w(&[4, 5])], Some(w(&[20]))),
            (Step::Product(0), vec![w(&[i64::MAX, 2])], None),
            (pair(Add), vec![w(&[1, 2]), w(&[10])], Some(w(&[11, 12]))),
            (pair(Add), vec![w(&[i64::MAX]), w(&[1])], None),
            (pair(Add), vec![w(&[1, 2]), w(&[1, 2, 3])], None),
            (pair(Subtract), vec![w(&[5]), w(&[1, 2])], Some(w(&[4, 3]))),
            (pair(Multiply), vec![r(&[3]), r(&[2])], Some(r(&[6]))),
            (pair(Multiply), vec![w(&[1 << 40]), w(&[1 << 40])], None),
            (pair(Divide), vec![w(&[-7]), w(&[2])], Some(w(&[-3]))),
            (pair(Divide), vec![w(&[1]), w(&[0])], None),
            (pair(Divide), vec![w(&[i64::MIN]), w(&[-1])], None),
            (pair(Larger), vec![w(&[1, 9]), w(&[4])], Some(w(&[4, 9]))),
            (pair(Smaller), vec![w(&[1, 9]), w(&[4])], Some(w(&[1, 4]))),
            (Step::Whole(0), vec![real(&[2.9, -2.9])], Some(w(&[2, -2]))),
            (Step::Whole(0), vec![real(&[1e30])], None),
            (Step::Whole(0), vec![real(&[f64::NAN])], None),
            (Step::Real(0), vec![w(&[2])], Some(r(&[2]))),
            (count.clone(), vec![w(&[0]), w(&[7]), w(&[3])], Some(w(&[3]))),
            (count.clone(), vec![w(&[7]), w(&[0]), w(&[-7])], Some(w(&[1]))),
            (count.clone(), vec![w(&[0]), w(&[-7]), w(&[3])], Some(w(&[0]))),
            (count.clone(), vec![w(&[0]), w(&[7]), w(&[0])], None),
            (count.clone(), vec![w(&[i64::MIN]), w(&[i64::MAX]), w(&[1])], Some(w(&[i64::MAX]))),
            (count, vec![real(&[0.0]), real(&[1.0]), real(&[0.3])], Some(w(&[4]))),
            (Step::Broadcast(0, 1), vec![w(&[3, 1]), w(&[2, 1, 7])], Some(w(&[2, 3, 7]))),
            (Step::Broadcast(0, 1), vec![w(&[3]), w(&[2])], None),
            (Step::Padded(0, 1), vec![w(&[3, 4]), w(&[1, 0, 2, -1])], Some(w(&[6, 3]))),
            (Step::Padded(0, 1), vec![w(&[3]), w(&[1])], None),
            (Step::Padded(0, 1), vec![w(&[3]), w(&[1, i64::MAX])], None),
            (Step::Scaled(0, 1), vec![w(&[3, 2]), real(&[1.5, 4.0])], Some(w(&[4, 8]))),
            (Step::Scaled(0, 1), vec![w(&[3]), real(&[f64::INFINITY])], None),
        ];
        for (step, operands, expected) in table {
            assert_eq!(worked_out(&step, &operands), expected, "{step:?} of {operands:?}");
        }
    }

    fn growth(bytes_max: u64) -> Growth {
        let spec = |name: &str| TensorSpec {
            name: name.to_owned(),
            datatype: DataType::Int64,
            dims: Some(vec![-1]),
            view: None,
        };
        let signature = Signature {
            inputs: vec![spec("other"), spec("n")],
            outputs: vec![],
            ..Signature::default()
        };
        let grown = Grown {
            operator: "ConstantOfShape".to_owned(),
            output: "y".to_owned(),
            shape: 0,
            element_bytes: 4,
            text: None,
        };
        Growth::new(vec!["n".to_owned()], vec![Step::Elements(0)], vec![grown])
            .fitted(&signature, bytes_max)
    }

    fn verdict(growth: &Growth, dims: &[i64]) -> Result<(), String> {
        let input = |name: &str, numbers: &[i64]| Input {
            name: name.to_owned(),
            tensor: Tensor::new(
                Shape::new(&[i64::try_from(numbers.len()).unwrap()]).unwrap(),
                Data::Int64(numbers.to_vec()),
            )
            .unwrap(),
        };
        let inputs = [input("other", &[1 << 40]), input("n", dims)];
        growth.check(&inputs).map_err(|error| error.to_string())
    }

    #[test]
    fn an_output_beyond_the_limit_is_refused_with_its_size() {
        let growth = growth(1 << 30);
        assert_eq!(verdict(&growth, &[1 << 28]), Ok(()));
        let reason = "with these values `ConstantOfShape` makes `y` of shape [2147483648], 8589934592 bytes; 1073741824 are \
                      the most that one run may take: send smaller values, or raise engine.run_memory";
        assert_eq!(verdict(&growth, &[1 << 31]), Err(reason.to_owned()));
        let reason = verdict(&growth, &[1 << 40, 1 << 40]).unwrap_err();
        assert!(reason.contains("more than 2^64 bytes"), "{reason}");
        for harmless in [&[][..], &[0, i64::MAX], &[-1, 1 << 40], &[2; 65]] {
            assert_eq!(verdict(&growth, harmless), Ok(()), "{harmless:?}");
        }
        assert_eq!(verdict(&Growth::NONE, &[1 << 40]), Ok(()));
    }
}
