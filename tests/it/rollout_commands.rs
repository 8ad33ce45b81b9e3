//! `tidegate rollout` and `tidegate freeze` against the real server: what they print, write and exit with.

use std::{
    io::Read as _,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
};

use serde_json::{Value, json};

use crate::{
    cli::tidegate,
    http::{Connection, Request},
    models::{INT64, declared, graph, integers, model, node},
    repository::Repository,
    server::{Launch, Server},
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

/// A server whose `pick` has version 1, and a version 2 that fails one of ten requests.
fn server() -> (Repository, Server) {
    let repository = Repository::empty();
    repository.add_bytes("pick", "1", &picking(100));
    repository.add_bytes("pick", "2", &picking(90));
    let server = Launch::of(&repository).start();
    let pin = Request::post_json("/api/v1/models/pick/rollback", &json!({"version": 1}));
    Connection::open(server.admin).ask(&pin).ok();
    (repository, server)
}

/// Runs a command: its exit code, and what it said to both ends.
fn run(server: &Server, arguments: &[&str]) -> (Option<i32>, String) {
    let admin = server.admin.to_string();
    let output = tidegate(&[arguments, &["--admin", &admin]].concat(), "");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

/// Sends requests while something is done.
fn under_load<T>(server: &Server, work: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut connection = server.connect();
            let mut pick = 0;
            while !over.load(Relaxed) {
                pick = (pick + 37) % 100;
                let input = json!({"name": "x", "shape": [1], "datatype": "INT64", "data": [pick]});
                connection.ask(&Request::post_json(&infer("pick"), &json!({ "inputs": [input] })));
            }
        });
        let value = work();
        over.store(true, Relaxed);
        value
    })
}

const QUICK: &str = r#"
warmup_requests = 5
steps = [{ weight = "30%", min_duration = "0s", min_requests = 20 }]
"#;

#[test]
fn a_bad_candidate_is_started_watched_explained_and_replayed() {
    let (repository, server) = server();
    let file = |name: &str| repository.beside(name).display().to_string();
    let policy = file("quick.toml");
    std::fs::write(&policy, QUICK).unwrap();
    let (code, said) = under_load(&server, || {
        run(
            &server,
            &["rollout", "start", "pick", "2", "--policy", &policy, "--wait", "--timeout", "1m"],
        )
    });
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("rolled back, step 1 of 1: gate errors: "), "{said}");
    // The newest rollout of a model is meant by its name.
    let (code, shown) = run(&server, &["rollout", "show", "pick", "--json"]);
    let id = serde_json::from_str::<Value>(&shown).unwrap()["id"].as_str().unwrap().to_owned();
    assert_eq!(code, Some(0));
    assert_eq!(run(&server, &["rollout", "watch", &id, "--wait"]).0, Some(1));
    assert_eq!(run(&server, &["rollout", "watch", &id]).0, Some(0));
    let (_, listed) = run(&server, &["rollout", "list"]);
    assert!(listed.contains("rolled back") && listed.contains("1 of 1"), "{listed}");

    let (_, page) = run(&server, &["rollout", "show", &id]);
    assert!(page.contains("Gate `errors` rolled it back at step 1 of 1"), "{page}");
    let (html, markdown) = (file("why.html"), file("why.md"));
    run(&server, &["rollout", "show", "pick", "--html", &html, "--markdown", &markdown]);
    let html = std::fs::read_to_string(html).unwrap();
    assert!(html.contains("<svg") && html.ends_with("</html>\n"), "{html}");
    assert_eq!(std::fs::read_to_string(markdown).unwrap(), page);

    // The same page from the API.
    let path = format!("/api/v1/rollouts/{id}/why");
    let answer = server.admin(&path).ok();
    assert_eq!(answer.header("content-type"), Some("text/markdown; charset=utf-8"));
    assert_eq!(answer.text(), page);
    let request = Request::get(&path).header("accept", "text/html,application/xhtml+xml");
    assert_eq!(Connection::open(server.admin).ask(&request).ok().text(), html);

    let evidence = file("evidence.json");
    assert_eq!(run(&server, &["rollout", "evidence", "pick", "-o", &evidence]).0, Some(0));
    let replayed = tidegate(&["rollout", "replay", &evidence], "");
    assert_eq!(replayed.status.code(), Some(0), "{replayed:?}");
    let bundle = std::fs::read_to_string(&evidence).unwrap();
    let other = bundle.replacen("\"step\":0", "\"step\":1", 1);
    assert_ne!(bundle, other);
    let replayed = tidegate(&["rollout", "replay", "-", "--json"], &other);
    assert_eq!(replayed.status.code(), Some(1), "{replayed:?}");
    let differences: Value = serde_json::from_slice(&replayed.stdout).unwrap();
    assert!(!differences["differences"].as_array().unwrap().is_empty());

    // The same files do not start again so soon, unless somebody insists.
    let again = ["rollout", "start", "pick", "2", "--wait"];
    let (code, said) = run(&server, &again);
    assert_eq!(code, Some(4), "{said}");
    assert_eq!(run(&server, &again[..4]).0, Some(1));
    let (code, said) = run(&server, &["rollout", "start", "pick", "2", "--force"]);
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn a_rollout_is_steered_and_everything_frozen() {
    let (repository, server) = server();
    let policy = repository.beside("wrong.json").display().to_string();
    for (wrong, parts) in [
        (r#"{"steps": [{"wieght": 0.1}]}"#, ["wieght", "`weight`"]),
        (r#"{"steps": [{"weight": 0.9}], "alpha": 2}"#, ["2 problems\n  ", "alpha"]),
        ("steps = [\n", ["is not TOML", "wrong.toml"]),
    ] {
        let file =
            if wrong.starts_with('{') { policy.clone() } else { policy.replace("json", "toml") };
        std::fs::write(&file, wrong).unwrap();
        let (code, said) = run(&server, &["rollout", "start", "pick", "2", "--policy", &file]);
        assert_ne!(code, Some(0), "{said}");
        assert!(parts.iter().all(|part| said.contains(part)), "{parts:?}: {said}");
    }
    let (code, said) = run(&server, &["rollout", "pause", "pick"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("tidegate rollout start pick"), "{said}");

    assert_eq!(run(&server, &["freeze", "--reason", "incident"]).0, Some(0));
    assert!(run(&server, &["freeze", "status"]).1.contains("incident"));
    assert_eq!(run(&server, &["rollout", "start", "pick", "2", "--wait"]).0, Some(4));
    let (_, thawed) = run(&server, &["freeze", "--off"]);
    assert!(thawed.contains("not frozen"), "{thawed}");

    let (code, said) =
        run(&server, &["rollout", "start", "pick", "2", "--wait", "--timeout", "100ms"]);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("the rollout goes on (canary)"), "{said}");
    let (code, said) = run(&server, &["rollout", "pause", "pick", "--reason", "lunch"]);
    assert_eq!(
        (code, said.contains("paused") && said.contains("lunch")),
        (Some(0), true),
        "{said}"
    );
    let (code, said) = run(&server, &["rollout", "approve", "pick"]);
    assert_eq!(code, Some(1), "{said}");
    assert_eq!(run(&server, &["rollout", "resume", "pick"]).0, Some(0));

    // As `rollout watch pick | head -1` does: the reader leaves, and nothing more is to be told.
    let mut watch = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(["rollout", "watch", "pick", "--admin", &server.admin.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = watch.stdout.take().unwrap();
    assert!(output.read(&mut [0; 4096]).unwrap() > 0);
    drop(output);
    assert_eq!(watch.wait().unwrap().code(), Some(0));
    let (code, said) = run(&server, &["rollout", "abort", "pick", "--reason", "enough"]);
    assert_eq!((code, said.contains("operator: enough")), (Some(0), true), "{said}");
    assert_eq!(run(&server, &["rollout", "watch", "nobody"]).0, Some(2));
}

#[test]
fn the_demonstration_ends_with_a_rollback_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/demo/demo.py");
    let python = std::env::var("TIDEGATE_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let output = Command::new(python)
        .args([demo, env!("CARGO_BIN_EXE_tidegate"), "200"])
        .env("TMPDIR", folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(said.contains("Gate `errors` rolled it back") && said.contains("0 failed"), "{said}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
