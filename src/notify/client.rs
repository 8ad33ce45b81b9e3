//! Sends one body to one receiver: resolve, judge the addresses, connect to one that was judged, ask, read the answer.
//!
//! Always true:
//! - Only an address that [`address::is_permitted`] is connected to; the name is not resolved a second time.
//! - No redirect is followed, no cookie kept, no proxy used, no connection used twice.
//! - Time, headers and body of the answer are bounded.
//!
//! Certificates are judged by rustls, with the authorities that the machine trusts, so that an organisation's own ones
//! hold here as they do for its other programs; `ca_file` names others.
//!
//! Not here: what an answer means for the message (`judge` says so, `outbox` acts on it).

use std::{
    fs::File,
    io::BufReader,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    },
};

use super::{
    address::{self, Block},
    outbox::Attempt,
    webhook::Target,
};

/// Sends bodies.
#[derive(Debug, Clone)]
pub(super) struct Client {
    /// Configuration of `https`, or the reason that there is none.
    tls: Result<Arc<ClientConfig>, String>,
    listed: Vec<Block>,
}

/// Headers and body of one request.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) timeout: Duration,
}

/// A receiver's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// `Retry-After` as it was written.
    pub(super) retry_after: Option<String>,
    /// The beginning of its text, without control characters.
    pub(super) text: String,
}

/// The most addresses of a host that are tried.
const ADDRESSES_MAX: usize = 4;
/// The most headers of an answer, and the most bytes of its head.
const HEADERS_MAX: usize = 64;
const HEAD_BYTES_MAX: usize = 16 << 10;
/// The most bytes of an answer's body that are read.
const BODY_BYTES_MAX: usize = 4 << 10;
/// The most characters of it that are shown.
const SHOWN_CHARS_MAX: usize = 200;

impl Client {
    /// Makes a client. Certificates are read only where `https` is needed.
    pub(super) fn new(https: bool, ca_file: Option<&Path>, listed: Vec<Block>) -> Self {
        let tls = if https { Self::trusting(ca_file) } else { Err("nothing needs it".to_owned()) };
        Self { tls, listed }
    }

    /// Reads the authorities that certificates are judged by.
    pub(super) fn trusting(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
        let mut roots = RootCertStore::empty();
        if let Some(path) = ca_file {
            let wrong = |what: String| format!("notify.ca_file `{}`: {what}", path.display());
            let file =
                File::open(path).map_err(|error| wrong(format!("cannot be read: {error}")))?;
            for certificate in CertificateDer::pem_reader_iter(BufReader::new(file)) {
                let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
                roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
            }
            if roots.is_empty() {
                return Err(wrong("holds no certificate in PEM".to_owned()));
            }
        } else {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err("this machine trusts no authority, so no https:// can be checked; install the package \
                            ca-certificates, or set notify.ca_file"
                    .to_owned());
            }
        }
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// Sends a body and reads the answer; an error says what went wrong, for people.
    pub(super) async fn post(&self, target: &Target, parcel: Parcel) -> Result<Answer, String> {
        let limit = parcel.timeout;
        timeout(limit, self.exchange(target, parcel))
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {} ms", limit.as_millis())))
    }

    async fn exchange(&self, target: &Target, parcel: Parcel) -> Result<Answer, String> {
        let stream = self.connect(target, parcel.timeout).await?;
        if !target.tls {
            return ask(stream, target, parcel).await;
        }
        let tls = self.tls.clone()?;
        let name = ServerName::try_from(target.host.clone())
            .map_err(|_| format!("`{}` can have no certificate", target.host))?;
        let stream = TlsConnector::from(tls)
            .connect(name, stream)
            .await
            .map_err(|error| format!("no TLS with {}: {error}", target.authority()))?;
        ask(stream, target, parcel).await
    }

    async fn connect(&self, target: &Target, limit: Duration) -> Result<TcpStream, String> {
        let host = &target.host;
        let found = tokio::net::lookup_host((host.as_str(), target.port))
            .await
            .map_err(|error| format!("`{host}` cannot be resolved: {error}"))?;
        let found: Vec<SocketAddr> = found.collect();
        let judged = found.iter().filter(|at| address::is_permitted(at.ip(), &self.listed));
        let permitted: Vec<&SocketAddr> = judged.take(ADDRESSES_MAX).collect();
        let Some(last) = permitted.len().checked_sub(1) else {
            let Some(one) = found.first() else {
                return Err(format!("`{host}` has no address"));
            };
            return Err(format!(
                "`{host}` is at {}, which is no address of the internet; list it in notify.private_addresses if it is meant",
                one.ip()
            ));
        };
        // A silent address must leave time for the next.
        let share = limit / u32::try_from(permitted.len()).unwrap_or(1).max(1);
        for (index, address) in permitted.into_iter().enumerate() {
            let error = match timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer".to_owned(),
            };
            if index == last {
                return Err(format!("{address} cannot be reached: {error}"));
            }
        }
        unreachable!("the last address returned")
    }
}

/// Asks on a connection, and closes it.
async fn ask(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    target: &Target,
    Parcel { headers, body, .. }: Parcel,
) -> Result<Answer, String> {
    let broken = |error: hyper::Error| format!("the exchange with {} broke: {error}", target.host);
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    // Ends with this function, however that ends.
    let mut connections = JoinSet::new();
    connections.spawn(connection);
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(&target.path)
        .body(Full::new(body))
        .map_err(|error| format!("the request cannot be written: {error}"))?;
    *request.headers_mut() = headers;
    let host = target.authority().try_into().map_err(|_| "the host is no header".to_owned())?;
    request.headers_mut().insert(header::HOST, host);
    let answer = sender.send_request(request).await.map_err(broken)?;
    let status = answer.status().as_u16();
    let retry_after = answer.headers().get(header::RETRY_AFTER);
    let retry_after = retry_after.and_then(|value| value.to_str().ok()).map(str::to_owned);
    let text = beginning(answer.into_body()).await;
    Ok(Answer { status, retry_after, text })
}

/// The beginning of a body; what cannot be read is left out, as the status has been said.
async fn beginning(mut body: Incoming) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < BODY_BYTES_MAX
        && let Some(Ok(frame)) = body.frame().await
    {
        if let Ok(data) = frame.into_data() {
            let room = BODY_BYTES_MAX - bytes.len();
            bytes.extend_from_slice(&data[..data.len().min(room)]);
        }
    }
    let text = String::from_utf8_lossy(&bytes);
    let words = text.split(|c: char| c.is_control() || c.is_whitespace());
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    words.join(" ").chars().take(SHOWN_CHARS_MAX).collect()
}

/// Judges what an answer means for the message: 2xx has it; 410 wants nothing any more; what an operator or time may
/// put
/// right is tried again (no connection, 3xx, 401, 403, 404, 407, 408, 421, 423, 425, 429, 5xx); any other 4xx refuses
/// this message.
pub(super) fn judge(answer: Result<Answer, String>, now: Duration) -> Attempt {
    let Answer { status, retry_after, text } = match answer {
        Ok(answer) => answer,
        Err(why) => return Attempt::Failed { status: None, why, after: None },
    };
    let reason = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    let mut why = format!("{status} {}", reason.unwrap_or_default()).trim_end().to_owned();
    if !text.is_empty() {
        why += &format!(": {text}");
    }
    match status {
        200..=299 => Attempt::Delivered { status },
        410 => Attempt::Gone { why },
        300..=399 => {
            why += "; redirects are not followed, set `url` to where it leads";
            Attempt::Failed { status: Some(status), why, after: None }
        }
        401 | 403 | 404 | 407 | 408 | 421 | 423 | 425 | 429 | 500..=599 => {
            let after = retry_after.and_then(|text| pause(text.trim(), now));
            Attempt::Failed { status: Some(status), why, after }
        }
        400..=499 => Attempt::Refused { status, why },
        _ => Attempt::Failed { status: Some(status), why, after: None },
    }
}

/// Reads `Retry-After`: seconds, or a date (RFC 9110, section 10.2.3).
fn pause(text: &str, now: Duration) -> Option<Duration> {
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(UNIX_EPOCH).ok()?.saturating_sub(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_judged_by_who_can_put_them_right() {
        let answer = |status| Answer { status, retry_after: Some("7".into()), text: "hm".into() };
        let now = Duration::from_secs(784_111_770);
        for status in [200, 202, 204, 299] {
            let attempt = judge(Ok(answer(status)), now);
            assert_eq!(attempt, Attempt::Delivered { status });
        }
        for status in [302, 307, 308, 401, 403, 404, 408, 425, 429, 500, 502, 503, 599, 101] {
            let attempt = judge(Ok(answer(status)), now);
            assert!(matches!(attempt, Attempt::Failed { .. }), "{status}: {attempt:?}");
        }
        for status in [400, 405, 413, 415, 422] {
            let attempt = judge(Ok(answer(status)), now);
            assert!(matches!(attempt, Attempt::Refused { .. }), "{status}: {attempt:?}");
        }
        assert_eq!(judge(Ok(answer(410)), now), Attempt::Gone { why: "410 Gone: hm".to_owned() });
        assert!(matches!(judge(Err("x".into()), now), Attempt::Failed { status: None, .. }));
        assert_eq!(pause("120", now), Some(Duration::from_mins(2)));
        // The example of the RFC, seven seconds later than `now`.
        assert_eq!(pause("Sun, 06 Nov 1994 08:49:37 GMT", now), Some(Duration::from_secs(7)));
        assert_eq!(pause("Sun, 06 Nov 1994 08:49:00 GMT", now), Some(Duration::ZERO));
        assert_eq!(pause("soon", now), None);
        assert_eq!(pause("-1", now), None);
    }
}
