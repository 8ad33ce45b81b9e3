//! What must hold for any bytes: the checks of the fuzz targets, and of the tests that run them over the corpus.
//!
//! Each takes whatever bytes come and panics if a promise is broken. Not part of the product.

use bytes::Bytes;

use super::v2::{
    Limits, LoadRequest, UploadLimits, classify, decode_infer, decode_outputs, decode_raw_infer,
    encode_infer,
    objects::{IndexRequest, UnloadRequest},
    reference,
};
use crate::{
    model::{
        InferRequest, InferResponse, ModelName, ResponseOutput, Signature, TensorSpec, VersionId,
    },
    tensor::{DataType, Tensor},
};

/// JSON without binary tensors: both decoders agree, and what is read survives being written.
pub fn json_tensors(body: &[u8]) {
    let body = Bytes::copy_from_slice(body);
    if let Some(request) = agree(&body, None, &Limits::default()) {
        written_as_json_is_the_same(&request);
    }
}

/// Up to the first zero byte JSON, behind it binary tensors: both decoders agree, and what is read survives
/// being written.
pub fn binary_tensors(bytes: &[u8]) {
    let json_bytes = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let mut body = bytes.to_vec();
    if json_bytes < body.len() {
        body.remove(json_bytes);
    }
    if let Some(request) = agree(&body.into(), Some(json_bytes), &Limits::default()) {
        written_in_binary_is_the_same(&request);
    }
}

/// Everything that bytes from outside reach: the first byte chooses limits and signature, the second, unless
/// it is 255, the length of the JSON in parts of 254 of the rest.
pub fn whole_request(bytes: &[u8]) {
    let [choice, part, rest @ ..] = bytes else { return };
    let body = Bytes::copy_from_slice(rest);
    let limits = if choice & 1 == 0 {
        Limits::default()
    } else {
        Limits {
            json_depth_max: 6,
            inputs_min: 1,
            inputs_max: 2,
            outputs_max: 2,
            parameters_max: 3,
            name_bytes_max: 8,
            id_bytes_max: 8,
            rank_max: 2,
        }
    };
    let json_bytes = (*part < 255).then(|| body.len() * usize::from(*part) / 254);
    if let Some(request) = agree(&body, json_bytes, &limits) {
        answers_can_be_written(&request, choice & 2 == 0);
    }
    let spec = TensorSpec {
        name: "x".to_owned(),
        datatype: DataType::ALL[usize::from(choice >> 4) % DataType::ALL.len()],
        dims: Some([&[-1, 3][..], &[-1, 2, -1], &[1], &[]][usize::from(choice >> 2 & 3)].to_vec()),
        view: None,
    };
    let signature = Signature { inputs: vec![spec], outputs: vec![], ..Signature::default() };
    if let Ok(request) = decode_raw_infer(&body, &signature, choice & 1 == 0) {
        answers_can_be_written(&request, true);
    }
    let _ = IndexRequest::decode(&body);
    let _ = UnloadRequest::decode(&body);
}

/// The body of a load that may bring files: what is taken is within its limits, and is refused under lower ones.
pub fn upload(body: &[u8]) {
    let limits = UploadLimits { bytes_max: 64, files_max: 4 };
    let Ok(request) = LoadRequest::decode(body, Some(&limits)) else { return };
    let bytes: usize = request.files.iter().map(|file| file.bytes.len()).sum();
    assert!(bytes <= limits.bytes_max && request.files.len() <= limits.files_max);
    assert!(request.files.is_empty() || request.config.is_some(), "files need a configuration");
    assert_eq!(LoadRequest::decode(body, None).is_err(), request.is_upload());
    if let Some(bytes_max) = bytes.checked_sub(1) {
        let less = UploadLimits { bytes_max, ..limits };
        assert!(LoadRequest::decode(body, Some(&less)).is_err(), "one byte too many");
    }
    if let Some(files_max) = request.files.len().checked_sub(1) {
        let fewer = UploadLimits { files_max, ..limits };
        assert!(LoadRequest::decode(body, Some(&fewer)).is_err(), "one file too many");
    }
}

/// Up to the first zero byte the JSON of an answer, behind it binary tensors; all JSON where there is none: what a
/// client reads is bounded by its bytes and survives being written.
pub fn answer(bytes: &[u8]) {
    let json_bytes = bytes.iter().position(|byte| *byte == 0);
    let mut body = bytes.to_vec();
    if let Some(at) = json_bytes {
        body.remove(at);
    }
    let body = Bytes::from(body);
    let outputs = match decode_outputs(&body, json_bytes) {
        Ok(outputs) => outputs,
        Err(error) => return fit_to_read(&error.to_string()),
    };
    let raw_bytes: usize = outputs.iter().map(|output| output.tensor.raw_len()).sum();
    assert!(raw_bytes <= 8 * body.len(), "{raw_bytes} bytes from {}", body.len());
    let answer = InferRequest { inputs: outputs, ..InferRequest::default() };
    for binary in [false, true] {
        echo(&answer, binary, |response| {
            let has_half = |answer: &InferRequest| {
                answer.inputs.iter().any(|output| !output.tensor.datatype().has_json_form())
            };
            let encoded = match encode_infer(response) {
                Ok(encoded) => encoded,
                Err(error) => {
                    assert!(!binary && has_half(&answer), "{error} for {answer:?}");
                    return;
                }
            };
            let again = decode_outputs(&Bytes::from(encoded.body), encoded.json_bytes);
            let inputs = again.expect("what is written can be read");
            let again = InferRequest { inputs, ..InferRequest::default() };
            assert!(same_inputs(&answer, &again), "wrote {answer:?}, read {again:?}");
        });
    }
}

fn fit_to_read(message: &str) {
    assert!(message.len() < 2_000, "an endless message: {message}");
    assert!(!message.contains(char::is_control), "a control character: {message:?}");
}

/// Decodes with both decoders; the request if both accept.
fn agree(body: &Bytes, json_bytes: Option<usize>, limits: &Limits) -> Option<InferRequest> {
    let decoded = decode_infer(body, json_bytes, limits);
    let expected = reference::decode_infer(body, json_bytes, limits);
    match (&decoded, &expected) {
        (Ok(request), Some(expected)) => {
            assert!(reference::same(request, expected), "got {request:?}, expected {expected:?}");
            let raw_bytes: usize = request.inputs.iter().map(|input| input.tensor.raw_len()).sum();
            assert!(raw_bytes <= 8 * body.len(), "{raw_bytes} bytes from {}", body.len());
        }
        (Err(error), None) => fit_to_read(&error.to_string()),
        _ => panic!("got {decoded:?}, expected {expected:?}"),
    }
    decoded.ok()
}

/// A response that gives back the inputs as outputs.
fn echo(request: &InferRequest, binary: bool, check: impl FnOnce(&InferResponse<'_>)) {
    let model = ModelName::parse("echo").expect("a good name");
    let parameters = request.parameters.iter().map(|(key, _)| (key.as_str(), "value")).collect();
    let output = |name, tensor| ResponseOutput { name, tensor, binary };
    check(&InferResponse {
        model: &model,
        version: VersionId::new(1),
        id: request.id.as_deref(),
        parameters,
        outputs: request.inputs.iter().map(|input| output(&*input.name, &input.tensor)).collect(),
    });
}

/// An output is written as an input is read: the response's outputs, taken as inputs, are the inputs.
fn read_back(request: &InferRequest, binary: bool) -> Option<InferRequest> {
    let mut again = None;
    echo(request, binary, |response| {
        let Ok(encoded) = encode_infer(response) else { return };
        let json_bytes = encoded.json_bytes.unwrap_or(encoded.body.len());
        let key = b",\"outputs\":";
        let at = encoded.body.windows(key.len()).position(|window| window == key);
        let (_, outputs) = encoded.body.split_at(at.expect("a response has outputs"));
        let mut body = b"{\"inputs\":".to_vec();
        body.extend_from_slice(&outputs[key.len()..]);
        let shorter = encoded.body.len() - body.len();
        let json_bytes = encoded.json_bytes.map(|_| json_bytes - shorter);
        let decoded = decode_infer(&body.into(), json_bytes, &Limits::default());
        again = Some(decoded.expect("what is written can be read"));
    });
    again
}

fn written_as_json_is_the_same(request: &InferRequest) {
    let has_half = request.inputs.iter().any(|input| !input.tensor.datatype().has_json_form());
    let again = read_back(request, false);
    assert!(has_half || again.is_some(), "JSON can be written as JSON");
    if let Some(again) = again {
        assert!(same_inputs(request, &again), "wrote {request:?}, read {again:?}");
    }
}

fn written_in_binary_is_the_same(request: &InferRequest) {
    let again = read_back(request, true).expect("every tensor has a binary form");
    assert!(same_inputs(request, &again), "wrote {request:?}, read {again:?}");
}

fn same_inputs(one: &InferRequest, other: &InferRequest) -> bool {
    let inputs = |request: &InferRequest| InferRequest {
        inputs: request.inputs.clone(),
        ..InferRequest::default()
    };
    reference::same(&inputs(one), &inputs(other))
}

fn answers_can_be_written(request: &InferRequest, batched: bool) {
    for input in &request.inputs {
        for classes in [1, 3, usize::MAX] {
            if let Ok(best) = classify(&input.tensor, classes, batched, Some(&["a".to_owned()])) {
                in_json_or_refused(&best);
            }
        }
    }
    for binary in [false, true] {
        echo(request, binary, |response| drop(encode_infer(response)));
    }
}

fn in_json_or_refused(tensor: &Tensor) {
    assert_eq!(tensor.datatype(), DataType::Bytes);
    assert_eq!(tensor.shape().element_count(), Some(tensor.len()));
}

#[cfg(test)]
mod tests;
