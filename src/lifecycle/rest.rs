//! Rest between looks at the repository for which there is no sign of a change, so that one of thousands of models
//! costs next to nothing while nothing happens.
//!
//! Not here: signs of changes and the poll interval (`source::watch`).

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A look without a sign takes at most one part of so many of a core.
const SHARE: u32 = 500;

/// A rest is not longer than this: signs may be lost.
const REST_MAX: Duration = Duration::from_mins(1);

/// The end of the rest, by the newest look.
#[derive(Debug, Default)]
pub(super) struct Rest(Mutex<Option<Instant>>);

impl Rest {
    /// Notes the processor time of a look that ended at `now`.
    pub(super) fn begin(&self, now: Instant, took: Duration) {
        let rest = took.saturating_mul(SHARE).min(REST_MAX);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = now.checked_add(rest);
    }

    /// True if the next look may come.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_none_or(|end| now >= end)
    }
}

/// Processor time of the calling thread.
pub(super) fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_follows_the_cost_of_a_look() {
        let (rest, now) = (Rest::default(), Instant::now());
        assert!(rest.is_over(now), "nobody has looked yet");
        for (took_us, rests_ms) in [(0, 0), (40, 20), (80_000, 40_000), (9_000_000, 60_000)] {
            rest.begin(now, Duration::from_micros(took_us));
            let after = |ms| rest.is_over(now + Duration::from_millis(ms));
            assert!(after(rests_ms), "{took_us} us");
            assert!(rests_ms == 0 || !after(rests_ms - 1), "{took_us} us");
        }
    }

    #[test]
    fn a_thread_knows_its_time() {
        let before = thread_time();
        let mut sum = 0u64;
        while thread_time() == before {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(thread_time() > before);
    }
}
