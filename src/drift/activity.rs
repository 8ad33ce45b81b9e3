//! Signs of life of all versions, side by side: whoever looks at thousands that rest touches a few pages, not some of
//! each.
//!
//! Always true:
//! - A worker writes its own cache lines alone, and waits for nobody.
//! - Whoever finds that a version counted finds what was counted before that, too.

use std::{
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::Duration,
};

/// Places of one block: the counts of one worker take a page.
const BLOCK: usize = 512;

/// Counts of one worker that share cache lines.
const LINE: usize = 16;

/// Places that are free, for so many workers.
#[derive(Debug)]
pub(super) struct Activity {
    workers: usize,
    free: Vec<Place>,
}

/// One version's place.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// By worker and place: calls that counted.
    calls: Arc<[Line]>,
    signs: Arc<[Signs]>,
    index: usize,
}

/// Keeps counts of different workers off each other's cache lines.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Line([AtomicU64; LINE]);

/// Signs of one version beside the path.
#[derive(Debug, Default)]
struct Signs {
    /// Calls as of the last time that somebody asked.
    found: AtomicU64,
    /// When rows last ran, in nanoseconds since 1970; 0 if none did.
    last_rows_at: AtomicU64,
    /// When it is looked at though it counted nothing, in nanoseconds since 1970.
    due_at: AtomicU64,
    /// True once nobody counts any more.
    is_over: AtomicBool,
}

impl Activity {
    pub(super) fn new(workers: usize) -> Self {
        Self { workers, free: Vec::new() }
    }

    /// A place for a version that is to be looked at.
    pub(super) fn place(&mut self) -> Place {
        let place = self.free.pop().unwrap_or_else(|| {
            let calls = (0..self.workers * BLOCK / LINE).map(|_| Line::default()).collect();
            let signs = (0..BLOCK).map(|_| Signs::default()).collect();
            let first = Place { calls, signs, index: 0 };
            self.free.extend((1..BLOCK).rev().map(|index| Place { index, ..first.clone() }));
            first
        });
        let signs = place.signs();
        signs.last_rows_at.store(0, Relaxed);
        signs.due_at.store(0, Relaxed);
        signs.is_over.store(false, Relaxed);
        place
    }

    /// Takes a place back that is over, for another version.
    pub(super) fn take_back(&mut self, place: Place) {
        self.free.push(place);
    }
}

impl Place {
    /// A place of its own, for a recorder that nobody looks for.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn alone(workers: usize) -> Self {
        Activity::new(workers).place()
    }

    /// Workers that may count.
    pub(super) fn workers(&self) -> usize {
        self.calls.len() * LINE / BLOCK
    }

    /// Notes that a worker counted something.
    #[inline]
    pub(super) fn counted(&self, worker: usize) {
        let Line(calls) = &self.calls[(worker * BLOCK + self.index) / LINE];
        let calls = &calls[self.index % LINE];
        calls.store(calls.load(Relaxed).wrapping_add(1), Release);
    }

    /// True if it counted since the last time that this was asked, or is due by now.
    pub(super) fn is_due(&self, now: Duration) -> bool {
        let calls = self.calls.chunks_exact(BLOCK / LINE).map(|of_worker| {
            let Line(calls) = &of_worker[self.index / LINE];
            calls[self.index % LINE].load(Acquire)
        });
        let calls = calls.fold(0, u64::wrapping_add);
        let has_counted = self.signs().found.swap(calls, Relaxed) != calls;
        has_counted || self.signs().due_at.load(Relaxed) <= nanoseconds(now)
    }

    /// Says when rows last ran, and when it is due though it counts nothing; since 1970.
    pub(super) fn looked(&self, last_rows_at: Duration, due_at: Duration) {
        self.signs().last_rows_at.store(nanoseconds(last_rows_at), Relaxed);
        self.signs().due_at.store(nanoseconds(due_at), Relaxed);
    }

    /// When rows last ran, since 1970; zero if none did.
    pub(super) fn last_rows_at(&self) -> Duration {
        Duration::from_nanos(self.signs().last_rows_at.load(Relaxed))
    }

    /// When it is due though it counts nothing, since 1970; the largest if it never is.
    #[cfg(test)]
    pub(super) fn due_at(&self) -> Duration {
        match self.signs().due_at.load(Relaxed) {
            u64::MAX => Duration::MAX,
            nanoseconds => Duration::from_nanos(nanoseconds),
        }
    }

    /// Says that nobody counts any more.
    pub(super) fn end(&self) {
        self.signs().is_over.store(true, Release);
    }

    /// True once nobody counts any more.
    pub(super) fn is_over(&self) -> bool {
        self.signs().is_over.load(Acquire)
    }

    fn signs(&self) -> &Signs {
        &self.signs[self.index]
    }
}

/// Nanoseconds of a time; what is beyond them counts as never.
pub(super) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_796_000_000);

    fn due(places: &[Place], now: Duration) -> Vec<usize> {
        (0..places.len()).filter(|index| places[*index].is_due(now)).collect()
    }

    #[test]
    fn a_version_is_due_by_its_time_and_once_it_counts() {
        let mut activity = Activity::new(3);
        let places: Vec<_> = (0..2 * BLOCK).map(|_| activity.place()).collect();
        assert_eq!(due(&places, NOW).len(), 2 * BLOCK, "nobody looked yet");
        for place in &places {
            place.looked(Duration::ZERO, Duration::MAX);
        }
        assert!(due(&places, NOW).is_empty());
        places[7].looked(NOW, NOW + Duration::from_secs(1));
        assert!(due(&places, NOW).is_empty());
        assert_eq!(due(&places, NOW + Duration::from_secs(1)), [7]);
        for worker in 0..3 {
            let counted = [0, 1, LINE, BLOCK - 1, BLOCK, 2 * BLOCK - 1];
            for index in counted {
                places[index].counted(worker);
            }
            assert_eq!(due(&places, NOW), counted, "of worker {worker}");
        }
        assert!(due(&places, NOW).is_empty());
    }

    #[test]
    fn a_place_that_was_taken_back_begins_anew() {
        let mut activity = Activity::new(1);
        let place = activity.place();
        place.counted(0);
        place.looked(NOW, Duration::MAX);
        place.end();
        assert!(place.is_over());
        let (before, signs) = (place.index, Arc::clone(&place.signs));
        activity.take_back(place);
        let next = activity.place();
        assert!(Arc::ptr_eq(&signs, &next.signs) && next.index == before);
        assert!(next.is_due(NOW) && !next.is_over());
        assert_eq!(next.last_rows_at(), Duration::ZERO);
    }
}
