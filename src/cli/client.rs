//! A small HTTP client for talking to a running server.

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{
    HeaderName, Method, Request, StatusCode, Uri,
    header::{CONTENT_TYPE, HOST},
    uri::Authority,
};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{Outcome, print, print_json};

/// The server's answer is no.
#[derive(Debug, thiserror::Error)]
#[error("{status}: {}", self.words())]
pub(super) struct Refused {
    pub(super) status: StatusCode,
    pub(super) detail: String,
    /// All errors, where there is more than one.
    pub(super) errors: Vec<String>,
}

impl Refused {
    fn of(status: StatusCode, body: &str) -> Self {
        let problem: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
        // The data plane says `error`, the admin plane `detail`.
        let said = ["detail", "error"].iter().find_map(|field| problem[*field].as_str());
        let detail = said.unwrap_or(body.trim()).to_owned();
        let errors = problem["errors"].as_array().map(Vec::as_slice).unwrap_or_default();
        let errors = errors.iter().filter_map(|error| error.as_str().map(str::to_owned)).collect();
        Self { status, detail, errors }
    }

    /// Describes the errors, each in a line of its own.
    fn words(&self) -> String {
        match self.errors.len() {
            0 | 1 => self.detail.clone(),
            count => format!("{count} problems\n  {}", self.errors.join("\n  ")),
        }
    }
}

/// Sends one request and reads its answer.
pub(super) fn send(
    method: &Method,
    url: &str,
    body: Vec<u8>,
) -> anyhow::Result<(StatusCode, Bytes)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(ask(method, url, body))
}

/// Sends one request and reads its answer, where there is a runtime.
pub(super) async fn ask(
    method: &Method,
    url: &str,
    body: Vec<u8>,
) -> anyhow::Result<(StatusCode, Bytes)> {
    let uri = server(url)?;
    exchange(method, &uri, body).await.with_context(|| {
        let server = uri.authority().map_or(url, |authority| authority.as_str());
        format!("no answer from {server}; is `tidegate serve` running there?")
    })
}

/// Reads a URL.
fn server(url: &str) -> anyhow::Result<Uri> {
    // `serve` takes an address without a scheme, so it is understood here as well.
    let full = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    let uri: Uri =
        full.parse().with_context(|| format!("`{url}` is not a URL; use http://HOST:PORT"))?;
    if uri.scheme_str() != Some("http") || uri.authority().is_none() {
        bail!("`{url}` cannot be asked; use http://HOST:PORT");
    }
    Ok(uri)
}

async fn exchange(
    method: &Method,
    uri: &Uri,
    body: Vec<u8>,
) -> anyhow::Result<(StatusCode, Bytes)> {
    let authority = uri.authority().context("the URL names no host")?;
    let stream = TcpStream::connect((
        authority.host().trim_matches(['[', ']']),
        authority.port_u16().unwrap_or(80),
    ))
    .await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::builder()
        .method(method)
        .uri(uri.path_and_query().map_or("/", |path| path.as_str()))
        .header(HOST, authority.as_str())
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))?;
    let connection = tokio::spawn(connection);
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    let body = answer.into_body().collect().await?.to_bytes();
    connection.abort();
    Ok((status, body))
}

/// A connection that is kept for the next request; it is opened when it is needed.
pub(super) struct Line {
    authority: Authority,
    open: Option<SendRequest<Full<Bytes>>>,
}

/// The header that tells the JSON of a request from the tensors behind it.
const JSON_BYTES: HeaderName = HeaderName::from_static("inference-header-content-length");

impl Line {
    /// A connection to a server, by its URL.
    pub(super) fn new(url: &str) -> anyhow::Result<Self> {
        let authority = server(url)?.into_parts().authority.context("the URL names no host")?;
        Ok(Self { authority, open: None })
    }

    /// Sends an inference request with binary tensors: the status, the length of the answer's JSON where tensors
    /// follow it, and the answer.
    pub(super) async fn infer(
        &mut self,
        path: &str,
        body: Vec<u8>,
        json_bytes: usize,
    ) -> anyhow::Result<(StatusCode, Option<usize>, Bytes)> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(HOST, self.authority.as_str())
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(JSON_BYTES, json_bytes)
            .body(Full::new(Bytes::from(body)))?;
        let is_kept = self.open.as_ref().is_some_and(|sender| !sender.is_closed());
        let sender = match &mut self.open {
            Some(sender) if is_kept => sender,
            open => open.insert(connect(&self.authority).await?),
        };
        let exchanged = async {
            sender.ready().await?;
            let answer = sender.send_request(request).await?;
            let (head, body) = answer.into_parts();
            let length = head.headers.get(JSON_BYTES).and_then(|length| length.to_str().ok());
            let length = length.and_then(|length| length.parse().ok());
            anyhow::Ok((head.status, length, body.collect().await?.to_bytes()))
        };
        let exchanged = exchanged.await;
        if exchanged.is_err() {
            self.open = None;
        }
        exchanged
    }
}

async fn connect(authority: &Authority) -> anyhow::Result<SendRequest<Full<Bytes>>> {
    let host = authority.host().trim_matches(['[', ']']);
    let stream = TcpStream::connect((host, authority.port_u16().unwrap_or(80))).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // It ends once the sender is dropped.
    tokio::spawn(connection);
    Ok(sender)
}

/// Asks the admin API; an answer other than success is [`Refused`].
pub(super) fn admin(
    method: &Method,
    admin: &str,
    path: &str,
    body: Vec<u8>,
) -> anyhow::Result<String> {
    let url = format!("{}{path}", admin.trim_end_matches('/'));
    let (status, body) = send(method, &url, body)?;
    answered(status, &body)
}

/// The text of an answer, or [`Refused`].
pub(super) fn answered(status: StatusCode, body: &[u8]) -> anyhow::Result<String> {
    let text = String::from_utf8_lossy(body).into_owned();
    if status.is_success() {
        return Ok(text);
    }
    Err(Refused::of(status, &text).into())
}

/// `tidegate health`.
pub(super) fn health(admin: &str, json: bool) -> anyhow::Result<Outcome> {
    let (status, body) =
        send(&Method::GET, &format!("{}/readyz", admin.trim_end_matches('/')), Vec::new())?;
    let text = String::from_utf8_lossy(&body);
    let ready = status == StatusCode::OK;
    if json {
        let reasons: Vec<_> = if ready { Vec::new() } else { text.lines().collect() };
        print_json(&serde_json::json!({ "ready": ready, "reasons": reasons }))?;
    } else if ready {
        print("ready\n")?;
    } else {
        print(&format!("not ready: {}\n", text.trim().replace('\n', "; ")))?;
    }
    Ok(if ready { Outcome::Done } else { Outcome::No })
}
