//! What an operator decides about the page of metrics.

use std::time::Duration;

/// The way in which recorders are shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Latencies that were promised to somebody: edges of the classic histograms, beside the usual ones.
    pub objectives: Vec<Duration>,
    /// Most series of a page.
    pub series_max: usize,
    /// Names of other servers that the page has too.
    pub compat: Vec<Compat>,
}

/// Another server whose names of metrics dashboards may know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compat {
    /// Triton Inference Server.
    Triton,
}

impl Default for Settings {
    fn default() -> Self {
        Self { objectives: Vec::new(), series_max: 100_000, compat: Vec::new() }
    }
}

/// The usual upper edges of classic latency histograms, in seconds.
const EDGES: [f64; 20] = [
    0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.0025, 0.005, 0.01, 0.025,
    0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];

impl Settings {
    /// Most objectives: each is a series more for every histogram.
    pub const OBJECTIVES_MAX: usize = 16;

    /// Upper edges of classic latency histograms in seconds, rising: the usual ones and the objectives.
    pub(super) fn edges(&self) -> Vec<f64> {
        let mut edges = EDGES.to_vec();
        edges.extend(self.objectives.iter().map(Duration::as_secs_f64));
        edges.sort_by(f64::total_cmp);
        edges.dedup();
        edges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objectives_are_edges_once() {
        let objectives = vec![Duration::from_millis(20), Duration::from_millis(10)];
        let edges = Settings { objectives, ..Settings::default() }.edges();
        assert_eq!(edges.len(), EDGES.len() + 1);
        assert!(edges.is_sorted());
        assert!(edges.contains(&0.02) && edges.contains(&0.01));
    }
}
