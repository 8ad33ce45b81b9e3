//! The table of predictions: other tools read it, it holds what was answered, and it never stands in the way.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    cli::tidegate,
    clients::python,
    feedback::classes,
    http::{Connection, Request},
    repository::{Repository, flat, source},
    server::{Launch, PATIENCE, Server, eventually},
    tensors::{body, infer, input},
};

/// Columns that every table has.
const COMMON: [&str; 9] =
    ["time", "prediction_id", "row", "model", "version", "arm", "digest", "code", "milliseconds"];

/// A row as other tools read it, by column.
pub(crate) type Row = BTreeMap<String, Value>;

fn launch(repository: &Repository) -> Launch {
    let path = repository.beside("table").display().to_string();
    Launch::of(repository).set("PREDICTIONS__SAMPLE", "1").set("PREDICTIONS__PATH", &path)
}

fn folder(repository: &Repository, model: &str) -> PathBuf {
    repository.beside("table").join("predictions").join(model)
}

/// Complete files of a model.
fn files(repository: &Repository, model: &str) -> Vec<PathBuf> {
    let Ok(versions) = fs::read_dir(folder(repository, model)) else { return Vec::new() };
    let versions = versions.map(|version| version.unwrap().path());
    let files = versions.flat_map(|version| fs::read_dir(version).unwrap());
    files.map(|file| file.unwrap().path()).collect()
}

/// Columns and rows of a folder, as each of three tools reads it.
fn read(folder: &Path) -> Vec<(String, Vec<String>, Vec<Vec<Value>>)> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/tables.py");
    let output = Command::new(python())
        .arg(script)
        .arg(folder)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let tool = |(tool, table): (&String, &Value)| {
        let columns = serde_json::from_value(table["columns"].clone()).unwrap();
        (tool.clone(), columns, serde_json::from_value(table["rows"].clone()).unwrap())
    };
    found.as_object().unwrap().iter().map(tool).collect()
}

/// Rows of a folder as all three tools read them.
pub(crate) fn rows(folder: &Path) -> Vec<Row> {
    let mut tables = read(folder).into_iter().map(|(_, columns, rows)| {
        let row = |row: Vec<Value>| columns.iter().cloned().zip(row).collect::<Row>();
        rows.into_iter().map(row).collect::<Vec<_>>()
    });
    let first = tables.next().unwrap();
    for other in tables {
        assert_eq!(first, other);
    }
    first
}

pub(crate) fn predict(
    connection: &mut Connection,
    model: &str,
    inputs: &[Value],
) -> (String, Value) {
    let answer = connection.ask(&Request::post_json(&infer(model), &body(inputs)));
    assert_eq!(answer.status, 200, "{}", answer.text());
    (answer.header("x-tidegate-prediction-id").unwrap().to_owned(), answer.json())
}

/// The exit code of a server that was told to end: all files are complete then.
pub(crate) fn ended(mut server: Server) -> i32 {
    server.terminate();
    server.exit_code(PATIENCE)
}

/// The value of a counter about one model.
fn counter(server: &Server, name: &str, labels: &str) -> u64 {
    let page = server.admin("/metrics").ok().text();
    let line = page.lines().find_map(|line| line.strip_prefix(&format!("{name}{{{labels}}} ")));
    line.map_or(0, |value| value.parse().unwrap())
}

/// Inputs for a model, so many rows; different ones for each seed.
fn inputs(model: &str, rows: usize, seed: usize) -> Vec<Value> {
    let numbers = |count: usize| -> Vec<usize> { (0..count).map(|at| at * 7 + seed).collect() };
    match model {
        "iris" => {
            let data: Vec<f64> = numbers(rows * 4)
                .iter()
                .map(|x| f64::from(u16::try_from(*x).unwrap()) / 16.0)
                .collect();
            vec![input("input", "FP32", &[rows, 4], &json!(data))]
        }
        "sentiment" => {
            let text = |x: &usize| format!("wonderful \u{e9} {x}");
            let data: Vec<String> = numbers(rows).iter().map(text).collect();
            vec![input("text", "BYTES", &[rows, 1], &json!(data))]
        }
        "add_sub" => {
            let tensor = |name| input(name, "INT32", &[rows, 16], &json!(numbers(rows * 16)));
            vec![tensor("INPUT0"), tensor("INPUT1")]
        }
        _ => {
            let datatype = model.strip_prefix("identity_").unwrap().to_uppercase();
            let data = match &*datatype {
                "BOOL" => json!(numbers(rows).iter().map(|x| x % 2 == 0).collect::<Vec<_>>()),
                _ => json!(numbers(rows).iter().map(|x| x % 100).collect::<Vec<_>>()),
            };
            vec![input("INPUT", &datatype, &[rows], &data)]
        }
    }
}

/// A row's part of tensors, one after the other.
fn part(tensors: &Value, rows: usize, row: usize) -> Vec<Value> {
    let tensors = tensors.as_array().unwrap().iter();
    let of_row = |tensor: &Value| {
        let all = flat(&tensor["data"]);
        let each = all.len() / rows;
        all[row * each..(row + 1) * each].to_vec()
    };
    tensors.flat_map(of_row).collect()
}

fn is_same(found: &Value, expected: &Value) -> bool {
    match (found.as_f64(), expected.as_f64()) {
        // Single precision, as it was answered.
        (Some(found), Some(expected)) => {
            (found - expected).abs() <= expected.abs() * f64::from(f32::EPSILON) / 2.0
        }
        _ => found == expected,
    }
}

#[test]
fn duckdb_pandas_and_polars_find_every_prediction_with_its_values() {
    let whole = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"];
    let identities: Vec<String> =
        whole.iter().chain(&["fp32", "fp64"]).map(|kind| format!("identity_{kind}")).collect();
    let mut models = vec!["iris", "sentiment", "add_sub"];
    models.extend(identities.iter().map(String::as_str));
    let repository = Repository::empty();
    for model in &models {
        let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(model);
        if sample.is_dir() {
            let target = repository.path().join(model);
            let status = Command::new("cp").arg("-r").args([&sample, &target]).status();
            assert!(status.unwrap().success());
        } else {
            repository.add_as(model, "1", &source(model, "1"));
        }
    }
    // `add_sub` is too wide for columns of its own.
    let server = launch(&repository).set("PREDICTIONS__COLUMNS", "8").start();
    let mut connection = server.connect();
    let mut sent: BTreeMap<&str, BTreeMap<(String, usize), Vec<Value>>> = BTreeMap::new();
    for seed in 0..6 {
        for model in &models {
            let (count, given) = (seed % 3 + 1, inputs(model, seed % 3 + 1, seed));
            let (id, answer) = predict(&mut connection, model, &given);
            for row in 0..count {
                let mut values = part(&json!(given), count, row);
                values.extend(part(&answer["outputs"], count, row));
                sent.entry(model).or_default().insert((id.clone(), row), values);
            }
        }
    }
    assert_eq!(ended(server), 0);
    for model in &models {
        let version = folder(&repository, model).join("1");
        for (tool, columns, rows) in read(&version) {
            assert_eq!(columns[..9], COMMON, "{tool}");
            let expected = &sent[model];
            assert_eq!(rows.len(), expected.len(), "{tool} of {model}");
            for row in rows {
                let id = row[1].as_str().unwrap().to_owned();
                let at = usize::try_from(row[2].as_u64().unwrap()).unwrap();
                let values = &expected[&(id, at)];
                let found = flat(&json!(row[9..]));
                let same = found.iter().zip(values).all(|(found, sent)| is_same(found, sent));
                assert!(same && found.len() == values.len(), "{tool}: {found:?}, not {values:?}");
                assert_eq!(
                    (&row[3], &row[4], &row[5]),
                    (&json!(model), &json!(1), &json!("baseline"))
                );
                assert_eq!((&row[6].as_str().unwrap().len(), &row[7]), (&64, &json!(200)));
                assert!(row[8].as_f64().unwrap() > 0.0, "{row:?}");
            }
            match *model {
                "iris" => assert_eq!(
                    columns[9..],
                    [
                        "sepal_length",
                        "sepal_width",
                        "petal_length",
                        "petal_width",
                        "output:label",
                        "output:probabilities[0]",
                        "output:probabilities[1]",
                        "output:probabilities[2]",
                    ]
                ),
                "add_sub" => {
                    assert_eq!(
                        columns[9..],
                        ["INPUT0", "INPUT1", "output:OUTPUT0", "output:OUTPUT1"]
                    );
                }
                _ => {}
            }
        }
    }
}

#[test]
fn the_share_is_chosen_by_the_id_and_redacted_columns_are_empty() {
    let repository = Repository::empty();
    repository.add_bytes("judged", "1", &classes(|x| x % 2));
    let table = repository.beside("table").display().to_string();
    let config = repository.beside("tidegate.toml");
    let text = format!(
        "[predictions]\npath = \"{table}\"\n[models.judged.predictions]\nsample = 0.5\nredact = [\"output:label\", \"nmae\"]\n"
    );
    fs::write(&config, text).unwrap();
    let server = Launch::of(&repository).arguments(&["--config", config.to_str().unwrap()]).start();
    let mut connection = server.connect();
    let mut chosen = Vec::new();
    for x in 0..50 {
        let given = input("x", "INT64", &[1], &json!([x]));
        let (id, _) = predict(&mut connection, "judged", &[given]);
        if u32::from_str_radix(&id[24..], 16).unwrap() < 1 << 31 {
            chosen.push((id, json!(x)));
        }
    }
    server.wait_until_said("redact names `nmae`, which is no column");
    assert_eq!(ended(server), 0);
    chosen.sort_by(|a, b| a.0.cmp(&b.0));
    let rows = rows(&folder(&repository, "judged").join("1"));
    let found: Vec<_> = rows
        .iter()
        .map(|row| (row["prediction_id"].as_str().unwrap().to_owned(), row["x"].clone()))
        .collect();
    assert_eq!(found, chosen);
    assert!((10..40).contains(&chosen.len()), "{}", chosen.len());
    assert!(rows.iter().all(|row| row["output:label"].is_null()));
}

#[test]
fn a_full_disk_drops_rows_and_counts_them_while_requests_go_on() {
    let repository = Repository::empty();
    repository.add_bytes("judged", "1", &classes(|x| x % 2));
    let server = launch(&repository).set("PREDICTIONS__ROTATE_EVERY", "1s").start();
    let mut connection = server.connect();
    let mut sent = 0;
    let mut go_on = || {
        let given = input("x", "INT64", &[2], &json!([1, 2]));
        predict(&mut connection, "judged", &[given]);
        sent += 2;
        sent
    };
    let limit = |bytes: &str| {
        let of = format!("--pid={}", server.id());
        let limited =
            Command::new("prlimit").args([of, format!("--fsize={bytes}:unlimited")]).status();
        assert!(limited.unwrap().success());
    };
    limit("1");
    let unwritten = || {
        counter(
            &server,
            "tidegate_predictions_dropped_total",
            r#"model="judged",reason="write",table="predictions""#,
        )
    };
    eventually("rows are dropped", || {
        go_on();
        (unwritten() > 0).then_some(())
    });
    server.wait_until_said("predictions are dropped, as they cannot be written");
    limit("unlimited");
    let recorded = || {
        counter(
            &server,
            "tidegate_predictions_recorded_total",
            r#"model="judged",table="predictions""#,
        )
    };
    eventually("rows are written again", || {
        go_on();
        (recorded() > 0).then_some(())
    });
    let sent = go_on();
    eventually("every row is accounted for", || (recorded() + unwritten() == sent).then_some(()));
    let written = rows(&folder(&repository, "judged").join("1")).len() as u64;
    assert_eq!(written, recorded());
    assert!(fs::read_dir(repository.beside("table").join(".open")).unwrap().next().is_none());
}

#[test]
fn what_is_in_complete_files_outlives_a_kill() {
    let repository = Repository::empty();
    repository.add_bytes("judged", "1", &classes(|x| x % 2));
    let server = launch(&repository).set("PREDICTIONS__ROTATE_EVERY", "1s").start();
    let mut connection = server.connect();
    let mut ids = Vec::new();
    eventually("a file is complete", || {
        let given = input("x", "INT64", &[1], &json!([3]));
        ids.push(predict(&mut connection, "judged", &[given]).0);
        (!files(&repository, "judged").is_empty()).then_some(())
    });
    server.signal(Signal::KILL);
    drop(server);
    let rows = rows(&folder(&repository, "judged").join("1"));
    let found: Vec<_> = rows.iter().map(|row| row["prediction_id"].as_str().unwrap()).collect();
    ids.sort();
    assert!(!found.is_empty() && found.iter().all(|id| ids.iter().any(|sent| sent == id)));
    let server = launch(&repository).start();
    let given = input("x", "INT64", &[1], &json!([4]));
    let (id, _) = predict(&mut server.connect(), "judged", &[given]);
    assert_eq!(ended(server), 0);
    let rows = self::rows(&folder(&repository, "judged").join("1"));
    assert!(rows.iter().any(|row| row["prediction_id"] == json!(id)));
}

#[test]
fn a_prediction_is_found_by_its_id_with_its_outcome() {
    let repository = Repository::empty();
    repository.add_bytes("judged", "1", &classes(|x| x % 2));
    let server = launch(&repository).remembering().start();
    let mut connection = server.connect();
    let given = input("x", "INT64", &[2], &json!([7, 8]));
    let (id, _) = predict(&mut connection, "judged", &[given]);
    for x in 0..20 {
        predict(&mut connection, "judged", &[input("x", "INT64", &[1], &json!([x]))]);
    }
    let outcomes = json!({"outcomes": [
        {"prediction_id": id, "row": 1, "label": 1, "at": "2026-01-02T03:04:05Z"},
        {"prediction_id": id, "row": 1, "label": 0},
    ]});
    let joined = server.post("/v2/models/judged/feedback", &outcomes).ok().json();
    assert_eq!((&joined["joined"], &joined["duplicate"]), (&json!(1), &json!(1)), "{joined}");
    assert_eq!(ended(server), 0);

    let table = repository.beside("table").display().to_string();
    let show = |id: &str, arguments: &[&str]| {
        let command = [&["predictions", "show", id, "--path", &table], arguments].concat();
        let output = tidegate(&command, "");
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.code(), text)
    };
    let (code, text) = show(&id, &["--json"]);
    let found: Value = serde_json::from_str(&text).unwrap();
    let cells = |row: usize| [&found["rows"][row]["x"], &found["rows"][row]["output:label"]];
    assert_eq!(
        (code, cells(0), cells(1)),
        (Some(0), [&json!(7), &json!(1)], [&json!(8), &json!(0)])
    );
    let outcomes = found["outcomes"].as_array().unwrap();
    assert_eq!(outcomes.len(), 1, "{text}");
    let outcome = &outcomes[0];
    assert_eq!(
        (&outcome["row"], &outcome["label"], &outcome["value"]),
        (&json!(1), &json!("1"), &json!(null))
    );
    assert_eq!(outcome["time"], "2026-01-02T03:04:05.000Z");
    let (code, text) = show(&id, &[]);
    assert!(code == Some(0) && text.contains("judged version 1, arm baseline: 200"), "{text}");
    assert!(text.contains("outcome") && text.contains("1 (2026-01-02T03:04:05.000Z)"), "{text}");
    let (code, text) = show(&"0".repeat(32), &[]);
    assert!(code == Some(1) && text.contains("in no complete file"), "{text}");
    assert_eq!(show("7", &[]).0, Some(2));
    // Other tools join both.
    let outcomes = rows(&repository.beside("table").join("outcomes/judged"));
    assert_eq!(outcomes[0]["prediction_id"], json!(id));
}
