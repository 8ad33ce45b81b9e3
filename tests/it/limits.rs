//! Clients that are slow, endless or explosive: each meets a limit, and nobody else notices.

use std::{
    fs,
    io::Write,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use flate2::{
    Compression,
    write::{GzEncoder, ZlibEncoder},
};
use serde_json::json;

use crate::{
    http::{Connection, Request},
    http1::chunked,
    models::counted_loop,
    repository::Repository,
    server::{Launch, Server, eventually},
    tensors::{add_sub, infer},
};

const MIB: usize = 1 << 20;

/// A client that sends `start` and then a byte of `drip` from time to time, or nothing at all.
struct Slow {
    name: &'static str,
    start: String,
    drip: Option<u8>,
    /// Codes that it may see before the connection ends.
    codes: &'static [u16],
}

#[test]
fn slow_clients_are_cut_off_while_others_are_served() {
    let repository = Repository::of(&["add_sub"]);
    let server = Launch::of(&repository)
        .set("LIMITS__HEADER_TIMEOUT", "300ms")
        .set("LIMITS__BODY_GRACE", "300ms")
        .set("LIMITS__IDLE_TIMEOUT", "300ms")
        .start();
    let slow = |name, start: &str, drip, codes| Slow { name, start: start.into(), drip, codes };
    let half_head = "POST /v2/models/add_sub/infer HTTP/1.1\r\nHost: x\r\nX-Slow: ";
    let no_body =
        "POST /v2/models/add_sub/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n{";
    let no_chunk =
        "POST /v2/models/add_sub/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    let cases = [
        slow("says nothing", "", None, &[408]),
        slow("says half a head", half_head, None, &[408]),
        slow("says a letter of the head at a time", half_head, Some(b'a'), &[408]),
        slow("says half a body", no_body, None, &[408]),
        slow("says a letter of the body at a time", no_body, Some(b' '), &[408]),
        slow("says no chunk", no_chunk, None, &[408]),
        slow("says no next request", "GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n", None, &[200, 408]),
    ];
    let all_cut = AtomicBool::new(false);
    thread::scope(|scope| {
        let good = scope.spawn(|| {
            let mut answers = 0;
            while !all_cut.load(Ordering::Relaxed) {
                server.post(&infer("add_sub"), &add_sub()).ok();
                answers += 1;
            }
            answers
        });
        let slow: Vec<_> =
            cases.iter().map(|case| scope.spawn(|| assert_cut_off(&server, case))).collect();
        let outcomes: Vec<_> = slow.into_iter().map(thread::ScopedJoinHandle::join).collect();
        all_cut.store(true, Ordering::Relaxed);
        for outcome in outcomes {
            outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        assert!(good.join().unwrap() > 10);
    });
}

fn assert_cut_off(server: &Server, case: &Slow) {
    let started = Instant::now();
    let mut connection: Connection = server.connect();
    connection.send(&case.start);
    if let Some(byte) = case.drip {
        // Slowness is what is tested here: a byte now and then until the server has enough.
        while connection.try_send([byte]).is_ok() {
            assert!(started.elapsed() < Duration::from_secs(5), "{} is still heard", case.name);
            thread::park_timeout(Duration::from_millis(20));
        }
    }
    let answers = connection.answers_until_close();
    let took = started.elapsed();
    assert!(took < Duration::from_secs(5), "a client that {} was cut after {took:?}", case.name);
    for answer in answers {
        assert!(case.codes.contains(&answer.status), "a client that {}: {answer:?}", case.name);
    }
}

/// A request that keeps its worker for some tenths of a second, more or less.
fn long_run(rounds: u32) -> Request {
    let input = json!({"name": "rounds", "shape": [1], "datatype": "INT64", "data": [rounds]});
    Request::post_json(&infer("x_loop"), &json!({"inputs": [input]}))
}

#[test]
fn a_worker_that_rests_keeps_the_timeouts_of_who_comes_alone() {
    let repository = Repository::of(&["add_sub"]);
    let server = Launch::of(&repository)
        .set("SERVER__WORKERS", "1")
        .set("LIMITS__HEADER_TIMEOUT", "100ms")
        .start();
    // Without a connection it looks for timeouts every four seconds.
    let started = Instant::now();
    let mut stalled = server.connect();
    stalled.send("GET /v2 HTTP/1.1\r\nHost: x\r\nX-Slow: ");
    assert!(stalled.answers_until_close().iter().all(|answer| answer.status == 408));
    let took = started.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn a_worker_that_is_always_busy_keeps_its_timeouts_and_is_fair() {
    const ROUNDS: u32 = 300_000;
    let repository = Repository::of(&["add_sub"]);
    repository.add_bytes("x_loop", "1", &counted_loop());
    let server = Launch::of(&repository)
        .set("SERVER__WORKERS", "1")
        .set("LIMITS__HEADER_TIMEOUT", "100ms")
        .set("LIMITS__IDLE_TIMEOUT", "100ms")
        .start();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    server.ask(&long_run(ROUNDS)).ok();
                }
            });
        }
        let started = Instant::now();
        let mut stalled = server.connect();
        stalled.send("POST /v2/models/add_sub/infer HTTP/1.1\r\nHost: x\r\nX-Slow: ");
        assert!(stalled.answers_until_close().iter().all(|answer| answer.status == 408));
        let took = started.elapsed();
        assert!(took < Duration::from_secs(10), "{took:?}");
        // Not the client's fault: its request lies there whole, while the worker has long been doing something else.
        let bytes = Request::post_json(&infer("add_sub"), &add_sub()).bytes();
        for _ in 0..3 {
            let mut connection = server.connect();
            let (first, second) = bytes.split_at(40);
            connection.send(first);
            thread::park_timeout(Duration::from_millis(10));
            connection.send(second);
            connection.answer().ok();
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn whoever_says_nothing_on_the_admin_plane_stops_nobody() {
    let repository = Repository::of(&["add_sub"]);
    let server = Launch::of(&repository)
        .descriptors(256)
        .set("LIMITS__HEADER_TIMEOUT", "30s")
        .set("SERVER__ADMIN_CONNECTIONS", "1000")
        .start();
    let half_head = "GET /metrics HTTP/1.1\r\nHost: x\r\nX-Slow: ";
    let stalled: Vec<_> = (0..300)
        .map(|_| {
            let mut stalled = Connection::open(server.admin);
            let _ = stalled.try_send(half_head);
            stalled
        })
        .collect();
    // The data plane has its descriptors, and probes find a place.
    for _ in 0..50 {
        server.post(&infer("add_sub"), &add_sub()).ok();
    }
    assert_eq!(server.admin("/livez").status, 200);
    drop(stalled);
}

#[test]
fn probes_find_a_place_whatever_lasts_on_the_admin_plane() {
    let repository = Repository::of(&["add_sub"]);
    let server = Launch::of(&repository)
        .set("LIMITS__HEADER_TIMEOUT", "60s")
        .set("LIMITS__WRITE_TIMEOUT", "60s")
        .set("SERVER__ADMIN_CONNECTIONS", "8")
        .start();
    let follow = Request::get("/api/v1/events").bytes();
    let half_a_body = "POST /api/v1/models/add_sub/load HTTP/1.1\r\nHost: localhost\r\n\
                       Content-Type: application/json\r\nContent-Length: 90\r\n\r\n{";
    let unread = Request::get("/metrics").bytes().repeat(2000);
    let kinds: [(&str, &[u8]); 3] = [
        ("follows events", &follow),
        ("sends half an operation", half_a_body.as_bytes()),
        ("reads no answer", &unread),
    ];
    for (kind, bytes) in kinds {
        let last = || {
            let mut connection = Connection::open(server.admin);
            let _ = connection.try_send(bytes);
            connection
        };
        let mut lasting: Vec<_> = (0..16).map(|_| last()).collect();
        let status = |path| {
            let mut probe = Connection::try_open(server.admin)?;
            probe.try_ask(&Request::get(path)).ok().map(|answer| answer.status)
        };
        for path in ["/livez", "/readyz", "/metrics"].repeat(4) {
            // The place of a probe before is taken.
            lasting.push(last());
            // For a moment all of them are being answered: until what the sockets hold is full.
            let what = format!("{path} finds a place beside clients of which each {kind}");
            eventually(&what, || (status(path) == Some(200)).then_some(()));
        }
    }
}

#[test]
fn followers_of_events_beyond_half_of_the_places_are_told_the_key() {
    let repository = Repository::of(&["add_sub"]);
    let server = Launch::of(&repository).set("SERVER__ADMIN_CONNECTIONS", "4").start();
    let events = Request::get("/api/v1/events");
    let mut following: Vec<_> = (0..2).map(|_| Connection::open(server.admin)).collect();
    for connection in &mut following {
        let head = connection.listen(&events, |text| text.contains("\r\n\r\n"));
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    }
    let load = Request::post_json("/api/v1/models/add_sub/load", &json!({}));
    for request in [&events, &load] {
        let refused = Connection::open(server.admin).ask(request);
        assert_eq!(refused.status, 503, "{refused:?}");
        assert!(refused.text().contains("raise server.admin_connections"), "{refused:?}");
        assert_eq!(refused.header("retry-after"), Some("1"));
    }
    following.pop();
    eventually("the place is free again", || {
        (Connection::open(server.admin).ask(&load).status == 200).then_some(())
    });
}

#[test]
fn without_descriptors_new_clients_are_refused_at_once_and_probes_answered() {
    let repository = Repository::of(&["add_sub"]);
    let server = Launch::of(&repository)
        .descriptors(96)
        .set("LIMITS__CONNECTIONS", "1000")
        .set("LIMITS__IDLE_TIMEOUT", "60s")
        .start();
    let request = Request::post_json(&infer("add_sub"), &add_sub());
    let mut open = server.connect();
    open.ask(&request).ok();
    let ask = || server.connect().try_ask(&request).map(|answer| answer.status).ok();
    let mut held = Vec::new();
    while ask() == Some(200) {
        held.push(server.connect());
    }
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(1500) {
        let answer = ask();
        assert!(matches!(answer, Some(200 | 503)), "{answer:?} beside {} others", held.len());
        // The server itself opens and closes files.
        held.push(server.connect());
        assert_eq!(server.admin("/livez").status, 200);
        open.ask(&request).ok();
    }
    let seconds = usize::try_from(started.elapsed().as_secs()).unwrap();
    let said = server.said().matches("cannot accept a connection to the data plane").count();
    assert!((1..=seconds + 3).contains(&said), "{said} times in {seconds} s: {}", server.said());
    drop(held);
    eventually("new clients are served", || (ask() == Some(200)).then_some(()));
}

#[test]
fn slow_clients_of_the_admin_plane_are_cut_off() {
    let repository = Repository::of(&["add_sub"]);
    let server = Launch::of(&repository)
        .set("LIMITS__HEADER_TIMEOUT", "300ms")
        .set("LIMITS__IDLE_TIMEOUT", "300ms")
        .start();
    let load = "POST /api/v1/models/add_sub/load HTTP/1.1\r\nHost: localhost\r\n\
                Content-Type: application/json\r\nContent-Length: 90\r\n\r\n{";
    for (name, start, codes) in [
        ("says nothing", "", &[][..]),
        ("says half a head", "GET /metrics HTTP/1.1\r\nHost: x\r\nX-Slow: ", &[]),
        ("says half a body", load, &[400, 408]),
        ("says no next request", "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n", &[200]),
    ] {
        let mut connection = Connection::open(server.admin);
        connection.send(start);
        let started = Instant::now();
        let answers = connection.answers_until_close();
        let took = started.elapsed();
        assert!(took < Duration::from_secs(5), "a client that {name} was cut after {took:?}");
        for answer in answers {
            assert!(codes.contains(&answer.status), "a client that {name}: {answer:?}");
        }
    }
    // Whoever follows events is busy, although nothing is said for long.
    let mut following = Connection::open(server.admin);
    let head = following.listen(&Request::get("/api/v1/events"), |text| text.contains("\r\n\r\n"));
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    thread::park_timeout(Duration::from_millis(900));
    let load = Request::post_json("/api/v1/models/add_sub/load", &json!({}));
    assert_eq!(Connection::open(server.admin).ask(&load).status, 200);
    assert!(!following.is_closed());
}

#[test]
fn bodies_may_be_as_long_as_the_limit_and_no_longer() {
    let repository = Repository::of(&["add_sub"]);
    let limit = 4096;
    let server = Launch::of(&repository).set("LIMITS__BODY", "4KiB").start();
    let of_length = |length: usize| {
        let mut body = add_sub().to_string().into_bytes();
        body.resize(length, b' ');
        body
    };
    let path = infer("add_sub");
    let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (length, code) in [(limit, 200), (limit + 1, 413), (limit * 20, 413)] {
        let response = server.ask(&Request::post(&path, of_length(length)));
        assert_eq!(response.status, code, "{length} bytes: {response:?}");

        let mut connection = server.connect();
        connection.send(&head);
        let _ = connection.try_send(chunked(&of_length(length), 100));
        let response = connection.answer();
        assert_eq!(response.status, code, "{length} bytes in chunks: {response:?}");

        let request = Request::post(&path, gzip(&of_length(length)));
        let response = server.ask(&request.header("content-encoding", "gzip"));
        assert_eq!(response.status, code, "{length} bytes packed: {response:?}");
    }
}

#[test]
fn compression_bombs_are_refused_quickly_and_in_little_memory() {
    let repository = Repository::of(&["add_sub"]);
    let server = Launch::of(&repository).set("LIMITS__BODY", "16MiB").start();
    let zeros = vec![b' '; 200 * MIB];
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
    zlib.write_all(&zeros).unwrap();
    let bombs = [("gzip", gzip(&zeros)), ("deflate", zlib.finish().unwrap())];
    drop(zeros);
    server.post(&infer("add_sub"), &add_sub()).ok();
    let before = peak_memory(&server);
    for (coding, bomb) in bombs {
        let request = Request::post(&infer("add_sub"), bomb).header("content-encoding", coding);
        let started = Instant::now();
        let response = server.ask(&request);
        assert_eq!(response.status, 413, "{coding}: {response:?}");
        assert!(started.elapsed() < Duration::from_secs(2), "{coding}: {:?}", started.elapsed());
    }
    // The kernel sums its counts up late, so that a peak may seem to fall by some pages.
    let grown = peak_memory(&server).saturating_sub(before);
    assert!(grown < 64 * MIB, "a bomb took {} MiB", grown / MIB);

    for (coding, bomb) in
        [("gzip", gzip(b"").repeat(750_000)), ("gzip", gzip(b"1").repeat(700_000))]
    {
        let request = Request::post(&infer("add_sub"), bomb).header("content-encoding", coding);
        let started = Instant::now();
        let response = server.ask(&request);
        assert_eq!(response.status, 400, "{response:?}");
        assert!(response.error().contains("gzip members"), "{response:?}");
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    }

    let packed = gzip(add_sub().to_string().as_bytes());
    let broken = [
        ("cut", packed[..packed.len() - 9].to_vec(), "gzip"),
        ("with text behind it", [&packed[..], b"garbage"].concat(), "gzip"),
        ("under a wrong name", packed.clone(), "deflate"),
        ("twice", gzip(&packed), "gzip, gzip"),
    ];
    for (name, bytes, coding) in broken {
        let request = Request::post(&infer("add_sub"), bytes).header("content-encoding", coding);
        let response = server.ask(&request);
        let accepted = name == "twice" && response.status == 200;
        assert!(accepted || [400, 415].contains(&response.status), "{name}: {response:?}");
    }
}

#[test]
fn a_million_tiny_chunks_are_no_burden() {
    let server = Server::over(&Repository::of(&["add_sub"]));
    server.post(&infer("add_sub"), &add_sub()).ok();
    let before = peak_memory(&server);
    let mut body = add_sub().to_string().into_bytes();
    body.resize(1_000_000, b' ');
    let mut connection = server.connect();
    let started = Instant::now();
    connection.send(format!(
        "POST {} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        infer("add_sub")
    ));
    let _ = connection.try_send(chunked(&body, 1));
    let response = connection.answer();
    assert!([200, 400, 413].contains(&response.status), "{response:?}");
    let took = started.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    // The kernel sums its counts up late, so that a peak may seem to fall by some pages.
    let grown = peak_memory(&server).saturating_sub(before);
    assert!(grown < 32 * MIB, "the chunks took {} MiB", grown / MIB);
}

#[test]
fn the_memory_of_a_burst_goes_back_while_its_connections_stay() {
    const CONNECTIONS: usize = 24;
    let server = Server::over(&Repository::of(&["add_sub"]));
    server.post(&infer("add_sub"), &add_sub()).ok();
    let before = memory(&server, "VmRSS:");
    let mut body = add_sub().to_string().into_bytes();
    body.resize(15 * MIB, b' ');
    let bytes = Request::post(&infer("add_sub"), body).bytes();
    let (most, last) = bytes.split_at(bytes.len() - 100);
    let mut kept: Vec<_> = (0..CONNECTIONS).map(|_| server.connect()).collect();
    for connection in &mut kept {
        connection.send(most);
    }
    let grown = || memory(&server, "VmRSS:").saturating_sub(before) / MIB;
    eventually("all bodies are held", || (grown() > 12 * CONNECTIONS).then_some(()));
    for connection in &mut kept {
        connection.send(last);
        connection.answer().ok();
    }
    eventually("the memory goes back", || (grown() < 5 * CONNECTIONS).then_some(()));
    for connection in &mut kept {
        connection.ask(&Request::get("/v2")).ok();
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The most memory that the server has held so far, in bytes.
fn peak_memory(server: &Server) -> usize {
    memory(server, "VmHWM:")
}

/// A line of its status (proc(5)), in bytes.
fn memory(server: &Server, key: &str) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("one for each key");
    let kib: usize = line.trim().trim_end_matches(" kB").parse().unwrap();
    kib * 1024
}
