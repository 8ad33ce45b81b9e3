//! Predictions: right values in every datatype and form, and what comes with them.

use std::{
    collections::HashSet,
    io::{Read, Write},
};

use flate2::{
    Compression,
    read::{GzDecoder, ZlibDecoder},
    write::{GzEncoder, ZlibEncoder},
};
use serde_json::{Value, json};

use crate::{
    http::{Request, Response},
    repository::{Golden, Repository, flat, source},
    server::Server,
    tensors::{
        JSON_LENGTH, add_sub, body, data, identity, in_binary, infer, input, outputs, to_bytes,
        with_tail,
    },
};

/// Every datatype with elements at its borders; floating-point ones are exact in every precision.
fn every_datatype() -> [(&'static str, Value); 14] {
    [
        ("BOOL", json!([true, false, true])),
        ("UINT8", json!([0, 1, 255])),
        ("UINT16", json!([0, 1, 65_535])),
        ("UINT32", json!([0, 1, 4_294_967_295_u32])),
        ("UINT64", json!([0, 1, u64::MAX])),
        ("INT8", json!([-128, 0, 127])),
        ("INT16", json!([-32_768, 0, 32_767])),
        ("INT32", json!([i32::MIN, 0, i32::MAX])),
        ("INT64", json!([i64::MIN, 0, i64::MAX])),
        ("FP16", json!([-1.5, 0.0, 0.25])),
        ("BF16", json!([-1.5, 0.0, 0.25])),
        ("FP32", json!([-1.5, 0.0, 0.25, 1.0e30, -1.0e-30])),
        ("FP64", json!([-1.5, 0.0, 0.25, 1.0e300, -1.0e-300, 0.1])),
        ("BYTES", json!(["", "tide", "\u{1f30a} \"quoted\" \\ \n\u{1}", "naïve"])),
    ]
}

#[test]
fn every_datatype_passes_unchanged_in_every_form() {
    let models = every_datatype().map(|(datatype, _)| model_of(datatype));
    let server = Server::over(&Repository::of(&models.each_ref().map(String::as_str)));
    let mut connection = server.connect();
    for (datatype, elements) in every_datatype() {
        let path = infer(&model_of(datatype));
        let mut wanted = identity(datatype, &elements);
        for binary_output in [true, false] {
            wanted["parameters"] = json!({"binary_data_output": binary_output});
            let json_allowed = !["FP16", "BF16"].contains(&datatype);
            if json_allowed {
                let response = connection.ask(&Request::post_json(&path, &wanted));
                check_identity(&response, datatype, &elements, binary_output);
            }
            if json_allowed || binary_output {
                let response = connection.ask(&in_binary(&path, &wanted));
                check_identity(&response, datatype, &elements, binary_output);
            }
        }
    }
}

fn model_of(datatype: &str) -> String {
    format!("identity_{}", datatype.to_lowercase())
}

fn check_identity(response: &Response, datatype: &str, elements: &Value, binary: bool) {
    let outputs = outputs(response);
    assert_eq!(outputs.len(), 1, "{response:?}");
    let output = &outputs[0];
    assert_eq!(output["name"], "OUTPUT");
    assert_eq!(output["datatype"], datatype);
    assert_eq!(output["shape"], json!([elements.as_array().unwrap().len()]));
    let same = match datatype {
        // Widening may or may not have happened on the way.
        "FP32" => to_bytes("FP32", &output["data"]) == to_bytes("FP32", elements),
        _ => output["data"] == *elements,
    };
    assert!(same, "{datatype}: {} is not {elements}", output["data"]);
    assert_eq!(response.header(JSON_LENGTH).is_some(), binary, "{datatype}: {response:?}");
    let content = if binary { "application/octet-stream" } else { "application/json" };
    assert_eq!(response.header("content-type"), Some(content), "{datatype}");
}

#[test]
fn sample_models_reproduce_the_outputs_recorded_at_training() {
    let repository = Repository::of(&["sentiment", "digits"]);
    repository.add_as("cancer_linear", "1", &source("breast_cancer", "1"));
    repository.add_as("cancer_forest", "1", &source("breast_cancer", "2"));
    let server = Server::over(&repository);
    let mut connection = server.connect();
    let samples = [
        ("sentiment", "sentiment", "1"),
        ("digits", "digits", "1"),
        ("cancer_linear", "breast_cancer", "1"),
        ("cancer_forest", "breast_cancer", "2"),
    ];
    for (served, sample, version) in samples {
        let golden = Golden::of(sample, version);
        assert!(!golden.cases.is_empty(), "{sample}/{version}");
        for (inputs, expected) in &golden.cases {
            let asked = json!({"inputs": inputs});
            let response = connection.ask(&Request::post_json(&infer(served), &asked));
            golden.assert_close(&outputs(&response).into(), expected);
            let asked = json!({"inputs": inputs, "parameters": {"binary_data_output": true}});
            let response = connection.ask(&in_binary(&infer(served), &asked));
            golden.assert_close(&outputs(&response).into(), expected);
        }
    }
}

#[test]
fn requests_are_understood_however_they_are_laid_out() {
    let models = ["add_sub", "scalar", "identity_fp32", "identity_fp32_2d", "identity_bytes"];
    let server = Server::over(&Repository::of(&models));
    let check = |model: &str, text: &str, output: &str, expected: Value| {
        let response = server.ask(&Request::post(&infer(model), text));
        assert_eq!(data(&response, output), expected, "{model} {text}");
    };
    let two_by_two = r#""name":"INPUT","datatype":"FP32","shape":[2,2]"#;
    let flat = format!(r#"{{"inputs":[{{{two_by_two},"data":[1,2,3,4]}}]}}"#);
    check("identity_fp32_2d", &flat, "OUTPUT", json!([1.0, 2.0, 3.0, 4.0]));
    let nested = format!(r#"{{"inputs":[{{{two_by_two},"data":[[1,2],[3,4]]}}]}}"#);
    check("identity_fp32_2d", &nested, "OUTPUT", json!([1.0, 2.0, 3.0, 4.0]));
    // Data before its datatype and shape.
    let early = format!(r#"{{"inputs":[{{"data":[[1,2],[3,4]],{two_by_two}}}]}}"#);
    check("identity_fp32_2d", &early, "OUTPUT", json!([1.0, 2.0, 3.0, 4.0]));
    let early = r#"{"inputs":[{"data":["a","b"],"shape":[2],"datatype":"BYTES","name":"INPUT"}]}"#;
    check("identity_bytes", early, "OUTPUT", json!(["a", "b"]));
    // White space, escapes, keys that nobody knows, outputs before inputs.
    let odd = "\r\n\t{ \"model_name\" : \"x\", \"extra\": {\"deep\": [1, {}]}, \"outputs\": [{\"name\": \"OUTPUT\"}],\
               \"inputs\" : [ { \"\\u006eame\" : \"IN\\u0050UT\", \"shape\":[ 2 ] , \"datatype\" : \"FP32\", \
               \"data\" : [ -1e0 , 2.5E-1 ] } ] }\n";
    check("identity_fp32", odd, "OUTPUT", json!([-1.0, 0.25]));
    let scalar = r#"{"inputs":[{"name":"INPUT","datatype":"FP32","shape":[],"data":[3]}]}"#;
    check("scalar", scalar, "OUTPUT", json!([6.0]));
    let nothing = r#"{"inputs":[{"name":"INPUT","datatype":"FP32","shape":[0],"data":[]}]}"#;
    check("identity_fp32", nothing, "OUTPUT", json!([]));
    let nothing = r#"{"inputs":[{"name":"INPUT","datatype":"FP32","shape":[0]}]}"#;
    check("identity_fp32", nothing, "OUTPUT", json!([]));
    // Inputs in another order than the model's.
    let mut swapped = add_sub();
    swapped["inputs"].as_array_mut().unwrap().reverse();
    let first_minus_second: Vec<i32> = (-1..15).collect();
    check("add_sub", &swapped.to_string(), "OUTPUT1", json!(first_minus_second));
}

#[test]
fn numbers_that_are_none_pass_as_tokens() {
    let server = Server::over(&Repository::of(&["identity_fp32"]));
    let text = r#"{"inputs":[{"name":"INPUT","datatype":"FP32","shape":[3],"data":[NaN,Infinity,-Infinity]}]}"#;
    let response = server.ask(&Request::post(&infer("identity_fp32"), text)).ok();
    let answer = response.text();
    assert!(answer.contains("NaN") && answer.contains("-Infinity"), "{answer}");
    let bytes = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].map(f32::to_le_bytes).concat();
    let json = json!({
        "inputs": [{"name": "INPUT", "datatype": "FP32", "shape": [3],
                    "parameters": {"binary_data_size": 12}}],
        "parameters": {"binary_data_output": true},
    });
    let response = server.ask(&with_tail(&infer("identity_fp32"), &json, &bytes)).ok();
    assert!(response.body.ends_with(&bytes), "{response:?}");
}

#[test]
fn outputs_come_as_asked() {
    let server = Server::over(&Repository::of(&["add_sub", "identity_fp32"]));
    let ask = |request: &Value| server.post(&infer("add_sub"), request);
    let sums: Vec<i32> = (1..17).collect();

    let all = outputs(&ask(&add_sub()));
    let names: Vec<_> = all.iter().map(|output| output["name"].clone()).collect();
    assert_eq!(names, ["OUTPUT0", "OUTPUT1"]);
    assert_eq!(all[0]["shape"], json!([1, 16]));
    assert_eq!(all[0]["data"], json!(sums), "data is flat");

    let mut one = add_sub();
    one["outputs"] = json!([{"name": "OUTPUT1"}]);
    assert_eq!(outputs(&ask(&one)).len(), 1);

    let mut other_order = add_sub();
    other_order["outputs"] = json!([{"name": "OUTPUT1"}, {"name": "OUTPUT0"}]);
    let names: Vec<_> = outputs(&ask(&other_order)).iter().map(|o| o["name"].clone()).collect();
    assert_eq!(names, ["OUTPUT1", "OUTPUT0"]);

    // One output in JSON, one in binary form; one input in JSON, one in binary form.
    let mut mixed = add_sub();
    let ones = mixed["inputs"][1].as_object_mut().unwrap().remove("data").unwrap();
    mixed["inputs"][1]["parameters"] = json!({"binary_data_size": 64});
    mixed["outputs"] =
        json!([{"name": "OUTPUT0", "parameters": {"binary_data": true}}, {"name": "OUTPUT1"}]);
    let request = with_tail(&infer("add_sub"), &mixed, &to_bytes("INT32", &ones));
    let response = server.ask(&request);
    assert_eq!(response.header("content-type"), Some("application/octet-stream"));
    assert_eq!(data(&response, "OUTPUT0"), json!(sums));
    assert_eq!(data(&response, "OUTPUT1"), json!((-1..15).collect::<Vec<i32>>()));
    assert_eq!(response.body[response.body.len() - 64..], to_bytes("INT32", &json!(sums)));

    // An output's own word counts more than the request's.
    let mut stubborn = add_sub();
    stubborn["parameters"] = json!({"binary_data_output": true});
    stubborn["outputs"] = json!([{"name": "OUTPUT0", "parameters": {"binary_data": false}}]);
    assert_eq!(ask(&stubborn).header(JSON_LENGTH), None);

    // An empty binary output can be read by clients that look at its size.
    let empty = json!({
        "inputs": [{"name": "INPUT", "datatype": "FP32", "shape": [0], "data": []}],
        "parameters": {"binary_data_output": true},
    });
    let response = server.post(&infer("identity_fp32"), &empty);
    assert_eq!(outputs(&response)[0]["parameters"]["binary_data_size"], 0, "{response:?}");
}

#[test]
fn a_raw_request_is_nothing_but_the_input() {
    let server = Server::over(&Repository::of(&["identity_fp32", "identity_bytes", "add_sub"]));
    let raw = |model: &str, bytes: &[u8]| {
        server.ask(&Request::post(&infer(model), bytes).header(JSON_LENGTH, "0"))
    };
    let bytes = 1.5_f32.to_le_bytes();
    let response = raw("identity_fp32", &bytes);
    assert!(response.header(JSON_LENGTH).is_some(), "outputs come in binary form: {response:?}");
    assert_eq!(data(&response, "OUTPUT"), json!([1.5]));
    assert_eq!(outputs(&response)[0]["shape"], json!([1]));
    assert_eq!(data(&raw("identity_bytes", b"no prefix"), "OUTPUT"), json!(["no prefix"]));
    assert_eq!(raw("add_sub", &bytes).status, 400, "two inputs have no raw form");
    assert_eq!(raw("identity_fp32", &bytes[..3]).status, 400, "three quarters of an element");
}

#[test]
fn answers_say_who_made_them() {
    let server = Server::over(&Repository::of(&["add_sub"]));
    let mut connection = server.connect();
    let mut ids = HashSet::new();
    for number in 0..20 {
        let mut request = add_sub();
        request["id"] = json!(format!("mine-{number}"));
        let response = connection.ask(&Request::post_json(&infer("add_sub"), &request)).ok();
        let answer = response.json();
        assert_eq!(answer["id"], format!("mine-{number}"));
        assert_eq!(answer["model_name"], "add_sub");
        assert_eq!(answer["model_version"], "1");
        assert_eq!(response.header("x-tidegate-version"), Some("1"));
        assert_eq!(response.header("x-tidegate-arm"), Some("baseline"));
        let prediction = response.header("x-tidegate-prediction-id").expect("a prediction id");
        assert_eq!(answer["parameters"]["x-tidegate-prediction-id"], prediction);
        assert!(ids.insert(prediction.to_owned()), "{prediction} came twice");
    }

    let response = connection.ask(&Request::post_json(&infer("add_sub"), &add_sub())).ok();
    assert!(response.json().get("id").is_none(), "no id is invented");
    let order = ["\"model_name\"", "\"model_version\"", "\"parameters\"", "\"outputs\""];
    let text = response.text();
    let places = order.map(|key| text.find(key).unwrap_or_else(|| panic!("{key} in {text}")));
    assert!(places.is_sorted(), "{text}");

    let made = response.header("x-request-id").expect("a request id is made").to_owned();
    let named = Request::post_json(&infer("add_sub"), &add_sub()).header("x-request-id", "abc-1");
    assert_eq!(connection.ask(&named).ok().header("x-request-id"), Some("abc-1"));
    let again = connection.ask(&Request::post_json(&infer("add_sub"), &add_sub())).ok();
    assert_ne!(again.header("x-request-id"), Some(made.as_str()));
    let refused = Request::post(&infer("add_sub"), "{").header("x-request-id", "abc-2");
    assert_eq!(connection.ask(&refused).header("x-request-id"), Some("abc-2"));

    let path = "/v2/models/add_sub/versions/1/infer";
    let response = connection.ask(&Request::post_json(path, &add_sub())).ok();
    assert_eq!(response.header("x-tidegate-version"), Some("1"));
    let parameters =
        json!({"parameters": {"priority": 1, "timeout": 5_000_000, "own": "x", "n": 1.5}});
    let mut request = add_sub();
    request["parameters"] = parameters["parameters"].clone();
    connection.ask(&Request::post_json(&infer("add_sub"), &request)).ok();
}

#[test]
fn classification_gives_the_best_classes_first() {
    let server = Server::over(&Repository::of(&["identity_fp32_2d"]));
    for binary in [false, true] {
        let rows = json!([[0.5, 3.25, 1.0], [9.0, -1.0, 0.0]]);
        let (shape, classes) = classify(&server, &[2, 3], &rows, 2, binary);
        assert_eq!(shape, json!([2, 2]));
        assert_eq!(classes, json!(["3.250000:1", "1.000000:2", "9.000000:0", "0.000000:2"]));
    }
    let (shape, classes) = classify(&server, &[1, 2], &json!([[0.5, 3.25]]), 7, false);
    assert_eq!(shape, json!([1, 2]), "there are only two");
    assert_eq!(classes, json!(["3.250000:1", "0.500000:0"]));
}

#[test]
fn class_names_come_from_the_file_that_the_configuration_names() {
    let repository = Repository::of(&["identity_fp32_2d"]);
    repository.describe("identity_fp32_2d", "names.txt", "low\nmiddle\nhigh\n");
    let config = r#"
        name: "identity_fp32_2d"
        platform: "onnxruntime_onnx"
        max_batch_size: 8
        input [ { name: "INPUT" data_type: TYPE_FP32 dims: [ 3 ] } ]
        output [ { name: "OUTPUT" data_type: TYPE_FP32 dims: [ 3 ] label_filename: "names.txt" } ]
    "#;
    repository.describe("identity_fp32_2d", "config.pbtxt", config);
    let server = Server::over(&repository);
    let (_, classes) = classify(&server, &[1, 3], &json!([[0.5, 3.25, 1.0]]), 2, false);
    assert_eq!(classes, json!(["3.250000:1:middle", "1.000000:2:high"]));
}

/// Shape and elements of the `k` best classes of these scores.
fn classify(
    server: &Server,
    shape: &[usize],
    scores: &Value,
    k: usize,
    binary: bool,
) -> (Value, Value) {
    let mut request = body(&[input("INPUT", "FP32", shape, scores)]);
    let parameters = json!({"classification": k, "binary_data": binary});
    request["outputs"] = json!([{"name": "OUTPUT", "parameters": parameters}]);
    let output = outputs(&server.post(&infer("identity_fp32_2d"), &request)).remove(0);
    assert_eq!(output["datatype"], "BYTES");
    (output["shape"].clone(), output["data"].clone())
}

#[test]
fn bodies_may_be_compressed_both_ways() {
    let server = Server::over(&Repository::of(&["identity_fp32"]));
    let path = infer("identity_fp32");
    let many: Vec<f64> = (0..5000).map(f64::from).collect();
    let mut asked = identity("FP32", &json!(many));
    let plain = asked.to_string();
    let mut connection = server.connect();

    let packed = [("gzip", gzip(plain.as_bytes())), ("deflate", deflate(plain.as_bytes()))];
    for (coding, bytes) in packed {
        let request = Request::post(&path, bytes).header("content-encoding", coding);
        assert_eq!(data(&connection.ask(&request), "OUTPUT"), json!(many), "{coding}");
    }
    // Lengths count what was packed, not the packet.
    let binary = in_binary(&path, &asked);
    let bytes = binary.bytes();
    let split = bytes.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
    let request = binary.body(gzip(&bytes[split..])).header("content-encoding", "gzip");
    assert_eq!(data(&connection.ask(&request), "OUTPUT"), json!(many));

    asked["parameters"] = json!({"binary_data_output": true});
    let check = |accept: &str, expected: Option<&str>| {
        let request = Request::post_json(&path, &asked).header("accept-encoding", accept);
        let mut response = server.ask(&request).ok();
        assert_eq!(response.header("content-encoding"), expected, "accept-encoding: {accept}");
        response.body = match expected {
            Some("gzip") => unpacked(GzDecoder::new(&response.body[..])),
            Some(_) => unpacked(ZlibDecoder::new(&response.body[..])),
            None => response.body,
        };
        assert_eq!(data(&response, "OUTPUT"), json!(many), "{accept}");
    };
    check("gzip", Some("gzip"));
    check("deflate", Some("deflate"));
    check("identity", None);
    check("br", None);
    check("gzip;q=0", None);
    check("gzip;q=0.5, deflate;q=0.8", Some("deflate"));
    check("gzip, deflate", Some("gzip"));
    check("deflate, gzip", Some("deflate"));
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// HTTP's `deflate` is zlib's format.
fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn unpacked(mut decoder: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    decoder.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_large_input_that_is_also_an_output_comes_back_unharmed() {
    let server = Server::over(&Repository::of(&["passed_through"]));
    let values: Vec<f32> = (0_u16..50_000).map(f32::from).collect();
    for _ in 0..20 {
        let request = json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [50_000], "data": values}]});
        let response = server.post(&infer("passed_through"), &request).ok();
        let returned = flat(&data(&response, "x"));
        assert_eq!(returned.len(), values.len());
        for (returned, sent) in returned.iter().zip(&values) {
            assert_eq!(returned.as_f64(), Some(f64::from(*sent)));
        }
    }
}
