//! A budget for loaded models: what does not fit loads when it is asked for, once, and what was used longest ago goes.

use std::{
    collections::BTreeMap,
    fs,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use serde_json::{Value, json};

use crate::{
    http::{Connection, Request, Response},
    models::{counted_loop, endless_loop},
    repository::{Repository, source},
    server::{Launch, Server, eventually},
    tensors::{identity, infer},
};

/// Room for two of the models here, which cost a little above 256 KiB each.
const TWO: &str = "600KiB";

/// Runs that one connection asks for at once.
const RUNS: usize = 30;

/// Models that give back their input, those with an odd number twice of it.
fn repository(models: &[&str]) -> Repository {
    let repository = Repository::empty();
    for model in models {
        add(&repository, model, 1);
    }
    repository
}

fn add(repository: &Repository, model: &str, version: u32) {
    repository.add_as(model, &version.to_string(), &source(kind(model, version), "1"));
}

fn kind(model: &str, version: u32) -> &'static str {
    if doubles(model, version) { "doubled_fp32" } else { "identity_fp32" }
}

fn doubles(model: &str, version: u32) -> bool {
    let number: u32 = model.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(0);
    (number + version).is_multiple_of(2)
}

fn launch(repository: &Repository) -> Launch {
    Launch::of(repository)
        .set("SERVER__WORKERS", "1")
        .set("REPOSITORY__POLL_INTERVAL", "100ms")
        .set("REPOSITORY__LOADED_BYTES", TWO)
}

fn ask(server: &Server, model: &str, number: f64) -> Response {
    server.post(&infer(model), &identity("FP32", &json!([number])))
}

/// Fails unless the answer is this version's.
fn assert_right(model: &str, version: u32, number: f64, response: Response) {
    let response = response.ok();
    assert_eq!(response.header("x-tidegate-version"), Some(&*version.to_string()), "{model}");
    let expected = if doubles(model, version) { 2.0 * number } else { number };
    assert_eq!(response.json()["outputs"][0]["data"], json!([expected]), "{model}");
}

/// What all loaded versions cost together, and which there are.
fn loaded(server: &Server) -> (u64, Vec<String>) {
    let list = server.admin("/api/v1/models").ok().json();
    let (mut cost, mut names) = (0, Vec::new());
    for model in list["models"].as_array().unwrap() {
        for version in model["versions"].as_array().unwrap() {
            if let Some(bytes) = version["loaded"]["cost_bytes"].as_u64() {
                cost += bytes;
                names.push(model["name"].as_str().unwrap().to_owned());
            }
        }
    }
    (cost, names)
}

/// Everything that has happened so far.
fn events(server: &Server) -> Vec<Value> {
    // The last event tells where this look ends.
    let marker = format!("{:?}", thread::current().id());
    let operation = Request::post_json("/api/v1/models/a0/unpin", &json!({"actor": marker}));
    Connection::open(server.admin).ask(&operation).ok();
    let told = Connection::open(server.admin)
        .listen(&Request::get("/api/v1/events"), |text| text.contains(&marker));
    let events = told.lines().filter_map(|line| line.strip_prefix("data: "));
    events.map(|event| serde_json::from_str(event).unwrap()).collect()
}

/// How often something happened, by model.
fn counts(events: &[Value], kind: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for event in events.iter().filter(|event| event["event"] == kind) {
        *counts.entry(event["model"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    counts
}

#[test]
fn five_models_share_the_room_of_two() {
    const MODELS: [&str; 5] = ["a0", "b1", "c2", "d3", "e4"];
    let server = launch(&repository(&MODELS)).set("MODELS__a0__REQUIRED", "true").start();
    assert_eq!(loaded(&server).1, ["a0", "b1"], "no more are loaded than fit");
    let asleep = server.indexed("c2", "1").unwrap();
    assert_eq!(asleep["state"], "UNAVAILABLE", "{asleep}");
    assert_eq!(asleep["reason"], "not loaded: loads on demand");
    assert_eq!(server.admin("/readyz").status, 200, "what loads on demand is no obstacle");

    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = 0;
            while !done.load(Ordering::Relaxed) {
                let (cost, names) = loaded(&server);
                assert!(cost <= 600 * 1024 && names.len() <= 2, "{cost}: {names:?}");
                assert!(names.contains(&"a0".to_owned()), "a required model stays: {names:?}");
                most = most.max(names.len());
            }
            most
        });
        let clients: Vec<_> = (0..4)
            .map(|client| {
                let server = &server;
                scope.spawn(move || {
                    for turn in 0..10 {
                        let model = MODELS[(client + turn) % MODELS.len()];
                        let number = f64::from(u32::try_from(100 * client + turn).unwrap());
                        assert_right(model, 1, number, ask(server, model, number));
                    }
                })
            })
            .collect();
        let failed = clients.into_iter().filter_map(|client| client.join().err()).count();
        done.store(true, Ordering::Relaxed);
        assert_eq!(failed, 0);
        assert_eq!(watch.join().unwrap(), 2, "the room is used");
    });

    let events = events(&server);
    let (begun, ready) = (counts(&events, "loading"), counts(&events, "ready"));
    assert_eq!(begun, ready, "every load came to something");
    let evicted = counts(&events, "evicted");
    assert_eq!(evicted.get("a0"), None, "a required model is never evicted: {evicted:?}");
    assert_eq!((ready["a0"], begun.len()), (1, 5));
    let (ready, evicted): (usize, usize) = (ready.values().sum(), evicted.values().sum());
    assert_eq!(ready - evicted, 2, "one went for each that came");
}

#[test]
fn requests_that_wait_for_the_same_model_have_it_loaded_once() {
    let server = launch(&repository(&["a0", "b1", "c2"])).start();
    thread::scope(|scope| {
        for number in 0..16 {
            let server = &server;
            let number = f64::from(number);
            scope.spawn(move || assert_right("c2", 1, number, ask(server, "c2", number)));
        }
    });
    let events = events(&server);
    assert_eq!(counts(&events, "loading")["c2"], 1);
    assert_eq!(counts(&events, "evicted").len(), 1, "one had to go");
}

#[test]
fn what_was_used_longest_ago_goes_first() {
    let server = launch(&repository(&["a0", "b1", "c2"])).start();
    assert_right("b1", 1, 1.0, ask(&server, "b1", 1.0));
    assert_right("a0", 1, 1.0, ask(&server, "a0", 1.0));
    assert_right("c2", 1, 1.0, ask(&server, "c2", 1.0));
    assert_eq!(loaded(&server).1, ["a0", "c2"]);
    assert_right("a0", 1, 2.0, ask(&server, "a0", 2.0));
    assert_right("b1", 1, 2.0, ask(&server, "b1", 2.0));
    assert_eq!(loaded(&server).1, ["a0", "b1"]);
    let entry = server.wait_for_state("c2", "1", "UNAVAILABLE");
    assert_eq!(entry["reason"], "not loaded: loads on demand");
}

#[test]
fn a_model_that_cannot_be_loaded_costs_only_its_own_requests() {
    let repository = repository(&["a0", "b1", "c2"]);
    repository.add_bytes("x_broken", "1", b"no model");
    repository.add_bytes("x_huge", "1", &vec![0; 2 << 20]);
    let server = launch(&repository).start();
    for _ in 0..2 {
        let broken = ask(&server, "x_broken", 1.0);
        assert_eq!(broken.status, 503, "{broken:?}");
        assert!(broken.error().contains("not an ONNX model"), "{broken:?}");
        let huge = ask(&server, "x_huge", 1.0);
        assert_eq!(huge.status, 503, "{huge:?}");
        assert!(huge.error().contains("repository.loaded_bytes alone"), "{huge:?}");
        assert!(huge.header("retry-after").is_some());
        for model in ["a0", "b1", "c2"] {
            assert_right(model, 1, 1.0, ask(&server, model, 1.0));
        }
    }
    assert_eq!(counts(&events(&server), "loading")["x_broken"], 1, "it is not tried again");
    assert_eq!(counts(&events(&server), "loading").get("x_huge"), None);
}

#[test]
fn what_may_not_be_evicted_leaves_no_room_and_that_is_said() {
    let repository = repository(&["a0", "b1", "c2"]);
    let server = launch(&repository)
        .set("MODELS__b1__REQUIRED", "true")
        .set("MODELS__c2__REQUIRED", "true")
        .start();
    assert_eq!(loaded(&server).1, ["b1", "c2"], "required models come first");
    let refused = ask(&server, "a0", 1.0);
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.error().contains("what may not be evicted takes"), "{refused:?}");
    assert!(refused.header("retry-after").is_some());
    let load = Request::post_json("/api/v1/models/a0/load", &json!({}));
    let load = Connection::open(server.admin).ask(&load);
    assert_eq!(load.status, 400, "{load:?}");
    assert!(load.text().contains("what may not be evicted takes"), "{load:?}");
    repository.remove("c2", "1");
    fs::remove_dir(repository.path().join("c2")).unwrap();
    eventually("there is room again", || (ask(&server, "a0", 1.0).status == 200).then_some(()));
}

#[test]
fn waiting_is_bounded_and_holds_up_nobody_else() {
    let repository = repository(&["a0", "b1"]);
    repository.add_bytes("x_loop", "1", &endless_loop());
    let server = launch(&repository)
        .set("PROOF__TIME_MAX", "3s")
        .set("REPOSITORY__DEMAND_WAITING", "1")
        .start();
    let mut first = server.connect();
    first.send(Request::post_json(&infer("x_loop"), &identity("FP32", &json!([1.0]))).bytes());
    server.wait_for_state("x_loop", "1", "LOADING");
    let crowded = ask(&server, "x_loop", 1.0);
    assert_eq!(crowded.status, 503, "{crowded:?}");
    assert!(crowded.error().contains("repository.demand_waiting"), "{crowded:?}");
    // The same worker answers others meanwhile, and the next request on its connection waits its turn.
    let stays = loaded(&server).1;
    let stays = stays.first().unwrap();
    assert_right(stays, 1, 2.0, ask(&server, stays, 2.0));
    assert_eq!(server.indexed("x_loop", "1").unwrap()["state"], "LOADING", "still");
    let failed = first.answer();
    assert_eq!(failed.status, 503, "{failed:?}");
    assert!(failed.error().contains("3s"), "its own reason: {failed:?}");
}

#[test]
fn a_model_in_steady_use_gives_way() {
    let repository = repository(&["c2"]);
    repository.add_bytes("a_count", "1", &counted_loop());
    let server = launch(&repository).set("REPOSITORY__LOADED_BYTES", "300KiB").start();
    let tensor = json!({"name": "rounds", "shape": [1], "datatype": "INT64", "data": [80_000]});
    let rounds = json!({"inputs": [tensor]});
    server.post(&infer("a_count"), &rounds).ok();
    let mut hot = server.connect();
    let request = Request::post_json(&infer("a_count"), &rounds).bytes();
    hot.send(request.repeat(RUNS));
    let answered = AtomicUsize::new(0);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            for _ in 0..RUNS {
                assert_eq!(hot.answer().status, 200, "also by what was evicted");
                answered.fetch_add(1, Ordering::Relaxed);
            }
        });
        // Asked for where no worker is in a long run.
        let load = Request::post_json("/api/v1/models/c2/load", &json!({}));
        let loaded = Connection::open(server.admin).ask(&load);
        assert_eq!(loaded.status, 200, "{loaded:?}");
        let meanwhile = answered.load(Ordering::Relaxed);
        assert!(meanwhile < RUNS / 2, "waited for {meanwhile} runs");
        reader.join().expect("each is answered");
    });
}

#[test]
fn an_unload_answers_those_who_wait() {
    let repository = repository(&["a0", "b1"]);
    repository.add_bytes("x_loop", "1", &endless_loop());
    let server = launch(&repository).set("PROOF__TIME_MAX", "15s").start();
    let mut first = server.connect();
    first.send(Request::post_json(&infer("x_loop"), &identity("FP32", &json!([1.0]))).bytes());
    server.wait_for_state("x_loop", "1", "LOADING");
    server.post("/v2/repository/models/x_loop/unload", &json!({})).ok();
    let told = first.answer();
    assert_eq!(told.status, 503, "{told:?}");
    assert!(told.error().ends_with("unloaded"), "{told:?}");
}

#[test]
fn a_sleeping_model_keeps_the_promise_to_its_clients() {
    let repository = repository(&["a0", "b1", "c2"]);
    let server = launch(&repository).start();
    for model in ["c2", "a0", "b1"] {
        assert_right(model, 1, 1.0, ask(&server, model, 1.0));
    }
    server.wait_for_state("c2", "1", "UNAVAILABLE");
    repository.add_as("c2", "2", &source("add_sub", "1"));
    eventually("version 2 is refused", || {
        let entry = server.indexed("c2", "2")?;
        entry["reason"].as_str()?.contains("does not fit the clients of version 1").then_some(())
    });
    assert_right("c2", 1, 2.0, ask(&server, "c2", 2.0));
}

#[test]
fn a_request_waits_no_longer_than_it_may() {
    let repository = repository(&["a0", "b1"]);
    repository.add_bytes("x_loop", "1", &endless_loop());
    let server = launch(&repository)
        .set("PROOF__TIME_MAX", "5s")
        .set("REPOSITORY__DEMAND_TIMEOUT", "200ms")
        .start();
    let body = identity("FP32", &json!([1.0]));
    for request in [
        Request::post_json(&infer("x_loop"), &body),
        Request::post_json(&infer("x_loop"), &body).header("x-request-timeout-ms", "50"),
    ] {
        let late = server.ask(&request);
        assert_eq!(late.status, 503, "{late:?}");
        assert!(late.error().contains("longer than this request may wait"), "{late:?}");
        assert!(late.header("retry-after").is_some());
    }
    assert_eq!(server.indexed("x_loop", "1").unwrap()["state"], "LOADING", "it goes on");
}

#[test]
fn a_new_version_of_a_sleeping_model_is_proven_before_it_answers() {
    let repository = repository(&["a0", "b1", "c2"]);
    let server = launch(&repository).start();
    assert_right("c2", 1, 1.0, ask(&server, "c2", 1.0));
    assert_right("a0", 1, 1.0, ask(&server, "a0", 1.0));
    assert_right("b1", 1, 1.0, ask(&server, "b1", 1.0));
    server.wait_for_state("c2", "1", "UNAVAILABLE");
    repository.add_bytes("c2", "2", b"no model");
    eventually("version 2 is refused", || {
        let entry = server.indexed("c2", "2")?;
        entry["reason"].as_str()?.contains("not an ONNX model").then_some(())
    });
    assert_right("c2", 1, 2.0, ask(&server, "c2", 2.0));
    assert_right("a0", 1, 2.0, ask(&server, "a0", 2.0));
    assert_right("b1", 1, 2.0, ask(&server, "b1", 2.0));
    add(&repository, "c2", 3);
    eventually("version 3 answers", || {
        let response = ask(&server, "c2", 3.0);
        (response.header("x-tidegate-version") == Some("3")).then_some(())
    });
    assert_right("c2", 3, 4.0, ask(&server, "c2", 4.0));
    eventually("version 1 is let go", || server.indexed("c2", "1").is_none().then_some(()));
}

#[test]
fn a_version_that_an_operator_pinned_stays() {
    let repository = repository(&["a0", "b1", "c2", "d3"]);
    add(&repository, "a0", 2);
    let server = launch(&repository).start();
    let operate = |what: &str| {
        let request = Request::post_json(&format!("/api/v1/models/a0/{what}"), &json!({}));
        Connection::open(server.admin).ask(&request).ok()
    };
    operate("rollback");
    for turn in 0..2 {
        for model in ["b1", "c2", "d3"] {
            let number = f64::from(turn);
            assert_right(model, 1, number, ask(&server, model, number));
            assert!(loaded(&server).1.contains(&"a0".to_owned()), "{:?}", loaded(&server));
        }
    }
    assert_right("a0", 1, 5.0, ask(&server, "a0", 5.0));
    operate("unload");
    assert_eq!(ask(&server, "a0", 1.0).status, 503, "an unload beats demand");
    operate("unpin");
    assert_right("a0", 2, 6.0, ask(&server, "a0", 6.0));
}

#[test]
fn what_a_client_may_ask_of_a_sleeping_model() {
    let server = launch(&repository(&["a0", "b1", "c2", "d3"])).start();
    assert_eq!(server.get("/v2/models/c2/ready").status, 200, "a request for it is answered");
    assert_eq!(server.get("/v2/models/c2/stats").status, 200);
    assert_eq!(server.indexed("c2", "1").unwrap()["state"], "UNAVAILABLE", "neither loads it");
    let metadata = server.get("/v2/models/c2").ok().json();
    assert_eq!(metadata["inputs"][0]["name"], "INPUT", "{metadata}");
    let configuration = server.get("/v2/models/d3/versions/1/config").ok().json();
    assert_eq!(configuration["name"], "d3");
    let body = identity("FP32", &json!([1.0]));
    let wrong = server.post("/v2/models/b1/versions/9/infer", &body);
    assert_eq!(wrong.status, 404, "{wrong:?}");
    let bad = server.post(&infer("a0"), &json!({"inputs": 1}));
    assert_eq!(bad.status, 400, "a bad request for it is told so: {bad:?}");
}

#[test]
fn what_was_evicted_is_still_known_where_the_repository_cannot_be_read() {
    let repository = repository(&["a0", "b1", "c2"]);
    let server = launch(&repository).remembering().start();
    for model in ["a0", "b1", "c2"] {
        assert_right(model, 1, 1.0, ask(&server, model, 1.0));
    }
    drop(server); // by SIGKILL
    fs::rename(repository.path(), repository.beside("aside")).unwrap();
    let server = launch(&repository).remembering().start();
    assert_eq!(loaded(&server).1.len(), 2);
    for model in ["a0", "b1", "c2", "a0"] {
        assert_right(model, 1, 2.0, ask(&server, model, 2.0));
    }
}
