//! Shadows: copies reach them, answers stay the baseline's, and whatever a shadow does, nobody waits for it.

use std::{
    fs,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    deadlines::one_kernel,
    http::{Connection, Request},
    models::{FLOAT, INT64, counted_loop, declared, graph, int_attribute, integers, model, node},
    repository::{Repository, source},
    server::{Launch, PATIENCE, Server, eventually},
    tensors::{identity, in_binary, infer},
};

/// More rounds than anybody lives to see.
const ENDLESS: i64 = 1 << 40;

/// Two versions of `m` by the names of their files' models.
fn pair(baseline: &[u8], shadow: &[u8]) -> Repository {
    let repository = Repository::empty();
    repository.add_bytes("m", "1", baseline);
    repository.add_bytes("m", "2", shadow);
    repository
}

fn file(name: &str) -> Vec<u8> {
    fs::read(source(name, "1")).unwrap()
}

/// Has version 1 answer, and copies this share to version 2.
fn shadow(server: &Server, share: f64) {
    let body = json!({
        "arms": [{"name": "baseline", "version": 1, "weight": 1}],
        "shadow": [{"version": 2, "share": share}],
    });
    let path = "/api/v1/models/m/traffic";
    Connection::open(server.admin).ask(&Request::post_json(path, &body).method("PUT")).ok();
}

/// Returns what the server says of version 2 as a shadow.
fn seen(server: &Server) -> Value {
    server.admin("/api/v1/models/m/traffic").ok().json()["shadow"][0].clone()
}

fn number(seen: &Value, field: &str) -> u64 {
    seen[field].as_u64().unwrap_or_else(|| panic!("{field} in {seen}"))
}

/// Returns what the server says of version 2 once so many copies were run or dropped.
fn settled(server: &Server, offered: u64) -> Value {
    eventually("all copies are counted", || {
        let seen = seen(server);
        let counted = number(&seen, "requests") + number(&seen, "dropped");
        assert!(counted <= offered, "{seen}");
        (counted == offered).then_some(seen)
    })
}

/// The request for a value of a model with `rounds`, of which version 1 makes a number at once.
fn rounds(count: i64) -> Request {
    let tensor = json!({"name": "rounds", "shape": [1], "datatype": "INT64", "data": [count]});
    Request::post_json(&infer("m"), &json!({"inputs": [tensor]}))
}

/// Builds a model that gives the result of a loop of `rounds` rounds, without the loop.
fn quick() -> Vec<u8> {
    let cast = node("Cast", &["rounds"], &["y"]).message(5, int_attribute("to", FLOAT));
    let inputs = vec![declared("rounds", INT64, &[1])];
    model(graph(vec![cast], Vec::new(), inputs, vec![declared("y", FLOAT, &[1])]))
}

#[test]
fn copies_reach_the_shadow_and_answers_stay_the_baselines() {
    let repository = pair(&file("identity_fp32"), &file("doubled_fp32"));
    let server = Launch::of(&repository).start();
    shadow(&server, 1.0);
    let body = identity("FP32", &json!([1.5, 3.0]));
    let mut client = server.connect();
    let path = infer("m");
    let classified = {
        let mut body = body.clone();
        body["outputs"] = json!([{"name": "OUTPUT", "parameters": {"classification": 1}}]);
        Request::post_json(&path, &body)
    };
    for request in [Request::post_json(&path, &body), in_binary(&path, &body), classified] {
        for _ in 0..20 {
            let answer = client.ask(&request).ok();
            assert_eq!(answer.header("x-tidegate-version"), Some("1"));
            assert_eq!(answer.header("x-tidegate-arm"), Some("baseline"));
        }
    }
    let plain = client.ask(&Request::post_json(&path, &body)).ok();
    assert_eq!(plain.json()["outputs"][0]["data"], json!([1.5, 3.0]));
    // Neither what names a version nor what fails.
    client.ask(&Request::post_json("/v2/models/m/versions/2/infer", &body)).ok();
    assert_eq!(client.ask(&Request::post_json(&path, &json!({"inputs": []}))).status, 400);
    let seen = settled(&server, 61);
    let expected = json!({
        "version": "2", "share": 1.0, "requests": 61, "dropped": 0, "disagreements": 61, "rate": 1.0,
        "max_absolute": 3.0, "max_relative": 0.5, "argmax_flips": 0, "label_flips": 0, "failed": 0,
    });
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(seen[field], *value, "{field} in {seen}");
    }
    assert!(seen["rate_lower"].as_f64() > Some(0.8), "{seen}");
    assert_eq!(seen["rate_upper"], 1.0);
    let page = server.admin("/metrics").text();
    for (metric, value) in [("requests", 61), ("dropped", 0), ("disagreements", 61)] {
        let line = format!("tidegate_shadow_{metric}_total{{model=\"m\",version=\"2\"}} {value}");
        assert!(page.contains(&line), "{line} is not in\n{page}");
    }
    assert!(!page.contains("tidegate_shadow_requests_total{model=\"m\",version=\"1\""), "{page}");
    // Nobody counts copies as requests.
    let own = r#"tidegate_requests_total{model="m",version="2",arm="baseline""#;
    assert!(!page.contains(own), "{page}");
}

#[test]
fn a_share_is_copied_and_the_same_file_agrees() {
    let repository = pair(&file("identity_fp32"), &file("identity_fp32"));
    let server = Launch::of(&repository).set("SERVE__SHADOW_WAITING", "1000").start();
    shadow(&server, 0.5);
    let mut client = server.connect();
    let request = Request::post_json(&infer("m"), &identity("FP32", &json!([1.5])));
    // All by the same key: every client is sampled.
    let request = request.header("x-tidegate-key", "one");
    for _ in 0..400 {
        client.ask(&request).ok();
    }
    let seen = eventually("it has settled", || {
        let seen = seen(&server);
        // Half of 400, within five deviations.
        (150..=250).contains(&number(&seen, "requests")).then_some(seen)
    });
    assert_eq!((number(&seen, "disagreements"), number(&seen, "failed")), (0, 0), "{seen}");
    assert!(seen["rate_upper"].as_f64() < Some(0.1), "{seen}");
}

#[test]
fn a_shadow_that_refuses_what_was_answered_disagrees() {
    let picks = |entries: i64| {
        let values: Vec<i64> = (1..=entries).map(|entry| 10 * entry).collect();
        model(graph(
            vec![node("Gather", &["table", "x"], &["y"])],
            vec![integers("table", INT64, &[entries], &values)],
            vec![declared("x", INT64, &[-1])],
            vec![declared("y", INT64, &[-1])],
        ))
    };
    let server = Launch::of(&pair(&picks(5), &picks(3))).start();
    shadow(&server, 1.0);
    for index in [0, 1, 4, 2] {
        let tensor = json!({"name": "x", "shape": [1], "datatype": "INT64", "data": [index]});
        let answer = server.post(&infer("m"), &json!({ "inputs": [tensor] })).ok();
        assert_eq!(answer.json()["outputs"][0]["data"], json!([10 * (index + 1)]));
    }
    let seen = settled(&server, 4);
    for (field, value) in [("requests", 4), ("failed", 1), ("disagreements", 1), ("label_flips", 0)]
    {
        assert_eq!(number(&seen, field), value, "{field} in {seen}");
    }
}

#[test]
fn a_shadow_that_never_ends_delays_nobody_and_can_be_unloaded() {
    let repository = pair(&quick(), &counted_loop());
    let mut server = Launch::of(&repository).set("SERVE__SHADOW_WAITING", "4").start();
    shadow(&server, 1.0);
    let mut client = server.connect();
    let begin = Instant::now();
    for _ in 0..50 {
        let answer = client.ask(&rounds(ENDLESS)).ok();
        assert_eq!(answer.header("x-tidegate-version"), Some("1"));
    }
    // One of its runs takes 30 seconds.
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    assert_eq!(number(&seen(&server), "dropped"), 46);
    let draining = || {
        let page = server.admin("/metrics").text();
        let mut lines = page.lines();
        lines.find_map(|line| line.strip_prefix("tidegate_versions_draining ")).map(str::to_owned)
    };
    server.post("/v2/repository/models/m/unload", &json!({})).ok();
    eventually("both versions are freed", || (draining().as_deref() == Some("0")).then_some(()));
    server.post("/v2/repository/models/m/load", &json!({})).ok();
    shadow(&server, 1.0);
    let ended = settled(&server, 50);
    assert_eq!((number(&ended, "requests"), number(&ended, "dropped")), (0, 50), "{ended}");
    for _ in 0..5 {
        client.ask(&rounds(ENDLESS)).ok();
    }
    assert_eq!(number(&seen(&server), "dropped"), 51, "one runs and three wait");
    server.terminate();
    assert_eq!(server.exit_code(PATIENCE), 0);
}

#[test]
fn a_flood_drops_copies_and_counts_them() {
    let repository = pair(&quick(), &counted_loop());
    let server = Launch::of(&repository).set("SERVE__SHADOW_WAITING", "2").start();
    shadow(&server, 1.0);
    let mut client = server.connect();
    for _ in 0..300 {
        client.ask(&rounds(2000)).ok();
    }
    let seen = settled(&server, 300);
    assert!(number(&seen, "requests") >= 2 && number(&seen, "dropped") > 0, "{seen}");
    assert_eq!(number(&seen, "disagreements"), 0, "{seen}");
}

#[test]
fn a_run_that_cannot_be_ended_stops_shadows_and_nothing_else() {
    let cast = node("Cast", &["width"], &["floats"]).message(5, int_attribute("to", FLOAT));
    let max = node("ReduceMax", &["floats"], &["max"]).message(5, int_attribute("keepdims", 0));
    let inputs = vec![declared("width", INT64, &[1])];
    let quick =
        model(graph(vec![cast, max], Vec::new(), inputs, vec![declared("max", FLOAT, &[])]));
    let server = Launch::of(&pair(&quick, &one_kernel()))
        .set("SERVE__REQUEST_TIMEOUT", "500ms")
        .set("SERVE__STUCK_AFTER", "100ms")
        .start();
    shadow(&server, 1.0);
    let wide = |width: i64| {
        let tensor = json!({"name": "width", "shape": [1], "datatype": "INT64", "data": [width]});
        server.post(&infer("m"), &json!({ "inputs": [tensor] })).ok()
    };
    wide(5000);
    server.wait_until_said("does not end although its deadline has passed");
    let stuck = seen(&server);
    assert_eq!((number(&stuck, "failed"), number(&stuck, "requests")), (1, 1), "{stuck}");
    wide(3);
    assert_eq!(number(&seen(&server), "dropped"), 1);
    assert_eq!(server.admin("/livez").status, 200);
    let page = server.admin("/metrics").text();
    assert!(page.contains("tidegate_workers_lost_total 0"), "{page}");
    // A kernel ends some day.
    server.wait_until_said("requests are copied again");
    wide(3);
    let seen = settled(&server, 3);
    assert_eq!((number(&seen, "failed"), number(&seen, "requests")), (1, 2), "{seen}");
}
