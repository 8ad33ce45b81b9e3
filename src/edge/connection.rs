//! One connection: which HTTP it speaks, what it is doing, and when it must end.
//!
//! Timeouts cost the path nothing: a connection notes what it does in plain cells, and the worker's sweeper
//! looks at all of them now and then and ends those that took too long.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    os::fd::AsRawFd as _,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, Waker},
};

use hyper::{
    rt::{Executor, Read, ReadBufCursor, Write},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;

use crate::serve::Listed;

use super::{Limits, service::Worker};

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No request; perhaps a new connection.
    Idle,
    /// Some bytes of a request's head have come.
    Head,
    /// At least one request is being answered.
    Busy,
}

/// What the sweeper knows about a connection.
#[derive(Debug)]
pub(super) struct Watched {
    phase: Cell<Phase>,
    /// When the phase began, in the worker's milliseconds.
    since: Cell<u32>,
    /// When a write began to wait for the client; 0 if none does.
    write_since: Cell<u32>,
    requests: Cell<u32>,
    must_end: Cell<bool>,
    /// Whether it is known which HTTP the client speaks.
    speaks: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Watched {
    pub(super) fn new(now: u32) -> Self {
        Self {
            phase: Cell::new(Phase::Idle),
            since: Cell::new(now),
            write_since: Cell::new(0),
            requests: Cell::new(0),
            must_end: Cell::new(false),
            speaks: Cell::new(false),
            waker: RefCell::new(None),
        }
    }

    /// Ends the connection if what it does has taken too long.
    pub(super) fn sweep(&self, now: u32, limits: &Limits) {
        let over = |since: u32, limit: std::time::Duration| {
            u128::from(now.wrapping_sub(since)) > limit.as_millis()
        };
        let waited = match self.phase.get() {
            Phase::Idle => over(self.since.get(), limits.idle_timeout),
            Phase::Head => over(self.since.get(), limits.header_timeout),
            Phase::Busy => false,
        };
        let stalled =
            self.write_since.get() != 0 && over(self.write_since.get(), limits.write_timeout);
        if waited || stalled {
            self.must_end.set(true);
            self.wake();
        }
    }

    /// Makes the connection look at the worker's state again.
    pub(super) fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Ends the connection now.
    pub(super) fn end(&self) {
        self.must_end.set(true);
        self.wake();
    }

    fn enter(&self, phase: Phase, now: u32) {
        self.phase.set(phase);
        self.since.set(now);
    }

    fn remember(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }
}

/// A request being answered; the connection is idle again when the last is dropped.
struct Answering<'a> {
    watched: &'a Watched,
    worker: &'a Worker,
}

impl<'a> Answering<'a> {
    fn begin(watched: &'a Watched, worker: &'a Worker) -> Self {
        watched.requests.set(watched.requests.get() + 1);
        watched.enter(Phase::Busy, worker.now_ms());
        Self { watched, worker }
    }
}

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        let left = self.watched.requests.get() - 1;
        self.watched.requests.set(left);
        if left == 0 {
            self.watched.enter(Phase::Idle, self.worker.now_ms());
        }
    }
}

/// Serves a connection to its end.
pub(super) async fn serve(worker: Rc<Worker>, socket: Socket, watched: Rc<Watched>) {
    let mut serving = pin!(speak(&worker, socket, &watched));
    poll_fn(|cx| {
        watched.remember(cx);
        // Who has sent nothing yet has no request to finish.
        let silent = worker.is_draining() && !watched.speaks.get();
        if watched.must_end.get() || silent || worker.is_given_up() {
            Poll::Ready(())
        } else {
            serving.as_mut().poll(cx)
        }
    })
    .await;
}

/// A client's socket.
pub(super) struct Socket {
    /// First, so that it is off the list when the socket closes.
    pub(super) _listed: Listed,
    pub(super) stream: TokioIo<TcpStream>,
}

async fn speak(worker: &Rc<Worker>, socket: Socket, watched: &Rc<Watched>) {
    let Ok(http2) = speaks_http2(socket.stream.inner()).await else { return };
    watched.speaks.set(true);
    let client = socket.stream.inner().as_raw_fd();
    let io = Io { socket, watched: Rc::clone(watched), worker: Rc::clone(worker), http2 };
    let service = {
        let (worker, watched) = (Rc::clone(worker), Rc::clone(watched));
        service_fn(move |request| {
            let (worker, watched) = (Rc::clone(&worker), Rc::clone(&watched));
            async move {
                let _answering = Answering::begin(&watched, &worker);
                Ok::<_, std::convert::Infallible>(worker.answer(request, client).await)
            }
        })
    };
    if http2 {
        let mut connection = pin!(http2_builder(worker.limits()).serve_connection(io, service));
        drive(worker, |draining, cx| {
            if draining {
                connection.as_mut().graceful_shutdown();
            }
            connection.as_mut().poll(cx)
        })
        .await;
    } else {
        let mut connection = pin!(http1_builder(worker.limits()).serve_connection(io, service));
        drive(worker, |draining, cx| {
            if draining {
                connection.as_mut().graceful_shutdown();
            }
            connection.as_mut().poll(cx)
        })
        .await;
    }
}

/// Polls a connection, tells it once when the worker drains, and counts a head that was refused.
async fn drive(
    worker: &Worker,
    mut poll: impl FnMut(bool, &mut Context<'_>) -> Poll<hyper::Result<()>>,
) {
    let mut told = false;
    let result = poll_fn(|cx| {
        let draining = worker.is_draining() && !told;
        told |= draining;
        poll(draining, cx)
    })
    .await;
    if let Err(error) = result {
        if error.is_parse() {
            worker.head_refused();
        }
        tracing::debug!(%error, "a connection ended");
    }
}

fn http1_builder(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .max_headers(limits.headers_max)
        .max_header_size(limits.header_bytes_max)
        // The sweeper times heads and idle connections.
        .header_read_timeout(None);
    builder
}

fn http2_builder(limits: &Limits) -> http2::Builder<OnWorker> {
    /// Enough for a large tensor in flight, little enough for many connections.
    const WINDOW_BYTES: u32 = 1 << 20;
    let mut builder = http2::Builder::new(OnWorker);
    builder
        .max_concurrent_streams(limits.http2_streams_max.get())
        .max_header_list_size(u32::try_from(limits.header_bytes_max).unwrap_or(u32::MAX))
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(4 * WINDOW_BYTES)
        .timer(TokioTimer::new());
    builder
}

/// Runs a connection's streams on its own worker.
#[derive(Debug, Clone, Copy)]
struct OnWorker;

impl<F: Future<Output = ()> + 'static> Executor<F> for OnWorker {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// Whether the client's first bytes are HTTP/2's preface (RFC 9113, 3.4): no method of HTTP/1 begins so.
async fn speaks_http2(stream: &TcpStream) -> io::Result<bool> {
    const PREFACE: &[u8] = b"PRI";
    let mut first = [0; 3];
    let mut pause = std::time::Duration::from_millis(2);
    loop {
        let seen = stream.peek(&mut first).await?;
        if seen == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if first[..seen] != PREFACE[..seen] {
            return Ok(false);
        }
        if seen == PREFACE.len() {
            return Ok(true);
        }
        // The rest of three bytes is on its way; peeking again at once would spin.
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(std::time::Duration::from_millis(100));
    }
}

/// Answers up to this are written in one piece.
const JOINED_BYTES_MAX: usize = 1024;

/// A socket that notes what it does.
struct Io {
    socket: Socket,
    watched: Rc<Watched>,
    worker: Rc<Worker>,
    http2: bool,
}

impl Io {
    fn wrote<T>(&self, result: Poll<T>) -> Poll<T> {
        match &result {
            Poll::Pending if self.watched.write_since.get() == 0 => {
                self.watched.write_since.set(self.worker.now_ms().max(1));
            }
            Poll::Pending => {}
            Poll::Ready(_) => {
                self.watched.write_since.set(0);
                // A long answer that flows is no idleness.
                self.watched.since.set(self.worker.now_ms());
            }
        }
        result
    }
}

impl Read for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.socket.stream).poll_read(cx, buf);
        if result.is_ready() && self.watched.phase.get() == Phase::Idle {
            // On HTTP/2 any frame may come at any time; there it only shows that somebody is there.
            let phase = if self.http2 { Phase::Idle } else { Phase::Head };
            self.watched.enter(phase, self.worker.now_ms());
        }
        result
    }
}

impl Write for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.socket.stream).poll_write(cx, buf);
        self.wrote(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // A small answer comes as head and body; put together they take the cheaper call.
        let total: usize = bufs.iter().map(|buf| buf.len()).sum();
        let mut joined = [0; JOINED_BYTES_MAX];
        let result = if total <= joined.len() {
            let mut at = 0;
            for buf in bufs {
                joined[at..at + buf.len()].copy_from_slice(buf);
                at += buf.len();
            }
            Pin::new(&mut self.socket.stream).poll_write(cx, &joined[..total])
        } else {
            Pin::new(&mut self.socket.stream).poll_write_vectored(cx, bufs)
        };
        self.wrote(result)
    }
}
