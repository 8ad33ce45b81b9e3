//! Whoever reads the log may stall or leave: nothing else does, and what is lost is counted.

use std::{
    fs,
    io::{BufRead, BufReader, PipeReader},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    http::{Connection, Request},
    repository::{Repository, source},
    server::{Launch, Server, eventually},
    tensors::{identity, infer},
};

const MODEL: &str = "identity_fp32";

fn start() -> (Repository, Server, PipeReader) {
    let repository = Repository::of(&[MODEL]);
    let (server, reader) = Launch::of(&repository)
        .set("REPOSITORY__POLL_INTERVAL", "100ms")
        .set("LOGS__LEVEL", "debug")
        .set("LOGS__BUFFER", "64KiB")
        .set("SERVER__DRAIN_DELAY", "0s")
        .start_unread();
    server.wait_for_state(MODEL, "1", "READY");
    (repository, server, reader)
}

/// Does something that is logged at some length.
fn operate(server: &Server) {
    let said = json!({"version": 1, "reason": "r".repeat(1000)});
    let path = format!("/api/v1/models/{MODEL}/aliases/own");
    Connection::open(server.admin).ask(&Request::post_json(&path, &said).method("PUT")).ok();
}

fn dropped(server: &Server) -> u64 {
    let page = server.admin("/metrics").ok().text();
    let line = page.lines().find_map(|l| l.strip_prefix("tidegate_log_lines_dropped_total "));
    line.expect("the metric").parse().unwrap()
}

/// Operations until lines are dropped: the pipe is full, and so is the buffer.
fn fill(server: &Server) {
    eventually("lines are dropped", || {
        operate(server);
        (dropped(server) > 0).then_some(())
    });
}

/// Predictions, a swap and operations.
fn all_goes_on(repository: &Repository, server: &Server) {
    server.post(&infer(MODEL), &identity("FP32", &json!([1.0]))).ok();
    repository.add_bytes(MODEL, "2", &fs::read(source("doubled_fp32", "1")).unwrap());
    server.wait_for_state(MODEL, "2", "READY");
    operate(server);
    let answer = server.post(&infer(MODEL), &identity("FP32", &json!([1.0]))).ok();
    assert_eq!(answer.header("x-tidegate-version"), Some("2"));
    assert_eq!(server.admin("/livez").status, 200);
}

fn messages(reader: PipeReader) -> Vec<Value> {
    let lines = BufReader::new(reader).lines().map(|line| line.unwrap());
    lines.map(|line| serde_json::from_str(&line).expect("each line is whole")).collect()
}

#[test]
fn a_reader_that_stalls_stops_nothing() {
    let (repository, mut server, reader) = start();
    fill(&server);
    all_goes_on(&repository, &server);
    server.terminate();
    assert_eq!(server.exit_code(Duration::from_secs(10)), 0);
    drop(reader);
}

#[test]
fn a_reader_that_comes_back_is_told_what_it_missed_and_misses_nothing_more() {
    let (_repository, mut server, reader) = start();
    fill(&server);
    let lost = dropped(&server);
    let reading = thread::spawn(move || messages(reader));
    // What is logged from now on finds room.
    eventually("lines are read again", || {
        let before = dropped(&server);
        operate(&server);
        (dropped(&server) == before).then_some(())
    });
    server.terminate();
    assert_eq!(server.exit_code(Duration::from_secs(10)), 0);
    let said = reading.join().unwrap();
    let told = said.iter().filter(|line| {
        line["message"].as_str().is_some_and(|text| text.starts_with("log lines were dropped"))
    });
    assert!(told.map(|line| line["lines"].as_u64().unwrap()).sum::<u64>() >= lost);
    assert_eq!(said.last().unwrap()["message"], "stopped", "also the last line is there");
}

#[test]
fn a_reader_that_leaves_stops_nothing() {
    let (repository, mut server, reader) = start();
    drop(reader);
    for _ in 0..3 {
        operate(&server);
    }
    all_goes_on(&repository, &server);
    assert!(dropped(&server) > 0);
    server.terminate();
    assert_eq!(server.exit_code(Duration::from_secs(10)), 0);
}
