//! Weights in files beside the model: wherever the model has them, however large, read once and kept.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    models::{
        FLOAT, INT64, Message, declared, graph, int_attribute, model, node, tensor_attribute,
    },
    repository::Repository,
    server::{Launch, Server, eventually_within},
};

const INT8: i64 = 3;

/// A tensor whose bytes lie in `weights.bin` from an offset on.
fn external(name: &str, element: i64, dims: &[i64], offset: u64, length: u64) -> Message {
    let entry = |key: &str, value: &str| Message::default().bytes(1, key).bytes(2, value);
    let head = dims.iter().fold(Message::default(), |tensor, dim| tensor.number(1, *dim));
    head.number(2, element)
        .bytes(8, name)
        .message(13, entry("location", "weights.bin"))
        .message(13, entry("offset", &offset.to_string()))
        .message(13, entry("length", &length.to_string()))
        .number(14, 1)
}

fn folder(repository: &Repository, model: &str) -> PathBuf {
    let folder = repository.path().join(model).join("1");
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn infer(server: &Server, model: &str, inputs: &Value) -> Value {
    let answer = server.post(&format!("/v2/models/{model}/infer"), &json!({"inputs": inputs}));
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    answer.json()["outputs"][0]["data"].clone()
}

#[test]
fn weights_are_found_wherever_the_model_has_them() {
    let repository = Repository::empty();
    // An initializer that is not aligned, and one of an attribute.
    let constant = node("Constant", &[], &["c"])
        .message(5, tensor_attribute("value", external("v", FLOAT, &[2], 11, 8)));
    let nodes = vec![node("Mul", &["x", "w"], &["m"]), constant, node("Add", &["m", "c"], &["y"])];
    let weights = vec![external("w", FLOAT, &[2], 3, 8)];
    let (x, y) = (declared("x", FLOAT, &[2]), declared("y", FLOAT, &[2]));
    let folder = folder(&repository, "parts");
    fs::write(folder.join("model.onnx"), model(graph(nodes, weights, vec![x], vec![y]))).unwrap();
    let floats = [2.0_f32, 3.0, 10.0, 20.0];
    let bytes: Vec<u8> =
        [0; 3].into_iter().chain(floats.iter().flat_map(|f| f.to_le_bytes())).collect();
    fs::write(folder.join("weights.bin"), bytes).unwrap();
    let server = Server::over(&repository);
    let x = json!([{"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 1]}]);
    assert_eq!(infer(&server, "parts", &x), json!([12.0, 23.0]));
}

/// A model that gives rows of a table of bytes, which lies beside it; `row` 1 has the bytes 7.
fn table(folder: &Path, rows: i64, columns: i64) {
    let bytes = u64::try_from(rows * columns).unwrap();
    let pick = node("Gather", &["table", "row"], &["g"]);
    let shown = node("Cast", &["g"], &["y"]).message(5, int_attribute("to", FLOAT));
    let first = node("ReduceMax", &["y"], &["max"]).message(5, int_attribute("keepdims", 0));
    let table = vec![external("table", INT8, &[rows, columns], 0, bytes)];
    let (row, max) = (declared("row", INT64, &[-1]), declared("max", FLOAT, &[]));
    let model = model(graph(vec![pick, shown, first], table, vec![row], vec![max]));
    fs::write(folder.join("model.onnx"), model).unwrap();
    // A file with a hole is as long and sooner made.
    let file = File::create(folder.join("weights.bin")).unwrap();
    file.set_len(bytes).unwrap();
    file.write_all_at(&[7; 64], u64::try_from(columns).unwrap()).unwrap();
}

fn row(number: i64) -> Value {
    json!([{"name": "row", "datatype": "INT64", "shape": [1], "data": [number]}])
}

#[test]
fn one_tensor_may_have_more_than_two_gibibytes() {
    let repository = Repository::empty();
    table(&folder(&repository, "large"), 2200, 1_000_000);
    let server = Launch::of(&repository).remembering().start_until_alive();
    let state = || server.indexed("large", "1").map(|version| version["state"].clone());
    let patience = Duration::from_mins(2);
    let state =
        eventually_within(patience, "a state", || state().filter(|state| *state != "LOADING"));
    assert_eq!(state, "READY", "{}", server.said());
    assert_eq!(infer(&server, "large", &row(1)), json!([7.0]));
    assert_eq!(infer(&server, "large", &row(2199)), json!([0.0]));
}

#[test]
fn large_files_are_kept_and_taken_again() {
    let repository = Repository::empty();
    let folder = folder(&repository, "kept");
    table(&folder, 20, 1 << 20);
    let launch = || Launch::of(&repository).remembering();
    let blobs = || {
        let found = walk(&repository.beside("state/blobs"));
        found.into_iter().filter(|length| *length == 20 << 20).count()
    };
    let server = launch().start();
    assert_eq!(infer(&server, "kept", &row(1)), json!([7.0]));
    assert_eq!(blobs(), 1);
    drop(server);
    // Bytes that are there already are not written again.
    let server = launch().start();
    assert_eq!(infer(&server, "kept", &row(1)), json!([7.0]));
    assert_eq!(blobs(), 1);
    drop(server);
    // Without the repository it comes from the store.
    fs::rename(repository.path(), repository.beside("elsewhere")).unwrap();
    let server = launch().start();
    assert_eq!(infer(&server, "kept", &row(1)), json!([7.0]));
    drop(server);
    fs::rename(repository.beside("elsewhere"), repository.path()).unwrap();
    // A file of other bytes and the same length is another version.
    let weights = File::options().write(true).open(folder.join("weights.bin")).unwrap();
    weights.write_all_at(&[9; 64], 1 << 20).unwrap();
    let server = launch().start();
    assert_eq!(infer(&server, "kept", &row(1)), json!([9.0]));
    assert_eq!(blobs(), 2);
}

/// The lengths of all files below a folder.
fn walk(folder: &Path) -> Vec<u64> {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries
        .flat_map(|entry| {
            let found = entry.metadata().unwrap();
            if found.is_dir() { walk(&entry.path()) } else { vec![found.len()] }
        })
        .collect()
}
