//! From a request's head to whoever answers it.

use std::{
    cell::Cell,
    num::NonZeroUsize,
    os::fd::RawFd,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{HOST, ORIGIN, TRANSFER_ENCODING},
    request::Parts,
};
use hyper::body::Incoming;
use tokio::sync::Notify;
use tower::{ServiceExt as _, util::BoxCloneSyncService};

use crate::{
    monitor::{Clock, Code, Monitor, WorkerId},
    serve::{self, Names, Serving, Watch},
    wire::{self, stranger},
};

use super::{
    Limits, Settings,
    body::{Reading, Unread},
    budget::{Budget, Held},
    compression::Encoding,
    demand,
    load::Load,
    memory, objects,
    refusal::Refusal,
    route::{NoRoute, Part, Route, selector},
    v2,
};

/// A request for the control plane, read to its end; of its headers only `Host` and `Origin`.
pub type ControlRequest = Request<Bytes>;

/// Answers requests that change what is served: the protocol's repository API.
pub type ControlService =
    BoxCloneSyncService<ControlRequest, Response<Bytes>, std::convert::Infallible>;

/// What all workers of the data plane share.
pub struct Plane {
    settings: Settings,
    decode_limits: wire::v2::Limits,
    serving: Arc<Serving>,
    monitor: Arc<Monitor>,
    control: ControlService,
    /// Tells this process's prediction names from another's.
    start: u32,
    in_flight_bytes_max: usize,
}

impl Plane {
    /// The data plane over what is served; `start` are 32 random bits of this process.
    #[must_use]
    pub fn new(
        settings: Settings,
        serving: Arc<Serving>,
        monitor: Arc<Monitor>,
        control: ControlService,
        start: u32,
    ) -> Self {
        let limits = &settings.limits;
        let decode_limits = wire::v2::Limits {
            json_depth_max: limits.json_depth_max,
            inputs_max: limits.inputs_max,
            outputs_max: limits.outputs_max,
            parameters_max: limits.parameters_max,
            name_bytes_max: limits.name_bytes_max,
            ..wire::v2::Limits::default()
        };
        let in_flight_bytes_max = limits
            .in_flight_bytes_max
            .map_or_else(|| memory::share(memory::limit()), NonZeroUsize::get);
        Self { settings, decode_limits, serving, monitor, control, start, in_flight_bytes_max }
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn serving(&self) -> &Arc<Serving> {
        &self.serving
    }

    pub(super) fn monitor(&self) -> &Monitor {
        &self.monitor
    }
}

impl std::fmt::Debug for Plane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plane").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// One worker's state; never leaves its thread.
pub(super) struct Worker {
    plane: Arc<Plane>,
    id: WorkerId,
    watch: Arc<Watch>,
    /// Whether another worker stands in its place: then it does nothing any more.
    given_up: Cell<bool>,
    /// Told when it was given up.
    ended: Notify,
    names: Names,
    budget: Budget,
    load: Load,
    leaving: Cell<bool>,
    draining: Cell<bool>,
    begin: Instant,
    /// Milliseconds since `begin`, as of the last look at the clock.
    now_ms: Cell<u32>,
}

type Answer = Response<Bytes>;

impl Worker {
    pub(super) fn new(plane: Arc<Plane>, watch: Arc<Watch>, workers: usize) -> Self {
        let id = watch.worker();
        let limits = &plane.settings.limits;
        let share = plane.in_flight_bytes_max / workers.max(1);
        let share = share.max(limits.body_bytes_max);
        let begin = plane.monitor.clock().now();
        Self {
            id,
            watch,
            given_up: Cell::new(false),
            ended: Notify::new(),
            names: Names::new(plane.start, id),
            budget: Budget::new(share),
            load: Load::default(),
            leaving: Cell::new(false),
            draining: Cell::new(false),
            begin,
            // 0 means "no write waits"; the count begins behind it.
            now_ms: Cell::new(1),
            plane,
        }
    }

    pub(super) fn id(&self) -> WorkerId {
        self.id
    }

    /// What it runs, as the watchdog sees it.
    pub(super) fn watch(&self) -> &Watch {
        &self.watch
    }

    /// Ends the worker: another stands in its place, which counts in its shard.
    pub(super) fn give_up(&self) {
        self.given_up.set(true);
        self.ended.notify_one();
    }

    pub(super) fn is_given_up(&self) -> bool {
        self.given_up.get()
    }

    /// Waits until the worker is given up.
    pub(super) async fn ended(&self) {
        self.ended.notified().await;
    }

    pub(super) fn names(&self) -> &Names {
        &self.names
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.plane.settings.limits
    }

    pub(super) fn decode_limits(&self) -> &wire::v2::Limits {
        &self.plane.decode_limits
    }

    pub(super) fn serving(&self) -> &Serving {
        &self.plane.serving
    }

    pub(super) fn clock(&self) -> &dyn Clock {
        &**self.plane.monitor.clock()
    }

    pub(super) fn now_ms(&self) -> u32 {
        self.now_ms.get()
    }

    /// Looks at the clock for the sweeper's coarse time.
    pub(super) fn tick(&self) {
        self.note(self.clock().now());
    }

    /// Takes an instant that the clock has just shown for the coarse time.
    pub(super) fn note(&self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.begin);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "wraps after 49 days, and differences wrap with it"
        )]
        self.now_ms.set((elapsed.as_millis() as u32).max(1));
    }

    pub(super) fn load(&self) -> &Load {
        &self.load
    }

    /// Hands memory back to the system where a burst is over; for the sweeper.
    pub(super) fn rest(&self) {
        if self.load.is_over(self.now_ms()) {
            serve::hand_back_memory();
            let before = self.now_ms();
            self.tick();
            let took_ms = self.now_ms().wrapping_sub(before);
            tracing::debug!(worker = self.id.0, took_ms, "handed memory back after a burst");
        }
    }

    /// True from the signal to stop on, also while connections are still accepted.
    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.get()
    }

    /// True once no more connections are accepted.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.get()
    }

    pub(super) fn leave(&self) {
        self.leaving.set(true);
    }

    pub(super) fn drain(&self) {
        self.leave();
        self.draining.set(true);
    }

    pub(super) fn connection_opened(&self) {
        self.plane.monitor.server().connection_opened(self.id);
    }

    pub(super) fn connection_closed(&self) {
        if self.is_given_up() {
            // Counted by the worker that took its place.
            return;
        }
        self.plane.monitor.server().connection_closed(self.id);
    }

    pub(super) fn head_refused(&self) {
        self.plane.monitor.server().head_refused(self.id);
    }

    /// Answers a request, and counts the answer before it can be seen.
    ///
    /// `client` is the socket that the answer goes to.
    pub(super) async fn answer(&self, request: Request<Incoming>, client: RawFd) -> Answer {
        let (head, body) = request.into_parts();
        let mut answer =
            self.dispatch(&head, body, client).await.unwrap_or_else(Refusal::into_response);
        if head.method == Method::HEAD {
            *answer.body_mut() = Bytes::new();
        }
        let status = answer.status().as_u16();
        self.plane.monitor.server().answered(self.id, Code::from_status(status));
        tracing::debug!(
            target: "access",
            worker = self.id.0,
            method = %head.method,
            path = head.uri.path(),
            status,
            "answered"
        );
        answer
    }

    async fn dispatch(
        &self,
        head: &Parts,
        body: Incoming,
        client: RawFd,
    ) -> Result<Answer, Refusal> {
        self.check_head(head)?;
        let route = Route::parse(head.uri.path()).map_err(|error| match error {
            NoRoute::Unknown => Refusal::new(StatusCode::NOT_FOUND, "Not Found"),
            NoRoute::Percent => {
                Refusal::bad_request("the path's percent-encoding is not valid UTF-8")
            }
        })?;
        let methods = route.methods();
        if !methods.split(", ").any(|method| method == head.method) {
            return Err(Refusal::method(methods));
        }
        match route {
            Route::Model { model, version, part: Part::Infer } => {
                let wanted = (&*model, selector(version.as_deref()));
                Ok(v2::infer(self, head, body, client, wanted).await)
            }
            Route::Repository => self.counted(self.control(head, body).await?),
            route => {
                // These two are read from a loaded version.
                let _lease = match &route {
                    Route::Model { model, version, part: Part::Metadata | Part::Config } => {
                        demand::awaken(self, model, selector(version.as_deref())).await?
                    }
                    _ => None,
                };
                let table = self.serving().table();
                self.counted(objects::answer(self.serving(), &table, &route)?)
            }
        }
    }

    fn check_head(&self, head: &Parts) -> Result<(), Refusal> {
        let limits = self.limits();
        let target_bytes = head.uri.path_and_query().map_or(0, |target| target.as_str().len());
        if target_bytes > limits.uri_bytes_max {
            let text = format!("the request target is longer than {} bytes", limits.uri_bytes_max);
            return Err(Refusal::new(StatusCode::URI_TOO_LONG, text).closing());
        }
        if head.headers.len() > limits.headers_max {
            let text = format!("more than {} header lines", limits.headers_max);
            return Err(Refusal::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, text).closing());
        }
        if head.version == Version::HTTP_11 {
            check_host(&head.headers)?;
            check_coding(&head.headers)?;
        }
        if head.method == Method::POST && !self.plane.settings.web_pages {
            let asked = stranger::check_asker(&head.uri, &head.headers);
            asked.map_err(|stranger| {
                Refusal::new(StatusCode::FORBIDDEN, stranger.to_string()).closing()
            })?;
        }
        Ok(())
    }

    /// What bodies and answers may hold.
    pub(super) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Counts an answer until it is read.
    fn counted(&self, answer: Answer) -> Result<Answer, Refusal> {
        let (head, body) = answer.into_parts();
        let room = self.budget.reserve(body.len())?;
        Ok(Answer::from_parts(head, self.budget.count(body, room)?))
    }

    /// Reads a body and undoes its compression; the bytes count against the budget as long as they are held.
    pub(super) async fn read_body(
        &self,
        headers: &HeaderMap,
        body: Incoming,
        align_at: usize,
        timeout: Duration,
    ) -> Result<(Bytes, Held<'_>), Unread> {
        let encoding = Encoding::of_body(headers)?;
        let reading = Reading { limits: self.limits(), budget: &self.budget, align_at, timeout };
        let (bytes, mut held) = reading.read(headers, body).await?;
        self.load.moved(bytes.len());
        let bytes = encoding.inflate(bytes, self.limits())?;
        held.grow(&self.budget, bytes.len())?;
        Ok((bytes, held))
    }

    async fn control(&self, head: &Parts, body: Incoming) -> Result<Answer, Refusal> {
        let timeout = self.serving().settings().request_timeout;
        let (body, _held) = match self.read_body(&head.headers, body, 0, timeout).await {
            Ok(read) => read,
            Err(Unread::Refused(refusal)) => return Err(refusal),
            Err(Unread::Gone) => return Err(Refusal::bad_request("the body ended early").closing()),
        };
        let mut request = Request::new(body);
        *request.method_mut() = head.method.clone();
        *request.uri_mut() = head.uri.clone();
        for name in [HOST, ORIGIN] {
            for value in head.headers.get_all(&name) {
                request.headers_mut().append(name.clone(), value.clone());
            }
        }
        let answer = match self.plane.control.clone().oneshot(request).await {
            Ok(answer) => answer,
            Err(never) => match never {},
        };
        Ok(answer)
    }
}

/// A body is chunked or has a length. hyper looks at the last coding alone, and a proxy before us perhaps at the first
/// (RFC 9112, 6.1).
fn check_coding(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let chunked =
        |coding: &HeaderValue| coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(coding), None) if chunked(coding) => Ok(()),
        _ => Err(Refusal::bad_request(
            "Transfer-Encoding must be `chunked`, once; compress with Content-Encoding",
        )
        .closing()),
    }
}

/// HTTP/1.1 needs exactly one valid `Host` (RFC 9112, 3.2); a proxy before us may have routed by another.
fn check_host(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut hosts = headers.get_all(HOST).iter();
    let valid = |host: &HeaderValue| {
        let allowed =
            |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:[]%".contains(byte);
        host.as_bytes().iter().all(allowed)
    };
    match (hosts.next(), hosts.next()) {
        (Some(host), None) if valid(host) => Ok(()),
        (None, _) => Err(Refusal::bad_request("HTTP/1.1 needs a Host header").closing()),
        _ => Err(Refusal::bad_request(
            "HTTP/1.1 needs one Host header, with a host and perhaps a port",
        )
        .closing()),
    }
}
