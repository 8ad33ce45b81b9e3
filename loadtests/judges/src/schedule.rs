//! A whole rollout by the default policy: steps, gates, and the limits that stand before the promotion.
//!
//! Errors differ between the arms by a ratio; latencies and outputs are alike. Counted after the warm-up.

use tidegate::stats::{
    Direction, EventProcess, Stratum, mean_log_e, rate_upper_limit, ratio_limits,
};

use crate::{judge::number, world::Random};

/// Share, least canary requests, longest duration in seconds. Each step takes at least two minutes.
const STEPS: [(f64, u64, f64); 3] = [(0.01, 200, 3600.0), (0.1, 500, 3600.0), (0.25, 500, 7200.0)];
const SECONDS_MIN: f64 = 120.0;
const MARGIN: f64 = 0.5;
const PROMOTION_ALPHA: f64 = 0.05;
/// `errors` has half of 1 %, each of the five others a fifth of the rest.
const ERRORS_ALPHA: f64 = 0.005;
const OTHERS_ALPHA: f64 = 0.001;

/// How a rollout ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Promoted,
    RolledBack,
    Held,
}

/// One kind of event, with what its limits are read from.
struct Events {
    process: EventProcess,
    strata: [Stratum; STEPS.len()],
    base: f64,
    /// A rate of the canary's own below which its ratio no longer matters.
    tolerable: f64,
}

impl Events {
    fn new(delta: f64, base: f64, tolerable: f64) -> Self {
        let strata = STEPS.map(|(share, ..)| Stratum { share, candidate: 0, baseline: 0 });
        let process = EventProcess::new(Direction::More, delta, Some(base));
        Self { process, strata, base, tolerable }
    }

    fn count(&mut self, step: usize, canary: bool) {
        let stratum = &mut self.strata[step];
        let (candidate, baseline) = (u64::from(canary), u64::from(!canary));
        stratum.candidate += candidate;
        stratum.baseline += baseline;
        self.process.add(stratum.share, candidate, baseline);
    }

    fn pass(&self, requests: u64) -> bool {
        let events = self.strata.iter().map(|stratum| stratum.candidate).sum();
        rate_upper_limit(requests, events, PROMOTION_ALPHA, self.tolerable) < self.tolerable
            || ratio_limits(&self.strata, PROMOTION_ALPHA, Some(self.base)).upper < 1.0 + MARGIN
    }
}

/// Runs a rollout; also returns the canary's requests.
pub(crate) fn run(base: f64, ratio: f64, requests_per_second: f64, seed: u64) -> (End, u64) {
    let mut random = Random(seed << 32);
    let mut errors = Events::new(0.2, base, 0.005);
    let slow_share = [0.5, 0.05];
    let mut slow = slow_share.map(|share| Events::new(0.2, share, share * (1.0 + MARGIN)));
    let (mut step, mut since, mut in_step, mut requests) = (0, 0.0, 0, 0);
    loop {
        let (share, requests_min, seconds_max) = STEPS[step];
        since += 1.0 / requests_per_second;
        let canary = random.unit() < share;
        if random.unit() < if canary { base * ratio } else { base } {
            errors.count(step, canary);
            // Only an event of the canary raises the evidence.
            if canary && errors.process.log_e() >= -ERRORS_ALPHA.ln() {
                return (End::RolledBack, requests);
            }
        } else {
            let slowness = random.unit();
            let exceeds = |index: usize| slowness < slow_share[index];
            (0..2)
                .filter(|index| exceeds(*index))
                .for_each(|index| slow[index].count(step, canary));
            let log_e = || mean_log_e(&slow.each_ref().map(|slow| slow.process.log_e()));
            if canary && exceeds(0) && log_e() >= -OTHERS_ALPHA.ln() {
                return (End::RolledBack, requests);
            }
        }
        requests += u64::from(canary);
        in_step += u64::from(canary);
        if since >= SECONDS_MIN && in_step >= requests_min {
            if step + 1 < STEPS.len() {
                (step, since, in_step) = (step + 1, 0.0, 0);
            } else if canary && requests % 50 == 0 {
                let pass = |events: &Events| events.pass(requests);
                if pass(&errors) && slow.iter().all(pass) {
                    return (End::Promoted, requests);
                }
            }
        }
        if since >= seconds_max && step + 1 == STEPS.len() {
            return (End::Held, requests);
        }
    }
}

/// Share of each end, and the median of the canary's requests among those that ended so.
pub(crate) fn summary(runs: &[(End, u64)], end: End) -> String {
    let mut requests: Vec<u64> = runs.iter().filter(|run| run.0 == end).map(|run| run.1).collect();
    requests.sort_unstable();
    let share = number(requests.len() as u64) / number(runs.len() as u64);
    match requests.get(requests.len() / 2) {
        Some(median) if share > 0.1 => format!("{share:.4} / {median}"),
        _ => format!("{share:.4}"),
    }
}
