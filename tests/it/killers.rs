//! Legal requests that end or freeze ONNX Runtime: each model is refused, or the request is, and the server lives on.
//!
//! The models and requests are in `tests/fixtures/killers`, made by `make_killers.py`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tidegate::{
    engine::onnx::{Hazard, KILLERS, Limits, OnnxError, check_operators, summarize},
    lifecycle::{Code, Proof, ProofLimits},
    model::Input,
    tensor::{Data, Shape, Tensor},
};

use crate::{
    blame::lstm_of_numbers_below,
    clients::python,
    models::{
        FLOAT, INT64, Message, declared, floats, graph, graph_attribute, int_attribute, integers,
        loop_of, model, node,
    },
    proof,
    repository::{Repository, source},
    server::{Launch, Server},
    tensors::{add_sub, body, infer, input},
};

pub(crate) const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/killers");

/// A model of the corpus.
struct Killer {
    name: String,
    bytes: Vec<u8>,
    operator: String,
    is_refused: bool,
    /// Guarded by what the proof finds alone.
    is_found: bool,
    /// So, with a library that minds; the pinned one gives outputs.
    is_mended: bool,
    kill: Value,
    good: Option<Value>,
}

/// All models of the corpus.
fn corpus() -> Vec<Killer> {
    let facts = fs::read(Path::new(FOLDER).join("killers.json")).unwrap();
    let facts: BTreeMap<String, Value> = serde_json::from_slice(&facts).unwrap();
    let killer = |(name, fact): (String, Value)| Killer {
        bytes: fs::read(Path::new(FOLDER).join(&name).with_extension("onnx")).unwrap(),
        operator: fact["operator"].as_str().unwrap().to_owned(),
        is_refused: fact["verdict"] == "refused",
        is_found: fact["verdict"] == "found",
        is_mended: fact["verdict"] == "mended",
        kill: request(&fact["kill"]),
        good: fact.get("good").map(request),
        name,
    };
    facts.into_iter().map(killer).collect()
}

/// A request as the corpus writes it: by input, its datatype, shape, and value or values.
fn request(inputs: &Value) -> Value {
    let input = |(name, tensor): (&String, &Value)| {
        let count = tensor[1].as_array().unwrap().iter().map(|dim| dim.as_u64().unwrap());
        let count = usize::try_from(count.product::<u64>()).unwrap();
        let data =
            if tensor[2].is_array() { tensor[2].clone() } else { json!(vec![&tensor[2]; count]) };
        json!({"name": name, "datatype": tensor[0], "shape": tensor[1], "data": data})
    };
    json!({"inputs": inputs.as_object().unwrap().iter().map(input).collect::<Vec<_>>()})
}

fn judged(bytes: &[u8]) -> Result<Vec<Hazard>, OnnxError> {
    summarize(bytes, &Limits::default()).unwrap();
    check_operators(bytes, &Limits::default())
}

/// The neighbour's answer is right.
fn neighbour_answers(server: &Server, after: &str) {
    let response = server.post(&infer("add_sub"), &add_sub());
    assert_eq!(response.status, 200, "after {after}: {response:?}");
    assert_eq!(response.json()["outputs"][0]["data"][3], 4, "after {after}");
}

#[test]
fn every_row_of_the_table_has_a_model_that_it_judges() {
    let corpus = corpus();
    for row in KILLERS {
        let dot = if row.domain.is_empty() { "" } else { "." };
        let name = format!("{}{dot}{}", row.domain, row.operator);
        assert!(corpus.iter().any(|killer| killer.operator == name), "no model has {name}");
    }
    for Killer { name, bytes, operator, is_refused, .. } in &corpus {
        match judged(bytes) {
            Ok(hazards) => {
                assert!(!is_refused, "{name} is not refused");
                assert!(
                    hazards.iter().any(|hazard| hazard.operator == *operator),
                    "{name}: {hazards:?}"
                );
            }
            Err(error) => {
                assert!(is_refused, "{name}: {error}");
                assert!(error.to_string().contains("may end the process"), "{name}: {error}");
            }
        }
    }
}

#[test]
fn killers_end_nothing_and_their_neighbour_answers() {
    for proof in ["true", "false"] {
        let repository = Repository::of(&["add_sub"]);
        for killer in corpus() {
            repository.add_bytes(&killer.name, "1", &killer.bytes);
            // So that nothing but the guard is in the way.
            repository.describe(&killer.name, "model.toml", "max_batch_size = 0\n");
        }
        let mut server = Launch::of(&repository).set("PROOF__ENABLED", proof).start();
        for Killer { name, is_refused, is_found, is_mended, kill, good, .. } in corpus() {
            let entry = server.indexed(&name, "1").unwrap_or_else(|| panic!("{name} is listed"));
            let state = if is_refused { "UNAVAILABLE" } else { "READY" };
            assert_eq!(entry["state"], state, "{name}: {entry}");
            if is_found && proof == "false" && name == "q_linear_average_pool_of_the_rest" {
                continue; // the operator has trusted it
            }
            let response = server.post(&infer(&name), &kill);
            if is_refused {
                let reason = entry["reason"].as_str().unwrap();
                assert!(reason.contains("may end the process"), "{name}: {reason}");
                assert!(response.status >= 400, "{name}: {response:?}");
            } else if !is_mended || response.status != 200 {
                assert_eq!(response.status, 400, "{name}, proof {proof}: {response:?}");
                let notes = server.admin(&format!("/api/v1/models/{name}")).text();
                assert!(notes.contains("are refused"), "{name}, proof {proof}: {notes}");
            }
            if let Some(good) = good {
                let response = server.post(&infer(&name), &good);
                assert_eq!(response.status, 200, "{name}, proof {proof}: {response:?}");
            }
            neighbour_answers(&server, &name);
        }
        let models = server.admin("/api/v1/models").text();
        assert!(models.contains("requests with an empty input are refused"), "{models}");
        assert!(server.is_running());
    }
}

/// Silero's voice activity detection as its package brings it, without running any of that.
fn silero() -> Vec<u8> {
    let find = "import importlib.util; print(importlib.util.find_spec('silero_vad').submodule_search_locations[0])";
    let output = Command::new(python()).args(["-c", find]).output().unwrap();
    assert!(output.status.success(), "no silero-vad in {}: run `make test`", python().display());
    let package = String::from_utf8(output.stdout).unwrap();
    fs::read(Path::new(package.trim()).join("data/silero_vad.onnx")).unwrap()
}

#[test]
fn a_batch_of_0_does_not_end_silero_and_one_of_1_is_answered() {
    for proof in ["true", "false"] {
        let repository = Repository::of(&["add_sub"]);
        repository.add_bytes("silero", "1", &silero());
        repository.describe("silero", "model.toml", "max_batch_size = 0\n");
        let server = Launch::of(&repository).set("PROOF__ENABLED", proof).start();
        server.wait_for_state("silero", "1", "READY");
        let rows = |rows: usize| {
            body(&[
                input("input", "FP32", &[rows, 576], &json!(vec![0.1; rows * 576])),
                input("state", "FP32", &[2, rows, 128], &json!(vec![0.0; 2 * rows * 128])),
                input("sr", "INT64", &[], &json!([16_000])),
            ])
        };
        let response = server.post(&infer("silero"), &rows(0));
        assert_eq!(response.status, 400, "{response:?}");
        assert!(response.text().contains("LSTM"), "{response:?}");
        let response = server.post(&infer("silero"), &rows(1));
        assert_eq!(response.status, 200, "{response:?}");
        let speech = response.json()["outputs"][0]["data"][0].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&speech), "{speech}");
        neighbour_answers(&server, "silero");
    }
}

/// A model of these nodes with an image `x`, a kernel `k` of integers' size `n` and a constant kernel `c`.
fn with(nodes: Vec<Message>) -> Vec<u8> {
    let initializers = vec![
        floats("c", &[1, 1, 1, 1], &[1.0]),
        integers("one", INT64, &[], &[1]),
        integers("dims", INT64, &[4], &[1, 1, 1, 1]),
    ];
    let inputs = vec![
        declared("x", FLOAT, &[-1, 1, 5, 5]),
        declared("k", FLOAT, &[1, 1, 3, 3]),
        declared("n", INT64, &[4]),
        declared("signal", FLOAT, &[1, 32, 1]),
    ];
    model(graph(nodes, initializers, inputs, vec![declared("y", FLOAT, &[-1, -1, -1, -1])]))
}

/// A model that nothing is kept from.
const SAFE: Option<&str> = Some("");
/// A model that is not served.
const REFUSED: Option<&str> = None;

#[test]
fn operators_are_judged_by_what_is_certain() {
    let kernel_rank = |rank: usize| {
        let attribute = Message::default().bytes(1, "kernel_shape").number(20, 7);
        (0..rank).fold(attribute, |attribute, _| attribute.number(8, 3))
    };
    let conv = |kernel: &str| node("Conv", &["x", kernel], &["y"]);
    let transposed =
        |rank| node("ConvTranspose", &["x", "c"], &["y"]).message(5, kernel_rank(rank));
    let branch = |inner: Message| {
        let graph =
            || graph(vec![inner.clone()], vec![], vec![], vec![declared("y", FLOAT, &[-1])]);
        node("If", &["n"], &["y"])
            .message(5, graph_attribute("then_branch", graph()))
            .message(5, graph_attribute("else_branch", graph()))
    };
    let table: Vec<(&str, Option<&str>, Vec<Message>)> = vec![
        ("a constant kernel", SAFE, vec![conv("c")]),
        ("a kernel made of constants", SAFE, vec![node("Transpose", &["c"], &["t"]), conv("t")]),
        ("a reshaped constant", SAFE, vec![node("Reshape", &["c", "dims"], &["t"]), conv("t")]),
        ("a kernel of the request", Some("Conv"), vec![conv("k")]),
        ("a computed kernel", Some("Conv"), vec![node("Relu", &["k"], &["t"]), conv("t")]),
        (
            "a kernel of the request's shape",
            REFUSED,
            vec![node("Reshape", &["k", "n"], &["t"]), conv("t")],
        ),
        (
            "a constant, shaped by the request",
            REFUSED,
            vec![node("Expand", &["c", "n"], &["t"]), conv("t")],
        ),
        (
            "shaped by a shape",
            Some("Conv"),
            vec![node("Shape", &["k"], &["s"]), node("Expand", &["k", "s"], &["t"]), conv("t")],
        ),
        (
            "shaped by values that were found",
            REFUSED,
            vec![
                node("NonZero", &["k"], &["z"]),
                node("Shape", &["z"], &["s"]),
                node("Expand", &["k", "s"], &["t"]),
                conv("t"),
            ],
        ),
        ("a flat transposed convolution", SAFE, vec![transposed(2)]),
        ("one in space", Some("ConvTranspose"), vec![transposed(3)]),
        (
            "one that does not say",
            Some("ConvTranspose"),
            vec![node("ConvTranspose", &["x", "c"], &["y"])],
        ),
        ("unique elements", SAFE, vec![node("Unique", &["x"], &["y"])]),
        (
            "unique rows",
            Some("Unique"),
            vec![node("Unique", &["x"], &["y"]).message(5, int_attribute("axis", 0))],
        ),
        (
            "frames of constant size",
            Some("STFT"),
            vec![node("STFT", &["signal", "one", "", "one"], &["y"])],
        ),
        (
            "frames of the request's size",
            REFUSED,
            vec![node("STFT", &["signal", "one", "", "n"], &["y"])],
        ),
        ("steps of the request's size", REFUSED, vec![node("STFT", &["signal", "n", "x"], &["y"])]),
        (
            "frames of a constant that is cast",
            Some("STFT"),
            vec![
                node("Cast", &["one"], &["w"]).message(5, int_attribute("to", INT64)),
                node("STFT", &["signal", "w", "", "w"], &["y"]),
            ],
        ),
        ("in a branch", Some("LSTM"), vec![branch(node("LSTM", &["x", "c", "c"], &["y"]))]),
        (
            "in a branch of a branch",
            Some("GRU"),
            vec![branch(branch(node("GRU", &["x", "c", "c"], &["y"])))],
        ),
        ("a kernel around the branch", SAFE, vec![branch(conv("c"))]),
        ("a request's kernel around the branch", Some("Conv"), vec![branch(conv("k"))]),
    ];
    for (name, expected, nodes) in table {
        match (judged(&with(nodes)), expected) {
            (Ok(hazards), Some("")) => assert_eq!(hazards, [], "{name}"),
            (Ok(hazards), Some(operator)) => assert_eq!(hazards[0].operator, operator, "{name}"),
            (Err(error), None) => {
                assert!(matches!(error, OnnxError::Killer { .. }), "{name}: {error}");
            }
            (judged, _) => panic!("{name}: {judged:?}"),
        }
    }
}

#[test]
fn sizes_that_follow_from_values_are_told() {
    let lstm = |x: &str| node("LSTM", &[x, "c", "c"], &["y"]);
    let told = |nodes| judged(&with(nodes)).unwrap()[0].by_values;
    assert!(!told(vec![lstm("x")]));
    assert!(told(vec![node("Compress", &["x", "n"], &["t"]), lstm("t")]));
    assert!(!told(vec![node("Slice", &["x", "one", "one"], &["t"]), lstm("t")]));
    let normalized = node("InstanceNormalization", &["t", "c", "c"], &["y"]);
    assert!(told(vec![node("Compress", &["x", "n"], &["t"]), normalized]));
}

/// What the proof makes of a model of the corpus.
fn proven(name: &str) -> Proof {
    let killer = corpus().into_iter().find(|killer| killer.name == name).unwrap();
    proof::prove(&proof::prover(ProofLimits::default()), &killer.bytes).unwrap()
}

/// Ones, as inputs of these shapes.
fn ones(names: &[&str], shapes: &[&[i64]]) -> Vec<Input> {
    let input = |(name, dims): (&&str, &&[i64])| {
        let shape = Shape::new(dims).unwrap();
        let data = Data::Fp32(vec![1.0; shape.element_count().unwrap()]);
        Input { name: (*name).to_owned(), tensor: Tensor::new(shape, data).unwrap() }
    };
    names.iter().zip(shapes).map(input).collect()
}

#[test]
fn what_ends_the_proving_process_on_a_size_becomes_a_guard() {
    let guards = proven("q_linear_average_pool_of_the_rest").guards;
    assert!(guards.check(&ones(&["x"], &[&[1]])).is_ok());
    for rows in [3, 4, 64] {
        let error = guards.check(&ones(&["x"], &[&[rows]])).unwrap_err().to_string();
        assert!(error.contains("send the size 1 in dimension 0 of `x`"), "{error}");
    }
}

#[test]
fn what_ends_the_proving_process_on_ordinary_values_is_refused() {
    let prover = proof::prover(ProofLimits::default());
    assert!(proof::prove(&prover, &lstm_of_numbers_below(100.0)).is_ok());
    // Zeros are let through, ones are not.
    let failure = proof::prove(&prover, &lstm_of_numbers_below(0.5)).unwrap_err();
    assert_eq!(failure.code, Code::Crashed, "{failure}");
}

#[test]
fn what_never_returns_becomes_a_guard_within_the_time_of_a_proof() {
    let limits = ProofLimits { time_max: Duration::from_secs(20), ..ProofLimits::default() };
    let begin = Instant::now();
    let guards = proof::prove(&proof::prover(limits), &loop_of(3, &[-1])).unwrap().guards;
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    assert!(guards.check(&ones(&["x"], &[&[2]])).is_ok(), "{guards:?}");
    assert!(guards.check(&ones(&["x"], &[&[0]])).is_ok(), "{guards:?}");
    assert!(guards.check(&ones(&["x"], &[&[3]])).is_err(), "{guards:?}");
    assert_eq!(proof::children(), Vec::<PathBuf>::new());
}

#[test]
fn empty_inputs_pass_only_as_they_ran_well() {
    let limits = ProofLimits { time_max: Duration::from_secs(20), ..ProofLimits::default() };
    let guards = proof::prove(&proof::prover(limits), &loop_of(0, &[-1, -1])).unwrap().guards;
    let check = |dims: &[i64]| guards.check(&ones(&["x"], &[dims]));
    assert!(check(&[2, 3]).is_ok());
    let error = check(&[0, 3]).unwrap_err().to_string();
    assert!(error.contains("ended the process that proved it"), "{error}");
    let error = check(&[0, 0]).unwrap_err().to_string();
    assert!(error.contains("not seen to run well"), "{error}");
    let sound = fs::read(source("identity_fp32_2d", "1")).unwrap();
    let sound = proof::prove(&proof::prover(ProofLimits::default()), &sound).unwrap();
    for empty in [[0, 5], [5, 0], [0, 0]] {
        let passed = sound.guards.check(&ones(&["INPUT"], &[&empty]));
        assert!(passed.is_ok(), "{empty:?}: {passed:?} of {sound:?}");
    }
}

#[test]
fn a_product_of_rows_is_proven_where_only_rows_are_open() {
    let repository = Repository::empty();
    let turned = |from: &str| {
        let order = Message::default().bytes(1, "perm").number(8, 1).number(8, 0).number(20, 7);
        node("Transpose", &[from], &["t"]).message(5, order)
    };
    let weights = || vec![floats("w", &[2, 4], &[1.0; 8])];
    let of = |nodes: Vec<Message>, columns: i64, rows: i64| {
        let (x, y) = (declared("x", FLOAT, &[-1, columns]), declared("y", FLOAT, &[rows, -1]));
        model(graph(nodes, weights(), vec![x], vec![y]))
    };
    let by_weights =
        |columns| of(vec![turned("w"), node("MatMul", &["x", "t"], &["y"])], columns, -1);
    repository.add_bytes("rows", "1", &by_weights(4));
    repository.add_bytes("open", "1", &by_weights(-1));
    // Nothing is left to add up: this ends the process, or does not, and the proof knows.
    repository.add_bytes(
        "sums",
        "1",
        &of(vec![turned("x"), node("MatMul", &["t", "x"], &["y"])], 4, 4),
    );
    let mut server = Server::over(&repository);
    let ask =
        |model: &str| server.post(&infer(model), &body(&[input("x", "FP32", &[0, 4], &json!([]))]));
    let answer = ask("rows");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["outputs"][0]["shape"], json!([0, 2]));
    let answer = ask("open");
    assert!(answer.status == 400 && answer.text().contains("FusedMatMul"), "{answer:?}");
    let answer = ask("sums");
    assert!(answer.status == 200 || answer.text().contains("ended the process"), "{answer:?}");
    assert!(server.is_running());
}
