//! A request while it is answered, and what is noted of it for whoever reads of it later.
//!
//! Always true: where requests are noted, each is told once, also where it is given up; where they are not, nothing is
//! told and no clock is asked.
//!
//! Not here: the form of what is noted (`note`), the reader (`access`).

use std::{
    cell::{Cell, OnceCell, RefCell},
    net::SocketAddr,
    os::fd::RawFd,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, Version, request::Parts};

use crate::{
    model::{ArmName, PredictionId, Trace},
    monitor::Reason,
    serve::Receipt,
};

use super::{
    access::Access,
    note::{Note, Texts, Use},
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
    socket: RawFd,
    /// True until it is answered.
    is_open: Cell<bool>,
    is_gone: Cell<bool>,
    /// Notes of it; their uses are taken back once it is told.
    note: RefCell<Note>,
    /// The arrival of its head, if anybody reads of it; of the whole request where the body came with the head.
    begun: Cell<Option<Instant>>,
    /// The arm that answered, and the one that it was assigned to where that could not.
    arms: OnceCell<(ArmName, Option<ArmName>)>,
    trace: Option<Trace>,
    /// The client's name of the request, if it gave one.
    request_id: Option<&'a HeaderValue>,
}

impl<'a> Visit<'a> {
    /// Begins with a head that was just read.
    pub(super) fn begin(worker: &'a Worker, head: &'a Parts, client: Client) -> Self {
        let trace = trace_of(worker, &head.headers);
        let access = worker.access();
        let is_sampled = trace.is_some_and(|trace| trace.is_sampled);
        let wanted = Use {
            is_line: access.is_some_and(|access| access.takes(worker.random())),
            has_spans: is_sampled && access.is_some_and(Access::exports),
        };
        let notes_head = wanted.any() && !is_prediction(head);
        Self {
            worker,
            head,
            socket: client.socket,
            is_open: Cell::new(true),
            is_gone: Cell::new(false),
            note: RefCell::new(Note { wanted, ..Note::open(head.version, client.peer) }),
            begun: Cell::new(notes_head.then(|| worker.clock().now())),
            arms: OnceCell::new(),
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
        self.socket
    }

    /// Its place in a trace, where it has one.
    pub(super) fn trace(&self) -> Option<Trace> {
        self.trace
    }

    /// Notes that the body is waited for.
    pub(super) fn note_wait(&self) {
        if self.begun.get().is_none() && self.note.borrow().wanted.any() {
            self.begun.set(Some(self.worker.clock().now()));
        }
    }

    /// Notes when the whole request was there.
    pub(super) fn note_arrival(&self, at: Instant) {
        self.begun.set(self.begun.get().or(Some(at)));
    }

    /// Notes the length of the body, as it came.
    pub(super) fn note_body(&self, bytes: usize) {
        self.note.borrow_mut().bytes_in = bytes;
    }

    /// Notes the name of the prediction that it asks for.
    pub(super) fn note_prediction(&self, id: PredictionId) {
        self.note.borrow_mut().prediction = id.bits();
    }

    /// Notes who answered.
    pub(super) fn note_receipt(&self, receipt: &Receipt) {
        let mut note = self.note.borrow_mut();
        // A request has one call that answers it.
        if note.wanted.any() && self.arms.set((receipt.arm, receipt.fallback)).is_ok() {
            note.answered(receipt, self.since(receipt.at));
        }
    }

    /// Notes that nobody will see the answer.
    pub(super) fn note_gone(&self) {
        self.is_gone.set(true);
    }

    /// Ends with this answer, which is counted and told the place in the trace.
    pub(super) fn end(&self, answer: &mut Response<Bytes>) {
        let (status, body_bytes) = (answer.status().as_u16(), answer.body().len());
        if let Some(trace) = self.trace() {
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

    /// The time from its beginning to this one.
    fn since(&self, at: Instant) -> Duration {
        self.begun.get().map_or(Duration::ZERO, |begun| at.saturating_duration_since(begun))
    }

    fn tell(&self, code: u16, bytes_out: usize) {
        let note = &mut *self.note.borrow_mut();
        if !note.wanted.any() {
            return;
        }
        (note.code, note.bytes_out) = (code, bytes_out);
        let arms = self.arms.get();
        if arms.is_none() {
            let now = self.worker.clock().now();
            note.ended(self.worker.serving().unix_at(now), self.since(now));
        }
        let texts = Texts {
            method: self.head.method.as_str().as_bytes(),
            path: self.head.uri.path().as_bytes(),
            request_id: self.request_id.map_or(&[], |id| id.as_bytes()),
            arm: arms.map_or(&[], |(arm, _)| arm.as_bytes()),
            fallback: arms.and_then(|(_, arm)| arm.as_ref()).map_or(&[], ArmName::as_bytes),
        };
        self.worker.tell(note, texts, self.trace);
        // Once.
        note.wanted = Use { is_line: false, has_spans: false };
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
    let mut note = Note {
        wanted: Use { is_line: true, has_spans: false },
        code,
        at: worker.serving().unix_now(),
        ..Note::open(Version::HTTP_11, client.peer)
    };
    worker.tell(&mut note, Texts::NONE, None);
}

/// nginx's code for a client that has gone before its answer.
pub(super) const CLIENT_GONE: u16 = 499;
