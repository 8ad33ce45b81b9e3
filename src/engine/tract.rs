//! tract: the pure-Rust engine, for neural networks where ONNX Runtime's library is missing or not wanted.
//!
//! It has no string tensors and no external data from memory, and computes some operators wrongly (`onnx::misread`);
//! so whoever loads a version with it must look for these, and check golden outputs where there are any.

use std::{borrow::Cow, sync::Arc};

use tract_onnx::{
    prelude::{
        DatumType, Framework as _, InferenceFact, InferenceModel, InferenceModelExt as _,
        IntoRunnable as _, IntoTValue as _, TDim, TValue, TVec, Tensor as TractTensor, ToDim as _,
        TypedSimplePlan,
    },
    tract_hir::infer::Factoid as _,
};

use crate::{
    model::{Input, Signature, TensorSpec},
    tensor::{DataType, Element, Shape, Tensor},
};

use super::{Engine, LoadError, ModelFile, RunError, Session, SessionOptions, shortened};

const NAME: &str = "tract";

/// The engine; it has no state.
#[derive(Debug)]
pub struct Tract;

impl Engine for Tract {
    fn name(&self) -> &'static str {
        NAME
    }

    fn version(&self) -> String {
        "0.23".to_owned()
    }

    fn load(&self, file: &ModelFile, _: SessionOptions<'_>) -> Result<Box<dyn Session>, LoadError> {
        if !file.external.is_empty() {
            return Err(refused("external data is not supported by tract; use onnxruntime"));
        }
        // Malformed models have made it panic; that must cost this version only.
        let loaded = std::panic::catch_unwind(|| load(file));
        loaded.unwrap_or_else(|_| Err(refused("it panicked on this model")))
    }
}

fn refused(reason: &str) -> LoadError {
    LoadError::Refused { engine: NAME, reason: reason.to_owned() }
}

fn load(file: &ModelFile) -> Result<Box<dyn Session>, LoadError> {
    let error = |error: tract_onnx::prelude::TractError| refused(&shortened(&format!("{error:#}")));
    let mut model = tract_onnx::onnx().model_for_read(&mut &*file.bytes).map_err(error)?;
    name_open_dims(&mut model).map_err(error)?;
    let input_outlets = model.input_outlets().map_err(error)?.to_vec();
    let output_outlets = model.output_outlets().map_err(error)?.to_vec();
    let mut inputs = Vec::new();
    for (index, outlet) in input_outlets.iter().enumerate() {
        let name = model.node(outlet.node).name.clone();
        inputs.push(spec("input", name, model.input_fact(index).map_err(error)?)?);
    }
    let mut names = Vec::new();
    for outlet in &output_outlets {
        let label = model.outlet_label(*outlet).map(str::to_owned);
        names.push(label.unwrap_or_else(|| model.node(outlet.node).name.clone()));
    }
    let typed = model.into_optimized().map_err(error)?;
    let mut outputs = Vec::new();
    for (index, name) in names.into_iter().enumerate() {
        let fact = InferenceFact::from(typed.output_fact(index).map_err(error)?);
        outputs.push(spec("output", name, &fact)?);
    }
    let plan = typed.into_runnable().map_err(error)?;
    let signature = Signature { inputs, outputs, ..Signature::default() };
    Ok(Box::new(Loaded { plan, signature: file.summary.complete(signature) }))
}

/// tract refuses anonymous dimensions; each gets a symbol, one shared by every leading (batch) dimension.
fn name_open_dims(model: &mut InferenceModel) -> tract_onnx::prelude::TractResult<()> {
    for index in 0..model.input_outlets()?.len() {
        let fact = model.input_fact(index)?.clone();
        if fact.shape.is_open() {
            continue;
        }
        let dims: TVec<TDim> = fact
            .shape
            .dims()
            .enumerate()
            .map(|(axis, dim)| {
                dim.concretize().unwrap_or_else(|| {
                    let name = if axis == 0 { "N".to_owned() } else { format!("d{index}_{axis}") };
                    model.symbols.sym(&name).to_dim()
                })
            })
            .collect();
        model.set_input_fact(index, fact.with_shape(dims))?;
    }
    Ok(())
}

fn spec(role: &'static str, name: String, fact: &InferenceFact) -> Result<TensorSpec, LoadError> {
    let kind = fact.datum_type.concretize();
    let Some(datatype) = kind.and_then(datatype) else {
        let kind =
            kind.map_or_else(|| "of no known datatype".to_owned(), |kind| format!("{kind:?}"));
        let advice = "tract serves numbers and truth values only; use onnxruntime";
        return Err(LoadError::Unservable { role, name, kind, advice });
    };
    let dim = |dim: TDim| dim.to_i64().unwrap_or(-1);
    let dims = (!fact.shape.is_open())
        .then(|| fact.shape.dims().map(|d| d.concretize().map_or(-1, dim)).collect());
    Ok(TensorSpec::new(name, datatype, dims))
}

fn datatype(kind: DatumType) -> Option<DataType> {
    Some(match kind {
        DatumType::Bool => DataType::Bool,
        DatumType::U8 => DataType::Uint8,
        DatumType::U16 => DataType::Uint16,
        DatumType::U32 => DataType::Uint32,
        DatumType::U64 => DataType::Uint64,
        DatumType::I8 => DataType::Int8,
        DatumType::I16 => DataType::Int16,
        DatumType::I32 => DataType::Int32,
        DatumType::I64 | DatumType::TDim => DataType::Int64,
        DatumType::F16 => DataType::Fp16,
        DatumType::F32 => DataType::Fp32,
        DatumType::F64 => DataType::Fp64,
        _ => return None,
    })
}

struct Loaded {
    plan: Arc<TypedSimplePlan>,
    signature: Signature,
}

impl Session for Loaded {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn run(&mut self, inputs: Cow<'_, [Input]>, wanted: &[usize]) -> Result<Vec<Tensor>, RunError> {
        let values: TVec<TValue> =
            inputs.iter().map(|input| to_tract(&input.tensor)).collect::<Result<_, _>>()?;
        drop(inputs);
        let plan = &self.plan;
        let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| plan.run(values)));
        let outputs = run
            .map_err(|_| RunError::Failed("tract panicked in this run".to_owned()))?
            .map_err(|error| RunError::Inputs(shortened(&format!("{error:#}"))))?;
        wanted
            .iter()
            .map(|index| from_tract(&self.signature.outputs[*index], &outputs[*index]))
            .collect()
    }
}

fn to_tract(tensor: &Tensor) -> Result<TValue, RunError> {
    let shape: SmallDims =
        tensor.shape().iter().map(|dim| usize::try_from(*dim).unwrap_or(0)).collect();
    macro_rules! copied {
        ($rust:ty) => {{
            let values = tensor.view::<$rust>().expect("the view is of the tensor's own datatype");
            TractTensor::from_shape(&shape, &values)
        }};
    }
    let value = match tensor.datatype() {
        DataType::Bool => copied!(bool),
        DataType::Uint8 => copied!(u8),
        DataType::Uint16 => copied!(u16),
        DataType::Uint32 => copied!(u32),
        DataType::Uint64 => copied!(u64),
        DataType::Int8 => copied!(i8),
        DataType::Int16 => copied!(i16),
        DataType::Int32 => copied!(i32),
        DataType::Int64 => copied!(i64),
        DataType::Fp16 => copied!(half::f16),
        DataType::Fp32 => copied!(f32),
        DataType::Fp64 => copied!(f64),
        other @ (DataType::Bf16 | DataType::Bytes) => {
            return Err(RunError::Inputs(format!("tract does not take {other}")));
        }
    };
    value
        .map(TractTensor::into_tvalue)
        .map_err(|error| RunError::Inputs(shortened(&error.to_string())))
}

type SmallDims = smallvec::SmallVec<[usize; 6]>;

fn from_tract(spec: &TensorSpec, value: &TValue) -> Result<Tensor, RunError> {
    let wrong = || RunError::Output {
        name: spec.name.clone(),
        actual: format!("{:?}", value.datum_type()),
    };
    let kind = match value.datum_type() {
        DatumType::TDim => DatumType::I64,
        other => other,
    };
    let value = value.cast_to_dt(kind).map_err(|_| wrong())?;
    let dims: Option<Vec<i64>> = value.shape().iter().map(|dim| i64::try_from(*dim).ok()).collect();
    let shape = dims.and_then(|dims| Shape::new(&dims)).ok_or_else(wrong)?;
    let plain = value.try_as_plain_ram().map_err(|_| wrong())?;
    macro_rules! copied {
        ($rust:ty) => {
            <$rust>::wrap(plain.as_slice::<$rust>().map_err(|_| wrong())?.to_vec())
        };
    }
    let data = match datatype(kind).ok_or_else(wrong)? {
        DataType::Bool => copied!(bool),
        DataType::Uint8 => copied!(u8),
        DataType::Uint16 => copied!(u16),
        DataType::Uint32 => copied!(u32),
        DataType::Uint64 => copied!(u64),
        DataType::Int8 => copied!(i8),
        DataType::Int16 => copied!(i16),
        DataType::Int32 => copied!(i32),
        DataType::Int64 => copied!(i64),
        DataType::Fp32 => copied!(f32),
        DataType::Fp64 => copied!(f64),
        DataType::Fp16 => {
            let crate::tensor::Data::Raw(raw) = copied!(half::f16) else { return Err(wrong()) };
            return Tensor::from_raw(DataType::Fp16, shape, raw).map_err(|_| wrong());
        }
        DataType::Bf16 | DataType::Bytes => return Err(wrong()),
    };
    Tensor::new(shape, data).map_err(|_| wrong())
}
