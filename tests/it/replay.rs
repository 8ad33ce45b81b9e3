//! `tidegate replay`: recorded requests give the same answers again, or it says which and by how much not.

use std::{fs, path::Path, process::Output};

use serde_json::{Value, json};

use crate::{
    cli::tidegate,
    feedback::classes,
    http::{Connection, Request},
    models::{INT64, declared, graph, integers, model, node},
    repository::Repository,
    rollouts::{broken_below, delayed},
    server::{Launch, PATIENCE, Server},
    tensors::{body, infer, input},
};

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)))
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Starts a server that records every prediction in a folder beside its models.
fn recording(repository: &Repository) -> Launch {
    let path = repository.beside("table").display().to_string();
    Launch::of(repository).set("PREDICTIONS__SAMPLE", "1").set("PREDICTIONS__PATH", &path)
}

/// Ends a server, which completes its files.
fn ended(mut server: Server) {
    server.terminate();
    assert_eq!(server.exit_code(PATIENCE), 0);
}

fn predict(connection: &mut Connection, path: &str, inputs: &[Value]) -> String {
    let answer = connection.ask(&Request::post_json(path, &body(inputs)));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.header("x-tidegate-prediction-id").unwrap().to_owned()
}

fn replay(repository: &Repository, arguments: &[&str]) -> Output {
    let (table, models) = (repository.beside("table"), repository.path());
    let common = ["replay", table.to_str().unwrap(), "--repository", models.to_str().unwrap()];
    tidegate(&[&common, arguments].concat(), "")
}

fn copy(repository: &Repository, model: &str) {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(model);
    let target = repository.path().join(model);
    let copied = std::process::Command::new("cp").arg("-r").args([&sample, &target]).status();
    assert!(copied.unwrap().success());
}

#[test]
fn recorded_requests_give_the_recorded_answers() {
    let repository = Repository::of(&["add_sub", "identity_fp16", "identity_bool", "scalar"]);
    for model in ["iris", "sentiment"] {
        copy(&repository, model);
    }
    // `add_sub` is too wide for columns of its own: its tensors are lists.
    let server = recording(&repository).set("PREDICTIONS__COLUMNS", "8").start();
    let mut connection = server.connect();
    for seed in 0_usize..40 {
        let rows = seed % 4 + 1;
        let numbers = |count: usize| (0..count).map(|at| (at * 7 + seed) % 50).collect::<Vec<_>>();
        let features: Vec<f64> =
            numbers(rows * 4).iter().map(|x| f64::from(u8::try_from(*x).unwrap()) / 8.0).collect();
        let texts: Vec<_> = numbers(rows).iter().map(|x| format!("lovely \u{e9} {x}")).collect();
        let wide = |name| input(name, "INT32", &[rows, 16], &json!(numbers(rows * 16)));
        let truths: Vec<_> = numbers(rows).iter().map(|x| x % 3 == 0).collect();
        let all = [
            ("iris", vec![input("input", "FP32", &[rows, 4], &json!(features))]),
            ("sentiment", vec![input("text", "BYTES", &[rows, 1], &json!(texts))]),
            ("add_sub", vec![wide("INPUT0"), wide("INPUT1")]),
            ("identity_bool", vec![input("INPUT", "BOOL", &[rows], &json!(truths))]),
        ];
        for (model, inputs) in all {
            predict(&mut connection, &infer(model), &inputs);
        }
    }
    ended(server);
    for (model, outputs) in [("iris", 2), ("sentiment", 1), ("add_sub", 2), ("identity_bool", 1)] {
        let output = replay(&repository, &["--model", model, "--version", "1", "--json"]);
        assert_eq!(output.status.code(), Some(0), "{model}: {output:?}");
        let report = report(&output);
        assert_eq!((&report["rows"], &report["requests"]), (&json!(100), &json!(40)), "{model}");
        let compared = report["outputs"].as_array().unwrap();
        assert!(compared.len() >= outputs, "{report:#}");
        for output in compared {
            let counts = ["rows", "exact", "within"].map(|count| &output[count]);
            assert_eq!(counts, [&json!(100); 3], "{model}: {output:#}");
        }
    }
    let page = replay(&repository, &["--model", "iris", "--version", "1"]);
    let page = String::from_utf8(page.stdout).unwrap();
    assert!(
        page.contains("100 rows in 40 requests") && page.ends_with("equal within the tolerance\n")
    );
    // Without a table around them, rows come in runs.
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data/iris.csv");
    let models = repository.path().to_str().unwrap();
    let plain = ["replay", data.to_str().unwrap(), "--repository", models, "--model", "iris"];
    let output = tidegate(&[&plain[..], &["--ignore", "species"]].concat(), "");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(said(&output).contains("no recorded outputs"), "{}", said(&output));
}

#[test]
fn answers_that_differ_are_counted_and_the_worst_are_named() {
    let repository = Repository::empty();
    repository.add_bytes("judged", "1", &classes(|x| x % 2));
    let server = recording(&repository).start();
    let mut connection = server.connect();
    let mut named = Vec::new();
    for x in 0..100 {
        let given = input("x", "INT64", &[1], &json!([x]));
        let id = predict(&mut connection, &infer("judged"), &[given]);
        named.extend((x % 50 == 7).then_some(id));
    }
    // A number that the model has no class for, among others that it has one for.
    let outside = body(&[input("x", "INT64", &[3], &json!([1, 1000, 2]))]);
    let failed = connection.ask(&Request::post_json(&infer("judged"), &outside));
    assert_eq!(failed.status, 400, "{}", failed.text());
    ended(server);
    // Another class for two numbers of a hundred.
    repository.add_bytes("judged", "2", &classes(|x| if x % 50 == 7 { 5 } else { x % 2 }));
    let check = |output: &Output, against: &Value| {
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let report = report(output);
        assert_eq!(report["against"], *against);
        assert_eq!(report["left_out"], json!({"400": 3}));
        let label = &report["outputs"][0];
        let counts = ["rows", "exact", "within", "flips", "largest"].map(|count| &label[count]);
        assert_eq!(counts, [json!(100), json!(98), json!(98), json!(2), json!(4.0)].each_ref());
        let worst = report["worst"].as_array().unwrap().iter();
        let mut ids: Vec<_> =
            worst.map(|row| row["prediction_id"].as_str().unwrap().to_owned()).collect();
        ids.sort();
        let mut expected = named.clone();
        expected.sort();
        assert_eq!(ids, expected);
        assert_eq!(report["worst"][0]["actual"], "5");
    };
    let new = ["--model", "judged", "--version", "2", "--json"];
    check(&replay(&repository, &new), &Value::Null);
    check(&replay(&repository, &[&new[..], &["--against", "1"]].concat()), &json!(1));
    let page = replay(&repository, &["--model", "judged", "--version", "2", "--worst", "1"]);
    let page = String::from_utf8(page.stdout).unwrap();
    assert!(page.contains("3 rows answered with 400 are left out"), "{page}");
    assert!(page.ends_with("differs: 98 of 100 rows are within the tolerance\n"), "{page}");
    let itself = replay(&repository, &[&new[..], &["--against", "latest"]].concat());
    assert_eq!(itself.status.code(), Some(2));
}

#[test]
fn inputs_without_their_values_cannot_be_replayed() {
    let repository = Repository::empty();
    repository.add_bytes("judged", "1", &classes(|x| x % 2));
    let table = repository.beside("table");
    let config = repository.beside("tidegate.toml");
    let text = format!(
        "[predictions]\npath = \"{}\"\nsample = 1.0\n[models.judged.predictions]\nredact = [\"x\"]\n",
        table.display()
    );
    fs::write(&config, text).unwrap();
    let empty = replay(&repository, &["--model", "judged"]);
    assert_eq!(empty.status.code(), Some(2));
    let server = Launch::of(&repository).arguments(&["--config", config.to_str().unwrap()]).start();
    let mut connection = server.connect();
    for x in 0..3 {
        let given = input("x", "INT64", &[2], &json!([x, x]));
        predict(&mut connection, &infer("judged"), &[given]);
    }
    ended(server);
    let output = replay(&repository, &["--model", "judged"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("no values in column `x`"), "{}", said(&output));
    assert!(said(&output).contains("predictions.redact"), "{}", said(&output));
}

/// Records a hundred predictions of a model, each of one number, and the inputs of some with two rows.
fn recorded(repository: &Repository) {
    repository.add_bytes("judged", "1", &classes(|x| x % 7));
    let server = recording(repository).start();
    let mut connection = server.connect();
    for x in 0..100_i64 {
        let numbers = if x % 10 == 0 { vec![x, 99 - x] } else { vec![x] };
        let given = input("x", "INT64", &[numbers.len()], &json!(numbers));
        predict(&mut connection, &infer("judged"), &[given]);
    }
    ended(server);
}

#[test]
fn a_server_is_asked_at_the_pace_that_is_wanted_and_failures_are_counted_by_code() {
    let repository = Repository::empty();
    recorded(&repository);
    // Has no class for numbers from fifty on.
    let half: Vec<i64> = (0..50).map(|x| x % 7).collect();
    let half = model(graph(
        vec![node("Gather", &["table", "x"], &["label"])],
        vec![integers("table", INT64, &[50], &half)],
        vec![declared("x", INT64, &[-1])],
        vec![declared("label", INT64, &[-1])],
    ));
    repository.add_bytes("judged", "2", &half);
    let both = "platform: \"onnxruntime_onnx\"\nversion_policy: { all { } }\n";
    repository.describe("judged", "config.pbtxt", both);
    let server = Launch::of(&repository).start();
    let table = repository.beside("table");
    let url = format!("http://{}", server.http);
    let common =
        ["replay", table.to_str().unwrap(), "--model", "judged", "--json", "--server", &url];
    for pace in [&[][..], &["--speed", "2x", "--connections", "2"]] {
        let own = tidegate(&[&common[..], &["--version", "1"], pace].concat(), "");
        assert_eq!(own.status.code(), Some(0), "{own:?}");
        let report = report(&own);
        assert_eq!((&report["rows"], &report["requests"]), (&json!(110), &json!(100)));
        assert_eq!(report["outputs"][0]["exact"], 110);
    }
    let other = tidegate(&[&common[..], &["--version", "2", "--against", "1"]].concat(), "");
    assert_eq!(other.status.code(), Some(1), "{other:?}");
    let report = report(&other);
    // All from fifty on, and those whose second row is.
    let failed = json!([{"version": 2, "reason": "400 Bad Request", "requests": 55}]);
    assert_eq!(report["failures"], failed, "{report:#}");
    assert_eq!(report["outputs"][0]["exact"], report["outputs"][0]["rows"]);
    let unknown = tidegate(&[&common[..], &["--version", "9"]].concat(), "");
    assert_eq!(unknown.status.code(), Some(2));
    let told = String::from_utf8(unknown.stdout).unwrap();
    assert!(told.contains("has no version `9` of judged"), "{told}");
}

#[test]
fn golden_cases_of_recorded_rows_prove_the_version_from_then_on() {
    let repository = Repository::empty();
    recorded(&repository);
    let models = repository.path().to_str().unwrap();
    let golden = repository.path().join("judged/1/golden.json");
    let golden_of = |more: &[&str]| {
        replay(&repository, &[&["--model", "judged", "--golden", "8"], more].concat())
    };
    let made = golden_of(&[]);
    assert_eq!(made.status.code(), Some(0), "{made:?}");
    assert!(said(&made).contains("8 golden cases are in"), "{}", said(&made));
    let text = fs::read_to_string(&golden).unwrap();
    let file: Value = serde_json::from_str(&text).unwrap();
    let numbers: Vec<i64> = (file["cases"].as_array().unwrap().iter())
        .map(|case| case["inputs"][0]["data"][0].as_i64().unwrap())
        .collect();
    assert!(numbers.len() == 8 && numbers[7] >= 60 && numbers.is_sorted(), "{numbers:?}");
    let check = || tidegate(&["check", "--json", "--repository", models], "");
    let passed = check();
    assert_eq!(passed.status.code(), Some(0), "{passed:?}");
    let said_again = golden_of(&[]);
    assert_eq!(said_again.status.code(), Some(2));
    assert!(said(&said_again).contains("--force"), "{}", said(&said_again));
    let recorded = golden_of(&["--force", "--golden-from", "recorded"]);
    assert_eq!(recorded.status.code(), Some(0), "{recorded:?}");
    assert_eq!(fs::read_to_string(&golden).unwrap(), text, "both are the same here");
    // Another model in its place does not give what was recorded.
    repository.replace("judged", "1", &classes(|x| x % 5));
    let failed = check();
    assert_eq!(failed.status.code(), Some(1));
    let found = String::from_utf8(failed.stdout).unwrap();
    assert!(found.contains("is not reproduced"), "{found}");
}

#[test]
fn a_policy_is_tried_on_the_outcomes_of_two_versions_that_were_recorded() {
    let repository = Repository::empty();
    repository.add_bytes("judged", "1", &classes(|x| x % 2));
    // Half of its classes are others.
    repository.add_bytes("judged", "2", &classes(|x| if x % 4 < 2 { x % 2 } else { 1 - x % 2 }));
    repository.add_bytes("judged", "3", &classes(|x| x % 2));
    repository.describe("judged", "model.toml", "versions = \"all\"\n");
    let server = recording(&repository).remembering().start();
    let mut connection = server.connect();
    let mut outcomes = Vec::new();
    for x in 0..1800_i64 {
        let given = input("x", "INT64", &[1], &json!([x / 3 % 100]));
        let path = format!("/v2/models/judged/versions/{}/infer", x % 3 + 1);
        let id = predict(&mut connection, &path, &[given]);
        outcomes.push(json!({"prediction_id": id, "label": x / 3 % 2}));
    }
    for outcomes in outcomes.chunks(100) {
        let told = server.post("/v2/models/judged/feedback", &json!({ "outcomes": outcomes }));
        assert_eq!(told.ok().json()["joined"], 100);
    }
    ended(server);
    let policy = repository.beside("policy.toml");
    let text = "warmup_requests = 5\n[[steps]]\nweight = 0.5\nmin_duration = \"1s\"\nmin_requests = 50\nmax_duration = \"1d\"\n\
                [gates.wrong_label]\nmode = \"required\"\n[gates.slow]\nmode = \"off\"\n";
    fs::write(&policy, text).unwrap();
    let table = repository.beside("table");
    let backtest = |candidate: &str, more: &[&str]| {
        let common = ["rollout", "backtest", "judged", candidate, "--baseline", "1", "--path"];
        let files = [table.to_str().unwrap(), "--policy", policy.to_str().unwrap()];
        tidegate(&[&common[..], &files, more].concat(), "")
    };
    let worse = backtest("2", &["--json"]);
    assert_eq!(worse.status.code(), Some(1), "{worse:?}");
    let worse = report(&worse);
    assert_eq!((&worse["state"], &worse["gate"]), (&json!("rolled_back"), &json!("wrong_label")));
    assert_eq!(worse["recorded"], json!({"baseline": 600, "candidate": 600}));
    let page = String::from_utf8(backtest("2", &[]).stdout).unwrap();
    assert!(page.contains("gate wrong_label") && page.contains("rolled back after"), "{page}");
    let equal = report(&backtest("3", &["--json"]));
    assert_eq!(equal["gate"], Value::Null, "{equal:#}");
    assert_ne!(equal["state"], "rolled_back");
    let nobody = backtest("9", &[]);
    assert_eq!(nobody.status.code(), Some(2));
    assert!(said(&nobody).contains("no predictions of version 9"), "{}", said(&nobody));
}

#[test]
fn a_policy_sees_recorded_outputs_that_are_no_numbers() {
    let repository = Repository::empty();
    repository.add_bytes("tried", "1", &delayed(1));
    repository.add_bytes("tried", "2", &broken_below());
    repository.describe("tried", "model.toml", "versions = \"all\"\n");
    let server = recording(&repository).start();
    let mut connection = server.connect();
    for number in 0..1200 {
        // Every tenth request of each version is one that the second answers with NaN.
        let value = if number / 2 % 10 == 0 { -2000.0 } else { 1.0 };
        let path = format!("/v2/models/tried/versions/{}/infer", number % 2 + 1);
        predict(&mut connection, &path, &[input("x", "FP32", &[1], &json!([value]))]);
    }
    ended(server);
    let policy = repository.beside("policy.toml");
    let text = "warmup_requests = 5\n[[steps]]\nweight = 0.5\nmin_duration = \"0s\"\nmin_requests = 50\nmax_duration = \"1d\"\n\
                [gates.slow]\nmode = \"off\"\n[gates.disagreement]\nmode = \"off\"\n";
    fs::write(&policy, text).unwrap();
    let table = repository.beside("table");
    let files = ["--path", table.to_str().unwrap(), "--policy", policy.to_str().unwrap(), "--json"];
    let common = ["rollout", "backtest", "tried"];
    let backtest = |versions: [&str; 3]| tidegate(&[&common[..], &versions, &files].concat(), "");
    let worse = backtest(["2", "--baseline", "1"]);
    assert_eq!(worse.status.code(), Some(1), "{worse:?}");
    let worse = report(&worse);
    assert_eq!(
        (&worse["state"], &worse["gate"]),
        (&json!("rolled_back"), &json!("invalid_output"))
    );
    // The other way round there is nothing to blame.
    let better = backtest(["1", "--baseline", "2"]);
    assert_eq!(report(&better)["gate"], Value::Null, "{better:?}");
}
