//! The repository while serving: what appears is served, what goes is not, what is broken harms nobody.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use serde_json::{Value, json};

use crate::{
    http::{Connection, Request},
    models::endless_loop,
    repository::{Repository, source},
    server::{Launch, Server, eventually},
    tensors::{add_sub, data, identity, infer},
};

/// A server that looks at its repository often.
fn watching(repository: &Repository) -> Launch {
    Launch::of(repository).set("REPOSITORY__POLL_INTERVAL", "100ms")
}

/// The version that answers by default, if any does.
fn version_of(server: &Server, model: &str, request: &Value) -> Option<String> {
    let response = server.post(&infer(model), request);
    response.header("x-tidegate-version").filter(|_| response.status == 200).map(str::to_owned)
}

fn wait_for_version(server: &Server, model: &str, request: &Value, version: &str) {
    eventually(&format!("{model} is answered by version {version}"), || {
        (version_of(server, model, request).as_deref() == Some(version)).then_some(())
    });
}

#[test]
fn versions_come_and_go_under_load_without_a_failed_or_mixed_answer() {
    // Odd versions give the input back, even ones give it doubled: an answer and its header must agree.
    let content = |version: u64| {
        let name = if version % 2 == 1 { "identity_fp32" } else { "doubled_fp32" };
        fs::read(source(name, "1")).unwrap()
    };
    let repository = Repository::empty();
    repository.add_bytes("truth", "1", &content(1));
    let server = watching(&repository).start();
    let request = identity("FP32", &json!([1.0, 2.5, -4.0]));

    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let clients: Vec<_> =
            (0..2).map(|_| scope.spawn(|| ask_until(&done, server.connect(), &request))).collect();
        // A failure in here must end the clients too, or the scope waits for ever.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for version in 2..=6 {
                repository.add_bytes("truth", &version.to_string(), &content(version));
                wait_for_version(&server, "truth", &request, &version.to_string());
            }
            for version in (2..=6_u64).rev() {
                repository.remove("truth", &version.to_string());
                wait_for_version(&server, "truth", &request, &(version - 1).to_string());
            }
        }));
        done.store(true, Ordering::Relaxed);
        for client in clients {
            assert!(client.join().unwrap() > 10);
        }
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    let gone = server.get("/v2/models/truth/versions/6");
    assert_eq!(gone.status, 404, "{gone:?}");
}

/// Asks until told to stop; the number of answers, each of them right.
fn ask_until(done: &AtomicBool, mut connection: Connection, request: &Value) -> usize {
    let mut answers = 0;
    while !done.load(Ordering::Relaxed) {
        let response = connection.ask(&Request::post_json(&infer("truth"), request)).ok();
        let version = response.header("x-tidegate-version").expect("a version").to_owned();
        assert_eq!(response.json()["model_version"], version, "{response:?}");
        let odd = version.parse::<u64>().unwrap() % 2 == 1;
        let expected = if odd { json!([1.0, 2.5, -4.0]) } else { json!([2.0, 5.0, -8.0]) };
        assert_eq!(data(&response, "OUTPUT"), expected, "version {version}");
        answers += 1;
    }
    answers
}

#[test]
fn models_come_and_go() {
    let repository = Repository::of(&["add_sub"]);
    let server = watching(&repository).start();
    let request = identity("FP32", &json!([1.0]));
    assert_eq!(server.post(&infer("identity_fp32"), &request).status, 404);
    repository.add("identity_fp32", "1");
    wait_for_version(&server, "identity_fp32", &request, "1");
    fs::remove_dir_all(repository.path().join("identity_fp32")).unwrap();
    eventually("the model is gone", || {
        (server.get("/v2/models/identity_fp32").status == 404).then_some(())
    });
    assert_eq!(server.post(&infer("identity_fp32"), &request).status, 404);
    server.post(&infer("add_sub"), &add_sub()).ok();
}

#[test]
fn an_empty_repository_serves_until_models_come() {
    let repository = Repository::empty();
    let server = watching(&repository).start();
    assert_eq!(server.index(), Vec::<Value>::new());
    assert_eq!(server.admin("/readyz").status, 200, "no model is required");
    repository.add("add_sub", "1");
    wait_for_version(&server, "add_sub", &add_sub(), "1");
}

#[test]
fn broken_models_are_unavailable_with_a_reason_while_others_serve() {
    let good = fs::read(source("add_sub", "1")).unwrap();
    let mut flipped = good.clone();
    for byte in flipped.iter_mut().skip(20).step_by(7) {
        *byte ^= 0x55;
    }
    let repository = Repository::of(&["add_sub"]);
    let broken: [(&str, &[u8]); 6] = [
        ("empty", b""),
        ("cut", &good[..good.len() / 2]),
        ("cut_early", &good[..10]),
        ("flipped", &flipped),
        ("text", b"this is no model\n"),
        ("noise", &[0xff; 4096]),
    ];
    for (name, content) in broken {
        repository.add_bytes(name, "1", content);
    }
    let mut server = watching(&repository).start();
    for (name, _) in broken {
        let entry = server.wait_for_state(name, "1", "UNAVAILABLE");
        let reason = entry["reason"].as_str().expect("a reason");
        assert!(reason.len() > 5, "{name}: `{reason}`");
        assert!(!reason.contains(repository.path().to_str().unwrap()), "{name}: `{reason}`");
        assert_ne!(server.get(&format!("/v2/models/{name}/ready")).status, 200, "{name}");
        let refused = server.post(&infer(name), &add_sub());
        assert_eq!(refused.status, 503, "{name}: {refused:?}");
        assert!(refused.error().contains(name), "{name}: {refused:?}");
    }
    server.post(&infer("add_sub"), &add_sub()).ok();
    assert_eq!(server.admin("/readyz").status, 200, "none of them is required");

    repository.replace("cut", "1", &good);
    server.wait_for_state("cut", "1", "READY");
    server.post(&infer("cut"), &add_sub()).ok();
    assert!(server.is_running());
}

#[test]
fn a_broken_new_version_leaves_the_old_one_serving() {
    let repository = Repository::of(&["add_sub"]);
    let server = watching(&repository).start();
    repository.add_bytes("add_sub", "2", b"garbage");
    server.wait_for_state("add_sub", "2", "UNAVAILABLE");
    let response = server.post(&infer("add_sub"), &add_sub()).ok();
    assert_eq!(response.header("x-tidegate-version"), Some("1"));
    assert_eq!(server.get("/v2/models/add_sub").ok().json()["versions"], json!(["1"]));
    let refused = server.post("/v2/models/add_sub/versions/2/infer", &add_sub());
    assert_eq!(refused.status, 503, "{refused:?}");

    repository.replace("add_sub", "2", &fs::read(source("add_sub", "1")).unwrap());
    wait_for_version(&server, "add_sub", &add_sub(), "2");
}

#[test]
fn folders_that_are_no_models_are_passed_over() {
    let repository = Repository::of(&["add_sub"]);
    repository.describe(".hidden", "x", "");
    repository.describe("add_sub", "README.md", "# notes");
    fs::write(repository.path().join("notes.txt"), "notes").unwrap();
    fs::create_dir_all(repository.path().join("add_sub/draft")).unwrap();
    fs::create_dir_all(repository.path().join("add_sub/007")).unwrap();
    let server = watching(&repository).start();
    let names: Vec<_> = server.index().iter().map(|entry| entry["name"].clone()).collect();
    assert_eq!(names, ["add_sub"]);
    server.post(&infer("add_sub"), &add_sub()).ok();
}

#[test]
fn outputs_that_are_no_tensors_are_explained_or_converted() {
    let server = Server::over(&Repository::of(&["zipmap", "add_sub"]));
    let entry = eventually("a verdict on the model", || {
        let entry = server.indexed("zipmap", "1")?;
        ["READY", "UNAVAILABLE"].contains(&entry["state"].as_str()?).then_some(entry)
    });
    if entry["state"] == "UNAVAILABLE" {
        let reason = entry["reason"].as_str().expect("a reason");
        assert!(reason.contains("probabilities"), "`{reason}`");
    } else {
        let asked = json!({"inputs": [
            {"name": "input", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3, 1]},
        ]});
        let response = server.post(&infer("zipmap"), &asked);
        assert_eq!(data(&response, "label"), json!([0, 1]));
    }
    server.post(&infer("add_sub"), &add_sub()).ok();
}

#[test]
fn the_server_is_ready_only_when_required_models_serve() {
    let repository = Repository::of(&["add_sub"]);
    repository.add_bytes("needed", "1", b"garbage");
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("tidegate.toml");
    fs::write(&config, "[models.needed]\nrequired = true\n").unwrap();
    let server = watching(&repository)
        .arguments(&["--config", config.to_str().unwrap()])
        .start_until_alive();

    server.wait_for_state("needed", "1", "UNAVAILABLE");
    let unready = server.admin("/readyz");
    assert_eq!(unready.status, 503, "{unready:?}");
    assert!(unready.text().contains("needed"), "{unready:?}");
    assert_eq!(server.get("/v2/health/ready").status, 503);
    assert_eq!(server.get("/v2/health/live").status, 200);
    server.wait_for_state("add_sub", "1", "READY");
    server.post(&infer("add_sub"), &add_sub()).ok();

    repository.replace("needed", "1", &fs::read(source("add_sub", "1")).unwrap());
    eventually("the server is ready", || (server.admin("/readyz").status == 200).then_some(()));
    server.post(&infer("needed"), &add_sub()).ok();
}

#[test]
fn a_load_that_fails_says_so_though_the_old_version_goes_on() {
    let repository = Repository::of(&["add_sub"]);
    let server = Server::over(&repository);
    repository.replace("add_sub", "1", b"no model at all");
    let refused = server.post("/v2/repository/models/add_sub/load", &json!({}));
    assert_eq!(refused.status, 400, "{refused:?}");
    server.post(&infer("add_sub"), &add_sub()).ok();
    repository.replace("add_sub", "1", &fs::read(source("add_sub", "1")).unwrap());
    server.post("/v2/repository/models/add_sub/load", &json!({})).ok();
}

/// Adds models whose proof ends at its deadline only; gives how many of them are still to be tried.
fn add_slow(repository: &Repository, count: usize) -> impl Fn(&Server) -> usize {
    for number in 0..count {
        repository.add_bytes(&format!("a_slow_{number}"), "1", &endless_loop());
    }
    let slow = |entry: &&Value| {
        entry["name"].as_str().unwrap().starts_with("a_slow_") && entry["state"] == "LOADING"
    };
    move |server| server.index().iter().filter(slow).count()
}

#[test]
fn slow_proofs_hold_up_neither_what_serves_nor_what_is_asked_for() {
    let repository = Repository::of(&["identity_fp32"]);
    let server = watching(&repository).set("PROOF__TIME_MAX", "3s").start();
    let left = add_slow(&repository, 6);
    eventually("all of them are noticed", || (left(&server) == 6).then_some(()));
    let doubled = fs::read(source("doubled_fp32", "1")).unwrap();
    repository.add_bytes("identity_fp32", "2", &doubled);
    let request = identity("FP32", &json!([1.0]));
    wait_for_version(&server, "identity_fp32", &request, "2");
    assert!(left(&server) >= 4, "a new version of what serves goes first: {}", left(&server));
    repository.add("add_sub", "1");
    let load = Request::post_json("/api/v1/models/add_sub/load", &json!({}));
    Connection::open(server.admin).ask(&load).ok();
    assert!(left(&server) >= 3, "what was asked for goes first: {}", left(&server));
}

#[test]
fn two_versions_are_proven_at_a_time() {
    let repository = Repository::empty();
    let _left = add_slow(&repository, 4);
    // By default the start proves more, as nothing serves yet.
    let launch = watching(&repository).set("PROOF__TIME_MAX", "3s").set("PROOF__AT_START", "2");
    let server = launch.start_until_alive();
    let proven = || {
        let index = server.index();
        index.iter().filter(|entry| entry["reason"].as_str().unwrap().contains("proven,")).count()
    };
    eventually("two are being proven", || (proven() == 2).then_some(()));
    eventually("and two more after them", || {
        let index = server.index();
        let failed = index.iter().filter(|entry| entry["state"] == "UNAVAILABLE").count();
        assert!(proven() <= 2);
        (failed == 2 && proven() == 2).then_some(())
    });
}
