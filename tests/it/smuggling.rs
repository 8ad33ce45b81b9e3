//! Requests that two servers might read differently: ours reads each as one request or refuses it.
//!
//! Every case carries a second request, the *marker*, where a lenient reader would find one. After the case
//! comes an honest request, the *sentinel*. Always true: the marker is never answered; before the sentinel's
//! answer comes at most one other; what must be refused gets a 4xx or nothing, and the connection ends.

use std::thread;

use crate::{
    http::Response,
    repository::Repository,
    server::{Launch, Server},
};

// Answers to inference requests, good or bad, echo the request's id.
const MARKER: &str = "POST /v2/models/add_sub/infer HTTP/1.1\r\nHost: x\r\nX-Request-Id: smuggled\r\n\
                      Content-Length: 0\r\n\r\n";
const SENTINEL: &str = "POST /v2/models/add_sub/infer HTTP/1.1\r\nHost: x\r\nX-Request-Id: sentinel\r\n\
                        Content-Length: 0\r\n\r\n";

/// What is right for a case.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Right {
    /// It must be refused and the connection ended.
    Refused,
    /// It may be refused or answered once, and the connection must end.
    Ended,
    /// It must get a 4xx; the connection may live on, since its end is not in doubt.
    Denied,
    /// It may be refused, or answered once.
    Once,
    /// It is a good request and must be answered once with 200.
    Good,
}

use Right::{Denied, Ended, Good, Once, Refused};

struct Case {
    bytes: Vec<u8>,
    right: Right,
}

#[test]
fn no_request_is_read_in_two_ways() {
    let repository = Repository::of(&["add_sub"]);
    let server = Launch::of(&repository)
        .set("LIMITS__HEADER_TIMEOUT", "400ms")
        .set("LIMITS__BODY_GRACE", "400ms")
        .set("LIMITS__IDLE_TIMEOUT", "400ms")
        .start();
    let cases: Vec<_> = [codings(), lengths(), chunks(), headers(), request_lines()]
        .into_iter()
        .flatten()
        .collect();
    assert!(cases.len() > 150, "{} cases", cases.len());
    let wrong: Vec<String> = thread::scope(|scope| {
        let pieces = cases.chunks(cases.len().div_ceil(16));
        let threads: Vec<_> = pieces
            .map(|piece| {
                let server = &server;
                scope.spawn(move || piece.iter().filter_map(|case| judge(server, case)).collect())
            })
            .collect();
        threads.into_iter().flat_map(|thread| -> Vec<_> { thread.join().unwrap() }).collect()
    });
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

/// Sends a case; what is wrong with the outcome, if anything.
fn judge(server: &Server, case: &Case) -> Option<String> {
    let mut connection = server.connect();
    connection.send(&case.bytes);
    let _ = connection.try_send(SENTINEL);
    let mut answers: Vec<Response> = Vec::new();
    let mut alive = false;
    while let Ok(answer) = connection.try_answer() {
        if answer.header("x-request-id") == Some("sentinel") {
            alive = true;
            break;
        }
        if answer.status != 100 {
            answers.push(answer);
        }
    }
    let codes: Vec<_> = answers.iter().map(|answer| answer.status).collect();
    let smuggled = answers.iter().any(|a| a.header("x-request-id") == Some("smuggled"));
    let denied = codes.iter().all(|code| (400..600).contains(code));
    let fault = if smuggled {
        "the marker was answered"
    } else if codes.len() > 1 {
        "more than one answer"
    } else if codes.contains(&101) {
        "the protocol was switched"
    } else if [Refused, Denied].contains(&case.right) && !denied {
        "not refused"
    } else if [Refused, Ended].contains(&case.right) && alive {
        "the connection lives on"
    } else if case.right == Good && codes != [200] {
        "a good request was not answered"
    } else if alive && codes.is_empty() {
        "no answer, but the connection lives on"
    } else {
        return None;
    };
    Some(format!("{fault}: {codes:?}, alive {alive}: {}", case.bytes.escape_ascii()))
}

fn case(right: Right, text: String) -> Case {
    Case { bytes: text.into_bytes(), right }
}

const POST: &str = "POST /v2/repository/index HTTP/1.1\r\nHost: x\r\n";

/// `Transfer-Encoding`, spelled in many ways, alone and beside a `Content-Length` before and after it.
fn codings() -> Vec<Case> {
    let spellings = [
        (Good, "Transfer-Encoding: chunked"),
        (Good, "transfer-encoding: CHUNKED"),
        (Good, "Transfer-Encoding:chunked"),
        (Good, "Transfer-Encoding: \tchunked \t"),
        (Refused, "Transfer-Encoding : chunked"),
        (Refused, "Transfer-Encoding\t: chunked"),
        (Refused, "Transfer-Encoding: xchunked"),
        (Refused, "Transfer-Encoding: chunkedx"),
        (Refused, "Transfer-Encoding: chunked, identity"),
        (Refused, "Transfer-Encoding: identity"),
        (Refused, "Transfer-Encoding: chunked;q=1"),
        (Refused, "Transfer-Encoding: \"chunked\""),
        (Refused, "Transfer-Encoding: chun ked"),
        (Refused, "Transfer-Encoding:"),
        (Refused, "Transfer-Encoding: \u{b}chunked"),
        (Refused, "Transfer-Encoding: gzip"),
        (Refused, "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity"),
        (Refused, "Transfer-Encoding:\r\n chunked"),
        (Refused, "X: y\r\n Transfer-Encoding: chunked"),
        (Refused, "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked"),
        (Refused, "Transfer-Encoding: chunked, chunked"),
        (Refused, "Transfer-Encoding: gzip, chunked"),
        (Refused, "Transfer-Encoding: , chunked"),
        (Refused, "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
        (Refused, "Transfer-Encoding: chunked\0"),
        (Refused, "Transfer\u{7f}-Encoding: chunked"),
    ];
    let mut cases = Vec::new();
    for (right, coding) in spellings {
        // Read as chunked the body is empty, read by its length it hides the marker, and the other way round.
        let body = format!("0\r\n\r\n{MARKER}");
        let length = body.len();
        cases.push(case(right, format!("{POST}{coding}\r\n\r\n0\r\n\r\n")));
        // Beside a good coding a length may be ignored, if the connection ends (RFC 9112, 6.1).
        let beside = if right == Refused { Refused } else { Ended };
        for length in [5, length] {
            let counted = format!("Content-Length: {length}");
            cases.push(case(beside, format!("{POST}{counted}\r\n{coding}\r\n\r\n{body}")));
            cases.push(case(beside, format!("{POST}{coding}\r\n{counted}\r\n\r\n{body}")));
        }
        let old = POST.replace("HTTP/1.1", "HTTP/1.0");
        cases.push(case(Refused, format!("{old}{coding}\r\n\r\n{body}")));
        cases.push(case(Refused, format!("{old}Connection: keep-alive\r\n{coding}\r\n\r\n{body}")));
    }
    cases
}

/// `Content-Length`, spelled in many ways: before an object of two bytes, with the marker behind it.
fn lengths() -> Vec<Case> {
    let spellings = [
        (Good, "Content-Length: 2"),
        (Good, "content-length:2"),
        (Once, "Content-Length: 02"),
        (Once, "Content-Length: 2\r\nContent-Length: 2"),
        (Once, "Content-Length: 2, 2"),
        (Refused, "Content-Length: 2\r\nContent-Length: 3"),
        (Refused, "Content-Length: 2\r\nContent-Length: 0"),
        (Refused, "Content-Length: 0\r\nContent-Length: 2"),
        (Refused, "Content-Length: 2, 3"),
        (Refused, "Content-Length: +2"),
        (Refused, "Content-Length: -2"),
        (Refused, "Content-Length: 0x2"),
        (Refused, "Content-Length: 2.0"),
        (Refused, "Content-Length: 2e0"),
        (Refused, "Content-Length: 2 2"),
        (Refused, "Content-Length: 2;"),
        (Refused, "Content-Length: two"),
        (Refused, "Content-Length:"),
        (Refused, "Content-Length : 2"),
        (Refused, "Content-Length: 18446744073709551618"),
        (Refused, "Content-Length: 99999999999999999999999999999999"),
        (Refused, "Content-Length:\r\n 2"),
        (Refused, "X: y\r\n Content-Length: 2"),
        (Refused, "Content-Length: \u{b}2"),
        (Refused, "Content-Length: 2\0"),
    ];
    let after = |right| if right == Refused { MARKER } else { "" };
    let one = |(right, length)| case(right, format!("{POST}{length}\r\n\r\n{{}}{}", after(right)));
    let mut cases: Vec<_> = spellings.map(one).into();
    // The marker is the body of a request whose method usually has none.
    let length = MARKER.len();
    for method in ["GET", "DELETE", "OPTIONS", "HEADX"] {
        let head = format!("{method} /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
        cases.push(case(Once, head + MARKER));
    }
    cases
}

/// Chunk sizes and ends, spelled in many ways.
fn chunks() -> Vec<Case> {
    let head = format!("{POST}Transfer-Encoding: chunked\r\n\r\n");
    let end = "0\r\n\r\n";
    let sized = [
        (Good, "2\r\n{}\r\n"),
        (Good, "0002\r\n{}\r\n"),
        (Good, "2;a=b\r\n{}\r\n"),
        (Good, "1\r\n{\r\n1\r\n}\r\n"),
        (Once, "2 \r\n{}\r\n"),
        (Once, "2;a=\"\\\"\"\r\n{}\r\n"),
        (Refused, "+2\r\n{}\r\n"),
        (Refused, "-2\r\n{}\r\n"),
        (Refused, "0x2\r\n{}\r\n"),
        (Refused, "2h\r\n{}\r\n"),
        (Refused, "\r\n{}\r\n"),
        (Refused, ";a=b\r\n{}\r\n"),
        (Refused, "g\r\n{}\r\n"),
        (Refused, "2{}\r\n"),
        (Refused, "2\r\n{}"),
        (Refused, "2\r\n{}x\r\n"),
        (Refused, "2\r\n{}\r\n\r\n"),
        (Refused, "1\r\n{}\r\n"),
        (Refused, "10000000000000002\r\n{}\r\n"),
        (Refused, "fffffffffffffffff\r\n{}\r\n"),
        (Refused, "ffffffffffffffff\r\n{}\r\n"),
        (Refused, "2\0\r\n{}\r\n"),
        (Refused, "2\r{}\r\n"),
        (Refused, "2;a\rb\r\n{}\r\n"),
        (Once, "2\n{}\r\n"),
        (Once, "2;a\n{}\r\n"),
        (Once, "2\r\n{}\n"),
    ];
    // Whoever reads one chunk too few or too many finds the marker.
    let after = |right| if right == Refused { MARKER } else { "" };
    let one = |(right, chunk)| case(right, format!("{head}{chunk}{end}{}", after(right)));
    let mut cases: Vec<_> = sized.map(one).into();
    let ends = [
        (Good, "0\r\nX-Trailer: 1\r\n\r\n".to_owned()),
        (Good, "000\r\n\r\n".to_owned()),
        (Once, "0\r\nContent-Length: 5\r\n\r\n".to_owned()),
        (Once, "0\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned()),
        (Once, "0\r\nHost: y\r\n\r\n".to_owned()),
        (Once, format!("0\r\nX: {}\r\n\r\n", "t".repeat(50_000))),
        (Once, format!("0;{}\r\n\r\n", "e".repeat(50_000))),
    ];
    cases.extend(ends.map(|(right, end)| case(right, format!("{head}2\r\n{{}}\r\n{end}"))));
    cases
}

/// Header lines that are no header lines.
fn headers() -> Vec<Case> {
    let length = MARKER.len();
    let lines: [(Right, String); 25] = [
        (Refused, "X: a\r\n b".into()),
        (Refused, "X: a\r\n\tb".into()),
        (Refused, " X: a".into()),
        (Refused, "X : a".into()),
        (Refused, "X a".into()),
        (Refused, ": a".into()),
        (Refused, "X\0: a".into()),
        (Refused, "X: a\0b".into()),
        (Refused, "X: a\rb".into()),
        (Refused, "X\u{e4}: a".into()),
        (Refused, "X(y): a".into()),
        (Denied, "Host: y".into()),
        (Denied, "Host: x".into()),
        (Once, "X: a\n Y: b".into()),
        (Once, "X: \u{7f}".into()),
        (Once, "Expect: 200-ok".into()),
        (Once, "Expect: 100-continue".into()),
        (Once, "Connection: Content-Length".into()),
        (Once, "Connection: upgrade\r\nUpgrade: websocket".into()),
        (
            Once,
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk"
                .into(),
        ),
        (Once, format!("X-Http-Method-Override: POST\r\nContent-Length: {length}")),
        (Good, "X: ".into()),
        (Good, "X:\u{e4}".into()),
        (Good, "Connection: keep-alive".into()),
        (Good, format!("X: {}", "x".repeat(4_000))),
    ];
    let mut cases: Vec<_> = lines
        .into_iter()
        .map(|(right, line)| {
            let tail = if line.contains("Content-Length:") { MARKER } else { "" };
            case(right, format!("GET /v2 HTTP/1.1\r\nHost: x\r\n{line}\r\n\r\n{tail}"))
        })
        .collect();
    cases.push(case(
        Once,
        format!("GET /v2 HTTP/1.1\nHost: x\nContent-Length: {length}\n\n{MARKER}"),
    ));
    cases.push(case(Once, "GET /v2 HTTP/1.1\r\nHost: x\r\n\n".into()));
    cases.push(case(Refused, "GET /v2 HTTP/1.1\r\nHost: x\r\r\n\r\n".into()));
    cases.push(case(Denied, "GET /v2 HTTP/1.1\r\n\r\n".into()));
    cases.push(case(Denied, "GET /v2 HTTP/1.1\r\nHost: x y\r\n\r\n".into()));
    cases
}

/// Request lines that are none, or that name another protocol.
fn request_lines() -> Vec<Case> {
    let lines: [(Right, &str); 24] = [
        (Refused, "GET /v2"),
        (Refused, "GET /v2 HTTP/1.2.3"),
        (Refused, "GET /v2 HTTP/3.0"),
        (Refused, "GET /v2 HTTP/0.9"),
        (Refused, "GET /v2 HTTP/11"),
        (Refused, "GET /v2 http/1.1"),
        (Refused, "GET /v2 HTTPS/1.1"),
        (Refused, "GET /v 2 HTTP/1.1"),
        (Refused, "GET  HTTP/1.1"),
        (Refused, "GE(T /v2 HTTP/1.1"),
        (Refused, "G\0T /v2 HTTP/1.1"),
        (Refused, "GET /v2\0 HTTP/1.1"),
        (Denied, "GET v2 HTTP/1.1"),
        (Refused, " GET /v2 HTTP/1.1"),
        (Refused, ": /v2 HTTP/1.1"),
        (Once, "GET /v2 HTTP/2.0"),
        (Once, "GET  /v2 HTTP/1.1"),
        (Once, "GET /v2  HTTP/1.1"),
        (Once, "GET\t/v2\tHTTP/1.1"),
        (Once, "GET /v2#part HTTP/1.1"),
        (Once, "GET http://y/v2 HTTP/1.1"),
        (Once, "OPTIONS * HTTP/1.1"),
        (Once, "CONNECT y:80 HTTP/1.1"),
        (Once, "PRI * HTTP/2.0"),
    ];
    let mut cases: Vec<_> =
        lines.map(|(right, line)| case(right, format!("{line}\r\nHost: x\r\n\r\n"))).into();
    cases.push(case(Good, "\r\nGET /v2 HTTP/1.1\r\nHost: x\r\n\r\n".into()));
    cases.push(case(Refused, "\0GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n".into()));
    // TLS spoken to a plain port.
    cases.push(Case {
        bytes: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".into(),
        right: Refused,
    });
    cases
}
