//! Stopping: readiness fails first, nothing accepted is lost, the exit code is 0.

use std::{
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::{
    http::{Connection, Request},
    repository::Repository,
    server::{Launch, Server, eventually},
    tensors::{add_sub, infer},
};

/// A request in two halves, so that it is under way for as long as a test wants.
fn halves() -> (Vec<u8>, Vec<u8>) {
    let mut bytes = Request::post_json(&infer("add_sub"), &add_sub()).bytes();
    let second = bytes.split_off(bytes.len() - 20);
    (bytes, second)
}

fn wait_until_unready(server: &Server) {
    eventually("readiness fails", || (server.admin("/readyz").status == 503).then_some(()));
}

fn wait_until_refused(server: &Server) {
    eventually("new connections are refused", || {
        Connection::try_open(server.http).is_none().then_some(())
    });
}

#[test]
fn after_sigterm_readiness_fails_at_once_while_requests_are_still_accepted() {
    let repository = Repository::of(&["add_sub"]);
    let mut server = Launch::of(&repository).set("SERVER__DRAIN_DELAY", "1s").start();
    let (first, second) = halves();
    let mut under_way = server.connect();
    under_way.send(&first);
    let mut kept_alive = server.connect();
    kept_alive.ask(&Request::get("/v2")).ok();

    let told = Instant::now();
    server.terminate();
    wait_until_unready(&server);
    assert!(told.elapsed() < Duration::from_millis(900), "{:?}", told.elapsed());
    assert_eq!(server.get("/v2/health/ready").status, 503);
    server.post(&infer("add_sub"), &add_sub()).ok();
    // Each answer is the last of its connection and says so: whoever goes on asks elsewhere.
    assert!(kept_alive.ask(&Request::get("/v2")).ok().closes());
    assert!(kept_alive.is_closed());
    under_way.send(&second);
    assert!(under_way.answer().ok().closes());

    assert_eq!(server.exit_code(Duration::from_secs(10)), 0);
    assert!(told.elapsed() < Duration::from_secs(5), "{:?}", told.elapsed());
}

#[test]
fn a_request_that_outlives_the_drain_delay_is_still_answered() {
    let repository = Repository::of(&["add_sub"]);
    let mut server = Launch::of(&repository).set("SERVER__DRAIN_DELAY", "100ms").start();
    let (first, second) = halves();
    let mut under_way = server.connect();
    under_way.send(&first);
    // The other half follows when nobody is let in any more. Idle connections do not hold the exit up.
    let mut idle = server.connect();
    idle.ask(&Request::get("/v2")).ok();
    server.terminate();
    wait_until_refused(&server);
    under_way.send(&second);
    under_way.answer().ok();
    assert_eq!(server.exit_code(Duration::from_secs(5)), 0);
    assert!(idle.is_closed());
}

#[test]
fn an_idle_connection_is_answered_until_it_has_been_quiet_for_a_while() {
    let repository = Repository::of(&["add_sub"]);
    let mut server = Launch::of(&repository)
        .set("SERVER__DRAIN_DELAY", "0s")
        .set("LIMITS__LINGER", "2s")
        .start();
    let (mut asking, mut quiet) = (server.connect(), server.connect());
    asking.ask(&Request::get("/v2")).ok();
    quiet.ask(&Request::get("/v2")).ok();
    server.terminate();
    wait_until_refused(&server);
    // The client sent this before it could know that the server stops.
    assert!(asking.ask(&Request::post_json(&infer("add_sub"), &add_sub())).ok().closes());
    assert!(asking.is_closed());
    assert_eq!(server.exit_code(Duration::from_secs(10)), 0);
    assert!(quiet.is_closed());
}

/// Asks on a kept connection until nobody accepts a new one; the number of good answers.
fn ask_until_refused(server: &Server) -> usize {
    let mut answers = 0;
    while let Some(mut connection) = Connection::try_open(server.http) {
        loop {
            let answer = connection.ask(&Request::post_json(&infer("add_sub"), &add_sub())).ok();
            answers += 1;
            if answer.closes() {
                assert!(connection.is_closed());
                break;
            }
        }
    }
    answers
}

#[test]
fn clients_that_keep_their_connections_lose_nothing() {
    let repository = Repository::of(&["add_sub"]);
    for delay in ["0s", "300ms"] {
        let mut server = Launch::of(&repository).set("SERVER__DRAIN_DELAY", delay).start();
        let answers = thread::scope(|scope| {
            let clients: Vec<_> =
                (0..8).map(|_| scope.spawn(|| ask_until_refused(&server))).collect();
            let counted = || {
                let page = server.admin("/metrics").text();
                let of_success = |line: &&str| {
                    line.starts_with("tidegate_requests_total") && line.contains("200")
                };
                page.lines().find(of_success)?.rsplit(' ').next()?.parse::<f64>().ok()
            };
            eventually("all are busy", || counted().filter(|count| *count > 100.0));
            server.terminate();
            clients.into_iter().map(|client| client.join().unwrap()).sum::<usize>()
        });
        assert!(answers > 8, "{answers}");
        assert_eq!(server.exit_code(Duration::from_secs(10)), 0);
    }
}

#[test]
fn a_client_that_still_sends_reads_the_last_answer() {
    let repository = Repository::of(&["add_sub"]);
    let server = Launch::of(&repository).set("LIMITS__BODY", "4KiB").start();
    for _ in 0..20 {
        let mut connection = server.connect();
        let head = Request::post(&infer("add_sub"), "").header("content-length", "4000000").head();
        connection.send(head);
        // What is refused from its head is sent all the same, and unread bytes must not reset the connection.
        connection.send(vec![b' '; 4_000_000]);
        assert_eq!(connection.answer().status, 413);
        assert!(connection.is_closed());
    }
}

#[test]
fn a_stuck_client_is_cut_off_when_the_grace_period_ends() {
    let repository = Repository::of(&["add_sub"]);
    let mut server = Launch::of(&repository)
        .set("SERVER__DRAIN_DELAY", "100ms")
        .set("SERVER__GRACE", "800ms")
        .start();
    let mut stuck = server.connect();
    stuck.send(halves().0);
    let told = Instant::now();
    server.terminate();
    assert_eq!(server.exit_code(Duration::from_secs(5)), 0);
    assert!(told.elapsed() > Duration::from_millis(500), "it had {:?} only", told.elapsed());
    assert!(stuck.answers_until_close().iter().all(|answer| answer.status >= 400));
}

#[test]
fn a_second_sigterm_does_not_hurt_the_first() {
    let repository = Repository::of(&["add_sub"]);
    let mut server = Launch::of(&repository).set("SERVER__DRAIN_DELAY", "300ms").start();
    server.terminate();
    wait_until_unready(&server);
    if server.is_running() {
        server.terminate();
    }
    assert_eq!(server.exit_code(Duration::from_secs(5)), 0);
}

#[test]
fn a_connection_that_never_spoke_does_not_hold_the_end() {
    let repository = Repository::of(&["add_sub"]);
    let mut server = Launch::of(&repository)
        .set("SERVER__GRACE", "20s")
        .set("SERVER__DRAIN_DELAY", "0s")
        .start();
    let silent = std::net::TcpStream::connect(server.http).unwrap();
    // Accepted behind it, so the silent one is with its worker by now.
    server.post(&infer("add_sub"), &add_sub()).ok();
    server.terminate();
    assert_eq!(server.exit_code(std::time::Duration::from_secs(10)), 0);
    drop(silent);
}

#[test]
fn signals_that_ask_to_read_something_again_end_nothing() {
    let repository = Repository::of(&["add_sub"]);
    let mut server = Launch::of(&repository).set("SERVER__DRAIN_DELAY", "0s").start();
    for (signal, name) in
        [(Signal::HUP, "SIGHUP"), (Signal::USR1, "SIGUSR1"), (Signal::USR2, "SIGUSR2")]
    {
        server.signal(signal);
        eventually("it is said", || server.said().contains(name).then_some(()));
    }
    server.wait_until_said("restart the server");
    server.post(&infer("add_sub"), &add_sub()).ok();
    server.terminate();
    assert_eq!(server.exit_code(Duration::from_secs(5)), 0);
}

#[test]
fn without_a_connection_nothing_is_waited_for_but_the_drain_delay() {
    // The sweep, which would notice at last, comes a second after the start. On a busy machine some ends take as long.
    let ends = (0..6).map(|_| {
        let repository = Repository::of(&["add_sub"]);
        let mut server = Launch::of(&repository).set("SERVER__DRAIN_DELAY", "0s").start();
        let told = Instant::now();
        server.terminate();
        assert_eq!(server.exit_code(Duration::from_secs(5)), 0);
        told.elapsed()
    });
    let mut ends: Vec<_> = ends.collect();
    ends.sort();
    assert!(ends[1] < Duration::from_millis(500), "{ends:?}");
}
