//! Shapes and inputs as models declare them: what is not said stays open, what has a default may be left out, and what
//! a description says of shapes is followed.

use serde_json::{Value, json};
use tidegate::engine::onnx::{Limits, growth, summarize};

use crate::{
    http::Response,
    models::{
        FLOAT, INT64, Message, STRING, declared, floats, graph, int_attribute, integers, model,
        node,
    },
    repository::Repository,
    server::{Launch, Server},
};

/// An input or output without a shape.
fn shapeless(name: &str) -> Message {
    let tensor = Message::default().number(1, FLOAT);
    Message::default().bytes(1, name).message(2, Message::default().message(1, tensor))
}

/// An input or output whose first dimension has this name, the others these sizes; a negative one is open.
fn named(name: &str, first: &str, rest: &[i64]) -> Message {
    let first = Message::default().message(1, Message::default().bytes(2, first));
    let shape = rest.iter().fold(first, |shape, dim| match dim {
        0.. => shape.message(1, Message::default().number(1, *dim)),
        _ => shape.message(1, Message::default()),
    });
    let tensor = Message::default().number(1, FLOAT).message(2, shape);
    Message::default().bytes(1, name).message(2, Message::default().message(1, tensor))
}

fn input(name: &str, shape: &[usize]) -> Value {
    let data: Vec<usize> = (1..=shape.iter().product()).collect();
    json!({"name": name, "datatype": "FP32", "shape": shape, "data": data})
}

fn infer(server: &Server, model: &str, inputs: &[Value]) -> Response {
    server.post(&format!("/v2/models/{model}/infer"), &json!({"inputs": inputs}))
}

fn outputs(server: &Server, model: &str, inputs: &[Value]) -> Value {
    let answer = infer(server, model, inputs);
    assert_eq!(answer.status, 200, "{model}: {}", String::from_utf8_lossy(&answer.body));
    answer.json()["outputs"].clone()
}

#[test]
fn a_tensor_without_a_shape_has_any_rank() {
    let repository = Repository::empty();
    let twice = vec![node("Mul", &["x", "two"], &["y"])];
    let two = vec![floats("two", &[], &[2.0])];
    let bytes = model(graph(twice, two, vec![shapeless("x")], vec![shapeless("y")]));
    repository.add_bytes("twice", "1", &bytes);
    let server = Server::over(&repository);
    for shape in [&[][..], &[3], &[2, 2], &[1, 2, 3], &[0], &[0, 4], &[2, 0], &[0, 0], &[0, 2, 2]] {
        let outputs = outputs(&server, "twice", &[input("x", shape)]);
        let count = shape.iter().product::<usize>();
        let doubled: Vec<f64> =
            (1..=count).map(|n| f64::from(u8::try_from(n).unwrap()) * 2.0).collect();
        assert_eq!(outputs[0]["shape"], json!(shape));
        assert_eq!(outputs[0]["data"], json!(doubled), "{shape:?}");
    }
    let metadata = server.get("/v2/models/twice").json();
    assert_eq!(metadata["inputs"][0]["shape"], json!([-1]));
    let model = server.admin("/api/v1/models/twice").json();
    assert_eq!(model["versions"][0]["loaded"]["inputs"], json!(["x FP32[...]"]));
}

#[test]
fn different_names_are_different_sizes_and_one_name_is_one() {
    let repository = Repository::empty();
    let sums = |y: &str| {
        vec![
            node("ReduceSum", &["nodes"], &["n"]).message(5, int_attribute("keepdims", 0)),
            node("ReduceSum", &["edges"], &["e"]).message(5, int_attribute("keepdims", 0)),
            node("Add", &["n", "e"], &[y]),
        ]
    };
    let of = |nodes: &str, edges: &str| {
        let inputs = vec![named("nodes", nodes, &[2]), named("edges", edges, &[1])];
        model(graph(sums("s"), vec![], inputs, vec![declared("s", FLOAT, &[])]))
    };
    repository.add_bytes("net", "1", &of("num_nodes", "num_edges"));
    let scaled = |batch: &str| {
        let inputs = vec![named("nodes", "batch", &[2]), named("edges", batch, &[1])];
        let nodes = vec![node("Mul", &["nodes", "edges"], &["y"])];
        model(graph(nodes, vec![], inputs, vec![named("y", "batch", &[2])]))
    };
    repository.add_bytes("rows", "1", &scaled("batch"));
    repository.add_bytes("apart", "1", &scaled("other"));
    let server = Server::over(&repository);
    let inputs = [input("nodes", &[3, 2]), input("edges", &[5, 1])];
    assert_eq!(outputs(&server, "net", &inputs)[0]["data"], json!([36.0]));
    let answer = infer(&server, "rows", &inputs);
    assert_eq!(answer.status, 400);
    let error = answer.json()["error"].as_str().unwrap().to_owned();
    assert!(error.contains("inputs disagree about the batch: `nodes` has 3 rows"), "{error}");
    // One row goes with all.
    let stretched = [input("nodes", &[3, 2]), input("edges", &[1, 1])];
    assert_eq!(outputs(&server, "apart", &stretched)[0]["shape"], json!([3, 2]));
    let batched = |name: &str| {
        let model = server.admin(&format!("/api/v1/models/{name}")).json();
        model["versions"][0]["loaded"]["batched"].clone()
    };
    assert_eq!([batched("net"), batched("rows"), batched("apart")], [false, true, false]);
}

#[test]
fn a_description_counts_rows_where_names_differ() {
    let repository = Repository::empty();
    let inputs = vec![named("a", "n", &[2]), named("b", "m", &[2])];
    let nodes = vec![node("Add", &["a", "b"], &["y"])];
    let bytes = model(graph(nodes, vec![], inputs, vec![named("y", "o", &[2])]));
    repository.describe("sum", "config.pbtxt", "max_batch_size: 4\n");
    repository.add_bytes("sum", "1", &bytes);
    let server = Server::over(&repository);
    let of = |rows: [usize; 2]| [input("a", &[rows[0], 2]), input("b", &[rows[1], 2])];
    assert_eq!(outputs(&server, "sum", &of([3, 3]))[0]["shape"], json!([3, 2]));
    for (rows, expected) in [([3, 1], "disagree about the batch"), ([5, 5], "more than the 4")] {
        let answer = infer(&server, "sum", &of(rows));
        let error = String::from_utf8_lossy(&answer.body).into_owned();
        assert!(answer.status == 400 && error.contains(expected), "{error}");
    }
}

#[test]
fn limits_are_never_below_what_a_model_has() {
    let repository = Repository::empty();
    let names: Vec<String> = (0..300).map(|number| format!("column_{number}")).collect();
    let inputs = names.iter().map(|name| declared(name, FLOAT, &[-1, 1])).collect();
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    let join = node("Concat", &all, &["y"]).message(5, int_attribute("axis", 1));
    let bytes = model(graph(vec![join], vec![], inputs, vec![declared("y", FLOAT, &[-1, 300])]));
    repository.add_bytes("wide", "1", &bytes);
    let long = "x".repeat(300);
    let nodes = vec![node("Neg", &[&long], &["y"])];
    let (x, y) = (declared(&long, FLOAT, &[2]), declared("y", FLOAT, &[2]));
    repository.add_bytes("long", "1", &model(graph(nodes, vec![], vec![x], vec![y])));
    let dims = [1; 18];
    let (x, y) = (declared("x", FLOAT, &dims), declared("y", FLOAT, &[1]));
    let nodes = vec![node("Reshape", &["x", "s"], &["y"])];
    let flat = vec![integers("s", INT64, &[1], &[1])];
    repository.add_bytes("deep", "1", &model(graph(nodes, flat, vec![x], vec![y])));
    // Nothing is asked of one that gives constants.
    let shown = node("Identity", &["c"], &["y"]);
    let constants = vec![floats("c", &[2], &[1.0, 2.0])];
    let bytes = model(graph(vec![shown], constants, vec![], vec![declared("y", FLOAT, &[2])]));
    repository.add_bytes("constant", "1", &bytes);
    let server = Server::over(&repository);
    let columns: Vec<Value> = names.iter().map(|name| input(name, &[2, 1])).collect();
    assert_eq!(outputs(&server, "wide", &columns)[0]["shape"], json!([2, 300]));
    assert_eq!(outputs(&server, "long", &[input(&long, &[2])])[0]["data"], json!([-1.0, -2.0]));
    assert_eq!(outputs(&server, "deep", &[input("x", &dims.map(|_| 1))])[0]["shape"], json!([1]));
    assert_eq!(outputs(&server, "constant", &[])[0]["data"], json!([1.0, 2.0]));
    let too_many: Vec<Value> = columns.iter().chain([&input("z", &[2, 1])]).cloned().collect();
    let answer = infer(&server, "wide", &too_many);
    let error = answer.json()["error"].as_str().unwrap().to_owned();
    assert!(answer.status == 400 && error.contains("limited to 300"), "{error}");
    let answer = infer(&server, "long", &[]);
    assert!(String::from_utf8_lossy(&answer.body).contains("at least one of `inputs`"));
}

#[test]
fn inputs_with_defaults_may_be_given_or_left_out() {
    let repository = Repository::empty();
    let bytes = || {
        let nodes = vec![node("Mul", &["x", "w"], &["s"]), node("Add", &["s", "b"], &["y"])];
        let defaults = vec![floats("w", &[2], &[10.0, 100.0]), floats("b", &[1], &[1.0])];
        let inputs =
            ["w", "x", "b"].map(|name| declared(name, FLOAT, &[if name == "b" { 1 } else { 2 }]));
        model(graph(nodes, defaults, inputs.to_vec(), vec![declared("y", FLOAT, &[2])]))
    };
    repository.add_bytes("plain", "1", &bytes());
    let tensor = |name: &str, dims: &str| {
        format!(
            "input [ {{ name: \"{name}\" data_type: TYPE_FP32 dims: [ {dims} ] optional: true }} ]\n"
        )
    };
    repository.describe("described", "config.pbtxt", &(tensor("w", "2") + &tensor("b", "1")));
    repository.add_bytes("described", "1", &bytes());
    // The model has no default for this one.
    repository.describe("strict", "config.pbtxt", &tensor("x", "2"));
    repository.add_bytes("strict", "1", &bytes());
    let server = Server::over(&repository);
    for model in ["plain", "described", "strict"] {
        let y = |inputs: &[Value]| outputs(&server, model, inputs)[0]["data"].clone();
        let (x, w, b) = (input("x", &[2]), input("w", &[2]), input("b", &[1]));
        assert_eq!(y(std::slice::from_ref(&x)), json!([11.0, 201.0]), "{model}");
        assert_eq!(y(&[w.clone(), x.clone()]), json!([2.0, 5.0]), "{model}");
        assert_eq!(y(&[b.clone(), x.clone(), w]), json!([2.0, 5.0]), "{model}");
        assert_eq!(y(&[x, b]), json!([11.0, 201.0]), "{model}");
        let answer = infer(&server, model, &[input("w", &[2])]);
        let error = answer.json()["error"].as_str().unwrap().to_owned();
        let expected = "input `x` is missing; the model takes `x`, and optionally";
        assert!(answer.status == 400 && error.contains(expected), "{error}");
    }
    let shown = server.admin("/api/v1/models/plain").json();
    let optional = &shown["versions"][0]["loaded"]["optional_inputs"];
    assert_eq!(*optional, json!(["w FP32[2]", "b FP32[1]"]));
    let config = server.get("/v2/models/described/config").json();
    let optional: Vec<bool> = (config["input"].as_array().unwrap().iter())
        .map(|input| input["optional"].as_bool().unwrap())
        .collect();
    assert_eq!(optional, [false, true, true]);
    let notes =
        server.admin("/api/v1/models/strict").json()["versions"][0]["loaded"]["notes"].to_string();
    assert!(notes.contains("the model has no default for it: requests must bring it"), "{notes}");
}

#[test]
fn a_reshape_is_another_shape_of_the_same_bytes() {
    let repository = Repository::empty();
    let tensors = |dims: &str, reshape: &str| {
        let of = |role: &str, name: &str| {
            format!(
                "{role} [ {{ name: \"{name}\" data_type: TYPE_FP32 dims: {dims} reshape {{ shape: {reshape} }} }} ]\n"
            )
        };
        of("input", "x") + &of("output", "y")
    };
    let negated = |dims: &[i64]| {
        let (x, y) = (declared("x", FLOAT, dims), declared("y", FLOAT, dims));
        model(graph(vec![node("Neg", &["x"], &["y"])], vec![], vec![x], vec![y]))
    };
    // As Triton's quickstart has its image models.
    repository.describe("image", "config.pbtxt", &tensors("[ 3, 2, 2 ]", "[ 1, 3, 2, 2 ]"));
    repository.add_bytes("image", "1", &negated(&[1, 3, 2, 2]));
    let scalar = "max_batch_size: 8\n".to_owned() + &tensors("[ 1 ]", "[ ]");
    repository.describe("scalar", "config.pbtxt", &scalar);
    repository.add_bytes("scalar", "1", &negated(&[-1]));
    repository.describe("other", "config.pbtxt", &tensors("[ 3, 2 ]", "[ 1, 4 ]"));
    repository.add_bytes("other", "1", &negated(&[1, 4]));
    let golden = |shape: &str| {
        let of = |name: &str, data: &str| {
            format!(
                r#"[{{"name": "{name}", "datatype": "FP32", "shape": {shape}, "data": {data}}}]"#
            )
        };
        let (x, y) = (of("x", "[1, 2]"), of("y", "[-1, -2]"));
        format!(r#"{{"cases": [{{"inputs": {x}, "outputs": {y}}}]}}"#)
    };
    repository.describe("scalar", "1/golden.json", &golden("[2, 1]"));
    let server = Server::over(&repository);
    let shapes: [(&str, &[usize]); 3] =
        [("image", &[3, 2, 2]), ("scalar", &[2, 1]), ("scalar", &[8, 1])];
    for (model, shape) in shapes {
        let outputs = outputs(&server, model, &[input("x", shape)]);
        assert_eq!(outputs[0]["shape"], json!(shape), "{model}");
        assert_eq!(outputs[0]["data"][1], json!(-2.0), "{model}");
    }
    for name in ["image", "scalar"] {
        let loaded = server.admin(&format!("/api/v1/models/{name}")).json();
        let loaded = &loaded["versions"][0]["loaded"];
        assert!(loaded["run_us"].is_f64() && loaded["notes"] == json!([]), "{name}: {loaded}");
    }
    let metadata = server.get("/v2/models/scalar").json();
    assert_eq!(metadata["inputs"][0]["shape"], json!([-1, 1]));
    let config = server.get("/v2/models/image/config").json();
    assert_eq!(config["input"][0]["dims"], json!([3, 2, 2]));
    let answer = infer(&server, "scalar", &[input("x", &[9, 1])]);
    assert_eq!(answer.status, 400);
    let answer = infer(&server, "image", &[input("x", &[3, 4])]);
    let error = answer.json()["error"].as_str().unwrap().to_owned();
    assert!(error.contains("got [3,4], the model takes [3,2,2]"), "{error}");
    let refused = server.indexed("other", "1").unwrap()["reason"].to_string();
    assert!(
        refused.contains("has the shape") || refused.contains("another number of elements"),
        "{refused}"
    );
}

#[test]
fn a_model_whose_requests_are_too_large_says_which_key_to_raise() {
    let repository = Repository::empty();
    let dims = [1, 3, 1024, 1024];
    let (x, y) = (declared("x", FLOAT, &dims), declared("y", FLOAT, &[1]));
    let nodes = vec![node("ReduceMax", &["x"], &["m"]), node("Reshape", &["m", "s"], &["y"])];
    let flat = vec![integers("s", INT64, &[1], &[1])];
    repository.add_bytes("image", "1", &model(graph(nodes, flat, vec![x], vec![y])));
    let told = |server: &Server| {
        let model = server.admin("/api/v1/models/image").json();
        model["versions"][0]["loaded"]["notes"].to_string()
    };
    // 12 MiB in binary form, and more in JSON.
    let server = Server::over(&repository);
    assert_eq!(told(&server), "[]");
    let one = [input("x", &dims.map(|dim| usize::try_from(dim).unwrap()))];
    assert_eq!(outputs(&server, "image", &one)[0]["data"], json!([3_145_728.0]));
    let server = Launch::of(&repository).set("LIMITS__BODY", "8MiB").start();
    let expected = "a request has 12582912 bytes of inputs at least, more than the 8388608 that a body may have: raise \
                    limits.body";
    assert!(told(&server).contains(expected), "{}", told(&server));
}

/// A model of `x [n, classes]` whose only output is a map for each row, from these classes.
fn zip_map(key: i64, classes: Message) -> Vec<u8> {
    let scores = Message::default().message(1, Message::default().number(1, FLOAT));
    let map = Message::default().message(5, Message::default().number(1, key).message(2, scores));
    let rows = Message::default().message(4, Message::default().message(1, map));
    let rows = Message::default().bytes(1, "y").message(2, rows);
    let nodes = vec![node("ZipMap", &["x"], &["y"]).message(5, classes).bytes(7, "ai.onnx.ml")];
    let mut bytes = model(graph(nodes, vec![], vec![declared("x", FLOAT, &[-1, 3])], vec![rows]));
    let more = Message::default().bytes(1, "ai.onnx.ml").number(2, 1);
    bytes.extend(Message::default().message(8, more).0);
    bytes
}

#[test]
fn scores_by_class_have_a_column_for_each_class_in_the_declared_order() {
    let repository = Repository::empty();
    let numbers = Message::default().bytes(1, "classlabels_int64s").number(20, 7);
    let numbers = [7, 3, 5].iter().fold(numbers, |list, class| list.number(8, *class));
    repository.add_bytes("numbers", "1", &zip_map(INT64, numbers));
    let texts = Message::default().bytes(1, "classlabels_strings").number(20, 8);
    let texts = ["pear", "apple", "fig"].iter().fold(texts, |list, class| list.bytes(9, class));
    repository.add_bytes("texts", "1", &zip_map(STRING, texts));
    let server = Server::over(&repository);
    for name in ["numbers", "texts"] {
        let some = outputs(&server, name, &[input("x", &[2, 3])]);
        assert_eq!(some[0]["shape"], json!([2, 3]), "{name}");
        assert_eq!(some[0]["data"], json!([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), "{name}");
        let none = outputs(&server, name, &[input("x", &[0, 3])]);
        assert_eq!(none[0]["shape"], json!([0, 3]), "{name}");
    }
}

#[test]
fn an_empty_batch_passes_where_the_model_runs_only_at_some_sizes_beside_it() {
    let repository = Repository::empty();
    // Sums of 200 numbers in a row: shorter rows are an error, and so are those of a constant's rows.
    let kernel = || floats("w", &[1, 1, 200], &[1.0; 200]);
    let nodes = vec![node("Unsqueeze", &["x", "one"], &["u"]), node("Conv", &["u", "w"], &["y"])];
    let one = integers("one", INT64, &[1], &[1]);
    let x = || vec![named("x", "batch", &[-1])];
    let bytes = graph(nodes, vec![kernel(), one], x(), vec![declared("y", FLOAT, &[-1, -1, -1])]);
    repository.add_bytes("signal", "1", &model(bytes));
    let product = vec![node("MatMul", &["x", "w"], &["y"])];
    let weights = vec![floats("w", &[8, 2], &[1.0; 16])];
    let bytes = graph(product, weights, vec![shapeless("x")], vec![shapeless("y")]);
    repository.add_bytes("layer", "1", &model(bytes));
    let server = Server::over(&repository);
    assert_eq!(outputs(&server, "signal", &[input("x", &[0, 250])])[0]["shape"], json!([0, 1, 51]));
    assert_eq!(outputs(&server, "layer", &[input("x", &[0, 8])])[0]["shape"], json!([0, 2]));
    // Nothing ran well with both, and nothing of that rank.
    for shape in [&[0, 0][..], &[0, 1, 1, 1, 8]] {
        let model = if shape.len() == 2 { "signal" } else { "layer" };
        let answer = infer(&server, model, &[input("x", shape)]);
        let error = String::from_utf8_lossy(&answer.body).into_owned();
        assert!(answer.status == 400 && error.contains("not seen to run well"), "{error}");
    }
}

#[test]
fn initializers_of_older_files_are_constants_although_they_are_inputs() {
    let repository = Repository::empty();
    let nodes = vec![node("Mul", &["x", "w"], &["s"]), node("Reshape", &["s", "shape"], &["y"])];
    let constants =
        vec![floats("w", &[2], &[10.0, 100.0]), integers("shape", INT64, &[2], &[-1, 1])];
    let inputs = vec![
        declared("w", FLOAT, &[2]),
        declared("x", FLOAT, &[-1, 2]),
        declared("shape", INT64, &[2]),
    ];
    let newer = model(graph(nodes, constants, inputs, vec![declared("y", FLOAT, &[-1, 1])]));
    assert_eq!(newer[..2], [8, 8]);
    let older = [&[8, 3], &newer[2..]].concat();
    repository.add_bytes("newer", "1", &newer);
    repository.add_bytes("older", "1", &older);
    let grows = |bytes: &[u8]| {
        let summary = summarize(bytes, &Limits::default()).unwrap();
        assert_eq!(summary.initializers, ["shape", "w"].map(str::to_owned).into());
        growth(bytes, &summary, &Limits::default()).unwrap().is_some()
    };
    assert_eq!([grows(&newer), grows(&older)], [false, false]);
    let server = Server::over(&repository);
    for name in ["newer", "older"] {
        let x = outputs(&server, name, &[input("x", &[1, 2])]);
        assert_eq!(x[0]["data"], json!([10.0, 200.0]), "{name}");
        let empty = outputs(&server, name, &[input("x", &[0, 2])]);
        assert_eq!(empty[0]["shape"], json!([0, 1]), "{name}");
    }
    let with_weights = [input("w", &[2]), input("x", &[1, 2])];
    assert_eq!(outputs(&server, "newer", &with_weights)[0]["data"], json!([1.0, 4.0]));
    let answer = infer(&server, "older", &with_weights);
    let error = String::from_utf8_lossy(&answer.body).into_owned();
    assert!(answer.status == 400 && error.contains("unexpected input `w`"), "{error}");
}
