//! Requests of any shape and value to every model that the tests have: nothing ends the server or keeps it from
//! answering.
//!
//! Requests are made from each model's own signature, with dimensions of 0, 1, odd and huge numbers and values from the
//! ends of their types. They can be made again: `TIDEGATE_TEST_SEED` names the seed of an earlier run.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    thread,
};

use serde_json::{Value, json};

use crate::{
    choices::Choices,
    http::{Connection, Request},
    killers,
    repository::{FIXTURES, Repository, SAMPLES},
    server::{Launch, Server},
    tensors::{add_sub, infer, with_tail},
};

/// Requests of all connections together.
const REQUESTS: usize = 10_000;
const CONNECTIONS: usize = 4;
/// Elements of one input; more are only claimed.
const ELEMENTS_MAX: u64 = 4_096;

/// A model's inputs: name, datatype, dimensions.
type Inputs = Vec<(String, String, Vec<i64>)>;

fn inputs(server: &Server, model: &str) -> Inputs {
    let response = server.get(&format!("/v2/models/{model}"));
    assert_eq!(response.status, 200, "{model}: {response:?}");
    let metadata = response.json();
    let input = |input: &Value| {
        let text = |key: &str| input[key].as_str().unwrap().to_owned();
        let dims = input["shape"].as_array().unwrap().iter().map(|dim| dim.as_i64().unwrap());
        (text("name"), text("datatype"), dims.collect())
    };
    metadata["inputs"].as_array().unwrap().iter().map(input).collect()
}

/// A request as it may come; sizes that are open are the same throughout, or each another.
fn request(model: &str, inputs: &Inputs, choices: &mut Choices) -> Request {
    const SIZES: [i64; 12] = [0, 0, 1, 1, 2, 3, 3, 5, 7, 17, 64, 513];
    const HUGE: [i64; 4] = [1 << 31, (1 << 31) - 1, 1 << 62, i64::MAX];
    let common = choices.of(&SIZES);
    let mut described = Vec::new();
    let mut tail = Vec::new();
    for (name, datatype, dims) in inputs {
        let mut shape: Vec<i64> = dims.clone();
        for dim in &mut shape {
            if *dim < 0 || choices.one_in(40) {
                *dim = if choices.one_in(3) { choices.of(&SIZES) } else { common };
            }
            if choices.one_in(200) {
                *dim = choices.of(&HUGE);
            }
        }
        if choices.one_in(60) {
            shape.push(choices.of(&SIZES));
        }
        let count = shape.iter().try_fold(1u64, |count, dim| count.checked_mul(dim.unsigned_abs()));
        let count = count.unwrap_or(u64::MAX).min(ELEMENTS_MAX);
        let bytes = elements(datatype, usize::try_from(count).unwrap(), choices);
        let parameters = json!({"binary_data_size": bytes.len()});
        described.push(
            json!({"name": name, "datatype": datatype, "shape": shape, "parameters": parameters}),
        );
        tail.extend(bytes);
    }
    with_tail(&infer(model), &json!({"inputs": described}), &tail)
}

/// Elements in binary form: all alike, or from any bits.
fn elements(datatype: &str, count: usize, choices: &mut Choices) -> Vec<u8> {
    if datatype == "BYTES" {
        let text = choices.of(&["", "a", "two words", "\u{0}", "\u{fffd}\u{1f600}", "1"]);
        let length = u32::try_from(text.len()).unwrap().to_le_bytes();
        return [&length[..], text.as_bytes()].concat().repeat(count);
    }
    let size = match datatype {
        "BOOL" | "UINT8" | "INT8" => 1,
        "UINT16" | "INT16" | "FP16" | "BF16" => 2,
        "UINT32" | "INT32" | "FP32" => 4,
        _ => 8,
    };
    if datatype == "BOOL" {
        let word = choices.next();
        return (0..count).map(|index| (word >> (index % 64) & 1) as u8).collect();
    }
    let float = |number: f64| match datatype {
        "FP16" => half::f16::from_f64(number).to_le_bytes().to_vec(),
        "BF16" => half::bf16::from_f64(number).to_le_bytes().to_vec(),
        #[allow(clippy::cast_possible_truncation, reason = "any number will do")]
        "FP32" => (number as f32).to_le_bytes().to_vec(),
        _ => number.to_le_bytes().to_vec(),
    };
    let is_float = datatype.starts_with("FP") || datatype == "BF16";
    let one = |choices: &mut Choices| {
        if is_float {
            float(choices.of(&[
                0.0,
                1.0,
                -1.0,
                0.5,
                1e30,
                -1e30,
                f64::NAN,
                f64::INFINITY,
                -0.0,
                3.0,
            ]))
        } else {
            let ends = [0, 1, 2, 3, u64::MAX, 1 << 31, 1 << 63, (1 << 63) - 1, 0x7f, 0x80, 7];
            choices.of(&ends).to_le_bytes()[..size].to_vec()
        }
    };
    if choices.one_in(2) {
        return one(choices).repeat(count);
    }
    (0..count).flat_map(|_| one(choices)).collect()
}

/// Runs as long as a request asks for: until its deadline, and only then a request may be late.
const WITHOUT_END: &str = "branches";

/// Every model that the tests have, by name.
fn models() -> BTreeMap<String, PathBuf> {
    let mut models = BTreeMap::new();
    for folder in [FIXTURES, SAMPLES] {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let file = path.join("1/model.onnx");
            if file.exists() {
                models.insert(path.file_name().unwrap().to_str().unwrap().to_owned(), file);
            }
        }
    }
    let folders =
        [killers::FOLDER, concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/hostile/sound")];
    for entry in folders.into_iter().flat_map(|folder| fs::read_dir(Path::new(folder)).unwrap()) {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "onnx") {
            models.insert(path.file_stem().unwrap().to_str().unwrap().to_owned(), path);
        }
    }
    assert!(models.contains_key(WITHOUT_END), "the fixtures have it");
    models
}

#[test]
fn no_request_ends_or_freezes_the_server() {
    let seed = std::env::var("TIDEGATE_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or(17);
    eprintln!("TIDEGATE_TEST_SEED={seed}");
    let repository = Repository::empty();
    for (name, file) in models() {
        repository.add_as(&name, "1", &file);
        repository.describe(&name, "model.toml", "max_batch_size = 0\n");
    }
    // Long enough for a busy machine.
    let mut server = Launch::of(&repository).set("SERVE__REQUEST_TIMEOUT", "400ms").start();
    let ready = server.index().into_iter().filter(|entry| entry["state"] == "READY");
    let ready: Vec<String> =
        ready.map(|entry| entry["name"].as_str().unwrap().to_owned()).collect();
    assert!(ready.len() > 40, "{ready:?}");
    let signatures: Vec<_> = ready.into_iter().map(|name| (inputs(&server, &name), name)).collect();
    let codes = thread::scope(|scope| {
        let storms: Vec<_> = (0..CONNECTIONS)
            .map(|number| {
                let (server, signatures) = (&server, &signatures);
                scope.spawn(move || storm(server, signatures, Choices(seed + number as u64)))
            })
            .collect();
        let all = storms.into_iter().flat_map(|storm| storm.join().unwrap());
        all.fold(BTreeMap::<u16, usize>::new(), |mut counts, (code, count)| {
            *counts.entry(code).or_default() += count;
            counts
        })
    });
    eprintln!("{codes:?}");
    assert!(server.is_running());
    assert!(codes[&200] > REQUESTS / 10, "they should reach the engine: {codes:?}");
    let unfit = codes.keys().find(|code| ![200, 400].contains(code));
    assert_eq!(unfit, None, "{codes:?}");
}

/// The share of one connection; how often each status came.
fn storm(
    server: &Server,
    signatures: &[(Inputs, String)],
    mut choices: Choices,
) -> BTreeMap<u16, usize> {
    let mut connection = server.connect();
    let mut codes = BTreeMap::new();
    for number in 0..REQUESTS / CONNECTIONS {
        let (inputs, model) = &choices.of(signatures);
        let request = request(model, inputs, &mut choices);
        let response = connection
            .try_ask(&request)
            .unwrap_or_else(|error| panic!("{model}: no answer to {number}, {request:?}: {error}"));
        if response.status != 504 || model != WITHOUT_END {
            *codes.entry(response.status).or_default() += 1;
        }
        if response.header("connection") == Some("close") {
            connection = Connection::open(server.http);
        }
        if number % 20 == 0 {
            let right = connection.ask(&Request::post_json(&infer("add_sub"), &add_sub()));
            assert_eq!(right.json()["outputs"][0]["data"][3], 4, "after {model}: {right:?}");
        }
    }
    codes
}
