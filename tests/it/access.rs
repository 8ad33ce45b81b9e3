//! The access log: one line for each request, whatever became of it, and no request waits for who reads them.

use std::{collections::BTreeMap, fs, path::PathBuf, thread};

use serde_json::{Value, json};

use crate::{
    http::{Connection, Request},
    repository::Repository,
    server::{Launch, Server, eventually},
    tensors::{identity, infer},
};

const MODEL: &str = "identity_fp32";

fn good() -> Value {
    identity("FP32", &json!([1.0, 2.0]))
}

/// A server that tells requests to a file.
fn start(repository: &Repository) -> (Server, PathBuf) {
    let path = repository.beside("access.log");
    let launch = Launch::of(repository).set("SERVER__DRAIN_DELAY", "0s");
    let server = launch.set("LOGS__ACCESS", path.to_str().unwrap()).start();
    (server, path)
}

fn lines(path: &PathBuf) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
}

/// The one line with this request id.
fn line_of(path: &PathBuf, id: &str) -> Value {
    eventually("the line is there", || {
        let found: Vec<Value> = lines(path).into_iter().filter(|l| l["request_id"] == id).collect();
        assert!(found.len() <= 1, "{found:?}");
        found.into_iter().next()
    })
}

#[test]
fn every_request_of_a_load_is_one_line() {
    const CLIENTS: usize = 4;
    const REQUESTS: usize = 250;
    let repository = Repository::of(&[MODEL]);
    let (mut server, path) = start(&repository);
    // Every fifth names a model that is not there, every seventh has a bad body.
    let ask = |client: usize, number: usize| {
        let id = format!("{client}-{number}");
        let model = if number.is_multiple_of(5) { "nobody" } else { MODEL };
        let body = if number.is_multiple_of(7) { json!({"inputs": 1}) } else { good() };
        (id.clone(), Request::post_json(&infer(model), &body).header("x-request-id", &id))
    };
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let mut connection = server.connect();
            thread::spawn(move || {
                let one = |number| {
                    let (id, request) = ask(client, number);
                    (id, connection.ask(&request).status)
                };
                (0..REQUESTS).map(one).collect::<BTreeMap<_, _>>()
            })
        })
        .collect();
    let sent: BTreeMap<String, u16> =
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
    server.terminate();
    assert_eq!(server.exit_code(crate::server::PATIENCE), 0);
    let told: Vec<(String, u16)> = lines(&path)
        .iter()
        .filter_map(|line| {
            let code = u16::try_from(line["code"].as_u64().unwrap()).unwrap();
            Some((line["request_id"].as_str()?.to_owned(), code))
        })
        .collect();
    assert_eq!(told.len(), CLIENTS * REQUESTS, "one line each");
    assert_eq!(told.into_iter().collect::<BTreeMap<_, _>>(), sent);
}

#[test]
fn a_line_says_what_the_client_saw() {
    let repository = Repository::of(&[MODEL]);
    let (server, path) = start(&repository);
    let body = good().to_string();
    let request = Request::post_json(&infer(MODEL), &good()).header("x-request-id", "mine");
    let answer = server.ask(&request).ok();
    let line = line_of(&path, "mine");
    let said = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
    assert_eq!([said("model"), said("version"), said("arm")], [MODEL, "1", "baseline"]);
    assert_eq!(
        [said("method"), said("path"), said("protocol")],
        ["POST", &infer(MODEL), "HTTP/1.1"]
    );
    assert_eq!(Some(&*said("prediction_id")), answer.header("x-tidegate-prediction-id"));
    assert!(said("peer").starts_with("127.0.0.1:"));
    assert_eq!(line["code"], 200);
    assert_eq!(line["bytes_in"], body.len());
    assert_eq!(line["bytes_out"], answer.body.len());
    let phases =
        ["decode", "queue", "run", "encode"].map(|phase| line["ms"][phase].as_f64().unwrap());
    let total = line["ms"]["total"].as_f64().unwrap();
    assert!((phases.iter().sum::<f64>() - total).abs() < 0.005, "{line}");
    // Unparsable, of a client that leaves, and of the protocol's other paths.
    let mut bad = server.connect();
    bad.send("GET / HTTP/1.1\r\nbad header\r\n\r\n");
    assert_eq!(bad.answer().status, 400);
    let mut gone = server.connect();
    gone.send(format!(
        "POST {} HTTP/1.1\r\nhost: x\r\nx-request-id: gone\r\ncontent-length: 9\r\n\r\n{{",
        infer(MODEL)
    ));
    drop(gone);
    assert_eq!(line_of(&path, "gone")["code"], 499);
    server.ask(&Request::get("/v2").header("x-request-id", "v2")).ok();
    assert_eq!(line_of(&path, "v2")["path"], "/v2");
    let unread = |line: &Value| line.get("path").is_none() && line["code"] == 400;
    eventually("the head that could not be read", || {
        lines(&path).iter().find(|l| unread(l)).cloned()
    });
}

#[test]
fn no_client_forges_a_line() {
    let repository = Repository::of(&[MODEL]);
    let (server, path) = start(&repository);
    let forged = r#"{"code":200,"request_id":"forged"}"#;
    let mut connection = server.connect();
    let mut send = |target: &str, id: &[u8]| {
        let head = format!("GET {target} HTTP/1.1\r\nhost: x\r\nx-request-id: ");
        connection.send([head.as_bytes(), id, b"\r\n\r\n"].concat());
        connection.answer()
    };
    send(&format!("/v2/models/a%0d%0a{}/ready", forged.replace('"', "%22")), b"path");
    send("/v2", format!("\t\u{9b}2J\u{202e}\",{forged}").as_bytes());
    send("/v2", b"\xff\xfe");
    send("/v2", b"last");
    line_of(&path, "last");
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.matches('\n').count(), 4, "{text}");
    assert!(text.chars().all(|c| c == '\n' || !c.is_control() && c != '\u{202e}'), "{text:?}");
    assert!(lines(&path).iter().all(|line| line["request_id"] != "forged"));
    let model = lines(&path)[0]["model"].as_str().unwrap().to_owned();
    assert_eq!(model, format!("a\r\n{forged}"), "as it was asked for, escaped");
}

#[test]
fn a_reader_of_standard_output_that_stalls_stalls_no_request() {
    let repository = Repository::of(&[MODEL]);
    let launch = Launch::of(&repository).set("LOGS__ACCESS", "stdout");
    let launch = launch.set("LOGS__ACCESS_BUFFER", "16KiB").set("SERVER__DRAIN_DELAY", "0s");
    let (mut server, reader) = launch.start_unread();
    server.wait_for_state(MODEL, "1", "READY");
    let mut connection = server.connect();
    let dropped = || {
        let page = server.admin("/metrics").ok().text();
        let line =
            page.lines().find_map(|l| l.strip_prefix("tidegate_access_lines_dropped_total "));
        line.expect("the metric").parse::<u64>().unwrap()
    };
    // The pipe is full, then the batch on its way, then the ring.
    eventually("lines are dropped", || {
        (0..100)
            .for_each(|_| drop(connection.ask(&Request::post_json(&infer(MODEL), &good())).ok()));
        (dropped() > 0).then_some(())
    });
    let before = dropped();
    (0..1000).for_each(|_| drop(connection.ask(&Request::post_json(&infer(MODEL), &good())).ok()));
    assert!(dropped() > before, "it still stalls, and nobody has waited for it");
    server.terminate();
    assert_eq!(server.exit_code(crate::server::PATIENCE), 0);
    drop(reader);
}

#[test]
fn a_file_that_is_moved_away_goes_on_under_its_name() {
    let repository = Repository::of(&[MODEL]);
    let (server, path) = start(&repository);
    let send = |id: &str| server.ask(&Request::get("/v2").header("x-request-id", id)).ok();
    send("first");
    line_of(&path, "first");
    let moved = repository.beside("moved.log");
    fs::rename(&path, &moved).unwrap();
    send("second");
    line_of(&path, "second");
    assert_eq!(lines(&moved).len(), 1);
}

#[test]
fn an_access_log_that_cannot_be_written_is_told_at_the_start() {
    let repository = Repository::of(&[MODEL]);
    let (status, said) = Launch::of(&repository).set("LOGS__ACCESS", "/no/such/access.log").fail();
    assert!(!status.success());
    assert!(said.contains("set logs.access to a file"), "{said}");
    let (_, said) = Launch::of(&repository).set("LOGS__ACCESS", "stdotu").fail();
    assert!(said.contains(r#"must be "off", "stdout" or a file"#), "{said}");
}

#[test]
fn without_it_no_request_is_told() {
    let repository = Repository::of(&[MODEL]);
    let server = Server::over(&repository);
    server.post(&infer(MODEL), &good()).ok();
    let page = Connection::open(server.admin).ask(&Request::get("/metrics")).ok().text();
    assert!(!page.contains("tidegate_access_lines_dropped_total "));
    assert!(!server.said().contains(r#""target":"access""#));
}
