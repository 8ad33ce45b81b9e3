//! `tidegate validate`: the sample models on rows that they were not trained on, against what scikit-learn says.

use std::{fs, path::PathBuf, process::Output};

use serde_json::{Value, json};

use crate::{
    cli::tidegate,
    http::{Connection, Request, Response},
    repository::{Repository, SAMPLES, source},
    server::{Launch, Server, eventually},
};

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/data");

fn data(file: &str) -> String {
    PathBuf::from(DATA).join(file).display().to_string()
}

/// Runs the command in a folder without a log of decisions.
fn validate(repository: &str, arguments: &[&str]) -> Output {
    let all = [&["validate", "--repository", repository], arguments].concat();
    tidegate(&all, "")
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// Compares every metric that scikit-learn gave with what the command gives.
#[track_caller]
fn agrees(version: &str, tolerance: f64, report: &Value) {
    let expected: Value = serde_json::from_slice(&fs::read(data("metrics.json")).unwrap()).unwrap();
    let expected = expected[version].as_object().unwrap();
    assert_eq!(report["data"]["rows"], expected["rows"]);
    for (metric, value) in expected.iter().filter(|(metric, _)| *metric != "rows") {
        let mut metrics = report["metrics"].as_array().unwrap().iter();
        let own = metrics.find(|own| own["metric"] == metric.as_str()).unwrap();
        let (own, value) = (own["value"].as_f64().unwrap(), value.as_f64().unwrap());
        assert!((own - value).abs() <= tolerance, "{version} {metric}: {own}, expected {value}");
    }
}

#[test]
fn metrics_are_those_of_scikit_learn_whatever_the_format() {
    let check = |version: &str, tolerance: f64, arguments: &[&str]| {
        let (model, number) = version.split_once('/').unwrap();
        let all = [&[model, number, "--json"], arguments].concat();
        let output = validate(SAMPLES, &all);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        agrees(version, tolerance, &report(&output));
    };
    let (iris, cancer) = (data("iris.csv"), data("breast_cancer.parquet"));
    check("iris/1", 1e-6, &["--data", &iris, "--label", "species"]);
    check("iris/1", 1e-6, &["--data", &iris, "--label", "last", "--batch", "7"]);
    // Some leaves of its forest are as likely as not, and the engine adds up in another order for other batches.
    check("breast_cancer/1", 0.01, &["--data", &cancer, "--ignore", "id"]);
    check("breast_cancer/2", 1e-6, &["--data", &cancer, "--ignore", "id", "--batch", "1000"]);
    let (images, labels, both) =
        (data("digits.npy"), data("digits_labels.npy"), data("digits_both.npy"));
    check("digits/1", 1e-6, &["--data", &images, "--labels", &labels]);
    check("digits/1", 1e-6, &["--data", &both, "--label", "64"]);
    check("sentiment/1", 1e-6, &["--data", &data("sentiment.csv")]);
}

#[test]
fn regressions_and_scores_by_class_are_judged_as_well() {
    let repository = Repository::of(&["doubled_fp32", "zipmap"]);
    let folder = repository.path().to_str().unwrap();
    let output = validate(folder, &["doubled_fp32", "--data", &data("doubled.parquet"), "--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    agrees("doubled_fp32/1", 1e-6, &report(&output));
    assert_eq!(report(&output)["task"], "regression");
}

#[test]
fn thresholds_and_comparisons_decide_the_exit_code() {
    let cancer = data("breast_cancer.parquet");
    let run = |more: &[&str]| {
        let all = [&["breast_cancer", "--data", &cancer, "--ignore", "id"], more].concat();
        validate(SAMPLES, &all)
    };
    let reached = run(&["--threshold", "accuracy=0.9", "--threshold", "log_loss=0.2", "--compare"]);
    assert_eq!(reached.status.code(), Some(0), "{reached:?}");
    let text = String::from_utf8(reached.stdout).unwrap();
    assert!(
        text.contains(">= 0.9 reached")
            && text.contains("not significantly different from version 1"),
        "{text}"
    );
    let missed = run(&["--threshold", "recall=0.99", "--json"]);
    assert_eq!(missed.status.code(), Some(1));
    let failures = &report(&missed)["failures"];
    assert!(
        failures[0].as_str().unwrap().starts_with("recall is 0.9626, below 0.99"),
        "{failures}"
    );
}

#[test]
fn a_bare_model_needs_names_and_a_report_is_a_page() {
    let bare = Repository::of(&["iris"]);
    let (folder, page) = (bare.path().to_str().unwrap().to_owned(), bare.beside("report.md"));
    let (iris, path) = (data("iris.csv"), page.to_str().unwrap());
    let run = |more: &[&str]| {
        validate(
            &folder,
            &[&["iris", "latest", "--data", &iris, "--label", "species"], more].concat(),
        )
    };
    let unnamed = run(&[]);
    assert_eq!(unnamed.status.code(), Some(2), "{unnamed:?}");
    let text = String::from_utf8_lossy(&unnamed.stderr).into_owned();
    assert!(
        text.contains("the label `virginica` of row 1 is no class") && text.contains("--classes"),
        "{text}"
    );
    let few = run(&["--classes", "setosa,versicolor"]);
    assert!(String::from_utf8_lossy(&few.stderr).contains("2 classes are named"), "{few:?}");
    let output = run(&["--classes", "setosa,versicolor,virginica", "--report", path]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let page = fs::read_to_string(page).unwrap();
    assert!(
        page.starts_with("# Validation of iris version 1: passed")
            && page.contains("| setosa | 15 |"),
        "{page}"
    );
}

#[test]
fn mistakes_end_with_2_and_say_what_would_be_right() {
    let iris = data("iris.csv");
    let check = |arguments: &[&str], code: i32, expected: &str| {
        let output = validate(SAMPLES, arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(text.contains(expected), "{text}");
    };
    check(&["iris", "--data", "nowhere.csv"], 2, "`nowhere.csv` cannot be read");
    check(&["iris", "--data", &iris], 2, "name it with --label");
    check(&["iris", "--data", &iris, "--label", "specie"], 2, "did you mean `species`?");
    check(&["irs", "--data", &iris], 2, "has no model `irs`");
    check(&["iris", "9", "--data", &iris], 2, "has no version `9` of the model; it has 1");
    check(&["iris", "--data", &iris, "--compare"], 2, "name one with --against");
    check(&["iris", "--data", &iris, "--threshold", "acc=1"], 2, "there is no metric `acc`");
    check(
        &["iris", "--data", &iris, "--label", "petal_width", "--ignore", "species"],
        2,
        "from 3 columns",
    );
    let broken = Repository::of(&["iris"]);
    broken.add_bytes("iris", "2", b"not a model");
    let output = validate(broken.path().to_str().unwrap(), &["iris", "2", "--data", &iris]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("version 2 of iris cannot be loaded"));
}

#[test]
fn a_rollout_validates_its_candidate_first() {
    let repository = Repository::of(&["iris"]);
    repository.add_as("iris", "2", &source("iris", "1"));
    // A bare model has no names of classes.
    let mut rows = fs::read_to_string(data("iris.csv")).unwrap().replace("species", "label");
    for (number, name) in ["setosa", "versicolor", "virginica"].into_iter().enumerate() {
        rows = rows.replace(name, &number.to_string());
    }
    let labelled = repository.beside("labelled.csv");
    fs::write(&labelled, rows).unwrap();
    let server = Launch::of(&repository).start();
    let ask = |path: &str, body: &Value| -> Response {
        Connection::open(server.admin).ask(&Request::post_json(path, body))
    };
    ask("/api/v1/models/iris/rollback", &json!({"version": 1})).ok();
    let start = |thresholds: Value| {
        let validate = json!({"data": labelled, "thresholds": thresholds});
        let body = json!({"model": "iris", "candidate": 2, "force": true, "policy": {"validate": validate}});
        ask("/api/v1/rollouts", &body)
    };
    let id = |started: &Response| {
        assert_eq!(started.status, 201, "{}", started.text());
        started.json()["id"].as_str().unwrap().to_owned()
    };
    let show =
        |server: &Server, id: &str| server.admin(&format!("/api/v1/rollouts/{id}")).ok().json();
    let unknown = start(json!({"acc": 0.9}));
    assert_eq!(unknown.status, 400, "{}", unknown.text());
    assert!(unknown.text().contains("there is no metric `acc`"), "{}", unknown.text());
    let failing = id(&start(json!({"accuracy": 0.999})));
    let failed = eventually("it failed", || {
        Some(show(&server, &failing)).filter(|shown| shown["state"] == "failed")
    });
    assert_eq!(failed["reason"], "validation: accuracy is 0.9778, below 0.999");
    assert_eq!(failed["validation"]["passed"], false);
    let passing = id(&start(json!({"accuracy": 0.9})));
    let canary = eventually("it goes on", || {
        Some(show(&server, &passing)).filter(|shown| shown["state"] == "canary")
    });
    assert_eq!(canary["validation"]["comparison"]["verdict"], "alike", "{canary}");
    assert_eq!(canary["validation"]["data"]["rows"], 45);
}
