//! Runs whose memory the values of a request choose: each is bounded by `engine.run_memory`, and the server's memory
//! with it.

use std::{
    collections::BTreeSet,
    fs,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    thread,
};

use serde_json::{Value, json};
use tidegate::{
    engine::onnx::{Limits, growth, summarize},
    model::Growth,
};

use crate::{
    http::{Request, Response},
    models::{
        BOOL, FLOAT, INT64, Message, counted_loop, declared, floats, graph, graph_attribute,
        int_attribute, integers, model, node,
    },
    repository::Repository,
    server::{Launch, Server, eventually},
    tensors::{add_sub, body, infer, input},
};

/// What one run may take in these tests.
const RUN_MEMORY: &str = "64MiB";
const RUN_MEMORY_MAX: i64 = 64 << 20;

/// As much as the server may take beside its runs, in KiB: its binary, the engine's library, sessions, answers.
const BESIDE_KIB: u64 = 400 << 10;

/// As much as may stay of runs that are over: far less than one of them may take.
const LEFT_KIB: u64 = 16 << 10;

/// ONNX's code of strings.
const STRING: i64 = 8;

/// Zeros of the shape that the input says, and their sum.
fn zeros() -> Vec<u8> {
    model(graph(
        vec![
            node("ConstantOfShape", &["n"], &["zeros"]),
            node("ReduceSum", &["zeros"], &["y"]).message(5, int_attribute("keepdims", 0)),
        ],
        vec![],
        vec![declared("n", INT64, &[-1])],
        vec![declared("y", FLOAT, &[])],
    ))
}

/// As many rows as the input says, collected by a loop; then how many elements they are.
fn rows() -> Vec<u8> {
    collecting(vec![node("Identity", &["go"], &["on"]), node("Add", &["row", "row"], &["double"])])
}

/// The same, by a condition that nobody knows before.
fn conditional_rows() -> Vec<u8> {
    collecting(vec![
        node("Less", &["round", "many"], &["on"]),
        node("Add", &["row", "row"], &["double"]),
    ])
}

/// The same row each time, which takes no memory until the loop has ended.
fn same_rows() -> Vec<u8> {
    collecting(vec![node("Identity", &["go"], &["on"]), node("Identity", &["row"], &["double"])])
}

fn collecting(nodes: Vec<Message>) -> Vec<u8> {
    let round = graph(
        nodes,
        vec![integers("many", INT64, &[], &[1 << 50])],
        vec![declared("round", INT64, &[]), declared("go", BOOL, &[])],
        vec![declared("on", BOOL, &[]), declared("double", FLOAT, &[1000])],
    );
    model(graph(
        vec![
            node("Loop", &["rounds", "yes"], &["rows"]).message(5, graph_attribute("body", round)),
            node("Size", &["rows"], &["y"]),
        ],
        vec![integers("yes", BOOL, &[], &[1]), floats("row", &[1000], &[1.0; 1000])],
        vec![declared("rounds", INT64, &[])],
        vec![declared("y", INT64, &[])],
    ))
}

/// All pairs of the numbers below the input, which no program of sizes follows.
fn pairs() -> Vec<u8> {
    model(graph(
        vec![
            node("Range", &["zero", "n", "one"], &["across"]),
            node("Unsqueeze", &["across", "axis"], &["down"]),
            node("Add", &["across", "down"], &["sums"]),
            node("Size", &["sums"], &["y"]),
        ],
        vec![
            integers("zero", INT64, &[], &[0]),
            integers("one", INT64, &[], &[1]),
            integers("axis", INT64, &[1], &[1]),
        ],
        vec![declared("n", INT64, &[])],
        vec![declared("y", INT64, &[])],
    ))
}

/// A product with weights that are larger than what a run may take, and zeros as many as the input says.
fn weights() -> Vec<u8> {
    const WIDE: i64 = 5000;
    let count = usize::try_from(WIDE * WIDE).unwrap();
    model(graph(
        vec![
            node("MatMul", &["x", "weights"], &["product"]),
            node("ConstantOfShape", &["n"], &["zeros"]),
            node("Add", &["zeros", "product"], &["sum"]),
            node("ReduceMax", &["sum"], &["y"]).message(5, int_attribute("keepdims", 0)),
        ],
        vec![floats("weights", &[WIDE, WIDE], &vec![0.5; count])],
        vec![declared("x", FLOAT, &[1, WIDE]), declared("n", INT64, &[2])],
        vec![declared("y", FLOAT, &[])],
    ))
}

fn models() -> [(&'static str, Vec<u8>); 5] {
    [
        ("zeros", zeros()),
        ("rows", rows()),
        ("conditional_rows", conditional_rows()),
        ("same_rows", same_rows()),
        ("pairs", pairs()),
    ]
}

fn serve() -> Server {
    let repository = Repository::of(&["add_sub"]);
    for (name, bytes) in models() {
        repository.add_bytes(name, "1", &bytes);
        repository.describe(name, "model.toml", "max_batch_size = 0\n");
    }
    let server = Launch::of(&repository).set("ENGINE__RUN_MEMORY", RUN_MEMORY).start();
    for (name, _) in models() {
        server.wait_for_state(name, "1", "READY");
    }
    server
}

fn ask(server: &Server, model: &str, name: &str, shape: &[usize], values: &[i64]) -> Response {
    server.post(&infer(model), &body(&[input(name, "INT64", shape, &json!(values))]))
}

fn answer(response: &Response) -> Value {
    assert_eq!(response.status, 200, "{response:?}");
    response.json()["outputs"][0]["data"][0].clone()
}

/// A refusal that says what to do, by the caller's values.
fn is_refused(response: &Response) {
    assert_eq!(response.status, 400, "{response:?}");
    assert!(response.text().contains("engine.run_memory"), "{response:?}");
}

fn neighbour_answers(server: &Server) {
    let response = server.post(&infer("add_sub"), &add_sub());
    assert_eq!(response.json()["outputs"][0]["data"][3], 4, "{response:?}");
}

/// The most memory that the server ever held, in KiB.
fn peak(server: &Server) -> u64 {
    status(server, "VmHWM:")
}

/// A line of the process's status, in KiB.
fn status(server: &Server, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().strip_suffix("kB").unwrap().trim().parse().unwrap()
}

#[test]
fn a_size_beyond_the_limit_is_refused_before_the_run() {
    let server = serve();
    for values in [vec![1 << 31], vec![1 << 15, 1 << 15], vec![RUN_MEMORY_MAX / 4 + 1]] {
        let response = ask(&server, "zeros", "n", &[values.len()], &values);
        is_refused(&response);
        let bytes = (values.iter().product::<i64>() * 4).to_string();
        for part in ["ConstantOfShape", "zeros", &bytes, &RUN_MEMORY_MAX.to_string()] {
            assert!(response.text().contains(part), "{part}: {response:?}");
        }
        neighbour_answers(&server);
    }
    for values in [vec![3], vec![0], vec![1 << 10, 1 << 10], vec![RUN_MEMORY_MAX / 8]] {
        let sum = answer(&ask(&server, "zeros", "n", &[values.len()], &values));
        assert_eq!(sum, 0.0, "{values:?}");
    }
    assert!(peak(&server) < BESIDE_KIB, "{}", peak(&server));
}

#[test]
fn the_default_refuses_what_takes_gigabytes() {
    let repository = Repository::empty();
    repository.add_bytes("zeros", "1", &zeros());
    let server = Launch::of(&repository).start();
    server.wait_for_state("zeros", "1", "READY");
    is_refused(&ask(&server, "zeros", "n", &[1], &[1 << 31]));
    assert!(peak(&server) < BESIDE_KIB, "{}", peak(&server));
}

/// Rounds, or pairs, that take more than a run may have; the first without end.
const TOO_MANY: [(&str, &str, i64); 5] = [
    ("conditional_rows", "rounds", 1 << 40),
    ("rows", "rounds", 1 << 40),
    ("conditional_rows", "rounds", 20_000),
    ("same_rows", "rounds", 1 << 40),
    ("pairs", "n", 5_000),
];

/// What is answered, with the largest that is.
const ENOUGH: [(&str, &str, i64, i64); 4] = [
    ("rows", "rounds", 3, 3_000),
    ("conditional_rows", "rounds", 7_500, 7_500_000),
    ("same_rows", "rounds", 7_500, 7_500_000),
    ("pairs", "n", 2_000, 4_000_000),
];

#[test]
fn a_run_beyond_the_limit_fails_cleanly_and_the_next_is_right() {
    let server = serve();
    for round in 0..2 {
        for (model, name, value) in TOO_MANY {
            is_refused(&ask(&server, model, name, &[], &[value]));
            neighbour_answers(&server);
            for (model, name, value, expected) in ENOUGH {
                let count = answer(&ask(&server, model, name, &[], &[value]));
                assert_eq!(count, expected, "{model} of {value} in round {round}");
            }
        }
    }
    assert!(peak(&server) < BESIDE_KIB, "{}", peak(&server));
}

#[test]
fn a_run_that_is_cut_short_leaves_no_memory_behind() {
    let server = serve();
    let ready = status(&server, "RssAnon:");
    let rows = |deadline: &str| {
        let body = body(&[input("rounds", "INT64", &[], &json!([1_i64 << 40]))]);
        let request = Request::post_json(&infer("conditional_rows"), &body);
        server.connect().ask(&request.header("x-request-timeout-ms", deadline))
    };
    let mut codes = BTreeSet::new();
    for deadline in ["60000", "30", "20", "60000"] {
        codes.insert(rows(deadline).status);
        // At once, so that every worker takes part.
        thread::scope(|scope| {
            (0..2).for_each(|_| drop(scope.spawn(|| rows(deadline))));
        });
        // The answer to a deadline does not wait for the end of its run.
        eventually(&format!("runs of at most {deadline} ms leave their memory"), || {
            (status(&server, "RssAnon:").saturating_sub(ready) < LEFT_KIB).then_some(())
        });
    }
    assert_eq!(codes, BTreeSet::from([400, 504]));
}

#[test]
fn runs_at_the_same_time_share_the_bound() {
    let server = serve();
    let (answered, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for client in 0..4 {
            let (server, answered, refused) = (&server, &answered, &refused);
            scope.spawn(move || {
                for round in 0..15 {
                    if (client + round) % 2 == 0 {
                        let (model, name, value) = TOO_MANY[round % TOO_MANY.len()];
                        let response = ask(server, model, name, &[], &[value]);
                        assert!([400, 503].contains(&response.status), "{response:?}");
                        assert!(response.text().contains("engine.run_memory"), "{response:?}");
                        refused.fetch_add(1, Relaxed);
                        continue;
                    }
                    let (model, name, value, expected) = ENOUGH[round % ENOUGH.len()];
                    let response = ask(server, model, name, &[], &[value]);
                    if response.status == 503 {
                        assert!(response.text().contains("try again"), "{response:?}");
                        continue;
                    }
                    assert_eq!(answer(&response), expected);
                    answered.fetch_add(1, Relaxed);
                }
            });
        }
    });
    assert!(answered.into_inner() > 0 && refused.into_inner() == 30);
    for (model, name, value, expected) in ENOUGH {
        assert_eq!(answer(&ask(&server, model, name, &[], &[value])), expected);
    }
    neighbour_answers(&server);
    assert!(peak(&server) < BESIDE_KIB, "{}", peak(&server));
}

#[test]
fn weights_take_nothing_from_runs_and_lift_no_bound() {
    let repository = Repository::empty();
    repository.add_bytes("weights", "1", &weights());
    repository.describe("weights", "model.toml", "max_batch_size = 0\n");
    let server = Launch::of(&repository).set("ENGINE__RUN_MEMORY", RUN_MEMORY).start();
    server.wait_for_state("weights", "1", "READY");
    let rows = |rows: i64| {
        let x = input("x", "FP32", &[1, 5000], &json!(vec![1.0; 5000]));
        let n = input("n", "INT64", &[2], &json!([rows, 5000]));
        server.post(&infer("weights"), &body(&[x, n]))
    };
    let ready = peak(&server);
    for _ in 0..3 {
        // Twice the zeros, which is more than a run may take although the zeros alone are not.
        is_refused(&rows(2_500));
        assert_eq!(answer(&rows(1_200)), 2500.0);
    }
    assert!(peak(&server) < ready + (200 << 10), "{} after {ready}", peak(&server));
}

#[test]
fn text_counts_where_it_is_repeated() {
    let repository = Repository::empty();
    for operator in ["Tile", "Expand"] {
        let nodes = vec![node(operator, &["x", "n"], &["all"]), node("Size", &["all"], &["y"])];
        let inputs = vec![declared("x", STRING, &[-1]), declared("n", INT64, &[1])];
        let outputs = vec![declared("y", INT64, &[])];
        repository.add_bytes(operator, "1", &model(graph(nodes, vec![], inputs, outputs)));
        repository.describe(operator, "model.toml", "max_batch_size = 0\n");
    }
    let server = Launch::of(&repository).set("ENGINE__RUN_MEMORY", RUN_MEMORY).start();
    for operator in ["Tile", "Expand"] {
        server.wait_for_state(operator, "1", "READY");
        let repeated = |text: &str, times: i64| {
            let x = input("x", "BYTES", &[1], &json!([text]));
            server.post(&infer(operator), &body(&[x, input("n", "INT64", &[1], &json!([times]))]))
        };
        is_refused(&repeated(&"a".repeat(1 << 20), 1000));
        is_refused(&repeated("a", RUN_MEMORY_MAX / 16));
        assert_eq!(answer(&repeated(&"a".repeat(1 << 20), 10)), 10);
        assert_eq!(answer(&repeated("a", 1000)), 1000);
    }
    assert!(peak(&server) < BESIDE_KIB, "{}", peak(&server));
}

fn growth_of(bytes: &[u8]) -> Option<Growth> {
    let limits = Limits::default();
    growth(bytes, &summarize(bytes, &limits).unwrap(), &limits).unwrap()
}

/// A model of these nodes with inputs `n` (vector), `s` (scalar), `f` (numbers) and `x`.
fn with(nodes: Vec<Message>) -> Vec<u8> {
    let inputs = vec![
        declared("n", INT64, &[-1]),
        declared("s", INT64, &[]),
        declared("f", FLOAT, &[-1]),
        declared("x", FLOAT, &[-1, 3]),
    ];
    let constants = vec![
        integers("one", INT64, &[1], &[1]),
        integers("zero", INT64, &[], &[0]),
        integers("four", INT64, &[], &[4]),
        integers("grid", INT64, &[2], &[2, 3]),
        floats("none", &[0], &[]),
        floats("halves", &[2], &[0.5, 1.5]),
        floats("off_on", &[2], &[0.0, 1.0]),
    ];
    model(graph(nodes, constants, inputs, vec![]))
}

#[test]
fn operators_that_grow_by_values_are_found_and_followed() {
    /// What is to be found.
    #[derive(Debug, PartialEq)]
    enum Found {
        Nothing,
        Bounded,
        Followed,
    }
    let cast =
        |from, to, element| node("Cast", &[from], &[to]).message(5, int_attribute("to", element));
    let concat =
        |parts: &[&str]| node("Concat", parts, &["c"]).message(5, int_attribute("axis", 0));
    let table: Vec<(&str, Found, Vec<Message>)> = vec![
        ("a fixed shape", Found::Nothing, vec![node("ConstantOfShape", &["grid"], &["y"])]),
        (
            "a shape of a shape",
            Found::Nothing,
            vec![node("Shape", &["x"], &["c"]), node("ConstantOfShape", &["c"], &["y"])],
        ),
        ("an ordinary operator", Found::Nothing, vec![node("Add", &["x", "x"], &["y"])]),
        ("a shape", Found::Followed, vec![node("ConstantOfShape", &["n"], &["y"])]),
        (
            "joined",
            Found::Followed,
            vec![concat(&["n", "one"]), node("ConstantOfShape", &["c"], &["y"])],
        ),
        (
            "a scalar, made a vector",
            Found::Followed,
            vec![node("Unsqueeze", &["s", "one"], &["c"]), node("Expand", &["x", "c"], &["y"])],
        ),
        ("counted", Found::Followed, vec![node("Range", &["zero", "s", "four"], &["y"])]),
        (
            "arithmetic",
            Found::Followed,
            vec![
                node("Mul", &["s", "four"], &["a"]),
                node("Add", &["a", "one"], &["c"]),
                node("ConstantOfShape", &["c"], &["y"]),
            ],
        ),
        ("repeats", Found::Followed, vec![node("Tile", &["x", "n"], &["y"])]),
        (
            "repeats of something unknown",
            Found::Bounded,
            vec![node("MatMul", &["x", "x"], &["p"]), node("Tile", &["p", "n"], &["y"])],
        ),
        ("depth", Found::Followed, vec![node("OneHot", &["n", "s", "off_on"], &["y"])]),
        ("a fixed depth", Found::Nothing, vec![node("OneHot", &["n", "four", "off_on"], &["y"])]),
        ("pads", Found::Followed, vec![node("Pad", &["x", "n"], &["y"])]),
        ("a size", Found::Followed, vec![node("Resize", &["x", "", "", "n"], &["y"])]),
        ("a scale", Found::Followed, vec![node("Resize", &["x", "", "f"], &["y"])]),
        ("a scale of a region", Found::Bounded, vec![node("Resize", &["x", "f", "f"], &["y"])]),
        (
            "a scale of no region",
            Found::Followed,
            vec![node("Resize", &["x", "none", "f"], &["y"])],
        ),
        ("a fixed scale", Found::Nothing, vec![node("Resize", &["x", "", "halves"], &["y"])]),
        ("an old scale", Found::Followed, vec![node("Upsample", &["x", "f"], &["y"])]),
        (
            "numbers made whole",
            Found::Followed,
            vec![cast("f", "c", INT64), node("ConstantOfShape", &["c"], &["y"])],
        ),
        (
            "picked",
            Found::Followed,
            vec![
                node("Gather", &["n", "zero"], &["a"]),
                node("Range", &["zero", "a", "four"], &["y"]),
            ],
        ),
        (
            "through a value",
            Found::Bounded,
            vec![node("ReduceMax", &["n"], &["a"]), node("ConstantOfShape", &["a"], &["y"])],
        ),
        (
            "what is found in values",
            Found::Bounded,
            vec![
                node("NonZero", &["x"], &["i"]),
                node("Shape", &["i"], &["a"]),
                node("ConstantOfShape", &["a"], &["y"]),
            ],
        ),
    ];
    for (name, expected, nodes) in table {
        let found = match growth_of(&with(nodes)) {
            None => Found::Nothing,
            Some(growth) if growth.is_empty() => Found::Bounded,
            Some(_) => Found::Followed,
        };
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn loops_count_always_and_a_function_hides_what_has_its_name() {
    let function = Message::default().bytes(1, "Range").bytes(4, "a").bytes(10, "com.microsoft");
    let renamed = Message(with(vec![node("Tile", &["x", "n"], &["y"])])).message(25, function);
    assert!(growth_of(&renamed.0).is_some_and(|growth| growth.is_empty()), "a function's name");
    for (model, is_followed) in
        [(rows(), true), (same_rows(), true), (conditional_rows(), false), (counted_loop(), false)]
    {
        assert_eq!(growth_of(&model).map(|growth| !growth.is_empty()), Some(is_followed));
    }
}
