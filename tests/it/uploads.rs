//! Models that a load request brings: they serve as any other, outlive a kill, and change nothing where they fail.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
};

use serde_json::{Value, json};

use crate::{
    http::{Connection, Request, Response},
    repository::{Repository, SAMPLES, source},
    server::{Launch, Server, eventually},
    tensors::{identity, infer, outputs},
};

const LOAD: &str = "/v2/repository/models/truth/load";
const UNLOAD: &str = "/v2/repository/models/truth/unload";

/// `truth` with version 1, which gives back its input.
fn truth() -> Repository {
    let repository = Repository::empty();
    repository.add_bytes("truth", "1", &model("identity_fp32"));
    repository
}

fn serve(repository: &Repository) -> Launch {
    Launch::of(repository)
        .set("REPOSITORY__POLL_INTERVAL", "100ms")
        .set("REPOSITORY__UPLOADS", "true")
        .remembering()
}

fn model(name: &str) -> Vec<u8> {
    fs::read(source(name, "1")).unwrap()
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |chunk: &[u8]| {
        let byte = |at: usize| usize::from(chunk.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        let letter = |at: usize| char::from(LETTERS[bits >> (18 - 6 * at) & 63]);
        let letters = (0..4).map(|at| if at <= chunk.len() { letter(at) } else { '=' });
        letters.collect::<String>()
    };
    bytes.chunks(3).map(group).collect()
}

/// The body of a load with this configuration and these files.
fn upload(config: &Value, files: &[(&str, &[u8])]) -> Value {
    let mut parameters = json!({"config": config.to_string()});
    for (path, content) in files {
        parameters[format!("file:{path}")] = base64(content).into();
    }
    json!({ "parameters": parameters })
}

fn doubled() -> Value {
    upload(&json!({"max_batch_size": 0}), &[("1/model.onnx", &model("doubled_fp32"))])
}

fn answer(server: &Server) -> Response {
    server.post(&infer("truth"), &identity("FP32", &json!([1.5])))
}

/// What the model makes of 1.5.
fn factor(server: &Server) -> f64 {
    outputs(&answer(server).ok())[0]["data"][0].as_f64().unwrap() / 1.5
}

fn refused(server: &Server, body: &Value, status: u16, expected: &str) {
    let answer = server.post(LOAD, body);
    assert_eq!(answer.status, status, "{answer:?}");
    assert!(answer.error().contains(expected), "not `{expected}`: {}", answer.error());
}

fn near(actual: f64, expected: f64) -> bool {
    (actual - expected).abs() < 1e-9
}

#[test]
fn an_upload_serves_at_once_and_until_a_plain_load_also_after_a_kill() {
    let repository = truth();
    let server = serve(&repository).start();
    assert!(near(factor(&server), 1.0));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Acquire) {
                let factor = factor(&server);
                assert!(near(factor, 1.0) || near(factor, 2.0), "{factor}");
            }
        });
        server.post(LOAD, &doubled()).ok();
        over.store(true, Ordering::Release);
    });
    assert!(near(factor(&server), 2.0), "the first request after it");
    repository.add_bytes("truth", "2", &model("identity_fp32"));
    drop(server); // by SIGKILL
    let server = serve(&repository).start();
    assert!(near(factor(&server), 2.0), "what was acknowledged beats the repository");
    assert_eq!(answer(&server).header("x-tidegate-version"), Some("1"));
    let shown = server.admin("/api/v1/models/truth").ok().json();
    assert!(shown["pinned"].as_str().unwrap().contains("uploaded"), "{shown}");
    server.post(LOAD, &json!({})).ok();
    assert!(near(factor(&server), 1.0), "the repository's again");
    assert_eq!(answer(&server).header("x-tidegate-version"), Some("2"));
    drop(server);
    let server = serve(&repository).start();
    assert!(near(factor(&server), 1.0));
}

#[test]
fn an_upload_may_bring_a_model_that_the_repository_does_not_know() {
    let repository = Repository::of(&["add_sub"]);
    let server = serve(&repository).start();
    let folder = format!("{SAMPLES}/digits/1");
    let read = |name: &str| fs::read(format!("{folder}/{name}")).unwrap();
    let files = [("3/model.onnx", &*read("model.onnx")), ("3/golden.json", &*read("golden.json"))];
    server.post(LOAD, &upload(&json!({"name": "truth"}), &files)).ok();
    let entry = server.indexed("truth", "3").unwrap();
    assert_eq!(entry["state"], "READY");
    drop(server);
    // Also where the repository cannot be read.
    let aside = repository.beside("aside");
    fs::rename(repository.path(), &aside).unwrap();
    let server = serve(&repository).start();
    server.get("/v2/models/truth/versions/3/ready").ok();
    fs::rename(&aside, repository.path()).unwrap();
    let missing = server.post(LOAD, &json!({}));
    assert_eq!(missing.status, 404, "the repository has none: {missing:?}");
    server.get("/v2/models/truth/ready").ok();
    server.post(UNLOAD, &json!({})).ok();
    eventually("it is forgotten", || (server.get("/v2/models/truth").status == 404).then_some(()));
    server.post(LOAD, &upload(&json!({}), &files)).ok();
    server.get("/v2/models/truth/ready").ok();
}

#[test]
fn an_upload_that_fails_changes_nothing_and_says_why() {
    let repository = truth();
    let server = serve(&repository).start();
    let none = json!({});
    let one = |content: &[u8]| upload(&none, &[("1/model.onnx", content)]);
    refused(&server, &one(b"no model"), 400, "not an ONNX model");
    refused(&server, &one(&model("add_sub")), 400, "does not fit the clients of version 1");
    let golden = json!({"cases": [{"inputs": [], "outputs": []}]}).to_string();
    let bad_golden = upload(
        &none,
        &[("1/model.onnx", &model("doubled_fp32")), ("1/golden.json", golden.as_bytes())],
    );
    refused(&server, &bad_golden, 400, "golden");
    let wrong = upload(
        &json!({"input": [{"name": "nosuch", "data_type": "TYPE_FP32", "dims": [1]}]}),
        &[("1/model.onnx", &model("doubled_fp32"))],
    );
    refused(&server, &wrong, 400, "no input `nosuch`");
    let half = upload(
        &json!({"version_policy": {"all": {}}}),
        &[("1/model.onnx", &model("doubled_fp32")), ("2/model.onnx", b"no model")],
    );
    refused(&server, &half, 400, "version 2: ");
    assert!(near(factor(&server), 1.0));
    assert_eq!(server.admin("/api/v1/models/truth").ok().json()["pinned"], Value::Null);
    drop(server);
    let server = serve(&repository).start();
    assert!(near(factor(&server), 1.0), "nothing was recorded");
}

#[test]
fn a_load_that_ends_an_upload_must_suit_its_clients_unless_it_need_not() {
    let repository = truth();
    let server = serve(&repository).start();
    server.post(LOAD, &doubled()).ok();
    repository.replace("truth", "1", &model("add_sub"));
    refused(&server, &json!({}), 400, "does not fit the clients of version 1");
    assert!(near(factor(&server), 2.0));
    let load = |said| {
        let load = Request::post_json("/api/v1/models/truth/load", &said);
        Connection::open(server.admin).ask(&load)
    };
    let text = load(json!({})).text();
    assert!(text.contains("`tidegate models load truth --signature-may-change`"), "{text}");
    load(json!({"signature_may_change": true})).ok();
    assert_eq!(answer(&server).status, 400, "its clients are told what it takes");
}

#[test]
fn a_configuration_alone_describes_what_the_repository_has() {
    let repository = truth();
    repository.add_bytes("truth", "2", &model("doubled_fp32"));
    let server = serve(&repository).start();
    let ready = |server: &Server, version: u64| {
        server.get(&format!("/v2/models/truth/versions/{version}/ready")).status == 200
    };
    assert!(ready(&server, 2) && !ready(&server, 1));
    refused(&server, &upload(&json!({"max_batch_size": -1}), &[]), 400, "max_batch_size: ");
    refused(
        &server,
        &upload(&json!({"version_policy": {"specific": {"versions": [7]}}}), &[]),
        400,
        "none would serve",
    );
    server
        .post(LOAD, &upload(&json!({"version_policy": {"specific": {"versions": [1]}}}), &[]))
        .ok();
    assert!(ready(&server, 1) && near(factor(&server), 1.0));
    eventually("version 2 is let go", || (!ready(&server, 2)).then_some(()));
    drop(server);
    let server = serve(&repository).start();
    assert!(ready(&server, 1) && !ready(&server, 2));
    server.post(LOAD, &json!({})).ok();
    assert!(ready(&server, 2) && near(factor(&server), 2.0));
    let unknown = server.post("/v2/repository/models/nosuch/load", &upload(&json!({}), &[]));
    assert_eq!(unknown.status, 404, "{unknown:?}");
}

#[test]
fn what_a_load_cannot_bring_is_refused_with_its_reason() {
    let repository = truth();
    let launch = || {
        serve(&repository)
            .set("REPOSITORY__UPLOAD_BYTES", "100B")
            .set("REPOSITORY__UPLOAD_FILES", "2")
    };
    let server = launch().start();
    let none = json!({});
    let parameters = |parameters: Value| json!({ "parameters": parameters });
    refused(&server, &parameters(json!({"other": 1})), 400, "unknown parameter `other`");
    refused(&server, &parameters(json!({"config": 1})), 400, "must be a string");
    refused(&server, &parameters(json!({"config": "{"})), 400, "parameter `config`: ");
    refused(&server, &parameters(json!({"config": "{}", "file:1/a": "A"})), 400, "is not Base64");
    refused(
        &server,
        &parameters(json!({"file:1/model.onnx": ""})),
        400,
        "need the parameter `config`",
    );
    refused(&server, &upload(&none, &[("../model.onnx", b"")]), 400, "file:../model.onnx");
    refused(&server, &upload(&none, &[("0/model.onnx", b"")]), 400, "a version from 1 on");
    refused(
        &server,
        &upload(&none, &[("1/a", b""), ("1/b", b""), ("1/c", b"")]),
        400,
        "repository.upload_files",
    );
    refused(
        &server,
        &upload(&none, &[("1/model.onnx", &[0; 101])]),
        400,
        "repository.upload_bytes",
    );
    refused(
        &server,
        &upload(&none, &[("1/model.onnx", &vec![0; 40_000])]),
        400,
        "repository.upload_bytes",
    );
    refused(&server, &upload(&json!({"name": "other"}), &[]), 400, "names the model `other`");
    refused(&server, &upload(&json!({"ensemble_scheduling": {}}), &[]), 400, "is not supported");
    let twice = r#"{"parameters":{"config":"{}","config":"{}"}}"#;
    let twice = server.ask(&crate::http::Request::post(LOAD, twice));
    assert_eq!(twice.status, 400, "{twice:?}");
    drop(server);
    let off = launch().set("REPOSITORY__UPLOADS", "false").start();
    refused(&off, &upload(&none, &[]), 503, "repository.uploads = true");
    off.post(LOAD, &json!({"parameters": {}})).ok();
    drop(off);
    let closed = launch().set("REPOSITORY__API", "off").start();
    refused(&closed, &upload(&none, &[]), 503, "repository.api");
}

#[test]
fn without_a_place_for_state_an_upload_is_in_memory() {
    let repository = truth();
    let server = serve(&repository).set("STATE__PATH", "/proc/nowhere").start();
    server.post(LOAD, &doubled()).ok();
    assert!(near(factor(&server), 2.0));
    eventually("it says so", || server.said().contains("in memory only").then_some(()));
    server.post(LOAD, &json!({})).ok();
    assert!(near(factor(&server), 1.0));
}

#[test]
fn an_unload_ends_an_upload() {
    let repository = truth();
    let server = serve(&repository).start();
    server.post(LOAD, &doubled()).ok();
    server.post(UNLOAD, &json!({})).ok();
    assert_eq!(answer(&server).status, 503);
    drop(server);
    let server = serve(&repository).start_until_alive();
    assert_eq!(answer(&server).status, 503);
    server.post(LOAD, &json!({})).ok();
    assert!(near(factor(&server), 1.0), "the repository's");
}
