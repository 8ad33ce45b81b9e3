//! A spare file descriptor: a client can be answered, if only with a refusal, where the process has no other left.
//!
//! Without one a listener can neither accept nor refuse: clients wait until they give up, and the failed accept is
//! tried again and again. Always true:
//! - The spare one is taken back as soon as a descriptor is free; until then the data plane takes no new client, so
//!   that it does not use up what the admin plane answers probes with.
//! - That nothing can be accepted is said at most once a second.
//!
//! Not here: what the client is told (`edge` and `admin`, which have a spare one each).

use std::{
    fs::File,
    io,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use futures_util::FutureExt as _;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Interval, MissedTickBehavior},
};

/// True if a client waits to be accepted.
#[must_use]
pub fn is_awaited(listener: &TcpListener) -> bool {
    let mut asked = [PollFd::new(listener, PollFlags::IN)];
    poll(&mut asked, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// The spare descriptors that are in use; descriptors belong to the process.
static MISSING: AtomicUsize = AtomicUsize::new(0);

/// True while a spare descriptor is in use: the next free one is for that, not for a new client.
#[must_use]
pub fn is_spare_missing() -> bool {
    MISSING.load(Relaxed) > 0
}

/// A file descriptor kept for want of others.
#[derive(Debug)]
pub struct Spare {
    held: Option<File>,
    /// Ticks when a failure may be said again.
    pace: Interval,
    /// The plane that it is kept for, in words.
    plane: &'static str,
}

impl Spare {
    /// Keeps one back for this plane, such as `the admin plane`.
    ///
    /// # Panics
    /// Outside a tokio runtime with time.
    #[must_use]
    pub fn of(plane: &'static str) -> Self {
        let mut pace = tokio::time::interval(Duration::from_secs(1));
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let held = File::open("/dev/null").ok();
        // Not before it was looked for: other planes turn clients away while one is missing.
        MISSING.fetch_add(usize::from(held.is_none()), Relaxed);
        Self { held, pace, plane }
    }

    /// Takes the descriptor back after use, if one is free; false if there is none. Call it before each accept.
    pub fn take_back(&mut self) -> bool {
        if self.held.is_none() {
            self.held = File::open("/dev/null").ok();
            MISSING.fetch_sub(self.held.iter().count(), Relaxed);
        }
        self.held.is_some()
    }

    /// Reports a failed accept, and accepts with the spare descriptor if the others are used up; `None` if that is not
    /// the reason, nobody waits, or the spare one is in use.
    ///
    /// # Cancel safety
    /// Not cancel safe: an accepted client would be closed without a word.
    pub async fn accept(&mut self, listener: &TcpListener, error: &io::Error) -> Option<TcpStream> {
        let plane = self.plane;
        let is_used_up = matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE));
        if self.pace.tick().now_or_never().is_some() {
            let advice = if is_used_up {
                "; clients get 503 until descriptors are free: raise the limit of open files (ulimit -n, LimitNOFILE=), or \
                 lower limits.connections"
            } else {
                ""
            };
            tracing::warn!("cannot accept a connection to {plane}: {error}{advice}");
        }
        if is_used_up && let Some(held) = self.held.take() {
            MISSING.fetch_add(1, Relaxed);
            drop(held);
            // Fails with EMFILE also where nobody waits, so that one that waits is not certain. Looked at once only, so
            // that nobody else takes the descriptor meanwhile.
            return listener.accept().now_or_never()?.ok().map(|(stream, _)| stream);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        None
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        if self.held.is_none() {
            MISSING.fetch_sub(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_plane_that_begins_makes_no_other_turn_clients_away() {
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let missing = scope.spawn(|| {
                let mut missing = 0;
                while !done.load(Relaxed) {
                    missing += usize::from(is_spare_missing());
                }
                missing
            });
            (0..5000).for_each(|_| drop(Spare::of("a plane")));
            done.store(true, Relaxed);
            assert_eq!(missing.join().unwrap(), 0);
        });
    }
}
