//! How full the server is, as one number that an autoscaler can follow.
//!
//! A worker runs requests one after the other, so that it is a queue: the nearer its busy share comes to 1, the longer
//! requests wait before anybody reads them, where no clock of ours sees it. That wait follows from the busy share and
//! the time that a request takes.

use std::time::Duration;

/// The pace of a worker: its busy share and its answers, smoothed over the last seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pace {
    /// When it was taken, on a clock that only grows; `None` before the first time.
    at: Option<Duration>,
    /// Busy time so far.
    busy: Duration,
    /// Answers so far.
    answers: u64,
    /// The busy share, 0 to 1.
    pub(super) share: f64,
    /// Answers per second.
    pub(super) rate: f64,
}

/// The time constant of the smoothing: of what was 5 s ago, e^-1 remains.
const SMOOTHED_OVER: Duration = Duration::from_secs(5);

/// The ratio that is shown where the 99th percentile is expected to just meet the objective: an autoscaler with the
/// usual target of 0.8 acts before that.
const AT_OBJECTIVE: f64 = 0.9;

impl Pace {
    /// The pace at `now`, given all busy time and all answers so far.
    #[must_use]
    pub fn next(self, now: Duration, busy: Duration, answers: u64) -> Self {
        let fresh = Self { at: Some(now), busy, answers, ..self };
        let Some(before) = self.at else { return fresh };
        let elapsed = now.saturating_sub(before).as_secs_f64();
        if elapsed <= 0.0 {
            return self;
        }
        #[expect(clippy::cast_precision_loss, reason = "answers since the last look")]
        let answered = answers.saturating_sub(self.answers) as f64;
        let share = (busy.saturating_sub(self.busy).as_secs_f64() / elapsed).min(1.0);
        let weight = 1.0 - libm::exp(-elapsed / SMOOTHED_OVER.as_secs_f64());
        let smooth = |old: f64, new: f64| old + weight * (new - old);
        Self {
            share: smooth(self.share, share),
            rate: smooth(self.rate, answered / elapsed),
            ..fresh
        }
    }
}

/// The saturation, 0 to 1, of workers with this mean busy share and this many answers per second each: the busy share,
/// or how near the expected 99th percentile of the latency is to the objective, whichever is more.
///
/// The percentile is that of a single server with exponential times, `ln(100) * s / (1 - busy)` for requests of `s`
/// seconds (Kleinrock, Queueing Systems I, 3.2); requests that all take the same time wait less.
pub(super) fn saturation(busy: f64, rate: f64, objective: Option<Duration>) -> f64 {
    let busy = busy.clamp(0.0, 1.0);
    let expected = match objective {
        Some(objective) if rate > 0.0 && busy < 1.0 => {
            let percentile = libm::log(100.0) * (busy / rate) / (1.0 - busy);
            AT_OBJECTIVE * percentile / objective.as_secs_f64()
        }
        _ => 0.0,
    };
    expected.clamp(busy, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: f64 = 1e-3;

    /// A fraction in 0..1, by splitmix64 (Steele, Lea and Flood 2014).
    fn uniform(state: &mut u64) -> f64 {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (*state ^ *state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        f64::from(u32::try_from((z ^ z >> 31) >> 32).unwrap()) / f64::from(u32::MAX)
    }

    /// The busy share and the 99th percentile of a queue with random arrivals, in seconds.
    fn queue(rate: f64, mut service: impl FnMut(f64) -> f64) -> (f64, f64) {
        let (mut state, mut at, mut free, mut busy) = (7, 0.0_f64, 0.0_f64, 0.0);
        let mut latencies = Vec::new();
        for _ in 0..40_000 {
            at -= uniform(&mut state).max(1e-12).ln() / rate;
            let takes = service(uniform(&mut state));
            free = free.max(at) + takes;
            busy += takes;
            latencies.push(free - at);
        }
        latencies.sort_by(f64::total_cmp);
        (busy / free, latencies[latencies.len() * 99 / 100])
    }

    #[test]
    fn saturation_rises_and_crosses_before_the_objective_is_missed() {
        let fixed: fn(f64) -> f64 = |_| MS;
        let random: fn(f64) -> f64 = |u| -u.max(1e-12).ln() * MS;
        for (service, objective) in
            [(fixed, 5), (fixed, 10), (fixed, 100), (random, 8), (random, 20), (random, 100)]
        {
            let objective = Duration::from_millis(objective);
            let (mut last, mut missed_at) = (0.0, None);
            for percent in (5..=98).step_by(3) {
                let rate = f64::from(percent) * 10.0;
                let (busy, percentile) = queue(rate, service);
                let now = saturation(busy, rate, Some(objective));
                assert!(now >= last - 0.01, "{now} after {last} at {percent} %");
                if percentile > objective.as_secs_f64() {
                    missed_at.get_or_insert((percent, now, last));
                }
                last = now;
            }
            if let Some((percent, now, before)) = missed_at {
                assert!(now > 0.8 && before > 0.7, "{objective:?} at {percent} %: {before}, {now}");
            }
            assert!(last > 0.95, "{last} at the end");
        }
    }

    #[test]
    fn saturation_is_a_ratio() {
        assert_eq!(saturation(0.0, 0.0, None).to_bits(), 0.0_f64.to_bits());
        for (busy, rate) in [(0.0, 1.0), (0.5, 0.0), (1.0, 10.0), (7.0, 1.0), (0.99, 1e-9)] {
            for objective in [None, Some(Duration::from_millis(1)), Some(Duration::from_hours(1))] {
                let ratio = saturation(busy, rate, objective);
                assert!(
                    (busy.min(1.0)..=1.0).contains(&ratio),
                    "{busy} {rate} {objective:?}: {ratio}"
                );
            }
        }
    }

    #[test]
    fn a_pace_follows_within_seconds() {
        let at = Duration::from_secs;
        let mut pace = Pace::default().next(at(10), at(3), 50);
        assert_eq!((pace.share, pace.rate), (0.0, 0.0), "one look says nothing");
        for second in 1..=30 {
            pace = pace.next(at(10 + second), at(3) + at(second) / 2, 50 + second * 100);
        }
        assert!((pace.share - 0.5).abs() < 0.01 && (pace.rate - 100.0).abs() < 1.0, "{pace:?}");
        assert_eq!(pace.next(at(40), at(99), 99_999), pace, "no time has passed");
        for second in 31..=50 {
            pace = pace.next(at(10 + second), at(18), 3_050);
        }
        assert!(pace.share < 0.02 && pace.rate < 3.0, "{pace:?}");
    }
}
