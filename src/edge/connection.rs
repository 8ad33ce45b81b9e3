//! One connection: which HTTP it speaks, what it is doing, and when it must end.
//!
//! Timeouts cost the path nothing: a connection notes what it does in plain cells, and the worker's sweeper
//! looks at all of them now and then. One that seems to have taken too long first gets a turn, in which it reads what
//! has come meanwhile, and then judges itself: a worker that was busy blames nobody for it, and spares nobody.
//!
//! Always true:
//! - Once the process has been told to stop, every answer on HTTP/1 ends its connection, and every connection on
//!   HTTP/2 that answers announces its end (GOAWAY); a connection that is merely idle stays until it has been quiet for
//!   a while, since its client may be sending just now.
//! - The last answer is followed by the end of what is written, then by reading until the client ends as well: closing
//!   over unread bytes would make the kernel reset the connection, and the client lose the answer.
//! - What an answer waits for is the client taking its bytes. On HTTP/2 only DATA that it makes room for counts; PING,
//!   SETTINGS and the like are no activity.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    mem::MaybeUninit,
    net::Shutdown,
    os::fd::AsRawFd as _,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, header::CONNECTION};
use http_body::{Body, Frame, SizeHint};
use hyper::{
    rt::{Executor, Read, ReadBuf, ReadBufCursor, Write},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::net::TcpStream;

use crate::serve::Listed;

use super::{
    Limits,
    visit::{self, Client},
    worker::Worker,
};

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No request; perhaps a new connection.
    Idle,
    /// Some bytes of a request's head have come.
    Head,
    /// At least one request is being answered.
    Busy,
    /// The last answer is written; the client has not ended its side.
    Closing,
}

/// What the sweeper knows about a connection.
#[derive(Debug)]
pub(super) struct Watched {
    phase: Cell<Phase>,
    /// When the phase began, in the worker's milliseconds.
    since: Cell<u32>,
    /// When a write began to wait for the client; 0 if none does.
    write_since: Cell<u32>,
    /// Requests that are being answered, to the last byte that HTTP takes of the answer.
    requests: Cell<u32>,
    /// HTTP/2: when the client last took something of an answer, one for each; 0 is a free place.
    taken: RefCell<Vec<u32>>,
    /// It seems to have taken too long, and gets a turn before that is judged.
    suspect: Cell<bool>,
    must_end: Cell<bool>,
    http2: Cell<bool>,
    /// HTTP/1: a head was refused, and that is counted.
    refused: Cell<bool>,
    /// HTTP/2: it has had a request.
    asked: Cell<bool>,
    /// HTTP/2: its end is to be announced, although the process goes on.
    parting: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Watched {
    pub(super) fn new(now: u32) -> Self {
        Self {
            phase: Cell::new(Phase::Idle),
            since: Cell::new(now),
            write_since: Cell::new(0),
            requests: Cell::new(0),
            taken: RefCell::default(),
            suspect: Cell::new(false),
            must_end: Cell::new(false),
            http2: Cell::new(false),
            refused: Cell::new(false),
            asked: Cell::new(false),
            parting: Cell::new(false),
            waker: RefCell::new(None),
        }
    }

    /// Has the connection judge itself if what it does has taken too long.
    pub(super) fn sweep(&self, worker: &Worker) {
        if self.is_overdue(worker) {
            self.suspect.set(true);
            self.wake();
        }
    }

    fn is_overdue(&self, worker: &Worker) -> bool {
        let limits = worker.limits();
        let over = |since: u32, limit: Duration| {
            u128::from(worker.now_ms().wrapping_sub(since)) > limit.as_millis()
        };
        let stalls = |since: u32| since != 0 && over(since, limits.write_timeout);
        let parts = worker.is_draining() || self.parting.get();
        let waited = match self.phase.get() {
            // The rest of an answer may still lie in the socket's way; then its own limit counts.
            Phase::Idle if parts => {
                self.write_since.get() == 0 && over(self.since.get(), limits.linger)
            }
            Phase::Idle => over(self.since.get(), limits.idle_timeout),
            Phase::Head => over(self.since.get(), limits.header_timeout),
            Phase::Busy => false,
            Phase::Closing => over(self.since.get(), limits.linger),
        };
        waited || stalls(self.write_since.get()) || self.taken.borrow().iter().copied().any(stalls)
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

    /// HTTP/2 has a way to announce the end of an idle connection: true the first time that it is to be used.
    fn part(&self, worker: &Worker) -> bool {
        let first = self.http2.get() && self.phase.get() == Phase::Idle && !worker.is_draining();
        let first = first && !self.parting.replace(true);
        if first {
            self.enter(Phase::Idle, worker.now_ms());
        }
        first
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
struct Answering {
    watched: Rc<Watched>,
    worker: Rc<Worker>,
    /// Its place in `taken`.
    place: Option<usize>,
}

impl Answering {
    fn begin(watched: &Rc<Watched>, worker: &Rc<Worker>) -> Self {
        worker.load().begin();
        watched.requests.set(watched.requests.get() + 1);
        watched.enter(Phase::Busy, worker.now_ms());
        watched.asked.set(true);
        Self { watched: Rc::clone(watched), worker: Rc::clone(worker), place: None }
    }

    /// Notes that the client has made room for some of the answer, or that the answer begins.
    fn taken(&mut self) {
        if !self.watched.http2.get() {
            return;
        }
        let (now, mut taken) = (self.worker.now_ms(), self.watched.taken.borrow_mut());
        let place = *self.place.get_or_insert_with(|| {
            taken.iter().position(|since| *since == 0).unwrap_or_else(|| {
                taken.push(0);
                taken.len() - 1
            })
        });
        taken[place] = now;
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.watched.taken.borrow_mut()[place] = 0;
        }
        self.worker.load().end();
        let left = self.watched.requests.get() - 1;
        self.watched.requests.set(left);
        if left == 0 && self.watched.phase.get() == Phase::Busy {
            self.watched.enter(Phase::Idle, self.worker.now_ms());
        }
    }
}

/// An answer's body on its way out. On HTTP/2 it goes piece by piece, each when the client has made room for the one
/// before, so that an answer which nobody takes can be told from one that flows.
struct Sending {
    /// The rest that has not been sent.
    left: Bytes,
    piece_bytes_max: usize,
    answering: Answering,
}

impl Sending {
    /// Most bytes of an answer that HTTP/2 holds beyond the room that the client gave.
    const PIECE_BYTES: usize = 64 * 1024;

    fn new(left: Bytes, answering: Answering) -> Self {
        let http2 = answering.watched.http2.get();
        answering.worker.load().moved(left.len());
        let piece_bytes_max = if http2 { Self::PIECE_BYTES } else { usize::MAX };
        Self { left, piece_bytes_max, answering }
    }
}

impl Body for Sending {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        if this.left.is_empty() {
            return Poll::Ready(None);
        }
        this.answering.taken();
        let piece = this.left.split_to(this.left.len().min(this.piece_bytes_max));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.len() as u64)
    }
}

/// Serves a connection to its end.
pub(super) async fn serve(worker: Rc<Worker>, socket: Socket, watched: Rc<Watched>) {
    let mut serving = pin!(speak(&worker, socket, &watched));
    poll_fn(|cx| {
        watched.remember(cx);
        if watched.must_end.get() || worker.is_given_up() || serving.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if watched.suspect.take() && watched.is_overdue(&worker) {
            if watched.part(&worker) {
                return serving.as_mut().poll(cx);
            }
            if watched.phase.get() == Phase::Head {
                worker.slow_head();
            }
            return Poll::Ready(());
        }
        Poll::Pending
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
    watched.http2.set(http2);
    let peer = worker.access().and_then(|_| socket.stream.inner().peer_addr().ok());
    let client = Client { socket: socket.stream.inner().as_raw_fd(), peer };
    let io = Io { socket, watched: Rc::clone(watched), worker: Rc::clone(worker), client, http2 };
    let service = {
        let (worker, watched) = (Rc::clone(worker), Rc::clone(watched));
        service_fn(move |request| {
            let (worker, watched) = (Rc::clone(&worker), Rc::clone(&watched));
            async move {
                let answering = Answering::begin(&watched, &worker);
                let mut answer = worker.answer(request, client).await;
                if worker.is_leaving() && !http2 {
                    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, std::convert::Infallible>(answer.map(|body| Sending::new(body, answering)))
            }
        })
    };
    let result = if http2 {
        let mut connection = pin!(http2_builder(worker.limits()).serve_connection(io, service));
        let mut told = false;
        poll_fn(|cx| {
            let used = worker.is_leaving() && watched.asked.get();
            let parts = used || worker.is_draining() || watched.parting.get();
            if parts && !told {
                connection.as_mut().graceful_shutdown();
            }
            told |= parts;
            connection.as_mut().poll(cx)
        })
        .await
    } else {
        http1_builder(worker.limits()).serve_connection(io, service).await
    };
    if let Err(error) = result {
        if error.is_parse() && !watched.refused.get() {
            worker.head_refused();
            visit::unreadable(worker, client, if error.is_parse_too_large() { 431 } else { 400 });
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
    client: Client,
    http2: bool,
}

impl Io {
    /// Counts hyper's own answer to a head that it cannot read, before it can be seen: `answer` is about to be written,
    /// and there was no request that it could answer.
    fn count_refused(&self, answer: &[u8]) {
        let Watched { phase, requests, refused, .. } = &*self.watched;
        if self.http2 || phase.get() != Phase::Head || requests.get() > 0 || refused.get() {
            return;
        }
        let is_empty = memchr::memmem::find(answer, b"\r\ncontent-length: 0\r\n").is_some();
        let code = answer.strip_prefix(b"HTTP/1.1 ").filter(|_| is_empty);
        let code = code.and_then(|rest| std::str::from_utf8(rest.get(..3)?).ok()?.parse().ok());
        if let Some(code @ (400 | 414 | 431)) = code {
            refused.set(true);
            self.worker.head_refused();
            visit::unreadable(&self.worker, self.client, code);
        }
    }

    fn wrote<T>(&self, result: Poll<T>) -> Poll<T> {
        match &result {
            Poll::Pending if self.watched.write_since.get() == 0 => {
                self.watched.write_since.set(self.worker.now_ms().max(1));
            }
            Poll::Pending => {}
            Poll::Ready(_) => {
                self.watched.write_since.set(0);
                // A long answer that flows is no idleness. On HTTP/2 it may be the answer to a PING, which counts
                // only where the end is near anyway.
                if !self.http2 || self.worker.is_draining() {
                    self.watched.since.set(self.worker.now_ms());
                }
            }
        }
        result
    }

    /// Ends what is written on an idle connection that has been quiet for too long, unless a request is there which
    /// has not been told of yet: the moment between looking and ending is as short as it can be.
    fn end_if_quiet(&self) {
        let socket = SockRef::from(self.socket.stream.inner());
        if socket.peek(&mut [MaybeUninit::uninit()]).is_ok_and(|bytes| bytes > 0) {
            self.watched.enter(Phase::Idle, self.worker.now_ms());
        } else {
            // Whoever is gone has ended already.
            let _ = socket.shutdown(Shutdown::Write);
        }
    }

    /// Reads and forgets, until the client ends its side as well; the sweeper bounds how long.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        /// Then others have their turn.
        const READS_MAX: usize = 16;
        let mut unheard = [0; 16 * 1024];
        for _ in 0..READS_MAX {
            let mut unheard = ReadBuf::new(&mut unheard);
            let read = ready!(Pin::new(&mut self.socket.stream).poll_read(cx, unheard.unfilled()));
            if read.is_err() || unheard.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Read for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.socket.stream).poll_read(cx, buf);
        if self.http2 || self.watched.phase.get() != Phase::Idle {
            // On HTTP/2 any frame may come at any time; requests tell for themselves.
        } else if result.is_ready() {
            self.watched.enter(Phase::Head, self.worker.now_ms());
        } else if self.watched.suspect.get() && self.watched.is_overdue(&self.worker) {
            self.end_if_quiet();
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
        self.count_refused(buf);
        let result = Pin::new(&mut self.socket.stream).poll_write(cx, buf);
        self.wrote(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.watched.phase.get() != Phase::Closing {
            ready!(Pin::new(&mut self.socket.stream).poll_shutdown(cx))?;
            self.watched.enter(Phase::Closing, self.worker.now_ms());
        }
        self.poll_linger(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.count_refused(bufs.first().map_or(&[], |buf| buf));
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
