//! Versions that end the server in spite of everything: blamed by the next start, held back by the one after.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    cli::tidegate,
    http::{Connection, Request},
    models::{FLOAT, INT64, declared, floats, graph, int_attribute, integers, model, node},
    repository::Repository,
    server::{Launch, PATIENCE, Server},
    tensors::{add_sub, body, infer, input},
};

/// Gives the rows below 100 to an LSTM, which ends the process where none is left: no proof tries that.
fn lstm_of_small_numbers() -> Vec<u8> {
    lstm_of_numbers_below(100.0)
}

/// Gives the rows below a limit to an LSTM, which ends the process where none is left.
pub(crate) fn lstm_of_numbers_below(limit: f32) -> Vec<u8> {
    let nodes = vec![
        node("Less", &["x", "limit"], &["is_small"]),
        node("Compress", &["x", "is_small"], &["small"]),
        node("Unsqueeze", &["small", "axes"], &["steps"]),
        node("LSTM", &["steps", "w", "r"], &["y"]).message(5, int_attribute("hidden_size", 1)),
    ];
    let initializers = vec![
        floats("limit", &[1], &[limit]),
        integers("axes", INT64, &[2], &[0, 2]),
        floats("w", &[1, 4, 1], &[0.5; 4]),
        floats("r", &[1, 4, 1], &[0.5; 4]),
    ];
    let inputs = vec![declared("x", FLOAT, &[-1])];
    model(graph(nodes, initializers, inputs, vec![declared("y", FLOAT, &[-1, 1, -1, 1])]))
}

fn rows(value: f32) -> Value {
    body(&[input("x", "FP32", &[2], &json!([value, value]))])
}

/// The same model with other bytes: a documentation of its own.
fn documented(mut model: Vec<u8>, text: u8) -> Vec<u8> {
    model.extend([0x32, 1, text]);
    model
}

/// Sends the request that ends the server, and waits until it has.
fn end(server: Server) -> i32 {
    let request = Request::post_json(&infer("risky"), &rows(200.0));
    let answer = Connection::open(server.http).try_ask(&request);
    assert!(answer.is_err(), "it was answered: {answer:?}");
    server.ended_by(PATIENCE)
}

fn answers(server: &Server, version: &str) {
    let response = server.post(&infer("risky"), &rows(1.0));
    assert_eq!(response.status, 200, "{response:?}");
    assert_eq!(response.header("x-tidegate-version"), Some(version), "{response:?}");
    server.post(&infer("add_sub"), &add_sub()).ok();
}

fn proofs(server: &Server, outcome: &str) -> String {
    let page = server.admin("/metrics").text();
    let name = format!("tidegate_proofs_total{{outcome=\"{outcome}\"}} ");
    page.lines().find_map(|line| line.strip_prefix(&name)).unwrap_or("0").to_owned()
}

#[test]
fn a_version_that_ends_the_server_twice_is_held_back_and_an_older_one_serves() {
    let repository = Repository::of(&["add_sub"]);
    repository.describe("risky", "model.toml", "max_batch_size = 0\n");
    repository.add_bytes("risky", "1", &documented(lstm_of_small_numbers(), b'1'));
    repository.add_bytes("risky", "2", &lstm_of_small_numbers());
    let launch = || Launch::of(&repository).remembering();

    let first = launch().start();
    answers(&first, "2");
    let notes = first.admin("/api/v1/models/risky").text();
    assert!(notes.contains("follows from a request's values"), "{notes}");
    let (folder, admin) = (repository.path().display().to_string(), first.admin.to_string());
    for command in
        [&["check", "--repository", &folder][..], &["models", "show", "risky", "--admin", &admin]]
    {
        let told = String::from_utf8(tidegate(command, "").stdout).unwrap();
        assert!(told.contains("serve this version only to clients that you trust"), "{told}");
    }
    assert_eq!(end(first), libc::SIGABRT);

    let second = launch().start();
    second.wait_until_said("proven anew");
    assert_eq!(
        (proofs(&second, "proven"), proofs(&second, "remembered")),
        ("1".into(), "1".into())
    );
    answers(&second, "2");
    assert_eq!(end(second), libc::SIGABRT);

    let third = launch().start();
    answers(&third, "1");
    let entry = third.wait_for_state("risky", "2", "UNAVAILABLE");
    let reason = entry["reason"].as_str().unwrap();
    assert!(reason.contains("twice within an hour (SIGABRT"), "{reason}");
    assert!(reason.contains("tidegate models load risky"), "{reason}");

    // The next start knows it still; an operator's word ends it, and so would other files.
    drop(third);
    let mut fourth = launch().start();
    answers(&fourth, "1");
    let answer = fourth.post("/v2/repository/models/risky/load", &json!({}));
    assert_eq!(answer.status, 200, "{answer:?}");
    answers(&fourth, "2");
    assert!(fourth.is_running());
    drop(fourth);
    answers(&launch().start(), "2");
}

#[test]
fn other_files_are_not_blamed() {
    let repository = Repository::of(&["add_sub"]);
    repository.describe("risky", "model.toml", "max_batch_size = 0\n");
    repository.add_bytes("risky", "1", &lstm_of_small_numbers());
    let launch = || Launch::of(&repository).remembering().set("PROOF__ENABLED", "false");
    assert_eq!(end(launch().start()), libc::SIGABRT);
    assert_eq!(end(launch().start()), libc::SIGABRT);
    let held = launch().start();
    held.wait_for_state("risky", "1", "UNAVAILABLE");
    held.post(&infer("add_sub"), &add_sub()).ok();
    repository.replace("risky", "1", &documented(lstm_of_small_numbers(), b'x'));
    held.wait_for_state("risky", "1", "READY");
    answers(&held, "1");
}

#[test]
fn a_signal_from_outside_blames_nobody() {
    let repository = Repository::of(&["add_sub"]);
    for signal in [rustix::process::Signal::SEGV, rustix::process::Signal::KILL] {
        let server = Launch::of(&repository).remembering().start();
        server.post(&infer("add_sub"), &add_sub()).ok();
        let id = rustix::process::Pid::from_raw(i32::try_from(server.id()).unwrap()).unwrap();
        rustix::process::kill_process(id, signal).unwrap();
        assert_eq!(server.ended_by(Duration::from_secs(20)), signal.as_raw());
    }
    let server = Launch::of(&repository).remembering().start();
    assert!(!server.said().contains("proven anew"), "{}", server.said());
    assert_eq!(proofs(&server, "remembered"), "1");
}
