//! What a model declares about its inputs and outputs: names, types, dimensions.
//!
//! Not here: the signature that requests are checked against (`model::Signature`, filled by the engine).

use std::fmt;

use crate::tensor::DataType;

use super::{Limits, OnnxError, at_most, wire::Fields};

/// An input or output of the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// Its name.
    pub name: String,
    /// Its type.
    pub value_type: ValueType,
}

/// The type of an input or output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ValueType {
    /// A tensor.
    Tensor {
        /// The type of its elements.
        element: ElementType,
        /// Its dimensions; `None` where even the rank is not declared.
        dims: Option<Vec<Dim>>,
    },
    /// A sparse tensor.
    SparseTensor {
        /// The type of its elements.
        element: ElementType,
        /// Its dimensions; `None` where even the rank is not declared.
        dims: Option<Vec<Dim>>,
    },
    /// A sequence of values of one type.
    Sequence(Box<ValueType>),
    /// A map, such as from class to probability.
    Map {
        /// The type of the keys.
        key: ElementType,
        /// The type of the values.
        value: Box<ValueType>,
    },
    /// A value that may be absent.
    Optional(Box<ValueType>),
    /// A type that the model describes nowhere.
    Opaque,
    /// No type is declared.
    Undeclared,
}

/// A declared dimension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dim {
    /// Always this.
    Fixed(u64),
    /// Open, but equal wherever the name is.
    Named(String),
    /// Open.
    Open,
}

/// ONNX's code for an element type; unknown ones are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ElementType(pub i32);

/// Names and bits per element, by code. A type of no fixed size or packing has 0 bits.
///
/// Source: ONNX, `TensorProto.DataType`.
const ELEMENT_TYPES: [(&str, u8); 29] = [
    ("UNDEFINED", 0),
    ("FLOAT", 32),
    ("UINT8", 8),
    ("INT8", 8),
    ("UINT16", 16),
    ("INT16", 16),
    ("INT32", 32),
    ("INT64", 64),
    ("STRING", 0),
    ("BOOL", 8),
    ("FLOAT16", 16),
    ("DOUBLE", 64),
    ("UINT32", 32),
    ("UINT64", 64),
    ("COMPLEX64", 64),
    ("COMPLEX128", 128),
    ("BFLOAT16", 16),
    ("FLOAT8E4M3FN", 8),
    ("FLOAT8E4M3FNUZ", 8),
    ("FLOAT8E5M2", 8),
    ("FLOAT8E5M2FNUZ", 8),
    ("UINT4", 4),
    ("INT4", 4),
    ("FLOAT4E2M1", 4),
    ("FLOAT8E8M0", 8),
    ("UINT2", 2),
    ("INT2", 2),
    ("FLOAT6E2M3", 0),
    ("FLOAT6E3M2", 0),
];

impl ElementType {
    pub(super) const STRING: Self = Self(8);

    /// ONNX's name, such as `FLOAT`; `None` for an unknown code.
    pub fn name(self) -> Option<&'static str> {
        let index = usize::try_from(self.0).ok()?;
        ELEMENT_TYPES.get(index).map(|(name, _)| *name)
    }

    /// The datatype under which the protocol carries it, if it does.
    pub fn datatype(self) -> Option<DataType> {
        Some(match self.0 {
            1 => DataType::Fp32,
            2 => DataType::Uint8,
            3 => DataType::Int8,
            4 => DataType::Uint16,
            5 => DataType::Int16,
            6 => DataType::Int32,
            7 => DataType::Int64,
            8 => DataType::Bytes,
            9 => DataType::Bool,
            10 => DataType::Fp16,
            11 => DataType::Fp64,
            12 => DataType::Uint32,
            13 => DataType::Uint64,
            16 => DataType::Bf16,
            _ => return None,
        })
    }

    /// The bytes of `elements` of it, packed; `None` where it has no fixed size or they do not fit.
    pub(super) fn packed_bytes(self, elements: u64) -> Option<u64> {
        let (_, bits) = ELEMENT_TYPES.get(usize::try_from(self.0).ok()?)?;
        match bits {
            0 => None,
            bits @ (2 | 4) => Some(elements.div_ceil(8 / u64::from(*bits))),
            bits => elements.checked_mul(u64::from(bits / 8)),
        }
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "type {}", self.0),
        }
    }
}

/// Without dimensions: `sequence of map of INT64 to tensor of FLOAT`.
impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tensor { element, .. } => write!(f, "tensor of {element}"),
            Self::SparseTensor { element, .. } => write!(f, "sparse tensor of {element}"),
            Self::Sequence(of) => write!(f, "sequence of {of}"),
            Self::Map { key, value } => write!(f, "map of {key} to {value}"),
            Self::Optional(of) => write!(f, "optional {of}"),
            Self::Opaque => f.write_str("opaque value"),
            Self::Undeclared => f.write_str("value of undeclared type"),
        }
    }
}

/// A `ValueInfoProto`.
pub(super) fn declared(mut fields: Fields<'_>, limits: &Limits) -> Result<Declared, OnnxError> {
    let (mut name, mut value_type, mut typed) = ("", ValueType::Undeclared, false);
    while let Some(field) = fields.advance()? {
        match field.number {
            1 => name = field.text(limits.name_bytes)?,
            2 => value_type = type_of(field.sole_message(&mut typed)?, limits, 1)?,
            _ => {}
        }
    }
    Ok(Declared { name: name.to_owned(), value_type })
}

/// A `TypeProto`; `level` 1 is the outermost.
pub(super) fn type_of(
    mut fields: Fields<'_>,
    limits: &Limits,
    level: usize,
) -> Result<ValueType, OnnxError> {
    at_most("levels of nested types", level, limits.type_levels)?;
    let (mut value_type, mut seen) = (ValueType::Undeclared, false);
    while let Some(field) = fields.advance()? {
        // One of these at most: they are protobuf's `oneof`.
        let mut sole = || field.sole_message(&mut seen);
        value_type = match field.number {
            1 => {
                let (element, dims) = tensor_type(sole()?, limits)?;
                ValueType::Tensor { element, dims }
            }
            4 => ValueType::Sequence(element_type(sole()?, limits, level)?.1),
            5 => {
                let (key, value) = element_type(sole()?, limits, level)?;
                ValueType::Map { key, value }
            }
            7 => {
                field.skim()?;
                sole().map(|_| ValueType::Opaque)?
            }
            8 => {
                let (element, dims) = tensor_type(sole()?, limits)?;
                ValueType::SparseTensor { element, dims }
            }
            9 => ValueType::Optional(element_type(sole()?, limits, level)?.1),
            _ => continue,
        };
    }
    Ok(value_type)
}

/// `Tensor` or `SparseTensor` of a `TypeProto`.
fn tensor_type(
    mut fields: Fields<'_>,
    limits: &Limits,
) -> Result<(ElementType, Option<Vec<Dim>>), OnnxError> {
    let (mut element, mut dims, mut seen) = (ElementType(0), None, false);
    while let Some(field) = fields.advance()? {
        match field.number {
            1 => element = ElementType(field.int32()?),
            2 => dims = Some(shape(field.sole_message(&mut seen)?, limits)?),
            _ => {}
        }
    }
    Ok((element, dims))
}

/// `Sequence`, `Map` or `Optional` of a `TypeProto`: the key (of a map only) and the inner type.
fn element_type(
    mut fields: Fields<'_>,
    limits: &Limits,
    level: usize,
) -> Result<(ElementType, Box<ValueType>), OnnxError> {
    // A map has its key as field 1 and its value as field 2, the others only an element as field 1.
    let (mut key, mut inner, mut seen) = (ElementType(0), ValueType::Undeclared, false);
    while let Some(field) = fields.advance()? {
        match field.number {
            1 if field.is_number() => key = ElementType(field.int32()?),
            1 | 2 => inner = type_of(field.sole_message(&mut seen)?, limits, level + 1)?,
            _ => {}
        }
    }
    Ok((key, Box::new(inner)))
}

/// A `TensorShapeProto`.
fn shape(mut fields: Fields<'_>, limits: &Limits) -> Result<Vec<Dim>, OnnxError> {
    let mut dims = Vec::new();
    while let Some(field) = fields.advance()? {
        if field.number == 1 {
            at_most("dimensions", dims.len() + 1, limits.rank)?;
            dims.push(dimension(field.message()?, limits)?);
        }
    }
    Ok(dims)
}

fn dimension(mut fields: Fields<'_>, limits: &Limits) -> Result<Dim, OnnxError> {
    let mut dim = Dim::Open;
    while let Some(field) = fields.advance()? {
        match field.number {
            // Some exporters write an open dimension as a negative number.
            1 => dim = u64::try_from(field.int64()?).map_or(Dim::Open, Dim::Fixed),
            2 => {
                let name = field.text(limits.name_bytes)?;
                dim = if name.is_empty() { Dim::Open } else { Dim::Named(name.to_owned()) };
            }
            _ => {}
        }
    }
    Ok(dim)
}
