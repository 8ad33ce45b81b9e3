//! Integer division: what can end the process is refused, and sound models are not.

use std::{fs, path::Path};

use serde_json::json;
use tidegate::engine::onnx::{Limits, check_operators, quotients, summarize};

use crate::{
    models::{
        FLOAT, INT32, INT64, Message, declared, floats, graph, graph_attribute, int_attribute,
        integers, model, node, tensor_attribute,
    },
    repository::Repository,
    server::Server,
};

/// What becomes of a model that divides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It is served.
    Safe,
    /// It is served, and some requests are kept from it.
    Guarded,
    /// It is not served.
    Refused,
}
use Verdict::{Guarded, Refused, Safe};

fn verdict(bytes: &[u8]) -> Verdict {
    summarize(bytes, &Limits::default()).unwrap();
    match check_operators(bytes, &Limits::default()) {
        Ok(_) if quotients(bytes, &Limits::default()).unwrap().is_empty() => Safe,
        Ok(_) => Guarded,
        Err(error) => {
            assert!(error.to_string().contains("by a constant without -1"), "{error}");
            assert_eq!(quotients(bytes, &Limits::default()), Err(error));
            Refused
        }
    }
}

fn is_refused(bytes: &[u8]) -> bool {
    verdict(bytes) == Refused
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
    let table: [(&str, Verdict, Vec<Message>, Vec<Message>); 27] = [
        ("numbers", Safe, vec![divide("x", "x")], vec![]),
        ("integers", Guarded, vec![divide("n", "n")], vec![]),
        ("short integers", Guarded, vec![divide("m", "m")], vec![]),
        ("by a constant", Safe, vec![divide("n", "c")], constant(&[2, 0, -2])),
        ("by a constant with -1", Guarded, vec![divide("n", "c")], constant(&[2, -1])),
        ("a harmless constant", Safe, vec![divide("c", "n")], constant(&[1])),
        ("the smallest", Guarded, vec![divide("c", "n")], constant(&[i64::MIN])),
        ("by a value", Safe, vec![value(&[3]), divide("n", "k")], vec![]),
        ("by a value of -1", Guarded, vec![value(&[-1]), divide("n", "k")], vec![]),
        (
            "through others",
            Safe,
            vec![node("Identity", &["c"], &["i"]), divide("n", "i")],
            constant(&[2]),
        ),
        (
            "through others, -1",
            Guarded,
            vec![node("Unsqueeze", &["c", "c"], &["i"]), divide("n", "i")],
            constant(&[-1]),
        ),
        ("by a shape", Safe, vec![node("Shape", &["x"], &["s"]), divide("n", "s")], vec![]),
        (
            "by a negated shape",
            Guarded,
            vec![node("Shape", &["x"], &["s"]), node("Neg", &["s"], &["i"]), divide("n", "i")],
            vec![],
        ),
        ("cast to numbers", Safe, vec![cast("n", "f", FLOAT), divide("f", "f")], vec![]),
        ("cast to integers", Refused, vec![cast("x", "i", INT64), divide("i", "i")], vec![]),
        (
            "a shape in 32 bits",
            Guarded,
            vec![node("Shape", &["x"], &["s"]), cast("s", "i", INT32), divide("m", "i")],
            vec![],
        ),
        ("unknown", Refused, vec![unknown(), divide("u", "u")], vec![]),
        ("unknown by numbers", Safe, vec![unknown(), divide("u", "x")], vec![]),
        (
            "unknown by a root",
            Safe,
            vec![unknown(), node("Sqrt", &["u"], &["r"]), divide("u", "r")],
            vec![],
        ),
        ("sums of numbers", Safe, vec![node("Add", &["u", "x"], &["a"]), divide("a", "a")], vec![]),
        (
            "sums of integers",
            Guarded,
            vec![node("Add", &["n", "c"], &["a"]), divide("n", "a")],
            constant(&[2]),
        ),
        (
            "later in the file",
            Refused,
            vec![divide("late", "late"), node("Relu", &["x"], &["late"])],
            vec![],
        ),
        ("indices", Safe, vec![node("ArgMax", &["x"], &["i"]), divide("n", "i")], vec![]),
        (
            "the best",
            Refused,
            vec![node("TopK", &["x", "c"], &["v", "i"]), divide("i", "i")],
            constant(&[1]),
        ),
        (
            "by an input that is reshaped",
            Guarded,
            vec![unknown(), node("Reshape", &["n", "c"], &["r"]), divide("u", "r")],
            constant(&[2]),
        ),
        (
            "by an input that is negated",
            Refused,
            vec![unknown(), node("Neg", &["n"], &["r"]), divide("u", "r")],
            vec![],
        ),
        (
            "by an input that is reshaped later",
            Refused,
            vec![unknown(), divide("u", "r"), node("Identity", &["n"], &["r"])],
            vec![],
        ),
    ];
    for (name, expected, nodes, initializers) in table {
        assert_eq!(verdict(&with(nodes, initializers)), expected, "{name}");
    }
}

#[test]
fn a_constant_that_an_input_replaces_is_none() {
    let two = || vec![integers("d", INT64, &[1], &[2])];
    let inputs = vec![declared("n", INT64, &[1]), declared("d", INT64, &[1])];
    let mut bytes = model(graph(vec![divide("n", "d")], two(), inputs.clone(), vec![]));
    assert_eq!(verdict(&bytes), Guarded);
    // In older files it is a constant that no request replaces.
    assert_eq!(&bytes[..2], [8, 8]);
    bytes[1] = 3;
    assert_eq!(verdict(&bytes), Safe);
    let bytes = model(graph(vec![divide("n", "d")], two(), inputs[..1].to_vec(), vec![]));
    assert_eq!(verdict(&bytes), Safe);
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

/// A server with models that divide integers `n` by integers `d`, of which those named have a default of -1 for `d`.
fn dividing() -> (Repository, Server) {
    let repository = Repository::of(&["add_sub"]);
    let element = |width: &str| if width == "long" { INT64 } else { INT32 };
    let of = |width: &str, nodes: Vec<Message>, constants: Vec<Message>| {
        let ends = |name| declared(name, element(width), &[2]);
        model(graph(nodes, constants, vec![ends("n"), ends("d")], vec![ends("y")]))
    };
    for width in ["long", "short"] {
        let nodes = vec![divide("n", "d")];
        repository.add_bytes(width, "1", &of(width, nodes.clone(), vec![]));
        let default = integers("d", element(width), &[2], &[-1, 1]);
        repository.add_bytes(&format!("{width}_default"), "1", &of(width, nodes, vec![default]));
        let twice = vec![node("Add", &["n", "n"], &["s"]), node("Flatten", &["d"], &["f"])];
        let constants = vec![integers("flat", INT64, &[1], &[2])];
        let chain = [twice, vec![node("Reshape", &["f", "flat"], &["r"]), divide("s", "r")]];
        repository.add_bytes(&format!("{width}_chain"), "1", &of(width, chain.concat(), constants));
    }
    let server = Server::over(&repository);
    (repository, server)
}

#[test]
fn requests_never_divide_the_smallest_integer_by_minus_one() {
    let (_repository, mut server) = dividing();
    for (width, datatype, smallest) in
        [("long", "INT64", i64::MIN), ("short", "INT32", i32::MIN.into())]
    {
        let ask = |model: &str, n: [i64; 2], d: Option<[i64; 2]>| {
            let tensor = |name: &str, data: [i64; 2]| json!({"name": name, "datatype": datatype, "shape": [2], "data": data});
            let inputs: Vec<_> =
                d.map(|d| tensor("d", d)).into_iter().chain([tensor("n", n)]).collect();
            let path = format!("/v2/models/{width}{model}/infer");
            let answer = server.post(&path, &json!({"inputs": inputs}));
            if answer.status != 200 {
                assert_eq!(answer.status, 400, "{answer:?}");
                assert!(answer.text().contains("send no -1 in `d`"), "{answer:?}");
                return None;
            }
            Some(answer.json()["outputs"][0]["data"].clone())
        };
        let minus = -1 - smallest;
        for model in ["", "_default"] {
            assert_eq!(ask(model, [7, smallest], Some([2, -1])), None, "{width}{model}");
            // Not the same elements, but to know that costs as much as to divide.
            assert_eq!(ask(model, [smallest, 7], Some([2, -1])), None);
            assert_eq!(ask(model, [smallest, 7], Some([1, -2])), Some(json!([smallest, -3])));
            assert_eq!(ask(model, [-minus, 7], Some([-1, -1])), Some(json!([minus, -7])));
        }
        assert_eq!(ask("_default", [smallest, 7], None), None);
        assert_eq!(ask("_default", [9, 7], None), Some(json!([-9, 7])));
        // What is divided is no input: no divisor may be -1.
        assert_eq!(ask("_chain", [9, 7], Some([-1, 1])), None);
        assert_eq!(ask("_chain", [9, 7], Some([-2, 1])), Some(json!([-9, 14])));
        let notes = server.admin(&format!("/api/v1/models/{width}")).text();
        assert!(notes.contains("smallest integer to be divided by -1 are refused"), "{notes}");
    }
    assert!(server.is_running());
}
