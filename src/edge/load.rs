//! Bytes that a worker has had to hold, so that the memory of a burst does not stay with the process after it.
//!
//! Allocators keep what was freed for whoever asks next, and give it back when they are next used: after a burst of
//! large bodies nobody asks, and a gigabyte stays resident. A worker that has moved many bytes and then few hands it
//! back.
//!
//! Not here: how memory is handed back (`engine`), budgets of what may be held at once (`body`).

use std::cell::Cell;

/// The bytes and requests of one worker.
#[derive(Debug, Default)]
pub(super) struct Load {
    /// Requests that are being answered.
    answering: Cell<usize>,
    /// Bytes of large bodies, in and out, since memory was last handed back.
    moved: Cell<usize>,
    /// `moved` when it became calm, and when that was.
    calm: Cell<(usize, u32)>,
}

/// Smaller bodies take their memory from pages that others use as well.
const LARGE_BYTES: usize = 64 << 10;
/// So many bytes make it worth while: less costs nobody anything.
const BURST_BYTES: usize = 16 << 20;
/// Fewer than these are calm.
const CALM_BYTES: usize = 1 << 20;
/// The time without large bodies that ends a burst: the next request of a burst comes sooner, and would pay for memory
/// that was handed back.
const CALM_MS: u32 = 1000;

impl Load {
    pub(super) fn begin(&self) {
        self.answering.set(self.answering.get() + 1);
    }

    pub(super) fn end(&self) {
        self.answering.set(self.answering.get() - 1);
    }

    /// Notes the bytes of a request or an answer.
    pub(super) fn moved(&self, bytes: usize) {
        if bytes >= LARGE_BYTES {
            self.moved.set(self.moved.get().saturating_add(bytes));
        }
    }

    /// True if a burst is over since a while, as of this moment in the worker's milliseconds; true once for each.
    pub(super) fn is_over(&self, now: u32) -> bool {
        let moved = self.moved.get();
        if moved < BURST_BYTES {
            return false;
        }
        let (before, since) = self.calm.get();
        if self.answering.get() > 0 || moved - before >= CALM_BYTES {
            self.calm.set((moved, now));
            return false;
        }
        let over = now.wrapping_sub(since) >= CALM_MS;
        if over {
            self.moved.set(0);
            self.calm.set((0, now));
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_over_once_it_has_been_calm() {
        let load = Load::default();
        assert!(!load.is_over(5000), "nothing was moved");
        load.begin();
        load.moved(BURST_BYTES);
        for now in [6000, 8000] {
            assert!(!load.is_over(now), "it is being answered");
        }
        load.end();
        assert!(!load.is_over(8900));
        // Probes and small requests are calm enough, and so is a larger one.
        load.moved(1000);
        load.moved(LARGE_BYTES);
        assert!(load.is_over(9000));
        assert!(!load.is_over(20_000), "once");
    }

    #[test]
    fn a_burst_that_goes_on_is_not_over() {
        let load = Load::default();
        for now in (0..10_000).step_by(500) {
            load.moved(BURST_BYTES);
            assert!(!load.is_over(now), "{now}");
        }
        assert!(load.is_over(11_000));
    }
}
