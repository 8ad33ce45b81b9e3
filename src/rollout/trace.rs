//! Growth of every gate's evidence, played back from a bundle.
//!
//! Not here: the playback (`replay`), drawing (`plot`).

use super::{
    ledger::Body,
    policy::{Gate, Mode},
    replay::{Bundle, Playback},
    report::Point,
    state::State,
};

/// Growth of a rollout's evidence.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Trace {
    /// The steps as they were entered, in order.
    pub steps: Vec<Entered>,
    /// Every gate that is on and has evidence, in the usual order.
    pub gates: Vec<GateTrace>,
}

/// A step that was entered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Entered {
    /// The candidate's judged requests until then.
    pub requests: u64,
    /// The candidate's share from then on, 0 to 1.
    pub weight: f64,
}

/// Growth of a gate's evidence.
#[derive(Debug, Clone, PartialEq)]
pub struct GateTrace {
    /// The gate.
    pub gate: Gate,
    /// True if it may roll back.
    pub decides: bool,
    /// The logarithm of evidence at which it fires, or would.
    pub log_e_threshold: f64,
    /// Its evidence, at most 500 points.
    pub points: Vec<Point>,
}

/// Most points of a gate.
const POINTS_MAX: usize = 500;

impl Bundle {
    /// Plays the evidence back from the ledger and thins it; the last point is kept.
    pub fn trace(&self) -> Trace {
        let mut trace = Trace::default();
        let on = Gate::ALL.into_iter().filter(|gate| self.policy.gate(*gate).mode != Mode::Off);
        for gate in on {
            trace.gates.push(GateTrace {
                gate,
                decides: self.policy.gate(gate).mode.decides(),
                log_e_threshold: self.policy.log_e_threshold(gate).unwrap_or(f64::MAX),
                points: Vec::new(),
            });
        }
        let evidence = self.ledger.iter().filter(|entry| matches!(entry.body, Body::Evidence(_)));
        let last = evidence.count();
        let stride = last.div_ceil(POINTS_MAX).max(1);
        let mut playback = Playback::new(&self.policy);
        let mut seen = 0;
        for entry in &self.ledger {
            playback.play(entry);
            match &entry.body {
                Body::Transition { transition }
                    if transition.to == State::Canary
                        && trace.steps.last().map(|step| step.weight)
                            != Some(transition.weight) =>
                {
                    let requests = playback.requests.candidate;
                    trace.steps.push(Entered { requests, weight: transition.weight });
                }
                Body::Evidence(_) => {
                    seen += 1;
                    if (last - seen) % stride == 0 {
                        for gate in &mut trace.gates {
                            gate.points.push(Point {
                                at: entry.at,
                                requests: playback.requests.candidate,
                                log_e: playback.evidence.log_e(&self.policy, gate.gate),
                            });
                        }
                    }
                }
                _ => {}
            }
        }
        trace.gates.retain(|gate| gate.points.iter().any(|point| point.log_e != 0.0));
        trace
    }
}
