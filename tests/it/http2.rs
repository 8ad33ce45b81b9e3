//! HTTP/2 with prior knowledge, as load balancers and gRPC-minded clients speak it.

use std::net::SocketAddr;

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
        let too_long = Bytes::from(vec![b' '; (16 << 20) + 1]);
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

async fn connect(address: SocketAddr) -> Sender {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let io = TokioIo::new(stream);
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    sender
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
