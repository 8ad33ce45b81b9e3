//! Reading a request's body: once, into one buffer, within the limits of size, rate and time.
//!
//! A small body usually lies whole in the connection's read buffer and is taken as it is. A larger one is
//! collected into a buffer sized from `Content-Length`, placed so that the first binary tensor, which begins
//! behind the JSON, is aligned for any element type.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header::CONTENT_LENGTH};
use http_body::{Body as _, Frame};
use hyper::body::Incoming;

use crate::monitor::Reason;

use super::{
    Limits,
    budget::{Budget, Held},
    refusal::Refusal,
};

/// The least that a body in several frames holds of the budget.
const HELD_STEP: usize = 64 * 1024;

/// Tensors are aligned to this; the widest element needs 8, engines like cache lines.
const ALIGNMENT: usize = 64;

/// Why there is no body.
#[derive(Debug)]
pub(super) enum Unread {
    /// It breaks a limit.
    Refused(Refusal),
    /// The client went away while it was sending.
    Gone,
}

impl From<Refusal> for Unread {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// How a body is to be read.
#[derive(Debug)]
pub(super) struct Reading<'a> {
    pub(super) limits: &'a Limits,
    pub(super) budget: &'a Budget,
    /// Where the part begins that should be aligned, counted from the body's start.
    pub(super) align_at: usize,
    /// How long the body may take to arrive.
    pub(super) timeout: Duration,
}

impl<'a> Reading<'a> {
    /// Reads the whole body; `waits` is called where it is not there yet. Dropped half-way it gives back what it holds.
    pub(super) async fn read(
        &self,
        headers: &HeaderMap,
        mut body: Incoming,
        waits: impl FnOnce(),
    ) -> Result<(Bytes, Held<'a>), Unread> {
        let declared = declared_length(headers.get(CONTENT_LENGTH))?;
        let bytes_max = self.limits.body_bytes_max;
        if declared.is_some_and(|length| length > bytes_max) {
            return Err(Refusal::too_large(bytes_max).into());
        }
        // Most bodies are there already, whole.
        let first = match poll_fn(|cx| Poll::Ready(Pin::new(&mut body).poll_frame(cx))).await {
            Poll::Ready(None) => return Ok((Bytes::new(), self.budget.hold(0)?)),
            Poll::Ready(Some(frame)) => data(frame)?,
            Poll::Pending => Bytes::new(),
        };
        if body.is_end_stream() && first.len() <= bytes_max {
            let held = self.budget.hold(first.len())?;
            return Ok((first, held));
        }
        waits();
        self.collect(declared, first, body).await
    }

    /// Collects a body that comes in several frames.
    async fn collect(
        &self,
        declared: Option<usize>,
        first: Bytes,
        mut body: Incoming,
    ) -> Result<(Bytes, Held<'a>), Unread> {
        let bytes_max = self.limits.body_bytes_max;
        let mut held = self.budget.hold(first.len().max(HELD_STEP))?;
        let mut buffer = Buffer::new(declared, self.align_at, bytes_max);
        buffer.extend(&first);
        let pace = Pace::new(self.limits, self.timeout);
        // Looked at only where no frame is there, and set anew only when it fires: frames may be tiny and many.
        let mut alarm = pin!(tokio::time::sleep_until(pace.end(buffer.len())));
        while buffer.len() <= bytes_max {
            let frame = poll_fn(|cx| match Pin::new(&mut body).poll_frame(cx) {
                Poll::Ready(frame) => Poll::Ready(Some(frame)),
                Poll::Pending => alarm.as_mut().poll(cx).map(|()| None),
            });
            match frame.await {
                Some(Some(frame)) => {
                    let data = data(frame)?;
                    held.grow(self.budget, buffer.len() + data.len())?;
                    buffer.extend(&data);
                }
                Some(None) => return Ok((buffer.finish(), held)),
                None => {
                    pace.check(buffer.len())?;
                    alarm.as_mut().reset(pace.end(buffer.len()));
                }
            }
        }
        Err(Refusal::too_large(bytes_max).into())
    }
}

fn data(frame: Result<Frame<Bytes>, hyper::Error>) -> Result<Bytes, Unread> {
    match frame {
        // Trailers are read and ignored.
        Ok(frame) => Ok(frame.into_data().unwrap_or_default()),
        Err(error) if error.is_parse() || error.is_user() => {
            Err(Refusal::malformed("the body's chunks are malformed").closing().into())
        }
        Err(_) => Err(Unread::Gone),
    }
}

fn declared_length(value: Option<&HeaderValue>) -> Result<Option<usize>, Refusal> {
    let Some(value) = value else { return Ok(None) };
    let length = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    length.map(Some).ok_or_else(|| Refusal::malformed("Content-Length is not a number").closing())
}

/// The buffer of a body, with room before it that aligns what begins at `align_at`.
struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    /// More room than this is never asked for at once.
    room_max: usize,
}

impl Buffer {
    /// Bodies of unknown length begin this small.
    const ROOM_MIN: usize = 16 * 1024;

    fn new(declared: Option<usize>, align_at: usize, bytes_max: usize) -> Self {
        let room = declared.unwrap_or(Self::ROOM_MIN) + ALIGNMENT;
        let mut bytes: Vec<u8> = Vec::with_capacity(room);
        let start = (ALIGNMENT
            - (bytes.as_ptr().addr() % ALIGNMENT + align_at % ALIGNMENT) % ALIGNMENT)
            % ALIGNMENT;
        bytes.resize(start, 0);
        Self { bytes, start, room_max: bytes_max + ALIGNMENT }
    }

    /// Doubles the room when it is used up, but not beyond what any body may take.
    fn extend(&mut self, data: &[u8]) {
        let needed = self.bytes.len() + data.len();
        if needed > self.bytes.capacity() {
            let room = (2 * self.bytes.capacity()).min(self.room_max).max(needed);
            self.bytes.reserve_exact(room - self.bytes.len());
        }
        self.bytes.extend_from_slice(data);
    }

    fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    fn finish(self) -> Bytes {
        Bytes::from(self.bytes).slice(self.start..)
    }
}

/// The slowest that a body may come.
struct Pace<'a> {
    limits: &'a Limits,
    begin: tokio::time::Instant,
    deadline: tokio::time::Instant,
}

impl<'a> Pace<'a> {
    fn new(limits: &'a Limits, timeout: Duration) -> Self {
        let begin = tokio::time::Instant::now();
        Self { limits, begin, deadline: begin + timeout }
    }

    /// When a body of this many bytes must have more, or be complete.
    fn end(&self, bytes: usize) -> tokio::time::Instant {
        self.due(bytes).min(self.deadline) + Duration::from_millis(1)
    }

    fn check(&self, bytes: usize) -> Result<(), Refusal> {
        let now = tokio::time::Instant::now();
        if now > self.deadline {
            return Err(Refusal::deadline().closing());
        }
        if now > self.due(bytes) {
            let text = format!(
                "the body comes slower than {} bytes per second",
                self.limits.body_bytes_per_second_min
            );
            let status = StatusCode::REQUEST_TIMEOUT;
            return Err(Refusal::new(Reason::SlowBody, status, text).closing());
        }
        Ok(())
    }

    /// When more than this many bytes must be there.
    fn due(&self, bytes: usize) -> tokio::time::Instant {
        let earned = bytes as u64 * 1000 / u64::from(self.limits.body_bytes_per_second_min.get());
        self.begin + self.limits.body_grace + Duration::from_millis(earned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_part_behind_the_json_is_aligned() {
        for align_at in [0, 1, 63, 64, 117, 1000] {
            let mut buffer = Buffer::new(Some(2000), align_at, 4000);
            buffer.extend(&[7; 2000]);
            let body = buffer.finish();
            assert_eq!(body.len(), 2000);
            assert_eq!(body[align_at..].as_ptr().addr() % ALIGNMENT, 0, "{align_at}");
        }
    }
}
