//! Bounds the bytes of bodies and answers that one worker holds at once.
//!
//! A body counts from its first byte until its call has ended; an answer from before its run until the socket, or
//! HTTP/2's stream, has taken its last byte. So a client that asks and does not read uses up its worker's budget and
//! not the machine's memory. Always true:
//! - What is refused for it costs nothing, and is told to try again.
//! - What was taken comes back, wherever a request ends.
//!
//! Answers below [`SMALL_BYTES`] are not counted: streams and connections bound them well enough. One answer is let
//! through whatever its size while no other is unread, so that a large one can be given at all.
//!
//! Not here: what one body may be (`body`), connections that do not read (`connection`).

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use bytes::Bytes;

use crate::monitor::Reason;

use super::refusal::Refusal;

/// Answers below this are not counted.
const SMALL_BYTES: usize = 4 * 1024;

/// One worker's share of the bytes that may be held.
///
/// Only its worker takes from it; an answer may be let go of by whoever holds it last.
#[derive(Debug, Clone)]
pub(super) struct Budget(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    left: AtomicUsize,
    /// Answers that are counted now.
    answers: AtomicUsize,
}

/// Bytes taken from the budget, given back when this is dropped.
#[derive(Debug)]
pub(super) struct Held<'a> {
    pool: &'a Arc<Pool>,
    bytes: usize,
}

/// An answer that counts until it is written.
#[derive(Debug)]
struct Answer<T> {
    bytes: T,
    pool: Arc<Pool>,
    held: usize,
}

impl Budget {
    pub(super) fn new(bytes: usize) -> Self {
        Self(Arc::new(Pool { left: AtomicUsize::new(bytes), answers: AtomicUsize::new(0) }))
    }

    /// Takes bytes for a body.
    pub(super) fn hold(&self, bytes: usize) -> Result<Held<'_>, Refusal> {
        self.take(bytes).ok_or_else(|| {
            Refusal::unavailable(
                Reason::InFlightBytes,
                "too many bytes of requests and answers are in flight; try again, or raise limits.in_flight_bytes",
            )
            .closing()
        })
    }

    /// Takes bytes for an answer; nothing for a small one.
    pub(super) fn reserve(&self, bytes: usize) -> Result<Held<'_>, Refusal> {
        let bytes = if bytes < SMALL_BYTES { 0 } else { bytes };
        self.take(bytes).or_else(|| self.take_rest()).ok_or_else(|| {
            Refusal::unavailable(
                Reason::InFlightBytes,
                "too many bytes of answers wait to be read; read them, try again, or raise limits.in_flight_bytes",
            )
        })
    }

    fn take(&self, bytes: usize) -> Option<Held<'_>> {
        let left = &self.0.left;
        let taken = left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(bytes)).is_ok();
        // Made only where it was taken: it gives back.
        taken.then(|| Held { pool: &self.0, bytes })
    }

    /// Takes all that is left, for an answer while no other is unread.
    fn take_rest(&self) -> Option<Held<'_>> {
        let alone = self.0.answers.load(Relaxed) == 0;
        alone.then(|| Held { pool: &self.0, bytes: self.0.left.swap(0, Relaxed) })
    }

    /// An answer that is counted as long as anybody holds its bytes; `held` are those that were reserved for it.
    pub(super) fn count<T>(&self, bytes: T, mut held: Held<'_>) -> Result<Bytes, Refusal>
    where
        T: AsRef<[u8]> + Into<Bytes> + Send + 'static,
    {
        let length = bytes.as_ref().len();
        if length < SMALL_BYTES {
            return Ok(bytes.into());
        }
        if length > held.bytes {
            let more = self.reserve((length - held.bytes).max(SMALL_BYTES))?;
            held.bytes += more.bytes;
            // Given back with the rest.
            std::mem::forget(more);
        }
        // What was reserved for a larger one goes back.
        let taken = held.bytes.min(length);
        self.0.left.fetch_add(held.bytes - taken, Relaxed);
        std::mem::forget(held);
        self.0.answers.fetch_add(1, Relaxed);
        let answer = Answer { bytes, pool: Arc::clone(&self.0), held: taken };
        Ok(Bytes::from_owner(answer))
    }
}

impl Held<'_> {
    /// Holds at least this many bytes, of what has come and not of what was announced; in doubling steps.
    pub(super) fn grow(&mut self, budget: &Budget, bytes: usize) -> Result<(), Refusal> {
        if bytes > self.bytes {
            let more = budget.hold(bytes.max(2 * self.bytes) - self.bytes)?;
            self.bytes += more.bytes;
            // Given back with the rest.
            std::mem::forget(more);
        }
        Ok(())
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.pool.left.fetch_add(self.bytes, Relaxed);
        }
    }
}

impl<T: AsRef<[u8]>> AsRef<[u8]> for Answer<T> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

impl<T> Drop for Answer<T> {
    fn drop(&mut self) {
        self.pool.left.fetch_add(self.held, Relaxed);
        self.pool.answers.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_bytes_come_back() {
        let budget = Budget::new(100);
        let held = budget.hold(60).unwrap();
        assert!(budget.hold(60).is_err());
        drop(held);
        assert!(budget.hold(100).is_ok());
    }

    #[test]
    fn an_answer_counts_until_its_last_byte_is_let_go() {
        let budget = Budget::new(20_000);
        let reserved = budget.reserve(5_000).unwrap();
        let mut answer = budget.count(vec![7; 12_000], reserved).unwrap();
        assert!(budget.hold(8_001).is_err() && budget.hold(8_000).is_ok());
        let piece = answer.split_to(100);
        drop(answer);
        assert!(budget.hold(8_001).is_err(), "a piece is still on its way");
        drop(piece);
        assert!(budget.hold(20_000).is_ok());
        let held = budget.reserve(15_000).unwrap();
        let small = budget.count(vec![7; 5_000], held).unwrap();
        assert!(budget.hold(15_000).is_ok(), "only its own size counts");
        let refused = budget.count(vec![7; 30_000], budget.reserve(0).unwrap()).unwrap_err();
        assert_eq!(refused.status, http::StatusCode::SERVICE_UNAVAILABLE);
        drop(small);
        assert!(budget.hold(20_000).is_ok());
        let large = budget.count(vec![7; 30_000], budget.reserve(25_000).unwrap()).unwrap();
        assert!(budget.reserve(SMALL_BYTES).is_err() && budget.hold(1).is_err(), "the only one");
        drop(large);
        assert!(budget.hold(20_000).is_ok());
        let small = budget.count(vec![7; 100], budget.reserve(100).unwrap()).unwrap();
        assert!(budget.hold(20_000).is_ok());
        drop(small);
    }

    /// A container of 1 GiB whose budget is what it is by default: 100 answers of 20 MB that nobody reads.
    #[test]
    fn unread_answers_of_a_container_stay_within_its_memory() {
        const MB: usize = 1_000_000;
        let workers = 2;
        let budget = Budget::new(super::super::memory::share(Some(1 << 30)) / workers);
        let answers = (0..100).map_while(|_| {
            let reserved = budget.reserve(20 * MB).ok()?;
            budget.count(vec![0u8; 20 * MB], reserved).ok()
        });
        let held: Vec<_> = answers.collect();
        assert!(!held.is_empty());
        assert!(held.len() * 20 * MB * workers <= 1 << 28, "{} are held", held.len());
    }
}
