//! One loaded model, owned by one worker.
//!
//! A session runs one request at a time, so that each worker holds its own and nothing is shared or waited for.
//! Options are tidegate's: one thread inside a run, sequential, no spinning.

use std::{borrow::Cow, path::Path};

use anyhow::{Context as _, Result, bail};
pub(crate) use ort::environment::Environment;
use ort::{
    session::{Session, SessionInputValue, SessionInputs},
    value::{TensorElementType, TensorRef, ValueType},
};

use crate::wire::{Data, Tensor};

/// Loads the engine's `library`; sessions live only as long as what is returned.
pub(crate) fn start(library: &Path) -> Result<Environment> {
    let builder = ort::init_from(library)
        .with_context(|| format!("cannot load ONNX Runtime from `{}`", library.display()))?;
    Ok(builder.with_name("floor").with_telemetry(false).build()?)
}

pub(crate) struct Model {
    session: Session,
}

impl Model {
    pub(crate) fn load(environment: &Environment, file: &Path) -> Result<Self> {
        let open = || -> ort::Result<Session> {
            Session::builder(environment)?
                .with_intra_threads(1)?
                .with_inter_threads(1)?
                .with_intra_op_spinning(false)?
                .commit_from_file(file)
        };
        let session = open().with_context(|| format!("cannot load `{}`", file.display()))?;
        Ok(Self { session })
    }

    /// Runs the model once and copies its outputs out.
    pub(crate) fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let values = inputs.iter().map(borrow).collect::<Result<Vec<_>>>()?;
        let outputs = self.session.run(SessionInputs::from(values))?;
        let mut tensors = Vec::with_capacity(outputs.len());
        for (name, value) in &outputs {
            let ValueType::Tensor { ty, .. } = value.dtype() else {
                bail!("output `{name}` is not a tensor");
            };
            let (shape, data) = match ty {
                TensorElementType::Float32 => {
                    let (shape, data) = value.try_extract_tensor::<f32>()?;
                    (shape, Data::Fp32(data.to_vec()))
                }
                TensorElementType::Int64 => {
                    let (shape, data) = value.try_extract_tensor::<i64>()?;
                    (shape, Data::Int64(data.to_vec()))
                }
                other => bail!("output `{name}` holds {other}, the floor knows f32 and i64"),
            };
            tensors.push(Tensor { name: name.to_owned(), shape: shape.to_vec(), data });
        }
        Ok(tensors)
    }
}

fn borrow(tensor: &Tensor) -> Result<(Cow<'_, str>, SessionInputValue<'_>)> {
    let shape = tensor.shape.as_slice();
    let value = match &tensor.data {
        Data::Fp32(data) => TensorRef::from_array_view((shape, data.as_slice()))?.into(),
        Data::Int64(data) => TensorRef::from_array_view((shape, data.as_slice()))?.into(),
    };
    Ok((Cow::Borrowed(tensor.name.as_str()), value))
}
