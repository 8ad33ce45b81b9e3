//! Files of the table of predictions in an object store: the real S3 API, spoken by moto's server, which may be away.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::Signal;
use serde_json::{Value, json};

use tidegate::source::Bucket;

use crate::{
    clients::python,
    feedback::classes,
    object_store::{S3, SECRET, environment},
    predictions::{ended, predict, rows},
    repository::Repository,
    server::{Launch, Server, eventually, free_address},
    tensors::input,
};

fn launch(repository: &Repository, store: SocketAddr) -> Launch {
    let path = repository.beside("table").display().to_string();
    let launch = Launch::of(repository)
        .remembering()
        .set("PREDICTIONS__SAMPLE", "1")
        .set("PREDICTIONS__PATH", &path)
        .set("PREDICTIONS__UPLOAD", "s3://bucket/prod/table")
        .set("PREDICTIONS__ROTATE_EVERY", "1s");
    environment(store).iter().fold(launch, |launch, (name, value)| launch.variable(name, value))
}

fn judged() -> Repository {
    let repository = Repository::empty();
    repository.add_bytes("judged", "1", &classes(|x| x % 2));
    repository
}

/// Complete files that are still in the folder.
fn left(repository: &Repository) -> Vec<PathBuf> {
    let mut folders = vec![repository.beside("table")];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with(".open") {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "parquet") {
                found.push(path);
            }
        }
    }
    found
}

/// Downloads the bucket, and reads it in place: rows by prefix, as pandas and polars read them.
fn bucket(store: SocketAddr, folder: &Path) -> BTreeMap<String, [usize; 2]> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/bucket.py");
    let mut command = Command::new(python());
    command.arg(script).arg(format!("http://{store}")).arg(folder);
    let output = command.env("PYTHONDONTWRITEBYTECODE", "1").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn ids(rows: &[BTreeMap<String, Value>]) -> BTreeSet<String> {
    rows.iter().map(|row| row["prediction_id"].as_str().unwrap().to_owned()).collect()
}

/// The value of a series without labels, or with these.
fn series(server: &Server, name: &str) -> u64 {
    let page = server.admin("/metrics").ok().text();
    let line = page.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
    line.map_or(0, |value| value.parse().unwrap())
}

fn one(x: u32) -> Value {
    input("x", "INT64", &[1], &json!([x]))
}

#[test]
fn every_prediction_of_a_load_is_in_the_store_as_the_folder_would_be() {
    let (s3, repository) = (S3::start(), judged());
    let server = launch(&repository, s3.address).start();
    let mut connection = server.connect();
    let mut sent = BTreeSet::new();
    let mut outcomes = Vec::new();
    eventually("files are uploaded while requests come", || {
        for x in 0..20 {
            let (id, _) = predict(&mut connection, "judged", &[one(x)]);
            outcomes.push(json!({"prediction_id": id, "label": x % 2}));
            sent.insert(id);
        }
        let name = r#"tidegate_predictions_uploads_total{outcome="ok"}"#;
        (series(&server, name) >= 2).then_some(())
    });
    assert!(series(&server, "tidegate_predictions_uploaded_bytes_total") > 0);
    outcomes.truncate(3);
    server.post("/v2/models/judged/feedback", &json!({"outcomes": outcomes})).ok();
    assert_eq!(server.admin("/readyz?verbose").text(), "ok\n");
    assert_eq!(ended(server), 0);
    assert_eq!(left(&repository), Vec::<PathBuf>::new());

    let copy = tempfile::tempdir().unwrap();
    let read = bucket(s3.address, copy.path());
    let expected =
        [("prod/table/outcomes/judged", 3), ("prod/table/predictions/judged/1", sent.len())];
    let expected = expected.map(|(prefix, rows)| (prefix.to_owned(), [rows, rows]));
    assert_eq!(read, BTreeMap::from(expected));
    assert_eq!(ids(&rows(&copy.path().join("prod/table/predictions/judged/1"))), sent);
    let outcomes = rows(&copy.path().join("prod/table/outcomes/judged"));
    assert!(outcomes.len() == 3 && ids(&outcomes).is_subset(&sent));
}

/// Runs a command where a store is known to the environment; returns its exit code, and what it printed.
fn command(store: SocketAddr, variables: &[(&str, &str)], arguments: &[&str]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(arguments).envs(environment(store)).envs(variables.iter().copied());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    (output.status.code().unwrap(), text)
}

#[test]
fn what_was_uploaded_can_be_shown_replayed_and_backtested() {
    let (s3, repository) = (S3::start(), judged());
    repository.add_bytes("judged", "2", &classes(|x| i64::from(x == 3)));
    repository.add_bytes("other", "1", &classes(|_| 0));
    repository.describe("judged", "model.toml", "versions = \"all\"\n");
    let server = launch(&repository, s3.address).start();
    let mut connection = server.connect();
    let ids: Vec<_> =
        (0..10).map(|x| predict(&mut connection, "judged/versions/1", &[one(x)]).0).collect();
    (0..10).for_each(|x| drop(predict(&mut connection, "judged/versions/2", &[one(x)])));
    predict(&mut connection, "other", &[one(1)]);
    let outcome = json!({"outcomes": [{"prediction_id": ids[7], "label": 0}]});
    server.post("/v2/models/judged/feedback", &outcome).ok();
    assert_eq!(ended(server), 0);
    assert_eq!(left(&repository), Vec::<PathBuf>::new());

    let (table, path) = ("s3://bucket/prod/table", repository.beside("table"));
    let run = |arguments: &[&str]| command(s3.address, &[], arguments);
    let (code, text) = run(&["predictions", "show", &ids[7], "--path", table, "--json"]);
    let found: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &found["rows"][0]["x"]), (0, &json!(7)), "{text}");
    assert_eq!(found["outcomes"][0]["label"], "0", "{text}");
    // The configuration names the folder that it left, and where it went.
    let names = ["TIDEGATE__PREDICTIONS__PATH", "TIDEGATE__PREDICTIONS__UPLOAD"];
    let places = [(names[0], path.to_str().unwrap()), (names[1], table)];
    let (code, text) = command(s3.address, &places, &["predictions", "show", &ids[8]]);
    assert!(code == 0 && text.contains("judged version 1"), "{code}: {text}");
    let nobody = "6a".repeat(16);
    let (code, text) = command(s3.address, &places, &["predictions", "show", &nobody]);
    assert!(code == 1 && text.contains("in no complete file below") && text.contains(table));

    let models = repository.path();
    let own = ["--repository", models.to_str().unwrap(), "--model", "judged", "--json"];
    let replay = |data: &str, version: &str| {
        let (code, text) = run(&[&["replay", data][..], &own, &["--version", version]].concat());
        let report: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"));
        (
            code,
            report["data"] == data,
            report["rows"].clone(),
            report["outputs"][0]["exact"].clone(),
        )
    };
    let folder = format!("{table}/predictions/judged/1");
    assert_eq!(replay(&folder, "1"), (0, true, json!(10), json!(10)));
    assert_eq!(replay(table, "1").2, 20, "of all versions of the model, and of it alone");
    // Version 2 says what version 1 said for the even numbers, and for 3.
    assert_eq!(replay(&folder, "2"), (1, true, json!(10), json!(6)));

    let tried = ["rollout", "backtest", "judged", "2", "--baseline", "1", "--json", "--shift"];
    let (code, text) = command(s3.address, &places, &tried);
    let report: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"));
    assert_eq!((code, &report["recorded"]), (3, &json!({"baseline": 10, "candidate": 10})));

    let nothing = format!("{table}/predictions/judged/1/none.parquet");
    let (code, text) = run(&["replay", &nothing, "--model", "judged"]);
    assert!(code == 2 && text.contains("there is no such file at"), "{code}: {text}");
    let (code, text) = run(&["replay", table, "--model", "nobody"]);
    assert!(code == 2 && text.contains("there is no complete file of `nobody`"), "{code}: {text}");
    let away = free_address();
    let (code, text) = command(away, &[], &["predictions", "show", &ids[7], "--path", table]);
    assert!(code == 2 && text.contains("cannot be read") && !text.contains(SECRET), "{text}");
}

#[test]
fn a_store_that_is_away_is_told_and_nothing_is_lost() {
    let (address, repository) = (free_address(), judged());
    let server = launch(&repository, address).start();
    let mut connection = server.connect();
    let mut sent = BTreeSet::new();
    eventually("an upload fails", || {
        sent.insert(predict(&mut connection, "judged", &[one(1)]).0);
        let name = r#"tidegate_predictions_uploads_total{outcome="failed"}"#;
        (series(&server, name) > 0).then_some(())
    });
    server.wait_until_said("files of predictions are not uploaded");
    assert!(series(&server, "tidegate_predictions_upload_waiting_files") > 0);
    let ready = server.admin("/readyz?verbose");
    let text = ready.text();
    assert!(
        ready.status == 200 && text.contains("files of predictions are not uploaded"),
        "{text}"
    );
    assert!(!text.contains(SECRET) && !server.said().contains(SECRET), "{text}");

    let s3 = S3::start_at(address.port());
    eventually("all are uploaded", || left(&repository).is_empty().then_some(()));
    server.wait_until_said("files of predictions are uploaded again");
    assert_eq!(ended(server), 0);
    let copy = tempfile::tempdir().unwrap();
    bucket(s3.address, copy.path());
    assert_eq!(ids(&rows(&copy.path().join("prod/table/predictions/judged/1"))), sent);
}

#[test]
fn files_of_a_killed_process_are_uploaded_after_its_restart() {
    let (address, repository) = (free_address(), judged());
    let server = launch(&repository, address).start();
    let mut connection = server.connect();
    let mut sent = BTreeSet::new();
    eventually("a file is complete", || {
        sent.insert(predict(&mut connection, "judged", &[one(3)]).0);
        (!left(&repository).is_empty()).then_some(())
    });
    server.signal(Signal::KILL);
    drop(server);
    let complete = left(&repository);
    let copy = tempfile::tempdir().unwrap();
    for file in &complete {
        fs::copy(file, copy.path().join(file.file_name().unwrap())).unwrap();
    }
    let recorded = ids(&rows(copy.path()));
    assert!(!recorded.is_empty() && recorded.is_subset(&sent));

    let s3 = S3::start_at(address.port());
    let server = launch(&repository, address).start();
    eventually("they are uploaded", || left(&repository).is_empty().then_some(()));
    assert_eq!(ended(server), 0);
    let copy = tempfile::tempdir().unwrap();
    bucket(s3.address, copy.path());
    assert_eq!(ids(&rows(&copy.path().join("prod/table/predictions/judged/1"))), recorded);
}

#[test]
fn large_files_are_put_in_parts() {
    let s3 = S3::start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("large");
    let content: Vec<u8> =
        (0..20_000_001u32).map(|at| at.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    fs::write(&file, &content).unwrap();
    let store = Bucket::open("s3://bucket/prod/", environment(s3.address)).unwrap();
    store.put("a/large", &file).unwrap();
    // Again, as after a kill.
    store.put("a/large", &file).unwrap();
    let script = "import boto3, sys; boto3.client('s3', endpoint_url=sys.argv[1], region_name='us-east-1', \
                  aws_access_key_id='r', aws_secret_access_key='r').download_file('bucket', 'prod/a/large', sys.argv[2])";
    let copy = folder.path().join("copy");
    let mut command = Command::new(python());
    let command = command.args(["-c", script, &format!("http://{}", s3.address)]).arg(&copy);
    assert!(command.status().unwrap().success());
    assert!(fs::read(copy).unwrap() == content, "other bytes than those of the file");
    let error = store.put("a/none", &folder.path().join("none")).unwrap_err().to_string();
    assert!(error.contains("none"), "{error}");
}
