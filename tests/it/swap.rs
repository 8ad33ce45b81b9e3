//! Hot swaps under load, the short form of `make loadtest-swap`: the same models and the same judge.

use std::{
    fs,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use serde_json::{Value, json};

use crate::{
    http::{Connection, Request},
    repository::Repository,
    server::{Server, eventually},
    tensors::infer,
};

#[path = "../../loadtests/swap/src/onnx.rs"]
#[allow(dead_code, clippy::pedantic, reason = "the load test uses the rest and has its own lints")]
mod onnx;
#[path = "../../loadtests/swap/src/truth.rs"]
#[allow(dead_code, clippy::pedantic, reason = "the load test uses the rest and has its own lints")]
mod truth;

use truth::{Answer, MODEL, Question, Verdict};

const CLIENTS: u64 = 4;
const SWAPS: u64 = 15;

/// What clients and swaps tell each other.
struct Scene {
    acknowledged: AtomicU64,
    newest: AtomicU64,
    answered: AtomicU64,
    done: AtomicBool,
}

#[test]
fn swaps_under_load_fail_mix_up_and_delay_nothing() {
    let repository = Repository::empty();
    repository.add_bytes(MODEL, "1", &truth::model(1, 0));
    let server = Server::over(&repository);
    let scene = Scene {
        acknowledged: AtomicU64::new(1),
        newest: AtomicU64::new(1),
        answered: AtomicU64::new(0),
        done: AtomicBool::new(false),
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (scene, connection) = (&scene, server.connect());
                scope.spawn(move || ask_until_done(scene, connection, client << 32))
            })
            .collect();
        // A failure in here must end the clients too, or the scope waits for ever.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for version in 2..=SWAPS + 1 {
                swap(&server, &repository, &scene, version);
            }
        }));
        scene.done.store(true, Ordering::SeqCst);
        let wrong: Vec<String> =
            clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        assert_eq!(wrong, Vec::<String>::new());
    });
    let newest = (SWAPS + 1).to_string();
    let index = server.index();
    assert!(index.iter().any(|entry| entry["version"] == newest && entry["state"] == "READY"));
}

/// Puts a version up, has it loaded, and lets the clients meet it.
fn swap(server: &Server, repository: &Repository, scene: &Scene, version: u64) {
    scene.newest.store(version, Ordering::SeqCst);
    repository.add_bytes(MODEL, &version.to_string(), &truth::model(version, 0));
    let load: Value = json!({});
    // Proof and load run below the saturated workers.
    let load = Request::post_json(&format!("/v2/repository/models/{MODEL}/load"), &load);
    server.connect().patient().ask(&load).ok();
    scene.acknowledged.store(version, Ordering::SeqCst);
    let before = scene.answered.load(Ordering::SeqCst);
    eventually("the clients have asked again", || {
        (scene.answered.load(Ordering::SeqCst) >= before + 2 * CLIENTS).then_some(())
    });
    if version > 2 {
        fs::remove_dir_all(repository.path().join(MODEL).join((version - 2).to_string())).unwrap();
    }
}

/// Asks until told to stop; everything that was not right.
fn ask_until_done(scene: &Scene, mut connection: Connection, first: u64) -> Vec<String> {
    let path = infer(MODEL);
    let mut wrong = Vec::new();
    for number in first.. {
        if scene.done.load(Ordering::SeqCst) || wrong.len() > 3 {
            break;
        }
        let question = Question::new(number, 0);
        let body: Value = serde_json::from_str(&question.json()).unwrap();
        let request = Request::post_json(&path, &body);
        // Before the first byte goes out.
        let acknowledged = scene.acknowledged.load(Ordering::SeqCst);
        let response = match connection.try_ask(&request) {
            Ok(response) if response.status == 200 => response,
            other => {
                wrong.push(format!("failed: {other:?}"));
                break;
            }
        };
        let newest = scene.newest.load(Ordering::SeqCst);
        let header = response.header("x-tidegate-version");
        match Answer::read(&response.body, None)
            .map(|answer| question.judge(header, &answer, acknowledged, newest))
        {
            Ok(Verdict::Right) => {}
            other => wrong.push(format!("{other:?}")),
        }
        scene.answered.fetch_add(1, Ordering::SeqCst);
    }
    wrong
}
