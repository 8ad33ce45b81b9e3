//! What may refuse a version: made-up inputs by a crash, a hang or a limit; values and shapes only against evidence.

use std::fs;

use serde_json::{Value, json};

use crate::{
    http::{Connection, Request, Response},
    models::{FLOAT, INT64, Message, declared, floats, graph, integers, model, node},
    repository::Repository,
    server::{Launch, Server},
};

/// A model of `x [n,2]` and one output `y` of a declared shape.
fn of_x(nodes: Vec<Message>, constants: Vec<Message>, output: &[i64]) -> Vec<u8> {
    let (x, y) = (declared("x", FLOAT, &[-1, 2]), declared("y", FLOAT, output));
    model(graph(nodes, constants, vec![x], vec![y]))
}

/// `log(x - by)`: not a number on whatever is below `by`.
fn logarithm(by: f32) -> Vec<u8> {
    let nodes = vec![node("Sub", &["x", "by"], &["s"]), node("Log", &["s"], &["y"])];
    of_x(nodes, vec![floats("by", &[1], &[by])], &[-1, 2])
}

/// `x` as `[n * 2, 1]`, declared to be something else.
fn column(output: &[i64]) -> Vec<u8> {
    let nodes = vec![node("Reshape", &["x", "s"], &["y"])];
    of_x(nodes, vec![integers("s", INT64, &[2], &[-1, 1])], output)
}

fn infer(server: &Server, model: &str, rows: usize) -> Response {
    let data: Vec<f32> = [5.0, 6.0].repeat(rows);
    let x = json!({"name": "x", "datatype": "FP32", "shape": [rows, 2], "data": data});
    server.post(&format!("/v2/models/{model}/infer"), &json!({"inputs": [x]}))
}

fn notes(server: &Server, model: &str) -> String {
    let model = server.admin(&format!("/api/v1/models/{model}")).json();
    model["versions"][0]["loaded"]["notes"].to_string()
}

#[test]
fn numbers_that_are_none_are_notes() {
    let repository = Repository::empty();
    repository.add_bytes("log", "1", &logarithm(3.0));
    // Ones have no spread; other values do.
    let spread = vec![
        node("ReduceMean", &["x"], &["m"]),
        node("Sub", &["x", "m"], &["d"]),
        node("ReduceL2", &["d"], &["l"]),
        node("Div", &["d", "l"], &["y"]),
    ];
    repository.add_bytes("spread", "1", &of_x(spread, vec![], &[-1, 2]));
    let share = vec![node("Div", &["x", "x"], &["y"])];
    repository.add_bytes("share", "1", &of_x(share, vec![], &[-1, 2]));
    let server = Server::over(&repository);
    for name in ["log", "spread", "share"] {
        let answer = infer(&server, name, 2);
        assert_eq!(answer.status, 200, "{name}: {}", String::from_utf8_lossy(&answer.body));
    }
    let ones = "output `y` is NaN at element 0 on made-up inputs (ones); golden.json can say what is right";
    for name in ["log", "spread"] {
        assert!(notes(&server, name).contains(ones), "{}", notes(&server, name));
    }
    // On zeros alone it says nothing: they are no request.
    assert_eq!(notes(&server, "share"), "[]");
    let request = Request::get("/api/v1/events");
    let events =
        Connection::open(server.admin).listen(&request, |events| events.matches(ones).count() == 2);
    assert_eq!(events.matches(ones).count(), 2, "{events}");
}

#[test]
fn a_shape_unlike_the_declared_one_is_a_note_and_batches_are_answered() {
    let repository = Repository::empty();
    let shapes: [(&str, &[i64]); 4] =
        [("flat", &[-1]), ("single", &[1, 1]), ("scalar", &[]), ("wide", &[-1, 7])];
    for (name, shape) in shapes {
        repository.add_bytes(name, "1", &column(shape));
    }
    let server = Server::over(&repository);
    for (name, _) in shapes {
        for rows in [1, 3] {
            let answer = infer(&server, name, rows);
            assert_eq!(answer.status, 200, "{name}: {}", String::from_utf8_lossy(&answer.body));
            assert_eq!(answer.json()["outputs"][0]["shape"], json!([rows * 2, 1]), "{name}");
        }
        let notes = notes(&server, name);
        let expected = "output `y` came as FP32[2,1] on made-up inputs (ones), the model declares";
        assert!(notes.contains(expected), "{name}: {notes}");
    }
}

#[test]
fn the_serving_version_is_evidence_on_the_same_inputs() {
    let repository = Repository::empty();
    repository.add_bytes("m", "1", &logarithm(-3.0));
    let server = Launch::of(&repository).set("REPOSITORY__POLL_INTERVAL", "100ms").start();
    server.wait_for_state("m", "1", "READY");
    repository.add_bytes("m", "2", &logarithm(3.0));
    let refused = server.wait_for_state("m", "2", "UNAVAILABLE");
    let reason = refused["reason"].as_str().unwrap_or_default();
    let expected = "output `y` is NaN at element 0 on made-up inputs (ones), where version 1, which serves, gives \
                    finite numbers; mend the model, or let golden.json say that this is right";
    assert!(reason.contains(expected), "{reason}");
    let version = infer(&server, "m", 1).header("x-tidegate-version").map(str::to_owned);
    assert_eq!(version.as_deref(), Some("1"));
    // Golden outputs are better evidence.
    let golden = r#"{"cases": [{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [4, 4]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [0, 0]}]}]}"#;
    repository.add_bytes("m", "3", &logarithm(3.0));
    repository.describe("m", "3/golden.json", golden);
    server.wait_for_state("m", "3", "READY");
}

#[test]
fn requests_of_the_description_are_run_first() {
    let repository = Repository::empty();
    let input = |name: &str, data: &str| {
        format!(
            "model_warmup {{ name: \"{name}\" batch_size: 0 inputs {{ key: \"x\" value: {{ data_type: TYPE_FP32 \
             dims: [ 3, 2 ] {data} }} }} }}\n"
        )
    };
    let config = input("zeros", "zero_data: true") + &input("file", "input_data_file: \"x.raw\"");
    repository.describe("log", "config.pbtxt", &config);
    repository.add_bytes("log", "1", &logarithm(3.0));
    let server = Server::over(&repository);
    let notes = notes(&server, "log");
    let on = "output `y` is NaN at element 0 on the inputs of model_warmup";
    assert!(notes.contains(on), "{notes}");
    assert!(notes.contains("1 of 2 requests of model_warmup are run"), "{notes}");
    // With its file the second one is run, and does not give the first one's NaN.
    fs::create_dir(repository.path().join("log/warmup")).unwrap();
    let raw: Vec<u8> = [5.0_f32; 6].iter().flat_map(|number| number.to_le_bytes()).collect();
    fs::write(repository.path().join("log/warmup/x.raw"), raw).unwrap();
    let config = input("file", "input_data_file: \"x.raw\"");
    repository.describe("log", "config.pbtxt", &config);
    drop(server);
    let server = Launch::of(&repository).start();
    assert_eq!(self::notes(&server, "log"), "[]");
    let of = |value: &Value| value["loaded"]["run_us"].as_f64();
    let model = server.admin("/api/v1/models/log").json();
    assert!(of(&model["versions"][0]).is_some_and(|run| run > 0.0), "{model}");
}

#[test]
fn golden_outputs_say_that_no_number_is_right() {
    let repository = Repository::empty();
    repository.add_bytes("m", "1", &logarithm(-3.0));
    let server = Launch::of(&repository).set("REPOSITORY__POLL_INTERVAL", "100ms").start();
    server.wait_for_state("m", "1", "READY");
    let golden = |data: &str| {
        let of = |name: &str, data: &str| {
            format!(
                r#"[{{"name": "{name}", "datatype": "FP32", "shape": [1, 2], "data": {data}}}]"#
            )
        };
        let (x, y) = (of("x", "[1, 3]"), of("y", data));
        format!(r#"{{"cases": [{{"inputs": {x}, "outputs": {y}}}]}}"#)
    };
    repository.add_bytes("m", "2", &logarithm(3.0));
    repository.describe("m", "2/golden.json", &golden("[NaN, -Infinity]"));
    server.wait_for_state("m", "2", "READY");
    repository.add_bytes("m", "3", &logarithm(3.0));
    repository.describe("m", "3/golden.json", &golden("[NaN, Infinity]"));
    let refused = server.wait_for_state("m", "3", "UNAVAILABLE")["reason"].to_string();
    assert!(refused.contains("is -inf at element 1, expected inf"), "{refused}");
}
