//! A description held against a model's own signature: it may say less, or more of what is open, not something else.
//!
//! Dimensions that the model leaves open and the description fixes are fixed for clients. A `reshape` gives clients
//! another shape of the same bytes, as in Triton, whose rules these are.

use crate::tensor::DataType;

use super::{DeclaredTensor, ModelDescription, Rows, Signature, TensorSpec, View};

impl Signature {
    /// The signature that clients see of a model with this description; an error says where the two disagree.
    pub fn described(mut self, description: &ModelDescription) -> Result<Self, String> {
        let batched = description.max_batch_size.is_some_and(|rows| rows > 0);
        if batched {
            self.rows = Rows::Same;
            if !self.is_batchable() {
                return Err("max_batch_size is above 0, but not every input and output of the model begins with an open \
                     dimension; set it to 0"
                    .to_owned());
            }
        }
        for declared in &description.inputs {
            let inputs = self.inputs.iter_mut().chain(&mut self.optional);
            described("input", declared, inputs, batched)?;
        }
        for declared in &description.outputs {
            described("output", declared, self.outputs.iter_mut(), batched)?;
        }
        Ok(self)
    }

    /// Notes about inputs that a description lets a request leave out although the model has no default for them.
    pub fn without_default<'a>(
        &'a self,
        description: &'a ModelDescription,
    ) -> impl Iterator<Item = String> + 'a {
        let optional = description.inputs.iter().filter(|declared| declared.optional);
        let needed =
            optional.filter(|declared| self.inputs.iter().any(|own| own.name == declared.name));
        needed.map(|declared| {
            format!(
                "input `{}` is optional in the description, but the model has no default for it: requests must bring it",
                declared.name
            )
        })
    }
}

fn described<'a>(
    role: &str,
    declared: &DeclaredTensor,
    all: impl Iterator<Item = &'a mut TensorSpec>,
    batched: bool,
) -> Result<(), String> {
    let mut all: Vec<_> = all.collect();
    let Some(spec) = all.iter_mut().find(|spec| spec.name == declared.name) else {
        let names: Vec<_> = all.iter().map(|spec| format!("`{}`", spec.name)).collect();
        return Err(format!(
            "the model has no {role} `{}`, only {}",
            declared.name,
            names.join(", ")
        ));
    };
    if declared.datatype.is_some_and(|datatype| datatype != spec.datatype) {
        let datatype = declared.datatype.map_or("", DataType::name);
        return Err(format!("{role} `{}` is {}, not {datatype}", spec.name, spec.datatype));
    }
    let Some(dims) = &declared.dims else { return Ok(()) };
    let with_batch = |dims: &[i64]| -> Vec<i64> {
        batched.then_some(-1).into_iter().chain(dims.iter().copied()).collect()
    };
    let client = with_batch(dims);
    // Triton lets a scalar per row be declared as one dimension of 1, and gives it as it comes.
    let is_scalar = batched && dims[..] == [1] && spec.dims.as_deref() == Some(&[-1]);
    if is_scalar && declared.reshape.is_none() && role == "output" {
        return Ok(());
    }
    let reshaped = declared.reshape.as_deref().or(is_scalar.then_some(&[]));
    let own = with_batch(reshaped.unwrap_or(dims));
    let Some(narrowed) = narrowed(spec.dims.as_deref(), &own) else {
        let (hint, shape) =
            (if batched { " (which leaves the batch out)" } else { "" }, &spec.dims);
        let by = reshaped.map_or_else(String::new, |own| format!(", reshaped to {own:?},"));
        return Err(format!(
            "{role} `{}` has the shape {:?} in the model, {dims:?}{by} in the description{hint}",
            spec.name,
            shape.as_deref().unwrap_or_default()
        ));
    };
    if client != own {
        let view = View::new(client.clone(), own).and_then(|_| {
            // Where the model fixes what the description leaves open, so it is for clients.
            let mut open = reshaped_sizes(&narrowed, reshaped.unwrap_or_default(), batched);
            let client = client.iter().map(|dim| if *dim < 0 { open.next() } else { Some(*dim) });
            View::new(client.collect::<Option<_>>()?, narrowed.clone())
        });
        spec.view = Some(view.ok_or_else(|| {
            format!(
                "{role} `{}` is reshaped from {dims:?} to {:?}, which has another number of elements; a reshape keeps them",
                spec.name,
                reshaped.unwrap_or_default()
            )
        })?);
    }
    spec.dims = Some(narrowed);
    Ok(())
}

/// The model's sizes of the dimensions that a reshape leaves open, in their order.
fn reshaped_sizes<'a>(
    narrowed: &'a [i64],
    reshape: &'a [i64],
    batched: bool,
) -> impl Iterator<Item = i64> + 'a {
    let declared = batched.then_some(-1).into_iter().chain(reshape.iter().copied());
    declared.zip(narrowed).filter(|(declared, _)| *declared < 0).map(|(_, size)| *size)
}

/// The dimensions that fit both; `None` if none do.
fn narrowed(own: Option<&[i64]>, declared: &[i64]) -> Option<Vec<i64>> {
    let Some(own) = own else { return Some(declared.to_vec()) };
    let both = |(own, declared): (&i64, &i64)| match (*own, *declared) {
        (own, declared) if declared < 0 => Some(own),
        (own, declared) if own < 0 || own == declared => Some(declared),
        _ => None,
    };
    (own.len() == declared.len()).then(|| own.iter().zip(declared).map(both).collect()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::Input,
        tensor::{Data, Shape, Tensor},
    };

    fn model(dims: &[i64]) -> Signature {
        let spec = |name: &str| TensorSpec::new(name, DataType::Fp32, Some(dims.to_vec()));
        Signature { inputs: vec![spec("x")], outputs: vec![spec("y")], ..Signature::default() }
    }

    fn described(
        own: &[i64],
        rows: Option<u32>,
        dims: &[i64],
        reshape: Option<&[i64]>,
    ) -> Result<Signature, String> {
        let tensor = |name: &str| DeclaredTensor {
            name: name.to_owned(),
            dims: Some(dims.to_vec()),
            reshape: reshape.map(<[i64]>::to_vec),
            ..DeclaredTensor::default()
        };
        model(own).described(&ModelDescription {
            max_batch_size: rows,
            inputs: vec![tensor("x")],
            outputs: vec![tensor("y")],
            ..ModelDescription::default()
        })
    }

    fn zeros(dims: &[i64]) -> Tensor {
        let shape = Shape::new(dims).unwrap();
        Tensor::new(shape.clone(), Data::Fp32(vec![0.0; shape.element_count().unwrap()])).unwrap()
    }

    #[test]
    fn reshapes_are_another_shape_of_the_same_bytes() {
        // What the model declares, max_batch_size, dims, reshape; what a client sends, what the model gets.
        type Row<'a> = (&'a [i64], u32, &'a [i64], Option<&'a [i64]>, &'a [i64], &'a [i64]);
        let table: [Row<'_>; 7] = [
            (
                &[1, 3, 224, 224],
                0,
                &[3, 224, 224],
                Some(&[1, 3, 224, 224]),
                &[3, 224, 224],
                &[1, 3, 224, 224],
            ),
            (&[1, 3, 4, 5], 0, &[3, -1, -1], Some(&[1, 3, -1, -1]), &[3, 4, 5], &[1, 3, 4, 5]),
            (&[-1], 8, &[1], Some(&[]), &[2, 1], &[2]),
            (&[-1], 8, &[1], None, &[2, 1], &[2]),
            (&[-1, 28, 28], 4, &[784], Some(&[28, 28]), &[3, 784], &[3, 28, 28]),
            (&[-1, 1, -1], 0, &[-1, -1], Some(&[-1, 1, -1]), &[2, 5], &[2, 1, 5]),
            (&[-1, -1, -1], 8, &[-1, 4], Some(&[-1, 4]), &[2, 5, 4], &[2, 5, 4]),
        ];
        for (own, rows, dims, reshape, client, expected) in table {
            let signature = described(own, Some(rows), dims, reshape).unwrap();
            let mut inputs = vec![Input { name: "x".to_owned(), tensor: zeros(client) }];
            signature.arrange(&mut inputs, rows > 0).unwrap();
            assert_eq!(&**inputs[0].tensor.shape(), expected, "{dims:?}");
            // What was arranged once may be arranged for another version.
            signature.restore(&mut inputs);
            assert_eq!(&**inputs[0].tensor.shape(), client, "{dims:?}");
            signature.arrange(&mut inputs, rows > 0).unwrap();
            let mut outputs = [zeros(expected)];
            signature.present(&mut outputs, &[0]);
            let is_scalar = dims == [1] && reshape.is_none();
            let shown = if is_scalar { expected } else { client };
            assert_eq!(&**outputs[0].shape(), shown, "{dims:?}");
        }
    }

    #[test]
    fn what_the_model_leaves_open_a_description_may_fix() {
        let signature = described(&[-1, -1, 3], Some(8), &[4, -1], None).unwrap();
        assert_eq!(signature.inputs[0].dims, Some(vec![-1, 4, 3]));
        let mut inputs = vec![Input { name: "x".to_owned(), tensor: zeros(&[1, 5, 3]) }];
        let error = signature.arrange(&mut inputs, true).unwrap_err().to_string();
        assert_eq!(error, "unexpected shape for input `x`: got [1,5,3], the model takes [-1,4,3]");
    }

    #[test]
    fn disagreements_are_named() {
        let error = |own: &[i64], rows, dims: &[i64], reshape: Option<&[i64]>| {
            described(own, Some(rows), dims, reshape).unwrap_err()
        };
        assert_eq!(
            error(&[-1, 4], 8, &[5], None),
            "input `x` has the shape [-1, 4] in the model, [5] in the description (which leaves the batch out)"
        );
        assert!(error(&[1, 4], 8, &[4], None).starts_with("max_batch_size is above 0"));
        assert_eq!(
            error(&[-1, 2, 2], 8, &[5], Some(&[2, 2])),
            "input `x` is reshaped from [5] to [2, 2], which has another number of elements; a reshape keeps them"
        );
        assert!(error(&[3, 4], 0, &[-1, 4], Some(&[3, -1])).contains("another number"));
    }
}
