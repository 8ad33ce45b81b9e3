//! The inputs that a model takes and the outputs that it gives.

use std::fmt::Write as _;

use crate::tensor::{DataType, Shape, Tensor};

use super::Input;

/// The inputs and outputs of a version, in the model's order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Signature {
    /// What a request must bring.
    pub inputs: Vec<TensorSpec>,
    /// What a response holds.
    pub outputs: Vec<TensorSpec>,
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

/// Names from a request are cut to this many characters before they stand in a message.
const NAME_SHOWN_MAX: usize = 64;

impl Signature {
    /// How a request that fits `before` could fail here, or its answer lack something; `None` if all are safe.
    ///
    /// Inputs may be more open than before, outputs may be more; names and datatypes stay.
    pub fn breaks_clients_of(&self, before: &Self) -> Option<String> {
        for new in &self.inputs {
            let Some(old) = before.inputs.iter().find(|old| old.name == new.name) else {
                return Some(format!("it asks for a new input `{}`", new.name));
            };
            if !new.takes_all_of(old) {
                return Some(format!("input {} was {}", new.summary(), old.summary()));
            }
        }
        for old in &before.inputs {
            if self.inputs.iter().all(|new| new.name != old.name) {
                return Some(format!("it has no input `{}`", old.name));
            }
        }
        for old in &before.outputs {
            let Some(new) = self.outputs.iter().find(|new| new.name == old.name) else {
                return Some(format!("it has no output `{}`", old.name));
            };
            let ranks = |spec: &TensorSpec| spec.dims.as_ref().map(Vec::len);
            let same_rank =
                ranks(old).is_none() || ranks(new).is_none() || ranks(old) == ranks(new);
            if new.datatype != old.datatype || !same_rank {
                return Some(format!("output {} was {}", new.summary(), old.summary()));
            }
        }
        None
    }

    /// Brings a request's inputs into the model's order and checks names, datatypes and shapes.
    ///
    /// With `batched`, the first dimension counts rows and must be the same in all inputs.
    pub fn arrange(&self, inputs: &mut [Input], batched: bool) -> Result<(), SignatureError> {
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
        if let Some(spec) = self.inputs.get(inputs.len()) {
            return Err(self.missing(&spec.name));
        }
        if batched { Self::check_rows(inputs) } else { Ok(()) }
    }

    /// The output of this name: its index.
    pub fn output(&self, name: &str) -> Result<usize, SignatureError> {
        self.outputs.iter().position(|spec| spec.name == name).ok_or_else(|| {
            SignatureError::UnknownOutput { name: shown(name), expected: list(&self.outputs) }
        })
    }

    /// Whether the first dimension of every input and output is open, as that of a batch.
    pub fn is_batchable(&self) -> bool {
        let open =
            |spec: &TensorSpec| spec.dims.as_ref().is_some_and(|dims| dims.first() == Some(&-1));
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
        SignatureError::UnknownInput { name: shown(name), expected: list(&self.inputs) }
    }

    /// The input due at `position` is not in the request: perhaps an unknown one stands in its place.
    fn stranger(&self, inputs: &[Input], position: usize) -> SignatureError {
        let unknown =
            inputs[position..].iter().find(|i| self.inputs.iter().all(|s| s.name != i.name));
        match unknown {
            Some(input) => SignatureError::UnknownInput {
                name: shown(&input.name),
                expected: list(&self.inputs),
            },
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
        SignatureError::MissingInput { name: name.to_owned(), expected: list(&self.inputs) }
    }
}

impl TensorSpec {
    /// Whether every tensor that fits `other` fits this.
    fn takes_all_of(&self, other: &Self) -> bool {
        let dims = match (&self.dims, &other.dims) {
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
        self.dims.as_deref().unwrap_or(&[-1])
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
        let fits = self.dims.as_ref().is_none_or(|dims| {
            dims.len() == tensor.shape().len()
                && dims
                    .iter()
                    .zip(tensor.shape().iter())
                    .all(|(own, given)| *own < 0 || own == given)
        });
        if fits {
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
        let dims = self.dims.as_deref().map_or_else(|| "[...]".to_owned(), dims_text);
        format!("{} {}{dims}", self.name, self.datatype)
    }
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
        };
        Signature {
            inputs: vec![spec("a", &[-1, 2]), spec("b", &[-1])],
            outputs: vec![spec("y", &[-1])],
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
    fn a_new_version_must_take_what_the_old_one_took() {
        let spec = |name: &str, datatype, dims: &[i64]| TensorSpec {
            name: name.to_owned(),
            datatype,
            dims: Some(dims.to_vec()),
        };
        let signature = |inputs: &[&TensorSpec], outputs: &[&TensorSpec]| Signature {
            inputs: inputs.iter().map(|spec| (*spec).clone()).collect(),
            outputs: outputs.iter().map(|spec| (*spec).clone()).collect(),
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
