//! Real rows from end to end: a profile of the rows that a model was trained on, the rest of the data through HTTP
//! without an alarm, then a part that differs, which is found, by one worker and by eight.
//!
//! The data are scikit-learn's pictures of digits; `tests/clients/drift_data.py` writes them.

use std::{collections::BTreeMap, fs, path::Path, process::Command, thread};

use serde_json::{Value, json};

use crate::{
    cli::tidegate,
    clients::python,
    http::Connection,
    repository::Repository,
    server::{Launch, Server, eventually},
    tensors::{infer, with_tail},
};

const PIXELS: usize = 64;

/// Rows of one request: few enough that all their values are counted.
const ROWS: usize = 50;

/// Requests between two looks at what was counted.
const REQUESTS: usize = 16;

/// Distances between a pixel's values in two sets of rows (Kolmogorov, Smirnov), from 0 to 1: above the first one,
/// drift must be told, below the second it must not.
const MOVED: f64 = 0.35;
const UNMOVED: f64 = 0.09;

type Row = Vec<f32>;

fn rows(path: &Path) -> Vec<Row> {
    let bytes = fs::read(path).unwrap();
    let numbers = bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
    let numbers: Row = numbers.collect();
    numbers.chunks_exact(PIXELS).map(<[f32]>::to_vec).collect()
}

fn send(connection: &mut Connection, rows: &[Row]) {
    let bytes: Vec<u8> = rows.iter().flatten().flat_map(|pixel| pixel.to_le_bytes()).collect();
    let head = json!({"inputs": [{
        "name": "image", "datatype": "FP32", "shape": [rows.len(), 1, 8, 8],
        "parameters": {"binary_data_size": bytes.len()}
    }]});
    let answer = connection.ask(&with_tail(&infer("digits"), &head, &bytes));
    assert_eq!(answer.status, 200, "{answer:?}");
}

fn report(server: &Server) -> Value {
    server.admin("/api/v1/models/digits/drift").ok().json()
}

/// Sends rows over all connections, in portions that are looked at one by one: a look has just been when the next
/// portion is sent. `None` if a look saw a part of one, as on a machine that is busy with other things.
fn stream(server: &Server, connections: &mut [Connection], rows: &[Row]) -> Option<Value> {
    let mut seen = report(server)["rows"].as_u64().unwrap();
    let mut last = None;
    for portion in rows.chunks(ROWS * REQUESTS) {
        for (index, rows) in portion.chunks(ROWS).enumerate() {
            let place = index % connections.len();
            send(&mut connections[place], rows);
        }
        let (before, all) = (seen, seen + portion.len() as u64);
        let looked = eventually("a look", || {
            let report = report(server);
            seen = report["rows"].as_u64().unwrap();
            (seen > before).then_some(report)
        });
        if seen != all {
            return None;
        }
        last = Some(looked);
    }
    last
}

/// Features that a page alarm names, with how they moved.
fn named(report: &Value) -> BTreeMap<String, String> {
    let alarms = report["alarms"].as_array().unwrap().iter();
    let pages = alarms.filter(|alarm| alarm["tier"] == "page");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    pages.map(|alarm| (text(&alarm["feature"]), text(&alarm["kind"]))).collect()
}

/// What a server said in the end.
struct Verdict {
    named: BTreeMap<String, String>,
    /// Counts of all pixels' bins.
    counts: Vec<Value>,
}

/// The verdict of a server with so many workers; `None` if looks fell between the portions of a stream.
fn verdict(workers: usize, folder: &Path) -> Option<Verdict> {
    let repository = Repository::of(&["digits"]);
    let models = repository.path().display().to_string();
    let data = folder.join("train.csv").display().to_string();
    let profiled = tidegate(
        &["profile", "--model", "digits", "--repository", &models, &data, "--label", "digit"],
        "",
    );
    assert_eq!(profiled.status.code(), Some(0), "{profiled:?}");
    let server = Launch::of(&repository).set("SERVER__WORKERS", &workers.to_string()).start();
    let before = report(&server);
    assert_eq!(before["reference"]["kind"], "profile", "{before}");
    let mut connections: Vec<_> = (0..8).map(|_| server.connect()).collect();
    let calm = stream(&server, &mut connections, &rows(&folder.join("calm.f32")))?;
    assert_eq!((named(&calm), &calm["status"]), (BTreeMap::new(), &json!("watching")), "{calm}");
    let shifted = stream(&server, &mut connections, &rows(&folder.join("shifted.f32")))?;
    assert_eq!(shifted["status"], "drifting", "{workers} workers: {shifted}");
    let pixels = shifted["features"].as_array().unwrap().iter();
    let pixels = pixels.filter(|feature| feature["source"] == "input");
    let mut counts: Vec<_> = pixels.map(|pixel| json!([pixel["name"], pixel["current"]])).collect();
    counts.sort_by_key(ToString::to_string);
    assert_eq!(counts.len(), PIXELS, "{shifted}");
    Some(Verdict { named: named(&shifted), counts })
}

/// The verdict of the first try that no look disturbed.
fn undisturbed(workers: usize, folder: &Path) -> Verdict {
    let tried = (0..5).find_map(|_| verdict(workers, folder));
    tried.expect("one of five streams is not disturbed")
}

/// The largest distance between the distribution functions of a pixel.
fn distance(pixel: usize, some: &[Row], others: &[Row]) -> f64 {
    let share = |rows: &[Row], most: f32| {
        let below = rows.iter().filter(|row| row[pixel] <= most).count();
        let count = |rows: usize| f64::from(u32::try_from(rows).unwrap());
        count(below) / count(rows.len())
    };
    let values = (0_u8..=16).map(f32::from);
    values.map(|most| (share(some, most) - share(others, most)).abs()).fold(0.0, f64::max)
}

/// True if a pixel's values moved in this way from the calm rows to the others.
fn has_moved(pixel: usize, kind: &str, calm: &[Row], others: &[Row]) -> bool {
    let mean = |rows: &[Row], of: &dyn Fn(f32) -> f32| {
        let all: Vec<_> = rows.iter().map(|row| f64::from(of(row[pixel]))).collect();
        all.iter().sum::<f64>() / f64::from(u32::try_from(all.len()).unwrap())
    };
    let grown = |of: &dyn Fn(f32) -> f32| mean(others, of) > mean(calm, of);
    let mut values: Row = calm.iter().map(|row| row[pixel]).collect();
    values.sort_by(f32::total_cmp);
    let (least, middle, most) = (values[0], values[values.len() / 2], values[values.len() - 1]);
    match kind {
        "up" => grown(&|value| value),
        "down" => grown(&|value| -value),
        "wider" => grown(&|value| (value - middle).abs()),
        "narrower" => grown(&|value| -(value - middle).abs()),
        "tail" => grown(&|value| f32::from(u8::from(value <= least || value >= most))),
        _ => false,
    }
}

#[test]
fn real_rows_raise_no_alarm_until_they_differ_for_any_number_of_workers() {
    let folder = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/drift_data.py");
    let written = Command::new(python()).arg(script).arg(folder.path()).output().unwrap();
    assert!(written.status.success(), "{written:?}");
    let (one, eight) = thread::scope(|scope| {
        let one = scope.spawn(|| undisturbed(1, folder.path()));
        let eight = scope.spawn(|| undisturbed(8, folder.path()));
        (one.join().unwrap(), eight.join().unwrap())
    });
    assert_eq!(one.counts, eight.counts, "shards are merged bit for bit");
    let calm = rows(&folder.path().join("calm.f32"));
    let shifted = rows(&folder.path().join("shifted.f32"));
    for pixel in 0..PIXELS {
        let distance = distance(pixel, &calm, &shifted);
        let name = format!("pixel_{pixel}");
        let kinds = [one.named.get(&name), eight.named.get(&name)];
        let told = format!("{name} moved by {distance}: {kinds:?}");
        // On the border the time between two looks decides, which is never quite the same: whether it is told, and
        // which of several ways that are all true.
        assert!(kinds[0] == kinds[1] || distance < MOVED, "{told}");
        let mut named = kinds.iter().flatten();
        assert!(named.all(|kind| has_moved(pixel, kind, &calm, &shifted)), "{told}");
        assert!(kinds != [None, None] || distance < MOVED, "{told}");
        assert!(kinds == [None, None] || distance > UNMOVED, "{told}");
    }
}
