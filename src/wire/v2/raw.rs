//! Binary tensors: BYTES with their length prefixes, and requests that are nothing but one tensor's bytes.
//!
//! Source: Triton's binary tensor data extension, "Raw Binary Request".

use bytes::Bytes;

use crate::{
    model::{InferRequest, Input, Signature, TensorSpec},
    tensor::{Data, DataType, Shape, Strings, Tensor},
};

use super::{DecodeError, error::shown};

/// Reads a raw request: the whole body is the model's only input, a batch of one if `batched`.
///
/// The shape is the model's; one dimension may be open and follows from the number of bytes. Of BYTES the
/// body is one string, without a length. All outputs come back in binary form.
pub fn decode_raw_infer(
    body: &Bytes,
    signature: &Signature,
    batched: bool,
) -> Result<InferRequest, DecodeError> {
    let [spec] = &signature.inputs[..] else {
        return Err(DecodeError::Request(format!(
            "a raw request needs a model with 1 input, this one has {}; send JSON",
            signature.inputs.len()
        )));
    };
    let wrong = |problem| DecodeError::Input { input: shown(&spec.name), problem };
    let shape = shape(spec, body.len(), batched)?;
    let tensor = if spec.datatype == DataType::Bytes {
        Tensor::new(shape, Data::Bytes(Strings::from_iter([body])))
    } else {
        Tensor::from_raw(spec.datatype, shape, body.clone())
    };
    let tensor = tensor.map_err(|error| wrong(error.to_string()))?;
    Ok(InferRequest {
        inputs: vec![Input { name: spec.name.clone(), tensor }],
        binary_output: true,
        ..InferRequest::default()
    })
}

/// The shape that a body of so many bytes has.
fn shape(spec: &TensorSpec, body_bytes: usize, batched: bool) -> Result<Shape, DecodeError> {
    let wrong = |problem| DecodeError::Input { input: shown(&spec.name), problem };
    let open_shape = || {
        wrong(format!(
            "a raw request needs a shape with at most one open dimension, the model has {}; send \
             JSON",
            spec.summary()
        ))
    };
    let mut dims = spec.client_dims().map(<[i64]>::to_vec).ok_or_else(open_shape)?;
    if batched && let Some(batch) = dims.first_mut() {
        *batch = 1;
    }
    if dims.iter().filter(|dim| **dim < 0).count() > 1 {
        return Err(open_shape());
    }
    let fixed: Vec<i64> = dims.iter().copied().filter(|dim| *dim >= 0).collect();
    let fixed = Shape::new(&fixed).expect("open dimensions were left out").element_count();
    // A string counts as one element, however long.
    let (unit, available) = spec.datatype.size().map_or((1, 1), |size| (size, body_bytes));
    let row_bytes = fixed
        .and_then(|count| count.checked_mul(unit))
        .ok_or_else(|| wrong(format!("the model's shape is too large: {}", spec.summary())))?;
    if let Some(open) = dims.iter_mut().find(|dim| **dim < 0) {
        let rows = available.checked_div(row_bytes).unwrap_or(0);
        if rows.checked_mul(row_bytes) != Some(available) {
            return Err(DecodeError::Size {
                input: shown(&spec.name),
                problem: format!("{body_bytes} bytes are not a multiple of {row_bytes}"),
            });
        }
        *open = i64::try_from(rows).expect("a body is shorter than i64::MAX");
    }
    if spec.datatype == DataType::Bytes && dims.iter().any(|dim| *dim != 1) {
        return Err(wrong(format!(
            "a raw request is one string, the model takes {}; send JSON",
            spec.summary()
        )));
    }
    Ok(Shape::new(&dims).expect("no dimension is open any more"))
}

/// Reads `count` strings, each behind its length as a little-endian `u32`; what is wrong if they are not.
pub fn strings(raw: &[u8], count: usize) -> Result<Strings, String> {
    const PREFIX: usize = 4;
    // A prefix per string is the least, so a shape cannot reserve more than the bytes justify.
    let capacity = count.min(raw.len() / PREFIX + 1);
    let mut strings = Strings::with_capacity(capacity, raw.len().saturating_sub(PREFIX * capacity));
    let mut rest = raw;
    while strings.len() < count {
        let index = strings.len();
        let Some((prefix, behind)) = rest.split_first_chunk::<PREFIX>() else {
            return Err(format!(
                "the bytes end at string {index} of {count}: {} bytes are left, its length needs \
                 {PREFIX}",
                rest.len()
            ));
        };
        let length = usize::try_from(u32::from_le_bytes(*prefix)).unwrap_or(usize::MAX);
        let Some((string, behind)) = behind.split_at_checked(length) else {
            return Err(format!(
                "string {index} of {count} has a length of {length} bytes, but only {} are left",
                behind.len()
            ));
        };
        strings.push(string);
        rest = behind;
    }
    if rest.is_empty() {
        return Ok(strings);
    }
    Err(format!("{} bytes are left behind the {count} strings", rest.len()))
}
