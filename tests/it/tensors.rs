//! Inference requests and answers as the protocol writes them, in JSON and in binary form.
//!
//! A second, slow implementation of the binary tensor extension, so that the server's own is not its judge.

use serde_json::{Value, json};

use crate::{
    http::{Request, Response},
    repository::flat,
};

/// The header that tells where JSON ends and tensors begin.
pub(crate) const JSON_LENGTH: &str = "inference-header-content-length";

/// One input in JSON form.
pub(crate) fn input(name: &str, datatype: &str, shape: &[usize], data: &Value) -> Value {
    json!({"name": name, "datatype": datatype, "shape": shape, "data": data})
}

/// A request body with these inputs in JSON form.
pub(crate) fn body(inputs: &[Value]) -> Value {
    json!({"inputs": inputs})
}

/// A good request for `add_sub`: 0..16 and all ones.
pub(crate) fn add_sub() -> Value {
    let first: Vec<i32> = (0..16).collect();
    body(&[
        input("INPUT0", "INT32", &[1, 16], &json!(first)),
        input("INPUT1", "INT32", &[1, 16], &json!(vec![1; 16])),
    ])
}

/// A good request for an `identity_*` model.
pub(crate) fn identity(datatype: &str, data: &Value) -> Value {
    let count = data.as_array().expect("elements").len();
    body(&[input("INPUT", datatype, &[count], data)])
}

/// The path of a model's inference endpoint.
pub(crate) fn infer(model: &str) -> String {
    format!("/v2/models/{model}/infer")
}

/// The same request with all inputs moved from JSON into binary form.
pub(crate) fn in_binary(path: &str, body: &Value) -> Request {
    let mut body = body.clone();
    let mut tail = Vec::new();
    for input in body["inputs"].as_array_mut().expect("inputs") {
        let data = input.as_object_mut().unwrap().remove("data").expect("data");
        let bytes = to_bytes(input["datatype"].as_str().unwrap(), &data);
        input["parameters"] = json!({"binary_data_size": bytes.len()});
        tail.extend(bytes);
    }
    with_tail(path, &body, &tail)
}

/// A request of JSON and the bytes that follow it.
pub(crate) fn with_tail(path: &str, json: &Value, tail: &[u8]) -> Request {
    let json = json.to_string();
    let request = Request::post(path, [json.as_bytes(), tail].concat());
    request
        .header("content-type", "application/octet-stream")
        .header(JSON_LENGTH, &json.len().to_string())
}

/// Elements as the binary tensor extension writes them.
pub(crate) fn to_bytes(datatype: &str, data: &Value) -> Vec<u8> {
    flat(data).iter().flat_map(|element| element_bytes(datatype, element)).collect()
}

#[allow(clippy::cast_possible_truncation, reason = "test data is written in the right range")]
fn element_bytes(datatype: &str, element: &Value) -> Vec<u8> {
    let signed = || element.as_i64().unwrap();
    let unsigned = || element.as_u64().unwrap();
    let float = || element.as_f64().unwrap();
    match datatype {
        "BOOL" => vec![u8::from(element.as_bool().unwrap())],
        "UINT8" => vec![u8::try_from(unsigned()).unwrap()],
        "UINT16" => u16::try_from(unsigned()).unwrap().to_le_bytes().to_vec(),
        "UINT32" => u32::try_from(unsigned()).unwrap().to_le_bytes().to_vec(),
        "UINT64" => unsigned().to_le_bytes().to_vec(),
        "INT8" => i8::try_from(signed()).unwrap().to_le_bytes().to_vec(),
        "INT16" => i16::try_from(signed()).unwrap().to_le_bytes().to_vec(),
        "INT32" => i32::try_from(signed()).unwrap().to_le_bytes().to_vec(),
        "INT64" => signed().to_le_bytes().to_vec(),
        "FP16" => half::f16::from_f64(float()).to_le_bytes().to_vec(),
        "BF16" => half::bf16::from_f64(float()).to_le_bytes().to_vec(),
        "FP32" => (float() as f32).to_le_bytes().to_vec(),
        "FP64" => float().to_le_bytes().to_vec(),
        "BYTES" => {
            let text = element.as_str().unwrap().as_bytes();
            [&u32::try_from(text.len()).unwrap().to_le_bytes(), text].concat()
        }
        other => panic!("no datatype {other}"),
    }
}

/// Elements read back from binary form.
pub(crate) fn from_bytes(datatype: &str, bytes: &[u8]) -> Vec<Value> {
    if datatype == "BYTES" {
        return strings(bytes);
    }
    let size = to_bytes(datatype, &if datatype == "BOOL" { json!(false) } else { json!(0) }).len();
    assert_eq!(bytes.len() % size, 0, "{datatype} in {} bytes", bytes.len());
    bytes.chunks(size).map(|chunk| element(datatype, chunk)).collect()
}

fn element(datatype: &str, chunk: &[u8]) -> Value {
    match datatype {
        "BOOL" => json!(chunk[0] == 1),
        "UINT8" => json!(chunk[0]),
        "UINT16" => json!(u16::from_le_bytes(chunk.try_into().unwrap())),
        "UINT32" => json!(u32::from_le_bytes(chunk.try_into().unwrap())),
        "UINT64" => json!(u64::from_le_bytes(chunk.try_into().unwrap())),
        "INT8" => json!(i8::from_le_bytes(chunk.try_into().unwrap())),
        "INT16" => json!(i16::from_le_bytes(chunk.try_into().unwrap())),
        "INT32" => json!(i32::from_le_bytes(chunk.try_into().unwrap())),
        "INT64" => json!(i64::from_le_bytes(chunk.try_into().unwrap())),
        "FP16" => json!(half::f16::from_le_bytes(chunk.try_into().unwrap()).to_f64()),
        "BF16" => json!(half::bf16::from_le_bytes(chunk.try_into().unwrap()).to_f64()),
        "FP32" => json!(f32::from_le_bytes(chunk.try_into().unwrap())),
        "FP64" => json!(f64::from_le_bytes(chunk.try_into().unwrap())),
        other => panic!("no datatype {other}"),
    }
}

fn strings(mut bytes: &[u8]) -> Vec<Value> {
    let mut strings = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk() {
        let (text, rest) = rest.split_at(u32::from_le_bytes(*length) as usize);
        strings.push(json!(std::str::from_utf8(text).unwrap()));
        bytes = rest;
    }
    assert!(bytes.is_empty(), "half a length prefix");
    strings
}

/// A successful answer with every output in JSON form, whichever form it came in.
pub(crate) fn outputs(response: &Response) -> Vec<Value> {
    assert_eq!(response.status, 200, "{response:?}");
    let (json, mut tail) = match response.header(JSON_LENGTH) {
        Some(length) => response.body.split_at(length.parse().unwrap()),
        None => (&response.body[..], &[][..]),
    };
    let json: Value = serde_json::from_slice(json).unwrap_or_else(|e| panic!("{e}: {response:?}"));
    let mut outputs = json["outputs"].as_array().expect("outputs").clone();
    for output in &mut outputs {
        let Some(size) = output["parameters"]["binary_data_size"].as_u64() else { continue };
        assert!(output.get("data").is_none(), "both data and a size: {output}");
        let (own, rest) = tail.split_at(usize::try_from(size).unwrap());
        output["data"] = from_bytes(output["datatype"].as_str().unwrap(), own).into();
        tail = rest;
    }
    assert!(tail.is_empty(), "{} bytes are left over", tail.len());
    outputs
}

/// The elements of one output.
pub(crate) fn data(response: &Response, name: &str) -> Value {
    let outputs = outputs(response);
    let output = outputs.iter().find(|output| output["name"] == name);
    output.unwrap_or_else(|| panic!("no output {name} in {outputs:?}"))["data"].clone()
}
