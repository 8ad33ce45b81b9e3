//! What operators do to models: it beats the repository, it is done when it is acknowledged, and it says why not.

use std::{fs, process::Command};

use serde_json::{Value, json};

use crate::{
    cli::tidegate,
    http::{Connection, Request, Response},
    models::endless_loop,
    repository::{Repository, source},
    server::{Launch, Server, eventually},
    tensors::{identity, infer},
};

const IDENTITY: &str = "identity_fp32";

/// `truth` with these versions; even ones double their input.
fn truth(versions: &[u64]) -> Repository {
    let repository = Repository::empty();
    for version in versions {
        add(&repository, *version);
    }
    repository
}

fn add(repository: &Repository, version: u64) {
    let model = if version.is_multiple_of(2) { "doubled_fp32" } else { IDENTITY };
    repository.add_bytes("truth", &version.to_string(), &fs::read(source(model, "1")).unwrap());
}

fn serve(repository: &Repository) -> Launch {
    Launch::of(repository).set("REPOSITORY__POLL_INTERVAL", "100ms")
}

/// Asks the admin API to do something.
fn operate(server: &Server, what: &str, said: &Value) -> Response {
    let path = format!("/api/v1/models/truth/{what}");
    let request = match what.strip_prefix("aliases/") {
        Some(_) if said["version"].is_null() => Request::post_json(&path, said).method("DELETE"),
        Some(_) => Request::post_json(&path, said).method("PUT"),
        None => Request::post_json(&path, said),
    };
    Connection::open(server.admin).ask(&request)
}

fn answer(server: &Server, path: &str) -> Response {
    server.post(path, &identity("FP32", &json!([1.5])))
}

fn version(server: &Server) -> Option<String> {
    answer(server, &infer("truth")).header("x-tidegate-version").map(str::to_owned)
}

fn shown(server: &Server) -> Value {
    server.admin("/api/v1/models/truth").ok().json()
}

fn seen(server: &Server, version: &str, part: &str) -> Value {
    eventually(&format!("version {version} says `{part}`"), || {
        let entry = server.indexed("truth", version)?;
        entry["reason"].as_str()?.contains(part).then_some(entry)
    })
}

#[test]
fn a_rollback_is_done_when_it_is_acknowledged_and_beats_the_repository() {
    let repository = truth(&[1, 2]);
    let server = serve(&repository).start();
    assert_eq!(version(&server).as_deref(), Some("2"));
    let report = operate(&server, "rollback", &json!({"reason": "worse"})).ok().json();
    assert_eq!(report["version"], 1);
    assert_eq!(version(&server).as_deref(), Some("1"), "the first request after it");
    seen(&server, "2", "held back");
    add(&repository, 3);
    seen(&server, "3", "held back");
    assert_eq!(version(&server).as_deref(), Some("1"));
    let shown = server.admin("/api/v1/models/truth").ok().json();
    assert_eq!(shown["answering"], 1);
    assert!(shown["pinned"].as_str().unwrap().contains("version 1"), "{shown}");

    let older = operate(&server, "rollback", &json!({}));
    assert_eq!(older.status, 409, "{older:?}");
    let unknown = operate(&server, "rollback", &json!({"to": 9}));
    assert_eq!(unknown.status, 404, "{unknown:?}");
    assert!(unknown.text().contains("which has 1, 2, 3"), "{unknown:?}");

    let report = operate(&server, "unpin", &json!({})).ok().json();
    assert_eq!(report["version"], 3);
    assert_eq!(version(&server).as_deref(), Some("3"));
}

#[test]
fn a_rollback_to_what_cannot_be_served_changes_nothing() {
    let repository = truth(&[2]);
    repository.add_bytes("truth", "1", b"no model");
    let server = serve(&repository).start();
    let refused = operate(&server, "rollback", &json!({"version": 1}));
    assert_eq!(refused.status, 400, "{refused:?}");
    assert!(refused.text().contains("not an ONNX model"), "{refused:?}");
    assert_eq!(version(&server).as_deref(), Some("2"));
    assert_eq!(server.admin("/api/v1/models/truth").ok().json()["pinned"], Value::Null);
}

#[test]
fn an_unload_beats_the_repository_until_a_load() {
    let repository = truth(&[1]);
    let server = serve(&repository).start();
    server.post("/v2/repository/models/truth/unload", &json!({})).ok();
    assert_eq!(answer(&server, &infer("truth")).status, 503);
    add(&repository, 2);
    seen(&server, "2", "unloaded");
    assert_eq!(answer(&server, &infer("truth")).status, 503);
    server.post("/v2/repository/models/truth/load", &json!({})).ok();
    assert_eq!(version(&server).as_deref(), Some("2"));
}

#[test]
fn aliases_stand_wherever_a_version_does() {
    let repository = truth(&[1, 2]);
    let server = serve(&repository).start();
    let stable = answer(&server, "/v2/models/truth/versions/stable/infer").ok();
    assert_eq!(stable.header("x-tidegate-version"), Some("2"), "what answers is stable");
    let unknown = answer(&server, "/v2/models/truth/versions/canary/infer");
    assert_eq!(unknown.status, 404, "{unknown:?}");

    // The policy wants version 2 alone: the alias makes version 1 be loaded beside it.
    operate(&server, "aliases/canary", &json!({"version": 1})).ok();
    let canary = answer(&server, "/v2/models/truth/versions/canary/infer").ok();
    assert_eq!(canary.header("x-tidegate-version"), Some("1"));
    assert_eq!(version(&server).as_deref(), Some("2"));
    assert_eq!(
        server.get("/v2/models/truth/versions/canary").ok().json()["versions"],
        json!(["1"])
    );
    assert_eq!(server.get("/v2/models/truth/versions/canary/ready").status, 200);

    for bad in [json!({"version": 7}), json!({"version": "1"}), json!({"wrong": 1})] {
        let refused = operate(&server, "aliases/own", &bad);
        assert!((400..500).contains(&refused.status), "{bad}: {refused:?}");
    }
    assert_eq!(operate(&server, "aliases/7", &json!({"version": 1})).status, 400);
    operate(&server, "aliases/canary", &json!({})).ok();
    let gone = answer(&server, "/v2/models/truth/versions/canary/infer");
    assert_eq!(gone.status, 404, "{gone:?}");
    let again = operate(&server, "aliases/canary", &json!({}));
    assert_eq!(again.status, 404, "{again:?}");
}

#[test]
fn new_versions_wait_where_the_operator_wants_to_let_them_in() {
    let repository = truth(&[1]);
    let server = serve(&repository).set("MODELS__truth__ON_NEW_VERSION", "hold").start();
    add(&repository, 2);
    seen(&server, "2", "held back");
    assert_eq!(version(&server).as_deref(), Some("1"));
    server.post("/v2/repository/models/truth/load", &json!({})).ok();
    assert_eq!(version(&server).as_deref(), Some("2"));
    add(&repository, 3);
    seen(&server, "3", "held back");
}

#[test]
fn a_version_that_would_break_clients_is_refused_unless_it_may() {
    let other = fs::read(source("add_sub", "1")).unwrap();
    let repository = truth(&[1]);
    let server = serve(&repository).start();
    repository.add_bytes("truth", "2", &other);
    let entry = seen(&server, "2", "does not fit the clients of version 1");
    assert!(entry["reason"].as_str().unwrap().contains("signature_may_change"), "{entry}");
    assert_eq!(version(&server).as_deref(), Some("1"));

    let repository = truth(&[1]);
    let server = serve(&repository).set("MODELS__truth__SIGNATURE_MAY_CHANGE", "true").start();
    repository.add_bytes("truth", "2", &other);
    server.wait_for_state("truth", "2", "READY");
}

/// A way to have another version answer: what lies there at the start, what happens then, and what is asked for.
struct Way {
    name: &'static str,
    /// Versions and their models; `add_sub` does not fit the clients of the others.
    versions: &'static [(&'static str, &'static str)],
    hold: bool,
    prepare: fn(&Repository, &Server),
    ask: (&'static str, Value),
    /// What answers before, and once it was said that the signature may change.
    answering: (u64, u64),
}

fn add_unfit(repository: &Repository, version: &str) {
    repository.add_bytes("truth", version, &fs::read(source("add_sub", "1")).unwrap());
}

fn ways() -> Vec<Way> {
    let fit: &[_] = &[("1", IDENTITY), ("2", "doubled_fp32")];
    let unfit_first: &[_] = &[("1", "add_sub"), ("2", "doubled_fp32"), ("3", IDENTITY)];
    let nothing = |_: &Repository, _: &Server| {};
    let way = |name, versions, prepare, ask, answering| {
        let hold = false;
        Way { name, versions, hold, prepare, ask, answering }
    };
    vec![
        way(
            "a load of what was refused",
            fit,
            |repository, server| {
                add_unfit(repository, "3");
                seen(server, "3", "does not fit the clients of version 2");
            },
            ("load", json!({})),
            (2, 3),
        ),
        way(
            "an unpin",
            fit,
            |repository, server| {
                operate(server, "rollback", &json!({})).ok();
                add_unfit(repository, "3");
                seen(server, "3", "held back");
            },
            ("unpin", json!({})),
            (1, 3),
        ),
        Way {
            hold: true,
            ..way(
                "a load of what was held back",
                fit,
                |repository, server| {
                    add_unfit(repository, "3");
                    seen(server, "3", "held back");
                },
                ("load", json!({})),
                (2, 3),
            )
        },
        way("a rollback", unfit_first, nothing, ("rollback", json!({"version": 1})), (3, 1)),
        way(
            "a plain rollback to what never served",
            &[("1", "add_sub"), ("2", IDENTITY)],
            nothing,
            ("rollback", json!({})),
            (2, 1),
        ),
        way(
            "an alias that moves",
            unfit_first,
            |_, server| drop(operate(server, "aliases/canary", &json!({"version": 2})).ok()),
            ("aliases/canary", json!({"version": 1})),
            (3, 3),
        ),
        way(
            "the alias of what answers",
            unfit_first,
            nothing,
            ("aliases/stable", json!({"version": 1})),
            (3, 3),
        ),
        way(
            "the alias of what answers, taken away",
            unfit_first,
            |_, server| {
                let said = json!({"version": 1, "signature_may_change": true});
                operate(server, "aliases/stable", &said).ok();
            },
            ("aliases/stable", json!({})),
            (3, 3),
        ),
        way(
            "the removal of what answers",
            unfit_first,
            |repository, server| {
                operate(server, "aliases/own", &json!({"version": 1})).ok();
                repository.remove("truth", "3");
                repository.remove("truth", "2");
                eventually("it says why", || {
                    let problem = shown(server)["problem"].as_str().map(str::to_owned);
                    problem.filter(|text| text.contains("version 1 does not take over"))
                });
            },
            ("rollback", json!({"version": 1})),
            (3, 1),
        ),
    ]
}

#[test]
fn no_way_has_a_version_answer_that_clients_cannot_use_unless_it_may() {
    for Way { name, versions, hold, prepare, mut ask, answering } in ways() {
        let repository = Repository::empty();
        for (version, model) in versions {
            let content = fs::read(source(model, "1")).unwrap();
            repository.add_bytes("truth", version, &content);
        }
        let launch = serve(&repository);
        let launch =
            if hold { launch.set("MODELS__truth__ON_NEW_VERSION", "hold") } else { launch };
        let server = launch.start();
        prepare(&repository, &server);
        assert_eq!(shown(&server)["answering"], answering.0, "{name}");
        let refused = operate(&server, ask.0, &ask.1);
        assert_eq!(refused.status, 400, "{name}: {refused:?}");
        let text = refused.text();
        assert!(text.contains("does not fit the clients of version"), "{name}: {text}");
        assert!(text.contains("--signature-may-change"), "{name}: {text}");
        assert_eq!(shown(&server)["answering"], answering.0, "{name}");
        ask.1["signature_may_change"] = json!(true);
        operate(&server, ask.0, &ask.1).ok();
        assert_eq!(shown(&server)["answering"], answering.1, "{name}");
    }
}

#[test]
fn what_answers_goes_on_while_the_version_before_is_loaded() {
    let repository = truth(&[1, 3]);
    repository.add_bytes("truth", "2", &endless_loop());
    let server = serve(&repository).set("PROOF__TIME_MAX", "3s").start();
    operate(&server, "aliases/own", &json!({"version": 1})).ok();
    repository.remove("truth", "3");
    seen(&server, "2", "being fetched, proven, loaded and warmed");
    assert_eq!(version(&server).as_deref(), Some("3"), "and not the one that has an alias only");
}

#[test]
fn a_plain_rollback_goes_to_what_served_before_whatever_its_signature() {
    let repository = Repository::empty();
    add_unfit(&repository, "1");
    let server = serve(&repository).start();
    repository.add_bytes("truth", "2", b"no model");
    server.wait_for_state("truth", "2", "UNAVAILABLE");
    add(&repository, 3);
    seen(&server, "3", "does not fit the clients of version 1");
    operate(&server, "load", &json!({"signature_may_change": true})).ok();
    assert_eq!(version(&server).as_deref(), Some("3"));
    // Not to version 2, which never served.
    let report = operate(&server, "rollback", &json!({})).ok().json();
    assert_eq!(report["version"], 1);
    server.wait_until_said("decided for although its signature");
}

#[test]
fn what_happens_is_told_as_it_happens() {
    let repository = truth(&[1]);
    let server = serve(&repository).start();
    add(&repository, 2);
    let events = eventually("version 1 is freed", || {
        let heard = Connection::open(server.admin)
            .listen(&Request::get("/api/v1/events"), |text| text.contains("event: freed"));
        heard.contains("event: freed").then_some(heard)
    });
    let kinds: Vec<_> = events.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    let expected = ["discovered", "loading", "ready"];
    assert_eq!(kinds[..6], [expected, expected].concat(), "{events}");
    assert_eq!(kinds[6..8], ["retired", "freed"], "{events}");
    assert!(events.contains(r#""model":"truth""#), "{events}");
}

#[test]
fn what_was_acknowledged_is_there_after_a_kill() {
    let repository = truth(&[1, 2, 3]);
    let server = serve(&repository).remembering().start();
    operate(&server, "aliases/canary", &json!({"version": 1})).ok();
    operate(&server, "rollback", &json!({"version": 2, "actor": "ana", "reason": "worse"})).ok();
    drop(server); // by SIGKILL
    let server = serve(&repository).remembering().start();
    assert_eq!(version(&server).as_deref(), Some("2"));
    let canary = answer(&server, "/v2/models/truth/versions/canary/infer").ok();
    assert_eq!(canary.header("x-tidegate-version"), Some("1"));
    let report = operate(&server, "unload", &json!({})).ok().json();
    assert_eq!(report["durable"], true);
    drop(server);
    let server = serve(&repository).remembering().start_until_alive();
    seen(&server, "3", "unloaded");
    assert_eq!(answer(&server, &infer("truth")).status, 503);
    operate(&server, "unpin", &json!({})).ok();
    assert_eq!(version(&server).as_deref(), Some("3"));
    drop(server);
    let state = repository.beside("state").display().to_string();
    let listed = tidegate(&["audit", "list", "--json", "--model", "truth", "--state", &state], "");
    let text = String::from_utf8(listed.stdout).unwrap();
    assert!(text.contains("model.pin") && text.contains("ana") && text.contains("worse"), "{text}");
    assert_eq!(tidegate(&["audit", "verify", "--state", &state], "").status.code(), Some(0));
}

#[test]
fn an_unpin_serves_the_newest_good_version_and_notes_the_one_that_is_not() {
    let repository = truth(&[1, 2]);
    let server = serve(&repository).remembering().start();
    operate(&server, "rollback", &json!({})).ok();
    repository.add_bytes("truth", "3", b"no model");
    repository.add_bytes("truth", "4", b"none either");
    let report = operate(&server, "unpin", &json!({})).ok().json();
    assert_eq!((&report["version"], &report["durable"]), (&json!(2), &json!(true)), "{report}");
    let note = report["note"].as_str().unwrap();
    assert!(note.contains("version 4: ") && note.contains("not an ONNX model"), "{note}");
    assert_eq!(version(&server).as_deref(), Some("2"));
    assert_eq!(shown(&server)["pinned"], Value::Null);
    let told = tidegate(&["models", "list", "--admin", &server.admin.to_string()], "");
    let told = String::from_utf8(told.stdout).unwrap();
    for version in ["2", "3", "4"] {
        assert!(told.lines().any(|line| line.contains(&format!(" {version} "))), "{told}");
    }
    assert!(told.contains("not an ONNX model"), "{told}");
}

#[test]
fn a_start_over_a_broken_newest_version_serves_the_one_before() {
    let repository = truth(&[1, 2]);
    repository.add_bytes("truth", "3", b"no model");
    let server = serve(&repository).start();
    assert_eq!(version(&server).as_deref(), Some("2"));
    // The broken one is mended, and takes over.
    fs::remove_dir_all(repository.path().join("truth/3")).unwrap();
    add(&repository, 3);
    eventually("the mended version answers", || {
        (version(&server).as_deref() == Some("3")).then_some(())
    });
    eventually("the one before leaves", || server.indexed("truth", "2").is_none().then_some(()));
}

#[test]
fn a_pin_that_cannot_be_replaced_stays() {
    let repository = truth(&[1]);
    repository.add_bytes("truth", "2", b"no model");
    let server = serve(&repository).remembering().start();
    operate(&server, "rollback", &json!({"version": 1})).ok();
    fs::remove_dir_all(repository.path().join("truth/2")).unwrap();
    repository.describe("truth", "model.toml", "versions = [3]\n");
    repository.add_bytes("truth", "3", b"no model");
    let refused = operate(&server, "unpin", &json!({}));
    assert_eq!(refused.status, 400, "{refused:?}");
    assert!(refused.text().contains("not an ONNX model"), "{refused:?}");
    assert_eq!(shown(&server)["pinned"], "pinned to version 1 by an operator");
    assert_eq!(version(&server).as_deref(), Some("1"));
    fs::remove_dir_all(repository.path().join("truth/3")).unwrap();
    add(&repository, 3);
    operate(&server, "unpin", &json!({})).ok();
    assert_eq!(version(&server).as_deref(), Some("3"));
}

#[test]
fn a_load_that_fails_leaves_a_model_unloaded() {
    let repository = truth(&[1]);
    let server = serve(&repository).remembering().start();
    operate(&server, "unload", &json!({})).ok();
    repository.add_bytes("truth", "2", b"no model");
    assert_eq!(operate(&server, "load", &json!({})).status, 400);
    assert_eq!(shown(&server)["pinned"], "unloaded by an operator");
    assert_eq!(version(&server), None);
    fs::remove_dir_all(repository.path().join("truth/2")).unwrap();
    operate(&server, "load", &json!({})).ok();
    assert_eq!(version(&server).as_deref(), Some("1"));
}

#[test]
fn a_full_disk_stops_no_prediction_and_no_rollback_and_passes_without_a_restart() {
    let repository = truth(&[1, 2]);
    let server = serve(&repository).remembering().start();
    let limit = |bytes: &str| {
        let of = format!("--pid={}", server.id());
        // The hard limit stays, so that the soft one can be lifted again.
        let limited =
            Command::new("prlimit").args([of, format!("--fsize={bytes}:unlimited")]).status();
        assert!(limited.unwrap().success());
    };
    limit("1");
    let refused = operate(&server, "unload", &json!({}));
    assert_eq!(refused.status, 507, "{refused:?}");
    assert_eq!(version(&server).as_deref(), Some("2"), "what is not kept is not done");
    let acted = operate(&server, "rollback", &json!({"version": 1}));
    assert_eq!(acted.status, 507, "{acted:?}");
    assert_eq!(version(&server).as_deref(), Some("1"), "a rollback acts first");
    limit("unlimited");
    operate(&server, "unpin", &json!({})).ok();
    assert_eq!(version(&server).as_deref(), Some("2"));
    drop(server);
    let state = repository.beside("state").display().to_string();
    assert_eq!(tidegate(&["audit", "verify", "--state", &state], "").status.code(), Some(0));
}

#[test]
fn what_served_last_serves_where_the_repository_cannot_be_read() {
    let repository = truth(&[1]);
    let server = serve(&repository).remembering().start();
    add(&repository, 2);
    server.wait_for_state("truth", "2", "READY");
    eventually("version 1 is let go", || server.indexed("truth", "1").is_none().then_some(()));
    drop(server);
    let aside = repository.beside("aside");
    fs::rename(repository.path(), &aside).unwrap();
    let server = serve(&repository).remembering().start();
    let doubled = answer(&server, &infer("truth")).ok();
    assert_eq!(doubled.header("x-tidegate-version"), Some("2"));
    let shown = server.admin("/api/v1/models/truth").ok().json();
    assert!(shown["problem"].as_str().unwrap().contains("cannot be read"), "{shown}");
    fs::rename(&aside, repository.path()).unwrap();
    add(&repository, 3);
    eventually("the repository is back", || {
        (version(&server).as_deref() == Some("3")).then_some(())
    });
}

#[test]
fn without_a_place_for_state_decisions_hold_until_the_end() {
    let repository = truth(&[1, 2]);
    let server = serve(&repository).set("STATE__PATH", "/proc/nowhere").start();
    let report = operate(&server, "rollback", &json!({})).ok().json();
    assert_eq!((&report["version"], &report["durable"]), (&json!(1), &json!(false)));
    assert_eq!(version(&server).as_deref(), Some("1"));
    server.wait_until_said("no state is kept");
    server.wait_until_said("outcomes are joined to predictions in memory only");
}
