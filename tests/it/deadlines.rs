//! Runs that do not end by themselves: each ends at its deadline, or its worker is replaced; nobody else waits for it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    http::{Connection, Request, Response},
    models::{
        FLOAT, INT64, counted_loop, declared, floats, graph, int_attribute, model, node,
        tensor_attribute,
    },
    repository::{Repository, source},
    server::{Launch, PATIENCE, Server, eventually},
    tensors::{identity, infer},
};

/// More rounds than anybody lives to see.
const ENDLESS: i64 = 1 << 40;

/// As wide a product of matrices as takes seconds, in one kernel that nobody can end.
const WIDE: i64 = 6000;

fn repository() -> Repository {
    let repository = Repository::empty();
    repository.add_as("plain", "1", &source("identity_fp32", "1"));
    repository.add_bytes("count", "1", &counted_loop());
    repository.add_bytes("wide", "1", &one_kernel());
    repository
}

/// The largest element of a product of two matrices of ones, as wide as the input says.
pub(crate) fn one_kernel() -> Vec<u8> {
    let shape =
        node("Concat", &["width", "width"], &["shape"]).message(5, int_attribute("axis", 0));
    let ones = node("ConstantOfShape", &["shape"], &["ones"])
        .message(5, tensor_attribute("value", floats("", &[1], &[1.0])));
    let product = node("MatMul", &["ones", "ones"], &["product"]);
    let max = node("ReduceMax", &["product"], &["max"]).message(5, int_attribute("keepdims", 0));
    model(graph(
        vec![shape, ones, product, max],
        Vec::new(),
        vec![declared("width", INT64, &[1])],
        vec![declared("max", FLOAT, &[])],
    ))
}

fn rounds(count: i64) -> Value {
    json!({"inputs": [{"name": "rounds", "shape": [1], "datatype": "INT64", "data": [count]}]})
}

fn count(rounds_asked: i64) -> Request {
    Request::post_json(&infer("count"), &rounds(rounds_asked))
}

fn wide(width: i64) -> Request {
    let tensor = json!({"name": "width", "shape": [1], "datatype": "INT64", "data": [width]});
    Request::post_json(&infer("wide"), &json!({"inputs": [tensor]}))
}

fn plain(server: &Server) -> Response {
    server.post(&infer("plain"), &identity("FP32", &json!([1.0])))
}

/// The value of a series of the metrics page.
fn metric(server: &Server, series: &str) -> Option<f64> {
    let page = server.admin("/metrics").text();
    let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}

/// Hundredths of a second that the workers have run so far.
fn worker_ticks(server: &Server) -> u64 {
    let threads = std::fs::read_dir(format!("/proc/{}/task", server.id())).unwrap();
    let stats = threads
        .filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("stat")).ok())
        .filter(|stat| stat.contains("(worker-"));
    let ticks = |stat: String| -> u64 {
        // proc_pid_stat(5): time in user mode and in the kernel, 11 fields behind the state.
        let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum()
    };
    stats.map(ticks).sum()
}

#[test]
fn a_run_ends_at_its_deadline() {
    let server = Launch::of(&repository())
        .set("SERVER__WORKERS", "1")
        .set("SERVE__REQUEST_TIMEOUT", "400ms")
        .start();
    let mut client = server.connect();
    let parameter = {
        let mut body = rounds(ENDLESS);
        body["parameters"] = json!({"timeout": 100_000});
        Request::post_json(&infer("count"), &body)
    };
    for (what, request) in [
        ("the header", count(ENDLESS).header("x-request-timeout-ms", "100")),
        ("the parameter", parameter),
        ("the setting", count(ENDLESS)),
    ] {
        let begin = Instant::now();
        let late = client.ask(&request);
        assert_eq!(late.status, 504, "{what}: {late:?}");
        assert!(begin.elapsed() < Duration::from_secs(5), "{what}: {:?}", begin.elapsed());
        assert_eq!(late.header("x-tidegate-version"), Some("1"), "{what}");
        // The very next run of the same session is not ended with it.
        let right = client.ask(&count(7)).ok();
        assert_eq!(right.json()["outputs"][0]["data"], json!([7.0]), "{what}");
    }
    assert_eq!(plain(&server).status, 200);
    let series = r#"tidegate_requests_total{model="count",version="1",arm="baseline",protocol="http",code="504"}"#;
    assert_eq!(metric(&server, series), Some(3.0), "{}", server.admin("/metrics").text());
}

#[test]
fn a_run_ends_when_its_client_has_gone() {
    let server = Launch::of(&repository()).set("SERVER__WORKERS", "1").start();
    let mut client = server.connect();
    let before = worker_ticks(&server);
    client.send(count(ENDLESS).bytes());
    eventually("it runs", || (worker_ticks(&server) > before + 3).then_some(()));
    drop(client);
    // The worker is free again long before the deadline.
    assert_eq!(plain(&server).status, 200);
    let series = r#"tidegate_requests_total{model="count",version="1",arm="baseline",protocol="http",code="499"}"#;
    eventually("it is counted", || (metric(&server, series) == Some(1.0)).then_some(()));
}

#[test]
fn a_worker_that_does_not_come_back_is_replaced() {
    let server = Launch::of(&repository())
        .set("SERVER__WORKERS", "3")
        .set("SERVE__STUCK_AFTER", "200ms")
        .start();
    let mut kept: Vec<Connection> = (0..6).map(|_| server.connect()).collect();
    let mut ids: Vec<_> = (0..9)
        .map(|_| plain(&server).header("x-tidegate-prediction-id").unwrap().to_owned())
        .collect();
    let mut stuck = server.connect();
    stuck.send(wide(WIDE).header("x-request-timeout-ms", "1000").bytes());
    assert!(stuck.is_closed(), "nobody can answer it");
    eventually("its place is taken", || {
        (metric(&server, "tidegate_workers_lost_total") == Some(1.0)).then_some(())
    });
    // Whoever shared the worker was cut off; everybody else goes on, and new connections find workers.
    let request = Request::post_json(&infer("plain"), &identity("FP32", &json!([1.0])));
    kept.retain_mut(|client| client.try_ask(&request).is_ok_and(|answer| answer.status == 200));
    assert!(kept.len() >= 4, "{} of 6", kept.len());
    for _ in 0..9 {
        let answer = plain(&server);
        assert_eq!(answer.status, 200);
        ids.push(answer.header("x-tidegate-prediction-id").unwrap().to_owned());
    }
    let all = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), all, "whoever takes a worker's place gives other names");
    let open = "tidegate_http_connections_open";
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    let still = kept.len() as f64;
    eventually("the others are counted as closed", || {
        (metric(&server, open) == Some(still)).then_some(())
    });
    assert_eq!(server.admin("/livez").status, 200, "one stuck run is no reason to start anew");
    server.wait_until_said("its deadline has passed");
    let series = r#"tidegate_requests_total{model="wide",version="1",arm="baseline",protocol="http",code="504"}"#;
    assert_eq!(metric(&server, series), Some(1.0));
    // The second worker of three is one too many.
    let mut stuck = server.connect();
    stuck.send(wide(WIDE).header("x-request-timeout-ms", "1000").bytes());
    assert!(stuck.is_closed());
    eventually("most workers are stuck", || {
        let told = server.admin("/livez");
        (told.status == 503 && told.text().contains("do not come back")).then_some(())
    });
    assert_eq!(plain(&server).status, 200, "even so, what can be answered is");
    // Kernels end some day: then the threads have come back.
    eventually("they have come back", || (server.admin("/livez").status == 200).then_some(()));
}

#[test]
fn a_request_that_waits_for_a_session_holds_up_nobody_else() {
    let server =
        Launch::of(&repository()).set("SERVER__WORKERS", "2").set("ENGINE__SESSIONS", "1").start();
    let mut runs = server.connect();
    let before = worker_ticks(&server);
    runs.send(count(ENDLESS).header("x-request-timeout-ms", "3000").bytes());
    eventually("it runs", || (worker_ticks(&server) > before + 3).then_some(()));
    let mut waits = server.connect();
    waits.send(count(7).bytes());
    let mut gives_up = server.connect();
    // By now one worker runs and the other one is free, whoever waits there.
    let begin = Instant::now();
    eventually("the other worker answers", || {
        let mut client = Connection::try_open(server.http)?;
        let request = Request::post_json(&infer("plain"), &identity("FP32", &json!([1.0])));
        client.send(request.bytes());
        (client.try_answer().ok()?.status == 200).then_some(())
    });
    assert!(begin.elapsed() < PATIENCE);
    let late = gives_up.try_ask(&count(7).header("x-request-timeout-ms", "50"));
    assert!(late.is_ok_and(|answer| [200, 504].contains(&answer.status)));
    assert_eq!(runs.answer().status, 504);
    let right = waits.answer().ok();
    assert_eq!(right.json()["outputs"][0]["data"], json!([7.0]), "it got the session then");
}

#[test]
fn clients_that_leave_while_they_wait_are_counted() {
    let server =
        Launch::of(&repository()).set("SERVER__WORKERS", "2").set("ENGINE__SESSIONS", "1").start();
    let mut runs = server.connect();
    let before = worker_ticks(&server);
    runs.send(count(ENDLESS).header("x-request-timeout-ms", "2000").bytes());
    eventually("it runs", || (worker_ticks(&server) > before + 3).then_some(()));
    let mut waits = server.connect();
    waits.send(count(7).bytes());
    let in_flight = |least: f64| {
        eventually("requests are in flight", || {
            (metric(&server, "tidegate_http_requests_in_flight")? >= least).then_some(())
        });
    };
    in_flight(2.0);
    drop(waits);
    let unanswered = "tidegate_requests_total{model=\"count\",version=\"\",arm=\"\",protocol=\"http\",code=\"499\"}";
    let reason = "tidegate_refusals_total{model=\"count\",reason=\"gone\"}";
    for series in [unanswered, reason, "tidegate_http_responses_total{code=\"499\"}"] {
        eventually(series, || metric(&server, series));
        assert_eq!(metric(&server, series), Some(1.0), "{series}");
    }
    assert_eq!(runs.answer().status, 504);
    assert_eq!(metric(&server, unanswered), Some(1.0));
}

#[test]
fn who_waits_for_a_session_takes_the_next_version_instead() {
    let repository = repository();
    let server = Launch::of(&repository)
        .set("SERVER__WORKERS", "2")
        .set("ENGINE__SESSIONS", "1")
        .set("REPOSITORY__POLL_INTERVAL", "100ms")
        .start();
    let mut runs = server.connect();
    let before = worker_ticks(&server);
    runs.send(count(ENDLESS).header("x-request-timeout-ms", "5000").bytes());
    eventually("it runs", || (worker_ticks(&server) > before + 3).then_some(()));
    let mut wait: Vec<_> = (0..4).map(|_| server.connect()).collect();
    for client in &mut wait {
        client.send(count(7).bytes());
    }
    repository.add_bytes("count", "2", &counted_loop());
    // Those that share the worker of the run are read after it; the others are told of the new table.
    for client in &mut wait {
        let answer = client.answer().ok();
        assert_eq!(answer.header("x-tidegate-version"), Some("2"), "{answer:?}");
    }
    assert_eq!(runs.answer().status, 504);
}

#[test]
fn an_unload_ends_runs_that_take_long() {
    let repository = repository();
    let server = Launch::of(&repository)
        .set("SERVER__WORKERS", "1")
        .set("REPOSITORY__POLL_INTERVAL", "100ms")
        .start();
    let mut client = server.connect();
    let before = worker_ticks(&server);
    client.send(count(ENDLESS).bytes());
    eventually("it runs", || (worker_ticks(&server) > before + 3).then_some(()));
    // By then it is no longer the version that serves.
    repository.add_bytes("count", "2", &counted_loop());
    let ready = |version: &Value| version["version"] == 2 && version["state"] == "READY";
    eventually("another takes over", || {
        let model = server.admin("/api/v1/models/count").json();
        model["versions"].as_array()?.iter().any(ready).then_some(())
    });
    let mut admin = Connection::open(server.admin);
    admin.send(Request::post_json("/api/v1/models/count/unload", &json!({})).bytes());
    let told = client.answer();
    assert_eq!(told.status, 503, "{told:?}");
    assert!(told.error().contains("unloaded while this request ran"), "{told:?}");
    assert_eq!(admin.answer().status, 200);
    eventually("it is freed", || {
        let entry = server.indexed("count", "1")?;
        (entry["state"] == "UNAVAILABLE").then_some(())
    });
}

#[test]
fn the_end_of_the_process_ends_runs() {
    let mut server = Launch::of(&repository())
        .set("SERVER__WORKERS", "1")
        .set("SERVER__DRAIN_DELAY", "0ms")
        .set("SERVER__GRACE", "500ms")
        .start();
    let mut client = server.connect();
    let before = worker_ticks(&server);
    client.send(count(ENDLESS).bytes());
    eventually("it runs", || (worker_ticks(&server) > before + 3).then_some(()));
    server.terminate();
    let told = client.answer();
    assert_eq!(told.status, 503, "{told:?}");
    assert!(told.error().contains("the server is stopping"), "{told:?}");
    assert_eq!(server.exit_code(PATIENCE), 0);
}
