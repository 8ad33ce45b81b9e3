//! Stopping: readiness fails first, nothing accepted is lost, the exit code is 0.

use std::time::{Duration, Instant};

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
    kept_alive.ask(&Request::get("/v2")).ok();
    under_way.send(&second);
    under_way.answer().ok();

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
    assert!(server.said().contains("restart the server"), "{}", server.said());
    server.post(&infer("add_sub"), &add_sub()).ok();
    server.terminate();
    assert_eq!(server.exit_code(Duration::from_secs(5)), 0);
}

#[test]
fn without_a_connection_nothing_is_waited_for_but_the_drain_delay() {
    // The sweep, which would notice at last, comes each second: ten ends would take five.
    let ends = (0..10).map(|_| {
        let repository = Repository::of(&["add_sub"]);
        let mut server = Launch::of(&repository).set("SERVER__DRAIN_DELAY", "0s").start();
        let told = Instant::now();
        server.terminate();
        assert_eq!(server.exit_code(Duration::from_secs(5)), 0);
        told.elapsed()
    });
    let ends: Vec<_> = ends.collect();
    assert!(ends.iter().sum::<Duration>() < Duration::from_millis(3500), "{ends:?}");
}
