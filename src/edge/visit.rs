//! A request while it is answered, and what is noted of it for whoever reads of it later.
//!
//! Always true: where requests are noted, each gets one entry, also where it is given up; where they are not, nothing
//! is noted and no clock is asked.
//!
//! Not here: the form of an entry (`entry`), the reader (`access`).

use std::{
    cell::{Cell, OnceCell},
    net::SocketAddr,
    os::fd::RawFd,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, Version, request::Parts};

use crate::{
    model::{ArmName, PredictionId, Trace},
    monitor::{Reason, Sample},
    serve::Receipt,
};

use super::{
    access::Access,
    entry::Entry,
    route::{Part, Route},
    v2::{self, REQUEST_ID},
    worker::Worker,
};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The client at the other end of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Client {
    /// The socket.
    pub(super) socket: RawFd,
    /// Its address, where that is told to anybody.
    pub(super) peer: Option<SocketAddr>,
}

/// A request that is being answered.
pub(super) struct Visit<'a> {
    worker: &'a Worker,
    head: &'a Parts,
    client: Client,
    /// True if it gets a line in the access log.
    is_line: bool,
    /// True until it is answered.
    is_open: Cell<bool>,
    /// True until its entry is written, if anybody reads of it.
    is_told: Cell<bool>,
    /// The arrival of its head, if anybody reads of it; of the whole request where the body came with the head.
    begun: Cell<Option<Instant>>,
    body_bytes: Cell<usize>,
    prediction: Cell<Option<PredictionId>>,
    receipt: OnceCell<Receipt>,
    is_gone: Cell<bool>,
    trace: Option<Trace>,
    /// The client's name of the request, if it gave one.
    request_id: Option<&'a HeaderValue>,
}

impl<'a> Visit<'a> {
    /// Begins with a head that was just read.
    pub(super) fn begin(worker: &'a Worker, head: &'a Parts, client: Client) -> Self {
        let trace = trace_of(worker, &head.headers);
        let access = worker.access();
        let is_line = access.is_some_and(|access| access.takes(worker.random()));
        let is_span = access.is_some_and(Access::exports) && trace.is_some_and(|it| it.is_sampled);
        let is_told = is_line || is_span;
        Self {
            worker,
            head,
            client,
            is_line,
            is_open: Cell::new(true),
            is_told: Cell::new(is_told),
            begun: Cell::new((is_told && !is_prediction(head)).then(|| worker.clock().now())),
            body_bytes: Cell::new(0),
            prediction: Cell::new(None),
            receipt: OnceCell::new(),
            is_gone: Cell::new(false),
            trace,
            request_id: head.headers.get(REQUEST_ID),
        }
    }

    /// The client's name of the request, if it gave one.
    pub(super) fn request_id(&self) -> Option<&'a HeaderValue> {
        self.request_id
    }

    /// The socket of the client that asks.
    pub(super) fn socket(&self) -> RawFd {
        self.client.socket
    }

    /// Its place in a trace, where it has one.
    pub(super) fn trace(&self) -> Option<Trace> {
        self.trace
    }

    /// Notes that the body is waited for.
    pub(super) fn note_wait(&self) {
        if self.is_told.get() && self.begun.get().is_none() {
            self.begun.set(Some(self.worker.clock().now()));
        }
    }

    /// Notes when the whole request was there.
    pub(super) fn note_arrival(&self, at: Instant) {
        self.begun.set(self.begun.get().or(Some(at)));
    }

    /// Notes the length of the body, as it came.
    pub(super) fn note_body(&self, bytes: usize) {
        self.body_bytes.set(bytes);
    }

    /// Notes the name of the prediction that it asks for.
    pub(super) fn note_prediction(&self, id: PredictionId) {
        self.prediction.set(Some(id));
    }

    /// Notes who answered.
    pub(super) fn note_receipt(&self, receipt: &Receipt) {
        if self.is_told.get() {
            // A request has one call that answers it.
            let _ = self.receipt.set(*receipt);
        }
    }

    /// Notes that nobody will see the answer.
    pub(super) fn note_gone(&self) {
        self.is_gone.set(true);
    }

    /// Ends with this answer, which is counted and told the place in the trace.
    pub(super) fn end(&self, answer: &mut Response<Bytes>) {
        let (status, body_bytes) = (answer.status().as_u16(), answer.body().len());
        if let Some(trace) = self.trace {
            let value = HeaderValue::from_bytes(&trace.traceparent());
            answer.headers_mut().insert(TRACEPARENT, value.expect("digits are a header's value"));
        }
        let code = if self.is_gone.get() { CLIENT_GONE } else { status };
        self.is_open.set(false);
        self.worker.answered(code);
        self.tell(code, body_bytes);
    }

    /// Ends without an answer: its client left while it waited.
    fn abandon(&self) {
        self.worker.answered(CLIENT_GONE);
        self.worker.refused(self.head, Reason::Gone);
        // A call that a panic ended was counted by itself.
        if !std::thread::panicking()
            && let Ok(Route::Model { model, part: Part::Infer, .. }) =
                Route::parse(self.head.uri.path())
        {
            v2::count_unanswered(self.worker, &model, CLIENT_GONE);
        }
        self.tell(CLIENT_GONE, 0);
    }

    fn tell(&self, code: u16, bytes_out: usize) {
        if !self.is_told.replace(false) {
            return;
        }
        let receipt = self.receipt.get();
        let now = receipt.map_or_else(|| self.worker.clock().now(), |receipt| receipt.at);
        let since =
            self.begun.get().map_or(Duration::ZERO, |begun| now.saturating_duration_since(begun));
        let (sample, read) = match receipt {
            Some(receipt) => (receipt.sample, since.saturating_sub(receipt.sample.total)),
            None => (Sample { total: since, ..Sample::default() }, Duration::ZERO),
        };
        let mut entry = Entry {
            at: self.worker.serving().unix_at(now),
            code,
            protocol: self.head.version,
            peer: self.client.peer,
            method: self.head.method.as_str().as_bytes(),
            path: self.head.uri.path().as_bytes(),
            request_id: self.request_id.map_or(&[], |id| id.as_bytes()),
            arm: receipt.map_or(&[], |receipt| receipt.arm.as_bytes()),
            fallback: receipt.and_then(|it| it.fallback.as_ref()).map_or(&[], ArmName::as_bytes),
            version: receipt.map_or(0, |receipt| receipt.version.number()),
            prediction: self.prediction.get(),
            trace: self.trace,
            bytes_in: self.body_bytes.get() as u64,
            bytes_out: bytes_out as u64,
            read,
            sample,
        };
        self.worker.tell(&mut entry, self.is_line);
    }
}

impl Drop for Visit<'_> {
    /// A request that is dropped before its answer has a client that left. A worker that was given up
    /// counts and writes nothing: another one does, in its place.
    fn drop(&mut self) {
        if self.is_open.get() && !self.worker.is_given_up() {
            self.abandon();
        }
    }
}

/// True for a request whose arrival is noted anyway.
fn is_prediction(head: &Parts) -> bool {
    head.method == Method::POST && head.uri.path().ends_with("/infer")
}

/// The place of a request in the trace that its head names, or in one that begins with it.
fn trace_of(worker: &Worker, headers: &HeaderMap) -> Option<Trace> {
    let mut parents = headers.get_all(TRACEPARENT).iter();
    let parent = match (parents.next(), parents.next()) {
        (Some(parent), None) => Trace::continued(parent.as_bytes(), worker.random()),
        // None, or several that contradict each other.
        _ => None,
    };
    let share = worker.plane().settings().traced_share;
    parent.or_else(|| {
        if share == 0.0 {
            return None;
        }
        let id = u128::from(worker.random()) << 64 | u128::from(worker.random());
        Trace::begun(share, id, worker.random())
    })
}

/// Tells of a request whose head could not be read.
pub(super) fn unreadable(worker: &Worker, client: Client, code: u16) {
    if !worker.access().is_some_and(|access| access.takes(worker.random())) {
        return;
    }
    let mut entry = Entry {
        at: worker.serving().unix_now(),
        code,
        protocol: Version::HTTP_11,
        peer: client.peer,
        method: b"",
        path: b"",
        request_id: b"",
        arm: b"",
        fallback: b"",
        version: 0,
        prediction: None,
        trace: None,
        bytes_in: 0,
        bytes_out: 0,
        read: Duration::ZERO,
        sample: Sample::default(),
    };
    worker.tell(&mut entry, true);
}

/// nginx's code for a client that has gone before its answer.
pub(super) const CLIENT_GONE: u16 = 499;
