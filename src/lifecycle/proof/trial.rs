//! What a version must show before it answers: the same in the process that proves it and in the one that serves.
//!
//! First a look at the file before an engine sees it, then runs: golden outputs are reproduced, and every sample
//! (`samples`) is run. Which values and shapes are right, only evidence can say:
//! - An output that a golden case lists must be what the case has, also if that is no finite number.
//! - Whatever else a run gives refuses nothing: numbers that are none, and shapes unlike the declared ones, are notes.
//!   They do refuse a version where the one that serves gives finite numbers on the very same inputs (`load`).
//!
//! A model that does not run on made-up inputs is not refused: they are no request that it must be able to answer. One
//! that runs out of memory on them is.
//!
//! Not here: reading files (`load`), the sandbox.

use std::time::Duration;

use crate::{
    engine::{
        self, Engine, RunError, Session,
        onnx::{self, Dim, ExternalTensor, Hazard, Summary, ValueType},
    },
    model::{Input, Signature, TensorSpec},
    monitor::Clock,
    tensor::{DataType, Element, Tensor},
};

use super::{
    super::{Golden, LoadFailure},
    samples::{Kind, Sample},
};

/// What the runs came to.
#[derive(Debug, Default)]
pub(crate) struct Warmed {
    /// All warm-up runs together.
    pub(crate) total: Duration,
    /// The fastest of them.
    pub(crate) fastest: Option<Duration>,
    /// What people should know.
    pub(crate) notes: Vec<String>,
    /// Outputs that are not numbers: a fault only where something else says so.
    pub(crate) not_numbers: Vec<NotNumber>,
    /// The index of the first sample that gives numbers, or else that runs.
    pub(crate) best: Option<usize>,
}

/// An output that is not a number, first of all at this element.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NotNumber {
    /// The index of the sample that was run.
    pub(crate) sample: usize,
    /// The index of the output.
    pub(crate) output: usize,
    pub(crate) element: usize,
    pub(crate) number: f64,
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

/// Inputs and expectations that a version is tried with.
#[derive(Clone, Copy)]
pub(crate) struct Trial<'a> {
    pub(crate) engine: &'a dyn Engine,
    /// The file's own declarations.
    pub(crate) summary: &'a Summary,
    /// Inputs and outputs as clients see them.
    pub(crate) signature: &'a Signature,
    pub(crate) golden: Option<&'a Golden>,
    pub(crate) samples: &'a [Sample],
}

impl Trial<'_> {
    /// Reproduces golden outputs, runs every sample once, then warms up on the first of them that gives numbers.
    pub(crate) fn run(
        &self,
        session: &mut dyn Session,
        runs: u32,
        clock: &dyn Clock,
    ) -> Result<Warmed, LoadFailure> {
        let Self { engine, summary, signature, golden, samples } = *self;
        let mut warmed = Warmed::default();
        match golden {
            Some(golden) => golden.check(session, signature)?,
            None if engine.name() == "tract" => warmed.notes.push(
                "tract runs this version unproven: add golden.json beside the model".to_owned(),
            ),
            None => {}
        }
        if samples.is_empty() && !signature.inputs.is_empty() {
            warmed.notes.push(
                "not warmed: its smallest input is too large to make up; add golden.json"
                    .to_owned(),
            );
            return Ok(warmed);
        }
        let mut findings = Findings::new(signature, summary, golden);
        findings.has_real = samples.first().is_some_and(|sample| !sample.kind.is_made_up());
        let (mut best, mut refusal) = (None, None);
        for (index, sample) in samples.iter().enumerate() {
            match warmed.time(session, &sample.inputs, clock)? {
                Ok(outputs) => {
                    let is_sound = findings.look_at(index, sample.kind, &outputs);
                    if best.is_none_or(|(_, was_sound): (usize, bool)| is_sound && !was_sound) {
                        best = Some((index, is_sound));
                    }
                }
                Err(error) => refusal = refusal.or(Some((sample.kind, error))),
            }
        }
        warmed.best = best.map(|(index, _)| index);
        if let Some(index) = warmed.best {
            (warmed.total, warmed.fastest) = (Duration::ZERO, None);
            for _ in 0..runs {
                // It ran before; where it does not now, requests will be told.
                drop(warmed.time(session, &samples[index].inputs, clock)?);
            }
        } else if let Some((kind, error)) = refusal {
            warmed
                .notes
                .push(format!("not warmed: it does not run on {kind} ({error}); add golden.json"));
        }
        warmed.notes.append(&mut findings.notes);
        if findings.further > 0 {
            warmed
                .notes
                .push(format!("{} more notes about outputs are left out", findings.further));
        }
        warmed.not_numbers = findings.not_numbers;
        Ok(warmed)
    }
}

impl Warmed {
    /// Runs the version; an error of the run is the inner one, unless memory ran out.
    fn time(
        &mut self,
        session: &mut dyn Session,
        inputs: &[Input],
        clock: &dyn Clock,
    ) -> Result<Result<Vec<Tensor>, RunError>, LoadFailure> {
        let wanted: Vec<usize> = (0..session.signature().outputs.len()).collect();
        let begin = clock.now();
        let outputs = match session.run(inputs.into(), &wanted) {
            Err(error) if engine::starved(&error.to_string()) => {
                return Err(LoadFailure::Memory(error.to_string()));
            }
            Err(error) => return Ok(Err(error)),
            Ok(outputs) => outputs,
        };
        let took = clock.now() - begin;
        self.total += took;
        self.fastest = Some(self.fastest.map_or(took, |fastest| fastest.min(took)));
        Ok(Ok(outputs))
    }
}

/// Findings in the outputs of the samples.
struct Findings<'a> {
    signature: &'a Signature,
    /// The outputs as the file declares them, where it does.
    declared: Vec<Option<&'a ValueType>>,
    golden: Option<&'a Golden>,
    /// The outputs that have a note about their numbers, and about their shape.
    told: Vec<(bool, bool)>,
    notes: Vec<String>,
    /// True if there are real inputs.
    has_real: bool,
    /// Notes that are left out.
    further: usize,
    not_numbers: Vec<NotNumber>,
}

/// Notes about outputs, of one version.
const NOTES_MAX: usize = 8;

impl<'a> Findings<'a> {
    fn new(signature: &'a Signature, summary: &'a Summary, golden: Option<&'a Golden>) -> Self {
        let of = |spec: &TensorSpec| summary.outputs.iter().find(|own| own.name == spec.name);
        let declared = signature.outputs.iter().map(|spec| of(spec).map(|own| &own.value_type));
        let declared = declared.collect();
        let told = vec![(false, false); signature.outputs.len()];
        Self {
            signature,
            declared,
            golden,
            told,
            notes: Vec::new(),
            has_real: false,
            further: 0,
            not_numbers: Vec::new(),
        }
    }

    fn note(&mut self, text: String) {
        if self.notes.len() < NOTES_MAX { self.notes.push(text) } else { self.further += 1 }
    }

    /// Notes what is unlike what the model declares, or no finite number; true if all are numbers.
    fn look_at(&mut self, sample: usize, kind: Kind, outputs: &[Tensor]) -> bool {
        let mut is_sound = true;
        // Beside real inputs, made-up ones say nothing to people.
        let is_told = !(self.has_real && kind.is_made_up());
        for (index, (spec, output)) in self.signature.outputs.iter().zip(outputs).enumerate() {
            let vouched = kind == Kind::Golden
                && self.golden.is_some_and(|golden| golden.vouches_for(&spec.name));
            let declared = self.declared[index];
            let declared = declared.filter(|_| is_told && !vouched && !self.told[index].1);
            if let Some(declared) = declared.and_then(|own| unlike(own, output)) {
                self.told[index].1 = true;
                self.note(format!(
                    "output `{}` came as {}{} on {kind}, the model declares {declared}; clients get what comes",
                    spec.name,
                    output.datatype(),
                    output.shape(),
                ));
            }
            let Some((element, number)) = not_finite(output).filter(|_| !vouched) else { continue };
            if number.is_nan() {
                is_sound = false;
                self.not_numbers.push(NotNumber { sample, output: index, element, number });
            }
            if is_told && !std::mem::replace(&mut self.told[index].0, true) {
                self.note(format!(
                    "output `{}` is {number} at element {element} on {kind}; golden.json can say what is right",
                    spec.name
                ));
            }
        }
        is_sound
    }
}

/// The declared shape of an output, if what came is unlike it.
fn unlike(declared: &ValueType, output: &Tensor) -> Option<String> {
    let ValueType::Tensor { dims: Some(dims), .. } = declared else { return None };
    let shape = output.shape();
    let fits = |(dim, own): (&Dim, &i64)| match dim {
        Dim::Fixed(size) => i64::try_from(*size) == Ok(*own),
        Dim::Named(_) | Dim::Open => true,
    };
    if dims.len() == shape.len() && dims.iter().zip(&**shape).all(fits) {
        return None;
    }
    let dims: Vec<_> = (dims.iter())
        .map(|dim| match dim {
            Dim::Fixed(size) => size.to_string(),
            Dim::Named(_) | Dim::Open => "-1".to_owned(),
        })
        .collect();
    Some(format!("[{}]", dims.join(",")))
}

/// The first element that is not a number, else the first that is infinite.
pub(crate) fn not_finite(tensor: &Tensor) -> Option<(usize, f64)> {
    let numbers = numbers(tensor);
    let find = |wrong: fn(&f64) -> bool| numbers.iter().position(wrong);
    let index = find(|number| number.is_nan()).or_else(|| find(|number| number.is_infinite()))?;
    Some((index, numbers[index]))
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
