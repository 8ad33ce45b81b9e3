//! Outcomes come back: they join their predictions, once, show how good a version is, and outlive the process.

use std::{
    collections::BTreeMap,
    io::Write as _,
    process::{Command, Stdio},
};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    cli::tidegate,
    clients::python,
    http::{Connection, Request, Response},
    models::{INT64, declared, graph, integers, model, node},
    repository::Repository,
    server::{Launch, PATIENCE, Server},
    tensors::infer,
};

const MODEL: &str = "judged";

/// Answers each number with the class that a table has for it.
pub(crate) fn classes(of: impl Fn(i64) -> i64) -> Vec<u8> {
    let values: Vec<i64> = (0..100).map(of).collect();
    model(graph(
        vec![node("Gather", &["table", "x"], &["label"])],
        vec![integers("table", INT64, &[100], &values)],
        vec![declared("x", INT64, &[-1])],
        vec![declared("label", INT64, &[-1])],
    ))
}

/// A prediction for each of these numbers: its name.
pub(crate) fn predict(connection: &mut Connection, model: &str, numbers: &[i64]) -> String {
    let body = json!({
        "inputs": [{"name": "x", "shape": [numbers.len()], "datatype": "INT64", "data": numbers}]
    });
    let answer = connection.ask(&Request::post_json(&infer(model), &body));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.header("x-tidegate-prediction-id").unwrap().to_owned()
}

fn post(server: &Server, outcomes: &Value) -> Response {
    server.post(&format!("/v2/models/{MODEL}/feedback"), &json!({ "outcomes": outcomes }))
}

/// The status of each outcome, shortened to one word.
fn statuses(answer: &Value) -> Vec<String> {
    let results = answer["results"].as_array().unwrap();
    results.iter().map(|result| result["status"].as_str().unwrap().to_owned()).collect()
}

fn quality(server: &Server) -> Value {
    server.admin(&format!("/api/v1/models/{MODEL}/quality?window=1h")).ok().json()
}

fn serving() -> (Repository, Server) {
    let repository = Repository::empty();
    repository.add_bytes(MODEL, "1", &classes(|x| x % 2));
    let server = Launch::of(&repository).remembering().start();
    (repository, server)
}

#[test]
fn an_outcome_joins_its_prediction_once_and_is_answered_by_the_protocol() {
    let (_repository, server) = serving();
    let mut connection = server.connect();
    let name = predict(&mut connection, MODEL, &[1]);
    let batch = predict(&mut connection, MODEL, &[1, 2, 3]);
    assert_eq!(name.len(), 32);
    let stranger = name.replace(&name[24..], "00000000");
    let outcomes = json!([
        {"prediction_id": name, "label": 1},
        {"prediction_id": batch, "row": 1, "label": 1, "at": "2026-01-01T00:00:00Z"},
        {"prediction_id": batch, "row": 2, "label": "1", "prediction": 1},
        {"prediction_id": name, "label": 1},
        {"prediction_id": name, "label": 0},
        {"prediction_id": batch, "row": 3, "label": 0},
        {"prediction_id": batch, "row": 0, "label": 0.5},
        {"prediction_id": batch, "row": 0, "value": 0.5},
        {"prediction_id": batch, "row": 0, "label": 1, "prediction": 0},
        {"prediction_id": batch, "row": 0, "label": "malignant"},
        {"prediction_id": batch},
        {"prediction_id": stranger, "label": 1},
        {"prediction_id": "no name", "label": 1},
    ]);
    let answer = post(&server, &outcomes).ok().json();
    let expected = [
        "joined",
        "joined",
        "joined",
        "duplicate",
        "duplicate",
        "invalid",
        "invalid",
        "invalid",
        "invalid",
        "invalid",
        "invalid",
        "unknown",
        "unknown",
    ];
    assert_eq!(statuses(&answer), expected, "{answer:#}");
    let details = &answer["results"];
    assert_eq!(details[3].get("detail"), None, "the same again: {answer:#}");
    assert_eq!(details[4]["detail"], "another outcome was joined before; the first stays");
    let sums = ["joined", "late", "unknown", "duplicate", "invalid"].map(|word| &answer[word]);
    assert_eq!(sums, [3, 0, 2, 2, 6].map(|sum| json!(sum)).each_ref());
    let shown = &quality(&server)["versions"][0];
    assert_eq!((&shown["version"], &shown["arm"]), (&json!("1"), &json!("baseline")));
    assert_eq!((&shown["served"], &shown["labelled"]), (&json!(4), &json!(3)), "{shown:#}");
    assert_eq!(shown["metrics"]["accuracy"]["value"], 2.0 / 3.0, "{shown:#}");
}

#[test]
fn what_is_no_outcome_is_refused_with_what_would_be_right() {
    let repository = Repository::empty();
    repository.add_bytes(MODEL, "1", &classes(|x| x));
    repository.add_bytes("silent", "1", &classes(|x| x));
    let off = r#"{"enabled": false}"#;
    let server = Launch::of(&repository).set("MODELS__silent__FEEDBACK", off).start();
    let check = |model: &str, body: &Value, status: u16, part: &str| {
        let answer = server.post(&format!("/v2/models/{model}/feedback"), body);
        assert_eq!(answer.status, status, "{}", answer.text());
        let error = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(error.contains(part), "{error}");
    };
    check(MODEL, &json!({"outcome": []}), 400, "did you mean `outcomes`?");
    let misspelt = json!({"outcomes": [{"prediction_id": "x", "lable": 1}]});
    check(MODEL, &misspelt, 400, "unknown field `outcomes[0].lable`: did you mean `label`?");
    check(MODEL, &json!({"outcomes": vec![0; 10_001]}), 400, "more than 10000 outcomes");
    check("nobody", &json!({"outcomes": []}), 404, "'nobody' is not found");
    check("silent", &json!({"outcomes": []}), 400, "[models.silent.feedback]");
    assert_eq!(server.get(&format!("/v2/models/{MODEL}/feedback")).status, 405);
    assert_eq!(post(&server, &json!([])).ok().json()["joined"], 0);
    let window = server.admin(&format!("/api/v1/models/{MODEL}/quality?window=5"));
    assert_eq!(window.status, 400, "{}", window.text());
    assert_eq!(server.admin("/api/v1/models/nobody/quality").status, 404);
}

#[test]
fn quality_is_shown_by_page_command_and_metrics() {
    let (_repository, server) = serving();
    let mut connection = server.connect();
    // Predictions alternate; the labels say 1 for all but every fourth.
    let outcomes: Vec<Value> = (0..80)
        .map(|x| {
            let label = i64::from(x % 4 != 0);
            json!({"prediction_id": predict(&mut connection, MODEL, &[x]), "label": label})
        })
        .collect();
    let answer = post(&server, &json!(outcomes[..60])).ok().json();
    assert_eq!(answer["joined"], 60, "{answer:#}");
    let shown = &quality(&server)["versions"][0];
    assert_eq!(shown["coverage"], 0.75, "{shown:#}");
    let metrics = &shown["metrics"];
    // Of 60: 30 predicted and labelled 1, 15 predicted 0 and labelled 1, 15 both 0.
    assert_eq!(metrics["accuracy"]["value"], 0.75);
    assert_eq!(
        (&metrics["precision"]["value"], &metrics["recall"]["value"]),
        (&json!(1.0), &json!(30.0 / 45.0))
    );
    let limits = |metric: &str| {
        let limit = |name: &str| metrics[metric][name].as_f64().unwrap();
        (limit("lower"), limit("upper"))
    };
    let (lower, upper) = limits("accuracy");
    assert!(lower > 0.5 && lower < 0.75 && upper > 0.75 && upper < 0.95, "{lower} {upper}");
    assert!(shown["delay_seconds"]["p50"].as_f64().unwrap() < 60.0, "{shown:#}");
    let page = server.admin("/metrics").ok().text();
    for line in [
        r#"tidegate_feedback_total{model="judged",version="1",arm="baseline",status="joined"} 60"#,
        r#"tidegate_quality{model="judged",version="1",arm="baseline",metric="accuracy",kind="realised"} 0.75"#,
        r#"tidegate_quality_coverage_ratio{model="judged",version="1",arm="baseline"} 0.75"#,
    ] {
        assert!(page.contains(line), "{line} in\n{page}");
    }
    let admin = server.admin.to_string();
    let told = tidegate(&["quality", MODEL, "--admin", &admin], "");
    let told = String::from_utf8(told.stdout).unwrap();
    assert!(told.contains("outcomes of 60 of 80 rows (75.00 %)"), "{told}");
    assert!(told.contains("accuracy") && told.contains("0.7500"), "{told}");
    let told = tidegate(&["quality", MODEL, "--window", "7d", "--json", "--admin", &admin], "");
    let told: Value = serde_json::from_slice(&told.stdout).unwrap();
    assert_eq!(
        (&told["window_seconds"], &told["versions"][0]["labelled"]),
        (&json!(604_800.0), &json!(60))
    );
}

#[test]
fn an_acknowledged_outcome_outlives_a_killed_process_and_counts_once() {
    let repository = Repository::empty();
    repository.add_bytes(MODEL, "1", &classes(|x| x % 2));
    let mut ledger: BTreeMap<String, i64> = BTreeMap::new();
    let mut waiting: Vec<String> = Vec::new();
    for round in 0..4 {
        let server = Launch::of(&repository).remembering().start();
        let known: Vec<Value> = ledger
            .iter()
            .map(|(name, label)| json!({"prediction_id": name, "label": label}))
            .collect();
        let answer = post(&server, &json!(known)).ok().json();
        assert_eq!(answer["duplicate"], ledger.len(), "round {round}: {answer:#}");
        // What was predicted and flushed before the kill is joined after it.
        let outcomes: Vec<Value> =
            waiting.drain(..).map(|name| json!({"prediction_id": name, "label": 1})).collect();
        let answer = post(&server, &json!(outcomes)).ok().json();
        for (outcome, status) in outcomes.iter().zip(statuses(&answer)) {
            assert_eq!(status, "joined", "round {round}");
            ledger.insert(outcome["prediction_id"].as_str().unwrap().to_owned(), 1);
        }
        let mut connection = server.connect();
        for x in 0..25 {
            let name = predict(&mut connection, MODEL, &[x]);
            let outcome = json!([{"prediction_id": name, "label": x % 2}]);
            if x < 5 {
                waiting.push(name);
            } else {
                assert_eq!(post(&server, &outcome).ok().json()["joined"], 1);
                ledger.insert(name, x % 2);
            }
        }
        let labelled = quality(&server)["versions"][0]["labelled"].clone();
        assert_eq!(labelled, ledger.len(), "round {round}");
        server.signal(Signal::KILL);
        assert_eq!(server.ended_by(PATIENCE), 9);
    }
    let server = Launch::of(&repository).remembering().start();
    let shown = quality(&server)["versions"][0].clone();
    assert_eq!(
        (&shown["labelled"], &shown["served"]),
        (&json!(ledger.len()), &json!(100)),
        "{shown:#}"
    );
    // An orderly end keeps everything, too.
    let mut server = server;
    server.terminate();
    assert_eq!(server.exit_code(PATIENCE), 0);
    let server = Launch::of(&repository).remembering().start();
    assert_eq!(quality(&server)["versions"][0]["labelled"], ledger.len());
}

#[test]
fn predictions_of_an_unloaded_model_are_still_judged() {
    let (_repository, server) = serving();
    let name = predict(&mut server.connect(), MODEL, &[1]);
    let path = format!("/v2/repository/models/{MODEL}/unload");
    server.post(&path, &json!({})).ok();
    let outcome = json!([{"prediction_id": name, "label": 1}]);
    assert_eq!(post(&server, &outcome).ok().json()["joined"], 1);
    assert_eq!(post(&server, &outcome).ok().json()["duplicate"], 1);
    assert_eq!(quality(&server)["versions"][0]["labelled"], 1);
}

#[test]
fn the_example_sends_outcomes() {
    let (_repository, server) = serving();
    let mut connection = server.connect();
    let mut lines = String::new();
    for x in 0..3 {
        let outcome = json!({"prediction_id": predict(&mut connection, MODEL, &[x]), "label": 1});
        lines += &format!("{outcome}\n");
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/feedback.py");
    let url = format!("http://{}", server.http);
    let send = |lines: &str| {
        let mut child = Command::new(python())
            .args([script, &url, MODEL])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_default(), said)
    };
    assert_eq!(send(&lines), (Some(0), json!({"joined": 3}), String::new()));
    assert_eq!(send(&lines), (Some(0), json!({"duplicate": 3}), String::new()));
    let (code, counts, said) = send(r#"{"prediction_id": "nobody", "label": 1}"#);
    assert_eq!((code, counts), (Some(1), json!({"unknown": 1})));
    assert!(said.starts_with("nobody unknown no prediction of this server"), "{said}");
}
