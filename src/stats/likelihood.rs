//! The likelihood of events on two arms as a function of their log ratio, and where it falls to a level.
//!
//! An event at share `s` is the candidate's with probability `logistic(t + ln(s / (1-s)))` if its rate is `e^t`
//! times the baseline's. The logarithm of the likelihood is concave in `t`, so the values of `t` that lie above
//! a level form an interval, and Newton's method finds its ends from outside without overshooting. A rate is the
//! same with share 1/2: `e^t` are its odds.

use super::special::{logistic, number, softplus};

/// Events at one share.
#[derive(Debug, Clone, Copy)]
struct Term {
    /// Log odds of the share.
    offset: f64,
    candidate: f64,
    baseline: f64,
}

/// The log-likelihood of all strata. Both arms together have at least one event.
#[derive(Debug, Clone)]
pub(super) struct Likelihood {
    terms: Vec<Term>,
}

impl Likelihood {
    /// Strata as (log odds of the share, events of the candidate, events of the baseline).
    pub(super) fn new(strata: impl Iterator<Item = (f64, u64, u64)>) -> Self {
        let terms = strata.filter(|(_, candidate, baseline)| candidate | baseline != 0);
        let terms = terms.map(|(offset, candidate, baseline)| Term {
            offset,
            candidate: number(candidate),
            baseline: number(baseline),
        });
        Self { terms: terms.collect() }
    }

    /// True if no stratum has an event: nothing is known then.
    pub(super) fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// The logarithm of the likelihood at the log ratio `t`.
    pub(super) fn log(&self, t: f64) -> f64 {
        let term = |term: &Term| {
            let x = t + term.offset;
            -term.candidate * softplus(-x) - term.baseline * softplus(x)
        };
        self.terms.iter().map(term).sum()
    }

    /// The log ratio that is likeliest; infinite where only one arm has events.
    pub(super) fn mode(&self) -> f64 {
        let (candidate, baseline) = self.totals();
        if candidate == 0.0 || baseline == 0.0 {
            return if candidate == 0.0 { f64::NEG_INFINITY } else { f64::INFINITY };
        }
        // At one end every stratum expects at most the observed part of the candidate's events, at the other at least.
        let all = libm::log(candidate / baseline);
        let offsets = self.terms.iter().map(|term| term.offset);
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for offset in offsets {
            (low, high) = (low.min(all - offset), high.max(all - offset));
        }
        let mut at = low.midpoint(high);
        for _ in 0..100 {
            let (slope, curvature) = self.slope(at);
            *if slope > 0.0 { &mut low } else { &mut high } = at;
            let newton = at + slope / curvature;
            let next = if (low..=high).contains(&newton) { newton } else { low.midpoint(high) };
            let step = (next - at).abs();
            at = next;
            if step <= 1e-15 * (1.0 + at.abs()) {
                break;
            }
        }
        at
    }

    /// The log ratios at which the log-likelihood falls to `level`, below and above its mode; infinite where
    /// it never does. The level lies below the maximum, which is at `mode`.
    pub(super) fn interval(&self, mode: f64, level: f64) -> (f64, f64) {
        (-self.mirrored().beyond(-mode, level), self.beyond(mode, level))
    }

    /// The log ratio above the mode at which the log-likelihood falls to `level`; infinite if it never does.
    fn beyond(&self, mode: f64, level: f64) -> f64 {
        if mode == f64::INFINITY {
            return mode;
        }
        let mut at = if mode.is_finite() {
            let drop = self.log(mode) - level;
            if drop <= 0.0 {
                // So many events that only rounding is left of the difference.
                return mode;
            }
            // As if it were a parabola.
            mode + (2.0 * drop / self.slope(mode).1).sqrt()
        } else {
            // As if all events had the largest share; it falls later than that.
            let most = self.terms.iter().map(|term| term.offset).fold(f64::NEG_INFINITY, f64::max);
            libm::log(libm::expm1(-level / self.totals().1)) - most
        };
        // A tangent of a concave curve lies above it: from the first step on, every point lies at or beyond the root.
        for _ in 0..100 {
            let (slope, _) = self.slope(at);
            if slope >= 0.0 {
                break;
            }
            let step = (self.log(at) - level) / slope;
            at = (at - step).max(mode);
            if step.abs() <= 1e-14 * (1.0 + at.abs()) {
                break;
            }
        }
        at
    }

    /// Slope and curvature (positive where it bends down) of the log-likelihood.
    fn slope(&self, t: f64) -> (f64, f64) {
        let (mut slope, mut curvature) = (0.0, 0.0);
        for term in &self.terms {
            let (q, rest) = (logistic(t + term.offset), logistic(-t - term.offset));
            slope += term.candidate * rest - term.baseline * q;
            curvature += (term.candidate + term.baseline) * q * rest;
        }
        (slope, curvature)
    }

    fn totals(&self) -> (f64, f64) {
        let candidate = self.terms.iter().map(|term| term.candidate).sum();
        (candidate, self.terms.iter().map(|term| term.baseline).sum())
    }

    /// The same with the arms exchanged: its log ratios have the opposite sign.
    fn mirrored(&self) -> Self {
        let mirror = |term: &Term| Term {
            offset: -term.offset,
            candidate: term.baseline,
            baseline: term.candidate,
        };
        Self { terms: self.terms.iter().map(mirror).collect() }
    }
}
