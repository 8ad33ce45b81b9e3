//! HTTP/2 with prior knowledge, as load balancers and gRPC-minded clients speak it.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, client::conn::http2::SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};

use crate::{
    models::endless_loop,
    repository::Repository,
    server::{Launch, Server},
    tensors::{JSON_LENGTH, identity, in_binary, infer},
};

type Sender = SendRequest<Full<Bytes>>;

#[test]
fn concurrent_streams_get_their_own_answers() {
    let server = Server::over(&Repository::of(&["identity_int32"]));
    runtime().block_on(async {
        let sender = connect(server.http).await;
        let asked = (0..200).map(|number| {
            let body = identity("INT32", &json!([number])).to_string();
            tokio::spawn(ask(sender.clone(), Method::POST, infer("identity_int32"), body.into()))
        });
        // All 200 are under way at once; the server allows 100 streams, the rest wait.
        let asked: Vec<_> = asked.collect();
        for (number, answer) in asked.into_iter().enumerate() {
            let (head, body) = answer.await.unwrap();
            assert_eq!(head.status, 200, "{body:?}");
            let body: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body["outputs"][0]["data"], json!([number]));
            assert_eq!(head.headers["x-tidegate-version"], "1");
        }
    });
}

#[test]
fn a_mistake_on_one_stream_leaves_the_others_alone() {
    let server = Server::over(&Repository::of(&["identity_int32"]));
    runtime().block_on(async {
        let sender = connect(server.http).await;
        let path = || infer("identity_int32");
        let good: Bytes = identity("INT32", &json!([7])).to_string().into();
        let too_long = Bytes::from(vec![b' '; (64 << 20) + 1]);
        let wrong = [
            (Method::POST, path(), Bytes::from_static(b"{"), &[400_u16][..]),
            (Method::GET, path(), Bytes::new(), &[405]),
            (Method::GET, "/nope".to_owned(), Bytes::new(), &[404]),
            (Method::POST, path(), too_long, &[413]),
        ];
        for (method, path, body, codes) in wrong {
            let (head, text) = ask(sender.clone(), method, path, body).await;
            assert!(codes.contains(&head.status.as_u16()), "{head:?}");
            assert_eq!(head.headers["content-type"], "application/json", "{head:?}");
            let text: Value = serde_json::from_slice(&text).unwrap();
            assert!(text["error"].is_string(), "{text}");
            let (head, text) =
                ask(sender.clone(), Method::POST, infer("identity_int32"), good.clone()).await;
            assert_eq!(head.status, 200, "{text:?}");
        }
    });
}

#[test]
fn a_stream_that_waits_for_its_model_holds_up_no_other() {
    // The first two take all the room, so that the third is loaded only once it is asked for.
    let repository = Repository::of(&["identity_int32", "identity_int64"]);
    repository.add_bytes("x_loop", "1", &endless_loop());
    let server = Launch::of(&repository)
        .set("SERVER__WORKERS", "1")
        .set("REPOSITORY__LOADED_BYTES", "600KiB")
        .set("REPOSITORY__DEMAND_TIMEOUT", "3s")
        .set("PROOF__TIME_MAX", "15s")
        .set("MODELS__identity_int32__REQUIRED", "true")
        .start();
    runtime().block_on(async {
        let sender = connect(server.http).await;
        let body: Bytes = identity("INT32", &json!([7])).to_string().into();
        let endless = ask(sender.clone(), Method::POST, infer("x_loop"), body.clone());
        let mut endless = tokio::spawn(endless);
        for _ in 0..5 {
            let path = infer("identity_int32");
            let (head, text) = ask(sender.clone(), Method::POST, path, body.clone()).await;
            assert_eq!(head.status, 200, "{text:?}");
        }
        assert!(!endless.is_finished(), "it waits");
        let (head, text) = (&mut endless).await.unwrap();
        assert_eq!(head.status, 503, "{text:?}");
        assert_eq!(head.headers["retry-after"], "1");
    });
}

#[test]
fn binary_tensors_travel_over_http_2() {
    let server = Server::over(&Repository::of(&["identity_int32"]));
    runtime().block_on(async {
        let mut sender = connect(server.http).await;
        let mut asked = identity("INT32", &json!([1, 2, 3]));
        asked["parameters"] = json!({"binary_data_output": true});
        let whole = in_binary("/", &asked).bytes();
        let split = whole.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
        let json_length = whole.len() - split - 12;
        let request = hyper::Request::post(infer("identity_int32"))
            .header("host", "localhost")
            .header(JSON_LENGTH, json_length)
            .body(Full::new(Bytes::copy_from_slice(&whole[split..])))
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        assert!(response.headers().contains_key(JSON_LENGTH));
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert!(body.ends_with(&[1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]), "{body:?}");
    });
}

#[test]
fn after_sigterm_a_connection_that_is_used_says_that_it_ends_and_loses_nothing() {
    let repository = Repository::of(&["identity_int32"]);
    let mut server = Launch::of(&repository).set("SERVER__DRAIN_DELAY", "1s").start();
    runtime().block_on(async {
        let (sender, ended) = connect_and_watch(server.http).await;
        let asked = |number: i32| {
            let body = identity("INT32", &json!([number])).to_string();
            ask(sender.clone(), Method::POST, infer("identity_int32"), body.into())
        };
        assert_eq!(asked(0).await.0.status, 200);
        server.terminate();
        // One of these meets the end, which is announced: it is answered, and no later one is begun.
        let mut number = 0;
        while sender.is_ready() {
            number += 1;
            assert_eq!(asked(number).await.0.status, 200, "{number}");
        }
        assert!(number > 0);
        ended.await.unwrap().unwrap();
        let (late, ended) = connect_and_watch(server.http).await;
        assert_eq!(ask(late, Method::GET, "/v2".into(), Bytes::new()).await.0.status, 200);
        ended.await.unwrap().unwrap();
    });
    assert_eq!(server.exit_code(Duration::from_secs(10)), 0);
}

/// A frame (RFC 9113, 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

#[test]
fn an_answer_that_nobody_takes_ends_its_connection_whatever_else_is_said_on_it() {
    let repository = Repository::of(&["add_sub"]);
    let server = Launch::of(&repository)
        .set("LIMITS__WRITE_TIMEOUT", "600ms")
        .set("LIMITS__IDLE_TIMEOUT", "600ms")
        .start();
    // A window that takes nothing (SETTINGS_INITIAL_WINDOW_SIZE is 4), or a request that is never sent.
    let window = |bytes: u32| frame(4, 0, 0, &[&[0, 4][..], &bytes.to_be_bytes()].concat());
    // `:method GET`, `:scheme http`, `:path /v2`, `:authority x` in HPACK, and the end of the stream.
    let get = frame(1, 5, 1, b"\x82\x86\x04\x03/v2\x01\x01x");
    for (name, start) in [("takes nothing", [window(0), get].concat()), ("asks nothing", window(1))]
    {
        let mut stream = TcpStream::connect(server.http).unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        stream.write_all(&start).unwrap();
        let started = Instant::now();
        let mut reader = stream.try_clone().unwrap();
        let heard = thread::spawn(move || reader.read_to_end(&mut Vec::new()));
        // It is alive as far as PING and SETTINGS show.
        let said = [frame(6, 0, 0, &[7; 8]), window(0)].concat();
        while !heard.is_finished() {
            let _ = stream.write_all(&said);
            assert!(started.elapsed() < Duration::from_secs(10), "a client that {name} is heard");
            thread::park_timeout(Duration::from_millis(50));
        }
        let took = started.elapsed();
        assert!(took > Duration::from_millis(500), "a client that {name} was cut after {took:?}");
    }
}

#[test]
fn a_long_answer_may_be_taken_slowly() {
    let server = Launch::of(&Repository::of(&["identity_int32"]))
        .set("LIMITS__WRITE_TIMEOUT", "500ms")
        .start();
    runtime().block_on(async {
        let stream = tokio::net::TcpStream::connect(server.http).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http2::Builder::new(TokioExecutor::new())
                .initial_stream_window_size(1 << 16)
                .initial_connection_window_size(1 << 16)
                .handshake(TokioIo::new(stream))
                .await
                .unwrap();
        tokio::spawn(connection);
        let body = identity("INT32", &json!(vec![1_000_000_000; 60_000])).to_string();
        let request = hyper::Request::post(infer("identity_int32"))
            .header("host", "localhost")
            .body(Full::new(Bytes::from(body)))
            .unwrap();
        let mut answer = sender.send_request(request).await.unwrap();
        assert_eq!(answer.status(), 200);
        let (mut bytes, started) = (0, Instant::now());
        while let Some(piece) = answer.frame().await {
            bytes += piece.unwrap().data_ref().map_or(0, Bytes::len);
            // Slowly as a whole, and never as slow as the limit.
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        assert!(bytes > 660_000, "{bytes}");
        assert!(started.elapsed() > Duration::from_secs(1), "{:?}", started.elapsed());
    });
}

#[test]
fn answers_that_nobody_reads_are_bounded() {
    const STREAMS: usize = 100;
    const NUMBERS: usize = 60_000;
    const ANSWER_BYTES: usize = 11 * NUMBERS;
    let server = Launch::of(&Repository::of(&["identity_int32"]))
        .set("SERVER__WORKERS", "1")
        .set("LIMITS__BODY", "16MiB")
        .set("LIMITS__IN_FLIGHT_BYTES", "16MiB")
        .start();
    runtime().block_on(async {
        let stream = tokio::net::TcpStream::connect(server.http).await.unwrap();
        // Room for the beginning of each answer, and for no more than is read of it.
        let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(1)
            .handshake(TokioIo::new(stream))
            .await
            .unwrap();
        let connection = tokio::spawn(connection);
        let numbers = identity("INT32", &json!(vec![1_000_000_000; NUMBERS]));
        let body: Bytes = numbers.to_string().into();
        let (mut unread, mut refused) = (Vec::new(), 0);
        for _ in 0..STREAMS {
            let request = hyper::Request::post(infer("identity_int32"))
                .header("host", "localhost")
                .body(Full::new(body.clone()))
                .unwrap();
            let answer = sender.clone().send_request(request).await.unwrap();
            match answer.status().as_u16() {
                200 => unread.push(answer),
                503 => refused += 1,
                status => panic!("{status}: {:?}", answer.collect().await.unwrap().to_bytes()),
            }
        }
        let most = (16 << 20) / ANSWER_BYTES;
        assert!((most / 2..=most).contains(&unread.len()), "{} answers are held", unread.len());
        assert_eq!(unread.len() + refused, STREAMS);
        // What was held is there again once nobody waits for it.
        drop((unread, sender));
        connection.abort();
        let (head, text) = loop {
            let path = infer("identity_int32");
            let (head, text) =
                ask(connect(server.http).await, Method::POST, path, body.clone()).await;
            if head.status != 503 {
                break (head, text);
            }
        };
        assert_eq!((head.status.as_u16(), text.len() > ANSWER_BYTES / 2), (200, true));
    });
}

async fn connect(address: SocketAddr) -> Sender {
    connect_and_watch(address).await.0
}

/// A connection, and how it ends.
async fn connect_and_watch(
    address: SocketAddr,
) -> (Sender, tokio::task::JoinHandle<hyper::Result<()>>) {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let io = TokioIo::new(stream);
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    (sender, tokio::spawn(connection))
}

async fn ask(
    mut sender: Sender,
    method: Method,
    path: String,
    body: Bytes,
) -> (http::response::Parts, Bytes) {
    let request = hyper::Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .body(Full::new(body))
        .unwrap();
    let (head, body) = sender.send_request(request).await.unwrap().into_parts();
    (head, body.collect().await.unwrap().to_bytes())
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}
