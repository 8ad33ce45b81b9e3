//! Guards: inputs that requests must not bring to a version, because its engine would end or freeze the process on
//! them.
//!
//! Engines end the process on inputs that are legal: most often on a dimension of 0, rarely on another size, or on
//! integers that are divided. What is known of a version (from its operators, and from the process that proved it) is a
//! value here, and is compared with a request's inputs before the engine sees them. Always true:
//! - An input with a dimension of 0 passes only where exactly these dimensions were 0 in a run that went well, or where
//!   nothing in the model is known to mind.
//! - Engines count with the dimensions beside a 0: these are bounded.
//! - Where there is nothing to guard, the comparison is one look at each dimension.
//!
//! Not here: finding out (`engine::onnx`, `lifecycle`), the answer to the client (`edge`).

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::tensor::{DataType, Shape};

use super::{Input, Signature};

/// The inputs that a version must not be given.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Guards {
    empty: Empty,
    sizes: Vec<SizeGuard>,
    quotients: Vec<Quotient>,
}

/// The inputs with a dimension of 0 that a version may be given.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Empty {
    /// All of them.
    #[default]
    Any,
    /// Those in which exactly one of these sets of dimensions is 0.
    Only {
        /// The sets with which a run went well.
        well: Vec<Vec<Place>>,
        /// The sets with which a process ended; for people.
        fatal: Vec<Vec<Place>>,
    },
    /// None, for this reason.
    Never(String),
}

/// A dimension of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// The index of the input in the signature.
    pub input: u32,
    /// The index of the dimension.
    pub axis: u32,
    /// The number of dimensions; the same axis of another rank is another place.
    pub rank: u32,
}

/// Sizes that ended a process: a request is refused if all of these dimensions have such a size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SizeGuard {
    /// The dimensions, each with a size at which it is not meant: one that was seen to run well.
    pub places: Vec<(Place, i64)>,
    /// The size that ended it.
    pub size: i64,
    /// True if larger sizes are meant, too: the small ones are special, this one stood for the rest.
    pub and_above: bool,
}

/// A division of integers that ends the process where the smallest is divided by -1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quotient {
    /// The input that the dividends come from, if it is one.
    pub dividend: Option<Operand>,
    /// The input that the divisors come from, if it is one.
    pub divisor: Option<Operand>,
}

/// An input whose elements are an operand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operand {
    /// Its name.
    pub input: String,
    /// True if its default may hold the number at fault.
    pub by_default: bool,
}

/// Why inputs are kept from a version; the caller can send others.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GuardError {
    /// A dimension is 0, and the version cannot be given that.
    #[error("input `{name}` is empty (shape {shape}), which this version cannot run: {reason}")]
    Empty {
        /// The input.
        name: String,
        /// Its shape.
        shape: Shape,
        /// Why, and what would be right.
        reason: String,
    },
    /// A size ends the process.
    #[error(
        "input `{name}` with the shape {shape} is not run: such sizes ended the process that proved this version; {advice}"
    )]
    Size {
        /// The input.
        name: String,
        /// Its shape.
        shape: Shape,
        /// The sizes to send instead.
        advice: String,
    },
    /// The smallest integer might be divided by -1.
    #[error("the model would divide the smallest integer by -1, which ends the process: {0}")]
    Quotient(String),
}

/// The largest product of an empty tensor's other dimensions: engines multiply them in 64 bits with others.
const BESIDE_EMPTY_MAX: i64 = i32::MAX as i64;

/// The advice to a client about an empty input.
const ADVICE: &str = "send at least one element in every dimension";

impl Guards {
    /// Nothing to guard.
    pub const NONE: Self = Self { empty: Empty::Any, sizes: Vec::new(), quotients: Vec::new() };

    /// Guards against these.
    pub fn new(empty: Empty, sizes: Vec<SizeGuard>) -> Self {
        Self { empty, sizes, quotients: Vec::new() }
    }

    /// The same, and no empty inputs at all, for this reason.
    #[must_use]
    pub fn never_empty(self, reason: String) -> Self {
        Self { empty: Empty::Never(reason), ..self }
    }

    /// The same, and against these divisions.
    #[must_use]
    pub fn with_quotients(self, quotients: Vec<Quotient>) -> Self {
        Self { quotients, ..self }
    }

    /// Compares a request's inputs, in the signature's order, with what must not be.
    ///
    /// # Errors
    /// If the engine must not see them.
    #[inline]
    pub fn check(&self, inputs: &[Input]) -> Result<(), GuardError> {
        let is_empty = |input: &Input| input.tensor.shape().contains(&0);
        let is_plain = self.sizes.is_empty() && self.quotients.is_empty();
        if is_plain && !inputs.iter().any(is_empty) {
            return Ok(());
        }
        self.look_closer(inputs)
    }

    #[cold]
    fn look_closer(&self, inputs: &[Input]) -> Result<(), GuardError> {
        let empty = Place::empty(inputs);
        for place in &empty {
            let input = &inputs[place.input as usize];
            let mut sizes = input.tensor.shape().iter().filter(|size| **size > 0);
            let counted = sizes.try_fold(1i64, |count, size| count.checked_mul(*size));
            if counted.is_none_or(|count| count > BESIDE_EMPTY_MAX) {
                let reason = format!(
                    "the dimensions beside one of 0 must not make more than {BESIDE_EMPTY_MAX} elements"
                );
                let (name, shape) = (input.name.clone(), input.tensor.shape().clone());
                return Err(GuardError::Empty { name, shape, reason });
            }
        }
        if let Some(first) = empty.first() {
            let reason = match &self.empty {
                Empty::Any => None,
                Empty::Only { well, .. } if well.contains(&empty) => None,
                Empty::Only { fatal, .. } if fatal.contains(&empty) => {
                    Some(format!("such inputs ended the process that proved it; {ADVICE}"))
                }
                Empty::Only { .. } => Some(format!("it was not seen to run well so; {ADVICE}")),
                Empty::Never(reason) => Some(format!("{reason}; {ADVICE}")),
            };
            if let Some(reason) = reason {
                let input = &inputs[first.input as usize];
                let (name, shape) = (input.name.clone(), input.tensor.shape().clone());
                return Err(GuardError::Empty { name, shape, reason });
            }
        }
        if let Some(found) = self.quotients.iter().find(|quotient| quotient.overflows(inputs)) {
            return Err(GuardError::Quotient(found.advice()));
        }
        match self.sizes.iter().find(|guard| guard.refuses(inputs)) {
            None => Ok(()),
            Some(guard) => {
                let input = &inputs[guard.places[0].0.input as usize];
                let (name, shape) = (input.name.clone(), input.tensor.shape().clone());
                Err(GuardError::Size {
                    name,
                    shape,
                    advice: guard.advice(|index| &inputs[index].name),
                })
            }
        }
    }

    /// Notes for people, one line for each guard.
    pub fn notes(&self, signature: &Signature) -> Vec<String> {
        let mut notes = Vec::new();
        let name =
            |index: usize| signature.inputs.get(index).map_or("?", |spec| spec.name.as_str());
        match &self.empty {
            Empty::Never(reason) => {
                notes.push(format!("requests with an empty input are refused: {reason}"));
            }
            Empty::Only { fatal, .. } => notes.extend(fatal.iter().map(|places| {
                let places = listed(places.iter(), name);
                format!(
                    "requests with a size of 0 in dimension {places} are refused: it ended the process that proved this \
                     version"
                )
            })),
            Empty::Any => {}
        }
        for guard in &self.sizes {
            let (size, more) = (guard.size, if guard.and_above { " or more" } else { "" });
            let places = listed(guard.places.iter().map(|(place, _)| place), name);
            notes.push(format!(
                "requests with a size of {size}{more} in dimension {places} are refused: it ended the process that proved this \
                 version; mend the model, or declare the dimension's size"
            ));
        }
        let divisions = self.quotients.iter().map(|quotient| {
            format!(
                "requests with the smallest integer to be divided by -1 are refused: {}",
                quotient.advice()
            )
        });
        notes.extend(divisions);
        notes
    }
}

/// Dimensions for people, each with the name of its input.
fn listed<'p, 'n>(
    places: impl Iterator<Item = &'p Place>,
    name: impl Fn(usize) -> &'n str,
) -> String {
    let place = |place: &Place| format!("{} of `{}`", place.axis, name(place.input as usize));
    places.map(place).collect::<Vec<_>>().join(", ")
}

impl Place {
    /// The dimensions of these inputs that are 0.
    pub fn empty(inputs: &[Input]) -> Vec<Self> {
        let mut places = Vec::new();
        for (input, given) in inputs.iter().enumerate() {
            let shape = given.tensor.shape();
            for (axis, _) in shape.iter().enumerate().filter(|(_, size)| **size == 0) {
                places.push(Self::of(input, axis, shape.len()));
            }
        }
        places
    }

    /// A dimension of the input at this index.
    pub fn of(input: usize, axis: usize, rank: usize) -> Self {
        let small = |index: usize| u32::try_from(index).unwrap_or(u32::MAX);
        Self { input: small(input), axis: small(axis), rank: small(rank) }
    }

    /// Its size, where the inputs have it.
    fn size(self, inputs: &[Input]) -> Option<i64> {
        let shape = inputs.get(self.input as usize)?.tensor.shape();
        let same_rank = shape.len() == self.rank as usize;
        shape.get(self.axis as usize).copied().filter(|_| same_rank)
    }
}

impl Quotient {
    /// True if nothing shows that the smallest integer is not divided by -1.
    fn overflows(&self, inputs: &[Input]) -> bool {
        let may_hold = |operand: &Option<Operand>, short: i32, long: i64| {
            operand.as_ref().is_none_or(|operand| operand.may_hold(inputs, short, long))
        };
        may_hold(&self.divisor, -1, -1) && may_hold(&self.dividend, i32::MIN, i64::MIN)
    }

    fn advice(&self) -> String {
        let without = |(operand, number): (&Option<Operand>, &str)| {
            let input = &operand.as_ref()?.input;
            Some(format!("send {number} in `{input}`"))
        };
        let both = [(&self.divisor, "no -1"), (&self.dividend, "not the smallest integer")];
        both.into_iter().filter_map(without).collect::<Vec<_>>().join(", or ")
    }
}

impl Operand {
    /// True if its tensor holds the number of its type, or is left out and its default may.
    fn may_hold(&self, inputs: &[Input], short: i32, long: i64) -> bool {
        let Some(input) = inputs.iter().find(|input| input.name == self.input) else {
            return self.by_default;
        };
        match input.tensor.datatype() {
            DataType::Int32 => input.tensor.view().is_ok_and(|all| all.contains(&short)),
            DataType::Int64 => input.tensor.view().is_ok_and(|all| all.contains(&long)),
            _ => false,
        }
    }
}

impl SizeGuard {
    fn refuses(&self, inputs: &[Input]) -> bool {
        self.places.iter().all(|(place, spared)| match place.size(inputs) {
            None => false,
            Some(size) if size == *spared => false,
            Some(size) => size == self.size || self.and_above && size > self.size,
        })
    }

    fn advice<'n>(&self, name: impl Fn(usize) -> &'n str) -> String {
        let mut text = String::new();
        for (place, spared) in &self.places {
            let start = if text.is_empty() { "send" } else { " or" };
            let (axis, input) = (place.axis, name(place.input as usize));
            write!(text, "{start} the size {spared} in dimension {axis} of `{input}`")
                .expect("writing to a string does not fail");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Data, Tensor};

    fn inputs(shapes: &[&[i64]]) -> Vec<Input> {
        let input = |(index, dims): (usize, &&[i64])| {
            let shape = Shape::new(dims).unwrap();
            let data = Data::Fp32(vec![0.0; shape.element_count().unwrap()]);
            Input { name: format!("i{index}"), tensor: Tensor::new(shape, data).unwrap() }
        };
        shapes.iter().enumerate().map(input).collect()
    }

    fn verdict(guards: &Guards, shapes: &[&[i64]]) -> Result<(), String> {
        guards.check(&inputs(shapes)).map_err(|error| error.to_string())
    }

    #[test]
    fn without_guards_everything_passes_that_can_be_counted() {
        assert_eq!(verdict(&Guards::NONE, &[&[0, 3], &[2]]), Ok(()));
        let reason = verdict(&Guards::NONE, &[&[1 << 40, 0], &[2]]).unwrap_err();
        assert!(reason.contains("must not make more than 2147483647 elements"), "{reason}");
        assert_eq!(verdict(&Guards::default(), &[&[0, 0]]), Ok(()));
    }

    #[test]
    fn an_empty_input_passes_only_as_it_was_seen_to_run() {
        let batch = vec![Place::of(0, 0, 2), Place::of(1, 0, 1)];
        let guards = Guards::new(Empty::Only { well: vec![batch], fatal: vec![] }, vec![]);
        assert_eq!(verdict(&guards, &[&[0, 3], &[0]]), Ok(()));
        assert_eq!(verdict(&guards, &[&[5, 3], &[7]]), Ok(()));
        for other in [[&[0, 3][..], &[1]], [&[0, 0], &[0]], [&[1, 0], &[0]], [&[0, 3, 1], &[0]]] {
            let reason = verdict(&guards, &other).unwrap_err();
            assert!(reason.contains("was not seen to run well"), "{other:?}: {reason}");
            assert!(reason.contains("send at least one element"), "{other:?}: {reason}");
        }
    }

    #[test]
    fn an_operator_that_minds_keeps_every_empty_input_out() {
        let guards = Guards::NONE.never_empty("`LSTM` ends the process".to_owned());
        let expected = "input `i1` is empty (shape [2,0]), which this version cannot run: `LSTM` ends the process; send at \
                        least one element in every dimension";
        assert_eq!(verdict(&guards, &[&[1], &[2, 0]]), Err(expected.to_owned()));
        assert_eq!(verdict(&guards, &[&[1], &[2, 1]]), Ok(()));
    }

    #[test]
    fn sizes_that_ended_a_process_are_refused_where_all_dimensions_have_them() {
        let both = vec![(Place::of(0, 0, 2), 1), (Place::of(1, 0, 1), 4)];
        let guards =
            Guards::new(Empty::Any, vec![SizeGuard { places: both, size: 3, and_above: true }]);
        assert_eq!(verdict(&guards, &[&[3, 9], &[4]]), Ok(()), "a size that ran well");
        assert_eq!(verdict(&guards, &[&[1, 9], &[3]]), Ok(()));
        let reason = verdict(&guards, &[&[3, 9], &[3]]).unwrap_err();
        let advice = "send the size 1 in dimension 0 of `i0` or the size 4 in dimension 0 of `i1`";
        assert!(reason.ends_with(advice), "{reason}");
        let one = vec![(Place::of(0, 1, 2), 8)];
        let guards =
            Guards::new(Empty::Any, vec![SizeGuard { places: one, size: 1, and_above: false }]);
        assert_eq!(verdict(&guards, &[&[3, 2]]), Ok(()));
        assert!(verdict(&guards, &[&[3, 1]]).is_err());
    }
}
