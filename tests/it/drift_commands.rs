//! `tidegate drift` against the real server: rows as the reference has them, then others, and what is said of them.

use std::{
    fs,
    io::Read as _,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::{
    cli::tidegate,
    http::Request,
    repository::Repository,
    server::{Launch, Server, eventually},
    tensors::infer,
};

/// Rows as `iris` gets them, from a generator with a fixed seed: four lengths, the last one moved up by `shift`.
struct Flowers {
    state: u64,
}

impl Flowers {
    fn next(&mut self) -> f64 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        f64::from(u32::try_from(self.state >> 32).unwrap()) / f64::from(u32::MAX)
    }

    fn row(&mut self, shift: f64) -> [f64; 4] {
        // The sum of three is round enough.
        let mut value = |mean: f64| mean + self.next() + self.next() + self.next() - 1.5;
        [value(5.8), value(3.0), value(3.7), value(1.2) + shift]
    }
}

/// A server over `iris` with a profile of 3,000 such rows.
fn server() -> (Repository, Server) {
    let repository = Repository::of(&["iris"]);
    let mut flowers = Flowers { state: 1 };
    let mut rows = "sepal_length,sepal_width,petal_length,petal_width\n".to_owned();
    for _ in 0..3_000 {
        let row = flowers.row(0.0).map(|value| value.to_string());
        rows += &(row.join(",") + "\n");
    }
    let file = repository.beside("train.csv");
    fs::write(&file, rows).unwrap();
    let profile = repository.path().join("iris/1/profile.json");
    let (file, profile) = (file.display().to_string(), profile.display().to_string());
    let output = tidegate(&["profile", &file, "-o", &profile], "");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let server = Launch::of(&repository).set("DRIFT__LEARN_ROWS", "1000").start();
    (repository, server)
}

/// Has so many rows predicted.
fn predict(server: &Server, rows: usize, shift: f64, seed: u64) {
    let mut flowers = Flowers { state: seed };
    let mut connection = server.connect();
    for _ in 0..rows / 100 {
        let data: Vec<f64> = (0..100).flat_map(|_| flowers.row(shift)).collect();
        let input = json!({"name": "input", "shape": [100, 4], "datatype": "FP32", "data": data});
        connection.ask(&Request::post_json(&infer("iris"), &json!({"inputs": [input]}))).ok();
    }
}

/// Runs a command: its exit code, and what it said to both ends.
fn run(server: &Server, arguments: &[&str]) -> (Option<i32>, String) {
    let admin = server.admin.to_string();
    let output = tidegate(&[&["drift"], arguments, &["--admin", &admin]].concat(), "");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

#[track_caller]
fn has(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "no `{part}` in:\n{said}");
    }
}

#[test]
fn drift_is_shown_watched_explained_and_drawn() {
    let (repository, server) = server();
    predict(&server, 2_000, 0.0, 2);
    let (code, said) = run(&server, &["status", "iris"]);
    assert_eq!(code, Some(0), "{said}");
    has(&said, &["iris  version 1  watching", "at most one false alarm in 30 days"]);
    has(&said, &["compared with profile.json, 3000 rows", "petal_width", "output:label"]);
    let (code, said) = run(&server, &["status"]);
    assert_eq!((code, said.contains("watching")), (Some(0), true), "{said}");
    let (code, said) = run(&server, &["show", "iris", "petal_width", "--window", "10m"]);
    assert_eq!(code, Some(0), "{said}");
    has(&said, &["petal_width  numeric input of iris, version 1  watching", "last 10 minutes"]);

    let mut watch = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(["drift", "watch", "iris", "--admin", &server.admin.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let told = Arc::new(Mutex::new(String::new()));
    let (heard, mut output) = (Arc::clone(&told), watch.stdout.take().unwrap());
    let reader = thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = output.read(&mut bytes) {
            heard.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
    });
    let is_told = |part: &str| told.lock().unwrap().contains(part).then_some(());
    eventually("the view begins", || is_told("iris version 1: watching"));

    predict(&server, 2_000, 2.0, 3);
    eventually("the alarm is told", || is_told("page: petal_width "));
    kill_process(Pid::from_child(&watch), Signal::TERM).unwrap();
    assert_eq!(watch.wait().unwrap().code(), Some(0));
    reader.join().unwrap();
    has(&told.lock().unwrap(), &["iris version 1: drifting", " since 20", "PSI "]);

    // As `drift watch iris | head -1` does: the reader leaves, and nothing more is to be told.
    let mut watch = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(["drift", "watch", "iris", "--admin", &server.admin.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = watch.stdout.take().unwrap();
    assert!(output.read(&mut [0; 4096]).unwrap() > 0);
    drop(output);
    assert_eq!(watch.wait().unwrap().code(), Some(0));

    let (code, said) = run(&server, &["status", "iris", "--all"]);
    assert_eq!(code, Some(1), "{said}");
    has(&said, &["drifting", "alarms\n page ", " page petal_width ", "tidegate drift show iris "]);
    let table = said.lines().skip_while(|line| !line.starts_with("feature")).nth(1).unwrap();
    // The outputs move with it, and some of them further.
    assert!(!table.starts_with("sepal_") && table.contains('█'), "the worst is first: {said}");
    let (code, said) = run(&server, &["status"]);
    assert_eq!((code, said.contains("drifting")), (Some(1), true), "{said}");
    let (code, said) = run(&server, &["status", "iris", "--json"]);
    let report: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &report["status"]), (Some(1), &json!("drifting")));
    let (code, said) = run(&server, &["status", "--json"]);
    let reports: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &reports["models"][0]["version"]), (Some(1), &json!("1")));

    let picture = repository.beside("drift.svg").display().to_string();
    let (code, said) = run(&server, &["show", "iris", "petal_width", "--plot", &picture]);
    assert_eq!((code, said.contains(&picture)), (Some(0), true), "{said}");
    let picture = fs::read_to_string(picture).unwrap();
    has(&picture, &["<svg ", "petal_width of iris, version 1: PSI ", "</svg>\n", "class=\"path\""]);
    let (_, said) = run(&server, &["show", "iris", "petal_width"]);
    has(&said, &["page: ", "drifting", " x", "as a picture: tidegate drift show iris petal_width"]);
    // Categories are tested by exact counts; of numbers a sample is, in which those that moved may be few.
    let outputs = ["test", "iris", "--include", "outputs", "--drift-type", "feature"];
    let (code, said) = run(&server, &outputs);
    assert_eq!(code, Some(1), "{said}");
    has(&said, &["  drift\n", " of 4 features differ, each by itself at p < 0.05"]);
    let label = said.lines().find(|line| line.starts_with("output:label ")).unwrap();
    assert!(label.ends_with(" drift"), "{said}");
    let (code, said) = run(&server, &["test", "iris", "--include", "all", "--json"]);
    let tested: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &tested["features"][3]), (Some(1), &json!("petal_width")), "{said}");
    let (_, said) = run(&server, &["show", "iris", "output:label", "--json"]);
    let shown: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(shown["feature"]["name"], "output:label");
}

#[test]
fn mistakes_are_no_drift() {
    let (_repository, server) = server();
    for (arguments, parts) in [
        (&["status", "irsi"][..], &["no such model", "tidegate models list"][..]),
        (&["status", "iris", "--version", "newest"], &["no version `newest`"]),
        (&["status", "--version", "7"], &["needs a model"]),
        (&["status", "iris", "--window", "2d"], &["from 1m to 24h"]),
        (&["show", "iris", "petal_widht"], &["did you mean `petal_width`?"]),
        (&["show", "iris", "petal_width", "--plot", "/nowhere/x.svg"], &["/nowhere/x.svg"]),
        (&["watch", "irsi"], &["no such model"]),
        (&["test", "irsi"], &["no such model"]),
        (&["test", "iris"], &["nothing to test", "tidegate drift status iris"]),
        (&["test", "iris", "--p-value", "5"], &["between 0 and 1"]),
    ] {
        let (code, said) = run(&server, arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {said}");
        has(&said, parts);
    }
}
