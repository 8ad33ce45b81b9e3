//! The inputs that a model takes and the outputs that it gives.

use std::{collections::HashMap, fmt::Write as _};

use serde::{Deserialize, Serialize};

use crate::tensor::{DataType, Shape, Tensor};

use super::Input;

/// The inputs and outputs of a version, in the model's order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Signature {
    /// Inputs that a request must bring.
    pub inputs: Vec<TensorSpec>,
    /// Outputs of a response.
    pub outputs: Vec<TensorSpec>,
    /// Inputs that a request may bring: the model has a default for each.
    pub optional: Vec<TensorSpec>,
    /// The relation of the first dimensions to each other.
    pub rows: Rows,
}

/// Relation of the first dimensions of a model's inputs and outputs to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rows {
    /// One size, that of a batch: their names say so, or a description.
    Same,
    /// Not said: they are taken for a batch where a request's inputs agree.
    #[default]
    Unsaid,
    /// Different sizes, for they have different names.
    Apart,
}

/// The largest of what a request for a model may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Extent {
    /// Inputs that a request must bring.
    pub inputs_min: usize,
    /// Inputs that it may bring.
    pub inputs_max: usize,
    /// Outputs.
    pub outputs: usize,
    /// Bytes of the longest name.
    pub name_bytes: usize,
    /// Dimensions of an input.
    pub rank: usize,
}

impl Extent {
    /// The larger of both in everything.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            inputs_min: self.inputs_min.min(other.inputs_min),
            inputs_max: self.inputs_max.max(other.inputs_max),
            outputs: self.outputs.max(other.outputs),
            name_bytes: self.name_bytes.max(other.name_bytes),
            rank: self.rank.max(other.rank),
        }
    }
}

/// Name, datatype and shape of one input or output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// The tensor's name in the model.
    pub name: String,
    /// The element type.
    pub datatype: DataType,
    /// The dimensions, -1 for one that is open; `None` where even the rank is open.
    pub dims: Option<Vec<i64>>,
    /// The shape that clients use, where a description gives another one for the same bytes.
    pub view: Option<View>,
}

/// Another shape of the same bytes: Triton's `reshape`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The dimensions that clients use, -1 for one that is open.
    dims: Vec<i64>,
    /// The dimensions that the model uses, in which as many are open, in the same order.
    own: Vec<i64>,
}

/// Why inputs do not fit a signature; always the caller's mistake.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The model has no such input.
    #[error("unexpected input `{name}`; the model takes {expected}")]
    UnknownInput {
        /// The name in the request, shortened.
        name: String,
        /// The model's inputs.
        expected: String,
    },
    /// An input is there twice.
    #[error("input `{0}` is given more than once")]
    DuplicateInput(String),
    /// An input is not there.
    #[error("input `{name}` is missing; the model takes {expected}")]
    MissingInput {
        /// The missing input.
        name: String,
        /// The model's inputs.
        expected: String,
    },
    /// The datatype is not the model's.
    #[error("input `{name}` has datatype {actual}, the model takes {expected}")]
    DataType {
        /// The input.
        name: String,
        /// The model's.
        expected: DataType,
        /// The request's.
        actual: DataType,
    },
    /// The shape is not one that the model takes.
    #[error("unexpected shape for input `{name}`: got {actual}, the model takes {expected}")]
    Shape {
        /// The input.
        name: String,
        /// The model's, -1 for an open dimension.
        expected: String,
        /// The request's.
        actual: Shape,
    },
    /// The inputs disagree about the number of rows.
    #[error(
        "inputs disagree about the batch: `{first}` has {first_rows} rows, `{second}` has {second_rows}"
    )]
    Rows {
        /// An input.
        first: String,
        /// Its first dimension.
        first_rows: i64,
        /// Another input.
        second: String,
        /// Its first dimension.
        second_rows: i64,
    },
    /// An output is asked for twice.
    #[error("output `{0}` is asked for more than once")]
    DuplicateOutput(String),
    /// The model has no such output.
    #[error("unexpected output `{name}`; the model gives {expected}")]
    UnknownOutput {
        /// The name in the request, shortened.
        name: String,
        /// The model's outputs.
        expected: String,
    },
}

/// Requests with more inputs than this are sorted, not searched.
const WIDE: usize = 64;

/// Names from a request are cut to this many characters before they stand in a message.
const NAME_SHOWN_MAX: usize = 64;

impl Signature {
    /// How a request that fits `before` could fail here, or its answer lack something; `None` if all are safe.
    ///
    /// Inputs may be more open than before, outputs may be more; names and datatypes stay.
    pub fn breaks_clients_of(&self, before: &Self) -> Option<String> {
        let is_new = |new: &&TensorSpec| before.inputs.iter().all(|old| old.name != new.name);
        if let Some(new) = self.inputs.iter().find(is_new) {
            return Some(format!("it asks for a new input `{}`", new.name));
        }
        for old in before.inputs.iter().chain(&before.optional) {
            match self.any_input(&old.name) {
                None => return Some(format!("it has no input `{}`", old.name)),
                Some(new) if !new.takes_all_of(old) => {
                    return Some(format!("input {} was {}", new.summary(), old.summary()));
                }
                Some(_) => {}
            }
        }
        if self.rows == Rows::Same && before.rows == Rows::Apart && self.inputs.len() > 1 {
            return Some(
                "all its inputs must have as many rows, which they need not before".to_owned(),
            );
        }
        for old in &before.outputs {
            let Some(new) = self.outputs.iter().find(|new| new.name == old.name) else {
                return Some(format!("it has no output `{}`", old.name));
            };
            let ranks = |spec: &TensorSpec| spec.client_dims().map(<[i64]>::len);
            let same_rank =
                ranks(old).is_none() || ranks(new).is_none() || ranks(old) == ranks(new);
            if new.datatype != old.datatype || !same_rank {
                return Some(format!("output {} was {}", new.summary(), old.summary()));
            }
        }
        None
    }

    /// The input of this name, whether a request must bring it or may.
    pub fn any_input(&self, name: &str) -> Option<&TensorSpec> {
        self.inputs.iter().chain(&self.optional).find(|spec| spec.name == name)
    }

    /// Brings a request's inputs into the model's order and checks names, datatypes and shapes.
    ///
    /// Those that it may leave out follow the others. Shapes become the model's own where clients use another one, once
    /// all of it is right. With `batched`, the first dimension counts rows and must be the same in all inputs.
    pub fn arrange(&self, inputs: &mut [Input], batched: bool) -> Result<(), SignatureError> {
        let count = inputs.len();
        let is_in_order = count == self.inputs.len()
            && inputs.iter().zip(&self.inputs).all(|(input, spec)| input.name == spec.name);
        let is_wide = count > WIDE || !self.optional.is_empty();
        let given = if is_in_order || !is_wide { 0 } else { self.sort(inputs)? };
        self.arrange_required(&mut inputs[..count - given])?;
        if batched {
            Self::check_rows(&inputs[..count - given])?;
        }
        for (input, spec) in inputs.iter_mut().zip(&self.inputs) {
            spec.take_on(&mut input.tensor);
        }
        Ok(())
    }

    /// Restores the shapes that clients use of arranged inputs, for another version.
    pub fn restore(&self, inputs: &mut [Input]) {
        for (input, spec) in inputs.iter_mut().zip(&self.inputs) {
            let view = spec.view.as_ref();
            if let Some(shape) = view.and_then(|view| view.of(input.tensor.shape())) {
                input.tensor.set_shape(shape);
            }
        }
    }

    /// Sorts inputs: those that must be there, unknown ones, then those that may be left out; gives the number of the
    /// last.
    #[cold]
    fn sort(&self, inputs: &mut [Input]) -> Result<usize, SignatureError> {
        let unknown = self.inputs.len();
        let required = self.inputs.iter().enumerate().map(|(place, spec)| (&*spec.name, place));
        let optional = self.optional.iter().enumerate();
        let optional = optional.map(|(place, spec)| (&*spec.name, unknown + 1 + place));
        let places: HashMap<&str, usize> = required.chain(optional).collect();
        inputs.sort_by_cached_key(|input| places.get(&*input.name).copied().unwrap_or(unknown));
        let is_optional =
            |input: &&Input| places.get(&*input.name).is_some_and(|place| *place > unknown);
        let given = inputs.iter().rev().take_while(is_optional).count();
        let last = &inputs[inputs.len() - given..];
        if let Some(twice) = last.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(SignatureError::DuplicateInput(shown(&twice[0].name)));
        }
        for input in last {
            let spec = self.optional.get(places[&*input.name] - unknown - 1);
            spec.map_or(Ok(()), |spec| spec.check(&input.tensor))?;
        }
        Ok(given)
    }

    fn arrange_required(&self, inputs: &mut [Input]) -> Result<(), SignatureError> {
        for position in 0..inputs.len() {
            let Some(spec) = self.inputs.get(position) else {
                return Err(self.surplus(inputs, position));
            };
            if inputs[position].name != spec.name {
                let found = inputs[position..].iter().position(|input| input.name == spec.name);
                match found {
                    Some(offset) => inputs.swap(position, position + offset),
                    None => return Err(self.stranger(inputs, position)),
                }
            }
            spec.check(&inputs[position].tensor)?;
        }
        match self.inputs.get(inputs.len()) {
            Some(spec) => Err(self.missing(&spec.name)),
            None => Ok(()),
        }
    }

    /// Reshapes outputs as clients use them; `which` says which outputs they are.
    pub fn present(&self, outputs: &mut [Tensor], which: &[usize]) {
        for (tensor, index) in outputs.iter_mut().zip(which) {
            let view = self.outputs[*index].view.as_ref();
            let shape = view.and_then(|view| view.of(tensor.shape()));
            if let Some(shape) = shape {
                tensor.set_shape(shape);
            }
        }
    }

    /// The rows of a request whose inputs are arranged: the first dimension that all of them have; `None` if they
    /// disagree or have none.
    pub fn rows_of(inputs: &[Input]) -> Option<i64> {
        let first = inputs.first()?.tensor.shape().first().copied()?;
        let agrees = |input: &Input| input.tensor.shape().first() == Some(&first);
        inputs.iter().all(agrees).then_some(first)
    }

    /// The largest of what a request may hold.
    pub fn extent(&self) -> Extent {
        let inputs = || self.inputs.iter().chain(&self.optional);
        let names = inputs().chain(&self.outputs).map(|spec| spec.name.len());
        let rank = |spec: &TensorSpec| spec.client_dims().map_or(0, <[i64]>::len);
        Extent {
            inputs_min: self.inputs.len(),
            inputs_max: inputs().count(),
            outputs: self.outputs.len(),
            name_bytes: names.max().unwrap_or(0),
            rank: inputs().map(rank).max().unwrap_or(0),
        }
    }

    /// The output of this name: its index.
    pub fn output(&self, name: &str) -> Result<usize, SignatureError> {
        self.outputs.iter().position(|spec| spec.name == name).ok_or_else(|| {
            SignatureError::UnknownOutput { name: shown(name), expected: list(&self.outputs) }
        })
    }

    /// True if the first dimension of every input and output is open, as that of a batch.
    pub fn is_batchable(&self) -> bool {
        let open = |spec: &TensorSpec| match &spec.dims {
            Some(dims) => dims.first() == Some(&-1),
            // Only a description can say that there is one.
            None => self.rows == Rows::Same,
        };
        !self.inputs.is_empty() && self.inputs.iter().chain(&self.outputs).all(open)
    }

    fn check_rows(inputs: &[Input]) -> Result<(), SignatureError> {
        let rows = |input: &Input| input.tensor.shape().first().copied().unwrap_or(1);
        let Some(first) = inputs.first() else { return Ok(()) };
        match inputs.iter().find(|input| rows(input) != rows(first)) {
            None => Ok(()),
            Some(second) => Err(SignatureError::Rows {
                first: first.name.clone(),
                first_rows: rows(first),
                second: second.name.clone(),
                second_rows: rows(second),
            }),
        }
    }

    /// More inputs than the model has: one is unknown or there twice.
    fn surplus(&self, inputs: &[Input], position: usize) -> SignatureError {
        let name = &inputs[position].name;
        if inputs[..position].iter().any(|input| input.name == *name) {
            return SignatureError::DuplicateInput(shown(name));
        }
        SignatureError::UnknownInput { name: shown(name), expected: self.expected() }
    }

    /// The model's inputs, for a message.
    fn expected(&self) -> String {
        match (&self.inputs[..], &self.optional[..]) {
            (inputs, []) => list(inputs),
            ([], optional) => format!("optionally {}", list(optional)),
            (inputs, optional) => format!("{}, and optionally {}", list(inputs), list(optional)),
        }
    }

    /// The input due at `position` is not in the request: perhaps an unknown one stands in its place.
    fn stranger(&self, inputs: &[Input], position: usize) -> SignatureError {
        let unknown =
            inputs[position..].iter().find(|i| self.inputs.iter().all(|s| s.name != i.name));
        match unknown {
            Some(input) => {
                SignatureError::UnknownInput { name: shown(&input.name), expected: self.expected() }
            }
            None => match inputs[position..]
                .iter()
                .find(|input| inputs[..position].iter().any(|before| before.name == input.name))
            {
                Some(twice) => SignatureError::DuplicateInput(shown(&twice.name)),
                None => self.missing(&self.inputs[position].name),
            },
        }
    }

    fn missing(&self, name: &str) -> SignatureError {
        SignatureError::MissingInput { name: name.to_owned(), expected: self.expected() }
    }
}

impl TensorSpec {
    /// A tensor of these dimensions, -1 for one that is open; `None` where even the rank is open.
    pub fn new(name: impl Into<String>, datatype: DataType, dims: Option<Vec<i64>>) -> Self {
        Self { name: name.into(), datatype, dims, view: None }
    }

    /// The dimensions that clients use; `None` where even the rank is open.
    pub fn client_dims(&self) -> Option<&[i64]> {
        match &self.view {
            Some(view) => Some(&view.dims),
            None => self.dims.as_deref(),
        }
    }

    /// Whether every tensor that fits `other` fits this.
    fn takes_all_of(&self, other: &Self) -> bool {
        let dims = match (self.client_dims(), other.client_dims()) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(own), Some(others)) => {
                own.len() == others.len()
                    && own.iter().zip(others).all(|(own, other)| *own < 0 || own == other)
            }
        };
        self.datatype == other.datatype && dims
    }

    /// The shape as the protocol writes it: -1 where open; an open rank is one open dimension.
    pub fn protocol_dims(&self) -> &[i64] {
        self.client_dims().unwrap_or(&[-1])
    }

    /// Reshapes a tensor from the shape that clients use to the model's own.
    fn take_on(&self, tensor: &mut Tensor) {
        if let Some(own) = self.view.as_ref().and_then(|view| view.own(tensor.shape())) {
            tensor.set_shape(own);
        }
    }

    /// Checks a tensor's datatype and shape.
    pub fn check(&self, tensor: &Tensor) -> Result<(), SignatureError> {
        if tensor.datatype() != self.datatype {
            return Err(SignatureError::DataType {
                name: self.name.clone(),
                expected: self.datatype,
                actual: tensor.datatype(),
            });
        }
        let is_seen = self.view.as_ref().is_some_and(|view| matches(&view.dims, tensor.shape()));
        // The model's own shape is taken as well: golden outputs may have it.
        if is_seen || self.dims.as_ref().is_none_or(|dims| matches(dims, tensor.shape())) {
            return Ok(());
        }
        Err(SignatureError::Shape {
            name: self.name.clone(),
            expected: dims_text(self.protocol_dims()),
            actual: tensor.shape().clone(),
        })
    }

    /// One line for people: `input FP32[-1,30]`.
    pub fn summary(&self) -> String {
        let dims = self.client_dims().map_or_else(|| "[...]".to_owned(), dims_text);
        format!("{} {}{dims}", self.name, self.datatype)
    }
}

impl View {
    /// A view of `own` dimensions as `dims`; `None` unless every shape of the one is a shape of the other.
    ///
    /// Open dimensions correspond in their order, and between two of them both have as many elements, as Triton asks
    /// of a `reshape`.
    pub fn new(dims: Vec<i64>, own: Vec<i64>) -> Option<Self> {
        let counts = |dims: &[i64]| {
            let runs = dims.split(|dim| *dim < 0);
            runs.map(|run| Shape::new(run)?.element_count()).collect::<Option<Vec<_>>>()
        };
        // Of nothing there are many shapes, which no client means.
        let is_empty = dims.contains(&0) || own.contains(&0);
        (!is_empty && counts(&dims)? == counts(&own)?).then_some(Self { dims, own })
    }

    /// The model's own shape for one that a client uses; `None` if that does not fit.
    fn own(&self, shape: &Shape) -> Option<Shape> {
        swapped(&self.dims, &self.own, shape)
    }

    /// The shape that clients use for one that the model gives; `None` if that does not fit.
    fn of(&self, shape: &Shape) -> Option<Shape> {
        swapped(&self.own, &self.dims, shape)
    }
}

/// A shape that fits `from`, with the open dimensions of `to` filled in.
fn swapped(from: &[i64], to: &[i64], shape: &Shape) -> Option<Shape> {
    if !matches(from, shape) {
        return None;
    }
    let mut open = from.iter().zip(shape.iter()).filter(|(dim, _)| **dim < 0).map(|(_, own)| *own);
    let dims = to.iter().map(|dim| if *dim < 0 { open.next() } else { Some(*dim) });
    Shape::new(&dims.collect::<Option<Vec<_>>>()?)
}

/// True if a shape has these dimensions, -1 standing for any.
fn matches(dims: &[i64], shape: &Shape) -> bool {
    dims.len() == shape.len()
        && dims.iter().zip(shape.iter()).all(|(own, given)| *own < 0 || own == given)
}

fn dims_text(dims: &[i64]) -> String {
    let mut text = String::from("[");
    for (axis, dim) in dims.iter().enumerate() {
        let comma = if axis > 0 { "," } else { "" };
        write!(text, "{comma}{dim}").expect("writing to a string does not fail");
    }
    text + "]"
}

fn list(specs: &[TensorSpec]) -> String {
    let names: Vec<_> = specs.iter().map(|spec| format!("`{}`", spec.name)).collect();
    names.join(", ")
}

fn shown(name: &str) -> String {
    name.chars().take(NAME_SHOWN_MAX).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Data;

    fn signature() -> Signature {
        let spec = |name: &str, dims: &[i64]| TensorSpec {
            name: name.into(),
            datatype: DataType::Fp32,
            dims: Some(dims.to_vec()),
            view: None,
        };
        Signature {
            inputs: vec![spec("a", &[-1, 2]), spec("b", &[-1])],
            outputs: vec![spec("y", &[-1])],
            ..Signature::default()
        }
    }

    fn input(name: &str, dims: &[i64]) -> Input {
        let shape = Shape::new(dims).unwrap();
        let data = Data::Fp32(vec![0.0; shape.element_count().unwrap()]);
        Input { name: name.into(), tensor: Tensor::new(shape, data).unwrap() }
    }

    fn arrange(mut inputs: Vec<Input>) -> Result<Vec<String>, String> {
        signature().arrange(&mut inputs, true).map_err(|error| error.to_string())?;
        Ok(inputs.into_iter().map(|input| input.name).collect())
    }

    #[test]
    fn inputs_come_into_the_models_order() {
        let names = arrange(vec![input("b", &[3]), input("a", &[3, 2])]).unwrap();
        assert_eq!(names, ["a", "b"]);
    }

    #[test]
    fn every_misfit_says_what_would_be_right() {
        let check = |inputs, expected: &str| assert_eq!(arrange(inputs).unwrap_err(), expected);
        check(vec![input("a", &[1, 2])], "input `b` is missing; the model takes `a`, `b`");
        check(
            vec![input("a", &[1, 2]), input("x", &[1])],
            "unexpected input `x`; the model takes `a`, `b`",
        );
        check(
            vec![input("a", &[1, 2]), input("b", &[1]), input("z", &[1])],
            "unexpected input `z`; the model takes `a`, `b`",
        );
        check(vec![input("a", &[1, 2]), input("a", &[1, 2])], "input `a` is given more than once");
        check(
            vec![input("a", &[1, 3]), input("b", &[1])],
            "unexpected shape for input `a`: got [1,3], the model takes [-1,2]",
        );
        check(
            vec![input("a", &[1, 2]), input("b", &[4])],
            "inputs disagree about the batch: `a` has 1 rows, `b` has 4",
        );
    }

    #[test]
    fn inputs_with_defaults_may_be_left_out() {
        let spec = |name: &str| TensorSpec::new(name, DataType::Fp32, Some(vec![2]));
        let signature = Signature {
            inputs: vec![spec("a"), spec("b")],
            optional: vec![spec("v"), spec("w")],
            ..Signature::default()
        };
        let arrange = |names: &[&str]| {
            let mut inputs: Vec<_> = names.iter().map(|name| input(name, &[2])).collect();
            signature.arrange(&mut inputs, false).map_err(|error| error.to_string())?;
            Ok::<_, String>(inputs.into_iter().map(|input| input.name).collect::<Vec<_>>())
        };
        for (given, arranged) in [
            (&["b", "a"][..], &["a", "b"][..]),
            (&["w", "b", "a"], &["a", "b", "w"]),
            (&["w", "b", "v", "a"], &["a", "b", "v", "w"]),
            (&["a", "v", "b"], &["a", "b", "v"]),
        ] {
            assert_eq!(arrange(given).unwrap(), arranged, "{given:?}");
        }
        let takes = "the model takes `a`, `b`, and optionally `v`, `w`";
        assert_eq!(arrange(&["a", "w"]).unwrap_err(), format!("input `b` is missing; {takes}"));
        let unknown = format!("unexpected input `x`; {takes}");
        assert_eq!(arrange(&["a", "b", "x"]).unwrap_err(), unknown);
        assert_eq!(
            arrange(&["a", "w", "b", "w"]).unwrap_err(),
            "input `w` is given more than once"
        );
        let mut misfit = vec![input("a", &[2]), input("b", &[2]), input("w", &[3])];
        assert!(signature.arrange(&mut misfit, false).is_err());
        // What was needed may be left out, but stays what it was.
        let loose = |datatype| Signature {
            optional: vec![TensorSpec::new("a", datatype, Some(vec![2]))],
            ..Signature::default()
        };
        let needed = Signature { inputs: vec![spec("a")], ..Signature::default() };
        assert_eq!(loose(DataType::Fp32).breaks_clients_of(&needed), None);
        let reason = loose(DataType::Int64).breaks_clients_of(&needed).unwrap();
        assert_eq!(reason, "input a INT64[2] was a FP32[2]");
        // A client that gave one must be able to go on.
        let before = Signature { optional: vec![spec("v")], ..signature.clone() };
        assert_eq!(signature.breaks_clients_of(&before), None);
        let reason = before.breaks_clients_of(&signature).unwrap();
        assert_eq!(reason, "it has no input `w`");
    }

    #[test]
    fn many_inputs_are_sorted_and_misfits_among_them_named() {
        let spec =
            |number: usize| TensorSpec::new(format!("n{number}"), DataType::Fp32, Some(vec![]));
        let inputs: Vec<_> = (0..5_000).map(spec).collect();
        let signature = Signature { inputs, ..Signature::default() };
        let reversed =
            || (0..5_000).rev().map(|n| input(&format!("n{n}"), &[])).collect::<Vec<_>>();
        let mut inputs = reversed();
        signature.arrange(&mut inputs, false).unwrap();
        assert!(inputs.iter().zip(&signature.inputs).all(|(input, spec)| input.name == spec.name));
        let fails = |change: &dyn Fn(&mut Vec<Input>), expected: &str| {
            let mut inputs = reversed();
            change(&mut inputs);
            let error = signature.arrange(&mut inputs, false).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        };
        fails(&|inputs| inputs[7].name = "x".to_owned(), "unexpected input `x`");
        fails(&|inputs| inputs[7].name = "n0".to_owned(), "input `n0` is given more than once");
        fails(&|inputs| drop(inputs.remove(7)), "input `n4992` is missing");
        fails(&|inputs| inputs.push(input("n3", &[])), "input `n3` is given more than once");
    }

    #[test]
    fn a_new_version_must_take_what_the_old_one_took() {
        let spec = |name: &str, datatype, dims: &[i64]| TensorSpec {
            name: name.to_owned(),
            datatype,
            dims: Some(dims.to_vec()),
            view: None,
        };
        let signature = |inputs: &[&TensorSpec], outputs: &[&TensorSpec]| Signature {
            inputs: inputs.iter().map(|spec| (*spec).clone()).collect(),
            outputs: outputs.iter().map(|spec| (*spec).clone()).collect(),
            ..Signature::default()
        };
        let (x, y) = (spec("x", DataType::Fp32, &[-1, 3]), spec("y", DataType::Fp32, &[-1]));
        let old = signature(&[&x], &[&y]);
        let open = spec("x", DataType::Fp32, &[-1, -1]);
        let more = spec("z", DataType::Int64, &[-1]);
        let fits = [
            old.clone(),
            signature(&[&open], &[&more, &y]),
            signature(&[&x], &[&spec("y", DataType::Fp32, &[5])]),
        ];
        for new in fits {
            assert_eq!(new.breaks_clients_of(&old), None);
        }
        let breaks = [
            (signature(&[&spec("x", DataType::Fp32, &[-1, 4])], &[&y]), "input `x`"),
            (signature(&[&spec("x", DataType::Fp64, &[-1, 3])], &[&y]), "input `x`"),
            (signature(&[&x, &more], &[&y]), "a new input `z`"),
            (signature(&[], &[&y]), "no input `x`"),
            (signature(&[&x], &[&more]), "no output `y`"),
            (signature(&[&x], &[&spec("y", DataType::Fp32, &[-1, 2])]), "output `y`"),
        ];
        for (new, why) in breaks {
            let reason = new.breaks_clients_of(&old).unwrap();
            let plain = reason.replace("input x", "input `x`").replace("output y", "output `y`");
            assert!(plain.contains(why), "{reason}");
        }
    }

    #[test]
    fn names_in_messages_are_short_and_escaped() {
        let long = "\u{1b}".repeat(500);
        let message = arrange(vec![input(&long, &[1, 2]), input("b", &[1])]).unwrap_err();
        assert!(message.len() < 600 && !message.contains('\u{1b}'), "{message}");
    }
}
