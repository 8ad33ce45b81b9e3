//! The admin plane's listener: HTTP/1.1 on few connections, each held to times.
//!
//! Always true:
//! - Connections are counted. When all places are taken, one that asks nothing makes room, or else one that does not
//!   read its answer, so that neither shuts probes out or takes the descriptors that the data plane needs.
//! - Requests that may last, streams of events and operations, take at most half of the places: the rest is for
//!   `/livez`, `/readyz`, `/metrics` and what else is answered at once.
//! - Where the process has no descriptor left, a spare one still answers one connection at a time.
//! - A connection that sends no head, no body or no next request, or does not read what is written, ends in time; one
//!   that follows events may stay.
//!
//! Not here: what is answered (`mod.rs` and the other modules).

use std::{
    convert::Infallible,
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Body, response::IntoResponse as _};
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::{AbortHandle, JoinSet},
};
use tower::ServiceExt as _;

use super::Problem;
use crate::serve::{self, Spare};

/// Bounds on the clients of the admin plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Most connections at once; never more than a quarter of the file descriptors.
    pub connections_max: usize,
    /// How long a request's head may take to arrive, and its body behind it.
    pub header_timeout: Duration,
    /// Longest time that a connection stays open without a request.
    pub idle_timeout: Duration,
    /// How long a client may take to accept any byte of an answer.
    pub write_timeout: Duration,
}

/// Serves until `stop` is ready, then finishes what is being answered; no streams of events.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    stop: impl Future<Output = ()>,
) {
    let mut stop = pin!(stop);
    let (stopping, _) = watch::channel(false);
    let mut places = Places { max: connections_max(&limits), taken: Vec::new() };
    let lasting = Arc::new(Semaphore::new(places.max / 2));
    let mut spare = Spare::of("the admin plane");
    let mut connections = JoinSet::new();
    loop {
        let is_spared = spare.take_back();
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = tokio::time::sleep(TAKE_BACK_EVERY), if !is_spared => continue,
            Some(_) = connections.join_next() => continue,
            () = &mut stop => break,
        };
        let accepted = match accepted {
            Ok((stream, _)) => Some(stream),
            Err(error) => {
                let accepted = spare.accept(&listener, &error).await;
                // What was accepted with the spare one is answered by now, or asks nothing.
                if accepted.is_none() && !spare.take_back() && serve::is_awaited(&listener) {
                    places.vacate();
                }
                accepted
            }
        };
        let Some(stream) = accepted else { continue };
        if !places.make_room() {
            turn_away(&stream);
            continue;
        }
        let (doing, seen) = watch::channel(Doing::default());
        let serving = connection(
            stream,
            Answering { router: router.clone(), lasting: Arc::clone(&lasting) },
            limits.clone(),
            Arc::new(doing),
            stopping.subscribe(),
        );
        places.taken.push((seen, connections.spawn(serving)));
    }
    drop(listener);
    stopping.send_replace(true);
    while connections.join_next().await.is_some() {}
}

/// Time between tries to take the spare descriptor back: the data plane takes no new client until then.
const TAKE_BACK_EVERY: Duration = Duration::from_millis(20);

fn connections_max(limits: &Limits) -> usize {
    let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let quarter = descriptors.and_then(|most| usize::try_from(most / 4).ok());
    quarter.map_or(limits.connections_max, |quarter| limits.connections_max.min(quarter.max(2)))
}

/// The connections there are, oldest first.
struct Places {
    max: usize,
    taken: Vec<(watch::Receiver<Doing>, AbortHandle)>,
}

impl Places {
    /// True if there is a place for one more, if need be that of one that asks nothing or does not read.
    fn make_room(&mut self) -> bool {
        self.taken.retain(|(_, task)| !task.is_finished());
        self.taken.len() < self.max || self.vacate()
    }

    /// Ends a connection that asks nothing or does not read; false if there is none.
    fn vacate(&mut self) -> bool {
        let first =
            |is: fn(Doing) -> bool| self.taken.iter().position(|(doing, _)| is(*doing.borrow()));
        let idle = first(|doing| !doing.answering).or_else(|| first(|doing| doing.stalled));
        let Some(idle) = idle else { return false };
        self.taken.remove(idle).1.abort();
        true
    }
}

/// Says why in one write, without waiting, and closes.
fn turn_away(stream: &TcpStream) {
    // The client may be gone; there is nobody else to tell.
    let _ = stream.try_write(
        b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
    );
}

/// What a connection is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is true and false by itself")]
struct Doing {
    /// Some bytes have come and no request yet.
    head: bool,
    /// A request's body is still to come.
    body: bool,
    /// A request is being answered, to the last byte.
    answering: bool,
    /// A write waits for the client.
    stalled: bool,
}

impl Doing {
    /// How long it may do so.
    fn limit(self, limits: &Limits) -> Option<Duration> {
        match self {
            Self { stalled: true, .. } => Some(limits.write_timeout),
            Self { body: true, .. } => Some(limits.header_timeout),
            Self { answering: true, .. } => None,
            Self { head: true, .. } => Some(limits.header_timeout),
            _ => Some(limits.idle_timeout),
        }
    }
}

type Told = Arc<watch::Sender<Doing>>;

fn tell(told: &watch::Sender<Doing>, change: impl FnOnce(&mut Doing)) {
    told.send_if_modified(|doing| {
        let before = *doing;
        change(doing);
        before != *doing
    });
}

async fn connection(
    stream: TcpStream,
    answering: Answering,
    limits: Limits,
    told: Told,
    mut stopping: watch::Receiver<bool>,
) {
    let doing = told.subscribe();
    let io = TokioIo::new(Noting { stream, told: Arc::clone(&told) });
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answering.answer(request, &told);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    // Heads are timed with the rest.
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(None);
    let mut connection = pin!(builder.serve_connection(io, service));
    let mut overdue = pin!(overdue(doing, &limits));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = &mut overdue => return,
        () = told_to_stop(&mut stopping) => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection => ended,
                () = overdue => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to the admin plane ended");
    }
}

async fn told_to_stop(stopping: &mut watch::Receiver<bool>) {
    // A sender that is gone asks to stop, too.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// The service behind every connection.
#[derive(Clone)]
struct Answering {
    router: Router,
    /// The places that requests may take that last.
    lasting: Arc<Semaphore>,
}

impl Answering {
    /// Answers a request; notes that it is being answered, until the last byte has been taken from the answer's body.
    fn answer(
        &self,
        request: Request<Incoming>,
        told: &Told,
    ) -> impl Future<Output = Response<Body>> + use<> {
        let comes = !request.body().is_end_stream();
        tell(told, |doing| (doing.head, doing.body, doing.answering) = (false, comes, true));
        let place = self.place(&request);
        let read = Guard { told: Arc::clone(told), done: |doing| doing.body = false, place: None };
        let request = request.map(|body| Body::new(Guarded { body, guard: Some(read) }));
        let (router, told) = (self.router.clone(), Arc::clone(told));
        let mut answered = Guard { told, done: |doing| doing.answering = false, place: None };
        async move {
            let response = match place {
                Ok(place) => {
                    answered.place = place;
                    let Ok(response) = router.oneshot(request).await;
                    response
                }
                Err(response) => response,
            };
            response.map(|body| Body::new(Guarded { body, guard: Some(answered) }))
        }
    }

    /// A place for a request that may last; `None` for one that needs none.
    #[expect(clippy::result_large_err, reason = "an answer is what the caller needs")]
    fn place(
        &self,
        request: &Request<Incoming>,
    ) -> Result<Option<OwnedSemaphorePermit>, Response<Body>> {
        if request.method().is_safe() && request.uri().path() != super::events::PATH {
            return Ok(None);
        }
        Arc::clone(&self.lasting).try_acquire_owned().map(Some).map_err(|_| {
            let detail = "streams of events and operations take half of the connections already; try again when some have \
                          ended, or raise server.admin_connections";
            let mut response = Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).into_response();
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            response
        })
    }
}

/// Ready when the connection has been doing the same for too long.
async fn overdue(mut doing: watch::Receiver<Doing>, limits: &Limits) {
    loop {
        let now = *doing.borrow_and_update();
        let changed = match now.limit(limits) {
            None => doing.changed().await,
            Some(limit) => match tokio::time::timeout(limit, doing.changed()).await {
                Ok(changed) => changed,
                Err(_) => return,
            },
        };
        if changed.is_err() {
            // Nobody is left who does anything.
            return;
        }
    }
}

/// Notes the end of something, also where it is given up.
struct Guard {
    told: Told,
    done: fn(&mut Doing),
    /// Given back at that end.
    place: Option<OwnedSemaphorePermit>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        tell(&self.told, self.done);
        drop(self.place.take());
    }
}

/// A body whose end is noted.
struct Guarded<B> {
    body: B,
    guard: Option<Guard>,
}

impl<B: HttpBody + Unpin> HttpBody for Guarded<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(frame, Poll::Ready(None)) {
            self.guard = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A socket that notes what it does.
struct Noting {
    stream: TcpStream,
    told: Told,
}

impl Noting {
    fn wrote<T>(&self, result: Poll<T>) -> Poll<T> {
        tell(&self.told, |doing| doing.stalled = result.is_pending());
        result
    }
}

impl AsyncRead for Noting {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            tell(&self.told, |doing| doing.head = !doing.answering);
        }
        result
    }
}

impl AsyncWrite for Noting {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
