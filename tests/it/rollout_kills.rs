//! The whole server killed at any instant of a rollout: the split that is served is the one on record, and the rollout
//! goes on or was decided.
//!
//! Not here: operations without a rollout (`kills`).

use std::{
    hash::{BuildHasher as _, Hasher as _},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    choices::Choices,
    cli::tidegate,
    http::{Connection, Request, Response},
    repository::Repository,
    rollouts::{MODEL, pick, picking},
    server::{Launch, Server, eventually},
    tensors::infer,
};

/// Kills of each test; there are four.
const ROUNDS: usize = 26;
/// Makes the choices of an earlier run again; a failed test says which.
const SEED: &str = "TIDEGATE_TEST_SEED";

/// Phase of the rollout in which the server dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Starts,
    Judged,
    Ordered(&'static str),
}

#[test]
fn a_kill_while_a_rollout_starts() {
    suffer(&[Fate::Starts]);
}

#[test]
fn a_kill_while_a_canary_is_judged() {
    suffer(&[Fate::Judged]);
}

#[test]
fn a_kill_while_a_rollout_is_promoted_or_aborted() {
    suffer(&[Fate::Ordered("promote"), Fate::Ordered("abort")]);
}

#[test]
fn a_kill_while_a_rollout_is_paused_and_resumed() {
    suffer(&[Fate::Ordered("pause"), Fate::Ordered("resume"), Fate::Judged]);
}

fn suffer(fates: &[Fate]) {
    let seed = std::env::var(SEED).map_or_else(
        |_| std::hash::RandomState::new().build_hasher().finish(),
        |seed| seed.parse().unwrap(),
    );
    eprintln!("{SEED}={seed}");
    let mut choices = Choices(seed);
    let repository = Repository::empty();
    repository.add_bytes(MODEL, "1", &picking(100));
    repository.add_bytes(MODEL, "2", &picking(95));
    let launch = || Launch::of(&repository).remembering().set("PROOF__ENABLED", "false");
    let mut server = launch().start();
    for round in 0..ROUNDS {
        let fate = choices.of(fates);
        let id = if fate == Fate::Starts { None } else { Some(open(&server)) };
        let delay = Duration::from_micros(choices.below(60_000));
        eprintln!("round {round}: {fate:?}, killed after {delay:?}");
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let http = server.http;
            let over = &over;
            scope.spawn(move || load(http, over));
            let mut connection = Connection::open(server.admin);
            let request = match (fate, &id) {
                (Fate::Ordered(order), Some(id)) => {
                    Some(Request::post_json(&format!("/api/v1/rollouts/{id}/{order}"), &json!({})))
                }
                (Fate::Starts, _) => {
                    reset(&server);
                    Some(Request::post_json("/api/v1/rollouts", &wanted()))
                }
                _ => None,
            };
            if let Some(request) = request {
                connection.send(request.bytes());
            }
            thread::park_timeout(delay);
            drop(server); // by SIGKILL
            over.store(true, Relaxed);
        });
        let state = repository.beside("state").display().to_string();
        let verified = tidegate(&["audit", "verify", "--state", &state], "");
        assert_eq!(verified.status.code(), Some(0), "{verified:?}");
        server = launch().start();
        assert_in_step(&server);
    }
}

/// Asks as long as there is somebody who answers.
fn load(http: std::net::SocketAddr, over: &AtomicBool) {
    let Some(mut connection) = Connection::try_open(http) else { return };
    let mut number = 0;
    while !over.load(Relaxed) {
        number = (number + 1) % 100;
        if connection.try_ask(&Request::post_json(&infer(MODEL), &pick(number))).is_err() {
            return;
        }
    }
}

fn wanted() -> Value {
    let step = |weight: f64| json!({"weight": weight, "min_duration": "0s", "min_requests": 1});
    let steps = [0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5].map(step);
    let policy = json!({
        "steps": steps,
        "warmup_requests": 0,
        "rollback_window": "0s",
    });
    json!({"model": MODEL, "candidate": 2, "policy": policy, "force": true})
}

fn newest(server: &Server) -> Option<Value> {
    let list = server.admin("/api/v1/rollouts?limit=1").ok().json();
    Some(list["rollouts"][0].clone()).filter(|rollout| !rollout.is_null())
}

fn is_over(rollout: &Value) -> bool {
    ["promoted", "rolled_back", "failed", "superseded"]
        .contains(&rollout["state"].as_str().unwrap())
}

/// Ends whatever goes on, with version 1 in service.
fn reset(server: &Server) {
    let ask = |path: &str, body: &Value| -> Response {
        Connection::open(server.admin).ask(&Request::post_json(path, body))
    };
    ask(&format!("/api/v1/models/{MODEL}/rollback"), &json!({"version": 1})).ok();
    eventually("the rollout before is over", || {
        newest(server).is_none_or(|rollout| is_over(&rollout)).then_some(())
    });
}

/// The rollout that goes on, or a new one.
fn open(server: &Server) -> String {
    let id = |rollout: &Value| rollout["id"].as_str().unwrap().to_owned();
    if let Some(rollout) = newest(server).filter(|rollout| !is_over(rollout)) {
        return id(&rollout);
    }
    reset(server);
    let started =
        Connection::open(server.admin).ask(&Request::post_json("/api/v1/rollouts", &wanted()));
    assert_eq!(started.status, 201, "{}", started.text());
    id(&started.json())
}

/// Asserts that the served split is the one that the rollout says.
fn assert_in_step(server: &Server) {
    let traffic = || server.admin(&format!("/api/v1/models/{MODEL}/traffic")).ok().json();
    let Some(_) = newest(server) else {
        assert_eq!(traffic()["source"], "default");
        return;
    };
    let (rollout, traffic) = eventually("the rollout and its split agree", || {
        let rollout = newest(server)?;
        let traffic = traffic();
        let alone =
            |version: &str| json!([{"name": "baseline", "version": version, "weight": 1.0}]);
        let own = traffic["rollout"] == rollout["id"];
        let weight = traffic["arms"][1]["weight"].as_f64();
        let agrees = match rollout["state"].as_str()? {
            "promoting" => false,
            "promoted" => traffic["arms"] == alone("2"),
            "rolled_back" => traffic["arms"] == alone("1"),
            "failed" | "superseded" => !own,
            "pending" => weight.is_some_and(|weight| weight == 0.0) && own,
            _ => {
                own && weight
                    .zip(rollout["weight"].as_f64())
                    .is_some_and(|(a, b)| (a - b).abs() < 1e-9)
            }
        };
        agrees.then_some((rollout, traffic))
    });
    // The answers are the split's.
    let mut connection = server.connect();
    let versions: Vec<_> =
        traffic["arms"].as_array().unwrap().iter().map(|arm| arm["version"].clone()).collect();
    for number in 0..20 {
        let answer = connection.ask(&Request::post_json(&infer(MODEL), &pick(number))).ok();
        let version = json!(answer.header("x-tidegate-version").unwrap());
        assert!(versions.contains(&version), "{version} of {traffic} in {rollout:#}");
    }
}
