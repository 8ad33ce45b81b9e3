//! Splits of a model's requests between versions: who goes where, who stays there, and what a failing version costs.

use std::{collections::HashMap, fs, thread};

use serde_json::{Value, json};

use crate::{
    http::{Connection, Request, Response},
    models::{INT64, declared, graph, integers, model, node},
    repository::{Repository, source},
    server::{Launch, Server},
    tensors::{identity, infer},
};

/// `truth` with versions 1 (identity) and 2 (doubles its input), the first of which is the baseline.
fn truth() -> Repository {
    let repository = Repository::empty();
    for (version, model) in [("1", "identity_fp32"), ("2", "doubled_fp32")] {
        repository.add_bytes("truth", version, &fs::read(source(model, "1")).unwrap());
    }
    repository
}

fn put(server: &Server, model: &str, body: &Value) -> Response {
    let path = format!("/api/v1/models/{model}/traffic");
    Connection::open(server.admin).ask(&Request::post_json(&path, body).method("PUT"))
}

fn traffic(server: &Server, model: &str) -> Value {
    server.admin(&format!("/api/v1/models/{model}/traffic")).ok().json()
}

fn arms(canary: f64) -> Value {
    json!({"arms": [
        {"name": "baseline", "version": 1, "weight": 1.0 - canary},
        {"name": "canary", "version": "2", "weight": canary},
    ]})
}

fn request(key: Option<&str>) -> Request {
    let request = Request::post_json(&infer("truth"), &identity("FP32", &json!([1.5])));
    key.map_or(request.clone(), |key| request.header("x-tidegate-key", key))
}

/// The arm and version of an answer, which must be the right one.
fn arm(response: &Response) -> (String, String) {
    let header = |name| response.header(name).unwrap_or("").to_owned();
    (header("x-tidegate-arm"), header("x-tidegate-version"))
}

fn pair(arm: &str, version: &str) -> (String, String) {
    (arm.to_owned(), version.to_owned())
}

#[test]
fn a_split_is_in_effect_when_it_is_acknowledged_and_until_it_is_reset() {
    let repository = truth();
    let server = Launch::of(&repository).start();
    let before = traffic(&server, "truth");
    assert_eq!(before["source"], "default");
    assert_eq!(before["arms"], json!([{"name": "baseline", "version": "2", "weight": 1.0}]));
    let response = put(&server, "truth", &arms(0.25));
    assert_eq!(response.header("etag"), Some("\"1\""));
    let after = response.ok().json();
    assert_eq!((&after["source"], &after["revision"]), (&json!("operator"), &json!(1)));
    assert_eq!(after["sticky"], json!({"by": "header", "name": "x-tidegate-key"}));
    assert_eq!(after["arms"][1], json!({"name": "canary", "version": "2", "weight": 0.25}));
    let mut connection = server.connect();
    let mut seen: HashMap<_, u32> = HashMap::new();
    for _ in 0..400 {
        *seen.entry(arm(&connection.ask(&request(None)).ok())).or_default() += 1;
    }
    let canaries = seen[&pair("canary", "2")];
    assert!((60..140).contains(&canaries), "{seen:?}");
    assert_eq!(seen[&pair("baseline", "1")], 400 - canaries, "{seen:?}");
    // A version that is named is served as asked.
    let direct =
        Request::post_json("/v2/models/truth/versions/2/infer", &identity("FP32", &json!([1.5])));
    assert_eq!(arm(&connection.ask(&direct).ok()), pair("direct", "2"));
    let page = server.admin("/metrics").ok().text();
    for (version, arm, count) in
        [("2", "canary", canaries), ("1", "baseline", 400 - canaries), ("2", "direct", 1)]
    {
        let line = format!(
            r#"tidegate_requests_total{{model="truth",version="{version}",arm="{arm}",protocol="http",code="200"}} {count}"#
        );
        assert!(page.contains(&line), "{line} is not in\n{page}");
    }
    assert!(
        page.contains(
            r#"tidegate_traffic_weight_ratio{model="truth",version="2",arm="canary"} 0.25"#
        ),
        "{page}"
    );
    let reset = Request::get("/api/v1/models/truth/traffic").method("DELETE");
    let reset = Connection::open(server.admin).ask(&reset).ok().json();
    assert_eq!((&reset["source"], &reset["revision"]), (&json!("default"), &json!(2)));
    assert_eq!(arm(&connection.ask(&request(None)).ok()), pair("baseline", "2"));
}

#[test]
fn a_split_outlives_the_process_with_its_key() {
    let repository = truth();
    let launch = || Launch::of(&repository).remembering();
    let server = launch().start();
    put(&server, "truth", &arms(0.5)).ok();
    let of = |server: &Server| {
        let mut connection = server.connect();
        (0..50)
            .map(|key| arm(&connection.ask(&request(Some(&key.to_string()))).ok()))
            .collect::<Vec<_>>()
    };
    let before = of(&server);
    drop(server);
    let server = launch().start();
    assert_eq!(traffic(&server, "truth")["revision"], 1);
    assert_eq!(of(&server), before);
}

#[test]
fn nobody_leaves_an_arm_that_grows_and_no_request_fails_while_weights_change() {
    let repository = truth();
    let server = Launch::of(&repository).start();
    put(&server, "truth", &arms(0.02)).ok();
    let steps: Vec<f64> = (1..=20).map(|step| 0.02 + 0.04 * f64::from(step)).collect();
    thread::scope(|scope| {
        let clients: Vec<_> = (0..3)
            .map(|client| {
                let server = &server;
                scope.spawn(move || {
                    let mut connection = server.connect();
                    let mut canaries = std::collections::HashSet::new();
                    let (mut rounds, mut violations) = (0, 0);
                    while rounds < 3
                        || traffic(server, "truth")["arms"][1]["weight"].as_f64() < Some(0.8)
                    {
                        for key in 0..100 {
                            let key = format!("{client}-{key}");
                            let arm = arm(&connection.ask(&request(Some(&key))).ok()).0;
                            if arm == "canary" {
                                canaries.insert(key);
                            } else {
                                violations += u32::from(canaries.contains(&key));
                            }
                        }
                        rounds += 1;
                    }
                    violations
                })
            })
            .collect();
        for step in &steps {
            put(&server, "truth", &arms(*step)).ok();
        }
        let violations: u32 = clients.into_iter().map(|client| client.join().unwrap()).sum();
        assert_eq!(violations, 0);
    });
}

#[test]
fn what_cannot_be_a_split_is_refused_with_everything_that_is_wrong() {
    let repository = truth();
    let server = Launch::of(&repository).start();
    let refused = |body: Value, status: u16, parts: &[&str]| {
        let response = put(&server, "truth", &body);
        assert_eq!(response.status, status, "{}", response.text());
        let problem = response.json();
        for part in parts {
            assert!(problem["detail"].as_str().unwrap().contains(part), "{part}: {problem}");
        }
        problem
    };
    refused(json!({}), 400, &["nothing is to be changed"]);
    refused(json!({"arm": []}), 400, &["unknown field `arm`: did you mean `arms`?"]);
    let problem = refused(
        json!({"arms": [{"name": "Canary", "version": 2, "weight": 0.5}, {"name": "direct", "version": "x", "weight": 2}]}),
        400,
        &["not the name of an arm", "`direct`", "neither a number nor an alias", "from 0 to 1"],
    );
    assert!(problem["errors"].as_array().unwrap().len() >= 4, "{problem}");
    refused(json!({"arms": [{"name": "a", "version": 2, "weight": 1}]}), 400, &["`baseline`"]);
    let mut half = arms(0.5);
    half["arms"][0]["weight"] = json!(0.4);
    refused(half, 400, &["must sum to 1, not 0.9"]);
    refused(json!({"sticky": {"by": "ip"}}), 400, &["`sticky.by` must be header"]);
    let mut missing = arms(0.5);
    missing["arms"][1]["version"] = json!(9);
    refused(missing, 404, &["no version 9"]);
    assert_eq!(traffic(&server, "truth")["revision"], 0);
    put(&server, "truth", &arms(0.5)).ok();
    let path = "/api/v1/models/truth/traffic";
    let stale = Request::post_json(path, &arms(0.6)).method("PUT").header("if-match", "\"0\"");
    let stale = Connection::open(server.admin).ask(&stale);
    assert_eq!(stale.status, 412);
    assert_eq!(stale.json()["current"]["revision"], 1);
    assert_eq!(put(&server, "nobody", &arms(0.5)).status, 404);
}

#[test]
fn the_key_may_stand_in_a_cookie_a_parameter_or_the_requests_id() {
    let repository = truth();
    let server = Launch::of(&repository).start();
    put(&server, "truth", &arms(0.5)).ok();
    let sticks = |sticky: Value, request: &dyn Fn(&str) -> Request| {
        put(&server, "truth", &json!({ "sticky": sticky })).ok();
        let mut connection = server.connect();
        let mut of = |key: &str| arm(&connection.ask(&request(key)).ok());
        let (mut seen, mut versions) = (HashMap::new(), std::collections::HashSet::new());
        for round in 0..4 {
            for key in 0..12 {
                let key = format!("key-{key}");
                let arm = of(&key);
                versions.insert(arm.1.clone());
                let known = seen.entry(key).or_insert_with(|| arm.clone());
                assert_eq!(*known, arm, "{sticky} in round {round}");
            }
        }
        assert_eq!(versions.len(), 2, "{sticky}: 12 keys go one way once in 2,048 times");
    };
    let post = |body: &Value| Request::post_json(&infer("truth"), body);
    let plain = identity("FP32", &json!([1.5]));
    sticks(json!({"by": "cookie", "name": "session"}), &|key| {
        post(&plain).header("cookie", &format!("a=b; session={key}"))
    });
    sticks(json!({"by": "request_id"}), &|key| post(&plain).header("x-request-id", key));
    sticks(json!({"by": "request_id"}), &|key| {
        let mut body = plain.clone();
        body["id"] = json!(key);
        post(&body)
    });
    for name in ["user", "/user"] {
        sticks(json!({"by": "parameter", "name": name}), &|key| {
            let mut body = plain.clone();
            body["parameters"] = json!({"user": key});
            post(&body)
        });
    }
    // A body that cannot be read is refused as ever.
    let broken = Request::post(&infer("truth"), "{\"inputs\": [");
    assert_eq!(server.ask(&broken).status, 400);
}

#[test]
fn a_header_chooses_the_arm_only_where_the_policy_allows_it() {
    let repository = truth();
    let launch = || Launch::of(&repository).remembering();
    let server = launch().start();
    put(&server, "truth", &arms(0.0)).ok();
    let routed =
        |server: &Server, to: &str| server.ask(&request(None).header("x-tidegate-route", to));
    assert_eq!(arm(&routed(&server, "canary").ok()), pair("baseline", "1"), "ignored");
    drop(server);
    let server = launch().set("MODELS__truth__ROUTE_OVERRIDE", "true").start();
    assert_eq!(arm(&routed(&server, "canary").ok()), pair("canary", "2"));
    assert_eq!(arm(&routed(&server, "baseline").ok()), pair("baseline", "1"));
    assert_eq!(arm(&routed(&server, "2").ok()), pair("direct", "2"));
    let unknown = routed(&server, "blue");
    assert_eq!(unknown.status, 404);
    assert!(
        unknown.text().contains("arms baseline, canary and versions 1, 2"),
        "{}",
        unknown.text()
    );
}

/// Picks from a table of so many entries: the engine refuses an index beyond it.
fn picking(entries: i64) -> Vec<u8> {
    let values: Vec<i64> = (1..=entries).map(|entry| 10 * entry).collect();
    model(graph(
        vec![node("Gather", &["table", "x"], &["y"])],
        vec![integers("table", INT64, &[entries], &values)],
        vec![declared("x", INT64, &[-1])],
        vec![declared("y", INT64, &[-1])],
    ))
}

/// Picks as [`picking`], of rows of one index or of bare indexes; the answer has rows.
fn picking_rows(entries: i64, bare: bool) -> Vec<u8> {
    let values: Vec<i64> = (1..=entries).map(|entry| 10 * entry).collect();
    let dims: &[i64] = if bare { &[-1] } else { &[-1, 1] };
    let picked = if bare { "p" } else { "y" };
    let mut nodes = vec![node("Gather", &["table", "x"], &[picked])];
    nodes.extend(bare.then(|| node("Unsqueeze", &["p", "one"], &["y"])));
    let table = integers("table", INT64, &[entries], &values);
    model(graph(
        nodes,
        vec![table, integers("one", INT64, &[1], &[1])],
        vec![declared("x", INT64, dims)],
        vec![declared("y", INT64, &[-1, 1])],
    ))
}

#[test]
fn the_baseline_sees_a_request_as_its_client_sent_it() {
    let repository = Repository::empty();
    let config = "max_batch_size: 8 input [ { name: \"x\" data_type: TYPE_INT64 dims: [ 1 ] } ]";
    repository.describe("pick", "config.pbtxt", config);
    repository.add_bytes("pick", "1", &picking_rows(5, false));
    // A scalar for each row: to clients it is one dimension of 1, too.
    repository.add_bytes("pick", "2", &picking_rows(3, true));
    let server = Launch::of(&repository).start();
    let arms = json!([
        {"name": "baseline", "version": 1, "weight": 0},
        {"name": "canary", "version": 2, "weight": 1},
    ]);
    put(&server, "pick", &json!({"arms": arms})).ok();
    let ask = |rows: &[i64]| {
        let x = json!({"name": "x", "shape": [rows.len(), 1], "datatype": "INT64", "data": rows});
        server.post(&infer("pick"), &json!({"inputs": [x]}))
    };
    let by_canary = ask(&[2, 1]).ok();
    assert_eq!(arm(&by_canary), pair("canary", "2"));
    assert_eq!(by_canary.json()["outputs"][0]["data"], json!([30, 20]));
    let fallen = ask(&[4, 1]).ok();
    assert_eq!(arm(&fallen), pair("baseline", "1"));
    assert_eq!(fallen.json()["outputs"][0]["data"], json!([50, 20]));
}

#[test]
fn where_a_canary_cannot_answer_the_baseline_does() {
    let repository = Repository::empty();
    repository.add_bytes("pick", "1", &picking(5));
    repository.add_bytes("pick", "2", &picking(3));
    let server = Launch::of(&repository).start();
    put(
        &server,
        "pick",
        &json!({"arms": [
            {"name": "baseline", "version": 1, "weight": 0},
            {"name": "canary", "version": 2, "weight": 1},
        ]}),
    )
    .ok();
    let ask = |index: i64| {
        let body =
            json!({"inputs": [{"name": "x", "shape": [1], "datatype": "INT64", "data": [index]}]});
        server.post(&infer("pick"), &body)
    };
    assert_eq!(arm(&ask(1).ok()), pair("canary", "2"));
    let fallen = ask(4).ok();
    assert_eq!(arm(&fallen), pair("baseline", "1"));
    assert_eq!(fallen.header("x-tidegate-fallback"), Some("canary"));
    assert_eq!(fallen.json()["outputs"][0]["data"], json!([50]));
    assert_eq!(fallen.json()["model_version"], "1");
    // Where both fail, the answer is the assigned arm's.
    let neither = ask(7);
    assert_eq!((neither.status, arm(&neither)), (400, pair("canary", "2")));
    let page = server.admin("/metrics").ok().text();
    assert!(page.contains(r#"tidegate_fallbacks_total{model="pick",version="2"} 1"#), "{page}");
}
