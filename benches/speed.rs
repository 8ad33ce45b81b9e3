//! How long the pieces of a prediction take: decoding, encoding, and a whole one without sockets; what a watched
//! feature costs each second; and what recording costs.
//!
//! `cargo bench --bench speed -- decode` runs a part. Where clocks are noisy, `instructions` counts instead.

#![allow(missing_docs, reason = "criterion's macros make public functions")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on must stop")]
#![allow(clippy::cast_precision_loss, reason = "numbers of bins are small")]

mod registered;
mod requests;
mod watched;

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use registered::Registered;
use requests::Served;
use tidegate::{
    engine::{self, Engines, ModelFile, SessionOptions},
    model::{ArmName, EngineChoice, ModelName, VersionId},
    monitor::{Clock, Code, Monitor, Sample, WorkerId},
    stats::{Alternatives, BinRole, Correction, ShiryaevRoberts},
    tensor::DataType,
    wire::v2,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    let limits = v2::Limits::default();
    let (binary, json_bytes) = requests::binary_image();
    let bodies = [
        ("30 floats", requests::FEATURES.into(), None),
        ("image, 4 digits", requests::image(4), None),
        ("image, 7 digits", requests::image(7), None),
        ("image, 17 digits", requests::image(17), None),
        ("image, binary", binary, Some(json_bytes)),
    ];
    for (name, body, json_bytes) in bodies {
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| v2::decode_infer(black_box(&body), json_bytes, &limits).unwrap());
        });
    }
}

fn encode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    let served = Served::without_engine();
    let outputs = requests::answer();
    group.bench_function("label and 2 probabilities", |bencher| {
        bencher.iter(|| served.encode(black_box(&outputs)));
    });
    let image = v2::decode_infer(&requests::image(7), None, &v2::Limits::default()).unwrap();
    let image = [image.inputs[0].tensor.clone()];
    group.throughput(Throughput::Elements(image[0].len() as u64));
    group.bench_function("image, 7 digits", |bencher| {
        bencher.iter(|| served.encode(black_box(&image)));
    });
}

fn predict(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("predict");
    let mut bench = |name: &str, served: &Served, body: &Bytes| {
        group.bench_function(name, |bencher| bencher.iter(|| served.predict(black_box(body))));
    };
    bench("without the engine", &Served::without_engine(), &requests::FEATURES.into());
    bench("without the engine, remembered", &Served::remembering(), &requests::FEATURES.into());
    let engines = Engines::open(&engine::Settings::default()).unwrap();
    let Ok(engine) = engines.choose(EngineChoice::Auto) else {
        return eprintln!("no engine, so no predictions: `make engine` fetches its library");
    };
    for (name, path) in [
        ("forest, 30 floats", "models/breast_cancer/1/model.onnx"),
        ("perceptron, 20 floats", "loadtests/models/mlp/1/model.onnx"),
    ] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        let file = ModelFile {
            bytes: std::fs::read(path).unwrap().into(),
            external: Vec::new(),
            summary: std::sync::Arc::default(),
            packed: tidegate::engine::Packed::default(),
        };
        let session =
            engine.load(&file, SessionOptions { intra_op_threads: 1, arena: None }).unwrap();
        let served = Served::by(session);
        bench(name, &served, &served.row());
    }
}

/// From a model's name to the version that answers. A walk takes another name each time, so that with many names what
/// it costs is mostly the processor's cache.
fn lookup(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("lookup");
    for models in [10, 1_000, 10_000] {
        for publishes in [0, 1_000] {
            let registered = Registered::new(models);
            (0..publishes).for_each(|_| registered.publish());
            let when = format!("{models} models, {publishes} publishes");
            group.bench_function(format!("one name, {when}"), |bencher| {
                bencher.iter(|| registered.find(black_box(0)));
            });
            let mut at = 0;
            group.bench_function(format!("walk, {when}"), |bencher| {
                bencher.iter(|| {
                    // A step that shares no factor with the number of names visits all of them.
                    at = (at + 7_919) % models;
                    registered.find(black_box(at));
                });
            });
        }
    }
    group.finish();
    let mut group = criterion.benchmark_group("publish");
    for models in [10, 1_000, 10_000] {
        let registered = Registered::new(models);
        group.bench_function(format!("{models} models"), |bencher| {
            bencher.iter(|| registered.publish());
        });
    }
}

/// What each watched feature costs once a second: 1,000 values of a number with 16 inner bins, or of 30 categories.
fn advance(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("advance");
    let ends = [BinRole::Below, BinRole::Above, BinRole::NonFinite, BinRole::Missing];
    let numeric = [&ends[..1], &[BinRole::Ordered; 16], &ends[1..]].concat();
    let rare = [BinRole::Other, BinRole::Unseen, BinRole::Missing];
    let categorical = [&[BinRole::Category; 30][..], &rare].concat();
    for (name, roles) in [("number", numeric), ("category", categorical)] {
        let masses = vec![1.0 / roles.len() as f64; roles.len()];
        let make = if name == "number" { Alternatives::numeric } else { Alternatives::categorical };
        let alternatives = make(&masses, &roles, Correction::NONE);
        let counts = vec![1000 / roles.len() as u64; roles.len()];
        let mut detector = ShiryaevRoberts::new(alternatives.len());
        let shape = format!("{name}: {} bins, {} alternatives", roles.len(), alternatives.len());
        group.bench_function(shape, |bencher| {
            bencher.iter(|| {
                detector.advance(&alternatives, black_box(&counts), 1.0, 0.0);
                detector.log_m()
            });
        });
    }
}

/// What drift costs on the path: each value's bin found and counted.
fn count(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("count");
    for (name, rows) in [("1 row", 1), ("100 rows", 100)] {
        for (kind, datatype) in [("FP32", DataType::Fp32), ("INT64", DataType::Int64)] {
            let (recorder, inputs) = watched::columns(datatype, rows, 30);
            group.throughput(Throughput::Elements(rows as u64 * 30));
            group.bench_function(format!("{name} of 30 {kind}"), |bencher| {
                bencher.iter(|| recorder.inputs(WorkerId(0), black_box(&inputs), rows));
            });
        }
        group.throughput(Throughput::Elements(rows as u64));
        let categories =
            [("a category", watched::categories(rows)), ("a code", watched::codes(rows))];
        for (kind, (recorder, inputs)) in categories {
            group.bench_function(format!("{name} of {kind}"), |bencher| {
                bencher.iter(|| recorder.inputs(WorkerId(0), black_box(&inputs), rows));
            });
        }
    }
}

/// The cost of recording on the path, without the readings of the clock: a request in flight, its sample with all its
/// phases, its answer.
fn record(criterion: &mut Criterion) {
    let monitor = Monitor::new(2, Arc::new(StoppedClock(Instant::now())));
    let name = ModelName::parse("fraud").unwrap();
    let arm = monitor.version(&name, VersionId::new(1)).arm(ArmName::BASELINE);
    let (server, worker, ok) = (monitor.server(), WorkerId(0), Code::from_status(200));
    let mut group = criterion.benchmark_group("record");
    for (kind, trace) in [("a request", None), ("a traced request", Some(7))] {
        let mut number = 0u64;
        group.bench_function(kind, |bencher| {
            bencher.iter(|| {
                // Latencies between 20 us and 1 ms, so that no count stays in a register.
                number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let run = Duration::from_nanos(10_000 + (number >> 44));
                let sample = Sample {
                    rows: 1,
                    decode: run / 8,
                    queue: Duration::ZERO,
                    run,
                    encode: run / 4,
                    total: run * 2,
                    trace,
                };
                let in_flight = server.begun(worker);
                arm.record(worker, ok, black_box(&sample), Duration::from_secs(1));
                server.answered(worker, ok);
                drop(in_flight);
            });
        });
    }
}

#[derive(Debug)]
struct StoppedClock(Instant);

impl Clock for StoppedClock {
    fn now(&self) -> Instant {
        self.0
    }

    fn unix(&self) -> Duration {
        Duration::from_secs(1)
    }
}

criterion_group! {
    name = benches;
    // Enough to see a change of some percent, little enough to be run often.
    config = Criterion::default().sample_size(30).without_plots();
    targets = decode, encode, predict, lookup, advance, count, record
}
criterion_main!(benches);
