//! Names for predictions: unique in the fleet, made without a lock and without a look at the clock.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use crate::{
    model::{PredictionId, PredictionKey},
    monitor::WorkerId,
};

/// What the names of a process are made with.
#[derive(Debug, Clone, Copy)]
pub struct Naming {
    /// The key of their check bits.
    pub key: PredictionKey,
    /// Random bits that tell processes apart: the upper half names the process, the lower half is where workers begin
    /// to count.
    pub process: u64,
}

/// Makes the names of one worker.
#[derive(Debug)]
pub struct Names {
    key: PredictionKey,
    /// 20 bits of the process, 12 of the worker.
    origin: u32,
    count: Cell<u32>,
    begin: Instant,
    /// Time since 1970 at `begin`.
    unix_begin: Duration,
}

impl Names {
    /// The names of a worker; `before` workers had its number before it. `unix_begin` is the time since 1970 at
    /// `begin`.
    pub(super) fn new(
        naming: Naming,
        worker: WorkerId,
        before: u64,
        (begin, unix_begin): (Instant, Duration),
    ) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "as many bits as have room")]
        let (process, first) = ((naming.process >> 32) as u32, naming.process as u32);
        #[expect(clippy::cast_possible_truncation, reason = "as many bits as have room")]
        let (worker, before) = (worker.0 as u32 & 0xfff, before as u32);
        Self {
            key: naming.key,
            origin: process & !0xfff | worker,
            count: Cell::new(first.wrapping_add(before << 28)),
            begin,
            unix_begin,
        }
    }

    /// The name of the worker's next prediction; `at` is when its request arrived.
    pub fn next(&self, at: Instant) -> PredictionId {
        let count = self.count.get();
        self.count.set(count.wrapping_add(1));
        let since = self.unix_begin + at.saturating_duration_since(self.begin);
        #[expect(clippy::cast_possible_truncation, reason = "the second, until 2106")]
        let second = since.as_secs() as u32;
        self.key.name(second, self.origin, count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_second_process_worker_and_count() {
        let begin = Instant::now();
        let naming = Naming { key: PredictionKey::new([1, 2]), process: 0xdead_beef_0000_0010 };
        let names = Names::new(naming, WorkerId(1), 0, (begin, Duration::from_secs(0x6000_0000)));
        let first = names.next(begin);
        assert!(first.as_str().starts_with("60000000deadb00100000010"), "{first:?}");
        let second = names.next(begin + Duration::from_millis(2500));
        assert!(second.as_str().starts_with("60000002deadb00100000011"), "{second:?}");
        assert!(naming.key.knows(first) && naming.key.knows(second));
        let names = Names::new(naming, WorkerId(1), 2, (begin, Duration::ZERO));
        assert!(names.next(begin).as_str().starts_with("00000000deadb00120000010"));
    }
}
