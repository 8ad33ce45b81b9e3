//! What a request costs in memory: allocations on the path of a small one, bytes held at once for a hostile one.
//!
//! Counts are exact and the same on every machine, so the limits here stand close to what is measured, and each
//! test prints its figures (`--no-capture` shows them). What ONNX Runtime itself allocates is not counted here.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must stop")]
#![allow(clippy::print_stdout, reason = "the figures are for people")]

mod allocator;
mod bodies;
mod plane;

use std::{collections::BTreeMap, sync::Mutex};

use plane::{BODY_BYTES_MAX, RUNNING};

/// Counts are of the whole process: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Thirty features, as a client of a tabular model sends them.
const FEATURES: &str = r#"{"inputs":[{"name":"input","shape":[1,30],"datatype":"FP32","data":[17.08,27.15,111.2,930.9,0.09898,0.111,0.1007,0.06431,0.1793,0.06281,0.9291,1.152,6.051,115.2,0.00874,0.02219,0.02721,0.01458,0.02045,0.004417,22.96,34.49,152.1,1648.0,0.16,0.2444,0.2639,0.1555,0.301,0.0906]}]}"#;

/// Who asks for memory: who stands nearest to the allocation, libraries that only hold data aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Owner {
    /// Our code on the path: `edge`, `wire`, `serve`, `monitor`.
    Own,
    /// The engine's run: `ort`, and what we make of its outputs.
    Engine,
    /// hyper and tokio.
    Http,
}

#[test]
fn small_requests_allocate_little() {
    const OWN_MAX: u64 = 12;
    let _alone = ALONE.lock();
    let mut client = RUNNING.connect();
    let request = bodies::post("/v2/models/breast_cancer/infer", "", FEATURES.as_bytes());
    // Warm; and the worker finds out that it is watched, since a prediction looks at the clock.
    (0..200).for_each(|_| assert_eq!(client.ask(&request).0, 200));
    let before = allocator::watched();
    (0..200).for_each(|_| assert_eq!(client.ask(&request).0, 200));
    let in_all = (allocator::watched() - before) / 200;

    // Now and then a request is the first in a bucket of a histogram, which no other pays again; on a busy machine
    // several in a row.
    let traced = || places(&allocator::traced(|| assert_eq!(client.ask(&request).0, 200)));
    let places = std::iter::repeat_with(traced).take(25).min_by_key(|p| p.values().sum::<u64>());
    let places = places.unwrap();
    let of = |owner| places.iter().filter(|((o, _), _)| *o == owner).map(|(_, n)| n).sum::<u64>();
    let (own, engine, http) = (of(Owner::Own), of(Owner::Engine), of(Owner::Http));
    println!(
        "allocations of a small request: {own} own, {engine} in the engine's run, {http} in hyper and tokio"
    );
    for ((owner, place), count) in &places {
        println!("{count:4} {owner:?} {place}");
    }
    assert_eq!(own + engine + http, in_all, "every allocation has an owner");
    assert!(own <= OWN_MAX, "{own} allocations of our own per request; {OWN_MAX} are promised");
}

#[test]
fn hostile_requests_hold_a_small_multiple_of_the_body_limit() {
    const FACTOR_MAX: f64 = 8.0;
    let _alone = ALONE.lock();
    let warm = bodies::post("/v2/models/breast_cancer/infer", "", FEATURES.as_bytes());
    RUNNING.connect().ask(&warm);
    let mut worst = BTreeMap::new();
    let mut broken = Vec::new();
    for (name, request) in bodies::hostile(BODY_BYTES_MAX) {
        let mut client = RUNNING.connect();
        // Until the worker has let go of the connection before.
        let idle = settled();
        allocator::reset_peak();
        let (status, _) = client.ask(&request);
        let held = allocator::peak().saturating_sub(idle);
        #[expect(clippy::cast_precision_loss, reason = "a factor of two digits")]
        let factor = held as f64 / BODY_BYTES_MAX as f64;
        println!("{factor:6.2} times the limit, {status}: {name}");
        assert!((200..500).contains(&status) && status != 404, "{name}: {status}");
        let worst = worst.entry(status == 200).or_insert((factor, name));
        if factor > worst.0 {
            *worst = (factor, name);
        }
        if factor > FACTOR_MAX {
            broken.push(name);
        }
    }
    for (answered, (factor, name)) in worst {
        let kind = if answered { "answered" } else { "refused" };
        println!("the worst of those {kind} takes {factor:.2} times the limit: {name}");
    }
    assert!(broken.is_empty(), "more than {FACTOR_MAX} times: {broken:#?}");
}

/// Bytes held once nothing is being let go of any more.
fn settled() -> usize {
    loop {
        let before = allocator::live();
        std::thread::park_timeout(std::time::Duration::from_millis(10));
        if allocator::live() == before {
            return before;
        }
    }
}

/// Allocations by owner and place: the line of ours that is nearest.
fn places(traces: &BTreeMap<String, u64>) -> BTreeMap<(Owner, String), u64> {
    let mut places = BTreeMap::new();
    for (trace, count) in traces {
        let lines = || trace.lines().filter_map(|line| line.trim_start().strip_prefix("at "));
        let owner = lines().find_map(|line| match () {
            () if line.contains("/src/engine/") || line.contains("/ort-2") => Some(Owner::Engine),
            () if line.contains("/hyper-") || line.contains("/tokio-") => Some(Owner::Http),
            () if line.contains("/registry/") || line.contains("/rustc/") => None,
            () if line.contains("/src/") => Some(Owner::Own),
            () => None,
        });
        let ours = lines().find(|line| line.contains("/src/") && !line.contains("/registry/"));
        let ours = lines().find(|line| line.starts_with("./src/")).or(ours);
        let place =
            (owner.expect("the test profile has line tables"), ours.unwrap_or("").to_owned());
        *places.entry(place).or_default() += count;
    }
    places
}
