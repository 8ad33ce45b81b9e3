//! Inputs to run a version with before it answers: real ones where its publisher left some, made-up ones otherwise.
//!
//! In this order: the first golden case, the requests of `model_warmup`, ones, small random values, zeros. Ones and
//! small values come before zeros because zeros are the least like a request: a mask of zeros divides by nothing, a
//! row of equal values has no spread.
//!
//! Not here: running them and what follows (`trial`), other sizes (`probes`).

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    model::{Input, ModelDescription, Signature, TensorSpec, WarmupData, WarmupInput},
    tensor::{Data, DataType, Shape, Strings, Tensor},
    wire,
};

use super::super::Golden;

/// Elements of one made-up input.
const ELEMENTS_MAX: usize = 1 << 24;

/// Inputs in the signature's order.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) kind: Kind,
    pub(crate) inputs: Vec<Input>,
}

/// The origin of a sample, as a message names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The first case of `golden.json`.
    Golden,
    /// A request of `model_warmup`.
    Described,
    /// Ones everywhere.
    Ones,
    /// Small values in no order.
    Small,
    /// Zeros everywhere, or empty strings.
    Zeros,
}

impl Kind {
    /// True unless a publisher left it.
    pub(crate) fn is_made_up(self) -> bool {
        matches!(self, Self::Ones | Self::Small | Self::Zeros)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Golden => "the inputs of golden.json",
            Self::Described => "the inputs of model_warmup",
            Self::Ones => "made-up inputs (ones)",
            Self::Small => "made-up inputs (small random values)",
            Self::Zeros => "made-up inputs (zeros)",
        })
    }
}

/// The samples of a version, best first; made-up ones are left out where an input is too large to make up.
pub(crate) fn samples(
    signature: &Signature,
    golden: Option<&Golden>,
    described: &Described,
) -> Vec<Sample> {
    let golden = golden.and_then(|golden| golden.first_inputs(signature));
    let golden = golden.map(|inputs| Sample { kind: Kind::Golden, inputs });
    let fitting = described.inputs().into_iter().filter_map(|request| {
        let mut inputs = request?;
        signature.arrange(&mut inputs, false).ok()?;
        Some(Sample { kind: Kind::Described, inputs })
    });
    let made_up = [Kind::Ones, Kind::Small, Kind::Zeros].into_iter().filter_map(|kind| {
        let mut values = Values::of(kind);
        let inputs = signature.inputs.iter().map(|spec| made_up_input(spec, &mut values));
        Some(Sample { kind, inputs: inputs.collect::<Option<_>>()? })
    });
    golden.into_iter().chain(fitting).chain(made_up).collect()
}

/// An input of `model_warmup` as it is handed to the process that proves.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Blank {
    name: String,
    datatype: String,
    dims: Vec<i64>,
    fill: Fill,
}

/// The elements of an input of `model_warmup`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Fill {
    Zeros,
    Small,
    /// The next of the files.
    File,
}

/// The requests of `model_warmup`, and the files that they take in their order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Described {
    pub(crate) requests: Vec<Vec<Blank>>,
    pub(crate) files: Vec<Bytes>,
}

impl Described {
    /// The requests of a description; those whose files could not be read are left out.
    pub(crate) fn of(description: &ModelDescription) -> Self {
        let mut all = Self::default();
        for warmup in &description.warmup {
            let inputs = || warmup.inputs.iter();
            let files = inputs().filter_map(|(_, input)| match &input.data {
                WarmupData::File(_, bytes) => Some(bytes.clone()),
                WarmupData::Zero | WarmupData::Random => None,
            });
            if let Some(files) = files.collect::<Option<Vec<_>>>() {
                let rows = warmup.batch_size;
                let blanks = inputs().map(|(name, input)| Blank::new(name, input, rows));
                all.requests.push(blanks.collect());
                all.files.extend(files);
            }
        }
        all
    }

    /// The inputs of each request; `None` for one that cannot be made.
    fn inputs(&self) -> Vec<Option<Vec<Input>>> {
        let mut files = self.files.iter();
        let mut filled = |blank: &Blank| {
            let file = if blank.fill == Fill::File { Some(files.next()?) } else { None };
            Some(blank.filled(file))
        };
        let requests = self.requests.iter();
        let filled = requests.map(|request| {
            // Each takes its files, whether or not the others can be made.
            let inputs: Vec<_> = request.iter().map(&mut filled).collect();
            inputs.into_iter().map(Option::flatten).collect()
        });
        filled.collect()
    }
}

impl Blank {
    /// The input with its batch.
    fn new(name: &str, input: &WarmupInput, batch_size: u32) -> Self {
        // Its dimensions leave the batch out; without one the size is 0.
        let rows = (batch_size > 0).then_some(i64::from(batch_size));
        Self {
            name: name.to_owned(),
            datatype: input.datatype.name().to_owned(),
            dims: rows.into_iter().chain(input.dims.iter().copied()).collect(),
            fill: match &input.data {
                WarmupData::Zero => Fill::Zeros,
                WarmupData::Random => Fill::Small,
                WarmupData::File(..) => Fill::File,
            },
        }
    }

    fn filled(&self, file: Option<&Bytes>) -> Option<Input> {
        let (datatype, shape) = (DataType::parse(&self.datatype)?, Shape::new(&self.dims)?);
        let tensor = match (file, datatype) {
            (Some(file), DataType::Bytes) => {
                let strings = wire::v2::strings(file, shape.element_count()?).ok()?;
                Tensor::new(shape, Data::Bytes(strings)).ok()?
            }
            (Some(file), _) => Tensor::from_raw(datatype, shape, file.clone()).ok()?,
            (None, _) => {
                let kind = if self.fill == Fill::Zeros { Kind::Zeros } else { Kind::Small };
                filled(datatype, &shape, &mut Values::of(kind))?
            }
        };
        Some(Input { name: self.name.clone(), tensor })
    }
}

/// A made-up input, 1 for every open dimension; `None` if that is too much to make up.
fn made_up_input(spec: &TensorSpec, values: &mut Values) -> Option<Input> {
    // The model's own: what a description makes of them is for clients.
    let dims = spec.dims.as_deref().unwrap_or(&[-1]).iter();
    let dims: Vec<i64> = dims.map(|dim| if *dim < 0 { 1 } else { *dim }).collect();
    let tensor = filled(spec.datatype, &Shape::new(&dims)?, values)?;
    Some(Input { name: spec.name.clone(), tensor })
}

fn filled(datatype: DataType, shape: &Shape, values: &mut Values) -> Option<Tensor> {
    let count = shape.element_count().filter(|count| *count <= ELEMENTS_MAX)?;
    if datatype.size().is_none() {
        let mut strings = Strings::with_capacity(count, count);
        (0..count).for_each(|_| strings.push(&values.next(datatype)));
        return Tensor::new(shape.clone(), Data::Bytes(strings)).ok();
    }
    let mut raw = Vec::with_capacity(count * datatype.size().unwrap_or(0));
    (0..count).for_each(|_| raw.extend(values.next(datatype)));
    Tensor::from_raw(datatype, shape.clone(), raw.into()).ok()
}

/// The elements of made-up inputs, one after the other: the same for every version.
struct Values {
    kind: Kind,
    /// The state of a generator (`SplitMix64`, Steele, Lea and Flood 2014).
    state: u64,
}

impl Values {
    fn of(kind: Kind) -> Self {
        Self { kind, state: 17 }
    }

    /// The bytes of the next element; text is a digit, or empty for zero.
    fn next(&mut self, datatype: DataType) -> Vec<u8> {
        match (self.kind, datatype) {
            (Kind::Zeros, DataType::Bytes) => Vec::new(),
            (Kind::Zeros, _) => number(datatype, 0),
            (Kind::Small, _) => {
                self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                small(datatype, u8::try_from((mixed ^ (mixed >> 27)) >> 61).unwrap_or(0))
            }
            _ => one(datatype),
        }
    }
}

/// The bytes of 1.
pub(super) fn one(datatype: DataType) -> Vec<u8> {
    number(datatype, 1)
}

/// The bytes of a small number; of a fraction that is not 0 where the datatype has them.
fn small(datatype: DataType, eighths: u8) -> Vec<u8> {
    let float = (f32::from(eighths) + 1.0) / 8.0;
    match datatype {
        DataType::Fp16 => half::f16::from_f32(float).to_le_bytes().to_vec(),
        DataType::Bf16 => half::bf16::from_f32(float).to_le_bytes().to_vec(),
        DataType::Fp32 => float.to_le_bytes().to_vec(),
        DataType::Fp64 => f64::from(float).to_le_bytes().to_vec(),
        _ => number(datatype, eighths),
    }
}

/// The bytes of a whole number below 10; of its last bit for BOOL, of its digit for BYTES.
fn number(datatype: DataType, number: u8) -> Vec<u8> {
    let float = f32::from(number);
    match datatype {
        DataType::Bool => vec![number & 1],
        DataType::Fp16 => half::f16::from_f32(float).to_le_bytes().to_vec(),
        DataType::Bf16 => half::bf16::from_f32(float).to_le_bytes().to_vec(),
        DataType::Fp32 => float.to_le_bytes().to_vec(),
        DataType::Fp64 => f64::from(number).to_le_bytes().to_vec(),
        DataType::Bytes => vec![b'0' + number % 10],
        _ => {
            let mut bytes = vec![0; datatype.size().unwrap_or(1)];
            bytes[0] = number;
            bytes
        }
    }
}
