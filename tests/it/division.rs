//! Integer division: what can end the process is refused, and sound models are not.

use std::{fs, path::Path};

use tidegate::engine::onnx::{Limits, check_operators, summarize};

use crate::models::{
    FLOAT, INT32, INT64, Message, declared, floats, graph, graph_attribute, int_attribute,
    integers, model, node, tensor_attribute,
};

fn is_refused(bytes: &[u8]) -> bool {
    summarize(bytes, &Limits::default()).unwrap();
    match check_operators(bytes, &Limits::default()) {
        Ok(_) => false,
        Err(error) => {
            assert!(error.to_string().contains("by a constant without -1"), "{error}");
            true
        }
    }
}

/// A model with the input `x`, integers `n` and numbers `f`, whose last node is to be judged.
fn with(nodes: Vec<Message>, initializers: Vec<Message>) -> Vec<u8> {
    let inputs =
        vec![declared("x", FLOAT, &[2]), declared("n", INT64, &[2]), declared("m", INT32, &[2])];
    model(graph(nodes, initializers, inputs, vec![]))
}

fn cast(from: &str, to: &str, element: i64) -> Message {
    node("Cast", &[from], &[to]).message(5, int_attribute("to", element))
}

fn divide(dividend: &str, divisor: &str) -> Message {
    node("Div", &[dividend, divisor], &["y"])
}

#[test]
fn divisions_are_judged_by_what_is_certain() {
    let constant = |values: &[i64]| {
        let dims = [i64::try_from(values.len()).unwrap()];
        vec![integers("c", INT64, &dims, values)]
    };
    let value = |values: &[i64]| {
        let tensor = integers("t", INT64, &[1], values);
        node("Constant", &[], &["k"]).message(5, tensor_attribute("value", tensor))
    };
    let unknown = || node("Frobnicate", &["x"], &["u"]);
    let table: [(&str, bool, Vec<Message>, Vec<Message>); 24] = [
        ("numbers", false, vec![divide("x", "x")], vec![]),
        ("integers", true, vec![divide("n", "n")], vec![]),
        ("short integers", true, vec![divide("m", "m")], vec![]),
        ("by a constant", false, vec![divide("n", "c")], constant(&[2, 0, -2])),
        ("by a constant with -1", true, vec![divide("n", "c")], constant(&[2, -1])),
        ("a harmless constant", false, vec![divide("c", "n")], constant(&[1])),
        ("the smallest", true, vec![divide("c", "n")], constant(&[i64::MIN])),
        ("by a value", false, vec![value(&[3]), divide("n", "k")], vec![]),
        ("by a value of -1", true, vec![value(&[-1]), divide("n", "k")], vec![]),
        (
            "through others",
            false,
            vec![node("Identity", &["c"], &["i"]), divide("n", "i")],
            constant(&[2]),
        ),
        (
            "through others, -1",
            true,
            vec![node("Unsqueeze", &["c", "c"], &["i"]), divide("n", "i")],
            constant(&[-1]),
        ),
        ("by a shape", false, vec![node("Shape", &["x"], &["s"]), divide("n", "s")], vec![]),
        (
            "by a negated shape",
            true,
            vec![node("Shape", &["x"], &["s"]), node("Neg", &["s"], &["i"]), divide("n", "i")],
            vec![],
        ),
        ("cast to numbers", false, vec![cast("n", "f", FLOAT), divide("f", "f")], vec![]),
        ("cast to integers", true, vec![cast("x", "i", INT64), divide("i", "i")], vec![]),
        (
            "a shape in 32 bits",
            true,
            vec![node("Shape", &["x"], &["s"]), cast("s", "i", INT32), divide("m", "i")],
            vec![],
        ),
        ("unknown", true, vec![unknown(), divide("u", "u")], vec![]),
        ("unknown by numbers", false, vec![unknown(), divide("u", "x")], vec![]),
        (
            "unknown by a root",
            false,
            vec![unknown(), node("Sqrt", &["u"], &["r"]), divide("u", "r")],
            vec![],
        ),
        (
            "sums of numbers",
            false,
            vec![node("Add", &["u", "x"], &["a"]), divide("a", "a")],
            vec![],
        ),
        (
            "sums of integers",
            true,
            vec![node("Add", &["n", "c"], &["a"]), divide("n", "a")],
            constant(&[2]),
        ),
        (
            "later in the file",
            true,
            vec![divide("late", "late"), node("Relu", &["x"], &["late"])],
            vec![],
        ),
        ("indices", false, vec![node("ArgMax", &["x"], &["i"]), divide("n", "i")], vec![]),
        (
            "the best",
            true,
            vec![node("TopK", &["x", "c"], &["v", "i"]), divide("i", "i")],
            constant(&[1]),
        ),
    ];
    for (name, expected, nodes, initializers) in table {
        assert_eq!(is_refused(&with(nodes, initializers)), expected, "{name}");
    }
}

#[test]
fn a_constant_that_an_input_replaces_is_none() {
    let two = || vec![integers("d", INT64, &[1], &[2])];
    let inputs = vec![declared("n", INT64, &[1]), declared("d", INT64, &[1])];
    let bytes = model(graph(vec![divide("n", "d")], two(), inputs.clone(), vec![]));
    assert!(is_refused(&bytes));
    let bytes = model(graph(vec![divide("n", "d")], two(), inputs[..1].to_vec(), vec![]));
    assert!(!is_refused(&bytes));
}

#[test]
fn declared_types_of_values_count() {
    let inside = graph(
        vec![node("Frobnicate", &["x"], &["u"]), divide("u", "u")],
        vec![],
        vec![declared("x", FLOAT, &[2])],
        vec![],
    );
    assert!(is_refused(&model(inside.clone())));
    assert!(!is_refused(&model(inside.clone().message(13, declared("u", FLOAT, &[2])))));
    assert!(is_refused(&model(inside.clone().message(13, declared("u", INT64, &[2])))));
    assert!(!is_refused(&model(inside.message(12, declared("y", FLOAT, &[2])))));
}

#[test]
fn subgraphs_and_functions_are_followed() {
    let branch = |divisor: &str| {
        graph(
            vec![divide("n", divisor)],
            vec![integers("c", INT64, &[1], &[2])],
            vec![],
            vec![declared("y", INT64, &[1])],
        )
    };
    let conditional = |divisor: &str| {
        let choice = node("If", &["b"], &["z"])
            .message(5, graph_attribute("then_branch", branch("c")))
            .message(5, graph_attribute("else_branch", branch(divisor)));
        with(vec![choice], vec![])
    };
    assert!(!is_refused(&conditional("c")));
    assert!(is_refused(&conditional("n")));

    let called_with = |first: &str, second: &str| {
        let function = Message::default()
            .bytes(1, "ratio")
            .bytes(4, "a")
            .bytes(4, "b")
            .bytes(5, "y")
            .message(7, divide("a", "b"))
            .bytes(10, "own");
        let call = node("ratio", &[first, second], &["r"]).bytes(7, "own");
        let mut bytes = with(vec![call], vec![integers("c", INT64, &[1], &[2])]);
        bytes.extend(Message::default().message(25, function).0);
        bytes
    };
    assert!(!is_refused(&called_with("x", "x")), "numbers");
    assert!(!is_refused(&called_with("n", "c")), "a constant argument");
    assert!(is_refused(&called_with("n", "n")), "integers");
}

#[test]
fn models_that_people_export_are_not_refused() {
    let mut seen = 0;
    let mut folders = vec![
        Path::new(env!("CARGO_MANIFEST_DIR")).join("models"),
        Path::new(env!("CARGO_MANIFEST_DIR")).join("loadtests/models"),
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models"),
    ];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|extension| extension == "onnx") {
                let bytes = fs::read(&entry).unwrap();
                assert!(!is_refused(&bytes), "{}", entry.display());
                seen += 1;
            }
        }
    }
    assert!(seen > 20, "{seen} models");
    // Attention as transformers are exported: the root of a width, taken from a shape.
    let nodes = vec![
        node("Shape", &["x"], &["s"]),
        node("Gather", &["s", "c"], &["width"]),
        cast("width", "w", FLOAT),
        node("Sqrt", &["w"], &["root"]),
        node("MatMul", &["x", "weights"], &["scores"]),
        divide("scores", "root"),
    ];
    let constants = vec![integers("c", INT64, &[1], &[0]), floats("weights", &[2, 2], &[1.0; 4])];
    assert!(!is_refused(&with(nodes, constants)));
}
