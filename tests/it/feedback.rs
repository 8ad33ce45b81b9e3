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
    server::{Launch, PATIENCE, Server, eventually},
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
        r#"tidegate_quality{model="judged",version="1",arm="baseline",metric="accuracy"} 0.75"#,
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

#[test]
fn scores_tell_what_to_expect_before_any_outcome() {
    let repository = Repository::of(&["breast_cancer"]);
    for file in ["config.pbtxt", "labels.txt"] {
        let path = format!("{}/models/breast_cancer/{file}", env!("CARGO_MANIFEST_DIR"));
        repository.describe("breast_cancer", file, &std::fs::read_to_string(path).unwrap());
    }
    let server = Server::over(&repository);
    let mut connection = server.connect();
    let rows = vec![1.0; 60];
    let body = json!({"inputs": [
        {"name": "input", "shape": [2, 30], "datatype": "FP32", "data": rows}
    ]});
    let path = infer("breast_cancer");
    let mut names: Vec<String> = Vec::new();
    for _ in 0..5 {
        let answer = connection.ask(&Request::post_json(&path, &body));
        assert_eq!(answer.status, 200, "{}", answer.text());
        names.push(answer.header("x-tidegate-prediction-id").unwrap().to_owned());
    }
    let page = || {
        let shown = server.admin("/api/v1/models/breast_cancer/quality").ok().json();
        shown["versions"][0].clone()
    };
    let shown = eventually("predictions are seen", || {
        let shown = page();
        (shown["served"] == 10).then_some(shown)
    });
    let accuracy = &shown["metrics"]["accuracy"];
    assert_eq!((&shown["labelled"], &accuracy["value"]), (&json!(0), &Value::Null), "{shown:#}");
    let estimated = accuracy["estimated"].as_f64().unwrap();
    assert!((0.5..=1.0).contains(&estimated), "{shown:#}");
    let outcomes: Vec<Value> = names
        .iter()
        .enumerate()
        .map(|(n, name)| {
            let label = if n == 0 { "malignant" } else { "benign" };
            json!({"prediction_id": name, "row": 1, "label": label})
        })
        .collect();
    let path = "/v2/models/breast_cancer/feedback";
    let answer = server.post(path, &json!({ "outcomes": outcomes })).ok().json();
    assert_eq!(answer["joined"], 5, "{answer:#}");
    let shown = page();
    assert_eq!(shown["coverage"], 0.5, "{shown:#}");
    for metric in ["accuracy", "recall", "brier", "log_loss"] {
        assert!(shown["metrics"][metric]["value"].is_number(), "{metric}: {shown:#}");
    }
}

#[test]
fn a_rise_of_errors_is_told_with_its_object() {
    let repository = Repository::empty();
    repository.add_bytes(MODEL, "1", &classes(|x| x % 2));
    let policy = r#"{"accuracy_min": 0.9}"#;
    let launch =
        || Launch::of(&repository).set("MODELS__judged__FEEDBACK", policy).remembering().start();
    let server = launch();
    let mut connection = server.connect();
    let mut outcomes = Vec::new();
    for x in 0..600 {
        let label = if x < 300 { x % 2 } else { 0 };
        outcomes.push(json!({
            "prediction_id": predict(&mut connection, MODEL, &[x % 100]), "label": label
        }));
    }
    let answer = post(&server, &json!(outcomes)).ok().json();
    assert_eq!(answer["joined"], 600);
    let event = dropped(&server, 0);
    let about = &event["performance"];
    assert_eq!((&event["model"], &event["version"]), (&json!(MODEL), &json!(1)), "{event:#}");
    assert_eq!(about["by"], "change", "{event:#}");
    let [before, after] = ["before", "after"].map(|it| about[it].as_f64().unwrap());
    assert!(before < 0.2 && after > before, "{event:#}");
    assert!(about["quality"]["labelled"].as_u64().unwrap() >= 300, "{event:#}");
    assert_eq!((&about["cleared_at"], &about["standing"]), (&Value::Null, &Value::Null));
    server.wait_until_said("predictions became worse: mean error rose from 0.");

    // It stands through a kill, and is over once errors are as few as before.
    server.signal(Signal::KILL);
    assert_eq!(server.ended_by(PATIENCE), 9);
    let server = launch();
    let event = dropped(&server, 0);
    let again = &event["performance"];
    assert_eq!((&again["standing"], &again["cleared_at"]), (&json!(true), &Value::Null));
    assert_eq!(again["raised_at"], about["raised_at"], "{event:#}");
    let mut connection = server.connect();
    let right = |x: i64| json!({"prediction_id": predict(&mut connection, MODEL, &[x % 100]), "label": x % 2});
    let outcomes: Vec<Value> = (0..200).map(right).collect();
    assert_eq!(post(&server, &json!(outcomes)).ok().json()["joined"], 200);
    let over = &dropped(&server, 1)["performance"];
    assert!(over["cleared_at"].is_string() && over["raised_at"] == about["raised_at"], "{over:#}");
}

/// The event of a drop of performance, after so many others.
fn dropped(server: &Server, others: usize) -> Value {
    let told = "event: performance.dropped";
    let text = Connection::open(server.admin).listen(&Request::get("/api/v1/events"), |text| {
        text.split(told).nth(others + 1).is_some_and(|it| it.contains("\n\n"))
    });
    let event = text.split(told).nth(others + 1).unwrap_or_else(|| panic!("no drop in {text}"));
    let data = event.lines().find_map(|line| line.strip_prefix("data: "));
    serde_json::from_str(data.unwrap()).unwrap()
}

/// `tried` with these two versions, of which the first serves.
fn two(baseline: &[u8], candidate: &[u8]) -> Server {
    let repository = Repository::empty();
    repository.add_bytes(MODEL, "1", baseline);
    repository.add_bytes(MODEL, "2", candidate);
    let server = Launch::of(&repository).start();
    let path = format!("/api/v1/models/{MODEL}/rollback");
    let request = Request::post_json(&path, &json!({"version": 1}));
    Connection::open(server.admin).ask(&request).ok();
    server
}

/// Runs a rollout and brings the outcome of each request that `tells` of its number and arm; ends with the rollout, or
/// after so many requests.
fn roll(server: &Server, requests: i64, tells: impl Fn(i64, &str) -> Option<i64>) -> Value {
    let policy = json!({
        "steps": [{"weight": 0.3, "min_duration": "0s", "min_requests": 2000}],
        "warmup_requests": 5,
        "gates": {"slow": {"mode": "off"}},
    });
    let body = json!({"model": MODEL, "candidate": 2, "policy": policy});
    let request = Request::post_json("/api/v1/rollouts", &body);
    let started = Connection::open(server.admin).ask(&request);
    assert_eq!(started.status, 201, "{}", started.text());
    let id = started.json()["id"].as_str().unwrap().to_owned();
    let show = || server.admin(&format!("/api/v1/rollouts/{id}")).ok().json();
    let is_over = |shown: &Value| shown["state"] == "rolled_back" || shown["state"] == "promoted";
    let mut connection = server.connect();
    for first in (0..requests).step_by(50) {
        let mut outcomes = Vec::new();
        for x in first..first + 50 {
            let body = json!({
                "inputs": [{"name": "x", "shape": [1], "datatype": "INT64", "data": [x % 100]}]
            });
            let answer = connection.ask(&Request::post_json(&infer(MODEL), &body));
            let name = answer.header("x-tidegate-prediction-id").unwrap();
            if let Some(label) = tells(x, answer.header("x-tidegate-arm").unwrap()) {
                outcomes.push(json!({"prediction_id": name, "label": label}));
            }
        }
        assert_eq!(post(server, &json!(outcomes)).ok().json()["joined"], outcomes.len());
        let shown = show();
        if is_over(&shown) {
            return shown;
        }
    }
    show()
}

#[test]
fn a_candidate_that_predicts_the_other_class_is_rolled_back_by_its_outcomes() {
    let server = two(&classes(|x| x % 2), &classes(|x| 1 - x % 2));
    let shown = roll(&server, 4000, |x, _| Some(x % 2));
    assert_eq!(
        (&shown["state"], &shown["gate"]),
        (&json!("rolled_back"), &json!("wrong_label")),
        "{shown:#}"
    );
    let quality = quality(&server);
    let arm = |arm: &str| {
        let versions = quality["versions"].as_array().unwrap();
        versions.iter().find(|it| it["arm"] == arm).unwrap()["metrics"]["accuracy"]["value"].clone()
    };
    assert_eq!((arm("baseline"), arm("canary")), (json!(1.0), json!(0.0)), "{quality:#}");
    let id = shown["id"].as_str().unwrap();
    let bundle = server.admin(&format!("/api/v1/rollouts/{id}/evidence")).ok().json();
    assert!(tidegate::rollout::replay(&bundle).unwrap().is_equal(), "{bundle:#}");
}

#[test]
fn a_candidate_whose_outcomes_stay_away_is_rolled_back() {
    let server = two(&classes(|x| x % 2), &classes(|x| x % 2));
    let shown = roll(&server, 4000, |x, arm| (arm == "baseline").then_some(x % 2));
    assert_eq!(
        (&shown["state"], &shown["gate"]),
        (&json!("rolled_back"), &json!("fewer_outcomes")),
        "{shown:#}"
    );
}

#[test]
fn a_candidate_with_other_outputs_is_shown_and_goes_on() {
    let server = two(&classes(|x| i64::from(x % 8 == 0)), &classes(|x| i64::from(x % 3 == 0) * 2));
    let shown = roll(&server, 3000, |x, _| (x % 50 == 0).then_some(i64::from(x % 100 == 50)));
    assert_ne!(shown["state"], "rolled_back", "{shown:#}");
    let of = |name: &str| {
        let gates = shown["gates"].as_array().unwrap();
        gates.iter().find(|gate| gate["gate"] == name).unwrap().clone()
    };
    let gate = of("output_shift");
    assert_eq!((&gate["decides"], &gate["verdict"]), (&json!(false), &json!("fail")), "{gate:#}");
    let moved = gate["outputs"]["moved"].as_str().unwrap();
    assert!(moved.starts_with("outputs moved: class 2 is 3"), "{moved}");
    assert!(moved.ends_with(" of the candidate's answers and 0 % of the baseline's"), "{moved}");
    let variation = gate["outputs"]["total_variation"].as_f64().unwrap();
    assert!((0.2..0.5).contains(&variation), "{gate:#}");
    for other in ["errors", "invalid_output"] {
        assert_ne!(of(other)["verdict"], "fail", "{shown:#}");
    }
    let id = shown["id"].as_str().unwrap();
    let bundle = server.admin(&format!("/api/v1/rollouts/{id}/evidence")).ok().json();
    let replayed = tidegate::rollout::replay(&bundle).unwrap();
    assert!(replayed.is_equal(), "{:#?}", replayed.differences);
    let page = server.admin(&format!("/api/v1/rollouts/{id}/why")).ok().text();
    assert!(page.contains("utputs moved: class 2 is 3"), "{page}");
}

#[test]
fn a_candidate_whose_outcomes_are_alike_is_not_rolled_back() {
    let server = two(&classes(|x| x % 2), &classes(|x| x % 2));
    // One label in ten is another, on either arm; every third outcome stays away.
    let tells = |x: i64, _: &str| (x % 3 != 0).then_some(if x % 10 == 1 { 0 } else { x % 2 });
    let shown = roll(&server, 3000, tells);
    assert_ne!(shown["state"], "rolled_back", "{shown:#}");
    let gates = shown["gates"].as_array().unwrap();
    for gate in ["wrong_label", "fewer_outcomes", "fewer_positives"] {
        let gate = gates.iter().find(|it| it["gate"] == gate).unwrap();
        assert!(gate["candidate"]["events"].as_u64().unwrap() > 0, "{gate:#}");
    }
}
