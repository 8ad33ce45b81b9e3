//! What Prometheus reads: a ledger that equals what clients sent, and labels that clients cannot invent.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
};

use serde_json::json;

use crate::{
    http::{Connection, Request},
    repository::{Repository, source},
    server::{Launch, Server, eventually},
    tensors::{add_sub, infer},
};

/// One line of the exposition.
#[derive(Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// Scrapes and parses; every line must be well-formed.
fn scrape(server: &Server) -> Vec<Sample> {
    let response = server.admin("/metrics").ok();
    let content = response.header("content-type").unwrap_or_default();
    assert!(content.starts_with("text/plain"), "{content}");
    let text = response.text();
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(parse).collect()
}

fn parse(line: &str) -> Sample {
    let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("`{line}`"));
    let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
    let labels = labels.strip_suffix('}').unwrap_or_else(|| panic!("`{line}`"));
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=').unwrap_or_else(|| panic!("`{line}`"));
        (key.to_owned(), value.trim_matches('"').to_owned())
    };
    Sample {
        name: name.to_owned(),
        labels: labels.split(',').filter(|text| !text.is_empty()).map(pair).collect(),
        value: value.parse().unwrap_or_else(|_| panic!("`{line}`")),
    }
}

impl Sample {
    fn label(&self, key: &str) -> &str {
        self.labels.get(key).map_or("", String::as_str)
    }
}

/// How many requests there were, by model, version and code.
fn ledger(samples: &[Sample]) -> BTreeMap<(&str, &str, &str), f64> {
    let mut ledger = BTreeMap::new();
    for sample in samples.iter().filter(|s| s.name == "tidegate_requests_total" && s.value > 0.0) {
        let key = (sample.label("model"), sample.label("version"), sample.label("code"));
        *ledger.entry(key).or_default() += sample.value;
    }
    ledger
}

#[test]
fn requests_are_counted_exactly_and_only_under_registered_names() {
    let server = Server::over(&Repository::of(&["add_sub", "scalar"]));
    assert!(ledger(&scrape(&server)).is_empty(), "nobody has asked anything yet");

    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut connection = server.connect();
                for _ in 0..50 {
                    connection.ask(&Request::post_json(&infer("add_sub"), &add_sub())).ok();
                }
            });
        }
    });
    for _ in 0..3 {
        let refused = server.post(&infer("add_sub"), &json!({"inputs": []}));
        assert_eq!(refused.status, 400);
    }
    for number in 0..40 {
        let stranger = format!("stranger-{number}");
        assert_eq!(server.post(&infer(&stranger), &add_sub()).status, 404);
        let path = format!("/v2/models/add_sub/versions/{}/infer", 7_000 + number);
        assert_eq!(server.post(&path, &add_sub()).status, 404);
        let invented = format!("invented-{number}");
        let request = Request::get("/v2").header("x-request-id", &invented);
        server.ask(&request.header("user-agent", &invented)).ok();
    }

    let samples = scrape(&server);
    let ledger = ledger(&samples);
    let of_code = |code: &str| -> f64 {
        ledger.iter().filter(|((_, _, own), _)| *own == code).map(|(_, count)| count).sum()
    };
    assert_eq!(ledger.get(&("add_sub", "1", "200")), Some(&200.0), "{ledger:?}");
    assert_eq!(of_code("200").to_bits(), 200.0_f64.to_bits(), "{ledger:?}");
    assert_eq!(of_code("400").to_bits(), 3.0_f64.to_bits(), "{ledger:?}");
    // Versions that are not there count under their model, models that are not there only among all answers.
    assert_eq!(of_code("404").to_bits(), 40.0_f64.to_bits(), "{ledger:?}");
    assert!(ledger.keys().all(|(model, ..)| *model == "add_sub"), "{ledger:?}");
    let answers: BTreeMap<_, _> = samples
        .iter()
        .filter(|sample| sample.name == "tidegate_http_responses_total" && sample.value > 0.0)
        .map(|sample| (sample.label("code"), sample.value))
        .collect();
    assert_eq!(answers, BTreeMap::from([("200", 240.0), ("400", 3.0), ("404", 80.0)]));
    for sample in &samples {
        for (key, value) in &sample.labels {
            let strange = ["stranger", "invented", "70"].iter().any(|text| value.starts_with(text));
            assert!(!strange || key == "le", "{sample:?}");
        }
        let ours = ["tidegate_", "process_"].iter().any(|prefix| sample.name.starts_with(prefix));
        assert!(ours, "{sample:?}");
    }
}

#[test]
fn durations_form_a_proper_histogram() {
    let server = Server::over(&Repository::of(&["add_sub"]));
    for _ in 0..25 {
        server.post(&infer("add_sub"), &add_sub()).ok();
    }
    let samples = scrape(&server);
    let of = |name: &str| -> Vec<&Sample> {
        let name = format!("tidegate_request_duration_seconds_{name}");
        samples.iter().filter(|s| s.name == name && s.label("model") == "add_sub").collect()
    };
    let count: f64 = of("count").iter().map(|sample| sample.value).sum();
    assert_eq!(count.to_bits(), 25.0_f64.to_bits());
    let sum: f64 = of("sum").iter().map(|sample| sample.value).sum();
    assert!(sum > 0.0 && sum < 20.0, "{sum} seconds");

    let buckets = of("bucket");
    let mut counts: Vec<(f64, f64)> =
        buckets.iter().map(|sample| (sample.label("le").parse().unwrap(), sample.value)).collect();
    counts.sort_by(|a, b| a.0.total_cmp(&b.0));
    assert!(counts.len() > 5, "{buckets:?}");
    assert!(counts.is_sorted_by_key(|(_, count)| *count), "{counts:?}");
    let last = counts.last().unwrap();
    assert!(last.0.is_infinite(), "{counts:?}");
    assert_eq!(last.1.to_bits(), count.to_bits(), "{counts:?}");
    assert_eq!(server.admin("/metrics/x").status, 404);
}

/// The sum of the samples of a name that have these labels.
fn sum(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let has = |sample: &&Sample| {
        sample.name == name && labels.iter().all(|(key, value)| sample.label(key) == *value)
    };
    samples.iter().filter(has).map(|sample| sample.value).reduce(|sum, value| sum + value)
}

/// Waits until a sum is this one.
fn wait_for(server: &Server, name: &str, labels: &[(&str, &str)], expected: f64) {
    let what = format!("{name} {labels:?} is {expected}");
    eventually(&what, || {
        let found = sum(&scrape(server), name, labels);
        found.is_some_and(|found| found.to_bits() == expected.to_bits()).then_some(())
    });
}

#[test]
fn swaps_failed_loads_and_versions_let_go_are_counted() {
    let repository = Repository::of(&["add_sub"]);
    let launch = Launch::of(&repository).set("REPOSITORY__POLL_INTERVAL", "100ms");
    let server = launch.start();
    let add_sub_is = |state| [("model", "add_sub"), ("version", "1"), ("state", state)];
    wait_for(&server, "tidegate_version_state", &add_sub_is("ready"), 1.0);
    let first = scrape(&server);
    assert_eq!(sum(&first, "tidegate_version_state", &add_sub_is("loading")), None);
    assert_eq!(sum(&first, "tidegate_loads_total", &[("outcome", "ok")]), Some(1.0));
    assert_eq!(sum(&first, "tidegate_swaps_total", &[]), None, "nothing was there before");
    assert_eq!(sum(&first, "tidegate_state_durable", &[]), Some(1.0));
    assert_eq!(sum(&first, "tidegate_repository_readable", &[]), Some(1.0));
    assert!(sum(&first, "tidegate_repository_last_read_timestamp_seconds", &[]).unwrap() > 1.7e9);
    let generation = sum(&first, "tidegate_table_generation", &[]).unwrap();
    for phase in ["fetch", "proof", "sessions", "warmup"] {
        let count = sum(&first, "tidegate_load_duration_seconds_count", &[("phase", phase)]);
        assert_eq!(count, Some(1.0), "{phase}");
        let took = sum(&first, "tidegate_load_duration_seconds_sum", &[("phase", phase)]);
        assert!(took.is_some_and(|took| took > 0.0 && took < 20.0), "{phase}: {took:?}");
    }
    let bytes = fs::metadata(source("add_sub", "1")).unwrap().len();
    #[expect(clippy::cast_precision_loss, reason = "a page of metrics holds doubles")]
    let bytes = bytes as f64;

    repository.add_bytes("add_sub", "2", &fs::read(source("add_sub", "1")).unwrap());
    wait_for(&server, "tidegate_swaps_total", &[("model", "add_sub")], 1.0);
    wait_for(&server, "tidegate_versions_freed_total", &[], 1.0);
    repository.add_bytes("add_sub", "3", b"garbage");
    let refused = [("model", "add_sub"), ("outcome", "malformed")];
    wait_for(&server, "tidegate_loads_total", &refused, 1.0);
    let last = scrape(&server);
    assert_eq!(sum(&last, "tidegate_loads_total", &[("outcome", "ok")]), Some(2.0));
    assert_eq!(sum(&last, "tidegate_swaps_total", &[]), Some(1.0));
    assert_eq!(sum(&last, "tidegate_versions_retired_total", &[]), Some(1.0));
    assert_eq!(sum(&last, "tidegate_versions_draining", &[]), Some(0.0));
    assert_eq!(sum(&last, "tidegate_resident_model_bytes", &[]), Some(bytes));
    assert!(sum(&last, "tidegate_table_generation", &[]).unwrap() > generation);
    let third = [("model", "add_sub"), ("version", "3"), ("state", "unavailable")];
    assert_eq!(sum(&last, "tidegate_version_state", &third), Some(1.0));
}

#[test]
fn a_repository_out_of_reach_is_told_and_makes_nothing_unready() {
    let repository = Repository::of(&["add_sub"]);
    let server = Launch::of(&repository).set("REPOSITORY__POLL_INTERVAL", "100ms").start();
    assert_eq!(server.admin("/readyz?verbose").text(), "ok\n");
    let away = repository.beside("away");
    fs::rename(repository.path(), &away).unwrap();
    wait_for(&server, "tidegate_repository_readable", &[], 0.0);
    let ready = server.admin("/readyz?verbose");
    assert_eq!(ready.status, 200, "{ready:?}");
    assert!(ready.text().contains("note: the repository cannot be read"), "{ready:?}");
    assert_eq!(server.admin("/readyz").text(), "ok\n");
    let listed = server.admin("/api/v1/models").json();
    assert!(listed["notes"][0].as_str().unwrap().contains("cannot be read"), "{listed}");
    server.post(&infer("add_sub"), &add_sub()).ok();
    fs::rename(&away, repository.path()).unwrap();
    wait_for(&server, "tidegate_repository_readable", &[], 1.0);
    assert_eq!(server.admin("/readyz?verbose").text(), "ok\n");
}

#[test]
fn saturation_follows_the_load() {
    let launch = Launch::of(&Repository::of(&["add_sub"])).set("METRICS__OBJECTIVES", "1us");
    let server = launch.start();
    let now = |name: &str| sum(&scrape(&server), name, &[]).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut connection = server.connect();
                while !done.load(Relaxed) {
                    connection.ask(&Request::post_json(&infer("add_sub"), &add_sub())).ok();
                }
            });
        }
        eventually("workers are busy", || (now("tidegate_busy_ratio") > 0.1).then_some(()));
        // No request takes less than the objective.
        let saturation = now("tidegate_saturation_ratio");
        done.store(true, Relaxed);
        assert_eq!(saturation.to_bits(), 1.0_f64.to_bits());
    });
}

/// Sends what is refused for each of many reasons, and gives the model and the reason that counts each.
fn provoke(server: &Server) -> Vec<(&'static str, &'static str)> {
    let post = |body: &str| Request::post(&infer("add_sub"), body).header("content-type", "x/json");
    let mut late = add_sub();
    late["parameters"] = json!({"timeout": 1});
    let mut strange = add_sub();
    strange["inputs"][0]["name"] = json!("nobody");
    let cases = [
        (Request::get("/nothing"), 404, "", "path"),
        (Request::get(&infer("add_sub")), 405, "add_sub", "method"),
        (post("{\"inputs\": [{"), 400, "add_sub", "malformed"),
        (Request::post_json(&infer("add_sub"), &strange), 400, "add_sub", "signature"),
        (Request::post_json(&infer("none"), &add_sub()), 404, "", "unknown_model"),
        (
            Request::post_json("/v2/models/add_sub/versions/7/infer", &add_sub()),
            404,
            "add_sub",
            "unknown_version",
        ),
        (post("{}").header("content-encoding", "br"), 415, "add_sub", "encoding"),
        (post(&"9".repeat(5_000)), 413, "add_sub", "body_size"),
        (post("{}").header("origin", "http://elsewhere"), 403, "add_sub", "web_page"),
        (Request::get(&format!("/v2/{}", "9".repeat(10_000))), 414, "", "head"),
        (Request::post_json("/v2/logging", &json!({})), 501, "", "unsupported"),
        (Request::post_json("/v2/repository/models/none/load", &json!({})), 404, "", "api"),
        (Request::post_json(&infer("add_sub"), &late), 504, "add_sub", "deadline"),
    ];
    let mut expected = Vec::new();
    for (request, status, model, reason) in cases {
        assert_eq!(server.ask(&request).status, status, "{reason}");
        expected.push((model, reason));
    }
    let half = "POST /v2/models/add_sub/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{";
    server.connect().send(half);
    expected.push(("add_sub", "gone"));
    let mut slow = server.connect();
    slow.send("GET /v2 HT");
    assert!(slow.is_closed());
    expected.push(("", "slow_head"));
    // Those that are just ending take a place, too.
    let mut held: Vec<_> = (0..20).map(|_| server.connect()).collect();
    eventually("a connection is turned away", || {
        held.push(server.connect());
        let request = Request::get("/v2");
        (held.last_mut()?.try_ask(&request).ok()?.status == 503).then_some(())
    });
    expected.push(("", "connections"));
    expected
}

#[test]
fn every_refusal_has_a_reason() {
    let launch = Launch::of(&Repository::of(&["add_sub"]))
        .set("LIMITS__BODY", "4KiB")
        .set("LIMITS__HEADER_TIMEOUT", "200ms")
        .set("LIMITS__CONNECTIONS", "20");
    let server = launch.start();
    let total = |name: &str| sum(&scrape(&server), name, &[]).unwrap_or_default();
    assert_eq!(total("tidegate_refusals_total").to_bits(), 0.0_f64.to_bits());
    server.post(&infer("add_sub"), &add_sub()).ok();
    let expected = provoke(&server);
    let gone = [("model", "add_sub"), ("reason", "gone")];
    wait_for(&server, "tidegate_refusals_total", &gone, 1.0);
    let samples = scrape(&server);
    for (model, reason) in &expected {
        let labels = [("model", *model), ("reason", *reason)];
        let counted = sum(&samples, "tidegate_refusals_total", &labels);
        // A loop turned one away, perhaps several.
        let counted = counted.map(|n| if *reason == "connections" { n.min(1.0) } else { n });
        assert_eq!(counted, Some(1.0), "{model} {reason}");
    }
    // Whatever did not end well has one reason.
    let of = |name: &str, of: &dyn Fn(&Sample) -> bool| -> f64 {
        let own = samples.iter().filter(|sample| sample.name == name && of(sample));
        own.map(|sample| sample.value).sum()
    };
    let is_bad = |sample: &Sample| sample.label("code") >= "400";
    let without = |sample: &Sample| ["slow_head", "connections"].contains(&sample.label("reason"));
    let reasons = of("tidegate_refusals_total", &|sample| !without(sample));
    let ended = of("tidegate_http_responses_total", &is_bad)
        + of("tidegate_http_heads_refused_total", &|_| true);
    assert_eq!(reasons.to_bits(), ended.to_bits(), "{reasons} reasons of {ended}");
}

/// Kind and labels of each metric on the page about them.
fn documented() -> BTreeMap<&'static str, (&'static str, BTreeSet<&'static str>)> {
    let page = include_str!("../../docs/metrics.md");
    let mut found = BTreeMap::new();
    let words = |cell: &'static str| cell.split('`').skip(1).step_by(2);
    for row in page.lines().filter_map(|line| line.strip_prefix("| `")) {
        let mut cells = row.split(" | ");
        let [names, kind] = [cells.next().unwrap(), cells.next().unwrap()];
        let labels = row[names.len() + 3 + kind.len()..].trim_start_matches([' ', '|']);
        let labels = if row.contains(&format!("{kind} | | ")) {
            BTreeSet::new()
        } else {
            words(labels.split(" | ").next().unwrap()).collect()
        };
        let kind = kind.strip_prefix("native ").unwrap_or(kind);
        for name in names.split('`').step_by(2) {
            assert!(found.insert(name, (kind, labels.clone())).is_none(), "{name} stands twice");
        }
    }
    found
}

#[test]
fn every_family_is_documented_and_well_formed() {
    let repository = Repository::of(&["add_sub"]);
    let server = Launch::of(&repository).set("METRICS__COMPAT", "triton").start();
    server.post(&infer("add_sub"), &add_sub()).ok();
    let arms = json!({"arms": [{"name": "baseline", "version": 1, "weight": 1.0}]});
    let split = Request::post_json("/api/v1/models/add_sub/traffic", &arms).method("PUT");
    Connection::open(server.admin).ask(&split).ok();
    let text = server.admin("/metrics").ok().text();
    let documented = documented();
    let mut families = BTreeMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        assert!(text.contains(&format!("# HELP {name} ")), "{name}");
        let is_ours = !name.starts_with("nv_");
        assert!(!is_ours || name.ends_with("_total") == (kind == "counter"), "{line}");
        assert!(families.insert(name, (kind, BTreeSet::new())).is_none(), "{name} is there twice");
    }
    let samples: Vec<Sample> =
        text.lines().filter(|line| !line.starts_with('#')).map(parse).collect();
    for sample in &samples {
        let name = ["_bucket", "_sum", "_count"].iter().find_map(|end| {
            sample.name.strip_suffix(end).filter(|name| families.contains_key(name))
        });
        let labels = sample.labels.keys().map(String::as_str).filter(|label| *label != "le");
        families.get_mut(name.unwrap_or(&sample.name)).unwrap().1.extend(labels);
    }
    assert!(families.len() > 50, "{families:?}");
    for (name, family) in &families {
        assert_eq!(documented.get(name), Some(family), "{name} in docs/metrics.md");
    }
    // The other way round, by the names in the code: not every family has something to say here.
    let code = [
        include_str!("../../src/monitor/exposition.rs"),
        include_str!("../../src/admin/metrics.rs"),
    ]
    .concat();
    let named = code.split('"').filter(|text| {
        ["tidegate_", "process_", "nv_"].iter().any(|prefix| text.starts_with(prefix))
            && text.chars().all(|c| c.is_ascii_lowercase() || c == '_')
    });
    let named: BTreeSet<&str> = named.collect();
    assert_eq!(documented.keys().copied().collect::<BTreeSet<_>>(), named);
}

#[test]
fn nothing_that_a_client_sends_becomes_a_series() {
    let server = Server::over(&Repository::of(&["add_sub"]));
    let mut connection = server.connect();
    connection.ask(&Request::post_json(&infer("add_sub"), &add_sub())).ok();
    let values = |samples: &[Sample]| -> BTreeSet<(String, String)> {
        let pairs = samples.iter().flat_map(|sample| sample.labels.clone());
        // Words of closed sets.
        pairs.filter(|(key, _)| !["code", "le", "reason"].contains(&key.as_str())).collect()
    };
    let before = values(&scrape(&server));
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        // xorshift64, Marsaglia 2003.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let headers =
        ["x-request-id", "user-agent", "x-tidegate-key", "x-tidegate-route", "traceparent"];
    for _ in 0..200 {
        let word = format!("zz{:x}", random());
        let path = match random() % 6 {
            0 => infer(&word),
            1 => format!("/v2/models/add_sub/versions/{}/infer", random() % 1_000_000 + 2),
            2 => format!("/v2/models/add_sub/versions/{word}/infer"),
            3 => format!("/{word}/{word}"),
            _ => infer("add_sub"),
        };
        let mut body = add_sub();
        match random() % 4 {
            0 => body["id"] = word.clone().into(),
            1 => body["inputs"][0]["name"] = word.clone().into(),
            2 => body["outputs"] = json!([{"name": word}]),
            _ => {}
        }
        let header = headers[usize::try_from(random() % 5).unwrap()];
        let request = Request::post_json(&path, &body).header(header, &word);
        // Some answers end the connection.
        if connection.try_ask(&request).map_or(true, |answer| answer.closes()) {
            connection = server.connect();
        }
    }
    let after = values(&scrape(&server));
    // Requests that reach no model or version have an empty one.
    let empty = ["model", "version", "arm"].map(|label| (label.to_owned(), String::new()));
    // And a version that is named answers on an arm of its own.
    let direct = [("arm".to_owned(), "direct".to_owned())];
    let new: Vec<_> = after.difference(&before).collect();
    assert!(new.iter().all(|pair| empty.contains(pair) || direct.contains(pair)), "{new:?}");
}
