//! Spans of sampled requests, for a collector that speaks OTLP over HTTP with binary protobuf
//! (<https://opentelemetry.io/docs/specs/otlp/>, 1.x; fields of `opentelemetry/proto/trace/v1/trace.proto`).
//!
//! A request is a server span with its phases as children, one after the other as they were. Attributes follow
//! OpenTelemetry's semantic conventions of HTTP. Always true:
//! - Nobody waits for the collector: what does not fit into the queue is dropped and counted.
//! - A batch that the collector does not take is tried again a few times, then dropped and counted.
//! - TLS is not spoken: the collector stands on the same host or in the same pod, and forwards.
//!
//! Not here: which requests are sampled (`visit`), how they come here (`access`).

use std::{
    io::{self, Read as _, Write as _},
    net::{TcpStream, ToSocketAddrs as _},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{self, Receiver, SyncSender},
    },
    thread,
    time::Duration,
};

use http::{Method, Version};

use crate::model::Trace;

use super::{
    access::Endpoint,
    entry::Entry,
    note::{Note, Texts},
    route::{Part, Route},
};

/// Requests that may wait for the collector.
const WAITING_MAX: usize = 4096;
/// Requests of one message.
const BATCH_MAX: usize = 256;
/// Time in which a batch gathers.
const GATHER: Duration = Duration::from_millis(250);
/// Times that a batch is tried, and the pause before the second; it doubles.
const ATTEMPTS_MAX: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);
/// Longest waits for the collector: to connect, for it to take bytes, for its answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A request, its texts, and its place in a trace.
type Told = (Note, Box<[u8]>, Option<Trace>);

/// Where requests wait for the exporter's thread, which ends when this is dropped.
#[derive(Debug)]
pub(super) struct Exporter {
    queue: SyncSender<Box<Told>>,
    dropped: Arc<AtomicU64>,
}

impl Exporter {
    /// Starts the thread; `end` hears when it has ended.
    pub(super) fn start(
        endpoint: Endpoint,
        dropped: Arc<AtomicU64>,
        end: SyncSender<()>,
    ) -> io::Result<Self> {
        let (queue, told) = mpsc::sync_channel(WAITING_MAX);
        let counter = Arc::clone(&dropped);
        thread::Builder::new().name("otlp".to_owned()).spawn(move || {
            export(&endpoint, &told, &counter);
            let _ = end.try_send(());
        })?;
        Ok(Self { queue, dropped })
    }

    /// Takes what was noted of a request.
    pub(super) fn take(&self, note: &Note, texts: Texts<'_>, trace: Option<Trace>) {
        let told = Box::new((*note, texts.all().concat().into(), trace));
        if self.queue.try_send(told).is_err() {
            self.dropped.fetch_add(1, Relaxed);
        }
    }
}

/// Sends what comes until nobody sends any more.
fn export(endpoint: &Endpoint, told: &Receiver<Box<Told>>, dropped: &AtomicU64) {
    let mut works = true;
    while let Ok(first) = told.recv() {
        thread::sleep(GATHER);
        let mut batch = vec![first];
        batch.extend(told.try_iter().take(BATCH_MAX - 1));
        let entries = batch.iter().filter_map(|told| {
            let (note, texts, trace) = &**told;
            let (texts, _) = Texts::first(note.lengths, texts)?;
            Some(Entry::of(note, texts, *trace))
        });
        let message = message(entries);
        match deliver(endpoint, &message) {
            Ok(()) => works = true,
            Err(error) => {
                dropped.fetch_add(batch.len() as u64, Relaxed);
                if std::mem::replace(&mut works, false) {
                    tracing::warn!(
                        %error,
                        "traces are dropped: the collector at {endpoint} does not take them; see tracing.otlp"
                    );
                }
            }
        }
    }
}

fn deliver(endpoint: &Endpoint, message: &[u8]) -> Result<(), String> {
    let mut pause = PAUSE;
    for attempt in 1.. {
        let status = post(endpoint, message);
        let problem = match status {
            Ok(200..=299) => return Ok(()),
            // These alone may go better another time (OTLP/HTTP, "Retryable Response Codes").
            Ok(status @ (429 | 502 | 503 | 504)) => format!("it answered {status}"),
            Ok(status) => return Err(format!("it answered {status}")),
            Err(error) => error.to_string(),
        };
        if attempt == ATTEMPTS_MAX {
            return Err(problem);
        }
        thread::sleep(pause);
        pause *= 2;
    }
    unreachable!("the last attempt returns")
}

/// Sends one message on a connection of its own; returns the status of the answer.
fn post(endpoint: &Endpoint, message: &[u8]) -> io::Result<u16> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "its name has no address");
    let host = endpoint.host.trim_start_matches('[').trim_end_matches(']');
    let addresses = (host, endpoint.port).to_socket_addrs()?;
    let mut stream = None;
    for address in addresses.take(4) {
        match TcpStream::connect_timeout(&address, TIMEOUT) {
            Ok(connected) => {
                stream = Some(connected);
                break;
            }
            Err(error) => last = error,
        }
    }
    let Some(mut stream) = stream else { return Err(last) };
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let Endpoint { host, port, path } = endpoint;
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/x-protobuf\r\n\
         content-length: {}\r\nuser-agent: tidegate/{}\r\nconnection: close\r\n\r\n",
        message.len(),
        env!("CARGO_PKG_VERSION")
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(message)?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer)?;
    let status = answer.strip_prefix(b"HTTP/1.").and_then(|rest| rest.get(2..5));
    let status = status.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    status.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "its answer is not HTTP/1"))
}

/// An `ExportTraceServiceRequest` with the spans of these requests.
fn message<'a>(entries: impl Iterator<Item = Entry<'a>>) -> Vec<u8> {
    let mut scope_spans = Message::default();
    scope_spans.message(1, |scope| {
        scope.text(1, "tidegate");
        scope.text(2, env!("CARGO_PKG_VERSION"));
    });
    for entry in entries {
        if let Some(trace) = entry.trace {
            request_span(&mut scope_spans, &entry, trace);
        }
    }
    let mut whole = Message::default();
    whole.message(1, |resource_spans| {
        resource_spans.message(1, |resource| {
            resource.attribute(1, "service.name", "tidegate");
            resource.attribute(1, "service.version", env!("CARGO_PKG_VERSION"));
        });
        resource_spans.bytes(2, &scope_spans.0);
    });
    whole.0
}

/// Adds the span of a request, and of its phases where a version was reached.
fn request_span(to: &mut Message, entry: &Entry<'_>, trace: Trace) {
    let begun = entry.at.saturating_sub(entry.sample.total + entry.read);
    let method = std::str::from_utf8(entry.method).unwrap_or_default();
    let is_known = !method.is_empty()
        && Method::from_bytes(entry.method).is_ok_and(|method| {
            method.is_safe()
                || [Method::POST, Method::PUT, Method::PATCH, Method::DELETE].contains(&method)
        });
    let method = if is_known { method } else { "_OTHER" };
    let route = route(entry);
    to.message(2, |span| {
        let name = if is_known { method } else { "HTTP" };
        let name = route.map_or_else(|| name.to_owned(), |route| format!("{name} {route}"));
        span.head(trace, trace.span, trace.parent, &name);
        span.varint(6, SERVER);
        span.times(begun, entry.at);
        span.attribute(9, "http.request.method", method);
        if let Some(route) = route {
            span.attribute(9, "http.route", route);
        }
        span.attribute(9, "url.path", &String::from_utf8_lossy(entry.path));
        span.attribute(9, "url.scheme", "http");
        let version = match entry.protocol {
            Version::HTTP_10 => "1.0",
            Version::HTTP_2 => "2",
            _ => "1.1",
        };
        span.attribute(9, "network.protocol.version", version);
        if let Some(peer) = entry.peer {
            span.attribute(9, "network.peer.address", &peer.ip().to_string());
            span.number(9, "network.peer.port", peer.port().into());
        }
        span.number(9, "http.response.status_code", entry.code.into());
        span.number(9, "http.request.body.size", entry.bytes_in);
        span.number(9, "http.response.body.size", entry.bytes_out);
        if let Some(model) = entry.model() {
            span.attribute(9, "tidegate.model", &model);
        }
        if !entry.arm.is_empty() {
            span.attribute(9, "tidegate.version", &entry.version.to_string());
            span.attribute(9, "tidegate.arm", &String::from_utf8_lossy(entry.arm));
            span.number(9, "tidegate.rows", entry.sample.rows);
        }
        if let Some(prediction) = entry.prediction {
            span.attribute(9, "tidegate.prediction_id", prediction.as_str());
        }
        // Of a server, an answer in the four hundreds is no error of its own.
        if entry.code >= 500 {
            span.attribute(9, "error.type", &entry.code.to_string());
            span.message(15, |status| status.varint(3, STATUS_ERROR));
        }
        span.flags(trace);
    });
    if !entry.arm.is_empty() {
        phase_spans(to, entry, trace);
    }
}

/// Adds the spans of a request's phases.
fn phase_spans(to: &mut Message, entry: &Entry<'_>, trace: Trace) {
    let sample = &entry.sample;
    let mut from = entry.at.saturating_sub(sample.total);
    let phases = [
        ("queue", sample.queue),
        ("decode", sample.decode),
        ("run", sample.run),
        ("encode", sample.encode),
    ];
    for (number, (name, time)) in (1..).zip(phases) {
        to.message(2, |span| {
            span.head(trace, child(trace.span, number), Some(trace.span), name);
            span.varint(6, INTERNAL);
            span.times(from, from + time);
            span.flags(trace);
        });
        from += time;
    }
}

/// `SpanKind` and `StatusCode`.
const INTERNAL: u64 = 1;
const SERVER: u64 = 2;
const STATUS_ERROR: u64 = 2;

/// The id of a phase: that of the request, well mixed (the finalizer of `SplitMix64`).
fn child(span: u64, number: u64) -> u64 {
    let state = span.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ mixed >> 31).max(1)
}

/// The path with names in place of what clients choose; `None` where that is one of few anyway, or nothing.
fn route(entry: &Entry<'_>) -> Option<&'static str> {
    let Route::Model { version, part, .. } =
        Route::parse(std::str::from_utf8(entry.path).ok()?).ok()?
    else {
        return None;
    };
    Some(match (version.is_some(), part) {
        (false, Part::Infer) => "/v2/models/{model}/infer",
        (true, Part::Infer) => "/v2/models/{model}/versions/{version}/infer",
        (false, Part::Feedback) => "/v2/models/{model}/feedback",
        (false, Part::Metadata) => "/v2/models/{model}",
        (true, Part::Metadata) => "/v2/models/{model}/versions/{version}",
        (false, Part::Ready) => "/v2/models/{model}/ready",
        (true, Part::Ready) => "/v2/models/{model}/versions/{version}/ready",
        _ => return None,
    })
}

/// A protobuf message that is being written (<https://protobuf.dev/programming-guides/encoding/>).
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn raw(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number.to_le_bytes()[0] | 0x80);
            number >>= 7;
        }
        self.0.push(number.to_le_bytes()[0]);
    }

    fn varint(&mut self, field: u64, number: u64) {
        self.raw(field << 3);
        self.raw(number);
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.raw(field << 3 | 2);
        self.raw(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, field: u64, text: &str) {
        self.bytes(field, text.as_bytes());
    }

    fn message(&mut self, field: u64, write: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        write(&mut inner);
        self.bytes(field, &inner.0);
    }

    /// A `KeyValue` with a text.
    fn attribute(&mut self, field: u64, key: &str, text: &str) {
        self.message(field, |pair| {
            pair.text(1, key);
            pair.message(2, |value| value.text(1, text));
        });
    }

    /// A `KeyValue` with a whole number.
    fn number(&mut self, field: u64, key: &str, number: u64) {
        self.message(field, |pair| {
            pair.text(1, key);
            pair.message(2, |value| value.varint(3, number));
        });
    }

    fn head(&mut self, trace: Trace, span: u64, parent: Option<u64>, name: &str) {
        self.bytes(1, &trace.id.to_be_bytes());
        self.bytes(2, &span.to_be_bytes());
        if let Some(parent) = parent {
            self.bytes(4, &parent.to_be_bytes());
        }
        self.text(5, name);
    }

    fn times(&mut self, from: Duration, to: Duration) {
        for (field, time) in [(7, from), (8, to)] {
            self.raw(field << 3 | 1);
            let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
            self.0.extend_from_slice(&nanos.to_le_bytes());
        }
    }

    /// `flags`: those of the trace.
    fn flags(&mut self, trace: Trace) {
        self.raw(16 << 3 | 5);
        let flags = u32::from(trace.is_sampled) | u32::from(trace.is_random) << 1;
        self.0.extend_from_slice(&flags.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_written_as_protobuf_has_them() {
        let mut message = Message::default();
        message.varint(1, 150);
        message.text(2, "testing");
        message.message(3, |inner| inner.varint(1, 150));
        // The examples of the page on encoding.
        let expected = [&[8, 0x96, 1, 0x12, 7][..], b"testing", &[0x1a, 3, 8, 0x96, 1]].concat();
        assert_eq!(message.0, expected);
    }

    #[test]
    fn phases_have_ids_of_their_own() {
        let ids: std::collections::BTreeSet<u64> =
            (1..=4).map(|number| child(7, number)).chain([7]).collect();
        assert_eq!(ids.len(), 5);
    }
}
