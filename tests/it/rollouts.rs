//! Rollouts end to end: a candidate is tried under load and wins or goes by itself.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
};

use serde_json::{Value, json};

use crate::{
    http::{Connection, Request, Response},
    models::{INT64, declared, graph, integers, model, node},
    repository::Repository,
    server::{Launch, Server, eventually},
    tensors::infer,
};

/// Picks from a table of so many entries: the engine refuses an index beyond it.
fn picking(entries: i64) -> Vec<u8> {
    let values: Vec<i64> = (1..=entries).collect();
    model(graph(
        vec![node("Gather", &["table", "x"], &["y"])],
        vec![integers("table", INT64, &[entries], &values)],
        vec![declared("x", INT64, &[-1])],
        vec![declared("y", INT64, &[-1])],
    ))
}

fn admin(server: &Server, method: &str, path: &str, body: &Value) -> Response {
    let request = Request::post_json(path, body).method(method);
    Connection::open(server.admin).ask(&request)
}

fn start(server: &Server, policy: &Value) -> Value {
    let body = json!({"model": "pick", "candidate": 2, "policy": policy});
    let response = admin(server, "POST", "/api/v1/rollouts", &body);
    assert_eq!(response.status, 201, "{}", response.text());
    response.json()
}

fn show(server: &Server, id: &str) -> Value {
    server.admin(&format!("/api/v1/rollouts/{id}")).ok().json()
}

/// A policy that does not wait.
fn quick() -> Value {
    json!({
        "steps": [{"weight": 0.3, "min_duration": "0s", "min_requests": 20}],
        "warmup_requests": 5,
        "rollback_window": "0s",
    })
}

/// What clients met while something was true.
#[derive(Debug, Default)]
struct Met {
    answers: AtomicU64,
    refused: AtomicU64,
    canary: AtomicU64,
    fallbacks: AtomicU64,
}

/// Asks for all of 100 picks in turn, over and over, until a condition holds.
fn under_load<T>(server: &Server, condition: impl FnMut() -> Option<T>, what: &str) -> (T, Met) {
    let (met, over) = (Met::default(), AtomicBool::new(false));
    let value = thread::scope(|scope| {
        for client in 0..2 {
            let (met, over) = (&met, &over);
            scope.spawn(move || {
                let mut connection = server.connect();
                let mut pick = client * 37;
                while !over.load(Relaxed) {
                    pick = (pick + 1) % 100;
                    let input =
                        json!({"name": "x", "shape": [1], "datatype": "INT64", "data": [pick]});
                    let request = Request::post_json(&infer("pick"), &json!({ "inputs": [input] }));
                    let answer = connection.ask(&request);
                    met.answers.fetch_add(1, Relaxed);
                    met.refused.fetch_add(u64::from(answer.status != 200), Relaxed);
                    let is_canary = answer.header("x-tidegate-arm") == Some("canary");
                    met.canary.fetch_add(u64::from(is_canary), Relaxed);
                    let fell = answer.header("x-tidegate-fallback").is_some();
                    met.fallbacks.fetch_add(u64::from(fell), Relaxed);
                }
            });
        }
        let value = eventually(what, condition);
        over.store(true, Relaxed);
        value
    });
    (value, met)
}

fn two(candidate: &[u8]) -> Repository {
    let repository = Repository::empty();
    repository.add_bytes("pick", "1", &picking(100));
    repository.add_bytes("pick", "2", candidate);
    repository
}

fn pinned(repository: &Repository) -> Server {
    let server = Launch::of(repository).start();
    admin(&server, "POST", "/api/v1/models/pick/rollback", &json!({"version": 1})).ok();
    server
}

fn ended(server: &Server, id: &str) -> Option<Value> {
    let shown = show(server, id);
    let state = shown["state"].as_str().unwrap();
    ["promoted", "rolled_back", "failed", "superseded"].contains(&state).then_some(shown)
}

#[test]
fn a_canary_with_errors_is_rolled_back_by_itself_and_no_request_is_lost() {
    let server = pinned(&two(&picking(95)));
    let rollout = start(&server, &quick());
    let id = rollout["id"].as_str().unwrap();
    let (shown, met) = under_load(&server, || ended(&server, id), "the rollout ends");
    assert_eq!(shown["state"], "rolled_back", "{shown:#}");
    assert_eq!(shown["gate"], "errors", "{shown:#}");
    assert!(shown["reason"].as_str().unwrap().starts_with("gate errors: "), "{shown:#}");
    assert_eq!(
        met.refused.into_inner(),
        0,
        "every answer is the baseline's where the canary has none"
    );
    assert!(met.fallbacks.into_inner() > 0);
    let traffic = server.admin("/api/v1/models/pick/traffic").ok().json();
    assert_eq!(traffic["arms"], json!([{"name": "baseline", "version": "1", "weight": 1.0}]));
}
