//! Rules that decide whether a canary goes back: the usual ones, and tidegate's.

use tidegate::stats::{Direction, EventProcess};

/// Counts of both arms since the last look: the canary first, then the baseline.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Look {
    /// The canary's share of requests.
    pub(crate) share: f64,
    pub(crate) requests: [u64; 2],
    /// Requests that failed.
    pub(crate) bad: [u64; 2],
}

impl Look {
    pub(crate) fn add(&mut self, other: &Self) {
        self.share = other.share;
        for arm in 0..2 {
            self.requests[arm] += other.requests[arm];
            self.bad[arm] += other.bad[arm];
        }
    }

    fn rates(&self) -> [f64; 2] {
        [0, 1].map(|arm| number(self.bad[arm]) / number(self.requests[arm].max(1)))
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of a simulation are far below 2^53")]
pub(crate) fn number(count: u64) -> f64 {
    count as f64
}

/// A rule, with what it remembers of one rollout.
#[derive(Debug, Clone)]
pub(crate) enum Judge {
    /// Rolls back at the n-th interval in which more than a fixed rate of the canary's requests failed, as Flagger and
    /// Argo Rollouts do.
    Fixed { rate: f64, failures_left: u32 },
    /// One-sided two-sample z-test on all counts so far, against a quantile of the normal distribution.
    ZTest { quantile: f64, so_far: Look },
    /// The stopping rule of Track-and-Stop (Garivier & Kaufmann, "Optimal Best Arm Identification with Fixed
    /// Confidence", 2016): the generalised likelihood ratio against `ln((1 + ln n) / delta)`.
    TrackAndStop { delta: f64, so_far: Look },
    /// Mann-Whitney test on the rates of all intervals so far, 98 % two-sided, every fifth interval, as Kayenta does.
    Ranks { rates: Vec<[f64; 2]> },
    /// tidegate's gate.
    Events { alpha: f64, process: Box<EventProcess> },
}

impl Judge {
    /// tidegate's gate for errors of a service whose base rate is known.
    pub(crate) fn events(alpha: f64, delta: f64, base: f64) -> Self {
        let process = EventProcess::new(Direction::More, delta, Some(base));
        Self::Events { alpha, process: Box::new(process) }
    }

    /// Adds what happened; true if the canary is to go back.
    pub(crate) fn look(&mut self, look: &Look) -> bool {
        match self {
            Self::Fixed { rate, failures_left } => {
                if look.rates()[0] > *rate {
                    *failures_left = failures_left.saturating_sub(1);
                }
                *failures_left == 0
            }
            Self::ZTest { quantile, so_far } => {
                so_far.add(look);
                z_score(so_far) > *quantile
            }
            Self::TrackAndStop { delta, so_far } => {
                so_far.add(look);
                let n = number(so_far.requests[0] + so_far.requests[1]);
                likelihood_ratio(so_far) > ((1.0 + n.ln()) / *delta).ln()
            }
            Self::Ranks { rates } => {
                rates.push(look.rates());
                rates.len() % 5 == 0 && ranks_higher(rates)
            }
            Self::Events { alpha, process } => {
                process.add(look.share, look.bad[0], look.bad[1]);
                process.log_e() >= -alpha.ln()
            }
        }
    }
}

fn pooled(counts: &Look) -> f64 {
    number(counts.bad[0] + counts.bad[1]) / number((counts.requests[0] + counts.requests[1]).max(1))
}

fn z_score(counts: &Look) -> f64 {
    let [canary, baseline] = counts.rates();
    let p = pooled(counts);
    let arms: f64 = counts.requests.map(|n| 1.0 / number(n.max(1))).iter().sum();
    (canary - baseline) / (p * (1.0 - p) * arms).sqrt().max(1e-9)
}

/// The logarithm of the likelihood with two rates over that with one; 0 if the canary's rate is not the higher one.
fn likelihood_ratio(counts: &Look) -> f64 {
    let rates = counts.rates();
    if rates[0] <= rates[1] {
        return 0.0;
    }
    let p = pooled(counts);
    let term = |x: f64, y: f64| if x > 0.0 { x * (x / y).ln() } else { 0.0 };
    let arm = |arm: usize| {
        let rate = rates[arm];
        number(counts.requests[arm]) * (term(rate, p) + term(1.0 - rate, 1.0 - p))
    };
    arm(0) + arm(1)
}

/// Mann & Whitney's test, normal approximation with corrections for ties and continuity.
fn ranks_higher(rates: &[[f64; 2]]) -> bool {
    let n = number(rates.len() as u64);
    let half = |x: f64, y: f64| {
        if x > y {
            1.0
        } else if x < y {
            0.0
        } else {
            0.5
        }
    };
    let mut above = 0.0;
    for [canary, _] in rates {
        above += rates.iter().map(|[_, baseline]| half(*canary, *baseline)).sum::<f64>();
    }
    let mut all: Vec<f64> = rates.iter().flatten().copied().collect();
    all.sort_unstable_by(f64::total_cmp);
    let groups = all.chunk_by(|a, b| a >= b).map(|group| number(group.len() as u64));
    let ties: f64 = groups.map(|t| t * t * t - t).sum();
    let variance = n * n / 12.0 * (2.0 * n + 1.0 - ties / (2.0 * n * (2.0 * n - 1.0)));
    let mean = |arm: usize| rates.iter().map(|rates| rates[arm]).sum::<f64>();
    (above - n * n / 2.0 - 0.5) / variance.sqrt().max(1e-9) > 2.326 && mean(0) > mean(1)
}
