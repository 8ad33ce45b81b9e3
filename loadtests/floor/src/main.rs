//! The floor: a bare HTTP server around ONNX Runtime, the yardstick that tidegate's overhead is measured against.
//!
//! It decodes a request, runs the model on the worker that read it, and answers. It measures nothing, routes by
//! comparing names, swaps no versions, refuses nobody, and trusts its caller. Whatever tidegate is slower than this
//! is what its features cost. Always true:
//! - Each worker is one thread with its own runtime, its own `SO_REUSEPORT` listener and its own session per model;
//!   workers share nothing.
//! - Allocator, engine, engine options and build profile are tidegate's.
//!
//! Not here: anything a production server needs. Do not deploy it.

mod engine;
mod wire;

use std::{
    cell::RefCell, convert::Infallible, net::SocketAddr, path::PathBuf, rc::Rc, str::FromStr,
    thread,
};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use engine::{Environment, Model};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{CONTENT_TYPE, HeaderName, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const USAGE: &str = "usage: floor --onnxruntime LIBRARY --port PORT [--workers N] --model NAME=FILE [--model NAME=FILE ...]";

/// Says where the JSON ends in a body that carries binary tensors.
static JSON_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

fn main() -> Result<()> {
    let options = Options::from_arguments(std::env::args().skip(1)).context(USAGE)?;
    let environment = engine::start(&options.onnxruntime)?;
    thread::scope(|scope| {
        let workers: Vec<_> =
            (0..options.workers).map(|_| scope.spawn(|| serve(&options, &environment))).collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().expect("a worker returns its error, it does not panic")
        })
    })
}

/// What the command line asks for.
#[derive(Debug, PartialEq)]
struct Options {
    models: Vec<(String, PathBuf)>,
    workers: usize,
    port: u16,
    onnxruntime: PathBuf,
}

impl Options {
    fn from_arguments(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut options =
            Self { models: Vec::new(), workers: 1, port: 0, onnxruntime: PathBuf::new() };
        while let Some(flag) = arguments.next() {
            let value = arguments.next().with_context(|| format!("`{flag}` needs a value"))?;
            match flag.as_str() {
                "--model" => {
                    let (name, file) = value.split_once('=').context("a model is NAME=FILE")?;
                    options.models.push((name.to_owned(), file.into()));
                }
                "--workers" => options.workers = number(&flag, &value)?,
                "--port" => options.port = number(&flag, &value)?,
                "--onnxruntime" => options.onnxruntime = value.into(),
                _ => bail!("`{flag}` is unknown"),
            }
        }
        ensure!(!options.models.is_empty(), "no model was given");
        ensure!(!options.onnxruntime.as_os_str().is_empty(), "`--onnxruntime` must be given");
        ensure!(options.workers > 0, "`--workers` must be at least 1");
        // Every worker binds the port by itself, so that the system cannot choose it.
        ensure!(options.port > 0, "`--port` must be given");
        Ok(options)
    }
}

fn number<N: FromStr>(flag: &str, value: &str) -> Result<N> {
    value.parse().ok().with_context(|| format!("`{flag}` takes a whole number, not `{value}`"))
}

/// One worker: loads its own sessions, then answers until the process ends.
fn serve(options: &Options, environment: &Environment) -> Result<()> {
    let models = options
        .models
        .iter()
        .map(|(name, file)| Ok((name.clone(), RefCell::new(Model::load(environment, file)?))))
        .collect::<Result<Vec<_>>>()?;
    let models: Rc<[(String, RefCell<Model>)]> = models.into();

    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, async move {
        let listener = tokio::net::TcpListener::from_std(listen(options.port)?)?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let models = Rc::clone(&models);
            tokio::task::spawn_local(async move {
                let service = service_fn(|request| answer(request, &models));
                // A connection that breaks off is the client's affair.
                let _ = http1::Builder::new()
                    .pipeline_flush(true)
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    })
}

fn listen(port: u16) -> Result<std::net::TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], port)).into())?;
    socket.listen(1024)?;
    Ok(socket.into())
}

type Models = [(String, RefCell<Model>)];

async fn answer(
    request: Request<Incoming>,
    models: &Models,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path();
    if request.method() == Method::GET && path == "/v2/health/ready" {
        return Ok(Response::new(Full::default()));
    }
    let name = path.strip_prefix("/v2/models/").and_then(|rest| rest.strip_suffix("/infer"));
    let found = models.iter().find(|(model, _)| Some(model.as_str()) == name);
    let outcome = match found {
        Some((name, model)) if request.method() == Method::POST => {
            infer(request, name, model).await
        }
        _ => return Ok(refusal(StatusCode::NOT_FOUND, "no such model or endpoint")),
    };
    Ok(outcome.unwrap_or_else(|error| refusal(StatusCode::BAD_REQUEST, &format!("{error:#}"))))
}

async fn infer(
    request: Request<Incoming>,
    name: &str,
    model: &RefCell<Model>,
) -> Result<Response<Full<Bytes>>> {
    let json_bytes = match request.headers().get(&JSON_LENGTH) {
        Some(value) => Some(value.to_str()?.parse()?),
        None => None,
    };
    let body = request.into_body().collect().await?.to_bytes();
    let question = wire::decode(&body, json_bytes)?;
    // Not held across an await: the model runs right here.
    let outputs = model.borrow_mut().run(&question.inputs)?;
    let encoded = wire::encode(name, &outputs, question.binary_outputs)?;

    let mut response = Response::new(Full::new(Bytes::from(encoded.body)));
    let kind =
        if encoded.json_bytes.is_some() { "application/octet-stream" } else { "application/json" };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Some(length) = encoded.json_bytes {
        response.headers_mut().insert(JSON_LENGTH.clone(), length.into());
    }
    Ok(response)
}

fn refusal(status: StatusCode, message: &str) -> Response<Full<Bytes>> {
    let body = serde_json::json!({ "error": message }).to_string();
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options> {
        Options::from_arguments(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn several_models_share_one_port() {
        let options =
            parse("--onnxruntime l.so --model a=x.onnx --model b=y/z.onnx --port 9 --workers 2")
                .unwrap();
        assert_eq!(options.models[1], ("b".to_owned(), PathBuf::from("y/z.onnx")));
        assert_eq!((options.port, options.workers), (9, 2));
    }

    #[test]
    fn wrong_arguments_say_what_is_wrong() {
        let cases = [
            ("--port 9", "no model was given"),
            ("--model a=x --port 9", "`--onnxruntime` must be given"),
            ("--onnxruntime l.so --model a=x", "`--port` must be given"),
            ("--model a=x --port nine", "`--port` takes a whole number, not `nine`"),
            (
                "--onnxruntime l.so --model a=x --port 9 --workers 0",
                "`--workers` must be at least 1",
            ),
            ("--model a", "a model is NAME=FILE"),
            ("--fast yes", "`--fast` is unknown"),
        ];
        for (line, expected) in cases {
            assert_eq!(parse(line).unwrap_err().to_string(), expected, "for {line}");
        }
    }
}
