//! The inference response: JSON, and the binary outputs behind it, in one buffer.
//!
//! Keys in the order in which Triton writes them; `data` is flat. Floats are written as the shortest text that
//! reads back as the same value of their datatype.
//!
//! Source: Open Inference Protocol, REST, "Inference Response JSON Object"; Triton's binary tensor extension.

use crate::{
    model::{InferResponse, ResponseOutput},
    tensor::{DataType, Element, Strings, Tensor, TensorError},
    wire::json::{
        number::{write_float, write_integer},
        text::write_string,
    },
};

use super::error::shown;

/// A response as bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// The JSON, and behind it the binary outputs.
    pub body: Vec<u8>,
    /// The length of the JSON if binary outputs follow: the header `Inference-Header-Content-Length`, with the
    /// content type `application/octet-stream`. `None` if all is JSON.
    pub json_bytes: Option<usize>,
}

/// Why a response cannot be written the way it was asked for; the client can ask otherwise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// FP16 and BF16 exist in binary form only.
    #[error(
        "output {output} is {datatype}, which has no JSON form; ask for it with `binary_data`: true"
    )]
    NoJsonForm {
        /// The output in backticks.
        output: String,
        /// Its datatype.
        datatype: DataType,
    },
    /// A string is not text.
    #[error(
        "output {output}, element {index} is not UTF-8, as JSON needs; ask for it with `binary_data`: true"
    )]
    NotUtf8 {
        /// The output in backticks.
        output: String,
        /// The element's index in row-major order.
        index: usize,
    },
}

/// Writes an inference response.
pub fn encode_infer(response: &InferResponse<'_>) -> Result<Encoded, EncodeError> {
    let mut out = Vec::with_capacity(room(response));
    out.push(b'{');
    if let Some(id) = response.id {
        out.extend_from_slice(b"\"id\":");
        write_string(&mut out, id);
        out.push(b',');
    }
    out.extend_from_slice(b"\"model_name\":");
    write_string(&mut out, response.model);
    out.extend_from_slice(b",\"model_version\":\"");
    write_integer(&mut out, response.version.number());
    out.push(b'"');
    if !response.parameters.is_empty() {
        out.extend_from_slice(b",\"parameters\":{");
        separated(&mut out, &response.parameters, |out, (key, value)| {
            write_string(out, key);
            out.push(b':');
            write_string(out, value);
            Ok(())
        })?;
        out.push(b'}');
    }
    out.extend_from_slice(b",\"outputs\":[");
    separated(&mut out, &response.outputs, write_output)?;
    out.extend_from_slice(b"]}");
    let json_end = out.len();
    for output in response.outputs.iter().filter(|output| output.binary) {
        output.tensor.write_raw(&mut out);
    }
    // Triton sends no header where all binary outputs are empty, and its clients expect none.
    let json_bytes = (out.len() > json_end).then_some(json_end);
    Ok(Encoded { body: out, json_bytes })
}

/// An estimate of the response's length that seldom falls short.
fn room(response: &InferResponse<'_>) -> usize {
    const ENVELOPE: usize = 192;
    const OUTPUT: usize = 128;
    let output = |output: &ResponseOutput<'_>| {
        let tensor = output.tensor;
        let per_element = match tensor.datatype() {
            _ if output.binary => return tensor.raw_len(),
            DataType::Bytes => return tensor.raw_len() + tensor.raw_len() / 8,
            DataType::Bool | DataType::Int16 | DataType::Uint16 => 6,
            DataType::Uint8 | DataType::Int8 => 5,
            DataType::Uint32 | DataType::Int32 => 11,
            DataType::Fp32 => 13,
            DataType::Uint64 | DataType::Int64 | DataType::Fp64 => 20,
            DataType::Fp16 | DataType::Bf16 => 0,
        };
        tensor.len() * per_element
    };
    let outputs: usize = response.outputs.iter().map(|o| OUTPUT + o.name.len() + output(o)).sum();
    let parameters: usize = response.parameters.iter().map(|(k, v)| k.len() + v.len() + 6).sum();
    ENVELOPE + response.id.map_or(0, str::len) + parameters + outputs
}

fn write_output(out: &mut Vec<u8>, output: &ResponseOutput<'_>) -> Result<(), EncodeError> {
    let tensor = output.tensor;
    out.extend_from_slice(b"{\"name\":");
    write_string(out, output.name);
    out.extend_from_slice(b",\"datatype\":\"");
    out.extend_from_slice(tensor.datatype().name().as_bytes());
    out.extend_from_slice(b"\",\"shape\":[");
    separated(out, tensor.shape(), |out, dim| {
        write_integer(out, *dim);
        Ok(())
    })?;
    if output.binary {
        out.extend_from_slice(b"],\"parameters\":{\"binary_data_size\":");
        write_integer(out, tensor.raw_len());
        out.extend_from_slice(b"}}");
        return Ok(());
    }
    out.extend_from_slice(b"],\"data\":[");
    write_elements(out, output)?;
    out.extend_from_slice(b"]}");
    Ok(())
}

fn write_elements(out: &mut Vec<u8>, output: &ResponseOutput<'_>) -> Result<(), EncodeError> {
    let tensor = output.tensor;
    let written = match tensor.datatype() {
        DataType::Bool => numbers(out, tensor, |out, value| {
            out.extend_from_slice(if value { b"true" } else { b"false" });
        }),
        DataType::Uint8 => numbers::<u8>(out, tensor, write_integer),
        DataType::Uint16 => numbers::<u16>(out, tensor, write_integer),
        DataType::Uint32 => numbers::<u32>(out, tensor, write_integer),
        DataType::Uint64 => numbers::<u64>(out, tensor, write_integer),
        DataType::Int8 => numbers::<i8>(out, tensor, write_integer),
        DataType::Int16 => numbers::<i16>(out, tensor, write_integer),
        DataType::Int32 => numbers::<i32>(out, tensor, write_integer),
        DataType::Int64 => numbers::<i64>(out, tensor, write_integer),
        DataType::Fp32 => numbers::<f32>(out, tensor, write_float),
        DataType::Fp64 => numbers::<f64>(out, tensor, write_float),
        DataType::Bytes => return write_strings(out, output),
        datatype @ (DataType::Fp16 | DataType::Bf16) => {
            return Err(EncodeError::NoJsonForm { output: shown(output.name), datatype });
        }
    };
    written.expect("the element type was chosen by the datatype");
    Ok(())
}

fn numbers<T: Element>(
    out: &mut Vec<u8>,
    tensor: &Tensor,
    write: impl Fn(&mut Vec<u8>, T),
) -> Result<(), TensorError> {
    let values = tensor.view::<T>()?;
    if let Some((first, rest)) = values.split_first() {
        write(out, *first);
        for value in rest {
            out.push(b',');
            write(out, *value);
        }
    }
    Ok(())
}

fn write_strings(out: &mut Vec<u8>, output: &ResponseOutput<'_>) -> Result<(), EncodeError> {
    let strings = output.tensor.strings().into_iter().flat_map(Strings::iter);
    for (index, string) in strings.enumerate() {
        let Ok(string) = std::str::from_utf8(string) else {
            return Err(EncodeError::NotUtf8 { output: shown(output.name), index });
        };
        if index > 0 {
            out.push(b',');
        }
        write_string(out, string);
    }
    Ok(())
}

/// Writes items with commas between them.
fn separated<T>(
    out: &mut Vec<u8>,
    items: &[T],
    mut write: impl FnMut(&mut Vec<u8>, &T) -> Result<(), EncodeError>,
) -> Result<(), EncodeError> {
    for (position, item) in items.iter().enumerate() {
        if position > 0 {
            out.push(b',');
        }
        write(out, item)?;
    }
    Ok(())
}
