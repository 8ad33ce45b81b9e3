//! HTTP/1.1 and 1.0 as clients really speak them.

use serde_json::json;

use crate::{
    http::{Connection, Request},
    repository::Repository,
    server::Server,
    tensors::{add_sub, data, identity, infer},
};

#[test]
fn one_connection_serves_many_requests() {
    let server = Server::over(&Repository::of(&["add_sub"]));
    let mut connection = server.connect();
    for _ in 0..200 {
        connection.ask(&Request::post_json(&infer("add_sub"), &add_sub())).ok();
    }
    let last = Request::get("/v2").header("connection", "close");
    assert!(connection.ask(&last).ok().closes());
    assert!(connection.is_closed());
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let server = Server::over(&Repository::of(&["identity_int32"]));
    let ask = |number: i32| {
        Request::post_json(&infer("identity_int32"), &identity("INT32", &json!([number]))).bytes()
    };
    let mistake = Request::post(&infer("identity_int32"), "{").bytes();
    let mut connection = server.connect();
    connection.send([ask(1), ask(2), mistake, ask(3)].concat());
    assert_eq!(data(&connection.answer(), "OUTPUT"), json!([1]));
    assert_eq!(data(&connection.answer(), "OUTPUT"), json!([2]));
    assert_eq!(connection.answer().status, 400);
    assert_eq!(data(&connection.answer(), "OUTPUT"), json!([3]));

    // Many at once, cut anywhere: nothing is lost, nothing is mixed.
    let all: Vec<u8> = (0..100).flat_map(ask).collect();
    for piece in all.chunks(997) {
        connection.send(piece);
    }
    for number in 0..100 {
        assert_eq!(data(&connection.answer(), "OUTPUT"), json!([number]));
    }
}

#[test]
fn chunked_bodies_are_read_whatever_their_chunks() {
    let server = Server::over(&Repository::of(&["add_sub"]));
    let body = add_sub().to_string();
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
        infer("add_sub")
    );
    let mut connection = server.connect();
    for size in [1, 7, body.len()] {
        connection.send(head.as_bytes());
        connection.send(chunked(body.as_bytes(), size));
        connection.answer().ok();
    }
    // Extensions and trailers are allowed and mean nothing.
    let length = body.len();
    let adorned =
        format!("{head}{length:X};name=\"value\"\r\n{body}\r\n0;last\r\nX-Trailer: 1\r\n\r\n");
    connection.send(adorned);
    connection.answer().ok();
    connection.ask(&Request::get("/v2")).ok();
}

/// A body in chunks of this size, with the last chunk.
pub(crate) fn chunked(body: &[u8], size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(body.len() * 2);
    for piece in body.chunks(size) {
        bytes.extend(format!("{:x}\r\n", piece.len()).into_bytes());
        bytes.extend_from_slice(piece);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    bytes
}

#[test]
fn a_client_that_asks_first_is_told_to_continue() {
    let server = Server::over(&Repository::of(&["add_sub"]));
    let mut connection = server.connect();
    let request =
        Request::post_json(&infer("add_sub"), &add_sub()).header("expect", "100-continue");
    connection.send(request.head());
    assert_eq!(connection.answer().status, 100);
    connection.send(add_sub().to_string());
    connection.answer().ok();
    // And is not told so where the body would be refused anyway.
    let request = Request::post(&infer("add_sub"), "")
        .header("expect", "100-continue")
        .header("content-length", "99999999999");
    connection.send(request.head());
    assert_eq!(connection.answer().status, 413);
    assert!(connection.is_closed());
}

#[test]
fn http_1_0_is_answered_and_closed_unless_asked_otherwise() {
    let server = Server::over(&Repository::of(&["add_sub"]));
    let mut connection: Connection = server.connect();
    connection.send("GET /v2 HTTP/1.0\r\n\r\n");
    connection.answer().ok();
    assert!(connection.is_closed());

    let mut connection = server.connect();
    let body = add_sub().to_string();
    for _ in 0..2 {
        connection.send(format!(
            "POST {} HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: {}\r\n\r\n{body}",
            infer("add_sub"),
            body.len()
        ));
        let response = connection.answer().ok();
        assert!(response.header("transfer-encoding").is_none(), "{response:?}");
    }
}

#[test]
fn a_query_and_an_absolute_target_lead_to_the_same_place() {
    let server = Server::over(&Repository::of(&["add_sub"]));
    let mut connection = server.connect();
    connection.ask(&Request::get("/v2/models/add_sub?verbose=1")).ok();
    let absolute = format!("http://{}/v2/models/add_sub", server.http);
    connection.ask(&Request::get(&absolute)).ok();
}

#[test]
fn bytes_that_come_one_by_one_make_the_same_request() {
    let server = Server::over(&Repository::of(&["add_sub"]));
    let mut connection = server.connect();
    for byte in Request::post_json(&infer("add_sub"), &add_sub()).bytes() {
        connection.send([byte]);
    }
    connection.answer().ok();
}
