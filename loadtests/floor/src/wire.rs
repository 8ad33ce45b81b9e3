//! The Open Inference Protocol v2 over HTTP, as far as the load tests need it: JSON and the binary tensor extension.
//!
//! Numbers go from the text straight into the typed buffer that the engine reads; no document is built in between.
//! Kept small on purpose: two datatypes, `datatype` before `data` (the order that clients write), and every output
//! is returned.

use std::{borrow::Cow, fmt, io::Write as _};

use anyhow::{Context as _, Result, ensure};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

/// A request's tensors and the form in which its answer is wanted.
pub(crate) struct Question {
    pub(crate) inputs: Vec<Tensor>,
    pub(crate) binary_outputs: bool,
}

/// A response's body; `json_bytes` says where its JSON ends if binary tensors follow.
pub(crate) struct Encoded {
    pub(crate) body: Vec<u8>,
    pub(crate) json_bytes: Option<usize>,
}

#[derive(Debug, PartialEq)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) shape: Vec<i64>,
    pub(crate) data: Data,
}

#[derive(Debug, PartialEq)]
pub(crate) enum Data {
    Fp32(Vec<f32>),
    Int64(Vec<i64>),
}

impl Data {
    fn datatype(&self) -> &'static str {
        match self {
            Self::Fp32(_) => "FP32",
            Self::Int64(_) => "INT64",
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Fp32(values) => values.len(),
            Self::Int64(values) => values.len(),
        }
    }

    fn fill_from_bytes(&mut self, bytes: &[u8]) {
        match self {
            Self::Fp32(values) => {
                values.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)));
            }
            Self::Int64(values) => {
                values.extend(bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)));
            }
        }
    }

    fn append_bytes(&self, out: &mut Vec<u8>) {
        match self {
            Self::Fp32(values) => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
            Self::Int64(values) => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
        }
    }
}

/// Reads a request; `json_bytes` is where its JSON ends if binary tensors follow.
pub(crate) fn decode(body: &[u8], json_bytes: Option<usize>) -> Result<Question> {
    let (json, mut tail) = body
        .split_at_checked(json_bytes.unwrap_or(body.len()))
        .context("the JSON is said to be longer than the body")?;
    let RequestJson { inputs, parameters } = serde_json::from_slice(json)?;
    let mut tensors = Vec::with_capacity(inputs.len());
    for Input { mut tensor, binary_bytes } in inputs {
        if let Some(length) = binary_bytes {
            let (bytes, rest) =
                tail.split_at_checked(length).context("the body ends within a binary tensor")?;
            tensor.data.fill_from_bytes(bytes);
            tail = rest;
        }
        let elements = tensor.shape.iter().try_fold(1, |n: i64, dim| n.checked_mul(*dim));
        ensure!(
            elements.is_some_and(|n| usize::try_from(n) == Ok(tensor.data.len())),
            "input `{}` has {} values, its shape is {:?}",
            tensor.name,
            tensor.data.len(),
            tensor.shape
        );
        tensors.push(tensor);
    }
    Ok(Question { inputs: tensors, binary_outputs: parameters.binary_data_output })
}

/// Writes the answer of model `name`.
pub(crate) fn encode(name: &str, outputs: &[Tensor], binary: bool) -> Result<Encoded> {
    let mut body = Vec::with_capacity(256);
    let mut tail = Vec::new();
    body.extend_from_slice(b"{\"model_name\":");
    serde_json::to_writer(&mut body, name)?;
    body.extend_from_slice(b",\"model_version\":\"1\",\"outputs\":[");
    for (index, tensor) in outputs.iter().enumerate() {
        body.extend_from_slice(if index == 0 { b"{\"name\":" } else { b",{\"name\":" });
        serde_json::to_writer(&mut body, &tensor.name)?;
        write!(body, ",\"datatype\":\"{}\",\"shape\":", tensor.data.datatype())?;
        serde_json::to_writer(&mut body, &tensor.shape)?;
        if binary {
            let before = tail.len();
            tensor.data.append_bytes(&mut tail);
            write!(body, ",\"parameters\":{{\"binary_data_size\":{}}}}}", tail.len() - before)?;
        } else {
            body.extend_from_slice(b",\"data\":");
            match &tensor.data {
                Data::Fp32(values) => serde_json::to_writer(&mut body, values)?,
                Data::Int64(values) => serde_json::to_writer(&mut body, values)?,
            }
            body.push(b'}');
        }
    }
    body.extend_from_slice(b"]}");
    let json_bytes = binary.then_some(body.len());
    body.append(&mut tail);
    Ok(Encoded { body, json_bytes })
}

#[derive(Deserialize)]
struct RequestJson {
    inputs: Vec<Input>,
    #[serde(default)]
    parameters: RequestParameters,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RequestParameters {
    binary_data_output: bool,
}

/// One input as its JSON has it; `binary_bytes` if its values follow after the JSON.
struct Input {
    tensor: Tensor,
    binary_bytes: Option<usize>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct InputParameters {
    binary_data_size: Option<usize>,
}

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(InputVisitor)
    }
}

struct InputVisitor;

impl<'de> Visitor<'de> for InputVisitor {
    type Value = Input;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an input tensor")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Input, A::Error> {
        let (mut name, mut shape, mut data, mut binary_bytes) = (None, Vec::new(), None, None);
        while let Some(key) = map.next_key::<Cow<str>>()? {
            match &*key {
                "name" => name = Some(map.next_value()?),
                "shape" => shape = map.next_value()?,
                "datatype" => {
                    data = Some(match &*map.next_value::<Cow<str>>()? {
                        "FP32" => Data::Fp32(Vec::new()),
                        "INT64" => Data::Int64(Vec::new()),
                        other => return Err(A::Error::custom(format_args!("datatype `{other}`"))),
                    });
                }
                "data" => {
                    let expected: i64 = shape.iter().product();
                    let expected = usize::try_from(expected).unwrap_or(0).min(1 << 20);
                    match data.as_mut() {
                        Some(Data::Fp32(values)) => {
                            values.reserve_exact(expected);
                            map.next_value_seed(Fill(values))?;
                        }
                        Some(Data::Int64(values)) => {
                            values.reserve_exact(expected);
                            map.next_value_seed(Fill(values))?;
                        }
                        None => return Err(A::Error::custom("`datatype` must precede `data`")),
                    }
                }
                "parameters" => {
                    binary_bytes = map.next_value::<InputParameters>()?.binary_data_size;
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        let name = name.ok_or_else(|| A::Error::missing_field("name"))?;
        let data = data.ok_or_else(|| A::Error::missing_field("datatype"))?;
        Ok(Input { tensor: Tensor { name, shape, data }, binary_bytes })
    }
}

/// Appends a number, or an array of them nested to any depth, to one flat buffer.
struct Fill<'a, T>(&'a mut Vec<T>);

impl<'de, T: Number> DeserializeSeed<'de> for Fill<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: Number> Visitor<'de> for Fill<'_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} data", T::DATATYPE)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<(), A::Error> {
        while values.next_element_seed(Fill(self.0))?.is_some() {}
        Ok(())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        self.push(T::from_fraction(value), value)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.push(T::from_whole(value), value)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.push(i64::try_from(value).ok().and_then(T::from_whole), value)
    }
}

impl<T: Number> Fill<'_, T> {
    fn push<E: serde::de::Error>(self, value: Option<T>, read: impl fmt::Display) -> Result<(), E> {
        let value =
            value.ok_or_else(|| E::custom(format_args!("{} cannot hold {read}", T::DATATYPE)))?;
        self.0.push(value);
        Ok(())
    }
}

/// An element type that JSON numbers are read into.
trait Number: Sized {
    const DATATYPE: &'static str;
    fn from_fraction(value: f64) -> Option<Self>;
    fn from_whole(value: i64) -> Option<Self>;
}

impl Number for f32 {
    const DATATYPE: &'static str = "FP32";

    #[expect(clippy::cast_possible_truncation, reason = "rounding to FP32 is what is asked for")]
    fn from_fraction(value: f64) -> Option<Self> {
        Some(value as f32)
    }

    #[expect(clippy::cast_precision_loss, reason = "rounding to FP32 is what is asked for")]
    fn from_whole(value: i64) -> Option<Self> {
        Some(value as f32)
    }
}

impl Number for i64 {
    const DATATYPE: &'static str = "INT64";

    fn from_fraction(_: f64) -> Option<Self> {
        None
    }

    fn from_whole(value: i64) -> Option<Self> {
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(shape: &str, datatype: &str, data: &str) -> Result<Tensor> {
        let json = format!(
            r#"{{"id":"7","inputs":[{{"name":"x","shape":{shape},"datatype":"{datatype}","data":{data}}}]}}"#
        );
        Ok(decode(json.as_bytes(), None)?.inputs.remove(0))
    }

    #[test]
    fn nested_and_flat_data_are_the_same_tensor() {
        let flat = input("[2,2]", "FP32", "[1,2.5,-3,4e-1]").unwrap();
        assert_eq!(flat.data, Data::Fp32(vec![1.0, 2.5, -3.0, 0.4]));
        assert_eq!(flat, input("[2,2]", "FP32", "[[1,2.5],[-3,0.4]]").unwrap());
    }

    #[test]
    fn data_that_does_not_fit_is_refused() {
        let cases = [
            ("[3]", "FP32", "[1]", "has 1 values, its shape is [3]"),
            ("[1]", "INT64", "[1.5]", "INT64 cannot hold 1.5"),
            ("[-1]", "FP32", "[]", "has 0 values, its shape is [-1]"),
            ("[1]", "BYTES", "[1]", "datatype `BYTES`"),
        ];
        for (shape, datatype, data, expected) in cases {
            let error = input(shape, datatype, data).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_binary_answer_reads_back_as_the_same_tensors() {
        let tensors = vec![
            Tensor { name: "a".into(), shape: vec![2], data: Data::Fp32(vec![1.5, -2.0]) },
            Tensor { name: "b".into(), shape: vec![1, 1], data: Data::Int64(vec![i64::MIN]) },
        ];
        let Encoded { body, json_bytes } = encode("m", &tensors, true).unwrap();
        let (json, tail) = body.split_at(json_bytes.unwrap());
        let json = str::from_utf8(json).unwrap().replace("\"outputs\"", "\"inputs\"");
        let request = [json.as_bytes(), tail].concat();
        assert_eq!(decode(&request, Some(json.len())).unwrap().inputs, tensors);
        assert!(decode(&request[..request.len() - 1], Some(json.len())).is_err());
        assert!(decode(&request, Some(request.len() + 1)).is_err());
    }
}
