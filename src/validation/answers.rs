//! Outputs read as answers: which output has the prediction, and its values.

use half::{bf16, f16};

use crate::{
    model::TensorSpec,
    tensor::{DataType, Strings, Tensor},
};

use super::{Request, Subject, Task, ValidationError, survey::LabelKind, survey::Survey};

/// Ways in which outputs hold a version's prediction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    /// An output with the class itself, and another with a score for each class.
    Label { output: usize, scores: Option<usize> },
    /// An output with a score for each class: the largest one is it. With one score a row, that of the second of two
    /// classes, it is from 1/2 on.
    Scores { output: usize },
    /// An output with the number itself.
    Number { output: usize },
}

/// Finds out what is predicted, and where.
pub(super) fn reading(
    request: &Request,
    subject: &Subject<'_>,
    survey: &Survey,
) -> Result<(Task, Reading), ValidationError> {
    let outputs = &subject.signature.outputs;
    let has_rows = subject.rows_max > 0;
    let chosen = match &request.output {
        Some(name) => Some(subject.signature.output(name).map_err(|error| {
            ValidationError::Outputs(format!("version {}: {error}", subject.version))
        })?),
        None => None,
    };
    let of = |test: &dyn Fn(&TensorSpec) -> bool| -> Vec<usize> {
        (0..outputs.len()).filter(|index| test(&outputs[*index])).collect()
    };
    let is_label = |spec: &TensorSpec| {
        matches!(spec.datatype, DataType::Int64 | DataType::Bytes)
            && width(spec, has_rows) != Width::Many
    };
    let labels = chosen.map_or_else(|| of(&is_label), |output| vec![output]);
    let floating = of(&|spec| is_floating(spec.datatype));
    let scores = floating.as_slice();
    let reading = match (labels.as_slice(), scores) {
        ([output], scores) if !is_floating(outputs[*output].datatype) => {
            let scores = if let [one] = scores { Some(*one) } else { None };
            Reading::Label { output: *output, scores }
        }
        ([output], _) | ([], [output]) => Reading::Scores { output: *output },
        _ => return Err(unclear(subject)),
    };
    Ok(settled(request.task, reading, subject, survey, has_rows))
}

fn settled(
    task: Option<Task>,
    reading: Reading,
    subject: &Subject<'_>,
    survey: &Survey,
    has_rows: bool,
) -> (Task, Reading) {
    let (output, is_class) = match reading {
        Reading::Label { output, .. } | Reading::Number { output } => (output, true),
        Reading::Scores { output } => {
            let one = width(&subject.signature.outputs[output], has_rows) == Width::One;
            // One number a row, and labels that are not classes of two, is a regression.
            (output, !one || matches!(survey.kind, LabelKind::Text | LabelKind::Binary))
        }
    };
    let inferred = if is_class { Task::Classification } else { Task::Regression };
    match task.unwrap_or(inferred) {
        Task::Classification => (Task::Classification, reading),
        Task::Regression => (Task::Regression, Reading::Number { output }),
    }
}

fn unclear(subject: &Subject<'_>) -> ValidationError {
    let outputs: Vec<_> = subject.signature.outputs.iter().map(TensorSpec::summary).collect();
    ValidationError::Outputs(format!(
        "version {} does not say which output is its prediction ({}); name it with --output",
        subject.version,
        outputs.join(", ")
    ))
}

/// Values of an output for each row, as far as its declaration says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Width {
    One,
    Many,
    Open,
}

fn width(spec: &TensorSpec, has_rows: bool) -> Width {
    let Some(dims) = &spec.dims else { return Width::Open };
    let dims =
        if has_rows || dims.first() == Some(&1) { dims.get(1..).unwrap_or_default() } else { dims };
    match dims.iter().product::<i64>() {
        _ if dims.iter().any(|dim| *dim < 0) => Width::Open,
        1 => Width::One,
        _ => Width::Many,
    }
}

fn is_floating(datatype: DataType) -> bool {
    matches!(datatype, DataType::Fp16 | DataType::Bf16 | DataType::Fp32 | DataType::Fp64)
}

/// The elements as numbers; `None` for text.
pub(super) fn numbers(tensor: &Tensor) -> Option<Vec<f64>> {
    macro_rules! wide {
        ($element:ty, $convert:expr) => {
            tensor.view::<$element>().ok()?.iter().map($convert).collect()
        };
    }
    #[expect(clippy::cast_precision_loss, reason = "a number that is predicted is a measure")]
    Some(match tensor.datatype() {
        DataType::Bool => wide!(bool, |v| f64::from(u8::from(*v))),
        DataType::Uint8 => wide!(u8, |v| f64::from(*v)),
        DataType::Uint16 => wide!(u16, |v| f64::from(*v)),
        DataType::Uint32 => wide!(u32, |v| f64::from(*v)),
        DataType::Uint64 => wide!(u64, |v| *v as f64),
        DataType::Int8 => wide!(i8, |v| f64::from(*v)),
        DataType::Int16 => wide!(i16, |v| f64::from(*v)),
        DataType::Int32 => wide!(i32, |v| f64::from(*v)),
        DataType::Int64 => wide!(i64, |v| *v as f64),
        DataType::Fp16 => wide!(f16, |v| f64::from(*v)),
        DataType::Bf16 => wide!(bf16, |v| f64::from(*v)),
        DataType::Fp32 => wide!(f32, |v| f64::from(*v)),
        DataType::Fp64 => wide!(f64, |v| *v),
        DataType::Bytes => return None,
    })
}

/// The elements as classes are spelled: whole numbers and truth values as they are, text trimmed.
pub(super) fn classes(tensor: &Tensor) -> Vec<String> {
    macro_rules! spelled {
        ($element:ty) => {
            tensor
                .view::<$element>()
                .map(|all| all.iter().map(ToString::to_string).collect())
                .unwrap_or_default()
        };
    }
    match tensor.datatype() {
        DataType::Bool => spelled!(bool),
        DataType::Uint8 => spelled!(u8),
        DataType::Uint16 => spelled!(u16),
        DataType::Uint32 => spelled!(u32),
        DataType::Uint64 => spelled!(u64),
        DataType::Int8 => spelled!(i8),
        DataType::Int16 => spelled!(i16),
        DataType::Int32 => spelled!(i32),
        DataType::Int64 => spelled!(i64),
        _ => {
            let strings = tensor.strings().into_iter().flat_map(Strings::iter);
            strings.map(|text| super::survey::spelling(&String::from_utf8_lossy(text))).collect()
        }
    }
}
