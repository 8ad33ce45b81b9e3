//! From a request's head to whoever answers it.
//!
//! Always true: each request gets one answer, counted before it can be seen, also where its head breaks a rule.
//!
//! Not here: predictions (`v2`), the protocol's objects (`objects`), the repository API, which is handed in.

use std::time::Duration;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{HOST, ORIGIN, TRANSFER_ENCODING},
    request::Parts,
};
use hyper::body::Incoming;
use tower::ServiceExt as _;

use crate::{monitor::Reason, wire::stranger};

use super::{
    body::{Reading, Unread},
    budget::Held,
    compression::Encoding,
    demand, objects,
    refusal::Refusal,
    route::{NoRoute, Part, Route, selector},
    v2,
    visit::{Client, Visit},
    worker::Worker,
};

type Answer = Response<Bytes>;

impl Worker {
    /// Answers a request, and counts the answer before it can be seen.
    ///
    /// `client` is who the answer goes to.
    pub(super) async fn answer(&self, request: Request<Incoming>, client: Client) -> Answer {
        let _in_flight = self.plane().monitor().server().begun(self.id());
        let (head, body) = request.into_parts();
        let visit = Visit::begin(self, &head, client);
        let mut answer =
            self.dispatch(&head, body, &visit).await.unwrap_or_else(Refusal::into_response);
        if head.method == Method::HEAD {
            *answer.body_mut() = Bytes::new();
        }
        let status = answer.status().as_u16();
        let reason = answer.extensions_mut().remove::<Reason>();
        if let Some(reason) = reason.or_else(|| (status >= 400).then_some(Reason::Api)) {
            self.refused(&head, reason);
        }
        visit.end(&mut answer);
        tracing::debug!(
            target: "access",
            worker = self.id().0,
            method = %head.method,
            path = head.uri.path(),
            status,
            trace_id = visit.trace().map(|trace| trace.id_text()),
            "answered"
        );
        answer
    }

    /// Counts a refusal with the registered model that its path names.
    pub(super) fn refused(&self, head: &Parts, reason: Reason) {
        let table = self.serving().table();
        let model = match Route::parse(head.uri.path()) {
            Ok(Route::Model { model, .. }) => table.model(&model),
            _ => None,
        };
        match model {
            Some(model) => model.recorder.refused(self.id(), reason),
            None => self.plane().monitor().server().refused(self.id(), reason),
        }
    }

    async fn dispatch(
        &self,
        head: &Parts,
        body: Incoming,
        visit: &Visit<'_>,
    ) -> Result<Answer, Refusal> {
        self.check_head(head)?;
        let route = Route::parse(head.uri.path()).map_err(|error| match error {
            NoRoute::Unknown => Refusal::nothing_at(head.uri.path()),
            NoRoute::Percent => {
                Refusal::malformed("the path's percent-encoding is not valid UTF-8")
            }
        })?;
        let methods = route.methods();
        if !methods.split(", ").any(|method| method == head.method) {
            return Err(Refusal::method(methods));
        }
        match route {
            Route::Model { model, version, part: Part::Infer } => {
                let wanted = (&*model, selector(version.as_deref()));
                Ok(v2::infer(self, head, body, visit, wanted).await)
            }
            Route::Repository | Route::Model { part: Part::Feedback, .. } => {
                self.counted(self.control(head, body, visit).await?)
            }
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
            return Err(Refusal::new(Reason::Head, StatusCode::URI_TOO_LONG, text).closing());
        }
        if head.headers.len() > limits.headers_max {
            let text = format!("more than {} header lines", limits.headers_max);
            let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
            return Err(Refusal::new(Reason::Head, status, text).closing());
        }
        if head.version == Version::HTTP_11 {
            check_host(&head.headers)?;
            check_coding(&head.headers)?;
        }
        if head.method == Method::POST && !self.plane().settings().web_pages {
            let asked = stranger::check_asker(&head.uri, &head.headers);
            asked.map_err(|stranger| {
                let text = stranger.to_string();
                Refusal::new(Reason::WebPage, StatusCode::FORBIDDEN, text).closing()
            })?;
        }
        Ok(())
    }

    /// Counts an answer until it is read.
    fn counted(&self, answer: Answer) -> Result<Answer, Refusal> {
        let (head, body) = answer.into_parts();
        let room = self.budget().reserve(body.len())?;
        Ok(Answer::from_parts(head, self.budget().count(body, room)?))
    }

    /// Reads a body and undoes its compression; the bytes count against the budget as long as they are held.
    pub(super) async fn read_body(
        &self,
        (headers, visit): (&HeaderMap, &Visit<'_>),
        body: Incoming,
        align_at: usize,
        timeout: Duration,
    ) -> Result<(Bytes, Held<'_>), Unread> {
        let encoding = Encoding::of_body(headers)?;
        let reading = Reading { limits: self.limits(), budget: self.budget(), align_at, timeout };
        let (bytes, mut held) = reading.read(headers, body, || visit.note_wait()).await?;
        self.load().moved(bytes.len());
        visit.note_body(bytes.len());
        let bytes = encoding.inflate(bytes, self.limits())?;
        held.grow(self.budget(), bytes.len())?;
        Ok((bytes, held))
    }

    async fn control(
        &self,
        head: &Parts,
        body: Incoming,
        visit: &Visit<'_>,
    ) -> Result<Answer, Refusal> {
        let timeout = self.serving().settings().request_timeout;
        let (body, _held) = match self.read_body((&head.headers, visit), body, 0, timeout).await {
            Ok(read) => read,
            Err(Unread::Refused(refusal)) => return Err(refusal),
            Err(Unread::Gone) => {
                visit.note_gone();
                return Err(Refusal::gone());
            }
        };
        let mut request = Request::new(body);
        *request.method_mut() = head.method.clone();
        *request.uri_mut() = head.uri.clone();
        for name in [HOST, ORIGIN] {
            for value in head.headers.get_all(&name) {
                request.headers_mut().append(name.clone(), value.clone());
            }
        }
        let answer = match self.plane().control().clone().oneshot(request).await {
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
        _ => Err(Refusal::malformed(
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
        (None, _) => Err(Refusal::malformed("HTTP/1.1 needs a Host header").closing()),
        _ => Err(Refusal::malformed(
            "HTTP/1.1 needs one Host header, with a host and perhaps a port",
        )
        .closing()),
    }
}
