//! What a version must show before it answers: the same in the process that proves it and in the one that serves.
//!
//! First a look at the file before an engine sees it, then runs: golden outputs are reproduced, and warm-up runs
//! give outputs of the declared datatypes and shapes with numbers in them. Which numbers are right, only
//! `golden.json` can say:
//! - An output that a golden case lists is right as the case has it, also if that is no finite number.
//! - On golden inputs, any other floating-point output must be finite.
//! - On made-up inputs (zeros, where there is no `golden.json`) "not a number" is refused, and infinity is noted:
//!   the logarithm of nothing is infinite in sound models, while what is not a number rarely was meant.
//!
//! A model that does not run on made-up inputs is not refused: zeros are not a request that it must be able to answer.
//!
//! Not here: reading files (`load`), the sandbox.

use std::time::Duration;

use crate::{
    engine::{
        Engine, RunError, Session,
        onnx::{self, ExternalTensor, Hazard, Summary},
    },
    model::{Input, Signature, TensorSpec},
    monitor::Clock,
    tensor::{Data, DataType, Element, Shape, Strings, Tensor},
};

use super::super::{Golden, LoadFailure};

/// What the runs came to.
#[derive(Debug, Default)]
pub(crate) struct Warmed {
    /// All warm-up runs together.
    pub(crate) total: Duration,
    /// The fastest of them.
    pub(crate) fastest: Option<Duration>,
    /// What people should know.
    pub(crate) notes: Vec<String>,
}

/// A look at the file before an engine sees it: what it holds, and what must be kept from it.
pub(crate) fn preflight(model: &[u8]) -> Result<(Summary, Vec<Hazard>), LoadFailure> {
    let limits = onnx::Limits::default();
    let summary = onnx::summarize(model, &limits)?;
    let foreign = onnx::unsupported_domains(&summary);
    if !foreign.is_empty() {
        return Err(LoadFailure::Operators(foreign.join("; ")));
    }
    let hazards = onnx::check_operators(model, &limits)?;
    Ok((summary, hazards))
}

/// Whether a file that external data lie in is as long as the model says.
pub(crate) fn external_fits(tensor: &ExternalTensor, actual: u64) -> Result<(), LoadFailure> {
    let length = tensor.length.or(tensor.bytes_needed).unwrap_or(0);
    let needed = tensor.offset.saturating_add(length);
    if needed <= actual {
        return Ok(());
    }
    let (tensor, location) = (tensor.tensor.clone(), tensor.location.clone());
    Err(LoadFailure::ExternalData { tensor, location, needed, actual })
}

/// Golden outputs, then warm-up.
pub(crate) fn run(
    engine: &dyn Engine,
    session: &mut dyn Session,
    golden: Option<&Golden>,
    runs: u32,
    clock: &dyn Clock,
) -> Result<Warmed, LoadFailure> {
    let mut warmed = Warmed::default();
    match golden {
        Some(golden) => golden.check(session)?,
        None if engine.name() == "tract" => warmed.notes.push(
            "tract runs this version unproven: add golden.json beside the model (tract gives wrong labels for some \
             two-class forests)"
                .to_owned(),
        ),
        None => {}
    }
    let signature = session.signature().clone();
    let Some((inputs, is_real)) = sample(&signature, golden) else {
        warmed.notes.push(
            "not warmed: its smallest input is too large to make up; add golden.json".to_owned(),
        );
        return Ok(warmed);
    };
    let golden = golden.filter(|_| is_real);
    warm(session, &signature, &inputs, golden, runs, clock, &mut warmed)?;
    Ok(warmed)
}

/// Inputs to run a version with, and whether they are golden ones or made up; `None` if they are too large to make up.
pub(crate) fn sample(signature: &Signature, golden: Option<&Golden>) -> Option<(Vec<Input>, bool)> {
    if let Some(real) = golden.and_then(|golden| golden.first_inputs(signature)) {
        return Some((real, true));
    }
    let made_up = signature.inputs.iter().map(made_up_input).collect::<Option<_>>()?;
    Some((made_up, false))
}

/// Runs a version on ordinary values; whatever it answers, the process must go on and its memory suffice.
pub(crate) fn survive(session: &mut dyn Session, inputs: &[Input]) -> Result<(), LoadFailure> {
    let outputs = session.signature().outputs.len();
    let lacks = |inputs: &[Input]| inputs.len() < session.signature().inputs.len();
    if lacks(inputs) {
        return Ok(());
    }
    let wanted: Vec<usize> = (0..outputs).collect();
    match session.run(inputs.into(), &wanted) {
        Err(error) if starved(&error.to_string()) => Err(LoadFailure::Memory(error.to_string())),
        _ => Ok(()),
    }
}

fn warm(
    session: &mut dyn Session,
    signature: &Signature,
    inputs: &[Input],
    golden: Option<&Golden>,
    runs: u32,
    clock: &dyn Clock,
    warmed: &mut Warmed,
) -> Result<(), LoadFailure> {
    let wanted: Vec<usize> = (0..signature.outputs.len()).collect();
    let (mut total, mut fastest) = (Duration::ZERO, None::<Duration>);
    for round in 0..runs {
        let begin = clock.now();
        let outputs = match session.run(inputs.into(), &wanted) {
            Ok(outputs) => outputs,
            Err(error) if starved(&error.to_string()) => {
                return Err(LoadFailure::Memory(error.to_string()));
            }
            Err(error) => {
                warmed.notes.push(not_warmed(golden.is_some(), &error));
                return Ok(());
            }
        };
        let took = clock.now() - begin;
        total += took;
        fastest = Some(fastest.map_or(took, |fastest| fastest.min(took)));
        if round == 0 {
            for (spec, output) in signature.outputs.iter().zip(&outputs) {
                check_output(spec, output, golden, &mut warmed.notes)?;
            }
        }
    }
    (warmed.total, warmed.fastest) = (total, fastest);
    Ok(())
}

fn not_warmed(golden: bool, error: &RunError) -> String {
    let what = if golden { "golden" } else { "made-up" };
    format!("not warmed: it does not run on {what} inputs ({error}); add golden.json")
}

/// Whether an engine's words mean that memory ran out.
pub(crate) fn starved(text: &str) -> bool {
    let signs = [
        "Failed to allocate memory",
        "bad_alloc",
        "bad allocation",
        "memory allocation of",
        "Cannot allocate memory",
    ];
    signs.iter().any(|sign| text.contains(sign))
}

fn check_output(
    spec: &TensorSpec,
    output: &Tensor,
    golden: Option<&Golden>,
    notes: &mut Vec<String>,
) -> Result<(), LoadFailure> {
    let dims = spec.dims.as_deref();
    let fits = dims.is_none_or(|dims| {
        dims.len() == output.shape().len()
            && dims.iter().zip(&**output.shape()).all(|(dim, own)| *dim < 0 || dim == own)
    });
    if spec.datatype != output.datatype() || !fits {
        return Err(LoadFailure::WrongShape {
            output: spec.name.clone(),
            declared: format!("{}{:?}", spec.datatype, dims.unwrap_or_default()),
            actual: format!("{}{}", output.datatype(), output.shape()),
        });
    }
    if golden.is_some_and(|golden| golden.vouches_for(&spec.name)) {
        return Ok(());
    }
    let numbers = numbers(output);
    let find = |wrong: fn(&f64) -> bool| numbers.iter().position(wrong);
    let name = &spec.name;
    let refused = |index: usize| LoadFailure::NotFinite {
        output: name.clone(),
        number: numbers[index],
        index,
        inputs: if golden.is_some() { "golden" } else { "made-up" },
    };
    if let Some(index) = find(|number| number.is_nan()) {
        return Err(refused(index));
    }
    match find(|number| number.is_infinite()) {
        Some(index) if golden.is_some() => Err(refused(index)),
        Some(_) => {
            notes.push(format!(
                "output `{name}` is infinite on made-up inputs; add golden.json to show what is right"
            ));
            Ok(())
        }
        None => Ok(()),
    }
}

/// The elements of a floating-point tensor; none of any other.
fn numbers(tensor: &Tensor) -> Vec<f64> {
    fn all<T: Element>(tensor: &Tensor, wide: impl Fn(&T) -> f64) -> Vec<f64> {
        tensor.view::<T>().map(|all| all.iter().map(wide).collect()).unwrap_or_default()
    }
    match tensor.datatype() {
        DataType::Fp16 => all::<half::f16>(tensor, |number| number.to_f64()),
        DataType::Bf16 => all::<half::bf16>(tensor, |number| number.to_f64()),
        DataType::Fp32 => all::<f32>(tensor, |number| f64::from(*number)),
        DataType::Fp64 => all::<f64>(tensor, |number| *number),
        _ => Vec::new(),
    }
}

/// Zeros, or empty strings, with 1 for every open dimension; `None` if that is too much to make up.
fn made_up_input(spec: &TensorSpec) -> Option<Input> {
    const ELEMENTS_MAX: usize = 1 << 24;
    let dims: Vec<i64> =
        spec.protocol_dims().iter().map(|dim| if *dim < 0 { 1 } else { *dim }).collect();
    let shape = Shape::new(&dims)?;
    let count = shape.element_count().filter(|count| *count <= ELEMENTS_MAX)?;
    let tensor = if let Some(size) = spec.datatype.size() {
        Tensor::from_raw(spec.datatype, shape, vec![0; count * size].into())
    } else {
        let strings = std::iter::repeat_n("", count).collect::<Strings>();
        Tensor::new(shape, Data::Bytes(strings))
    };
    Some(Input { name: spec.name.clone(), tensor: tensor.ok()? })
}
