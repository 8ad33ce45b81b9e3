//! Pages of other sites, open in a browser on the server's machine, change nothing.

use serde_json::{Value, json};

use crate::{
    http::{Connection, Request, Response},
    repository::Repository,
    server::{Launch, Server},
    tensors::{add_sub, infer},
};

const UNLOAD: &str = "/api/v1/models/add_sub/unload";
const LOAD: &str = "/v2/repository/models/add_sub/load";

/// What a page can send without asking first: a simple content type, and the header that it cannot leave out.
fn from_page(path: &str, host: &str, origin: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nHost: {host}\r\nOrigin: {origin}\r\nContent-Type: text/plain\r\n\
         Content-Length: 2\r\n\r\n{{}}"
    )
    .into_bytes()
}

fn send(address: std::net::SocketAddr, request: &[u8]) -> Response {
    let mut connection = Connection::open(address);
    connection.send(request);
    connection.answer()
}

fn refused(response: &Response, part: &str, says: &str) {
    assert_eq!(response.status, 403, "{response:?}");
    let body: Value = serde_json::from_slice(&response.body).unwrap();
    let text = body[part].as_str().unwrap();
    assert!(text.contains(says), "{text}");
}

#[test]
fn a_page_of_another_site_changes_nothing() {
    let repository = Repository::of(&["add_sub"]);
    let server = Server::over(&repository);
    let (admin, http) = (server.admin.to_string(), server.http.to_string());
    let foreign = ["http://evil.example", "null", "http://localhost:3000", "https://127.0.0.1"];
    for origin in foreign {
        let answer = send(server.admin, &from_page(UNLOAD, &admin, origin));
        refused(&answer, "detail", "another site");
        for operation in ["load", "unload"] {
            let path = format!("/v2/repository/models/add_sub/{operation}");
            refused(&send(server.http, &from_page(&path, &http, origin)), "error", "another site");
        }
    }
    assert_eq!(server.indexed("add_sub", "1").unwrap()["state"], "READY");

    // What the server's own pages may ask, and what no browser sends.
    let own = send(server.admin, &from_page(UNLOAD, &admin, &format!("http://{admin}")));
    assert_eq!(own.status, 200, "{own:?}");
    assert_eq!(server.post(LOAD, &json!({})).status, 200);
    let own = send(server.http, &from_page(LOAD, &http, &format!("http://{http}")));
    assert_eq!(own.status, 200, "{own:?}");
}

#[test]
fn a_name_that_was_turned_to_this_machine_reaches_nothing() {
    let repository = Repository::of(&["add_sub"]);
    let server = Server::over(&repository);
    // To the browser such a page and the server are one site.
    for (host, origin) in
        [("evil.example:8002", "http://evil.example:8002"), ("10.1.2.3", "http://10.1.2.3")]
    {
        let answer = send(server.admin, &from_page(UNLOAD, host, origin));
        refused(&answer, "detail", "loopback");
        refused(&send(server.http, &from_page(LOAD, host, origin)), "error", "loopback");
        for path in ["/api/v1/models", "/metrics", "/readyz?verbose"] {
            let head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
            refused(&send(server.admin, head.as_bytes()), "detail", "loopback");
        }
    }
    assert_eq!(server.indexed("add_sub", "1").unwrap()["state"], "READY");
    for host in ["localhost", "LOCALHOST:8002", "127.0.0.1", "127.1.2.3:80", "[::1]:8002"] {
        let head = format!("GET /api/v1/models HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(send(server.admin, head.as_bytes()).status, 200, "{host}");
    }
    assert_eq!(Connection::open(server.admin).ask(&Request::get("/metrics")).status, 200);
}

#[test]
fn a_page_of_another_site_gets_no_prediction_from_loopback() {
    let repository = Repository::of(&["add_sub"]);
    let server = Server::over(&repository);
    let host = server.http.to_string();
    let ask = |server: &Server, name: &str, value: &str| {
        let request = Request::post_json(&infer("add_sub"), &add_sub()).header(name, value);
        server.ask(&request)
    };
    for (name, value) in [
        ("origin", "http://evil.example"),
        ("origin", "null"),
        ("origin", "http://localhost:3000"),
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
    ] {
        let answer = ask(&server, name, value);
        refused(&answer, "error", "another site");
        assert!(answer.closes(), "the body was not read: {answer:?}");
    }
    server.post(&infer("add_sub"), &add_sub()).ok();
    let own = format!("http://{host}");
    let request = Request::post_json(&infer("add_sub"), &add_sub()).header("origin", &own);
    let bytes = String::from_utf8(request.bytes()).unwrap();
    let bytes = bytes.replace("host: localhost", &format!("host: {host}"));
    assert_eq!(send(server.http, bytes.as_bytes()).status, 200);
    // What only reads shows a page nothing that it could see.
    let request = Request::get("/v2").header("sec-fetch-site", "cross-site");
    assert_eq!(server.ask(&request).status, 200);

    // An operator whose proxy serves browsers says so.
    let server = Launch::of(&repository).set("SERVER__WEB_PAGES", "on").start();
    assert_eq!(ask(&server, "origin", "http://evil.example").status, 200);
    // Loading stays out of their reach.
    let load = from_page(LOAD, &server.http.to_string(), "http://evil.example");
    refused(&send(server.http, &load), "error", "another site");
}
