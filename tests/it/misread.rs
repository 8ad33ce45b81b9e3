//! Operators that tract computes wrongly: such versions are refused, unless golden outputs show that these are right.
//!
//! Each case is run on both engines where both are there: a row of the table that is out of date fails here.

use tidegate::engine::onnx::{Limits, misread};

use crate::models::{
    FLOAT, INT64, Message, declared, floats, graph, int_attribute, integers, node, with_versions,
};

/// An attribute that is a list of numbers.
fn ints(name: &str, all: &[i64]) -> Message {
    let head = Message::default().bytes(1, name).number(20, 7);
    all.iter().fold(head, |whole, one| whole.number(8, *one))
}

/// An attribute that is a list of FP32, packed.
fn numbers(name: &str, all: &[f32]) -> Message {
    let packed: Vec<u8> = all.iter().flat_map(|one| one.to_le_bytes()).collect();
    Message::default().bytes(1, name).bytes(7, packed).number(20, 6)
}

/// An attribute that is a text.
fn text(name: &str, text: &str) -> Message {
    Message::default().bytes(1, name).bytes(4, text).number(20, 3)
}

/// An attribute that is a list of texts.
fn texts(name: &str, all: &[&str]) -> Message {
    let head = Message::default().bytes(1, name).number(20, 8);
    all.iter().fold(head, |whole, one| whole.bytes(9, one))
}

/// A tree of one branch: the first leaf votes for the first of these classes, the second for the other.
fn tree(classes: &[i64], votes: [i64; 2], mode: &str, ids: [i64; 3]) -> Message {
    node("TreeEnsembleClassifier", &["x"], &["label", "scores"])
        .bytes(7, "ai.onnx.ml")
        .message(5, ints("nodes_treeids", &[0; 3]))
        .message(5, ints("nodes_nodeids", &ids))
        .message(5, ints("nodes_featureids", &[0; 3]))
        .message(5, numbers("nodes_values", &[0.5, 0.0, 0.0]))
        .message(5, texts("nodes_modes", &[mode, "LEAF", "LEAF"]))
        .message(5, ints("nodes_truenodeids", &[ids[1], 0, 0]))
        .message(5, ints("nodes_falsenodeids", &[ids[2], 0, 0]))
        .message(5, ints("class_treeids", &[0; 2]))
        .message(5, ints("class_nodeids", &ids[1..]))
        .message(5, ints("class_ids", &votes))
        .message(5, numbers("class_weights", &[0.25, 0.75]))
        .message(5, ints("classlabels_int64s", classes))
}

/// A model of one node of `x` [-1,2], and of constants.
fn alone(node: Message, constants: Vec<Message>, outputs: &[(&str, i64, &[i64])]) -> Vec<u8> {
    let inputs = vec![declared("x", FLOAT, &[-1, 2])];
    let outputs = outputs.iter().map(|(name, element, dims)| declared(name, *element, dims));
    let graph = graph(vec![node], constants, inputs, outputs.collect());
    with_versions(graph, 8, &[("", 17), ("ai.onnx.ml", 3)])
}

const CLASSIFIED: &[(&str, i64, &[i64])] = &[("label", INT64, &[-1]), ("scores", FLOAT, &[-1, -1])];
const ONE: &[(&str, i64, &[i64])] = &[("y", FLOAT, &[-1, -1])];

/// The forest of two classes with one column of scores that exporters write.
fn forest() -> Vec<u8> {
    alone(tree(&[0, 1], [0, 0], "BRANCH_LEQ", [0, 1, 2]), vec![], CLASSIFIED)
}

fn linear(labels: &[i64], rows: usize, post: &str) -> Vec<u8> {
    let node = node("LinearClassifier", &["x"], &["label", "scores"])
        .bytes(7, "ai.onnx.ml")
        .message(5, ints("classlabels_ints", labels))
        .message(5, numbers("coefficients", &[1.0, -0.5, -1.0, 0.5, 0.25, 2.0][..2 * rows]))
        .message(5, numbers("intercepts", &[0.1, -0.2, 0.3][..rows]))
        .message(5, text("post_transform", post));
    alone(node, vec![], CLASSIFIED)
}

fn learned(operator: &str, attribute: Option<Message>) -> Vec<u8> {
    let node = node(operator, &["x"], &["y"]).bytes(7, "ai.onnx.ml");
    let node = attribute.into_iter().fold(node, |node, own| node.message(5, own));
    let node = match operator {
        "LinearRegressor" => node
            .message(5, numbers("coefficients", &[1.0, -0.5]))
            .message(5, numbers("intercepts", &[0.1])),
        _ => node,
    };
    alone(node, vec![], ONE)
}

/// A recurrent network of one unit over `x` [3,1,2].
fn recurrent(operator: &str, gates: i64, attributes: Vec<Message>) -> Vec<u8> {
    let directions = 1;
    let cells = usize::try_from(gates).unwrap();
    let node = node(operator, &["x", "w", "r", "", "", "h"], &["y"])
        .message(5, int_attribute("hidden_size", 1));
    let node = if operator == "LSTM" { node.bytes(1, "h") } else { node };
    let node = attributes.into_iter().fold(node, |node, own| node.message(5, own));
    let constants = vec![
        floats("w", &[directions, gates, 2], &[0.7; 8][..2 * cells]),
        floats("r", &[directions, gates, 1], &[0.3; 4][..cells]),
        floats("h", &[directions, 1, 1], &[0.0]),
    ];
    let inputs = vec![declared("x", FLOAT, &[3, 1, 2])];
    let graph = graph(vec![node], constants, inputs, vec![declared("y", FLOAT, &[3, 1, 1, 1])]);
    with_versions(graph, 8, &[("", 14)])
}

fn extractor(dims: &[i64]) -> Vec<u8> {
    let node = node("ArrayFeatureExtractor", &["x", "i"], &["y"]).bytes(7, "ai.onnx.ml");
    alone(node, vec![integers("i", INT64, dims, &[1])], ONE)
}

fn space_to_depth(mode: &str) -> Vec<u8> {
    let node = node("SpaceToDepth", &["x"], &["y"])
        .message(5, int_attribute("blocksize", 2))
        .message(5, text("mode", mode));
    alone(node, vec![], ONE)
}

fn old_sum(axis: Option<i64>) -> Vec<u8> {
    let node = node("Add", &["x", "v"], &["y"]).message(5, int_attribute("broadcast", 1));
    let node =
        axis.into_iter().fold(node, |node, axis| node.message(5, int_attribute("axis", axis)));
    let (x, y) = (declared("x", FLOAT, &[2, 2]), declared("y", FLOAT, &[2, 2]));
    with_versions(
        graph(vec![node], vec![floats("v", &[2], &[1.0, 2.0])], vec![x], vec![y]),
        3,
        &[("", 6)],
    )
}

fn attention(attributes: Vec<Message>, inputs: &[&str]) -> Vec<u8> {
    let node = node("Attention", inputs, &["y"]);
    let node = attributes.into_iter().fold(node, |node, own| node.message(5, own));
    let ends: Vec<_> = inputs
        .iter()
        .filter(|name| !name.is_empty())
        .map(|name| declared(name, FLOAT, &[1, 1, 2, 2]))
        .collect();
    with_versions(
        graph(vec![node], vec![], ends, vec![declared("y", FLOAT, &[1, 1, 2, 2])]),
        10,
        &[("", 24)],
    )
}

/// Models, the beginning of what is wrong with them (empty if nothing is), and the shape of `x`.
fn cases() -> Vec<(&'static str, Vec<u8>, &'static str, &'static [i64])> {
    const ROWS: &[i64] = &[4, 2];
    const STEPS: &[i64] = &[3, 1, 2];
    let three = |votes, mode, ids| alone(tree(&[0, 1, 2], votes, mode, ids), vec![], CLASSIFIED);
    let (reverse, clip) = (
        || text("direction", "reverse"),
        || Message::default().bytes(1, "clip").float(2, 0.01).number(20, 1),
    );
    let relu = || texts("activations", &["Relu"]);
    let tanh = || texts("activations", &["Tanh"]);
    vec![
        ("two classes, one column", forest(), "with two classes", ROWS),
        (
            "two classes, the second",
            alone(tree(&[0, 1], [1, 1], "BRANCH_LEQ", [0, 1, 2]), vec![], CLASSIFIED),
            "with two classes",
            ROWS,
        ),
        ("three classes", three([0, 2], "BRANCH_LEQ", [0, 1, 2]), "", ROWS),
        (
            "at least",
            three([0, 2], "BRANCH_GTE", [0, 1, 2]),
            "it takes nodes of the mode BRANCH_GTE",
            ROWS,
        ),
        ("less", three([0, 2], "BRANCH_LT", [0, 1, 2]), "", ROWS),
        ("one row", linear(&[0, 1], 1, "NONE"), "with one row", ROWS),
        ("one row, made probabilities", linear(&[0, 1], 1, "SOFTMAX"), "with one row", ROWS),
        ("one row, logistic", linear(&[0, 1], 1, "LOGISTIC"), "", ROWS),
        ("two rows", linear(&[0, 1], 2, "NONE"), "", ROWS),
        ("three rows", linear(&[0, 1, 2], 3, "SOFTMAX"), "", ROWS),
        ("a regression", learned("LinearRegressor", None), "", ROWS),
        (
            "one that is transformed",
            learned("LinearRegressor", Some(text("post_transform", "LOGISTIC"))),
            "its post_transform",
            ROWS,
        ),
        ("a norm", learned("Normalizer", Some(text("norm", "MAX"))), "with the norm MAX", ROWS),
        ("another norm", learned("Normalizer", Some(text("norm", "L2"))), "", ROWS),
        ("a column", extractor(&[1]), "", ROWS),
        ("a column without dimensions", extractor(&[]), "an index without dimensions", ROWS),
        ("recurrent", recurrent("RNN", 1, vec![]), "", STEPS),
        ("backwards", recurrent("RNN", 1, vec![reverse()]), "it runs forward", STEPS),
        ("a GRU backwards", recurrent("GRU", 3, vec![reverse()]), "it runs forward", STEPS),
        ("an LSTM backwards", recurrent("LSTM", 4, vec![reverse()]), "it runs forward", STEPS),
        ("an LSTM", recurrent("LSTM", 4, vec![]), "", STEPS),
        ("clipped", recurrent("GRU", 3, vec![clip()]), "it does not heed `clip`", STEPS),
        ("activated", recurrent("RNN", 1, vec![relu()]), "it does not heed `activations`", STEPS),
        ("as usual", recurrent("RNN", 1, vec![tanh()]), "", STEPS),
    ]
}

fn reason(model: &[u8]) -> &'static str {
    let found = misread(model, &Limits::default()).unwrap();
    found.first().map_or("", |one| one.reason)
}

#[test]
fn the_table_knows_what_comes_out_wrong() {
    let two = |attributes| attention(attributes, &["q", "k", "v"]);
    let causal = || int_attribute("is_causal", 1);
    let unnumbered = tree(&[0, 1, 2], [0, 2], "BRANCH_LEQ", [0, 5, 9]);
    let further = [
        ("sums along the last axis", old_sum(None), ""),
        ("sums along another", old_sum(Some(0)), "it does not heed the `axis`"),
        ("in depth", space_to_depth("DCR"), ""),
        ("in another order", space_to_depth("CRD"), "it does not heed the mode"),
        ("attention", two(vec![causal()]), ""),
        (
            "in a window",
            two(vec![causal(), int_attribute("left_window_size", 1)]),
            "it does not heed the window",
        ),
        ("in any window", two(vec![int_attribute("left_window_size", -1)]), ""),
        (
            "after a past",
            attention(vec![causal()], &["q", "k", "v", "", "pk", "pv"]),
            "with `is_causal`",
        ),
        ("an unnumbered tree", alone(unnumbered, vec![], CLASSIFIED), "it reads beyond its trees"),
        (
            "a class too many",
            alone(tree(&[0, 1, 2], [0, 3], "BRANCH_LEQ", [0, 1, 2]), vec![], CLASSIFIED),
            "it reads beyond its trees",
        ),
    ];
    let all = cases().into_iter().map(|(name, model, expected, _)| (name, model, expected));
    for (name, model, expected) in all.chain(further) {
        let reason = reason(&model);
        assert_eq!(reason.is_empty(), expected.is_empty(), "{name}: {reason}");
        assert!(reason.starts_with(expected), "{name}: {reason}");
    }
}

#[cfg(feature = "tract")]
mod served {
    use std::{borrow::Cow, fs, sync::Arc};

    use serde_json::{Value, json};
    use tidegate::{
        engine::{self, Engines, ModelFile, SessionOptions},
        model::{EngineChoice, Input},
        tensor::{Data, Shape, Tensor},
    };

    use super::*;
    use crate::{engines::program_alone, repository::Repository, server::Launch, tensors::infer};

    /// Runs each case on both engines.
    #[test]
    fn the_engines_differ_where_the_table_says_so_and_nowhere_else() {
        let engines = Engines::open(&engine::Settings::default()).unwrap();
        for (name, model, expected, dims) in cases() {
            let file = ModelFile {
                bytes: model.into(),
                external: Vec::new(),
                summary: Arc::default(),
                packed: tidegate::engine::Packed::default(),
            };
            let shape = Shape::new(dims).unwrap();
            let wave = [-2.0, -0.3, 0.5, -1.5, 0.75, 1.25, 3.0, 0.1];
            let values =
                wave.iter().cycle().take(shape.element_count().unwrap()).copied().collect();
            let input = Input {
                name: "x".to_owned(),
                tensor: Tensor::new(shape, Data::Fp32(values)).unwrap(),
            };
            let outputs = [EngineChoice::OnnxRuntime, EngineChoice::Tract].map(|choice| {
                let options = SessionOptions { intra_op_threads: 1, arena: None };
                let mut session = engines.choose(choice).unwrap().load(&file, options).unwrap();
                let wanted: Vec<_> = (0..session.signature().outputs.len()).collect();
                session.run(Cow::Borrowed(std::slice::from_ref(&input)), &wanted).unwrap()
            });
            let is_close = |(one, other): (&Tensor, &Tensor)| {
                let near = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-5;
                **one.shape() == **other.shape()
                    && match (one.view::<f32>(), other.view::<f32>()) {
                        (Ok(one), Ok(other)) => one.iter().zip(other.iter()).all(near),
                        _ => one == other,
                    }
            };
            let is_same = outputs[0].iter().zip(&outputs[1]).all(is_close);
            assert_eq!(is_same, expected.is_empty(), "{name}: {outputs:?}");
        }
    }

    const TRACT: &str = "engine = \"tract\"\n";

    fn golden(outputs: &Value) -> String {
        let x = json!({"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [0.25, 0]});
        json!({"cases": [{"inputs": [x], "outputs": outputs}]}).to_string()
    }

    #[test]
    fn what_tract_gets_wrong_is_refused_unless_golden_outputs_vouch_for_it() {
        let repository = Repository::of(&["add_sub"]);
        let label = json!({"name": "label", "datatype": "INT64", "shape": [1], "data": [0]});
        let wrong = json!({"name": "label", "datatype": "INT64", "shape": [1], "data": [1]});
        let scores =
            json!({"name": "scores", "datatype": "FP32", "shape": [1, 2], "data": [0.75, 0.25]});
        let told = "tract is wrong about the `TreeEnsembleClassifier` that gives `label`: with two classes its labels are \
                those of the wrong class, or always the first, and scores may differ, too; use onnxruntime (`engine = \
                \"onnxruntime\"`), or add golden.json with all outputs to show that it is right for this model";
        let cases = [
            ("bare", None, Some(told)),
            ("shown", Some(json!([label, scores])), None),
            ("half_shown", Some(json!([scores])), Some(told)),
            (
                "shown_to_be_wrong",
                Some(json!([wrong, scores])),
                Some("proof failed (golden): golden case 0 is not reproduced: output `label`"),
            ),
        ];
        for (name, outputs, _) in &cases {
            repository.add_bytes(name, "1", &forest());
            repository.describe(name, "model.toml", TRACT);
            if let Some(outputs) = outputs {
                fs::write(repository.path().join(name).join("1/golden.json"), golden(outputs))
                    .unwrap();
            }
        }
        let lstm = recurrent("LSTM", 4, vec![]);
        repository.add_bytes("lstm", "1", &lstm);
        repository.describe("lstm", "model.toml", TRACT);
        let server = Launch::of(&repository).start();
        for (name, _, expected) in cases {
            let state = if expected.is_some() { "UNAVAILABLE" } else { "READY" };
            let entry = server.wait_for_state(name, "1", state);
            if let Some(expected) = expected {
                assert!(entry["reason"].as_str().unwrap().starts_with(expected), "{name}: {entry}");
            }
        }
        server.wait_for_state("lstm", "1", "READY");
    }

    #[test]
    fn where_the_library_is_missing_the_refusal_says_how_to_get_it() {
        let repository = Repository::of(&["add_sub"]);
        repository.add_bytes("forest", "1", &forest());
        let (_folder, program) = program_alone();
        let server = Launch::of(&repository).bare(program).start();
        let entry = server.wait_for_state("forest", "1", "UNAVAILABLE");
        let reason = entry["reason"].as_str().unwrap();
        assert!(
            reason.starts_with("tract is wrong about the `TreeEnsembleClassifier`"),
            "{reason}"
        );
        assert!(
            reason.contains("; ONNX Runtime's library was not found; `make build` fetches it"),
            "{reason}"
        );
    }

    /// tract runs an LSTM that gives its cell and starts from zeros for a batch of 1 only: a note says so.
    #[test]
    fn an_lstm_of_batches_of_one_is_served_with_a_note() {
        let repository = Repository::of(&["add_sub"]);
        for batch in [1, 3] {
            let node = node("LSTM", &["x", "w", "r"], &["y", "", "c"])
                .message(5, int_attribute("hidden_size", 1));
            let constants =
                vec![floats("w", &[1, 4, 2], &[0.7; 8]), floats("r", &[1, 4, 1], &[0.3; 4])];
            let inputs = vec![declared("x", FLOAT, &[3, batch, 2])];
            let outputs = [("y", &[3, 1, batch, 1][..]), ("c", &[1, batch, 1])]
                .map(|(name, dims)| declared(name, FLOAT, dims));
            let graph = graph(vec![node], constants, inputs, outputs.to_vec());
            let name = format!("lstm_{batch}");
            repository.add_bytes(&name, "1", &with_versions(graph, 8, &[("", 14)]));
            repository.describe(&name, "model.toml", "engine = \"tract\"\nmax_batch_size = 0\n");
        }
        let server = Launch::of(&repository).start();
        for (batch, status) in [(1, 200), (3, 400)] {
            let name = format!("lstm_{batch}");
            server.wait_for_state(&name, "1", "READY");
            let data = vec![0.5; usize::try_from(6 * batch).unwrap()];
            let x = json!({"name": "x", "datatype": "FP32", "shape": [3, batch, 2], "data": data});
            let response = server.post(&infer(&name), &json!({"inputs": [x]}));
            assert_eq!(response.status, status, "{response:?}");
            let notes = server.admin(&format!("/api/v1/models/{name}")).text();
            assert!(notes.contains("it runs a batch of 1 only"), "{notes}");
        }
    }
}
