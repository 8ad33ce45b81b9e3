//! Rollouts end to end: a candidate is tried under load and wins or goes by itself.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
};

use serde_json::{Value, json};
use tidegate::{
    lifecycle::{Operation, RolloutStep, SplitChange},
    model::{ModelName, VersionId},
    registry::{Cause, Registry},
};

use crate::{
    blame::lstm_of_numbers_below,
    http::{Connection, Request, Response},
    models::{BOOL, FLOAT, INT64, adding_loop, declared, floats, graph, integers, model, node},
    panics::Plane,
    repository::Repository,
    server::{Launch, PATIENCE, Server, eventually},
    tensors::infer,
};

pub(crate) const MODEL: &str = "tried";

/// Picks from a table of so many entries: the engine refuses an index beyond it.
pub(crate) fn picking(entries: i64) -> Vec<u8> {
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
    let body = json!({"model": MODEL, "candidate": 2, "policy": policy});
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

/// Counts of the answers that clients got under load.
#[derive(Debug, Default)]
struct Met {
    answers: AtomicU64,
    refused: AtomicU64,
    canary: AtomicU64,
    fallbacks: AtomicU64,
}

/// Asks with each of 100 numbers in turn, over and over, until a condition holds.
fn under_load<T>(
    server: &Server,
    body: impl Fn(i64) -> Value + Sync,
    what: &str,
    condition: impl FnMut() -> Option<T>,
) -> (T, Met) {
    let (met, over) = (Met::default(), AtomicBool::new(false));
    let value = thread::scope(|scope| {
        for client in 0..2 {
            let (met, over, body) = (&met, &over, &body);
            scope.spawn(move || {
                let mut connection = server.connect();
                let mut number = client * 37;
                while !over.load(Relaxed) {
                    number = (number + 1) % 100;
                    let answer = connection.ask(&Request::post_json(&infer(MODEL), &body(number)));
                    met.note(&answer);
                }
            });
        }
        let value = eventually(what, condition);
        over.store(true, Relaxed);
        value
    });
    (value, met)
}

impl Met {
    fn note(&self, answer: &Response) {
        self.answers.fetch_add(1, Relaxed);
        self.refused.fetch_add(u64::from(answer.status != 200), Relaxed);
        let is_canary = answer.header("x-tidegate-arm") == Some("canary");
        self.canary.fetch_add(u64::from(is_canary), Relaxed);
        self.fallbacks
            .fetch_add(u64::from(answer.header("x-tidegate-fallback").is_some()), Relaxed);
    }
}

/// A pick of one entry.
pub(crate) fn pick(number: i64) -> Value {
    json!({"inputs": [{"name": "x", "shape": [1], "datatype": "INT64", "data": [number]}]})
}

/// One number; every tenth is far below zero.
fn wave(number: i64) -> Value {
    let value = if number % 10 == 0 { -2000.0 } else { 1.0 };
    json!({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [value]}]})
}

/// Gives its input back after so many rounds of a loop.
pub(crate) fn delayed(rounds: i64) -> Vec<u8> {
    model(graph(
        vec![
            adding_loop("zero"),
            node("Mul", &["y", "zero"], &["nothing"]),
            node("Add", &["x", "nothing"], &["z"]),
        ],
        vec![
            floats("zero", &[1], &[0.0]),
            integers("rounds", INT64, &[], &[rounds]),
            integers("yes", BOOL, &[], &[1]),
        ],
        vec![declared("x", FLOAT, &[-1])],
        vec![declared("z", FLOAT, &[-1])],
    ))
}

/// Gives its input back, or NaN below -1000.
pub(crate) fn broken_below() -> Vec<u8> {
    model(graph(
        vec![
            node("Add", &["x", "thousand"], &["shifted"]),
            node("Log", &["shifted"], &["log"]),
            node("Mul", &["log", "zero"], &["nothing"]),
            node("Add", &["x", "nothing"], &["z"]),
        ],
        vec![floats("zero", &[1], &[0.0]), floats("thousand", &[1], &[1000.0])],
        vec![declared("x", FLOAT, &[-1])],
        vec![declared("z", FLOAT, &[-1])],
    ))
}

/// `tried` with these two versions, of which the first serves.
fn two(baseline: &[u8], candidate: &[u8]) -> Server {
    let repository = Repository::empty();
    repository.add_bytes(MODEL, "1", baseline);
    repository.add_bytes(MODEL, "2", candidate);
    let server = Launch::of(&repository).start();
    let path = format!("/api/v1/models/{MODEL}/rollback");
    admin(&server, "POST", &path, &json!({"version": 1})).ok();
    server
}

fn ended(server: &Server, id: &str) -> Option<Value> {
    let shown = show(server, id);
    let state = shown["state"].as_str().unwrap();
    ["promoted", "rolled_back", "failed", "superseded"].contains(&state).then_some(shown)
}

/// Runs a rollout to its end under load.
fn run(server: &Server, policy: &Value, body: impl Fn(i64) -> Value + Sync) -> (Value, Met) {
    let rollout = start(server, policy);
    let id = rollout["id"].as_str().unwrap();
    under_load(server, body, "the rollout ends", || ended(server, id))
}

fn traffic(server: &Server) -> Value {
    server.admin(&format!("/api/v1/models/{MODEL}/traffic")).ok().json()
}

fn arms(server: &Server) -> Value {
    traffic(server)["arms"].clone()
}

fn alone(version: &str) -> Value {
    json!([{"name": "baseline", "version": version, "weight": 1.0}])
}

#[track_caller]
fn assert_rolled_back(server: &Server, shown: &Value, gate: &str) {
    assert_eq!(shown["state"], "rolled_back", "{shown:#}");
    assert_eq!(shown["gate"], gate, "{shown:#}");
    let reason = shown["reason"].as_str().unwrap();
    assert!(reason.starts_with(&format!("gate {gate}: ")), "{reason}");
    assert_eq!(arms(server), alone("1"));
}

#[test]
fn a_canary_with_errors_is_rolled_back_by_itself_and_no_request_is_lost() {
    let server = two(&picking(100), &picking(95));
    let (shown, met) = run(&server, &quick(), pick);
    assert_rolled_back(&server, &shown, "errors");
    assert_eq!(met.refused.into_inner(), 0, "the baseline answers where the canary cannot");
    assert!(met.fallbacks.into_inner() > 0);
    let bundle =
        server.admin(&format!("/api/v1/rollouts/{}/evidence", shown["id"].as_str().unwrap()));
    let bundle = bundle.ok().json();
    assert_eq!(bundle["verdict"]["gate"], "errors", "{bundle:#}");
    let replayed = tidegate::rollout::replay(&bundle).unwrap();
    assert!(replayed.is_equal(), "{replayed:#?}");
    // The same files do not start again before the cooldown, unless somebody insists.
    let again = json!({"model": MODEL, "candidate": 2, "policy": quick()});
    let refused = admin(&server, "POST", "/api/v1/rollouts", &again);
    assert_eq!(refused.status, 409, "{}", refused.text());
    assert!(refused.text().contains("rolled back"), "{}", refused.text());
    for line in [
        r#"tidegate_rollout_state{model="tried",state="rolled_back"} 1"#,
        r#"tidegate_rollouts_total{model="tried",outcome="rolled_back"} 1"#,
        r#"tidegate_gate_log_e_threshold{model="tried",gate="errors"} "#,
    ] {
        eventually(line, || server.admin("/metrics").ok().text().contains(line).then_some(()));
    }
}

#[test]
fn a_slow_canary_is_rolled_back() {
    let server = two(&delayed(10), &delayed(4000));
    let (shown, met) = run(&server, &quick(), wave);
    assert_rolled_back(&server, &shown, "slow");
    assert_eq!(met.refused.into_inner(), 0);
}

#[test]
fn a_canary_with_outputs_that_are_no_numbers_is_rolled_back() {
    let server = two(&delayed(1), &broken_below());
    let (shown, met) = run(&server, &quick(), wave);
    assert_rolled_back(&server, &shown, "invalid_output");
    assert_eq!(met.refused.into_inner(), 0);
}

#[test]
fn a_good_canary_is_promoted_by_itself_and_can_be_rolled_back_after_it() {
    let server = two(&picking(100), &picking(101));
    let mut policy = quick();
    policy["rollback_window"] = json!("1h");
    let (shown, met) = run(&server, &policy, pick);
    assert_eq!(shown["state"], "promoted", "{shown:#}");
    assert_eq!(met.refused.into_inner(), 0);
    assert_eq!(arms(&server), alone("2"));
    let states: Vec<_> = shown["history"].as_array().unwrap().iter().map(|c| &c["to"]).collect();
    assert_eq!(states.last(), Some(&&json!("promoted")), "{shown:#}");
    // The way back is a swap: the old version is still loaded.
    let listed = server.indexed(MODEL, "1").unwrap();
    assert_eq!(listed["state"], "READY");
    let path = format!("/api/v1/models/{MODEL}/rollback");
    let back = admin(&server, "POST", &path, &json!({"reason": "second thoughts"})).ok().json();
    assert_eq!(back["version"], 1);
    assert_eq!(arms(&server), alone("1"));
}

#[test]
fn a_candidate_that_cannot_be_served_starts_no_rollout() {
    let repository = Repository::empty();
    repository.add_bytes(MODEL, "1", &picking(100));
    let server = Launch::of(&repository).set("MODELS__tried__ON_NEW_VERSION", "hold").start();
    repository.add_bytes(MODEL, "2", b"no model at all");
    let body = json!({"model": MODEL, "candidate": 2, "policy": quick()});
    let refused = admin(&server, "POST", "/api/v1/rollouts", &body);
    assert_eq!(refused.status, 422, "{}", refused.text());
    assert!(refused.json()["detail"].as_str().unwrap().contains("version 2"), "{}", refused.text());
    assert_eq!(arms(&server), alone("1"));
    let list = server.admin("/api/v1/rollouts").ok().json();
    assert_eq!(list, json!({"rollouts": []}));
}

#[test]
fn operators_steer_a_rollout_and_the_state_refuses_what_is_not_possible() {
    let server = two(&picking(100), &picking(100));
    let mut policy = quick();
    policy["steps"][0]["min_requests"] = json!(1_000_000);
    let rollout = start(&server, &policy);
    let id = rollout["id"].as_str().unwrap();
    assert_eq!((&rollout["state"], &rollout["step"]), (&json!("canary"), &json!(0)), "{rollout:#}");
    let order = |order: &str| {
        admin(&server, "POST", &format!("/api/v1/rollouts/{id}/{order}"), &json!({"reason": "try"}))
    };
    assert_eq!(order("approve").status, 409);
    let split = |weight: f64| {
        let arms = json!({"arms": [
            {"name": "baseline", "version": 1, "weight": 1.0 - weight},
            {"name": "canary", "version": 2, "weight": weight},
        ]});
        admin(&server, "PUT", &format!("/api/v1/models/{MODEL}/traffic"), &arms)
    };
    let refused = split(0.5);
    assert_eq!(refused.status, 409, "{}", refused.text());
    assert!(refused.text().contains("pause it first"), "{}", refused.text());
    assert_eq!(order("pause").ok().json()["state"], "paused");
    assert_eq!(split(0.5).ok().json()["arms"][1]["weight"], 0.5);
    eventually("the rollout knows the weight", || {
        (show(&server, id)["weight"] == 0.5).then_some(())
    });
    let resumed = order("resume").ok().json();
    assert_eq!(resumed["state"], "canary");
    eventually("the step's weight is back", || {
        let weight = arms(&server)[1]["weight"].as_f64()?;
        ((weight - 0.3).abs() < 1e-4).then_some(())
    });
    let second = json!({"model": MODEL, "candidate": 2, "policy": quick()});
    let busy = admin(&server, "POST", "/api/v1/rollouts", &second);
    assert_eq!((busy.status, &busy.json()["current"]["id"]), (409, &json!(id)));
    let frozen =
        admin(&server, "POST", "/api/v1/freeze", &json!({"reason": "holidays"})).ok().json();
    assert_eq!((&frozen["frozen"], &frozen["reason"]), (&json!(true), &json!("holidays")));
    let aborted = order("abort").ok().json();
    assert_eq!(aborted["state"], "rolled_back");
    assert!(aborted["reason"].as_str().unwrap().starts_with("operator: "), "{aborted:#}");
    assert_eq!(arms(&server), alone("1"));
    let frozen = admin(&server, "POST", "/api/v1/rollouts", &second);
    assert_eq!(frozen.status, 409, "{}", frozen.text());
    assert!(frozen.text().contains("frozen by admin API"), "{}", frozen.text());
    admin(&server, "DELETE", "/api/v1/freeze", &json!({})).ok();
    let unknown = json!({"model": MODEL, "candidate": 2, "policy": {"alhpa": 0.01, "steps": []}});
    let unknown = admin(&server, "POST", "/api/v1/rollouts", &unknown);
    assert_eq!(unknown.status, 400);
    assert!(unknown.text().contains("`alpha`"), "{}", unknown.text());
}

#[test]
fn a_new_version_starts_a_rollout_by_itself_where_the_policy_says_so() {
    let repository = Repository::empty();
    repository.add_bytes(MODEL, "1", &picking(100));
    let server = Launch::of(&repository)
        .set("REPOSITORY__POLL_INTERVAL", "100ms")
        .set("MODELS__tried__ROLLOUT", &quick().to_string())
        .start();
    repository.add_bytes(MODEL, "2", &picking(95));
    let open = || {
        let list = server.admin("/api/v1/rollouts?model=tried").ok().json();
        list["rollouts"][0]["id"].as_str().map(str::to_owned)
    };
    let id = eventually("a rollout starts", open);
    assert_eq!(arms(&server)[0]["version"], "1");
    let ((), met) = under_load(&server, pick, "it is rolled back", || {
        (ended(&server, &id)?["state"] == "rolled_back").then_some(())
    });
    assert_eq!(met.refused.into_inner(), 0);
    assert_eq!(arms(&server), alone("1"));
    // The same version is not tried again by itself; a newer one is, also within the rollback window.
    repository.add_bytes(MODEL, "3", &picking(101));
    let next = eventually("the next rollout starts", || open().filter(|next| *next != id));
    let (shown, _) = under_load(&server, pick, "it is promoted", || ended(&server, &next));
    assert_eq!(
        (&shown["state"], &shown["candidate"]),
        (&json!("promoted"), &json!("3")),
        "{shown:#}"
    );
    let list = server.admin("/api/v1/rollouts").ok().json();
    assert_eq!(list["rollouts"].as_array().unwrap().len(), 2);
}

#[test]
fn while_all_is_frozen_no_new_version_takes_over_by_itself() {
    let repository = Repository::empty();
    repository.add_bytes(MODEL, "1", &picking(100));
    let server = Launch::of(&repository).set("REPOSITORY__POLL_INTERVAL", "100ms").start();
    admin(&server, "POST", "/api/v1/freeze", &json!({"reason": "holidays"})).ok();
    repository.add_bytes(MODEL, "2", &picking(101));
    eventually("version 2 is held back", || {
        let entry = server.indexed(MODEL, "2")?;
        entry["reason"].as_str()?.contains("held back").then_some(())
    });
    assert_eq!(arms(&server), alone("1"));
    admin(&server, "DELETE", "/api/v1/freeze", &json!({})).ok();
    eventually("version 2 takes over", || (arms(&server) == alone("2")).then_some(()));
}

#[test]
fn a_new_version_that_cannot_be_loaded_fails_its_rollout_and_costs_nothing() {
    let repository = Repository::empty();
    repository.add_bytes(MODEL, "1", &picking(100));
    let server = Launch::of(&repository)
        .set("REPOSITORY__POLL_INTERVAL", "100ms")
        .set("MODELS__tried__ROLLOUT", &quick().to_string())
        .start();
    repository.add_bytes(MODEL, "2", b"no model at all");
    let shown = eventually("the rollout fails", || {
        let list = server.admin("/api/v1/rollouts?model=tried").ok().json();
        Some(list["rollouts"][0].clone()).filter(|rollout| rollout["state"] == "failed")
    });
    assert!(shown["reason"].as_str().unwrap().starts_with("load failed: "), "{shown:#}");
    assert_eq!(arms(&server), alone("1"));
}

#[test]
fn a_canary_that_ends_the_server_is_rolled_back_by_the_next_start() {
    let repository = Repository::empty();
    repository.describe(MODEL, "model.toml", "max_batch_size = 0\n");
    repository.add_bytes(MODEL, "1", &lstm_of_numbers_below(1e9));
    repository.add_bytes(MODEL, "2", &lstm_of_numbers_below(100.0));
    let launch = || Launch::of(&repository).remembering();
    let server = launch().start();
    let path = format!("/api/v1/models/{MODEL}/rollback");
    admin(&server, "POST", &path, &json!({"version": 1})).ok();
    let id = start(&server, &quick())["id"].as_str().unwrap().to_owned();
    let rows = json!({"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [200.0, 200.0]}]});
    let mut connection = server.connect();
    let ends = |_: u32| connection.try_ask(&Request::post_json(&infer(MODEL), &rows)).is_err();
    assert!((0..1000).any(ends), "the canary ends the process");
    server.ended_by(PATIENCE);
    let server = launch().start();
    let shown = eventually("it is rolled back", || ended(&server, &id));
    assert_eq!(shown["state"], "rolled_back", "{shown:#}");
    assert!(shown["reason"].as_str().unwrap().starts_with("guard crash: "), "{shown:#}");
    assert_eq!(arms(&server), alone("1"));
    server.post(&infer(MODEL), &rows).ok();
}

#[test]
fn a_share_may_stay_on_the_old_version_for_a_while() {
    let server = two(&picking(100), &picking(101));
    let mut policy = quick();
    (policy["holdback"], policy["rollback_window"]) = (json!("5%"), json!("1s"));
    let id = start(&server, &policy)["id"].as_str().unwrap().to_owned();
    let order = format!("/api/v1/rollouts/{id}/promote");
    let promoted = admin(&server, "POST", &order, &json!({"reason": "seen enough"})).ok().json();
    assert_eq!(promoted["state"], "promoted", "{promoted:#}");
    let arms_now = arms(&server);
    assert_eq!((&arms_now[0]["version"], &arms_now[1]["version"]), (&json!("2"), &json!("1")));
    assert_eq!(arms_now[1]["name"], "holdback");
    let weight = arms_now[1]["weight"].as_f64().unwrap();
    assert!((weight - 0.05).abs() < 1e-4, "{weight}");
    eventually("the hold-back ends with the window", || {
        (arms(&server) == alone("2")).then_some(())
    });
}

#[test]
fn what_happens_to_a_rollout_is_told_with_all_that_is_known() {
    let server = two(&picking(100), &picking(100));
    let id = start(&server, &quick())["id"].as_str().unwrap().to_owned();
    admin(&server, "POST", &format!("/api/v1/rollouts/{id}/abort"), &json!({})).ok();
    let events = Request::get("/api/v1/events");
    // Up to the empty line that ends an event.
    let is_told = |said: &str| {
        let (_, rest) = said.split_once("event: rollout.rolled_back\n").unwrap_or_default();
        rest.contains("\n\n")
    };
    let said = Connection::open(server.admin).listen(&events, is_told);
    for kind in ["rollout.started", "rollout.step", "traffic.changed", "rollout.rolled_back"] {
        assert!(said.contains(&format!("event: {kind}\n")), "{kind} is not in\n{said}");
    }
    let data = said.lines().filter_map(|line| line.strip_prefix("data: "));
    let data: Vec<Value> = data.filter_map(|data| serde_json::from_str(data).ok()).collect();
    let newest = |kind: &str| data.iter().rfind(|event| event["event"] == kind).unwrap();
    let last = newest("rollout.rolled_back");
    assert_eq!(
        (&last["rollout"]["id"], &last["rollout"]["state"]),
        (&json!(id), &json!("rolled_back"))
    );
    assert_eq!(newest("traffic.changed")["traffic"], traffic(&server));
    assert!(last["at"].as_str().unwrap().ends_with('Z'), "{last}");
}

#[test]
fn a_baseline_without_its_folder_serves_on_and_the_candidate_never_in_its_place() {
    let repository = Repository::empty();
    repository.add_bytes(MODEL, "1", &picking(100));
    repository.add_bytes(MODEL, "2", &picking(5));
    let server = Launch::of(&repository)
        .set("REPOSITORY__POLL_INTERVAL", "50ms")
        .set("REPOSITORY__VANISHED_GRACE", "0s")
        .start();
    let path = format!("/api/v1/models/{MODEL}/rollback");
    admin(&server, "POST", &path, &json!({"version": 1})).ok();
    let mut policy = quick();
    // Nothing is judged before the folder is gone.
    policy["warmup_requests"] = json!(100_000);
    let id = start(&server, &policy)["id"].as_str().unwrap().to_owned();
    repository.remove(MODEL, "1");
    repository.add_bytes("other", "1", &picking(3));
    server.wait_for_state("other", "1", "READY");
    let mut connection = server.connect();
    for number in 0..100 {
        let answer = connection.ask(&Request::post_json(&infer(MODEL), &pick(number))).ok();
        let arm = answer.header("x-tidegate-arm").unwrap().to_owned();
        let version = answer.header("x-tidegate-version").unwrap();
        assert_eq!(version == "1", arm == "baseline", "{arm} {version}");
    }
    let aborted = admin(&server, "POST", &format!("/api/v1/rollouts/{id}/abort"), &json!({})).ok();
    assert_eq!(aborted.json()["state"], "rolled_back");
    assert_eq!(arms(&server), alone("1"));
}

#[test]
fn files_that_are_replaced_while_they_are_judged_end_the_rollout() {
    let repository = Repository::empty();
    repository.add_bytes(MODEL, "1", &picking(100));
    repository.add_bytes(MODEL, "2", &picking(100));
    let server = Launch::of(&repository).set("REPOSITORY__POLL_INTERVAL", "50ms").start();
    let path = format!("/api/v1/models/{MODEL}/rollback");
    admin(&server, "POST", &path, &json!({"version": 1})).ok();
    let mut policy = quick();
    policy["steps"][0]["min_requests"] = json!(1_000_000);
    let id = start(&server, &policy)["id"].as_str().unwrap().to_owned();
    repository.replace(MODEL, "2", &picking(50));
    let shown = eventually("the rollout ends", || ended(&server, &id));
    assert_eq!(shown["state"], "rolled_back", "{shown:#}");
    assert!(shown["reason"].as_str().unwrap().contains("were replaced"), "{shown:#}");
    assert_eq!(arms(&server), alone("1"));
}

#[test]
fn what_is_frozen_stays_so_over_a_restart() {
    let repository = Repository::empty();
    repository.add_bytes(MODEL, "1", &picking(100));
    let launch = || Launch::of(&repository).remembering();
    let server = launch().start();
    admin(&server, "POST", "/api/v1/freeze", &json!({"reason": "holidays"})).ok();
    drop(server);
    repository.add_bytes(MODEL, "2", &picking(101));
    let server = launch().start();
    assert_eq!(server.admin("/api/v1/freeze").ok().json()["reason"], "holidays");
    assert_eq!(arms(&server), alone("1"));
    admin(&server, "DELETE", "/api/v1/freeze", &json!({})).ok();
    let free = server.admin("/api/v1/freeze").ok().json();
    assert_eq!(free, json!({"frozen": false, "since": null, "by": null, "reason": null}));
}

#[test]
fn a_client_that_leaves_while_a_candidate_loads_costs_the_model_nothing() {
    let server = two(&picking(100), &picking(100));
    let is_held = || {
        let entry = server.indexed(MODEL, "2");
        entry.is_some_and(|entry| entry["reason"].as_str().unwrap().contains("held back"))
    };
    eventually("version 2 is let go", || is_held().then_some(()));
    let mut connection = Connection::open(server.admin);
    let body = json!({"model": MODEL, "candidate": 2, "policy": quick()});
    connection.send(Request::post_json("/api/v1/rollouts", &body).bytes());
    eventually("the candidate is being loaded", || (!is_held()).then_some(()));
    drop(connection);
    let id = eventually("the rollout starts all the same", || {
        let list = server.admin("/api/v1/rollouts").ok().json();
        list["rollouts"][0]["id"].as_str().map(str::to_owned)
    });
    admin(&server, "POST", &format!("/api/v1/rollouts/{id}/abort"), &json!({})).ok();
    let mut again = body;
    again["force"] = json!(true);
    assert_eq!(admin(&server, "POST", "/api/v1/rollouts", &again).status, 201);
}

#[test]
fn what_an_operator_splits_is_no_rollouts_to_take() {
    let server = two(&picking(100), &picking(100));
    let path = format!("/api/v1/models/{MODEL}/traffic");
    let blue = json!({"arms": [
        {"name": "baseline", "version": 1, "weight": 0.5},
        {"name": "blue", "version": 2, "weight": 0.5},
    ]});
    admin(&server, "PUT", &path, &blue).ok();
    let body = json!({"model": MODEL, "candidate": 2, "policy": quick()});
    let refused = admin(&server, "POST", "/api/v1/rollouts", &body);
    assert_eq!(refused.status, 409, "{}", refused.text());
    admin(&server, "DELETE", &path, &json!({})).ok();
    let id = start(&server, &quick())["id"].as_str().unwrap().to_owned();
    let order = |order: &str| {
        admin(&server, "POST", &format!("/api/v1/rollouts/{id}/{order}"), &json!({})).ok().json()
    };
    order("pause");
    let all = json!({"arms": [
        {"name": "baseline", "version": 1, "weight": 0},
        {"name": "canary", "version": 2, "weight": 1},
    ]});
    assert_eq!(admin(&server, "PUT", &path, &all).status, 409, "more than half is not judged");
    order("abort");
    // After the end an operator's split is the operator's.
    admin(&server, "PUT", &path, &blue).ok();
    let after = server.admin(&path).ok().json();
    assert_eq!((&after["source"], &after["rollout"]), (&json!("operator"), &Value::Null));
}

#[test]
fn a_rollout_goes_on_after_a_restart() {
    let repository = Repository::empty();
    repository.add_bytes(MODEL, "1", &picking(100));
    repository.add_bytes(MODEL, "2", &picking(95));
    let launch = || Launch::of(&repository).remembering();
    let server = launch().start();
    let path = format!("/api/v1/models/{MODEL}/rollback");
    admin(&server, "POST", &path, &json!({"version": 1})).ok();
    let mut policy = quick();
    policy["steps"][0]["weight"] = json!(0.01);
    let id = start(&server, &policy)["id"].as_str().unwrap().to_owned();
    let (before, _) = under_load(&server, pick, "it has seen requests", || {
        let shown = show(&server, &id);
        (shown["requests"]["baseline"].as_u64()? > 300).then_some(shown)
    });
    assert_eq!(before["state"], "canary", "{before:#}");
    let weight = arms(&server)[1]["weight"].clone();
    drop(server);
    let server = launch().start();
    assert_eq!(arms(&server)[1]["weight"], weight);
    let (shown, _) = under_load(&server, pick, "it is rolled back", || ended(&server, &id));
    assert_rolled_back(&server, &shown, "errors");
}

/// The end of a promotion's window is recorded whenever it comes, also while the next candidate is loaded.
#[tokio::test]
async fn what_is_prepared_stays_while_the_rollout_before_is_recorded() {
    let repository = Repository::empty();
    for version in ["1", "2"] {
        repository.add_bytes(MODEL, version, &picking(100));
    }
    let plane = Plane::over(&repository, Registry::default()).await;
    let (handle, model) = (plane.lifecycle.handle(), ModelName::parse(MODEL).unwrap());
    let [one, two] = [1, 2].map(VersionId::new);
    let ask = |operation| handle.operate(model.clone(), operation, false, Cause::by("test"));
    let ready = || {
        let table = plane.serving.table();
        let versions = table.model(&model).unwrap().ready().map(|version| version.parts().id);
        versions.collect::<Vec<_>>()
    };
    ask(Operation::Rollback { to: Some(one) }).await.unwrap();
    assert_eq!(ready(), [one]);
    for reset in [false, true] {
        ask(Operation::Prepare { versions: vec![one, two] }).await.unwrap();
        let step = RolloutStep {
            id: "before".to_owned(),
            candidate: two,
            record: json!({}),
            evidence: None,
            serve: None,
            acts_first: false,
            is_over: true,
        };
        let record = SplitChange { reset, rollout: Some(step), ..SplitChange::default() };
        ask(Operation::Split(Box::new(record))).await.unwrap();
        assert_eq!(ready(), [one, two], "split cleared: {reset}");
        ask(Operation::Rollback { to: Some(one) }).await.unwrap();
        assert_eq!(ready(), [one], "an operator decides otherwise");
    }
}
