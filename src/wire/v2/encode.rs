//! The inference response: JSON, and the binary outputs behind it, in one buffer.
//!
//! Keys in the order in which Triton writes them; `data` is flat. Floats are written as the shortest text that
//! reads back as the same value of their datatype.
//!
//! Source: Open Inference Protocol, REST, "Inference Response JSON Object"; Triton's binary tensor extension.

use crate::{
    model::{InferResponse, Input, ResponseOutput},
    tensor::{DataType, Element, Tensor, TensorError},
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
    let binary = response.outputs.iter().filter(|output| output.binary);
    out.reserve_exact(binary.map(|output| output.tensor.raw_len()).sum());
    for output in response.outputs.iter().filter(|output| output.binary) {
        output.tensor.write_raw(&mut out);
    }
    // Triton sends no header where all binary outputs are empty, and its clients expect none.
    let json_bytes = (out.len() > json_end).then_some(json_end);
    Ok(Encoded { body: out, json_bytes })
}

/// Writes a request whose tensors are all binary, and which asks for binary outputs: the body, and the length of its
/// JSON for the header `Inference-Header-Content-Length`.
pub fn encode_request(inputs: &[Input]) -> (Vec<u8>, usize) {
    let mut out = b"{\"inputs\":[".to_vec();
    let written = separated(&mut out, inputs, |out, input| {
        write_output(
            out,
            &ResponseOutput { name: &input.name, tensor: &input.tensor, binary: true },
        )
    });
    written.expect("every datatype has a binary form");
    out.extend_from_slice(b"],\"parameters\":{\"binary_data_output\":true}}");
    let json_bytes = out.len();
    for input in inputs {
        input.tensor.write_raw(&mut out);
    }
    (out, json_bytes)
}

/// Writes `golden.json`: the inputs and outputs of cases, one a line.
///
/// # Errors
/// If a tensor has no JSON form.
pub fn encode_golden(
    tolerance: (f64, f64),
    cases: &[(Vec<Input>, Vec<Input>)],
) -> Result<Vec<u8>, EncodeError> {
    let (relative, absolute) = tolerance;
    let head = format!(
        "{{\"tolerance\": {{\"relative\": {relative}, \"absolute\": {absolute}}}, \"cases\": [\n"
    );
    let mut out = head.into_bytes();
    let write = |out: &mut Vec<u8>, tensors: &[Input]| {
        separated(out, tensors, |out, input| {
            let (name, tensor) = (input.name.as_str(), &input.tensor);
            write_output(out, &ResponseOutput { name, tensor, binary: false })
        })
    };
    for (place, (inputs, outputs)) in cases.iter().enumerate() {
        out.extend_from_slice(if place == 0 { b"{\"inputs\": [" } else { b",\n{\"inputs\": [" });
        write(&mut out, inputs)?;
        out.extend_from_slice(b"], \"outputs\": [");
        write(&mut out, outputs)?;
        out.extend_from_slice(b"]}");
    }
    out.extend_from_slice(b"\n]}\n");
    Ok(out)
}

/// The response's length, or more, as long as its outputs are small; a large one makes its room as it goes.
fn room(response: &InferResponse<'_>) -> usize {
    const ENVELOPE: usize = 192;
    const OUTPUT: usize = 128;
    let output = |output: &ResponseOutput<'_>| {
        let tensor = output.tensor;
        match longest(tensor.datatype()) {
            _ if output.binary => tensor.raw_len(),
            None => (tensor.raw_len() + tensor.raw_len() / 8).min(BLOCK * 8),
            Some(longest) => tensor.len().min(BLOCK) * longest,
        }
    };
    let outputs: usize = response.outputs.iter().map(|o| OUTPUT + o.name.len() + output(o)).sum();
    let parameters: usize = response.parameters.iter().map(|(k, v)| k.len() + v.len() + 6).sum();
    ENVELOPE + response.id.map_or(0, str::len) + parameters + outputs
}

/// Elements between two looks at the room that is left.
const BLOCK: usize = 1024;

/// Characters of the longest element with its comma; `None` for strings, whose length nothing bounds.
fn longest(datatype: DataType) -> Option<usize> {
    Some(match datatype {
        DataType::Bytes => return None,
        DataType::Bool => 6,
        DataType::Uint8 | DataType::Int8 => 5,
        DataType::Uint16 | DataType::Int16 => 7,
        DataType::Uint32 | DataType::Int32 => 12,
        DataType::Uint64 | DataType::Int64 => 21,
        DataType::Fp32 => 16,
        DataType::Fp64 => 25,
        DataType::Fp16 | DataType::Bf16 => 0,
    })
}

/// Makes room for the `left` elements behind `done`, which begin at `start`: as much as those before them took,
/// but enough for the next ones, and at least half of what there is, so that it is seldom made; never more than
/// the elements can take, so that a few long ones among short ones cost little.
fn make_room(out: &mut Vec<u8>, start: usize, done: usize, left: usize, next: usize, max: usize) {
    /// For what closes the output and opens the next one.
    const BEHIND: usize = 512;
    let usual = (out.len() - start).checked_div(done).map_or(0, |mean| (mean + 2) * left);
    out.reserve_exact(usual.max(next).max(out.capacity() / 2).min(max) + BEHIND);
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
    let longest = longest(T::DATATYPE).expect("a string is no number");
    let start = out.len();
    for (number, block) in values.chunks(BLOCK).enumerate() {
        let done = number * BLOCK;
        let left = values.len() - done;
        let next = block.len() * longest;
        if out.capacity() - out.len() < next {
            make_room(out, start, done, left, next, left * longest);
        }
        for value in block {
            write(out, *value);
            out.push(b',');
        }
    }
    if !values.is_empty() {
        out.pop();
    }
    Ok(())
}

fn write_strings(out: &mut Vec<u8>, output: &ResponseOutput<'_>) -> Result<(), EncodeError> {
    /// Quotes and comma, and the most that a byte becomes.
    const AROUND: usize = 3;
    const ESCAPE: usize = 6;
    let Some(strings) = output.tensor.strings() else { return Ok(()) };
    let start = out.len();
    let bytes_all = output.tensor.raw_len() - 4 * strings.len();
    let mut bytes_done = 0;
    for (index, string) in strings.iter().enumerate() {
        let Ok(string) = std::str::from_utf8(string) else {
            return Err(EncodeError::NotUtf8 { output: shown(output.name), index });
        };
        let free = out.capacity() - out.len();
        if free < string.len() * ESCAPE + AROUND && free < escaped_len(string) + AROUND {
            let left = strings.len() - index;
            let left_max = (bytes_all - bytes_done) * ESCAPE + left * AROUND;
            make_room(out, start, index, left, escaped_len(string) + AROUND, left_max);
        }
        bytes_done += string.len();
        if index > 0 {
            out.push(b',');
        }
        write_string(out, string);
    }
    Ok(())
}

/// The length of a string as JSON writes it, or a little more.
fn escaped_len(string: &str) -> usize {
    let more = |byte: u8| match byte {
        0..=0x1f => 5,
        b'"' | b'\\' => 1,
        _ => 0,
    };
    string.bytes().map(more).sum::<usize>() + string.len()
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
